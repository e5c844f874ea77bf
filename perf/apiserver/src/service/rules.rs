//! What a Service may not say.
//!
//! Owns the refusals of values that could never work, with field and words of the real server
//! (`pkg/apis/core/validation`). Refuses to know what is given out: what is taken is found in `addresses`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::{has_cluster_ip, has_external, has_health_check, headless, is, text, words};
use crate::problem::Cause;

/// Everything that is wrong with `value`, written over `old`.
pub fn check(value: &Value, old: Option<&Value>) -> Result<(), Vec<Cause>> {
    let mut causes = Vec::new();
    choices(value, &mut causes);
    ports(value, &mut causes);
    for_types(value, &mut causes);
    addresses(value, &mut causes);
    if let Some(old) = old {
        unchanging(value, old, &mut causes);
    }
    if let Err(more) = check_status(value) {
        causes.extend(more);
    }
    if causes.is_empty() { Ok(()) } else { Err(causes) }
}

/// Everything that is wrong with the status of `value`.
pub fn check_status(value: &Value) -> Result<(), Vec<Cause>> {
    let mut causes = Vec::new();
    let ingress = value.pointer("/status/loadBalancer/ingress").and_then(Value::as_array).cloned().unwrap_or_default();
    if !ingress.is_empty() && !is(value, "LoadBalancer") {
        causes.push(Cause::forbidden(
            "status.loadBalancer.ingress",
            "may only be used when `spec.type` is \"LoadBalancer\"",
        ));
    }
    for (index, entry) in ingress.iter().enumerate() {
        let field = |name: &str| format!("status.loadBalancer.ingress[{index}].{name}");
        let ip = entry.get("ip").and_then(Value::as_str);
        if ip.is_some_and(|ip| ip.parse::<IpAddr>().is_err()) {
            causes.push(Cause::invalid(
                &field("ip"),
                &entry["ip"],
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ));
        }
        if ip.is_none() && entry.get("ipMode").is_some() {
            causes.push(Cause::forbidden(&field("ipMode"), "may not be specified when `ip` is not set"));
        }
        if entry.get("ipMode").is_some_and(|mode| mode != "VIP" && mode != "Proxy") {
            causes.push(Cause::unsupported(&field("ipMode"), &entry["ipMode"], &["Proxy", "VIP"]));
        }
    }
    let conditions = value.pointer("/status/conditions").and_then(Value::as_array);
    for (index, condition) in conditions.into_iter().flatten().enumerate() {
        check_condition(index, condition, &mut causes);
    }
    if causes.is_empty() { Ok(()) } else { Err(causes) }
}

/// `metav1.Condition`: what every condition must have.
fn check_condition(index: usize, condition: &Value, causes: &mut Vec<Cause>) {
    let field = |name: &str| format!("status.conditions[{index}].{name}");
    let said = |name: &str| condition.get(name).and_then(Value::as_str).unwrap_or_default();
    for name in ["type", "reason", "lastTransitionTime"] {
        if said(name).is_empty() {
            causes.push(Cause::required(&field(name), ""));
        }
    }
    if !matches!(said("status"), "True" | "False" | "Unknown") {
        let status = condition.get("status").unwrap_or(&Value::Null);
        causes.push(Cause::unsupported(&field("status"), status, &["False", "True", "Unknown"]));
    }
    let word = |letter: char| letter.is_ascii_alphanumeric() || "_,:".contains(letter);
    let first = said("reason").chars().next();
    if first.is_some_and(|first| !first.is_ascii_alphabetic()) || !said("reason").chars().all(word) {
        let why = "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:'";
        causes.push(Cause::invalid(&field("reason"), &condition["reason"], why));
    }
    if said("message").len() > 32_768 {
        let message = "Too long: may not be more than 32768 bytes".to_owned();
        causes.push(Cause { reason: "FieldValueTooLong", message, field: field("message") });
    }
}

fn choices(value: &Value, causes: &mut Vec<Cause>) {
    let fields: [(&str, &[&str]); 6] = [
        ("type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]),
        ("sessionAffinity", &["ClientIP", "None"]),
        ("externalTrafficPolicy", &["Cluster", "Local"]),
        ("internalTrafficPolicy", &["Cluster", "Local"]),
        ("ipFamilyPolicy", &["SingleStack", "PreferDualStack", "RequireDualStack"]),
        ("trafficDistribution", &["PreferClose", "PreferSameNode", "PreferSameZone"]),
    ];
    for (field, supported) in fields {
        let said = value.pointer(&format!("/spec/{field}"));
        if let Some(said) = said.filter(|said| !said.as_str().is_some_and(|said| supported.contains(&said))) {
            causes.push(Cause::unsupported(&format!("spec.{field}"), said, supported));
        }
    }
    let timeout = value.pointer("/spec/sessionAffinityConfig/clientIP/timeoutSeconds");
    if let Some(timeout) =
        timeout.filter(|timeout| !timeout.as_u64().is_some_and(|seconds| (1..=86_400).contains(&seconds)))
    {
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        causes.push(Cause::invalid(field, timeout, "must be greater than 0 and less than 86400"));
    }
}

fn ports(value: &Value, causes: &mut Vec<Cause>) {
    let ports = value.pointer("/spec/ports").and_then(Value::as_array).cloned().unwrap_or_default();
    if ports.is_empty() && has_cluster_ip(value) && !headless(value) {
        causes.push(Cause::required("spec.ports", ""));
    }
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{index}].{name}");
        let name = port.get("name").and_then(Value::as_str).unwrap_or_default();
        if name.is_empty() && ports.len() > 1 {
            causes.push(Cause::required(&field("name"), ""));
        } else if !name.is_empty() && !names.insert(name.to_owned()) {
            causes.push(Cause::duplicate(&field("name"), &port["name"]));
        }
        let between = |number: &Value| number.as_u64().is_some_and(|number| (1..=65_535).contains(&number));
        let number = port.get("port").cloned().unwrap_or(json!(0));
        if !between(&number) {
            causes.push(Cause::invalid(&field("port"), &number, "must be between 1 and 65535, inclusive"));
        }
        let target = port.get("targetPort").cloned().unwrap_or_default();
        if target.is_number() && !between(&target) {
            causes.push(Cause::invalid(&field("targetPort"), &target, "must be between 1 and 65535, inclusive"));
        }
        let protocol = port.get("protocol").cloned().unwrap_or_default();
        if !matches!(protocol.as_str(), Some("TCP" | "UDP" | "SCTP")) {
            causes.push(Cause::unsupported(&field("protocol"), &protocol, &["SCTP", "TCP", "UDP"]));
        }
        if !numbers.insert((number.to_string(), protocol.to_string())) {
            causes.push(Cause::duplicate(
                &format!("spec.ports[{index}]"),
                &json!({"port": number, "protocol": protocol}),
            ));
        }
    }
}

fn for_types(value: &Value, causes: &mut Vec<Cause>) {
    let said = |field: &str| value.pointer(&format!("/spec/{field}")).filter(|said| !said.is_null()).cloned();
    if let Some(policy) = said("externalTrafficPolicy").filter(|_| !has_external(value)) {
        causes.push(Cause::invalid(
            "spec.externalTrafficPolicy",
            &policy,
            "may only be set for externally-accessible services",
        ));
    }
    if let Some(port) = said("healthCheckNodePort").filter(|port| *port != 0 && !has_health_check(value)) {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        causes.push(Cause::invalid("spec.healthCheckNodePort", &port, why));
    }
    if !is(value, "LoadBalancer") {
        let why = "may only be used when `type` is 'LoadBalancer'";
        for field in ["loadBalancerClass", "allocateLoadBalancerNodePorts", "loadBalancerSourceRanges"] {
            let empty = |said: &Value| said.as_array().is_some_and(Vec::is_empty);
            if said(field).is_some_and(|said| !empty(&said)) {
                causes.push(Cause::forbidden(&format!("spec.{field}"), why));
            }
        }
    }
    if (is(value, "LoadBalancer") || is(value, "NodePort")) && headless(value) {
        let why = format!("may not be set to 'None' for {} services", text(value, "/spec/type"));
        causes.push(Cause::invalid("spec.clusterIPs[0]", &json!("None"), &why));
    }
    if is(value, "ExternalName") && text(value, "/spec/externalName").is_empty() {
        causes.push(Cause::required("spec.externalName", ""));
    }
}

fn addresses(value: &Value, causes: &mut Vec<Cause>) {
    for (index, range) in words(value, "/spec/loadBalancerSourceRanges").iter().enumerate() {
        let parts = range.trim().split_once('/');
        let good = parts.and_then(|(ip, length)| {
            let ip: IpAddr = ip.parse().ok()?;
            let length: u8 = length.parse().ok()?;
            Some(length <= if ip.is_ipv4() { 32 } else { 128 })
        });
        if good != Some(true) {
            let field = format!("spec.loadBalancerSourceRanges[{index}]");
            causes.push(Cause::invalid(
                &field,
                &json!(range),
                "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            ));
        }
    }
    for (index, ip) in words(value, "/spec/externalIPs").iter().enumerate() {
        let unusable = |ip: IpAddr| ip.is_unspecified() || ip.is_loopback() || ip.is_multicast();
        if ip.parse::<IpAddr>().map_or(true, unusable) {
            causes.push(Cause::invalid(
                &format!("spec.externalIPs[{index}]"),
                &json!(ip),
                "must be a valid IP address",
            ));
        }
    }
    let (ips, first) = (words(value, "/spec/clusterIPs"), text(value, "/spec/clusterIP"));
    if !ips.is_empty() && !first.is_empty() && ips[0] != first {
        causes.push(Cause::invalid("spec.clusterIPs", &json!(ips), "first value must match `clusterIP`"));
    }
    let families = words(value, "/spec/ipFamilies");
    if families.len() > 2 || (families.len() == 2 && families[0] == families[1]) {
        causes.push(Cause::invalid("spec.ipFamilies", &json!(families), "may only hold each family once"));
    }
    for (index, family) in families.iter().enumerate().filter(|(_, family)| !matches!(family.as_str(), "IPv4" | "IPv6"))
    {
        causes.push(Cause::unsupported(&format!("spec.ipFamilies[{index}]"), &json!(family), &["IPv4", "IPv6"]));
    }
}

fn unchanging(value: &Value, old: &Value, causes: &mut Vec<Cause>) {
    let (before, now) = (text(old, "/spec/clusterIP"), text(value, "/spec/clusterIP"));
    if has_cluster_ip(old) && has_cluster_ip(value) && !before.is_empty() && before != now {
        causes.push(Cause::invalid("spec.clusterIPs[0]", &json!([now]), "may not change once set"));
    }
    let (before, now) = (old.pointer("/spec/loadBalancerClass"), value.pointer("/spec/loadBalancerClass"));
    if is(old, "LoadBalancer") && is(value, "LoadBalancer") && before != now {
        causes.push(Cause::invalid("spec.loadBalancerClass", now.unwrap_or(&Value::Null), "may not change once set"));
    }
    let (before, now) = (old.pointer("/spec/healthCheckNodePort"), value.pointer("/spec/healthCheckNodePort"));
    if has_health_check(old) && has_health_check(value) && before.is_some() && before != now {
        causes.push(Cause::invalid("spec.healthCheckNodePort", now.unwrap_or(&Value::Null), "field is immutable"));
    }
}
