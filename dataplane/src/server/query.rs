//! Questions that only workers can answer, as a trait: mailboxes in the process, plain values in tests.

use std::collections::HashMap;
use std::time::Duration;

use tidegate_api::show::{Counters, DropRow, FlowRow, PortRow, WorkerRow};

use crate::capture::Tap;
use crate::explain::{Asked, Told};
use crate::mailbox::{EgressUse, FlowsWanted};
use crate::state::ruling::Ruling;
use crate::table::BackendId;

/// What a backend, or several, have been used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendUsage {
    /// Live flows.
    pub flows: u64,
    /// Flows started.
    pub new_flows: u64,
    /// Packets, both directions.
    pub packets: u64,
    /// Bytes, both directions, IP length.
    pub bytes: u64,
}

impl BackendUsage {
    /// Adds another's.
    pub fn add(&mut self, other: BackendUsage) {
        self.flows += other.flows;
        self.new_flows += other.new_flows;
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// Why workers gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// A worker is busy, stopped or stuck.
    #[error("worker {worker} has not answered in {} ms; is it stuck?", waited.as_millis())]
    Late {
        /// Which one.
        worker: usize,
        /// How long it was waited for.
        waited: Duration,
    },
    /// A worker is not there any more.
    #[error("worker {worker} has ended")]
    Ended {
        /// Which one.
        worker: usize,
    },
}

/// Questions to all workers. Every answer comes, or fails, within a bounded time.
pub trait WorkerQuery: Send + Sync {
    /// At most `limit` flows of those that are wanted.
    ///
    /// # Errors
    /// When a worker does not answer.
    fn flows(&self, wanted: FlowsWanted, limit: u32) -> Result<Vec<FlowRow>, QueryError>;

    /// Usage of `backends`, summed over workers; those never used may be absent.
    ///
    /// # Errors
    /// When a worker does not answer.
    fn backend_usage(&self, backends: &[BackendId]) -> Result<HashMap<BackendId, BackendUsage>, QueryError>;

    /// One row per worker.
    ///
    /// # Errors
    /// When a worker does not answer.
    fn workers(&self) -> Result<Vec<WorkerRow>, QueryError>;

    /// One row per port.
    ///
    /// # Errors
    /// When a worker does not answer.
    fn ports(&self) -> Result<Vec<PortRow>, QueryError>;

    /// All counters, and the books of design section 9.
    ///
    /// # Errors
    /// When a worker does not answer.
    fn counters(&self) -> Result<Counters, QueryError>;

    /// One row per drop reason.
    ///
    /// # Errors
    /// When a worker does not answer.
    fn drops(&self) -> Result<Vec<DropRow>, QueryError>;

    /// What each worker has in use of external addresses.
    ///
    /// # Errors
    /// When a worker does not answer.
    fn egress(&self) -> Result<Vec<EgressUse>, QueryError> {
        Ok(Vec::new())
    }

    /// What `worker` would do with a frame.
    ///
    /// # Errors
    /// When it does not answer.
    fn explain(&self, worker: usize, _asked: &Asked) -> Result<Told, QueryError> {
        Err(QueryError::Ended { worker })
    }

    /// What rules of network policies have done, worker by worker.
    ///
    /// # Errors
    /// When a worker does not answer.
    fn rulings(&self) -> Result<Vec<Ruling>, QueryError> {
        Ok(Vec::new())
    }

    /// How many workers there are.
    fn workers_count(&self) -> usize {
        0
    }

    /// Has `worker` copy packets; false: it does so for too many already.
    ///
    /// # Errors
    /// When it does not answer. It may have begun even so.
    fn capture(&self, worker: usize, tap: Box<Tap>) -> Result<bool, QueryError> {
        drop(tap);
        Err(QueryError::Ended { worker })
    }

    /// Ends a capture at `worker`: its tap, if it had begun.
    ///
    /// # Errors
    /// When it does not answer.
    fn end_capture(&self, worker: usize, _number: u64) -> Result<Option<Box<Tap>>, QueryError> {
        Err(QueryError::Ended { worker })
    }
}
