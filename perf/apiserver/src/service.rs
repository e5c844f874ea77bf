//! What the server does to a Service that is written: defaults, what a change of type clears, addresses and ports.
//!
//! Owns the order of these steps; `addresses` has what is given out, `rules` what is refused. Refuses to know load
//! balancers: the status of one is not made here. Follows `pkg/registry/core/service` and `pkg/apis/core/v1/defaults.go` of
//! Kubernetes 1.34.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use crate::object::{Key, section};
use crate::problem::Cause;

/// Cluster addresses and node ports that are given out.
mod addresses;
/// What a Service may not say.
mod rules;

pub use addresses::Addresses;

/// Text at a pointer, empty if there is none.
fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn is(value: &Value, of: &str) -> bool {
    text(value, "/spec/type") == of
}

fn headless(value: &Value) -> bool {
    text(value, "/spec/clusterIP") == "None"
}

fn has_node_ports(value: &Value) -> bool {
    is(value, "NodePort") || is(value, "LoadBalancer")
}

fn has_cluster_ip(value: &Value) -> bool {
    !is(value, "ExternalName")
}

fn has_external(value: &Value) -> bool {
    has_node_ports(value)
        || value.pointer("/spec/externalIPs").and_then(Value::as_array).is_some_and(|list| !list.is_empty())
}

fn has_health_check(value: &Value) -> bool {
    is(value, "LoadBalancer") && text(value, "/spec/externalTrafficPolicy") == "Local"
}

fn absent(spec: &mut Map<String, Value>, field: &str, value: Value) {
    if spec.get(field).is_none_or(|there| there.is_null() || *there == "") {
        spec.insert(field.to_owned(), value);
    }
}

/// Puts in what is understood when it is not said.
pub fn defaults(value: &mut Value) {
    let spec = section(value, "spec");
    absent(spec, "type", json!("ClusterIP"));
    absent(spec, "sessionAffinity", json!("None"));
    if spec.get("sessionAffinity") == Some(&json!("ClientIP")) {
        absent(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10800}}));
    } else {
        spec.remove("sessionAffinityConfig");
    }
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Value::Object(port) = port {
            absent(port, "protocol", json!("TCP"));
            let number = port.get("port").cloned().unwrap_or_default();
            if port.get("targetPort").is_none_or(|target| *target == 0 || *target == "") {
                port.insert("targetPort".to_owned(), number);
            }
        }
    }
    if has_cluster_ip(value) {
        absent(section(value, "spec"), "internalTrafficPolicy", json!("Cluster"));
    }
    if has_external(value) {
        absent(section(value, "spec"), "externalTrafficPolicy", json!("Cluster"));
    }
    if is(value, "LoadBalancer") {
        absent(section(value, "spec"), "allocateLoadBalancerNodePorts", json!(true));
    }
    section(value, "status").entry("loadBalancer").or_insert_with(|| json!({}));
    status_defaults(value);
}

/// Puts into a status what is understood when it is not said: an address is a virtual one.
pub fn status_defaults(value: &mut Value) {
    let ingress = value.pointer_mut("/status/loadBalancer/ingress").and_then(Value::as_array_mut);
    for entry in ingress.into_iter().flatten().filter_map(Value::as_object_mut) {
        if entry.get("ip").is_some() {
            absent(entry, "ipMode", json!("VIP"));
        }
    }
}

/// What becomes of `value`, written at `key` over `old`: carried over, cleared, checked, and given addresses and ports.
///
/// # Errors
/// Everything that is wrong with it.
pub fn admit(addresses: &mut Addresses, key: &Key, value: &mut Value, old: Option<&Value>) -> Result<(), Vec<Cause>> {
    defaults(value);
    if let Some(old) = old {
        carry_over(value, old);
        clear(value, old);
    }
    if !is(value, "LoadBalancer") {
        section(value, "status").insert("loadBalancer".to_owned(), json!({}));
    }
    rules::check(value, old)?;
    addresses.give(key, value, old).map_err(|cause| vec![cause])
}

/// What a status may not say of this Service.
pub fn check_status(value: &Value) -> Result<(), Vec<Cause>> {
    rules::check_status(value)
}

/// What was given before and is not mentioned now stays.
fn carry_over(value: &mut Value, old: &Value) {
    if has_cluster_ip(old) && has_cluster_ip(value) {
        for field in ["clusterIP", "clusterIPs"] {
            if let Some(before) = old.pointer(&format!("/spec/{field}")) {
                let list_shrinks = field == "clusterIPs" && value.pointer("/spec/clusterIPs").is_some();
                if !list_shrinks {
                    absent(section(value, "spec"), field, before.clone());
                }
            }
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if let Some(before) = old.pointer(&format!("/spec/{field}")) {
                absent(section(value, "spec"), field, before.clone());
            }
        }
    }
    if has_node_ports(old) && has_node_ports(value) {
        let before = old.pointer("/spec/ports").and_then(Value::as_array).cloned().unwrap_or_default();
        let ports = section(value, "spec").get_mut("ports").and_then(Value::as_array_mut);
        for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
            let same =
                |other: &&Value| other.get("port") == port.get("port") && other.get("protocol") == port.get("protocol");
            if port.get("nodePort").is_none_or(|number| *number == 0)
                && let Some(number) = before.iter().find(same).and_then(|other| other.get("nodePort")).cloned()
            {
                port.insert("nodePort".to_owned(), number);
            }
        }
    }
    if has_health_check(old)
        && has_health_check(value)
        && let Some(before) = old.pointer("/spec/healthCheckNodePort").cloned()
    {
        let spec = section(value, "spec");
        if spec.get("healthCheckNodePort").is_none_or(|number| *number == 0) {
            spec.insert("healthCheckNodePort".to_owned(), before);
        }
    }
}

/// What the old type had and the new one cannot have goes, unless it was set anew.
fn clear(value: &mut Value, old: &Value) {
    let same = |value: &Value, field: &str| {
        let pointer = format!("/spec/{field}");
        value.pointer(&pointer).is_some() && value.pointer(&pointer) == old.pointer(&pointer)
    };
    let gone = |value: &mut Value, field: &str| {
        if same(value, field) {
            section(value, "spec").remove(field);
        }
    };
    if has_cluster_ip(old) && !has_cluster_ip(value) {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            gone(value, field);
        }
    }
    if has_node_ports(old) && !has_node_ports(value) {
        let before = old.pointer("/spec/ports").and_then(Value::as_array).cloned().unwrap_or_default();
        let ports = section(value, "spec").get_mut("ports").and_then(Value::as_array_mut);
        for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
            if before
                .iter()
                .any(|other| other.get("nodePort").is_some() && other.get("nodePort") == port.get("nodePort"))
            {
                port.remove("nodePort");
            }
        }
    }
    if has_health_check(old) && !has_health_check(value) {
        gone(value, "healthCheckNodePort");
    }
    if has_external(old) && !has_external(value) {
        gone(value, "externalTrafficPolicy");
    }
    if is(old, "LoadBalancer") && !is(value, "LoadBalancer") {
        gone(value, "allocateLoadBalancerNodePorts");
        gone(value, "loadBalancerClass");
    }
}

/// `IPv4` or `IPv6`.
fn family(address: &IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// The strings of the list at `pointer`.
fn words(value: &Value, pointer: &str) -> Vec<String> {
    let list = value.pointer(pointer).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key::new("n", "s")
    }

    fn written(addresses: &mut Addresses, mut value: Value, old: Option<&Value>) -> Value {
        admit(addresses, &key(), &mut value, old).unwrap();
        value
    }

    #[test]
    fn a_load_balancer_gets_addresses_ports_and_defaults() {
        let mut addresses = Addresses::default();
        let value = json!({"spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ipFamilyPolicy": "RequireDualStack",
            "ports": [{"port": 80, "name": "a"}, {"port": 80, "protocol": "UDP", "name": "b"}, {"port": 81, "name": "c"}]}});
        let value = written(&mut addresses, value, None);
        assert_eq!(value["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
        let ips = words(&value, "/spec/clusterIPs");
        assert!(ips[0].starts_with("10.96.") && ips[1].starts_with("fd00:10:96::"), "{ips:?}");
        assert_eq!(value["spec"]["clusterIP"], ips[0]);
        let port = |index: usize| value["spec"]["ports"][index]["nodePort"].as_u64().unwrap();
        assert!((30000..=32767).contains(&port(0)) && port(0) == port(1) && port(0) != port(2));
        assert!(value["spec"]["healthCheckNodePort"].as_u64().is_some());
        assert_eq!(value["spec"]["ports"][0]["targetPort"], 80);
    }

    #[test]
    fn a_change_of_type_clears_what_the_new_type_cannot_have_and_gives_it_back_to_others() {
        let mut addresses = Addresses::default();
        let first = json!({"spec": {"type": "LoadBalancer", "loadBalancerClass": "x/y", "externalTrafficPolicy": "Local", "ports": [{"port": 80, "nodePort": 30080}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}});
        let old = written(&mut addresses, first, None);
        assert_eq!(old["status"]["loadBalancer"]["ingress"][0]["ipMode"], "VIP");
        let mut next = old.clone();
        next["spec"]["type"] = json!("ClusterIP");
        let next = written(&mut addresses, next, Some(&old));
        assert_eq!(next["status"]["loadBalancer"], json!({}));
        for field in
            ["loadBalancerClass", "healthCheckNodePort", "externalTrafficPolicy", "allocateLoadBalancerNodePorts"]
        {
            assert!(next["spec"].get(field).is_none(), "{field}");
        }
        assert!(next["spec"]["ports"][0].get("nodePort").is_none());
        assert_eq!(next["spec"]["clusterIP"], old["spec"]["clusterIP"]);
        let mut other = json!({"spec": {"type": "NodePort", "ports": [{"port": 1, "nodePort": 30080}]}});
        admit(&mut addresses, &Key::new("n", "other"), &mut other, None).unwrap();
    }

    #[test]
    fn what_is_taken_is_not_given_twice() {
        let mut addresses = Addresses::default();
        let value = |ip: &str| json!({"spec": {"type": "NodePort", "clusterIP": ip, "ports": [{"port": 80, "nodePort": 30001}]}});
        written(&mut addresses, value("10.96.0.10"), None);
        let refused = admit(&mut addresses, &Key::new("n", "b"), &mut value("10.96.0.11"), None).unwrap_err();
        assert!(refused[0].message.contains("provided port is already allocated"), "{refused:?}");
        let refused = admit(&mut addresses, &Key::new("n", "b"), &mut value("10.96.0.10"), None).unwrap_err();
        assert!(refused[0].message.contains("provided IP is already allocated"), "{refused:?}");
    }

    #[test]
    fn no_node_ports_where_none_are_wanted() {
        let value =
            json!({"spec": {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{"port": 80}]}});
        let value = written(&mut Addresses::default(), value, None);
        assert!(value["spec"]["ports"][0].get("nodePort").is_none());
    }

    #[test]
    fn one_family_becomes_two_and_two_become_one() {
        let mut addresses = Addresses::default();
        let one = written(&mut addresses, json!({"spec": {"ports": [{"port": 80}]}}), None);
        assert_eq!(one["spec"]["ipFamilies"], json!(["IPv4"]));
        let mut two = one.clone();
        two["spec"]["ipFamilyPolicy"] = json!("PreferDualStack");
        let two = written(&mut addresses, two, Some(&one));
        assert_eq!(words(&two, "/spec/clusterIPs").len(), 2);
        assert_eq!(two["spec"]["clusterIP"], one["spec"]["clusterIP"]);
        let mut back = two.clone();
        back["spec"]["ipFamilyPolicy"] = json!("SingleStack");
        let back = written(&mut addresses, back, Some(&two));
        assert_eq!(back["spec"]["clusterIPs"], one["spec"]["clusterIPs"]);
        assert_eq!(back["spec"]["ipFamilies"], json!(["IPv4"]));
    }

    #[test]
    fn the_plainly_impossible_is_refused_with_the_field() {
        let bad = [
            (json!({"type": "LoadBalancer", "ports": []}), "spec.ports"),
            (json!({"type": "Tide", "ports": [{"port": 1}]}), "spec.type"),
            (json!({"ports": [{"port": 0}]}), "spec.ports[0].port"),
            (json!({"ports": [{"port": 1, "protocol": "ICMP"}]}), "spec.ports[0].protocol"),
            (json!({"ports": [{"port": 1}, {"port": 2}]}), "spec.ports[0].name"),
            (json!({"ports": [{"port": 1, "name": "a"}, {"port": 1, "name": "b"}]}), "spec.ports[1]"),
            (
                json!({"type": "ClusterIP", "externalTrafficPolicy": "Local", "ports": [{"port": 1}]}),
                "spec.externalTrafficPolicy",
            ),
            (
                json!({"type": "ClusterIP", "loadBalancerClass": "a/b", "ports": [{"port": 1}]}),
                "spec.loadBalancerClass",
            ),
            (json!({"type": "LoadBalancer", "clusterIP": "None", "ports": [{"port": 1}]}), "spec.clusterIPs[0]"),
            (
                json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["x"], "ports": [{"port": 1}]}),
                "spec.loadBalancerSourceRanges[0]",
            ),
            (json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 80}]}), "spec.ports[0].nodePort"),
            (json!({"clusterIP": "192.0.2.1", "ports": [{"port": 1}]}), "spec.clusterIPs"),
        ];
        for (spec, field) in bad {
            let refused = admit(&mut Addresses::default(), &key(), &mut json!({"spec": spec}), None).unwrap_err();
            assert!(refused.iter().any(|cause| cause.field == field), "{spec}: {refused:?}");
        }
    }
}
