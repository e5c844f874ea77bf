//! The flow entry: both directions of one flow, and what to do with their packets.
//!
//! It owns the layout, one cache line for IPv4 and two for IPv6, and the counters inside. It refuses to know the index
//! that leads here and the tables its numbers point into.
//!
//! An entry is a prepared edit: the addresses and ports to write are in it, and so is where the packet leaves, so an
//! established packet needs no table. The sums for the checksums are not stored: they are six subtractions of words
//! that lie in the same line.
//!
//! Both directions are stored as their packets arrive, in an array, so that comparing and rewriting choose by an index
//! where a branch would be a coin toss: what leaves in one direction is what arrives in the other, ends exchanged.
//!
//! ```text
//!  0          12      24        28          32        36        40       44            48         56           64
//!  | original | reply | p s f m | last_seen | backend | epochs  | egress | last_ack[2] | packets  | bytes[2]   |  IPv4
//! ```

use zerocopy::{FromZeros, Immutable};

use super::{Address, DOMAIN_OVERLAY, DOMAIN_WIRE, Direction, Ticks, Tuple};

/// The entry is in use.
const LIVE: u8 = 0x80;
/// One bit per direction, by its index: the domain its packets arrive from.
const DOMAIN: u8 = 1;
const _: () = assert!(DOMAIN_WIRE == 0 && DOMAIN_OVERLAY == DOMAIN);
/// The entry is in the list of flows that are opening: `bytes` are the rows of its neighbours there, the older one first,
/// and `packets` are full, so that counting comes by and asks (see `opening`).
const LISTED: u8 = 0x08;
/// Bits of [`Entry::mark`] below these are the routes'.
pub mod mark {
    /// A pod's flow to the outside: its source is translated, it has the timers of such flows, and packets from outside
    /// do not keep it (N-008).
    pub const EGRESS: u8 = 4;
    /// … and it belongs to an endpoint-independent mapping.
    pub const MAPPED: u8 = 8;
    /// Number of its timer from this bit on; 0: as its state says.
    pub const TIMER_SHIFT: u32 = 4;
    /// No timer of its own: as the state says, and who had the port is recorded.
    pub const TIMER_RECORDED: u8 = 14;
    /// The timer of ICMP echo.
    pub const TIMER_ECHO: u8 = 15;
}

/// Packets of the reply direction never come here, and the index does not lead them here.
const ONE_WAY: u8 = 0x04;

/// A tuple but for what both directions share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromZeros, Immutable)]
#[repr(C)]
struct Ends<A> {
    source: A,
    destination: A,
    source_port: u16,
    destination_port: u16,
}

impl<A: Address> Ends<A> {
    #[inline(always)]
    fn of(tuple: &Tuple<A>) -> Ends<A> {
        Ends {
            source: tuple.source,
            destination: tuple.destination,
            source_port: tuple.source_port,
            destination_port: tuple.destination_port,
        }
    }
}

/// What a flow has lived through: a TCP state, or how much of a UDP conversation was seen.
///
/// One numbering for all protocols, so that the sweep finds the timer of an entry by this byte alone. The TCP states
/// that depend on which end closed first exist twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, FromZeros, Immutable)]
#[repr(transparent)]
pub struct FlowState(pub(super) u8);

/// One flow.
#[derive(Debug, Clone, Copy, FromZeros, Immutable)]
#[repr(C, align(64))]
pub struct Entry<A> {
    /// Of packets as they arrive, per direction.
    ends: [Ends<A>; 2],
    protocol: u8,
    /// Where the flow stands.
    pub state: FlowState,
    flags: u8,
    /// Free for the pipeline; kept as given.
    pub mark: u8,
    /// When the timer of `state` was started last.
    pub last_seen_ticks: Ticks,
    /// Row of the backend. In an entry that is not live: the next free one.
    pub backend: u32,
    /// Epoch of that row when it was last checked.
    pub backend_epoch: u16,
    /// Epoch of routes, tunnels and neighbours when `tunnel` and `next_hop` were found.
    pub routes_epoch: u16,
    /// Row of the tunnel that packets of the original direction leave through.
    pub tunnel: u16,
    /// Row of the neighbour that packets of the reply direction leave to.
    pub next_hop: u16,
    /// Acknowledgement numbers, per direction of the packet that carried them (`tcp` says what they are before the
    /// first one). Host order.
    pub last_ack: [u32; 2],
    packets: [u16; 2],
    bytes: [u32; 2],
}

const _: () = assert!(size_of::<Entry<[u8; 4]>>() == 64);
const _: () = assert!(size_of::<Entry<[u8; 16]>>() == 128);
const _: () = assert!(align_of::<Entry<[u8; 4]>>() == 64 && align_of::<Entry<[u8; 16]>>() == 64);

/// Everything a new entry is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewFlow<A> {
    /// The packet that opens the flow as it arrived.
    pub original: Tuple<A>,
    /// The same packet as it leaves; `domain` is where it leaves to and its answers arrive from.
    /// `protocol` must be that of `original`.
    pub translated: Tuple<A>,
    /// First state.
    pub state: FlowState,
    /// First value of [`Entry::mark`].
    pub mark: u8,
    /// First value of [`Entry::backend`].
    pub backend: u32,
    /// First value of [`Entry::backend_epoch`].
    pub backend_epoch: u16,
    /// First value of [`Entry::routes_epoch`].
    pub routes_epoch: u16,
    /// First value of [`Entry::tunnel`].
    pub tunnel: u16,
    /// First value of [`Entry::next_hop`].
    pub next_hop: u16,
    /// First value of [`Entry::last_ack`].
    pub last_ack: [u32; 2],
}

impl<A: Address> NewFlow<A> {
    /// The tuple of the flow's answers.
    #[inline]
    #[must_use]
    pub fn reply(&self) -> Tuple<A> {
        self.translated.reversed(self.translated.domain)
    }

    /// Whether packets leave as they came, but for where to: their answers then pass us by.
    #[inline]
    #[must_use]
    pub fn is_one_way(&self) -> bool {
        Ends::of(&self.original) == Ends::of(&self.translated)
    }
}

/// Packets and bytes of one direction that are no longer counted in their entry: the caller adds them to the totals of
/// the entry's backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[must_use = "these packets are counted nowhere else any more"]
pub struct Fold {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl<A: Address> Entry<A> {
    /// A live entry.
    #[inline]
    pub(super) fn new(new: &NewFlow<A>, now: Ticks) -> Entry<A> {
        let reply = new.reply();
        Entry {
            ends: [Ends::of(&new.original), Ends::of(&reply)],
            protocol: new.original.protocol,
            state: new.state,
            flags: LIVE
                | (new.original.domain & DOMAIN)
                | (reply.domain & DOMAIN) << 1
                | if new.is_one_way() { ONE_WAY } else { 0 },
            mark: new.mark,
            last_seen_ticks: now,
            backend: new.backend,
            backend_epoch: new.backend_epoch,
            routes_epoch: new.routes_epoch,
            tunnel: new.tunnel,
            next_hop: new.next_hop,
            last_ack: new.last_ack,
            packets: [0; 2],
            bytes: [0; 2],
        }
    }

    /// Whether the entry is in use.
    #[inline(always)]
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.flags & LIVE != 0
    }

    /// Whether this is a pod's flow to the outside.
    #[inline(always)]
    #[must_use]
    pub fn is_egress(&self) -> bool {
        self.mark & mark::EGRESS != 0
    }

    /// Whether somebody in the overlay has begun this flow, and not with the outside: both its ends are inside.
    #[inline(always)]
    #[must_use]
    pub fn is_from_inside(&self) -> bool {
        self.flags & DOMAIN != 0 && self.mark & mark::EGRESS == 0
    }

    /// Whether a datagram of `direction` starts the timer again: of a pod's flow only what the pod sends (N-008).
    #[inline(always)]
    #[must_use]
    pub fn is_kept_by(&self, direction: Direction) -> bool {
        self.mark & mark::EGRESS == 0 || direction.index() == 0
    }

    /// Whether only packets of the original direction are seen: they leave as they came, but for where to.
    #[inline]
    #[must_use]
    pub fn is_one_way(&self) -> bool {
        self.flags & ONE_WAY != 0
    }

    /// Takes the entry out of use and makes it a link of the free list.
    pub(super) fn vacate(&mut self, next_free: u32) {
        self.flags = 0;
        self.state = FlowState::VACANT;
        self.backend = next_free;
    }

    /// IANA protocol number.
    #[inline]
    #[must_use]
    pub fn protocol(&self) -> u8 {
        self.protocol
    }

    /// The tuple that packets of `direction` arrive with.
    #[inline(always)]
    #[must_use]
    pub fn arriving(&self, direction: Direction) -> Tuple<A> {
        let Ends { source, destination, source_port, destination_port } = self.ends[direction.index()];
        let (protocol, domain) = (self.protocol, self.domain(direction));
        Tuple { source, destination, source_port, destination_port, protocol, domain }
    }

    /// The tuple that packets of `direction` leave with: what to write into them.
    #[inline(always)]
    #[must_use]
    pub fn leaving(&self, direction: Direction) -> Tuple<A> {
        let back = direction.reversed();
        self.arriving(back).reversed(self.domain(back))
    }

    /// The tuple that packets of the original direction arrive with.
    #[inline]
    #[must_use]
    pub fn original_tuple(&self) -> Tuple<A> {
        self.arriving(Direction::Original)
    }

    /// The tuple that packets of the original direction leave with.
    #[inline]
    #[must_use]
    pub fn translated_tuple(&self) -> Tuple<A> {
        self.leaving(Direction::Original)
    }

    /// The tuple that packets of the reply direction arrive with.
    #[inline]
    #[must_use]
    pub fn reply_tuple(&self) -> Tuple<A> {
        self.arriving(Direction::Reply)
    }

    #[inline(always)]
    fn domain(&self, direction: Direction) -> u8 {
        self.flags >> direction.index() & DOMAIN
    }

    /// Whether packets with `tuple` are this live flow's `direction`. Has no branch.
    #[inline(always)]
    #[must_use]
    pub fn matches(&self, direction: Direction, tuple: &Tuple<A>) -> bool {
        let ends = &self.ends[direction.index()];
        let ports = (ends.source_port ^ tuple.source_port) | (ends.destination_port ^ tuple.destination_port);
        let kind = (self.protocol ^ tuple.protocol) | (self.domain(direction) ^ tuple.domain) | (!self.flags & LIVE);
        A::differ((ends.source, ends.destination), (tuple.source, tuple.destination))
            | u64::from(ports)
            | u64::from(kind)
            == 0
    }

    /// Counts a packet. When the entry's small counters would overflow, what they held is handed out.
    #[inline(always)]
    #[must_use = "folded packets are counted nowhere else any more"]
    pub fn count(&mut self, direction: Direction, bytes: u32) -> Option<Fold> {
        let at = direction.index();
        let (packets, total) = (self.packets[at].checked_add(1), self.bytes[at].checked_add(bytes));
        if let (Some(packets), Some(total)) = (packets, total) {
            self.packets[at] = packets;
            self.bytes[at] = total;
            return None;
        }
        Some(self.count_folded(direction, bytes))
    }

    #[cold]
    #[inline(never)]
    fn count_folded(&mut self, direction: Direction, bytes: u32) -> Fold {
        if self.is_listed() {
            return Fold { packets: 1, bytes: bytes.into() };
        }
        let fold = self.fold(direction);
        self.packets[direction.index()] = 1;
        self.bytes[direction.index()] = bytes;
        fold
    }

    /// Whether the flow counts as opening. A packet that ends that is told by [`count`](Self::count), which always has
    /// something to fold for such a flow.
    #[inline]
    #[must_use]
    pub fn is_listed(&self) -> bool {
        self.flags & LISTED != 0
    }

    /// Enters the list of flows that are opening, between these neighbours.
    pub(super) fn join(&mut self, neighbours: [u32; 2]) {
        debug_assert!(!self.is_listed() && self.packets == [0; 2] && self.bytes == [0; 2]);
        self.flags |= LISTED;
        self.packets = [u16::MAX; 2];
        self.bytes = neighbours;
    }

    /// Leaves that list and returns its neighbours there, if it was in it.
    pub(super) fn leave(&mut self) -> Option<[u32; 2]> {
        if !self.is_listed() {
            return None;
        }
        self.flags &= !LISTED;
        self.packets = [0; 2];
        Some(std::mem::take(&mut self.bytes))
    }

    #[cfg(test)]
    pub(super) fn neighbours(&self) -> [u32; 2] {
        assert!(self.is_listed());
        self.bytes
    }

    /// Its neighbours in that list.
    pub(super) fn neighbours_mut(&mut self) -> &mut [u32; 2] {
        debug_assert!(self.is_listed());
        &mut self.bytes
    }

    /// Packets and bytes counted since the last fold; none while the flow is opening.
    #[inline]
    pub fn counted(&self, direction: Direction) -> Fold {
        if self.is_listed() {
            return Fold::default();
        }
        Fold { packets: self.packets[direction.index()].into(), bytes: self.bytes[direction.index()].into() }
    }

    /// Takes the counters of a direction out; they start at zero again.
    #[inline]
    pub fn fold(&mut self, direction: Direction) -> Fold {
        let fold = self.counted(direction);
        if self.is_listed() {
            return fold;
        }
        self.packets[direction.index()] = 0;
        self.bytes[direction.index()] = 0;
        fold
    }

    /// A field of the entry's last cache line, for prefetching it.
    #[inline(always)]
    pub(super) fn last_line(&self) -> &u32 {
        &self.bytes[1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tuple::DOMAIN_OVERLAY;

    fn tuple<A: Address>(source: A, destination: A, ports: (u16, u16), domain: u8) -> Tuple<A> {
        Tuple { source, destination, source_port: ports.0, destination_port: ports.1, protocol: 6, domain }
    }

    fn new_flow<A: Address>(addresses: [A; 4], domains: (u8, u8)) -> NewFlow<A> {
        let [client, vip, gateway, pod] = addresses;
        NewFlow {
            original: tuple(client, vip, (40_000, 80), domains.0),
            translated: tuple(gateway, pod, (1024, 8080), domains.1),
            state: FlowState::SYN_SENT,
            mark: 9,
            backend: 7,
            backend_epoch: 8,
            routes_epoch: 3,
            tunnel: 4,
            next_hop: 5,
            last_ack: [1, 2],
        }
    }

    fn tuples_of_both_directions<A: Address>(addresses: [A; 4]) {
        for domains in [(0, 1), (1, 1), (1, 0), (0, 0)] {
            let new = new_flow(addresses, domains);
            let entry = Entry::new(&new, 77);
            let [client, vip, gateway, pod] = addresses;
            assert_eq!(entry.original_tuple(), new.original);
            assert_eq!(entry.translated_tuple(), new.translated);
            assert_eq!(entry.reply_tuple(), tuple(pod, gateway, (8080, 1024), domains.1));
            assert_eq!(entry.reply_tuple(), new.reply());
            assert_eq!(entry.arriving(Direction::Original), new.original);
            assert_eq!(entry.arriving(Direction::Reply), new.reply());
            assert_eq!(entry.leaving(Direction::Original), new.translated);
            assert_eq!(entry.leaving(Direction::Reply), tuple(vip, client, (80, 40_000), domains.0));
            assert_eq!((entry.mark, entry.last_seen_ticks, entry.backend, entry.tunnel), (9, 77, 7, 4));
            assert_eq!((entry.next_hop, entry.backend_epoch, entry.routes_epoch), (5, 8, 3));
        }
    }

    #[test]
    fn a_flow_that_is_not_translated_is_seen_one_way() {
        let [client, vip, node] = [[1; 4], [2; 4], [3; 4]];
        let mut new = new_flow([client, vip, node, node], (DOMAIN_WIRE, DOMAIN_OVERLAY));
        assert!(!new.is_one_way() && !Entry::new(&new, 0).is_one_way());
        new.translated = Tuple { domain: DOMAIN_OVERLAY, ..new.original };
        let entry = Entry::new(&new, 0);
        assert!(new.is_one_way() && entry.is_one_way() && entry.is_live());
        assert_eq!(entry.leaving(Direction::Original), new.translated);
        assert!(entry.matches(Direction::Original, &new.original));
    }

    #[test]
    fn an_entry_gives_back_its_tuples() {
        tuples_of_both_directions([[1; 4], [2; 4], [3; 4], [4; 4]]);
        tuples_of_both_directions([[1; 16], [2; 16], [3; 16], [4; 16]]);
    }

    fn every_field_matters<A: Address>(addresses: [A; 4], stranger: A) {
        let mut entry = Entry::new(&new_flow(addresses, (DOMAIN_WIRE, DOMAIN_OVERLAY)), 0);
        for direction in [Direction::Original, Direction::Reply] {
            let tuple = entry.arriving(direction);
            assert!(entry.matches(direction, &tuple));
            assert!(!entry.matches(direction.reversed(), &tuple));
            for wrong in [
                Tuple { source: stranger, ..tuple },
                Tuple { destination: stranger, ..tuple },
                Tuple { source_port: 1, ..tuple },
                Tuple { destination_port: 1, ..tuple },
                Tuple { protocol: 17, ..tuple },
                Tuple { domain: 1 - tuple.domain, ..tuple },
            ] {
                assert!(!entry.matches(direction, &wrong), "{wrong:?}");
            }
        }
        let tuple = entry.original_tuple();
        entry.vacate(3);
        assert!(!entry.is_live());
        assert!(!entry.matches(Direction::Original, &tuple));
        assert_eq!(entry.backend, 3);
    }

    #[test]
    fn a_match_compares_every_field_and_liveness() {
        every_field_matters([[1; 4], [2; 4], [3; 4], [4; 4]], [9; 4]);
        every_field_matters([[1; 16], [2; 16], [3; 16], [4; 16]], [9; 16]);
    }

    #[test]
    fn counters_that_would_overflow_are_handed_out_and_nothing_is_lost() {
        let mut entry = Entry::new(&new_flow([[1; 4], [2; 4], [3; 4], [4; 4]], (0, 1)), 0);
        let (mut packets, mut bytes) = ([0u64; 2], [0u64; 2]);
        let mut folds = 0;
        for n in 0..200_000u32 {
            let direction = if n % 3 == 0 { Direction::Reply } else { Direction::Original };
            let size = if direction == Direction::Reply { 65_535 } else { 64 };
            packets[direction.index()] += 1;
            bytes[direction.index()] += u64::from(size);
            if let Some(fold) = entry.count(direction, size) {
                packets[direction.index()] -= fold.packets;
                bytes[direction.index()] -= fold.bytes;
                folds += 1;
            }
        }
        assert!(folds >= 3, "both limits were met: {folds}");
        for direction in [Direction::Original, Direction::Reply] {
            let rest = entry.fold(direction);
            assert_eq!((rest.packets, rest.bytes), (packets[direction.index()], bytes[direction.index()]));
            assert_eq!(entry.fold(direction), Fold::default());
        }
    }

    #[test]
    fn one_giant_packet_is_counted_too() {
        let mut entry = Entry::new(&new_flow([[1; 4], [2; 4], [3; 4], [4; 4]], (0, 1)), 0);
        assert_eq!(entry.count(Direction::Original, 10), None);
        assert_eq!(entry.count(Direction::Original, u32::MAX), Some(Fold { packets: 1, bytes: 10 }));
        assert_eq!(entry.fold(Direction::Original), Fold { packets: 1, bytes: u32::MAX.into() });
    }
}
