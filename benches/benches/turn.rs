//! Whole turns: receive, parse, probe, decide, edit, send; per packet.

#![allow(missing_docs)]

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tidegate_benches::field::{Field, Way};
use tidegate_dataplane::rig::Net;

const FLOWS: [u32; 3] = [1, 10_000, 1_000_000];

fn name(family: usize) -> &'static str {
    if family == 0 { "ipv4" } else { "ipv6" }
}

fn hits(criterion: &mut Criterion) {
    for (family, net) in Net::BOTH.into_iter().enumerate() {
        for (way, label, sizes) in [
            (Way::ToBackend, "to_backend", &FLOWS[..]),
            (Way::ToClient, "to_client", &FLOWS[2..]),
            (Way::Overlay, "overlay", &FLOWS[2..]),
        ] {
            let mut group = criterion.benchmark_group(format!("turn_{label}_{}", name(family)));
            group.throughput(Throughput::Elements(1));
            for flows in sizes {
                // Made when it is first measured: a filter of the benches saves its memory.
                let mut made = None;
                group.bench_function(BenchmarkId::from_parameter(flows), |bencher| {
                    let field =
                        made.get_or_insert_with(|| Field::with_flows(net, way, *flows).expect("memory for the field"));
                    bencher.iter_custom(|packets| field.measure_hits(packets));
                });
            }
            group.finish();
        }
    }
}

fn new_flows(criterion: &mut Criterion) {
    for (family, net) in Net::BOTH.into_iter().enumerate() {
        let mut field = Field::empty(net, Way::ToBackend, 1_000_000).expect("memory for the field");
        criterion.bench_function(&format!("turn_new_{}", name(family)), |bencher| {
            bencher.iter_custom(|packets| field.measure_new(packets));
        });
    }
}

fn flood(criterion: &mut Criterion) {
    for (family, net) in Net::BOTH.into_iter().enumerate() {
        let mut made = None;
        criterion.bench_function(&format!("turn_flood_{}", name(family)), |bencher| {
            let field =
                made.get_or_insert_with(|| Field::empty(net, Way::ToBackend, 1_000_000).expect("memory for the field"));
            bencher.iter_custom(|packets| field.measure_flood(packets));
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2)).without_plots();
    targets = hits, new_flows, flood
}
criterion_main!(benches);
