//! Lists: which objects, as of which revision, in which portions.
//!
//! Owns what `resourceVersion`, `resourceVersionMatch`, `limit` and `continue` mean together ("Resource versions" of the API
//! concepts) and the text of a list. Refuses to know faults: the text is a stream that `http` may slow down or cut.

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures::stream;
use serde_json::{Value, json};

use crate::Shared;
use crate::kinds::Kind;
use crate::object::{Key, Object};
use crate::problem::{Cause, Problem};
use crate::route::{Query, Shape};
use crate::selector::Selector;
use crate::store::Store;

/// Bytes that one portion of a body has at least, unless it is the last.
pub(crate) const PORTION_BYTES: usize = 64 << 10;

/// How long a list waits for a revision that is not reached yet; the real server waits as long.
const WAIT_MAX: Duration = Duration::from_secs(3);

/// What a list gives.
pub(crate) struct Listed {
    pub objects: Vec<Arc<Object>>,
    pub revision: u64,
    resume: Option<String>,
    remaining: Option<usize>,
}

enum At {
    Newest,
    NotOlder(u64),
    Exact(u64),
    Resumed { revision: u64, from: Key },
}

fn read_at(query: &Query) -> Result<(At, u64), Problem> {
    let limit = query.number("limit")?.unwrap_or(0);
    let (given, matching, token) =
        (query.get("resourceVersion"), query.get("resourceVersionMatch"), query.get("continue"));
    let refused = |field: &str, why: &str| Err(Problem::bad_options(Cause::forbidden(field, why)));
    if !matching.is_empty() && given.is_empty() {
        return refused("resourceVersionMatch", "resourceVersionMatch is forbidden unless resourceVersion is provided");
    }
    if !token.is_empty() {
        if !matching.is_empty() {
            return refused("resourceVersionMatch", "resourceVersionMatch is forbidden when continue is provided");
        }
        if !matches!(given, "" | "0") {
            return Err(Problem::bad_request("specifying resource version is not allowed when using continue"));
        }
        let at = resumed(token).ok_or_else(|| Problem::bad_request("continue key is not valid"))?;
        return Ok((at, limit));
    }
    let number = query.number("resourceVersion")?;
    match (number, matching) {
        (Some(0), "Exact") => {
            refused("resourceVersionMatch", "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"")
        }
        (None, _) => Ok((At::Newest, limit)),
        // As the watch cache answers: from what it has, whole.
        (Some(0), "" | "NotOlderThan") => Ok((At::NotOlder(0), 0)),
        (Some(revision), "NotOlderThan") => Ok((At::NotOlder(revision), limit)),
        (Some(revision), "Exact") => Ok((At::Exact(revision), limit)),
        (Some(revision), "") if limit > 0 => Ok((At::Exact(revision), limit)),
        (Some(revision), "") => Ok((At::NotOlder(revision), limit)),
        (_, other) => {
            let cause = Cause::unsupported("resourceVersionMatch", &json!(other), &["Exact", "NotOlderThan", ""]);
            Err(Problem::bad_options(cause))
        }
    }
}

fn token(revision: u64, from: &Key) -> String {
    format!("v1_{revision}_{}_{}", from.namespace, from.name)
}

fn resumed(token: &str) -> Option<At> {
    let mut parts = token.splitn(4, '_');
    if parts.next()? != "v1" {
        return None;
    }
    let revision = parts.next()?.parse().ok()?;
    let namespace = parts.next()?;
    Some(At::Resumed { revision, from: Key::new(namespace, parts.next()?) })
}

/// The objects of `kind` in `namespace` (empty: everywhere) that `query` asks for.
///
/// # Errors
/// Options that exclude each other, revisions that are too old or not reached.
pub(crate) async fn list(shared: &Shared, kind: &Kind, namespace: &str, query: &Query) -> Result<Listed, Problem> {
    let selector = Selector::read(kind, query.get("labelSelector"), query.get("fieldSelector"))?;
    let (at, limit) = read_at(query)?;
    let (At::Newest | At::NotOlder(0) | At::Exact(0)) = at else {
        let (At::NotOlder(wanted) | At::Exact(wanted) | At::Resumed { revision: wanted, .. }) = at else {
            unreachable!("matched above")
        };
        reached(shared, wanted).await?;
        return portion(&shared.store(), kind, namespace, &selector, at, limit);
    };
    portion(&shared.store(), kind, namespace, &selector, at, limit)
}

/// Waits until `wanted` is reached.
///
/// # Errors
/// It is not within the time the real server waits.
pub(crate) async fn reached(shared: &Shared, wanted: u64) -> Result<(), Problem> {
    let mut waited = Duration::ZERO;
    loop {
        let current = shared.store().revision();
        if current >= wanted {
            return Ok(());
        }
        if waited >= WAIT_MAX {
            return Err(Problem::too_large(wanted, current));
        }
        let step = Duration::from_millis(20);
        tokio::time::sleep(step).await;
        waited += step;
    }
}

fn portion(
    store: &Store,
    kind: &Kind,
    namespace: &str,
    selector: &Selector,
    at: At,
    limit: u64,
) -> Result<Listed, Problem> {
    let shelf = store.shelf(kind).ok_or_else(Problem::no_path)?;
    let newest = store.revision();
    let (revision, from) = match at {
        At::Newest | At::NotOlder(_) => (newest, None),
        At::Exact(revision) => (revision, None),
        // Revision 0: the client goes on after its token expired, on whatever is there now.
        At::Resumed { revision: 0, from } => (newest, Some(from)),
        At::Resumed { revision, from } => (revision, Some(from)),
    };
    let past = shelf.changed_at().is_some_and(|changed| changed > revision).then(|| shelf.as_of(revision));
    let objects = match &past {
        None => Some(&shelf.objects),
        Some(past) => past.as_ref(),
    };
    let Some(objects) = objects.filter(|_| revision >= store.oldest() || revision == newest) else {
        let Some(from) = from else {
            return Err(Problem::expired("The resourceVersion for the provided list is too old.".to_owned()));
        };
        let mut problem = Problem::expired(RESUME_EXPIRED.to_owned());
        problem.resume = Some(token(0, &from));
        return Err(problem);
    };
    let start = from.unwrap_or_else(|| Key::new(namespace, ""));
    let inside = |key: &Key| namespace.is_empty() || key.namespace == namespace;
    let range = objects.range((Bound::Included(start), Bound::Unbounded)).take_while(|(key, _)| inside(key));
    let mut matching = range.map(|(_, object)| object).filter(|object| selector.matches(object));
    let limit = usize::try_from(limit).unwrap_or(0);
    if limit == 0 {
        return Ok(Listed { objects: matching.cloned().collect(), revision, resume: None, remaining: None });
    }
    let taken: Vec<_> = matching.by_ref().take(limit).cloned().collect();
    let next = matching.next().map(|object| token(revision, &object.key));
    let remaining = next.as_ref().filter(|_| selector.is_all()).map(|_| matching.count() + 1);
    Ok(Listed { objects: taken, revision, resume: next, remaining })
}

const RESUME_EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without \
the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token \
results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show \
up in the list.";

/// One object as an answer has it.
pub(crate) fn text_of(object: &Object, shape: Shape) -> Bytes {
    match shape {
        Shape::Whole => object.text(),
        Shape::Metadata => {
            let mut text = br#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":"#.to_vec();
            text.extend_from_slice(&object.metadata());
            text.push(b'}');
            Bytes::from(text)
        }
    }
}

/// The text of a list, made while it is sent.
pub(crate) fn body(kind: &Kind, listed: Listed, shape: Shape) -> Body {
    let mut metadata = json!({"resourceVersion": listed.revision.to_string()});
    if let Some(resume) = &listed.resume {
        metadata["continue"] = Value::from(resume.as_str());
    }
    if let Some(remaining) = listed.remaining {
        metadata["remainingItemCount"] = json!(remaining);
    }
    let (name, version) = match shape {
        Shape::Whole => (format!("{}List", kind.kind), kind.api_version()),
        Shape::Metadata => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned()),
    };
    let head = format!("{{\"kind\":\"{name}\",\"apiVersion\":\"{version}\",\"metadata\":{metadata},\"items\":[");
    let untyped = shape == Shape::Whole && !kind.custom;
    let objects: VecDeque<_> = listed.objects.into();
    let first = (Some(head), objects, true, false);
    let portions = stream::unfold(first, move |(head, mut objects, mut start, ended)| async move {
        if ended {
            return None;
        }
        let mut text = head.unwrap_or_default().into_bytes();
        while text.len() < PORTION_BYTES
            && let Some(object) = objects.pop_front()
        {
            if !std::mem::take(&mut start) {
                text.push(b',');
            }
            if untyped {
                text.push(b'{');
                text.extend_from_slice(&object.untyped_tail());
            } else {
                text.extend_from_slice(&text_of(&object, shape));
            }
        }
        let ended = objects.is_empty();
        if ended {
            text.extend_from_slice(b"]}\n");
        }
        Some((Ok::<_, std::io::Error>(Bytes::from(text)), (None, objects, start, ended)))
    });
    Body::from_stream(portions)
}
