//! Whether the machine's clock follows another one (adjtimex(2)).

use std::io;

/// Whether something keeps the clock right. Needs no privilege.
///
/// # Errors
/// What adjtimex(2) reports.
pub fn is_synchronised() -> io::Result<bool> {
    // SAFETY: timex is plain integers, for which zeroes are valid.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `timex` is a valid structure; modes 0 changes nothing.
    match unsafe { libc::adjtimex(&raw mut timex) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(timex.status & libc::STA_UNSYNC == 0),
    }
}
