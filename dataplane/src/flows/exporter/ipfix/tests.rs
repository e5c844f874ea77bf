//! Messages, read by a decoder that knows RFC 7011 and nothing of the encoder.

use std::collections::BTreeMap;

use tidegate_ledger::{Protocol, Remote};

use super::*;
use crate::flows::record::Event;

/// Elements by number and enterprise, with lengths.
type Elements = Vec<(u16, u32, u16)>;
/// One data record: template and values.
type Data = (u16, BTreeMap<(u16, u32), Vec<u8>>);

/// A collector that refuses whatever is not as RFC 7011 has it.
#[derive(Default)]
struct Collector {
    templates: BTreeMap<u16, Elements>,
    sequence: u32,
}

struct Bytes<'b>(&'b [u8]);

impl<'b> Bytes<'b> {
    fn take(&mut self, length: usize) -> &'b [u8] {
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        taken
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take(2).try_into().unwrap())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }
}

impl Collector {
    /// Reads a message: its observation domain and records.
    fn read(&mut self, message: &[u8]) -> (u32, Vec<Data>) {
        assert!(message.len() <= MESSAGE_BYTES_MAX, "{}", message.len());
        let mut bytes = Bytes(message);
        assert_eq!((bytes.u16(), usize::from(bytes.u16())), (10, message.len()));
        let (_seconds, sequence, domain) = (bytes.u32(), bytes.u32(), bytes.u32());
        assert_eq!(sequence, self.sequence, "records of the messages before");
        let mut records = Vec::new();
        while !bytes.0.is_empty() {
            let (id, length) = (bytes.u16(), usize::from(bytes.u16()));
            let mut set = Bytes(bytes.take(length - 4));
            assert!(!set.0.is_empty(), "a set has a record");
            while !set.0.is_empty() {
                match id {
                    2 | 3 => self.learn(&mut set, id == 3),
                    256.. => records.push((id, self.data(id, &mut set))),
                    _ => panic!("set {id}"),
                }
            }
        }
        self.sequence += u32::try_from(records.len()).unwrap();
        (domain, records)
    }

    fn learn(&mut self, set: &mut Bytes<'_>, has_scope: bool) {
        let (id, count) = (set.u16(), set.u16());
        assert!(id >= 256 && count > 0);
        if has_scope {
            assert!((1..=count).contains(&set.u16()));
        }
        let elements = (0..count).map(|_| {
            let (element, length) = (set.u16(), set.u16());
            let enterprise = if element & 0x8000 == 0 { 0 } else { set.u32() };
            (element & 0x7fff, enterprise, length)
        });
        let elements: Elements = elements.collect();
        assert!(self.templates.get(&id).is_none_or(|known| *known == elements), "a template does not change");
        self.templates.insert(id, elements);
    }

    fn data(&self, id: u16, set: &mut Bytes<'_>) -> BTreeMap<(u16, u32), Vec<u8>> {
        let elements = self.templates.get(&id).expect("a template that was told");
        let value = |(element, enterprise, length): &(u16, u32, u16)| {
            let length = match *length {
                u16::MAX => match usize::from(set.take(1)[0]) {
                    255 => usize::from(set.u16()),
                    short => short,
                },
                fixed => fixed.into(),
            };
            ((*element, *enterprise), set.take(length).to_vec())
        };
        let values: BTreeMap<_, _> = elements.iter().map(value).collect();
        assert_eq!(values.len(), elements.len(), "each element once");
        values
    }
}

const ENTERPRISE: u32 = 32473;

fn number(data: &Data, element: u16) -> u64 {
    data.1[&(element, 0)].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

fn text(data: &Data, element: u16) -> String {
    String::from_utf8(data.1[&(element, ENTERPRISE)].clone()).unwrap()
}

fn address(data: &Data, element: u16) -> IpAddr {
    let bytes = &data.1[&(element, 0)];
    match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(v4) => v4.into(),
        Err(_) => <[u8; 16]>::try_from(bytes.as_slice()).unwrap().into(),
    }
}

fn flow(is_v6: bool, port: u16, name: &str) -> Flow {
    let address = |n: u8| {
        if is_v6 {
            IpAddr::from([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n])
        } else {
            IpAddr::from([192, 0, 2, n])
        }
    };
    Flow {
        at: Timestamp::from_millisecond(1_800_000_000_123).unwrap(),
        event: Event::Sample,
        sampling: Some(1000),
        worker: 0,
        device: Some("wan0".into()),
        ifindex: 7,
        protocol: "TCP".into(),
        protocol_number: 6,
        source: address(1),
        source_port: Some(port),
        destination: address(2),
        destination_port: Some(80),
        translated: Some(Translated {
            translated_source: address(3),
            translated_source_port: 31_000,
            translated_destination: address(4),
            translated_destination_port: 8080,
        }),
        packets: Some(1),
        bytes: Some(1400),
        reply_packets: None,
        reply_bytes: None,
        began: None,
        last_seen: None,
        end_reason: None,
        ended: None,
        tcp_flags: Some("PA".into()),
        tcp_bits: 0x18,
        tos: 0x2e << 2,
        is_reply: Some(false),
        verdict: Some("dropped"),
        end: Some(Verdict::Dropped),
        drop_reason: Some("TooBig"),
        service: name.into(),
        source_pod: String::new(),
        source_node: String::new(),
        destination_pod: "shop/web-0".into(),
        destination_node: "w1".into(),
        policy: String::new(),
    }
}

fn told() -> (Encoder, Collector) {
    let mut encoder = Encoder::new(9, ENTERPRISE, 1000);
    let mut collector = Collector::default();
    let [templates, meant] = encoder.templates(Timestamp::now());
    assert_eq!(collector.read(&templates), (9, vec![]));
    let (_, meant) = collector.read(&meant);
    let [selection, types @ ..] = meant.as_slice() else { panic!("{meant:?}") };
    assert_eq!([302, 304, 309, 310, 305, 306].map(|id| number(selection, id)), [1, 3, 1, 1000, 1, 999]);
    let named: Vec<_> = types
        .iter()
        .map(|data| (number(data, 346), number(data, 303), number(data, 339), data.1[&(341, 0)].clone()))
        .collect();
    assert_eq!(named.len(), 8);
    assert_eq!(named[1], (u64::from(ENTERPRISE), 2, 13, b"sourcePodName".to_vec()));
    (encoder, collector)
}

#[test]
fn a_sample_is_read_as_it_was_told() {
    for is_v6 in [false, true] {
        let (mut encoder, mut collector) = told();
        let flow = flow(is_v6, 40_000, "shop/web");
        assert_eq!(encoder.flow(&flow), None);
        let (message, records) = encoder.message(Timestamp::now()).unwrap();
        let (domain, read) = collector.read(&message);
        assert_eq!((domain, records, read.len()), (9, 1, 1));
        let data = &read[0];
        let addresses = if is_v6 { [27, 28, 281, 282] } else { [8, 12, 225, 226] };
        let left = flow.translated.unwrap();
        assert_eq!(
            addresses.map(|id| address(data, id)),
            [flow.source, flow.destination, left.translated_source, left.translated_destination]
        );
        assert_eq!([7, 11, 227, 228].map(|id| number(data, id)), [40_000, 80, 31_000, 8080]);
        assert_eq!([152, 153].map(|id| number(data, id)), [1_800_000_000_123; 2]);
        assert_eq!([4, 5, 6, 89, 10, 2, 1, 302].map(|id| number(data, id)), [6, 0xb8, 0x18, 128, 7, 1, 1400, 1]);
        let names: Vec<_> = (1..=8).map(|id| text(data, id)).collect();
        assert_eq!(names, ["shop/web", "", "", "shop/web-0", "w1", "", "dropped", "TooBig"]);
        // What is not translated leaves as it came.
        let plain = Flow { translated: None, end: Some(Verdict::Forwarded), ..flow.clone() };
        encoder.flow(&plain);
        let (_, read) = collector.read(&encoder.message(Timestamp::now()).unwrap().0);
        assert_eq!((address(&read[0], addresses[2]), number(&read[0], 228)), (flow.source, 80));
        assert_eq!(number(&read[0], 89), 64);
    }
}

#[test]
fn a_connection_is_read_with_both_directions() {
    for (is_v6, reason, code) in [(false, Reason::Closed, 3), (true, Reason::Idle, 1), (true, Reason::Replaced, 4)] {
        let (mut encoder, mut collector) = told();
        let sample = flow(is_v6, 40_000, "shop/web");
        let begun =
            Flow { event: Event::Begin, verdict: None, end: None, packets: None, bytes: None, ..sample.clone() };
        let ended = Flow {
            event: Event::End,
            packets: Some(7),
            bytes: Some(700),
            reply_packets: Some(5_000_000_000),
            reply_bytes: Some(9),
            began: Some(Timestamp::from_millisecond(1_800_000_000_001).unwrap()),
            last_seen: Some(Timestamp::from_millisecond(1_800_000_000_100).unwrap()),
            ended: Some(reason),
            ..begun.clone()
        };
        encoder.flow(&begun);
        encoder.flow(&ended);
        encoder.flow(&sample);
        let (_, read) = collector.read(&encoder.message(Timestamp::now()).unwrap().0);
        let [_, begin, end] = read.as_slice() else { panic!("{read:?}") };
        assert_eq!((begin.0, end.0), if is_v6 { (263, 263) } else { (262, 262) });
        assert_eq!(
            [233, 136, 2, 1, 152, 153].map(|id| number(begin, id)),
            [1, 0, 0, 0, 1_800_000_000_123, 1_800_000_000_123]
        );
        assert_eq!([233, 136, 2, 1].map(|id| number(end, id)), [2, code, 7, 700]);
        assert_eq!([152, 153].map(|id| number(end, id)), [1_800_000_000_001, 1_800_000_000_100]);
        let back = |id| end.1[&(id, 29_305)].iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
        assert_eq!((back(2), back(1)), (5_000_000_000, 9));
        assert_eq!((text(end, 1), text(end, 5)), ("shop/web".into(), "w1".into()));
        assert_eq!([7, 11, 227, 228].map(|id| number(end, id)), [40_000, 80, 31_000, 8080]);
    }
}

/// Messages are filled and never too long; no record is lost, both families share them; templates may come at any time.
#[test]
fn records_fill_messages_and_none_is_lost() {
    let (mut encoder, mut collector) = told();
    let (mut ports, mut messages, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..500u16 {
        // Longer than a string can be: cut, not within a letter.
        let name = "ü".repeat(usize::from(n % 100));
        messages.extend(encoder.flow(&flow(n % 3 == 0, n, &name)));
        if n % 100 == 7 {
            messages.extend(encoder.message(Timestamp::now()));
            messages.extend(encoder.templates(Timestamp::now()).map(|message| (message, 0)));
        }
    }
    messages.extend(encoder.message(Timestamp::now()));
    assert_eq!(encoder.message(Timestamp::now()), None);
    for (message, records) in &messages {
        let (_, read) = collector.read(message);
        let samples: Vec<_> = read.iter().filter(|data| data.0 < 258).collect();
        assert_eq!(samples.len() as u64, *records);
        for data in samples {
            let n = number(data, 7);
            assert_eq!(data.0 == 257, n.is_multiple_of(3));
            assert_eq!(text(data, 1), "ü".repeat(usize::try_from(n % 100).unwrap().min(NAME_BYTES_MAX / 2)));
            ports.push(n);
        }
        lengths.push(message.len());
    }
    ports.sort_unstable();
    assert_eq!(ports, Vec::from_iter(0..500));
    let full = lengths.iter().filter(|length| **length > MESSAGE_BYTES_MAX / 2).count();
    assert!(full * 10 > lengths.len() * 7, "most are full: {lengths:?}");
}

#[test]
fn ports_are_told_as_events_of_translation() {
    for (external, remote, events) in [
        ("192.0.2.1", Some("198.51.100.7:443"), [4, 5]),
        ("192.0.2.1", None, [8, 9]),
        ("2001:db8::1", Some("[2001:db8::7]:443"), [1, 2]),
    ] {
        let external: IpAddr = external.parse().unwrap();
        let holding = Holding {
            external,
            ports: (40_000, 40_000),
            protocol: Protocol::Udp,
            remote: remote.map(|remote| remote.parse::<Remote>().unwrap()),
            internal: if external.is_ipv6() { "fd00::7" } else { "10.244.1.7" }.parse().unwrap(),
            internal_port: Some(5000),
            pod: "shop/web-0".into(),
            node: "w1".into(),
            policy: "out".into(),
        };
        let (mut encoder, mut collector) = told();
        let at = Timestamp::from_millisecond(1_800_000_000_456).unwrap();
        encoder.port(&Record::Begin { at, holding: holding.clone() });
        encoder.port(&Record::End { at, holding: holding.clone() });
        encoder.port(&Record::Start { at });
        let (message, records) = encoder.message(at).unwrap();
        let (_, read) = collector.read(&message);
        assert_eq!((records, read.len()), (2, 2));
        for (data, event) in read.iter().zip(events) {
            let ids = if external.is_ipv6() { [27, 281, 28] } else { [8, 225, 12] };
            let nobody = if external.is_ipv6() { "::" } else { "0.0.0.0" }.parse().unwrap();
            let other = holding.remote.map_or(nobody, |remote| remote.ip());
            assert_eq!(ids.map(|id| address(data, id)), [holding.internal, external, other]);
            let port = holding.remote.map_or(0, |remote| remote.port());
            assert_eq!([7, 227, 11].map(|id| number(data, id)), [5000, 40_000, port.into()]);
            assert_eq!([323, 4, 230].map(|id| number(data, id)), [1_800_000_000_456, 17, event]);
            assert_eq!([2, 3, 6].map(|id| text(data, id)), ["shop/web-0", "w1", "out"]);
        }
    }
}
