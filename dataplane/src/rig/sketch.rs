//! Sketches: packets described in a line, written by etherparse.
//!
//! Owns the description and its defaults. Every byte and every checksum comes from etherparse, so that a sketch is an
//! independent oracle: a frame is right when it equals the sketch of what should have left. Refuses to know tables.

use std::net::IpAddr;

use etherparse::{
    IpFragOffset, IpHeaders, IpNumber, Ipv4Header, Ipv4Options, Ipv6Extensions, Ipv6FlowLabel, Ipv6FragmentHeader,
    Ipv6Header, PacketBuilder, TcpHeader, TcpOptionElement,
};

use super::mapped;

/// An address and a port.
pub type End = (IpAddr, u16);

/// What an IP packet of a [`Sketch`] carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A segment: flags as letters (S, A, F, R, P), numbers, window, MSS option.
    Tcp {
        /// Flags that are set.
        flags: String,
        /// Sequence number.
        sequence: u32,
        /// Acknowledgement number.
        acknowledgement: u32,
        /// Window.
        window: u16,
        /// MSS option.
        mss: Option<u16>,
    },
    /// A datagram; without checksum (N-071) if `summed` is false.
    Udp {
        /// Whether it has a checksum.
        summed: bool,
    },
    /// An SCTP packet with this verification tag; its payload are the chunks.
    Sctp {
        /// Verification tag.
        tag: u32,
    },
    /// An ICMP or ICMPv6 message, by the family of the addresses.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// Bytes five to eight.
        rest: [u8; 4],
    },
    /// Another protocol, payload only.
    Raw(u8),
}

/// An IP packet to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sketch {
    /// Source; the port counts with TCP, UDP and SCTP.
    pub from: End,
    /// Destination.
    pub to: End,
    /// TTL or hop limit.
    pub ttl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// IPv4 identification.
    pub id: u16,
    /// IPv4 DF.
    pub dont_fragment: bool,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// Fragment offset in bytes and whether more follow.
    pub fragment: Option<(u16, bool)>,
    /// IPv6 flow label.
    pub label: u32,
    /// What it carries.
    pub body: Body,
    /// What that carries.
    pub payload: Vec<u8>,
}

impl Sketch {
    fn new(from: End, to: End, body: Body) -> Sketch {
        Sketch {
            from,
            to,
            ttl: 64,
            tos: 0,
            id: 0x1234,
            dont_fragment: true,
            options: Vec::new(),
            fragment: None,
            label: 0x5_4321,
            body,
            payload: Vec::new(),
        }
    }

    /// With this TTL.
    pub fn ttl(self, ttl: u8) -> Sketch {
        Sketch { ttl, ..self }
    }

    /// With this DSCP and ECN.
    pub fn tos(self, tos: u8) -> Sketch {
        Sketch { tos, ..self }
    }

    /// With these ends.
    pub fn between(self, from: End, to: End) -> Sketch {
        Sketch { from, to, ..self }
    }

    /// With this payload.
    pub fn data(self, payload: impl Into<Vec<u8>>) -> Sketch {
        Sketch { payload: payload.into(), ..self }
    }

    /// With so much payload that the IP packet has `len` bytes.
    pub fn long(mut self, len: usize) -> Sketch {
        self.payload.clear();
        let more = len.saturating_sub(self.packet().len());
        self.payload = (0..=250).cycle().take(more).collect();
        self
    }

    /// IPv4: may be fragmented.
    pub fn may_fragment(self) -> Sketch {
        Sketch { dont_fragment: false, ..self }
    }

    /// As the fragment at `offset`; what it carries is `payload` alone where that is not the first.
    pub fn fragment(self, offset: u16, more: bool) -> Sketch {
        Sketch { fragment: Some((offset, more)), dont_fragment: false, ..self }
    }

    /// With these IPv4 options.
    pub fn options(self, options: &[u8]) -> Sketch {
        Sketch { options: options.to_vec(), ..self }
    }

    /// As made here and not by a host: no identification, no label.
    pub fn ours(self) -> Sketch {
        Sketch { id: 0, label: 0, ..self }
    }

    /// UDP without checksum.
    pub fn unsummed(self) -> Sketch {
        Sketch { body: Body::Udp { summed: false }, ..self }
    }

    /// TCP with this MSS option.
    pub fn mss(mut self, value: u16) -> Sketch {
        if let Body::Tcp { mss, .. } = &mut self.body {
            *mss = Some(value);
        }
        self
    }

    /// TCP with these flags and numbers.
    pub fn segment(mut self, letters: &str, number: u32, ack: u32) -> Sketch {
        if let Body::Tcp { flags, sequence, acknowledgement, .. } = &mut self.body {
            (*flags, *sequence, *acknowledgement) = (letters.to_owned(), number, ack);
        }
        self
    }

    /// TCP with this window.
    pub fn window(mut self, value: u16) -> Sketch {
        if let Body::Tcp { window, .. } = &mut self.body {
            *window = value;
        }
        self
    }

    /// The first segment of a connection, with an MSS of 1460.
    pub fn syn(self, sequence: u32) -> Sketch {
        self.segment("S", sequence, 0).mss(1460)
    }

    /// Its answer, with an MSS of 1460.
    pub fn syn_ack(self, sequence: u32, acknowledgement: u32) -> Sketch {
        self.segment("SA", sequence, acknowledgement).mss(1460)
    }

    /// An acknowledgement.
    pub fn ack(self, sequence: u32, acknowledgement: u32) -> Sketch {
        self.segment("A", sequence, acknowledgement)
    }

    /// SCTP with this verification tag.
    pub fn tag(mut self, value: u32) -> Sketch {
        if let Body::Sctp { tag } = &mut self.body {
            *tag = value;
        }
        self
    }

    /// SCTP with another chunk (RFC 9260 section 3.2), padded.
    pub fn chunk(mut self, kind: u8, flags: u8, value: &[u8]) -> Sketch {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX).to_be_bytes();
        self.payload.extend_from_slice(&[kind, flags, length[0], length[1]]);
        self.payload.extend_from_slice(value);
        self.payload.resize(self.payload.len().next_multiple_of(4), 0);
        self
    }

    /// SCTP's INIT (kind 1) or INIT ACK (kind 2), which gives `tag` and lists an address that nobody shall touch.
    pub fn init(self, kind: u8, tag: u32) -> Sketch {
        let mut value = tag.to_be_bytes().to_vec();
        value.extend_from_slice(&[0, 1, 0, 0, 0, 10, 0xff, 0xff, 0, 0, 0, 1]);
        value.extend_from_slice(&[0, 5, 0, 8, 192, 0, 2, 77]);
        self.chunk(kind, 0, &value)
    }

    /// Number of the protocol it carries.
    pub fn number(&self) -> u8 {
        self.protocol().0
    }

    /// The IP packet.
    pub fn packet(&self) -> Vec<u8> {
        let later = self.fragment.is_some_and(|(offset, _)| offset != 0);
        let builder = PacketBuilder::ip(self.headers());
        let mut bytes = Vec::new();
        let v6 = self.from.0.is_ipv6();
        // Writing into a vector fails only for payloads that no sketch has.
        let written = match &self.body {
            _ if later => builder.write(&mut bytes, self.protocol(), &self.payload).is_ok(),
            Body::Tcp { .. } => builder.tcp_header(self.tcp()).write(&mut bytes, &self.payload).is_ok(),
            Body::Udp { .. } => builder.udp(self.from.1, self.to.1).write(&mut bytes, &self.payload).is_ok(),
            Body::Sctp { tag } => builder.write(&mut bytes, IpNumber::SCTP, &self.sctp(*tag)).is_ok(),
            Body::Icmp { kind, code, rest } if v6 => {
                builder.icmpv6_raw(*kind, *code, *rest).write(&mut bytes, &self.payload).is_ok()
            }
            Body::Icmp { kind, code, rest } => {
                builder.icmpv4_raw(*kind, *code, *rest).write(&mut bytes, &self.payload).is_ok()
            }
            Body::Raw(_) => builder.write(&mut bytes, self.protocol(), &self.payload).is_ok(),
        };
        assert!(written, "a sketch that cannot be: {self:?}");
        if self.body == (Body::Udp { summed: false }) {
            let at = bytes.len() - self.payload.len() - 2;
            bytes[at..at + 2].fill(0);
        }
        bytes
    }

    /// The IP packet in an Ethernet frame with these MACs: source, destination.
    pub fn frame(&self, macs: ([u8; 6], [u8; 6])) -> Vec<u8> {
        ethernet(macs, self.ethertype(), &self.packet())
    }

    /// EtherType of the packet.
    pub fn ethertype(&self) -> u16 {
        if self.from.0.is_ipv6() { 0x86dd } else { 0x0800 }
    }

    fn protocol(&self) -> IpNumber {
        match self.body {
            Body::Tcp { .. } => IpNumber::TCP,
            Body::Udp { .. } => IpNumber::UDP,
            Body::Sctp { .. } => IpNumber::SCTP,
            Body::Icmp { .. } if self.from.0.is_ipv6() => IpNumber::IPV6_ICMP,
            Body::Icmp { .. } => IpNumber::ICMP,
            Body::Raw(protocol) => IpNumber(protocol),
        }
    }

    fn headers(&self) -> IpHeaders {
        let units = |offset: u16| IpFragOffset::try_new(offset / 8).unwrap_or_default();
        match (self.from.0, self.to.0) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut header =
                    Ipv4Header::new(0, self.ttl, self.protocol(), from.octets(), to.octets()).unwrap_or_default();
                header.dscp = etherparse::IpDscp::try_new(self.tos >> 2).unwrap_or_default();
                header.ecn = etherparse::IpEcn::try_new(self.tos & 3).unwrap_or_default();
                (header.identification, header.dont_fragment) = (self.id, self.dont_fragment);
                header.options = Ipv4Options::try_from(self.options.as_slice()).unwrap_or_default();
                if let Some((offset, more)) = self.fragment {
                    (header.fragment_offset, header.more_fragments) = (units(offset), more);
                }
                IpHeaders::Ipv4(header, Default::default())
            }
            (from, to) => {
                let header = Ipv6Header {
                    traffic_class: self.tos,
                    flow_label: Ipv6FlowLabel::try_new(self.label).unwrap_or_default(),
                    payload_length: 0,
                    next_header: self.protocol(),
                    hop_limit: self.ttl,
                    source: mapped(from),
                    destination: mapped(to),
                };
                let fragment = self.fragment.map(|(offset, more)| {
                    Ipv6FragmentHeader::new(self.protocol(), units(offset), more, u32::from(self.id))
                });
                IpHeaders::Ipv6(header, Ipv6Extensions { fragment, ..Ipv6Extensions::default() })
            }
        }
    }

    /// Common header and chunks.
    fn sctp(&self, tag: u32) -> Vec<u8> {
        let mut bytes = [self.from.1.to_be_bytes(), self.to.1.to_be_bytes()].concat();
        bytes.extend_from_slice(&tag.to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.payload);
        let sum = crc32c(&bytes).to_le_bytes();
        bytes.splice(8..12, sum);
        bytes
    }

    fn tcp(&self) -> TcpHeader {
        let Body::Tcp { flags, sequence, acknowledgement, window, mss } = &self.body else {
            return TcpHeader::default();
        };
        let mut header = TcpHeader::new(self.from.1, self.to.1, *sequence, *window);
        header.acknowledgment_number = *acknowledgement;
        let set = |letter| flags.contains(letter);
        (header.syn, header.ack, header.fin) = (set('S'), set('A'), set('F'));
        (header.rst, header.psh, header.urg) = (set('R'), set('P'), set('U'));
        if let Some(mss) = mss {
            let fits = header.set_options(&[TcpOptionElement::MaximumSegmentSize(*mss)]);
            assert!(fits.is_ok(), "one option fits");
        }
        header
    }
}

/// A TCP segment.
pub fn tcp(from: End, to: End) -> Sketch {
    let window = 65_000;
    Sketch::new(from, to, Body::Tcp { flags: String::new(), sequence: 0, acknowledgement: 0, window, mss: None })
}

/// A UDP datagram.
pub fn udp(from: End, to: End) -> Sketch {
    Sketch::new(from, to, Body::Udp { summed: true })
}

/// An SCTP packet.
pub fn sctp(from: End, to: End) -> Sketch {
    Sketch::new(from, to, Body::Sctp { tag: 0 })
}

/// CRC32c (RFC 9260 appendix A) bit by bit, which etherparse does not have.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

/// An ICMP or ICMPv6 message.
pub fn icmp(from: IpAddr, to: IpAddr, kind: u8, code: u8, rest: [u8; 4]) -> Sketch {
    Sketch::new((from, 0), (to, 0), Body::Icmp { kind, code, rest })
}

/// An echo request.
pub fn ping(from: IpAddr, to: IpAddr) -> Sketch {
    icmp(from, to, if from.is_ipv6() { 128 } else { 8 }, 0, [0x77, 0x66, 0, 9]).data(*b"echo, echo, echo")
}

/// The reply to [`ping`].
pub fn pong(from: IpAddr, to: IpAddr) -> Sketch {
    icmp(from, to, if from.is_ipv6() { 129 } else { 0 }, 0, [0x77, 0x66, 0, 9]).data(*b"echo, echo, echo")
}

/// A packet of another protocol.
pub fn raw(from: IpAddr, to: IpAddr, protocol: u8) -> Sketch {
    Sketch::new((from, 0), (to, 0), Body::Raw(protocol))
}

/// How an ICMP error differs: what it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Port unreachable.
    Port,
    /// Host (IPv6: address) unreachable.
    Host,
    /// Fragmentation needed, or packet too big.
    TooBig(u16),
    /// Time exceeded.
    Time,
}

/// An ICMP error about `quoted`, as a router or host sends it: no identification games, TTL 64.
pub fn trouble(from: IpAddr, to: IpAddr, trouble: Trouble, quoted: &[u8]) -> Sketch {
    let size = |mtu: u16| -> [u8; 4] {
        let [high, low] = mtu.to_be_bytes();
        [0, 0, high, low]
    };
    let (kind, code, rest) = match (trouble, from.is_ipv6()) {
        (Trouble::Port, false) => (3, 3, [0; 4]),
        (Trouble::Port, true) => (1, 4, [0; 4]),
        (Trouble::Host, false) => (3, 1, [0; 4]),
        (Trouble::Host, true) => (1, 3, [0; 4]),
        (Trouble::TooBig(mtu), false) => (3, 4, size(mtu)),
        (Trouble::TooBig(mtu), true) => (2, 0, size(mtu)),
        (Trouble::Time, false) => (11, 0, [0; 4]),
        (Trouble::Time, true) => (3, 0, [0; 4]),
    };
    icmp(from, to, kind, code, rest).data(quoted)
}

/// The ICMP error that we make about `original`: 576 bytes at most over IPv4 (RFC 1812 section 4.3.2.3), 1280 over IPv6
/// (RFC 4443 section 2.4 (c)), precedence 6 over IPv4.
pub fn our_trouble(from: IpAddr, to: IpAddr, about: Trouble, original: &[u8]) -> Sketch {
    let (room, tos) = if from.is_ipv6() { (1280 - 48, 0) } else { (576 - 28, 0xc0) };
    trouble(from, to, about, original.get(..room).unwrap_or(original)).tos(tos).ours()
}

/// An Ethernet frame with these MACs: source, destination.
pub fn ethernet(macs: ([u8; 6], [u8; 6]), ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(14 + payload.len());
    frame.extend_from_slice(&macs.1);
    frame.extend_from_slice(&macs.0);
    frame.extend_from_slice(&ethertype.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// The same frame with an 802.1Q tag.
pub fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    let mut tagged = frame.get(..12).unwrap_or_default().to_vec();
    tagged.extend_from_slice(&[0x81, 0]);
    tagged.extend_from_slice(&vlan.to_be_bytes());
    tagged.extend_from_slice(frame.get(12..).unwrap_or_default());
    tagged
}
