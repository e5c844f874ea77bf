//! Writes `target/bench-summary.json` from what the benches measured, and prints it as a table.

#![forbid(unsafe_code)]

use std::fs;

use tidegate_benches::summary;

fn main() -> anyhow::Result<()> {
    let target = summary::target();
    let figures = summary::figures(&target)?;
    println!("{:<36} {:>12} {:>10}  {:<20} met", "figure", "measured", "budget", "unit");
    for figure in &figures {
        let number = |value: Option<f64>| value.map_or("-".to_string(), |value| format!("{value:.1}"));
        let met = figure.met.map_or("", |met| if met { "yes" } else { "NO" });
        println!(
            "{:<36} {:>12} {:>10}  {:<20} {met}",
            figure.name,
            number(figure.figure),
            number(figure.budget),
            figure.unit
        );
    }
    let missing = figures.iter().filter(|figure| figure.figure.is_none()).count();
    if missing > 0 {
        println!("{missing} figures were not measured; `make bench` measures all");
    }
    let path = target.join("bench-summary.json");
    fs::write(&path, serde_json::to_string_pretty(&figures)?)?;
    println!("written: {}", path.display());
    Ok(())
}
