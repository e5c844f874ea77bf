//! What happens to a packet: wire formats, tables, flows. Knows no Kubernetes and no clock.

#![forbid(unsafe_code)]

/// Every header Tidegate reads or writes, and the only parser of them.
pub mod wire;
/// The two IP families as one trait.
pub mod family;
/// What parse learned about a packet, and the key it is looked up by.
pub mod packet;
/// What workers read and never write: services, backends, routes, neighbours, tunnels.
pub mod table;
/// What one worker remembers between packets: flows, waiting frames, rates, usage.
pub mod state;
/// The stages, in the order in which a packet meets them.
pub mod stage;
/// Classify, probe, decide, apply.
pub mod pipeline;
/// One thread, its ports and its state: turn after turn.
pub mod worker;
/// Packets that arrive at one worker and belong to another: the rings between them.
pub mod handover;
/// Keeps a worker turning, and lets it sleep when idle.
pub mod wheel;
/// What would become of a packet, in plain values.
pub mod explain;
/// Copies of packets for whoever captures.
pub mod capture;
/// What workers note of packets and connections, for whoever collects records.
pub mod flows;
/// Questions that only the owner of state can answer.
pub mod mailbox;
/// Moves external ports between workers.
pub mod port_office;
/// The clerk: who had which port, from workers to files.
pub mod clerk;
/// Records on their way to files.
pub mod desk;
/// Whose an address is, for those who tell people.
pub mod names;
/// What is counted, for Prometheus.
pub mod metrics;
/// The auditor: what policies in audit would have denied, from workers to the log.
pub mod auditor;
/// Do the workers turn?
pub mod health;
/// Why a packet may end here: the one list.
pub mod drops;
/// What happened, counted by each worker for itself.
pub mod counters;
/// Every bound, with its unit and its argument.
pub mod limits;
/// Ways to break one requirement each, so that tests can be seen to notice.
pub mod mutation;
/// A gateway in memory, for tests, benches and fuzzing.
#[cfg(feature = "rig")]
pub mod rig;
/// What must hold whatever bytes come: the bodies of the fuzz targets.
#[cfg(feature = "rig")]
pub mod fuzzing;
/// The node file: what the operator tells this dataplane once, at start.
pub mod config;
/// Kernel facts: links, addresses, routes, neighbours, and wishes about neighbours.
pub mod kernel;
/// Saved objects, asked about where no dataplane runs.
pub mod offline;
/// Accepted objects: what control wants and this dataplane agreed to.
pub mod objects;
/// The compiler thread: resolved objects plus kernel facts become rows.
pub mod compile;
/// Is a node able to deliver what `node-dsr` sends it?
pub mod probe;
/// Gateways know each other: who lives, who announces which VIP, and how that is said.
pub mod gateways;
/// VIPs as routes of the kernel, for routing daemons, gone within half a second when this gateway should not be used.
pub mod routes;
/// The contract socket: who may speak, and what is answered.
pub mod server;
