//! Which worker owns what: blocks of translated ports, and clients.
//!
//! Owns two answers of design 4: a packet to a translated address belongs to the worker that hands out the ports of its
//! block (rule 1), and a client to the worker on whose queue the NIC lays its packets, where that is known, else a hash of
//! it is scaled to a worker (rule 2). It refuses to know packets: the rules themselves are `stage/owner.rs`.
//!
//! Blocks are dealt one after the other to all workers, so that each has a share of every range of ports; the list of a
//! worker's own blocks is what it chooses ports from. Blocks move by publishing another table.

use std::sync::Arc;

use super::nat::{PORT_MAX, PORT_MIN};
use super::spread::Spread;
use crate::state::tuple::{Address, HashKeys, Tuple};

/// Most workers of one process: the rings between them grow with the square.
pub const WORKERS_MAX: u16 = 64;

/// Ports of a block.
pub const BLOCK_PORTS: u16 = 64;
const BLOCK_SHIFT: u32 = BLOCK_PORTS.trailing_zeros();
const BLOCKS: u16 = (PORT_MAX >> BLOCK_SHIFT) + 1;
const BLOCK_FIRST: u16 = PORT_MIN >> BLOCK_SHIFT;
const _: () = assert!(BLOCK_PORTS.is_power_of_two() && PORT_MIN.is_multiple_of(BLOCK_PORTS));
const _: () = assert!(BLOCKS - BLOCK_FIRST >= WORKERS_MAX, "every worker has a block");

/// Number of a worker, dense from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct WorkerId(pub u16);

/// Owners of all blocks and clients. Kind: table.
#[derive(Clone, Debug)]
pub struct OwnerTable {
    workers: u16,
    /// Equal on all workers of this process, unknown outside: nobody may choose whom to load.
    keys: HashKeys,
    /// Owner of each block of [`BLOCK_PORTS`] ports, by number of the block: `BLOCKS` of them.
    blocks: Arc<[u16]>,
    /// The blocks of each worker from `BLOCK_FIRST` on, ascending; one list per worker.
    own: Arc<[Box<[u16]>]>,
    /// How the NIC spreads clients. It stays for the life of the process, whatever becomes of the NIC's settings: flows live
    /// where it says.
    spread: Option<Arc<Spread>>,
}

/// The translated ports that one worker may give out.
#[derive(Clone, Copy, Debug)]
pub struct Ports<'t> {
    blocks: &'t [u16],
}

impl Default for OwnerTable {
    /// One worker owns everything.
    fn default() -> Self {
        OwnerTable::new(1, [0; 2])
    }
}

impl OwnerTable {
    /// Everything dealt to so many workers, at least one and at most [`WORKERS_MAX`]. `secret` is random.
    pub fn new(workers: u16, secret: [u64; 2]) -> OwnerTable {
        let workers = workers.clamp(1, WORKERS_MAX);
        OwnerTable::dealt(workers, secret, |block| WorkerId(block % workers))
    }

    /// Blocks dealt by `owner_of`, which is given the number of a block; one it gives to nobody goes to worker 0.
    fn dealt(workers: u16, secret: [u64; 2], owner_of: impl Fn(u16) -> WorkerId) -> OwnerTable {
        let owner_of = |block| Some(owner_of(block).0).filter(|owner| *owner < workers).unwrap_or(0);
        let blocks: Arc<[u16]> = (0..BLOCKS).map(owner_of).collect();
        let of = |worker| (BLOCK_FIRST..BLOCKS).filter(|block| owner_of(*block) == worker).collect();
        let own = (0..workers).map(of).collect();
        OwnerTable { workers, keys: HashKeys::new(secret), blocks, own, spread: None }
    }

    /// The same, with clients where `spread` says.
    #[must_use]
    pub fn with_spread(self, spread: Spread) -> OwnerTable {
        OwnerTable { spread: Some(Arc::new(spread)), ..self }
    }

    /// How the NIC spreads clients, if that decides whose they are.
    pub fn spread(&self) -> Option<&Spread> {
        self.spread.as_deref()
    }

    /// The worker on whose queue packets with `tuple` arrive, if that is known and decides. Read side.
    #[inline]
    pub fn of_queue<A: Address>(&self, tuple: &Tuple<A>) -> Option<WorkerId> {
        self.spread.as_ref()?.owner(tuple)
    }

    /// How many workers there are. Read side.
    #[inline(always)]
    pub fn workers(&self) -> u16 {
        self.workers
    }

    /// The worker that owns the block of a translated `port` (host order). Read side.
    #[inline]
    pub fn owner(&self, port: u16) -> WorkerId {
        WorkerId(self.blocks.get(usize::from(port >> BLOCK_SHIFT)).copied().unwrap_or(0))
    }

    /// The worker that a client's hash belongs to: 0 to 2^64 scaled to 0..workers. Read side.
    #[inline]
    pub fn of_hash(&self, hash: u64) -> WorkerId {
        // Below `workers`, which has 16 bits.
        WorkerId(((((hash >> 32) * u64::from(self.workers)) >> 32) & 0xffff) as u16)
    }

    /// The secrets of that hash. Read side.
    #[inline]
    pub fn keys(&self) -> &HashKeys {
        &self.keys
    }

    /// The ports that `worker` gives out. Read side.
    #[inline]
    pub fn ports_of(&self, worker: WorkerId) -> Ports<'_> {
        Ports { blocks: self.own.get(usize::from(worker.0)).map(|blocks| &**blocks).unwrap_or_default() }
    }
}

impl<'t> Ports<'t> {
    /// Whether `port` is one of them.
    #[inline]
    pub fn contains(self, port: u16) -> bool {
        self.blocks.binary_search(&(port >> BLOCK_SHIFT)).is_ok()
    }

    /// How many there are.
    #[inline]
    pub fn len(self) -> u32 {
        u32::try_from(self.blocks.len()).unwrap_or(0) * u32::from(BLOCK_PORTS)
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.blocks.is_empty()
    }

    /// The `n`th of them, `n` below [`Ports::len`].
    #[inline]
    pub fn at(self, n: u32) -> u16 {
        let block = self.blocks.get((n >> BLOCK_SHIFT) as usize).copied().unwrap_or(BLOCK_FIRST);
        const _: () = assert!(BLOCK_PORTS == 0x40);
        block << BLOCK_SHIFT | (n & 0x3f) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::nat::PORTS_PER_SOURCE;

    fn all(ports: Ports<'_>) -> Vec<u16> {
        (0..ports.len()).map(|n| ports.at(n)).collect()
    }

    #[test]
    fn every_port_has_one_owner_and_is_in_its_list_alone() {
        for workers in [1, 2, 3, 7, 8, WORKERS_MAX] {
            let table = OwnerTable::new(workers, [1, 2]);
            let mut given = Vec::new();
            for worker in (0..workers).map(WorkerId) {
                let ports = all(table.ports_of(worker));
                assert!(ports.is_sorted() && ports.iter().all(|port| table.owner(*port) == worker));
                // Even to one block.
                let even = PORTS_PER_SOURCE / u32::from(workers);
                assert!(table.ports_of(worker).len().abs_diff(even) <= u32::from(BLOCK_PORTS), "{workers} workers");
                given.extend(ports);
            }
            given.sort_unstable();
            assert!(given.into_iter().eq(PORT_MIN..=PORT_MAX), "{workers} workers");
            assert!(table.ports_of(WorkerId(workers)).is_empty());
        }
    }

    #[test]
    fn one_worker_has_the_ports_in_their_order() {
        assert!(all(OwnerTable::default().ports_of(WorkerId(0))).into_iter().eq(PORT_MIN..=PORT_MAX));
    }

    #[test]
    fn blocks_can_be_dealt_otherwise_and_nobodys_are_the_firsts() {
        let table = OwnerTable::dealt(2, [0; 2], |block| WorkerId(if block == 1023 { 1 } else { 9 }));
        assert_eq!(all(table.ports_of(WorkerId(1))), (65_472..=65_535).collect::<Vec<u16>>());
        assert_eq!((table.owner(65_472), table.owner(65_471), table.owner(0)), (WorkerId(1), WorkerId(0), WorkerId(0)));
    }

    #[test]
    fn hashes_are_scaled_evenly_to_every_worker() {
        for workers in [1u16, 2, 3, 8, WORKERS_MAX] {
            let table = OwnerTable::new(workers, [0; 2]);
            let mut counts = vec![0u32; workers.into()];
            for n in 0..u64::from(workers) * 1000 {
                counts[usize::from(table.of_hash(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).0)] += 1;
            }
            assert!(counts.iter().all(|count| (980..=1020).contains(count)), "{counts:?}");
            assert_eq!((table.of_hash(0), table.of_hash(u64::MAX)), (WorkerId(0), WorkerId(workers - 1)));
        }
    }
}
