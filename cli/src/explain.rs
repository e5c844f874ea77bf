//! `tidegate explain`: what would become of a packet, and why.
//!
//! Owns how a packet is described on the command line and how the answer reads. The packet itself is put together by
//! etherparse, or read from hexadecimal digits or a capture file; the dataplane says the rest.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use etherparse::{IpNumber, PacketBuilder, PacketBuilderStep};
use tidegate_api::client::{Client, ClientError};
use tidegate_api::explain::{Explanation, Question, Reason, Step, Verdict};

use crate::args::{ExplainArguments, ExplainProtocol};
use crate::columns::printable;
use crate::trouble;
use recorded::{CAPTURE_BYTES_MAX, Captured, captured};
use saved::Saved;

/// Packets of capture files.
mod recorded;
/// A dataplane without devices, about saved objects.
mod saved;

/// Longest wait for the answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A worker carries counts of its flows to their backends within so many seconds.
const COUNTED_S: u32 = 4;
/// Widest label of a line, and a blank.
const LABEL_WIDTH: usize = 11;
/// Largest payload that is put into a packet, bytes.
const PAYLOAD_MAX: usize = 9000;

/// Asks the dataplane at `socket` and returns the text to print, or the answer as JSON.
///
/// # Errors
/// When the packet cannot be put together or read, no answer comes, or the dataplane cannot tell where such a packet would
/// come from.
pub fn run(socket: &Path, arguments: &ExplainArguments, as_json: bool) -> anyhow::Result<String> {
    let asked = question(arguments)?;
    let saved = match &arguments.state {
        Some(state) => Some(Saved::start(state, &arguments.config)?),
        None => None,
    };
    let socket = saved.as_ref().map_or(socket, Saved::socket);
    let told = |error| anyhow!(trouble::explain(&error, socket));
    let mut client = Client::connect(socket, concat!("tidegate ", env!("CARGO_PKG_VERSION"))).map_err(told)?;
    client.set_timeout(Some(ANSWER_TIMEOUT)).context("setting the time limit")?;
    let note = asked.note.clone();
    let of_state = saved.iter().map(|saved| saved.note().to_owned()).find(|note| !note.is_empty());
    let mut explanation = asked.of(&mut client).map_err(|error| match &of_state {
        // The reason may lie in what the answer rests on.
        Some(note) => anyhow!("{}\ntidegate: {note}", trouble::explain(&error, socket)),
        None => told(error),
    })?;
    if saved.is_some() {
        // Nobody works there.
        explanation.steps.retain(|step| !matches!(step, Step::Owned { .. }));
    }
    let notes = note.into_iter().chain(of_state);
    if as_json {
        notes.for_each(|note| eprintln!("tidegate: {note}"));
        return Ok(serde_json::to_string_pretty(&explanation).context("writing JSON")? + "\n");
    }
    let notes: String = notes.map(|note| format!("{:LABEL_WIDTH$}{}\n", "note", printable(&note))).collect();
    Ok(notes + &text(&explanation))
}

/// The question that a command line asks.
///
/// # Errors
/// What is wrong with the description of the packet.
pub fn question(arguments: &ExplainArguments) -> anyhow::Result<Asked> {
    let bare = |bytes, is_frame| Captured { bytes, is_frame, ..Captured::default() };
    let Captured { bytes, is_frame, device, recorded_by, note } = match (&arguments.hex, &arguments.pcap) {
        (Some(hex), _) => bare(digits(hex)?, !arguments.ip),
        (None, Some(file)) => captured(file, arguments.number, CAPTURE_BYTES_MAX)?,
        (None, None) => bare(described(arguments)?, false),
    };
    let question =
        Question { device: arguments.device.clone().or(device), node: arguments.node.clone(), is_frame, bytes };
    let or_by = recorded_by.filter(|_| arguments.device.is_none());
    Ok(Asked { question, or_by, note })
}

/// What a command line asks.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The question.
    pub question: Question,
    /// The device of the question, if the dataplane finds none by itself: of that name it was somewhere.
    pub or_by: Option<String>,
    /// What is to be known of the packet beside the answer.
    pub note: Option<String>,
}

impl Asked {
    /// Asks.
    fn of(self, client: &mut Client) -> Result<Explanation, ClientError> {
        let Asked { question, or_by, .. } = self;
        match (client.explain(question.clone()), or_by) {
            (Err(ClientError::Refused(why)), Some(device)) => {
                let again = client.explain(Question { device: Some(device), ..question });
                again.map_err(|_| ClientError::Refused(why))
            }
            (answer, _) => answer,
        }
    }
}

/// Bytes from hexadecimal digits; blanks, colons and line feeds between them do not count.
fn digits(text: &str) -> anyhow::Result<Vec<u8>> {
    let digits: Vec<char> = text.chars().filter(|digit| !digit.is_whitespace() && *digit != ':').collect();
    let nibble = |digit: char| digit.to_digit(16).ok_or_else(|| anyhow!("{digit:?} is no hexadecimal digit"));
    if digits.len() % 2 == 1 {
        bail!("--hex has an odd number of digits");
    }
    let byte = |pair: &[char]| {
        let (high, low) = (nibble(pair[0])?, nibble(pair[1])?);
        Ok(u8::try_from(high << 4 | low)?)
    };
    digits.chunks_exact(2).map(byte).collect()
}

/// The packet that protocol, ends and options describe.
fn described(arguments: &ExplainArguments) -> anyhow::Result<Vec<u8>> {
    let (Some(protocol), Some(from), Some(to)) = (arguments.protocol, &arguments.from, &arguments.to) else {
        bail!("name a protocol and both ends, like `tcp 192.0.2.7:40000 203.0.113.10:80`, or --hex or --pcap");
    };
    if arguments.payload > PAYLOAD_MAX {
        bail!("--payload {} is more than {PAYLOAD_MAX} bytes, the most that there may be", arguments.payload);
    }
    let payload = vec![0; arguments.payload];
    if protocol == ExplainProtocol::Icmp {
        let (from, to) = (address(from)?, address(to)?);
        let begun = begun(from, to, arguments.ttl)?;
        return written(
            match from {
                IpAddr::V4(_) => Built::Icmp4(begun.icmpv4_echo_request(1, 1)),
                IpAddr::V6(_) => Built::Icmp6(begun.icmpv6_echo_request(1, 1)),
            },
            &payload,
        );
    }
    let (from, to) = (end(from)?, end(to)?);
    let begun = begun(from.ip(), to.ip(), arguments.ttl)?;
    if protocol == ExplainProtocol::Udp {
        return written(Built::Udp(begun.udp(from.port(), to.port())), &payload);
    }
    if protocol == ExplainProtocol::Sctp {
        let segment = sctp(from.port(), to.port(), &arguments.flags, &payload)?;
        return written(Built::Sctp(begun), &segment);
    }
    let mut segment = begun.tcp(from.port(), to.port(), 1, 65_000);
    for flag in arguments.flags.chars() {
        segment = match flag.to_ascii_uppercase() {
            'S' => segment.syn(),
            'A' => segment.ack(1),
            'F' => segment.fin(),
            'R' => segment.rst(),
            'P' => segment.psh(),
            other => bail!("{other:?} is no TCP flag; S, A, F, R and P are"),
        };
    }
    written(Built::Tcp(segment), &payload)
}

/// An SCTP packet with one chunk (RFC 9260 section 3), which `flags` names by what TCP would say: INIT opens, DATA goes on,
/// SHUTDOWN ends and ABORT resets.
fn sctp(from: u16, to: u16, flags: &str, payload: &[u8]) -> anyhow::Result<Vec<u8>> {
    // Type, flags, verification tag and value; the initiate tag or transmission sequence number first.
    let (kind, bits, tag, mut value): (u8, u8, u32, Vec<u8>) = match flags.to_ascii_uppercase().as_str() {
        "S" => (1, 0, 0, vec![0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]),
        // Begin and end of a message, stream 0, with no payload protocol.
        "A" | "PA" | "AP" => (0, 3, 1, vec![0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
        "F" | "FA" | "AF" => (7, 0, 1, vec![0, 0, 0, 1]),
        "R" => (6, 0, 1, Vec::new()),
        other => bail!("--flags {other:?} is no chunk of SCTP: S is INIT, A DATA, F SHUTDOWN, R ABORT"),
    };
    if kind == 0 {
        value.extend_from_slice(payload);
    } else if !payload.is_empty() {
        bail!("--payload is for DATA: with sctp name --flags A too");
    }
    let length = u16::try_from(4 + value.len())?;
    let mut packet = [from.to_be_bytes(), to.to_be_bytes()].concat();
    packet.extend(tag.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend([kind, bits]);
    packet.extend(length.to_be_bytes());
    packet.extend(value);
    packet.resize(packet.len().next_multiple_of(4), 0);
    // Least significant byte first (section 6.8, appendix A).
    let sum = crc32c::crc32c(&packet).to_le_bytes();
    packet.get_mut(8..12).context("an SCTP header")?.copy_from_slice(&sum);
    Ok(packet)
}

/// A packet of one of the kinds that can be described.
enum Built {
    Sctp(PacketBuilderStep<etherparse::IpHeaders>),
    Tcp(PacketBuilderStep<etherparse::TcpHeader>),
    Udp(PacketBuilderStep<etherparse::UdpHeader>),
    Icmp4(PacketBuilderStep<etherparse::Icmpv4Header>),
    Icmp6(PacketBuilderStep<etherparse::Icmpv6Header>),
}

fn written(built: Built, payload: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match built {
        Built::Sctp(step) => step.write(&mut bytes, IpNumber::SCTP, payload)?,
        Built::Tcp(step) => step.write(&mut bytes, payload)?,
        Built::Udp(step) => step.write(&mut bytes, payload)?,
        Built::Icmp4(step) => step.write(&mut bytes, payload)?,
        Built::Icmp6(step) => step.write(&mut bytes, payload)?,
    }
    Ok(bytes)
}

fn begun(from: IpAddr, to: IpAddr, ttl: u8) -> anyhow::Result<PacketBuilderStep<etherparse::IpHeaders>> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => Ok(PacketBuilder::ipv4(from.octets(), to.octets(), ttl)),
        (IpAddr::V6(from), IpAddr::V6(to)) => Ok(PacketBuilder::ipv6(from.octets(), to.octets(), ttl)),
        _ => bail!("both ends need addresses of the same family"),
    }
}

fn end(text: &str) -> anyhow::Result<SocketAddr> {
    text.parse().map_err(|_| anyhow!("{text:?} is no address with a port, like 192.0.2.7:40000 or [2001:db8::7]:40000"))
}

fn address(text: &str) -> anyhow::Result<IpAddr> {
    text.parse().map_err(|_| anyhow!("{text:?} is no address; ICMP has no ports"))
}

/// The answer for people: a line for every step, the verdict last.
pub fn text(explanation: &Explanation) -> String {
    let mut out = String::new();
    for step in &explanation.steps {
        let (label, told) = line(step);
        out.push_str(&format!("{label:LABEL_WIDTH$}{}\n", printable(&told)));
    }
    for (label, told) in verdict(&explanation.verdict) {
        out.push_str(&format!("{label:LABEL_WIDTH$}{}\n", printable(&told)));
    }
    out
}

fn line(step: &Step) -> (&'static str, String) {
    match step {
        Step::Received { device, bytes } => ("received", format!("by {device}, {bytes} bytes")),
        Step::Decapsulated { node, underlay, vni } => {
            ("decap", format!("VXLAN from node {node} ({underlay}), network {vni}"))
        }
        Step::Packet { protocol, source, source_port, destination, destination_port, bytes, ttl, fragment } => {
            let pair = |address: &IpAddr, port: &Option<u16>| match port {
                Some(port) => SocketAddr::new(*address, *port).to_string(),
                None => address.to_string(),
            };
            let (from, to) = (pair(source, source_port), pair(destination, destination_port));
            let fragment = if *fragment { ", a fragment" } else { "" };
            let (protocol, ttl_name) = (protocol_name(*protocol), if source.is_ipv4() { "TTL" } else { "hop limit" });
            ("packet", format!("{protocol} {from} -> {to}, {bytes} bytes, {ttl_name} {ttl}{fragment}"))
        }
        Step::Differs { what, tables, packet } => {
            ("differs", format!("{what}: tables have {tables}, the packet carries {packet}"))
        }
        Step::Lacks { what, found, needed } => ("lacks", format!("{what}: {found}; needed: {needed}")),
        Step::Arp => ("packet", "ARP".to_owned()),
        Step::Owned { worker, workers } => ("owner", format!("worker {worker} of {workers}")),
        Step::Flow { original, egress, state, client, vip, source, backend, idle_s, packets } => {
            let way = if *original { "the way of its first packet" } else { "the way back" };
            let (there, back) = packets;
            let ends = match egress {
                true => format!("pod {client} -> {vip}, seen as {source}"),
                false => format!("{client} -> {vip} as {source} -> {backend}"),
            };
            let told = format!(
                "known, {way}: {ends}, {state}, idle {idle_s} s, in the last {COUNTED_S} s {there} packets and {back} back"
            );
            ("flow", told)
        }
        Step::NoFlow => ("flow", "none is known".to_owned()),
        Step::Revalidated => ("flow", "something it depends on has changed: all is looked at again".to_owned()),
        Step::Service { service, port, kind, mode, scheduler, endpoints, affinity_s, is_remembered } => {
            let port = if *port == 0 { "every port".to_owned() } else { format!("port {port}") };
            let scheduler = serde_json::to_value(scheduler).ok();
            let scheduler = scheduler.as_ref().and_then(serde_json::Value::as_str).unwrap_or("?").to_owned();
            let affinity = match (affinity_s, is_remembered) {
                (0, _) => String::new(),
                (_, true) => format!(", session affinity of {affinity_s} s: this client's endpoint is remembered"),
                (_, false) => format!(", session affinity of {affinity_s} s: none is remembered of this client"),
            };
            let told = format!(
                "{service} {port} by its {} address, {mode}, {scheduler} among {endpoints} endpoints{affinity}",
                kind_name(kind)
            );
            ("service", told)
        }
        Step::Egress { pod, policies, policy, address } => {
            ("egress", egress(*pod, policies, policy.as_deref(), *address))
        }
        Step::External { address, policies } if policies.is_empty() => {
            ("external", format!("{address} is an address of a StaticNat"))
        }
        Step::External { address, policies } => {
            ("external", format!("{address} is an address of EgressPolicy {}", policies.join(", ")))
        }
        Step::Binding { sort, policy, static_nat, internal, external, block, is_new } => {
            let by = match (policy.as_str(), static_nat.as_str()) {
                ("", "") => "an object that is no more".to_owned(),
                ("", name) => format!("StaticNat {name}"),
                (name, _) => format!("EgressPolicy {name}"),
            };
            let block = block.map(|(first, last)| format!(", of ports {first}-{last}")).unwrap_or_default();
            let (sort, new) = (sort_name(sort), if *is_new { ", new" } else { "" });
            ("binding", format!("{internal} is seen as {external}{block}, {sort} by {by}{new}"))
        }
        Step::Backend { address, port, node, pod } => {
            let of = |what: &str, name: &str| if name.is_empty() { String::new() } else { format!(", {what} {name}") };
            match port {
                0 => ("backend", format!("node {node} ({address}) picks the pod")),
                _ => {
                    let at = SocketAddr::new(*address, *port);
                    ("backend", format!("{at}{}{}", of("pod", pod), of("node", node)))
                }
            }
        }
        Step::Policy { direction, policy, rule, allowed, .. } => {
            let told = if *allowed { "allowed" } else { "denied" };
            let by = match (policy.as_str(), rule) {
                ("", _) => "no policy decides".to_owned(),
                (policy, None) if policy.starts_with("unknownPod") => {
                    format!("the pod is not known, and {policy} stands")
                }
                (policy, Some(rule)) => format!("by rule {rule} of {policy}"),
                (policy, None) if *allowed => format!("{policy} isolates the pod, which still reaches itself"),
                (policy, None) => format!("{policy} isolates the pod and no rule accepts"),
            };
            ("policy", format!("{direction} {told}: {by}"))
        }
        Step::Translated { source, destination } => ("rewrite", format!("{source} -> {destination}")),
        Step::TakenBack => ("back in", "as if from the wire: it is to another pod's external address".to_owned()),
        Step::Encapsulated { node, underlay, mac, vni, mtu } => (
            "encap",
            format!("VXLAN to node {node} ({underlay}), VTEP {mac}, network {vni}, packets up to {mtu} bytes"),
        ),
        Step::NextHop { device, address, mac, mtu } => {
            let mac = mac.map_or_else(|| "not resolved yet".to_owned(), |mac| mac.to_string());
            ("next hop", format!("{address} ({mac}) on {device}, packets up to {mtu} bytes"))
        }
    }
}

fn verdict(verdict: &Verdict) -> Vec<(&'static str, String)> {
    let why = |reason: &Reason| ("why", format!("{} ({}): {}", reason.reason, reason.severity, reason.help));
    match verdict {
        Verdict::Sent { device, in_fragments: false } => vec![("verdict", format!("SENT by {device}"))],
        Verdict::Sent { device, in_fragments: true } => vec![("verdict", format!("SENT by {device} in fragments"))],
        Verdict::Waits { device, address } => {
            vec![("verdict", format!("WAITS until {address} answers on {device}, else it is dropped"))]
        }
        Verdict::Returns => {
            vec![("verdict", "RETURNS as if from the wire: it is to another pod's external address".to_owned())]
        }
        Verdict::Answered { with, reason } => {
            let mut lines = vec![("verdict", format!("ANSWERED with {with}"))];
            lines.extend(reason.as_ref().map(why));
            lines
        }
        Verdict::Followed => {
            let told =
                "FOLLOWED: it goes where the first fragment of its datagram goes, and is held until that has come";
            vec![("verdict", told.to_owned())]
        }
        Verdict::Kernel { why } => vec![("verdict", "TO THE KERNEL of this machine".to_owned()), ("why", why.clone())],
        Verdict::Dropped(reason) => vec![("verdict", format!("DROPPED by stage {}", reason.stage)), why(reason)],
    }
}

/// Whose packet it is, and which address it is to leave with.
fn egress(pod: IpAddr, policies: &[String], policy: Option<&str>, address: Option<IpAddr>) -> String {
    match (policies, policy, address) {
        (_, None, Some(own)) => format!("pod {pod} by its own address {own} (StaticNat)"),
        (_, Some(""), _) => {
            format!("pod {pod} by an EgressPolicy that is not in force here, so that it has no address")
        }
        (known, Some(policy), _) if !known.iter().any(|name| name == policy) => format!(
            "pod {pod} by EgressPolicy {policy}, which selects it and is not in force: it is invalid, or was not taken; its \
             status and control's problems say why"
        ),
        (_, Some(policy), Some(address)) => format!("pod {pod} by EgressPolicy {policy} with its address {address}"),
        (_, Some(policy), None) => format!(
            "pod {pod} by EgressPolicy {policy}, which has no {} address here",
            if pod.is_ipv4() { "IPv4" } else { "IPv6" }
        ),
        ([], None, None) => format!("pod {pod}, which no EgressPolicy selects"),
        (names, None, None) => format!("pod {pod} by EgressPolicy {}: not for this destination", names.join(", ")),
    }
}

fn sort_name(sort: &str) -> &str {
    match sort {
        "endpoint-independent" => "the same to everybody (endpoint-independent)",
        "address-and-port-dependent" => "to this destination (address- and port-dependent)",
        "one-to-one" => "1:1",
        "forwarded-port" => "a forwarded port",
        "whole-protocol" => "this protocol with this remote",
        other => other,
    }
}

fn kind_name(kind: &str) -> &str {
    match kind {
        "vip" => "load balancer",
        other => other,
    }
}

fn protocol_name(number: u8) -> String {
    match IpNumber(number) {
        IpNumber::TCP => "TCP".to_owned(),
        IpNumber::UDP => "UDP".to_owned(),
        IpNumber::ICMP => "ICMP".to_owned(),
        IpNumber::IPV6_ICMP => "ICMPv6".to_owned(),
        IpNumber::SCTP => "SCTP".to_owned(),
        IpNumber(other) => format!("protocol {other}"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Arguments, Command};

    fn asked(line: &str) -> anyhow::Result<Question> {
        let arguments = Arguments::try_parse_from(line.split_whitespace())?;
        let Command::Explain(explain) = arguments.command else { panic!("{line}") };
        question(&explain).map(|asked| asked.question)
    }

    #[test]
    fn a_described_packet_is_what_it_says() {
        for (from, to) in [("192.0.2.7:40000", "203.0.113.10:80"), ("[2001:db8::7]:40000", "[2001:db8:f::a]:80")] {
            let asked = asked(&format!("tidegate explain tcp {from} {to} --flags SA --ttl 9 --payload 5")).unwrap();
            let read = etherparse::SlicedPacket::from_ip(&asked.bytes).unwrap();
            let Some(etherparse::TransportSlice::Tcp(tcp)) = read.transport else { panic!("{read:?}") };
            assert!(tcp.syn() && tcp.ack() && !tcp.rst());
            assert_eq!((tcp.source_port(), tcp.destination_port(), tcp.payload().len()), (40_000, 80, 5));
            assert!(!asked.is_frame);
        }
        let ping = asked("tidegate explain icmp 2001:db8::7 2001:db8:f::a").unwrap();
        let read = etherparse::SlicedPacket::from_ip(&ping.bytes).unwrap();
        assert!(matches!(read.transport, Some(etherparse::TransportSlice::Icmpv6(_))));
        let udp = asked("tidegate explain udp 192.0.2.7:9 203.0.113.10:53 --node w1 --device lan0").unwrap();
        assert_eq!((udp.node.as_deref(), udp.device.as_deref()), (Some("w1"), Some("lan0")));
    }

    #[test]
    fn nonsense_is_refused_with_a_hint() {
        for (line, hint) in [
            ("tcp 192.0.2.7 203.0.113.10:80", "with a port"),
            ("tcp 192.0.2.7:1 [2001:db8::1]:80", "same family"),
            ("icmp 192.0.2.7:1 203.0.113.10", "no ports"),
            ("sctp 192.0.2.7:1 203.0.113.10", "with a port"),
            ("sctp 192.0.2.7:1 203.0.113.10:80 --flags SA", "INIT"),
            ("sctp 192.0.2.7:1 203.0.113.10:80 --payload 9", "--flags A"),
            ("tcp 192.0.2.7:1 203.0.113.10:80 --flags SX", "no TCP flag"),
            ("tcp 192.0.2.7:1 203.0.113.10:80 --payload 9001", "more than 9000 bytes"),
            ("udp [2001:db8::7]:1 [2001:db8:f::a]:80 --payload 65536", "more than 9000 bytes"),
            ("--hex 0g", "hexadecimal"),
            ("--hex 012", "odd"),
            ("--pcap /nowhere/at.all", "reading"),
        ] {
            let error = format!("{:#}", asked(&format!("tidegate explain {line}")).unwrap_err());
            assert!(error.contains(hint), "{line}: {error}");
        }
        assert!(asked("tidegate explain").is_err());
        assert!(asked("tidegate explain --pcap x --number 0").is_err());
    }

    /// RFC 9260: one chunk, and a CRC32c that holds.
    #[test]
    fn sctp_packets_are_whole() {
        for (from, to) in [("192.0.2.7:5", "203.0.113.10:2905"), ("[2001:db8::7]:5", "[2001:db8:f::a]:2905")] {
            for (more, kind, length) in
                [("", 1, 20), ("--flags A --payload 5", 0, 21), ("--flags F", 7, 8), ("--flags R", 6, 4)]
            {
                let asked = asked(&format!("tidegate explain sctp {from} {to} {more}")).unwrap();
                let read = etherparse::SlicedPacket::from_ip(&asked.bytes).unwrap();
                let payload = read.ip_payload().unwrap();
                assert_eq!(payload.ip_number, IpNumber::SCTP);
                let mut bytes = payload.payload.to_vec();
                assert_eq!(bytes[..4], [0, 5, 0x0b, 0x59]);
                assert_eq!((bytes[12], u16::from_be_bytes([bytes[14], bytes[15]]), bytes.len() % 4), (kind, length, 0));
                let sum: [u8; 4] = bytes.splice(8..12, [0; 4]).collect::<Vec<_>>().try_into().unwrap();
                assert_eq!(u32::from_le_bytes(sum), crc32c::crc32c(&bytes), "{more}");
            }
        }
    }

    #[test]
    fn digits_and_captures_are_read() {
        assert_eq!(asked("tidegate explain --hex 02:0A:ff").unwrap().bytes, [2, 10, 255]);
        assert!(!asked("tidegate explain --hex 4500 --ip").unwrap().is_frame);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("two.pcap");
        let mut writer = pcap_file::pcap::PcapWriter::new(std::fs::File::create(&path).unwrap()).unwrap();
        for byte in [1u8, 2] {
            let data = [byte; 60];
            let packet = pcap_file::pcap::PcapPacket::new(Duration::ZERO, 60, &data);
            writer.write_packet(&packet).unwrap();
        }
        drop(writer);
        let read = |number: u32| asked(&format!("tidegate explain --pcap {} --number {number}", path.display()));
        assert_eq!(read(2).unwrap().bytes, [2; 60]);
        assert!(read(1).unwrap().is_frame);
        assert!(read(3).unwrap_err().to_string().contains("no packet 3: it has 2"));
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert_eq!(read(1).unwrap().bytes, [1; 60]);
        for number in [2, u32::MAX] {
            let cut = format!("{:#}", read(number).unwrap_err());
            assert!(cut.contains("capture file, after 1 packets"), "{cut}");
        }
        std::fs::write(&path, b"neither").unwrap();
        assert!(format!("{:#}", read(1).unwrap_err()).contains("capture file"));
    }

    #[test]
    fn a_pods_way_out_reads_as_what_it_is() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let end = |text: &str| text.parse::<SocketAddr>().unwrap();
        let egress = |policies: &[&str], policy: Option<&str>, address: Option<&str>| Step::Egress {
            pod: ip("10.244.1.5"),
            policies: policies.iter().map(|name| (*name).to_owned()).collect(),
            policy: policy.map(str::to_owned),
            address: address.map(ip),
        };
        let binding = |sort: &str, policy: &str, static_nat: &str, block, is_new| Step::Binding {
            sort: sort.into(),
            policy: policy.into(),
            static_nat: static_nat.into(),
            internal: end("[fd00:10:244:1::5]:8080"),
            external: end("[2001:db8::10]:41873"),
            block,
            is_new,
        };
        let flow = Step::Flow {
            original: false,
            egress: true,
            state: "established".into(),
            client: end("10.244.1.5:40000"),
            vip: end("198.51.100.7:443"),
            source: end("192.0.2.10:41873"),
            backend: end("198.51.100.7:443"),
            idle_s: 2,
            packets: (5, 4),
        };
        let names = || vec!["shop".to_owned(), "rest".to_owned()];
        let served = |affinity_s, is_remembered| Step::Service {
            service: "shop/web".into(),
            port: 80,
            kind: "vip".into(),
            mode: "fullnat".into(),
            scheduler: Default::default(),
            endpoints: 2,
            affinity_s,
            is_remembered,
        };
        let packet = |source, destination| Step::Packet {
            protocol: 132,
            source: ip(source),
            source_port: Some(5),
            destination: ip(destination),
            destination_port: Some(80),
            bytes: 40,
            ttl: 9,
            fragment: false,
        };
        for (step, line) in [
            (
                egress(&["out"], Some("out"), Some("192.0.2.10")),
                "pod 10.244.1.5 by EgressPolicy out with its address 192.0.2.10",
            ),
            (egress(&["out"], Some("out"), None), "pod 10.244.1.5 by EgressPolicy out, which has no IPv4 address here"),
            (
                egress(&["rest"], Some("bad"), None),
                "pod 10.244.1.5 by EgressPolicy bad, which selects it and is not in force: it is invalid, or was not taken; \
                 its status and control's problems say why",
            ),
            (egress(&["a", "b"], None, None), "pod 10.244.1.5 by EgressPolicy a, b: not for this destination"),
            (egress(&[], None, None), "pod 10.244.1.5, which no EgressPolicy selects"),
            (egress(&["out"], None, Some("192.0.2.30")), "pod 10.244.1.5 by its own address 192.0.2.30 (StaticNat)"),
            (
                egress(&[], Some(""), None),
                "pod 10.244.1.5 by an EgressPolicy that is not in force here, so that it has no address",
            ),
            (
                Step::External { address: ip("2001:db8::10"), policies: names() },
                "2001:db8::10 is an address of EgressPolicy shop, rest",
            ),
            (
                Step::External { address: ip("2001:db8::10"), policies: vec![] },
                "2001:db8::10 is an address of a StaticNat",
            ),
            (
                binding("endpoint-independent", "out", "", Some((41_856, 41_919)), true),
                "[fd00:10:244:1::5]:8080 is seen as [2001:db8::10]:41873, of ports 41856-41919, the same to everybody \
                 (endpoint-independent) by EgressPolicy out, new",
            ),
            (
                binding("forwarded-port", "", "door", None, false),
                "[fd00:10:244:1::5]:8080 is seen as [2001:db8::10]:41873, a forwarded port by StaticNat door",
            ),
            (
                Step::Differs { what: "VNI of node w2".into(), tables: "7".into(), packet: "1".into() },
                "VNI of node w2: tables have 7, the packet carries 1",
            ),
            (
                Step::Lacks { what: "endpoints of shop/web".into(), found: "0 ready".into(), needed: "1 ready".into() },
                "endpoints of shop/web: 0 ready; needed: 1 ready",
            ),
            (
                flow,
                "known, the way back: pod 10.244.1.5:40000 -> 198.51.100.7:443, seen as 192.0.2.10:41873, established, idle 2 s, \
                 in the last 4 s 5 packets and 4 back",
            ),
            (served(0, false), "shop/web port 80 by its load balancer address, fullnat, mh among 2 endpoints"),
            (
                served(10_800, false),
                "shop/web port 80 by its load balancer address, fullnat, mh among 2 endpoints, session affinity of 10800 s: \
                 none is remembered of this client",
            ),
            (
                served(10_800, true),
                "shop/web port 80 by its load balancer address, fullnat, mh among 2 endpoints, session affinity of 10800 s: \
                 this client's endpoint is remembered",
            ),
            (Step::TakenBack, "as if from the wire: it is to another pod's external address"),
            (packet("192.0.2.7", "203.0.113.10"), "SCTP 192.0.2.7:5 -> 203.0.113.10:80, 40 bytes, TTL 9"),
            (
                packet("2001:db8::7", "2001:db8:f::a"),
                "SCTP [2001:db8::7]:5 -> [2001:db8:f::a]:80, 40 bytes, hop limit 9",
            ),
        ] {
            assert_eq!(super::line(&step).1, line);
        }
    }

    #[test]
    fn the_story_reads_from_top_to_bottom() {
        let reason = Reason {
            reason: "PolicyDeniedIngress".into(),
            stage: "policy".into(),
            severity: "info".into(),
            help: "A policy says no.".into(),
        };
        let steps = vec![
            Step::Received { device: "wan0".into(), bytes: 54 },
            Step::Owned { worker: 1, workers: 2 },
            Step::NoFlow,
            Step::Policy {
                direction: "ingress".into(),
                policy: "networkpolicy/shop/a\u{7}".into(),
                key: 0,
                rule: None,
                allowed: false,
                ends: None,
            },
        ];
        let told = text(&Explanation { worker: 1, generation: 3, steps, verdict: Verdict::Dropped(reason) });
        assert_eq!(
            told,
            "received   by wan0, 54 bytes\n\
             owner      worker 1 of 2\n\
             flow       none is known\n\
             policy     ingress denied: networkpolicy/shop/a\\u{7} isolates the pod and no rule accepts\n\
             verdict    DROPPED by stage policy\n\
             why        PolicyDeniedIngress (info): A policy says no.\n"
        );
    }
}
