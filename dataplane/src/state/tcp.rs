//! What a packet does to its flow's state: TCP by its flags, UDP by its direction; and how long each state lasts.
//!
//! It owns the states and the timers. It refuses to know entries, tables and what a drop is called.
//!
//! The states are those of Linux's nf_conntrack (spec 4.7, N-080 … N-104) with these differences:
//!
//! - Which end closed first is remembered, so a retransmitted FIN is not taken for the other end's.
//! - A SYN-ACK must acknowledge the SYN, and the client's ACK the SYN-ACK, before the state advances: an old SYN-ACK
//!   moves nothing (N-103), and a spoofed SYN and ACK cannot buy two hours of memory.
//! - No window tracking (N-091): the last acknowledgement number of either direction is kept, for resets only.
//! - A reset that is inexact but might be in the window leaves the flow established and puts it in doubt: it lasts as
//!   long as a closing one, until the next packet says that it lives. (Linux gives it its 10 s.) So a server that resets
//!   behind data still in flight does not leave an entry for two hours.
//! - A handshake ends by a reset only if its number fits too.
//! - Nothing is dropped for being out of state; only flag combinations that no TCP sends are.
//!
//! While a flow opens, `last_ack` holds what is expected instead: `last_ack[Reply]` the number that acknowledges the
//! client's SYN, then `last_ack[Original]` the one that acknowledges the server's.

use super::entry::mark;
use super::{Direction, FlowState, Ticks, ticks_of_seconds};
use crate::mutation::{self, Mutation};

/// TCP flag bits as in byte 13 of the header (RFC 9293 section 3.1).
pub const FIN: u8 = 0x01;
/// Synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// Reset the connection.
pub const RST: u8 = 0x04;
/// The acknowledgement number counts.
pub const ACK: u8 = 0x10;

/// How far past the SYN an acknowledgement in the handshake may be: data can ride on a SYN and follow a SYN-ACK before
/// the handshake is over (RFC 7413, TCP Fast Open).
const HANDSHAKE_ACK_SPAN: u32 = 1 << 17;
/// The largest window there is: 65,535 shifted by 14 (RFC 7323 section 2.3), rounded up.
const WINDOW_MAX: u32 = 1 << 30;

impl FlowState {
    /// No flow.
    pub const VACANT: FlowState = FlowState(0);
    /// The client sent a SYN.
    pub const SYN_SENT: FlowState = FlowState(1);
    /// Both ends sent a SYN.
    pub const SYN_SENT2: FlowState = FlowState(2);
    /// The server answered the SYN.
    pub const SYN_RECV: FlowState = FlowState(3);
    /// The handshake is complete.
    pub const ESTABLISHED: FlowState = FlowState(4);
    /// Established, but the last packet was a reset that may have been meant.
    pub const ESTABLISHED_IN_DOUBT: FlowState = FlowState(5);
    /// The original end sent FIN.
    pub const FIN_WAIT: FlowState = FlowState(6);
    /// The replying end sent FIN.
    pub const FIN_WAIT_REPLY: FlowState = FlowState(7);
    /// … and the other end has acknowledged something since.
    pub const CLOSE_WAIT: FlowState = FlowState(8);
    /// … the same when the replying end closed first.
    pub const CLOSE_WAIT_REPLY: FlowState = FlowState(9);
    /// Both ends sent FIN, the original one first: its ACK is missing.
    pub const LAST_ACK: FlowState = FlowState(10);
    /// Both ends sent FIN, the replying one first: its ACK is missing.
    pub const LAST_ACK_REPLY: FlowState = FlowState(11);
    /// Closed by both ends.
    pub const TIME_WAIT: FlowState = FlowState(12);
    /// Reset.
    pub const CLOSE: FlowState = FlowState(13);
    /// UDP that nobody answered yet.
    pub const UDP_UNREPLIED: FlowState = FlowState(16);
    /// UDP that was answered: a question and its answer.
    pub const UDP_REPLIED: FlowState = FlowState(17);
    /// UDP that went on after an answer: a conversation.
    pub const UDP_STREAM: FlowState = FlowState(18);

    /// An endpoint-independent mapping that some flow uses.
    pub const MAPPED: FlowState = FlowState(24);
    /// A mapping that nothing uses any more, whose port rests (N-042).
    pub const RESTING: FlowState = FlowState(25);
    /// An address that a mapping has been used to, and that may therefore send to it (N-009).
    pub const PERMIT: FlowState = FlowState(26);

    /// The name for people; states that differ only in which end came first share one.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            FlowState::VACANT => "vacant",
            FlowState::SYN_SENT => "syn-sent",
            FlowState::SYN_SENT2 => "syn-sent-2",
            FlowState::SYN_RECV => "syn-received",
            FlowState::ESTABLISHED | FlowState::ESTABLISHED_IN_DOUBT => "established",
            FlowState::FIN_WAIT | FlowState::FIN_WAIT_REPLY => "fin-wait",
            FlowState::CLOSE_WAIT | FlowState::CLOSE_WAIT_REPLY => "close-wait",
            FlowState::LAST_ACK | FlowState::LAST_ACK_REPLY => "last-ack",
            FlowState::TIME_WAIT => "time-wait",
            FlowState::CLOSE => "close",
            FlowState::UDP_UNREPLIED => "unreplied",
            FlowState::UDP_REPLIED => "replied",
            FlowState::UDP_STREAM => "stream",
            FlowState::PINNED => "pinned",
            FlowState::PIN_OPENING => "pin-opening",
            FlowState::PIN_CLOSED => "pin-closed",
            FlowState::PIN_DOUBTED => "pin-doubted",
            FlowState::MAPPED => "mapped",
            FlowState::RESTING => "resting",
            FlowState::PERMIT => "permit",
            _ => self.name_of_sctp(),
        }
    }

    /// Whether the handshake was completed and no end has closed.
    #[inline]
    #[must_use]
    pub const fn is_established(self) -> bool {
        matches!(self, FlowState::ESTABLISHED | FlowState::ESTABLISHED_IN_DOUBT)
    }

    /// Whether schedulers count the flow as active: TCP from its SYN and SCTP from its INIT on until one end closes. The handshake counts too, or
    /// a burst of new connections would all go to the one that had the fewest before it (`tcp_state_active_table`,
    /// net/netfilter/ipvs/ip_vs_proto_tcp.c). UDP never does.
    #[inline]
    #[must_use]
    pub const fn is_active(self) -> bool {
        matches!(self, FlowState::SYN_SENT | FlowState::SYN_SENT2 | FlowState::SYN_RECV)
            || self.is_established()
            || matches!(self, FlowState::SCTP_COOKIE_WAIT | FlowState::SCTP_COOKIE_ECHOED | FlowState::SCTP_ESTABLISHED)
    }

    /// Whether an end of a TCP connection or SCTP association has closed it, or it was reset.
    #[must_use]
    pub const fn has_closed(self) -> bool {
        matches!(
            self,
            FlowState::FIN_WAIT
                | FlowState::FIN_WAIT_REPLY
                | FlowState::CLOSE_WAIT
                | FlowState::CLOSE_WAIT_REPLY
                | FlowState::LAST_ACK
                | FlowState::LAST_ACK_REPLY
                | FlowState::TIME_WAIT
                | FlowState::CLOSE
                | FlowState::PIN_CLOSED
                | FlowState::SCTP_SHUTDOWN_SENT
                | FlowState::SCTP_SHUTDOWN_RECEIVED
                | FlowState::SCTP_SHUTDOWN_ACK_SENT
                | FlowState::SCTP_CLOSED
        )
    }

    /// For the states that exist twice, the end that closed first.
    const fn closer(self) -> Direction {
        if self.0 & 1 == 0 { Direction::Original } else { Direction::Reply }
    }
}

impl std::fmt::Debug for FlowState {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}#{}", self.name(), self.0)
    }
}

/// How long a flow stays without a packet, per state.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// Of Services' flows, then of pods' flows to the outside.
    states: [[Ticks; STATES]; 2],
    /// Of pods' flows that have a timer of their own, by its number; 0: none has it.
    numbered: [Ticks; 16],
}

/// Numbers that states can have.
const STATES: usize = 64;

/// Seconds per state for Services (column LBNAT of spec 4.7).
///
/// UDP: 120 s is the least that RFC 4787 REQ-5 allows; a conversation gets the 300 s that it recommends. A
/// question with one answer stays at 120 s, since name servers would fill the table with them.
///
/// Pins last as long as what they stand for, but for one that is opening: who sent the SYN cannot be told.
const SECONDS: [(FlowState, u32); 20] = [
    (FlowState::SYN_SENT, 240),
    (FlowState::SYN_SENT2, 240),
    (FlowState::SYN_RECV, 240),
    (FlowState::ESTABLISHED, 7440),
    (FlowState::ESTABLISHED_IN_DOUBT, 240),
    (FlowState::FIN_WAIT, 240),
    (FlowState::FIN_WAIT_REPLY, 240),
    (FlowState::CLOSE_WAIT, 240),
    (FlowState::CLOSE_WAIT_REPLY, 240),
    (FlowState::LAST_ACK, 30),
    (FlowState::LAST_ACK_REPLY, 30),
    (FlowState::TIME_WAIT, 240),
    (FlowState::CLOSE, 10),
    (FlowState::UDP_UNREPLIED, 120),
    (FlowState::UDP_REPLIED, 120),
    (FlowState::UDP_STREAM, 300),
    (FlowState::PINNED, 7440),
    (FlowState::PIN_OPENING, 60),
    (FlowState::PIN_CLOSED, 240),
    (FlowState::PIN_DOUBTED, 240),
];

/// Seconds where those of pods' flows to the outside differ (column ESNAT of spec 4.7; N-007, N-024).
const SECONDS_EGRESS: [(FlowState, u32); 6] = [
    (FlowState::LAST_ACK, 240),
    (FlowState::LAST_ACK_REPLY, 240),
    (FlowState::CLOSE, 240),
    (FlowState::UDP_UNREPLIED, 300),
    (FlowState::UDP_REPLIED, 300),
    (FlowState::UDP_STREAM, 300),
];
/// N-030: at least 60 s.
const ECHO_SECONDS: u32 = 60;
/// N-042.
const REST_SECONDS: u32 = 120;

impl Default for Timeouts {
    fn default() -> Timeouts {
        let mut timeouts = Timeouts { states: [[0; STATES]; 2], numbered: [0; 16] };
        for (state, seconds) in SECONDS.into_iter().chain(super::sctp::SECONDS) {
            timeouts.set(state, seconds);
        }
        timeouts.states[1] = timeouts.states[0];
        for (state, seconds) in SECONDS_EGRESS {
            timeouts.states[1][usize::from(state.0)] = ticks_of_seconds(seconds);
        }
        for state in [FlowState::MAPPED, FlowState::PERMIT] {
            // Ends with its flows, however long these last.
            timeouts.states[0][usize::from(state.0)] = Ticks::MAX;
        }
        timeouts.set(FlowState::RESTING, REST_SECONDS);
        timeouts.set_numbered(mark::TIMER_ECHO, ECHO_SECONDS);
        timeouts
    }
}

impl Timeouts {
    /// Ticks that `state` lasts.
    #[inline(always)]
    #[must_use]
    pub fn of(&self, state: FlowState) -> Ticks {
        self.states[0][usize::from(state.0) % STATES]
    }

    /// Ticks that a flow in `state` lasts whose entry has this mark.
    #[inline(always)]
    #[must_use]
    pub fn of_marked(&self, state: FlowState, mark: u8) -> Ticks {
        if mark & mark::EGRESS == 0 { self.of(state) } else { self.of_egress(state, mark) }
    }

    fn of_egress(&self, state: FlowState, mark: u8) -> Ticks {
        match self.numbered[usize::from(mark >> mark::TIMER_SHIFT)] {
            0 => self.states[1][usize::from(state.0) % STATES],
            ticks => ticks,
        }
    }

    /// Makes flows with the timer `number` (1 to 15) last `seconds`; 0: as their state says.
    pub fn set_numbered(&mut self, number: u8, seconds: u32) {
        if number > 0 {
            self.numbered[usize::from(number) % 16] = ticks_of_seconds(seconds);
        }
    }

    /// Makes `state` last at least `seconds` (at most 13 days, where the clock of flows could be misread).
    pub fn set(&mut self, state: FlowState, seconds: u32) {
        self.states[0][usize::from(state.0) % STATES] = ticks_of_seconds(seconds);
    }
}

/// What follows from a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Next {
    /// The flow's state from now on.
    pub state: FlowState,
    /// Whether the packet goes on its way; if not, its flags are nonsense.
    pub forward: bool,
    /// Whether the timer starts again.
    pub refresh: bool,
    /// The packet opens a new connection over a finished one (N-087): remove the flow, then treat the packet as the
    /// first of a new one. `state` is unchanged then.
    pub reopen: bool,
}

impl Next {
    /// To `state`, and the timer starts again.
    pub(super) const fn to(state: FlowState) -> Next {
        Next { state, forward: true, refresh: true, reopen: false }
    }

    /// The packet passes and leaves no trace.
    pub(super) const fn ignore(state: FlowState) -> Next {
        Next { state, forward: true, refresh: false, reopen: false }
    }

    /// The packet's flags are nonsense.
    pub(super) const fn refuse(state: FlowState) -> Next {
        Next { state, forward: false, refresh: false, reopen: false }
    }
}

/// The first state and the first `last_ack` of a flow that a TCP packet opens; nothing unless it is a SYN (N-080; N-088:
/// where the source is translated, a packet without a flow cannot be picked up).
#[must_use]
pub fn open(flags: u8, sequence: u32) -> Option<(FlowState, [u32; 2])> {
    (flags & (SYN | ACK | RST | FIN) == SYN).then(|| (FlowState::SYN_SENT, [0, sequence.wrapping_add(1)]))
}

/// Whether a segment with these flags leaves a flow in `state` where it is, and its acknowledgement is all there is to keep: all
/// but a few segments of a connection, N-104 among them. A pin looks the same here.
#[inline(always)]
#[must_use]
pub const fn is_steady(state: FlowState, flags: u8) -> bool {
    const EITHER: u8 = FlowState::PINNED.0 ^ FlowState::ESTABLISHED.0;
    state.0 & !EITHER == FlowState::ESTABLISHED.0 && flags & (SYN | RST | FIN | ACK) == ACK
}

/// What a TCP packet of `direction` does to a flow. `sequence` and `acknowledgement` in host order.
#[inline(always)]
pub fn advance(
    state: FlowState,
    direction: Direction,
    flags: u8,
    sequence: u32,
    acknowledgement: u32,
    last_ack: &mut [u32; 2],
) -> Next {
    if is_steady(state, flags) {
        last_ack[direction.index()] = acknowledgement;
        return Next::to(state);
    }
    advance_rarely(state, direction, flags, sequence, acknowledgement, last_ack)
}

#[inline(never)]
fn advance_rarely(
    state: FlowState,
    direction: Direction,
    flags: u8,
    sequence: u32,
    acknowledgement: u32,
    last_ack: &mut [u32; 2],
) -> Next {
    const SYN_ACK: u8 = SYN | ACK;
    const RST_ACK: u8 = RST | ACK;
    const FIN_ACK: u8 = FIN | ACK;
    if state.is_pin() {
        return super::one_way::advance(state, flags);
    }
    match flags & (SYN | RST | FIN | ACK) {
        SYN => on_syn(state, direction, sequence, last_ack),
        SYN_ACK => on_syn_ack(state, direction, sequence, acknowledgement, last_ack),
        RST | RST_ACK => on_rst(state, direction, sequence, last_ack),
        FIN_ACK => on_ack(state, direction, true, acknowledgement, last_ack),
        ACK => on_ack(state, direction, false, acknowledgement, last_ack),
        // No segment of a connection lacks all four, a FIN always acknowledges, and SYN, FIN and RST exclude each
        // other (RFC 9293 section 3.10.7; nf_conntrack has the same list).
        _ => Next::refuse(state),
    }
}

fn on_syn(state: FlowState, direction: Direction, sequence: u32, last_ack: &mut [u32; 2]) -> Next {
    match (state, direction) {
        // N-089; a client that starts over before it was answered has a new number.
        (FlowState::SYN_SENT, Direction::Original) => {
            last_ack[Direction::Reply.index()] = sequence.wrapping_add(1);
            Next::to(state)
        }
        // N-081: simultaneous open.
        (FlowState::SYN_SENT, Direction::Reply) => {
            last_ack[Direction::Original.index()] = sequence.wrapping_add(1);
            Next::to(FlowState::SYN_SENT2)
        }
        // N-089.
        (FlowState::SYN_SENT2, _) | (FlowState::SYN_RECV, Direction::Original) => Next::to(state),
        // N-087.
        (FlowState::TIME_WAIT | FlowState::CLOSE, Direction::Original) => Next { reopen: true, ..Next::ignore(state) },
        // N-103: the server knows whether this is a new connection. Its answer moves the state, not the question.
        _ => Next::ignore(state),
    }
}

fn on_syn_ack(
    state: FlowState,
    direction: Direction,
    sequence: u32,
    acknowledgement: u32,
    last_ack: &mut [u32; 2],
) -> Next {
    let acknowledges_syn = in_span(acknowledgement, last_ack[direction.index()], HANDSHAKE_ACK_SPAN)
        || mutation::is(Mutation::AnySynAckBelieved);
    match (state, direction) {
        // N-082, and N-103: an old SYN-ACK with another acknowledgement number moves nothing.
        (FlowState::SYN_SENT, Direction::Reply) | (FlowState::SYN_SENT2, _) if acknowledges_syn => {
            last_ack[direction.index()] = acknowledgement;
            last_ack[direction.reversed().index()] = sequence.wrapping_add(1);
            Next::to(FlowState::SYN_RECV)
        }
        // N-089; also the second SYN-ACK of a simultaneous open.
        (FlowState::SYN_RECV, _) if acknowledges_syn => {
            last_ack[direction.reversed().index()] = sequence.wrapping_add(1);
            Next::to(state)
        }
        // N-089, when the client's ACK was lost behind us; N-103, when the server answers a new SYN.
        (FlowState::ESTABLISHED | FlowState::ESTABLISHED_IN_DOUBT, _) => {
            last_ack[direction.index()] = acknowledgement;
            Next::to(FlowState::ESTABLISHED)
        }
        _ => Next::ignore(state),
    }
}

/// N-086. What the receiver of a reset expects next is the last acknowledgement number that it sent.
fn on_rst(state: FlowState, direction: Direction, sequence: u32, last_ack: &[u32; 2]) -> Next {
    let expected = last_ack[direction.reversed().index()];
    match state {
        FlowState::CLOSE => Next::ignore(state),
        _ if mutation::is(Mutation::AnyResetBelieved) => Next::to(FlowState::CLOSE),
        FlowState::ESTABLISHED | FlowState::ESTABLISHED_IN_DOUBT if sequence == expected => Next::to(FlowState::CLOSE),
        // The receiver may accept it, or challenge it and live on (RFC 5961 section 3.2); which of the two we shall see.
        FlowState::ESTABLISHED if in_span(sequence, expected, WINDOW_MAX) => Next::to(FlowState::ESTABLISHED_IN_DOUBT),
        FlowState::ESTABLISHED | FlowState::ESTABLISHED_IN_DOUBT => Next::ignore(state),
        // A server resets a spoofed ACK with the spoofed number: that is not the end of the client's handshake.
        FlowState::SYN_RECV if !in_span(sequence, expected, HANDSHAKE_ACK_SPAN) => Next::ignore(state),
        _ => Next::to(FlowState::CLOSE),
    }
}

/// ACK, with or without FIN.
fn on_ack(state: FlowState, direction: Direction, fin: bool, acknowledgement: u32, last_ack: &mut [u32; 2]) -> Next {
    let expected = last_ack[direction.index()];
    let next = match state {
        // N-103: a challenge to our SYN passes. A FIN cannot be meant.
        FlowState::SYN_SENT | FlowState::SYN_SENT2 => return Next::ignore(state),
        // Not refused the timer: the client may hold to an earlier SYN-ACK than the last one we saw, and a server that
        // answers with cookies sends different ones (RFC 4987 section 3.6).
        FlowState::SYN_RECV if !in_span(acknowledgement, expected, HANDSHAKE_ACK_SPAN) => return Next::to(state),
        // N-084.
        FlowState::SYN_RECV | FlowState::ESTABLISHED | FlowState::ESTABLISHED_IN_DOUBT if fin => match direction {
            Direction::Original => FlowState::FIN_WAIT,
            Direction::Reply => FlowState::FIN_WAIT_REPLY,
        },
        // N-083.
        FlowState::SYN_RECV if direction == Direction::Original => FlowState::ESTABLISHED,
        FlowState::ESTABLISHED_IN_DOUBT => FlowState::ESTABLISHED,
        FlowState::FIN_WAIT | FlowState::FIN_WAIT_REPLY | FlowState::CLOSE_WAIT | FlowState::CLOSE_WAIT_REPLY
            if direction != state.closer() =>
        {
            match (state.closer(), fin) {
                // N-085.
                (Direction::Original, true) => FlowState::LAST_ACK,
                (Direction::Reply, true) => FlowState::LAST_ACK_REPLY,
                // N-084.
                (Direction::Original, false) => FlowState::CLOSE_WAIT,
                (Direction::Reply, false) => FlowState::CLOSE_WAIT_REPLY,
            }
        }
        // N-085: the end that closed first acknowledges the other's FIN.
        FlowState::LAST_ACK | FlowState::LAST_ACK_REPLY if direction == state.closer() && !fin => FlowState::TIME_WAIT,
        _ => state,
    };
    last_ack[direction.index()] = acknowledgement;
    Next::to(next)
}

/// Whether `number` is `start` or up to `span` after it, modulo 2^32.
const fn in_span(number: u32, start: u32, span: u32) -> bool {
    number.wrapping_sub(start) < span
}

/// What a UDP packet of `direction` does to a flow; the timer always starts again.
#[inline(always)]
#[must_use]
pub const fn advance_udp(state: FlowState, direction: Direction) -> FlowState {
    match (state, direction) {
        (FlowState::UDP_UNREPLIED, Direction::Reply) => FlowState::UDP_REPLIED,
        (FlowState::UDP_REPLIED, Direction::Original) => FlowState::UDP_STREAM,
        _ => state,
    }
}

#[cfg(test)]
mod tests {
    use super::Direction::{Original, Reply};
    use super::*;

    const CLIENT: u32 = 0xffff_fff0;
    const SERVER: u32 = 5_000;
    const PSH: u8 = 0x08;
    const ECE_CWR: u8 = 0xc0;

    /// A flow and the packets it sees. Numbers are relative to the first SYN of either end; the client's wrap soon.
    struct Flow {
        state: FlowState,
        last_ack: [u32; 2],
    }

    impl Flow {
        fn opened() -> Flow {
            let (state, last_ack) = open(SYN, CLIENT).unwrap();
            Flow { state, last_ack }
        }

        fn next(&mut self, direction: Direction, flags: u8, sequence: u32, acknowledgement: u32) -> Next {
            let (mine, other) = if direction == Original { (CLIENT, SERVER) } else { (SERVER, CLIENT) };
            let (sequence, acknowledgement) = (mine.wrapping_add(sequence), other.wrapping_add(acknowledgement));
            let next = advance(self.state, direction, flags, sequence, acknowledgement, &mut self.last_ack);
            assert!(next.forward, "{flags:#x} is a packet some TCP sends");
            self.state = next.state;
            next
        }

        /// A packet that restarts the timer; the new state.
        #[track_caller]
        fn sees(&mut self, direction: Direction, flags: u8, sequence: u32, acknowledgement: u32) -> FlowState {
            let next = self.next(direction, flags, sequence, acknowledgement);
            assert!(next.refresh && !next.reopen, "{next:?}");
            next.state
        }

        /// A packet that passes and changes nothing.
        #[track_caller]
        fn ignores(&mut self, direction: Direction, flags: u8, sequence: u32, acknowledgement: u32) {
            let before = (self.state, self.last_ack);
            let next = self.next(direction, flags, sequence, acknowledgement);
            assert!(!next.refresh && !next.reopen, "{next:?}");
            assert_eq!((self.state, self.last_ack), before);
        }

        fn established() -> Flow {
            let mut flow = Flow::opened();
            assert_eq!(flow.sees(Reply, SYN | ACK, 0, 1), FlowState::SYN_RECV);
            assert_eq!(flow.sees(Original, ACK, 1, 1), FlowState::ESTABLISHED);
            assert_eq!(flow.sees(Original, ACK | PSH, 1, 1), FlowState::ESTABLISHED);
            assert_eq!(flow.sees(Reply, ACK, 1, 101), FlowState::ESTABLISHED);
            assert_eq!(flow.last_ack, [SERVER + 1, CLIENT.wrapping_add(101)]);
            flow
        }
    }

    #[test]
    fn only_a_syn_opens_a_flow() {
        // N-080
        assert_eq!(open(SYN, 7), Some((FlowState::SYN_SENT, [0, 8])));
        assert_eq!(open(SYN | ECE_CWR, u32::MAX), Some((FlowState::SYN_SENT, [0, 0])));
        // N-088
        for flags in [0, ACK, ACK | PSH, SYN | ACK, RST, RST | ACK, FIN | ACK, FIN, SYN | FIN, SYN | RST] {
            assert_eq!(open(flags, 7), None, "{flags:#x}");
        }
    }

    #[test]
    fn the_handshake() {
        // N-082, N-083
        Flow::established();
    }

    #[test]
    fn both_ends_open_at_once() {
        // N-081
        let mut flow = Flow::opened();
        assert_eq!(flow.sees(Reply, SYN, 0, 0), FlowState::SYN_SENT2);
        assert_eq!(flow.sees(Original, SYN, 0, 0), FlowState::SYN_SENT2);
        assert_eq!(flow.sees(Reply, SYN, 0, 0), FlowState::SYN_SENT2);
        flow.ignores(Reply, ACK, 1, 1);
        assert_eq!(flow.sees(Original, SYN | ACK, 0, 1), FlowState::SYN_RECV);
        assert_eq!(flow.sees(Reply, SYN | ACK, 0, 1), FlowState::SYN_RECV);
        assert_eq!(flow.sees(Reply, ACK, 1, 1), FlowState::SYN_RECV);
        assert_eq!(flow.sees(Original, ACK, 1, 1), FlowState::ESTABLISHED);
        // The other end's SYN-ACK first.
        let mut flow = Flow::opened();
        assert_eq!(flow.sees(Reply, SYN, 0, 0), FlowState::SYN_SENT2);
        flow.ignores(Reply, SYN | ACK, 0, 77_777_777);
        assert_eq!(flow.sees(Reply, SYN | ACK, 0, 1), FlowState::SYN_RECV);
        assert_eq!(flow.sees(Original, SYN | ACK, 0, 1), FlowState::SYN_RECV);
        assert_eq!(flow.sees(Original, ACK, 1, 1), FlowState::ESTABLISHED);
    }

    #[test]
    fn either_end_closes_first() {
        // N-084, N-085
        let states = [
            (Original, FlowState::FIN_WAIT, FlowState::CLOSE_WAIT, FlowState::LAST_ACK),
            (Reply, FlowState::FIN_WAIT_REPLY, FlowState::CLOSE_WAIT_REPLY, FlowState::LAST_ACK_REPLY),
        ];
        for (closer, fin_wait, close_wait, last_ack) in states {
            let other = closer.reversed();
            let mut flow = Flow::established();
            assert_eq!(flow.sees(closer, FIN | ACK, 101, 1), fin_wait);
            assert_eq!(flow.sees(closer, FIN | ACK, 101, 1), fin_wait, "a retransmitted FIN is not the other end's");
            assert_eq!(flow.sees(closer, ACK, 102, 1), fin_wait);
            assert_eq!(flow.sees(other, ACK, 1, 102), close_wait);
            assert_eq!(flow.sees(other, ACK | PSH, 1, 102), close_wait, "half closed, data flows on");
            assert_eq!(flow.sees(closer, ACK, 102, 900), close_wait);
            assert_eq!(flow.sees(closer, FIN | ACK, 101, 900), close_wait);
            assert_eq!(flow.sees(other, FIN | ACK, 900, 102), last_ack);
            assert_eq!(flow.sees(other, FIN | ACK, 900, 102), last_ack);
            assert_eq!(flow.sees(other, ACK, 901, 102), last_ack);
            assert_eq!(flow.sees(closer, ACK, 102, 901), FlowState::TIME_WAIT);
            assert_eq!(flow.sees(other, FIN | ACK, 900, 102), FlowState::TIME_WAIT);
            assert_eq!(flow.sees(closer, ACK, 102, 901), FlowState::TIME_WAIT);
            // FIN answered by FIN at once.
            let mut flow = Flow::established();
            assert_eq!(flow.sees(closer, FIN | ACK, 101, 1), fin_wait);
            assert_eq!(flow.sees(other, FIN | ACK | PSH, 1, 102), last_ack);
            assert_eq!(flow.sees(closer, ACK, 102, 2), FlowState::TIME_WAIT);
            // FIN in place of the last packet of the handshake.
            let mut flow = Flow::opened();
            assert_eq!(flow.sees(Reply, SYN | ACK, 0, 1), FlowState::SYN_RECV);
            assert_eq!(flow.sees(closer, FIN | ACK, 1, 1), fin_wait);
        }
    }

    #[test]
    fn an_exact_reset_closes_an_established_flow_and_no_other_does() {
        // N-086, N-091
        for (from, exact) in [(Original, 101), (Reply, 1)] {
            for flags in [RST, RST | ACK] {
                let mut flow = Flow::established();
                assert_eq!(flow.sees(from, flags, exact, 0), FlowState::CLOSE);
                flow.ignores(from, flags, exact, 0);

                // Out of any window: before what is expected, and far beyond it.
                let mut flow = Flow::established();
                for out in [exact.wrapping_sub(1), exact.wrapping_sub(100_000), exact.wrapping_add(1 << 30)] {
                    flow.ignores(from, flags, out, 0);
                }
                assert_eq!(flow.state, FlowState::ESTABLISHED);

                // In a window, but not exact: established all the same, until somebody says more.
                assert_eq!(flow.sees(from, flags, exact + 1, 0), FlowState::ESTABLISHED_IN_DOUBT);
                assert!(flow.state.is_established());
                flow.ignores(from, flags, exact + 1, 0);
                flow.ignores(from, flags, exact.wrapping_sub(1), 0);
                // The challenge ACK of RFC 5961.
                let (sequence, acknowledgement) = if from == Original { (1, 101) } else { (101, 1) };
                assert_eq!(flow.sees(from.reversed(), ACK, sequence, acknowledgement), FlowState::ESTABLISHED);
                assert_eq!(flow.sees(from, flags, exact + 9, 0), FlowState::ESTABLISHED_IN_DOUBT);
                assert_eq!(flow.sees(from, flags, exact, 0), FlowState::CLOSE);
            }
        }
    }

    #[test]
    fn flows_in_doubt_close_like_established_ones() {
        for (end, state) in [(Original, FlowState::FIN_WAIT), (Reply, FlowState::FIN_WAIT_REPLY)] {
            let mut flow = Flow::established();
            assert_eq!(flow.sees(Reply, RST, 2, 0), FlowState::ESTABLISHED_IN_DOUBT);
            assert_eq!(flow.sees(end, FIN | ACK, 101, 1), state);
            let mut flow = Flow::established();
            assert_eq!(flow.sees(Reply, RST, 2, 0), FlowState::ESTABLISHED_IN_DOUBT);
            flow.ignores(end, SYN, 90_000, 0);
            assert_eq!(flow.sees(Reply, SYN | ACK, 0, 1), FlowState::ESTABLISHED);
        }
    }

    #[test]
    fn any_reset_ends_a_flow_that_is_closing_or_only_asked_for() {
        // N-086
        for from in [Original, Reply] {
            for closer in [Original, Reply] {
                let mut flow = Flow::established();
                flow.sees(closer, FIN | ACK, 101, 1);
                assert_eq!(flow.sees(from, RST, 777_777, 0), FlowState::CLOSE);
                let mut flow = Flow::established();
                flow.sees(closer, FIN | ACK, 101, 1);
                flow.sees(closer.reversed(), ACK, 1, 102);
                assert_eq!(flow.sees(from, RST, 777_777, 0), FlowState::CLOSE);
                flow = Flow::established();
                flow.sees(closer, FIN | ACK, 101, 1);
                flow.sees(closer.reversed(), FIN | ACK, 1, 102);
                assert_eq!(flow.sees(from, RST, 777_777, 0), FlowState::CLOSE);
            }
            let mut flow = Flow::opened();
            assert_eq!(flow.sees(from, RST | ACK, 0u32.wrapping_sub(SERVER), 1), FlowState::CLOSE);
        }
    }

    #[test]
    fn a_handshake_is_reset_by_a_number_that_fits() {
        for from in [Original, Reply] {
            let mut flow = Flow::opened();
            flow.sees(Reply, SYN | ACK, 0, 1);
            flow.ignores(from, RST, 1 << 20, 0);
            flow.ignores(from, RST, 0, 0);
            assert_eq!(flow.sees(from, RST, 1, 0), FlowState::CLOSE);
        }
    }

    #[test]
    fn a_syn_opens_a_finished_flow_anew() {
        // N-087
        for state in [FlowState::TIME_WAIT, FlowState::CLOSE] {
            let mut flow = Flow { state, ..Flow::established() };
            let next = flow.next(Original, SYN, 90_000, 0);
            assert_eq!(next, Next { state, forward: true, refresh: false, reopen: true });
            // A server opens nothing towards a client.
            flow.ignores(Reply, SYN, 90_000, 0);
            flow.ignores(Reply, SYN | ACK, 90_000, 90_001);
            // Late packets of the old connection pass, and change nothing but the timer.
            assert_eq!(flow.sees(Original, ACK, 102, 2), state);
            assert_eq!(flow.sees(Reply, FIN | ACK, 1, 102), state);
        }
    }

    #[test]
    fn retransmissions_in_the_handshake_restart_the_timer() {
        // N-089
        let mut flow = Flow::opened();
        assert_eq!(flow.sees(Original, SYN, 0, 0), FlowState::SYN_SENT);
        assert_eq!(flow.sees(Reply, SYN | ACK, 0, 1), FlowState::SYN_RECV);
        assert_eq!(flow.sees(Original, SYN, 0, 0), FlowState::SYN_RECV);
        assert_eq!(flow.sees(Reply, SYN | ACK, 0, 1), FlowState::SYN_RECV);
        assert_eq!(flow.sees(Original, ACK, 1, 1), FlowState::ESTABLISHED);
        assert_eq!(flow.sees(Reply, SYN | ACK, 0, 1), FlowState::ESTABLISHED);
        assert_eq!(flow.sees(Original, ACK, 1, 1), FlowState::ESTABLISHED);
    }

    #[test]
    fn a_client_that_starts_over_unanswered_is_answered_by_its_new_number() {
        let mut flow = Flow::opened();
        assert_eq!(flow.sees(Original, SYN, 500_000, 0), FlowState::SYN_SENT);
        flow.ignores(Reply, SYN | ACK, 0, 1);
        assert_eq!(flow.sees(Reply, SYN | ACK, 0, 500_001), FlowState::SYN_RECV);
    }

    #[test]
    fn an_old_syn_ack_moves_nothing_and_the_clients_reset_makes_room() {
        // N-103, as conntrack_synack_old
        let mut flow = Flow::opened();
        flow.ignores(Reply, SYN | ACK, 70_000, 0u32.wrapping_sub(5));
        flow.ignores(Reply, SYN | ACK, 70_000, 0x4000_0000);
        flow.ignores(Reply, ACK, 70_000, 0x4000_0000);
        assert_eq!(flow.sees(Original, RST, 0x4000_0000, 0), FlowState::CLOSE);
        assert!(flow.next(Original, SYN, 0, 0).reopen);
    }

    #[test]
    fn a_syn_on_an_established_flow_is_for_the_server_to_judge() {
        // N-103: challenged, so the client resets with the number it was challenged with and tries again.
        let mut flow = Flow::established();
        flow.ignores(Original, SYN, 90_000, 0);
        assert_eq!(flow.sees(Reply, ACK, 1, 101), FlowState::ESTABLISHED);
        assert_eq!(flow.sees(Original, RST, 101, 0), FlowState::CLOSE);
        assert!(flow.next(Original, SYN, 90_000, 0).reopen);
        let (state, last_ack) = open(SYN, CLIENT.wrapping_add(90_000)).unwrap();
        let mut flow = Flow { state, last_ack };
        assert_eq!(flow.sees(Reply, SYN | ACK, 70_000, 90_001), FlowState::SYN_RECV);
        // Or the server has forgotten the old connection: the new one lives in the old entry.
        let mut flow = Flow::established();
        flow.ignores(Original, SYN, 90_000, 0);
        assert_eq!(flow.sees(Reply, SYN | ACK, 40_000, 90_001), FlowState::ESTABLISHED);
        assert_eq!(flow.sees(Original, ACK, 90_001, 40_001), FlowState::ESTABLISHED);
        assert_eq!(flow.sees(Reply, RST, 40_001, 0), FlowState::CLOSE);
        // In a closing flow it is challenged, too.
        for closer in [Original, Reply] {
            let mut flow = Flow::established();
            flow.sees(closer, FIN | ACK, 101, 1);
            flow.ignores(Original, SYN, 90_000, 0);
            flow.ignores(Reply, SYN, 90_000, 0);
        }
    }

    #[test]
    fn retransmitted_data_passes() {
        // N-104, as conntrack_ack_loss_stall
        let mut flow = Flow::established();
        for _ in 0..3 {
            assert_eq!(flow.sees(Original, ACK | PSH, 1, 1), FlowState::ESTABLISHED);
            assert_eq!(flow.sees(Reply, ACK, 1, 101), FlowState::ESTABLISHED);
        }
        assert_eq!(flow.sees(Original, ACK, 0u32.wrapping_sub(1), 1), FlowState::ESTABLISHED, "a keep-alive probe");
    }

    #[test]
    fn guessed_acknowledgements_do_not_establish() {
        let mut flow = Flow::opened();
        flow.ignores(Original, ACK, 1, 1);
        flow.ignores(Original, FIN | ACK, 1, 1);
        flow.sees(Reply, SYN | ACK, 0, 1);
        for guess in [0, 1 << 17 | 1, 1 << 31, 0u32.wrapping_sub(70_000)] {
            assert_eq!(flow.sees(Original, ACK, 1, guess), FlowState::SYN_RECV, "{guess}");
            assert_eq!(flow.sees(Original, FIN | ACK, 1, guess), FlowState::SYN_RECV, "{guess}");
        }
        // Data that rode on the SYN-ACK's heels may be acknowledged first (RFC 7413).
        assert_eq!(flow.sees(Original, ACK, 1, 14_601), FlowState::ESTABLISHED);
    }

    const ALL: [FlowState; 13] = [
        FlowState::SYN_SENT,
        FlowState::SYN_SENT2,
        FlowState::SYN_RECV,
        FlowState::ESTABLISHED,
        FlowState::ESTABLISHED_IN_DOUBT,
        FlowState::FIN_WAIT,
        FlowState::FIN_WAIT_REPLY,
        FlowState::CLOSE_WAIT,
        FlowState::CLOSE_WAIT_REPLY,
        FlowState::LAST_ACK,
        FlowState::LAST_ACK_REPLY,
        FlowState::TIME_WAIT,
        FlowState::CLOSE,
    ];

    /// Whether a TCP can send these flags (RFC 9293): the naive list.
    fn is_sane(flags: u8) -> bool {
        let bare = flags & 0x17;
        [SYN, SYN | ACK, RST, RST | ACK, FIN | ACK, ACK].contains(&bare)
    }

    #[test]
    fn every_packet_in_every_state() {
        for state in ALL {
            for direction in [Original, Reply] {
                for flags in 0..=255u8 {
                    for (sequence, acknowledgement) in [(0, 0), (100, 200), (101, 201), (u32::MAX, u32::MAX)] {
                        let (mut fast, mut slow) = ([200, 100], [200, 100]);
                        let next = advance(state, direction, flags, sequence, acknowledgement, &mut fast);
                        let rarely = advance_rarely(state, direction, flags, sequence, acknowledgement, &mut slow);
                        assert_eq!((next, fast), (rarely, slow), "the short way is the long way");
                        assert_eq!(next.forward, is_sane(flags), "{state:?} {flags:#x}");
                        assert!(ALL.contains(&next.state));
                        if !next.refresh {
                            assert_eq!((next.state, fast), (state, [200, 100]), "no trace: {state:?} {flags:#x}");
                        }
                        if next.reopen {
                            assert!(matches!(state, FlowState::TIME_WAIT | FlowState::CLOSE) && direction == Original);
                            assert_eq!(flags & 0x17, SYN);
                        }
                        if state == FlowState::CLOSE || state == FlowState::TIME_WAIT {
                            assert!(next.state == state || next.state == FlowState::CLOSE, "nothing revives by itself");
                        }
                        if next.state.is_established() && !state.is_established() {
                            assert_eq!((state, direction, flags & 0x17), (FlowState::SYN_RECV, Original, ACK));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn timers_of_services() {
        let timeouts = Timeouts::default();
        let seconds = |state| u64::from(timeouts.of(state)) * (1 << 20) / 1_000_000_000;
        // Column LBNAT of spec 4.7
        assert_eq!(ALL.map(seconds), [240, 240, 240, 7440, 240, 240, 240, 240, 240, 30, 30, 240, 10]);
        //
        let udp = [FlowState::UDP_UNREPLIED, FlowState::UDP_REPLIED, FlowState::UDP_STREAM];
        assert_eq!(udp.map(seconds), [120, 120, 300]);
        assert_eq!(timeouts.of(FlowState::VACANT), 0);
        let mut changed = timeouts;
        changed.set(FlowState::ESTABLISHED, 86_400);
        assert!(changed.of(FlowState::ESTABLISHED) > 82_000_000 && changed.of(FlowState::CLOSE) < 10_000);
    }

    #[test]
    fn udp_becomes_a_conversation_by_a_packet_after_an_answer() {
        let script = [
            (Original, FlowState::UDP_UNREPLIED),
            (Original, FlowState::UDP_UNREPLIED),
            (Reply, FlowState::UDP_REPLIED),
            (Reply, FlowState::UDP_REPLIED),
            (Original, FlowState::UDP_STREAM),
            (Reply, FlowState::UDP_STREAM),
            (Original, FlowState::UDP_STREAM),
        ];
        let mut state = FlowState::UDP_UNREPLIED;
        for (direction, expected) in script {
            state = advance_udp(state, direction);
            assert_eq!(state, expected);
        }
    }

    #[test]
    fn states_have_the_names_people_know() {
        let names = ALL.map(FlowState::name);
        assert_eq!(names[3..5], ["established"; 2]);
        assert!(names.iter().all(|name| *name != "unknown" && *name != "vacant"));
        assert_eq!(format!("{:?}", FlowState::LAST_ACK_REPLY), "last-ack#11");
        assert_eq!(FlowState(99).name(), "unknown");
    }
}
