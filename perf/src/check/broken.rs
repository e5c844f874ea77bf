//! Broken set-ups: each is broken for real, somebody notices, a tool names the object and both values; mended, the tool is
//! silent again.
//!
//! The list itself is in [`faults`]; `docs/broken-setups.md` is made from it.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use self::faults::{Break, Case, Fault, Line, broken_service};
use super::{Found, Row};
use crate::process::{self, Daemon, in_namespace};
use crate::rig::{Rig, wait_until};

/// The list.
mod faults;
/// The list as a page for people.
mod page;

pub use page::document;

/// Longest life of one command.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);
/// From a break, or its mending, until clients and tools see it.
const SEEN_LIMIT: Duration = Duration::from_secs(15);
/// How long the Service may take to appear.
const READY_LIMIT: Duration = Duration::from_secs(10);

/// All of them, one after the other.
pub(super) fn all(rig: &mut Rig) -> Found {
    let service = broken_service();
    rig.manifests.put(&service)?;
    let pods: Vec<String> = service.pods.iter().map(|pod| pod.name()).collect();
    rig.await_active_pods("shop/broken", &pods, READY_LIMIT)?;
    let mut rows = Vec::new();
    for fault in faults::all() {
        rows.extend(cases(rig, &fault)?);
    }
    rig.manifests.delete(&service)?;
    Ok(rows)
}

/// What two gateways have between them.
pub(super) fn of_two(rig: &mut Rig) -> Found {
    let found: Result<Vec<_>> = faults::of_two_gateways().iter().map(|fault| cases(rig, fault)).collect();
    Ok(found?.into_iter().flatten().collect())
}

/// One fault in each family, with what it needs in place.
fn cases(rig: &Rig, fault: &Fault) -> Found {
    let mut undo = Vec::new();
    let given: Result<()> = fault.given.iter().try_for_each(|each| {
        undo.push(each.apply(rig)?);
        Ok(())
    });
    let row = |case| {
        looked_at(rig, fault, case).unwrap_or_else(|error| {
            Row::new(named(fault, case), format!("{error:#}"), "can be broken, asked and mended", false)
        })
    };
    let rows = given.map(|()| fault.cases.iter().map(row).collect());
    mend(rig, undo).with_context(|| format!("after {}", fault.name))?;
    rows.with_context(|| format!("before {}", fault.name))
}

/// Takes changes back, the last one first: a file may be changed twice.
fn mend(rig: &Rig, undo: Vec<Undo>) -> Result<()> {
    // All of them, whatever happens to one.
    let tried: Vec<Result<()>> = undo.into_iter().rev().map(|each| each.apply(rig)).collect();
    tried.into_iter().collect()
}

fn named(fault: &Fault, case: &Case) -> String {
    case.family.map_or_else(|| fault.name.to_owned(), |family| format!("{} {family}", fault.name))
}

/// Breaks, asks, mends and asks again. What was broken is mended whatever is found.
fn looked_at(rig: &Rig, fault: &Fault, case: &Case) -> Result<Row> {
    let name = named(fault, case);
    let mut troubles = Vec::new();
    let before = well(rig, case).with_context(|| format!("{name}, before"))?;
    troubles.extend(before.map(|trouble| format!("before: {trouble}")));
    let mut undo = Vec::new();
    let told = broken(rig, case, &mut undo);
    mend(rig, undo).with_context(|| format!("mending {name}"))?;
    troubles.extend(told.with_context(|| name.clone())?);
    let after = well(rig, case).with_context(|| format!("{name}, mended"))?;
    troubles.extend(after.map(|trouble| format!("mended: {trouble}")));
    let pass = troubles.is_empty();
    let measured = if pass { case.says.join(" … ") } else { troubles.join("; ") };
    Ok(Row::new(name, measured, "named; silent before and after", pass))
}

/// What is not as it should be on a healthy lab: clients are served, and the tool says nothing of it.
fn well(rig: &Rig, case: &Case) -> Result<Option<String>> {
    if let Some(probe) = &case.probe
        && wait_until(SEEN_LIMIT, || works(probe))?.is_none()
    {
        return Ok(Some(format!("{:?} fails", probe.command)));
    }
    let mut told = String::new();
    let silent = wait_until(SEEN_LIMIT, || {
        told = asked(rig, case)?;
        Ok(case.says.iter().all(|part| !told.contains(part.as_str())))
    })?;
    Ok(silent.is_none().then(|| format!("{:?} says {told}", case.command)))
}

/// What the tool does not say while it is broken, or that nobody notices. `undo` is what mends it.
fn broken(rig: &Rig, case: &Case, undo: &mut Vec<Undo>) -> Result<Option<String>> {
    for each in &case.breaks {
        undo.push(each.apply(rig)?);
    }
    if let Some(probe) = &case.probe
        && wait_until(SEEN_LIMIT, || Ok(!works(probe)?))?.is_none()
    {
        return Ok(Some(format!("{:?} goes on to work", probe.command)));
    }
    let mut told = String::new();
    let named = wait_until(SEEN_LIMIT, || {
        told = asked(rig, case)?;
        Ok(case.says.iter().all(|part| told.contains(part.as_str())))
    })?;
    Ok(named.is_none().then(|| format!("{:?} says {told}", case.command)))
}

/// What the tool says, while the traffic goes on that it is to see.
fn asked(rig: &Rig, case: &Case) -> Result<String> {
    let traffic = case.traffic.as_ref().or(case.probe.as_ref());
    let running = traffic.map(|line| {
        // Nobody waits for an answer that does not come: a client asks once a second at most, and a capture of one second that
        // begins just behind it would see nothing.
        let again = format!("for time in $(seq 100); do {} >/dev/null 2>&1 & sleep 0.1; done", line.command);
        let log = rig.lab.state_dir.join("broken-traffic.log");
        Daemon::start("traffic", shell(&line.namespace, &again), &log)
    });
    let running = running.transpose()?;
    let [_, _, tidegate] = rig.gateway.programs();
    let programs = tidegate.parent().context("the command has no directory")?.display();
    let line = format!("PATH={programs}:$PATH; cd {}; {}", rig.lab.state_dir.display(), case.command);
    let finished = process::run(shell(&case.at, &line), "", COMMAND_LIMIT)?;
    drop(running);
    Ok(format!("{}{}", finished.stdout, finished.stderr))
}

fn works(line: &Line) -> Result<bool> {
    let finished = process::run(shell(&line.namespace, &line.command), "", COMMAND_LIMIT)?;
    Ok(finished.status.success())
}

fn shell(namespace: &str, line: &str) -> std::process::Command {
    let mut command = in_namespace(namespace, "sh");
    command.args(["-c", line]);
    command
}

/// What takes a break back.
enum Undo {
    /// A shell command.
    Run(Line),
    /// A manifest as it was.
    Put(String, String),
    /// A manifest that was not there.
    Remove(String),
}

impl Undo {
    fn apply(self, rig: &Rig) -> Result<()> {
        match self {
            Undo::Run(line) => run(rig, &line),
            Undo::Put(file, text) => rig.manifests.put_text(&file, &text),
            Undo::Remove(file) => rig.manifests.remove_text(&file),
        }
    }
}

impl Break {
    /// Breaks it; returns what mends it.
    fn apply(&self, rig: &Rig) -> Result<Undo> {
        match self {
            Break::Run { line, mend } => {
                run(rig, line)?;
                Ok(Undo::Run(Line { command: mend.clone(), ..line.clone() }))
            }
            Break::Edit { file, from, to } => {
                let text = std::fs::read_to_string(rig.manifests.directory().join(file))?;
                if !text.contains(from.as_str()) {
                    bail!("{file} has no {from:?}: {text}");
                }
                rig.manifests.put_text(file, &text.replace(from.as_str(), to))?;
                Ok(Undo::Put(file.clone(), text))
            }
            Break::Add { file, text } => {
                rig.manifests.put_text(file, text)?;
                Ok(Undo::Remove(file.clone()))
            }
        }
    }
}

fn run(rig: &Rig, line: &Line) -> Result<()> {
    let command = format!("cd {}; {}", rig.lab.state_dir.display(), line.command);
    process::run(shell(&line.namespace, &command), "", COMMAND_LIMIT)?.success(&line.command)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{FAMILIES, GATEWAY};

    #[test]
    fn faults_of_one_family_are_told_for_both() {
        for fault in faults::all().into_iter().chain(faults::of_two_gateways()) {
            let families: Vec<_> = fault.cases.iter().filter_map(|case| case.family).collect();
            assert!(families.is_empty() || families == FAMILIES || fault.is_of_one_family, "{}", fault.name);
            for case in &fault.cases {
                assert!(!case.says.is_empty() && !case.breaks.is_empty(), "{}", fault.name);
                assert!(case.at == GATEWAY || case.command.contains("--worker"), "{}", fault.name);
            }
        }
    }

    #[test]
    fn the_page_in_the_documents_is_this_one() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/broken-setups.md");
        if std::env::var_os("TIDEGATE_WRITE_GOLDEN").is_some() {
            std::fs::write(&path, document()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), document(), "TIDEGATE_WRITE_GOLDEN=1 writes it anew");
    }
}
