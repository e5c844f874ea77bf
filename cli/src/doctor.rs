//! `tidegate doctor`: findings about this machine as text or JSON, and whether scripts may go on.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use tidegate_doctor::{Finding, Machine, Verdict, examine};

use crate::columns::printable;

/// Where a gateway's node file is unless told otherwise.
const NODE_FILE: &str = "/etc/tidegate/node.yaml";

/// Arguments of `tidegate doctor`.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0, or 1 if something fails (with --strict: or is worth a warning).

Examples:
  tidegate doctor
  tidegate doctor --config node.yaml --all
  tidegate doctor --worker
  tidegate doctor --json --strict")]
pub struct DoctorArguments {
    /// Node file of the gateway that this machine is to be [default: /etc/tidegate/node.yaml if it is there]
    #[arg(long, value_name = "FILE", conflicts_with = "worker")]
    pub config: Option<PathBuf>,
    /// Look at a worker: a machine whose pods a gateway reaches
    #[arg(long)]
    pub worker: bool,
    /// Also print what is fine
    #[arg(long)]
    pub all: bool,
    /// Fail on warnings too
    #[arg(long)]
    pub strict: bool,
    /// Print findings as JSON, for programs
    #[arg(id = "json-doctor", long = "json")]
    pub json: bool,
}

/// What to print, and whether all is well.
///
/// # Errors
/// The findings cannot be written as JSON.
pub fn run(arguments: &DoctorArguments, json: bool) -> anyhow::Result<(String, bool)> {
    let default = Path::new(NODE_FILE);
    let file = match &arguments.config {
        Some(file) => Some(file.as_path()),
        None => Some(default).filter(|file| !arguments.worker && file.exists()),
    };
    let findings = examine(&Machine::default(), file);
    let bearable = if arguments.strict { Verdict::Note } else { Verdict::Warn };
    let well = findings.iter().all(|finding| finding.verdict <= bearable);
    if json {
        return Ok((serde_json::to_string_pretty(&findings)? + "\n", well));
    }
    let mut text = told(&findings, arguments.all);
    if file.is_none() && !arguments.worker {
        let _ = writeln!(
            text,
            "Looked at as a worker: there is no {NODE_FILE}, and no other file was named with --config."
        );
    }
    Ok((text, well))
}

/// Findings as lines that a terminal may be given, whatever names are in them, and their sum. What is said of the one before in the same words is not said again.
fn told(findings: &[Finding], all: bool) -> String {
    let mut text = String::new();
    let (mut why, mut fix) = ("", None);
    for finding in findings.iter().filter(|finding| all || finding.verdict != Verdict::Ok) {
        let blank = if finding.subject.is_empty() { "" } else { " " };
        let _ = writeln!(
            text,
            "{:<5} {}{blank}{}: {}",
            word(finding.verdict),
            finding.check,
            printable(&finding.subject),
            printable(&finding.found)
        );
        if finding.verdict == Verdict::Ok {
            continue;
        }
        let is_told = why == finding.why;
        if !is_told {
            let _ = writeln!(text, "      why: {}", finding.why);
        }
        if let Some(command) = finding.fix.as_ref().filter(|_| !(is_told && fix == finding.fix)) {
            let _ = writeln!(text, "      fix: {}", printable(command));
        }
        (why, fix) = (finding.why, finding.fix.clone());
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let _ = writeln!(
        text,
        "{} fail, {} warn, {} to note, {} fine",
        count(Verdict::Fail),
        count(Verdict::Warn),
        count(Verdict::Note),
        count(Verdict::Ok)
    );
    text
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "ok",
        Verdict::Note => "note",
        Verdict::Warn => "warn",
        Verdict::Fail => "FAIL",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(verdict: Verdict, fix: Option<&str>) -> Finding {
        let (check, why) = ("mtu", "a tunnel adds bytes");
        Finding { check, subject: "wan0".into(), verdict, found: "MTU 1400".into(), why, fix: fix.map(Into::into) }
    }

    #[test]
    fn what_is_fine_is_counted_and_what_is_not_is_explained() {
        let findings = [finding(Verdict::Ok, None), finding(Verdict::Fail, Some("ip link set dev wan0 mtu 1500"))];
        assert_eq!(
            told(&findings, false),
            "FAIL  mtu wan0: MTU 1400\n      why: a tunnel adds bytes\n      fix: ip link set dev wan0 mtu 1500\n\
             1 fail, 0 warn, 0 to note, 1 fine\n"
        );
        assert!(told(&findings, true).starts_with("ok    mtu wan0: MTU 1400\nFAIL"));
    }

    #[test]
    fn one_why_and_one_command_are_enough_for_neighbours() {
        let of = |fix| finding(Verdict::Warn, Some(fix));
        let lines: Vec<String> =
            told(&[of("a"), of("a"), of("b"), of("a")], false).lines().map(|line| line.trim().to_owned()).collect();
        let found = "warn  mtu wan0: MTU 1400";
        let expected = [found, "why: a tunnel adds bytes", "fix: a", found, found, "fix: b", found, "fix: a"];
        assert_eq!(lines[..8], expected);
    }

    #[test]
    fn names_give_no_orders_to_a_terminal() {
        let strange =
            Finding { subject: "\u{1b}[31mR7\n".into(), ..finding(Verdict::Warn, Some("ip link set dev \u{7}x")) };
        let text = told(&[strange], false);
        assert!(!text.contains(|each: char| each.is_control() && each != '\n'), "{text:?}");
        assert!(text.starts_with("warn  mtu \\u{1b}[31mR7\\n: MTU 1400\n"), "{text:?}");
    }
}
