//! What an SCTP packet does to its flow's state: by what its chunks say, and by its verification tag.
//!
//! It owns the states of an association and which tags are believed. It refuses to know bytes: [`crate::wire::sctp`] says
//! what a packet says.
//!
//! Two tags make an association, each chosen by one end and borne by packets *to* it. `last_ack` of the entry holds them:
//! `last_ack[direction]` is the tag of packets of that direction, zero while it is not known (N-093).
//!
//! As with TCP nothing is dropped for being out of state: both ends check tags themselves, and know more. Only states move
//! by what can be believed, so that a forged ABORT ends no flow and a forged INIT and COOKIE ECHO buy no memory:
//!
//! - INIT from the client gives the tag of replies. Every INIT ACK that answers it gives one for the other way; a server
//!   that keeps nothing before the cookie gives a new one each time, and the COOKIE ECHO shows which one the client heard.
//! - COOKIE ACK from the server makes the association, since only a server that made the cookie sends it.
//! - When both ends send INIT (RFC 9260 section 5.2.1) the one that is answered counts, whoever sent it, and a late INIT ACK
//!   changes nothing (T-189).
//! - An end that restarts is seen by an INIT ACK under a tag that is not the one known: both tags are new then.
//! - ABORT and SHUTDOWN COMPLETE may bear the tag of the other direction, with the T bit (RFC 9260 section 8.5.1).
//!
//! ```text
//!           INIT              COOKIE ECHO             COOKIE ACK            SHUTDOWN
//!   (none) ─────► COOKIE_WAIT ───────────► COOKIE_ECHOED ────────► ESTABLISHED ─────► SHUTDOWN_SENT, _RECEIVED
//!                                                                       │                    │ SHUTDOWN ACK
//!                       CLOSED ◄── ABORT, from anywhere ────────────────┘                    ▼
//!                         ▲───────────────────────── SHUTDOWN COMPLETE ──────────── SHUTDOWN_ACK_SENT
//! ```

use super::tcp::Next;
use super::{Direction, FlowState};
use crate::wire::sctp::Saying;

/// Tags per direction of the packets that bear them; zero: not known.
type Tags = [u32; 2];

impl FlowState {
    /// An end asked for an association.
    pub const SCTP_COOKIE_WAIT: FlowState = FlowState(32);
    /// It has shown that it heard the answer.
    pub const SCTP_COOKIE_ECHOED: FlowState = FlowState(33);
    /// The association stands.
    pub const SCTP_ESTABLISHED: FlowState = FlowState(34);
    /// The original end wants to end it.
    pub const SCTP_SHUTDOWN_SENT: FlowState = FlowState(35);
    /// The replying end wants to end it.
    pub const SCTP_SHUTDOWN_RECEIVED: FlowState = FlowState(36);
    /// Both do.
    pub const SCTP_SHUTDOWN_ACK_SENT: FlowState = FlowState(37);
    /// Over, or aborted.
    pub const SCTP_CLOSED: FlowState = FlowState(38);

    /// The name for people of a state of SCTP.
    pub(super) const fn name_of_sctp(self) -> &'static str {
        match self {
            FlowState::SCTP_COOKIE_WAIT => "cookie-wait",
            FlowState::SCTP_COOKIE_ECHOED => "cookie-echoed",
            FlowState::SCTP_ESTABLISHED => "established",
            FlowState::SCTP_SHUTDOWN_SENT => "shutdown-sent",
            FlowState::SCTP_SHUTDOWN_RECEIVED => "shutdown-received",
            FlowState::SCTP_SHUTDOWN_ACK_SENT => "shutdown-ack-sent",
            FlowState::SCTP_CLOSED => "closed",
            _ => "unknown",
        }
    }
}

/// Seconds per state. An established association is kept as long as a TCP connection: "≥ 210 s with HEARTBEAT refresh"
/// (N-093) is met, and an application that switched heartbeats off (RFC 9260 section 8.3) is not cut off. What opens lasts for
/// one retransmission at the largest interval (RTO.Max, 60 s, section 16) and some more.
pub(super) const SECONDS: [(FlowState, u32); 7] = [
    (FlowState::SCTP_COOKIE_WAIT, 75),
    (FlowState::SCTP_COOKIE_ECHOED, 75),
    (FlowState::SCTP_ESTABLISHED, 7440),
    (FlowState::SCTP_SHUTDOWN_SENT, 240),
    (FlowState::SCTP_SHUTDOWN_RECEIVED, 240),
    (FlowState::SCTP_SHUTDOWN_ACK_SENT, 75),
    (FlowState::SCTP_CLOSED, 10),
];

/// The first state and tags of a flow that an INIT opens; `tag` is the one that it gives.
#[must_use]
pub const fn open(tag: u32) -> (FlowState, Tags) {
    (FlowState::SCTP_COOKIE_WAIT, [0, tag])
}

/// What a packet of `direction` that bears `tag` does to a flow.
pub fn advance(state: FlowState, direction: Direction, saying: Saying, tag: u32, tags: &mut Tags) -> Next {
    let own = tags[direction.index()];
    let other = tags[direction.reversed().index()];
    let is_right = |reflected: bool| tag != 0 && tag == if reflected { other } else { own };
    match (state, saying) {
        (FlowState::SCTP_CLOSED, Saying::Init(_)) if direction == Direction::Original => {
            Next { reopen: true, ..Next::ignore(state) }
        }
        (FlowState::SCTP_CLOSED, _) => Next::ignore(state),
        (_, Saying::Abort { reflected } | Saying::ShutdownComplete { reflected }) if is_right(reflected) => {
            Next::to(FlowState::SCTP_CLOSED)
        }
        (_, Saying::Abort { .. } | Saying::ShutdownComplete { .. }) => Next::ignore(state),
        (FlowState::SCTP_COOKIE_WAIT | FlowState::SCTP_COOKIE_ECHOED, _) => {
            opening(state, direction, saying, tag, tags)
        }
        (_, Saying::InitAck(given)) if direction == Direction::Reply && tag != own => {
            *tags = [given, tag];
            Next::to(FlowState::SCTP_ESTABLISHED)
        }
        // N-103 as for TCP: the server knows whether this is a new association.
        (_, Saying::Init(_) | Saying::InitAck(_)) => Next::ignore(state),
        (FlowState::SCTP_ESTABLISHED, Saying::Shutdown) if is_right(false) => Next::to(match direction {
            Direction::Original => FlowState::SCTP_SHUTDOWN_SENT,
            Direction::Reply => FlowState::SCTP_SHUTDOWN_RECEIVED,
        }),
        (_, Saying::ShutdownAck) if is_right(false) => Next::to(FlowState::SCTP_SHUTDOWN_ACK_SENT),
        // HEARTBEAT is one of these.
        _ => Next::to(state),
    }
}

/// The same before the association stands.
fn opening(state: FlowState, direction: Direction, saying: Saying, tag: u32, tags: &mut Tags) -> Next {
    let (forth, back) = (direction.index(), direction.reversed().index());
    match saying {
        Saying::Init(given) if state == FlowState::SCTP_COOKIE_WAIT => tags[back] = given,
        Saying::InitAck(given) if state == FlowState::SCTP_COOKIE_WAIT && tag == tags[forth] => {
            if tags[back] == 0 {
                tags[back] = given;
            }
        }
        Saying::CookieEcho => {
            tags[forth] = tag;
            return Next::to(FlowState::SCTP_COOKIE_ECHOED);
        }
        Saying::CookieAck if state == FlowState::SCTP_COOKIE_ECHOED => {
            if direction == Direction::Original && tag != tags[forth] {
                return Next::ignore(state);
            }
            tags[forth] = tag;
            return Next::to(FlowState::SCTP_ESTABLISHED);
        }
        _ => return Next::ignore(state),
    }
    Next::to(state)
}

#[cfg(test)]
mod tests {
    use super::Direction::{Original, Reply};
    use super::*;
    use crate::state::tcp::Timeouts;
    use crate::state::ticks_of_seconds;

    const CLIENT: u32 = 0x7845_e39d;
    const SERVER: u32 = 0x46c3_13de;

    struct Flow {
        state: FlowState,
        tags: Tags,
    }

    impl Flow {
        fn opened() -> Flow {
            let (state, tags) = open(CLIENT);
            Flow { state, tags }
        }

        fn established() -> Flow {
            let mut flow = Flow::opened();
            flow.sees(Reply, Saying::InitAck(SERVER), CLIENT);
            flow.sees(Original, Saying::CookieEcho, SERVER);
            assert_eq!(flow.sees(Reply, Saying::CookieAck, CLIENT), FlowState::SCTP_ESTABLISHED);
            flow
        }

        fn next(&mut self, direction: Direction, saying: Saying, tag: u32) -> Next {
            let next = advance(self.state, direction, saying, tag, &mut self.tags);
            assert!(next.forward, "ends check tags themselves");
            self.state = next.state;
            next
        }

        fn sees(&mut self, direction: Direction, saying: Saying, tag: u32) -> FlowState {
            self.next(direction, saying, tag).state
        }
    }

    #[test]
    fn an_association_begins_and_ends() {
        // N-093: both tags are learnt from INIT and INIT ACK.
        let mut flow = Flow::opened();
        assert_eq!((flow.state, flow.tags), (FlowState::SCTP_COOKIE_WAIT, [0, CLIENT]));
        assert_eq!(flow.sees(Original, Saying::Init(CLIENT), 0), FlowState::SCTP_COOKIE_WAIT, "sent again");
        assert_eq!(flow.sees(Reply, Saying::InitAck(SERVER), CLIENT), FlowState::SCTP_COOKIE_WAIT);
        assert_eq!(flow.tags, [SERVER, CLIENT]);
        assert_eq!(flow.sees(Original, Saying::CookieEcho, SERVER), FlowState::SCTP_COOKIE_ECHOED);
        assert_eq!(flow.sees(Reply, Saying::CookieAck, CLIENT), FlowState::SCTP_ESTABLISHED);
        let heartbeat = flow.next(Reply, Saying::Other, CLIENT);
        assert_eq!(heartbeat, Next::to(FlowState::SCTP_ESTABLISHED), "HEARTBEAT starts the timer again");
        assert_eq!(flow.sees(Original, Saying::Shutdown, SERVER), FlowState::SCTP_SHUTDOWN_SENT);
        assert_eq!(flow.sees(Reply, Saying::ShutdownAck, CLIENT), FlowState::SCTP_SHUTDOWN_ACK_SENT);
        let over = Saying::ShutdownComplete { reflected: false };
        assert_eq!(flow.sees(Original, over, SERVER), FlowState::SCTP_CLOSED);
        assert!(flow.next(Original, Saying::Init(9), 0).reopen, "N-087");
        assert!(!flow.next(Reply, Saying::Init(9), 0).reopen);
        assert_eq!(flow.next(Reply, Saying::Other, CLIENT), Next::ignore(FlowState::SCTP_CLOSED));
    }

    #[test]
    fn the_server_may_end_it_too() {
        let mut flow = Flow::established();
        assert_eq!(flow.sees(Reply, Saying::Shutdown, CLIENT), FlowState::SCTP_SHUTDOWN_RECEIVED);
        assert_eq!(flow.sees(Original, Saying::Other, SERVER), FlowState::SCTP_SHUTDOWN_RECEIVED, "data that was left");
        assert_eq!(flow.sees(Original, Saying::ShutdownAck, SERVER), FlowState::SCTP_SHUTDOWN_ACK_SENT);
        let over = Saying::ShutdownComplete { reflected: true };
        assert_eq!(flow.sees(Reply, over, SERVER), FlowState::SCTP_CLOSED, "from one that has forgotten its tag");
    }

    #[test]
    fn an_abort_is_believed_by_its_tag() {
        // N-093: ABORT with T bit; a blind one must not end a flow.
        for (direction, reflected, tag, ends) in [
            (Original, false, SERVER, true),
            (Original, true, CLIENT, true),
            (Original, true, SERVER, false),
            (Reply, false, CLIENT, true),
            (Reply, true, SERVER, true),
            (Reply, false, SERVER, false),
            (Reply, false, 1, false),
        ] {
            let mut flow = Flow::established();
            let state = flow.sees(direction, Saying::Abort { reflected }, tag);
            assert_eq!(state == FlowState::SCTP_CLOSED, ends, "{direction:?} {reflected} {tag:#x}");
        }
        // A server that refuses answers the INIT under its tag, or sends back the zero that it came with.
        let mut flow = Flow::opened();
        assert_eq!(flow.sees(Reply, Saying::Abort { reflected: true }, 0), FlowState::SCTP_COOKIE_WAIT);
        assert_eq!(flow.sees(Reply, Saying::Abort { reflected: false }, CLIENT), FlowState::SCTP_CLOSED);
    }

    #[test]
    fn both_ends_may_begin_and_a_late_answer_harms_nothing() {
        // T-189: the exchange of conntrack_sctp_collision.sh, where the answer to the first INIT comes last.
        for late_before in 0..4 {
            let mut flow = Flow::opened();
            let steps = [
                (Reply, Saying::Init(SERVER), 0),
                (Original, Saying::InitAck(CLIENT), SERVER),
                (Reply, Saying::CookieEcho, CLIENT),
                (Original, Saying::CookieAck, SERVER),
            ];
            for (n, (direction, saying, tag)) in steps.into_iter().enumerate() {
                if n == late_before && n > 0 {
                    flow.sees(Reply, Saying::InitAck(0x09cd_e2c2), CLIENT);
                }
                flow.sees(direction, saying, tag);
            }
            flow.sees(Reply, Saying::InitAck(0x09cd_e2c2), CLIENT);
            assert_eq!((flow.state, flow.tags), (FlowState::SCTP_ESTABLISHED, [SERVER, CLIENT]), "{late_before}");
            assert_eq!(flow.sees(Original, Saying::Abort { reflected: false }, SERVER), FlowState::SCTP_CLOSED);
        }
    }

    #[test]
    fn what_is_forged_buys_no_memory() {
        let mut flow = Flow::opened();
        assert_eq!(flow.sees(Original, Saying::CookieEcho, 5), FlowState::SCTP_COOKIE_ECHOED);
        assert_eq!(flow.sees(Original, Saying::CookieAck, 6), FlowState::SCTP_COOKIE_ECHOED);
        assert_eq!(flow.sees(Original, Saying::Other, 5), FlowState::SCTP_COOKIE_ECHOED);
        assert!(flow.state.is_opening() && !flow.next(Original, Saying::Other, 5).refresh);
        // What it spoilt is mended by the packets that are meant.
        flow.sees(Original, Saying::CookieEcho, SERVER);
        assert_eq!(flow.sees(Reply, Saying::CookieAck, CLIENT), FlowState::SCTP_ESTABLISHED);
        assert_eq!(flow.tags, [SERVER, CLIENT]);
    }

    #[test]
    fn an_end_that_restarts_is_followed() {
        // RFC 9260 section 5.2.2: INIT on an association that stands, answered with new tags on both sides.
        let mut flow = Flow::established();
        assert_eq!(flow.next(Original, Saying::Init(77), 0), Next::ignore(FlowState::SCTP_ESTABLISHED));
        assert_eq!(flow.tags, [SERVER, CLIENT], "an INIT proves nothing");
        flow.sees(Reply, Saying::InitAck(88), 77);
        flow.sees(Original, Saying::CookieEcho, 88);
        flow.sees(Reply, Saying::CookieAck, 77);
        assert_eq!((flow.state, flow.tags), (FlowState::SCTP_ESTABLISHED, [88, 77]));
    }

    #[test]
    fn every_state_has_a_name_and_a_time() {
        // N-093: established for 210 s at least
        let timeouts = Timeouts::default();
        for (state, seconds) in SECONDS {
            assert_ne!(state.name(), "unknown");
            assert_eq!(timeouts.of(state), ticks_of_seconds(seconds));
            assert!(!state.is_pin());
        }
        assert!(timeouts.of(FlowState::SCTP_ESTABLISHED) >= ticks_of_seconds(210));
        assert!(FlowState::SCTP_COOKIE_WAIT.is_opening() && FlowState::SCTP_COOKIE_ECHOED.is_opening());
        assert!(FlowState::SCTP_ESTABLISHED.is_active() && !FlowState::SCTP_CLOSED.is_active());
    }
}
