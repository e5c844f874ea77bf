//! Packets to test with: built by etherparse from a description, so that both sides of a comparison are known.

use etherparse::{
    IpHeaders, IpNumber, Ipv4Header, Ipv4Options, Ipv6Extensions, Ipv6FlowLabel, Ipv6Header, Ipv6RawExtHeader,
    PacketBuilder, TcpHeader,
};
use proptest::prelude::*;
use tidegate_dataplane::rig::sketch::crc32c;
use tidegate_dataplane::wire::Family;
use tidegate_dataplane::wire::edit::Tuple;

/// What a packet carries.
#[derive(Clone, Debug)]
pub enum Kind {
    Tcp { flags: u8, options: Vec<u8> },
    Udp { checksum: bool },
    Echo { request: bool, sequence: u16 },
    Sctp,
}

/// A whole packet, described.
#[derive(Clone, Debug)]
pub struct Spec {
    pub family: Family,
    pub kind: Kind,
    /// IPv4 uses the first four bytes.
    pub source: [u8; 16],
    pub destination: [u8; 16],
    pub source_port: u16,
    pub destination_port: u16,
    pub ttl: u8,
    pub tos: u8,
    pub id: u16,
    pub dont_fragment: bool,
    /// IPv4 options, or two IPv6 extension headers.
    pub options: bool,
    pub payload: Vec<u8>,
}

/// First four bytes.
pub fn v4(address: [u8; 16]) -> [u8; 4] {
    let [a, b, c, d, ..] = address;
    [a, b, c, d]
}

impl Spec {
    /// A small packet of a kind.
    pub fn new(family: Family, kind: Kind) -> Spec {
        let (source, destination) = match family {
            Family::V4 => (
                [192, 0, 2, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                [203, 0, 113, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ),
            Family::V6 => (
                [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10],
                [0x20, 1, 0xd, 0xb8, 0, 0xf, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7],
            ),
        };
        Spec {
            family,
            kind,
            source,
            destination,
            source_port: 40000,
            destination_port: 443,
            ttl: 64,
            tos: 0b1011_1010,
            id: 0x1234,
            dont_fragment: true,
            options: false,
            payload: b"tidegate!".to_vec(),
        }
    }

    /// IP header onwards.
    pub fn build(&self) -> Vec<u8> {
        let builder = PacketBuilder::ip(self.headers());
        let mut bytes = Vec::new();
        let payload = &self.payload;
        let (from, to) = (self.source_port, self.destination_port);
        match &self.kind {
            Kind::Tcp { flags, options } => {
                let mut header = TcpHeader::new(from, to, 0x0102_0304, 5000);
                header.acknowledgment_number = 0x0506_0708;
                header.set_options_raw(options).expect("options are whole words");
                header.fin = flags & 0x01 != 0;
                header.syn = flags & 0x02 != 0;
                header.rst = flags & 0x04 != 0;
                header.psh = flags & 0x08 != 0;
                header.ack = flags & 0x10 != 0;
                header.urg = flags & 0x20 != 0;
                header.ece = flags & 0x40 != 0;
                header.cwr = flags & 0x80 != 0;
                builder.tcp_header(header).write(&mut bytes, payload)
            }
            Kind::Udp { .. } => builder.udp(from, to).write(&mut bytes, payload),
            Kind::Echo { request, sequence } => match (self.family, *request) {
                (Family::V4, true) => builder.icmpv4_echo_request(from, *sequence).write(&mut bytes, payload),
                (Family::V4, false) => builder.icmpv4_echo_reply(from, *sequence).write(&mut bytes, payload),
                (Family::V6, true) => builder.icmpv6_echo_request(from, *sequence).write(&mut bytes, payload),
                (Family::V6, false) => builder.icmpv6_echo_reply(from, *sequence).write(&mut bytes, payload),
            },
            Kind::Sctp => {
                let mut chunk = [from.to_be_bytes(), to.to_be_bytes()].concat();
                chunk.extend_from_slice(&[0xaa, 0xaa, 0xaa, 0xaa, 0, 0, 0, 0]);
                chunk.extend_from_slice(payload);
                let sum = crc32c(&chunk).to_le_bytes();
                chunk.splice(8..12, sum);
                builder.write(&mut bytes, IpNumber::SCTP, &chunk)
            }
        }
        .expect("the description is a packet");
        if let Kind::Udp { checksum: false } = self.kind {
            let at = bytes.len() - payload.len() - 2;
            bytes[at..at + 2].fill(0);
        }
        bytes
    }

    fn headers(&self) -> IpHeaders {
        match self.family {
            Family::V4 => {
                let mut header = Ipv4Header::new(0, self.ttl, IpNumber::UDP, v4(self.source), v4(self.destination))
                    .expect("a short payload");
                header.dscp = (self.tos >> 2).try_into().expect("six bits");
                header.ecn = (self.tos & 3).try_into().expect("two bits");
                header.identification = self.id;
                header.dont_fragment = self.dont_fragment;
                if self.options {
                    // No operation, record route with room for one address, end of options.
                    header.options = Ipv4Options::from([1, 7, 7, 4, 0, 0, 0, 0]);
                }
                IpHeaders::Ipv4(header, Default::default())
            }
            Family::V6 => {
                let header = Ipv6Header {
                    traffic_class: self.tos,
                    flow_label: Ipv6FlowLabel::try_new(u32::from(self.id)).expect("twenty bits"),
                    payload_length: 0,
                    next_header: IpNumber::UDP,
                    hop_limit: self.ttl,
                    source: self.source,
                    destination: self.destination,
                };
                let mut extensions = Ipv6Extensions::default();
                if self.options {
                    let padding = Ipv6RawExtHeader::new_raw(IpNumber::UDP, &[1, 4, 0, 0, 0, 0]).expect("eight bytes");
                    let longer = Ipv6RawExtHeader::new_raw(IpNumber::UDP, &[1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
                        .expect("sixteen bytes");
                    extensions.hop_by_hop_options = Some(padding);
                    extensions.destination_options = Some(longer);
                }
                IpHeaders::Ipv6(header, extensions)
            }
        }
    }

    /// Both ports as parse reports them.
    pub fn ports(&self) -> (u16, u16) {
        match self.kind {
            Kind::Echo { .. } => (self.source_port, self.source_port),
            _ => (self.source_port, self.destination_port),
        }
    }

    /// The end points if this is IPv4.
    pub fn tuple_v4(&self) -> Tuple<[u8; 4]> {
        let (source_port, destination_port) = self.ports();
        Tuple { source: v4(self.source), destination: v4(self.destination), source_port, destination_port }
    }

    /// The end points if this is IPv6.
    pub fn tuple_v6(&self) -> Tuple<[u8; 16]> {
        let (source_port, destination_port) = self.ports();
        Tuple { source: self.source, destination: self.destination, source_port, destination_port }
    }

    /// The same packet with other end points, built anew.
    pub fn with(&self, source: [u8; 16], destination: [u8; 16], source_port: u16, destination_port: u16) -> Spec {
        Spec { source, destination, source_port, destination_port, ..self.clone() }
    }
}

/// Every kind in both families, plain and with options.
pub fn samples() -> Vec<Spec> {
    let kinds = [
        Kind::Tcp { flags: 0x02, options: vec![2, 4, 5, 180, 1, 3, 3, 7] },
        Kind::Tcp { flags: 0x10, options: vec![] },
        Kind::Udp { checksum: true },
        Kind::Echo { request: true, sequence: 7 },
        Kind::Echo { request: false, sequence: 7 },
        Kind::Sctp,
    ];
    let mut all = vec![Spec::new(Family::V4, Kind::Udp { checksum: false })];
    for family in [Family::V4, Family::V6] {
        for kind in &kinds {
            for options in [false, true] {
                all.push(Spec { options, ..Spec::new(family, kind.clone()) });
            }
        }
    }
    all
}

/// TCP options, whole words; the maximum segment size at even and odd places, alone and among others.
fn tcp_options() -> impl Strategy<Value = Vec<u8>> {
    (any::<[u8; 2]>(), 0usize..6).prop_map(|([h, l], which)| match which {
        0 => vec![],
        1 => vec![2, 4, h, l],
        2 => vec![1, 2, 4, h, l, 1, 1, 0],
        3 => vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 2, 4, h, l],
        4 => vec![3, 3, 7, 2, 4, h, l, 0],
        _ => vec![1, 1, 4, 2],
    })
}

/// Ports with the edges of N-097 well represented.
pub fn port() -> impl Strategy<Value = u16> {
    prop_oneof![Just(0), Just(1), Just(1023), Just(0xffff), any::<u16>()]
}

/// Whole packets of all kinds and both families.
pub fn spec() -> impl Strategy<Value = Spec> {
    let kind = prop_oneof![
        (any::<u8>(), tcp_options()).prop_map(|(flags, options)| Kind::Tcp { flags, options }),
        any::<bool>().prop_map(|checksum| Kind::Udp { checksum }),
        (any::<bool>(), any::<u16>()).prop_map(|(request, sequence)| Kind::Echo { request, sequence }),
        Just(Kind::Sctp),
    ];
    let payload = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..80),
        proptest::collection::vec(Just(0u8), 0..40),
        proptest::collection::vec(Just(0xffu8), 0..40),
    ];
    let header = (any::<u8>(), any::<u8>(), any::<u16>(), any::<bool>(), any::<bool>());
    (any::<bool>(), kind, any::<[[u8; 16]; 2]>(), port(), port(), header, payload).prop_map(
        |(v6, kind, [source, destination], source_port, destination_port, header, payload)| {
            let (ttl, tos, id, dont_fragment, options) = header;
            let (family, kind) = match (v6, kind) {
                (true, Kind::Udp { .. }) => (Family::V6, Kind::Udp { checksum: true }),
                (true, kind) => (Family::V6, kind),
                (false, kind) => (Family::V4, kind),
            };
            Spec {
                family,
                kind,
                source,
                destination,
                source_port,
                destination_port,
                ttl,
                tos,
                id,
                dont_fragment,
                options,
                payload,
            }
        },
    )
}
