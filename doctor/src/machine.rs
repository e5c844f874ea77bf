//! Where facts come from: files below a root, the kernel's answers about devices, other programs' own reports.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use tidegate_dataplane::kernel::once::{self, Forwarding, Rule};
use tidegate_dataplane::kernel::{KernelFacts, Layout};
use tidegate_io::netdev::NetDevice;

/// Longest wait for a program of this machine that tells about itself.
const PATIENCE: Duration = Duration::from_millis(500);
/// Longest file that is read, bytes: a list of problems of a large cluster has some megabytes.
const TEXT_BYTES_MAX: u64 = 64 << 20;
/// Longest wait for the rules of nf_tables, and most bytes of them: kube-proxy's for thousands of Services take seconds.
const RULES_TIME_MAX: Duration = Duration::from_secs(20);
const RULES_BYTES_MAX: u64 = 256 << 20;
/// Port at which kube-proxy tells its mode (its `metricsBindAddress`, by default on loopback alone).
const KUBE_PROXY_PORT: u16 = 10249;
/// Addresses that are nobody's neighbour, for the question which route leads out: the AS112 project's (RFC 7535).
const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(192, 31, 196, 1);
const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0x4, 0x112, 0, 0, 0, 0, 1);
/// Discard (RFC 863); nothing is sent there.
const OUTSIDE_PORT: u16 = 9;
/// Longest answer of kube-proxy that is read, bytes.
const ANSWER_BYTES_MAX: u64 = 4096;

/// A machine to look at.
#[derive(Debug)]
pub struct Machine {
    root: PathBuf,
}

impl Default for Machine {
    fn default() -> Self {
        Machine { root: "/".into() }
    }
}

/// What a command prints; an error if it fails, or has not ended in time or after so many bytes: it is ended then.
fn printed(mut command: Command, time_max: Duration, bytes_max: u64) -> io::Result<String> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let until = Instant::now() + time_max;
    let (told, heard) = channel();
    let collect = |index: usize, stream: Option<Box<dyn Read + Send>>| {
        let told = told.clone();
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let read = stream.map(|stream| stream.take(bytes_max + 1).read_to_end(&mut bytes));
            // Whoever waits no longer is no trouble.
            drop(told.send((index, read.transpose().map(|_| bytes))));
        });
    };
    let (out, err) = (child.stdout.take(), child.stderr.take());
    collect(0, out.map(|stream| Box::new(stream) as _));
    collect(1, err.map(|stream| Box::new(stream) as _));
    let mut texts = [String::new(), String::new()];
    let trouble =
        (0..texts.len()).find_map(|_| match heard.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok((_, Ok(bytes))) if bytes.len() as u64 > bytes_max => {
                Some(io::Error::other(format!("it prints more than {bytes_max} bytes")))
            }
            Ok((index, Ok(bytes))) => {
                texts[index] = String::from_utf8_lossy(&bytes).into_owned();
                None
            }
            Ok((_, Err(error))) => Some(error),
            Err(_) => Some(io::Error::other(format!("it has not ended in {} s", time_max.as_secs()))),
        });
    if trouble.is_some() {
        // It may have ended by itself.
        drop(child.kill());
    }
    let status = child.wait()?;
    let [out, err] = texts;
    match trouble {
        Some(trouble) => Err(trouble),
        None if !status.success() => Err(io::Error::other(err.trim().lines().collect::<Vec<_>>().join("; "))),
        None => Ok(out),
    }
}

impl Machine {
    /// One whose files are below `root`: `root/proc/meminfo` and so on.
    pub fn below(root: impl Into<PathBuf>) -> Machine {
        Machine { root: root.into() }
    }

    /// A file without the white space around its text; none if it cannot be read.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        self.read(path).ok()?
    }

    /// The same; none if it is not there.
    ///
    /// # Errors
    /// When it cannot be read, is longer than [`TEXT_BYTES_MAX`], or is none that ends, such as a pipe.
    pub(crate) fn read(&self, path: &str) -> io::Result<Option<String>> {
        let path = self.root.join(path);
        match fs::metadata(&path) {
            Ok(found) if found.is_file() => {}
            Ok(_) => return Err(io::Error::other("is no ordinary file")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
        let mut text = String::new();
        if fs::File::open(&path)?.take(TEXT_BYTES_MAX + 1).read_to_string(&mut text)? as u64 > TEXT_BYTES_MAX {
            return Err(io::Error::other(format!("has more than {TEXT_BYTES_MAX} bytes")));
        }
        Ok(Some(text.trim().to_owned()))
    }

    /// Where a file is whose path starts at the root.
    pub(crate) fn place(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// A file that holds one number.
    pub(crate) fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    /// A sysctl of the network namespace, such as `ipv4/conf/all/rp_filter`.
    pub(crate) fn network_setting(&self, path: &str) -> Option<u64> {
        self.number(&format!("proc/sys/net/{path}"))
    }

    /// The number in a line `name: number …` of a file.
    pub(crate) fn field(&self, path: &str, name: &str) -> Option<u64> {
        let text = self.text(path)?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse().ok()
    }

    /// Names in a directory, sorted; none if there is no such directory.
    pub(crate) fn names(&self, path: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.root.join(path)) else { return Vec::new() };
        let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// Devices of this network namespace (proc_pid_net(5), `dev`).
    pub(crate) fn devices(&self) -> Vec<String> {
        let text = self.text("proc/self/net/dev").unwrap_or_default();
        text.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
    }

    /// What the kernel says about a device.
    pub(crate) fn device(&self, name: &str) -> io::Result<NetDevice> {
        NetDevice::query(name)
    }

    /// What the kernel says about links, addresses, routes and neighbours.
    pub(crate) fn network(&self) -> io::Result<KernelFacts> {
        once::facts()
    }

    /// Which VTEPs its VXLAN devices send to.
    pub(crate) fn forwarding(&self) -> io::Result<Vec<Forwarding>> {
        once::forwarding()
    }

    /// Rules of policy routing that lead into tables which nobody here follows.
    pub(crate) fn foreign_rules(&self) -> io::Result<Vec<Rule>> {
        once::foreign_rules()
    }

    /// Name of the device by which this machine's own packets to `address` leave; none if no route leads there.
    pub(crate) fn device_toward(&self, address: IpAddr, layout: &Layout) -> Option<String> {
        layout.owner(self.source_toward(address)?).map(str::to_owned)
    }

    /// The rules of nf_tables, as nft(8) prints them; an error if it is not there or may not look.
    pub(crate) fn rules(&self) -> io::Result<String> {
        let mut nft = Command::new("nft");
        nft.args(["--stateless", "list", "ruleset"]);
        printed(nft, RULES_TIME_MAX, RULES_BYTES_MAX)
    }

    /// The address that this machine's own packets to the outside of a family have; none if no route leads there.
    pub(crate) fn own_address(&self, is_v4: bool) -> Option<IpAddr> {
        self.source_toward(if is_v4 { OUTSIDE_V4.into() } else { OUTSIDE_V6.into() })
    }

    /// The address that this machine's own packets to `address` have. Nothing is sent: a datagram socket learns it when it is
    /// given a destination.
    fn source_toward(&self, address: IpAddr) -> Option<IpAddr> {
        let any: IpAddr = match address {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect((address, OUTSIDE_PORT)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    }

    /// The mode that kube-proxy says it runs in; none if nobody answers.
    pub(crate) fn kube_proxy_mode(&self) -> Option<String> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, KUBE_PROXY_PORT));
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.set_write_timeout(Some(PATIENCE)).ok()?;
        stream.write_all(b"GET /proxyMode HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).ok()?;
        let mode = answer.split_once("\r\n\r\n")?.1.trim();
        ["iptables", "ipvs", "nftables"].contains(&mode).then(|| mode.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_without_an_end_is_ended() {
        let within = |script, time_max| printed(shell(script), time_max, 1000).map_err(|error| error.to_string());
        let long = Duration::from_secs(60);
        assert_eq!(within("echo one; echo two >&2", long), Ok("one\n".into()));
        assert_eq!(
            within("echo no rights >&2; echo none at all >&2; exit 1", long),
            Err("no rights; none at all".into())
        );
        assert_eq!(within("exec yes", long), Err("it prints more than 1000 bytes".into()));
        let begun = Instant::now();
        assert_eq!(within("exec sleep 600", Duration::from_secs(1)), Err("it has not ended in 1 s".into()));
        assert!(begun.elapsed() < long);
    }

    #[test]
    fn what_is_no_file_or_has_no_end_is_not_read() {
        let root = tempfile::tempdir().unwrap();
        let machine = Machine::below(root.path());
        assert_eq!(machine.read("status").unwrap(), None);
        assert!(Command::new("mkfifo").arg(root.path().join("status")).status().unwrap().success());
        assert!(machine.read("status").unwrap_err().to_string().contains("no ordinary file"));
        let long = fs::File::create(root.path().join("long")).unwrap();
        long.set_len(TEXT_BYTES_MAX + 1).unwrap();
        assert!(machine.read("long").unwrap_err().to_string().contains("more than"));
        assert_eq!(machine.text("long"), None);
    }
}
