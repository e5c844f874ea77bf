//! Other programs, run with a limit: every command ends by itself, by its deadline, or with its owner.
//!
//! Owns children and their output. Refuses to know what the programs are for.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How often a wait looks again.
const POLL: Duration = Duration::from_millis(5);

/// What a finished command left.
#[derive(Debug, Clone)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Finished {
    /// The standard output of a command that must have succeeded.
    ///
    /// # Errors
    /// When it did not; the text carries the last lines it wrote.
    pub fn success(self, what: &str) -> Result<String> {
        if self.status.success() {
            return Ok(self.stdout);
        }
        bail!("{what}: {}: {}", describe(self.status), tail(&format!("{}{}", self.stdout, self.stderr), 12));
    }
}

/// How a process ended, for people.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

/// The last `lines_max` lines of a text.
pub fn tail(text: &str, lines_max: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(lines_max)..].join("\n")
}

/// A command that runs inside a named network namespace, with that namespace's own `/sys`.
pub fn in_namespace(namespace: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).arg(program);
    command
}

/// Runs a command to its end and collects what it wrote; `input` is its standard input.
///
/// # Errors
/// When it cannot be started, or has not ended after `limit`: then it is killed.
pub fn run(mut command: Command, input: &str, limit: Duration) -> Result<Finished> {
    let what = format!("{command:?}");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {what}"))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let stdout = child.stdout.take().context("no standard output")?;
    let stderr = child.stderr.take().context("no standard error")?;
    std::thread::scope(|scope| {
        scope.spawn(move || drop(stdin.write_all(input.as_bytes())));
        let stdout = scope.spawn(move || collect(stdout));
        let stderr = scope.spawn(move || collect(stderr));
        let status = wait(&mut child, limit)?;
        if status.is_none() {
            child.kill()?;
            child.wait()?;
        }
        let stdout = stdout.join().unwrap_or_default();
        let stderr = stderr.join().unwrap_or_default();
        match status {
            Some(status) => Ok(Finished { status, stdout, stderr }),
            None => bail!("{what}: not finished after {} s, killed: {}", limit.as_secs_f32(), tail(&stderr, 5)),
        }
    })
}

fn collect(mut pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    // A pipe that breaks ends the text; the exit status tells the rest.
    drop(pipe.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits until `child` ends or `limit` has passed.
///
/// # Errors
/// When the system cannot tell.
pub fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

/// A program that runs until it is told to stop; killed when dropped. Both its outputs go to one log file.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
    /// Where in the log this run begins: a restarted program appends.
    log_start: usize,
}

impl Daemon {
    /// Starts `command`, its output appended to `log`.
    ///
    /// # Errors
    /// When the log or the program cannot be opened.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Daemon> {
        let file = File::options().create(true).append(true).open(log).with_context(|| format!("{}", log.display()))?;
        let log_start = usize::try_from(file.metadata()?.len())?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("starting {name} ({command:?})"))?;
        Ok(Daemon { name: name.into(), child, log: log.into(), log_start })
    }

    /// What it has written since it started.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(bytes.get(self.log_start..).unwrap_or_default()).into_owned()
    }

    /// Waits for a line that contains `text`; returns how long that took.
    ///
    /// # Errors
    /// When the program ends first or `limit` passes; the text carries the end of its log.
    pub fn wait_for_line(&mut self, text: &str, limit: Duration) -> Result<Duration> {
        let began = Instant::now();
        loop {
            if self.log().lines().any(|line| line.contains(text)) {
                return Ok(began.elapsed());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended before it was ready ({}):\n{}", self.name, describe(status), tail(&self.log(), 12));
            }
            if began.elapsed() >= limit {
                let log = tail(&self.log(), 12);
                bail!("{} did not say {text:?} within {} s:\n{log}", self.name, limit.as_secs_f32());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Its process id in the lab.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// True while it has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal to this one process.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if !self.is_running() {
            bail!("{} is not running", self.name);
        }
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it has not ended after `limit`.
    pub fn wait_for_end(&mut self, limit: Duration) -> Result<ExitStatus> {
        wait(&mut self.child, limit)?.with_context(|| format!("{} does not end", self.name))
    }

    /// Kills it (SIGKILL) and waits for its end.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Nothing is left to do about a child that cannot be killed; the lab's process namespace ends with the lab.
        drop(self.kill());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_failure_are_told() {
        let mut command = Command::new("sh");
        command.args(["-c", "cat; echo oops >&2; exit 3"]);
        let finished = run(command, "hello", Duration::from_secs(20)).unwrap();
        assert_eq!(finished.stdout, "hello");
        let error = finished.success("trial").unwrap_err().to_string();
        assert!(error.contains("exit code 3") && error.contains("oops"), "{error}");
    }

    #[test]
    fn a_command_that_hangs_is_killed() {
        let mut command = Command::new("sleep");
        command.arg("600");
        let error = run(command, "", Duration::from_millis(50)).unwrap_err().to_string();
        assert!(error.contains("killed"), "{error}");
    }

    #[test]
    fn tail_keeps_the_end() {
        assert_eq!(tail("a\nb\nc", 2), "b\nc");
        assert_eq!(tail("a", 9), "a");
    }
}
