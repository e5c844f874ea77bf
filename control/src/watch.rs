//! Reading of one object: from a raw manifest to a value that cannot be invalid.
//!
//! Owns field names and what Kubernetes and flannel mean by them; an error names the field. Refuses to know other
//! objects: whatever needs two of them is the business of [`crate::resolve`].

use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tidegate_api::resource::Protocol;

use crate::crd::range;
use crate::model::staticnat::Target;
use crate::model::{Name, Object};
use crate::source::{ObjectKey, ObjectKind};

/// `v1` Service.
pub mod service;
/// Annotations of a Service that are Tidegate's own.
pub mod annotation;
/// `discovery.k8s.io/v1` EndpointSlice.
pub mod endpointslice;
/// `v1` Node with flannel's annotations.
pub mod node;
/// `tidegate.io/v1alpha1` AddressPool.
pub mod addresspool;
/// `tidegate.io/v1alpha1` EgressPolicy.
pub mod egresspolicy;
/// `tidegate.io/v1alpha1` GatewayPolicy.
pub mod gatewaypolicy;
/// `tidegate.io/v1alpha1` StaticNat.
pub mod staticnat;
/// `v1` Namespace.
pub mod namespace;
/// `v1` Pod.
pub mod pod;
/// `networking.k8s.io/v1` NetworkPolicy.
pub mod networkpolicy;
/// `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy.
pub mod clusternetworkpolicy;
/// A label selector.
mod selector;
/// A policy of which some cannot be read.
mod piecewise;

/// Who fills in the fields that people leave out of a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// An API server has applied defaults and controllers write status: an absent field means absent.
    Cluster,
    /// Files written by people: an absent field takes the API server's default, and since nobody allocates cluster
    /// IPs and load balancer addresses, a missing `clusterIP` is no obstacle and requested addresses are the addresses.
    Files,
}

/// Which frontends beyond VIPs a gateway serves, and whose annotations it looks at. A Service that has no frontend is none of
/// our business, and neither are its mistakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Exposed {
    /// `externalIPs` (S-023).
    pub external_ips: bool,
    /// `clusterIPs` (S-060).
    pub cluster_ips: bool,
    /// `nodePort`s (S-065).
    pub node_ports: bool,
    /// MetalLB's annotations count as ours do, in a cluster too (M-003).
    pub metallb_annotations: bool,
}

/// Why an object is not taken.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Invalid {
    /// Path of the field, like `spec.ports[0].port`.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
    /// What counts for as long as there has been no good version: of kinds of which nothing is less safe than that.
    pub stand_in: Option<Box<Object>>,
    /// Of a StaticNat that would give a pod a whole address: which pod, as far as that can be told.
    pub whole_of: Option<Target>,
}

impl Invalid {
    pub(crate) fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Invalid { field: field.into(), message: message.into(), stand_in: None, whole_of: None }
    }
}

/// Reads one object. `unknown` gets the paths of fields that its kind does not have and that nothing else is said of:
/// nobody looks at them. What an API server has stored has none that matter, so only files are searched for them.
///
/// # Errors
/// When a field has the wrong type or a value that cannot be worked with.
pub fn read(
    key: &ObjectKey,
    value: &Value,
    dialect: Dialect,
    exposed: Exposed,
    unknown: &mut Vec<String>,
) -> Result<Object, Invalid> {
    let read = read_kind(key, value, dialect, exposed, unknown);
    let (field, object) = match &read {
        Ok(object) => (None, Some(object)),
        Err(error) => (Some(&error.field), error.stand_in.as_deref()),
    };
    let complaints = if let Some(Object::Policy(policy)) = object { policy.complaints.as_slice() } else { &[] };
    unknown.retain(|unknown| field != Some(unknown) && !complaints.iter().any(|(field, _)| field == unknown));
    read
}

fn read_kind(
    key: &ObjectKey,
    value: &Value,
    dialect: Dialect,
    exposed: Exposed,
    unknown: &mut Vec<String>,
) -> Result<Object, Invalid> {
    let unknown = (dialect == Dialect::Files).then_some(unknown);
    match key.kind {
        ObjectKind::Service => service::read(key.name(), &typed(value, unknown)?, dialect, exposed)
            .map(|service| Object::Service(Box::new(service))),
        ObjectKind::EndpointSlice => {
            endpointslice::read(key.name(), &typed(value, unknown)?, dialect).map(Object::EndpointSlice)
        }
        ObjectKind::Node => node::read(&key.name, &typed(value, unknown)?).map(Object::Node),
        ObjectKind::AddressPool => {
            in_range(key.kind, value, unknown, |object| addresspool::read(&key.name, object)).map(Object::AddressPool)
        }
        ObjectKind::EgressPolicy => in_range(key.kind, value, unknown, |object| egresspolicy::read(&key.name, object))
            .map(|policy| Object::EgressPolicy(Box::new(policy)))
            .map_err(|invalid| Invalid { stand_in: egresspolicy::stand_in(&key.name, value), ..invalid }),
        ObjectKind::GatewayPolicy => {
            gatewaypolicy::read_value(&key.name, value, unknown).map(|policy| Object::GatewayPolicy(Box::new(policy)))
        }
        ObjectKind::StaticNat => {
            staticnat::not_of_no_port(value)?;
            in_range(key.kind, value, unknown, |object| staticnat::read(&key.name, object))
                .map(Object::StaticNat)
                .map_err(|invalid| Invalid { whole_of: staticnat::whole_of(value), ..invalid })
        }
        ObjectKind::Namespace => {
            let (object, strange) = known(value, unknown, |_| true)?;
            stands_in(Object::Namespace(namespace::read_object(&key.name, &object)), strange)
        }
        ObjectKind::Pod => {
            let (object, strange) = known(value, unknown, pod::is_vital)?;
            let pod = pod::read_object(key.name(), &object)?;
            if dialect == Dialect::Files
                && pod.addresses.is_empty()
                && value.pointer("/status/phase") == Some(&"Running".into())
            {
                let missing = || Invalid::new("status.podIPs", "missing: a pod that runs has an address");
                return Err(strange.unwrap_or_else(missing));
            }
            stands_in(Object::Pod(Box::new(pod)), strange)
        }
        ObjectKind::NetworkPolicy => {
            networkpolicy::read_value(&key.name(), value, unknown).map(|policy| Object::Policy(Box::new(policy)))
        }
        ObjectKind::ClusterNetworkPolicy => {
            clusternetworkpolicy::read_value(&key.name, value, unknown).map(|policy| Object::Policy(Box::new(policy)))
        }
    }
}

/// The Service an EndpointSlice says it belongs to, read even from a slice that is otherwise invalid.
pub fn service_of_slice(key: &ObjectKey, value: &Value) -> Option<Name> {
    let name = value.pointer("/metadata/labels")?.get(endpointslice::SERVICE_NAME_LABEL)?.as_str()?;
    Some(Name { namespace: key.namespace.clone(), name: name.into() })
}

fn typed<T: DeserializeOwned>(value: &Value, unknown: Option<&mut Vec<String>>) -> Result<T, Invalid> {
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(value, &mut track);
    let read = match unknown {
        Some(unknown) => serde_ignored::deserialize(tracked, |path| {
            let path = in_brackets(&path);
            // The type has been read already; kinds of our own do not read it again.
            if !matches!(path.as_str(), "apiVersion" | "kind") {
                unknown.push(path);
            }
        }),
        None => T::deserialize(tracked),
    };
    read.map_err(|error| Invalid::new(track.path().to_string(), plain_words(&error.to_string())))
}

/// Reads an object by which policies know whom they are about. In a file, a field that its kind does not have may be the one
/// that says it, where `is_vital` thinks so of its path: without it the object would be another one to policies, and open.
/// Returns what was read, and what is wrong with it if there is such a field.
fn known<T: DeserializeOwned>(
    value: &Value,
    unknown: Option<&mut Vec<String>>,
    is_vital: impl Fn(&str) -> bool,
) -> Result<(T, Option<Invalid>), Invalid> {
    let Some(unknown) = unknown else { return Ok((typed(value, None)?, None)) };
    let mut strange = Vec::new();
    let read = typed(value, Some(&mut strange))?;
    let vital = strange.iter().position(|field| is_vital(field)).map(|at| strange.remove(at));
    unknown.append(&mut strange);
    Ok((read, vital.map(|field| Invalid::new(field, piecewise::NOBODY_KNOWS))))
}

/// What [`known`] has read: a mistake where a good version of the object is known. Where none is, it stands in: an API server
/// would have it without that field, and without the object nobody's policies were about it.
fn stands_in(object: Object, strange: Option<Invalid>) -> Result<Object, Invalid> {
    match strange {
        Some(error) => Err(Invalid { stand_in: Some(Box::new(object)), ..error }),
        None => Ok(object),
    }
}

/// Reads an object of a kind of our own, whose numbers have to be such as its schema allows.
fn in_range<T: DeserializeOwned, R>(
    kind: ObjectKind,
    value: &Value,
    unknown: Option<&mut Vec<String>>,
    read: impl FnOnce(&T) -> Result<R, Invalid>,
) -> Result<R, Invalid> {
    let outside = || range::outside(kind, value).map(|(field, message)| Invalid::new(field, message));
    // Of a number that no type holds the schema has the better word.
    let better = |invalid: Invalid| outside().filter(|other| other.field == invalid.field).unwrap_or(invalid);
    let read = typed(value, unknown).map_err(better).and_then(|object| read(&object))?;
    outside().map_or(Ok(read), Err)
}

/// A path in the form that all messages have: `spec.ports[0].port`.
fn in_brackets(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", in_brackets(parent)),
        Path::Map { parent, key } => match in_brackets(parent) {
            parent if parent.is_empty() => key.clone(),
            parent => format!("{parent}.{key}"),
        },
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => in_brackets(parent),
    }
}

/// What a parser says of a type, in words for people who do not know this language's names of numbers.
pub(crate) fn plain_words(message: &str) -> String {
    const NUMBERS: [(&str, &str); 8] = [
        ("u8", "a whole number from 0 to 255"),
        ("u16", "a whole number from 0 to 65535"),
        ("u32", "a whole number of at least 0"),
        ("u64", "a whole number of at least 0"),
        ("i8", "a whole number"),
        ("i16", "a whole number"),
        ("i32", "a whole number"),
        ("i64", "a whole number"),
    ];
    let Some((before, after)) = message.split_once("expected ") else { return message.into() };
    let name = after.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
    match NUMBERS.iter().find(|(number, _)| *number == name) {
        Some((_, words)) => format!("{before}expected {words}{}", &after[name.len()..]),
        None => message.into(),
    }
}

/// A unicast address other machines can be reached at.
fn address(text: &str, field: impl Into<String>) -> Result<IpAddr, Invalid> {
    let field = field.into();
    let address: IpAddr =
        text.trim().parse().map_err(|_| Invalid::new(field.clone(), format!("{text:?} is not an IP address")))?;
    match unicast(address) {
        Ok(()) => Ok(address),
        Err(reason) => Err(Invalid::new(field, format!("{address} {reason}"))),
    }
}

/// Whether an address can be a destination beyond the own link; else why not.
pub(crate) fn unicast(address: IpAddr) -> Result<(), &'static str> {
    let link_local = match address {
        IpAddr::V4(v4) if v4.is_broadcast() => return Err("is the broadcast address"),
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => return Err("is an IPv4-mapped IPv6 address"),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    match address {
        _ if address.is_unspecified() => Err("is the unspecified address"),
        _ if address.is_loopback() => Err("is a loopback address"),
        _ if address.is_multicast() => Err("is a multicast address"),
        _ if link_local => Err("is a link-local address"),
        _ => Ok(()),
    }
}

/// Whether all of a prefix can be destinations; else why not. Its ends tell: what is nobody's lies at the ends of the
/// powers of two.
fn unicast_prefix(prefix: IpNet) -> Result<(), &'static str> {
    match prefix.prefix_len() {
        0 => Err("would take all traffic"),
        _ => unicast(prefix.network()).and_then(|()| unicast(prefix.broadcast())).map_err(|_| "is not all unicast"),
    }
}

/// A port number; 0 is none.
fn port(number: i32, field: impl Into<String>) -> Result<u16, Invalid> {
    u16::try_from(number)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| Invalid::new(field, format!("{number} is not a port number (1 to 65535)")))
}

/// Most characters in the name of a port.
const PORT_NAME_MAX: usize = 15;

/// Checks the name of a port, in the form of service names (RFC 6335 section 5.1) with small letters, as an API server
/// does: no container has another one.
fn port_name(name: &str, field: impl Into<String>) -> Result<(), Invalid> {
    let is_known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let lacks = if name.is_empty() {
        "an empty name"
    } else if name.len() > PORT_NAME_MAX {
        "a name of more than 15 characters"
    } else if !name.bytes().all(is_known) {
        "a name with other characters than a to z, 0 to 9 and '-'"
    } else if name.bytes().all(|byte| byte.is_ascii_digit()) {
        "a name without a letter; write a port's number without quotes"
    } else if !name.bytes().any(|byte| byte.is_ascii_lowercase()) {
        "a name without a letter"
    } else if name.starts_with('-') || name.ends_with('-') || name.contains("--") {
        "a name with a '-' at its begin or end, or after another"
    } else {
        return Ok(());
    };
    // It may be as long as an object.
    let shown: String = name.chars().take(2 * PORT_NAME_MAX).collect();
    Err(Invalid::new(field, format!("{shown:?} is {lacks}: no port has it, it matches nothing")))
}

/// A protocol name; absent is TCP (S-012).
fn protocol(text: Option<&str>, field: impl Into<String>) -> Result<Protocol, Invalid> {
    match text.unwrap_or("TCP") {
        "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        other => Err(Invalid::new(field, format!("{other:?} is not TCP, UDP or SCTP"))),
    }
}
