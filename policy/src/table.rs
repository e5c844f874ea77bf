//! All programs, by the identity of their subject. Kind: table.
//!
//! One immutable value that answers every [`Query`]. It shares with its predecessor whatever did not change: rows lie side
//! by side in shared chunks, found by one read of an array from identities to their numbers, which is copied when an
//! identity comes or goes; programs and the members of sets are shared each by itself.
//!
//! A row also has the *epochs* by which a flow that was allowed before knows whether to ask again: the subject's, which
//! changes with its program for the direction, and the peer's, which changes when the peer enters or leaves a set that
//! some rule names, or its named ports change. Another subject's change moves neither.

use std::sync::Arc;

use crate::chunks::Chunks;
use crate::flat::Flat;
use crate::link::{Named, Target};
use crate::program::Program;
use crate::query::{Decided, Direction, PolicyId, Query, Verdict};
use crate::walk::Membership;

/// Everything about one identity.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    pub(crate) identity: u32,
    /// Its programs by [`Direction`]; none: nothing is about it.
    pub(crate) programs: [Option<Arc<Program>>; 2],
    /// The same with the policies in audit, where any is about it.
    pub(crate) audited: [Option<Arc<Program>>; 2],
    /// When each of `programs` changed last.
    pub(crate) epochs: [u16; 2],
    /// When what it is to others changed last.
    pub(crate) peer_epoch: u16,
    pub(crate) named: Arc<[Named]>,
}

/// All programs.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Number of an identity's row. Rows are numbered without gaps.
    numbers: Arc<Flat<u32>>,
    rows: Chunks<Row>,
    sets: Chunks<Arc<Flat<()>>>,
    /// Names of policies, and which of them are in audit.
    policies: Chunks<Option<(Arc<str>, bool)>>,
    /// Policies that decide, and those in audit.
    counts: [usize; 2],
    digest: u64,
    epoch: u16,
}

/// When the two sides of a verdict changed last. A verdict holds as long as its sides have the identities they had and
/// this is equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Epochs {
    /// The subject's program for the direction.
    pub subject: u16,
    /// What the peer is to rules.
    pub peer: u16,
}

impl Table {
    /// What the policies say.
    pub fn lookup(&self, query: &Query) -> Verdict {
        self.ask(query).unwrap_or(Verdict::DEFAULT)
    }

    /// What they say, if any policy is about the subject in that direction at all.
    #[inline]
    pub fn ask(&self, query: &Query) -> Option<Verdict> {
        if query.is_itself {
            return self.ask_of_itself(query);
        }
        let row = self.row(query.subject)?;
        let program = row.programs[query.direction as usize].as_ref()?;
        Some(program.decide(self, (query.peer, query.peer_address), self.target(row, query)))
    }

    /// P-110: so few questions are of this kind that the others do not pay for them.
    #[cold]
    #[inline(never)]
    fn ask_of_itself(&self, query: &Query) -> Option<Verdict> {
        self.ask(&Query { is_itself: false, ..*query }).map(Verdict::of_itself)
    }

    /// What in audit would stop something that is allowed, were all policies in audit in force with the others. Names a
    /// policy in audit: the one that would decide, or whose rule would pass on to another one that then denies.
    #[inline]
    pub fn audit(&self, query: &Query) -> Option<Decided> {
        if self.counts[1] == 0 { None } else { self.judge_audited(query) }
    }

    #[inline(never)]
    fn judge_audited(&self, query: &Query) -> Option<Decided> {
        let row = self.row(query.subject)?;
        let program = row.audited[query.direction as usize].as_ref()?;
        let (peer, target) = ((query.peer, query.peer_address), self.target(row, query));
        let verdict = program.decide(self, peer, target);
        let verdict = if query.is_itself { verdict.of_itself() } else { verdict };
        if verdict.allow {
            return None;
        }
        let is_audited = |decided: &Decided| match decided {
            Decided::Default => false,
            Decided::Isolation(policy) | Decided::Rule(policy, _) | Decided::Itself(policy) => {
                self.policies.get(policy.0).is_some_and(|known| known.as_ref().is_some_and(|(_, audit)| *audit))
            }
        };
        // If the one that denies is in force already, it denies now because a rule in audit before it passes on.
        Some(verdict.decided_by).filter(is_audited).or_else(|| program.passes(self, peer, target).filter(is_audited))
    }

    #[inline]
    fn target<'t>(&'t self, row: &'t Row, query: &Query) -> Target<'t> {
        let named: &[Named] = match query.direction {
            Direction::Ingress => &row.named,
            // P-024: the ports of the pod it goes to.
            Direction::Egress => self.row(query.peer).map_or(&[], |peer| &peer.named),
        };
        Target { protocol: query.protocol, port: query.port, named }
    }

    /// Whether any policy decides anything, those in audit aside.
    pub fn is_enforcing(&self) -> bool {
        self.counts[0] > 0
    }

    /// By which a flow knows whether to ask again.
    pub fn epochs(&self, direction: Direction, subject: u32, peer: u32) -> Epochs {
        Epochs {
            subject: self.row(subject).map_or(0, |row| row.epochs[direction as usize]),
            peer: self.row(peer).map_or(0, |row| row.peer_epoch),
        }
    }

    /// Name of a policy's resource.
    pub fn policy(&self, id: PolicyId) -> Option<&str> {
        self.policies.get(id.0)?.as_ref().map(|(name, _)| &**name)
    }

    /// A digest of the objects it was made from, whatever the order in which they came.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Whether no policy is about anybody.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// Identities that policies or their rules know.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// How many programs there are, how many of them are too large to be laid out, and the memory of all, sets included.
    pub fn size(&self) -> Size {
        let mut seen = hashbrown::HashSet::new();
        let mut size = Size::default();
        for program in self.rows.iter().flat_map(|row| row.programs.iter().chain(&row.audited).flatten()) {
            if seen.insert(Arc::as_ptr(program)) {
                size.programs += 1;
                size.walked += usize::from(program.is_walked());
                size.bytes += program.bytes();
            }
        }
        size.bytes += self.len() * size_of::<Row>() + self.numbers.bytes();
        size.bytes += self.sets.iter().map(|set| set.bytes()).sum::<usize>();
        size
    }

    #[inline]
    pub(crate) fn row(&self, identity: u32) -> Option<&Row> {
        self.rows.get(self.numbers.get(identity)?)
    }

    /// The epoch of what changes now. Never 0, which is that of what is not there.
    pub(crate) fn begin(&mut self) -> u16 {
        self.epoch = self.epoch.checked_add(1).unwrap_or(1);
        self.epoch
    }

    pub(crate) fn set_digest(&mut self, digest: u64) {
        self.digest = digest;
    }

    pub(crate) fn set_members(&mut self, set: u32, members: &[u32]) {
        self.sets.set(set, Arc::new(Flat::new(members.iter().map(|identity| (*identity, ())))));
    }

    /// A policy's name and whether it is in audit; `None`: it goes.
    pub(crate) fn set_policy(&mut self, id: PolicyId, known: Option<(&str, bool)>) {
        if let Some(Some((_, audit))) = self.policies.get(id.0) {
            self.counts[usize::from(*audit)] -= 1;
        }
        if let Some((_, audit)) = known {
            self.counts[usize::from(audit)] += 1;
        }
        self.policies.set(id.0, known.map(|(name, audit)| (Arc::from(name), audit)));
    }

    /// Replaces rows; `None`: it goes.
    pub(crate) fn replace(&mut self, rows: Vec<(u32, Option<Row>)>) {
        for (identity, row) in rows {
            match (self.numbers.get(identity), row) {
                (Some(number), Some(row)) => self.rows.set(number, row),
                (None, Some(row)) => {
                    let number = u32::try_from(self.len()).unwrap_or(u32::MAX);
                    Arc::make_mut(&mut self.numbers).insert(identity, number);
                    self.rows.set(number, row);
                }
                (Some(number), None) => self.remove(identity, number),
                (None, None) => {}
            }
        }
    }

    /// Takes a row out; the last one takes its number.
    fn remove(&mut self, identity: u32, number: u32) {
        let numbers = Arc::make_mut(&mut self.numbers);
        numbers.remove(identity);
        let last = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
        if let Some(moved) = self.rows.get(last).filter(|_| last != number).cloned() {
            numbers.insert(moved.identity, number);
            self.rows.set(number, moved);
        }
        self.rows.set(last, Row::default());
    }
}

/// What a table amounts to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Distinct programs.
    pub programs: usize,
    /// Those of them that are read rule by rule, because their layout would be too large.
    pub walked: usize,
    /// Memory of programs, sets and rows.
    pub bytes: usize,
}

impl Membership for Table {
    #[inline]
    fn holds(&self, set: u32, identity: u32) -> bool {
        self.sets.get(set).is_some_and(|members| members.get(identity).is_some())
    }
}
