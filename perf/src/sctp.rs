//! SCTP's first exchange over raw sockets: an INIT and its answer (RFC 9260 section 5.1).
//!
//! Owns both ends of it. What a gateway decides about an association it decides at the INIT, and whether it was
//! translated rightly shows in the answer: ports, verification tag, and the sum over the whole packet. Refuses to carry
//! data. Many kernels are built without SCTP; raw sockets they all have, and a kernel leaves alone what one of them
//! takes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::client::{Outcome, Way};
use crate::pod::Who;

/// SCTP among the protocols of IP.
const SCTP: i32 = 132;
/// Bytes of the common header (section 3.1): ports, verification tag, checksum.
const COMMON_BYTES: usize = 12;
/// Bytes of an INIT or INIT ACK without parameters (sections 3.3.2 and 3.3.3).
const INIT_BYTES: usize = 20;
/// Types of these chunks.
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
/// The parameter that an answer must have (section 3.3.3.1): a server's word to itself, here whom it saw.
const STATE_COOKIE: u16 = 7;
/// Room that each end offers: receive window in bytes, and streams each way.
const WINDOW_BYTES: u32 = 65_536;
const STREAMS: u16 = 1;
/// Longest packet that is looked at, bytes.
const PACKET_BYTES_MAX: usize = 2048;
/// Longest wait for the next packet before it is looked whether to go on.
const LOOKS_EVERY: Duration = Duration::from_millis(50);

/// A packet of one INIT or INIT ACK.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Greeting {
    kind: u8,
    source_port: u16,
    destination_port: u16,
    /// Verification tag: 0 of an INIT, of the answer what the INIT said.
    tag: u32,
    /// What the other end is to write there; never 0.
    initiate_tag: u32,
    /// Content of the state cookie; empty: there is none.
    cookie: Vec<u8>,
}

impl Greeting {
    /// The packet, behind the IP header.
    fn emit(&self) -> Vec<u8> {
        let cookie_bytes = if self.cookie.is_empty() { 0 } else { 4 + self.cookie.len() };
        let mut bytes = Vec::with_capacity(COMMON_BYTES + INIT_BYTES + cookie_bytes + 3);
        bytes.extend(self.source_port.to_be_bytes());
        bytes.extend(self.destination_port.to_be_bytes());
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend([self.kind, 0]);
        bytes.extend(short(INIT_BYTES + cookie_bytes).to_be_bytes());
        bytes.extend(self.initiate_tag.to_be_bytes());
        bytes.extend(WINDOW_BYTES.to_be_bytes());
        bytes.extend([STREAMS.to_be_bytes(), STREAMS.to_be_bytes()].concat());
        bytes.extend(self.initiate_tag.to_be_bytes()); // the first TSN may be any
        if cookie_bytes > 0 {
            bytes.extend(STATE_COOKIE.to_be_bytes());
            bytes.extend(short(cookie_bytes).to_be_bytes());
            bytes.extend(&self.cookie);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        // Appendix A: the least significant byte comes first.
        let sum = crc32c::crc32c(&bytes).to_le_bytes();
        bytes[8..COMMON_BYTES].copy_from_slice(&sum);
        bytes
    }

    /// What a packet says; `None`: it is no such packet.
    ///
    /// # Errors
    /// Its sum is wrong.
    fn parse(bytes: &[u8]) -> io::Result<Option<Greeting>> {
        let Some((common, chunk)) = bytes.split_at_checked(COMMON_BYTES) else { return Ok(None) };
        let Some((fixed, parameters)) = chunk.split_at_checked(INIT_BYTES) else { return Ok(None) };
        if ![INIT, INIT_ACK].contains(&fixed[0]) {
            return Ok(None);
        }
        let sum = crc32c::crc32c_append(crc32c::crc32c(&[&common[..8], &[0; 4]].concat()), chunk);
        if common[8..] != sum.to_le_bytes() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer with a wrong CRC32c"));
        }
        let u16_at = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let u32_at =
            |bytes: &[u8], at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let cookie = match parameters.split_at_checked(4) {
            Some((head, rest)) if u16_at(head, 0) == STATE_COOKIE => {
                usize::from(u16_at(head, 2)).checked_sub(4).and_then(|length| rest.get(..length))
            }
            _ => None,
        };
        Ok(Some(Greeting {
            kind: fixed[0],
            source_port: u16_at(common, 0),
            destination_port: u16_at(common, 2),
            tag: u32_at(common, 4),
            initiate_tag: u32_at(fixed, 4),
            cookie: cookie.unwrap_or_default().to_vec(),
        }))
    }
}

fn short(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

/// A raw socket at an address; what of IP it reads is [`without_ip`]'s business. The calls are those of any datagram
/// socket.
fn raw(address: IpAddr) -> io::Result<UdpSocket> {
    let at = SocketAddr::new(address, 0);
    let socket = Socket::new(Domain::for_address(at), Type::RAW, Some(Protocol::from(SCTP)))?;
    socket.bind(&at.into())?;
    Ok(socket.into())
}

/// What a raw socket has read: over IPv4 the IP header stands before it (raw(7)).
fn without_ip(bytes: &[u8], is_v4: bool) -> &[u8] {
    match bytes.first() {
        Some(first) if is_v4 => bytes.get(usize::from(first & 0xf) * 4..).unwrap_or_default(),
        _ => bytes,
    }
}

/// Answers INITs to `port` in both families, on threads of its own, with the name of who answers and whom it saw.
///
/// # Errors
/// When a socket cannot be opened: it takes CAP_NET_RAW.
pub fn answer(name: &str, port: u16) -> Result<()> {
    for address in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
        let socket = raw(address).with_context(|| format!("SCTP at {address}"))?;
        let name = name.to_owned();
        std::thread::spawn(move || answer_at(&socket, &name, SocketAddr::new(address, port)));
    }
    Ok(())
}

fn answer_at(socket: &UdpSocket, name: &str, local: SocketAddr) {
    let mut buffer = [0; PACKET_BYTES_MAX];
    loop {
        let Ok((count, from)) = socket.recv_from(&mut buffer) else { continue };
        let bytes = without_ip(&buffer[..count], local.is_ipv4());
        // One with a wrong sum is dropped (section 6.8), as what is none of ours.
        let Ok(Some(init)) = Greeting::parse(bytes) else { continue };
        if (init.kind, init.destination_port, init.tag) != (INIT, local.port(), 0) {
            continue;
        }
        let who = Who { pod: name.into(), remote: SocketAddr::new(from.ip(), init.source_port), local };
        let Ok(cookie) = serde_json::to_vec(&who) else { continue };
        let answer = Greeting {
            kind: INIT_ACK,
            source_port: local.port(),
            destination_port: init.source_port,
            tag: init.initiate_tag,
            initiate_tag: init.initiate_tag.rotate_left(7) | 1,
            cookie,
        };
        drop(socket.send_to(&answer.emit(), SocketAddr::new(from.ip(), 0)));
    }
}

/// Sends an INIT and waits for its answer.
///
/// # Errors
/// As the socket says; `InvalidData` for an answer that is none to this INIT.
pub fn associate(way: &Way) -> io::Result<Outcome> {
    let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let from = way.from.ok_or_else(|| wrong("a raw socket needs --from with a port".into()))?;
    let socket = raw(from.ip())?;
    socket.connect(SocketAddr::new(way.target.ip(), 0))?;
    socket.set_read_timeout(Some(LOOKS_EVERY))?;
    let tag = std::process::id() | 1 << 31;
    let (source_port, destination_port) = (from.port(), way.target.port());
    let init = Greeting { kind: INIT, source_port, destination_port, tag: 0, initiate_tag: tag, cookie: Vec::new() };
    socket.send(&init.emit())?;
    let (began, limit) = (Instant::now(), Duration::from_millis(way.timeout_ms));
    let mut buffer = [0; PACKET_BYTES_MAX];
    while began.elapsed() < limit {
        let count = match socket.recv(&mut buffer) {
            Ok(count) => count,
            // Sent again as by the timer T1-init (RFC 9260 section 5.1), if sooner.
            Err(error) if [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut].contains(&error.kind()) => {
                socket.send(&init.emit())?;
                continue;
            }
            Err(error) => return Err(error),
        };
        let Some(heard) = Greeting::parse(without_ip(&buffer[..count], way.target.is_ipv4()))? else { continue };
        // Other clients of this address hear each other.
        if (heard.source_port, heard.destination_port) != (destination_port, source_port) {
            continue;
        }
        if (heard.kind, heard.tag) != (INIT_ACK, tag) || heard.initiate_tag == 0 {
            return Err(wrong(format!("no answer to this INIT: {heard:?}")));
        }
        let who: Who = serde_json::from_slice(&heard.cookie)?;
        return Ok(Outcome { ok: true, pod: who.pod.clone(), who: Some(who), ..Outcome::default() });
    }
    Err(io::ErrorKind::TimedOut.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_one_bit_is_noticed() {
        for cookie in [&b""[..], b"a", b"four", b"and some more"] {
            let greeting = Greeting {
                kind: if cookie.is_empty() { INIT } else { INIT_ACK },
                source_port: 3868,
                destination_port: 40_000,
                tag: 0x8000_0001,
                initiate_tag: 7,
                cookie: cookie.to_vec(),
            };
            let bytes = greeting.emit();
            assert_eq!((bytes.len() % 4, Greeting::parse(&bytes).unwrap()), (0, Some(greeting)));
            for at in 0..bytes.len() {
                let mut other = bytes.clone();
                other[at] ^= 1 << (at % 8);
                assert!(!matches!(Greeting::parse(&other), Ok(Some(_))), "byte {at}");
            }
            for end in 0..bytes.len() {
                assert!(!matches!(Greeting::parse(&bytes[..end]), Ok(Some(_))), "{end} bytes");
            }
        }
        assert_eq!(Greeting::parse(&[0; 64]).unwrap(), None);
    }

    #[test]
    fn the_header_of_ip_is_passed_over() {
        let long = [&[0x46][..], &[0; 23], b"rest"].concat();
        assert_eq!(without_ip(&long, true), b"rest");
        assert_eq!(without_ip(b"rest", false), b"rest");
        assert_eq!(without_ip(&[0x4f, 1], true), b"");
    }

    /// RFC 9260 appendix A and RFC 3720 appendix B.4: the sum of 32 zeros.
    #[test]
    fn the_sum_is_castagnolis() {
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
    }
}
