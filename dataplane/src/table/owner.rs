//! Which worker owns a block of translated ports.
//!
//! Owns the answer to rule 1 of design 4: a packet to a translated address belongs to the worker that hands out the ports of
//! its block. Today one worker owns every block.

/// Number of a worker, dense from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct WorkerId(pub u16);

/// Owners of all blocks. Kind: table.
#[derive(Clone, Debug, Default)]
pub struct OwnerTable {}

impl OwnerTable {
    /// The worker that owns the block of `port` (host order) at a translated address (mapped form). Read side.
    #[inline]
    pub fn owner(&self, _address: &[u8; 16], _port: u16) -> WorkerId {
        WorkerId(0)
    }
}
