//! Where objects come from.
//!
//! Owns the trait every source implements and what it delivers: batches of raw objects that appeared, changed or went,
//! and what is wrong with the source itself. One batch is applied whole, so what changed together is published
//! together. Refuses to know what the objects mean. The directory is the source without a cluster; the Kubernetes API
//! is another implementation of the same trait, which reads its objects where they arrive: a cluster has hundreds of
//! thousands of them, and their types are certain.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::thread::JoinHandle;

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::{Name, Object};
use crate::problem::{Place, Problem};
use crate::watch::{Dialect, Invalid};
use manifest::Stranger;
use record::Record;

/// A watched directory of manifests.
pub mod directory;
/// What is in a directory and what became of it since the last look.
pub mod scan;
/// Objects of which no good version has come.
pub mod nevergood;
/// A text of YAML or JSON taken apart into objects.
pub mod manifest;
/// The Kubernetes API.
pub mod kubernetes;
/// What an API server holds of a Service beyond what is asked for: who looks after it and what was told of it.
pub mod record;

/// Most letters by which a word may differ from one of ours and be taken for it. Three would take kinds of others for
/// ours: `GCPGatewayPolicy`.
const SLIPS_MAX: usize = 2;
/// In a shorter word it is one: two letters of `Node` make it `Role`.
const SHORT_WORD: usize = 8;

/// The kinds of objects that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ObjectKind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Node.
    Node,
    /// `tidegate.io/v1alpha1` AddressPool.
    AddressPool,
    /// `tidegate.io/v1alpha1` EgressPolicy.
    EgressPolicy,
    /// `tidegate.io/v1alpha1` GatewayPolicy.
    GatewayPolicy,
    /// `tidegate.io/v1alpha1` StaticNat.
    StaticNat,
    /// `v1` Namespace.
    Namespace,
    /// `v1` Pod; one from a file has its addresses in `status`.
    Pod,
    /// `networking.k8s.io/v1` NetworkPolicy.
    NetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy.
    ClusterNetworkPolicy,
}

/// Kind, namespace and name: the key of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectKey {
    /// Kind.
    pub kind: ObjectKind,
    /// Namespace; empty for kinds without.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// One raw object.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// Its key.
    pub key: ObjectKey,
    /// Where it stands, when it came from a file.
    pub place: Option<Place>,
    /// The object as it was written.
    pub value: Value,
}

/// One object that was read where it arrived.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Its key.
    pub key: ObjectKey,
    /// What it says, or why that cannot be worked with.
    pub object: Result<Object, Invalid>,
    /// The Service an EndpointSlice says it belongs to, also of one that is otherwise invalid.
    pub service: Option<Name>,
    /// What the API server holds of a Service that may be ours to look after.
    pub record: Option<Box<Record>>,
    /// Object identity of one that events may be about: policies.
    pub uid: Option<String>,
    /// When what led to this EndpointSlice happened, as its author says.
    pub triggered_at: Option<Timestamp>,
}

/// Kinds that could never be listed, and why.
pub type Unlisted = BTreeMap<ObjectKind, Unavailable>;

/// Why a kind cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// It may not be read.
    Forbidden,
    /// The server has no such kind.
    Unknown,
}

/// What changed since the batch before. No object occurs twice in it, but one may be both deleted and new: deleted first.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Objects that are new or may have changed.
    pub applied: Vec<Manifest>,
    /// The same, read already.
    pub read: Vec<Reading>,
    /// Objects that are gone.
    pub deleted: Vec<ObjectKey>,
    /// Everything that is wrong with the source now (not only since the batch before).
    pub problems: Vec<Problem>,
    /// False as long as the source has not been read once; it may come in portions until then, and nothing may be concluded from what is absent.
    pub complete: bool,
    /// All Nodes are known, whatever is not yet.
    pub nodes_known: bool,
    /// Some part of the source could never be read: what is absent may only be unreadable.
    pub unreadable: bool,
    /// Kinds that are not needed and that could not be had since this process began: there may be some.
    pub unlisted: Unlisted,
    /// Objects of kinds that are not read, there since this process began: before that they may have been of one that is.
    pub strangers: BTreeSet<Stranger>,
    /// An operator has confirmed deletions that waited for it.
    pub deletes_confirmed: bool,
    /// All Services have been listed anew since this was asked for with [`kubernetes::Refresh::ask`].
    pub listed_for: Option<u64>,
}

/// Takes batches; false when nobody wants more.
pub type Deliver = Box<dyn FnMut(Batch) -> bool + Send>;

/// Something that knows all objects and tells when they change.
pub trait Source {
    /// Who fills in what manifests leave out.
    fn dialect(&self) -> Dialect;

    /// Starts delivering on a thread of its own: first everything there is, then changes.
    ///
    /// # Errors
    /// Only when it can never work; a source that is not there yet is waited for and told as a problem.
    fn start(self: Box<Self>, deliver: Deliver) -> std::io::Result<Running>;
}

/// A started source; it stops when this is dropped.
pub struct Running {
    stop: Option<Box<dyn FnOnce() + Send>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// A source that runs on `thread` and ends soon after `stop` was called.
    pub fn new(stop: impl FnOnce() + Send + 'static, thread: JoinHandle<()>) -> Self {
        Running { stop: Some(Box::new(stop)), thread: Some(thread) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop();
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Batch {
    /// Several batches in the order in which they came, as if all had happened at once. Costs what they hold together.
    pub fn merge(batches: Vec<Batch>) -> Batch {
        let mut merged = Batch::default();
        let mut decided: HashSet<ObjectKey> = HashSet::new(); // by what came later
        let mut deleted: HashSet<ObjectKey> = HashSet::new();
        for (age, batch) in batches.into_iter().rev().enumerate() {
            if age == 0 {
                (merged.problems, merged.unreadable) = (batch.problems, batch.unreadable);
                (merged.unlisted, merged.strangers) = (batch.unlisted, batch.strangers);
            }
            merged.applied.extend(batch.applied.into_iter().filter(|manifest| decided.insert(manifest.key.clone())));
            merged.read.extend(batch.read.into_iter().filter(|reading| decided.insert(reading.key.clone())));
            for key in batch.deleted {
                // Gone at some time: another object of the name, if one came after.
                decided.insert(key.clone());
                deleted.insert(key);
            }
            merged.complete |= batch.complete;
            merged.nodes_known |= batch.nodes_known;
            merged.deletes_confirmed |= batch.deletes_confirmed;
            merged.listed_for = merged.listed_for.or(batch.listed_for);
        }
        merged.deleted = deleted.into_iter().collect();
        merged
    }
}

impl ObjectKind {
    /// All kinds that a manifest may have.
    pub const ALL: [ObjectKind; 11] = [
        ObjectKind::Service,
        ObjectKind::EndpointSlice,
        ObjectKind::Node,
        ObjectKind::Namespace,
        ObjectKind::AddressPool,
        ObjectKind::EgressPolicy,
        ObjectKind::GatewayPolicy,
        ObjectKind::StaticNat,
        ObjectKind::Pod,
        ObjectKind::NetworkPolicy,
        ObjectKind::ClusterNetworkPolicy,
    ];

    /// The kind of that name and group, if it is one of ours.
    pub fn from_type(api_version: &str, kind: &str) -> Option<Self> {
        match (api_version, kind) {
            ("v1", "Service") => Some(ObjectKind::Service),
            ("discovery.k8s.io/v1", "EndpointSlice") => Some(ObjectKind::EndpointSlice),
            ("v1", "Node") => Some(ObjectKind::Node),
            ("tidegate.io/v1alpha1", "AddressPool") => Some(ObjectKind::AddressPool),
            ("tidegate.io/v1alpha1", "EgressPolicy") => Some(ObjectKind::EgressPolicy),
            ("tidegate.io/v1alpha1", "GatewayPolicy") => Some(ObjectKind::GatewayPolicy),
            ("tidegate.io/v1alpha1", "StaticNat") => Some(ObjectKind::StaticNat),
            ("v1", "Namespace") => Some(ObjectKind::Namespace),
            ("v1", "Pod") => Some(ObjectKind::Pod),
            ("networking.k8s.io/v1", "NetworkPolicy") => Some(ObjectKind::NetworkPolicy),
            ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy") => Some(ObjectKind::ClusterNetworkPolicy),
            _ => None,
        }
    }

    /// The kind that someone meant who wrote a type that is none of ours: with slips in kind or group, in another
    /// version, or with another of our groups. A kind of the same name in somebody else's group is somebody else's.
    pub fn meant_by(api_version: &str, kind: &str) -> Option<Self> {
        let groups = ["discovery.k8s.io", "tidegate.io", "networking.k8s.io", "policy.networking.k8s.io"];
        let is_ours = match api_version.split_once('/') {
            None => true,
            Some((group, _)) => groups.into_iter().any(|ours| slips(group, ours).is_some()),
        };
        let near = |meant: ObjectKind| slips(kind, &meant.to_string()).map(|slips| (slips, meant));
        ObjectKind::ALL.into_iter().filter(|_| is_ours).filter_map(near).min().map(|(_, meant)| meant)
    }

    /// Group and version, as in a manifest.
    pub fn api_version(self) -> &'static str {
        let words = self.type_words();
        let version = words.strip_prefix("apiVersion: ").and_then(|rest| rest.split_once(','));
        version.map_or(words, |(version, _)| version)
    }

    /// How its type is written in a manifest.
    pub fn type_words(self) -> &'static str {
        match self {
            ObjectKind::Service => "apiVersion: v1, kind: Service",
            ObjectKind::EndpointSlice => "apiVersion: discovery.k8s.io/v1, kind: EndpointSlice",
            ObjectKind::Node => "apiVersion: v1, kind: Node",
            ObjectKind::AddressPool => "apiVersion: tidegate.io/v1alpha1, kind: AddressPool",
            ObjectKind::EgressPolicy => "apiVersion: tidegate.io/v1alpha1, kind: EgressPolicy",
            ObjectKind::GatewayPolicy => "apiVersion: tidegate.io/v1alpha1, kind: GatewayPolicy",
            ObjectKind::StaticNat => "apiVersion: tidegate.io/v1alpha1, kind: StaticNat",
            ObjectKind::Namespace => "apiVersion: v1, kind: Namespace",
            ObjectKind::Pod => "apiVersion: v1, kind: Pod",
            ObjectKind::NetworkPolicy => "apiVersion: networking.k8s.io/v1, kind: NetworkPolicy",
            ObjectKind::ClusterNetworkPolicy => {
                "apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy"
            }
        }
    }

    /// Whether its objects are in namespaces.
    pub fn is_namespaced(self) -> bool {
        match self {
            ObjectKind::Service | ObjectKind::EndpointSlice | ObjectKind::Pod | ObjectKind::NetworkPolicy => true,
            ObjectKind::Node | ObjectKind::AddressPool | ObjectKind::Namespace | ObjectKind::GatewayPolicy => false,
            ObjectKind::ClusterNetworkPolicy | ObjectKind::EgressPolicy | ObjectKind::StaticNat => false,
        }
    }
}

/// How many letters of `written` are others, too many, missing or in each other's place than in `meant`, whatever their
/// case; `None`: too many for a slip.
pub(crate) fn slips(written: &str, meant: &str) -> Option<usize> {
    let most = if meant.len() < SHORT_WORD { 1 } else { SLIPS_MAX };
    // What differs so much in length is not worth a comparison, whose cost is the product of both.
    let is_near = written.len().abs_diff(meant.len()) <= most;
    let slips = || strsim::osa_distance(&written.to_ascii_lowercase(), &meant.to_ascii_lowercase());
    is_near.then(slips).filter(|slips| *slips <= most)
}

impl ObjectKey {
    /// Namespace and name.
    pub fn name(&self) -> Name {
        Name { namespace: self.namespace.clone(), name: self.name.clone() }
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind.is_namespaced() {
            false => write!(f, "{} {}", self.kind, self.name),
            true => write!(f, "{} {}/{}", self.kind, self.namespace, self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_told_from_somebody_elses_kind() {
        for (api_version, kind, meant) in [
            ("networking.k8s.io/v1", "NetworkPolcy", ObjectKind::NetworkPolicy),
            ("networking.k8s.io/v1", "networkpolicy", ObjectKind::NetworkPolicy),
            ("networking.k8s.io/v1", "NetwrokPolicy", ObjectKind::NetworkPolicy),
            ("networking.k8s.oi/v1", "NetworkPolicy", ObjectKind::NetworkPolicy),
            ("networkng.k8s.io/v1", "NetworkPolicy", ObjectKind::NetworkPolicy),
            ("networking.k8s.io/v1beta1", "NetworkPolicy", ObjectKind::NetworkPolicy),
            ("networking.k8s.io", "NetworkPolicy", ObjectKind::NetworkPolicy),
            ("networking.k8s.oi/v1", "NetworkPolicie", ObjectKind::NetworkPolicy),
            ("policy.networking.k8s.io/v1alpha2", "ClusterNetwrkPolice", ObjectKind::ClusterNetworkPolicy),
            ("tidegate.io/v1alpha1", "GatewayPolcy", ObjectKind::GatewayPolicy),
            ("tidegate.io/v1alpha1", "EgresPolicy", ObjectKind::EgressPolicy),
            ("v1", "Servcie", ObjectKind::Service),
            ("v1", "pods", ObjectKind::Pod),
            ("v2", "Service", ObjectKind::Service),
        ] {
            assert_eq!(ObjectKind::meant_by(api_version, kind), Some(meant), "{api_version} {kind}");
            assert_eq!(ObjectKind::from_type(api_version, kind), None, "{api_version} {kind}");
        }
        for (api_version, kind) in [
            ("v1", "ConfigMap"),
            ("v1", "Endpoints"),
            ("v1", "ServiceAccount"),
            ("v1", "Secret"),
            ("batch/v1", "Job"),
            ("rbac.authorization.k8s.io/v1", "Role"),
            ("networking.k8s.io/v1", "Ingress"),
            ("networking.k8s.io/v1", "ServiceCIDR"),
            ("projectcalico.org/v3", "NetworkPolicy"),
            ("metallb.io/v1beta1", "AddressPool"),
            ("networking.gke.io/v1", "GCPGatewayPolicy"),
            ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy"),
            ("", ""),
        ] {
            assert_eq!(ObjectKind::meant_by(api_version, kind), None, "{api_version} {kind}");
        }
        let endless = "NetworkPolicy".repeat(1_000_000);
        assert_eq!(ObjectKind::meant_by(&endless, &endless), None);
    }

    fn key(name: &str) -> ObjectKey {
        ObjectKey { kind: ObjectKind::Service, namespace: "shop".into(), name: name.into() }
    }

    fn batch(applied: &[(&str, u8)], deleted: &[&str]) -> Batch {
        let manifest =
            |(name, version): &(&str, u8)| Manifest { key: key(name), place: None, value: (*version).into() };
        Batch {
            applied: applied.iter().map(manifest).collect(),
            deleted: deleted.iter().map(|name| key(name)).collect(),
            ..Batch::default()
        }
    }

    #[test]
    fn merged_batches_mean_what_they_mean_one_after_the_other() {
        let first = Batch { listed_for: Some(3), complete: true, ..batch(&[("a", 1), ("b", 1), ("c", 1)], &["d"]) };
        let merged = Batch::merge(vec![first, batch(&[("a", 2)], &["b"]), batch(&[("b", 2), ("d", 1)], &["c"])]);
        let applied = merged.applied.iter().map(|manifest| (manifest.key.name.as_str(), manifest.value.as_u64()));
        let mut applied: Vec<_> = applied.collect();
        applied.sort();
        assert_eq!(applied, [("a", Some(2)), ("b", Some(2)), ("d", Some(1))]);
        let mut deleted: Vec<&str> = merged.deleted.iter().map(|key| key.name.as_str()).collect();
        deleted.sort_unstable();
        assert_eq!(deleted, ["b", "c", "d"], "b and d are other objects now");
        assert!(merged.complete && merged.listed_for == Some(3));
    }
}
