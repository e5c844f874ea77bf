//! The image: the files a guest starts from, packed as the kernel unpacks them (initramfs, Documentation of the kernel:
//! driver-api/early-userspace/buffer-format.rst).
//!
//! Owns what is in it: busybox, the drivers, the gateway's programs with the libraries they are linked with, the lab's
//! node file and manifests, and a first process that is nothing but a shell on a line to the host. Refuses to know what is
//! done in that shell.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::enclosure::STATE_DIR;
use crate::lab;
use crate::process;
use crate::rig::Rig;
use crate::topology::{GATEWAY_LAN_MAC, GATEWAY_WAN_MAC};

/// Longest life of one building command.
const BUILD_LIMIT: Duration = Duration::from_secs(60);
/// Drivers, in the order of loading.
const MODULES: [&str; 3] = ["failover", "net_failover", "virtio_net"];
/// Programs of the machine that the guest uses as well.
const TOOLS: [&str; 2] = ["ip", "ethtool"];
/// Busybox' shell takes its own `ip`, which has no batches, before any in the path; a function goes before both.
const OWN_IP: &str = "ip() { /programs/ip \"$@\"; }\n";
/// What the guest says when its shell listens.
pub(super) const READY: &str = "guest ready";
/// What the guest says at the end of every command, with its exit code.
pub(super) const END: &str = "guest end ";

/// The guest's kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) image: PathBuf,
    pub(super) version: String,
    modules: Vec<PathBuf>,
}

impl Kernel {
    /// Looks whether everything is there.
    pub(super) fn find(directory: &Path) -> Result<Kernel> {
        let hint = || format!("{}: no kernel; perf/zero-copy/fetch-kernel puts one there", directory.display());
        let version = fs::read_to_string(directory.join("version")).with_context(hint)?.trim().to_owned();
        let kernel = Kernel {
            image: directory.join("vmlinuz"),
            version,
            modules: MODULES.map(|module| directory.join(format!("modules/{module}.ko"))).into(),
        };
        let missing = kernel.modules.iter().chain([&kernel.image]).find(|file| !file.is_file());
        if let Some(file) = missing {
            bail!("{} is missing; {}", file.display(), hint());
        }
        Ok(kernel)
    }
}

/// A built image.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) file: PathBuf,
    pub(super) bytes: u64,
}

/// Builds the image for a lab that is up.
pub(super) fn build(kernel: &Kernel, rig: &Rig) -> Result<Image> {
    let state_dir = &rig.lab.state_dir;
    let root = state_dir.join("guest");
    for directory in ["bin", "dev", "lab", "modules", "proc", "programs", "run", "sys"] {
        fs::create_dir_all(root.join(directory))?;
    }
    for module in &kernel.modules {
        let name = module.file_name().context("a module without a name")?;
        fs::copy(module, root.join("modules").join(name))?;
    }
    fs::copy(find("busybox")?, root.join("bin/busybox"))?;
    let mut programs: Vec<PathBuf> = TOOLS.iter().map(|name| find(name)).collect::<Result<_>>()?;
    programs.extend(rig.gateway.programs());
    add_programs(&root, &programs)?;
    let node_file = fs::read_to_string(rig.gateway.config())?;
    fs::write(root.join("lab/node.yaml"), zero_copy(&node_file)?)?;
    copy_directory(rig.manifests.directory(), &root.join("lab/manifests"))?;
    fs::write(root.join("lab/configure"), format!("{OWN_IP}{}", lab::gateway_script()))?;
    let init = root.join("init");
    fs::write(&init, init_script())?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    let file = state_dir.join("guest.cpio");
    let mut pack = Command::new("sh");
    pack.args(["-c", "cd \"$0\" && find . | cpio --quiet -o -H newc >\"$1\""]).arg(&root).arg(&file);
    process::run(pack, "", BUILD_LIMIT)?.success("packing the guest's files (Debian package cpio)")?;
    let bytes = fs::metadata(&file)?.len();
    Ok(Image { file, bytes })
}

/// The lab's node file with the one word changed that this is about.
fn zero_copy(node_file: &str) -> Result<String> {
    let (from, to) = ("  mode: auto\n", "  mode: zero-copy\n");
    if node_file.matches(from).count() != 1 {
        bail!("the lab's node file has no line `mode: auto`:\n{node_file}");
    }
    Ok(node_file.replace(from, to))
}

/// Path of a program of this machine.
fn find(name: &str) -> Result<PathBuf> {
    let directories = ["/bin", "/usr/bin", "/sbin", "/usr/sbin"].map(Path::new);
    let file = directories.iter().map(|directory| directory.join(name)).find(|file| file.is_file());
    file.with_context(|| format!("there is no {name} on this machine"))
}

/// Copies programs to `programs`, without what only debuggers read, and the libraries they need to where they need them.
fn add_programs(root: &Path, programs: &[PathBuf]) -> Result<()> {
    let mut libraries = BTreeSet::new();
    for program in programs {
        let copy = root.join("programs").join(program.file_name().context("a program without a name")?);
        let mut strip = Command::new("strip");
        strip.arg("--strip-debug").arg("-o").arg(&copy).arg(program);
        process::run(strip, "", BUILD_LIMIT)?.success(&format!("copying {}", program.display()))?;
        let mut ldd = Command::new("ldd");
        ldd.arg(program);
        // It fails for a program that needs none.
        libraries.extend(absolute_paths(&process::run(ldd, "", BUILD_LIMIT)?.stdout));
    }
    for library in libraries {
        let copy = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(copy.parent().context("a library at the root")?)?;
        fs::copy(&library, &copy).with_context(|| library.clone())?;
    }
    Ok(())
}

/// The libraries that ldd tells: the words that begin with a slash.
fn absolute_paths(ldd: &str) -> BTreeSet<String> {
    ldd.split_whitespace().filter(|word| word.starts_with('/')).map(String::from).collect()
}

fn copy_directory(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// The guest's first process: mounts, drivers, names and addresses, then a shell that marks the end of each command.
///
/// Its own words go to the serial line, with the kernel's; the shell is on a port of a virtio device, which loses no
/// character however busy the host is, and which can be opened once only.
fn init_script() -> String {
    format!(
        "#!/bin/busybox sh\n\
         set -e\n\
         /bin/busybox --install -s /bin\n\
         export PATH=/programs:/bin HOME=/run NO_COLOR=1\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sysfs /sys\n\
         mount -t devtmpfs devtmpfs /dev\n\
         mount -t tmpfs tmpfs /run\n\
         mount -t bpf bpf /sys/fs/bpf\n\
         for module in {modules}; do insmod /modules/$module.ko; done\n\
         for device in /sys/class/net/*; do\n\
         \x20 case $(cat $device/address) in\n\
         \x20   {GATEWAY_WAN_MAC}) ip link set ${{device##*/}} name wan0 ;;\n\
         \x20   {GATEWAY_LAN_MAC}) ip link set ${{device##*/}} name lan0 ;;\n\
         \x20 esac\n\
         done\n\
         cp -r /lab {STATE_DIR}\n\
         mkdir -p /run/tidegate {STATE_DIR}/saved\n\
         sh -e {STATE_DIR}/configure\n\
         set +e\n\
         exec 3<>$(echo /dev/vport*p1)\n\
         exec <&3 >&3 2>&3\n\
         echo '{READY}'\n\
         while read -r line; do\n\
         \x20 eval \"$line\"\n\
         \x20 printf '\\n{END}%s\\n' $?\n\
         done\n\
         poweroff -f\n",
        modules = MODULES.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_file_changes_in_its_mode_only() {
        let text = zero_copy("node: gw-1\ndataplane:\n  mode: auto\n  frames: 16384\n").unwrap();
        assert_eq!(text, "node: gw-1\ndataplane:\n  mode: zero-copy\n  frames: 16384\n");
        assert!(zero_copy("dataplane:\n  mode: copy\n").unwrap_err().to_string().contains("mode: auto"));
    }

    #[test]
    fn libraries_are_what_the_linker_tells() {
        let told = "\tlinux-vdso.so.1 (0x1)\n\tlibz.so.1 => /lib/libz.so.1 (0x2)\n\t/lib64/ld.so (0x3)\n";
        assert_eq!(absolute_paths(told).into_iter().collect::<Vec<_>>(), ["/lib/libz.so.1", "/lib64/ld.so"]);
        assert!(absolute_paths("\tnot a dynamic executable\n").is_empty());
    }

    #[test]
    fn a_missing_kernel_says_what_puts_one_there() {
        let error = format!("{:#}", Kernel::find(Path::new("/nonexistent")).unwrap_err());
        assert!(error.contains("fetch-kernel"), "{error}");
    }
}
