//! The segments of a probe: written whole, and answers read back.
//!
//! Owns the bytes. Refuses to know when to send them and what an answer means.

use std::net::IpAddr;

use tidegate_api::resource::Vtep;

use super::Target;
use super::pulse::Touch;
use crate::wire::checksum::Sum;
use crate::wire::ethernet::{self, Mac};
use crate::wire::{ipv4, ipv6, protocol, tcp, vxlan};

/// Hops a probe may take inside: node to pod, or over a second node. A node without rules for the VIP routes the packet
/// on, possibly back to a gateway; it must not go round for long (S-063).
const HOPS: u8 = 4;
/// What a probe announces as maximum segment size: fits any underlay. No data is ever sent.
const MSS: u16 = 536;

/// One exchange: what tells its packets from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Our port.
    pub source_port: u16,
    /// Our first number.
    pub sequence: u32,
}

/// What was read from a raw socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Who sent it: the VIP.
    pub from: IpAddr,
    /// From which port.
    pub from_port: u16,
    /// To which port: ours.
    pub to_port: u16,
    /// TCP flags.
    pub flags: u8,
    /// What it acknowledges.
    pub acknowledgment: u32,
}

/// The question: VXLAN header, Ethernet, IP and a SYN. Goes as payload of a UDP datagram.
pub fn question(target: &Target, exchange: Exchange) -> Option<Vec<u8>> {
    let segment = tcp::Repr {
        source_port: exchange.source_port,
        destination_port: target.way.port,
        sequence: exchange.sequence,
        acknowledgment: 0,
        flags: tcp::SYN,
        window: 1024,
        mss: Some(MSS),
    };
    inside(target, &segment)
}

/// The SYN of a pulse, without anything around it: goes through a raw socket, and the kernel writes the IP header. A SYN-ACK
/// is answered by the kernel's own reset, which ends the half connection.
pub fn touch(touch: &Touch) -> Option<Vec<u8>> {
    let Touch { ours, theirs, port, exchange } = touch;
    let segment = tcp::Repr {
        source_port: exchange.source_port,
        destination_port: *port,
        sequence: exchange.sequence,
        acknowledgment: 0,
        flags: tcp::SYN,
        window: 1024,
        mss: Some(MSS),
    };
    let payload_len = u16::try_from(segment.len()).ok()?;
    let pseudo = match (ours, theirs) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            Sum::ZERO.pseudo_v4(source.octets(), destination.octets(), protocol::TCP, payload_len)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            Sum::ZERO.pseudo_v6(source.octets(), destination.octets(), protocol::TCP, payload_len.into())
        }
        _ => return None,
    };
    let mut out = vec![0; segment.len()];
    segment.emit(&mut out, pseudo)?;
    Some(out)
}

/// What ends the half connection that a SYN-ACK speaks of.
pub fn farewell(target: &Target, exchange: Exchange) -> Option<Vec<u8>> {
    let segment = tcp::Repr {
        source_port: exchange.source_port,
        destination_port: target.way.port,
        sequence: exchange.sequence.wrapping_add(1),
        acknowledgment: 0,
        flags: tcp::RST,
        window: 0,
        mss: None,
    };
    inside(target, &segment)
}

fn inside(target: &Target, segment: &tcp::Repr) -> Option<Vec<u8>> {
    let Vtep { underlay, mac, vni: _, .. } = target.ours;
    let payload_len = u16::try_from(segment.len()).ok()?;
    let mut out = vec![0; vxlan::HEADER_LEN + ethernet::HEADER_LEN + ipv6::HEADER_LEN + segment.len()];
    let mut at = vxlan::Repr { vni: target.peer.vni }.emit(&mut out)?;
    let link = |ethertype| ethernet::Repr {
        destination: Mac::from(target.peer.mac),
        source: Mac::from(mac),
        vlan: None,
        ethertype,
    };
    let pseudo = match (underlay, target.vip) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let (source, destination) = (source.octets(), destination.octets());
            at += link(ethernet::IPV4).emit(out.get_mut(at..)?)?;
            let header = ipv4::Repr {
                source,
                destination,
                protocol: protocol::TCP,
                payload_len,
                ttl: HOPS,
                tos: 0,
                identification: 0,
                dont_fragment: true,
            };
            at += header.emit(out.get_mut(at..)?)?;
            Sum::ZERO.pseudo_v4(source, destination, protocol::TCP, payload_len)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let (source, destination) = (source.octets(), destination.octets());
            at += link(ethernet::IPV6).emit(out.get_mut(at..)?)?;
            let header = ipv6::Repr {
                source,
                destination,
                next_header: protocol::TCP,
                payload_len,
                hop_limit: HOPS,
                traffic_class: 0,
                flow_label: 0,
            };
            at += header.emit(out.get_mut(at..)?)?;
            Sum::ZERO.pseudo_v6(source, destination, protocol::TCP, payload_len.into())
        }
        _ => return None,
    };
    at += segment.emit(out.get_mut(at..)?, pseudo)?;
    out.truncate(at);
    Some(out)
}

/// What a raw socket gave: over IPv4 a packet from its IP header on, over IPv6 the segment alone (raw(7), RFC 3542 section
/// 3). Checksums were looked at by the kernel that let it pass; `from` is who sent it.
pub fn read(bytes: &[u8], from: IpAddr) -> Option<Answer> {
    let segment = match from {
        IpAddr::V4(_) => bytes.get(4 * usize::from(bytes.first()? & 15)..)?,
        IpAddr::V6(_) => bytes,
    };
    let segment = tcp::Repr::of(segment)?;
    Some(Answer {
        from,
        from_port: segment.source_port,
        to_port: segment.destination_port,
        flags: segment.flags,
        acknowledgment: segment.acknowledgment,
    })
}

impl Answer {
    /// Whether this answers the question of `exchange` about `target`: a SYN-ACK or a reset that knows our number.
    pub fn fits(&self, target: &Target, exchange: Exchange) -> bool {
        (self.from, self.from_port) == (target.vip, target.way.port) && self.knows(exchange)
    }

    /// Whether this is a SYN-ACK or a reset that knows the numbers of `exchange`.
    pub fn knows(&self, exchange: Exchange) -> bool {
        let kind = self.flags & (tcp::SYN | tcp::ACK | tcp::RST);
        self.to_port == exchange.source_port
            && self.acknowledgment == exchange.sequence.wrapping_add(1)
            && (kind == tcp::SYN | tcp::ACK || kind == tcp::RST | tcp::ACK)
    }

    /// Whether the other end now holds half a connection.
    pub fn is_open(&self) -> bool {
        self.flags & tcp::RST == 0
    }
}

#[cfg(test)]
pub(super) mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    use tidegate_api::resource::{MacAddress, PeerVtep};

    use super::*;
    use crate::probe::Way;
    use crate::table::Family;

    pub fn target(family: Family, node: &str) -> Target {
        let address = |v4: &str, v6: &str| if family == Family::V4 { v4.parse() } else { v6.parse() }.unwrap();
        let underlay = address("198.51.100.1", "2001:db8:2::1");
        Target {
            way: Way { service: "shop/web".into(), port: 80, family, node: node.into() },
            vip: address("203.0.113.10", "2001:db8:f::10"),
            ours: Vtep {
                underlay,
                mac: MacAddress([2, 0, 0, 0, 2, 0]),
                overlay: address("10.244.9.0", "fd00:9::"),
                vni: 1,
                port: 8472,
            },
            peer: PeerVtep {
                underlay: address("198.51.100.11", "2001:db8:2::11"),
                mac: MacAddress([2, 0, 0, 0, 4, 0]),
                vni: 7,
                port: 8472,
                pod_cidrs: vec![],
            },
        }
    }

    #[test]
    fn etherparse_reads_the_question_and_the_farewell() {
        for family in [Family::V4, Family::V6] {
            let target = target(family, "w1");
            let exchange = Exchange { source_port: 61_234, sequence: u32::MAX };
            for (datagram, flags, number) in [
                (question(&target, exchange).unwrap(), tcp::SYN, u32::MAX),
                (farewell(&target, exchange).unwrap(), tcp::RST, 0),
            ] {
                assert_eq!(datagram[..8], [8, 0, 0, 0, 0, 0, 7, 0], "RFC 7348 section 5, the peer's network");
                assert_eq!(datagram[8..20], [2, 0, 0, 0, 4, 0, 2, 0, 0, 0, 2, 0]);
                let packet = SlicedPacket::from_ethernet(&datagram[8..]).unwrap();
                let (TransportSlice::Tcp(segment), Some(net)) = (packet.transport.unwrap(), packet.net) else {
                    panic!()
                };
                assert_eq!((segment.source_port(), segment.destination_port()), (61_234, 80));
                assert_eq!(segment.sequence_number(), number);
                assert_eq!(
                    (segment.syn(), segment.rst(), segment.ack()),
                    (flags == tcp::SYN, flags == tcp::RST, false)
                );
                let (from, to, hops, sum) = match net {
                    NetSlice::Ipv4(ip) => {
                        let header = ip.header();
                        assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
                        let sum = segment.to_header().calc_checksum_ipv4(&header.to_header(), &[]).unwrap();
                        (header.source_addr().into(), header.destination_addr().into(), header.ttl(), sum)
                    }
                    NetSlice::Ipv6(ip) => {
                        let header = ip.header();
                        let sum = segment.to_header().calc_checksum_ipv6(&header.to_header(), &[]).unwrap();
                        let (from, to): (IpAddr, IpAddr) =
                            (header.source_addr().into(), header.destination_addr().into());
                        (from, to, header.hop_limit(), sum)
                    }
                    _ => panic!(),
                };
                assert_eq!((from, to), (target.ours.underlay, target.vip));
                assert_eq!((segment.checksum(), hops), (sum, HOPS));
            }
        }
    }

    #[test]
    fn etherparse_reads_the_touch() {
        for (ours, theirs) in [("198.51.100.1", "198.51.100.11"), ("2001:db8:2::1", "2001:db8:2::11")] {
            let (ours, theirs): (IpAddr, IpAddr) = (ours.parse().unwrap(), theirs.parse().unwrap());
            let exchange = Exchange { source_port: 61_234, sequence: 77 };
            let bytes = touch(&Touch { ours, theirs, port: 10256, exchange }).unwrap();
            let (header, rest) = etherparse::TcpHeader::from_slice(&bytes).unwrap();
            assert!(rest.is_empty() && header.syn && !header.ack && !header.rst);
            assert_eq!((header.source_port, header.destination_port, header.sequence_number), (61_234, 10256, 77));
            let sum = match (ours, theirs) {
                (IpAddr::V4(from), IpAddr::V4(to)) => header.calc_checksum_ipv4_raw(from.octets(), to.octets(), &[]),
                (IpAddr::V6(from), IpAddr::V6(to)) => header.calc_checksum_ipv6_raw(from.octets(), to.octets(), &[]),
                _ => panic!(),
            };
            assert_eq!(header.checksum, sum.unwrap());
            let mixed = Touch { ours: "::1".parse().unwrap(), theirs: "192.0.2.1".parse().unwrap(), port: 1, exchange };
            assert_eq!(touch(&mixed), None);
        }
    }

    #[test]
    fn families_that_do_not_go_together_make_no_question() {
        let mut target = target(Family::V4, "w1");
        target.vip = "2001:db8::1".parse().unwrap();
        assert_eq!(question(&target, Exchange { source_port: 1, sequence: 1 }), None);
    }

    #[test]
    fn only_an_answer_that_knows_both_numbers_fits() {
        for family in [Family::V4, Family::V6] {
            let target = target(family, "w1");
            let exchange = Exchange { source_port: 61_234, sequence: u32::MAX };
            let answer = Answer {
                from: target.vip,
                from_port: 80,
                to_port: 61_234,
                flags: tcp::SYN | tcp::ACK,
                acknowledgment: 0,
            };
            assert!(answer.fits(&target, exchange) && answer.is_open());
            let reset = Answer { flags: tcp::RST | tcp::ACK, ..answer };
            assert!(reset.fits(&target, exchange) && !reset.is_open());
            let stranger: IpAddr =
                if family == Family::V4 { "203.0.113.11" } else { "2001:db8:f::11" }.parse().unwrap();
            for other in [
                Answer { from: stranger, ..answer },
                Answer { from_port: 81, ..answer },
                Answer { to_port: 61_235, ..answer },
                Answer { acknowledgment: 1, ..answer },
                Answer { flags: tcp::ACK, ..answer },
                Answer { flags: tcp::RST, ..answer },
                Answer { flags: tcp::SYN, ..answer },
            ] {
                assert!(!other.fits(&target, exchange), "{other:?}");
            }
        }
    }

    #[test]
    fn what_is_read_is_what_was_sent_and_nonsense_is_nothing() {
        let header = etherparse::TcpHeader { acknowledgment_number: 9, syn: true, ack: true, ..Default::default() };
        let header = etherparse::TcpHeader { source_port: 80, destination_port: 61_000, ..header };
        let segment = header.to_bytes();
        let v6 = read(&segment, "2001:db8:f::10".parse().unwrap()).unwrap();
        assert_eq!((v6.from_port, v6.to_port, v6.flags, v6.acknowledgment), (80, 61_000, tcp::SYN | tcp::ACK, 9));
        let mut packet = vec![0x46; 24];
        packet.extend_from_slice(&segment);
        let v4 = read(&packet, "203.0.113.10".parse().unwrap()).unwrap();
        assert_eq!((v4.from_port, v4.acknowledgment), (80, 9), "options are passed over");
        for length in 0..packet.len() - segment.len() + 20 {
            assert_eq!(read(&packet[..length], "203.0.113.10".parse().unwrap()), None, "{length}");
        }
    }
}
