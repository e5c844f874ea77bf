//! Addresses that are never given out, whatever pools say (M-013).

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::Control;
use crate::model::Model;
use crate::model::addresspool::AddressRange;

/// Addresses that belong to the network itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reserved {
    /// The addresses.
    pub range: AddressRange,
    /// Whose they are, for people.
    pub whose: String,
}

/// All of them: addresses of Nodes and of their tunnels, pod CIDRs, the sources of `fullnat`, and the CIDRs of Services
/// as far as the node file names them (no object that is read does). Sorted.
pub fn reserved(model: &Model, control: &Control) -> Vec<Reserved> {
    let mut all = Vec::new();
    let mut take = |range: AddressRange, whose: String| all.push(Reserved { range, whose });
    for node in model.nodes() {
        let overlay = node.overlay.iter().flat_map(|overlay| [&overlay.v4, &overlay.v6]).flatten();
        let own: Vec<IpAddr> = node.addresses.iter().copied().chain(overlay.map(|tunnel| tunnel.underlay)).collect();
        for address in own {
            take(address.into(), format!("an address of Node {}", node.name));
        }
        for cidr in &node.pod_cidrs {
            take((*cidr).into(), format!("the pod CIDR of Node {}", node.name));
        }
    }
    for address in &control.fullnat_sources {
        take((*address).into(), "in control.fullnatSources of the node file".into());
    }
    for cidr in &control.service_cidrs {
        take(AddressRange::from(IpNet::trunc(cidr)), "in control.serviceCIDRs of the node file".into());
    }
    all.sort();
    all.dedup();
    all
}
