//! Mutations: ways to break one requirement each, so that a test can be seen to notice.
//!
//! Owns their names and the switch, one per thread. Refuses to exist outside of tests: without the feature `mutations`, which
//! only the tests of this crate ask for, [`is`] is constant and nothing is left of it. `docs/rfc-compliance.md` says which
//! requirement each breaks.

/// One way to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// ICMP errors are passed on untranslated.
    ErrorAsItCame,
    /// ICMP errors are believed whatever their checksum.
    ErrorUnchecked,
    /// An ICMP error ends the flow that it quotes.
    ErrorEndsFlow,
    /// Redirects and source quench are translated as errors are.
    RedirectTranslated,
    /// What may be cut is not.
    NeverCut,
    /// Packets of every size leave, cut or not.
    AnySizeLeaves,
    /// Packets without a hop left are sent on.
    AnyHopLeaves,
    /// Fragments after the first are not followed.
    FragmentsUnfollowed,
    /// Fragments may overlap.
    OverlapAccepted,
    /// SCTP's ports change and its checksum does not.
    CrcAsItCame,
    /// Every reset ends a connection.
    AnyResetBelieved,
    /// Every SYN-ACK answers the SYN.
    AnySynAckBelieved,
    /// Our own errors have no limit.
    AnswersUnlimited,
    /// Congestion marks of the outside are lost.
    OuterEcnLost,
    /// Congestion marks do not go outside.
    InnerEcnHidden,
    /// VXLAN of every network is taken.
    AnyVni,
    /// Packets of several pods leave with the identifications that those gave them.
    IdentificationAsItCame,
}

/// Whether the requirement is to be broken now.
#[inline(always)]
pub(crate) fn is(mutation: Mutation) -> bool {
    #[cfg(feature = "mutations")]
    return switch::is_on(mutation);
    #[cfg(not(feature = "mutations"))]
    {
        let _never = mutation;
        false
    }
}

/// Runs `test` with the requirement broken; whether it noticed, which is by panicking.
#[cfg(feature = "mutations")]
pub fn is_noticed_by(mutation: Mutation, test: impl FnOnce()) -> bool {
    switch::with(mutation, test).is_err()
}

#[cfg(feature = "mutations")]
mod switch {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::Mutation;

    thread_local! {
        static ON: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    pub fn is_on(mutation: Mutation) -> bool {
        ON.get() == Some(mutation)
    }

    pub fn with(mutation: Mutation, test: impl FnOnce()) -> std::thread::Result<()> {
        ON.set(Some(mutation));
        let result = catch_unwind(AssertUnwindSafe(test));
        ON.set(None);
        result
    }
}
