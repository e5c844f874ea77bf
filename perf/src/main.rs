//! `tidegate-lab`: the lab at the command line.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use tidegate_perf::check::{self, CHECKS, Check};
use tidegate_perf::client::{self, Task};
use tidegate_perf::demo::{self, DemoOptions};
use tidegate_perf::enclosure;
use tidegate_perf::flood::{self, FloodOptions};
use tidegate_perf::guest::{self, GuestOptions};
use tidegate_perf::lab::LabOptions;
use tidegate_perf::ladder::{self, LadderOptions};
use tidegate_perf::pod::{self, PodOptions};
use tidegate_perf::stun;
use tidegate_perf::topology::{POD_TCP_PORT, POD_UDP_PORT};

/// A network lab for Tidegate: clients, a gateway, three workers with VXLAN and six pods, in namespaces of its own.
#[derive(Parser)]
#[command(name = "tidegate-lab", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring everything up, run all checks, print the table; exit code 0 when all pass.
    Demo {
        /// Leave it up afterwards and print commands to try.
        #[arg(long)]
        keep: bool,
        /// Queues of wan0 and lan0, and workers.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        queues: u32,
        /// Gateways; two share a switch with the clients.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=2))]
        gateways: u32,
    },
    /// Run some checks by name, in a lab of their own.
    Check {
        /// Names; see `--list`.
        names: Vec<String>,
        /// Print all names.
        #[arg(long)]
        list: bool,
        /// Queues of wan0 and lan0, and workers.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        queues: u32,
        /// Gateways; two share a switch with the clients.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=2))]
        gateways: u32,
    },
    /// Bring the lab up and keep it until Ctrl-C.
    Up {
        /// Do not start the gateway's programs.
        #[arg(long)]
        no_gateway: bool,
        /// Queues of wan0 and lan0, and workers.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        queues: u32,
        /// Gateways; two share a switch with the clients.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=2))]
        gateways: u32,
    },
    /// Run the gateway in a virtual machine with zero-copy AF_XDP, and check every packet that passes.
    ZeroCopyGuest(GuestOptions),
    /// Send the same packets through a plain forwarder, Tidegate and the kernel, one after the other, and compare.
    Ladder(LadderOptions),
    /// Ask as a client; runs only inside a namespace of a lab, such as `client`. Exit code 0 when the answer is good.
    #[command(subcommand)]
    Client(Task),
    /// Send a flood of 64-byte frames through AF_XDP; runs only inside a namespace of a lab, such as `client`.
    Flood(FloodOptions),
    /// Answer STUN requests at two addresses and two ports; the lab starts these.
    #[command(hide = true)]
    StunServer {
        /// Addresses.
        #[arg(long, num_args = 2)]
        addresses: Vec<std::net::IpAddr>,
        /// Ports.
        #[arg(long, num_args = 2)]
        ports: Vec<u16>,
    },
    /// Serve as a pod; the lab starts these.
    #[command(hide = true)]
    Pod {
        /// Name to answer with.
        #[arg(long)]
        name: String,
        /// Port of the HTTP server.
        #[arg(long, default_value_t = POD_TCP_PORT)]
        tcp_port: u16,
        /// Port of the UDP server.
        #[arg(long, default_value_t = POD_UDP_PORT)]
        udp_port: u16,
        /// Port where INITs of SCTP are answered.
        #[arg(long)]
        sctp_port: Option<u16>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("tidegate-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<u8> {
    match command {
        Command::Pod { name, tcp_port, udp_port, sctp_port } => {
            pod::serve(&PodOptions { name, tcp_port, udp_port, sctp_port })?;
        }
        Command::StunServer { addresses, ports } => match (addresses[..].try_into(), ports[..].try_into()) {
            (Ok(addresses), Ok(ports)) => stun::serve(addresses, ports)?,
            _ => bail!("two addresses and two ports"),
        },
        Command::Flood(options) => {
            stay_off_the_machine_s_network()?;
            println!("{}", serde_json::to_string(&flood::send(&options)?)?);
        }
        Command::Client(task) => {
            stay_off_the_machine_s_network()?;
            return Ok(u8::from(!client::perform(&task)?));
        }
        Command::Check { list: true, .. } => {
            CHECKS.iter().for_each(|check| println!("{:20} {}", check.name, check.about));
        }
        Command::Check { names, queues, gateways, .. } => {
            let checks = named(&names)?;
            // The lab that all of them need.
            let gateways = checks.iter().map(|check| check.gateways).fold(gateways, u32::max);
            return in_lab("check", &checks, &DemoOptions { keep: false, lab: LabOptions { queues, gateways } });
        }
        Command::Demo { keep, queues, gateways } => {
            let checks: Vec<&Check> =
                CHECKS.iter().filter(|check| check.in_demo && check.gateways <= gateways).collect();
            return in_lab("demo", &checks, &DemoOptions { keep, lab: LabOptions { queues, gateways } });
        }
        Command::ZeroCopyGuest(_) if !enclosure::is_inside() => return enclosure::run_inside(),
        Command::ZeroCopyGuest(options) => {
            let stop = enclosure::stop_flag()?;
            return Ok(u8::from(!guest::run(&options, &stop)?));
        }
        Command::Ladder(_) if !enclosure::is_inside() => return enclosure::run_inside(),
        Command::Ladder(options) => ladder::run(&options)?,
        Command::Up { .. } if !enclosure::is_inside() => return enclosure::run_inside(),
        Command::Up { no_gateway, queues, gateways } => {
            let stop = enclosure::stop_flag()?;
            demo::up(&LabOptions { queues, gateways }, !no_gateway, &stop)?;
        }
    }
    Ok(0)
}

/// Traffic of a lab must never leave by an interface of the machine, and addresses of a lab may be real ones elsewhere.
/// The machine's network is that of its first process; in a lab, each of its parts has one of its own.
fn stay_off_the_machine_s_network() -> Result<()> {
    let network_of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net"));
    match (network_of("self"), network_of("1")) {
        (Ok(own), Ok(first)) if own != first => Ok(()),
        _ => bail!(
            "this sends packets, and would send them by the machine's own interfaces: run it inside a namespace of a lab \
             (`nsenter -t LAB -m -n -p ip netns exec client ...`; a kept lab prints such commands)"
        ),
    }
}

fn named(names: &[String]) -> Result<Vec<&'static Check>> {
    if names.is_empty() {
        bail!("name at least one check; `tidegate-lab check --list` shows them");
    }
    let find = |name: &String| match check::find(name) {
        Some(check) => Ok(check),
        None => bail!("there is no check {name:?}; `tidegate-lab check --list` shows all"),
    };
    names.iter().map(find).collect()
}

fn in_lab(title: &'static str, checks: &[&Check], options: &DemoOptions) -> Result<u8> {
    if !enclosure::is_inside() {
        return enclosure::run_inside();
    }
    let stop = enclosure::stop_flag()?;
    Ok(u8::from(!demo::run(title, checks, options, &stop)?))
}
