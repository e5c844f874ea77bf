//! The ladder in memory as JSON, for `tidegate bench`: `tidegate-bench-memory [FLOWS] [PASSES]`.

#![forbid(unsafe_code)]

use anyhow::{Context, ensure};

fn main() -> anyhow::Result<()> {
    let mut words = std::env::args().skip(1);
    let flows: u32 = words.next().map_or(Ok(1_000_000), |word| word.parse()).context("flows")?;
    let passes: usize = words.next().map_or(Ok(30), |word| word.parse()).context("passes")?;
    ensure!((1_000..=4_000_000).contains(&flows), "flows are 1000 to 4000000, not {flows}");
    ensure!((1..=1_000).contains(&passes), "passes are 1 to 1000, not {passes}");
    let rungs = tidegate_benches::ladder::climb(flows, passes)?;
    println!("{}", serde_json::to_string(&rungs)?);
    Ok(())
}
