//! Routes for routing daemons: VIPs as routes of the kernel, which BIRD or FRR hand on to routers.
//!
//! Owns which prefixes stand in the kernel's table and when they vanish. It refuses to know BGP, and Services: which VIPs are
//! to be announced it hears from the compiler ([`Routes`]), whether this gateway should be used at all from whoever starts
//! the [`thread`].
//!
//! ```text
//!  compiler ── VIPs ──►  routes thread  ══ orders, a beat every 50 ms ══►  keeper, a process of its own
//!  workers ── turns ──►   what, and whether                                 holds the device, writes routes
//!                             ◄══ what stands in the kernel ═══
//! ```
//!
//! The routes lead to a TUN device that the keeper holds open. It closes the device when the beat says so, or stops, or the
//! connection ends; then the kernel itself takes device and routes away. So there is no way to die or hang that leaves a
//! route behind: a dataplane that is killed takes the connection with it, one that is stopped takes the beat, and a keeper
//! that is killed takes the device.
//!
//! Nothing is ever forwarded to the device. The pinhole hands packets for VIPs to workers before the kernel has routed
//! anything; what the machine's own programs send to a VIP ends there, counted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use tidegate_api::show::{AnnouncementRow, Announcements};

/// VIPs into prefixes, with aggregation.
pub mod plan;
/// What the two processes say to each other.
pub mod line;
/// What should stand in the kernel, what does, and what to do next.
pub mod ledger;
/// Routes and the state of a device, over netlink.
pub mod program;
/// The process that holds the device.
pub mod keeper;
/// The thread that gives it orders.
pub mod thread;
#[cfg(test)]
#[cfg(feature = "kernel-tests")]
mod tests;

use plan::Wanted;

/// Nanoseconds on a clock that never goes back.
pub type Nanos = u64;

/// Who wants to know which VIPs are to be announced by route.
pub trait Routes: Send {
    /// These VIPs are to be announced now, or not any more. All that is said of a VIP before is forgotten.
    fn vips(&mut self, changes: Vec<(IpNet, Wanted)>);
}

/// The way to the thread for everybody else. A clone is another way to the same one.
#[derive(Clone, Debug, Default)]
pub struct Handle(Arc<Mutex<Shared>>);

#[derive(Debug, Default)]
struct Shared {
    /// What the compiler has said since the thread looked last.
    posted: Vec<(IpNet, Wanted)>,
    /// The process is about to end.
    ending: bool,
    stop: bool,
    view: View,
}

/// What stands in the kernel, by the keeper's word.
#[derive(Clone, Debug, Default)]
struct View {
    device: String,
    /// Why nothing is announced; absent: the device is there.
    withdrawn: Option<String>,
    rows: BTreeMap<IpNet, Row>,
    counters: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Row {
    vips: u32,
    /// It stands in the kernel.
    there: bool,
    /// Why it does not.
    refused: Option<String>,
}

impl Handle {
    /// Everything that `tidegate show announcements` prints.
    pub fn show(&self) -> Announcements {
        let shared = self.lock();
        let row = |(prefix, row): (&IpNet, &Row)| AnnouncementRow {
            prefix: prefix.to_string(),
            vips: row.vips,
            state: match (&row.refused, row.there) {
                (_, true) => "announced".into(),
                (Some(reason), false) => format!("refused: {reason}"),
                (None, false) => "withdrawn".into(),
            },
        };
        Announcements {
            device: Some(shared.view.device.clone()),
            withdrawn: shared.view.withdrawn.clone(),
            rows: shared.view.rows.iter().map(row).collect(),
            counters: shared.view.counters.clone(),
        }
    }

    /// How many routes stand in the kernel.
    pub fn announced(&self) -> usize {
        self.lock().view.rows.values().filter(|row| row.there).count()
    }

    /// Takes all routes back for good: the process is about to end.
    pub fn end(&self) {
        self.lock().ending = true;
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Routes for Handle {
    fn vips(&mut self, changes: Vec<(IpNet, Wanted)>) {
        self.lock().posted.extend(changes);
    }
}
