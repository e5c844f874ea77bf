//! Neighbours: rows for every next hop and for every address a worker asked for.
//!
//! Owns ids, who needs which neighbour, and what has been asked of the kernel. The kernel resolves; this file copies.
//! Next hops come and go with routes and tunnels. Wanted addresses (clients on a connected link) come from workers and
//! are bounded: whoever can send packets with invented sources must not fill the kernel's cache or our ids.
//!
//! A neighbour nobody needs any more keeps its id and its row, and the kernel is told that it need not be kept: flows may
//! still name it, and freeing rows one by one would send every flow through the slow path again and again, at the pace
//! of whoever invents addresses. Only when there are very many do all that sleep go at once, and `routes_epoch` moves.
//!
//! What is asked of the kernel is collected in [`Neighbours::take_asks`] and carried out after the publish.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::device::Devices;
use super::ids::Ids;
use super::{Nanos, address_of, mapped_ip};
use crate::kernel::{KernelFacts, Neighbour, NeighbourKey, nud};
use crate::table::neighbour::{NeighbourRow, NeighbourState, NeighbourTable};
use crate::table::{DeviceId, NeighbourId};

/// Most neighbours kept because workers asked for them.
pub const WANTED_MAX: usize = 8192;
/// Neighbours at which those that nobody needs are let go.
pub const ENTRIES_MAX: usize = 49_152;
/// A wanted neighbour that failed is put to sleep when nobody has asked again for this long.
const FORGET_FAILED: Nanos = 60_000_000_000;
/// The same when there is no room for others.
const FORGET_FAILED_PRESSED: Nanos = 3_000_000_000;
/// The kernel is not asked again about the same neighbour before this time.
const ASK_AGAIN: Nanos = 1_000_000_000;
/// A kernel that keeps no managed neighbours is asked again this often: below half of its base_reachable_time.
const ASK_UNMANAGED: Nanos = 10_000_000_000;

/// One wish to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Resolve, and keep resolved.
    Keep(NeighbourKey),
    /// Resolve now.
    Probe(NeighbourKey),
    /// Let it age again.
    Release(NeighbourKey),
}

/// All neighbours there are rows for.
#[derive(Debug, Default)]
pub struct Neighbours {
    ids: Ids,
    entries: HashMap<NeighbourId, Entry>,
    by_place: HashMap<Place, NeighbourId>,
    wanted: usize,
    asks: Vec<Ask>,
    /// An id was let go or given out again: flows must ask for theirs.
    again: bool,
    refused: u64,
    /// There are entries the kernel has not been asked about.
    fresh: bool,
}

type Place = (DeviceId, [u8; 16]);

#[derive(Clone, Copy, Debug)]
struct Entry {
    place: Place,
    /// Some route or tunnel leads there.
    hop: bool,
    /// When a worker asked for it last; `None`: none did.
    wanted_at: Option<Nanos>,
    /// What the kernel was told to keep, and when it was asked last.
    asked: Option<(NeighbourKey, Nanos)>,
    /// False once the kernel has said that it cannot keep it by itself.
    managed: bool,
}

impl Neighbours {
    /// The id of a next hop. Its row is written by [`Neighbours::write`]. `None` when there are no ids left.
    pub fn hop(&mut self, device: DeviceId, address: [u8; 16]) -> Option<NeighbourId> {
        let id = self.id((device, address))?;
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.hop = true;
            self.fresh |= entry.asked.is_none();
        }
        Some(id)
    }

    /// Ends a round of [`Neighbours::hop`]: what is not in `hops` is no next hop any more.
    pub fn keep_hops(&mut self, hops: &HashSet<NeighbourId>) {
        for (id, entry) in &mut self.entries {
            entry.hop = hops.contains(id);
            sleep_if_idle(entry, &mut self.asks);
        }
        self.let_sleepers_go();
    }

    /// A worker has a packet for this address. True when there is a new row to write.
    pub fn want(
        &mut self,
        device: DeviceId,
        address: [u8; 16],
        facts: &KernelFacts,
        devices: &Devices,
        now: Nanos,
    ) -> bool {
        let place = (device, address);
        if devices.row(device).is_none() || !is_host(address) {
            return false;
        }
        let known = self.by_place.get(&place).copied();
        let is_wanted = known.and_then(|id| self.entries.get(&id)).is_some_and(|entry| entry.wanted_at.is_some());
        if !is_wanted {
            if self.wanted >= WANTED_MAX {
                self.forget_failed(facts, devices, now, FORGET_FAILED_PRESSED);
            }
            if self.wanted >= WANTED_MAX {
                self.refused += 1;
                if self.refused.is_power_of_two() {
                    tracing::warn!(refused = self.refused, max = WANTED_MAX, "too many neighbours are wanted at once");
                }
                return false;
            }
        }
        let Some(id) = self.id(place) else { return false };
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        self.fresh |= entry.asked.is_none();
        self.wanted += usize::from(entry.wanted_at.is_none());
        entry.wanted_at = Some(now);
        let due = entry.asked.is_some_and(|(_, at)| now.saturating_sub(at) >= ASK_AGAIN);
        if due
            && let Some(key) = key_of(place, devices)
            && usable(facts, &key).is_none()
        {
            entry.asked = Some((key, now));
            self.asks.push(Ask::Probe(key));
        }
        known.is_none()
    }

    /// Writes the rows of all neighbours. True when any differs.
    pub fn write(&self, facts: &KernelFacts, devices: &Devices, table: &mut NeighbourTable) -> bool {
        let mut changed = false;
        let gone: Vec<_> = table.rows().map(|(id, _)| id).filter(|id| !self.entries.contains_key(id)).collect();
        for id in gone {
            table.clear(id);
            changed = true;
        }
        for (id, entry) in &self.entries {
            changed |= write_row(*id, entry.place, facts, devices, table);
        }
        changed
    }

    /// Writes the rows of the neighbours in `keys`, which the kernel has news of. True when any differs.
    pub fn write_some<'a>(
        &self,
        keys: impl Iterator<Item = &'a NeighbourKey>,
        facts: &KernelFacts,
        devices: &Devices,
        table: &mut NeighbourTable,
    ) -> bool {
        let mut changed = false;
        for key in keys {
            let Some(device) = devices.by_ifindex(key.ifindex) else { continue };
            let place = (device, mapped_ip(key.address));
            if let Some(id) = self.by_place.get(&place) {
                changed |= write_row(*id, place, facts, devices, table);
            }
        }
        changed
    }

    /// What time brings: neighbours the kernel has not been asked about or has lost are asked for, failed ones nobody
    /// wants any more are put to sleep. True when rows have to be written anew.
    pub fn tick(&mut self, facts: &KernelFacts, devices: &Devices, now: Nanos) -> bool {
        let before = self.entries.len();
        self.fresh = false;
        self.forget_failed(facts, devices, now, FORGET_FAILED);
        for entry in self.entries.values_mut().filter(|entry| !entry.is_idle()) {
            let Some(key) = key_of(entry.place, devices).filter(|_| devices.is_up(entry.place.0)) else { continue };
            let known = facts.neighbours.get(&key);
            // What an administrator has set is resolved for good, and a wish would undo it.
            if known.is_some_and(|known| known.state & (nud::PERMANENT | nud::NOARP) != 0) {
                continue;
            }
            let kept = known.is_some_and(|known| known.managed);
            let since = entry.asked.filter(|(asked, _)| *asked == key).map(|(_, at)| now.saturating_sub(at));
            let pause = if entry.managed { ASK_AGAIN } else { ASK_UNMANAGED };
            if !kept && since.is_none_or(|since| since >= pause) {
                entry.asked = Some((key, now));
                self.asks.push(Ask::Keep(key));
            }
        }
        self.entries.len() != before
    }

    /// What the kernel knows of those that somebody needs.
    pub fn known<'a>(
        &'a self,
        facts: &'a KernelFacts,
        devices: &'a Devices,
    ) -> impl Iterator<Item = (NeighbourKey, Neighbour)> + 'a {
        let needed = self.entries.values().filter(|entry| !entry.is_idle());
        let keys = needed.filter_map(|entry| key_of(entry.place, devices));
        keys.filter_map(|key| Some((key, *facts.neighbours.get(&key)?)))
    }

    /// Whether [`Neighbours::tick`] should be called now rather than in time.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Wishes to the kernel since the last call, in order.
    pub fn take_asks(&mut self) -> Vec<Ask> {
        std::mem::take(&mut self.asks)
    }

    /// The kernel's answer to [`Ask::Keep`]: whether it keeps `key` by itself.
    pub fn kept(&mut self, key: NeighbourKey, managed: bool, devices: &Devices) {
        let Some(device) = devices.by_ifindex(key.ifindex) else { return };
        let id = self.by_place.get(&(device, mapped_ip(key.address)));
        if let Some(entry) = id.and_then(|id| self.entries.get_mut(id)) {
            entry.managed = managed;
        }
    }

    /// Whether an id was given out again since the last call.
    pub fn take_again(&mut self) -> bool {
        std::mem::take(&mut self.again)
    }

    /// The row's address and device as the kernel knows them.
    pub fn key(row: &NeighbourRow, devices: &Devices) -> Option<NeighbourKey> {
        key_of((row.device, row.address), devices)
    }

    fn id(&mut self, place: Place) -> Option<NeighbourId> {
        if let Some(id) = self.by_place.get(&place) {
            return Some(*id);
        }
        let Some(given) = self.ids.give() else {
            tracing::error!("no neighbour id is left");
            return None;
        };
        self.again |= given.again;
        let id = NeighbourId(given.id);
        self.by_place.insert(place, id);
        self.entries.insert(id, Entry { place, hop: false, wanted_at: None, asked: None, managed: true });
        Some(id)
    }

    /// Nobody has asked for `age` for a neighbour that does not answer: it is wanted no more.
    fn forget_failed(&mut self, facts: &KernelFacts, devices: &Devices, now: Nanos, age: Nanos) {
        for entry in self.entries.values_mut() {
            let old = entry.wanted_at.is_some_and(|at| now.saturating_sub(at) >= age);
            if old && key_of(entry.place, devices).is_none_or(|key| usable(facts, &key).is_none()) {
                entry.wanted_at = None;
                self.wanted -= 1;
                sleep_if_idle(entry, &mut self.asks);
            }
        }
        self.let_sleepers_go();
    }

    fn let_sleepers_go(&mut self) {
        if self.entries.len() < ENTRIES_MAX {
            return;
        }
        let idle: Vec<_> =
            self.entries.iter().filter(|(_, entry)| entry.is_idle()).map(|(id, entry)| (*id, entry.place)).collect();
        for (id, place) in idle {
            self.entries.remove(&id);
            self.by_place.remove(&place);
            self.ids.take_back(id.0);
            self.again = true;
        }
    }
}

impl Entry {
    fn is_idle(&self) -> bool {
        !self.hop && self.wanted_at.is_none()
    }
}

/// Takes back what was asked of the kernel for a neighbour nobody needs.
fn sleep_if_idle(entry: &mut Entry, asks: &mut Vec<Ask>) {
    if entry.is_idle() {
        asks.extend(entry.asked.take().map(|(key, _)| Ask::Release(key)));
    }
}

/// Addresses one host can have: a solicitation for anything else would be noise.
fn is_host(address: [u8; 16]) -> bool {
    match address_of(&address) {
        IpAddr::V4(v4) => !v4.is_unspecified() && !v4.is_multicast() && !v4.is_broadcast() && !v4.is_loopback(),
        IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_multicast() && !v6.is_loopback(),
    }
}

fn key_of((device, address): Place, devices: &Devices) -> Option<NeighbourKey> {
    Some(NeighbourKey { ifindex: devices.row(device)?.ifindex, address: address_of(&address) })
}

fn usable(facts: &KernelFacts, key: &NeighbourKey) -> Option<[u8; 6]> {
    facts.neighbours.get(key).and_then(Neighbour::usable_mac)
}

fn write_row(
    id: NeighbourId,
    (device, address): Place,
    facts: &KernelFacts,
    devices: &Devices,
    table: &mut NeighbourTable,
) -> bool {
    let known = key_of((device, address), devices).and_then(|key| facts.neighbours.get(&key));
    let (state, mac) = match known {
        Some(known) => match known.usable_mac() {
            Some(mac) => (NeighbourState::Resolved, mac),
            None if known.failed() => (NeighbourState::Failed, [0; 6]),
            None => (NeighbourState::Unresolved, [0; 6]),
        },
        None => (NeighbourState::Unresolved, [0; 6]),
    };
    let row = NeighbourRow { device, mac, state, address };
    if table.row(id) == Some(&row) {
        return false;
    }
    table.set(id, row);
    true
}
