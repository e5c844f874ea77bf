//! The mailbox of a worker: questions that only the owner of state can answer.
//!
//! A question is a message with a place for the answer; the worker looks between two turns, copies a bounded number of
//! rows and goes on. Nobody else ever reads a worker's state.

use crossbeam::channel::Sender;
use tidegate_api::show::FlowRow;
use tidegate_io::{PortCounters, PortFacts, SocketStatistics};

use crate::state::Usage;
use crate::table::BackendId;

/// A question to one worker.
#[derive(Debug)]
pub enum Request {
    /// Flows, at most `limit` of each family.
    Flows {
        /// Most rows per family; the worker bounds it further.
        limit: u32,
        /// Where the answer goes.
        reply: Sender<Vec<FlowRow>>,
    },
    /// Usage of these backends, in the same order.
    Usage {
        /// The backends.
        backends: Vec<BackendId>,
        /// Where the answer goes.
        reply: Sender<Vec<Usage>>,
    },
    /// How the worker is.
    Status {
        /// Where the answer goes.
        reply: Sender<Status>,
    },
}

/// How a worker is.
#[derive(Clone, Debug)]
pub struct Status {
    /// Number of the worker.
    pub worker: u32,
    /// Generation it has reached.
    pub generation: u64,
    /// Live flows of both families.
    pub flows: u64,
    /// Capacity of both families.
    pub flows_max: u64,
    /// Frames it holds: waiting for neighbours, pending, in flight.
    pub held: u64,
    /// Its ports.
    pub ports: Vec<PortStatus>,
    /// Its counters by name, exact at this moment.
    pub events: Vec<(&'static str, u64)>,
    /// Its drops by reason, in the order of [`crate::drops::DropReason::ALL`], exact at this moment.
    pub drops: Vec<u64>,
}

/// How a port is.
#[derive(Clone, Debug)]
pub struct PortStatus {
    /// What it is.
    pub facts: PortFacts,
    /// What it counted.
    pub counters: PortCounters,
    /// What its socket counted, if it has one.
    pub socket: Option<SocketStatistics>,
}
