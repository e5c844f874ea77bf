//! Checksums the slow way: word by word, from scratch, with headers found by etherparse.

use etherparse::{IpNumber, IpSlice};
use tidegate_dataplane::rig::sketch::crc32c;

/// One's complement sum, one word at a time (RFC 1071 section 4.1, the version everybody knows).
pub fn naive_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for word in bytes.chunks(2) {
        sum += u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0));
        sum = (sum >> 16) + (sum & 0xffff);
    }
    u16::try_from(sum).expect("folded")
}

/// The sum of several runs of bytes, each but the last of even length.
pub fn naive_sums(parts: &[&[u8]]) -> u16 {
    let mut all = Vec::new();
    for part in parts {
        all.extend_from_slice(part);
    }
    naive_sum(&all)
}

/// Where the L4 header starts and what it is, as etherparse sees it.
pub fn l4(packet: &[u8]) -> (usize, IpNumber) {
    let ip = IpSlice::from_slice(packet).expect("a packet");
    let payload = ip.payload();
    (packet.len() - payload.payload.len(), payload.ip_number)
}

/// Source and destination, and the pseudo header for an L4 protocol and length.
fn pseudo(packet: &[u8], protocol: u8, len: usize) -> Vec<u8> {
    let len = u32::try_from(len).expect("a short packet").to_be_bytes();
    match packet[0] >> 4 {
        4 => [&packet[12..20], &[0, protocol], &len[2..]].concat(),
        _ => [&packet[8..40], &len, &[0, 0, 0, protocol]].concat(),
    }
}

/// Where the L4 checksum is from the L4 header on, and whether it covers a pseudo header.
fn checksum_place(version: u8, protocol: u8) -> Option<(usize, bool)> {
    match (protocol, version) {
        (6, _) => Some((16, true)),
        (17, _) => Some((6, true)),
        (1, 4) => Some((2, false)),
        (58, 6) => Some((2, true)),
        _ => None,
    }
}

/// The L4 checksum a packet should have, and where it is; `None` if it has none.
pub fn l4_checksum(packet: &[u8]) -> Option<(usize, u16)> {
    let (offset, protocol) = l4(packet);
    let (at, with_pseudo) = checksum_place(packet[0] >> 4, protocol.0)?;
    let mut segment = packet[offset..].to_vec();
    if protocol == IpNumber::UDP && segment[6..8] == [0, 0] {
        return None;
    }
    segment[at..at + 2].fill(0);
    let pseudo = if with_pseudo { pseudo(packet, protocol.0, segment.len()) } else { vec![] };
    let checksum = !naive_sums(&[&pseudo, &segment]);
    let checksum = if protocol == IpNumber::UDP && checksum == 0 { 0xffff } else { checksum };
    Some((offset + at, checksum))
}

/// Writes every checksum of a packet anew. A UDP checksum of zero stays.
pub fn recompute(packet: &mut [u8]) {
    fix_ip_checksum(packet);
    if let Some((at, checksum)) = l4_checksum(packet) {
        packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
    if let Some(at) = crc_place(packet) {
        packet[at..at + 4].fill(0);
        let sum = crc32c(&packet[at - 8..]).to_le_bytes();
        packet[at..at + 4].copy_from_slice(&sum);
    }
}

/// Where SCTP's CRC32c is.
pub fn crc_place(packet: &[u8]) -> Option<usize> {
    let (offset, protocol) = l4(packet);
    (protocol == IpNumber::SCTP).then_some(offset + 8)
}

/// Writes the IPv4 header checksum anew; nothing for IPv6.
pub fn fix_ip_checksum(packet: &mut [u8]) {
    let header_len = usize::from(packet[0] & 0xf) * 4;
    if packet[0] >> 4 == 4 && packet.len() >= header_len && header_len >= 20 {
        packet[10..12].fill(0);
        let checksum = !naive_sum(&packet[..header_len]);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// Fails unless every checksum of a packet is the one that recomputation gives.
#[track_caller]
pub fn assert_checksums(packet: &[u8]) {
    let mut expected = packet.to_vec();
    recompute(&mut expected);
    assert_eq!(packet, expected, "checksums differ from a full recomputation");
}
