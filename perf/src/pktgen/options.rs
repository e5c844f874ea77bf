//! What may be asked of `tidegate-pktgen`, and what is made of it.
//!
//! Owns arguments, their defaults and their limits. What is refused here costs nothing yet: no device is open.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use tidegate_io::afxdp::ModeChoice;

use crate::generator::mac;
use crate::pktgen::device::{Manner, Place, Wanted, is_harmless};
use crate::pktgen::flows::Order;
use crate::pktgen::mould::{Protocol, Traffic, Tunnel};
use crate::pktgen::search;
use crate::pktgen::size::Sizes;
use crate::topology::{FLOOD_NET_V4, FLOOD_NET_V6};

/// What is sent.
#[derive(Debug, Clone, Args)]
pub struct TrafficOptions {
    /// Address and port that packets go to
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub target: SocketAddr,
    /// So many addresses from the target's on are targets
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub targets: u32,
    /// Link-layer address of the next hop
    #[arg(long, value_name = "MAC")]
    pub to_mac: String,
    /// Link-layer source [default: that of the device]
    #[arg(long, value_name = "MAC")]
    pub from_mac: Option<String>,
    /// Sources come from the addresses after this one [default: the benchmark network of the target's family]
    #[arg(long, value_name = "ADDRESS")]
    pub sources: Option<IpAddr>,
    /// What packets carry
    #[arg(long, value_enum, default_value = "udp")]
    pub protocol: Protocol,
    /// Size of frames with their check sequence, 64 to 9000, or a mixture: imix, SIZE:WEIGHT,… or a genome of RFC 6985
    #[arg(long, default_value = "64", value_name = "SIZES")]
    pub sizes: Sizes,
    /// Distinct flows
    #[arg(long, default_value_t = 1000, value_name = "N")]
    pub flows: u32,
    /// Number of the first flow: another one makes other flows
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub first_flow: u32,
    /// In which order flows come: sequential, uniform, zipf or zipf:EXPONENT
    #[arg(long, default_value = "sequential", value_name = "ORDER")]
    pub order: Order,
    /// What chance begins with
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Put packets into VXLAN to this endpoint
    #[arg(long, value_name = "ADDRESS", requires_all = ["vxlan_from", "inner_mac"])]
    pub vxlan_to: Option<IpAddr>,
    /// The endpoint that packets in VXLAN come from
    #[arg(long, value_name = "ADDRESS", requires = "vxlan_to")]
    pub vxlan_from: Option<IpAddr>,
    /// VXLAN network identifier
    #[arg(long, default_value_t = 1, value_name = "VNI")]
    pub vni: u32,
    /// UDP port of VXLAN
    #[arg(long, default_value_t = 8472, value_name = "PORT")]
    pub vxlan_port: u16,
    /// Link-layer destination inside VXLAN
    #[arg(long, value_name = "MAC")]
    pub inner_mac: Option<String>,
    /// Packets may go to addresses that are neither for benchmarks or documentation nor private
    #[arg(long)]
    pub any_address: bool,
}

impl TrafficOptions {
    /// The traffic, from a device with this link-layer address.
    ///
    /// # Errors
    /// When it contradicts itself, or might harm somebody.
    pub fn traffic(&self, device_mac: [u8; 6]) -> Result<Traffic> {
        let last = u32::from(u16::MAX);
        ensure!((1..=last).contains(&self.targets), "targets are 1 to {last}, not {}", self.targets);
        let default = if self.target.is_ipv4() { FLOOD_NET_V4.into() } else { FLOOD_NET_V6.into() };
        let source_mac = self.from_mac.as_deref().map_or(Ok(device_mac), mac)?;
        let tunnel = match (self.vxlan_to, self.vxlan_from, &self.inner_mac) {
            (Some(remote), Some(local), Some(inner)) => Some(Tunnel {
                local,
                remote,
                port: self.vxlan_port,
                vni: self.vni,
                inner_source: source_mac,
                inner_destination: mac(inner)?,
            }),
            (None, ..) => None,
            _ => bail!("VXLAN needs --vxlan-to, --vxlan-from and --inner-mac"),
        };
        let traffic = Traffic {
            source_mac,
            destination_mac: mac(&self.to_mac)?,
            sources: self.sources.unwrap_or(default),
            target: self.target,
            targets: self.targets,
            protocol: self.protocol,
            sizes: self.sizes.clone(),
            flows: self.flows,
            first_flow: self.first_flow,
            order: self.order,
            tunnel,
            seed: self.seed,
            stamped: true,
        };
        let leaves_to = traffic.tunnel.as_ref().map(|tunnel| tunnel.remote);
        let ends = [traffic.target(0).ip(), traffic.target(self.targets - 1).ip()].into_iter().chain(leaves_to);
        if let Some(address) = ends.into_iter().find(|address| !self.any_address && !is_harmless(*address)) {
            bail!(
                "{address} may be somebody's: send to networks for benchmarks (198.18.0.0/15, 2001:2::/48), for documentation, \
                 or private ones; or say --any-address where packets cannot leave the laboratory"
            );
        }
        Ok(traffic)
    }
}

/// AF_XDP modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ModeOption {
    /// The best the device can do
    Auto,
    /// Zero-copy, or an error
    ZeroCopy,
    /// The kernel copies, native program
    Copy,
    /// The kernel copies, generic program
    Skb,
}

/// By which devices.
#[derive(Debug, Clone, Args)]
pub struct DeviceOptions {
    /// Device that sends: DEVICE, DEVICE:QUEUE,QUEUE, and @NAMESPACE where it is in another network namespace
    #[arg(long, value_name = "DEVICE")]
    pub tx: Place,
    /// Device that receives [default: the one that sends]
    #[arg(long, value_name = "DEVICE")]
    pub rx: Option<Place>,
    /// Prefix of destinations that arrive at the receiving device and are the generator's; again for more
    /// [default: the targets]
    #[arg(long, value_name = "PREFIX")]
    pub expect: Vec<String>,
    /// Tunnel endpoint at which the generator's packets arrive, as ADDRESS:PORT; again for more
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub expect_vxlan: Vec<SocketAddr>,
    /// AF_XDP mode
    #[arg(long, value_enum, default_value = "auto")]
    pub mode: ModeOption,
    /// Do not receive: count in the receiving device's program, and drop there. No latency, duplicates or reordering
    #[arg(long)]
    pub count_only: bool,
    /// Take the device although it holds the default route
    #[arg(long)]
    pub i_know_it_is_the_default_route: bool,
}

impl DeviceOptions {
    /// How devices are opened for frames of at most this size on the wire.
    pub fn manner(&self, size_bytes_max: u16) -> Manner {
        let mode = match self.mode {
            ModeOption::Auto => ModeChoice::Auto,
            ModeOption::ZeroCopy => ModeChoice::ZeroCopy,
            ModeOption::Copy => ModeChoice::Copy,
            ModeOption::Skb => ModeChoice::Skb,
        };
        let overrule_default_route = self.i_know_it_is_the_default_route;
        Manner { mode, size_bytes_max, several_frames: true, overrule_default_route }
    }

    /// What arrives of this traffic.
    ///
    /// # Errors
    /// When a prefix is none.
    pub fn wanted(&self, traffic: &Traffic) -> Result<Wanted> {
        let mut wanted = Wanted::default();
        for text in &self.expect {
            wanted.prefixes.push(prefix(text)?);
        }
        wanted.endpoints.extend(self.expect_vxlan.iter().map(|end| (end.ip(), end.port())));
        if wanted == Wanted::default() {
            match &traffic.tunnel {
                Some(tunnel) => wanted.endpoints.push((tunnel.remote, tunnel.port)),
                None => wanted.prefixes.extend((0..traffic.targets).map(|target| host(traffic.target(target).ip()))),
            }
        }
        Ok(wanted)
    }
}

/// What comes back to the sources of this traffic.
pub fn wanted_back(traffic: &Traffic) -> Wanted {
    if let Some(tunnel) = &traffic.tunnel {
        return Wanted { prefixes: Vec::new(), endpoints: vec![(tunnel.local, tunnel.port)] };
    }
    let length = if traffic.sources.is_ipv4() { 15 } else { 64 };
    Wanted { prefixes: vec![(traffic.sources, length)], endpoints: Vec::new() }
}

/// The prefix that holds one address.
pub fn host(address: IpAddr) -> (IpAddr, u8) {
    (address, if address.is_ipv4() { 32 } else { 128 })
}

fn prefix(text: &str) -> Result<(IpAddr, u8)> {
    let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
    let address: IpAddr = address.parse().with_context(|| format!("{text:?} is no prefix"))?;
    let (_, most) = host(address);
    let length = length.map_or(Ok(most), str::parse).with_context(|| format!("{text:?} is no prefix"))?;
    // A device that has everything taken from it cannot be reached any more.
    ensure!((8..=most).contains(&length), "{text}: a prefix here has 8 to {most} bits");
    Ok((address, length))
}

/// How long, how fast, how many.
#[derive(Debug, Clone, Args)]
pub struct RateOptions {
    /// Packets per second on all queues; 0: as fast as they go
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub rate: u64,
    /// Packets to send; 0: until the time is over
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub packets: u64,
    /// Longest time of sending, in seconds
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS")]
    pub seconds: f64,
    /// Look at every checksum that arrives
    #[arg(long)]
    pub verify: bool,
}

/// How to search.
#[derive(Debug, Clone, Args)]
pub struct SearchOptions {
    /// Length of each trial, in seconds
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS")]
    pub trial_seconds: f64,
    /// Trials of an MRR
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub trials: u32,
    /// End of a search: the part of the rate by which the highest good and the lowest bad one may differ
    #[arg(long, default_value_t = 0.01, value_name = "PART")]
    pub precision: f64,
    /// How often a trial with loss is repeated before it counts
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub repeats: u32,
    /// Highest rate to try; 0: what the generator can do
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub rate_max: u64,
    /// Loss ratio that a PDR allows
    #[arg(long, default_value_t = search::PARTIAL_LOSS, value_name = "PART")]
    pub loss: f64,
}

impl SearchOptions {
    /// The same for the search itself.
    ///
    /// # Errors
    /// When a number is out of range.
    pub fn manner(&self) -> Result<search::Manner> {
        ensure!((0.0..1.0).contains(&self.loss), "a loss ratio is below 1, not {}", self.loss);
        Ok(search::Manner {
            trial: seconds(self.trial_seconds)?,
            trials: self.trials,
            precision: self.precision,
            repeats: self.repeats.min(10),
            rate_max_per_s: self.rate_max,
        })
    }
}

/// A time from a number of seconds.
///
/// # Errors
/// When it is not between a millisecond and a day.
pub fn seconds(number: f64) -> Result<Duration> {
    ensure!((0.001..=86_400.0).contains(&number), "a time is 0.001 to 86400 seconds, not {number}");
    Ok(Duration::from_secs_f64(number))
}

/// How to try what keeps connections.
#[derive(Debug, Clone, Args)]
pub struct StatefulOptions {
    /// What to search for
    #[arg(value_enum)]
    pub what: StatefulWhat,
    /// Connections of each trial; for capacity, of the first
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    pub connections: u32,
    /// Most connections of a trial for capacity
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    pub connections_max: u32,
    /// Connections per second: the highest to try, for capacity the one to begin them with
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    pub rate_max: u64,
    /// End of a search: the part by which the highest good and the lowest bad figure may differ
    #[arg(long, default_value_t = 0.01, value_name = "PART")]
    pub precision: f64,
    /// Shell command that has the device forget all connections, run before each trial
    #[arg(long, value_name = "COMMAND")]
    pub before_each: Option<String>,
}

/// Figures of what keeps connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StatefulWhat {
    /// Connections that can be begun in a second
    Rate,
    /// Connections that can be held
    Capacity,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        device: DeviceOptions,
        #[command(flatten)]
        traffic: TrafficOptions,
    }

    fn line(more: &[&str]) -> Result<(Traffic, Wanted)> {
        let words = ["x", "--tx=eth1", "--to-mac=02:00:00:00:01:01"];
        let line = Line::try_parse_from(words.iter().chain(more))?;
        let traffic = line.traffic.traffic([2, 0, 0, 0, 0, 9])?;
        let wanted = line.device.wanted(&traffic)?;
        Ok((traffic, wanted))
    }

    #[test]
    fn what_is_sent_is_what_arrives_unless_told_otherwise() {
        let (traffic, wanted) = line(&["--target=203.0.113.10:80", "--targets=2"]).unwrap();
        assert_eq!(traffic.sources, IpAddr::from(FLOOD_NET_V4));
        assert_eq!(wanted.prefixes, [host("203.0.113.10".parse().unwrap()), host("203.0.113.11".parse().unwrap())]);
        let (_, wanted) =
            line(&["--target=[2001:db8:f::1]:80", "--expect=10.0.0.0/8", "--expect=2001:db8::1"]).unwrap();
        assert_eq!(wanted.prefixes, [("10.0.0.0".parse().unwrap(), 8), ("2001:db8::1".parse().unwrap(), 128)]);
        let vxlan = ["--vxlan-to=10.0.0.2", "--vxlan-from=10.0.0.1", "--inner-mac=02:00:00:00:00:07"];
        let (traffic, wanted) = line(&[&["--target=10.1.0.1:1"][..], &vxlan].concat()).unwrap();
        assert_eq!(wanted.endpoints, [("10.0.0.2".parse().unwrap(), 8472)]);
        assert_eq!(wanted_back(&traffic).endpoints, [("10.0.0.1".parse().unwrap(), 8472)]);
    }

    #[test]
    fn what_could_do_harm_is_refused() {
        for (more, reason) in [
            (&["--target=8.8.8.8:53"][..], "may be somebody's"),
            (&["--target=[2606:4700::1]:53"], "may be somebody's"),
            // The last of the targets counts as well.
            (&["--target=198.19.255.255:53", "--targets=2"], "198.20.0.0 may be somebody's"),
            (&["--target=10.0.0.1:53", "--expect=0.0.0.0/0"], "8 to 32 bits"),
            (&["--target=10.0.0.1:53", "--sizes=9001"], "64 to 9000 bytes"),
            (&["--target=10.0.0.1:53", "--vxlan-to=10.0.0.2"], "--vxlan-from"),
            (&["--target=10.0.0.1:53", "--targets=0"], "targets are"),
        ] {
            let error = format!("{:#}", line(more).unwrap_err());
            assert!(error.contains(reason), "{more:?}: {error}");
        }
        assert!(line(&["--target=8.8.8.8:53", "--any-address"]).is_ok());
        assert!(seconds(0.0).is_err() && seconds(f64::NAN).is_err() && seconds(90_000.0).is_err());
    }
}
