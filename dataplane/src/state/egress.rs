//! What one worker remembers of pods' flows to the outside, beside the flows themselves.
//!
//! It owns the rule that flows, mappings and port counts change together: a flow joins and parts here, called from where flows
//! begin and end and nowhere else. It refuses to know how a port was chosen and who may have one.

use std::io;

use super::ledger::{Outbox, PortEvent};
use super::mapping::{Joined, Mapping, Mappings, MappingsFull, NewMapping};
use super::ports::{PortBook, PortOf, Taker, TooMany};
use super::{Capacity, Entry, NewFlow, Ticks, mark};
use crate::family::Family;
use crate::limits;
use crate::table::EgressId;
use crate::table::egress::PortClass;

/// What a pod's flow to the outside is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// By which policy.
    pub policy: EgressId,
    /// Whose port.
    pub class: PortClass,
    /// Who holds it.
    pub by: Taker,
    /// Whether the port is its mapping's, or this flow's share.
    pub is_mapped: bool,
    /// Number of its timer; 0: as its state says.
    pub timer: u8,
    /// Whether the ledger is to have it.
    pub is_recorded: bool,
}

impl Grant {
    /// The bits of the flow's mark that say so.
    #[must_use]
    pub fn mark(&self) -> u8 {
        mark::EGRESS | if self.is_mapped { mark::MAPPED } else { 0 } | self.timer << mark::TIMER_SHIFT
    }
}

/// There is no room to remember another flow of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no room for another mapping or external address")]
pub struct NoRoom;

impl From<TooMany> for NoRoom {
    fn from(_: TooMany) -> NoRoom {
        NoRoom
    }
}

impl From<MappingsFull> for NoRoom {
    fn from(_: MappingsFull) -> NoRoom {
        NoRoom
    }
}

/// Ports and mappings of one worker. Kind: state.
#[derive(Debug)]
pub struct Egress {
    /// Which ports are in use.
    pub ports: PortBook,
    /// IPv4 mappings.
    pub v4: Mappings<[u8; 4]>,
    /// IPv6 mappings.
    pub v6: Mappings<[u8; 16]>,
    /// To the ledger.
    pub outbox: Outbox,
}

impl Egress {
    /// Nothing remembered. A flow may need a mapping and a permit of its own.
    ///
    /// # Errors
    /// What the system says when it has not the memory.
    pub fn new(capacity: &Capacity, seed: [u64; 2]) -> io::Result<Egress> {
        let entries = |flows: u32| flows.saturating_mul(2).min(super::flow::FLOWS_MAX);
        Ok(Egress {
            ports: PortBook::new(capacity.backends)?,
            v4: Mappings::new(entries(capacity.flows_v4), seed, capacity.huge)?,
            v6: Mappings::new(entries(capacity.flows_v6), seed, capacity.huge)?,
            outbox: Outbox::default(),
        })
    }

    /// A flow has begun by `grant`.
    ///
    /// # Errors
    /// Then nothing has changed, and the flow must not go on.
    pub fn join<A: Family>(&mut self, flow: &NewFlow<A>, grant: &Grant, now: Ticks) -> Result<(), NoRoom> {
        let (inside, translated) = (&flow.original, &flow.translated);
        let port = PortOf { address: translated.source.mapped(), class: grant.class, port: translated.source_port };
        let begun = PortEvent {
            begun: true,
            policy: grant.policy,
            protocol: inside.protocol,
            external: (port.address, port.port),
            internal: (inside.source.mapped(), inside.source_port),
            remote: (!grant.is_mapped).then(|| (inside.destination.mapped(), inside.destination_port)),
        };
        if !grant.is_mapped {
            self.ports.share(&port, grant.by)?;
            if grant.is_recorded {
                self.outbox.tell(begun);
            }
            return Ok(());
        }
        let new = NewMapping {
            inside: (inside.source, inside.source_port),
            outside: (translated.source, translated.source_port),
            protocol: inside.protocol,
            pod: grant.by.pod,
            policy: grant.policy.0,
        };
        // Two entries at most come for this flow: as many that rest may go.
        for _ in 0..2 {
            let (mappings, ports, outbox) = A::mappings_and_ports(self);
            let Some((mapping, protocol)) = mappings.spare(now) else { break };
            outbox.tell(returned(&mapping, protocol));
            let ((address, port), class) = (mapping.outside, PortClass::of(protocol));
            let freed = class.map(|class| PortOf { address: address.mapped(), class, port });
            freed.iter().for_each(|port| ports.free(port));
        }
        let known = A::mappings(self).of_inside(new.inside, new.protocol, now);
        if known.is_none() {
            self.ports.take(&port, grant.by)?;
        }
        match A::mappings_mut(self).join(&new, inside.destination, now) {
            Ok(Joined::Resumed) => self.ports.resume(&port, grant.by),
            Ok(Joined::New) if grant.is_recorded => self.outbox.tell(begun),
            Ok(Joined::Known | Joined::New) => {}
            Err(full) => {
                if known.is_none() {
                    self.ports.rest(&port, grant.by.pod);
                    self.ports.free(&port);
                }
                return Err(full.into());
            }
        }
        Ok(())
    }

    /// The flow of `entry` has ended.
    #[inline]
    pub fn part<A: Family>(&mut self, entry: &Entry<A>, now: Ticks) {
        if entry.is_egress() {
            self.leave(entry, now);
        }
    }

    #[inline(never)]
    fn leave<A: Family>(&mut self, entry: &Entry<A>, now: Ticks) {
        let (inside, translated) = (entry.original_tuple(), entry.translated_tuple());
        let Some(class) = PortClass::of(inside.protocol) else { return };
        let port = PortOf { address: translated.source.mapped(), class, port: translated.source_port };
        if entry.mark & mark::MAPPED == 0 {
            self.outbox.tell(PortEvent {
                begun: false,
                policy: EgressId::NONE,
                protocol: inside.protocol,
                external: (port.address, port.port),
                internal: (inside.source.mapped(), inside.source_port),
                remote: Some((inside.destination.mapped(), inside.destination_port)),
            });
            return self.ports.unshare(&port, entry.backend);
        }
        let pod_port = (inside.source, inside.source_port);
        if A::mappings_mut(self).leave(pod_port, inside.protocol, inside.destination, now) {
            self.ports.rest(&port, entry.backend);
        }
    }

    /// Ends a mapping that rests, since its port is wanted.
    pub fn end<A: Family>(&mut self, mapping: &Mapping<A>, class: PortClass) {
        if A::mappings_mut(self).end(mapping.id) {
            let (address, port) = mapping.outside;
            self.ports.free(&PortOf { address: address.mapped(), class, port });
            self.outbox.tell(returned(mapping, class.number(A::ICMP)));
        }
    }

    /// Ends what has rested long enough among the rows that are due `elapsed` ticks after the last look.
    pub fn expire(&mut self, now: Ticks, elapsed: Ticks) {
        self.expire_family::<[u8; 4]>(now, elapsed);
        self.expire_family::<[u8; 16]>(now, elapsed);
    }

    fn expire_family<A: Family>(&mut self, now: Ticks, elapsed: Ticks) {
        let (mappings, ports, outbox) = A::mappings_and_ports(self);
        mappings.expire(
            now,
            elapsed,
            limits::EXPIRE_PER_TURN,
            |_| false,
            |mapping, protocol| {
                let Some(class) = PortClass::of(protocol) else { return };
                let (address, port) = mapping.outside;
                ports.free(&PortOf { address: address.mapped(), class, port });
                outbox.tell(returned(&mapping, protocol));
            },
        );
    }
}

/// A mapping's port is nobody's any more.
fn returned<A: Family>(mapping: &Mapping<A>, protocol: u8) -> PortEvent {
    let end = |(address, port): (A, u16)| (address.mapped(), port);
    PortEvent {
        begun: false,
        policy: EgressId::NONE,
        protocol,
        external: end(mapping.outside),
        internal: end(mapping.inside),
        remote: None,
    }
}
