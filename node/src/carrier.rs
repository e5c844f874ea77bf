//! Which gateway carries an address, as the gateways themselves say.
//!
//! Owns the questions (four a second to each gateway, over all of its addresses) and the choice among answers. Whoever does
//! not answer within a second carries nothing. While an address changes hands two may say that they carry it; the one that
//! has done so for less time goes on to. Where nobody says so, the carrier before is kept: packets that it drops are no worse
//! than packets that go astray. Where nobody has ever said so (gateways without a key are alone, and are not asked), the
//! carrier is computed as gateways do it.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tidegate_api::carrier::{ADDRESSES_MAX, Answer, BYTES_MAX, Question};

use crate::choose::choose;
use crate::wanted::Gateway;

/// Between two questions.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// Who has not answered for so long carries nothing.
const SILENT_AFTER: Duration = Duration::from_secs(1);
/// How long answers are waited for before somebody is chosen without.
const PATIENCE: Duration = Duration::from_millis(1500);

/// What one gateway said of one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// For how long it has carried it, milliseconds; `None`: it does not.
    pub carried_ms: Option<u32>,
    /// When it said so.
    pub at: Instant,
}

/// What was said, by gateway and address.
pub type Heard = BTreeMap<(String, IpAddr), Said>;

/// Who is asked what, and what was heard.
#[derive(Debug, Default)]
struct Shared {
    gateways: Vec<(String, Vec<IpAddr>)>,
    addresses: Vec<IpAddr>,
    heard: Heard,
    news: bool,
}

/// The threads that ask; they end when this is dropped.
pub struct Askers {
    shared: Arc<Mutex<Shared>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Askers {
    /// Starts asking, at UDP port `port` of gateways.
    ///
    /// # Errors
    /// When the system gives no socket or thread.
    pub fn start(port: u16) -> io::Result<Askers> {
        let (shared, stop) = (Arc::new(Mutex::new(Shared::default())), Arc::new(AtomicBool::new(false)));
        let mut sockets = Vec::new();
        let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        for address in any {
            // A kernel without a family asks over the other.
            if let Ok(socket) = UdpSocket::bind((address, 0)) {
                socket.set_nonblocking(true)?;
                sockets.push(socket);
            }
        }
        let run =
            Run { shared: Arc::clone(&shared), stop: Arc::clone(&stop), sockets, port, random: RandomState::new() };
        let thread = std::thread::Builder::new().name("carriers".into()).spawn(move || run.run())?;
        Ok(Askers { shared, stop, thread: Some(thread) })
    }

    /// From now on these gateways, each at its addresses, are asked about `addresses`.
    pub fn ask(&self, gateways: &[Gateway], at: &[Vec<IpAddr>], addresses: &[IpAddr]) {
        let mut shared = lock(&self.shared);
        shared.gateways = gateways.iter().map(|gateway| gateway.name.clone()).zip(at.iter().cloned()).collect();
        addresses.clone_into(&mut shared.addresses);
        let names: BTreeSet<String> = shared.gateways.iter().map(|(name, _)| name.clone()).collect();
        shared.heard.retain(|(name, address), _| names.contains(name) && addresses.contains(address));
    }

    /// What was heard.
    pub fn heard(&self) -> Heard {
        lock(&self.shared).heard.clone()
    }

    /// Whether a round of questions has passed since the last call.
    pub fn has_news(&self) -> bool {
        std::mem::take(&mut lock(&self.shared).news)
    }
}

impl Drop for Askers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Run {
    shared: Arc<Mutex<Shared>>,
    stop: Arc<AtomicBool>,
    sockets: Vec<UdpSocket>,
    port: u16,
    random: RandomState,
}

impl Run {
    fn run(self) {
        let mut round: u64 = 0;
        while !self.stop.load(Ordering::Relaxed) {
            round += 1;
            let asked = self.ask(round);
            let until = Instant::now() + ASK_EVERY;
            while Instant::now() < until && !self.stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
                self.hear(&asked);
            }
            lock(&self.shared).news = true;
        }
    }

    /// Sends a round of questions; the numbers of them, each with whom it went to.
    fn ask(&self, round: u64) -> BTreeMap<u64, String> {
        let (gateways, addresses) = {
            let shared = lock(&self.shared);
            (shared.gateways.clone(), shared.addresses.clone())
        };
        let mut asked = BTreeMap::new();
        for (name, at) in gateways {
            for (part, addresses) in addresses.chunks(ADDRESSES_MAX).enumerate() {
                let number = self.random.hash_one((round, &name, part));
                let bytes = Question { number, addresses: addresses.to_vec() }.encode();
                for address in &at {
                    let to = SocketAddr::new(*address, self.port);
                    let same = |socket: &&UdpSocket| socket.local_addr().is_ok_and(|own| own.is_ipv4() == to.is_ipv4());
                    if let Some(socket) = self.sockets.iter().find(same) {
                        // The first error may be news about an earlier datagram.
                        let _ = socket.send_to(&bytes, to).or_else(|_| socket.send_to(&bytes, to));
                    }
                }
                asked.insert(number, name.clone());
            }
        }
        asked
    }

    fn hear(&self, asked: &BTreeMap<u64, String>) {
        let mut buffer = [0u8; BYTES_MAX + 1];
        for socket in &self.sockets {
            loop {
                let length = match socket.recv_from(&mut buffer) {
                    Ok((length, _)) => length,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(_) => continue, // news about an earlier datagram
                };
                let Some(answer) = Answer::decode(buffer.get(..length).unwrap_or_default()) else { continue };
                let Some(name) = asked.get(&answer.number) else { continue };
                let (mut shared, at) = (lock(&self.shared), Instant::now());
                for (address, carried_ms) in answer.carried {
                    shared.heard.insert((name.clone(), address), Said { carried_ms, at });
                }
            }
        }
    }
}

/// The carrier of each address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    chosen: BTreeMap<IpAddr, String>,
    /// Addresses for which nobody is chosen yet, since when.
    open: BTreeMap<IpAddr, Instant>,
}

impl Carried {
    /// The gateway that carries an address.
    pub fn of(&self, address: IpAddr) -> Option<&str> {
        self.chosen.get(&address).map(String::as_str)
    }

    /// Chooses among `gateways` by what was heard until `now`. False while nothing is certain of some address: then one
    /// should wait a moment rather than choose twice.
    pub fn decide(&mut self, addresses: &[IpAddr], gateways: &[&str], heard: &Heard, now: Instant) -> bool {
        self.chosen.retain(|address, name| addresses.contains(address) && gateways.contains(&name.as_str()));
        self.open.retain(|address, _| addresses.contains(address));
        for address in addresses {
            let claims = gateways.iter().filter_map(|name| {
                let said = heard.get(&((*name).to_owned(), *address))?;
                let is_fresh = now.saturating_duration_since(said.at) < SILENT_AFTER;
                Some((said.carried_ms.filter(|_| is_fresh)?, *name))
            });
            if let Some((_, name)) = claims.min() {
                self.chosen.insert(*address, name.to_owned());
            } else if !self.chosen.contains_key(address) {
                let since = *self.open.entry(*address).or_insert(now);
                let waited = now.saturating_duration_since(since) >= PATIENCE;
                let computed = choose(gateways.iter().copied(), &address.to_string());
                if let Some(name) = computed.filter(|_| waited || gateways.len() == 1) {
                    self.chosen.insert(*address, name.to_owned());
                }
                if gateways.len() > 1 && !waited {
                    continue;
                }
            }
            self.open.remove(address);
        }
        self.open.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn heard(said: &[(&str, &str, Option<u32>, Instant)]) -> Heard {
        let said = said.iter().map(|(name, address, carried_ms, at)| {
            (((*name).to_owned(), address.parse().unwrap()), Said { carried_ms: *carried_ms, at: *at })
        });
        said.collect()
    }

    #[test]
    fn the_one_that_says_so_carries_it_and_the_younger_of_two() {
        let now = Instant::now();
        let (v4, v6): (IpAddr, IpAddr) = ("192.0.2.9".parse().unwrap(), "2001:db8::9".parse().unwrap());
        let names = ["gw-1", "gw-2"];
        let mut carried = Carried::default();
        let said = heard(&[
            ("gw-1", "192.0.2.9", Some(5000), now),
            ("gw-2", "192.0.2.9", None, now),
            ("gw-1", "2001:db8::9", Some(5000), now),
            ("gw-2", "2001:db8::9", Some(20), now),
        ]);
        assert!(carried.decide(&[v4, v6], &names, &said, now));
        assert_eq!((carried.of(v4), carried.of(v6)), (Some("gw-1"), Some("gw-2")));
        // The first falls silent: kept until another says so.
        let later = now + SILENT_AFTER;
        assert!(carried.decide(&[v4, v6], &names, &said, later));
        assert_eq!((carried.of(v4), carried.of(v6)), (Some("gw-1"), Some("gw-2")));
        let said = heard(&[("gw-1", "192.0.2.9", Some(5000), now), ("gw-2", "192.0.2.9", Some(10), later)]);
        assert!(carried.decide(&[v4], &names, &said, later));
        assert_eq!((carried.of(v4), carried.of(v6)), (Some("gw-2"), None));
        // A gateway that is none any more.
        assert!(carried.decide(&[v4], &["gw-1"], &Heard::new(), later));
        assert_eq!(carried.of(v4), Some("gw-1"));
        assert!(carried.decide(&[v4], &[], &Heard::new(), later + PATIENCE));
        assert_eq!(carried.of(v4), None);
    }

    #[test]
    fn nobody_is_chosen_in_haste_and_somebody_in_the_end() {
        let now = Instant::now();
        let address: IpAddr = "192.0.2.9".parse().unwrap();
        let mut carried = Carried::default();
        assert!(!carried.decide(&[address], &["gw-1", "gw-2"], &Heard::new(), now));
        assert!(carried.decide(&[address], &["gw-1", "gw-2"], &Heard::new(), now + PATIENCE));
        assert_eq!(carried.of(address), choose(["gw-1", "gw-2"], "192.0.2.9"));
        let mut alone = Carried::default();
        assert!(alone.decide(&[address], &["gw-1"], &Heard::new(), now), "one gateway need not be asked");
        assert_eq!(alone.of(address), Some("gw-1"));
    }
}
