//! Faults that a test asks for while the server runs.
//!
//! Owns the list of faults on requests, what watches are told to do, and the signal that wakes those whom a change
//! concerns. Refuses to know how an answer is made: `http` and `watch` ask what to do and do it.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use tokio::sync::watch;

use crate::rbac::Asked;

/// How long a cut waits for connections that do not end.
const CUT_WITHIN: Duration = Duration::from_secs(5);

/// Which requests a fault meets. Empty fields match everything.
#[derive(Clone, Debug, Default)]
pub struct Match {
    /// Verb, as in roles.
    pub verb: String,
    /// Plural name with subresource: `services`, `services/status`.
    pub resource: String,
    /// Namespace.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// User.
    pub user: String,
}

impl Match {
    /// All requests.
    pub fn any() -> Match {
        Match::default()
    }

    /// Requests with `verb`.
    pub fn verb(verb: &str) -> Match {
        Match { verb: verb.to_owned(), ..Match::default() }
    }

    /// Requests for `resource`.
    pub fn resource(resource: &str) -> Match {
        Match { resource: resource.to_owned(), ..Match::default() }
    }

    /// Requests with `verb` for `resource`.
    pub fn of(verb: &str, resource: &str) -> Match {
        Match { verb: verb.to_owned(), resource: resource.to_owned(), ..Match::default() }
    }

    fn meets(&self, user: &str, asked: &Asked) -> bool {
        let same = |wanted: &str, is: &str| wanted.is_empty() || wanted == is;
        same(&self.verb, &asked.verb)
            && same(&self.resource, &asked.whole_resource())
            && same(&self.namespace, &asked.namespace)
            && same(&self.name, &asked.name)
            && same(&self.user, user)
    }
}

/// What is done to a request or its answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Wait before anything is done.
    Delay(Duration),
    /// Answer with this code and do nothing.
    Answer {
        /// HTTP status code.
        code: u16,
        /// `Retry-After` in seconds, and in the details.
        retry_after_s: Option<u32>,
    },
    /// Answer 200 with bytes that are no JSON and no UTF-8.
    Garbage,
    /// Answer 200 with JSON of another shape than asked for.
    WrongShape,
    /// Never answer; the connection stays.
    Hang,
    /// Cut the connection before anything is done.
    Cut,
    /// Do what is asked, then cut the connection instead of answering.
    LoseAnswer,
    /// End the answer after so many bytes as if it were whole.
    Truncate(usize),
    /// Cut the connection after so many bytes of the answer.
    CutAfterBytes(usize),
    /// End a watch after so many events, without a word.
    EndAfterEvents(usize),
    /// Cut the connection of a watch after so many events.
    CutAfterEvents(usize),
    /// Send the answer at so many bytes a second.
    Slow(usize),
}

/// One fault: on which requests, what, and how often.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Which requests.
    pub on: Match,
    /// What happens.
    pub effect: Effect,
    /// How many of them; `None` for all until `clear`.
    pub count: Option<usize>,
    /// How many of them pass before the first.
    pub skip: usize,
}

impl Fault {
    /// `effect` on every request of `on`.
    pub fn always(on: Match, effect: Effect) -> Fault {
        Fault { on, effect, count: None, skip: 0 }
    }

    /// `effect` on the next `count` requests of `on`.
    pub fn times(count: usize, on: Match, effect: Effect) -> Fault {
        Fault { on, effect, count: Some(count), skip: 0 }
    }

    /// The same, but only after `skip` requests of its kind.
    pub fn after(self, skip: usize) -> Fault {
        Fault { skip, ..self }
    }
}

/// What open watches are told.
#[derive(Clone, Debug, Default)]
pub struct WatchOrders {
    /// Resources whose events are held back; `*` for all.
    pub held: BTreeSet<String>,
    /// Say nothing to those who asked for bookmarks.
    pub no_bookmarks: bool,
    /// Send every event twice.
    pub twice: bool,
    /// Counts demands for a bookmark now.
    pub bookmarks: u64,
    /// Counts demands to send 410 and end.
    pub expire: u64,
    /// Counts demands to end without a word.
    pub end: u64,
}

impl WatchOrders {
    /// Whether events of `resource` are held back.
    pub fn holds(&self, resource: &str) -> bool {
        self.held.contains("*") || self.held.contains(resource)
    }
}

/// All faults of one server.
#[derive(Debug)]
pub struct Faults {
    list: Mutex<Vec<Fault>>,
    orders: watch::Sender<WatchOrders>,
    cut: watch::Sender<u64>,
    seats: Mutex<Seats>,
}

/// Those who sit since the last cut: each holds a sender, and the receiver ends when the last of them is gone.
#[derive(Debug)]
struct Seats(mpsc::Sender<Infallible>, mpsc::Receiver<Infallible>);

impl Default for Seats {
    fn default() -> Self {
        let (seat, gone) = mpsc::channel();
        Seats(seat, gone)
    }
}

/// What a connection holds for as long as its socket is open.
#[derive(Debug)]
pub(crate) struct Seat {
    cuts: watch::Receiver<u64>,
    _seat: mpsc::Sender<Infallible>,
}

impl Seat {
    /// Returns when the connection is to be cut.
    pub async fn cut(&mut self) {
        // The sender lives as long as the server.
        let _ = self.cuts.changed().await;
    }
}

impl Default for Faults {
    fn default() -> Self {
        Faults {
            list: Mutex::default(),
            orders: watch::Sender::new(WatchOrders::default()),
            cut: watch::Sender::new(0),
            seats: Mutex::default(),
        }
    }
}

impl Faults {
    fn list(&self) -> MutexGuard<'_, Vec<Fault>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more fault. Several may meet one request; they work in the order they were added.
    pub fn add(&self, fault: Fault) {
        self.list().push(fault);
    }

    /// No faults any more; held events are sent.
    pub fn clear(&self) {
        self.list().clear();
        self.orders.send_modify(|orders| {
            orders.held.clear();
            orders.no_bookmarks = false;
            orders.twice = false;
        });
    }

    /// What happens to one request; used up by asking.
    pub(crate) fn for_request(&self, user: &str, asked: &Asked) -> Vec<Effect> {
        let mut effects = Vec::new();
        let mut list = self.list();
        for fault in list.iter_mut().filter(|fault| fault.on.meets(user, asked)) {
            if fault.skip > 0 {
                fault.skip -= 1;
                continue;
            }
            if let Some(count) = &mut fault.count {
                if *count == 0 {
                    continue;
                }
                *count -= 1;
            }
            effects.push(fault.effect.clone());
        }
        list.retain(|fault| fault.count != Some(0));
        effects
    }

    /// Holds events of `resource` (`*`: of all) back until `release`. What was held comes in its order afterwards: holding
    /// one kind makes another kind's later events arrive first.
    pub fn hold_watches(&self, resource: &str) {
        self.orders.send_modify(|orders| {
            orders.held.insert(resource.to_owned());
        });
    }

    /// Sends what `hold_watches(resource)` held back.
    pub fn release_watches(&self, resource: &str) {
        self.orders.send_modify(|orders| {
            orders.held.remove(resource);
        });
    }

    /// Whether those who ask for bookmarks get none.
    pub fn drop_bookmarks(&self, drop: bool) {
        self.orders.send_modify(|orders| orders.no_bookmarks = drop);
    }

    /// Whether every event is sent twice.
    pub fn duplicate_events(&self, twice: bool) {
        self.orders.send_modify(|orders| orders.twice = twice);
    }

    /// Sends a bookmark on every open watch that asked for them, now.
    pub fn bookmark_watches(&self) {
        self.orders.send_modify(|orders| orders.bookmarks += 1);
    }

    /// Tells every open watch that its revision is too old, and ends it.
    pub fn expire_watches(&self) {
        self.orders.send_modify(|orders| orders.expire += 1);
    }

    /// Ends every open watch without a word, as a timeout does.
    pub fn end_watches(&self) {
        self.orders.send_modify(|orders| orders.end += 1);
    }

    /// Cuts every connection, and returns when all their sockets are closed: what happens next is told to none of them.
    pub fn cut_connections(&self) {
        let Seats(seat, gone) = {
            let mut seats = self.seats();
            self.cut.send_modify(|cut| *cut += 1);
            std::mem::take(&mut *seats)
        };
        drop(seat);
        // Nothing is ever sent: this is the end of the last seat. A server that has ended has none.
        let _ = gone.recv_timeout(CUT_WITHIN);
    }

    pub(crate) fn orders(&self) -> watch::Receiver<WatchOrders> {
        self.orders.subscribe()
    }

    /// A connection's seat, to be taken before anybody can be told that it was accepted.
    pub(crate) fn seat(&self) -> Seat {
        let seats = self.seats();
        Seat { cuts: self.cut.subscribe(), _seat: seats.0.clone() }
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_used_up_after_its_count() {
        let faults = Faults::default();
        faults.add(Fault::times(2, Match::of("list", "services"), Effect::Cut).after(1));
        let asked = Asked { verb: "list".to_owned(), resource: "services".to_owned(), ..Asked::default() };
        let other = Asked { verb: "get".to_owned(), ..asked.clone() };
        let met: Vec<_> = (0..5).map(|_| faults.for_request("u", &asked).len()).collect();
        assert_eq!(met, [0, 1, 1, 0, 0]);
        assert!(faults.for_request("u", &other).is_empty());
    }
}
