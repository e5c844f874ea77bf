//! Numbers of our own kinds that lie outside of what their schema allows.
//!
//! An API server refuses them itself. A directory has nobody else who does, and a number that fits no field at all should be
//! told with the range that it missed, and not with the width of a type.

use std::sync::LazyLock;

use kube::CustomResourceExt;
use serde_json::{Number, Value};

use super::{addresspool, egresspolicy, staticnat};
use crate::source::ObjectKind;

/// What the schemas say of `spec`, by kind.
static SPECS: LazyLock<[(ObjectKind, Value); 3]> = LazyLock::new(|| {
    [
        (ObjectKind::AddressPool, addresspool::AddressPool::crd()),
        (ObjectKind::EgressPolicy, egresspolicy::EgressPolicy::crd()),
        (ObjectKind::StaticNat, staticnat::StaticNat::crd()),
    ]
    .map(|(kind, crd)| {
        let version = crd.spec.versions.into_iter().next();
        let schema = version.and_then(|version| version.schema?.open_api_v3_schema);
        let spec = schema.and_then(|schema| schema.properties?.remove("spec"));
        (kind, serde_json::to_value(spec).unwrap_or_default())
    })
});

/// The first number in `spec` of an object that is out of its range: the path of its field, and what is wrong with it.
pub fn outside(kind: ObjectKind, object: &Value) -> Option<(String, String)> {
    let (_, schema) = SPECS.iter().find(|(of, _)| *of == kind)?;
    in_part("spec", schema, object.get("spec")?)
}

fn in_part(path: &str, schema: &Value, value: &Value) -> Option<(String, String)> {
    match value {
        Value::Object(fields) => fields.iter().find_map(|(name, value)| {
            let schema = schema.get("properties")?.get(name)?;
            in_part(&format!("{path}.{name}"), schema, value)
        }),
        Value::Array(entries) => {
            let schema = schema.get("items")?;
            entries.iter().enumerate().find_map(|(at, value)| in_part(&format!("{path}[{at}]"), schema, value))
        }
        Value::Number(number) if schema.get("type")? == "integer" => {
            let (least, most) = range(schema);
            let told = || (path.to_owned(), format!("{number} is not a whole number from {least} to {most}"));
            (!is_within(number, least, most)).then(told)
        }
        _ => None,
    }
}

/// What a schema of whole numbers allows; what it does not say its format does.
fn range(schema: &Value) -> (i64, i64) {
    let (least, most) = match schema.get("format").and_then(Value::as_str) {
        Some("int32") => (i32::MIN.into(), i32::MAX.into()),
        Some("uint32") => (0, u32::MAX.into()),
        _ => (i64::MIN, i64::MAX),
    };
    // Bounds are written with a decimal point.
    #[allow(clippy::cast_possible_truncation, reason = "bounds are whole and small, and `as` saturates")]
    let bound = |name| schema.get(name).and_then(Value::as_f64).map(|bound| bound as i64);
    (bound("minimum").unwrap_or(least), bound("maximum").unwrap_or(most))
}

fn is_within(number: &Number, least: i64, most: i64) -> bool {
    match (number.as_i64(), number.as_f64()) {
        (Some(whole), _) => (least..=most).contains(&whole),
        // More than 64 bits hold, or no whole number.
        (None, Some(other)) => other.fract() == 0.0 && (least as f64..=most as f64).contains(&other),
        (None, None) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_out_of_their_range_are_told_with_field_and_range() {
        use ObjectKind::{AddressPool, EgressPolicy, StaticNat};
        let wide = u64::MAX;
        for (kind, spec, expected) in [
            (
                EgressPolicy,
                json!({ "limits": { "portsPerPod": 64_513 } }),
                "spec.limits.portsPerPod: 64513 is not a whole number from 1 to 64512",
            ),
            (
                EgressPolicy,
                json!({ "limits": { "portsPerPod": -1 } }),
                "spec.limits.portsPerPod: -1 is not a whole number from 1 to 64512",
            ),
            (
                EgressPolicy,
                json!({ "limits": { "portsPerNamespace": 1_000_000_000_000u64 } }),
                "spec.limits.portsPerNamespace: 1000000000000 is not a whole number from 1 to 1048576",
            ),
            (
                EgressPolicy,
                json!({ "udpTimeouts": [{ "port": 53, "seconds": 30 }, { "port": 70_000 }] }),
                "spec.udpTimeouts[1].port: 70000 is not a whole number from 1 to 65535",
            ),
            (
                EgressPolicy,
                json!({ "udpTimeouts": [{ "port": 53, "seconds": wide }] }),
                "spec.udpTimeouts[0].seconds: 18446744073709551615 is not a whole number from 1 to 86400",
            ),
            (
                StaticNat,
                json!({ "ports": [{ "port": 1e30 }] }),
                "spec.ports[0].port: 1e+30 is not a whole number from 1 to 65535",
            ),
            (
                StaticNat,
                json!({ "ports": [{ "port": 80.5 }] }),
                "spec.ports[0].port: 80.5 is not a whole number from 1 to 65535",
            ),
            (
                StaticNat,
                json!({ "ports": [{ "port": 80, "targetPort": 65_536 }] }),
                "spec.ports[0].targetPort: 65536 is not a whole number from 1 to 65535",
            ),
            (
                AddressPool,
                json!({ "serviceAllocation": { "priority": 1u64 << 40 } }),
                "spec.serviceAllocation.priority: 1099511627776 is not a whole number from 0 to 2147483647",
            ),
        ] {
            let told = outside(kind, &json!({ "spec": spec })).map(|(field, message)| format!("{field}: {message}"));
            assert_eq!(told.as_deref(), Some(expected));
        }
        for (kind, spec) in [
            (EgressPolicy, json!({ "limits": { "portsPerPod": 64_512, "portsPerNamespace": 1 }, "strange": 70_000 })),
            (StaticNat, json!({ "ports": [{ "port": 65_535, "targetPort": 1 }, { "port": "80" }] })),
            (AddressPool, json!({ "serviceAllocation": { "priority": 0 } })),
            (ObjectKind::Service, json!({ "ports": [{ "port": 70_000 }] })),
        ] {
            assert_eq!(outside(kind, &json!({ "spec": spec })), None);
        }
    }
}
