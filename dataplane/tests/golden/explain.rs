//! `explain` says beforehand what becomes of a packet, and changes nothing by saying it.
//!
//! The oracle is the gateway itself: a packet is asked about, then it arrives on some queue, and what leaves is compared with
//! what was said. Over random packets of both families, known flows and new ones, policies, pods that leave, several workers.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tidegate_api::explain::{Explanation, Question, Step, Verdict};
use tidegate_api::resource::{Action, Body, GatewayAction, PortForward, Protocol, Service, ServicePort, StaticNat};
use tidegate_dataplane::explain::envelope;
use tidegate_dataplane::rig::fleet::Fleet;
use tidegate_dataplane::rig::outside::{self, external};
use tidegate_dataplane::rig::policed::{Policed, at, clients, everybody, gateway, near, of, pod, policy, set};
use tidegate_dataplane::rig::sketch::{Sketch, Trouble, ping, sctp, tcp, trouble, udp};
use tidegate_dataplane::rig::{self, FROM_ROUTER, LAN, Net, WAN};
use tidegate_dataplane::state::Entropy;
use tidegate_dataplane::table::{DeviceId, OrphanTcp, Tables};

const PODS: [(u8, u8, u32, &str); 3] = [(5, 0, 105, "shop/five"), (6, 0, 106, "shop/six"), (7, 1, 107, "blog/seven")];

fn service(number: u8, peer: u8) -> Body {
    let port = |(protocol, port, pod_port)| {
        let backend =
            |net| tidegate_api::resource::Backend { port: pod_port, ..rig::catalog::pod(net, peer, number, 1, 1) };
        ServicePort { protocol, port, backends: Net::BOTH.map(backend).to_vec(), ..ServicePort::default() }
    };
    let empty = ServicePort { protocol: Protocol::Tcp, port: 81, ..ServicePort::default() };
    let ports = [(Protocol::Tcp, 80, 8080), (Protocol::Udp, 53, 5353), (Protocol::Sctp, 132, 132)];
    Body::Service(Service {
        uid: format!("uid-{number}"),
        addresses: Net::BOTH.map(|net| net.vip(number)).to_vec(),
        ports: ports.map(port).into_iter().chain([empty]).collect(),
        ..Service::default()
    })
}

/// Three pods, each behind a Service at the VIP of its number; two of them leave by a policy; one is isolated for all but a
/// few clients on TCP, another may not leave for some.
fn town() -> Tables {
    let (mut tables, mut policed) = (rig::tables(), Policed::default());
    policed.put(&mut tables, "out", Body::Egress(outside::policy(&Net::BOTH.map(|net| external(net, 1)))));
    for (number, peer, identity, name) in PODS {
        let addresses = Net::BOTH.map(|net| net.pod(peer, number));
        let egress: &[&str] = if number == 7 { &[] } else { &["out"] };
        policed.put(&mut tables, &format!("set-{number}"), set(&[identity]));
        policed.put(&mut tables, name, pod(&addresses, identity, egress));
        policed.put(&mut tables, &format!("{name}-web"), service(number, peer));
    }
    for net in Net::BOTH {
        let some = of(vec![near(net.client(0), 27, 123, &[])], everybody(Action::Accept));
        let name = format!("networkpolicy/shop/few-{:?}", net.0);
        policed.put(&mut tables, &name, policy("set-5", Some(vec![at(Protocol::Tcp, 8080, 8080, some.clone())]), None));
        policed.put(&mut tables, &format!("{name}-out"), policy("set-6", None, Some(vec![some])));
    }
    let far: Vec<_> = Net::BOTH.into_iter().flat_map(|net| (50..54).map(move |n| net.client(n))).collect();
    policed.put(&mut tables, "some-clients", gateway(1, vec![clients(GatewayAction::Deny, &far)]));
    tables
}

/// SCTP as it begins and goes on, and as nobody may send it (RFC 9260 sections 3.2 and 6.10).
fn association(packet: Sketch, number: u64) -> Sketch {
    match number {
        0 => packet.tag(0).init(1, 7),
        1 => packet.chunk(10, 0, &[1; 8]),
        2 => packet.chunk(0, 3, &[0; 16]),
        3 => packet.chunk(6, 0, &[]),
        4 => packet.tag(0).init(1, 7).chunk(0, 3, &[0; 16]),
        _ => packet.data([0, 3, 0, 0]),
    }
}

/// One of the fragments of a datagram.
fn piece(packet: Sketch, number: u64) -> Sketch {
    let header = u16::try_from(packet.packet().len()).unwrap() - if packet.from.0.is_ipv4() { 20 } else { 40 };
    let filled = 64 - header;
    match number {
        0 | 1 if packet.number() == 132 => packet.fragment(0, true),
        0 | 1 => packet.data(vec![1; filled.into()]).fragment(0, true),
        _ => packet.data([2; 24]).fragment(64, false),
    }
}

/// A packet that might come: where from (a peer, or the clients' router), and what.
fn packet(random: &mut Entropy, ports: &[(Net, u16, u8, u8)]) -> (Net, Option<u8>, Sketch) {
    let mut pick = |below: u64| random.draw() % below;
    let net = Net::BOTH[usize::try_from(pick(2)).unwrap()];
    let client = (net.client(u16::try_from(pick(60)).unwrap()), 40_000 + u16::try_from(pick(4)).unwrap());
    let vip = net.vip(u8::try_from(4 + pick(5)).unwrap());
    let flags = ["S", "A", "PA", "R", "SA", "FA", "", "F", "SR", "FPU", "SF"][usize::try_from(pick(11)).unwrap()];
    let (number, peer, ..) = PODS[usize::try_from(pick(3)).unwrap()];
    let here = net.pod(peer, number);
    // Some come from where they cannot be.
    let via = if pick(12) == 0 { 1 - peer } else { peer };
    let sketch = match pick(13) {
        9 => (None, association(sctp(client, (vip, 132)).tag(7), pick(7))),
        10 => (None, piece(udp(client, (vip, 53)), pick(3))),
        11 => match pick(3) {
            0 => (None, piece(sctp(client, (vip, 132)).init(1, 7), pick(2))),
            1 => (Some(via), piece(udp((here, 40_000), (net.client(9), 53)), pick(3))),
            _ => (None, piece(tcp(client, (vip, 80)).segment("PA", 100, 7), pick(3))),
        },
        12 => {
            let quoted = tcp((vip, 80), client).segment("PA", 5, 6);
            (None, trouble(client.0, vip, Trouble::Port, &quoted.packet()))
        }
        0 | 1 => (None, tcp(client, (vip, 80)).syn(100)),
        2 => (None, tcp(client, (vip, 80 + u16::try_from(pick(3)).unwrap())).segment(flags, 100, 7)),
        3 => (None, udp(client, (vip, 53)).data(*b"who?")),
        4 => (None, ping(client.0, vip)),
        5 => (Some(via), tcp((here, 8080), (net.source(), 32_000)).segment(flags, 5, 6)),
        6 => (Some(via), udp((here, 40_000), (net.client(9), 53)).data(*b"who?")),
        7 => {
            (Some(via), tcp((here, 40_000 + u16::try_from(pick(3)).unwrap()), (net.client(40), 443)).segment("S", 1, 0))
        }
        _ => match ports.len() {
            0 => (Some(via), tcp((here, 9), (vip, 80)).syn(3)),
            many => {
                // An answer of a pod to what it was sent before.
                let (net, port, peer, number) = ports[usize::try_from(pick(many as u64)).unwrap()];
                let answer = tcp((net.pod(peer, number), 8080), (net.source(), port));
                let answer = if pick(3) == 0 { answer.segment(flags, 500, 101) } else { answer.syn_ack(500, 101) };
                return (net, Some(peer), answer);
            }
        },
    };
    let ttl = if pick(15) == 0 { 1 } else { 64 };
    (net, sketch.0, sketch.1.ttl(ttl))
}

/// Source and destination of what left, out of VXLAN if it was in there.
pub fn ends(device: DeviceId, frame: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let inner = if device == LAN { rig::into_peer(frame)?.2 } else { frame };
    let sliced = etherparse::SlicedPacket::from_ethernet(inner).ok()?;
    let (from, to) = match sliced.net? {
        etherparse::NetSlice::Ipv4(ip) => {
            (ip.header().source_addr().into(), std::net::IpAddr::from(ip.header().destination_addr()))
        }
        etherparse::NetSlice::Ipv6(ip) => {
            (ip.header().source_addr().into(), std::net::IpAddr::from(ip.header().destination_addr()))
        }
        etherparse::NetSlice::Arp(_) => return None,
    };
    let (source, destination) = match sliced.transport? {
        etherparse::TransportSlice::Tcp(tcp) => (tcp.source_port(), tcp.destination_port()),
        etherparse::TransportSlice::Udp(udp) => (udp.source_port(), udp.destination_port()),
        _ => return None,
    };
    Some((SocketAddr::new(from, source), SocketAddr::new(to, destination)))
}

/// What left by each device, and what was counted.
struct Seen {
    wan: Vec<Vec<u8>>,
    lan: Vec<Vec<u8>>,
    moved: BTreeMap<&'static str, u64>,
}

fn check(told: &Explanation, seen: &Seen, packet: &Sketch) {
    let about = || format!("{packet:?}\n{told:#?}\ncounted {:?}", seen.moved);
    let is_fragment = told.steps.iter().any(|step| matches!(step, Step::Packet { fragment: true, .. }));
    match &told.verdict {
        Verdict::Sent { device, .. } => {
            let device = if device == "wan0" { WAN } else { LAN };
            let [of_it, other] = if device == WAN { [&seen.wan, &seen.lan] } else { [&seen.lan, &seen.wan] };
            // Those that waited for a first fragment go after it.
            let others = if is_fragment { of_it.len().saturating_sub(1) } else { 0 };
            assert_eq!((of_it.len(), other.len()), (1 + others, 0), "{}", about());
            let said = told.steps.iter().find_map(|step| match step {
                Step::Translated { source, destination } => Some((*source, *destination)),
                _ => None,
            });
            let tunnelled = told.steps.iter().find_map(|step| match step {
                Step::Encapsulated { underlay, .. } => Some(*underlay),
                _ => None,
            });
            if let Some(left) = ends(device, &of_it[0]) {
                assert_eq!(said, Some(left), "{}", about());
            }
            assert_eq!(tunnelled.is_some(), device == LAN, "{}", about());
            if let Some(underlay) = tunnelled {
                let outer = etherparse::SlicedPacket::from_ethernet(&of_it[0]).unwrap();
                let to = match outer.net.unwrap() {
                    etherparse::NetSlice::Ipv4(ip) => ip.header().destination_addr().into(),
                    etherparse::NetSlice::Ipv6(ip) => std::net::IpAddr::from(ip.header().destination_addr()),
                    etherparse::NetSlice::Arp(_) => panic!("{}", about()),
                };
                assert_eq!(to, underlay, "{}", about());
            }
        }
        Verdict::Answered { .. } => assert_eq!(seen.wan.len() + seen.lan.len(), 1, "{}", about()),
        Verdict::Dropped(reason) => {
            assert!(seen.wan.is_empty() && seen.lan.is_empty(), "{}", about());
            let counted = seen.moved.get(reason.reason.as_str()).copied().unwrap_or(0);
            assert!(counted == 1 || is_fragment && counted > 1, "{}", about());
        }
        Verdict::Followed => {
            assert!(is_fragment && seen.wan.is_empty() && seen.lan.is_empty(), "{}", about());
            assert_eq!(seen.moved.get("fragment_held"), Some(&1), "{}", about());
        }
        Verdict::Waits { .. } | Verdict::Returns | Verdict::Kernel { .. } => {
            panic!("nothing here does that: {}", about())
        }
    }
}

fn kind(told: &Explanation) -> String {
    match &told.verdict {
        Verdict::Sent { device, .. } => {
            let hit = told.steps.iter().any(|step| matches!(step, Step::Flow { .. }));
            let is_fragment = told.steps.iter().any(|step| matches!(step, Step::Packet { fragment: true, .. }));
            let what = if is_fragment { "fragment " } else { "" };
            format!("{what}sent by {device}{}", if hit { ", known" } else { "" })
        }
        Verdict::Answered { with, .. } => with.clone(),
        Verdict::Dropped(reason) => reason.reason.clone(),
        other => format!("{other:?}"),
    }
}

#[test]
fn what_is_said_is_what_happens() {
    for (seed, workers) in [(1, 1), (2, 2), (3, 3)] {
        let mut tables = town();
        if workers > 1 {
            tables.settings.orphan_tcp = OrphanTcp::Reset;
        }
        let mut fleet = Fleet::new(tables, workers).unwrap();
        let mut random = Entropy::new(seed);
        let mut ports = Vec::new();
        let mut met: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..1500 {
            let (net, via, sketch) = packet(&mut random, &ports);
            let (device, mut frame) = match via {
                None => (WAN, sketch.frame(FROM_ROUTER)),
                Some(peer) => (LAN, rig::expect::from_peer(net, peer, &sketch)),
            };
            if random.draw().is_multiple_of(6) {
                // No checksum is right any more.
                let end = if via.is_none() { 14 + sketch.packet().len() } else { frame.len() };
                frame[end - 1] ^= 1;
            }
            // Answers are limited per second.
            fleet.now_ns += 50_000_000;
            fleet.turn();
            fleet.moved();
            let live = fleet.live();
            let first = usize::try_from(random.draw()).unwrap_or(0) % usize::from(workers);
            let told = fleet.explain(first, device, &frame);
            assert_eq!(fleet.explain(0, device, &frame).verdict, told.verdict, "asked twice, {sketch:?}");
            assert_eq!((fleet.moved(), fleet.live()), (BTreeMap::new(), live), "asking changes nothing");
            let queue = usize::try_from(random.draw()).unwrap_or(0) % usize::from(workers);
            fleet.rx(queue, device, &frame);
            let seen = Seen { wan: fleet.sent(WAN), lan: fleet.sent(LAN), moved: fleet.moved() };
            check(&told, &seen, &sketch);
            *met.entry(kind(&told)).or_default() += 1;
            for step in &told.steps {
                if let Step::Translated { source, destination } = step
                    && source.ip() == net.source()
                    && let Some((number, peer, ..)) = PODS.iter().find(|it| net.pod(it.1, it.0) == destination.ip())
                {
                    ports.push((net, source.port(), *peer, *number));
                }
            }
        }
        for kind in [
            "sent by lan0",
            "sent by wan0",
            "sent by lan0, known",
            "sent by wan0, known",
            "PolicyDeniedIngress",
            "PolicyDeniedEgress",
            "GatewayPolicyDenied",
            "SpoofedSource",
            "TCP reset",
            "echo reply",
            "ICMP time exceeded",
            "NotOurs",
            "NoFlow",
            "TcpInvalid",
            "SctpBadChecksum",
            "SctpInvalid",
            "SctpFragment",
            if workers == 1 { "OrphanSegment" } else { "SCTP ABORT" },
            "IcmpBadChecksum",
            "fragment sent by lan0",
            "fragment sent by wan0, known",
            "Followed",
        ] {
            assert!(met.contains_key(kind), "{kind} was never met: {met:?}");
        }
    }
}

#[test]
fn a_bare_packet_comes_in_by_the_way_that_leads_back() {
    let tables = town();
    let question = |sketch: &Sketch| Question { bytes: sketch.packet(), ..Question::default() };
    for net in Net::BOTH {
        let from_client = tcp((net.client(7), 9), (net.vip(5), 80)).syn(1);
        let (device, frame) = envelope::frame(&tables, &question(&from_client)).unwrap();
        assert_eq!(device, WAN);
        assert_eq!(frame[14..], from_client.packet()[..]);
        let from_pod = tcp((net.pod(0, 5), 9), (net.client(40), 443)).syn(1);
        let (device, frame) = envelope::frame(&tables, &question(&from_pod)).unwrap();
        assert_eq!(device, LAN);
        let mut fleet = Fleet::new(town(), 2).unwrap();
        let told = fleet.explain(0, device, &frame);
        let node = told.steps.iter().any(|step| matches!(step, Step::Decapsulated { node, .. } if node == "w1"));
        assert!(node, "{told:?}");
        // The same, from a node where that pod does not live.
        let elsewhere = Question { node: Some("w2".into()), ..question(&from_pod) };
        let (device, frame) = envelope::frame(&tables, &elsewhere).unwrap();
        let told = fleet.explain(0, device, &frame);
        assert!(matches!(&told.verdict, Verdict::Dropped(reason) if reason.reason == "SpoofedSource"), "{told:?}");
        let node = format!("node of source {}", net.pod(0, 5));
        assert_eq!(differences(&told), [(node, "w1".to_owned(), "w2".to_owned())]);
    }
}

fn differences(told: &Explanation) -> Vec<(String, String, String)> {
    let of_it = |step: &Step| match step {
        Step::Differs { what, tables, packet } => Some((what.clone(), tables.clone(), packet.clone())),
        _ => None,
    };
    told.steps.iter().filter_map(of_it).collect()
}

/// Each field that frames and tables must agree about is changed in a frame that a node sends, and is named with both values.
#[test]
fn what_a_frame_and_the_tables_do_not_agree_about_is_named() {
    let tables = town();
    for net in Net::BOTH {
        let from_pod = tcp((net.pod(0, 5), 9), (net.client(40), 443)).syn(1);
        let question = Question { bytes: from_pod.packet(), ..Question::default() };
        let (device, frame) = envelope::frame(&tables, &question).unwrap();
        let mut fleet = Fleet::new(town(), 1).unwrap();
        assert_eq!(differences(&fleet.explain(0, device, &frame)), []);
        // Outer Ethernet, IP and UDP; of VXLAN the identifier is at 4, the inner addresses are at 8 and 14.
        let ip_len = if net.vip(5).is_ipv4() { 20 } else { 40 };
        let vxlan = 14 + ip_len + 8;
        // The port of the outer UDP header, to which the checksum does not matter here.
        for (at, what) in [
            (vxlan - 6, "VXLAN port of this gateway, in frames of node w1"),
            (0, "MAC of lan0"),
            (vxlan + 6, "VNI of node w1"),
            (vxlan + 8, "VTEP MAC of this gateway, in frames of node w1"),
            (vxlan + 14, "VTEP MAC of node w1"),
        ] {
            let mut changed = frame.clone();
            // Not the bit that makes a group of it.
            changed[at] ^= 0x40;
            // Over IPv6 the checksum of UDP covers it: none is read here, and parse refuses the frame by it or not.
            let told = differences(&fleet.explain(0, device, &changed));
            assert_eq!(told.len(), 1, "{what}: {told:?}");
            assert_eq!(told[0].0, what);
            assert_ne!(told[0].1, told[0].2, "{what}");
        }
        // A tag of IEEE 802.1Q, outside and inside.
        for (at, what) in [(12, "VLAN tag on lan0"), (vxlan + 20, "VLAN in the tunnel of node w1")] {
            let mut tagged = frame.clone();
            tagged.splice(at..at, [0x81, 0x00, 0x60, 0x07]);
            if at > 12 {
                lengthen(&mut tagged, ip_len, 4);
            }
            let told = differences(&fleet.explain(0, device, &tagged));
            assert_eq!(told, [(what.to_owned(), "none".to_owned(), "7".to_owned())]);
        }
        // Cut anywhere, it is no panic.
        for length in 0..frame.len() {
            fleet.explain(0, device, &frame[..length]);
        }
    }
}

/// More bytes by lengths of the outer headers, IPv4's checksum among them.
fn lengthen(frame: &mut [u8], ip_len: usize, by: u8) {
    let at = if ip_len == 20 { 16 } else { 18 };
    frame[at + 1] += by;
    frame[14 + ip_len + 5] += by;
    if ip_len == 20 {
        let sum = u16::from_be_bytes([frame[24], frame[25]]).wrapping_sub(u16::from(by));
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
}

/// What is too old or too long to be forwarded is told with what it has and what it would take.
#[test]
fn what_a_packet_lacks_is_told_with_both_values() {
    let tables = town();
    for net in Net::BOTH {
        let lacks = |sketch: Sketch| {
            let question = Question { bytes: sketch.packet(), ..Question::default() };
            let (device, frame) = envelope::frame(&tables, &question).unwrap();
            let told = Fleet::new(town(), 1).unwrap().explain(0, device, &frame);
            let of_it = |step: &Step| match step {
                Step::Lacks { what, found, needed } => Some(format!("{what}: {found}; needed: {needed}")),
                _ => None,
            };
            told.steps.iter().filter_map(of_it).collect::<Vec<_>>()
        };
        let syn = || tcp((net.client(7), 9), (net.vip(6), 80)).syn(1);
        assert_eq!(lacks(syn()), [] as [String; 0]);
        let name = if net.vip(6).is_ipv4() { "TTL" } else { "hop limit" };
        assert_eq!(lacks(syn().ttl(1)), [format!("{name} of the packet: 1; needed: 2, to be forwarded")]);
        let mut bare = town();
        bare.nat = Default::default();
        let question = Question { bytes: syn().packet(), ..Question::default() };
        let (device, frame) = envelope::frame(&bare, &question).unwrap();
        let told = Fleet::new(bare, 1).unwrap().explain(0, device, &frame);
        let family = if net.vip(6).is_ipv4() { "IPv4" } else { "IPv6" };
        let none = Step::Lacks {
            what: format!("{family} addresses in control.fullnatSources"),
            found: "none".into(),
            needed: "1".into(),
        };
        assert!(told.steps.contains(&none), "{told:?}");
        let long = udp((net.client(7), 9), (net.vip(6), 53)).long(1480);
        let bytes = long.packet().len();
        let told = lacks(long);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with(&format!("length of the packet: {bytes} bytes; needed: at most 14")), "{told:?}");
    }
}

#[test]
fn questions_that_cannot_be_asked_are_refused() {
    let tables = town();
    let [v4, _] = Net::BOTH;
    let packet = tcp((v4.client(7), 9), (v4.vip(5), 80)).syn(1);
    let bare = || Question { bytes: packet.packet(), ..Question::default() };
    let refused = |question: Question| envelope::frame(&tables, &question).unwrap_err().message;
    assert!(refused(Question::default()).contains("IPv4 or IPv6 header"));
    assert!(refused(Question { device: Some("wan9".into()), ..bare() }).contains("wan0, lan0"));
    assert!(refused(Question { node: Some("w9".into()), ..bare() }).contains("w1"));
    assert!(refused(Question { bytes: vec![0x45; 19], ..Question::default() }).contains("whole"));
    assert!(refused(Question { bytes: vec![0x45; 60_000], ..Question::default() }).contains("at most"));
    assert!(
        refused(Question { is_frame: true, bytes: vec![9; 60], ..Question::default() }).contains("name the device")
    );
    assert!(refused(Question { is_frame: true, bytes: vec![9; 3], ..Question::default() }).contains("shorter"));
    assert!(refused(Question { is_frame: true, node: Some("w1".into()), ..bare() }).contains("node"));
    let lone = Tables { devices: tables.devices.clone(), ..Tables::default() };
    assert!(envelope::frame(&lone, &bare()).unwrap_err().message.contains("no route leads back"));
}

/// What a story says of a pod's end: sort, policy, inside, outside, whether it is new; and the block is the port's.
fn binding(told: &Explanation) -> Option<(String, String, SocketAddr, SocketAddr, bool)> {
    told.steps.iter().find_map(|step| match step {
        Step::Binding { sort, policy, internal, external, block, is_new, .. } => {
            let of_port = |(first, last): (u16, u16)| (first..=last).contains(&external.port()) && last - first == 63;
            assert!(block.is_none_or(of_port), "{told:?}");
            assert_eq!(block.is_none(), ["one-to-one", "forwarded-port"].contains(&&**sort), "{told:?}");
            Some((sort.clone(), policy.clone(), *internal, *external, *is_new))
        }
        _ => None,
    })
}

/// The step that tells whose packet it is.
fn leaving(told: &Explanation) -> Option<(Vec<String>, Option<String>, Option<std::net::IpAddr>)> {
    told.steps.iter().find_map(|step| match step {
        Step::Egress { policies, policy, address, .. } => Some((policies.clone(), policy.clone(), *address)),
        _ => None,
    })
}

/// Who was chosen is told also of what a policy denies, with both ends as the policy sees them.
#[test]
fn a_denied_packet_is_told_with_the_pod_that_was_chosen() {
    for (net, number) in Net::BOTH.into_iter().flat_map(|net| [(net, 5u8), (net, 6)]) {
        let mut fleet = Fleet::new(town(), 2).unwrap();
        let (client, pod) = (net.client(40), net.pod(0, 5));
        let (from, sketch) = match number {
            5 => (None, tcp((client, 40_000), (net.vip(5), 80)).syn(1)),
            // Pod six may only send to a few, and pod five is not among them.
            _ => (Some(0), tcp((net.pod(0, 6), 40_000), (net.vip(5), 80)).syn(1)),
        };
        let frame = match from {
            None => sketch.frame(FROM_ROUTER),
            Some(peer) => rig::expect::from_peer(net, peer, &sketch),
        };
        let told = fleet.explain(0, if from.is_some() { LAN } else { WAN }, &frame);
        let reason = if number == 5 { "PolicyDeniedIngress" } else { "PolicyDeniedEgress" };
        assert_eq!(kind(&told), reason, "{told:?}");
        let backend = |step: &Step| matches!(step, Step::Backend { address, port: 8080, .. } if *address == pod);
        assert_eq!(told.steps.iter().filter(|step| backend(step)).count(), 1, "{told:?}");
        let ends = told.steps.iter().find_map(|step| match step {
            Step::Policy { ends, allowed: false, .. } => *ends,
            _ => None,
        });
        let source = if number == 5 { client } else { net.pod(0, 6) };
        assert_eq!(ends, Some((SocketAddr::new(source, 40_000), SocketAddr::new(pod, 8080))), "{told:?}");
    }
}

/// The port at a pod that has all of them is the one that was asked for, and no node's choice.
#[test]
fn a_service_of_every_port_names_the_pods_port() {
    for net in Net::BOTH {
        let mut tables = rig::tables();
        rig::add_service(&mut tables, 901, net.vip(150), 0, 6, &[(net.pod(1, 9), 0, 1)]);
        let mut fleet = Fleet::new(tables, 1).unwrap();
        let frame = tcp((net.client(7), 9), (net.vip(150), 1234)).syn(1).frame(FROM_ROUTER);
        for _ in 0..2 {
            let told = fleet.explain(0, WAN, &frame);
            let is_it =
                |step: &Step| matches!(step, Step::Backend { address, port: 1234, .. } if *address == net.pod(1, 9));
            assert!(told.steps.iter().any(is_it), "{told:?}");
            fleet.rx(0, WAN, &frame);
        }
    }
}

/// A pod's packet that is no answer to a client goes on to a second worker, which whoever is asked first finds.
#[test]
fn a_pods_packets_find_their_second_owner_beside_services_that_keep_clients() {
    for (net, workers) in Net::BOTH.into_iter().flat_map(|net| [2, 3].map(|workers| (net, workers))) {
        let (mut tables, _) = outside::town();
        rig::add_service(&mut tables, 901, net.vip(150), 80, 6, &[(net.pod(1, 9), 8080, 1)]);
        rig::deliver_symmetric(&mut tables, 901);
        let mut fleet = Fleet::new(tables, workers).unwrap();
        fleet.settle();
        for n in 0..12u16 {
            let sketch = udp((net.pod(0, 5), 40_000 + n), (net.client(n), 53)).data(*b"who?");
            let frame = rig::expect::from_peer(net, 0, &sketch);
            for first in 0..usize::from(workers) {
                let told = fleet.explain(first, LAN, &frame);
                assert_eq!(leaving(&told).and_then(|(_, policy, _)| policy).as_deref(), Some("out"), "{told:?}");
            }
            let (.., promised, _) = binding(&fleet.explain(0, LAN, &frame)).unwrap();
            fleet.rx(usize::from(n % workers), LAN, &frame);
            assert_eq!(ends(WAN, &fleet.sent(WAN)[0]).unwrap().0, promised, "{n}");
        }
    }
}

#[test]
fn a_pods_packets_are_told_with_policy_address_and_binding() {
    for net in Net::BOTH {
        let (tables, mut outside) = outside::town();
        let mut fleet = Fleet::new(tables, 2).unwrap();
        let (here, there, ours) = ((net.pod(0, 5), 40_000), (net.client(9), 53), external(net, 1));
        let by_out = (vec!["out".to_owned()], Some("out".to_owned()), Some(ours));
        for (sketch, sort) in [
            (udp(here, there).data(*b"who?"), "endpoint-independent"),
            (tcp(here, (there.0, 443)).syn(1), "address-and-port-dependent"),
        ] {
            let frame = rig::expect::from_peer(net, 0, &sketch);
            let told = fleet.explain(0, LAN, &frame);
            assert_eq!(leaving(&told), Some(by_out.clone()), "{told:?}");
            let (told_sort, policy, internal, promised, is_new) = binding(&told).unwrap();
            assert_eq!((&*told_sort, &*policy, internal, is_new), (sort, "out", SocketAddr::from(here), true));
            fleet.rx(0, LAN, &frame);
            let (left, _) = ends(WAN, &fleet.sent(WAN)[0]).unwrap();
            assert_eq!((left, left.ip()), (promised, ours));
            // Known now, both ways.
            let told = fleet.explain(0, LAN, &frame);
            let expected = (sort.to_owned(), "out".to_owned(), SocketAddr::from(here), left, false);
            assert_eq!(binding(&told), Some(expected.clone()), "{told:?}");
            assert!(told.steps.iter().any(|step| matches!(step, Step::Flow { egress: true, original: true, .. })));
            // The pod itself is no endpoint of anything.
            assert!(!told.steps.iter().any(|step| matches!(step, Step::Backend { .. })), "{told:?}");
            let answer = match sort {
                "endpoint-independent" => udp(there, (ours, left.port())).data(*b"me"),
                _ => tcp((there.0, 443), (ours, left.port())).syn_ack(5, 2),
            };
            let told = fleet.explain(1, WAN, &answer.frame(FROM_ROUTER));
            assert_eq!(binding(&told), Some(expected.clone()), "{told:?}");
            if sort == "endpoint-independent" {
                // Another port of who was sent to comes in by the mapping, and nobody else does.
                let other = udp((there.0, 54), (ours, left.port())).data(*b"me too");
                let told = fleet.explain(0, WAN, &other.frame(FROM_ROUTER));
                assert_eq!(binding(&told), Some(expected.clone()), "{told:?}");
                assert!(matches!(&told.verdict, Verdict::Sent { device, .. } if device == "lan0"), "{told:?}");
                let again = udp(here, (net.client(8), 99)).data(*b"x");
                let told = fleet.explain(0, LAN, &rig::expect::from_peer(net, 0, &again));
                assert_eq!(binding(&told), Some(expected), "{told:?}");
                let stranger = udp((net.client(7), 9), (ours, left.port())).data(*b"?");
                let told = fleet.explain(0, WAN, &stranger.frame(FROM_ROUTER));
                let external = told.steps.iter().find_map(|step| match step {
                    Step::External { address, policies } => Some((*address, policies.clone())),
                    _ => None,
                });
                assert_eq!((external, binding(&told)), (Some((ours, vec!["out".to_owned()])), None), "{told:?}");
                assert!(matches!(&told.verdict, Verdict::Dropped(reason) if reason.reason == "Filtered"), "{told:?}");
            }
        }
        // A policy without an address of the family says which it is.
        fleet.publish(|tables| outside.policy(tables, "out", Some(&outside::policy(&[]))));
        let other = udp((net.pod(0, 6), 1), there).data(*b"x");
        let told = fleet.explain(0, LAN, &rig::expect::from_peer(net, 0, &other));
        assert_eq!(leaving(&told), Some((vec!["out".to_owned()], Some("out".to_owned()), None)), "{told:?}");
    }
}

#[test]
fn static_translation_is_told_as_what_it_is() {
    for net in Net::BOTH {
        let (tables, mut outside) = outside::town();
        let mut fleet = Fleet::new(tables, 2).unwrap();
        let (pod, client) = (net.pod(0, 5), net.client(9));
        let [whole, ports] = [external(net, 9), external(net, 8)];
        let forward = PortForward { protocol: Protocol::Tcp, external: 80, internal: 8080 };
        fleet.publish(|tables| {
            for (name, external, ports) in [("whole", whole, vec![]), ("door", ports, vec![forward])] {
                outside.fixed(tables, name, Some(&StaticNat { external, internal: pod, ports }));
            }
        });
        let own = tcp((pod, 4000), (client, 443)).syn(1);
        let told = fleet.explain(0, LAN, &rig::expect::from_peer(net, 0, &own));
        assert_eq!(leaving(&told), Some((vec!["out".to_owned()], None, Some(whole))), "{told:?}");
        let expected = |sort: &str, inside, outside: (std::net::IpAddr, u16)| {
            Some((sort.to_owned(), String::new(), SocketAddr::new(pod, inside), SocketAddr::from(outside), false))
        };
        assert_eq!(binding(&told), expected("one-to-one", 4000, (whole, 4000)), "{told:?}");
        for (at, sort, inside) in [((whole, 22), "one-to-one", 22), ((ports, 80), "forwarded-port", 8080)] {
            let sketch = tcp((client, 9), at).syn(1);
            for known in [false, true] {
                let told = fleet.explain(0, WAN, &sketch.frame(FROM_ROUTER));
                assert_eq!(binding(&told), expected(sort, inside, at), "{told:?}");
                let is_external = |step: &Step| matches!(step, Step::External { address, .. } if *address == at.0);
                assert_eq!(told.steps.iter().any(is_external), !known, "{told:?}");
                fleet.rx(1, WAN, &sketch.frame(FROM_ROUTER));
            }
            fleet.sent(LAN);
        }
    }
}
