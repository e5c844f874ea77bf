//! Bells: threads that wait for news of the kernel's and say that there is some, not what.
//!
//! Who hears one reads everything again. Two sockets: rtnetlink for devices, rules, routes and neighbours, nfnetlink for
//! tables of nftables.

use std::io;
use std::sync::mpsc::SyncSender;

use netlink_sys::Socket;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};

use super::netlink::open;

/// RTMGRP_LINK, RTMGRP_NEIGH, RTMGRP_IPV4_ROUTE, RTMGRP_IPV4_RULE, RTMGRP_IPV6_ROUTE, and RTNLGRP_IPV6_RULE (19) as a bit
/// (uapi/linux/rtnetlink.h).
const ROUTE_GROUPS: u32 = 0x1 | 0x4 | 0x40 | 0x80 | 0x400 | 1 << 18;
/// NFNLGRP_NFTABLES (7) as a bit (uapi/linux/netfilter/nfnetlink.h).
const NFTABLES_GROUPS: u32 = 1 << 6;

/// The bells, ringing for as long as the process lives.
#[derive(Debug)]
pub struct Bells;

impl Bells {
    /// Starts the threads; each sends into `bell`, or leaves it when something waits there already.
    ///
    /// # Errors
    /// When a socket or a thread cannot be had.
    pub fn hang(bell: &SyncSender<()>) -> io::Result<Bells> {
        for (name, protocol, groups) in
            [("bell-routes", NETLINK_ROUTE, ROUTE_GROUPS), ("bell-nftables", NETLINK_NETFILTER, NFTABLES_GROUPS)]
        {
            let (socket, bell) = (open(protocol, groups, None)?, bell.clone());
            std::thread::Builder::new().name(name.into()).spawn(move || ring(&socket, &bell))?;
        }
        Ok(Bells)
    }
}

fn ring(socket: &Socket, bell: &SyncSender<()>) {
    let mut bytes = Vec::with_capacity(1 << 16);
    loop {
        bytes.clear();
        // An overflow (ENOBUFS) is news as well.
        if let Err(error) = socket.recv(&mut bytes, 0) {
            tracing::debug!(%error, "reading kernel news");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        if let Err(std::sync::mpsc::TrySendError::Disconnected(())) = bell.try_send(()) {
            return;
        }
    }
}
