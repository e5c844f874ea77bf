//! EgressPolicies in a cluster: what their status says of addresses, gateways and ports, and who writes it.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tidegate_api::show::{EgressAddressRow, EgressShown};
use tidegate_apiserver::ApiServer;

use super::stage::{Gateway, PATIENCE, cluster, condition, expect_nothing_denied};

const V4: &str = "192.0.2.10";
const V6: &str = "2001:db8::10";

fn policy(name: &str) -> String {
    format!(
        "apiVersion: tidegate.io/v1alpha1\nkind: EgressPolicy\nmetadata: {{ name: {name} }}\n\
         spec: {{ podSelector: {{ matchLabels: {{ leaves: by-gateway }} }}, addresses: [{V4}, \"{V6}\"] }}\n---\n"
    )
}

fn pod() -> &'static str {
    "apiVersion: v1\nkind: Pod\nmetadata: { name: web-0, namespace: shop, labels: { leaves: by-gateway } }\n\
     spec: { nodeName: w1, containers: [{ name: web, image: web }] }\n\
     status: { phase: Running, podIPs: [{ ip: 10.244.1.11 }, { ip: \"fd00:10:244:1::11\" }] }\n---\n"
}

/// What a dataplane says that knows who carries what, and uses so many ports of the first address.
fn shown(v4: &str, v6: &str, address: &str, used: u64, refused: u64) -> EgressShown {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let row = EgressAddressRow {
        address: ip(address),
        policies: vec!["out".into()],
        protocol: "tcp".into(),
        ports: 64_512,
        used,
        resting: 0,
        held: used,
        refused,
    };
    let carriers = [(ip(V4), v4.to_owned()), (ip(V6), v6.to_owned())].into();
    EgressShown { addresses: vec![row], carriers, ..EgressShown::default() }
}

fn until_status(server: &ApiServer, fits: impl Fn(&Value) -> bool) -> Value {
    server.wait_for("egresspolicies", "", "out", PATIENCE, |object| fits(&object["status"])).unwrap()["status"].clone()
}

fn status_writes(server: &ApiServer) -> usize {
    let requests = server.requests();
    requests.iter().filter(|request| request.is_write() && request.asked.resource == "egresspolicies").count()
}

/// Each gateway tells of the addresses it carries; who has the Lease sums; nobody writes what has not changed (C-006).
#[test]
fn gateways_tell_of_their_addresses_and_ports_and_one_sums() {
    let server = cluster();
    let first = Gateway::start(&server, "gw-1", "");
    let second = Gateway::start(&server, "gw-2", "");
    first.dataplane().egress = shown("gw-1", "gw-2", V4, 700, 0);
    second.dataplane().egress = shown("gw-1", "gw-2", V6, 40, 2);
    server.apply(&(policy("out") + pod())).unwrap();
    let told = until_status(&server, |status| {
        let mut gateways = status["gateways"].as_array().cloned().unwrap_or_default();
        gateways.sort_by_key(|gateway| gateway["name"].to_string());
        (&status["portsUsed"], &status["portsRefused"]) == (&json!(740), &json!(2))
            && (&status["addresses"], &status["pods"]) == (&json!([V4, V6]), &json!(1))
            && gateways
                == [
                    json!({ "name": "gw-1", "addresses": [V4], "portsUsed": 700, "portsRefused": 0 }),
                    json!({ "name": "gw-2", "addresses": [V6], "portsUsed": 40, "portsRefused": 2 }),
                ]
            && [("Valid", "True"), ("Programmed", "True"), ("PortsAvailable", "False")]
                .iter()
                .all(|(kind, is)| condition(&json!({ "status": status }), kind)["status"] == *is)
    });
    assert_eq!(condition(&json!({ "status": told }), "PortsAvailable")["reason"], "PortsExhausted");
    // A few ports more are no news: the dataplane is asked again, and nothing is written.
    first.dataplane().egress = shown("gw-1", "gw-2", V4, 730, 0);
    let before = status_writes(&server);
    std::thread::sleep(Duration::from_secs(11));
    assert_eq!(status_writes(&server), before);
    // An address goes to the other gateway.
    first.dataplane().egress = shown("gw-1", "gw-1", V4, 730, 0);
    second.dataplane().egress = shown("gw-1", "gw-1", V6, 0, 2);
    until_status(&server, |status| {
        status["gateways"] == json!([{ "name": "gw-1", "addresses": [V4, V6], "portsUsed": 730, "portsRefused": 0 }])
            && status["portsUsed"] == 730
    });
    expect_nothing_denied(&server);
}

/// What a gateway that has died said of itself is taken away by another.
#[test]
fn what_a_dead_gateway_said_goes() {
    let server = cluster();
    let first = Gateway::start(&server, "gw-1", "");
    let mut second = Gateway::start(&server, "gw-2", "");
    first.dataplane().egress = shown("gw-1", "gw-2", V4, 7, 0);
    second.dataplane().egress = shown("gw-1", "gw-2", V6, 9, 0);
    server.apply(&policy("out")).unwrap();
    until_status(&server, |status| status["portsUsed"] == 16);
    second.kill();
    first.dataplane().egress = shown("gw-1", "gw-1", V4, 7, 0);
    until_status(&server, |status| {
        let gateways = status["gateways"].as_array().map_or(0, Vec::len);
        gateways == 1 && status["gateways"][0]["name"] == "gw-1" && status["portsUsed"] == 7
    });
    expect_nothing_denied(&server);
}
