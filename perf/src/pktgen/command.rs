//! The command: devices opened, trials run, a report made.
//!
//! Owns what each subcommand does; what may be asked is in [`options`](crate::pktgen::options).

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand, ValueEnum};
use tidegate_io::afxdp::AfXdpPort;
use tidegate_io::fault::Faults;

use crate::pktgen::device::{Manner, Place, Station, Wanted};
use crate::pktgen::flows::Order;
use crate::pktgen::forward;
use crate::pktgen::memory::Wire;
use crate::pktgen::mould::{Mould, Protocol, Traffic};
use crate::pktgen::options::{
    DeviceOptions, ModeOption, RateOptions, SearchOptions, StatefulOptions, StatefulWhat, TrafficOptions, host,
    seconds, wanted_back,
};
use crate::pktgen::plot;
use crate::pktgen::report::{self, Report, Side};
use crate::pktgen::search;
use crate::pktgen::stateful::{self, Sides};
use crate::pktgen::trial::{self, Lane, Outcome, Plan};

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// One trial: send at a rate for a time, tell what arrived
    Run {
        /// By which devices
        #[command(flatten)]
        device: DeviceOptions,
        /// What is sent
        #[command(flatten)]
        traffic: TrafficOptions,
        /// How fast and how long
        #[command(flatten)]
        rate: RateOptions,
        /// Draw what became of the packets into this file, as SVG
        #[arg(long, value_name = "FILE")]
        plot: Option<PathBuf>,
    },
    /// Search for a rate, or measure latency at half of the maximum receive rate
    Search {
        /// What to search for
        #[arg(value_enum)]
        what: SearchWhat,
        /// By which devices
        #[command(flatten)]
        device: DeviceOptions,
        /// What is sent
        #[command(flatten)]
        traffic: TrafficOptions,
        /// How to search
        #[command(flatten)]
        search: SearchOptions,
        /// Draw the trials, or the latency, into this file, as SVG
        #[arg(long, value_name = "FILE")]
        plot: Option<PathBuf>,
    },
    /// Try what keeps connections, in two phases (RFC 9693): how many begin in a second, how many are held
    Rfc9693 {
        /// What to try
        #[command(flatten)]
        stateful: StatefulOptions,
        /// By which devices
        #[command(flatten)]
        device: DeviceOptions,
        /// What is sent
        #[command(flatten)]
        traffic: TrafficOptions,
    },
    /// TCP connections by handshake: SYN, the sink's SYN-ACK, ACK
    Handshakes {
        /// By which devices
        #[command(flatten)]
        device: DeviceOptions,
        /// What is sent
        #[command(flatten)]
        traffic: TrafficOptions,
        /// How fast and how long
        #[command(flatten)]
        rate: RateOptions,
        /// End each connection with a reset
        #[arg(long)]
        reset: bool,
    },
    /// Generator and sink in this process, without a device: how much the generator itself can do
    Memory {
        /// What is sent
        #[command(flatten)]
        traffic: TrafficOptions,
        /// How fast and how long
        #[command(flatten)]
        rate: RateOptions,
    },
    /// Forward between two devices, link-layer addresses exchanged: the ceiling of this I/O. Until a signal
    Forward(ForwardOptions),
    /// Answer TCP handshakes at a device. Until a signal
    Answer {
        /// The device
        #[arg(long, value_name = "DEVICE")]
        rx: Place,
        /// What is taken
        #[command(flatten)]
        wanted: WantedOptions,
    },
}

/// What is searched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SearchWhat {
    /// Maximum receive rate: loss ignored
    Mrr,
    /// No drop rate
    Ndr,
    /// Partial drop rate: 0.5 % may be lost
    Pdr,
    /// Latency at half of the maximum receive rate
    Latency,
}

/// What is taken from devices.
#[derive(Debug, Clone, Args)]
pub struct WantedOptions {
    /// Addresses to take, both ways; again for more
    #[arg(long, required = true, value_name = "ADDRESS")]
    pub address: Vec<std::net::IpAddr>,
    /// AF_XDP mode
    #[arg(long, value_enum, default_value = "auto")]
    pub mode: ModeOption,
    /// Take the device although it holds the default route
    #[arg(long)]
    pub i_know_it_is_the_default_route: bool,
}

/// Between which devices.
#[derive(Debug, Clone, Args)]
pub struct ForwardOptions {
    /// One device
    #[arg(long, value_name = "DEVICE")]
    pub near: Place,
    /// The other one
    #[arg(long, value_name = "DEVICE")]
    pub far: Place,
    /// What is taken
    #[command(flatten)]
    wanted: WantedOptions,
}

impl WantedOptions {
    fn open(&self, place: &Place) -> Result<Station> {
        let wanted = Wanted { prefixes: self.address.iter().copied().map(host).collect(), endpoints: Vec::new() };
        let mode = match self.mode {
            ModeOption::Auto => tidegate_io::afxdp::ModeChoice::Auto,
            ModeOption::ZeroCopy => tidegate_io::afxdp::ModeChoice::ZeroCopy,
            ModeOption::Copy => tidegate_io::afxdp::ModeChoice::Copy,
            ModeOption::Skb => tidegate_io::afxdp::ModeChoice::Skb,
        };
        let overrule_default_route = self.i_know_it_is_the_default_route;
        // What is passed on or answered is one frame.
        let manner = Manner { mode, size_bytes_max: 0, several_frames: false, overrule_default_route };
        Station::open(place, &wanted, &manner)
    }
}

/// What a command tells: a report, or a line of JSON.
#[derive(Debug)]
pub enum Told {
    /// A report.
    Report(Box<Report>),
    /// A JSON value.
    Line(serde_json::Value),
}

/// Devices, lanes over them, and what goes over those.
pub struct Bench {
    // Lanes before stations: frames go home before the memory goes.
    lanes: Vec<Lane<AfXdpPort>>,
    stations: Vec<Station>,
    /// What is sent.
    pub traffic: Traffic,
    count_only: bool,
    trial: u16,
}

impl Bench {
    /// Opens both sides.
    ///
    /// # Errors
    /// When something is refused.
    pub fn open(device: &DeviceOptions, traffic: &TrafficOptions) -> Result<Bench> {
        // Nothing is opened for what would be refused anyway.
        let checked = traffic.traffic([2, 0, 0, 0, 0, 0])?;
        let least = Mould::new(&checked).map(|_| checked.size_bytes_min())?;
        let manner = device.manner(checked.sizes.largest().max(least));
        // What is expected to be something else than was sent has another size, too.
        let is_changed = !(device.expect.is_empty() && device.expect_vxlan.is_empty());
        let size_bytes_max = if is_changed { 0 } else { manner.size_bytes_max };
        let manner_rx = Manner { size_bytes_max, ..manner.clone() };
        let wanted = device.wanted(&checked)?;
        let rx = device.rx.as_ref().filter(|rx| **rx != device.tx);
        ensure!(rx.is_some() || !device.count_only, "--count-only needs a receiving device of its own (--rx)");
        ensure!(
            rx.is_none_or(|rx| rx.queues.len() == device.tx.queues.len()),
            "a queue that sends goes with one that receives: name as many of --rx as of --tx"
        );
        let back = if rx.is_some() { wanted_back(&checked) } else { wanted.clone() };
        let mut stations = vec![Station::open(&device.tx, &back, &manner)?];
        stations.extend(rx.map(|rx| Station::open(rx, &wanted, &manner_rx)).transpose()?);
        let traffic = traffic.traffic(stations[0].mac())?;
        let mut sinks = Vec::new();
        if let Some(station) = stations.get_mut(1) {
            if device.count_only { station.count_only() } else { sinks = station.take_ports()? }
        }
        let ports = stations[0].take_ports()?;
        let mut sinks = sinks.into_iter();
        let lane = |(port, magazine)| Lane { port, magazine, sink: sinks.next() };
        let lanes = ports.into_iter().map(lane).collect();
        Ok(Bench { lanes, stations, traffic, count_only: device.count_only, trial: 0 })
    }

    /// One trial.
    ///
    /// # Errors
    /// When it cannot be run to its end.
    pub fn trial(&mut self, rate: u64, packets: u64, duration: std::time::Duration, verify: bool) -> Result<Outcome> {
        self.trial = self.trial.wrapping_add(1);
        let mould = Mould::new(&self.traffic)?;
        let plan = Plan { mould, rate_per_s: rate, packets, duration, trial: self.trial, verify };
        let counted = |bench: &Bench| bench.stations.last().map_or(Ok(0), Station::counted);
        let before = counted(self)?;
        let outcome = trial::run(&mut self.lanes, &plan)?;
        if !self.count_only {
            return Ok(outcome);
        }
        let received = counted(self)? - before;
        Ok(outcome.with_received(received))
    }

    /// Searches for a rate.
    ///
    /// # Errors
    /// When a trial fails.
    pub fn search(&mut self, what: SearchWhat, options: &SearchOptions) -> Result<report::Result> {
        let manner = options.manner()?;
        let latency = what == SearchWhat::Latency;
        ensure!(!(latency && self.count_only), "latency is measured by a sink that receives: without --count-only");
        let trial = |rate, time| self.trial(rate, 0, time, false);
        Ok(match what {
            SearchWhat::Mrr => report::Result::Search(search::mrr(&manner, trial)?),
            SearchWhat::Ndr => report::Result::Search(search::highest_rate("ndr", 0.0, &manner, trial)?),
            SearchWhat::Pdr => report::Result::Search(search::highest_rate("pdr", options.loss, &manner, trial)?),
            SearchWhat::Latency => {
                let mrr_per_s = search::mrr(&manner, trial)?.rate_per_s;
                let outcome = self.trial(search::rounded(mrr_per_s / 2.0), 0, manner.trial, false)?;
                report::Result::Latency { mrr_per_s, part: 0.5, outcome }
            }
        })
    }

    /// A report of a run on these devices.
    pub fn report(&self, result: report::Result) -> Report {
        let side = |station: Option<&Station>, lanes: usize| {
            station.map_or_else(Side::default, |station| Side { queues: lanes, ..Side::of(station) })
        };
        let (tx, rx) = (self.stations.first(), self.stations.last());
        Report::new(side(tx, self.lanes.len()), side(rx, self.lanes.len()), &self.traffic, result)
    }

    fn lane(&mut self) -> Result<&mut Lane<AfXdpPort>> {
        ensure!(self.lanes.len() == 1, "connections are begun on one queue: name one of --tx and one of --rx");
        self.lanes.first_mut().context("no queue")
    }

    fn stateful(&mut self, options: &StatefulOptions) -> Result<stateful::Found> {
        let mut traffic = Traffic { order: Order::Sequential, ..self.traffic.clone() };
        let (mut number, mut next) = (0_u16, traffic.first_flow);
        let lane = self.lane()?;
        let mut sides = Sides::new(lane)?;
        let mut trial = |connections: u32, rate: u64| {
            run_before(options.before_each.as_deref())?;
            // Connections that were never seen, so that none of them is known from before.
            (traffic.flows, traffic.first_flow) = (connections, next);
            next = next.wrapping_add(connections);
            number = number.wrapping_add(1);
            sides.trial(&Mould::new(&traffic)?, number, rate, &mut || ())
        };
        let found = match options.what {
            StatefulWhat::Rate => stateful::establishment_rate(options.rate_max, options.precision, |rate| {
                trial(options.connections, rate)
            }),
            StatefulWhat::Capacity => {
                let (first, most) = (options.connections, options.connections_max);
                stateful::capacity(first, most, options.precision, |connections| trial(connections, options.rate_max))
            }
        }?;
        // The report tells of what was sent: the last trial's.
        self.traffic = traffic;
        Ok(found)
    }
}

/// Runs what has the device forget its connections.
fn run_before(command: Option<&str>) -> Result<()> {
    let Some(command) = command else { return Ok(()) };
    let status = std::process::Command::new("sh").args(["-c", command]).stdout(std::io::stderr()).status()?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}

/// Fails if a picture could not be written, before anything is measured. What is in the file stays for now.
fn can_be_written(file: Option<&Path>) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    let opened = std::fs::File::options().create(true).append(true).open(file);
    opened.map(drop).with_context(|| format!("writing {}", file.display()))
}

/// A report, of which a picture goes into `file`.
fn drawn(report: Report, file: Option<&Path>) -> Result<Told> {
    if let Some(file) = file {
        std::fs::write(file, plot::picture(&report)?).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(Told::Report(Box::new(report)))
}

/// Does what was asked for.
///
/// # Errors
/// What stood in the way.
pub fn perform(command: &Command, stop: &AtomicBool) -> Result<Told> {
    let report = |bench: &Bench, result| Ok(Told::Report(Box::new(bench.report(result))));
    match command {
        Command::Run { device, traffic, rate, plot } => {
            can_be_written(plot.as_deref())?;
            let mut bench = Bench::open(device, traffic)?;
            let outcome = bench.trial(rate.rate, rate.packets, seconds(rate.seconds)?, rate.verify)?;
            drawn(bench.report(report::Result::Trial(outcome)), plot.as_deref())
        }
        Command::Search { what, device, traffic, search, plot } => {
            can_be_written(plot.as_deref())?;
            let mut bench = Bench::open(device, traffic)?;
            let result = bench.search(*what, search)?;
            drawn(bench.report(result), plot.as_deref())
        }
        Command::Rfc9693 { stateful, device, traffic } => {
            let mut bench = Bench::open(device, traffic)?;
            let found = bench.stateful(stateful)?;
            report(&bench, report::Result::Stateful(found))
        }
        Command::Handshakes { device, traffic, rate, reset } => {
            let mut bench = Bench::open(device, traffic)?;
            (bench.traffic.protocol, bench.traffic.stamped) = (Protocol::TcpSyn, false);
            let mould = Mould::new(&bench.traffic)?;
            let limit = seconds(rate.seconds)?;
            let told = stateful::handshakes(bench.lane()?, &mould, rate.rate, limit, *reset, &mut || ())?;
            report(&bench, report::Result::Handshakes(told))
        }
        Command::Memory { traffic, rate } => {
            let traffic = traffic.traffic([2, 0, 0, 0, 0, 1])?;
            let mould = Mould::new(&traffic)?;
            let plan = Plan {
                mould,
                rate_per_s: rate.rate,
                packets: rate.packets,
                duration: seconds(rate.seconds)?,
                trial: 1,
                verify: rate.verify,
            };
            let outcome = Wire::for_size(plan.mould.size_bytes_max(), Faults::default(), traffic.seed)?.run(&plan)?;
            let side = Side { driver: "none".into(), mode: "memory".into(), queues: 1 };
            Ok(Told::Report(Box::new(Report::new(side.clone(), side, &traffic, report::Result::Trial(outcome)))))
        }
        Command::Forward(options) => {
            let mut near = options.wanted.open(&options.near)?;
            let mut far = options.wanted.open(&options.far)?;
            let first = |station: &mut Station| station.take_ports()?.into_iter().next().context("no queue");
            let mut ports = [first(&mut near)?, first(&mut far)?];
            eprintln!("forwarding");
            Ok(Told::Line(serde_json::to_value(forward::forward(&mut ports, stop)?)?))
        }
        Command::Answer { rx, wanted } => {
            let mut station = wanted.open(rx)?;
            let (mut port, mut magazine) = station.take_ports()?.into_iter().next().context("no queue")?;
            eprintln!("answering");
            Ok(Told::Line(serde_json::to_value(forward::answer(&mut port, &mut magazine, stop)?)?))
        }
    }
}
