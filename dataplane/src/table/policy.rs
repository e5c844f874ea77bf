//! Policy verdicts.
//!
//! Will own the compiled rules of NetworkPolicy and its cluster-wide tiers. No rows yet: everything is allowed.

/// One verdict for a pair of identities. Kind: table. Empty until policies are compiled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyRow {}

/// All policies. Kind: table.
#[derive(Clone, Debug, Default)]
pub struct PolicyTable {}
