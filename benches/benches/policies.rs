//! Policies from the cluster's objects to tables: 10,000 NetworkPolicies and 50,000 Pods, all at once and after one label.
//!
//! On control's side runs what runs there: objects as the API has them are read ([`tidegate_control::watch`]), taken into
//! the model, and resolved to the contract's messages; on the dataplane's, these are decoded and compiled. Every figure is
//! of one thread alone. Memory is what the allocator has given out and not got back.

#![allow(missing_docs)]

use std::alloc::System;
use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tidegate_api::resource::{Resource, ResourceKey};
use tidegate_benches::rules::{NAMESPACES, PODS, POLICIES, block, megabytes};
use tidegate_benches::summary;
use tidegate_control::model::{Dirty, Model};
use tidegate_control::policies::{Policies, Resolved};
use tidegate_control::source::{ObjectKey, ObjectKind};
use tidegate_control::watch::{self, Dialect, Exposed};
use tidegate_policy::Compiler;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Deployments of a namespace: pods of one have the same labels but for their own.
const DEPLOYMENTS: u32 = 5;
/// Times that everything is made.
const TIMES: usize = 3;
/// Single changes timed.
const CHANGES: u32 = 1_000;

fn main() -> anyhow::Result<()> {
    let policies: Vec<(ObjectKey, Value)> = (0..POLICIES).map(policy).collect();
    let pods: Vec<(ObjectKey, Value)> = (0..PODS).map(|number| pod(number, "stable")).collect();
    let (mut told, mut compiled, mut read) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..TIMES {
        let (mut model, mut dirty) = (Model::default(), Dirty::default());
        let begun = Instant::now();
        for (key, value) in policies.iter().chain(&pods) {
            take(&mut model, key, value, &mut dirty)?;
        }
        read.push(ms(begun));
        let (mut index, begun) = (Policies::default(), Instant::now());
        let resolved = model.resolve_policies(&mut index, &dirty.policies);
        told.push(ms(begun));
        let (mut compiler, begun) = (Compiler::default(), Instant::now());
        compile(&mut compiler, &resolved);
        compiled.push(ms(begun));
    }
    tell("policies/control_read", median(&mut read))?;
    tell("policies/control_compile", median(&mut told))?;
    tell("policies/dataplane_compile", median(&mut compiled))?;
    memory(&policies, &pods)?;
    changes(&policies, &pods)
}

/// What each side keeps, and what goes between them.
fn memory(policies: &[(ObjectKey, Value)], pods: &[(ObjectKey, Value)]) -> anyhow::Result<()> {
    let region = Region::new(ALLOCATOR);
    let (mut model, mut dirty, mut index) = (Model::default(), Dirty::default(), Policies::default());
    for (key, value) in policies.iter().chain(pods) {
        take(&mut model, key, value, &mut dirty)?;
    }
    let changed = std::mem::take(&mut dirty.policies);
    let resolved = model.resolve_policies(&mut index, &changed);
    drop((changed, dirty));
    tell("policies/control_memory", megabytes(kept(&region)))?;
    let bytes: usize = resolved.values().flatten().map(|it| serde_json::to_vec(it).map_or(0, |text| text.len())).sum();
    tell("policies/contract_bytes", megabytes(bytes))?;
    let region = Region::new(ALLOCATOR);
    let mut compiler = Compiler::default();
    compile(&mut compiler, &resolved);
    tell("policies/dataplane_memory", megabytes(kept(&region)))?;
    tell("policies/tables_memory", megabytes(compiler.table().size().bytes))?;
    println!("{} messages, {} identities, {:?}", resolved.len(), compiler.table().len(), compiler.table().size());
    Ok(())
}

/// One pod gets a label that a selector looks at, which makes it another identity, and gets the one before back.
fn changes(policies: &[(ObjectKey, Value)], pods: &[(ObjectKey, Value)]) -> anyhow::Result<()> {
    let (mut model, mut dirty, mut index) = (Model::default(), Dirty::default(), Policies::default());
    for (key, value) in policies.iter().chain(pods) {
        take(&mut model, key, value, &mut dirty)?;
    }
    let mut compiler = Compiler::default();
    compile(&mut compiler, &model.resolve_policies(&mut index, &std::mem::take(&mut dirty).policies));
    let (mut told, mut compiled, mut messages) = (Vec::new(), Vec::new(), 0);
    for change in 0..CHANGES {
        let number = change / 2 * 97 % PODS;
        let (key, value) = pod(number, if change % 2 == 0 { "canary" } else { "stable" });
        let (mut dirty, begun) = (Dirty::default(), Instant::now());
        take(&mut model, &key, &value, &mut dirty)?;
        let resolved = model.resolve_policies(&mut index, &dirty.policies);
        told.push(ms(begun));
        let begun = Instant::now();
        let work = compile(&mut compiler, &resolved);
        compiled.push(ms(begun));
        ensure!(work > 0, "change {change} changes nothing");
        messages += resolved.len();
    }
    println!("a label: {:.1} messages", messages as f64 / f64::from(CHANGES));
    tell("policies/control_label_change", median(&mut told))?;
    tell("policies/dataplane_label_change", median(&mut compiled))
}

fn compile(compiler: &mut Compiler, resolved: &Resolved) -> usize {
    let changes = resolved.iter().map(|(key, resource): (&ResourceKey, &Option<Resource>)| (key, resource.as_ref()));
    compiler.update(changes).rows
}

fn take(model: &mut Model, key: &ObjectKey, value: &Value, dirty: &mut Dirty) -> anyhow::Result<()> {
    let object = watch::read(key, value, Dialect::Cluster, Exposed::default(), &mut Vec::new()).context("an object")?;
    model.apply(object, dirty);
    Ok(())
}

fn key(kind: ObjectKind, namespace: u32, name: String) -> ObjectKey {
    ObjectKey { kind, namespace: format!("namespace-{namespace}"), name }
}

/// Ten in each namespace: about its deployments by turns, with ten rules that speak of another deployment, of another
/// namespace, and of prefixes of both families with exceptions.
fn policy(number: u32) -> (ObjectKey, Value) {
    let namespace = number % NAMESPACES;
    let rule = |it: u32| {
        let other = number * 10 + it;
        let block = |v4| {
            let (cidr, except) = block(other, v4);
            json!({ "ipBlock": { "cidr": cidr, "except": [except] } })
        };
        let peer = match other % 4 {
            0 => json!({ "podSelector": { "matchLabels": { "app": format!("app-{}", other / 4 % DEPLOYMENTS) } } }),
            1 => json!({ "namespaceSelector": { "matchLabels":
                { "kubernetes.io/metadata.name": format!("namespace-{}", other % NAMESPACES) } } }),
            2 => block(true),
            _ => block(false),
        };
        json!({ "from": [peer], "ports": [{ "port": 80 }, { "port": 1000 + other % 20_000 }] })
    };
    let rules: Vec<Value> = (0..10).map(rule).collect();
    let deployment = number / NAMESPACES % DEPLOYMENTS;
    let selector = match number / NAMESPACES < DEPLOYMENTS {
        true => json!({ "matchLabels": { "app": format!("app-{deployment}") } }),
        false => json!({ "matchLabels": { "app": format!("app-{deployment}"), "track": "canary" } }),
    };
    let spec = json!({ "podSelector": selector, "policyTypes": ["Ingress"], "ingress": rules });
    (key(ObjectKind::NetworkPolicy, namespace, format!("p{number}")), json!({ "spec": spec }))
}

/// Fifty in each namespace, ten of each deployment, of both families and with a label of its own.
fn pod(number: u32, track: &str) -> (ObjectKey, Value) {
    let (namespace, [_, a, b, c]) = (number % NAMESPACES, number.to_be_bytes());
    let app = format!("app-{}", number / NAMESPACES % DEPLOYMENTS);
    let ips = json!([{ "ip": format!("10.{a}.{b}.{c}") }, { "ip": format!("fd00:10:{a:x}::{b:x}:{c:x}") }]);
    let labels = json!({ "app": app, "track": track, "pod-template-hash": format!("{number:x}") });
    let port = json!([{ "name": "http", "containerPort": 8080 }]);
    let value = json!({ "metadata": { "labels": labels }, "status": { "podIPs": ips },
        "spec": { "nodeName": format!("node-{}", number % 500), "containers": [{ "name": "c", "ports": port }] } });
    (key(ObjectKind::Pod, namespace, format!("pod-{number}")), value)
}

/// Bytes that were given out since and are still held.
fn kept(region: &Region<'_, System>) -> usize {
    let change = region.change();
    let more = isize::try_from(change.bytes_allocated).unwrap_or(isize::MAX)
        - isize::try_from(change.bytes_deallocated).unwrap_or(isize::MAX);
    usize::try_from(more).unwrap_or(0)
}

fn ms(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}

fn median(list: &mut [f64]) -> f64 {
    list.sort_by(f64::total_cmp);
    list.get(list.len() / 2).copied().unwrap_or(f64::NAN)
}

fn tell(name: &str, figure: f64) -> anyhow::Result<()> {
    println!("{name}: {figure:.3}");
    summary::count(&summary::target(), name, figure)
}
