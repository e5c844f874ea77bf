//! Pins: the names in a BPF file system under which a later process finds a pinhole again.
//!
//! The kernel lets only `CAP_SYS_ADMIN` open a program or a map by its number (`bpf_prog_get_fd_by_id`,
//! `bpf_map_get_fd_by_id`, kernel/bpf/syscall.c), for that is a right to everybody's. What is pinned is a file, and who may
//! open that file may have it. So a gateway without that capability follows the one before it by pins.
//!
//! Each device has a directory of its own, named by network namespace and number of the device, since gateways in several
//! namespaces of one machine may share a BPF file system:
//!
//! ```text
//! /sys/fs/bpf/tidegate/4026531840-7/prefixes_v4 …  the maps, each under its own name
//!                                  /program-112    the program with the kernel's number 112
//! ```
//!
//! The number in the name settles every doubt: a pin counts only for the program that is attached. A new program is pinned
//! before it is attached and the old pin goes afterwards, so a process that ends in between leaves both, and one is right.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use libbpf_rs::{MapHandle, libbpf_sys};

use super::{check, error, own};

/// Where the network namespace of this thread can be told from others.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";
/// Before the number of a program in the name of its pin.
const PROGRAM: &str = "program-";

/// The pins of one device, there or not.
#[derive(Debug, Clone)]
pub(crate) struct Pins {
    directory: PathBuf,
}

impl Pins {
    /// Those of the device with this number in this network namespace, below `root`, which should be in a BPF file system.
    /// Where namespaces cannot be told apart they count as one.
    pub(crate) fn of(root: &Path, ifindex: u32) -> Pins {
        let namespace = fs::metadata(OWN_NAMESPACE).map_or(0, |namespace| namespace.ino());
        Pins { directory: root.join(format!("{namespace}-{ifindex}")) }
    }

    /// Where they are.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Opens the program with the kernel's number `id`.
    pub(crate) fn program(&self, id: u32) -> io::Result<OwnedFd> {
        let path = path(&self.program_path(id))?;
        // SAFETY: the path is a string that ends in zero.
        own(unsafe { libbpf_sys::bpf_obj_get(path.as_ptr()) })
    }

    /// Opens a map.
    pub(crate) fn map(&self, name: &str) -> io::Result<MapHandle> {
        MapHandle::from_pinned_path(self.directory.join(name)).map_err(error)
    }

    /// Pins a program and its maps, in the place of what has these names. Pins of other programs stay.
    pub(crate) fn keep(&self, id: u32, program: BorrowedFd<'_>, maps: &[(&str, BorrowedFd<'_>)]) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        for (name, map) in maps {
            pin(&self.directory.join(name), *map)?;
        }
        pin(&self.program_path(id), program)
    }

    /// Takes the pins of all programs but this one away.
    pub(crate) fn keep_only(&self, id: u32) -> io::Result<()> {
        let kept = format!("{PROGRAM}{id}");
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_string_lossy().starts_with(PROGRAM) && name != kept.as_str() {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Takes all of them away.
    pub(crate) fn forget(&self) {
        // What cannot be removed is replaced by the next one that keeps something here.
        let _ = fs::remove_dir_all(&self.directory);
    }

    fn program_path(&self, id: u32) -> PathBuf {
        self.directory.join(format!("{PROGRAM}{id}"))
    }
}

/// Gives an object a name. What had it before has it until then.
fn pin(place: &Path, object: BorrowedFd<'_>) -> io::Result<()> {
    let mut hidden = place.as_os_str().to_owned();
    hidden.push("-new");
    let _ = fs::remove_file(&hidden);
    let name = path(Path::new(&hidden))?;
    // SAFETY: the descriptor is open and the path is a string that ends in zero.
    check(unsafe { libbpf_sys::bpf_obj_pin(object.as_raw_fd(), name.as_ptr()) })?;
    fs::rename(&hidden, place)
}

fn path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_of_every_namespace_has_a_place_of_its_own() {
        let (one, other) = (Pins::of(Path::new("/x"), 7), Pins::of(Path::new("/x"), 8));
        assert_ne!(one.directory(), other.directory());
        let namespace = fs::metadata(OWN_NAMESPACE).unwrap().ino();
        assert_eq!(one.directory(), Path::new(&format!("/x/{namespace}-7")));
        // A dot in a name is refused by the BPF file system.
        assert!(!one.program_path(3).to_string_lossy().contains('.'));
    }

    #[test]
    fn where_nothing_is_pinned_nothing_is_found() {
        let pins = Pins::of(Path::new("/nowhere"), 7);
        assert_eq!(pins.program(1).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(pins.map("sockets").is_err());
        pins.forget();
    }
}
