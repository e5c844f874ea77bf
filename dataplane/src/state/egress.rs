//! What one worker remembers of pods' flows to the outside, beside the flows themselves.
//!
//! It owns the rule that flows, mappings and port counts change together: a flow joins and parts here, called from where flows
//! begin and end and nowhere else. It refuses to know how a port was chosen and who may have one.

use std::io;

use crossbeam::channel::Sender;

use super::mapping::{Joined, Mapping, Mappings, MappingsFull, NewMapping};
use super::ports::{PortBook, PortOf, Taker, TooMany};
use super::quota::Quotas;
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
    /// Whose port; none of a protocol without.
    pub class: Option<PortClass>,
    /// Who holds it.
    pub by: Taker,
    /// Whether the port is its mapping's, or this flow's share.
    pub is_mapped: bool,
    /// Number of its timer; 0: as its state says.
    pub timer: u8,
    /// Whether it is recorded who has the port.
    pub is_recorded: bool,
}

/// Who has, or had, an external port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NatRecord {
    /// When, as flows tell time.
    pub at: Ticks,
    /// Whether the pod got the port or ceased to have it.
    pub begins: bool,
    /// The external address, IPv4 mapped.
    pub external: [u8; 16],
    /// Its port, or echo identifier.
    pub port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// By which policy; none where that is not remembered.
    pub policy: EgressId,
    /// The pod's address, IPv4 mapped, and port.
    pub pod: ([u8; 16], u16),
    /// Towards whom, if the port is shared with flows to others; IPv4 mapped, and port.
    pub remote: Option<([u8; 16], u16)>,
}

impl Grant {
    /// The bits of the flow's mark that say so.
    #[must_use]
    pub fn mark(&self) -> u8 {
        let kind = mark::EGRESS | if self.is_mapped { mark::MAPPED } else { 0 };
        // Of a mapping the mapping itself remembers that it is recorded.
        let recorded = self.is_recorded && !self.is_mapped;
        kind | if recorded { mark::TIMER_RECORDED } else { self.timer } << mark::TIMER_SHIFT
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
    /// What may be given out to whom.
    pub quotas: Quotas,
    /// IPv4 mappings.
    pub v4: Mappings<[u8; 4]>,
    /// IPv6 mappings.
    pub v6: Mappings<[u8; 16]>,
    records: Option<Sender<NatRecord>>,
    records_lost: u64,
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
            quotas: Quotas::default(),
            v4: Mappings::new(entries(capacity.flows_v4), seed, capacity.huge)?,
            v6: Mappings::new(entries(capacity.flows_v6), seed, capacity.huge)?,
            records: None,
            records_lost: 0,
        })
    }

    /// Has ports that are to be recorded told to `records`. Its room is what may be behind; more is lost and counted.
    pub fn record_to(&mut self, records: Sender<NatRecord>) {
        self.records = Some(records);
    }

    /// Records for which there was no room since this was asked last.
    pub fn take_records_lost(&mut self) -> u64 {
        std::mem::take(&mut self.records_lost)
    }

    fn record(&mut self, record: NatRecord) {
        if self.records.as_ref().is_some_and(|records| records.try_send(record).is_err()) {
            self.records_lost += 1;
        }
    }

    /// A flow has begun by `grant`.
    ///
    /// # Errors
    /// Then nothing has changed, and the flow must not go on.
    pub fn join<A: Family>(&mut self, flow: &NewFlow<A>, grant: &Grant, now: Ticks) -> Result<(), NoRoom> {
        let (inside, translated) = (&flow.original, &flow.translated);
        let Some(class) = grant.class else { return Ok(()) };
        let port = PortOf { address: translated.source.mapped(), class, port: translated.source_port };
        let record = |remote| NatRecord {
            at: now,
            begins: true,
            external: port.address,
            port: port.port,
            protocol: inside.protocol,
            policy: grant.policy,
            pod: (inside.source.mapped(), inside.source_port),
            remote,
        };
        if !grant.is_mapped {
            self.ports.share(&port, grant.by)?;
            if grant.is_recorded {
                self.record(record(Some((inside.destination.mapped(), inside.destination_port))));
            }
            return Ok(());
        }
        let new = NewMapping {
            inside: (inside.source, inside.source_port),
            outside: (translated.source, translated.source_port),
            protocol: inside.protocol,
            pod: grant.by.pod,
            policy: grant.policy.0,
            is_recorded: grant.is_recorded,
        };
        // Two entries at most come for this flow: as many that rest may go.
        for _ in 0..2 {
            let (mappings, ports) = A::mappings_and_ports(self);
            let Some((mapping, protocol)) = mappings.spare(now) else { break };
            let ((address, port), class) = (mapping.outside, PortClass::of(protocol));
            let freed = class.map(|class| PortOf { address: address.mapped(), class, port });
            freed.iter().for_each(|port| ports.free(port));
            self.record_end(&mapping, protocol, now);
        }
        let known = A::mappings(self).of_inside(new.inside, new.protocol, now);
        if known.is_none() {
            self.ports.take(&port, grant.by)?;
        }
        match A::mappings_mut(self).join(&new, inside.destination, now) {
            Ok(Joined::Resumed) => self.ports.resume(&port, grant.by),
            Ok(Joined::New) if grant.is_recorded => self.record(record(None)),
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
            if entry.mark >> mark::TIMER_SHIFT == mark::TIMER_RECORDED {
                self.record(NatRecord {
                    at: now,
                    begins: false,
                    external: port.address,
                    port: port.port,
                    protocol: inside.protocol,
                    policy: EgressId::NONE,
                    pod: (inside.source.mapped(), inside.source_port),
                    remote: Some((inside.destination.mapped(), inside.destination_port)),
                });
            }
            return self.ports.unshare(&port, entry.backend);
        }
        let pod_port = (inside.source, inside.source_port);
        if A::mappings_mut(self).leave(pod_port, inside.protocol, inside.destination, now) {
            self.ports.rest(&port, entry.backend);
        }
    }

    /// Ends a mapping that rests, since its port is wanted.
    pub fn end<A: Family>(&mut self, mapping: &Mapping<A>, class: PortClass, protocol: u8, now: Ticks) {
        if A::mappings_mut(self).end(mapping.id) {
            let (address, port) = mapping.outside;
            self.ports.free(&PortOf { address: address.mapped(), class, port });
            self.record_end(mapping, protocol, now);
        }
    }

    fn record_end<A: Family>(&mut self, mapping: &Mapping<A>, protocol: u8, now: Ticks) {
        if mapping.is_recorded {
            self.record(end_of(mapping, protocol, now));
        }
    }

    /// Ends what has rested long enough among the rows that are due `elapsed` ticks after the last look.
    pub fn expire(&mut self, now: Ticks, elapsed: Ticks) {
        self.expire_family::<[u8; 4]>(now, elapsed);
        self.expire_family::<[u8; 16]>(now, elapsed);
    }

    fn expire_family<A: Family>(&mut self, now: Ticks, elapsed: Ticks) {
        let mut lost = 0;
        let records = self.records.take();
        let (mappings, ports) = A::mappings_and_ports(self);
        mappings.expire(
            now,
            elapsed,
            limits::EXPIRE_PER_TURN,
            |_| false,
            |mapping, protocol| {
                let Some(class) = PortClass::of(protocol) else { return };
                let (address, port) = mapping.outside;
                ports.free(&PortOf { address: address.mapped(), class, port });
                if let Some(records) = records.as_ref().filter(|_| mapping.is_recorded) {
                    lost += u64::from(records.try_send(end_of(&mapping, protocol, now)).is_err());
                }
            },
        );
        self.records = records;
        self.records_lost += lost;
    }
}

fn end_of<A: Family>(mapping: &Mapping<A>, protocol: u8, now: Ticks) -> NatRecord {
    NatRecord {
        at: now,
        begins: false,
        external: mapping.outside.0.mapped(),
        port: mapping.outside.1,
        protocol,
        policy: EgressId(mapping.policy),
        pod: (mapping.inside.0.mapped(), mapping.inside.1),
        remote: None,
    }
}
