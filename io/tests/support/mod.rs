//! Network namespaces, packet sockets and packets for the tests that need a kernel.
// Each test program uses a part of it; a test may unwrap, in a function of its own too.
#![allow(dead_code, clippy::unwrap_used)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use tidegate_io::afxdp::{InterfaceConfig, OpenConfig};
use tidegate_io::{Batch, HugePages, Magazine, Port};

/// Set inside the namespaces to the name of the test that runs there.
const INSIDE: &str = "TIDEGATE_TEST_INSIDE";

/// Runs `body` as root in mount, network and process namespaces of its own, which end with it.
///
/// The test program calls itself once more for that. Without root the test fails, unless somebody has set
/// `TIDEGATE_UNPRIVILEGED=1` on purpose.
pub fn isolated(name: &str, body: impl FnOnce()) {
    if std::env::var(INSIDE).as_deref() == Ok(name) {
        // No duplicate address detection, no router solicitation: only packets that a test sends.
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        run("ip link set lo up");
        return body();
    }
    // SAFETY: no arguments, cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        assert_eq!(std::env::var("TIDEGATE_UNPRIVILEGED").as_deref(), Ok("1"), "kernel tests need root");
        eprintln!("{name}: not run without root");
        return;
    }
    let output = Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, name)
        .stdin(Stdio::null())
        .output()
        .expect("unshare (util-linux)");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "inside the namespaces:\n{text}");
}

/// Runs a command line and returns what it printed; it has to succeed.
pub fn run(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A veth pair with `queues` queues at either end, up, without checksum offload.
pub fn veth(ours: &str, theirs: &str, queues: u32) {
    let q = format!("numrxqueues {queues} numtxqueues {queues}");
    run(&format!("ip link add {ours} {q} type veth peer name {theirs} {q}"));
    for end in [ours, theirs] {
        run(&format!("ip link set {end} up; ethtool -K {end} tx off >/dev/null"));
    }
}

/// The configuration for a test: small, and plain pages.
pub fn config(interfaces: &[&str]) -> OpenConfig {
    let interfaces = interfaces.iter().map(|name| InterfaceConfig { name: (*name).to_owned(), queues: None }).collect();
    OpenConfig { interfaces, frames: 4096, huge: HugePages::Off, ..OpenConfig::default() }
}

/// Repeats `step` until it is true; fails after ten seconds.
pub fn until(what: &str, mut step: impl FnMut() -> bool) {
    let start = Instant::now();
    while !step() {
        assert!(start.elapsed() < Duration::from_secs(10), "never happened: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// One turn of a worker that sends what it received on one port out of another; returns how many packets.
pub fn forward(from: &mut impl Port, to: &mut impl Port, magazine: &mut Magazine) -> usize {
    let mut batch = Batch::new();
    let count = from.rx(&mut batch);
    to.tx(&mut batch);
    batch.drain(..).for_each(|frame| magazine.give(frame));
    from.recycle(magazine);
    to.recycle(magazine);
    from.kick();
    to.kick();
    count
}

/// A raw socket on a device: sends and receives whole Ethernet frames.
pub struct Wire {
    socket: OwnedFd,
}

impl Wire {
    /// Opens one on `device`.
    pub fn open(device: &str) -> Wire {
        let all = libc::c_int::from(u16::try_from(libc::ETH_P_ALL).unwrap().to_be());
        // SAFETY: no pointers are passed.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, all) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: just opened.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let name = CString::new(device).unwrap();
        // SAFETY: zeroes are a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
        address.sll_protocol = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
        // SAFETY: `name` ends in zero.
        address.sll_ifindex = i32::try_from(unsafe { libc::if_nametoindex(name.as_ptr()) }).unwrap();
        let bytes = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap();
        // SAFETY: `address` is a valid sockaddr_ll of `bytes` bytes.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), std::ptr::from_ref(&address).cast(), bytes) };
        assert_eq!(bound, 0, "{}", io::Error::last_os_error());
        let room: libc::c_int = 64 << 20;
        let bytes = u32::try_from(size_of::<libc::c_int>()).unwrap();
        let value = std::ptr::from_ref(&room).cast();
        // SAFETY: the value is an int of the length given.
        let set = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, value, bytes) };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
        Wire { socket }
    }

    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) {
        // SAFETY: the buffer is valid for its length.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(usize::try_from(sent).ok(), Some(frame.len()), "{}", io::Error::last_os_error());
    }

    /// The next frame that came in by the device (not those that were sent on it), if any.
    pub fn receive(&self) -> Option<Vec<u8>> {
        loop {
            let mut frame = vec![0; 65536];
            // SAFETY: zeroes are a valid sockaddr_ll.
            let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            let mut from_bytes = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap();
            // SAFETY: both buffers are valid for the lengths given.
            let length = unsafe {
                libc::recvfrom(
                    self.socket.as_raw_fd(),
                    frame.as_mut_ptr().cast(),
                    frame.len(),
                    0,
                    std::ptr::from_mut(&mut from).cast(),
                    &raw mut from_bytes,
                )
            };
            frame.truncate(usize::try_from(length).ok()?);
            if from.sll_pkttype != libc::PACKET_OUTGOING {
                return Some(frame);
            }
        }
    }

    /// Everything that came in so far.
    pub fn drain(&self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.receive()).collect()
    }
}

/// Another network namespace, held open by a process in it.
pub struct Namespace {
    holder: Child,
}

impl Namespace {
    /// Makes one.
    pub fn new() -> Namespace {
        let holder = Command::new("unshare").args(["--net", "sleep", "infinity"]).spawn().unwrap();
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let path = format!("/proc/{}/ns/net", holder.id());
        until("a namespace", || std::fs::read_link(&path).is_ok_and(|link| link != own));
        Namespace { holder }
    }

    /// Moves a device there.
    pub fn take(&self, device: &str) {
        run(&format!("ip link set {device} netns {}", self.holder.id()));
    }

    /// Runs a command line there.
    pub fn run(&self, line: &str) -> String {
        run(&format!("nsenter --net=/proc/{}/ns/net sh -ec '{line}'", self.holder.id()))
    }

    /// Runs a function there, on a thread of its own.
    pub fn within<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.holder.id())).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                // SAFETY: only this thread changes its namespace, and it ends with the closure.
                let entered = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
                assert_eq!(entered, 0, "{}", io::Error::last_os_error());
                body()
            });
            thread.join().unwrap()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x10];
pub const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x20];

/// A UDP packet with `payload` between two addresses of one family.
pub fn udp(from: &str, to: &str, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(CLIENT_MAC, GATEWAY_MAC);
    let ip = match (from.parse().unwrap(), to.parse().unwrap()) {
        (std::net::IpAddr::V4(from), std::net::IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (std::net::IpAddr::V6(from), std::net::IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("two families"),
    };
    let builder = ip.udp(ports.0, ports.1);
    let mut packet = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut packet, payload).unwrap();
    packet
}

/// The packet with VLAN tags put in (outermost first).
pub fn tagged(packet: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let (addresses, rest) = packet.split_at(12);
    let tags = tags.iter().flat_map(|(kind, id)| [kind.to_be_bytes(), id.to_be_bytes()].concat());
    addresses.iter().copied().chain(tags).chain(rest.iter().copied()).collect()
}
