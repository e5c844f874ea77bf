//! The exporter: records of flows, from workers' rings to files and collectors.
//!
//! Owns the thread that tells, off the workers' cores. It empties the rings every few milliseconds, puts names in the place of
//! numbers, and gives each record to every destination. One that fails loses its own records and stops nothing: each is
//! counted by destination and reason ([`Tally`]), a line a minute tells of it while it lasts, and it is tried again.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, TryRecvError, bounded};
use jiff::Timestamp;
use tidegate_io::mem::now_ns;
use tidegate_ledger::{Kept, Limits, Record};

use super::record::{Flow, Line, Origin};
use super::{NOTES_MAX, Notes};
use crate::desk::Desk;
use crate::names::{Names, Registry};

/// Where datagrams go.
mod datagrams;
/// Records as IPFIX messages.
mod ipfix;

use datagrams::Datagrams;
pub use datagrams::{To, collector};
use ipfix::Encoder;

/// How long it rests when no worker has told anything: what a ring must hold.
const REST: Duration = Duration::from_millis(10);
/// Records of ports that may wait for the exporter: some megabytes.
const NAT_EVENTS_MAX: usize = 16_384;
/// How long a record may wait until it can be read.
const FLUSH_EVERY_NS: u64 = 200_000_000;
/// Longest time between two messages of templates while a collector is not sure to be there.
const TEMPLATES_WHILE_FAILING_EVERY: Duration = Duration::from_secs(1);
/// What cannot be done while a disk refuses records.
const TROUBLE: &str = "flows cannot be recorded";

/// Where records go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Destination {
    /// Files of JSON lines.
    Files,
    /// JSON in datagrams.
    Json,
    /// IPFIX over UDP.
    Ipfix,
}

impl Destination {
    /// All of them.
    pub const ALL: [Destination; 3] = [Destination::Files, Destination::Json, Destination::Ipfix];

    /// The name for people.
    pub fn name(self) -> &'static str {
        match self {
            Destination::Files => "files",
            Destination::Json => "json",
            Destination::Ipfix => "ipfix",
        }
    }
}

/// Why records were lost on the exporter's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// The disk or the directory refused them.
    Disk,
    /// Nobody is there, or there is no way.
    Unreachable,
    /// The socket had no room.
    Full,
}

impl Loss {
    /// All of them.
    pub const ALL: [Loss; 3] = [Loss::Disk, Loss::Unreachable, Loss::Full];

    /// The name for people.
    pub fn name(self) -> &'static str {
        match self {
            Loss::Disk => "disk",
            Loss::Unreachable => "unreachable",
            Loss::Full => "full",
        }
    }
}

/// What the exporter has told and lost, for whoever counts.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    records: [Arc<AtomicU64>; Destination::ALL.len()],
    lost: [[Arc<AtomicU64>; Loss::ALL.len()]; Destination::ALL.len()],
}

impl Tally {
    /// Records that were given to a destination, those included that it lost.
    pub fn records(&self, destination: Destination) -> u64 {
        self.records[destination as usize].load(Ordering::Relaxed)
    }

    /// Records that a destination lost.
    pub fn lost(&self, destination: Destination, reason: Loss) -> u64 {
        self.lost[destination as usize][reason as usize].load(Ordering::Relaxed)
    }

    fn count(&self, destination: Destination) {
        self.records[destination as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn lose(&self, destination: Destination, reason: Loss, records: u64) {
        self.lost[destination as usize][reason as usize].fetch_add(records, Ordering::Relaxed);
    }

    /// One with a record to each, and one of them lost.
    #[cfg(test)]
    pub(crate) fn told() -> Tally {
        let tally = Tally::default();
        Destination::ALL.into_iter().for_each(|destination| tally.count(destination));
        tally.lose(Destination::Json, Loss::Full, 1);
        tally
    }

    /// Where losses of that reason are added up.
    fn losses(&self, destination: Destination, reason: Loss) -> Arc<AtomicU64> {
        Arc::clone(&self.lost[destination as usize][reason as usize])
    }
}

/// What is told, and where.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// One packet in so many is told; 0: none.
    pub sampling: u32,
    /// Directory of JSON lines, and how much is kept.
    pub files: Option<(PathBuf, Limits)>,
    /// Where lines of JSON go, one in each datagram.
    pub json: Option<To>,
    /// The collector of IPFIX.
    pub ipfix: Option<IpfixTo>,
}

/// A collector of IPFIX, and what it is told of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpfixTo {
    /// Its address, UDP.
    pub collector: SocketAddr,
    /// Number of the observation domain.
    pub domain: u32,
    /// Private enterprise number under which names are told.
    pub enterprise: u32,
    /// Between two messages of templates.
    pub templates_every: Duration,
}

/// Where the clerk tells who had which port, for the collector of IPFIX.
#[derive(Clone, Debug)]
pub struct NatEvents {
    records: Sender<Record>,
    tally: Tally,
}

impl NatEvents {
    /// A way for [`NAT_EVENTS_MAX`] records, and its other end.
    pub fn new(tally: &Tally) -> (NatEvents, Receiver<Record>) {
        let (records, told) = bounded(NAT_EVENTS_MAX);
        (NatEvents { records, tally: tally.clone() }, told)
    }

    /// Tells a record, or counts it as lost.
    pub fn tell(&self, record: &Record) {
        if self.records.try_send(record.clone()).is_err() {
            self.tally.count(Destination::Ipfix);
            self.tally.lose(Destination::Ipfix, Loss::Full, 1);
        }
    }
}

/// Somebody who is given records.
trait Sink: Send {
    /// Takes one.
    fn put(&mut self, flow: &Flow);
    /// Takes one of a port that was handed out or taken back: those have files of their own.
    fn put_port(&mut self, _: &Record) {}
    /// It is time to pass on what has been taken.
    fn flush(&mut self, now: Timestamp);
}

struct Files {
    desk: Desk<Line>,
    tally: Tally,
}

impl Sink for Files {
    fn put(&mut self, flow: &Flow) {
        self.tally.count(Destination::Files);
        self.desk.write(&Line::Flow(Box::new(flow.clone())));
    }

    fn flush(&mut self, now: Timestamp) {
        self.desk.flush(now);
    }
}

struct Json {
    datagrams: Datagrams,
    tally: Tally,
    line: Vec<u8>,
}

impl Sink for Json {
    fn put(&mut self, flow: &Flow) {
        self.tally.count(Destination::Json);
        self.line.clear();
        // A record has nothing that JSON cannot say.
        if Line::Flow(Box::new(flow.clone())).write(&mut self.line).is_ok() {
            self.datagrams.send(&self.line, 1);
        }
    }

    fn flush(&mut self, _: Timestamp) {}
}

struct Ipfix {
    encoder: Encoder,
    datagrams: Datagrams,
    tally: Tally,
    templates_every: Duration,
    told_templates: Option<Instant>,
}

impl Ipfix {
    fn new(to: IpfixTo, sampling: u32, tally: Tally) -> Ipfix {
        Ipfix {
            encoder: Encoder::new(to.domain, to.enterprise, sampling),
            datagrams: Datagrams::new(To::Udp(to.collector), Destination::Ipfix, tally.clone()),
            tally,
            templates_every: to.templates_every,
            told_templates: None,
        }
    }

    /// Templates come before what needs them; to a collector that may have begun anew, which knows none, they come soon.
    fn tell_templates(&mut self) {
        let every = match self.datagrams.is_failing() {
            true => self.templates_every.min(TEMPLATES_WHILE_FAILING_EVERY),
            false => self.templates_every,
        };
        if self.told_templates.is_none_or(|at| at.elapsed() >= every) {
            for message in self.encoder.templates(Timestamp::now()) {
                self.datagrams.send(&message, 0);
            }
            self.told_templates = Some(Instant::now());
        }
    }

    fn send(&mut self, message: Option<(Vec<u8>, u64)>) {
        if let Some((message, records)) = message {
            self.datagrams.send(&message, records);
        }
    }
}

impl Sink for Ipfix {
    fn put(&mut self, flow: &Flow) {
        self.tally.count(Destination::Ipfix);
        self.tell_templates();
        let message = self.encoder.flow(flow);
        self.send(message);
    }

    fn put_port(&mut self, record: &Record) {
        self.tally.count(Destination::Ipfix);
        self.tell_templates();
        let message = self.encoder.port(record);
        self.send(message);
    }

    fn flush(&mut self, now: Timestamp) {
        self.tell_templates();
        let message = self.encoder.message(now);
        self.send(message);
    }
}

/// Starts the thread; it ends when every worker has let go of its ring, and the clerk of `ports`. `notes` are the workers'
/// rings, by number.
///
/// # Errors
/// When the system gives no thread.
pub fn start(
    notes: Vec<Arc<Notes>>,
    ports: Receiver<Record>,
    registry: impl Registry + 'static,
    settings: Settings,
    tally: Tally,
) -> std::io::Result<JoinHandle<()>> {
    let mut exporter = Exporter::new(notes, ports, settings, tally);
    std::thread::Builder::new().name("flows".into()).spawn(move || {
        loop {
            // Asked first: who lets go of a ring has put everything in.
            let is_over = exporter.notes.iter().all(|notes| Arc::strong_count(notes) == 1);
            let told = exporter.tell(&registry);
            if is_over && exporter.ports.is_none() && told == 0 {
                return exporter.flush();
            }
            if told < NOTES_MAX / 4 {
                std::thread::sleep(REST);
            }
        }
    })
}

/// The exporter's own.
struct Exporter {
    notes: Vec<Arc<Notes>>,
    /// Who had which port, until the clerk ends.
    ports: Option<Receiver<Record>>,
    names: Names,
    sampling: u32,
    sinks: Vec<Box<dyn Sink>>,
    flushed_ns: u64,
}

impl Exporter {
    fn new(notes: Vec<Arc<Notes>>, ports: Receiver<Record>, settings: Settings, tally: Tally) -> Exporter {
        let Settings { sampling, files, json, ipfix } = settings;
        let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
        if let Some((directory, limits)) = files {
            let mut desk = Desk::new(TROUBLE, directory, limits, tally.losses(Destination::Files, Loss::Disk));
            desk.begin();
            sinks.push(Box::new(Files { desk, tally: tally.clone() }));
        }
        if let Some(to) = json {
            let datagrams = Datagrams::new(to, Destination::Json, tally.clone());
            sinks.push(Box::new(Json { datagrams, tally: tally.clone(), line: Vec::new() }));
        }
        if let Some(to) = ipfix {
            sinks.push(Box::new(Ipfix::new(to, sampling, tally)));
        }
        Exporter { notes, ports: Some(ports), names: Names::default(), sampling, sinks, flushed_ns: 0 }
    }

    /// Tells what is in the rings now; how many notes that were.
    fn tell(&mut self, registry: &impl Registry) -> usize {
        let (mut told, epoch_ns) = (0, epoch_ns());
        for (worker, notes) in (0u32..).zip(&self.notes) {
            // No more than there is room for, so that one worker does not keep the others' waiting.
            for note in std::iter::from_fn(|| notes.take()).take(NOTES_MAX) {
                if told == 0 {
                    self.names.refresh_at_leisure(registry);
                }
                let origin = Origin { worker, sampling: self.sampling, epoch_ns };
                let flow = Flow::of(&note, &self.names, &origin);
                self.sinks.iter_mut().for_each(|sink| sink.put(&flow));
                told += 1;
            }
        }
        told += self.tell_ports();
        if now_ns().saturating_sub(self.flushed_ns) >= FLUSH_EVERY_NS {
            self.flush();
        }
        told
    }

    /// The same of ports.
    fn tell_ports(&mut self) -> usize {
        let Some(ports) = &self.ports else { return 0 };
        let mut told = 0;
        while told < NOTES_MAX {
            match ports.try_recv() {
                Ok(record) => self.sinks.iter_mut().for_each(|sink| sink.put_port(&record)),
                Err(TryRecvError::Empty) => return told,
                Err(TryRecvError::Disconnected) => {
                    self.ports = None;
                    return told;
                }
            }
            told += 1;
        }
        told
    }

    fn flush(&mut self) {
        let now = Timestamp::now();
        self.sinks.iter_mut().for_each(|sink| sink.flush(now));
        self.flushed_ns = now_ns();
    }
}

/// What to add to a monotonic time for nanoseconds since 1970.
fn epoch_ns() -> u64 {
    u64::try_from(Timestamp::now().as_nanosecond()).unwrap_or_default().saturating_sub(now_ns())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::path::Path;

    use serde_json::Value;
    use tempfile::TempDir;
    use tidegate_api::resource::Resource;

    use super::*;
    use crate::flows::tests::note;
    use crate::flows::{Ends, Note, Sampler};
    use crate::names::Registered;
    use crate::table::{Tables, mapped};

    /// Nobody is known.
    struct Nobody;

    impl Registry for Nobody {
        fn generation(&self) -> u64 {
            1
        }

        fn look(&self) -> Option<Registered> {
            Some(Registered { pods: Vec::new(), tables: Tables::default() })
        }

        fn services(&self) -> Vec<Arc<Resource>> {
            Vec::new()
        }
    }

    /// A note of port `n`, of either family.
    fn of(n: u16) -> Note {
        let address = if n.is_multiple_of(2) { mapped(&[198, 18, 0, 7]) } else { [0x20; 16] };
        Note { came: Ends { source: (address, n), destination: (address, 53) }, at_ns: now_ns(), ..note() }
    }

    fn settings(directory: Option<&Path>, json: Option<&Path>) -> Settings {
        Settings {
            sampling: 10,
            files: directory.map(|directory| (directory.into(), Limits::default())),
            json: json.map(|path| To::Unix(path.into())),
            ipfix: None,
        }
    }

    /// Lines of all files, in order.
    fn lines(directory: &Path) -> Vec<Value> {
        let mut paths: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        assert!(paths.iter().all(|path| path.extension().unwrap() == "jsonl"), "{paths:?}");
        let texts = paths.iter().map(|path| std::fs::read_to_string(path).unwrap());
        texts
            .flat_map(|text| text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<_>>())
            .collect()
    }

    #[test]
    fn every_destination_is_told_the_same_and_the_thread_ends_with_the_workers() {
        let home = TempDir::new().unwrap();
        let (directory, path) = (home.path().join("flows"), home.path().join("c.sock"));
        let collector = UnixDatagram::bind(&path).unwrap();
        collector.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let rings = [Notes::new(), Notes::new()];
        let tally = Tally::default();
        let (_, no_ports) = bounded(1);
        let told =
            start(rings.to_vec(), no_ports, Nobody, settings(Some(&directory), Some(&path)), tally.clone()).unwrap();
        let mut workers = rings.map(|notes| Sampler::new(10, notes, 1));
        for n in 0..40 {
            workers[usize::from(n % 2)].note(of(n));
        }
        let mut bytes = [0; 2048];
        let mut heard = Vec::new();
        for _ in 0..40 {
            let length = collector.recv(&mut bytes).unwrap();
            heard.push(serde_json::from_slice::<Value>(&bytes[..length]).unwrap());
        }
        drop(workers);
        told.join().unwrap();
        let written = lines(&directory);
        assert_eq!(written[0]["event"], "start");
        assert_eq!(written[1..], heard[..]);
        for line in &heard {
            let n = line["source_port"].as_u64().unwrap_or_default();
            let source = if n.is_multiple_of(2) { "198.18.0.7" } else { "2020:2020:2020:2020:2020:2020:2020:2020" };
            assert_eq!((&line["worker"], &line["source"]), (&Value::from(n % 2), &Value::from(source)));
            assert_eq!((&line["sampling"], &line["packets"]), (&Value::from(10), &Value::from(1)));
            let at: Timestamp = line["at"].as_str().unwrap().parse().unwrap();
            assert!(Timestamp::now().duration_since(at).abs() < jiff::SignedDuration::from_secs(30), "{at}");
        }
        let mut ports: Vec<_> = heard.iter().map(|line| line["source_port"].as_u64().unwrap_or_default()).collect();
        ports.sort_unstable();
        assert_eq!(ports, Vec::from_iter(0..40));
        assert_eq!(Destination::ALL.map(|to| tally.records(to)), [40, 40, 0]);
        assert!(Destination::ALL.iter().all(|to| Loss::ALL.iter().all(|why| tally.lost(*to, *why) == 0)));
    }

    /// One destination that fails takes nothing from the other; what it lost is counted, and recorded where that can be.
    #[test]
    fn a_destination_that_fails_loses_its_own_records_alone() {
        let home = TempDir::new().unwrap();
        let (directory, path) = (home.path().join("flows"), home.path().join("c.sock"));
        std::fs::write(&directory, "in the way").unwrap();
        let collector = UnixDatagram::bind(&path).unwrap();
        let notes = Notes::new();
        let tally = Tally::default();
        let mut exporter = Exporter::new(
            vec![Arc::clone(&notes)],
            bounded(1).1,
            settings(Some(&directory), Some(&path)),
            tally.clone(),
        );
        let mut sampler = Sampler::new(10, notes, 1);
        (0..5).for_each(|n| sampler.note(of(n)));
        assert_eq!(exporter.tell(&Nobody), 5);
        assert_eq!(tally.lost(Destination::Files, Loss::Disk), 5);
        assert_eq!((0..5).filter(|_| collector.recv(&mut [0; 2048]).is_ok()).count(), 5);
        // The disk is there again, five seconds later; the collector has gone.
        std::fs::remove_file(&directory).unwrap();
        drop(collector);
        let later = now_ns() + 6_000_000_000;
        (0..5).for_each(|n| sampler.note(Note { at_ns: later, ..of(n) }));
        exporter.tell(&Nobody);
        exporter.flush();
        assert_eq!(tally.lost(Destination::Files, Loss::Disk), 5);
        assert_eq!(tally.lost(Destination::Json, Loss::Unreachable), 5);
        let events: Vec<_> = lines(&directory).iter().map(|line| line["event"].as_str().unwrap().to_owned()).collect();
        assert_eq!(events, ["start", "gap", "sample", "sample", "sample", "sample", "sample"]);
        assert_eq!(lines(&directory)[1]["count"], 5);
    }
    /// Numbers of the sets in a message (RFC 7011 section 3.3.2).
    fn sets(message: &[u8]) -> Vec<u16> {
        let word = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
        assert_eq!((word(0), usize::from(word(2))), (10, message.len()));
        let (mut at, mut sets) = (16, Vec::new());
        while at < message.len() {
            sets.push(word(at));
            at += usize::from(word(at + 2));
        }
        sets
    }

    /// Over both families: templates first, then samples and what the clerk told; the thread ends with both.
    #[test]
    fn a_collector_of_ipfix_hears_of_packets_and_of_ports() {
        for own in ["127.0.0.1:0", "[::1]:0"] {
            let collector = std::net::UdpSocket::bind(own).unwrap();
            collector.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let tally = Tally::default();
            let (events, ports) = NatEvents::new(&tally);
            let ipfix = IpfixTo {
                collector: collector.local_addr().unwrap(),
                domain: 7,
                enterprise: 32473,
                templates_every: Duration::from_secs(60),
            };
            let notes = Notes::new();
            let settings = Settings { ipfix: Some(ipfix), ..settings(None, None) };
            let told = start(vec![Arc::clone(&notes)], ports, Nobody, settings, tally.clone()).unwrap();
            let mut sampler = Sampler::new(10, notes, 1);
            sampler.note(of(4));
            let holding = tidegate_ledger::Holding {
                external: "192.0.2.1".parse().unwrap(),
                ports: (40_000, 40_000),
                protocol: tidegate_ledger::Protocol::Tcp,
                remote: None,
                internal: "10.244.1.7".parse().unwrap(),
                internal_port: Some(5000),
                pod: String::new(),
                node: String::new(),
                policy: String::new(),
            };
            events.tell(&Record::Begin { at: Timestamp::now(), holding });
            drop((sampler, events));
            told.join().unwrap();
            let mut bytes = [0; 2048];
            let mut heard = Vec::new();
            while !(heard.contains(&256) && heard.contains(&258)) {
                let length = collector.recv(&mut bytes).unwrap();
                heard.extend(sets(&bytes[..length]));
            }
            assert_eq!(heard[..4], [2, 3, 260, 261], "{heard:?}");
            assert_eq!(tally.records(Destination::Ipfix), 2);
            assert!(Loss::ALL.iter().all(|why| tally.lost(Destination::Ipfix, *why) == 0));
        }
    }

    /// A collector that begins anew knows no templates: they do not wait for their time.
    #[test]
    fn a_collector_that_was_away_is_told_the_templates_again() {
        for own in ["127.0.0.1:0", "[::1]:0"] {
            let collector = std::net::UdpSocket::bind(own).unwrap();
            let at = collector.local_addr().unwrap();
            let hour = Duration::from_secs(3600);
            let to = IpfixTo { collector: at, domain: 7, enterprise: 32473, templates_every: hour };
            let mut ipfix = Ipfix::new(to, 1, Tally::default());
            let mut bytes = [0; 2048];
            let mut templates = |collector: &std::net::UdpSocket, ipfix: &mut Ipfix, within: Duration| {
                collector.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
                let begun = Instant::now();
                while begun.elapsed() < within {
                    ipfix.flush(Timestamp::now());
                    if collector.recv(&mut bytes).is_ok_and(|length| sets(&bytes[..length]).contains(&2)) {
                        return true;
                    }
                }
                false
            };
            assert!(templates(&collector, &mut ipfix, hour));
            while templates(&collector, &mut ipfix, Duration::from_millis(200)) {}
            drop(collector);
            // Refused is what was sent before.
            for _ in 0..2 {
                ipfix.datagrams.send(b"a record", 1);
                std::thread::sleep(Duration::from_millis(20));
            }
            let collector = std::net::UdpSocket::bind(at).unwrap();
            assert!(templates(&collector, &mut ipfix, 10 * TEMPLATES_WHILE_FAILING_EVERY));
            let quiet = 10 * TEMPLATES_WHILE_FAILING_EVERY;
            let begun = Instant::now();
            while templates(&collector, &mut ipfix, 2 * TEMPLATES_WHILE_FAILING_EVERY) {
                assert!(begun.elapsed() < quiet, "it goes on as if the collector were away");
            }
        }
    }
}
