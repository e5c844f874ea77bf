//! Internet checksums: sums over bytes, pseudo headers, and incremental updates.
//!
//! Owns RFC 1071 (the sum) and RFC 1624 (its update). Refuses to know headers: callers say which bytes.
//!
//! A one's complement sum does not depend on byte order (RFC 1071 section 2 (B)), so sums are kept the way memory is read and
//! turned to host order only at the end. They are kept wide, too: 32-bit words are added into 64 bits and carries are folded
//! once, so that the loop has no carry in it and the compiler may use vectors.
//!
//! Zero has two representations, `0x0000` and `0xffff`. A sum over bytes of which one is not zero is never `0x0000`, so a
//! computed checksum is `0xffff` only for all-zero data. Equation 3 of RFC 1624 keeps that: its result equals a full
//! recomputation for all data but all-zero data, where it yields `0x0000`, which does not verify. With a pseudo header or an
//! IP version in the sum that cannot happen; an ICMPv4 echo reply of zeros is the one case in practice, see
//! [`edit`](super::edit).

/// A one's complement sum that is still growing.
///
/// Every slice added must start at an even offset of what is summed; only the last may have odd length.
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub struct Sum(u64);

impl Sum {
    /// The empty sum.
    pub const ZERO: Sum = Sum(0);

    /// Adds bytes; an odd last byte is padded with zero (RFC 1071 section 1).
    #[inline]
    pub fn bytes(self, bytes: &[u8]) -> Sum {
        let (words, rest) = bytes.as_chunks::<8>();
        let mut sum = words.iter().map(|word| halves(*word)).sum();
        // The tail by halves and not by bytes: a loop here becomes a call of memcpy, slower than all the rest.
        let (long, rest) = head::<4>(rest);
        let (word, rest) = head::<2>(rest);
        sum += u64::from(u32::from_ne_bytes(long)) + u64::from(u16::from_ne_bytes(word));
        if let [last] = rest {
            sum += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        self.add(fold_32(sum))
    }

    /// As [`Sum::bytes`] for a length the compiler knows, a multiple of four up to 64: straight code.
    #[inline(always)]
    pub fn block<const N: usize>(self, bytes: &[u8; N]) -> Sum {
        const { assert!(N.is_multiple_of(4) && N <= 64, "a few whole words") };
        let (words, rest) = bytes.as_chunks::<8>();
        let sum: u64 = words.iter().map(|word| halves(*word)).sum();
        let rest = rest.first_chunk::<4>().map_or(0, |long| u32::from_ne_bytes(*long));
        self.add(sum + u64::from(rest))
    }

    /// Adds a 16-bit word given in host order.
    #[inline]
    pub fn word(self, word: u16) -> Sum {
        self.add(u64::from(word.to_be()))
    }

    /// Adds a 32-bit word given in host order.
    #[inline]
    pub fn long(self, long: u32) -> Sum {
        self.add(u64::from(long.to_be()))
    }

    /// Adds another sum, which must have been taken from an even offset.
    #[inline]
    pub fn sum(self, other: Sum) -> Sum {
        self.add(other.0)
    }

    /// Adds the IPv4 pseudo header of RFC 9293 section 3.1: addresses, zero, protocol, L4 length in bytes.
    #[inline]
    pub fn pseudo_v4(self, source: [u8; 4], destination: [u8; 4], protocol: u8, length: u16) -> Sum {
        self.add(u64::from(u32::from_ne_bytes(source)) + u64::from(u32::from_ne_bytes(destination)))
            .word(u16::from(protocol))
            .word(length)
    }

    /// Adds the IPv6 pseudo header of RFC 8200 section 8.1: addresses, L4 length in bytes, zero, next header.
    #[inline]
    pub fn pseudo_v6(self, source: [u8; 16], destination: [u8; 16], protocol: u8, length: u32) -> Sum {
        self.block(&source).block(&destination).long(length).word(u16::from(protocol))
    }

    /// The sum in 16 bits, host order, not complemented; `0xffff` for data whose stored checksum is right.
    #[inline]
    #[must_use]
    pub fn fold(self) -> u16 {
        u16::from_be(fold_16(self.0))
    }

    /// The checksum to store, host order: the complement of the sum.
    #[inline]
    #[must_use]
    pub fn checksum(self) -> u16 {
        !self.fold()
    }

    /// The checksum to store in UDP: a computed zero is sent as `0xffff` (RFC 768, N-071).
    #[inline]
    #[must_use]
    pub fn udp_checksum(self) -> u16 {
        never_zero(self.checksum())
    }

    /// Whether data that includes its stored checksum is intact.
    #[inline]
    #[must_use]
    pub fn verifies(self) -> bool {
        self.fold() == 0xffff
    }

    #[inline(always)]
    fn add(self, value: u64) -> Sum {
        // What is added is below 2^47 (all of the longest packet, not folded), so only after 2^17 packets could this
        // overflow. It is folded once, at the end: in between that would be most of the work.
        Sum(self.0 + value)
    }
}

/// Both 32-bit halves of eight bytes, added.
#[inline(always)]
fn halves(word: [u8; 8]) -> u64 {
    let word = u64::from_ne_bytes(word);
    (word >> 32) + (word & 0xffff_ffff)
}

/// The first `N` bytes, or zeros where there are fewer, and what follows them.
#[inline(always)]
fn head<const N: usize>(bytes: &[u8]) -> ([u8; N], &[u8]) {
    match bytes.split_first_chunk::<N>() {
        Some((head, rest)) => (*head, rest),
        None => ([0; N], bytes),
    }
}

/// What an edit adds to a sum: `~m + m'` of RFC 1624 for every 16-bit word that changes, not folded.
///
/// [`Delta::NONE`] changes nothing. Kept as memory is read, like [`Sum`], and folded once, where it is applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[must_use]
pub struct Delta(u64);

/// A multiple of 0xffff, which is a zero of these sums, and more than any folded one.
const ZERO_ABOVE: u64 = (1 << 48) - 1;
const _: () = assert!(ZERO_ABOVE.is_multiple_of(0xffff));

impl Delta {
    /// The edit that changes nothing.
    pub const NONE: Delta = Delta(0);

    /// The change of one word, host order both.
    #[inline(always)]
    pub fn word(old: u16, new: u16) -> Delta {
        Delta::NONE.and_word(old, new)
    }

    /// The change of a run of bytes at an even offset.
    #[inline]
    pub fn bytes<const N: usize>(old: &[u8; N], new: &[u8; N]) -> Delta {
        const { assert!(N.is_multiple_of(2), "a change starts and ends on 16-bit words") };
        Delta::sum(Sum::ZERO.bytes(old), Sum::ZERO.bytes(new))
    }

    /// The change of everything that two sums were taken over.
    #[inline(always)]
    pub fn sum(old: Sum, new: Sum) -> Delta {
        Delta(ZERO_ABOVE - fold_32(old.0) + fold_32(new.0))
    }

    /// The change of a few whole 32-bit words at an even offset.
    #[inline(always)]
    pub fn blocks<const N: usize>(old: &[u8; N], new: &[u8; N]) -> Delta {
        // Neither sum has more than 37 bits.
        Delta(ZERO_ABOVE - Sum::ZERO.block(old).0 + Sum::ZERO.block(new).0)
    }

    /// This change and that of one word, host order both.
    #[inline(always)]
    pub fn and_word(self, old: u16, new: u16) -> Delta {
        Delta(self.0 + u64::from((!old).to_be()) + u64::from(new.to_be()))
    }

    /// Both changes.
    #[inline(always)]
    pub fn and(self, other: Delta) -> Delta {
        Delta(self.0 + other.0)
    }

    /// The change in 16 bits; see [`Delta::from_bits`].
    #[inline]
    #[must_use]
    pub fn bits(self) -> u16 {
        u16::from_be(fold_16(self.0))
    }

    /// The change whose [`Delta::bits`] these are.
    #[inline(always)]
    pub const fn from_bits(bits: u16) -> Delta {
        Delta(bits.to_be() as u64)
    }

    /// The checksum after the change, host order: `HC' = ~(~HC + ~m + m')` (RFC 1624 section 3 equation 3, N-070).
    #[inline(always)]
    #[must_use]
    pub fn apply(self, checksum: u16) -> u16 {
        !u16::from_be(fold_16(u64::from((!checksum).to_be()) + self.0))
    }

    /// As [`Delta::apply`] with the rules of UDP: zero stays zero, a computed zero becomes `0xffff` (N-071).
    #[inline(always)]
    #[must_use]
    pub fn apply_udp(self, checksum: u16) -> u16 {
        if checksum == 0 { 0 } else { never_zero(self.apply(checksum)) }
    }
}

/// `checksum`, or `0xffff` for zero.
#[inline]
fn never_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

/// Below 2^33, equal to `sum` modulo 2^32 - 1.
#[inline(always)]
fn fold_32(sum: u64) -> u64 {
    (sum >> 32) + (sum & 0xffff_ffff)
}

/// The sum in 16 bits with end-around carry; zero only for zero.
///
/// A number plus itself turned by half its width has both halves' sum in its upper half, the carry out of it included, since
/// that is the carry out of the lower half too.
#[inline(always)]
fn fold_16(sum: u64) -> u16 {
    let sum = (sum.wrapping_add(sum.rotate_left(32)) >> 32) as u32;
    (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}
