//! Facts about drop reasons: cards name what their files use, every reason is used, the document is fresh.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use tidegate_api::resource::TrafficPolicy;
use tidegate_dataplane::drops::{self, DropReason};
use tidegate_dataplane::fuzzing::{self, Scene, headers, repair};
use tidegate_dataplane::packet::Domain;
use tidegate_dataplane::rig::catalog::pod;
use tidegate_dataplane::rig::expect::{Outer, from_peer_with, vxlan};
use tidegate_dataplane::rig::fleet::{Fleet, Plan};
use tidegate_dataplane::rig::sketch::{Sketch, ethernet, ping, raw, sctp, tcp, udp};
use tidegate_dataplane::rig::{FROM_ROUTER, LAN, LAN_MAC, Net, Rig, VNI, VTEP_MAC, WAN, peer_mac, peer_vtep_mac};
use tidegate_dataplane::state::fragment::WAIT_NS;
use tidegate_dataplane::table::neighbour::{NeighbourRow, NeighbourState};
use tidegate_dataplane::table::{DeviceId, Tables};

use crate::{decap, gateway_of, terms, to_names, to_web, web, web_pod};

fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = vec![];
    for folder in ["", "pipeline", "stage", "worker"] {
        for entry in fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.file_stem().unwrap().to_string_lossy().into_owned();
                found.push((format!("{folder}/{name}"), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found
}

/// Names after `DropReason::` in code, comments left out.
fn used(text: &str) -> BTreeSet<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let names = code.split("DropReason::").skip(1);
    let names = names.map(|rest| rest.chars().take_while(|c| c.is_ascii_alphanumeric()).collect::<String>());
    names.filter(|name| DropReason::ALL.iter().any(|reason| reason.name() == name)).collect()
}

/// Names in backquotes on the `drops` lines of a card, and whether it says that it passes on what the wire says.
fn promised(text: &str) -> (BTreeSet<String>, bool) {
    let card: Vec<&str> = text.lines().take_while(|line| line.starts_with("//!")).collect();
    let Some(start) = card.iter().position(|line| line.starts_with("//! drops ")) else { return Default::default() };
    let more = card.iter().skip(start + 1).take_while(|line| line.starts_with("//!         "));
    let lines: Vec<&str> = card[start..=start].iter().chain(more).copied().collect();
    let lines = lines.join(" ");
    let wire = lines.contains("every reason of `wire::Malformed`");
    let names = lines.split('`').skip(1).step_by(2).filter(|name| *name != "wire::Malformed");
    (names.map(str::to_owned).collect(), wire)
}

#[test]
fn the_card_of_a_stage_names_exactly_the_drops_its_file_uses() {
    // style.md: "a test compares `drops` with the variants the file actually uses"
    let all = sources();
    let malformed =
        all.iter().find(|(name, _)| name == "/drops").map(|(_, text)| self::used(from_malformed(text))).unwrap();
    for (name, text) in all.iter().filter(|(name, _)| name.starts_with("stage/") && name != "stage/mod") {
        let (promised, wire) = promised(text);
        let mut used = self::used(text);
        if wire {
            // These say that a slice was not there, which the wire's reasons cover.
            used.retain(|name| !malformed.contains(name));
        }
        assert_eq!(promised, used, "{name}: left is the card, right is the code");
    }
}

#[test]
fn every_reason_is_given_somewhere() {
    let used: BTreeSet<String> = sources()
        .iter()
        .flat_map(|(name, text)| if name == "/drops" { used(from_malformed(text)) } else { used(text) })
        .collect();
    let all: BTreeSet<String> = DropReason::ALL.iter().map(|reason| reason.name().to_owned()).collect();
    assert_eq!(all.difference(&used).collect::<Vec<_>>(), Vec::<&String>::new());
}

fn from_malformed(text: &str) -> &str {
    text.split_once("impl From<Malformed> for DropReason").map_or("", |(_, rest)| rest)
}

#[test]
fn every_reason_names_a_stage_that_exists_and_names_are_unique() {
    let names: BTreeSet<&str> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(names.len(), DropReason::COUNT);
    let stages: BTreeSet<String> =
        sources().into_iter().filter_map(|(name, _)| Some(name.strip_prefix("stage/")?.into())).collect();
    for reason in DropReason::ALL {
        assert!(stages.contains(reason.stage()), "{reason:?} says {}", reason.stage());
        assert!(reason.help().ends_with('.') && reason.help().len() > 10, "{reason:?}");
    }
}

/// `TIDEGATE_REGENERATE=1 cargo test -p tidegate-dataplane --test golden document` writes it.
#[test]
fn the_document_is_fresh() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/drops.md");
    if std::env::var_os("TIDEGATE_REGENERATE").is_some() {
        fs::write(&path, drops::document()).unwrap();
    }
    let text = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, drops::document(), "regenerate docs/drops.md");
}

/// Reasons that no frame can have: parse makes the first impossible, the headroom of every port the second.
const OUT_OF_REACH: &[DropReason] = &[DropReason::EditRefused, DropReason::NoHeadroom];

/// Everything that any frame of these was dropped for.
fn reasons(rig: &Rig, seen: &mut BTreeSet<&'static str>) {
    seen.extend(rig.worker.counters().nonzero().into_keys());
}

/// A rig with tables that are short of something.
fn short(change: impl FnOnce(&mut Tables)) -> Rig {
    let mut tables = crate::tables();
    change(&mut tables);
    Rig::new(tables).unwrap()
}

/// What only tunnels that end here can have.
fn tunnels(seen: &mut BTreeSet<&'static str>) {
    for net in Net::BOTH {
        let mut rig = Rig::new(decap::tables()).unwrap();
        let kind = if net == Net::BOTH[0] { 4 } else { 41 };
        let tunnel = |from| raw(from, net.gateway(), kind);
        let inside = tunnel(decap::balancer(net)).data(to_web(net).syn(1).packet());
        rig.rx_wan(&tunnel(net.client(1)));
        rig.rx_wan(&inside.clone().fragment(0, true));
        rig.rx_wan(&tunnel(decap::balancer(net)).data(inside.packet()));
        let gue = udp((decap::balancer(net), 1), (net.gateway(), 6080));
        rig.rx_wan(&gue.clone().data([0; 2]));
        rig.rx_wan(&gue.data([0x80, 0, 0, 0]));
        reasons(&rig, seen);
    }
}

/// What only fragments and several workers can have.
fn fragments_and_hand_overs(seen: &mut BTreeSet<&'static str>) {
    for net in Net::BOTH {
        let mut rig = short(|_| ());
        let piece = |offset| to_names(net).data([1; 64]).fragment(offset, true);
        (0..2).for_each(|_| rig.rx_wan(&piece(64)));
        (0..20).for_each(|n| rig.rx_wan(&Sketch { id: 9, ..piece(72 * 2 * (n + 1)) }));
        rig.now_ns += WAIT_NS;
        rig.turn();
        rig.rx_wan(&ping(net.client(7), net.vip(1)).fragment(0, true));
        reasons(&rig, seen);
        let plan = Plan { hand_over_packets: 1, ..Plan::of(2) };
        let mut fleet = Fleet::with(crate::tables(), plan).unwrap();
        let owner = fleet.owner(&to_names(net), Domain::Wire);
        (0..2).for_each(|_| assert!(fleet.inject(1 - owner, WAN, &to_names(net).frame(FROM_ROUTER))));
        fleet.settle();
        seen.extend(fleet.counted().into_keys());
    }
    // Reached by `workers::a_packet_changes_hands_twice_at_most`, which takes three workers and a Service that is toggled.
    seen.insert(DropReason::HandOverLoop.name());
}

#[test]
fn every_reason_is_reached_by_a_frame() {
    let mut seen = BTreeSet::new();
    for net in Net::BOTH {
        // Frames of every kind, broken one byte and one length at a time.
        let mut scene = Scene::new(fuzzing::tables(), 64);
        for (_, device, frame) in scene.specimens() {
            for at in 0..frame.len().min(140) {
                for value in [0, 0x60, 0xff, frame[at] ^ 1, frame[at] ^ 0x80] {
                    let mut broken = frame.clone();
                    broken[at] = value;
                    headers(&broken).into_iter().rev().for_each(|at| repair(&mut broken, at));
                    scene.play(device, &broken);
                }
                scene.play(device, &frame[..at]);
            }
        }
        // What takes more than one wrong byte.
        let stray = to_web(net).ack(1, 1).between((net.client(50), 9), web(net));
        scene.rig.rx_wan(&stray);
        let padded = sctp(crate::client(net), (net.vip(1), 3868)).tag(8);
        scene.rig.rx_wan(&padded.clone().data([9, 0, 0, 2]));
        scene.rig.rx_wan(&padded.clone().chunk(0, 3, &[1; 40]).fragment(0, true));
        let mut damaged = padded.chunk(0, 3, &[1; 40]).frame(FROM_ROUTER);
        *damaged.last_mut().unwrap() ^= 1;
        scene.rig.rx(WAN, &damaged);
        for protocol in [1, 6, 17, 58, 132] {
            scene.rig.rx_wan(&raw(net.client(7), net.vip(1), protocol).data([0; 3]));
        }
        scene.rig.rx_wan(&to_names(net).options(&[131, 7, 4, 10, 0, 0, 1, 0]));
        scene.rig.rx_wan(&to_names(net).options(&[7, 1, 0, 0]));
        scene.rig.rx_wan(&to_names(net).data([1; 63]).fragment(64, true));
        scene.rig.rx(LAN, &from_peer_with(net, 0, 3, &tcp(web_pod(net), (net.source(), 2000)).ack(1, 1)));
        scene.rig.rx_wan(&to_web(net).segment("", 101, 501).between((net.client(7), 40_000), web(net)));
        let underlay = udp((net.peer(0), 50_000), (net.underlay(), 8472));
        scene.rig.rx(LAN, &underlay.data([8, 0, 0]).frame((peer_mac(0), LAN_MAC)));
        let other = if net == Net::BOTH[0] { Net::BOTH[1] } else { Net::BOTH[0] };
        let inner = to_names(other).frame((peer_vtep_mac(0), VTEP_MAC));
        let outer = Outer { source_port: 50_000, id: 1, tos: 0 };
        scene.rig.rx(LAN, &vxlan((peer_mac(0), LAN_MAC), (net.peer(0), net.underlay()), outer, VNI, &inner));
        let mut unsound = to_names(net).frame(FROM_ROUTER);
        unsound[24] ^= 1;
        scene.rig.rx(WAN, &unsound);
        if net == Net::BOTH[1] {
            scene.rig.rx_wan(&to_names(net).unsummed());
            let (mut chain, mut twice, mut routed) =
                (to_names(net).packet(), to_names(net).packet(), to_names(net).packet());
            routed.splice(40..40, [17, 0, 0, 1, 0, 0, 0, 0]);
            chain.splice(40..40, (0..12).flat_map(|n| [if n == 11 { 17 } else { 60 }, 0, 1, 4, 0, 0, 0, 0]));
            twice.splice(40..40, [0, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0]);
            for (packet, first) in [(&mut chain, 60), (&mut twice, 60), (&mut routed, 43)] {
                let length = u16::try_from(packet.len() - 40).unwrap().to_be_bytes();
                (packet[4], packet[5], packet[6]) = (length[0], length[1], first);
                scene.rig.rx(WAN, &ethernet(FROM_ROUTER, 0x86dd, packet));
            }
        }
        reasons(&scene.rig, &mut seen);
        let mut rig = short(|tables| tables.settings.reject_rate_per_s = 0);
        for packet in [
            to_web(net).syn(1).ttl(1),
            to_names(net).long(1500),
            ping(net.client(7), net.vip(1)),
            tcp(crate::client(net), (net.vip(1), 81)).syn(1),
        ] {
            rig.rx_wan(&packet);
        }
        reasons(&rig, &mut seen);
        let mut rig = short(|tables| tables.nat = Default::default());
        rig.rx_wan(&to_names(net));
        reasons(&rig, &mut seen);
        // A small pool is all in the receive rings.
        let mut rig = short(|_| ());
        (0..3).for_each(|_| rig.rx_wan(&to_names(net).long(1500).may_fragment()));
        reasons(&rig, &mut seen);
        let mut rig = short(|tables| tables.routes = Default::default());
        rig.rx_wan(&to_names(net));
        reasons(&rig, &mut seen);
        let mut rig = short(|tables| Arc::make_mut(&mut tables.tunnels).clear(net.tunnel(0)));
        rig.rx_wan(&to_names(net));
        reasons(&rig, &mut seen);
        let mut rig = short(|tables| {
            let neighbours = Arc::make_mut(&mut tables.neighbours);
            let row = neighbours.row(net.peer_neighbour(0)).copied().unwrap();
            neighbours.set(net.peer_neighbour(0), NeighbourRow { device: DeviceId(9), ..row });
            let device = tables.devices.row(LAN).cloned().unwrap();
            Arc::make_mut(&mut tables.devices).set(DeviceId(9), device);
        });
        rig.rx_wan(&to_names(net));
        reasons(&rig, &mut seen);
        let mut rig = short(|tables| {
            let neighbours = Arc::make_mut(&mut tables.neighbours);
            let row = neighbours.row(net.peer_neighbour(0)).copied().unwrap();
            neighbours.set(net.peer_neighbour(0), NeighbourRow { state: NeighbourState::Unresolved, ..row });
        });
        (0..5).for_each(|_| rig.rx_wan(&to_names(net)));
        rig.worker.stop();
        reasons(&rig, &mut seen);
        let mut rig = Rig::with(crate::tables(), 1, 4096, 1).unwrap();
        crate::connect(&mut rig, net);
        rig.rx_wan(&to_names(net));
        reasons(&rig, &mut seen);
        let mut rig = Rig::with(crate::tables(), 4, 4096, 1).unwrap();
        (0..600).for_each(|_| rig.rx_wan(&udp((net.client(0), 1), crate::names(net)).data(*b"x")));
        reasons(&rig, &mut seen);
    }
    for net in Net::BOTH {
        let mut web = terms::everywhere(net, vec![pod(net, 0, 5, 1, 0)]);
        web.source_ranges = vec![net.client(1).into()];
        web.ports[0].external_policy = TrafficPolicy::Local;
        web.ports[0].internal_policy = TrafficPolicy::Local;
        let (mut rig, _) = gateway_of(&[("shop/web", web)]);
        let [vip, others @ ..] = terms::frontends(net);
        rig.rx_wan(&tcp(crate::client(net), vip).syn(1));
        others.iter().for_each(|frontend| rig.rx_wan(&tcp(crate::client(net), *frontend).syn(1)));
        reasons(&rig, &mut seen);
        reasons(&crate::egress::refusals(net), &mut seen);
        reasons(&crate::protocols::refusal(net), &mut seen);
        reasons(&crate::policy::refusals(net), &mut seen);
        reasons(&crate::gatepolicy::refusals(net), &mut seen);
    }
    fragments_and_hand_overs(&mut seen);
    tunnels(&mut seen);
    // Reached by `nat::every_port_of_a_backend_can_be_used_and_the_next_flow_is_a_counted_drop`, which takes 64,512 flows.
    seen.insert(DropReason::PortsExhausted.name());
    let missing: Vec<_> = DropReason::ALL.iter().filter(|reason| !seen.contains(reason.name())).collect();
    assert_eq!(missing, OUT_OF_REACH.iter().collect::<Vec<_>>());
}
