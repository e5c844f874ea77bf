//! A dataplane without devices, which knows what another one has saved.
//!
//! Owns the process and the directory of its socket; both end with this value. The program is `tidegate-dataplane`, beside
//! this one or on the path.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};
use tempfile::TempDir;

const PROGRAM: &str = "tidegate-dataplane";

/// One that answers.
pub(super) struct Saved {
    process: Child,
    socket: PathBuf,
    note: String,
    _directory: TempDir,
}

impl Saved {
    /// Starts one about the objects in `state`, and waits until it answers.
    ///
    /// # Errors
    /// When there is no such program, or what it says of the objects or the node file.
    pub(super) fn start(state: &Path, config: &[PathBuf]) -> anyhow::Result<Saved> {
        let directory = tempfile::tempdir().context("a directory for a socket")?;
        let socket = directory.path().join("saved.sock");
        let mut command = Command::new(program());
        for file in config {
            command.arg("--config").arg(file);
        }
        command.arg("saved").arg("--state").arg(state).arg("--socket").arg(&socket);
        // What it warns of concerns a gateway that runs.
        command.env("RUST_LOG", "error").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let process = command.spawn().with_context(|| format!("starting {PROGRAM}, which knows what is saved"))?;
        let mut saved = Saved { process, socket, note: String::new(), _directory: directory };
        let mut line = String::new();
        if let Some(out) = saved.process.stdout.take() {
            BufReader::new(out).read_line(&mut line).with_context(|| format!("hearing {PROGRAM}"))?;
        }
        let Some(note) = line.strip_prefix("ready") else {
            let mut said = String::new();
            if let Some(err) = &mut saved.process.stderr {
                err.read_to_string(&mut said).with_context(|| format!("hearing {PROGRAM}"))?;
            }
            let said = said.lines().last().unwrap_or_default();
            // Its log puts time, level and module before the text.
            let text = said.split_once("ERROR ").map_or(said, |(_, text)| text);
            bail!("{}", text.split_once("dataplane: ").map_or(text, |(_, text)| text));
        };
        note.trim().clone_into(&mut saved.note);
        Ok(saved)
    }

    /// What is to be known of its answers, for people.
    pub(super) fn note(&self) -> &str {
        &self.note
    }

    /// Where it answers.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Saved {
    fn drop(&mut self) {
        // It ends with its standard input.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// The program beside this one, or its name for the path.
fn program() -> OsString {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(PROGRAM)));
    beside.filter(|program| program.exists()).map_or_else(|| PROGRAM.into(), PathBuf::into_os_string)
}
