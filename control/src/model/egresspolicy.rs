//! An EgressPolicy: which pods leave with which addresses, whatever the manifest looked like.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tidegate_api::resource::{Mapping, PortTimeout};

use super::namespace::Namespace;
use super::pod::Pod;
use crate::crd::egresspolicy::EgressPolicyStatus;

/// One EgressPolicy.
#[derive(Clone, Debug, PartialEq)]
pub struct EgressPolicy {
    /// Name.
    pub name: String,
    /// Object identity (S-005); empty when nobody assigned one.
    pub uid: String,
    /// Seconds since the epoch at creation; the largest value when unknown.
    pub created_at_s: i64,
    /// `metadata.generation`, told back in status.
    pub generation: Option<i64>,
    /// Which namespaces.
    pub namespaces: Selector,
    /// Which pods in them.
    pub pods: Selector,
    /// Destinations; empty: every one outside the cluster.
    pub destinations: Vec<IpNet>,
    /// Destinations that it is not for.
    pub except: Vec<IpNet>,
    /// Where its addresses come from.
    pub addresses: Addresses,
    /// TCP ports.
    pub tcp: Mapping,
    /// UDP ports.
    pub udp: Mapping,
    /// Most ports of a pod.
    pub ports_per_pod_max: Option<u32>,
    /// Most ports of a namespace.
    pub ports_per_namespace_max: Option<u32>,
    /// UDP ports with a timer of their own.
    pub udp_timeouts: Vec<PortTimeout>,
    /// Whether protocols without ports leave too.
    pub other_protocols: bool,
    /// Whether the ledger records it.
    pub log: bool,
    /// What its status said when it was read last: of no weight for what it asks.
    pub told: EgressPolicyStatus,
}

/// Where a policy's addresses come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// All of the AddressPool of that name.
    Pool(String),
    /// These.
    Listed(Vec<IpAddr>),
    /// Nobody can tell: the manifest cannot be worked with, and there is no earlier version. Its pods do not get out, but by
    /// what the dataplane still has of an earlier run (N-111).
    Unreadable,
}

impl Addresses {
    /// Whether they are those of that AddressPool.
    pub fn is_pool(&self, pool: &str) -> bool {
        matches!(self, Addresses::Pool(name) if name == pool)
    }
}

/// What a worker keeps of a policy, so that its pods are known after a start when its manifest cannot be read any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Remembered {
    /// Name.
    pub name: String,
    /// As [`EgressPolicy::created_at_s`].
    pub created_at_s: i64,
    /// Which namespaces, as a label selector of Kubernetes.
    pub namespaces: Value,
    /// Which pods in them, the same.
    pub pods: Value,
    /// As [`EgressPolicy::destinations`].
    pub destinations: Vec<IpNet>,
    /// As [`EgressPolicy::except`].
    pub except: Vec<IpNet>,
    /// Addresses that it had or listed.
    pub addresses: Vec<IpAddr>,
}

impl Remembered {
    /// The policy, as what stands in for it; `None`: this is not what was kept.
    pub fn recall(&self) -> Option<EgressPolicy> {
        let selector = |value: &Value| {
            let read: LabelSelector = serde_json::from_value(value.clone()).ok()?;
            Selector::try_from(read).ok()
        };
        let told = EgressPolicyStatus {
            addresses: self.addresses.iter().map(ToString::to_string).collect(),
            ..EgressPolicyStatus::default()
        };
        Some(EgressPolicy {
            name: self.name.clone(),
            uid: String::new(),
            created_at_s: self.created_at_s,
            generation: None,
            namespaces: selector(&self.namespaces)?,
            pods: selector(&self.pods)?,
            destinations: self.destinations.clone(),
            except: self.except.clone(),
            addresses: Addresses::Unreadable,
            tcp: Mapping::default(),
            udp: Mapping::default(),
            ports_per_pod_max: None,
            ports_per_namespace_max: None,
            udp_timeouts: Vec::new(),
            other_protocols: false,
            log: false,
            told,
        })
    }
}

impl EgressPolicy {
    /// What a worker keeps of it. `addresses` are those that it has or lists.
    pub fn remember(&self, addresses: Vec<IpAddr>) -> Remembered {
        let selector =
            |selector: &Selector| serde_json::to_value(LabelSelector::from(selector.clone())).unwrap_or_default();
        Remembered {
            name: self.name.clone(),
            created_at_s: self.created_at_s,
            namespaces: selector(&self.namespaces),
            pods: selector(&self.pods),
            destinations: self.destinations.clone(),
            except: self.except.clone(),
            addresses,
        }
    }

    /// Whether it selects a pod that lives in `namespace`. One with its node's addresses it never does (N-114).
    pub fn selects(&self, namespace: &Namespace, pod: &Pod) -> bool {
        pod.owns_addresses() && self.pods.matches(&pod.labels) && self.namespaces.matches(namespace.labels())
    }

    /// Whether it asks the same as another one, whatever has been told of them.
    pub fn asks_like(&self, other: &EgressPolicy) -> bool {
        EgressPolicy { told: other.told.clone(), ..self.clone() } == *other
    }

    /// Policies are asked in this order: oldest first, then by name.
    pub fn order(&self) -> (i64, &str) {
        (self.created_at_s, &self.name)
    }
}
