//! Pinning a worker's thread to a core.

use std::io;

/// Numbers of the cores that this thread may run on.
#[must_use]
pub fn cores() -> Vec<usize> {
    core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect()
}

/// Lets the calling thread run on `core` and on no other from now on.
///
/// # Errors
///
/// If the thread may not run there: no such core, or one that the process was not given.
pub fn pin_to(core: usize) -> io::Result<()> {
    let cores = cores();
    if cores.contains(&core) && core_affinity::set_for_current(core_affinity::CoreId { id: core }) {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("this process cannot run on core {core}; it has {cores:?}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_has_one_core_left() {
        let core = cores()[0];
        std::thread::spawn(move || {
            pin_to(core).unwrap();
            assert_eq!(cores(), [core]);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_core_that_is_not_there_is_an_error_with_the_choices() {
        let text = pin_to(100_000).unwrap_err().to_string();
        assert!(text.contains("core 100000") && text.contains(&format!("{:?}", cores())), "{text}");
    }
}
