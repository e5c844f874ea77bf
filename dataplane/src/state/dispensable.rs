//! Which flows can be spared when a table has no room.
//!
//! It owns the order in which flows are given up, by their state alone. It refuses to know the table and what else there
//! is to say about a flow.
//!
//! N-100: "evict only expired entries (LRU of expired or transitory first), never established". Transitory is what has
//! done its work or can be made again at no loss:
//!
//! - a connection that both ends have closed or one has reset. Its entry only keeps stray segments in order;
//! - a question over UDP, answered or not. The answer most likely has come and gone; a question that comes again is
//!   led to the same backend by the same hash. Neither proves that the client exists, since one datagram with an
//!   invented source makes both;
//! - a TCP flow of which one direction is seen ([`super::one_way`]), before anybody else's flow is refused: the hash finds its
//!   node again;
//! - a mapping that nothing uses and whose port only rests ([`super::mapping`]);
//! - a handshake in progress, last of all: its client will have to send its SYN again (see [`super::opening`]).
//!
//! Everything else stays: an established connection, one that is half closed and may carry data for hours, and a UDP
//! conversation, in which the client went on after an answer.

use super::FlowState;

/// How well a flow can be spared; more is better. `None`: not at all.
#[must_use]
pub const fn rank(state: FlowState, is_over: bool) -> Option<u8> {
    match state {
        _ if is_over => Some(4),
        FlowState::TIME_WAIT | FlowState::CLOSE | FlowState::PIN_CLOSED | FlowState::PIN_DOUBTED => Some(3),
        FlowState::SCTP_CLOSED | FlowState::RESTING => Some(3),
        FlowState::UDP_UNREPLIED | FlowState::UDP_REPLIED => Some(2),
        FlowState::PINNED => Some(1),
        _ => None,
    }
}

impl FlowState {
    /// Whether the flow is a handshake that the client has not finished: nothing proves yet that there is a client
    /// (L-022).
    #[inline]
    #[must_use]
    pub const fn is_opening(self) -> bool {
        matches!(self, FlowState::SYN_SENT | FlowState::SYN_SENT2 | FlowState::SYN_RECV | FlowState::PIN_OPENING)
            || matches!(self, FlowState::SCTP_COOKIE_WAIT | FlowState::SCTP_COOKIE_ECHOED)
    }

    /// Whether a flow that was opening still counts as such. One that was reset does: a SYN and a RST from the same
    /// invented address would get round the share otherwise.
    #[inline]
    #[must_use]
    pub const fn proves_nothing(self) -> bool {
        self.is_opening() || matches!(self, FlowState::CLOSE | FlowState::SCTP_CLOSED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_goes_first_and_what_is_established_never() {
        // N-100
        for number in 1..64 {
            assert_eq!(rank(FlowState(number), true), Some(4));
        }
        let kept = [
            FlowState::ESTABLISHED,
            FlowState::ESTABLISHED_IN_DOUBT,
            FlowState::FIN_WAIT,
            FlowState::FIN_WAIT_REPLY,
            FlowState::CLOSE_WAIT,
            FlowState::CLOSE_WAIT_REPLY,
            FlowState::LAST_ACK,
            FlowState::LAST_ACK_REPLY,
            FlowState::UDP_STREAM,
            FlowState::SCTP_ESTABLISHED,
            FlowState::SCTP_SHUTDOWN_SENT,
            FlowState::SCTP_SHUTDOWN_RECEIVED,
            FlowState::SCTP_SHUTDOWN_ACK_SENT,
        ];
        for state in kept {
            assert_eq!((rank(state, false), state.is_opening()), (None, false), "{state:?}");
        }
        assert!(rank(FlowState::CLOSE, false) > rank(FlowState::UDP_REPLIED, false));
        assert!(rank(FlowState::UDP_REPLIED, false) > rank(FlowState::PINNED, false));
        assert!(rank(FlowState::PINNED, false).is_some());
        assert_eq!(rank(FlowState::PIN_CLOSED, false), rank(FlowState::CLOSE, false));
        // Handshakes have a list of their own.
        for state in [FlowState::SYN_SENT, FlowState::SYN_SENT2, FlowState::SYN_RECV, FlowState::PIN_OPENING] {
            assert_eq!((rank(state, false), state.is_opening()), (None, true), "{state:?}");
        }
        let unproved = (0..64).map(FlowState).filter(|state| state.proves_nothing());
        assert!(unproved.eq([
            FlowState::SYN_SENT,
            FlowState::SYN_SENT2,
            FlowState::SYN_RECV,
            FlowState::CLOSE,
            FlowState::PIN_OPENING,
            FlowState::SCTP_COOKIE_WAIT,
            FlowState::SCTP_COOKIE_ECHOED,
            FlowState::SCTP_CLOSED,
        ]));
    }
}
