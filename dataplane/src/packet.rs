//! What parse learned about one packet, and the key it is looked up by.
//!
//! A [`Packet`] is plain numbers beside the frame, never a reference into it, so that a whole batch of them can be
//! held while frames move. Offsets count from the first byte of the frame.

use crate::state::Tuple;
use crate::table::{DeviceId, TunnelId};
use crate::wire::Family;
use crate::wire::packet::{Fragment, L3};

/// Where a packet came from: the wire itself, or out of VXLAN. Tuples of the two never meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Domain {
    /// As received on a port.
    Wire = 0,
    /// Taken out of VXLAN.
    Overlay = 1,
}

/// What kind of packet it is, as far as the next stage must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IPv4 or IPv6.
    Ip,
    /// An ARP packet; `l3_offset` is its first byte.
    Arp,
}

/// What parse learned. With VXLAN it tells of the inner packet.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// IP or ARP.
    pub kind: Kind,
    /// Wire or overlay.
    pub domain: Domain,
    /// Device it arrived on.
    pub device: DeviceId,
    /// Peer that sent it, if `domain` is `Overlay`; otherwise `TunnelId::NONE`.
    pub tunnel: TunnelId,
    /// First byte of the IP header (or ARP packet) in the frame.
    pub l3_offset: u16,
    /// ECN bits the packet must have from here on (V-007), if they differ from those it carries.
    pub ecn: Option<u8>,
    /// The validated IP header. Of an ARP packet: all zero.
    pub l3: L3,
}

/// What a packet is looked up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// No flow can match: ARP, discovery, echo, fragments, other protocols.
    None,
    /// An IPv4 packet, or an ICMP error by the reverse of what it quotes.
    V4(Tuple<[u8; 4]>),
    /// An IPv6 packet, or an ICMPv6 error by the reverse of what it quotes.
    V6(Tuple<[u8; 16]>),
}

impl Packet {
    /// What a place for a packet holds before there was one.
    pub const NOTHING: Packet = Packet::arp(DeviceId::NONE, Domain::Wire, TunnelId::NONE, 0);

    /// An ARP packet whose first byte is at `l3_offset`.
    pub const fn arp(device: DeviceId, domain: Domain, tunnel: TunnelId, l3_offset: u16) -> Packet {
        let l3 = L3 {
            family: Family::V4,
            protocol: 0,
            l4_offset: 0,
            total_len: 0,
            fragment: Fragment::None,
            ttl: 0,
            tos: 0,
            dont_fragment: false,
            has_options: false,
            is_plain: false,
            source_port: 0,
            destination_port: 0,
            tcp_flags: 0,
            tcp_seq: 0,
            tcp_ack: 0,
            icmp_type: 0,
            icmp_code: 0,
        };
        Packet { kind: Kind::Arp, domain, device, tunnel, l3_offset, ecn: None, l3 }
    }
}
