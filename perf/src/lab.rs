//! The lab: namespaces, links, the kernel's own VXLAN devices as flannel sets them up, and pods with real servers.
//!
//! Owns what [`topology`](crate::topology) draws; refuses to know about the gateway's programs and about checks. Lives
//! inside the [`enclosure`](crate::enclosure), which also takes it down.
//!
//! Building goes by a few batches (one `ip -batch` for all links, one shell per namespace, all of those at once), so a
//! lab is up in about a second. Three settings make exact counts possible: no duplicate address detection, no router
//! solicitations, and `tx off` on every kernel end, since kernel senders otherwise hand over frames whose L4 checksum
//! is only the sum of the pseudo-header.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::enclosure::{self, STATE_DIR};
use crate::process::{self, Daemon, in_namespace};
use crate::topology::{
    self, CLIENT, CLIENT_HOSTS, CLIENT_MAC, FABRIC, FAMILIES, FLOOD_NET_V4, FLOOD_NET_V6, Family, GATEWAY, GATEWAY_2,
    GATEWAY_2_LAN_MAC, GATEWAY_2_NODE, GATEWAY_2_WAN_MAC, GATEWAY_LAN_MAC, GATEWAY_NODE, GATEWAY_WAN_MAC, LAN,
    NOBODY_MAC, NOBODY_V4, NOBODY_V6, Node, OVERLAY_MTU_V4, OVERLAY_MTU_V6, POD_SCTP_PORT, Pod, ROUTER_V4, ROUTER_V6,
    UNDERLAY_MTU, VNI, VXLAN_PORT, client_address, pods, workers,
};

/// How long one building command may take on a busy machine.
const BUILD_LIMIT: Duration = Duration::from_secs(30);
/// How long a pod's servers may take to listen.
const POD_LIMIT: Duration = Duration::from_secs(20);
/// Address of the worker's end of every pod's link, as Calico-style routed pods have it.
const POD_GATEWAY_V4: &str = "169.254.1.1";
/// The same for IPv6.
const POD_GATEWAY_V6: &str = "fe80::1";

/// What flannel wants of workers (V-026), and what a router and its clients need where answers come another way.
const NO_REVERSE_PATH_FILTER: &str = "for file in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $file; done\n";

/// What may differ between labs.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// Queues of `wan0`, `lan0` and their peers.
    pub queues: u32,
    /// Gateways: one, on a link of its own with the clients, or two that share a switch with them.
    pub gateways: u32,
}

impl Default for LabOptions {
    fn default() -> Self {
        LabOptions { queues: 1, gateways: 1 }
    }
}

/// A lab that is up.
#[derive(Debug)]
pub struct Lab {
    /// Where logs, manifests and captures of this lab are.
    pub state_dir: PathBuf,
    /// How long it took to come up.
    pub took: Duration,
    pods: Vec<Daemon>,
}

impl Lab {
    /// Builds everything and returns when all pods listen.
    ///
    /// # Errors
    /// When called outside the enclosure, or a command fails; the text names it.
    pub fn up(options: &LabOptions) -> Result<Lab> {
        let began = Instant::now();
        enclosure::furnish()?;
        let state_dir = PathBuf::from(STATE_DIR);
        add_namespaces(options.gateways)?;
        add_links(options)?;
        configure_all(options.gateways)?;
        let pods = start_pods(&state_dir)?;
        await_links(options.gateways)?;
        Ok(Lab { state_dir, took: began.elapsed(), pods })
    }

    /// True while every pod's servers run.
    pub fn pods_run(&mut self) -> bool {
        self.pods.iter_mut().all(Daemon::is_running)
    }
}

/// All network namespaces of a lab with so many gateways.
pub fn namespaces(gateways: u32) -> Vec<String> {
    let mut names: Vec<String> = [CLIENT, GATEWAY, FABRIC].map(String::from).into();
    if gateways > 1 {
        names.extend([GATEWAY_2, LAN].map(String::from));
    }
    names.extend(workers().map(Node::name));
    names.extend(pods().map(Pod::name));
    names
}

fn ip_batch(lines: &str, what: &str) -> Result<()> {
    let mut command = std::process::Command::new("ip");
    command.args(["-batch", "-"]);
    process::run(command, lines, BUILD_LIMIT)?.success(what)?;
    Ok(())
}

fn add_namespaces(gateways: u32) -> Result<()> {
    let lines: String = namespaces(gateways).iter().map(|name| format!("netns add {name}\n")).collect();
    ip_batch(&lines, "adding namespaces")
}

/// Waits until every link carries frames. The kernel notices carriers at its own pace (at most once a second when many
/// come at once), and until then a queue of the device or a port of the bridge swallows what is sent.
fn await_links(gateways: u32) -> Result<()> {
    let namespaces = namespaces(gateways).join(" ");
    let switch = if gateways > 1 { LAN } else { "" };
    let waits = format!(
        "for try in $(seq 250); do
           down=$(for name in {namespaces}; do ip -n $name -o link | grep -w UP | grep -v 'state UP\\|state UNKNOWN'; done
                  for name in {FABRIC} {switch}; do ip netns exec $name bridge -o link; done | grep -v 'state forwarding')
           [ -n \"$down\" ] || exit 0
           sleep 0.02
         done
         echo \"$down\" >&2
         exit 1"
    );
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &waits]);
    process::run(command, "", BUILD_LIMIT)?.success("waiting for links to carry frames")?;
    Ok(())
}

fn add_links(options: &LabOptions) -> Result<()> {
    let queues = options.queues;
    let many = format!("numrxqueues {queues} numtxqueues {queues} mtu {UNDERLAY_MTU}");
    let mut lines = format!(
        "link add name back netns {CLIENT} mtu {UNDERLAY_MTU} type veth \
         peer name router netns {FABRIC} mtu {UNDERLAY_MTU}\n\
         link add name lan0 netns {GATEWAY} address {GATEWAY_LAN_MAC} {many} type veth \
         peer name gw netns {FABRIC} {many}\n"
    );
    if options.gateways == 1 {
        writeln!(
            lines,
            "link add name wan0 netns {GATEWAY} address {GATEWAY_WAN_MAC} {many} type veth \
             peer name eth0 netns {CLIENT} address {CLIENT_MAC} {many}"
        )?;
    } else {
        writeln!(
            lines,
            "link add name eth0 netns {CLIENT} address {CLIENT_MAC} mtu {UNDERLAY_MTU} type veth \
             peer name client netns {LAN} mtu {UNDERLAY_MTU}\n\
             link add name wan0 netns {GATEWAY} address {GATEWAY_WAN_MAC} {many} type veth peer name gw netns {LAN} {many}\n\
             link add name wan0 netns {GATEWAY_2} address {GATEWAY_2_WAN_MAC} {many} type veth \
             peer name gw2 netns {LAN} {many}\n\
             link add name lan0 netns {GATEWAY_2} address {GATEWAY_2_LAN_MAC} {many} type veth \
             peer name gw2 netns {FABRIC} {many}"
        )?;
    }
    for worker in workers() {
        let name = worker.name();
        let mac = format!("02:00:00:00:02:{:02x}", 0x10 + worker.number);
        writeln!(
            lines,
            "link add name eth0 netns {name} address {mac} mtu {UNDERLAY_MTU} type veth \
             peer name {name} netns {FABRIC} mtu {UNDERLAY_MTU}"
        )?;
    }
    for pod in pods() {
        let name = pod.name();
        let worker = pod.node().name();
        writeln!(
            lines,
            "link add name eth0 netns {name} mtu {OVERLAY_MTU_V4} type veth \
             peer name veth-{name} netns {worker} mtu {OVERLAY_MTU_V4}"
        )?;
    }
    ip_batch(&lines, "adding links")
}

/// Runs one shell per namespace, all at once.
fn configure_all(gateways: u32) -> Result<()> {
    let fabric: Vec<&str> = [GATEWAY, "router", GATEWAY_2].into_iter().take(if gateways > 1 { 3 } else { 2 }).collect();
    let names: Vec<String> = fabric.into_iter().map(String::from).chain(workers().map(Node::name)).collect();
    let mut scripts = vec![
        (CLIENT.to_string(), client_script()),
        (GATEWAY.into(), gateway_script()),
        (FABRIC.into(), switch_script(&names)),
    ];
    if gateways > 1 {
        scripts.push((GATEWAY_2.into(), gateway_script_of(GATEWAY_2_NODE)));
        scripts.push((LAN.into(), switch_script(&["client", GATEWAY, GATEWAY_2].map(String::from))));
    }
    scripts.extend(workers().map(|worker| (worker.name(), worker_script(worker, gateways))));
    scripts.extend(pods().map(|pod| (pod.name(), pod_script(pod))));
    std::thread::scope(|scope| {
        let running: Vec<_> = scripts
            .iter()
            .map(|(name, script)| {
                scope.spawn(move || {
                    let mut shell = in_namespace(name, "sh");
                    shell.args(["-e", "-s"]);
                    process::run(shell, script, BUILD_LIMIT)?.success(&format!("configuring namespace {name}"))
                })
            })
            .collect();
        for shell in running {
            shell.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a thread that configures a namespace panicked")))?;
        }
        Ok(())
    })
}

/// Opening of every namespace's script: quiet IPv6, then `ip_lines` as one batch.
fn script(ip_lines: &str) -> String {
    format!(
        "for directory in /proc/sys/net/ipv6/conf/*; do\n\
         \x20 echo 0 > $directory/accept_dad\n\
         \x20 echo 0 > $directory/router_solicitations\n\
         \x20 echo 0 > $directory/accept_ra\n\
         done\n\
         ip -batch - <<'END'\nlink set lo up\n{ip_lines}END\n"
    )
}

fn checksums_by_kernel(devices: &[&str]) -> String {
    devices.iter().map(|device| format!("ethtool -K {device} tx off >/dev/null\n")).collect()
}

fn client_script() -> String {
    let mut lines = String::from("link set eth0 up\nlink set back up\n");
    lines += &format!("addr add {ROUTER_V4}/24 dev back\naddr add {ROUTER_V6}/64 dev back nodad\n");
    for host in CLIENT_HOSTS {
        lines += &format!("addr add {}/24 dev eth0\n", client_address(Family::V4, host));
        lines += &format!("addr add {}/64 dev eth0 nodad\n", client_address(Family::V6, host));
    }
    lines += "route add 203.0.113.0/24 via 192.0.2.1\n";
    lines += "route add 2001:db8:f::/64 via 2001:db8:1::1\n";
    // Unprivileged echo requests, so that pinging needs no raw socket.
    script(&lines)
        + &checksums_by_kernel(&["eth0", "back"])
        + "echo '0 2147483647' > /proc/sys/net/ipv4/ping_group_range\n"
        + NO_REVERSE_PATH_FILTER
}

/// Addresses, routes and offloads of the gateway's devices, for a shell beside them.
pub(crate) fn gateway_script() -> String {
    gateway_script_of(GATEWAY_NODE)
}

fn gateway_script_of(node: Node) -> String {
    let (lan_v4, lan_v6) = (node.underlay(Family::V4), node.underlay(Family::V6));
    let host = if node == GATEWAY_NODE { 1 } else { 2 };
    let lines = format!(
        "link set wan0 up\nlink set lan0 up\n\
         addr add 192.0.2.{host}/24 dev wan0\naddr add 2001:db8:1::{host}/64 dev wan0 nodad\n\
         addr add {lan_v4}/24 dev lan0\naddr add {lan_v6}/64 dev lan0 nodad\n\
         neigh add {NOBODY_V4} lladdr {NOBODY_MAC} dev wan0 nud permanent\n\
         neigh add {NOBODY_V6} lladdr {NOBODY_MAC} dev wan0 nud permanent\n\
         route add {FLOOD_NET_V4}/15 via {NOBODY_V4}\n\
         route add {FLOOD_NET_V6}/48 via {NOBODY_V6}\n"
    );
    let mut text = script(&lines);
    for device in ["wan0", "lan0"] {
        text += &format!("ethtool -K {device} tx off gro off gso off tso off >/dev/null\n");
    }
    text + "echo 0 > /proc/sys/net/ipv4/ip_forward\necho 0 > /proc/sys/net/ipv6/conf/all/forwarding\n"
        + NO_REVERSE_PATH_FILTER
}

/// A switch with these ports.
fn switch_script(ports: &[String]) -> String {
    let mut lines = String::from("link add br0 type bridge stp_state 0 mcast_snooping 0\nlink set br0 up\n");
    for port in ports {
        lines += &format!("link set {port} master br0 up\n");
    }
    let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
    script(&lines) + &checksums_by_kernel(&ports)
}

/// Name of the VXLAN device of a family, as flannel names it.
pub fn vxlan_device(family: Family) -> &'static str {
    match family {
        Family::V4 => "flannel.1",
        Family::V6 => "flannel-v6.1",
    }
}

fn worker_script(worker: Node, gateways: u32) -> String {
    let mut lines = String::from("link set eth0 up\n");
    lines += &format!("addr add {}/24 dev eth0\n", worker.underlay(Family::V4));
    lines += &format!("addr add {}/64 dev eth0 nodad\n", worker.underlay(Family::V6));
    lines += &format!("route add 192.0.2.0/24 via {ROUTER_V4}\nroute add 2001:db8:1::/64 via {ROUTER_V6}\n");
    let mut forwarding_entries = String::new();
    for family in FAMILIES {
        let device = vxlan_device(family);
        let mtu = if family == Family::V4 { OVERLAY_MTU_V4 } else { OVERLAY_MTU_V6 };
        lines += &format!(
            "link add {device} address {} mtu {mtu} type vxlan id {VNI} dev eth0 local {} dstport {VXLAN_PORT} \
             nolearning\nlink set {device} up\n",
            worker.vtep_mac(family),
            worker.underlay(family)
        );
        let (length, flags) = if family == Family::V4 { (32, "") } else { (128, " nodad") };
        lines += &format!("addr add {}/{length} dev {device}{flags}\n", worker.overlay(family));
        for peer in workers().chain(topology::gateways(gateways)).filter(|peer| *peer != worker) {
            let (overlay, mac) = (peer.overlay(family), peer.vtep_mac(family));
            lines += &format!("neigh add {overlay} lladdr {mac} dev {device} nud permanent\n");
            lines += &format!("route add {} via {overlay} dev {device} onlink\n", peer.pod_cidr(family));
            forwarding_entries += &format!("fdb append {mac} dev {device} dst {}\n", peer.underlay(family));
        }
    }
    let mut devices = vec!["eth0".to_string()];
    devices.extend(FAMILIES.map(vxlan_device).map(String::from));
    for pod in pods().filter(|pod| pod.node() == worker) {
        let device = format!("veth-{}", pod.name());
        lines += &format!("link set {device} up\naddr add {POD_GATEWAY_V4}/32 dev {device}\n");
        lines += &format!("addr add {POD_GATEWAY_V6}/64 dev {device} nodad\n");
        for family in FAMILIES {
            lines += &format!("route add {} dev {device}\n", pod.address(family));
        }
        devices.push(device);
    }
    let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
    script(&lines)
        + &format!("bridge -batch - <<'END'\n{forwarding_entries}END\n")
        + &checksums_by_kernel(&devices)
        + "echo 1 > /proc/sys/net/ipv4/ip_forward\necho 1 > /proc/sys/net/ipv6/conf/all/forwarding\n\
           "
        + NO_REVERSE_PATH_FILTER
}

fn pod_script(pod: Pod) -> String {
    let lines = format!(
        "link set eth0 up\naddr add {}/32 dev eth0\naddr add {}/128 dev eth0 nodad\n\
         route add default via {POD_GATEWAY_V4} dev eth0 onlink\n\
         route add ::/0 via {POD_GATEWAY_V6} dev eth0\n",
        pod.address(Family::V4),
        pod.address(Family::V6)
    );
    script(&lines) + &checksums_by_kernel(&["eth0"])
}

fn start_pods(state_dir: &Path) -> Result<Vec<Daemon>> {
    let program = enclosure::this_program()?;
    let mut running = Vec::new();
    for pod in pods() {
        let name = pod.name();
        let mut command = in_namespace(&name, &program);
        command.args(["pod", "--name", &name, &format!("--sctp-port={POD_SCTP_PORT}")]);
        running.push(Daemon::start(&name, command, &state_dir.join(format!("{name}.log")))?);
    }
    for pod in &mut running {
        pod.wait_for_line("pod ready", POD_LIMIT).context("starting the pods")?;
    }
    Ok(running)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Devices that a script brings up, and those whose checksums it has the kernel finish.
    fn devices(script: &str) -> [BTreeSet<&str>; 2] {
        let up = script.lines().filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words.len() > 3 && words[..2] == ["link", "set"] && words.contains(&"up")).then(|| words[2])
        });
        let finished = script.lines().filter_map(|line| {
            let (device, offloads) = line.strip_prefix("ethtool -K ")?.split_once(' ')?;
            offloads.contains("tx off").then_some(device)
        });
        [up.filter(|device| !["lo", "br0"].contains(device)).collect(), finished.collect()]
    }

    /// N-076: "AF_XDP frames from veth may carry unfinished checksums ⇒ tests must `ethtool -K tx off` on peers".
    #[test]
    fn no_device_of_the_lab_sends_unfinished_checksums() {
        let mut scripts = vec![client_script(), gateway_script(), switch_script(&["p1".into(), "p2".into()])];
        scripts.extend(workers().map(|worker| worker_script(worker, 2)));
        scripts.extend(pods().map(pod_script));
        for script in &scripts {
            let [up, finished] = devices(script);
            assert!(!up.is_empty() && up == finished, "{up:?}, {finished:?}:\n{script}");
        }
        assert_eq!(devices("link set eth0 up\n"), [BTreeSet::from(["eth0"]), BTreeSet::new()]);
    }
}
