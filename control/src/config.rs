//! The node file as this process reads it.
//!
//! Owns the `control` section and the fields both processes share; ignores the `dataplane` section and refuses every
//! unknown field elsewhere, so that a typing error is found at start. Knows nothing of the objects it will lead to.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use tidegate_api::resource::{DeliveryMode, OrphanTcp, PolicyOptions, UnknownPod};

use crate::lease::Timing;
use crate::watch::Exposed;

/// The whole node file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NodeFile {
    /// Name of this gateway's own Node object.
    #[serde(deserialize_with = "tidegate_api::node_file::name")]
    pub node: String,
    /// Contract socket, where the dataplane listens.
    #[serde(default = "socket_default")]
    pub socket: PathBuf,
    /// File mode of the socket; the dataplane's business.
    #[serde(default, rename = "socketMode")]
    _socket_mode: IgnoredAny,
    /// Status is written below this directory.
    #[serde(default = "state_dir_default")]
    pub state_dir: PathBuf,
    /// The other process's section.
    #[serde(default, rename = "dataplane")]
    _dataplane: IgnoredAny,
    /// Our section.
    pub control: Control,
}

/// The `control` section.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Control {
    /// Where objects come from.
    pub source: SourceChoice,
    /// Serve Services of exactly this class; absent: those without a class (S-001).
    #[serde(default)]
    pub load_balancer_class: Option<String>,
    /// Overlay addresses reserved for `fullnat`, inside the own Node's pod CIDRs (V-024).
    #[serde(default, deserialize_with = "addresses")]
    pub fullnat_sources: Vec<IpAddr>,
    /// Numbers of further such addresses in each of the own Node's pod CIDRs, for gateways that share a node file.
    #[serde(default)]
    pub fullnat_hosts: Vec<u32>,
    /// Key of the Maglev hash, 16 bytes as hex, equal on all gateways of a set; empty: the fixed default.
    #[serde(default)]
    pub hash_key: String,
    /// What to answer to TCP without a flow (S-077).
    #[serde(default)]
    pub orphan_tcp: OrphanTcp,
    /// Clamp the MSS to what fits the overlay (V-013).
    #[serde(default = "yes")]
    pub clamp_mss: bool,
    /// UDP port of the overlay, which flannel does not write into its annotations; 8472 unless its `Port` is set.
    #[serde(default = "vxlan_port_default")]
    pub vxlan_port: u16,
    /// Tunnels of load balancers in front of this gateway that end here.
    #[serde(default)]
    pub decap: Option<Decap>,
    /// How packets reach endpoints unless a Service's annotation says otherwise (S-062). Absent: by its
    /// `externalTrafficPolicy`, `node-dsr` for Local and `fullnat` for Cluster.
    #[serde(default)]
    pub delivery_mode: Option<DeliveryMode>,
    /// Follow the hints of EndpointSlices (S-045). Off at gateways unless asked for: two gateways in different zones would
    /// choose different endpoints, and all that enters in one zone would stay there (S-046).
    #[serde(default)]
    pub topology_hints: bool,
    /// Which `externalIPs` may be served; none unless listed (S-023).
    #[serde(default, rename = "externalIPs", deserialize_with = "prefixes")]
    pub external_ips: Vec<IpNet>,
    /// Serve `clusterIPs` to clients whose network routes them here (S-060).
    #[serde(default, rename = "exposeClusterIPs")]
    pub expose_cluster_ips: bool,
    /// Serve node ports at this gateway's own addresses (S-014, S-065).
    #[serde(default)]
    pub expose_node_ports: bool,
    /// Answer load balancers at the `healthCheckNodePort` of Services (S-110). Not beside kube-proxy, which has these ports.
    #[serde(default)]
    pub serve_health_check_node_ports: bool,
    /// Address and port at which this process tells what it counts as OpenMetrics text, `GET /metrics`; absent: nowhere.
    #[serde(default)]
    pub metrics: Option<SocketAddr>,
    /// TCP port of every other Node at which kube-proxy tells whether it is well; the Nodes are asked there whether they live
    /// (S-114). 0: they are not asked.
    #[serde(default = "node_health_port_default")]
    pub node_health_port: u16,
    /// Which of its addresses; empty: all that its Node lists.
    #[serde(default, deserialize_with = "prefixes")]
    pub node_port_addresses: Vec<IpNet>,
    /// Give Services addresses out of AddressPools. If false, somebody else does, and the addresses in status are served
    /// and left alone.
    #[serde(default = "yes")]
    pub allocate: bool,
    /// In a cluster, look at MetalLB's annotations as at our own (M-003).
    #[serde(default)]
    pub metallb_annotations: bool,
    /// Let Services share an address whatever their selectors and traffic policies are (M-012).
    #[serde(default)]
    pub relaxed_sharing: bool,
    /// CIDRs of cluster IPs, which no AddressPool may have addresses of (M-013).
    #[serde(default, rename = "serviceCIDRs", deserialize_with = "prefixes")]
    pub service_cidrs: Vec<IpNet>,
    /// How policies are applied, whatever they say.
    #[serde(default)]
    pub policy: PolicyChoice,
    /// Label of the Nodes that are gateways of this one's set, whatever its value but "false". They share announcements.
    #[serde(default = "gateway_label_default")]
    pub gateway_label: String,
}

/// How policies are applied.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PolicyChoice {
    /// Flows that have begun are not asked again when policies change (P-031).
    #[serde(default)]
    pub sticky: bool,
    /// What becomes of packets from and to an address among a node's pods whose Pod is not known (P-034).
    #[serde(default)]
    pub unknown_pod: UnknownPod,
}

impl PolicyChoice {
    /// The same in the words of the contract.
    pub fn options(self) -> PolicyOptions {
        PolicyOptions { sticky: self.sticky, unknown_pod: self.unknown_pod }
    }
}

/// Tunnels that end here: IP in IP, and GUE if it has a port.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Decap {
    /// Outer destinations: addresses of this machine, or routed to it.
    #[serde(deserialize_with = "addresses")]
    pub addresses: Vec<IpAddr>,
    /// Outer sources: who may send into them.
    #[serde(deserialize_with = "prefixes")]
    pub sources: Vec<IpNet>,
    /// UDP port of GUE.
    #[serde(default)]
    pub gue_port: Option<u16>,
}

/// Where objects come from.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "SourceFields")]
pub enum SourceChoice {
    /// A watched directory of manifests.
    Directory(PathBuf),
    /// The Kubernetes API.
    Kubernetes(KubernetesChoice),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct SourceFields {
    directory: Option<PathBuf>,
    kubernetes: Option<KubernetesChoice>,
}

/// How the API is reached, and which Lease decides who writes to it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct KubernetesChoice {
    /// Absent: as a pod of the cluster.
    pub kubeconfig: Option<PathBuf>,
    /// Namespace of the Lease; absent: that of the pod or of the kubeconfig's context.
    pub lease_namespace: Option<String>,
    /// Its name; the same for all gateways that serve the same class.
    pub lease_name: Option<String>,
    /// How long it lasts (C-020); the same for all gateways.
    pub lease_seconds: LeaseSeconds,
}

/// Times of the Lease in seconds, fractions allowed; each is longer than the next.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct LeaseSeconds {
    /// Another gateway writes when it has not been renewed for so long.
    pub duration: f64,
    /// This one stops writing when it could not renew it for so long.
    pub renew: f64,
    /// It is renewed, or tried for, so often.
    pub retry: f64,
}

impl Default for LeaseSeconds {
    fn default() -> Self {
        let Timing { duration, renew, retry } = Timing::default();
        LeaseSeconds { duration: duration.as_secs_f64(), renew: renew.as_secs_f64(), retry: retry.as_secs_f64() }
    }
}

impl LeaseSeconds {
    /// The same as durations; `None` when they are in no order that works.
    pub fn timing(self) -> Option<Timing> {
        let seconds = |number| Duration::try_from_secs_f64(number).ok();
        let timing =
            Timing { duration: seconds(self.duration)?, renew: seconds(self.renew)?, retry: seconds(self.retry)? };
        let ordered = timing.duration > timing.renew && timing.renew > timing.retry && !timing.retry.is_zero();
        (ordered && timing.duration < Duration::from_secs(3600)).then_some(timing)
    }
}

impl TryFrom<SourceFields> for SourceChoice {
    type Error = &'static str;

    fn try_from(fields: SourceFields) -> Result<Self, Self::Error> {
        match (fields.directory, fields.kubernetes) {
            (Some(directory), None) => Ok(SourceChoice::Directory(directory)),
            (None, Some(kubernetes)) => Ok(SourceChoice::Kubernetes(kubernetes)),
            _ => Err("control.source: exactly one of directory and kubernetes is needed"),
        }
    }
}

impl SourceChoice {
    /// The directory, if it is one.
    pub fn directory(&self) -> Option<&Path> {
        match self {
            SourceChoice::Directory(directory) => Some(directory),
            SourceChoice::Kubernetes(_) => None,
        }
    }
}

/// A node file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read the node file {path}")]
    Unreadable {
        /// Path tried.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not what a node file looks like.
    #[error("node file {path}: {message}")]
    Invalid {
        /// Path read.
        path: PathBuf,
        /// Field and reason.
        message: String,
    },
}

impl NodeFile {
    /// Reads and checks the node file at `path`.
    ///
    /// # Errors
    /// When it cannot be read, is not YAML, has an unknown or missing field, or a value out of range.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = tidegate_api::node_file::text(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_path_buf(), source })?;
        Self::parse(&text).map_err(|message| ConfigError::Invalid { path: path.to_path_buf(), message })
    }

    /// Reads and checks the text of a node file.
    ///
    /// # Errors
    /// Field and reason.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: NodeFile =
            serde_norway::from_str(text).map_err(|error| crate::watch::plain_words(&error.to_string()))?;
        file.check()?;
        Ok(file)
    }

    fn check(&self) -> Result<(), String> {
        if self.node.is_empty() {
            return Err("node: empty; it must be the name of this gateway's Node object".into());
        }
        let control = &self.control;
        let key = &control.hash_key;
        if !key.is_empty() && (key.len() != 32 || !key.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            return Err(format!("control.hashKey: {key:?} is not 16 bytes as 32 hexadecimal digits"));
        }
        for (index, source) in control.fullnat_sources.iter().enumerate() {
            if let Err(reason) = crate::watch::unicast(*source) {
                return Err(format!("control.fullnatSources[{index}]: {source} {reason}"));
            }
            if control.fullnat_sources[..index].contains(source) {
                return Err(format!("control.fullnatSources[{index}]: {source} is listed twice"));
            }
        }
        for (index, host) in control.fullnat_hosts.iter().enumerate() {
            if *host == 0 {
                return Err(format!("control.fullnatHosts[{index}]: 0 is the overlay address of the VTEP itself"));
            }
            if control.fullnat_hosts[..index].contains(host) {
                return Err(format!("control.fullnatHosts[{index}]: {host} is listed twice"));
            }
        }
        if control.metrics.is_some_and(|at| at.port() == 0) {
            return Err("control.metrics: 0 is not a port".into());
        }
        if control.vxlan_port == 0 {
            return Err("control.vxlanPort: 0 is not a port".into());
        }
        if let Some(decap) = &control.decap {
            decap.check(control.vxlan_port)?;
        }
        if control.load_balancer_class.as_deref() == Some("") {
            return Err("control.loadBalancerClass: empty; use null to serve Services without a class".into());
        }
        if control.gateway_label.is_empty() {
            return Err("control.gatewayLabel: empty; leave it out for the default".into());
        }
        if let SourceChoice::Kubernetes(kubernetes) = &control.source {
            for (field, value) in
                [("leaseNamespace", &kubernetes.lease_namespace), ("leaseName", &kubernetes.lease_name)]
            {
                if value.as_deref() == Some("") {
                    return Err(format!("control.source.kubernetes.{field}: empty"));
                }
            }
            if kubernetes.lease_seconds.timing().is_none() {
                let message = "duration must be longer than renew, renew longer than retry, and retry longer than 0";
                return Err(format!("control.source.kubernetes.leaseSeconds: {message}"));
            }
        }
        let chosen = !control.node_port_addresses.is_empty();
        if chosen && !control.expose_node_ports && !control.serve_health_check_node_ports {
            return Err(
                "control.nodePortAddresses: without effect unless exposeNodePorts or serveHealthCheckNodePorts is \
                        true"
                    .into(),
            );
        }
        Ok(())
    }
}

impl Decap {
    fn check(&self, vxlan_port: u16) -> Result<(), String> {
        if self.addresses.is_empty() {
            return Err("control.decap.addresses: empty; leave decap out where no tunnel ends".into());
        }
        for (index, address) in self.addresses.iter().enumerate() {
            let wrong = |reason: &str| Err(format!("control.decap.addresses[{index}]: {address} {reason}"));
            if let Err(reason) = crate::watch::unicast(*address) {
                return wrong(reason);
            }
            if self.addresses[..index].contains(address) {
                return wrong("is listed twice");
            }
            if !self.sources.iter().any(|prefix| prefix.addr().is_ipv4() == address.is_ipv4()) {
                return wrong("has no source of its family in control.decap.sources");
            }
        }
        for (index, prefix) in self.sources.iter().enumerate() {
            let wrong = |reason: &str| Err(format!("control.decap.sources[{index}]: {prefix} {reason}"));
            if prefix.prefix_len() == 0 {
                return wrong("would take packets from anybody");
            }
            if self.sources[..index].contains(prefix) {
                return wrong("is listed twice");
            }
        }
        match self.gue_port {
            Some(0) => Err("control.decap.guePort: 0 is not a port".into()),
            Some(port) if port == vxlan_port => Err("control.decap.guePort: is the port of the overlay".into()),
            _ => Ok(()),
        }
    }
}

impl Control {
    /// Name of the Lease: one for each class, since the Services of each are served by others.
    pub fn lease_name(&self) -> String {
        let given = match &self.source {
            SourceChoice::Kubernetes(kubernetes) => kubernetes.lease_name.clone(),
            SourceChoice::Directory(_) => None,
        };
        given.unwrap_or_else(|| match &self.load_balancer_class {
            None => "tidegate-controller".into(),
            Some(class) => format!("tidegate-controller-{}", class.to_lowercase().replace(['/', '_'], "-")),
        })
    }

    /// Which frontends beyond VIPs are served.
    pub fn exposed(&self) -> Exposed {
        Exposed {
            external_ips: !self.external_ips.is_empty(),
            cluster_ips: self.expose_cluster_ips,
            node_ports: self.expose_node_ports,
            metallb_annotations: self.metallb_annotations,
        }
    }
}

/// Addresses; one that is none is named in the error.
fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpAddr>, D::Error> {
    #[derive(Deserialize)]
    #[serde(try_from = "String")]
    struct Address(IpAddr);

    impl TryFrom<String> for Address {
        type Error = String;

        fn try_from(text: String) -> Result<Self, String> {
            text.parse().map(Address).map_err(|_| format!("{text:?} is not an IP address"))
        }
    }
    Ok(Vec::<Address>::deserialize(deserializer)?.into_iter().map(|address| address.0).collect())
}

/// CIDRs, and plain addresses as the CIDRs of one address; host bits cleared.
fn prefixes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    #[derive(Deserialize)]
    #[serde(try_from = "String")]
    struct Prefix(IpNet);

    impl TryFrom<String> for Prefix {
        type Error = String;

        fn try_from(text: String) -> Result<Self, String> {
            let address = || text.parse::<IpAddr>().map(IpNet::from);
            let prefix = text.parse::<IpNet>().or_else(|_| address());
            prefix.map(|prefix| Prefix(prefix.trunc())).map_err(|_| format!("{text:?} is not a CIDR"))
        }
    }
    Ok(Vec::<Prefix>::deserialize(deserializer)?.into_iter().map(|prefix| prefix.0).collect())
}

fn socket_default() -> PathBuf {
    "/run/tidegate/tidegate.sock".into()
}

fn state_dir_default() -> PathBuf {
    "/var/lib/tidegate".into()
}

fn gateway_label_default() -> String {
    "tidegate.io/gateway".into()
}

fn vxlan_port_default() -> u16 {
    8472 // V-020
}

fn node_health_port_default() -> u16 {
    10256 // kube-proxy's healthzBindAddress
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str = "node: gw-1\ncontrol:\n  source: { directory: /etc/tidegate/manifests }\n";

    #[test]
    fn the_smallest_file_has_sensible_defaults() {
        let file = NodeFile::parse(SMALLEST).unwrap();
        assert_eq!(file.socket, Path::new("/run/tidegate/tidegate.sock"));
        assert_eq!(file.state_dir, Path::new("/var/lib/tidegate"));
        assert_eq!((file.control.vxlan_port, file.control.clamp_mss), (8472, true));
        assert_eq!(file.control.orphan_tcp, OrphanTcp::Drop);
        assert_eq!(file.control.load_balancer_class, None);
        // S-023, S-060, S-065: nothing but VIPs is served unless asked for. S-046: hints are off.
        assert_eq!(file.control.exposed(), Exposed::default());
        assert!(!file.control.topology_hints);
        assert_eq!(file.control.delivery_mode, None);
        assert_eq!(file.control.gateway_label, "tidegate.io/gateway");
    }

    #[test]
    fn what_is_served_beyond_vips_is_said_in_so_many_words() {
        let lines = "  deliveryMode: node-dsr\n  topologyHints: true\n  externalIPs: [192.0.2.0/24, \"2001:db8::7\"]\n  \
                     exposeClusterIPs: true\n  exposeNodePorts: true\n  nodePortAddresses: [198.51.100.9]\n";
        let control = NodeFile::parse(&format!("{SMALLEST}{lines}")).unwrap().control;
        assert_eq!(
            control.exposed(),
            Exposed { external_ips: true, cluster_ips: true, node_ports: true, metallb_annotations: false }
        );
        assert_eq!(
            control.external_ips,
            ["192.0.2.0/24".parse().unwrap(), "2001:db8::7/128".parse::<IpNet>().unwrap()]
        );
        assert_eq!(control.node_port_addresses, ["198.51.100.9/32".parse::<IpNet>().unwrap()]);
        assert_eq!((control.delivery_mode, control.topology_hints), (Some(DeliveryMode::NodeDsr), true));
    }

    #[test]
    fn the_example_in_deploy_is_a_node_file() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/node.yaml");
        let file = NodeFile::read(&path).unwrap();
        assert_eq!(file.control.fullnat_sources.len(), 2);
    }

    #[test]
    fn nonsense_is_refused_with_the_field() {
        let control = |line: &str| format!("{SMALLEST}  {line}\n");
        for (text, expected) in [
            ("control: 3".into(), "control"),
            ("node: gw-1".into(), "control"),
            (format!("{SMALLEST}colour: blue\n"), "colour"),
            (control("fullnatSource: []"), "fullnatSource"),
            ("node: a\ncontrol: { source: { folder: /x } }".into(), "folder"),
            ("node: a\ncontrol: { source: {} }".into(), "exactly one of directory and kubernetes"),
            ("node: a\ncontrol: { source: { directory: /x, kubernetes: {} } }".into(), "exactly one"),
            ("node: a\ncontrol: { source: { kubernetes: { config: /x } } }".into(), "config"),
            ("node: a\ncontrol: { source: { kubernetes: { leaseName: \"\" } } }".into(), "leaseName"),
            ("node: a\ncontrol: { source: { kubernetes: { leaseSeconds: { renew: 20 } } } }".into(), "leaseSeconds"),
            ("node: a\ncontrol: { source: { kubernetes: { leaseSeconds: { retry: -1 } } } }".into(), "leaseSeconds"),
            (control("hashKey: \"xyz\""), "control.hashKey"),
            (control("fullnatSources: [10.0.0.1, 10.0.0.1]"), "control.fullnatSources[1]"),
            (control("fullnatSources: [\"ff02::1\"]"), "control.fullnatSources[0]"),
            (control("fullnatSources: [ten]"), "fullnatSources: \"ten\" is not an IP address"),
            (control("fullnatHosts: [2, 0]"), "control.fullnatHosts[1]"),
            (control("fullnatHosts: [2, 3, 2]"), "control.fullnatHosts[2]: 2 is listed twice"),
            (control("fullnatHosts: [-1]"), "fullnatHosts"),
            (SMALLEST.replace("gw-1", "{ env: TIDEGATE_NO_SUCH_VARIABLE }"), "no variable TIDEGATE_NO_SUCH_VARIABLE"),
            (control("orphanTcp: ignore"), "orphanTcp"),
            (control("metrics: here"), "metrics"),
            (control("metrics: 127.0.0.1:0"), "control.metrics: 0 is not a port"),
            (control("vxlanPort: 0"), "control.vxlanPort"),
            (control("decap: { addresses: [], sources: [] }"), "control.decap.addresses"),
            (control("decap: { addresses: [10.0.0.1] }"), "sources"),
            (control("decap: { addresses: [10.0.0.1], sources: [\"2001:db8::/32\"] }"), "control.decap.addresses[0]"),
            (control("decap: { addresses: [10.0.0.1], sources: [0.0.0.0/0] }"), "control.decap.sources[0]"),
            (control("decap: { addresses: [10.0.0.1], sources: [10.0.0.9], guePort: 8472 }"), "control.decap.guePort"),
            (control("decap: { addresses: [10.0.0.1], sources: [10.0.0.9], guePort: 0 }"), "control.decap.guePort"),
            (control("decap: { addresses: [127.0.0.1], sources: [10.0.0.9] }"), "control.decap.addresses[0]"),
            (control("vxlanPort: 70000"), "vxlanPort"),
            (control("vxlanPort: 70000"), "expected a whole number from 0 to 65535"),
            (control("deliveryMode: dsr"), "deliveryMode"),
            (control("externalIPs: [192.0.2.0/33]"), "externalIPs"),
            (control("externalIps: [192.0.2.0/24]"), "externalIps"),
            (control("exposeClusterIPs: maybe"), "exposeClusterIPs"),
            (control("exposeNodePorts: true\n  nodePortAddresses: [here]"), "nodePortAddresses"),
            (control("nodePortAddresses: [198.51.100.9]"), "exposeNodePorts"),
            (control("gatewayLabel: ''"), "control.gatewayLabel"),
            (SMALLEST.replace("gw-1", "\"\""), "node"),
        ] {
            let message = NodeFile::parse(&text).unwrap_err();
            assert!(message.contains(expected), "{text:?} gave {message:?}, which does not name {expected}");
        }
    }

    #[test]
    fn tunnels_that_end_here_are_named_with_their_sources() {
        let line = "  decap: { addresses: [192.0.2.1, \"2001:db8:1::1\"], sources: [198.51.100.0/24, \"2001:db8::7\"], \
                    guePort: 6080 }\n";
        let decap = NodeFile::parse(&format!("{SMALLEST}{line}")).unwrap().control.decap.unwrap();
        assert_eq!((decap.addresses.len(), decap.gue_port), (2, Some(6080)));
        assert_eq!(decap.sources, ["198.51.100.0/24".parse().unwrap(), "2001:db8::7/128".parse::<IpNet>().unwrap()]);
        assert!(NodeFile::parse(SMALLEST).unwrap().control.decap.is_none());
    }

    #[test]
    fn the_api_is_a_source_with_a_lease_for_each_class() {
        let text = "node: a\ncontrol:\n  source: { kubernetes: { kubeconfig: /etc/kubeconfig } }\n";
        let control = NodeFile::parse(text).unwrap().control;
        assert!(matches!(&control.source, SourceChoice::Kubernetes(choice) if choice.kubeconfig.is_some()));
        assert_eq!(control.lease_name(), "tidegate-controller");
        let control = NodeFile::parse(&format!("{text}  loadBalancerClass: example.com/Edge\n")).unwrap().control;
        assert_eq!(control.lease_name(), "tidegate-controller-example.com-edge");
        let text = "node: a\ncontrol: { source: { kubernetes: {} } }";
        assert!(NodeFile::parse(text).unwrap().control.source.directory().is_none());
    }

    #[test]
    fn the_other_section_is_not_looked_at() {
        assert!(
            NodeFile::parse(&format!("{SMALLEST}dataplane: {{ anything: [1, 2] }}\nsocketMode: \"0660\"\n")).is_ok()
        );
    }
}
