//! SCTP packets (RFC 9260): the common header, its CRC32c, and what the chunks say about the association.
//!
//! Owns the checksum, the walk over chunks, and the ABORT that answers a packet nobody waits for. Refuses to know
//! associations: which tags are right is the business of whoever remembers them.
//!
//! The checksum covers ports and chunks and no address (section 6.8), so new addresses leave it alone and new ports change it.
//! A CRC is linear: the change of four bytes at the front is the same whatever follows, and depends on how much that is.
//! So the checksum is changed and not made anew, and a packet that was damaged stays so for its receiver (N-075).
//!
//! Addresses that INIT and INIT ACK list are neither read nor changed (N-093): a peer with several addresses is reached at
//! the one that the packet came from.

use zerocopy::byteorder::little_endian;
use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::packet::{self, Fragment, L3};
use super::{Family, Malformed, ipv4, ipv6, protocol, tcp};
use crate::mutation::{self, Mutation};

/// Length of the common header.
pub const HEADER_LEN: usize = 12;
/// Where the checksum is, from the start of the header.
pub const CHECKSUM_OFFSET: usize = 8;
/// Chunks that are looked at; what comes after them is carried. A bundle of control chunks has two or three.
const CHUNKS_MAX: usize = 32;
/// Type, flags and length of a chunk.
const CHUNK_HEADER_LEN: usize = 4;
/// Fixed part of INIT and INIT ACK: sixteen bytes follow the chunk header (section 3.3.2).
const INIT_LEN: usize = 20;

const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const ERROR: u8 = 9;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
const SHUTDOWN_COMPLETE: u8 = 14;
/// RFC 8260 section 2.1.
const I_DATA: u8 = 64;
/// The T bit of ABORT and SHUTDOWN COMPLETE: the tag is the receiver's own, sent back (section 8.5.1).
const REFLECTED: u8 = 1;

/// The SCTP common header (RFC 9260 section 3.1).
///
/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |          source port          |       destination port        |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                       verification tag                        |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |            checksum (CRC32c, least significant byte first)    |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    source_port: U16,
    destination_port: U16,
    tag: U32,
    checksum: little_endian::U32,
}

impl Header {
    /// Source port, host order.
    #[inline]
    #[must_use]
    pub fn source_port(&self) -> u16 {
        self.source_port.get()
    }

    /// Destination port, host order.
    #[inline]
    #[must_use]
    pub fn destination_port(&self) -> u16 {
        self.destination_port.get()
    }

    /// Verification tag, host order.
    #[inline]
    #[must_use]
    pub fn tag(&self) -> u32 {
        self.tag.get()
    }
}

/// Borrows the common header at the front of `packet`.
///
/// # Errors
/// [`Malformed::SctpTruncated`].
#[inline]
pub fn parse(packet: &[u8]) -> Result<(&Header, &[u8]), Malformed> {
    Header::ref_from_prefix(packet).map_err(|_| Malformed::SctpTruncated)
}

/// What the first chunk amounts to in the control bits of TCP, and the initiate tag of an INIT: INIT opens as a SYN does,
/// ABORT resets, SHUTDOWN in its three forms ends. INIT ACK is no SYN-ACK: clients send it too (section 5.2.1). Zero without
/// a chunk.
#[cold]
#[must_use]
pub fn in_words_of_tcp(chunks: &[u8]) -> (u8, u32) {
    match chunks.first() {
        None => (0, 0),
        Some(&INIT) => (tcp::SYN, initiate_tag(chunks).unwrap_or(0)),
        Some(&ABORT) => (tcp::RST, 0),
        Some(&(SHUTDOWN | SHUTDOWN_ACK | SHUTDOWN_COMPLETE)) => (tcp::FIN | tcp::ACK, 0),
        Some(_) => (tcp::ACK, 0),
    }
}

fn initiate_tag(chunk: &[u8]) -> Option<u32> {
    chunk.get(CHUNK_HEADER_LEN..)?.first_chunk().map(|tag| u32::from_be_bytes(*tag))
}

/// What a packet says about its association.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saying {
    /// The sender wants one, and packets to it are to bear this tag.
    Init(u32),
    /// The answer to that, with the tag of the one who answers.
    InitAck(u32),
    /// The answer was heard.
    CookieEcho,
    /// The association stands.
    CookieAck,
    /// The sender has no more to say.
    Shutdown,
    /// Nor has the other.
    ShutdownAck,
    /// It is over.
    ShutdownComplete {
        /// The tag is the receiver's own, sent back.
        reflected: bool,
    },
    /// It is over at once.
    Abort {
        /// The tag is the receiver's own, sent back.
        reflected: bool,
    },
    /// Data, acknowledgements, heartbeats, and what we do not know.
    Other,
}

/// What a packet says, and its verification tag; `packet` is the whole of it from the common header on.
///
/// `None` for what no SCTP sends: no chunk, one that runs past the packet, an INIT with a tag or without one to give, INIT,
/// INIT ACK or SHUTDOWN COMPLETE in company (section 6.10), any other packet with tag zero (section 8.5).
#[must_use]
pub fn read(packet: &[u8]) -> Option<(Saying, u32)> {
    let (header, chunks) = parse(packet).ok()?;
    let tag = header.tag();
    let saying = match *chunks.first()? {
        INIT | INIT_ACK | SHUTDOWN_COMPLETE => alone(chunks)?,
        _ => bundle(chunks)?,
    };
    let tagged_right = matches!(saying, Saying::Init(_)) == (tag == 0);
    tagged_right.then_some((saying, tag))
}

/// The one chunk of a packet that must not have another.
fn alone(chunks: &[u8]) -> Option<Saying> {
    let (chunk, rest) = split(chunks)?;
    let given = || initiate_tag(chunk).filter(|tag| *tag != 0 && chunk.len() >= INIT_LEN);
    let saying = match *chunk.first()? {
        INIT => Saying::Init(given()?),
        INIT_ACK => Saying::InitAck(given()?),
        _ => Saying::ShutdownComplete { reflected: is_reflected(chunk) },
    };
    rest.is_empty().then_some(saying)
}

/// The most final of several chunks. Control chunks come before data (section 6.10), so that data ends the walk.
fn bundle(mut chunks: &[u8]) -> Option<Saying> {
    let mut saying = Saying::Other;
    for _ in 0..CHUNKS_MAX {
        if chunks.is_empty() {
            break;
        }
        let (chunk, rest) = split(chunks)?;
        saying = match *chunk.first()? {
            ABORT => return Some(Saying::Abort { reflected: is_reflected(chunk) }),
            INIT | INIT_ACK | SHUTDOWN_COMPLETE => return None,
            DATA | I_DATA => break,
            COOKIE_ECHO => Saying::CookieEcho,
            COOKIE_ACK => Saying::CookieAck,
            SHUTDOWN => Saying::Shutdown,
            SHUTDOWN_ACK => Saying::ShutdownAck,
            _ => saying,
        };
        chunks = rest;
    }
    Some(saying)
}

/// The chunk at the front, and what follows its padding. The last one may lack the padding.
fn split(chunks: &[u8]) -> Option<(&[u8], &[u8])> {
    let &[_, _, high, low] = chunks.first_chunk::<CHUNK_HEADER_LEN>()?;
    let len = usize::from(u16::from_be_bytes([high, low]));
    if len < CHUNK_HEADER_LEN {
        return None;
    }
    let chunk = chunks.get(..len)?;
    Some((chunk, chunks.get(len.next_multiple_of(4)..).unwrap_or_default()))
}

fn is_reflected(chunk: &[u8]) -> bool {
    chunk.get(1).is_some_and(|flags| flags & REFLECTED != 0)
}

/// Whether the checksum of a whole packet is right. One pass over it.
#[must_use]
pub fn checksum_verifies(packet: &[u8]) -> bool {
    parse(packet).is_ok_and(|(header, _)| header.checksum.get() == checksum(packet))
}

/// The CRC32c of a packet as if its checksum field were zero (section 6.8).
fn checksum(packet: &[u8]) -> u32 {
    let (front, rest) = packet.split_at_checked(CHECKSUM_OFFSET).unwrap_or((packet, &[]));
    let chunks = rest.get(4..).unwrap_or_default();
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(front), &[0; 4]), chunks)
}

/// Gives a whole packet other ports. False (nothing written) if it has no common header.
#[cold]
#[must_use]
pub fn set_ports(packet: &mut [u8], source_port: u16, destination_port: u16) -> bool {
    let len = packet.len();
    let Ok((header, _)) = Header::mut_from_prefix(packet) else { return false };
    let from = (header.source_port(), header.destination_port());
    header.checksum = (header.checksum.get() ^ ports_delta(from, (source_port, destination_port), len)).into();
    header.source_port = source_port.into();
    header.destination_port = destination_port.into();
    true
}

/// What other ports change in the checksum of a packet of `len` bytes: to be added without carry.
#[must_use]
pub(super) fn ports_delta(from: (u16, u16), to: (u16, u16), len: usize) -> u32 {
    const ZEROS: [u8; 1024] = [0; 1024];
    if mutation::is(Mutation::CrcAsItCame) {
        return 0;
    }
    let word = |(source, destination): (u16, u16)| u32::from(source) << 16 | u32::from(destination);
    let difference = (word(from) ^ word(to)).to_be_bytes();
    // The register of a CRC that starts from zero; the crate's runs from all ones to all ones.
    let mut crc = crc32c::crc32c_append(u32::MAX, &difference);
    let mut left = len.saturating_sub(difference.len());
    while left > 0 {
        let step = left.min(ZEROS.len());
        crc = crc32c::crc32c_append(crc, ZEROS.get(..step).unwrap_or_default());
        left -= step;
    }
    !crc
}

/// Length of our ABORT, from the common header on.
const ABORT_LEN: usize = HEADER_LEN + CHUNK_HEADER_LEN;
/// The same as IP headers count it.
const ABORT_LEN_IP: u16 = 16;
const _: () = assert!(ABORT_LEN == ABORT_LEN_IP as usize);

/// Writes the IP packet that answers one for which there is no association (section 8.4), and returns its length, 36 or 56.
///
/// `packet` is the question from its IP header on, `l3` what parse said of it. `None` (nothing written) if `out` is too small
/// or no answer may be sent: to ABORT, SHUTDOWN COMPLETE, COOKIE ACK and ERROR, to what is no whole SCTP packet, and to
/// addresses that are no single host. SHUTDOWN ACK is answered by SHUTDOWN COMPLETE, an INIT under the tag that it gives,
/// everything else under its own, which the T bit says.
pub fn emit_abort(out: &mut [u8], packet: &[u8], l3: &L3) -> Option<usize> {
    if l3.protocol != protocol::SCTP || l3.fragment != Fragment::None || packet::is_martian_source(packet, l3.family) {
        return None;
    }
    let segment = packet.get(usize::from(l3.l4_offset)..usize::from(l3.total_len))?;
    let (kind, flags, tag) = match read(segment)? {
        (Saying::Abort { .. } | Saying::ShutdownComplete { .. } | Saying::CookieAck, _) => return None,
        (Saying::Other, _) if segment.get(HEADER_LEN) == Some(&ERROR) => return None,
        (Saying::Init(given), _) => (ABORT, 0, given),
        (Saying::ShutdownAck, tag) => (SHUTDOWN_COMPLETE, REFLECTED, tag),
        (_, tag) => (ABORT, REFLECTED, tag),
    };
    let header = Header {
        source_port: l3.destination_port.into(),
        destination_port: l3.source_port.into(),
        tag: tag.into(),
        checksum: 0.into(),
    };
    let mut answer = [0u8; ABORT_LEN];
    answer.first_chunk_mut::<HEADER_LEN>()?.copy_from_slice(header.as_bytes());
    answer.last_chunk_mut::<CHUNK_HEADER_LEN>()?.copy_from_slice(&[kind, flags, 0, 4]);
    let sum = checksum(&answer).to_le_bytes();
    answer.get_mut(CHECKSUM_OFFSET..HEADER_LEN)?.copy_from_slice(&sum);
    let header_len = emit_ip(out, packet, l3.family)?;
    out.get_mut(header_len..header_len + ABORT_LEN)?.copy_from_slice(&answer);
    Some(header_len + ABORT_LEN)
}

/// The IP header of the answer to `packet`; its length.
fn emit_ip(out: &mut [u8], packet: &[u8], family: Family) -> Option<usize> {
    match family {
        Family::V4 => {
            let (destination, source) = ipv4::addresses(packet);
            let repr = ipv4::Repr {
                source,
                destination,
                protocol: protocol::SCTP,
                payload_len: ABORT_LEN_IP,
                ttl: ipv4::TTL_DEFAULT,
                tos: 0,
                identification: 0,
                dont_fragment: true,
            };
            (source[0] < 224).then_some(())?;
            repr.emit(out.get_mut(..ipv4::HEADER_LEN + ABORT_LEN)?)?;
            Some(ipv4::HEADER_LEN)
        }
        Family::V6 => {
            let (destination, source) = ipv6::addresses(packet);
            let repr = ipv6::Repr {
                source,
                destination,
                next_header: protocol::SCTP,
                payload_len: ABORT_LEN_IP,
                hop_limit: ipv6::HOP_LIMIT_DEFAULT,
                traffic_class: 0,
                flow_label: 0,
            };
            (source[0] != 0xff).then_some(())?;
            repr.emit(out.get_mut(..ipv6::HEADER_LEN + ABORT_LEN)?)?;
            Some(ipv6::HEADER_LEN)
        }
    }
}
