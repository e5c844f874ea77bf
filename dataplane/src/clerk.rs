//! The clerk: who had which port, from workers to the ledger's files.
//!
//! Owns the thread that writes. Workers tell addresses; the clerk knows pods, nodes and policies from the accepted objects,
//! which it reads again whenever something was published since. A disk that fails loses records and stops nothing: each one
//! is counted, one line a minute tells of it, and what is missing is recorded when the disk takes records again.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};
use hashbrown::HashMap;
use jiff::{SignedDuration, Timestamp};
use tidegate_api::resource::{Body, Kind, Resource};
use tidegate_ledger::{Gap, Holding, Limits, Problem, Protocol, Record, Writer};

use crate::compile::address_of;
use crate::compile::thread::Handle;
use crate::state::egress::NatRecord;
use crate::table::Tables;

/// Events that may wait for the clerk; some megabytes.
pub const EVENTS_MAX: usize = 65_536;
/// How long an event may wait until it can be found.
const FLUSH_EVERY: Duration = Duration::from_millis(200);
/// Events written between two looks at whether something was published.
const BATCH: usize = 1024;
/// How long it takes until a directory that could not be opened is tried again.
const OPEN_AGAIN: SignedDuration = SignedDuration::from_secs(5);
/// Shortest time between two lines about the same trouble.
const TELL_APART: SignedDuration = SignedDuration::from_secs(60);

/// What the clerk asks about pods and policies.
pub trait Registry: Send {
    /// The generation all workers have reached.
    fn generation(&self) -> u64;
    /// Everything as it is now; `None`: nobody knows any more.
    fn look(&self) -> Option<Registered>;
}

/// What is registered.
pub struct Registered {
    /// Pods.
    pub pods: Vec<Arc<Resource>>,
    /// The tables in force.
    pub tables: Tables,
}

impl Registry for Handle {
    fn generation(&self) -> u64 {
        self.reached()
    }

    fn look(&self) -> Option<Registered> {
        let view = self.view(Some(Kind::Pod)).ok()?;
        Some(Registered { pods: view.objects, tables: view.tables })
    }
}

/// Who is who.
#[derive(Default)]
struct Names {
    generation: Option<u64>,
    /// By address: the pod's resource.
    pods: HashMap<IpAddr, Arc<Resource>>,
    tables: Tables,
}

impl Names {
    /// Reads everything again if something was published since.
    fn refresh(&mut self, registry: &impl Registry) {
        let generation = registry.generation();
        if self.generation == Some(generation) {
            return;
        }
        let Some(Registered { pods, tables }) = registry.look() else { return };
        self.generation = Some(generation);
        self.tables = tables;
        self.pods.clear();
        for pod in pods {
            if let Body::Pod(body) = &pod.body {
                self.pods.extend(body.addresses.iter().map(|address| (*address, Arc::clone(&pod))));
            }
        }
    }

    /// What is written of an event; nothing of a protocol that has no ports.
    fn record(&self, event: &NatRecord, at: Timestamp) -> Option<Record> {
        let internal = address_of(&event.pod.0);
        let (name, node) = match self.pods.get(&internal).map(|pod| (pod.name.as_str(), &pod.body)) {
            Some((name, Body::Pod(body))) => (name, body.node.as_str()),
            _ => ("", ""),
        };
        let policy = self.tables.egress.policy(event.policy);
        let holding = Holding {
            external: address_of(&event.external),
            ports: (event.port, event.port),
            protocol: Protocol::of_number(event.protocol)?,
            remote: event.remote.map(|(address, port)| SocketAddr::new(address_of(&address), port)),
            internal,
            internal_port: Some(event.pod.1),
            pod: name.into(),
            node: node.into(),
            policy: policy.map(|policy| policy.name.to_string()).unwrap_or_default(),
        };
        Some(if event.begins { Record::Begin { at, holding } } else { Record::End { at, holding } })
    }
}

/// The ledger and what became of it.
struct Desk {
    directory: PathBuf,
    limits: Limits,
    writer: Option<Writer>,
    /// Records that did not reach a file, for whoever counts them.
    lost: Arc<AtomicU64>,
    /// Those of the writer that are in `lost`.
    counted: u64,
    /// What was lost before there was a writer.
    missing: Option<Gap>,
    /// When opening failed last.
    refused_at: Option<Timestamp>,
    /// Lost since the last line about that, and when that was.
    untold: u64,
    told_at: Option<Timestamp>,
}

impl Desk {
    fn new(directory: PathBuf, limits: Limits, lost: Arc<AtomicU64>) -> Desk {
        let (writer, missing, refused_at, told_at) = (None, None, None, None);
        Desk { directory, limits, writer, lost, counted: 0, missing, refused_at, untold: 0, told_at }
    }

    /// Where an earlier run has left records, the start is one too: what was held then is not held any more.
    fn begin(&mut self) {
        if self.directory.is_dir() {
            let now = Timestamp::now();
            let opened = self.open(now);
            self.note(opened, now);
        }
    }

    fn open(&mut self, now: Timestamp) -> Result<(), Problem> {
        let is_recent = |at: Timestamp| now.duration_since(at).abs() < OPEN_AGAIN;
        if self.writer.is_some() || self.refused_at.is_some_and(is_recent) {
            return Ok(());
        }
        let opened = Writer::open(&self.directory, self.limits, now);
        let mut writer = opened.inspect_err(|_| self.refused_at = Some(now))?;
        if let Some(gap) = self.missing.take() {
            writer.miss(gap);
        }
        (self.writer, self.counted) = (Some(writer), 0);
        Ok(())
    }

    fn write(&mut self, record: &Record) {
        // Nothing is begun before there is something to record.
        let opened = self.open(record.at());
        let written = match &mut self.writer {
            Some(writer) => writer.append(record),
            None => {
                let gap = Gap { from: record.at(), until: record.at(), count: 1 };
                self.missing = Some(self.missing.map_or(gap, |before| before.and(gap)));
                self.count(1);
                Ok(())
            }
        };
        self.note(opened.and(written), record.at());
    }

    fn flush(&mut self, now: Timestamp) {
        let flushed = self.writer.as_mut().map_or(Ok(()), |writer| writer.recover(now).and_then(|()| writer.flush()));
        self.note(flushed, now);
        if self.told_at.is_some() && self.writer.as_ref().is_some_and(|writer| !writer.is_behind()) {
            tracing::info!(lost = self.untold, "records can be written again");
            (self.untold, self.told_at) = (0, None);
        }
    }

    fn count(&mut self, lost: u64) {
        self.lost.fetch_add(lost, Ordering::Relaxed);
        self.untold = self.untold.saturating_add(lost);
    }

    fn note(&mut self, done: Result<(), Problem>, now: Timestamp) {
        let lost = self.writer.as_ref().map_or(self.counted, Writer::lost);
        self.count(lost.saturating_sub(self.counted));
        self.counted = lost;
        let Err(error) = done else { return };
        if self.told_at.is_none_or(|told_at| now.duration_since(told_at).abs() >= TELL_APART) {
            tracing::error!(%error, lost = self.untold, "who has which port cannot be recorded; going on without");
            (self.untold, self.told_at) = (0, Some(now));
        }
    }
}

/// Starts the thread; it ends when every worker has. Records that do not reach a file are added to `lost`.
///
/// # Errors
/// When the system gives no thread.
pub fn start(
    events: Receiver<NatRecord>,
    registry: impl Registry + 'static,
    directory: PathBuf,
    limits: Limits,
    lost: Arc<AtomicU64>,
) -> std::io::Result<JoinHandle<()>> {
    let mut desk = Desk::new(directory, limits, lost);
    let mut names = Names::default();
    std::thread::Builder::new().name("clerk".into()).spawn(move || {
        desk.begin();
        loop {
            match events.recv_timeout(FLUSH_EVERY) {
                Ok(first) => {
                    names.refresh(&registry);
                    let now = Timestamp::now();
                    for event in std::iter::once(first).chain(events.try_iter().take(BATCH)) {
                        if let Some(record) = names.record(&event, now) {
                            desk.write(&record);
                        }
                    }
                    // While more waits, it is not yet time.
                    if events.is_empty() {
                        desk.flush(now);
                    }
                }
                Err(RecvTimeoutError::Timeout) => desk.flush(Timestamp::now()),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tempfile::TempDir;
    use tidegate_api::resource::Pod;
    use tidegate_ledger::{Question, who};

    use super::*;
    use crate::table::egress::EgressRow;
    use crate::table::{EgressId, mapped};

    /// Pods by name and address, and a policy `shop`.
    #[derive(Clone, Default)]
    struct Cluster(Arc<Mutex<State>>);

    #[derive(Default)]
    struct State {
        generation: u64,
        pods: Vec<(String, IpAddr)>,
    }

    impl Cluster {
        fn has(&self, pods: &[(&str, &str)]) {
            let mut inside = self.0.lock().unwrap();
            inside.generation += 1;
            inside.pods = pods.iter().map(|(name, address)| ((*name).into(), address.parse().unwrap())).collect();
        }
    }

    impl Registry for Cluster {
        fn generation(&self) -> u64 {
            self.0.lock().unwrap().generation
        }

        fn look(&self) -> Option<Registered> {
            let pod = |(name, address): &(String, IpAddr)| {
                let egress = vec!["shop".into()];
                let body = Body::Pod(Pod { addresses: vec![*address], node: "w1".into(), identity: 0, egress });
                Arc::new(Resource { name: name.clone(), version: "1".into(), body })
            };
            let mut tables = Tables::default();
            let egress = Arc::make_mut(&mut tables.egress);
            egress.set_policy(EgressId(0), Some(EgressRow::new("shop", &[], &[])));
            let pods = self.0.lock().unwrap().pods.iter().map(pod).collect();
            Some(Registered { pods, tables })
        }
    }

    fn event(begins: bool, policy: u16, external: &str, internal: &str, remote: Option<&str>) -> NatRecord {
        let bytes = |address: &str| match address.parse().unwrap() {
            IpAddr::V4(v4) => mapped(&v4.octets()),
            IpAddr::V6(v6) => v6.octets(),
        };
        NatRecord {
            at: 0,
            begins,
            policy: EgressId(policy),
            protocol: 6,
            external: bytes(external),
            port: 40_000,
            pod: (bytes(internal), 51_000),
            remote: remote.map(|remote| (bytes(remote), 443)),
        }
    }

    /// N-044: what a worker told can be asked for by name.
    #[test]
    fn events_become_records_with_names() {
        let directory = TempDir::new().unwrap();
        let cluster = Cluster::default();
        cluster.has(&[("shop/web-0", "10.244.1.5"), ("shop/web-6", "fd00:1::5")]);
        let (sender, events) = crossbeam::channel::bounded(16);
        let clerk = start(events, cluster.clone(), directory.path().into(), Limits::default(), Arc::default()).unwrap();
        sender.send(event(true, 0, "192.0.2.10", "10.244.1.5", Some("198.51.100.7"))).unwrap();
        sender.send(event(true, 0, "2001:db8::10", "fd00:1::5", None)).unwrap();
        let ask = |external: &str| {
            let question = Question {
                external: external.parse().unwrap(),
                port: 40_000,
                protocol: Some(Protocol::Tcp),
                remote: None,
                at: Timestamp::now(),
            };
            who(directory.path(), &question).map(|found| found.answers).unwrap_or_default()
        };
        let wait = |external: &str, count: usize| {
            let found = (0..500).find_map(|_| {
                std::thread::sleep(Duration::from_millis(10));
                Some(ask(external)).filter(|answers| answers.len() == count)
            });
            found.unwrap_or_else(|| panic!("{external}: {:?}", ask(external)))
        };
        let v6 = wait("2001:db8::10", 1);
        assert_eq!((v6[0].holding.pod.as_str(), v6[0].holding.remote), ("shop/web-6", None));
        let v4 = wait("192.0.2.10", 1);
        let holding = &v4[0].holding;
        assert_eq!(
            (holding.pod.as_str(), holding.node.as_str(), holding.policy.as_str()),
            ("shop/web-0", "w1", "shop")
        );
        assert_eq!(holding.remote, Some("198.51.100.7:443".parse().unwrap()));

        // The address is another pod's from now on.
        sender.send(event(false, u16::MAX, "192.0.2.10", "10.244.1.5", Some("198.51.100.7"))).unwrap();
        wait("192.0.2.10", 0);
        cluster.has(&[("shop/web-9", "10.244.1.5")]);
        sender.send(event(true, 0, "192.0.2.10", "10.244.1.5", Some("198.51.100.7"))).unwrap();
        assert_eq!(wait("192.0.2.10", 1)[0].holding.pod, "shop/web-9");
        drop(sender);
        clerk.join().unwrap();

        // A run that records nothing ends what the one before held: nobody has it any more.
        assert_eq!(ask("192.0.2.10").len(), 1);
        let (sender, events) = crossbeam::channel::bounded(16);
        let clerk = start(events, cluster, directory.path().into(), Limits::default(), Arc::default()).unwrap();
        drop(sender);
        clerk.join().unwrap();
        assert_eq!(ask("192.0.2.10"), []);
    }

    /// N-044: records that no disk takes are counted, each once, and known to be missing when one takes them again.
    #[test]
    fn what_could_not_be_written_is_counted_and_recorded() {
        let home = TempDir::new().unwrap();
        let directory = home.path().join("nat");
        // No directory can be made there.
        std::fs::write(&directory, "in the way").unwrap();
        let at = |s: i64| Timestamp::from_second(1_800_000_000 + s).unwrap();
        let lost = Arc::new(AtomicU64::new(0));
        let mut desk = Desk::new(directory.clone(), Limits::default(), Arc::clone(&lost));
        let names = Names::default();
        let record = |external, s| names.record(&event(true, 0, external, "10.244.1.5", None), at(s)).unwrap();
        for s in 0..3 {
            desk.write(&record("192.0.2.10", s));
            desk.flush(at(s));
        }
        assert_eq!(lost.load(Ordering::Relaxed), 3);
        std::fs::remove_file(&directory).unwrap();
        desk.write(&record("2001:db8::10", 4));
        assert_eq!(lost.load(Ordering::Relaxed), 4, "not yet tried again");
        desk.write(&record("2001:db8::10", 6));
        desk.flush(at(6));
        assert_eq!(lost.load(Ordering::Relaxed), 4);
        let question = Question {
            external: "2001:db8::10".parse().unwrap(),
            port: 40_000,
            protocol: None,
            remote: None,
            at: at(7),
        };
        let found = who(&directory, &question).unwrap();
        assert_eq!((found.answers.len(), found.gaps), (1, vec![Gap { from: at(0), until: at(4), count: 4 }]));
    }
}
