//! The gateway's programs in the machine: started, asked, killed and ended through its shell.
//!
//! Owns their processes and logs there. Refuses to know what the answers should be.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;

use super::machine::Machine;
use crate::enclosure::STATE_DIR;
use crate::gateway::Program;

/// Longest wait for a program to say that it is ready, and for one to end.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// Longest wait for anything else.
const LIMIT: Duration = Duration::from_secs(30);

/// The programs, running or not.
#[derive(Debug)]
pub(super) struct GuestGateway {
    pub(super) machine: Machine,
    /// How often a program was started: each run has its log.
    runs: u32,
}

impl GuestGateway {
    /// Starts nothing yet.
    pub(super) fn new(machine: Machine) -> GuestGateway {
        GuestGateway { machine, runs: 0 }
    }

    /// Starts a program and waits until it is ready. Its process number stays in a variable of the guest's shell.
    pub(super) fn start(&mut self, program: Program) -> Result<()> {
        self.runs += 1;
        let (name, pid) = (program.name(), pid(program));
        let log = format!("{STATE_DIR}/{name}.{}.log", self.runs);
        let start = format!("{name} --config {STATE_DIR}/node.yaml </dev/null >{log} 2>&1 & {pid}=$!");
        self.run(&start)?;
        // Bounded here as well, so that the shell can tell the log of a program that does not get there.
        let wait = format!(
            "for try in $(seq {tries}); do grep -q '{name} ready' {log} && break; kill -0 ${pid} || break; sleep 0.2; done; \
             grep -q '{name} ready' {log} || {{ cat {log}; false; }}",
            tries = READY_LIMIT.as_secs() * 2
        );
        self.machine.run(&wait, READY_LIMIT)?.success(&format!("starting {name}"))?;
        Ok(())
    }

    /// Sends a signal to a program, waits for its end and returns the status that the guest's shell tells: the exit
    /// code, or 128 and the number of the signal that ended it.
    pub(super) fn end(&mut self, program: Program, signal: &str) -> Result<i32> {
        let pid = pid(program);
        let answer = self.machine.run(&format!("kill -{signal} ${pid}; wait ${pid}"), READY_LIMIT)?;
        Ok(answer.code)
    }

    /// What `tidegate show QUESTION --json` tells in the guest.
    pub(super) fn show<T: DeserializeOwned>(&mut self, question: &str) -> Result<T> {
        let text = self.run(&format!("tidegate show {question} --json"))?;
        serde_json::from_str(&text).with_context(|| format!("show {question} --json: {text}"))
    }

    /// Runs a command that must succeed and returns what it says.
    pub(super) fn run(&mut self, line: &str) -> Result<String> {
        self.machine.run(line, LIMIT)?.success(line)
    }

    /// Everything that the gateway and its kernel tell of their state, for people.
    pub(super) fn state(&mut self) -> String {
        let mut text = String::new();
        // Busybox has an ip of its own, without these.
        for line in [
            "tidegate show ports",
            "tidegate show drops",
            "tidegate show neighbours",
            "/programs/ip -s link",
            "/programs/ip neigh",
        ] {
            let told = self.machine.run(line, LIMIT).map_or_else(|error| format!("{error:#}"), |answer| answer.text);
            text += &format!("--- guest: {line}\n{told}\n");
        }
        text
    }

    /// The last lines of all logs.
    pub(super) fn log_tails(&mut self, lines_max: usize) -> String {
        let tails = format!("for log in {STATE_DIR}/*.log; do echo \"--- $log\"; tail -n {lines_max} $log; done");
        self.run(&tails).unwrap_or_else(|error| format!("no logs: {error:#}"))
    }
}

/// Variable of the guest's shell with the process number of a program.
fn pid(program: Program) -> &'static str {
    match program {
        Program::Dataplane => "dataplane",
        Program::Control => "control",
    }
}
