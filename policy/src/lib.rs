//! Who may reach whom, answered in the same time for ten thousand rules as for ten.
//!
//! Owns the meaning of the contract's [policies](tidegate_api::resource::Policy): tiers, priorities, first matches,
//! isolation, named ports. Refuses to know selectors and Kubernetes (control resolves them), packets and flows (the
//! dataplane asks), and time. The story: the [`compiler`] takes resolved objects as they come and go and keeps a [`table`]
//! equal to them, which is immutable and shares with its predecessor all that did not change. The table leads from the
//! identity of a subject to its [`program`] for a direction; a program leads from the peer (its identity by [`flat`] maps,
//! its address by [`steps`]) to lists of [`ports`], and these to the first rule of each tier that matches. The verdict is
//! then a matter of three comparisons. [`walk`] reads the same rules one after the other: it is what a program too large
//! to be laid out falls back to, and what the tests compare with.
#![forbid(unsafe_code)]

/// What is asked, and what is answered.
pub mod query;
/// All programs, by the identity of their subject. Immutable.
pub mod table;
/// Objects in, tables out, at the cost of what changed.
pub mod compiler;
/// The rules that apply to one subject in one direction, laid out for looking up.
pub mod program;
/// Rules with the names of sets and ports replaced by numbers.
mod link;
/// The same rules read one after the other.
pub mod walk;
/// Which rules come first for a protocol and a port.
pub mod ports;
/// A function of a number that is constant between few places: the longest-prefix structure.
pub mod steps;
/// Identities as keys of an array.
pub mod flat;
/// A long array of which little changes at a time.
mod chunks;
/// Names that are numbers as long as somebody uses them.
mod names;

pub use compiler::Compiler;
pub use query::{Decided, Direction, PolicyId, Query, Verdict};
pub use table::{Epochs, Table};
