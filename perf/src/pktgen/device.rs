//! Devices for the generator: opened on AF_XDP, in any network namespace, and refused where that would do harm.
//!
//! Owns what is safe. A generator takes packets off a device and floods a network, so a device that leads to the default
//! route is refused, and so are addresses that may be somebody's; both can be overruled by whoever knows better. The sink
//! owns nothing but the addresses of its own traffic: everything else on its device goes on to the kernel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tidegate_io::afxdp::{self, AfXdpPort, InterfaceConfig, ModeChoice, OpenConfig};
use tidegate_io::frame::{FRAME_BYTES_MIN, KERNEL_FRAME_BYTES_MAX};
use tidegate_io::netdev::NetDevice;
use tidegate_io::{
    HEADROOM_BYTES, HugePages, Magazine, OnDeath, Owned, OwnedFlags, Pinhole, PinholeCounters, Pool, Port,
};

use crate::pktgen::layout::ETHERNET_BYTES;
use crate::pktgen::size::FCS_BYTES;

/// Where `ip netns` keeps names.
const NAMESPACES: &str = "/run/netns";
/// Bytes of VLAN tags that an arriving packet may have, two of them.
const TAGS_BYTES_MAX: usize = 8;
/// Frames of a device, for each queue.
const FRAMES_PER_QUEUE: u32 = 8192;

/// A device: `DEVICE`, `DEVICE:QUEUE,QUEUE` or `DEVICE@NAMESPACE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Name of the device.
    pub device: String,
    /// Its queues; the first one if not given.
    pub queues: Vec<u32>,
    /// Network namespace, as `ip netns` names it.
    pub namespace: Option<String>,
}

impl FromStr for Place {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Place> {
        let (rest, namespace) = match text.split_once('@') {
            Some((rest, namespace)) => (rest, Some(namespace.to_owned())),
            None => (text, None),
        };
        let (device, queues) = rest.split_once(':').unwrap_or((rest, "0"));
        let queues =
            queues.split(',').map(str::parse).collect::<Result<Vec<u32>, _>>().context("queues of a device")?;
        let plain = |name: &str| !name.is_empty() && !name.contains(['/', ' ']) && name != "." && name != "..";
        ensure!(plain(device) && namespace.as_deref().is_none_or(plain), "{text:?} is not DEVICE[:QUEUES][@NAMESPACE]");
        Ok(Place { device: device.into(), queues, namespace })
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let queues: Vec<String> = self.queues.iter().map(u32::to_string).collect();
        write!(out, "{}:{}", self.device, queues.join(","))?;
        self.namespace.as_ref().map_or(Ok(()), |namespace| write!(out, "@{namespace}"))
    }
}

/// Does something in a network namespace, on a thread that ends with it.
///
/// # Errors
/// When there is no such namespace, and what is done fails with.
pub fn within<T: Send>(namespace: Option<&str>, what: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let Some(name) = namespace else { return what() };
    let path = std::path::Path::new(NAMESPACES).join(name);
    let file = std::fs::File::open(&path).with_context(|| format!("network namespace {name}"))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .with_context(|| format!("entering network namespace {name}"))?;
            what()
        });
        thread.join().unwrap_or_else(|_| bail!("what was done in {name} has panicked"))
    })
}

/// How to open a device.
#[derive(Debug, Clone)]
pub struct Manner {
    /// AF_XDP mode.
    pub mode: ModeChoice,
    /// Largest frame on the wire that is sent or arrives, in bytes with its check sequence; 0: what the device's MTU allows.
    pub size_bytes_max: u16,
    /// Packets may lie in several frames of memory, where one is too small for them or for the device's MTU.
    pub several_frames: bool,
    /// A device that leads to the default route is no reason to refuse.
    pub overrule_default_route: bool,
}

/// What arrives that is the generator's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Prefixes of destinations.
    pub prefixes: Vec<(IpAddr, u8)>,
    /// Tunnel endpoints: address and UDP port.
    pub endpoints: Vec<(IpAddr, u16)>,
}

/// An open device.
#[derive(Debug)]
pub struct Station {
    /// Where it is.
    pub place: Place,
    /// Name of its driver.
    pub driver: String,
    /// How frames pass.
    pub mode: &'static str,
    ports: Vec<AfXdpPort>,
    pinholes: Vec<Pinhole>,
    pools: Vec<Pool>,
}

impl Station {
    /// Opens a device. What arrives and is wanted comes to the ports, or is dropped and counted once these are gone.
    ///
    /// # Errors
    /// When the device is refused, by us or by the kernel.
    pub fn open(place: &Place, wanted: &Wanted, manner: &Manner) -> Result<Station> {
        let one = || Station::open_here(place, wanted, manner);
        within(place.namespace.as_deref(), one).with_context(|| match manner.size_bytes_max {
            0 => format!("opening {place}"),
            size => format!("opening {place} for frames of {size} bytes"),
        })
    }

    fn open_here(place: &Place, wanted: &Wanted, manner: &Manner) -> Result<Station> {
        if !manner.overrule_default_route {
            refuse_default_route(place)?;
        }
        // A device that is not there is refused below.
        let mtu = NetDevice::query(&place.device).map_or(u32::MAX, |device| device.mtu);
        refuse_small_mtu(&place.device, mtu, manner.size_bytes_max)?;
        let (frame_bytes, multi_buffer) = memory_for(manner, mtu);
        let queues = u32::try_from(place.queues.len())?;
        let interface = InterfaceConfig { name: place.device.clone(), queues: Some(place.queues.clone()) };
        let mut opened = afxdp::open(&OpenConfig {
            interfaces: vec![interface],
            mode: manner.mode,
            frames: FRAMES_PER_QUEUE * queues,
            frame_bytes,
            multi_buffer,
            huge: HugePages::Auto,
            on_death: OnDeath::Drop,
            ..OpenConfig::default()
        })?;
        let driver = NetDevice::query(&place.device)?.driver;
        let mode = opened.ports.first().map_or("none", |port| port.facts().mode.name());
        let prefixes = wanted.prefixes.iter().map(|(address, length)| (*address, *length, OwnedFlags::TRAFFIC));
        let owned = Owned { prefixes: prefixes.collect(), vteps: wanted.endpoints.clone(), ports: Vec::new() };
        let told = opened.pinholes.iter_mut().try_for_each(|pinhole| pinhole.update(&owned));
        let tidegate_io::afxdp::Opened { ports, pools, pinholes } = opened;
        let station = Station { place: place.clone(), driver, mode, ports, pinholes, pools };
        told.context("telling the device what is wanted")?;
        Ok(station)
    }

    /// Link-layer address of the device.
    pub fn mac(&self) -> [u8; 6] {
        self.ports.first().map_or([0; 6], |port| port.facts().mac)
    }

    /// The ports, each with its frames; there are none left here.
    pub fn take_ports(&mut self) -> Result<Vec<(AfXdpPort, Magazine)>> {
        let pool = self.pools.first().context("no memory was made")?;
        Ok(self.ports.drain(..).map(|port| (port, pool.magazine())).collect())
    }

    /// Leaves nobody to receive: what is wanted is counted and dropped as it arrives.
    pub fn count_only(&mut self) {
        self.ports.clear();
    }

    /// What the device's program has counted.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn counters(&self) -> Result<PinholeCounters> {
        Ok(self.pinholes.first().context("no program")?.counters()?)
    }

    /// Packets that were wanted and had no receiver.
    ///
    /// # Errors
    /// As [`Station::counters`].
    pub fn counted(&self) -> Result<u64> {
        Ok(self.counters()?.dropped_dead)
    }
}

/// The program goes off the device with whoever put it there.
impl Drop for Station {
    fn drop(&mut self) {
        self.ports.clear();
        let pinholes = std::mem::take(&mut self.pinholes);
        let closed = within(self.place.namespace.as_deref(), || {
            pinholes.into_iter().try_for_each(Pinhole::close).context("taking the program off the device")
        });
        if let Err(error) = closed {
            eprintln!("{}: {error:#}; take it off with `ip link set dev {} xdp off`", self.place, self.place.device);
        }
    }
}

/// Refuses a device whose MTU the largest frame does not fit.
fn refuse_small_mtu(device: &str, mtu: u32, size_bytes_max: u16) -> Result<()> {
    let needed = usize::from(size_bytes_max.saturating_sub(FCS_BYTES)).saturating_sub(ETHERNET_BYTES);
    ensure!(
        needed <= mtu as usize,
        "{device} has an MTU of {mtu} bytes, and frames of {size_bytes_max} bytes need one of {needed}: run \
         `ip link set dev {device} mtu {needed}` (for a veth at both ends), or send smaller ones"
    );
    Ok(())
}

/// Bytes of a frame of memory for what is sent and for what the device lets in, and whether one is not enough.
fn memory_for(manner: &Manner, mtu: u32) -> (u32, bool) {
    let arriving = mtu as usize + ETHERNET_BYTES + TAGS_BYTES_MAX;
    let longest = arriving.max(usize::from(manner.size_bytes_max.saturating_sub(FCS_BYTES)));
    let holds = |frame_bytes: u32| frame_bytes as usize - HEADROOM_BYTES;
    let frame_bytes = if longest <= holds(FRAME_BYTES_MIN) { FRAME_BYTES_MIN } else { KERNEL_FRAME_BYTES_MAX };
    (frame_bytes, manner.several_frames && longest > holds(frame_bytes))
}

/// Refuses a device by which this machine reaches the world.
fn refuse_default_route(place: &Place) -> Result<()> {
    let table = |name: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
    let mut devices = default_routes(&table("route"), &table("ipv6_route"));
    devices.retain(|device| device != "lo");
    let mut names = vec![place.device.clone()];
    if place.namespace.is_none() {
        // A member of a bond or a bridge leads where that one leads.
        let master = std::fs::read_link(format!("/sys/class/net/{}/master", place.device)).ok();
        names.extend(master.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned())));
    }
    let found = names.iter().find(|name| devices.contains(name));
    ensure!(
        found.is_none(),
        "{} holds this machine's default route, and the generator could cut it off; choose another device, or say \
         --i-know-it-is-the-default-route",
        place.device
    );
    Ok(())
}

/// Devices of default routes, from the kernel's two tables (`/proc/net/route` and `/proc/net/ipv6_route`).
fn default_routes(v4: &str, v6: &str) -> Vec<String> {
    let v4 = v4.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words.get(1) == Some(&"00000000") && words.get(7) == Some(&"00000000")).then(|| words.first().copied())?
    });
    let v6 = v6.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let everything = words.first()?.bytes().all(|digit| digit == b'0') && words.get(1) == Some(&"00");
        everything.then(|| words.last().copied())?
    });
    v4.chain(v6).map(str::to_owned).collect()
}

/// Networks that belong to nobody outside: benchmarks (RFC 2544, RFC 5180), documentation (RFC 5737, RFC 3849, RFC 9637),
/// private ones (RFC 1918, RFC 6598, RFC 4193).
const HARMLESS_V4: [(Ipv4Addr, u8); 8] = [
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
];
/// The same for IPv6.
const HARMLESS_V6: [(Ipv6Addr, u8); 4] = [
    (Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0), 48),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
];

/// Whether packets to an address harm nobody, should they leave the laboratory.
pub fn is_harmless(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            HARMLESS_V4.iter().any(|(net, length)| (u32::from(v4) ^ u32::from(*net)) >> (32 - length) == 0)
        }
        IpAddr::V6(v6) => {
            HARMLESS_V6.iter().any(|(net, length)| (u128::from(v6) ^ u128::from(*net)) >> (128 - length) == 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read() {
        let place: Place = "eth1:2,3@client".parse().unwrap();
        assert_eq!((place.device.as_str(), place.queues.as_slice()), ("eth1", &[2, 3][..]));
        assert_eq!((place.namespace.as_deref(), place.to_string().as_str()), (Some("client"), "eth1:2,3@client"));
        assert_eq!("eth1".parse::<Place>().unwrap().queues, [0]);
        for text in ["", "@x", "eth1:", "eth1:a", "eth1@../x", "eth1@"] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }

    #[test]
    fn memory_is_for_the_largest_packet_and_for_the_mtu() {
        let manner = |size_bytes_max, several_frames| Manner {
            mode: ModeChoice::Auto,
            size_bytes_max,
            several_frames,
            overrule_default_route: false,
        };
        for (size, mtu, expected) in [
            (64, 1500, (2048, false)),
            (1518, 1770, (2048, false)),
            (64, 1771, (4096, false)),
            (3800, 3818, (4096, false)),
            (64, 3819, (4096, true)),
            (9000, 9000, (4096, true)),
            (0, 9000, (4096, true)),
        ] {
            assert_eq!(memory_for(&manner(size, true), mtu), expected, "{size} at {mtu}");
            assert!(!memory_for(&manner(size, false), mtu).1);
        }
    }

    #[test]
    fn a_device_too_small_for_the_frames_is_refused_with_the_fix() {
        refuse_small_mtu("eth1", 1500, 1518).unwrap();
        refuse_small_mtu("eth1", 8982, 9000).unwrap();
        refuse_small_mtu("eth1", 68, 0).unwrap();
        let error = refuse_small_mtu("eth1", 8981, 9000).unwrap_err().to_string();
        for part in ["eth1 has an MTU of 8981", "frames of 9000 bytes", "`ip link set dev eth1 mtu 8982`"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn default_routes_are_found_in_both_families() {
        let v4 = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                  eth0\t00000000\t010002C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                  eth1\t000012C6\t00000000\t0001\t0\t0\t0\t0000FEFF\t0\t0\t0\n";
        let zero = "0".repeat(32);
        let v6 = format!(
            "{zero} 00 {zero} 00 fe80000000000000 00000400 00000001 00000000 00000003 eth2\n\
                          20010db8000000000000000000000000 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001 eth3\n"
        );
        assert_eq!(default_routes(v4, &v6), ["eth0", "eth2"]);
        assert!(default_routes("", "").is_empty());
    }

    #[test]
    fn only_networks_of_nobody_are_harmless() {
        for address in
            ["198.19.255.255", "203.0.113.7", "10.1.2.3", "172.31.0.1", "2001:2::1", "2001:db8::1", "fd00::1"]
        {
            assert!(is_harmless(address.parse().unwrap()), "{address}");
        }
        for address in ["198.20.0.0", "8.8.8.8", "172.32.0.1", "2001:2:1::1", "2606:4700::1", "fe80::1", "127.0.0.1"] {
            assert!(!is_harmless(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn a_namespace_that_is_not_there_is_named() {
        let error = format!("{:#}", within(Some("no-such-namespace"), || Ok(())).unwrap_err());
        assert!(error.contains("no-such-namespace"), "{error}");
    }
}
