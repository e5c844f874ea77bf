//! Body of the fuzz target `policies`: what must hold whatever text is taken for manifests.
//!
//! Any text is read without a panic; what is complained of is named by its field; the same objects in the opposite order
//! are the same tables and answers; when all objects go, nothing stays.

use std::collections::BTreeMap;

use tidegate_api::resource::{Body, Resource, ResourceKey};
use tidegate_control::model::{Dirty, Model, Object};
use tidegate_control::policies::Policies;
use tidegate_control::source::{Manifest, ObjectKey, manifest};
use tidegate_control::watch::{self, Dialect, Exposed};
use tidegate_policy::{Compiler, Direction, Query, Verdict};

/// Longest text that is looked at: a parser's time is not what this is about.
const TEXT_MAX: usize = 1 << 16;

/// All the way from objects to tables.
#[derive(Default)]
struct Way {
    model: Model,
    index: Policies,
    compiler: Compiler,
    held: BTreeMap<ResourceKey, Resource>,
    dirty: Dirty,
}

impl Way {
    fn publish(&mut self) {
        let dirty = std::mem::take(&mut self.dirty);
        let resolved = self.model.resolve_policies(&mut self.index, &dirty.policies);
        self.compiler.update(resolved.iter().map(|(key, resource)| (key, resource.as_ref())));
        for (key, resource) in resolved {
            match resource {
                Some(resource) => drop(self.held.insert(key, resource)),
                None => drop(self.held.remove(&key)),
            }
        }
    }

    fn answers(&self) -> Vec<bool> {
        let pods = self.held.values().filter_map(|resource| match &resource.body {
            Body::Pod(pod) => Some((pod.identity, pod.addresses.first().copied()?)),
            _ => None,
        });
        let pods: Vec<_> = pods.take(8).collect();
        let outside = [(0, [192, 0, 2, 7].into()), (0, [0x2001, 0xdb8, 0, 0, 0, 0, 0, 7].into())];
        let mut answers = Vec::new();
        for direction in Direction::ALL {
            for (subject, _) in &pods {
                for (peer, peer_address) in pods.iter().chain(&outside) {
                    for (protocol, port) in [(6, 80), (6, 8080), (17, 53), (1, 0)] {
                        let query = Query {
                            direction,
                            subject: *subject,
                            peer: *peer,
                            peer_address: *peer_address,
                            protocol,
                            port,
                            is_itself: false,
                        };
                        let Verdict { allow, .. } = self.compiler.table().lookup(&query);
                        answers.push(allow);
                    }
                }
            }
        }
        answers
    }
}

/// Any bytes as a file of manifests.
pub fn policies(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let json = text.trim_start().starts_with('{');
    if text.len() > TEXT_MAX {
        return;
    }
    let Ok(content) = manifest::parse(if json { "any.json" } else { "any.yaml" }, text) else { return };
    let mut read: BTreeMap<ObjectKey, Object> = BTreeMap::new();
    for Manifest { key, value, .. } in content.manifests {
        match watch::read(&key, &value, Dialect::Files, Exposed::default(), &mut Vec::new()) {
            Ok(object) => {
                if let Object::Policy(policy) = &object {
                    let named = |(field, why): &(String, String)| field.starts_with("spec") && !why.is_empty();
                    assert!(policy.complaints.iter().all(named), "{:?}", policy.complaints);
                }
                read.insert(key, object);
            }
            Err(error) => assert!(!error.message.is_empty(), "{key:?}"),
        }
    }
    let (mut way, mut other) = (Way::default(), Way::default());
    for object in read.values() {
        way.model.apply(object.clone(), &mut way.dirty);
    }
    for object in read.values().rev() {
        other.model.apply(object.clone(), &mut other.dirty);
        other.publish();
    }
    way.publish();
    assert!(way.held == other.held, "what is sent depends on the order of objects");
    assert_eq!(way.compiler.table().digest(), other.compiler.table().digest());
    assert_eq!(way.answers(), other.answers());
    for key in read.keys() {
        way.model.delete(key, &mut way.dirty);
    }
    way.publish();
    assert!(way.held.is_empty(), "left behind: {:?}", way.held.keys());
}
