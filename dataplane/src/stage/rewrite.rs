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
    let l3 = open(packet, frame);
    if !A::forward(l3, &packet.l3, to) {
        return Edited::Refused;
    }
    clamp(l3, packet, mtu)
}

/// The same for a packet that keeps its addresses and ports.
pub fn pass(packet: &Packet, frame: &mut Frame, mtu: Option<u16>) -> Edited {
    let l3 = open(packet, frame);
    if !edit::decrement_ttl(l3, packet.l3.family) {
        return Edited::Refused;
    }
    clamp(l3, packet, mtu)
}

/// The packet, without what came after it, and with the ECN bits that it must have. Nothing, if the frame is not what parse
/// said of it.
#[inline(always)]
fn open<'f>(packet: &Packet, frame: &'f mut Frame) -> &'f mut [u8] {
    let at = usize::from(packet.l3_offset);
    let end = at + usize::from(packet.l3.total_len);
    // Ethernet pads short frames; the padding must not travel on.
    if end < frame.len() {
        let _trimmed = frame.set_len(end);
    }
    let l3 = frame.bytes_mut().get_mut(at..).unwrap_or_default();
    if let Some(ecn) = packet.ecn {
        edit::set_ecn(l3, packet.l3.family, ecn);
    }
    l3
}

#[inline(always)]
fn clamp(l3: &mut [u8], packet: &Packet, mtu: Option<u16>) -> Edited {
    match mtu {
        Some(mtu) if edit::clamp_mss(l3, &packet.l3, mtu) => Edited::Clamped,
        _ => Edited::Plainly,
    }
}
