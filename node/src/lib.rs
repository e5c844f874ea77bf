//! The agent on workers: what lets packets of selected pods go through gateways, and answers return by them.
//!
//! Owns a handful of things in the kernel of its node: policy rules, tables of routes, entries of neighbours and forwarding
//! on VXLAN devices, one table of nftables. Refuses to see a packet, to know Kubernetes beyond one
//! source ([`cluster`]), and to change what others made.
//! Whatever it does is a list of [`plan::Change`]s, made by a pure function of what is [`wanted`] and what was [`found`];
//! so it may start, die and come again at any time, and what it made works without it.
#![forbid(unsafe_code)]

// What is wanted, and where that comes from.
pub mod wanted;
pub mod source;

// The same from the API of a cluster, and from what gateways say.
pub mod cluster;
pub mod resolve;
pub mod prefix;
pub mod carrier;

// What the kernel has, and the way from there to what is wanted.
pub mod found;
pub mod choose;
pub mod filter;
pub mod plan;

// The kernel itself, and what it must be set to.
pub mod kernel;
pub mod settings;

// The loop, of which a node has one, and what people are told.
pub mod sole;
pub mod agent;
pub mod status;
