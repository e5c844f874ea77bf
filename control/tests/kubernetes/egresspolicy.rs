//! EgressPolicies in a cluster: what their status says of addresses, gateways and ports, and who writes it.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tidegate_api::message::AddressConflict;
use tidegate_api::resource::{Body, Kind, ResourceKey};
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

/// Who has written statuses, and as whom.
fn status_writes(server: &ApiServer) -> Vec<(String, String)> {
    let requests = server.requests();
    let writes = requests.iter().filter(|request| request.is_write() && request.asked.resource == "egresspolicies");
    writes.map(|request| (request.user.clone(), request.path.clone())).collect()
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
    // A request is logged when it is answered, which is a moment after its effect is there.
    std::thread::sleep(Duration::from_secs(2));
    let (before, status) = (status_writes(&server), server.get("egresspolicies", "", "out").unwrap());
    std::thread::sleep(Duration::from_secs(11));
    let after = server.get("egresspolicies", "", "out").unwrap();
    assert_eq!(status_writes(&server), before, "{status:#}\n{after:#}");
    // An address goes to the other gateway.
    first.dataplane().egress = shown("gw-1", "gw-1", V4, 730, 0);
    second.dataplane().egress = shown("gw-1", "gw-1", V6, 0, 2);
    until_status(&server, |status| {
        status["gateways"] == json!([{ "name": "gw-1", "addresses": [V4, V6], "portsUsed": 730, "portsRefused": 0 }])
            && status["portsUsed"] == 730
    });
    expect_nothing_denied(&server);
}

/// N-111: what a policy says that nobody can work with is not known, whom it selects is; and what the dataplane still has
/// of it goes on.
#[test]
fn pods_of_a_policy_that_cannot_be_read_stay_in() {
    let server = cluster();
    let mut gateway = Gateway::start(&server, "gw-1", "");
    let bad = policy("out").replace(V4, "somewhere");
    server.apply(&(bad.clone() + pod())).unwrap();
    let key = |kind, name: &str| ResourceKey { kind, name: name.into() };
    let names = |gateway: &Gateway| match gateway.dataplane().resources.get(&key(Kind::Pod, "shop/web-0"))?.body {
        Body::Pod(ref pod) => Some(pod.egress.clone()),
        ref other => panic!("{other:?}"),
    };
    let egress = |gateway: &Gateway| gateway.dataplane().resources.get(&key(Kind::Egress, "out")).cloned();
    gateway.until("who stays in", |gateway| names(gateway).is_some_and(|names| names == ["out"]));
    assert_eq!(egress(&gateway), None);
    let told = gateway.problem("Invalid");
    assert!(told.contains("spec.addresses[0]") && told.contains("the pods that it selects do not get out"), "{told}");
    until_status(&server, |status| condition(&json!({ "status": status }), "Valid")["status"] == "False");
    server.apply(&policy("out")).unwrap();
    gateway.until("out", |gateway| egress(gateway).is_some());
    gateway.without_problem("\"Invalid\"");
    // Wrong again: it goes on, also when control is another one.
    let before = egress(&gateway);
    server.apply(&bad).unwrap();
    assert!(gateway.problem("Invalid").contains("the last good version stays in use"));
    gateway.kill();
    gateway.run();
    assert!(gateway.problem("Invalid").contains("spec.addresses[0]"));
    assert_eq!((egress(&gateway), names(&gateway)), (before, Some(vec!["out".to_owned()])));
    server.delete("egresspolicies", "", "out").unwrap();
    gateway.until("free", |gateway| egress(gateway).is_none() && names(gateway).is_none_or(|names| names.is_empty()));
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

/// An external address that the gateway's own kernel has is told in the status of the policy or the StaticNat.
#[test]
fn an_address_that_the_kernel_has_is_told_in_status() {
    let server = cluster();
    let gateway = Gateway::start(&server, "gw-1", "");
    let (fixed_v4, fixed_v6) = ("192.0.2.99", "2001:db8::99");
    let nat = |name: &str, address: &str, pod: &str| {
        format!(
            "apiVersion: tidegate.io/v1alpha1\nkind: StaticNat\nmetadata: {{ name: {name} }}\n\
             spec: {{ address: \"{address}\", internalAddress: \"{pod}\" }}\n---\n"
        )
    };
    let nats = nat("door-v4", fixed_v4, "10.244.1.11") + &nat("door-v6", fixed_v6, "fd00:10:244:1::11");
    server.apply(&(policy("out") + pod() + &nats)).unwrap();
    let ours = |kind: &'static str, name: &'static str| {
        let told = move |object: &Value| condition(object, "AddressesOurs").clone();
        move |server: &ApiServer, fits: &dyn Fn(&Value) -> bool| {
            let object = server.wait_for(kind, "", name, PATIENCE, |object| {
                condition(object, "Valid")["status"] == "True" && fits(&told(object))
            });
            told(&object.unwrap())
        }
    };
    let (of_policy, of_v4, of_v6) =
        (ours("egresspolicies", "out"), ours("staticnats", "door-v4"), ours("staticnats", "door-v6"));
    of_policy(&server, &Value::is_null);
    let of_kernel = |address: &str, length| AddressConflict {
        address: address.parse().unwrap(),
        mac: "02:00:00:00:01:01".parse().unwrap(),
        device: "wan0".into(),
        withheld: true,
        kernel: Some(length),
    };
    gateway.dataplane().conflicts = [(V4, 32), (V6, 128), (fixed_v4, 32), (fixed_v6, 128)]
        .map(|(address, length)| of_kernel(address, length))
        .into();
    let is_false = |told: &Value| told["status"] == "False";
    for (told, addresses) in [
        (of_policy(&server, &is_false), vec![(V4, 32), (V6, 128)]),
        (of_v4(&server, &is_false), vec![(fixed_v4, 32)]),
        (of_v6(&server, &is_false), vec![(fixed_v6, 128)]),
    ] {
        assert_eq!(told["reason"], "AddressConflict");
        for (address, length) in addresses {
            let mends = format!("on the gateway: ip address del {address}/{length} dev wan0");
            let family = if length == 32 { "IPv4" } else { "IPv6" };
            let message = told["message"].as_str().unwrap();
            assert!(
                message.contains(&mends) && message.contains(&format!("gets out by it over {family}")),
                "{message}"
            );
        }
    }
    assert!(gateway.problem("AddressConflict").contains("also an address of the gateway's own kernel"));
    gateway.dataplane().conflicts.clear();
    for told in [&of_policy as &dyn Fn(&ApiServer, &dyn Fn(&Value) -> bool) -> Value, &of_v4, &of_v6] {
        told(&server, &Value::is_null);
    }
    gateway.without_problem("\"AddressConflict\"");
    expect_nothing_denied(&server);
}
