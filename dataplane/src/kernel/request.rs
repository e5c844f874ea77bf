//! Wishes about neighbours: resolve, keep resolved, forget.
//!
//! Packets that workers send never pass the kernel's own neighbour code, so it would take our next hops for unused
//! and let them go stale. An entry marked NTF_EXT_MANAGED is probed by the kernel by itself, for as long as it is
//! there (`ip neigh add … managed`, since Linux 5.16). A kernel that refuses the mark is asked to resolve now (NTF_USE),
//! and asked again by the caller in time.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::NeighbourKey;
use super::netlink::Netlink;

/// Where wishes about neighbours go: the kernel, or a test's notebook.
pub trait NeighbourRequests: Send {
    /// Asks that `key` be resolved, and kept so when the kernel can. `Ok(true)`: the kernel keeps it by itself.
    ///
    /// # Errors
    /// What the kernel answers.
    fn keep(&mut self, key: NeighbourKey) -> io::Result<bool>;

    /// Asks that `key` be resolved now.
    ///
    /// # Errors
    /// What the kernel answers.
    fn probe(&mut self, key: NeighbourKey) -> io::Result<()>;

    /// Takes back [`NeighbourRequests::keep`]: the entry ages like any other again.
    ///
    /// # Errors
    /// What the kernel answers.
    fn release(&mut self, key: NeighbourKey) -> io::Result<()>;
}

/// The kernel.
#[derive(Debug)]
pub struct Kernel {
    netlink: Netlink,
    managed_refused: bool,
}

impl Kernel {
    /// Opens a socket for wishes.
    ///
    /// # Errors
    /// What the system says.
    pub fn open() -> io::Result<Self> {
        Ok(Kernel { netlink: Netlink::open()?, managed_refused: false })
    }

    fn set(&mut self, key: NeighbourKey, flags: NeighbourFlags, managed: bool) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = key.ifindex;
        message.header.state = NeighbourState::None;
        message.header.flags = flags;
        let destination = match key.address {
            IpAddr::V4(address) => {
                message.header.family = AddressFamily::Inet;
                NeighbourAddress::Inet(address)
            }
            IpAddr::V6(address) => {
                message.header.family = AddressFamily::Inet6;
                NeighbourAddress::Inet6(address)
            }
        };
        message.attributes.push(NeighbourAttribute::Destination(destination));
        if managed {
            message.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        }
        self.netlink.command(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
    }
}

impl NeighbourRequests for Kernel {
    fn keep(&mut self, key: NeighbourKey) -> io::Result<bool> {
        if !self.managed_refused {
            match self.set(key, NeighbourFlags::Use, true) {
                Ok(()) => return Ok(true),
                // EINVAL, ERANGE or EOPNOTSUPP: the kernel does not know the mark.
                Err(error) if matches!(error.raw_os_error(), Some(22 | 34 | 95)) => {
                    tracing::warn!(%error, "this kernel keeps no managed neighbours; asking it again and again instead");
                    self.managed_refused = true;
                }
                Err(error) => return Err(error),
            }
        }
        self.probe(key).map(|()| false)
    }

    fn probe(&mut self, key: NeighbourKey) -> io::Result<()> {
        self.set(key, NeighbourFlags::Use, !self.managed_refused)
    }

    fn release(&mut self, key: NeighbourKey) -> io::Result<()> {
        if self.managed_refused { Ok(()) } else { self.set(key, NeighbourFlags::Use, false) }
    }
}
