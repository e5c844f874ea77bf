//! The flow table against a naive model: a list of flows, searched from end to end.

#![expect(clippy::cast_possible_truncation, reason = "numbers drawn at random are cut to size")]

use std::collections::HashMap;

use proptest::prelude::*;
use tidegate_io::mem::HugePages;

use super::*;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Addresses for tests: the number, in some bytes of either family.
pub trait Numbered: Address {
    fn numbered(number: u32) -> Self;
}

impl Numbered for [u8; 4] {
    fn numbered(number: u32) -> Self {
        number.to_be_bytes()
    }
}

impl Numbered for [u8; 16] {
    fn numbered(number: u32) -> Self {
        let [a, b, c, d] = number.to_be_bytes();
        [0x20, 1, 0xd, 0xb8, 0, 0, a, b, 0, 0, 0, 0, 0, 0, c, d]
    }
}

/// A client's flow through a VIP: `client` and `port` make it unique, `source_port` makes its answers unique.
pub fn new_flow<A: Numbered>(client: u32, port: u16, source_port: u16, protocol: u8) -> NewFlow<A> {
    let tuple = |source, destination, source_port, destination_port, domain| Tuple {
        source: A::numbered(source),
        destination: A::numbered(destination),
        source_port,
        destination_port,
        protocol,
        domain,
    };
    NewFlow {
        original: tuple(client, 0xcb00_7101, port, 80, DOMAIN_WIRE),
        translated: tuple(0x0af4_0902, 0x0af4_0105, source_port, 8080, DOMAIN_OVERLAY),
        state: if protocol == TCP { FlowState::SYN_SENT } else { FlowState::UDP_UNREPLIED },
        mark: 0,
        backend: 1,
        backend_epoch: 0,
        routes_epoch: 0,
        tunnel: 0,
        next_hop: 0,
        last_ack: [0; 2],
    }
}

/// The same client's flow where its answers are not seen.
fn one_way<A: Numbered>(client: u32, port: u16, protocol: u8) -> NewFlow<A> {
    let new = new_flow::<A>(client, port, 0, protocol);
    NewFlow { translated: Tuple { domain: DOMAIN_OVERLAY, ..new.original }, ..new }
}

#[derive(Debug, Clone)]
enum Op {
    Insert { client: u8, port: u8, source_port: u8, is_tcp: bool },
    InsertOneWay { client: u8, port: u8, is_tcp: bool },
    Remove(usize),
    Touch(usize, u8),
    Count(usize, u16),
    MakeRoom { is_tcp: bool },
    LookUp { client: u8, port: u8, is_tcp: bool },
    Wait { seconds: u16 },
    Sweep { rows: u8 },
}

fn op() -> impl Strategy<Value = Op> {
    let narrow = || (0u8..6, 0u8..6, any::<bool>());
    prop_oneof![
        8 => (narrow(), 0u8..40).prop_map(|((client, port, is_tcp), source_port)| Op::Insert { client, port, source_port, is_tcp }),
        3 => narrow().prop_map(|(client, port, is_tcp)| Op::InsertOneWay { client, port, is_tcp }),
        2 => any::<usize>().prop_map(Op::Remove),
        3 => (any::<usize>(), 1u8..24).prop_map(|(at, state)| Op::Touch(at, state)),
        4 => (any::<usize>(), any::<u16>()).prop_map(|(at, bytes)| Op::Count(at, bytes)),
        3 => any::<bool>().prop_map(|is_tcp| Op::MakeRoom { is_tcp }),
        2 => narrow().prop_map(|(client, port, is_tcp)| Op::LookUp { client, port, is_tcp }),
        3 => prop_oneof![0u16..400, 0u16..60_000].prop_map(|seconds| Op::Wait { seconds }),
        3 => any::<u8>().prop_map(|rows| Op::Sweep { rows }),
    ]
}

/// One flow of the model.
#[derive(Debug, Clone)]
struct Known<A> {
    id: FlowId,
    new: NewFlow<A>,
    state: FlowState,
    seen_ns: u64,
    counted: Fold,
}

fn timeout_ns(state: FlowState) -> u64 {
    u64::from(tcp::Timeouts::default().of(state)) << TICK_NS_LOG2
}

/// The table under test, the model, and the time.
struct Pair<A: Address> {
    table: FlowTable<A>,
    known: Vec<Known<A>>,
    /// Flows that are opening, oldest first.
    opening: Vec<FlowId>,
    now_ns: u64,
}

impl<A: Numbered> Pair<A> {
    fn new(capacity: u32, start_ns: u64) -> Self {
        let table = FlowTable::new(capacity, [1, 2], HugePages::Off).unwrap();
        Pair { table, known: Vec::new(), opening: Vec::new(), now_ns: start_ns }
    }

    fn model_lookup(&self, tuple: &Tuple<A>) -> Option<Hit> {
        self.known.iter().find_map(|known| {
            let direction = if known.new.original == *tuple {
                Direction::Original
            } else if !known.new.is_one_way() && known.new.reply() == *tuple {
                Direction::Reply
            } else {
                return None;
            };
            Some(Hit { flow: known.id, direction })
        })
    }

    fn insert(&mut self, new: NewFlow<A>) {
        let got = self.table.insert(&new, ticks(self.now_ns));
        let original = self.model_lookup(&new.original).is_some();
        let reply = !new.is_one_way() && self.model_lookup(&new.reply()).is_some();
        match got {
            Ok(id) => {
                assert!(!original && !reply && self.known.len() < self.table.capacity() as usize);
                assert!(self.known.iter().all(|known| known.id != id), "rows are not shared");
                if new.state.is_opening() {
                    self.opening.push(id);
                }
                self.known.push(Known { id, state: new.state, new, seen_ns: self.now_ns, counted: Fold::default() });
            }
            // The promise of the index is 95 %.
            Err(InsertError::Full) => assert!(self.known.len() * 100 >= self.table.capacity() as usize * 95),
            Err(InsertError::OriginalTaken) => assert!(original),
            Err(InsertError::ReplyTaken) => assert!(!original && reply),
        }
    }

    fn sweep(&mut self, rows: u32) {
        let mut expired = Vec::new();
        let count = self.table.expire(ticks(self.now_ns), rows, |id, entry| {
            expired.push((id, entry.original_tuple(), entry.state));
        });
        assert_eq!(count as usize, expired.len());
        for (id, original, state) in expired {
            let at = self.known.iter().position(|known| known.id == id).unwrap();
            let known = self.forget(at);
            assert_eq!((known.new.original, known.state), (original, state));
            // N-102: never early.
            assert!(self.now_ns - known.seen_ns > timeout_ns(known.state), "{known:?} at {}", self.now_ns);
        }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Insert { client, port, source_port, is_tcp } => {
                let protocol = if is_tcp { TCP } else { UDP };
                self.insert(new_flow(client.into(), port.into(), source_port.into(), protocol));
            }
            Op::InsertOneWay { client, port, is_tcp } => {
                self.insert(one_way(client.into(), port.into(), if is_tcp { TCP } else { UDP }));
            }
            Op::Remove(at) if !self.known.is_empty() => {
                let known = self.forget(at % self.known.len());
                assert!(self.table.remove(known.id));
                assert!(!self.table.remove(known.id), "only once");
            }
            Op::Touch(at, state) if !self.known.is_empty() => {
                let at = at % self.known.len();
                let known = &mut self.known[at];
                (known.state, known.seen_ns) = (FlowState(state), self.now_ns);
                let entry = self.table.entry_mut(known.id);
                (entry.state, entry.last_seen_ticks) = (FlowState(state), ticks(self.now_ns));
            }
            Op::LookUp { client, port, is_tcp } => {
                let protocol = if is_tcp { TCP } else { UDP };
                let tuple = new_flow::<A>(client.into(), port.into(), 0, protocol).original;
                assert_eq!(self.table.lookup(&tuple), self.model_lookup(&tuple));
            }
            Op::Wait { seconds } => self.now_ns += u64::from(seconds) * 1_000_000_000,
            Op::Sweep { rows } => self.sweep(rows.into()),
            Op::Count(at, bytes) if !self.known.is_empty() => self.count(at % self.known.len(), bytes.into()),
            Op::MakeRoom { is_tcp } => {
                self.make_room(if is_tcp { FlowState::SYN_SENT } else { FlowState::UDP_UNREPLIED })
            }
            Op::Remove(_) | Op::Touch(..) | Op::Count(..) => {}
        }
    }

    fn forget(&mut self, at: usize) -> Known<A> {
        let known = self.known.swap_remove(at);
        self.opening.retain(|id| *id != known.id);
        known
    }

    /// A packet of a flow is counted; it may be the one that ends a handshake.
    fn count(&mut self, at: usize, bytes: u32) {
        let known = &mut self.known[at];
        let listed = self.opening.contains(&known.id);
        assert_eq!(self.table.entry(known.id).is_listed(), listed);
        let fold = self.table.entry_mut(known.id).count(Direction::Reply, bytes);
        assert_eq!(fold, listed.then_some(Fold { packets: 1, bytes: bytes.into() }));
        if fold.is_some() {
            self.table.settle(known.id);
            if !known.state.is_opening() && known.state != FlowState::CLOSE {
                self.opening.retain(|id| *id != known.id);
            }
        } else {
            known.counted.packets += 1;
            known.counted.bytes += u64::from(bytes);
        }
    }

    /// Asks who is to go for a flow that begins in `state`, and lets it go.
    fn make_room(&mut self, state: FlowState) {
        let crowded = self.known.len() as u32 >= self.table.capacity() - self.table.capacity() / 16;
        let full = self.opening.len() as u32 >= self.table.opening_max();
        let gone = match self.table.victim(state, ticks(self.now_ns)) {
            None => {
                assert!(!(full && state.is_opening()) && (!crowded || self.opening.is_empty()));
                return;
            }
            Some(Victim::HalfOpen(id)) => {
                assert_eq!(id, self.opening[0], "the oldest");
                assert!(full && state.is_opening() || crowded);
                id
            }
            Some(Victim::Spared(id)) => {
                let known = self.known.iter().find(|known| known.id == id).unwrap();
                let is_over = self.now_ns - known.seen_ns > timeout_ns(known.state);
                assert!(crowded && dispensable::rank(known.state, is_over).is_some(), "{known:?}");
                id
            }
        };
        let at = self.known.iter().position(|known| known.id == gone).unwrap();
        self.forget(at);
        assert!(self.table.remove(gone));
    }

    /// Everything there is to see is the same.
    fn compare(&self) {
        assert_eq!(self.table.live() as usize, self.known.len());
        for known in &self.known {
            let reply = (known.new.reply(), Direction::Reply);
            let reply = Some(reply).filter(|_| !known.new.is_one_way());
            for (tuple, direction) in [(known.new.original, Direction::Original)].into_iter().chain(reply) {
                let hash = self.table.hash(&tuple);
                let hit = Some(Hit { flow: known.id, direction });
                assert_eq!(self.table.lookup(&tuple), hit);
                let candidate = self.table.candidate(hash).and_then(|candidate| self.table.follow(candidate, hash));
                assert_eq!(self.table.confirm(candidate.unwrap(), &tuple, hash), hit);
            }
            assert_eq!(self.table.entry(known.id).original_tuple(), known.new.original);
            assert_eq!(self.table.entry(known.id).reply_tuple(), known.new.reply());
            assert_eq!(self.table.entry(known.id).counted(Direction::Reply), known.counted);
        }
        assert_eq!(self.table.opening_order(), self.opening);
        assert_eq!(self.table.opening() as usize, self.opening.len());
        let mut seen = HashMap::new();
        let mut from = Some(0);
        while let Some(row) = from {
            from = self.table.visit(row, 3, |id, entry| assert!(seen.insert(id, entry.state).is_none()));
        }
        assert_eq!(seen, self.known.iter().map(|known| (known.id, known.state)).collect());
        let directions = self.known.iter().map(|known| if known.new.is_one_way() { 1 } else { 2 });
        assert_eq!(self.table.index_occupied().0, directions.sum::<u64>());
    }
}

/// Runs `ops` on a table of one family; at the end all that is due goes within one lap, and then everything else.
fn run<A: Numbered>(capacity: u32, start_ns: u64, ops: &[Op]) {
    let mut pair = Pair::<A>::new(capacity, start_ns);
    for op in ops {
        pair.apply(op);
        pair.compare();
    }
    pair.sweep(capacity);
    let slack_ns = 2 << TICK_NS_LOG2;
    for known in &pair.known {
        assert!(pair.now_ns - known.seen_ns <= timeout_ns(known.state) + slack_ns, "one lap sees all: {known:?}");
    }
    pair.now_ns += 8_000_000_000_000;
    pair.sweep(capacity);
    pair.compare();
    assert_eq!(pair.table.live(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_flow_table_is_a_list_of_flows(
        capacity in 1u32..40,
        // Around the wrap of the clock of flows as well as at its start.
        start_ns in prop_oneof![Just(0u64), (1u64 << 52) - 8_000_000_000_000..(1u64 << 52)],
        ops in prop::collection::vec(op(), 0..120)
    ) {
        run::<[u8; 4]>(capacity, start_ns, &ops);
        run::<[u8; 16]>(capacity, start_ns, &ops);
    }
}

/// A sequence of numbers that looks random, the same for the same seed.
pub fn random(seed: u64) -> impl FnMut() -> u64 {
    let keys = tuple::HashKeys::new([seed, !seed]);
    let mut count = 0;
    move || {
        count += 1;
        keys.scramble(count)
    }
}

fn fills_to_95_percent<A: Numbered>(flows: u32, seed: u64) {
    let mut random = random(seed);
    let mut table = FlowTable::<A>::new(flows, [random(), random()], HugePages::Off).unwrap();
    let target = u32::try_from(u64::from(flows) * 95 / 100).unwrap();
    let mut ids = Vec::new();
    let mut news = Vec::new();
    while table.live() < target {
        let bits = random();
        let new = new_flow::<A>((bits >> 32) as u32, (bits & 0xffff) as u16, (bits >> 16 & 0xffff) as u16, TCP);
        let mut new =
            NewFlow { translated: Tuple { destination: A::numbered(random() as u32), ..new.translated }, ..new };
        new.original.destination_port = (random() & 0xffff) as u16;
        ids.push(table.insert(&new, 0).unwrap());
        news.push(new);
    }
    // Churn at that load: every removal makes room for one insertion.
    for round in 0..news.len() / 2 {
        let at = (random() % ids.len() as u64) as usize;
        assert!(table.remove(ids[at]), "round {round}");
        news[at].original.source = A::numbered(random() as u32);
        news[at].translated.destination = A::numbered(random() as u32);
        ids[at] = table.insert(&news[at], 0).unwrap();
    }
    for (id, new) in ids.iter().zip(&news) {
        for (tuple, direction) in [(new.original, Direction::Original), (new.reply(), Direction::Reply)] {
            let (hash, hit) = (table.hash(&tuple), Some(Hit { flow: *id, direction }));
            assert_eq!(table.lookup(&tuple), hit);
            let candidate = table.candidate(hash).and_then(|candidate| table.follow(candidate, hash));
            assert_eq!(table.confirm(candidate.unwrap(), &tuple, hash), hit);
            // A stranger is known to be one, whatever the phases say on the way.
            let stranger = Tuple { protocol: 99, ..tuple };
            let hash = table.hash(&stranger);
            let candidate = table.candidate(hash).and_then(|candidate| table.follow(candidate, hash));
            assert_eq!(candidate.and_then(|candidate| table.confirm(candidate, &stranger, hash)), None);
        }
    }
    assert_eq!(table.live(), target);
}

#[test]
fn inserting_works_to_95_percent_of_the_capacity_and_stays_so_under_churn() {
    for seed in 0..3 {
        fills_to_95_percent::<[u8; 4]>(1 << 16, seed);
        fills_to_95_percent::<[u8; 16]>((1 << 16) + 12_345, seed);
    }
}

#[test]
fn phases_agree_with_the_lookup_and_survive_changes_between_them() {
    let mut table = FlowTable::<[u8; 4]>::new(64, [3, 4], HugePages::Off).unwrap();
    let new = new_flow::<[u8; 4]>(7, 7, 7, TCP);
    let hash = table.hash(&new.original);
    table.prefetch_index(hash);
    assert_eq!(table.candidate(hash), None);
    let flow = table.insert(&new, 0).unwrap();
    let candidate = table.candidate(hash).unwrap();
    assert_eq!(table.confirm(candidate, &new.original, hash), Some(Hit { flow, direction: Direction::Original }));
    // Another tuple with the same hash is not this flow.
    let stranger = Tuple { source_port: 8, ..new.original };
    assert_eq!(table.confirm(candidate, &stranger, hash), None);
    table.remove(flow);
    assert_eq!(table.confirm(candidate, &new.original, hash), None);
    // The row is another flow by now.
    let other = new_flow::<[u8; 4]>(8, 8, 8, TCP);
    assert_eq!(table.insert(&other, 0), Ok(flow));
    assert_eq!(table.confirm(candidate, &new.original, hash), None);
}

#[test]
fn a_flow_is_not_its_own_answer() {
    let mut table = FlowTable::<[u8; 4]>::new(8, [3, 4], HugePages::Off).unwrap();
    let mut new = new_flow::<[u8; 4]>(7, 7, 7, TCP);
    new.translated = new.original.reversed(new.original.domain);
    assert_eq!(table.insert(&new, 0), Err(InsertError::ReplyTaken));
    assert_eq!((table.live(), table.lookup(&new.original)), (0, None));
}

#[test]
fn no_table_and_a_table_for_nothing() {
    assert!(FlowTable::<[u8; 4]>::new(u32::MAX, [0, 0], HugePages::Off).is_err());
    let mut table = FlowTable::<[u8; 16]>::new(0, [0, 0], HugePages::Off).unwrap();
    assert_eq!(table.insert(&new_flow(1, 1, 1, UDP), 0), Err(InsertError::Full));
    assert_eq!(table.expire(0, u32::MAX, |_, _| ()), 0);
    assert_eq!(table.visit(0, 10, |_, _| ()), None);
    assert_eq!(table.sweep_share(1), 1);
}

#[test]
fn the_sweep_is_bounded_and_shows_what_stays() {
    let mut table = FlowTable::<[u8; 4]>::new(100, [0, 0], HugePages::Off).unwrap();
    for client in 0..50 {
        table.insert(&new_flow(client, 1, client as u16, UDP), 0).unwrap();
    }
    let mut shown = Vec::new();
    for _ in 0..10 {
        let before = shown.len();
        table.sweep(1, 10, |id, swept| {
            assert!(matches!(swept, Swept::Live(_)));
            shown.push(id.row());
        });
        assert_eq!(shown.len() - before, 10);
    }
    let lap: Vec<u32> = (0..50).collect();
    assert_eq!(shown, [&lap[..], &lap[..]].concat(), "two laps, in order");
    let share = table.sweep_share(ticks_of_seconds(1));
    assert!((50 / 4..=50).contains(&share), "{share}");
    assert_eq!(table.sweep_share(u32::MAX), 50);
    // UDP that nobody answers lives for 120 s, and its row is used again.
    let end = ticks_of_seconds(120);
    assert_eq!(table.expire(end, 100, |_, _| ()), 0);
    assert_eq!(table.expire(end + 1, 7, |_, _| ()), 7);
    assert_eq!(table.expire(end + 1, 100, |_, _| ()), 43);
    assert_eq!(table.live(), 0);
    assert!(table.insert(&new_flow(1, 1, 1, UDP), end).unwrap().row() < 50);
}

#[test]
fn the_share_of_handshakes_is_a_part_of_the_table() {
    let mut table = FlowTable::<[u8; 4]>::new(1000, [0, 0], HugePages::Off).unwrap();
    assert_eq!(table.opening_max(), 250);
    table.set_opening_percent(1);
    assert_eq!(table.opening_max(), 10);
    for (percent, most) in [(0, 1), (100, 1000), (255, 1000)] {
        table.set_opening_percent(percent);
        assert_eq!(table.opening_max(), most, "{percent}");
    }
    assert_eq!(FlowTable::<[u8; 16]>::new(FLOWS, [0, 0], HugePages::Off).unwrap().opening_max(), FLOWS / 4);
}

const FLOWS: u32 = 1 << 20;

/// A crowded table of `established` connections and one flow in `spare`, and how many looks it takes to find it.
fn looks_for(established: u32, spare: Option<FlowState>) -> (u32, bool) {
    let mut table = FlowTable::<[u8; 16]>::new(established + 1, [5, 6], HugePages::Off).unwrap();
    for client in 0..=established {
        let flow = table.insert(&new_flow(client, 1, client as u16, UDP), 0).unwrap();
        let last = client == established;
        table.entry_mut(flow).state = spare.filter(|_| last).unwrap_or(FlowState::ESTABLISHED);
    }
    for look in 1..=established {
        match table.victim(FlowState::SYN_SENT, 1) {
            Some(Victim::Spared(flow)) => return (look, flow.row() == established),
            Some(Victim::HalfOpen(_)) => panic!("nothing is opening"),
            None => {}
        }
    }
    (established, false)
}

#[test]
fn a_crowded_table_finds_the_one_flow_that_can_be_spared_within_a_lap_and_touches_no_other() {
    // N-100: "never established"
    for spare in [FlowState::TIME_WAIT, FlowState::CLOSE, FlowState::UDP_REPLIED, FlowState::UDP_UNREPLIED] {
        assert_eq!(looks_for(1023, Some(spare)), (1024 / 16, true), "{spare:?}");
    }
    assert_eq!(looks_for(100, None), (100, false));
    assert_eq!(looks_for(100, Some(FlowState::UDP_STREAM)), (100, false));
    assert_eq!(looks_for(100, Some(FlowState::CLOSE_WAIT)), (100, false));
}

#[test]
fn among_those_looked_at_the_best_goes() {
    let mut table = FlowTable::<[u8; 4]>::new(16, [5, 6], HugePages::Off).unwrap();
    let script = [
        (FlowState::ESTABLISHED, 0),
        (FlowState::UDP_REPLIED, 700),
        (FlowState::UDP_UNREPLIED, 300),
        (FlowState::CLOSE, 900),
        (FlowState::TIME_WAIT, 800),
        (FlowState::UDP_STREAM, 0),
    ];
    for (client, (state, seen)) in script.into_iter().cycle().take(16).enumerate() {
        let flow = table.insert(&new_flow(client as u32, 1, client as u16, UDP), seen).unwrap();
        table.entry_mut(flow).state = state;
    }
    let mut order = Vec::new();
    while let Some(Victim::Spared(flow)) = table.victim(FlowState::UDP_UNREPLIED, 1000) {
        order.push((table.entry(flow).state, table.entry(flow).last_seen_ticks));
        table.remove(flow);
        table.insert(&new_flow(1000 + flow.row(), 1, flow.row() as u16, TCP), 1000).unwrap();
        let entry = table.entry_mut(flow);
        entry.state = FlowState::ESTABLISHED;
        table.settle(flow);
    }
    // Closed connections first, then questions; each by how long it was silent.
    let rank = |(state, _): &(FlowState, Ticks)| dispensable::rank(*state, false);
    assert!(order.is_sorted_by(|a, b| rank(a) > rank(b) || rank(a) == rank(b) && a.1 <= b.1), "{order:?}");
    assert_eq!(order.len(), 11);
}
