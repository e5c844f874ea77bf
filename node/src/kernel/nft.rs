//! `nft`, the program: lists our table and runs commands as one transaction.
//!
//! JSON in both directions (libnftables-json(5)), so that no name can be taken for a word of the language.

use std::io::{self, Write};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::filter::{self, Loaded, TABLE};

/// What is loaded; `None`: there is no table of ours.
pub fn list() -> io::Result<Option<Loaded>> {
    let output = start(&["-j", "list", "table", "inet", TABLE], None)?;
    if output.status.success() {
        let listing: Value = serde_json::from_slice(&output.stdout).map_err(io::Error::other)?;
        return Ok(Some(filter::read(&listing)));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // nft tells a missing table in these words of ENOENT, which do not depend on a language: it sets no locale for them.
    if said.contains("No such file or directory") { Ok(None) } else { Err(refused("list", &said)) }
}

/// Runs commands: all of them or none.
pub fn run(commands: &Value) -> io::Result<()> {
    let output = start(&["-j", "-f", "-"], Some(commands))?;
    if output.status.success() { Ok(()) } else { Err(refused("load", &String::from_utf8_lossy(&output.stderr))) }
}

fn refused(what: &str, said: &str) -> io::Error {
    let first: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).take(2).collect();
    io::Error::other(format!("nft does not {what}: {}", first.join(" ")))
}

fn start(arguments: &[&str], input: Option<&Value>) -> io::Result<Output> {
    let mut command = Command::new("nft");
    command.args(arguments).env("LC_ALL", "C").stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command.spawn().map_err(|error| io::Error::new(error.kind(), format!("nft: {error}")))?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        // nft reads everything before it says anything; one that ended early has its reasons in what it said.
        let _ = stdin.write_all(input.to_string().as_bytes());
    }
    child.wait_with_output()
}
