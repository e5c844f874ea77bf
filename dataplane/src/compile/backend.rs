//! Backends: ids that outlive endpoints.
//!
//! An endpoint keeps its id for as long as its Service port has it, and gets the same one back when it returns: its key
//! is the Service port (an id of its own per Service uid, protocol, port and family), address and port. One that left is
//! `Gone`: its row stays for the flows that end by themselves (S-100). Its id is given to another endpoint after
//! [`QUARANTINE`], or sooner when more than [`GONE_MAX`] wait; the row's epoch moves then, and flows compare address and
//! port when it does, so that even then no flow changes its backend unseen.

use std::collections::{BTreeMap, VecDeque};

use hashbrown::HashMap;

use super::Nanos;
use crate::table::backend::{BackendRow, BackendState, BackendTable};
use crate::table::{BackendId, Family, ServiceId};

/// How long an id stays with an endpoint that left: longer than an idle established TCP flow lives (N-081: 2 h 4 min).
pub const QUARANTINE: Nanos = 3 * 3600 * 1_000_000_000;
/// Ids that may wait at once; 64 B each in the table.
pub const GONE_MAX: usize = 262_144;

/// Places in the queue that may lead nowhere before they are looked for.
const WAITING_SLACK: usize = 1024;

/// What identifies an endpoint: Service port, address in mapped form, port. A node: Service port, key of its name, 0.
pub type BackendKey = (ServiceId, [u8; 16], u16);

/// Which endpoint has which id.
#[derive(Debug, Default)]
pub struct Backends {
    given: u32,
    /// By Service port first, so that what one has lost is found without the others.
    gone: BTreeMap<BackendKey, Gone>,
    /// By time of leaving; entries that came back meanwhile are passed over.
    waiting: VecDeque<(Nanos, BackendKey)>,
    /// Ids by the address of their endpoint, those of endpoints that left included: flows of these may go on.
    at: HashMap<[u8; 16], Ids>,
}

/// Ids of the endpoints at one address: of most there is one, which takes no memory of its own.
#[derive(Debug)]
enum Ids {
    One(BackendId),
    Several(Vec<BackendId>),
}

impl Ids {
    fn as_slice(&self) -> &[BackendId] {
        match self {
            Ids::One(id) => std::slice::from_ref(id),
            Ids::Several(ids) => ids,
        }
    }

    fn push(&mut self, id: BackendId) {
        match self {
            Ids::One(first) => *self = Ids::Several(vec![*first, id]),
            Ids::Several(ids) => ids.push(id),
        }
    }

    /// Without `id`; false when there is none left.
    fn remove(&mut self, id: BackendId) -> bool {
        match self {
            Ids::One(only) => *only != id,
            Ids::Several(ids) => {
                ids.retain(|at| *at != id);
                !ids.is_empty()
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Gone {
    id: BackendId,
    since: Nanos,
}

impl Backends {
    /// Nobody yet, and ids from `first` on.
    pub fn from(first: u32) -> Backends {
        Backends { given: first, ..Backends::default() }
    }

    /// Whether no id was ever given.
    pub fn is_untouched(&self) -> bool {
        self.given == 0
    }

    /// Makes room for so many more endpoints at once.
    pub fn reserve(&mut self, endpoints: usize) {
        self.at.reserve(endpoints);
    }

    /// Writes an endpoint that is there and returns its id. `known` is the id it has, if it was there before.
    pub fn set(
        &mut self,
        known: Option<BackendId>,
        key: BackendKey,
        family: Family,
        state: BackendState,
        table: &mut BackendTable,
        now: Nanos,
    ) -> BackendId {
        let (service, address, port) = key;
        let row = BackendRow { address, family, port, service, state, ..BackendRow::default() };
        self.set_row(known, key, row, table, now)
    }

    /// The same for any row.
    pub fn set_row(
        &mut self,
        known: Option<BackendId>,
        key: BackendKey,
        row: BackendRow,
        table: &mut BackendTable,
        now: Nanos,
    ) -> BackendId {
        let id = known.or_else(|| self.gone.remove(&key).map(|gone| gone.id)).unwrap_or_else(|| {
            let id = self.fresh(now);
            self.at.entry(key.1).and_modify(|ids| ids.push(id)).or_insert(Ids::One(id));
            id
        });
        table.set(id, row);
        id
    }

    /// An endpoint left.
    pub fn leave(&mut self, id: BackendId, key: BackendKey, table: &mut BackendTable, now: Nanos) {
        table.set_state(id, BackendState::Gone);
        self.gone.insert(key, Gone { id, since: now });
        self.waiting.push_back((now, key));
        // One that comes and goes without end leaves a place in the queue each time.
        if self.waiting.len() > 2 * self.gone.len() + WAITING_SLACK {
            let gone = &self.gone;
            self.waiting.retain(|(since, key)| gone.get(key).is_some_and(|gone| gone.since == *since));
        }
    }

    /// Ids of all endpoints at an address (mapped form), of every Service port and of a pod by itself, those that left
    /// included. Of nodes: by the key of their name.
    pub fn at(&self, address: &[u8; 16]) -> &[BackendId] {
        self.at.get(address).map_or(&[], Ids::as_slice)
    }

    /// Ids of endpoints that are gone.
    pub fn gone_len(&self) -> usize {
        self.gone.len()
    }

    /// A Service port is no more: its endpoints that are gone must not be taken for another's.
    pub fn orphan(&mut self, service: ServiceId, table: &mut BackendTable) {
        let whole = (service, [0; 16], 0)..=(service, [0xff; 16], u16::MAX);
        let orphans: Vec<_> = self.gone.range(whole).map(|(key, _)| *key).collect();
        for key in orphans {
            let Some(gone) = self.gone.remove(&key) else { continue };
            let orphaned = (ServiceId::NONE, key.1, key.2);
            if let Some(row) = table.row(gone.id).copied() {
                table.set(gone.id, BackendRow { service: ServiceId::NONE, ..row });
            }
            // Two Services may have had the same endpoint: the later one waits, the earlier is simply never reused.
            self.gone.insert(orphaned, gone);
            self.waiting.push_back((gone.since, orphaned));
        }
    }

    /// An id will be that of another endpoint.
    fn move_out(&mut self, address: &[u8; 16], id: BackendId) {
        if self.at.get_mut(address).is_some_and(|ids| !ids.remove(id)) {
            self.at.remove(address);
        }
    }

    fn fresh(&mut self, now: Nanos) -> BackendId {
        while let Some((since, key)) = self.waiting.front().copied() {
            let current = self.gone.get(&key).filter(|gone| gone.since == since);
            let over = now.saturating_sub(since) >= QUARANTINE || self.gone.len() > GONE_MAX;
            match current {
                None => drop(self.waiting.pop_front()),
                Some(gone) if over => {
                    let id = gone.id;
                    self.waiting.pop_front();
                    self.gone.remove(&key);
                    self.move_out(&key.1, id);
                    return id;
                }
                Some(_) => break,
            }
        }
        let id = BackendId(self.given);
        self.given += 1;
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> BackendKey {
        (ServiceId(1), [number; 16], 80)
    }

    fn set(backends: &mut Backends, table: &mut BackendTable, number: u8, now: Nanos) -> BackendId {
        backends.set(None, key(number), Family::V6, BackendState::Active, table, now)
    }

    #[test]
    fn an_endpoint_that_returns_gets_its_id_back_with_another_epoch() {
        let (mut backends, mut table) = (Backends::default(), BackendTable::default());
        let id = set(&mut backends, &mut table, 1, 0);
        let first = table.epoch(id);
        backends.leave(id, key(1), &mut table, 5);
        assert_eq!(table.row(id).unwrap().state, BackendState::Gone);
        let gone = table.epoch(id);
        assert_eq!(set(&mut backends, &mut table, 1, 10), id);
        assert!(first != gone && gone != table.epoch(id) && backends.gone_len() == 0);
        // Leaving twice must not let the first leave's place in the queue free the second.
        backends.leave(id, key(1), &mut table, 20);
        assert_ne!(set(&mut backends, &mut table, 2, 5 + QUARANTINE), id);
        assert_eq!(backends.at(&[1; 16]), [id], "its flows may go on");
        assert_eq!(set(&mut backends, &mut table, 3, 20 + QUARANTINE), id);
        assert_eq!(table.row(id).unwrap().address, [3; 16]);
        assert_eq!((backends.at(&[1; 16]), backends.at(&[3; 16])), (&[][..], &[id][..]));
    }

    #[test]
    fn an_id_waits_out_its_quarantine() {
        let (mut backends, mut table) = (Backends::default(), BackendTable::default());
        let id = set(&mut backends, &mut table, 1, 0);
        backends.leave(id, key(1), &mut table, 100);
        assert_ne!(set(&mut backends, &mut table, 2, 99 + QUARANTINE), id);
        let epoch = table.epoch(id);
        assert_eq!(set(&mut backends, &mut table, 3, 100 + QUARANTINE), id);
        assert_ne!(table.epoch(id), epoch);
    }

    #[test]
    fn an_endpoint_that_comes_and_goes_takes_no_room() {
        let (mut backends, mut table) = (Backends::default(), BackendTable::default());
        let id = set(&mut backends, &mut table, 1, 0);
        for now in 0..10_000 {
            backends.leave(id, key(1), &mut table, now);
            assert_eq!(set(&mut backends, &mut table, 1, now), id);
        }
        backends.leave(id, key(1), &mut table, 10_000);
        assert!(backends.waiting.len() <= WAITING_SLACK + 3, "{}", backends.waiting.len());
        assert_eq!(set(&mut backends, &mut table, 2, 10_000 + QUARANTINE), id, "the last leave still has its place");
    }

    #[test]
    fn a_gone_endpoint_forgets_a_service_that_is_no_more() {
        let (mut backends, mut table) = (Backends::default(), BackendTable::default());
        let id = set(&mut backends, &mut table, 1, 0);
        backends.leave(id, key(1), &mut table, 1);
        backends.orphan(ServiceId(1), &mut table);
        assert_eq!(table.row(id).unwrap().service, ServiceId::NONE);
        assert_eq!(table.row(id).unwrap().state, BackendState::Gone);
        assert_eq!(set(&mut backends, &mut table, 9, 1 + QUARANTINE), id, "and still waits its turn");
    }
}
