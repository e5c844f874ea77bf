//! Sets of councils on one simulated link: messages are late, lost and cut off, gateways die, drain and lag behind.

use proptest::prelude::*;
use tidegate_api::resource::GatewayPeer;

use super::*;
use crate::gateways::Link;

const MS: Nanos = 1_000_000;
const STEP: Nanos = 5 * MS;
const INTERVAL: Nanos = 50 * MS;
const DEAD_AFTER: Nanos = 300 * MS;

/// One gateway of the simulation.
struct Node {
    council: Council,
    since: Nanos,
    /// What its links say by now.
    announces: BTreeSet<IpNet>,
    /// Decisions on their way to the links.
    pending: VecDeque<(Nanos, Decision)>,
    serves: BTreeMap<IpNet, Nanos>,
}

struct Sim {
    now: Nanos,
    nodes: Vec<Option<Node>>,
    flying: Vec<(Nanos, usize, Message)>,
    cut: BTreeSet<(usize, usize)>,
    last_death: Nanos,
    runs: u64,
    random: u64,
    /// Every gateway serves these, but for what it lacks.
    vips: BTreeSet<IpNet>,
}

fn name(node: usize) -> String {
    format!("gw-{node}")
}

fn vip(number: u8) -> IpNet {
    match number % 2 {
        0 => IpNet::new([192, 0, 2, number].into(), 32).unwrap(),
        _ => IpNet::new(std::net::Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, number.into()).into(), 128).unwrap(),
    }
}

fn around(own: usize, count: usize) -> Site {
    let others = (0..count).filter(|node| *node != own).map(|node| GatewayPeer { node: name(node), addresses: vec![] });
    let link = Link {
        ifindex: 2,
        name: "wan0".into(),
        mac: [2, 0, 0, 0, 0, u8::try_from(own).unwrap()],
        up: true,
        prefixes: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8:1::/64".parse().unwrap()],
    };
    Site { others: others.collect(), has_tables: true, links: vec![link] }
}

fn settings(own: usize, epoch: u64) -> Settings {
    Settings { node: name(own), epoch, interval_ns: INTERVAL, dead_after_ns: DEAD_AFTER, alone: None }
}

impl Sim {
    fn new(gateways: usize, vips: u8, seed: u64) -> Sim {
        let mut sim = Sim {
            now: 1_000 * MS,
            nodes: (0..gateways).map(|_| None).collect(),
            flying: Vec::new(),
            cut: BTreeSet::new(),
            last_death: 0,
            runs: 0,
            random: seed | 1,
            vips: (0..vips).map(|n| vip(10 + n)).collect(),
        };
        (0..gateways).for_each(|node| sim.start(node));
        sim
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    fn start(&mut self, node: usize) {
        self.runs += 1;
        let mut council = Council::new(settings(node, self.runs));
        council.site(around(node, self.nodes.len()), self.now);
        council.vips(self.vips.iter().map(|vip| (*vip, true)), self.now);
        let serves = self.vips.iter().map(|vip| (*vip, self.now)).collect();
        let pending = VecDeque::new();
        self.nodes[node] = Some(Node { council, since: self.now, announces: BTreeSet::new(), pending, serves });
    }

    fn kill(&mut self, node: usize) {
        if self.nodes[node].take().is_some() {
            self.last_death = self.now;
        }
    }

    fn change(&mut self, node: usize, vip: IpNet, there: bool) {
        let Some(state) = &mut self.nodes[node] else { return };
        state.council.vips([(vip, there)], self.now);
        match there {
            true => drop(state.serves.insert(vip, self.now)),
            false => drop(state.serves.remove(&vip)),
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        let now = self.now;
        let (due, later) = std::mem::take(&mut self.flying).into_iter().partition(|(at, ..)| *at <= now);
        self.flying = later;
        let due: Vec<(Nanos, usize, Message)> = due;
        for (_, to, message) in due {
            if let Some(node) = &mut self.nodes[to] {
                let _ = node.council.hear(message, now);
            }
        }
        for number in 0..self.nodes.len() {
            let delay = 1 + self.draw(30);
            let lateness: Vec<u64> = (0..self.nodes.len()).map(|_| self.draw(15)).collect();
            let Some(node) = &mut self.nodes[number] else { continue };
            if let Some(decision) = node.council.decide(now) {
                let after = node.pending.back().map_or(0, |(at, _)| *at);
                node.pending.push_back((after.max(now + delay * MS), decision));
            }
            while node.pending.front().is_some_and(|(at, _)| *at <= now) {
                let (_, decision) = node.pending.pop_front().unwrap();
                node.announces.retain(|vip| !decision.withdraw.contains(vip));
                node.announces.extend(decision.announce.iter().map(|(vip, _)| *vip));
                node.council.acted(decision.number, now);
                node.council.announces(u32::try_from(node.announces.len()).unwrap(), 0);
            }
            if node.council.is_due(now) {
                let message = node.council.message(now);
                // Through the bytes: what is not said is not known.
                let keys = crate::gateways::message::tests::keys();
                let message = Message::decode(&message.encode(&keys), &keys).unwrap();
                for (to, late) in lateness.iter().enumerate() {
                    if to != number && !self.cut.contains(&(number, to)) {
                        self.flying.push((now + late * MS, to, message.clone()));
                    }
                }
            }
        }
        self.check_that_nobody_is_left_alone();
    }

    fn run(&mut self, time: Nanos) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    fn announcers(&self, vip: &IpNet) -> Vec<usize> {
        let announces = |node: &Option<Node>| node.as_ref().is_some_and(|node| node.announces.contains(vip));
        (0..self.nodes.len()).filter(|node| announces(&self.nodes[*node])).collect()
    }

    /// Never zero while one lives that serves it: but for the time that a death takes to be noticed, that a gateway listens
    /// when it begins, and that one may lag behind with a new VIP.
    fn check_that_nobody_is_left_alone(&self) {
        if self.now < self.last_death + 800 * MS {
            return;
        }
        for vip in &self.vips {
            let steady = |node: &Node| {
                let old = |since: Nanos, time: Nanos| self.now >= since + time;
                old(node.since, 1_500 * MS) && node.serves.get(vip).is_some_and(|since| old(*since, 3_000 * MS))
            };
            if self.nodes.iter().flatten().any(steady) {
                assert!(!self.announcers(vip).is_empty(), "nobody announces {vip} at {} ms", self.now / MS);
            }
        }
    }

    fn expect_one_owner_each(&self) {
        for vip in &self.vips {
            let serves = |node: &usize| self.nodes[*node].as_ref().is_some_and(|node| node.serves.contains_key(vip));
            let owner = (0..self.nodes.len()).filter(serves).min_by_key(|node| election::score(&name(*node), vip));
            assert_eq!(self.announcers(vip), owner.into_iter().collect::<Vec<_>>(), "{vip}");
        }
    }

    fn council(&mut self, node: usize) -> &mut Council {
        &mut self.nodes[node].as_mut().unwrap().council
    }

    fn cut(&mut self, a: usize, b: usize) {
        self.cut.extend([(a, b), (b, a)]);
    }

    fn dual_ms(&mut self, node: usize) -> u64 {
        let now = self.now;
        let shown = self.council(node).show(now);
        shown.counters["dual_owner_ms"]
    }
}

#[test]
fn two_gateways_share_the_vips_and_one_that_dies_is_followed_within_half_a_second() {
    let mut sim = Sim::new(2, 20, 7);
    sim.run(2_000 * MS);
    sim.expect_one_owner_each();
    assert!(sim.nodes.iter().flatten().all(|node| node.announces.len() >= 3));
    let (dual, now) = (sim.dual_ms(0), sim.now);
    sim.kill(1);
    let died = sim.now;
    while sim.nodes[0].as_ref().unwrap().announces.len() < 20 {
        sim.step();
        assert!(sim.now - died < 500 * MS, "M-026");
    }
    sim.run(5_000 * MS);
    let at = sim.now;
    let gone = sim.council(0).show(at).rows.remove(1);
    let told = (gone.state.as_str(), gone.announced, gone.is_equal);
    assert_eq!(told, ("lost", 0, None), "what it said last is not so any more");
    // The dead one is heard again as somebody new, which listens first.
    sim.start(1);
    sim.run(3_000 * MS);
    sim.expect_one_owner_each();
    assert!(sim.dual_ms(0) - dual < 150, "a hand-over is a moment, not {} ms since {now}", sim.dual_ms(0) - dual);
}

#[test]
fn during_a_cut_both_announce_and_after_it_one_yields_within_100_ms() {
    let mut sim = Sim::new(2, 20, 3);
    sim.run(2_000 * MS);
    let before = [sim.dual_ms(0), sim.dual_ms(1)];
    sim.cut(0, 1);
    sim.run(3_000 * MS);
    for vip in sim.vips.clone() {
        assert_eq!(sim.announcers(&vip), [0, 1], "availability goes first");
    }
    sim.cut.clear();
    let healed = sim.now;
    let heard = |sim: &mut Sim, node: usize| {
        let now = sim.now;
        sim.council(node).show(now).rows[1 - node].state == "live"
    };
    let mut heard_at = None;
    while sim.vips.iter().any(|vip| sim.announcers(vip).len() != 1) {
        sim.step();
        if heard_at.is_none() && heard(&mut sim, 0) && heard(&mut sim, 1) {
            heard_at = Some(sim.now);
        }
        assert!(sim.now - healed < 1_000 * MS);
    }
    let yielded = sim.now - heard_at.unwrap();
    assert!(yielded <= 100 * MS && sim.now - healed <= 200 * MS, "{} ms", yielded / MS);
    sim.run(1_000 * MS);
    sim.expect_one_owner_each();
    for (node, before) in before.into_iter().enumerate() {
        let counted = sim.dual_ms(node) - before;
        assert!((2_500..3_300).contains(&counted), "{counted} ms of about 2,700");
    }
}

#[test]
fn a_drain_leaves_no_gap_and_an_undrain_none_either() {
    let mut sim = Sim::new(2, 20, 5);
    sim.run(2_000 * MS);
    sim.council(0).drain(true);
    let began = sim.now;
    while !sim.nodes[0].as_ref().unwrap().announces.is_empty() {
        sim.step();
        sim.vips.iter().for_each(|vip| assert!(!sim.announcers(vip).is_empty(), "{vip}"));
        assert!(sim.now - began < 300 * MS, "M-026: planned");
    }
    sim.council(0).drain(false);
    for _ in 0..400 {
        sim.step();
        sim.vips.iter().for_each(|vip| assert!(!sim.announcers(vip).is_empty(), "{vip}"));
    }
    sim.expect_one_owner_each();
    // The last one that drains keeps what nobody else can announce.
    sim.council(0).drain(true);
    sim.council(1).drain(true);
    sim.run(1_000 * MS);
    sim.expect_one_owner_each();
}

#[test]
fn workers_that_hang_and_a_gateway_without_tables_own_nothing() {
    let mut sim = Sim::new(2, 10, 11);
    sim.run(2_000 * MS);
    sim.council(0).set_healthy(false);
    sim.run(500 * MS);
    assert!(sim.vips.iter().all(|vip| sim.announcers(vip) == [1]));
    sim.council(0).set_healthy(true);
    let now = sim.now;
    sim.council(1).site(Site { has_tables: false, ..around(1, 2) }, now);
    sim.run(500 * MS);
    assert!(sim.vips.iter().all(|vip| sim.announcers(vip).contains(&0)));
}

#[test]
fn a_vip_on_another_link_or_not_served_elsewhere_is_not_waited_for() {
    let mut sim = Sim::new(2, 20, 13);
    sim.run(2_000 * MS);
    // M-020: candidates are those that can. Gateway 1 loses its IPv6 prefix.
    let now = sim.now;
    let mut narrow = around(1, 2);
    narrow.links[0].prefixes.pop();
    sim.council(1).site(narrow, now);
    sim.run(500 * MS);
    let v6: Vec<IpNet> = sim.vips.iter().filter(|vip| vip.addr().is_ipv6()).copied().collect();
    assert!(v6.iter().all(|vip| sim.announcers(vip).contains(&0)));
    // Gateway 1 never hears of new Services: its control is gone.
    let now = sim.now;
    sim.council(1).site(around(1, 2), now);
    let new: Vec<IpNet> = (100..120).map(vip).collect();
    new.iter().for_each(|vip| sim.change(0, *vip, true));
    sim.run(GRACE_NS + 500 * MS);
    assert!(
        new.iter().all(|vip| sim.announcers(vip) == [0]),
        "{:?}",
        new.iter().map(|v| sim.announcers(v)).collect::<Vec<_>>()
    );
    // It comes back, and takes its share.
    new.iter().for_each(|vip| sim.change(1, *vip, true));
    sim.vips.extend(new);
    sim.run(1_000 * MS);
    sim.expect_one_owner_each();
}

/// Who stood in for gateways that lagged behind goes on until one of them announces, and not only knows of the VIP.
#[test]
fn whoever_stands_in_does_so_until_the_others_have_acted() {
    for seed in 1..30 {
        let mut sim = Sim::new(4, 8, seed);
        let late: Vec<IpNet> = (60..70).map(vip).collect();
        late.iter().for_each(|vip| sim.change(2, *vip, true));
        sim.run(4_400 * MS);
        assert!(late.iter().all(|vip| sim.announcers(vip) == [2]));
        for node in [0, 1, 3] {
            late.iter().for_each(|vip| sim.change(node, *vip, true));
        }
        for _ in 0..200 {
            sim.step();
            late.iter().for_each(|vip| assert!(!sim.announcers(vip).is_empty(), "{vip}"));
        }
        sim.vips.extend(late);
        sim.run(500 * MS);
        sim.expect_one_owner_each();
    }
}

#[test]
fn a_new_vip_is_new_and_a_taken_one_is_not() {
    let mut sim = Sim::new(1, 3, 1);
    let now = sim.now;
    let mut council = Council::new(settings(0, 9));
    council.site(around(0, 1), now);
    council.vips(sim.vips.iter().map(|vip| (*vip, true)), now);
    let decision = council.decide(now).unwrap();
    assert!(decision.announce.len() == 3 && decision.announce.iter().all(|(_, new)| !new), "restored: at once");
    council.vips([(vip(200), true)], now + MS);
    assert_eq!(council.decide(now + MS).unwrap().announce, [(vip(200), true)]);
    council.vips([(vip(200), false)], now + 2 * MS);
    assert_eq!(council.decide(now + 2 * MS).unwrap().withdraw, [vip(200)]);
    assert_eq!(council.decide(now + 3 * MS), None);
    // Gone and back between two looks: what was announced was another's.
    council.vips([(vip(10), false), (vip(10), true)], now + 4 * MS);
    let decision = council.decide(now + 4 * MS).unwrap();
    assert_eq!((decision.withdraw, decision.announce), (vec![vip(10)], vec![(vip(10), true)]));
    sim.step();
}

#[test]
fn strangers_namesakes_and_replays_are_counted_and_change_nothing() {
    let mut council = Council::new(settings(0, 9));
    council.site(around(0, 2), 0);
    let from =
        |node: &str, sequence| Message { node: node.into(), epoch: 3, sequence, ready: true, ..Message::default() };
    assert!(council.hear(from("gw-7", 1), 1).unwrap_err().contains("of this set"));
    assert!(council.hear(from("gw-0", 1), 2).unwrap_err().contains("our own name"));
    assert_eq!(council.hear(from("gw-1", 100), 3), Ok(()));
    // By the way of the other family, also overtaken: no reason to alarm anybody, and nothing changes.
    assert_eq!((council.hear(from("gw-1", 100), 4), council.hear(from("gw-1", 99), 5)), (Ok(()), Ok(())));
    let earlier = Message { epoch: 2, ..from("gw-1", 100) };
    for old in [from("gw-1", 5), earlier] {
        assert!(council.hear(old, 6).unwrap_err().contains("older"));
    }
    let [own, nobodys] = ["198.51.100.1", "192.0.2.66"].map(|address| address.parse().unwrap());
    council.refuse(Refusal::WrongKey, nobodys);
    council.refuse(Refusal::Malformed, own);
    council.refuse(Refusal::Version(9), own);
    let shown = council.show(6);
    assert!(shown.rows.iter().all(|row| row.wrong_key.is_none()), "of an address that no gateway has");
    for (name, count) in [
        ("refused_stranger", 1),
        ("refused_namesake", 1),
        ("refused_replayed", 2),
        ("refused_wrong_key", 1),
        ("refused_malformed", 1),
        ("refused_version", 1),
        ("heartbeats_heard", 1),
        ("heartbeats_repeated", 2),
    ] {
        assert_eq!(shown.counters[name], count, "{name}");
    }
    let states: Vec<&str> = shown.rows.iter().map(|row| row.state.as_str()).collect();
    assert_eq!(states, ["listening", "one-way"], "heard, but it has not echoed us");
}

/// Two keys: the gateway whose heartbeats they are is named, until it has ours.
#[test]
fn a_gateway_with_another_key_is_named() {
    let mut council = Council::new(settings(0, 9));
    let mut around = around(0, 2);
    around.others[0].addresses = vec!["198.51.100.2".parse().unwrap(), "2001:db8:2::2".parse().unwrap()];
    council.site(around, 0);
    council.set_key("0123abcd".into());
    let named = |council: &mut Council| {
        let shown = council.show(6);
        assert_eq!(shown.key.as_deref(), Some("0123abcd"));
        shown.rows.into_iter().filter_map(|row| Some((row.node, row.wrong_key?))).collect::<Vec<_>>()
    };
    assert_eq!(named(&mut council), []);
    for (sequence, from) in [(1, "198.51.100.2"), (2, "2001:db8:2::2")] {
        let from = from.parse().unwrap();
        council.refuse(Refusal::WrongKey, from);
        council.refuse(Refusal::WrongKey, from);
        assert_eq!(named(&mut council), [("gw-1".to_owned(), WrongKey { from, count: 2 })]);
        let message = Message { node: "gw-1".into(), epoch: 3, sequence, ready: true, ..Message::default() };
        council.hear(message, 7).unwrap();
        assert_eq!(named(&mut council), []);
    }
}

/// A recording of a gateway's heartbeats, played after its death, keeps it alive for nobody.
#[test]
fn a_recording_does_not_keep_the_dead_alive() {
    let mut sim = Sim::new(2, 10, 17);
    sim.run(2_000 * MS);
    // Recorded and held back: its sequence numbers have never been heard.
    let recorded: Vec<Message> = (0..100)
        .map(|_| {
            let now = sim.now;
            sim.council(1).message(now)
        })
        .collect();
    sim.kill(1);
    for message in recorded {
        sim.run(50 * MS);
        let now = sim.now;
        let _ = sim.council(0).hear(message, now);
    }
    assert_eq!(sim.nodes[0].as_ref().unwrap().announces.len(), 10);
}

#[derive(Clone, Debug)]
enum Op {
    Kill(usize),
    Start(usize),
    Cut(usize, usize),
    /// One direction only.
    Deafen(usize, usize),
    Heal,
    Drain(usize, bool),
    Add(u8),
    Lag(usize, u8),
    Wait(u64),
}

fn ops(gateways: usize) -> impl Strategy<Value = Vec<Op>> {
    let node = 0..gateways;
    let op = prop_oneof![
        2 => node.clone().prop_map(Op::Kill),
        3 => node.clone().prop_map(Op::Start),
        2 => (node.clone(), node.clone()).prop_map(|(a, b)| Op::Cut(a, b)),
        1 => (node.clone(), node.clone()).prop_map(|(a, b)| Op::Deafen(a, b)),
        2 => Just(Op::Heal),
        2 => (node.clone(), any::<bool>()).prop_map(|(node, on)| Op::Drain(node, on)),
        1 => (50u8..60).prop_map(Op::Add),
        1 => (node, 60u8..70).prop_map(|(node, vip)| Op::Lag(node, vip)),
        6 => (1u64..1500).prop_map(Op::Wait),
    ];
    prop::collection::vec(op, 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    /// Whatever happens (M-020, availability first): nobody is left without an announcer, and when all hear all again there
    /// is exactly one, the one that the hash names.
    #[test]
    fn one_announces_when_all_hear_all_and_never_nobody(
        (gateways, ops) in (1usize..5).prop_flat_map(|n| (Just(n), ops(n))), seed: u64,
    ) {
        let mut sim = Sim::new(gateways, 8, seed);
        for op in ops {
            match op {
                Op::Kill(node) => sim.kill(node),
                Op::Start(node) => if sim.nodes[node].is_none() { sim.start(node) },
                Op::Cut(a, b) => sim.cut(a, b),
                Op::Deafen(a, b) => drop(sim.cut.insert((a, b))),
                Op::Heal => sim.cut.clear(),
                Op::Drain(node, on) => if let Some(node) = &mut sim.nodes[node] { node.council.drain(on) },
                Op::Add(number) => {
                    sim.vips.insert(vip(number));
                    for node in 0..gateways {
                        if sim.nodes[node].as_ref().is_some_and(|state| !state.serves.contains_key(&vip(number))) {
                            sim.change(node, vip(number), true);
                        }
                    }
                }
                // Only this one hears of it; the others do at the end.
                Op::Lag(node, number) => if !sim.vips.contains(&vip(number)) { sim.change(node, vip(number), true) },
                Op::Wait(time) => sim.run(time * MS),
            }
        }
        sim.cut.clear();
        for number in 60..70 {
            if sim.nodes.iter().flatten().any(|node| node.serves.contains_key(&vip(number))) {
                sim.vips.insert(vip(number));
            }
        }
        for node in 0..gateways {
            if let Some(state) = &mut sim.nodes[node] {
                state.council.drain(false);
            }
            for vip in sim.vips.clone() {
                if sim.nodes[node].as_ref().is_some_and(|state| !state.serves.contains_key(&vip)) {
                    sim.change(node, vip, true);
                }
            }
        }
        sim.run(5_000 * MS);
        sim.expect_one_owner_each();
    }
}

/// N-112: external addresses that policies join are carried by one gateway, and one on nobody's link by just one, too.
#[test]
fn joined_addresses_have_one_owner_and_a_routed_one_has_one() {
    let mut sim = Sim::new(3, 0, 5);
    let joined: Vec<IpNet> = (10..26).step_by(2).map(vip).collect();
    let routed: IpNet = "203.0.113.9/32".parse().unwrap();
    let groups: BTreeMap<IpNet, IpNet> = joined.iter().map(|vip| (*vip, joined[0])).chain([(routed, routed)]).collect();
    for node in 0..3 {
        sim.nodes[node].as_mut().unwrap().council.groups(groups.clone());
        joined.iter().chain([&routed]).for_each(|vip| sim.change(node, *vip, true));
    }
    for _ in 0..3 {
        sim.run(3_000 * MS);
        let owner = sim.announcers(&joined[0]);
        assert_eq!(owner.len(), 1, "{owner:?}");
        assert!(joined.iter().all(|vip| sim.announcers(vip) == owner), "one owner of all");
        let carrier = sim.announcers(&routed);
        assert_eq!(carrier.len(), 1, "{carrier:?}");
        for node in sim.nodes.iter().flatten() {
            let said = |vip: &IpNet| node.council.owner(vip, sim.now);
            assert_eq!((said(&joined[3]), said(&routed)), (Some(name(owner[0])), Some(name(carrier[0]))));
        }
        let own = &sim.nodes[owner[0]].as_ref().unwrap().council;
        assert!(own.owned_for_ns(&joined[1], sim.now).is_some_and(|time| time > 1_000 * MS));
        if sim.nodes.iter().flatten().count() > 1 {
            sim.kill(owner[0]);
        }
    }
}
