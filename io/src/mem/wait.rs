//! Time and sleep, for the edges: the binaries read the clock once a turn, and sleep when there is nothing to do.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Descriptors [`sleep_on`] can wait for at once.
const DESCRIPTORS_MAX: usize = 64;

/// Nanoseconds of the monotonic clock since the first call in this process, plus one second.
///
/// It starts at a second, not at zero, so that "a moment ago" can be subtracted from any reading.
#[must_use]
pub fn now_ns() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed() + Duration::from_secs(1);
    u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
}

/// Nanoseconds that whoever turns over ports stays awake without a packet before it sleeps on their descriptors. Who stays
/// awake longer takes more from those that share its core, so whatever is compared on shared cores keeps to the same.
pub const IDLE_BEFORE_SLEEP_NS: u64 = 200_000;

/// Sleeps until one of `descriptors` is readable or `timeout` has passed, and returns how many are readable.
///
/// Only the first 64 descriptors are waited for. Allocates nothing. An interrupted sleep is an early, empty one.
///
/// # Errors
///
/// What poll(2) reports.
pub fn sleep_on(descriptors: &[BorrowedFd<'_>], timeout: Duration) -> io::Result<usize> {
    let mut entries = [libc::pollfd { fd: -1, events: libc::POLLIN, revents: 0 }; DESCRIPTORS_MAX];
    let count = descriptors.len().min(DESCRIPTORS_MAX);
    for (entry, descriptor) in entries.iter_mut().zip(descriptors) {
        entry.fd = descriptor.as_raw_fd();
    }
    // Rounded up: a timeout of some microseconds must not become a busy loop.
    let millis = i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
    // SAFETY: `entries` is an array of at least `count` initialised pollfd that outlives the call.
    let ready = unsafe { libc::poll(entries.as_mut_ptr(), count as libc::nfds_t, millis) };
    match usize::try_from(ready) {
        Ok(ready) => Ok(ready),
        Err(_) => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    #[test]
    fn a_sleep_ends_when_a_descriptor_is_readable() {
        let (reader, mut writer) = io::pipe().unwrap();
        assert_eq!(sleep_on(&[reader.as_fd()], Duration::ZERO).unwrap(), 0);
        writer.write_all(b"x").unwrap();
        assert_eq!(sleep_on(&[reader.as_fd()], Duration::from_secs(60)).unwrap(), 1);
        assert_eq!(sleep_on(&[], Duration::from_micros(1)).unwrap(), 0);
    }

    #[test]
    fn the_clock_only_goes_forward() {
        let first = now_ns();
        assert!(first >= 1_000_000_000);
        assert!(now_ns() >= first);
    }
}
