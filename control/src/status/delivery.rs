//! Whether pods see their clients' addresses, as the dataplane finds it.
//!
//! Owns what the dataplane last told of Services that are to be delivered by `node-dsr`, and the words for it: which
//! nodes are proven, and why the others are not. Until a node is proven delivery is `fullnat`, and pods see the
//! gateway's address (S-056, S-084).

use std::collections::BTreeMap;
use std::fmt::Write;

use hashbrown::HashMap;
use tidegate_api::message::{IpFamily, NodeDelivery, PortDelivery, ServiceDelivery, WayState};
use tidegate_api::resource::DeliveryMode;

use super::service::Holds;
use crate::model::Name;

/// Nodes named with their reasons in one condition: beyond that only their number helps.
const NODES_NAMED_MAX: usize = 20;

/// What was told of each Service.
#[derive(Debug, Default)]
pub struct Deliveries {
    told: HashMap<Name, Vec<PortDelivery>>,
    /// A new conversation has begun: the next message tells of all Services.
    begins: bool,
}

/// Status, reason and message of the condition.
pub type Words = (Holds, &'static str, String);

impl Deliveries {
    /// Another dataplane, or the same one again, is to be heard. What was told stays until it tells otherwise.
    pub fn connected(&mut self) {
        self.begins = true;
    }

    /// Takes in a message; returns the Services it changes anything for.
    pub fn take(&mut self, services: Vec<ServiceDelivery>) -> Vec<Name> {
        let mut before = match std::mem::take(&mut self.begins) {
            true => std::mem::take(&mut self.told),
            false => HashMap::new(),
        };
        let mut changed = Vec::new();
        for ServiceDelivery { service, ports } in services {
            let Some((namespace, name)) = service.split_once('/') else { continue };
            let name = Name { namespace: namespace.into(), name: name.into() };
            let known = before.remove(&name).or_else(|| self.told.remove(&name)).unwrap_or_default();
            if known != ports {
                changed.push(name.clone());
            }
            if !ports.is_empty() {
                self.told.insert(name, ports);
            }
        }
        changed.extend(before.into_keys()); // not told of any more
        changed
    }

    /// The words for a Service that is to be delivered by `node-dsr`.
    pub fn words(&self, name: &Name) -> Words {
        match self.told.get(name) {
            Some(ports) => words(ports),
            None => {
                let message = "the dataplane has not told yet whether a node is proven; until one is, delivery is \
                               fullnat and pods see the gateway's address";
                (Holds::Unknown, "NotToldYet", message.into())
            }
        }
    }
}

fn words(ports: &[PortDelivery]) -> Words {
    let by_fullnat: Vec<String> = ports
        .iter()
        .filter(|port| port.mode == DeliveryMode::Fullnat)
        .map(|port| format!("{}/{} over {}", port.port, port.protocol, family(port.family)))
        .collect();
    let left_out = left_out(ports);
    match (by_fullnat.is_empty(), left_out.is_empty()) {
        (true, true) => {
            (Holds::True, "DeliveredByNodeDsr", "every node with an endpoint is proven: pods see their clients".into())
        }
        (true, false) => {
            let message = format!("pods see their clients; nothing is sent to nodes that are not proven: {left_out}");
            (Holds::True, "NodesLeftOut", message)
        }
        (false, none_named) => {
            let mut message = format!(
                "delivered by fullnat, pods see the gateway's address, because no node is proven: {}",
                by_fullnat.join(", ")
            );
            match none_named {
                true => message.push_str("; no node has an endpoint"),
                false => drop(write!(message, "; {left_out}")),
            }
            (Holds::False, "NoNodeProven", message)
        }
    }
}

/// Nodes that are not proven with their reasons, each once however many ports it concerns.
fn left_out(ports: &[PortDelivery]) -> String {
    let mut nodes: BTreeMap<(&str, IpFamily), &NodeDelivery> = BTreeMap::new();
    for port in ports {
        let unproven = port.nodes.iter().filter(|node| node.state != WayState::Proven);
        nodes.extend(unproven.map(|node| ((node.node.as_str(), port.family), node)));
    }
    let mut text = String::new();
    for ((name, ip), node) in nodes.iter().take(NODES_NAMED_MAX) {
        let state = match node.state {
            WayState::Failed => "has failed",
            WayState::Suspected => "is suspected",
            _ => "not proven yet",
        };
        let gap = if text.is_empty() { "" } else { "; " };
        let colon = if node.reason.is_empty() { "" } else { ": " };
        let _ = write!(text, "{gap}{name} over {} {state}{colon}{}", family(*ip), node.reason);
    }
    if nodes.len() > NODES_NAMED_MAX {
        let _ = write!(text, "; and {} more", nodes.len() - NODES_NAMED_MAX);
    }
    text
}

fn family(family: IpFamily) -> &'static str {
    match family {
        IpFamily::Ipv4 => "IPv4",
        IpFamily::Ipv6 => "IPv6",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_api::resource::Protocol;

    fn port(family: IpFamily, mode: DeliveryMode, nodes: &[(&str, WayState, &str)]) -> PortDelivery {
        let node = |(node, state, reason): &(&str, WayState, &str)| NodeDelivery {
            node: (*node).into(),
            weight: 1,
            state: *state,
            reason: (*reason).into(),
        };
        PortDelivery { protocol: Protocol::Tcp, port: 80, family, mode, nodes: nodes.iter().map(node).collect() }
    }

    fn web(ports: Vec<PortDelivery>) -> ServiceDelivery {
        ServiceDelivery { service: "shop/web".into(), ports }
    }

    fn name() -> Name {
        Name { namespace: "shop".into(), name: "web".into() }
    }

    #[test]
    fn the_words_follow_what_is_proven() {
        let (v4, v6) = (IpFamily::Ipv4, IpFamily::Ipv6);
        let proven = ("w1", WayState::Proven, "");
        let strict = ("w2", WayState::Failed, "rp_filter");
        let new = ("w3", WayState::Unproven, "");
        for (ports, holds, reason, parts) in [
            (vec![port(v4, DeliveryMode::NodeDsr, &[proven])], Holds::True, "DeliveredByNodeDsr", vec!["every node"]),
            (
                vec![port(v4, DeliveryMode::NodeDsr, &[proven, strict]), port(v6, DeliveryMode::NodeDsr, &[proven])],
                Holds::True,
                "NodesLeftOut",
                vec!["w2 over IPv4 has failed: rp_filter"],
            ),
            (
                vec![port(v4, DeliveryMode::NodeDsr, &[proven]), port(v6, DeliveryMode::Fullnat, &[new, strict])],
                Holds::False,
                "NoNodeProven",
                vec!["80/TCP over IPv6", "w2 over IPv6 has failed: rp_filter; w3 over IPv6 not proven yet"],
            ),
            (vec![port(v6, DeliveryMode::Fullnat, &[])], Holds::False, "NoNodeProven", vec!["no node has an endpoint"]),
        ] {
            let mut deliveries = Deliveries::default();
            assert_eq!(deliveries.words(&name()).0, Holds::Unknown);
            assert_eq!(deliveries.take(vec![web(ports)]), [name()]);
            let (found, why, message) = deliveries.words(&name());
            assert_eq!((found, why), (holds, reason), "{message}");
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
    }

    #[test]
    fn a_new_conversation_starts_over_but_forgets_nothing_before_it_is_told() {
        let ports = || vec![port(IpFamily::Ipv4, DeliveryMode::NodeDsr, &[("w1", WayState::Proven, "")])];
        let mut deliveries = Deliveries::default();
        deliveries.connected();
        assert_eq!(deliveries.take(vec![web(ports())]), [name()]);
        assert!(deliveries.take(vec![web(ports())]).is_empty(), "the same again changes nothing");
        deliveries.connected();
        assert_eq!(deliveries.words(&name()).0, Holds::True, "no flap (C-006)");
        assert!(deliveries.take(vec![web(ports())]).is_empty());
        deliveries.connected();
        assert_eq!(deliveries.take(Vec::new()), [name()], "not told of any more");
        assert_eq!(deliveries.words(&name()).0, Holds::Unknown);
        // And by name, later in a conversation.
        deliveries.take(vec![web(ports())]);
        assert_eq!(deliveries.take(vec![web(Vec::new())]), [name()]);
        assert_eq!(deliveries.words(&name()).0, Holds::Unknown);
    }

    #[test]
    fn a_thousand_nodes_do_not_make_a_thousand_lines() {
        let names: Vec<String> = (0..1000).map(|n| format!("w{n:04}")).collect();
        let nodes: Vec<_> = names.iter().map(|name| (name.as_str(), WayState::Failed, "no answer")).collect();
        let (_, _, message) = words(&[port(IpFamily::Ipv4, DeliveryMode::Fullnat, &nodes)]);
        assert!(message.len() < 2000 && message.ends_with("and 980 more"), "{message}");
    }
}
