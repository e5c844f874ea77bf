//! Endpoint-independent mappings: one external port of a pod's port, whatever it sends to (RFC 4787 REQ-1).
//!
//! Owns which pod port has which external port, and which addresses the pod has sent to from it (RFC 4787 REQ-8). It refuses
//! to know policies and how a port is chosen.
//!
//! Flows are flows here as everywhere: each has its own entry and its established packets never look at the mapping. A mapping
//! is what new flows of the same pod port find. It lives as long as one of its flows does, and each of those as long as the
//! pod sends (N-008). Afterwards it rests for [`super::tcp`]'s time: its pod may have it again, and nobody else gets the port
//! (N-042).
//!
//! A mapping, and a permit of an address to send to it, are entries of a flow table of their own, by tuples with holes:
//!
//! ```text
//! mapping   pod:port -> nobody:0      |  nobody:0 -> external:port
//! permit    pod:port -> remote:0      |  remote:0 -> external:port
//! ```
//!
//! `last_ack[0]` counts the flows that use one, `tunnel` is the number of its policy, `backend` the row of its pod.

use std::io;

use tidegate_io::mem::HugePages;

use super::{
    Address, DOMAIN_OVERLAY, DOMAIN_WIRE, Entry, FlowId, FlowState, FlowTable, NewFlow, Ticks, Tuple, Victim,
    ticks_since,
};

/// An address and a port in host order.
pub type End<A> = (A, u16);

/// A mapping as it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping<A> {
    /// Its row.
    pub id: FlowId,
    /// The pod's port.
    pub inside: End<A>,
    /// What the outside sees.
    pub outside: End<A>,
    /// Row of its pod.
    pub pod: u32,
    /// Number of its policy.
    pub policy: u16,
    /// Whether nothing uses it any more.
    pub is_resting: bool,
    /// How long it has been so.
    pub rested_ticks: Ticks,
    /// Whether it is recorded who has its port.
    pub is_recorded: bool,
}

/// What a mapping is made of.
#[derive(Debug, Clone, Copy)]
pub struct NewMapping<A> {
    /// The pod's port.
    pub inside: End<A>,
    /// What the outside sees.
    pub outside: End<A>,
    /// IANA protocol number.
    pub protocol: u8,
    /// Row of the pod.
    pub pod: u32,
    /// Number of the policy.
    pub policy: u16,
    /// Whether it is recorded who has its port.
    pub is_recorded: bool,
}

/// No room for another mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the table of mappings is full")]
pub struct MappingsFull;

/// The mappings of one family that one worker gave. Kind: state.
#[derive(Debug)]
pub struct Mappings<A: Address> {
    table: FlowTable<A>,
}

impl<A: Address> Mappings<A> {
    /// Room for so many mappings and permits together.
    ///
    /// # Errors
    /// What mmap(2) reports.
    pub fn new(entries_max: u32, seed: [u64; 2], huge: HugePages) -> io::Result<Mappings<A>> {
        Ok(Mappings { table: FlowTable::new(entries_max, seed, huge)? })
    }

    /// Mappings and permits.
    pub fn live(&self) -> u32 {
        self.table.live()
    }

    /// The mapping of a pod's port, resting or not.
    pub fn of_inside(&self, inside: End<A>, protocol: u8, now: Ticks) -> Option<Mapping<A>> {
        self.find(&inner(inside, (A::new_zeroed(), 0), protocol), now)
    }

    /// The mapping that has an external port, resting or not.
    pub fn of_outside(&self, outside: End<A>, protocol: u8, now: Ticks) -> Option<Mapping<A>> {
        self.find(&outer((A::new_zeroed(), 0), outside, protocol), now)
    }

    /// Whether the pod has sent to `remote` from the mapping's port, not too long ago.
    pub fn is_permitted(&self, outside: End<A>, protocol: u8, remote: A) -> bool {
        self.table.lookup(&outer((remote, 0), outside, protocol)).is_some()
    }

    fn find(&self, tuple: &Tuple<A>, now: Ticks) -> Option<Mapping<A>> {
        let id = self.table.lookup(tuple)?.flow;
        Some(read(id, self.table.entry(id), now))
    }

    /// A flow to `remote` begins by mapping `new`, which may be there already. Returns whether it was not, or rested.
    ///
    /// # Errors
    /// Then nothing has changed.
    pub fn join(&mut self, new: &NewMapping<A>, remote: A, now: Ticks) -> Result<Joined, MappingsFull> {
        let nobody = A::new_zeroed();
        let mapping = self.table.lookup(&inner(new.inside, (nobody, 0), new.protocol)).map(|hit| hit.flow);
        let permit = self.table.lookup(&inner(new.inside, (remote, 0), new.protocol)).map(|hit| hit.flow);
        let (mapping, joined) = match mapping {
            Some(id) if self.table.entry(id).state == FlowState::RESTING => (id, Joined::Resumed),
            Some(id) => (id, Joined::Known),
            None => (self.insert(new, nobody, FlowState::MAPPED, now)?, Joined::New),
        };
        let permit = match permit {
            Some(id) => id,
            None => match self.insert(new, remote, FlowState::PERMIT, now) {
                Ok(id) => id,
                Err(full) => {
                    if joined == Joined::New {
                        self.table.remove(mapping);
                    }
                    return Err(full);
                }
            },
        };
        for id in [mapping, permit] {
            let entry = self.table.entry_mut(id);
            entry.last_ack[0] += 1;
            entry.last_seen_ticks = now;
        }
        self.table.entry_mut(mapping).state = FlowState::MAPPED;
        self.table.entry_mut(mapping).tunnel = new.policy;
        Ok(joined)
    }

    /// A flow to `remote` by the mapping of a pod's port has ended. True: it was the last one, and the mapping rests.
    pub fn leave(&mut self, inside: End<A>, protocol: u8, remote: A, now: Ticks) -> bool {
        if let Some(hit) = self.table.lookup(&inner(inside, (remote, 0), protocol)) {
            let users = &mut self.table.entry_mut(hit.flow).last_ack[0];
            *users = users.saturating_sub(1);
            if *users == 0 {
                self.table.remove(hit.flow);
            }
        }
        let Some(hit) = self.table.lookup(&inner(inside, (A::new_zeroed(), 0), protocol)) else { return false };
        let entry = self.table.entry_mut(hit.flow);
        debug_assert!(entry.last_ack[0] > 0, "a mapping is left once by each flow");
        entry.last_ack[0] = entry.last_ack[0].saturating_sub(1);
        let rests = entry.last_ack[0] == 0 && entry.state == FlowState::MAPPED;
        if rests {
            entry.state = FlowState::RESTING;
            entry.last_seen_ticks = now;
        }
        rests
    }

    /// Ends a mapping that rests, so that its port can be given to somebody else; false when flows use it.
    pub fn end(&mut self, id: FlowId) -> bool {
        self.table.entry(id).state == FlowState::RESTING && self.table.remove(id)
    }

    /// Ends a mapping that rests if the table is crowded, and returns it with its protocol (N-100).
    pub fn spare(&mut self, now: Ticks) -> Option<(Mapping<A>, u8)> {
        let Victim::Spared(id) = self.table.victim(FlowState::MAPPED, now)? else { return None };
        let entry = self.table.entry(id);
        if entry.state != FlowState::RESTING {
            return None;
        }
        let (mapping, protocol) = (read(id, entry, now), entry.protocol());
        self.table.remove(id);
        Some((mapping, protocol))
    }

    /// Ends mappings that have rested long enough, and those at rest that `is_void` says nobody may come back to, among the
    /// rows that are due `elapsed` ticks after the last look; each is shown.
    pub fn expire(
        &mut self,
        now: Ticks,
        elapsed: Ticks,
        rows_max: u32,
        mut is_void: impl FnMut(&Entry<A>) -> bool,
        mut on_end: impl FnMut(Mapping<A>, u8),
    ) {
        if self.table.live() == 0 {
            return;
        }
        let rows = self.table.sweep_share(elapsed).min(rows_max);
        let is_void = |entry: &mut Entry<A>| entry.state == FlowState::RESTING && is_void(entry);
        self.table.sweep_judging(now, rows, is_void, |id, swept| {
            if let super::Swept::Expired(entry) = swept
                && entry.state == FlowState::RESTING
            {
                on_end(read(id, entry, now), entry.protocol());
            }
        });
    }

    /// Shows mappings among `rows_max` rows from row `from` on, and their users. Returns where to go on.
    pub fn visit(&self, from: u32, rows_max: u32, mut on_mapping: impl FnMut(Mapping<A>, u8, u32)) -> Option<u32> {
        self.table.visit(from, rows_max, |id, entry| {
            if entry.state != FlowState::PERMIT {
                on_mapping(read(id, entry, entry.last_seen_ticks), entry.protocol(), entry.last_ack[0]);
            }
        })
    }

    fn insert(&mut self, new: &NewMapping<A>, remote: A, state: FlowState, now: Ticks) -> Result<FlowId, MappingsFull> {
        let entry = NewFlow {
            original: inner(new.inside, (remote, 0), new.protocol),
            translated: outer((remote, 0), new.outside, new.protocol).reversed(DOMAIN_WIRE),
            state,
            mark: u8::from(new.is_recorded),
            backend: new.pod,
            backend_epoch: 0,
            routes_epoch: 0,
            tunnel: new.policy,
            next_hop: 0,
            last_ack: [0; 2],
        };
        self.table.insert(&entry, now).map_err(|_| MappingsFull)
    }
}

/// What joining a mapping did to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joined {
    /// It is new.
    New,
    /// It rested until now.
    Resumed,
    /// Other flows use it.
    Known,
}

fn read<A: Address>(id: FlowId, entry: &Entry<A>, now: Ticks) -> Mapping<A> {
    let (original, translated) = (entry.original_tuple(), entry.translated_tuple());
    Mapping {
        id,
        inside: (original.source, original.source_port),
        outside: (translated.source, translated.source_port),
        pod: entry.backend,
        policy: entry.tunnel,
        is_resting: entry.state == FlowState::RESTING,
        rested_ticks: ticks_since(entry.last_seen_ticks, now),
        is_recorded: entry.mark != 0,
    }
}

fn inner<A>(inside: End<A>, remote: End<A>, protocol: u8) -> Tuple<A> {
    Tuple {
        source: inside.0,
        destination: remote.0,
        source_port: inside.1,
        destination_port: remote.1,
        protocol,
        domain: DOMAIN_OVERLAY,
    }
}

fn outer<A>(remote: End<A>, outside: End<A>, protocol: u8) -> Tuple<A> {
    Tuple {
        source: remote.0,
        destination: outside.0,
        source_port: remote.1,
        destination_port: outside.1,
        protocol,
        domain: DOMAIN_WIRE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::oracle::Numbered;

    fn new<A: Numbered>(pod: u32, port: u16, external: u16) -> NewMapping<A> {
        let (inside, outside) = ((A::numbered(0x0af4_0100 + pod), port), (A::numbered(0xcb00_7101), external));
        NewMapping { inside, outside, protocol: 17, pod, policy: 3, is_recorded: false }
    }

    fn lives<A: Numbered>() {
        let mut mappings = Mappings::<A>::new(64, [1, 2], HugePages::Off).unwrap();
        let remote = |n: u32| A::numbered(0xc612_0000 + n);
        let at = new::<A>(1, 5000, 2000);
        assert_eq!(mappings.join(&at, remote(1), 0), Ok(Joined::New));
        assert_eq!(mappings.join(&at, remote(1), 0), Ok(Joined::Known));
        assert_eq!(mappings.join(&at, remote(2), 0), Ok(Joined::Known));
        let found = mappings.of_inside(at.inside, 17, 0).unwrap();
        assert_eq!((found.outside, found.policy, found.pod), (at.outside, 3, 1));
        assert_eq!(mappings.of_outside(at.outside, 17, 0), Some(found));
        assert_eq!((mappings.of_outside(at.outside, 6, 0), mappings.of_inside((remote(1), 5000), 17, 0)), (None, None));
        let permitted = |mappings: &Mappings<A>| [1, 2, 3].map(|n| mappings.is_permitted(at.outside, 17, remote(n)));
        assert_eq!(permitted(&mappings), [true, true, false]);
        assert!(!mappings.leave(at.inside, 17, remote(2), 1));
        assert_eq!(permitted(&mappings), [true, false, false]);
        assert!(!mappings.leave(at.inside, 17, remote(1), 2));
        assert_eq!(permitted(&mappings), [true, false, false]);
        assert!(mappings.leave(at.inside, 17, remote(1), 3), "the last one");
        assert_eq!((permitted(&mappings), mappings.live()), ([false; 3], 1));
        assert!(mappings.of_outside(at.outside, 17, 3).unwrap().is_resting);
        assert_eq!(mappings.join(&at, remote(3), 5), Ok(Joined::Resumed));
        assert!(mappings.leave(at.inside, 17, remote(3), 10));
        // N-042: 120 s.
        let mut ended = Vec::new();
        let rest = super::super::ticks_of_seconds(120);
        mappings.expire(10 + rest, 1 << 20, 64, |_| false, |mapping, protocol| ended.push((mapping.outside, protocol)));
        assert_eq!(ended, []);
        mappings.expire(11 + rest, 1 << 20, 64, |_| false, |mapping, protocol| ended.push((mapping.outside, protocol)));
        assert_eq!((ended, mappings.live()), (vec![(at.outside, 17)], 0));
    }

    #[test]
    fn a_mapping_lives_as_long_as_its_flows_and_then_rests() {
        lives::<[u8; 4]>();
        lives::<[u8; 16]>();
    }

    #[test]
    fn a_full_table_is_left_as_it_was() {
        let mut mappings = Mappings::<[u8; 4]>::new(1, [1, 2], HugePages::Off).unwrap();
        assert_eq!(mappings.join(&new(1, 5000, 2000), [9; 4], 0), Err(MappingsFull));
        assert_eq!(mappings.live(), 0);
    }
}
