//! # Schedule: which endpoint of a set
//!
//! reads   the set and its weights, connections per backend, the scheduler's pointer     writes  nothing; returns an index
//! drops   none
//! cost    mh, sh, dh: one slot. fo, rr, wrr: weights in a row. lc, wlc, sed, nq, ovf: a line per member, for at most
//!         [`SCAN_MAX`] members; of a larger set two members drawn by weight are compared (ovf: those in question)
//! spec    L-030 … L-037, L-041, L-042, L-009     tests   here, each against the kernel's rule; `dataplane/tests/golden/schedule.rs`
//!
//! The rules are those of the kernel's `net/netfilter/ipvs/ip_vs_*.c`, with three differences. The kernel's list is in
//! order of configuration, ours in order of address and port, so that all gateways have the same. Connections and turns
//! are those of one worker. And the hashes are keyed (L-009), so that a client cannot choose its endpoint.

use crate::state::schedule::Pointer;
use crate::table::BackendId;
use crate::table::service::EndpointSet;
use crate::table::terms::{Scheduler, Weights};

/// Members up to which every one of them is looked at for the least loaded. Beyond, the power of two choices
/// (Mitzenmacher 2001) gives nearly the same balance for two looks.
pub const SCAN_MAX: usize = 256;

/// Connections of a backend: active ones count 256 times in `lc` (`ip_vs_dest_conn_overhead`, include/net/ip_vs.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Connections {
    /// TCP from the SYN on until one end closes.
    pub active: u32,
    /// All others, UDP too.
    pub inactive: u32,
}

impl Connections {
    fn overhead(self) -> u64 {
        u64::from(self.active) * 256 + u64::from(self.inactive)
    }
}

/// What a choice goes by, beside the set.
pub struct Facts<F> {
    /// Connections per backend.
    pub connections: F,
    /// Where the scheduler has got to.
    pub pointer: Pointer,
    /// Hash of the fields that the scheduler looks at.
    pub hash: u64,
    /// Unpredictable.
    pub entropy: u64,
}

/// Index of the member for a new flow, and the pointer as it is afterwards if that moves. `None`: there is none to be had.
pub fn choose<F: Fn(BackendId) -> Connections>(
    scheduler: Scheduler,
    set: &EndpointSet,
    weights: &Weights,
    facts: &Facts<F>,
) -> Option<(usize, Option<Pointer>)> {
    let members = &*set.members;
    let ring = set.ring.as_ref()?;
    let next = || facts.pointer.next(members);
    let still = |index| Some((index, None));
    match scheduler {
        Scheduler::Mh => still(ring.pick(facts.hash)),
        Scheduler::Sh | Scheduler::Dh => {
            let buckets = weights.buckets.as_ref()?;
            // The topmost byte is a bucket: there are 256.
            still(buckets[usize::try_from(facts.hash >> 56).unwrap_or(0)].into())
        }
        Scheduler::Rr => {
            let at = round_robin(&weights.of_members, next())?;
            Some((at, Some(Pointer::to(members, at, 0))))
        }
        Scheduler::Wrr => {
            let (at, current) = weighted_round_robin(weights, next(), facts.pointer.current)?;
            Some((at, Some(Pointer::to(members, at, current))))
        }
        Scheduler::Fo => failover(&weights.of_members).and_then(still),
        Scheduler::Ovf => overflow(&weights.of_members, |at| load(members, at, facts).active).and_then(still),
        Scheduler::Lc | Scheduler::Wlc | Scheduler::Sed | Scheduler::Nq => {
            let cost = |at| Candidate::new(scheduler, load(members, at, facts), weights.at(at));
            if members.len() > SCAN_MAX {
                let pair = [facts.entropy, facts.entropy.rotate_left(32) ^ facts.hash].map(|draw| ring.pick(draw));
                return least(pair.into_iter(), cost).and_then(still);
            }
            least(0..members.len(), cost).and_then(still)
        }
    }
}

fn load<F: Fn(BackendId) -> Connections>(members: &[BackendId], at: usize, facts: &Facts<F>) -> Connections {
    members.get(at).map_or(Connections::default(), |backend| (facts.connections)(*backend))
}

/// L-030: the next after the last; weight 0 is passed over.
fn round_robin(weights: &[u16], next: usize) -> Option<usize> {
    let open = |at: &usize| weights.get(*at).is_some_and(|weight| *weight > 0);
    (next..weights.len()).chain(0..next.min(weights.len())).find(open)
}

/// L-031: index and current weight. A pass serves those whose weight reaches the current one; after each, that becomes
/// smaller by the greatest common divisor, and begins anew below one.
fn weighted_round_robin(weights: &Weights, next: usize, current: u32) -> Option<(usize, u16)> {
    let (max, gcd) = (weights.max, weights.gcd.max(1));
    if max == 0 {
        return None;
    }
    let top = max - (gcd - 1);
    // A current weight of before the weights changed: within the new ones, on a step of theirs.
    let current = match u16::try_from(current) {
        Ok(current) if (1..=top).contains(&current) => (current - 1) / gcd * gcd + 1,
        _ => top,
    };
    let from = |start: usize, current: u16| {
        (start..weights.of_members.len()).find(|at| weights.at(*at) >= current).map(|at| (at, current))
    };
    // In a whole pass the heaviest has a turn, so the second one finds somebody.
    from(next, current).or_else(|| from(0, if current > gcd { current - gcd } else { top }))
}

/// L-041: the heaviest, the first among equals.
fn failover(weights: &[u16]) -> Option<usize> {
    let mut best: Option<(usize, u16)> = None;
    for (at, weight) in weights.iter().enumerate() {
        if *weight > best.map_or(0, |(_, best)| best) {
            best = Some((at, *weight));
        }
    }
    best.map(|(at, _)| at)
}

/// L-042: the heaviest of those with no more active connections than their weight.
fn overflow(weights: &[u16], active: impl Fn(usize) -> u32) -> Option<usize> {
    let mut best: Option<(usize, u16)> = None;
    for (at, weight) in weights.iter().enumerate() {
        if *weight > best.map_or(0, |(_, best)| best) && active(at) <= u32::from(*weight) {
            best = Some((at, *weight));
        }
    }
    best.map(|(at, _)| at)
}

/// A member as the rules that look for the least loaded compare it.
#[derive(Clone, Copy)]
struct Candidate {
    overhead: u64,
    weight: u64,
    /// It is taken without looking further.
    at_once: bool,
    /// It takes new flows.
    open: bool,
}

impl Candidate {
    /// L-032 … L-035.
    fn new(scheduler: Scheduler, load: Connections, weight: u16) -> Candidate {
        let expected = u64::from(load.active) + 1;
        let (overhead, counted) = match scheduler {
            Scheduler::Lc => (load.overhead(), 1),
            Scheduler::Wlc => (load.overhead(), u64::from(weight)),
            _ => (expected, u64::from(weight)),
        };
        let idle = scheduler == Scheduler::Nq && load.active == 0;
        Candidate { overhead, weight: counted, at_once: idle && weight > 0, open: weight > 0 }
    }

    /// Whether this has less than `other` for its weight, strictly: the first among equals stays.
    fn is_less_than(self, other: Candidate) -> bool {
        // Below 2^41 and 2^16: no overflow.
        self.overhead * other.weight < other.overhead * self.weight
    }
}

fn least(members: impl Iterator<Item = usize>, candidate: impl Fn(usize) -> Candidate) -> Option<usize> {
    let mut best: Option<(usize, Candidate)> = None;
    for at in members {
        let this = candidate(at);
        if this.at_once {
            return Some(at);
        }
        if this.open && best.is_none_or(|(_, best)| this.is_less_than(best)) {
            best = Some((at, this));
        }
    }
    best.map(|(at, _)| at)
}

#[cfg(test)]
mod tests;
