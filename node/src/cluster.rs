//! The API of a cluster as the source of what is wanted.
//!
//! Owns the followed objects (EgressPolicies, StaticNats, Namespaces, Nodes, and the Pods of this Node), and what the
//! API said last, in a file. Reads them by the same code as control does: which policy selects a pod, and where a
//! StaticNat leads, must not be a matter of who looks. An API that is silent changes nothing, for as long as it may be:
//! nothing is wanted otherwise before it speaks again. Which gateway carries an address the gateways themselves say
//! ([`crate::carrier`]), so that a gateway that dies is left while the API is away, too.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

use anyhow::Context;
use tidegate_control::model::staticnat::Target;
use tidegate_control::model::{Dirty, Model, Object};
use tidegate_control::source::kubernetes::{Access, Kubernetes as Api};
use tidegate_control::source::{Batch, ObjectKey, ObjectKind, Running, Source as _};
use tidegate_control::watch::Invalid;

use crate::carrier::{Askers, Carried};
use crate::resolve::{self, Led, resolve};
use crate::source::{File, Source};
use crate::wanted::{Heard, Kubernetes, Wanted};

/// Batches that may wait.
const BATCHES_MAX: usize = 64;
/// Environment variable with the name of the Node.
pub const NODE_VARIABLE: &str = "NODE_NAME";

/// A cluster that is followed.
pub struct Cluster {
    /// What the file says: devices, prefixes, marks.
    file: File,
    base: Wanted,
    settings: Kubernetes,
    node: String,
    batches: Receiver<Batch>,
    model: Model,
    complete: bool,
    /// Objects that cannot be read, and why.
    invalid: BTreeMap<ObjectKey, String>,
    /// StaticNats of those that were never good, each with the pod that would have a whole address by it.
    closed: BTreeMap<ObjectKey, Target>,
    askers: Askers,
    carried: Carried,
    /// Gateways and addresses that were asked about last.
    asked: (Vec<String>, Vec<IpAddr>),
    told: Vec<String>,
    wanted: Option<Wanted>,
    /// What was kept has been told.
    kept_told: bool,
    /// Something may be wanted otherwise.
    moved: bool,
    _running: Running,
}

/// Whether objects of a kind are kept for a start at which they cannot be read any more.
fn is_remembered(kind: ObjectKind) -> bool {
    matches!(kind, ObjectKind::EgressPolicy | ObjectKind::StaticNat)
}

/// Name of this Node.
///
/// # Errors
/// When neither the file nor the environment says it.
pub fn node_name(settings: &Kubernetes) -> anyhow::Result<String> {
    let named = settings.node.clone().or_else(|| std::env::var(NODE_VARIABLE).ok()).filter(|name| !name.is_empty());
    named.with_context(|| format!("kubernetes.node: say the name of this Node here, or in {NODE_VARIABLE}"))
}

/// What the API said last, as it was kept; `None`: nothing was, or it cannot be read.
pub fn kept(path: &Path) -> Option<Wanted> {
    Wanted::parse(&fs::read_to_string(path).ok()?).ok()
}

impl Cluster {
    /// Begins to follow the API as `base`, read from `file`, says.
    ///
    /// # Errors
    /// When it can never work: no name, no way to the API. A server that does not answer is waited for.
    pub fn start(file: File, base: Wanted, settings: Kubernetes) -> anyhow::Result<Cluster> {
        let node = node_name(&settings)?;
        let access = Access::new(settings.kubeconfig.as_deref()).context("the Kubernetes API")?;
        let (send, batches) = sync_channel(BATCHES_MAX);
        let api = Box::new(Api::of_worker(access, &node));
        let running = api.start(Box::new(move |batch| send.send(batch).is_ok())).context("the Kubernetes API")?;
        let askers = Askers::start(settings.gateway_port).context("asking gateways")?;
        Ok(Cluster {
            file,
            base,
            node,
            batches,
            model: Model::default(),
            complete: false,
            invalid: BTreeMap::new(),
            closed: BTreeMap::new(),
            askers,
            carried: Carried::default(),
            asked: (Vec::new(), Vec::new()),
            told: Vec::new(),
            wanted: kept(&settings.state_file),
            settings,
            kept_told: false,
            moved: true,
            _running: running,
        })
    }

    /// Takes in what the API has said since the last look.
    fn take(&mut self) {
        while let Ok(batch) = self.batches.try_recv() {
            for problem in &batch.problems {
                let text = problem.to_string();
                if !self.told.contains(&text) {
                    tracing::warn!("{text}");
                }
            }
            self.told = batch.problems.iter().map(ToString::to_string).collect();
            let mut dirty = Dirty::default();
            for key in &batch.deleted {
                self.forgive(key);
                self.model.delete(key, &mut dirty);
            }
            for reading in batch.read {
                match reading.object {
                    Ok(object) => {
                        self.forgive(&reading.key);
                        self.model.apply(object, &mut dirty);
                    }
                    Err(error) => self.put_up_with(reading.key, error, &mut dirty),
                }
            }
            if batch.complete && !self.complete {
                self.complete = true;
                tracing::info!("the API is known as a whole");
            }
            self.moved = true;
        }
    }

    /// An object that can be read again, or is gone.
    fn forgive(&mut self, key: &ObjectKey) {
        self.invalid.remove(key);
        self.closed.remove(key);
    }

    /// An object that cannot be read: what was good stays. Of a policy or StaticNat without any that is the version that an
    /// earlier run understood, or what can be understood of this one.
    fn put_up_with(&mut self, key: ObjectKey, error: Invalid, dirty: &mut Dirty) {
        let mut text = error.to_string();
        self.closed.remove(&key);
        let recalled = if self.model.holds_good(&key) { None } else { self.recall(&key) };
        let is_good = self.model.holds_good(&key) || recalled.is_some() || !is_remembered(key.kind);
        if let Some(before) = recalled {
            self.model.apply(before, dirty);
        }
        if is_good {
            text += "; it is left as it was";
        } else if let Some(stand_in) = error.stand_in {
            self.model.apply(*stand_in, dirty);
            text += "; until it is mended the pods that it selects do not get out";
        } else if key.kind == ObjectKind::EgressPolicy {
            text += "; whom it selects nobody can tell: until it is mended, pods that come anew do not get out";
        } else if let Some(target) = error.whole_of {
            self.closed.insert(key.clone(), target);
            text += "; until it is mended the pod that it names does not get out";
        } else {
            text += "; until it is mended nobody is reached by it";
        }
        if self.invalid.get(&key) != Some(&text) {
            tracing::error!("{key}: {text}");
        }
        self.invalid.insert(key, text);
    }

    /// A policy or StaticNat as it could be read last, by this run or an earlier one.
    fn recall(&self, key: &ObjectKey) -> Option<Object> {
        let heard = self.wanted.as_ref()?.heard.as_ref()?;
        match key.kind {
            ObjectKind::EgressPolicy => {
                let before = heard.policies.iter().find(|policy| policy.name == key.name)?.recall()?;
                Some(Object::EgressPolicy(Box::new(before)))
            }
            ObjectKind::StaticNat => {
                heard.static_nats.iter().find(|nat| nat.name == key.name).cloned().map(Object::StaticNat)
            }
            _ => None,
        }
    }

    /// What was heard before, with what cannot be read now, and whether there is a policy of which nobody can tell whom it
    /// selects.
    fn heard(&self) -> (Heard, bool) {
        let unreadable = || self.invalid.iter().filter(|(key, _)| is_remembered(key.kind));
        let before = self.wanted.as_ref().and_then(|wanted| wanted.heard.clone()).unwrap_or_default();
        let told = unreadable().map(|(key, text)| format!("{key}: {text}")).collect();
        let mut policies = unreadable().filter(|(key, _)| key.kind == ObjectKind::EgressPolicy);
        (Heard { unreadable: told, ..before }, policies.any(|(key, _)| !self.model.holds(key)))
    }

    /// What is wanted by all that is known; `None`: that cannot be told yet.
    fn resolve(&mut self) -> Result<Option<Wanted>, Vec<String>> {
        let found = resolve::surroundings(&self.model, &self.base, &self.settings, &self.node)
            .map_err(|complaint| vec![complaint])?;
        let led = Led::of(&self.model, &self.node, &self.closed);
        let asked: Vec<IpAddr> = resolve::asked(&self.model, &led);
        self.askers.ask(&found.gateways, &found.asked_at, &asked);
        self.asked = (found.gateways.iter().map(|gateway| gateway.name.clone()).collect(), asked);
        if !self.decide() {
            return Ok(None);
        }
        let (before, blind) = self.heard();
        let (model, base) = (&self.model, &self.base);
        let led = Led::of(model, &self.node, &self.closed);
        let wanted = resolve(model, base, &self.settings, &self.node, found, &led, &self.carried, &before, blind);
        let complaints = wanted.complaints();
        if complaints.is_empty() { Ok(Some(wanted)) } else { Err(complaints) }
    }

    /// Chooses carriers by what gateways have said; false while that is not certain.
    fn decide(&mut self) -> bool {
        let (names, asked) = &self.asked;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.carried.decide(asked, &names, &self.askers.heard(), Instant::now())
    }

    fn keep(&self, wanted: &Wanted) {
        let path = &self.settings.state_file;
        let write = || -> std::io::Result<()> {
            if let Some(directory) = path.parent() {
                fs::create_dir_all(directory)?;
            }
            let hidden = path.with_extension("new");
            fs::write(&hidden, serde_json::to_vec_pretty(wanted)?)?;
            fs::rename(&hidden, path)
        };
        if let Err(error) = write() {
            tracing::warn!(path = %path.display(), %error, "what the API says is not kept; `status` cannot tell of it");
        }
    }
}

impl Source for Cluster {
    fn changed(&mut self) -> Result<Option<Wanted>, Vec<String>> {
        if let Some(base) = self.file.changed()? {
            if base.kubernetes.as_ref() != Some(&self.settings) {
                tracing::warn!("kubernetes: what differs there counts from the next start");
            }
            (self.base, self.moved) = (base, true);
        }
        self.take();
        if !self.complete {
            // What was kept counts until the API is known: the kernel may have lost it meanwhile.
            let told = std::mem::replace(&mut self.kept_told, true);
            return Ok(self.wanted.clone().filter(|_| !told));
        }
        if !self.moved {
            let before = self.carried.clone();
            if !self.askers.has_news() || !self.decide() || self.carried == before {
                return Ok(None);
            }
        }
        let Some(wanted) = self.resolve().inspect_err(|_| self.moved = false)? else { return Ok(None) };
        self.moved = false;
        if self.wanted.as_ref() == Some(&wanted) {
            return Ok(None);
        }
        self.keep(&wanted);
        self.wanted = Some(wanted.clone());
        Ok(Some(wanted))
    }
}
