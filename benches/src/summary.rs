//! Figures, budgets and the summary that compares them.
//!
//! Budgets stand in one file, `benches/budgets.json`. Times are given in cycles of a 2.3 GHz counter, that is
//! nanoseconds × 2.3, so that figures of machines with other clocks compare.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// Cycles in a nanosecond, by definition of our unit.
pub const CYCLES_PER_NS: f64 = 2.3;

/// One budget.
#[derive(Clone, Debug, Deserialize)]
pub struct Budget {
    /// Name of the figure, as the bench that yields it calls it.
    pub name: String,
    /// Unit of figure and budget.
    pub unit: String,
    /// Most it may be; absent: reported only.
    pub budget: Option<f64>,
    /// What is measured.
    pub what: String,
}

/// One line of `target/bench-summary.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figure {
    /// Name, as in the budget.
    pub name: String,
    /// What was measured; absent: the bench did not run.
    pub figure: Option<f64>,
    /// Unit.
    pub unit: String,
    /// Most it may be.
    pub budget: Option<f64>,
    /// Whether the figure is within the budget; absent without either.
    pub met: Option<bool>,
}

/// The budgets.
///
/// # Errors
/// When the file is not what it should be.
pub fn budgets() -> anyhow::Result<Vec<Budget>> {
    serde_json::from_str(include_str!("../budgets.json")).context("benches/budgets.json")
}

/// Nanoseconds per iteration that criterion measured for `name`, if that bench ran. A `group/parameter` has a folder in a
/// folder; in the name of a bench without a group criterion writes `_` for `/`.
pub fn criterion_ns(target: &Path, name: &str) -> Option<f64> {
    let read = |folder: &str| fs::read_to_string(target.join("criterion").join(folder).join("new/estimates.json"));
    let text = read(name).or_else(|_| read(&name.replace('/', "_"))).ok()?;
    let estimates: serde_json::Value = serde_json::from_str(&text).ok()?;
    // The median: these machines are shared, and a mean tells of the neighbours.
    estimates.get("median")?.get("point_estimate")?.as_f64()
}

/// Writes one counted figure where [`counted`] finds it.
///
/// # Errors
/// When the file cannot be written.
pub fn count(target: &Path, name: &str, figure: f64) -> anyhow::Result<()> {
    let path = target.join("counted").join(name).with_extension("json");
    fs::create_dir_all(path.parent().unwrap_or(target))?;
    Ok(fs::write(path, figure.to_string())?)
}

/// A counted figure, if that bench ran.
pub fn counted(target: &Path, name: &str) -> Option<f64> {
    fs::read_to_string(target.join("counted").join(name).with_extension("json")).ok()?.parse().ok()
}

/// Where figures of benches that criterion does not run are kept.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from)
}

/// Every budget with its figure.
///
/// # Errors
/// When the budgets cannot be read.
pub fn figures(target: &Path) -> anyhow::Result<Vec<Figure>> {
    let figure = |budget: Budget| {
        let figure = match budget.unit.as_str() {
            "cycles" => criterion_ns(target, &budget.name).map(|ns| ns * CYCLES_PER_NS),
            "ms" => criterion_ns(target, &budget.name).map(|ns| ns / 1e6),
            _ => None,
        };
        let figure = figure.or_else(|| counted(target, &budget.name));
        let met = figure.zip(budget.budget).map(|(figure, budget)| figure <= budget);
        Figure { name: budget.name, figure, unit: budget.unit, budget: budget.budget, met }
    };
    Ok(budgets()?.into_iter().map(figure).collect())
}
