//! A cluster read once from files, and what its policies say.
//!
//! Owns reading a folder of manifests as one cluster, and questions about it ([`question`]): answered by the very tables
//! that a gateway uses, made by the very code that makes them. Refuses to know how questions arrive and answers leave. The
//! words of [`explain`] come from another reading of the same objects, rule by rule, which says what did not match and why.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use hashbrown::HashMap;
use serde_json::Value;
use tidegate_api::resource::Tier;
use tidegate_policy::{Compiler, Table};

use crate::model::policy::{Policy, PolicyKey, PolicyKind};
use crate::model::{Dirty, Model, Name, Object};
use crate::policies::Policies;
use crate::problem::{Place, Problem, Severity};
use crate::reconcile::{equal_priorities, kept_words};
use crate::resolve;
use crate::source::manifest::Stranger;
use crate::source::{Manifest, ObjectKey, ObjectKind, manifest, scan};
use crate::watch::{self, Dialect, Exposed};

/// One question and its answer.
pub mod question;
/// Why an answer is what it is, in words.
pub mod explain;
/// Services, by name or address.
mod service;
/// What GatewayPolicies say, in words.
mod gate;
/// Which rules a gateway can enforce.
pub mod report;

/// A cluster out of a folder.
pub struct Offline {
    pub(crate) model: Model,
    pub(crate) index: Policies,
    compiler: Compiler,
    /// `spec` of Services, as written: a gateway does not look at selectors, but people ask about Services.
    pub(crate) services: BTreeMap<Name, Value>,
    /// Their labels.
    pub(crate) service_labels: BTreeMap<Name, BTreeMap<String, String>>,
    /// Where they are reached.
    service_addresses: service::Addresses,
    problems: Vec<Problem>,
    /// Kinds of policies that are not read.
    ignored: BTreeSet<String>,
}

impl Offline {
    /// Reads every manifest in a folder and in those below it. What cannot be read is told in [`Self::problems`], and the
    /// rest is used.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn read(folder: &Path) -> io::Result<Self> {
        let mut files = Vec::new();
        gather(folder, "", &mut files)?;
        let mut offline = Offline {
            model: Model::default(),
            index: Policies::default(),
            compiler: Compiler::default(),
            services: BTreeMap::new(),
            service_labels: BTreeMap::new(),
            service_addresses: service::Addresses::default(),
            problems: Vec::new(),
            ignored: BTreeSet::new(),
        };
        let mut places = HashMap::new();
        let mut dirty = Dirty::default();
        for file in files {
            match fs::read_to_string(folder.join(&file)).map(|text| manifest::parse(&file, &text)) {
                Ok(Ok(content)) => {
                    offline.problems.extend(content.nameless);
                    offline.tell_ignored(&file, content.strangers.keys());
                    for manifest in content.manifests {
                        offline.take(manifest, &mut places, &mut dirty);
                    }
                }
                Ok(Err(problem)) => offline.problems.push(*problem),
                Err(error) => {
                    let message = format!("{file}: cannot be read: {error}");
                    offline.problems.push(Problem::new(Severity::Error, "Unreadable", message));
                }
            }
        }
        offline.problems.extend(resolve::pod::contested(offline.model.pods()));
        offline.tell_equal_priorities(&places);
        let resolved = offline.model.resolve_policies(&mut offline.index, &dirty.policies);
        offline.compiler.update(resolved.iter().map(|(key, resource)| (key, resource.as_ref())));
        Ok(offline)
    }

    /// Kinds of policies that are not read, each where it is met first. Other kinds are nobody's business here.
    fn tell_ignored<'a>(&mut self, file: &str, strangers: impl Iterator<Item = &'a Stranger>) {
        for stranger in strangers.filter(|stranger| manifest::is_policy(&stranger.types)) {
            let met = self.ignored.insert(stranger.types.clone());
            self.problems.extend(met.then(|| manifest::unread_kind(&stranger.types, file)));
        }
    }

    fn tell_equal_priorities(&mut self, places: &HashMap<ObjectKey, Place>) {
        let mut tiers: BTreeMap<Tier, BTreeSet<PolicyKey>> = BTreeMap::new();
        let of_clusters = |policy: &&Policy| policy.key.kind == PolicyKind::ClusterNetworkPolicy;
        for policy in self.model.policies().values().filter(of_clusters) {
            tiers.entry(policy.tier).or_default().insert(policy.key.clone());
        }
        self.problems.extend(tiers.values().filter_map(|keys| equal_priorities(keys, |key| places.get(key).cloned())));
    }

    fn take(&mut self, manifest: Manifest, places: &mut HashMap<ObjectKey, Place>, dirty: &mut Dirty) {
        let Manifest { key, place, value } = manifest;
        let at = place.clone();
        let tell = |problem: Problem| Problem { place: at.clone(), ..problem.about(&key) };
        if let (Some(first), Some(_)) = (places.get(&key), &place) {
            let message = format!("is there already ({first}); this one is not used");
            self.problems.push(tell(Problem::new(Severity::Error, "Twice", message)));
            return;
        }
        places.extend(place.map(|place| (key.clone(), place)));
        match key.kind {
            ObjectKind::Service => {
                let spec = value.get("spec").cloned().unwrap_or_default();
                let labels = value.pointer("/metadata/labels").cloned().unwrap_or_default();
                self.service_labels.insert(key.name(), serde_json::from_value(labels).unwrap_or_default());
                self.services.insert(key.name(), spec);
                self.find_addresses(&key, &value, &tell);
                return;
            }
            ObjectKind::AddressPool => return,
            _ => {}
        }
        let mut unknown = Vec::new();
        match watch::read(&key, &value, Dialect::Files, Exposed::default(), &mut unknown) {
            Ok(object) => self.hold(object, &tell, dirty),
            Err(error) => {
                let kept = kept_words(key.kind, false, error.stand_in.is_some());
                let problem = Problem::new(Severity::Error, "Invalid", format!("{}{kept}", error.message));
                self.problems.push(tell(problem).in_field(error.field));
                if let Some(stand_in) = error.stand_in {
                    self.hold(*stand_in, &tell, dirty);
                }
            }
        }
        let of_policy = [ObjectKind::NetworkPolicy, ObjectKind::ClusterNetworkPolicy, ObjectKind::GatewayPolicy];
        for field in unknown.into_iter().filter(|_| of_policy.contains(&key.kind)) {
            let problem =
                Problem::new(Severity::Warning, "UnknownField", "is no field of this kind: nobody looks at it");
            self.problems.push(tell(problem).in_field(field));
        }
    }

    /// Where a Service is reached, with whatever a gateway may be told to serve.
    fn find_addresses(&mut self, key: &ObjectKey, value: &Value, tell: &dyn Fn(Problem) -> Problem) {
        let read = |exposed| watch::read(key, value, Dialect::Files, exposed, &mut Vec::new());
        let all = Exposed { external_ips: true, cluster_ips: true, node_ports: true, metallb_annotations: true };
        match read(all).or_else(|_| read(Exposed::default())) {
            Ok(Object::Service(service)) => self.service_addresses.insert(&service),
            Ok(_) => {}
            Err(error) => {
                let message = format!("{}; where it is reached is not known", error.message);
                self.problems.push(tell(Problem::new(Severity::Error, "Invalid", message)).in_field(error.field));
            }
        }
    }

    fn hold(&mut self, object: Object, tell: &dyn Fn(Problem) -> Problem, dirty: &mut Dirty) {
        if let Object::Policy(policy) = &object {
            for (field, message) in &policy.complaints {
                let problem = Problem::new(Severity::Error, "PolicyPartlyUnreadable", message.clone());
                self.problems.push(tell(problem).in_field(field.clone()));
            }
        }
        self.model.apply(object, dirty);
    }

    /// What could not be read, or was read as closed.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The tables that a gateway would have.
    pub fn table(&self) -> &Table {
        self.compiler.table()
    }
}

/// Paths of manifests below a folder, in order, relative to where it began. What a name begins with a dot is left alone.
fn gather(root: &Path, below: &str, files: &mut Vec<String>) -> io::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(root.join(below))?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
        // Links are followed for files, and never for folders: they may lead in a circle.
        let kind = entry.file_type()?;
        if kind.is_dir() && !name.starts_with('.') {
            gather(root, &path, files)?;
        } else if !kind.is_dir() && scan::is_manifest(&name) && root.join(&path).is_file() {
            files.push(path);
        }
    }
    Ok(())
}
