//! What happens to a packet: wire formats, tables, flows. Knows no Kubernetes and no clock.

#![forbid(unsafe_code)]

pub mod wire;
