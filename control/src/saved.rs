//! Last good versions of policies, and of the Pods and Namespaces that they are about, on disk: a control that begins anew
//! has them where the source has mistakes.
//!
//! One file of JSON, a line per change: an object as it was read, or that it is gone. Saving costs what changed. When what
//! was appended has outgrown what counts, the file is written anew under another name, synced and renamed. The first line
//! has the layout's number. With a last line that was cut off nobody knows which version is not the last, so that none of
//! them counts; a file that has anything else wrong with it is kept aside. Either is told, as is that there is no
//! file where an earlier run has written one. What somebody does to the file meanwhile is noticed when the next change is
//! saved, and the file is written anew.
//!
//! It holds what [`crate::watch`] made of an object and not its manifest, so that both sources have one form. Refuses to
//! know when a last good version is used; that is [`crate::reconcile`]'s business. Writing happens on a thread of its own.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hashbrown::{HashMap, HashSet};
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

use crate::model::Object;
use crate::model::gatewaypolicy::GatewayPolicy;
use crate::model::namespace::Namespace;
use crate::model::pod::Pod;
use crate::model::policy::{Policy, PolicyKind};
use crate::problem::{Problem, Severity};
use crate::source::{ObjectKey, ObjectKind};

/// Name of the file inside the state directory.
pub const FILE_NAME: &str = "policies.log";
/// Number of the file's layout.
const FORMAT: u32 = 2;
/// Number of the same where something may be missing: all that control knew is in it, and not all that there was.
const FORMAT_IN_PART: u32 = 1;
/// Bytes of all versions that are held; what goes beyond is not saved. A cluster of ten thousand policies has some tens of
/// millions, and so has one of a hundred thousand pods.
const BYTES_MAX: usize = 256 << 20;
/// Bytes that may be appended in any case before the file is written anew.
const APPENDED_MIN: usize = 1 << 20;
/// A longer file is none of ours.
const FILE_BYTES_MAX: u64 = 4 * BYTES_MAX as u64;
/// How soon writing is tried again that has failed.
const TRIED_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// What was wrong with the file of the run before is told for so long at least, however soon there is a good one: somebody
/// may look at the list of problems now and then.
const TOLD_FOR: Duration = Duration::from_secs(30);
/// Writing that has failed so often, one time after the other, is a problem.
const FAILURES_TOLD_FROM: u32 = 2;

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Line {
    /// The first: number of the layout.
    Format(u32),
    /// An object as it was read last.
    Set(Version),
    /// An object that is not there any more.
    Gone(ObjectKey),
}

/// One good version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Version {
    /// Object identity, where the source has such: another object of the same name has other versions (S-005).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
    object: Kept,
}

/// The kinds that are saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Kept {
    Policy(Box<Policy>),
    GatewayPolicy(Box<GatewayPolicy>),
    Pod(Box<Pod>),
    Namespace(Namespace),
}

impl Kept {
    fn of(object: &Object) -> Option<Self> {
        match object {
            Object::Policy(policy) => Some(Kept::Policy(policy.clone())),
            Object::GatewayPolicy(policy) => Some(Kept::GatewayPolicy(policy.clone())),
            Object::Pod(pod) => Some(Kept::Pod(pod.clone())),
            Object::Namespace(namespace) => Some(Kept::Namespace(namespace.clone())),
            _ => None,
        }
    }

    fn key(&self) -> ObjectKey {
        let (kind, namespace, name) = match self {
            Kept::GatewayPolicy(policy) => (ObjectKind::GatewayPolicy, String::new(), &policy.name),
            Kept::Pod(pod) => (ObjectKind::Pod, pod.name.namespace.clone(), &pod.name.name),
            Kept::Namespace(namespace) => (ObjectKind::Namespace, String::new(), &namespace.name),
            Kept::Policy(policy) => {
                let kind = match policy.key.kind {
                    PolicyKind::NetworkPolicy => ObjectKind::NetworkPolicy,
                    PolicyKind::ClusterNetworkPolicy => ObjectKind::ClusterNetworkPolicy,
                };
                (kind, policy.key.namespace.clone(), &policy.key.name)
            }
        };
        ObjectKey { kind, namespace, name: name.clone() }
    }

    fn into_object(self) -> Object {
        match self {
            Kept::Policy(policy) => Object::Policy(policy),
            Kept::GatewayPolicy(policy) => Object::GatewayPolicy(policy),
            Kept::Pod(pod) => Object::Pod(pod),
            Kept::Namespace(namespace) => Object::Namespace(namespace),
        }
    }
}

/// What another run of this process has saved, and what this one saves. The default saves nothing.
#[derive(Debug, Default)]
pub struct Saved {
    /// Versions of the run before, until the source is known as a whole.
    found: HashMap<ObjectKey, Version>,
    /// How many of each kind the run before had.
    had: BTreeMap<ObjectKind, usize>,
    /// What is not in it was not there when something was saved last.
    is_whole: bool,
    /// Length and hash of what stands on disk.
    written: HashMap<ObjectKey, (usize, u64)>,
    bytes: usize,
    /// Good versions that there is no room for.
    left_out: HashSet<ObjectKey>,
    saver: Option<Saver>,
    /// What was wrong with the file of the run before.
    lost: Option<Lost>,
    /// The source is known as a whole.
    settled: bool,
}

/// That versions of the run before are not known, and until when that is told.
#[derive(Debug)]
struct Lost {
    problem: Problem,
    /// Not before this, and not before there is a good file and nothing that could still need what is lost.
    until: Instant,
}

/// What stood on disk.
#[derive(Debug, PartialEq)]
enum Found {
    /// No file.
    Nothing,
    /// The versions, bytes of a line that was cut off, and whether there was nothing else.
    Versions(HashMap<ObjectKey, Version>, usize, bool),
}

/// What became of writing. Kind: shared between the thread that writes and the loop that tells.
#[derive(Debug, Default)]
struct Standing {
    /// A whole file has been written in this run.
    written: bool,
    /// Failures since something could be written, and why the last one was.
    failures: u32,
    reason: String,
}

impl Saved {
    /// What is in `directory`, and whatever is new from now on. `has_predecessor`: there has been another run.
    ///
    /// # Errors
    /// When there can be no thread that writes. What is wrong with the file is a problem to be told.
    pub fn open(directory: &Path, has_predecessor: bool) -> io::Result<Self> {
        Self::with(directory, has_predecessor, TRIED_AGAIN_AFTER, TOLD_FOR)
    }

    fn with(directory: &Path, has_predecessor: bool, again_after: Duration, told_for: Duration) -> io::Result<Self> {
        let mut saved = Saved::default();
        let path = directory.join(FILE_NAME);
        let found = load(&path);
        saved.is_whole = matches!(found, Ok(Found::Versions(_, 0, true)));
        let is_good = matches!(found, Ok(Found::Versions(_, 0, _)));
        let lost = what_is_lost(&path, &found, has_predecessor);
        saved.lost = lost.map(|problem| Lost { problem, until: Instant::now() + told_for });
        // With a line lost, nobody knows which version is not the last.
        if let Ok(Found::Versions(versions, 0, _)) = found {
            saved.found = versions;
        }
        let mut lines = HashMap::new();
        for (key, version) in &saved.found {
            *saved.had.entry(key.kind).or_default() += 1;
            let Ok(line) = line_of(version) else { continue };
            saved.written.insert(key.clone(), mark(&line));
            saved.bytes += line.len();
            lines.insert(key.clone(), line);
        }
        let saver = Saver::start(path, lines, saved.is_whole, again_after)?;
        if !is_good {
            saver.order(Order::Anew);
        }
        saved.saver = Some(saver);
        Ok(saved)
    }

    /// Whether what it does not have was not there when something was saved last.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// All objects of the kinds that are saved have been seen now.
    pub fn have_all(&mut self) {
        if !std::mem::replace(&mut self.is_whole, true)
            && let Some(saver) = &self.saver
        {
            saver.order(Order::Whole);
        }
    }

    /// Whether there is a version of an object on disk.
    pub fn has_saved(&self, key: &ObjectKey) -> bool {
        self.written.contains_key(key)
    }

    /// How many objects of a kind the run before had.
    pub fn had(&self, kind: ObjectKind) -> usize {
        self.had.get(&kind).copied().unwrap_or_default()
    }

    /// What is wrong now.
    pub fn problems(&self) -> Vec<Problem> {
        let Some(saver) = &self.saver else { return Vec::new() };
        let standing = saver.standing.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = |lost: &Lost| standing.written && self.settled && Instant::now() >= lost.until;
        let lost = self.lost.iter().filter(|lost| !is_over(lost)).map(|lost| lost.problem.clone());
        let fails = (standing.failures >= FAILURES_TOLD_FROM).then(|| {
            let message = format!(
                "cannot write {}: {}; it is tried again, and a control that begins anew before it works has what was \
                 written last",
                saver.path.display(),
                standing.reason
            );
            Problem::new(Severity::Warning, "PoliciesNotWritten", message)
        });
        let left_out = (!self.left_out.is_empty()).then(|| {
            let message = format!(
                "policies are more than {} MiB: some of them are not saved, and have no earlier version to go back to when \
                 control begins anew",
                BYTES_MAX >> 20
            );
            Problem::new(Severity::Warning, "PoliciesNotSaved", message)
        });
        lost.chain(fails).chain(left_out).collect()
    }

    /// An object has a good version: this.
    pub fn keep(&mut self, key: &ObjectKey, uid: Option<&str>, object: &Object) {
        let Some(saver) = &self.saver else { return };
        let Some(kept) = Kept::of(object) else { return };
        self.found.remove(key);
        let Ok(line) = line_of(&Version { uid: uid.map(String::from), object: kept }) else { return };
        let mark = mark(&line);
        let before = self.written.get(key).copied();
        if before == Some(mark) {
            return;
        }
        let bytes = self.bytes + mark.0 - before.map_or(0, |(length, _)| length);
        if bytes > BYTES_MAX {
            self.forget(key);
            self.left_out.insert(key.clone());
            return;
        }
        self.left_out.remove(key);
        self.bytes = bytes;
        self.written.insert(key.clone(), mark);
        saver.order(Order::Line(key.clone(), Some(line)));
    }

    /// An object is gone.
    pub fn forget(&mut self, key: &ObjectKey) {
        self.found.remove(key);
        self.left_out.remove(key);
        let Some((length, _)) = self.written.remove(key) else { return };
        self.bytes -= length;
        if let Some(saver) = &self.saver {
            saver.order(Order::Line(key.clone(), None));
        }
    }

    /// The last good version that an earlier run had of an object, with this identity, that has none in this run.
    pub fn take(&mut self, key: &ObjectKey, uid: Option<&str>) -> Option<Object> {
        let same = |version: &Version| version.uid.as_deref() == uid;
        self.found
            .get(key)
            .is_some_and(same)
            .then(|| self.found.remove(key))?
            .map(|version| version.object.into_object())
    }

    /// Versions of objects that nothing has been heard of in this run, where `is_wanted` says so.
    pub fn take_unheard(&mut self, is_wanted: impl Fn(&ObjectKey) -> bool) -> Vec<(ObjectKey, Object)> {
        let unheard = self.found.extract_if(|key, _| is_wanted(key));
        unheard.map(|(key, version)| (key, version.object.into_object())).collect()
    }

    /// The source is known: forgets every object that `is_there` does not know.
    pub fn settle(&mut self, is_there: impl Fn(&ObjectKey) -> bool) {
        self.found = HashMap::new();
        self.settled = true;
        let gone: Vec<ObjectKey> = self.written.keys().filter(|key| !is_there(key)).cloned().collect();
        gone.iter().for_each(|key| self.forget(key));
    }
}

/// One line with its end.
fn line_of(version: &Version) -> serde_json::Result<Vec<u8>> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    enum Borrowed<'a> {
        Set(&'a Version),
    }
    ended(&Borrowed::Set(version))
}

fn ended(line: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn mark(line: &[u8]) -> (usize, u64) {
    let mut hasher = SipHasher13::new();
    line.hash(&mut hasher);
    (line.len(), hasher.finish())
}

/// What of the run before is not known, by what was found on disk. A file that cannot be used is put aside.
fn what_is_lost(path: &Path, found: &io::Result<Found>, has_predecessor: bool) -> Option<Problem> {
    let place = path.display();
    let consequence =
        "a policy with a mistake in it has no earlier version here, and the dataplane goes on with the one it has";
    let (reason, message) = match found {
        Ok(Found::Versions(_, 0, _)) => return None,
        Ok(Found::Nothing) if !has_predecessor => return None,
        Ok(Found::Nothing) => {
            let message = format!("{place} is not there, though an earlier run has been here: {consequence}");
            ("SavedPoliciesMissing", message)
        }
        Ok(Found::Versions(_, bytes, _)) => {
            let message = format!(
                "the last line of {place} is cut off after {bytes} bytes, so that no version in it is known to be the \
                 last: {consequence}"
            );
            ("SavedPoliciesTorn", message)
        }
        Err(error) => {
            let aside = path.with_extension("log.unusable");
            let kept = match fs::rename(path, &aside) {
                Ok(()) => format!("kept as {}", aside.display()),
                Err(error) => format!("it cannot be put aside: {error}"),
            };
            ("SavedPoliciesUnusable", format!("{place} cannot be used: {error} ({kept}); {consequence}"))
        }
    };
    Some(Problem::new(Severity::Warning, reason, message))
}

/// The versions in a file.
fn load(path: &Path) -> io::Result<Found> {
    let bad = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        // To open a pipe is to wait for somebody who writes.
        Ok(metadata) if !metadata.is_file() => return Err(bad("it is no regular file".into())),
        Ok(metadata) if metadata.len() > FILE_BYTES_MAX => return Err(bad(format!("{} bytes long", metadata.len()))),
        _ => {}
    }
    let bytes = fs::read(path)?;
    // What is behind the last end of a line was being written when the process was killed.
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let mut versions = HashMap::new();
    let mut is_whole = true;
    let mut number = 0;
    for line in bytes[..whole].split_inclusive(|byte| *byte == b'\n') {
        number += 1;
        let line = serde_json::from_slice(line).map_err(|error| bad(format!("line {number}: {error}")))?;
        match (number, line) {
            (1, Line::Format(FORMAT)) => {}
            (1, Line::Format(FORMAT_IN_PART)) => is_whole = false,
            (1, Line::Format(other)) => return Err(bad(format!("its layout is {other}, not {FORMAT}"))),
            (1, _) | (_, Line::Format(_)) => return Err(bad(format!("line {number} is out of place"))),
            (_, Line::Set(version)) => drop(versions.insert(version.object.key(), version)),
            (_, Line::Gone(key)) => drop(versions.remove(&key)),
        }
    }
    match number {
        // It is never written empty.
        0 => Err(bad("it has no whole line".into())),
        _ => Ok(Found::Versions(versions, bytes.len() - whole, is_whole)),
    }
}

/// What is to be written.
enum Order {
    /// The line of an object, or that it is gone.
    Line(ObjectKey, Option<Vec<u8>>),
    /// All of it: what is on disk is not whole.
    Anew,
    /// The same, and that nothing is missing.
    Whole,
}

/// The thread that writes; it writes what it still has when dropped.
#[derive(Debug)]
struct Saver {
    path: PathBuf,
    standing: Arc<Mutex<Standing>>,
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Saver {
    fn start(
        path: PathBuf,
        lines: HashMap<ObjectKey, Vec<u8>>,
        is_whole: bool,
        again_after: Duration,
    ) -> io::Result<Self> {
        let (orders, taken) = channel();
        let standing = Arc::<Mutex<Standing>>::default();
        let mut log = Log { path: path.clone(), lines, is_whole, file: None, length: 0, appended: 0 };
        let told = standing.clone();
        let run = move || log.run(&taken, &told, again_after);
        let thread = thread::Builder::new().name("saver".into()).spawn(run)?;
        Ok(Saver { path, standing, orders: Some(orders), thread: Some(thread) })
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            let _ = orders.send(order);
        }
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The file, and what counts of it.
struct Log {
    path: PathBuf,
    lines: HashMap<ObjectKey, Vec<u8>>,
    /// Nothing is missing.
    is_whole: bool,
    /// `None`: everything has to be written.
    file: Option<File>,
    /// Bytes in it.
    length: u64,
    appended: usize,
}

impl Log {
    /// Writes what is ordered until nobody can order any more; what could not be written again after a while, ordered
    /// or not.
    fn run(&mut self, orders: &Receiver<Order>, standing: &Mutex<Standing>, again_after: Duration) {
        let mut fails = false;
        loop {
            let first = match fails {
                true => orders.recv_timeout(again_after),
                false => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            let first = match first {
                Ok(order) => Some(order),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let written = self.take(first.into_iter().chain(orders.try_iter()).collect());
            fails = written.is_err();
            let mut standing = standing.lock().unwrap_or_else(PoisonError::into_inner);
            match written {
                Ok(()) => *standing = Standing { written: true, ..Standing::default() },
                Err(error) => {
                    self.file = None;
                    tracing::warn!(path = %self.path.display(), %error, "cannot save policies");
                    (standing.failures, standing.reason) = (standing.failures.saturating_add(1), error.to_string());
                }
            }
        }
    }

    fn take(&mut self, orders: Vec<Order>) -> io::Result<()> {
        let mut news = Vec::new();
        for order in orders {
            match order {
                Order::Anew => self.file = None,
                Order::Whole => (self.is_whole, self.file) = (true, None),
                Order::Line(key, Some(line)) => {
                    news.extend_from_slice(&line);
                    self.lines.insert(key, line);
                }
                Order::Line(key, None) => {
                    self.lines.remove(&key);
                    news.extend(ended(&Line::Gone(key))?);
                }
            }
        }
        let counts: usize = self.lines.values().map(Vec::len).sum();
        self.appended += news.len();
        if self.file.as_ref().is_some_and(|file| !self.is_in_place(file)) {
            let path = self.path.display();
            tracing::warn!("somebody has removed, replaced or changed {path}; it is written anew");
            self.file = None;
        }
        match self.file.as_mut().filter(|_| self.appended <= counts.max(APPENDED_MIN)) {
            Some(file) => {
                file.write_all(&news)?;
                self.length += news.len() as u64;
                file.sync_data()
            }
            None => self.write_all(),
        }
    }

    /// Whether the file that is written to is the one that the next run will find, and as long as it was left.
    fn is_in_place(&self, file: &File) -> bool {
        let (Ok(here), Ok(there)) = (file.metadata(), fs::metadata(&self.path)) else { return false };
        (here.dev(), here.ino(), self.length) == (there.dev(), there.ino(), there.len())
    }

    fn write_all(&mut self) -> io::Result<()> {
        (self.file, self.appended) = (None, 0);
        let hidden = self.path.with_extension("log.new");
        let mut buffer = BufWriter::with_capacity(1 << 20, File::create(&hidden)?);
        buffer.write_all(&ended(&Line::Format(if self.is_whole { FORMAT } else { FORMAT_IN_PART }))?)?;
        let mut all: Vec<(&ObjectKey, &Vec<u8>)> = self.lines.iter().collect();
        all.sort_unstable_by_key(|(key, _)| *key);
        all.into_iter().try_for_each(|(_, line)| buffer.write_all(line))?;
        let file = buffer.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        self.length = file.metadata()?.len();
        fs::rename(&hidden, &self.path)?;
        if let Some(directory) = self.path.parent() {
            File::open(directory)?.sync_all()?;
        }
        self.file = Some(file);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::watch::{self, Dialect, Exposed};

    fn key(name: &str) -> ObjectKey {
        ObjectKey { kind: ObjectKind::NetworkPolicy, namespace: "shop".into(), name: name.into() }
    }

    fn read(key: &ObjectKey, value: &serde_json::Value) -> Object {
        watch::read(key, value, Dialect::Cluster, Exposed::default(), &mut Vec::new()).unwrap()
    }

    fn network(name: &str, block: &str) -> Object {
        let peers = json!([{ "ipBlock": { "cidr": block } }, { "namespaceSelector": { "matchExpressions": [
            { "key": "tier", "operator": "NotIn", "values": ["a", "b"] }, { "key": "x", "operator": "Exists" }] } }]);
        let spec = json!({ "podSelector": { "matchLabels": { "app": "web" } }, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{ "from": peers, "ports": [{ "port": "http" }, { "port": 80, "endPort": 90 }] }] });
        read(&key(name), &json!({ "spec": spec }))
    }

    fn others() -> Vec<(ObjectKey, Object)> {
        let at = |kind, name: &str| ObjectKey { kind, namespace: String::new(), name: name.into() };
        let cluster = json!({ "spec": { "tier": "Admin", "priority": 7, "subject": { "namespaces": {} }, "egress": [
            { "name": "n", "action": "Pass", "to": [{ "networks": ["2001:db8::/32"] }, { "nodes": {} }] }] } });
        let gate = json!({ "metadata": { "name": "g" }, "spec": { "order": 3, "rules": [
            { "action": "Deny", "clients": [{ "cidr": "2001:db8::/32", "except": ["2001:db8:1::/48"] }],
              "services": [{ "selector": { "matchLabels": { "a": "b" } } }] },
            { "action": "Limit", "limits": { "newConnectionsPerSecond": 5 }, "ports": [{ "port": 80, "endPort": 90 }],
              "services": [{ "namespace": "shop", "name": "web" }] }] } });
        let pod = json!({ "metadata": { "name": "p", "namespace": "shop", "uid": "u", "labels": { "app": "web" },
                "creationTimestamp": "2026-01-02T03:04:05Z" },
            "spec": { "nodeName": "w", "containers": [{ "name": "c", "ports": [{ "name": "http", "containerPort": 80 }] }] },
            "status": { "podIPs": [{ "ip": "10.0.0.7" }, { "ip": "2001:db8::7" }] } });
        let in_shop = ObjectKey { kind: ObjectKind::Pod, namespace: "shop".into(), name: "p".into() };
        let namespace = json!({ "metadata": { "name": "n", "labels": { "team": "a" } } });
        let cases = [
            (at(ObjectKind::ClusterNetworkPolicy, "c"), cluster),
            (at(ObjectKind::GatewayPolicy, "g"), gate),
            (in_shop, pod),
            (at(ObjectKind::Namespace, "n"), namespace),
        ];
        cases.map(|(key, value)| (key.clone(), read(&key, &value))).to_vec()
    }

    #[test]
    fn what_was_kept_is_there_for_the_next_run_and_no_longer_than_its_object() {
        let home = tempfile::tempdir().unwrap();
        let place = home.path();
        let mut saved = Saved::open(place, false).unwrap();
        assert_eq!(saved.problems(), [], "a first start");
        for (key, object) in others() {
            saved.keep(&key, Some("u"), &object);
        }
        saved.keep(&key("a"), None, &network("a", "10.0.0.0/8"));
        saved.keep(&key("a"), None, &network("a", "2001:db8::/32"));
        saved.keep(&key("b"), Some("1"), &network("b", "10.0.0.0/8"));
        saved.keep(&key("gone"), None, &network("gone", "10.0.0.0/8"));
        saved.forget(&key("gone"));
        drop(saved);
        let mut saved = Saved::open(place, true).unwrap();
        assert_eq!(saved.problems(), []);
        assert_eq!(saved.take(&key("a"), None), Some(network("a", "2001:db8::/32")));
        assert_eq!(saved.take(&key("a"), None), None, "once");
        assert_eq!(saved.take(&key("b"), Some("2")), None, "S-005: another object");
        assert_eq!(saved.take(&key("gone"), None), None);
        for (key, object) in others() {
            assert_eq!(saved.take(&key, Some("u")), Some(object));
        }
        // What is right again is not looked for, and what the source does not have is not kept.
        saved.keep(&key("b"), Some("2"), &network("b", "10.0.0.0/8"));
        saved.settle(|key| key.name == "b");
        drop(saved);
        let mut saved = Saved::open(place, true).unwrap();
        assert_eq!(saved.take_unheard(|_| true), [(key("b"), network("b", "10.0.0.0/8"))]);
    }

    /// Until all has been seen once, what the file does not have may be there all the same; then that is so for good.
    #[test]
    fn whether_something_may_be_missing_is_known_to_the_next_run() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(FILE_NAME);
        let mut saved = Saved::open(home.path(), false).unwrap();
        saved.keep(&key("a"), None, &network("a", "10.0.0.0/8"));
        assert!(!saved.is_whole());
        drop(saved);
        let mut saved = Saved::open(home.path(), true).unwrap();
        assert!(!saved.is_whole());
        saved.have_all();
        saved.keep(&key("b"), None, &network("b", "10.0.0.0/8"));
        assert!(saved.is_whole());
        drop(saved);
        for _ in 0..2 {
            let mut saved = Saved::open(home.path(), true).unwrap();
            assert!(saved.is_whole() && saved.problems().is_empty());
            assert_eq!([ObjectKind::NetworkPolicy, ObjectKind::Pod].map(|kind| saved.had(kind)), [2, 0]);
            saved.keep(&key("b"), None, &network("b", "2001:db8::/32"));
        }
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
        for _ in 0..2 {
            assert!(!Saved::open(home.path(), true).unwrap().is_whole(), "a line is lost");
        }
    }

    #[test]
    fn a_file_cut_off_counts_for_nothing_and_one_that_is_wrong_is_put_aside() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(FILE_NAME);
        let open = || Saved::with(home.path(), true, TRIED_AGAIN_AFTER, Duration::ZERO).unwrap();
        let mut saved = open();
        saved.keep(&key("a"), None, &network("a", "10.0.0.0/8"));
        drop(saved);
        let mut saved = open();
        saved.keep(&key("b"), None, &network("b", "10.0.0.0/8"));
        drop(saved);
        let good = fs::read(&path).unwrap();
        for cut in 0..good.len() {
            fs::write(&path, &good[..cut]).unwrap();
            let whole = good[..cut].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            let lines = good[..whole].iter().filter(|byte| **byte == b'\n').count();
            match load(&path) {
                Ok(Found::Versions(versions, torn, _)) => assert_eq!((versions.len(), torn), (lines - 1, cut - whole)),
                Ok(Found::Nothing) => panic!("{cut}"),
                Err(_) => assert_eq!(lines, 0, "{cut}"),
            }
        }
        // What is torn is told, and mended without anything new. The line that is lost may have been about any of them.
        fs::write(&path, &good[..good.len() - 5]).unwrap();
        let mut saved = open();
        let told = saved.problems()[0].to_string();
        assert!(told.contains("the last line of") && saved.problems()[0].reason == "SavedPoliciesTorn", "{told}");
        assert_eq!(saved.take_unheard(|_| true), []);
        saved.keep(&key("a"), None, &network("a", "10.0.0.0/8"));
        saved.settle(|key| key.name == "a");
        until(|| saved.problems().is_empty());
        drop(saved);
        assert!(matches!(load(&path).unwrap(), Found::Versions(versions, 0, false) if versions.len() == 1));
        let text = String::from_utf8(good).unwrap();
        for bad in [
            text.replacen("\"format\":1", "\"format\":3", 1),
            text.replacen("10.0.0.0/8", "10.0.0.0/88", 1),
            text.lines().skip(1).map(|line| format!("{line}\n")).collect(),
            format!("{text}\n"),
            "\u{1f980}\n".into(),
            String::new(),
        ] {
            fs::write(&path, &bad).unwrap();
            let mut saved = open();
            assert_eq!(saved.take_unheard(|_| true), [], "{bad}");
            let told = saved.problems()[0].to_string();
            assert!(told.contains("policies.log.unusable"), "{told}");
            assert_eq!(fs::read_to_string(path.with_extension("log.unusable")).unwrap(), bad);
            saved.keep(&key("c"), None, &network("c", "10.0.0.0/8"));
            until(|| saves(&path) == 1);
            assert_eq!(saved.problems().len(), 1, "the source may still have something that what is lost was about");
            saved.settle(|_| true);
            until(|| saved.problems().is_empty());
        }
        // Neither is a directory, nor a pipe.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        fs::remove_file(path.with_extension("log.unusable")).unwrap();
        assert!(open().problems()[0].to_string().contains("it is no regular file"));
        until(|| saves(&path) == 0 && path.is_file());
    }

    /// Versions on disk.
    fn saves(path: &Path) -> usize {
        match load(path) {
            Ok(Found::Versions(versions, 0, _)) => versions.len(),
            _ => usize::MAX,
        }
    }

    /// Without a file there is nothing wrong with a first start alone; and it is told for a while, however soon there is a
    /// file again.
    #[test]
    fn a_file_that_is_not_there_any_more_is_told() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(FILE_NAME);
        let told_for = Duration::from_millis(300);
        let open = |has_predecessor| Saved::with(home.path(), has_predecessor, TRIED_AGAIN_AFTER, told_for).unwrap();
        let first = open(false);
        assert_eq!(first.problems(), []);
        drop(first);
        assert_eq!(saves(&path), 0, "written though there was nothing to save");
        assert_eq!(open(true).problems(), []);
        fs::remove_file(&path).unwrap();
        let begun = Instant::now();
        let mut saved = open(true);
        saved.settle(|_| true);
        until(|| saves(&path) == 0);
        let problems = saved.problems();
        assert!(begun.elapsed() > told_for || problems[0].reason == "SavedPoliciesMissing", "{problems:?}");
        assert!(begun.elapsed() > told_for || problems[0].to_string().contains("policies.log is not there"));
        until(|| saved.problems().is_empty());
        assert!(begun.elapsed() >= told_for);
    }

    /// What is done to the file while this process runs is noticed at the next change.
    #[test]
    fn a_file_that_somebody_touched_is_written_anew() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(FILE_NAME);
        let mut saved = Saved::open(home.path(), false).unwrap();
        let touched: [(&str, &dyn Fn()); 5] = [
            ("nothing", &|| ()),
            ("removed", &|| fs::remove_file(&path).unwrap()),
            ("replaced", &|| {
                fs::copy(&path, path.with_extension("other")).unwrap();
                fs::rename(path.with_extension("other"), &path).unwrap();
            }),
            ("cut", &|| File::create(&path).map(drop).unwrap()),
            ("longer", &|| File::options().append(true).open(&path).unwrap().write_all(b"nonsense").unwrap()),
        ];
        for (number, (what, touch)) in (1..).zip(touched) {
            touch();
            saved.keep(&key(what), None, &network(what, "2001:db8::/32"));
            until(|| saves(&path) == number);
            assert_eq!(saved.problems(), [], "{what}");
        }
    }

    fn until(is_so: impl Fn() -> bool) {
        let begun = std::time::Instant::now();
        while !is_so() {
            assert!(begun.elapsed() < Duration::from_secs(20), "nothing happens");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// A disk that refuses again and again is told, and what it refused is written when it does not any more, whether
    /// something new comes or not.
    #[test]
    fn what_could_not_be_written_is_told_and_written_later() {
        let home = tempfile::tempdir().unwrap();
        let place = home.path().join("state");
        fs::create_dir(&place).unwrap();
        fs::write(place.join(FILE_NAME), "nonsense\n").unwrap();
        let open = || Saved::with(&place, true, Duration::from_millis(20), Duration::ZERO).unwrap();
        let mut saved = open();
        saved.settle(|_| false);
        until(|| saved.problems().is_empty());
        let reasons = |saved: &Saved| saved.problems().iter().map(|problem| problem.reason).collect::<Vec<_>>();
        fs::remove_dir_all(&place).unwrap();
        saved.keep(&key("a"), None, &network("a", "10.0.0.0/8"));
        saved.keep(&key("b"), None, &network("b", "2001:db8::/32"));
        until(|| reasons(&saved) == ["PoliciesNotWritten"]);
        let told = saved.problems()[0].to_string();
        assert!(told.contains("policies.log") && told.contains("No such file"), "{told}");
        fs::create_dir(&place).unwrap();
        until(|| saved.problems().is_empty());
        assert_eq!(saves(&place.join(FILE_NAME)), 2);
        // It can come again.
        drop(saved);
        let mut saved = open();
        fs::remove_dir_all(&place).unwrap();
        saved.forget(&key("a"));
        until(|| reasons(&saved) == ["PoliciesNotWritten"]);
    }

    #[test]
    fn the_file_stays_as_long_as_what_counts() {
        let home = tempfile::tempdir().unwrap();
        let mut log = Log {
            path: home.path().join(FILE_NAME),
            lines: HashMap::new(),
            is_whole: true,
            file: None,
            length: 0,
            appended: 0,
        };
        let line = |number: u32| {
            let object = Kept::of(&network("a", &format!("10.0.{}.0/24", number % 256))).unwrap();
            line_of(&Version { uid: None, object }).unwrap()
        };
        let rounds = APPENDED_MIN / line(0).len() + 3;
        for number in 0..u32::try_from(rounds).unwrap() {
            log.take(vec![Order::Line(key("a"), Some(line(number)))]).unwrap();
        }
        let length = fs::metadata(&log.path).unwrap().len();
        assert!(length < 10 * line(0).len() as u64, "{length}");
        assert_eq!(saves(&log.path), 1);
    }
}
