//! TCP resets: the answer to a segment that belongs to no connection.
//!
//! Owns the whole IP packet that RFC 9293 section 3.10.7.1 (state CLOSED) prescribes. Refuses to know why a segment is not
//! wanted.

use zerocopy::FromBytes;

use super::checksum::Sum;
use super::packet::{self, Fragment, L3};
use super::{Family, ipv4, ipv6, protocol, tcp};

/// Length of a reset over IPv4.
pub const LEN_V4: usize = ipv4::HEADER_LEN + tcp::HEADER_LEN;
/// Length of a reset over IPv6.
pub const LEN_V6: usize = ipv6::HEADER_LEN + tcp::HEADER_LEN;

/// Writes the IP packet that resets the sender of a TCP segment, and returns its length, 40 or 60.
///
/// `packet` is the segment from its IP header on, `l3` what parse said of it. `None` (nothing written) if `out` is too small
/// or no reset may be sent: for a reset, for a fragment (whose segment length is unknown), for what is not TCP, and for
/// addresses that are no single host.
pub fn emit(out: &mut [u8], packet: &[u8], l3: &L3) -> Option<usize> {
    let whole_tcp = l3.protocol == protocol::TCP && l3.fragment == Fragment::None;
    // "An incoming segment containing a RST is discarded."
    if !whole_tcp || l3.tcp_flags & tcp::RST != 0 || packet::is_martian_source(packet, l3.family) {
        return None;
    }
    let segment = packet.get(usize::from(l3.l4_offset)..usize::from(l3.total_len))?;
    let repr = answer(segment, l3)?;
    match l3.family {
        Family::V4 => emit_v4(out, packet, &repr),
        Family::V6 => emit_v6(out, packet, &repr),
    }
}

/// "If the ACK bit is off, sequence number zero is used, <SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>. If the ACK bit is on,
/// <SEQ=SEG.ACK><CTL=RST>."
fn answer(segment: &[u8], l3: &L3) -> Option<tcp::Repr> {
    let (header, _) = tcp::Header::ref_from_prefix(segment).ok()?;
    let data_len = u32::try_from(segment.len().checked_sub(header.header_len())?).ok()?;
    let flag = |bit: u8| u32::from(l3.tcp_flags & bit != 0);
    let segment_len = data_len + flag(tcp::SYN) + flag(tcp::FIN);
    let (sequence, acknowledgment, flags) = if l3.tcp_flags & tcp::ACK != 0 {
        (l3.tcp_ack, 0, tcp::RST)
    } else {
        (0, l3.tcp_seq.wrapping_add(segment_len), tcp::RST | tcp::ACK)
    };
    Some(tcp::Repr {
        source_port: l3.destination_port,
        destination_port: l3.source_port,
        sequence,
        acknowledgment,
        flags,
        window: 0,
        mss: None,
    })
}

fn emit_v4(out: &mut [u8], packet: &[u8], reset: &tcp::Repr) -> Option<usize> {
    let (destination, source) = ipv4::addresses(packet);
    if source[0] >= 224 {
        return None;
    }
    let (ip, segment) = out.get_mut(..LEN_V4)?.split_at_mut_checked(ipv4::HEADER_LEN)?;
    let repr = ipv4::Repr {
        source,
        destination,
        protocol: protocol::TCP,
        payload_len: 20,
        ttl: ipv4::TTL_DEFAULT,
        tos: 0,
        identification: 0,
        dont_fragment: true,
    };
    repr.emit(ip)?;
    reset.emit(segment, Sum::ZERO.pseudo_v4(source, destination, protocol::TCP, 20))?;
    Some(LEN_V4)
}

fn emit_v6(out: &mut [u8], packet: &[u8], reset: &tcp::Repr) -> Option<usize> {
    let (destination, source) = ipv6::addresses(packet);
    if source[0] == 0xff {
        return None;
    }
    let (ip, segment) = out.get_mut(..LEN_V6)?.split_at_mut_checked(ipv6::HEADER_LEN)?;
    let repr = ipv6::Repr {
        source,
        destination,
        next_header: protocol::TCP,
        payload_len: 20,
        hop_limit: ipv6::HOP_LIMIT_DEFAULT,
        traffic_class: 0,
        flow_label: 0,
    };
    repr.emit(ip)?;
    reset.emit(segment, Sum::ZERO.pseudo_v6(source, destination, protocol::TCP, 20))?;
    Some(LEN_V6)
}
