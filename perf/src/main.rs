//! `tidegate-lab`: the lab at the command line.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tidegate_perf::enclosure;
use tidegate_perf::lab::{Lab, LabOptions};
use tidegate_perf::pod::{self, PodOptions};
use tidegate_perf::topology::{POD_TCP_PORT, POD_UDP_PORT};

/// A network lab for Tidegate: clients, a gateway, three workers with VXLAN and six pods, in namespaces.
#[derive(Parser)]
#[command(name = "tidegate-lab", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring the lab up and keep it until Ctrl-C.
    Up {
        /// Queues of wan0 and lan0.
        #[arg(long, default_value_t = 1)]
        queues: u32,
    },
    /// Serve as a pod (the lab starts these).
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
        Command::Pod { name, tcp_port, udp_port } => pod::serve(&PodOptions { name, tcp_port, udp_port })?,
        _ if !enclosure::is_inside() => return enclosure::run_inside(),
        Command::Up { queues } => {
            let stop = enclosure::stop_flag()?;
            let lab = Lab::up(&LabOptions { queues })?;
            println!("lab: up in {} ms", lab.took.as_millis());
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
    Ok(0)
}
