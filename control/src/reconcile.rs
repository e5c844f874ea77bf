//! The loop that keeps the dataplane equal to the source.
//!
//! Owns the order of events on one thread: a batch from the source changes the model, what it touched is resolved
//! again, what differs is sent, and answers become status. Refuses to parse, to choose endpoints and to read sockets:
//! each of these has its module, and this file is where they meet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use allocation::Allocation;
use carrying::Carrying;
use desired::{Desired, Known};
use early::Early;
use egress::Leaving;
use events::Events;
use gatewaypolicy::Gates;
use hashbrown::HashMap;
use k8s_openapi::jiff::Timestamp;
use lastgood::LastGood;
use latency::Latency as Latencies;
use metrics::Seen;
use office::Office;
use policies::Policies;
use tidegate_api::message::Response;
use tidegate_api::resource::{Backend, Body, DeliveryMode, Kind, Resource, ResourceKey};
use tidegate_api::show::Shown;
use tidegate_metrics::Metric;

use crate::chorus::{self, Chorus, Retold};
use crate::config::NodeFile;
use crate::health::{Check, Health};
use crate::lease::Word;
use crate::metrics::Board;
use crate::model::policy::PolicyKey;
use crate::model::{Dirty, Model, Name, Object, policy_key};
use crate::problem::{Place, Problem, Severity};
use crate::resolve;
use crate::resolve::claim::{Claims, Frontend};
use crate::resolve::note::Note;
use crate::resolve::reach::Reach;
use crate::resolve::service::Outcome;
use crate::resolve::site::Site;
use crate::session::link::News;
use crate::session::{Session, Standing};
use crate::source::nevergood::NeverGood;
use crate::source::{Batch, Manifest, ObjectKey, ObjectKind, Reading};
use crate::status::StatusWriter;
use crate::status::conflict::Conflicts;
use crate::status::delivery::Deliveries;
use crate::status::service::{Findings, Progress, ServiceStatus};
use crate::status::suspect::Suspects;
use crate::watch::{self, Dialect, Invalid};

/// What there should be, and how sure that is.
mod desired;
/// What the holder of the Lease owes to Services in the API.
mod office;
/// Addresses for Services while this process leads.
mod allocation;
/// What leaves the cluster: policies, static translations, Pods.
mod egress;
/// What external addresses are used for, here and at other gateways.
mod carrying;
/// Which clients may reach which Services.
mod gatewaypolicy;
/// What is told of policies by events.
mod events;
/// Nodes: this gateway, its peers, places of Services.
mod nodes;
/// What is wrong now.
mod problems;
/// Last good versions of policies over a restart.
mod lastgood;
/// What the loop tells of itself in numbers.
mod metrics;
/// How long a change takes from its cause to the last worker.
mod latency;
/// What is resolved before the source is known as a whole.
mod early;
/// Who may reach whom.
mod policies;

pub use latency::Told as Latency;
pub(crate) use policies::equal_priorities;

/// How often a dataplane that owes an answer is looked after.
const LOOK_AFTER_EVERY: Duration = Duration::from_secs(5);
/// Reason of the problem that the dataplane takes updates and does not answer.
const SILENT: &str = "DataplaneSilent";

/// What the loop waits for.
pub enum Input {
    /// The source has changed.
    Source(Batch),
    /// Something came from the dataplane.
    Dataplane(News),
    /// Something is to be known of the Lease.
    Lease(Word),
    /// Somebody wants the figures of the loop.
    Count(Sender<Vec<Metric>>),
    /// End.
    Stop,
}

/// All state of this process.
pub struct Reconciler {
    file: NodeFile,
    dialect: Dialect,
    model: Model,
    desired: Desired,
    claims: Claims,
    /// What the Services were resolved with.
    site: Site,
    /// Nodes whose pods a tunnel leads to.
    reach: Reach,
    /// Notes of the Services that are ours.
    notes: HashMap<Name, Vec<Note>>,
    session: Session,
    /// Where load balancers ask for local endpoints, if that is served.
    health: Option<Health>,
    /// What the dataplane found of the ways to nodes.
    deliveries: Deliveries,
    /// Addresses for which strangers answer, as the dataplane heard.
    conflicts: Conflicts,
    /// Nodes that do not answer, as the dataplane feels it.
    suspects: Suspects,
    status: StatusWriter,
    office: Office,
    allocation: Allocation,
    leaving: Leaving,
    carrying: Carrying,
    gates: Gates,
    events: Events,
    policies: Policies,
    last_good: LastGood,
    latency: Latencies,
    latency_told: Instant,
    /// What has passed by, in numbers.
    seen: Seen,
    board: Arc<Board>,
    /// Objects whose present form is not used.
    invalid: BTreeMap<ObjectKey, Problem>,
    /// Those of them that something stands in for.
    stood_in: BTreeSet<ObjectKey>,
    /// Objects of which no good version has come, but for those that are used without a field.
    never_good: NeverGood,
    /// Objects with fields that their kinds do not have.
    unknown_fields: BTreeMap<ObjectKey, Vec<Problem>>,
    /// Where Services and Nodes stand, for what is found wrong with them later.
    places: HashMap<ObjectKey, Place>,
    source_problems: Vec<Problem>,
    node_problems: BTreeMap<String, Vec<Problem>>,
    dataplane_problem: Option<Problem>,
    told: BTreeSet<Problem>,
    /// What the log tells of many objects at once.
    chorus: Chorus,
    retold: Retold,
    /// The source has been read once.
    complete: bool,
    /// What the portions before that have touched.
    unresolved: Dirty,
    early: Early,
    ready: bool,
}

impl Reconciler {
    /// A process that knows nothing yet.
    pub fn new(file: NodeFile, dialect: Dialect, status: StatusWriter) -> Self {
        let model = Model::default();
        let allocation = Allocation::new(&file.control);
        Reconciler {
            site: Site::new(&file, &model),
            file,
            dialect,
            model,
            desired: Desired::of(dialect),
            claims: Claims::default(),
            reach: Reach::default(),
            notes: HashMap::new(),
            session: Session::default(),
            health: None,
            deliveries: Deliveries::default(),
            conflicts: Conflicts::default(),
            suspects: Suspects::default(),
            status,
            office: Office::default(),
            allocation,
            leaving: Leaving::default(),
            carrying: Carrying::default(),
            gates: Gates::default(),
            events: Events::default(),
            policies: Policies::default(),
            last_good: LastGood::default(),
            latency: Latencies::default(),
            latency_told: Instant::now(),
            seen: Seen::default(),
            board: Arc::default(),
            invalid: BTreeMap::new(),
            stood_in: BTreeSet::new(),
            never_good: NeverGood::default(),
            unknown_fields: BTreeMap::new(),
            places: HashMap::new(),
            source_problems: Vec::new(),
            node_problems: BTreeMap::new(),
            dataplane_problem: None,
            told: BTreeSet::new(),
            chorus: Chorus::default(),
            retold: Retold::default(),
            complete: false,
            unresolved: Dirty::default(),
            early: Early::default(),
            ready: false,
        }
    }

    /// Has load balancers told of local endpoints. Before the first batch.
    #[must_use]
    pub fn telling(self, health: Health) -> Self {
        Reconciler { health: Some(health), ..self }
    }

    /// Says on `board` what it takes.
    #[must_use]
    pub fn counting(self, board: Arc<Board>) -> Self {
        Reconciler { board, ..self }
    }

    /// Says in `never_good` which objects were never good. Before the first batch.
    #[must_use]
    pub fn naming(self, never_good: NeverGood) -> Self {
        Reconciler { never_good, ..self }
    }

    /// Runs until [`Input::Stop`] or until nobody can send any more. Of portions, as long as the source is not known as a
    /// whole, one place in `portions` is made free as each is begun.
    pub fn run(&mut self, inbox: &Receiver<Input>, portions: &Receiver<()>) {
        let mut next = None;
        loop {
            let input = match next.take() {
                Some(input) => Ok(input),
                None => inbox.recv_timeout(LOOK_AFTER_EVERY),
            };
            let begun = Instant::now();
            input.iter().for_each(|input| self.seen.look(input));
            match input {
                Ok(Input::Source(batch)) if !batch.complete => {
                    let _ = portions.try_recv();
                    self.board.took(1);
                    self.seen.took(1);
                    self.take(batch);
                }
                Ok(Input::Source(batch)) => {
                    // What has come while this thread was busy is one change.
                    let mut batches = vec![batch];
                    while let Ok(input) = inbox.try_recv() {
                        match input {
                            Input::Source(later) => {
                                if !later.complete {
                                    let _ = portions.try_recv();
                                }
                                batches.push(later);
                            }
                            other => {
                                next = Some(other);
                                break;
                            }
                        }
                    }
                    self.board.took(batches.len());
                    self.seen.took(batches.len());
                    let batch = match batches.len() {
                        1 => batches.pop().unwrap_or_default(),
                        _ => Batch::merge(batches),
                    };
                    self.take(batch);
                }
                Ok(Input::Dataplane(news)) => self.hear(news),
                Ok(Input::Lease(word)) => self.hear_of_lease(word),
                // An asker that no longer waits is no trouble.
                Ok(Input::Count(reply)) => drop(reply.send(self.figures())),
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Input::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
            self.look_after();
            self.tell_health();
            self.push();
            self.tell_problems();
            self.seen.passed(begun.elapsed());
        }
    }

    /// Takes a batch of changes into the model and resolves what it touched.
    pub fn take(&mut self, batch: Batch) {
        let mut dirty = std::mem::take(&mut self.unresolved);
        self.early.nodes_known |= batch.nodes_known;
        let mut restated = BTreeSet::new();
        for key in &batch.deleted {
            if key.kind == ObjectKind::Service {
                self.keep_record(&key.name(), None);
            }
            self.settle(key, &mut restated);
            self.never_good.remove(key);
            self.unknown_fields.remove(key);
            self.places.remove(key);
            self.forget_good(key);
            self.events.forget(key);
            self.model.delete(key, &mut dirty);
        }
        for manifest in batch.applied {
            self.apply(manifest, &mut dirty, &mut restated);
        }
        let mut recorded: Vec<Name> =
            batch.deleted.iter().filter(|key| key.kind == ObjectKind::Service).map(ObjectKey::name).collect();
        let told = !batch.read.is_empty();
        for reading in batch.read {
            self.apply_reading(reading, &mut dirty, &mut restated, &mut recorded);
        }
        if !batch.complete && !self.complete {
            self.source_problems = batch.problems;
            self.resolve_early(&mut dirty);
            self.unresolved = dirty; // the first portions: the rest is resolved once all are there
            return;
        }
        let first = !self.complete;
        if first {
            self.complete = true;
            tracing::info!(services = self.model.services().len(), "the source is known as a whole");
            dirty.nodes.append(&mut self.early.nodes);
            dirty.services.append(&mut self.early.unripe);
            dirty.nodes.insert(self.file.node.clone()); // so that its absence is told
        }
        let remembers = first && self.remembers();
        if self.desired.unlisted != batch.unlisted {
            self.session.touch_all();
            self.desired.unlisted.clone_from(&batch.unlisted);
        }
        self.settle_good(batch.unreadable, batch.unlisted, batch.strangers, batch.deletes_confirmed, &mut dirty);
        self.desired.remembers |= remembers;
        if self.desired.unreadable && !batch.unreadable {
            self.session.touch_all();
        }
        self.desired.unreadable = batch.unreadable;
        self.source_problems = batch.problems;
        if batch.deletes_confirmed {
            tracing::info!("deletions confirmed");
            self.session.confirm();
        }
        if told {
            dirty.services.extend(self.allocation.expire());
        }
        // Limits before what they limit.
        self.resolve_policies(&mut dirty.policies);
        self.resolve_gates(&dirty);
        self.resolve_nodes(&dirty.nodes);
        self.resolve_site(&mut dirty);
        self.resolve_reach(&mut dirty);
        dirty.services.extend(self.reconsidered_by_policies());
        if first {
            self.tell_early(&dirty.services);
        }
        self.resolve_services(std::mem::take(&mut dirty.services));
        self.resolve_leaving(&dirty);
        self.reconsider(&dirty);
        for name in restated {
            self.refresh(&name);
        }
        for name in recorded {
            self.attend(&name);
        }
        if let Some(asked) = batch.listed_for {
            self.listed_for(asked);
        }
    }

    /// All resources there should be now.
    pub fn resources(&self) -> &BTreeMap<ResourceKey, Resource> {
        &self.desired.resources
    }

    /// The Services that are ours, in order of their names.
    pub fn services(&self) -> BTreeSet<&Name> {
        self.notes.keys().collect()
    }

    /// What must be known of a Service that is ours.
    pub fn notes(&self, name: &Name) -> &[Note] {
        self.notes.get(name).map_or(&[], Vec::as_slice)
    }

    /// Frontends of a Service that belong to another one.
    pub fn lost(&self, name: &Name) -> Vec<(Frontend, Name)> {
        self.claims.lost(name)
    }

    /// Whether the source has been read as a whole.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    fn apply(&mut self, manifest: Manifest, dirty: &mut Dirty, restated: &mut BTreeSet<Name>) {
        let Manifest { key, place, value } = manifest;
        let mut unknown = Vec::new();
        let read = watch::read(&key, &value, self.dialect, self.file.control.exposed(), &mut unknown);
        self.tell_unknown(&key, place.as_ref(), unknown);
        if let (Some(place), true) = (&place, key.kind != ObjectKind::EndpointSlice) {
            self.places.insert(key.clone(), place.clone());
        }
        let service = watch::service_of_slice(&key, &value);
        self.apply_read(key, place, read, service, dirty, restated);
    }

    /// Takes in an object that the source has read.
    fn apply_reading(
        &mut self,
        reading: Reading,
        dirty: &mut Dirty,
        restated: &mut BTreeSet<Name>,
        recorded: &mut Vec<Name>,
    ) {
        let Reading { key, object, service, record, uid, triggered_at } = reading;
        if let Some(uid) = uid {
            self.events.know(&key, uid);
        }
        if key.kind == ObjectKind::Service {
            let name = key.name();
            if record.is_some() || self.has_record(&name) {
                recorded.push(name.clone());
            }
            self.keep_record(&name, record.map(|record| *record));
        }
        if let Some(at) = triggered_at {
            self.latency.caused(&key.name(), service.as_ref(), at, self.complete);
        }
        self.apply_read(key, None, object, service, dirty, restated);
    }

    /// Takes an object into the model, or keeps its last good version; `service` is the one that a slice belongs to.
    fn apply_read(
        &mut self,
        key: ObjectKey,
        place: Option<Place>,
        read: Result<Object, Invalid>,
        service: Option<Name>,
        dirty: &mut Dirty,
        restated: &mut BTreeSet<Name>,
    ) {
        match read {
            Ok(object) => {
                self.settle(&key, restated);
                self.keep_good(&key, &object);
                let partly = matches!(&object, Object::Policy(policy) if !policy.complaints.is_empty());
                self.judge(&key, !partly);
                self.model.apply(object, dirty);
            }
            Err(error) => {
                let held =
                    self.restore_good(&key, dirty) || (self.model.holds_good(&key) && !self.stood_in.contains(&key));
                self.judge(&key, held);
                let kept = kept_words(key.kind, held, error.stand_in.is_some());
                match error.stand_in.filter(|_| !held) {
                    Some(stand_in) => {
                        self.model.apply(*stand_in, dirty);
                        self.stood_in.insert(key.clone());
                    }
                    None if self.stood_in.remove(&key) => self.model.delete(&key, dirty),
                    None => {}
                }
                let mut problem = Problem::new(Severity::Error, "Invalid", format!("{}{kept}", error.message))
                    .about(&key)
                    .in_field(error.field);
                problem.place = place;
                let at_start = !self.complete;
                if at_start
                    && !held
                    && let Some(resource) = self.resource_of(&key, service)
                {
                    self.desired.doubtful.insert(key.clone(), resource);
                }
                match key.kind {
                    ObjectKind::Service => drop(restated.insert(key.name())),
                    ObjectKind::AddressPool => self.allocation.touch(),
                    ObjectKind::EgressPolicy | ObjectKind::StaticNat => self.leaving.touch(),
                    ObjectKind::GatewayPolicy => self.gates.touch(),
                    _ => {}
                }
                self.invalid.insert(key, problem);
            }
        }
    }

    /// Notes whether an object has, or had, a good version, before its present one is taken in. A Pod or Namespace that
    /// is used without a field tells policies who somebody is, and counts as good.
    fn judge(&mut self, key: &ObjectKey, good: bool) {
        if good {
            self.never_good.remove(key);
        } else if !self.model.holds(key) && !lastgood::is_subject(key.kind) {
            self.never_good.insert(key);
        }
    }

    /// The object is good again or gone.
    fn settle(&mut self, key: &ObjectKey, restated: &mut BTreeSet<Name>) {
        self.stood_in.remove(key);
        if self.invalid.remove(key).is_some() && key.kind == ObjectKind::Service {
            restated.insert(key.name());
        }
        match self.desired.doubtful.remove(key) {
            // Services may have waited for it too.
            // And with a policy stay its sets and what its pods are known as.
            // So does what a policy means, with a Pod that nobody can tell whom it is taken for.
            Some(resource) if matches!(resource.kind, Kind::Gateway | Kind::Policy | Kind::Pod | Kind::Identity) => {
                self.session.touch_all();
            }
            Some(resource) => self.session.touch([resource]),
            None => {}
        }
    }

    /// The resource an object takes part in.
    fn resource_of(&self, key: &ObjectKey, service: Option<Name>) -> Option<ResourceKey> {
        match key.kind {
            ObjectKind::Service => Some(service_key(&key.name())),
            ObjectKind::EndpointSlice => service.map(|name| service_key(&name)),
            ObjectKind::Node if key.name == self.file.node => Some(self.gateway_key()),
            ObjectKind::Node => Some(ResourceKey { kind: Kind::Peer, name: key.name.clone() }),
            ObjectKind::EgressPolicy => Some(ResourceKey { kind: Kind::Egress, name: key.name.clone() }),
            ObjectKind::GatewayPolicy => Some(ResourceKey { kind: Kind::GatewayPolicy, name: key.name.clone() }),
            ObjectKind::StaticNat => Some(ResourceKey { kind: Kind::StaticNat, name: key.name.clone() }),
            ObjectKind::Pod => Some(ResourceKey { kind: Kind::Pod, name: key.name().to_string() }),
            ObjectKind::NetworkPolicy | ObjectKind::ClusterNetworkPolicy => {
                Some(ResourceKey { kind: Kind::Policy, name: policy_key(key).resource() })
            }
            // What its pods are known as.
            ObjectKind::Namespace => Some(ResourceKey { kind: Kind::Identity, name: key.name.clone() }),
            ObjectKind::AddressPool => None,
        }
    }

    fn resolve_services(&mut self, names: BTreeSet<Name>) {
        // First who claims what, then what each is left with: a Service may gain or lose by another's change.
        let mut restated = BTreeSet::new();
        for name in names {
            let outcome = match self.model.service(&name).filter(|_| !self.office.lets_go(&name)) {
                Some(service) => {
                    let given = self.allocation.effective(service);
                    let service = given.as_deref().unwrap_or(service);
                    resolve::service::resolve(service, self.model.slices_of(&name), &self.site, &self.reach)
                }
                None => Outcome::NotOurs,
            };
            let (service, notes) = match outcome {
                Outcome::Ours { service, mut notes } => {
                    self.allocation.explain(&name, &mut notes);
                    if let Some(service) = &service {
                        self.note_hidden_clients(service, &mut notes);
                    }
                    (service, Some(notes))
                }
                Outcome::NotOurs => (None, None),
            };
            self.follow_health(&name, notes.is_some());
            restated.extend(self.claims.replace(&name, service));
            self.note(&name, notes);
            restated.insert(name);
        }
        for name in restated {
            let service = self.claims.granted(&name);
            let resource = service.map(|service| resolve::resource(name.to_string(), Body::Service(service)));
            if !self.want(service_key(&name), resource) && self.session.is_settled(&service_key(&name)) {
                self.latency.without_effect(&name);
            }
            self.refresh(&name);
        }
    }

    fn follow_health(&mut self, name: &Name, is_ours: bool) {
        let Some(health) = self.health.as_mut().filter(|_| self.complete) else { return };
        let service = self.model.service(name).filter(|_| is_ours);
        let check = service.and_then(|service| Check::of(service, self.model.slices_of(name), &self.file.node));
        health.follow(name, check);
    }

    /// The dataplane does what it is told when it has answered and owes no answer.
    fn tell_health(&mut self) {
        let healthy = self.session.is_synced() && self.dataplane_problem.is_none();
        if let Some(health) = &mut self.health {
            health.say_healthy(healthy);
        }
    }

    fn note(&mut self, name: &Name, notes: Option<Vec<Note>>) {
        let Some(notes) = notes else {
            self.notes.remove(name);
            return;
        };
        let before = self.notes.get(name).map_or(&[][..], Vec::as_slice);
        let now = Instant::now();
        for note in notes.iter().filter(|note| self.complete && !before.contains(note)) {
            if self.chorus.admits(("condition", note.reason), now) {
                warn_of(name, note);
            }
        }
        self.notes.insert(name.clone(), notes);
    }

    /// Replaces what there should be under `key`; whether that changes anything.
    fn want(&mut self, key: ResourceKey, resource: Option<Resource>) -> bool {
        let changed = self.desired.replace(&key, resource);
        if changed {
            self.session.touch([key]);
        }
        changed
    }

    /// Takes in what the dataplane tells.
    pub fn hear(&mut self, news: News) {
        match news {
            News::Connected { link, stream, holds, reached, server, prepares } => {
                tracing::info!(%server, holds = holds.len(), reached, "connected to the dataplane");
                self.dataplane_problem = None;
                self.deliveries.connected();
                // Another dataplane may suspect nobody, and says nothing then.
                self.suspects.take(Vec::new());
                self.session.connected(link, stream, holds, reached, prepares);
            }
            News::Lost { link, reason } => {
                if self.session.lost(link) {
                    let message = format!("{reason}; it goes on with what it has, and is called again");
                    self.dataplane_problem = Some(Problem::new(Severity::Error, "DataplaneAbsent", message));
                }
            }
            News::Message { link, response } if self.session.is_current(link) => self.answer(response),
            News::Message { .. } => {}
        }
    }

    fn answer(&mut self, response: Response) {
        match response {
            Response::Accepted(accepted) => {
                let first = !self.session.is_synced();
                tracing::debug!(nonce = accepted.nonce, generation = accepted.generation, "update accepted");
                let touched = self.session.accepted(accepted);
                if first && self.session.is_synced() {
                    self.synced();
                }
                self.refresh_all(touched);
            }
            Response::Reached { generation } => {
                let touched = self.session.reached(generation);
                self.refresh_all(touched);
            }
            Response::Delivery { services } => {
                for name in self.deliveries.take(services) {
                    self.refresh(&name);
                }
            }
            Response::Conflicts { addresses } => {
                let concerned = self.conflicts.take(addresses);
                if !concerned.is_empty() {
                    self.leaving.touch();
                }
                // Sources of `fullnat` concern all Services.
                let is_all = self.fullnat_sources().iter().any(|source| concerned.contains(source));
                let of_it = |name: &&Name| is_all || self.has_any(name, &concerned);
                let names: Vec<Name> = self.notes.keys().filter(of_it).cloned().collect();
                names.iter().for_each(|name| self.refresh(name));
            }
            Response::Suspects { nodes } => {
                let concerned = self.suspects.take(nodes);
                let on = |backend: &Backend| concerned.contains(&backend.node);
                let services = self.desired.resources.iter().filter(|(_, resource)| match &resource.body {
                    Body::Service(service) => service.ports.iter().flat_map(|port| &port.backends).any(on),
                    _ => false,
                });
                let keys = services.map(|(key, _)| key.clone()).collect();
                self.refresh_all(keys);
            }
            Response::Shown(Shown::Egress(shown)) if self.session.answered() => self.hear_of_carrying(shown),
            // That it answers is all there is to know.
            Response::Shown(Shown::Control(_)) if self.session.answered() => {}
            Response::Error { message } if self.session.answered() => {
                tracing::debug!(%message, "the dataplane could not tell what it was asked; asked again later");
            }
            Response::Error { message } => {
                tracing::error!(%message, "the dataplane could not serve a request; connecting again");
                self.session.give_up();
            }
            Response::Welcome { .. }
            | Response::Shown(_)
            | Response::Explained(_)
            | Response::Capturing(_)
            | Response::Captured { .. }
            | Response::CaptureEnded(_)
            | Response::Draining { .. } => tracing::warn!("the dataplane answered what was not asked"),
        }
    }

    /// Whether a Service is reached at one of these addresses.
    fn has_any(&self, name: &Name, addresses: &BTreeSet<IpAddr>) -> bool {
        self.model.service(name).is_some_and(|service| service.addresses.iter().any(|own| addresses.contains(own)))
    }

    /// The dataplane has taken everything: what it does is now known for every Service.
    fn synced(&mut self) {
        if !self.ready {
            self.ready = true;
            tracing::info!("tidegate-control ready");
        }
        let names: BTreeSet<Name> = self.notes.keys().cloned().collect();
        for name in &names {
            self.refresh(name);
        }
        self.status.sweep(names);
        self.go_on_letting_go();
    }

    fn refresh_all(&mut self, keys: BTreeSet<ResourceKey>) {
        for key in keys.into_iter().filter(|key| key.kind == Kind::Service) {
            if let Some((namespace, name)) = key.name.split_once('/') {
                self.refresh(&Name { namespace: namespace.into(), name: name.into() });
            }
        }
    }

    /// Writes the status of a Service if there is anything certain to say.
    fn refresh(&mut self, name: &Name) {
        if !self.session.is_synced() {
            return;
        }
        let key = service_key(name);
        let standing = self.session.standing(&key);
        let (Some(notes), Some(service)) = (self.notes.get(name), self.model.service(name)) else {
            if standing == Standing::Absent {
                self.status.service(name.clone(), None);
            }
            if self.office.lets_go(name) {
                self.attend(name);
            }
            return;
        };
        let resource = self.desired.resources.get(&key);
        let refused =
            self.session.refused().get(&key).filter(|refused| resource.is_some_and(|r| r.version == refused.version));
        let progress = match (resource, refused, standing) {
            (None, _, Standing::Absent) => Progress::NothingToServe,
            (Some(_), Some(refused), standing) => {
                Progress::Refused { reason: refused.reason.clone(), earlier: standing != Standing::Absent }
            }
            (Some(resource), None, Standing::Held { version, reached: Some(_) }) if version == resource.version => {
                self.latency.reached(name, Timestamp::now());
                Progress::Programmed
            }
            _ => return, // on its way
        };
        let object =
            ObjectKey { kind: ObjectKind::Service, namespace: name.namespace.clone(), name: name.name.clone() };
        let invalid = self.invalid.get(&object).map(ToString::to_string);
        let lost = self.claims.lost(name);
        let version = resource.map(|resource| resource.version.clone());
        let findings = Findings {
            notes,
            lost: &lost,
            invalid: invalid.as_deref(),
            delivery: resource.filter(|resource| by_node_dsr(resource)).map(|_| self.deliveries.words(name)),
            conflict: self.conflicts.words(&service.addresses, self.fullnat_sources()),
            suspect: resource.and_then(|resource| match &resource.body {
                Body::Service(service) => self.suspects.words(service),
                _ => None,
            }),
        };
        let given = self.allocation.effective(service);
        let service = given.as_deref().unwrap_or(service);
        let status = ServiceStatus::new(service, version, &progress, findings);
        self.report(name, &service.addresses, &status);
        self.status.service(name.clone(), Some(status));
    }

    fn look_after(&mut self) {
        for ((what, reason), left_out) in self.chorus.take_left_out(Instant::now()) {
            tracing::warn!(
                what,
                reason,
                left_out,
                "more lines like these were left out ({} are written in {} s); problems.json and status have them, of very many their number",
                chorus::LINES_MAX,
                chorus::WITHIN.as_secs()
            );
        }
        self.look_after_office();
        self.tell_pools();
        self.ask_of_carrying();
        self.tell_leaving();
        self.tell_gates();
        if self.latency_told.elapsed() >= LOOK_AFTER_EVERY {
            self.latency_told = Instant::now();
            if let Some(latency) = self.latency.news() {
                self.status.latency(latency);
            }
        }
        if !self.session.is_connected() {
            return;
        }
        let before = self.dataplane_problem.take().filter(|problem| problem.reason == SILENT);
        self.dataplane_problem = self.session.silent_for().map(|silent| {
            before.unwrap_or_else(|| {
                let since = Timestamp::now().saturating_sub(silent).unwrap_or_default();
                let message = format!("connected, but has not answered since {since:.0}; waiting");
                Problem::new(Severity::Error, SILENT, message)
            })
        });
        self.session.ask_again(Instant::now());
        if let Err(error) = self.session.give_sign(Instant::now()) {
            tracing::error!(%error, "cannot write to the dataplane; connecting again");
        }
    }

    fn push(&mut self) {
        let known = Known { desired: &self.desired, pods: self.model.pods() };
        let told = match self.complete {
            true => self.session.push(&known).map(drop),
            false => self.session.prepare(&known),
        };
        if let Err(error) = told {
            tracing::error!(%error, "cannot write to the dataplane; connecting again");
        }
    }
}

fn warn_of(name: &Name, note: &Note) {
    tracing::warn!(service = %name, condition = note.kind, reason = note.reason, "{}", note.message);
}

/// What becomes of an object that cannot be read.
pub(crate) fn kept_words(kind: ObjectKind, held: bool, stood_in: bool) -> &'static str {
    match (kind, held, stood_in) {
        (_, true, _) => "; the last good version stays in use",
        (ObjectKind::EgressPolicy, _, true) => "; until it is mended the pods that it selects do not get out",
        (ObjectKind::NetworkPolicy, _, true) => {
            "; without a good version of it known, the object isolates and accepts less than written"
        }
        (ObjectKind::Pod | ObjectKind::Namespace, _, true) => {
            "; without a good version of it known, it is used without that field"
        }
        (_, _, true) => {
            "; without a good version of it known, its rules that cannot be read accept nothing, or deny what they may mean"
        }
        (ObjectKind::NetworkPolicy, ..) => "; the object is not used: the pods it is about are as open as without it",
        (ObjectKind::ClusterNetworkPolicy | ObjectKind::GatewayPolicy, ..) => {
            "; the object is not used: what it is to deny is as open as without it"
        }
        _ => "; the object is not used",
    }
}

fn by_node_dsr(resource: &Resource) -> bool {
    match &resource.body {
        Body::Service(service) => service.ports.iter().any(|port| port.mode == DeliveryMode::NodeDsr),
        _ => false,
    }
}

/// The object that a resource comes from.
fn object_key(key: &ResourceKey) -> ObjectKey {
    let (kind, (namespace, name)) = match key.kind {
        Kind::Service => (ObjectKind::Service, key.name.split_once('/').unwrap_or(("", &key.name))),
        Kind::Pod => (ObjectKind::Pod, key.name.split_once('/').unwrap_or(("", &key.name))),
        Kind::Egress => (ObjectKind::EgressPolicy, ("", key.name.as_str())),
        Kind::GatewayPolicy => (ObjectKind::GatewayPolicy, ("", key.name.as_str())),
        Kind::StaticNat => (ObjectKind::StaticNat, ("", key.name.as_str())),
        Kind::Gateway | Kind::Peer => (ObjectKind::Node, ("", key.name.as_str())),
        Kind::Policy => match PolicyKey::of_resource(&key.name) {
            Some(policy) => return policies::object_key(&policy),
            None => (ObjectKind::NetworkPolicy, ("", key.name.as_str())),
        },
        Kind::Identity | Kind::IdentitySet => (ObjectKind::NetworkPolicy, ("", key.name.as_str())),
    };
    ObjectKey { kind, namespace: namespace.into(), name: name.into() }
}

fn service_key(name: &Name) -> ResourceKey {
    ResourceKey { kind: Kind::Service, name: name.to_string() }
}
