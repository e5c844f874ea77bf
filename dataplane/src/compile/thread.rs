//! The thread, its queue, and the handle others speak to it by.
//!
//! One loop: wait for anything, take everything that has arrived, make one turn, answer, say what workers have reached.
//! Nobody waits for a reader here: answers go to channels with room for them, and what workers have reached and how Services
//! are delivered is left where whoever is interested waits for it by themselves.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded, never, select_biased};
use ipnet::IpNet;
use tidegate_api::message::{Accepted, AddressConflict, NodeSuspicion, ServiceDelivery};
use tidegate_api::resource::{Kind, Resource, ResourceKey, Versions};

use super::draft::Told;
use super::{Arrived, Compiler, Nanos};
use crate::kernel::saved::Machine;
use crate::kernel::{Change, Neighbour, NeighbourKey};
use crate::objects::saved::Saver;
use crate::port_office::{PortMove, Recorded, Registrar};
use crate::probe::pulse::Felt;
use crate::probe::schedule::Found;
use crate::table::Tables;
use crate::worker::Want;

/// Events that may wait. A full queue makes the senders wait: control for its answer, the kernel's news in its socket.
const QUEUE_MAX: usize = 1024;
/// Events taken into one turn.
const TURN_EVENTS_MAX: usize = 1024;
/// How often time is looked at when nothing happens.
const TICK: Duration = Duration::from_millis(250);
/// The same while workers have not reached the newest generation.
const TICK_BEHIND: Duration = Duration::from_millis(2);
/// After a change, how long further ones are waited for before objects are saved.
const SAVE_AFTER: Duration = Duration::from_millis(500);
/// How often it is looked whether the machine is still as it was saved.
const SAVE_MACHINE_EVERY: Duration = Duration::from_secs(10);
/// How long the compiler may take to answer before the asker is told so.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Something for the compiler to do.
enum Event {
    Update(Box<Told>, Sender<Accepted>),
    Kernel(Change),
    Found(Found, Felt),
    Announce(Vec<(IpNet, bool)>, Sender<u64>),
    Ports(PortMove, Sender<u64>),
    Holdings(Sender<Holdings>),
    View(Option<Kind>, Sender<View>),
    Stop,
}

/// What is held and reached, for a greeting.
#[derive(Clone, Debug, Default)]
pub struct Holdings {
    /// All accepted objects.
    pub objects: Vec<Arc<Resource>>,
    /// Generation all workers have reached.
    pub reached: u64,
}

/// Everything the read side shows, as of one turn. Costs a reference count per object asked for and a copy of the
/// neighbours.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The tables.
    pub tables: Tables,
    /// Their generation.
    pub generation: u64,
    /// Accepted objects of the kind that was asked for, in the order of names.
    pub objects: Vec<Arc<Resource>>,
    /// The kernel's neighbours.
    pub neighbours: HashMap<NeighbourKey, Neighbour>,
    /// The kernel's own addresses, with names of their devices.
    pub addresses: Vec<(IpNet, String)>,
    /// Names of links that are down, or without a carrier.
    pub down: Vec<String>,
    /// How Services that asked for `node-dsr` are delivered, in the order of names.
    pub deliveries: Vec<ServiceDelivery>,
    /// Nodes that do not answer.
    pub suspects: Vec<NodeSuspicion>,
    /// For how long at least each of them has been silent; one per suspect, in the same order.
    pub silences: Vec<Nanos>,
}

/// The compiler did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// It has not answered in time.
    #[error("the compiler thread has not answered in {} s", ANSWER_TIMEOUT.as_secs())]
    Late,
    /// It is not there any more.
    #[error("the compiler thread has ended")]
    Ended,
}

/// How others speak to the compiler. A clone is another way to the same one.
#[derive(Clone)]
pub struct Handle {
    events: Sender<Event>,
    news: Arc<News>,
}

/// What whoever waits is told.
#[derive(Debug, Default)]
struct News {
    latest: Mutex<Latest>,
    moved: Condvar,
}

impl Holdings {
    /// Versions of all accepted objects.
    pub fn versions(&self) -> Versions {
        self.objects.iter().map(|resource| (resource.key(), resource.version.clone())).collect()
    }
}

/// Services that no longer ask for `node-dsr` and are remembered for those who have not heard.
const GONE_TOLD_MAX: usize = 1000;

#[derive(Debug, Default)]
struct Latest {
    /// Generation all workers have reached.
    generation: u64,
    /// Grows with each report.
    edition: u64,
    /// The report about each Service and its edition.
    deliveries: BTreeMap<String, (u64, ServiceDelivery)>,
    /// Addresses for which strangers answer, and the edition of that or of `taken`; edition 0: there never were any.
    conflicts: (u64, Vec<AddressConflict>),
    /// Addresses that this machine's own kernel has taken.
    taken: Vec<AddressConflict>,
    /// Nodes that do not answer, and the edition of that; edition 0: there never were any.
    suspects: (u64, Vec<NodeSuspicion>),
    /// How many times a node has become one.
    suspicions: u64,
}

impl Latest {
    fn tell(&mut self, news: Vec<ServiceDelivery>) -> bool {
        let edition = self.edition + 1;
        for delivery in news {
            if self.deliveries.get(&delivery.service).is_none_or(|(_, told)| *told != delivery) {
                self.edition = edition;
                self.deliveries.insert(delivery.service.clone(), (edition, delivery));
            }
        }
        let gone = self.deliveries.values().filter(|(_, told)| told.ports.is_empty());
        let mut editions: Vec<u64> = gone.map(|(edition, _)| *edition).collect();
        if editions.len() > GONE_TOLD_MAX {
            editions.sort_unstable();
            let kept_from = editions[editions.len() / 2];
            self.deliveries.retain(|_, (edition, told)| *edition >= kept_from || !told.ports.is_empty());
        }
        self.edition == edition
    }
}

impl Handle {
    /// Has an update applied.
    ///
    /// # Errors
    /// When the compiler has ended.
    pub fn begin(&self, told: Told) -> Result<Applying, NoAnswer> {
        self.begin_asking(|answer| Event::Update(Box::new(told), answer)).map(Applying)
    }

    /// What is held and reached.
    ///
    /// # Errors
    /// When the compiler does not answer.
    pub fn holdings(&self) -> Result<Holdings, NoAnswer> {
        self.ask(Event::Holdings)
    }

    /// What there is to show, with the objects of one kind or without any.
    ///
    /// # Errors
    /// When the compiler does not answer.
    pub fn view(&self, objects: Option<Kind>) -> Result<View, NoAnswer> {
        self.ask(|answer| Event::View(objects, answer))
    }

    /// Tells news from the kernel; waits while the queue is full. False when the compiler has ended.
    pub fn kernel(&self, change: Change) -> bool {
        self.events.send(Event::Kernel(change)).is_ok()
    }

    /// The generation all workers have reached.
    pub fn reached(&self) -> u64 {
        lock(&self.news.latest).generation
    }

    /// Tells what the prober found of ways and of nodes; waits while the queue is full. False when the compiler has ended.
    pub fn found(&self, found: Found, felt: Felt) -> bool {
        self.events.send(Event::Found(found, felt)).is_ok()
    }

    /// Answers for VIPs on links, or does not any more, and waits until that is published; returns the generation.
    ///
    /// # Errors
    /// When the compiler does not answer.
    pub fn announce(&self, changes: Vec<(IpNet, bool)>) -> Result<u64, NoAnswer> {
        self.ask(|answer| Event::Announce(changes, answer))
    }

    /// Publishes that external ports change hands; returns the generation.
    ///
    /// # Errors
    /// When the compiler does not answer.
    pub fn move_ports(&self, moved: PortMove) -> Result<u64, NoAnswer> {
        self.ask(|answer| Event::Ports(moved, answer))
    }

    /// Tells control for which addresses strangers answer: all there are.
    pub fn tell_conflicts(&self, conflicts: Vec<AddressConflict>) {
        let mut latest = lock(&self.news.latest);
        latest.edition += 1;
        latest.conflicts = (latest.edition, conflicts);
        self.news.moved.notify_all();
    }

    /// The same and addresses that the kernel has taken, in the order of addresses, if that is newer than `edition`. Of an
    /// address that has both the kernel is told: nobody asks who else answers for what is not ours.
    pub fn conflicts(&self, edition: u64) -> Option<Vec<AddressConflict>> {
        let latest = lock(&self.news.latest);
        (latest.conflicts.0 > edition).then(|| {
            let all =
                latest.conflicts.1.iter().chain(&latest.taken).map(|conflict| (conflict.address, conflict.clone()));
            all.collect::<BTreeMap<_, _>>().into_values().collect()
        })
    }

    /// Nodes that do not answer, if that is newer than `edition`.
    pub fn suspects(&self, edition: u64) -> Option<Vec<NodeSuspicion>> {
        let latest = lock(&self.news.latest);
        (latest.suspects.0 > edition).then(|| latest.suspects.1.clone())
    }

    /// How many nodes do not answer now, and how many times one fell silent.
    pub fn suspicions(&self) -> (u64, u64) {
        let latest = lock(&self.news.latest);
        (u64::try_from(latest.suspects.1.len()).unwrap_or(u64::MAX), latest.suspicions)
    }

    /// Waits until more than `after` is reached or `timeout` is over; returns what is reached.
    pub fn wait_reached(&self, after: u64, timeout: Duration) -> u64 {
        self.wait_news(after, u64::MAX, timeout)
    }

    /// The same, or until a report about the delivery of Services is newer than `edition`.
    pub fn wait_news(&self, after: u64, edition: u64, timeout: Duration) -> u64 {
        let nothing = |latest: &mut Latest| latest.generation <= after && latest.edition <= edition;
        let waited = self.news.moved.wait_timeout_while(lock(&self.news.latest), timeout, nothing);
        waited.unwrap_or_else(PoisonError::into_inner).0.generation
    }

    /// Reports about the delivery of Services that are newer than `edition`, and the newest edition. Edition 0 is older than
    /// all; who has heard nothing hears nothing of Services that do not ask for `node-dsr` any more.
    pub fn deliveries(&self, edition: u64) -> (Vec<ServiceDelivery>, u64) {
        let latest = lock(&self.news.latest);
        let newer = latest
            .deliveries
            .values()
            .filter(|(told, delivery)| *told > edition && (edition > 0 || !delivery.ports.is_empty()));
        (newer.map(|(_, delivery)| delivery.clone()).collect(), latest.edition)
    }

    /// Wakes everybody who waits for news before their time.
    pub fn wake(&self) {
        self.news.moved.notify_all();
    }

    fn ask<T>(&self, event: impl FnOnce(Sender<T>) -> Event) -> Result<T, NoAnswer> {
        answer(&self.begin_asking(event)?)
    }

    fn begin_asking<T>(&self, event: impl FnOnce(Sender<T>) -> Event) -> Result<Receiver<T>, NoAnswer> {
        let (answer, answered) = bounded(1);
        self.events.send(event(answer)).map_err(|_| NoAnswer::Ended)?;
        Ok(answered)
    }
}

impl Registrar for Handle {
    fn record(&self, moved: PortMove) -> Recorded {
        const PATIENCE: Duration = Duration::from_millis(500);
        let Ok(generation) = self.move_ports(moved) else { return Recorded::Ended };
        match self.wait_reached(generation.saturating_sub(1), PATIENCE) >= generation {
            true => Recorded::Reached,
            false => Recorded::Behind,
        }
    }
}

/// An update on its way to the workers.
pub struct Applying(Receiver<Accepted>);

impl Applying {
    /// Waits until it is published.
    ///
    /// # Errors
    /// When the compiler does not answer.
    pub fn finish(self) -> Result<Accepted, NoAnswer> {
        answer(&self.0)
    }
}

fn answer<T>(answered: &Receiver<T>) -> Result<T, NoAnswer> {
    answered.recv_timeout(ANSWER_TIMEOUT).map_err(|error| match error {
        RecvTimeoutError::Timeout => NoAnswer::Late,
        RecvTimeoutError::Disconnected => NoAnswer::Ended,
    })
}

/// The running thread; stops when dropped, after what has been accepted is saved.
pub struct CompilerThread {
    events: Sender<Event>,
    thread: Option<JoinHandle<()>>,
}

impl CompilerThread {
    /// Starts the thread. `wants` is what workers ask for; `saver` keeps accepted objects.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        compiler: Compiler,
        wants: Receiver<Want>,
        saver: Option<Saver>,
        clock: Instant,
    ) -> io::Result<(Self, Handle)> {
        let (events, arriving) = bounded(QUEUE_MAX);
        let latest = Latest { generation: compiler.reached(), ..Latest::default() };
        let news = Arc::new(News { latest: Mutex::new(latest), moved: Condvar::new() });
        let handle = Handle { events: events.clone(), news: Arc::clone(&news) };
        let (unsaved, now) = (HashMap::new(), Instant::now());
        let machine = (Machine::default(), now);
        let run =
            Run { compiler, arriving, wants, saver, clock, news, unsaved, unsaved_since: now, machine, ticked: now };
        let thread = std::thread::Builder::new().name("compiler".into()).spawn(move || run.run())?;
        Ok((CompilerThread { events, thread: Some(thread) }, handle))
    }

    /// Whether the thread runs. One that panicked does not; workers go on with the last tables.
    pub fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for CompilerThread {
    fn drop(&mut self) {
        let _ = self.events.send(Event::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Run {
    compiler: Compiler,
    arriving: Receiver<Event>,
    wants: Receiver<Want>,
    saver: Option<Saver>,
    clock: Instant,
    news: Arc<News>,
    /// What has not been saved yet, and when the first of it happened.
    unsaved: HashMap<ResourceKey, Option<Arc<Resource>>>,
    unsaved_since: Instant,
    /// The machine as it was saved last, and when that was looked at. Neighbours take a while to answer: what a run begins
    /// with is not worth the place of what the one before it saw.
    machine: (Machine, Instant),
    ticked: Instant,
}

/// Askers of one turn.
#[derive(Default)]
struct Askers {
    updates: Vec<Sender<Accepted>>,
    announcers: Vec<Sender<u64>>,
    holdings: Vec<Sender<Holdings>>,
    views: Vec<(Option<Kind>, Sender<View>)>,
    stop: bool,
}

impl Run {
    fn run(mut self) {
        loop {
            let (arrived, askers) = self.collect();
            let stop = askers.stop;
            if !arrived.is_empty() {
                self.turn(arrived, &askers);
            }
            self.answer(askers);
            if self.ticked.elapsed() >= TICK {
                self.ticked = Instant::now();
                self.compiler.tick(self.now());
            }
            self.tell_reached();
            self.save(stop);
            if stop {
                return;
            }
        }
    }

    fn now(&self) -> Nanos {
        Nanos::try_from(self.clock.elapsed().as_nanos()).unwrap_or(Nanos::MAX)
    }

    /// Waits for the first event, then takes what else is there.
    fn collect(&mut self) -> (Arrived, Askers) {
        let (mut arrived, mut askers) = (Arrived::default(), Askers::default());
        let behind = self.compiler.reached() < self.compiler.generation();
        let wait = if behind { TICK_BEHIND } else { TICK };
        select_biased! {
            recv(self.arriving) -> event => sort(event.unwrap_or(Event::Stop), &mut arrived, &mut askers),
            recv(self.wants) -> want => match want {
                Ok(want) => arrived.wants.push((want.device, want.address)),
                // The last worker has gone; a closed channel would be ready for ever.
                Err(_) => self.wants = never(),
            },
            default(wait) => {}
        }
        for event in self.arriving.try_iter().take(TURN_EVENTS_MAX) {
            sort(event, &mut arrived, &mut askers);
        }
        arrived.wants.extend(self.wants.try_iter().take(TURN_EVENTS_MAX).map(|want| (want.device, want.address)));
        (arrived, askers)
    }

    fn turn(&mut self, arrived: Arrived, askers: &Askers) {
        let now = self.now();
        let turned = self.compiler.turn(arrived, now);
        if self.unsaved.is_empty() {
            self.unsaved_since = Instant::now();
        }
        if self.saver.is_some() {
            self.unsaved.extend(turned.taken);
        }
        for (asker, accepted) in askers.updates.iter().zip(turned.accepted) {
            let _ = asker.try_send(accepted);
        }
        for asker in &askers.announcers {
            let _ = asker.try_send(self.compiler.generation());
        }
    }

    fn answer(&mut self, askers: Askers) {
        for asker in askers.holdings {
            let (objects, reached) = (self.compiler.objects().snapshot(), self.compiler.reached());
            let _ = asker.try_send(Holdings { objects, reached });
        }
        let now = self.now();
        for (kind, asker) in askers.views {
            let objects = self.compiler.objects();
            let layout = &self.compiler.facts().layout;
            let _ = asker.try_send(View {
                generation: self.compiler.generation(),
                tables: self.compiler.tables().clone(),
                objects: kind.into_iter().flat_map(|kind| objects.of_kind(kind)).cloned().collect(),
                neighbours: self.compiler.facts().neighbours.clone(),
                addresses: layout.held().map(|held| (held.address, held.device.to_owned())).collect(),
                down: layout.links.values().filter(|link| !link.up).map(|link| link.name.clone()).collect(),
                deliveries: lock(&self.news.latest).deliveries.values().map(|(_, told)| told.clone()).collect(),
                suspects: self.compiler.suspects().all(),
                silences: self.compiler.suspects().silences(now),
            });
        }
    }

    fn tell_reached(&mut self) {
        let (now, deliveries) = (self.compiler.reached(), self.compiler.take_deliveries());
        let suspects = self.compiler.take_suspects();
        let taken = self.compiler.take_taken();
        let mut latest = lock(&self.news.latest);
        if let Some(taken) = taken.filter(|taken| *taken != latest.taken) {
            latest.edition += 1;
            (latest.conflicts.0, latest.taken) = (latest.edition, taken);
            self.news.moved.notify_all();
        }
        if let Some(suspects) = suspects {
            let fresh = suspects.iter().filter(|suspicion| !latest.suspects.1.contains(suspicion)).count();
            latest.suspicions += u64::try_from(fresh).unwrap_or(u64::MAX);
            latest.edition += 1;
            latest.suspects = (latest.edition, suspects);
            self.news.moved.notify_all();
        }
        // A worker that wakes up looks for a moment as if it were where it fell asleep.
        let moved = now > latest.generation;
        latest.generation = latest.generation.max(now);
        if (!deliveries.is_empty() && latest.tell(deliveries)) | moved {
            self.news.moved.notify_all();
        }
    }

    fn save(&mut self, at_once: bool) {
        let due = !self.unsaved.is_empty() && (at_once || self.unsaved_since.elapsed() >= SAVE_AFTER);
        if let Some(saver) = self.saver.as_ref().filter(|_| due) {
            saver.save(std::mem::take(&mut self.unsaved).into_iter().collect());
        }
        let (saved, looked_at) = &mut self.machine;
        let Some(saver) = self.saver.as_ref().filter(|_| looked_at.elapsed() >= SAVE_MACHINE_EVERY) else { return };
        *looked_at = Instant::now();
        let machine = self.compiler.machine();
        if !machine.says_the_same(saved) {
            *saved = machine.clone();
            saver.save_machine(machine.at(SystemTime::now()));
        }
    }
}

fn sort(event: Event, arrived: &mut Arrived, askers: &mut Askers) {
    match event {
        Event::Update(told, asker) => {
            arrived.updates.push(*told);
            askers.updates.push(asker);
        }
        Event::Kernel(change) => arrived.changes.push(change),
        Event::Found(found, felt) => {
            arrived.found.extend(found);
            arrived.felt.extend(felt);
        }
        Event::Announce(changes, asker) => {
            arrived.announce.extend(changes);
            askers.announcers.push(asker);
        }
        Event::Ports(moved, asker) => {
            arrived.port_moves.push(moved);
            askers.announcers.push(asker);
        }
        Event::Holdings(asker) => askers.holdings.push(asker),
        Event::View(kind, asker) => askers.views.push((kind, asker)),
        Event::Stop => askers.stop = true,
    }
}

/// What is locked here is written whole.
fn lock(mutex: &Mutex<Latest>) -> MutexGuard<'_, Latest> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
