//! IPv4 identifications for packets that several pods send from one address.
//!
//! It owns the numbers that such packets leave with, so that none comes twice in a short time between the same two addresses
//! (RFC 6864 section 4.3: "MUST NOT repeat IPv4 ID values within one MDL for a given source address/destination
//! address/protocol tuple"; section 5.3.1 holds rewriting devices to it). It refuses to know packets: whoever rewrites one asks
//! for a number. Packets that can never be cut need none (section 4.1), so that hardly any asks.
//!
//! The simple version counts. The tricks:
//!
//! - Workers share nothing: each has a part of all 65,536 numbers, so that two pods of one address never meet in one, whichever
//!   workers they are with.
//! - A destination and protocol count by themselves, as far as [`COUNTERS`] goes; those that share a counter only get on faster.
//! - What is counted is scrambled, since whoever knows the next number can have a fragment of his own put into a datagram
//!   (RFC 7739 section 3).

/// Counters of a worker: 4 KiB.
const COUNTERS_LOG2: u32 = 11;
/// How many counters there are.
const COUNTERS: usize = 1 << COUNTERS_LOG2;

/// The numbers of one worker. Kind: state.
#[derive(Debug)]
pub struct Identifications {
    next: Box<[u16]>,
    keys: [u64; 2],
}

impl Identifications {
    /// None is given out yet. `seed` is random and secret.
    #[must_use]
    pub fn new(seed: [u64; 2]) -> Identifications {
        let keys = [mix(seed[0] ^ 0x1d), mix(seed[1] ^ 0x1d)];
        // Counters that begin at different places tell nothing of each other.
        let next = (0..COUNTERS as u64).map(|n| low(mix(keys[0].wrapping_add(n)))).collect();
        Identifications { next, keys }
    }

    /// The number that a packet to `destination` leaves with, host order. `part` is which of how many parts of all numbers:
    /// workers have their own, and halves of those where what a worker numbers must not meet either.
    pub fn draw(&mut self, destination: [u8; 4], protocol: u8, part: (u16, u16)) -> u16 {
        let to = u64::from(u32::from_be_bytes(destination)) | u64::from(protocol) << 32;
        let at = usize::try_from(mix(to ^ self.keys[1]) >> (64 - COUNTERS_LOG2)).unwrap_or(0);
        let next = self.next[at].wrapping_add(1);
        self.next[at] = next;
        let (number, count) = part;
        // As many as bits can tell apart.
        let bits = 16 - count.max(1).next_power_of_two().trailing_zeros().min(15);
        let mask = u16::MAX >> (16 - bits);
        let part = u32::from(number) << bits;
        low(u64::from(part)) & !mask | self.scrambled(next & mask, mask, bits)
    }

    /// A permutation of the numbers up to `mask`: exclusive or, odd factors and shifts to the right each can be undone.
    fn scrambled(&self, number: u16, mask: u16, bits: u32) -> u16 {
        let [add, factor] = self.keys;
        let half = (bits / 2).max(1);
        let mut number = (number ^ low(add)) & mask;
        for round in 0..3u32 {
            number = number.wrapping_mul(low(factor >> (16 * round)) | 1) & mask;
            number ^= number >> half;
        }
        number
    }
}

/// Lowest sixteen bits.
const fn low(number: u64) -> u16 {
    (number & 0xffff) as u16
}

/// The finalizer of SplitMix64: every bit of the result depends on all of the argument.
const fn mix(number: u64) -> u64 {
    let mixed = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const TO: [u8; 4] = [198, 51, 100, 7];

    #[test]
    fn no_number_comes_twice_before_all_have_come() {
        // N-046, RFC 6864 section 4.3, with workers that know nothing of each other
        for workers in [1u16, 2, 3, 8, 64] {
            let part = 65_536 / u32::from(workers.next_power_of_two());
            let mut seen = BTreeSet::new();
            for worker in 0..workers {
                let mut numbers = Identifications::new([u64::from(worker) * 7 + 1, 9]);
                for _ in 0..part {
                    assert!(seen.insert(numbers.draw(TO, 17, (worker, workers))), "{worker} of {workers}");
                }
                let again = numbers.draw(TO, 17, (worker, workers));
                assert!(seen.contains(&again), "and then from the beginning");
            }
            assert_eq!(u32::try_from(seen.len()).unwrap(), part * u32::from(workers));
        }
    }

    #[test]
    fn destinations_do_not_wear_out_each_others_numbers() {
        let mut numbers = Identifications::new([3, 5]);
        let mut seen = BTreeSet::new();
        for n in 0..65_536u32 {
            assert!(seen.insert(numbers.draw(TO, 17, (0, 1))));
            // Those of few others share a counter with it.
            if n % 64 == 0 {
                numbers.draw([203, 0, 113, 9], 17, (0, 1));
            }
        }
    }

    #[test]
    fn the_next_number_is_not_the_next() {
        let draw = |seed| {
            let mut numbers = Identifications::new(seed);
            (0..1000).map(|_| numbers.draw(TO, 17, (0, 1))).collect::<Vec<_>>()
        };
        let (one, other) = (draw([1, 2]), draw([1, 3]));
        assert_ne!(one, other, "the secret counts");
        let steps: BTreeSet<u16> = one.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
        assert!(steps.len() > 100, "{}", steps.len());
    }
}
