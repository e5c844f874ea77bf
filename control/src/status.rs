//! What became of the objects, written for people and programs.
//!
//! Owns the files below the state directory: one per Service and one list of problems, each replaced by a rename, so a
//! reader never sees half a file. Refuses to decide anything. Writing happens on a thread of its own: a slow disk
//! delays status, never an update to the dataplane. For a source with a status of its own the same conditions go there, and
//! here is a file only for a Service of which something is to be told: nobody looks into fifty thousand that say that all is
//! well, and writing them costs seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use serde::Serialize;

use crate::model::Name;
use crate::problem::Problem;
use crate::reconcile::Latency;
use service::ServiceStatus;

/// Conditions of one Service.
pub mod service;
/// Whether pods see their clients' addresses, as the dataplane finds it.
pub mod delivery;
/// Status of objects of Tidegate's own kinds.
pub mod own;
/// Status of one AddressPool.
pub mod addresspool;
/// The writer to the API: finalizers, status and events.
pub mod api;
/// Addresses for which somebody else answers, as the dataplane hears it.
pub mod conflict;
/// Nodes that do not answer, as the dataplane feels it.
pub mod suspect;

/// File with everything that is wrong now.
pub const PROBLEMS_FILE: &str = "problems.json";
/// File with figures of how long changes took.
pub const LATENCY_FILE: &str = "latency.json";

/// What is to be written.
#[derive(Debug)]
enum Order {
    Service(Name, Option<Box<ServiceStatus>>),
    Problems(Vec<Problem>),
    Latency(Latency),
    /// Remove the files of all other Services.
    Sweep(BTreeSet<Name>),
}

/// Takes orders to write; dropping it waits until all are done.
#[derive(Debug)]
pub struct StatusWriter {
    /// Services that are well have no file.
    sparing: bool,
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Serialize)]
struct ProblemList<'a> {
    problems: &'a [Problem],
}

impl StatusWriter {
    /// Writes below `state_dir/status`.
    ///
    /// # Errors
    /// When that directory cannot be made or written to.
    pub fn start(state_dir: &Path) -> io::Result<Self> {
        let directory = state_dir.join("status");
        let explain = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", directory.display()));
        fs::create_dir_all(&directory).map_err(explain)?;
        let (orders, taken) = channel();
        match replace(&directory, PROBLEMS_FILE, b"{\n  \"problems\": []\n}\n").map_err(explain) {
            // There may be room later; until then the gateway is to follow its cluster all the same.
            Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                tracing::error!("status is not written: {error}");
                let _ = orders.send(Order::Problems(vec![]));
            }
            result => result?,
        }
        let thread = thread::Builder::new().name("status".into()).spawn(move || Files::new(directory).run(taken))?;
        Ok(StatusWriter { sparing: false, orders: Some(orders), thread: Some(thread) })
    }

    /// Leaves Services out that are well: their source has a status of its own.
    #[must_use]
    pub fn sparing(mut self) -> Self {
        self.sparing = true;
        self
    }

    /// Writes nothing, for a mere check.
    pub fn silent() -> Self {
        StatusWriter { sparing: false, orders: None, thread: None }
    }

    /// Replaces the status of a Service, or removes it.
    pub fn service(&self, name: Name, status: Option<ServiceStatus>) {
        let told = status.filter(|status| !(self.sparing && status.is_well()));
        self.order(Order::Service(name, told.map(Box::new)));
    }

    /// Replaces the list of problems.
    pub fn problems(&self, problems: Vec<Problem>) {
        self.order(Order::Problems(problems));
    }

    /// Replaces the figures of how long changes took.
    pub fn latency(&self, latency: Latency) {
        self.order(Order::Latency(latency));
    }

    /// Removes the files of all Services but these: an earlier run may have left some.
    pub fn sweep(&self, keep: BTreeSet<Name>) {
        self.order(Order::Sweep(keep));
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            let _ = orders.send(order);
        }
    }
}

impl Drop for StatusWriter {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Files {
    directory: PathBuf,
    /// What stands in each file, read from disk at start: equal content is not written again (C-006).
    written: BTreeMap<String, Vec<u8>>,
    /// Files that an earlier run has left and nobody has written since.
    left: BTreeSet<String>,
}

impl Files {
    fn new(directory: PathBuf) -> Self {
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        let left = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        Files { directory, written: BTreeMap::new(), left }
    }

    fn run(mut self, orders: Receiver<Order>) {
        for order in orders {
            if let Err(error) = self.execute(order) {
                tracing::error!(directory = %self.directory.display(), %error, "cannot write status");
            }
        }
    }

    fn execute(&mut self, order: Order) -> io::Result<()> {
        match order {
            Order::Problems(problems) => self.write(PROBLEMS_FILE.into(), &ProblemList { problems: &problems }),
            Order::Latency(latency) => self.write(LATENCY_FILE.into(), &latency),
            Order::Service(name, Some(mut status)) => {
                let file = file_name(&name);
                if let Some(before) = self.content(&file) {
                    status.keep_times(&before);
                }
                self.write(file, &status)
            }
            Order::Service(name, None) => {
                let file = file_name(&name);
                let is_there = self.written.remove(&file).is_some() | self.left.remove(&file);
                if is_there { remove(&self.directory.join(file)) } else { Ok(()) }
            }
            Order::Sweep(keep) => self.sweep(&keep),
        }
    }

    fn content(&self, file: &str) -> Option<Vec<u8>> {
        let left = || self.left.contains(file).then(|| fs::read(self.directory.join(file)).ok()).flatten();
        self.written.get(file).cloned().or_else(left)
    }

    fn write(&mut self, file: String, value: &impl Serialize) -> io::Result<()> {
        let mut bytes = serde_json::to_vec_pretty(value)?;
        bytes.push(b'\n');
        if self.content(&file).as_ref() != Some(&bytes) {
            replace(&self.directory, &file, &bytes)?;
        }
        self.left.remove(&file);
        self.written.insert(file, bytes);
        Ok(())
    }

    fn sweep(&mut self, keep: &BTreeSet<Name>) -> io::Result<()> {
        let keep: BTreeSet<String> = keep.iter().map(file_name).collect();
        let no_service = |file: &str| [PROBLEMS_FILE, LATENCY_FILE].contains(&file);
        self.written.retain(|file, _| no_service(file) || keep.contains(file));
        self.left.retain(|file| keep.contains(file));
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let Ok(file) = entry.file_name().into_string() else { continue };
            if file.ends_with(".json") && !no_service(&file) && !keep.contains(&file) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// `<namespace>.<name>.json`; a namespace has no dot (see `source::manifest`), so no two Services share a file.
fn file_name(name: &Name) -> String {
    format!("{}.{}.json", name.namespace, name.name)
}

fn replace(directory: &Path, file: &str, bytes: &[u8]) -> io::Result<()> {
    let hidden = directory.join(format!(".{file}.new"));
    fs::File::create(&hidden)?.write_all(bytes)?;
    fs::rename(hidden, directory.join(file))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::service::LoadBalancer;

    fn status(well: bool) -> ServiceStatus {
        use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
        use k8s_openapi::jiff::Timestamp;
        let condition = Condition {
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
            message: String::new(),
            observed_generation: None,
            reason: "Because".into(),
            status: if well { "True" } else { "Unknown" }.into(),
            type_: "Programmed".into(),
        };
        ServiceStatus {
            service: "shop/web".into(),
            uid: String::new(),
            load_balancer: LoadBalancer::default(),
            version: None,
            conditions: vec![condition],
        }
    }

    /// What files there are below `status` when everything ordered is done.
    fn files(home: &Path, sparing: bool, orders: impl FnOnce(&StatusWriter)) -> Vec<String> {
        let writer = StatusWriter::start(home).unwrap();
        let writer = if sparing { writer.sparing() } else { writer };
        orders(&writer);
        drop(writer);
        let entries = fs::read_dir(home.join("status")).unwrap();
        let mut files: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        files
    }

    #[test]
    fn a_service_that_is_well_has_a_file_only_where_nothing_else_says_so() {
        let home = tempfile::tempdir().unwrap();
        let web = || Name { namespace: "shop".into(), name: "web".into() };
        let both = ["problems.json", "shop.web.json"];
        assert_eq!(files(home.path(), false, |writer| writer.service(web(), Some(status(true)))), both);
        // A run that spares finds it, and takes it away: it would go stale.
        assert_eq!(files(home.path(), true, |writer| writer.service(web(), Some(status(true)))), both[..1]);
        assert_eq!(files(home.path(), true, |writer| writer.service(web(), Some(status(false)))), both);
        let gone = |writer: &StatusWriter| {
            writer.service(web(), Some(status(false)));
            writer.service(web(), Some(status(true)));
        };
        assert_eq!(files(home.path(), true, gone), both[..1]);
    }
}
