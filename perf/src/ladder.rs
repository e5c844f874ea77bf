//! The ladder: what forwards packets on one and the same way, one after the other, in one run.
//!
//! ```text
//!  generator ── client ─── wan0 [ the rung ] lan0 ─── fabric ── sink: counts what would go on to the pods
//! ```
//!
//! Owns the rungs and their figures. A rung is a plain forwarder on AF_XDP, which is the ceiling of this I/O; Tidegate,
//! `fullnat` into VXLAN; or the kernel, with the rules that kube-proxy writes in nftables mode and its own VXLAN, for one
//! Service and for thousands. The generator sends the same to each; the sink drops and counts behind the
//! rung's last device, so that neither the workers nor the pods are measured. Each family climbs by itself.
//!
//! **What processor time is counted**: that of the forwarder's own threads, and that of the kernel's threads which receive
//! for `wan0`. These exist since the rung's devices are told to receive in threads of their own; otherwise the kernel would
//! receive in whoever sends, and the generator would pay for the gateway. Time of other programs is in neither. The same time
//! while nothing is sent is what a rung costs idle, and packets so rare that each one wakes it show how soon it does.
//! It says nothing about NICs: on veth the kernel copies every packet, and that is most of what AF_XDP costs here.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser};
use serde::{Deserialize, Serialize};

use crate::enclosure;
use crate::gateway::{Program, Seat};
use crate::kube_proxy;
use crate::lab::{LabOptions, vxlan_device};
use crate::manifest::{ECHO, LabService};
use crate::pktgen::command::Bench;
use crate::pktgen::histogram::Quantiles;
use crate::pktgen::options::{DeviceOptions, TrafficOptions};
use crate::pktgen::surroundings::{self, Surroundings};
use crate::pktgen::trial::Outcome;
use crate::plot;
use crate::process::{self, Daemon, in_namespace};
use crate::rig::Rig;
use crate::topology::{
    CLIENT, ECHO_PORT, FABRIC, FAMILIES, Family, GATEWAY, GATEWAY_NODE, GATEWAY_WAN_MAC, OVERLAY_MTU_V4,
    OVERLAY_MTU_V6, Pod, VIP_ECHO, VNI, VXLAN_PORT, Vip, workers,
};

/// Loss under updates.
mod updates;

pub use updates::{Trials, UnderUpdates};

/// How long setting a rung up may take: thousands of Services take nftables half a minute.
const SETUP_LIMIT: Duration = Duration::from_secs(240);
/// The rung that decides nothing: it exchanges link-layer addresses.
const RAW: &str = "raw AF_XDP forwarding";
/// The rung that is Tidegate's.
const TIDEGATE: &str = "Tidegate fullnat";
/// Addresses of the kernel's other Services.
const SERVICES_V6: std::net::Ipv6Addr = std::net::Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0);
/// First rate that is offered.
const FIRST_RATE_PER_S: u64 = 20_000;
/// Last one: more than any generator here has.
const LAST_RATE_PER_S: u64 = 20_000_000;
/// The part of the most at which processor time is counted: little is lost there, so little is spent in vain.
const STEADY: f64 = 0.7;
/// Packets per second that each find the rung asleep.
const RARE_PER_S: u64 = 100;
/// How long these are sent, and nothing is sent before, at least.
const QUIET_MIN: Duration = Duration::from_secs(2);
/// How long a forwarder may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(20);

/// What is measured, and for how long.
#[derive(Debug, Clone, Args)]
pub struct LadderOptions {
    /// Length of each trial, in seconds
    #[arg(long, default_value_t = 0.5)]
    pub seconds: f64,
    /// Trials for the processor time, of which the median is told; and rates that bring no more before the search for most
    /// ends
    #[arg(long, default_value_t = 3)]
    pub trials: u32,
    /// How many times raw forwarding and Tidegate take turns; of each the round with the median rate is told
    #[arg(long, default_value_t = 1)]
    pub rounds: u32,
    /// Distinct flows, uniformly mixed
    #[arg(long, default_value_t = 10_000)]
    pub flows: u32,
    /// Sizes of frames with their check sequence
    #[arg(long, default_value = "64")]
    pub sizes: String,
    /// Families of the packets
    #[arg(long, value_delimiter = ',', default_value = "ipv4,ipv6", value_parser = family)]
    pub families: Vec<Family>,
    /// Services that the kernel's rules know: a rung for each number
    #[arg(long, value_delimiter = ',', default_value = "1,1000,10000")]
    pub services: Vec<u32>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Write the JSON to this file
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Draw the figures into this file, as SVG
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

fn family(name: &str) -> Result<Family, String> {
    let named = FAMILIES.into_iter().find(|family| family.to_string().eq_ignore_ascii_case(name));
    named.ok_or_else(|| "ipv4 or ipv6".into())
}

/// One rung's figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rung {
    /// What forwarded.
    pub name: String,
    /// `IPv4` or `IPv6`, inside and outside of VXLAN.
    pub family: String,
    /// Packets per second that came through, at the rate at which most did.
    pub mrr_per_s: f64,
    /// That rate.
    pub offered_per_s: f64,
    /// Processor time per packet that came through at 0.7 of it, in nanoseconds, the median; none where the kernel's threads
    /// are hidden.
    pub cpu_ns_per_packet: Option<f64>,
    /// The part of it in the kernel's receiving threads.
    pub of_it_receiving_ns: Option<f64>,
    /// From the generator to the sink at half of the MRR, with a sink that receives.
    pub latency: Quantiles,
    /// Processor time of the same threads while nothing is sent, in percent of one core.
    pub idle_percent: Option<f64>,
    /// From the generator to the sink at a hundred packets per second: each finds everybody asleep.
    pub rare: Quantiles,
    /// The rates of all rounds in their order, of which this is the one with the median; one round where it is empty.
    #[serde(default)]
    pub rounds_mrr_per_s: Vec<f64>,
}

impl Rung {
    /// Of several rounds of the same rung, the one with the median rate, and all their rates.
    fn median(mut rounds: Vec<Self>) -> Option<Self> {
        let rates: Vec<f64> = rounds.iter().map(|round| round.mrr_per_s).collect();
        rounds.sort_by(|a, b| a.mrr_per_s.total_cmp(&b.mrr_per_s));
        let middle = rounds.len().checked_sub(1)? / 2;
        Some(Self { rounds_mrr_per_s: rates, ..rounds.swap_remove(middle) })
    }
}

/// The ladder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ladder {
    /// Where.
    pub surroundings: Surroundings,
    /// What the figures are of.
    pub conditions: String,
    /// The rungs.
    pub rungs: Vec<Rung>,
    /// What Tidegate lost at half of its MRR while a thousand unrelated changes a second were told to it, beside what it lost
    /// without; a record of before that was measured has none.
    #[serde(default)]
    pub updates: Vec<UnderUpdates>,
}

/// The ladder as options of the generator.
#[derive(Parser)]
struct Line {
    #[command(flatten)]
    device: DeviceOptions,
    #[command(flatten)]
    traffic: TrafficOptions,
}

/// Climbs the ladder inside a lab of its own.
///
/// # Errors
/// When a rung cannot be set up, or a trial fails.
pub fn climb(options: &LadderOptions) -> Result<Ladder> {
    ensure!((1..=100).contains(&options.trials), "trials are 1 to 100, not {}", options.trials);
    ensure!((1..=100).contains(&options.rounds), "rounds are 1 to 100, not {}", options.rounds);
    ensure!(options.services.iter().all(|count| (1..=50_000).contains(count)), "Services are 1 to 50000");
    let seconds = crate::pktgen::options::seconds(options.seconds)?;
    // Before minutes are spent on figures that could not be kept.
    for file in options.record.iter().chain(&options.plot) {
        let opened = std::fs::File::options().create(true).append(true).open(file);
        opened.with_context(|| format!("writing {}", file.display()))?;
    }
    let mut rig = Rig::up(&LabOptions::default())?;
    let before = receiving_threads();
    for (namespace, device) in [(GATEWAY, "wan0"), (GATEWAY, "lan0"), (FABRIC, GATEWAY)] {
        // Without GRO a veth has no NAPI, and so nothing that could be a thread.
        let lines = format!("ethtool -K {device} gro on >/dev/null\necho 1 > /sys/class/net/{device}/threaded\n");
        shell(namespace, &lines)?;
    }
    let climbed = |name: &str, pid: Option<u32>| -> Result<Vec<Rung>> {
        let of = |family: &Family| {
            eprintln!("ladder: {name}, {family}");
            let rung = measure(name, *family, pid, options, seconds, &before);
            rung.with_context(|| format!("rung {name:?} over {family}"))
        };
        options.families.iter().map(of).collect()
    };
    let (mut raw, mut tidegate) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        let mut forwarder = forwarder(&rig)?;
        forwarder.wait_for_line("forwarding", READY_LIMIT)?;
        raw.push(climbed(RAW, Some(forwarder.pid()))?);
        forwarder.signal(rustix::process::Signal::TERM)?;
        forwarder.wait_for_end(READY_LIMIT)?;
        rig.gateway.start()?;
        rig.await_active_pods("shop/echo", &crate::topology::pods().map(Pod::name).collect::<Vec<_>>(), READY_LIMIT)?;
        tidegate.push(climbed(TIDEGATE, rig.gateway.pid(Program::Dataplane))?);
        rig.gateway.end(Program::Control)?;
        if round < options.rounds {
            rig.gateway.end(Program::Dataplane)?;
            shell(GATEWAY, WITHOUT_PINHOLE)?;
        }
    }
    let mut rungs = medians(raw);
    rungs.extend(medians(tidegate));
    let updates = under_updates(&rungs, options, seconds)?;
    rig.gateway.end(Program::Dataplane)?;
    shell(GATEWAY, WITHOUT_PINHOLE)?;
    shell(GATEWAY, &kernel_forwards())?;
    for count in &options.services {
        program(*count)?;
        rungs.extend(climbed(&format!("kernel nftables, {count} Services"), None)?);
    }
    let conditions = format!(
        "veth, AF_XDP copy mode, one queue, frames of {} bytes in {} flows, uniform; {} trials of {} s; processor time: the \
         forwarder's threads and the kernel's threads that receive for wan0, at 0.7 of the most that came through; latency at \
         half of it; idle: the same processor time while nothing is sent, of one core; rare: {RARE_PER_S} packets per second; \
         raw forwarding and Tidegate by turns, {} rounds, the one with the median rate of each",
        options.sizes, options.flows, options.trials, options.seconds, options.rounds
    );
    let ladder = Ladder { surroundings: surroundings::here(), conditions, rungs, updates };
    if let Some(file) = &options.record {
        let text = serde_json::to_string_pretty(&ladder)? + "\n";
        std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    if let Some(file) = &options.plot {
        std::fs::write(file, plot::ladder(&ladder)?).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(ladder)
}

/// Of each family the median round; rounds have their families in one order.
fn medians(rounds: Vec<Vec<Rung>>) -> Vec<Rung> {
    let mut families: Vec<Vec<Rung>> = Vec::new();
    for round in rounds {
        families.resize_with(families.len().max(round.len()), Vec::new);
        for (family, rung) in families.iter_mut().zip(round) {
            family.push(rung);
        }
    }
    families.into_iter().filter_map(Rung::median).collect()
}

/// What Tidegate loses at half of what came through, told of changes and left alone.
fn under_updates(rungs: &[Rung], options: &LadderOptions, seconds: Duration) -> Result<Vec<UnderUpdates>> {
    let mut changes =
        updates::Changes::begin(Path::new(Seat::FIRST.socket)).context("telling the dataplane of changes")?;
    let mut found = Vec::new();
    for family in &options.families {
        eprintln!("ladder: {TIDEGATE} under updates, {family}");
        let rung = rungs.iter().find(|rung| rung.name == TIDEGATE && rung.family == family.to_string());
        let half = crate::pktgen::search::rounded(rung.map_or(0.0, |rung| rung.mrr_per_s) / 2.0);
        let mut bench = bench(options, *family, true)?;
        bench.trial(half, 0, Duration::from_millis(300), false)?;
        found.push(changes.compare(&mut bench, *family, half, options.trials, seconds)?);
    }
    Ok(found)
}

/// Runs lines of a shell in a namespace.
fn shell(namespace: &str, lines: &str) -> Result<()> {
    let mut command = in_namespace(namespace, "sh");
    command.args(["-e", "-s"]);
    process::run(command, lines, SETUP_LIMIT)?.success(&format!("setting {namespace} up"))?;
    Ok(())
}

fn forwarder(rig: &Rig) -> Result<Daemon> {
    let mut command = in_namespace(GATEWAY, rig.gateway.program("tidegate-pktgen"));
    command.args(["forward", "--near=wan0", "--far=lan0"]);
    command.args(FAMILIES.map(|family| format!("--address={}", VIP_ECHO.of(family))));
    Daemon::start("tidegate-pktgen", command, &rig.lab.state_dir.join("forwarder.log"))
}

/// Takes the programs from the gateway's devices that stay when the dataplane ends.
const WITHOUT_PINHOLE: &str = "ip link set dev wan0 xdp off\nip link set dev lan0 xdp off\n";

/// Makes the gateway's kernel a forwarder: its own VXLAN devices, as workers have them.
fn kernel_forwards() -> String {
    let mut lines = String::new();
    let node = GATEWAY_NODE;
    for family in FAMILIES {
        let device = vxlan_device(family);
        let (mtu, length, flags) = match family {
            Family::V4 => (OVERLAY_MTU_V4, 32, ""),
            Family::V6 => (OVERLAY_MTU_V6, 128, " nodad"),
        };
        let _ = write!(
            lines,
            "ip link add {device} address {} mtu {mtu} type vxlan id {VNI} dev lan0 local {} dstport {VXLAN_PORT} \
             nolearning\nip link set {device} up\nip addr add {}/{length} dev {device}{flags}\n",
            node.vtep_mac(family),
            node.underlay(family),
            node.overlay(family)
        );
        for worker in workers() {
            let (overlay, mac) = (worker.overlay(family), worker.vtep_mac(family));
            let _ = write!(
                lines,
                "ip neigh add {overlay} lladdr {mac} dev {device} nud permanent\n\
                 ip route add {} via {overlay} dev {device} onlink\n\
                 bridge fdb append {mac} dev {device} dst {}\n",
                worker.pod_cidr(family),
                worker.underlay(family)
            );
        }
    }
    lines + "echo 1 > /proc/sys/net/ipv4/ip_forward\necho 1 > /proc/sys/net/ipv6/conf/all/forwarding\n"
}

/// Makes the gateway's rules those of kube-proxy with so many Services: the one that is measured, with all pods, and others
/// with one pod each.
fn program(count: u32) -> Result<()> {
    let other = |number: u32| {
        let v4 = std::net::Ipv4Addr::from(u32::from_be_bytes([10, 96, 0, 0]) + number);
        let v6 = std::net::Ipv6Addr::from(SERVICES_V6.to_bits() + u128::from(number));
        LabService { pods: vec![Pod { number: 1 }], ..LabService::new(&format!("s{number}"), Vip { v4, v6 }, &[ECHO]) }
    };
    let measured = LabService::new("echo", VIP_ECHO, &[ECHO]);
    let services: Vec<LabService> = std::iter::once(measured).chain((1..count).map(other)).collect();
    let rules: String = FAMILIES.map(|family| kube_proxy::rules(GATEWAY_NODE, family, &services)).concat();
    let mut nft = in_namespace(GATEWAY, "nft");
    nft.args(["-f", "-"]);
    process::run(nft, &rules, SETUP_LIMIT)?.success("nft")?;
    Ok(())
}

/// The generator between the client's end of `wan0` and the workers' end of `lan0`.
fn bench(options: &LadderOptions, family: Family, count_only: bool) -> Result<Bench> {
    let mut words = vec![
        "ladder".to_owned(),
        format!("--tx=eth0@{CLIENT}"),
        format!("--rx={GATEWAY}@{FABRIC}"),
        format!("--to-mac={GATEWAY_WAN_MAC}"),
        format!("--target={}", VIP_ECHO.at(family, ECHO_PORT)),
        format!("--expect={}", VIP_ECHO.of(family)),
        format!("--flows={}", options.flows),
        format!("--sizes={}", options.sizes),
        "--order=uniform".into(),
        "--mode=copy".into(),
    ];
    words
        .extend(workers().map(|worker| {
            format!("--expect-vxlan={}", std::net::SocketAddr::new(worker.underlay(family), VXLAN_PORT))
        }));
    if count_only {
        words.push("--count-only".into());
    }
    let line = Line::try_parse_from(words)?;
    Bench::open(&line.device, &line.traffic)
}

fn measure(
    name: &str,
    family: Family,
    pid: Option<u32>,
    options: &LadderOptions,
    seconds: Duration,
    before: &BTreeSet<u32>,
) -> Result<Rung> {
    let mut counting = bench(options, family, true)?;
    // Neighbours are found and flows begun before anything counts.
    let first = counting.trial(50_000, 0, Duration::from_millis(500), false)?;
    counting.trial(0, 0, Duration::from_millis(300), false)?;
    ensure!(first.received > 0, "nothing comes through: {first:?}");
    let receiving: Vec<u32> = receiving_threads().difference(before).copied().collect();
    let peak = peak(&mut counting, options, seconds)?;
    let steady = crate::pktgen::search::rounded(peak.received_per_s * STEADY);
    let (mut spent, mut spent_receiving) = (vec![], vec![]);
    for _ in 0..options.trials {
        let (own, theirs) = (own_ns(pid), threads_ns(&receiving));
        let outcome = counting.trial(steady, 0, seconds, false)?;
        let packets = outcome.received.max(1) as f64;
        let (own, theirs) = (own_ns(pid) - own, threads_ns(&receiving) - theirs);
        spent.push((own + theirs) as f64 / packets);
        spent_receiving.push(theirs as f64 / packets);
    }
    drop(counting);
    let median = |mut figures: Vec<f64>| {
        figures.sort_by(f64::total_cmp);
        figures.get(figures.len() / 2).copied().unwrap_or_default()
    };
    let half = crate::pktgen::search::rounded(peak.received_per_s / 2.0);
    let mut receiving_sink = bench(options, family, false)?;
    let latency = receiving_sink.trial(half, 0, seconds, false)?.latency;
    let quiet = seconds.max(QUIET_MIN);
    let rare = receiving_sink.trial(RARE_PER_S, 0, quiet, false)?.latency;
    drop(receiving_sink);
    let (began, idle) = (Instant::now(), own_ns(pid) + threads_ns(&receiving));
    std::thread::sleep(quiet);
    let idle = (own_ns(pid) + threads_ns(&receiving)).saturating_sub(idle);
    let idle_percent = idle as f64 / began.elapsed().as_nanos() as f64 * 100.0;
    let visible = !receiving.is_empty();
    Ok(Rung {
        name: name.into(),
        family: family.to_string(),
        mrr_per_s: peak.received_per_s,
        offered_per_s: peak.sent_per_s,
        cpu_ns_per_packet: visible.then(|| median(spent)),
        of_it_receiving_ns: visible.then(|| median(spent_receiving)),
        latency,
        idle_percent: visible.then_some(idle_percent),
        rare,
        rounds_mrr_per_s: vec![],
    })
}

/// The trial in which most came through, at whatever rate that was. More is offered step by step: where generator, forwarder
/// and kernel share few cores, a rate far above what passes takes from the forwarder the time it would forward in.
fn peak(bench: &mut Bench, options: &LadderOptions, seconds: Duration) -> Result<Outcome> {
    let (mut best, mut rate, mut worse) = (Outcome::default(), FIRST_RATE_PER_S, 0);
    while worse < options.trials && rate < LAST_RATE_PER_S {
        let outcome = bench.trial(rate, 0, seconds, false)?;
        let is_more = outcome.received_per_s > best.received_per_s;
        worse = if is_more { 0 } else { worse + 1 };
        if is_more {
            best = outcome;
        }
        rate += rate / 5;
    }
    Ok(best)
}

/// Processor time of all threads of a process in this lab, in nanoseconds.
fn own_ns(pid: Option<u32>) -> u64 {
    let Some(pid) = pid else { return 0 };
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.map(|task| first_number(&task.path().join("schedstat"))).sum()
}

/// Threads of the kernel that receive for a `wan0`, by their numbers outside of the lab.
fn receiving_threads() -> BTreeSet<u32> {
    let Some(outside) = enclosure::outside_processes() else { return BTreeSet::new() };
    let entries = std::fs::read_dir(outside).into_iter().flatten().flatten();
    let receives = |entry: &std::fs::DirEntry| {
        std::fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.starts_with("napi/wan0-"))
    };
    entries.filter(receives).filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn threads_ns(threads: &[u32]) -> u64 {
    let Some(outside) = enclosure::outside_processes() else { return 0 };
    threads.iter().map(|thread| first_number(&outside.join(thread.to_string()).join("schedstat"))).sum()
}

/// The first number in a file: of `schedstat`, nanoseconds on a processor.
fn first_number(path: &std::path::Path) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or_default()
}

impl Ladder {
    /// The rungs in columns, with what they are to each other.
    pub fn table(&self) -> String {
        let Surroundings { processor, cores, kernel, build, .. } = &self.surroundings;
        let mut text = format!("{processor}, {cores} cores, kernel {kernel}, {build} build\n{}\n\n", self.conditions);
        let _ = writeln!(
            text,
            "{:<31} {:<6} {:>9} {:>6} {:>7} {:>8} {:>8} {:>8} {:>8} {:>7} {:>8} {:>8}",
            "",
            "",
            "MRR /s",
            "of raw",
            "CPU ns",
            "of it rx",
            "p50 us",
            "p99 us",
            "p99.9 us",
            "idle %",
            "rare p50",
            "rare p99"
        );
        let number = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
        };
        for rung in &self.rungs {
            let raw = self.rungs.iter().find(|raw| raw.family == rung.family).map_or(0.0, |raw| raw.mrr_per_s);
            let mrr = rung.mrr_per_s;
            let Quantiles { p50_us, p99_us, p99_9_us, .. } = rung.latency;
            let _ = writeln!(
                text,
                "{:<31} {:<6} {mrr:>9.0} {:>6.2} {:>7} {:>8} {p50_us:>8.1} {p99_us:>8.1} {p99_9_us:>8.1} {:>7} {:>8.1} {:>8.1}",
                rung.name,
                rung.family,
                mrr / raw.max(1.0),
                number(rung.cpu_ns_per_packet, 0),
                number(rung.of_it_receiving_ns, 0),
                number(rung.idle_percent, 1),
                rung.rare.p50_us,
                rung.rare.p99_us,
            );
        }
        for (number, rung) in self.rungs.iter().filter(|rung| rung.rounds_mrr_per_s.len() > 1).enumerate() {
            let rates: Vec<String> = rung.rounds_mrr_per_s.iter().map(|rate| format!("{rate:.0}")).collect();
            let apart = if number == 0 { "\n" } else { "" };
            let _ = writeln!(text, "{apart}{}, {}, round by round: {} /s", rung.name, rung.family, rates.join(", "));
        }
        for UnderUpdates { family, rate_per_s, quiet, updated, updates, seconds } in &self.updates {
            let told = *updates as f64 / seconds.max(f64::MIN_POSITIVE);
            let _ = writeln!(
                text,
                "\nTidegate, {family}, {rate_per_s} packets per second: lost {} of {} ({:.1} of a million) under {told:.0} \
                 updates per second,\n{} of {} ({:.1} of a million) without",
                updated.lost,
                updated.sent,
                updated.lost_ppm(),
                quiet.lost,
                quiet.sent,
                quiet.lost_ppm()
            );
        }
        text
    }
}

/// Climbs and prints.
///
/// # Errors
/// As [`climb`].
pub fn run(options: &LadderOptions) -> Result<()> {
    if !enclosure::is_inside() {
        bail!("the ladder stands in a lab");
    }
    let ladder = climb(options)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&ladder)?);
    } else {
        print!("{}", ladder.table());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_family_the_round_with_the_median_rate_is_told() {
        let round = |rates: [f64; 2]| {
            let rung = |(family, mrr_per_s): (&str, f64)| Rung {
                name: RAW.into(),
                family: family.into(),
                mrr_per_s,
                offered_per_s: mrr_per_s + 1.0,
                cpu_ns_per_packet: None,
                of_it_receiving_ns: None,
                latency: Quantiles::default(),
                idle_percent: None,
                rare: Quantiles::default(),
                rounds_mrr_per_s: vec![],
            };
            ["IPv4", "IPv6"].into_iter().zip(rates).map(rung).collect::<Vec<_>>()
        };
        let told = medians(vec![round([3.0, 50.0]), round([1.0, 70.0]), round([2.0, 60.0])]);
        let figures: Vec<_> =
            told.iter().map(|rung| (rung.family.as_str(), rung.mrr_per_s, rung.offered_per_s)).collect();
        assert_eq!(figures, [("IPv4", 2.0, 3.0), ("IPv6", 60.0, 61.0)]);
        assert_eq!(told[1].rounds_mrr_per_s, [50.0, 70.0, 60.0], "in their order");
        assert!(medians(vec![]).is_empty());
    }
}
