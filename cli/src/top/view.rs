//! What `tidegate top` shows: two samples in, lines out.
//!
//! Owns rates, order, and the text of a frame. Refuses to know terminals and sockets, so that tests compare lines. A rate is
//! what moved between two samples by the time between them; a number that went back tells of a dataplane that started anew,
//! and has no rate until the next sample.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use tidegate_api::show::{BackendRow, Counters, DropRow, EgressShown, FlowRow, PortRow, ServiceRow, WorkerRow};

/// What the table is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Subject {
    /// Workers and their ports: load, batches, rings
    Workers,
    /// Drops by reason
    Drops,
    /// Services
    Services,
    /// Backends, of all Services or of one
    Backends,
    /// Flows
    Flows,
    /// External addresses and the pods that use them
    Nat,
}

impl Subject {
    /// All, in the order of their keys.
    pub const ALL: [Subject; 6] =
        [Subject::Workers, Subject::Drops, Subject::Services, Subject::Backends, Subject::Flows, Subject::Nat];

    /// The one after it.
    pub fn next(self) -> Subject {
        let at = Self::ALL.iter().position(|subject| *subject == self).unwrap_or_default();
        Self::ALL.get(at + 1).copied().unwrap_or(Subject::Workers)
    }

    fn name(self) -> &'static str {
        match self {
            Subject::Workers => "workers",
            Subject::Drops => "drops",
            Subject::Services => "services",
            Subject::Backends => "backends",
            Subject::Flows => "flows",
            Subject::Nat => "nat",
        }
    }
}

/// What was heard at one moment.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// When, in seconds of any clock.
    pub at_s: f64,
    /// Name and version of the dataplane.
    pub server: String,
    /// One row per worker.
    pub workers: Vec<WorkerRow>,
    /// Totals.
    pub counters: Counters,
    /// One row per port.
    pub ports: Vec<PortRow>,
    /// Asked for by [`Subject::Drops`].
    pub drops: Vec<DropRow>,
    /// Asked for by [`Subject::Services`].
    pub services: Vec<ServiceRow>,
    /// Asked for by [`Subject::Backends`].
    pub backends: Vec<BackendRow>,
    /// Asked for by [`Subject::Flows`].
    pub flows: Vec<FlowRow>,
    /// Asked for by [`Subject::Nat`].
    pub egress: EgressShown,
}

impl Sample {
    fn total(&self, name: &str) -> u64 {
        self.counters.totals.get(name).copied().unwrap_or_default()
    }
}

/// One cell.
#[derive(Clone, Debug, PartialEq)]
enum Cell {
    Text(String),
    /// A number, and what stands behind it.
    Number(f64, &'static str),
    /// Not known, or not yet.
    Nothing,
}

impl Cell {
    fn shown(&self) -> String {
        match self {
            // What somebody named must not move the cursor.
            Cell::Text(text) => text.chars().map(|char| if char.is_control() { '?' } else { char }).collect(),
            Cell::Number(number, unit) => short(*number) + unit,
            Cell::Nothing => "-".into(),
        }
    }

    fn order(&self, other: &Cell) -> Ordering {
        match (self, other) {
            (Cell::Number(a, _), Cell::Number(b, _)) => b.total_cmp(a),
            (Cell::Number(..), _) => Ordering::Less,
            (_, Cell::Number(..)) => Ordering::Greater,
            (a, b) => a.shown().cmp(&b.shown()),
        }
    }
}

/// Three or four digits with what they count.
fn short(number: f64) -> String {
    let (size, unit) = match number.abs() {
        size if size >= 1e9 => (1e9, "G"),
        size if size >= 1e6 => (1e6, "M"),
        size if size >= 1e4 => (1e3, "k"),
        _ => (1.0, ""),
    };
    let scaled = number / size;
    if scaled.abs() >= 100.0 || scaled.fract().abs() < 0.05 {
        format!("{scaled:.0}{unit}")
    } else {
        format!("{scaled:.1}{unit}")
    }
}

/// A table: text columns lean left, the others right.
struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
    /// By which column it is sorted unless told otherwise.
    sorted_by: usize,
}

/// Everything that decides what is on the screen.
#[derive(Debug)]
pub struct State {
    /// What the table is about.
    pub subject: Subject,
    /// The Service whose backends are shown; none: all.
    pub service: Option<String>,
    /// Whether nothing new is asked.
    pub is_paused: bool,
    /// Whether the least comes first.
    pub is_reversed: bool,
    /// Row that is marked, from the top of the table.
    pub selected: usize,
    sorting: Option<usize>,
    columns: usize,
    before: Option<Sample>,
    now: Option<Sample>,
    /// Why there is nothing newer.
    trouble: Option<String>,
    is_anew: bool,
    /// Name in the marked row, and its line in the last frame.
    marked: Option<(String, usize)>,
}

impl State {
    /// Nothing heard yet.
    pub fn new(subject: Subject, service: Option<String>) -> State {
        State {
            subject: if service.is_some() { Subject::Backends } else { subject },
            service,
            is_paused: false,
            is_reversed: false,
            selected: 0,
            sorting: None,
            columns: 1,
            before: None,
            now: None,
            trouble: None,
            is_anew: false,
            marked: None,
        }
    }

    /// Takes what was heard, or why nothing was.
    pub fn hear(&mut self, heard: Result<Sample, String>) {
        match heard {
            Ok(sample) => {
                self.is_anew = self.now.as_ref().is_some_and(|before| {
                    ["turns", "received"].iter().any(|name| sample.total(name) < before.total(name))
                });
                let before = self.now.replace(sample);
                self.before = before.filter(|_| !self.is_anew);
                self.trouble = None;
            }
            Err(trouble) => self.trouble = Some(trouble),
        }
    }

    /// Shows something else.
    pub fn turn_to(&mut self, subject: Subject) {
        (self.subject, self.service, self.sorting, self.selected, self.is_reversed) = (subject, None, None, 0, false);
    }

    /// Goes into the marked row; false: there is nothing in it.
    pub fn enter(&mut self) -> bool {
        let service = self.marked.as_ref().map(|(name, _)| name.clone()).filter(|_| self.subject == Subject::Services);
        let is_there = service.is_some();
        if is_there {
            self.turn_to(Subject::Backends);
            self.service = service;
        }
        is_there
    }

    /// Goes back out; false: there is nothing to leave.
    pub fn leave(&mut self) -> bool {
        let is_inside = self.service.is_some();
        if is_inside {
            self.turn_to(Subject::Services);
        }
        is_inside
    }

    /// Sorts by a column further right or left.
    pub fn turn_sorting(&mut self, columns: isize) {
        let at = self.sorting.unwrap_or_default().saturating_add_signed(columns);
        self.sorting = Some(at.min(self.columns.saturating_sub(1)));
    }

    /// The Service whose backends are to be shown, where the last look has found none of that name.
    pub fn unknown_service(&self) -> Option<&str> {
        let (now, name) = (self.now.as_ref()?, self.service.as_deref()?);
        let is_there = now.services.iter().any(|row| row.service == name) || !now.backends.is_empty();
        (!is_there).then_some(name)
    }

    /// Line of the marked row in the last frame.
    pub fn marked_line(&self) -> Option<usize> {
        self.marked.as_ref().map(|(_, line)| *line)
    }

    /// Seconds between the two samples.
    fn span_s(&self) -> Option<f64> {
        let span = self.now.as_ref()?.at_s - self.before.as_ref()?.at_s;
        (span > 0.0).then_some(span)
    }

    fn rate(&self, before: Option<u64>, now: u64, unit: &'static str) -> Cell {
        match (self.span_s(), before) {
            (Some(span_s), Some(before)) if now >= before => Cell::Number((now - before) as f64 / span_s, unit),
            _ => Cell::Nothing,
        }
    }

    fn total_rate(&self, name: &str) -> Cell {
        let before = self.before.as_ref().map(|before| before.total(name));
        self.now.as_ref().map_or(Cell::Nothing, |now| self.rate(before, now.total(name), ""))
    }

    /// The lines of one frame, no longer than `width` and no more than `height`.
    pub fn frame(&mut self, width: usize, height: usize) -> Vec<String> {
        let mut lines = self.head();
        self.marked = None;
        if let Some(now) = &self.now {
            let mut table = match self.subject {
                Subject::Workers => self.workers(now),
                Subject::Drops => self.drops(now),
                Subject::Services => self.services(now),
                Subject::Backends => self.backends(now),
                Subject::Flows => flows(now),
                Subject::Nat => self.nat(now),
            };
            self.columns = table.headings.len();
            // There may be fewer columns than at the last look.
            let by = self.sorting.unwrap_or(table.sorted_by).min(table.headings.len().saturating_sub(1));
            self.sorting = Some(by);
            table.rows.sort_by(|a, b| match (a.get(by), b.get(by)) {
                (Some(a), Some(b)) if self.is_reversed => b.order(a),
                (Some(a), Some(b)) => a.order(b),
                _ => Ordering::Equal,
            });
            let room = height.saturating_sub(lines.len() + 2);
            self.selected = self.selected.min(table.rows.len().saturating_sub(1));
            let first = (self.selected + 1).saturating_sub(room);
            let shown = table.rows.get(first..table.rows.len().min(first.saturating_add(room))).unwrap_or_default();
            if let Some(row) = table.rows.get(self.selected).and_then(|row| row.first()) {
                self.marked = Some((row.shown(), lines.len() + 1 + self.selected - first));
            }
            lines.extend(laid_out(&table.headings, shown, by));
            if table.rows.is_empty() {
                let unknown = self.unknown_service().map(|name| format!("no Service {name} is served here"));
                lines.push(unknown.unwrap_or_else(|| "nothing".into()));
            }
        }
        lines.push(format!("1-{} or Tab: what is shown  ←→: sort  r: reverse  ↑↓: mark  Enter, Esc: into a Service and out  p: pause  q: end", Subject::ALL.len()));
        lines.truncate(height);
        lines.iter().map(|line| line.chars().take(width).collect()).collect()
    }

    fn head(&self) -> Vec<String> {
        let Some(now) = &self.now else {
            return vec![format!("tidegate top: {}", self.trouble.as_deref().unwrap_or("asking")), String::new()];
        };
        let generation = now.workers.iter().map(|worker| worker.generation).min().unwrap_or_default();
        let paused = if self.is_paused { "  paused" } else { "" };
        let of = self.service.as_ref().map(|service| format!(" of {service}")).unwrap_or_default();
        let mut lines = vec![format!(
            "{}  {} worker{}  generation {generation}  showing {}{of}{paused}",
            now.server,
            now.workers.len(),
            if now.workers.len() == 1 { "" } else { "s" },
            self.subject.name()
        )];
        let per_s = |name: &str| self.total_rate(name).shown();
        let share = match (self.total_rate("handed_over"), self.total_rate("received")) {
            (Cell::Number(handed, _), Cell::Number(received, _)) if received > 0.0 => {
                format!("{:.1} %", 100.0 * handed / received)
            }
            _ => "-".into(),
        };
        lines.push(format!(
            "per second: received {}  sent {}  dropped {}  new flows {}  handed over {share}",
            per_s("received"),
            per_s("sent"),
            per_s("dropped"),
            per_s("flow_installed")
        ));
        let (flows, flows_max) =
            now.workers.iter().fold((0, 0), |(flows, max), worker| (flows + worker.flows, max + worker.flows_max));
        let books = if now.counters.imbalance == 0 {
            "balance".into()
        } else {
            format!("are out by {}", now.counters.imbalance)
        };
        lines.push(format!(
            "flows {} of {}  held {}  books {books}",
            short(flows as f64),
            short(flows_max as f64),
            now.total("held")
        ));
        if let Some(trouble) = &self.trouble {
            lines.push(format!("! {trouble} What follows is the last that was heard."));
        } else if self.is_anew {
            lines.push("! The dataplane has started anew: rates with the next look.".into());
        }
        lines.push(String::new());
        lines
    }

    fn workers(&self, now: &Sample) -> Table {
        let before: BTreeMap<u32, &WorkerRow> =
            self.before.iter().flat_map(|before| &before.workers).map(|worker| (worker.worker, worker)).collect();
        let row = |worker: &WorkerRow| {
            let was = before.get(&worker.worker).copied();
            let of = |row: &WorkerRow, name: &str| row.counters.get(name).copied();
            let rate = |name: &str| match of(worker, name) {
                Some(count) => self.rate(was.and_then(|was| of(was, name)), count, ""),
                None => Cell::Nothing,
            };
            let load = match rate("busy_ns") {
                Cell::Number(ns, _) => Cell::Number((ns / 1e7).min(100.0), " %"),
                _ => Cell::Nothing,
            };
            let busy = self.rate(
                was.map(|was| was.turns - was.idle_turns.min(was.turns)),
                worker.turns - worker.idle_turns.min(worker.turns),
                "",
            );
            let taken = (rate("received"), rate("taken_over"));
            let fill = match (&taken, &busy) {
                ((Cell::Number(received, _), Cell::Number(taken, _)), Cell::Number(turns, _)) if *turns > 0.0 => {
                    Cell::Number((received + taken) / turns, "")
                }
                _ => Cell::Nothing,
            };
            let ports: Vec<&PortRow> = now
                .ports
                .iter()
                .filter(|port| worker.ports.contains(&format!("{}/{}", port.device, port.queue)))
                .collect();
            let ring = |name: &str| {
                let fullest = ports.iter().filter_map(|port| port.rings.get(name)).filter(|(_, size)| *size > 0);
                let fullest = fullest.map(|(used, size)| 100.0 * f64::from(*used) / f64::from(*size)).reduce(f64::max);
                fullest.map_or(Cell::Nothing, |percent| Cell::Number(percent, " %"))
            };
            vec![
                Cell::Text(format!("worker {}", worker.worker)),
                Cell::Text(worker.core.map_or_else(|| "any".into(), |core| core.to_string())),
                load,
                rate("received"),
                rate("sent"),
                rate("dropped"),
                fill,
                rate("handed_over"),
                rate("taken_over"),
                Cell::Number(worker.flows as f64, ""),
                Cell::Number(worker.held as f64, ""),
                ring("rx"),
                ring("tx"),
                Cell::Text(worker.ports.join(" ")),
            ]
        };
        let headings = vec![
            "WORKER",
            "CORE",
            "LOAD",
            "RECEIVED/S",
            "SENT/S",
            "DROPPED/S",
            "BATCH",
            "HANDED/S",
            "TAKEN/S",
            "FLOWS",
            "HELD",
            "RX RING",
            "TX RING",
            "PORTS",
        ];
        Table { headings, rows: now.workers.iter().map(row).collect(), sorted_by: 0 }
    }

    fn drops(&self, now: &Sample) -> Table {
        let before: BTreeMap<&str, u64> =
            self.before.iter().flat_map(|before| &before.drops).map(|row| (row.reason.as_str(), row.packets)).collect();
        let row = |row: &DropRow| {
            vec![
                Cell::Text(row.reason.clone()),
                Cell::Text(row.stage.clone()),
                Cell::Text(row.severity.clone()),
                self.rate(before.get(row.reason.as_str()).copied(), row.packets, ""),
                Cell::Number(row.packets as f64, ""),
                Cell::Text(row.help.clone()),
            ]
        };
        let rows = now.drops.iter().filter(|row| row.packets > 0).map(row).collect();
        Table { headings: vec!["REASON", "STAGE", "SEVERITY", "DROPPED/S", "DROPPED", "MEANING"], rows, sorted_by: 3 }
    }

    /// Figures are counted per port of a Service and family; frontends that share them stand in one line.
    fn services(&self, now: &Sample) -> Table {
        let key =
            |row: &ServiceRow| (row.service.clone(), row.protocol.to_string(), row.service_port, row.address.is_ipv4());
        let before: BTreeMap<_, &ServiceRow> =
            self.before.iter().flat_map(|before| &before.services).map(|row| (key(row), row)).collect();
        let by_key: BTreeMap<_, &ServiceRow> = now.services.iter().map(|row| (key(row), row)).collect();
        let row = |(key, row): (&(String, String, u16, bool), &&ServiceRow)| {
            let was = before.get(key).copied();
            vec![
                Cell::Text(row.service.clone()),
                Cell::Text(format!(
                    "{}/{} {}",
                    row.service_port,
                    row.protocol,
                    if row.address.is_ipv4() { "IPv4" } else { "IPv6" }
                )),
                Cell::Text(row.mode.clone()),
                Cell::Number(row.backends.into(), ""),
                self.rate(was.map(|was| was.new_flows), row.new_flows, ""),
                self.rate(was.map(|was| was.packets), row.packets, ""),
                self.rate(was.map(|was| was.bytes.saturating_mul(8)), row.bytes.saturating_mul(8), ""),
                Cell::Number(row.packets as f64, ""),
            ]
        };
        let headings = vec!["SERVICE", "PORT", "MODE", "BACKENDS", "NEW FLOWS/S", "PACKETS/S", "BITS/S", "PACKETS"];
        Table { headings, rows: by_key.iter().map(row).collect(), sorted_by: 5 }
    }

    fn backends(&self, now: &Sample) -> Table {
        let key =
            |row: &BackendRow| (row.service.clone(), row.protocol.to_string(), row.port, row.address, row.backend_port);
        let before: BTreeMap<_, &BackendRow> =
            self.before.iter().flat_map(|before| &before.backends).map(|row| (key(row), row)).collect();
        let row = |row: &BackendRow| {
            let was = before.get(&key(row)).copied();
            vec![
                Cell::Text(row.service.clone()),
                Cell::Text(SocketAddr::new(row.address, row.backend_port).to_string()),
                Cell::Text(row.pod.clone()),
                Cell::Text(row.node.clone()),
                Cell::Text(row.state.clone()),
                Cell::Number(row.flows as f64, ""),
                self.rate(was.map(|was| was.new_flows), row.new_flows, ""),
                self.rate(was.map(|was| was.packets), row.packets, ""),
                self.rate(was.map(|was| was.bytes.saturating_mul(8)), row.bytes.saturating_mul(8), ""),
            ]
        };
        let headings =
            vec!["SERVICE", "BACKEND", "POD", "NODE", "STATE", "FLOWS", "NEW FLOWS/S", "PACKETS/S", "BITS/S"];
        Table { headings, rows: now.backends.iter().map(row).collect(), sorted_by: 7 }
    }

    fn nat(&self, now: &Sample) -> Table {
        let before: BTreeMap<_, u64> = self
            .before
            .iter()
            .flat_map(|before| &before.egress.addresses)
            .map(|row| ((row.address, row.protocol.as_str()), row.refused))
            .collect();
        let address = |row: &tidegate_api::show::EgressAddressRow| {
            let percent = if row.ports == 0 {
                Cell::Nothing
            } else {
                Cell::Number(100.0 * row.used as f64 / row.ports as f64, " %")
            };
            vec![
                Cell::Text(format!("{} {}", row.address, row.protocol)),
                Cell::Text(row.policies.join(" ")),
                percent,
                Cell::Number(row.used as f64, ""),
                Cell::Number(row.held as f64, ""),
                self.rate(before.get(&(row.address, row.protocol.as_str())).copied(), row.refused, ""),
                Cell::Number(row.refused as f64, ""),
            ]
        };
        let pod = |row: &tidegate_api::show::EgressPodRow| {
            let name = if row.pod.is_empty() { String::new() } else { format!(" {}", row.pod) };
            vec![
                Cell::Text(format!("pod{name} {}", row.address)),
                Cell::Text(String::new()),
                Cell::Nothing,
                Cell::Nothing,
                Cell::Number(row.held as f64, ""),
                Cell::Nothing,
                Cell::Number(row.refused as f64, ""),
            ]
        };
        let rows = now.egress.addresses.iter().map(address).chain(now.egress.pods.iter().map(pod)).collect();
        let headings = vec!["ADDRESS OR POD", "POLICY", "PORTS USED", "PORTS", "HELD", "REFUSED/S", "REFUSED"];
        Table { headings, rows, sorted_by: 4 }
    }
}

/// Flows tell what they did in the last seconds by themselves: busiest first.
fn flows(now: &Sample) -> Table {
    let end = |(address, port): (IpAddr, u16)| Cell::Text(SocketAddr::new(address, port).to_string());
    let row = |row: &FlowRow| {
        let protocol = match row.protocol {
            6 => "TCP".into(),
            17 => "UDP".into(),
            132 => "SCTP".into(),
            other => other.to_string(),
        };
        vec![
            end(row.client),
            end(row.vip),
            end(row.backend),
            Cell::Text(protocol),
            Cell::Text(row.state.clone()),
            Cell::Number(row.worker.into(), ""),
            Cell::Number(row.idle_s as f64, ""),
            Cell::Number((row.packets.0 + row.packets.1) as f64, ""),
            Cell::Number((row.bytes.0 + row.bytes.1) as f64, ""),
        ]
    };
    let headings = vec!["CLIENT", "VIP", "BACKEND", "PROTOCOL", "STATE", "WORKER", "IDLE S", "PACKETS 4S", "BYTES 4S"];
    Table { headings, rows: now.flows.iter().map(row).collect(), sorted_by: 7 }
}

/// Headings and rows in columns as wide as what is in them; the column that is sorted by is marked.
fn laid_out(headings: &[&'static str], rows: &[Vec<Cell>], by: usize) -> Vec<String> {
    let mark = |(at, heading): (usize, &&str)| if at == by { format!("{heading}*") } else { (*heading).to_owned() };
    let headings: Vec<String> = headings.iter().enumerate().map(mark).collect();
    let shown: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(Cell::shown).collect()).collect();
    let width = |at: usize| {
        let cells = shown.iter().filter_map(|row| row.get(at)).chain(headings.get(at));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let leans_left =
        |at: usize| rows.first().and_then(|row| row.get(at)).is_none_or(|cell| matches!(cell, Cell::Text(_)));
    let line = |cells: &[String]| {
        let cell = |(at, (cell, width)): (usize, (&String, &usize))| {
            let width = *width;
            if leans_left(at) { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        };
        cells.iter().zip(&widths).enumerate().map(cell).collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    std::iter::once(line(&headings)).chain(shown.iter().map(|row| line(row))).collect()
}

#[cfg(test)]
mod tests {
    use tidegate_api::resource::{MacAddress, Protocol, Scheduler};

    use super::*;

    fn counters(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
        pairs.iter().map(|(name, count)| ((*name).into(), *count)).collect()
    }

    /// A dataplane of one worker after `n` seconds of a thousand packets each.
    fn sample(n: u64) -> Sample {
        let worker = WorkerRow {
            worker: 0,
            core: Some(1),
            clients: None,
            generation: 7,
            turns: 1000 * n,
            idle_turns: 900 * n,
            sleeps: 0,
            flows: 12,
            flows_max: 2_000_000,
            half_open: 0,
            half_open_max: 0,
            held: 3,
            ports: vec!["wan0/0".into()],
            counters: counters(&[
                ("received", 1000 * n),
                ("taken_over", 0),
                ("sent", 990 * n),
                ("busy_ns", 250_000_000 * n),
            ]),
            stages: vec![],
        };
        let port = PortRow {
            device: "wan0".into(),
            queue: 0,
            mode: "copy".into(),
            mac: MacAddress([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            counters: BTreeMap::new(),
            rings: BTreeMap::from([("rx".into(), (512, 2048)), ("tx".into(), (0, 2048))]),
        };
        let service = |name: &str, address: &str, packets: u64| ServiceRow {
            service: name.into(),
            address: address.parse().unwrap(),
            prefix_len: None,
            protocol: Protocol::Tcp,
            port: 80,
            mode: "fullnat".into(),
            service_port: 80,
            scheduler: Scheduler::Mh,
            affinity_timeout_s: None,
            nodes: vec![],
            backends: 2,
            maglev_slots: 211,
            packets,
            bytes: 100 * packets,
            new_flows: packets / 10,
        };
        let drop = |reason: &str, packets| DropRow {
            reason: reason.into(),
            stage: "service".into(),
            severity: "info".into(),
            help: "None is ready.".into(),
            packets,
        };
        Sample {
            at_s: n as f64,
            server: "tidegate-dataplane 9.8.7".into(),
            workers: vec![worker],
            counters: Counters {
                totals: counters(&[
                    ("received", 1000 * n),
                    ("sent", 990 * n),
                    ("dropped", 10 * n),
                    ("handed_over", 100 * n),
                    ("turns", 1000 * n),
                ]),
                imbalance: 0,
            },
            ports: vec![port],
            drops: vec![drop("OtherHost", 100_000), drop("NoBackend", 10 * n), drop("Never", 0)],
            services: vec![
                service("shop/idle", "203.0.113.11", 5_000_000),
                service("shop/web", "2001:db8::1", 600 * n),
                service("shop/web", "203.0.113.10", 400 * n),
            ],
            ..Sample::default()
        }
    }

    fn shown(subject: Subject) -> (State, Vec<String>) {
        let mut state = State::new(subject, None);
        state.hear(Ok(sample(1)));
        state.hear(Ok(sample(3)));
        let lines = state.frame(200, 20);
        (state, lines)
    }

    #[test]
    fn policies_stand_beside_external_addresses_and_pods_have_their_own() {
        let [(v4, pod_v4), (v6, pod_v6)] = [("192.0.2.240", "10.244.1.5"), ("2001:db8:1::240", "fd00:10:244:1::5")]
            .map(|(address, pod)| {
                let of = |text: &str| text.parse::<IpAddr>().unwrap();
                (of(address), of(pod))
            });
        let address = |address| tidegate_api::show::EgressAddressRow {
            address,
            policies: vec!["out".into()],
            protocol: "tcp".into(),
            ports: 64_512,
            used: 7,
            resting: 0,
            held: 7,
            refused: 0,
        };
        let pod =
            |name: &str, address| tidegate_api::show::EgressPodRow { pod: name.into(), address, held: 3, refused: 0 };
        let mut state = State::new(Subject::Nat, None);
        let mut looked = sample(1);
        looked.egress.addresses = vec![address(v4), address(v6)];
        looked.egress.pods = vec![pod("shop/web-1", pod_v4), pod("", pod_v6)];
        state.hear(Ok(looked));
        let lines = state.frame(200, 20);
        let words = |first: &str| {
            let line = lines.iter().find(|line| line.starts_with(first));
            line.unwrap_or_else(|| panic!("{lines:#?}")).split_whitespace().collect::<Vec<_>>()
        };
        assert_eq!(words("192.0.2.240")[..3], ["192.0.2.240", "tcp", "out"]);
        assert_eq!(words("2001:db8:1::240")[..3], ["2001:db8:1::240", "tcp", "out"]);
        assert_eq!(words("pod shop/web-1")[..4], ["pod", "shop/web-1", "10.244.1.5", "-"]);
        assert_eq!(words("pod fd00")[..3], ["pod", "fd00:10:244:1::5", "-"]);
    }

    /// The documents' picture is of a real run, whose figures nobody can foresee, but it has today's headings.
    #[test]
    fn the_picture_in_the_documents_has_the_columns_there_are() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/top.svg");
        let picture = std::fs::read_to_string(path).unwrap();
        let lines: Vec<&str> = picture
            .lines()
            .filter_map(|line| line.strip_suffix("</text>")?.split_once("preserve\">"))
            .map(|(_, text)| text)
            .collect();
        let (_, drawn) = shown(Subject::Services);
        let squeeze = |line: &&str| line.replace('*', "").split_whitespace().collect::<Vec<_>>().join(" ");
        let headings = |lines: &[&str]| lines.iter().find(|line| line.starts_with("SERVICE")).map(squeeze);
        let now = headings(&drawn.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(now.is_some() && headings(&lines) == now, "docs/top.md says how to draw it anew: {now:?}\n{lines:#?}");
        assert!(lines.iter().any(|line| line.starts_with("shop/web") && line.contains("IPv6")), "{lines:#?}");
    }

    #[test]
    fn rates_are_what_moved_by_the_time_between() {
        let (_, lines) = shown(Subject::Workers);
        let expected = "\
tidegate-dataplane 9.8.7  1 worker  generation 7  showing workers
per second: received 1000  sent 990  dropped 10  new flows 0  handed over 10.0 %
flows 12 of 2M  held 0  books balance

WORKER*   CORE  LOAD  RECEIVED/S  SENT/S  DROPPED/S  BATCH  HANDED/S  TAKEN/S  FLOWS  HELD  RX RING  TX RING  PORTS
worker 0  1     25 %        1000     990          -     10         -        0     12     3     25 %      0 %  wan0/0";
        let got = lines[..lines.len() - 1].join("\n");
        // A column without a single number leans as text does.
        let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(squeeze(&got), squeeze(expected), "\n{got}");
        assert!(lines.last().unwrap().contains("q: end"));
    }

    #[test]
    fn the_busiest_come_first_and_a_service_can_be_entered() {
        let (mut state, lines) = shown(Subject::Services);
        assert!(lines[5].starts_with("shop/web   80/TCP IPv6"), "{lines:#?}");
        assert!(lines[6].contains("IPv4") && lines[7].starts_with("shop/idle"), "{lines:#?}");
        assert_eq!(state.marked_line(), Some(5));
        state.selected = 99;
        state.frame(200, 20);
        assert_eq!((state.selected, state.marked_line()), (2, Some(7)));
        assert!(state.enter());
        assert_eq!((state.subject, state.service.as_deref()), (Subject::Backends, Some("shop/idle")));
        assert!(state.frame(200, 20)[0].ends_with("showing backends of shop/idle"));
        assert!(state.leave() && !state.leave());
        // By what there was in all, the idle one is the first; reversed the last.
        state.turn_sorting(isize::MAX);
        for (reversed, first) in [(false, "shop/web"), (true, "shop/web")] {
            state.is_reversed = reversed;
            let lines = state.frame(200, 20);
            let at = if reversed { 7 } else { 5 };
            assert!(!lines[at].starts_with(first), "{lines:#?}");
        }
    }

    #[test]
    fn backends_have_pod_and_node_and_an_unknown_service_is_told() {
        let row = |address: &str, pod: &str| BackendRow {
            service: "shop/web".into(),
            port: 80,
            protocol: Protocol::Tcp,
            address: address.parse().unwrap(),
            backend_port: 8080,
            weight: 1,
            state: "active".into(),
            reason: String::new(),
            node: "w1".into(),
            pod: pod.into(),
            flows: 1,
            packets: 0,
            bytes: 0,
            new_flows: 0,
        };
        let backends = vec![row("10.244.1.5", "web-0"), row("2001:db8:1::5", "")];
        let mut state = State::new(Subject::Backends, Some("shop/web".into()));
        state.hear(Ok(Sample { backends, ..sample(1) }));
        let lines = state.frame(200, 20);
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&lines[4])[..5], ["SERVICE", "BACKEND", "POD", "NODE", "STATE"]);
        let found = |address: &str| words(lines.iter().find(|line| line.contains(address)).unwrap());
        assert_eq!(found("10.244.1.5")[2..5], ["web-0", "w1", "active"]);
        // A node is no pod.
        assert_eq!(found("2001:db8:1::5")[2..4], ["w1", "active"]);
        for (name, told) in [("shop/idle", None), ("shop/wbe", Some("no Service shop/wbe is served here"))] {
            let mut state = State::new(Subject::Backends, Some(name.into()));
            assert_eq!(state.unknown_service(), None, "nothing is known yet");
            state.hear(Ok(sample(1)));
            assert_eq!(state.unknown_service(), told.map(|_| name));
            assert!(state.frame(200, 20).iter().any(|line| line == told.unwrap_or("nothing")), "{name}");
        }
    }

    #[test]
    fn drops_that_never_happened_are_not_shown() {
        let (_, lines) = shown(Subject::Drops);
        assert!(lines[5].starts_with("NoBackend") && lines[6].starts_with("OtherHost"), "{lines:#?}");
        assert!(!lines.iter().any(|line| line.contains("Never")), "{lines:#?}");
    }

    #[test]
    fn a_dataplane_that_goes_and_comes_back_is_told_of() {
        let mut state = State::new(Subject::Workers, None);
        state.hear(Err("no dataplane runs here".into()));
        assert!(state.frame(80, 5)[0].contains("no dataplane runs here"));
        state.hear(Ok(sample(5)));
        state.hear(Ok(sample(6)));
        state.hear(Err("gone".into()));
        let lines = state.frame(200, 20);
        assert!(
            lines.iter().any(|line| line.starts_with("! gone"))
                && lines.iter().any(|line| line.starts_with("worker 0")),
            "{lines:#?}"
        );
        // It counts from nothing.
        state.hear(Ok(Sample { at_s: 9.0, ..sample(1) }));
        let lines = state.frame(200, 20);
        assert!(lines[3].contains("started anew") && lines[1].contains("received -"), "{lines:#?}");
        state.hear(Ok(Sample { at_s: 10.0, ..sample(2) }));
        assert!(state.frame(200, 20)[1].contains("received 1000"));
    }

    #[test]
    fn a_frame_fits_its_place_whatever_it_is() {
        for subject in Subject::ALL {
            let (mut state, _) = shown(subject);
            for (width, height) in [(0, 0), (1, 1), (20, 4), (80, 7), (300, 100)] {
                let lines = state.frame(width, height);
                assert!(
                    lines.len() <= height && lines.iter().all(|line| line.chars().count() <= width),
                    "{width} {height}"
                );
            }
        }
        assert_eq!(Cell::Text("a\x1b[2Jb".into()).shown(), "a?[2Jb");
        let told: Vec<String> = [0.0, 9.96, 12.34, 999.0, 9_999.0, 12_345.0, 2e6, 3.21e9].map(short).into();
        assert_eq!(told, ["0", "10.0", "12.3", "999", "9999", "12.3k", "2M", "3.2G"]);
    }
}
