//! The guest: the lab with its gateway in a virtual machine, where AF_XDP is zero-copy.
//!
//! Owns one run of that lab. Refuses to know what a check looks at, and how fast anything is: the machine is emulated
//! instruction by instruction, so this proves that packets arrive whole and says nothing about rates.
//!
//! A veth cannot do zero-copy, a virtio-net device can: if the kernel is new enough, and if the device leaves memory to
//! the guest's own mapping (`iommu_platform`). The rest of the lab stays as it is, with real clients, the kernel's VXLAN
//! and real pods; only the namespace of the gateway becomes a pair of wires:
//!
//! ```text
//!            namespace gw
//!  client ── wan0 ─ bridge ─ tap, 2 queues ─┐ virtio-net ┌───────────────────────┐
//!                                           ├────────────┤ guest: wan0, lan0     │
//!  fabric ── lan0 ─ bridge ─ tap, 2 queues ─┘            │ dataplane and control │
//!                                                        └───────────────────────┘
//! ```
//!
//! The tap spreads flows over the queues, and where the device has RSS, the device does, as a NIC. The guest runs the same two programs with the lab's own node
//! file, manifests and addresses; one word of the node file differs, `mode: zero-copy`, with which the dataplane does
//! not start unless every queue has it. A second machine has one device that cannot, and `mode: auto`.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::check::{self, Found, Row};
use crate::lab::LabOptions;
use crate::process::{self, in_namespace};
use crate::rig::Rig;
use crate::topology::{CLIENT, FABRIC, GATEWAY, GATEWAY_LAN_MAC, GATEWAY_WAN_MAC, pods};

/// The files a guest starts from.
mod image;
/// The virtual machine, and a shell in it.
mod machine;
/// The gateway's programs in the machine.
mod gateway;
/// Frames of a capture, checked and compared.
mod wire;
/// What is asked of it.
mod trial;
/// What is asked where the device spreads flows by RSS.
mod rss;

use gateway::GuestGateway;
use image::Kernel;
use machine::Machine;
use trial::Trial;

/// Longest life of a run: downloads are over before it begins.
const RUN_LIMIT: Duration = Duration::from_secs(420);
/// Lines of each log shown after a failure.
const LOG_LINES: usize = 30;
/// Taps in namespace `gw`: towards the clients, towards the workers.
const TAPS: [&str; 2] = ["tap-wan", "tap-lan"];
/// Queues of each device.
const QUEUES: u32 = 2;

/// What to run.
#[derive(Debug, Clone, Args)]
pub struct GuestOptions {
    /// Directory with `vmlinuz`, `modules` and `version`, as perf/zero-copy/fetch-kernel leaves it.
    #[arg(long)]
    pub kernel: PathBuf,
    /// Workers of the dataplane, each with a queue of each device.
    #[arg(long, default_value_t = QUEUES, value_parser = clap::value_parser!(u32).range(1..=i64::from(QUEUES)))]
    pub workers: u32,
}

/// Everything a trial may touch.
struct Stage<'a> {
    rig: &'a Rig,
    gateway: GuestGateway,
    scene: &'static Scene,
    workers: u32,
}

/// One machine and what is tried with it.
struct Scene {
    /// Prefix of its lines in the table.
    name: &'static str,
    /// Whether each device, `wan0` and `lan0`, lets the guest map its memory, without which it has no zero-copy.
    mapped: [bool; 2],
    /// Whether the devices spread what they receive by RSS.
    rss: bool,
    trials: &'static [Trial],
}

/// Both devices can do it; then only one of them, so that frames cross between two memories; then both, with RSS.
const SCENES: [Scene; 3] = [
    Scene { name: "both", mapped: [true, true], rss: false, trials: trial::BOTH },
    Scene { name: "mixed", mapped: [false, true], rss: false, trials: trial::MIXED },
    Scene { name: "rss", mapped: [true, true], rss: true, trials: rss::RSS },
];

/// Runs all trials and returns whether all passed; the last line says PASS or FAIL.
///
/// # Errors
/// When the lab cannot be built or a machine does not start.
pub fn run(options: &GuestOptions, stop: &AtomicBool) -> Result<bool> {
    end_by_itself();
    let began = Instant::now();
    let rows = play_all(options, began, stop);
    let pass = rows.as_ref().is_ok_and(|rows| rows.iter().all(|row| row.pass));
    let told = rows.map(|rows| println!("{}", check::table(&rows)));
    println!("zero-copy: {} ({:.0} s)", verdict(pass), began.elapsed().as_secs_f32());
    told.map(|()| pass)
}

fn play_all(options: &GuestOptions, began: Instant, stop: &AtomicBool) -> Result<Vec<Row>> {
    let kernel = Kernel::find(&options.kernel)?;
    let rig = Rig::up(&LabOptions { queues: options.workers, gateways: 1 })?;
    make_wires()?;
    forget_old_connections()?;
    let image = image::build(&kernel, &rig)?;
    eprintln!("{:>8.1} s  lab up, image of {} MB", began.elapsed().as_secs_f32(), image.bytes / 1_000_000);
    let mut rows = Vec::new();
    // One worker owns everything, wherever it arrives.
    for scene in SCENES.iter().filter(|scene| !scene.rss || options.workers > 1) {
        let machine = Machine::start(&kernel, &image, scene, &rig.lab.state_dir)?;
        eprintln!("{:>8.1} s  {}: Linux {} up", began.elapsed().as_secs_f32(), scene.name, kernel.version);
        let mut stage = Stage { rig: &rig, gateway: GuestGateway::new(machine), scene, workers: options.workers };
        let found = play(&mut stage, began, stop);
        if found.iter().any(|row| !row.pass) {
            tell_failures(&found, &mut stage);
        }
        rows.extend(found);
    }
    Ok(rows)
}

/// Runs the trials of one scene.
fn play(stage: &mut Stage<'_>, began: Instant, stop: &AtomicBool) -> Vec<Row> {
    let mut rows = Vec::new();
    for trial in stage.scene.trials {
        if stop.load(Ordering::Relaxed) {
            rows.push(Row::new("the run", "interrupted", "finished", false));
            break;
        }
        let name = format!("{}, {}", stage.scene.name, trial.name);
        let found = (trial.run)(stage);
        let pass = add(&mut rows, &name, found);
        eprintln!("{:>8.1} s  {}  {name}: {}", began.elapsed().as_secs_f32(), verdict(pass), trial.about);
        if !pass {
            println!("{}", stage.gateway.state());
        }
        if !pass && trial.needed {
            break;
        }
    }
    rows
}

fn verdict(pass: bool) -> &'static str {
    if pass { "PASS" } else { "FAIL" }
}

/// Adds what a trial found; what cannot be looked at has failed.
fn add(rows: &mut Vec<Row>, name: &str, found: Found) -> bool {
    let found = found.unwrap_or_else(|error| vec![Row::new("ran", format!("{error:#}"), "can be checked", false)]);
    let pass = !found.is_empty() && found.iter().all(|row| row.pass);
    rows.extend(found.into_iter().map(|row| Row { check: format!("{name}: {}", row.check), ..row }));
    pass
}

fn tell_failures(rows: &[Row], stage: &mut Stage<'_>) {
    for row in rows.iter().filter(|row| !row.pass) {
        println!("{}:\n{}\n", row.check, row.measured);
    }
    println!("{}", stage.gateway.log_tails(LOG_LINES));
    println!("--- console of the guest\n{}", stage.gateway.machine.console_tail(LOG_LINES));
    for namespace in [GATEWAY, FABRIC, CLIENT, "w1"] {
        let mut shell = in_namespace(namespace, "sh");
        shell.args(["-c", "ip -s link; ip neigh; bridge fdb"]);
        let told = process::run(shell, "", Duration::from_secs(20));
        println!("--- namespace {namespace}\n{}", told.map_or_else(|error| format!("{error:#}"), |told| told.stdout));
    }
}

/// A watchdog: a run that hangs has failed, and everything in it ends with this process.
fn end_by_itself() {
    std::thread::spawn(|| {
        std::thread::sleep(RUN_LIMIT);
        println!("zero-copy: not finished after {} s\nzero-copy: FAIL", RUN_LIMIT.as_secs());
        std::process::exit(1);
    });
}

/// Makes namespace `gw` a pair of wires: its devices lose their addresses, each is bridged with a tap.
///
/// The devices' link-layer addresses become the guest's; a bridge would keep frames for addresses of its own ports.
fn make_wires() -> Result<()> {
    if !std::path::Path::new("/dev/net/tun").exists() {
        bail!("there is no /dev/net/tun, through which a virtual machine reaches the lab");
    }
    let mut script = String::new();
    for (device, tap, last) in [("wan0", TAPS[0], 1), ("lan0", TAPS[1], 2)] {
        script += &format!(
            "ip address flush dev {device}\nip link set {device} address 02:00:00:00:ff:0{last}\n\
             ip link add br-{device} type bridge stp_state 0 mcast_snooping 0\n\
             ip tuntap add dev {tap} mode tap multi_queue\n\
             for port in {device} {tap}; do ip link set $port master br-{device} up; done\n\
             echo 1 > /proc/sys/net/ipv6/conf/br-{device}/disable_ipv6\n\
             echo 1 > /proc/sys/net/ipv6/conf/{device}/disable_ipv6\n\
             echo 1 > /proc/sys/net/ipv6/conf/{tap}/disable_ipv6\n\
             ip link set br-{device} up\n"
        );
    }
    let mut shell = in_namespace(GATEWAY, "sh");
    shell.args(["-e", "-s"]);
    process::run(shell, &script, Duration::from_secs(20))?.success("making wires of namespace gw").context("taps")?;
    Ok(())
}

/// Lets pods forget a connection as soon as it has ended. A gateway that starts anew knows nothing of the translated
/// ports that pods still remember; one that meets such a memory is answered strangely, and right, which is no concern here.
fn forget_old_connections() -> Result<()> {
    for pod in pods() {
        let mut shell = in_namespace(&pod.name(), "sh");
        shell.args(["-c", "echo 0 > /proc/sys/net/ipv4/tcp_max_tw_buckets"]);
        process::run(shell, "", Duration::from_secs(20))?.success("forgetting in a pod")?;
    }
    Ok(())
}

/// Tap and link-layer address of each device of the guest, in the order of its devices.
fn devices() -> [(&'static str, &'static str); 2] {
    [(TAPS[0], GATEWAY_WAN_MAC), (TAPS[1], GATEWAY_LAN_MAC)]
}
