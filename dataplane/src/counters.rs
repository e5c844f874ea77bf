//! Counters of one worker: plain numbers on the packet path, copied to shared ones now and then.
//!
//! Drop reasons are counted by [`crate::drops::DropReason`]; everything else is listed once below. The worker adds to
//! plain `u64`s it owns; [`Counters::commit`] stores them, relaxed, where the read side looks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

use crate::drops::DropReason;

macro_rules! events {
    ($($variant:ident, $name:literal, $help:literal;)*) => {
        /// Something that happens to a packet, a flow or a worker, other than a drop.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Event {
            $(#[doc = $help] $variant,)*
        }

        impl Event {
            /// All events in the order of their numbers.
            pub const ALL: &'static [Event] = &[$(Event::$variant,)*];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// Stable name, as shown.
            pub const fn name(self) -> &'static str {
                match self { $(Event::$variant => $name,)* }
            }

            /// What it means, one sentence.
            pub const fn help(self) -> &'static str {
                match self { $(Event::$variant => $help,)* }
            }
        }
    };
}

events! {
    Received,           "received", "Frames taken from ports.";
    Sent,               "sent", "Frames accepted by the transmit ring of a port.";
    Generated,          "generated", "Frames made here beyond those received.";
    Consumed,           "consumed", "Frames that ended here as they should: they asked for nothing more.";
    ToKernel,           "to_kernel", "Frames handed to the kernel.";
    FlowHit,            "flow_hit", "Packets whose flow was known and current.";
    SlowWalk,           "slow_walk", "Packets that walked the stages.";
    FlowInstalled,      "flow_installed", "Flows started.";
    FlowExpired,        "flow_expired", "Flows that ended by their timer.";
    FlowReplaced,       "flow_replaced", "Flows removed because their tuple began anew (N-087, S-102).";
    HalfOpenEvicted,    "half_open_evicted", "Handshakes that a newer one took the place of, oldest first (L-022).";
    FlowSpared,         "flow_spared", "Flows without further use that a new one took the place of in a crowded table (N-100).";
    FlowRevalidated,    "flow_revalidated", "Flows checked again after a change they depend on; the backend stays.";
    AffinityForgotten,  "affinity_forgotten", "New flows whose client could not be remembered: the affinity table has no place (S-095).";
    PickedUp,           "picked_up", "Flows to nodes that began in the middle of a connection (L-010, N-088).";
    Passed,             "passed", "Packets sent to a node without a flow, by hash (L-021).";
    Decapsulated,       "decapsulated", "Packets taken out of VXLAN.";
    TunnelEnded,        "tunnel_ended", "Packets taken out of IP in IP or GUE.";
    Encapsulated,       "encapsulated", "Packets put into VXLAN.";
    VxlanUnknownFlags,  "vxlan_unknown_flags", "VXLAN headers with reserved bits set, accepted (V-001).";
    MssClamped,         "mss_clamped", "SYN segments whose MSS was lowered (V-013).";
    AnsweredArp,        "answered_arp", "ARP requests answered.";
    AnsweredNd,         "answered_nd", "Neighbour solicitations answered.";
    AnsweredEcho,       "answered_echo", "Echo requests answered.";
    AnsweredReset,      "answered_reset", "TCP segments answered with RST, SCTP packets with ABORT (S-070, S-077).";
    AnsweredUnreachable,"answered_unreachable", "Datagrams answered with port unreachable (S-070).";
    AnsweredTtl,        "answered_ttl", "Packets answered with time exceeded (L-058).";
    AnsweredTooBig,     "answered_too_big", "Packets answered with fragmentation needed or packet too big (V-010).";
    AnsweredProhibited, "answered_prohibited", "Pods' packets to the outside answered with unreachable, forbidden (N-035, N-041).";
    PortReused,         "port_reused", "Closed flows of pods that a new one to the same destination took the port of.";
    MappingUsed,        "mapping_used", "Packets from outside led to a pod by its mapping, without a flow (N-009).";
    Routed,             "routed", "Packets of pods sent on as they are, to what their policy leaves out (N-110).";
    Hairpinned,         "hairpinned", "Packets of pods to an external address, taken back in (N-010).";
    RecordLost,         "record_lost", "Records of who had which port that found no room on their way to the ledger, or on its disk (N-044).";
    FlowNoted,          "flow_noted", "Packets and connections that were told to the exporter of flows.";
    FlowNoteLost,       "flow_note_lost", "The same that were not, since the ring to the exporter was full.";
    AnswerUntold,       "answer_untold", "Answers whose source was not limited by itself: the table of sources was full.";
    SourceUntold,       "source_untold", "Flows that no limit of a GatewayPolicy was asked for: the table of sources was full.";
    ErrorTranslated,    "error_translated", "ICMP errors translated with their quotes (L-050).";
    NeighbourHeld,      "neighbour_held", "Packets that waited for a neighbour.";
    HandedOver,         "handed_over", "Packets handed to the worker that owns them.";
    TakenOver,          "taken_over", "Packets taken from another worker.";
    FragmentHeld,       "fragment_held", "Fragments that waited for the first of their datagram (N-060).";
    Cut,                "cut", "Packets larger than their path that were cut into fragments (V-010).";
    Turns,              "turns", "Turns made.";
    IdleTurns,          "idle_turns", "Turns that found no packet.";
    Sleeps,             "sleeps", "Times the worker slept on its descriptors.";
}

/// Numbers of all counters of one worker: events first, then drops.
pub const COUNTERS: usize = Event::COUNT + DropReason::COUNT;

/// The worker's own numbers.
#[derive(Debug)]
pub struct Counters {
    values: [u64; COUNTERS],
    shared: Arc<SharedCounters>,
}

/// What the read side sees: a copy that is at most one commit old.
#[derive(Debug)]
pub struct SharedCounters {
    values: CachePadded<[AtomicU64; COUNTERS]>,
}

impl Default for Counters {
    fn default() -> Self {
        let values = CachePadded::new([const { AtomicU64::new(0) }; COUNTERS]);
        Counters { values: [0; COUNTERS], shared: Arc::new(SharedCounters { values }) }
    }
}

impl Counters {
    /// Counts one event.
    #[inline]
    pub fn count(&mut self, event: Event) {
        self.values[event as usize] += 1;
    }

    /// Counts `n` events.
    #[inline]
    pub fn add(&mut self, event: Event, n: u64) {
        self.values[event as usize] += n;
    }

    /// Counts one drop.
    #[inline]
    pub fn drop(&mut self, reason: DropReason) {
        self.values[Event::COUNT + reason as usize] += 1;
    }

    /// Events so far.
    pub fn events(&self, event: Event) -> u64 {
        self.values[event as usize]
    }

    /// Drops so far.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.values[Event::COUNT + reason as usize]
    }

    /// Drops of every reason together.
    pub fn dropped(&self) -> u64 {
        self.values[Event::COUNT..].iter().sum()
    }

    /// Every counter that is not zero, by name. For tests and telling people; allocates.
    pub fn nonzero(&self) -> BTreeMap<&'static str, u64> {
        named(|index| self.values[index]).filter(|(_, value)| *value != 0).collect()
    }

    /// Copies the numbers to where the read side looks.
    pub fn commit(&self) {
        for (shared, value) in self.shared.values.iter().zip(&self.values) {
            shared.store(*value, Ordering::Relaxed);
        }
    }

    /// The shared side.
    pub fn shared(&self) -> Arc<SharedCounters> {
        Arc::clone(&self.shared)
    }
}

impl SharedCounters {
    /// The committed number of one event.
    pub fn events(&self, event: Event) -> u64 {
        self.values[event as usize].load(Ordering::Relaxed)
    }

    /// The committed number of one drop reason.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.values[Event::COUNT + reason as usize].load(Ordering::Relaxed)
    }

    /// Every committed event by name.
    pub fn event_totals(&self) -> BTreeMap<&'static str, u64> {
        Event::ALL.iter().map(|event| (event.name(), self.events(*event))).collect()
    }
}

fn named(value: impl Fn(usize) -> u64) -> impl Iterator<Item = (&'static str, u64)> {
    let events = Event::ALL.iter().map(|event| (event.name(), *event as usize));
    let drops = DropReason::ALL.iter().map(|reason| (reason.name(), Event::COUNT + *reason as usize));
    events.chain(drops).map(move |(name, index)| (name, value(index)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_read_side_sees_what_was_committed_and_nothing_earlier() {
        let mut counters = Counters::default();
        let shared = counters.shared();
        counters.count(Event::FlowHit);
        counters.drop(DropReason::NoBackend);
        assert_eq!((shared.events(Event::FlowHit), shared.drops(DropReason::NoBackend)), (0, 0));
        counters.commit();
        assert_eq!((shared.events(Event::FlowHit), shared.drops(DropReason::NoBackend)), (1, 1));
        assert_eq!(counters.nonzero(), BTreeMap::from([("flow_hit", 1), ("NoBackend", 1)]));
        assert_eq!(counters.dropped(), 1);
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = named(|_| 0).map(|(name, _)| name).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!((names.len(), all), (COUNTERS, COUNTERS));
    }
}
