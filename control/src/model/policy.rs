//! A NetworkPolicy or ClusterNetworkPolicy: whom it is about and what it says, whatever the manifest looked like.
//!
//! Both kinds become one type: tiers, subjects, rules in order. Peers are still selectors here. What of an object could not
//! be worked with is closed already (P-109), and said in [`Policy::complaints`].

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tidegate_api::resource::{Action, PolicyPort, Tier};

use super::selector::Selector;

/// One policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Kind, namespace and name.
    pub key: PolicyKey,
    /// Where in the order of evaluation it stands.
    pub tier: Tier,
    /// The pods it is about.
    pub subjects: Pods,
    /// It decides nothing, and what it would deny is counted.
    #[serde(default)]
    pub audit: bool,
    /// Whether it isolates for ingress and for egress (P-003); NetworkPolicy alone.
    pub isolates: [bool; 2],
    /// Rules for what comes to its subjects, as many as the object has.
    pub ingress: Vec<Rule>,
    /// Rules for what they send.
    pub egress: Vec<Rule>,
    /// Field and reason of what is read as if it matched nothing, or, where a rule denies or passes, everything.
    pub complaints: Vec<(String, String)>,
}

/// Kind, namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PolicyKey {
    /// Which of the two kinds.
    pub kind: PolicyKind,
    /// Namespace; empty for kinds without.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// The kinds of policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PolicyKind {
    /// `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy.
    ClusterNetworkPolicy,
    /// `networking.k8s.io/v1` NetworkPolicy.
    NetworkPolicy,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Name, possibly empty.
    pub name: String,
    /// What it does.
    pub action: Action,
    /// The other side: any of these; `None`: everybody.
    pub peers: Option<Vec<Peer>>,
    /// `None`: every port of every protocol.
    pub ports: Option<Vec<PolicyPort>>,
}

/// One other side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Peer {
    /// Pods by labels.
    Pods(Pods),
    /// Addresses by prefix, with exceptions.
    Network(IpNet, Vec<IpNet>),
    /// All addresses of Nodes with these labels (P-107).
    Nodes(Selector),
}

/// Pods by their own and their namespace's labels. Never pods with the addresses of their node (P-009, P-105).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Pods {
    /// In which namespaces.
    pub namespaces: Namespaces,
    /// Which of them.
    pub pods: Selector,
}

/// Namespaces.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Namespaces {
    /// The one of that name.
    One(String),
    /// Those with such labels.
    Matching(Selector),
}

impl PolicyKey {
    /// Name of the resource it becomes.
    pub fn resource(&self) -> String {
        match self.namespace.as_str() {
            "" => format!("{}/{}", self.kind, self.name),
            namespace => format!("{}/{namespace}/{}", self.kind, self.name),
        }
    }

    /// The key that [`Self::resource`] gave that name.
    pub fn of_resource(name: &str) -> Option<Self> {
        let (kind, rest) = name.split_once('/')?;
        let kind = [PolicyKind::ClusterNetworkPolicy, PolicyKind::NetworkPolicy]
            .into_iter()
            .find(|known| known.to_string() == kind)?;
        let (namespace, name) = rest.split_once('/').unwrap_or(("", rest));
        Some(PolicyKey { kind, namespace: namespace.into(), name: name.into() })
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

impl fmt::Display for Pods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespaces {
            Namespaces::One(name) => write!(f, "pods of {name} ({})", self.pods),
            Namespaces::Matching(selector) => write!(f, "pods ({}) of namespaces ({selector})", self.pods),
        }
    }
}
