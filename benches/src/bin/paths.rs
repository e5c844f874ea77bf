//! Instructions and time per packet on the main paths.
//!
//! ```text
//! paths check     counts instructions and compares them with benches/instructions.json
//! paths accept    counts and records them there
//! paths go        goes every path once, for callgrind to look at
//! paths time [NAME] [FLOWS] [PASSES] [PAGES]    cycles per packet beside the floor of the same run
//! ```
//!
//! PAGES are those of frames and tables: `auto` (reserved huge pages, else transparent ones), `on` (reserved ones, of which
//! there must be enough) or `off` (plain ones).

#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Context;
use tidegate_benches::course::Plan;
use tidegate_benches::field::PASS_FRAMES;
use tidegate_benches::floor::Floor;
use tidegate_benches::instructions;
use tidegate_benches::ladder;
use tidegate_io::HugePages;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["check"] => check(),
        ["accept"] => accept(),
        ["go"] => instructions::go(None),
        ["go", only] => instructions::go(Some(*only)),
        ["time", rest @ ..] => time(rest),
        _ => Err(anyhow::anyhow!("usage: paths check | accept | go [NAME] | time [NAME] [FLOWS] [PASSES] [PAGES]")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check() -> anyhow::Result<()> {
    let (recorded, counted) = (instructions::recorded()?, instructions::count()?);
    print!("{}", instructions::table(&recorded, &counted));
    instructions::compare(&recorded, &counted)
}

fn accept() -> anyhow::Result<()> {
    let counted = instructions::count()?;
    print!("{}", instructions::table(&instructions::recorded().unwrap_or(counted.clone()), &counted));
    instructions::accept(&counted)
}

/// Passes of the floor and of a path by turns: the best decile and the median of each.
fn time(words: &[&str]) -> anyhow::Result<()> {
    let name = words.first().copied().unwrap_or_default();
    let flows: u32 = words.get(1).map_or(Ok(1_000_000), |word| word.parse()).context("flows")?;
    let passes: usize = words.get(2).map_or(Ok(60), |word| word.parse()).context("passes")?;
    let huge = match words.get(3) {
        None | Some(&"auto") => HugePages::Auto,
        Some(&"on") => HugePages::On,
        Some(&"off") => HugePages::Off,
        Some(other) => anyhow::bail!("pages are auto, on or off, not {other}"),
    };
    let mut floor = Floor::new(huge)?;
    println!("{:<22} {:>8} {:>8} {:>8} {:>6}", "cycles/packet", "best 10%", "median", "floor", "ratio");
    for (path, net, name) in instructions::paths().filter(|(_, _, full)| full.contains(name)) {
        let plan = Plan { huge, ..Plan::new(path, net, flows, PASS_FRAMES) };
        let rung = ladder::path(&mut floor, plan, &name, passes)?;
        let (best, median, lowest) = (rung.best, rung.median, rung.floor.unwrap_or_default());
        println!("{name:<22} {best:>8.1} {median:>8.1} {lowest:>8.1} {:>6.2}", rung.ratio().unwrap_or_default());
    }
    Ok(())
}
