//! What the compiler thread does: rings, and a publish that costs what changed; and whose a client is.

#![allow(missing_docs)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use tidegate_dataplane::family;
use tidegate_dataplane::packet::Domain;
use tidegate_dataplane::rig;
use tidegate_dataplane::rig::nic::Nic;
use tidegate_dataplane::stage::owner;
use tidegate_dataplane::state::{Entropy, Tuple};
use tidegate_dataplane::table::backend::{BackendRow, BackendState};
use tidegate_dataplane::table::maglev::{self, Ring};
use tidegate_dataplane::table::neighbour::NeighbourRow;
use tidegate_dataplane::table::owner::OwnerTable;
use tidegate_dataplane::table::publish::Publisher;
use tidegate_dataplane::table::spread::Spread;
use tidegate_dataplane::table::tunnel::TunnelRow;
use tidegate_dataplane::table::{BackendId, Family, ServiceId, Tables, TunnelId};

fn ring(criterion: &mut Criterion) {
    let members: Vec<_> = (0..1000u16)
        .map(|n| {
            let [high, low] = n.to_be_bytes();
            let address = tidegate_dataplane::table::mapped(&[10, 244, high, low]);
            (maglev::member_key(&address, 8080), 1)
        })
        .collect();
    criterion.bench_function("maglev/65537_of_1000", |bencher| bencher.iter(|| Ring::build(&members, 65_537)));
}

fn publish(criterion: &mut Criterion) {
    let mut tables = Tables::default();
    let backends = Arc::make_mut(&mut tables.backends);
    for n in 0..500_000u32 {
        let [_, a, b, c] = n.to_be_bytes();
        let address = tidegate_dataplane::table::mapped(&[10, a, b, c]);
        let (service, state) = (ServiceId(n / 10), BackendState::Active);
        backends.set(
            BackendId(n),
            BackendRow { address, family: Family::V4, port: 80, service, state, ..Default::default() },
        );
    }
    let (mut publisher, readers) = Publisher::new(tables);
    let mut reader = readers();
    let mut at = 0u32;
    criterion.bench_function("publish/one_endpoint_of_500000", |bencher| {
        bencher.iter(|| {
            at = (at + 104_729) % 500_000;
            let mut tables = publisher.current().clone();
            let state = if at.is_multiple_of(2) { BackendState::Draining } else { BackendState::Active };
            Arc::make_mut(&mut tables.backends).set_state(BackendId(at), state);
            publisher.publish(tables);
            let generation = reader.refresh().generation;
            publisher.collect();
            generation
        });
    });
}

/// A neighbour's address changes, and the ways out to 5,000 peers follow.
fn lanes(criterion: &mut Criterion) {
    let mut tables = rig::tables();
    let Some((_, peer)) = tables.tunnels.rows().next().map(|(id, row)| (id, row.clone())) else { return };
    let Some(neighbour) = tables.neighbours.rows().next().map(|(id, row)| (id, *row)) else { return };
    for n in 0..5000u16 {
        let [high, low] = n.to_be_bytes();
        let underlay = tidegate_dataplane::table::mapped(&[10, 1, high, low]);
        Arc::make_mut(&mut tables.tunnels).set(TunnelId(n), TunnelRow { underlay, ..peer.clone() });
    }
    let (mut publisher, _) = Publisher::new(tables);
    let mut mac = 0u8;
    criterion.bench_function("publish/neighbour_of_5000_peers", |bencher| {
        bencher.iter(|| {
            mac = mac.wrapping_add(1);
            let mut tables = publisher.current().clone();
            let row = NeighbourRow { mac: [mac; 6], ..neighbour.1 };
            Arc::make_mut(&mut tables.neighbours).set(neighbour.0, row);
            publisher.publish(tables)
        });
    });
}

/// Whose a client is, by the hash and by a NIC.
fn owners(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("owner");
    let hashed = OwnerTable::new(2, [13, 17]);
    let nic = Nic::new(2, &mut Entropy::new(1));
    let spread = Spread::new(&nic.rss, &[0, 1], 2).expect("a good spread");
    for (name, owners) in [("hash", hashed.clone()), ("rss", hashed.with_spread(spread))] {
        let tables = Tables { owners: owners.into(), ..rig::tables() };
        owned::<[u8; 4]>(&mut group, &format!("{name}_ipv4"), &tables, |n| [10, n[1], n[2], n[3]]);
        owned::<[u8; 16]>(&mut group, &format!("{name}_ipv6"), &tables, |n| {
            [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, n[1], n[2], n[3]]
        });
    }
    group.finish();
}

fn owned<A: family::Family>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    tables: &Tables,
    address: impl Fn([u8; 4]) -> A,
) {
    let to = address([0, 255, 255, 1]);
    let tuple = |n: u32| Tuple {
        source: address(n.to_be_bytes()),
        destination: to,
        source_port: 1024,
        destination_port: 443,
        protocol: 6,
        domain: Domain::Wire as u8,
    };
    let tuples: Vec<Tuple<A>> = (0..1024).map(tuple).collect();
    let mut at = 0;
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            at = (at + 1) % tuples.len();
            owner::of(tables, black_box(&tuples[at]))
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1)).without_plots();
    targets = ring, publish, lanes, owners
}
criterion_main!(benches);
