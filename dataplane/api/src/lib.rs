//! The contract between `tidegate-control`, `tidegate-dataplane` and the `tidegate` command.
//!
//! One Unix stream socket, whose file mode decides who may speak. Each message is one JSON object behind a length.
//! Control sends *resolved objects* ([`resource`]): addresses, ports, weights; no selectors, no Kubernetes types.
//! The dataplane accepts or rejects each one by name with the reason, publishes, and tells which generation its
//! workers have reached. The operator's command uses the same socket for reading ([`show`]).
//!
//! Unknown fields are ignored on both sides, so either side may be newer than the other.

#![forbid(unsafe_code)]

/// Resolved objects: what control wants the dataplane to do.
pub mod resource;
/// Messages of the conversation, both directions.
pub mod message;
/// What the read side answers: services, backends, flows, tunnels, routes, workers, counters.
pub mod show;
/// What would become of a packet, and why.
pub mod explain;
/// Which gateway carries an address: what agents on workers ask gateways, and are told.
pub mod carrier;
/// Packets before and after, as they pass.
pub mod capture;
/// What both processes hold alike about the node file.
pub mod node_file;
/// Length-prefixed framing of messages over any byte stream.
pub mod frame;
/// A blocking client for control and the operator's command.
pub mod client;
/// The listening end: a socket file with a mode, safe against leftovers of a dead process.
pub mod listen;
