//! ARP for IPv4 over Ethernet (RFC 826).
//!
//! Owns the packet and the frames that answer a request or announce an address. Refuses to know which addresses are ours.

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Malformed;
use super::ethernet::{self, Mac};

/// Length of an ARP packet for IPv4 over Ethernet.
pub const PACKET_LEN: usize = 28;
/// Length of an untagged frame with an ARP packet, not padded to 60 bytes.
pub const FRAME_LEN: usize = ethernet::HEADER_LEN + PACKET_LEN;

const HARDWARE_ETHERNET: u16 = 1;

/// An ARP packet for IPv4 over Ethernet.
///
/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |         hardware = 1          |       protocol = 0x0800       |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |  hw len = 6   | proto len = 4 |           operation           |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |   sender MAC (48 bits), sender IPv4 (32), target MAC (48),    |
/// |   target IPv4 (32)                                            |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Packet {
    hardware: U16,
    protocol: U16,
    hardware_len: u8,
    protocol_len: u8,
    operation: U16,
    sender_mac: Mac,
    sender: [u8; 4],
    target_mac: Mac,
    target: [u8; 4],
}

/// What an ARP packet does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Who has the target address?
    Request,
    /// The sender has the sender address.
    Reply,
}

/// An ARP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Request or reply.
    pub operation: Operation,
    /// Who speaks.
    pub sender_mac: Mac,
    /// The speaker's address, network order.
    pub sender: [u8; 4],
    /// Who is asked or told; anything in a request.
    pub target_mac: Mac,
    /// The address asked for, or that of who is told, network order.
    pub target: [u8; 4],
}

impl Repr {
    /// Reads an ARP packet; bytes after it are padding.
    ///
    /// # Errors
    /// [`Malformed::ArpMalformed`]: too short, not IPv4 over Ethernet, neither request nor reply, or a group MAC as sender.
    pub fn parse(bytes: &[u8]) -> Result<Repr, Malformed> {
        let (packet, _) = Packet::ref_from_prefix(bytes).map_err(|_| Malformed::ArpMalformed)?;
        let operation = match packet.operation.get() {
            1 => Operation::Request,
            2 => Operation::Reply,
            _ => return Err(Malformed::ArpMalformed),
        };
        if packet.hardware.get() != HARDWARE_ETHERNET
            || packet.protocol.get() != ethernet::IPV4
            || packet.hardware_len != 6
            || packet.protocol_len != 4
            || packet.sender_mac.is_group()
        {
            return Err(Malformed::ArpMalformed);
        }
        Ok(Repr {
            operation,
            sender_mac: packet.sender_mac,
            sender: packet.sender,
            target_mac: packet.target_mac,
            target: packet.target,
        })
    }

    /// Always 28.
    #[must_use]
    pub fn len(&self) -> usize {
        PACKET_LEN
    }

    /// Always false: a packet has bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Writes the packet and returns its length, or `None` (nothing written) if `out` is shorter.
    pub fn emit(&self, out: &mut [u8]) -> Option<usize> {
        let packet = Packet {
            hardware: HARDWARE_ETHERNET.into(),
            protocol: ethernet::IPV4.into(),
            hardware_len: 6,
            protocol_len: 4,
            operation: match self.operation {
                Operation::Request => 1,
                Operation::Reply => 2,
            }
            .into(),
            sender_mac: self.sender_mac,
            sender: self.sender,
            target_mac: self.target_mac,
            target: self.target,
        };
        packet.write_to_prefix(out).ok()?;
        Some(PACKET_LEN)
    }

    /// The answer to this request: `mac` has the target address. Unicast, sender MAC = ours (M-022).
    #[must_use]
    pub fn answer(&self, mac: Mac) -> Repr {
        Repr {
            operation: Operation::Reply,
            sender_mac: mac,
            sender: self.target,
            target_mac: self.sender_mac,
            target: self.sender,
        }
    }

    /// The announcement that `mac` has `address`, as a request or a reply (M-023); broadcast it.
    #[must_use]
    pub fn gratuitous(operation: Operation, mac: Mac, address: [u8; 4]) -> Repr {
        Repr { operation, sender_mac: mac, sender: address, target_mac: Mac::BROADCAST, target: address }
    }

    /// Writes a frame with this packet to `destination` and returns its length: 42, or 46 with a VLAN tag; `None` if `out`
    /// is too small.
    pub fn emit_frame(&self, out: &mut [u8], destination: Mac, vlan: Option<u16>) -> Option<usize> {
        let link = ethernet::Repr { destination, source: self.sender_mac, vlan, ethertype: ethernet::ARP };
        let out = out.get_mut(..link.len() + self.len())?;
        let (head, body) = out.split_at_mut_checked(link.len())?;
        Some(link.emit(head)? + self.emit(body)?)
    }
}

/// Writes the frame that answers `request` with `mac`, back to who asked; returns its length. `None` if `out` is too small
/// or `request` is not a request.
pub fn emit_reply(out: &mut [u8], request: &Repr, mac: Mac, vlan: Option<u16>) -> Option<usize> {
    match request.operation {
        Operation::Request => request.answer(mac).emit_frame(out, request.sender_mac, vlan),
        Operation::Reply => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parse_of_emit_is_identity(reply: bool, macs: [[u8; 6]; 2], addresses: [[u8; 4]; 2]) {
            let [mut sender_mac, target_mac] = macs.map(Mac);
            sender_mac.0[0] &= 0xfe;
            let operation = if reply { Operation::Reply } else { Operation::Request };
            let [sender, target] = addresses;
            let repr = Repr { operation, sender_mac, sender, target_mac, target };
            let mut out = [0; 30];
            prop_assert_eq!(repr.emit(&mut out[..27]), None);
            prop_assert_eq!(repr.emit(&mut out), Some(repr.len()));
            prop_assert_eq!(Repr::parse(&out), Ok(repr));
        }
    }
}
