//! What [`super::apply`] would refuse, for whoever asks beforehand.
//!
//! Owns the order of its checks, for a packet that stays as it is: the same functions look at a copy of the packet and of what
//! its flow remembers. Refuses to foresee what depends on how much there is of something: rates, room in tables.

use super::answer::unanswered;
use super::{Answer, Decision};
use crate::drops::DropReason;
use crate::family::Family;
use crate::packet::Packet;
use crate::stage::{self, error, local};
use crate::state::{self, Direction, FlowState, State, tcp};
use crate::table::Tables;
use crate::table::local::LocalKind;
use crate::wire::protocol;
use crate::wire::sctp::Saying;

/// Why the packet in `frame` would be dropped although `decision` says something else, or another reason than it says.
#[cold]
pub fn objection<A: Family>(
    tables: &Tables,
    state: &State,
    packet: &Packet,
    frame: &[u8],
    decision: &Decision<A>,
) -> Option<DropReason> {
    object(tables, state, packet, frame, decision).err()
}

/// The same for an answer to a packet that belongs to no flow.
#[cold]
pub fn objection_to_answer(packet: &Packet, frame: &[u8], answer: Answer) -> Option<DropReason> {
    answered(packet, frame, answer).err()
}

fn object<A: Family>(
    tables: &Tables,
    state: &State,
    packet: &Packet,
    frame: &[u8],
    decision: &Decision<A>,
) -> Result<(), DropReason> {
    let said = match packet.l3.protocol {
        protocol::SCTP => stage::sctp::read(packet, frame)?,
        _ => None,
    };
    match decision {
        Decision::Forward { flow, direction, .. } => {
            let entry = A::flows(state).entry(*flow);
            if entry.protocol() == protocol::SCTP {
                stage::sctp::may_become(packet, &entry.arriving(*direction), &entry.leaving(*direction))?;
            }
            advances(packet, entry.protocol(), entry.state, *direction, said, entry.last_ack)
        }
        Decision::Start { flow, .. } => {
            if said.is_none() && packet.l3.protocol == protocol::SCTP && flow.reply.is_some() {
                return Err(DropReason::SctpFragment);
            }
            let new = flow.entry(packet);
            advances(packet, new.original.protocol, new.state, Direction::Original, said, new.last_ack)
        }
        Decision::Translate { flow, direction, .. } => {
            let entry = A::flows(state).entry(*flow);
            error::translate_in(tables, packet, &mut l3(packet, frame).to_vec(), entry, *direction)
        }
        Decision::Pass { .. } => {
            let is_served = A::addresses(l3(packet, frame)).1.kind(tables).intersects(LocalKind::SERVED);
            if is_served { Ok(()) } else { Err(DropReason::ErrorUnmatched) }
        }
        Decision::Refuse(refused) => answered(packet, frame, refused.answer),
        Decision::Answer(answer) => answered(packet, frame, *answer),
        Decision::Deliver { .. } | Decision::Route(_) | Decision::Deny(_) | Decision::Drop(_) => Ok(()),
    }
}

/// Whether a packet is one that a flow in this state can have.
fn advances(
    packet: &Packet,
    protocol: u8,
    state: FlowState,
    direction: Direction,
    said: Option<(Saying, u32)>,
    mut last_ack: [u32; 2],
) -> Result<(), DropReason> {
    let at = &packet.l3;
    let next = match (protocol, said) {
        (protocol::SCTP, None) => return Ok(()),
        (protocol::SCTP, Some((saying, tag))) if !state.is_pin() => {
            state::sctp::advance(state, direction, saying, tag, &mut last_ack)
        }
        (protocol::SCTP, Some(_)) => tcp::advance(state, direction, at.tcp_flags, 0, 0, &mut last_ack),
        (protocol::TCP, _) if at.has_l4() => {
            tcp::advance(state, direction, at.tcp_flags, at.tcp_seq, at.tcp_ack, &mut last_ack)
        }
        _ => return Ok(()),
    };
    if next.forward { Ok(()) } else { Err(DropReason::TcpInvalid) }
}

fn answered(packet: &Packet, frame: &[u8], answer: Answer) -> Result<(), DropReason> {
    match answer {
        Answer::Echo => local::echo_in(packet, &mut l3(packet, frame).to_vec()),
        // What these need has been looked at by who decided.
        Answer::Arp | Answer::Advertise => Ok(()),
        Answer::Reset { otherwise } if !error::may_reset(packet, l3(packet, frame)) => Err(otherwise),
        _ if error::may_answer(packet, l3(packet, frame)) => Ok(()),
        _ => Err(unanswered(answer)),
    }
}

/// The packet, without what came after it.
fn l3<'f>(packet: &Packet, frame: &'f [u8]) -> &'f [u8] {
    let at = usize::from(packet.l3_offset);
    frame.get(at..at + usize::from(packet.l3.total_len)).unwrap_or_default()
}
