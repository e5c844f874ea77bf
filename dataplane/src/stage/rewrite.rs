//! # Rewrite: edit the headers of a packet that goes on
//!
//! reads   the prepared edit of the flow     writes  addresses, ports, TTL, ECN, MSS and every checksum they touch
//! drops   none: what could not be edited was refused before
//! cost    two tuples of stores and one folded checksum delta
//! spec    RFC 1624 equation 3 (N-070 … N-073), V-007, V-013, L-058     tests   `dataplane/tests/differential.rs`
//!
//! The only stage that edits a forwarded packet.

use tidegate_io::Frame;

use crate::family::Family;
use crate::packet::Packet;
use crate::state::Tuple;
use crate::wire::{protocol, tcp};

/// Gives the packet the addresses and ports of `to`. With `mss_max`, a SYN's MSS is lowered to it (V-013).
///
/// Returns whether an MSS was lowered.
#[inline]
pub fn run<A: Family>(packet: &Packet, frame: &mut Frame, to: &Tuple<A>, mss_max: Option<u16>) -> bool {
    let at = usize::from(packet.l3_offset);
    let end = at + usize::from(packet.l3.total_len);
    // Ethernet pads short frames; the padding must not travel on.
    let _trimmed = frame.set_len(end.min(frame.len()));
    let Some(l3) = frame.bytes_mut().get_mut(at..) else { return false };
    if let Some(ecn) = packet.ecn {
        A::set_ecn(l3, ecn);
    }
    A::decrement_ttl(l3);
    let l4_offset = usize::from(packet.l3.l4_offset);
    A::translate(l3, l4_offset, packet.l3.protocol, to);
    match (mss_max, l3.get_mut(l4_offset..)) {
        (Some(max), Some(segment)) if packet.l3.protocol == protocol::TCP => tcp::clamp_mss(segment, max),
        _ => false,
    }
}
