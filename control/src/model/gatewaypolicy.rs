//! A GatewayPolicy: which clients may reach which Services, whatever the manifest looked like.

use std::collections::BTreeMap;

use kube::core::{Selector, SelectorExt};
use serde::{Deserialize, Serialize};
use tidegate_api::resource::{ClientRange, FrontPort, GatewayAction};

use super::Name;
use super::service::Service;

/// One GatewayPolicy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GatewayPolicy {
    /// Name.
    pub name: String,
    /// `metadata.generation`, told back in status.
    pub generation: Option<i64>,
    /// Lower ones are asked first, then by name.
    pub order: u16,
    /// It only counts.
    pub audit: bool,
    /// Rules in order.
    pub rules: Vec<Rule>,
    /// Of rules that cannot be read and are closed, by number: field and reason. A good version has none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub mistakes: BTreeMap<usize, (String, String)>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// Name, possibly empty.
    pub name: String,
    /// What it does.
    pub action: GatewayAction,
    /// Clients; `None`: everybody.
    pub clients: Option<Vec<ClientRange>>,
    /// Ports of the Services; `None`: every one.
    pub ports: Option<Vec<FrontPort>>,
    /// Services; `None`: all.
    pub services: Option<Vec<Choice>>,
}

/// Services that a rule speaks of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Choice {
    /// The one of that name, whether it is there or not.
    One(Name),
    /// Those with such labels, in a namespace or in all.
    Matching(Option<String>, Selector),
}

impl Choice {
    /// Whether the Service is meant.
    pub fn selects(&self, service: &Service) -> bool {
        self.selects_one(&service.name, &service.labels)
    }

    /// The same by name and labels.
    pub fn selects_one(&self, service: &Name, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Choice::One(name) => name == service,
            Choice::Matching(namespace, selector) => {
                namespace.as_ref().is_none_or(|namespace| *namespace == service.namespace) && selector.matches(labels)
            }
        }
    }
}

impl GatewayPolicy {
    /// Whether any rule chooses Services by what they are like: then a Service that comes may be meant.
    pub fn is_selecting(&self) -> bool {
        let choices = self.rules.iter().flat_map(|rule| rule.services.iter().flatten());
        choices.into_iter().any(|choice| matches!(choice, Choice::Matching(..)))
    }
}
