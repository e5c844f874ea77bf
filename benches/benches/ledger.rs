//! The NAT ledger: records written, and a question over a day of them.
//!
//! `LEDGER_RECORDS` sets how many; four million, half a gigabyte each two, unless set.

#![allow(missing_docs)]

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use jiff::Timestamp;
use tidegate_ledger::{Holding, Limits, Protocol, Question, Record, Writer, who};

/// Milliseconds of the day that is recorded.
const DAY_MS: u64 = 86_400_000;
/// Milliseconds since 1970 at which it begins.
const BEGUN_MS: i64 = 1_800_000_000_000;
/// Ports that are handed out, of one address and towards 256 remotes.
const PORTS: u64 = 64_512;

fn external() -> IpAddr {
    IpAddr::from([192, 0, 2, 10])
}

/// Flow number `flow`: every one of its fields differs from its neighbours'.
fn holding(flow: u64) -> Holding {
    let port = u16::try_from(1024 + flow.wrapping_mul(40_503) % PORTS).unwrap_or_default();
    let [.., a, b] = flow.to_be_bytes();
    Holding {
        external: external(),
        ports: (port, port),
        protocol: Protocol::Tcp,
        remote: Some(SocketAddr::from(([198, 51, 100, b], 443))),
        internal: IpAddr::from([10, 244, a, b]),
        internal_port: Some(port ^ 0x5555),
        pod: format!("shop/web-{a}-{b}"),
        node: format!("w{}", a % 16),
        policy: "shop".into(),
    }
}

fn at(ms: u64) -> Timestamp {
    Timestamp::from_millisecond(BEGUN_MS + i64::try_from(ms).unwrap_or_default()).unwrap_or_default()
}

fn ledger(criterion: &mut Criterion) {
    let records: u64 = std::env::var("LEDGER_RECORDS").ok().and_then(|text| text.parse().ok()).unwrap_or(4_000_000);
    let (directory, began) = (tempfile::tempdir().expect("a directory"), Instant::now());
    let limits = Limits { total_bytes_max: u64::MAX, ..Limits::default() };
    let mut writer = Writer::open(directory.path(), limits, at(0)).expect("a ledger");
    // Every flow lives for a thousand others.
    const LIVE: u64 = 1000;
    for number in 0..records / 2 + LIVE {
        let at = at(number * DAY_MS / (records / 2 + LIVE));
        if number < records / 2 {
            writer.append(&Record::Begin { at, holding: holding(number) }).expect("a record");
        }
        if let Some(flow) = number.checked_sub(LIVE) {
            writer.append(&Record::End { at, holding: holding(flow) }).expect("a record");
        }
    }
    writer.flush().expect("a disk");
    let took = began.elapsed().as_nanos() as f64 / records as f64;
    println!("{records} records written, {took:.0} ns each");
    let mut group = criterion.benchmark_group("ledger");
    let mut flow = 0;
    let mut ask = |at_ms: Option<u64>, to: bool| {
        flow = (flow + 7_919) % (records / 2);
        let held = holding(flow);
        let own_ms = (flow + LIVE / 2) * DAY_MS / (records / 2 + LIVE);
        let question = Question {
            external: external(),
            port: held.ports.0,
            protocol: None,
            remote: held.remote.filter(|_| to),
            at: at(at_ms.unwrap_or(own_ms)),
        };
        let found = who(directory.path(), &question).expect("a ledger");
        assert!(at_ms.is_some() || found.answers.iter().any(|answer| answer.holding == held), "flow {flow}");
        found
    };
    group.bench_function("who_then", |bencher| bencher.iter(|| ask(None, true)));
    group.bench_function("who_then_any_remote", |bencher| bencher.iter(|| ask(None, false)));
    group.bench_function("who_at_the_end", |bencher| bencher.iter(|| ask(Some(DAY_MS), false)));
    let mut number = records;
    group.bench_function("append", |bencher| {
        bencher.iter(|| {
            number += 1;
            writer.append(&Record::Begin { at: at(DAY_MS), holding: holding(number) })
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1)).without_plots();
    targets = ledger
}
criterion_main!(benches);
