//! The enclosure: private mount, network and process namespaces in which a lab lives and with which it ends.
//!
//! A lab makes a dozen network namespaces, some mounts, BPF objects and processes. All of them hang on one process, the
//! first of its own process namespace. When that one ends, for whatever reason and by whatever signal, the kernel ends
//! the others and frees what they held; nothing has to be cleaned up, so nothing can be forgotten, and two labs can not
//! meet. The program therefore starts itself a second time:
//!
//! ```text
//! tidegate-lab (outside)  waits, passes SIGINT and SIGTERM on
//!   └─ setpriv --pdeathsig  dies with the one above
//!      = unshare --kill-child
//!        └─ tidegate-lab (inside), process 1: private /run, holds everything
//! ```
//!
//! Everything the lab writes is below a memory file system over `/run` that only the inside sees.

use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, mount, mount_bind};
use rustix::process::{Pid, Signal, kill_process};

/// Set inside; carries the process id of the outer program, for the commands shown to people.
const INSIDE: &str = "TIDEGATE_LAB_OUTSIDE_PID";
/// Set inside; carries the descriptor of `/proc` as it is outside.
const PROCESSES: &str = "TIDEGATE_LAB_OUTSIDE_PROC";
/// How long the inside may take to end by itself before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// Where the lab keeps its files; exists only inside.
pub const STATE_DIR: &str = "/run/tidegate-lab";
/// A BPF file system of the lab's own, bound over `/sys/fs/bpf` of the gateway's processes and of who comes to look.
pub const BPF_DIR: &str = "/run/tidegate-lab/bpf";
/// Where programs expect it.
const BPF_PLACE: &str = "/sys/fs/bpf";

/// True inside.
pub fn is_inside() -> bool {
    std::process::id() == 1 && std::env::var_os(INSIDE).is_some()
}

/// Process id of the outer program, as text.
pub fn outside_pid() -> String {
    std::env::var(INSIDE).unwrap_or_default()
}

/// Inside: `/proc` as the outer program sees it.
pub fn outside_processes() -> Option<PathBuf> {
    let descriptor: u32 = std::env::var(PROCESSES).ok()?.parse().ok()?;
    is_inside().then(|| PathBuf::from(format!("/proc/self/fd/{descriptor}")))
}

/// Path of this program, as the inside can start it again.
///
/// # Errors
/// When the system cannot tell.
pub fn this_program() -> Result<PathBuf> {
    std::env::current_exe().context("finding the path of this program")
}

/// Runs this program again inside, with the same arguments, and returns its exit code.
///
/// # Errors
/// When the namespaces cannot be made (root is needed).
pub fn run_inside() -> Result<u8> {
    if !rustix::process::geteuid().is_root() {
        bail!("the lab makes network namespaces and AF_XDP sockets: run it as root");
    }
    let program = this_program()?;
    if program.starts_with("/run") {
        bail!("{} lies below /run, which the lab covers with its own: copy the program elsewhere", program.display());
    }
    let stop = stop_flag()?;
    // The inside sees its own processes only; threads of the kernel that work for it are not among them.
    let processes = std::fs::File::open("/proc").context("/proc")?;
    rustix::io::fcntl_setfd(&processes, rustix::io::FdFlags::empty())?;
    let child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child=SIGKILL"])
        .args(["--mount-proc", "--"])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, std::process::id().to_string())
        .env(PROCESSES, processes.as_raw_fd().to_string())
        .spawn()
        .context("starting setpriv and unshare (Debian package util-linux)")?;
    wait_outside(child, &stop)
}

fn wait_outside(mut child: Child, stop: &AtomicBool) -> Result<u8> {
    let mut stopped_at: Option<Instant> = None;
    loop {
        if let Some(status) = child.try_wait()? {
            let signal = status.signal().and_then(|signal| u8::try_from(signal).ok());
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            return Ok(code.or(signal.map(|signal| signal.saturating_add(128))).unwrap_or(1));
        }
        match stopped_at {
            None if stop.load(Ordering::Relaxed) => {
                stopped_at = Some(Instant::now());
                if let Some(inside) = inside_pid(child.id()) {
                    // It may have ended by itself in this moment.
                    let _ = kill_process(inside, Signal::TERM);
                }
            }
            Some(at) if at.elapsed() > GRACE => child.kill()?,
            _ => {}
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The one child of `unshare`: the inside, by its number outside.
fn inside_pid(unshare: u32) -> Option<Pid> {
    let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).ok()?;
    Pid::from_raw(children.split_whitespace().next()?.parse().ok()?)
}

/// A flag that SIGINT, SIGTERM and SIGHUP raise.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn stop_flag() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&flag))?;
    }
    Ok(flag)
}

/// Inside, once: covers `/run` with a memory file system and makes the lab's directories.
///
/// # Errors
/// When called outside, or a mount fails.
pub fn furnish() -> Result<()> {
    if !is_inside() {
        bail!("the lab's mounts belong inside its own namespaces");
    }
    mount("tmpfs", "/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"mode=0755").context("tmpfs on /run")?;
    std::fs::create_dir_all("/run/netns")?;
    std::fs::create_dir_all(BPF_DIR)?;
    mount("bpf", BPF_DIR, "bpf", MountFlags::empty(), c"mode=0700").context("BPF file system")?;
    if Path::new(BPF_PLACE).is_dir() {
        mount_bind(BPF_DIR, BPF_PLACE).context("BPF file system where programs expect one")?;
    }
    Ok(())
}
