//! Policies laid out.
//!
//! Owns the way from rules to lists: which rules match a set, which match a range of addresses. Costs the rules and, for
//! each place where the matching rules change, their number there; more than [`WORK_MAX`] is refused.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use ipnet::IpNet;
use tidegate_api::resource::Action;

use super::{Laid, SETS_ASKED_MAX, WORK_MAX};
use crate::flat::Flat;
use crate::link::{Linked, Peer, Rule, place};
use crate::ports::{Making, NO_LIST};
use crate::query::{Direction, PolicyId};
use crate::steps::{Number, Steps};

/// Lists of rules by what is in them.
struct Lists<'p> {
    /// All rules in the order of evaluation, with their tiers.
    rules: Vec<(usize, &'p Rule)>,
    known: HashMap<Vec<u32>, u32>,
    made: Making,
    work: usize,
}

/// Ranges of addresses, first and last, that a rule matches.
type Ranges<K> = Vec<(K, K, u32)>;

/// The layout and the sets that went into it; `None`: it would be too large.
pub(super) fn lay_out<'a>(
    direction: Direction,
    policies: &[Arc<Linked>],
    members: impl Fn(u32) -> &'a [u32],
) -> Option<(Laid, Vec<u32>)> {
    let mut rules = Vec::new();
    let mut heads: Vec<(Action, PolicyId, u16)> = Vec::new();
    let (mut everybody, mut by_set) = (Vec::new(), BTreeMap::<u32, Vec<u32>>::new());
    let (mut v4, mut v6): (Ranges<u32>, Ranges<u128>) = (Vec::new(), Vec::new());
    let mut work = 0;
    for policy in policies {
        for (number, rule) in policy.rules(direction).iter().enumerate() {
            let at = u32::try_from(rules.len()).ok()?;
            rules.push((place(policy.tier), rule));
            heads.push((rule.action, policy.id, u16::try_from(number).unwrap_or(u16::MAX)));
            let Some(peers) = &rule.peers else {
                everybody.push(at);
                continue;
            };
            for peer in peers {
                match peer {
                    Peer::Set(set) => by_set.entry(*set).or_default().push(at),
                    Peer::Network { prefix, except } => {
                        work += except.len();
                        match prefix.addr() {
                            IpAddr::V4(_) => v4.extend(parts(prefix, except, bits_v4).map(|(a, z)| (a, z, at))),
                            IpAddr::V6(_) => v6.extend(parts(prefix, except, bits_v6).map(|(a, z)| (a, z, at))),
                        }
                    }
                }
            }
        }
    }
    let mut lists = Lists { rules, known: HashMap::new(), made: Making::default(), work };
    let everybody = lists.of(everybody)?;
    let (asked, merged_sets, merged) = lay_out_sets(by_set, members, &mut lists)?;
    let (v4, v6) = (lay_out_ranges(v4, &mut lists)?, lay_out_ranges(v6, &mut lists)?);
    let isolated_by = policies.iter().find(|policy| policy.isolates(direction)).map(|policy| policy.id);
    let (rules, lists) = (heads.into(), lists.made.done());
    Some((Laid { isolated_by, rules, lists, everybody, asked, merged, v4, v6 }, merged_sets))
}

type Sets = (Box<[(u32, u32)]>, Vec<u32>, Flat<u32>);

/// The largest sets to be asked, and the others merged.
fn lay_out_sets<'a>(
    by_set: BTreeMap<u32, Vec<u32>>,
    members: impl Fn(u32) -> &'a [u32],
    lists: &mut Lists<'_>,
) -> Option<Sets> {
    let mut sets: Vec<(u32, Vec<u32>)> = by_set.into_iter().collect();
    if sets.len() > SETS_ASKED_MAX {
        sets.sort_by_key(|(set, _)| (std::cmp::Reverse(members(*set).len()), *set));
    }
    let rest = sets.split_off(sets.len().min(SETS_ASKED_MAX));
    let mut asked = Vec::with_capacity(sets.len());
    for (set, mut rules) in sets {
        rules.dedup();
        asked.push((set, lists.of(rules)?));
    }
    let mut of_identity: HashMap<u32, Vec<u32>> = HashMap::new();
    for (set, rules) in &rest {
        lists.spend(members(*set).len().saturating_mul(rules.len()))?;
        for identity in members(*set) {
            of_identity.entry(*identity).or_default().extend(rules);
        }
    }
    let mut merged = Vec::with_capacity(of_identity.len());
    for (identity, mut rules) in of_identity {
        rules.sort_unstable();
        rules.dedup();
        merged.push((identity, lists.of(rules)?));
    }
    // In one order, so that equal programs compare equal.
    merged.sort_unstable();
    Some((asked.into(), rest.into_iter().map(|(set, _)| set).collect(), Flat::new(merged)))
}

/// A kind of address as a number.
trait Bits: Number {
    fn next(self) -> Option<Self>;
    fn previous(self) -> Option<Self>;
    const FIRST: Self;
}

impl Bits for u32 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
    fn previous(self) -> Option<Self> {
        self.checked_sub(1)
    }
    const FIRST: Self = 0;
}

impl Bits for u128 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
    fn previous(self) -> Option<Self> {
        self.checked_sub(1)
    }
    const FIRST: Self = 0;
}

fn bits_v4(address: IpAddr) -> u32 {
    if let IpAddr::V4(v4) = address { v4.to_bits() } else { 0 }
}

fn bits_v6(address: IpAddr) -> u128 {
    if let IpAddr::V6(v6) = address { v6.to_bits() } else { 0 }
}

/// What is left of a prefix, as ranges; exceptions may overlap.
fn parts<K: Bits>(prefix: &IpNet, except: &[IpNet], bits: fn(IpAddr) -> K) -> impl Iterator<Item = (K, K)> + use<K> {
    let mut holes: Vec<(K, K)> = except
        .iter()
        .filter(|except| except.addr().is_ipv4() == prefix.addr().is_ipv4())
        .map(|except| (bits(except.network()), bits(except.broadcast())))
        .collect();
    holes.sort_unstable();
    let (mut from, last) = (Some(bits(prefix.network())), bits(prefix.broadcast()));
    let mut left = Vec::with_capacity(holes.len() + 1);
    for (first, end) in holes {
        let Some(begin) = from else { break };
        if let Some(before) = first.previous().filter(|before| *before >= begin) {
            left.push((begin, before.min(last)));
        }
        from = end.next().map(|next| next.max(begin));
    }
    left.extend(from.filter(|begin| *begin <= last).map(|begin| (begin, last)));
    left.into_iter().filter(|(a, z)| a <= z)
}

/// Steps from an address to the list of the rules that match it.
fn lay_out_ranges<K: Bits>(ranges: Ranges<K>, lists: &mut Lists<'_>) -> Option<Steps<K, u32>> {
    // Where a range begins and, behind its last address, where it has ended.
    let mut edges: Vec<(K, bool, u32)> = Vec::with_capacity(ranges.len() * 2);
    for (first, last, rule) in ranges {
        edges.push((first, true, rule));
        edges.extend(last.next().map(|behind| (behind, false, rule)));
    }
    edges.sort_unstable();
    let mut open: BTreeMap<u32, u32> = BTreeMap::new();
    let (mut below, mut places) = (NO_LIST, Vec::new());
    let mut rest = edges.as_slice();
    while let Some((at, ..)) = rest.first() {
        let here = rest.iter().take_while(|edge| edge.0 == *at).count();
        for (_, begins, rule) in &rest[..here] {
            let times = open.entry(*rule).or_insert(0);
            *times = if *begins { *times + 1 } else { times.saturating_sub(1) };
            if *times == 0 {
                open.remove(rule);
            }
        }
        let list = lists.of(open.keys().copied().collect())?;
        match *at == K::FIRST {
            true => below = list,
            false => places.push((*at, list)),
        }
        rest = &rest[here..];
    }
    Steps::new(below, places)
}

impl Lists<'_> {
    /// The list of these rules, which ascend.
    fn of(&mut self, rules: Vec<u32>) -> Option<u32> {
        if rules.is_empty() {
            return Some(NO_LIST);
        }
        self.spend(rules.len())?;
        if let Some(list) = self.known.get(&rules) {
            return Some(*list);
        }
        let ports: usize = rules.iter().map(|at| self.rules[*at as usize].1.ports.as_ref().map_or(0, Vec::len)).sum();
        self.spend(ports)?;
        let all = &self.rules;
        let list = self.made.add(rules.iter().map(|at| {
            let (tier, rule) = all[*at as usize];
            (*at, tier, rule)
        }))?;
        self.known.insert(rules, list);
        Some(list)
    }

    /// Counts what the layout costs; `None`: too much.
    fn spend(&mut self, work: usize) -> Option<()> {
        self.work = self.work.saturating_add(work);
        (self.work <= WORK_MAX).then_some(())
    }
}
