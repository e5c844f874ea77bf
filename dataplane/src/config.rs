//! The node file: what the operator tells this dataplane once, at start.
//!
//! One YAML file configures both processes of a gateway. This module owns the part the dataplane reads: the top level
//! and the section `dataplane`. It skips the section `control` unread and refuses any other field it does not know,
//! because a misspelt limit that silently keeps its default is found weeks later. It opens no device and checks nothing
//! against the machine: that is the business of whoever acts on a value.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;
use tidegate_io::afxdp::{InterfaceConfig, ModeChoice, OpenConfig};
use tidegate_ledger::Limits;

use crate::flows::SAMPLING_MAX;
use crate::flows::exporter::{self, To};
use crate::table::owner::WORKERS_MAX;

/// Longest interface name in bytes: `IFNAMSIZ` less the terminator (uapi/linux/if.h).
const INTERFACE_NAME_BYTES_MAX: usize = 15;
/// Longest socket path in bytes: `sun_path` (uapi/linux/un.h) has 108 with the terminator, and the socket is made under
/// a name of up to 12 more.
const SOCKET_BYTES_MAX: usize = 95;
/// Fewest frames per UMEM: two rings of 2,048 per queue must be filled with something.
const FRAMES_MIN: u32 = 4096;
/// Most frames per UMEM: 64 GiB of 4 KiB frames; beyond it is a typing error.
const FRAMES_MAX: u32 = 1 << 24;
/// Most flows per family and worker: flow ids are 32 bits wide with some values reserved.
const FLOWS_MAX: u32 = 1 << 30;

/// A node file that was read and whose dataplane part is valid.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeFile {
    /// Name of this gateway's own Node object.
    #[serde(deserialize_with = "tidegate_api::node_file::name")]
    pub node: String,
    /// Contract socket the dataplane listens on.
    #[serde(default = "default_socket")]
    pub socket: PathBuf,
    /// File mode of the socket as octal text: it decides who may speak. See [`NodeFile::socket_mode_bits`].
    #[serde(default = "default_socket_mode")]
    pub socket_mode: String,
    /// Where accepted objects are saved.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// What this process does.
    pub dataplane: Dataplane,
    /// The other process's section: skipped unread.
    #[serde(default, rename = "control")]
    _control: Ignored,
}

/// The section `dataplane`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dataplane {
    /// Devices to serve, in the order that numbers them (`DeviceId` 0 is the first).
    pub interfaces: Vec<Interface>,
    /// How AF_XDP sockets are bound.
    #[serde(default)]
    pub mode: Mode,
    /// Core of each worker, one worker per entry; empty: workers are not pinned.
    #[serde(default)]
    pub cores: Vec<usize>,
    /// How many workers; absent: one per entry of `cores`, or one. See [`Dataplane::worker_count`].
    #[serde(default)]
    pub workers: Option<u16>,
    /// Which worker has which clients.
    #[serde(default)]
    pub clients: Clients,
    /// Frames per UMEM.
    #[serde(default = "default_frames")]
    pub frames: u32,
    /// Bytes per frame: 2048 or 4096.
    #[serde(default = "default_frame_bytes")]
    pub frame_bytes: u32,
    /// Huge pages for frames and flows.
    #[serde(default)]
    pub huge_pages: HugePages,
    /// Capacity of the flow tables.
    #[serde(default)]
    pub flows_max: FlowsMax,
    /// Percent of them that handshakes without the client's ACK may use (L-022).
    #[serde(default = "default_half_open_percent")]
    pub half_open_percent: u8,
    /// What an idle worker does.
    #[serde(default)]
    pub idle: Idle,
    /// What becomes of our traffic when no worker lives (design 3).
    #[serde(default)]
    pub on_death: OnDeath,
    /// How this gateway speaks with the others of its set.
    #[serde(default)]
    pub gateways: Gateways,
    /// Directory in a BPF file system by which the next process finds the XDP programs of this one.
    #[serde(default = "default_bpf_dir")]
    pub bpf_dir: PathBuf,
    /// VIPs as routes of the kernel, for routing daemons.
    #[serde(default)]
    pub routes: Routes,
    /// Where it is recorded who had which external port.
    #[serde(default)]
    pub nat_ledger: RecordFiles,
    /// What is told of flows to collectors.
    #[serde(default)]
    pub flows: Flows,
    /// Address and port at which counters are told as OpenMetrics text, `GET /metrics`; absent: nowhere.
    #[serde(default)]
    pub metrics: Option<SocketAddr>,
}

/// Which worker has which clients. Whatever is said, a packet that another worker has is handed over to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Clients {
    /// By what they are spread.
    pub spread: ClientSpread,
    /// The one of the interfaces that most of them come from; absent: the first.
    pub interface: Option<String>,
}

/// By what clients are spread over workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientSpread {
    /// By the device's own RSS where it can be followed, so that their packets arrive where they belong; else by the hash.
    #[default]
    Auto,
    /// By a keyed hash that nobody outside can compute.
    Hash,
}

/// Where records are kept as lines in files, and how many: of who had which external port, for the policies that want that,
/// or of flows.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RecordFiles {
    /// Directory; absent: `nat` in `stateDir`, of flows `flows` there.
    pub directory: Option<PathBuf>,
    /// The oldest files are deleted when all together have more mebibytes.
    pub total_mib_max: u32,
    /// … or when their last record is older, days.
    pub keep_days: u16,
}

impl Default for RecordFiles {
    fn default() -> Self {
        RecordFiles { directory: None, total_mib_max: 8192, keep_days: 30 }
    }
}

/// What is told of flows, and to whom. Nothing unless something is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Flows {
    /// One packet in so many is told; 0: none.
    pub sampling: u32,
    /// Whether it is told when a connection begins and ends, and what it has come to.
    pub connections: bool,
    /// Lines of JSON in files; absent: none.
    pub files: Option<RecordFiles>,
    /// Where lines of JSON go as datagrams, `udp:ADDRESS:PORT` or `unix:/PATH`; absent: nowhere.
    pub json: Option<To>,
    /// A collector of IPFIX; absent: none.
    pub ipfix: Option<Ipfix>,
}

/// A collector of IPFIX, and what it is told (RFC 7011).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ipfix {
    /// Its address and UDP port.
    pub collector: SocketAddr,
    /// Number of the observation domain, by which a collector tells gateways behind one address.
    #[serde(default = "one")]
    pub observation_domain: u32,
    /// Seconds between two messages of templates.
    #[serde(default = "default_template_seconds")]
    pub template_seconds: u16,
    /// Private enterprise number under which names of Kubernetes are told.
    #[serde(default = "default_enterprise_number")]
    pub enterprise_number: u32,
    /// Whether it is told who had which external port, of policies that have that recorded (RFC 8158).
    #[serde(default)]
    pub nat_events: bool,
}

/// VIPs as routes of the kernel, for routing daemons.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Routes {
    /// Whether there are any.
    pub enabled: bool,
    /// Name of the device they lead to; another dataplane of the same network namespace needs another one.
    pub device: String,
    /// Protocol number by which they are told from others. Nobody else may use it.
    pub protocol: u8,
    /// The table they stand in.
    pub table: RouteTable,
    /// Their metric; 0: the kernel's default, which is 1024 for IPv6.
    pub metric: u32,
    /// Length of routes at most: VIPs of one such prefix share a route.
    pub aggregate: Aggregate,
    /// No route to a VIP that has no usable endpoint (M-021). Without, clients are refused at once there (S-070).
    pub withdraw_when_empty: bool,
    /// Silence of the dataplane after which routes are withdrawn, milliseconds.
    pub silence_ms: u16,
    /// At an orderly end, how long packets are served after routes were withdrawn, milliseconds: routers need a moment.
    pub linger_ms: u16,
}

impl Default for Routes {
    fn default() -> Self {
        Routes {
            enabled: false,
            device: "tidegate-vip".into(),
            protocol: 116,
            table: RouteTable::default(),
            metric: 0,
            aggregate: Aggregate::default(),
            withdraw_when_empty: false,
            silence_ms: 300,
            linger_ms: 1000,
        }
    }
}

/// A table of the kernel's routes: `main` or its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "`main` or the number of a table")]
pub enum RouteTable {
    /// By name.
    Named(NamedTable),
    /// By number.
    Number(u32),
}

/// Tables with names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NamedTable {
    /// RT_TABLE_MAIN.
    Main,
}

impl Default for RouteTable {
    fn default() -> Self {
        RouteTable::Named(NamedTable::Main)
    }
}

impl RouteTable {
    /// Its number (uapi/linux/rtnetlink.h).
    pub fn number(self) -> u32 {
        match self {
            RouteTable::Named(NamedTable::Main) => 254,
            RouteTable::Number(number) => number,
        }
    }
}

/// Length of routes at most, by family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Aggregate {
    /// 1..=32.
    pub ipv4: u8,
    /// 1..=128.
    pub ipv6: u8,
}

impl Default for Aggregate {
    fn default() -> Self {
        Aggregate { ipv4: 32, ipv6: 128 }
    }
}

/// How gateways of one set speak with each other.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Gateways {
    /// File with the key that all gateways of the set share; absent: this one is alone.
    pub key_file: Option<PathBuf>,
    /// UDP port of heartbeats, the same on all gateways.
    pub port: u16,
    /// Between two heartbeats, milliseconds.
    pub interval_ms: u16,
    /// Silence after which a gateway is dead, milliseconds.
    pub dead_after_ms: u16,
    /// At an orderly end, how long to wait for others to take over, milliseconds.
    pub drain_ms: u16,
}

impl Default for Gateways {
    fn default() -> Self {
        Gateways { key_file: None, port: 7947, interval_ms: 50, dead_after_ms: 300, drain_ms: 2000 }
    }
}

/// One served device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Interface {
    /// Name in this network namespace.
    pub name: String,
    /// Receive queues to serve; absent: all the device has.
    #[serde(default)]
    pub queues: Option<Vec<u32>>,
}

/// How AF_XDP sockets are bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The best the driver can: zero-copy, else copy, else SKB.
    #[default]
    Auto,
    /// Zero-copy or refuse to start.
    ZeroCopy,
    /// Driver mode with copies, or refuse to start.
    Copy,
    /// Generic mode.
    Skb,
}

/// Whether memory comes in huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HugePages {
    /// When the machine has them to give.
    #[default]
    Auto,
    /// Or refuse to start.
    On,
    /// Never.
    Off,
}

/// What an idle worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Idle {
    /// Sleeps on its descriptors: idle power first.
    #[default]
    Sleep,
    /// Keeps polling: latency first.
    Poll,
}

/// What the pinhole does with our traffic when no worker lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnDeath {
    /// Drops and counts it.
    #[default]
    Drop,
    /// Passes it to the kernel.
    Pass,
}

/// Capacity of the flow tables, entries per worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FlowsMax {
    /// IPv4 flows.
    pub ipv4: u32,
    /// IPv6 flows.
    pub ipv6: u32,
}

impl Default for FlowsMax {
    fn default() -> Self {
        FlowsMax { ipv4: 1 << 20, ipv6: 1 << 18 }
    }
}

/// A section that belongs to somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
struct Ignored;

impl<'de> Deserialize<'de> for Ignored {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Ignored)
    }
}

/// A node file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the node file {path}: {source}")]
    Read {
        /// Path tried.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not YAML, or a field that is unknown, missing or of another type; the text names field, line and column.
    #[error("node file {path}: {source}")]
    Parse {
        /// Path read.
        path: PathBuf,
        /// What the parser said.
        source: serde_norway::Error,
    },
    /// A value outside its range.
    #[error("node file {path}: {field}: {reason}")]
    Value {
        /// Path read.
        path: PathBuf,
        /// Dotted path of the field.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl NodeFile {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// See [`ConfigError`]; each names the file and, past reading, the field.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = tidegate_api::node_file::text(path)
            .map_err(|source| ConfigError::Read { path: path.to_path_buf(), source })?;
        Self::parse(&text, path)
    }

    /// Reads `text`; `path` is only for error texts.
    ///
    /// # Errors
    /// As [`NodeFile::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let file: NodeFile =
            serde_norway::from_str(text).map_err(|source| ConfigError::Parse { path: path.to_path_buf(), source })?;
        file.check().map_err(|(field, reason)| ConfigError::Value { path: path.to_path_buf(), field, reason })?;
        Ok(file)
    }

    /// The socket's file mode as a number.
    pub fn socket_mode_bits(&self) -> u32 {
        u32::from_str_radix(&self.socket_mode, 8).unwrap_or(0o660)
    }

    fn check(&self) -> Result<(), (String, String)> {
        ensure(!self.node.is_empty(), "node", || "must not be empty".into())?;
        ensure(!self.socket.as_os_str().is_empty(), "socket", || "must not be empty".into())?;
        ensure(self.socket.file_name().is_some() && !self.socket.is_dir(), "socket", || {
            format!("{} is a directory; the socket is a file in one", self.socket.display())
        })?;
        let bytes = self.socket.as_os_str().len();
        ensure(bytes <= SOCKET_BYTES_MAX, "socket", || {
            format!("a path of {bytes} bytes; the system allows a socket {SOCKET_BYTES_MAX}")
        })?;
        ensure(u32::from_str_radix(&self.socket_mode, 8).is_ok_and(|mode| mode <= 0o777), "socketMode", || {
            format!("{:?} is not a file mode in octal, like \"0660\"", self.socket_mode)
        })?;
        ensure(!self.state_dir.as_os_str().is_empty(), "stateDir", || "must not be empty".into())?;
        self.dataplane.check()
    }
}

impl Dataplane {
    /// Workers to run, at least one.
    pub fn worker_count(&self) -> u16 {
        let pinned = u16::try_from(self.cores.len()).unwrap_or(u16::MAX);
        self.workers.unwrap_or(pinned).max(1)
    }

    /// The interface whose RSS decides whose clients are, if one may: with one worker there is nothing to decide.
    pub fn spreads_clients(&self) -> Option<&Interface> {
        if self.worker_count() == 1 || self.clients.spread == ClientSpread::Hash {
            return None;
        }
        let is_named =
            |interface: &&Interface| self.clients.interface.as_ref().is_none_or(|name| interface.name == *name);
        self.interfaces.iter().find(is_named)
    }

    /// What `io` is to open.
    pub fn open_config(&self) -> OpenConfig {
        let interfaces = self.interfaces.iter();
        OpenConfig {
            interfaces: interfaces
                .map(|interface| InterfaceConfig { name: interface.name.clone(), queues: interface.queues.clone() })
                .collect(),
            mode: match self.mode {
                Mode::Auto => ModeChoice::Auto,
                Mode::ZeroCopy => ModeChoice::ZeroCopy,
                Mode::Copy => ModeChoice::Copy,
                Mode::Skb => ModeChoice::Skb,
            },
            workers: self.worker_count().into(),
            frames: self.frames,
            frame_bytes: self.frame_bytes,
            multi_buffer: false,
            huge: self.huge(),
            on_death: match self.on_death {
                OnDeath::Drop => tidegate_io::OnDeath::Drop,
                OnDeath::Pass => tidegate_io::OnDeath::Pass,
            },
            busy_poll: self.idle == Idle::Poll,
            pin_dir: Some(self.bpf_dir.clone()),
        }
    }

    /// Huge pages, as `io` names the choice.
    pub fn huge(&self) -> tidegate_io::HugePages {
        match self.huge_pages {
            HugePages::Auto => tidegate_io::HugePages::Auto,
            HugePages::On => tidegate_io::HugePages::On,
            HugePages::Off => tidegate_io::HugePages::Off,
        }
    }

    fn check_workers(&self) -> Result<(), (String, String)> {
        let distinct: BTreeSet<_> = self.cores.iter().collect();
        ensure(distinct.len() == self.cores.len(), "dataplane.cores", || {
            "a core is listed twice: two workers that poll one core take turns at doing nothing".into()
        })?;
        ensure(self.cores.len() <= usize::from(WORKERS_MAX), "dataplane.cores", || {
            format!("{} cores given; there are at most {WORKERS_MAX} workers", self.cores.len())
        })?;
        let Some(workers) = self.workers else { return Ok(()) };
        ensure((1..=WORKERS_MAX).contains(&workers), "dataplane.workers", || {
            format!("{workers} is outside 1..={WORKERS_MAX}")
        })?;
        ensure(self.cores.is_empty() || self.cores.len() == usize::from(workers), "dataplane.workers", || {
            format!(
                "{workers} workers, but {} cores; give one core per worker, or only one of the two",
                self.cores.len()
            )
        })
    }

    fn check(&self) -> Result<(), (String, String)> {
        ensure(self.bpf_dir.is_absolute(), "dataplane.bpfDir", || {
            format!("{:?} is not an absolute path", self.bpf_dir.display().to_string())
        })?;
        ensure(!self.interfaces.is_empty(), "dataplane.interfaces", || "at least one interface is needed".into())?;
        self.nat_ledger.check("dataplane.natLedger")?;
        self.flows.check()?;
        let mut names = BTreeSet::new();
        for (number, interface) in self.interfaces.iter().enumerate() {
            let field = format!("dataplane.interfaces[{number}]");
            interface.check(&field)?;
            ensure(names.insert(&interface.name), &format!("{field}.name"), || {
                format!("{} is listed twice", interface.name)
            })?;
        }
        if let Some(name) = &self.clients.interface {
            ensure(names.contains(name), "dataplane.clients.interface", || {
                format!("{name:?} is not one of interfaces")
            })?;
        }
        self.check_workers()?;
        ensure((FRAMES_MIN..=FRAMES_MAX).contains(&self.frames), "dataplane.frames", || {
            format!("{} is outside {FRAMES_MIN}..={FRAMES_MAX}", self.frames)
        })?;
        ensure(matches!(self.frame_bytes, 2048 | 4096), "dataplane.frameBytes", || {
            format!("{} is neither 2048 nor 4096", self.frame_bytes)
        })?;
        for (family, flows) in [("ipv4", self.flows_max.ipv4), ("ipv6", self.flows_max.ipv6)] {
            ensure((1..=FLOWS_MAX).contains(&flows), &format!("dataplane.flowsMax.{family}"), || {
                format!("{flows} is outside 1..={FLOWS_MAX}")
            })?;
        }
        ensure(self.metrics.is_none_or(|at| at.port() != 0), "dataplane.metrics", || "0 is not a port".into())?;
        self.gateways.check()?;
        self.routes.check(&self.interfaces)?;
        let percent = self.half_open_percent;
        ensure((1..=100).contains(&percent), "dataplane.halfOpenPercent", || format!("{percent} is outside 1..=100"))?;
        Ok(())
    }
}

impl RecordFiles {
    fn check(&self, field: &str) -> Result<(), (String, String)> {
        let RecordFiles { directory, total_mib_max, keep_days } = self;
        ensure(
            directory.as_ref().is_none_or(|directory| directory.is_absolute()),
            &format!("{field}.directory"),
            || "is not an absolute path".into(),
        )?;
        ensure(*total_mib_max >= 128, &format!("{field}.totalMibMax"), || {
            format!("{total_mib_max} is less than 128, two files' worth")
        })?;
        ensure(*keep_days > 0, &format!("{field}.keepDays"), || "0 would keep nothing".into())
    }

    /// How much is kept.
    pub fn limits(&self) -> Limits {
        const DAY: Duration = Duration::from_secs(86_400);
        Limits {
            total_bytes_max: u64::from(self.total_mib_max) << 20,
            keep: DAY * u32::from(self.keep_days),
            ..Limits::default()
        }
    }
}

impl Flows {
    /// Whether anything is told.
    pub fn is_on(&self) -> bool {
        self.has_notes() || self.tells_nat_events()
    }

    /// Whether workers note anything.
    pub fn has_notes(&self) -> bool {
        self.sampling > 0 || self.connections
    }

    /// Whether somebody is told who had which port.
    pub fn tells_nat_events(&self) -> bool {
        self.ipfix.is_some_and(|ipfix| ipfix.nat_events)
    }

    fn has_destination(&self) -> bool {
        self.files.is_some() || self.json.is_some() || self.ipfix.is_some()
    }

    fn check(&self) -> Result<(), (String, String)> {
        let sampling = self.sampling;
        ensure(sampling <= SAMPLING_MAX, "dataplane.flows.sampling", || {
            format!("{sampling} is above {SAMPLING_MAX}: one packet in so many is told")
        })?;
        self.files.as_ref().map_or(Ok(()), |files| files.check("dataplane.flows.files"))?;
        ensure(self.is_on() || !self.has_destination(), "dataplane.flows", || {
            "somebody is to be told, but nothing: give `sampling`, `connections`, or `natEvents` of `ipfix`".into()
        })?;
        ensure(self.has_destination() || !self.is_on(), "dataplane.flows", || {
            "nobody is told: give `files`, `json` or `ipfix`".into()
        })?;
        let Some(ipfix) = &self.ipfix else { return Ok(()) };
        let field = |name: &str| format!("dataplane.flows.ipfix.{name}");
        exporter::collector(ipfix.collector).map_err(|reason| (field("collector"), reason.to_owned()))?;
        let seconds = ipfix.template_seconds;
        // Collectors forget templates after half an hour at the earliest (RFC 7011 section 8.4 leaves it to them).
        ensure((1..=600).contains(&seconds), &field("templateSeconds"), || format!("{seconds} is outside 1..=600"))?;
        ensure(ipfix.enterprise_number != 0, &field("enterpriseNumber"), || "0 is reserved".into())
    }
}

impl Gateways {
    fn check(&self) -> Result<(), (String, String)> {
        let field = |name: &str| format!("dataplane.gateways.{name}");
        let empty = self.key_file.as_ref().is_some_and(|path| path.as_os_str().is_empty());
        ensure(!empty, &field("keyFile"), || "must not be empty; leave it out to stay alone".into())?;
        ensure(self.port != 0, &field("port"), || "0 is not a port".into())?;
        let interval = self.interval_ms;
        ensure((10..=10_000).contains(&interval), &field("intervalMs"), || {
            format!("{interval} is outside 10..=10000")
        })?;
        let dead_after = self.dead_after_ms;
        ensure(dead_after / 3 >= interval && dead_after <= 30_000, &field("deadAfterMs"), || {
            format!("{dead_after} is less than three times intervalMs ({interval}), or above 30000")
        })?;
        let drain = self.drain_ms;
        ensure(drain <= 30_000, &field("drainMs"), || format!("{drain} is above 30000"))
    }
}

impl Routes {
    fn check(&self, interfaces: &[Interface]) -> Result<(), (String, String)> {
        let field = |name: &str| format!("dataplane.routes.{name}");
        let device = &self.device;
        let is_served = interfaces.iter().any(|interface| interface.name == *device);
        ensure(is_device_name(device) && !device.contains('%') && !is_served, &field("device"), || {
            format!(
                "{device:?} is not a device name (1 to {INTERFACE_NAME_BYTES_MAX} bytes), or is one of the interfaces"
            )
        })?;
        // 0 to 4: what the kernel and `ip` themselves use (uapi/linux/rtnetlink.h, up to RTPROT_STATIC).
        let protocol = self.protocol;
        ensure(protocol > 4, &field("protocol"), || format!("{protocol} is a number of the kernel's own"))?;
        let table = self.table.number();
        ensure(table > 0 && table != 255, &field("table"), || format!("{table} is not a table for routes of ours"))?;
        let Aggregate { ipv4, ipv6 } = self.aggregate;
        ensure((1..=32).contains(&ipv4), &field("aggregate.ipv4"), || format!("{ipv4} is outside 1..=32"))?;
        ensure((1..=128).contains(&ipv6), &field("aggregate.ipv6"), || format!("{ipv6} is outside 1..=128"))?;
        let silence = self.silence_ms;
        ensure((150..=10_000).contains(&silence), &field("silenceMs"), || {
            format!("{silence} is outside 150..=10000 (three beats at least)")
        })?;
        let linger = self.linger_ms;
        ensure(linger <= 30_000, &field("lingerMs"), || format!("{linger} is above 30000"))
    }
}

fn is_device_name(name: &str) -> bool {
    let fits = !name.is_empty() && name.len() <= INTERFACE_NAME_BYTES_MAX;
    fits && !name.contains(|c: char| c == '/' || c.is_whitespace())
}

impl Interface {
    fn check(&self, field: &str) -> Result<(), (String, String)> {
        ensure(is_device_name(&self.name), &format!("{field}.name"), || {
            format!("{:?} is not an interface name (1 to {INTERFACE_NAME_BYTES_MAX} bytes)", self.name)
        })?;
        if let Some(queues) = &self.queues {
            let distinct: BTreeSet<_> = queues.iter().collect();
            ensure(!queues.is_empty(), &format!("{field}.queues"), || {
                "must not be empty; leave it out to serve all queues".into()
            })?;
            ensure(distinct.len() == queues.len(), &format!("{field}.queues"), || "a queue is listed twice".into())?;
        }
        Ok(())
    }
}

fn ensure(holds: bool, field: &str, reason: impl FnOnce() -> String) -> Result<(), (String, String)> {
    if holds { Ok(()) } else { Err((field.to_owned(), reason())) }
}

fn default_socket() -> PathBuf {
    "/run/tidegate/tidegate.sock".into()
}

fn default_socket_mode() -> String {
    "0660".into()
}

fn default_state_dir() -> PathBuf {
    "/var/lib/tidegate".into()
}

fn default_bpf_dir() -> PathBuf {
    "/sys/fs/bpf/tidegate".into()
}

fn one() -> u32 {
    1
}

fn default_template_seconds() -> u16 {
    60
}

/// The number that RFC 5612 keeps for examples: Tidegate has none of its own.
fn default_enterprise_number() -> u32 {
    32473
}

fn default_frames() -> u32 {
    16384
}

fn default_half_open_percent() -> u8 {
    crate::limits::HALF_OPEN_PERCENT
}

fn default_frame_bytes() -> u32 {
    2048
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
node: gw-1
socket: /run/t.sock
socketMode: "0600"
stateDir: /var/lib/t
dataplane:
  interfaces:
    - name: wan0
      queues: [0]
    - name: lan0
  mode: zero-copy
  cores: [1]
  frames: 8192
  frameBytes: 4096
  hugePages: off
  flowsMax: { ipv4: 1000, ipv6: 500 }
  halfOpenPercent: 10
  idle: poll
  onDeath: pass
  clients: { spread: hash, interface: lan0 }
  gateways: { keyFile: /etc/tidegate/key, port: 7000, intervalMs: 100, deadAfterMs: 400, drainMs: 0 }
  routes: { enabled: true, device: vips, protocol: 200, table: 100, metric: 50, aggregate: { ipv4: 24 }, withdrawWhenEmpty: true, silenceMs: 400, lingerMs: 0 }
  flows: { sampling: 1000, connections: true, files: { directory: /var/log/flows, totalMibMax: 256 }, json: "unix:/run/flows.sock", ipfix: { collector: "[2001:db8::9]:4739", natEvents: true } }
control:
  source: { directory: /etc/tidegate/manifests }
  anything: [1, 2, { three: 4 }]
"#;

    fn error(text: &str) -> String {
        NodeFile::parse(text, Path::new("node.yaml")).unwrap_err().to_string()
    }

    #[test]
    fn every_field_is_read_and_controls_section_is_skipped() {
        let file = NodeFile::parse(WHOLE, Path::new("node.yaml")).unwrap();
        assert_eq!((file.node.as_str(), file.socket_mode_bits()), ("gw-1", 0o600));
        let section = &file.dataplane;
        assert_eq!(section.interfaces[0], Interface { name: "wan0".into(), queues: Some(vec![0]) });
        assert_eq!(section.interfaces[1], Interface { name: "lan0".into(), queues: None });
        assert_eq!((section.mode, section.huge_pages), (Mode::ZeroCopy, HugePages::Off));
        assert_eq!((section.idle, section.on_death), (Idle::Poll, OnDeath::Pass));
        assert_eq!(section.clients, Clients { spread: ClientSpread::Hash, interface: Some("lan0".into()) });
        assert_eq!((section.frames, section.frame_bytes, section.cores.as_slice()), (8192, 4096, &[1][..]));
        assert_eq!((section.flows_max, section.half_open_percent), (FlowsMax { ipv4: 1000, ipv6: 500 }, 10));
        let key_file = Some("/etc/tidegate/key".into());
        let gateways = Gateways { key_file, port: 7000, interval_ms: 100, dead_after_ms: 400, drain_ms: 0 };
        assert_eq!(section.gateways, gateways);
        let routes = Routes {
            enabled: true,
            device: "vips".into(),
            protocol: 200,
            table: RouteTable::Number(100),
            metric: 50,
            aggregate: Aggregate { ipv4: 24, ipv6: 128 },
            withdraw_when_empty: true,
            silence_ms: 400,
            linger_ms: 0,
        };
        assert_eq!(section.routes, routes);
        let directory = Some("/var/log/flows".into());
        let flows = Flows {
            sampling: 1000,
            connections: true,
            files: Some(RecordFiles { directory, total_mib_max: 256, keep_days: 30 }),
            json: Some(To::Unix("/run/flows.sock".into())),
            ipfix: Some(Ipfix {
                collector: "[2001:db8::9]:4739".parse().unwrap(),
                observation_domain: 1,
                template_seconds: 60,
                enterprise_number: 32473,
                nat_events: true,
            }),
        };
        assert_eq!(section.flows, flows);
    }

    #[test]
    fn defaults_fill_what_is_left_out() {
        let file = NodeFile::parse("node: a\ndataplane: { interfaces: [{ name: eth0 }] }", Path::new("f")).unwrap();
        assert_eq!(file.socket, Path::new("/run/tidegate/tidegate.sock"));
        assert_eq!(file.socket_mode_bits(), 0o660);
        assert_eq!(file.dataplane.frames, 16384);
        assert_eq!(file.dataplane.flows_max, FlowsMax { ipv4: 1_048_576, ipv6: 262_144 });
        assert_eq!(file.dataplane.half_open_percent, 25);
        assert_eq!((file.dataplane.mode, file.dataplane.on_death), (Mode::Auto, OnDeath::Drop));
        let gateways = &file.dataplane.gateways;
        let routes = &file.dataplane.routes;
        assert_eq!((routes.enabled, routes.protocol, routes.table.number()), (false, 116, 254));
        assert_eq!((&gateways.key_file, gateways.interval_ms, gateways.dead_after_ms), (&None, 50, 300));
        assert_eq!(file.dataplane.bpf_dir, Path::new("/sys/fs/bpf/tidegate"));
        assert!(!file.dataplane.flows.is_on());
    }

    #[test]
    fn workers_are_as_many_as_said_or_as_cores_or_one() {
        for (lines, workers, cores) in [
            ("", 1, &[][..]),
            ("cores: [3]", 1, &[3]),
            ("cores: [2, 3, 5]", 3, &[2, 3, 5]),
            ("workers: 4", 4, &[]),
            ("workers: 2, cores: [6, 7]", 2, &[6, 7]),
        ] {
            let text = format!("node: a\ndataplane: {{ interfaces: [{{ name: eth0 }}], {lines} }}");
            let section = NodeFile::parse(&text, Path::new("f")).unwrap().dataplane;
            assert_eq!((section.worker_count(), section.cores.as_slice()), (workers, cores), "{lines}");
        }
    }

    #[test]
    fn the_interface_that_spreads_clients_is_the_first_or_the_named_one() {
        for (lines, expected) in [
            ("workers: 2", Some("a0")),
            ("workers: 2, clients: { spread: auto }", Some("a0")),
            ("workers: 2, clients: { interface: b0 }", Some("b0")),
            ("cores: [1, 2]", Some("a0")),
            ("workers: 2, clients: { spread: hash, interface: b0 }", None),
            ("workers: 1", None),
        ] {
            let text = format!("node: a\ndataplane: {{ interfaces: [{{ name: a0 }}, {{ name: b0 }}], {lines} }}");
            let section = NodeFile::parse(&text, Path::new("f")).unwrap().dataplane;
            assert_eq!(section.spreads_clients().map(|interface| interface.name.as_str()), expected, "{lines}");
        }
    }

    #[test]
    fn errors_name_file_and_field() {
        let with = |line: &str| format!("node: a\ndataplane:\n  interfaces: [{{ name: eth0 }}]\n{line}\n");
        let table = [
            ("dataplane: {}".to_owned(), "missing field"),
            ("node: a\ndataplane: { interfaces: [] }".into(), "dataplane.interfaces: at least one"),
            ("node: ''\ndataplane: { interfaces: [{ name: e }] }".into(), "node: must not be empty"),
            (
                "node: a\ndataplane: { interfaces: [{ name: e }, { name: e }] }".into(),
                "interfaces[1].name: e is listed twice",
            ),
            ("node: a\ndataplane: { interfaces: [{ name: a-name-of-sixteen }] }".into(), "interfaces[0].name"),
            ("node: a\ndataplane: { interfaces: [{ name: e, queue: 0 }] }".into(), "unknown field `queue`"),
            ("node: a\ndataplane: { interfaces: [{ name: e, queues: [] }] }".into(), "interfaces[0].queues"),
            ("node: a\ndataplane: { interfaces: [{ name: e, queues: [1, 1] }] }".into(), "a queue is listed twice"),
            (with("  bpfDir: tidegate"), "dataplane.bpfDir: \"tidegate\" is not an absolute path"),
            ("node: {}\ndataplane: { interfaces: [{ name: e }] }".into(), "node: give a name"),
            (with("  frameBytes: 1024"), "dataplane.frameBytes: 1024 is neither 2048 nor 4096"),
            (with("  frames: 10"), "dataplane.frames: 10 is outside"),
            (with("  frames: many"), "dataplane.frames"),
            (with("  cores: [1, 1]"), "dataplane.cores: a core is listed twice"),
            (with("  cores: [1, 2]\n  workers: 3"), "dataplane.workers: 3 workers, but 2 cores"),
            (with("  workers: 0"), "dataplane.workers: 0 is outside 1..=64"),
            (with("  workers: 65"), "dataplane.workers: 65 is outside 1..=64"),
            (with(&format!("  cores: {:?}", (0..65).collect::<Vec<_>>())), "dataplane.cores: 65 cores given"),
            (with("  flowsMax: { ipv4: 0 }"), "dataplane.flowsMax.ipv4: 0 is outside"),
            (with("  clients: { interface: wan9 }"), "dataplane.clients.interface: \"wan9\" is not one of interfaces"),
            (with("  clients: { spread: rss }"), "unknown variant `rss`"),
            (with("  clients: hash"), "dataplane.clients: invalid type"),
            (with("  halfOpenPercent: 0"), "dataplane.halfOpenPercent: 0 is outside 1..=100"),
            (with("  gateways: { keyFile: '' }"), "dataplane.gateways.keyFile: must not be empty"),
            (with("  gateways: { port: 0 }"), "dataplane.gateways.port: 0 is not a port"),
            (with("  gateways: { intervalMs: 5 }"), "dataplane.gateways.intervalMs: 5 is outside"),
            (with("  gateways: { intervalMs: 100, deadAfterMs: 250 }"), "dataplane.gateways.deadAfterMs: 250 is less"),
            (with("  gateways: { drainMs: 60000 }"), "dataplane.gateways.drainMs: 60000"),
            (with("  gateways: { secret: x }"), "unknown field `secret`"),
            (with("  routes: { device: a-name-of-sixteen }"), "dataplane.routes.device"),
            (with("  routes: { device: eth0 }"), "dataplane.routes.device: \"eth0\" is not"),
            (with("  routes: { device: 'vip%d' }"), "dataplane.routes.device"),
            (with("  routes: { protocol: 2 }"), "dataplane.routes.protocol: 2 is a number of the kernel's"),
            (with("  routes: { protocol: 256 }"), "dataplane.routes.protocol"),
            (with("  routes: { table: 255 }"), "dataplane.routes.table: 255 is not"),
            (with("  routes: { table: other }"), "`main` or the number of a table"),
            (with("  routes: { aggregate: { ipv4: 33 } }"), "dataplane.routes.aggregate.ipv4: 33 is outside"),
            (with("  routes: { aggregate: { ipv6: 0 } }"), "dataplane.routes.aggregate.ipv6: 0 is outside"),
            (with("  routes: { silenceMs: 50 }"), "dataplane.routes.silenceMs: 50 is outside"),
            (with("  routes: { lingerMs: 40000 }"), "dataplane.routes.lingerMs: 40000"),
            (with("  routes: { daemon: bird }"), "unknown field `daemon`"),
            (with("  natLedger: { totalMibMax: 100 }"), "dataplane.natLedger.totalMibMax: 100 is less than 128"),
            (with("  flows: { sampling: 1000 }"), "dataplane.flows: nobody is told"),
            (with("  flows: { json: 'udp:192.0.2.9:5140' }"), "dataplane.flows: somebody is to be told, but nothing"),
            (
                with("  flows: { sampling: 20000000, files: {} }"),
                "dataplane.flows.sampling: 20000000 is above 16777216",
            ),
            (with("  flows: { sampling: -1, files: {} }"), "dataplane.flows.sampling"),
            (with("  flows: { sampling: 10, json: 'tcp:192.0.2.9:1' }"), "is neither udp:ADDRESS:PORT nor unix:/PATH"),
            (
                with("  flows: { sampling: 10, files: { directory: x } }"),
                "dataplane.flows.files.directory: is not an absolute",
            ),
            (with("  flows: { sampling: 10, files: { keepDays: 0 } }"), "dataplane.flows.files.keepDays: 0 would keep"),
            (with("  flows: { sampling: 10, ipfix: {} }"), "missing field `collector`"),
            (
                with("  flows: { ipfix: { collector: '192.0.2.9:4739' } }"),
                "dataplane.flows: somebody is to be told, but nothing",
            ),
            (
                with("  flows: { sampling: 10, ipfix: { collector: '192.0.2.9:0' } }"),
                "ipfix.collector: 0 is not a port",
            ),
            (
                with("  flows: { sampling: 10, ipfix: { collector: '[ff02::9]:4739' } }"),
                "ipfix.collector: is not the address of one collector",
            ),
            (
                with("  flows: { sampling: 10, ipfix: { collector: '[::1]:1', templateSeconds: 601 } }"),
                "dataplane.flows.ipfix.templateSeconds: 601 is outside",
            ),
            (
                with("  flows: { sampling: 10, ipfix: { collector: '[::1]:1', enterpriseNumber: 0 } }"),
                "dataplane.flows.ipfix.enterpriseNumber: 0 is reserved",
            ),
            (with("  flows: { sample: 10, files: {} }"), "unknown field `sample`"),
            (with("  mode: fast"), "unknown variant `fast`"),
            (with("  speed: high"), "unknown field `speed`"),
            (with("colour: blue"), "unknown field `colour`"),
            (with("socketMode: '0999'"), "socketMode"),
            (with("socket: /"), "socket: / is a directory"),
            (with("socket: /proc"), "socket: /proc is a directory"),
            (with(&format!("socket: /run/{}", "x".repeat(100))), "socket: a path of 105 bytes"),
        ];
        for (text, expected) in table {
            let got = error(&text);
            assert!(got.starts_with("node file node.yaml: "), "{got}");
            assert!(got.contains(expected), "{text}\n gave: {got}\n not: {expected}");
        }
        let missing = NodeFile::read(Path::new("/nonexistent/node.yaml")).unwrap_err().to_string();
        assert!(missing.contains("/nonexistent/node.yaml"), "{missing}");
    }
}
