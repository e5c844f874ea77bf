//! What a decision may say, and what becomes of a frame after it.
//!
//! Owns the words between deciding and applying: a [`Decision`] names everything that is to change, so that it can be told,
//! compared and carried out later. Refuses to change anything.

use crate::drops::DropReason;
use crate::family::Family;
use crate::packet::{Domain, Packet};
use crate::stage::policy::{Denied, Passed};
use crate::stage::route::{self, Hop};
use crate::state::mapping::Mapping;
use crate::state::one_way::{self, Opening};
use crate::state::quota::Quota;
use crate::state::{self, Direction, FlowId, FlowState, Grant, Learn, Tuple, tcp};
use crate::table::egress::PortClass;
use crate::table::{BackendId, DeviceId};
use crate::wire::protocol;

/// What is to happen to one packet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decision<A> {
    /// Its flow is known: edit and send.
    Forward {
        /// The flow.
        flow: FlowId,
        /// Which way this packet goes.
        direction: Direction,
        /// Where it leaves.
        hop: Hop,
        /// What the flow learns, if it was revalidated.
        refresh: Option<Refresh>,
    },
    /// It starts a flow: install, edit and send.
    Start {
        /// The flow to install.
        flow: NewFlow<A>,
        /// A flow of the same tuple that ends with this.
        replaces: Option<FlowId>,
    },
    /// An ICMP error that quotes this flow: translate and send (L-050).
    Translate {
        /// The flow.
        flow: FlowId,
        /// Which way the error goes: the reverse of what it quotes.
        direction: Direction,
        /// Where it leaves.
        hop: Hop,
    },
    /// It goes to a node as it is, and nothing remembers it (L-021).
    Pass {
        /// Row of the node it is counted for.
        backend: BackendId,
        /// Where it leaves.
        hop: Hop,
    },
    /// It goes to a pod by its mapping, and nothing remembers it (N-008, N-009).
    Deliver {
        /// The tuple it leaves with.
        to: Tuple<A>,
        /// Where it leaves.
        hop: Hop,
        /// What let it pass.
        passed: Passed,
    },
    /// It leaves as it is, to where its pod's policy does not translate, and nothing remembers it (N-110).
    Route(Hop),
    /// It ends here, since a policy denies it.
    Deny(Denied),
    /// A pod's packet to the outside that cannot be translated (N-111): its sender is told.
    Refuse(Refused),
    /// Answer it from here.
    Answer(Answer),
    /// It ends here.
    Drop(DropReason),
}

/// Why and for whom a pod's packet is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What its sender is told.
    pub answer: Answer,
    /// The external address that it would have had, IPv4 mapped.
    pub address: Option<[u8; 16]>,
    /// Whose ports; none of a protocol without.
    pub class: Option<PortClass>,
    /// Row of the pod.
    pub pod: u32,
    /// The hash of a destination for which no port is left.
    pub exhausted: Option<u64>,
    /// A quota of which this worker has used its share.
    pub short: Option<Quota>,
}

/// What a pod's flow to the outside is given, and who gives way to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted<A> {
    /// The port.
    pub grant: Grant,
    /// A closed flow that ends because its port is used again.
    pub reuses: Option<FlowId>,
    /// A mapping at rest that ends because its port, or its pod's port, is used again.
    pub ends: Option<Mapping<A>>,
    /// Whether ports of the address run short.
    pub is_scarce: bool,
    /// A quota of which this worker has used most of its share.
    pub short: Option<Quota>,
}

/// What a revalidated flow learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refresh {
    /// Epoch of the backend row that was looked at.
    pub backend_epoch: u16,
    /// Epoch of the routes that were looked at.
    pub routes_epoch: u16,
    /// Where packets of the original direction leave, if that is known.
    pub forward: Option<Hop>,
    /// Where packets of the reply direction leave, if that is known.
    pub reply: Option<Hop>,
}

/// A flow to install.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NewFlow<A> {
    /// Client to Service address.
    pub original: Tuple<A>,
    /// Translated source; in `node-dsr` the client.
    pub source: (A, u16),
    /// Translated destination: the backend; in `node-dsr` the Service address.
    pub to: (A, u16),
    /// Where it leaves to.
    pub leaves: Domain,
    /// Row of the backend; of a pod's flow to the outside that of the pod.
    pub backend: BackendId,
    /// Epoch of that row.
    pub backend_epoch: u16,
    /// Epoch of the routes.
    pub routes_epoch: u16,
    /// Where packets of the original direction leave.
    pub forward: Hop,
    /// Where packets of the reply direction leave; `None`: none ever comes here.
    pub reply: Option<Hop>,
    /// What is remembered of the choice.
    pub learn: Learn,
    /// What a pod's flow to the outside is given.
    pub granted: Option<Granted<A>>,
    /// What let it pass.
    pub passed: Passed,
}

impl<A: Family> NewFlow<A> {
    /// The tuple that its first packet leaves with.
    pub(crate) fn leaving(&self) -> Tuple<A> {
        let ((source, source_port), (destination, destination_port)) = (self.source, self.to);
        let (protocol, domain) = (self.original.protocol, self.leaves as u8);
        Tuple { source, destination, source_port, destination_port, protocol, domain }
    }

    /// The entry to install for the flow that `packet` begins.
    pub(super) fn entry(&self, packet: &Packet) -> state::NewFlow<A> {
        let at = &packet.l3;
        let (state, last_ack) = match one_way::open(at.tcp_flags) {
            Opening::Pin(state) if self.reply.is_none() && at.protocol != protocol::UDP => (state, [0; 2]),
            _ if at.protocol == protocol::SCTP => state::sctp::open(at.tcp_seq),
            _ => tcp::open(at.tcp_flags, at.tcp_seq).unwrap_or((FlowState::UDP_UNREPLIED, [0; 2])),
        };
        let (mark, tunnel, next_hop) = route::pack(Some(self.forward), self.reply);
        state::NewFlow {
            original: self.original,
            translated: self.leaving(),
            state,
            mark: mark | self.granted.map_or(0, |granted| granted.grant.mark()),
            backend: self.backend.0,
            backend_epoch: self.backend_epoch,
            routes_epoch: self.routes_epoch,
            tunnel,
            next_hop,
            last_ack,
        }
    }
}

/// A packet made from the one that asked for it, sent back to whoever sent that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// ARP reply for an announced address, or for our VTEP inside VXLAN (V-016).
    Arp,
    /// Neighbour advertisement for the same.
    Advertise,
    /// Echo reply from the address that was asked.
    Echo,
    /// TCP RST (RFC 9293 section 3.10.7.1).
    Reset {
        /// Why the segment was not wanted: counted where the answer may not be sent.
        otherwise: DropReason,
    },
    /// ICMP or ICMPv6 port unreachable from the address that was asked.
    Unreachable,
    /// ICMP or ICMPv6 unreachable from the gateway, forbidden by its administrator (N-035, N-041).
    Prohibited {
        /// Why the packet was refused: counted where the answer may not be sent.
        otherwise: DropReason,
    },
    /// ICMP or ICMPv6 time exceeded from the gateway.
    TimeExceeded,
    /// Fragmentation needed or packet too big (V-010).
    TooBig {
        /// Largest packet that fits, bytes.
        mtu: u16,
    },
}

/// Where a frame goes after [`apply`]. A frame has exactly one.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Out of this device.
    Send(DeviceId),
    /// It is finished but for the link-layer destination: it waits for this neighbour.
    Hold {
        /// Device of the neighbour.
        device: DeviceId,
        /// Its address, IPv4 mapped.
        address: [u8; 16],
    },
    /// It has left the overlay for an external address: it comes back in as if from the wire (N-010).
    Hairpin,
    /// It is finished but for its outside and larger than this hop carries: it leaves in fragments (V-010).
    Cut(Hop),
    /// It ends here, counted by reason.
    Drop(DropReason),
}

/// One step of a decision, for whoever wants to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The flow is known, in this direction.
    Hit(Direction),
    /// No flow is known.
    Miss,
    /// Something the flow depends on has changed.
    Revalidate,
    /// This backend was chosen.
    Backend(BackendId),
    /// This source port was chosen.
    Source(u16),
}

/// Hears the steps of a decision. [`Silent`] costs nothing.
pub trait Trace {
    /// Called once per step, in order.
    fn note(&mut self, step: Step);
}

/// Hears nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Trace for Silent {
    #[inline(always)]
    fn note(&mut self, _step: Step) {}
}

impl Trace for Vec<Step> {
    fn note(&mut self, step: Step) {
        self.push(step);
    }
}

/// What the worker knows beside tables and state when it decides and applies.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Monotonic nanoseconds, the same for a whole turn.
    pub now_ns: u64,
    /// Unpredictable, new for each slow decision.
    pub entropy: u64,
}
