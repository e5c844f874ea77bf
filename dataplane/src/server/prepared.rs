//! What one connection has told of an update that is still to come.
//!
//! Owns these objects until the update brings them in force or the connection ends, and does for each what concerns it
//! alone: it is decoded, and its rings are filled, on the connection's thread. Refuses to look at what is in force: whether
//! an object is taken is found when the update comes.

use std::collections::{BTreeMap, HashSet};

use tidegate_api::message::{Prepare, Update};
use tidegate_api::resource::{Resource, ResourceKey};

use crate::compile::forge::{Forged, forge};

/// Objects of an update that nobody has prepared from which on rings are filled here, while the compiler is busy with the
/// update before: about a tenth of a second of work.
const FORGED_FROM: usize = 1000;

/// What is prepared.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    resources: BTreeMap<ResourceKey, Resource>,
    forged: Forged,
}

impl Prepared {
    /// Takes in some objects. One thread: the client still writes, and workers may use all other cores.
    pub(super) fn take(&mut self, prepare: Prepare) {
        self.forged.join(forge(&prepare.resources, 1));
        self.resources.extend(prepare.resources.into_iter().map(|resource| (resource.key(), resource)));
    }

    /// The update with all that belongs to it, and rings for it.
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
        let prepared = std::mem::take(self);
        forged.join(prepared.forged);
        let others = prepared.resources.into_iter().filter(|(key, _)| !named.contains(key));
        update.resources.extend(others.map(|(_, resource)| resource));
        (update, forged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::tests::{backend, incremental, named, service};

    fn of(name: &str, version: &str) -> Resource {
        named(name, version, service(&["192.0.2.1", "2001:db8::1"], 80, &[backend("10.244.1.5", 80, 1), backend("fd00::5", 80, 1)]))
    }

    fn versions(update: &Update) -> BTreeMap<&str, &str> {
        update.resources.iter().map(|resource| (resource.name.as_str(), resource.version.as_str())).collect()
    }

    #[test]
    fn what_was_prepared_belongs_to_the_update_that_says_so() {
        let mut prepared = Prepared::default();
        prepared.take(Prepare { resources: vec![of("shop/a", "1"), of("shop/b", "1"), of("shop/c", "1")] });
        prepared.take(Prepare { resources: vec![of("shop/b", "2"), of("shop/d", "1")] });
        let (other, forged) = prepared.complete(incremental(vec![of("shop/a", "3")]));
        assert_eq!((versions(&other), forged.len()), (BTreeMap::from([("shop/a", "3")]), 0), "it does not say so");
        let update = Update { removed: vec![of("shop/c", "").key()], ..incremental(vec![of("shop/d", "2")]) };
        let (whole, forged) = prepared.complete(Update { prepared: true, ..update.clone() });
        assert_eq!(versions(&whole), [("shop/a", "1"), ("shop/b", "2"), ("shop/d", "2")].into());
        assert!(!forged.is_empty() && !whole.prepared && whole.removed == update.removed);
        let (nothing, _) = prepared.complete(Update { prepared: true, ..incremental(vec![]) });
        assert!(nothing.resources.is_empty(), "once");
    }
}
