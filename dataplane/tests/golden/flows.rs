//! Flow export: one packet in N is noted, with what became of it and whose it is, and telling changes nothing.

use std::sync::Arc;

use tidegate_api::resource::{Backend, Body, Pod, Protocol, Resource};
use tidegate_dataplane::flows::record::{Event, Flow, Line, Origin};
use tidegate_dataplane::flows::{Note, Notes, Sampler};
use tidegate_dataplane::names::{Names, Registered, Registry};
use tidegate_dataplane::packet::Domain;
use tidegate_dataplane::rig::catalog;
use tidegate_dataplane::rig::expect::from_peer;
use tidegate_dataplane::rig::fleet::Fleet;
use tidegate_dataplane::rig::outside::{self, external};
use tidegate_dataplane::rig::sketch::ping;
use tidegate_dataplane::rig::{self, FROM_ROUTER, LAN, WAN};
use tidegate_dataplane::state::Capacity;
use tidegate_dataplane::state::connections::Connections;
use tidegate_dataplane::table::Tables;
use tidegate_io::HugePages;
use tidegate_ledger::Kept;

use super::*;

/// The rig's tables, one pod by name and one by its Service.
struct Cluster(Tables);

impl Registry for Cluster {
    fn generation(&self) -> u64 {
        self.0.generation
    }

    fn look(&self) -> Option<Registered> {
        let addresses = Net::BOTH.map(|net| net.pod(0, 5)).to_vec();
        let body = Body::Pod(Pod { addresses, node: "w1".into(), ..Pod::default() });
        let pods = vec![Arc::new(Resource { name: "shop/five".into(), version: "1".into(), body })];
        Some(Registered { pods, tables: self.0.clone() })
    }

    fn services(&self) -> Vec<Arc<Resource>> {
        let backend = |net: Net| Backend {
            address: net.pod(1, 6),
            port: 8080,
            weight: 1,
            local_weight: 0,
            node: "w2".into(),
            pod: "six".into(),
        };
        let backends = Net::BOTH.map(backend).to_vec();
        let body = Body::Service(catalog::service(Net::BOTH[0].vip(200), Protocol::Tcp, 80, backends));
        vec![Arc::new(Resource { name: "blog/front".into(), version: "1".into(), body })]
    }
}

fn told(tables: &Tables, notes: &[Note]) -> Vec<Flow> {
    let mut names = Names::default();
    names.refresh_at_leisure(&Cluster(tables.clone()));
    let origin = Origin { worker: 0, sampling: 1, epoch_ns: 1_700_000_000_000_000_000 };
    notes.iter().map(|note| Flow::of(note, &names, &origin)).collect()
}

fn all(notes: &Notes) -> Vec<Note> {
    std::iter::from_fn(|| notes.take()).collect()
}

/// Everything is noted from now on.
fn begin(rig: &mut Rig) -> Arc<Notes> {
    let notes = Notes::new();
    rig.worker.sample(Sampler::new(1, Arc::clone(&notes), 3));
    notes
}

fn ends(flow: &Flow) -> (End, End) {
    let port = |port: Option<u16>| port.unwrap_or_default();
    ((flow.source, port(flow.source_port)), (flow.destination, port(flow.destination_port)))
}

fn translated(flow: &Flow) -> (End, End) {
    let left = flow.translated.unwrap();
    (
        (left.translated_source, left.translated_source_port),
        (left.translated_destination, left.translated_destination_port),
    )
}

#[test]
fn every_packet_of_a_fullnat_connection_is_told_with_both_names() {
    for net in Net::BOTH {
        let mut rig = town();
        let notes = begin(&mut rig);
        let port = connect(&mut rig, net);
        let flows = told(&rig.publisher.current().clone(), &all(&notes));
        let (gateway, pod) = ((net.source(), port), web_pod(net));
        let there = ((client(net), web(net)), (gateway, pod));
        let back = ((pod, gateway), (web(net), client(net)));
        let expected = [(there, false, "S"), (back, true, "SA"), (there, false, "A")];
        assert_eq!(flows.len(), expected.len());
        for (flow, ((came, left), is_reply, flags)) in flows.iter().zip(expected) {
            assert_eq!((ends(flow), translated(flow)), (came, left));
            assert_eq!(
                (flow.is_reply, flow.tcp_flags.as_deref(), flow.protocol.as_str()),
                (Some(is_reply), Some(flags), "TCP")
            );
            assert_eq!((flow.verdict, flow.drop_reason, flow.sampling), (Some("forwarded"), None, Some(1)));
            assert!(flow.service.starts_with("test/service-1"), "{flow:?}");
            let pods = [&flow.source_pod, &flow.destination_pod].map(String::as_str);
            let nodes = [&flow.source_node, &flow.destination_node].map(String::as_str);
            let (expected_pods, expected_nodes) =
                if is_reply { (["shop/five", ""], ["w1", ""]) } else { (["", "shop/five"], ["", "w1"]) };
            assert_eq!((pods, nodes), (expected_pods, expected_nodes));
            assert_eq!(flow.device.as_deref(), Some(if is_reply { "lan0" } else { "wan0" }));
            let header = if net == Net::BOTH[0] { 20 } else { 40 };
            let bytes = flow.bytes.unwrap();
            assert!((header + 20..=header + 24).contains(&bytes), "{bytes}");
        }
        rig.turn();
        assert_eq!(rig.worker.counters().nonzero()["flow_noted"], 3);
        // A pod that only a Service names.
        rig.rx_wan(&tcp(client(net), (net.vip(200), 80)).syn(7));
        rig.sent(LAN);
        let flows = told(&rig.publisher.current().clone(), &all(&notes));
        assert_eq!((flows[0].destination_pod.as_str(), flows[0].destination_node.as_str()), ("blog/six", "w2"));
    }
}

#[test]
fn a_line_of_json_has_what_is_known() {
    let net = Net::BOTH[0];
    let mut rig = town();
    let notes = begin(&mut rig);
    rig.rx_wan(&to_names(net));
    let (port, _) = rig.expect_overlay(net, 0, &udp((net.source(), 0), names_pod(net)).data(*b"who?").ttl(63));
    let flows = told(&rig.publisher.current().clone(), &all(&notes));
    let mut line = Vec::new();
    Line::Flow(Box::new(flows[0].clone())).write(&mut line).unwrap();
    let at = flows[0].at;
    let expected = format!(
        r#"{{"at":"{at}","event":"sample","sampling":1,"worker":0,"device":"wan0","protocol":"UDP","source":"198.18.0.7","source_port":40000,"destination":"203.0.113.1","destination_port":53,"translated_source":"10.244.9.2","translated_source_port":{port},"translated_destination":"10.244.1.5","translated_destination_port":5353,"packets":1,"bytes":32,"is_reply":false,"verdict":"forwarded","service":"test/service-2","destination_pod":"shop/five","destination_node":"w1"}}"#
    );
    assert_eq!(String::from_utf8(line).unwrap(), expected + "\n");
}

#[test]
fn packets_of_the_other_ways_are_told_as_they_go() {
    for net in Net::BOTH {
        // symmetric: the client stays; node-dsr: everything stays, and the node is known.
        for (mode, node) in [("symmetric", "w1"), ("node-dsr", "w2")] {
            let mut tables = tables();
            for id in [1, 11] {
                match mode {
                    "symmetric" => rig::deliver_symmetric(&mut tables, id),
                    _ => rig::deliver_to_nodes(&mut tables, id, &[(1, 1)]),
                }
            }
            let mut rig = Rig::new(tables).unwrap();
            let notes = begin(&mut rig);
            rig.rx_wan(&to_web(net).syn(100));
            rig.sent_one(LAN);
            let flows = told(&rig.publisher.current().clone(), &all(&notes));
            assert_eq!((flows.len(), ends(&flows[0])), (1, (client(net), web(net))), "{mode}");
            assert!(
                flows[0].service.starts_with("test/service-1") && flows[0].verdict == Some("forwarded"),
                "{:?}",
                flows[0]
            );
            match mode {
                "symmetric" => {
                    assert_eq!(translated(&flows[0]), (client(net), web_pod(net)));
                    assert_eq!(flows[0].destination_node, node);
                }
                _ => assert_eq!(flows[0].translated, None),
            }
        }
        // A pod to the outside, and the answer.
        let (mut rig, _outside) = egress::town();
        let notes = begin(&mut rig);
        let (pod, web, ours) = (egress::pod(net), egress::web(net), external(net, 1));
        rig.rx_overlay(net, 0, &tcp(pod, web).syn(100));
        let port = egress::expect_out(&mut rig, &tcp((ours, 0), web).syn(100).ttl(63).mss(mss(net)));
        rig.rx_wan(&tcp(web, (ours, port)).syn_ack(500, 101));
        rig.sent_one(LAN);
        let flows = told(&rig.publisher.current().clone(), &all(&notes));
        assert_eq!((ends(&flows[0]), translated(&flows[0])), ((pod, web), ((ours, port), web)));
        assert_eq!((ends(&flows[1]), translated(&flows[1])), ((web, (ours, port)), (web, pod)));
        for (flow, is_reply) in flows.iter().zip([false, true]) {
            assert_eq!((flow.policy.as_str(), flow.service.as_str(), flow.is_reply), ("out", "", Some(is_reply)));
            let pods = [&flow.source_pod, &flow.destination_pod].map(String::as_str);
            assert_eq!(pods, if is_reply { ["", "shop/five"] } else { ["shop/five", ""] });
        }
    }
}

#[test]
fn what_is_dropped_is_told_with_its_reason_and_what_is_no_packet_is_not() {
    for net in Net::BOTH {
        let mut rig = town();
        let notes = begin(&mut rig);
        // Nobody behind the Service; a stray segment; cut off; to another host; an echo request.
        let no_endpoint = tcp(client(net), (net.vip(1), 81)).syn(1).frame(FROM_ROUTER);
        let stray = to_web(net).ack(7, 8).frame(FROM_ROUTER);
        let mut other_host = stray.clone();
        other_host[5] ^= 0x55;
        let echo = ping(client(net).0, net.vip(1)).frame(FROM_ROUTER);
        for frame in [&no_endpoint, &stray, &stray[..20].to_vec(), &other_host, &echo] {
            rig.rx(WAN, frame);
        }
        drop((rig.sent(LAN), rig.sent(WAN)));
        let flows = told(&rig.publisher.current().clone(), &all(&notes));
        let said: Vec<_> = flows.iter().map(|flow| (flow.verdict.unwrap(), flow.drop_reason)).collect();
        let (orphan, foreign) = (("dropped", Some("OrphanSegment")), ("dropped", Some("OtherHost")));
        assert_eq!(said, [("answered", None), orphan, foreign, ("answered", None)]);
        assert_eq!(flows[1].service, if net == Net::BOTH[0] { "test/service-1" } else { "test/service-11" });
        assert!(flows.iter().all(|flow| flow.device.as_deref() == Some("wan0") && flow.source == client(net).0));
        assert_eq!((flows[3].source_port, flows[3].destination_port), (Some(0x7766), Some(0x7766)), "the identifier");
    }
}

/// Every packet once, whatever queue it came in by and whoever owns it; with one in ten, a tenth of them.
#[test]
fn packets_that_change_hands_are_told_once() {
    for (workers, net) in [1, 2, 3].into_iter().flat_map(|workers| Net::BOTH.map(|net| (workers, net))) {
        let mut fleet = Fleet::new(tables(), workers).unwrap();
        let rings: Vec<_> = fleet.workers.iter().map(|_| Notes::new()).collect();
        let sample = |fleet: &mut Fleet, one_in| {
            for (n, (worker, notes)) in (0..).zip(fleet.workers.iter_mut().zip(&rings)) {
                worker.sample(Sampler::new(one_in, Arc::clone(notes), n));
            }
        };
        sample(&mut fleet, 1);
        let packet = |n: u16| udp((net.client(n), 1000 + n), names(net)).data(*b"who?");
        for n in 0..300u16 {
            let queue = usize::from(n) % usize::from(workers);
            fleet.rx(queue, WAN, &packet(n).frame(FROM_ROUTER));
            let owner = fleet.owner(&packet(n), Domain::Wire);
            let found: Vec<usize> = rings.iter().map(|notes| all(notes).len()).collect();
            let expected: Vec<usize> = (0..usize::from(workers)).map(|at| usize::from(at == owner)).collect();
            assert_eq!(found, expected, "{n}: told by its owner, once");
        }
        fleet.sent(LAN);
        sample(&mut fleet, 10);
        for n in 0..6000u16 {
            fleet.rx(usize::from(n) % usize::from(workers), WAN, &packet(n % 300).frame(FROM_ROUTER));
            fleet.sent(LAN);
        }
        let found: usize = rings.iter().map(|notes| all(notes).len()).sum();
        // One in ten of six thousand: four deviations of the distance's N/√3, for each worker's own beginning too.
        assert!((530..=670).contains(&found), "{workers} workers: {found}");
    }
}

/// Sampling changes neither what leaves nor what else is counted, also beside a capture.
#[test]
fn telling_changes_nothing() {
    for (net, beside) in Net::BOTH.into_iter().flat_map(|net| [false, true].map(|beside| (net, beside))) {
        let run = |sampling: u32| {
            let mut rig = town();
            let notes = Notes::new();
            rig.worker.sample(Sampler::new(sampling, Arc::clone(&notes), 9));
            let rings = beside.then(|| capture::begin(&mut rig, 1, &capture::everything()).unwrap());
            let port = connect(&mut rig, net);
            let mut left = Vec::new();
            for n in 0..200 {
                rig.inject(WAN, &to_web(net).segment("PA", 101, 501).data([n; 9]).frame(FROM_ROUTER));
                let answer = tcp(web_pod(net), (net.source(), port)).segment("PA", 501, 106).data([n; 7]);
                rig.inject(LAN, &from_peer(net, 0, &answer));
                if n % 9 == 0 {
                    rig.turn();
                    left.extend(rig.sent(LAN).into_iter().chain(rig.sent(WAN)));
                }
            }
            rig.turn();
            left.extend(rig.sent(LAN).into_iter().chain(rig.sent(WAN)));
            rig.turn();
            let mut counted = rig.worker.counters().nonzero();
            let noted = counted.remove("flow_noted").unwrap_or_default();
            let captured = rings.map(|rings| std::iter::from_fn(|| rings.take()).count());
            assert_eq!(noted as usize, all(&notes).len());
            (left, counted, captured, noted)
        };
        let (without, with) = (run(0), run(7));
        assert_eq!((without.0, without.1, without.2), (with.0, with.1, with.2));
        assert!(without.3 == 0 && (40..=80).contains(&with.3), "{}", with.3);
    }
}

#[test]
fn a_ring_that_is_full_loses_notes_and_no_packet() {
    let net = Net::BOTH[1];
    let mut rig = town();
    let notes = Notes::with_room(16);
    rig.worker.sample(Sampler::new(1, Arc::clone(&notes), 3));
    for _ in 0..100 {
        rig.rx_wan(&to_names(net));
    }
    assert_eq!(rig.sent(LAN).len(), 100);
    rig.turn();
    let counted = rig.worker.counters().nonzero();
    assert_eq!((counted["flow_noted"], counted["flow_note_lost"], all(&notes).len()), (16, 84, 16));
}

/// A gateway that tells of every connection; its notes.
fn telling(tables: Tables) -> (Rig, Arc<Notes>) {
    let mut rig = Rig::new(tables).unwrap();
    let notes = Notes::new();
    let capacity = Capacity { flows_v4: 4096, flows_v6: 4096, backends: 1, huge: HugePages::Off };
    let connections = Connections::new(&capacity, Arc::clone(&notes)).unwrap();
    rig.worker.state_mut().connections = Some(Box::new(connections));
    (rig, notes)
}

/// Turns until everything that is idle has ended.
fn outwait(rig: &mut Rig, seconds: u64) {
    for _ in 0..seconds {
        rig.now_ns += 1_000_000_000;
        rig.turn();
    }
}

/// What a connection came to is exact, handshake included, though its entry gives its counters away every few seconds; and the
/// counters of its backend are what they are without.
#[test]
fn a_connection_is_told_when_it_begins_and_ends_with_all_that_it_came_to() {
    for net in Net::BOTH {
        let (mut rig, notes) = telling(tables());
        let port = connect(&mut rig, net);
        let begun = told(&rig.publisher.current().clone(), &all(&notes));
        assert_eq!((begun.len(), begun[0].event, ends(&begun[0])), (1, Event::Begin, (client(net), web(net))));
        assert_eq!(translated(&begun[0]), ((net.source(), port), web_pod(net)));
        assert_eq!((begun[0].destination_pod.as_str(), begun[0].verdict, begun[0].packets), ("shop/five", None, None));
        let header = if net == Net::BOTH[0] { 40 } else { 60 };
        // As the rig's packets are: a SYN with MSS or without, then bare ones.
        let (mut there, mut back) = ((2, 2 * header), (1, header));
        for n in 0..300u32 {
            rig.rx_wan(&to_web(net).segment("PA", 101, 501).data([7; 9]));
            there = (there.0 + 1, there.1 + header + 9);
            if n % 3 == 0 {
                rig.rx_overlay(net, 0, &tcp(web_pod(net), (net.source(), port)).segment("PA", 501, 101).data([7; 100]));
                back = (back.0 + 1, back.1 + header + 100);
            }
            drop((rig.sent(LAN), rig.sent(WAN)));
            // Folds come by.
            rig.now_ns += 100_000_000;
        }
        assert!(all(&notes).is_empty());
        let last_ns = rig.now_ns - 100_000_000;
        rig.rx_wan(&to_web(net).segment("R", 101, 0));
        drop(rig.sent(LAN));
        there = (there.0 + 1, there.1 + header);
        outwait(&mut rig, 30);
        let ended = told(&rig.publisher.current().clone(), &all(&notes));
        assert_eq!(ended.len(), 1, "{ended:?}");
        let end = &ended[0];
        assert_eq!((end.event, end.end_reason, ends(end)), (Event::End, Some("closed"), (client(net), web(net))));
        assert_eq!((end.packets, end.reply_packets), (Some(there.0), Some(back.0)));
        let off = |bytes: Option<u64>, expected: u64| bytes.unwrap() - expected;
        // The options of SYN and SYN-ACK.
        assert!(off(end.bytes, there.1) <= 24 && off(end.reply_bytes, back.1) <= 24, "{end:?} {there:?} {back:?}");
        let lasted = end.last_seen.unwrap().duration_since(end.began.unwrap()).as_millis();
        assert!((29_000..33_000).contains(&lasted), "{lasted} ms, last at {last_ns}");
        let usage = rig.worker.state().usage.row(if net == Net::BOTH[0] { 1000 } else { 11_000 });
        assert_eq!((usage.packets, usage.live), ([there.0, back.0], 0));
        assert_eq!(Some(usage.bytes), end.bytes.zip(end.reply_bytes).map(|(there, back)| [there, back]));
        rig.turn();
        assert_eq!(rig.worker.counters().nonzero()["flow_noted"], 2);
    }
}

/// Datagrams end by being idle; pods' flows have their policy; a flow that gives way is told too; of a flow that could not begin
/// nothing is.
#[test]
fn every_way_to_begin_and_end_is_told() {
    for net in Net::BOTH {
        let (mut rig, notes) = telling(tables());
        ask(&mut rig, net);
        outwait(&mut rig, 600);
        let told_now = |rig: &Rig| told(&rig.publisher.current().clone(), &all(&notes));
        let both = told_now(&rig);
        let said: Vec<_> = both.iter().map(|flow| (flow.event, flow.end_reason, flow.packets)).collect();
        assert_eq!(said, [(Event::Begin, None, None), (Event::End, Some("idle"), Some(1))]);
        // The tuple begins anew.
        rig.rx_wan(&to_web(net).syn(100));
        rig.rx_wan(&to_web(net).segment("R", 101, 0));
        rig.now_ns += 2_000_000_000;
        rig.rx_wan(&to_web(net).syn(90_000));
        drop(rig.sent(LAN));
        let events: Vec<_> = told_now(&rig).iter().map(|flow| (flow.event, flow.end_reason)).collect();
        let begin = (Event::Begin, None);
        assert!(
            matches!(events[..], [first, (Event::End, Some("replaced" | "closed")), last] if first == begin && last == begin),
            "{events:?}"
        );

        let (mut rig, notes) = telling(outside::town().0);
        let (pod, web) = (egress::pod(net), egress::web(net));
        let port = egress::connect(&mut rig, net, pod, web);
        let flows = told(&rig.publisher.current().clone(), &all(&notes));
        assert_eq!((flows.len(), ends(&flows[0]), flows[0].policy.as_str()), (1, (pod, web), "out"));
        assert_eq!(translated(&flows[0]), ((external(net, 1), port), web));
    }
}
