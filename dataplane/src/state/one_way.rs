//! Flows of which one direction is seen: what `node-dsr` remembers of a connection.
//!
//! It owns the states of TCP flows whose answers go straight from the node to the client, and who may begin one. It
//! refuses to know why answers are not seen.
//!
//! Without the other end's numbers nothing can be checked: a SYN and an ACK look the same whoever sent them. So these
//! states differ from those of `tcp` in what they are for. Such a flow is a *pin*: it keeps a connection on the node that
//! it has, and who loses it is sent where the hash says, which is the same node unless the set of nodes changed. It may
//! therefore be dropped, replaced or never made when memory is short, and nothing is refused for its sake. (LVS keeps
//! input-only tables of states for direct routing in the same way, net/netfilter/ipvs/ip_vs_proto_tcp.c.)
//!
//! ```text
//!            SYN          ACK          FIN
//!   (none) ─────► OPENING ────► PINNED ────► CLOSED ──SYN──► a new flow
//!      └── ACK, without a flow: N-088 ──►│ RST
//!                                        ▼
//!                                      DOUBTED ── ACK ──► PINNED      a reset is believed only if silence follows
//! ```

use super::FlowState;
use super::tcp::{ACK, FIN, Next, RST, SYN};

impl FlowState {
    /// Seen one way: the client goes on after its SYN, or was picked up in the middle.
    pub const PINNED: FlowState = FlowState(16 | FlowState::ESTABLISHED.0);
    /// Seen one way: a SYN and nothing after it.
    pub const PIN_OPENING: FlowState = FlowState(PIN_MIN + 1);
    /// Seen one way: the client sent FIN, or reset what it had only asked for.
    pub const PIN_CLOSED: FlowState = FlowState(PIN_MIN + 2);
    /// Seen one way: the last segment was a reset.
    pub const PIN_DOUBTED: FlowState = FlowState(PIN_MIN + 3);

    /// Whether the flow is a TCP pin: one that may be given up when memory is short, since hashing finds its node again.
    #[inline]
    #[must_use]
    pub const fn is_pin(self) -> bool {
        self.0 & !3 == PIN_MIN
    }
}

const PIN_MIN: u8 = FlowState::PINNED.0;
const _: () = assert!(PIN_MIN & 3 == 0, "the four states stand in a row");

/// How a segment without a flow is to be treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// Remember its flow in this state. Of a segment in the middle (N-088: "consistent hash pick-up") too.
    Pin(FlowState),
    /// Send it where the hash says and remember nothing: a reset ends what is not known here (L-021).
    Pass,
    /// No TCP sends such flags.
    Nonsense,
}

/// What a segment with `flags` and without a flow begins.
#[must_use]
pub const fn open(flags: u8) -> Opening {
    match flags & (SYN | RST | FIN | ACK) {
        SYN => Opening::Pin(FlowState::PIN_OPENING),
        ACK => Opening::Pin(FlowState::PINNED),
        FIN_ACK => Opening::Pin(FlowState::PIN_CLOSED),
        RST | RST_ACK => Opening::Pass,
        // A client that answers a SYN with its own, and every combination that is none.
        _ => Opening::Nonsense,
    }
}

const FIN_ACK: u8 = FIN | ACK;
const RST_ACK: u8 = RST | ACK;

/// What a segment does to a pin. It passes if its flags are those of a segment: the node knows better what fits.
pub(super) const fn advance(state: FlowState, flags: u8) -> Next {
    let next = match (flags & (SYN | RST | FIN | ACK), state) {
        (SYN, FlowState::PIN_OPENING) => state,
        // The server knows whether this is a new connection (N-103).
        (SYN, _) => return Next::ignore(state),
        (FIN_ACK, _) => FlowState::PIN_CLOSED,
        (RST | RST_ACK, FlowState::PIN_OPENING) => FlowState::PIN_CLOSED,
        (RST | RST_ACK, FlowState::PINNED) => FlowState::PIN_DOUBTED,
        (RST | RST_ACK, _) => return Next::ignore(state),
        // Half closed: it goes on reading.
        (ACK, FlowState::PIN_CLOSED) => state,
        (ACK, _) => FlowState::PINNED,
        _ => return Next::refuse(state),
    };
    Next::to(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Direction, tcp};

    const PSH: u8 = 0x08;

    fn sees(state: FlowState, flags: u8) -> Next {
        let direct = advance(state, flags);
        let next = tcp::advance(state, Direction::Original, flags, 1, 2, &mut [0; 2]);
        assert_eq!(next, direct, "the general way leads here");
        next
    }

    #[test]
    fn a_connection_seen_one_way() {
        // N-088: SYN, then the client's ACK and data, then FIN and the ACKs of what the server still sends.
        let Opening::Pin(state) = open(SYN) else { panic!() };
        assert_eq!(state, FlowState::PIN_OPENING);
        assert_eq!(sees(state, SYN), Next::to(FlowState::PIN_OPENING), "a SYN again");
        assert_eq!(sees(state, ACK), Next::to(FlowState::PINNED));
        assert_eq!(sees(FlowState::PINNED, ACK | PSH), Next::to(FlowState::PINNED));
        assert_eq!(sees(FlowState::PINNED, FIN | ACK | PSH), Next::to(FlowState::PIN_CLOSED));
        assert_eq!(sees(FlowState::PIN_CLOSED, ACK), Next::to(FlowState::PIN_CLOSED));
        assert_eq!(sees(FlowState::PIN_CLOSED, SYN), Next::ignore(FlowState::PIN_CLOSED), "who decides reopens");
    }

    #[test]
    fn a_reset_is_believed_when_silence_follows() {
        // N-086 cannot be applied: the number that the server expects is not known here.
        assert_eq!(sees(FlowState::PINNED, RST), Next::to(FlowState::PIN_DOUBTED));
        assert_eq!(sees(FlowState::PIN_DOUBTED, RST | ACK), Next::ignore(FlowState::PIN_DOUBTED));
        assert_eq!(sees(FlowState::PIN_DOUBTED, ACK), Next::to(FlowState::PINNED), "it was forged");
        assert_eq!(sees(FlowState::PIN_OPENING, RST), Next::to(FlowState::PIN_CLOSED));
        let timeouts = tcp::Timeouts::default();
        assert!(timeouts.of(FlowState::PIN_DOUBTED) < timeouts.of(FlowState::PINNED));
        assert!(timeouts.of(FlowState::PIN_OPENING) > 0 && timeouts.of(FlowState::PIN_CLOSED) > 0);
    }

    #[test]
    fn who_may_begin_one() {
        // S-077, N-088, L-021
        assert_eq!(open(ACK | PSH), Opening::Pin(FlowState::PINNED));
        assert_eq!(open(FIN | ACK), Opening::Pin(FlowState::PIN_CLOSED));
        assert_eq!((open(RST), open(RST | ACK)), (Opening::Pass, Opening::Pass));
        for nonsense in [0, PSH, FIN, SYN | FIN, SYN | RST, SYN | ACK, FIN | RST, SYN | FIN | RST | ACK] {
            assert_eq!(open(nonsense), Opening::Nonsense, "{nonsense:#x}");
            for state in [FlowState::PINNED, FlowState::PIN_OPENING, FlowState::PIN_CLOSED, FlowState::PIN_DOUBTED] {
                assert!(!sees(state, nonsense).forward);
            }
        }
    }

    #[test]
    fn pins_are_told_from_other_flows() {
        for number in 0..=255 {
            let pin = [FlowState::PINNED, FlowState::PIN_OPENING, FlowState::PIN_CLOSED, FlowState::PIN_DOUBTED];
            assert_eq!(FlowState(number).is_pin(), pin.contains(&FlowState(number)), "{number}");
        }
    }
}
