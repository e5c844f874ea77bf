//! One question and its answer.
//!
//! Owns the meaning of `from`, `to`, `protocol` and `port`, and the cases that no rule decides: a pod and itself (P-033,
//! P-110), and a pod and the node it runs on (P-032).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
use tidegate_policy::{Decided, Direction, Query, Verdict};

use super::Offline;
use crate::model::Name;
use crate::model::pod::Pod;
use crate::model::policy::PolicyKey;

/// A question as it is asked.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// `namespace/pod` or an address.
    pub from: String,
    /// The same, for who is to receive.
    pub to: String,
    /// Name or number of the protocol, the latter with quotes or without.
    #[serde(default = "tcp", deserialize_with = "name_or_number")]
    pub protocol: String,
    /// Port of the receiving pod (P-025); absent where the protocol has none.
    #[serde(default)]
    pub port: Option<u32>,
}

/// Its answer, with the question repeated.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// As asked.
    pub from: String,
    /// As asked.
    pub to: String,
    /// As asked.
    pub protocol: String,
    /// As asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u32>,
    /// What the rules about the receiver say: `allow` or `deny`.
    pub ingress: &'static str,
    /// What the rules about the sender say.
    pub egress: &'static str,
    /// `allow` when both do (P-006).
    pub combined: &'static str,
    /// What decided about the receiver: an object and the number of its rule (`null`: no rule matched, and the object
    /// isolates), `"default"`, `"self"` or `"node"`.
    pub ingress_by: Value,
    /// The same for the sender.
    pub egress_by: Value,
    /// What in audit would deny what is allowed, at the receiver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress_audit: Option<Value>,
    /// The same at the sender.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress_audit: Option<Value>,
}

/// One end of a question.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End<'a> {
    /// The pod it is, if it is one that has its own addresses or was named.
    pub(crate) pod: Option<&'a Pod>,
    pub(crate) address: IpAddr,
    pub(crate) identity: u32,
}

/// A question that has a meaning in this cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meant<'a> {
    pub(crate) from: End<'a>,
    pub(crate) to: End<'a>,
    pub(crate) protocol: u8,
    pub(crate) port: u16,
    /// By way of a Service, which led to `to`; else by the address of `to` itself.
    pub(crate) through_service: bool,
}

/// What decides about a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rests {
    /// Policies, or nothing.
    On(Verdict),
    /// It is the same pod, by its own address.
    Same,
    /// It is the node the pod runs on.
    Node,
}

fn tcp() -> String {
    "TCP".into()
}

fn name_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(name) => Ok(name),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(D::Error::custom(format!("protocol is {other}; a name or a number from 0 to 255 names one"))),
    }
}

impl Meant<'_> {
    /// Whether both ends are one pod.
    pub(crate) fn is_itself(&self) -> bool {
        matches!((self.from.pod, self.to.pod), (Some(from), Some(to)) if from.name == to.name)
    }

    /// What the tables are asked about a side.
    fn query(&self, direction: Direction) -> Query {
        let (subject, peer) = match direction {
            Direction::Ingress => (self.to, self.from),
            Direction::Egress => (self.from, self.to),
        };
        let (subject, peer, peer_address) = (subject.identity, peer.identity, peer.address);
        let (protocol, port, is_itself) = (self.protocol, self.port, self.is_itself());
        Query { direction, subject, peer, peer_address, protocol, port, is_itself }
    }
}

impl Offline {
    /// Answers a question.
    ///
    /// # Errors
    /// Why it has no answer, in words.
    pub fn ask(&self, question: &Question) -> Result<Answer, String> {
        let meant = self.understand(question)?;
        if let (None, Some(service)) = (meant.to.pod, self.service_addresses.at(meant.to.address).next()) {
            return Err(of_service(&format!("{} is an address of Service {service}", meant.to.address)));
        }
        let [ingress, egress] = self.decide(&meant);
        let allows = |rests: Rests| !matches!(rests, Rests::On(Verdict { allow: false, .. }));
        let word = |allow: bool| if allow { "allow" } else { "deny" };
        Ok(Answer {
            from: question.from.clone(),
            to: question.to.clone(),
            protocol: question.protocol.clone(),
            port: question.port,
            ingress: word(allows(ingress)),
            egress: word(allows(egress)),
            combined: word(allows(ingress) && allows(egress)),
            ingress_by: self.by(Direction::Ingress, ingress),
            egress_by: self.by(Direction::Egress, egress),
            ingress_audit: self.audit_by(Direction::Ingress, ingress, &meant),
            egress_audit: self.audit_by(Direction::Egress, egress, &meant),
        })
    }

    /// What the rules about the receiver and about the sender say.
    pub(crate) fn decide(&self, meant: &Meant<'_>) -> [Rests; 2] {
        if meant.is_itself() && !meant.through_service {
            return [Rests::Same; 2];
        }
        let [ingress, egress] = Direction::ALL.map(|direction| Rests::On(self.table().lookup(&meant.query(direction))));
        [if self.is_own_node(meant.to, meant.from.address) { Rests::Node } else { ingress }, egress]
    }

    /// What in audit would deny a side that is allowed now.
    pub(crate) fn audit(&self, direction: Direction, rests: Rests, meant: &Meant<'_>) -> Option<Decided> {
        let Rests::On(Verdict { allow: true, .. }) = rests else { return None };
        self.table().audit(&meant.query(direction))
    }

    fn audit_by(&self, direction: Direction, rests: Rests, meant: &Meant<'_>) -> Option<Value> {
        let decided_by = self.audit(direction, rests, meant)?;
        Some(self.by(direction, Rests::On(Verdict { allow: false, decided_by })))
    }

    /// P-032: whether an address is that of the node on which a pod runs.
    fn is_own_node(&self, of: End<'_>, address: IpAddr) -> bool {
        let node = of.pod.filter(|pod| pod.owns_addresses()).and_then(|pod| self.model.node(&pod.node));
        node.is_some_and(|node| node.all_addresses.contains(&address))
    }

    /// What a question means here.
    pub(crate) fn understand(&self, question: &Question) -> Result<Meant<'_>, String> {
        let protocol = protocol(&question.protocol)?;
        let port = match (question.port, has_ports(protocol)) {
            (Some(port), true) => u16::try_from(port)
                .ok()
                .filter(|port| *port != 0)
                .ok_or(format!("{port} is not a port (1 to 65535)"))?,
            (None, true) => return Err(format!("port is missing: {} has ports", question.protocol)),
            (_, false) => 0,
        };
        let (from, to) = (self.whom(&question.from)?, self.whom(&question.to)?);
        let family = family(&from, &to)?;
        let (from, to) = (self.end(&from, family), self.end(&to, family));
        Ok(Meant { from, to, protocol, port, through_service: false })
    }

    fn whom(&self, text: &str) -> Result<Whom<'_>, String> {
        let text = text.trim();
        if let Ok(address) = text.parse::<IpAddr>().map(|address| address.to_canonical()) {
            return Ok(match self.model.pods().at(address) {
                Some(pod) => Whom::Pod(pod, Some(address)),
                None => Whom::Address(address),
            });
        }
        let (namespace, name) =
            text.split_once('/').ok_or(format!("{text:?} is neither an address nor namespace/pod"))?;
        let name = Name { namespace: namespace.into(), name: name.into() };
        self.model.pods().get(&name).map(|pod| Whom::Pod(pod, None)).ok_or_else(|| match self.services.get(&name) {
            Some(_) => of_service(&format!("{name} is a Service")),
            None => format!("there is no pod {name}"),
        })
    }

    /// The addresses that somebody has.
    pub(super) fn addresses_of(&self, text: &str) -> Result<Vec<IpAddr>, String> {
        Ok(match self.whom(text)? {
            Whom::Address(address) | Whom::Pod(_, Some(address)) => vec![address],
            Whom::Pod(pod, None) => pod.addresses.clone(),
        })
    }

    fn end(&self, whom: &Whom<'_>, v4: bool) -> End<'_> {
        match *whom {
            Whom::Address(address) => End { pod: None, address, identity: 0 },
            Whom::Pod(pod, _) => {
                let pod = self.model.pods().get(&pod.name);
                let own = pod.and_then(|pod| pod.addresses.iter().find(|address| address.is_ipv4() == v4));
                // Of a pod that has no address yet only its labels are known.
                let none = if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
                let identity = pod.map_or(0, |pod| self.index.identity(&pod.name));
                End { pod, address: own.copied().unwrap_or(none), identity }
            }
        }
    }

    fn by(&self, direction: Direction, rests: Rests) -> Value {
        let verdict = match rests {
            Rests::Same => return "self".into(),
            Rests::Node => return "node".into(),
            Rests::On(verdict) => verdict,
        };
        let (policy, rule) = match verdict.decided_by {
            Decided::Default => return "default".into(),
            Decided::Itself(_) => return "self".into(),
            Decided::Isolation(policy) => (policy, None),
            Decided::Rule(policy, rule) => (policy, Some(rule)),
        };
        let Some(key) = self.table().policy(policy).and_then(PolicyKey::of_resource) else { return Value::Null };
        let mut by =
            json!({ "kind": key.kind.to_string(), "name": key.name, "namespace": key.namespace, "rule": rule });
        let listed = self.model.policies().get(&key).zip(rule).and_then(|(policy, rule)| {
            let rules = if direction == Direction::Ingress { &policy.ingress } else { &policy.egress };
            rules.get(usize::from(rule))
        });
        if let Some(name) = listed.map(|rule| &rule.name).filter(|name| !name.is_empty()) {
            by["rule_name"] = name.clone().into();
        }
        by
    }
}

/// Who is meant by one end.
enum Whom<'a> {
    /// A pod, by name or by that address.
    Pod(&'a Pod, Option<IpAddr>),
    Address(IpAddr),
}

impl Whom<'_> {
    /// Whether it can be reached over IPv4, and over IPv6; a pod without addresses can be both.
    fn families(&self) -> [bool; 2] {
        let of = |address: &IpAddr| [address.is_ipv4(), address.is_ipv6()];
        match self {
            Whom::Address(address) | Whom::Pod(_, Some(address)) => of(address),
            Whom::Pod(pod, None) if pod.addresses.is_empty() => [true; 2],
            Whom::Pod(pod, None) => {
                pod.addresses.iter().map(of).fold([false; 2], |all, one| [all[0] || one[0], all[1] || one[1]])
            }
        }
    }

    /// Whether its first address is IPv4, when it has the choice.
    fn prefers_v4(&self) -> Option<bool> {
        match self {
            Whom::Pod(pod, None) => pod.addresses.first().map(IpAddr::is_ipv4),
            _ => None,
        }
    }
}

/// Whether two ends meet over IPv4: the family that both have; of two the one that the receiver has first.
fn family(from: &Whom<'_>, to: &Whom<'_>) -> Result<bool, String> {
    let (a, b) = (from.families(), to.families());
    match [a[0] && b[0], a[1] && b[1]] {
        [true, true] => Ok(to.prefers_v4().or(from.prefers_v4()).unwrap_or(true)),
        [true, false] => Ok(true),
        [false, true] => Ok(false),
        [false, false] => Err("from and to have no address family in common".into()),
    }
}

/// Why a question about a Service has no answer.
fn of_service(what: &str) -> String {
    format!("{what}, not a pod: `tidegate policy explain` tells of the pods behind it")
}

pub(crate) fn has_ports(protocol: u8) -> bool {
    matches!(protocol, 6 | 17 | 132)
}

/// The number of a protocol by name or number.
pub(super) fn protocol(text: &str) -> Result<u8, String> {
    const NAMES: [(&str, u8); 12] = [
        ("TCP", 6),
        ("UDP", 17),
        ("SCTP", 132),
        ("ICMP", 1),
        ("ICMPv6", 58),
        ("IPIP", 4),
        ("IPv6", 41),
        ("GRE", 47),
        ("ESP", 50),
        ("AH", 51),
        ("IGMP", 2),
        ("UDPLite", 136),
    ];
    let known = NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text.trim()));
    known
        .map(|(_, number)| *number)
        .or_else(|| text.trim().parse().ok())
        .ok_or(format!("{text:?} is no protocol; a number from 0 to 255 names any"))
}
