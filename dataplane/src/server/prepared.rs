//! What one connection has told of an update that is still to come.
//!
//! Owns these objects until the update brings them in force or the connection ends, and does for each what concerns it
//! alone: it is decoded and judged by itself, and its rows are written in a [`Draft`], on the connection's thread. Refuses
//! to look at what is in force: whether an object is taken is found when the update comes. Refuses more than a bounded
//! number of them, so that a client that never sends its update is not for ever; how large each may be only the longest
//! message bounds.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use tidegate_api::message::{Prepare, Update};
use tidegate_api::resource::{Resource, ResourceKey};

use crate::compile::draft::{Draft, Told};
use crate::compile::forge::{Forged, forge};
use crate::objects::validate;

/// Objects of an update that nobody has prepared from which on rings are filled here, while the compiler is busy with
/// the update before: about a tenth of a second of work.
const FORGED_FROM: usize = 1000;

/// Objects that may be prepared and not yet in force: some twenty for each of 50,000 Services.
const OBJECTS_MAX: usize = 1 << 20;

/// What is prepared.
#[derive(Debug)]
pub(super) struct Prepared {
    /// At most so many.
    most: usize,
    resources: BTreeMap<ResourceKey, Resource>,
    /// Those of them that will be refused for what they are.
    invalid: BTreeSet<ResourceKey>,
    /// Their rows, unless there are others that they have to go with.
    draft: Option<Draft>,
}

impl Prepared {
    /// For a dataplane that holds Services or none.
    pub(super) fn for_one_that_holds(services: bool) -> Prepared {
        Prepared::at_most(OBJECTS_MAX, (!services).then(Draft::default))
    }

    fn at_most(most: usize, draft: Option<Draft>) -> Prepared {
        Prepared { most, resources: BTreeMap::new(), invalid: BTreeSet::new(), draft }
    }

    /// Takes in some objects.
    ///
    /// # Errors
    /// When there are too many by then.
    pub(super) fn take(&mut self, prepare: Prepare) -> Result<(), String> {
        for resource in prepare.resources {
            let key = resource.key();
            let is_valid = validate::resource(&resource).is_ok();
            match is_valid {
                true => self.invalid.remove(&key),
                false => self.invalid.insert(key.clone()),
            };
            match &mut self.draft {
                Some(draft) if is_valid => draft.write(&resource),
                Some(draft) => draft.strike(&key),
                None => {}
            }
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

    /// The update with all that belongs to it, and what was done for it. It is `prepared` still if none of its objects has
    /// to be judged by itself any more.
    pub(super) fn complete(&mut self, mut update: Update) -> Told {
        let mut forged = Forged::default();
        if update.resources.len() >= FORGED_FROM {
            // One thread: workers may use all other cores.
            forged = forge(&update.resources, 1);
        }
        if !std::mem::take(&mut update.prepared) {
            return Told { update, forged, draft: None };
        }
        let named: HashSet<ResourceKey> =
            update.resources.iter().map(Resource::key).chain(update.removed.iter().cloned()).collect();
        // From now on there are Services, or rows must be written with what is in force.
        let mut prepared = std::mem::replace(self, Prepared::at_most(self.most, None));
        let is_judged = |resource: &Resource| validate::resource(resource).is_ok();
        update.prepared = prepared.invalid.iter().all(|key| named.contains(key))
            && named.len() == update.resources.len() + update.removed.len()
            && update.resources.iter().all(is_judged);
        if let Some(draft) = &mut prepared.draft {
            named.iter().for_each(|key| draft.strike(key));
        }
        let others = prepared.resources.into_iter().filter(|(key, _)| !named.contains(key));
        update.resources.extend(others.map(|(_, resource)| resource));
        Told { update, forged, draft: prepared.draft }
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
        let mut prepared = Prepared::for_one_that_holds(false);
        prepared.take(Prepare { resources: vec![of("shop/a", "1"), of("shop/b", "1"), of("shop/c", "1")] }).unwrap();
        prepared.take(Prepare { resources: vec![of("shop/b", "2"), of("shop/d", "1")] }).unwrap();
        let other = prepared.complete(incremental(vec![of("shop/a", "3")]));
        assert_eq!(versions(&other.update), BTreeMap::from([("shop/a", "3")]), "it does not say so");
        assert!(other.draft.is_none());
        let update = Update { removed: vec![of("shop/c", "").key()], ..incremental(vec![of("shop/d", "2")]) };
        let Told { update: whole, draft, .. } = prepared.complete(Update { prepared: true, ..update.clone() });
        assert_eq!(versions(&whole), [("shop/a", "1"), ("shop/b", "2"), ("shop/d", "2")].into());
        assert!(whole.prepared && whole.removed == update.removed);
        assert_eq!(draft.map(|draft| draft.len()), Some(1), "a place is written once");
        let nothing = prepared.complete(Update { prepared: true, ..incremental(vec![]) });
        assert!(nothing.update.resources.is_empty() && nothing.draft.is_none(), "once");
    }

    #[test]
    fn a_client_that_never_sends_its_update_is_bounded() {
        let mut prepared = Prepared::at_most(3, Some(Draft::default()));
        for version in 0..100 {
            let same = Prepare { resources: vec![of("shop/a", &version.to_string()), of("shop/b", "1")] };
            prepared.take(same).unwrap();
        }
        assert_eq!(prepared.draft.as_ref().map(Draft::len), Some(0), "what is told again has no rows ahead");
        prepared.take(Prepare { resources: vec![of("shop/c", "1")] }).unwrap();
        let told = prepared.take(Prepare { resources: vec![of("shop/d", "1")] }).unwrap_err();
        assert!(told.starts_with("4 objects") && told.ends_with("at most 3 may be"), "{told}");
        let mut prepared = Prepared::at_most(3, Some(Draft::default()));
        for n in 0..100 {
            prepared.take(Prepare { resources: vec![of(&format!("shop/{n}"), "1"), of("shop/x", "1")] }).unwrap();
            let whole = prepared.complete(Update { prepared: true, ..incremental(vec![]) }).update;
            assert_eq!(whole.resources.len(), 2, "an update starts the count anew");
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
            let mut prepared = Prepared::for_one_that_holds(false);
            prepared.take(Prepare { resources: ahead }).unwrap();
            let Told { update: whole, .. } = prepared.complete(Update { prepared: true, ..update });
            assert!(!whole.prepared, "all are judged once more");
            let outcome = Objects::default().apply(whole, None);
            let is_told = outcome.rejected.iter().any(|rejection| rejection.reason.contains(reason));
            assert!(is_told, "{reason}: {:?}", outcome.rejected);
        }
        let mut prepared = Prepared::for_one_that_holds(false);
        prepared.take(Prepare { resources: vec![invalid] }).unwrap();
        prepared.take(Prepare { resources: vec![of("shop/b", "2")] }).unwrap();
        assert!(
            prepared.complete(Update { prepared: true, ..incremental(vec![]) }).update.prepared,
            "it is valid by now"
        );
    }
}
