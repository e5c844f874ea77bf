//! The same paths and the same floor on plain pages and on huge ones, by turns in one run.
//!
//! `plain` is memory of 4 KiB pages; `huge` is what a gateway asks for by default: reserved pages of 2 MiB if there are
//! enough (`vm.nr_hugepages`), else transparent ones. Which they were is printed. Ten million flows are measured on those.

#![allow(missing_docs)]

use tidegate_benches::course::{Path, Plan};
use tidegate_benches::field::PASS_FRAMES;
use tidegate_benches::floor::Floor;
use tidegate_benches::ladder::{self, Rung};
use tidegate_benches::summary::{self, Measured};
use tidegate_dataplane::rig::Net;
use tidegate_io::HugePages;

const MILLION: u32 = 1_000_000;
const PASSES: usize = 40;

fn main() -> anyhow::Result<()> {
    for (pages, huge) in [("plain", HugePages::Off), ("huge", HugePages::Auto)] {
        let mut floor = Floor::new(huge)?;
        println!("pages/{pages}: {:?}", floor.pages());
        for (net, family) in Net::BOTH.into_iter().zip(["ipv4", "ipv6"]) {
            for path in [Path::ToPod, Path::ToClient, Path::Overlay] {
                let plan = Plan { huge, ..Plan::new(path, net, MILLION, PASS_FRAMES) };
                let name = format!("pages/{pages}_{}_{family}", path.name());
                tell(&ladder::path(&mut floor, plan, &name, PASSES)?)?;
            }
        }
    }
    let mut floor = Floor::new(HugePages::Auto)?;
    for (net, family) in Net::BOTH.into_iter().zip(["ipv4", "ipv6"]) {
        let plan = Plan::new(Path::Overlay, net, 10 * MILLION, PASS_FRAMES);
        tell(&ladder::path(&mut floor, plan, &format!("pages/huge_overlay_udp_10m_{family}"), PASSES)?)?;
    }
    Ok(())
}

fn tell(rung: &Rung) -> anyhow::Result<()> {
    let (floor, ratio) = (rung.floor.unwrap_or_default(), rung.ratio().unwrap_or_default());
    println!(
        "{}: {:.1} best decile, {:.1} median; floor {floor:.1}, ratio {ratio:.2}",
        rung.name, rung.best, rung.median
    );
    let measured = Measured { median: rung.median, best: Some(rung.best), floor: rung.floor };
    summary::count_passes(&summary::target(), &rung.name, measured)
}
