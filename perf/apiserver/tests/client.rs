//! The stand-in as a client sees it: everything here goes over its socket, most of it through the `kube` client.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

/// A server, a client of it, and small objects.
#[path = "client/cluster.rs"]
mod cluster;
/// Create, read, replace, delete.
#[path = "client/objects.rs"]
mod objects;
/// Lists and watches.
#[path = "client/watches.rs"]
mod watches;
/// Patches, server-side apply and managed fields.
#[path = "client/owners.rs"]
mod owners;
/// Users and their rules.
#[path = "client/roles.rs"]
mod roles;
/// Everything a test may break.
#[path = "client/faults.rs"]
mod faults;
/// Thousands of objects.
#[path = "client/scale.rs"]
mod scale;
/// The program.
#[path = "client/program.rs"]
mod program;
