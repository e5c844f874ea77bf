//! A worker, two gateways and the world outside, in namespaces, by the kernel alone.
//!
//! ```text
//!                 192.0.2.1 ┌─ gw1 ─┐ 198.51.100.1
//!          ┌────────────────┘       └──────────┐
//!  out ────┤      192.0.2.65 ┌─ gw2 ─┐ .2      ├── fabric ── .11 w ── p1 10.244.1.11
//!  .100/.101 └───────────────┘       └─────────┤                 └── p2 10.244.1.12
//!          └───────────── .254 ────────────────┘
//! ```
//!
//! Gateways are plain routers here: VXLAN as flannel sets it up, and a masquerade towards `out`. The worker's own way out
//! leads straight to `out`, so that whatever does not go by a gateway is seen there with its address.
// Each test uses a part of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Protocol, Socket, Type};

/// Set inside the namespaces to the name of the test that runs there.
const INSIDE: &str = "TIDEGATE_TEST_INSIDE";
/// Where the tests keep their files; a memory file system that only the inside sees.
pub const HOME: &str = "/run/node";
/// Longest wait for an answer that should come.
const ANSWER: Duration = Duration::from_secs(3);
/// Longest wait for one that should not.
const SILENCE: Duration = Duration::from_millis(300);
/// Port of the servers.
pub const PORT: u16 = 7000;

/// Both families, as the digit of names.
pub const FAMILIES: [u8; 2] = [4, 6];

/// Runs `body` as root in mount, network and process namespaces of its own, which end with it.
///
/// The test program calls itself once more for that. Without root the test fails, unless somebody has set
/// `TIDEGATE_UNPRIVILEGED=1` on purpose.
pub fn isolated(name: &str, body: impl FnOnce()) {
    if std::env::var(INSIDE).as_deref() == Ok(name) {
        run("mount -t tmpfs tmpfs /run; mkdir -p /run/netns /run/lock /run/node; ip link set lo up");
        return body();
    }
    if run("id -u").trim() != "0" {
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

/// The same in a namespace.
pub fn at(namespace: &str, line: &str) -> String {
    let output = Command::new("ip").args(["netns", "exec", namespace, "sh", "-ec", line]).output().unwrap();
    assert!(output.status.success(), "{namespace}: {line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Loads rules of nftables in a namespace.
pub fn nft(namespace: &str, rules: &str) {
    std::fs::write(format!("{HOME}/rules"), rules).unwrap();
    at(namespace, &format!("nft -f {HOME}/rules"));
}

/// Runs a function in a namespace, on a thread of its own.
pub fn within<T: Send>(namespace: &str, body: impl FnOnce() -> T + Send) -> T {
    let file = File::open(format!("/run/netns/{namespace}")).unwrap();
    std::thread::scope(|scope| {
        scope
            .spawn(move || {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                body()
            })
            .join()
            .unwrap()
    })
}

/// Repeats `step` until it is true; fails after ten seconds with what `step` said last.
pub fn until(what: &str, mut step: impl FnMut() -> Result<(), String>) {
    let start = Instant::now();
    while let Err(said) = step() {
        assert!(start.elapsed() < Duration::from_secs(10), "never happened: {what}: {said}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Addresses of the map, by family.
pub fn pick(family: u8, v4: &str, v6: &str) -> IpAddr {
    (if family == 4 { v4 } else { v6 }).parse().unwrap()
}

/// The address of pod `number` (11, 12).
pub fn pod(family: u8, number: u8) -> IpAddr {
    pick(family, &format!("10.244.1.{number}"), &format!("fd00:10:244:1::{number}"))
}

/// The address `number` of the servers outside (100, 101).
pub fn server(family: u8, number: u8) -> IpAddr {
    pick(family, &format!("203.0.113.{number}"), &format!("2001:db8:f::{number}"))
}

/// What the world outside sees of pods that leave by gateway `number` (1, 2).
pub fn gateway(family: u8, number: u8) -> IpAddr {
    let host = if number == 1 { 1 } else { 65 };
    pick(family, &format!("192.0.2.{host}"), &format!("2001:db8:1:{number}::1"))
}

/// The worker's own address.
pub fn node(family: u8) -> IpAddr {
    pick(family, "198.51.100.11", "2001:db8:2::11")
}

fn vtep(number: u8, family: u8) -> String {
    format!("0a:58:0a:f4:{number:02x}:{family:02x}")
}

fn overlay(number: u8, family: u8) -> IpAddr {
    pick(family, &format!("10.244.{number}.0"), &format!("fd00:10:244:{number}::"))
}

/// Number of a gateway in overlay addresses.
fn overlay_number(gateway: u8) -> u8 {
    10 - gateway
}

/// Builds the map.
pub fn build() {
    for namespace in ["out", "gw1", "gw2", "fab", "w", "p1", "p2"] {
        run(&format!("ip netns add {namespace}"));
        at(
            namespace,
            "for d in /proc/sys/net/ipv6/conf/*; do echo 0 > $d/accept_dad; echo 0 > $d/router_solicitations; \
             echo 0 > $d/accept_ra; done; echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter; \
             echo 0 > /proc/sys/net/ipv4/conf/default/rp_filter; ip link set lo up; \
             echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
        );
    }
    let mut links = vec![("out", "back", "fab", "out"), ("w", "eth0", "fab", "w")];
    links.extend([("out", "wan1", "gw1", "wan0"), ("out", "wan2", "gw2", "wan0")]);
    links.extend([("gw1", "lan0", "fab", "gw1"), ("gw2", "lan0", "fab", "gw2")]);
    links.extend([("p1", "eth0", "w", "veth-p1"), ("p2", "eth0", "w", "veth-p2")]);
    for (one, name, other, peer) in links {
        run(&format!("ip link add {name} netns {one} type veth peer name {peer} netns {other}"));
        at(one, &format!("ip link set {name} up; ethtool -K {name} tx off >/dev/null"));
        at(other, &format!("ip link set {peer} up; ethtool -K {peer} tx off >/dev/null"));
    }
    at(
        "fab",
        "ip link add br0 type bridge; ip link set br0 up; for d in out w gw1 gw2; do ip link set $d master br0; done",
    );
    outside();
    for number in [1, 2] {
        gateway_node(number);
    }
    worker();
}

fn outside() {
    at(
        "out",
        "ip addr add 198.51.100.254/24 dev back; ip addr add 2001:db8:2::254/64 dev back nodad
         ip addr add 192.0.2.10/26 dev wan1; ip addr add 2001:db8:1:1::10/64 dev wan1 nodad
         ip addr add 192.0.2.74/26 dev wan2; ip addr add 2001:db8:1:2::10/64 dev wan2 nodad
         for n in 100 101; do ip addr add 203.0.113.$n/32 dev lo; ip addr add 2001:db8:f::$n/128 dev lo nodad; done
         ip route add 203.0.113.1 via 192.0.2.1; ip route add 203.0.113.2 via 192.0.2.65
         ip route add 2001:db8:f::1 via 2001:db8:1:1::1; ip route add 2001:db8:f::2 via 2001:db8:1:2::1
         ip route add 10.244.0.0/16 via 198.51.100.11; ip route add fd00:10:244::/48 via 2001:db8:2::11
         echo '0 2147483647' > /proc/sys/net/ipv4/ping_group_range",
    );
    watch("out", "");
}

/// Remembers who sends to the servers and to the workers' router: `SOURCE . DESTINATION . PROTOCOL`.
fn watch(namespace: &str, device: &str) {
    nft(
        namespace,
        &format!(
            "table inet watch {{
             set seen4 {{ type ipv4_addr . ipv4_addr . inet_proto; size 65535; flags dynamic; }}
             set seen6 {{ type ipv6_addr . ipv6_addr . inet_proto; size 65535; flags dynamic; }}
             chain seen {{ type filter hook prerouting priority -350;
             {device} ip daddr {{ 203.0.113.96/28, 198.51.100.254 }} update @seen4 {{ ip saddr . ip daddr . meta l4proto }}
             {device} ip6 daddr {{ 2001:db8:f::100, 2001:db8:f::101, 2001:db8:2::254 }} update @seen6 {{ ip6 saddr . ip6 daddr . meta l4proto }}
             }}\n}}\n"
        ),
    );
}

/// Sources that were seen in a namespace on their way to server `number`, both families, each once.
pub fn seen(namespace: &str, number: u8) -> Vec<IpAddr> {
    seen_to(namespace, FAMILIES.map(|family| server(family, number)))
}

/// Sources that were seen in a namespace on their way to one of two addresses.
pub fn seen_to(namespace: &str, destinations: [IpAddr; 2]) -> Vec<IpAddr> {
    let mut sources = Vec::new();
    for family in FAMILIES {
        let text = at(namespace, &format!("nft -j list set inet watch seen{family}"));
        let listing: serde_json::Value = serde_json::from_str(&text).unwrap();
        for element in listing["nftables"][1]["set"]["elem"].as_array().into_iter().flatten() {
            let element = if element["elem"].is_object() { &element["elem"]["val"] } else { element };
            let address = |place: usize| element["concat"][place].as_str().unwrap().parse::<IpAddr>().unwrap();
            if destinations.contains(&address(1)) && !sources.contains(&address(0)) {
                sources.push(address(0));
            }
        }
    }
    sources
}

/// Forgets what was seen.
pub fn forget(namespace: &str) {
    at(namespace, "nft flush set inet watch seen4; nft flush set inet watch seen6");
}

fn vxlan(family: u8, number: u8, local: IpAddr, under: &str) -> String {
    let (device, length, mtu) = if family == 4 { ("flannel.1", 32, 1450) } else { ("flannel-v6.1", 128, 1430) };
    let mac = vtep(number, family);
    let nodad = if family == 4 { "" } else { "nodad" };
    format!(
        "ip link add {device} address {mac} mtu {mtu} type vxlan id 1 dev {under} local {local} dstport 8472 nolearning
         ip link set {device} up; ethtool -K {device} tx off > /dev/null
         ip addr add {}/{length} dev {device} {nodad}\n",
        overlay(number, family)
    )
}

/// What flannel programs for another node.
pub fn peer(family: u8, number: u8, underlay: IpAddr) -> String {
    let device = if family == 4 { "flannel.1" } else { "flannel-v6.1" };
    let (to, mac, length) = (overlay(number, family), vtep(number, family), if family == 4 { 24 } else { 64 });
    format!(
        "ip neigh replace {to} lladdr {mac} dev {device} nud permanent
         bridge fdb replace {mac} dev {device} dst {underlay} self permanent
         ip route replace {to}/{length} via {to} dev {device} onlink\n"
    )
}

fn gateway_node(number: u8) {
    let name = format!("gw{number}");
    let (host, out) = if number == 1 { (1, 10) } else { (65, 74) };
    let mut script = format!(
        "ip addr add 198.51.100.{number}/24 dev lan0; ip addr add 2001:db8:2::{number}/64 dev lan0 nodad
         ip addr add 192.0.2.{host}/26 dev wan0; ip addr add 2001:db8:1:{number}::1/64 dev wan0 nodad
         ip route add default via 192.0.2.{out}; ip route add default via 2001:db8:1:{number}::10\n"
    );
    for family in FAMILIES {
        let local = pick(family, &format!("198.51.100.{number}"), &format!("2001:db8:2::{number}"));
        script += &vxlan(family, overlay_number(number), local, "lan0");
        script += &peer(family, 1, node(family));
    }
    at(&name, &script);
    // Services with their source kept: 7001 leads to p1, 7002 to p2.
    nft(
        &name,
        &format!(
            "table inet gateway {{
             chain out {{ type nat hook postrouting priority srcnat;\n oifname wan0 masquerade\n}}
             chain in {{ type nat hook prerouting priority dstnat;
             ip daddr 203.0.113.{number} tcp dport 7001 dnat ip to 10.244.1.11:{PORT}
             ip6 daddr 2001:db8:f::{number} tcp dport 7001 dnat ip6 to [fd00:10:244:1::11]:{PORT}
             ip daddr 203.0.113.{number} tcp dport 7002 dnat ip to 10.244.1.12:{PORT}
             ip6 daddr 2001:db8:f::{number} tcp dport 7002 dnat ip6 to [fd00:10:244:1::12]:{PORT}
             }}\n}}\n"
        ),
    );
    watch(&name, "iifname { flannel.1, flannel-v6.1 }");
}

fn worker() {
    let mut script = "ip addr add 198.51.100.11/24 dev eth0; ip addr add 2001:db8:2::11/64 dev eth0 nodad
         ip route add default via 198.51.100.254; ip route add default via 2001:db8:2::254\n"
        .to_owned();
    for family in FAMILIES {
        script += &vxlan(family, 1, node(family), "eth0");
    }
    for number in [1, 2] {
        script += &format!(
            "ip addr add 169.254.1.1/32 dev veth-p{number}; ip route add 10.244.1.1{number} dev veth-p{number}
             ip addr add fe80::1/64 dev veth-p{number} nodad; ip route add fd00:10:244:1::1{number} dev veth-p{number}\n"
        );
        at(
            &format!("p{number}"),
            &format!(
                "ip link set eth0 mtu 1430
                 ip addr add 10.244.1.1{number}/32 dev eth0; ip addr add fd00:10:244:1::1{number}/128 dev eth0 nodad
                 ip route add default via 169.254.1.1 dev eth0 onlink; ip route add default via fe80::1 dev eth0
                 echo '0 2147483647' > /proc/sys/net/ipv4/ping_group_range"
            ),
        );
    }
    at("w", &script);
}

/// Who masquerades on the worker, with the rules of real ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masquerade {
    /// flannel with `EnableNFTables`.
    FlannelNftables,
    /// flannel with iptables, by `iptables-nft` or `iptables-legacy`.
    FlannelIptables(&'static str),
    /// Calico's `cali-nat-outgoing` in nftables mode, with the priority that its NAT chain has in a release.
    Calico(i32),
    /// The same with `natOutgoingAddress`.
    CalicoAddress,
}

/// All of them.
pub const MASQUERADES: [Masquerade; 6] = [
    Masquerade::FlannelNftables,
    Masquerade::FlannelIptables("iptables-nft"),
    Masquerade::FlannelIptables("iptables-legacy"),
    Masquerade::Calico(0),
    Masquerade::Calico(100),
    Masquerade::CalicoAddress,
];

const CIDRS: [(&str, &str, &str, &str); 2] = [
    ("ip", "10.244.0.0/16", "10.244.1.0/24", "224.0.0.0/4"),
    ("ip6", "fd00:10:244::/48", "fd00:10:244:1::/64", "ff00::/8"),
];

impl Masquerade {
    /// Puts the rules there.
    pub fn put(self) {
        match self {
            Masquerade::FlannelNftables => CIDRS.iter().for_each(|(ip, cluster, own, multicast)| {
                nft(
                    "w",
                    &format!(
                        "table {ip} flannel {{\nchain postrtg {{ type nat hook postrouting priority srcnat;
                         meta mark 0x4000 return
                         {ip} saddr {own} {ip} daddr {cluster} return\n{ip} saddr {cluster} {ip} daddr {own} return
                         {ip} saddr != {own} {ip} daddr {cluster} return
                         {ip} saddr {cluster} {ip} daddr != {multicast} masquerade fully-random
                         {ip} saddr != {cluster} {ip} daddr {cluster} masquerade fully-random\n}}\n}}\n"
                    ),
                );
            }),
            Masquerade::FlannelIptables(kind) => CIDRS.iter().for_each(|(ip, cluster, own, multicast)| {
                let tool = if *ip == "ip" { kind.to_owned() } else { kind.replace("iptables", "ip6tables") };
                let add = format!("{tool} -t nat -A FLANNEL-POSTRTG");
                at(
                    "w",
                    &format!(
                        "{tool} -t nat -N FLANNEL-POSTRTG; {tool} -t nat -A POSTROUTING -j FLANNEL-POSTRTG
                         {add} -m mark --mark 0x4000/0x4000 -j RETURN
                         {add} -s {own} -d {cluster} -j RETURN; {add} -s {cluster} -d {own} -j RETURN
                         {add} ! -s {cluster} -d {own} -j RETURN
                         {add} -s {cluster} ! -d {multicast} -j MASQUERADE --random-fully
                         {add} ! -s {cluster} -d {cluster} -j MASQUERADE --random-fully"
                    ),
                );
            }),
            Masquerade::Calico(priority) => Masquerade::calico(priority, |_| "masquerade".into()),
            Masquerade::CalicoAddress => Masquerade::calico(100, |family| format!("snat to {}", node(family))),
        }
    }

    fn calico(priority: i32, action: impl Fn(u8) -> String) {
        CIDRS.iter().for_each(|(ip, cluster, _, _)| {
            let kind = if *ip == "ip" { "ipv4_addr" } else { "ipv6_addr" };
            let action = action(if *ip == "ip" { 4 } else { 6 });
            nft(
                "w",
                &format!(
                    "table {ip} calico {{
                         set cali40masq-ipam-pools {{ type {kind}; flags interval; elements = {{ {cluster} }}; }}
                         set cali40all-ipam-pools {{ type {kind}; flags interval; elements = {{ {cluster} }}; }}
                         chain nat-cali-nat-outgoing {{
                         {ip} saddr @cali40masq-ipam-pools {ip} daddr != @cali40all-ipam-pools {action}\n}}
                         chain nat-cali-POSTROUTING {{ jump nat-cali-nat-outgoing\n}}
                         chain nat-POSTROUTING {{ type nat hook postrouting priority {priority};
                         jump nat-cali-POSTROUTING\n}}\n}}\n"
                ),
            );
        });
    }

    /// Takes them away.
    pub fn take(self) {
        match self {
            Masquerade::FlannelNftables => drop(at("w", "nft delete table ip flannel; nft delete table ip6 flannel")),
            Masquerade::Calico(_) | Masquerade::CalicoAddress => {
                drop(at("w", "nft delete table ip calico; nft delete table ip6 calico"))
            }
            Masquerade::FlannelIptables(kind) => {
                for tool in [kind.to_owned(), kind.replace("iptables", "ip6tables")] {
                    at("w", &format!("{tool} -t nat -F; {tool} -t nat -X"));
                }
            }
        }
    }
}

/// What the agent is told: which gateways live, which pods are selected, and what is added to the file.
pub fn wanted(live: &[u8], pods: &[u8], more: &str) -> String {
    let gateways: String = [1, 2]
        .map(|number| {
            let at = overlay_number(number);
            format!(
                "- {{ name: gw-{number}, live: {}, \
                 ipv4: {{ overlay: 10.244.{at}.0, mac: \"{}\", underlay: 198.51.100.{number}, vni: 1 }}, \
                 ipv6: {{ overlay: \"fd00:10:244:{at}::\", mac: \"{}\", underlay: \"2001:db8:2::{number}\", vni: 1 }} }}\n",
                live.contains(&number),
                vtep(at, 4),
                vtep(at, 6)
            )
        })
        .concat();
    let pods: String = pods
        .iter()
        .map(|number| {
            format!("{{ name: shop/p-{number}, addresses: [{}, \"{}\"] }}, ", pod(4, *number), pod(6, *number))
        })
        .collect();
    format!(
        "devices: {{ ipv4: flannel.1, ipv6: flannel-v6.1 }}
cluster: [10.244.0.0/16, 10.96.0.0/12, 198.51.100.0/24, \"fd00:10:244::/48\", \"2001:db8:2::/64\"]
gateways:\n{gateways}egress:\n- {{ name: shop/out, pods: [{pods}] }}\n{more}"
    )
}

/// The agent on the worker.
pub struct Agent {
    child: Child,
}

fn config() -> PathBuf {
    PathBuf::from(HOME).join("node-agent.yaml")
}

fn log() -> PathBuf {
    PathBuf::from(HOME).join("log")
}

/// Writes the agent's file, as one that is renamed into place.
pub fn tell(text: &str) {
    let next = config().with_extension("next");
    std::fs::write(&next, text).unwrap();
    std::fs::rename(next, config()).unwrap();
}

/// Runs one of the program's tasks on the worker.
pub fn task(arguments: &[&str]) -> Output {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", "w", env!("CARGO_BIN_EXE_tidegate-node"), "--config"]).arg(config());
    command.args(arguments).output().unwrap()
}

/// What `tidegate-node status` prints, and its exit code.
pub fn status() -> (String, i32) {
    let output = task(&["status"]);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (text, output.status.code().unwrap())
}

/// Waits until everything is as the agent's file says.
pub fn settled() {
    until("everything is as it is wanted", || {
        let (text, _) = status();
        if text.contains("to do: ") || text.contains("problem: ") { Err(text) } else { Ok(()) }
    });
}

impl Agent {
    /// Starts it.
    pub fn start(arguments: &[&str]) -> Agent {
        let log = File::options().create(true).append(true).open(log()).unwrap();
        let mut command = Command::new("ip");
        // As in the pod of the chart, and as by the systemd unit: with one capability.
        let of_unit =
            ["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=+net_admin", "--ambient-caps=+net_admin"];
        command.args(["netns", "exec", "w", "setpriv", "--no-new-privs", "--bounding-set=-all,+net_admin"]);
        command.args(if arguments.contains(&"--remove-on-exit") { &of_unit[..] } else { &[] });
        command.args([env!("CARGO_BIN_EXE_tidegate-node"), "--config"]).arg(config()).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Agent { child: command.spawn().unwrap() }
    }

    /// Ends it by a signal and waits for the end.
    pub fn end(mut self, signal: &str) {
        // `ip netns exec` and `setpriv` become the program they start.
        run(&format!("kill -{signal} {}", self.child.id()));
        self.child.wait().unwrap();
    }

    /// What all agents of this test have logged.
    pub fn log() -> String {
        std::fs::read_to_string(log()).unwrap_or_default()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!(
                "agent:\n{}{}",
                Agent::log(),
                at("w", "ip rule; ip route show table all; nft list table inet tidegate-node || true")
            );
        }
    }
}

/// Everything in the worker's kernel that could have been touched.
pub fn dump() -> String {
    at(
        "w",
        "ip -d rule; ip -6 -d rule; ip -d route show table all | grep -v '^fe80\\|^multicast'; \
         ip -6 -d route show table all | grep -v '^fe80\\|^multicast' | sed 's/ expires [0-9]*sec//'; \
         ip -d neigh show dev flannel.1 | sort; ip -d -6 neigh show dev flannel-v6.1 | sort; \
         bridge fdb show dev flannel.1 | sort; bridge fdb show dev flannel-v6.1 | sort; nft list ruleset; \
         cat /proc/sys/net/ipv4/conf/*/rp_filter /proc/sys/net/ipv4/conf/*/src_valid_mark /proc/sys/net/ipv4/ip_forward",
    )
}

/// Serves TCP and UDP at [`PORT`] of the world outside.
pub fn serve_outside() {
    let addresses = FAMILIES.iter().flat_map(|family| [100, 101].map(|number| server(*family, number)));
    serve("out", addresses.collect());
}

/// Serves TCP at [`PORT`] of a pod.
pub fn serve_in(namespace: &str) {
    serve(namespace, vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)]);
}

/// Serves for as long as the test lives: who asks is told who he is.
fn serve(namespace: &str, addresses: Vec<IpAddr>) {
    within(namespace, || {
        for address in addresses {
            let at = SocketAddr::new(address, PORT);
            let domain = Domain::for_address(at);
            let listener = Socket::new(domain, Type::STREAM, None).unwrap();
            let datagrams = Socket::new(domain, Type::DGRAM, None).unwrap();
            for socket in [&listener, &datagrams] {
                if at.is_ipv6() {
                    socket.set_only_v6(true).unwrap();
                }
                socket.bind(&at.into()).unwrap();
            }
            listener.listen(64).unwrap();
            let (listener, datagrams): (TcpListener, UdpSocket) = (listener.into(), datagrams.into());
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let Ok(mut stream) = stream else { continue };
                    std::thread::spawn(move || {
                        let who = stream.peer_addr().unwrap().to_string();
                        let mut byte = [0];
                        // An answer for each byte, so that a connection can go on.
                        while stream.read_exact(&mut byte).is_ok() {
                            drop(stream.write_all(format!("{who}\n").as_bytes()));
                        }
                    });
                }
            });
            std::thread::spawn(move || {
                let mut bytes = [0; 64];
                while let Ok((_, who)) = datagrams.recv_from(&mut bytes) {
                    drop(datagrams.send_to(who.to_string().as_bytes(), who));
                }
            });
        }
    });
}

/// A connection that asks who it is.
pub struct Caller(TcpStream);

impl Caller {
    /// Connects from a namespace.
    pub fn connect(namespace: &str, to: SocketAddr) -> Result<Caller, String> {
        within(namespace, || TcpStream::connect_timeout(&to, ANSWER)).map(Caller).map_err(|error| error.to_string())
    }

    /// Asks once more.
    pub fn ask(&mut self) -> Result<IpAddr, String> {
        self.0.set_read_timeout(Some(ANSWER)).unwrap();
        self.0.write_all(b"?").map_err(|error| error.to_string())?;
        let mut answer = Vec::new();
        let mut byte = [0];
        while byte != *b"\n" {
            self.0.read_exact(&mut byte).map_err(|error| error.to_string())?;
            answer.push(byte[0]);
        }
        let answer: SocketAddr = std::str::from_utf8(&answer).unwrap().trim().parse().unwrap();
        Ok(answer.ip())
    }
}

/// Who a namespace is for the server at `to`, over TCP.
pub fn who_tcp(namespace: &str, to: SocketAddr) -> Result<IpAddr, String> {
    Caller::connect(namespace, to)?.ask()
}

/// The same over UDP, from a fresh port.
pub fn who_udp(namespace: &str, to: SocketAddr) -> Result<IpAddr, String> {
    within(namespace, || {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.set_read_timeout(Some(ANSWER)).unwrap();
        socket.send_to(b"?", to).map_err(|error| error.to_string())?;
        let mut bytes = [0; 64];
        let length = socket.recv(&mut bytes).map_err(|error| error.to_string())?;
        Ok(std::str::from_utf8(&bytes[..length]).unwrap().parse::<SocketAddr>().unwrap().ip())
    })
}

/// Sends an echo request; true when it is answered.
pub fn ping(namespace: &str, to: IpAddr) -> bool {
    within(namespace, || {
        let (domain, protocol, kind) =
            if to.is_ipv4() { (Domain::IPV4, Protocol::ICMPV4, 8) } else { (Domain::IPV6, Protocol::ICMPV6, 128) };
        let mut socket = Socket::new(domain, Type::DGRAM, Some(protocol)).unwrap();
        socket.set_read_timeout(Some(ANSWER)).unwrap();
        socket.connect(&SocketAddr::new(to, 0).into()).unwrap();
        // Type, code, checksum and identifier (the kernel's), sequence, data.
        socket.write_all(&[kind, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4]).is_ok() && socket.read(&mut [0; 64]).is_ok()
    })
}

/// True when the server at `to` hears nothing from a namespace, over both transports.
pub fn silent(namespace: &str, to: SocketAddr) -> bool {
    within(namespace, || {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.set_read_timeout(Some(SILENCE)).unwrap();
        let said = socket.send_to(b"?", to).is_ok() && socket.recv(&mut [0; 64]).is_ok();
        !said && TcpStream::connect_timeout(&to, SILENCE).is_err()
    })
}

/// Datagrams from a pod to a server, a thousand a second, each from its own port, both families.
pub struct Sender {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl Sender {
    /// Starts it.
    pub fn start(namespace: &str, number: u8) -> Sender {
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, file) = (Arc::clone(&stop), File::open(format!("/run/netns/{namespace}")).unwrap());
        let thread = std::thread::spawn(move || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            let steady =
                FAMILIES.map(|family| UdpSocket::bind(if family == 4 { "0.0.0.0:0" } else { "[::]:0" }).unwrap());
            let mut sent = 0;
            while !seen.load(Ordering::Relaxed) {
                for (family, steady) in FAMILIES.iter().zip(&steady) {
                    let to = SocketAddr::new(server(*family, number), PORT);
                    let fresh = UdpSocket::bind(if *family == 4 { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
                    for socket in [&fresh, steady] {
                        sent += usize::from(socket.send_to(b"x", to).is_ok());
                    }
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            sent
        });
        Sender { stop, thread }
    }

    /// Stops it; returns how many were sent.
    pub fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
