//! The demo: brings a lab and a gateway up, runs the checks, prints the table, says PASS or FAIL.
//!
//! Owns the run; refuses to know any single check.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::check::{self, Check, Row};
use crate::enclosure;
use crate::gateway::{BIN_DIR, Gateway};
use crate::lab::{LabOptions, namespaces};
use crate::process;
use crate::rig::Rig;
use crate::topology::{VIP_ECHO, VIP_ONLINK, VIP_WEB};

/// Longest life of a demo that is not kept.
const DEMO_LIMIT: Duration = Duration::from_secs(900);
/// Lines of each log shown after a failure.
const LOG_LINES: usize = 25;

/// How a demo is run.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Keep everything up afterwards until Ctrl-C.
    pub keep: bool,
    /// Queues of the gateway's devices.
    pub lab: LabOptions,
}

/// Runs `checks` and returns whether all passed; `title` opens the last line.
///
/// # Errors
/// When the lab itself cannot be built.
pub fn run(title: &'static str, checks: &[&Check], options: &DemoOptions, stop: &AtomicBool) -> Result<bool> {
    end_by_itself(title, options);
    let mut rig = Rig::up(&options.lab)?;
    eprintln!("lab up in {} ms", rig.lab.took.as_millis());
    let mut rows: Vec<Row> = Vec::new();
    for check in checks {
        if stop.load(Ordering::Relaxed) {
            rows.push(Row::new("the run", "interrupted", "finished", false));
            break;
        }
        rows.extend(check.run(&mut rig));
    }
    let pods_run = rig.lab.pods_run();
    rows.push(Row::new("lab: pods", if pods_run { "all run" } else { "some ended" }, "all run", pods_run));
    let mut panics = rig.gateway.panics();
    panics.extend(rig.second.iter().flat_map(Gateway::panics));
    let told = panics.first().cloned().unwrap_or_else(|| "none".into());
    rows.push(Row::new("logs: panics of the gateway", told, "none", panics.is_empty()));
    let pass = rows.iter().all(|row| row.pass);
    println!("{}", check::table(&rows));
    if !pass {
        tell_failures(&rows, &rig);
    }
    println!("{title}: {}", if pass { "PASS" } else { "FAIL" });
    if options.keep && !stop.load(Ordering::Relaxed) {
        keep(stop);
    }
    Ok(pass)
}

fn tell_failures(rows: &[Row], rig: &Rig) {
    for row in
        rows.iter().filter(|row| !row.pass && (row.measured.contains('\n') || row.measured.len() > check::MEASURED_MAX))
    {
        println!("{}:\n{}\n", row.check, row.measured);
    }
    println!("{}", rig.gateway.log_tails(LOG_LINES));
    rig.second.iter().for_each(|second| println!("--- second gateway\n{}", second.log_tails(LOG_LINES)));
    match rig.gateway.drops() {
        Ok(rows) => rows.iter().for_each(|row| println!("drops {:>10} {} ({})", row.packets, row.reason, row.help)),
        Err(error) => println!("drops: {error:#}"),
    }
}

/// A watchdog: a demo that hangs has failed, and everything in it ends with this process.
fn end_by_itself(title: &'static str, options: &DemoOptions) {
    if options.keep {
        return;
    }
    std::thread::spawn(move || {
        std::thread::sleep(DEMO_LIMIT);
        println!("{title}: not finished after {} s\n{title}: FAIL", DEMO_LIMIT.as_secs());
        std::process::exit(1);
    });
}

/// Holds the lab until a signal, and says what can be tried meanwhile.
pub fn keep(stop: &AtomicBool) {
    println!("{}", commands_to_try());
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Commands for people who want to look around, ready to paste into another root shell.
pub fn commands_to_try() -> String {
    let outside = enclosure::outside_pid();
    let program = enclosure::this_program().unwrap_or_else(|_| "tidegate-lab".into());
    let beside = program.parent().map(PathBuf::from).unwrap_or_default();
    let bin_dir = std::env::var_os(BIN_DIR).map_or(beside, PathBuf::from).display().to_string();
    let program = program.display();
    let lab = "nsenter -t $LAB -m -n -p";
    let (v4, v6) = (VIP_WEB.v4, VIP_WEB.v6);
    format!(
        "The lab stays up until Ctrl-C. In another root shell:\n\n  \
         LAB=$(pgrep -P $(pgrep -P {outside}))\n  \
         {lab} {bin_dir}/tidegate show services\n  \
         {lab} {bin_dir}/tidegate show backends\n  \
         {lab} {bin_dir}/tidegate show flows\n  \
         {lab} ip netns exec client curl http://{v4}/who\n  \
         {lab} ip netns exec client curl 'http://[{v6}]/who'\n  \
         {lab} ip netns exec client curl http://{}/who\n  \
         {lab} ip netns exec client {program} client udp --target {}:53\n  \
         {lab} ip netns exec client tcpdump -ni eth0\n  \
         {lab} ip netns exec w1 bridge fdb show dev flannel.1\n  \
         {lab} ls {dir}/manifests {dir}\n\nNamespaces: {}\n",
        VIP_ONLINK.v4,
        VIP_ECHO.v4,
        namespaces(1).join(" "),
        dir = enclosure::STATE_DIR,
    )
}

/// Brings a lab up, with a gateway if asked, and keeps it.
///
/// # Errors
/// When the lab cannot be built or the gateway does not start.
pub fn up(options: &LabOptions, with_gateway: bool, stop: &AtomicBool) -> Result<()> {
    let began = Instant::now();
    let mut rig = Rig::up(options)?;
    for gateway in std::iter::once(&mut rig.gateway).chain(&mut rig.second).filter(|_| with_gateway) {
        if let Err(error) = gateway.start() {
            eprintln!("{}", process::tail(&gateway.log_tails(LOG_LINES), 2 * LOG_LINES));
            return Err(error);
        }
    }
    println!("lab: up in {} ms", began.elapsed().as_millis());
    keep(stop);
    Ok(())
}
