//! Network policy without selectors: who the rules speak of, and what they say.
//!
//! Pods that no policy can tell apart share an *identity*, a number. A rule speaks of pods through named sets of
//! identities, so that a pod with new labels changes its own resource and the sets it enters or leaves, never a policy.
//! Off-cluster peers are spoken of by prefixes. Everything else is in the policy itself, in the order in which its object
//! has it: rule number *n* of a direction is entry *n* of the object's list.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Protocol;

/// What rules ask of an identity beyond the sets it is in. Its resource is named by the number, in decimal. An identity
/// without named ports needs none.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Identity {
    /// Named ports of its pods' containers, as far as some rule names them; sorted.
    pub ports: Vec<NamedPort>,
}

/// A port that has a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NamedPort {
    /// Name, never empty.
    pub name: String,
    /// L4 protocol.
    pub protocol: Protocol,
    /// Port, host order, never 0.
    pub port: u16,
}

/// The pods that one selector means, by identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct IdentitySet {
    /// Numbers of [`super::Pod::identity`], sorted, none twice, never 0.
    pub identities: Vec<u32>,
}

/// One policy object. Its resource is named `kind/namespace/name`, or `kind/name` where the kind has no namespaces.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Policy {
    /// Where in the order of evaluation it stands (P-100).
    pub tier: Tier,
    /// Name of the [`IdentitySet`] of the pods it is about. A set that is not there has nobody in it.
    pub subjects: String,
    /// It decides nothing: what it would deny, were all that are in audit in force with the others, is only counted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub audit: bool,
    /// Whether its subjects accept only what some policy of [`Tier::Namespace`] allows in (P-003). In that tier alone.
    #[serde(default)]
    pub isolates_ingress: bool,
    /// The same for what they send.
    #[serde(default)]
    pub isolates_egress: bool,
    /// Rules for what comes to the subjects, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<PolicyRule>,
    /// Rules for what they send, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<PolicyRule>,
}

/// Tiers in the order in which they are asked (P-100). In the outer two the lower priority number goes first, then the
/// name (P-101); the first rule that matches decides. In the middle one order means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// ClusterNetworkPolicy of the admin tier, with its priority.
    Admin(u16),
    /// NetworkPolicy: rules allow, and what an isolated subject is not allowed is denied.
    Namespace,
    /// ClusterNetworkPolicy of the baseline tier, with its priority: asked about subjects that are not isolated (P-103).
    Baseline(u16),
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PolicyRule {
    /// Name in the object, possibly empty, for telling people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What happens to what matches. [`Action::Accept`] alone in [`Tier::Namespace`].
    pub action: Action,
    /// The other side: any of these. Absent: everybody; empty: nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<Vec<PolicyPeer>>,
    /// Ports of the side that is asked, after translation (P-025): any of these. Absent: every port of every protocol;
    /// empty: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<PolicyPort>>,
}

/// What a rule does with what it matches (P-102).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Allowed, finally.
    Accept,
    /// Denied, finally.
    Deny,
    /// The rest of its tier is skipped.
    Pass,
}

/// One other side.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyPeer {
    /// Pods of the [`IdentitySet`] of that name. One that is not there has nobody in it.
    Set(String),
    /// Addresses, whoever has them: pods, nodes, clients (P-022, P-107).
    Network {
        /// All of these …
        prefix: IpNet,
        /// … but those.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        except: Vec<IpNet>,
    },
}

/// One port, or several.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PolicyPort {
    /// L4 protocol.
    pub protocol: Protocol,
    /// Which of its ports.
    pub port: PortMatch,
}

/// Which ports of a protocol.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortMatch {
    /// From the first to the last, both included, host order; 0 to 65,535 is all of them.
    Range(u16, u16),
    /// The port that the receiving pod has under that name for that protocol (P-024).
    Named(String),
}

impl PortMatch {
    /// Every port.
    pub const ALL: PortMatch = PortMatch::Range(0, u16::MAX);
}
