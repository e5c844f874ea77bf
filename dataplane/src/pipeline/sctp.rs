//! SCTP packets of a known flow: what [`super::forward`] is for TCP and UDP.
//!
//! Owns the order of things: the state moves by what the packet says, then its addresses and ports are written and it
//! leaves. Kept out of the way of other protocols: an SCTP packet costs a pass over all of it anyway.

use tidegate_io::Frame;

use super::{Verdict, identify, leave};
use crate::counters::Counters;
use crate::drops::DropReason;
use crate::family::Family;
use crate::packet::Packet;
use crate::stage;
use crate::stage::rewrite::{self, Edited};
use crate::stage::route::Hop;
use crate::state::{self, Entry, Hit, State, tcp, ticks};
use crate::table::Tables;
use crate::wire::sctp::Saying;

/// Edits and sends a packet of a known flow. `said` is what it says, with its tag; `None` of a fragment, which moves nothing.
#[cold]
#[allow(clippy::too_many_arguments)]
pub(super) fn forward<A: Family>(
    tables: &Tables,
    state: &mut State,
    counters: &mut Counters,
    packet: &Packet,
    frame: &mut Frame,
    said: Option<(Saying, u32)>,
    hit: Hit,
    hop: Hop,
    hash: u64,
    now_ns: u64,
) -> Verdict {
    let entry = A::flows_mut(state).entry_mut(hit.flow);
    let to = entry.leaving(hit.direction);
    if let Err(reason) = stage::sctp::may_become(packet, &entry.arriving(hit.direction), &to) {
        return Verdict::Drop(reason);
    }
    let before = entry.state;
    if let Some((saying, tag)) = said {
        let next = advance(entry, packet, hit, saying, tag);
        if !next.forward {
            return Verdict::Drop(DropReason::TcpInvalid);
        }
        entry.state = next.state;
        if next.refresh {
            entry.last_seen_ticks = ticks(now_ns);
        }
    }
    let (now, backend) = (entry.state, entry.backend);
    if let Some(fold) = entry.count(hit.direction, u32::from(packet.l3.total_len)) {
        state.fold::<A>(hit.flow, hit.direction, fold);
        A::flows_mut(state).settle(hit.flow);
    }
    if before.is_active() != now.is_active() {
        state.usage.turn(backend, now.is_active());
    }
    match rewrite::run(packet, frame, &to, None) {
        Edited::Plainly | Edited::Clamped => {
            if !packet.l3.dont_fragment {
                identify::<A>(tables, state, packet, frame, hit);
            }
            leave(tables, counters, packet, frame, hop, hash)
        }
        Edited::Refused => Verdict::Drop(DropReason::EditRefused),
    }
}

/// A flow of which one direction is seen knows no tags: it is followed as TCP is there.
fn advance<A: Family>(entry: &mut Entry<A>, packet: &Packet, hit: Hit, saying: Saying, tag: u32) -> tcp::Next {
    if entry.state.is_pin() {
        return tcp::advance(entry.state, hit.direction, packet.l3.tcp_flags, 0, 0, &mut entry.last_ack);
    }
    state::sctp::advance(entry.state, hit.direction, saying, tag, &mut entry.last_ack)
}
