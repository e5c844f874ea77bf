//! What people must know of a Service besides whether it is programmed.
//!
//! Owns the words for what is asked for and not done, or done otherwise: never left out silently (S-012, S-084).

use tidegate_api::resource::{DeliveryMode, Protocol, TrafficPolicy};

use super::frontend::Frontends;
use super::service::Delivery;
use super::site::{Assigner, RETURN_LABEL, Site};
use crate::model::service::{Service, ServiceType};
use crate::watch::annotation;

/// Type of the condition that says whether pods see their clients' addresses.
pub const CLIENT_ADDRESS_KEPT: &str = "ClientAddressKept";
/// Nodes named in a message.
const NODES_TOLD_MAX: usize = 8;

/// A condition of a Service other than "it is programmed". Its status is "the good case does not hold".
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    /// Type of the condition, named after the good case.
    pub kind: &'static str,
    /// Reason, in CamelCase.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// Takes notes in the order in which they come to mind.
type Take<'a> = &'a mut dyn FnMut(&'static str, &'static str, String);

/// All there is to say of `service`, sorted.
pub fn notes(service: &Service, frontends: &Frontends, delivery: &Delivery, site: &Site) -> Vec<Note> {
    let mut notes = Vec::new();
    let mut take = |kind, reason, message| notes.push(Note { kind, reason, message });
    about_addresses(service, frontends, site, &mut take);
    about_delivery(service, delivery, &mut take);
    about_source_ranges(service, frontends, &mut take);
    about_wishes(service, delivery, &mut take);
    notes.sort();
    notes
}

fn about_addresses(service: &Service, frontends: &Frontends, site: &Site, take: Take<'_>) {
    let balanced = service.service_type == ServiceType::LoadBalancer;
    let unassigned = &service.wishes.prefixes_unassigned;
    if !unassigned.is_empty() {
        let message = format!(
            "not served: {}; with an API server the addresses of a Service are those in its status, and nothing assigns prefixes",
            join(unassigned)
        );
        take("AddressAssigned", "PrefixNotAssigned", message);
    } else if balanced && frontends.addresses.is_empty() && frontends.prefixes.is_empty() {
        let hint = match site.assigner {
            Assigner::Author => format!("and nothing requests one (the annotation {} does)", annotation::ADDRESSES),
            Assigner::Pools => {
                "and none was given yet: the control that holds the Lease gives addresses out of AddressPools, \
                                and tells by an event why it cannot"
                    .into()
            }
            Assigner::Stranger => {
                "and control.allocate is false in the node file: somebody else has to write one there".into()
            }
        };
        let message = format!("no address to serve: status.loadBalancer.ingress has none, {hint}");
        take("AddressAssigned", "NoAddress", message);
    }
    if !service.of_other_families.is_empty() {
        let list = service.of_other_families.join(", ");
        let message = format!("not served, their family is not in spec.ipFamilies: {list}");
        take("AddressAssigned", "FamilyNotInIPFamilies", message);
    }
    if !frontends.external_refused.is_empty() {
        let list = join(&frontends.external_refused);
        let (reason, why) = match site.external_ips.is_empty() {
            true => ("NotServed", "this gateway serves none (control.externalIPs in the node file lists the allowed)"),
            false => ("NotAllowed", "not in control.externalIPs of the node file"),
        };
        take("ExternalIPsServed", reason, format!("externalIPs not served: {list}: {why}")); // S-023
    }
    let has_node_ports = service.ports.iter().any(|port| port.node_port.is_some());
    if site.node_ports && has_node_ports && frontends.node_addresses.is_empty() {
        let message = "node ports are not served: no address of this gateway's Node is in control.nodePortAddresses and of \
                       the Service's families";
        take("NodePortsServed", "NoNodeAddress", message.into());
    }
}

fn about_delivery(service: &Service, delivery: &Delivery, take: Take<'_>) {
    if delivery.impossible {
        // S-063
        let message = "node-dsr is not possible, delivery is fullnat: kube-proxy on the nodes knows neither prefixes nor \
                       frontends of every port; pods see the gateway's address, not the client's";
        take(CLIENT_ADDRESS_KEPT, "NotKnownToNodes", message.into());
    } else if !delivery.one_way.is_empty() {
        let known = delivery.one_way.iter().filter(|node| !node.is_empty());
        let mut nodes: Vec<&str> = known.take(NODES_TOLD_MAX).map(String::as_str).collect();
        if delivery.one_way.contains("") {
            nodes.push("(endpoints without a Node)");
        }
        let more = if delivery.one_way.len() > nodes.len() { ", ..." } else { "" };
        let message = format!(
            "symmetric is not possible, delivery is fullnat: no label {RETURN_LABEL} on {}{more}; give it to Nodes whose \
             tidegate-node sends these pods' answers back; until then pods see the gateway's address, not the client's",
            nodes.join(", ")
        );
        take(CLIENT_ADDRESS_KEPT, "NodesDoNotReturn", message);
    } else if delivery.mode == DeliveryMode::Fullnat
        && service.external_policy == TrafficPolicy::Local
        && delivery.matters
    {
        let message = "externalTrafficPolicy is Local, but fullnat is asked for: pods see the gateway's address, not the \
                       client's";
        take(CLIENT_ADDRESS_KEPT, "DeliveredByFullnat", message.into()); // S-056
    }
}

/// S-081: a family without a range is open to all, as kube-proxy has it.
fn about_source_ranges(service: &Service, frontends: &Frontends, take: Take<'_>) {
    if service.source_ranges.is_empty() {
        return;
    }
    for (v4, family, other) in [(true, "IPv4", "IPv6"), (false, "IPv6", "IPv4")] {
        let served = frontends.addresses.iter().any(|address| address.is_ipv4() == v4)
            || frontends.prefixes.iter().any(|prefix| prefix.addr().is_ipv4() == v4);
        if served && !service.source_ranges.iter().any(|range| range.addr().is_ipv4() == v4) {
            let message = format!(
                "loadBalancerSourceRanges has {other} ranges only: every {family} client gets in; list an {family} range to \
                 restrict them"
            );
            take("SourceRangesEnforced", "FamilyNotRestricted", message);
        }
    }
}

fn about_wishes(service: &Service, delivery: &Delivery, take: Take<'_>) {
    let wishes = &service.wishes;
    if let Some(name) = wishes.scheduler_replaced {
        let message = format!("{}: dh does the work of {name}", annotation::SCHEDULER);
        take("SchedulerHonoured", "MappedToDh", message);
    }
    if wishes.one_packet && !service.ports.iter().any(|port| port.protocol == Protocol::Udp) {
        let message = format!("{}: there is no UDP port", annotation::ONE_PACKET);
        take("OnePacketScheduled", "NoUdpPort", message);
    } else if wishes.one_packet && delivery.mode != DeliveryMode::NodeDsr {
        let message = format!(
            "{}: in fullnat a reply finds its client by the flow, so flows are kept; delivery mode node-dsr does without",
            annotation::ONE_PACKET
        );
        take("OnePacketScheduled", "OnlyWithClientAddress", message);
    }
    if !wishes.unknown.is_empty() {
        let message = format!(
            "not known: {}; there are {} (each after {})",
            wishes.unknown.join(", "),
            annotation::known(),
            annotation::PREFIX
        );
        take("AnnotationsUnderstood", "Unknown", message);
    }
}

fn join<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
