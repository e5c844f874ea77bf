//! The kinds as they are taken from the API: the fields that are read, and nothing else.
//!
//! Owns which fields cross the wire into memory. An API server sends much that nobody here looks at (who manages which
//! field, images of nodes, volumes of pods); leaving it out while parsing costs nothing and saves most of the memory and
//! half of the time of a list of a whole cluster. Refuses to know what the fields mean: [`crate::watch`] reads them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Debug;

use k8s_openapi::ClusterResourceScope;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta, Time};
use kube::Resource;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use crate::model::{self, Name, Object};
use crate::source::record::Record;
use crate::source::{ObjectKey, ObjectKind, Reading};
use crate::watch::networkpolicy::AUDIT;
use crate::watch::{self, Dialect, Exposed, Invalid, endpointslice};

/// One kind that is watched.
pub(super) trait Watched:
    Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + 'static
{
    /// Its kind.
    const KIND: ObjectKind;
    /// Nothing can be concluded before it has been listed. What a cluster may lack, or withhold, is not needed.
    const NEEDED: bool;
    /// Labels of the objects that are asked for.
    const LABELS: Option<&'static str> = None;
    /// Fields of the objects that are asked for.
    const FIELDS: Option<&'static str> = None;

    /// What the object says.
    fn read(self, key: ObjectKey, exposed: Exposed) -> Reading;
}

/// The key of an object that arrived.
pub(super) fn key_of<K: Watched>(object: &K) -> ObjectKey {
    let metadata = object.meta();
    ObjectKey {
        kind: K::KIND,
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
    }
}

/// A Service, of any label: one that is left to others may still wait for us to let it go (C-002).
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = core::Service)]
pub(super) struct Service {
    #[serde(deserialize_with = "slim")]
    metadata: ObjectMeta,
    spec: Option<core::ServiceSpec>,
    status: Option<core::ServiceStatus>,
}

impl Watched for Service {
    const KIND: ObjectKind = ObjectKind::Service;
    const NEEDED: bool = true;

    fn read(self, key: ObjectKey, exposed: Exposed) -> Reading {
        let object = core::Service { metadata: self.metadata, spec: self.spec, status: self.status };
        let read = watch::service::read(key.name(), &object, Dialect::Cluster, exposed);
        let record = Record::of(&object).map(Box::new);
        Reading { record, ..reading(key, read.map(|service| Object::Service(Box::new(service)))) }
    }
}

/// An EndpointSlice of some Service.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = discovery::EndpointSlice)]
#[serde(rename_all = "camelCase")]
pub(super) struct EndpointSlice {
    #[serde(deserialize_with = "slim")]
    metadata: ObjectMeta,
    address_type: String,
    ports: Option<Vec<discovery::EndpointPort>>,
    endpoints: Option<Vec<discovery::Endpoint>>,
}

/// When what led to a slice happened; its controller writes it.
const TRIGGER_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

impl Watched for EndpointSlice {
    const KIND: ObjectKind = ObjectKind::EndpointSlice;
    const NEEDED: bool = true;
    /// S-003: what is left to others is not even sent; a slice that gets such a label is told as gone. The form is the one
    /// that kube-proxy uses.
    const LABELS: Option<&'static str> =
        Some("kubernetes.io/service-name,!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name");

    fn read(self, key: ObjectKey, _: Exposed) -> Reading {
        let trigger = self.metadata.annotations.as_ref().and_then(|annotations| annotations.get(TRIGGER_ANNOTATION));
        let triggered_at = trigger.and_then(|text| text.parse().ok());
        let service = self.metadata.labels.as_ref().and_then(|labels| labels.get(endpointslice::SERVICE_NAME_LABEL));
        let service = service.map(|name| Name { namespace: key.namespace.clone(), name: name.clone() });
        let object = discovery::EndpointSlice {
            metadata: self.metadata,
            address_type: self.address_type,
            ports: self.ports,
            endpoints: self.endpoints,
        };
        let read = endpointslice::read(key.name(), &object, Dialect::Cluster);
        Reading { service, triggered_at, ..reading(key, read.map(Object::EndpointSlice)) }
    }
}

/// A Node.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = core::Node)]
pub(super) struct Node {
    #[serde(deserialize_with = "slim")]
    metadata: ObjectMeta,
    spec: Option<core::NodeSpec>,
    status: Option<NodeAddresses>,
}

#[derive(Clone, Debug, Deserialize)]
struct NodeAddresses {
    addresses: Option<Vec<core::NodeAddress>>,
}

impl Watched for Node {
    const KIND: ObjectKind = ObjectKind::Node;
    const NEEDED: bool = true;

    fn read(self, key: ObjectKey, _: Exposed) -> Reading {
        let addresses = self.status.and_then(|status| status.addresses);
        let status = core::NodeStatus { addresses, ..core::NodeStatus::default() };
        let object = core::Node { metadata: self.metadata, spec: self.spec, status: Some(status) };
        let read = watch::node::read(&key.name, &object);
        reading(key, read.map(Object::Node))
    }
}

/// A Namespace: its labels.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = core::Namespace)]
pub(super) struct Namespace {
    #[serde(deserialize_with = "slim")]
    metadata: ObjectMeta,
}

impl Watched for Namespace {
    const KIND: ObjectKind = ObjectKind::Namespace;
    const NEEDED: bool = false;

    fn read(self, key: ObjectKey, _: Exposed) -> Reading {
        let namespace = model::namespace::Namespace::new(&key.name, self.metadata.labels.unwrap_or_default());
        reading(key, Ok(Object::Namespace(namespace)))
    }
}

/// A Pod that has not ended (C-024).
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = core::Pod)]
pub(super) struct Pod {
    #[serde(deserialize_with = "slim")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: watch::pod::Spec,
    #[serde(default)]
    status: watch::pod::Status,
}

impl Watched for Pod {
    const KIND: ObjectKind = ObjectKind::Pod;
    const NEEDED: bool = false;
    /// One that ends is told as gone.
    const FIELDS: Option<&'static str> = Some("status.phase!=Succeeded,status.phase!=Failed");

    fn read(self, key: ObjectKey, _: Exposed) -> Reading {
        let read = watch::pod::read(key.name(), self.metadata, self.spec, self.status);
        reading(key, read.map(|pod| Object::Pod(Box::new(pod))))
    }
}

/// A kind of our own. Its schema may be another version's in the cluster: one that cannot be read must not make the
/// whole list unreadable, so what it says is read one by one.
macro_rules! own_kind {
    ($(#[$doc:meta])* $name:ident, $of:path) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Deserialize, Resource)]
        #[resource(inherit = $of)]
        pub(super) struct $name {
            #[serde(deserialize_with = "slim")]
            metadata: ObjectMeta,
            #[serde(default)]
            spec: Value,
            #[serde(default)]
            status: Value,
        }

        impl Watched for $name {
            const KIND: ObjectKind = ObjectKind::$name;
            const NEEDED: bool = false;

            fn read(self, key: ObjectKey, exposed: Exposed) -> Reading {
                let uid = self.metadata.uid.clone();
                let mut object = json!({
                    "apiVersion": Self::api_version(&()),
                    "kind": Self::kind(&()),
                    "metadata": self.metadata,
                    "spec": self.spec,
                });
                if !self.status.is_null() {
                    object["status"] = self.status;
                }
                let read = watch::read(&key, &object, Dialect::Cluster, exposed, &mut Vec::new());
                Reading { uid, ..reading(key, read) }
            }
        }
    };
}

own_kind!(
    /// An AddressPool.
    AddressPool,
    crate::crd::addresspool::AddressPool
);
own_kind!(
    /// An EgressPolicy.
    EgressPolicy,
    crate::crd::egresspolicy::EgressPolicy
);
own_kind!(
    /// A GatewayPolicy.
    GatewayPolicy,
    crate::crd::gatewaypolicy::GatewayPolicy
);
own_kind!(
    /// A StaticNat.
    StaticNat,
    crate::crd::staticnat::StaticNat
);

/// A NetworkPolicy. Its rules are kept as they arrived: one that cannot be read must not make the whole list unreadable.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = networking::NetworkPolicy)]
pub(super) struct NetworkPolicy {
    #[serde(deserialize_with = "slim")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Value,
}

impl Watched for NetworkPolicy {
    const KIND: ObjectKind = ObjectKind::NetworkPolicy;
    /// Without it, what is to be closed would be open.
    const NEEDED: bool = true;

    fn read(self, key: ObjectKey, exposed: Exposed) -> Reading {
        let said = self.metadata.annotations.and_then(|mut annotations| annotations.remove(AUDIT));
        Reading { uid: self.metadata.uid, ..read_spec(key, said, self.spec, exposed) }
    }
}

/// A ClusterNetworkPolicy. Its definition is somebody else's, may be another version's, and may not be there.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct ClusterNetworkPolicy {
    #[serde(deserialize_with = "slim")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Value,
}

impl Resource for ClusterNetworkPolicy {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "ClusterNetworkPolicy".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "policy.networking.k8s.io".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1alpha2".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "clusternetworkpolicies".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Watched for ClusterNetworkPolicy {
    const KIND: ObjectKind = ObjectKind::ClusterNetworkPolicy;
    const NEEDED: bool = false;

    fn read(self, key: ObjectKey, exposed: Exposed) -> Reading {
        let said = self.metadata.annotations.and_then(|mut annotations| annotations.remove(AUDIT));
        Reading { uid: self.metadata.uid, ..read_spec(key, said, self.spec, exposed) }
    }
}

/// Reads a policy: what its annotation says of audit, and its `spec`.
fn read_spec(key: ObjectKey, audit: Option<String>, spec: Value, exposed: Exposed) -> Reading {
    let mut object = match spec {
        Value::Null => json!({}),
        spec => json!({ "spec": spec }),
    };
    if let Some(audit) = audit {
        object["metadata"] = json!({ "annotations": { AUDIT: audit } });
    }
    let read = watch::read(&key, &object, Dialect::Cluster, exposed, &mut Vec::new());
    reading(key, read)
}

fn reading(key: ObjectKey, object: Result<Object, Invalid>) -> Reading {
    Reading { key, object, service: None, record: None, uid: None, triggered_at: None }
}

/// The metadata that is looked at.
fn slim<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Slim {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        generation: Option<i64>,
        creation_timestamp: Option<Time>,
        deletion_timestamp: Option<Time>,
        labels: Option<BTreeMap<String, String>>,
        annotations: Option<BTreeMap<String, String>>,
        finalizers: Option<Vec<String>>,
        managed_fields: Option<Vec<Manager>>,
    }
    #[derive(Deserialize)]
    struct Manager {
        manager: Option<String>,
    }
    let slim = Slim::deserialize(deserializer)?;
    let entry = |Manager { manager }| ManagedFieldsEntry { manager, ..ManagedFieldsEntry::default() };
    Ok(ObjectMeta {
        name: slim.name,
        namespace: slim.namespace,
        uid: slim.uid,
        resource_version: slim.resource_version,
        generation: slim.generation,
        creation_timestamp: slim.creation_timestamp,
        deletion_timestamp: slim.deletion_timestamp,
        labels: slim.labels,
        annotations: slim.annotations,
        finalizers: slim.finalizers,
        managed_fields: slim.managed_fields.map(|managers| managers.into_iter().map(entry).collect()),
        ..ObjectMeta::default()
    })
}
