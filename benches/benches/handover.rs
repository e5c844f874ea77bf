//! Hand-over of packets between workers: what both sides pay for the ring, per packet.

#![allow(missing_docs)]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidegate_benches::parcel::{self, BATCH, RING};
use tidegate_io::mem::spsc;

/// Both sides on one thread by turns: the work of both added up, with every line in the cache of one core.
fn same_thread(criterion: &mut Criterion) {
    let (mut sending, mut receiving) = spsc::ring(RING);
    let (mut stock, mut taken) = (parcel::stock(), parcel::batch());
    let mut group = criterion.benchmark_group("handover");
    group.throughput(Throughput::Elements(1));
    group.bench_function("same_thread", |bencher| {
        bencher.iter_custom(|packets| {
            let batches = packets.div_ceil(BATCH as u64);
            let begun = Instant::now();
            for _ in 0..batches {
                parcel::send(&mut sending, &mut stock);
                receiving.pop_into(&mut taken);
                black_box(&taken);
                stock.extend(taken.drain(..));
            }
            begun.elapsed().mul_f64(packets as f64 / (batches * BATCH as u64) as f64)
        });
    });
    group.finish();
}

/// A ring there and a ring back, each side on a thread of its own: a batch goes over and comes back, always several on
/// the way. Time per packet and hand-over of one side, which is what a core pays for sending one and receiving one.
fn two_threads(criterion: &mut Criterion) {
    let (mut there, far) = spsc::ring(RING);
    let (back, mut home) = spsc::ring(RING);
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    let echo = std::thread::spawn(move || parcel::echo(far, back, &seen));
    let (mut stock, mut taken) = (parcel::stock(), parcel::batch());
    let mut group = criterion.benchmark_group("handover");
    group.throughput(Throughput::Elements(1));
    group.bench_function("two_threads", |bencher| {
        bencher.iter_custom(|packets| {
            let (mut handed_over, begun) = (0, Instant::now());
            while handed_over < packets {
                parcel::send(&mut there, &mut stock);
                home.pop_into(&mut taken);
                handed_over += taken.len() as u64;
                stock.extend(taken.drain(..));
                if stock.is_empty() {
                    // All are on the way: on a machine with fewer cores than threads the other side needs this one.
                    std::thread::yield_now();
                }
            }
            begun.elapsed().mul_f64(packets as f64 / handed_over.max(1) as f64)
        });
    });
    group.finish();
    stop.store(true, Ordering::Relaxed);
    echo.join().expect("the echo ends");
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1)).without_plots();
    targets = same_thread, two_threads
}
criterion_main!(benches);
