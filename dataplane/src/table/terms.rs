//! Terms: what a Service port asks for beyond an even spread over its endpoints.
//!
//! Owns policies, source ranges, affinity, the scheduler and what it chooses with: weights and buckets. A Service that
//! asks for nothing has none of this, and its row is as small as before. It refuses to know how a scheduler moves on
//! (`stage::schedule`) and what clients chose before (`state`).

use std::hash::Hasher;
use std::sync::Arc;

use siphasher::sip::SipHasher13;
pub use tidegate_api::resource::{HashFields, Scheduler, TrafficPolicy};

use super::overrides::Overrides;
use super::ranges::Ranges;
use super::service::EndpointSet;

/// Buckets of the schedulers `sh` and `dh` (`IP_VS_SH_TAB_SIZE`, net/netfilter/ipvs/ip_vs_sh.c).
pub const BUCKETS: usize = 256;

/// What one Service port asks for. Kind: table.
#[derive(Clone, Debug, PartialEq)]
pub struct Terms {
    /// Identity of the Service port, equal on all gateways: what its clients are hashed with (S-095).
    pub identity: u64,
    /// Which set clients from outside choose from (S-048), and whether node ports are served at all (S-065).
    pub external_policy: TrafficPolicy,
    /// `Local`: cluster addresses drop (S-060).
    pub internal_policy: TrafficPolicy,
    /// Who may reach the VIPs; `None`: everybody (S-080, S-081).
    pub ranges: Option<Arc<Ranges>>,
    /// Seconds a client stays with its endpoint after its last new connection (S-091); 0: no affinity.
    pub affinity_timeout_s: u32,
    /// Clients whose endpoint is given by their address, as members of the row's sets; `None`: there are none.
    pub overrides: Option<Arc<Overrides>>,
    /// How an endpoint is chosen.
    pub scheduler: Scheduler,
    /// What the scheduler `mh` hashes.
    pub hash: HashFields,
    /// Every datagram is scheduled alone, in modes that keep the client's address.
    pub one_packet: bool,
    /// Weights of the row's own endpoints.
    pub weights: Weights,
    /// Endpoints that are local to a node (S-048) with their weights, where `external_policy` is `Local`.
    pub local: Option<(EndpointSet, Weights)>,
}

impl Terms {
    /// Whether a client's connections must meet one worker: affinity is remembered by the worker that saw the first.
    #[inline]
    pub fn is_sticky(&self) -> bool {
        self.affinity_timeout_s > 0
    }

    /// A number that equal terms have in common.
    pub fn digest(&self) -> u64 {
        let mut hasher = SipHasher13::new_with_key(b"tidegate terms 1");
        hasher.write_u64(self.identity);
        hasher.write(&[
            u8::from(self.external_policy == TrafficPolicy::Local),
            u8::from(self.internal_policy == TrafficPolicy::Local),
            u8::from(self.one_packet),
            self.scheduler as u8,
            self.hash as u8,
        ]);
        hasher.write_u32(self.affinity_timeout_s);
        for (first, last) in self.ranges.iter().flat_map(|ranges| ranges.spans()) {
            hasher.write_u128(*first);
            hasher.write_u128(*last);
        }
        for (first, last, member) in self.overrides.iter().flat_map(|overrides| overrides.spans()) {
            hasher.write_u128(*first);
            hasher.write_u128(*last);
            hasher.write_u16(*member);
        }
        hasher.write_u64(self.weights.digest());
        if let Some((set, weights)) = &self.local {
            hasher.write_u64(set.ring.as_ref().map_or(0, |ring| ring.digest()));
            hasher.write_u64(weights.digest());
        }
        hasher.finish()
    }
}

/// The identity of a Service port, from what every gateway knows of it.
pub fn identity(service: &str, protocol: u8, port: u16) -> u64 {
    let mut hasher = SipHasher13::new_with_key(b"tidegate svcport");
    hasher.write(service.as_bytes());
    hasher.write(&[0xff, protocol]);
    hasher.write(&port.to_be_bytes());
    hasher.finish()
}

/// Weights of an endpoint set, with what schedulers want to know of all of them together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weights {
    /// One per member of the set, same order; 0: no new flows.
    pub of_members: Arc<[u16]>,
    /// The largest.
    pub max: u16,
    /// Greatest common divisor of those above 0; 1 if there is none.
    pub gcd: u16,
    /// Member of each bucket, for `sh` and `dh`; `None` for other schedulers and when no weight is above 0.
    pub buckets: Option<Arc<[u16; BUCKETS]>>,
}

impl Weights {
    /// The weights of a set under a scheduler.
    pub fn new(of_members: impl IntoIterator<Item = u16>, scheduler: Scheduler) -> Weights {
        let of_members: Arc<[u16]> = of_members.into_iter().collect();
        let gcd = of_members.iter().fold(0, |gcd, weight| greatest_common_divisor(gcd, *weight));
        let buckets = match scheduler {
            Scheduler::Sh => buckets(&of_members, |weight| weight.max(1)),
            Scheduler::Dh => buckets(&of_members, |_| 1),
            _ => None,
        };
        Weights {
            max: of_members.iter().copied().max().unwrap_or(0),
            gcd: gcd.max(1),
            buckets: buckets.map(Arc::new),
            of_members,
        }
    }

    /// The weight of the member at `index`; 0 beyond the last.
    #[inline]
    pub fn at(&self, index: usize) -> u16 {
        self.of_members.get(index).copied().unwrap_or(0)
    }

    fn digest(&self) -> u64 {
        let mut hasher = SipHasher13::new_with_key(b"tidegate weights");
        for weight in self.of_members.iter() {
            hasher.write(&weight.to_be_bytes());
        }
        hasher.finish()
    }
}

/// Members in turn, each in as many buckets as its `turn` says before the next one has its own (`ip_vs_sh_reassign`,
/// `ip_vs_dh_reassign`). A bucket of a member without weight goes to the owner of the next bucket that has one. In the
/// kernel such a bucket refuses clients, unless `sh-fallback` looks for another bucket, from another start than here.
fn buckets(weights: &[u16], turn: impl Fn(u16) -> u16) -> Option<[u16; BUCKETS]> {
    if weights.iter().all(|weight| *weight == 0) {
        return None;
    }
    let mut members = (0..).zip(weights).cycle();
    let mut filled = [0u16; BUCKETS];
    let (mut member, mut left) = (0, 0);
    for bucket in &mut filled {
        if left == 0 {
            let (next, weight) = members.next()?;
            (member, left) = (next, turn(*weight));
        }
        *bucket = member;
        left -= 1;
    }
    let draining = |member: u16| weights.get(usize::from(member)).is_none_or(|weight| *weight == 0);
    let original = filled;
    for (at, bucket) in filled.iter_mut().enumerate() {
        let mut around = (0..BUCKETS).map(|step| original[(at + step) % BUCKETS]);
        // More members than buckets may leave those with weight without any: then the first of them has all.
        *bucket = around
            .find(|member| !draining(*member))
            .or_else(|| (0..).zip(weights).find(|(_, weight)| **weight > 0).map(|(member, _)| member))?;
    }
    Some(filled)
}

fn greatest_common_divisor(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn weights_are_summed_up() {
        let weights = Weights::new([6, 0, 4], Scheduler::Wrr);
        assert_eq!((weights.max, weights.gcd, weights.at(0), weights.at(2), weights.at(3)), (6, 2, 6, 4, 0));
        assert!(weights.buckets.is_none());
        let none = Weights::new([0, 0], Scheduler::Sh);
        assert_eq!((none.max, none.gcd, none.buckets), (0, 1, None));
        assert_eq!(Weights::new([], Scheduler::Dh).buckets, None);
    }

    #[test]
    fn buckets_are_filled_by_weight_for_sh_and_evenly_for_dh() {
        // L-036, L-037
        let sh = Weights::new([3, 1], Scheduler::Sh).buckets.unwrap();
        assert_eq!(sh[..8], [0, 0, 0, 1, 0, 0, 0, 1]);
        let dh = Weights::new([3, 1], Scheduler::Dh).buckets.unwrap();
        assert_eq!(dh[..4], [0, 1, 0, 1]);
        let drained = Weights::new([2, 0, 1], Scheduler::Sh).buckets.unwrap();
        assert_eq!(drained[..8], [0, 0, 2, 2, 0, 0, 2, 2], "the bucket of who drains goes to the next");
    }

    proptest! {
        /// Every bucket has a member that takes new flows, and those who had a bucket keep it while another drains.
        #[test]
        fn draining_moves_only_its_own_buckets(
            weights in prop::collection::vec(1u16..5, 1..300), who in any::<prop::sample::Index>(), is_dh: bool
        ) {
            let scheduler = if is_dh { Scheduler::Dh } else { Scheduler::Sh };
            let before = Weights::new(weights.clone(), scheduler).buckets.unwrap();
            let who = who.index(weights.len());
            let mut after = weights.clone();
            after[who] = if is_dh { 0 } else { 1 };
            let equal = weights[who] == 1 || is_dh;
            after[who] = 0;
            let drained = Weights::new(after.clone(), scheduler).buckets;
            prop_assert_eq!(drained.is_none(), weights.len() == 1);
            if let Some(drained) = drained {
                prop_assert!(drained.iter().all(|member| after[usize::from(*member)] > 0));
                if equal {
                    prop_assert!(before.iter().zip(drained.iter()).all(|(then, now)| then == now || usize::from(*then) == who));
                }
            }
        }
    }
}
