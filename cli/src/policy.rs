//! `tidegate policy`: what the policies in a folder of manifests say, without a dataplane.
//!
//! Owns how questions come in and answers go out. The answers are those of the tables that a gateway would make of the same
//! objects; see `tidegate_control::offline`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::json;
use tidegate_control::offline::Offline;
use tidegate_control::offline::question::Question;

use crate::args::{PolicyArguments, PolicyWhat};

/// Longest question, bytes, with the end of its line. Names of pods have some hundreds.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// Runs one `tidegate policy` command, writing to `out` and, about objects, to `complaints`. False when something could not
/// be answered, or with `--strict` not be read.
///
/// # Errors
/// When there is nothing to answer from, or nowhere to answer to.
pub fn run(arguments: &PolicyArguments, out: &mut dyn Write, complaints: &mut dyn Write) -> anyhow::Result<bool> {
    let folder = &arguments.manifests;
    let offline = Offline::read(folder).with_context(|| format!("reading {}", folder.display()))?;
    for problem in offline.problems() {
        // Nothing can be done about a closed standard error.
        let _ = writeln!(complaints, "tidegate: {problem}");
    }
    if arguments.strict && !offline.problems().is_empty() {
        bail!("{} problems in the manifests, and --strict was given", offline.problems().len());
    }
    match &arguments.what {
        PolicyWhat::Eval { queries } => {
            let queries: Box<dyn BufRead> = match queries {
                file if file == Path::new("-") => Box::new(BufReader::new(io::stdin())),
                file => {
                    let opened = File::open(file).with_context(|| format!("reading {}", file.display()))?;
                    Box::new(BufReader::new(opened))
                }
            };
            answer(&offline, queries, out)
        }
        PolicyWhat::Explain { from, to, protocol, port } => {
            let port = port.map(u32::from);
            let question = Question { from: from.clone(), to: to.clone(), protocol: protocol.clone(), port };
            match offline.explain(&question) {
                Ok(text) => out.write_all(text.as_bytes())?,
                Err(error) => bail!("{error}"),
            }
            Ok(true)
        }
        PolicyWhat::Report => {
            out.write_all(offline.report().as_bytes())?;
            Ok(true)
        }
    }
}

/// One line of JSON for each line of questions, in their order; empty lines are passed over. False when one of them had no
/// answer; its line says why, and its number.
///
/// # Errors
/// When questions cannot be read any more, or answers not be written.
pub fn answer(offline: &Offline, mut questions: impl BufRead, out: &mut dyn Write) -> anyhow::Result<bool> {
    let (mut all, mut number, mut line) = (true, 0usize, Vec::new());
    let mut out = io::BufWriter::new(out);
    loop {
        line.clear();
        if questions.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line).context("reading questions")? == 0 {
            break;
        }
        number += 1;
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let is_whole = line.ends_with(b"\n") || u64::try_from(line.len()).is_ok_and(|length| length < LINE_BYTES_MAX);
        let asked = match is_whole {
            true if !line.trim_ascii_start().starts_with(b"{") => {
                Err("not a question: a JSON object with from, to, protocol and port is one".into())
            }
            true => serde_json::from_slice::<Question>(&line).map_err(|error| {
                // The parser counts lines from the start of the question; the answer has the number of its line.
                let (message, column) = (error.to_string(), error.column());
                let message = message.split(" at line ").next().unwrap_or_default();
                format!("not a question: {message} (column {column})")
            }),
            false => {
                questions.skip_until(b'\n').context("reading questions")?;
                Err(format!("longer than {LINE_BYTES_MAX} bytes"))
            }
        };
        let answer = asked.as_ref().map_err(Clone::clone).and_then(|question| offline.ask(question));
        match answer {
            Ok(answer) => serde_json::to_writer(&mut out, &answer)?,
            Err(error) => {
                all = false;
                let mut told = json!({ "line": number, "error": error });
                if let Ok(question) = &asked {
                    (told["from"], told["to"]) = (question.from.clone().into(), question.to.clone().into());
                    (told["protocol"], told["port"]) = (question.protocol.clone().into(), question.port.into());
                }
                serde_json::to_writer(&mut out, &told)?;
            }
        }
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(all)
}
