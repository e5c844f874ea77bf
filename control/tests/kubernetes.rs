//! Control against an API server: real HTTPS, the real program, and a stand-in for each side it speaks to.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

/// A cluster, the programs that serve it, and what they have told their dataplanes.
#[path = "kubernetes/stage.rs"]
mod stage;
/// What is watched, and what silence and nonsense do not do.
#[path = "kubernetes/source.rs"]
mod source;
/// The contract between a Service and its controller.
#[path = "kubernetes/contract.rs"]
mod contract;
/// Addresses out of pools, and programs that are killed meanwhile.
#[path = "kubernetes/allocation.rs"]
mod allocation;
/// Who may write.
#[path = "kubernetes/lease.rs"]
mod lease;
/// Policies of gateways, and events about policies.
#[path = "kubernetes/gatewaypolicy.rs"]
mod gatewaypolicy;
/// EgressPolicies: what their status says.
#[path = "kubernetes/egresspolicy.rs"]
mod egresspolicy;
/// Policies that became wrong while control was not there.
#[path = "kubernetes/lastgood.rs"]
mod lastgood;
/// What control tells in numbers.
#[path = "kubernetes/metrics.rs"]
mod metrics;
