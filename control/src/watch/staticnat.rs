//! A StaticNat read from its manifest.

use std::collections::BTreeSet;

use kube::ResourceExt;
use serde_json::Value;
use tidegate_api::resource::PortForward;

use super::{Invalid, address, port, protocol};
use crate::crd::staticnat as crd;
use crate::model::Name;
use crate::model::staticnat::{StaticNat, Target};

/// Most forwarded ports.
const PORTS_MAX: usize = 256;

/// An empty list is no list of no ports: whoever made it wanted less than the whole address, which is what leaving it out
/// means.
///
/// # Errors
/// When the list is there and empty.
pub(super) fn not_of_no_port(object: &Value) -> Result<(), Invalid> {
    match object.pointer("/spec/ports").and_then(Value::as_array) {
        Some(ports) if ports.is_empty() => {
            Err(Invalid::new("spec.ports", "is empty; leave it out to give the pod the whole address"))
        }
        _ => Ok(()),
    }
}

/// The pod that a manifest which cannot be read would give a whole address, if that can be told: without that address it
/// does not leave (N-111). One with ports, whatever they say, leaves the pod's own connections alone.
pub(super) fn whole_of(object: &Value) -> Option<Target> {
    let spec = object.get("spec")?.as_object()?;
    if spec.get("ports").is_some_and(|ports| !ports.is_null()) {
        return None;
    }
    let text = |value: Option<&Value>| value.and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
    let pod = spec.get("pod").and_then(|pod| {
        Some(Target::Pod(Name { namespace: text(pod.get("namespace"))?, name: text(pod.get("name"))? }))
    });
    pod.or_else(|| address(&text(spec.get("internalAddress"))?, "spec.internalAddress").ok().map(Target::Address))
}

/// Reads one.
///
/// # Errors
/// When a field cannot be worked with.
pub(super) fn read(name: &str, object: &crd::StaticNat) -> Result<StaticNat, Invalid> {
    let spec = &object.spec;
    let external = address(&spec.address, "spec.address")?;
    let target = match (&spec.pod, &spec.internal_address) {
        (Some(pod), None) => {
            for (field, text) in [("namespace", &pod.namespace), ("name", &pod.name)] {
                if text.is_empty() {
                    return Err(Invalid::new(format!("spec.pod.{field}"), "is empty"));
                }
            }
            Target::Pod(Name { namespace: pod.namespace.clone(), name: pod.name.clone() })
        }
        (None, Some(internal)) => Target::Address(address(internal, "spec.internalAddress")?),
        _ => return Err(Invalid::new("spec", "exactly one of pod and internalAddress must be given")),
    };
    if let Target::Address(internal) = &target {
        if internal.is_ipv4() != external.is_ipv4() {
            return Err(Invalid::new("spec.internalAddress", format!("{internal} is not of the family of {external}")));
        }
        if *internal == external {
            return Err(Invalid::new("spec.internalAddress", format!("{internal} leads to itself")));
        }
    }
    if spec.ports.len() > PORTS_MAX {
        let message = format!("has {} entries; at most {PORTS_MAX} are taken", spec.ports.len());
        return Err(Invalid::new("spec.ports", message));
    }
    let mut seen = BTreeSet::new();
    let forward = |(index, forwarded): (usize, &crd::ForwardedPort)| {
        let field = format!("spec.ports[{index}]");
        let protocol = protocol(forwarded.protocol.as_deref(), format!("{field}.protocol"))?;
        let external = port(forwarded.port, format!("{field}.port"))?;
        let internal = match forwarded.target_port {
            Some(internal) => port(internal, format!("{field}.targetPort"))?,
            None => external,
        };
        match seen.insert((protocol, external)) {
            true => Ok(PortForward { protocol, external, internal }),
            false => Err(Invalid::new(field, format!("{protocol} {external} is listed twice"))),
        }
    };
    Ok(StaticNat {
        name: name.into(),
        uid: object.uid().unwrap_or_default(),
        generation: object.metadata.generation,
        external,
        target,
        ports: spec.ports.iter().enumerate().map(forward).collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use tidegate_api::resource::Protocol;

    use super::*;

    fn nat(spec: &str) -> Result<StaticNat, String> {
        let text = format!("metadata: {{ name: door }}\nspec: {{ {spec} }}");
        let value: serde_json::Value = serde_norway::from_str(&text).unwrap();
        super::super::typed(&value, None)
            .and_then(|object| read("door", &object))
            .map_err(|invalid| invalid.to_string())
    }

    #[test]
    fn one_to_one_and_forwarded_ports_are_read() {
        let whole = nat("address: 192.0.2.20, pod: { namespace: shop, name: web-0 }").unwrap();
        assert_eq!(whole.target, Target::Pod(Name { namespace: "shop".into(), name: "web-0".into() }));
        assert_eq!(whole.ports, []);
        let some = nat("address: \"2001:db8::20\", internalAddress: \"fd00:1::7\", \
             ports: [{ port: 80, targetPort: 8080 }, { port: 53, protocol: UDP }]")
        .unwrap();
        assert_eq!(
            some.ports,
            [
                PortForward { protocol: Protocol::Tcp, external: 80, internal: 8080 },
                PortForward { protocol: Protocol::Udp, external: 53, internal: 53 },
            ]
        );
    }

    /// N-111: the pod of a 1:1 translation is known, whatever else is wrong; that of forwarded ports is left alone.
    #[test]
    fn whom_a_whole_address_was_meant_for_is_told_of_what_cannot_be_read() {
        let whole_of = |spec: &str| {
            let value: Value = serde_norway::from_str(&format!("spec: {spec}")).unwrap();
            super::whole_of(&value)
        };
        let web = Some(Target::Pod(Name { namespace: "shop".into(), name: "web-0".into() }));
        assert_eq!(whole_of("{ address: here, pod: { namespace: shop, name: web-0 } }"), web);
        assert_eq!(whole_of("{ address: 7, pod: { namespace: shop, name: web-0 }, ports: null }"), web);
        for inside in ["10.244.1.5", "fd00::7"] {
            let expected = Some(Target::Address(inside.parse().unwrap()));
            assert_eq!(whole_of(&format!("{{ internalAddress: \"{inside}\" }}")), expected);
        }
        for nobody in [
            "7",
            "{ address: 192.0.2.1 }",
            "{ internalAddress: here }",
            "{ pod: web-0 }",
            "{ pod: { namespace: \"\", name: web-0 } }",
            "{ address: here, pod: { namespace: shop, name: web-0 }, ports: [] }",
            "{ address: here, pod: { namespace: shop, name: web-0 }, ports: [{ port: 0 }] }",
            "{ address: here, pod: { namespace: shop, name: web-0 }, ports: 80 }",
        ] {
            assert_eq!(whole_of(nobody), None, "{nobody}");
        }
    }

    #[test]
    fn what_cannot_be_worked_with_is_refused_with_its_field() {
        for (spec, expected) in [
            ("address: 192.0.2.20", "exactly one of pod and internalAddress"),
            ("address: x, internalAddress: 10.0.0.1", "spec.address"),
            ("address: 192.0.2.20, internalAddress: \"fd00::1\"", "spec.internalAddress: fd00::1 is not of the family"),
            ("address: 192.0.2.20, internalAddress: 192.0.2.20", "leads to itself"),
            ("address: 192.0.2.20, pod: { namespace: \"\", name: a }", "spec.pod.namespace: is empty"),
            ("address: 192.0.2.20, internalAddress: 10.0.0.1, ports: [{ port: 0 }]", "spec.ports[0].port"),
            ("address: 192.0.2.20, internalAddress: 10.0.0.1, ports: [{ port: 1, targetPort: 70000 }]", "targetPort"),
            ("address: 192.0.2.20, internalAddress: 10.0.0.1, ports: [{ port: 1, protocol: GRE }]", "protocol"),
            (
                "address: 192.0.2.20, internalAddress: 10.0.0.1, ports: [{ port: 1 }, { port: 1, targetPort: 2 }]",
                "spec.ports[1]: TCP 1 is listed twice",
            ),
        ] {
            let message = nat(spec).unwrap_err();
            assert!(message.contains(expected), "{spec} gave {message:?}");
        }
    }
}
