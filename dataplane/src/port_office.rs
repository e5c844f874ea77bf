//! The port office: moves external ports from workers that have them free to one that runs short, and shares of quotas.
//!
//! Owns the order of a move, and no port. It refuses to know packets and state: workers say what they can spare, the compiler
//! writes whose ports are. In four steps, so that no packet of a live flow ever meets another worker than its own:
//!
//! 1. every other worker gives up ports that nothing uses; it does not give them out any more;
//! 2. the tables say that their packets belong to the one that runs short, and nobody gives them out;
//! 3. all workers have reached those tables;
//! 4. the tables say that it gives them out.
//!
//! A share of a quota is a number that only its worker looks at: one gives it up, then the other gets it.
//!
//! A worker that does not answer keeps its ports. One move after the other: they are rare.

use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};

use crate::state::quota::Quota;
use crate::table::egress::PortClass;
use crate::table::owner::WorkerId;
use crate::worker::PortWant;

/// Ports of one external address that change hands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMove {
    /// The address, IPv4 mapped.
    pub address: [u8; 16],
    /// Whose ports.
    pub class: PortClass,
    /// The ports.
    pub ports: Vec<u16>,
    /// The worker they go to.
    pub to: WorkerId,
    /// Whether it may give them out.
    pub landed: bool,
}

/// The workers, as the office needs them.
pub trait Lenders: Send {
    /// How many there are.
    fn count(&self) -> u16;
    /// Free ports that `worker` has given up; none when it has none or does not answer.
    fn release(&self, worker: WorkerId, address: &[u8; 16], class: PortClass) -> Vec<u16>;
    /// How much of a quota `worker` has given up; none when it has none left or does not answer.
    fn lend(&self, worker: WorkerId, quota: Quota) -> u32;
    /// Gives `worker` what others have given up.
    fn grant(&self, worker: WorkerId, quota: Quota, count: u32);
}

/// The tables, as the office needs them.
pub trait Registrar: Send {
    /// Publishes a move.
    fn record(&self, moved: PortMove) -> Recorded;
}

/// What became of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// All workers have reached it.
    Reached,
    /// It is published, and some worker has not reached it in time.
    Behind,
    /// Nobody publishes any more.
    Ended,
}

/// Answers one want; how many ports moved.
pub fn serve(want: &PortWant, lenders: &impl Lenders, registrar: &impl Registrar) -> usize {
    match *want {
        PortWant::Ports { worker, address, class } => move_ports(worker, address, class, lenders, registrar),
        PortWant::Quota { worker, quota } => {
            let others = (0..lenders.count()).map(WorkerId).filter(|other| *other != worker);
            let count = others.map(|other| lenders.lend(other, quota)).sum();
            if count > 0 {
                lenders.grant(worker, quota, count);
            }
            0
        }
    }
}

fn move_ports(
    worker: WorkerId,
    address: [u8; 16],
    class: PortClass,
    lenders: &impl Lenders,
    registrar: &impl Registrar,
) -> usize {
    let others = (0..lenders.count()).map(WorkerId).filter(|other| *other != worker);
    let ports: Vec<u16> = others.flat_map(|other| lenders.release(other, &address, class)).collect();
    if ports.is_empty() {
        return 0;
    }
    let count = ports.len();
    let moved = PortMove { address, class, ports, to: worker, landed: false };
    // Ports that nobody knows to be his yet must wait: the packets of their flows would go astray.
    loop {
        match registrar.record(moved.clone()) {
            Recorded::Reached => break,
            Recorded::Behind => std::thread::sleep(RETRY),
            Recorded::Ended => return 0,
        }
    }
    registrar.record(PortMove { landed: true, ..moved });
    count
}

/// How soon a move is recorded again that workers have not reached.
const RETRY: Duration = Duration::from_millis(5);
/// Time between two moves: looking for free ports costs every worker some tenths of a millisecond.
const PAUSE: Duration = Duration::from_millis(20);
/// How often the end is looked for.
const LOOK: Duration = Duration::from_millis(250);

/// Starts the thread; it ends when every worker has, or `is_over` says so.
///
/// # Errors
/// When the system gives no thread.
pub fn start(
    wants: Receiver<PortWant>,
    lenders: impl Lenders + 'static,
    registrar: impl Registrar + 'static,
    is_over: impl Fn() -> bool + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("port-office".into()).spawn(move || {
        while !is_over() {
            match wants.recv_timeout(LOOK) {
                Ok(want) => {
                    let moved = serve(&want, &lenders, &registrar);
                    if moved > 0
                        && let PortWant::Ports { worker, address, class } = want
                    {
                        let address = crate::compile::address_of(&address);
                        let (class, worker) = (class.name(), worker.0);
                        tracing::info!(%address, class, worker, ports = moved, "external ports moved to a worker that runs short");
                    }
                    if let PortWant::Quota { .. } = want {
                        continue; // costs nobody anything
                    }
                    std::thread::sleep(PAUSE);
                    // What was asked for meanwhile was asked before these came.
                    while wants.try_recv().is_ok() {}
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    struct Books(Mutex<Vec<PortMove>>);

    impl Lenders for &Books {
        fn count(&self) -> u16 {
            3
        }

        fn release(&self, worker: WorkerId, _: &[u8; 16], _: PortClass) -> Vec<u16> {
            assert_ne!(worker, WorkerId(1), "who asks is not asked");
            if worker == WorkerId(2) { vec![5, 6] } else { Vec::new() }
        }

        fn lend(&self, worker: WorkerId, _: Quota) -> u32 {
            assert_ne!(worker, WorkerId(1), "who asks is not asked");
            u32::from(worker.0) + 1
        }

        fn grant(&self, worker: WorkerId, quota: Quota, count: u32) {
            assert_eq!((worker, quota.most, count), (WorkerId(1), 9, 4));
        }
    }

    impl Registrar for &Books {
        fn record(&self, moved: PortMove) -> Recorded {
            let mut books = self.0.lock().unwrap();
            books.push(moved);
            if books.len() == 1 { Recorded::Behind } else { Recorded::Reached }
        }
    }

    #[test]
    fn ports_land_after_everybody_knows_whose_they_are() {
        let books = Books(Mutex::default());
        let want = PortWant::Ports { worker: WorkerId(1), address: [1; 16], class: PortClass::Tcp };
        assert_eq!(serve(&want, &&books, &&books), 2);
        let short = PortWant::Quota { worker: WorkerId(1), quota: Quota { namespace: 1, most: 9 } };
        assert_eq!(serve(&short, &&books, &&books), 0);
        let landed: Vec<_> = books.0.lock().unwrap().iter().map(|moved| (moved.ports.len(), moved.landed)).collect();
        assert_eq!(landed, [(2, false), (2, false), (2, true)]);
    }
}
