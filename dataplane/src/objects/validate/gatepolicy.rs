//! What can be told from one gateway policy alone.

use tidegate_api::resource::{ClientRange, FrontPort, GatewayAction, GatewayPolicy, GatewayRule, SourceLimits};

use super::{Checked, Field, each, ensure};

/// Most rules of a policy.
const RULES_MAX: usize = 1024;
/// Most new connections in a second, and at once: beyond what a worker begins.
const RATE_MAX: u32 = 10_000_000;

/// Checks a gateway policy.
pub(super) fn check(policy: &GatewayPolicy) -> Checked {
    ensure(policy.rules.len() <= RULES_MAX, "rules", || format!("has over {RULES_MAX} rules"))?;
    each("rules", &policy.rules, check_rule)
}

fn check_rule(field: Field<'_>, rule: &GatewayRule) -> Checked {
    if let GatewayAction::Limit(limits) = &rule.action {
        check_limits(field.member("action"), limits)?;
    }
    each(field.member("clients"), rule.clients.as_deref().unwrap_or_default(), check_clients)?;
    each(field.member("ports"), rule.ports.as_deref().unwrap_or_default(), |field, port: &FrontPort| {
        ensure(port.first <= port.last, field, || format!("{} is after {}", port.first, port.last))
    })?;
    let names = rule.services.as_deref().unwrap_or_default();
    ensure(names.is_sorted_by(|a, b| a < b), field.member("services"), || "is not sorted, or names one twice".into())
}

fn check_clients(field: Field<'_>, range: &ClientRange) -> Checked {
    each(field.member("except"), &range.except, |field, inner| {
        ensure(range.prefix.contains(inner), field, || format!("{inner} is not in {}", range.prefix))
    })
}

fn check_limits(field: Field<'_>, limits: &SourceLimits) -> Checked {
    let SourceLimits { rate_per_s, burst, half_open_max, bits_v4, bits_v6 } = *limits;
    let some = rate_per_s.is_some() || half_open_max.is_some();
    ensure(some, field, || "limits nothing".into())?;
    let in_range = |number: u32| (1..=RATE_MAX).contains(&number);
    let rate_fits = rate_per_s.is_none_or(in_range);
    ensure(rate_fits, field.member("rate_per_s"), || format!("is not from 1 to {RATE_MAX}"))?;
    ensure(in_range(burst), field.member("burst"), || format!("{burst} is not from 1 to {RATE_MAX}"))?;
    ensure(half_open_max != Some(0), field.member("half_open_max"), || "is 0".into())?;
    let [v4, v6] = [(1..=32).contains(&bits_v4), (1..=128).contains(&bits_v6)];
    ensure(v4, field.member("bits_v4"), || format!("{bits_v4} is not from 1 to 32"))?;
    ensure(v6, field.member("bits_v6"), || format!("{bits_v6} is not from 1 to 128"))
}

#[cfg(test)]
mod tests {
    use tidegate_api::resource::Protocol;

    use super::*;

    fn limits() -> SourceLimits {
        SourceLimits { rate_per_s: Some(5), burst: 9, half_open_max: Some(3), bits_v4: 32, bits_v6: 64 }
    }

    fn rule() -> GatewayRule {
        let clients = |prefix: &str, except: &str| ClientRange {
            prefix: prefix.parse().unwrap(),
            except: vec![except.parse().unwrap()],
        };
        GatewayRule {
            name: String::new(),
            action: GatewayAction::Limit(limits()),
            clients: Some(vec![clients("198.18.0.0/15", "198.18.5.0/24"), clients("2001:db8::/32", "2001:db8:1::/48")]),
            ports: Some(vec![FrontPort { protocol: Protocol::Tcp, first: 80, last: 90 }]),
            services: Some(vec!["a/b".into(), "a/c".into()]),
        }
    }

    #[test]
    fn a_gateway_policy_is_refused_by_the_field_that_is_wrong() {
        let reason = |edit: &dyn Fn(&mut GatewayRule)| {
            let mut wrong = rule();
            edit(&mut wrong);
            check(&GatewayPolicy { order: 1, audit: false, rules: vec![rule(), wrong] }).err().unwrap_or_default()
        };
        assert_eq!(reason(&|_| ()), "");
        let limited = |edit: fn(&mut SourceLimits)| {
            reason(&move |rule: &mut GatewayRule| {
                let mut wrong = limits();
                edit(&mut wrong);
                rule.action = GatewayAction::Limit(wrong);
            })
        };
        for (told, field) in [
            (
                reason(&|rule| rule.clients.as_mut().unwrap()[1].except[0] = "2001:db9::/48".parse().unwrap()),
                "clients[1].except[0]",
            ),
            (
                reason(&|rule| rule.clients.as_mut().unwrap()[0].except[0] = "::/0".parse().unwrap()),
                "clients[0].except[0]",
            ),
            (reason(&|rule| rule.ports.as_mut().unwrap()[0].last = 79), "ports[0]"),
            (reason(&|rule| rule.services.as_mut().unwrap().reverse()), "services"),
            (limited(|limits| (limits.rate_per_s, limits.half_open_max) = (None, None)), "action"),
            (limited(|limits| limits.rate_per_s = Some(0)), "action.rate_per_s"),
            (limited(|limits| limits.burst = 0), "action.burst"),
            (limited(|limits| limits.half_open_max = Some(0)), "action.half_open_max"),
            (limited(|limits| limits.bits_v4 = 33), "action.bits_v4"),
            (limited(|limits| limits.bits_v6 = 0), "action.bits_v6"),
        ] {
            assert!(told.starts_with(&format!("rules[1].{field}: ")), "{told} / {field}");
        }
    }
}
