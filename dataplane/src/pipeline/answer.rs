//! Answers: packets made in the frame that asked for them.
//!
//! Owns how many may be made (S-079), and the way back. Refuses to make them itself: that is the business of
//! [`crate::stage::local`] and [`crate::stage::error`].

use tidegate_io::Frame;

use super::{Answer, Verdict, depart};
use crate::counters::{Counters, Event};
use crate::drops::DropReason;
use crate::family::Family;
use crate::mutation::{self, Mutation};
use crate::packet::{Domain, Kind, Packet};
use crate::stage::route::{self, Hop};
use crate::stage::{encap, error, local};
use crate::state::State;
use crate::state::answers::{Permit, Source};
use crate::table::Tables;
use crate::wire::Family as Version;
use crate::wire::packet::parse_l3;

/// Makes the answer in the frame that asked, and sends it back the way that came.
#[cold]
#[allow(clippy::too_many_arguments)]
pub fn answer(
    tables: &Tables,
    state: &mut State,
    counters: &mut Counters,
    packet: &Packet,
    frame: &mut Frame,
    answer: Answer,
    hash: u64,
    now_ns: u64,
) -> Verdict {
    // S-079: what a sender can provoke without limit is limited; ARP and discovery keep the link alive and are not.
    let limited = !matches!(answer, Answer::Arp | Answer::Advertise) && !mutation::is(Mutation::AnswersUnlimited);
    if limited {
        match state.answers.allow(asker(packet, frame), now_ns) {
            Permit::Given => {}
            Permit::Untold => counters.count(Event::AnswerUntold),
            Permit::SourceSpent | Permit::Spent => return Verdict::Drop(unanswered(answer)),
        }
    }
    let (event, made) = match answer {
        Answer::Arp => (Event::AnsweredArp, local::arp(tables, packet, frame)),
        Answer::Advertise => (Event::AnsweredNd, local::advertise(tables, packet, frame)),
        Answer::Echo => (Event::AnsweredEcho, local::echo(packet, frame)),
        Answer::Reset { otherwise } => (Event::AnsweredReset, error::reset(packet, frame, otherwise)),
        Answer::Unreachable => (Event::AnsweredUnreachable, error::unreachable(packet, frame)),
        Answer::Prohibited { otherwise } => {
            (Event::AnsweredProhibited, error::prohibited(tables, packet, frame, otherwise))
        }
        Answer::TimeExceeded => (Event::AnsweredTtl, error::time_exceeded(tables, packet, frame)),
        Answer::TooBig { mtu } => (Event::AnsweredTooBig, error::too_big(tables, packet, frame, mtu)),
    };
    if let Err(reason) = made {
        return Verdict::Drop(reason);
    }
    counters.count(event);
    match packet.domain {
        Domain::Wire if encap::is_bare(packet, frame) => encap::back(tables, packet, frame),
        // A tunnel brought it, and who is at its other end need not be on the way back.
        Domain::Wire => match homeward(tables, packet, frame, hash) {
            Ok(hop) => depart(tables, counters, &relearn(packet, frame), frame, hop, hash),
            Err(reason) => Verdict::Drop(reason),
        },
        Domain::Overlay => {
            let made = relearn(packet, frame);
            depart(tables, counters, &made, frame, Hop::Tunnel(packet.tunnel), hash)
        }
    }
}

/// The hop towards the destination of an answer: back in, if a pod asked by its external address (N-010).
fn homeward(tables: &Tables, packet: &Packet, frame: &Frame, hash: u64) -> Result<Hop, DropReason> {
    let l3 = frame.bytes().get(usize::from(packet.l3_offset)..).unwrap_or_default();
    match packet.l3.family {
        Version::V4 => homeward_to(tables, <[u8; 4]>::addresses(l3).1, hash),
        Version::V6 => homeward_to(tables, <[u8; 16]>::addresses(l3).1, hash),
    }
}

fn homeward_to<A: Family>(tables: &Tables, destination: A, hash: u64) -> Result<Hop, DropReason> {
    if destination.external(tables).is_some() {
        return Ok(Hop::Hairpin);
    }
    route::toward(tables, destination, hash)
}

/// Why a packet ends here that would have been answered, had there not been so many.
pub(super) fn unanswered(answer: Answer) -> DropReason {
    match answer {
        Answer::TimeExceeded => DropReason::TtlExpired,
        Answer::TooBig { .. } => DropReason::TooBig,
        Answer::Reset { otherwise } | Answer::Prohibited { otherwise } => otherwise,
        Answer::Unreachable => DropReason::NoBackend,
        Answer::Echo | Answer::Arp | Answer::Advertise => DropReason::AnswerSuppressed,
    }
}

/// Who asks for an answer.
fn asker(packet: &Packet, frame: &Frame) -> Source {
    let l3 = frame.bytes().get(usize::from(packet.l3_offset)..).unwrap_or_default();
    match packet.l3.family {
        Version::V4 => Source::v4(<[u8; 4]>::addresses(l3).0),
        Version::V6 => Source::v6(<[u8; 16]>::addresses(l3).0),
    }
}

/// The packet that an answer is, where it was that of the question.
fn relearn(packet: &Packet, frame: &Frame) -> Packet {
    let l3 = frame.bytes().get(usize::from(packet.l3_offset)..).unwrap_or_default();
    let l3 = if packet.kind == Kind::Ip { parse_l3(l3).unwrap_or(packet.l3) } else { packet.l3 };
    Packet { l3, ecn: None, ..*packet }
}
