//! The mailbox of a worker: questions that only the owner of state can answer.
//!
//! A question is a message with a place for the answer; the worker looks between two turns, copies a bounded number of
//! rows and goes on. Nobody else ever reads a worker's state.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use crossbeam::channel::Sender;
use tidegate_api::show::{FlowFilter, FlowRow};
use tidegate_io::{PortCounters, PortFacts, RingLevels, SocketStatistics};

use crate::capture::Tap;
use crate::counters::{Counters, Event};
use crate::drops::DropReason;
use crate::explain::{Asked, Told};
use crate::family::Family;
use crate::limits;
use crate::state::ports::{Holder, Tally};
use crate::state::quota::Quota;
use crate::state::ruling::Ruling;
use crate::state::{Direction, Entry, TICK_NS_LOG2, ticks, ticks_since, usage};
use crate::table::egress::PortClass;
use crate::table::{BackendId, ExternalId, ServiceId, Tables, unmapped};
use crate::worker::Worker;
use crate::worker::batches::Batches;
use crate::worker::stages::Stages;

/// A question to one worker.
#[derive(Debug)]
pub enum Request {
    /// Flows, at most `limit`.
    Flows {
        /// Which.
        wanted: Arc<FlowsWanted>,
        /// Most rows; the worker bounds it further.
        limit: u32,
        /// Where to begin.
        from: FlowsFrom,
        /// Where the answer goes: rows, and where to go on.
        reply: Sender<(Vec<FlowRow>, Option<FlowsFrom>)>,
    },
    /// Usage of these backends, in the same order.
    Usage {
        /// The backends.
        backends: Vec<BackendId>,
        /// Where the answer goes.
        reply: Sender<Vec<usage::Row>>,
    },
    /// Free ports of an external address, to be another worker's.
    Release {
        /// The address, IPv4 mapped.
        address: [u8; 16],
        /// Whose ports.
        class: PortClass,
        /// Where the answer goes: ports that are not given out here any more.
        reply: Sender<Vec<u16>>,
    },
    /// A part of this worker's share of a quota, to be another worker's.
    LendQuota {
        /// The quota.
        quota: Quota,
        /// Where the answer goes: how much it has given up.
        reply: Sender<u32>,
    },
    /// What another worker has given up of its share.
    GrantQuota {
        /// The quota.
        quota: Quota,
        /// How much.
        count: u32,
    },
    /// What is in use of external addresses, and who holds most.
    Egress {
        /// Where the answer goes.
        reply: Sender<EgressUse>,
    },
    /// What rules of network policies have done.
    Rulings {
        /// Where the answer goes.
        reply: Sender<Vec<Ruling>>,
    },
    /// What would become of a frame.
    Explain {
        /// The frame.
        asked: Asked,
        /// Where the answer goes.
        reply: Sender<Told>,
    },
    /// Packets are to be copied from now on.
    Capture {
        /// What is wanted, and where copies go; none: nothing is asked.
        tap: Option<Box<Tap>>,
        /// Where the answer goes: whether there was room for one more.
        reply: Sender<bool>,
    },
    /// A capture ends.
    EndCapture {
        /// Its number.
        number: u64,
        /// Where the answer goes: its tap.
        reply: Sender<Option<Box<Tap>>>,
    },
    /// How the worker is.
    Status {
        /// Where the answer goes.
        reply: Sender<Status>,
    },
}

/// Which flows are asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FlowsWanted {
    /// By their protocol, addresses and Service.
    pub filter: FlowFilter,
    /// Rows of the Service that the filter names, growing.
    pub services: Vec<ServiceId>,
}

impl FlowsWanted {
    fn takes<A: Family>(&self, tables: &Tables, entry: &Entry<A>) -> bool {
        let (original, translated) = (entry.original_tuple(), entry.translated_tuple());
        let ends = [original.source, original.destination, translated.source, translated.destination];
        self.filter.takes(original.protocol, ends.map(shown)) && self.is_of_service(tables, entry.backend)
    }

    fn is_of_service(&self, tables: &Tables, backend: u32) -> bool {
        let Some(name) = &self.filter.service else { return true };
        let row = tables.backends.row(BackendId(backend));
        let service = row.map(|row| row.service).filter(|id| self.services.binary_search(id).is_ok());
        // A number may have become another's since it was looked up.
        service.and_then(|id| tables.services.row(id)).is_some_and(|row| *row.name == **name)
    }
}

/// Where a listing of flows begins, or goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowsFrom {
    /// IPv4 comes first.
    is_v6: bool,
    /// Entry of that family.
    entry: u32,
}

/// What one worker has in use of external addresses.
#[derive(Clone, Debug, Default)]
pub struct EgressUse {
    /// By address (IPv4 mapped) and class: what is in use, and how many ports this worker gives out.
    pub pools: Vec<([u8; 16], PortClass, Tally, u32)>,
    /// Pods by row of backends, and what they hold: those that hold or were refused anything.
    pub pods: Vec<(BackendId, Holder)>,
}

/// How a worker is.
#[derive(Clone, Debug)]
pub struct Status {
    /// Number of the worker.
    pub worker: u32,
    /// Generation it has reached.
    pub generation: u64,
    /// Live flows of both families.
    pub flows: u64,
    /// Capacity of both families.
    pub flows_max: u64,
    /// Flows of both families whose handshake no client has finished.
    pub half_open: u64,
    /// The share of both families for them.
    pub half_open_max: u64,
    /// Frames it holds: waiting for neighbours, pending, in flight.
    pub held: u64,
    /// Time it spent in turns that found packets, nanoseconds.
    pub busy_ns: u64,
    /// How large its batches were.
    pub batches: Batches,
    /// How long packets were at each stage, of turns that were measured.
    pub stages: Stages,
    /// Its ports.
    pub ports: Vec<PortStatus>,
    /// Its counters by name, exact at this moment.
    pub events: Vec<(&'static str, u64)>,
    /// Its drops by reason, in the order of [`crate::drops::DropReason::ALL`], exact at this moment.
    pub drops: Vec<u64>,
}

/// How a port is.
#[derive(Clone, Debug)]
pub struct PortStatus {
    /// What it is.
    pub facts: PortFacts,
    /// What it counted.
    pub counters: PortCounters,
    /// What its socket counted, if it has one.
    pub socket: Option<SocketStatistics>,
    /// How full its rings are, if it has some.
    pub levels: Option<RingLevels>,
}

/// Answers one question. Cold: it copies and allocates, bounded by [`limits::ROWS_PER_ANSWER`]. An asker that no longer
/// listens is no error.
#[cold]
pub(crate) fn answer(worker: &mut Worker, request: Request, now_ns: u64) {
    match request {
        Request::Flows { wanted, limit, from, reply } => {
            let _gone = reply.try_send(flows(worker, &wanted, limit, from, now_ns));
        }
        Request::Usage { backends, reply } => {
            let tables = worker.reader.tables();
            let row = |backend: &BackendId| match tables.backends.row(*backend) {
                Some(row) => worker.state.usage.row_of(backend.0, row.identity()),
                None => worker.state.usage.row(backend.0),
            };
            let rows = backends.iter().map(row).collect();
            let _gone = reply.try_send(rows);
        }
        Request::Release { address, class, reply } => {
            let _gone = reply.try_send(release(worker, &address, class));
        }
        Request::LendQuota { quota, reply } => {
            let dealt = quota.dealt(worker.state.worker.0, worker.reader.tables().owners.workers());
            let held = worker.state.egress.ports.held_by_namespace(quota.namespace);
            let _gone = reply.try_send(worker.state.egress.quotas.lend(quota, dealt, held));
        }
        Request::GrantQuota { quota, count } => worker.state.egress.quotas.grant(quota, count),
        Request::Egress { reply } => {
            let _gone = reply.try_send(egress(worker));
        }
        Request::Rulings { reply } => {
            let _gone = reply.try_send(worker.state.rulings.all().collect());
        }
        Request::Explain { asked, reply } => {
            let _gone = reply.try_send(worker.explain(&asked, now_ns));
        }
        Request::Capture { tap, reply } => {
            let begun = tap.is_some_and(|tap| worker.begin_capture(tap).is_ok());
            let _gone = reply.try_send(begun);
        }
        Request::EndCapture { number, reply } => {
            let _gone = reply.try_send(worker.end_capture(number));
        }
        Request::Status { reply } => {
            let _gone = reply.try_send(status(worker));
        }
    }
}

/// Gives half of this worker's ports away, or all while there are few, as far as they are free.
fn release(worker: &mut Worker, address: &[u8; 16], class: PortClass) -> Vec<u16> {
    const KEPT_MIN: u32 = 64;
    let tables = worker.reader.tables();
    let Some(id) = external(tables, address) else { return Vec::new() };
    let own = tables.egress.ports_of(&tables.owners, id, class, worker.state.worker);
    let max = if own.len() > 2 * KEPT_MIN { own.len() / 2 } else { own.len() };
    worker.state.egress.ports.lend(address, class, own, max)
}

fn external(tables: &Tables, address: &[u8; 16]) -> Option<ExternalId> {
    match unmapped(address) {
        Some(address) => tables.egress.external_v4(&address),
        None => tables.egress.external_v6(address),
    }
}

fn egress(worker: &Worker) -> EgressUse {
    let (tables, ports) = (worker.reader.tables(), &worker.state.egress.ports);
    let mut pools = Vec::new();
    for (id, row) in tables.egress.externals() {
        for class in PortClass::ALL {
            let given = tables.egress.ports_of(&tables.owners, id, class, worker.state.worker).len();
            pools.push((row.address, class, ports.tally(&row.address, class), given));
        }
    }
    let holders = tables.pods.rows().map(|(_, row)| (row.backend, ports.holder(row.backend.0)));
    let pods = holders.filter(|(_, holder)| holder.held > 0 || holder.refused > 0);
    EgressUse { pools, pods: pods.take(limits::ROWS_PER_ANSWER as usize).collect() }
}

fn status(worker: &Worker) -> Status {
    let port = |exit: &crate::stage::verdict::Exit| PortStatus {
        facts: exit.port.facts().clone(),
        counters: exit.port.counters(),
        socket: exit.port.socket_statistics().unwrap_or_default(),
        levels: exit.port.levels(),
    };
    let counters: &Counters = &worker.counters;
    Status {
        worker: worker.id,
        generation: worker.reader.generation(),
        flows: worker.state.live(),
        flows_max: u64::from(worker.state.v4.capacity()) + u64::from(worker.state.v6.capacity()),
        half_open: u64::from(worker.state.v4.opening()) + u64::from(worker.state.v6.opening()),
        half_open_max: u64::from(worker.state.v4.opening_max()) + u64::from(worker.state.v6.opening_max()),
        held: worker.held(),
        busy_ns: worker.busy_ns,
        batches: worker.batches,
        stages: worker.stopwatch.stages(),
        ports: worker.exits.ports.iter().map(port).collect(),
        events: Event::ALL.iter().map(|event| (event.name(), counters.events(*event))).collect(),
        drops: DropReason::ALL.iter().map(|reason| counters.drops(*reason)).collect(),
    }
}

/// Flows that are wanted, among a bounded number of entries, and where to go on, if that was not the end.
fn flows(
    worker: &Worker,
    wanted: &FlowsWanted,
    limit: u32,
    from: FlowsFrom,
    now_ns: u64,
) -> (Vec<FlowRow>, Option<FlowsFrom>) {
    let limit = limit.min(limits::ROWS_PER_ANSWER) as usize;
    let mut rows = Vec::new();
    let next = match from.is_v6 {
        false => match collect::<[u8; 4]>(worker, wanted, limit, from.entry, now_ns, &mut rows) {
            Some(entry) => Some(FlowsFrom { is_v6: false, entry }),
            None => Some(FlowsFrom { is_v6: true, entry: 0 }),
        },
        true => collect::<[u8; 16]>(worker, wanted, limit, from.entry, now_ns, &mut rows)
            .map(|entry| FlowsFrom { is_v6: true, entry }),
    };
    (rows, next)
}

/// The same of one family: the entry to go on with.
fn collect<A: Family>(
    worker: &Worker,
    wanted: &FlowsWanted,
    limit: usize,
    from: u32,
    now_ns: u64,
    rows: &mut Vec<FlowRow>,
) -> Option<u32> {
    const ROWS_AT_ONCE: u32 = 1024;
    let tables = worker.reader.tables();
    let (mut next, mut left) = (Some(from), limits::ENTRIES_PER_ANSWER);
    while let Some(start) = next
        && rows.len() < limit
        && left > 0
    {
        left = left.saturating_sub(ROWS_AT_ONCE);
        // Where it would have to go on if there were room for one more.
        let mut beyond = None;
        next = A::flows(&worker.state).visit(start, ROWS_AT_ONCE, |flow, entry| {
            if beyond.is_none() && wanted.takes(tables, entry) {
                match rows.len() < limit {
                    true => rows.push(row(worker.id, entry, now_ns)),
                    false => beyond = Some(flow.row()),
                }
            }
        });
        next = beyond.or(next);
    }
    next
}

/// An address of either family as people know it.
fn shown<A: Family>(address: A) -> IpAddr {
    let mapped = Ipv6Addr::from(address.mapped());
    mapped.to_ipv4_mapped().map_or(IpAddr::V6(mapped), IpAddr::V4)
}

fn row<A: Family>(worker: u32, entry: &Entry<A>, now_ns: u64) -> FlowRow {
    let (original, translated) = (entry.original_tuple(), entry.translated_tuple());
    let (out, back) = (entry.counted(Direction::Original), entry.counted(Direction::Reply));
    let idle_ticks = ticks_since(entry.last_seen_ticks, ticks(now_ns));
    FlowRow {
        worker,
        protocol: original.protocol,
        client: (shown(original.source), original.source_port),
        vip: (shown(original.destination), original.destination_port),
        source: (shown(translated.source), translated.source_port),
        backend: (shown(translated.destination), translated.destination_port),
        state: entry.state.name().to_owned(),
        idle_s: (u64::from(idle_ticks) << TICK_NS_LOG2) / 1_000_000_000,
        packets: (out.packets, back.packets),
        bytes: (out.bytes, back.bytes),
    }
}
