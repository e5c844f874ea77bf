//! The process that holds the device: a child of the dataplane, the same program under another command.
//!
//! It lives as long as its connection does and holds the device as long as the beat is there and good. It decides nothing
//! else. What the kernel refuses it tells; what somebody takes away it puts back.
//!
//! Being a process of its own is what makes the promise hold: whatever happens to the dataplane, down to SIGSTOP and a hung
//! allocator, this one notices the silence and lets go. It is small and asks for nothing that could hang but the kernel. The
//! kernel is asked to kill it when the dataplane ends, should it be stopped just then and not see the connection go.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tidegate_io::mem::{now_ns, sleep_on};
use tidegate_io::netdev::NetDevice;
use tidegate_io::tun::Tun;

use super::Nanos;
use super::ledger::{Ledger, Step};
use super::line::{Answer, Line, Order};
use super::program::{Mark, News, Program};

/// Steps between two looks at the connection: well under a beat's time.
const STEPS_MAX: usize = 128;
/// Packets read away between two looks.
const DISCARD_MAX: usize = 256;
/// Reads of news between two looks.
const NEWS_MAX: usize = 64;
/// After the device could not be made it is tried again in so many nanoseconds.
const AGAIN_NS: Nanos = 500_000_000;
/// Longest sleep.
const SLEEP_NS: Nanos = 50_000_000;
/// EEXIST (uapi/asm-generic/errno-base.h).
const EEXIST: i32 = 17;
/// ENOBUFS (uapi/asm-generic/errno.h): the socket overflowed and news were lost.
const ENOBUFS: i32 = 105;

/// What the keeper is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Name of the device.
    pub device: String,
    /// How routes are marked.
    pub mark: Mark,
    /// Silence after which the device is closed, nanoseconds.
    pub patience_ns: Nanos,
}

/// Makes this process a keeper, which ends with `stream` or with its parent.
///
/// # Errors
/// As [`serve`].
pub fn keep(settings: Settings, stream: UnixStream) -> io::Result<()> {
    // From here on it ends with the connection alone: at an orderly end of the dataplane, whose whole group may be signalled,
    // routes go when the dataplane says so.
    let ignored = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&ignored))?;
    }
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    serve(settings, stream)
}

/// Keeps the device and its routes as `stream` says, until that ends.
///
/// # Errors
/// When the words of the other side are not understood.
pub fn serve(settings: Settings, stream: UnixStream) -> io::Result<()> {
    let line = Line::new(stream)?;
    let keeper = Keeper {
        settings,
        line,
        ledger: Ledger::default(),
        held: None,
        healthy: false,
        beat_ns: now_ns(),
        again_ns: 0,
        discarded: 0,
        restored: 0,
    };
    keeper.run()
}

/// The device while it is there.
#[derive(Debug)]
struct Held {
    tun: Tun,
    program: Program,
}

#[derive(Debug)]
struct Keeper {
    settings: Settings,
    line: Line,
    ledger: Ledger,
    held: Option<Held>,
    healthy: bool,
    beat_ns: Nanos,
    again_ns: Nanos,
    discarded: u64,
    restored: u64,
}

impl Keeper {
    fn run(mut self) -> io::Result<()> {
        loop {
            match self.hear() {
                Ok(()) => {}
                // All is well: whoever gave orders is gone, and with this process the device.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            }
            let now = now_ns();
            let wanted = self.healthy && now.saturating_sub(self.beat_ns) < self.settings.patience_ns;
            match (wanted, self.held.is_some()) {
                (false, true) => self.let_go(),
                (true, false) if now >= self.again_ns => self.take(now),
                _ => {}
            }
            if !self.look() {
                self.let_go();
            }
            self.step(now);
            if self.line.flush().is_err() {
                return Ok(());
            }
            self.sleep();
        }
    }

    fn hear(&mut self) -> io::Result<()> {
        let orders = self.line.hear::<Order>()?;
        let mut beaten = false;
        for order in orders {
            match order {
                Order::Want(prefix) => self.ledger.want(prefix, true),
                Order::Unwant(prefix) => self.ledger.want(prefix, false),
                Order::Beat { healthy } => (self.healthy, beaten) = (healthy, true),
            }
        }
        if beaten {
            self.beat_ns = now_ns();
            self.tell();
        }
        Ok(())
    }

    fn tell(&mut self) {
        let up = self.held.is_some();
        self.line.say(&Answer::Alive { up, discarded: self.discarded, restored: self.restored });
    }

    fn take(&mut self, now: Nanos) {
        match hold(&self.settings) {
            Ok(held) => self.held = Some(held),
            Err(error) => {
                self.again_ns = now.saturating_add(AGAIN_NS);
                self.line.say(&Answer::NoDevice(format!("{}: {error}", self.settings.device)));
            }
        }
        self.tell();
    }

    /// Closes the device: the kernel takes it and its routes away before this returns.
    fn let_go(&mut self) {
        self.held = None;
        for prefix in self.ledger.forget() {
            self.line.say(&Answer::Gone(prefix));
        }
        self.tell();
    }

    /// Takes in what has happened at the device. False when it is of no use any more.
    fn look(&mut self) -> bool {
        let Some(held) = &mut self.held else { return true };
        match held.tun.discard(DISCARD_MAX) {
            Ok(count) => self.discarded += u64::try_from(count).unwrap_or_default(),
            Err(_) => return false,
        }
        for _ in 0..NEWS_MAX {
            let news = match held.program.news() {
                Ok(Some(news)) => news,
                Ok(None) => break,
                Err(error) if error.raw_os_error() == Some(ENOBUFS) => {
                    self.ledger.doubt();
                    continue;
                }
                Err(_) => return false,
            };
            for one in news {
                match one {
                    News::Down => return false,
                    News::Gone(prefix) if self.ledger.lost(prefix) => {
                        self.restored += 1;
                        self.line.say(&Answer::Gone(prefix));
                    }
                    News::Gone(_) => {}
                }
            }
        }
        true
    }

    fn step(&mut self, now: Nanos) {
        let Some(held) = &mut self.held else { return };
        for step in self.ledger.next(STEPS_MAX, now) {
            let result = match step {
                Step::Add { prefix, .. } => held.program.add(prefix),
                Step::Remove(prefix) => held.program.remove(prefix),
            };
            let is_there = |error: &io::Error| error.raw_os_error() == Some(EEXIST);
            match (step, result) {
                (Step::Add { prefix, doubted }, result)
                    if result.is_ok() || doubted && result.as_ref().is_err_and(is_there) =>
                {
                    self.ledger.done(step, true, now);
                    self.line.say(&Answer::There(prefix));
                }
                (Step::Add { prefix, .. }, Err(error)) => {
                    self.ledger.done(step, false, now);
                    let reason = match is_there(&error) {
                        true => "the kernel has another route for it".into(),
                        false => error.to_string(),
                    };
                    self.line.say(&Answer::Refused(prefix, reason));
                }
                (Step::Add { .. }, Ok(())) => {}
                (Step::Remove(prefix), _) => {
                    self.ledger.done(step, true, now);
                    self.line.say(&Answer::Gone(prefix));
                }
            }
        }
    }

    fn sleep(&mut self) {
        // Words that did not fit are tried again soon: sockets are only waited for to be readable.
        const SOON_NS: Nanos = 2_000_000;
        let busy = self.held.is_some() && self.ledger.is_busy();
        let unsaid = !self.line.flush().unwrap_or(true);
        let patience_ends_ns = self.beat_ns.saturating_add(self.settings.patience_ns);
        let until_silence_ns = match self.held {
            Some(_) => patience_ends_ns.saturating_sub(now_ns()),
            None => SLEEP_NS,
        };
        let most_ns = if unsaid { SOON_NS } else { SLEEP_NS };
        let timeout_ns = if busy { 0 } else { most_ns.min(until_silence_ns) };
        let held = self.held.iter().flat_map(|held| [held.tun.as_fd(), held.program.events().as_fd()]);
        let descriptors: Vec<BorrowedFd<'_>> = std::iter::once(self.line.as_fd()).chain(held).collect();
        if sleep_on(&descriptors, Duration::from_nanos(timeout_ns)).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn hold(settings: &Settings) -> io::Result<Held> {
    let tun = Tun::create(&settings.device)?;
    let ifindex = NetDevice::query(tun.name())?.ifindex;
    Ok(Held { program: Program::new(ifindex, settings.mark)?, tun })
}
