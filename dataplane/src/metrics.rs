//! What this dataplane counts, for Prometheus.
//!
//! Owns which numbers stand on the page and their names; every text of HELP about packets comes from the one list of events
//! ([`crate::counters`]) and the one list of drops ([`crate::drops`]). A page is made of the same answers that
//! `tidegate show` gets, so it costs a worker one status between two turns. Its size depends on devices, queues, workers and
//! external addresses, never on clients, flows, pods or Services. Refuses to know HTTP ([`tidegate_metrics`]).

use std::net::SocketAddr;
use std::sync::Arc;

use tidegate_api::show::{Announcements, Counters, EgressShown, Gateways, PortRow, Show, Shown, StageRow, WorkerRow};
use tidegate_metrics::{Definition, Distribution, Kind, Metric, Served, number};

use crate::compile::thread::Handle;
use crate::counters::Event;
use crate::flows::exporter::{Destination, Loss, Tally};
use crate::server::query::WorkerQuery;
use crate::server::{Announcers, show};
use crate::worker::batches::{BATCH_NAMES, BATCH_SIZES};
use crate::worker::stages::ENDS_NS;

macro_rules! figures {
    ($($constant:ident, $kind:ident, $name:literal, [$($label:literal),*], $help:literal;)*) => {
        $(
            #[doc = $help]
            const $constant: Definition =
                Definition { kind: Kind::$kind, name: $name, labels: &[$($label),*], help: $help };
        )*
        /// What is neither an event, a drop nor a counter of a port.
        const FIGURES: &[Definition] = &[$($constant),*];
    };
}

figures! {
    BUILD,          Gauge, "build_info", ["program", "version"], "Version of the program.";
    CPU,            Counter, "process_cpu_seconds", ["program"], "Processor time that the process has used.";
    MEMORY,         Gauge, "process_resident_memory_bytes", ["program"], "Memory of the process that is in RAM.";
    STARTED,        Gauge, "process_start_time_seconds", ["program"], "When the process began, since 1970.";
    GENERATION,     Gauge, "generation", [], "Generation of the tables that all workers have reached.";
    IMBALANCE,      Gauge, "books_imbalance_packets", [], "Packets that are not accounted for; 0 unless there is a defect.";
    C_CONNECTED,    Gauge, "dataplane_control_connected", [], "1 while a control is connected that tells this dataplane what to do.";
    C_SILENCE,      Gauge, "dataplane_control_silence_seconds", [], "Time since control was heard last, which gives a sign of life every ten seconds or sooner; where none has been heard, since the start of the dataplane.";
    SUSPECTED,      Gauge, "nodes_suspected", [], "Nodes that have fallen silent.";
    SUSPICIONS,     Counter, "node_suspicions", [], "Times a node fell silent.";
    DROPS,          Counter, "drops", ["reason", "stage", "severity"], "Packets that ended here, by reason; docs/drops.md says what each means.";
    W_GENERATION,   Gauge, "worker_generation", ["worker"], "Generation of the tables that a worker has reached.";
    W_FLOWS,        Gauge, "worker_flows", ["worker"], "Live flows of a worker.";
    W_FLOWS_MAX,    Gauge, "worker_flows_max", ["worker"], "Flows that a worker has room for.";
    W_HALF_OPEN,    Gauge, "worker_half_open_flows", ["worker"], "Flows of a worker whose handshake no client has finished.";
    W_HALF_OPEN_MAX, Gauge, "worker_half_open_flows_max", ["worker"], "The share of a worker's flows for them.";
    W_HELD,         Gauge, "worker_held_packets", ["worker"], "Packets that a worker holds back, for a neighbour or a ring.";
    W_BUSY,         Counter, "worker_busy_seconds", ["worker"], "Time of a worker in turns that found packets; its rate is the worker's load.";
    W_TURNS,        Counter, "worker_turns", ["worker"], "Turns that a worker made.";
    W_IDLE_TURNS,   Counter, "worker_idle_turns", ["worker"], "Turns of a worker that found no packet.";
    W_RECEIVED,     Counter, "worker_received_packets", ["worker"], "Packets that a worker took from its ports.";
    W_HANDED_OVER,  Counter, "worker_handed_over_packets", ["worker"], "Packets that a worker handed to the one that owns them.";
    W_BATCH,        Histogram, "worker_batch_packets", ["worker"], "Packets that a worker found at a port at once: near 64, it is short of time.";
    W_STAGE,        Histogram, "worker_stage_seconds", ["worker", "stage"], "Time of a packet at a part of a worker's turn, measured in one turn of about a thousand; the average of that turn for each of its packets.";
    P_RING,         Gauge, "port_ring_entries", ["device", "queue", "ring"], "Entries in use of a ring to or from the kernel.";
    P_RING_MAX,     Gauge, "port_ring_entries_max", ["device", "queue", "ring"], "Entries that the ring has.";
    E_PORTS,        Gauge, "egress_ports", ["address", "protocol", "state"], "Ports of an external address by state: used by flows or mappings, resting after use (given to others when no other is left), free.";
    E_REFUSED,      Counter, "egress_refused_flows", ["address", "protocol"], "New flows of pods that found no port.";
    E_CARRIER,      Gauge, "egress_carrier", ["address", "node"], "1 for the gateway that carries an external address.";
    G_STATE,        Gauge, "gateway_state", ["node", "state"], "Gateways of the set; 1 for the state that each is in.";
    G_VIPS,         Gauge, "gateway_announced_vips", ["node"], "VIPs that a gateway announces on its links.";
    G_EQUAL,        Gauge, "gateway_equal", ["node"], "1 for another gateway that is heard and has the same Services and VIPs as this one, 0 if it has others.";
    G_DUAL,         Counter, "gateway_dual_owner_seconds", ["node"], "Time for which a gateway announced what this one did too; of its own, for which anybody did.";
    G_EVENTS,       Counter, "gateway_events", ["event"], "Heartbeats sent, heard and refused, VIPs taken over and yielded.";
    G_WITHHELD,     Gauge, "gateway_withheld_vips", [], "VIPs for which a stranger answers and which are therefore not announced.";
    F_RECORDS,      Counter, "flow_records", ["destination"], "Records of flows that the exporter gave to a destination, those that it lost included.";
    F_LOST,         Counter, "flow_records_lost", ["destination", "reason"], "Records of flows that a destination lost: the disk refused them, nobody was there to take them, or the socket was full.";
    ROUTES,         Gauge, "announced_routes", ["state"], "Routes to VIPs for routing daemons: announced, withdrawn, refused.";
}

/// Counters of ports and of the XDP program, and what they mean (`tidegate_io::PortCounters`, `struct xdp_statistics`).
const PORT_HELP: &[(&str, &str, &str)] = &[
    ("rx_packets", "port_received_packets", "Packets received by a port."),
    ("rx_bytes", "port_received_bytes", "Bytes received by a port."),
    ("rx_violations", "port_received_violations", "Received descriptors that were refused."),
    ("tx_packets", "port_sent_packets", "Packets accepted for sending."),
    ("tx_bytes", "port_sent_bytes", "Bytes accepted for sending."),
    ("tx_completed", "port_completed_packets", "Packets whose frame came back from the device."),
    ("tx_violations", "port_sent_violations", "Completions that were refused."),
    ("tx_rejected", "port_rejected_packets", "Packets that could never be sent."),
    ("tx_copied", "port_copied_packets", "Packets copied since their frame was of another group."),
    ("fill_starved", "port_fill_starved", "Turns in which there was no frame for the fill ring."),
    ("kicks", "port_kicks", "System calls made to wake the kernel."),
    ("kick_errors", "port_kick_errors", "Such calls that failed."),
    (
        "rx_dropped",
        "socket_dropped_packets",
        "Packets that the kernel dropped at the socket, other than for a full ring.",
    ),
    ("rx_invalid_descs", "socket_fill_invalid_descriptors", "Invalid descriptors in the fill ring."),
    ("tx_invalid_descs", "socket_send_invalid_descriptors", "Invalid descriptors in the send ring."),
    ("rx_ring_full", "socket_ring_full_packets", "Packets that the kernel dropped since the receive ring was full."),
    ("rx_fill_ring_empty_descs", "socket_fill_ring_empty", "Times the kernel found the fill ring empty."),
    ("tx_ring_empty_descs", "socket_send_ring_empty", "Times the kernel found the send ring empty."),
    ("pinhole_passed", "pinhole_passed_packets", "Packets of a device that the XDP program left to the kernel."),
    ("pinhole_redirected", "pinhole_redirected_packets", "Packets of a device that the XDP program gave to workers."),
    ("pinhole_dropped_dead", "pinhole_dead_dropped_packets", "Packets for us that were dropped while no worker lived."),
    ("pinhole_passed_dead", "pinhole_dead_passed_packets", "Packets for us that the kernel got while no worker lived."),
    ("pinhole_malformed", "pinhole_malformed_packets", "Packets that the XDP program could not read."),
    ("pinhole_reattached", "pinhole_reattached", "Times the XDP program had to be attached again."),
];

/// Packets of a batch: upper ends of the buckets of [`W_BATCH`].
const BATCH_ENDS: [f64; BATCH_SIZES] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];

/// Every metric of the page.
pub fn definitions() -> Vec<Definition> {
    let event = |event: &Event| Definition { kind: Kind::Counter, name: event.name(), labels: &[], help: event.help() };
    let port = |(counter, name, help): &(&str, &'static str, &'static str)| {
        let labels: &[&str] = if counter.starts_with("pinhole") { &["device"] } else { &["device", "queue"] };
        Definition { kind: Kind::Counter, name, labels, help }
    };
    FIGURES.iter().copied().chain(Event::ALL.iter().map(event)).chain(PORT_HELP.iter().map(port)).collect()
}

/// The text of `docs/metrics-dataplane.md`.
pub fn document() -> String {
    tidegate_metrics::document("tidegate-dataplane", "dataplane/src/metrics.rs", &definitions())
}

/// Answers at `address` from now on.
///
/// # Errors
/// When nobody can listen there.
pub fn start(
    address: SocketAddr,
    compiler: Handle,
    workers: Arc<dyn WorkerQuery>,
    announcers: Announcers,
    flows: Tally,
) -> std::io::Result<Served> {
    Served::start(address, Arc::new(move || collect(&compiler, workers.as_ref(), &announcers, &flows)))
}

/// Everything on the page.
///
/// # Errors
/// Who has not answered, for people.
pub fn collect(
    compiler: &Handle,
    workers: &dyn WorkerQuery,
    announcers: &Announcers,
    flows: &Tally,
) -> Result<Vec<Metric>, String> {
    let ask = |question| show::answer(&question, compiler, workers, announcers);
    let mut page = tidegate_metrics::process("tidegate-dataplane", env!("CARGO_PKG_VERSION"));
    let questions = [
        Show::Counters,
        Show::Control,
        Show::Drops,
        Show::Workers,
        Show::Ports,
        Show::Egress,
        Show::Gateways,
        Show::Announcements,
    ];
    for question in questions {
        page.extend(metrics_of(ask(question)?));
    }
    page.extend(of_flows(flows));
    page.push(GENERATION.single(number(compiler.reached())));
    Ok(page)
}

fn of_flows(tally: &Tally) -> [Metric; 2] {
    let (mut records, mut lost) = (F_RECORDS.metric(), F_LOST.metric());
    for destination in Destination::ALL.into_iter().filter(|destination| tally.records(*destination) > 0) {
        let name = destination.name();
        records.add([("destination", name)], number(tally.records(destination)));
        for reason in Loss::ALL {
            let of = [("destination", name), ("reason", reason.name())];
            lost.add(of, number(tally.lost(destination, reason)));
        }
    }
    [records, lost]
}

fn metrics_of(answer: Shown) -> Vec<Metric> {
    match answer {
        Shown::Counters(counters) => of_counters(&counters),
        Shown::Drops(rows) => {
            let mut drops = DROPS.metric();
            for row in rows {
                let labels = [("reason", &*row.reason), ("stage", &*row.stage), ("severity", &*row.severity)];
                drops.add(labels, number(row.packets));
            }
            vec![drops]
        }
        Shown::Workers(rows) => of_workers(&rows),
        Shown::Ports(rows) => of_ports(&rows),
        Shown::Egress(egress) => of_egress(&egress),
        Shown::Gateways(gateways) => of_gateways(&gateways),
        Shown::Announcements(announcements) => vec![of_routes(&announcements)],
        Shown::Control(control) => {
            let is_connected = f64::from(u8::from(control.client.is_some()));
            vec![C_CONNECTED.single(is_connected), C_SILENCE.single(number(control.silent_ms) / 1e3)]
        }
        _ => Vec::new(),
    }
}

fn of_counters(counters: &Counters) -> Vec<Metric> {
    let total = |name: &str| counters.totals.get(name).copied().unwrap_or_default();
    let events = Event::ALL
        .iter()
        .map(|event| Metric::single(Kind::Counter, event.name(), event.help(), number(total(event.name()))));
    #[allow(clippy::cast_precision_loss, reason = "the format's numbers are floating")]
    let imbalance = counters.imbalance as f64;
    let others = [
        IMBALANCE.single(imbalance),
        SUSPECTED.single(number(total("nodes_suspected"))),
        SUSPICIONS.single(number(total("node_suspicions"))),
    ];
    events.chain(others).collect()
}

fn of_workers(rows: &[WorkerRow]) -> Vec<Metric> {
    let defined = [
        W_GENERATION,
        W_FLOWS,
        W_FLOWS_MAX,
        W_HALF_OPEN,
        W_HALF_OPEN_MAX,
        W_HELD,
        W_TURNS,
        W_IDLE_TURNS,
        W_RECEIVED,
        W_HANDED_OVER,
        W_BUSY,
    ];
    let mut all = defined.map(|definition| definition.metric());
    let (mut batches, mut stages) = (W_BATCH.metric(), W_STAGE.metric());
    for row in rows {
        let worker = row.worker.to_string();
        let counted = |name: &str| row.counters.get(name).copied().unwrap_or_default();
        let received = counted(Event::Received.name());
        let counts = [
            row.generation,
            row.flows,
            row.flows_max,
            row.half_open,
            row.half_open_max,
            row.held,
            row.turns,
            row.idle_turns,
            received,
            counted(Event::HandedOver.name()),
        ];
        let values = counts.map(number).into_iter().chain([number(counted("busy_ns")) / 1e9]);
        for (metric, value) in all.iter_mut().zip(values) {
            metric.add([("worker", &worker)], value);
        }
        let sizes = BATCH_NAMES.iter().map(|name| counted(name));
        let buckets = BATCH_ENDS.into_iter().zip(sizes).chain([(f64::MAX, 0)]).collect();
        batches.distribute([("worker", &worker)], Distribution { sum: number(received), buckets });
        for stage in &row.stages {
            stages.distribute([("worker", &worker), ("stage", &stage.stage)], of_stage(stage));
        }
    }
    all.into_iter().chain([batches, stages]).collect()
}

fn of_stage(stage: &StageRow) -> Distribution {
    let seconds = |time_ns| number(time_ns) / 1e9;
    let ends = ENDS_NS.into_iter().map(seconds).chain([f64::MAX]);
    Distribution { sum: seconds(stage.time_ns), buckets: ends.zip(stage.packets.iter().copied()).collect() }
}

fn of_ports(rows: &[PortRow]) -> Vec<Metric> {
    let mut all = Vec::new();
    for (counter, name, help) in PORT_HELP {
        let mut metric = Metric::new(Kind::Counter, name, help);
        for row in rows {
            let Some(count) = row.counters.get(*counter) else { continue };
            let of_device = counter.starts_with("pinhole");
            // The program's counters are the device's: told once.
            if of_device && metric.samples.iter().any(|told| told.labels.iter().any(|(_, it)| *it == row.device)) {
                continue;
            }
            match of_device {
                true => metric.add([("device", &row.device)], number(*count)),
                false => metric.add([("device", &*row.device), ("queue", &row.queue.to_string())], number(*count)),
            }
        }
        all.push(metric);
    }
    let (mut used, mut size) = (P_RING.metric(), P_RING_MAX.metric());
    for row in rows {
        for (ring, (entries, entries_max)) in &row.rings {
            let queue = row.queue.to_string();
            let of = [("device", &*row.device), ("queue", &*queue), ("ring", &**ring)];
            used.add(of, f64::from(*entries));
            size.add(of, f64::from(*entries_max));
        }
    }
    all.extend([used, size]);
    all
}

fn of_egress(egress: &EgressShown) -> Vec<Metric> {
    let (mut ports, mut refused, mut carried) = (E_PORTS.metric(), E_REFUSED.metric(), E_CARRIER.metric());
    for row in &egress.addresses {
        let address = row.address.to_string();
        let of = [("address", address.as_str()), ("protocol", &row.protocol)];
        let [address, protocol] = of;
        let free = row.ports.saturating_sub(row.used + row.resting);
        let states = [("used", row.used), ("resting", row.resting), ("free", free)];
        for (state, count) in states {
            ports.add([address, protocol, ("state", state)], number(count));
        }
        refused.add(of, number(row.refused));
    }
    for (address, node) in &egress.carriers {
        carried.add([("address", address.to_string().as_str()), ("node", node)], 1.0);
    }
    vec![ports, refused, carried]
}

fn of_gateways(gateways: &Gateways) -> Vec<Metric> {
    let (mut states, mut vips) = (G_STATE.metric(), G_VIPS.metric());
    let (mut equal, mut dual, mut events) = (G_EQUAL.metric(), G_DUAL.metric(), G_EVENTS.metric());
    for row in &gateways.rows {
        let node = ("node", &*row.node);
        states.add([node, ("state", &*row.state)], 1.0);
        vips.add([node], f64::from(row.announced));
        dual.add([node], number(row.dual_owner_ms) / 1e3);
        if let Some(is_equal) = row.is_equal.filter(|_| !row.is_own) {
            equal.add([node], f64::from(u8::from(is_equal)));
        }
    }
    let counted = |name: &str| number(gateways.counters.get(name).copied().unwrap_or_default());
    // These two are told above and below.
    let told_otherwise = |name: &str| ["dual_owner_ms", "vips_withheld"].contains(&name);
    for name in gateways.counters.keys().filter(|name| !told_otherwise(name)) {
        events.add([("event", name)], counted(name));
    }
    vec![states, vips, equal, dual, events, G_WITHHELD.single(counted("vips_withheld"))]
}

fn of_routes(announcements: &Announcements) -> Metric {
    let mut metric = ROUTES.metric();
    if announcements.device.is_some() {
        for state in ["announced", "withdrawn", "refused"] {
            let count = announcements.rows.iter().filter(|row| row.state.starts_with(state)).count();
            metric.add([("state", state)], number(count as u64));
        }
    }
    metric
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use tidegate_api::resource::MacAddress;
    use tidegate_api::show::{AnnouncementRow, Control, DropRow, EgressAddressRow, GatewayRow};

    use super::*;

    fn page(answers: Vec<Shown>) -> String {
        tidegate_metrics::text(answers.into_iter().flat_map(metrics_of).collect()).unwrap()
    }

    #[test]
    fn every_event_and_drop_stands_there_with_its_help() {
        let totals = Event::ALL.iter().map(|event| (event.name().to_owned(), 3)).collect();
        let drop = DropRow {
            reason: "NoRoute".into(),
            stage: "route".into(),
            severity: "warning".into(),
            help: String::new(),
            packets: 5,
        };
        let page = page(vec![Shown::Counters(Counters { totals, imbalance: -2 }), Shown::Drops(vec![drop])]);
        for event in Event::ALL {
            assert!(page.contains(&format!("# HELP tidegate_{} {}\n", event.name(), event.help())), "{page}");
            assert!(page.contains(&format!("\ntidegate_{}_total 3.0\n", event.name())), "{page}");
        }
        assert!(
            page.contains(r#"tidegate_drops_total{reason="NoRoute",stage="route",severity="warning"} 5.0"#),
            "{page}"
        );
        assert!(page.contains("\ntidegate_books_imbalance_packets -2.0\n"), "{page}");
    }

    #[test]
    fn ports_are_told_by_queue_and_the_program_by_device() {
        let counters: BTreeMap<String, u64> = PORT_HELP.iter().map(|(name, ..)| ((*name).to_owned(), 7)).collect();
        let row = |queue| PortRow {
            device: "wan0".into(),
            queue,
            mode: "copy".into(),
            mac: MacAddress([2; 6]),
            mtu: 1500,
            counters: counters.clone(),
            rings: BTreeMap::from([("fill".to_owned(), (3, 4096))]),
        };
        let page = page(vec![Shown::Ports(vec![row(0), row(1)])]);
        let fill = "{device=\"wan0\",queue=\"1\",ring=\"fill\"}";
        assert!(page.contains(&format!("tidegate_port_ring_entries{fill} 3.0\n")), "{page}");
        assert!(page.contains(&format!("tidegate_port_ring_entries_max{fill} 4096.0\n")), "{page}");
        assert!(page.contains("tidegate_port_received_packets_total{device=\"wan0\",queue=\"1\"} 7.0\n"), "{page}");
        assert_eq!(
            page.matches("tidegate_pinhole_redirected_packets_total{device=\"wan0\"} 7.0\n").count(),
            1,
            "{page}"
        );
        let names: BTreeSet<_> = PORT_HELP.iter().map(|(_, name, _)| name).collect();
        assert_eq!(names.len(), PORT_HELP.len(), "each name once");
    }

    fn worker() -> WorkerRow {
        let counters = [("received", 9), ("busy_ns", 1_500_000_000), ("batches_of_1", 3), ("batches_to_4", 2)];
        WorkerRow {
            worker: 1,
            core: None,
            clients: None,
            generation: 4,
            turns: 0,
            idle_turns: 0,
            sleeps: 0,
            flows: 9,
            flows_max: 10,
            half_open: 1,
            half_open_max: 2,
            held: 0,
            ports: vec![],
            counters: counters.map(|(name, count)| (name.to_owned(), count)).into(),
            stages: vec![StageRow {
                stage: "forward".into(),
                time_ns: 1_000,
                packets: vec![0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
            }],
        }
    }

    #[test]
    fn workers_have_a_label() {
        let page = page(vec![Shown::Workers(vec![worker()])]);
        for line in [
            "worker_flows{worker=\"1\"} 9.0",
            "worker_busy_seconds_total{worker=\"1\"} 1.5",
            "worker_batch_packets_bucket{le=\"1.0\",worker=\"1\"} 3",
            "worker_batch_packets_bucket{le=\"2.0\",worker=\"1\"} 3",
            "worker_batch_packets_bucket{le=\"4.0\",worker=\"1\"} 5",
            "worker_batch_packets_bucket{le=\"+Inf\",worker=\"1\"} 5",
            "worker_batch_packets_sum{worker=\"1\"} 9.0",
            "worker_stage_seconds_bucket{le=\"1.6e-8\",worker=\"1\",stage=\"forward\"} 0",
            "worker_stage_seconds_bucket{le=\"3.2e-8\",worker=\"1\",stage=\"forward\"} 7",
            "worker_stage_seconds_bucket{le=\"0.000032768\",worker=\"1\",stage=\"forward\"} 7",
            "worker_stage_seconds_bucket{le=\"+Inf\",worker=\"1\",stage=\"forward\"} 9",
            "worker_stage_seconds_count{worker=\"1\",stage=\"forward\"} 9",
            "worker_stage_seconds_sum{worker=\"1\",stage=\"forward\"} 0.000001",
        ] {
            assert!(page.contains(&format!("tidegate_{line}\n")), "{line}: {page}");
        }
        assert!(page.ends_with("# EOF\n"));
    }

    #[test]
    fn gateways_and_routes_are_counted() {
        let gateway = |node: &str, is_own, is_equal| GatewayRow {
            node: node.into(),
            is_own,
            state: "live".into(),
            addresses: vec![],
            heard_ms: None,
            generation: 1,
            objects: String::new(),
            is_equal,
            announced: 2,
            dual_owner_ms: 1500,
            wrong_key: None,
        };
        let gateways = Gateways {
            alone: None,
            rows: vec![gateway("gw-1", true, None), gateway("gw-2", false, Some(false))],
            key: None,
            counters: [("heartbeats_sent".to_owned(), 5), ("vips_withheld".to_owned(), 1)].into(),
        };
        let route = |state: &str| AnnouncementRow { prefix: "203.0.113.1/32".into(), vips: 1, state: state.into() };
        let rows = vec![route("announced"), route("refused: another has it"), route("announced")];
        let announcements = Announcements { device: Some("tidegate".into()), rows, ..Announcements::default() };
        let page = page(vec![Shown::Gateways(gateways), Shown::Announcements(announcements)]);
        for line in [
            "gateway_state{node=\"gw-2\",state=\"live\"} 1.0",
            "gateway_dual_owner_seconds_total{node=\"gw-2\"} 1.5",
            "gateway_equal{node=\"gw-2\"} 0.0",
            "gateway_events_total{event=\"heartbeats_sent\"} 5.0",
            "gateway_withheld_vips 1.0",
            "announced_routes{state=\"announced\"} 2.0",
            "announced_routes{state=\"refused\"} 1.0",
        ] {
            assert!(page.contains(&format!("tidegate_{line}\n")), "{line}: {page}");
        }
        assert!(!page.contains("gateway_equal{node=\"gw-1\"}") && !page.contains("event=\"vips_withheld\""), "{page}");
    }

    #[test]
    fn a_control_that_is_gone_or_silent_is_told() {
        let client = Some("tidegate-control 1".to_owned());
        let hangs = page(vec![Shown::Control(Control { client, has_spoken: true, silent_ms: 90_500 })]);
        for line in ["dataplane_control_connected 1.0", "dataplane_control_silence_seconds 90.5"] {
            assert!(hangs.contains(&format!("\ntidegate_{line}\n")), "{line}: {hangs}");
        }
        let gone = page(vec![Shown::Control(Control { client: None, has_spoken: true, silent_ms: 2_000 })]);
        assert!(gone.contains("\ntidegate_dataplane_control_connected 0.0\n"), "{gone}");
    }

    /// N-042: every port of an address is in one state.
    #[test]
    fn ports_of_an_address_are_used_at_rest_or_free() {
        let row = EgressAddressRow {
            address: "2001:db8::9".parse().unwrap(),
            policies: vec![],
            protocol: "udp".into(),
            ports: 64_512,
            used: 4,
            resting: 3,
            held: 9,
            refused: 0,
        };
        let page = page(vec![Shown::Egress(EgressShown { addresses: vec![row], ..EgressShown::default() })]);
        for (state, ports) in [("used", 4), ("resting", 3), ("free", 64_505)] {
            let line = format!(
                "tidegate_egress_ports{{address=\"2001:db8::9\",protocol=\"udp\",state=\"{state}\"}} {ports}.0\n"
            );
            assert!(page.contains(&line), "{line}: {page}");
        }
    }

    /// Whatever can stand on the page is on the list, with exactly these labels, and the other way round.
    #[test]
    fn the_list_is_complete() {
        let egress = EgressAddressRow {
            address: "203.0.113.9".parse().unwrap(),
            policies: vec![],
            protocol: "tcp".into(),
            ports: 10,
            used: 4,
            resting: 1,
            held: 4,
            refused: 0,
        };
        let drop = DropRow {
            reason: "NoRoute".into(),
            stage: "route".into(),
            severity: "warning".into(),
            help: String::new(),
            packets: 5,
        };
        let answers = vec![
            Shown::Counters(Counters::default()),
            Shown::Drops(vec![drop]),
            Shown::Workers(vec![worker()]),
            Shown::Ports(vec![]),
            Shown::Egress(EgressShown { addresses: vec![egress], ..EgressShown::default() }),
            Shown::Gateways(Gateways::default()),
            Shown::Announcements(Announcements::default()),
            Shown::Control(Control::default()),
        ];
        let mut page = tidegate_metrics::process("tidegate-dataplane", "1");
        page.extend(answers.into_iter().flat_map(metrics_of));
        page.extend(of_flows(&Tally::told()));
        page.push(GENERATION.single(1.0));
        let list = definitions();
        let listed: BTreeSet<&str> = list.iter().map(|definition| definition.name).collect();
        assert_eq!(listed.len(), list.len(), "each name once");
        assert_eq!(page.iter().map(|metric| metric.name).collect::<BTreeSet<_>>(), listed);
        for metric in &page {
            let definition = list.iter().find(|definition| definition.name == metric.name).unwrap();
            assert_eq!((metric.kind, metric.help), (definition.kind, definition.help), "{}", metric.name);
            for sample in &metric.samples {
                let labels: Vec<&str> = sample.labels.iter().map(|(name, _)| *name).collect();
                assert_eq!(labels, definition.labels, "{}", metric.name);
            }
        }
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics-dataplane.md");
        if std::env::var_os("TIDEGATE_WRITE_GOLDEN").is_some() {
            std::fs::write(&path, document()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), document(), "TIDEGATE_WRITE_GOLDEN=1 writes it anew");
    }
}
