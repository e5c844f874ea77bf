//! Command lines in the documents: every one that starts a program of ours is one that the program takes.
//!
//! Lines of `tidegate` are parsed whole. Those of the other programs are given to them with `--help` at the end, which they
//! come to only if they know everything before it; they lie beside `tidegate` when the whole workspace is built. What a
//! line needs to be run (a NIC, a cluster) it does not need to be read.

#![allow(clippy::unwrap_used, reason = "a test whose stage cannot be set has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Parser;
use tidegate_cli::args::Arguments;

/// Programs whose command lines are looked at; `make` has targets instead of arguments.
const PROGRAMS: [&str; 7] =
    ["tidegate", "tidegate-dataplane", "tidegate-control", "tidegate-node", "tidegate-pktgen", "tidegate-lab", "make"];

/// Who is asked to show a few characters of a terminal: blocks of other languages have no command lines.
const SHELL: [&str; 2] = ["", "sh"];

/// What a section says that has commands for NICs.
const MARK: &str = "needs hardware";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The documents that people read, with their text.
fn documents() -> Vec<(String, String)> {
    let mut files = vec![root().join("README.md")];
    files.extend(fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    files.retain(|file| file.extension().is_some_and(|end| end == "md"));
    files.sort();
    let name = |file: &PathBuf| file.strip_prefix(root()).unwrap().display().to_string();
    files.iter().map(|file| (name(file), fs::read_to_string(file).unwrap())).collect()
}

/// Lines of a terminal in the blocks of a document: of a block with a prompt those behind it, of others all. Lines that end
/// with a backslash go on in the next.
fn shell_lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut rest = text.lines();
    while let Some(line) = rest.next() {
        let Some(language) = line.trim_start().strip_prefix("```") else { continue };
        let block: Vec<&str> = rest.by_ref().take_while(|line| line.trim() != "```").map(str::trim).collect();
        if !SHELL.contains(&language.trim()) {
            continue;
        }
        let has_prompt = block.iter().any(|line| line.starts_with("$ "));
        let mut open = String::new();
        for line in block {
            let said = match (open.is_empty(), line.strip_prefix("$ ")) {
                (true, Some(said)) => said,
                (true, None) if has_prompt => continue,
                _ => line,
            };
            match said.strip_suffix('\\') {
                Some(part) => open += part,
                None => lines.push(std::mem::take(&mut open) + said),
            }
        }
    }
    lines
}

/// Spans of code between the lines of a document that are whole commands: a program and something more.
fn spans(text: &str) -> Vec<String> {
    let mut in_block = false;
    let prose = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        in_block ^= fence;
        !in_block && !fence
    });
    let spans = prose.flat_map(|line| line.split('`').skip(1).step_by(2));
    let is_command = |span: &&str| span.split_once(' ').is_some_and(|(first, _)| PROGRAMS.contains(&first));
    spans.filter(is_command).map(String::from).collect()
}

/// Words of every command of a line that starts a program of ours. Several commands may stand in columns.
fn commands(line: &str) -> Vec<Vec<String>> {
    if !line.split_whitespace().any(|word| PROGRAMS.contains(&word)) {
        return Vec::new();
    }
    let in_columns = line.replace("  tidegate", " ; tidegate").replace("  make", " ; make");
    let Some(words) = shlex::split(&in_columns) else { panic!("quotes that do not close: {line}") };
    let mut commands = vec![Vec::new()];
    let mut is_file = false;
    for word in words {
        let ends = [";", "|", "&&", "||", "--"].contains(&word.as_str());
        let (word, ends_after) = match word.strip_suffix(';') {
            Some(before) if !ends => (before.to_owned(), true),
            _ => (word, false),
        };
        let redirects = [">", "<", "2>", ">>"].contains(&word.as_str());
        if !ends && !redirects && !is_file {
            commands.last_mut().unwrap().push(word);
        }
        is_file = redirects;
        if ends || ends_after {
            commands.push(Vec::new());
        }
    }
    commands.retain(|words| words.first().is_some_and(|first| PROGRAMS.contains(&first.as_str())));
    commands
}

/// Words of every command of a part of a document, and whether it need not be whole: it stands in a sentence and may be a
/// name only, or something of it is not said (`…`).
fn commands_of(text: &str) -> Vec<(Vec<String>, bool)> {
    let typed = shell_lines(text).into_iter().map(|line| (line, false));
    let named = spans(text).into_iter().map(|span| (span, true));
    let each = |(line, is_name): (String, bool)| {
        commands(&line).into_iter().map(move |words| {
            let is_shortened = is_name || words.iter().any(|word| word.contains('…'));
            (words, is_shortened)
        })
    };
    typed.chain(named).flat_map(each).collect()
}

/// The same command with one of each choice (`mrr|ndr|pdr`), without what may be left out (`--watch[=SECONDS]`) and what is
/// not said (`…`).
fn spelled_out(words: &[String]) -> Vec<Vec<String>> {
    let mut all = vec![Vec::new()];
    let said = words.iter().filter(|word| !word.contains('…'));
    for word in said.map(|word| word.split_once("[=").map_or(word.as_str(), |(before, _)| before)) {
        let choices: Vec<&str> = match word.contains(' ') {
            true => vec![word],
            false => word.split('|').collect(),
        };
        let longer = |words: &Vec<String>| -> Vec<Vec<String>> {
            choices.iter().map(|choice| words.iter().cloned().chain([(*choice).to_owned()]).collect()).collect()
        };
        all = all.iter().flat_map(longer).collect();
    }
    all
}

/// Targets of the Makefile.
fn targets() -> BTreeSet<String> {
    let text = fs::read_to_string(root().join("Makefile")).unwrap();
    let rules =
        text.lines().filter(|line| !line.starts_with([' ', '\t', '#', '.'])).filter_map(|line| line.split_once(':'));
    rules.filter(|(_, rest)| !rest.starts_with('=')).map(|(target, _)| target.trim().to_owned()).collect()
}

/// Why a program does not take these words, its own name first.
fn refusal(words: &[String], is_shortened: bool) -> Option<String> {
    let (program, arguments) = words.split_first().unwrap();
    if program == "make" {
        let targets = targets();
        let unknown = arguments.iter().find(|word| !word.contains('=') && !targets.contains(*word));
        return unknown.map(|word| format!("no target {word}"));
    }
    if program == "tidegate" {
        use clap::error::ErrorKind;
        let is_fine = |error: &clap::Error| match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => true,
            ErrorKind::MissingRequiredArgument
            | ErrorKind::MissingSubcommand
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => is_shortened,
            _ => false,
        };
        return Arguments::try_parse_from(words).err().filter(|error| !is_fine(error)).map(|error| error.to_string());
    }
    let file = Path::new(env!("CARGO_BIN_EXE_tidegate")).with_file_name(program);
    assert!(file.exists(), "{} is not there: cargo build --workspace", file.display());
    let output = Command::new(file).args(arguments).arg("--help").stdin(Stdio::null()).output().unwrap();
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Whether a command names a NIC of a machine, which no lab has; namespaces of the lab have `wan0` and `lan0`.
fn needs_hardware(words: &[String]) -> bool {
    let is_nic =
        |word: &String| word.strip_prefix("eth").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    words.iter().any(is_nic)
}

#[test]
fn every_command_line_in_the_documents_is_one_that_its_program_takes() {
    let mut complaints = Vec::new();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for (document, text) in documents() {
        for section in text.split("\n## ") {
            for (words, is_shortened) in commands_of(section) {
                if needs_hardware(&words) && !section.contains(MARK) {
                    complaints.push(format!("{document}: {}: its section does not say \"{MARK}\"", words.join(" ")));
                }
                for words in spelled_out(&words) {
                    *seen.entry(words.first().unwrap().clone()).or_default() += 1;
                    if let Some(refusal) = refusal(&words, is_shortened) {
                        let why = refusal.lines().next().unwrap_or_default();
                        complaints.push(format!("{document}: {}: {why}", words.join(" ")));
                    }
                }
            }
        }
    }
    assert!(complaints.is_empty(), "{} of them:\n{}", complaints.len(), complaints.join("\n"));
    // What looks for commands finds them.
    let enough =
        [("tidegate", 100), ("tidegate-control", 5), ("tidegate-pktgen", 10), ("tidegate-lab", 5), ("make", 10)];
    for (program, at_least) in enough {
        assert!(seen.get(program).copied().unwrap_or_default() >= at_least, "{program}: {seen:?}");
    }
}

#[test]
fn a_line_with_a_wrong_flag_is_found() {
    let text = "Text, `tidegate show drop` and `make cake`.\n\n```\n$ tidegate show flows --cliont 192.0.2.7 | head\n\
                no command\n$ tidegate-control --config FILE \\\n    --chekc\n```\n\n```yaml\ntidegate nonsense: 1\n```\n\n\
                ```\ntidegate drain; tidegate undrain --all      tidegate health > file\n\
                kubectl exec POD -- tidegate topp\ntidegate-pktgen search mrr|best …\n```\n";
    let mut refused = Vec::new();
    let mut taken = Vec::new();
    for (words, is_shortened) in commands_of(text) {
        for words in spelled_out(&words) {
            match refusal(&words, is_shortened) {
                Some(_) => refused.push(words.join(" ")),
                None => taken.push(words.join(" ")),
            }
        }
    }
    assert_eq!(taken, ["tidegate drain", "tidegate health", "tidegate-pktgen search mrr"]);
    assert_eq!(
        refused,
        [
            "tidegate show flows --cliont 192.0.2.7",
            "tidegate-control --config FILE --chekc",
            "tidegate undrain --all",
            "tidegate topp",
            "tidegate-pktgen search best",
            "tidegate show drop",
            "make cake",
        ]
    );
}
