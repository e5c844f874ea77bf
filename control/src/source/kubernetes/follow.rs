//! One kind, listed in pages and then watched from where the list ended.
//!
//! Owns the protocol: resource versions, bookmarks, 410 Gone, pages, and when to list again. kube's own watcher does the
//! same but for three things that are needed here. It tells nobody that a broken watch stands again until an object
//! changes, so an outage could not be told as over. It goes on behind an event it could not parse, which loses that
//! event; here the watch is taken up before it. And it cannot be asked for a fresh list, which a new leader needs before
//! it gives out addresses. Refuses to know what objects mean and what is done about trouble.

use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::core::Status;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::kinds::{Watched, key_of};
use crate::backoff::Backoff;
use crate::source::{ObjectKey, ObjectKind, Reading};
use crate::watch::Exposed;

/// Objects of one page of a list: memory for a page at a time, and few enough round trips.
const PAGE: u32 = 1000;
/// First and longest wait before a failed request is sent again.
const RETRY_MIN: Duration = Duration::from_millis(200);
/// See [`RETRY_MIN`].
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A page that takes longer is given up; each time it happens the next may take twice as long, up to the maximum.
const PAGE_WITHIN: Duration = Duration::from_secs(60);
/// See [`PAGE_WITHIN`].
const PAGE_WITHIN_MAX: Duration = Duration::from_secs(600);
/// A server that does not begin to answer a watch within this time is not there.
const WATCH_BEGINS_WITHIN: Duration = Duration::from_secs(30);
/// A watch is ended by the server after so many seconds, and given up here soon after if it was not.
const WATCH_S: u32 = 290;
/// See [`WATCH_S`].
const WATCH_OVERDUE: Duration = Duration::from_secs(15);
/// A watch that ends sooner than this, without a word, is no reason to ask again at once.
const WATCH_SHORT: Duration = Duration::from_secs(1);
/// Pages of one list: five million objects. A server that goes on after them has lost its way.
const PAGES_MAX: u32 = 5000;
/// So often in a row a place in the history was gone as soon as it was given: that is told.
const EXPIRED_MAX: u32 = 3;
/// So many answers in a row that make no sense at one place: it is listed anew.
const NONSENSE_MAX: u32 = 4;

/// What is told of a kind.
#[derive(Debug)]
pub(super) enum Told {
    /// A list begins: what it does not bring is gone.
    Listing,
    /// Objects that are new or may have changed.
    Seen(Vec<Reading>),
    /// An object that is gone, or is none of those asked for any more.
    Gone(ObjectKey),
    /// The list is at its end; it began after this was asked for.
    Listed {
        /// See [`super::Refresh`].
        asked: u64,
    },
    /// The server answers.
    Healthy,
    /// It did not work.
    Failed(Failure),
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) fault: Fault,
    /// For people.
    pub(super) message: String,
    /// When the server wants to be asked again.
    pub(super) not_before: Option<Duration>,
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nobody answers, or says that he cannot now.
    Unreachable,
    /// The server does not know who asks (401).
    Unauthorized,
    /// The server forbids it (403).
    Forbidden,
    /// The server has no such kind (404).
    Missing,
    /// The place in the history is gone (410): list anew.
    Expired,
    /// The answer makes no sense.
    Nonsense,
}

/// One kind and where it stands.
pub(super) struct Follow<K> {
    pub(super) api: Api<K>,
    pub(super) exposed: Exposed,
    /// Fields of the objects that are asked for.
    pub(super) fields: Option<String>,
    pub(super) tell: mpsc::Sender<(ObjectKind, Told)>,
    pub(super) refresh: watch::Receiver<u64>,
    /// See [`super::traffic::Traffic::returns`].
    pub(super) returns: watch::Receiver<u64>,
}

/// Where to go on after a watch.
struct Ended {
    /// Version to watch from; none: list anew.
    resume: Option<String>,
    failure: Option<Failure>,
}

/// Nobody listens any more.
struct Deaf;

impl<K: Watched> Follow<K> {
    /// Follows until nobody listens.
    pub(super) async fn run(mut self) {
        let _: Result<(), Deaf> = self.forever().await;
    }

    async fn forever(&mut self) -> Result<(), Deaf> {
        let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        let mut page_within = PAGE_WITHIN;
        let mut version: Option<String> = None;
        let (mut nonsense, mut expired, mut roused) = (0, 0, false);
        loop {
            self.returns.mark_unchanged(); // before the request: a return while it fails counts
            let failure = match version.take() {
                None => match self.list(page_within).await? {
                    Ok(listed) => {
                        version = Some(listed);
                        page_within = PAGE_WITHIN;
                        if expired == 0 {
                            backoff.reset();
                        }
                        None
                    }
                    Err(failure) => {
                        page_within = (page_within * 2).min(PAGE_WITHIN_MAX);
                        Some(failure)
                    }
                },
                Some(from) => {
                    let begun = Instant::now();
                    let Ended { resume, failure } = self.watch(from.clone()).await?;
                    let has_expired = failure.as_ref().is_some_and(|failure| failure.fault == Fault::Expired);
                    let moved = !has_expired && resume.as_ref() != Some(&from);
                    let is_short = begun.elapsed() < WATCH_SHORT;
                    if moved || has_expired && !is_short {
                        backoff.reset();
                        (nonsense, expired) = (0, 0);
                    }
                    version = resume;
                    if failure.is_none() && !moved && is_short {
                        tokio::time::sleep(backoff.wait()).await;
                    }
                    failure
                }
            };
            let Some(mut failure) = failure else { continue };
            if failure.fault == Fault::Expired {
                expired += 1;
                if expired >= EXPIRED_MAX {
                    failure.fault = Fault::Nonsense;
                    failure.message = format!("what it has just given has expired: {}", failure.message);
                }
            }
            if failure.fault == Fault::Nonsense && version.is_some() {
                nonsense += 1;
                if nonsense >= NONSENSE_MAX {
                    (version, nonsense) = (None, 0);
                }
            }
            let wait = backoff.wait();
            let wait = failure.not_before.map_or(wait, |asked| wait.max(asked.min(RETRY_MAX)));
            // Not twice in a row: of a kind that alone cannot be served others hear nothing.
            let listens = failure.fault == Fault::Unreachable && failure.not_before.is_none() && !roused;
            if failure.fault != Fault::Expired {
                self.told(Told::Failed(failure)).await?;
            }
            roused = match listens {
                true => roused_within(&mut self.returns, wait).await,
                false => {
                    tokio::time::sleep(wait).await;
                    false
                }
            };
        }
    }

    async fn told(&self, told: Told) -> Result<(), Deaf> {
        self.tell.send((K::KIND, told)).await.map_err(|_| Deaf)
    }

    /// Everything, page by page; the version to watch from.
    async fn list(&mut self, within: Duration) -> Result<Result<String, Failure>, Deaf> {
        let asked = *self.refresh.borrow_and_update();
        let mut params = ListParams { limit: Some(PAGE), ..ListParams::default() };
        params.label_selector = K::LABELS.map(Into::into);
        params.field_selector.clone_from(&self.fields);
        let mut first = true;
        let mut pages = Pages::default();
        loop {
            let page = match timeout(within, self.api.list(&params)).await {
                Ok(Ok(page)) => page,
                Ok(Err(error)) => return Ok(Err(Failure::of(&error))),
                Err(_) => return Ok(Err(Failure::unreachable(format!("no answer within {} s", within.as_secs())))),
            };
            if std::mem::take(&mut first) {
                self.told(Told::Listing).await?;
            }
            let readings: Vec<Reading> = page.items.into_iter().map(|object| self.read(object)).collect();
            self.told(Told::Seen(readings)).await?;
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => {
                    if let Err(failure) = pages.turn(&token) {
                        return Ok(Err(failure));
                    }
                    params.continue_token = Some(token);
                }
                None => {
                    let version = page.metadata.resource_version.filter(|version| !version.is_empty());
                    let Some(version) = version else {
                        return Ok(Err(Failure::nonsense("a list without resourceVersion".into())));
                    };
                    self.told(Told::Listed { asked }).await?;
                    return Ok(Ok(version));
                }
            }
        }
    }

    /// Changes after `version`, until the watch ends.
    async fn watch(&mut self, mut version: String) -> Result<Ended, Deaf> {
        let params = WatchParams {
            label_selector: K::LABELS.map(Into::into),
            field_selector: self.fields.clone(),
            timeout: Some(WATCH_S),
            bookmarks: true,
            send_initial_events: false,
        };
        let stream = match timeout(WATCH_BEGINS_WITHIN, self.api.watch(&params, &version)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Ok(Ended::failed(version, Failure::of(&error))),
            Err(_) => return Ok(Ended::failed(version, Failure::unreachable("no answer to a watch".into()))),
        };
        let mut stream = stream.boxed();
        self.told(Told::Healthy).await?;
        let overdue = tokio::time::sleep(Duration::from_secs(WATCH_S.into()) + WATCH_OVERDUE);
        tokio::pin!(overdue);
        loop {
            let item = tokio::select! {
                item = stream.next() => item,
                () = &mut overdue => None,
                Ok(()) = self.refresh.changed() => return Ok(Ended { resume: None, failure: None }),
            };
            let changed = match item {
                None => return Ok(Ended { resume: Some(version), failure: None }),
                Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object))) => Ok((object, true)),
                Some(Ok(WatchEvent::Deleted(object))) => Ok((object, false)),
                Some(Ok(WatchEvent::Bookmark(bookmark))) => {
                    version = bookmark.metadata.resource_version;
                    continue;
                }
                Some(Ok(WatchEvent::Error(status))) => Err(Failure::of_status(&status)),
                Some(Err(error)) => Err(Failure::of(&error)),
            };
            let (object, present) = match changed {
                Ok(changed) => changed,
                Err(failure) => return Ok(Ended::failed(version, failure)),
            };
            let Some(at) = object.meta().resource_version.clone().filter(|at| !at.is_empty()) else {
                let failure = Failure::nonsense("an object without resourceVersion".into());
                return Ok(Ended::failed(version, failure));
            };
            version = at;
            match present {
                true => self.told(Told::Seen(vec![self.read(object)])).await?,
                false => self.told(Told::Gone(key_of(&object))).await?,
            }
        }
    }

    fn read(&self, object: K) -> Reading {
        let key = key_of(&object);
        object.read(key, self.exposed)
    }
}

/// Waits, at most until another request is answered; whether one was.
async fn roused_within(returns: &mut watch::Receiver<u64>, wait: Duration) -> bool {
    match timeout(wait, returns.changed()).await {
        Ok(Ok(())) => true,
        // Whoever counts requests is gone, and nobody will tell.
        Ok(Err(_)) => {
            tokio::time::sleep(wait).await;
            false
        }
        Err(_) => false,
    }
}

/// The pages of one list so far.
#[derive(Debug, Default)]
struct Pages {
    turned: u32,
    last: String,
}

impl Pages {
    /// Turns to the page that `token` stands for, unless the list cannot end like this.
    fn turn(&mut self, token: &str) -> Result<(), Failure> {
        if self.last == token {
            return Err(Failure::nonsense("a list goes on at the page that it has just given".into()));
        }
        self.turned += 1;
        if self.turned >= PAGES_MAX {
            return Err(Failure::nonsense(format!("a list does not end within {PAGES_MAX} pages of {PAGE}")));
        }
        token.clone_into(&mut self.last);
        Ok(())
    }
}

impl Ended {
    fn failed(version: String, failure: Failure) -> Self {
        let resume = (failure.fault != Fault::Expired).then_some(version);
        Ended { resume, failure: Some(failure) }
    }
}

impl Failure {
    fn unreachable(message: String) -> Self {
        Failure { fault: Fault::Unreachable, message, not_before: None }
    }

    fn nonsense(message: String) -> Self {
        Failure { fault: Fault::Nonsense, message, not_before: None }
    }

    fn of_status(status: &Status) -> Self {
        let fault = match status.code {
            401 => Fault::Unauthorized,
            403 => Fault::Forbidden,
            404 => Fault::Missing,
            410 => Fault::Expired,
            429 | 500.. => Fault::Unreachable,
            _ => Fault::Nonsense,
        };
        let asked = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
        let not_before = (asked > 0).then(|| Duration::from_secs(asked.into()));
        let message = match (status.code, status.message.as_str()) {
            (0, "") => "neither an object nor a Status".to_owned(),
            (code, message) => format!("{message} ({code})"),
        };
        Failure { fault, message, not_before }
    }

    fn of(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Failure::of_status(status),
            kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) | kube::Error::LinesCodecMaxLineLengthExceeded => {
                Failure::nonsense(error.to_string())
            }
            other => Failure::unreachable(super::words(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_does_not_end_is_given_up() {
        let mut pages = Pages::default();
        pages.turn("a").unwrap();
        pages.turn("b").unwrap();
        let same = pages.turn("b").unwrap_err();
        assert_eq!((same.fault, same.message.contains("just given")), (Fault::Nonsense, true), "{same:?}");
        let mut pages = Pages::default();
        let turned = (0..).take_while(|n: &u32| pages.turn(&n.to_string()).is_ok()).count();
        assert_eq!(turned, 4999);
    }

    #[test]
    fn who_is_not_known_and_what_is_not_allowed_are_two_things() {
        let fault = |code| {
            let status = Status { code, ..Status::default() };
            Failure::of_status(&status).fault
        };
        assert_eq!(
            [401, 403, 404, 410, 429, 500, 400].map(fault),
            [
                Fault::Unauthorized,
                Fault::Forbidden,
                Fault::Missing,
                Fault::Expired,
                Fault::Unreachable,
                Fault::Unreachable,
                Fault::Nonsense
            ]
        );
    }

    #[tokio::test]
    async fn who_waits_to_ask_again_hears_that_another_was_answered() {
        let (sender, mut returns) = watch::channel(0);
        assert!(!roused_within(&mut returns, Duration::from_millis(1)).await);
        // While the request failed, too.
        sender.send_modify(|times| *times += 1);
        assert!(roused_within(&mut returns, Duration::from_secs(3600)).await);
        let rouse = async { sender.send_modify(|times| *times += 1) };
        let (roused, ()) = tokio::join!(roused_within(&mut returns, Duration::from_secs(3600)), rouse);
        assert!(roused);
        drop(sender);
        let begun = Instant::now();
        assert!(!roused_within(&mut returns, Duration::from_millis(50)).await);
        assert!(begun.elapsed() >= Duration::from_millis(50), "it waits all the same");
    }
}
