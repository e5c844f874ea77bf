//! Time and allocations per packet: the field on which workers are measured.
//!
//! A [`Field`] is the real worker over a port whose frames lie ready in memory, more of them than the second-level cache
//! holds. A pass receives each frame once; what a pass did to them is undone between passes, outside the measured time.
//! Figures are application time: no device and no kernel takes part.

#![forbid(unsafe_code)]

/// The ways that packets take, one by one: flows made ready, and packets of them.
pub mod course;
/// Frames that lie ready: a port without a device, and the worker over it.
pub mod field;
/// Index, entry and frame lines and nothing else: what no design of this kind goes below.
pub mod floor;
/// As many Services as a large cluster has, and the compiler that holds them.
pub mod fleet;
/// What one worker hands to another, as the hand-over benches send it.
pub mod parcel;
/// Clusters full of policies, and questions about them.
pub mod rules;
/// Instructions per packet, as recorded and as counted.
pub mod instructions;
/// Stages and main paths beside the floor, for a quick look.
pub mod ladder;
/// Figures, budgets and the summary that compares them.
pub mod summary;
