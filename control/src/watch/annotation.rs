//! Annotations of a Service that are Tidegate's own.
//!
//! Owns their names and the form of their values. A value that cannot be read makes the object invalid, as a wrong field
//! does; a name that is not listed here is told, since it is most likely a typing error.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use tidegate_api::resource::{DeliveryMode, HashFields, Scheduler};

use super::{Dialect, Invalid, address};
use crate::model::service::{EndpointName, Wishes};

/// What all of them begin with.
pub const PREFIX: &str = "tidegate.io/";
/// Requests addresses, comma-separated.
pub const ADDRESSES: &str = "tidegate.io/addresses";
/// Requests one address of each family, comma-separated, in the form of MetalLB (M-004).
pub const LOAD_BALANCER_IPS: &str = "tidegate.io/load-balancer-ips";
/// Requests addresses of an AddressPool, by its name (M-002).
pub const ADDRESS_POOL: &str = "tidegate.io/address-pool";
/// Shares addresses with the Services that have the same value (M-010).
pub const ALLOW_SHARED_IP: &str = "tidegate.io/allow-shared-ip";
/// Written by ourselves: the AddressPools that the addresses are from (M-003).
pub const ALLOCATED_FROM: &str = "tidegate.io/ip-allocated-from-pool";
/// `fullnat`, `symmetric` or `node-dsr`.
pub const DELIVERY_MODE: &str = "tidegate.io/delivery-mode";
/// How an endpoint is chosen, by the names of the kernel's IPVS.
pub const SCHEDULER: &str = "tidegate.io/scheduler";
/// Which fields the schedulers that hash look at.
pub const HASH: &str = "tidegate.io/hash";
/// Seconds in which a new endpoint gets its full share.
pub const SLOW_START: &str = "tidegate.io/slow-start";
/// `"true"`: every datagram is scheduled alone.
pub const ONE_PACKET: &str = "tidegate.io/one-packet";
/// `"true"`: every port of the addresses is served.
pub const ALL_PORTS: &str = "tidegate.io/all-ports";
/// CIDRs all of whose addresses are VIPs, comma-separated.
pub const PREFIXES: &str = "tidegate.io/prefixes";
/// `pod=weight` and `address=weight`, comma-separated.
pub const WEIGHTS: &str = "tidegate.io/weights";

/// `prefix=address` and `prefix=pod`, comma-separated.
pub const SOURCE_BACKENDS: &str = "tidegate.io/source-backends";

/// Longest slow start: an endpoint that takes longer to warm up than an hour is held back for another reason.
const SLOW_START_S_MAX: u16 = 3600;

/// Most entries of [`SOURCE_BACKENDS`], as many as the contract takes.
const SOURCE_BACKENDS_MAX: usize = 4096;

const KNOWN: [&str; 13] = [
    ADDRESSES,
    LOAD_BALANCER_IPS,
    ADDRESS_POOL,
    ALLOW_SHARED_IP,
    DELIVERY_MODE,
    SCHEDULER,
    HASH,
    SLOW_START,
    ONE_PACKET,
    ALL_PORTS,
    PREFIXES,
    WEIGHTS,
    SOURCE_BACKENDS,
];

/// Each of ours that requests addresses with the names under which MetalLB knows it (M-003).
const METALLB: [(&str, [&str; 2]); 3] = [
    (LOAD_BALANCER_IPS, ["metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs"]),
    (ADDRESS_POOL, ["metallb.io/address-pool", "metallb.universe.tf/address-pool"]),
    (ALLOW_SHARED_IP, ["metallb.io/allow-shared-ip", "metallb.universe.tf/allow-shared-ip"]),
];

/// Annotations that mean `ours`, itself first, and their values.
pub(super) fn meaning<'a>(
    annotations: &'a BTreeMap<String, String>,
    ours: &'static str,
    metallb: bool,
) -> impl Iterator<Item = (&'static str, &'a str)> {
    let theirs = METALLB.iter().filter(move |(name, _)| metallb && *name == ours).flat_map(|(_, theirs)| *theirs);
    let names = [ours].into_iter().chain(theirs);
    names.filter_map(|name| annotations.get(name).map(|value| (name, value.trim())))
}

/// Reads all but those that request addresses.
///
/// # Errors
/// When a value cannot be read.
pub(super) fn read(annotations: &BTreeMap<String, String>, dialect: Dialect) -> Result<Wishes, Invalid> {
    let mut wishes = Wishes::default();
    for (name, value) in annotations.iter().filter(|(name, _)| name.starts_with(PREFIX)) {
        let value = value.trim();
        let wrong = |message: String| Invalid::new(field(name), message);
        match name.as_str() {
            DELIVERY_MODE => wishes.mode = Some(delivery_mode(value).map_err(wrong)?),
            SCHEDULER => (wishes.scheduler, wishes.scheduler_replaced) = scheduler(value).map_err(wrong)?,
            HASH => wishes.hash = hash(value).map_err(wrong)?,
            SLOW_START => wishes.slow_start_s = slow_start(value).map_err(wrong)?,
            ONE_PACKET => wishes.one_packet = truth(value).map_err(wrong)?,
            ALL_PORTS => wishes.all_ports = truth(value).map_err(wrong)?,
            PREFIXES if dialect == Dialect::Files => wishes.prefixes = prefixes(value).map_err(wrong)?,
            PREFIXES => wishes.prefixes_unassigned = prefixes(value).map_err(wrong)?,
            WEIGHTS => weights(value, &mut wishes).map_err(wrong)?,
            SOURCE_BACKENDS => wishes.source_backends = source_backends(value).map_err(wrong)?,
            ADDRESSES | LOAD_BALANCER_IPS | ADDRESS_POOL | ALLOW_SHARED_IP | ALLOCATED_FROM => {}
            _ => wishes.unknown.push(name.clone()),
        }
    }
    Ok(wishes)
}

/// Path of an annotation in its object.
pub(super) fn field(name: &str) -> String {
    format!("metadata.annotations[{name}]")
}

/// The names there are, for people.
pub fn known() -> String {
    KNOWN.map(|name| name.trim_start_matches(PREFIX)).join(", ")
}

fn delivery_mode(text: &str) -> Result<DeliveryMode, String> {
    match text {
        "fullnat" => Ok(DeliveryMode::Fullnat),
        "node-dsr" => Ok(DeliveryMode::NodeDsr),
        "symmetric" => Ok(DeliveryMode::Symmetric),
        _ => Err(format!("{text:?} is not fullnat, symmetric or node-dsr")),
    }
}

/// The scheduler, and the name it stands in for. `lblc` and `lblcr` keep a cache of destinations, which is what makes
/// sense in front of caches; behind a VIP every destination is the same, and `dh` is what they amount to (L-037).
fn scheduler(text: &str) -> Result<(Scheduler, Option<&'static str>), String> {
    Ok(match text {
        "mh" => (Scheduler::Mh, None),
        "rr" => (Scheduler::Rr, None),
        "wrr" => (Scheduler::Wrr, None),
        "lc" => (Scheduler::Lc, None),
        "wlc" => (Scheduler::Wlc, None),
        "sed" => (Scheduler::Sed, None),
        "nq" => (Scheduler::Nq, None),
        "sh" => (Scheduler::Sh, None),
        "dh" => (Scheduler::Dh, None),
        "fo" => (Scheduler::Fo, None),
        "ovf" => (Scheduler::Ovf, None),
        "lblc" => (Scheduler::Dh, Some("lblc")),
        "lblcr" => (Scheduler::Dh, Some("lblcr")),
        _ => {
            return Err(format!("{text:?} is not one of mh, rr, wrr, lc, wlc, sed, nq, sh, dh, fo, ovf, lblc, lblcr"));
        }
    })
}

fn hash(text: &str) -> Result<HashFields, String> {
    match text {
        "flow" => Ok(HashFields::Flow),
        "without-source-port" => Ok(HashFields::WithoutSourcePort),
        "destination-port" => Ok(HashFields::DestinationPort),
        _ => Err(format!("{text:?} is not flow, without-source-port or destination-port")),
    }
}

/// Seconds, with or without their unit.
fn slow_start(text: &str) -> Result<u16, String> {
    let number = text.strip_suffix('s').unwrap_or(text);
    let seconds = number.parse().ok().filter(|seconds| *seconds <= SLOW_START_S_MAX);
    seconds.ok_or_else(|| format!("{text:?} is not a number of seconds up to {SLOW_START_S_MAX}, like 30 or 30s"))
}

fn truth(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("{text:?} is not \"true\" or \"false\"")),
    }
}

fn prefixes(list: &str) -> Result<Vec<IpNet>, String> {
    let mut prefixes = Vec::new();
    for text in list.split(',').map(str::trim) {
        let prefix: IpNet = text.parse().map_err(|_| format!("{text:?} is not a CIDR"))?;
        if prefix != prefix.trunc() {
            return Err(format!("{prefix} has bits set behind its length; is {} meant?", prefix.trunc()));
        }
        if prefix.prefix_len() == prefix.max_prefix_len() {
            return Err(format!("{prefix} is a single address; request it with {ADDRESSES}"));
        }
        super::unicast_prefix(prefix).map_err(|reason| format!("{prefix} {reason}"))?;
        if prefixes.contains(&prefix) {
            return Err(format!("{prefix} is listed twice"));
        }
        prefixes.push(prefix);
    }
    prefixes.sort();
    Ok(prefixes)
}

fn weights(list: &str, wishes: &mut Wishes) -> Result<(), String> {
    for entry in list.split(',').map(str::trim) {
        let (whose, number) =
            entry.split_once('=').ok_or_else(|| format!("{entry:?} is not pod=weight or address=weight"))?;
        let (whose, number) = (whose.trim(), number.trim());
        let weight: u16 = number.parse().map_err(|_| format!("{number:?} is not a weight (0 to {})", u16::MAX))?;
        let before = match endpoint_name(whose)? {
            EndpointName::Address(ip) => wishes.weights_by_address.insert(ip, weight),
            EndpointName::Pod(name) => wishes.weights_by_pod.insert(name, weight),
        };
        if before.is_some() {
            return Err(format!("{whose} is listed twice"));
        }
    }
    Ok(())
}

/// Sorted by prefix.
fn source_backends(list: &str) -> Result<Vec<(IpNet, EndpointName)>, String> {
    let mut backends: BTreeMap<IpNet, EndpointName> = BTreeMap::new();
    for entry in list.split(',').map(str::trim) {
        let (sources, whose) =
            entry.split_once('=').ok_or_else(|| format!("{entry:?} is not prefix=address or prefix=pod"))?;
        let sources = sources.trim();
        let one = || sources.parse::<IpAddr>().map(IpNet::from);
        let prefix = sources.parse::<IpNet>().or_else(|_| one()).map_err(|_| format!("{sources:?} is not a CIDR"))?;
        if prefix != prefix.trunc() {
            return Err(format!("{prefix} has bits set behind its length; is {} meant?", prefix.trunc()));
        }
        let endpoint = endpoint_name(whose.trim())?;
        if let EndpointName::Address(ip) = &endpoint
            && ip.is_ipv4() != prefix.addr().is_ipv4()
        {
            return Err(format!("{prefix} and {ip} are of different families"));
        }
        if backends.insert(prefix, endpoint).is_some() {
            return Err(format!("{prefix} is listed twice"));
        }
    }
    match backends.len() {
        0..=SOURCE_BACKENDS_MAX => Ok(backends.into_iter().collect()),
        more => Err(format!("{more} entries; at most {SOURCE_BACKENDS_MAX} are taken")),
    }
}

/// An endpoint by its address, with or without brackets, or by the name of its pod.
fn endpoint_name(text: &str) -> Result<EndpointName, String> {
    match text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        Ok(ip) => address(&ip.to_string(), "").map(EndpointName::Address).map_err(|invalid| invalid.message),
        Err(_) if is_pod_name(text) => Ok(EndpointName::Pod(text.into())),
        Err(_) => Err(format!("{text:?} is neither an address nor the name of a pod")),
    }
}

/// A name as Kubernetes allows for pods (RFC 1123 subdomain).
fn is_pod_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    let ends = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    let bytes = text.as_bytes();
    bytes.len() <= 253 && bytes.iter().copied().all(allowed) && ends(bytes.first()) && ends(bytes.last())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(name: &str, value: &str) -> Result<Wishes, Invalid> {
        read(&[(name.to_string(), value.to_string())].into(), Dialect::Files)
    }

    #[test]
    fn every_name_of_a_scheduler_is_read() {
        let names = ["mh", "rr", "wrr", "lc", "wlc", "sed", "nq", "sh", "dh", "fo", "ovf"];
        for name in names {
            let wishes = one(SCHEDULER, name).unwrap();
            // The contract has the same names.
            assert_eq!(serde_json::to_value(wishes.scheduler).unwrap(), name);
            assert_eq!(wishes.scheduler_replaced, None);
        }
        for name in ["lblc", "lblcr"] {
            let wishes = one(SCHEDULER, name).unwrap();
            assert_eq!((wishes.scheduler, wishes.scheduler_replaced), (Scheduler::Dh, Some(name)));
        }
    }

    #[test]
    fn weights_are_found_by_address_then_by_pod() {
        let wishes = one(WEIGHTS, "web-0=3, 10.244.1.5=0,[fd00::5]=7 , fd00::6 = 65535").unwrap();
        let weight = |address: &str, pod: &str| wishes.weight(address.parse().unwrap(), pod);
        assert_eq!(weight("10.244.1.5", "web-0"), 0);
        assert_eq!(weight("10.244.1.6", "web-0"), 3);
        assert_eq!(weight("10.244.1.6", "web-1"), 1);
        assert_eq!((weight("fd00::5", ""), weight("fd00::6", "")), (7, 65535));
    }

    #[test]
    fn sources_name_their_endpoint_by_address_or_pod() {
        // T-122
        let wishes = one(SOURCE_BACKENDS, "2001:db8::/48=[fd00::5], 10.1.0.0/17 = 10.244.1.5,10.1.0.7=web-0").unwrap();
        let told: Vec<String> = wishes.source_backends.iter().map(|(net, whose)| format!("{net} {whose}")).collect();
        assert_eq!(told, ["10.1.0.0/17 10.244.1.5", "10.1.0.7/32 web-0", "2001:db8::/48 fd00::5"]);
        for (value, expected) in [
            ("10.1.0.0/17", "prefix=address"),
            ("10.1.0.0/33=web-0", "CIDR"),
            ("10.1.0.1/17=web-0", "is 10.1.0.0/17 meant?"),
            ("10.1.0.0/17=fd00::5", "different families"),
            ("10.1.0.0/17=a, 10.1.0.0/17=b", "twice"),
            ("10.1.0.0/17=Web", "neither"),
            ("", "prefix=address"),
        ] {
            let error = one(SOURCE_BACKENDS, value).unwrap_err();
            assert!(error.message.contains(expected), "{value:?}: {}", error.message);
        }
    }

    proptest! {
        #[test]
        fn no_value_makes_it_panic(which in 0..KNOWN.len(), value in "[-a-z0-9./:,= \\[\\]]{0,60}") {
            let _ = one(KNOWN[which], &value);
        }
    }
}
