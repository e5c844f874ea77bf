//! Choosing the source address and port that a translated flow will have.
//!
//! It owns the choice: unpredictable (RFC 6056) and exact to the last free port. It refuses to keep a list of what is
//! free: a port is taken if the tuple of its answers is in the flow table, so nothing can disagree with the flows.
//!
//! Ports are counted per backend: the same source and port serve any number of backends at once. The search is a walk
//! through all of (source, port) from a random start with a random stride that shares no factor with their
//! number. So it meets each once; and since flows sit at random places, a walk of n steps is like n random draws: when
//! a fraction f is free it takes about 1/f. Ports in a row from a random start would be simpler, and slower the more the
//! taken ones clump together.

use super::{Address, DOMAIN_OVERLAY, FlowTable, Tuple};
use crate::table::nat::{PORT_MIN, PORTS_PER_SOURCE};

/// Sources beyond this number are not used. One backend has no use for so many.
pub const SOURCES_MAX: usize = 4096;
/// How many candidates are looked up at once after the first ones were taken.
const PROBES_AT_ONCE: usize = 16;

/// Every port of every source is taken towards this backend (or there is no source).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("every translated port towards this backend is taken")]
pub struct PortsExhausted;

/// A source and a port that no live flow to `backend` (pod address and port, host order) uses with `protocol`.
///
/// `entropy` is any number that clients cannot foresee; it need not be uniform. `live_on_backend` is the number of live
/// flows that use a pair of `sources` towards this backend, or less when that is not known exactly: it makes the
/// refusal cheap when nothing is free, where a search would look at every pair.
///
/// # Errors
///
/// [`PortsExhausted`], and only if it is so.
pub fn choose<A: Address>(
    flows: &FlowTable<A>, sources: &[A], backend: (A, u16), protocol: u8, entropy: u64, live_on_backend: u32,
) -> Result<(A, u16), PortsExhausted> {
    let sources = &sources[..sources.len().min(SOURCES_MAX)];
    let pairs = u32::try_from(sources.len()).unwrap_or(u32::MAX) * PORTS_PER_SOURCE;
    if live_on_backend >= pairs {
        return Err(PortsExhausted);
    }
    let random = flows.scramble(entropy);
    let mut walk = Walk { sources, at: scale(random >> 32, pairs), stride: 0, pairs };
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
    flows: &FlowTable<A>, mut walk: Walk<'_, A>, reply: impl Fn((A, u16)) -> Tuple<A>,
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
        let port = self.at % PORTS_PER_SOURCE;
        (self.sources[(self.at / PORTS_PER_SOURCE) as usize], PORT_MIN + (port & 0xffff) as u16)
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
fn stride(random: u64, pairs: u32) -> u32 {
    let mut stride = scale(random & 0xffff_ffff, pairs) | 1;
    // `pairs` is even and at least 64,512, so 1 is such a number and the loop ends; every third odd one is, about.
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
const fn scale(random: u64, range: u32) -> u32 {
    ((random * range as u64) >> 32 & 0xffff_ffff) as u32
}
