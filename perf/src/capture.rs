//! Captures: what went over a link, seen from outside the gateway by tcpdump.
//!
//! Owns one tcpdump and its file. AF_XDP sockets take frames before a tap on the same device sees them, so captures
//! belong on the other end: in namespace `client`, or on the bridge.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::process::{self, Daemon, in_namespace};

/// Longest wait for tcpdump to start, to end, and to read a file.
const LIMIT: Duration = Duration::from_secs(20);

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
}

impl Capture {
    /// Starts tcpdump on `device` of `namespace`, for frames that match `filter`, and waits until it listens.
    ///
    /// # Errors
    /// When tcpdump is missing or does not start.
    pub fn start(state_dir: &Path, namespace: &str, device: &str, name: &str, filter: &str) -> Result<Capture> {
        let file = state_dir.join(format!("{name}.pcap"));
        let mut command = in_namespace(namespace, "tcpdump");
        // Immediate mode: nothing sits in a kernel buffer when the capture ends.
        command.args(["-i", device, "-n", "-U", "--immediate-mode", "-s", "192", "-B", "8192", "-Z", "root", "-w"]);
        command.arg(&file).arg(filter);
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
        Ok(Captured { namespace: self.namespace.clone(), file: self.file.clone() })
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
