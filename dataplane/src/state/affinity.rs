//! Affinity: which endpoint a client was given last, per Service port.
//!
//! Owns a table of fixed size from (client address, Service port) to a backend, with the time of the client's last new
//! connection. The port a client comes from and the address it asked for do not count: the same client reaches the same
//! endpoint through every frontend of the port (S-090). It refuses to know whether that endpoint may still be used; its
//! caller looks (S-092).
//!
//! A client that does not come back is forgotten by being written over: an entry whose time is over is a free place. One
//! whose time runs is never evicted. A client for whom there is no place is not remembered, and whoever asks is told so:
//! then the same endpoint has to be found by hashing, which keeps the client where it is while the endpoints stay the
//! same (S-095). So a flood of invented clients costs stickiness across changes, and no memory.
//!
//! Buckets of eight entries fill four cache lines; each client has two possible buckets, and goes to the first place
//! that is free in either. That fills the table to well above nine tenths before anybody finds no place.

use std::hash::Hasher;
use std::io;

use siphasher::sip::SipHasher13;
use tidegate_io::mem::{HugePages, Slab};
use zerocopy::FromZeros;

use super::{Ticks, ticks_since};
use crate::table::{BackendId, ServiceId};

/// Entries of a bucket.
const BUCKET: u32 = 8;

#[derive(Debug, Clone, Copy, FromZeros)]
#[repr(C)]
struct Entry {
    /// IPv4 in mapped form.
    client: [u8; 16],
    service: u32,
    backend: u32,
    seen_ticks: Ticks,
    /// How long it is remembered; 0: the entry was never used.
    timeout_ticks: Ticks,
}

const _: () = assert!(size_of::<Entry>() == 32);

impl Entry {
    fn is_of(&self, client: &[u8; 16], service: ServiceId) -> bool {
        self.timeout_ticks != 0 && self.service == service.0 && self.client == *client
    }

    fn is_over(&self, now: Ticks) -> bool {
        self.timeout_ticks == 0 || ticks_since(self.seen_ticks, now) >= self.timeout_ticks
    }
}

/// What is known of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remembered {
    /// It was given this endpoint, and its time runs.
    Backend(BackendId),
    /// Nothing; a choice made now can be remembered.
    Nothing,
    /// Nothing, and there is no place to remember a choice.
    NoPlace,
}

/// Clients and their endpoints. Kind: state.
#[derive(Debug)]
pub struct Affinity {
    entries: Slab<Entry>,
    /// Buckets less one; a power of two less one.
    mask: u64,
    key: [u8; 16],
}

impl Affinity {
    /// A table for `clients` clients, rounded up to a power of two, at least one bucket. Memory is touched as it is used.
    ///
    /// # Errors
    /// What mmap(2) reports.
    pub fn new(clients: u32, seed: [u64; 2], huge: HugePages) -> io::Result<Affinity> {
        let clients = clients.clamp(BUCKET, 1 << 28).next_power_of_two();
        let [a, b] = seed.map(u64::to_le_bytes);
        let mut key = [0; 16];
        key[..8].copy_from_slice(&a);
        key[8..].copy_from_slice(&b);
        Ok(Affinity { entries: Slab::new(clients, huge)?, mask: u64::from(clients / BUCKET) - 1, key })
    }

    /// What is known of `client` (mapped form) at `service`. Two buckets are read.
    #[must_use]
    pub fn recall(&self, client: &[u8; 16], service: ServiceId, now: Ticks) -> Remembered {
        let mut has_place = false;
        for at in self.places(client, service) {
            let Some(entry) = self.entries.get(at) else { continue };
            let is_over = entry.is_over(now);
            if entry.is_of(client, service) && !is_over {
                return Remembered::Backend(BackendId(entry.backend));
            }
            has_place |= is_over;
        }
        if has_place { Remembered::Nothing } else { Remembered::NoPlace }
    }

    /// Remembers that `client` (mapped form) was given `backend` at `service` for a new connection at `now`, for
    /// `timeout_ticks` from then on (S-091). False when there is no place for it.
    pub fn remember(
        &mut self,
        client: &[u8; 16],
        service: ServiceId,
        backend: BackendId,
        timeout_ticks: Ticks,
        now: Ticks,
    ) -> bool {
        let mut free = None;
        let mut own = None;
        for at in self.places(client, service) {
            let Some(entry) = self.entries.get(at) else { continue };
            if entry.is_of(client, service) {
                own = Some(at);
                break;
            }
            free = free.or_else(|| entry.is_over(now).then_some(at));
        }
        let Some(entry) = own.or(free).and_then(|at| self.entries.get_mut(at)) else { return false };
        *entry = Entry {
            client: *client,
            service: service.0,
            backend: backend.0,
            seen_ticks: now,
            timeout_ticks: timeout_ticks.max(1),
        };
        true
    }

    /// Clients it has room for.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.entries.capacity()
    }

    /// The entries of both buckets, by number.
    fn places(&self, client: &[u8; 16], service: ServiceId) -> impl Iterator<Item = u32> + use<> {
        let mut hasher = SipHasher13::new_with_key(&self.key);
        hasher.write(client);
        hasher.write_u32(service.0);
        let hash = hasher.finish();
        let buckets = [hash & self.mask, hash >> 32 & self.mask];
        buckets.into_iter().flat_map(|bucket| {
            let first = u32::try_from(bucket).unwrap_or(0) * BUCKET;
            first..first + BUCKET
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn client(n: u16) -> [u8; 16] {
        let [high, low] = n.to_be_bytes();
        if n.is_multiple_of(2) {
            crate::table::mapped(&[198, 18, high, low])
        } else {
            [high, low, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
        }
    }

    proptest! {
        /// As a map that forgets after the timeout: what is remembered is right, and nothing is lost before its time.
        #[test]
        fn remembers_as_a_map_does(
            ops in prop::collection::vec((0..40u16, 0..2u32, 0..4u32, 0..50u32, any::<bool>()), 1..300),
            start in prop::sample::select(vec![1u32, u32::MAX - 200]),
        ) {
            const TIMEOUT: Ticks = 100;
            let mut table = Affinity::new(64, [1, 2], HugePages::Off).unwrap();
            let mut oracle = HashMap::<(u16, u32), (u32, Ticks)>::new();
            let mut now: Ticks = start;
            for (who, service, backend, later, is_new) in ops {
                now = now.wrapping_add(later);
                let (address, id) = (client(who), ServiceId(service));
                let expected = oracle.get(&(who, service)).filter(|(_, seen)| now.wrapping_sub(*seen) < TIMEOUT);
                match (table.recall(&address, id, now), expected) {
                    (Remembered::Backend(found), Some((told, _))) => prop_assert_eq!(found.0, *told),
                    (Remembered::Nothing | Remembered::NoPlace, None) => {}
                    other => prop_assert!(false, "{:?}", other),
                }
                if is_new {
                    let had_place = table.recall(&address, id, now) != Remembered::NoPlace;
                    prop_assert_eq!(table.remember(&address, id, BackendId(backend), TIMEOUT, now), had_place);
                    if had_place {
                        oracle.insert((who, service), (backend, now));
                    }
                }
            }
        }
    }

    #[test]
    fn a_full_table_evicts_nobody_whose_time_runs() {
        let mut table = Affinity::new(1024, [3, 4], HugePages::Off).unwrap();
        let kept: Vec<u16> = (0..4000)
            .filter(|n| table.remember(&client(*n), ServiceId(1), BackendId(u32::from(*n)), 1000, 10))
            .collect();
        assert!(kept.len() > 950 && kept.len() <= 1024, "{}", kept.len());
        for n in &kept {
            assert_eq!(table.recall(&client(*n), ServiceId(1), 1009), Remembered::Backend(BackendId(u32::from(*n))));
        }
        let late = (0..4000).find(|n| !kept.contains(n)).unwrap();
        assert_eq!(table.recall(&client(late), ServiceId(1), 1009), Remembered::NoPlace);
        assert!(!table.remember(&client(late), ServiceId(1), BackendId(7), 1000, 1009));
        // S-091: at the timeout they are free to go.
        assert!(table.remember(&client(late), ServiceId(1), BackendId(7), 1000, 1010));
        assert_eq!(table.recall(&client(late), ServiceId(1), 1010), Remembered::Backend(BackendId(7)));
    }
}
