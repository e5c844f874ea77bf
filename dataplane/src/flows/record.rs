//! What is told of a note: names instead of numbers.
//!
//! Owns the fields of a record and how one looks as a line of JSON; all destinations are given the same record. Names of fields
//! are the NAT ledger's where both have them, and those of Cilium's Hubble (`is_reply`, `verdict`, `drop_reason`) otherwise.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::Serialize;
use tidegate_ledger::{Gap, Kept, Protocol, Subject as Kind};

use super::{Ends, Note, Reason, Subject, Verdict};
use crate::capture::Outcome;
use crate::compile::address_of;
use crate::drops::DropReason;
use crate::family::Family;
use crate::names::Names;
use crate::stage::egress;
use crate::table::route::RouteTarget;
use crate::table::{Tables, unmapped};
use crate::wire::protocol;

/// Names of the TCP control bits, lowest first (RFC 9293 section 3.1).
const TCP_FLAGS: [char; 8] = ['F', 'S', 'R', 'P', 'A', 'U', 'E', 'C'];

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// One packet, chosen among many.
    Sample,
    /// A connection has begun.
    Begin,
    /// A connection has ended.
    End,
}

/// What is told of one packet or connection. What is not known is left out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Flow {
    /// When: of a packet the turn in which it was read.
    pub at: Timestamp,
    /// What happened.
    pub event: Event,
    /// For how many packets this one stands, on average: one in so many is told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampling: Option<u32>,
    /// Number of the worker.
    pub worker: u32,
    /// Device that a packet came in by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Its index in the kernel.
    #[serde(skip)]
    pub ifindex: u32,
    /// `TCP`, `UDP` …, or the IANA number.
    pub protocol: String,
    /// The IANA number.
    #[serde(skip)]
    pub protocol_number: u8,
    /// As packets come in.
    pub source: IpAddr,
    /// Host order; the identifier of ICMP echo.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// As packets come in.
    pub destination: IpAddr,
    /// Host order; the identifier of ICMP echo.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
    /// As they leave by their flow.
    #[serde(flatten)]
    pub translated: Option<Translated>,
    /// Packets that are told of; of a connection those of the side that began it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    /// Bytes of their IP packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Packets of the other side of a connection that has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_packets: Option<u64>,
    /// Bytes of their IP packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_bytes: Option<u64>,
    /// When a connection that has ended began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub began: Option<Timestamp>,
    /// When something of it was seen last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Timestamp>,
    /// Why it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_reason: Option<&'static str>,
    /// The same, for those who count.
    #[serde(skip)]
    pub ended: Option<Reason>,
    /// TCP control bits of a packet, as letters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_flags: Option<String>,
    /// The same as bits.
    #[serde(skip)]
    pub tcp_bits: u8,
    /// DSCP (upper six bits) and ECN (lower two) of a packet.
    #[serde(skip)]
    pub tos: u8,
    /// Whether the packet answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_reply: Option<bool>,
    /// What became of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<&'static str>,
    /// The same, for those who count.
    #[serde(skip)]
    pub end: Option<Verdict>,
    /// Why it was dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop_reason: Option<&'static str>,
    /// `namespace/name` of the Service.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// `namespace/name` of the pod that it comes from.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source_pod: String,
    /// Node of that pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source_node: String,
    /// `namespace/name` of the pod that it goes to.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub destination_pod: String,
    /// Node of that pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub destination_node: String,
    /// The EgressPolicy that a pod leaves by.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub policy: String,
}

/// Addresses and ports that packets leave with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Translated {
    /// Source.
    pub translated_source: IpAddr,
    /// Host order.
    pub translated_source_port: u16,
    /// Destination.
    pub translated_destination: IpAddr,
    /// Host order.
    pub translated_destination_port: u16,
}

/// What the exporter has of its own for every record.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// Number of the worker.
    pub worker: u32,
    /// One packet in so many is told.
    pub sampling: u32,
    /// What to add to a monotonic time for nanoseconds since 1970.
    pub epoch_ns: u64,
}

impl Flow {
    /// What is told of a note.
    pub fn of(note: &Note, names: &Names, origin: &Origin) -> Flow {
        let tables = names.tables();
        let Note { came, left, .. } = note;
        let has_ports = note.protocol != 0 && Protocol::of_number(note.protocol).is_some();
        let port = |port: u16| Some(port).filter(|port| has_ports && *port != 0);
        let place = |end: &([u8; 16], u16)| Place::of(names, &end.0);
        // Of a packet to a VIP the pod is where it is led; of the answer the pod is where it comes from.
        let source = place(&came.source);
        let destination = match place(&left.as_ref().unwrap_or(came).destination) {
            found if found.is_known() => found,
            _ => place(&came.destination),
        };
        let at = |ns: u64| moment(ns.saturating_add(origin.epoch_ns));
        let is_reply = matches!(note.subject, Subject::Packet { is_reply: true, .. });
        let flow = Flow {
            at: at(note.at_ns),
            event: Event::Begin,
            sampling: None,
            worker: origin.worker,
            device: None,
            ifindex: 0,
            protocol: Protocol::of_number(note.protocol)
                .map_or_else(|| note.protocol.to_string(), |known| known.to_string()),
            protocol_number: note.protocol,
            source: address_of(&came.source.0),
            source_port: port(came.source.1),
            destination: address_of(&came.destination.0),
            destination_port: port(came.destination.1),
            translated: left.filter(|left| left != came).map(|left| Translated {
                translated_source: address_of(&left.source.0),
                translated_source_port: left.source.1,
                translated_destination: address_of(&left.destination.0),
                translated_destination_port: left.destination.1,
            }),
            packets: None,
            bytes: None,
            reply_packets: None,
            reply_bytes: None,
            began: None,
            last_seen: None,
            end_reason: None,
            ended: None,
            tcp_flags: None,
            tcp_bits: 0,
            tos: 0,
            is_reply: None,
            verdict: None,
            end: None,
            drop_reason: None,
            service: service(tables, note, is_reply),
            policy: policy(tables, note, is_reply),
            source_pod: source.pod,
            source_node: source.node,
            destination_pod: destination.pod,
            destination_node: destination.node,
        };
        match note.subject {
            Subject::Begun => flow,
            Subject::Packet { outcome, counted, bytes, tcp_flags, tos, device, is_reply } => {
                let end = Verdict::of(outcome, counted);
                let device = tables.devices.row(device);
                Flow {
                    event: Event::Sample,
                    sampling: Some(origin.sampling),
                    device: device.map(|row| row.name.to_string()),
                    ifindex: device.map_or(0, |row| row.ifindex),
                    packets: Some(1),
                    bytes: Some(bytes.into()),
                    tcp_flags: (note.protocol == protocol::TCP).then(|| letters(tcp_flags)),
                    tcp_bits: tcp_flags,
                    tos,
                    is_reply: Some(is_reply),
                    verdict: Some(end.name()),
                    end: Some(end),
                    drop_reason: reason(outcome).map(DropReason::name),
                    ..flow
                }
            }
            Subject::Ended { packets, bytes, begun_ns, seen_ns, reason } => Flow {
                event: Event::End,
                packets: Some(packets[0]),
                bytes: Some(bytes[0]),
                reply_packets: Some(packets[1]),
                reply_bytes: Some(bytes[1]),
                began: Some(at(begun_ns)),
                last_seen: Some(at(seen_ns)),
                end_reason: Some(reason.name()),
                ended: Some(reason),
                ..flow
            },
        }
    }
}

fn reason(outcome: Outcome) -> Option<DropReason> {
    if let Outcome::Dropped(reason) = outcome { Some(reason) } else { None }
}

/// Nanoseconds since 1970 as a point in time.
fn moment(ns: u64) -> Timestamp {
    Timestamp::from_nanosecond(ns.into()).unwrap_or(Timestamp::MAX)
}

fn letters(flags: u8) -> String {
    TCP_FLAGS.iter().enumerate().filter(|(bit, _)| flags >> bit & 1 == 1).map(|(_, letter)| *letter).collect()
}

/// The pod and the node of an address.
#[derive(Default)]
struct Place {
    pod: String,
    node: String,
}

impl Place {
    fn of(names: &Names, address: &[u8; 16]) -> Place {
        if let Some(who) = names.pod(&address_of(address)) {
            return Place { node: who.node.to_owned(), pod: who.pod };
        }
        // The node that the address is behind.
        let tables = names.tables();
        let behind = tables.routes.lookup(address).and_then(|row| match row.target {
            RouteTarget::Tunnel(tunnel) => tables.tunnels.row(tunnel),
            _ => None,
        });
        Place { pod: String::new(), node: behind.map(|row| row.name.to_string()).unwrap_or_default() }
    }

    fn is_known(&self) -> bool {
        !self.pod.is_empty() || !self.node.is_empty()
    }
}

/// The Service: of the flow's endpoint, else of the address that a packet asks for.
fn service(tables: &Tables, note: &Note, is_reply: bool) -> String {
    let by_flow = tables.backends.row(note.backend).filter(|_| !note.is_egress).map(|row| row.service);
    let asked = || {
        let (address, port) = note.came.destination;
        let served = match unmapped(&address) {
            Some(v4) => v4.service(tables, note.protocol, port),
            None => address.service(tables, note.protocol, port),
        };
        served.map(|served| served.service)
    };
    let id = by_flow.or_else(|| if is_reply { None } else { asked() });
    id.and_then(|id| tables.services.row(id)).map(|row| row.name.to_string()).unwrap_or_default()
}

/// The EgressPolicy that decides about a pod's packets with whom it speaks.
fn policy(tables: &Tables, note: &Note, is_reply: bool) -> String {
    if !note.is_egress {
        return String::new();
    }
    let ends = if is_reply { note.left.map(Ends::reversed) } else { Some(note.came) };
    let Some(Ends { source: (pod, _), destination: (to, _) }) = ends else { return String::new() };
    let Some(row) = tables.pods.pod(&pod) else { return String::new() };
    let found = match unmapped(&to) {
        Some(v4) => egress::deciding(tables, row, v4),
        None => egress::deciding(tables, row, to),
    };
    found.and_then(|(_, policy)| policy).map(|policy| policy.name.to_string()).unwrap_or_default()
}

/// What stands in the exporter's files.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// Writing began.
    Start {
        /// When.
        at: Timestamp,
    },
    /// Records were lost.
    Gap {
        /// When writing worked again.
        at: Timestamp,
        /// What is missing.
        gap: Gap,
    },
    /// A packet or a connection.
    Flow(Box<Flow>),
}

impl Kept for Line {
    const PREFIX: &'static str = "flows";
    const IS_INDEXED: bool = false;

    fn at(&self) -> Timestamp {
        match self {
            Line::Start { at } | Line::Gap { at, .. } => *at,
            Line::Flow(flow) => flow.at,
        }
    }

    fn subject(&self) -> Kind<'_> {
        match self {
            Line::Start { .. } => Kind::Start,
            Line::Gap { .. } => Kind::Gap,
            Line::Flow(_) => Kind::Other,
        }
    }

    fn start(at: Timestamp) -> Self {
        Line::Start { at }
    }

    fn gap(at: Timestamp, gap: Gap) -> Self {
        Line::Gap { at, gap }
    }

    fn write(&self, out: &mut Vec<u8>) -> serde_json::Result<()> {
        #[derive(Serialize)]
        struct Lent<'l> {
            at: Timestamp,
            event: &'static str,
            #[serde(flatten)]
            gap: Option<&'l Gap>,
        }
        match self {
            Line::Start { at } => serde_json::to_writer(&mut *out, &Lent { at: *at, event: "start", gap: None })?,
            Line::Gap { at, gap } => serde_json::to_writer(&mut *out, &Lent { at: *at, event: "gap", gap: Some(gap) })?,
            Line::Flow(flow) => serde_json::to_writer(&mut *out, flow)?,
        }
        out.push(b'\n');
        Ok(())
    }
}
