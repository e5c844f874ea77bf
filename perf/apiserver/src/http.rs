//! Answers: from a request to the one who may ask it, through the faults, to the store and back.
//!
//! Owns the order of these steps, the reading of bodies and the answers' codes and headers. Refuses to know what the steps do.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::apply::Writer;
use crate::fault::Effect;
use crate::kinds::Kind;
use crate::list::{body, list, text_of};
use crate::log::Logged;
use crate::object::{Key, Object};
use crate::patch::PatchType;
use crate::problem::Problem;
use crate::rbac::{Asked, denied};
use crate::route::{Query, Route, route, shape};
use crate::selector::Selector;
use crate::watch::watch;
use crate::write::{Deleted, Preconditions, Write, now};
use crate::{Shared, discovery};

/// The largest body that is read, as in the real server.
const BODY_BYTES_MAX: usize = 3 << 20;

/// Time between the last bytes of an answer and a cut: so long that the bytes have left.
pub(crate) const BEFORE_CUT: Duration = Duration::from_millis(50);

/// The connection that a request came on.
#[derive(Clone, Default)]
pub(crate) struct Connection {
    /// Cuts it when told.
    pub cut: Arc<Notify>,
}

impl Connection {
    /// Cuts the connection; what this returns is never sent.
    async fn cut(&self) -> Response {
        self.cut.notify_one();
        tokio::time::sleep(Duration::from_secs(5)).await;
        Response::default()
    }
}

/// The answer to one request.
pub(crate) async fn answer(
    State(shared): State<Arc<Shared>>,
    Extension(connection): Extension<Connection>,
    request: Request,
) -> Response {
    let (parts, request_body) = request.into_parts();
    let route = route(&parts.method, parts.uri.path(), parts.uri.query().unwrap_or_default());
    let user = shared.user_of(&parts.headers);
    let name = user.as_ref().map(|user| user.name.clone()).unwrap_or_default();
    let mut logged = Logged::new(&parts, &name, &route.asked);
    let Some(user) = user else {
        return finish(&shared, logged, Err(Problem::unauthorized()));
    };
    let effects = shared.faults.for_request(&user.name, &route.asked);
    for effect in &effects {
        match effect {
            Effect::Delay(time) => tokio::time::sleep(*time).await,
            Effect::Hang => {
                shared.log(logged);
                return std::future::pending().await;
            }
            Effect::Cut => {
                shared.log(logged);
                return connection.cut().await;
            }
            Effect::Answer { code, retry_after_s } => {
                logged.faulty = true;
                return finish(&shared, logged, Err(Problem::wanted(*code, *retry_after_s)));
            }
            Effect::Garbage => {
                logged.faulty = true;
                return finish(&shared, logged, Ok(with(200, Body::from(&b"\xff\xfe{]garbage\x00\x80}"[..]))));
            }
            Effect::WrongShape => {
                logged.faulty = true;
                return finish(
                    &shared,
                    logged,
                    Ok(with(200, Body::from(r#"{"kind":"Tide","apiVersion":"v9","metadata":[],"items":{"a":1}}"#))),
                );
            }
            _ => {}
        }
    }
    if !user.rules.allow(&route.asked) {
        logged.denied = true;
        let problem = denied(&user.name, &route.asked);
        return finish(&shared, logged, Err(problem));
    }
    let call = Call { shared: &shared, route: &route, headers: &parts.headers, user: &user, effects: &effects };
    let answered = call.answer(parts.uri.path(), request_body).await;
    let lost = effects.contains(&Effect::LoseAnswer);
    let response = finish(&shared, logged, answered);
    if lost { connection.cut().await } else { spoiled(response, &effects) }
}

fn finish(shared: &Shared, mut logged: Logged, answered: Result<Response, Problem>) -> Response {
    let response = answered.unwrap_or_else(|problem| refusal(&problem));
    logged.code = response.status().as_u16();
    shared.log(logged);
    response
}

/// What the faults leave of an answer's body.
fn spoiled(response: Response, effects: &[Effect]) -> Response {
    let (parts, mut body) = response.into_parts();
    for effect in effects {
        body = match effect {
            Effect::Truncate(bytes) => limited(body, *bytes, false),
            Effect::CutAfterBytes(bytes) => limited(body, *bytes, true),
            Effect::Slow(bytes_per_s) => slowed(body, (*bytes_per_s).max(1)),
            _ => body,
        };
    }
    Response::from_parts(parts, body)
}

fn limited(body: Body, bytes: usize, cut: bool) -> Body {
    let state = (body.into_data_stream(), bytes, false);
    Body::from_stream(stream::unfold(state, move |(mut body, left, over)| async move {
        if over {
            return None;
        }
        if left == 0 {
            if !cut {
                return None;
            }
            tokio::time::sleep(BEFORE_CUT).await;
            let error = axum::Error::new(std::io::Error::other("cut by the test"));
            return Some((Err(error), (body, 0, true)));
        }
        let portion = body.next().await?;
        let portion = portion.map(|bytes: Bytes| bytes.slice(..bytes.len().min(left)));
        let sent = portion.as_ref().map_or(0, Bytes::len);
        Some((portion, (body, left - sent, false)))
    }))
}

/// Sends `body` at a rate, in twenty steps a second.
fn slowed(body: Body, bytes_per_s: usize) -> Body {
    let step = bytes_per_s.div_ceil(20);
    let state = (body.into_data_stream(), Bytes::new());
    Body::from_stream(stream::unfold(state, move |(mut body, mut rest)| async move {
        while rest.is_empty() {
            match body.next().await? {
                Ok(portion) => rest = portion,
                Err(error) => return Some((Err(error), (body, rest))),
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        let portion = rest.split_to(step.min(rest.len()));
        Some((Ok(portion), (body, rest)))
    }))
}

fn with(code: u16, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

fn refusal(problem: &Problem) -> Response {
    let mut response = with(problem.code, Body::from(problem.status().to_string()));
    if let Some(seconds) = problem.details.get("retryAfterSeconds").and_then(Value::as_u64) {
        response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from(seconds));
    }
    response
}

/// One request that is allowed.
struct Call<'a> {
    shared: &'a Arc<Shared>,
    route: &'a Route,
    headers: &'a HeaderMap,
    user: &'a crate::User,
    effects: &'a [Effect],
}

impl Call<'_> {
    fn asked(&self) -> &Asked {
        &self.route.asked
    }

    fn query(&self) -> &Query {
        &self.route.query
    }

    async fn answer(&self, path: &str, request_body: Body) -> Result<Response, Problem> {
        let asked = self.asked();
        if asked.resource.is_empty() {
            let found = discovery::answer(&self.shared.store(), path).ok_or_else(Problem::no_path)?;
            return Ok(match found {
                Value::String(text) => with(200, Body::from(text)),
                found => with(200, Body::from(found.to_string())),
            });
        }
        let kind =
            self.shared.store().kind(&asked.group, &asked.version, &asked.resource).ok_or_else(Problem::no_path)?;
        let subresource = match asked.subresource.as_str() {
            "" => true,
            "status" => kind.has_status && matches!(asked.verb.as_str(), "get" | "update" | "patch"),
            _ => false,
        };
        let placed = kind.namespaced || asked.namespace.is_empty();
        if !subresource || !placed || asked.verb.is_empty() {
            return Err(Problem::no_path());
        }
        let one = !matches!(asked.verb.as_str(), "list" | "watch");
        if one && kind.namespaced && asked.namespace.is_empty() {
            return Err(Problem::method_not_allowed());
        }
        match asked.verb.as_str() {
            "list" => {
                let shape = shape(self.headers)?;
                let listed = list(self.shared, &kind, &asked.namespace, self.query()).await?;
                Ok(with(200, body(&kind, listed, shape)))
            }
            "watch" => {
                let shape = shape(self.headers)?;
                let body = watch(self.shared, &kind, &asked.namespace, self.query(), shape, self.effects).await?;
                Ok(with(200, body))
            }
            "get" => self.get(&kind).await,
            _ => {
                let bytes = to_bytes(request_body, BODY_BYTES_MAX)
                    .await
                    .map_err(|_| Problem::bad_request("request body too large or cut"))?;
                self.write(&kind, &bytes)
            }
        }
    }

    fn content_type(&self) -> &str {
        self.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    fn key(&self) -> Key {
        Key::new(&self.asked().namespace, &self.asked().name)
    }

    async fn get(&self, kind: &Kind) -> Result<Response, Problem> {
        let shape = shape(self.headers)?;
        if let Some(wanted) = self.query().number("resourceVersion")? {
            crate::list::reached(self.shared, wanted).await?;
        }
        let object = self.shared.store().get(kind, &self.key());
        let object = object.ok_or_else(|| Problem::not_found(kind, &self.asked().name))?;
        Ok(with(200, Body::from(text_of(&object, shape))))
    }

    fn write(&self, kind: &Arc<Kind>, bytes: &[u8]) -> Result<Response, Problem> {
        let shape = shape(self.headers)?;
        if self.content_type().contains("protobuf") {
            return Err(Problem::unsupported_media(self.content_type()));
        }
        let (code, object) = match self.asked().verb.as_str() {
            "create" if self.asked().name.is_empty() => (201, self.create(kind, bytes)?),
            "update" if !self.asked().name.is_empty() => {
                let write = self.how(false)?;
                let value = read_json(bytes)?;
                (200, self.shared.write(|store| store.update(kind, &self.key(), value, &write))?)
            }
            "patch" if !self.asked().name.is_empty() => {
                let (object, created) = self.patch(kind, bytes)?;
                (if created { 201 } else { 200 }, object)
            }
            "delete" => return self.delete(kind, bytes),
            "deletecollection" => return self.delete_all(kind, bytes),
            _ => return Err(Problem::method_not_allowed()),
        };
        Ok(with(code, Body::from(text_of(&object, shape))))
    }

    fn create(&self, kind: &Arc<Kind>, bytes: &[u8]) -> Result<Arc<Object>, Problem> {
        let write = self.how(false)?;
        let value = read_json(bytes)?;
        self.shared.write(|store| store.create(kind, &self.asked().namespace, value, &write))
    }

    fn patch(&self, kind: &Arc<Kind>, bytes: &[u8]) -> Result<(Arc<Object>, bool), Problem> {
        let content_type = self.content_type();
        let of = PatchType::named(content_type).ok_or_else(|| Problem::unsupported_media(content_type))?;
        let apply = of == PatchType::Apply;
        if apply && self.query().get("fieldManager").is_empty() {
            return Err(Problem::bad_request(
                "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
            ));
        }
        if !apply && !self.query().get("force").is_empty() {
            return Err(Problem::bad_request(
                "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch",
            ));
        }
        let write = self.how(self.query().is("force"))?;
        let patch = if apply { read_yaml(bytes)? } else { read_json(bytes)? };
        self.shared.write(|store| {
            let creates = apply && store.get(kind, &self.key()).is_none();
            let create = Asked { verb: "create".to_owned(), ..self.asked().clone() };
            if creates && !self.user.rules.allow(&create) {
                return Err(denied(&self.user.name, &create));
            }
            store.patch(kind, &self.key(), patch, of, &write)
        })
    }

    fn delete(&self, kind: &Arc<Kind>, bytes: &[u8]) -> Result<Response, Problem> {
        let (only, dry_run) = self.delete_options(bytes)?;
        let deleted = self.shared.write(|store| store.delete(kind, &self.key(), &only, dry_run))?;
        Ok(match deleted {
            Deleted::Waiting(object) => with(200, Body::from(object.text())),
            Deleted::Gone(object) if kind.kind == "Pod" => with(200, Body::from(object.text())),
            Deleted::Gone(object) => {
                let uid = object.value().pointer("/metadata/uid").cloned().unwrap_or_default();
                let details = json!({"name": object.key.name, "group": kind.group, "kind": kind.plural, "uid": uid});
                let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
                with(200, Body::from(status.to_string()))
            }
        })
    }

    fn delete_all(&self, kind: &Arc<Kind>, bytes: &[u8]) -> Result<Response, Problem> {
        let (only, dry_run) = self.delete_options(bytes)?;
        let selector = Selector::read(kind, self.query().get("labelSelector"), self.query().get("fieldSelector"))?;
        let namespace = &self.asked().namespace;
        let items = self.shared.write(|store| {
            let shelf = store.shelf(kind).ok_or_else(Problem::no_path)?;
            let inside = |object: &&Arc<Object>| {
                (namespace.is_empty() || object.key.namespace == *namespace) && selector.matches(object)
            };
            let keys: Vec<_> = shelf.objects.values().filter(inside).map(|object| object.key.clone()).collect();
            let mut items = Vec::new();
            for key in keys {
                let (Deleted::Gone(object) | Deleted::Waiting(object)) = store.delete(kind, &key, &only, dry_run)?;
                items.push(object.value());
            }
            Ok(items)
        })?;
        let revision = self.shared.store().revision().to_string();
        let list = json!({"kind": format!("{}List", kind.kind), "apiVersion": kind.api_version(), "metadata": {"resourceVersion": revision}, "items": items});
        Ok(with(200, Body::from(list.to_string())))
    }

    fn delete_options(&self, bytes: &[u8]) -> Result<(Preconditions, bool), Problem> {
        let options = if bytes.is_empty() { json!({}) } else { read_json(bytes)? };
        let text = |pointer: &str| options.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let only = Preconditions { uid: text("/preconditions/uid"), revision: text("/preconditions/resourceVersion") };
        let dry_run = options.get("dryRun").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
        Ok((only, dry_run || !self.query().get("dryRun").is_empty()))
    }

    fn how(&self, force: bool) -> Result<Write, Problem> {
        let dry_run = match self.query().get("dryRun") {
            "" => false,
            "All" => true,
            other => return Err(Problem::bad_request(format!("invalid dryRun: {other:?}: supported values: \"All\""))),
        };
        let agent = self.headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or("unknown");
        let manager = match self.query().get("fieldManager") {
            "" => agent.split('/').next().unwrap_or("unknown"),
            manager => manager,
        };
        let writer = Writer { manager: manager.to_owned(), subresource: self.asked().subresource.clone(), now: now() };
        Ok(Write { writer, dry_run, whole: false, force })
    }
}

fn read_json(bytes: &[u8]) -> Result<Value, Problem> {
    serde_json::from_slice(bytes).or_else(|error| {
        // YAML is a body like any other, but cheap clients send JSON: it is tried first.
        read_yaml(bytes)
            .ok()
            .filter(Value::is_object)
            .ok_or_else(|| Problem::bad_request(format!("couldn't get version/kind; json parse error: {error}")))
    })
}

fn read_yaml(bytes: &[u8]) -> Result<Value, Problem> {
    if let Ok(value) = serde_json::from_slice(bytes) {
        return Ok(value);
    }
    serde_norway::from_slice(bytes).map_err(|error| Problem::bad_request(format!("error decoding YAML: {error}")))
}
