//! Bytes that can be checked: a stream everyone can make from an offset, and a checksum of what arrived.
//!
//! Owns the rule and the sum; refuses to know who sends. The stream never repeats within any transfer we make, so a
//! segment lost, doubled or swapped changes the sum.

/// The stream: byte `n` belongs to word `n / 8`, and a word is a hash of its number (SplitMix64), little endian.
///
/// Fills `buffer` with the bytes from `offset` on.
pub fn fill(offset: u64, buffer: &mut [u8]) {
    let mut at = offset;
    let mut rest = buffer;
    while !rest.is_empty() {
        let word = word(at / 8).to_le_bytes();
        let skip = usize::from(word_offset(at));
        let count = rest.len().min(8 - skip);
        let (now, later) = rest.split_at_mut(count);
        now.copy_from_slice(&word[skip..skip + count]);
        at += count as u64;
        rest = later;
    }
}

fn word_offset(at: u64) -> u8 {
    (at & 7) as u8
}

fn word(number: u64) -> u64 {
    let mut value = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A running FNV-1a sum of 64 bits over a byte stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checksum(u64);

impl Default for Checksum {
    fn default() -> Self {
        Checksum(0xcbf2_9ce4_8422_2325)
    }
}

impl Checksum {
    /// Takes the next bytes of the stream.
    pub fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// The sum as 16 hexadecimal digits.
    pub fn text(self) -> String {
        format!("{:016x}", self.0)
    }
}

/// Checksum of the first `bytes` bytes of the stream.
pub fn expected(bytes: u64) -> String {
    let mut sum = Checksum::default();
    let mut buffer = [0u8; 65536];
    let mut at = 0u64;
    while at < bytes {
        let count = usize::try_from(bytes - at).unwrap_or(buffer.len()).min(buffer.len());
        fill(at, &mut buffer[..count]);
        sum.add(&buffer[..count]);
        at += count as u64;
    }
    sum.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_of_the_stream_is_the_same_stream() {
        let mut whole = [0u8; 1000];
        fill(0, &mut whole);
        for cut in [1, 7, 8, 9, 500, 999] {
            let mut parts = [0u8; 1000];
            fill(0, &mut parts[..cut]);
            fill(cut as u64, &mut parts[cut..]);
            assert_eq!(whole, parts);
        }
    }

    #[test]
    fn the_sum_sees_a_swap() {
        let mut bytes = [0u8; 4096];
        fill(0, &mut bytes);
        let mut sum = Checksum::default();
        sum.add(&bytes);
        assert_eq!(sum.text(), expected(4096));
        let (left, right) = bytes.split_at_mut(2048);
        left.swap_with_slice(right);
        let mut swapped = Checksum::default();
        swapped.add(&bytes);
        assert_ne!(sum, swapped);
    }

    #[test]
    fn the_sum_is_fnv_1a() {
        // Published test vector: FNV-1a 64 of "a" is af63dc4c8601ec8c.
        let mut sum = Checksum::default();
        sum.add(b"a");
        assert_eq!(sum.text(), "af63dc4c8601ec8c");
    }
}
