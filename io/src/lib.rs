//! Frames in, frames out: rings, devices, memory. Knows no protocol.
//!
//! Every line of `unsafe` in Tidegate is in this crate, and none of it shows: a [`Frame`] is a token that is moved, so
//! a frame that was sent or given back cannot be used again (it does not compile), and what the kernel says about a
//! frame is checked before it becomes one.
//!
//! The journey of a packet: a port receives a batch of frames, the worker reads and rewrites their bytes, a port sends
//! them, and the completed ones go back to the magazine the next ones come from.
//!
//! ```
//! use tidegate_io::{Batch, HugePages, Pool, Port, memory};
//!
//! let pool = Pool::new(256, 2048, HugePages::Off)?;
//! let mut magazine = pool.magazine();
//! let (mut port, mut peer) = memory::pair(&pool, memory::Config::default());
//!
//! peer.inject(b"fourteen bytes");
//! let mut batch = Batch::new();
//! assert_eq!(port.rx(&mut batch), 1);
//! assert_eq!(port.tx(&mut batch), 1);
//! assert_eq!(peer.take_sent().as_deref(), Some(&b"fourteen bytes"[..]));
//! port.recycle(&mut magazine);
//! # Ok::<(), std::io::Error>(())
//! ```

pub mod mem;
pub mod frame;
pub mod chain;
pub mod pool;
pub mod port;
pub mod memory;
pub mod netdev;
pub mod link;
pub mod tun;
pub mod pinhole;
pub mod afxdp;
pub mod pcap;
pub mod fault;
pub mod pin;
pub mod clock;

pub use chain::Chains;
pub use frame::{BATCH_MAX, Batch, Frame, GroupId, HEADROOM_BYTES};
pub use mem::HugePages;
pub use pinhole::{Guarded, OnDeath, Owned, OwnedChange, OwnedFlags, Pinhole, PinholeCounters};
pub use pool::{Depot, Homing, Magazine, Pool};
pub use port::{Level, Mode, Port, PortCounters, PortFacts, RingLevels, SocketStatistics};
