//! What the allocator answers, in the words of conditions and events.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// What a Service has from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Its addresses, or why it has none.
    pub result: Result<Assignment, Refusal>,
    /// What it had until now and has no more (M-005).
    pub cleared: Vec<Cleared>,
}

/// Addresses of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// In order of the Service's families (S-120); never empty.
    pub addresses: Vec<IpAddr>,
    /// The pool of each address; empty while the allocator is idle.
    pub pools: Vec<Arc<str>>,
    /// Under `PreferDualStack`: why there is no address of the other family. It may come later (S-122).
    pub lacks: Option<Refusal>,
}

/// Why a Service has no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// A word for programs.
    pub reason: Reason,
    /// For people.
    pub message: String,
}

/// The kinds of refusals, named as conditions have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Assignments of an earlier run have not been read yet.
    Starting,
    /// There is no pool.
    NoPool,
    /// No pool gives addresses to this Service without being asked for.
    NoPoolPermits,
    /// The pool asked for is not there.
    PoolUnknown,
    /// The pool asked for, or that of an address asked for, is not for this Service.
    PoolNotPermitted,
    /// The pools that could serve it have no address left.
    Exhausted,
    /// An address asked for is in no pool.
    NotInPool,
    /// An address asked for is in another pool than the one asked for.
    OtherPool,
    /// An address asked for belongs to the network itself (M-013).
    Reserved,
    /// An address asked for belongs to another Service that does not share it with this one.
    InUse,
    /// Addresses asked for do not fit `ipFamilies` and `ipFamilyPolicy`.
    FamilyMismatch,
}

/// An address that a Service had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cleared {
    /// The address.
    pub address: IpAddr,
    /// Why it has it no more, for people.
    pub why: String,
}

/// How much of a pool is used. Counts saturate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Addresses that may be given out, used ones included.
    pub total: u64,
    /// Addresses that Services have; shared ones count once.
    pub assigned: u64,
    /// Addresses that nobody has and that may be given out.
    pub available: u64,
}

impl Assignment {
    /// The pools by name, each once, for the annotation `…/ip-allocated-from-pool` (M-003); empty while idle.
    pub fn pool_names(&self) -> String {
        let mut names: Vec<&str> = Vec::new();
        for pool in &self.pools {
            if !names.contains(&&**pool) {
                names.push(pool);
            }
        }
        names.join(",")
    }
}

impl Reason {
    /// The word as conditions have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Starting => "Starting",
            Reason::NoPool => "NoPool",
            Reason::NoPoolPermits => "NoPoolPermits",
            Reason::PoolUnknown => "PoolUnknown",
            Reason::PoolNotPermitted => "PoolNotPermitted",
            Reason::Exhausted => "Exhausted",
            Reason::NotInPool => "NotInPool",
            Reason::OtherPool => "OtherPool",
            Reason::Reserved => "Reserved",
            Reason::InUse => "InUse",
            Reason::FamilyMismatch => "FamilyMismatch",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason.as_str(), self.message)
    }
}
