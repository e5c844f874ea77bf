//! The operator's command, `tidegate`.
//!
//! Owns the words an operator types and the text that comes back. Refuses to know how the dataplane arrives at its
//! answers: it asks over the contract socket and prints what it is told, so it needs no privilege beyond the right to
//! open that socket. What needs no dataplane (`import`, `policy`) is answered here.

#![forbid(unsafe_code)]

/// What an operator may type.
pub mod args;
/// `tidegate show`: one question, one answer, as aligned columns or as JSON.
pub mod show;
/// `tidegate explain`: what would become of a packet, and why.
pub mod explain;
/// `tidegate capture`: packets before and after, as a capture file.
pub mod capture;
/// `tidegate top`: what happens right now, on a terminal.
pub mod top;
/// `tidegate man` and `tidegate completion`: what the arguments tell of themselves.
pub mod manual;
/// `tidegate drain`: what is announced here goes to other gateways.
pub mod drain;
/// `tidegate health`: whether the dataplane does its work, as an exit status.
pub mod health;
/// `tidegate doctor`.
pub mod doctor;
/// `tidegate bench`: what this machine will do.
pub mod bench;
/// `tidegate nat`: who spoke from an address of ours.
pub mod nat;
/// `tidegate import`: another balancer's configuration as manifests.
pub mod import;
/// `tidegate policy`: what the policies in a folder of manifests say.
pub mod policy;
/// Conversations that could not be had, in words that help.
pub mod trouble;
/// Plain text in aligned columns.
pub mod columns;
