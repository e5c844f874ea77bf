//! A GatewayPolicy read from its manifest.

use std::collections::BTreeMap;

use ipnet::IpNet;
use kube::core::Selector;
use serde_json::{Map, Value, json};
use tidegate_api::resource::{ClientRange, FrontPort, GatewayAction, SourceLimits};

use super::addresspool::selector_of;
use super::piecewise::{Pieces, Whole, whole};
use super::selector::shown;
use super::{Invalid, port, protocol, typed};
use crate::crd::gatewaypolicy as crd;
use crate::model::gatewaypolicy::{Choice, GatewayPolicy, Rule};
use crate::model::{Name, Object};
use crate::source::manifest::is_label;

/// Most rules in a policy.
const RULES_MAX: usize = 128;
/// Most CIDRs in a rule, exceptions included.
const CIDRS_MAX: usize = 4096;
/// Most new connections a second, and at once.
const RATE_MAX: u32 = 1_000_000;

/// Reads one policy as it was written. `unknown` gets fields that its kind does not have: a rule with such a field cannot
/// be read.
///
/// # Errors
/// As [`read`], and when something has a wrong type. If its order can be told, something stands in: the rules that can be
/// read, and for each of the others what is closed.
pub(super) fn read_value(
    name: &str,
    value: &Value,
    unknown: Option<&mut Vec<String>>,
) -> Result<GatewayPolicy, Invalid> {
    let strict = unknown.is_some();
    let error = match whole(value, unknown, &["rules"]) {
        Ok(Whole::Read(object)) => match read(name, &object) {
            Ok(policy) => return Ok(policy),
            Err(error) => error,
        },
        Ok(Whole::StrangeRules(_)) => {
            let mut pieces = Pieces::new(strict);
            let rules = value.pointer("/spec/rules");
            pieces.list(rules, "spec.rules", |pieces, rule, at| pieces.reads::<crd::ClientRule>(rule, at).into());
            pieces.complaints.swap_remove(0)
        }
        Err(error) => error,
    };
    let stand_in = piecewise(name, value, strict).map(|policy| Box::new(Object::GatewayPolicy(Box::new(policy))));
    Err(Invalid { stand_in, ..error })
}

/// What can be read, rule by rule, and the others closed.
fn piecewise(name: &str, value: &Value, strict: bool) -> Option<GatewayPolicy> {
    let spec = value.get("spec")?.as_object()?;
    let mut pieces = Pieces::new(strict);
    let frame = |fields: &[&str]| -> Option<GatewayPolicy> {
        let of = |field: &&str| Some((field.to_string(), spec.get(*field)?.clone()));
        let spec: Map<String, Value> = fields.iter().filter_map(of).collect();
        let generation = value.pointer("/metadata/generation").filter(|generation| generation.is_i64());
        let object = json!({ "metadata": { "generation": generation }, "spec": spec });
        read(name, &typed(&object, None).ok()?).ok()
    };
    // What is to be in audit and does not say it rightly is in force.
    let mut policy = frame(&["order", "mode"]).or_else(|| frame(&["order"]))?;
    let listed = match spec.get("rules")? {
        Value::Array(rules) => rules.as_slice(),
        rule @ Value::Object(_) => std::slice::from_ref(rule),
        _ => return None,
    };
    for (index, rule) in listed.iter().enumerate().take(RULES_MAX) {
        let field = format!("spec.rules[{index}]");
        let read = match pieces.reads::<crd::ClientRule>(rule, &field) {
            true => typed(rule, None).and_then(|rule| read_rule(&rule, &field)),
            false => Err(pieces.complaints.last().cloned().unwrap_or_else(|| Invalid::new(&field, "cannot be read"))),
        };
        let read = read.unwrap_or_else(|mistake| {
            policy.mistakes.insert(index, (mistake.field, mistake.message));
            closed(&mut pieces, rule, &field)
        });
        policy.rules.push(read);
    }
    Some(policy)
}

/// What a rule is that cannot be read: one that allows is for nobody, and of another one, which denies, each part that cannot
/// be read is everything.
fn closed(pieces: &mut Pieces, rule: &Value, field: &str) -> Rule {
    let fields = ["name", "action", "clients", "services", "ports", "limits"];
    // A part that is written under another name is missing: all of them may be.
    let is_known = rule.is_object() && !pieces.is_strange(rule, &fields, field);
    let part = |name: &str| rule.get(name).filter(|_| is_known);
    let name = part("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    if rule.get("action").and_then(Value::as_str) == Some("Allow") {
        return Rule { name, action: GatewayAction::Allow, clients: Some(Vec::new()), ports: None, services: None };
    }
    let strict = pieces.strict;
    let only = |name: &str| -> Option<Rule> {
        let rule = json!({ "action": "Deny", (name): part(name)? });
        let mut pieces = Pieces::new(strict);
        let rule = pieces.reads::<crd::ClientRule>(&rule, field).then(|| typed(&rule, None).ok()).flatten()?;
        read_rule(&rule, field).ok()
    };
    Rule {
        name,
        action: GatewayAction::Deny,
        clients: only("clients").and_then(|rule| rule.clients),
        ports: only("ports").and_then(|rule| rule.ports),
        services: only("services").and_then(|rule| rule.services),
    }
}

/// Reads one policy.
///
/// # Errors
/// When a field cannot be worked with. A rule is never left out of a policy that is taken.
pub(super) fn read(name: &str, object: &crd::GatewayPolicy) -> Result<GatewayPolicy, Invalid> {
    let spec = &object.spec;
    let order = u16::try_from(spec.order)
        .map_err(|_| Invalid::new("spec.order", format!("{} is not from 0 to 65535", spec.order)))?;
    at_most(spec.rules.len(), RULES_MAX, "spec.rules")?;
    let rules = spec.rules.iter().enumerate().map(|(index, rule)| read_rule(rule, &format!("spec.rules[{index}]")));
    Ok(GatewayPolicy {
        name: name.into(),
        generation: object.metadata.generation,
        order,
        audit: spec.mode == crd::Mode::Audit,
        rules: rules.collect::<Result<_, _>>()?,
        mistakes: BTreeMap::new(),
    })
}

fn read_rule(rule: &crd::ClientRule, field: &str) -> Result<Rule, Invalid> {
    let action = match (rule.action, &rule.limits) {
        (crd::Action::Allow, None) => GatewayAction::Allow,
        (crd::Action::Deny, None) => GatewayAction::Deny,
        (crd::Action::Limit, Some(limits)) => GatewayAction::Limit(read_limits(limits, &format!("{field}.limits"))?),
        (crd::Action::Limit, None) => return Err(Invalid::new(format!("{field}.limits"), "must be given for Limit")),
        (_, Some(_)) => {
            return Err(Invalid::new(format!("{field}.limits"), "belongs to the action Limit, not to this one"));
        }
    };
    if let Some(clients) = &rule.clients {
        let cidrs = clients.iter().map(|client| 1 + client.except.len()).sum();
        at_most(cidrs, CIDRS_MAX, &format!("{field}.clients"))?;
    }
    Ok(Rule {
        name: rule.name.clone(),
        action,
        clients: each(rule.clients.as_deref(), &format!("{field}.clients"), read_client)?,
        ports: each(rule.ports.as_deref(), &format!("{field}.ports"), read_port)?,
        services: each(rule.services.as_deref(), &format!("{field}.services"), read_choice)?,
    })
}

/// Reads a list that has to have something in it if it is there.
fn each<T, U>(
    list: Option<&[T]>,
    field: &str,
    read: impl Fn(&T, &str) -> Result<U, Invalid>,
) -> Result<Option<Vec<U>>, Invalid> {
    let Some(list) = list else { return Ok(None) };
    if list.is_empty() {
        return Err(Invalid::new(field, "is empty, which is nobody; leave it out for all"));
    }
    at_most(list.len(), CIDRS_MAX, field)?;
    list.iter()
        .enumerate()
        .map(|(index, one)| read(one, &format!("{field}[{index}]")))
        .collect::<Result<_, _>>()
        .map(Some)
}

fn read_client(client: &crd::Client, field: &str) -> Result<ClientRange, Invalid> {
    let prefix = cidr(&client.cidr, &format!("{field}.cidr"))?;
    let except = client.except.iter().enumerate().map(|(index, text)| {
        let field = format!("{field}.except[{index}]");
        let inner = cidr(text, &field)?;
        match prefix.contains(&inner) {
            true => Ok(inner),
            false => Err(Invalid::new(field, format!("{inner} is not in {prefix}"))),
        }
    });
    Ok(ClientRange { prefix, except: except.collect::<Result<_, _>>()? })
}

fn cidr(text: &str, field: &str) -> Result<IpNet, Invalid> {
    let prefix: IpNet =
        text.trim().parse().map_err(|_| Invalid::new(field, format!("{text:?} is not a CIDR like 192.0.2.0/24")))?;
    if prefix != prefix.trunc() {
        let message = format!("{prefix} has bits set behind its length; write {}", prefix.trunc());
        return Err(Invalid::new(field, message));
    }
    if matches!(prefix, IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some() && v6.prefix_len() >= 96) {
        return Err(Invalid::new(
            field,
            format!("{prefix} holds IPv4 addresses in the form of IPv6; write them as IPv4"),
        ));
    }
    Ok(prefix)
}

fn read_port(listed: &crd::Port, field: &str) -> Result<FrontPort, Invalid> {
    let protocol = protocol(listed.protocol.as_deref(), format!("{field}.protocol"))?;
    let (first, last) = match (listed.port, listed.end_port) {
        (None, None) => (1, u16::MAX),
        (None, Some(_)) => return Err(Invalid::new(format!("{field}.endPort"), "needs port")),
        (Some(first), last) => {
            let first = port(first, format!("{field}.port"))?;
            (first, last.map_or(Ok(first), |last| port(last, format!("{field}.endPort")))?)
        }
    };
    match first <= last {
        true => Ok(FrontPort { protocol, first, last }),
        false => Err(Invalid::new(format!("{field}.endPort"), format!("{last} is below the port {first}"))),
    }
}

fn read_choice(choice: &crd::ServiceChoice, field: &str) -> Result<Choice, Invalid> {
    for (part, text) in [("namespace", &choice.namespace), ("name", &choice.name)] {
        if let Some(text) = text.as_ref().filter(|text| !is_label(text)) {
            let message = format!("is no name that an object can have: {:?}", shown(text));
            return Err(Invalid::new(format!("{field}.{part}"), message));
        }
    }
    match (&choice.namespace, &choice.name, &choice.selector) {
        (Some(namespace), Some(name), None) => {
            Ok(Choice::One(Name { namespace: namespace.clone(), name: name.clone() }))
        }
        (_, Some(_), _) => Err(Invalid::new(format!("{field}.name"), "needs namespace, and no selector")),
        (None, None, None) => Err(Invalid::new(field, "namespace or selector must be given")),
        (namespace, None, selector) => {
            let selector = selector.as_ref().map(|selector| selector_of(selector, &format!("{field}.selector")));
            Ok(Choice::Matching(namespace.clone(), selector.transpose()?.unwrap_or_else(Selector::default)))
        }
    }
}

fn read_limits(limits: &crd::Limits, field: &str) -> Result<SourceLimits, Invalid> {
    let within = |number: Option<u32>, max: u32, name: &str| match number {
        Some(number) if !(1..=max).contains(&number) => {
            Err(Invalid::new(format!("{field}.{name}"), format!("{number} is not from 1 to {max}")))
        }
        number => Ok(number),
    };
    let rate_per_s = within(limits.new_connections_per_second, RATE_MAX, "newConnectionsPerSecond")?;
    let burst = within(limits.burst, RATE_MAX, "burst")?;
    let half_open = within(limits.half_open, u32::from(u16::MAX), "halfOpen")?;
    if rate_per_s.is_none() && half_open.is_none() {
        return Err(Invalid::new(field, "limits nothing: newConnectionsPerSecond or halfOpen must be given"));
    }
    if rate_per_s.is_none() && burst.is_some() {
        return Err(Invalid::new(format!("{field}.burst"), "needs newConnectionsPerSecond"));
    }
    let bits = |length: Option<u8>, default: u8, least: u8, most: u8, name: &str| match length.unwrap_or(default) {
        length if (least..=most).contains(&length) => Ok(length),
        length => Err(Invalid::new(format!("{field}.{name}"), format!("{length} is not from {least} to {most}"))),
    };
    Ok(SourceLimits {
        rate_per_s,
        burst: burst.or(rate_per_s).unwrap_or(1),
        half_open_max: half_open.and_then(|most| u16::try_from(most).ok()),
        bits_v4: bits(limits.ipv4_prefix_length, 32, 8, 32, "ipv4PrefixLength")?,
        bits_v6: bits(limits.ipv6_prefix_length, 64, 16, 128, "ipv6PrefixLength")?,
    })
}

fn at_most(len: usize, max: usize, field: &str) -> Result<(), Invalid> {
    match len <= max {
        true => Ok(()),
        false => Err(Invalid::new(field, format!("has {len} entries; at most {max} are taken"))),
    }
}

#[cfg(test)]
mod tests {
    use tidegate_api::resource::Protocol;

    use super::*;

    fn policy(spec: &str) -> Result<GatewayPolicy, String> {
        let text = format!("metadata: {{ name: office }}\nspec: {{ {spec} }}");
        let value: serde_json::Value = serde_norway::from_str(&text).unwrap();
        super::super::typed(&value, None)
            .and_then(|object| read("office", &object))
            .map_err(|invalid| invalid.to_string())
    }

    fn rule(fields: &str) -> Result<Rule, String> {
        policy(&format!("rules: [{{ {fields} }}]")).map(|mut policy| policy.rules.remove(0))
    }

    #[test]
    fn what_is_left_out_has_the_documented_defaults() {
        let read = policy("rules: [{ action: Deny }]").unwrap();
        assert_eq!((read.order, read.audit), (1000, false));
        let Rule { clients, ports, services, action, .. } = &read.rules[0];
        assert_eq!((clients, ports, services, *action), (&None, &None, &None, GatewayAction::Deny));
        let limited = rule("action: Limit, limits: { newConnectionsPerSecond: 7 }").unwrap();
        let limits = SourceLimits { rate_per_s: Some(7), burst: 7, half_open_max: None, bits_v4: 32, bits_v6: 64 };
        assert_eq!(limited.action, GatewayAction::Limit(limits));
    }

    #[test]
    fn every_field_is_read() {
        let read = policy(
            "order: 5, mode: Audit, rules: [{ name: office, action: Limit, \
             clients: [{ cidr: 198.51.100.0/24, except: [198.51.100.7/32] }, { cidr: \"2001:db8::/32\" }], \
             services: [{ namespace: shop, name: web }, { namespace: blog }, \
             { selector: { matchLabels: { tier: front } } }], \
             ports: [{ port: 80, endPort: 90 }, { protocol: UDP }, { protocol: SCTP, port: 7 }], \
             limits: { newConnectionsPerSecond: 10, burst: 20, halfOpen: 3, ipv4PrefixLength: 24, ipv6PrefixLength: 48 } }]",
        )
        .unwrap();
        assert_eq!((read.order, read.audit, read.is_selecting()), (5, true, true));
        let Rule { clients, ports, services, action, .. } = &read.rules[0];
        let limits = SourceLimits { rate_per_s: Some(10), burst: 20, half_open_max: Some(3), bits_v4: 24, bits_v6: 48 };
        assert_eq!(*action, GatewayAction::Limit(limits));
        assert_eq!(clients.as_ref().unwrap()[0].except, ["198.51.100.7/32".parse::<IpNet>().unwrap()]);
        let of = |protocol, first, last| FrontPort { protocol, first, last };
        let expected = [of(Protocol::Tcp, 80, 90), of(Protocol::Udp, 1, u16::MAX), of(Protocol::Sctp, 7, 7)];
        assert_eq!(ports.as_ref().unwrap(), &expected);
        let services = services.as_ref().unwrap();
        assert_eq!(services[0], Choice::One(Name { namespace: "shop".into(), name: "web".into() }));
        assert!(
            matches!(&services[1], Choice::Matching(Some(namespace), all) if namespace == "blog" && all.selects_all())
        );
        assert!(matches!(&services[2], Choice::Matching(None, some) if some.to_string() == "tier=front"));
    }

    /// Nothing would ever be denied by them.
    #[test]
    fn a_service_that_no_object_can_be_is_refused() {
        for (service, field) in [
            ("namespace: Shop, name: web", "namespace"),
            ("namespace: shop, name: 'web '", "name"),
            ("namespace: shop, name: a/b", "name"),
            ("namespace: ''", "namespace"),
            ("selector: { matchLabels: { app: 'web ' } }", "selector.matchLabels"),
            ("selector: { matchLabels: { 'app:': web } }", "selector.matchLabels"),
            (
                "selector: { matchExpressions: [{ key: app, operator: NotIn, values: ['3 '] }] }",
                "selector.matchExpressions[0].values",
            ),
        ] {
            let error = rule(&format!("action: Deny, services: [{{ {service} }}]")).unwrap_err();
            assert!(error.starts_with(&format!("spec.rules[0].services[0].{field}: ")), "{service}: {error}");
        }
    }

    /// A rule that denies does not vanish: what of it cannot be read is everything, and one that allows is for nobody.
    #[test]
    fn a_rule_that_cannot_be_read_is_closed() {
        let stand_in = |spec: &str| {
            let text = format!("metadata: {{ name: office }}\nspec: {{ {spec} }}");
            let value: Value = serde_norway::from_str(&text).unwrap();
            let error = read_value("office", &value, Some(&mut Vec::new())).unwrap_err();
            error.stand_in.map(|object| match *object {
                Object::GatewayPolicy(policy) => *policy,
                other => panic!("{other:?}"),
            })
        };
        for clients in [
            "clients: { cidr: 192.0.2.0/24 }",
            "clients: [{ cidr: 192.0.2.1/24 }]",
            "clients: [{ cidr: \"2001:db8::/129\" }]",
            "clients: [{ cidr: \"2001:db8::/32\", excepts: [] }]",
        ] {
            let policy = stand_in(&format!(
                "order: 5, rules: [{{ action: Deny, {clients}, ports: [{{ port: 80 }}] }}, {{ action: Allow, {clients} }}, \
                 {{ action: Allow }}]"
            ));
            let policy = policy.unwrap_or_else(|| panic!("{clients}"));
            assert_eq!((policy.order, policy.rules.len()), (5, 3), "{clients}");
            let Rule { action, clients, ports, services, .. } = &policy.rules[0];
            assert_eq!((*action, clients, services), (GatewayAction::Deny, &None, &None));
            assert_eq!(ports.as_ref().map(Vec::len), Some(1));
            assert_eq!(
                (policy.rules[1].action, policy.rules[1].clients.as_deref()),
                (GatewayAction::Allow, Some(&[][..]))
            );
            assert_eq!((policy.rules[2].action, &policy.rules[2].clients), (GatewayAction::Allow, &None));
        }
        let misspelt =
            stand_in("rules: [{ action: Deny, client: [{ cidr: 192.0.2.0/24 }], ports: [{ port: 80 }] }]").unwrap();
        assert_eq!((&misspelt.rules[0].clients, &misspelt.rules[0].ports), (&None, &None), "any of them may be meant");
        let mode = stand_in("mode: audit, rules: [{ action: Deny }]").unwrap();
        assert!(!mode.audit && mode.rules.len() == 1);
        assert!(stand_in("order: first, rules: [{ action: Deny }]").is_none());
        assert!(stand_in("rules: all").is_none());
    }

    #[test]
    fn what_cannot_be_worked_with_is_refused_with_its_field() {
        for (spec, expected) in [
            ("order: 65536", "spec.order: 65536 is not from 0 to 65535"),
            ("mode: Off", "spec.mode"),
            ("rules: [{ action: Drop }]", "spec.rules[0].action"),
            ("rules: [{ clients: [{ cidr: 192.0.2.0/24 }] }]", "action"),
            ("rules: [{ action: Limit }]", "spec.rules[0].limits: must be given"),
            ("rules: [{ action: Deny, limits: { halfOpen: 1 } }]", "spec.rules[0].limits: belongs to"),
            ("rules: [{ action: Limit, limits: {} }]", "spec.rules[0].limits: limits nothing"),
            ("rules: [{ action: Limit, limits: { halfOpen: 0 } }]", "spec.rules[0].limits.halfOpen: 0 is not from 1"),
            ("rules: [{ action: Limit, limits: { halfOpen: 1, burst: 1 } }]", "limits.burst: needs"),
            ("rules: [{ action: Limit, limits: { halfOpen: 1, ipv6PrefixLength: 8 } }]", "limits.ipv6PrefixLength: 8"),
            ("rules: [{ action: Deny, clients: [] }]", "spec.rules[0].clients: is empty"),
            ("rules: [{ action: Deny, clients: [{ cidr: all }] }]", "spec.rules[0].clients[0].cidr: \"all\" is not"),
            ("rules: [{ action: Deny, clients: [{ cidr: 192.0.2.1/24 }] }]", "has bits set behind its length"),
            ("rules: [{ action: Deny, clients: [{ cidr: \"::ffff:192.0.2.0/120\" }] }]", "write them as IPv4"),
            (
                "rules: [{ action: Deny }, { action: Deny, clients: [{ cidr: 10.0.0.0/8, except: [11.0.0.0/16] }] }]",
                "spec.rules[1].clients[0].except[0]: 11.0.0.0/16 is not in 10.0.0.0/8",
            ),
            ("rules: [{ action: Deny, ports: [{ port: 0 }] }]", "spec.rules[0].ports[0].port"),
            ("rules: [{ action: Deny, ports: [{ endPort: 9 }] }]", "spec.rules[0].ports[0].endPort: needs port"),
            ("rules: [{ action: Deny, ports: [{ port: 9, endPort: 8 }] }]", "8 is below the port 9"),
            ("rules: [{ action: Deny, ports: [{ protocol: ICMP }] }]", "spec.rules[0].ports[0].protocol"),
            ("rules: [{ action: Deny, services: [{}] }]", "spec.rules[0].services[0]: namespace or selector"),
            ("rules: [{ action: Deny, services: [{ name: web }] }]", "spec.rules[0].services[0].name: needs namespace"),
            ("rules: [{ action: Deny, services: [{ namespace: a/b }] }]", "services[0].namespace: is no name"),
            (
                "rules: [{ action: Deny, services: [{ selector: { matchExpressions: [{ key: a, operator: In }] } }] }]",
                "spec.rules[0].services[0].selector.matchExpressions[0]: operator In needs values",
            ),
        ] {
            let message = policy(spec).unwrap_err();
            assert!(message.contains(expected), "{spec} gave {message:?}");
        }
        let many = vec!["{ action: Deny }"; 129].join(", ");
        assert!(policy(&format!("rules: [{many}]")).unwrap_err().contains("at most 128"));
        let many = vec!["{ cidr: 10.0.0.0/8 }"; 4097].join(", ");
        assert!(rule(&format!("action: Deny, clients: [{many}]")).unwrap_err().contains("at most 4096"));
    }
}
