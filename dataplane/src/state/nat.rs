//! Choosing the source address and port that a translated flow will have.
//!
//! It owns the choice: unpredictable (RFC 6056) and exact to the last free port of those this worker gives out. It refuses to keep a list of what is
//! free: a port is taken if the tuple of its answers is in the flow table, so nothing can disagree with the flows.
//!
//! Ports are counted per backend: the same source and port serve any number of backends at once. The search is a walk
//! through all of (source, port) from a random start with a random stride that shares no factor with their
//! number. So it meets each once; and since flows sit at random places, a walk of n steps is like n random draws: when
//! a fraction f is free it takes about 1/f. Ports in a row from a random start would be simpler, and slower the more the
//! taken ones clump together.

use super::{Address, DOMAIN_OVERLAY, FlowTable, Tuple};
use crate::table::nat::PORTS_PER_SOURCE;
use crate::table::owner::Ports;

/// Sources beyond this number are not used. One backend has no use for so many.
pub const SOURCES_MAX: usize = 4096;
/// How many candidates are looked up at once after the first ones were taken.
const PROBES_AT_ONCE: usize = 16;

/// Every port that this worker gives out is taken at every source towards this backend (or there is no source).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("every translated port towards this backend is taken")]
pub struct PortsExhausted;

/// A source and one of `ports` that no live flow to `backend` (pod address and port, host order) uses with `protocol`.
///
/// `ports` are this worker's own: all flows that use one are in its table, and no other table has to be asked.
/// `entropy` is any number that clients cannot foresee; it need not be uniform. `live_on_backend` is the number of live
/// flows that use a pair of `sources` towards this backend, or less when that is not known exactly: it makes the
/// refusal cheap when nothing is free, where a search would look at every pair.
///
/// # Errors
///
/// [`PortsExhausted`], and only if it is so.
pub fn choose<A: Address>(
    flows: &FlowTable<A>,
    sources: &[A],
    ports: Ports<'_>,
    backend: (A, u16),
    protocol: u8,
    entropy: u64,
    live_on_backend: u32,
) -> Result<(A, u16), PortsExhausted> {
    let sources = &sources[..sources.len().min(SOURCES_MAX)];
    let pairs = u32::try_from(sources.len()).unwrap_or(u32::MAX) * ports.len();
    if live_on_backend >= pairs {
        return Err(PortsExhausted);
    }
    let random = flows.scramble(entropy);
    let mut walk = Walk { sources, ports, at: scale(random >> 32, pairs), stride: 0, pairs };
    let reply = |(source, port): (A, u16)| Tuple {
        source: backend.0,
        destination: source,
        source_port: backend.1,
        destination_port: port,
        protocol,
        domain: DOMAIN_OVERLAY,
    };
    let first = walk.pair();
    if flows.lookup(&reply(first)).is_none() {
        return Ok(first);
    }
    walk.stride = stride(random, pairs);
    search(flows, walk, reply)
}

/// The rest of the walk, in strides of [`PROBES_AT_ONCE`] whose index lines are loaded together.
#[inline(never)]
fn search<A: Address>(
    flows: &FlowTable<A>,
    mut walk: Walk<'_, A>,
    reply: impl Fn((A, u16)) -> Tuple<A>,
) -> Result<(A, u16), PortsExhausted> {
    let mut left = walk.pairs - 1;
    while left > 0 {
        let mut ahead = walk;
        let count = PROBES_AT_ONCE.min(left as usize);
        for _ in 0..count {
            flows.prefetch_index(flows.hash(&reply(ahead.step())));
        }
        for _ in 0..count {
            let pair = walk.step();
            if flows.lookup(&reply(pair)).is_none() {
                return Ok(pair);
            }
            left -= 1;
        }
    }
    Err(PortsExhausted)
}

/// A place in the walk through all pairs.
#[derive(Debug)]
struct Walk<'sources, A> {
    sources: &'sources [A],
    ports: Ports<'sources>,
    /// Number of the pair: source times ports, plus port.
    at: u32,
    stride: u32,
    pairs: u32,
}

impl<A> Clone for Walk<'_, A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A> Copy for Walk<'_, A> {}

impl<A: Address> Walk<'_, A> {
    fn pair(&self) -> (A, u16) {
        let (source, port) = (self.at / self.ports.len(), self.at % self.ports.len());
        (self.sources[source as usize], self.ports.at(port))
    }

    fn step(&mut self) -> (A, u16) {
        // Both are below `pairs`, which is below 2^31.
        self.at += self.stride;
        if self.at >= self.pairs {
            self.at -= self.pairs;
        }
        self.pair()
    }
}

const _: () = assert!(SOURCES_MAX as u64 * (PORTS_PER_SOURCE as u64) < 1 << 31);

/// A number in 1..`pairs` without a factor in common with it, at or after a random one.
pub(super) fn stride(random: u64, pairs: u32) -> u32 {
    let mut stride = scale(random & 0xffff_ffff, pairs) | 1;
    // `pairs` is even and not zero, since blocks of ports are, so 1 is such a number and the loop ends; every third odd one is, about.
    while common_factor(stride, pairs) != 1 {
        stride = if stride + 2 < pairs { stride + 2 } else { 1 };
    }
    stride
}

const fn common_factor(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// `random`, below 2^32, scaled to 0..`range`.
pub(super) const fn scale(random: u64, range: u32) -> u32 {
    ((random * range as u64) >> 32 & 0xffff_ffff) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::oracle::{Numbered, new_flow, random};
    use crate::state::{FlowId, NewFlow, Swept};
    use crate::table::nat::PORT_MIN;
    use crate::table::owner::{OwnerTable, WorkerId};
    use std::collections::HashSet;
    use tidegate_io::mem::HugePages;

    const TCP: u8 = 6;
    const UDP: u8 = 17;

    /// Opens flows from `sources` to one backend, like the first packets of many clients.
    struct Rig<A: Address> {
        flows: FlowTable<A>,
        sources: Vec<A>,
        owners: OwnerTable,
        random: Box<dyn FnMut() -> u64>,
        clients: u32,
        live: u32,
    }

    impl<A: Numbered> Rig<A> {
        fn new(flows_max: u32, sources: u32, seed: u64) -> Self {
            let sources = (0..sources).map(|n| A::numbered(0x0af4_0902 + n)).collect();
            let flows = FlowTable::new(flows_max, [seed, seed], HugePages::Off).unwrap();
            let owners = OwnerTable::default();
            Rig { flows, sources, owners, random: Box::new(random(seed)), clients: 0, live: 0 }
        }

        fn backend() -> (A, u16) {
            (A::numbered(0x0af4_0105), 8080)
        }

        fn ports(&self) -> Ports<'_> {
            self.owners.ports_of(WorkerId(0))
        }

        fn choose(&mut self, protocol: u8, live: u32) -> Result<(A, u16), PortsExhausted> {
            let entropy = (self.random)();
            choose(&self.flows, &self.sources, self.ports(), Self::backend(), protocol, entropy, live)
        }

        fn open(&mut self, protocol: u8) -> Result<((A, u16), FlowId), PortsExhausted> {
            let (source, port) = self.choose(protocol, self.live)?;
            self.clients += 1;
            let client = self.clients;
            let mut new: NewFlow<A> = new_flow(client, (client & 0xffff) as u16, port, protocol);
            new.translated.source = source;
            let id = self.flows.insert(&new, 0).unwrap();
            self.live += 1;
            Ok(((source, port), id))
        }
    }

    fn every_port_once<A: Numbered>(sources: u32, seed: u64) {
        let pairs = sources * PORTS_PER_SOURCE;
        let mut rig = Rig::<A>::new(pairs + pairs / 8, sources, seed);
        let mut seen = HashSet::new();
        let mut last = None;
        for _ in 0..pairs {
            let (pair, id) = rig.open(TCP).unwrap();
            assert!(pair.1 >= PORT_MIN && rig.sources.contains(&pair.0));
            assert!(seen.insert(pair), "given out twice: {pair:?}");
            last = Some((pair, id));
        }
        assert_eq!(seen.len(), pairs as usize);
        // The next fails, by the count as well as by the search.
        assert_eq!(rig.choose(TCP, pairs), Err(PortsExhausted));
        assert_eq!(rig.choose(TCP, 0), Err(PortsExhausted));
        // The other protocol and another backend have ports of their own.
        assert!(rig.choose(UDP, 0).is_ok());
        let (address, port) = Rig::<A>::backend();
        assert!(choose(&rig.flows, &rig.sources, rig.ports(), (address, port + 1), TCP, 1, 0).is_ok());
        assert!(choose(&rig.flows, &rig.sources, rig.ports(), (A::numbered(1), port), TCP, 1, 0).is_ok());
        // What comes free is found.
        let (pair, id) = last.unwrap();
        rig.flows.remove(id);
        assert_eq!(rig.choose(TCP, pairs - 1), Ok(pair));
    }

    #[test]
    fn one_source_serves_64512_flows_to_one_backend() {
        every_port_once::<[u8; 4]>(1, 1);
        every_port_once::<[u8; 16]>(1, 2);
    }

    #[test]
    fn two_sources_serve_129024() {
        every_port_once::<[u8; 4]>(2, 3);
    }

    #[test]
    fn ports_of_flows_that_expired_are_given_out_again() {
        let mut rig = Rig::<[u8; 4]>::new(70_000, 1, 4);
        while rig.open(UDP).is_ok() {}
        assert_eq!(rig.live, PORTS_PER_SOURCE);
        let mut expired = 0;
        while rig.flows.sweep(1 << 20, 5_000, |_, swept| expired += u32::from(matches!(swept, Swept::Expired(_)))) > 0 {
        }
        assert_eq!((expired, rig.flows.live()), (PORTS_PER_SOURCE, 0));
        rig.live = 0;
        assert!(rig.open(UDP).is_ok());
    }

    /// Flows of one worker of several: its own ports, every one, and none of another's.
    fn every_own_port_once<A: Numbered>(workers: u16, seed: u64) {
        let mut rig = Rig::<A>::new(70_000, 1, seed);
        rig.owners = OwnerTable::new(workers, [seed; 2]);
        let mut seen = HashSet::new();
        for worker in (0..workers).map(WorkerId) {
            // Each has a table of its own and knows nothing of the others' flows.
            rig.flows = FlowTable::new(70_000, [seed, seed], HugePages::Off).unwrap();
            let own = rig.owners.ports_of(worker).len();
            for n in 0..own {
                let ports = rig.owners.ports_of(worker);
                let entropy = (rig.random)();
                let pair = choose(&rig.flows, &rig.sources, ports, Rig::<A>::backend(), TCP, entropy, n).unwrap();
                assert_eq!(rig.owners.owner(pair.1), worker);
                assert!(seen.insert(pair));
                rig.flows.insert(&new_flow(n, 7, pair.1, TCP), 0).map_err(|_| ()).unwrap();
            }
            let ports = rig.owners.ports_of(worker);
            let refused = choose(&rig.flows, &rig.sources, ports, Rig::<A>::backend(), TCP, seed, 0);
            assert_eq!(refused, Err(PortsExhausted));
        }
        assert_eq!(seen.len(), PORTS_PER_SOURCE as usize);
    }

    #[test]
    fn workers_give_out_their_own_ports_and_together_all() {
        every_own_port_once::<[u8; 4]>(2, 9);
        every_own_port_once::<[u8; 16]>(8, 10);
    }

    #[test]
    fn without_a_source_there_is_no_port() {
        let mut rig = Rig::<[u8; 16]>::new(8, 0, 5);
        assert_eq!(rig.choose(TCP, 0), Err(PortsExhausted));
    }

    #[test]
    fn a_walk_meets_every_pair_once_whatever_its_stride() {
        let owners = OwnerTable::default();
        for (sources, seed) in [(1usize, 1), (2, 2), (3, 3)] {
            let mut random = random(seed);
            let addresses = vec![[0u8; 4]; sources];
            let pairs = u32::try_from(sources).unwrap() * PORTS_PER_SOURCE;
            for _ in 0..3 {
                let bits = random();
                let mut walk = Walk {
                    sources: &addresses,
                    ports: owners.ports_of(WorkerId(0)),
                    at: scale(bits >> 32, pairs),
                    stride: stride(bits, pairs),
                    pairs,
                };
                let mut seen = vec![false; pairs as usize];
                for _ in 0..pairs {
                    walk.step();
                    assert!(!std::mem::replace(&mut seen[walk.at as usize], true));
                }
            }
        }
        for bits in [0, 1, 0xffff_ffff, 0xffff_fffe, u64::MAX] {
            assert_eq!(common_factor(stride(bits, PORTS_PER_SOURCE), PORTS_PER_SOURCE), 1);
        }
    }

    #[test]
    fn first_choices_are_spread_over_all_sources_and_ports() {
        // RFC 6056: neighbours in time are strangers in number. Entropy that merely counts is enough.
        let rig = Rig::<[u8; 4]>::new(8, 4, 6);
        let pick = |entropy| {
            choose(&rig.flows, &rig.sources, rig.ports(), Rig::<[u8; 4]>::backend(), TCP, entropy, 0).unwrap()
        };
        let mut by_source = [0u32; 4];
        let mut by_port = [0u32; 64];
        let mut near = 0;
        for entropy in 0..16_384 {
            let (source, port) = pick(entropy);
            by_source[rig.sources.iter().position(|known| *known == source).unwrap()] += 1;
            by_port[usize::from(port - PORT_MIN) * 64 / PORTS_PER_SOURCE as usize] += 1;
            near += u32::from(pick(entropy + 1).1.abs_diff(port) < 64);
        }
        assert!(by_source.iter().all(|count| (3_700..4_500).contains(count)), "{by_source:?}");
        assert!(by_port.iter().all(|count| (160..360).contains(count)), "{by_port:?}");
        assert!(near < 100, "{near} of 16384 within 64 ports of the one before");
        // Another table, another order.
        let other = Rig::<[u8; 4]>::new(8, 4, 7);
        let again = |entropy| {
            choose(&other.flows, &other.sources, other.ports(), Rig::<[u8; 4]>::backend(), TCP, entropy, 0).unwrap()
        };
        assert!((0..64).filter(|entropy| pick(*entropy) == again(*entropy)).count() <= 2);
    }

    #[test]
    fn the_search_is_as_long_as_random_draws_would_be() {
        // Three quarters taken, by choices as they come: four draws on average find a free one.
        let mut rig = Rig::<[u8; 4]>::new(70_000, 1, 8);
        let mut taken = HashSet::new();
        while taken.len() < PORTS_PER_SOURCE as usize * 3 / 4 {
            taken.insert(rig.open(TCP).unwrap().0.1);
        }
        let mut steps = 0;
        for n in 0..4_096 {
            let bits = rig.flows.scramble(n);
            let mut walk = Walk {
                sources: &rig.sources,
                ports: rig.ports(),
                at: scale(bits >> 32, PORTS_PER_SOURCE),
                stride: stride(bits, PORTS_PER_SOURCE),
                pairs: PORTS_PER_SOURCE,
            };
            steps += 1;
            while taken.contains(&walk.pair().1) {
                walk.step();
                steps += 1;
            }
        }
        let mean = f64::from(steps) / 4_096.0;
        assert!((3.6..4.6).contains(&mean), "{mean}");
    }
}
