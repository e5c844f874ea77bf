//! Records as IPFIX messages (RFC 7011), and the elements of which they are made (RFC 7012).
//!
//! Owns the templates and the messages; knows no socket. A message has every record whole and fits every path of IPv6
//! (RFC 8200 section 5). Names, for which the registry of IANA has no elements, are strings of an enterprise; what they are is told
//! in-band (RFC 5610). Events of translation are those of RFC 8158.

use std::net::IpAddr;

use jiff::Timestamp;
use tidegate_ledger::{Holding, Record};

use crate::flows::record::{Flow, Translated};
use crate::flows::{Reason, Verdict};

/// Longest message, bytes: what is left of 1280 by the headers of IPv6 and UDP.
pub(super) const MESSAGE_BYTES_MAX: usize = 1232;
/// Longest name in a record, bytes; the rest is left out. Eight of them fit into a message.
const NAME_BYTES_MAX: usize = 127;
const _: () = assert!(HEADER_BYTES + SET_HEADER_BYTES + 121 + 8 * (1 + NAME_BYTES_MAX) <= MESSAGE_BYTES_MAX, "of IPv6");
/// Bytes of a message's header (RFC 7011 section 3.1).
const HEADER_BYTES: usize = 16;
/// Bytes of a set's header (section 3.3.2).
const SET_HEADER_BYTES: usize = 4;
/// Sets of templates, and of templates of options (section 3.3.2).
const TEMPLATES: u16 = 2;
const OPTIONS_TEMPLATES: u16 = 3;
/// Length of what has a length of its own (section 7).
const VARIABLE: u16 = 65_535;
/// Bit of an element that is an enterprise's (section 3.2).
const OF_ENTERPRISE: u16 = 0x8000;
/// Number of the one selector there is: the workers' sampling (RFC 5476).
const SELECTOR: u64 = 1;
/// Random n-out-of-N sampling (selectorAlgorithm of RFC 5477): one of so many.
const RANDOM_N_OUT_OF_N: u16 = 3;
/// The data type of strings (RFC 5610).
const STRING: u8 = 13;

/// Names as elements of the enterprise: number, name, what it is.
const NAMES: [(u16, &str, &str); 8] = [
    (1, "serviceName", "namespace/name of the Kubernetes Service"),
    (2, "sourcePodName", "namespace/name of the pod that the packet comes from"),
    (3, "sourceNodeName", "Node of that pod"),
    (4, "destinationPodName", "namespace/name of the pod that the packet is led to"),
    (5, "destinationNodeName", "Node of that pod"),
    (6, "egressPolicyName", "EgressPolicy that the pod leaves by"),
    (7, "verdict", "What became of the packet"),
    (8, "dropReason", "Why the packet was dropped"),
];

/// Private enterprise number of elements about the reverse direction (RFC 5103 section 6.1).
const REVERSE: u32 = 29_305;

/// A template: its number, and elements of IANA with their lengths; then elements of the enterprise.
struct Template {
    id: u16,
    elements: &'static [(u16, u16)],
    /// Elements of IANA about the reverse direction, with their lengths; after the others.
    reverse: &'static [(u16, u16)],
    names: &'static [u16],
}

const SAMPLE_V4: Template = Template {
    id: 256,
    elements: &[
        (152, 8), // flowStartMilliseconds
        (153, 8), // flowEndMilliseconds
        (8, 4),   // sourceIPv4Address
        (12, 4),  // destinationIPv4Address
        (225, 4), // postNATSourceIPv4Address
        (226, 4), // postNATDestinationIPv4Address
        (7, 2),   // sourceTransportPort
        (11, 2),  // destinationTransportPort
        (227, 2), // postNAPTSourceTransportPort
        (228, 2), // postNAPTDestinationTransportPort
        (4, 1),   // protocolIdentifier
        (5, 1),   // ipClassOfService
        (6, 2),   // tcpControlBits
        (89, 1),  // forwardingStatus
        (10, 4),  // ingressInterface
        (2, 8),   // packetDeltaCount
        (1, 8),   // octetDeltaCount
        (302, 8), // selectorId
    ],
    reverse: &[],
    names: &[1, 2, 3, 4, 5, 6, 7, 8],
};
const SAMPLE_V6: Template = Template {
    id: 257,
    elements: &[
        (152, 8),
        (153, 8),
        (27, 16),  // sourceIPv6Address
        (28, 16),  // destinationIPv6Address
        (281, 16), // postNATSourceIPv6Address
        (282, 16), // postNATDestinationIPv6Address
        (7, 2),
        (11, 2),
        (227, 2),
        (228, 2),
        (4, 1),
        (5, 1),
        (6, 2),
        (89, 1),
        (10, 4),
        (2, 8),
        (1, 8),
        (302, 8),
    ],
    reverse: &[],
    names: SAMPLE_V4.names,
};
/// Of RFC 8158: a session, or a binding, whose destination is zero.
const NAT_V4: Template = Template {
    id: 258,
    elements: &[
        (323, 8), // observationTimeMilliseconds
        (8, 4),
        (225, 4),
        (12, 4),
        (7, 2),
        (227, 2),
        (11, 2),
        (4, 1),
        (230, 1), // natEvent
    ],
    reverse: &[],
    names: &[2, 3, 6],
};
const NAT_V6: Template = Template {
    id: 259,
    elements: &[(323, 8), (27, 16), (281, 16), (28, 16), (7, 2), (227, 2), (11, 2), (4, 1), (230, 1)],
    reverse: &[],
    names: NAT_V4.names,
};
/// Connections: what the side sent that began it, and by elements of the reverse direction (RFC 5103) what the other one did.
const CONNECTION_V4: Template = Template {
    id: 262,
    elements: &[
        (152, 8),
        (153, 8),
        (8, 4),
        (12, 4),
        (225, 4),
        (226, 4),
        (7, 2),
        (11, 2),
        (227, 2),
        (228, 2),
        (4, 1),
        (233, 1), // firewallEvent
        (136, 1), // flowEndReason
        (2, 8),
        (1, 8),
    ],
    reverse: &[(2, 8), (1, 8)],
    names: &[1, 2, 3, 4, 5, 6],
};
const CONNECTION_V6: Template = Template {
    id: 263,
    elements: &[
        (152, 8),
        (153, 8),
        (27, 16),
        (28, 16),
        (281, 16),
        (282, 16),
        (7, 2),
        (11, 2),
        (227, 2),
        (228, 2),
        (4, 1),
        (233, 1),
        (136, 1),
        (2, 8),
        (1, 8),
    ],
    reverse: CONNECTION_V4.reverse,
    names: CONNECTION_V4.names,
};
const ALL: [&Template; 6] = [&SAMPLE_V4, &SAMPLE_V6, &NAT_V4, &NAT_V6, &CONNECTION_V4, &CONNECTION_V6];

/// Templates of options: number, how many of the elements are the scope, elements.
type Options = (u16, u16, &'static [(u16, u16)]);
/// How packets are chosen: selectorId; selectorAlgorithm, samplingSize, samplingPopulation, and the same for those who know the
/// systematic way alone: samplingPacketInterval, samplingPacketSpace.
const SELECTION: Options = (260, 1, &[(302, 8), (304, 2), (309, 4), (310, 4), (305, 4), (306, 4)]);
/// What an enterprise's element is (RFC 5610): privateEnterpriseNumber, informationElementId; its data type, name,
/// description.
const TYPES: Options = (261, 2, &[(346, 4), (303, 2), (339, 1), (341, VARIABLE), (340, VARIABLE)]);

/// What natEvent says (IANA's registry; RFC 8158).
fn nat_event(holding: &Holding, begins: bool) -> u8 {
    let first = match (holding.external, holding.remote) {
        (IpAddr::V4(_), Some(_)) => 4, // NAT44 session create
        (IpAddr::V4(_), None) => 8,    // NAT44 BIB create
        (IpAddr::V6(_), _) => 1,       // NAT translation create: IPv6 to IPv6 has no name of its own
    };
    first + u8::from(!begins)
}

/// Makes messages of one stream.
pub(super) struct Encoder {
    domain: u32,
    enterprise: u32,
    sampling: u32,
    /// Data records of earlier messages, modulo 2^32.
    sequence: u32,
    /// Records that wait, by place in [`ALL`].
    sets: [Vec<u8>; ALL.len()],
    waiting: u32,
}

impl Encoder {
    pub(super) fn new(domain: u32, enterprise: u32, sampling: u32) -> Encoder {
        Encoder { domain, enterprise, sampling, sequence: 0, sets: Default::default(), waiting: 0 }
    }

    /// Adds the record of a packet or connection; a message that has to go first, with how many records it has.
    pub(super) fn flow(&mut self, flow: &Flow) -> Option<(Vec<u8>, u64)> {
        let mut out = Vec::new();
        let times = [flow.began.unwrap_or(flow.at), flow.last_seen.unwrap_or(flow.at)].map(milliseconds);
        let left = flow.translated.unwrap_or(Translated {
            translated_source: flow.source,
            translated_source_port: flow.source_port.unwrap_or_default(),
            translated_destination: flow.destination,
            translated_destination_port: flow.destination_port.unwrap_or_default(),
        });
        out.extend(times.iter().flat_map(|at| at.to_be_bytes()));
        for address in [flow.source, flow.destination, left.translated_source, left.translated_destination] {
            put_address(&mut out, address);
        }
        let ports = [
            flow.source_port.unwrap_or_default(),
            flow.destination_port.unwrap_or_default(),
            left.translated_source_port,
            left.translated_destination_port,
        ];
        out.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
        out.push(flow.protocol_number);
        let counted = [flow.packets, flow.bytes].map(Option::unwrap_or_default);
        let first = if let Some(end) = flow.end {
            out.push(flow.tos);
            out.extend(u16::from(flow.tcp_bits).to_be_bytes());
            // RFC 7270 section 4.12: the upper two bits say so much, the others why.
            out.push(match end {
                Verdict::Forwarded => 1 << 6,
                Verdict::Dropped => 2 << 6,
                Verdict::Answered | Verdict::Consumed => 3 << 6,
                Verdict::Held => 0,
            });
            out.extend(flow.ifindex.to_be_bytes());
            out.extend(counted.iter().chain(&[SELECTOR]).flat_map(|number| number.to_be_bytes()));
            0
        } else {
            // Created, deleted; idle timeout, end detected, forced end (IANA's registry).
            out.push(if flow.ended.is_some() { 2 } else { 1 });
            out.push(match flow.ended {
                None => 0,
                Some(Reason::Idle) => 1,
                Some(Reason::Closed) => 3,
                Some(Reason::Replaced) => 4,
            });
            let back = [flow.reply_packets, flow.reply_bytes].map(Option::unwrap_or_default);
            out.extend(counted.iter().chain(&back).flat_map(|number| number.to_be_bytes()));
            4
        };
        let names: [&str; 6] = [
            &flow.service,
            &flow.source_pod,
            &flow.source_node,
            &flow.destination_pod,
            &flow.destination_node,
            &flow.policy,
        ];
        names.iter().for_each(|name| put_name(&mut out, name));
        if let Some(verdict) = flow.verdict {
            put_name(&mut out, verdict);
            put_name(&mut out, flow.drop_reason.unwrap_or_default());
        }
        self.add(first + usize::from(flow.source.is_ipv6()), &out, flow.at)
    }

    /// Adds the record of a port that was handed out or taken back; of another nothing.
    pub(super) fn port(&mut self, record: &Record) -> Option<(Vec<u8>, u64)> {
        let (at, holding, begins) = match record {
            Record::Begin { at, holding } => (*at, holding, true),
            Record::End { at, holding } => (*at, holding, false),
            Record::Start { .. } | Record::Gap { .. } => return None,
        };
        let nobody = match holding.external {
            IpAddr::V4(_) => IpAddr::from([0u8; 4]),
            IpAddr::V6(_) => IpAddr::from([0u8; 16]),
        };
        let mut out = Vec::new();
        out.extend(milliseconds(at).to_be_bytes());
        let remote = holding.remote.map_or((nobody, 0), |remote| (remote.ip(), remote.port()));
        for address in [holding.internal, holding.external, remote.0] {
            put_address(&mut out, address);
        }
        let ports = [holding.internal_port.unwrap_or_default(), holding.ports.0, remote.1];
        out.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
        out.extend([holding.protocol.number(), nat_event(holding, begins)]);
        [&holding.pod, &holding.node, &holding.policy].iter().for_each(|name| put_name(&mut out, name));
        self.add(2 + usize::from(holding.external.is_ipv6()), &out, at)
    }

    fn add(&mut self, place: usize, record: &[u8], now: Timestamp) -> Option<(Vec<u8>, u64)> {
        let sets = self.sets.iter().enumerate().filter(|(at, set)| *at == place || !set.is_empty());
        let length: usize = sets.map(|(_, set)| SET_HEADER_BYTES + set.len()).sum();
        let full = HEADER_BYTES + length + record.len() > MESSAGE_BYTES_MAX;
        let message = if full { self.message(now) } else { None };
        self.sets[place].extend_from_slice(record);
        self.waiting += 1;
        message
    }

    /// What waits, as a message, with how many records it has.
    pub(super) fn message(&mut self, now: Timestamp) -> Option<(Vec<u8>, u64)> {
        let records = std::mem::take(&mut self.waiting);
        if records == 0 {
            return None;
        }
        let mut body = Vec::new();
        for (template, set) in ALL.iter().zip(&mut self.sets).filter(|(_, set)| !set.is_empty()) {
            put_set(&mut body, template.id, set);
            set.clear();
        }
        Some((self.framed(&body, records, now), records.into()))
    }

    /// Messages of the templates, and of what they mean: to be said again and again, since nobody says that he has heard
    /// (RFC 7011 section 8.4).
    pub(super) fn templates(&mut self, now: Timestamp) -> [Vec<u8>; 2] {
        let mut templates = Vec::new();
        for template in ALL {
            let count = template.elements.len() + template.reverse.len() + template.names.len();
            put_u16s(&mut templates, &[template.id, u16::try_from(count).unwrap_or_default()]);
            template.elements.iter().for_each(|(id, length)| put_u16s(&mut templates, &[*id, *length]));
            for (id, length) in template.reverse {
                put_u16s(&mut templates, &[OF_ENTERPRISE | id, *length]);
                templates.extend(REVERSE.to_be_bytes());
            }
            for id in template.names {
                put_u16s(&mut templates, &[OF_ENTERPRISE | id, VARIABLE]);
                templates.extend(self.enterprise.to_be_bytes());
            }
        }
        let mut options = Vec::new();
        for (id, scope, elements) in [SELECTION, TYPES] {
            put_u16s(&mut options, &[id, u16::try_from(elements.len()).unwrap_or_default(), scope]);
            elements.iter().for_each(|(id, length)| put_u16s(&mut options, &[*id, *length]));
        }
        let mut said = Vec::new();
        put_set(&mut said, TEMPLATES, &templates);
        put_set(&mut said, OPTIONS_TEMPLATES, &options);
        let said = self.framed(&said, 0, now);

        let mut selection = SELECTOR.to_be_bytes().to_vec();
        selection.extend(RANDOM_N_OUT_OF_N.to_be_bytes());
        let sampling = self.sampling.max(1);
        selection.extend([1, sampling, 1, sampling - 1].iter().flat_map(|number: &u32| number.to_be_bytes()));
        let mut types = Vec::new();
        for (id, name, what) in NAMES {
            types.extend(self.enterprise.to_be_bytes());
            types.extend(id.to_be_bytes());
            types.push(STRING);
            put_name(&mut types, name);
            put_name(&mut types, what);
        }
        let mut meant = Vec::new();
        put_set(&mut meant, SELECTION.0, &selection);
        put_set(&mut meant, TYPES.0, &types);
        let records = 1 + u32::try_from(NAMES.len()).unwrap_or_default();
        [said, self.framed(&meant, records, now)]
    }

    /// A message with so many data records.
    fn framed(&mut self, body: &[u8], records: u32, now: Timestamp) -> Vec<u8> {
        let length = u16::try_from(HEADER_BYTES + body.len()).unwrap_or(u16::MAX);
        let seconds = u32::try_from(now.as_second()).unwrap_or_default();
        let mut message = Vec::with_capacity(length.into());
        put_u16s(&mut message, &[10, length]);
        message.extend([seconds, self.sequence, self.domain].iter().flat_map(|number| number.to_be_bytes()));
        message.extend_from_slice(body);
        self.sequence = self.sequence.wrapping_add(records);
        message
    }
}

fn milliseconds(at: Timestamp) -> u64 {
    u64::try_from(at.as_millisecond()).unwrap_or_default()
}

fn put_u16s(out: &mut Vec<u8>, numbers: &[u16]) {
    out.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
}

fn put_set(out: &mut Vec<u8>, id: u16, records: &[u8]) {
    put_u16s(out, &[id, u16::try_from(SET_HEADER_BYTES + records.len()).unwrap_or(u16::MAX)]);
    out.extend_from_slice(records);
}

fn put_address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => out.extend(v4.octets()),
        IpAddr::V6(v6) => out.extend(v6.octets()),
    }
}

/// A string with its length, no more of it than there is room for.
fn put_name(out: &mut Vec<u8>, name: &str) {
    let longest = name.len().min(NAME_BYTES_MAX);
    let kept = (0..=longest).rev().find_map(|end| name.get(..end)).unwrap_or_default();
    out.push(u8::try_from(kept.len()).unwrap_or_default());
    out.extend_from_slice(kept.as_bytes());
}

#[cfg(test)]
mod tests;
