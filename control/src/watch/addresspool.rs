//! An AddressPool read from its manifest.
//!
//! Owns the forms of addresses (M-001) and of label selectors. Refuses to know other pools: that no two overlap is the
//! business of [`crate::allocate`].

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use kube::ResourceExt;
use kube::core::Selector;

use super::selector::{label_key, label_value};
use super::{Invalid, unicast};
use crate::crd::addresspool::{self as crd, Operator};
use crate::model::addresspool::{AddressPool, AddressRange, Pinning};

/// Blocks whose addresses cannot be reached from elsewhere; a range that spans one can hide it between good ends.
const NOT_UNICAST: [(&str, &str); 7] = [
    ("127.0.0.0/8", "loopback addresses"),
    ("169.254.0.0/16", "link-local addresses"),
    ("224.0.0.0/4", "multicast addresses"),
    ("::/127", "the unspecified and the loopback address"),
    ("::ffff:0:0/96", "IPv4-mapped addresses"),
    ("fe80::/10", "link-local addresses"),
    ("ff00::/8", "multicast addresses"),
];

/// Reads one pool.
///
/// # Errors
/// When a field cannot be worked with.
pub(super) fn read(name: &str, object: &crd::AddressPool) -> Result<AddressPool, Invalid> {
    let spec = &object.spec;
    let listed = object.status.iter().flat_map(|status| &status.addresses);
    // Written by ourselves; what somebody else wrote there instead is no memory of ours.
    let mut last_good: Vec<AddressRange> = Vec::new();
    for range in listed.filter_map(|text| range(text).ok()) {
        if last_good.iter().all(|other| other.intersection(&range).is_none()) {
            last_good.push(range);
        }
    }
    let pool = AddressPool {
        name: name.into(),
        uid: object.uid().unwrap_or_default(),
        created_at_s: object.creation_timestamp().map_or(i64::MAX, |time| time.0.as_second()),
        generation: object.metadata.generation,
        ranges: last_good.clone(),
        last_good,
        complaint: None,
        auto_assign: false,
        avoid_buggy: spec.avoid_buggy_ips,
        pinning: None,
    };
    let pinning = spec.service_allocation.as_ref().map(pinning).transpose();
    match (ranges(&spec.addresses), pinning) {
        (Ok(ranges), Ok(pinning)) => Ok(AddressPool { ranges, pinning, auto_assign: spec.auto_assign, ..pool }),
        (Err(invalid), _) | (_, Err(invalid)) if pool.last_good.is_empty() => Err(invalid),
        // The addresses are those of before, and whom they are for is said.
        (Err(invalid), Ok(pinning)) => {
            Ok(AddressPool { complaint: Some(invalid.to_string()), pinning, auto_assign: spec.auto_assign, ..pool })
        }
        // Services have addresses of it. They keep them, and who asks gets one: it is not known whom the rest is for.
        (_, Err(invalid)) => Ok(AddressPool { complaint: Some(invalid.to_string()), ..pool }),
    }
}

fn ranges(listed: &[String]) -> Result<Vec<AddressRange>, Invalid> {
    if listed.is_empty() {
        return Err(Invalid::new("spec.addresses", "a pool needs at least one address"));
    }
    let mut ranges: Vec<AddressRange> = Vec::new();
    for (index, text) in listed.iter().enumerate() {
        let field = format!("spec.addresses[{index}]");
        let range = range(text).map_err(|message| Invalid::new(&field, message))?;
        if let Some(other) = ranges.iter().position(|other| other.intersection(&range).is_some()) {
            let message = format!("{text} overlaps {} in spec.addresses[{other}]", listed[other]);
            return Err(Invalid::new(field, message));
        }
        ranges.push(range);
    }
    Ok(ranges)
}

/// A CIDR, two ends, or a single address.
fn range(text: &str) -> Result<AddressRange, String> {
    let text = text.trim();
    let address =
        |text: &str| text.trim().parse::<IpAddr>().map_err(|_| format!("{:?} is not an IP address", text.trim()));
    let range = if let Some((first, last)) = text.split_once('-') {
        let (first, last) = (address(first)?, address(last)?);
        if first.is_ipv4() != last.is_ipv4() {
            return Err(format!("{first} and {last} are of two families"));
        }
        AddressRange::new(first, last).ok_or_else(|| format!("{first} comes after {last}"))?
    } else if text.contains('/') {
        let prefix: IpNet = text.parse().map_err(|_| format!("{text:?} is not a CIDR"))?;
        if prefix != prefix.trunc() {
            let message = "has bits set behind its length; write the CIDR";
            return Err(format!("{prefix} {message} {} or a range from {}", prefix.trunc(), prefix.addr()));
        }
        prefix.into()
    } else {
        address(text)
            .map_err(|_| format!("{text:?} is not a CIDR, a range like 192.0.2.1-192.0.2.9, or an address"))?
            .into()
    };
    usable(&range).map_err(|reason| format!("{text} {reason}"))?;
    Ok(range)
}

/// Whether all of it can be reached from elsewhere; else what is wrong.
fn usable(range: &AddressRange) -> Result<(), String> {
    for end in [range.first(), range.last()] {
        unicast(end).map_err(|reason| {
            if end == range.first() && end == range.last() {
                reason.into()
            } else {
                format!("has {end}, which {reason}")
            }
        })?;
    }
    let blocks = NOT_UNICAST.iter().filter_map(|(block, words)| Some((block.parse::<IpNet>().ok()?, words)));
    match blocks.into_iter().find(|(block, _)| range.intersection(&(*block).into()).is_some()) {
        Some((block, words)) => Err(format!("has {words} ({block})")),
        None => Ok(()),
    }
}

fn pinning(allocation: &crd::ServiceAllocation) -> Result<Pinning, Invalid> {
    let field = |name: &str| format!("spec.serviceAllocation.{name}");
    let priority = u32::try_from(allocation.priority)
        .map_err(|_| Invalid::new(field("priority"), format!("{} is less than 0", allocation.priority)))?;
    if let Some(index) = allocation.namespaces.iter().position(String::is_empty) {
        return Err(Invalid::new(field(&format!("namespaces[{index}]")), "is empty"));
    }
    Ok(Pinning {
        priority,
        namespaces: allocation.namespaces.clone(),
        namespace_selectors: selectors(&allocation.namespace_selectors, &field("namespaceSelectors"))?,
        service_selectors: selectors(&allocation.service_selectors, &field("serviceSelectors"))?,
    })
}

fn selectors(listed: &[crd::LabelSelector], field: &str) -> Result<Vec<Selector>, Invalid> {
    let one = |(index, selector)| selector_of(selector, &format!("{field}[{index}]"));
    listed.iter().enumerate().map(one).collect()
}

pub(super) fn selector_of(selector: &crd::LabelSelector, field: &str) -> Result<Selector, Invalid> {
    for (key, value) in &selector.match_labels {
        let field = format!("{field}.matchLabels");
        label_key(key, &field)?;
        label_value(value, &field)?;
    }
    let mut expressions = Vec::new();
    for (index, requirement) in selector.match_expressions.iter().enumerate() {
        let field = || format!("{field}.matchExpressions[{index}]");
        let takes_values = matches!(requirement.operator, Operator::In | Operator::NotIn);
        if takes_values == requirement.values.is_empty() {
            let message = if takes_values { "needs values" } else { "takes no values" };
            return Err(Invalid::new(field(), format!("operator {:?} {message}", requirement.operator)));
        }
        label_key(&requirement.key, &format!("{}.key", field()))?;
        requirement.values.iter().try_for_each(|value| label_value(value, &format!("{}.values", field())))?;
        expressions.push(meta::LabelSelectorRequirement {
            key: requirement.key.clone(),
            operator: format!("{:?}", requirement.operator),
            values: takes_values.then(|| requirement.values.clone()),
        });
    }
    let selector =
        meta::LabelSelector { match_labels: Some(selector.match_labels.clone()), match_expressions: Some(expressions) };
    Selector::try_from(selector).map_err(|error| Invalid::new(field, error.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(spec: &str) -> Result<AddressPool, Invalid> {
        let text = format!("metadata: {{ name: office }}\nspec: {{ {spec} }}");
        let value: serde_json::Value = serde_norway::from_str(&text).unwrap();
        read("office", &super::super::typed(&value, None)?)
    }

    fn shown(addresses: &str) -> Result<Vec<String>, String> {
        let pool = pool(&format!("addresses: [{addresses}]")).map_err(|invalid| invalid.to_string())?;
        Ok(pool.ranges.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn every_form_of_addresses_is_read_in_order() {
        // M-001: CIDRs and ranges, IPv4 and IPv6; huge ones cost nothing.
        let all = shown(
            "192.0.2.128/25, 192.0.2.10 - 192.0.2.19, 192.0.2.1, \"2001:db8::/33\", \"2001:dba::5-2001:dba::9\", 10.0.0.0/8",
        );
        assert_eq!(
            all.unwrap(),
            [
                "192.0.2.128/25",
                "192.0.2.10-192.0.2.19",
                "192.0.2.1",
                "2001:db8::/33",
                "2001:dba::5-2001:dba::9",
                "10.0.0.0/8"
            ]
        );
    }

    #[test]
    fn addresses_that_cannot_be_a_pool_are_refused_with_their_field() {
        for (addresses, expected) in [
            ("", "spec.addresses: a pool needs at least one address"),
            ("192.0.2.1, ten", "spec.addresses[1]: \"ten\" is not a CIDR, a range"),
            ("192.0.2.9-192.0.2.1", "spec.addresses[0]: 192.0.2.9 comes after 192.0.2.1"),
            ("\"192.0.2.9-2001:db8::\"", "of two families"),
            ("192.0.2.9-x", "\"x\" is not an IP address"),
            ("192.0.2.9/24", "write the CIDR 192.0.2.0/24 or a range from 192.0.2.9"),
            ("192.0.2.0/33", "is not a CIDR"),
            ("192.0.2.0/24, 192.0.2.255", "spec.addresses[1]: 192.0.2.255 overlaps 192.0.2.0/24 in spec.addresses[0]"),
            ("\"2001:db8::/64\", \"2001:db8::1-2001:db8::2\"", "overlaps 2001:db8::/64 in spec.addresses[0]"),
            ("126.0.0.0-128.0.0.9", "has loopback addresses (127.0.0.0/8)"),
            ("224.0.0.1", "224.0.0.1 is a multicast address"),
            ("223.0.0.0-224.0.0.0", "which is a multicast address"),
            ("\"fe80::/64\"", "link-local"),
            ("\"::/0\"", "unspecified"),
            ("0.0.0.0/0", "unspecified"),
        ] {
            let message = shown(addresses).unwrap_err();
            assert!(message.contains(expected), "[{addresses}] gave {message:?}, not {expected:?}");
        }
    }

    #[test]
    fn defaults_and_selectors_are_those_of_metallb() {
        let plain = pool("addresses: [192.0.2.1]").unwrap();
        assert!(plain.auto_assign && !plain.avoid_buggy && plain.pinning.is_none());
        let text = "addresses: [192.0.2.1], autoAssign: false, avoidBuggyIPs: true, serviceAllocation: { priority: 50, \
                    namespaces: [shop], namespaceSelectors: [{ matchLabels: { team: a } }], \
                    serviceSelectors: [{ matchExpressions: [{ key: tier, operator: In, values: [web, api] }] }] }";
        let full = pool(text).unwrap();
        let pinning = full.pinning.unwrap();
        assert!(!full.auto_assign && full.avoid_buggy);
        assert_eq!((pinning.priority, pinning.namespaces), (50, vec!["shop".to_string()]));
        assert_eq!(pinning.namespace_selectors[0].to_string(), "team=a");
        assert_eq!(pinning.service_selectors[0].to_string(), "tier in (api,web)");
        for (spec, expected) in [
            ("addresses: 3", "spec.addresses"),
            ("addresses: [192.0.2.1], serviceAllocation: { priority: -1 }", "spec.serviceAllocation.priority"),
            (
                "addresses: [192.0.2.1], serviceAllocation: { namespaces: [\"\"] }",
                "spec.serviceAllocation.namespaces[0]",
            ),
            (
                "addresses: [192.0.2.1], serviceAllocation: { serviceSelectors: [{}, { matchExpressions: [{ key: a, operator: In }] }] }",
                "spec.serviceAllocation.serviceSelectors[1].matchExpressions[0]: operator In needs values",
            ),
            (
                "addresses: [192.0.2.1], serviceAllocation: { serviceSelectors: [{ matchExpressions: [{ key: a, operator: Near }] }] }",
                "operator",
            ),
        ] {
            let message = pool(spec).unwrap_err().to_string();
            assert!(message.contains(expected), "{spec} gave {message:?}");
        }
    }

    #[test]
    fn what_was_in_force_is_read_from_status() {
        let text = "metadata: { name: a }\nspec: { addresses: [192.0.2.0/24] }\nstatus: { addresses: [192.0.2.0/25, nonsense, \"2001:db8::1-2001:db8::3\"] }";
        let value: serde_json::Value = serde_norway::from_str(text).unwrap();
        let pool = read("a", &super::super::typed(&value, None).unwrap()).unwrap();
        let last_good: Vec<String> = pool.last_good.iter().map(ToString::to_string).collect();
        assert_eq!(last_good, ["192.0.2.0/25", "2001:db8::1-2001:db8::3"]);
        assert_eq!((pool.ranges.len(), pool.complaint), (1, None));
        // It stands in for a spec that cannot be used, and tells so.
        let text = text.replace("192.0.2.0/24", "192.0.2.9-192.0.2.1");
        let value: serde_json::Value = serde_norway::from_str(&text).unwrap();
        let pool = read("a", &super::super::typed(&value, None).unwrap()).unwrap();
        assert_eq!((pool.ranges, pool.auto_assign), (pool.last_good, true), "whom it is for is known");
        assert!(pool.complaint.unwrap().starts_with("spec.addresses[0]: 192.0.2.9 comes after"));
        let text = text.replace("spec: {", "spec: { autoAssign: false,");
        let value: serde_json::Value = serde_norway::from_str(&text).unwrap();
        assert!(!read("a", &super::super::typed(&value, None).unwrap()).unwrap().auto_assign);
        let text = text.replace("autoAssign: false", "serviceAllocation: { namespaces: [\"\"] }");
        let value: serde_json::Value = serde_norway::from_str(&text).unwrap();
        let pool = read("a", &super::super::typed(&value, None).unwrap()).unwrap();
        assert!(!pool.auto_assign && pool.pinning.is_none(), "it is not");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[-0-9a-f:./ ]{0,40}") {
            if let Ok(range) = range(&text) {
                prop_assert_eq!(super::range(&range.to_string()), Ok(range));
            }
        }
    }
}
