//! A network device that exists only while somebody holds it: a TUN device (Documentation/networking/tuntap.rst).
//!
//! The kernel removes the device, and every route over it, as soon as its descriptor is closed, however that happened. So
//! whoever holds one can promise with it: what leads here is true only while I live.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

/// `TUNSETIFF` (uapi/linux/if_tun.h): `_IOW('T', 202, int)`.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
/// Packets without Ethernet header (uapi/linux/if_tun.h).
const IFF_TUN: libc::c_short = 0x0001;
/// No four bytes of packet information before each (uapi/linux/if_tun.h).
const IFF_NO_PI: libc::c_short = 0x1000;
/// A device of this name that is there already is an error, and not joined (uapi/linux/if_tun.h: `IFF_TUN_EXCL` is bit 15).
const IFF_TUN_EXCL: libc::c_short = libc::c_short::MIN;

/// A TUN device that goes when this is dropped.
#[derive(Debug)]
pub struct Tun {
    file: File,
    name: String,
}

impl Tun {
    /// Makes the device called `name`. Reading never blocks.
    ///
    /// # Errors
    ///
    /// `EBUSY` when there is a device of that name, `EPERM` without `CAP_NET_ADMIN`, [`io::ErrorKind::NotFound`] without
    /// `/dev/net/tun`, [`io::ErrorKind::InvalidInput`] for what is no name of a device.
    pub fn create(name: &str) -> io::Result<Tun> {
        let wrong = || io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is not a device name"));
        let c_name = CString::new(name).map_err(|_| wrong())?;
        // `%d` in a name would be replaced by the kernel.
        if name.is_empty() || c_name.as_bytes_with_nul().len() > libc::IFNAMSIZ || name.contains(['/', '%']) {
            return Err(wrong());
        }
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        // SAFETY: ifreq is plain integers and pointers, for which zeroes are valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(c_name.as_bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = IFF_TUN | IFF_NO_PI | IFF_TUN_EXCL;
        // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is, and keeps no pointer to it; the name in it ends
        // in zero since it is shorter than the field.
        match unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF as _, &raw mut request) } {
            0 => Ok(Tun { file, name: name.to_owned() }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The device's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads away at most `packets_max` packets that the kernel sent here; how many there were.
    ///
    /// # Errors
    ///
    /// What read(2) reports when it is not that nothing is there; while the device is down, for one.
    pub fn discard(&self, packets_max: usize) -> io::Result<usize> {
        // What does not fit is cut off by the kernel: the content is of no interest.
        let mut buffer = [0; 64];
        for count in 0..packets_max {
            match (&self.file).read(&mut buffer) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(count),
                Err(error) => return Err(error),
            }
        }
        Ok(packets_max)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_name_is_refused_before_the_kernel_is_asked() {
        for name in ["", "a-name-that-is-far-too-long", "zero\0inside", "vip%d", "a/b"] {
            assert_eq!(Tun::create(name).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
    }
}
