//! An EgressPolicy read from its manifest.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use kube::ResourceExt;
use serde_json::{Map, Value, json};
use tidegate_api::resource::{Filtering, Mapping, MappingClass, PortTimeout};

use super::addresspool::selector_of;
use super::{Invalid, address};
use crate::crd::egresspolicy as crd;
use crate::model::Object;
use crate::model::egresspolicy::{Addresses, EgressPolicy};

/// Most CIDRs in a list.
const PREFIXES_MAX: usize = 256;
/// Most addresses in a list.
const ADDRESSES_MAX: usize = 64;
/// Most UDP ports with a timer of their own.
const TIMEOUTS_MAX: usize = 14;

/// Reads one policy.
///
/// # Errors
/// When a field cannot be worked with.
pub(super) fn read(name: &str, object: &crd::EgressPolicy) -> Result<EgressPolicy, Invalid> {
    policy(name, object, addresses(&object.spec)?)
}

fn policy(name: &str, object: &crd::EgressPolicy, addresses: Addresses) -> Result<EgressPolicy, Invalid> {
    let spec = &object.spec;
    let limits = spec.limits.unwrap_or_default();
    Ok(EgressPolicy {
        name: name.into(),
        uid: object.uid().unwrap_or_default(),
        created_at_s: object.creation_timestamp().map_or(i64::MAX, |time| time.0.as_second()),
        generation: object.metadata.generation,
        namespaces: selector_of(&spec.namespace_selector, "spec.namespaceSelector")?,
        pods: selector_of(&spec.pod_selector, "spec.podSelector")?,
        destinations: prefixes(&spec.destinations, "spec.destinations")?,
        except: prefixes(&spec.except, "spec.except")?,
        addresses,
        tcp: mapping(spec.tcp, MappingClass::AddressAndPortDependent),
        udp: mapping(spec.udp, MappingClass::EndpointIndependent),
        ports_per_pod_max: limit(limits.ports_per_pod, "spec.limits.portsPerPod")?,
        ports_per_namespace_max: limit(limits.ports_per_namespace, "spec.limits.portsPerNamespace")?,
        udp_timeouts: timeouts(&spec.udp_timeouts)?,
        other_protocols: spec.other_protocols,
        log: spec.log,
        told: object.status.clone().unwrap_or_default(),
    })
}

/// What counts for a policy that cannot be read, if it can be told which pods it selects: they do not get out. Of one whose
/// selectors cannot be read either nobody can tell.
pub(super) fn stand_in(name: &str, value: &Value) -> Option<Box<Object>> {
    let spec = value.get("spec")?.as_object()?;
    // Each part by itself: what is wrong with one does not make another unreadable.
    let part = |fields: &[&str], status: Option<&Value>| {
        let fields = spec.iter().filter(|(field, _)| fields.contains(&field.as_str()));
        let spec: Map<String, Value> = fields.map(|(field, value)| (field.clone(), value.clone())).collect();
        let mut object = json!({ "metadata": value.get("metadata"), "spec": spec });
        if let Some(status) = status {
            object["status"] = status.clone();
        }
        let object: crd::EgressPolicy = super::typed(&object, None).ok()?;
        policy(name, &object, Addresses::Unreadable).ok()
    };
    let selectors = ["namespaceSelector", "podSelector"];
    let mut closed = part(&selectors, value.get("status")).or_else(|| part(&selectors, None))?;
    closed.destinations = part(&["destinations"], None).map(|part| part.destinations).unwrap_or_default();
    closed.except = part(&["except"], None).map(|part| part.except).unwrap_or_default();
    Some(Box::new(Object::EgressPolicy(Box::new(closed))))
}

fn prefixes(listed: &[String], field: &str) -> Result<Vec<IpNet>, Invalid> {
    if listed.len() > PREFIXES_MAX {
        return Err(Invalid::new(field, format!("has {} entries; at most {PREFIXES_MAX} are taken", listed.len())));
    }
    let one = |(index, text): (usize, &String)| {
        let field = || format!("{field}[{index}]");
        let prefix: IpNet =
            text.trim().parse().map_err(|_| Invalid::new(field(), format!("{text:?} is not a CIDR")))?;
        if prefix != prefix.trunc() {
            let message = format!("{prefix} has bits set behind its length; write {}", prefix.trunc());
            return Err(Invalid::new(field(), message));
        }
        Ok(prefix)
    };
    listed.iter().enumerate().map(one).collect()
}

fn addresses(spec: &crd::EgressPolicySpec) -> Result<Addresses, Invalid> {
    match (&spec.address_pool, spec.addresses.as_slice()) {
        (Some(_), [_, ..]) | (None, []) => {
            Err(Invalid::new("spec", "exactly one of addressPool and addresses must be given"))
        }
        (Some(pool), []) if pool.is_empty() => Err(Invalid::new("spec.addressPool", "is empty")),
        (Some(pool), []) => Ok(Addresses::Pool(pool.clone())),
        (None, listed) if listed.len() > ADDRESSES_MAX => {
            let message = format!("has {} entries; at most {ADDRESSES_MAX} are taken", listed.len());
            Err(Invalid::new("spec.addresses", message))
        }
        (None, listed) => {
            let mut seen = BTreeSet::new();
            let one = |(index, text): (usize, &String)| {
                let field = format!("spec.addresses[{index}]");
                let address: IpAddr = address(text, field.clone())?;
                match seen.insert(address) {
                    true => Ok(address),
                    false => Err(Invalid::new(field, format!("{address} is listed twice"))),
                }
            };
            listed.iter().enumerate().map(one).collect::<Result<_, _>>().map(Addresses::Listed)
        }
    }
}

fn mapping(behaviour: Option<crd::Behaviour>, otherwise: MappingClass) -> Mapping {
    let crd::Behaviour { mapping, filtering } = behaviour.unwrap_or_default();
    Mapping {
        class: match mapping {
            None => otherwise,
            Some(crd::Mapping::EndpointIndependent) => MappingClass::EndpointIndependent,
            Some(crd::Mapping::AddressAndPortDependent) => MappingClass::AddressAndPortDependent,
        },
        filtering: match filtering {
            None | Some(crd::Filtering::AddressDependent) => Filtering::AddressDependent,
            Some(crd::Filtering::EndpointIndependent) => Filtering::EndpointIndependent,
        },
    }
}

fn limit(limit: Option<u32>, field: &str) -> Result<Option<u32>, Invalid> {
    match limit {
        Some(0) => Err(Invalid::new(field, "0 would refuse everything; leave it out for no limit")),
        limit => Ok(limit),
    }
}

fn timeouts(listed: &[crd::UdpTimeout]) -> Result<Vec<PortTimeout>, Invalid> {
    if listed.len() > TIMEOUTS_MAX {
        let message = format!("has {} entries; at most {TIMEOUTS_MAX} are taken", listed.len());
        return Err(Invalid::new("spec.udpTimeouts", message));
    }
    let mut seen = BTreeSet::new();
    let one = |(index, timeout): (usize, &crd::UdpTimeout)| {
        let field = format!("spec.udpTimeouts[{index}]");
        let port = super::port(timeout.port, format!("{field}.port"))?;
        if !seen.insert(port) {
            return Err(Invalid::new(format!("{field}.port"), format!("{port} is listed twice")));
        }
        let idle_s = u32::try_from(timeout.seconds).ok().filter(|seconds| (1..=86_400).contains(seconds));
        let idle_s = idle_s.ok_or_else(|| {
            Invalid::new(format!("{field}.seconds"), format!("{} is not 1 to 86400", timeout.seconds))
        })?;
        Ok(PortTimeout { port, idle_s })
    };
    listed.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_spec(spec: &str) -> Result<EgressPolicy, String> {
        let text = format!("metadata: {{ name: shop }}\nspec: {{ {spec} }}");
        let value: serde_json::Value = serde_norway::from_str(&text).unwrap();
        super::super::typed(&value, None)
            .and_then(|object| read("shop", &object))
            .map_err(|invalid| invalid.to_string())
    }

    /// N-001, N-009, N-020 with its recorded deviation: what is left out is what the documents say.
    #[test]
    fn what_is_left_out_has_the_documented_defaults() {
        let policy = read_spec("addresses: [192.0.2.10, \"2001:db8::10\"]").unwrap();
        assert_eq!(policy.udp, Mapping::default());
        assert_eq!(policy.tcp.class, MappingClass::AddressAndPortDependent);
        assert_eq!(policy.tcp.filtering, Filtering::AddressDependent);
        assert!(policy.destinations.is_empty() && policy.except.is_empty() && !policy.log);
        assert_eq!((policy.ports_per_pod_max, policy.ports_per_namespace_max), (None, None));
        let Addresses::Listed(addresses) = &policy.addresses else { panic!("{policy:?}") };
        assert_eq!(addresses.len(), 2);
        assert!(policy.namespaces.selects_all() && policy.pods.selects_all());
    }

    #[test]
    fn every_field_is_read() {
        let policy = read_spec(
            "addressPool: out, namespaceSelector: { matchLabels: { team: a } }, \
             podSelector: { matchExpressions: [{ key: app, operator: Exists }] }, \
             destinations: [0.0.0.0/0, \"2001:db8::/32\"], except: [198.51.100.0/24], \
             tcp: { mapping: EndpointIndependent, filtering: EndpointIndependent }, \
             udp: { mapping: AddressAndPortDependent }, limits: { portsPerPod: 100, portsPerNamespace: 1000 }, \
             udpTimeouts: [{ port: 53, seconds: 30 }], log: true",
        )
        .unwrap();
        assert_eq!(policy.addresses, Addresses::Pool("out".into()));
        assert_eq!((policy.namespaces.to_string(), policy.pods.to_string()), ("team=a".into(), "app".into()));
        assert_eq!((policy.destinations.len(), policy.except.len()), (2, 1));
        assert_eq!(policy.tcp.class, MappingClass::EndpointIndependent);
        assert_eq!(policy.tcp.filtering, Filtering::EndpointIndependent);
        assert_eq!(policy.udp.class, MappingClass::AddressAndPortDependent);
        assert_eq!((policy.ports_per_pod_max, policy.ports_per_namespace_max), (Some(100), Some(1000)));
        assert_eq!(policy.udp_timeouts, [PortTimeout { port: 53, idle_s: 30 }]);
        assert!(policy.log);
    }

    /// N-111: who it selects is refused, unless not even that can be told.
    #[test]
    fn what_cannot_be_read_is_stood_in_for() {
        let stand_in = |spec: &str| {
            let text =
                format!("metadata: {{ name: shop, uid: u1 }}\nspec: {spec}\nstatus: {{ addresses: [192.0.2.10] }}");
            let value: Value = serde_norway::from_str(&text).unwrap();
            super::stand_in("shop", &value).map(|object| match *object {
                Object::EgressPolicy(policy) => *policy,
                other => panic!("{other:?}"),
            })
        };
        for wrong in [
            "addresses: [here]",
            "addresses: 7",
            "addresses: [192.0.2.1], udp: { mapping: Symmetric }",
            "addresses: [192.0.2.1], limits: { portsPerPod: 0 }",
            "addressPool: a, addresses: [192.0.2.1]",
            "unknown: [{}], addresses: [192.0.2.1], destinations: [ten]",
        ] {
            let policy = stand_in(&format!(
                "{{ podSelector: {{ matchLabels: {{ app: web }} }}, {wrong}, except: [10.0.0.0/8] }}"
            ));
            let policy = policy.unwrap_or_else(|| panic!("{wrong}"));
            assert_eq!(
                (policy.addresses, policy.pods.to_string()),
                (Addresses::Unreadable, "app=web".into()),
                "{wrong}"
            );
            assert_eq!((policy.uid.as_str(), policy.told.addresses.as_slice()), ("u1", &["192.0.2.10".to_owned()][..]));
            assert!(policy.destinations.is_empty() && policy.except.len() == 1, "{wrong}");
        }
        for whom in [
            "7",
            "[]",
            "{ podSelector: web }",
            "{ namespaceSelector: { matchExpressions: [{ key: a, operator: Is }] } }",
        ] {
            assert_eq!(stand_in(whom), None, "{whom}");
        }
    }

    #[test]
    fn what_cannot_be_worked_with_is_refused_with_its_field() {
        for (spec, expected) in [
            ("", "exactly one of addressPool and addresses"),
            ("addressPool: a, addresses: [192.0.2.1]", "exactly one of addressPool and addresses"),
            ("addressPool: \"\"", "spec.addressPool: is empty"),
            ("addresses: [192.0.2.1, 192.0.2.1]", "spec.addresses[1]: 192.0.2.1 is listed twice"),
            ("addresses: [192.0.2.0/24]", "spec.addresses[0]"),
            ("addresses: [224.0.0.1]", "multicast"),
            ("addresses: [192.0.2.1], destinations: [ten]", "spec.destinations[0]: \"ten\" is not a CIDR"),
            ("addresses: [192.0.2.1], except: [10.0.0.1/8]", "spec.except[0]: 10.0.0.1/8 has bits set"),
            ("addresses: [192.0.2.1], limits: { portsPerPod: 0 }", "spec.limits.portsPerPod: 0 would refuse"),
            ("addresses: [192.0.2.1], limits: { portsPerPod: -1 }", "spec.limits.portsPerPod"),
            ("addresses: [192.0.2.1], udpTimeouts: [{ port: 0, seconds: 1 }]", "spec.udpTimeouts[0].port"),
            ("addresses: [192.0.2.1], udpTimeouts: [{ port: 53, seconds: 0 }]", "spec.udpTimeouts[0].seconds"),
            (
                "addresses: [192.0.2.1], udpTimeouts: [{ port: 53, seconds: 1 }, { port: 53, seconds: 2 }]",
                "spec.udpTimeouts[1].port: 53 is listed twice",
            ),
            ("addresses: [192.0.2.1], udp: { mapping: Symmetric }", "spec.udp.mapping"),
            (
                "addresses: [192.0.2.1], podSelector: { matchExpressions: [{ key: a, operator: In }] }",
                "spec.podSelector.matchExpressions[0]: operator In needs values",
            ),
        ] {
            let message = read_spec(spec).unwrap_err();
            assert!(message.contains(expected), "{spec} gave {message:?}");
        }
        let many = vec!["10.0.0.0/8"; 257].join(", ");
        assert!(read_spec(&format!("addresses: [192.0.2.1], except: [{many}]")).unwrap_err().contains("at most 256"));
    }
}
