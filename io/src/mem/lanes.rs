//! Eight 16-bit numbers compared at once.
//!
//! On x86_64 by SSE2, which every such processor has; elsewhere in two 64-bit words.

/// One bit per lane of `lanes` that holds `wanted`; lane 0 is the lowest 16 bits of the first word and bit 0, each following
/// lane is [`LANE_BITS`] bits further.
#[inline(always)]
#[must_use]
pub fn equal_lanes(lanes: &[u64; 2], wanted: u16) -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE2 is part of x86_64; nothing is read or written but the arguments' values.
    unsafe {
        use core::arch::x86_64::{_mm_cmpeq_epi16, _mm_movemask_epi8, _mm_set_epi64x, _mm_set1_epi16};
        let lanes = _mm_set_epi64x(lanes[1].cast_signed(), lanes[0].cast_signed());
        let equal = _mm_cmpeq_epi16(lanes, _mm_set1_epi16(wanted.cast_signed()));
        // Two equal bits per lane, of which the lower is kept.
        u64::from(_mm_movemask_epi8(equal).cast_unsigned() & 0x5555)
    }
    #[cfg(not(target_arch = "x86_64"))]
    equal_lanes_in_words(lanes, wanted)
}

/// Distance between the bits of two lanes that follow each other.
pub const LANE_BITS: u32 = 2;

/// The same where there is no instruction for it.
#[cfg(any(test, not(target_arch = "x86_64")))]
fn equal_lanes_in_words(lanes: &[u64; 2], wanted: u16) -> u64 {
    let mut bits = 0;
    for lane in (0..8).rev() {
        let equal = (lanes[lane / 4] >> (lane % 4 * 16)) & 0xffff == u64::from(wanted);
        bits = bits << LANE_BITS | u64::from(equal);
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_bit_says_that_a_lane_is_equal(numbers: [u16; 8], places in any::<u8>(), wanted: u16) {
            let mut lanes = [0; 2];
            let mut expected = 0;
            for (at, number) in numbers.into_iter().enumerate() {
                let shift = LANE_BITS as usize * at;
                let number = if places >> at & 1 == 1 { wanted } else { number };
                lanes[at / 4] |= u64::from(number) << (at % 4 * 16);
                expected |= u64::from(number == wanted) << shift;
            }
            prop_assert_eq!(equal_lanes(&lanes, wanted), expected);
            prop_assert_eq!(equal_lanes_in_words(&lanes, wanted), expected);
        }
    }
}
