//! The store: every object, one revision counter, and per resource a bounded history of changes.
//!
//! Owns what etcd and the watch cache own in the real server: objects in the order of their keys, the changes that lead from
//! one revision to the next, and the oldest revision that may still be asked for. Refuses to know what an object means,
//! who writes it and how it is sent. One lock around it, held for single steps only, makes every write atomic.
//!
//! `compact` makes older revisions expired for whoever asks from then on; watches that are open keep what they need until
//! the history is full: then the slowest lose their place, as in the real server.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::watch;

use crate::kinds::{Kind, built_in};
use crate::object::{Key, Object};
use crate::service::Addresses;

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It is new.
    Added,
    /// It is another than before.
    Modified,
    /// It is gone.
    Deleted,
}

/// One change of one object.
#[derive(Clone, Debug)]
pub struct Change {
    /// What happened.
    pub what: What,
    /// The object after the change; of a deletion, its last state under the revision of the deletion.
    pub object: Arc<Object>,
    /// The object before, unless it is new.
    pub before: Option<Arc<Object>>,
}

/// The objects of one resource.
#[derive(Debug)]
pub struct Shelf {
    /// What they are.
    pub kind: Arc<Kind>,
    /// All of them.
    pub objects: BTreeMap<Key, Arc<Object>>,
    history: VecDeque<Change>,
    /// The newest revision whose change is no longer in the history.
    trimmed: u64,
    changed: watch::Sender<u64>,
}

/// Changes that an open watch has not seen.
pub enum News {
    /// These, and then nothing up to the revision.
    Changes(Vec<Change>, u64),
    /// Some are no longer known.
    Lost,
}

/// Everything that is stored.
#[derive(Debug)]
pub struct Store {
    revision: u64,
    /// Revisions below this one are expired.
    compacted: u64,
    history_max: usize,
    shelves: HashMap<(String, String), Shelf>,
    /// Addresses and ports that Services hold.
    pub addresses: Addresses,
}

impl Store {
    /// A store of no objects that keeps at most `history_max` changes per resource.
    pub fn new(history_max: usize) -> Store {
        let mut store =
            Store { revision: 1, compacted: 1, history_max, shelves: HashMap::new(), addresses: Addresses::default() };
        built_in().into_iter().for_each(|kind| store.serve(kind));
        store
    }

    /// Forgets every object and change. The revision goes on: it never goes back within one server's life.
    pub fn clear(&mut self) {
        self.revision += 1;
        for shelf in self.shelves.values_mut() {
            shelf.objects.clear();
            shelf.history.clear();
            shelf.trimmed = self.revision;
        }
        self.compacted = self.revision;
        self.addresses = Addresses::default();
    }

    /// The newest revision.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The oldest revision that may be asked for.
    pub fn oldest(&self) -> u64 {
        self.compacted
    }

    /// Makes every revision before the newest one expired.
    pub fn compact(&mut self) {
        self.compacted = self.revision;
    }

    /// Uses up `count` revisions, as writes of resources that nobody here knows would.
    pub fn skip_revisions(&mut self, count: u64) {
        self.revision += count;
        for shelf in self.shelves.values() {
            shelf.changed.send_replace(self.revision);
        }
    }

    /// Serves `kind` from now on; objects that were there stay.
    pub fn serve(&mut self, kind: Arc<Kind>) {
        let name = (kind.group.clone(), kind.plural.clone());
        match self.shelves.get_mut(&name) {
            Some(shelf) => shelf.kind = kind,
            None => {
                let shelf = Shelf {
                    kind,
                    objects: BTreeMap::new(),
                    history: VecDeque::new(),
                    trimmed: self.revision,
                    changed: watch::Sender::new(self.revision),
                };
                self.shelves.insert(name, shelf);
            }
        }
    }

    /// No longer serves a resource; its objects are gone without a word, as the real server's are at the end.
    pub fn withdraw(&mut self, group: &str, plural: &str) {
        self.shelves.remove(&(group.to_owned(), plural.to_owned()));
    }

    /// All kinds, in no order.
    pub fn kinds(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.shelves.values().map(|shelf| &shelf.kind)
    }

    /// The kind served as `plural` of `group`, if its version is `version`.
    pub fn kind(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Kind>> {
        let shelf = self.shelves.get(&(group.to_owned(), plural.to_owned()))?;
        (shelf.kind.version == version).then(|| shelf.kind.clone())
    }

    /// The kind that objects call `apiVersion` and `kind`.
    pub fn kind_of(&self, api_version: &str, kind: &str) -> Option<Arc<Kind>> {
        self.kinds().find(|known| known.kind == kind && known.api_version() == api_version).cloned()
    }

    /// The objects of `kind`.
    pub fn shelf(&self, kind: &Kind) -> Option<&Shelf> {
        self.shelves.get(&(kind.group.clone(), kind.plural.clone()))
    }

    /// The object at `key`.
    pub fn get(&self, kind: &Kind, key: &Key) -> Option<Arc<Object>> {
        self.shelf(kind)?.objects.get(key).cloned()
    }

    /// Stores what `make` makes of the next revision, at its key.
    pub fn put_with(&mut self, kind: &Kind, make: impl FnOnce(u64) -> Object) -> Option<Arc<Object>> {
        let history_max = self.history_max;
        let shelf = self.shelves.get_mut(&(kind.group.clone(), kind.plural.clone()))?;
        self.revision += 1;
        let object = Arc::new(make(self.revision));
        let before = shelf.objects.insert(object.key.clone(), object.clone());
        let what = if before.is_some() { What::Modified } else { What::Added };
        shelf.record(Change { what, object: object.clone(), before }, history_max);
        Some(object)
    }

    /// Stores `value` at its key and returns it with its new revision. Nothing is checked.
    pub fn put(&mut self, kind: &Kind, value: serde_json::Value) -> Option<Arc<Object>> {
        self.put_with(kind, |revision| Object::new(kind, value, revision))
    }

    /// Takes the object at `key` away and returns its last state under the revision of its deletion.
    pub fn remove(&mut self, kind: &Kind, key: &Key) -> Option<Arc<Object>> {
        let history_max = self.history_max;
        let shelf = self.shelves.get_mut(&(kind.group.clone(), kind.plural.clone()))?;
        let before = shelf.objects.remove(key)?;
        self.revision += 1;
        let object = before.at(kind, self.revision);
        shelf.record(Change { what: What::Deleted, object: object.clone(), before: Some(before) }, history_max);
        Some(object)
    }
}

impl Shelf {
    fn record(&mut self, change: Change, history_max: usize) {
        let revision = change.object.revision;
        self.history.push_back(change);
        while self.history.len() > history_max {
            self.trimmed = self.history.pop_front().map_or(self.trimmed, |change| change.object.revision);
        }
        self.changed.send_replace(revision);
    }

    /// Tells when something changed; the value is a revision.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// What happened after revision `seen`, of which `newest` is the newest of the store.
    pub fn news(&self, seen: u64, newest: u64) -> News {
        if seen < self.trimmed {
            return News::Lost;
        }
        let from = self.history.partition_point(|change| change.object.revision <= seen);
        News::Changes(self.history.range(from..).cloned().collect(), newest.max(seen))
    }

    /// The objects as they were at `revision`, as far as the history reaches back.
    pub fn as_of(&self, revision: u64) -> Option<BTreeMap<Key, Arc<Object>>> {
        if revision < self.trimmed {
            return None;
        }
        let mut objects = self.objects.clone();
        for change in self.history.iter().rev().take_while(|change| change.object.revision > revision) {
            match &change.before {
                Some(before) => drop(objects.insert(before.key.clone(), before.clone())),
                None => drop(objects.remove(&change.object.key)),
            }
        }
        Some(objects)
    }

    /// The revision of the newest change that is known.
    pub fn changed_at(&self) -> Option<u64> {
        self.history.back().map(|change| change.object.revision)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn names(objects: &BTreeMap<Key, Arc<Object>>) -> Vec<(String, u64)> {
        objects.values().map(|object| (object.key.name.clone(), object.revision)).collect()
    }

    #[test]
    fn the_past_can_be_had_as_far_as_the_history_reaches() {
        let mut store = Store::new(3);
        let kind = store.kind("", "v1", "services").unwrap();
        let named = |name: &str| json!({"metadata": {"name": name, "namespace": "n"}});
        let mut states = vec![(store.revision(), Vec::new())];
        for step in 0..6 {
            match step {
                0 => drop(store.put(&kind, named("a"))),
                1 => drop(store.put(&kind, named("b"))),
                2 => drop(store.put(&kind, named("a"))),
                3 => drop(store.remove(&kind, &Key::new("n", "a"))),
                4 => drop(store.put(&kind, named("c"))),
                _ => drop(store.remove(&kind, &Key::new("n", "b"))),
            }
            states.push((store.revision(), names(&store.shelf(&kind).unwrap().objects)));
        }
        let shelf = store.shelf(&kind).unwrap();
        for (revision, state) in &states[3..] {
            assert_eq!(names(&shelf.as_of(*revision).unwrap()), *state, "at {revision}");
        }
        assert!(shelf.as_of(states[2].0).is_none());
        assert!(matches!(shelf.news(states[2].0, 7), News::Lost));
        let News::Changes(changes, _) = shelf.news(states[3].0, 7) else { panic!("lost") };
        assert_eq!(
            changes.iter().map(|change| change.what).collect::<Vec<_>>(),
            [What::Deleted, What::Added, What::Deleted]
        );
    }

    proptest! {
        /// Whatever happens: the state at any revision and the news since then make the state of now, and the state at a
        /// revision is what was noted then.
        #[test]
        fn the_past_and_the_news_make_the_present(steps in prop::collection::vec((0..5_u8, any::<bool>()), 1..60)) {
            let mut store = Store::new(1000);
            let kind = store.kind("", "v1", "services").unwrap();
            let mut noted = Vec::new();
            for (name, put) in steps {
                let name = format!("s{name}");
                if put {
                    store.put(&kind, json!({"metadata": {"name": name, "namespace": "n"}}));
                } else {
                    store.remove(&kind, &Key::new("n", &name));
                }
                noted.push((store.revision(), names(&store.shelf(&kind).unwrap().objects)));
            }
            let shelf = store.shelf(&kind).unwrap();
            for (revision, state) in noted {
                let mut objects = shelf.as_of(revision).unwrap();
                prop_assert_eq!(names(&objects), state);
                let News::Changes(changes, newest) = shelf.news(revision, store.revision()) else { panic!("lost") };
                prop_assert_eq!(newest, store.revision());
                for change in changes {
                    let key = change.object.key.clone();
                    let before = match change.what {
                        What::Deleted => objects.remove(&key),
                        _ => objects.insert(key, change.object.clone()),
                    };
                    prop_assert_eq!(before.map(|object| object.revision), change.before.map(|object| object.revision));
                }
                prop_assert_eq!(names(&objects), names(&shelf.objects));
            }
        }
    }
}
