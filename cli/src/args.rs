//! What an operator may type.
//!
//! One subcommand of `show` for each question of the contract; a test holds the two lists against each other.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;
use tidegate_api::show as api;

use crate::bench::BenchArguments;
use crate::doctor::DoctorArguments;
use crate::nat::NatArguments;
use crate::top::view::Subject;

/// Where the dataplane listens unless the node file says otherwise.
pub const SOCKET_DEFAULT: &str = "/run/tidegate/tidegate.sock";

/// Environment variable that names the socket when `--socket` is not given.
pub const SOCKET_VARIABLE: &str = "TIDEGATE_SOCKET";

/// Flows asked for unless `--limit` says otherwise.
pub const FLOWS_LIMIT_DEFAULT: u32 = 100;

/// Seconds that `tidegate drain` waits unless `--wait` says otherwise.
pub const DRAIN_WAIT_S_DEFAULT: u64 = 5;

/// One command line.
#[derive(Debug, Parser)]
#[command(
    name = "tidegate",
    version,
    about = "Asks a running Tidegate dataplane what it is doing; imports the configuration of other balancers, and tells what policies allow."
)]
#[command(after_help = "\
Examples:
  tidegate show services
  tidegate show backends shop/web
  tidegate show drops
  tidegate explain tcp 192.0.2.7:40000 203.0.113.10:80
  tidegate show counters --json
  tidegate top services
  tidegate show drops --watch
  tidegate capture --inner 'tcp port 80' -w web.pcapng
  tidegate drain
  tidegate health --ready
  tidegate doctor
  tidegate bench
  tidegate nat who 192.0.2.10:40001
  ipvsadm -Sn | tidegate import ipvs > services.yaml
  tidegate policy explain --manifests . --from 192.0.2.7 --to shop/web --port 80")]
pub struct Arguments {
    /// Socket of the dataplane [default: $TIDEGATE_SOCKET, else /run/tidegate/tidegate.sock]
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print the rows of `show` as JSON, for programs
    #[arg(id = "json-before", long = "json")]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the dataplane's view of Services, flows, routes, ports and counters
    Show(ShowArguments),
    /// Tell what would become of a packet and why, step by step; nothing is sent and nothing changes
    Explain(ExplainArguments),
    /// Record packets as they come in and as they leave, with what was decided about each, as pcapng
    Capture(CaptureArguments),
    /// Watch rates, drops, the busiest Services, backends and flows, and workers, on a terminal
    Top(TopArguments),
    /// Give what this gateway announces to the other gateways, and wait until they have it; it goes on forwarding
    Drain {
        /// Longest wait, in seconds
        #[arg(long, default_value_t = DRAIN_WAIT_S_DEFAULT, value_name = "SECONDS")]
        wait: u64,
    },
    /// Take part in announcing again
    Undrain,
    /// Tell whether every worker of the dataplane turns: exit status 0, or 1 with the reason
    Health(HealthArguments),
    /// Look this machine over: what stands in the way of a gateway, why, and the command that mends it
    Doctor(DoctorArguments),
    /// Measure what this machine can do: stages and paths in memory, and packets through namespaces beside the kernel's
    Bench(BenchArguments),
    /// Tell who had an external address and port, now or then
    Nat(NatArguments),
    /// Turn another balancer's configuration into manifests
    Import(ImportArguments),
    /// Tell what the policies in a folder of manifests allow; no dataplane is needed
    Policy(PolicyArguments),
    /// Print what makes a shell complete these commands: `source <(tidegate completion bash)`
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages of all commands
    Man {
        /// Directory to write them to, one file per command [default: the first page goes to standard output]
        #[arg(value_name = "DIR")]
        directory: Option<PathBuf>,
    },
}

/// Arguments of `tidegate top`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidegate top
  tidegate top services --interval 5
  tidegate top backends --service shop/web
  tidegate top drops --once")]
pub struct TopArguments {
    /// What the table is about at first
    #[arg(value_enum, default_value_t = Subject::Workers)]
    pub subject: Subject,
    /// Backends of this Service, as NAMESPACE/NAME
    #[arg(long, value_name = "SERVICE", value_parser = service_name)]
    pub service: Option<String>,
    /// Seconds between two looks
    #[arg(long = "interval", default_value_t = 1, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub interval_s: u64,
    /// Print one frame, made of two looks an interval apart, and end
    #[arg(long)]
    pub once: bool,
}

/// Arguments of `tidegate policy`.
#[derive(Debug, Args)]
pub struct PolicyArguments {
    /// Folder of YAML and JSON manifests, read with all folders below it
    #[arg(long, global = true, default_value = ".", value_name = "DIR")]
    pub manifests: PathBuf,
    /// Fail when an object cannot be read whole
    #[arg(long, global = true)]
    pub strict: bool,
    /// The question.
    #[command(subcommand)]
    pub what: PolicyWhat,
}

/// The questions of `tidegate policy`.
#[derive(Clone, Debug, Subcommand)]
pub enum PolicyWhat {
    /// Answer many questions, one JSON object a line: from, to, protocol, port
    Eval {
        /// Questions; `-` is standard input
        #[arg(long, default_value = "-", value_name = "FILE")]
        queries: PathBuf,
    },
    /// Say in words which rule decides about one connection
    Explain {
        /// Who sends: NAMESPACE/POD or an address
        #[arg(long, value_name = "POD|ADDRESS")]
        from: String,
        /// Who receives: NAMESPACE/POD, an address, or a Service as NAMESPACE/NAME
        #[arg(long, value_name = "POD|ADDRESS|SERVICE")]
        to: String,
        /// Name or number of the protocol
        #[arg(long, default_value = "TCP")]
        protocol: String,
        /// Port of the pod, or of the Service
        #[arg(long)]
        port: Option<u16>,
    },
    /// List policies that are not enforced whole at a gateway, since they are about traffic between pods
    Report,
}

/// Arguments of `tidegate explain`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidegate explain tcp 192.0.2.7:40000 203.0.113.10:80
  tidegate explain udp [2001:db8::7]:5000 [2001:db8:f::a]:53 --json
  tidegate explain tcp 10.244.1.11:8080 10.244.9.2:31000 --flags A
  tidegate explain icmp 10.244.1.11 192.0.2.7 --node w1
  tidegate explain --pcap trace.pcap --number 7 --device wan0")]
pub struct ExplainArguments {
    /// Protocol of the packet
    #[arg(requires = "from", conflicts_with_all = ["hex", "pcap"])]
    pub protocol: Option<ExplainProtocol>,
    /// Sender: ADDRESS:PORT, for ICMP an address alone
    #[arg(requires = "to")]
    pub from: Option<String>,
    /// Receiver, the same way
    pub to: Option<String>,
    /// Device it comes in by [default: the one that leads back to the sender]
    #[arg(long, value_name = "NAME")]
    pub device: Option<String>,
    /// Node that sends it in VXLAN [default: the node of the pod that the sender's address is]
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// TCP flags that are set, as letters: S, A, F, R, P; of SCTP the chunk: S is INIT, A DATA, F SHUTDOWN, R ABORT
    #[arg(long, default_value = "S")]
    pub flags: String,
    /// Time to live, of IPv6 the hop limit
    #[arg(long, default_value_t = 64)]
    pub ttl: u8,
    /// Bytes of payload
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    pub payload: usize,
    /// The frame as hexadecimal digits
    #[arg(long, value_name = "DIGITS", conflicts_with = "pcap")]
    pub hex: Option<String>,
    /// The digits of --hex begin with an IP header, not with an Ethernet header
    #[arg(long, requires = "hex")]
    pub ip: bool,
    /// A frame from this capture file, pcap or pcapng
    #[arg(long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,
    /// Which packet of the capture file, counted from 1
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub number: u32,
    /// Ask what a dataplane has saved in this directory (its `stateDir`), where none runs
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// With --state: the node file; of several, the first one that is there
    #[arg(long, value_name = "FILE", requires = "state", default_value = "/etc/tidegate/node.yaml")]
    pub config: Vec<PathBuf>,
    /// Print the answer as JSON, for programs
    #[arg(long)]
    pub json: bool,
}

/// Protocols that `tidegate explain` puts together by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ExplainProtocol {
    /// A segment
    Tcp,
    /// A datagram
    Udp,
    /// An echo request
    Icmp,
    /// A packet with an INIT; see --flags
    Sctp,
}

/// Arguments of `tidegate capture`.
#[derive(Debug, Args)]
#[command(after_help = "\
Filters are tcpdump's. A packet is taken when it passes as it came in or as it left, and then both forms are written.

Examples:
  tidegate capture -w all.pcapng --seconds 10
  tidegate capture host 192.0.2.7 and tcp port 443 -w one.pcapng -c 100
  tidegate capture --inner 'host 10.244.1.5' | tshark -r - -T fields -e frame.interface_name -e frame.comment
  tidegate capture --dropped | tshark -r -")]
pub struct CaptureArguments {
    /// Frames that are wanted, in tcpdump's language: `host 192.0.2.7 and tcp port 443` [default: all]
    #[arg(value_name = "FILTER")]
    pub filter: Vec<String>,
    /// The same, about the IP packet without VXLAN
    #[arg(long, value_name = "FILTER")]
    pub inner: Option<String>,
    /// File to write; `-` is standard output
    #[arg(short = 'w', long, default_value = "-", value_name = "FILE")]
    pub write: PathBuf,
    /// Only packets that come in or leave by this device
    #[arg(long, value_name = "NAME")]
    pub device: Option<String>,
    /// Only packets that are dropped
    #[arg(long)]
    pub dropped: bool,
    /// As they come in, as they leave, or both
    #[arg(long, value_enum, default_value_t = CaptureForms::Both)]
    pub forms: CaptureForms,
    /// End after so many packets; before and after count as two
    #[arg(short = 'c', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: Option<u64>,
    /// Keep so many bytes of each packet
    #[arg(short = 's', long = "snaplen", value_name = "BYTES", default_value_t = tidegate_api::capture::SNAP_BYTES_DEFAULT,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub snap_bytes: u32,
    /// Take at most so many packets a second at each worker; the rest is counted
    #[arg(long = "rate", value_name = "PACKETS", default_value_t = tidegate_api::capture::RATE_PER_S_DEFAULT,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub rate_per_s: u32,
    /// Say nothing but errors
    #[arg(short = 'q', long)]
    pub quiet: bool,
}

/// Which forms of a packet `tidegate capture` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum CaptureForms {
    /// As they come in and as they leave
    Both,
    /// As they come in
    Before,
    /// As they leave
    After,
}

impl From<CaptureForms> for tidegate_api::capture::Forms {
    fn from(forms: CaptureForms) -> Self {
        match forms {
            CaptureForms::Both => Self::Both,
            CaptureForms::Before => Self::Before,
            CaptureForms::After => Self::After,
        }
    }
}

/// Arguments of `tidegate health`.
#[derive(Debug, Args)]
pub struct HealthArguments {
    /// Also ask whether control has told the dataplane what it is here for
    #[arg(long)]
    pub ready: bool,
    /// Longest wait for the workers, in seconds
    #[arg(long = "timeout", default_value_t = 5, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout_s: u64,
}

/// Arguments of `tidegate import`.
#[derive(Debug, Args)]
pub struct ImportArguments {
    /// Whose configuration.
    #[command(subcommand)]
    pub from: ImportFrom,
}

/// Whose configuration `tidegate import` reads.
#[derive(Clone, Debug, Subcommand)]
pub enum ImportFrom {
    /// The kernel's IPVS, as `ipvsadm -Sn` prints it; manifests go to standard output
    Ipvs {
        /// What `ipvsadm -Sn` printed; `-` is standard input
        #[arg(default_value = "-", value_name = "FILE")]
        file: PathBuf,
        /// Namespace of the manifests
        #[arg(long, default_value = "default", value_name = "NAME", value_parser = namespace)]
        namespace: String,
    },
}

/// Arguments of `tidegate show`.
#[derive(Debug, Args)]
pub struct ShowArguments {
    /// Print the rows as JSON, for programs
    #[arg(long, global = true)]
    pub json: bool,
    /// Ask again every so many seconds until interrupted
    #[arg(long = "watch", global = true, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
          require_equals = true, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub watch_s: Option<u64>,
    /// The question.
    #[command(subcommand)]
    pub what: What,
}

/// The questions of `tidegate show`, in the order of the contract.
#[derive(Clone, Debug, Subcommand)]
pub enum What {
    /// Frontends: addresses, ports, delivery mode, backends behind each
    Services {
        /// Only this Service, as NAMESPACE/NAME
        #[arg(value_parser = service_name, conflicts_with = "namespace")]
        service: Option<String>,
        /// Only Services of this namespace
        #[arg(long, value_name = "NAME", value_parser = namespace)]
        namespace: Option<String>,
        /// Only frontends at this address, or in this network
        #[arg(long, value_name = "ADDRESS|CIDR", value_parser = network)]
        address: Option<IpNet>,
        /// Only frontends of this protocol: tcp, udp or sctp
        #[arg(long, value_parser = protocol)]
        protocol: Option<u8>,
    },
    /// Endpoints behind the frontends, with weights, states and counts
    Backends {
        /// Only this Service, as NAMESPACE/NAME
        #[arg(value_parser = service_name, conflicts_with = "namespace")]
        service: Option<String>,
        /// Only Services of this namespace
        #[arg(long, value_name = "NAME", value_parser = namespace)]
        namespace: Option<String>,
        /// Only endpoints on this node
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
        /// Only endpoints at this address, or in this network
        #[arg(long, value_name = "ADDRESS|CIDR", value_parser = network)]
        address: Option<IpNet>,
    },
    /// Live flows with their four address pairs and counts
    Flows {
        /// Most flows to print
        #[arg(long, default_value_t = FLOWS_LIMIT_DEFAULT, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// Which flows.
        #[command(flatten)]
        wanted: FlowArguments,
    },
    /// Other nodes of the overlay and how they are reached
    Tunnels {
        /// Only this node
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
    },
    /// Routes in use, the kernel's and the overlay's
    Routes {
        /// Only routes that this address could take; the longest prefix is taken
        #[arg(long, value_name = "ADDRESS")]
        to: Option<IpAddr>,
        /// Only routes that leave by this device
        #[arg(long, value_name = "NAME")]
        device: Option<String>,
    },
    /// Neighbours in use with their link-layer addresses
    Neighbours {
        /// Only this address, or this network
        #[arg(long, value_name = "ADDRESS|CIDR", value_parser = network)]
        address: Option<IpNet>,
        /// Only neighbours on this device
        #[arg(long, value_name = "NAME")]
        device: Option<String>,
    },
    /// Workers: core, generation reached, turns, flows, frames held
    Workers,
    /// Ports: device, queue, mode read back from the kernel, socket counters
    Ports {
        /// Only ports of this device
        #[arg(long, value_name = "NAME")]
        device: Option<String>,
    },
    /// All counters, and whether every packet is accounted for
    Counters,
    /// Why packets were dropped
    Drops {
        /// Also print reasons that never happened
        #[arg(long)]
        all: bool,
        /// Only this reason, also if it never happened
        #[arg(long, value_name = "REASON")]
        reason: Option<String>,
        /// Only reasons of this stage
        #[arg(long, value_name = "STAGE")]
        stage: Option<String>,
        /// Only reasons of this severity
        #[arg(long, value_name = "SEVERITY", value_parser = ["info", "warning", "error"])]
        severity: Option<String>,
    },
    /// Gateways of the set: who lives, who announces how many VIPs
    Gateways,
    /// Routes to VIPs in the kernel, for routing daemons
    Announcements,
    /// Network policies: flows that each rule let begin, packets that it stopped
    Policies {
        /// Also print rules that nothing has met
        #[arg(long)]
        all: bool,
        /// Only policies of this namespace
        #[arg(long, value_name = "NAME", value_parser = namespace)]
        namespace: Option<String>,
    },
    /// Ports of external addresses in use and refused, and the pods that hold most
    Egress {
        /// Only this external address, or this network
        #[arg(long, value_name = "ADDRESS|CIDR", value_parser = network)]
        address: Option<IpNet>,
        /// Only pods of this namespace
        #[arg(long, value_name = "NAME", value_parser = namespace)]
        namespace: Option<String>,
    },
    /// Whether control is connected, and when the dataplane heard it last
    Control,
    /// What keeps the gateway from its work: workers with old tables, links that are down, empty fill rings
    Readiness,
}

/// Which flows `tidegate show flows` prints: those that everything fits that is given.
#[derive(Clone, Debug, Default, Args)]
pub struct FlowArguments {
    /// Only flows of this Service, as NAMESPACE/NAME
    #[arg(long, value_name = "SERVICE", value_parser = service_name)]
    pub service: Option<String>,
    /// Only flows that this address, or one of this network, began
    #[arg(long, value_name = "ADDRESS|CIDR", value_parser = network)]
    pub client: Option<IpNet>,
    /// Only flows to this address, or network, as their client knows it
    #[arg(long, value_name = "ADDRESS|CIDR", value_parser = network)]
    pub vip: Option<IpNet>,
    /// Only flows that leave with this source address
    #[arg(long, value_name = "ADDRESS|CIDR", value_parser = network)]
    pub source: Option<IpNet>,
    /// Only flows that are sent to this address, or network
    #[arg(long, value_name = "ADDRESS|CIDR", value_parser = network)]
    pub backend: Option<IpNet>,
    /// Only flows of this protocol: tcp, udp, sctp, icmp, icmpv6, or a number
    #[arg(long, value_parser = protocol)]
    pub protocol: Option<u8>,
}

impl FlowArguments {
    /// The same, as the contract puts it.
    pub fn filter(&self) -> api::FlowFilter {
        let FlowArguments { service, client, vip, source, backend, protocol } = self.clone();
        api::FlowFilter { protocol, client, vip, source, backend, service }
    }
}

impl Arguments {
    /// The socket to ask at: the argument, else [`SOCKET_VARIABLE`], else [`SOCKET_DEFAULT`].
    pub fn socket(&self) -> PathBuf {
        choose_socket(self.socket.clone(), std::env::var_os(SOCKET_VARIABLE))
    }
}

/// First that is there: the argument, the variable unless empty, the default.
fn choose_socket(argument: Option<PathBuf>, variable: Option<OsString>) -> PathBuf {
    argument
        .or_else(|| variable.filter(|value| !value.is_empty()).map(PathBuf::from))
        .unwrap_or_else(|| PathBuf::from(SOCKET_DEFAULT))
}

impl What {
    /// The question as the contract puts it.
    pub fn question(&self) -> api::Show {
        match self {
            What::Services { .. } => api::Show::Services,
            What::Backends { service, .. } => api::Show::Backends { service: service.clone() },
            What::Flows { limit, wanted } => api::Show::Flows { limit: *limit, filter: wanted.filter() },
            What::Tunnels { .. } => api::Show::Tunnels,
            What::Routes { .. } => api::Show::Routes,
            What::Neighbours { .. } => api::Show::Neighbours,
            What::Workers => api::Show::Workers,
            What::Ports { .. } => api::Show::Ports,
            What::Counters => api::Show::Counters,
            What::Drops { .. } => api::Show::Drops,
            What::Gateways => api::Show::Gateways,
            What::Announcements => api::Show::Announcements,
            What::Policies { .. } => api::Show::Policies,
            What::Egress { .. } => api::Show::Egress,
            What::Control => api::Show::Control,
            What::Readiness => api::Show::Readiness,
        }
    }
}

/// Accepts what Kubernetes takes for a namespace: an RFC 1123 label.
fn namespace(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    match !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(allowed)
        && !text.starts_with('-')
        && !text.ends_with('-')
    {
        true => Ok(text.into()),
        false => Err("a namespace has up to 63 small letters, digits and inner hyphens".into()),
    }
}

/// Accepts an address, which is the network of itself, or a network.
fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse::<IpAddr>().map(IpNet::from).or_else(|_| text.parse::<IpNet>());
    network
        .map(|network| network.trunc())
        .map_err(|_| "an address, or a network like 192.0.2.0/24 or 2001:db8::/32".into())
}

/// Accepts the name or the number of a protocol that has flows.
fn protocol(text: &str) -> Result<u8, String> {
    match text.to_ascii_lowercase().as_str() {
        "icmp" => Ok(1),
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "icmpv6" => Ok(58),
        "sctp" => Ok(132),
        other => other.parse().map_err(|_| "tcp, udp, sctp, icmp, icmpv6, or a number up to 255".into()),
    }
}

/// Accepts `namespace/name`, two non-empty halves.
fn service_name(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => Ok(text.into()),
        _ => Err("a Service is named NAMESPACE/NAME, like default/web; `tidegate show services` lists them".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_capture_of_nothing_is_refused() {
        for (option, value) in [("--rate", "0"), ("--snaplen", "0"), ("-c", "0"), ("--seconds", "0")] {
            let refused = Arguments::try_parse_from(["tidegate", "capture", "-w", "a.pcapng", option, value]);
            let told = refused.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(told.contains("invalid value '0'") && told.contains(option), "{option}: {told}");
        }
    }

    /// The contract's own list of questions, read from the error its decoder gives for an unknown one.
    fn questions_of_the_contract() -> BTreeSet<String> {
        let error = serde_json::from_str::<api::Show>(r#"{"what":"?"}"#).unwrap_err().to_string();
        let expected = error.split_once("expected").expect("serde lists the variants").1;
        expected.split('`').skip(1).step_by(2).map(String::from).collect()
    }

    #[test]
    fn every_question_of_the_contract_has_a_subcommand_of_the_same_name_that_asks_it() {
        let contract = questions_of_the_contract();
        assert!(contract.len() >= 10, "{contract:?}");
        let command = Arguments::command();
        let show = command.find_subcommand("show").unwrap();
        let offered: BTreeSet<String> = show.get_subcommands().map(|sub| sub.get_name().into()).collect();
        assert_eq!(offered, contract);
        for name in &contract {
            let arguments = Arguments::try_parse_from(["tidegate", "show", name]).unwrap();
            let Command::Show(show) = arguments.command else { panic!("{name}") };
            let asked = serde_json::to_value(show.what.question()).unwrap();
            assert_eq!(asked["what"], **name);
        }
    }

    #[test]
    fn the_socket_comes_from_the_argument_then_the_variable_then_the_default() {
        let variable = || Some(OsString::from("/from/variable"));
        assert_eq!(choose_socket(Some("/from/argument".into()), variable()), PathBuf::from("/from/argument"));
        assert_eq!(choose_socket(None, variable()), PathBuf::from("/from/variable"));
        assert_eq!(choose_socket(None, Some(OsString::new())), PathBuf::from(SOCKET_DEFAULT));
        assert_eq!(choose_socket(None, None), PathBuf::from(SOCKET_DEFAULT));
    }

    #[test]
    fn an_import_reads_standard_input_unless_told_otherwise() {
        let read = |line: &[&str]| match Arguments::try_parse_from(line).map(|arguments| arguments.command) {
            Ok(Command::Import(ImportArguments { from: ImportFrom::Ipvs { file, namespace } })) => {
                Ok((file, namespace))
            }
            other => Err(format!("{other:?}")),
        };
        assert_eq!(read(&["tidegate", "import", "ipvs"]), Ok(("-".into(), "default".into())));
        let line = ["tidegate", "import", "ipvs", "rules", "--namespace", "shop"];
        assert_eq!(read(&line), Ok(("rules".into(), "shop".into())));
        for name in ["", "-a", "a-", "Shop", "a/b", "a: b"] {
            assert!(read(&["tidegate", "import", "ipvs", &format!("--namespace={name}")]).is_err(), "{name}");
        }
    }

    #[test]
    fn arguments_reach_the_question_and_nonsense_is_refused() {
        let question = |line: &[&str]| {
            let arguments = Arguments::try_parse_from(line).map_err(|error| error.to_string())?;
            let Command::Show(show) = arguments.command else { panic!("{line:?}") };
            Ok::<_, String>(show.what.question())
        };
        let flows = |limit, filter| api::Show::Flows { limit, filter };
        assert_eq!(
            question(&["tidegate", "show", "backends", "shop/web"]),
            Ok(api::Show::Backends { service: Some("shop/web".into()) })
        );
        assert_eq!(question(&["tidegate", "show", "backends"]), Ok(api::Show::Backends { service: None }));
        assert_eq!(question(&["tidegate", "show", "flows"]), Ok(flows(FLOWS_LIMIT_DEFAULT, Default::default())));
        assert_eq!(question(&["tidegate", "show", "flows", "--limit", "7"]), Ok(flows(7, Default::default())));
        let line =
            "tidegate show flows --client 192.0.2.7 --vip 203.0.113.0/24 --backend 2001:db8::9/64 --protocol UDP";
        let asked = api::FlowFilter {
            protocol: Some(17),
            client: Some("192.0.2.7/32".parse().unwrap()),
            vip: Some("203.0.113.0/24".parse().unwrap()),
            source: None,
            backend: Some("2001:db8::/64".parse().unwrap()),
            service: Some("shop/web".into()),
        };
        let line: Vec<&str> = line.split(' ').chain(["--service", "shop/web"]).collect();
        assert_eq!(question(&line), Ok(flows(FLOWS_LIMIT_DEFAULT, asked)));
        for (flag, value) in
            [("--client", "192.0.2"), ("--backend", "::/129"), ("--protocol", "http"), ("--service", "web")]
        {
            assert!(question(&["tidegate", "show", "flows", flag, value]).is_err(), "{flag} {value}");
        }
        assert!(question(&["tidegate", "show", "services", "shop/web", "--namespace", "shop"]).is_err());
        assert!(question(&["tidegate", "show", "drops", "--severity", "bad"]).is_err());
        assert_eq!(question(&["tidegate", "show", "services", "shop/web"]), Ok(api::Show::Services));
        for name in ["web", "/web", "shop/", "shop/web/80", ""] {
            for what in ["services", "backends"] {
                let error = question(&["tidegate", "show", what, name]).unwrap_err();
                assert!(error.contains("NAMESPACE/NAME"), "{name:?}: {error}");
            }
        }
        assert!(question(&["tidegate", "show", "flows", "--limit", "0"]).is_err());
        assert!(question(&["tidegate", "show", "flows", "--limit", "4294967296"]).is_err());
        let error = question(&["tidegate", "show", "service"]).unwrap_err();
        assert!(error.contains("services"), "a near miss is named: {error}");
    }
}
