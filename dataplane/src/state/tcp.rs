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
//! - Nothing is dropped for being out of state; only flag combinations that no TCP sends are.
//!
//! While a flow opens, `last_ack` holds what is expected instead: `last_ack[Reply]` the number that acknowledges the
//! client's SYN, then `last_ack[Original]` the one that acknowledges the server's.

use super::{Direction, FlowState, Ticks, ticks_of_seconds};

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
            _ => "unknown",
        }
    }

    /// Whether the handshake was completed and no end has closed.
    #[inline]
    #[must_use]
    pub const fn is_established(self) -> bool {
        matches!(self, FlowState::ESTABLISHED | FlowState::ESTABLISHED_IN_DOUBT)
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
pub struct Timeouts([Ticks; 32]);

/// Seconds per state for Services (column LBNAT of spec 4.7).
///
/// UDP: 120 s is the least that RFC 4787 REQ-5 allows; a conversation gets the 300 s that it recommends. A
/// question with one answer stays at 120 s, since name servers would fill the table with them.
const SECONDS: [(FlowState, u32); 16] = [
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
];

impl Default for Timeouts {
    fn default() -> Timeouts {
        let mut timeouts = Timeouts([0; 32]);
        for (state, seconds) in SECONDS {
            timeouts.set(state, seconds);
        }
        timeouts
    }
}

impl Timeouts {
    /// Ticks that `state` lasts.
    #[inline(always)]
    #[must_use]
    pub fn of(&self, state: FlowState) -> Ticks {
        self.0[usize::from(state.0) % self.0.len()]
    }

    /// Makes `state` last at least `seconds` (at most 13 days, where the clock of flows could be misread).
    pub fn set(&mut self, state: FlowState, seconds: u32) {
        self.0[usize::from(state.0) % 32] = ticks_of_seconds(seconds);
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
    const fn to(state: FlowState) -> Next {
        Next { state, forward: true, refresh: true, reopen: false }
    }

    /// The packet passes and leaves no trace.
    const fn ignore(state: FlowState) -> Next {
        Next { state, forward: true, refresh: false, reopen: false }
    }
}

/// The first state and the first `last_ack` of a flow that a TCP packet opens; nothing unless it is a SYN (N-080; N-088:
/// where the source is translated, a packet without a flow cannot be picked up).
#[must_use]
pub fn open(flags: u8, sequence: u32) -> Option<(FlowState, [u32; 2])> {
    (flags & (SYN | ACK | RST | FIN) == SYN).then(|| (FlowState::SYN_SENT, [0, sequence.wrapping_add(1)]))
}

/// What a TCP packet of `direction` does to a flow. `sequence` and `acknowledgement` in host order.
#[inline(always)]
pub fn advance(
    state: FlowState, direction: Direction, flags: u8, sequence: u32, acknowledgement: u32, last_ack: &mut [u32; 2],
) -> Next {
    // All but a few packets of a connection: data and acknowledgements, N-104 among them.
    if state == FlowState::ESTABLISHED && flags & (SYN | RST | FIN | ACK) == ACK {
        last_ack[direction.index()] = acknowledgement;
        return Next::to(state);
    }
    advance_rarely(state, direction, flags, sequence, acknowledgement, last_ack)
}

#[inline(never)]
fn advance_rarely(
    state: FlowState, direction: Direction, flags: u8, sequence: u32, acknowledgement: u32, last_ack: &mut [u32; 2],
) -> Next {
    const SYN_ACK: u8 = SYN | ACK;
    const RST_ACK: u8 = RST | ACK;
    const FIN_ACK: u8 = FIN | ACK;
    match flags & (SYN | RST | FIN | ACK) {
        SYN => on_syn(state, direction, sequence, last_ack),
        SYN_ACK => on_syn_ack(state, direction, sequence, acknowledgement, last_ack),
        RST | RST_ACK => on_rst(state, direction, sequence, last_ack),
        FIN_ACK => on_ack(state, direction, true, acknowledgement, last_ack),
        ACK => on_ack(state, direction, false, acknowledgement, last_ack),
        // No segment of a connection lacks all four, a FIN always acknowledges, and SYN, FIN and RST exclude each
        // other (RFC 9293 section 3.10.7; nf_conntrack has the same list).
        _ => Next { state, forward: false, refresh: false, reopen: false },
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
        (FlowState::TIME_WAIT | FlowState::CLOSE, Direction::Original) => {
            Next { reopen: true, ..Next::ignore(state) }
        }
        // N-103: the server knows whether this is a new connection. Its answer moves the state, not the question.
        _ => Next::ignore(state),
    }
}

fn on_syn_ack(
    state: FlowState, direction: Direction, sequence: u32, acknowledgement: u32, last_ack: &mut [u32; 2],
) -> Next {
    let acknowledges_syn = in_span(acknowledgement, last_ack[direction.index()], HANDSHAKE_ACK_SPAN);
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

/// N-086.
fn on_rst(state: FlowState, direction: Direction, sequence: u32, last_ack: &[u32; 2]) -> Next {
    if state == FlowState::CLOSE {
        return Next::ignore(state);
    }
    if !state.is_established() {
        return Next::to(FlowState::CLOSE);
    }
    // The next number that the receiver of this reset expects.
    let expected = last_ack[direction.reversed().index()];
    if sequence == expected {
        return Next::to(FlowState::CLOSE);
    }
    // Not before it and within the largest window: the receiver may accept it, or challenge it and live on
    // (RFC 5961 section 3.2), and which of the two we shall see.
    if in_span(sequence, expected, WINDOW_MAX) && state == FlowState::ESTABLISHED {
        return Next::to(FlowState::ESTABLISHED_IN_DOUBT);
    }
    Next::ignore(state)
}

/// ACK, with or without FIN.
fn on_ack(
    state: FlowState, direction: Direction, fin: bool, acknowledgement: u32, last_ack: &mut [u32; 2],
) -> Next {
    let expected = last_ack[direction.index()];
    let next = match state {
        // N-103: a challenge to our SYN passes. A FIN cannot be meant.
        FlowState::SYN_SENT | FlowState::SYN_SENT2 => return Next::ignore(state),
        FlowState::SYN_RECV if !in_span(acknowledgement, expected, HANDSHAKE_ACK_SPAN) => return Next::ignore(state),
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
