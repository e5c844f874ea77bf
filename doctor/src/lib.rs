//! `tidegate doctor`: a machine looked over before, or while, it is a gateway or a worker.
//!
//! Owns the list of what is looked at and the verdict on each, why it matters and the command that mends it. Changes nothing
//! and sends no packet. Refuses to know what a running dataplane does with packets: that is `tidegate show`. It is asked one
//! thing, whether it hears control, which nothing on the machine would tell otherwise.
//!
//! Facts are read from below a root ([`Machine`]) and from the kernel's answers about devices; every check is a function from
//! facts to findings, so that a machine that is broken in some way can be made of a few files. Where a fact cannot be had, the
//! finding says so: silence always means that it was looked at and is fine.

#![forbid(unsafe_code)]

use std::path::Path;

use serde::Serialize;
use tidegate_dataplane::config::{ConfigError, NodeFile};

/// Where facts come from.
mod machine;
/// What is looked at.
mod check;

pub use machine::Machine;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Works; somebody should know.
    Note,
    /// Works, but slower, or not under all circumstances.
    Warn,
    /// Does not work.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Name of the check, the same in every version.
    pub check: &'static str,
    /// Device, core or file it is about; empty: the machine.
    pub subject: String,
    /// How bad it is.
    pub verdict: Verdict,
    /// What was found, with both values where two must agree.
    pub found: String,
    /// Why it matters.
    pub why: &'static str,
    /// The command that mends it, or what to do where no command does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Finding {
    fn new(check: &'static str, subject: impl Into<String>, verdict: Verdict, found: impl Into<String>) -> Finding {
        Finding { check, subject: subject.into(), verdict, found: found.into(), why: check::why(check), fix: None }
    }

    /// A command is there to be pasted into a shell: the subject in it is quoted where its name would be more than a name.
    fn mended_by(self, fix: impl Into<String>) -> Finding {
        let fix = fix.into();
        let is_plain = |character: char| character.is_ascii_alphanumeric() || "._-@:/,+ []".contains(character);
        let fix = match self.subject.chars().all(is_plain) {
            true => fix,
            false => fix.replace(&self.subject, &format!("'{}'", self.subject.replace('\'', "'\\''"))),
        };
        Finding { fix: Some(fix), ..self }
    }
}

/// Looks at `machine`. With `node_file` it is to be a gateway as that file says; without, a worker whose overlay reaches one.
/// Findings come in the order of their subjects, not of their verdicts.
pub fn examine(machine: &Machine, node_file: Option<&Path>) -> Vec<Finding> {
    match node_file.map(NodeFile::read) {
        None => check::worker(machine),
        Some(Ok(file)) => check::gateway(machine, &file),
        Some(Err(error)) => {
            let mut findings = vec![not_read(&error)];
            findings.extend(check::worker(machine));
            findings
        }
    }
}

fn not_read(error: &ConfigError) -> Finding {
    Finding::new("node-file", "", Verdict::Fail, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_a_command_is_a_name_to_the_shell() {
        for (name, expected) in [
            ("lan0", "ip link set dev lan0 up"),
            ("eth0.100", "ip link set dev eth0.100 up"),
            ("$(id)", "ip link set dev '$(id)' up"),
            ("a;reboot", "ip link set dev 'a;reboot' up"),
            ("it's", "ip link set dev 'it'\\''s' up"),
        ] {
            let finding = Finding::new("mtu", name, Verdict::Warn, "x").mended_by(format!("ip link set dev {name} up"));
            assert_eq!(finding.fix.as_deref(), Some(expected));
        }
    }
}
