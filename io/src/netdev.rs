//! Facts about a network device, from its own ioctls.
//!
//! Ioctls, not sysfs: a sysfs mount shows the network namespace it was mounted in, an ioctl the one the process is in.
//! (`struct ifreq` from include/uapi/linux/if.h; the `ETHTOOL_*` commands and their structures from
//! include/uapi/linux/ethtool.h.)

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const ETHTOOL_GDRVINFO: u32 = 0x0000_0003;
const ETHTOOL_GRXFH: u32 = 0x0000_0029;
const ETHTOOL_GSTRINGS: u32 = 0x0000_001b;
const ETHTOOL_GSSET_INFO: u32 = 0x0000_0037;
const ETHTOOL_GFEATURES: u32 = 0x0000_003a;
const ETHTOOL_GCHANNELS: u32 = 0x0000_003c;
const ETHTOOL_GRSSH: u32 = 0x0000_0046;
const ETH_SS_FEATURES: u32 = 4;
/// Source and destination of the IP header (`RXH_IP_SRC`, `RXH_IP_DST`).
const RXH_ADDRESSES: u32 = 1 << 4 | 1 << 5;
/// Bytes 0 and 1, and 2 and 3 of the transport header (`RXH_L4_B_0_1`, `RXH_L4_B_2_3`): both ports.
const RXH_PORTS: u32 = 1 << 6 | 1 << 7;
/// `ETH_RSS_HASH_TOP`.
const HASH_TOEPLITZ: u8 = 1;
const ETH_GSTRING_LEN: usize = 32;
const SIOCETHTOOL: libc::c_ulong = 0x8946;

/// More features than any kernel has; bounds what is allocated on the kernel's word.
const FEATURES_MAX: usize = 1024;
/// More than any device has of entries in its indirection table, and of bytes in its key; for the same purpose.
const RSS_WORDS_MAX: usize = 1 << 16;

/// What Tidegate wants to know about a device before it opens it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetDevice {
    /// Its name.
    pub name: String,
    /// The kernel's index, valid in this network namespace.
    pub ifindex: u32,
    /// Hardware address; zeroes if it is not six bytes long.
    pub mac: [u8; 6],
    /// Largest network-layer packet, in bytes.
    pub mtu: u32,
    /// Whether it is up and has a carrier (`IFF_UP` and `IFF_RUNNING`).
    pub running: bool,
    /// Receive queues in use; queue numbers are below this.
    pub rx_queues: u32,
    /// Name of the driver; empty if the device does not say.
    pub driver: String,
    /// Offloads that are on, by the names that `ethtool -k` prints in its long form, such as `rx-vlan-hw-parse`.
    pub features: Vec<String>,
}

impl NetDevice {
    /// Asks the kernel about the device called `name`.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::NotFound`] if there is no such device, otherwise what ioctl(2) reports.
    pub fn query(name: &str) -> io::Result<NetDevice> {
        let not_found = || io::Error::new(io::ErrorKind::NotFound, format!("no network device is called {name:?}"));
        let c_name = CString::new(name).map_err(|_| not_found())?;
        if c_name.as_bytes().is_empty() || c_name.as_bytes_with_nul().len() > libc::IFNAMSIZ {
            return Err(not_found());
        }
        // SAFETY: `c_name` is a string that ends in zero.
        let ifindex = unsafe { libc::if_nametoindex(c_name.as_ptr()) };
        if ifindex == 0 {
            return Err(not_found());
        }
        let control = Control::new(&c_name)?;
        Ok(NetDevice {
            name: name.to_owned(),
            ifindex,
            mac: control.mac()?,
            mtu: control.mtu()?,
            running: control.running()?,
            rx_queues: control.rx_queues(),
            driver: control.driver().unwrap_or_default(),
            features: control.features().unwrap_or_default(),
        })
    }

    /// What the device looks at when it chooses a queue for packets of one sort (`ethtool -n DEV rx-flow-hash udp4`); `None`
    /// where it does not say.
    #[must_use]
    pub fn hashed(&self, flows: FlowType) -> Option<Hashed> {
        let control = Control::new(&CString::new(self.name.as_str()).ok()?).ok()?;
        // struct ethtool_rxnfc: cmd, flow_type, data (64 bits), and room for the rest of it
        let mut words = [0; 64];
        (words[0], words[1]) = (ETHTOOL_GRXFH, flows as u32);
        control.ethtool(&mut words).ok()?;
        let [low, high] = if cfg!(target_endian = "big") { [words[3], words[2]] } else { [words[2], words[3]] };
        Some(match (high, low) {
            (0, RXH_ADDRESSES) => Hashed::Addresses,
            (0, both) if both == RXH_ADDRESSES | RXH_PORTS => Hashed::Ends,
            (0, some) if some & RXH_PORTS == RXH_PORTS => Hashed::PortsAndMore,
            _ => Hashed::Other,
        })
    }

    /// How the device spreads what it receives over its queues (`ethtool -x DEV`).
    ///
    /// # Errors
    ///
    /// What ioctl(2) reports; [`io::ErrorKind::Unsupported`] from a device without such a spread.
    pub fn rss(&self) -> io::Result<Rss> {
        let name = CString::new(self.name.as_str()).map_err(|_| io::ErrorKind::NotFound)?;
        let control = Control::new(&name)?;
        // struct ethtool_rxfh: cmd, rss_context, indir_size, key_size, { hfunc, input_xfrm, two reserved bytes }, reserved,
        // then indir_size words and key_size bytes. With both sizes 0 the kernel tells them.
        let mut sizes = [ETHTOOL_GRSSH, 0, 0, 0, 0, 0];
        control.ethtool(&mut sizes)?;
        let (entries, key_bytes) = (sizes[2] as usize, sizes[3] as usize);
        if entries > RSS_WORDS_MAX || key_bytes > RSS_WORDS_MAX {
            return Err(io::Error::other(format!(
                "the kernel claims {entries} entries and a key of {key_bytes} bytes"
            )));
        }
        let mut words = vec![0; 6 + entries + key_bytes.div_ceil(4)];
        words[..4].copy_from_slice(&[ETHTOOL_GRSSH, 0, sizes[2], sizes[3]]);
        control.ethtool(&mut words)?;
        Ok(rss(&words, entries, key_bytes, FlowType::ALL.map(|flows| self.hashed(flows))))
    }

    /// Whether an offload is on.
    #[must_use]
    pub fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|name| name == feature)
    }
}

/// A sort of packets that a device can treat by itself when it chooses a queue (`TCP_V4_FLOW` and its kin).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum FlowType {
    /// TCP over IPv4.
    Tcp4 = 0x01,
    /// UDP over IPv4.
    Udp4 = 0x02,
    /// SCTP over IPv4.
    Sctp4 = 0x03,
    /// TCP over IPv6.
    Tcp6 = 0x05,
    /// UDP over IPv6.
    Udp6 = 0x06,
    /// SCTP over IPv6.
    Sctp6 = 0x07,
}

impl FlowType {
    /// All of them.
    pub const ALL: [FlowType; 6] =
        [FlowType::Tcp4, FlowType::Udp4, FlowType::Sctp4, FlowType::Tcp6, FlowType::Udp6, FlowType::Sctp6];

    /// Its name in `ethtool -n DEV rx-flow-hash NAME`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            FlowType::Tcp4 => "tcp4",
            FlowType::Udp4 => "udp4",
            FlowType::Sctp4 => "sctp4",
            FlowType::Tcp6 => "tcp6",
            FlowType::Udp6 => "udp6",
            FlowType::Sctp6 => "sctp6",
        }
    }
}

/// What of a packet goes into the hash that chooses its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hashed {
    /// Source and destination address (`sd`).
    Addresses,
    /// Both addresses and both ports (`sdfn`).
    Ends,
    /// Both ports, with more or less than both addresses.
    PortsAndMore,
    /// Anything else.
    Other,
}

impl Hashed {
    /// Whether both ports are among it.
    #[must_use]
    pub fn has_ports(self) -> bool {
        matches!(self, Hashed::Ends | Hashed::PortsAndMore)
    }

    /// In the letters of `ethtool -N DEV rx-flow-hash`, where there are some.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Hashed::Addresses => "sd",
            Hashed::Ends => "sdfn",
            Hashed::PortsAndMore => "fn and other fields",
            Hashed::Other => "other fields",
        }
    }
}

/// How a device spreads what it receives over its queues: receive-side scaling.
#[derive(Clone, PartialEq, Eq)]
pub struct Rss {
    /// The key of its hash; empty if the device does not tell it.
    pub key: Vec<u8>,
    /// Number of a queue, by the low bits of the hash.
    pub indirection: Vec<u32>,
    /// Whether the hash is Toeplitz's, of the packet's fields as they are.
    pub is_toeplitz: bool,
    /// What is hashed of packets of each sort, in the order of [`FlowType::ALL`]; `None` where the device does not say.
    pub hashed: [Option<Hashed>; 6],
}

impl Rss {
    /// What is hashed of each sort of packets that the device tells of.
    pub fn told(&self) -> impl Iterator<Item = (FlowType, Hashed)> {
        FlowType::ALL.into_iter().zip(self.hashed).filter_map(|(flows, hashed)| Some((flows, hashed?)))
    }
}

impl std::fmt::Debug for Rss {
    /// Without the key, by which a sender could choose a queue.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Rss { key, indirection, is_toeplitz, hashed } = self;
        let mut told = out.debug_struct("Rss");
        told.field("key_bytes", &key.len()).field("indirection", indirection).field("is_toeplitz", is_toeplitz);
        told.field("hashed", hashed).finish()
    }
}

/// What the kernel's answer says: `words` are six of `struct ethtool_rxfh`, the indirection table and the key.
fn rss(words: &[u32], entries: usize, key_bytes: usize, hashed: [Option<Hashed>; 6]) -> Rss {
    let (header, rest) = words.split_at(6);
    let (indirection, key) = rest.split_at(entries);
    // Kernels before 6.8 know no input_xfrm and leave 0, which is none.
    let [function, transformed, ..] = header[4].to_ne_bytes();
    let mut key = bytes_of(key);
    key.truncate(key_bytes);
    let is_toeplitz = function == HASH_TOEPLITZ && transformed == 0;
    Rss { key, indirection: indirection.to_vec(), is_toeplitz, hashed }
}

/// A socket to ask through, and the request with the device's name in it.
struct Control {
    socket: OwnedFd,
    request: libc::ifreq,
}

impl Control {
    fn new(name: &CString) -> io::Result<Control> {
        // SAFETY: no pointers are passed.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just opened and is nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: ifreq is plain integers and pointers, for which zeroes are valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
            *to = from.cast_signed();
        }
        Ok(Control { socket, request })
    }

    fn ask(&self, command: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: `request` is a valid ifreq; every command used here reads and writes no more than that, but for
        // SIOCETHTOOL, whose data pointer `ethtool` vouches for.
        match unsafe { libc::ioctl(self.socket.as_raw_fd(), command as _, std::ptr::from_mut(request)) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn mtu(&self) -> io::Result<u32> {
        let mut request = self.request;
        self.ask(libc::SIOCGIFMTU as _, &mut request)?;
        // SAFETY: SIOCGIFMTU has written the `ifru_mtu` member.
        u32::try_from(unsafe { request.ifr_ifru.ifru_mtu }).map_err(io::Error::other)
    }

    fn running(&self) -> io::Result<bool> {
        let mut request = self.request;
        self.ask(libc::SIOCGIFFLAGS as _, &mut request)?;
        // SAFETY: SIOCGIFFLAGS has written the `ifru_flags` member.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        Ok(flags & libc::IFF_UP != 0 && flags & libc::IFF_RUNNING != 0)
    }

    fn mac(&self) -> io::Result<[u8; 6]> {
        let mut request = self.request;
        self.ask(libc::SIOCGIFHWADDR as _, &mut request)?;
        // SAFETY: SIOCGIFHWADDR has written the `ifru_hwaddr` member.
        let address = unsafe { request.ifr_ifru.ifru_hwaddr };
        let mut mac = [0; 6];
        if address.sa_family == libc::ARPHRD_ETHER {
            for (to, from) in mac.iter_mut().zip(address.sa_data) {
                *to = from.cast_unsigned();
            }
        }
        Ok(mac)
    }

    /// Runs an ethtool command on `words`, whose first one is the command.
    ///
    /// The caller has made `words` as long as that command's structure can get with the lengths given in it.
    fn ethtool(&self, words: &mut [u32]) -> io::Result<()> {
        let mut request = self.request;
        request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
        self.ask(SIOCETHTOOL, &mut request)
    }

    fn rx_queues(&self) -> u32 {
        // struct ethtool_channels: cmd, max_{rx,tx,other,combined}, {rx,tx,other,combined}_count
        let mut words = [0; 9];
        words[0] = ETHTOOL_GCHANNELS;
        match self.ethtool(&mut words) {
            Ok(()) => (words[5] + words[8]).max(1),
            // Devices that cannot tell have one.
            Err(_) => 1,
        }
    }

    fn driver(&self) -> io::Result<String> {
        // struct ethtool_drvinfo: cmd, then driver[32]; 196 bytes in all
        let mut words = [0; 49];
        words[0] = ETHTOOL_GDRVINFO;
        self.ethtool(&mut words)?;
        Ok(text(&bytes_of(&words[1..9])))
    }

    fn features(&self) -> io::Result<Vec<String>> {
        // struct ethtool_sset_info: cmd, reserved, sset_mask (64 bits), data[one per bit]
        let mut sizes = [ETHTOOL_GSSET_INFO, 0, 0, 0, 0];
        (sizes[2], sizes[3]) = halves(1 << ETH_SS_FEATURES);
        self.ethtool(&mut sizes)?;
        let count = sizes[4] as usize;
        if count > FEATURES_MAX {
            return Err(io::Error::other(format!("the kernel claims {count} features")));
        }
        // struct ethtool_gstrings: cmd, string_set, len, data[len * 32]
        let mut names = vec![0; 3 + count * ETH_GSTRING_LEN / 4];
        names[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES, sizes[4]]);
        self.ethtool(&mut names)?;
        // struct ethtool_gfeatures: cmd, size, features[size] of { available, requested, active, never_changed }
        let blocks = count.div_ceil(32);
        let mut states = vec![0; 2 + blocks * 4];
        states[..2].copy_from_slice(&[ETHTOOL_GFEATURES, sizes[4].div_ceil(32)]);
        self.ethtool(&mut states)?;
        let active = |index: usize| states[2 + index / 32 * 4 + 2] >> (index % 32) & 1 == 1;
        let names = bytes_of(&names[3..]);
        Ok(names
            .chunks(ETH_GSTRING_LEN)
            .enumerate()
            .filter(|(index, _)| active(*index))
            .map(|(_, name)| text(name))
            .collect())
    }
}

fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// A 64-bit number as the two words it is in memory.
fn halves(number: u64) -> (u32, u32) {
    let bytes = number.to_ne_bytes();
    let [a, b, c, d, e, f, g, h] = bytes;
    (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]))
}

/// The text before the first zero.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_is_known() {
        let device = NetDevice::query("lo").unwrap();
        assert_eq!((device.ifindex, device.mac, device.rx_queues), (1, [0; 6], 1));
        assert!(device.mtu >= 1500);
        // Loopback never checks sums, on any kernel.
        assert!(device.has("loopback") || device.has("rx-checksum"), "{:?}", device.features);
    }

    #[test]
    fn the_kernels_answer_about_rss_is_taken_apart() {
        // Two entries and a key of six bytes, the last word of which is half unused.
        let bytes = |bytes: [u8; 4]| u32::from_ne_bytes(bytes);
        let words = |function, transform| {
            let header = [ETHTOOL_GRSSH, 0, 2, 6, bytes([function, transform, 0, 0]), 0];
            [&header[..], &[3, 1, bytes([1, 2, 3, 4]), bytes([5, 6, 0, 0])]].concat()
        };
        let hashed = [Some(Hashed::Ends), None, None, Some(Hashed::Addresses), None, None];
        let told = rss(&words(HASH_TOEPLITZ, 0), 2, 6, hashed);
        let expected = Rss { key: vec![1, 2, 3, 4, 5, 6], indirection: vec![3, 1], is_toeplitz: true, hashed };
        assert_eq!(told, expected);
        assert!(!format!("{told:?}").contains("[1, 2, 3, 4"), "the key is not told");
        // XOR (bit 1), CRC32 (bit 2), nothing said; and the symmetric transforms of Linux 6.8 and 6.15.
        for (function, transform) in [(2, 0), (4, 0), (0, 0), (1, 1), (1, 2)] {
            assert!(!rss(&words(function, transform), 2, 6, hashed).is_toeplitz, "{function} {transform}");
        }
        let none = rss(&words(HASH_TOEPLITZ, 0)[..6], 0, 0, [None; 6]);
        assert_eq!((none.key.len(), none.indirection.len()), (0, 0));
    }

    #[test]
    fn a_device_without_rss_says_so() {
        let device = NetDevice::query("lo").unwrap();
        assert_eq!(device.rss().unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
        assert!(FlowType::ALL.iter().all(|flows| device.hashed(*flows).is_none()));
    }

    #[test]
    fn names_that_are_no_device_are_not_found() {
        for name in ["", "no-such-device0", "a-name-that-is-far-too-long", "zero\0inside"] {
            assert_eq!(NetDevice::query(name).unwrap_err().kind(), io::ErrorKind::NotFound, "{name:?}");
        }
    }
}
