//! # Sctp: is the packet whole, and what does it say?
//!
//! reads   the packet from its common header on     writes  nothing; returns what its chunks say
//! drops   `SctpBadChecksum`, `SctpInvalid`, `SctpFragment`
//! cost    one pass over the packet for its CRC32c, so SCTP always takes the slow way; never a step for other protocols
//! spec    N-075, N-093, Q-12, RFC 9260 sections 6.8, 6.10, 8.4, 8.5     tests   `dataplane/tests/golden/sctp.rs`
//!
//! States move by tags and chunks, so damaged packets must not get that far: every whole packet is verified before
//! anything is decided by it, also where nothing in it will change. Fragments cannot be verified. They pass where ports stay
//! as they are and are refused where these would change, since the checksum over all of them would have to change with
//! them (N-075).

use crate::drops::DropReason;
use crate::packet::Packet;
use crate::state::{Address, Tuple};
use crate::wire::packet::Fragment;
use crate::wire::sctp::{self, Saying};

/// What a whole packet says, and its verification tag; `None` of a fragment.
///
/// # Errors
/// `SctpBadChecksum`, `SctpInvalid`.
#[cold]
pub fn read(packet: &Packet, frame: &[u8]) -> Result<Option<(Saying, u32)>, DropReason> {
    if packet.l3.fragment != Fragment::None {
        return Ok(None);
    }
    let at = usize::from(packet.l3_offset);
    let (start, end) = (at + usize::from(packet.l3.l4_offset), at + usize::from(packet.l3.total_len));
    let whole = frame.get(start..end).ok_or(DropReason::SctpInvalid)?;
    if !sctp::checksum_verifies(whole) {
        return Err(DropReason::SctpBadChecksum);
    }
    sctp::read(whole).map(Some).ok_or(DropReason::SctpInvalid)
}

/// Whether a packet that arrives as `from` may leave as `to`.
///
/// # Errors
/// `SctpFragment`.
#[cold]
pub fn may_become<A: Address>(packet: &Packet, from: &Tuple<A>, to: &Tuple<A>) -> Result<(), DropReason> {
    let same = (from.source_port, from.destination_port) == (to.source_port, to.destination_port);
    if same || packet.l3.fragment == Fragment::None { Ok(()) } else { Err(DropReason::SctpFragment) }
}
