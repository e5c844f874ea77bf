//! Watches: changes as they happen, from a revision on.
//!
//! Owns one open watch: where it is in the history, what it has still to send, bookmarks, streaming lists, expiry and timeouts
//! ("Efficient detection of changes" of the API concepts). Refuses to know connections. A watch reads the history when it is
//! woken, so a slow client costs nothing but its place, which it loses when the history has moved on: 410.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures::stream;
use serde_json::json;
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, sleep_until};

use crate::Shared;
use crate::fault::{Effect, WatchOrders};
use crate::http::BEFORE_CUT;
use crate::kinds::Kind;
use crate::list::{PORTION_BYTES, list, reached, text_of};
use crate::object::Object;
use crate::problem::{Cause, Problem};
use crate::route::{Query, Shape};
use crate::selector::Selector;
use crate::store::{Change, News, What};

/// Bookmark annotation that ends the initial events of a streaming list.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

enum Line {
    Event(What, Arc<Object>),
    Text(Bytes),
}

/// One open watch.
struct Watch {
    shared: Arc<Shared>,
    kind: Arc<Kind>,
    namespace: String,
    selector: Selector,
    shape: Shape,
    /// Everything up to this revision is in `lines` or sent.
    seen: u64,
    lines: VecDeque<Line>,
    changed: Receiver<u64>,
    orders: Receiver<WatchOrders>,
    last_orders: WatchOrders,
    ends: Instant,
    bookmarks: bool,
    bookmark_at: Instant,
    /// Events that may still be sent, and whether the connection is cut after them.
    events_left: Option<(usize, bool)>,
    over: bool,
}

/// The body of a watch.
///
/// # Errors
/// Options that exclude each other, and a revision that is not reached.
pub(crate) async fn watch(
    shared: &Arc<Shared>,
    kind: &Arc<Kind>,
    namespace: &str,
    query: &Query,
    shape: Shape,
    effects: &[Effect],
) -> Result<Body, Problem> {
    let selector = Selector::read(kind, query.get("labelSelector"), query.get("fieldSelector"))?;
    let whole = query.is("sendInitialEvents");
    check(query)?;
    let given = query.number("resourceVersion")?;
    if let Some(wanted) = given.filter(|_| whole) {
        reached(shared, wanted).await?;
    }
    let timeout = query
        .number("timeoutSeconds")?
        .filter(|seconds| *seconds > 0)
        .map_or(shared.options.watch_timeout, Duration::from_secs);
    let orders = shared.faults.orders();
    let changed = shared.store().shelf(kind).ok_or_else(Problem::no_path)?.subscribe();
    let last_orders = orders.borrow().clone();
    let now = Instant::now();
    let mut watch = Watch {
        shared: shared.clone(),
        kind: kind.clone(),
        namespace: namespace.to_owned(),
        selector,
        shape,
        seen: given.unwrap_or(0),
        lines: VecDeque::new(),
        changed,
        orders,
        last_orders,
        ends: now + timeout,
        bookmarks: query.is("allowWatchBookmarks"),
        bookmark_at: now + shared.options.bookmark_every,
        events_left: effects.iter().find_map(|effect| match effect {
            Effect::EndAfterEvents(count) => Some((*count, false)),
            Effect::CutAfterEvents(count) => Some((*count, true)),
            _ => None,
        }),
        over: false,
    };
    let from_now = given.unwrap_or(0) == 0 && query.get("sendInitialEvents") != "false";
    if whole || from_now {
        watch.begin_with_state(whole).await?;
    } else if given.unwrap_or(0) == 0 {
        watch.seen = shared.store().revision();
    } else {
        let oldest = shared.store().oldest();
        if watch.seen < oldest {
            watch.expire(format!("too old resource version: {} ({oldest})", watch.seen));
        }
    }
    Ok(Body::from_stream(stream::unfold(watch, |mut watch| async move {
        let portion = watch.next().await?;
        Some((portion, watch))
    })))
}

fn check(query: &Query) -> Result<(), Problem> {
    let (initial, matching) = (query.get("sendInitialEvents"), query.get("resourceVersionMatch"));
    let refused = |field: &str, why: &str| Err(Problem::bad_options(Cause::forbidden(field, why)));
    if initial.is_empty() && !matching.is_empty() {
        return refused(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        );
    }
    if !initial.is_empty() && matching != "NotOlderThan" {
        return refused(
            "resourceVersionMatch",
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        );
    }
    Ok(())
}

impl Watch {
    /// Everything there is as new objects, then what happens.
    async fn begin_with_state(&mut self, streaming: bool) -> Result<(), Problem> {
        let listed = list(&self.shared, &self.kind, &self.namespace, &Query::default()).await?;
        let matching = listed.objects.into_iter().filter(|object| self.selector.matches(object));
        self.lines.extend(matching.map(|object| Line::Event(What::Added, object)));
        self.seen = listed.revision;
        if streaming && self.bookmarks {
            let text = self.bookmark(true);
            self.lines.push_back(Line::Text(text));
        }
        Ok(())
    }

    fn expire(&mut self, message: String) {
        let status = Problem::expired(message).status();
        self.lines.push_back(Line::Text(Bytes::from(format!("{}\n", json!({"type": "ERROR", "object": status})))));
        self.over = true;
    }

    fn bookmark(&self, initial_end: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": self.seen.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({INITIAL_EVENTS_END: "true"});
        }
        let (kind, version) = match self.shape {
            Shape::Whole => (self.kind.kind.clone(), self.kind.api_version()),
            Shape::Metadata => ("PartialObjectMetadata".to_owned(), "meta.k8s.io/v1".to_owned()),
        };
        let object = json!({"kind": kind, "apiVersion": version, "metadata": metadata});
        Bytes::from(format!("{}\n", json!({"type": "BOOKMARK", "object": object})))
    }

    /// The next bytes; none when the watch is over.
    async fn next(&mut self) -> Option<Result<Bytes, std::io::Error>> {
        loop {
            if !self.lines.is_empty() {
                return Some(Ok(self.portion()));
            }
            if self.over {
                return match self.events_left {
                    Some((0, true)) => {
                        self.events_left = None;
                        tokio::time::sleep(BEFORE_CUT).await;
                        Some(Err(std::io::Error::other("cut by the test")))
                    }
                    _ => None,
                };
            }
            self.obey();
            if self.lines.is_empty() && !self.over {
                self.gather();
            }
            if self.lines.is_empty() && !self.over {
                self.wait().await;
            }
        }
    }

    /// Does what the test told all watches to do since the last time.
    fn obey(&mut self) {
        let orders = self.orders.borrow_and_update().clone();
        let last = std::mem::replace(&mut self.last_orders, orders);
        let orders = &self.last_orders;
        if orders.end > last.end {
            self.over = true;
        } else if orders.expire > last.expire {
            self.expire(format!("too old resource version: {}", self.seen));
        } else if orders.bookmarks > last.bookmarks {
            self.gather();
            self.push_bookmark();
        }
    }

    fn held(&self) -> bool {
        self.last_orders.holds(&self.kind.plural)
    }

    fn push_bookmark(&mut self) {
        if self.bookmarks && !self.last_orders.no_bookmarks && !self.held() {
            let text = self.bookmark(false);
            self.lines.push_back(Line::Text(text));
        }
    }

    /// Takes what has happened since the last time out of the history.
    fn gather(&mut self) {
        if self.held() {
            return;
        }
        self.changed.borrow_and_update();
        let news = {
            let store = self.shared.store();
            store.shelf(&self.kind).map(|shelf| shelf.news(self.seen, store.revision()))
        };
        match news {
            None => self.over = true,
            Some(News::Lost) => self.expire(format!("too old resource version: {}", self.seen)),
            Some(News::Changes(changes, newest)) => {
                self.seen = newest;
                let twice = self.last_orders.twice;
                let news: Vec<_> = changes.iter().filter_map(|change| self.seen_as(change)).collect();
                for (what, object) in news {
                    if twice {
                        self.lines.push_back(Line::Event(what, object.clone()));
                    }
                    self.lines.push_back(Line::Event(what, object));
                }
            }
        }
    }

    /// What `change` is to a client that sees only what its selector matches.
    fn seen_as(&self, change: &Change) -> Option<(What, Arc<Object>)> {
        if !self.namespace.is_empty() && change.object.key.namespace != self.namespace {
            return None;
        }
        let before = change.before.as_ref().is_some_and(|before| self.selector.matches(before));
        let after = change.what != What::Deleted && self.selector.matches(&change.object);
        match (before, after) {
            (false, false) => None,
            (false, true) => Some((What::Added, change.object.clone())),
            (true, true) => Some((What::Modified, change.object.clone())),
            (true, false) if change.what == What::Deleted => Some((What::Deleted, change.object.clone())),
            // It left the selection: its last selected state, under the revision at which it left.
            (true, false) => {
                change.before.as_ref().map(|before| (What::Deleted, before.at(&self.kind, change.object.revision)))
            }
        }
    }

    async fn wait(&mut self) {
        let held = self.held();
        tokio::select! {
            changed = self.changed.changed(), if !held => self.over |= changed.is_err(),
            _ = self.orders.changed() => {}
            () = sleep_until(self.ends) => {
                self.push_bookmark();
                self.over = true;
            }
            () = sleep_until(self.bookmark_at), if self.bookmarks => {
                self.bookmark_at = Instant::now() + self.shared.options.bookmark_every;
                self.gather();
                self.push_bookmark();
            }
        }
    }

    /// Lines, as many as make a portion.
    fn portion(&mut self) -> Bytes {
        let mut text = Vec::new();
        while text.len() < PORTION_BYTES
            && !matches!(self.events_left, Some((0, _)))
            && let Some(line) = self.lines.pop_front()
        {
            match line {
                Line::Text(line) => text.extend_from_slice(&line),
                Line::Event(what, object) => {
                    let what = match what {
                        What::Added => "ADDED",
                        What::Modified => "MODIFIED",
                        What::Deleted => "DELETED",
                    };
                    text.extend_from_slice(format!("{{\"type\":\"{what}\",\"object\":").as_bytes());
                    text.extend_from_slice(&text_of(&object, self.shape));
                    text.extend_from_slice(b"}\n");
                    if let Some((left, _)) = &mut self.events_left {
                        *left -= 1;
                    }
                }
            }
        }
        if matches!(self.events_left, Some((0, _))) {
            self.lines.clear();
            self.over = true;
        }
        Bytes::from(text)
    }
}
