//! A STUN client and server (RFC 8489, RFC 5780): what a NAT looks like from inside, told by somebody outside.
//!
//! Owns Binding requests and answers, as far as finding out how a NAT maps and filters needs them. Refuses to know what it
//! should find. The server has two addresses and two ports and answers from any of the four when it is asked to.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Magic cookie (RFC 8489 section 5).
const COOKIE: u32 = 0x2112_a442;
/// Binding request and its answer.
const REQUEST: u16 = 0x0001;
const ANSWER: u16 = 0x0101;
/// Attributes: CHANGE-REQUEST and OTHER-ADDRESS (RFC 5780 section 7), XOR-MAPPED-ADDRESS.
const CHANGE_REQUEST: u16 = 0x0003;
const OTHER_ADDRESS: u16 = 0x802c;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
/// Flags of CHANGE-REQUEST.
const CHANGE_ADDRESS: u32 = 4;
const CHANGE_PORT: u32 = 2;
/// Requests sent before nobody is thought to answer.
const TRIES: u32 = 3;

/// What was found out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Behaviour {
    /// How it maps (RFC 5780 section 4.3): `endpoint-independent`, `address-dependent` or `address-and-port-dependent`.
    pub mapping: String,
    /// Whom it lets in (section 4.4), in the same words.
    pub filtering: String,
    /// As what the server saw the client first.
    pub seen_as: SocketAddr,
}

/// Where to ask.
#[derive(Debug, Clone, clap::Args)]
pub struct StunOptions {
    /// The server's first address and port.
    #[arg(long)]
    pub target: SocketAddr,
    /// Own address and port; the next port is used too.
    #[arg(long)]
    pub from: SocketAddr,
    /// Longest wait for one answer in milliseconds.
    #[arg(long, default_value_t = 500)]
    pub timeout_ms: u64,
}

/// A request and the attributes of its answer.
struct Asker {
    socket: UdpSocket,
    timeout: Duration,
    /// Number of the next transaction.
    next: u64,
}

impl Asker {
    fn new(from: SocketAddr, timeout: Duration) -> io::Result<Asker> {
        Ok(Asker { socket: UdpSocket::bind(from)?, timeout, next: u64::from(std::process::id()) << 32 })
    }

    /// Asks `server`, to be answered from elsewhere by `change`; `None`: nobody answers.
    fn ask(&mut self, server: SocketAddr, change: u32) -> io::Result<Option<Vec<u8>>> {
        self.next += 1;
        let mut id = COOKIE.to_be_bytes().to_vec();
        id.extend([0; 4]);
        id.extend(self.next.to_be_bytes());
        let request = message(REQUEST, &id, &[(CHANGE_REQUEST, change.to_be_bytes().to_vec())]);
        for _ in 0..TRIES {
            self.socket.send_to(&request, server)?;
            let until = Instant::now() + self.timeout;
            while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                self.socket.set_read_timeout(Some(left))?;
                let mut buffer = [0u8; 512];
                // A port unreachable about an earlier request is no answer either.
                let Ok((length, _)) = self.socket.recv_from(&mut buffer) else { continue };
                if buffer[..2] == ANSWER.to_be_bytes() && buffer[4..20] == id[..] {
                    return Ok(Some(buffer[..length].to_vec()));
                }
            }
        }
        Ok(None)
    }

    /// The same, and as what it was seen.
    fn seen(&mut self, server: SocketAddr) -> Result<SocketAddr> {
        let answer = self.ask(server, 0)?.with_context(|| format!("{server} does not answer"))?;
        address(&answer, XOR_MAPPED_ADDRESS).context("an answer without an address")
    }
}

/// Finds out how the NAT between here and the server behaves.
///
/// # Errors
/// When the server does not answer, or has only one address.
pub fn find_out(options: &StunOptions) -> Result<Behaviour> {
    let timeout = Duration::from_millis(options.timeout_ms);
    let mut asker = Asker::new(options.from, timeout)?;
    let first = asker.ask(options.target, 0)?.context("the server does not answer")?;
    let seen_as = address(&first, XOR_MAPPED_ADDRESS).context("an answer without an address")?;
    let other = address(&first, OTHER_ADDRESS).context("the server has no other address")?;
    let second = asker.seen(SocketAddr::new(other.ip(), options.target.port()))?;
    let third = asker.seen(other)?;
    let mapping = match (second == seen_as, third == second) {
        (true, _) => "endpoint-independent",
        (false, true) => "address-dependent",
        (false, false) => "address-and-port-dependent",
    };
    // From a port that has spoken to nobody else.
    let fresh = SocketAddr::new(options.from.ip(), options.from.port() + 1);
    let mut asker = Asker::new(fresh, timeout)?;
    asker.seen(options.target)?;
    let filtering = if asker.ask(options.target, CHANGE_ADDRESS | CHANGE_PORT)?.is_some() {
        "endpoint-independent"
    } else if asker.ask(options.target, CHANGE_PORT)?.is_some() {
        "address-dependent"
    } else {
        "address-and-port-dependent"
    };
    Ok(Behaviour { mapping: mapping.into(), filtering: filtering.into(), seen_as })
}

/// Serves until the process ends, at both addresses and both ports; prints `stun ready` when all four listen.
///
/// # Errors
/// When a socket cannot be opened.
pub fn serve(addresses: [IpAddr; 2], ports: [u16; 2]) -> Result<()> {
    let at = |n: usize| SocketAddr::new(addresses[n >> 1], ports[n & 1]);
    let sockets = [0, 1, 2, 3].map(|n| UdpSocket::bind(at(n)).with_context(|| format!("STUN at {}", at(n))));
    let sockets = sockets.into_iter().collect::<Result<Vec<_>>>()?;
    println!("stun ready");
    std::thread::scope(|scope| {
        for n in 0..sockets.len() {
            let sockets = &sockets;
            scope.spawn(move || {
                let mut buffer = [0u8; 512];
                loop {
                    let Ok((length, from)) = sockets[n].recv_from(&mut buffer) else { continue };
                    let Some((change, id)) = asked(&buffer[..length]) else { continue };
                    let flip = usize::from(change & CHANGE_ADDRESS != 0) << 1 | usize::from(change & CHANGE_PORT != 0);
                    let other = (OTHER_ADDRESS, plain(at(n ^ 3)));
                    let answer = message(ANSWER, id, &[(XOR_MAPPED_ADDRESS, xored(from, id)), other]);
                    drop(sockets[n ^ flip].send_to(&answer, from));
                }
            });
        }
    });
    Ok(())
}

/// A message; `id` is cookie and transaction.
fn message(kind: u16, id: &[u8], attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (kind, value) in attributes {
        body.extend(kind.to_be_bytes());
        body.extend(u16::try_from(value.len()).unwrap_or(0).to_be_bytes());
        body.extend(value);
    }
    let length = u16::try_from(body.len()).unwrap_or(0);
    [&kind.to_be_bytes()[..], &length.to_be_bytes(), id, &body].concat()
}

/// What a request asks for, and its cookie and transaction.
fn asked(request: &[u8]) -> Option<(u32, &[u8])> {
    let id = request.get(4..20)?;
    (request[..2] == REQUEST.to_be_bytes() && id[..4] == COOKIE.to_be_bytes()).then_some(())?;
    let change = attribute(request, CHANGE_REQUEST).and_then(|value| value.try_into().ok());
    Some((change.map_or(0, u32::from_be_bytes), id))
}

fn attribute(message: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut rest = message.get(20..)?;
    while let [a, b, c, d, more @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*c, *d]));
        if u16::from_be_bytes([*a, *b]) == wanted {
            return more.get(..length);
        }
        rest = more.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// An address as MAPPED-ADDRESS has it (RFC 8489 section 14.1).
fn plain(address: SocketAddr) -> Vec<u8> {
    let family = if address.is_ipv4() { 1 } else { 2 };
    let mut value = vec![0, family];
    value.extend(address.port().to_be_bytes());
    match address.ip() {
        IpAddr::V4(v4) => value.extend(v4.octets()),
        IpAddr::V6(v6) => value.extend(v6.octets()),
    }
    value
}

/// The same, so that no NAT takes it for an address of its own to change (section 14.2).
fn xored(address: SocketAddr, id: &[u8]) -> Vec<u8> {
    let mut value = plain(address);
    let keys = id[..2].iter().chain(id);
    value[2..].iter_mut().zip(keys).for_each(|(byte, key)| *byte ^= key);
    value
}

fn address(message: &[u8], kind: u16) -> Option<SocketAddr> {
    let mut value = attribute(message, kind)?.to_vec();
    if kind == XOR_MAPPED_ADDRESS {
        let id = message.get(4..20)?;
        let keys = id[..2].iter().chain(id);
        value.get_mut(2..)?.iter_mut().zip(keys).for_each(|(byte, key)| *byte ^= key);
    }
    let port = u16::from_be_bytes([*value.get(2)?, *value.get(3)?]);
    let ip = match value.get(4..)? {
        bytes if bytes.len() == 4 => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        bytes => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_nat_everybody_may_send() {
        let free = || UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let ports = [free(), free()];
        let addresses = [[127, 0, 0, 1], [127, 0, 0, 2]].map(IpAddr::from);
        std::thread::spawn(move || serve(addresses, ports).unwrap());
        let from = SocketAddr::from(([127, 0, 0, 3], free()));
        let options = StunOptions { target: SocketAddr::new(addresses[0], ports[0]), from, timeout_ms: 1000 };
        let found = find_out(&options).unwrap();
        assert_eq!(
            (found.mapping.as_str(), found.filtering.as_str()),
            ("endpoint-independent", "endpoint-independent")
        );
        assert_eq!(found.seen_as, from);
    }

    #[test]
    fn addresses_survive_the_exclusive_or() {
        let mut id = COOKIE.to_be_bytes().to_vec();
        id.extend(1..=12u8);
        for text in ["192.0.2.7:4660", "[2001:db8::7]:65535"] {
            let known: SocketAddr = text.parse().unwrap();
            let told = message(ANSWER, &id, &[(OTHER_ADDRESS, plain(known)), (XOR_MAPPED_ADDRESS, xored(known, &id))]);
            assert_eq!(address(&told, XOR_MAPPED_ADDRESS), Some(known));
            assert_eq!(address(&told, OTHER_ADDRESS), Some(known));
        }
    }
}
