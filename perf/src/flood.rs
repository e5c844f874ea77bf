//! A flood as a command: an AF_XDP socket on the client's device, the generator, and one line of JSON.
//!
//! Owns the socket for as long as the flood lasts. The device keeps serving the kernel meanwhile: the program attached
//! to it owns nothing, and passes everything should it outlive its socket.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use tidegate_io::afxdp::{self, InterfaceConfig, ModeChoice, OpenConfig};
use tidegate_io::pinhole::OnDeath;
use tidegate_io::{HugePages, Port};

use crate::generator::{Flood, Payload, Sent, mac};
use crate::topology::GATEWAY_WAN_MAC;

/// Frames of the generator's memory: more than the fill ring takes.
const FRAMES: u32 = 8192;
/// Most frames of one flood.
const COUNT_MAX: u64 = 100_000_000;

/// What to send.
#[derive(Debug, Clone, Args)]
pub struct FloodOptions {
    /// Device to send from.
    #[arg(long, default_value = "eth0")]
    pub device: String,
    /// Queue of the device; its peer receives on the queue of the same number.
    #[arg(long, default_value_t = 0)]
    pub queue: u32,
    /// Address and port to flood.
    #[arg(long)]
    pub target: SocketAddr,
    /// What the frames carry.
    #[arg(long, value_enum, default_value = "udp")]
    pub payload: Payload,
    /// Distinct flows.
    #[arg(long, default_value_t = 2000)]
    pub flows: u32,
    /// Frames to send.
    #[arg(long, default_value_t = 50_000)]
    pub count: u64,
    /// Frames per second at most; 0: as fast as possible.
    #[arg(long, default_value_t = 50_000)]
    pub rate: u64,
    /// Link-layer destination.
    #[arg(long, default_value = GATEWAY_WAN_MAC)]
    pub destination_mac: String,
    /// Longest time in seconds.
    #[arg(long, default_value_t = 60)]
    pub limit_s: u64,
}

/// Opens the device, sends the flood, closes the device.
///
/// # Errors
/// When the device cannot be opened, or the flood cannot be sent in time.
pub fn send(options: &FloodOptions) -> Result<Sent> {
    if options.count > COUNT_MAX || options.flows == 0 {
        bail!("a flood has at most {COUNT_MAX} frames, and at least one flow");
    }
    let mut opened = afxdp::open(&OpenConfig {
        interfaces: vec![InterfaceConfig { name: options.device.clone(), queues: Some(vec![options.queue]) }],
        mode: ModeChoice::Auto,
        frames: FRAMES,
        huge: HugePages::Off,
        on_death: OnDeath::Pass,
        ..OpenConfig::default()
    })?;
    let mut port = opened.ports.pop().context("no port was opened")?;
    let pool = opened.pools.first().context("no memory was made")?;
    let flood = Flood {
        source_mac: port.facts().mac,
        destination_mac: mac(&options.destination_mac)?,
        target: options.target,
        payload: options.payload,
        flows: options.flows,
        count: options.count,
        rate_per_s: options.rate,
        limit: Duration::from_secs(options.limit_s),
    };
    let mut magazine = pool.magazine();
    let sent = flood.send(&mut port, &mut magazine);
    magazine.flush();
    drop(port);
    for pinhole in opened.pinholes {
        pinhole.close().context("taking the program off the device")?;
    }
    sent
}
