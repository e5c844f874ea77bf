//! # Rewrite: edit the headers of a packet that goes on
//!
//! reads   the prepared edit of the flow     writes  addresses, ports, TTL, ECN, MSS and every checksum they touch
//! drops   none here; what it refuses the pipeline drops as EditRefused, and parse makes that impossible
//! cost    two tuples of stores and one folded checksum delta
//! spec    RFC 1624 equation 3 (N-070 … N-073), V-007, V-013, L-058     tests   `dataplane/tests/differential.rs`
//!
//! The only stage that edits a forwarded packet.

use tidegate_io::Frame;

use crate::family::Family;
use crate::packet::Packet;
use crate::state::Tuple;
use crate::wire::edit;

/// What became of an edit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edited {
    /// Done.
    Plainly,
    /// Done, and an MSS was lowered.
    Clamped,
    /// The frame is not what parse said of it.
    Refused,
}

/// Gives the packet the addresses and ports of `to`. With `mtu`, a SYN's MSS is lowered to what fits it (V-013).
#[inline(always)]
pub fn run<A: Family>(packet: &Packet, frame: &mut Frame, to: &Tuple<A>, mtu: Option<u16>) -> Edited {
    edit(packet, frame, mtu, |l3| A::translate(l3, &packet.l3, to))
}

/// The same for a packet that keeps its addresses and ports.
pub fn pass(packet: &Packet, frame: &mut Frame, mtu: Option<u16>) -> Edited {
    edit(packet, frame, mtu, |_| true)
}

#[inline(always)]
fn edit(packet: &Packet, frame: &mut Frame, mtu: Option<u16>, translate: impl FnOnce(&mut [u8]) -> bool) -> Edited {
    let at = usize::from(packet.l3_offset);
    let end = at + usize::from(packet.l3.total_len);
    // Ethernet pads short frames; the padding must not travel on.
    let _trimmed = frame.set_len(end.min(frame.len()));
    let Some(l3) = frame.bytes_mut().get_mut(at..) else { return Edited::Refused };
    if let Some(ecn) = packet.ecn {
        edit::set_ecn(l3, packet.l3.family, ecn);
    }
    if !edit::decrement_ttl(l3, packet.l3.family) || !translate(l3) {
        return Edited::Refused;
    }
    match mtu {
        Some(mtu) if edit::clamp_mss(l3, &packet.l3, mtu) => Edited::Clamped,
        _ => Edited::Plainly,
    }
}
