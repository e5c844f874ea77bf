//! Routing daemons of the lab: BIRD 2 and FRR, on a gateway and on the router it speaks with.
//!
//! Owns the processes and what they read; refuses to know what routes are for. On a gateway they read the examples that come
//! with Tidegate. The router is the clients' namespace. What stands in a namespace's tables is read from `/proc` of the daemon
//! there: in no time, on whatever else the machine is busy with.

use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::{Daemon, in_namespace, run};
use crate::rig::wait_until;
use crate::topology::{CLIENT, GATEWAY};

/// Where daemons have their files: FRR becomes a user of its own and needs a folder of its own.
const DIRECTORY: &str = "/run/routing";
/// Time for zebra to begin to listen.
const ZEBRA_LIMIT: Duration = Duration::from_secs(10);

/// A routing daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    /// BIRD 2, Debian package bird2.
    Bird,
    /// FRR's zebra and bgpd, Debian package frr.
    Frr,
}

impl std::fmt::Display for Speaker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Speaker::Bird => "BIRD",
            Speaker::Frr => "FRR",
        })
    }
}

/// A routing daemon that runs; it ends when dropped.
#[derive(Debug)]
pub struct Router {
    /// The one that writes the kernel's table first.
    daemons: Vec<Daemon>,
}

impl Router {
    /// Starts the daemon of the gateway, as the example has it.
    ///
    /// # Errors
    /// When a program is missing.
    pub fn on_gateway(speaker: Speaker) -> Result<Router> {
        let text = match speaker {
            Speaker::Bird => include_str!("../../deploy/examples/bgp/bird.conf"),
            Speaker::Frr => include_str!("../../deploy/examples/bgp/frr.conf"),
        };
        start(speaker, GATEWAY, text)
    }

    /// Starts the daemon of the router, which tells of `networks` behind it.
    ///
    /// # Errors
    /// When a program is missing.
    pub fn on_router(speaker: Speaker, networks: (&str, &str)) -> Result<Router> {
        let text = match speaker {
            Speaker::Bird => bird_on_router(networks),
            Speaker::Frr => frr_on_router(networks),
        };
        start(speaker, CLIENT, &text)
    }

    /// Whether all its processes run.
    pub fn runs(&mut self) -> bool {
        self.daemons.iter_mut().all(Daemon::is_running)
    }

    /// What it has said.
    pub fn log(&self) -> String {
        self.daemons.iter().map(Daemon::log).collect()
    }

    /// The devices by which the kernel there sends what goes to exactly `address`.
    ///
    /// # Errors
    /// When the daemon has ended.
    pub fn ways(&self, address: IpAddr) -> Result<Vec<String>> {
        let file = if address.is_ipv4() { "route" } else { "ipv6_route" };
        let text = self.proc_net(file)?;
        Ok(match address {
            IpAddr::V4(v4) => {
                // Iface, Destination, Gateway, Flags, RefCnt, Use, Metric, Mask, …: addresses as the machine's own integers.
                let wanted = format!("{:08X}", u32::from_ne_bytes(v4.octets()));
                let is_wanted =
                    |words: &Vec<&str>| words.get(1) == Some(&wanted.as_str()) && words.get(7) == Some(&"FFFFFFFF");
                let words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
                words.filter(is_wanted).filter_map(|words| words.first().map(|word| (*word).to_owned())).collect()
            }
            IpAddr::V6(v6) => {
                // Destination, its length, source, its length, next hop, metric, counters, flags, device.
                let wanted: String = v6.octets().iter().map(|byte| format!("{byte:02x}")).collect();
                let is_wanted =
                    |words: &Vec<&str>| words.first() == Some(&wanted.as_str()) && words.get(1) == Some(&"80");
                let words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
                words.filter(is_wanted).filter_map(|words| words.last().map(|word| (*word).to_owned())).collect()
            }
        })
    }

    /// Whether there is a device of this name there.
    ///
    /// # Errors
    /// When the daemon has ended.
    pub fn has_device(&self, name: &str) -> Result<bool> {
        Ok(self.proc_net("dev")?.lines().any(|line| line.trim_start().starts_with(&format!("{name}:"))))
    }

    fn proc_net(&self, file: &str) -> Result<String> {
        let daemon = self.daemons.first().context("no daemon")?;
        let path = format!("/proc/{}/net/{file}", daemon.pid());
        std::fs::read_to_string(&path).with_context(|| format!("{path}: {}", self.log()))
    }
}

fn start(speaker: Speaker, namespace: &str, text: &str) -> Result<Router> {
    let directory = PathBuf::from(DIRECTORY).join(namespace);
    std::fs::create_dir_all(&directory)?;
    let config = directory.join(format!("{speaker}.conf"));
    std::fs::write(&config, text)?;
    forget(namespace)?;
    let daemons = match speaker {
        Speaker::Bird => vec![bird(namespace, &directory, &config)?],
        Speaker::Frr => frr(namespace, &directory, &config)?,
    };
    Ok(Router { daemons })
}

/// Takes away what a daemon before left when it was killed: zebra's next hops and with them its routes, BIRD's routes (12).
fn forget(namespace: &str) -> Result<()> {
    let mut shell = in_namespace(namespace, "sh");
    let flush = "ip nexthop flush; ip -4 route flush proto 12; ip -6 route flush proto 12; true";
    shell.args(["-c", flush]);
    run(shell, "", Duration::from_secs(5))?.success("forgetting routes")?;
    Ok(())
}

fn bird(namespace: &str, directory: &Path, config: &Path) -> Result<Daemon> {
    let mut command = in_namespace(namespace, "bird");
    command.arg("-f").arg("-c").arg(config).arg("-s").arg(directory.join("bird.ctl"));
    Daemon::start("bird", command, &directory.join("bird.log"))
}

fn frr(namespace: &str, directory: &Path, config: &Path) -> Result<Vec<Daemon>> {
    let mut owner = std::process::Command::new("chown");
    owner.args(["-R", "frr:frr"]).arg(directory);
    run(owner, "", Duration::from_secs(5))?.success("chown, for FRR (Debian package frr)")?;
    let start = |name: &str| {
        let mut command = in_namespace(namespace, format!("/usr/lib/frr/{name}"));
        command.arg("-f").arg(config).arg("-i").arg(directory.join(format!("{name}.pid")));
        command.arg("-z").arg(directory.join("zserv.api")).arg("--vty_socket").arg(directory);
        command.args(["-u", "frr", "-g", "frr", "-P", "0", "--log", "stdout"]);
        Daemon::start(name, command, &directory.join(format!("{name}.log")))
    };
    let zebra = start("zebra")?;
    // bgpd would try again until zebra listens, but only every ten seconds, and what it hears of its neighbours meanwhile is
    // lost: over IPv6 it refuses routes by devices that it does not know yet, and does not ask again.
    let listens = wait_until(ZEBRA_LIMIT, || Ok(UnixStream::connect(directory.join("zserv.api")).is_ok()))?;
    listens.with_context(|| format!("zebra does not listen: {}", zebra.log()))?;
    Ok(vec![zebra, start("bgpd")?])
}

fn bird_on_router((v4, v6): (&str, &str)) -> String {
    format!(
        "router id 192.0.2.10;\nprotocol device {{\n}}\n\
         protocol kernel {{\nipv4 {{ export where source = RTS_BGP; }};\n}}\n\
         protocol kernel {{\nipv6 {{ export where source = RTS_BGP; }};\n}}\n\
         protocol static {{\nipv4;\nroute {v4} unreachable;\n}}\n\
         protocol static {{\nipv6;\nroute {v6} unreachable;\n}}\n\
         protocol bgp {{\nlocal 192.0.2.10 as 64513;\nneighbor 192.0.2.1 as 64512;\n\
         ipv4 {{ import all; export where source = RTS_STATIC; next hop self; }};\n}}\n\
         protocol bgp {{\nlocal 2001:db8:1::10 as 64513;\nneighbor 2001:db8:1::1 as 64512;\n\
         ipv6 {{ import all; export where source = RTS_STATIC; next hop self; }};\n}}\n"
    )
}

fn frr_on_router((v4, v6): (&str, &str)) -> String {
    format!(
        "frr defaults datacenter\nrouter bgp 64513\n bgp router-id 192.0.2.10\n no bgp ebgp-requires-policy\n \
         no bgp default ipv4-unicast\n no bgp network import-check\n neighbor 192.0.2.1 remote-as 64512\n \
         neighbor 2001:db8:1::1 remote-as 64512\n address-family ipv4 unicast\n  network {v4}\n  \
         neighbor 192.0.2.1 activate\n exit-address-family\n address-family ipv6 unicast\n  network {v6}\n  \
         neighbor 2001:db8:1::1 activate\n exit-address-family\n"
    )
}
