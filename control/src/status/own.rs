//! Status of objects of Tidegate's own kinds.
//!
//! Owns the condition that all of them have and the form in which a status goes to the API. Which kind an object is of is
//! a value here, so that one writer writes them all.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::core::ApiResource;
use serde::Serialize;
use serde_json::{Value, json};

use crate::crd::addresspool::{AddressPool, VALID};
use crate::crd::egresspolicy::{EgressGateway, EgressPolicy, EgressPolicyStatus};
use crate::crd::gatewaypolicy::{GatewayPolicy, GatewayPolicyStatus};
use crate::crd::staticnat::{StaticNat, StaticNatStatus};
use crate::source::ObjectKind;

/// Of a Node's name, in that of a field manager.
const MANAGER_NODE_CHARS_MAX: usize = 110;

/// The status of one object, to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnStatus {
    /// Kind, one of ours.
    pub kind: ObjectKind,
    /// Name.
    pub name: String,
    /// All of its status that its writer speaks of.
    pub status: Value,
    /// As whom it is written; `None`: as the one that writes for all gateways.
    pub manager: Option<String>,
}

impl OwnStatus {
    /// The status of the object of `kind` named `name`.
    pub fn new(kind: ObjectKind, name: &str, status: &impl Serialize) -> Self {
        // These types have nothing that JSON lacks.
        OwnStatus { kind, name: name.into(), status: serde_json::to_value(status).unwrap_or_default(), manager: None }
    }

    /// What gateway `node` tells of its own part in an EgressPolicy; `None`: it has none (any more).
    pub fn part_of(node: &str, policy: &str, part: Option<&EgressGateway>) -> Self {
        let status = json!({ "gateways": part.into_iter().collect::<Vec<_>>() });
        // Managers have at most 128 characters.
        let manager = format!("tidegate-gateway-{}", node.chars().take(MANAGER_NODE_CHARS_MAX).collect::<String>());
        OwnStatus { kind: ObjectKind::EgressPolicy, name: policy.into(), status, manager: Some(manager) }
    }

    /// The resource of its kind; `None`: not a kind of ours.
    pub(super) fn resource(&self) -> Option<ApiResource> {
        match self.kind {
            ObjectKind::AddressPool => Some(ApiResource::erase::<AddressPool>(&())),
            ObjectKind::EgressPolicy => Some(ApiResource::erase::<EgressPolicy>(&())),
            ObjectKind::GatewayPolicy => Some(ApiResource::erase::<GatewayPolicy>(&())),
            ObjectKind::StaticNat => Some(ApiResource::erase::<StaticNat>(&())),
            _ => None,
        }
    }

    /// What must be allowed for it to be written.
    pub(super) fn rule(&self) -> &'static str {
        match self.kind {
            ObjectKind::EgressPolicy => "patch egresspolicies/status in tidegate.io",
            ObjectKind::GatewayPolicy => "patch gatewaypolicies/status in tidegate.io",
            ObjectKind::StaticNat => "patch staticnats/status in tidegate.io",
            _ => "patch addresspools/status in tidegate.io",
        }
    }

    /// The object as it is applied.
    pub(super) fn object(&self, resource: &ApiResource) -> Value {
        json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": { "name": self.name },
            "status": self.status,
        })
    }
}

/// Why an object is not in force as it is written, or what must be known of it: reason and message.
pub type Trouble<'a> = (&'a str, String);

/// The condition [`VALID`]: false with that trouble, or true. `before` are the conditions as they were written last: one
/// that still holds keeps its time.
pub fn valid(generation: Option<i64>, trouble: Option<Trouble<'_>>, good: &str, before: &[Condition]) -> Condition {
    match trouble {
        Some((reason, message)) => condition(generation, "False", reason, message, before),
        None => condition(generation, "True", "InForce", good.into(), before),
    }
}

/// The condition [`VALID`] in those words.
pub fn condition(
    generation: Option<i64>,
    status: &str,
    reason: &str,
    message: String,
    before: &[Condition],
) -> Condition {
    named(VALID, generation, (status, reason, &message), before)
}

/// A condition of that type: status, reason and message. One of `before` that still holds keeps its time.
pub fn named(kind: &str, generation: Option<i64>, said: (&str, &str, &str), before: &[Condition]) -> Condition {
    let (status, reason, message) = said;
    let same = |old: &&Condition| old.type_ == kind && old.status == status;
    let since = before.iter().find(same).map(|old| old.last_transition_time.clone());
    Condition {
        last_transition_time: since.unwrap_or_else(|| Time(Timestamp::now())),
        message: message.into(),
        observed_generation: generation,
        reason: reason.into(),
        status: status.into(),
        type_: kind.into(),
    }
}

/// What an EgressPolicy is used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EgressUse<'a> {
    /// Addresses that it has.
    pub addresses: &'a [std::net::IpAddr],
    /// Pods that leave by it.
    pub pods: usize,
    /// Ports in use at all gateways.
    pub ports_used: i64,
    /// New connections refused at all gateways.
    pub ports_refused: i64,
}

/// The status of an EgressPolicy. Its conditions are the caller's.
pub fn egress(generation: Option<i64>, used: EgressUse<'_>, conditions: Vec<Condition>) -> EgressPolicyStatus {
    EgressPolicyStatus {
        observed_generation: generation,
        addresses: used.addresses.iter().map(ToString::to_string).collect(),
        pods: i64::try_from(used.pods).unwrap_or(i64::MAX),
        ports_used: used.ports_used,
        ports_refused: used.ports_refused,
        gateways: Vec::new(), // each gateway's own
        conditions,
    }
}

/// The status of a GatewayPolicy that speaks of so many Services (`None`: of all).
pub fn gateway_policy(
    generation: Option<i64>,
    services: Option<usize>,
    audit: bool,
    trouble: Option<Trouble<'_>>,
    before: &[Condition],
) -> GatewayPolicyStatus {
    let good = if audit { "it counts what it would deny" } else { "gateways enforce it as it is written" };
    GatewayPolicyStatus {
        observed_generation: generation,
        services: services.map(|count| i64::try_from(count).unwrap_or(i64::MAX)),
        conditions: vec![valid(generation, trouble, good, before)],
    }
}

/// The status of a StaticNat.
pub fn static_nat(generation: Option<i64>, trouble: Option<Trouble<'_>>, before: &[Condition]) -> StaticNatStatus {
    let conditions = vec![valid(generation, trouble, "the address leads to the pod", before)];
    StaticNatStatus { observed_generation: generation, conditions }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_goes_to_the_kind_it_is_of() {
        let addresses = ["192.0.2.1".parse().unwrap()];
        let used = EgressUse { addresses: &addresses, pods: 2, ports_used: 7, ports_refused: 1 };
        let status = egress(Some(3), used, vec![valid(Some(3), None, "good", &[])]);
        let own = OwnStatus::new(ObjectKind::EgressPolicy, "shop", &status);
        let resource = own.resource().unwrap();
        assert_eq!(
            (resource.plural.as_str(), resource.api_version.as_str()),
            ("egresspolicies", "tidegate.io/v1alpha1")
        );
        let object = own.object(&resource);
        assert_eq!(object["kind"], "EgressPolicy");
        assert_eq!((&object["status"]["pods"], &object["status"]["addresses"][0]), (&2.into(), &"192.0.2.1".into()));
        assert_eq!(object["status"]["conditions"][0]["status"], "True");
        assert_eq!((&object["status"]["portsUsed"], object["status"].get("gateways")), (&7.into(), None));
        let part = OwnStatus::part_of("gw-1", "shop", None);
        assert_eq!(part.object(&resource)["status"], json!({ "gateways": [] }));
        assert!(OwnStatus::part_of(&"n".repeat(253), "shop", None).manager.is_some_and(|manager| manager.len() <= 128));
        assert!(OwnStatus::new(ObjectKind::Node, "n", &()).resource().is_none());
    }

    #[test]
    fn a_condition_keeps_its_time_while_it_holds() {
        let mut before = static_nat(Some(1), None, &[]).conditions;
        before[0].last_transition_time = Time(Timestamp::UNIX_EPOCH);
        assert_eq!(static_nat(Some(1), None, &before).conditions, before);
        let bad = static_nat(Some(2), Some(("NowhereToLead", "leads nowhere".into())), &before).conditions;
        assert_eq!((bad[0].status.as_str(), bad[0].reason.as_str()), ("False", "NowhereToLead"));
        assert_ne!(bad[0].last_transition_time, before[0].last_transition_time);
    }
}
