//! A question and its answer.

use std::net::IpAddr;

/// Which side of a connection's first packet the subject is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// The subject receives it.
    Ingress,
    /// The subject sends it.
    Egress,
}

/// May this pass, as far as the rules about one side are concerned? The connection passes when the egress of its source
/// and the ingress of its destination both allow it (P-006).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Query {
    /// Which side is asked.
    pub direction: Direction,
    /// Identity of the pod that is asked; 0: no policy is about it.
    pub subject: u32,
    /// Identity of the other side; 0: not a pod that policies know.
    pub peer: u32,
    /// Address of the other side: a client's before translation, a pod's after (P-021).
    pub peer_address: IpAddr,
    /// IANA protocol number.
    pub protocol: u8,
    /// Destination port after translation, host order; without meaning where the protocol has none.
    pub port: u16,
    /// Whether both sides are one pod, which reaches itself through a Service: policies of namespaces never keep it from
    /// that (P-033), the outer tiers may (P-110). By its own address a pod reaches itself without a question.
    pub is_itself: bool,
}

/// A policy, by its number in a [`Table`](crate::Table). The number is given back when the policy goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyId(pub u32);

/// What a verdict rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decided {
    /// No rule matched and nothing isolates the subject: allowed.
    Default,
    /// The subject is isolated and no rule allows this; one of the policies that isolate it, the first by name.
    Isolation(PolicyId),
    /// Entry of the direction's list of rules of that policy, from 0.
    Rule(PolicyId, u16),
    /// The subject is isolated and no rule allows this, but the peer is itself: allowed; one of the policies that isolate
    /// it, the first by name.
    Itself(PolicyId),
}

/// The answer to a [`Query`].
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Verdict {
    /// Whether it may pass.
    pub allow: bool,
    /// What says so.
    pub decided_by: Decided,
}

impl Direction {
    /// Both.
    pub const ALL: [Direction; 2] = [Direction::Ingress, Direction::Egress];
}

impl Verdict {
    /// What holds where no policy says anything.
    pub const DEFAULT: Verdict = Verdict { allow: true, decided_by: Decided::Default };

    /// The same of a subject that is its own peer. The tier of namespaces denies by isolation alone, and that it has
    /// decided at all means that the baseline is not asked (P-103).
    pub(crate) fn of_itself(self) -> Verdict {
        match self.decided_by {
            Decided::Isolation(policy) => Verdict { allow: true, decided_by: Decided::Itself(policy) },
            _ => self,
        }
    }
}
