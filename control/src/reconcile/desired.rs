//! What there should be, and how sure that is.
//!
//! Owns the resources as last resolved and the doubt about what this run of control cannot know: an object that was
//! unreadable or invalid when the process began may have had a good version before, which only the dataplane still
//! holds. Such a resource is neither replaced nor removed until the doubt ends.

use std::collections::BTreeMap;
use std::ops::Deref;

use hashbrown::HashSet;
use tidegate_api::resource::{Body, Kind, Resource, ResourceKey};

use crate::model::Name;
use crate::model::pod::{Pod, Pods};
use crate::session::Wanted;
use crate::source::ObjectKey;
use crate::watch::Dialect;

/// What there should be, and how sure that is.
#[derive(Debug, Default)]
pub(super) struct Desired {
    pub(super) resources: BTreeMap<ResourceKey, Resource>,
    /// Removed by this run after it had them.
    removed: HashSet<ResourceKey>,
    /// What policies mean, where that has changed since all was resolved once.
    renewed: HashSet<ResourceKey>,
    /// All has been resolved once.
    pub(super) resolved: bool,
    /// Services that have had an endpoint in this run.
    had_backends: HashSet<ResourceKey>,
    /// The source is an API server, which knows all there is.
    pub(super) of_a_cluster: bool,
    /// Files of the source could never be read since start.
    pub(super) unreadable: bool,
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
                if self.resolved && is_meaning(key.kind) {
                    self.renewed.insert(key.clone());
                }
                self.resources.insert(key.clone(), resource);
            }
            None => {
                if self.resources.remove(key).is_none() {
                    return false;
                }
                self.had_backends.remove(key);
                self.renewed.remove(key);
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
    /// Whether it may be unknown who some pods are: made without them, sets would be about fewer.
    fn lacks_pods(&self) -> bool {
        self.unreadable || self.doubtful.values().any(|doubtful| matches!(doubtful.kind, Kind::Pod | Kind::Identity))
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
        let policy_is_doubtful = || self.doubtful.values().any(|doubtful| doubtful.kind == Kind::Policy);
        if key.kind == Kind::Pod && (self.unreadable || policy_is_doubtful()) && self.is_named_there(key) {
            return true;
        }
        if self.removed.contains(key) {
            return false;
        }
        // The sets that the dataplane has, and those whom it knows by them, belong together.
        if is_meaning(key.kind) && !self.renewed.contains(key) && self.lacks_pods() {
            return true;
        }
        let never_seen = match self.resources.get(key) {
            None => true,
            // Its slices may be in the part of the source that cannot be read.
            Some(resource) => key.kind == Kind::Service && !has_backends(resource) && !self.had_backends.contains(key),
        };
        let doubtful = |doubtful: &ResourceKey| {
            // A policy whose good version only the dataplane has means what its sets there say.
            let is_its = doubtful.kind == Kind::Policy && matches!(key.kind, Kind::Identity | Kind::IdentitySet);
            // Where node ports are served is read from the own Node.
            doubtful == key
                || (is_its && never_seen)
                || (doubtful.kind == Kind::Gateway && self.resources.get(key).is_some_and(lacks_addresses))
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
