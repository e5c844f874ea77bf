//! Ports of external addresses: which are in use, and by whom they are held.
//!
//! It owns the counts of one worker: per port the flows that share it, or that one mapping has it alone; per address and
//! class what is used and what was refused; per pod and namespace what is held, for quotas (N-040). It refuses to know flows and
//! mappings: whoever begins or ends one says so here.
//!
//! A port is shared by flows to different destinations (address-and-port-dependent mappings), or one mapping's alone
//! (endpoint-independent), or free. Counting it here keeps the two kinds from meeting at one port.
//!
//! Addresses are numbered here by themselves: an address that nobody names any more keeps its counts until the last of its
//! flows has ended. Memory is touched as ports are used.

use std::io;

use arrayvec::ArrayVec;
use tidegate_io::mem::{HugePages, Slab};
use zerocopy::FromZeros;

use crate::limits;
use crate::table::egress::{OwnPorts, PortClass};

/// Ports of one block, as bits of a word.
const BLOCK_PORTS: u32 = 64;
/// Blocks of one address and class, those below the lowest port included.
const BLOCKS: u32 = 65_536 / BLOCK_PORTS;
const EXTERNALS_MAX: u32 = limits::EXTERNALS_MAX as u32;
const CLASSES: u32 = 4;
const _: () = assert!(PortClass::COUNT <= CLASSES as usize);
/// Namespaces whose ports are counted; others have no quota.
const NAMESPACES_MAX: u32 = 1 << 16;
/// Addresses that may be short of ports at once; others are noticed later.
const WANTED_MAX: usize = 8;
/// Destinations without a port that are remembered at once.
const EXHAUSTED_MAX: usize = 256;
/// How long: a search through all ports takes half a millisecond.
const EXHAUSTED_NS: u64 = 5_000_000;
/// A place of the directory of addresses that was never in use.
const VACANT: u16 = u16::MAX;
const DIRECTORY: usize = 4 * limits::EXTERNALS_MAX as usize;
const _: () = assert!(DIRECTORY.is_power_of_two());

/// Ports of one block.
#[derive(Debug, Clone, Copy, FromZeros)]
#[repr(C, align(64))]
struct Block {
    /// Ports that one mapping has alone.
    alone: u64,
    /// Flows that share each.
    flows: [u16; BLOCK_PORTS as usize],
}

/// Ports of one address and class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Ports that some flow or mapping has.
    pub used: u32,
    /// Those among them that one mapping has alone.
    pub alone: u32,
    /// Those among them whose mapping is idle and rests (N-042).
    pub resting: u32,
    /// Flows and mappings at them.
    pub held: u32,
    /// New flows that found no port.
    pub refused: u64,
}

/// What one pod holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromZeros)]
#[repr(C)]
pub struct Holder {
    /// Ports held: mappings, and flows that have no mapping.
    pub held: u32,
    /// Its namespace, as of the last time it took one.
    pub namespace: u32,
    /// New flows refused.
    pub refused: u64,
}

/// One external address that is or was in use.
#[derive(Debug, Clone, Copy)]
struct External {
    address: [u8; 16],
    tallies: [Tally; PortClass::COUNT],
}

/// A port of an external address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortOf {
    /// The address, IPv4 mapped.
    pub address: [u8; 16],
    /// Whose ports.
    pub class: PortClass,
    /// Host order.
    pub port: u16,
}

/// Who takes a port: number of the pod's row, and of its namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taker {
    /// Row of backends of the pod.
    pub pod: u32,
    /// Its namespace.
    pub namespace: u32,
}

/// There is no room to count another external address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more external addresses are in use than are counted")]
pub struct TooMany;

/// Ports in use, of one worker. Kind: state.
#[derive(Debug)]
pub struct PortBook {
    blocks: Slab<Block>,
    holders: Slab<Holder>,
    namespaces: Slab<u32>,
    externals: Vec<External>,
    /// Open addressing over `externals`.
    directory: Box<[u16; DIRECTORY]>,
    /// Ports that were given to another worker and that the tables still say are ours: nobody uses them.
    lent: Vec<PortOf>,
    /// Addresses that run short of ports.
    wanted: ArrayVec<([u8; 16], PortClass), WANTED_MAX>,
    /// Destinations for which no port was left, and until when that is believed, nanoseconds.
    exhausted: Box<[(u64, u64); EXHAUSTED_MAX]>,
}

impl PortBook {
    /// Nothing in use; pods by numbers below `pods_max`.
    ///
    /// # Errors
    /// What mmap(2) reports.
    pub fn new(pods_max: u32) -> io::Result<PortBook> {
        Ok(PortBook {
            blocks: Slab::new(EXTERNALS_MAX * CLASSES * BLOCKS, HugePages::Off)?,
            holders: Slab::new(pods_max, HugePages::Off)?,
            namespaces: Slab::new(NAMESPACES_MAX, HugePages::Off)?,
            externals: Vec::with_capacity(usize::from(limits::EXTERNALS_MAX)),
            directory: Box::new([VACANT; DIRECTORY]),
            lent: Vec::new(),
            wanted: ArrayVec::new(),
            exhausted: Box::new([(0, 0); EXHAUSTED_MAX]),
        })
    }

    /// The ports of an address (mapped form) and class, to look at many of them.
    #[inline]
    pub fn pool(&self, address: &[u8; 16], class: PortClass) -> Pool<'_> {
        Pool { blocks: &self.blocks, first: self.find(address).map(|at| first(at, class)) }
    }

    /// Whether it was found lately that no port is left for a destination, by its hash: looking through all of them again for
    /// each packet would cost everybody else.
    pub fn is_exhausted(&self, destination: u64, now_ns: u64) -> bool {
        let (known, until_ns) = self.exhausted[place(destination)];
        known == destination && now_ns < until_ns
    }

    /// That has been found.
    pub fn exhausted(&mut self, destination: u64, now_ns: u64) {
        if !self.is_exhausted(destination, now_ns) {
            self.exhausted[place(destination)] = (destination, now_ns + EXHAUSTED_NS);
        }
    }

    /// What is used of an address (mapped form) and class.
    pub fn tally(&self, address: &[u8; 16], class: PortClass) -> Tally {
        self.find(address).map_or(Tally::default(), |at| self.externals[at].tallies[class as usize])
    }

    /// Every address and class of which something was ever used.
    pub fn tallies(&self) -> impl Iterator<Item = ([u8; 16], PortClass, Tally)> {
        let of = |external: &External| {
            let External { address, tallies } = *external;
            PortClass::ALL.into_iter().map(move |class| (address, class, tallies[class as usize]))
        };
        self.externals.iter().flat_map(of).filter(|(_, _, tally)| *tally != Tally::default())
    }

    /// What a pod holds.
    #[inline]
    pub fn holder(&self, pod: u32) -> Holder {
        self.holders.get(pod).copied().unwrap_or_default()
    }

    /// What the pods of a namespace hold.
    #[inline]
    pub fn held_by_namespace(&self, namespace: u32) -> u32 {
        self.namespaces.get(namespace).copied().unwrap_or(0)
    }

    /// A flow takes a share of `port`.
    ///
    /// # Errors
    /// Then nothing has changed.
    pub fn share(&mut self, port: &PortOf, by: Taker) -> Result<(), TooMany> {
        let at = self.enter(&port.address)?;
        let block = self.blocks.at_mut(row(at, port));
        let flows = &mut block.flows[usize::from(port.port) % BLOCK_PORTS as usize];
        *flows = flows.saturating_add(1);
        let is_first = *flows == 1;
        let tally = &mut self.externals[at].tallies[port.class as usize];
        tally.held += 1;
        tally.used += u32::from(is_first);
        self.hold(by);
        Ok(())
    }

    /// The flow ended.
    pub fn unshare(&mut self, port: &PortOf, pod: u32) {
        let Some(at) = self.find(&port.address) else { return };
        let block = self.blocks.at_mut(row(at, port));
        let flows = &mut block.flows[usize::from(port.port) % BLOCK_PORTS as usize];
        debug_assert!(*flows > 0, "a share is given back once");
        *flows = flows.saturating_sub(1);
        let was_last = *flows == 0;
        let tally = &mut self.externals[at].tallies[port.class as usize];
        tally.held = tally.held.saturating_sub(1);
        tally.used = tally.used.saturating_sub(u32::from(was_last));
        self.release(pod);
    }

    /// A mapping takes `port`, which is free, for itself.
    ///
    /// # Errors
    /// Then nothing has changed.
    pub fn take(&mut self, port: &PortOf, by: Taker) -> Result<(), TooMany> {
        let at = self.enter(&port.address)?;
        let block = self.blocks.at_mut(row(at, port));
        debug_assert!(!block.is_alone(port.port) && block.flows(port.port) == 0, "only a free port is taken");
        block.alone |= 1 << (port.port % 64);
        let tally = &mut self.externals[at].tallies[port.class as usize];
        tally.used += 1;
        tally.alone += 1;
        tally.held += 1;
        self.hold(by);
        Ok(())
    }

    /// The mapping that has `port` is idle: its pod does not hold it any more, but nobody else gets it yet (N-042).
    pub fn rest(&mut self, port: &PortOf, pod: u32) {
        if let Some(at) = self.find(&port.address) {
            self.externals[at].tallies[port.class as usize].resting += 1;
        }
        self.release(pod);
    }

    /// The mapping that rested at `port` is used again.
    pub fn resume(&mut self, port: &PortOf, by: Taker) {
        if let Some(at) = self.find(&port.address) {
            let tally = &mut self.externals[at].tallies[port.class as usize];
            tally.resting = tally.resting.saturating_sub(1);
        }
        self.hold(by);
    }

    /// Nothing is left of the mapping that rested at `port`.
    pub fn free(&mut self, port: &PortOf) {
        let Some(at) = self.find(&port.address) else { return };
        let block = self.blocks.at_mut(row(at, port));
        debug_assert!(block.is_alone(port.port), "a port is freed once");
        block.alone &= !(1 << (port.port % 64));
        let tally = &mut self.externals[at].tallies[port.class as usize];
        tally.used = tally.used.saturating_sub(1);
        tally.alone = tally.alone.saturating_sub(1);
        tally.resting = tally.resting.saturating_sub(1);
        tally.held = tally.held.saturating_sub(1);
    }

    /// A new flow of `pod` found no port at an address.
    pub fn refuse(&mut self, address: &[u8; 16], class: PortClass, pod: u32) {
        if let Ok(at) = self.enter(address) {
            self.externals[at].tallies[class as usize].refused += 1;
        }
        self.refuse_pod(pod);
    }

    /// A new flow of `pod` was refused.
    pub fn refuse_pod(&mut self, pod: u32) {
        if let Some(holder) = self.holders.get_mut(pod) {
            holder.refused += 1;
        }
    }

    /// Notes that ports of an address run short.
    #[cold]
    pub fn want(&mut self, address: &[u8; 16], class: PortClass) {
        if !self.wanted.contains(&(*address, class)) {
            let _full = self.wanted.try_push((*address, class));
        }
    }

    /// Addresses noted since the last time this was asked.
    pub fn take_wanted(&mut self) -> impl Iterator<Item = ([u8; 16], PortClass)> {
        std::mem::take(&mut self.wanted).into_iter()
    }

    /// Gives up to `max` free ports of `own` away: they are not given out here any more, whatever the tables say, until these
    /// say that they are another's ([`PortBook::forget_lent`]). Allocates: it is asked for seldom.
    #[cold]
    pub fn lend(&mut self, address: &[u8; 16], class: PortClass, own: OwnPorts<'_>, max: u32) -> Vec<u16> {
        let Ok(at) = self.enter(address) else { return Vec::new() };
        let mut lent = Vec::new();
        for port in (0..own.len()).map(|n| own.at(n)) {
            if lent.len() >= max as usize {
                break;
            }
            let port_of = PortOf { address: *address, class, port };
            let block = self.blocks.at_mut(row(at, &port_of));
            if !block.is_alone(port) && block.flows(port) == 0 {
                block.alone |= 1 << (port % 64);
                lent.push(port);
                self.lent.push(port_of);
            }
        }
        lent
    }

    /// Whether ports are on their way to other workers.
    pub fn has_lent(&self) -> bool {
        !self.lent.is_empty()
    }

    /// Takes note that the tables say of lent ports that they are another's.
    #[cold]
    pub fn forget_lent(&mut self, is_ours: impl Fn(&PortOf) -> bool) {
        let lent = std::mem::take(&mut self.lent);
        let (ours, gone): (Vec<_>, Vec<_>) = lent.into_iter().partition(is_ours);
        self.lent = ours;
        for port in gone {
            if let Some(at) = self.find(&port.address) {
                self.blocks.at_mut(row(at, &port)).alone &= !(1 << (port.port % 64));
            }
        }
    }

    fn hold(&mut self, by: Taker) {
        if let Some(holder) = self.holders.get_mut(by.pod) {
            // What it holds in another namespace's name moves along: pods do not change theirs, but rows are given out again.
            let moved = if holder.namespace == by.namespace { 0 } else { holder.held };
            let before = std::mem::replace(&mut holder.namespace, by.namespace);
            holder.held += 1;
            if let Some(held) = self.namespaces.get_mut(before) {
                *held = held.saturating_sub(moved);
            }
            if let Some(held) = self.namespaces.get_mut(by.namespace) {
                *held += moved + 1;
            }
        }
    }

    fn release(&mut self, pod: u32) {
        if let Some(holder) = self.holders.get_mut(pod) {
            debug_assert!(holder.held > 0, "what is held is given back once");
            holder.held = holder.held.saturating_sub(1);
            if let Some(held) = self.namespaces.get_mut(holder.namespace) {
                *held = held.saturating_sub(1);
            }
        }
    }

    fn find(&self, address: &[u8; 16]) -> Option<usize> {
        let mut at = home(address);
        loop {
            let place = self.directory[at % DIRECTORY];
            if place == VACANT {
                return None;
            }
            if self.externals.get(usize::from(place)).is_some_and(|external| external.address == *address) {
                return Some(place.into());
            }
            at += 1;
        }
    }

    /// The number of an address, given to it if it has none: one that is not in use any more makes room.
    fn enter(&mut self, address: &[u8; 16]) -> Result<usize, TooMany> {
        if let Some(at) = self.find(address) {
            return Ok(at);
        }
        let new = External { address: *address, tallies: [Tally::default(); PortClass::COUNT] };
        let at = if self.externals.len() < usize::from(limits::EXTERNALS_MAX) {
            self.externals.push(new);
            self.externals.len() - 1
        } else {
            let lent = |external: &External| self.lent.iter().any(|port| port.address == external.address);
            let unused = |external: &External| external.tallies.iter().all(|tally| tally.held == 0) && !lent(external);
            let at = self.externals.iter().position(unused).ok_or(TooMany)?;
            self.externals[at] = new;
            at
        };
        self.index();
        Ok(at)
    }

    #[cold]
    fn index(&mut self) {
        self.directory.fill(VACANT);
        for (number, external) in (0..VACANT).zip(&self.externals) {
            let mut at = home(&external.address);
            while self.directory[at % DIRECTORY] != VACANT {
                at += 1;
            }
            self.directory[at % DIRECTORY] = number;
        }
    }
}

/// The ports of one address and class.
#[derive(Clone, Copy, Debug)]
pub struct Pool<'book> {
    blocks: &'book Slab<Block>,
    first: Option<u32>,
}

impl Pool<'_> {
    /// Whether nothing of `port` is in use.
    #[inline]
    pub fn is_free(self, port: u16) -> bool {
        self.block(port).is_none_or(|block| !block.is_alone(port) && block.flows(port) == 0)
    }

    /// Whether one mapping has `port`.
    #[inline]
    pub fn is_alone(self, port: u16) -> bool {
        self.block(port).is_some_and(|block| block.is_alone(port))
    }

    /// Whether another flow may share `port`.
    #[inline]
    pub fn is_shareable(self, port: u16) -> bool {
        self.block(port).is_none_or(|block| !block.is_alone(port) && block.flows(port) < u16::MAX)
    }

    fn block(&self, port: u16) -> Option<&Block> {
        self.first.map(|first| self.blocks.at(first + u32::from(port) / BLOCK_PORTS))
    }
}

impl Block {
    #[inline]
    fn is_alone(&self, port: u16) -> bool {
        self.alone >> (port % 64) & 1 == 1
    }

    #[inline]
    fn flows(&self, port: u16) -> u16 {
        self.flows[usize::from(port) % BLOCK_PORTS as usize]
    }
}

/// Where a destination without ports is remembered.
const fn place(destination: u64) -> usize {
    const _: () = assert!(EXHAUSTED_MAX == 256);
    destination.to_le_bytes()[0] as usize
}

fn first(external: usize, class: PortClass) -> u32 {
    (u32::try_from(external).unwrap_or(0) * CLASSES + class as u32) * BLOCKS
}

fn row(external: usize, port: &PortOf) -> u32 {
    first(external, port.class) + u32::from(port.port) / BLOCK_PORTS
}

fn home(address: &[u8; 16]) -> usize {
    let folded = u128::from_be_bytes(*address);
    let mixed = ((folded ^ folded >> 64) & u128::from(u64::MAX)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as usize & (DIRECTORY - 1)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::state::oracle::random;

    fn port(address: u8, port: u16) -> PortOf {
        PortOf { address: [address; 16], class: PortClass::Udp, port }
    }

    #[test]
    fn ports_are_counted_as_a_naive_count_says() {
        let mut book = PortBook::new(16).unwrap();
        let mut shared: HashMap<(u8, u16), Vec<u32>> = HashMap::new();
        let mut alone: HashMap<(u8, u16), (u32, bool)> = HashMap::new();
        let mut random = random(5);
        for _ in 0..20_000 {
            let bits = random();
            let key = ((bits & 3) as u8, 1024 + (bits >> 8 & 0x7f) as u16 * 500);
            let pod = (bits >> 16 & 7) as u32;
            let by = Taker { pod, namespace: pod / 2 };
            let at = port(key.0, key.1);
            match bits >> 32 & 7 {
                0..=2 if !alone.contains_key(&key) => {
                    book.share(&at, by).unwrap();
                    shared.entry(key).or_default().push(pod);
                }
                3 => {
                    if let Some(pod) = shared.get_mut(&key).and_then(Vec::pop) {
                        book.unshare(&at, pod);
                        shared.retain(|_, pods| !pods.is_empty());
                    }
                }
                4 if !alone.contains_key(&key) && !shared.contains_key(&key) => {
                    book.take(&at, by).unwrap();
                    alone.insert(key, (pod, true));
                }
                5 => match alone.get_mut(&key) {
                    Some((pod, active @ true)) => {
                        book.rest(&at, *pod);
                        *active = false;
                    }
                    Some((pod, active)) => {
                        book.resume(&at, Taker { pod: *pod, namespace: *pod / 2 });
                        *active = true;
                    }
                    None => {}
                },
                6 if alone.get(&key).is_some_and(|(_, active)| !active) => {
                    book.free(&at);
                    alone.remove(&key);
                }
                _ => {}
            }
            let pool = book.pool(&at.address, at.class);
            assert_eq!(pool.is_free(at.port), !shared.contains_key(&key) && !alone.contains_key(&key));
            assert_eq!(
                (pool.is_shareable(at.port), pool.is_alone(at.port)),
                (!alone.contains_key(&key), alone.contains_key(&key))
            );
        }
        for address in 0..4 {
            let mine = |(at, _): &(u8, u16)| *at == address;
            let tally = book.tally(&[address; 16], PortClass::Udp);
            let (flows, lone) =
                (shared.keys().filter(|key| mine(key)).count(), alone.keys().filter(|key| mine(key)).count());
            assert_eq!((tally.used as usize, tally.alone as usize), (flows + lone, lone));
            let resting = alone.iter().filter(|(key, (_, active))| mine(key) && !active).count();
            assert_eq!(tally.resting as usize, resting);
            assert_eq!(book.tally(&[address; 16], PortClass::Tcp), Tally::default());
        }
        for pod in 0..8 {
            let flows = shared.values().flatten().filter(|held| **held == pod).count();
            let mappings = alone.values().filter(|held| **held == (pod, true)).count();
            assert_eq!(book.holder(pod).held as usize, flows + mappings);
        }
        let held = |namespace| (0..8).filter(|pod| pod / 2 == namespace).map(|pod| book.holder(pod).held).sum::<u32>();
        assert!((0..4).all(|namespace| book.held_by_namespace(namespace) == held(namespace)));
    }

    #[test]
    fn addresses_without_flows_make_room_for_others() {
        let mut book = PortBook::new(16).unwrap();
        let by = Taker { pod: 1, namespace: 0 };
        let at = |n: u16| PortOf { address: u128::from(n).to_be_bytes(), class: PortClass::Tcp, port: 2000 };
        (0..limits::EXTERNALS_MAX).for_each(|n| book.share(&at(n), by).unwrap());
        assert_eq!(book.share(&at(999), by), Err(TooMany));
        book.unshare(&at(77), 1);
        book.share(&at(999), by).unwrap();
        assert!(!book.pool(&at(999).address, PortClass::Tcp).is_free(2000));
        assert!(book.pool(&at(77).address, PortClass::Tcp).is_free(2000));
        assert_eq!(book.share(&at(77), by), Err(TooMany));
        assert_eq!(book.tallies().count(), usize::from(limits::EXTERNALS_MAX));
    }
}
