//! The loop: hear, read, plan, change.
//!
//! Every change of the kernel's state that concerns us, by whomever, rings a bell; then everything is read again and what
//! differs is mended. The state outlives the process: one that starts takes over what it finds.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use crate::found::{Change, Forwarding, Found, Owner};
use crate::kernel::{Bells, Kernel};
use crate::plan::{conflicts, plan, removal};
use crate::settings::{Remark, Settings};
use crate::source::Source;
use crate::wanted::{FAMILIES, Wanted};

/// How often the source and the flag for the end are looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Shortest time between two readings: news come in bursts, and reading has a price.
const READ_APART: Duration = Duration::from_millis(500);
/// Time until what was refused is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// Longest time between two readings, in case a bell was not heard.
const READ_WITHIN: Duration = Duration::from_secs(10);

/// What one round did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Changes made.
    pub made: usize,
    /// Changes refused, with the reason.
    pub refused: Vec<String>,
}

/// Reads once and makes what `changes` plans of it. After a refusal nothing is taken away any more in this round, so that
/// what worked goes on to work.
///
/// # Errors
/// When the kernel cannot be read.
pub fn round(kernel: &mut Kernel, wanted: &Wanted, changes: impl Fn(&Found) -> Vec<Change>) -> io::Result<Round> {
    let found = kernel.read(wanted)?;
    let mut round = Round::default();
    for change in changes(&found) {
        if change.removes() && !round.refused.is_empty() {
            continue;
        }
        match kernel.make(wanted, &change) {
            Ok(()) => {
                tracing::info!("{change}");
                round.made += 1;
            }
            Err(error) => round.refused.push(format!("{change}: {error}")),
        }
    }
    Ok(round)
}

/// Takes away everything that is ours, whatever was wanted: devices need not be named.
///
/// # Errors
/// When the kernel cannot be read or something cannot be taken away.
pub fn remove(kernel: &mut Kernel, wanted: &Wanted) -> io::Result<usize> {
    let every_device = Wanted { devices: crate::wanted::Devices::default(), ..wanted.clone() };
    let named = |device: &String| FAMILIES.iter().any(|family| wanted.devices.of(*family) == Some(device));
    let round = round(kernel, &every_device, |found| {
        // On other VXLAN devices a routing daemon may mark its entries as learned elsewhere too: there only those go that
        // stand beside a neighbour of ours.
        let beside = |at: &Forwarding| {
            let ours = found.neighbours.iter().filter(|(_, owner)| *owner == Owner::Ours);
            ours.into_iter().any(|(neighbour, _)| neighbour.device == at.device && neighbour.mac == at.mac)
        };
        let mut changes = removal(found);
        changes.retain(|change| match change {
            Change::RemoveForwarding(at) => named(&at.device) || beside(at),
            _ => true,
        });
        changes
    })?;
    match round.refused.first() {
        None => Ok(round.made),
        Some(refused) => Err(io::Error::other(refused.clone())),
    }
}

/// The agent.
pub struct Agent<S> {
    kernel: Kernel,
    source: S,
    wanted: Option<Wanted>,
    /// What was told last, so that it is told once.
    told: Vec<Remark>,
    /// What was refused last, for the same reason.
    refused: Vec<String>,
}

impl<S: Source> Agent<S> {
    /// An agent that has read its source.
    ///
    /// # Errors
    /// What is wrong with the source or the sockets.
    pub fn new(mut source: S) -> anyhow::Result<Agent<S>> {
        let wanted = source.changed().map_err(|complaints| anyhow::anyhow!(complaints.join("\n")))?;
        Ok(Agent { kernel: Kernel::open()?, source, wanted, told: Vec::new(), refused: Vec::new() })
    }

    /// Runs until `stop`; with `remove_on_exit` nothing is left then.
    ///
    /// # Errors
    /// When there are no bells, or what is to be removed cannot be.
    pub fn run(mut self, stop: &Arc<AtomicBool>, remove_on_exit: bool) -> anyhow::Result<()> {
        let (bell, news) = sync_channel(1);
        let _bells = Bells::hang(&bell)?;
        let mut due = Instant::now();
        let mut last: Option<Instant> = None;
        while !stop.load(Ordering::Relaxed) {
            if self.hear_source() {
                due = Instant::now();
            }
            if due <= Instant::now() {
                let done = self.round();
                last = Some(Instant::now());
                due = Instant::now() + if done { READ_WITHIN } else { RETRY };
            }
            if heard(&news) {
                due = due.min(last.map_or_else(Instant::now, |last| last + READ_APART));
            }
        }
        if remove_on_exit && let Some(wanted) = &self.wanted {
            let made = remove(&mut self.kernel, wanted)?;
            tracing::info!(made, "ended; nothing of this agent is left");
        } else {
            tracing::info!("ended; what it made stays and goes on to work");
        }
        Ok(())
    }

    /// True when something else is wanted.
    fn hear_source(&mut self) -> bool {
        match self.source.changed() {
            Ok(Some(wanted)) => {
                let pods: usize = wanted.egress.iter().map(|egress| egress.pods.len()).sum();
                tracing::info!(
                    pods,
                    gateways = wanted.gateways.len(),
                    symmetric = wanted.symmetric.len(),
                    "new wishes"
                );
                self.wanted = Some(wanted);
                true
            }
            Ok(None) => false,
            Err(complaints) => {
                for complaint in complaints {
                    tracing::error!("{complaint}; what was wanted before stays");
                }
                false
            }
        }
    }

    /// One round; false when it has to be repeated soon.
    fn round(&mut self) -> bool {
        let Some(wanted) = &self.wanted else { return true };
        let mut remarks = Settings::default().remarks(wanted);
        let answer = round(&mut self.kernel, wanted, |found| plan(wanted, found));
        let refused = match answer {
            Ok(round) => {
                if round.made > 0 {
                    tracing::info!(made = round.made, refused = round.refused.len(), "changed");
                }
                round.refused
            }
            Err(error) => vec![format!("reading the kernel: {error}")],
        };
        for refusal in refused.iter().filter(|refusal| !self.refused.contains(refusal)) {
            tracing::error!("{refusal}");
        }
        self.refused = refused;
        if let Ok(found) = self.kernel.read(wanted) {
            remarks.extend(conflicts(wanted, &found).into_iter().map(Remark::Problem));
        }
        for remark in remarks.iter().filter(|remark| !self.told.contains(remark)) {
            match remark {
                Remark::Problem(text) => tracing::error!("{text}"),
                Remark::Note(text) => tracing::warn!("{text}"),
            }
        }
        self.told = remarks;
        self.refused.is_empty()
    }
}

/// Waits a moment for news; true when there were some.
fn heard(news: &Receiver<()>) -> bool {
    match news.recv_timeout(LOOK) {
        Ok(()) => true,
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => false,
    }
}
