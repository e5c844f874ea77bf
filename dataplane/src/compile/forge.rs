//! Rings filled before the compiler asks for them.
//!
//! Owns the filling of what the Services of an update will need while the compiler's thread is busy with something else.
//! A ring is a pure function of one port's endpoints and weights, so it may be made by anybody, in any order and for an
//! update that never comes. Refuses to know what is in force: where the compiler needs another ring after all (a node is
//! suspected, a weight grows), it fills that one itself, and nothing differs but the time it takes.

use std::borrow::Borrow;

use tidegate_api::resource::{Body, Resource, TrafficPolicy};

use super::service::{CLUSTER, LOCAL, wanted_backends, wanted_ports};
use super::suspect::Suspects;
use crate::table::maglev::{Made, RingCache, member_key};

/// Objects from which more than one thread is worth its making: some 3 ms of work for each.
const SHARE_MIN: usize = 512;

/// Rings that were made ahead; as long as this lives, they do.
#[derive(Debug, Default)]
pub struct Forged(Vec<Made>);

impl Forged {
    /// Also what another has.
    pub fn join(&mut self, other: Forged) {
        self.0.extend(other.0);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Has `cache` find them. They stay here as well.
    pub(super) fn give(&self, cache: &mut RingCache) {
        cache.adopt(&self.0);
    }
}

/// The rings of all Services among `resources`, made by at most `threads` threads. The same whatever their number.
pub fn forge<R: Borrow<Resource> + Sync>(resources: &[R], threads: usize) -> Forged {
    let threads = threads.min(resources.len() / SHARE_MIN).max(1);
    let mut shares = resources.chunks(resources.len().div_ceil(threads).max(1));
    let own = shares.next().unwrap_or_default();
    let mut forged = Forged::default();
    std::thread::scope(|scope| {
        let helpers: Vec<_> = shares.map(|share| scope.spawn(move || forge_here(share))).collect();
        forged.0 = forge_here(own);
        for helper in helpers {
            // One that has failed has made nothing, and the compiler makes what it lacks.
            forged.0.extend(helper.join().unwrap_or_default());
        }
    });
    forged
}

fn forge_here<R: Borrow<Resource>>(resources: &[R]) -> Vec<Made> {
    let (nobody, mut cache, mut made) = (Suspects::default(), RingCache::default(), Vec::new());
    for resource in resources {
        let Body::Service(service) = &resource.borrow().body else { continue };
        for ((_, _, family), (port, _)) in wanted_ports(service) {
            let backends = wanted_backends(family, port, &nobody);
            let mut make = |which: usize| {
                let members =
                    backends.iter().map(|((address, port), weights)| (member_key(address, *port), weights[which]));
                made.extend(cache.make(&members.collect::<Vec<_>>(), 0));
            };
            make(CLUSTER);
            if port.external_policy == TrafficPolicy::Local {
                make(LOCAL);
            }
        }
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::tests::{backend, named, service};

    fn services(count: usize) -> Vec<Resource> {
        let of = |n: usize| {
            let address = |n: usize, v6: bool| {
                if v6 { format!("fd00::{n:x}") } else { format!("10.244.{}.{}", n / 100, n % 100) }
            };
            let backends = [n, n + 1].map(|at| backend(&address(at, n % 2 == 1), 80, 1));
            named(&format!("shop/{n}"), "1", service(&["192.0.2.1", "2001:db8::1"], 80, &backends))
        };
        (0..count).map(of).collect()
    }

    fn rings(forged: &Forged) -> Vec<((u64, u64), Vec<usize>)> {
        let mut rings: Vec<_> = forged.0.iter().map(|(digest, ring)| (*digest, ring.slots().collect())).collect();
        rings.sort();
        rings.dedup();
        rings
    }

    #[test]
    fn rings_are_the_same_whoever_makes_them_and_in_whatever_order() {
        let mut services = services(3 * SHARE_MIN);
        let one = rings(&forge(&services, 1));
        assert_eq!(one.len(), services.len());
        for threads in [2, 3, 7] {
            services.rotate_left(SHARE_MIN / 2);
            services.reverse();
            assert_eq!(rings(&forge(&services, threads)), one, "{threads} threads");
        }
        assert!(forge::<Resource>(&[], 4).is_empty());
    }
}
