//! A device's frames beside AF_XDP: a packet socket, for the few that the dataplane itself has to say.
//!
//! Announcements and probes are sent and heard here and not by workers: they are rare, must work while a worker hangs, and
//! are nobody's flow. A packet socket hears what the pinhole has passed to the kernel, and sends without a ring.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `ETH_P_ARP` (uapi/linux/if_ether.h).
pub const ARP: u16 = 0x0806;
/// `ETH_P_IPV6` (uapi/linux/if_ether.h).
pub const IPV6: u16 = 0x86dd;

/// A packet socket (packet(7)) that sends any frame by the device with this index, and hears those of `ethertype` that
/// arrive there. It never blocks.
///
/// # Errors
///
/// What socket(2) and bind(2) say: without `CAP_NET_RAW`, `EPERM`; without such a device, `ENODEV`.
pub fn packet_socket(ifindex: u32, ethertype: u16) -> io::Result<OwnedFd> {
    let index = i32::try_from(ifindex).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
    // Protocol 0 hears nothing until the socket is bound: frames of other devices never get in.
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, open, and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: sockaddr_ll is plain data for which zeroes are a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::sa_family_t::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    address.sll_protocol = ethertype.to_be();
    address.sll_ifindex = index;
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)?;
    // SAFETY: the address is initialised, of the given length, and outlives the call.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}
