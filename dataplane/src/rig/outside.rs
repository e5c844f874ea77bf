//! Pods, egress policies and static NAT as the contract tells them, made into rows by the compiler's own build side.
//!
//! Owns those of one test and gives external addresses the roles that the compiler thread would.

use std::net::IpAddr;
use std::sync::Arc;

use tidegate_api::resource::{Egress, Filtering, Mapping, MappingClass, Pod, StaticNat};

use super::{Net, mapped};
use crate::compile::backend::Backends;
use crate::compile::egress::Egresses;
use crate::compile::pod::Pods;
use crate::table::Tables;
use crate::table::local::LocalKind;

/// Ids of backends that pods get in tests, beyond those of Services.
const BACKENDS_FIRST: u32 = 500_000;

/// What a test tells of the outside.
#[derive(Debug)]
pub struct Outside {
    pods: Pods,
    egresses: Egresses,
    backends: Backends,
}

impl Default for Outside {
    fn default() -> Self {
        Outside { pods: Pods::default(), egresses: Egresses::default(), backends: Backends::from(BACKENDS_FIRST) }
    }
}

impl Outside {
    /// Pod `name` (`namespace/name`) has these addresses and is selected by these policies.
    pub fn pod(&mut self, tables: &mut Tables, name: &str, addresses: &[IpAddr], egress: &[&str]) {
        let egress = egress.iter().map(|name| (*name).to_owned()).collect();
        let pod = Pod { addresses: addresses.to_vec(), egress, ..Pod::default() };
        self.pods.write(name, Some(&pod), &mut self.backends, &mut self.egresses, tables, 0);
    }

    /// Pod `name` is no more.
    pub fn remove_pod(&mut self, tables: &mut Tables, name: &str) {
        self.pods.write(name, None, &mut self.backends, &mut self.egresses, tables, 0);
    }

    /// Policy `name` says this; `None`: it is no more.
    pub fn policy(&mut self, tables: &mut Tables, name: &str, egress: Option<&Egress>) {
        self.egresses.policy(name, egress);
        self.settle(tables);
    }

    /// Static NAT `name` says this; `None`: it is no more.
    pub fn fixed(&mut self, tables: &mut Tables, name: &str, nat: Option<&StaticNat>) {
        self.egresses.fixed(name, nat);
        self.settle(tables);
    }

    fn settle(&mut self, tables: &mut Tables) {
        let before: Vec<_> = tables.egress.externals().map(|(_, row)| row.address).collect();
        let touched = self.egresses.settle(|_| true, &mut tables.egress);
        touched.policies.iter().for_each(|policy| self.pods.touch(policy, tables));
        touched.pods.iter().for_each(|pod| Pods::touch_address(*pod, tables));
        let locals = Arc::make_mut(&mut tables.locals);
        before.iter().for_each(|address| locals.take(address, LocalKind::EXTERNAL));
        tables.egress.externals().for_each(|(_, row)| locals.add(&row.address, LocalKind::EXTERNAL));
    }
}

/// A policy for every destination with these addresses: UDP by endpoint, TCP by destination.
pub fn policy(addresses: &[IpAddr]) -> Egress {
    Egress {
        destinations: Vec::new(),
        except: Vec::new(),
        inside: Vec::new(),
        addresses: addresses.to_vec(),
        tcp: Mapping { class: MappingClass::AddressAndPortDependent, filtering: Filtering::AddressDependent },
        udp: Mapping::default(),
        ports_per_pod_max: None,
        ports_per_namespace_max: None,
        udp_timeouts: Vec::new(),
        other_protocols: false,
        log: false,
    }
}

/// External address `n` of a test, routed to us.
pub fn external(net: Net, n: u8) -> IpAddr {
    net.vip(100 + n)
}

/// The network with pods 5 and 6 of peer 0 and pod 7 of peer 1, in the namespaces `shop`, `shop` and `blog`, all under a
/// policy with external address 1 of either family.
pub fn town() -> (Tables, Outside) {
    let (mut tables, mut outside) = (super::tables(), Outside::default());
    for (name, n, p) in [("shop/five", 0, 5), ("shop/six", 0, 6), ("blog/seven", 1, 7)] {
        outside.pod(&mut tables, name, &Net::BOTH.map(|net| net.pod(n, p)), &["out"]);
    }
    outside.policy(&mut tables, "out", Some(&policy(&Net::BOTH.map(|net| external(net, 1)))));
    (tables, outside)
}

/// An address in the form rows hold.
pub fn row_address(address: IpAddr) -> [u8; 16] {
    mapped(address)
}
