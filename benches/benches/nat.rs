//! Egress NAT in the manner of RFC 9693: phase 1 fills the table of connections, phase 2 sends through it.
//!
//! - *Set-up* (section 4.5, maximum connection establishment rate): a million pods' ports begin, each with a flow and a mapping of
//!   its own; time for all, and for the last tenth, when the table is nearly full.
//! - *Throughput* (section 4.4): packets of those, both ways, uniformly chosen.
//! - *Tear-down* (section 4.6): all time out.
//! - *Capacity* (section 4.7): how many of them live at once, and the memory each has taken.
//!
//! One worker, in memory, no device: rates of one core.

#![allow(missing_docs)]

use std::time::Duration;

use anyhow::ensure;
use tidegate_benches::field::{Field, Way};
use tidegate_benches::summary;
use tidegate_dataplane::rig::Net;

/// Connections of the test.
const CONNECTIONS: u32 = 1_000_000;
/// Those after which the table counts as nearly full.
const MOST: u32 = CONNECTIONS / 10 * 9;
/// Whole tests; each figure is the median.
const ROUNDS: usize = 3;
/// Packets of phase 2, each way.
const PACKETS: u64 = 1_000_000;

fn main() -> anyhow::Result<()> {
    for (net, family) in Net::BOTH.into_iter().zip(["ipv4", "ipv6"]) {
        let mut rounds = (0..ROUNDS).map(|_| round(net)).collect::<anyhow::Result<Vec<_>>>()?;
        let names = ["setup", "setup_nearly_full", "out", "back", "teardown", "bytes_per_mapping"];
        for (at, name) in names.into_iter().enumerate() {
            rounds.sort_by(|one, other| one[at].total_cmp(&other[at]));
            let figure = rounds[ROUNDS / 2][at];
            println!("nat/{name}_{family}: {figure:.1}");
            summary::count(&summary::target(), &format!("nat/{name}_{family}"), figure)?;
        }
    }
    Ok(())
}

/// Nanoseconds per connection or packet, and bytes.
fn round(net: Net) -> anyhow::Result<[f64; 6]> {
    let per = |time: Duration, count: u32| time.as_secs_f64() * 1e9 / f64::from(count);
    let mut out = Field::empty(net, Way::Egress, CONNECTIONS + CONNECTIONS / 8)?;
    let before = resident();
    let most = out.install(MOST)?;
    let last = out.install(CONNECTIONS)?;
    let bytes = (resident() - before) / f64::from(CONNECTIONS);
    let live = out.worker().state().live();
    ensure!(live == u64::from(CONNECTIONS), "{live} of {CONNECTIONS} connections live");
    let forth = out.measure_hits(PACKETS);
    let mut back = Field::empty(net, Way::EgressBack, 1024)?;
    back.turn_round(&mut out);
    let answered = back.measure_hits(PACKETS);
    let gone = back.expire();
    let packets = u32::try_from(PACKETS)?;
    Ok([
        per(most + last, CONNECTIONS),
        per(last, CONNECTIONS - MOST),
        per(forth, packets),
        per(answered, packets),
        per(gone, CONNECTIONS),
        bytes,
    ])
}

/// Memory of its own that is resident, bytes.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(f64::NAN) * 1024.0
}
