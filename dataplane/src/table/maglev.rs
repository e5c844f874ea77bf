//! Maglev: consistent choice of a backend for a flow.
//!
//! The method is that of Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section
//! 3.4: every backend has its own permutation of the slots of a prime-sized table, and backends take turns in claiming their
//! next preferred free slot until all are taken. A flow's hash picks a slot. Owns the table, the turns and both hashes;
//! refuses to know what a backend is beyond its key bytes and weight.
//!
//! - *Same set, same table* (L-002): members are sorted by key bytes, and the permutations come from a fixed hash of them.
//! - *Weights* (L-006): a member has its turn in a round when its accumulated weight reaches the largest weight; the share of
//!   slots is then proportional within one turn. (Several picks in the first round only, as some do, is not.)
//! - *Draining* (L-008): a member of weight 0 takes part at first, as if it had the largest weight, and then gives its slots
//!   to the others, whose own slots stay where they were.
//! How turns are taken quickly is told in `fill.rs`.

use std::hash::Hasher;
use std::sync::{Arc, Weak};

use hashbrown::HashMap;
use siphasher::sip::SipHasher13;
use siphasher::sip128::{Hasher128, SipHasher13 as SipHasher13Wide};

/// The taking of turns that fills a table.
mod fill;

/// Table sizes to choose from, all prime (L-003).
pub const SIZES: [u32; 11] = [251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65537, 131_071, 655_373];

/// The largest size that is chosen without being asked for (design 5).
pub const SIZE_AUTOMATIC_MAX: u32 = 65537;

/// Slots wanted per member (L-003).
pub const SLOTS_PER_MEMBER: u32 = 100;

/// Most members of one ring; members beyond it in key order get no slot. A slot holds a 16-bit member index.
pub const MEMBERS_MAX: usize = u16::MAX as usize;

/// Members up to which a slot is one byte wide.
const MEMBERS_NARROW_MAX: usize = 255;

/// Key of the digest; a new method of filling gets a new key here, so that old and new tables are told apart.
const SET_KEY: &[u8; 16] = b"tidegate ring v1";

/// Bytes that identify a member: address (IPv4 mapped) and port, network order; also the order of members (L-002).
pub fn member_key(address: &[u8; 16], port: u16) -> [u8; 18] {
    let mut key = [0; 18];
    key[..16].copy_from_slice(address);
    key[16..].copy_from_slice(&port.to_be_bytes());
    key
}

/// Bytes that identify a node as a member: of its name, so that it keeps its flows when its addresses change.
pub fn node_key(name: &str) -> [u8; 16] {
    let mut hasher = SipHasher13Wide::new_with_key(b"tidegate node v1");
    hasher.write(name.as_bytes());
    hasher.finish128().as_bytes()
}

/// The smallest listed size with [`SLOTS_PER_MEMBER`] slots per member, and [`SIZE_AUTOMATIC_MAX`] above that (design 5).
pub fn ring_size(members: usize) -> u32 {
    let wanted = members.saturating_mul(SLOTS_PER_MEMBER as usize);
    SIZES.into_iter().find(|size| *size as usize >= wanted).unwrap_or(SIZE_AUTOMATIC_MAX).min(SIZE_AUTOMATIC_MAX)
}

/// The smallest listed size of at least `size`; the largest listed if there is none.
fn listed(size: u32) -> u32 {
    SIZES.into_iter().find(|listed| *listed >= size).unwrap_or(SIZES[SIZES.len() - 1])
}

/// One filled table. Kind: table; equal sets of members share one ([`RingCache`]).
#[derive(PartialEq, Eq)]
pub struct Ring {
    slots: Slots,
    members: u32,
    digest: u64,
}

#[derive(PartialEq, Eq)]
enum Slots {
    Narrow(Box<[u8]>),
    Wide(Box<[u16]>),
}

impl Ring {
    /// Fills a table for `members`, pairs of key bytes (distinct; see [`member_key`]) and weight, in any order. `size` is
    /// rounded up to a listed one; see [`ring_size`]. `None` when no member has a weight above 0 (L-007).
    ///
    /// Picks count members in ascending order of key bytes, members of weight 0 included. Those have no slot (L-007), but
    /// naming them while they drain keeps everybody else's slots where they were (L-008).
    pub fn build<K: AsRef<[u8]>>(members: &[(K, u16)], size: u32) -> Option<Ring> {
        let members = sorted(members);
        Ring::fill(&members, listed(size))
    }

    /// As [`Ring::build`] for sorted members and a prime `size`.
    fn fill(members: &[(&[u8], u16)], size: u32) -> Option<Ring> {
        let members = &members[..members.len().min(MEMBERS_MAX)];
        Ring::fill_digested(members, size, set_digest(members, size))
    }

    /// The same for members that are not too many, with the digest of both.
    fn fill_digested(members: &[(&[u8], u16)], size: u32, digest: (u64, u64)) -> Option<Ring> {
        let slots = fill::fill(members, size)?;
        let narrow = members.len() <= MEMBERS_NARROW_MAX;
        let slots = if narrow {
            // Indices are below 255 here.
            Slots::Narrow(slots.iter().map(|slot| u8::try_from(*slot).unwrap_or(0)).collect())
        } else {
            Slots::Wide(slots.into())
        };
        let members_len = u32::try_from(members.len()).unwrap_or(u32::MAX);
        Some(Ring { slots, members: members_len, digest: digest.0 ^ digest.1 })
    }

    /// Index of the member for a flow hash: position `hash · M / 2^64`, the same on every gateway. Read side.
    #[inline]
    pub fn pick(&self, hash: u64) -> usize {
        match &self.slots {
            Slots::Narrow(slots) => slots.get(reduce(hash, slots.len())).map_or(0, |member| usize::from(*member)),
            Slots::Wide(slots) => slots.get(reduce(hash, slots.len())).map_or(0, |member| usize::from(*member)),
        }
    }

    /// Slots of the table.
    pub fn size(&self) -> usize {
        match &self.slots {
            Slots::Narrow(slots) => slots.len(),
            Slots::Wide(slots) => slots.len(),
        }
    }

    /// Members counted by [`Ring::pick`], those without slots included.
    pub fn members(&self) -> usize {
        self.members as usize
    }

    /// Index of the member at each slot, in order of slots.
    pub fn slots(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.size()).map(|slot| match &self.slots {
            Slots::Narrow(slots) => usize::from(slots[slot]),
            Slots::Wide(slots) => usize::from(slots[slot]),
        })
    }

    /// A number that equal tables on any gateway have in common: of keys, weights, size and the method.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Bytes of the slots.
    pub fn bytes(&self) -> usize {
        match &self.slots {
            Slots::Narrow(slots) => slots.len(),
            Slots::Wide(slots) => slots.len() * 2,
        }
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ring {{ size: {}, members: {}, digest: {:016x} }}", self.size(), self.members, self.digest)
    }
}

/// A ring and the digest that a [`RingCache`] finds it by.
pub type Made = ((u64, u64), Arc<Ring>);

/// Rings of the sets in use, so that equal sets share one. For one thread.
#[derive(Debug, Default)]
pub struct RingCache {
    /// By the 128-bit digest of the sorted set and the size: two sets never meet there by chance.
    rings: HashMap<(u64, u64), Weak<Ring>>,
    /// Length of `rings` at which dead entries are swept next.
    sweep_at: usize,
}

impl RingCache {
    /// The ring for `members` as of [`Ring::build`], built only if no living one has this set and size. `size` 0 means
    /// [`ring_size`].
    pub fn get<K: AsRef<[u8]>>(&mut self, members: &[(K, u16)], size: u32) -> Option<Arc<Ring>> {
        self.make(members, size).map(|(_, ring)| ring)
    }

    /// The same, with what others find it by.
    pub fn make<K: AsRef<[u8]>>(&mut self, members: &[(K, u16)], size: u32) -> Option<Made> {
        let size = if size == 0 { ring_size(members.len()) } else { listed(size) };
        let members = sorted(members);
        let members = &members[..members.len().min(MEMBERS_MAX)];
        let digest = set_digest(members, size);
        if let Some(ring) = self.rings.get(&digest).and_then(Weak::upgrade) {
            return Some((digest, ring));
        }
        let ring = Arc::new(Ring::fill_digested(members, size, digest)?);
        self.sweep();
        self.rings.insert(digest, Arc::downgrade(&ring));
        Some((digest, ring))
    }

    /// Finds these too from now on, as long as they live; of a set that has a ring here already that one stays.
    pub fn adopt(&mut self, made: &[Made]) {
        for (digest, ring) in made {
            self.sweep();
            let known = self.rings.entry(*digest).or_default();
            if known.strong_count() == 0 {
                *known = Arc::downgrade(ring);
            }
        }
    }

    /// Forgets what is dead, once in as many new rings as there were living ones.
    fn sweep(&mut self) {
        if self.rings.len() >= self.sweep_at {
            self.rings.retain(|_, ring| ring.strong_count() > 0);
            self.sweep_at = (self.rings.len() * 2).max(64);
        }
    }

    /// Rings alive.
    pub fn live(&self) -> usize {
        self.rings.values().filter(|ring| ring.strong_count() > 0).count()
    }
}

/// Hash of a flow for [`Ring::pick`]: SipHash-1-3 of addresses, ports and protocol in network order, `N` = 4 or 16 bytes an
/// address. The same key gives the same number on every gateway (L-009); without it an outsider can neither predict nor
/// aim (collision attacks).
#[inline]
pub fn flow_hash<const N: usize>(
    key: &[u8; 16],
    source: &[u8; N],
    source_port: u16,
    destination: &[u8; N],
    destination_port: u16,
    protocol: u8,
) -> u64 {
    const { assert!(N == 4 || N == 16) };
    let mut bytes = [0; 37];
    bytes[..N].copy_from_slice(source);
    bytes[N..2 * N].copy_from_slice(destination);
    bytes[2 * N..2 * N + 2].copy_from_slice(&source_port.to_be_bytes());
    bytes[2 * N + 2..2 * N + 4].copy_from_slice(&destination_port.to_be_bytes());
    bytes[2 * N + 4] = protocol;
    SipHasher13::new_with_key(key).hash(&bytes[..2 * N + 5])
}

fn sorted<K: AsRef<[u8]>>(members: &[(K, u16)]) -> Vec<(&[u8], u16)> {
    let mut sorted: Vec<(&[u8], u16)> = members.iter().map(|(key, weight)| (key.as_ref(), *weight)).collect();
    sorted.sort_unstable();
    sorted
}

fn set_digest(members: &[(&[u8], u16)], size: u32) -> (u64, u64) {
    let mut hasher = SipHasher13Wide::new_with_key(SET_KEY);
    hasher.write(&size.to_be_bytes());
    for (key, weight) in members {
        hasher.write(&(key.len() as u64).to_be_bytes());
        hasher.write(key);
        hasher.write(&weight.to_be_bytes());
    }
    hasher.finish128().as_u64()
}

#[inline]
fn reduce(hash: u64, size: usize) -> usize {
    // The upper half of the hash is enough for a million slots, and the product fits 64 bits.
    usize::try_from(((hash >> 32) * size as u64) >> 32).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
