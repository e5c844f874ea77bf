//! Captures: what went over a link, seen from outside the gateway by tcpdump.
//!
//! Owns one tcpdump and its file. AF_XDP sockets take frames before a tap on the same device sees them, so captures
//! belong on the other end: in namespace `client`, or on the bridge.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tidegate_io::pcap::PcapPort;
use tidegate_io::{BATCH_MAX, Batch, HugePages, Pool, Port};

use crate::process::{self, Daemon, in_namespace};

/// Longest wait for tcpdump to start, to end, and to read a file.
const LIMIT: Duration = Duration::from_secs(20);

/// Bytes kept of each frame where headers will do.
const HEADERS_BYTES: u32 = 192;
/// Bytes kept where every byte counts; no frame of the lab is longer.
const FRAME_BYTES: u32 = 2048;

/// A capture under way.
#[derive(Debug)]
pub struct Capture {
    daemon: Daemon,
    namespace: String,
    file: PathBuf,
}

/// A capture that is over.
#[derive(Debug)]
pub struct Captured {
    namespace: String,
    file: PathBuf,
    lost: bool,
}

impl Capture {
    /// Starts tcpdump on `device` of `namespace`, for frames that match `filter`, and waits until it listens.
    ///
    /// # Errors
    /// When tcpdump is missing or does not start.
    pub fn start(state_dir: &Path, namespace: &str, device: &str, name: &str, filter: &str) -> Result<Capture> {
        Self::start_with(state_dir, namespace, device, name, filter, HEADERS_BYTES)
    }

    /// The same with every byte of each frame.
    ///
    /// # Errors
    /// As [`Capture::start`].
    pub fn start_whole(state_dir: &Path, namespace: &str, device: &str, name: &str, filter: &str) -> Result<Capture> {
        Self::start_with(state_dir, namespace, device, name, filter, FRAME_BYTES)
    }

    fn start_with(
        state_dir: &Path,
        namespace: &str,
        device: &str,
        name: &str,
        filter: &str,
        bytes: u32,
    ) -> Result<Capture> {
        let file = state_dir.join(format!("{name}.pcap"));
        let mut command = in_namespace(namespace, "tcpdump");
        // Immediate mode: nothing sits in a kernel buffer when the capture ends.
        command.args(["-i", device, "-n", "-U", "--immediate-mode", "-B", "8192", "-Z", "root"]);
        command.args(["-s", &bytes.to_string(), "-w"]).arg(&file).arg(filter);
        let log = state_dir.join(format!("{name}.tcpdump.log"));
        let mut daemon = Daemon::start("tcpdump", command, &log)?;
        daemon.wait_for_line("listening on", LIMIT).context("capturing needs tcpdump (Debian package tcpdump)")?;
        Ok(Capture { daemon, namespace: namespace.into(), file })
    }

    /// Ends the capture.
    ///
    /// # Errors
    /// When tcpdump ended before.
    pub fn finish(mut self) -> Result<Captured> {
        self.daemon.signal(Signal::INT)?;
        self.daemon.wait_for_end(LIMIT)?;
        let lost = !self.daemon.log().lines().any(|line| line.trim() == "0 packets dropped by kernel");
        Ok(Captured { namespace: self.namespace.clone(), file: self.file.clone(), lost })
    }
}

impl Captured {
    /// The frames that match a filter, one line each, which begins with the time in seconds since the epoch.
    ///
    /// # Errors
    /// When tcpdump refuses the filter.
    pub fn lines(&self, filter: &str) -> Result<Vec<String>> {
        let mut command = in_namespace(&self.namespace, "tcpdump");
        command.args(["-n", "-e", "-tt", "-r"]).arg(&self.file).arg(filter);
        let text = process::run(command, "", LIMIT)?.success("reading a capture")?;
        Ok(text.lines().map(String::from).collect())
    }

    /// The frames, whole if they were captured whole.
    ///
    /// # Errors
    /// When the capture missed some, or cannot be read.
    pub fn frames(&self) -> Result<Vec<Vec<u8>>> {
        if self.lost {
            bail!("{}: tcpdump does not say that it missed nothing", self.file.display());
        }
        let pool = Pool::new(4 * u32::try_from(BATCH_MAX)?, FRAME_BYTES, HugePages::Off)?;
        let file = std::fs::File::open(&self.file).with_context(|| format!("{}", self.file.display()))?;
        let mut port = PcapPort::new(&pool, &self.namespace, Some(Box::new(file)), None)?;
        let (mut magazine, mut batch, mut frames) = (pool.magazine(), Batch::new(), Vec::new());
        while port.rx(&mut batch) > 0 {
            for frame in batch.drain(..) {
                frames.push(frame.bytes().to_vec());
                magazine.give(frame);
            }
        }
        match port.take_failure() {
            Some(error) => Err(error).with_context(|| format!("{}", self.file.display())),
            None => Ok(frames),
        }
    }

    /// Number of frames seen between two moments.
    ///
    /// # Errors
    /// When the capture cannot be read.
    pub fn count_between(&self, from: SystemTime, to: SystemTime) -> Result<u64> {
        let seconds = |moment: SystemTime| moment.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let within = seconds(from)..seconds(to);
        let lines = self.lines("")?;
        let times = lines.iter().filter_map(|line| line.split(' ').next()?.parse::<f64>().ok());
        Ok(times.filter(|time| within.contains(time)).count() as u64)
    }
}

/// Filter: TCP segments with RST, both families.
pub const RST: &str = "(tcp[tcpflags] & tcp-rst != 0) or (ip6[6] == 6 and ip6[53] & 4 != 0)";
/// Filter: anything but ARP and neighbour discovery (ICMPv6 types 133 to 137) and multicast listener reports.
pub const NOT_NEIGHBOUR_DISCOVERY: &str =
    "not arp and not (ip6[6] == 58 and ip6[40] >= 133 and ip6[40] <= 137) and not ip6 multicast";
