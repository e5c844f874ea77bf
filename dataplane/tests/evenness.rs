//! How evenly sixteen workers are loaded: by the keyed hash, and by a NIC's RSS with 128 entries, under traffic that is not
//! even itself.
//!
//! Every line is the busiest worker's share against an even one, over many keys: 1.00 is perfect. `cargo test --test evenness
//! -- --nocapture` prints them; docs/benchmarks.md quotes them.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "a test that cannot go on fails"
)]

use tidegate_dataplane::family::Family;
use tidegate_dataplane::packet::Domain;
use tidegate_dataplane::rig::nic::Nic;
use tidegate_dataplane::rig::{self, Net};
use tidegate_dataplane::stage::owner;
use tidegate_dataplane::state::{Entropy, Tuple};
use tidegate_dataplane::table::Tables;
use tidegate_dataplane::table::owner::OwnerTable;
use tidegate_dataplane::table::spread::Spread;
use tidegate_io::netdev::Hashed;

const WORKERS: u16 = 16;
const FLOWS: u32 = 100_000;
/// Keys that each figure is had over.
const KEYS: u32 = 20;

/// By what clients are spread.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    Hash,
    Ends,
    Addresses,
}

/// One flow, and its share of the packets.
type Flow<A> = (Tuple<A>, f64);

/// A family to draw clients from: of 2^24 of them.
trait Clients: Family {
    const NET: Net;
    fn client(number: u32) -> Self;
}

impl Clients for [u8; 4] {
    const NET: Net = Net::BOTH[0];

    fn client(number: u32) -> Self {
        let [_, a, b, c] = number.to_be_bytes();
        [100, a, b, c]
    }
}

impl Clients for [u8; 16] {
    const NET: Net = Net::BOTH[1];

    /// Each has a network of its own.
    fn client(number: u32) -> Self {
        let [_, a, b, c] = number.to_be_bytes();
        [0x20, 0x01, 0x0d, 0xb8, 0xc, a, b, c, 0, 0, 0, 0, 0, 0, 0, 1]
    }
}

fn flow<A: Clients>(client: u32, port: u16) -> Tuple<A> {
    let destination = A::unmapped(&rig::mapped(A::NET.vip(1))).unwrap();
    let domain = Domain::Wire as u8;
    let source = A::client(client & 0xff_ffff);
    Tuple { source, destination, source_port: port, destination_port: 443, protocol: 6, domain }
}

/// Each from a client of its own; flow n has a share of packets by 1 / n^`exponent` (Zipf), or all the same for 0.
fn one_flow_each<A: Clients>(exponent: f64, random: &mut Entropy) -> Vec<Flow<A>> {
    let of = |n: u32| (flow(random.draw() as u32, random.draw() as u16 | 1024), f64::from(n + 1).powf(-exponent));
    (0..FLOWS).map(of).collect()
}

/// Ten clients (proxies, NATs of others) have half of all flows, and each flow the same packets.
fn heavy_clients<A: Clients>(random: &mut Entropy) -> Vec<Flow<A>> {
    let of = |n: u32| {
        let client = if n.is_multiple_of(2) { n / 2 % 10 } else { random.draw() as u32 };
        (flow(client, random.draw() as u16 | 1024), 1.0)
    };
    (0..FLOWS).map(of).collect()
}

/// So many clients, which have the same number of flows each, and each flow the same packets.
fn few_clients<A: Clients>(clients: u32, random: &mut Entropy) -> Vec<Flow<A>> {
    let names: Vec<u32> = (0..clients).map(|_| random.draw() as u32).collect();
    let of = |n: u32| (flow(names[(n % clients) as usize], random.draw() as u16 | 1024), 1.0);
    (0..FLOWS / 5).map(of).collect()
}

fn tables(by: By, workers: u16, random: &mut Entropy) -> Tables {
    let owners = OwnerTable::new(workers, [random.draw(), random.draw()]);
    let mut nic = Nic::new(workers, random);
    let queues: Vec<u32> = (0..workers.into()).collect();
    if by == By::Addresses {
        nic.rss.hashed = [Some(Hashed::Addresses); 6];
    }
    let owners = match by {
        By::Hash => owners,
        _ => owners.with_spread(Spread::new(&nic.rss, &queues, workers).unwrap()),
    };
    Tables { owners: owners.into(), ..rig::tables() }
}

/// Shares of the busiest worker against an even one: of flows, of packets.
fn busiest<A: Clients>(tables: &Tables, flows: &[Flow<A>]) -> [f64; 2] {
    let workers = tables.owners.workers();
    let mut loads = vec![[0.0; 2]; usize::from(workers)];
    for (tuple, packets) in flows {
        let load = &mut loads[usize::from(owner::of(tables, tuple).0)];
        load[0] += 1.0;
        load[1] += packets;
    }
    [0, 1].map(|what| {
        let all: f64 = loads.iter().map(|load| load[what]).sum();
        loads.iter().map(|load| load[what]).fold(0.0, f64::max) * f64::from(workers) / all
    })
}

/// The mean over keys, of flows and of packets.
fn mean<A: Clients>(by: By, workers: u16, make: impl Fn(&mut Entropy) -> Vec<Flow<A>>) -> [f64; 2] {
    let mut random = Entropy::new(1);
    let mut sums = [0.0; 2];
    for _ in 0..KEYS {
        let flows = make(&mut random);
        let shares = busiest(&tables(by, workers, &mut random), &flows);
        sums.iter_mut().zip(shares).for_each(|(sum, share)| *sum += share);
    }
    sums.map(|sum| sum / f64::from(KEYS))
}

#[test]
fn the_nics_spread_is_as_even_as_the_hash_where_it_looks_at_ports() {
    the_nics_spread_is_as_even::<[u8; 4]>();
    the_nics_spread_is_as_even::<[u8; 16]>();
}

fn the_nics_spread_is_as_even<A: Clients>() {
    println!("{:?}: busiest of {WORKERS} workers against an even share, {FLOWS} flows, mean of {KEYS} keys", A::NET);
    println!("{:<30}{:<12}{:>8}{:>10}", "traffic", "by", "flows", "packets");
    let told = |name: &str, make: &dyn Fn(&mut Entropy) -> Vec<Flow<A>>| {
        [By::Hash, By::Ends, By::Addresses].map(|by| {
            let [flows, packets] = mean(by, WORKERS, make);
            println!("{name:<30}{:<12}{flows:>8.2}{packets:>10.2}", format!("{by:?}").to_lowercase());
            [flows, packets]
        })
    };
    let even = told("all flows alike", &|random| one_flow_each(0.0, random));
    let zipf = told("Zipf, exponent 0.8", &|random| one_flow_each(0.8, random));
    let steep = told("Zipf, exponent 1.1", &|random| one_flow_each(1.1, random));
    let heavy = told("10 clients with half of all", &heavy_clients);
    // 6,250 flows a worker, deviation 77: the largest of sixteen is about 1.8 of them above the mean, four never by chance.
    for flows in [even, zipf, steep].as_flattened().iter().map(|shares| shares[0]) {
        assert!((1.0..1.05).contains(&flows), "{flows}");
    }
    // Few flows that carry much cannot be split by anybody; the busiest worker has the largest flow, 2.2 % of packets with
    // exponent 0.8 and 13 % with 1.1, on top of its share.
    for [hash, nic, _] in [zipf, steep] {
        assert!((nic[1] - hash[1]).abs() < hash[1] * 0.15, "the NIC {nic:?}, the hash {hash:?}");
    }
    assert!((1.1..1.7).contains(&zipf[0][1]) && (2.0..5.0).contains(&steep[0][1]), "{zipf:?} {steep:?}");
    // What looks at addresses alone cannot split a client: a tenth of a half is 80 % of a worker's even share.
    let [hash, ends, addresses] = heavy.map(|shares| shares[0]);
    assert!(hash < 1.05 && ends < 1.05, "{hash} {ends}");
    assert!((1.3..3.0).contains(&addresses), "{addresses}");
}

/// Instructions of a client's datagram on the main path, by benches/instructions.json.
struct Cost {
    /// By the worker whose queue it arrives on: the port's and parsing (docs/benchmarks.md, *Where the cycles go*).
    arrival: f64,
    /// By its owner.
    rest: f64,
    /// Of changing hands, half on each side.
    hand_over: f64,
}

impl Cost {
    fn recorded(family: &str) -> Cost {
        const ARRIVAL: f64 = 250.0;
        let text = include_str!("../../benches/instructions.json");
        let record: serde_json::Value = serde_json::from_str(text).unwrap();
        let of = |name: &str| record["paths"][format!("{name}_{family}")].as_f64().unwrap();
        let hand_over = of("handed_over_tcp") - of("to_pod_tcp");
        Cost { arrival: ARRIVAL, rest: of("to_pod_udp") - ARRIVAL, hand_over }
    }

    /// What the busiest worker spends on a packet of an even share, where the busiest queue has `uneven` times its share:
    /// with clients that belong to the worker of their queue, and with clients by a hash.
    fn of_busiest(&self, uneven: f64, workers: u16) -> [f64; 2] {
        let strangers = 1.0 - 1.0 / f64::from(workers);
        let side = self.hand_over / 2.0 * strangers;
        [uneven * (self.arrival + self.rest), uneven * (self.arrival + side) + self.rest + side]
    }
}

/// Decision 0025: where a NIC looks at addresses alone, should its spread be followed? The packets arrive unevenly either
/// way, and the hash costs hand-overs of nearly all of them.
#[test]
fn a_spread_by_addresses_is_worth_following_unless_clients_are_few() {
    a_spread_by_addresses_is_worth_following::<[u8; 4]>();
    a_spread_by_addresses_is_worth_following::<[u8; 16]>();
}

fn a_spread_by_addresses_is_worth_following<A: Clients>() {
    let cost = Cost::recorded(if A::NET == Net::BOTH[0] { "ipv4" } else { "ipv6" });
    println!(
        "{:?}: instructions of the busiest worker by packets of an even share; a NIC that hashes addresses alone",
        A::NET
    );
    println!("{:>8}{:>9}{:>18}{:>10}{:>8}", "workers", "clients", "busiest queue", "followed", "hash");
    let mut told = Vec::new();
    for workers in [2, 4, 16] {
        for clients in [1, 3, 10, 30, 100, 1_000, 10_000] {
            let [_, uneven] = mean(By::Addresses, workers, |random| few_clients::<A>(clients, random));
            let [followed, hash] = cost.of_busiest(uneven, workers);
            println!("{workers:>8}{clients:>9}{uneven:>18.2}{followed:>10.0}{hash:>8.0}");
            told.push((workers, clients, followed / hash));
        }
    }
    for (workers, clients, ratio) in told {
        match clients {
            1 => assert!(ratio > 1.1, "{workers} workers, one client: {ratio}"),
            100.. => assert!(ratio < 1.0, "{workers} workers, {clients} clients: {ratio}"),
            _ => {}
        }
    }
}
