//! Which gateway carries an address: what agents on workers ask gateways, and are told.
//!
//! Owns two datagrams. A worker has to know where its pods' packets go within a second of a gateway's death, whether the API
//! answers or not, so it asks the gateways themselves, over UDP at the port of their heartbeats. The question and its answer
//! have the same length, so that nobody is flooded by questions in his name; an answer counts only with the number of the
//! question, which nobody who did not see it can guess. What an answer can do at most is to choose among gateways that the
//! asker knows anyway.
//!
//! ```text
//!  magic "TgCq" or "TgCa" (4) | version (1) | count (1) | zero (2)
//!  number of the question (8)
//!  count times: address, IPv4 mapped (16) | milliseconds for which it has been carried, or all ones: it is not (4)
//! ```
//!
//! Numbers are in network order. In a question the milliseconds are all ones.

use std::net::{IpAddr, Ipv6Addr};

/// Addresses of one question, so that it fits into one packet of any underlay.
pub const ADDRESSES_MAX: usize = 48;
/// Length of the longest question and of the longest answer in bytes.
pub const BYTES_MAX: usize = HEAD_BYTES + ADDRESSES_MAX * ENTRY_BYTES;

const QUESTION: [u8; 4] = *b"TgCq";
const ANSWER: [u8; 4] = *b"TgCa";
const VERSION: u8 = 1;
const HEAD_BYTES: usize = 16;
const ENTRY_BYTES: usize = 20;
/// It is not carried.
const NOT: u32 = u32::MAX;

/// Who carries these addresses?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Not to be foreseen.
    pub number: u64,
    /// At most [`ADDRESSES_MAX`].
    pub addresses: Vec<IpAddr>,
}

/// What one gateway says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// That of the question.
    pub number: u64,
    /// Each address of the question, in its order, with the milliseconds for which this gateway has carried it; none: it does
    /// not. While an address changes hands two may carry it: the younger one goes on to.
    pub carried: Vec<(IpAddr, Option<u32>)>,
}

impl Question {
    /// The datagram; what is more than [`ADDRESSES_MAX`] is not asked.
    pub fn encode(&self) -> Vec<u8> {
        encode(QUESTION, self.number, self.addresses.iter().map(|address| (*address, None)))
    }

    /// Reads a datagram; `None`: it is none of these.
    pub fn decode(bytes: &[u8]) -> Option<Question> {
        let (number, entries) = decode(QUESTION, bytes)?;
        let unsaid = entries.iter().all(|(_, carried)| carried.is_none());
        unsaid.then(|| Question { number, addresses: entries.into_iter().map(|(address, _)| address).collect() })
    }
}

impl Answer {
    /// The datagram, as long as the question was.
    pub fn encode(&self) -> Vec<u8> {
        encode(ANSWER, self.number, self.carried.iter().copied())
    }

    /// Reads a datagram; `None`: it is none of these.
    pub fn decode(bytes: &[u8]) -> Option<Answer> {
        let (number, carried) = decode(ANSWER, bytes)?;
        Some(Answer { number, carried })
    }
}

fn encode(magic: [u8; 4], number: u64, entries: impl Iterator<Item = (IpAddr, Option<u32>)>) -> Vec<u8> {
    let entries: Vec<_> = entries.take(ADDRESSES_MAX).collect();
    let mut bytes = Vec::with_capacity(HEAD_BYTES + entries.len() * ENTRY_BYTES);
    bytes.extend(magic);
    bytes.extend([VERSION, u8::try_from(entries.len()).unwrap_or(u8::MAX), 0, 0]);
    bytes.extend(number.to_be_bytes());
    for (address, carried_ms) in entries {
        let mapped = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        bytes.extend(mapped.octets());
        bytes.extend(carried_ms.map_or(NOT, |ms| ms.min(NOT - 1)).to_be_bytes());
    }
    bytes
}

type Entries = Vec<(IpAddr, Option<u32>)>;

fn decode(magic: [u8; 4], bytes: &[u8]) -> Option<(u64, Entries)> {
    let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>()?;
    let [m0, m1, m2, m3, VERSION, count, 0, 0, number @ ..] = *head else { return None };
    let count = usize::from(count);
    if [m0, m1, m2, m3] != magic || count > ADDRESSES_MAX || rest.len() != count * ENTRY_BYTES {
        return None;
    }
    let entry = |bytes: &[u8; ENTRY_BYTES]| {
        let (address, ms) = bytes.split_first_chunk::<16>()?;
        let ms = u32::from_be_bytes(ms.try_into().ok()?);
        Some((Ipv6Addr::from(*address).to_canonical(), (ms != NOT).then_some(ms)))
    };
    let (entries, _) = rest.as_chunks::<ENTRY_BYTES>();
    Some((u64::from_be_bytes(number), entries.iter().map(entry).collect::<Option<_>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(count: u8) -> Vec<IpAddr> {
        let v4 = (0..count).map(|n| IpAddr::from([192, 0, 2, n]));
        v4.chain((0..count).map(|n| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(n)]))).collect()
    }

    #[test]
    fn what_is_written_is_read_and_answers_are_no_longer_than_questions() {
        let question = Question { number: 0x0123_4567_89ab_cdef, addresses: addresses(24) };
        let bytes = question.encode();
        assert_eq!((bytes.len(), Question::decode(&bytes)), (BYTES_MAX, Some(question.clone())));
        assert_eq!(Answer::decode(&bytes), None, "a question is no answer");
        let carried = question.addresses.iter().enumerate().map(|(n, address)| (*address, (n % 2 == 0).then_some(7)));
        let answer = Answer { number: question.number, carried: carried.collect() };
        let said = answer.encode();
        assert_eq!((said.len(), Answer::decode(&said)), (bytes.len(), Some(answer)));
        assert_eq!(Question::decode(&said), None);
    }

    #[test]
    fn what_is_cut_off_or_more_is_nothing() {
        let bytes = Question { number: 1, addresses: addresses(2) }.encode();
        for length in 0..bytes.len() {
            assert_eq!(Question::decode(&bytes[..length]), None, "{length} bytes");
        }
        let longer: Vec<u8> = bytes.iter().copied().chain([0]).collect();
        assert_eq!(Question::decode(&longer), None);
        let mut other = bytes.clone();
        other[4] = 2;
        assert_eq!(Question::decode(&other), None, "another version");
        let many = Question { number: 1, addresses: addresses(40) };
        assert_eq!(Question::decode(&many.encode()).unwrap().addresses.len(), ADDRESSES_MAX);
    }
}
