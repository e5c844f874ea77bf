//! The writer to the API: finalizers, `status.loadBalancer`, conditions and events of Services.
//!
//! Owns one thread on which the campaign for the Lease and all writes run, so that a slow API server never delays an
//! update to the dataplane. [`book`] knows what is to be written and in which order; this file sends it, several Services
//! at a time. Refuses to decide anything about a Service. A write is sent only while the Lease covers the term in which
//! it was decided, and names the identity and version of the object it was decided for: what was decided by a leader
//! that slept is refused by its own clock, and after that by the server.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1 as api;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::ApiResource;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use crate::lease::{Campaign, Settings, Tenure, Word};
use crate::model::Name;
use crate::source::kubernetes::{Access, Refresh, words};
use crate::source::record::{FIELD_MANAGER, FINALIZER, Record};
use crate::source::{ObjectKey, ObjectKind};
use crate::status::own::OwnStatus;
use crate::watch::annotation::ALLOCATED_FROM;
use book::{Book, Ended, Order, Step};
use event::{Happening, Tone};
use turns::{Turn, Turns};

/// What is to be written, and the next step.
pub mod book;
/// Events about Services.
pub mod event;
/// Which status of an object of our own kinds is written, and which waits.
mod turns;

/// Writes on their way at once.
const WRITES_MAX: usize = 16;
/// A write that is not answered has failed. Shorter than what lies between the end of writing and the end of the Lease,
/// so that none arrives in another's term.
const WRITE_WITHIN: Duration = Duration::from_secs(4);

/// Takes orders; dropping it gives the Lease away and ends the thread.
#[derive(Debug)]
pub struct ApiWriter {
    orders: Option<mpsc::UnboundedSender<Message>>,
    willing: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Message {
    Write(Box<Order>),
    Forget(Name),
    Happened(u64, Happening),
    Own(Turn),
}

impl ApiWriter {
    /// Starts the thread. `tell` hears of the Lease; when it is taken, a fresh list of Services is asked of `refresh`
    /// under the number of the term.
    ///
    /// # Errors
    /// When there can be no thread or no client.
    pub fn start(
        access: &Access,
        settings: Settings,
        refresh: Refresh,
        mut tell: impl FnMut(Word) + Send + 'static,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = {
            let _inside = runtime.enter();
            access.client().map_err(|error| io::Error::other(error.to_string()))?
        };
        let (orders, taken) = mpsc::unbounded_channel();
        let (willing, wills) = watch::channel(true);
        let thread = thread::Builder::new().name("api".into()).spawn(move || {
            let heard = move |word: Word| {
                let taken = match word {
                    Word::Taken(term) => Some(term),
                    _ => None,
                };
                tell(word);
                if let Some(term) = taken {
                    refresh.ask(term);
                }
            };
            runtime.block_on(run(client, settings, taken, wills, heard));
            runtime.shutdown_background();
        })?;
        Ok(ApiWriter { orders: Some(orders), willing, thread: Some(thread) })
    }

    /// Has the API made what the order says.
    pub fn write(&self, order: Order) {
        self.send(Message::Write(Box::new(order)));
    }

    /// The Service is gone.
    pub fn forget(&self, name: Name) {
        self.send(Message::Forget(name));
    }

    /// Something happened in `term`.
    pub fn happened(&self, term: u64, happening: Happening) {
        self.send(Message::Happened(term, happening));
    }

    /// Writes the status of an object of our own kinds, decided in `term`. One that cannot be written is told again with
    /// the next news.
    pub fn tell_own(&self, term: u64, own: OwnStatus) {
        self.send(Message::Own(Turn { term: Some(term), own: Box::new(own) }));
    }

    /// Writes what this gateway tells of itself in the status of an object, whoever has the Lease: nobody else writes it.
    pub fn tell_part(&self, own: OwnStatus) {
        self.send(Message::Own(Turn { term: None, own: Box::new(own) }));
    }

    /// Whether this process is one that should hold the Lease.
    pub fn be_willing(&self, willing: bool) {
        self.willing.send_if_modified(|present| std::mem::replace(present, willing) != willing);
    }

    fn send(&self, message: Message) {
        if let Some(orders) = &self.orders {
            let _ = orders.send(message);
        }
    }
}

impl Drop for ApiWriter {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn run(
    client: Client,
    settings: Settings,
    mut orders: mpsc::UnboundedReceiver<Message>,
    willing: watch::Receiver<bool>,
    mut tell: impl FnMut(Word),
) {
    let tenure = Arc::new(Tenure::default());
    let (end, ended) = watch::channel(false);
    let (lost, mut losses) = mpsc::unbounded_channel();
    let (happen, happened) = mpsc::channel(event::WAITING_MAX);
    let denied = RefCell::new(Denied { told: BTreeSet::new(), tell: &mut tell });
    let events = event::send(client.clone(), settings.identity.clone(), tenure.clone(), happened, &denied);
    let heard = |word: Word| {
        if word == Word::Lost {
            let _ = lost.send(());
            // Whoever writes now will be told; if it is us again, anew.
            denied.borrow_mut().told.clear();
        }
        (denied.borrow_mut().tell)(word);
    };
    let campaign = Campaign::new(client.clone(), settings, &tenure, heard).run(willing, ended);
    let mut desk = Desk { book: Book::default(), happen, denied: &denied };
    let write = async {
        let mut writes = FuturesUnordered::new();
        let mut turns = Turns::default();
        let mut told = FuturesUnordered::new();
        let own = |turn| tell_own(&client, &tenure, &denied, turn);
        loop {
            while writes.len() < WRITES_MAX
                && let Some((name, term, record, step)) = desk.book.next(Instant::now())
            {
                desk.tell_before(&name, term, &record, &step);
                let services = Api::namespaced(client.clone(), &name.namespace);
                writes.push(take_step(services, &tenure, name, term, record, step));
            }
            let due = desk.book.due().unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                message = orders.recv() => match message {
                    None => break,
                    Some(Message::Write(order)) => desk.book.take(*order),
                    Some(Message::Forget(name)) => desk.book.forget(&name),
                    Some(Message::Happened(term, happening)) => desk.tell(term, happening),
                    Some(Message::Own(turn)) => told.extend(turns.take(turn, Instant::now()).map(own)),
                },
                Some(done) = writes.next(), if !writes.is_empty() => desk.finish(done),
                Some((done, is_written)) = told.next(), if !told.is_empty() => {
                    told.extend(turns.finish(&done, is_written, Instant::now()).map(own));
                }
                Some(()) = losses.recv() => desk.book.clear(),
                () = tokio::time::sleep_until(due.into()) => {}
            }
        }
        let _ = end.send(true);
    };
    tokio::pin!(events);
    let both = async { tokio::join!(campaign, write) };
    tokio::select! {
        _ = both => {}
        () = &mut events => {}
    }
}

struct Desk<'a> {
    book: Book,
    happen: mpsc::Sender<(u64, Happening)>,
    denied: &'a RefCell<Denied<'a>>,
}

/// Rights to write that the server does not grant us, and who is told.
struct Denied<'a> {
    told: BTreeSet<&'static str>,
    tell: &'a mut dyn FnMut(Word),
}

impl Denied<'_> {
    /// Takes in how a write ended that takes `right`.
    fn note<T>(&mut self, right: &'static str, result: Result<&T, &kube::Error>) {
        match result {
            Err(kube::Error::Api(status)) if matches!(status.code, 401 | 403) => {
                if self.told.insert(right) {
                    (self.tell)(Word::Denied { right, why: Some(format!("{} ({})", status.message, status.code)) });
                }
            }
            // Any other answer was given to somebody who may ask; silence says nothing.
            Ok(_) | Err(kube::Error::Api(_)) => {
                if self.told.remove(right) {
                    (self.tell)(Word::Denied { right, why: None });
                }
            }
            Err(_) => {}
        }
    }
}

impl Step {
    /// What it takes to be allowed to.
    fn right(&self) -> &'static str {
        match self {
            Step::Fetch => "get services",
            Step::Hold | Step::LetGo | Step::Mark(_) => "patch services",
            Step::Write { .. } => "patch services/status",
        }
    }
}

/// A step that has ended, with what it was about.
struct Done {
    name: Name,
    term: u64,
    before: Record,
    step: Step,
    result: Result<api::Service, Trouble>,
}

/// Why a step did not go through.
enum Trouble {
    /// The Lease does not cover it any more.
    OutOfOffice,
    Late,
    Api(kube::Error),
}

impl Desk<'_> {
    fn tell(&self, term: u64, happening: Happening) {
        let _ = self.happen.try_send((term, happening)); // a full queue loses some
    }

    fn tell_about(&self, name: &Name, uid: &str, term: u64, tone: Tone, reason: &'static str, note: String) {
        let about = ObjectKey { kind: ObjectKind::Service, namespace: name.namespace.clone(), name: name.name.clone() };
        self.tell(term, Happening { about, uid: uid.into(), tone, reason, note });
    }

    /// C-001: it is told before the first write.
    fn tell_before(&self, name: &Name, term: u64, record: &Record, step: &Step) {
        if *step == Step::Hold {
            let note = "Ensuring load balancer".into();
            self.tell_about(name, &record.uid, term, Tone::Normal, "EnsuringLoadBalancer", note);
        }
    }

    fn finish(&mut self, done: Done) {
        let Done { name, term, before, step, result } = done;
        match &result {
            Ok(object) => self.denied.borrow_mut().note(step.right(), Ok(object)),
            Err(Trouble::Api(error)) => self.denied.borrow_mut().note::<()>(step.right(), Err(error)),
            Err(Trouble::OutOfOffice | Trouble::Late) => {}
        }
        let ended = match result {
            Ok(object) => {
                self.tell_after(&name, term, &before, &step);
                Ended::Done(Record::of(&object))
            }
            // Either that is heard soon and the book is cleared, or a late renewal has made it good.
            Err(Trouble::OutOfOffice | Trouble::Late) => Ended::Failed,
            Err(Trouble::Api(kube::Error::Api(status))) => match status.code {
                404 => Ended::Gone,
                409 => Ended::Conflict,
                _ => {
                    tracing::warn!(service = %name, ?step, error = %status.message, "a write was refused");
                    let (reason, doing) = match (&step, before.deleting || !before.balanced) {
                        (_, true) => ("DeleteLoadBalancerFailed", "cleaning up"),
                        (Step::Write { .. }, _) if !before.ingress.is_empty() => {
                            ("UpdateLoadBalancerFailed", "updating")
                        }
                        _ => ("SyncLoadBalancerFailed", "ensuring"),
                    };
                    let note = format!("Error {doing} load balancer: {}", status.message);
                    self.tell_about(&name, &before.uid, term, Tone::Warning, reason, note);
                    Ended::Failed
                }
            },
            Err(Trouble::Api(error)) => {
                tracing::debug!(service = %name, ?step, %error, "a write failed");
                Ended::Failed
            }
        };
        self.book.ended(&name, &before.uid, ended, Instant::now());
    }

    fn tell_after(&self, name: &Name, term: u64, before: &Record, step: &Step) {
        match step {
            Step::Write { ingress: Some(ingress), .. } if !ingress.is_empty() && before.ingress != *ingress => {
                let list: Vec<String> = ingress.iter().map(ToString::to_string).collect();
                let note = format!("Ensured load balancer: served at {}", list.join(", "));
                self.tell_about(name, &before.uid, term, Tone::Normal, "EnsuredLoadBalancer", note);
            }
            Step::LetGo => {
                let note = "Deleted load balancer".into();
                self.tell_about(name, &before.uid, term, Tone::Normal, "DeletedLoadBalancer", note);
            }
            _ => {}
        }
    }
}

/// Sends one step if the term still covers it.
async fn take_step(
    services: Api<api::Service>,
    tenure: &Tenure,
    name: Name,
    term: u64,
    before: Record,
    step: Step,
) -> Done {
    let result = match tenure.write(term) {
        None => Err(Trouble::OutOfOffice),
        Some(_leave) => match tokio::time::timeout(WRITE_WITHIN, send(&services, &name, &before, &step)).await {
            Ok(result) => result.map_err(Trouble::Api),
            Err(_) => Err(Trouble::Late),
        },
    };
    Done { name, term, before, step, result }
}

/// Writes the status of an object of our own kinds, in a term only if that still covers it; and whether it is written.
async fn tell_own(client: &Client, tenure: &Tenure, denied: &RefCell<Denied<'_>>, turn: Turn) -> (Turn, bool) {
    let leave = turn.term.map(|term| tenure.write(term));
    let is_written = match turn.own.resource() {
        Some(resource) if !matches!(leave, Some(None)) => patch_own(client, denied, &turn.own, &resource).await,
        _ => false,
    };
    (turn, is_written)
}

async fn patch_own(client: &Client, denied: &RefCell<Denied<'_>>, own: &OwnStatus, resource: &ApiResource) -> bool {
    let objects: Api<DynamicObject> = Api::all_with(client.clone(), resource);
    let parameters = PatchParams::apply(own.manager.as_deref().unwrap_or(FIELD_MANAGER)).force();
    let patch = Patch::Apply(own.object(resource));
    let written = objects.patch_status(&own.name, &parameters, &patch);
    let (kind, name) = (own.kind, &own.name);
    match tokio::time::timeout(WRITE_WITHIN, written).await {
        Ok(result) => {
            denied.borrow_mut().note(own.rule(), result.as_ref());
            if let Err(error) = &result {
                tracing::warn!(%kind, %name, error = words(error), "a status could not be written");
            }
            result.is_ok()
        }
        Err(_) => {
            tracing::warn!(%kind, %name, "the writing of a status was not answered");
            false
        }
    }
}

/// Sends one step; the object as it then is.
async fn send(services: &Api<api::Service>, name: &Name, before: &Record, step: &Step) -> kube::Result<api::Service> {
    let metadata = json!({
        "name": name.name,
        "namespace": name.namespace,
        "uid": before.uid,
        "resourceVersion": before.resource_version,
    });
    match step {
        Step::Fetch => services.get(&name.name).await,
        Step::Hold | Step::LetGo => {
            // The whole list under the version it was read at: nobody else's finalizer gets lost.
            let mut finalizers: Vec<&str> = before.finalizers.iter().map(String::as_str).collect();
            finalizers.retain(|finalizer| *finalizer != FINALIZER);
            if *step == Step::Hold {
                finalizers.push(FINALIZER);
            }
            let mut metadata = metadata;
            metadata["finalizers"] = if finalizers.is_empty() { Value::Null } else { json!(finalizers) };
            let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
            services.patch(&name.name, &parameters, &Patch::Merge(json!({ "metadata": metadata }))).await
        }
        Step::Mark(pool) => {
            let mut metadata = metadata;
            metadata["annotations"] = json!({ ALLOCATED_FROM: pool });
            let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
            services.patch(&name.name, &parameters, &Patch::Merge(json!({ "metadata": metadata }))).await
        }
        Step::Write { ingress, conditions } => {
            let mut status = serde_json::Map::new();
            if let Some(ingress) = ingress {
                // C-007: an address each, and the mode unset.
                let entries: Vec<Value> = ingress.iter().map(|ip| json!({ "ip": ip })).collect();
                status.insert("loadBalancer".into(), json!({ "ingress": entries }));
            }
            if !conditions.is_empty() {
                status.insert("conditions".into(), json!(conditions));
            }
            let object = json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata, "status": status });
            let parameters = PatchParams::apply(FIELD_MANAGER).force(); // C-005
            services.patch_status(&name.name, &parameters, &Patch::Apply(object)).await
        }
    }
}
