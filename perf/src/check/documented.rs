//! The check of the documents: commands that look, as they stand there, typed at the gateway of the lab.
//!
//! Those that change something, wait for somebody or need what the lab does not have (a NIC, a cluster, a file) are not
//! typed: captures, drains and `doctor` have checks of their own, and of every line a test of `cli` proves that its program
//! takes it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::check::{Found, Row};
use crate::process::{self, in_namespace};
use crate::rig::Rig;
use crate::topology::GATEWAY;

/// Documents whose commands somebody at a gateway types.
const DOCUMENTS: [(&str, &str); 10] = [
    ("README.md", include_str!("../../../README.md")),
    ("docs/explain.md", include_str!("../../../docs/explain.md")),
    ("docs/gateway.md", include_str!("../../../docs/gateway.md")),
    ("docs/gateways.md", include_str!("../../../docs/gateways.md")),
    ("docs/kubernetes-install.md", include_str!("../../../docs/kubernetes-install.md")),
    ("docs/node-dsr.md", include_str!("../../../docs/node-dsr.md")),
    ("docs/runbooks.md", include_str!("../../../docs/runbooks.md")),
    ("docs/top.md", include_str!("../../../docs/top.md")),
    ("docs/troubleshooting.md", include_str!("../../../docs/troubleshooting.md")),
    ("docs/upgrade.md", include_str!("../../../docs/upgrade.md")),
];
/// How such a command begins.
const LOOKS: [&str; 4] = ["tidegate show ", "tidegate explain ", "tidegate health", "tidegate top"];
/// What it does not have: an end that does not come, and what others left.
const NOT_HERE: [&str; 5] = ["--watch", "--state", "--pcap", "…", "|"];
/// Longest life of one: `top` looks twice, up to five seconds apart.
const LIMIT: Duration = Duration::from_secs(20);

/// Commands of a document that can be typed, each once. Several may stand in a line, in columns or with `;` between them.
fn commands(text: &str) -> BTreeSet<String> {
    let mut in_block = false;
    let typed = text.lines().map(str::trim).filter(|line| {
        let is_fence = line.starts_with("```");
        in_block ^= is_fence;
        in_block && !is_fence
    });
    let parts = typed.flat_map(|line| line.trim_start_matches("$ ").split(';').flat_map(|part| part.split("  ")));
    let looks = parts.map(str::trim).filter(|part| LOOKS.iter().any(|look| part.starts_with(look)));
    looks.filter(|part| NOT_HERE.iter().all(|word| !part.contains(word))).map(String::from).collect()
}

/// Types all of them.
pub(super) fn typed(rig: &mut Rig) -> Found {
    let mut rows = Vec::new();
    for (document, text) in DOCUMENTS {
        let commands = commands(text);
        let mut failed = Vec::new();
        for command in &commands {
            if let Some(complaint) = complaint(rig, command)? {
                failed.push(format!("{command}: {complaint}"));
            }
        }
        let measured = match failed.is_empty() {
            true => format!("{} commands", commands.len()),
            false => failed.join("; "),
        };
        rows.push(Row::new(document, measured, "some, each with an answer", failed.is_empty() && !commands.is_empty()));
    }
    Ok(rows)
}

/// What a shell at the gateway says of a command that fails.
fn complaint(rig: &Rig, command: &str) -> Result<Option<String>> {
    let program = rig.gateway.program("tidegate");
    let mut path = OsString::from(program.parent().context("a program has a directory")?);
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    // The view that never ends ends after a frame.
    let once = if command.starts_with("tidegate top") && !command.contains("--once") { " --once" } else { "" };
    let mut shell = in_namespace(GATEWAY, "sh");
    shell.args(["-ec", &format!("{command}{once}")]).current_dir(&rig.lab.state_dir);
    shell.env("PATH", path).env("TIDEGATE_SOCKET", rig.gateway.seat.socket);
    let finished = process::run(shell, "", LIMIT)?;
    let is_fine = finished.status.success() && finished.stderr.is_empty();
    Ok((!is_fine).then(|| format!("{} {}", process::describe(finished.status), finished.stderr.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_in_blocks_and_told_apart() {
        let text = "`tidegate show flows`\n\n```\n$ tidegate show drops > a; tidegate top      tidegate health --ready  # all\n\
                    tidegate drain\ntidegate show drops --watch\n```\n";
        let expected = ["tidegate health --ready", "tidegate show drops > a", "tidegate top"];
        assert_eq!(commands(text).into_iter().collect::<Vec<_>>(), expected);
        for (document, text) in DOCUMENTS {
            assert!(!commands(text).is_empty(), "{document}");
        }
    }
}
