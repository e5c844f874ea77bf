//! Solicited-node groups joined on the links (M-024, RFC 4291 section 2.7.1).
//!
//! A neighbour asks for an IPv6 address at the group of its last 24 bits. A NIC admits frames for groups that somebody on
//! the machine has joined, and a switch that snoops sends them where a report came from; the kernel does both for whoever
//! joins by a socket. The questions themselves go to the workers.

use std::collections::HashMap;
use std::io;
use std::net::Ipv6Addr;

use socket2::{Domain, Protocol, Socket, Type};

use crate::wire::ipv6::solicited_node;

/// Groups joined by one socket: memberships count towards the memory of its options (`net.core.optmem_max`, from 20 KiB
/// on), about 40 bytes each.
const PER_SOCKET: usize = 256;

/// Groups by device, with how many addresses want each.
#[derive(Debug, Default)]
pub struct Groups {
    joined: HashMap<(u32, Ipv6Addr), Joined>,
    /// Sockets without a port, and how many groups each has joined.
    sockets: Vec<(Socket, usize)>,
}

#[derive(Debug)]
struct Joined {
    wanted: usize,
    /// `None`: it could not be joined.
    socket: Option<usize>,
}

impl Groups {
    /// Joins the group of `address` on a device, unless another address has.
    pub fn join(&mut self, ifindex: u32, address: Ipv6Addr) {
        let group = Ipv6Addr::from(solicited_node(address.octets()));
        if let Some(joined) = self.joined.get_mut(&(ifindex, group)) {
            joined.wanted += 1;
            return;
        }
        let socket = self.enter(ifindex, group).inspect_err(|error| {
            tracing::warn!(%address, %group, ifindex, %error, "joining a solicited-node group; the NIC may not hear questions");
        });
        self.joined.insert((ifindex, group), Joined { wanted: 1, socket: socket.ok() });
    }

    /// Leaves the group of `address` on a device, once no other address wants it.
    pub fn leave(&mut self, ifindex: u32, address: Ipv6Addr) {
        let group = Ipv6Addr::from(solicited_node(address.octets()));
        let Some(joined) = self.joined.get_mut(&(ifindex, group)) else { return };
        joined.wanted -= 1;
        if joined.wanted > 0 {
            return;
        }
        let socket = joined.socket;
        self.joined.remove(&(ifindex, group));
        if let Some((socket, count)) = socket.and_then(|number| self.sockets.get_mut(number)) {
            *count -= 1;
            // The device may have gone, and the membership with it.
            let _ = socket.leave_multicast_v6(&group, ifindex);
        }
    }

    /// How many groups are joined.
    pub fn len(&self) -> usize {
        self.joined.values().filter(|joined| joined.socket.is_some()).count()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn enter(&mut self, ifindex: u32, group: Ipv6Addr) -> io::Result<usize> {
        let number = match self.sockets.iter().position(|(_, count)| *count < PER_SOCKET) {
            Some(number) => number,
            None => {
                self.sockets.push((Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?, 0));
                self.sockets.len() - 1
            }
        };
        let Some((socket, count)) = self.sockets.get_mut(number) else { return Err(io::ErrorKind::NotFound.into()) };
        socket.join_multicast_v6(&group, ifindex)?;
        *count += 1;
        Ok(number)
    }
}
