//! Writes `target/bench-summary.json` from what the benches measured, and prints it as a table.

#![forbid(unsafe_code)]

use std::fs;
use std::process::ExitCode;

use tidegate_benches::summary;

fn main() -> anyhow::Result<ExitCode> {
    let target = summary::target();
    let figures = summary::figures(&target)?;
    println!(
        "{:<36} {:>12} {:>12} {:>10} {:>9} {:>8}  {:<20} met",
        "figure", "median", "best decile", "budget", "of budget", "x floor", "unit"
    );
    for figure in &figures {
        let number = |value: Option<f64>| match value {
            None => "-".to_string(),
            Some(value) if value != 0.0 && value.abs() < 1.0 => format!("{value:.3}"),
            Some(value) => format!("{value:.1}"),
        };
        let ratio = |value: Option<f64>| value.map_or_else(|| "-".to_string(), |value| format!("{value:.2}"));
        let met = figure.met.map_or("", |met| if met { "yes" } else { "NO" });
        println!(
            "{:<36} {:>12} {:>12} {:>10} {:>9} {:>8}  {:<20} {met}",
            figure.name,
            number(figure.figure),
            number(figure.best),
            number(figure.budget),
            ratio(figure.of_budget),
            ratio(figure.of_floor),
            figure.unit
        );
    }
    let missing = figures.iter().filter(|figure| figure.figure.is_none()).count();
    let path = target.join("bench-summary.json");
    fs::write(&path, serde_json::to_string_pretty(&figures)?)?;
    println!("written: {}", path.display());
    if missing > 0 {
        eprintln!("{missing} figures were not measured; `make bench` measures all");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}
