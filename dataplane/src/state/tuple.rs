//! What identifies one direction of a flow, and its keyed hash.
//!
//! It owns the two families' differences: everything above is generic over [`Address`]. It refuses to know where tuples
//! are stored.
//!
//! The hash multiplies two 64-bit words to 128 bits and folds the halves together, twice for IPv4 and four times for
//! IPv6 (the idea of wyhash and its kin). One fold mixes well but has structure, the second one hides it. The words are
//! combined with secrets first: whoever can choose addresses and ports must not be able to choose buckets.

use std::fmt::Debug;
use std::hash::Hash;

use zerocopy::{FromZeros, Immutable};

use crate::table::Family;

/// `Tuple::domain` of packets that arrive or leave bare.
pub const DOMAIN_WIRE: u8 = 0;
/// `Tuple::domain` of packets that arrive or leave inside the overlay.
pub const DOMAIN_OVERLAY: u8 = 1;

mod sealed {
    pub trait Sealed {}
    impl Sealed for [u8; 4] {}
    impl Sealed for [u8; 16] {}
}

/// An IP address in network byte order: `[u8; 4]` or `[u8; 16]`.
pub trait Address: sealed::Sealed + Copy + Eq + Hash + Debug + Send + Sync + FromZeros + Immutable + 'static {
    /// IP version.
    const FAMILY: Family;

    /// The hash of a pair of addresses and one word of everything else.
    fn mix(source: Self, destination: Self, rest: u64, keys: &HashKeys) -> u64;
}

impl Address for [u8; 4] {
    const FAMILY: Family = Family::V4;

    #[inline(always)]
    fn mix(source: Self, destination: Self, rest: u64, keys: &HashKeys) -> u64 {
        let addresses = u64::from(u32::from_ne_bytes(source)) << 32 | u64::from(u32::from_ne_bytes(destination));
        let [k0, k1, k2, k3, ..] = keys.0;
        fold(fold(addresses ^ k0, rest ^ k1) ^ k2, k3)
    }
}

impl Address for [u8; 16] {
    const FAMILY: Family = Family::V6;

    #[inline(always)]
    fn mix(source: Self, destination: Self, rest: u64, keys: &HashKeys) -> u64 {
        let [k0, k1, k2, k3, k4, k5] = keys.0;
        let (source, destination) = (halves(source), halves(destination));
        let source = fold(source.0 ^ k0, source.1 ^ k1);
        let destination = fold(destination.0 ^ k4, destination.1 ^ k5);
        fold(fold(source ^ rest ^ k1, destination ^ k0) ^ k2, k3)
    }
}

#[inline(always)]
fn halves(address: [u8; 16]) -> (u64, u64) {
    let whole = u128::from_ne_bytes(address);
    (low(whole), low(whole >> 64))
}

#[inline(always)]
const fn low(whole: u128) -> u64 {
    (whole & u64::MAX as u128) as u64
}

/// Both halves of the 128-bit product, exclusive-or.
#[inline(always)]
pub(crate) const fn fold(left: u64, right: u64) -> u64 {
    let product = left as u128 * right as u128;
    low(product) ^ low(product >> 64)
}

/// The secrets of a table's hash, drawn from two 64-bit ones.
#[derive(Clone)]
pub struct HashKeys([u64; 6]);

impl HashKeys {
    /// Keys from `seed`, which must be random and secret where clients are not trusted. Any value is good, zeroes too.
    #[must_use]
    pub const fn new(seed: [u64; 2]) -> HashKeys {
        // Constants: the first 64-bit words of the fraction of pi. They only keep the keys apart from each other and
        // from zero when the seeds are not.
        let [a, b] = [seed[0] ^ 0x243f_6a88_85a3_08d3, seed[1] ^ 0x1319_8a2e_0370_7344];
        HashKeys([
            a,
            b,
            fold(a ^ 0xa409_3822_299f_31d0, b) ^ 0x082e_fa98_ec4e_6c89,
            // The multiplier of the last fold must not lose bits: odd.
            fold(a, b ^ 0x4528_21e6_38d0_1377) | 1,
            fold(a ^ 0xbe54_66cf_34e9_0c6c, b ^ 0xc0ac_29b7_c97c_50dd),
            fold(b ^ 0x3f84_d5b5_b547_0917, a ^ 0x9216_d5d9_8979_fb1b),
        ])
    }

    /// A secret, unrelated to how tuples are hashed, applied to `value`: for choices that nobody may foresee.
    #[must_use]
    pub fn scramble(&self, value: u64) -> u64 {
        fold(fold(value ^ self.0[4], self.0[3]) ^ self.0[5], self.0[2] | 1)
    }
}

impl Debug for HashKeys {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("HashKeys(secret)")
    }
}

/// What identifies one direction of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Tuple<A> {
    /// Network order.
    pub source: A,
    /// Network order.
    pub destination: A,
    /// Host order.
    pub source_port: u16,
    /// Host order.
    pub destination_port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// [`DOMAIN_WIRE`] or [`DOMAIN_OVERLAY`]: equal addresses in both are different endpoints.
    pub domain: u8,
}

impl<A: Address> Tuple<A> {
    /// The same with the two ends exchanged; `domain` is where the answer arrives.
    #[inline]
    #[must_use]
    pub fn reversed(&self, domain: u8) -> Tuple<A> {
        Tuple {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
            domain,
        }
    }

    /// The keyed hash. All 64 bits are good.
    #[inline(always)]
    #[must_use]
    pub fn hash(&self, keys: &HashKeys) -> u64 {
        let ports = u64::from(self.source_port) | u64::from(self.destination_port) << 16;
        let rest = ports | u64::from(self.protocol) << 32 | u64::from(self.domain) << 40;
        A::mix(self.source, self.destination, rest, keys)
    }
}
