//! A GatewayPolicy → rules with names of Services instead of selectors.

use std::collections::BTreeSet;

use tidegate_api::resource;

use crate::model::gatewaypolicy::{Choice, GatewayPolicy};
use crate::model::service::Service;

/// The policy as gateways have it, about these Services.
pub fn resolve<'a>(
    policy: &GatewayPolicy,
    services: impl Iterator<Item = &'a Service> + Clone,
) -> resource::GatewayPolicy {
    let names = |choices: &Vec<Choice>| {
        let mut names = BTreeSet::new();
        for choice in choices {
            match choice {
                // Also of one that is not there yet: the rule is, when it comes.
                Choice::One(name) => drop(names.insert(name.to_string())),
                Choice::Matching(..) => {
                    let meant = services.clone().filter(|service| choice.selects(service));
                    names.extend(meant.map(|service| service.name.to_string()));
                }
            }
        }
        names.into_iter().collect()
    };
    let rules = policy.rules.iter().map(|rule| resource::GatewayRule {
        name: rule.name.clone(),
        action: rule.action,
        clients: rule.clients.clone(),
        ports: rule.ports.clone(),
        services: rule.services.as_ref().map(names),
    });
    resource::GatewayPolicy { order: policy.order, audit: policy.audit, rules: rules.collect() }
}
