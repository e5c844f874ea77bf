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
use crate::table::spread::INPUT_WORDS;

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
pub trait Address: sealed::Sealed + Copy + Ord + Hash + Debug + Send + Sync + FromZeros + Immutable + 'static {
    /// IP version.
    const FAMILY: Family;

    /// The hash of a pair of addresses and one word of everything else.
    fn mix(source: Self, destination: Self, rest: u64, keys: &HashKeys) -> u64;

    /// Zero for equal pairs of addresses.
    fn differ(one: (Self, Self), other: (Self, Self)) -> u64;

    /// What a NIC hashes to choose a queue, bit 63 of word 0 first: both addresses and both ports in network order, the source
    /// before the destination; zeroes after them. `ports`: the source port in the upper half.
    fn rss_input(source: Self, destination: Self, ports: u32) -> [u64; INPUT_WORDS];
}

impl Address for [u8; 4] {
    const FAMILY: Family = Family::V4;

    #[inline(always)]
    fn mix(source: Self, destination: Self, rest: u64, keys: &HashKeys) -> u64 {
        let addresses = u64::from(u32::from_ne_bytes(source)) << 32 | u64::from(u32::from_ne_bytes(destination));
        let [k0, k1, k2, k3, ..] = keys.0;
        fold(fold(addresses ^ k0, rest ^ k1) ^ k2, k3)
    }

    #[inline(always)]
    fn differ(one: (Self, Self), other: (Self, Self)) -> u64 {
        let word = u32::from_ne_bytes;
        u64::from(word(one.0) ^ word(other.0)) | u64::from(word(one.1) ^ word(other.1))
    }

    #[inline(always)]
    fn rss_input(source: Self, destination: Self, ports: u32) -> [u64; INPUT_WORDS] {
        let addresses = u64::from(u32::from_be_bytes(source)) << 32 | u64::from(u32::from_be_bytes(destination));
        [addresses, u64::from(ports) << 32, 0, 0, 0]
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

    #[inline(always)]
    fn differ(one: (Self, Self), other: (Self, Self)) -> u64 {
        let (a, b) = (halves(one.0), halves(other.0));
        let (c, d) = (halves(one.1), halves(other.1));
        (a.0 ^ b.0) | (a.1 ^ b.1) | (c.0 ^ d.0) | (c.1 ^ d.1)
    }

    #[inline(always)]
    fn rss_input(source: Self, destination: Self, ports: u32) -> [u64; INPUT_WORDS] {
        let [source, destination] = [source, destination].map(u128::from_be_bytes);
        [low(source >> 64), low(source), low(destination >> 64), low(destination), u64::from(ports) << 32]
    }
}

#[inline(always)]
fn halves(address: [u8; 16]) -> (u64, u64) {
    let whole = u128::from_ne_bytes(address);
    (low(whole), low(whole >> 64))
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the lower half is what is wanted")]
const fn low(whole: u128) -> u64 {
    whole as u64
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::oracle::Numbered;

    fn tuple<A: Numbered>() -> Tuple<A> {
        Tuple {
            source: A::numbered(0xc000_020a),
            destination: A::numbered(0xcb00_7101),
            source_port: 40_000,
            destination_port: 443,
            protocol: 6,
            domain: DOMAIN_WIRE,
        }
    }

    /// Every tuple that differs from `base` in one bit.
    fn one_bit_away<const N: usize>(base: Tuple<[u8; N]>) -> Vec<Tuple<[u8; N]>> {
        let mut near = Vec::new();
        for bit in 0..N * 8 {
            let mut flipped = base;
            flipped.source[bit / 8] ^= 1 << (bit % 8);
            near.push(flipped);
            let mut flipped = base;
            flipped.destination[bit / 8] ^= 1 << (bit % 8);
            near.push(flipped);
        }
        for bit in 0..16 {
            near.push(Tuple { source_port: base.source_port ^ 1 << bit, ..base });
            near.push(Tuple { destination_port: base.destination_port ^ 1 << bit, ..base });
        }
        for bit in 0..8 {
            near.push(Tuple { protocol: base.protocol ^ 1 << bit, ..base });
        }
        near.push(Tuple { domain: DOMAIN_OVERLAY, ..base });
        near
    }

    fn avalanche<const N: usize>()
    where
        [u8; N]: Numbered,
    {
        const SEEDS: u32 = 512;
        let base = tuple::<[u8; N]>();
        for near in one_bit_away(base) {
            let mut flips = [0u32; 64];
            for seed in 0..u64::from(SEEDS) {
                let keys = HashKeys::new([seed, 77]);
                let difference = base.hash(&keys) ^ near.hash(&keys);
                assert_ne!(difference, 0, "{near:?}");
                for (bit, count) in flips.iter_mut().enumerate() {
                    *count += u32::from(difference >> bit & 1 == 1);
                }
            }
            // A fair coin 512 times: 256 with a deviation of 11; seven of them are never seen by chance.
            for (bit, count) in flips.into_iter().enumerate() {
                assert!((177..=335).contains(&count), "output bit {bit} flips {count} of {SEEDS} times for {near:?}");
            }
        }
    }

    #[test]
    fn every_bit_of_every_field_flips_every_bit_of_the_hash_half_the_time() {
        avalanche::<4>();
        avalanche::<16>();
    }

    /// Chi-square over `buckets` for the hashes' bits that `pick` selects.
    fn spread(hashes: &[u64], buckets: usize, pick: impl Fn(u64) -> usize) -> f64 {
        let mut counts = vec![0f64; buckets];
        for hash in hashes {
            counts[pick(*hash)] += 1.0;
        }
        let expected = hashes.len() as f64 / buckets as f64;
        counts.iter().map(|count| (count - expected).powi(2) / expected).sum()
    }

    fn distribution<A: Numbered>() {
        for seed in 0..4 {
            let keys = HashKeys::new([seed, 0]);
            // Clients that follow each other, ports that follow each other, pods that follow each other.
            let mut hashes = Vec::new();
            for n in 0..65_536u32 {
                let (low, high) = (n & 0xff, n >> 8);
                hashes.push(Tuple { source: A::numbered(0x0a00_0000 | n), ..tuple::<A>() });
                hashes.push(Tuple { source_port: (n & 0xffff) as u16, ..tuple::<A>() });
                let destination = A::numbered(0x0af4_0000 | low);
                hashes.push(Tuple { destination, destination_port: ((8_000 + high) & 0xffff) as u16, ..tuple::<A>() });
            }
            let hashes: Vec<u64> = hashes.iter().map(|tuple| tuple.hash(&keys)).collect();
            let mut distinct = hashes.clone();
            distinct.sort_unstable();
            distinct.dedup();
            assert!(distinct.len() + 2 >= hashes.len(), "the base tuple itself may come twice");
            // 1023 degrees of freedom: deviation 45; six of them each way.
            for shift in [54, 32, 22, 8] {
                let chi = spread(&hashes, 1024, |hash| (hash >> shift & 1023) as usize);
                assert!((750.0..1300.0).contains(&chi), "seed {seed}, bits from {shift}: {chi}");
            }
        }
    }

    #[test]
    fn tuples_that_follow_each_other_spread_evenly() {
        distribution::<[u8; 4]>();
        distribution::<[u8; 16]>();
    }

    #[test]
    fn seeds_change_everything_and_ends_are_not_interchangeable() {
        let forward = tuple::<[u8; 4]>();
        let backward = forward.reversed(forward.domain);
        assert_eq!(backward.reversed(forward.domain), forward);
        let keys = [[0, 0], [0, 1], [1, 0], [u64::MAX, u64::MAX]].map(HashKeys::new);
        let mut seen: Vec<u64> = keys.iter().flat_map(|keys| [forward.hash(keys), backward.hash(keys)]).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 8);
        assert_eq!(format!("{:?}", keys[0]), "HashKeys(secret)");
    }
}
