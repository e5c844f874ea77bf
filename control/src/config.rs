//! The node file as this process reads it.
//!
//! Owns the `control` section and the fields both processes share; ignores the `dataplane` section and refuses every
//! unknown field elsewhere, so that a typing error is found at start. Knows nothing of the objects it will lead to.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;
use tidegate_api::resource::OrphanTcp;

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
    #[serde(default)]
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
    #[error("cannot read the node file {path}: {source}")]
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
        let file: NodeFile = serde_norway::from_str(text).map_err(|error| error.to_string())?;
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
        Ok(())
    }
}

fn socket_default() -> PathBuf {
    "/run/tidegate/tidegate.sock".into()
}

fn state_dir_default() -> PathBuf {
    "/var/lib/tidegate".into()
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
            (control("fullnatSources: [ten]"), "fullnatSources"),
            (control("orphanTcp: ignore"), "orphanTcp"),
            (control("vxlanPort: 0"), "control.vxlanPort"),
            (control("vxlanPort: 70000"), "vxlanPort"),
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
