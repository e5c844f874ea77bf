//! What Services have to know of the place they are served from.
//!
//! Owns the part of the node file and of the Nodes that decides about Services: the class, what is exposed, the own
//! zone and addresses, Nodes that are no targets. It is a value that can be compared: only when it differs are Services
//! resolved again for the sake of a Node.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use tidegate_api::resource::DeliveryMode;

use crate::config::{NodeFile, SourceChoice};
use crate::model::Model;
use crate::model::node::Node;

/// Label of Nodes that send answers back through the gateway they came from.
pub const RETURN_LABEL: &str = "tidegate.io/symmetric";

/// What Services have to know of this gateway.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Site {
    /// `loadBalancerClass` served (S-001).
    pub class: Option<String>,
    /// Delivery unless a Service says otherwise; absent: by its `externalTrafficPolicy` (S-062).
    pub delivery_mode: Option<DeliveryMode>,
    /// Which `externalIPs` are allowed (S-023).
    pub external_ips: Vec<IpNet>,
    /// Who gives Services addresses.
    pub assigner: Assigner,
    /// Whether cluster IPs are served (S-060).
    pub cluster_ips: bool,
    /// Whether node ports are served (S-065).
    pub node_ports: bool,
    /// Where node ports are served, sorted; empty unless they are.
    pub node_addresses: Vec<IpAddr>,
    /// Name and zone of the own Node; absent unless topology hints are followed (S-045).
    pub here: Option<Here>,
    /// Nodes that modes which choose nodes do not choose (S-006).
    pub excluded: BTreeSet<String>,
    /// Nodes that send their pods' answers back through the gateway they came from, which `symmetric` needs.
    pub returning: BTreeSet<String>,
}

/// Who gives Services addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Assigner {
    /// Whoever writes the files.
    #[default]
    Author,
    /// The control that holds the Lease, out of AddressPools.
    Pools,
    /// Somebody else, in status.
    Stranger,
}

/// Where this gateway stands.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Here {
    /// Name of the own Node.
    pub node: String,
    /// Its zone; empty when not known, which no hint names.
    pub zone: String,
}

impl Site {
    /// The site that node file and Nodes describe.
    pub fn new(file: &NodeFile, model: &Model) -> Self {
        let control = &file.control;
        let own = model.node(&file.node);
        let here = || Here { node: file.node.clone(), zone: own.map(|own| own.zone.clone()).unwrap_or_default() };
        Site {
            class: control.load_balancer_class.clone(),
            delivery_mode: control.delivery_mode,
            external_ips: control.external_ips.clone(),
            assigner: match (&control.source, control.allocate) {
                (SourceChoice::Directory(_), _) => Assigner::Author,
                (SourceChoice::Kubernetes(_), true) => Assigner::Pools,
                (SourceChoice::Kubernetes(_), false) => Assigner::Stranger,
            },
            cluster_ips: control.expose_cluster_ips,
            node_ports: control.expose_node_ports,
            node_addresses: match control.expose_node_ports {
                true => node_addresses(own, &control.node_port_addresses),
                false => Vec::new(),
            },
            here: control.topology_hints.then(here),
            excluded: model.nodes().filter(|node| node.excluded).map(|node| node.name.clone()).collect(),
            returning: model.nodes().filter(|node| returns(node)).map(|node| node.name.clone()).collect(),
        }
    }
}

/// Whoever runs `tidegate-node` there, with the Node's pods under `symmetric`, says so by this label.
fn returns(node: &Node) -> bool {
    node.labels.contains(RETURN_LABEL)
}

/// Where the own Node answers at its `healthCheckNodePort`s: the addresses of its node ports, whether those are served or not.
pub fn health_addresses(file: &NodeFile, model: &Model) -> Vec<IpAddr> {
    node_addresses(model.node(&file.node), &file.control.node_port_addresses)
}

/// The own addresses: the internal ones of the Node's status and those of its VTEPs, as far as `chosen` has them; a single address that is
/// chosen counts even if the Node does not list it.
fn node_addresses(own: Option<&Node>, chosen: &[IpNet]) -> Vec<IpAddr> {
    let mut addresses = BTreeSet::new();
    if let Some(own) = own {
        addresses.extend(own.addresses.iter().copied());
        if let Ok(overlay) = &own.overlay {
            addresses.extend([&overlay.v4, &overlay.v6].into_iter().flatten().map(|tunnel| tunnel.underlay));
        }
    }
    if !chosen.is_empty() {
        addresses.retain(|address| chosen.iter().any(|prefix| prefix.contains(address)));
        let single = |prefix: &&IpNet| prefix.prefix_len() == prefix.max_prefix_len();
        addresses.extend(chosen.iter().filter(single).map(|prefix| prefix.addr()));
    }
    addresses.into_iter().collect()
}
