//! Who may reach whom: what a question costs with few rules and with many, and what the compiler thread does.
//!
//! The cluster has 50,000 pods in 1,000 namespaces. They share 5,000 identities, and once more each has its own.

#![allow(missing_docs)]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use tidegate_benches::rules::{
    IDENTITIES, NAMESPACES, PODS, POLICIES, cluster, compiled, megabytes, one_program, questions, set,
};
use tidegate_benches::summary;
use tidegate_policy::Table;

fn ask(criterion: &mut Criterion, name: &str, parameter: u32, table: &Table, identities: u32) {
    let questions = questions(identities, 65_536);
    let mut at = 0;
    let mut group = criterion.benchmark_group(name);
    group.bench_function(BenchmarkId::from_parameter(parameter), |bencher| {
        bencher.iter(|| {
            at = (at + 1) % questions.len();
            black_box(table.lookup(&questions[at]))
        });
    });
    group.finish();
    // A figure that is not written is reported as missing.
    let bytes = u32::try_from(table.size().bytes).unwrap_or(u32::MAX);
    let _ = summary::count(&summary::target(), &format!("{name}_bytes/{parameter}"), bytes.into());
}

fn lookup(criterion: &mut Criterion) {
    for rules in [10, 1_000, 10_000] {
        ask(criterion, "policy_lookup", rules, one_program(rules, IDENTITIES).table(), IDENTITIES);
    }
    for rules in [10, 1_000, 10_000] {
        ask(criterion, "policy_lookup_pods", rules, one_program(rules, PODS).table(), PODS);
    }
}

fn compile(criterion: &mut Criterion) {
    let resources = cluster(IDENTITIES);
    criterion.bench_function("policy/compile_10000", |bencher| bencher.iter(|| compiled(&resources)));
    let mut compiler = compiled(&resources);
    ask(criterion, "policy_lookup_cluster", POLICIES, compiler.table(), IDENTITIES);
    let bytes = compiler.table().size().bytes;
    let _ = summary::count(&summary::target(), "policy/memory", megabytes(bytes));
    // A pod gets a label that makes it another identity: the set of its namespace changes, and back.
    let before = set("namespace-7".into(), (1..=IDENTITIES).filter(|id| id % NAMESPACES == 7));
    let after = set("namespace-7".into(), (1..=IDENTITIES + 1).filter(|id| id % NAMESPACES == 7 || *id > IDENTITIES));
    let mut turn = false;
    criterion.bench_function("policy/label_change", |bencher| {
        bencher.iter(|| {
            turn = !turn;
            let now = if turn { &after } else { &before };
            compiler.update([(&now.key(), Some(now))])
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1)).without_plots();
    targets = lookup, compile
}
criterion_main!(benches);
