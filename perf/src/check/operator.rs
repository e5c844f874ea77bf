//! Checks of the operator's view: every question of `tidegate show`, as a table and as JSON, and the error when nobody
//! is there to answer.

use anyhow::{Context, Result};

use crate::check::{Found, Row};
use crate::rig::Rig;

/// Questions, and whether a gateway that serves the lab must have rows to show.
const QUESTIONS: [(&str, bool); 10] = [
    ("services", true),
    ("backends", true),
    ("flows", false),
    ("tunnels", true),
    ("routes", true),
    ("neighbours", true),
    ("workers", true),
    ("ports", true),
    ("counters", true),
    ("drops", false),
];

/// Asks everything in both forms.
pub(super) fn show(rig: &mut Rig) -> Found {
    let mut told = Vec::new();
    let mut troubles = Vec::new();
    for (question, must_have_rows) in QUESTIONS {
        match ask(rig, question) {
            Ok(rows) if rows == 0 && must_have_rows => troubles.push(format!("{question}: no rows")),
            Ok(rows) => told.push(format!("{question} {rows}")),
            Err(error) => troubles.push(format!("{error:#}")),
        }
    }
    let pass = troubles.is_empty();
    let measured = if pass { told.join(", ") } else { troubles.join("; ") };
    Ok(vec![Row::new("all questions", measured, "rows, as text and JSON", pass), nobody_there(rig)?])
}

/// Number of rows of one answer, after both forms have been looked at.
fn ask(rig: &Rig, question: &str) -> Result<usize> {
    rig.gateway.command(&["show", question])?.success(&format!("show {question}"))?;
    let text = rig.gateway.command(&["show", question, "--json"])?.success(&format!("show {question} --json"))?;
    let value: serde_json::Value = serde_json::from_str(&text).with_context(|| format!("show {question} --json"))?;
    // Counters are one object; everything else is a list.
    Ok(value.as_array().map_or_else(|| value.as_object().map_or(0, serde_json::Map::len), Vec::len))
}

fn nobody_there(rig: &Rig) -> Result<Row> {
    let finished = rig.gateway.command_at("/run/tidegate/nobody.sock", &["show", "services"])?;
    let names_it =
        finished.stderr.contains("/run/tidegate/nobody.sock") && finished.stderr.contains("tidegate-dataplane");
    let measured = format!("{}: {}", crate::process::describe(finished.status), finished.stderr.trim());
    let expected = "an error that names socket and program";
    Ok(Row::new("nobody there", measured, expected, !finished.status.success() && names_it))
}
