//! The listening end of the contract socket.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A bound socket file, removed when dropped.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Binds `path` with file mode `mode` (0o660, say). A leftover socket nobody answers on is replaced; anything else
    /// that stands there is somebody's and stays.
    ///
    /// # Errors
    /// `AddrInUse` when a living process answers at `path`, `AlreadyExists` when what is there is no socket; otherwise
    /// what the system says.
    pub fn bind(path: &Path, mode: u32) -> io::Result<Self> {
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(parent)?;
        }
        if let Ok(found) = fs::symlink_metadata(path) {
            if !found.file_type().is_socket() {
                let text = format!("{} is there and is no socket; it is left alone", path.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
            }
            if UnixStream::connect(path).is_ok() {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    format!("another dataplane answers at {}", path.display()),
                ));
            }
            fs::remove_file(path)?;
        }
        // Made under a private name first: the socket appears at `path` with its final mode or not at all.
        let hidden = path.with_extension(format!("{}.new", std::process::id()));
        let _ = fs::remove_file(&hidden);
        let listener = UnixListener::bind(&hidden)?;
        fs::set_permissions(&hidden, fs::Permissions::from_mode(mode))?;
        fs::rename(&hidden, path)?;
        Ok(Listener { listener, path: path.to_path_buf() })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the next client.
    ///
    /// # Errors
    /// What the system says.
    pub fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept()?.0)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leftover_is_replaced_and_what_is_no_socket_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.sock");
        drop(UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&path, 0o600).unwrap();
        assert_eq!(Listener::bind(&path, 0o600).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        assert!(!path.exists());

        fs::write(&path, "precious").unwrap();
        let error = Listener::bind(&path, 0o600).unwrap_err();
        assert!(error.to_string().contains("is no socket"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
