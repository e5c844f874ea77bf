//! Captures: both forms of a packet, what became of it, which packets are wanted, and that watching changes nothing.

use std::sync::Arc;

use crossbeam::channel::bounded;
use tidegate_api::capture::{Forms, Instruction, Wanted};
use tidegate_dataplane::capture::{CAPTURES_MAX, Copied, Outcome, Rings, Tap};
use tidegate_dataplane::counters::Event;
use tidegate_dataplane::drops::DropReason;
use tidegate_dataplane::mailbox::Request;
use tidegate_dataplane::rig::expect::from_peer;
use tidegate_dataplane::rig::fleet::Fleet;
use tidegate_dataplane::rig::{FROM_ROUTER, LAN, WAN};
use tidegate_dataplane::state::Entropy;

use super::*;

/// What libpcap makes of a filter over frames (DLT_EN10MB) or IP packets (DLT_RAW).
pub fn compiled(text: &str, link: i32) -> Vec<Instruction> {
    let program = pcap::Capture::dead(pcap::Linktype(link)).unwrap().compile(text, true).unwrap();
    let instruction = |shown: String| {
        let fields: Vec<u32> = shown.split(' ').map(|field| field.parse().unwrap()).collect();
        let [code, jump_true, jump_false, k] = fields[..] else { panic!("{shown}") };
        Instruction { code: code as u16, jump_true: jump_true as u8, jump_false: jump_false as u8, k }
    };
    program.get_instructions().iter().map(|one| instruction(one.to_string())).collect()
}

/// Every packet, however many come at once.
pub(crate) fn everything() -> Wanted {
    Wanted { rate_per_s: u32::MAX, ..serde_json::from_str("{}").unwrap() }
}

fn tap(number: u64, wanted: &Wanted) -> (Option<Box<Tap>>, Arc<Rings>) {
    let rings = Rings::new(wanted.snap_bytes as usize);
    (Some(Box::new(Tap::new(number, wanted, None, Arc::clone(&rings)).unwrap())), rings)
}

/// Begins a capture; false: there are too many.
pub(crate) fn begin(rig: &mut Rig, number: u64, wanted: &Wanted) -> Option<Arc<Rings>> {
    let ((tap, rings), (reply, answer)) = (tap(number, wanted), bounded(1));
    rig.mailbox.send(Request::Capture { tap, reply }).unwrap();
    rig.turn();
    answer.try_recv().unwrap().then_some(rings)
}

fn end(rig: &mut Rig, number: u64) -> Option<Box<Tap>> {
    let (reply, answer) = bounded(1);
    rig.mailbox.send(Request::EndCapture { number, reply }).unwrap();
    rig.turn();
    answer.try_recv().unwrap()
}

fn copies(rings: &Rings) -> Vec<Copied> {
    std::iter::from_fn(|| rings.take()).collect()
}

fn has(copy: &Copied, event: Event) -> bool {
    copy.told.counted >> (event as u32) & 1 == 1
}

#[test]
fn a_packet_is_told_as_it_came_in_and_as_it_left() {
    for net in Net::BOTH {
        let mut rig = town();
        let rings = begin(&mut rig, 1, &everything()).unwrap();
        let syn = to_web(net).syn(100).frame(FROM_ROUTER);
        rig.rx(WAN, &syn);
        let sent = rig.sent_one(LAN);
        rig.expect_counted(&and(STARTS, &[("mss_clamped", 1)]));
        let told = copies(&rings);
        assert_eq!(told.len(), 2, "{told:?}");
        assert_eq!((told[0].after, told[0].device, &told[0].bytes), (false, WAN, &syn));
        assert_eq!((told[1].after, told[1].device, &told[1].bytes), (true, LAN, &sent));
        for copy in &told {
            assert_eq!((copy.told.number, copy.told.outcome), (1, Outcome::Sent(1)));
            let tables = rig.publisher.current();
            let name = tables.services.row(copy.told.service).unwrap().name.to_string();
            assert_eq!(name, if net == Net::BOTH[0] { "test/service-1" } else { "test/service-11" });
            assert!(has(copy, Event::FlowInstalled) && !has(copy, Event::FlowHit), "{copy:?}");
        }
        // The answer, by the flow: the same Service.
        let port = rig::into_peer(&sent).map(|(_, _, inner)| etherparse::SlicedPacket::from_ethernet(inner).unwrap());
        let port = match port.unwrap().transport.unwrap() {
            etherparse::TransportSlice::Tcp(tcp) => tcp.source_port(),
            other => panic!("{other:?}"),
        };
        let answer = from_peer(net, 0, &syn_ack(net, port));
        rig.rx(LAN, &answer);
        let (sent, back) = (rig.sent_one(WAN), copies(&rings));
        assert_eq!((&back[0].bytes, &back[1].bytes, back.len()), (&answer, &sent, 2));
        assert_eq!((back[0].told.service, back[0].told.number), (told[0].told.service, 2));
        assert!(!has(&back[0], Event::FlowInstalled) && has(&back[0], Event::SlowWalk), "a SYN is looked at anew");
        let tap = end(&mut rig, 1).unwrap();
        assert_eq!((tap.tally.seen, tap.tally.matched, tap.tally.told, tap.tally.left_out()), (2, 2, 4, 0));
        rig.rx(WAN, &syn);
        rig.sent_one(LAN);
        assert!(copies(&rings).is_empty(), "it has ended");
        assert!(end(&mut rig, 1).is_none());
    }
}

fn syn_ack(net: Net, port: u16) -> Sketch {
    tcp(web_pod(net), (net.source(), port)).syn_ack(500, 101)
}

#[test]
fn a_dropped_packet_is_told_with_its_reason_and_its_service() {
    for net in Net::BOTH {
        let mut rig = town();
        let rings = begin(&mut rig, 1, &Wanted { only_dropped: true, ..everything() }).unwrap();
        // A stray segment to a Service, one that nobody can parse, one to another host; and one that is sent.
        let stray = to_web(net).ack(7, 8).frame(FROM_ROUTER);
        let mut other_host = stray.clone();
        other_host[5] ^= 0x55;
        let sent = to_names(net).frame(FROM_ROUTER);
        for frame in [&stray, &stray[..20].to_vec(), &other_host, &sent] {
            rig.rx(WAN, frame);
        }
        drop((rig.sent(LAN), rig.sent(WAN)));
        let told = copies(&rings);
        let outcomes: Vec<_> = told.iter().map(|copy| copy.told.outcome).collect();
        let counted = rig.moved();
        for (copy, outcome) in told.iter().zip(&outcomes) {
            let Outcome::Dropped(reason) = outcome else { panic!("{copy:?}") };
            assert_eq!(counted.get(reason.name()), Some(&1), "{counted:?}");
            assert_eq!((copy.after, copy.device), (false, WAN));
        }
        assert!(outcomes.contains(&Outcome::Dropped(DropReason::OtherHost)), "{outcomes:?}");
        assert!(told.len() >= 2 && told.iter().all(|copy| copy.bytes != sent), "{outcomes:?}");
    }
}

// DLT_EN10MB and DLT_RAW of libpcap's pcap/dlt.h.
const FRAMES: i32 = 1;
const PACKETS: i32 = 12;

#[test]
fn filters_look_at_the_outside_and_at_the_inside_of_either_form() {
    for net in Net::BOTH {
        let (vip, pod, client) = (net.vip(1), net.pod(0, 5), net.client(7));
        // What it asks for, whether the packet is wanted.
        let outside = [
            (format!("host {client}"), true),
            (format!("src host {vip}"), false),
            // Only as it leaves, between the VTEPs.
            (format!("host {}", net.peer(0)), true),
            ("udp port 8472".into(), true),
            // On the outside there is no pod.
            (format!("host {pod}"), false),
            ("arp".into(), false),
            ("tcp[tcpflags] & tcp-syn != 0".into(), net == Net::BOTH[0]),
        ];
        let inside = [
            (format!("host {pod} and tcp port 8080"), true),
            (format!("host {client} and tcp dst port 80"), true),
            (format!("host {}", net.peer(0)), false),
            (format!("{} and not port 8080 and not port 80", if net == Net::BOTH[0] { "ip" } else { "ip6" }), false),
        ];
        let of = |filter: &str, inner: &str| Wanted {
            filter: if filter.is_empty() { vec![] } else { compiled(filter, FRAMES) },
            inner: if inner.is_empty() { vec![] } else { compiled(inner, PACKETS) },
            ..everything()
        };
        let outside = outside.map(|(text, wanted)| (of(&text, ""), text, wanted));
        let inside = inside.map(|(text, wanted)| (of("", &text), text, wanted));
        for (question, text, wanted) in outside.into_iter().chain(inside) {
            let mut rig = town();
            let rings = begin(&mut rig, 1, &question).unwrap();
            rig.rx_wan(&to_web(net).syn(100));
            rig.sent_one(LAN);
            assert_eq!(copies(&rings).len(), if wanted { 2 } else { 0 }, "{text}");
        }
        let mut rig = town();
        let after = Wanted { forms: Forms::After, snap_bytes: 40, ..of(&format!("host {client}"), "") };
        let rings = begin(&mut rig, 1, &after).unwrap();
        rig.rx_wan(&to_web(net).syn(100));
        let sent = rig.sent_one(LAN);
        let told = copies(&rings);
        assert_eq!((told.len(), &told[0].bytes[..], told[0].length as usize), (1, &sent[..40], sent.len()));
    }
}

#[test]
fn there_are_only_so_many_and_one_that_nobody_reads_ends_by_itself() {
    let mut rig = town();
    let mut all: Vec<_> =
        (0..CAPTURES_MAX as u64).map(|number| begin(&mut rig, number, &everything()).unwrap()).collect();
    assert!(begin(&mut rig, 99, &everything()).is_none());
    drop(all.pop());
    rig.turn();
    let again = begin(&mut rig, 100, &everything()).expect("the place of one that was abandoned");
    for net in Net::BOTH {
        rig.rx_wan(&to_web(net).syn(100));
        rig.sent_one(LAN);
    }
    for rings in all.iter().chain([&again]) {
        assert_eq!(copies(rings).len(), 4, "each tells of each packet");
    }
}

/// What waits for its neighbour is told twice: when it comes, and when it leaves.
#[test]
fn a_packet_that_waits_for_its_neighbour_is_told_when_it_leaves() {
    use tidegate_dataplane::table::neighbour::NeighbourState;
    for net in Net::BOTH {
        let mut rig = town();
        let set = |rig: &mut Rig, state| {
            rig.publish(|tables| {
                let neighbours = Arc::make_mut(&mut tables.neighbours);
                let row = *neighbours.row(net.peer_neighbour(0)).unwrap();
                neighbours
                    .set(net.peer_neighbour(0), tidegate_dataplane::table::neighbour::NeighbourRow { state, ..row });
            });
        };
        set(&mut rig, NeighbourState::Unresolved);
        let rings = begin(&mut rig, 1, &everything()).unwrap();
        rig.rx_wan(&to_web(net).syn(100));
        let told = copies(&rings);
        assert_eq!((told.len(), told[0].told.outcome, told[0].after), (1, Outcome::Held, false), "{told:?}");
        set(&mut rig, NeighbourState::Resolved);
        rig.turn();
        let (sent, told) = (rig.sent_one(LAN), copies(&rings));
        assert_eq!((told.len(), told[0].told.outcome, &told[0].bytes), (1, Outcome::Released, &sent), "{told:?}");
    }
}

/// Whatever comes, a watched gateway sends and counts the same as one that is not.
#[test]
fn watching_changes_nothing() {
    let (mut plain, mut watched) = (town(), town());
    // So that both have turned as often.
    plain.turn();
    let rings = begin(&mut watched, 1, &everything()).unwrap();
    let mut random = Entropy::new(11);
    for round in 0..400u32 {
        let mut frames = Vec::new();
        for _ in 0..1 + random.draw() % 20 {
            let net = Net::BOTH[(random.draw() % 2) as usize];
            let from = (net.client((random.draw() % 9) as u16), 40_000 + (random.draw() % 5) as u16);
            let to = (net.vip(1), [80, 81, 53, 54][(random.draw() % 4) as usize]);
            let mut frame = match random.draw() % 4 {
                0 => tcp(from, to).syn(round).frame(FROM_ROUTER),
                1 => tcp(from, to).ack(round, 7).frame(FROM_ROUTER),
                2 => udp(from, to).data(*b"who?").frame(FROM_ROUTER),
                _ => from_peer(net, 0, &syn_ack(net, 1024 + (random.draw() % 64_000) as u16)),
            };
            if random.draw().is_multiple_of(10) {
                let at = (random.draw() as usize) % frame.len();
                frame[at] ^= 1 << (random.draw() % 8);
            }
            frames.push((if random.draw().is_multiple_of(8) { LAN } else { WAN }, frame));
        }
        for rig in [&mut plain, &mut watched] {
            frames.iter().for_each(|(device, frame)| assert!(rig.inject(*device, frame)));
            rig.turn();
        }
        for device in [WAN, LAN] {
            assert_eq!(plain.sent(device), watched.sent(device), "round {round}");
        }
        assert_eq!(plain.worker.counters().nonzero(), watched.worker.counters().nonzero(), "round {round}");
        let told = copies(&rings);
        assert!(told.iter().filter(|copy| !copy.after).count() == frames.len(), "each once");
        told.into_iter().for_each(|copy| rings.give_back(copy));
    }
    plain.expect_balance();
    watched.expect_balance();
}

/// A packet that arrives at one worker and belongs to another is told once, by its owner.
#[test]
fn what_is_handed_over_is_told_by_who_decides() {
    let mut fleet = Fleet::new(tables(), 2).unwrap();
    let mut all = Vec::new();
    for worker in 0..2 {
        let ((tap, rings), (reply, answer)) = (tap(7, &everything()), bounded(1));
        fleet.mailboxes[worker].send(Request::Capture { tap, reply }).unwrap();
        fleet.workers[worker].turn(fleet.now_ns);
        assert!(answer.try_recv().unwrap());
        all.push(rings);
    }
    let mut handed = 0;
    for n in 0..20 {
        for net in Net::BOTH {
            let frame = tcp((net.client(n), 40_000), web(net)).syn(1).frame(FROM_ROUTER);
            assert!(fleet.peers[0][0].inject(&frame));
            for _ in 0..4 {
                fleet.now_ns += 10_000;
                let now = fleet.now_ns;
                for worker in &mut fleet.workers {
                    worker.turn(now);
                }
            }
            let told: Vec<Vec<Copied>> = all.iter().map(|rings| copies(rings)).collect();
            let owner = usize::from(told[0].is_empty());
            handed += owner;
            assert_eq!((told[owner].len(), told[1 - owner].len()), (2, 0), "{told:?}");
            assert_eq!((&told[owner][0].bytes, told[owner][0].device), (&frame, WAN));
            assert_eq!(told[owner][1].told.outcome, Outcome::Sent(1));
        }
    }
    assert!((5..35).contains(&handed), "{handed} of 40 were the other worker's");
}
