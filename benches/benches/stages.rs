//! Single stages, and the floor that no design of this kind can go below.

#![allow(missing_docs, clippy::cast_possible_truncation)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use tidegate_benches::field::{Field, Way};
use tidegate_benches::floor::Floor;
use tidegate_dataplane::counters::Counters;
use tidegate_dataplane::packet::{Key, Packet};
use tidegate_dataplane::pipeline;
use tidegate_dataplane::rig::{self, LAN, LAN_MAC, Net, WAN, WAN_MAC};
use tidegate_dataplane::stage::parse::{self, Ingress};
use tidegate_dataplane::stage::route::{self, Hop};
use tidegate_dataplane::stage::{encap, rewrite};
use tidegate_dataplane::state::Tuple;
use tidegate_dataplane::table::Tables;
use tidegate_io::mem::Slab;
use tidegate_io::{Frame, HugePages, Pool};
use zerocopy::FromZeros;

const WAN_IN: Ingress = Ingress { device: WAN, mac: WAN_MAC };
const LAN_IN: Ingress = Ingress { device: LAN, mac: LAN_MAC };
const BATCH: usize = 64;

#[derive(FromZeros, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u64; 8]);

fn family(net: Net) -> &'static str {
    if net == Net::BOTH[0] { "ipv4" } else { "ipv6" }
}

fn frames(count: usize, bytes: &[u8]) -> (Pool, Vec<Frame>) {
    let pool = Pool::new(u32::try_from(count + 64).unwrap_or(u32::MAX), 2048, HugePages::Auto).expect("memory");
    let mut magazine = pool.magazine();
    let frames = std::iter::from_fn(|| magazine.take()).take(count).map(|mut frame| {
        assert!(frame.fill(bytes));
        frame
    });
    let frames = frames.collect();
    (pool, frames)
}

/// What has to be paid whatever is decided.
fn floor(criterion: &mut Criterion) {
    let mut floor = Floor::new(HugePages::Auto).expect("memory");
    criterion.bench_function("floor/1000000", |bencher| {
        bencher.iter_custom(|packets| {
            let (mut done, mut spent_ns) = (0, 0);
            while done < packets {
                let (time_ns, count) = floor.pass();
                spent_ns += time_ns;
                done += count as u64;
            }
            Duration::from_nanos(spent_ns).mul_f64(packets as f64 / done as f64)
        });
    });
}

fn dependent_read(criterion: &mut Criterion) {
    const LINES: u32 = 1 << 22;
    let mut lines: Slab<Line> = Slab::new(LINES, HugePages::Auto).expect("memory");
    // One cycle through all lines: an odd multiplier and increment make a full-period sequence (Hull, Dobell 1962).
    for row in 0..LINES {
        lines.at_mut(row).0[0] = u64::from(row.wrapping_mul(1_664_525).wrapping_add(1_013_904_223) % LINES);
    }
    let mut at = 0u32;
    criterion.bench_function("memory/dependent_read", |bencher| {
        bencher.iter(|| {
            at = lines.at(at).0[0] as u32;
            at
        });
    });
}

fn parsing(criterion: &mut Criterion) {
    let tables = rig::tables();
    let mut group = criterion.benchmark_group("parse");
    for net in Net::BOTH {
        let plain = rig::udp((net.client(1), 1), (net.vip(1), 80), &[0; 22]);
        let inner = rig::udp((net.pod(0, 1), 1), (net.source(), 2000), &[0; 22]);
        let tunnelled = rig::from_peer(net, 0, &inner[14..]);
        for (name, bytes, ingress) in
            [(family(net).to_string(), plain, WAN_IN), (format!("vxlan_{}", family(net)), tunnelled, LAN_IN)]
        {
            let (_pool, frames) = frames(BATCH, &bytes);
            let mut counters = Counters::default();
            let mut at = 0;
            group.bench_function(&name, |bencher| {
                bencher.iter(|| {
                    at = (at + 1) % frames.len();
                    let bytes = frames[at].bytes();
                    let packet = parse::run(&tables, ingress, bytes, &mut counters).expect("a good packet");
                    pipeline::classify(&packet, &bytes[usize::from(packet.l3_offset)..])
                });
            });
        }
    }
    group.finish();
}

fn flow_hit(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("flow_hit");
    for flows in [1u32, 10_000, 1_000_000] {
        let field = Field::with_flows(Net::BOTH[0], Way::ToBackend, flows).expect("memory");
        let table = &field.worker().state().v4;
        let mut tuples: Vec<Tuple<[u8; 4]>> = Vec::new();
        let _ = table.visit(0, u32::MAX, |_, entry| tuples.push(entry.original_tuple()));
        let mut random = tidegate_dataplane::state::Entropy::new(1);
        group.bench_function(BenchmarkId::from_parameter(flows), |bencher| {
            bencher.iter_custom(|packets| {
                let (mut done, mut spent) = (0, Duration::ZERO);
                while done < packets {
                    let keys: Vec<_> = (0..16_384).map(|_| tuples[random.draw() as usize % tuples.len()]).collect();
                    let begun = Instant::now();
                    for keys in keys.chunks(BATCH) {
                        let mut probes = [(0, None); BATCH];
                        for (probe, key) in probes.iter_mut().zip(keys) {
                            probe.0 = table.hash(key);
                            table.prefetch_index(probe.0);
                        }
                        probes.iter_mut().for_each(|probe| probe.1 = table.candidate(probe.0));
                        for ((hash, candidate), key) in probes.iter().zip(keys) {
                            black_box(candidate.and_then(|candidate| table.confirm(candidate, key, *hash)));
                        }
                    }
                    spent += begun.elapsed();
                    done += keys.len() as u64;
                }
                spent.mul_f64(packets as f64 / done as f64)
            });
        });
    }
    group.finish();
}

/// A packet to the Service, with what the stages behind parse want to know of it.
fn parsed(tables: &Tables, net: Net) -> (Vec<u8>, Packet) {
    let bytes = rig::udp((net.client(1), 1), (net.vip(1), 80), &[0; 22]);
    let packet = parse::run(tables, WAN_IN, &bytes, &mut Counters::default()).expect("a good packet");
    (bytes, packet)
}

fn editing(criterion: &mut Criterion) {
    let tables = rig::tables();
    for net in Net::BOTH {
        let (bytes, packet) = parsed(&tables, net);
        let (_pool, mut frames) = frames(1, &bytes);
        let frame = &mut frames[0];
        // The packet is translated again and again; its time to live is put back each time.
        let ttl = usize::from(packet.l3_offset) + if family(net) == "ipv4" { 8 } else { 7 };
        let key = pipeline::classify(&packet, &bytes[usize::from(packet.l3_offset)..]);
        let mut to_pod = false;
        criterion.bench_function(&format!("rewrite/{}", family(net)), |bencher| {
            bencher.iter(|| {
                to_pod = !to_pod;
                frame.bytes_mut()[ttl] = 64;
                let port = if to_pod { 8080 } else { 80 };
                match key {
                    Key::V4(to) => rewrite::run(&packet, frame, &Tuple { destination_port: port, ..to }, None),
                    Key::V6(to) => rewrite::run(&packet, frame, &Tuple { destination_port: port, ..to }, None),
                    Key::None => unreachable!("a datagram has a key"),
                }
            });
        });
        let hop = Hop::Tunnel(net.tunnel(0));
        let mut counters = Counters::default();
        criterion.bench_function(&format!("encap/{}", family(net)), |bencher| {
            bencher.iter(|| {
                let _plain = frame.fill(&bytes);
                let departure = route::departure(&tables, hop, 7).expect("a neighbour");
                counters.count(tidegate_dataplane::counters::Event::Encapsulated);
                encap::vxlan(&tables, &packet, frame, net.tunnel(0), &departure, 7)
            });
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1)).without_plots();
    targets = floor, dependent_read, parsing, flow_hit, editing
}
criterion_main!(benches);
