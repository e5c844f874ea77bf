//! The node file as this process reads it.
//!
//! Owns the `control` section and the fields both processes share; ignores the `dataplane` section and refuses every
//! unknown field elsewhere, so that a typing error is found at start. Knows nothing of the objects it will lead to.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use tidegate_api::resource::{DeliveryMode, OrphanTcp};

use crate::watch::Exposed;

/// The whole node file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NodeFile {
    /// Name of this gateway's own Node object.
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
    /// Which of its addresses; empty: all that its Node lists.
    #[serde(default, deserialize_with = "prefixes")]
    pub node_port_addresses: Vec<IpNet>,
    /// Label of the Nodes that are gateways of this one's set, whatever its value but "false". They share announcements.
    #[serde(default = "gateway_label_default")]
    pub gateway_label: String,
}

/// Where objects come from.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SourceChoice {
    /// A watched directory of manifests.
    pub directory: PathBuf,
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
        let text = std::fs::read_to_string(path)
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
        if control.vxlan_port == 0 {
            return Err("control.vxlanPort: 0 is not a port".into());
        }
        if control.load_balancer_class.as_deref() == Some("") {
            return Err("control.loadBalancerClass: empty; use null to serve Services without a class".into());
        }
        if control.gateway_label.is_empty() {
            return Err("control.gatewayLabel: empty; leave it out for the default".into());
        }
        if !control.node_port_addresses.is_empty() && !control.expose_node_ports {
            return Err("control.nodePortAddresses: without effect unless exposeNodePorts is true".into());
        }
        Ok(())
    }
}

impl Control {
    /// Which frontends beyond VIPs are served.
    pub fn exposed(&self) -> Exposed {
        Exposed {
            external_ips: !self.external_ips.is_empty(),
            cluster_ips: self.expose_cluster_ips,
            node_ports: self.expose_node_ports,
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
        assert_eq!(control.exposed(), Exposed { external_ips: true, cluster_ips: true, node_ports: true });
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
            (control("hashKey: \"xyz\""), "control.hashKey"),
            (control("fullnatSources: [10.0.0.1, 10.0.0.1]"), "control.fullnatSources[1]"),
            (control("fullnatSources: [\"ff02::1\"]"), "control.fullnatSources[0]"),
            (control("fullnatSources: [ten]"), "fullnatSources: \"ten\" is not an IP address"),
            (control("orphanTcp: ignore"), "orphanTcp"),
            (control("vxlanPort: 0"), "control.vxlanPort"),
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
    fn the_other_section_is_not_looked_at() {
        assert!(
            NodeFile::parse(&format!("{SMALLEST}dataplane: {{ anything: [1, 2] }}\nsocketMode: \"0660\"\n")).is_ok()
        );
    }
}
