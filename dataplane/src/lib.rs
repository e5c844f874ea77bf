//! What happens to a packet: wire formats, tables, flows. Knows no Kubernetes and no clock.

#![forbid(unsafe_code)]

/// Every header Tidegate reads or writes, and the only parser of them.
pub mod wire;
/// What workers read and never write: services, backends, routes, neighbours, tunnels.
pub mod table;
/// What one worker remembers between packets: flows, waiting frames, rates, usage.
pub mod state;
