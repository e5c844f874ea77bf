//! `tidegate bench`: what this machine will do, answered in about a minute.
//!
//! Owns the one table of two ladders. Refuses to measure anything itself: one program beside this one measures in memory,
//! another in network namespaces of its own, and both are asked for JSON. Neither touches an interface of the machine or a
//! dataplane that runs; but whoever else needs the cores makes figures worse, and is made slower meanwhile.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Environment variable that names the directory of Tidegate's programs.
pub const BIN_DIR: &str = "TIDEGATE_BIN_DIR";
/// The program that measures in memory.
const MEMORY: &str = "tidegate-bench-memory";
/// The program that measures in namespaces.
const LAB: &str = "tidegate-lab";

/// Arguments of `tidegate bench`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidegate bench
  tidegate bench --memory-only --flows 1000000
  tidegate bench --json > bench.json")]
pub struct BenchArguments {
    /// Flows that the tables hold in memory
    #[arg(long, default_value_t = 250_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1_000..=4_000_000))]
    pub flows: u32,
    /// Passes of each figure in memory
    #[arg(long, default_value_t = 30, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub passes: u32,
    /// Leave out the ladder in namespaces, which needs root
    #[arg(long)]
    pub memory_only: bool,
    /// Print both ladders as JSON, for programs
    #[arg(long)]
    pub json: bool,
}

/// One figure in memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Rung {
    name: String,
    best: f64,
    median: f64,
    floor: Option<f64>,
}

/// Both ladders.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Ladders {
    /// Cycles of a 2.3 GHz counter per packet.
    memory: Vec<Rung>,
    /// What `tidegate-lab ladder` says; absent with the reason in `left_out`.
    veth: Option<Value>,
    left_out: Option<String>,
}

/// Measures, and tells.
///
/// # Errors
/// When a program is missing or fails.
pub fn run(arguments: &BenchArguments, json: bool) -> Result<String> {
    eprintln!("in memory: {} flows, {} passes of each figure", arguments.flows, arguments.passes);
    let words = [arguments.flows.to_string(), arguments.passes.to_string()];
    let memory = serde_json::from_str(&ask(MEMORY, &words)?).with_context(|| format!("what {MEMORY} said"))?;
    let left_out = match (arguments.memory_only, is_root()) {
        (true, _) => Some("as was asked for"),
        (_, false) => Some("it makes network namespaces, which needs root"),
        _ => None,
    };
    let veth = match left_out {
        Some(_) => None,
        None => {
            eprintln!("in network namespaces: a plain forwarder, Tidegate, the kernel");
            let words = ["ladder", "--json", "--services=1,1000"].map(String::from);
            Some(serde_json::from_str(&ask(LAB, &words)?).with_context(|| format!("what {LAB} said"))?)
        }
    };
    let ladders = Ladders { memory, veth, left_out: left_out.map(String::from) };
    if json { Ok(serde_json::to_string_pretty(&ladders)? + "\n") } else { Ok(table(&ladders)) }
}

/// Runs one of Tidegate's programs and returns what it says; what it tells people meanwhile goes to them.
fn ask(program: &str, words: &[String]) -> Result<String> {
    let directory = match std::env::var_os(BIN_DIR) {
        Some(directory) => PathBuf::from(directory),
        None => std::env::current_exe()?.parent().context("this program has no directory")?.to_path_buf(),
    };
    let path = directory.join(program);
    if !path.exists() {
        bail!("{} is not there: `make build` builds it; or set {BIN_DIR}", path.display());
    }
    let mut command = Command::new(&path);
    let output = command.args(words).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("starting {}", path.display()))?;
    if !output.status.success() {
        bail!("{program} failed: {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether this process is root's, by the second number of `Uid:` in its status file.
fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    line.and_then(|numbers| numbers.split_whitespace().nth(1)) == Some("0")
}

fn table(ladders: &Ladders) -> String {
    let mut text = format!("{:<24} {:>8} {:>8} {:>8} {:>6}\n", "in memory, cycles", "best", "median", "floor", "ratio");
    for Rung { name, best, median, floor } in &ladders.memory {
        let floors = floor.map_or_else(
            || format!("{:>8} {:>6}", "-", "-"),
            |floor| format!("{floor:>8.0} {:>6.2}", best / floor.max(1e-9)),
        );
        // Writing into a String cannot fail.
        let _ = writeln!(text, "{name:<24} {best:>8.0} {median:>8.0} {floors}");
    }
    text += "Cycles are those of a 2.3 GHz counter, per packet, on one core, without a device.\n\n";
    let Some(veth) = &ladders.veth else {
        let why = ladders.left_out.as_deref().unwrap_or("no reason is known");
        return text + &format!("The ladder in network namespaces was left out: {why}.\n");
    };
    let _ = writeln!(
        text,
        "{:<28} {:<6} {:>10} {:>12} {:>8} {:>8} {:>8}",
        "on veth", "", "packets/s", "CPU ns each", "p50 us", "p99 us", "p99.9 us"
    );
    let number = |value: &Value| value.as_f64().map_or_else(|| "-".to_owned(), |number| format!("{number:.0}"));
    for rung in veth["rungs"].as_array().into_iter().flatten() {
        let latency = &rung["latency"];
        let _ = writeln!(
            text,
            "{:<28} {:<6} {:>10} {:>12} {:>8} {:>8} {:>8}",
            rung["name"].as_str().unwrap_or("-"),
            rung["family"].as_str().unwrap_or("-"),
            number(&rung["mrr_per_s"]),
            number(&rung["cpu_ns_per_packet"]),
            number(&latency["p50_us"]),
            number(&latency["p99_us"]),
            number(&latency["p99_9_us"]),
        );
    }
    let conditions = veth["conditions"].as_str().unwrap_or_default();
    text + conditions + "\nOn veth the kernel copies every packet: compare rungs with each other, not with a NIC.\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ladders(veth: Option<Value>) -> Ladders {
        let rung = |name: &str, floor| Rung { name: name.into(), best: 150.0, median: 160.0, floor };
        let memory = vec![rung("stage_parse_ipv4", None), rung("to_pod_tcp_ipv4", Some(75.0))];
        let left_out = veth.is_none().then(|| "it needs root".to_owned());
        Ladders { memory, veth, left_out }
    }

    #[test]
    fn figures_stand_beside_the_floor_and_what_is_missing_has_a_reason() {
        let text = table(&ladders(None));
        assert!(text.contains("to_pod_tcp_ipv4               150      160       75   2.00"), "{text}");
        assert!(text.contains("stage_parse_ipv4              150      160        -      -"), "{text}");
        assert!(text.contains("was left out: it needs root."), "{text}");
    }

    #[test]
    fn rungs_are_told_and_what_was_not_counted_is_a_dash() {
        let latency = serde_json::json!({ "p50_us": 20.4, "p99_us": 51.0, "p99_9_us": 90.0 });
        let rung = |cpu| serde_json::json!({ "name": "raw", "family": "IPv6", "mrr_per_s": 512_345.6, "cpu_ns_per_packet": cpu, "latency": latency });
        let veth = serde_json::json!({ "conditions": "veth", "rungs": [rung(Some(1200.0)), rung(None)] });
        let text = table(&ladders(Some(veth)));
        assert!(
            text.contains("raw                          IPv6       512346         1200       20       51       90"),
            "{text}"
        );
        assert!(
            text.contains("raw                          IPv6       512346            -       20       51       90"),
            "{text}"
        );
    }
}
