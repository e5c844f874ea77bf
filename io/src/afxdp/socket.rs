//! Socket options of AF_XDP that the crates below do not know, and the two system calls that wake the kernel.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::port::SocketStatistics;

/// Packets that one send may build in copy mode (`XDP_MAX_TX_SKB_BUDGET`, include/uapi/linux/if_xdp.h of Linux 6.17;
/// unknown before). The default is 32.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// `SO_PREFER_BUSY_POLL` and `SO_BUSY_POLL_BUDGET` (include/uapi/asm-generic/socket.h).
const SO_PREFER_BUSY_POLL: libc::c_int = 69;
const SO_BUSY_POLL_BUDGET: libc::c_int = 70;

/// Microseconds that a system call on the socket may poll the driver for.
const BUSY_POLL_MICROS: libc::c_int = 20;

/// Memory that a packet in flight is charged to the socket with in copy mode, in bytes: an skb and its data.
const SKB_CHARGE_BYTES: u32 = 4096;

/// Types that getsockopt(2) fills: plain integers, any bits are a value.
///
/// # Safety
///
/// Every bit pattern, zeroes included, is a valid value of the type.
pub(super) unsafe trait Plain: Copy {}
// SAFETY: a struct of u64s.
unsafe impl Plain for libc::xdp_mmap_offsets {}
// SAFETY: a struct of u64s.
unsafe impl Plain for libc::xdp_statistics {}
// SAFETY: a struct of one u32.
unsafe impl Plain for libc::xdp_options {}

/// Reads one option of level `SOL_XDP`.
pub(super) fn option<T: Plain>(socket: BorrowedFd<'_>, name: libc::c_int) -> io::Result<T> {
    // SAFETY: zeroes are a valid T (Plain).
    let mut value: T = unsafe { std::mem::zeroed() };
    let mut bytes = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: `value` is `bytes` long and any bits in it are valid (Plain).
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_XDP, name, std::ptr::from_mut(&mut value).cast(), &raw mut bytes)
    };
    match result {
        0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let bytes = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    // SAFETY: the value is an int of the length given.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(&value).cast(), bytes) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether the device reads and writes our memory itself (`XDP_OPTIONS`).
pub(super) fn is_zero_copy(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let options: libc::xdp_options = option(socket, libc::XDP_OPTIONS)?;
    Ok(options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
}

/// The kernel's counters of the socket (`XDP_STATISTICS`).
pub(super) fn statistics(socket: BorrowedFd<'_>) -> io::Result<SocketStatistics> {
    let read: libc::xdp_statistics = option(socket, libc::XDP_STATISTICS)?;
    Ok(SocketStatistics {
        rx_dropped: read.rx_dropped,
        rx_invalid_descs: read.rx_invalid_descs,
        tx_invalid_descs: read.tx_invalid_descs,
        rx_ring_full: read.rx_ring_full,
        rx_fill_ring_empty_descs: read.rx_fill_ring_empty_descs,
        tx_ring_empty_descs: read.tx_ring_empty_descs,
    })
}

/// Prepares a socket in copy mode for sending `entries` packets at once. Older kernels know less: what they refuse
/// costs speed only, so it is not an error.
pub(super) fn tune_copy(socket: BorrowedFd<'_>, entries: u32) {
    let count = libc::c_int::try_from(entries).unwrap_or(libc::c_int::MAX);
    let _ = set(socket, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, count);
    let bytes = libc::c_int::try_from(entries.saturating_mul(SKB_CHARGE_BYTES)).unwrap_or(libc::c_int::MAX);
    // Without the privilege to go beyond the system's limit, up to it.
    if set(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes).is_err() {
        let _ = set(socket, libc::SOL_SOCKET, libc::SO_SNDBUF, bytes);
    }
}

/// Lets system calls on the socket drive the device's queue, instead of its interrupts (Documentation/networking/
/// af_xdp.rst). Only of use in zero-copy mode, for a worker that never sleeps.
pub(super) fn prefer_busy_poll(socket: BorrowedFd<'_>, budget: libc::c_int) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, SO_PREFER_BUSY_POLL, 1)?;
    set(socket, libc::SOL_SOCKET, libc::SO_BUSY_POLL, BUSY_POLL_MICROS)?;
    set(socket, libc::SOL_SOCKET, SO_BUSY_POLL_BUDGET, budget)
}

/// Asks the kernel to look at the send ring.
#[inline]
pub(super) fn wake_tx(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no memory is passed.
    let sent =
        unsafe { libc::sendto(socket.as_raw_fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Asks the kernel to look at the fill ring, and with busy polling to receive.
#[inline]
pub(super) fn wake_rx(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no memory is passed.
    let received = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            std::ptr::null_mut(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    };
    if received < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
