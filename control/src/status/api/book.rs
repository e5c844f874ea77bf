//! What is to be written of each Service, what stands there, and what is the next step between the two.
//!
//! Owns the order of steps (C-001, C-002), equality (nothing is written twice, C-006) and patience (C-004): a Service
//! that cannot be written waits by itself, 5 s at first and 300 s at most, and holds up no other. A pure state machine:
//! it sends nothing and asks no clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::backoff::Backoff;
use crate::model::Name;
use crate::source::record::Record;

/// C-004.
const RETRY_MIN: Duration = Duration::from_secs(5);
/// See [`RETRY_MIN`].
const RETRY_MAX: Duration = Duration::from_secs(300);
/// Conflicts in a row after which a Service waits like any other that fails.
const CONFLICTS_MAX: u32 = 5;

/// What should stand in the API of one Service.
#[derive(Clone, Debug, PartialEq)]
pub enum Wanted {
    /// The finalizer; what comes is not known yet.
    Held,
    /// The finalizer, these addresses, these conditions.
    Served {
        /// Addresses, in order.
        ingress: Vec<IpAddr>,
        /// Names of the pools they are of, for an annotation (M-003).
        pool: Option<String>,
        /// Our conditions, sorted by type.
        conditions: Vec<Condition>,
    },
    /// These conditions: another gives out the addresses and looks after the object.
    Told {
        /// Our conditions, sorted by type.
        conditions: Vec<Condition>,
    },
    /// Nothing of ours.
    Released,
}

/// One Service and what should stand in the API of it.
#[derive(Clone, Debug)]
pub struct Order {
    /// The term it was decided in.
    pub term: u64,
    /// Namespace and name.
    pub name: Name,
    /// What stands there, as the source has told last.
    pub record: Record,
    /// What should.
    pub wanted: Wanted,
}

/// One step towards what is wanted.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Look at the object: what is known of it was not current.
    Fetch,
    /// Add our finalizer to those there are.
    Hold,
    /// Say of which pools the addresses are, or nothing about it.
    Mark(Option<String>),
    /// Write status: `ingress` unless it is another's.
    Write {
        /// Addresses.
        ingress: Option<Vec<IpAddr>>,
        /// Conditions, with the times of those that have not changed.
        conditions: Vec<Condition>,
    },
    /// Take our finalizer from those there are.
    LetGo,
}

/// How a step ended.
#[derive(Clone, Debug)]
pub enum Ended {
    /// This is what stands there now; `None`: nothing that is a load balancer's business.
    Done(Option<Record>),
    /// The object is gone: nothing is to be done any more.
    Gone,
    /// Something else was written meanwhile.
    Conflict,
    /// It did not work.
    Failed,
}

/// All orders.
#[derive(Debug, Default)]
pub struct Book {
    entries: HashMap<Name, Entry>,
    /// Entries with something to do, in the order in which they came.
    ready: VecDeque<Name>,
    queued: BTreeSet<Name>,
    later: BTreeMap<Instant, Vec<Name>>,
}

#[derive(Debug)]
struct Entry {
    term: u64,
    record: Record,
    wanted: Wanted,
    busy: bool,
    /// What is known is not current.
    stale: bool,
    conflicts: u32,
    backoff: Backoff,
    not_before: Option<Instant>,
}

impl Book {
    /// Takes an order; it replaces the one before.
    pub fn take(&mut self, order: Order) {
        let name = order.name.clone();
        match self.entries.get_mut(&name) {
            Some(entry) if entry.record.uid == order.record.uid => {
                // The watch may tell of what was before our own last write.
                if !is_older(&order.record, &entry.record) {
                    entry.record = order.record;
                    entry.stale = false;
                }
                if entry.wanted != order.wanted {
                    entry.wanted = order.wanted;
                    entry.not_before = None; // another wish is not the one that failed
                    entry.backoff.reset();
                }
                entry.term = order.term;
            }
            _ => {
                let busy = self.entries.get(&name).is_some_and(|entry| entry.busy);
                let entry = Entry {
                    term: order.term,
                    record: order.record,
                    wanted: order.wanted,
                    busy,
                    stale: false,
                    conflicts: 0,
                    backoff: Backoff::new(RETRY_MIN, RETRY_MAX),
                    not_before: None,
                };
                self.entries.insert(name.clone(), entry);
            }
        }
        self.queue(name);
    }

    /// Forgets a Service that is gone.
    pub fn forget(&mut self, name: &Name) {
        self.entries.remove(name);
    }

    /// Forgets all orders: they were decided in a term that is over.
    pub fn clear(&mut self) {
        *self = Book::default();
    }

    fn queue(&mut self, name: Name) {
        if self.queued.insert(name.clone()) {
            self.ready.push_back(name);
        }
    }

    /// The next step to take, with the term it was decided in and what stands there. It is then on its way until
    /// [`Book::ended`].
    pub fn next(&mut self, now: Instant) -> Option<(Name, u64, Record, Step)> {
        while let Some(due) = self.later.first_entry().filter(|due| *due.key() <= now) {
            for name in due.remove() {
                self.queue(name);
            }
        }
        while let Some(name) = self.ready.pop_front() {
            self.queued.remove(&name);
            let Some(entry) = self.entries.get_mut(&name) else { continue };
            let early = entry.not_before.is_some_and(|not_before| not_before > now);
            if entry.busy || early {
                continue; // it is queued again when its time comes
            }
            let Some(step) = entry.step() else { continue };
            entry.busy = true;
            return Some((name, entry.term, entry.record.clone(), step));
        }
        None
    }

    /// When [`Book::next`] may have something to do although nothing has happened.
    pub fn due(&self) -> Option<Instant> {
        self.later.keys().next().copied()
    }

    /// Nothing is to be done and nothing on its way.
    pub fn is_settled(&self, name: &Name) -> bool {
        self.entries.get(name).is_none_or(|entry| !entry.busy && entry.step().is_none())
    }

    /// A step has ended.
    pub fn ended(&mut self, name: &Name, uid: &str, ended: Ended, now: Instant) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        entry.busy = false;
        if entry.record.uid != uid {
            self.queue(name.clone()); // about an object of the same name before this one
            return;
        }
        match ended {
            Ended::Done(None) | Ended::Gone => {
                self.entries.remove(name);
                return;
            }
            Ended::Done(Some(record)) if record.uid != uid => {
                self.entries.remove(name); // the source will tell of the new one
                return;
            }
            Ended::Done(Some(record)) => {
                if !is_older(&record, &entry.record) {
                    entry.record = record;
                }
                (entry.stale, entry.not_before) = (false, None);
                if entry.step().is_none() {
                    entry.conflicts = 0;
                    entry.backoff.reset();
                }
            }
            Ended::Conflict if entry.conflicts < CONFLICTS_MAX => {
                entry.conflicts += 1;
                entry.stale = true;
            }
            Ended::Conflict | Ended::Failed => {
                (entry.stale, entry.conflicts) = (true, 0);
                let again = now + entry.backoff.wait();
                entry.not_before = Some(again);
                self.later.entry(again).or_default().push(name.clone());
                return;
            }
        }
        self.queue(name.clone());
    }
}

impl Entry {
    fn step(&self) -> Option<Step> {
        let record = &self.record;
        let needed = match &self.wanted {
            Wanted::Held | Wanted::Served { .. } if !record.is_held() => match record.deleting {
                true => None, // nothing new may hold what is to go
                false => Some(Step::Hold),
            },
            Wanted::Held => None,
            Wanted::Served { pool, .. } if record.pool != *pool => Some(Step::Mark(pool.clone())),
            Wanted::Served { ingress, conditions, .. } => {
                let same =
                    !record.ingress_foreign && record.ingress == *ingress && alike(&record.conditions, conditions);
                (!same).then(|| Step::Write { ingress: Some(ingress.clone()), conditions: self.timed(conditions) })
            }
            Wanted::Told { conditions } => {
                let same = alike(&record.conditions, conditions);
                (!same).then(|| Step::Write { ingress: None, conditions: self.timed(conditions) })
            }
            Wanted::Released => {
                let stands = record.ingress_foreign || !record.ingress.is_empty() || !record.conditions.is_empty();
                match (stands && !record.deleting, record.is_held()) {
                    (_, true) if record.pool.is_some() && !record.deleting => Some(Step::Mark(None)),
                    (true, true) => Some(Step::Write { ingress: Some(Vec::new()), conditions: Vec::new() }), // C-010
                    (_, true) => Some(Step::LetGo),
                    (_, false) => None,
                }
            }
        };
        needed.map(|step| if self.stale { Step::Fetch } else { step })
    }

    /// Conditions that hold as before keep the time since when they do.
    fn timed(&self, conditions: &[Condition]) -> Vec<Condition> {
        let mut conditions = conditions.to_vec();
        for condition in &mut conditions {
            let same = |old: &&Condition| old.type_ == condition.type_ && old.status == condition.status;
            if let Some(old) = self.record.conditions.iter().find(same) {
                condition.last_transition_time = old.last_transition_time.clone();
            }
        }
        conditions
    }
}

/// Equal but for the times.
fn alike(stand: &[Condition], wanted: &[Condition]) -> bool {
    let same = |a: &Condition, b: &Condition| {
        (&a.type_, &a.status, &a.reason, &a.message, a.observed_generation)
            == (&b.type_, &b.status, &b.reason, &b.message, b.observed_generation)
    };
    stand.len() == wanted.len() && wanted.iter().all(|condition| stand.iter().any(|other| same(condition, other)))
}

/// Whether `a` certainly is an earlier version of the object than `b`. Versions are numbers that grow since Kubernetes
/// says so; with any other form nothing is certain.
fn is_older(a: &Record, b: &Record) -> bool {
    match (a.resource_version.parse::<u64>(), b.resource_version.parse::<u64>()) {
        (Ok(a), Ok(b)) => a < b,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::record::FINALIZER;

    fn name() -> Name {
        Name { namespace: "shop".into(), name: "web".into() }
    }

    fn record(version: u64, held: bool, ingress: &[&str]) -> Record {
        Record {
            uid: "u1".into(),
            resource_version: version.to_string(),
            balanced: true,
            finalizers: if held { vec!["other/one".into(), FINALIZER.into()] } else { vec!["other/one".into()] },
            ingress: ingress.iter().map(|ip| ip.parse().unwrap()).collect(),
            ..Record::default()
        }
    }

    fn served(ingress: &[&str]) -> Wanted {
        let ingress = ingress.iter().map(|ip| ip.parse().unwrap()).collect();
        Wanted::Served { ingress, pool: None, conditions: Vec::new() }
    }

    fn order(record: Record, wanted: Wanted) -> Order {
        Order { term: 1, name: name(), record, wanted }
    }

    fn step(book: &mut Book, now: Instant) -> Option<Step> {
        book.next(now).map(|(_, _, _, step)| step)
    }

    fn done(book: &mut Book, record: Record, now: Instant) {
        book.ended(&name(), "u1", Ended::Done(Some(record)), now);
    }

    /// C-001, C-006.
    #[test]
    fn the_finalizer_comes_before_the_status_and_nothing_twice() {
        let (mut book, now) = (Book::default(), Instant::now());
        let both = ["203.0.113.1", "2001:db8::1"];
        book.take(order(record(1, false, &[]), Wanted::Held));
        assert_eq!(step(&mut book, now), Some(Step::Hold));
        assert_eq!(step(&mut book, now), None, "one step at a time");
        done(&mut book, record(2, true, &[]), now);
        assert_eq!(step(&mut book, now), None);
        book.take(order(record(2, true, &[]), served(&both)));
        assert!(matches!(step(&mut book, now), Some(Step::Write { ingress: Some(list), .. }) if list.len() == 2));
        done(&mut book, record(3, true, &both), now);
        // The watch tells late of what was before: that is no reason to write again.
        book.take(order(record(2, true, &[]), served(&both)));
        assert_eq!(step(&mut book, now), None);
        book.take(order(record(4, true, &both), served(&both)));
        assert_eq!(step(&mut book, now), None);
        // Somebody takes our finalizer away, or writes another address.
        book.take(order(record(5, false, &both), served(&both)));
        assert_eq!(step(&mut book, now), Some(Step::Hold));
        done(&mut book, record(6, true, &["203.0.113.9"]), now);
        assert!(matches!(step(&mut book, now), Some(Step::Write { .. })));
    }

    /// C-002, C-010.
    #[test]
    fn cleaning_up_empties_status_and_then_lets_go() {
        let (mut book, now) = (Book::default(), Instant::now());
        book.take(order(record(1, true, &["203.0.113.1"]), Wanted::Released));
        let empty = Step::Write { ingress: Some(Vec::new()), conditions: Vec::new() };
        assert_eq!(step(&mut book, now), Some(empty));
        done(&mut book, record(2, true, &[]), now);
        assert_eq!(step(&mut book, now), Some(Step::LetGo));
        book.ended(&name(), "u1", Ended::Done(None), now);
        assert_eq!(step(&mut book, now), None);
        // One that is to be deleted keeps its status; NotFound is success (C-004).
        let deleting = Record { deleting: true, ..record(3, true, &["203.0.113.1"]) };
        book.take(order(deleting, Wanted::Released));
        assert_eq!(step(&mut book, now), Some(Step::LetGo));
        book.ended(&name(), "u1", Ended::Gone, now);
        assert!(book.is_settled(&name()) && book.due().is_none());
    }

    /// M-003.
    #[test]
    fn the_pool_is_told_before_the_addresses_and_no_longer_than_they() {
        let (mut book, now) = (Book::default(), Instant::now());
        let wanted = Wanted::Served { ingress: Vec::new(), pool: Some("edge".into()), conditions: Vec::new() };
        book.take(order(record(1, true, &[]), wanted));
        assert_eq!(step(&mut book, now), Some(Step::Mark(Some("edge".into()))));
        let marked = |version| Record { pool: Some("edge".into()), ..record(version, true, &[]) };
        done(&mut book, marked(2), now);
        assert_eq!(step(&mut book, now), None);
        book.take(order(marked(2), Wanted::Released));
        assert_eq!(step(&mut book, now), Some(Step::Mark(None)));
        done(&mut book, record(3, true, &[]), now);
        assert_eq!(step(&mut book, now), Some(Step::LetGo));
    }

    /// C-004.
    #[test]
    fn a_conflict_looks_again_at_once_and_a_failure_waits_longer_each_time() {
        let (mut book, mut now) = (Book::default(), Instant::now());
        book.take(order(record(1, true, &[]), served(&["203.0.113.1"])));
        assert!(matches!(step(&mut book, now), Some(Step::Write { .. })));
        book.ended(&name(), "u1", Ended::Conflict, now);
        assert_eq!(step(&mut book, now), Some(Step::Fetch));
        done(&mut book, record(2, true, &[]), now);
        let mut waits = Vec::new();
        for _ in 0..9 {
            let next = step(&mut book, now).unwrap();
            if next == Step::Fetch {
                done(&mut book, record(2, true, &[]), now);
                assert!(matches!(step(&mut book, now), Some(Step::Write { .. })));
            }
            book.ended(&name(), "u1", Ended::Failed, now);
            assert_eq!(step(&mut book, now), None, "never at once");
            let due = book.due().unwrap();
            waits.push((due - now).as_secs_f64());
            now = due;
        }
        assert!(waits[0] >= 3.75 && waits[0] <= 6.25, "{waits:?}");
        assert!(*waits.last().unwrap() >= 225.0 && waits.iter().all(|wait| *wait <= 300.0), "{waits:?}");
    }

    #[test]
    fn conflicts_without_end_wait_too() {
        let (mut book, now) = (Book::default(), Instant::now());
        book.take(order(record(1, true, &[]), served(&["203.0.113.1"])));
        let mut steps = 0;
        while step(&mut book, now).is_some() {
            book.ended(&name(), "u1", Ended::Conflict, now);
            steps += 1;
            assert!(steps < 20, "a hot loop");
        }
        assert!(book.due().is_some());
    }

    /// S-005: what comes back about an object of the same name before this one changes nothing.
    #[test]
    fn another_object_of_the_same_name_is_another() {
        let (mut book, now) = (Book::default(), Instant::now());
        book.take(order(record(1, false, &[]), Wanted::Held));
        assert_eq!(step(&mut book, now), Some(Step::Hold));
        book.take(order(Record { uid: "u2".into(), ..record(9, false, &[]) }, Wanted::Held));
        assert_eq!(step(&mut book, now), None, "one step at a time, also of both");
        book.ended(&name(), "u1", Ended::Gone, now);
        assert_eq!(step(&mut book, now), Some(Step::Hold));
    }

    #[test]
    fn conditions_keep_their_times_and_are_compared_without_them() {
        use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
        let condition = |status: &str, at: i64| Condition {
            type_: "tidegate.io/Programmed".into(),
            status: status.into(),
            reason: "R".into(),
            last_transition_time: Time(k8s_openapi::jiff::Timestamp::from_second(at).unwrap()),
            message: String::new(),
            observed_generation: Some(1),
        };
        let (mut book, now) = (Book::default(), Instant::now());
        let stands = Record { conditions: vec![condition("True", 1)], ..record(1, true, &[]) };
        let wanted = |condition| Wanted::Served { ingress: Vec::new(), pool: None, conditions: vec![condition] };
        book.take(order(stands.clone(), wanted(condition("True", 9))));
        assert_eq!(step(&mut book, now), None);
        let changed = Condition { message: "more".into(), ..condition("True", 9) };
        book.take(order(stands, wanted(changed)));
        let Some(Step::Write { conditions, .. }) = step(&mut book, now) else { panic!("it has changed") };
        assert_eq!(conditions[0].last_transition_time.0.as_second(), 1);
    }
}
