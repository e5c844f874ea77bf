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
    /// The floor of the same run that it is compared with.
    #[serde(default)]
    pub floor: Option<String>,
}

/// One line of `target/bench-summary.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figure {
    /// Name, as in the budget.
    pub name: String,
    /// What was measured, of repeated passes the median; absent: the bench did not run.
    pub figure: Option<f64>,
    /// The best decile of the passes; absent where one figure is all there is.
    pub best: Option<f64>,
    /// Unit.
    pub unit: String,
    /// Most it may be.
    pub budget: Option<f64>,
    /// Whether the figure is within the budget; absent without either.
    pub met: Option<bool>,
    /// The figure by the budget.
    pub of_budget: Option<f64>,
    /// How often the floor of the same run goes into it, best decile by best decile.
    pub of_floor: Option<f64>,
}

/// What a bench measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The figure, of repeated passes the median.
    pub median: f64,
    /// Their best decile.
    pub best: Option<f64>,
    /// The best decile of the floor's passes that took turns with them.
    pub floor: Option<f64>,
}

impl Measured {
    fn times(self, factor: f64) -> Measured {
        Measured { median: self.median * factor, best: self.best.map(|best| best * factor), ..self }
    }
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
pub fn criterion_ns(target: &Path, name: &str) -> Option<Measured> {
    let folder = [name, &name.replace('/', "_")].map(|folder| target.join("criterion").join(folder).join("new"));
    let folder = folder.into_iter().find(|folder| folder.join("estimates.json").exists())?;
    let read = |file: &str| -> Option<serde_json::Value> {
        serde_json::from_str(&fs::read_to_string(folder.join(file)).ok()?).ok()
    };
    // The median: these machines are shared, and a mean tells of the neighbours.
    let median = read("estimates.json")?.get("median")?.get("point_estimate")?.as_f64()?;
    let sample = read("sample.json");
    let list = |name: &str| -> Option<Vec<f64>> {
        sample.as_ref()?.get(name)?.as_array()?.iter().map(serde_json::Value::as_f64).collect()
    };
    let passes = list("times").zip(list("iters")).map(|(times, iterations)| {
        times.into_iter().zip(iterations).map(|(time, iterations)| time / iterations).collect::<Vec<_>>()
    });
    let best = passes.filter(|passes| !passes.is_empty()).map(|mut passes| crate::ladder::marks(&mut passes).0);
    Some(Measured { median, best, floor: None })
}

/// Writes one figure where [`counted`] finds it.
///
/// # Errors
/// When the file cannot be written.
pub fn count(target: &Path, name: &str, figure: f64) -> anyhow::Result<()> {
    count_passes(target, name, Measured { median: figure, best: None, floor: None })
}

/// Writes what passes came to where [`counted`] finds it.
///
/// # Errors
/// When the file cannot be written.
pub fn count_passes(target: &Path, name: &str, measured: Measured) -> anyhow::Result<()> {
    let path = target.join("counted").join(name).with_extension("json");
    fs::create_dir_all(path.parent().unwrap_or(target))?;
    Ok(fs::write(path, serde_json::to_string(&measured)?)?)
}

/// A figure that [`count`] has written, if that bench ran.
pub fn counted(target: &Path, name: &str) -> Option<Measured> {
    let text = fs::read_to_string(target.join("counted").join(name).with_extension("json")).ok()?;
    serde_json::from_str(&text).ok()
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
    let measured = |name: &str, unit: &str| {
        let timed = match unit {
            "cycles" => criterion_ns(target, name).map(|ns| ns.times(CYCLES_PER_NS)),
            "ms" => criterion_ns(target, name).map(|ns| ns.times(1e-6)),
            _ => None,
        };
        timed.or_else(|| counted(target, name))
    };
    let figure = |budget: Budget| {
        let found = measured(&budget.name, &budget.unit);
        let figure = found.map(|found| found.median);
        let best = found.and_then(|found| found.best);
        let floor = found.and_then(|found| found.floor);
        let floor = floor.or_else(|| measured(budget.floor.as_deref()?, &budget.unit)?.best);
        let by_budget = figure.zip(budget.budget);
        Figure {
            met: by_budget.map(|(figure, budget)| figure <= budget),
            of_budget: by_budget.filter(|(_, budget)| *budget > 0.0).map(|(figure, budget)| figure / budget),
            of_floor: best.zip(floor).map(|(best, floor)| best / floor),
            name: budget.name,
            figure,
            best,
            unit: budget.unit,
            budget: budget.budget,
        }
    };
    Ok(budgets()?.into_iter().map(figure).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_floor_that_a_budget_names_is_a_figure_of_the_same_unit() {
        let budgets = budgets().unwrap();
        for (budget, floor) in budgets.iter().filter_map(|budget| Some((budget, budget.floor.as_ref()?))) {
            let found = budgets.iter().find(|other| other.name == *floor);
            assert_eq!(found.map(|floor| floor.unit.as_str()), Some(budget.unit.as_str()), "{}", budget.name);
        }
    }

    #[test]
    fn a_figure_has_its_median_its_best_decile_and_both_ratios() {
        let home = tempfile::tempdir().unwrap();
        let write = |name: &str, median: f64, times: [f64; 10]| {
            let folder = home.path().join("criterion").join(name).join("new");
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("estimates.json"), format!(r#"{{"median":{{"point_estimate":{median}}}}}"#)).unwrap();
            let sample = serde_json::json!({ "iters": vec![2.0; 10], "times": times });
            fs::write(folder.join("sample.json"), sample.to_string()).unwrap();
        };
        write("floor_1000000", 20.0, [38.0, 36.0, 40.0, 42.0, 44.0, 40.0, 40.0, 40.0, 40.0, 40.0]);
        write(
            "turn_to_backend_ipv4/1000000",
            65.0,
            [100.0, 114.0, 130.0, 130.0, 130.0, 130.0, 130.0, 130.0, 140.0, 150.0],
        );
        let passes = Measured { median: 120.0, best: Some(100.0), floor: Some(50.0) };
        count_passes(home.path(), "pages/huge_to_pod_tcp_ipv4", passes).unwrap();
        count(home.path(), "allocations/in_memory_turn", 0.0).unwrap();
        let figures = figures(home.path()).unwrap();
        let of = |name: &str| figures.iter().find(|figure| figure.name == name).unwrap();
        let near =
            |found: Option<f64>, wanted: f64| assert!((found.unwrap() - wanted).abs() < 1e-9, "{found:?} {wanted}");
        let turn = of("turn_to_backend_ipv4/1000000");
        near(turn.figure, 65.0 * CYCLES_PER_NS);
        near(turn.best, 57.0 * CYCLES_PER_NS);
        near(turn.of_budget, 65.0 * CYCLES_PER_NS / 130.0);
        near(turn.of_floor, 57.0 / 19.0);
        assert_eq!(turn.met, Some(false));
        let pages = of("pages/huge_to_pod_tcp_ipv4");
        assert_eq!(
            (pages.figure, pages.best, pages.of_floor, pages.met),
            (Some(120.0), Some(100.0), Some(2.0), Some(true))
        );
        let allocations = of("allocations/in_memory_turn");
        assert_eq!((allocations.figure, allocations.met, allocations.of_budget), (Some(0.0), Some(true), None));
        assert_eq!(of("nat/setup_ipv4").figure, None, "that bench did not run");
    }
}
