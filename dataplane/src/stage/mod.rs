//! The stages, in the order in which a packet meets them.
//!
//! Stages decide: they read tables, state and packet and return values. Only [`rewrite`], [`encap`], [`local`] and
//! [`error`] change bytes, and only [`crate::pipeline::apply`] calls them.

/// Frame to packet: headers checked, VXLAN taken off.
pub mod parse;
/// Take off what a load balancer in front of us put on.
pub mod decap;
/// Which worker does it belong to?
pub mod owner;
/// Fragments find the ports that only the first of them has.
pub mod fragment;
/// Is the flow known and still current?
pub mod flow;
/// May it pass?
pub mod policy;
/// May this client begin anything here?
pub mod gatepolicy;
/// Choose a backend for a new flow.
pub mod service;
/// Which endpoint of a set.
pub mod schedule;
/// Is an SCTP packet whole, and what does it say?
pub mod sctp;
/// In `node-dsr`: to a node that delivers by itself.
pub mod node;
/// Choose the source address and port of a new flow.
pub mod nat;
/// What pods send to the outside.
pub mod egress;
/// What comes back from there without a flow.
pub mod inward;
/// Does a pod's flow still stand?
pub mod standing;
/// What packets without ports are looked up by.
pub mod portless;
/// Where does it leave, each way?
pub mod route;
/// Put VXLAN on.
pub mod encap;
/// Edit the headers of a packet that goes on.
pub mod rewrite;
/// Answer what is asked of us: ARP, neighbour discovery, echo.
pub mod local;
/// ICMP errors and resets: translate those that quote our flows, and make our own.
pub mod error;
/// Send every frame of a batch where its verdict says.
pub mod verdict;
