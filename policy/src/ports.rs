//! Which rules come first for a protocol and a port.
//!
//! Owns the lists of a program, each for all rules that match one class of peers. For every protocol and port a list knows
//! the first of them in each tier. A program has as many lists as there are classes of peers, and a question reads one or
//! two that nobody has read for long: so what a question needs of a list lies together, in one line of a cache for lists
//! of a few ports, and lists lie side by side.
//!
//! A list is a row of 16-bit numbers. *First*, a value: for each tier that the list's rules are of, the place of a rule in
//! the program, two numbers. The row is
//!
//! ```text
//! tiers and flags | places of TCP | of UDP | of SCTP |        numbers of places, 0 where a protocol is as any other
//! [names, two numbers] |                                      entries below, if any
//! first for any protocol |
//! of each protocol that is not: places, ascending | first below, first from each place on |
//! [protocol | name, two numbers | first] ...                  ports by name, sorted by protocol and name
//! ```
//!
//! Kind: table.

use std::collections::BTreeSet;

use crate::link::{Port, Rule, Target};

/// The first matching rule of each tier, by its place in the program; [`NO_RULE`] where none matches.
pub(crate) type First = [u32; 3];

/// No rule of a tier.
pub(crate) const NO_RULE: u32 = u32::MAX;
/// No rule of any tier.
pub(crate) const NOTHING: First = [NO_RULE; 3];
/// No list of rules.
pub(crate) const NO_LIST: u32 = u32::MAX;

/// Protocols that have ports.
const PROTOCOLS: [u8; 3] = [6, 17, 132];
/// Numbers in a line.
const LINE: usize = 32;
/// A list that is not in a line; the rest is where it begins.
const LONG: u32 = 1 << 31;
/// Numbers before the values, without that of names.
const HEAD: usize = 4;
/// Places that are compared with all at once; of more, some.
const COMPARED_MAX: usize = 64;

/// Flags: tiers, protocols that are not as any other, and whether there are names.
const TIERS: u16 = 0b111;
const OWN: [u16; 3] = [1 << 3, 1 << 4, 1 << 5];
const NAMES: u16 = 1 << 6;

/// The earlier of two in each tier.
#[inline]
pub(crate) fn earlier(a: First, b: First) -> First {
    [a[0].min(b[0]), a[1].min(b[1]), a[2].min(b[2])]
}

/// One list that is short enough, as most are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(64))]
struct Line([u16; LINE]);

/// The lists of a program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lists {
    lines: Box<[Line]>,
    long: Box<[u16]>,
}

/// Lists as they are made.
#[derive(Debug, Default)]
pub(crate) struct Making {
    lines: Vec<Line>,
    long: Vec<u16>,
}

impl Making {
    /// Adds the list of these rules, each with its place in the program and its tier, in the order of places. Returns its
    /// number; `None`: there are too many.
    pub(crate) fn add<'a>(&mut self, rules: impl Iterator<Item = (u32, usize, &'a Rule)>) -> Option<u32> {
        let row = row_of(&Ports::new(rules));
        if row.len() <= LINE {
            let mut line = [0; LINE];
            line[..row.len()].copy_from_slice(&row);
            self.lines.push(Line(line));
            return u32::try_from(self.lines.len() - 1).ok().filter(|number| number & LONG == 0);
        }
        let begin = u32::try_from(self.long.len()).ok().filter(|begin| begin & LONG == 0)?;
        self.long.extend(row);
        Some(LONG | begin)
    }

    /// All of them.
    pub(crate) fn done(self) -> Lists {
        Lists { lines: self.lines.into(), long: self.long.into() }
    }
}

impl Lists {
    /// The first rules of a list for a target; nothing for [`NO_LIST`].
    #[inline]
    pub(crate) fn at(&self, list: u32, target: Target<'_>) -> First {
        if list & LONG == 0 {
            return self.lines.get(list as usize).map_or(NOTHING, |line| first(&line.0, target));
        }
        self.long.get((list & !LONG) as usize..).map_or(NOTHING, |row| first(row, target))
    }

    /// Memory they take.
    pub(crate) fn bytes(&self) -> usize {
        std::mem::size_of_val(&*self.lines) + std::mem::size_of_val(&*self.long)
    }
}

/// What a row says of a target. A row that is cut off says nothing; there is none.
#[inline]
fn first(row: &[u16], target: Target<'_>) -> First {
    let Some(&[flags, places @ ..]) = row.first_chunk::<HEAD>() else { return NOTHING };
    let width = 2 * (flags & TIERS).count_ones() as usize;
    let any = HEAD + if flags & NAMES == 0 { 0 } else { 2 };
    let wanted = match target.protocol {
        6 => 0,
        17 => 1,
        132 => 2,
        _ => return value(row, any, flags),
    };
    let mut at = any + width;
    let mut found = any;
    for protocol in 0..PROTOCOLS.len() {
        if flags & OWN[protocol] == 0 {
            continue;
        }
        let count = usize::from(places[protocol]);
        if protocol == wanted {
            let keys = row.get(at..at + count).unwrap_or_default();
            found = at + count + not_above(keys, target.port) * width;
            if flags & NAMES == 0 {
                break;
            }
        }
        at += count + (count + 1) * width;
    }
    let first = value(row, found, flags);
    if flags & NAMES == 0 || target.named.is_empty() { first } else { earlier(first, by_name(row, at, flags, target)) }
}

/// How many of the places are not above a port.
#[inline]
fn not_above(places: &[u16], port: u16) -> usize {
    match places.len() {
        0..=COMPARED_MAX => places.iter().map(|place| usize::from(*place <= port)).sum(),
        _ => places.partition_point(|place| *place <= port),
    }
}

/// The value that stands there.
#[inline]
fn value(row: &[u16], mut at: usize, flags: u16) -> First {
    let mut first = NOTHING;
    for (tier, first) in first.iter_mut().enumerate() {
        if flags & (1 << tier) != 0 {
            *first = number(row, at);
            at += 2;
        }
    }
    first
}

#[inline]
fn number(row: &[u16], at: usize) -> u32 {
    match row.get(at..at + 2) {
        Some(&[low, high]) => u32::from(low) | u32::from(high) << 16,
        _ => NO_RULE,
    }
}

/// The first of the rules that name the port of the target; entries begin there.
#[inline(never)]
fn by_name(row: &[u16], begin: usize, flags: u16, target: Target<'_>) -> First {
    let width = 3 + 2 * (flags & TIERS).count_ones() as usize;
    let count = number(row, HEAD) as usize;
    let entry = |at: usize| {
        let at = begin + at * width;
        (row.get(at).copied().unwrap_or(u16::MAX), number(row, at + 1))
    };
    let mut first = NOTHING;
    let here = target.named.iter().filter(|it| it.protocol == target.protocol && it.port == target.port);
    for it in here {
        let wanted = (u16::from(it.protocol), it.name);
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = low.midpoint(high);
            if entry(middle) < wanted { low = middle + 1 } else { high = middle }
        }
        if low < count && entry(low) == wanted {
            first = earlier(first, value(row, begin + low * width + 3, flags));
        }
    }
    first
}

/// The first rules below the first place, and those from each place on.
type Places = (First, Vec<(u16, First)>);

/// The first rules of some, by protocol and port, before they are packed.
struct Ports {
    /// Whatever the protocol: rules that name no port (P-026).
    any: First,
    /// The same for TCP, UDP and SCTP; `None`: as `any`.
    by_port: [Option<Places>; 3],
    /// Protocol and name of a port, sorted: rules that name it.
    named: Vec<(u8, u32, First)>,
}

impl Ports {
    fn new<'a>(rules: impl Iterator<Item = (u32, usize, &'a Rule)>) -> Self {
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
        Ports { any, by_port, named }
    }

    /// All values.
    fn firsts(&self) -> impl Iterator<Item = First> {
        let by_port = self.by_port.iter().flatten();
        let placed = by_port.flat_map(|(below, places)| places.iter().map(|(_, first)| *first).chain([*below]));
        placed.chain([self.any]).chain(self.named.iter().map(|(.., first)| *first))
    }
}

/// The row of a list.
fn row_of(ports: &Ports) -> Vec<u16> {
    let mut flags = 0;
    for first in ports.firsts() {
        (0..3).filter(|tier| first[*tier] != NO_RULE).for_each(|tier| flags |= 1 << tier);
    }
    let tiers = flags;
    let (mut row, mut counts) = (vec![0; HEAD], [0; 3]);
    for (which, (_, places)) in (0..).zip(&ports.by_port).filter_map(|(which, own)| Some((which, own.as_ref()?))) {
        let which: usize = which;
        flags |= OWN[which];
        // There is none at 0, so they are 65,535 at most.
        counts[which] = u16::try_from(places.len()).unwrap_or(u16::MAX);
    }
    if !ports.named.is_empty() {
        flags |= NAMES;
        row.extend(halves(u32::try_from(ports.named.len()).unwrap_or(u32::MAX)));
    }
    row[0] = flags;
    row[1..HEAD].copy_from_slice(&counts);
    let put = |row: &mut Vec<u16>, first: First| {
        row.extend((0..3).filter(|tier| tiers & (1 << tier) != 0).flat_map(|tier| halves(first[tier])));
    };
    put(&mut row, ports.any);
    for (below, places) in ports.by_port.iter().flatten() {
        row.extend(places.iter().map(|(place, _)| *place));
        put(&mut row, *below);
        places.iter().for_each(|(_, first)| put(&mut row, *first));
    }
    for (protocol, name, first) in &ports.named {
        row.push(u16::from(*protocol));
        row.extend(halves(*name));
        put(&mut row, *first);
    }
    row
}

/// The lower half first.
fn halves(number: u32) -> [u16; 2] {
    let [a, b, c, d] = number.to_le_bytes();
    [u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])]
}

/// The first rules by port, of ranges (first, last, place, tier) of one protocol and of rules of any port: those below the
/// first place, and those from each place on.
fn lay_out(ranges: &[(u16, u16, u32, usize)], any: First) -> Places {
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
    let (mut below, mut places): (First, Vec<(u16, First)>) = (any, Vec::new());
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
        let now = earlier([0, 1, 2].map(|tier: usize| open[tier].first().map_or(NO_RULE, |at| *at)), any);
        match u16::try_from(*port) {
            Ok(0) => below = now,
            Ok(port) if places.last().map_or(below, |(_, before)| *before) != now => places.push((port, now)),
            _ => {}
        }
        rest = &rest[here..];
    }
    (below, places)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tidegate_api::resource::Action;

    use super::*;
    use crate::link::Named;

    type Told = (usize, Option<Vec<Port>>);

    fn any_port() -> impl Strategy<Value = Port> {
        let protocol = || prop::sample::select(vec![6u8, 17, 132]);
        prop_oneof![
            4 => (protocol(), 0u16..40, 0u16..9).prop_map(|(protocol, first, more)| Port::Range(protocol, first, first + more)),
            1 => (protocol(), any::<u16>(), any::<u16>()).prop_map(|(protocol, a, b)| Port::Range(protocol, a.min(b), a.max(b))),
            1 => protocol().prop_map(|protocol| Port::Range(protocol, 0, u16::MAX)),
            2 => (protocol(), 0u32..70_000).prop_map(|(protocol, name)| Port::Named(protocol, name % 5 * 17_000)),
        ]
    }

    fn any_list() -> impl Strategy<Value = Vec<Told>> {
        prop::collection::vec((0usize..3, prop::option::weighted(0.8, prop::collection::vec(any_port(), 0..6))), 1..8)
    }

    fn naive(list: &[Told], places: &[u32], target: Target<'_>) -> First {
        let mut first = NOTHING;
        for ((tier, ports), at) in list.iter().zip(places) {
            let is_port = |port: &Port| match *port {
                Port::Range(protocol, a, z) => protocol == target.protocol && (a..=z).contains(&target.port),
                Port::Named(protocol, name) => {
                    let has = |it: &Named| it.name == name && it.protocol == protocol && it.port == target.port;
                    protocol == target.protocol && target.named.iter().any(has)
                }
            };
            if ports.as_ref().is_none_or(|ports| ports.iter().any(is_port)) {
                first[*tier] = first[*tier].min(*at);
            }
        }
        first
    }

    proptest! {
        /// Packed lists, one beside the other, say what reading the rules says.
        #[test]
        fn a_list_is_reading_its_rules(
            lists in prop::collection::vec((any_list(), 0u32..100_000), 1..5),
            asked in prop::collection::vec((prop::sample::select(vec![1u8, 6, 17, 58, 132]), 0u16..50), 30),
            named in prop::collection::vec((prop::sample::select(vec![6u8, 17, 132]), 0u16..50, 0u32..5), 0..4),
        ) {
            let named: Vec<Named> = named.iter().map(|(protocol, port, name)| Named { protocol: *protocol, port: *port, name: name * 17_000 }).collect();
            let mut making = Making::default();
            let mut made = Vec::new();
            for (list, from) in &lists {
                let rules: Vec<Rule> = list.iter().map(|(_, ports)| Rule { action: Action::Accept, peers: None, ports: ports.clone() }).collect();
                let places: Vec<u32> = (0..).take(rules.len()).map(|at: u32| from + at * 3).collect();
                let of = places.iter().zip(list).zip(&rules).map(|((at, (tier, _)), rule)| (*at, *tier, rule));
                made.push((making.add(of).unwrap(), list, places));
            }
            let lists = making.done();
            for (number, list, places) in made {
                for (protocol, port) in asked.iter().copied().chain([(6, 0), (17, u16::MAX), (132, u16::MAX)]) {
                    let target = Target { protocol, port, named: &named };
                    prop_assert_eq!(lists.at(number, target), naive(list, &places, target), "{:?} {:?}", target, list);
                }
            }
            prop_assert_eq!(lists.at(NO_LIST, Target { protocol: 6, port: 80, named: &[] }), NOTHING);
        }
    }

    /// A different rule for every port there is.
    #[test]
    fn all_ports_of_all_protocols_fit() {
        let rules: Vec<Rule> = (0..=u16::MAX)
            .map(|port| {
                let ports = PROTOCOLS.map(|protocol| Port::Range(protocol, port, port)).to_vec();
                Rule { action: Action::Accept, peers: None, ports: Some(ports) }
            })
            .collect();
        let mut making = Making::default();
        let list = making.add((0..).zip(&rules).map(|(at, rule)| (at, 1, rule))).unwrap();
        let lists = making.done();
        for port in [0, 1, 2, 32_767, 65_534, 65_535] {
            for protocol in PROTOCOLS {
                let target = Target { protocol, port, named: &[] };
                assert_eq!(lists.at(list, target), [NO_RULE, u32::from(port), NO_RULE]);
            }
        }
        assert_eq!(lists.at(list, Target { protocol: 1, port: 0, named: &[] }), NOTHING);
    }

    #[test]
    fn a_rule_of_two_ports_is_one_line() {
        let rule = |ports: &[u16]| Rule {
            action: Action::Accept,
            peers: None,
            ports: Some(ports.iter().map(|port| Port::Range(6, *port, *port)).collect()),
        };
        let mut making = Making::default();
        let rules = [rule(&[80, 443]), rule(&[80, 8080, 8443])];
        making.add((0..).zip(&rules).map(|(at, rule)| (at, 1, rule))).unwrap();
        assert_eq!((making.lines.len(), making.long.len()), (1, 0));
        assert_eq!(making.done().bytes(), 64);
    }
}
