//! The lock in the state directory: one control at a time works with it.
//!
//! Owns the lock's file. Two processes on one state directory would replace each other's status files, and most likely
//! speak to the same dataplane, which refuses the second.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;

/// The file that is locked. It stays; the lock goes with the process, however that ends.
pub const LOCK_FILE: &str = "control.lock";

/// The lock, held until dropped.
#[derive(Debug)]
pub struct Alone {
    #[expect(dead_code, reason = "the lock is its descriptor's")]
    file: File,
    has_predecessor: bool,
}

impl Alone {
    /// Whether a control has worked with the directory before.
    pub fn has_predecessor(&self) -> bool {
        self.has_predecessor
    }
}

/// Takes the lock in `state_dir`.
///
/// # Errors
/// When another process has it, or the file cannot be made.
pub fn hold(state_dir: &Path) -> io::Result<Alone> {
    let path = state_dir.join(LOCK_FILE);
    let explain = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    fs::create_dir_all(state_dir).map_err(explain)?;
    let has_predecessor = path.try_exists().map_err(explain)?;
    let file = File::options().create(true).append(true).open(&path).map_err(explain)?;
    match file.try_lock() {
        Ok(()) => Ok(Alone { file, has_predecessor }),
        Err(TryLockError::Error(error)) => Err(explain(error)),
        Err(TryLockError::WouldBlock) => Err(io::Error::new(
            io::ErrorKind::WouldBlock,
            format!(
                "another tidegate-control works with {} (it holds {LOCK_FILE}); a gateway has one: end it, or give this \
                 one a `stateDir` and a `socket` of its own",
                state_dir.display()
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_is_refused_until_the_first_has_gone() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let first = hold(&state).unwrap();
        assert!(!first.has_predecessor());
        let error = hold(&state).unwrap_err();
        assert!(error.to_string().contains("another tidegate-control works with"), "{error}");
        drop(first);
        assert!(hold(&state).unwrap().has_predecessor());
        fs::write(directory.path().join("file"), "").unwrap();
        assert!(hold(&directory.path().join("file")).is_err());
    }
}
