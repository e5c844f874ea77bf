//! The thread that hears and sends heartbeats.
//!
//! Owns the UDP sockets, the clock and the key. Everything it decides is decided by the council; what is to be done on the
//! links goes to the speaker. Heartbeats pass the kernel, on the underlay addresses of the Nodes: they go on while control
//! is gone, and stop with this process. They say that the workers turn only while they do.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam::channel::Sender;
use socket2::{Domain, Protocol, Socket, Type};
use tidegate_api::carrier::Question;
use tidegate_io::mem::{now_ns, sleep_on};

use super::carrier;
use super::council::{Council, Settings};
use super::key::{KeyError, Keys};
use super::message::{MESSAGE_BYTES_MAX, Message};
use super::speaker::Order;
use super::{Handle, Nanos, Posted};
use crate::config;
use crate::health::{Health, Pulse, STEP_NS};

/// How often the key file is read again: keys are exchanged while gateways run.
const KEY_AGAIN_NS: Nanos = 5_000_000_000;
/// Datagrams read in a row from one socket.
const DATAGRAMS_MAX: usize = 256;
/// File below the state directory that holds the epoch of the last run.
const EPOCH_FILE: &str = "gateway-epoch";

/// The sockets and the key.
pub struct Ends {
    key_file: PathBuf,
    keys: Keys,
    port: u16,
    sockets: Vec<UdpSocket>,
    read_ns: Nanos,
}

/// Heartbeats that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum EndsError {
    /// The key cannot be used.
    #[error("dataplane.gateways.keyFile: {0}")]
    Key(#[from] KeyError),
    /// The port cannot be had.
    #[error("dataplane.gateways.port: {port}: {source}")]
    Port {
        /// Which.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
}

impl Ends {
    /// Reads the key and opens the port, on all addresses of both families: a machine without one of them has the other.
    /// `None`: there is no key file, so this gateway is alone.
    ///
    /// # Errors
    /// See [`EndsError`].
    pub fn open(section: &config::Gateways) -> Result<Option<Ends>, EndsError> {
        let Some(key_file) = section.key_file.clone() else { return Ok(None) };
        let (keys, port) = (Keys::read(&key_file)?, section.port);
        let addresses: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let opened: Vec<io::Result<UdpSocket>> = addresses.into_iter().map(|address| bind(address, port)).collect();
        let mut sockets = Vec::new();
        let mut refused = None;
        for socket in opened {
            match socket {
                Ok(socket) => sockets.push(socket),
                // EAFNOSUPPORT: a kernel without IPv6.
                Err(error) if error.raw_os_error() == Some(97) => {}
                Err(error) => refused = Some(error),
            }
        }
        match refused {
            Some(source) => Err(EndsError::Port { port, source }),
            None => Ok(Some(Ends { key_file, keys, port, sockets, read_ns: now_ns() })),
        }
    }

    /// Takes over another key file. One that cannot be used leaves the keys there are. True: it was read.
    fn renew(&mut self, now: Nanos) -> bool {
        if now.saturating_sub(self.read_ns) < KEY_AGAIN_NS {
            return false;
        }
        self.read_ns = now;
        match Keys::read(&self.key_file) {
            Ok(keys) => self.keys = keys,
            Err(error) => tracing::warn!(%error, "the keys from before stay in use"),
        }
        true
    }

    fn send(&self, message: &Message, to: &[IpAddr]) -> u64 {
        let bytes = message.encode(&self.keys);
        let send = |address: &IpAddr| {
            let to = SocketAddr::new(*address, self.port);
            let socket =
                self.sockets.iter().find(|socket| socket.local_addr().is_ok_and(|own| own.is_ipv4() == to.is_ipv4()));
            // The first error may be news about an earlier datagram: port unreachable, say.
            socket.is_some_and(|socket| socket.send_to(&bytes, to).is_ok() || socket.send_to(&bytes, to).is_ok())
        };
        u64::try_from(to.iter().filter(|address| send(address)).count()).unwrap_or_default()
    }
}

fn bind(address: IpAddr, port: u16) -> io::Result<UdpSocket> {
    let at = SocketAddr::new(address, port);
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    Ok(socket.into())
}

/// The epoch of this run: now, or later if a clock that was set back would make it older than the run before. Kept below
/// `state_dir`; what cannot be kept is only told, since others forget an epoch in time.
pub fn epoch(state_dir: &Path) -> u64 {
    let path = state_dir.join(EPOCH_FILE);
    let before: u64 = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default();
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX).max(before.saturating_add(1));
    let hidden = state_dir.join(format!(".{EPOCH_FILE}.new"));
    if let Err(error) = std::fs::write(&hidden, format!("{epoch}\n")).and_then(|()| std::fs::rename(&hidden, &path)) {
        tracing::warn!(path = %path.display(), %error, "the epoch of this run is not kept");
    }
    epoch
}

/// A council for the node file's settings.
pub fn council(node: &str, section: &config::Gateways, epoch: u64) -> Council {
    let ns = |ms: u16| Nanos::from(ms) * 1_000_000;
    Council::new(Settings {
        node: node.to_owned(),
        epoch,
        interval_ns: ns(section.interval_ms),
        dead_after_ns: ns(section.dead_after_ms),
        alone: section.key_file.is_none().then(|| "dataplane.gateways.keyFile is not set".to_owned()),
    })
}

/// The running thread; stops when dropped.
pub struct Heartbeats {
    council: Handle,
    thread: Option<JoinHandle<()>>,
}

impl Heartbeats {
    /// Starts the thread. `pulse` tells whether the workers turn.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(council: Handle, ends: Option<Ends>, pulse: Pulse, orders: Sender<Order>) -> io::Result<Heartbeats> {
        if let Some(ends) = &ends {
            council.council().set_key(ends.keys.fingerprint());
        }
        let run =
            Run { council: council.clone(), ends, pulse, orders, health: Health::Turning, refused: BTreeMap::new() };
        let thread = std::thread::Builder::new().name("gateways".into()).spawn(move || run.run())?;
        Ok(Heartbeats { council, thread: Some(thread) })
    }
}

impl Drop for Heartbeats {
    fn drop(&mut self) {
        self.council.post(|posted| posted.stop = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Run {
    council: Handle,
    ends: Option<Ends>,
    pulse: Pulse,
    orders: Sender<Order>,
    health: Health,
    /// When a sender was last told of, so that one that goes on is told of once a minute.
    refused: BTreeMap<(IpAddr, String), Nanos>,
}

impl Run {
    fn run(mut self) {
        loop {
            let posted = std::mem::take(&mut *self.council.posted());
            if posted.stop {
                return;
            }
            self.take(posted);
            self.feel();
            self.hear();
            self.decide();
            self.send();
            self.sleep();
        }
    }

    fn take(&mut self, posted: Posted) {
        let now = now_ns();
        if let Some(site) = posted.site {
            // The links first: what is decided next is to be said there.
            let _ = self.orders.send(Order::Links(site.links.clone()));
            self.council.council().site(site, now);
        }
        let mut council = self.council.council();
        if let Some(groups) = posted.groups {
            council.groups(groups);
        }
        council.vips(posted.vips, now);
        if let Some((generation, objects)) = posted.published {
            council.published(generation, objects);
        }
    }

    fn feel(&mut self) {
        let health = self.pulse.feel(now_ns());
        if health != self.health {
            match health {
                Health::Turning => tracing::info!("all workers turn again"),
                Health::Stuck { worker } => tracing::error!(worker, "a worker does not turn; other gateways are told"),
            }
            self.health = health;
            self.council.council().set_healthy(health == Health::Turning);
        }
    }

    fn hear(&mut self) {
        let Some(ends) = &mut self.ends else { return };
        let now = now_ns();
        if ends.renew(now) {
            self.council.council().set_key(ends.keys.fingerprint());
        }
        let mut buffer = [0u8; MESSAGE_BYTES_MAX + 1];
        for socket in &ends.sockets {
            for _ in 0..DATAGRAMS_MAX {
                let (length, from) = match socket.recv_from(&mut buffer) {
                    Ok(received) => received,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(_) => continue, // news about an earlier datagram
                };
                let datagram = buffer.get(..length).unwrap_or_default();
                if let Some(question) = Question::decode(datagram) {
                    let answer = carrier::answer(&question, &self.council.council(), now);
                    // One that is lost is asked for again.
                    let _ = socket.send_to(&answer.encode(), from);
                    continue;
                }
                let message = Message::decode(datagram, &ends.keys);
                let mut council = self.council.council();
                let refused = match message {
                    Ok(message) => {
                        let node = message.node.clone();
                        council.hear(message, now).err().map(|reason| format!("of {node}: {reason}"))
                    }
                    Err(refusal) => {
                        council.refuse(refusal, from.ip());
                        Some(refusal.to_string())
                    }
                };
                drop(council);
                if let Some(reason) = refused {
                    tell_once(&mut self.refused, from.ip(), &reason, now);
                }
            }
        }
    }

    fn decide(&mut self) {
        let decision = self.council.council().decide(now_ns());
        if let Some(decision) = decision {
            let (announced, withdrawn) = (decision.announce.len(), decision.withdraw.len());
            // New VIPs come with every new Service.
            if decision.announce.iter().any(|(_, is_new)| !is_new) || withdrawn > 0 {
                tracing::info!(number = decision.number, announced, withdrawn, "announcements move");
            }
            let _ = self.orders.send(Order::Act(decision));
        }
    }

    fn send(&mut self) {
        let Some(ends) = &self.ends else { return };
        let now = now_ns();
        let mut council = self.council.council();
        if !council.is_due(now) || council.others().next().is_none() {
            return;
        }
        let message = council.message(now);
        let to: Vec<IpAddr> = council.others().flat_map(|member| member.addresses.iter().copied()).collect();
        drop(council);
        let sent = ends.send(&message, &to);
        self.council.council().counts.sent += sent;
    }

    fn sleep(&self) {
        let bell = &self.council.0.bell;
        bell.lie_down();
        if self.council.has_mail() {
            return bell.get_up();
        }
        let now = now_ns();
        let council = self.council.council();
        let alone = self.ends.is_none() || council.others().next().is_none();
        let next_ns = if alone { now.saturating_add(STEP_NS) } else { council.next_ns(now) };
        drop(council);
        let timeout = Duration::from_nanos(next_ns.saturating_sub(now).clamp(1_000_000, STEP_NS));
        let sockets = self.ends.iter().flat_map(|ends| &ends.sockets).map(AsFd::as_fd);
        let descriptors: Vec<BorrowedFd<'_>> = std::iter::once(bell.descriptor()).chain(sockets).collect();
        if sleep_on(&descriptors, timeout).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
        bell.get_up();
    }
}

/// Senders remembered, so that made-up ones cannot fill the log.
const SENDERS_MAX: usize = 64;

fn tell_once(told: &mut BTreeMap<(IpAddr, String), Nanos>, from: IpAddr, reason: &str, now: Nanos) {
    const MINUTE_NS: Nanos = 60_000_000_000;
    told.retain(|_, at| now.saturating_sub(*at) < MINUTE_NS);
    let key = (from, reason.to_owned());
    if told.len() < SENDERS_MAX && !told.contains_key(&key) {
        tracing::warn!(%from, reason, "a heartbeat is refused");
        told.insert(key, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_rise_whatever_the_clock_does() {
        let directory = tempfile::tempdir().unwrap();
        let first = epoch(directory.path());
        let second = epoch(directory.path());
        assert!(second > first);
        let future = u64::MAX - 5;
        std::fs::write(directory.path().join(EPOCH_FILE), format!("{future}\n")).unwrap();
        assert_eq!(epoch(directory.path()), future + 1, "a clock that was set back");
        std::fs::write(directory.path().join(EPOCH_FILE), "nonsense").unwrap();
        assert!(epoch(directory.path()) >= first);
        assert!(epoch(Path::new("/nonexistent")) >= first);
    }

    #[test]
    fn a_key_that_cannot_be_used_is_an_error_with_its_field() {
        let directory = tempfile::tempdir().unwrap();
        let key = directory.path().join("key");
        std::fs::write(&key, "short").unwrap();
        let section = config::Gateways { key_file: Some(key), ..config::Gateways::default() };
        let error = Ends::open(&section).err().unwrap().to_string();
        assert!(error.contains("dataplane.gateways.keyFile") && error.contains("at least 16"), "{error}");
        assert!(Ends::open(&config::Gateways::default()).unwrap().is_none(), "without a key file: alone");
    }

    #[test]
    fn a_sender_that_is_refused_is_told_of_once_a_minute() {
        let mut told = BTreeMap::new();
        let from = |n: u8| IpAddr::from([192, 0, 2, n]);
        (0..200).for_each(|n| tell_once(&mut told, from(n), "x", 0));
        assert_eq!(told.len(), SENDERS_MAX);
        tell_once(&mut told, from(0), "x", 61_000_000_000);
        assert_eq!(told.len(), 1);
    }
}
