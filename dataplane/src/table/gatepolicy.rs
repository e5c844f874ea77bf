//! Gateway policies: which rule decides about a client at one port of a Service.
//!
//! A [`Gate`] is all that rules say of one Service port, laid out by clients' addresses: the spans between the ends of all
//! prefixes, and for each the first rule that matches in it. So a question costs one search whatever the number of rules.
//! Service ports of which the same rules speak share a gate. It refuses to know policies as objects, and who asks.
//!
//! Rules in audit are in the layout twice: a span has the first rule among those in force, and the first among all. Where
//! the two differ, the latter is in audit, and would decide.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::mapped;
use super::ranges::span;

/// What one source may do. Kind: table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceLimits {
    /// Nanoseconds between new connections in the long run; 0: any number.
    pub interval_ns: u64,
    /// New connections at once, at least 1.
    pub burst: u32,
    /// Unfinished handshakes at once; 0: any number.
    pub half_open_max: u16,
    /// First bits of an IPv4 address that make a source.
    pub bits_v4: u8,
    /// First bits of an IPv6 address that make a source.
    pub bits_v6: u8,
}

/// What a rule does with a client. Kind: table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateAction {
    /// Lets it pass.
    Allow,
    /// Stops it.
    Deny,
    /// Lets it pass within limits.
    Limit(SourceLimits),
}

/// One rule as a gate knows it. Kind: table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateRule {
    /// What it is counted under.
    pub key: u64,
    /// What it does.
    pub action: GateAction,
    /// It only counts.
    pub audit: bool,
}

/// No rule.
pub const NO_RULE: u32 = u32::MAX;

/// The rules that decide: numbers in a gate, or [`NO_RULE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deciding {
    /// The first that is in force.
    pub in_force: u32,
    /// The first that would be, were all in force.
    pub of_all: u32,
}

/// A rule to be laid out: whom it is for, and at which ports.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// The rule.
    pub rule: GateRule,
    /// Clients: prefix and exceptions; `None`: everybody.
    pub clients: Option<Vec<(IpNet, &'a [IpNet])>>,
    /// First and last port; `None`: every one.
    pub ports: Option<Vec<(u16, u16)>>,
}

/// Spans of addresses in mapped form; the first begins at zero.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Layer {
    starts: Box<[u128]>,
    /// Same index as `starts`.
    deciding: Box<[Deciding]>,
}

/// What rules say of one Service port. Kind: table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    rules: Box<[GateRule]>,
    /// By the first port that each is for; the first one is for port 0.
    layers: Box<[(u16, Layer)]>,
    limits: bool,
}

impl Gate {
    /// Lays out rules in order. `None`: none is given.
    pub fn of(wanted: &[Wanted<'_>]) -> Option<Arc<Gate>> {
        if wanted.is_empty() {
            return None;
        }
        let mut firsts = BTreeSet::from([0u16]);
        for (first, last) in wanted.iter().flat_map(|of| of.ports.iter().flatten()) {
            firsts.insert(*first);
            firsts.extend(last.checked_add(1));
        }
        let layers = firsts.into_iter().map(|port| {
            let at_port = |of: &&Wanted<'_>| {
                of.ports.as_ref().is_none_or(|ports| ports.iter().any(|(first, last)| (*first..=*last).contains(&port)))
            };
            let here = (0..).zip(wanted).filter(|(_, of)| at_port(of));
            (port, Layer::of(here))
        });
        let rules: Box<[GateRule]> = wanted.iter().map(|of| of.rule).collect();
        let limits = rules.iter().any(|rule| matches!(rule.action, GateAction::Limit(_)));
        Some(Arc::new(Gate { rules, layers: layers.collect(), limits }))
    }

    /// Who decides about a client (mapped form) at a port of the Service. Read side, slow path: two searches.
    pub fn ask(&self, client: &[u8; 16], port: u16) -> Deciding {
        let after = self.layers.partition_point(|(first, _)| *first <= port);
        let layer = after.checked_sub(1).and_then(|at| self.layers.get(at));
        layer.map_or(NOBODY, |(_, layer)| layer.ask(client))
    }

    /// The rule of that number; `None` for [`NO_RULE`]. Read side.
    pub fn rule(&self, number: u32) -> Option<&GateRule> {
        self.rules.get(usize::try_from(number).ok()?)
    }

    /// Whether any rule limits sources: then all that one source begins has to meet one worker.
    pub fn limits(&self) -> bool {
        self.limits
    }

    /// Spans of addresses in all layers: what it takes.
    pub fn spans(&self) -> usize {
        self.layers.iter().map(|(_, layer)| layer.starts.len()).sum()
    }
}

const NOBODY: Deciding = Deciding { in_force: NO_RULE, of_all: NO_RULE };

impl Layer {
    fn of<'w>(wanted: impl Iterator<Item = (u32, &'w Wanted<'w>)>) -> Layer {
        // Where rules begin and end to match; a sweep over these keeps who matches.
        let mut edges: Vec<(u128, bool, u32)> = Vec::new();
        let mut audit = BTreeSet::new();
        for (number, of) in wanted {
            if of.rule.audit {
                audit.insert(number);
            }
            for (first, last) in spans_of(of.clients.as_deref()) {
                edges.push((first, true, number));
                if let Some(after) = last.checked_add(1) {
                    edges.push((after, false, number));
                }
            }
        }
        edges.sort_unstable();
        let (mut starts, mut deciding) = (vec![0], vec![NOBODY]);
        let mut matching: [BTreeSet<u32>; 2] = Default::default();
        for same_place in edges.chunk_by(|(a, ..), (b, ..)| a == b) {
            for (_, begins, number) in same_place {
                let set = &mut matching[usize::from(audit.contains(number))];
                if *begins {
                    set.insert(*number)
                } else {
                    set.remove(number)
                };
            }
            let [in_force, in_audit] = [0, 1].map(|at| matching[at].first().copied().unwrap_or(NO_RULE));
            let now = Deciding { in_force, of_all: in_force.min(in_audit) };
            let at = same_place.first().map_or(0, |(at, ..)| *at);
            match (starts.last(), deciding.last_mut()) {
                (Some(last), Some(there)) if *last == at => *there = now,
                (_, Some(there)) if *there == now => {}
                _ => {
                    starts.push(at);
                    deciding.push(now);
                }
            }
        }
        Layer { starts: starts.into(), deciding: deciding.into() }
    }

    fn ask(&self, client: &[u8; 16]) -> Deciding {
        let client = u128::from_be_bytes(*client);
        let after = self.starts.partition_point(|start| *start <= client);
        after.checked_sub(1).and_then(|at| self.deciding.get(at)).copied().unwrap_or(NOBODY)
    }
}

/// What prefixes less their exceptions hold, apart from each other and in order.
fn spans_of(clients: Option<&[(IpNet, &[IpNet])]>) -> Vec<(u128, u128)> {
    let Some(clients) = clients else { return vec![(0, u128::MAX)] };
    let mut all: Vec<(u128, u128)> = clients.iter().flat_map(|(prefix, except)| without(prefix, except)).collect();
    all.sort_unstable();
    let mut joined: Vec<(u128, u128)> = Vec::with_capacity(all.len());
    for (first, last) in all {
        match joined.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => joined.push((first, last)),
        }
    }
    joined
}

/// Where IPv4 addresses stand in mapped form.
const MAPPED: (u128, u128) = (0xffff << 32, (0xffff << 32) + u32::MAX as u128);

/// What a prefix holds without its exceptions.
fn without(prefix: &IpNet, except: &[IpNet]) -> Vec<(u128, u128)> {
    let (mut from, last) = span(prefix);
    let is_v4 = prefix.addr().is_ipv4();
    let mut holes: Vec<(u128, u128)> = except.iter().filter(|hole| hole.addr().is_ipv4() == is_v4).map(span).collect();
    if !is_v4 {
        holes.push(MAPPED); // in this form IPv4 addresses stand among those of IPv6
    }
    holes.sort_unstable();
    let mut left = Vec::new();
    for (first, end) in holes.into_iter().filter(|(first, _)| *first <= last) {
        if first > from {
            left.push((from, first - 1));
        }
        let Some(after) = end.checked_add(1) else { return left };
        from = from.max(after);
    }
    if from <= last {
        left.push((from, last));
    }
    left
}

/// The source that an address (mapped form) is of: its first bits.
pub fn source_of(address: &[u8; 16], limits: &SourceLimits) -> [u8; 16] {
    let bits = match super::unmapped(address) {
        Some(_) => 96 + u32::from(limits.bits_v4.min(32)),
        None => u32::from(limits.bits_v6.min(128)),
    };
    let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
    (u128::from_be_bytes(*address) & mask).to_be_bytes()
}

/// An address in the form that gates are asked with.
pub fn client_of(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => mapped(&address.octets()),
        IpAddr::V6(address) => address.octets(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn any_address() -> impl Strategy<Value = IpAddr> {
        // Few bits differ, so that prefixes and questions meet.
        let v4 = any::<[u8; 4]>().prop_map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes.map(|byte| byte & 0x81))));
        let v6 = any::<[u8; 16]>().prop_map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes.map(|byte| byte & 0x81))));
        prop_oneof![v4, v6]
    }

    fn any_net() -> impl Strategy<Value = IpNet> {
        (any_address(), 0..=128u8).prop_map(|(address, length)| {
            let length = if address.is_ipv4() { length % 33 } else { length };
            IpNet::new(address, length).unwrap().trunc()
        })
    }

    type Told = (bool, u8, Option<Vec<(IpNet, Vec<IpNet>)>>, Option<Vec<(u16, u16)>>);

    fn any_rule() -> impl Strategy<Value = Told> {
        let clients = prop::collection::vec((any_net(), prop::collection::vec(any_net(), 0..3)), 0..4);
        let ports = prop::collection::vec((0u16..9, 0u16..4), 0..3)
            .prop_map(|ports| ports.into_iter().map(|(first, more)| (first, first + more)).collect());
        (any::<bool>(), 0..3u8, prop::option::of(clients), prop::option::of(ports))
    }

    proptest! {
        /// A gate is asking rule after rule.
        #[test]
        fn equals_asking_every_rule(
            told in prop::collection::vec(any_rule(), 1..8),
            questions in prop::collection::vec((any_address(), 0u16..12), 1..40),
        ) {
            let wanted: Vec<Wanted<'_>> = (1..).zip(&told).map(|(key, (audit, action, clients, ports))| Wanted {
                rule: GateRule { key, action: if *action == 0 { GateAction::Deny } else { GateAction::Allow }, audit: *audit },
                clients: clients.as_ref().map(|list| list.iter().map(|(net, except)| (*net, except.as_slice())).collect()),
                ports: ports.clone(),
            }).collect();
            let gate = Gate::of(&wanted).unwrap();
            for (address, port) in questions {
                let is_in = |net: &IpNet| net.contains(&address);
                let matches = |(_, _, clients, ports): &Told| {
                    clients.as_ref().is_none_or(|list| list.iter().any(|(net, except)| is_in(net) && !except.iter().any(is_in)))
                        && ports.as_ref().is_none_or(|list| list.iter().any(|(first, last)| (*first..=*last).contains(&port)))
                };
                let first = |with_audit: bool| {
                    let at = told.iter().position(|rule| (with_audit || !rule.0) && matches(rule));
                    at.map_or(NO_RULE, |at| u32::try_from(at).unwrap())
                };
                let expected = Deciding { in_force: first(false), of_all: first(true) };
                prop_assert_eq!(gate.ask(&client_of(address), port), expected, "{} {}", address, port);
                if expected.in_force != expected.of_all {
                    prop_assert!(gate.rule(expected.of_all).unwrap().audit);
                }
            }
        }
    }

    #[test]
    fn a_source_is_the_first_bits_of_an_address() {
        let limits = |bits_v4, bits_v6| SourceLimits { interval_ns: 1, burst: 1, half_open_max: 0, bits_v4, bits_v6 };
        let of = |text: &str, limits| source_of(&client_of(text.parse().unwrap()), &limits);
        assert_eq!(of("192.0.2.77", limits(32, 64)), client_of("192.0.2.77".parse().unwrap()));
        assert_eq!(of("192.0.2.77", limits(24, 64)), client_of("192.0.2.0".parse().unwrap()));
        assert_eq!(of("2001:db8:1:2:3::4", limits(32, 64)), client_of("2001:db8:1:2::".parse().unwrap()));
        assert_eq!(of("2001:db8:1:2:3::4", limits(32, 128)), client_of("2001:db8:1:2:3::4".parse().unwrap()));
        assert_eq!(of("2001:db8::1", limits(32, 0)), [0; 16]);
    }

    #[test]
    fn thousands_of_rules_are_one_search() {
        let nets: Vec<IpNet> =
            (0..4000u32).map(|n| IpNet::new(IpAddr::V4(Ipv4Addr::from(n << 16)), 24).unwrap()).collect();
        let wanted: Vec<Wanted<'_>> = (1..)
            .zip(&nets)
            .map(|(key, net)| Wanted {
                rule: GateRule { key, action: GateAction::Deny, audit: false },
                clients: Some(vec![(*net, &[][..])]),
                ports: None,
            })
            .collect();
        let gate = Gate::of(&wanted).unwrap();
        assert_eq!(gate.spans(), 8001);
        let asked = gate.ask(&client_of("15.159.0.9".parse().unwrap()), 80);
        assert_eq!(gate.rule(asked.in_force).unwrap().key, 4000);
        assert!(!gate.limits());
    }
}
