//! `tidegate-pktgen`: generator, sink and searches at the command line.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use tidegate_perf::enclosure;
use tidegate_perf::pktgen::command::{self, Command, Told};

/// Sends packets by AF_XDP, receives what became of them, and searches for the rates at which they pass.
///
/// It takes nothing from a device but its own traffic, refuses the device of the default route and addresses that may be
/// somebody's, and every run ends by itself.
#[derive(Parser)]
#[command(name = "tidegate-pktgen", version)]
#[command(after_help = "\
Examples:
  tidegate-pktgen memory --target 203.0.113.10:80 --to-mac 02:00:00:00:00:01 --packets 1000000
  tidegate-pktgen run --tx eth1 --rx eth2 --target 203.0.113.10:80 --to-mac 02:00:00:00:01:01 --rate 1000000
  tidegate-pktgen search ndr --tx eth1 --rx eth2 --expect-vxlan 10.0.0.2:8472 --target 203.0.113.10:80 --to-mac 02:00:00:00:01:01
  tidegate-pktgen rfc9693 rate --tx eth1 --rx eth2 --target 203.0.113.10:80 --to-mac 02:00:00:00:01:01")]
struct Arguments {
    /// Print one JSON document instead of a table
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let told = enclosure::stop_flag().and_then(|stop| command::perform(&arguments.command, &stop));
    let text = told.and_then(|told| match told {
        Told::Report(report) if arguments.json => Ok(serde_json::to_string_pretty(&report)? + "\n"),
        Told::Report(report) => Ok(report.table()),
        Told::Line(line) => Ok(line.to_string() + "\n"),
    });
    match text {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("tidegate-pktgen: {error:#}");
            ExitCode::FAILURE
        }
    }
}
