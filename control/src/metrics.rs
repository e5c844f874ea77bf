//! What this process counts, for Prometheus.
//!
//! Owns the one list of metrics, what threads other than the loop count, and how a page comes together: the loop is asked for
//! its figures, which cost it a walk over what it has to count, and whoever asks waits. A loop that is busy with a large
//! change is not waited for long: the page then has its last figures, and says how old they are. Its size depends on kinds,
//! reasons, verbs and pools, never on Services, pods or nodes. Refuses to know HTTP ([`tidegate_metrics`]).

use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tidegate_metrics::{Definition, Kind, Metric, Served};

use crate::reconcile::Input;
use crate::source::kubernetes::traffic::Traffic;

/// The loop is waited for so long.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

macro_rules! figures {
    ($($variant:ident, $kind:ident, $name:literal, [$($label:literal),*], $help:literal;)*) => {
        /// Something that is told, of this process.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Figure {
            $(#[doc = $help] $variant,)*
        }

        /// All of them, in the order of the page.
        pub const DEFINITIONS: &[Definition] = &[
            $(Definition { kind: Kind::$kind, name: $name, labels: &[$($label),*], help: $help },)*
        ];
    };
}

figures! {
    Build,              Gauge, "build_info", ["program", "version"], "Version of the program.";
    Cpu,                Counter, "process_cpu_seconds", ["program"], "Processor time that the process has used.";
    Memory,             Gauge, "process_resident_memory_bytes", ["program"], "Memory of the process that is in RAM.";
    Started,            Gauge, "process_start_time_seconds", ["program"], "When the process began, since 1970.";
    PageAge,            Gauge, "control_figures_age_seconds", [], "Age of the figures of the loop on this page: 0 unless it is too busy to answer.";
    SourceComplete,     Gauge, "control_source_complete", [], "1 once the source has been read as a whole.";
    Objects,            Gauge, "control_objects", ["kind", "state"], "Objects of the source: valid, kept (invalid now, the last good version is used), or unused (never was valid).";
    Services,           Gauge, "control_services", [], "Services that are this gateway's to serve.";
    Notices,            Gauge, "control_service_notices", ["condition", "reason"], "Services of which something must be known: conditions that do not hold.";
    Resources,          Gauge, "control_resources", ["kind"], "What the dataplane should hold, by kind of the contract.";
    Refused,            Gauge, "control_resources_refused", ["kind"], "Of these, what the dataplane refused.";
    HeldBack,           Gauge, "control_removals_held", [], "Removals that wait for a person, since so much does not go by mistake.";
    GenerationTold,     Gauge, "control_generation_told", [], "Generation of the dataplane's tables that has all it was sent.";
    GenerationReached,  Gauge, "control_generation_reached", [], "Generation that all of its workers forward by.";
    Connected,          Gauge, "control_dataplane_connected", [], "1 while the dataplane is connected and has answered.";
    Connections,        Counter, "control_dataplane_connections", [], "Connections made to the dataplane.";
    Programming,        Histogram, "control_programming_duration_seconds", [], "From a change of endpoints, by the time its author gave it, to the last worker. As good as the clocks agree.";
    Pass,               Histogram, "control_pass_duration_seconds", [], "Time that the loop took for what it was given at once.";
    Waiting,            Gauge, "control_waiting_batches", [], "Portions of changes that wait for the loop.";
    Batches,            Counter, "control_batches", [], "Portions of changes that the loop has taken.";
    Lists,              Counter, "control_lists", ["kind"], "Whole lists that the API has answered, by kind: the first one, and one for each time a watch could not be taken up.";
    Watches,            Counter, "control_watches", ["kind"], "Watches begun, by kind: a server ends each within minutes, and it is taken up.";
    WatchFailures,      Counter, "control_watch_failures", ["kind", "fault"], "Lists and watches that failed, by kind and why.";
    Requests,           Counter, "control_api_requests", ["verb", "resource", "code"], "Requests to the API by how they ended; code 0: no answer.";
    RequestDuration,    Histogram, "control_api_request_duration_seconds", ["verb"], "Time until the API answered; of a watch until it began.";
    Leads,              Gauge, "control_leader", [], "1 while this process holds the Lease and decides.";
    Terms,              Counter, "control_leader_terms", [], "Times it has taken the Lease.";
    Problems,           Gauge, "control_problems", ["reason", "severity"], "What is wrong now, as in problems.json.";
    Pool,               Gauge, "control_pool_addresses", ["pool", "family", "state"], "Addresses of a pool: assigned, or available. Told by the one that leads.";
    Gateways,           Gauge, "control_gateways", [], "Nodes that are gateways of this one's set, itself included.";
}

impl Figure {
    /// The metric, empty yet.
    pub fn metric(self) -> Metric {
        self.definition().metric()
    }

    /// The metric with a number.
    pub fn of(self, value: f64) -> Metric {
        self.definition().single(value)
    }

    fn definition(self) -> &'static Definition {
        &DEFINITIONS[self as usize]
    }
}

/// What is counted by threads other than the loop.
#[derive(Debug, Default)]
pub struct Board {
    waiting: AtomicI64,
}

impl Board {
    /// A batch is on its way to the loop.
    pub fn came(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    /// The loop has taken so many.
    pub fn took(&self, count: usize) {
        self.waiting.fetch_sub(i64::try_from(count).unwrap_or_default(), Ordering::Relaxed);
    }

    fn waiting(&self) -> Metric {
        let waiting = self.waiting.load(Ordering::Relaxed);
        Figure::Waiting.of(tidegate_metrics::number(u64::try_from(waiting).unwrap_or_default()))
    }
}

/// The loop's figures as they were told last.
#[derive(Debug, Default)]
struct Last(Mutex<Option<(Instant, Vec<Metric>)>>);

/// Answers at `address` from now on. `traffic` is that with the API, where there is one.
///
/// # Errors
/// When nobody can listen there.
pub fn start(
    address: SocketAddr,
    inbox: Sender<Input>,
    board: Arc<Board>,
    traffic: Option<Arc<Traffic>>,
) -> std::io::Result<Served> {
    let last = Last::default();
    // A sender is not to be shared between the threads that answer.
    let inbox = Mutex::new(inbox);
    Served::start(
        address,
        Arc::new(move || {
            let inbox = inbox.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let mut page = tidegate_metrics::process("tidegate-control", env!("CARGO_PKG_VERSION"));
            page.extend(last.ask(&inbox));
            page.push(board.waiting());
            page.extend(traffic.as_ref().map(|traffic| traffic.metrics()).unwrap_or_default());
            Ok(page)
        }),
    )
}

impl Last {
    /// The loop's figures, or those of before where it does not answer soon.
    fn ask(&self, inbox: &Sender<Input>) -> Vec<Metric> {
        let (reply, answer) = channel();
        let asked = inbox.send(Input::Count(reply)).is_ok();
        let told = asked.then(|| answer.recv_timeout(ANSWER_WITHIN).ok()).flatten();
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(told) = told {
            *last = Some((Instant::now(), told));
            return last.iter().flat_map(|(_, told)| told.clone()).chain([Figure::PageAge.of(0.0)]).collect();
        }
        match &*last {
            Some((at, told)) => told.iter().cloned().chain([Figure::PageAge.of(at.elapsed().as_secs_f64())]).collect(),
            None => Vec::new(),
        }
    }
}

/// The text of `docs/metrics-control.md`.
pub fn document() -> String {
    tidegate_metrics::document("tidegate-control", "control/src/metrics.rs", DEFINITIONS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_follow_the_conventions() {
        let names: BTreeSet<_> = DEFINITIONS.iter().map(|definition| definition.name).collect();
        assert_eq!(names.len(), DEFINITIONS.len());
        for Definition { kind, name, labels, help } in DEFINITIONS {
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            assert!(!name.ends_with("_total") && help.ends_with('.'), "{name}: {help}");
            assert!(!labels.contains(&"le"), "{name}");
            assert!(*kind != Kind::Histogram || name.ends_with("_seconds"), "{name}: a unit is missing");
        }
        assert_eq!(Figure::Gateways.definition().name, "control_gateways", "the enum and the list agree");
    }

    #[test]
    fn a_loop_that_is_busy_is_told_with_its_last_figures() {
        let (inbox, taken) = channel();
        let last = Last::default();
        let answering = std::thread::spawn(move || {
            let Ok(Input::Count(reply)) = taken.recv() else { panic!("it asks for figures") };
            reply.send(vec![Figure::Services.of(3.0)]).unwrap();
            taken
        });
        let first = last.ask(&inbox);
        let _taken = answering.join().unwrap();
        assert_eq!(first, [Figure::Services.of(3.0), Figure::PageAge.of(0.0)]);
        let second = last.ask(&inbox);
        assert_eq!(second[0], Figure::Services.of(3.0));
        let tidegate_metrics::Value::Number(age) = second[1].samples[0].value else { panic!("{second:?}") };
        assert!(age >= ANSWER_WITHIN.as_secs_f64(), "{age}");
    }

    #[test]
    fn the_list_in_the_documents_is_this_one() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics-control.md");
        if std::env::var_os("TIDEGATE_WRITE_GOLDEN").is_some() {
            std::fs::write(&path, document()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), document(), "TIDEGATE_WRITE_GOLDEN=1 writes it anew");
    }
}
