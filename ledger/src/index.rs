//! Entries by which records are found.
//!
//! An index is a header and entries of [`ENTRY_BYTES`], all little-endian: as they came while its file is open, sorted
//! by address and first port once it is closed. It holds no fact that its file does not hold; a lost one is made anew.

use std::hash::Hasher;
use std::net::IpAddr;

use siphasher::sip::SipHasher13;

use crate::record::{Holding, Kept, Remote, Subject};

/// Bytes of a header.
pub const HEADER_BYTES: usize = 32;
/// Bytes of an entry.
pub const ENTRY_BYTES: usize = 32;
/// First bytes of an index: a name and a version.
const MAGIC: [u8; 8] = *b"tgnatix1";

/// What is known of all entries of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Header {
    /// Whether entries are sorted; then the file is closed and the other fields hold.
    pub sorted: bool,
    /// Widest block less one: how far below a port the first one of its block may lie.
    pub reach: u16,
    /// How many bytes of the file of records it covers.
    pub covered: u64,
    /// How many entries it has; 0: nobody counted.
    pub count: u32,
}

impl Header {
    /// As it stands in a file.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8] = u8::from(self.sorted);
        bytes[10..12].copy_from_slice(&self.reach.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.count.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.covered.to_le_bytes());
        bytes
    }

    /// From a file; `None`: that is no index of this version.
    pub fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let [m0, m1, m2, m3, m4, m5, m6, m7, sorted, _, r0, r1, n0, n1, n2, n3, c @ ..] = *bytes;
        let [c0, c1, c2, c3, c4, c5, c6, c7, ..] = c;
        ([m0, m1, m2, m3, m4, m5, m6, m7] == MAGIC).then(|| Header {
            sorted: sorted != 0,
            reach: u16::from_le_bytes([r0, r1]),
            count: u32::from_le_bytes([n0, n1, n2, n3]),
            covered: u64::from_le_bytes([c0, c1, c2, c3, c4, c5, c6, c7]),
        })
    }
}

/// What an entry's record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// Writing began.
    Start = 0,
    /// Ports were handed out.
    Begin = 1,
    /// Ports were taken back.
    End = 2,
    /// Records were lost.
    Gap = 3,
}

/// Where one record stands, and what it is about. The order of fields is the order of a sorted index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Hash of the external address; 0 for a start and a gap.
    pub key: u64,
    /// First port.
    pub first: u16,
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// Byte of the file at which the line begins.
    pub offset: u32,
    /// Last port.
    pub last: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// What happened.
    pub event: Event,
    /// Hash of the other end; 0: the ports are for everyone.
    pub remote: u32,
}

impl Entry {
    /// The entry of a record whose line begins at `offset`.
    pub fn of(record: &impl Kept, offset: u32) -> Self {
        let at_ms = record.at().as_millisecond();
        let of_nobody = |event| Entry { key: 0, first: 0, at_ms, offset, last: 0, protocol: 0, event, remote: 0 };
        let (event, holding) = match record.subject() {
            Subject::Start => return of_nobody(Event::Start),
            Subject::Gap => return of_nobody(Event::Gap),
            // It never stands in an index; that it happened is known while its file is open.
            Subject::Other => return of_nobody(Event::Begin),
            Subject::Begin(holding) => (Event::Begin, holding),
            Subject::End(holding) => (Event::End, holding),
        };
        let Holding { external, ports: (first, last), protocol, remote, .. } = holding;
        Entry {
            key: key(*external),
            first: *first,
            at_ms,
            offset,
            last: *last,
            protocol: protocol.number(),
            event,
            remote: remote.map_or(0, remote_hash),
        }
    }

    /// As it stands in a file.
    pub fn to_bytes(self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..8].copy_from_slice(&self.key.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.at_ms.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.offset.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.remote.to_le_bytes());
        bytes[24..26].copy_from_slice(&self.first.to_le_bytes());
        bytes[26..28].copy_from_slice(&self.last.to_le_bytes());
        (bytes[28], bytes[29]) = (self.protocol, self.event as u8);
        bytes
    }

    /// From a file; `None`: an event that this version does not know.
    pub fn from_bytes(bytes: &[u8; ENTRY_BYTES]) -> Option<Self> {
        let word = |at: usize| -> [u8; 8] { std::array::from_fn(|i| bytes.get(at + i).copied().unwrap_or_default()) };
        let half = |at: usize| -> [u8; 4] { std::array::from_fn(|i| bytes.get(at + i).copied().unwrap_or_default()) };
        let port = |at: usize| -> [u8; 2] { std::array::from_fn(|i| bytes.get(at + i).copied().unwrap_or_default()) };
        let event = match bytes[29] {
            0 => Event::Start,
            1 => Event::Begin,
            2 => Event::End,
            3 => Event::Gap,
            _ => return None,
        };
        Some(Entry {
            key: u64::from_le_bytes(word(0)),
            first: u16::from_le_bytes(port(24)),
            at_ms: i64::from_le_bytes(word(8)),
            offset: u32::from_le_bytes(half(16)),
            last: u16::from_le_bytes(port(26)),
            protocol: bytes[28],
            event,
            remote: u32::from_le_bytes(half(20)),
        })
    }
}

/// The hash under which records of an external address are filed; never 0, which is a start's and a gap's.
pub fn key(address: IpAddr) -> u64 {
    let mut hasher = hasher();
    match address {
        IpAddr::V4(v4) => hasher.write(&v4.octets()),
        IpAddr::V6(v6) => hasher.write(&v6.octets()),
    }
    hasher.finish().max(1)
}

/// The hash of the other end; never 0, which is everyone.
pub fn remote_hash(remote: Remote) -> u32 {
    let mut hasher = hasher();
    hasher.write_u64(key(remote.ip()));
    hasher.write_u16(remote.port());
    u32::try_from(hasher.finish() >> 32).unwrap_or_default().max(1)
}

/// Not keyed: whoever can write records can write the index as well.
fn hasher() -> SipHasher13 {
    SipHasher13::new()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn entries_and_headers_survive_a_file(
            key: u64, first: u16, last: u16, at_ms: i64, offset: u32, remote: u32, protocol: u8, event in 0u8..4,
            sorted: bool, covered: u64, count: u32,
        ) {
            let event = [Event::Start, Event::Begin, Event::End, Event::Gap][usize::from(event)];
            let entry = Entry { key, first, at_ms, offset, last, protocol, event, remote };
            prop_assert_eq!(Entry::from_bytes(&entry.to_bytes()), Some(entry));
            let header = Header { sorted, reach: first, covered, count };
            prop_assert_eq!(Header::from_bytes(&header.to_bytes()), Some(header));
            prop_assert_eq!(Header::from_bytes(&[0; 32]), None);
        }
    }
}
