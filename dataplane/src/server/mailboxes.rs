//! Questions to workers, put into their mailboxes.
//!
//! A worker answers between two turns. One that does not answer in time is reported as such; the question stays in its
//! mailbox and its answer, if it ever comes, goes nowhere.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{RecvTimeoutError, SendTimeoutError, Sender, bounded};
use tidegate_api::resource::MacAddress;
use tidegate_api::show::{ClientsByRss, Counters, DropRow, FlowRow, PortRow, StageRow, WorkerRow};
use tidegate_io::PinholeCounters;

use super::query::{BackendUsage, QueryError, WorkerQuery};
use crate::capture::Tap;
use crate::counters::Event;
use crate::drops::DropReason;
use crate::explain::{Asked, Told};
use crate::limits;
use crate::mailbox::{EgressUse, FlowsFrom, FlowsWanted, PortStatus, Request, Status};
use crate::port_office::Lenders;
use crate::state::quota::Quota;
use crate::state::ruling::Ruling;
use crate::table::BackendId;
use crate::table::egress::PortClass;
use crate::table::owner::WorkerId;
use crate::worker::stages::Spent;

/// How long a worker may take.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Backends asked for at once: what a worker copies between two turns.
const BACKENDS_PER_QUESTION: usize = 4096;

/// One worker's mailbox.
#[derive(Clone, Debug)]
pub struct Mailbox {
    /// Where questions go.
    pub questions: Sender<Request>,
    /// The core the worker is pinned to.
    pub core: Option<usize>,
    /// The device whose RSS gives it clients, if one does.
    pub clients: Option<ClientsByRss>,
}

/// Reads the pinhole's counters of a device by name.
pub type PinholeReader = Arc<dyn Fn(&str) -> Option<PinholeCounters> + Send + Sync>;

/// All workers' mailboxes, by number.
#[derive(Clone)]
pub struct Mailboxes {
    workers: Vec<Mailbox>,
    pinholes: PinholeReader,
}

impl Mailboxes {
    /// Questions go to `workers`; what happened before a packet reached one is told by `pinholes`.
    pub fn new(workers: Vec<Mailbox>, pinholes: PinholeReader) -> Self {
        Mailboxes { workers, pinholes }
    }

    fn ask<T>(&self, question: impl Fn(Sender<T>) -> Request) -> Result<Vec<T>, QueryError> {
        let ask = |(worker, mailbox): (usize, &Mailbox)| {
            let (reply, answer) = bounded(1);
            mailbox.questions.send_timeout(question(reply), TIMEOUT).map_err(|error| match error {
                SendTimeoutError::Timeout(_) => QueryError::Late { worker, waited: TIMEOUT },
                SendTimeoutError::Disconnected(_) => QueryError::Ended { worker },
            })?;
            Ok((worker, answer))
        };
        // All are asked before any is waited for.
        let asked: Vec<_> = self.workers.iter().enumerate().map(ask).collect::<Result<_, _>>()?;
        let wait = |(worker, answer): (usize, crossbeam::channel::Receiver<T>)| {
            answer.recv_timeout(TIMEOUT).map_err(|error| match error {
                RecvTimeoutError::Timeout => QueryError::Late { worker, waited: TIMEOUT },
                RecvTimeoutError::Disconnected => QueryError::Ended { worker },
            })
        };
        asked.into_iter().map(wait).collect()
    }

    /// The same to one worker alone.
    fn ask_one<T>(&self, worker: usize, question: impl Fn(Sender<T>) -> Request) -> Result<T, QueryError> {
        let mailbox = self.workers.get(worker).ok_or(QueryError::Ended { worker })?;
        let one = Mailboxes { workers: vec![mailbox.clone()], pinholes: Arc::clone(&self.pinholes) };
        let of_it = |error| match error {
            QueryError::Late { waited, .. } => QueryError::Late { worker, waited },
            QueryError::Ended { .. } => QueryError::Ended { worker },
        };
        one.ask(question).map_err(of_it)?.pop().ok_or(QueryError::Ended { worker })
    }

    fn statuses(&self) -> Result<Vec<Status>, QueryError> {
        self.ask(|reply| Request::Status { reply })
    }
}

impl Lenders for Mailboxes {
    fn count(&self) -> u16 {
        u16::try_from(self.workers.len()).unwrap_or(u16::MAX)
    }

    fn release(&self, worker: WorkerId, address: &[u8; 16], class: PortClass) -> Vec<u16> {
        let (reply, answer) = bounded(1);
        let question = Request::Release { address: *address, class, reply };
        let asked = self.workers.get(usize::from(worker.0)).map(|mailbox| mailbox.questions.try_send(question));
        // Once it is asked its answer must be heard, or the ports would be nobody's; it ends with the worker at the latest.
        match asked {
            Some(Ok(())) => answer.recv().unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    fn lend(&self, worker: WorkerId, quota: Quota) -> u32 {
        let (reply, answer) = bounded(1);
        let question = Request::LendQuota { quota, reply };
        let asked = self.workers.get(usize::from(worker.0)).map(|mailbox| mailbox.questions.try_send(question));
        match asked {
            Some(Ok(())) => answer.recv().unwrap_or_default(),
            _ => 0,
        }
    }

    fn grant(&self, worker: WorkerId, quota: Quota, count: u32) {
        // Waits for room: what was given up must not be lost. A worker that has ended needs none.
        if let Some(mailbox) = self.workers.get(usize::from(worker.0)) {
            let _ended = mailbox.questions.send(Request::GrantQuota { quota, count });
        }
    }
}

impl WorkerQuery for Mailboxes {
    fn rulings(&self) -> Result<Vec<Ruling>, QueryError> {
        Ok(self.ask(|reply| Request::Rulings { reply })?.into_iter().flatten().collect())
    }

    fn flows(&self, wanted: FlowsWanted, limit: u32) -> Result<Vec<FlowRow>, QueryError> {
        let (wanted, limit) = (Arc::new(wanted), limit as usize);
        let mut rows: Vec<FlowRow> = Vec::new();
        for worker in 0..self.workers.len() {
            let limit = limit.min(rows.len() + limits::FLOWS_SHOWN as usize);
            let mut next = Some(FlowsFrom::default());
            while let Some(from) = next
                && rows.len() < limit
            {
                let left = u32::try_from(limit - rows.len()).unwrap_or(u32::MAX);
                let question = |reply| Request::Flows { wanted: Arc::clone(&wanted), limit: left, from, reply };
                let (more, then) = self.ask_one(worker, question)?;
                rows.extend(more);
                next = then;
            }
        }
        Ok(rows)
    }

    fn backend_usage(&self, backends: &[BackendId]) -> Result<HashMap<BackendId, BackendUsage>, QueryError> {
        let mut usage: HashMap<BackendId, BackendUsage> = HashMap::new();
        for some in backends.chunks(BACKENDS_PER_QUESTION) {
            for rows in self.ask(|reply| Request::Usage { backends: some.to_vec(), reply })? {
                for (backend, row) in some.iter().zip(rows) {
                    usage.entry(*backend).or_default().add(BackendUsage {
                        flows: u64::from(row.live),
                        new_flows: row.opened,
                        packets: row.packets.iter().sum(),
                        bytes: row.bytes.iter().sum(),
                    });
                }
            }
        }
        Ok(usage)
    }

    fn workers(&self) -> Result<Vec<WorkerRow>, QueryError> {
        let rows =
            self.statuses()?.into_iter().zip(&self.workers).map(|(status, mailbox)| worker_row(&status, mailbox));
        Ok(rows.collect())
    }

    fn ports(&self) -> Result<Vec<PortRow>, QueryError> {
        let ports = self.statuses()?.into_iter().flat_map(|status| status.ports);
        Ok(ports.map(|port| port_row(&port, (self.pinholes)(&port.facts.device))).collect())
    }

    fn counters(&self) -> Result<Counters, QueryError> {
        Ok(books(&self.statuses()?))
    }

    fn egress(&self) -> Result<Vec<EgressUse>, QueryError> {
        self.ask(|reply| Request::Egress { reply })
    }

    fn explain(&self, worker: usize, asked: &Asked) -> Result<Told, QueryError> {
        self.ask_one(worker, |reply| Request::Explain { asked: asked.clone(), reply })
    }

    fn workers_count(&self) -> usize {
        self.workers.len()
    }

    fn capture(&self, worker: usize, tap: Box<Tap>) -> Result<bool, QueryError> {
        let tap = Cell::new(Some(tap));
        self.ask_one(worker, |reply| Request::Capture { tap: tap.take(), reply })
    }

    fn end_capture(&self, worker: usize, number: u64) -> Result<Option<Box<Tap>>, QueryError> {
        self.ask_one(worker, |reply| Request::EndCapture { number, reply })
    }

    fn drops(&self) -> Result<Vec<DropRow>, QueryError> {
        let statuses = self.statuses()?;
        let packets = |index: usize| statuses.iter().filter_map(|status| status.drops.get(index)).sum();
        let rows = DropReason::ALL.iter().enumerate().map(|(index, reason)| DropRow {
            reason: reason.name().to_owned(),
            stage: reason.stage().to_owned(),
            severity: reason.severity().name().to_owned(),
            help: reason.help().to_owned(),
            packets: packets(index),
        });
        Ok(rows.collect())
    }
}

fn event(status: &Status, event: Event) -> u64 {
    status.events.iter().find(|(name, _)| *name == event.name()).map_or(0, |(_, count)| *count)
}

fn worker_row(status: &Status, mailbox: &Mailbox) -> WorkerRow {
    WorkerRow {
        worker: status.worker,
        core: mailbox.core.and_then(|core| u32::try_from(core).ok()),
        clients: mailbox.clients.clone(),
        generation: status.generation,
        turns: event(status, Event::Turns),
        idle_turns: event(status, Event::IdleTurns),
        sleeps: event(status, Event::Sleeps),
        flows: status.flows,
        flows_max: status.flows_max,
        half_open: status.half_open,
        half_open_max: status.half_open_max,
        held: status.held,
        ports: status.ports.iter().map(|port| format!("{}/{}", port.facts.device, port.facts.queue)).collect(),
        counters: {
            let events = status.events.iter().map(|(name, count)| ((*name).to_owned(), *count));
            let sums = [("dropped", status.drops.iter().sum()), ("busy_ns", status.busy_ns)];
            let counts = sums.into_iter().chain(status.batches.named());
            events.chain(counts.map(|(name, count)| (name.to_owned(), count))).collect()
        },
        stages: status.stages.named().map(stage_row).collect(),
    }
}

fn stage_row((stage, spent): (&str, Spent)) -> StageRow {
    StageRow { stage: stage.to_owned(), time_ns: spent.time_ns, packets: spent.packets.to_vec() }
}

fn port_row(port: &PortStatus, pinhole: Option<PinholeCounters>) -> PortRow {
    let own = &port.counters;
    let mut counters = vec![
        ("rx_packets", own.rx_packets),
        ("rx_bytes", own.rx_bytes),
        ("rx_violations", own.rx_violations),
        ("tx_packets", own.tx_packets),
        ("tx_bytes", own.tx_bytes),
        ("tx_completed", own.tx_completed),
        ("tx_violations", own.tx_violations),
        ("tx_rejected", own.tx_rejected),
        ("tx_copied", own.tx_copied),
        ("fill_starved", own.fill_starved),
        ("kicks", own.kicks),
        ("kick_errors", own.kick_errors),
    ];
    if let Some(socket) = &port.socket {
        counters.extend([
            ("rx_dropped", socket.rx_dropped),
            ("rx_invalid_descs", socket.rx_invalid_descs),
            ("tx_invalid_descs", socket.tx_invalid_descs),
            ("rx_ring_full", socket.rx_ring_full),
            ("rx_fill_ring_empty_descs", socket.rx_fill_ring_empty_descs),
            ("tx_ring_empty_descs", socket.tx_ring_empty_descs),
        ]);
    }
    // The program's counters are the device's: every queue of it shows the same.
    if let Some(pinhole) = pinhole {
        counters.extend([
            ("pinhole_passed", pinhole.passed),
            ("pinhole_redirected", pinhole.redirected),
            ("pinhole_dropped_dead", pinhole.dropped_dead),
            ("pinhole_passed_dead", pinhole.passed_dead),
            ("pinhole_malformed", pinhole.malformed),
            ("pinhole_reattached", pinhole.reattached),
        ]);
    }
    PortRow {
        device: port.facts.device.clone(),
        queue: port.facts.queue,
        mode: port.facts.mode.name().to_owned(),
        mac: MacAddress(port.facts.mac),
        mtu: port.facts.mtu,
        counters: counters.into_iter().map(|(name, count)| (name.to_owned(), count)).collect(),
        rings: port.levels.map_or_else(Default::default, |levels| {
            let rings =
                [("rx", levels.rx), ("tx", levels.tx), ("fill", levels.fill), ("completion", levels.completion)];
            rings.map(|(name, level)| (name.to_owned(), level)).into()
        }),
    }
}

/// Totals by name, and what the books of design section 9 are out by:
/// `rx + generated = tx completed + tx rejected + dropped + consumed + to kernel + held`.
///
/// Held are also packets on their way from one worker to another: handed over, and not taken over yet. Workers answer one
/// after the other, so while packets flow that difference may be out by some; the imbalance is not, since each worker's
/// own books balance with what it handed over on the one side and what it took over on the other.
fn books(statuses: &[Status]) -> Counters {
    let mut counters = Counters::default();
    let mut add = |name: &str, count: u64| *counters.totals.entry(name.to_owned()).or_default() += count;
    for status in statuses {
        status.events.iter().for_each(|(name, count)| add(name, *count));
        add("dropped", status.drops.iter().sum());
        add("held", status.held);
        add("tx_completed", status.ports.iter().map(|port| port.counters.tx_completed).sum());
        add("tx_rejected", status.ports.iter().map(|port| port.counters.tx_rejected).sum());
    }
    let total = |name: &str| i128::from(counters.totals.get(name).copied().unwrap_or_default());
    let between = total(Event::HandedOver.name()) - total(Event::TakenOver.name());
    let came = total(Event::Received.name()) + total(Event::Generated.name());
    let went = total("tx_completed")
        + total("tx_rejected")
        + total("dropped")
        + total(Event::Consumed.name())
        + total(Event::ToKernel.name())
        + total("held")
        + between;
    counters.imbalance = i64::try_from(came - went).unwrap_or(if came > went { i64::MAX } else { i64::MIN });
    *counters.totals.entry("held".to_owned()).or_default() += u64::try_from(between).unwrap_or_default();
    counters
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::Handed;
    use crate::table::DeviceId;
    use crate::worker::batches::Batches;
    use crate::worker::stages::Stages;

    fn status(received: u64, dropped: u64, held: u64) -> Status {
        Status {
            worker: 0,
            generation: 3,
            flows: 1,
            flows_max: 2,
            half_open: 1,
            half_open_max: 1,
            held,
            busy_ns: 5,
            batches: Batches::default(),
            stages: Stages::default(),
            ports: vec![],
            events: vec![("received", received), ("consumed", 1)],
            drops: vec![dropped],
        }
    }

    fn pair() -> (Mailboxes, crossbeam::channel::Receiver<Request>) {
        let (questions, mailbox) = bounded(1);
        let clients = Some(ClientsByRss { device: "wan0".into(), entries: 64, of: 128, ..ClientsByRss::default() });
        (Mailboxes::new(vec![Mailbox { questions, core: Some(1), clients }], Arc::new(|_| None)), mailbox)
    }

    #[test]
    fn the_books_are_kept_over_all_workers() {
        assert_eq!(books(&[status(10, 7, 2), status(5, 4, 0)]).imbalance, 0);
        assert_eq!(books(&[status(10, 7, 0)]).imbalance, 2);
        assert_eq!(books(&[status(0, 7, 0)]).imbalance, -8);
        assert_eq!(books(&[status(10, 7, 2), status(5, 4, 0)]).totals["dropped"], 11);
    }

    #[test]
    fn packets_between_two_workers_are_held() {
        let mut sender = status(10, 6, 0);
        let mut receiver = status(0, 1, 0);
        sender.events.push(("handed_over", 3));
        receiver.events = vec![("taken_over", 2), ("consumed", 1)];
        let counters = books(&[sender.clone(), receiver.clone()]);
        assert_eq!((counters.imbalance, counters.totals["held"]), (0, 1));
        // Asked later, the receiver has taken what the sender had not handed over yet: nothing is out of balance.
        receiver.events = vec![("taken_over", 5), ("consumed", 4)];
        let counters = books(&[sender, receiver]);
        assert_eq!((counters.imbalance, counters.totals["held"]), (0, 0));
    }

    #[test]
    fn a_stuck_worker_yields_a_text_and_not_a_hang() {
        let (mailboxes, mailbox) = pair();
        for _ in 0..2 {
            let error = mailboxes.workers().unwrap_err().to_string();
            assert_eq!(error, "worker 0 has not answered in 1000 ms; is it stuck?");
        }
        drop(mailbox);
        assert_eq!(mailboxes.flows(FlowsWanted::default(), 1), Err(QueryError::Ended { worker: 0 }));
    }

    #[test]
    fn answers_of_a_living_worker_are_rows() {
        let (mailboxes, mailbox) = pair();
        let worker = std::thread::spawn(move || {
            while let Ok(request) = mailbox.recv() {
                match request {
                    Request::Status { reply } => drop(reply.send(status(9, 8, 0))),
                    Request::Usage { backends, reply } => {
                        let row = crate::state::usage::Row {
                            opened: 2,
                            packets: [3, 4],
                            bytes: [5, 6],
                            live: 1,
                            active: 1,
                            owner: 3,
                        };
                        drop(reply.send(vec![row; backends.len()]));
                    }
                    Request::Flows { reply, .. } => drop(reply.send((vec![], None))),
                    Request::Rulings { reply } => drop(reply.send(vec![])),
                    Request::Explain { reply, .. } => {
                        drop(reply.send(Told::Theirs(Handed { to: WorkerId(7), ports: None })))
                    }
                    Request::Release { reply, .. } => drop(reply.send(vec![])),
                    Request::LendQuota { reply, .. } => drop(reply.send(0)),
                    Request::GrantQuota { .. } => {}
                    Request::Egress { reply } => drop(reply.send(EgressUse::default())),
                    Request::Capture { tap, reply } => drop(reply.send(tap.is_some())),
                    Request::EndCapture { reply, .. } => drop(reply.send(None)),
                }
            }
        });
        let row = mailboxes.workers().unwrap().remove(0);
        assert_eq!((row.core, row.clients.map(|clients| (clients.entries, clients.of))), (Some(1), Some((64, 128))));
        let asked = Asked { device: DeviceId(0), bytes: vec![], is_back: false, handed: None };
        assert_eq!(mailboxes.explain(0, &asked), Ok(Told::Theirs(Handed { to: WorkerId(7), ports: None })));
        assert_eq!(mailboxes.explain(7, &asked), Err(QueryError::Ended { worker: 7 }));
        assert_eq!(mailboxes.counters().unwrap().imbalance, 0);
        assert_eq!(mailboxes.drops().unwrap().iter().map(|row| row.packets).sum::<u64>(), 8);
        assert_eq!(mailboxes.drops().unwrap().len(), DropReason::COUNT);
        let many: Vec<_> = (0..5000).map(BackendId).collect();
        let usage = mailboxes.backend_usage(&many).unwrap();
        assert_eq!(usage.len(), 5000);
        assert_eq!(usage[&BackendId(4999)], BackendUsage { flows: 1, new_flows: 2, packets: 7, bytes: 11 });
        drop(mailboxes);
        worker.join().unwrap();
    }
}
