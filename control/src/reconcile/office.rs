//! What the holder of the Lease owes to Services in the API: the contract between a Service and its controller.
//!
//! Owns *when*: the finalizer before anything else, status after the dataplane, letting go after the withdrawal
//! (C-001, C-002). What is written and how is the business of [`crate::status::api`]. Nothing is decided in a term before
//! a fresh list of all Services has come in, so that whatever the leader before has written is known (C-006, M-006).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use hashbrown::{HashMap, HashSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{Reconciler, service_key};
use crate::lease::Word;
use crate::model::Name;
use crate::problem::{Problem, Severity};
use crate::resolve;
use crate::session::Standing;
use crate::source::record::{CONDITION_PREFIX, Record};
use crate::source::{ObjectKey, ObjectKind};
use crate::status::api::ApiWriter;
use crate::status::api::book::{Order, Wanted};
use crate::status::api::event::{Happening, Tone};
use crate::status::own::OwnStatus;
use crate::status::service::ServiceStatus;

/// A dataplane that is gone for so long makes this process no good leader.
const UNFIT_AFTER: Duration = Duration::from_secs(10);
/// What a dataplane that is gone for so long has served is taken as withdrawn: nothing is forwarded without one.
const WITHDRAWN_AFTER: Duration = Duration::from_secs(30);

/// The office and what it looks after.
#[derive(Debug, Default)]
pub(super) struct Office {
    writer: Option<ApiWriter>,
    records: HashMap<Name, Record>,
    term: Option<u64>,
    /// The term that the last list of all Services was asked for in.
    listed: u64,
    /// All Services have been listed since the term began.
    informed: bool,
    /// Services that are withdrawn, or on their way to be, because they are to be let go.
    going: HashSet<Name>,
    /// Since when no dataplane is there.
    alone_since: Option<Instant>,
    /// That no gateway serves has been told.
    alone_told: bool,
    trouble: Option<String>,
    /// What the server does not let us write, with its words.
    denied: BTreeMap<&'static str, String>,
}

impl Office {
    /// The term, once decisions may be made in it.
    pub(super) fn in_force(&self) -> Option<u64> {
        self.term.filter(|_| self.informed)
    }

    /// Whether the Service is served no more because it is to be let go.
    pub(super) fn lets_go(&self, name: &Name) -> bool {
        self.going.contains(name)
    }

    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> {
        let lease = self.trouble.iter().map(|why| {
            let message = format!("status of Services cannot be written: {why}");
            Problem::new(Severity::Error, "LeaseUnavailable", message)
        });
        let denied = self.denied.iter().map(|(right, why)| {
            let message = format!("the API server does not let us {right}: {why}");
            Problem::new(Severity::Error, "WriteForbidden", message)
        });
        lease.chain(denied)
    }

    fn order(&self, term: u64, name: &Name, wanted: Wanted) {
        if let (Some(writer), Some(record)) = (&self.writer, self.records.get(name)) {
            writer.write(Order { term, name: name.clone(), record: record.clone(), wanted });
        }
    }

    /// Tells of something that happened to a Service, if this process leads.
    pub(super) fn tell(&self, name: &Name, tone: Tone, reason: &'static str, note: String) {
        if let (Some(writer), Some(record), Some(term)) = (&self.writer, self.records.get(name), self.in_force()) {
            let uid = record.uid.clone();
            let about =
                ObjectKey { kind: ObjectKind::Service, namespace: name.namespace.clone(), name: name.name.clone() };
            writer.happened(term, Happening { about, uid, tone, reason, note });
        }
    }

    /// Tells of something wrong with a policy, if this process leads.
    pub(super) fn tell_of_policy(&self, about: &ObjectKey, uid: &str, reason: &'static str, note: String) {
        if let (Some(writer), Some(term)) = (&self.writer, self.in_force()) {
            let happening = Happening { about: about.clone(), uid: uid.into(), tone: Tone::Warning, reason, note };
            writer.happened(term, happening);
        }
    }
}

impl Office {
    /// Whether our finalizer holds the Service.
    pub(super) fn is_held(&self, name: &Name) -> bool {
        self.records.get(name).is_some_and(Record::is_held)
    }

    /// C-004.
    fn tell_unavailable(&self, name: &Name) {
        let note = "There are no available gateways for the load balancer".into();
        self.tell(name, Tone::Warning, "UnAvailableLoadBalancer", note);
    }

    /// Addresses in status of the Services that the API server has.
    pub(super) fn ingress(&self) -> impl Iterator<Item = (&Name, &[IpAddr])> {
        self.records.iter().map(|(name, record)| (name, record.ingress.as_slice()))
    }

    pub(super) fn ingress_of(&self, name: &Name) -> &[IpAddr] {
        self.records.get(name).map_or(&[], |record| &record.ingress)
    }

    /// Whether there is an API to write to.
    pub(super) fn has_api(&self) -> bool {
        self.writer.is_some()
    }

    /// Writes what this gateway tells of itself, whether this process leads or not.
    pub(super) fn tell_part(&self, own: OwnStatus) {
        if let Some(writer) = &self.writer {
            writer.tell_part(own);
        }
    }

    /// Writes the status of an object of our own kinds, if this process leads.
    pub(super) fn tell_own(&self, own: OwnStatus) {
        if let (Some(writer), Some(term)) = (&self.writer, self.in_force()) {
            writer.tell_own(term, own);
        }
    }
}

impl Reconciler {
    /// The same with a writer to the API.
    #[must_use]
    pub fn with_api(mut self, writer: ApiWriter) -> Self {
        self.office.writer = Some(writer);
        self
    }

    /// Hears of the Lease.
    pub fn hear_of_lease(&mut self, word: Word) {
        match word {
            Word::Taken(term) => {
                tracing::info!(term, "this control writes status from now on");
                (self.office.term, self.office.informed, self.office.alone_told) = (Some(term), false, false);
                self.begin_if_informed();
            }
            Word::Lost => {
                tracing::info!("another control may write status from now on");
                (self.office.term, self.office.informed) = (None, false);
                self.office.denied.clear();
                self.allocation.suspend();
                self.return_to_service();
            }
            Word::Trouble(why) => self.office.trouble = why,
            Word::Denied { right, why: Some(why) } => drop(self.office.denied.insert(right, why)),
            Word::Denied { right, why: None } => drop(self.office.denied.remove(right)),
        }
    }

    /// Whoever leads next cleans up; until then what is to go stays served (C-002).
    fn return_to_service(&mut self) {
        let going: Vec<Name> = self.office.going.drain().collect();
        self.resolve_services(going.into_iter().collect());
    }

    /// What the source has told of a Service that may be ours to look after; `None`: nothing (any more).
    pub(super) fn keep_record(&mut self, name: &Name, record: Option<Record>) {
        let before = match record {
            Some(record) => self.office.records.insert(name.clone(), record),
            None => self.office.records.remove(name),
        };
        let now = self.office.records.get(name);
        if before.is_some() && before.as_ref().map(|before| &before.uid) != now.map(|now| &now.uid) {
            self.office.going.remove(name); // S-005: what comes now is another object
            if let (Some(writer), None) = (&self.office.writer, now) {
                writer.forget(name.clone());
            }
        }
    }

    pub(super) fn has_record(&self, name: &Name) -> bool {
        self.office.records.contains_key(name)
    }

    /// All Services have been listed anew since this was asked for.
    pub(super) fn listed_for(&mut self, asked: u64) {
        self.office.listed = self.office.listed.max(asked);
        self.begin_if_informed();
    }

    fn begin_if_informed(&mut self) {
        if self.office.term == Some(self.office.listed) && self.complete && !self.office.informed {
            self.office.informed = true;
            self.begin_allocation();
            self.leaving.touch();
            self.gates.touch();
            let names: Vec<Name> = self.office.records.keys().cloned().collect();
            for name in names {
                self.attend(&name);
            }
        }
    }

    /// Does what is to be done for one Service now, if this process leads.
    pub(super) fn attend(&mut self, name: &Name) {
        let Some(term) = self.office.in_force() else { return };
        let Some(record) = self.office.records.get(name) else {
            self.release(name);
            return;
        };
        let service = self.model.service(name);
        let ours = service.is_some_and(|service| resolve::service::is_balanced_here(service, &self.site));
        if ours && !record.deleting {
            let held = record.is_held();
            if self.office.alone_told && record.ingress.is_empty() {
                self.office.tell_unavailable(name);
            }
            if self.office.going.remove(name) {
                self.resolve_services([name.clone()].into()); // it has come back
            }
            if !self.file.control.allocate {
                self.refresh(name); // another looks after it; only conditions are ours
                return;
            }
            match held {
                true => self.allocate(name),
                false => self.office.order(term, name, Wanted::Held),
            }
            self.refresh(name);
            return;
        }
        let known = ours || record.managed || !record.conditions.is_empty() || self.office.lets_go(name);
        // Of another class is another's, however it came to bear our finalizer; but what we have held must be able to go.
        let of_our_class = service.is_some_and(|service| service.class == self.site.class);
        if record.is_held() && known && (record.deleting || !record.balanced || of_our_class) {
            self.let_go(term, name);
        } else if service.is_none() && record.balanced {
            if record.class == self.site.class {
                self.tell_unread(name);
            }
            self.reserve(name); // it cannot be read: what it has is its own until it can be
        } else {
            self.release(name);
        }
    }

    /// C-004, for one that never was good: nothing is served of it, so that there is no condition to tell.
    fn tell_unread(&self, name: &Name) {
        let key = ObjectKey { kind: ObjectKind::Service, namespace: name.namespace.clone(), name: name.name.clone() };
        if let Some(problem) = self.invalid.get(&key) {
            self.office.tell(name, Tone::Warning, "SyncLoadBalancerFailed", problem.to_string());
        }
    }

    /// C-002: told, withdrawn, and only then let go.
    fn let_go(&mut self, term: u64, name: &Name) {
        if self.office.going.insert(name.clone()) {
            self.office.tell(name, Tone::Normal, "DeletingLoadBalancer", "Deleting load balancer".into());
            self.resolve_services([name.clone()].into());
            return; // heard of again when the dataplane has answered, or when nothing was to be withdrawn
        }
        if self.is_withdrawn(name) {
            self.office.order(term, name, Wanted::Released);
        }
    }

    fn is_withdrawn(&self, name: &Name) -> bool {
        let key = service_key(name);
        if self.desired.resources.contains_key(&key) {
            return false;
        }
        let gone_for = self.office.alone_since.map(|since| since.elapsed());
        let absent = self.session.standing(&key) == Standing::Absent && self.session.is_settled(&key);
        absent || gone_for.is_some_and(|gone_for| gone_for >= WITHDRAWN_AFTER)
    }

    /// The status of a Service that is ours is certain: it goes to the API too.
    pub(super) fn report(&self, name: &Name, addresses: &[IpAddr], status: &ServiceStatus) {
        let Some(term) = self.office.in_force() else { return };
        let Some(record) = self.office.records.get(name) else { return };
        let service = self.model.service(name);
        let ours = service.is_some_and(|service| resolve::service::is_balanced_here(service, &self.site));
        if !ours || record.deleting || self.office.lets_go(name) {
            return;
        }
        let conditions = status.conditions.iter().map(|condition| Condition {
            type_: format!("{CONDITION_PREFIX}{}", condition.type_),
            ..condition.clone()
        });
        let conditions = conditions.collect();
        if !self.file.control.allocate {
            self.office.order(term, name, Wanted::Told { conditions });
            return;
        }
        if !record.is_held() || !self.allocation.has_decided(name, &record.uid) {
            return;
        }
        // C-001: an address appears when the dataplane has it. One that people know is not taken back because this one
        // gateway has trouble with it (C-006).
        let works = |ip: &&IpAddr| {
            let now = status.load_balancer.ingress.iter().any(|ingress| ingress.ip == **ip);
            now || record.ingress.contains(ip)
        };
        let ingress = addresses.iter().filter(works).copied().collect();
        let pool = self.allocation.pools_of(name);
        self.office.order(term, name, Wanted::Served { ingress, pool, conditions });
    }

    /// Whether this process is fit to lead, and what waits for a dataplane that does not come.
    pub(super) fn look_after_office(&mut self) {
        if self.office.writer.is_none() {
            return;
        }
        if self.session.is_connected() {
            (self.office.alone_since, self.office.alone_told) = (None, false);
        }
        let gone_for = match self.session.is_connected() {
            true => Duration::ZERO,
            false => self.office.alone_since.get_or_insert_with(Instant::now).elapsed(),
        };
        if let Some(writer) = &self.office.writer {
            writer.be_willing(gone_for < UNFIT_AFTER);
        }
        if self.office.in_force().is_none() {
            return;
        }
        if gone_for >= UNFIT_AFTER && !std::mem::replace(&mut self.office.alone_told, true) {
            let unserved =
                self.office.records.iter().filter(|(_, record)| record.balanced && record.ingress.is_empty());
            for (name, _) in unserved.filter(|(name, _)| self.notes.contains_key(*name)) {
                self.office.tell_unavailable(name);
            }
        }
        if gone_for >= WITHDRAWN_AFTER {
            self.go_on_letting_go();
        }
    }

    /// Something may have happened that Services on their way out have waited for.
    pub(super) fn go_on_letting_go(&mut self) {
        let going: Vec<Name> = self.office.going.iter().cloned().collect();
        for name in going {
            self.attend(&name);
        }
    }
}
