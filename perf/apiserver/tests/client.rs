//! The stand-in as a client sees it: everything here goes over its socket, most of it through the `kube` client.

/// A server, a client of it, and small objects.
#[path = "client/cluster.rs"]
mod cluster;
/// Create, read, replace, delete.
#[path = "client/objects.rs"]
mod objects;
/// Lists and watches.
#[path = "client/watches.rs"]
mod watches;
