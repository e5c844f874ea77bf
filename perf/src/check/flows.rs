//! Flow export: what a collector is told is what clients did, in files and over IPFIX, where nfcapd reads it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::Value;

use crate::check::serving::told;
use crate::check::{Found, Row};
use crate::client::Outcome;
use crate::gateway::Program;
use crate::process::{self, Daemon, in_namespace};
use crate::rig::{Rig, wait_until};
use crate::topology::{ECHO_PORT, FAMILIES, Family, VIP_ECHO, VIP_EMPTY, VIP_WEB, WEB_PORT};

/// Where the collector listens, in the gateway's namespace.
const COLLECTOR: &str = "127.0.0.1:4739";
/// Longest wait for a client's answer, milliseconds.
const ANSWER_MS: u64 = 3000;
/// Longest wait for a program, and for records to be where they belong.
const LIMIT: Duration = Duration::from_secs(10);

/// A line of the exporter's files about one flow.
struct Line(Value);

impl Line {
    fn text(&self, field: &str) -> &str {
        self.0[field].as_str().unwrap_or_default()
    }

    fn is_from(&self, end: &str) -> bool {
        format!("{} {}", self.text("source"), self.0["source_port"]) == end
    }

    fn is_to(&self, end: &str) -> bool {
        let left = format!("{} {}", self.text("translated_destination"), self.0["translated_destination_port"]);
        left == end
    }
}

/// All lines about packets (`sample`) or beginnings of connections (`begin`) in a directory, in order.
fn lines(directory: &Path, event: &str) -> Result<Vec<Line>> {
    let mut paths: Vec<_> = std::fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    paths.sort();
    let mut lines = Vec::new();
    for path in paths {
        for line in std::fs::read_to_string(&path)?.lines() {
            let value: Value = serde_json::from_str(line).with_context(|| format!("{}: {line}", path.display()))?;
            lines.extend((value["event"] == event).then_some(Line(value)));
        }
    }
    Ok(lines)
}

/// Has the gateway tell of every packet, and a collector of IPFIX hear it; both end with it.
pub(super) fn export(rig: &mut Rig) -> Found {
    let config = rig.gateway.config().to_owned();
    let before = std::fs::read_to_string(&config)?;
    let (directory, heard) = (rig.lab.state_dir.join("told"), rig.lab.state_dir.join("heard"));
    std::fs::create_dir_all(&heard)?;
    let section = format!(
        "  flows: {{ sampling: 1, connections: true, files: {{ directory: {} }}, ipfix: {{ collector: \"{COLLECTOR}\", templateSeconds: 1 }} }}\n\
         control:\n",
        directory.display()
    );
    std::fs::write(&config, before.replacen("control:\n", &section, 1))?;
    let found = told_of(rig, &directory, &heard);
    // The rig is left as it was, whatever was found.
    std::fs::write(&config, before)?;
    rig.gateway.end(Program::Dataplane)?;
    rig.gateway.revive()?;
    found
}

fn told_of(rig: &mut Rig, directory: &Path, heard: &Path) -> Found {
    rig.gateway.end(Program::Dataplane)?;
    let mut command = in_namespace(rig.gateway.seat.namespace, "nfcapd");
    let (address, port) = COLLECTOR.split_once(':').context("an address")?;
    command.args(["-w"]).arg(heard).args(["-b", address, "-p", port]);
    let mut collector = Daemon::start("nfcapd", command, &rig.lab.state_dir.join("nfcapd.log"))?;
    rig.gateway.revive()?;
    let mut rows = Vec::new();
    let mut asked = Vec::new();
    for family in FAMILIES {
        // It may take a moment until the gateway that was started again is used.
        let ready =
            wait_until(LIMIT, || Ok(rig.client::<Outcome>("udp", &rig.way(VIP_ECHO.at(family, ECHO_PORT), 500))?.ok))?;
        ready.with_context(|| format!("no answer over {family} after the start"))?;
        for (task, target) in [("udp", VIP_ECHO.at(family, ECHO_PORT)), ("who", VIP_WEB.at(family, WEB_PORT))] {
            let from = rig.source(family);
            let outcome: Outcome = rig.client(task, &crate::rig::way(target, from, ANSWER_MS))?;
            asked.push((family, task, from, outcome));
        }
        // Nobody is behind this one.
        let from = rig.source(family);
        let outcome: Outcome = rig.client("who", &crate::rig::way(VIP_EMPTY.at(family, WEB_PORT), from, ANSWER_MS))?;
        asked.push((family, "empty", from, outcome));
    }
    // A record is in its file half a second later.
    std::thread::sleep(Duration::from_secs(1));
    let (begun, lines) = (lines(directory, "begin")?, lines(directory, "sample")?);
    for (family, task, from, outcome) in &asked {
        let end = format!("{} {}", from.ip(), from.port());
        rows.push(of_files(*family, task, [&lines, &begun], &end, outcome));
    }
    collector.signal(Signal::TERM)?;
    collector.wait_for_end(LIMIT)?;
    rows.push(of_collector(rig, heard, &asked, &lines)?);
    rows.push(counted(rig)?);
    Ok(rows)
}

/// Questions and answers of one client, by its address and port.
fn of_files(family: Family, task: &str, [lines, begun]: [&[Line]; 2], end: &str, outcome: &Outcome) -> Row {
    let there: Vec<_> = lines.iter().filter(|line| line.is_from(end)).collect();
    let back: Vec<_> = lines.iter().filter(|line| line.is_to(end)).collect();
    let is =
        |line: &&Line, verdict: &str, service: &str| line.text("verdict") == verdict && line.text("service") == service;
    let service = match task {
        "udp" => "shop/echo",
        "who" => "shop/web",
        _ => "shop/empty",
    };
    let connections = begun.iter().filter(|line| line.is_from(end)).count();
    let measured = format!(
        "{}; {connections} begun, {} packets there, {} back, {}",
        told(outcome),
        there.len(),
        back.len(),
        there.first().map_or_else(String::new, |line| format!("{} {}", line.text("service"), line.text("verdict")))
    );
    let pod = format!("shop/{}", outcome.pod);
    let names = |line: &&Line, end: &str| {
        line.text(&format!("{end}_pod")) == pod && line.text(&format!("{end}_node")).starts_with('w')
    };
    let pass = if task == "empty" {
        !outcome.ok
            && connections == 0
            && there.len() == 1
            && back.is_empty()
            && there.iter().all(|line| is(line, "answered", service))
    } else {
        // A datagram and its answer; of a connection at least SYN, ACK, question and end, each way.
        let expected = if task == "udp" { 1..=1 } else { 3..=40 };
        outcome.ok
            && connections == 1
            && expected.contains(&there.len())
            && expected.contains(&back.len())
            && there.iter().all(|line| is(line, "forwarded", service) && names(line, "destination"))
            && back.iter().all(|line| is(line, "forwarded", service) && names(line, "source"))
            && back.iter().all(|line| line.0["is_reply"] == true)
    };
    Row::new(
        format!("{family} {task}, lines of JSON"),
        measured,
        format!("each packet once, begun once, {service}"),
        pass,
    )
}

/// What nfdump reads: as many packets from each client as the files have, and the same bytes.
fn of_collector(
    rig: &Rig,
    heard: &Path,
    asked: &[(Family, &str, std::net::SocketAddr, Outcome)],
    lines: &[Line],
) -> Result<Row> {
    let mut troubles = Vec::new();
    let mut records = 0;
    for (_, task, from, _) in asked {
        let mut command = in_namespace(rig.gateway.seat.namespace, "nfdump");
        let filter = format!("src ip {} and src port {}", from.ip(), from.port());
        command.args(["-q", "-N", "-6", "-R"]).arg(heard).args(["-o", "fmt:%pkt %byt %nda %ndp %pr"]).arg(&filter);
        let text = process::run(command, "", LIMIT)?.success("nfdump")?;
        let rows: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .filter(|row: &Vec<&str>| row.len() == 5)
            .collect();
        let end = format!("{} {}", from.ip(), from.port());
        let there: Vec<_> = lines.iter().filter(|line| line.is_from(&end)).collect();
        let sum = |at: usize| rows.iter().filter_map(|row| row.get(at)?.parse::<u64>().ok()).sum::<u64>();
        let expected = (there.len() as u64, there.iter().filter_map(|line| line.0["bytes"].as_u64()).sum::<u64>());
        let led_to = there.first().map(|line| line.text("translated_destination").to_owned()).unwrap_or_default();
        let port = there.first().map(|line| line.0["translated_destination_port"].to_string()).unwrap_or_default();
        // nfdump 1.7 does not show translated addresses of IPv6.
        let is_led = |row: &Vec<&str>| row[3] == port && (from.is_ipv6() || row[2] == led_to);
        let is_led = *task == "empty" || rows.iter().all(is_led);
        if (sum(0), sum(1)) != expected || !is_led {
            troubles.push(format!("{task} from {end}: {expected:?} to {led_to} told, nfdump has {text:?}"));
        }
        records += rows.len();
    }
    let pass = troubles.is_empty() && records > 0;
    let measured = if pass { format!("{records} records of these clients") } else { troubles.join("; ") };
    Ok(Row::new("IPFIX, read by nfcapd", measured, "the same packets, bytes and translation", pass))
}

/// Nothing was lost on the way.
fn counted(rig: &Rig) -> Result<Row> {
    let mut curl = in_namespace(rig.gateway.seat.namespace, "curl");
    curl.args(["-sS", "--max-time", "10", "http://127.0.0.1:9470/metrics"]);
    let page = process::run(curl, "", LIMIT)?.success("the page of metrics")?;
    let numbers: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with("tidegate_flow_note_lost_total") || line.starts_with("tidegate_flow_records"))
        .collect();
    let lost = |line: &&&str| line.contains("lost") && !line.ends_with(" 0.0");
    let given = |line: &&&str| line.starts_with("tidegate_flow_records_total") && !line.ends_with(" 0.0");
    let pass = !numbers.iter().any(|line| lost(&line)) && numbers.iter().filter(given).count() == 2;
    Ok(Row::new("counters", numbers.join(", "), "records to both, none lost", pass))
}
