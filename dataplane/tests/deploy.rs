//! What is in `deploy/`, held against the dataplane: the node files of the rendered manifests are ones it reads, and the
//! chart offers every field of its section.
//!
//! Reads `deploy/manifests/tidegate.yaml`, and what else is rendered in the directory `TIDEGATE_RENDERED` if that is set.

#![allow(clippy::unwrap_used, reason = "a test whose stage cannot be set has failed")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use tidegate_dataplane::config::{HugePages, NodeFile};

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

/// Node files of one rendering: name and text.
fn node_files(path: &Path) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(path).unwrap();
    let documents = serde_norway::Deserializer::from_str(&text).map(|document| Value::deserialize(document).unwrap());
    // The agent on workers has one of its own.
    let of_gateways = |document: &Value| document["metadata"]["labels"]["app.kubernetes.io/component"] == "gateway";
    let config =
        documents.into_iter().find(|document| document["kind"] == "ConfigMap" && of_gateways(document)).unwrap();
    let files = config["data"].as_object().unwrap().iter();
    files.map(|(name, text)| (format!("{}/{name}", path.display()), text.as_str().unwrap().to_owned())).collect()
}

#[test]
fn node_files_are_what_the_dataplane_reads() {
    let mut paths = vec![deploy("manifests/tidegate.yaml")];
    if let Some(directory) = std::env::var_os("TIDEGATE_RENDERED") {
        paths.extend(std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()));
    }
    for path in paths {
        for (name, text) in node_files(&path) {
            // Cargo sets this variable for its tests; pods have NODE_NAME from the downward API.
            let read = NodeFile::parse(&text.replace("NODE_NAME", "CARGO_PKG_NAME"), Path::new(&name));
            let file = read.unwrap_or_else(|error| panic!("{error}\n{text}"));
            assert_eq!((file.node.as_str(), file.socket_mode_bits()), ("tidegate-dataplane", 0o660), "{name}");
            // In a container without a share of them, a huge page that the kernel promises cannot be touched.
            assert_ne!(file.dataplane.huge_pages, HugePages::Auto, "{name}");
            assert_eq!(file.dataplane.bpf_dir, Path::new("/run/tidegate-bpf"), "{name}");
        }
    }
}

#[test]
fn the_chart_offers_every_field_of_the_dataplanes_section() {
    let text = "node: a\ndataplane: { interfaces: [], no-such-field: 1 }";
    let error = NodeFile::parse(text, Path::new("f")).unwrap_err().to_string();
    let fields = error.split_once("expected").unwrap().1.split('`').skip(1).step_by(2).map(String::from);
    let mut expected: BTreeSet<String> = fields.collect();
    assert!(expected.contains("interfaces"), "{error}");
    // What the chart decides, and what has values of its own.
    expected.retain(|field| !["hugePages", "bpfDir", "gateways", "routes"].contains(&field.as_str()));
    let schema: Value =
        serde_json::from_str(&std::fs::read_to_string(deploy("chart/tidegate/values.schema.json")).unwrap()).unwrap();
    let offered = schema["definitions"]["dataplane"]["properties"].as_object().unwrap().keys().cloned();
    assert_eq!(
        offered.collect::<BTreeSet<_>>(),
        expected,
        "deploy/chart/tidegate/values.schema.json, definitions.dataplane"
    );
}
