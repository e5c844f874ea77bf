//! Which one of several control processes may write: the holder of a Lease (C-020).
//!
//! Owns the campaign for the Lease and the time until which it may be relied on. Writing needs the Lease, serving does
//! not: every gateway follows the API by itself. The rules are those of Kubernetes' own components. A holder writes only
//! until `renew` has passed since the *beginning* of its last successful renewal; another takes over only after it has
//! itself watched the Lease stand unchanged for `duration`, which is longer. Only differences of one machine's monotonic
//! clock are compared, so clocks that disagree do no harm, and a process that was stopped and wakes up finds its time
//! over before it writes.
//!
//! A control whose own dataplane is gone cannot tell what works. It offers the Lease to the others, and takes it back
//! only if none of them has wanted it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::PostParams;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::source::kubernetes::words;

/// Times that the others try for a Lease that was offered to them before it is taken back.
const OTHERS_TRY: u32 = 3;
/// Lengths of the Lease after which it is offered again.
const OFFERED_EVERY: u32 = 8;
/// Writes on their way are waited for so long when the Lease is given away.
const WRITES_END_WITHIN: Duration = Duration::from_millis(1500);

/// Which Lease, as whom, and how patiently.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Who this is: unique among all who campaign.
    pub identity: String,
    /// Times.
    pub timing: Timing,
}

/// How long a Lease lasts; each is longer than the next.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Another may take it when it has not been renewed for so long.
    pub duration: Duration,
    /// The holder stops writing when it could not renew for so long.
    pub renew: Duration,
    /// It is renewed, or tried for, so often.
    pub retry: Duration,
}

impl Default for Timing {
    /// C-020.
    fn default() -> Self {
        Timing { duration: Duration::from_secs(15), renew: Duration::from_secs(10), retry: Duration::from_secs(2) }
    }
}

/// Until when the Lease may be relied on; read by every write right before it is sent.
#[derive(Debug)]
pub struct Tenure {
    base: Instant,
    /// Milliseconds after `base`.
    until_ms: AtomicU64,
    /// Number of the present, or else the last, time in office; they grow.
    term: AtomicU64,
    /// Writes on their way.
    writing: AtomicU64,
}

/// A write on its way: the Lease is not given away before it has ended.
#[derive(Debug)]
pub struct Writing<'a>(&'a Tenure);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.writing.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Default for Tenure {
    fn default() -> Self {
        Tenure {
            base: Instant::now(),
            until_ms: AtomicU64::new(0),
            term: AtomicU64::new(0),
            writing: AtomicU64::new(0),
        }
    }
}

impl Tenure {
    /// Whether something decided in `term` may be written at `now`.
    pub fn covers(&self, term: u64, now: Instant) -> bool {
        self.term.load(Ordering::Acquire) == term && self.since_base(now) < self.until_ms.load(Ordering::Acquire)
    }

    /// Leave to write now what was decided in `term`.
    pub fn write(&self, term: u64) -> Option<Writing<'_>> {
        self.writing.fetch_add(1, Ordering::AcqRel);
        let writing = Writing(self);
        self.covers(term, Instant::now()).then_some(writing)
    }

    fn since_base(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.base).as_millis()).unwrap_or(u64::MAX)
    }

    fn extend(&self, until: Instant) {
        self.until_ms.store(self.since_base(until), Ordering::Release);
    }

    fn begin(&self, until: Instant) -> u64 {
        let term = self.term.load(Ordering::Acquire) + 1;
        self.term.store(term, Ordering::Release);
        self.extend(until);
        term
    }

    fn end(&self) {
        self.until_ms.store(0, Ordering::Release);
    }
}

/// What is told of the campaign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// The Lease is ours; everything decided from now on carries this number.
    Taken(u64),
    /// It is not ours any more.
    Lost,
    /// Why it cannot be had or kept; `None`: that is over.
    Trouble(Option<String>),
    /// The server does not let us write this; `why` is what it says, `None`: that is over.
    Denied {
        /// What it takes: verb and resource.
        right: &'static str,
        /// What the server says.
        why: Option<String>,
    },
}

/// The Lease as it was last seen.
struct Seen {
    lease: api::Lease,
    /// When this version was seen first, on our own clock.
    since: Instant,
}

/// One campaign.
pub(crate) struct Campaign<'a, T: FnMut(Word)> {
    api: Api<api::Lease>,
    settings: Settings,
    tenure: &'a Tenure,
    tell: T,
    seen: Option<Seen>,
    /// When our last successful renewal began.
    renewed: Option<Instant>,
    /// When it is offered to others, if this process should not hold it.
    offer_at: Instant,
    /// What was told last.
    troubled: Option<String>,
}

impl<'a, T: FnMut(Word)> Campaign<'a, T> {
    pub(crate) fn new(client: kube::Client, settings: Settings, tenure: &'a Tenure, tell: T) -> Self {
        let api = Api::namespaced(client, &settings.namespace);
        Campaign { api, settings, tenure, tell, seen: None, renewed: None, offer_at: Instant::now(), troubled: None }
    }

    /// Campaigns until `end` says so, and then gives the Lease away. `willing` says whether this process should hold it.
    pub(crate) async fn run(mut self, mut willing: watch::Receiver<bool>, mut end: watch::Receiver<bool>) {
        let timing = self.settings.timing;
        loop {
            let wants = *willing.borrow_and_update();
            if !wants && self.renewed.is_some() && Instant::now() >= self.offer_at {
                self.give_away().await;
                self.offer_at = Instant::now() + timing.duration * OFFERED_EVERY;
            }
            // A renewal that hangs must not keep us from noticing that the time is over.
            let attempt = timeout(timing.renew / 2, self.attempt(wants)).await;
            match attempt {
                Ok(Ok(())) => self.trouble(None),
                Ok(Err(error)) => {
                    let (namespace, name) = (&self.settings.namespace, &self.settings.name);
                    let why = format!("the Lease {namespace}/{name}: {}", words(&error));
                    self.trouble(Some(why));
                }
                Err(_) => self.trouble(Some("the API server does not answer about the Lease".into())),
            }
            let now = Instant::now();
            if self.renewed.is_some_and(|renewed| now.saturating_duration_since(renewed) >= timing.renew) {
                self.lose();
            }
            let deadline = self.renewed.map(|renewed| (renewed + timing.renew).saturating_duration_since(now));
            let wait = deadline.map_or(timing.retry, |deadline| timing.retry.min(deadline));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = willing.changed() => {}
                _ = end.wait_for(|end| *end) => break,
            }
        }
        if self.renewed.is_some() {
            self.give_away().await;
        }
    }

    fn trouble(&mut self, why: Option<String>) {
        if self.troubled != why {
            self.troubled.clone_from(&why);
            (self.tell)(Word::Trouble(why));
        }
    }

    fn lose(&mut self) {
        self.tenure.end();
        if self.renewed.take().is_some() {
            (self.tell)(Word::Lost);
        }
    }

    /// Renews the Lease, or takes it if it can be taken.
    async fn attempt(&mut self, wants: bool) -> kube::Result<()> {
        let begun = Instant::now();
        if self.renewed.is_none() || self.seen.is_none() {
            match self.api.get_opt(&self.settings.name).await? {
                None if !wants => return Ok(()),
                None => {
                    let lease = self.lease(None);
                    let made = self.api.create(&PostParams::default(), &lease).await;
                    return self.written(made, begun);
                }
                Some(lease) => self.see(lease, begun),
            }
        }
        let Some(seen) = &self.seen else { return Ok(()) };
        if !self.is_ours(&seen.lease) && !self.is_free(seen, begun, wants) {
            self.lose();
            return Ok(());
        }
        let lease = self.lease(Some(&seen.lease));
        let replaced = self.api.replace(&self.settings.name, &PostParams::default(), &lease).await;
        self.written(replaced, begun)
    }

    fn written(&mut self, result: kube::Result<api::Lease>, begun: Instant) -> kube::Result<()> {
        match result {
            Ok(lease) => {
                self.see(lease, begun);
                let until = begun + self.settings.timing.renew;
                match self.renewed.replace(begun) {
                    Some(_) => self.tenure.extend(until),
                    None => {
                        let term = self.tenure.begin(until);
                        (self.tell)(Word::Taken(term));
                    }
                }
                Ok(())
            }
            // Somebody else wrote it: look again at the next attempt.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                self.forget_version();
                Ok(())
            }
            Err(error) => {
                self.forget_version();
                Err(error)
            }
        }
    }

    /// What was seen may be old: it is looked at anew, and only its age is remembered.
    fn forget_version(&mut self) {
        if self.renewed.is_some() {
            self.seen = None;
        }
    }

    fn see(&mut self, lease: api::Lease, now: Instant) {
        let version = |lease: &api::Lease| lease.metadata.resource_version.clone();
        let since = match &self.seen {
            Some(seen) if version(&seen.lease) == version(&lease) => seen.since,
            _ => now,
        };
        self.seen = Some(Seen { lease, since });
    }

    fn is_ours(&self, lease: &api::Lease) -> bool {
        holder(lease) == Some(&*self.settings.identity)
    }

    /// Whether it may be taken: given away, or not renewed for as long as its holder has said.
    fn is_free(&self, seen: &Seen, now: Instant, wants: bool) -> bool {
        let unchanged = now.saturating_duration_since(seen.since);
        let free_after = match holder(&seen.lease) {
            None => Duration::ZERO,
            Some(_) => {
                let told = seen.lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
                let told = told.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
                told.unwrap_or_default().max(self.settings.timing.duration)
            }
        };
        // Who should rather not hold it waits until it is certain that nobody else wants it.
        let reluctance = if wants { Duration::ZERO } else { self.settings.timing.retry * OTHERS_TRY };
        unchanged >= free_after + reluctance
    }

    /// The Lease as it is to be written, held by us.
    fn lease(&self, before: Option<&api::Lease>) -> api::Lease {
        let now = MicroTime(Timestamp::now());
        let spec = before.and_then(|lease| lease.spec.clone());
        let ours = before.is_some_and(|lease| self.is_ours(lease)) && self.renewed.is_some();
        let transitions = spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or(0);
        let acquired = spec.as_ref().and_then(|spec| spec.acquire_time.clone()).filter(|_| ours);
        let metadata = match before {
            Some(lease) => lease.metadata.clone(), // with the version: one write of several wins
            None => ObjectMeta {
                name: Some(self.settings.name.clone()),
                namespace: Some(self.settings.namespace.clone()),
                ..ObjectMeta::default()
            },
        };
        api::Lease {
            metadata,
            spec: Some(api::LeaseSpec {
                holder_identity: Some(self.settings.identity.clone()),
                lease_duration_seconds: Some(whole_seconds(self.settings.timing.duration)),
                acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
                renew_time: Some(now),
                lease_transitions: Some(if ours || before.is_none() { transitions } else { transitions + 1 }),
                ..spec.unwrap_or_default()
            }),
        }
    }

    /// Lets another take it at once.
    async fn give_away(&mut self) {
        let seen = self.seen.take();
        self.lose();
        // What is on its way arrives while the Lease is still ours.
        let patience = Instant::now() + WRITES_END_WITHIN;
        while self.tenure.writing.load(Ordering::Acquire) > 0 && Instant::now() < patience {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let Some(mut lease) = seen.map(|seen| seen.lease).filter(|lease| self.is_ours(lease)) else { return };
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            spec.renew_time = Some(MicroTime(Timestamp::now()));
        }
        let parameters = PostParams::default();
        let replaced = self.api.replace(&self.settings.name, &parameters, &lease);
        let within = self.settings.timing.retry.min(Duration::from_secs(1));
        match timeout(within, replaced).await {
            Ok(Ok(_)) => tracing::info!("gave the Lease away"),
            Ok(Err(error)) => tracing::warn!(error = words(&error), "could not give the Lease away; it runs out"),
            Err(_) => tracing::warn!("could not give the Lease away in time; it runs out"),
        }
    }
}

fn holder(lease: &api::Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

/// Rounded up: the Lease says whole seconds, and another must never think that it ends sooner.
fn whole_seconds(duration: Duration) -> i32 {
    let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    i32::try_from(seconds.max(1)).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// C-020: what was decided in one term is not written in another, and nothing when the time is over.
    #[test]
    fn a_tenure_covers_its_own_term_until_its_end() {
        let tenure = Tenure::default();
        let now = Instant::now();
        let second = Duration::from_secs(1);
        assert!(!tenure.covers(0, now), "nobody has taken it yet");
        let first = tenure.begin(now + 10 * second);
        assert!(tenure.covers(first, now) && tenure.covers(first, now + 9 * second));
        assert!(!tenure.covers(first, now + 10 * second), "a process that slept through it");
        tenure.extend(now + 20 * second);
        assert!(tenure.covers(first, now + 15 * second));
        tenure.end();
        assert!(!tenure.covers(first, now));
        let second_term = tenure.begin(now + 10 * second);
        assert!(tenure.covers(second_term, now) && !tenure.covers(first, now));
    }

    #[test]
    fn a_lease_is_written_in_whole_seconds_and_never_shorter() {
        for (millis, seconds) in [(15_000, 15), (1_500, 2), (300, 1), (0, 1)] {
            assert_eq!(whole_seconds(Duration::from_millis(millis)), seconds);
        }
    }
}
