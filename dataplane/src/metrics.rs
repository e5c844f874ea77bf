//! What this dataplane counts, for Prometheus.
//!
//! Owns which numbers stand on the page and their names; every text of HELP about packets comes from the one list of events
//! ([`crate::counters`]) and the one list of drops ([`crate::drops`]). A page is made of the same answers that
//! `tidegate show` gets, so it costs a worker one status between two turns. Its size depends on devices, queues, workers and
//! external addresses, never on clients, flows, pods or Services. Refuses to know HTTP ([`tidegate_metrics`]).

use std::net::SocketAddr;
use std::sync::Arc;

use tidegate_api::show::{Gateways, Show, Shown};
use tidegate_metrics::{Kind, Metric, Served, number};

use crate::compile::thread::Handle;
use crate::counters::Event;
use crate::server::query::WorkerQuery;
use crate::server::{Announcers, show};

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

/// Answers at `address` from now on.
///
/// # Errors
/// When nobody can listen there.
pub fn start(
    address: SocketAddr,
    compiler: Handle,
    workers: Arc<dyn WorkerQuery>,
    announcers: Announcers,
) -> std::io::Result<Served> {
    Served::start(address, Arc::new(move || collect(&compiler, workers.as_ref(), &announcers)))
}

/// Everything on the page.
///
/// # Errors
/// Who has not answered, for people.
pub fn collect(compiler: &Handle, workers: &dyn WorkerQuery, announcers: &Announcers) -> Result<Vec<Metric>, String> {
    let ask = |question| show::answer(&question, compiler, workers, announcers);
    let mut page = vec![build()];
    for question in [Show::Counters, Show::Drops, Show::Workers, Show::Ports, Show::Egress, Show::Gateways] {
        page.extend(metrics_of(ask(question)?));
    }
    page.push(Metric::single(
        Kind::Gauge,
        "generation",
        "Generation of the tables that all workers have reached",
        number(compiler.reached()),
    ));
    Ok(page)
}

fn build() -> Metric {
    let mut build = Metric::new(Kind::Gauge, "build_info", "Version of the program");
    build.add([("program", "tidegate-dataplane"), ("version", env!("CARGO_PKG_VERSION"))], 1.0);
    build
}

fn metrics_of(answer: Shown) -> Vec<Metric> {
    match answer {
        Shown::Counters(counters) => {
            let total = |name: &str| counters.totals.get(name).copied().unwrap_or_default();
            let events = Event::ALL
                .iter()
                .map(|event| Metric::single(Kind::Counter, event.name(), event.help(), number(total(event.name()))));
            #[allow(clippy::cast_precision_loss, reason = "the format's numbers are floating")]
            let imbalance = counters.imbalance as f64;
            let gauges = [
                (
                    "books_imbalance_packets",
                    "Packets that are not accounted for; 0 unless there is a defect.",
                    imbalance,
                ),
                ("nodes_suspected", "Nodes that have fallen silent.", number(total("nodes_suspected"))),
            ];
            let gauges = gauges.map(|(name, help, value)| Metric::single(Kind::Gauge, name, help, value));
            let suspicions = number(total("node_suspicions"));
            let ever = Metric::single(Kind::Counter, "node_suspicions", "Times a node fell silent.", suspicions);
            events.chain(gauges).chain([ever]).collect()
        }
        Shown::Drops(rows) => {
            let mut drops = Metric::new(
                Kind::Counter,
                "drops",
                "Packets that ended here, by reason; docs/drops.md says what each means.",
            );
            for row in rows {
                let labels = [("reason", &*row.reason), ("stage", &*row.stage), ("severity", &*row.severity)];
                drops.add(labels, number(row.packets));
            }
            vec![drops]
        }
        Shown::Workers(rows) => {
            let gauge = |name, help| Metric::new(Kind::Gauge, name, help);
            let mut all = [
                gauge("worker_generation", "Generation of the tables that a worker has reached."),
                gauge("worker_flows", "Live flows of a worker."),
                gauge("worker_flows_max", "Flows that a worker has room for."),
                gauge("worker_half_open_flows", "Flows of a worker whose handshake no client has finished."),
                gauge("worker_half_open_flows_max", "The share of a worker's flows for them."),
                gauge("worker_held_packets", "Packets that a worker holds back, for a neighbour or a ring."),
            ];
            for row in rows {
                let values = [row.generation, row.flows, row.flows_max, row.half_open, row.half_open_max, row.held];
                for (metric, value) in all.iter_mut().zip(values) {
                    metric.add([("worker", &row.worker.to_string())], number(value));
                }
            }
            all.into()
        }
        Shown::Ports(rows) => {
            let mut all = Vec::new();
            for (counter, name, help) in PORT_HELP {
                let mut metric = Metric::new(Kind::Counter, name, help);
                for row in &rows {
                    let Some(count) = row.counters.get(*counter) else { continue };
                    let of_device = counter.starts_with("pinhole");
                    // The program's counters are the device's: told once.
                    if of_device
                        && metric.samples.iter().any(|told| told.labels.iter().any(|(_, it)| *it == row.device))
                    {
                        continue;
                    }
                    match of_device {
                        true => metric.add([("device", &row.device)], number(*count)),
                        false => {
                            metric.add([("device", &*row.device), ("queue", &row.queue.to_string())], number(*count))
                        }
                    }
                }
                all.push(metric);
            }
            all
        }
        Shown::Egress(egress) => {
            let mut ports =
                Metric::new(Kind::Gauge, "egress_ports", "Ports of an external address, by what they are doing.");
            let mut refused =
                Metric::new(Kind::Counter, "egress_refused_flows", "New flows of pods that found no port.");
            for row in egress.addresses {
                let address = row.address.to_string();
                let of = [("address", address.as_str()), ("protocol", &row.protocol)];
                let [address, protocol] = of;
                let free = row.ports.saturating_sub(row.used);
                let states = [("used", row.used.saturating_sub(row.resting)), ("resting", row.resting), ("free", free)];
                for (state, count) in states {
                    ports.add([address, protocol, ("state", state)], number(count));
                }
                refused.add(of, number(row.refused));
            }
            let mut carried =
                Metric::new(Kind::Gauge, "egress_carrier", "1 for the gateway that carries an external address.");
            for (address, node) in &egress.carriers {
                carried.add([("address", address.to_string().as_str()), ("node", node)], 1.0);
            }
            vec![ports, refused, carried]
        }
        Shown::Gateways(gateways) => of_gateways(&gateways),
        _ => Vec::new(),
    }
}

fn of_gateways(gateways: &Gateways) -> Vec<Metric> {
    let mut states = Metric::new(Kind::Gauge, "gateway_state", "Gateways of the set; 1 for the state that each is in.");
    let mut vips = Metric::new(Kind::Gauge, "gateway_announced_vips", "VIPs that a gateway announces on its links.");
    for row in &gateways.rows {
        states.add([("node", &*row.node), ("state", &*row.state)], 1.0);
        vips.add([("node", &*row.node)], f64::from(row.announced));
    }
    vec![states, vips]
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use tidegate_api::resource::MacAddress;
    use tidegate_api::show::{Counters, DropRow, PortRow, WorkerRow};

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
            rings: BTreeMap::new(),
        };
        let page = page(vec![Shown::Ports(vec![row(0), row(1)])]);
        assert!(page.contains("tidegate_port_received_packets_total{device=\"wan0\",queue=\"1\"} 7.0\n"), "{page}");
        assert_eq!(
            page.matches("tidegate_pinhole_redirected_packets_total{device=\"wan0\"} 7.0\n").count(),
            1,
            "{page}"
        );
        let names: BTreeSet<_> = PORT_HELP.iter().map(|(_, name, _)| name).collect();
        assert_eq!(names.len(), PORT_HELP.len(), "each name once");
    }

    #[test]
    fn workers_have_a_label() {
        let row = WorkerRow {
            worker: 1,
            core: None,
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
            counters: BTreeMap::new(),
        };
        let page = page(vec![Shown::Workers(vec![row])]);
        assert!(page.contains("tidegate_worker_flows{worker=\"1\"} 9.0\n"), "{page}");
        assert!(page.ends_with("# EOF\n"));
    }
}
