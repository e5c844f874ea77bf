//! The order in which objects come does not matter, and neither does whether they come at once or one by one.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use proptest::prelude::*;
use rig::{Rig, endpoints, labelled, node, service_with, slice};
use tidegate_control::source::{Batch, ObjectKey, ObjectKind, manifest};
use tidegate_control::watch::Dialect;

/// A step: the text of one object, or the deletion of one.
#[derive(Clone, Debug)]
enum Step {
    Apply(String),
    Delete(ObjectKind, String),
}

fn service(name: &str, variant: u8) -> String {
    let metadata = format!("uid: {name}-{}, creationTimestamp: 2024-01-0{}T00:00:00Z", variant % 2, 1 + variant % 3);
    let spec = format!(
        "loadBalancerIP: \"{}\", externalTrafficPolicy: {}, ports: [{{ name: http, port: 80, nodePort: {} }}]",
        ["203.0.113.1", "2001:db8:f::1"][usize::from(variant % 2)],
        ["Cluster", "Local"][usize::from(variant / 2 % 2)],
        30080 + u16::from(variant % 3)
    );
    service_with(name, &metadata, &spec)
}

fn a_slice(name: &str, variant: u8) -> String {
    let owner = if variant & 1 == 0 { "a" } else { "b" };
    let hosts = ["1=rs", "2=st", "1=st", "3=s", "2=rs"];
    let v6 = variant & 2 != 0;
    let prefix = if v6 { "fd00:10:244:1::" } else { "10.244.1." };
    let first = usize::from(variant) % 5;
    let list: Vec<String> = hosts[first..].iter().map(|host| format!("{prefix}{host}")).collect();
    let list: Vec<&str> = list.iter().map(String::as_str).collect();
    let hints = format!(
        "}}, nodeName: w1, hints: {{ forZones: [{{ name: {} }}] }} }}",
        ["a", "b"][usize::from(variant / 8 % 2)]
    );
    let endpoints = endpoints(&list).replace("} }", &hints);
    slice(name, owner, if v6 { "IPv6" } else { "IPv4" }, "{ name: http, port: 8080 }", &endpoints)
}

/// A Node whose labels and pod CIDRs decide about Services: its zone, whether it is a target, where node ports are.
fn a_node(name: &str, variant: u8) -> String {
    let zone = ["a", "b"][usize::from(variant % 2)];
    let excluded = (variant / 2).is_multiple_of(2);
    let labels = format!(
        "topology.kubernetes.io/zone: {zone}, node.kubernetes.io/exclude-from-external-load-balancers: \"{excluded}\""
    );
    labelled(&node(name, 9), &labels).replace("198.51.100.9", &format!("198.51.100.{}", 9 + variant / 4 % 2))
}

fn rig() -> Rig {
    Rig::with(Dialect::Files, "  topologyHints: true\n  exposeNodePorts: true\n")
}

fn step() -> impl Strategy<Value = Step> {
    let name = |names: &'static [&'static str]| prop::sample::select(names);
    prop_oneof![
        3 => (name(&["a", "b"]), any::<u8>()).prop_map(|(name, variant)| Step::Apply(service(name, variant))),
        5 => (name(&["s1", "s2", "s3", "s4"]), any::<u8>()).prop_map(|(name, variant)| Step::Apply(a_slice(name, variant))),
        2 => (name(&["gw-1", "w1"]), any::<u8>()).prop_map(|(name, variant)| Step::Apply(a_node(name, variant))),
        1 => name(&["shop/a", "shop/b"]).prop_map(|name| Step::Delete(ObjectKind::Service, name.into())),
        1 => name(&["shop/s1", "shop/s2", "shop/s3"]).prop_map(|name| Step::Delete(ObjectKind::EndpointSlice, name.into())),
        1 => name(&["gw-1", "w1"]).prop_map(|name| Step::Delete(ObjectKind::Node, name.into())),
    ]
}

/// What is there after all steps: one text per object.
fn remains(steps: &[Step]) -> Vec<String> {
    let mut present = std::collections::BTreeMap::new();
    for step in steps {
        match step {
            Step::Apply(text) => {
                let key = manifest::parse("x.yaml", text).unwrap().manifests[0].key.clone();
                present.insert((key.kind, key.name), text.clone());
            }
            Step::Delete(kind, name) => drop(present.remove(&(*kind, name.rsplit('/').next().unwrap().to_string()))),
        }
    }
    present.into_values().collect()
}

proptest! {
    #[test]
    fn any_history_gives_what_its_end_alone_gives(
        steps in prop::collection::vec(step(), 0..40),
        seed in any::<prop::sample::Index>(),
    ) {
        let mut lived = rig();
        lived.apply("");
        for step in &steps {
            match step {
                Step::Apply(text) => drop(lived.apply(text)),
                Step::Delete(kind, name) => drop(lived.delete(*kind, name)),
            }
        }
        let mut texts = remains(&steps);
        if !texts.is_empty() {
            let by = seed.index(texts.len());
            texts.rotate_left(by);
            texts.reverse();
        }
        let mut fresh = rig();
        fresh.apply(&texts.concat());
        prop_assert_eq!(lived.0.resources(), fresh.0.resources());
        for name in ["shop/a", "shop/b"] {
            prop_assert_eq!(lived.notes(name), fresh.notes(name));
        }
        prop_assert_eq!(lived.0.problems(), fresh.0.problems());
    }

    #[test]
    fn events_of_one_state_may_come_in_any_order(
        texts in Just((0..12u8).map(|n| match n {
            0 | 1 => service(["a", "b"][usize::from(n)], n),
            2 | 3 => a_node(["gw-1", "w1"][usize::from(n - 2)], n),
            n => a_slice(&format!("s{n}"), n.wrapping_mul(37)),
        }).collect::<Vec<String>>()).prop_shuffle(),
        whole in any::<bool>(),
    ) {
        let mut sorted = texts.clone();
        sorted.sort();
        let mut expected = rig();
        expected.apply(&sorted.concat());
        let mut rig = rig();
        if whole {
            rig.apply(&texts.concat());
        } else {
            for text in &texts {
                rig.apply(text);
            }
        }
        prop_assert_eq!(rig.0.resources(), expected.0.resources());
    }
}

/// A part of a source that is not known as a whole yet.
fn portion(steps: &[Step], nodes_known: bool) -> Batch {
    let mut batch = Batch { nodes_known, ..Batch::default() };
    for step in steps {
        match step {
            Step::Apply(text) => batch.applied.extend(manifest::parse("test.yaml", text).unwrap().manifests),
            Step::Delete(kind, name) => {
                let (namespace, name) = name.split_once('/').unwrap_or(("", name));
                batch.deleted.push(ObjectKey { kind: *kind, namespace: namespace.into(), name: name.into() });
            }
        }
    }
    batch
}

proptest! {
    /// What is resolved before all is known is the same as what is resolved then; nobody is told before.
    #[test]
    fn portions_give_what_the_whole_gives(
        steps in prop::collection::vec(step(), 0..40),
        nodes_known_at in 0usize..50,
        left_for_last in 0usize..3,
    ) {
        let mut rig = rig();
        let early = steps.len().saturating_sub(left_for_last);
        for (at, step) in steps[..early].iter().enumerate() {
            rig.0.take(portion(std::slice::from_ref(step), at >= nodes_known_at));
            prop_assert!(!rig.0.is_complete());
        }
        for step in &steps[early..] {
            rig.0.take(portion(std::slice::from_ref(step), false));
        }
        rig.0.take(Batch { complete: true, ..Batch::default() });
        let mut fresh = self::rig();
        fresh.apply(&remains(&steps).concat());
        prop_assert_eq!(rig.0.resources(), fresh.0.resources());
        for name in ["shop/a", "shop/b"] {
            prop_assert_eq!(rig.all_notes(name), fresh.all_notes(name));
        }
        prop_assert_eq!(rig.0.problems(), fresh.0.problems());
    }
}

#[test]
fn what_is_ripe_is_resolved_before_all_is_known() {
    let mut rig = rig();
    let apply = |text: String| Step::Apply(text);
    rig.0.take(portion(&[apply(service("a", 0)), apply(a_slice("s1", 0))], false));
    assert!(rig.0.resources().is_empty(), "Nodes are still to come, and would decide about it");
    rig.0.take(portion(&[apply(service("b", 1)), apply(a_node("gw-1", 0))], true));
    let kinds: Vec<_> = rig.0.resources().keys().map(ToString::to_string).collect();
    assert_eq!(kinds, ["service shop/a"], "b has no slice yet, and gateways come with all the rest");
    rig.0.take(portion(&[Step::Delete(ObjectKind::Service, "shop/a".into()), apply(a_slice("s2", 1))], true));
    assert!(rig.find_service("shop/b").is_some(), "its slice has come");
    rig.0.take(Batch { complete: true, ..Batch::default() });
    assert!(rig.find_service("shop/a").is_none() && rig.gateway().is_some());
}

#[test]
fn an_empty_batch_changes_nothing() {
    let mut rig = rig();
    rig.apply(&service("a", 0));
    let before = rig.0.resources().clone();
    rig.0.take(Batch { complete: true, ..Batch::default() });
    assert_eq!(rig.0.resources(), &before);
}
