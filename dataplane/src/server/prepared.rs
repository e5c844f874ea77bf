//! What one connection has told of an update that is still to come.
//!
//! Owns these objects until the update brings them in force or the connection ends, and does for each what concerns it
//! alone: it is decoded and judged by itself, and its rings are filled, on the connection's thread. Refuses to look at
//! what is in force: whether an object is taken is found when the update comes. Refuses more than a bounded number of
//! them: a client that never sends its update holds what a large cluster would, and no more.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use tidegate_api::message::{Prepare, Update};
use tidegate_api::resource::{Resource, ResourceKey};

use crate::compile::forge::{Forged, forge};
use crate::objects::validate;

/// Objects of an update that nobody has prepared from which on rings are filled here, while the compiler is busy with
/// the update before: about a tenth of a second of work.
const FORGED_FROM: usize = 1000;

/// Objects that may be prepared and not yet in force: some seven times those of 50,000 Services with their EndpointSlices
/// and Pods resolved.
const OBJECTS_MAX: usize = 1 << 20;

/// What is prepared.
#[derive(Debug)]
pub(super) struct Prepared {
    /// At most so many.
    most: usize,
    /// How many were told, those again that came again: the rings of the first `most` are filled.
    told: usize,
    resources: BTreeMap<ResourceKey, Resource>,
    /// Those of them that will be refused for what they are.
    invalid: BTreeSet<ResourceKey>,
    forged: Forged,
}

impl Default for Prepared {
    fn default() -> Prepared {
        Prepared::at_most(OBJECTS_MAX)
    }
}

impl Prepared {
    fn at_most(most: usize) -> Prepared {
        Prepared { most, told: 0, resources: BTreeMap::new(), invalid: BTreeSet::new(), forged: Forged::default() }
    }

    /// Takes in some objects. One thread: the client still writes, and workers may use all other cores.
    ///
    /// # Errors
    /// When there are too many by then.
    pub(super) fn take(&mut self, prepare: Prepare) -> Result<(), String> {
        self.told = self.told.saturating_add(prepare.resources.len());
        if self.told <= self.most {
            self.forged.join(forge(&prepare.resources, 1));
        }
        for resource in prepare.resources {
            let key = resource.key();
            match validate::resource(&resource) {
                Ok(()) => self.invalid.remove(&key),
                Err(_) => self.invalid.insert(key.clone()),
            };
            self.resources.insert(key, resource);
        }
        if self.resources.len() > self.most {
            return Err(format!(
                "{} objects are prepared without an update that brings them in force; at most {} may be",
                self.resources.len(),
                self.most
            ));
        }
        Ok(())
    }

    /// The update with all that belongs to it, and rings for it. It is `prepared` still if none of its objects has to be
    /// judged by itself any more.
    pub(super) fn complete(&mut self, mut update: Update) -> (Update, Forged) {
        let mut forged = Forged::default();
        if update.resources.len() >= FORGED_FROM {
            forged.join(forge(&update.resources, 1));
        }
        if !std::mem::take(&mut update.prepared) {
            return (update, forged);
        }
        let named: HashSet<ResourceKey> =
            update.resources.iter().map(Resource::key).chain(update.removed.iter().cloned()).collect();
        let prepared = std::mem::replace(self, Prepared::at_most(self.most));
        forged.join(prepared.forged);
        let is_judged = |resource: &Resource| validate::resource(resource).is_ok();
        update.prepared = prepared.invalid.iter().all(|key| named.contains(key))
            && named.len() == update.resources.len() + update.removed.len()
            && update.resources.iter().all(is_judged);
        let others = prepared.resources.into_iter().filter(|(key, _)| !named.contains(key));
        update.resources.extend(others.map(|(_, resource)| resource));
        (update, forged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::Objects;
    use crate::objects::tests::{backend, incremental, named, service};

    fn of(name: &str, version: &str) -> Resource {
        named(
            name,
            version,
            service(&["192.0.2.1", "2001:db8::1"], 80, &[backend("10.244.1.5", 80, 1), backend("fd00::5", 80, 1)]),
        )
    }

    fn versions(update: &Update) -> BTreeMap<&str, &str> {
        update.resources.iter().map(|resource| (resource.name.as_str(), resource.version.as_str())).collect()
    }

    #[test]
    fn what_was_prepared_belongs_to_the_update_that_says_so() {
        let mut prepared = Prepared::default();
        prepared.take(Prepare { resources: vec![of("shop/a", "1"), of("shop/b", "1"), of("shop/c", "1")] }).unwrap();
        prepared.take(Prepare { resources: vec![of("shop/b", "2"), of("shop/d", "1")] }).unwrap();
        let (other, forged) = prepared.complete(incremental(vec![of("shop/a", "3")]));
        assert_eq!((versions(&other), forged.len()), (BTreeMap::from([("shop/a", "3")]), 0), "it does not say so");
        let update = Update { removed: vec![of("shop/c", "").key()], ..incremental(vec![of("shop/d", "2")]) };
        let (whole, forged) = prepared.complete(Update { prepared: true, ..update.clone() });
        assert_eq!(versions(&whole), [("shop/a", "1"), ("shop/b", "2"), ("shop/d", "2")].into());
        assert!(!forged.is_empty() && whole.prepared && whole.removed == update.removed);
        let (nothing, _) = prepared.complete(Update { prepared: true, ..incremental(vec![]) });
        assert!(nothing.resources.is_empty(), "once");
    }

    #[test]
    fn a_client_that_never_sends_its_update_is_bounded() {
        let mut prepared = Prepared::at_most(3);
        for version in 0..100 {
            let same = Prepare { resources: vec![of("shop/a", &version.to_string()), of("shop/b", "1")] };
            prepared.take(same).unwrap();
        }
        assert!(prepared.forged.len() <= 3 * 2, "rings are not filled for ever: {}", prepared.forged.len());
        prepared.take(Prepare { resources: vec![of("shop/c", "1")] }).unwrap();
        let told = prepared.take(Prepare { resources: vec![of("shop/d", "1")] }).unwrap_err();
        assert!(told.starts_with("4 objects") && told.ends_with("at most 3 may be"), "{told}");
        let mut prepared = Prepared::at_most(3);
        for n in 0..100 {
            prepared.take(Prepare { resources: vec![of(&format!("shop/{n}"), "1"), of("shop/x", "1")] }).unwrap();
            let (whole, forged) = prepared.complete(Update { prepared: true, ..incremental(vec![]) });
            assert_eq!((whole.resources.len(), forged.is_empty()), (2, false), "an update starts the count anew");
        }
    }

    #[test]
    fn what_is_wrong_with_an_object_is_still_found() {
        let invalid = named("shop/b", "1", service(&["127.0.0.1"], 80, &[]));
        let twice = incremental(vec![of("shop/c", "1"), of("shop/c", "2")]);
        for (ahead, update, reason) in [
            (vec![of("shop/a", "1"), invalid.clone()], incremental(vec![]), "127.0.0.1"),
            (vec![of("shop/a", "1")], incremental(vec![invalid.clone()]), "127.0.0.1"),
            (vec![of("shop/a", "1")], twice, "stands twice"),
        ] {
            let mut prepared = Prepared::default();
            prepared.take(Prepare { resources: ahead }).unwrap();
            let (whole, _) = prepared.complete(Update { prepared: true, ..update });
            assert!(!whole.prepared, "all are judged once more");
            let outcome = Objects::default().apply(whole, None);
            let is_told = outcome.rejected.iter().any(|rejection| rejection.reason.contains(reason));
            assert!(is_told, "{reason}: {:?}", outcome.rejected);
        }
        let mut prepared = Prepared::default();
        prepared.take(Prepare { resources: vec![invalid] }).unwrap();
        prepared.take(Prepare { resources: vec![of("shop/b", "2")] }).unwrap();
        assert!(prepared.complete(Update { prepared: true, ..incremental(vec![]) }).0.prepared, "it is valid by now");
    }
}
