//! Nodes that do not answer, as the dataplane feels it.
//!
//! Owns what the dataplane last told and the words for it. A node that dies without a word has its endpoints in
//! EndpointSlices until the cluster gives it up; meanwhile new connections go to the other endpoints (S-114).

use std::collections::BTreeSet;

use tidegate_api::message::{IpFamily, NodeSuspicion};
use tidegate_api::resource::{Backend, Service};

use super::delivery::Words;
use super::service::Holds;

/// Type of the condition.
pub const NODES_ANSWER: &str = "NodesAnswer";
/// Nodes named in one condition: beyond that only their number helps.
const NODES_NAMED_MAX: usize = 20;

/// What was told.
#[derive(Debug, Default)]
pub struct Suspects(Vec<NodeSuspicion>);

impl Suspects {
    /// Takes in all there are now; returns the nodes for which that changes anything.
    pub fn take(&mut self, all: Vec<NodeSuspicion>) -> BTreeSet<String> {
        let before = std::mem::replace(&mut self.0, all);
        let gone = before.iter().filter(|suspicion| !self.0.contains(suspicion));
        let new = self.0.iter().filter(|suspicion| !before.contains(suspicion));
        gone.chain(new).map(|suspicion| suspicion.node.clone()).collect()
    }

    /// The words for a Service; `None`: no endpoint of its is on a node that is suspected.
    pub fn words(&self, service: &Service) -> Option<Words> {
        if self.0.is_empty() {
            return None;
        }
        let on = |suspicion: &NodeSuspicion, backend: &Backend| {
            backend.node == suspicion.node && backend.address.is_ipv4() == (suspicion.family == IpFamily::Ipv4)
        };
        let backends = || service.ports.iter().flat_map(|port| &port.backends);
        let concerned: Vec<&NodeSuspicion> =
            self.0.iter().filter(|suspicion| backends().any(|backend| on(suspicion, backend))).collect();
        if concerned.is_empty() {
            return None;
        }
        let told = |suspicion: &&NodeSuspicion| {
            let family = if suspicion.family == IpFamily::Ipv4 { "IPv4" } else { "IPv6" };
            format!("{} over {family}: {}", suspicion.node, suspicion.reason)
        };
        let mut list: Vec<String> = concerned.iter().take(NODES_NAMED_MAX).map(told).collect();
        if concerned.len() > NODES_NAMED_MAX {
            list.push(format!("and {} more", concerned.len() - NODES_NAMED_MAX));
        }
        let message = format!(
            "nodes with endpoints do not answer; new connections go to other endpoints while there are any, connections \
             that are there stay: {}",
            list.join("; ")
        );
        Some((Holds::False, "NodeSuspected", message))
    }
}

#[cfg(test)]
mod tests {
    use tidegate_api::resource::ServicePort;

    use super::*;

    fn suspicion(node: &str, family: IpFamily) -> NodeSuspicion {
        NodeSuspicion { node: node.into(), family, reason: "no answer from 198.51.100.11 on TCP port 10256".into() }
    }

    fn on(node: &str, addresses: &[&str]) -> Service {
        let backend = |address: &&str| Backend {
            address: address.parse().unwrap(),
            port: 80,
            weight: 1,
            local_weight: 1,
            node: node.into(),
            pod: String::new(),
        };
        let port = ServicePort { backends: addresses.iter().map(backend).collect(), ..ServicePort::default() };
        Service { ports: vec![port], ..Service::default() }
    }

    // S-114
    #[test]
    fn those_with_an_endpoint_there_are_told() {
        let mut suspects = Suspects::default();
        let (v4, v6) = (on("w1", &["10.244.1.5"]), on("w1", &["fd00:10:244:1::5"]));
        assert_eq!(suspects.words(&v4), None);
        let all = vec![suspicion("w1", IpFamily::Ipv4)];
        assert_eq!(suspects.take(all.clone()), ["w1".to_owned()].into());
        let (holds, reason, message) = suspects.words(&v4).unwrap();
        assert_eq!((holds, reason), (Holds::False, "NodeSuspected"));
        assert!(message.contains("w1 over IPv4: no answer from 198.51.100.11 on TCP port 10256"), "{message}");
        assert_eq!(suspects.words(&v6), None);
        assert_eq!(suspects.words(&on("w2", &["10.244.1.5"])), None);
        assert!(suspects.take(all.clone()).is_empty(), "the same again changes nothing");
        let both = vec![suspicion("w1", IpFamily::Ipv4), suspicion("w1", IpFamily::Ipv6)];
        assert_eq!(suspects.take(both), ["w1".to_owned()].into());
        assert!(suspects.words(&v6).is_some());
        assert_eq!(suspects.take(vec![]), ["w1".to_owned()].into());
        assert_eq!(suspects.words(&v4), None);
    }
}
