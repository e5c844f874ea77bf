//! What is in `deploy/` for Prometheus and Grafana, held against the names that both processes really have, and against the
//! pages that it leads to.

#![allow(clippy::unwrap_used, reason = "a test whose stage cannot be set has failed")]

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use tidegate_perf::check::prometheus::{RULES, queries};

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)).unwrap()
}

/// Series that the processes have, by the lists that their own tests hold against their pages.
fn series() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for page in ["docs/metrics-dataplane.md", "docs/metrics-control.md"] {
        let text = read(page);
        for row in text.lines().filter(|line| line.starts_with("| `tidegate_")) {
            let mut columns = row.split('|').skip(1);
            let name = columns.next().unwrap().trim().trim_matches('`').to_owned();
            match columns.next().unwrap().trim() {
                "histogram" => names.extend(["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}"))),
                _ => drop(names.insert(name)),
            }
        }
    }
    assert!(names.len() > 100, "{names:?}");
    names
}

/// Names of Tidegate's metrics in a query.
fn named(query: &str) -> BTreeSet<&str> {
    let words = query.split(|char: char| !(char.is_ascii_alphanumeric() || char == '_'));
    words.filter(|word| word.starts_with("tidegate_")).collect()
}

/// Alerts: name, expression, and the link to the runbook.
fn alerts() -> Vec<(String, String, String)> {
    let rules: Value = serde_norway::from_str(RULES).unwrap();
    let rules = rules["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap().clone());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    rules.map(|rule| (text(&rule["alert"]), text(&rule["expr"]), text(&rule["annotations"]["runbook_url"]))).collect()
}

#[test]
fn every_name_in_the_dashboard_and_the_alerts_is_one_that_a_process_has() {
    let series = series();
    let mut used = BTreeSet::new();
    let queries = queries().unwrap();
    let alerts = alerts();
    let all =
        queries.iter().map(|(title, query)| (title, query)).chain(alerts.iter().map(|(name, query, _)| (name, query)));
    for (title, query) in all {
        for name in named(query) {
            assert!(series.contains(name), "{title}: {name} is no metric of either process");
            used.insert(name.to_owned());
        }
    }
    assert!(queries.len() > 40 && used.len() > 40, "{} queries, {used:?}", queries.len());
    assert_eq!(named("a{b=\"tidegate_x\"} + rate(tidegate_y_total[5m])"), ["tidegate_x", "tidegate_y_total"].into());
}

#[test]
fn every_alert_has_a_runbook_and_every_runbook_an_alert() {
    let page = read("docs/runbooks.md");
    let sections: BTreeSet<&str> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let names: BTreeSet<String> = alerts().into_iter().map(|(name, ..)| name).collect();
    assert!(names.len() >= 10, "{names:?}");
    assert_eq!(sections, names.iter().map(String::as_str).collect());
    for (name, _, link) in alerts() {
        let (page, anchor) = link.split_once('#').unwrap();
        // A heading of one word has itself, in small letters, as its anchor.
        assert!(page.ends_with("/docs/runbooks.md") && anchor == name.to_lowercase(), "{link}");
    }
    for section in page.split("\n## ").skip(1) {
        for part in ["**Notice.**", "**Look.**", "ure.**"] {
            assert!(section.contains(part), "{part} is missing:\n{section}");
        }
    }
    for (anchor, _) in page.split("](#").skip(1).filter_map(|rest| rest.split_once(')')) {
        assert!(names.iter().any(|name| name.to_lowercase() == anchor), "{anchor}");
    }
}

#[test]
fn every_alert_is_tried_by_promtool_s_tests() {
    let tried = read("deploy/prometheus/rules-test.yaml");
    for (name, ..) in alerts() {
        assert!(tried.contains(&format!("alertname=\"{name}\"")), "{name}");
    }
}
