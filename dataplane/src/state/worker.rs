//! The state of one worker, all families together.
//!
//! It owns the rule that flows, usage and counters change together: a flow begins and ends here and nowhere else, so
//! that what an entry counted reaches its backend and the backend's live flows stay right.

use std::io;

use tidegate_io::mem::HugePages;

use super::affinity::Affinity;
use super::answers::Answers;
use super::connections::Connections;
use super::egress::{Egress, Grant, NoRoom};
use super::fragment::{Fragments, Waiting};
use super::hold::Hold;
use super::identification::Identifications;
use super::limit::TokenBucket;
use super::ruling::Rulings;
use super::schedule::{Pointer, Schedule, SetKind};
use super::usage::Usage;
use super::{Direction, Entry, FlowId, FlowTable, Fold, InsertError, NewFlow, Swept, Ticks, Tuple, Victim};
use crate::family::Family;
use crate::limits;
use crate::table::owner::WorkerId;
use crate::table::{BackendId, ServiceId};

/// Everything one worker remembers between packets. Kind: state.
#[derive(Debug)]
pub struct State {
    /// Whose state this is.
    pub worker: WorkerId,
    /// Some Service has, or had, affinity: flows may live with the owner that they had before it was toggled.
    pub was_sticky: bool,
    /// IPv4 flows.
    pub v4: FlowTable<[u8; 4]>,
    /// IPv6 flows.
    pub v6: FlowTable<[u8; 16]>,
    /// What each backend is used for.
    pub usage: Usage,
    /// Which endpoint clients were given last.
    pub affinity: Affinity,
    /// Where schedulers have got to.
    pub schedule: Schedule,
    /// Frames that wait for a neighbour.
    pub hold: Hold,
    /// Datagrams that come in fragments, and the frames that wait for the first of them.
    pub fragments: Fragments<Waiting>,
    /// Identifications of packets that pods send from shared addresses.
    pub identifications: Identifications,
    /// How many answers may still be provoked (S-079).
    pub answers: Answers,
    /// How many flows to nodes may still begin (L-021).
    pub pins: TokenBucket,
    /// Ports and mappings of pods' flows to the outside.
    pub egress: Egress,
    /// What rules of network policies have done.
    pub rulings: Rulings,
    /// Totals of flows, where somebody is told of each.
    pub connections: Option<Box<Connections>>,
}

/// How large the state of a worker is. Memory is touched as it is used.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// IPv4 flows.
    pub flows_v4: u32,
    /// IPv6 flows.
    pub flows_v6: u32,
    /// Backends whose usage is counted.
    pub backends: u32,
    /// Whether to ask for huge pages.
    pub huge: HugePages,
}

/// What is to be remembered of the choice of a backend, once its flow has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Learn {
    /// The Service port.
    pub service: ServiceId,
    /// How long the client stays with the backend; 0: it is not remembered.
    pub affinity_ticks: Ticks,
    /// Where the scheduler has got to, if it moved.
    pub pointer: Option<(SetKind, Pointer)>,
}

impl State {
    /// State for `capacity`, empty. `seed` is random and secret.
    ///
    /// # Errors
    /// What the system says when it has not the memory.
    pub fn new(capacity: Capacity, seed: [u64; 2], now_ns: u64) -> io::Result<State> {
        let rate = limits::ANSWERS_PER_S.get();
        let pins = limits::PINS_PER_S.get();
        Ok(State {
            worker: WorkerId(0),
            was_sticky: false,
            v4: FlowTable::new(capacity.flows_v4, seed, capacity.huge)?,
            v6: FlowTable::new(capacity.flows_v6, seed, capacity.huge)?,
            usage: Usage::new(capacity.backends, capacity.huge)?,
            affinity: Affinity::new(limits::AFFINITY_CLIENTS, seed, HugePages::Off)?,
            schedule: Schedule::new(limits::SCHEDULED_SERVICES, HugePages::Off)?,
            hold: Hold::new(),
            fragments: Fragments::new(seed),
            identifications: Identifications::new(seed),
            answers: Answers::new(rate, seed, now_ns),
            pins: TokenBucket::new(pins, pins, now_ns),
            egress: Egress::new(&capacity, seed)?,
            rulings: Rulings::new()?,
            connections: None,
        })
    }

    /// Ends the flow that has to go before `flow` may begin, if one has to ([`FlowTable::victim`]); which one it was.
    pub fn make_room<A: Family>(&mut self, flow: &NewFlow<A>, now: Ticks) -> Option<Victim> {
        let victim = A::flows_mut(self).victim(flow.state, now)?;
        let (Victim::HalfOpen(ended) | Victim::Spared(ended)) = victim;
        self.end::<A>(ended, now);
        Some(victim)
    }

    /// Sets which part of either table, in percent, handshakes may use.
    pub fn set_half_open_percent(&mut self, percent: u8) {
        self.v4.set_opening_percent(percent);
        self.v6.set_opening_percent(percent);
    }

    /// Begins a flow.
    ///
    /// # Errors
    /// [`InsertError`]; nothing has changed then.
    pub fn begin<A: Family>(&mut self, flow: &NewFlow<A>, now: Ticks) -> Result<FlowId, InsertError> {
        let id = self.install(flow, now)?;
        self.tell_begin::<A>(id);
        Ok(id)
    }

    fn install<A: Family>(&mut self, flow: &NewFlow<A>, now: Ticks) -> Result<FlowId, InsertError> {
        let id = A::flows_mut(self).insert(flow, now)?;
        self.usage.open(flow.backend, flow.state.is_active());
        Ok(id)
    }

    fn tell_begin<A: Family>(&mut self, id: FlowId) {
        if let Some(mut connections) = self.connections.take() {
            connections.begin(id, A::flows(self).entry(id));
            self.connections = Some(connections);
        }
    }

    /// Counts for its backend what the entry of a flow gave out.
    pub fn fold<A: Family>(&mut self, flow: FlowId, direction: Direction, fold: Fold) {
        self.usage.fold(A::flows(self).entry(flow).backend, direction, fold);
        if let Some(connections) = &mut self.connections {
            connections.add(A::VERSION, flow, direction, fold);
        }
    }

    /// Begins a pod's flow to the outside.
    ///
    /// # Errors
    /// Why not; nothing has changed then.
    pub fn begin_egress<A: Family>(
        &mut self,
        flow: &NewFlow<A>,
        grant: &Grant,
        now: Ticks,
    ) -> Result<FlowId, EgressError> {
        let id = self.install(flow, now).map_err(EgressError::Flow)?;
        match self.egress.join(flow, grant, now) {
            Ok(()) => {
                self.tell_begin::<A>(id);
                Ok(id)
            }
            Err(full) => {
                A::flows_mut(self).remove(id);
                self.usage.close(flow.backend, flow.state.is_active());
                Err(EgressError::Port(full))
            }
        }
    }

    /// Remembers what was chosen for a flow that has begun; false when its client should be remembered and there is no
    /// place for it.
    pub fn learn<A: Family>(&mut self, original: &Tuple<A>, backend: BackendId, learn: &Learn, now: Ticks) -> bool {
        if let Some((set, pointer)) = learn.pointer {
            self.schedule.advance(learn.service, set, pointer);
        }
        let client = || original.source.mapped();
        learn.affinity_ticks == 0
            || self.affinity.remember(&client(), learn.service, backend, learn.affinity_ticks, now)
    }

    /// Ends a flow before its time; whether it was live.
    pub fn end<A: Family>(&mut self, flow: FlowId, now: Ticks) -> bool {
        let entry = *A::flows(self).entry(flow);
        let live = A::flows_mut(self).remove(flow);
        if live {
            last_look(&mut self.usage, &mut self.egress, &entry, now);
            if let Some(connections) = &mut self.connections {
                connections.end(flow, &entry, false);
            }
        }
        live
    }

    /// Ends flows whose time is over among the rows that are due `elapsed` ticks after the last look, at most
    /// [`limits::EXPIRE_PER_TURN`] of each family; returns how many (N-102). What the others have counted goes to their
    /// backends, so that these are never further behind than one lap. Pods' flows to the outside that `is_void` says are
    /// nothing any more end too (N-101).
    pub fn expire(&mut self, now: Ticks, elapsed: Ticks, is_void: &impl IsVoid) -> u32 {
        let (usage, egress, told) = (&mut self.usage, &mut self.egress, &mut self.connections);
        let expired = expire(&mut self.v4, usage, egress, told, now, elapsed, |entry| is_void.v4(entry))
            + expire(&mut self.v6, usage, egress, told, now, elapsed, |entry| is_void.v6(entry));
        egress.expire(now, elapsed);
        expired
    }

    /// Live flows of both families.
    pub fn live(&self) -> u64 {
        u64::from(self.v4.live()) + u64::from(self.v6.live())
    }
}

/// Who knows which of pods' flows to the outside are nothing any more. Those that go on may be told that they were looked at.
pub trait IsVoid {
    /// Of IPv4.
    fn v4(&self, entry: &mut Entry<[u8; 4]>) -> bool;
    /// Of IPv6.
    fn v6(&self, entry: &mut Entry<[u8; 16]>) -> bool;
}

/// Why a pod's flow to the outside does not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EgressError {
    /// No flow could begin.
    Flow(InsertError),
    /// There is no room for its port or mapping.
    Port(NoRoom),
}

#[inline]
#[allow(clippy::too_many_arguments)]
fn expire<A: Family>(
    flows: &mut FlowTable<A>,
    usage: &mut Usage,
    egress: &mut Egress,
    told: &mut Option<Box<Connections>>,
    now: Ticks,
    elapsed: Ticks,
    is_void: impl Fn(&mut Entry<A>) -> bool,
) -> u32 {
    if flows.live() == 0 {
        return 0;
    }
    let rows_max = flows.sweep_share(elapsed).min(limits::EXPIRE_PER_TURN);
    let is_void = |entry: &mut Entry<A>| entry.is_egress() && is_void(entry);
    flows.sweep_judging(now, rows_max, is_void, |flow, swept| match swept {
        Swept::Expired(entry) => {
            last_look(usage, egress, entry, now);
            if let Some(told) = told {
                told.end(flow, entry, true);
            }
        }
        Swept::Live(entry) => {
            for direction in [Direction::Original, Direction::Reply] {
                let fold = entry.fold(direction);
                if fold.packets > 0 {
                    usage.fold(entry.backend, direction, fold);
                    if let Some(told) = told {
                        told.add(A::VERSION, flow, direction, fold);
                    }
                }
            }
        }
    })
}

/// Takes over what an entry that ends has counted.
fn last_look<A: Family>(usage: &mut Usage, egress: &mut Egress, entry: &Entry<A>, now: Ticks) {
    for direction in [Direction::Original, Direction::Reply] {
        usage.fold(entry.backend, direction, entry.counted(direction));
    }
    usage.close(entry.backend, entry.state.is_active());
    egress.part(entry, now);
}

/// A source of unpredictable numbers for choices that an outsider must not foresee, cheap enough for every new flow.
///
/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) over a secret start; the flow table scrambles what it yields with
/// another secret, so seeing source ports does not reveal the sequence.
#[derive(Debug, Clone)]
pub struct Entropy(u64);

impl Entropy {
    /// A sequence from a secret `seed`.
    pub const fn new(seed: u64) -> Entropy {
        Entropy(seed)
    }

    /// The next number.
    #[inline]
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
