//! Instructions per packet: as recorded in the repository, and as callgrind counts them.
//!
//! A count repeats exactly where a time does not, on whatever machine, as long as the compiler is the same; with another one
//! only a large growth is found. So it guards the paths against growing unnoticed; it says nothing of caches, and nothing of
//! how many instructions run side by side.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path as File, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread::ScopedJoinHandle;

use anyhow::{Context, anyhow, ensure};
use serde::{Deserialize, Serialize};
use tidegate_dataplane::rig::Net;

use crate::course::{Course, Path, Plan};
use crate::rules;

/// Packets of a counted pass.
const PACKETS: usize = 512;
/// Flows that a counted pass finds: few, since callgrind counts no misses and most of its time goes into making them.
const FLOWS: u32 = 128;
/// Growth in percent that is let pass: what a compiler does differently without being asked to.
const TOLERANCE_PERCENT: f64 = 3.0;
/// The same where it was counted with another compiler than it was recorded with.
const OTHER_COMPILER_PERCENT: f64 = 20.0;

/// What the repository says: `benches/instructions.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The compiler it was counted with, as `rustc --version` says.
    pub compiler: String,
    /// The processor's architecture.
    pub arch: String,
    /// Instructions per packet.
    pub paths: BTreeMap<String, f64>,
}

/// Where the record is.
#[must_use]
pub fn file() -> PathBuf {
    File::new(env!("CARGO_MANIFEST_DIR")).join("instructions.json")
}

/// The paths in the order they are counted, by name.
pub fn paths() -> impl Iterator<Item = (Path, Net, String)> {
    let both = |path: Path| Net::BOTH.into_iter().zip(["ipv4", "ipv6"]).map(move |(net, family)| (path, net, family));
    Path::ALL.into_iter().flat_map(both).map(|(path, net, family)| (path, net, format!("{}_{family}", path.name())))
}

/// Numbers of rules for which questions to policies are counted, and the names under which they are.
fn lookups() -> impl Iterator<Item = (u32, String)> {
    [10, 1_000, 10_000].into_iter().map(|rules| (rules, format!("policy_lookup_{rules}")))
}

/// Everything that is counted.
fn names() -> impl Iterator<Item = String> {
    paths().map(|(_, _, name)| name).chain(lookups().map(|(_, name)| name))
}

/// Goes a path once, for whoever counts; without a name every one.
///
/// # Errors
/// When packets went another way than that of their path.
pub fn go(only: Option<&str>) -> anyhow::Result<()> {
    for (path, net, name) in paths().filter(|(_, _, name)| only.is_none_or(|only| only == name)) {
        let mut course = Course::new(Plan::new(path, net, FLOWS, PACKETS)).with_context(|| name.clone())?;
        course.pass(PACKETS).with_context(|| name.clone())?;
    }
    for (rules, _) in lookups().filter(|(_, name)| only.is_none_or(|only| only == name)) {
        let compiler = rules::one_program(rules, rules::PODS);
        let questions = rules::questions(rules::PODS, u32::try_from(PACKETS)?);
        rules::counted_turns_of_questions(compiler.table(), &questions);
    }
    Ok(())
}

/// Counts every path by running this program once more for each, under callgrind; as many at once as there are cores.
///
/// # Errors
/// When there is no valgrind, or it does not say what it should.
pub fn count() -> anyhow::Result<Record> {
    let folder = tempfile::tempdir()?;
    let names: Mutex<Vec<String>> = Mutex::new(names().collect());
    let next = || names.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let some = || -> anyhow::Result<Vec<(String, f64)>> {
        std::iter::from_fn(next).map(|name| Ok((name.clone(), count_one(&name, &folder.path().join(&name))?))).collect()
    };
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let counted = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(some)).collect();
        let join =
            |thread: ScopedJoinHandle<'_, _>| thread.join().unwrap_or_else(|_| Err(anyhow!("a count has panicked")));
        threads.into_iter().map(join).collect::<anyhow::Result<Vec<_>>>()
    })?;
    let paths = counted.into_iter().flatten().collect();
    Ok(Record { compiler: compiler()?, arch: std::env::consts::ARCH.into(), paths })
}

/// Instructions per packet of one path.
fn count_one(name: &str, out: &File) -> anyhow::Result<f64> {
    let mut callgrind = Command::new("valgrind");
    // Counted from the first turn of the pass to its last.
    callgrind.args(["--tool=callgrind", "--quiet", "--collect-atstart=no", "--toggle-collect=*counted_turns*"]);
    callgrind.arg(format!("--callgrind-out-file={}", out.display()));
    callgrind.arg(std::env::current_exe()?).args(["go", name]).stdout(Stdio::null());
    let status = callgrind.status().context("valgrind (of the Debian package of that name)")?;
    ensure!(status.success(), "{name} could not be counted: {status}");
    let dump = fs::read_to_string(out).with_context(|| out.display().to_string())?;
    let instructions = total(&dump).with_context(|| format!("no total for {name}"))?;
    ensure!(instructions > PACKETS as u64, "{name}: callgrind counted {instructions} instructions");
    Ok((instructions as f64 / PACKETS as f64 * 10.0).round() / 10.0)
}

/// The sum that a callgrind dump ends with.
fn total(dump: &str) -> Option<u64> {
    let line = dump.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")))?;
    line.split_whitespace().next()?.parse().ok()
}

fn compiler() -> anyhow::Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let said = Command::new(rustc).arg("--version").output().context("rustc --version")?;
    Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned())
}

/// What the repository says.
///
/// # Errors
/// When it says nothing, or nothing understandable.
pub fn recorded() -> anyhow::Result<Record> {
    let file = file();
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    serde_json::from_str(&text).with_context(|| file.display().to_string())
}

/// Writes what was counted where [`recorded`] reads it.
///
/// # Errors
/// When that fails.
pub fn accept(counted: &Record) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(counted)?;
    text.push('\n');
    Ok(fs::write(file(), text)?)
}

/// One line per path: recorded, counted, change in percent.
#[must_use]
pub fn table(recorded: &Record, counted: &Record) -> String {
    let mut text = format!("{:<22} {:>10} {:>10} {:>8}\n", "instructions/packet", "recorded", "counted", "change");
    for (name, count) in &counted.paths {
        let line = match recorded.paths.get(name) {
            Some(before) => format!("{name:<22} {before:>10.1} {count:>10.1} {:>+7.1}%\n", change(*before, *count)),
            None => format!("{name:<22} {:>10} {count:>10.1}\n", "-"),
        };
        text.push_str(&line);
    }
    text
}

/// Growth in percent that is let pass between these two. Another compiler writes other code, and another processor has other
/// instructions: then only what nobody could overlook is found.
pub fn tolerance(recorded: &Record, counted: &Record) -> f64 {
    if recorded.arch != counted.arch {
        f64::INFINITY
    } else if recorded.compiler != counted.compiler {
        OTHER_COMPILER_PERCENT
    } else {
        TOLERANCE_PERCENT
    }
}

fn change(before: f64, after: f64) -> f64 {
    (after / before - 1.0) * 100.0
}

/// Compares: every path that was counted is recorded, none has grown beyond the tolerance, and all that is recorded was
/// counted.
///
/// # Errors
/// What is wrong, and what to do about it.
pub fn compare(recorded: &Record, counted: &Record) -> anyhow::Result<()> {
    let tolerance = tolerance(recorded, counted);
    let mut wrong = Vec::new();
    for (name, count) in &counted.paths {
        match recorded.paths.get(name) {
            Some(before) if change(*before, *count) > tolerance => {
                wrong.push(format!("{name} has grown from {before} to {count} instructions per packet"));
            }
            Some(_) => {}
            None => wrong.push(format!("{name} is not recorded")),
        }
    }
    let lost = recorded.paths.keys().filter(|name| !counted.paths.contains_key(*name));
    wrong.extend(lost.map(|name| format!("{name} is recorded and was not counted")));
    ensure!(
        wrong.is_empty(),
        "{}\nIf that is what it is worth: `make accept-instructions`, and say so in the change.",
        wrong.join("\n")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(paths: &[(&str, f64)]) -> Record {
        let paths = paths.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        Record { compiler: "rustc 1".into(), arch: "x86_64".into(), paths }
    }

    #[test]
    fn growth_beyond_the_tolerance_is_refused_and_less_is_not() {
        let before = record(&[("a", 100.0), ("b", 200.0)]);
        assert!(compare(&before, &before).is_ok());
        assert!(compare(&before, &record(&[("a", 102.9), ("b", 150.0)])).is_ok());
        let grown = compare(&before, &record(&[("a", 103.1), ("b", 200.0)])).unwrap_err().to_string();
        assert!(grown.contains("a has grown") && !grown.contains("b has grown"), "{grown}");
    }

    #[test]
    fn paths_that_come_or_go_unrecorded_are_refused() {
        let before = record(&[("a", 100.0)]);
        assert!(compare(&before, &record(&[("a", 100.0), ("b", 1.0)])).is_err());
        assert!(compare(&before, &record(&[])).is_err());
    }

    #[test]
    fn another_compiler_may_differ_more_and_another_processor_at_will() {
        let before = record(&[("a", 100.0)]);
        let other = |count| Record { compiler: "rustc 2".into(), ..record(&[("a", count)]) };
        assert!(compare(&before, &other(115.0)).is_ok() && compare(&before, &other(125.0)).is_err());
        assert!(compare(&before, &Record { arch: "aarch64".into(), ..other(300.0) }).is_ok());
        assert!(compare(&before, &Record { arch: "aarch64".into(), ..record(&[]) }).is_err());
    }

    #[test]
    fn every_path_is_recorded() {
        let recorded = recorded().unwrap();
        let (counted, listed): (Vec<_>, Vec<_>) = (recorded.paths.into_keys().collect(), names().collect());
        let mut listed = listed;
        listed.sort();
        assert_eq!(counted, listed);
    }

    #[test]
    fn the_total_of_a_dump_is_read() {
        assert_eq!(total("version: 1\nevents: Ir\n1 2\ntotals: 4711\n"), Some(4711));
        assert_eq!(total("version: 1\n"), None);
    }

    /// Both families, every path: the packets go the way they are counted for.
    #[test]
    fn packets_of_every_path_go_its_way() {
        go(None).unwrap();
    }
}
