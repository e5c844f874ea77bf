//! Which rules come first for a protocol and a port.
//!
//! One value stands for a set of rules of a program: all that match one class of peers. For every protocol and port it
//! knows the first of them in each tier. Kind: table.

use std::collections::BTreeSet;

use crate::link::{Port, Rule, Target};
use crate::steps::Steps;

/// The first matching rule of each tier, by its place in the program; [`NO_RULE`] where none matches.
pub(crate) type First = [u32; 3];

/// No rule of a tier.
pub(crate) const NO_RULE: u32 = u32::MAX;
/// No rule of any tier.
pub(crate) const NOTHING: First = [NO_RULE; 3];

/// Protocols that have ports.
const PROTOCOLS: [u8; 3] = [6, 17, 132];

/// The earlier of two in each tier.
#[inline]
pub(crate) fn earlier(a: First, b: First) -> First {
    [a[0].min(b[0]), a[1].min(b[1]), a[2].min(b[2])]
}

/// The first rules of some, by protocol and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ports {
    /// Whatever the protocol: rules that name no port (P-026).
    any: First,
    /// The same for TCP, UDP and SCTP by port; `None`: as `any`.
    by_port: [Option<Steps<u16, First>>; 3],
    /// Protocol and name of a port, sorted: rules that name it.
    named: Box<[(u8, u32, First)]>,
}

impl Ports {
    /// Of these rules, each with its place in the program and its tier, in the order of places.
    pub(crate) fn new<'a>(rules: impl Iterator<Item = (u32, usize, &'a Rule)> + Clone) -> Self {
        let mut any = NOTHING;
        let mut named: Vec<(u8, u32, First)> = Vec::new();
        let mut ranges: [Vec<(u16, u16, u32, usize)>; 3] = Default::default();
        for (at, tier, rule) in rules {
            let Some(ports) = &rule.ports else {
                any[tier] = any[tier].min(at);
                continue;
            };
            for port in ports {
                match *port {
                    Port::Range(protocol, first, last) => {
                        if let Some(which) = PROTOCOLS.iter().position(|known| *known == protocol) {
                            ranges[which].push((first, last, at, tier));
                        }
                    }
                    Port::Named(protocol, name) => {
                        let mut first = NOTHING;
                        first[tier] = at;
                        named.push((protocol, name, first));
                    }
                }
            }
        }
        let by_port = ranges.map(|ranges| (!ranges.is_empty()).then(|| lay_out(&ranges, any)));
        named.sort_unstable_by_key(|(protocol, name, _)| (*protocol, *name));
        named.dedup_by(|next, kept| {
            let same = (next.0, next.1) == (kept.0, kept.1);
            if same {
                kept.2 = earlier(kept.2, next.2);
            }
            same
        });
        Ports { any, by_port, named: named.into() }
    }

    /// The first rules for a target.
    #[inline]
    pub(crate) fn at(&self, target: Target<'_>) -> First {
        let steps = match target.protocol {
            6 => &self.by_port[0],
            17 => &self.by_port[1],
            132 => &self.by_port[2],
            _ => return self.any,
        };
        let mut first = match steps {
            Some(steps) => steps.at(target.port),
            None => self.any,
        };
        if !self.named.is_empty() {
            let here = target.named.iter().filter(|it| it.protocol == target.protocol && it.port == target.port);
            for it in here {
                let found =
                    self.named.binary_search_by_key(&(it.protocol, it.name), |(protocol, name, _)| (*protocol, *name));
                first = found.map_or(first, |at| earlier(first, self.named[at].2));
            }
        }
        first
    }

    /// Memory it takes.
    pub(crate) fn bytes(&self) -> usize {
        let steps: usize = self.by_port.iter().flatten().map(Steps::bytes).sum();
        size_of::<Self>() + steps + std::mem::size_of_val(&*self.named)
    }
}

/// The first rules by port, of ranges (first, last, place, tier) of one protocol and of rules of any port.
fn lay_out(ranges: &[(u16, u16, u32, usize)], any: First) -> Steps<u16, First> {
    // (port, whether a range begins there, …): an end takes effect behind its port.
    let mut edges: Vec<(u32, bool, u32, usize)> = Vec::with_capacity(ranges.len() * 2);
    for (first, last, at, tier) in ranges {
        edges.push((u32::from(*first), true, *at, *tier));
        edges.push((u32::from(*last) + 1, false, *at, *tier));
    }
    edges.sort_unstable();
    // Ranges of one rule may overlap.
    let mut open: [BTreeSet<u32>; 3] = Default::default();
    let mut times = hashbrown::HashMap::<(u32, usize), u32>::new();
    let mut places = Vec::new();
    let mut rest = edges.as_slice();
    while let Some((port, ..)) = rest.first() {
        let here = rest.iter().take_while(|edge| edge.0 == *port).count();
        for (_, begins, at, tier) in &rest[..here] {
            let count = times.entry((*at, *tier)).or_insert(0);
            if *begins {
                *count += 1;
                open[*tier].insert(*at);
            } else {
                *count -= 1;
                if *count == 0 {
                    open[*tier].remove(at);
                }
            }
        }
        let now = [0, 1, 2].map(|tier: usize| open[tier].first().map_or(NO_RULE, |at| *at));
        if let Ok(port) = u16::try_from(*port) {
            places.push((port, earlier(now, any)));
        }
        rest = &rest[here..];
    }
    Steps::new(any, places)
}
