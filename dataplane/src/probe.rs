//! The prober: is a node able to deliver what `node-dsr` sends it?
//!
//! Owns the question, the answers and the thread that asks. It is told what to watch by the compiler and tells it what it
//! found; it knows neither rows nor workers, and no packet of a client.
//!
//! A worker node that is sent a packet for a VIP inside VXLAN delivers it only if several things hold that no API tells:
//! its `rp_filter` on the VXLAN device is not strict (V-026), its kube-proxy has rules for the VIP (S-063), no firewall of
//! its own or of the underlay minds packets from the VIP. One exchange proves all of them at once (design 6): a SYN from the
//! gateway's own underlay address to the VIP, inside VXLAN to the node, is answered from the VIP on the underlay.
//!
//! ```text
//!   gateway, underlay address G                    node
//!      │  VXLAN [ G → VIP  SYN seq ]  ───────────►  VXLAN device ─ rp_filter ─ kube-proxy ─ pod
//!      │  ◄───────────  VIP → G  SYN-ACK ack = seq+1, on the underlay  ─────────────────────┘
//!      │  VXLAN [ G → VIP  RST seq+1 ]  ─────────►  so that the pod does not keep half a connection
//! ```
//!
//! A reset from the VIP proves the same; whether the pod listens is not the question. The VXLAN datagram leaves through an
//! ordinary UDP socket and the answer, addressed to the gateway's own kernel, is read from a raw socket: workers and their
//! rings are not touched. The kernel also answers what it did not ask for with a reset of its own, on the plain path.
//!
//! Source port and sequence number are random and an answer must match both, so that nobody who cannot read the
//! question can answer it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidegate_api::message::WayState;
use tidegate_api::resource::{PeerVtep, Vtep};

use crate::table::Family;
use pulse::Wrist;

/// When to ask whom, and what follows from answers and silence.
pub mod schedule;
/// The same about whole nodes: is one there at all?
pub mod pulse;
/// The segments: written, and read back.
pub mod segment;
/// The sockets and the thread.
pub mod thread;

/// One thing to be proven: that a node delivers for a TCP port of a Service. kube-proxy's rules are facts of the Service
/// and the rest are facts of the node, so that both are needed to say which question an answer belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Way {
    /// `namespace/name`.
    pub service: Arc<str>,
    /// TCP port at the VIP, host order.
    pub port: u16,
    /// Family of VIP and underlay.
    pub family: Family,
    /// Name of the node.
    pub node: Arc<str>,
}

/// How to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What is to be proven.
    pub way: Way,
    /// The VIP that is asked.
    pub vip: IpAddr,
    /// Our end of the overlay.
    pub ours: Vtep,
    /// The node's end.
    pub peer: PeerVtep,
}

/// What is known of a way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Proven or not.
    pub state: WayState,
    /// Why not, and what to look at; empty when proven.
    pub reason: String,
}

impl Finding {
    /// Not proven, for this reason.
    pub fn unproven(reason: impl Into<String>) -> Finding {
        Finding { state: WayState::Unproven, reason: reason.into() }
    }
}

impl Default for Finding {
    fn default() -> Finding {
        Finding::unproven("not asked yet")
    }
}

/// Who wants to know about ways.
pub trait Probes: Send {
    /// From now on, these and no others are to be watched for `service`.
    fn watch(&mut self, service: &Arc<str>, targets: Vec<Target>);

    /// From now on, the pulse of these nodes and no others is to be felt.
    fn feel(&mut self, _wrists: Vec<Wrist>) {}
}

/// Watches nothing: what is not proven stays so.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unwatched;

impl Probes for Unwatched {
    fn watch(&mut self, _service: &Arc<str>, _targets: Vec<Target>) {}
}

/// Where the compiler leaves what is to be watched and the prober finds it. A clone is the same board; what stands on it
/// is at most the latest wish per Service.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<(Mutex<Posted>, Condvar)>);

#[derive(Debug, Default)]
struct Posted {
    wishes: Wishes,
    closed: bool,
}

/// What stands on a [`Board`].
#[derive(Debug, Default)]
pub struct Wishes {
    /// What is to be watched of a Service.
    pub targets: HashMap<Arc<str>, Vec<Target>>,
    /// Whose pulse is to be felt; `None`: as before.
    pub wrists: Option<Vec<Wrist>>,
}

impl Board {
    /// Takes what was posted since the last call, after waiting for it for at most `patience`. `None`: the board is closed.
    pub fn take(&self, patience: Duration) -> Option<Wishes> {
        let (_, posted) = &*self.0;
        let quiet =
            |board: &mut Posted| board.wishes.targets.is_empty() && board.wishes.wrists.is_none() && !board.closed;
        let waited = posted.wait_timeout_while(self.lock(), patience, quiet);
        let mut board = waited.unwrap_or_else(PoisonError::into_inner).0;
        (!board.closed).then(|| std::mem::take(&mut board.wishes))
    }

    /// Ends everybody's [`Board::take`].
    pub fn close(&self) {
        self.lock().closed = true;
        self.0.1.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Posted> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Probes for Board {
    fn watch(&mut self, service: &Arc<str>, targets: Vec<Target>) {
        self.lock().wishes.targets.insert(Arc::clone(service), targets);
        self.0.1.notify_all();
    }

    fn feel(&mut self, wrists: Vec<Wrist>) {
        self.lock().wishes.wrists = Some(wrists);
        self.0.1.notify_all();
    }
}
