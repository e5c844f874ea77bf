//! Saved objects, asked about where no dataplane runs.
//!
//! Owns a compiler and one worker without devices: tables made of the objects that a dataplane has saved and of the links,
//! routes and neighbours that it had, and the socket's answers about them. Where those are not saved they are this
//! machine's. Refuses to touch anything: the saved files are only read, the kernel is asked for nothing, no frame comes or
//! goes, and what a client might tell it is forgotten with it. There are no flows; every packet that is asked about is a
//! first one.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, bail};
use crossbeam::channel::bounded;
use jiff::Timestamp;
use tidegate_api::listen::Listener;
use tidegate_io::mem::now_ns;
use tidegate_io::{HugePages, Owned, OwnedChange};

use crate::compile::thread::CompilerThread;
use crate::compile::{Compiler, Pinholes};
use crate::config::NodeFile;
use crate::kernel::monitor::Monitor;
use crate::kernel::request::NeighbourRequests;
use crate::kernel::saved as saved_machine;
use crate::kernel::{KernelFacts, NeighbourKey};
use crate::objects::saved;
use crate::server::mailboxes::{Mailbox, Mailboxes};
use crate::server::{Announcers, Server};
use crate::stage::verdict::Exits;
use crate::state::{Capacity, Entropy, State};
use crate::table::Tables;
use crate::table::owner::OwnerTable;
use crate::table::publish::Publisher;
use crate::wheel::{self, Idle};
use crate::worker::Worker;

/// Flows that there is room for: none will come.
const FLOWS: u32 = 1024;

/// What is asked of the outside world ends here.
struct Nobody;

impl Pinholes for Nobody {
    fn update(&mut self, _: &Owned) -> io::Result<()> {
        Ok(())
    }

    fn change(&mut self, _: &OwnedChange) -> io::Result<()> {
        Ok(())
    }
}

impl NeighbourRequests for Nobody {
    fn keep(&mut self, _: NeighbourKey) -> io::Result<bool> {
        Ok(false)
    }

    fn probe(&mut self, _: NeighbourKey) -> io::Result<()> {
        Ok(())
    }

    fn release(&mut self, _: NeighbourKey) -> io::Result<()> {
        Ok(())
    }
}

/// The machine as it was, or else as this one is; and which it is, for people.
///
/// # Errors
/// When it is neither saved nor to be had from the kernel.
fn machine(directory: &Path) -> anyhow::Result<(KernelFacts, String)> {
    let instead = match saved_machine::read(directory) {
        Ok(Some(machine)) if machine.routes_left_out() == 0 => {
            let since = Timestamp::try_from(machine.since()).map(|since| since.to_string()).unwrap_or_default();
            let note = format!("links, routes and neighbours are as the dataplane saw them last, since {since}");
            return Ok((machine.facts(), note));
        }
        Ok(Some(machine)) => format!("{} routes were too many to be saved", machine.routes_left_out()),
        Ok(None) => format!(
            "there is no {}, which a dataplane writes ten seconds after it began, and an older one never",
            saved_machine::FILE_NAME
        ),
        Err(error) => format!("{}: {error}", saved_machine::FILE_NAME),
    };
    let (facts, _) = Monitor::start(None, |_| false).context("reading this machine's links and routes")?;
    Ok((facts, format!("links, routes and neighbours are those of this machine now: {instead}")))
}

/// Answers at `socket` about the objects saved in `directory`, for a gateway of this node file. Calls `ready` when it does,
/// with what is to be known of its answers, one line for people; and ends when that returns.
///
/// # Errors
/// When nothing usable is saved there, or the system refuses a socket, a thread or its facts.
pub fn answer(file: &NodeFile, directory: &Path, socket: &Path, ready: impl FnOnce(&str)) -> anyhow::Result<()> {
    let objects = saved::read(directory).with_context(|| format!("objects saved in {}", directory.display()))?;
    let Some(objects) = objects else { bail!("nothing is saved in {}: no {}", directory.display(), saved::FILE_NAME) };
    let listener = Listener::bind(socket, 0o600).with_context(|| format!("listening at {}", socket.display()))?;
    let owners = Arc::new(OwnerTable::new(1, [1, 2]));
    let (publisher, readers) = Publisher::new(Tables { owners, ..Tables::default() });
    let names = file.dataplane.interfaces.iter().map(|interface| interface.name.as_str());
    let mut compiler = Compiler::new(names, publisher, Box::new(Nobody), Box::new(Nobody));

    let (wants, wanted) = bounded(1);
    let (questions, mailbox) = bounded(1);
    let capacity = Capacity { flows_v4: FLOWS, flows_v6: FLOWS, backends: FLOWS, huge: HugePages::Off };
    let state = State::new(capacity, [3, 4], now_ns()).context("memory for a worker")?;
    let exits = Exits::new(vec![], vec![]).map_err(anyhow::Error::msg)?;
    let mut worker = Worker::new(0, readers(), exits, vec![], state, Entropy::new(5), wants, mailbox);
    let (facts, note) = machine(directory)?;
    compiler.restore(facts, objects, 0);
    let (_compiler, handle) =
        CompilerThread::start(compiler, wanted, None, Instant::now()).context("starting the compiler")?;

    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let turning = std::thread::Builder::new().name("worker-0".into());
        let turning = turning.spawn_scoped(scope, || wheel::turn_until(&mut worker, Idle::Sleep, &stop));
        let mailboxes = Mailboxes::new(vec![Mailbox { questions, core: None, clients: None }], Arc::new(|_| None));
        let served = Server::start(listener, handle, Arc::new(mailboxes), Announcers::default());
        let served = turning.context("starting a worker").and(served.context("starting to answer"));
        if served.is_ok() {
            ready(&note.replace('\n', " "));
        }
        stop.store(true, Ordering::Relaxed);
        served.map(drop)
    })
}
