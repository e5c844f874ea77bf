//! The clients: HTTP, UDP and echo requests with a chosen source, each told in one line of JSON.
//!
//! Owns the asking side of every check; refuses to know what the answers should be. The lab runs these in namespace
//! `client` as processes of their own: real sockets of the kernel, nothing of Tidegate in them.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use crate::pod::{ECHO_MARK, Who};
use crate::sctp;
use crate::stun::{self, Behaviour, StunOptions};

/// HTTP: one request per connection.
mod http;
/// Many connections from many sources.
mod spread;
/// Numbered messages, one after the other.
mod stream;

pub use http::{download, hold, upload, who};
pub use spread::{Spread, SpreadOptions, held, spread};
pub use stream::{Streamed, stream, unix_ms};

/// Where a client speaks from and to, and how long it waits.
#[derive(Debug, Clone, Args)]
pub struct Way {
    /// Address and port to speak to.
    #[arg(long)]
    pub target: SocketAddr,
    /// Own address and port; port 0 lets the kernel choose.
    #[arg(long)]
    pub from: Option<SocketAddr>,
    /// Longest wait for one step in milliseconds.
    #[arg(long, default_value_t = 3000)]
    pub timeout_ms: u64,
}

/// What a client can do.
#[derive(Debug, Clone, Subcommand)]
pub enum Task {
    /// GET /who.
    Who(Way),
    /// GET /bytes/N and check the content; the first line tells the pod as soon as it answers.
    Download {
        /// From where to where.
        #[command(flatten)]
        way: Way,
        /// Bytes to ask for.
        #[arg(long)]
        bytes: u64,
        /// Bytes per second the pod shall send at most.
        #[arg(long)]
        rate: Option<u64>,
    },
    /// POST /upload with content and compare the pod's sum.
    Upload {
        /// From where to where.
        #[command(flatten)]
        way: Way,
        /// Bytes to send.
        #[arg(long)]
        bytes: u64,
    },
    /// Many connections, each from a source address and port of its own.
    Spread(SpreadOptions),
    /// Many connections that are opened first, then silent for a while, then asked over.
    Hold {
        /// Which.
        #[command(flatten)]
        options: SpreadOptions,
        /// Milliseconds of silence; the first line of output tells when it begins.
        #[arg(long)]
        silence_ms: u64,
    },
    /// One datagram, one answer.
    Udp(Way),
    /// Repeat GET /who until it succeeds.
    Await {
        /// From where to where; the timeout is that of one attempt.
        #[command(flatten)]
        way: Way,
        /// Longest wait for the first success in milliseconds.
        #[arg(long, default_value_t = 10_000)]
        limit_ms: u64,
    },
    /// GET /who again and again, and the longest time without an answer.
    Knock {
        /// From where to where; the timeout is that of one attempt.
        #[command(flatten)]
        way: Way,
        /// For how long, in milliseconds; the first line tells when it begins.
        #[arg(long)]
        for_ms: u64,
    },
    /// Numbered messages that the pod sends back; the first line tells when the first one came.
    Stream {
        /// From where to where; the timeout is the silence after which nothing more is waited for.
        #[command(flatten)]
        way: Way,
        /// For how long, in milliseconds.
        #[arg(long)]
        for_ms: u64,
        /// Milliseconds between two messages.
        #[arg(long, default_value_t = 10)]
        every_ms: u64,
        /// Over a TCP connection instead of as datagrams.
        #[arg(long)]
        tcp: bool,
    },
    /// Echo requests; the port of the target is not used.
    Ping {
        /// From where to where.
        #[command(flatten)]
        way: Way,
        /// How many.
        #[arg(long, default_value_t = 3)]
        count: u16,
        /// Bytes of each.
        #[arg(long, default_value_t = 48)]
        bytes: u16,
    },
    /// One datagram of so many bytes, which the pod sends back.
    Echo {
        /// From where to where.
        #[command(flatten)]
        way: Way,
        /// Bytes of it.
        #[arg(long)]
        bytes: u16,
    },
    /// A connection without a server: both ends connect to each other (RFC 9293 section 3.5, figure 7).
    Meet(Way),
    /// An INIT of SCTP and its answer.
    Associate(Way),
    /// How the NAT on the way maps and filters.
    Stun(StunOptions),
}

/// Outcome of one exchange.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// It worked.
    pub ok: bool,
    /// `refused`, `timeout`, `reset`, `unreachable`, `content` or `other`; empty when it worked.
    pub failure: String,
    /// The failure in words.
    pub error: String,
    /// Who answered, when known.
    pub who: Option<Who>,
    /// Pod that answered, when known.
    pub pod: String,
    /// Bytes moved.
    pub bytes: u64,
    /// Milliseconds from the first step to the last.
    pub took_ms: u64,
}

/// Does one task and prints its outcome; every outcome, good or bad, is a line of JSON on standard output.
/// Returns whether it was good.
///
/// # Errors
/// When the outcome cannot be told.
pub fn perform(task: &Task) -> Result<bool> {
    match task {
        Task::Who(way) => tell(&judged(|| who(way))),
        Task::Download { way, bytes, rate } => tell(&judged(|| download(way, *bytes, *rate))),
        Task::Upload { way, bytes } => tell(&judged(|| upload(way, *bytes))),
        Task::Spread(options) => tell(&spread(options)?),
        Task::Hold { options, silence_ms } => tell(&held(options, Duration::from_millis(*silence_ms))?),
        Task::Udp(way) => tell(&judged(|| udp(way))),
        Task::Await { way, limit_ms } => {
            let began = Instant::now();
            println!("waiting");
            loop {
                let mut outcome = judged(|| who(way));
                if outcome.ok || began.elapsed() >= Duration::from_millis(*limit_ms) {
                    outcome.took_ms = millis(began.elapsed());
                    return tell(&outcome);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Task::Knock { way, for_ms } => {
            println!("knocking");
            tell(&knock(way, Duration::from_millis(*for_ms)))
        }
        Task::Stream { way, for_ms, every_ms, tcp } => {
            tell(&stream(way, Duration::from_millis(*for_ms), Duration::from_millis(*every_ms), *tcp))
        }
        Task::Ping { way, count, bytes } => tell(&judged(|| ping(way, *count, *bytes))),
        Task::Echo { way, bytes } => tell(&judged(|| echo(way, *bytes))),
        Task::Meet(way) => tell(&judged(|| meet(way))),
        Task::Associate(way) => tell(&judged(|| sctp::associate(way))),
        Task::Stun(options) => tell(&stun::find_out(options)?),
    }
}

/// Outcome of asking again and again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Knocked {
    /// Answers.
    pub ok: u32,
    /// Attempts without one.
    pub failed: u32,
    /// Longest time between two answers in milliseconds, before the first and after the last one too.
    pub longest_gap_ms: u64,
    /// The first failure.
    pub error: String,
}

/// Asks for so long, one connection after the other with a few milliseconds between them.
fn knock(way: &Way, time: Duration) -> Knocked {
    let began = Instant::now();
    let mut knocked = Knocked::default();
    let mut answered = began;
    while began.elapsed() < time {
        let outcome = judged(|| who(way));
        if outcome.ok {
            knocked.ok += 1;
            knocked.longest_gap_ms = knocked.longest_gap_ms.max(millis(answered.elapsed()));
            answered = Instant::now();
        } else {
            knocked.failed += 1;
            if knocked.error.is_empty() {
                knocked.error = outcome.error;
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    knocked.longest_gap_ms = knocked.longest_gap_ms.max(millis(answered.elapsed()));
    knocked
}

/// What tells by itself whether it is good.
trait Told: Serialize {
    fn is_good(&self) -> bool;
}

impl Told for Outcome {
    fn is_good(&self) -> bool {
        self.ok
    }
}

impl Told for Spread {
    fn is_good(&self) -> bool {
        self.failed == 0
    }
}

impl Told for Behaviour {
    fn is_good(&self) -> bool {
        true
    }
}

impl Told for Knocked {
    fn is_good(&self) -> bool {
        self.failed == 0
    }
}

fn tell(outcome: &impl Told) -> Result<bool> {
    println!("{}", serde_json::to_string(outcome)?);
    Ok(outcome.is_good())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Turns an error into the outcome that tells it.
fn judged(exchange: impl FnOnce() -> io::Result<Outcome>) -> Outcome {
    let began = Instant::now();
    let mut outcome = exchange().unwrap_or_else(|error| Outcome {
        failure: failure(&error).into(),
        error: error.to_string(),
        ..Outcome::default()
    });
    outcome.took_ms = millis(began.elapsed());
    outcome
}

fn failure(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "refused",
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "timeout",
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "reset",
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "unreachable",
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => "content",
        _ => "other",
    }
}

fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn open(way: &Way, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(way.target), kind, Some(protocol))?;
    if let Some(from) = way.from {
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
    }
    Ok(socket)
}

/// Sends one datagram and waits for the answer.
///
/// # Errors
/// As the socket says.
pub fn udp(way: &Way) -> io::Result<Outcome> {
    let socket = open(way, Type::DGRAM, Protocol::UDP)?;
    socket.connect(&way.target.into())?;
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(Duration::from_millis(way.timeout_ms)))?;
    socket.send(b"who?")?;
    let mut buffer = [0u8; 2048];
    let count = socket.recv(&mut buffer)?;
    let who: Who = serde_json::from_slice(&buffer[..count])?;
    Ok(Outcome { ok: true, pod: who.pod.clone(), who: Some(who), ..Outcome::default() })
}

/// Sends `count` echo requests one after the other; all must be answered.
///
/// # Errors
/// As the socket says; `InvalidData` for an answer to another question.
pub fn ping(way: &Way, count: u16, bytes: u16) -> io::Result<Outcome> {
    let (protocol, request_kind, reply_kind) =
        if way.target.is_ipv4() { (Protocol::ICMPV4, 8u8, 0u8) } else { (Protocol::ICMPV6, 128, 129) };
    let socket = open(way, Type::DGRAM, protocol)?;
    socket.connect(&SocketAddr::new(way.target.ip(), 0).into())?;
    // A "ping" socket (icmp(7)): the kernel fills identifier and checksum; the calls are those of any datagram socket.
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(Duration::from_millis(way.timeout_ms)))?;
    for sequence in 0..count {
        let mut message = vec![request_kind, 0, 0, 0, 0, 0];
        message.extend(sequence.to_be_bytes());
        message.resize(message.len() + usize::from(bytes), 0x5a);
        socket.send(&message)?;
        let mut buffer = vec![0u8; 65_536];
        let length = socket.recv(&mut buffer)?;
        let same = length == message.len() && buffer[0] == reply_kind && buffer[6..length] == message[6..];
        if !same {
            return Err(wrong(format!("echo {sequence}: {length} bytes of type {}", buffer[0])));
        }
    }
    Ok(Outcome { ok: true, bytes: u64::from(count), ..Outcome::default() })
}

/// Sends one datagram of `bytes` bytes, in fragments where it has to be, until it comes back the same. The first may be lost:
/// who answers over IPv6 hears by it how much the path carries.
///
/// # Errors
/// As the socket says.
pub fn echo(way: &Way, bytes: u16) -> io::Result<Outcome> {
    const TRIES: u32 = 3;
    let socket = open(way, Type::DGRAM, Protocol::UDP)?;
    socket.connect(&way.target.into())?;
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(Duration::from_millis(way.timeout_ms)))?;
    let mut message = ECHO_MARK.to_vec();
    message.extend((0..=250u8).cycle().take(usize::from(bytes).saturating_sub(ECHO_MARK.len())));
    let mut buffer = vec![0u8; 65_536];
    for tries in 1..=TRIES {
        socket.send(&message)?;
        match socket.recv(&mut buffer) {
            Ok(count) if buffer[..count] == message[..] => {
                return Ok(Outcome { ok: true, bytes: bytes.into(), ..Outcome::default() });
            }
            Ok(count) => return Err(wrong(format!("{count} bytes that are not those sent"))),
            Err(error) if tries == TRIES => return Err(error),
            Err(_) => {}
        }
    }
    Err(wrong("no try"))
}

/// Connects to somebody who connects to us, and exchanges a word.
///
/// # Errors
/// As the socket says.
pub fn meet(way: &Way) -> io::Result<Outcome> {
    const WORD: [u8; 5] = *b"hello";
    let socket = open(way, Type::STREAM, Protocol::TCP)?;
    println!("{{}}");
    socket.connect_timeout(&way.target.into(), Duration::from_millis(way.timeout_ms))?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_millis(way.timeout_ms)))?;
    stream.write_all(&WORD)?;
    let mut heard = [0; WORD.len()];
    stream.read_exact(&mut heard)?;
    if heard == WORD { Ok(Outcome { ok: true, ..Outcome::default() }) } else { Err(wrong("another word")) }
}

/// Hands out source ports, so that no two checks of one lab meet in a connection that is not quite over.
#[derive(Debug)]
pub struct SourcePorts(AtomicU16);

impl Default for SourcePorts {
    fn default() -> Self {
        SourcePorts(AtomicU16::new(10_000))
    }
}

impl SourcePorts {
    /// The first of `count` ports nobody had before.
    pub fn take(&self, count: u16) -> u16 {
        self.0.fetch_add(count, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::{self, PodOptions};

    fn way(port: u16) -> Way {
        Way { target: SocketAddr::from(([127, 0, 0, 1], port)), from: None, timeout_ms: 5000 }
    }

    #[test]
    fn client_and_pod_understand_each_other() {
        // Two ports that were free a moment ago.
        let tcp_port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let udp_port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        std::thread::spawn(move || {
            pod::serve(&PodOptions { name: "p9".into(), tcp_port, udp_port, sctp_port: None }).unwrap()
        });
        let mut tries = 0;
        while !judged(|| who(&way(tcp_port))).ok {
            tries += 1;
            assert!(tries < 1000, "the pod does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        let seen = who(&way(tcp_port)).unwrap().who.unwrap();
        assert_eq!((seen.pod.as_str(), seen.local.port()), ("p9", tcp_port));
        assert_eq!(download(&way(tcp_port), 100_001, None).unwrap().bytes, 100_001);
        assert_eq!(upload(&way(tcp_port), 100_001).unwrap().pod, "p9");
        assert_eq!(udp(&way(udp_port)).unwrap().pod, "p9");
        for (tcp, port) in [(true, tcp_port), (false, udp_port)] {
            let streamed = stream(&way(port), Duration::from_millis(200), Duration::from_millis(2), tcp);
            assert_eq!((streamed.lost, streamed.error.as_str()), (0, ""), "{streamed:?}");
            assert!((1..=100).contains(&streamed.sent), "{streamed:?}");
            assert!(streamed.last_answer_ms > 0);
        }
        let options = SpreadOptions {
            target: way(tcp_port).target,
            count: 40,
            from: vec![[127, 0, 0, 2].into(), [127, 0, 0, 3].into()],
            first_port: 20_000,
            timeout_ms: 5000,
            pause_ms: 0,
            parallel: 4,
        };
        let spread = spread(&options).unwrap();
        assert_eq!((spread.ok, spread.failed, spread.by_pod["p9"]), (40, 0, 40), "{spread:?}");
        assert_eq!(spread.sources.len(), 2);
    }

    #[test]
    fn refusal_is_told_apart() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let outcome = judged(|| who(&way(port)));
        assert_eq!((outcome.ok, outcome.failure.as_str()), (false, "refused"));
    }

    #[test]
    fn spread_refuses_what_does_not_fit() {
        let mut options = SpreadOptions {
            target: way(1).target,
            count: 3000,
            from: Vec::new(),
            first_port: 65_000,
            timeout_ms: 1,
            pause_ms: 0,
            parallel: 4,
        };
        assert!(spread(&options).unwrap_err().to_string().contains("at least one"));
        options.from.push([127, 0, 0, 2].into());
        assert!(spread(&options).unwrap_err().to_string().contains("do not fit"));
    }
}
