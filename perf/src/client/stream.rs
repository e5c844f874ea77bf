//! A stream of numbered messages, each of which the pod sends back: how many were lost, how long it was silent at most, and
//! when it was answered last.

use std::io::{self, BufReader, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use socket2::{Protocol, Type};

use super::{Told, Way, http, millis, open};
use crate::pod::ECHO_MARK;

/// A mark and a number.
const MESSAGE_BYTES: usize = ECHO_MARK.len() + 4;

/// Outcome of a stream.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Streamed {
    /// Messages sent.
    pub sent: u32,
    /// Messages of which none came back.
    pub lost: u32,
    /// Longest time between two answers in milliseconds.
    pub longest_gap_ms: u64,
    /// When the last answer came, milliseconds of Unix time; 0: never.
    pub last_answer_ms: u64,
    /// What ended it early.
    pub error: String,
}

impl Told for Streamed {
    fn is_good(&self) -> bool {
        self.lost == 0 && self.sent > 0 && self.error.is_empty()
    }
}

/// Milliseconds of Unix time: two processes of one machine compare them.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}

/// What the messages go over.
enum Line {
    Datagrams(UdpSocket),
    Bytes(BufReader<TcpStream>, Vec<u8>),
}

impl Line {
    fn open(way: &Way, tcp: bool) -> io::Result<Line> {
        if tcp {
            return Ok(Line::Bytes(http::echo(way)?, Vec::new()));
        }
        let socket = open(way, Type::DGRAM, Protocol::UDP)?;
        socket.connect(&way.target.into())?;
        Ok(Line::Datagrams(socket.into()))
    }

    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Line::Datagrams(socket) => socket.send(message).map(drop),
            Line::Bytes(reader, _) => reader.get_mut().write_all(message),
        }
    }

    /// The number of the next message that comes back, if one does before so long.
    fn receive(&mut self, wait: Duration) -> io::Result<Option<u32>> {
        let wait = Some(wait.max(Duration::from_millis(1)));
        let mut buffer = [0u8; MESSAGE_BYTES];
        let read = match self {
            Line::Datagrams(socket) => {
                socket.set_read_timeout(wait)?;
                socket.recv(&mut buffer)
            }
            Line::Bytes(reader, part) => {
                reader.get_mut().set_read_timeout(wait)?;
                let missing = MESSAGE_BYTES - part.len();
                reader.read(&mut buffer[..missing]).and_then(|count| {
                    part.extend_from_slice(&buffer[..count]);
                    match part.len() {
                        _ if count == 0 => Err(io::ErrorKind::UnexpectedEof.into()),
                        MESSAGE_BYTES => {
                            buffer.copy_from_slice(part);
                            part.clear();
                            Ok(MESSAGE_BYTES)
                        }
                        _ => Err(io::ErrorKind::WouldBlock.into()),
                    }
                })
            }
        };
        match read {
            Ok(_) => Ok(Some(u32::from_be_bytes([buffer[4], buffer[5], buffer[6], buffer[7]]))),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Sends a message every `every` for `time`, and tells what came back until nothing did for the way's timeout. The first
/// line of output says that the stream runs.
pub fn stream(way: &Way, time: Duration, every: Duration, tcp: bool) -> Streamed {
    let mut streamed = Streamed::default();
    if let Err(error) = run(way, time, every, tcp, &mut streamed) {
        streamed.error = error.to_string();
    }
    streamed
}

fn run(way: &Way, time: Duration, every: Duration, tcp: bool, streamed: &mut Streamed) -> io::Result<()> {
    let mut line = Line::open(way, tcp)?;
    let silence = Duration::from_millis(way.timeout_ms);
    let began = Instant::now();
    let (mut answered_at, mut moved_at) = (began, began);
    let mut answered: Vec<bool> = Vec::new();
    // Of the next message. What a machine that stood still has kept from being sent is not sent at once afterwards: that
    // would overflow sockets, and be lost without anybody's fault.
    let mut due = Duration::ZERO;
    loop {
        let wait = match due < time {
            true => due.saturating_sub(began.elapsed()),
            false => silence.saturating_sub(moved_at.elapsed()),
        };
        if due >= time && (streamed.lost == 0 || wait.is_zero()) {
            return Ok(());
        }
        if wait.is_zero() {
            line.send(&[ECHO_MARK, &streamed.sent.to_be_bytes()].concat())?;
            due = began.elapsed().max(due + every);
            streamed.sent += 1;
            streamed.lost += 1;
            answered.push(false);
            moved_at = Instant::now();
            continue;
        }
        let Some(number) = line.receive(wait)? else { continue };
        let Some(known) = answered.get_mut(usize::try_from(number).unwrap_or(usize::MAX)) else { continue };
        if streamed.last_answer_ms == 0 {
            println!("streaming");
        }
        streamed.lost -= u32::from(!std::mem::replace(known, true));
        streamed.longest_gap_ms = streamed.longest_gap_ms.max(millis(answered_at.elapsed()));
        streamed.last_answer_ms = unix_ms();
        (answered_at, moved_at) = (Instant::now(), Instant::now());
    }
}
