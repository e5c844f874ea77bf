//! What an API server holds of a Service beyond what is asked for.
//!
//! Owns the facts that the contract between a Service and its controller needs (C-001 … C-007): who looks after the
//! object, whether it is to go, and what status says now. Refuses to know what should become of them.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::watch::annotation::ALLOCATED_FROM;

/// Manager of all fields this process writes: one fixed name, so that `managedFields` shows one owner (C-005).
pub const FIELD_MANAGER: &str = "tidegate-controller";
/// Finalizer that keeps a Service there until it is cleaned up (C-001).
pub const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
/// What stands before the types of our conditions: others write conditions of the same object.
pub const CONDITION_PREFIX: &str = "tidegate.io/";

/// What an API server holds of one Service.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Record {
    /// Object identity (S-005).
    pub uid: String,
    /// Version of the object, for writes that must not meet another one.
    pub resource_version: String,
    /// It is of type LoadBalancer.
    pub balanced: bool,
    /// `spec.loadBalancerClass`.
    pub class: Option<String>,
    /// It is to go, and waits for its finalizers.
    pub deleting: bool,
    /// All finalizers, in order.
    pub finalizers: Vec<String>,
    /// We have written fields of it.
    pub managed: bool,
    /// Addresses in status, in order.
    pub ingress: Vec<IpAddr>,
    /// Names of the pools its addresses were told to be of.
    pub pool: Option<String>,
    /// Something else than plain addresses is in status: host names, other modes.
    pub ingress_foreign: bool,
    /// Our conditions.
    pub conditions: Vec<Condition>,
}

impl Record {
    /// The record of a Service, unless it is and was none of a load balancer's business.
    pub fn of(object: &api::Service) -> Option<Self> {
        let metadata = &object.metadata;
        let balanced = object.spec.as_ref().is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer"));
        let finalizers = metadata.finalizers.clone().unwrap_or_default();
        if !balanced && !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            return None;
        }
        let by_us = |entry: &_| k8s_manager(entry) == Some(FIELD_MANAGER);
        let status = object.status.as_ref();
        let ingress = status.and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
        let entries = ingress.map(Vec::as_slice).unwrap_or_default();
        let plain = |entry: &api::LoadBalancerIngress| match (&entry.ip, entry.ip_mode.as_deref(), &entry.hostname) {
            (Some(ip), None | Some("VIP"), None) => ip.parse().ok(),
            _ => None,
        };
        let addresses: Vec<IpAddr> = entries.iter().filter_map(plain).collect();
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let ours = |condition: &&Condition| condition.type_.starts_with(CONDITION_PREFIX);
        Some(Record {
            uid: metadata.uid.clone().unwrap_or_default(),
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
            balanced,
            class: object.spec.as_ref().and_then(|spec| spec.load_balancer_class.clone()),
            deleting: metadata.deletion_timestamp.is_some(),
            finalizers,
            managed: metadata.managed_fields.iter().flatten().any(by_us),
            pool: metadata.annotations.as_ref().and_then(|all| all.get(ALLOCATED_FROM)).cloned(),
            ingress_foreign: addresses.len() != entries.len(),
            ingress: addresses,
            conditions: conditions.iter().filter(ours).cloned().collect(),
        })
    }

    /// Whether our finalizer is there.
    pub fn is_held(&self) -> bool {
        self.finalizers.iter().any(|finalizer| finalizer == FINALIZER)
    }
}

fn k8s_manager(entry: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry) -> Option<&str> {
    entry.manager.as_deref()
}
