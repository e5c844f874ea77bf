//! Where datagrams go, and what becomes of them when nobody takes them.
//!
//! Owns a socket: what it has no room for is lost and counted. A socket that cannot be had is asked for again once a second.
//! UDP never waits. A reader in the file system is waited for, since a queue there is as short as ten datagrams, but for one
//! moment only: when that was not enough it is not waited for any more until it has read.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::{Destination, Loss, Tally};

/// How long it takes until a socket that could not be had is asked for again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a reader in the file system is waited for.
const PATIENCE: Duration = Duration::from_millis(20);
/// Shortest time between two lines about the same trouble.
const TELL_APART: Duration = Duration::from_secs(60);
/// How often somebody over UDP who was not there is tried. Errors about datagrams are sent once a second or less (RFC 1812
/// section 4.3.2.8), so of most that go to nobody the sender never hears: one now and then goes to see, and the others are
/// known to be lost.
const PROBED_EVERY: Duration = Duration::from_secs(1);
/// What is said of a collector that does not listen.
const NOBODY: &str = "nobody listens there";
/// How long nothing is refused until a collector is said to be back: it answers that it is not there within that.
const QUIET: Duration = Duration::from_secs(2);

/// An address of a collector: `udp:192.0.2.9:4739`, `udp:[2001:db8::9]:4739` or `unix:/run/collector.sock`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum To {
    /// UDP.
    Udp(SocketAddr),
    /// A socket of datagrams in the file system.
    Unix(PathBuf),
}

/// Longest path of a socket, bytes: `sun_path` of `struct sockaddr_un` with the 0 at its end (`linux/un.h`).
const PATH_MAX: usize = 107;

/// Whether one collector can be told at an address.
///
/// # Errors
/// Why not.
pub fn collector(at: SocketAddr) -> Result<(), &'static str> {
    match at {
        _ if at.port() == 0 => Err("0 is not a port"),
        _ if at.ip().is_unspecified() || at.ip().is_multicast() => Err("is not the address of one collector"),
        SocketAddr::V4(v4) if v4.ip().is_broadcast() => Err("is not the address of one collector"),
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() && v6.scope_id() == 0 => {
            Err("a link-local address needs the number of its device, as in [fe80::9%2]")
        }
        _ => Ok(()),
    }
}

impl FromStr for To {
    type Err = String;

    fn from_str(text: &str) -> Result<To, String> {
        let wrong = || format!("{text:?} is neither udp:ADDRESS:PORT nor unix:/PATH");
        match text.split_once(':') {
            Some(("udp", at)) => match at.parse::<SocketAddr>() {
                Ok(at) => collector(at).map(|()| To::Udp(at)).map_err(|reason| format!("{text:?}: {reason}")),
                Err(_) => Err(wrong()),
            },
            Some(("unix", path)) if path.starts_with('/') => match path.len() {
                ..=PATH_MAX => Ok(To::Unix(path.into())),
                len => Err(format!("a socket's path has at most {PATH_MAX} bytes, and this one {len}")),
            },
            _ => Err(wrong()),
        }
    }
}

impl TryFrom<String> for To {
    type Error = String;

    fn try_from(text: String) -> Result<To, String> {
        text.parse()
    }
}

impl std::fmt::Display for To {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            To::Udp(at) => write!(f, "udp:{at}"),
            To::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

enum Socket {
    Udp(UdpSocket),
    Unix(UnixDatagram),
}

impl Socket {
    fn open(to: &To) -> io::Result<Socket> {
        match to {
            To::Udp(at) => {
                let own: SocketAddr = match at {
                    SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                    SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
                };
                let socket = UdpSocket::bind(own)?;
                socket.connect(at)?;
                socket.set_nonblocking(true)?;
                Ok(Socket::Udp(socket))
            }
            To::Unix(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(path)?;
                socket.set_write_timeout(Some(PATIENCE))?;
                Ok(Socket::Unix(socket))
            }
        }
    }

    /// Whether it waits for its reader, from now on; UDP never does.
    fn wait(&self, waits: bool) {
        if let Socket::Unix(socket) = self {
            // Refused, it goes on as it was.
            let _ = socket.set_nonblocking(!waits);
        }
    }

    /// Whether the last datagram was answered with the word that nobody is there; asked once, it is forgotten.
    fn take_refusal(&self) -> bool {
        let told = match self {
            Socket::Udp(socket) => socket.take_error(),
            Socket::Unix(_) => return false,
        };
        matches!(told, Ok(Some(error)) if error.kind() == io::ErrorKind::ConnectionRefused)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Udp(socket) => socket.send(bytes),
            Socket::Unix(socket) => socket.send(bytes),
        }
    }
}

/// A datagram that went to see.
#[derive(Clone, Copy)]
struct Probe {
    at: Instant,
    /// The answer was that nobody is there.
    was_refused: bool,
}

impl Probe {
    fn now() -> Probe {
        Probe { at: Instant::now(), was_refused: false }
    }
}

/// Datagrams on their way to one collector.
pub(super) struct Datagrams {
    to: To,
    destination: Destination,
    tally: Tally,
    socket: Option<Socket>,
    /// The reader is behind, and not waited for.
    is_behind: bool,
    /// Over UDP: the datagram that was sent last to see whether somebody is there again.
    probe: Option<Probe>,
    opened_at: Option<Instant>,
    /// Records in the datagram that was sent last: of it the next one learns that nobody is there.
    last: u64,
    /// When something was lost last, when that was told last, and what was lost since.
    failed_at: Option<Instant>,
    told_at: Option<Instant>,
    untold: u64,
}

impl Datagrams {
    pub(super) fn new(to: To, destination: Destination, tally: Tally) -> Datagrams {
        let (socket, opened_at, failed_at, told_at) = (None, None, None, None);
        Datagrams {
            to,
            destination,
            tally,
            socket,
            is_behind: false,
            probe: None,
            opened_at,
            last: 0,
            failed_at,
            told_at,
            untold: 0,
        }
    }

    /// Sends a datagram with so many records, or counts them as lost.
    pub(super) fn send(&mut self, bytes: &[u8], records: u64) {
        if self.socket.is_none() && self.opened_at.is_none_or(|at| at.elapsed() >= AGAIN) {
            self.opened_at = Some(Instant::now());
            match Socket::open(&self.to) {
                Ok(socket) => (self.socket, self.is_behind) = (Some(socket), false),
                Err(error) => return self.lose(Loss::Unreachable, records, &error),
            }
        }
        let Some(socket) = self.socket.take() else { return self.lose(Loss::Unreachable, records, &NOBODY) };
        if let Some(probe) = self.probe {
            let was_refused = probe.was_refused || socket.take_refusal();
            if was_refused && !probe.was_refused {
                self.lose_last();
            }
            self.probe = Some(Probe { was_refused, ..probe });
            if probe.at.elapsed() < PROBED_EVERY {
                self.socket = Some(socket);
                return self.lose(Loss::Unreachable, records, &NOBODY);
            }
            // This one goes to see; or there was no answer in all that time, and somebody has it.
            self.probe = was_refused.then(Probe::now);
        }
        let mut sent = socket.send(bytes);
        if matches!(&sent, Err(error) if error.kind() == io::ErrorKind::ConnectionRefused)
            && matches!(socket, Socket::Udp(_))
        {
            // That was the one before (RFC 1122 section 4.1.3.3); this one has not left.
            self.lose_last();
            self.probe = Some(Probe::now());
            sent = socket.send(bytes);
        }
        match sent {
            Ok(_) => {
                if std::mem::take(&mut self.is_behind) {
                    socket.wait(true);
                }
                (self.last, self.socket) = (records, Some(socket));
                self.recover();
            }
            Err(error) => {
                let is_full = error.kind() == io::ErrorKind::WouldBlock
                    || error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error());
                if is_full {
                    if !std::mem::replace(&mut self.is_behind, true) {
                        socket.wait(false);
                    }
                    self.socket = Some(socket);
                }
                match is_full {
                    true => self.lose(Loss::Full, records, &"its reader is slower than flows come"),
                    false => self.lose(Loss::Unreachable, records, &error),
                }
            }
        }
    }

    /// Whether something was lost, and it is not sure yet that all is well again: a collector that comes back may be another.
    pub(super) fn is_failing(&self) -> bool {
        self.failed_at.is_some()
    }

    /// Counts the datagram before as lost.
    fn lose_last(&mut self) {
        let last = std::mem::take(&mut self.last);
        self.lose(Loss::Unreachable, last, &NOBODY);
    }

    fn lose(&mut self, reason: Loss, records: u64, why: &dyn std::fmt::Display) {
        self.tally.lose(self.destination, reason, records);
        self.untold = self.untold.saturating_add(records);
        self.failed_at = Some(Instant::now());
        if self.told_at.is_none_or(|at| at.elapsed() >= TELL_APART) {
            let to = &self.to;
            tracing::error!(collector = %to, lost = self.untold, "flows cannot be told: {why}; going on without");
            (self.untold, self.told_at) = (0, Some(Instant::now()));
        }
    }

    fn recover(&mut self) {
        if self.told_at.is_some() && self.failed_at.is_some_and(|at| at.elapsed() >= QUIET) {
            tracing::info!(collector = %self.to, lost = self.untold, "flows are told again");
            (self.untold, self.told_at, self.failed_at) = (0, None, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_others_refused() {
        for text in ["udp:192.0.2.9:4739", "udp:[2001:db8::9]:4739", "unix:/run/c.sock"] {
            assert_eq!(text.parse::<To>().unwrap().to_string(), text);
        }
        for text in ["192.0.2.9:4739", "udp:collector:4739", "unix:run/c.sock", "tcp:192.0.2.9:1", ""] {
            assert!(text.parse::<To>().unwrap_err().contains("neither"), "{text}");
        }
        assert!("udp:[fe80::9%2]:4739".parse::<To>().is_ok());
        let long = |len: usize| format!("unix:/{}", "x".repeat(len - 1));
        assert!(long(107).parse::<To>().is_ok());
        for (text, reason) in [
            (&*long(108), "at most 107 bytes, and this one 108"),
            ("udp:192.0.2.9:0", "0 is not a port"),
            ("udp:[2001:db8::9]:0", "0 is not a port"),
            ("udp:224.0.0.9:4739", "not the address of one collector"),
            ("udp:[ff02::9]:4739", "not the address of one collector"),
            ("udp:0.0.0.0:4739", "not the address of one collector"),
            ("udp:255.255.255.255:4739", "not the address of one collector"),
            ("udp:[fe80::9]:4739", "needs the number of its device"),
        ] {
            let refused = text.parse::<To>().unwrap_err();
            assert!(refused.contains(reason), "{text}: {refused}");
        }
    }

    fn lost(tally: &Tally) -> [u64; 3] {
        Loss::ALL.map(|reason| tally.lost(Destination::Json, reason))
    }

    /// A collector that goes away and comes back, over both families of UDP: what nobody took is counted.
    #[test]
    fn a_collector_that_is_away_loses_records_and_gets_the_next() {
        for own in ["127.0.0.1:0", "[::1]:0"] {
            let collector = UdpSocket::bind(own).unwrap();
            let at = collector.local_addr().unwrap();
            let tally = Tally::default();
            let mut datagrams = Datagrams::new(To::Udp(at), Destination::Json, tally.clone());
            datagrams.send(b"one", 1);
            let mut bytes = [0; 16];
            assert_eq!(collector.recv(&mut bytes).unwrap(), 3);
            drop(collector);
            // Of each that is sent the next learns. The second goes to see; the others are not sent at all.
            for _ in 0..40 {
                datagrams.send(b"away", 2);
                std::thread::sleep(Duration::from_millis(2));
            }
            assert_eq!(lost(&tally), [0, 80, 0], "every one of them");
            // Nobody is there yet.
            std::thread::sleep(PROBED_EVERY);
            datagrams.send(b"away", 1);
            std::thread::sleep(Duration::from_millis(20));
            let collector = UdpSocket::bind(at).unwrap();
            datagrams.send(b"away", 1);
            assert_eq!(lost(&tally), [0, 82, 0]);
            // The first to reach it has gone to see, and is not lost.
            std::thread::sleep(PROBED_EVERY);
            datagrams.send(b"probe", 1);
            assert_eq!(collector.recv(&mut bytes).unwrap(), 5);
            datagrams.send(b"away", 1);
            assert_eq!(lost(&tally), [0, 83, 0]);
            std::thread::sleep(PROBED_EVERY);
            for _ in 0..3 {
                datagrams.send(b"again", 1);
                assert_eq!(collector.recv(&mut bytes).unwrap(), 5);
            }
            assert_eq!(lost(&tally), [0, 83, 0]);
        }
    }

    #[test]
    fn a_unix_socket_that_is_not_there_is_tried_again_and_a_full_one_loses() {
        let home = tempfile::TempDir::new().unwrap();
        let path = home.path().join("c.sock");
        let tally = Tally::default();
        let mut datagrams = Datagrams::new(To::Unix(path.clone()), Destination::Json, tally.clone());
        datagrams.send(b"x", 1);
        assert_eq!(lost(&tally), [0, 1, 0]);
        let collector = UnixDatagram::bind(&path).unwrap();
        datagrams.send(b"x", 1);
        assert_eq!(lost(&tally), [0, 2, 0], "not yet tried again");
        std::thread::sleep(AGAIN);
        datagrams.send(b"y", 1);
        let mut bytes = [0; 16];
        assert_eq!((collector.recv(&mut bytes).unwrap(), bytes[0]), (1, b'y'));
        // It reads no more.
        (0..5000).for_each(|_| datagrams.send(b"z", 1));
        let [disk, unreachable, full] = lost(&tally);
        assert!((disk, unreachable) == (0, 2) && full > 0 && full < 5000, "{full}");
        // It reads again: it is waited for again.
        while full < 5000 && lost(&tally)[2] == full {
            assert_eq!(collector.recv(&mut bytes).unwrap(), 1);
            datagrams.send(b"w", 1);
            if !datagrams.is_behind {
                break;
            }
        }
        assert!(!datagrams.is_behind);
        drop(collector);
        datagrams.send(b"z", 1);
        assert_eq!(lost(&tally)[1], 3);
    }
}
