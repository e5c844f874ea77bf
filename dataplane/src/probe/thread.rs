//! The sockets and the thread of the prober.
//!
//! Owns one pair of sockets per underlay address and the clock. Everything it decides is decided by
//! [`Schedule`](super::schedule::Schedule). While nothing is watched it sleeps; while an answer is awaited it looks a few
//! hundred times a second.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::Board;
use super::pulse::{Felt, Pulses, Touch};
use super::schedule::{Found, Nanos, PORTS, Schedule};
use super::segment::{self, Answer};
use crate::state::Entropy;

/// How long the thread sleeps while an answer is awaited.
const LOOK: Duration = Duration::from_millis(4);
/// The same while questions are due later, so that it notices its end.
const REST: Duration = Duration::from_millis(250);
/// Questions sent in a row before answers are looked at again.
const QUESTIONS_MAX: usize = 32;
/// Answers read in a row from one socket.
const ANSWERS_MAX: usize = 256;
/// After a socket could not be opened.
const OPEN_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// The running thread; stops when dropped.
pub struct Prober {
    board: Board,
    thread: Option<JoinHandle<()>>,
}

impl Prober {
    /// Asks about what stands on `board`, and tells `found` what is news of ways and of nodes until that returns false.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(board: Board, found: impl FnMut(Found, Felt) -> bool + Send + 'static) -> io::Result<Prober> {
        let run = Run {
            board: board.clone(),
            schedule: Schedule::default(),
            pulses: Pulses::default(),
            sockets: HashMap::new(),
            entropy: Entropy::new(RandomState::new().hash_one(0)),
            clock: Instant::now(),
        };
        let thread = std::thread::Builder::new().name("prober".into()).spawn(move || run.run(found))?;
        Ok(Prober { board, thread: Some(thread) })
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.board.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Run {
    board: Board,
    schedule: Schedule,
    pulses: Pulses,
    /// By underlay address; `Err`: not before then.
    sockets: HashMap<IpAddr, Result<Ends, Instant>>,
    entropy: Entropy,
    clock: Instant,
}

impl Run {
    fn run(mut self, mut found: impl FnMut(Found, Felt) -> bool) {
        while let Some(wishes) = self.board.take(self.patience()) {
            let now = self.now();
            for (service, targets) in wishes.targets {
                self.schedule.watch(&service, targets, now);
            }
            if let Some(wrists) = wishes.wrists {
                self.pulses.watch(wrists, now);
            }
            if self.schedule.is_empty() && self.pulses.is_empty() {
                self.sockets.clear();
                continue;
            }
            let (mut news, mut felt) = self.read_answers();
            let now = self.now();
            // Ports and numbers come from a keyed hash of a secret sequence: seeing some does not tell the next.
            let (entropy, keys) = (&mut self.entropy, RandomState::new());
            let (questions, silent) = self.schedule.step(now, QUESTIONS_MAX, || keys.hash_one(entropy.draw()));
            news.extend(silent);
            let (touches, silent) = self.pulses.step(now, QUESTIONS_MAX, || keys.hash_one(entropy.draw()));
            felt.extend(silent);
            for touch in touches {
                self.touch(&touch);
            }
            for question in questions {
                if let Some(datagram) = segment::question(&question.target, question.exchange) {
                    self.send(&question.target, &datagram);
                }
            }
            let is_news = !news.is_empty() || !felt.is_empty();
            if is_news && !found(news, felt) {
                return;
            }
        }
    }

    fn now(&self) -> Nanos {
        Nanos::try_from(self.clock.elapsed().as_nanos()).unwrap_or(Nanos::MAX)
    }

    fn patience(&self) -> Duration {
        if self.schedule.is_waiting() || self.pulses.is_waiting() {
            return LOOK;
        }
        match self.schedule.next_due().into_iter().chain(self.pulses.next_due()).min() {
            Some(due) => Duration::from_nanos(due.saturating_sub(self.now())).clamp(LOOK, REST),
            None => REST,
        }
    }

    /// Reads what has arrived, and ends the half connections it tells of.
    fn read_answers(&mut self) -> (Found, Felt) {
        let mut answers: Vec<Answer> = Vec::new();
        let mut buffer = [0u8; 256];
        for ends in self.sockets.values().flatten() {
            for _ in 0..ANSWERS_MAX {
                // A longer packet is cut, which is all the same: the headers are in front.
                let Ok((len, from)) = ends.back.recv_from(&mut buffer) else { break };
                answers.extend(segment::read(buffer.get(..len).unwrap_or_default(), from.ip()));
            }
        }
        let (now, mut found, mut felt) = (self.now(), Found::new(), Felt::new());
        for answer in answers {
            if let Some(news) = self.pulses.answer(&answer, now) {
                felt.extend(news);
                continue;
            }
            let Some((question, news)) = self.schedule.answer(&answer, now) else { continue };
            found.extend(news);
            if answer.is_open()
                && let Some(datagram) = segment::farewell(&question.target, question.exchange)
            {
                self.send(&question.target, &datagram);
            }
        }
        (found, felt)
    }

    /// Sends the SYN of a pulse.
    fn touch(&mut self, touch: &Touch) {
        let Some(segment) = segment::touch(touch) else { return };
        let Some(ends) = self.ends(touch.ours) else { return };
        // Of a raw socket the port is the protocol (raw(7)); 0 leaves it as it is.
        let to = SocketAddr::new(touch.theirs, 0);
        // An error of the kernel, no neighbour for instance, is a silence like any other.
        if ends.back.send_to(&segment, to).is_err() {
            let _ = ends.back.send_to(&segment, to);
        }
    }

    /// Sends a datagram of VXLAN. What cannot be sent is not answered, which is told in its time.
    fn send(&mut self, target: &super::Target, datagram: &[u8]) {
        let Some(ends) = self.ends(target.ours.underlay) else { return };
        let to = SocketAddr::new(target.peer.underlay, target.peer.port);
        // The first error may be news about an earlier datagram: port unreachable, say.
        if ends.out.send_to(datagram, to).is_err() {
            let _ = ends.out.send_to(datagram, to);
        }
    }

    /// The sockets at one of our addresses; `None`: they cannot be had now.
    fn ends(&mut self, own: IpAddr) -> Option<&Ends> {
        if self.sockets.get(&own).is_some_and(|ends| ends.as_ref().is_err_and(|until| *until <= Instant::now())) {
            self.sockets.remove(&own);
        }
        let ends = self.sockets.entry(own).or_insert_with(|| {
            Ends::open(own).map_err(|error| {
                tracing::warn!(address = %own, %error, "ways to nodes cannot be proven from here");
                Instant::now() + OPEN_AGAIN_AFTER
            })
        });
        ends.as_ref().ok()
    }
}

/// The sockets at one underlay address.
struct Ends {
    /// For VXLAN.
    out: UdpSocket,
    /// Every TCP segment to the address that looks like an answer.
    back: UdpSocket,
}

impl Ends {
    fn open(own: IpAddr) -> io::Result<Ends> {
        let address = SocketAddr::new(own, 0);
        let out = UdpSocket::bind(address)?;
        out.set_nonblocking(true)?;
        let raw = Socket::new(Domain::for_address(address), Type::RAW, Some(Protocol::TCP))?;
        raw.attach_filter(&filter(own.is_ipv4()))?;
        raw.set_nonblocking(true)?;
        raw.bind(&address.into())?;
        // The standard library reads datagrams with their sender, which is all that is wanted of this one.
        Ok(Ends { out, back: raw.into() })
    }
}

/// A classic BPF program (uapi/linux/filter.h) that passes SYNs and resets to our ports, so that the rest of the machine's
/// TCP does not come here at all. Over IPv4 it sees the packet from the IP header on, over IPv6 from the TCP header on.
fn filter(is_ipv4: bool) -> Vec<SockFilter> {
    const LOAD_HEADER_LEN: u16 = 0xb1; // BPF_LDX | BPF_B | BPF_MSH
    const LOAD_HALF: u16 = 0x28; // BPF_LD | BPF_H | BPF_ABS; behind X: BPF_IND
    const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS; behind X: BPF_IND
    const BEHIND_X: u16 = 0x20;
    const JUMP_IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
    const JUMP_IF_ANY_BIT: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    let behind = if is_ipv4 { BEHIND_X } else { 0 };
    let header = is_ipv4.then(|| SockFilter::new(LOAD_HEADER_LEN, 0, 0, 0));
    let rest = [
        SockFilter::new(LOAD_HALF + behind, 0, 0, 2),
        SockFilter::new(JUMP_IF_AT_LEAST, 0, 3, u32::from(*PORTS.start())),
        SockFilter::new(LOAD_BYTE + behind, 0, 0, 13),
        SockFilter::new(JUMP_IF_ANY_BIT, 0, 1, 0x06),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ];
    header.into_iter().chain(rest).collect()
}
