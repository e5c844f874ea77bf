//! What was asked of the API and how that ended, in numbers.
//!
//! Owns the counts of requests, lists and watches, and whether the server is there: who waits to ask it again hears of it
//! when another is answered. A request is counted where it leaves the client, whoever made it, by verb
//! and resource as RBAC has them; both are read off the request, so their number is that of the rights this process uses.
//! Refuses to know what was asked for.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use hyper::{Method, Request, Response};
use tidegate_metrics::{Histogram, Metric, number};
use tokio::sync::watch;
use tower::{Layer, Service};

use super::follow::{Fault, Told};
use crate::metrics::Figure;
use crate::source::ObjectKind;

/// Upper ends of the buckets of answers, in seconds.
const BUCKETS_S: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Verbs, resources and codes told apart; whatever comes beyond is told as `other`.
const COUNTS_MAX: usize = 256;

/// All of it, shared by who asks and who tells.
#[derive(Debug, Default)]
pub struct Traffic {
    counts: Mutex<Counts>,
    /// Times that the server has come back.
    returns: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Counts {
    /// The last request found nobody, or one who cannot now.
    is_away: bool,
    /// By verb, resource and code.
    requests: BTreeMap<(&'static str, String, u16), u64>,
    took: BTreeMap<&'static str, Histogram>,
    lists: BTreeMap<ObjectKind, u64>,
    watches: BTreeMap<ObjectKind, u64>,
    failures: BTreeMap<(ObjectKind, &'static str), u64>,
}

impl Traffic {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request has been answered with `code` after so many seconds; 0: there was no answer.
    fn answered(&self, (verb, resource): (&'static str, String), code: u16, took_s: f64) {
        let mut counts = self.counts();
        counts.took.entry(verb).or_insert_with(|| Histogram::new(BUCKETS_S)).observe(took_s);
        let full = counts.requests.len() >= COUNTS_MAX;
        let key = (verb, resource, code);
        let key = if full && !counts.requests.contains_key(&key) { (verb, "other".into(), code) } else { key };
        *counts.requests.entry(key).or_default() += 1;
        let is_away = !(1..500).contains(&code) || code == 429;
        let was_away = std::mem::replace(&mut counts.is_away, is_away);
        drop(counts);
        if was_away && !is_away {
            self.returns.send_modify(|times| *times += 1);
        }
    }

    /// Changes whenever a request is answered after one that was not.
    pub(super) fn returns(&self) -> watch::Receiver<u64> {
        self.returns.subscribe()
    }

    /// Something is told of a kind.
    pub(super) fn heard(&self, kind: ObjectKind, told: &Told) {
        let mut counts = self.counts();
        match told {
            Told::Listed { .. } => *counts.lists.entry(kind).or_default() += 1,
            Told::Healthy => *counts.watches.entry(kind).or_default() += 1,
            Told::Failed(failure) => *counts.failures.entry((kind, word(failure.fault))).or_default() += 1,
            Told::Listing | Told::Seen(_) | Told::Gone(_) => {}
        }
    }

    /// What is on the page of it.
    pub fn metrics(&self) -> Vec<Metric> {
        let counts = self.counts();
        let mut requests = Figure::Requests.metric();
        for ((verb, resource, code), count) in &counts.requests {
            requests.add([("verb", verb), ("resource", resource), ("code", &code.to_string())], number(*count));
        }
        let mut took = Figure::RequestDuration.metric();
        for (verb, histogram) in &counts.took {
            took.distribute([("verb", verb)], histogram.told());
        }
        let by_kind = |figure: Figure, of: &BTreeMap<ObjectKind, u64>| {
            let mut metric = figure.metric();
            of.iter().for_each(|(kind, count)| metric.add([("kind", &kind.to_string())], number(*count)));
            metric
        };
        let mut failures = Figure::WatchFailures.metric();
        for ((kind, fault), count) in &counts.failures {
            failures.add([("kind", &kind.to_string()), ("fault", fault)], number(*count));
        }
        let (lists, watches) = (by_kind(Figure::Lists, &counts.lists), by_kind(Figure::Watches, &counts.watches));
        vec![lists, watches, failures, requests, took]
    }
}

fn word(fault: Fault) -> &'static str {
    match fault {
        Fault::Unreachable => "unreachable",
        Fault::Unauthorized => "unauthorized",
        Fault::Forbidden => "forbidden",
        Fault::Missing => "missing",
        Fault::Expired => "expired",
        Fault::Nonsense => "nonsense",
    }
}

/// Verb and resource of a request, as a role has them: `/apis/GROUP/VERSION/[namespaces/NAME/]RESOURCE[/NAME[/STATUS]]`.
fn asked(method: &Method, path: &str, query: &str) -> (&'static str, String) {
    let mut parts = path.trim_matches('/').split('/');
    let skipped = if parts.next() == Some("api") { 1 } else { 2 };
    let mut parts: Vec<&str> = parts.skip(skipped).collect();
    if parts.len() > 2 && parts.first() == Some(&"namespaces") {
        parts.drain(..2);
    }
    let (resource, named) = (parts.first().copied().unwrap_or("none"), parts.len() > 1);
    let resource = match parts.get(2) {
        Some(part) => format!("{resource}/{part}"),
        None => resource.to_owned(),
    };
    let watches = query.split('&').any(|field| matches!(field, "watch=1" | "watch=true" | "watch=True"));
    let verb = match *method {
        Method::GET if watches => "watch",
        Method::GET if named => "get",
        Method::GET => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "other",
    };
    (verb, resource)
}

/// Counts what passes through a client.
#[derive(Clone, Debug)]
pub(super) struct Counted(pub(super) Arc<Traffic>);

impl<S> Layer<S> for Counted {
    type Service = Counting<S>;

    fn layer(&self, inner: S) -> Counting<S> {
        Counting { traffic: Arc::clone(&self.0), inner }
    }
}

/// A client's service whose requests are counted.
#[derive(Clone, Debug)]
pub(super) struct Counting<S> {
    traffic: Arc<Traffic>,
    inner: S,
}

impl<S, A, B> Service<Request<A>> for Counting<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let about = asked(request.method(), request.uri().path(), request.uri().query().unwrap_or_default());
        let (traffic, begun) = (Arc::clone(&self.traffic), Instant::now());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            let code = answer.as_ref().map_or(0, |answer| answer.status().as_u16());
            traffic.answered(about, code, begun.elapsed().as_secs_f64());
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_has_come_back_when_it_answers_after_it_did_not() {
        let traffic = Traffic::default();
        let mut returns = traffic.returns();
        let mut came_back = |codes: &[u16]| {
            codes.iter().for_each(|code| traffic.answered(("get", "leases".into()), *code, 0.1));
            let has_changed = returns.has_changed().unwrap();
            returns.mark_unchanged();
            has_changed
        };
        assert!(!came_back(&[200, 200, 404, 409]));
        for away in [0, 429, 500, 503] {
            assert!(!came_back(&[away, away]));
            assert!(came_back(&[200]), "after {away}");
            assert!(!came_back(&[200, away]));
            // Even one that refuses is there.
            assert!(came_back(&[403]), "after {away}");
        }
    }

    #[test]
    fn requests_are_told_as_a_role_has_them() {
        for (method, path, query, expected) in [
            (Method::GET, "/api/v1/services", "limit=1000", ("list", "services")),
            (Method::GET, "/api/v1/services", "watch=true&timeoutSeconds=290", ("watch", "services")),
            (Method::GET, "/api/v1/namespaces", "", ("list", "namespaces")),
            (Method::GET, "/apis/discovery.k8s.io/v1/endpointslices", "", ("list", "endpointslices")),
            (Method::GET, "/apis/coordination.k8s.io/v1/namespaces/t/leases/l", "", ("get", "leases")),
            (Method::PUT, "/apis/coordination.k8s.io/v1/namespaces/t/leases/l", "", ("update", "leases")),
            (Method::PATCH, "/api/v1/namespaces/shop/services/web/status", "x=1", ("patch", "services/status")),
            (Method::PATCH, "/apis/tidegate.io/v1alpha1/addresspools/a/status", "", ("patch", "addresspools/status")),
            (Method::POST, "/apis/events.k8s.io/v1/namespaces/shop/events", "", ("create", "events")),
            (Method::GET, "/version", "", ("list", "none")),
        ] {
            assert_eq!(asked(&method, path, query), (expected.0, expected.1.to_owned()), "{method} {path}");
        }
    }

    #[test]
    fn strange_answers_do_not_make_the_page_long() {
        let traffic = Traffic::default();
        for n in 0..10_000 {
            traffic.answered(("get", format!("kind-{n}")), 200, 0.5);
        }
        let metrics = traffic.metrics();
        let requests = metrics.iter().find(|metric| metric.name == "control_api_requests").unwrap();
        assert_eq!(requests.samples.len(), COUNTS_MAX + 1);
        let took = metrics.iter().find(|metric| metric.name == "control_api_request_duration_seconds").unwrap();
        let tidegate_metrics::Value::Distribution(told) = &took.samples[0].value else { panic!("{took:?}") };
        assert_eq!((told.count(), told.sum), (10_000, 5000.0));
    }
}
