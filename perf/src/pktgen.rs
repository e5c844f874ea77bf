//! `tidegate-pktgen`: generator and sink, trials, searches.
//!
//! Reading order: what is sent, in which order and how fast; what is looked for on arrival; one trial; what trials are for.

/// Frame sizes, one or a mixture.
pub mod size;
/// Which flow is next.
pub mod flows;
/// Where things are in a frame.
pub mod layout;
/// Frames, made from a mould.
pub mod mould;
/// A token bucket.
pub mod pace;
/// Times, counted.
pub mod histogram;
/// Numbered packets, followed.
pub mod tracker;
/// One trial.
pub mod trial;
/// A wire without a device.
pub mod memory;
/// Devices, and what is refused.
pub mod device;
/// Searches for rates.
pub mod search;
/// Connections: begun, held, validated.
pub mod stateful;
/// The plainest forwarder, and a sink that answers.
pub mod forward;
/// Where a figure was measured.
pub mod surroundings;
/// What may be asked for at the command line.
pub mod options;
/// What is told: JSON, and a table for people.
pub mod report;
/// What is told: pictures.
pub mod plot;
/// The command itself.
pub mod command;
