//! What there should be, and how sure that is.
//!
//! Owns the resources as last resolved and the doubt about what this run of control cannot know: an object that was
//! unreadable or invalid when the process began may have had a good version before, which only the dataplane still
//! holds. Such a resource is neither replaced nor removed until the doubt ends.
//!
//! Whom policies are about is such a thing as well. What an earlier run has saved of it makes it certain
//! ([`super::lastgood`]). Where that is missing, and a file, a Pod, a Namespace or their kind cannot be read, whatever the
//! dataplane has of policies, of sets and of what pods are known as stays as it is, since these have their meaning together:
//! what is seen to go goes, what it does not have comes, and what changes waits. So does a policy of a kind that may not be
//! read, with its sets.

use std::collections::BTreeMap;
use std::ops::Deref;

use hashbrown::HashSet;
use tidegate_api::resource::{Body, Kind, Resource, ResourceKey};

use super::object_key;
use crate::model::Name;
use crate::model::pod::{Pod, Pods};
use crate::session::Wanted;
use crate::source::{ObjectKey, ObjectKind, Unavailable, Unlisted};
use crate::watch::Dialect;

/// What there should be, and how sure that is.
#[derive(Debug, Default)]
pub(super) struct Desired {
    pub(super) resources: BTreeMap<ResourceKey, Resource>,
    /// Removed by this run after it had them.
    removed: HashSet<ResourceKey>,
    /// Services that have had an endpoint in this run.
    had_backends: HashSet<ResourceKey>,
    /// The source is an API server, which knows all there is.
    pub(super) of_a_cluster: bool,
    /// Files of the source could never be read since start.
    pub(super) unreadable: bool,
    /// Kinds that could never be listed since start.
    pub(super) unlisted: Unlisted,
    /// What was there before this run is known without asking the dataplane: policies, and whom they are about.
    pub(super) remembers: bool,
    /// Objects that were invalid at start, with the resource each one belongs to: its earlier version, which only the
    /// dataplane knows, stays.
    pub(super) doubtful: BTreeMap<ObjectKey, ResourceKey>,
}

impl Desired {
    /// What there should be according to a source of that kind: nothing yet.
    pub(super) fn of(dialect: Dialect) -> Self {
        Desired { of_a_cluster: dialect == Dialect::Cluster, ..Desired::default() }
    }

    /// Replaces what there should be under `key`; whether that changes anything.
    pub(super) fn replace(&mut self, key: &ResourceKey, resource: Option<Resource>) -> bool {
        match resource {
            Some(resource) => {
                if self.resources.get(key).is_some_and(|present| present.version == resource.version) {
                    return false;
                }
                if has_backends(&resource) {
                    self.had_backends.insert(key.clone());
                }
                self.removed.remove(key);
                self.resources.insert(key.clone(), resource);
            }
            None => {
                if self.resources.remove(key).is_none() {
                    return false;
                }
                self.had_backends.remove(key);
                self.removed.insert(key.clone());
            }
        }
        true
    }
}

/// The same beside the Pods that the source has.
pub(super) struct Known<'a> {
    pub(super) desired: &'a Desired,
    pub(super) pods: &'a Pods,
}

impl Known<'_> {
    /// Whether only the dataplane may know who some pods are: made without them, sets would be about fewer.
    fn lacks_pods(&self) -> bool {
        let unlisted = [ObjectKind::Pod, ObjectKind::Namespace].iter().any(|kind| self.unlisted.contains_key(kind));
        let is_subject = |doubtful: &ResourceKey| matches!(doubtful.kind, Kind::Pod | Kind::Identity);
        !self.remembers && (self.unreadable || unlisted || self.doubtful.values().any(is_subject))
    }

    /// Whether objects of a kind may not be read, and only the dataplane knows those of before.
    fn is_withheld(&self, kind: ObjectKind) -> bool {
        !self.remembers && self.unlisted.get(&kind) == Some(&Unavailable::Forbidden)
    }

    /// Whether the dataplane may have a policy that nobody else knows.
    fn may_lack_policy(&self) -> bool {
        self.doubtful.values().any(|doubtful| doubtful.kind == Kind::Policy)
            || self.is_withheld(ObjectKind::ClusterNetworkPolicy)
    }

    /// Whether the key is one of a Pod that is there, whatever is said of it.
    fn has_pod(&self, key: &ResourceKey) -> bool {
        let name = key.name.split_once('/').filter(|_| key.kind == Kind::Pod);
        let name = name.map(|(namespace, name)| Name { namespace: namespace.into(), name: name.into() });
        name.and_then(|name| self.pods.get(&name)).is_some_and(Pod::owns_addresses)
    }

    /// Whether a Pod is known to the dataplane as something that only a policy can say which the dataplane alone has: no
    /// other one looks at this Pod.
    fn is_named_there(&self, key: &ResourceKey) -> bool {
        let unnamed = match self.resources.get(key).map(|resource| &resource.body) {
            Some(Body::Pod(pod)) => pod.identity == 0,
            _ => true,
        };
        unnamed && self.has_pod(key)
    }
}

impl Deref for Known<'_> {
    type Target = Desired;

    fn deref(&self) -> &Desired {
        self.desired
    }
}

impl Wanted for Known<'_> {
    fn all(&self) -> &BTreeMap<ResourceKey, Resource> {
        &self.resources
    }

    fn uncertain(&self, key: &ResourceKey) -> bool {
        if key.kind == Kind::Pod && (self.unreadable || self.may_lack_policy()) && self.is_named_there(key) {
            return true;
        }
        // The sets that the dataplane has, those whom it knows by them and those who speak of them belong together.
        if (is_meaning(key.kind) || key.kind == Kind::Policy) && self.lacks_pods() {
            let has_gone = match key.kind {
                // A Pod that no policy looks at is nobody, and is there all the same.
                Kind::Pod => !self.has_pod(key),
                // Who is in a set that nobody names any more could not be found out again when somebody does.
                Kind::Identity | Kind::IdentitySet => false,
                _ => true,
            };
            return !(has_gone && self.removed.contains(key));
        }
        if self.removed.contains(key) {
            return false;
        }
        let never_seen = match self.resources.get(key) {
            None => true,
            // Its slices may be in the part of the source that cannot be read.
            Some(resource) => key.kind == Kind::Service && !has_backends(resource) && !self.had_backends.contains(key),
        };
        // One that came just before the end may not have been saved any more.
        if never_seen && key.kind == Kind::Pod && self.unlisted.contains_key(&ObjectKind::Pod) {
            return true;
        }
        let is_policy = matches!(key.kind, Kind::Policy | Kind::GatewayPolicy);
        // A policy whose good version only the dataplane has means what its sets there say.
        let is_of_policy = matches!(key.kind, Kind::Identity | Kind::IdentitySet);
        if never_seen
            && ((is_policy && self.is_withheld(object_key(key).kind)) || (is_of_policy && self.may_lack_policy()))
        {
            return true;
        }
        let doubtful = |doubtful: &ResourceKey| {
            // Where nothing better was saved, what can be read of it is what there is.
            if self.remembers && is_meaning(doubtful.kind) && !never_seen {
                return false;
            }
            // Where node ports are served is read from the own Node.
            doubtful == key || (doubtful.kind == Kind::Gateway && self.resources.get(key).is_some_and(lacks_addresses))
        };
        (self.unreadable && (never_seen || self.resources.get(key).is_some_and(lacks_addresses)))
            || self.doubtful.values().any(doubtful)
    }

    fn removed_knowingly(&self, key: &ResourceKey) -> bool {
        // Of a Pod that is there and has nothing said of it, the source lacks nothing.
        self.removed.contains(key) || self.has_pod(key)
    }

    /// An API server's list is whole. But one that lacks the very Node of this gateway may be another cluster's.
    fn authoritative(&self) -> bool {
        self.of_a_cluster && self.resources.keys().any(|key| key.kind == Kind::Gateway)
    }
}

/// Whether resources of a kind say whom policies are about.
fn is_meaning(kind: Kind) -> bool {
    matches!(kind, Kind::Pod | Kind::Identity | Kind::IdentitySet)
}

/// Whether node ports are meant to be served and there is no address to serve them at.
fn lacks_addresses(resource: &Resource) -> bool {
    match &resource.body {
        Body::Service(service) => {
            service.node_addresses.is_empty() && service.ports.iter().any(|port| port.node_port.is_some())
        }
        _ => false,
    }
}

fn has_backends(resource: &Resource) -> bool {
    match &resource.body {
        Body::Service(service) => service.ports.iter().any(|port| !port.backends.is_empty()),
        _ => false,
    }
}
