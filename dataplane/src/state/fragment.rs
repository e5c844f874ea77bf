//! Datagrams that come in fragments: the ports that the first one names, for the others.
//!
//! It owns what is known of each datagram while its fragments arrive: the ports, which bytes have come, and the frames
//! that came before the first one. It refuses to reassemble, and to know what a frame is. Everything is bounded, in
//! number and in time (N-060); what does not fit is handed back to be counted (N-063).
//!
//! Which bytes have come is a short list of ranges that grow together, so a datagram of any length that arrives more or
//! less in order needs one. Ranges that overlap mean that somebody wants two readers to see different datagrams: all that
//! is left of it is dropped (N-061, RFC 5722 section 4, RFC 1858). A fragment that comes twice looks the same and is
//! treated so. A datagram whose every byte has come is forgotten at once, so that its identification can be used again.

use std::hash::Hash;

use tidegate_io::Frame;

use super::tuple::{Address, HashKeys};
use crate::mutation::{self, Mutation};
use crate::packet::Packet;

/// Datagrams known at a time (N-060).
pub const DATAGRAMS_MAX: u16 = 1024;
/// Fragments of one datagram that wait, and ranges of its bytes that have not grown together (N-060).
pub const PIECES_MAX: usize = 16;
/// Frames that wait in all. Less than 1024 times 16: they are taken from the same frames that packets are received in.
pub const WAITING_MAX: u16 = 512;
/// How long a datagram is known: FRAGMENT_MIN of RFC 6146 section 4.
pub const WAIT_NS: u64 = 2_000_000_000;

/// No row.
const NONE: u16 = u16::MAX;
/// Chains of the hash table: twice the datagrams, so that most have one link.
const CHAINS: u16 = 2 * DATAGRAMS_MAX;

/// What the fragments of one datagram have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// Network order, IPv4 mapped.
    pub source: [u8; 16],
    /// Network order, IPv4 mapped.
    pub destination: [u8; 16],
    /// Identification, host order; 16 bits over IPv4.
    pub id: u32,
    /// Protocol over IPv4 (RFC 791 section 2.3); 0 over IPv6, where it is no part of it (RFC 8200 section 4.5).
    pub protocol: u8,
    /// As in tuples.
    pub domain: u8,
}

impl FragmentKey {
    /// The keyed hash. All 64 bits are good.
    pub fn hash(&self, keys: &HashKeys) -> u64 {
        let rest = u64::from(self.id) | u64::from(self.protocol) << 32 | u64::from(self.domain) << 40;
        Address::mix(self.source, self.destination, rest, keys)
    }
}

/// Which bytes of its datagram a fragment carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where they begin in the whole payload.
    pub offset: u16,
    /// How many there are.
    pub len: u16,
    /// Whether it is not the last.
    pub more: bool,
}

/// What the first fragment names and the others lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Host order.
    pub source: u16,
    /// Host order.
    pub destination: u16,
    /// IANA protocol number, after IPv6 extension headers.
    pub protocol: u8,
    /// The IPv4 identification that all pieces have to leave with, should their source change (N-046); host order.
    pub id: u16,
}

/// A frame that waits for the first fragment of its datagram.
#[derive(Debug)]
pub struct Waiting {
    /// The fragment.
    pub frame: Frame,
    /// What parse said of it.
    pub packet: Packet,
    /// How often it has changed hands.
    pub hops: u8,
}

/// Frames that have waited long enough, oldest first. Take them with [`Fragments::next`] until there is none: they are
/// the table's until then.
#[must_use]
#[derive(Debug, PartialEq, Eq)]
pub struct Released {
    head: u16,
}

/// Why a fragment is not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It overlaps another, or an end that was seen; or it is of a datagram of which one did.
    Overlap,
    /// One of the limits of this module is reached.
    Full,
}

/// What becomes of a fragment.
#[must_use]
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome<T> {
    /// It goes on, with these ports; and so do, after it, those that waited.
    Pass(T, Ports, Released),
    /// It waits.
    Held,
    /// It is dropped, and so are those that waited.
    Refused(T, Refusal, Released),
}

/// One datagram.
#[derive(Clone, Copy, Debug)]
struct Datagram {
    key: FragmentKey,
    since_ns: u64,
    ports: Option<Ports>,
    /// Length of the payload, once the last fragment has come.
    total: Option<u32>,
    /// Bytes that have come, as first and end; `ranges_len` of them, apart from each other.
    ranges: [(u32, u32); PIECES_MAX],
    ranges_len: usize,
    waiting_len: usize,
    /// An overlap was seen.
    refused: bool,
    /// First and last frame that wait.
    head: u16,
    tail: u16,
    /// Next of the chain; next free one.
    chain: u16,
    older: u16,
    newer: u16,
}

#[derive(Debug)]
struct Place<T> {
    item: Option<T>,
    next: u16,
}

/// The datagrams of one worker that arrive in fragments. `T` is what waits.
#[derive(Debug)]
pub struct Fragments<T> {
    keys: HashKeys,
    /// First datagram of each chain.
    chains: Box<[u16]>,
    datagrams: Vec<Datagram>,
    /// First of the datagrams that are not in use.
    free: u16,
    oldest: u16,
    newest: u16,
    live: u16,
    places: Vec<Place<T>>,
    free_place: u16,
    waiting: u16,
}

impl<T> Fragments<T> {
    /// Nothing is known. All the memory that will ever be used is set aside here. `seed` is random and secret.
    #[must_use]
    pub fn new(seed: [u64; 2]) -> Fragments<T> {
        Fragments {
            keys: HashKeys::new(seed),
            chains: vec![NONE; CHAINS.into()].into_boxed_slice(),
            datagrams: Vec::with_capacity(DATAGRAMS_MAX.into()),
            free: NONE,
            oldest: NONE,
            newest: NONE,
            live: 0,
            places: Vec::with_capacity(WAITING_MAX.into()),
            free_place: NONE,
            waiting: 0,
        }
    }

    /// Frames that wait.
    #[inline]
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.into()
    }

    /// Whether no datagram is known.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Takes note of a fragment. `first` is given with the one at offset 0.
    pub fn arrive(
        &mut self,
        key: &FragmentKey,
        piece: Piece,
        first: Option<Ports>,
        item: T,
        now_ns: u64,
    ) -> Outcome<T> {
        let chain = self.chain(key);
        let Some(at) = self.find(chain, key).or_else(|| self.begin(chain, key, now_ns)) else {
            return Outcome::Refused(item, Refusal::Full, Released { head: NONE });
        };
        let known = &mut self.datagrams[usize::from(at)];
        let ports = match known.take(piece, first, self.waiting) {
            Ok(Some(ports)) => ports,
            Ok(None) => {
                self.hold(at, item);
                return Outcome::Held;
            }
            Err(Refusal::Full) => return Outcome::Refused(item, Refusal::Full, Released { head: NONE }),
            Err(Refusal::Overlap) => return Outcome::Refused(item, Refusal::Overlap, self.release(at)),
        };
        let complete = known.is_complete();
        let released = self.release(at);
        if complete {
            self.end(at);
        }
        Outcome::Pass(item, ports, released)
    }

    /// What [`Fragments::arrive`] would do with a fragment: with ports it goes on, without it waits.
    ///
    /// # Errors
    /// Why it would be dropped.
    #[cold]
    pub fn foresee(&self, key: &FragmentKey, piece: Piece, first: Option<Ports>) -> Result<Option<Ports>, Refusal> {
        let known = self.find(self.chain(key), key).and_then(|at| self.datagrams.get(usize::from(at)).copied());
        let begun = || self.free_row().map(|_| Datagram::new(key, 0));
        known.or_else(begun).ok_or(Refusal::Full)?.take(piece, first, self.waiting)
    }

    /// The next of those that waited.
    pub fn next(&mut self, released: &mut Released) -> Option<T> {
        let place = self.places.get_mut(usize::from(released.head))?;
        let item = place.item.take();
        let next = std::mem::replace(&mut place.next, self.free_place);
        self.free_place = std::mem::replace(&mut released.head, next);
        self.waiting -= 1;
        item
    }

    /// Forgets datagrams that began [`WAIT_NS`] ago or earlier; hands out what still waited.
    #[inline]
    pub fn expire(&mut self, now_ns: u64, on_item: impl FnMut(T)) {
        if self.live > 0 {
            self.expire_some(now_ns, on_item);
        }
    }

    #[cold]
    fn expire_some(&mut self, now_ns: u64, mut on_item: impl FnMut(T)) {
        while let Some(oldest) = self.datagrams.get(usize::from(self.oldest))
            && now_ns.saturating_sub(oldest.since_ns) >= WAIT_NS
        {
            let at = self.oldest;
            let mut released = self.release(at);
            while let Some(item) = self.next(&mut released) {
                on_item(item);
            }
            self.end(at);
        }
    }

    /// Hands out everything that waits, at the end.
    pub fn drain(&mut self, on_item: impl FnMut(T)) {
        self.expire(u64::MAX, on_item);
    }

    /// The chain that a key is in.
    fn chain(&self, key: &FragmentKey) -> usize {
        const _: () = assert!(CHAINS.is_power_of_two());
        usize::from((key.hash(&self.keys) & 0xffff) as u16 & (CHAINS - 1))
    }

    fn find(&self, chain: usize, key: &FragmentKey) -> Option<u16> {
        let mut at = self.chains[chain];
        while let Some(known) = self.datagrams.get(usize::from(at)) {
            if known.key == *key {
                return Some(at);
            }
            at = known.chain;
        }
        None
    }

    /// The row of the next datagram, if there is room for one.
    fn free_row(&self) -> Option<u16> {
        let fresh = u16::try_from(self.datagrams.len()).unwrap_or(NONE);
        let at = if self.free == NONE { fresh } else { self.free };
        (at < DATAGRAMS_MAX).then_some(at)
    }

    /// A datagram of which nothing has come yet, if there is room for it.
    fn begin(&mut self, chain: usize, key: &FragmentKey, now_ns: u64) -> Option<u16> {
        let at = self.free_row()?;
        let new = Datagram { chain: self.chains[chain], older: self.newest, ..Datagram::new(key, now_ns) };
        if usize::from(at) == self.datagrams.len() {
            self.datagrams.push(new);
        } else {
            self.free = self.datagrams[usize::from(at)].chain;
            self.datagrams[usize::from(at)] = new;
        }
        self.chains[chain] = at;
        match self.datagrams.get_mut(usize::from(new.older)) {
            Some(older) => older.newer = at,
            None => self.oldest = at,
        }
        self.newest = at;
        self.live += 1;
        Some(at)
    }

    /// Forgets a datagram of which nothing waits.
    fn end(&mut self, at: u16) {
        let Datagram { key, chain: next, older, newer, .. } = self.datagrams[usize::from(at)];
        let chain = self.chain(&key);
        if self.chains[chain] == at {
            self.chains[chain] = next;
        } else {
            let mut before = self.chains[chain];
            while let Some(known) = self.datagrams.get_mut(usize::from(before)) {
                if known.chain == at {
                    known.chain = next;
                    break;
                }
                before = known.chain;
            }
        }
        match self.datagrams.get_mut(usize::from(older)) {
            Some(older) => older.newer = newer,
            None => self.oldest = newer,
        }
        match self.datagrams.get_mut(usize::from(newer)) {
            Some(newer) => newer.older = older,
            None => self.newest = older,
        }
        self.datagrams[usize::from(at)].chain = self.free;
        self.free = at;
        self.live -= 1;
    }

    /// Puts an item at the end of those that wait for a datagram. The caller has seen that there is room.
    fn hold(&mut self, at: u16, item: T) {
        let place = Place { item: Some(item), next: NONE };
        let fresh = u16::try_from(self.places.len()).unwrap_or(NONE);
        let number = if self.free_place == NONE { fresh } else { self.free_place };
        if number == fresh {
            self.places.push(place);
        } else {
            self.free_place = std::mem::replace(&mut self.places[usize::from(number)], place).next;
        }
        let known = &mut self.datagrams[usize::from(at)];
        let last = std::mem::replace(&mut known.tail, number);
        known.waiting_len += 1;
        match self.places.get_mut(usize::from(last)) {
            Some(last) => last.next = number,
            None => known.head = number,
        }
        self.waiting += 1;
    }

    /// Takes what waits for a datagram away from it.
    fn release(&mut self, at: u16) -> Released {
        let known = &mut self.datagrams[usize::from(at)];
        (known.tail, known.waiting_len) = (NONE, 0);
        Released { head: std::mem::replace(&mut known.head, NONE) }
    }
}

impl Datagram {
    /// One of which nothing has come yet.
    fn new(key: &FragmentKey, since_ns: u64) -> Datagram {
        Datagram {
            key: *key,
            since_ns,
            ports: None,
            total: None,
            ranges: [(0, 0); PIECES_MAX],
            ranges_len: 0,
            waiting_len: 0,
            refused: false,
            head: NONE,
            tail: NONE,
            chain: NONE,
            older: NONE,
            newer: NONE,
        }
    }

    /// Takes note of a fragment while so many frames wait in all. It goes on with these ports; without any, it is to wait.
    fn take(&mut self, piece: Piece, first: Option<Ports>, waiting: u16) -> Result<Option<Ports>, Refusal> {
        let ports = self.ports.or(first);
        if self.refused {
            return Err(Refusal::Overlap);
        }
        if ports.is_none() && (self.waiting_len >= PIECES_MAX || waiting >= WAITING_MAX) {
            return Err(Refusal::Full);
        }
        self.note(piece).inspect_err(|why| self.refused = *why == Refusal::Overlap)?;
        self.ports = ports;
        Ok(ports)
    }

    /// Adds the bytes of `piece` to those that have come.
    fn note(&mut self, piece: Piece) -> Result<(), Refusal> {
        let (mut start, mut end) = (u32::from(piece.offset), u32::from(piece.offset) + u32::from(piece.len));
        let ranges = &self.ranges[..self.ranges_len];
        let last = ranges.iter().map(|range| range.1).max().unwrap_or(0);
        let beyond = match self.total {
            Some(total) => !piece.more || end > total,
            None => !piece.more && last > end,
        };
        let overlaps = beyond || ranges.iter().any(|range| range.0 < end && start < range.1);
        if overlaps && !mutation::is(Mutation::OverlapAccepted) {
            return Err(Refusal::Overlap);
        }
        let touching = ranges.iter().filter(|range| range.1 == start || range.0 == end).count();
        if touching == 0 && ranges.len() == PIECES_MAX {
            return Err(Refusal::Full);
        }
        // Ranges that touch the new one become part of it.
        let mut kept = 0;
        for n in 0..self.ranges_len {
            let range = self.ranges[n];
            if range.1 == start {
                start = range.0;
            } else if range.0 == end {
                end = range.1;
            } else {
                self.ranges[kept] = range;
                kept += 1;
            }
        }
        self.ranges[kept] = (start, end);
        self.ranges_len = kept + 1;
        if !piece.more {
            self.total = Some(u32::from(piece.offset) + u32::from(piece.len));
        }
        Ok(())
    }

    /// Whether every byte has come.
    fn is_complete(&self) -> bool {
        self.ranges_len == 1 && self.total.is_some_and(|total| self.ranges[0] == (0, total))
    }
}

#[cfg(test)]
mod tests;
