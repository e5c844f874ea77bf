//! Facts about the whole repository, held as tests.
//!
//! Unsafe code stays in its room, the dependency arrow holds, paths named in the documents exist, and nothing unfinished
//! or machine-specific slips in. Length and taste are for readers. Each rule is a function from a repository to
//! complaints, so that the last tests can plant one offence per rule and see it found.

#![allow(clippy::unwrap_used, reason = "a test whose stage cannot be set has failed")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Every text file of the repository: path from its root with `/`, and text.
struct Repository {
    files: Vec<(String, String)>,
}

impl Repository {
    /// What is on disk above this crate, without build products, fuzz corpora and the version control's own files.
    fn here() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut files = Vec::new();
        let mut open = vec![String::new()];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(root.join(&directory)).unwrap() {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                let path = if directory.is_empty() { name.clone() } else { format!("{directory}/{name}") };
                let kind = entry.file_type().unwrap();
                let skipped = ["target", "artifacts", "corpus"].contains(&name.as_str());
                if kind.is_dir() && !skipped && (!name.starts_with('.') || name == ".ci") {
                    open.push(path);
                } else if kind.is_file() && name != ".git" && !name.ends_with(".skel.rs") {
                    // What is not UTF-8 is a picture or a capture, and no business of these rules.
                    if let Ok(text) = fs::read_to_string(entry.path()) {
                        files.push((path, text));
                    }
                }
            }
        }
        files.sort();
        assert!(files.len() > 20, "the walk found only {} files", files.len());
        Repository { files }
    }

    fn planted(files: &[(&str, &str)]) -> Self {
        Repository { files: files.iter().map(|(path, text)| ((*path).into(), (*text).into())).collect() }
    }

    fn ending<'a>(&'a self, suffix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.files.iter().filter(move |(path, _)| path.ends_with(suffix)).map(|(path, text)| (&path[..], &text[..]))
    }

    /// Whether `path` is a file, or a directory with something in it.
    fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let inside = |file: &str| file.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        self.files.iter().any(|(file, _)| inside(file))
    }
}

/// Rust source with comments and the insides of literals blanked; lines keep their numbers.
fn code(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = String::with_capacity(source.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &source[at..];
        let skipped = match bytes[at] {
            b'/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            b'/' if rest.starts_with("/*") => block_comment(rest),
            b'r' if ["", "b", "c"].contains(&last_word(&out)) => raw_string(rest),
            b'"' => quoted(rest, '"'),
            // A quote is a character literal if it closes; otherwise it starts a lifetime.
            b'\'' if rest[1..].starts_with('\\') || rest.chars().nth(2) == Some('\'') => quoted(rest, '\''),
            _ => 0,
        };
        if skipped == 0 {
            let char = rest.chars().next().unwrap();
            out.push(char);
            at += char.len_utf8();
        } else {
            out.extend(rest[..skipped].chars().map(|char| if char == '\n' { '\n' } else { ' ' }));
            at += skipped;
        }
    }
    out
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest.as_bytes()[at..rest.len().min(at + 2)] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

/// Length of `r"…"` or `r#"…"#` at the start of `rest`; 0 if there is none.
fn raw_string(rest: &str) -> usize {
    let hashes = rest[1..].bytes().take_while(|byte| *byte == b'#').count();
    let open = 1 + hashes;
    if rest.as_bytes().get(open) != Some(&b'"') {
        return 0;
    }
    let close = format!("\"{}", "#".repeat(hashes));
    rest[open + 1..].find(&close).map_or(rest.len(), |end| open + 1 + end + close.len())
}

fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, char) in rest.char_indices().skip(1) {
        match char {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if char == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

fn is_word(char: char) -> bool {
    char.is_alphanumeric() || char == '_'
}

fn last_word(text: &str) -> &str {
    &text[text.trim_end_matches(is_word).len()..]
}

fn ends_in_word(text: &str) -> bool {
    text.ends_with(is_word)
}

/// Byte offsets of `word` in `line` where it is a word of its own.
fn words<'a>(line: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    line.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |at| !ends_in_word(&line[..*at]) && !line[at + word.len()..].starts_with(is_word))
}

fn in_io(path: &str) -> bool {
    path.starts_with("io/")
}

/// Unsafe code lives in `io` only; every other crate root forbids it.
fn unsafe_stays_in_io(repository: &Repository) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, text) in repository.ending(".rs").filter(|(path, _)| !in_io(path)) {
        for (number, line) in code(text).lines().enumerate() {
            if words(line, "unsafe").next().is_some() {
                complaints.push(format!("{path}:{}: unsafe outside io", number + 1));
            }
        }
        let root = path.ends_with("src/lib.rs") || path.ends_with("src/main.rs") || path.contains("src/bin/");
        if root && !code(text).contains("#![forbid(unsafe_code)]") {
            complaints.push(format!("{path}: the crate root does not say #![forbid(unsafe_code)]"));
        }
    }
    complaints
}

/// Lines above an `unsafe` in which its argument must stand.
const SAFETY_LINES_MAX: usize = 8;

/// Every unsafe site in `io` argues why it is sound: `SAFETY:` beside it, or `# Safety` in the docs of an unsafe fn.
fn unsafe_is_argued(repository: &Repository) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, text) in repository.ending(".rs").filter(|(path, _)| in_io(path)) {
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in code(text).lines().enumerate() {
            let argued = || {
                let above = &lines[number.saturating_sub(SAFETY_LINES_MAX)..=number];
                above.iter().any(|line| line.contains("SAFETY:") || line.contains("# Safety"))
            };
            if words(line, "unsafe").next().is_some() && !argued() {
                complaints.push(format!("{path}:{}: unsafe without a SAFETY argument", number + 1));
            }
        }
    }
    complaints
}

/// Crates and the Tidegate crates each may depend on, in any kind of dependency:
/// `control → api ← dataplane → io`, and nobody depends on the command, the agent, the benches or the experiments. The command
/// and the agent read objects of the API as control does.
const ARROW: [(&str, &[&str]); 13] = [
    ("io/Cargo.toml", &[]),
    ("dataplane/api/Cargo.toml", &[]),
    ("ledger/Cargo.toml", &[]),
    ("policy/Cargo.toml", &["tidegate-api"]),
    (
        "dataplane/Cargo.toml",
        &["tidegate-io", "tidegate-api", "tidegate-ledger", "tidegate-metrics", "tidegate-policy"],
    ),
    ("metrics/Cargo.toml", &[]),
    ("control/Cargo.toml", &["tidegate-api", "tidegate-metrics", "tidegate-policy"]),
    ("doctor/Cargo.toml", &["tidegate-io", "tidegate-dataplane", "tidegate-api"]),
    ("cli/Cargo.toml", &["tidegate-api", "tidegate-control", "tidegate-doctor", "tidegate-ledger"]),
    ("node/Cargo.toml", &["tidegate-api", "tidegate-control"]),
    (
        "benches/Cargo.toml",
        &[
            "tidegate-io",
            "tidegate-dataplane",
            "tidegate-api",
            "tidegate-ledger",
            "tidegate-policy",
            "tidegate-control",
        ],
    ),
    ("perf/Cargo.toml", &["tidegate-io", "tidegate-dataplane", "tidegate-api", "tidegate-apiserver"]),
    ("perf/apiserver/Cargo.toml", &[]),
];

/// What any crate's tests may use, and nothing else.
const FOR_TESTS: [&str; 1] = ["tidegate-apiserver"];

/// Dependencies in a manifest: section, name, and the whole line.
fn dependencies(manifest: &str) -> Vec<(String, String, String)> {
    let mut section = String::new();
    let mut found = Vec::new();
    for line in manifest.lines() {
        let line = line.trim();
        if let Some(heading) = line.strip_prefix('[') {
            section = heading.split(']').next().unwrap().into();
            if let Some((kind, name)) = section.split_once("dependencies.") {
                found.push((format!("{kind}dependencies"), name.into(), line.into()));
            }
        } else if section.ends_with("dependencies") && line.contains('=') && !line.starts_with('#') {
            let name = line.split(['=', '.', ' ']).next().unwrap().trim_matches('"');
            found.push((section.clone(), name.into(), line.into()));
        }
    }
    found
}

fn the_arrow_holds(repository: &Repository) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, text) in
        repository.ending("Cargo.toml").filter(|(path, _)| path.contains('/') && !path.starts_with("fuzz/"))
    {
        let Some((_, allowed)) = ARROW.iter().find(|(manifest, _)| *manifest == path) else {
            complaints.push(format!("{path}: a crate without a place in the arrow"));
            continue;
        };
        for (section, name, line) in dependencies(text) {
            // A crate's own tests may ask it for a feature: an arrow to itself goes nowhere.
            let itself = text.contains(&format!("\nname = \"{name}\"\n"));
            let for_tests = section == "dev-dependencies" && (itself || FOR_TESTS.contains(&name.as_str()));
            if name.starts_with("tidegate-") && !for_tests && !allowed.contains(&name.as_str()) {
                complaints.push(format!("{path}: [{section}] must not name {name}"));
            } else if !line.contains("workspace = true") {
                complaints.push(format!("{path}: {name} is not taken from the workspace's one list"));
            }
        }
    }
    complaints
}

/// In the workspace's list each crate from outside has its reason, on its line or at the head of its paragraph.
fn dependencies_have_reasons(repository: &Repository) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, text) in repository.ending("Cargo.toml").filter(|(path, _)| *path == "Cargo.toml") {
        let list =
            text.split_once("[workspace.dependencies]").map_or("", |(_, rest)| rest.split("\n[").next().unwrap());
        let mut headed = false;
        for line in list.lines() {
            match line.trim() {
                "" => headed = false,
                comment if comment.starts_with('#') => headed = true,
                own if own.contains("path =") => {}
                outside if headed || outside.contains('#') => {}
                outside => complaints.push(format!("{path}: no reason is given for `{outside}`")),
            }
        }
    }
    complaints
}

/// A file or module named after what it is not about.
fn names_mean_something(repository: &Repository) -> Vec<String> {
    const EMPTY: [&str; 7] = ["common", "util", "utils", "types", "helper", "helpers", "misc"];
    let mut complaints = Vec::new();
    for (path, text) in repository.ending(".rs") {
        if path.trim_end_matches(".rs").split('/').any(|part| EMPTY.contains(&part)) {
            complaints.push(format!("{path}: a name that says nothing"));
        }
        for (number, line) in code(text).lines().enumerate() {
            let module = line.split_once("mod ").map(|(_, rest)| rest.trim_end_matches([';', '{', ' ']));
            if module.is_some_and(|name| EMPTY.contains(&name)) {
                complaints.push(format!("{path}:{}: a module name that says nothing", number + 1));
            }
        }
    }
    complaints
}

/// What stands in backticks outside fenced blocks.
fn code_spans(markdown: &str) -> Vec<&str> {
    let mut fenced = false;
    let mut spans = Vec::new();
    for line in markdown.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            spans.extend(line.split('`').skip(1).step_by(2));
        }
    }
    spans
}

/// Targets of markdown links that point into the repository, relative to the document.
fn links(markdown: &str) -> impl Iterator<Item = &str> {
    markdown
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', '#']).next())
        .filter(|to| !to.is_empty() && !to.contains("://"))
}

/// Paths that documents name in backticks or link to are there.
fn documents_name_what_exists(repository: &Repository) -> Vec<String> {
    const ROOMS: [&str; 13] = [
        "io",
        "dataplane",
        "ledger",
        "policy",
        "control",
        "cli",
        "node",
        "benches",
        "perf",
        "deploy",
        "docs",
        "fuzz",
        ".ci",
    ];
    let mut complaints = Vec::new();
    for (document, text) in
        repository.ending(".md").filter(|(path, _)| path.starts_with("docs/") || !path.contains('/'))
    {
        for span in code_spans(text) {
            let looks_like_a_path = span.split_once('/').is_some_and(|(room, _)| ROOMS.contains(&room))
                && !span.contains(['*', '<', '{', ' ', '…', '$']);
            if looks_like_a_path && !repository.has(span.split(':').next().unwrap()) {
                complaints.push(format!("{document}: `{span}` does not exist"));
            }
        }
        let directory = document.rsplit_once('/').map_or("", |(directory, _)| directory);
        for link in links(text) {
            let mut parts: Vec<&str> = directory.split('/').filter(|part| !part.is_empty()).collect();
            for part in link.split('/') {
                match part {
                    "." => {}
                    ".." => drop(parts.pop()),
                    part => parts.push(part),
                }
            }
            if !repository.has(&parts.join("/")) {
                complaints.push(format!("{document}: link to {link}, which does not exist"));
            }
        }
    }
    complaints
}

/// The two reading paths stand in the README and in the architecture page, word for word the same.
fn reading_paths_agree(repository: &Repository) -> Vec<String> {
    let paths = |document: &'static str| {
        let text = repository.ending(document).find(|(path, _)| *path == document).map_or("", |(_, text)| text);
        text.lines()
            .filter(|line| line.starts_with("*A packet*") || line.starts_with("*A Service*"))
            .collect::<Vec<_>>()
    };
    let (readme, architecture) = (paths("README.md"), paths("docs/architecture.md"));
    match readme.len() == 2 && readme == architecture {
        true => Vec::new(),
        false => {
            vec![format!("README.md: reading paths differ from the architecture page's: {readme:?} {architecture:?}")]
        }
    }
}

/// Nothing unfinished, switched off or left from debugging.
fn nothing_is_unfinished(repository: &Repository) -> Vec<String> {
    const LEFTOVERS: [&str; 4] = ["todo!", "unimplemented!", "dbg!", "#[ignore"];
    let mut complaints = Vec::new();
    for (path, text) in repository.ending(".rs") {
        for (number, line) in code(text).lines().enumerate() {
            for leftover in LEFTOVERS.iter().filter(|leftover| line.contains(**leftover)) {
                complaints.push(format!("{path}:{}: {leftover}", number + 1));
            }
        }
    }
    complaints
}

/// Hosts that packages come from, and paths that exist on one machine only. Split, so that this file passes its rule.
const FOREIGN: [&str; 13] = [
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("python", "hosted.org"),
    concat!("npm", "js.org"),
    concat!("ruby", "gems.org"),
    concat!("proxy.go", "lang.org"),
    concat!("deb.deb", "ian.org"),
    concat!("static.rust", "-lang.org"),
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("/wo", "rk/"),
    concat!("/tmp", "/wt"),
    concat!("/tmp", "/target"),
];

/// Any machine with a Rust toolchain builds and runs this: nothing names one machine or one source of packages.
fn nothing_names_a_machine(repository: &Repository) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, text) in repository.files.iter().filter(|(path, _)| !path.ends_with("Cargo.lock")) {
        for (number, line) in text.lines().enumerate() {
            for foreign in FOREIGN {
                // A path is absolute only where nothing precedes its first slash.
                let meant = |at: usize| {
                    !foreign.starts_with('/') || !line[..at].ends_with(|c: char| is_word(c) || "./-}".contains(c))
                };
                if line.match_indices(foreign).any(|(at, _)| meant(at)) {
                    complaints.push(format!("{path}:{}: names {foreign}", number + 1));
                }
            }
        }
    }
    complaints
}

fn none(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
}

#[test]
fn unsafe_code_stays_in_io() {
    none(unsafe_stays_in_io(&Repository::here()));
}

#[test]
fn every_unsafe_site_is_argued() {
    none(unsafe_is_argued(&Repository::here()));
}

#[test]
fn the_dependency_arrow_holds_and_there_is_one_list() {
    none(the_arrow_holds(&Repository::here()));
}

#[test]
fn every_dependency_has_a_reason() {
    none(dependencies_have_reasons(&Repository::here()));
}

#[test]
fn no_file_or_module_is_named_after_nothing() {
    none(names_mean_something(&Repository::here()));
}

#[test]
fn paths_named_in_documents_exist() {
    none(documents_name_what_exists(&Repository::here()));
}

#[test]
fn both_tellings_of_the_reading_paths_agree() {
    none(reading_paths_agree(&Repository::here()));
    let told = |readme, page| {
        reading_paths_agree(&Repository::planted(&[("README.md", readme), ("docs/architecture.md", page)]))
    };
    assert!(told("*A packet*: a\n*A Service*: b", "*A packet*: a\n\n*A Service*: b").is_empty());
    assert_eq!(told("*A packet*: a\n*A Service*: b", "*A packet*: a\n*A Service*: c").len(), 1);
    assert_eq!(told("", "").len(), 1);
}

#[test]
fn nothing_unfinished_is_left() {
    none(nothing_is_unfinished(&Repository::here()));
}

#[test]
fn no_machine_and_no_package_host_is_named() {
    none(nothing_names_a_machine(&Repository::here()));
}

#[test]
fn code_is_told_from_comments_and_literals() {
    let source = "a // todo!\nb /* x /* y */ unsafe */ c \"un\\\"safe\" r#\"dbg!\"# 'u' '\\'' &'static d\nfor e";
    let seen = code(source);
    assert_eq!(seen.split_whitespace().collect::<Vec<_>>(), ["a", "b", "c", "&'static", "d", "for", "e"]);
    assert_eq!(code(source).lines().count(), 3);
    assert_eq!(code("\"two\nlines\" x").lines().count(), 2);
    assert_eq!(code("br\"\\\" x").split_whitespace().collect::<Vec<_>>(), ["b", "x"]);
    assert_eq!(code("let unfinished = \"").trim(), "let unfinished =");
    assert_eq!(words("unsafe_fn unsafe an_unsafe unsafe", "unsafe").collect::<Vec<_>>(), [10, 27]);
}

/// Rule, the file that offends it, and the same file put right.
type Trial = (fn(&Repository) -> Vec<String>, (&'static str, &'static str), &'static str);

#[test]
fn every_rule_finds_a_planted_offence_and_nothing_in_its_correction() {
    let trials: [Trial; 18] = [
        (unsafe_stays_in_io, ("cli/src/a.rs", "fn f() { unsafe { g() } }"), "// unsafe\nfn f() { g(\"unsafe\") }"),
        (unsafe_stays_in_io, ("cli/src/lib.rs", "//! #![forbid(unsafe_code)]"), "#![forbid(unsafe_code)]"),
        (unsafe_stays_in_io, ("perf/src/bin/a.rs", ""), "#![forbid(unsafe_code)]"),
        (unsafe_is_argued, ("io/src/a.rs", "unsafe impl Send for A {}"), "// SAFETY: x\nunsafe impl Send for A {}"),
        (
            unsafe_is_argued,
            ("io/src/a.rs", "// SAFETY: far\n\n\n\n\n\n\n\n\nunsafe {}"),
            "/// # Safety\nunsafe fn f() {}",
        ),
        (the_arrow_holds, ("control/Cargo.toml", "[dependencies]\ntidegate-io.workspace = true"), "[dependencies]"),
        (
            the_arrow_holds,
            ("control/Cargo.toml", "[dev-dependencies.tidegate-dataplane]\nworkspace = true"),
            "[package]\nname = \"tidegate-control\"",
        ),
        (
            the_arrow_holds,
            ("control/Cargo.toml", "[dependencies]\ntidegate-apiserver.workspace = true"),
            "[dev-dependencies]\ntidegate-apiserver.workspace = true",
        ),
        (
            the_arrow_holds,
            ("io/Cargo.toml", "[target.'cfg(loom)'.dependencies]\nloom = \"0.7\""),
            "[target.'cfg(loom)'.dependencies]\nloom.workspace = true",
        ),
        (the_arrow_holds, ("extra/Cargo.toml", ""), "[package]"),
        (
            dependencies_have_reasons,
            ("Cargo.toml", "[workspace.dependencies]\n# first\na = \"1\"\n\nb = \"1\"\n[profile.dev]\nc = 1"),
            "[workspace.dependencies]\na = \"1\" # why\n",
        ),
        (names_mean_something, ("io/src/utils.rs", ""), ""),
        (names_mean_something, ("io/src/a.rs", "pub mod helpers {"), "pub mod ring {"),
        (documents_name_what_exists, ("docs/a.md", "see `io/src/gone.rs`"), "see `docs/a.md`, `io/src/*.rs` and `x/y`"),
        (documents_name_what_exists, ("docs/a.md", "see [b](../b.md)"), "see [a](../docs/a.md#top)"),
        (nothing_is_unfinished, ("io/src/a.rs", "#[test]\n#[ignore = \"slow\"]"), "// todo!()\n#[test]"),
        (nothing_names_a_machine, ("README.md", concat!("see /ro", "ot/x")), concat!("see here/ro", "ot/x")),
        (nothing_names_a_machine, ("a.sh", concat!("curl https://crates", ".io/a")), "curl https://example.net/a"),
    ];
    for (index, (rule, (path, wrong), right)) in trials.into_iter().enumerate() {
        let complaints = rule(&Repository::planted(&[(path, wrong)]));
        assert_eq!(complaints.len(), 1, "trial {index}: {complaints:?}");
        assert!(complaints[0].starts_with(path), "trial {index}: {complaints:?}");
        // Rules about names are put right by another name.
        let elsewhere = ["io/src/utils.rs", "extra/Cargo.toml"].contains(&path);
        let path = if elsewhere { path.replace("utils", "ring").replace("extra", "io") } else { path.into() };
        none(rule(&Repository::planted(&[(&path, right)])));
    }
}

#[test]
fn every_crate_of_the_arrow_is_there() {
    let repository = Repository::here();
    let there: BTreeSet<&str> = repository.ending("Cargo.toml").map(|(path, _)| path).collect();
    for (manifest, _) in ARROW {
        assert!(there.contains(manifest), "{manifest} is gone");
    }
}
