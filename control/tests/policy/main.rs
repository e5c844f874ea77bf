//! Policies, from manifests to verdicts: what the gateway's tables say is what the API's text says.

#![allow(clippy::unwrap_used, reason = "a test whose stage cannot be set has failed")]

/// The API's text, followed word by word.
mod naive;
/// What an API server would have refused.
mod valid;
/// Clusters made by chance.
mod cluster;
/// Objects that come, change and go, all kinds in any order.
mod live;
/// T-040 … T-063 one by one.
mod cases;
/// Every combination of nil, empty and set.
mod combinations;
/// Objects made to cost, to confuse or to slip through.
mod hostile;
/// Any text for manifests; the fuzz target's body.
mod fuzzing;
/// Folders of manifests, questions, and words about them.
mod offline;
/// What Services are told of policies.
mod services;
