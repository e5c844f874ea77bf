//! The pools in force, and what of them may be given to whom.
//!
//! Owns which version of a pool is in force when not all can be (M-001, M-013), and the order in which pools are tried
//! (M-002). Refuses to know who has which address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use kube::core::SelectorExt;

use super::request::Request;
use super::reserved::Reserved;
use crate::model::addresspool::{AddressPool, AddressRange};
use crate::model::namespace::Namespace;

/// Labels of namespaces, by name; one that is not here has its name alone.
pub(super) type Namespaces = BTreeMap<String, BTreeMap<String, String>>;

/// Something that is wrong with a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolProblem {
    /// Name of the pool.
    pub pool: String,
    /// `Invalid`, `Overlap` or `Reserved`.
    pub reason: &'static str,
    /// Whether the pool as it is written now is not in force. If it is, some of its addresses are not given out.
    pub refused: bool,
    /// For people: what is wrong and what is done about it.
    pub message: String,
}

/// A pool in force.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) name: Arc<str>,
    pub(super) config: AddressPool,
    /// Its ranges without what is reserved: IPv4, IPv6.
    usable: [Vec<AddressRange>; 2],
}

/// All pools in force; no two have an address in common.
#[derive(Debug, Default)]
pub(super) struct Pools {
    by_name: BTreeMap<String, Pool>,
    /// First address of each range → its last, and the pool.
    by_range: BTreeMap<IpAddr, (IpAddr, Arc<str>)>,
    reserved: Vec<Reserved>,
    /// All pools as they are written.
    wanted: Vec<AddressPool>,
}

/// A pool on its way into force.
struct Candidate {
    wanted: AddressPool,
    /// The version that was in force before.
    fallback: Option<AddressPool>,
    present: Version,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    Wanted,
    Fallback,
    Nothing,
}

impl Pool {
    /// The ranges of one family that may be given out.
    pub(super) fn usable(&self, v4: bool) -> &[AddressRange] {
        &self.usable[usize::from(!v4)]
    }

    /// How many addresses of one family those are.
    pub(super) fn size(&self, v4: bool) -> u128 {
        let of = |range: &AddressRange| match (range.first(), range.last()) {
            (IpAddr::V4(first), IpAddr::V4(last)) => u128::from(u32::from(last) - u32::from(first)),
            (IpAddr::V6(first), IpAddr::V6(last)) => u128::from(last) - u128::from(first),
            // A range has one family.
            _ => 0,
        };
        self.usable(v4).iter().fold(0, |sum: u128, range| sum.saturating_add(of(range)).saturating_add(1))
    }

    /// Whether the Service may have addresses of this pool, be it by asking for them.
    pub(super) fn permits(&self, request: &Request, namespaces: &Namespaces) -> bool {
        let Some(pinning) = &self.config.pinning else { return true };
        let namespace = &request.name.namespace;
        let anywhere = pinning.namespaces.is_empty() && pinning.namespace_selectors.is_empty();
        let by_labels = || {
            let selects = |labels| pinning.namespace_selectors.iter().any(|selector| selector.matches(labels));
            match namespaces.get(namespace) {
                Some(labels) => selects(labels),
                None => selects(Namespace::bare(namespace).labels()),
            }
        };
        let namespace_fits = anywhere || pinning.namespaces.contains(namespace) || by_labels();
        let mut selectors = pinning.service_selectors.iter();
        namespace_fits && (selectors.len() == 0 || selectors.any(|selector| selector.matches(&request.labels)))
    }
}

impl Pools {
    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// The pool of that name.
    pub(super) fn get(&self, name: &str) -> Option<&Pool> {
        self.by_name.get(name)
    }

    /// All pools in order of name.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Pool> {
        self.by_name.values()
    }

    /// The pool that has `address`.
    pub(super) fn of(&self, address: IpAddr) -> Option<&Pool> {
        let (_, (last, name)) = self.by_range.range(..=address).next_back()?;
        let pool = (address <= *last).then(|| self.by_name.get(&**name))??;
        pool.config.contains(address).then_some(pool)
    }

    /// Whose `address` is, if it is reserved.
    pub(super) fn reserved(&self, address: IpAddr) -> Option<&Reserved> {
        self.reserved.iter().find(|reserved| reserved.range.contains(address))
    }

    /// The pools that a Service may be given addresses of without asking for one, in the order in which they are tried
    /// (M-002); those in one list are tried as equals.
    pub(super) fn tiers(&self, request: &Request, namespaces: &Namespaces) -> Vec<Vec<&Pool>> {
        let mut tiers: BTreeMap<(bool, u32), Vec<&Pool>> = BTreeMap::new();
        for pool in self.iter().filter(|pool| pool.config.auto_assign && pool.permits(request, namespaces)) {
            // Pools for all come after those that are for this Service; priority 0 is the last among these.
            let tier = match &pool.config.pinning {
                Some(pinning) => (false, if pinning.priority == 0 { u32::MAX } else { pinning.priority }),
                None => (true, 0),
            };
            tiers.entry(tier).or_default().push(pool);
        }
        tiers.into_values().collect()
    }

    /// Whether these were set last.
    pub(super) fn is_set_to(&self, wanted: &[AddressPool], reserved: &[Reserved]) -> bool {
        self.wanted == wanted && self.reserved == reserved
    }

    /// Replaces all pools and what is reserved; tells everything that is wrong.
    ///
    /// Everything wanted is tried. Where two pools overlap, the one that changed yields, else the younger one: it goes
    /// back to its version before, or is left out if it had none. A pool that overlaps what is reserved does not come
    /// into force; if it is in force already, it stays and the reserved addresses are left out.
    pub(super) fn set(&mut self, wanted: Vec<AddressPool>, reserved: Vec<Reserved>) -> Vec<PoolProblem> {
        let mut problems = Vec::new();
        self.wanted.clone_from(&wanted);
        let mut candidates: Vec<Candidate> = wanted.into_iter().map(|pool| self.candidate(pool)).collect();
        for candidate in &mut candidates {
            problems.extend(candidate.complaint());
        }
        for candidate in candidates.iter_mut().filter(|candidate| candidate.is_change()) {
            if let Some((range, whose)) = conflict(&candidate.wanted.ranges, &reserved) {
                problems.push(candidate.yields("Reserved", format!("{range} is {whose}")));
            }
        }
        while let Some((loser, other, range)) = overlap(&candidates) {
            let what = format!("{range} is also in pool {}", candidates[other].wanted.name);
            problems.push(candidates[loser].yields("Overlap", what));
        }
        self.reserved = reserved;
        self.by_name.clear();
        self.by_range.clear();
        for candidate in candidates {
            self.put(candidate, &mut problems);
        }
        problems.sort_by(|a, b| (&a.pool, a.reason).cmp(&(&b.pool, b.reason)));
        problems
    }

    fn candidate(&self, wanted: AddressPool) -> Candidate {
        let before = self.by_name.get(&wanted.name).map(|pool| &pool.config).filter(|before| before.uid == wanted.uid);
        let fallback = before.cloned().or_else(|| {
            // After a restart the status remembers the ranges.
            let ranges = wanted.last_good.clone();
            (!ranges.is_empty()).then(|| AddressPool { ranges, ..wanted.clone() })
        });
        Candidate { wanted, fallback, present: Version::Wanted }
    }

    fn put(&mut self, candidate: Candidate, problems: &mut Vec<PoolProblem>) {
        let in_force = candidate.present == Version::Wanted;
        let Some(config) = candidate.into_present() else { return };
        if let (true, Some((range, whose))) = (in_force, conflict(&config.ranges, &self.reserved)) {
            let message = format!("{range} is {whose}; the reserved addresses are not given out");
            problems.push(PoolProblem { pool: config.name.clone(), reason: "Reserved", refused: false, message });
        }
        let name: Arc<str> = config.name.as_str().into();
        let mut usable = config.ranges.clone();
        for reserved in &self.reserved {
            if usable.iter().any(|range| range.intersection(&reserved.range).is_some()) {
                usable = usable.iter().flat_map(|range| range.without(&reserved.range)).collect();
            }
        }
        let (v4, v6) = usable.into_iter().partition(AddressRange::is_ipv4);
        for range in &config.ranges {
            self.by_range.insert(range.first(), (range.last(), name.clone()));
        }
        self.by_name.insert(config.name.clone(), Pool { name, config, usable: [v4, v6] });
    }
}

impl Candidate {
    /// Whether its ranges are not those that were in force before.
    fn is_change(&self) -> bool {
        let same = |before: &AddressPool| {
            let set = |pool: &AddressPool| pool.ranges.iter().copied().collect::<BTreeSet<_>>();
            set(before) == set(&self.wanted)
        };
        self.present == Version::Wanted && !self.fallback.as_ref().is_some_and(same)
    }

    /// What is written now cannot be used: the version before stays, as it is remembered here or by status.
    fn complaint(&mut self) -> Option<PoolProblem> {
        let complaint = self.wanted.complaint.as_ref()?;
        let kept = self.fallback.as_ref().map_or(&self.wanted.ranges, |before| &before.ranges);
        let message = format!("{complaint}; the last good version stays in force: {}", words(kept));
        if self.fallback.is_some() {
            self.present = Version::Fallback;
        }
        Some(PoolProblem { pool: self.wanted.name.clone(), reason: "Invalid", refused: true, message })
    }

    /// Goes back to the version before, if there is one that could help.
    fn yields(&mut self, reason: &'static str, what: String) -> PoolProblem {
        let helps = self.is_change() && self.fallback.is_some();
        self.present = if helps { Version::Fallback } else { Version::Nothing };
        let kept = match (helps, &self.fallback) {
            (true, Some(before)) => format!("the last good version stays in force: {}", words(&before.ranges)),
            _ => "the pool is not in force".into(),
        };
        PoolProblem { pool: self.wanted.name.clone(), reason, refused: true, message: format!("{what}; {kept}") }
    }

    fn ranges(&self) -> &[AddressRange] {
        match (self.present, &self.fallback) {
            (Version::Wanted, _) => &self.wanted.ranges,
            (Version::Fallback, Some(fallback)) => &fallback.ranges,
            _ => &[],
        }
    }

    fn into_present(self) -> Option<AddressPool> {
        match self.present {
            Version::Wanted => Some(self.wanted),
            Version::Fallback => self.fallback,
            Version::Nothing => None,
        }
    }

    /// Who has more of this yields.
    fn weakness(&self) -> (bool, i64, &str) {
        (self.is_change(), self.wanted.created_at_s, &self.wanted.name)
    }
}

/// Two pools that overlap, the one that yields first, and where.
fn overlap(candidates: &[Candidate]) -> Option<(usize, usize, AddressRange)> {
    let all = candidates.iter().enumerate();
    let mut ranges: Vec<(AddressRange, usize)> =
        all.flat_map(|(index, candidate)| candidate.ranges().iter().map(move |range| (*range, index))).collect();
    ranges.sort();
    // Ranges of one pool are apart, so whoever overlaps an earlier range overlaps the one that reaches furthest.
    let mut furthest = *ranges.first()?;
    for (range, index) in ranges.into_iter().skip(1) {
        if let Some(common) = furthest.0.intersection(&range) {
            let (one, two) = (furthest.1, index);
            let one_yields = candidates[one].weakness() > candidates[two].weakness();
            return Some(if one_yields { (one, two, common) } else { (two, one, common) });
        }
        furthest = (range, index);
    }
    None
}

fn conflict<'a>(ranges: &[AddressRange], reserved: &'a [Reserved]) -> Option<(AddressRange, &'a str)> {
    let common = |reserved: &'a Reserved| {
        let range = ranges.iter().find_map(|range| range.intersection(&reserved.range))?;
        Some((range, reserved.whose.as_str()))
    };
    reserved.iter().find_map(common)
}

/// Ranges as they may be written.
pub(super) fn words(ranges: &[AddressRange]) -> String {
    ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
