//! What is in `deploy/` for workers, held against the agent: the files that the chart makes are ones it reads, it asks for one
//! capability, and the chart offers every field.
//!
//! Reads the chart, and what is rendered in the directory `TIDEGATE_RENDERED` if that is set.

#![allow(clippy::unwrap_used, reason = "a test whose stage cannot be set has failed")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};
use tidegate_node::wanted::Wanted;

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

/// The fields of the file, from the error for one that it has not.
fn fields() -> BTreeSet<String> {
    let error = Wanted::parse("no-such-field: 1").unwrap_err().concat();
    error.split_once("expected").unwrap().1.split('`').skip(1).step_by(2).map(String::from).collect()
}

/// The agent's objects of a kind in one rendering.
fn objects(path: &Path, kind: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    let documents = serde_norway::Deserializer::from_str(&text).map(|document| Value::deserialize(document).unwrap());
    let ours = |object: &Value| object["metadata"]["labels"]["app.kubernetes.io/component"] == "node-agent";
    documents.filter(|object| object["kind"] == kind && ours(object)).collect()
}

#[test]
fn the_chart_offers_every_field_and_no_other() {
    let schema = std::fs::read_to_string(deploy("chart/tidegate/values.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let offered = schema["definitions"]["nodeAgent"]["properties"].as_object().unwrap().keys().cloned();
    assert!(fields().contains("gateways"), "{:?}", fields());
    assert_eq!(offered.collect::<BTreeSet<_>>(), fields(), "values.schema.json, definitions.nodeAgent");
}

#[test]
fn the_example_is_one_that_the_agent_reads() {
    let text = std::fs::read_to_string(deploy("examples/node-agent.yaml")).unwrap();
    assert_eq!(Wanted::parse(&text).unwrap().egress[0].pods[0].name, "shop/web-0");
}

#[test]
fn the_agent_is_somebody_s_choice() {
    assert!(objects(&deploy("manifests/tidegate.yaml"), "DaemonSet").is_empty());
}

#[test]
fn rendered_files_are_what_the_agent_reads_with_one_capability() {
    let Some(directory) = std::env::var_os("TIDEGATE_RENDERED") else { return };
    let path = Path::new(&directory).join("workers.yaml");
    let [config] = <[Value; 1]>::try_from(objects(&path, "ConfigMap")).unwrap();
    let files = config["data"].as_object().unwrap();
    let names: Vec<&String> = files.keys().collect();
    assert_eq!(names, ["node-agent-w1.yaml", "node-agent-w2.example.net.yaml", "node-agent.yaml"]);
    for (name, text) in files {
        let wanted = Wanted::parse(text.as_str().unwrap()).unwrap_or_else(|said| panic!("{name}: {said:?}\n{text}"));
        assert_eq!(wanted.egress.len(), usize::from(name == "node-agent-w1.yaml"), "{name}");
        assert_eq!((wanted.gateways.len(), wanted.marks.mask), (2, 63));
    }
    let [daemonset] = <[Value; 1]>::try_from(objects(&path, "DaemonSet")).unwrap();
    let pod = &daemonset["spec"]["template"]["spec"];
    assert_eq!((&pod["hostNetwork"], &pod["automountServiceAccountToken"]), (&json!(true), &json!(false)));
    let security = &pod["containers"][0]["securityContext"];
    assert_eq!(security["capabilities"], json!({ "drop": ["ALL"], "add": ["NET_ADMIN"] }));
    assert_eq!(security["readOnlyRootFilesystem"], json!(true));
    assert!(pod["volumes"].as_array().unwrap().iter().all(|volume| volume.get("hostPath").is_none()), "{pod}");
}

/// Gateways are asked where they listen.
#[test]
fn an_agent_knows_the_port_that_gateways_were_given() {
    let Some(directory) = std::env::var_os("TIDEGATE_RENDERED") else { return };
    for (values, port) in [("egress", 7947), ("fleet", 7000)] {
        let configs = objects(&Path::new(&directory).join(format!("{values}.yaml")), "ConfigMap");
        let files: Vec<&str> = configs.iter().filter_map(|config| config["data"]["node-agent.yaml"].as_str()).collect();
        let [file] = files.as_slice() else { panic!("{values}: {files:?}") };
        assert_eq!(Wanted::parse(file).unwrap().kubernetes.unwrap().gateway_port, port, "{values}");
    }
}

#[test]
fn an_agent_that_follows_the_api_has_an_account_and_a_place_for_what_it_said() {
    let Some(directory) = std::env::var_os("TIDEGATE_RENDERED") else { return };
    let path = Path::new(&directory).join("egress.yaml");
    let [config] = <[Value; 1]>::try_from(objects(&path, "ConfigMap")).unwrap();
    let wanted = Wanted::parse(config["data"]["node-agent.yaml"].as_str().unwrap()).unwrap();
    let kubernetes = wanted.kubernetes.unwrap();
    assert_eq!(
        (kubernetes.gateway_label.as_str(), kubernetes.node, kubernetes.hold_unknown),
        ("tidegate.io/gateway", None, true)
    );
    let [account] = <[Value; 1]>::try_from(objects(&path, "ServiceAccount")).unwrap();
    let [daemonset] = <[Value; 1]>::try_from(objects(&path, "DaemonSet")).unwrap();
    let pod = &daemonset["spec"]["template"]["spec"];
    assert_eq!(
        (&pod["serviceAccountName"], &pod["automountServiceAccountToken"]),
        (&account["metadata"]["name"], &json!(true))
    );
    let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
    let state = kubernetes.state_file.parent().unwrap().display().to_string();
    assert!(mounts.iter().any(|mount| mount["mountPath"] == state.as_str()), "{mounts:?}");
    assert!(pod["volumes"].as_array().unwrap().iter().all(|volume| volume.get("hostPath").is_none()), "{pod}");
    assert_eq!(objects(&path, "ClusterRole").len(), 1);
}
