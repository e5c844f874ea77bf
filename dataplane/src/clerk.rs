//! The clerk: who had which port, from workers to the ledger's files.
//!
//! Owns the thread that writes. Workers tell addresses; the clerk knows pods, nodes and policies from the accepted objects,
//! which it reads again whenever something was published since. A disk that fails loses records and stops nothing: the
//! loss is counted, told, and the next record is tried again.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};
use hashbrown::HashMap;
use jiff::Timestamp;
use tidegate_api::resource::{Body, Kind, Resource};
use tidegate_ledger::{Holding, Limits, Protocol, Record, Writer};

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
    /// Records that could not be written since the last that could.
    lost: u64,
}

impl Desk {
    /// Where an earlier run has left records, the start is one too: what was held then is not held any more.
    fn begin(&mut self) {
        if !self.directory.is_dir() {
            return;
        }
        match Writer::open(&self.directory, self.limits, Timestamp::now()) {
            Ok(writer) => self.writer = Some(writer),
            Err(error) => self.note(Err(error)),
        }
    }

    fn write(&mut self, record: &Record) {
        let written = match &mut self.writer {
            Some(writer) => writer.append(record),
            // Nothing is begun before there is something to record.
            None => Writer::open(&self.directory, self.limits, record.at()).and_then(|mut writer| {
                let written = writer.append(record);
                self.writer = Some(writer);
                written
            }),
        };
        self.note(written);
    }

    fn flush(&mut self) {
        let flushed = self.writer.as_mut().map_or(Ok(()), Writer::flush);
        self.note(flushed);
    }

    fn note(&mut self, done: Result<(), tidegate_ledger::Problem>) {
        match done {
            Ok(()) if self.lost > 0 => {
                tracing::info!(lost = self.lost, "records can be written again");
                self.lost = 0;
            }
            Ok(()) => {}
            Err(error) => {
                if self.lost == 0 {
                    tracing::error!(%error, "who has which port cannot be recorded; going on without");
                }
                self.lost += 1;
            }
        }
    }
}

/// Starts the thread; it ends when every worker has.
///
/// # Errors
/// When the system gives no thread.
pub fn start(
    events: Receiver<NatRecord>,
    registry: impl Registry + 'static,
    directory: PathBuf,
    limits: Limits,
) -> std::io::Result<JoinHandle<()>> {
    let mut desk = Desk { directory, limits, writer: None, lost: 0 };
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
                        desk.flush();
                    }
                }
                Err(RecvTimeoutError::Timeout) => desk.flush(),
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
        let clerk = start(events, cluster.clone(), directory.path().into(), Limits::default()).unwrap();
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
        let clerk = start(events, cluster, directory.path().into(), Limits::default()).unwrap();
        drop(sender);
        clerk.join().unwrap();
        assert_eq!(ask("192.0.2.10"), []);
    }
}
