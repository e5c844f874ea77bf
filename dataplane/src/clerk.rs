//! The clerk: who had which port, from workers to the ledger's files.
//!
//! Owns the thread that writes. Workers tell addresses; the clerk knows pods, nodes and policies from the accepted objects,
//! which it reads again whenever something was published since. A disk that fails loses records and stops nothing: each one
//! is counted, one line a minute tells of it, and what is missing is recorded when the disk takes records again.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};
use jiff::Timestamp;
use tidegate_ledger::{Holding, Limits, Protocol, Record};

use crate::compile::address_of;
use crate::desk::Desk;
use crate::flows::exporter::NatEvents;
use crate::names::{Names, Registry};
use crate::state::egress::NatRecord;

/// Events that may wait for the clerk; some megabytes.
pub const EVENTS_MAX: usize = 65_536;
/// How long an event may wait until it can be found.
const FLUSH_EVERY: Duration = Duration::from_millis(200);
/// Events written between two looks at whether something was published.
const BATCH: usize = 1024;
/// What cannot be done while a disk refuses records.
const TROUBLE: &str = "who has which port cannot be recorded";

/// What is written of an event; nothing of a protocol that has no ports.
fn record(names: &Names, event: &NatRecord, at: Timestamp) -> Option<Record> {
    let internal = address_of(&event.pod.0);
    let pod = names.pod(&internal);
    let policy = names.tables().egress.policy(event.policy);
    let holding = Holding {
        external: address_of(&event.external),
        ports: (event.port, event.port),
        protocol: Protocol::of_number(event.protocol)?,
        remote: event.remote.map(|(address, port)| SocketAddr::new(address_of(&address), port)),
        internal,
        internal_port: Some(event.pod.1),
        node: pod.as_ref().map(|who| who.node.to_owned()).unwrap_or_default(),
        pod: pod.map(|who| who.pod).unwrap_or_default(),
        policy: policy.map(|policy| policy.name.to_string()).unwrap_or_default(),
    };
    Some(if event.begins { Record::Begin { at, holding } } else { Record::End { at, holding } })
}

/// Starts the thread; it ends when every worker has. Records that do not reach a file are added to `lost`; `also` hears of all of
/// them.
///
/// # Errors
/// When the system gives no thread.
pub fn start(
    events: Receiver<NatRecord>,
    registry: impl Registry + 'static,
    directory: PathBuf,
    limits: Limits,
    lost: Arc<AtomicU64>,
    also: Option<NatEvents>,
) -> std::io::Result<JoinHandle<()>> {
    let mut desk = Desk::new(TROUBLE, directory, limits, lost);
    let mut names = Names::default();
    std::thread::Builder::new().name("clerk".into()).spawn(move || {
        desk.begin();
        loop {
            match events.recv_timeout(FLUSH_EVERY) {
                Ok(first) => {
                    names.refresh(&registry);
                    let now = Timestamp::now();
                    for event in std::iter::once(first).chain(events.try_iter().take(BATCH)) {
                        if let Some(record) = record(&names, &event, now) {
                            desk.write(&record);
                            also.iter().for_each(|also| also.tell(&record));
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
    use std::net::IpAddr;
    use std::sync::Mutex;
    use std::sync::atomic::Ordering;

    use tempfile::TempDir;
    use tidegate_api::resource::{Body, Pod, Resource};
    use tidegate_ledger::{Gap, Question, who};

    use super::*;
    use crate::names::Registered;
    use crate::table::egress::EgressRow;
    use crate::table::{EgressId, Tables, mapped};

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

        fn services(&self) -> Vec<Arc<Resource>> {
            Vec::new()
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
        let clerk =
            start(events, cluster.clone(), directory.path().into(), Limits::default(), Arc::default(), None).unwrap();
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
        let clerk = start(events, cluster, directory.path().into(), Limits::default(), Arc::default(), None).unwrap();
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
        let mut desk = Desk::new(TROUBLE, directory.clone(), Limits::default(), Arc::clone(&lost));
        let names = Names::default();
        let record = |external, s| super::record(&names, &event(true, 0, external, "10.244.1.5", None), at(s)).unwrap();
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
