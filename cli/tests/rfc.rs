//! `docs/rfc-compliance.md` is complete and says what is there: every number of every RFC once, an answer with its reason,
//! tests that exist, and mutations that exist and are applied.

#![allow(clippy::unwrap_used, reason = "a test whose page cannot be read has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Every number that the page must have, per RFC: requirements, or sections where there are no numbers.
const NUMBERS: [(&str, &[&str]); 7] = [
    (
        "RFC 4787",
        &[
            "REQ-1", "REQ-2", "REQ-3", "REQ-3a", "REQ-4", "REQ-5", "REQ-5a", "REQ-5b", "REQ-5c", "REQ-6", "REQ-6a",
            "REQ-7", "REQ-8", "REQ-8a", "REQ-9", "REQ-9a", "REQ-10", "REQ-10a", "REQ-11", "REQ-12", "REQ-12a",
            "REQ-12b", "REQ-13", "REQ-13a", "REQ-14", "REQ-14a",
        ],
    ),
    (
        "RFC 5382",
        &[
            "REQ-1", "REQ-2", "REQ-2a", "REQ-3", "REQ-3a", "REQ-4", "REQ-4a", "REQ-5", "REQ-5a", "REQ-6", "REQ-7",
            "REQ-8", "REQ-8a", "REQ-9", "REQ-10",
        ],
    ),
    (
        "RFC 5508",
        &[
            "REQ-1", "REQ-1a", "REQ-2", "REQ-2a", "REQ-3", "REQ-3a", "REQ-3b", "REQ-3c", "REQ-3d", "REQ-4", "REQ-5",
            "REQ-6", "REQ-7", "REQ-8", "REQ-9", "REQ-10", "REQ-11",
        ],
    ),
    (
        "RFC 6888",
        &[
            "REQ-1", "REQ-2", "REQ-3", "REQ-4", "REQ-5", "REQ-6", "REQ-7", "REQ-8", "REQ-9", "REQ-10", "REQ-11",
            "REQ-12", "REQ-13", "REQ-14", "REQ-15",
        ],
    ),
    ("RFC 7857", &["§2.1", "§2.2", "§3", "§4", "§5", "§6", "§7", "§8", "§9", "§10", "§11", "§12"]),
    ("RFC 7348", &["§4.1", "§4.2", "§4.3", "§5", "§6", "§6.1", "§7"]),
    ("RFC 6040", &["§4.1", "§4.2", "§4.3", "§4.4"]),
];

/// One row of the page.
struct Row {
    /// RFC and number.
    at: (String, String),
    answer: String,
    why: String,
    tests: Vec<String>,
    breaks: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_default()
}

fn page() -> String {
    read("docs/rfc-compliance.md")
}

/// The rows of `page`, in order.
fn rows(page: &str) -> Vec<Row> {
    let mut rfc = String::new();
    let mut rows = Vec::new();
    for line in page.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            rfc = heading.to_owned();
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, number, answer, why, tests, breaks, _] = cells[..] else { continue };
        if number.starts_with("REQ-") || number.starts_with('§') {
            let tests = tests.split(',').map(|test| test.trim().trim_matches('`').to_owned());
            rows.push(Row {
                at: (rfc.clone(), number.to_owned()),
                answer: answer.to_owned(),
                why: why.to_owned(),
                tests: tests.filter(|test| !test.is_empty()).collect(),
                breaks: breaks.to_owned(),
            });
        }
    }
    rows
}

/// Whether `path::name` is a test: it has the attribute, or is a stimulus of the matrix.
fn is_test(test: &str) -> bool {
    let Some((path, name)) = test.split_once("::") else { return false };
    let text = read(path);
    let marked = |line: usize| {
        let before: Vec<&str> = text.lines().take(line).collect();
        before.iter().rev().take_while(|line| line.trim_start().starts_with("#[")).any(|line| line.trim() == "#[test]")
    };
    let function = format!("fn {name}(");
    let at = text.lines().position(|line| line.contains(&function));
    let stimuli =
        text.split_once("matrix!(@ ").and_then(|(_, rest)| rest.split_once(");")).map_or("", |(list, _)| list);
    at.is_some_and(marked) || (at.is_some() && stimuli.split_whitespace().any(|stimulus| stimulus == name))
}

/// Names after `Mutation::` in a text.
fn mutations(text: &str) -> BTreeSet<String> {
    let names = text.split("Mutation::").skip(1);
    names
        .map(|rest| rest.chars().take_while(char::is_ascii_alphanumeric).collect::<String>())
        .filter(|name| !name.is_empty())
        .collect()
}

/// What is wrong with a page.
fn complaints(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    let rows = rows(page);
    let mut seen: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for row in &rows {
        seen.entry(&row.at.0).or_default().push(&row.at.1);
        let at = format!("{} {}", row.at.0, row.at.1);
        let answered = match row.answer.as_str() {
            "yes" | "in part" => true,
            "no" | "not yet" => false,
            other => {
                found.push(format!("{at}: {other:?} is no answer"));
                continue;
            }
        };
        if row.why.is_empty() {
            found.push(format!("{at}: no reason"));
        }
        if answered == row.tests.is_empty() || answered == row.breaks.is_empty() {
            found.push(format!("{at}: a test and what breaks it go with yes, and with nothing else"));
        }
        found.extend(row.tests.iter().filter(|test| !is_test(test)).map(|test| format!("{at}: no test {test}")));
    }
    for (rfc, numbers) in NUMBERS {
        let there = seen.remove(rfc).unwrap_or_default();
        if there != numbers {
            found.push(format!("{rfc}: {there:?} is not {numbers:?}"));
        }
    }
    found.extend(seen.keys().map(|rfc| format!("{rfc} is not known to this test")));
    found
}

#[test]
fn every_requirement_is_answered_by_tests_that_exist() {
    assert_eq!(complaints(&page()), Vec::<String>::new());
}

#[test]
fn every_mutation_is_on_the_page_and_applied_by_a_test() {
    let code = read("dataplane/src/mutation.rs");
    let list = code.split_once("pub enum Mutation {").unwrap().1.split_once("\n}").unwrap().0;
    let all: BTreeSet<String> = list
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with("///"))
        .map(|line| line.trim_end_matches(',').to_owned())
        .filter(|name| !name.is_empty())
        .collect();
    assert!(all.len() > 10, "{all:?}");
    let applied = mutations(&(read("dataplane/tests/matrix.rs") + &read("dataplane/tests/golden/mutations.rs")));
    assert_eq!(applied, all, "left: applied by tests, right: all there are");
    // That of SCTP breaks no requirement of these RFCs.
    let mut told = mutations(&page());
    told.extend(["CrcAsItCame", "OverlapAccepted"].map(str::to_owned));
    assert_eq!(told, all, "left: on the page, right: all there are");
}

#[test]
fn what_is_wrong_with_a_page_is_found() {
    let good = page();
    for (change, to, word) in [
        ("| REQ-13a |", "| REQ-13b |", "REQ-13b"),
        ("| REQ-14a | yes |", "| REQ-14a | maybe |", "maybe"),
        ("matrix.rs::sizes`", "matrix.rs::size`", "no test"),
        ("matrix.rs::sizes`", "matrix.rs::cut`", "no test"),
        ("| REQ-2a | yes |", "| REQ-2a | no |", "go with yes"),
        ("## RFC 6040", "## RFC 6041", "RFC 6041"),
    ] {
        let bad = good.replacen(change, to, 1);
        assert_ne!(bad, good, "{change}");
        assert!(complaints(&bad).iter().any(|complaint| complaint.contains(word)), "{change}: {:?}", complaints(&bad));
    }
}
