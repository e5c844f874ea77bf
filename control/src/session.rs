//! The conversation with the dataplane: what it holds, what it was sent, what its workers have reached.
//!
//! Owns the comparison of two sets of versions and what is on its way; [`link`] owns the connection. Refuses to know
//! what a resource means.
//!
//! One update is on its way at a time, the very first one in parts; what changes meanwhile is gathered and goes with the
//! next, so a slow dataplane gets fewer and larger updates and never a queue. A new connection starts from what the
//! dataplane says it holds: only differences are sent, or everything at once when it holds nothing. To such a dataplane
//! objects are also told before the source is known as a whole: it prepares them, and the first update brings them in
//! force.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use tidegate_api::frame;
use tidegate_api::message::{Accepted, PREPARED_AT_ONCE, Prepare, Preparing, RESOURCES_AT_ONCE, Request, Update};
use tidegate_api::resource::{Kind, Resource, ResourceKey, Versions};
use tidegate_api::show::Show;

/// The connection itself: made, read, made again.
pub mod link;

/// An answer that takes longer than this is a problem.
const SILENCE_TOLD_AFTER: Duration = Duration::from_secs(20);
/// How long control says nothing before it gives a sign of life.
const SIGN_AFTER: Duration = Duration::from_secs(5);
/// How long after a refusal the same version is sent again: what it lacked (an address that came up late, a claim that
/// another gave up) may be there now.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// Fewer removals of a kind than this are never held back.
const REMOVALS_HELD_MIN: usize = 3;

/// Where one resource stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The dataplane holds no version of it.
    Absent,
    /// The dataplane holds this version; the workers have reached it if a generation is given.
    Held {
        /// Version held.
        version: String,
        /// Generation reached, by all workers, that contains it.
        reached: Option<u64>,
    },
}

#[derive(Clone, Debug)]
struct Held {
    version: String,
    /// Generation that contains it; `None` until an answer on this connection told one.
    generation: Option<u64>,
}

#[derive(Debug)]
struct InFlight {
    nonce: u64,
    full: bool,
    since: Instant,
    /// Version sent, `None` for a removal.
    sent: BTreeMap<ResourceKey, Option<String>>,
}

/// A refused version and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Version refused.
    pub version: String,
    /// The dataplane's reason.
    pub reason: String,
}

/// What the owner of the resources answers about them.
pub trait Wanted {
    /// All resources there should be.
    fn all(&self) -> &BTreeMap<ResourceKey, Resource>;
    /// Whether what the dataplane holds under `key` must stay because nothing certain is known of it.
    fn uncertain(&self, key: &ResourceKey) -> bool;
    /// Whether this run of control has itself removed `key`.
    fn removed_knowingly(&self, key: &ResourceKey) -> bool;
    /// Whether what the source lacks is gone for certain, however much it is.
    fn authoritative(&self) -> bool;
}

/// The state of the conversation.
#[derive(Debug, Default)]
pub struct Session {
    link: u64,
    stream: Option<UnixStream>,
    nonce: u64,
    reached: u64,
    theirs: BTreeMap<ResourceKey, Held>,
    /// The dataplane can be told of objects ahead.
    prepares: bool,
    /// When a sign of life is due, to a dataplane that understands one.
    sign_due: Option<Instant>,
    /// What it was told of ahead, with versions, until an update brings it in force.
    prepared: BTreeMap<ResourceKey, String>,
    refused: BTreeMap<ResourceKey, Refused>,
    /// When something was refused last.
    refused_at: Option<Instant>,
    /// Refused versions go with the next update.
    ask_again: bool,
    /// Sent and not answered yet, oldest first: one update, or the parts of one.
    in_flight: VecDeque<InFlight>,
    /// Keys to compare before the next update.
    changed: BTreeSet<ResourceKey>,
    /// Compare everything before the next update.
    compare_all: bool,
    /// An update must go out even when nothing differs: its answer tells the generation of what is held.
    greet: bool,
    /// Keys whose generation is not reached yet.
    waiting: BTreeMap<u64, BTreeSet<ResourceKey>>,
    /// Removals held back until they are confirmed.
    held_back: BTreeSet<ResourceKey>,
    confirmed: bool,
    /// Policies and sets that have changed and stay as they were, since something about them is not certain.
    postponed: BTreeSet<ResourceKey>,
    synced: bool,
    /// Since when a question of the read side is on its way.
    asked: Option<Instant>,
}

impl Session {
    /// A connection stands: everything is compared anew.
    pub fn connected(&mut self, link: u64, stream: UnixStream, holds: Versions, reached: u64, prepares: bool) {
        *self = Session {
            link,
            stream: Some(stream),
            nonce: self.nonce,
            reached,
            prepares: prepares && holds.is_empty(),
            sign_due: prepares.then(|| Instant::now() + SIGN_AFTER),
            theirs: holds.into_iter().map(|(key, version)| (key, Held { version, generation: None })).collect(),
            compare_all: true,
            greet: true,
            ..Session::default()
        };
    }

    /// The connection is gone; false when it was not the present one.
    pub fn lost(&mut self, link: u64) -> bool {
        let present = link >= self.link;
        if present {
            *self = Session { nonce: self.nonce, link, ..Session::default() };
        }
        present
    }

    /// Whether a connection stands.
    pub fn is_connected(&self) -> bool {
        self.stream.is_some()
    }

    /// Whether the dataplane has answered the first update of this connection.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// Whether news of `link` is about the present connection.
    pub fn is_current(&self, link: u64) -> bool {
        self.stream.is_some() && link == self.link
    }

    /// How long an answer is overdue, once that is worth telling.
    pub fn silent_for(&self) -> Option<Duration> {
        let since = self.in_flight.front().map(|in_flight| in_flight.since).into_iter().chain(self.asked).min()?;
        Some(since.elapsed()).filter(|silent| *silent > SILENCE_TOLD_AFTER)
    }

    /// These resources may have changed.
    pub fn touch(&mut self, keys: impl IntoIterator<Item = ResourceKey>) {
        self.changed.extend(keys);
    }

    /// Everything is to be compared again.
    pub fn touch_all(&mut self) {
        self.compare_all = true;
    }

    /// An operator confirms the removals that are held back.
    pub fn confirm(&mut self) {
        if !self.held_back.is_empty() {
            (self.confirmed, self.compare_all) = (true, true);
        }
    }

    /// Removals held back.
    pub fn held_back(&self) -> &BTreeSet<ResourceKey> {
        &self.held_back
    }

    /// Policies and sets whose change waits.
    pub fn postponed(&self) -> &BTreeSet<ResourceKey> {
        &self.postponed
    }

    /// Versions the dataplane refused.
    pub fn refused(&self) -> &BTreeMap<ResourceKey, Refused> {
        &self.refused
    }

    /// Has refused versions sent again, a while after they were refused.
    pub fn ask_again(&mut self, now: Instant) {
        let due = self.refused_at.is_some_and(|at| now.saturating_duration_since(at) >= ASK_AGAIN_AFTER);
        if due && self.in_flight.is_empty() && !self.refused.is_empty() {
            self.ask_again = true;
            self.changed.extend(self.refused.keys().cloned());
        }
    }

    /// Where a resource stands with the dataplane.
    pub fn standing(&self, key: &ResourceKey) -> Standing {
        match self.theirs.get(key) {
            None => Standing::Absent,
            Some(held) => Standing::Held {
                version: held.version.clone(),
                reached: held.generation.filter(|generation| *generation <= self.reached),
            },
        }
    }

    /// Whether nothing about a resource is on its way: neither to the dataplane nor from there to its workers.
    pub fn is_settled(&self, key: &ResourceKey) -> bool {
        let sent = self.in_flight.iter().any(|in_flight| in_flight.sent.contains_key(key));
        let awaited = self.waiting.values().any(|keys| keys.contains(key));
        self.synced && !sent && !awaited && !self.changed.contains(key) && !self.compare_all
    }

    /// Says that control is here, if that is due: whoever looks at the dataplane can then tell one that has nothing to say
    /// from one that hangs. Nothing changes by it, and there is no answer; so a question goes with it, where none is on its
    /// way: a dataplane that hangs while there is nothing to tell it is to be noticed too.
    ///
    /// # Errors
    /// When the stream fails; the connection is then closed and its reader will tell.
    pub fn give_sign(&mut self, now: Instant) -> io::Result<()> {
        let Some(stream) = self.stream.as_ref().filter(|_| self.sign_due.is_some_and(|due| now >= due)) else {
            return Ok(());
        };
        let mut stream = stream.try_clone()?;
        self.sign_due = Some(now + SIGN_AFTER);
        frame::write(&mut stream, &Preparing::Prepare(Prepare { resources: Vec::new() }))
            .inspect_err(|_| drop(stream.shutdown(std::net::Shutdown::Both)))?;
        self.ask(Show::Control).map(drop)
    }

    /// Asks something of the read side; the answer comes as news. While an update is on its way nothing is asked, since a
    /// dataplane answers in order.
    ///
    /// # Errors
    /// When the stream fails; the connection is then closed and its reader will tell.
    pub fn ask(&mut self, question: Show) -> io::Result<bool> {
        let Some(stream) =
            self.stream.as_ref().filter(|_| self.in_flight.is_empty() && self.synced && self.asked.is_none())
        else {
            return Ok(false);
        };
        let mut stream = stream.try_clone()?;
        frame::write(&mut stream, &Request::Show(question))
            .inspect_err(|_| drop(stream.shutdown(std::net::Shutdown::Both)))?;
        self.asked = Some(Instant::now());
        Ok(true)
    }

    /// What was asked has been answered, or refused; whether anything was asked.
    pub fn answered(&mut self) -> bool {
        self.asked.take().is_some()
    }

    /// Tells a dataplane that holds nothing of what has changed, so that it can prepare for the first update. Nothing comes
    /// in force by that.
    ///
    /// # Errors
    /// When the stream fails; the connection is then closed and its reader will tell.
    pub fn prepare(&mut self, wanted: &impl Wanted) -> io::Result<()> {
        if !self.can_prepare() {
            return Ok(());
        }
        let changed = std::mem::take(&mut self.changed);
        let news = changed.iter().filter_map(|key| wanted.all().get_key_value(key));
        self.send_ahead(news)
    }

    /// Whether the dataplane is one that prepares, and has not been told of an update yet.
    fn can_prepare(&self) -> bool {
        self.prepares && self.greet
    }

    fn send_ahead<'a>(&mut self, resources: impl Iterator<Item = (&'a ResourceKey, &'a Resource)>) -> io::Result<()> {
        let Some(stream) = self.stream.as_ref().filter(|_| self.can_prepare()) else { return Ok(()) };
        let mut stream = stream.try_clone()?;
        let mut news =
            resources.filter(|(key, resource)| self.prepared.get(*key) != Some(&resource.version)).peekable();
        let mut told = Vec::new();
        while news.peek().is_some() {
            let (keys, resources): (Vec<_>, Vec<_>) = news.by_ref().take(PREPARED_AT_ONCE).unzip();
            told.extend(keys.into_iter().zip(resources.iter().map(|resource| resource.version.clone())));
            frame::write(&mut stream, &Preparing::Prepare(Prepare { resources }))
                .inspect_err(|_| drop(stream.shutdown(std::net::Shutdown::Both)))?;
        }
        self.prepared.extend(told.into_iter().map(|(key, version)| (key.clone(), version)));
        Ok(())
    }

    /// Sends what differs, unless an answer is still awaited. Returns whether an update went out.
    ///
    /// # Errors
    /// When the stream fails; the connection is then closed and its reader will tell.
    pub fn push(&mut self, wanted: &impl Wanted) -> io::Result<bool> {
        if !self.in_flight.is_empty() {
            return Ok(false);
        }
        let Some(stream) = &self.stream else { return Ok(false) };
        let mut stream = stream.try_clone()?;
        // So many are told ahead even if all of them are known already: the dataplane works on each while the next come.
        if !self.prepared.is_empty() || self.can_prepare() && wanted.all().len() > PREPARED_AT_ONCE {
            return self.bring_in_force(wanted, &mut stream);
        }
        let Some(update) = self.next(wanted) else { return Ok(false) };
        for part in update.parts(RESOURCES_AT_ONCE) {
            self.note(&part);
            if let Err(error) = frame::write(&mut stream, &Request::Update(part)) {
                // Half a message may be out: this stream is of no more use.
                let _ = stream.shutdown(std::net::Shutdown::Both);
                return Err(error);
            }
        }
        Ok(true)
    }

    /// The first update, to a dataplane that holds nothing and is told of objects ahead.
    fn bring_in_force(&mut self, wanted: &impl Wanted, stream: &mut UnixStream) -> io::Result<bool> {
        let ours = wanted.all();
        self.send_ahead(ours.iter())?;
        (self.compare_all, self.greet) = (false, false);
        self.changed.clear();
        let (sent, gone): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.prepared)
            .into_iter()
            .map(|(key, version)| (key, Some(version)))
            .partition(|(key, _)| ours.contains_key(key));
        self.nonce += 1;
        let (nonce, since) = (self.nonce, Instant::now());
        self.in_flight.push_back(InFlight { nonce, full: true, since, sent });
        // All there is: what somebody before us told, and was heard after we were greeted, is not.
        let update =
            Update { nonce, prepared: true, full: true, removed: gone.into_keys().collect(), ..Update::default() };
        frame::write(stream, &Request::Update(update))
            .inspect_err(|_| drop(stream.shutdown(std::net::Shutdown::Both)))?;
        Ok(true)
    }

    /// The next update.
    fn next(&mut self, wanted: &impl Wanted) -> Option<Update> {
        let ours = wanted.all();
        let whole = std::mem::take(&mut self.compare_all);
        let candidates: BTreeSet<ResourceKey> = if whole {
            self.changed.clear();
            ours.keys().chain(self.theirs.keys()).cloned().collect()
        } else {
            std::mem::take(&mut self.changed)
        };
        let refused_too = std::mem::take(&mut self.ask_again);
        let mut update = Update::default();
        for key in &candidates {
            let held = self.theirs.get(key);
            self.postponed.remove(key);
            if let Some(held) = held
                && wanted.uncertain(key)
            {
                if matches!(key.kind, Kind::Policy | Kind::IdentitySet)
                    && ours.get(key).is_some_and(|ours| ours.version != held.version)
                {
                    self.postponed.insert(key.clone());
                }
                continue;
            }
            if !ours.contains_key(key) {
                self.refused.remove(key); // nobody wants it any more
            }
            match ours.get(key) {
                Some(resource) if held.is_none_or(|held| held.version != resource.version) => {
                    let again = self.refused.get(key).is_some_and(|refused| refused.version == resource.version);
                    if refused_too || !again {
                        update.resources.push(resource.clone());
                    }
                }
                // It is again what it was before it was refused.
                Some(_) => drop(self.refused.remove(key)),
                None if held.is_some() => update.removed.push(key.clone()),
                None => {}
            }
        }
        if whole {
            self.hold_back(&mut update.removed, wanted);
        } else {
            update.removed.retain(|key| !self.held_back.contains(key) || wanted.removed_knowingly(key));
        }
        // What is there again, or stays for another reason, waits for nobody.
        let waits =
            |key: &ResourceKey| self.theirs.contains_key(key) && !ours.contains_key(key) && !wanted.uncertain(key);
        self.held_back.retain(waits);
        let nothing = update.resources.is_empty() && update.removed.is_empty();
        if nothing && !std::mem::take(&mut self.greet) {
            return None;
        }
        self.greet = false;
        // Held by nobody: say that this is all there is.
        update.full = self.theirs.is_empty() && !ours.is_empty() && update.resources.len() == ours.len();
        update.nonce = self.nonce + 1;
        Some(update)
    }

    /// An update goes out.
    fn note(&mut self, update: &Update) {
        self.nonce = update.nonce;
        let sent = update.resources.iter().map(|resource| (resource.key(), Some(resource.version.clone())));
        let removed = update.removed.iter().map(|key| (key.clone(), None));
        self.in_flight.push_back(InFlight {
            nonce: update.nonce,
            full: update.full,
            since: Instant::now(),
            sent: sent.chain(removed).collect(),
        });
    }

    /// After a restart of control, what the dataplane holds and the source does not know is more likely a source that
    /// lacks something than a wish: more than half of a kind waits for a person, and with it whatever else is not known any
    /// more, and so does the gateway itself, without which nothing is served, unless another takes its place.
    fn hold_back(&mut self, removed: &mut Vec<ResourceKey>, wanted: &impl Wanted) {
        let confirmed = std::mem::take(&mut self.confirmed);
        self.held_back.clear();
        if confirmed || wanted.authoritative() {
            return;
        }
        let is_unknown = |key: &&ResourceKey| !wanted.removed_knowingly(key);
        let mut too_many = false;
        for kind in Kind::ALL.into_iter().filter(|kind| !matches!(kind, Kind::Identity | Kind::IdentitySet)) {
            let unknown: Vec<ResourceKey> =
                removed.iter().filter(|key| key.kind == kind).filter(is_unknown).cloned().collect();
            let present = self.theirs.keys().filter(|key| key.kind == kind).count();
            let last_gateway = kind == Kind::Gateway && !wanted.all().keys().any(|key| key.kind == kind);
            let many = unknown.len() >= REMOVALS_HELD_MIN && unknown.len() * 2 > present;
            too_many |= many;
            if last_gateway {
                self.held_back.extend(unknown);
            }
        }
        if too_many {
            self.held_back.extend(removed.iter().filter(is_unknown).cloned());
        }
        // What a policy that stays means, stays with it: without its subjects it would be about nobody.
        if self.held_back.iter().any(|key| key.kind == Kind::Policy) {
            let is_meaning = |kind| matches!(kind, Kind::Identity | Kind::IdentitySet | Kind::Pod);
            let meaning = removed.iter().filter(|key| is_meaning(key.kind));
            self.held_back.extend(meaning.cloned());
        }
        removed.retain(|key| !self.held_back.contains(key));
    }

    /// The dataplane has answered an update. Returns the keys whose standing changed.
    pub fn accepted(&mut self, accepted: Accepted) -> BTreeSet<ResourceKey> {
        if self.in_flight.front().is_none_or(|in_flight| in_flight.nonce != accepted.nonce) {
            return BTreeSet::new();
        }
        let Some(in_flight) = self.in_flight.pop_front() else { return BTreeSet::new() };
        self.synced |= self.in_flight.is_empty();
        let mut touched = BTreeSet::new();
        let mut reasons: BTreeMap<ResourceKey, (String, String)> = accepted
            .rejected
            .into_iter()
            .map(|rejection| (rejection.key, (rejection.version, rejection.reason)))
            .collect();
        if in_flight.full {
            self.theirs.retain(|key, _| in_flight.sent.contains_key(key));
        }
        for (key, version) in in_flight.sent {
            touched.insert(key.clone());
            if let Some((version, reason)) = reasons.remove(&key) {
                self.refused.insert(key, Refused { version, reason });
                self.refused_at = Some(Instant::now());
                continue;
            }
            self.refused.remove(&key);
            match version {
                Some(version) => drop(self.theirs.insert(key, Held { version, generation: Some(accepted.generation) })),
                None => drop(self.theirs.remove(&key)),
            }
        }
        for (key, held) in self.theirs.iter_mut().filter(|(_, held)| held.generation.is_none()) {
            held.generation = Some(accepted.generation);
            touched.insert(key.clone());
        }
        if accepted.generation > self.reached {
            self.waiting.entry(accepted.generation).or_default().extend(touched.iter().cloned());
        }
        touched
    }

    /// The workers have reached a generation. Returns the keys whose standing changed.
    pub fn reached(&mut self, generation: u64) -> BTreeSet<ResourceKey> {
        self.reached = self.reached.max(generation);
        let later = self.waiting.split_off(&(self.reached + 1));
        std::mem::replace(&mut self.waiting, later).into_values().flatten().collect()
    }

    /// The dataplane could not make sense of what it got: give the connection up and start anew.
    pub fn give_up(&mut self) {
        if let Some(stream) = &self.stream {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

#[cfg(test)]
mod tests {
    use tidegate_api::message::Rejection;
    use tidegate_api::resource::{Body, Service};

    use super::*;

    struct Fixed(BTreeMap<ResourceKey, Resource>);

    impl Wanted for Fixed {
        fn all(&self) -> &BTreeMap<ResourceKey, Resource> {
            &self.0
        }

        fn uncertain(&self, _: &ResourceKey) -> bool {
            false
        }

        fn removed_knowingly(&self, _: &ResourceKey) -> bool {
            true
        }

        fn authoritative(&self) -> bool {
            false
        }
    }

    #[test]
    fn a_refused_version_is_sent_again_after_a_while_and_only_then() {
        let resource = Resource { name: "a".into(), version: "1".into(), body: Body::Service(Service::default()) };
        let key = resource.key();
        let wanted = Fixed(BTreeMap::from([(key.clone(), resource)]));
        let (stream, _other) = UnixStream::pair().unwrap();
        let mut session = Session::default();
        session.connected(1, stream, Versions::new(), 0, false);
        let refuse = |session: &mut Session| {
            let nonce = session.nonce;
            let reason = "vtep_v4.underlay: is not here yet".to_owned();
            let rejected = vec![Rejection { key: key.clone(), version: "1".into(), reason }];
            session.accepted(Accepted { nonce, generation: 1, rejected });
        };
        assert!(session.push(&wanted).unwrap());
        refuse(&mut session);
        session.touch([key.clone()]);
        session.ask_again(Instant::now());
        assert!(!session.push(&wanted).unwrap(), "too early");
        session.ask_again(Instant::now() + ASK_AGAIN_AFTER);
        assert!(session.push(&wanted).unwrap());
        session.ask_again(Instant::now() + ASK_AGAIN_AFTER);
        assert!(!session.push(&wanted).unwrap(), "an answer is awaited");
        let nonce = session.nonce;
        session.accepted(Accepted { nonce, generation: 2, rejected: vec![] });
        session.ask_again(Instant::now() + ASK_AGAIN_AFTER);
        assert!(session.refused().is_empty() && !session.push(&wanted).unwrap(), "it is held now");
    }

    #[test]
    fn what_is_again_as_it_was_before_it_was_refused_is_refused_no_more() {
        let resource = |version: &str| Resource {
            name: "a".into(),
            version: version.into(),
            body: Body::Service(Service::default()),
        };
        let key = resource("1").key();
        let wanted = |version| Fixed(BTreeMap::from([(key.clone(), resource(version))]));
        let (stream, _other) = UnixStream::pair().unwrap();
        let mut session = Session::default();
        session.connected(1, stream, Versions::from([(key.clone(), "1".into())]), 0, false);
        session.touch([key.clone()]);
        assert!(session.push(&wanted("2")).unwrap());
        let rejected = vec![Rejection { key: key.clone(), version: "2".into(), reason: "no".into() }];
        session.accepted(Accepted { nonce: session.nonce, generation: 1, rejected });
        assert!(session.refused().contains_key(&key));
        session.touch([key.clone()]);
        assert!(!session.push(&wanted("1")).unwrap(), "the dataplane has it");
        assert!(session.refused().is_empty());
    }

    #[test]
    fn everything_at_once_goes_in_parts_and_each_part_is_answered() {
        let resource = |n: usize| Resource {
            name: format!("n/{n:06}"),
            version: "1".into(),
            body: Body::Service(Service::default()),
        };
        let all: BTreeMap<_, _> = (0..RESOURCES_AT_ONCE * 2 + 1).map(resource).map(|r| (r.key(), r)).collect();
        let (count, wanted) = (all.len(), Fixed(all));
        let (stream, mut other) = UnixStream::pair().unwrap();
        let reader = std::thread::spawn(move || {
            let read = |_| frame::read::<Request>(&mut other).unwrap();
            let parts: Vec<_> = (0..3).map(read).collect();
            parts
                .into_iter()
                .map(|part| if let Request::Update(update) = part { update } else { panic!("{part:?}") })
                .collect::<Vec<_>>()
        });
        let mut session = Session::default();
        session.connected(1, stream, Versions::new(), 0, false);
        assert!(session.push(&wanted).unwrap());
        let parts = reader.join().unwrap();
        assert_eq!(parts.iter().map(|part| part.resources.len()).sum::<usize>(), count);
        assert!(parts.iter().all(|part| !part.full), "what is not in a part is not gone");
        for (number, part) in parts.iter().enumerate() {
            assert!(!session.is_synced() && !session.push(&wanted).unwrap(), "an answer is awaited");
            let touched =
                session.accepted(Accepted { nonce: part.nonce, generation: number as u64 + 1, rejected: vec![] });
            assert_eq!(touched.len(), part.resources.len());
        }
        assert!(session.is_synced() && !session.push(&wanted).unwrap(), "all is held");
    }

    #[test]
    fn what_was_told_ahead_comes_in_force_with_the_first_update() {
        let resource = |name: &str, version: &str| {
            let body = Body::Service(Service::default());
            let resource = Resource { name: name.into(), version: version.into(), body };
            (resource.key(), resource)
        };
        let mut wanted = Fixed(BTreeMap::from([resource("a", "1"), resource("b", "1"), resource("c", "1")]));
        let (stream, mut other) = UnixStream::pair().unwrap();
        let mut session = Session::default();
        session.connected(1, stream, Versions::new(), 0, true);
        session.touch(wanted.0.keys().cloned().collect::<Vec<_>>());
        session.prepare(&wanted).unwrap();
        session.prepare(&wanted).unwrap(); // nothing has changed
        // Of what was told one is gone, one is another, one is as it was; and one is new.
        wanted.0.remove(&resource("a", "").0);
        wanted.0.extend([resource("b", "2"), resource("d", "1")]);
        assert!(session.push(&wanted).unwrap() && !session.is_synced());
        let mut told = |what: &str| match frame::read::<Request>(&mut other).unwrap() {
            Request::Prepare(told) => {
                told.resources.into_iter().map(|resource| resource.name + &resource.version).collect::<Vec<_>>()
            }
            other => panic!("{what}: {other:?}"),
        };
        assert_eq!(told("ahead"), ["a1", "b1", "c1"]);
        assert_eq!(told("with the update"), ["b2", "d1"]);
        let Request::Update(update) = frame::read(&mut other).unwrap() else { panic!("no update") };
        assert!(update.prepared && update.full && update.resources.is_empty());
        assert_eq!(update.removed, [resource("a", "").0]);
        let touched = session.accepted(Accepted { nonce: update.nonce, generation: 1, rejected: vec![] });
        assert_eq!(touched, wanted.0.keys().cloned().collect());
        assert!(session.is_synced() && !session.push(&wanted).unwrap(), "all is held");
        session.prepare(&wanted).unwrap(); // from here on updates tell everything
        drop(session);
        assert!(frame::read::<Request>(&mut other).is_err());
    }

    #[test]
    fn a_dataplane_that_holds_nothing_is_told_of_very_many_ahead() {
        let resource = |n: usize| Resource {
            name: format!("n/{n:06}"),
            version: "1".into(),
            body: Body::Service(Service::default()),
        };
        let all: BTreeMap<_, _> = (0..=PREPARED_AT_ONCE).map(resource).map(|r| (r.key(), r)).collect();
        let wanted = Fixed(all);
        let (stream, mut other) = UnixStream::pair().unwrap();
        let reader = std::thread::spawn(move || {
            let mut ahead = Vec::new();
            loop {
                match frame::read::<Request>(&mut other).unwrap() {
                    Request::Prepare(told) => ahead.push(told.resources.len()),
                    Request::Update(update) => return (ahead, update),
                    other => panic!("{other:?}"),
                }
            }
        });
        let mut session = Session::default();
        session.connected(1, stream, Versions::new(), 0, true);
        assert!(session.push(&wanted).unwrap() && !session.is_synced());
        let (ahead, update) = reader.join().unwrap();
        assert_eq!(ahead, [PREPARED_AT_ONCE, 1]);
        assert!(update.prepared && update.full && update.resources.is_empty() && update.removed.is_empty());
        session.accepted(Accepted { nonce: update.nonce, generation: 1, rejected: vec![] });
        assert!(session.is_synced() && !session.push(&wanted).unwrap(), "all is held");
    }

    #[test]
    fn nothing_is_told_ahead_to_who_holds_something_or_does_not_know_how() {
        let resource = Resource { name: "a".into(), version: "2".into(), body: Body::Service(Service::default()) };
        let key = resource.key();
        let wanted = Fixed(BTreeMap::from([(key.clone(), resource)]));
        for (holds, prepares) in [(Versions::from([(key.clone(), "1".into())]), true), (Versions::new(), false)] {
            let (stream, mut other) = UnixStream::pair().unwrap();
            let mut session = Session::default();
            session.connected(1, stream, holds, 0, prepares);
            session.touch([key.clone()]);
            session.prepare(&wanted).unwrap();
            assert!(session.push(&wanted).unwrap());
            let Request::Update(update) = frame::read(&mut other).unwrap() else { panic!("no update") };
            assert!(!update.prepared && update.resources.len() == 1);
        }
    }

    #[test]
    fn signs_of_life_go_to_a_dataplane_that_understands_them_however_little_there_is_to_say() {
        for (prepares, expected) in [(true, 2), (false, 0)] {
            let (stream, mut other) = UnixStream::pair().unwrap();
            let mut session = Session::default();
            session.give_sign(Instant::now()).unwrap(); // to nobody
            session.connected(1, stream, Versions::new(), 0, prepares);
            let start = Instant::now();
            // Twice in eleven seconds, and not before it is time.
            for second in [0, 1, 5, 6, 7, 10, 11].map(Duration::from_secs) {
                session.give_sign(start + second + Duration::from_millis(100)).unwrap();
            }
            assert!(session.lost(1));
            let mut signs = 0;
            while let Ok(request) = frame::read::<Request>(&mut other) {
                assert_eq!(request, Request::Prepare(Prepare { resources: vec![] }));
                signs += 1;
            }
            assert_eq!(signs, expected);
        }
    }

    #[test]
    fn a_dataplane_that_hangs_while_there_is_nothing_to_tell_it_is_noticed() {
        let (stream, mut other) = UnixStream::pair().unwrap();
        let mut session = Session::default();
        session.connected(1, stream, Versions::new(), 0, true);
        assert!(session.push(&Fixed(BTreeMap::new())).unwrap());
        session.accepted(Accepted { nonce: session.nonce, generation: 1, rejected: vec![] });
        let start = Instant::now();
        // One question is enough until it is answered.
        for seconds in [6, 12] {
            session.give_sign(start + Duration::from_secs(seconds)).unwrap();
        }
        assert!(matches!(frame::read::<Request>(&mut other).unwrap(), Request::Update(_)));
        let mut next = || frame::read::<Request>(&mut other).unwrap();
        let sign = Request::Prepare(Prepare { resources: vec![] });
        assert_eq!([next(), next(), next()], [sign.clone(), Request::Show(Show::Control), sign.clone()]);
        assert_eq!(session.silent_for(), None, "not yet worth telling");
        session.asked = start.checked_sub(SILENCE_TOLD_AFTER + Duration::from_secs(1));
        assert!(session.silent_for().is_some());
        assert!(session.answered() && session.silent_for().is_none());
        session.give_sign(start + Duration::from_secs(18)).unwrap();
        assert_eq!([next(), next()], [sign, Request::Show(Show::Control)]);
    }

    #[test]
    fn a_refusal_is_forgotten_with_its_object() {
        let resource = Resource { name: "a".into(), version: "1".into(), body: Body::Service(Service::default()) };
        let key = resource.key();
        let mut wanted = Fixed(BTreeMap::from([(key.clone(), resource)]));
        let (stream, _other) = UnixStream::pair().unwrap();
        let mut session = Session::default();
        session.connected(1, stream, Versions::new(), 0, false);
        assert!(session.push(&wanted).unwrap());
        let rejected = vec![Rejection { key: key.clone(), version: "1".into(), reason: "no".into() }];
        session.accepted(Accepted { nonce: session.nonce, generation: 1, rejected });
        assert!(session.refused().contains_key(&key));
        wanted.0.clear();
        session.touch([key]);
        assert!(!session.push(&wanted).unwrap(), "the dataplane never had it");
        assert!(session.refused().is_empty());
    }
}
