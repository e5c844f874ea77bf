//! A real Prometheus beside the gateway: it reads both programs, every query of the dashboard has an answer, and no alert is
//! raised by a lab that is well.
//!
//! Owns the process and what it reads; the dashboard and the alerts are those that come with Tidegate. It listens on the
//! gateway's own loopback address, and everything it writes is in the lab's directory.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::egress::{EXTERNAL, policy};
use crate::check::{Found, Row};
use crate::process::{self, Daemon, in_namespace};
use crate::rig::{Rig, wait_until};
use crate::topology::{FAMILIES, GATEWAY, VIP_WEB, WEB_PORT};

/// The dashboard for Grafana.
pub const DASHBOARD: &str = include_str!("../../../deploy/grafana/tidegate.json");
/// The alerts.
pub const RULES: &str = include_str!("../../../deploy/prometheus/rules.yaml");
/// Where the Prometheus of the lab answers.
const AT: &str = "127.0.0.1:9090";
/// Where the two programs do: one over each family.
const TARGETS: [(&str, &str); 2] = [("tidegate-dataplane", "127.0.0.1:9470"), ("tidegate-control", "[::1]:9471")];
/// Longest wait for it to be ready, and for what it has read.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// Longest wait for an answer.
const ASK_LIMIT: Duration = Duration::from_secs(20);
/// Over so long rates are taken here; programs are read every second.
const RATE_INTERVAL: &str = "5s";
/// Connections while it reads, per family: about eight seconds of them.
const CONNECTIONS: u32 = 2000;
/// Pause between two of each of the clients, milliseconds.
const PAUSE_MS: u32 = 60;

/// The queries of the dashboard: title of the panel, and the query.
///
/// # Errors
/// When the dashboard is none.
pub fn queries() -> Result<Vec<(String, String)>> {
    let dashboard: Value = serde_json::from_str(DASHBOARD)?;
    let panels = dashboard["panels"].as_array().context("a dashboard without panels")?;
    let mut queries = Vec::new();
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let title = panel["title"].as_str().context("a panel without a title")?;
        let targets = panel["targets"].as_array().with_context(|| format!("{title}: no query"))?;
        for target in targets {
            let query = target["expr"].as_str().with_context(|| format!("{title}: no query"))?;
            queries.push((title.to_owned(), query.to_owned()));
        }
    }
    Ok(queries)
}

/// A Prometheus that runs; it ends when dropped.
struct Prometheus {
    _daemon: Daemon,
}

impl Prometheus {
    fn start(directory: &Path) -> Result<Prometheus> {
        let own = directory.join("prometheus");
        // What an earlier one has stored is of another time.
        drop(std::fs::remove_dir_all(&own));
        std::fs::create_dir_all(&own)?;
        std::fs::write(own.join("rules.yaml"), RULES)?;
        let jobs = TARGETS
            .map(|(job, at)| format!("  - {{ job_name: {job}, static_configs: [{{ targets: [\"{at}\"] }}] }}\n"));
        let text = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}\nrule_files: [rules.yaml]\n\
             scrape_configs:\n{}",
            jobs.concat()
        );
        std::fs::write(own.join("prometheus.yaml"), text)?;
        let mut command = in_namespace(GATEWAY, "prometheus");
        command.arg(format!("--config.file={}", own.join("prometheus.yaml").display()));
        command.arg(format!("--storage.tsdb.path={}", own.join("data").display()));
        command.arg(format!("--web.listen-address={AT}"));
        let mut daemon = Daemon::start("prometheus", command, &own.join("log"))?;
        daemon.wait_for_line("Server is ready to receive web requests", READY_LIMIT)?;
        Ok(Prometheus { _daemon: daemon })
    }

    /// What it answers at `path`; `query` is asked of it.
    fn ask(&self, path: &str, query: Option<&str>) -> Result<Value> {
        let mut curl = in_namespace(GATEWAY, "curl");
        curl.args(["--silent", "--show-error", "--globoff", "--max-time", "15", "--get"]);
        if let Some(query) = query {
            curl.arg("--data-urlencode").arg(format!("query={query}"));
        }
        curl.arg(format!("http://{AT}/api/v1/{path}"));
        let text = process::run(curl, "", ASK_LIMIT)?.success("asking Prometheus")?;
        let answer: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
        if answer["status"] != "success" {
            bail!("{path} {query:?}: {}", answer["error"]);
        }
        Ok(answer["data"].clone())
    }

    /// The rows that a query has now.
    fn rows(&self, query: &str) -> Result<Vec<Value>> {
        let told = self.ask("query", Some(query))?;
        Ok(told["result"].as_array().cloned().unwrap_or_default())
    }

    /// The number of a query with one row.
    fn number(&self, query: &str) -> Result<f64> {
        let rows = self.rows(query)?;
        let value = rows.first().and_then(|row| row["value"][1].as_str());
        value.and_then(|text| text.parse().ok()).with_context(|| format!("{query}: {rows:?}"))
    }
}

/// As Grafana fills a query in.
fn filled_in(query: &str) -> String {
    query.replace("$__rate_interval", RATE_INTERVAL).replace("$instance", ".*")
}

/// The check.
pub(super) fn scraped(rig: &mut Rig) -> Found {
    let cluster = rig.cluster()?;
    cluster.apply(&policy(EXTERNAL))?;
    let found = read_by_prometheus(rig);
    // In any case, or every later check would find it.
    cluster.delete("egresspolicies", "", "out")?;
    found
}

fn read_by_prometheus(rig: &mut Rig) -> Found {
    let prometheus = Prometheus::start(&rig.lab.state_dir)?;
    let mut rows = vec![reads_both(&prometheus)?];
    let load: Vec<_> = FAMILIES
        .into_iter()
        .map(|family| rig.start_spread(VIP_WEB.at(family, WEB_PORT), CONNECTIONS, PAUSE_MS))
        .collect::<Result<_>>()?;
    rows.push(leads(&prometheus)?);
    rows.push(dashboard(&prometheus)?);
    rows.push(agrees(rig, &prometheus)?);
    rows.extend(alerts(&prometheus)?);
    drop(load);
    Ok(rows)
}

/// Both programs are read, whole and as what they say they are.
fn reads_both(prometheus: &Prometheus) -> Result<Row> {
    let up = wait_until(READY_LIMIT, || Ok(prometheus.rows("up == 1")?.len() == TARGETS.len()))?;
    let mut told = Vec::new();
    let mut pass = up.is_some();
    for (job, at) in TARGETS {
        let samples = prometheus.number(&format!("scrape_samples_scraped{{job=\"{job}\"}}")).unwrap_or_default();
        told.push(format!("{job} at {at}: {samples} samples"));
        pass &= samples > 60.0;
    }
    let targets = prometheus.ask("targets", None)?;
    let targets = targets["activeTargets"].as_array().cloned().unwrap_or_default();
    let errors: Vec<&str> = targets.iter().filter_map(|target| target["lastError"].as_str()).collect();
    pass &= errors.iter().all(|error| error.is_empty());
    let measured = format!("{} {errors:?}", told.join(", "));
    Ok(Row::new("reads both programs", measured, "both, one over each family, without an error", pass))
}

/// The one control leads soon; only who leads tells of pools.
fn leads(prometheus: &Prometheus) -> Result<Row> {
    let leads = wait_until(READY_LIMIT, || Ok(!prometheus.rows("tidegate_control_leader == 1")?.is_empty()))?;
    let measured = leads.map_or("never".into(), |took| format!("after {} ms", took.as_millis()));
    Ok(Row::new("control leads", measured, "it does", leads.is_some()))
}

/// Every query of the dashboard has rows, in one and the same moment of traffic.
fn dashboard(prometheus: &Prometheus) -> Result<Row> {
    let queries = queries()?;
    let mut missing = Vec::new();
    let all = wait_until(READY_LIMIT, || {
        missing.clear();
        for (title, query) in &queries {
            match prometheus.rows(&filled_in(query)) {
                Ok(rows) if rows.is_empty() => missing.push(format!("{title}: {query}")),
                Ok(_) => {}
                Err(error) => bail!("{title}: {error:#}"),
            }
        }
        Ok(missing.is_empty())
    })?;
    let without = missing.join("\n");
    let measured = all.map_or(format!("without: {without}"), |_| format!("{} queries have rows", queries.len()));
    Ok(Row::new("the dashboard's queries", measured, "rows for each", all.is_some()))
}

/// What Prometheus stored is what the gateway says of itself.
fn agrees(rig: &Rig, prometheus: &Prometheus) -> Result<Row> {
    const INSTALLED: &str = "sum(tidegate_flow_installed_total)";
    let shown = || -> Result<f64> {
        let text = rig.gateway.command(&["show", "counters", "--json"])?.success("show counters")?;
        let value: Value = serde_json::from_str(&text)?;
        value["totals"]["flow_installed"].as_f64().context("no flow_installed")
    };
    let (before, began) = (shown()?, Instant::now());
    let caught_up = wait_until(READY_LIMIT, || Ok(prometheus.number(INSTALLED)? >= before))?;
    let (stored, after) = (prometheus.number(INSTALLED)?, shown()?);
    let measured = format!("{before} shown, {stored} stored {} ms later, {after} shown", began.elapsed().as_millis());
    let pass = caught_up.is_some() && (before..=after).contains(&stored) && before > 0.0;
    Ok(Row::new("flows", measured, "stored as shown, in this order", pass))
}

/// Every alert can be computed, and none is raised or about to be.
fn alerts(prometheus: &Prometheus) -> Found {
    let evaluated = |rules: &[Value]| rules.iter().all(|rule| rule["health"] == "ok");
    let mut rules = Vec::new();
    wait_until(READY_LIMIT, || {
        let told = prometheus.ask("rules", None)?;
        rules = told["groups"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|group| group["rules"].as_array().cloned())
            .flatten()
            .collect();
        Ok(evaluated(&rules))
    })?;
    let errors: Vec<String> = rules
        .iter()
        .filter(|rule| rule["health"] != "ok")
        .map(|rule| format!("{}: {} {}", rule["name"], rule["health"], rule["lastError"]))
        .collect();
    let expected = RULES.matches("- alert: ").count();
    let measured = format!("{} rules, {errors:?}", rules.len());
    let mut rows = vec![Row::new(
        "alerts are computed",
        measured,
        format!("{expected}, without an error"),
        errors.is_empty() && rules.len() == expected,
    )];
    let raised: Vec<String> = rules
        .iter()
        .filter(|rule| rule["state"] != "inactive")
        .map(|rule| format!("{} {}: {}", rule["name"], rule["state"], rule["alerts"]))
        .collect();
    rows.push(Row::new("alerts raised or pending", format!("{raised:?}"), "none", raised.is_empty()));
    Ok(rows)
}
