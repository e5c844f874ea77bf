//! The thread that gives the keeper orders: which routes, and whether this gateway should be used at all.
//!
//! It starts the keeper, beats, and starts another one when that ends or says nothing. Whoever starts the thread gives it a
//! judge, which is asked before each beat.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use ipnet::IpNet;
use tidegate_io::mem::now_ns;

use super::line::{Answer, Line, Order};
use super::plan::{Aggregate, Plan, Wanted};
use super::{Handle, Nanos, keeper};

/// Between two beats: a sixth of the default patience.
pub const BEAT: Duration = Duration::from_millis(50);
/// Of a long gap between two beats only so much counts against the keeper: whoever was held up itself blames nobody.
const STEP_NS: Nanos = 100_000_000;
/// A keeper that says nothing for so long is replaced.
const SILENCE_NS: Nanos = 1_000_000_000;
/// Between two starts of a keeper.
const START_NS: Nanos = 1_000_000_000;
/// How long a keeper may take to end by itself.
const END_LIMIT: Duration = Duration::from_secs(1);

/// Why this gateway should not be used now; `None`: it should. Told what time it is.
pub type Judge = Box<dyn FnMut(Nanos) -> Option<String> + Send>;

/// The running thread. When dropped, routes go, the keeper ends, and the thread with it.
pub struct Announcer {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl Announcer {
    /// Starts the thread. `command` makes the command that runs [`keeper::keep`] on its standard input.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        handle: Handle,
        settings: &keeper::Settings,
        aggregate: Aggregate,
        command: impl FnMut() -> Command + Send + 'static,
        judge: Judge,
    ) -> io::Result<Announcer> {
        handle.lock().view.device.clone_from(&settings.device);
        let run = Run {
            handle: handle.clone(),
            plan: Plan::new(aggregate),
            command: Box::new(command),
            judge,
            keeper: None,
            started_ns: None,
            beaten_ns: now_ns(),
            reason: Some("starting".into()),
            told: String::new(),
        };
        let thread = std::thread::Builder::new().name("routes".into()).spawn(move || run.run())?;
        Ok(Announcer { handle, thread: Some(thread) })
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        self.handle.lock().stop = true;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Keeper {
    child: Child,
    line: Line,
    silent_ns: Nanos,
}

struct Run {
    handle: Handle,
    plan: Plan,
    command: Box<dyn FnMut() -> Command + Send>,
    judge: Judge,
    keeper: Option<Keeper>,
    started_ns: Option<Nanos>,
    beaten_ns: Nanos,
    /// Why nothing should be announced.
    reason: Option<String>,
    /// The trouble that was logged last.
    told: String,
}

impl Run {
    fn run(mut self) {
        loop {
            let (posted, ending, stop) = {
                let mut shared = self.handle.lock();
                (std::mem::take(&mut shared.posted), shared.ending, shared.stop)
            };
            if stop {
                return self.end();
            }
            let now = now_ns();
            self.order(posted);
            self.start(now);
            self.judge(ending, now);
            self.beat();
            self.hear(now);
            self.beaten_ns = now;
            std::thread::sleep(BEAT);
        }
    }

    /// Passes on what differs.
    fn order(&mut self, posted: Vec<(IpNet, Wanted)>) {
        if posted.is_empty() {
            return;
        }
        let changes = self.plan.change(posted);
        let mut shared = self.handle.lock();
        for (prefix, vips) in changes {
            let order = if vips > 0 { Order::Want(prefix) } else { Order::Unwant(prefix) };
            if vips > 0 {
                shared.view.rows.entry(prefix).or_default().vips = vips;
            } else {
                shared.view.rows.remove(&prefix);
            }
            if let Some(keeper) = &mut self.keeper {
                keeper.line.say(&order);
            }
        }
    }

    fn start(&mut self, now: Nanos) {
        let soon = self.started_ns.is_some_and(|at| now.saturating_sub(at) < START_NS);
        if self.keeper.is_some() || soon {
            return;
        }
        self.started_ns = Some(now);
        match spawn((self.command)()) {
            Ok(mut keeper) => {
                self.plan.routes().for_each(|prefix| keeper.line.say(&Order::Want(prefix)));
                self.keeper = Some(keeper);
            }
            Err(error) => self.trouble(&format!("cannot start the keeper of routes: {error}")),
        }
    }

    fn judge(&mut self, ending: bool, now: Nanos) {
        let reason = if ending { Some("ending".to_owned()) } else { (self.judge)(now) };
        if reason == self.reason {
            return;
        }
        match &reason {
            None => tracing::info!(routes = self.plan.routes().count(), "VIPs are announced by route"),
            Some(reason) => tracing::warn!(reason, "routes to VIPs are withdrawn"),
        }
        self.reason = reason;
    }

    fn beat(&mut self) {
        let Some(keeper) = &mut self.keeper else { return };
        keeper.line.say(&Order::Beat { healthy: self.reason.is_none() });
        if keeper.line.flush().is_err() {
            self.lose("the keeper of routes has ended");
        }
    }

    fn hear(&mut self, now: Nanos) {
        let Some(keeper) = &mut self.keeper else { return };
        let answers = match keeper.line.hear::<Answer>() {
            Ok(answers) => answers,
            Err(error) => return self.lose(&format!("the keeper of routes has ended: {error}")),
        };
        keeper.silent_ns = match answers.is_empty() {
            true => keeper.silent_ns + now.saturating_sub(self.beaten_ns).min(STEP_NS),
            false => 0,
        };
        if keeper.silent_ns >= SILENCE_NS {
            return self.lose("the keeper of routes says nothing");
        }
        for answer in answers {
            self.take(answer);
        }
    }

    fn take(&mut self, answer: Answer) {
        let mut shared = self.handle.lock();
        let view = &mut shared.view;
        match answer {
            // A row that is gone was unwanted meanwhile.
            Answer::There(prefix) => {
                if let Some(row) = view.rows.get_mut(&prefix) {
                    (row.there, row.refused) = (true, None);
                }
            }
            Answer::Gone(prefix) => {
                if let Some(row) = view.rows.get_mut(&prefix) {
                    row.there = false;
                }
            }
            Answer::Refused(prefix, reason) => {
                let Some(row) = view.rows.get_mut(&prefix) else { return };
                if row.refused.as_ref() != Some(&reason) {
                    tracing::warn!(%prefix, reason, "a route to a VIP is refused");
                }
                (row.there, row.refused) = (false, Some(reason));
            }
            Answer::Alive { up, discarded, restored } => {
                view.withdrawn = match (up, &self.reason) {
                    (true, _) => None,
                    (false, Some(reason)) => Some(reason.clone()),
                    (false, None) => Some(view.withdrawn.take().unwrap_or_else(|| "beginning".into())),
                };
                if up {
                    self.told.clear();
                }
                let counters = [("discarded_packets", discarded), ("restored_routes", restored)];
                view.counters.extend(counters.map(|(name, count)| (name.to_owned(), count)));
            }
            Answer::NoDevice(reason) => {
                view.withdrawn = Some(reason.clone());
                drop(shared);
                self.trouble(&format!("VIPs cannot be announced by route: {reason}"));
            }
        }
    }

    /// The keeper is of no use any more; another one is started in time.
    fn lose(&mut self, why: &str) {
        if let Some(mut keeper) = self.keeper.take() {
            let _ = keeper.child.kill();
            let _ = keeper.child.wait();
        }
        let mut shared = self.handle.lock();
        shared.view.withdrawn = Some(why.to_owned());
        shared.view.rows.values_mut().for_each(|row| row.there = false);
        *shared.view.counters.entry("keepers_lost".into()).or_default() += 1;
        drop(shared);
        self.trouble(why);
    }

    fn trouble(&mut self, why: &str) {
        if self.told != why {
            tracing::error!("{why}; trying again");
            self.told = why.to_owned();
        }
    }

    fn end(self) {
        let Some(Keeper { mut child, line, .. }) = self.keeper else { return };
        drop(line);
        let until = std::time::Instant::now() + END_LIMIT;
        while matches!(child.try_wait(), Ok(None)) {
            if std::time::Instant::now() >= until {
                let _ = child.kill();
                let _ = child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn spawn(mut command: Command) -> io::Result<Keeper> {
    let (ours, theirs) = UnixStream::pair()?;
    let child = command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).spawn()?;
    // The command holds the keeper's end as well: it goes here, so that the keeper's own end shows.
    drop(command);
    Ok(Keeper { child, line: Line::new(ours)?, silent_ns: 0 })
}
