//! `tidegate nat`: who spoke from an address of ours, now or then.
//!
//! Reads the ledger's files, not the dataplane: it works for yesterday, and while nothing runs.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tidegate_ledger::{Answer, Found, Gap, Protocol, Question, who};

use crate::columns::{Columns, text};

/// Where the dataplane keeps its ledger unless the node file says otherwise.
pub const LEDGER_DEFAULT: &str = "/var/lib/tidegate/nat";

/// Arguments of `tidegate nat`.
#[derive(Debug, Args)]
pub struct NatArguments {
    /// The question.
    #[command(subcommand)]
    pub what: NatQuestion,
}

/// The questions of `tidegate nat`.
#[derive(Clone, Debug, Subcommand)]
pub enum NatQuestion {
    /// Who had this external address and port
    #[command(after_help = "\
Examples:
  tidegate nat who 192.0.2.10:40001
  tidegate nat who 192.0.2.10:40001 --to 198.51.100.7:443 --at 2026-01-31T23:59:30Z
  tidegate nat who [2001:db8::10]:40001 --protocol udp --at 90m")]
    Who {
        /// What the outside saw; an echo's identifier is its port
        #[arg(value_name = "ADDRESS:PORT", value_parser = endpoint)]
        external: SocketAddr,
        /// Who saw it: tells apart those who share the port, each towards another remote
        #[arg(long, value_name = "ADDRESS:PORT", value_parser = endpoint)]
        to: Option<SocketAddr>,
        /// When: RFC 3339, or how long ago, like 90m or 1h30m [default: now]
        #[arg(long, value_name = "TIME", value_parser = moment)]
        at: Option<Timestamp>,
        /// Only this protocol
        #[arg(long)]
        protocol: Option<Named>,
        /// Directory of the ledger
        #[arg(long, value_name = "DIRECTORY", default_value = LEDGER_DEFAULT)]
        ledger: PathBuf,
        /// One line of JSON for each who had it
        #[arg(long)]
        json: bool,
    },
}

/// A protocol by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Named {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// ICMP echo.
    Icmp,
    /// ICMPv6 echo.
    Icmpv6,
}

impl From<Named> for Protocol {
    fn from(named: Named) -> Protocol {
        match named {
            Named::Tcp => Protocol::Tcp,
            Named::Udp => Protocol::Udp,
            Named::Sctp => Protocol::Sctp,
            Named::Icmp => Protocol::Icmp,
            Named::Icmpv6 => Protocol::Icmpv6,
        }
    }
}

/// What there is to say. A question that nobody answers to is a failure for scripts, and the text says how far the
/// ledger reaches.
///
/// # Errors
/// When the ledger cannot be read, and when nobody had the port.
pub fn run(arguments: &NatArguments, as_json: bool) -> anyhow::Result<String> {
    let NatQuestion::Who { external, to, at, protocol, ledger, json } = &arguments.what;
    if let Some(to) = to.filter(|to| to.is_ipv4() != external.is_ipv4()) {
        bail!("{to} is not of the family of {external}: they cannot have spoken");
    }
    let at = at.unwrap_or_else(Timestamp::now);
    let protocol = protocol.map(Protocol::from);
    let question = Question { external: external.ip(), port: external.port(), protocol, remote: *to, at };
    let found = who(ledger, &question).context("reading the ledger")?;
    if found.answers.is_empty() {
        bail!(nobody(&question, &found));
    }
    let missing = missing(&found);
    let mut text = if *json || as_json { lines(&found.answers)? } else { table(&found.answers) };
    match missing.trim_start() {
        "" => {}
        // Lines for programs are one for each who had it, and nothing else.
        missing if *json || as_json => eprintln!("{missing}"),
        missing => text += &format!("{missing}\n"),
    }
    Ok(text)
}

fn nobody(question: &Question, found: &Found) -> String {
    let external = SocketAddr::new(question.external, question.port);
    let mut text = format!("nobody is recorded at {external} at {}", question.at.strftime("%FT%TZ"));
    let _ = match found.reaches_back_to {
        None => write!(text, "; the ledger is empty: records are made for policies that log"),
        Some(from) if question.at < from => write!(text, "; the ledger reaches back to {}", from.strftime("%FT%TZ")),
        Some(_) => Ok(()),
    };
    text + &missing(found)
}

/// What is missing, a line for each gap.
fn missing(found: &Found) -> String {
    let line = |gap: &Gap| {
        let (from, until) = (shown(gap.from), shown(gap.until));
        format!(
            "\n{} records are missing from {from} to {until}: who got a port then, or gave one back, is not known",
            gap.count
        )
    };
    found.gaps.iter().map(line).collect()
}

fn table(answers: &[Answer]) -> String {
    let mut columns = Columns::new([
        text("POD"),
        text("NODE"),
        text("POLICY"),
        text("INTERNAL"),
        text("PROTOCOL"),
        text("PORTS"),
        text("REMOTE"),
        text("SINCE"),
        text("UNTIL"),
    ]);
    for Answer { holding, since, until, cut_short } in answers {
        let internal = match holding.internal_port {
            Some(port) => SocketAddr::new(holding.internal, port).to_string(),
            None => holding.internal.to_string(),
        };
        let ports = match holding.ports {
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        };
        let until = match until {
            None => "now".into(),
            Some(until) if *cut_short => format!("{} (restart)", shown(*until)),
            Some(until) => shown(*until),
        };
        columns.row([
            holding.pod.clone(),
            holding.node.clone(),
            holding.policy.clone(),
            internal,
            holding.protocol.to_string(),
            ports,
            holding.remote.map_or("any".into(), |remote| remote.to_string()),
            shown(*since),
            until,
        ]);
    }
    columns.render()
}

fn shown(at: Timestamp) -> String {
    at.strftime("%FT%T%.3fZ").to_string()
}

fn lines(answers: &[Answer]) -> anyhow::Result<String> {
    let mut text = String::new();
    for Answer { holding, since, until, cut_short } in answers {
        let mut line = serde_json::to_value(holding)?;
        if let Some(line) = line.as_object_mut() {
            line.insert("since".into(), json!(since));
            line.insert("until".into(), json!(until));
            line.insert("cut_short".into(), json!(cut_short));
        }
        writeln!(text, "{line}")?;
    }
    Ok(text)
}

fn endpoint(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "expected ADDRESS:PORT, like 192.0.2.10:40001 or [2001:db8::10]:40001".into())
}

fn moment(text: &str) -> Result<Timestamp, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    let wrong = || "expected RFC 3339, like 2026-01-31T23:59:30Z, or how long ago, like 90m or 1h30m".to_owned();
    let ago: SignedDuration = text.trim_end_matches("ago").trim().parse().map_err(|_| wrong())?;
    if ago.is_negative() {
        return Err("lies ahead".into());
    }
    Timestamp::now().checked_sub(ago).map_err(|_| wrong())
}
