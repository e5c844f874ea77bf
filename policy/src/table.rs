//! All programs, by the identity of their subject. Kind: table.
//!
//! One immutable value that answers every [`Query`]. It shares with its predecessor whatever did not change: rows are in
//! small shared buckets, programs and the members of sets are shared each by itself.
//!
//! A row also has the *epochs* by which a flow that was allowed before knows whether to ask again: the subject's, which
//! changes with its program for the direction, and the peer's, which changes when the peer enters or leaves a set that
//! some rule names, or its named ports change. Another subject's change moves neither.

use std::sync::Arc;

use crate::chunks::Chunks;
use crate::flat::Flat;
use crate::link::{Named, Target};
use crate::program::Program;
use crate::query::{Direction, PolicyId, Query, Verdict};
use crate::walk::Membership;

/// Buckets of rows; a power of two.
const BUCKETS: usize = 4096;

/// Everything about one identity.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) identity: u32,
    /// Its programs by [`Direction`]; none: nothing is about it.
    pub(crate) programs: [Option<Arc<Program>>; 2],
    /// When each of them changed last.
    pub(crate) epochs: [u16; 2],
    /// When what it is to others changed last.
    pub(crate) peer_epoch: u16,
    pub(crate) named: Arc<[Named]>,
}

/// Rows of one bucket, by identity.
type Bucket = Arc<[Row]>;

/// All programs.
#[derive(Clone, Debug)]
pub struct Table {
    buckets: Arc<[Bucket]>,
    sets: Chunks<Arc<Flat<()>>>,
    policies: Chunks<Option<Arc<str>>>,
    rows: usize,
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

impl Default for Table {
    fn default() -> Self {
        let empty: Bucket = Arc::new([]);
        Table {
            buckets: std::iter::repeat_n(empty, BUCKETS).collect(),
            sets: Chunks::default(),
            policies: Chunks::default(),
            rows: 0,
            digest: 0,
            epoch: 0,
        }
    }
}

impl Table {
    /// What the policies say.
    pub fn lookup(&self, query: &Query) -> Verdict {
        let Some(row) = self.row(query.subject) else { return Verdict::DEFAULT };
        let Some(program) = &row.programs[query.direction as usize] else { return Verdict::DEFAULT };
        let named: &[Named] = match query.direction {
            Direction::Ingress => &row.named,
            // P-024: the ports of the pod it goes to.
            Direction::Egress => self.row(query.peer).map_or(&[], |peer| &peer.named),
        };
        let target = Target { protocol: query.protocol, port: query.port, named };
        program.decide(self, (query.peer, query.peer_address), target)
    }

    /// By which a flow knows whether to ask again.
    pub fn epochs(&self, direction: Direction, subject: u32, peer: u32) -> Epochs {
        Epochs {
            subject: self.row(subject).map_or(0, |row| row.epochs[direction as usize]),
            peer: self.row(peer).map_or(0, |row| row.peer_epoch),
        }
    }

    /// Whether anything at all is about that identity in that direction: if not, everything is allowed.
    #[inline]
    pub fn concerns(&self, direction: Direction, subject: u32) -> bool {
        self.row(subject).is_some_and(|row| row.programs[direction as usize].is_some())
    }

    /// Name of a policy's resource.
    pub fn policy(&self, id: PolicyId) -> Option<&str> {
        self.policies.get(id.0)?.as_deref()
    }

    /// A digest of the objects it was made from, whatever the order in which they came.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Whether no policy is about anybody.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Identities that policies or their rules know.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// How many programs there are, how many of them are too large to be laid out, and the memory of all, sets included.
    pub fn size(&self) -> Size {
        let mut seen = hashbrown::HashSet::new();
        let mut size = Size::default();
        for program in
            self.buckets.iter().flat_map(|bucket| bucket.iter()).flat_map(|row| row.programs.iter().flatten())
        {
            if seen.insert(Arc::as_ptr(program)) {
                size.programs += 1;
                size.walked += usize::from(program.is_walked());
                size.bytes += program.bytes();
            }
        }
        size.bytes += self.rows * size_of::<Row>() + self.sets.iter().map(|set| set.bytes()).sum::<usize>();
        size
    }

    #[inline]
    pub(crate) fn row(&self, identity: u32) -> Option<&Row> {
        if self.rows == 0 || identity == 0 {
            return None;
        }
        let bucket = &self.buckets[bucket_of(identity)];
        bucket.binary_search_by_key(&identity, |row| row.identity).ok().map(|at| &bucket[at])
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

    pub(crate) fn set_policy(&mut self, id: PolicyId, name: Option<&str>) {
        self.policies.set(id.0, name.map(Arc::from));
    }

    /// Replaces rows; `None`: it goes.
    pub(crate) fn replace(&mut self, mut rows: Vec<(u32, Option<Row>)>) {
        if rows.is_empty() {
            return;
        }
        rows.sort_unstable_by_key(|(identity, _)| (bucket_of(*identity), *identity));
        let mut buckets: Vec<Bucket> = self.buckets.to_vec();
        for same in rows.chunk_by_mut(|(a, _), (b, _)| bucket_of(*a) == bucket_of(*b)) {
            let bucket = &mut buckets[bucket_of(same[0].0)];
            let kept = bucket.iter().filter(|row| same.iter().all(|(identity, _)| *identity != row.identity)).cloned();
            let mut all: Vec<Row> = kept.collect();
            all.extend(same.iter_mut().filter_map(|(_, row)| row.take()));
            all.sort_unstable_by_key(|row| row.identity);
            self.rows = self.rows + all.len() - bucket.len();
            *bucket = all.into();
        }
        self.buckets = buckets.into();
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

#[inline]
fn bucket_of(identity: u32) -> usize {
    (identity.wrapping_mul(0x9e37_79b1) >> 20) as usize & (BUCKETS - 1)
}
