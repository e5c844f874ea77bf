//! What external addresses are used for, here and at other gateways: `status` of EgressPolicies.
//!
//! Owns when the dataplane is asked, what of its answer is worth a write, and the sums. An address is carried by one gateway
//! at a time, and only there are its ports given out, so that each gateway tells of itself: an entry of `status.gateways`,
//! which it writes as a manager of its own, whoever has the Lease. The holder of the Lease writes everything else, with sums
//! over the entries that it sees. An entry of a gateway that carries nothing any more and does not say so (it has died) goes
//! by the hand of that holder.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use tidegate_api::resource::{Body, Kind, ResourceKey};
use tidegate_api::show::{EgressShown, Show};

use super::Reconciler;
use super::egress::own_key;
use crate::crd::egresspolicy::{EgressGateway, EgressPolicyStatus, PORTS_AVAILABLE, PROGRAMMED};
use crate::model::egresspolicy::EgressPolicy;
use crate::session::Standing;
use crate::source::ObjectKind;
use crate::status::own::{self, EgressUse, OwnStatus};

/// How often the dataplane is asked, while there are policies.
const ASKED_EVERY: Duration = Duration::from_secs(5);
/// Ports by which a number may differ from what was told, and a share of it: one in so many.
const STEP_PORTS: i64 = 64;
/// See [`STEP_PORTS`].
const STEP_SHARE: i64 = 10;
/// Refusals that go on are told at most so often.
const REFUSED_EVERY: Duration = Duration::from_secs(30);
/// Ports are available again when for so long nobody has been refused.
const REFUSED_FOR: Duration = Duration::from_secs(60);
/// What a gateway says of an address that is another's is left to it for so long.
const STALE_AFTER: Duration = Duration::from_secs(30);

/// What the dataplane told, and what has been told of it.
#[derive(Debug, Default)]
pub(super) struct Carrying {
    asked_at: Option<Instant>,
    /// The last answer.
    shown: Option<EgressShown>,
    /// What was written of this gateway, by policy.
    parts: BTreeMap<String, Part>,
    /// Sums as they were written, by policy.
    sums: BTreeMap<String, Sums>,
    /// Entries of others that seem left behind, by policy and gateway, since when.
    left: BTreeMap<(String, String), Instant>,
}

#[derive(Debug)]
struct Part {
    told: Option<EgressGateway>,
    at: Instant,
}

/// Ports at all gateways.
#[derive(Debug, Default)]
struct Sums {
    used: i64,
    refused: i64,
    /// When more were refused than before.
    refused_at: Option<Instant>,
}

/// Whether `now` is worth telling to who was told `before`.
fn differs(before: i64, now: i64) -> bool {
    (before == 0) != (now == 0) || before.abs_diff(now) >= STEP_PORTS.max(before / STEP_SHARE).unsigned_abs()
}

/// Whether `there` says what `status` would, gateways' own entries aside. Conditions are a map by their type, which the
/// server keeps in whatever order they came.
fn says_the_same(status: &EgressPolicyStatus, there: &EgressPolicyStatus) -> bool {
    let sorted = |status: &EgressPolicyStatus| {
        let mut status = EgressPolicyStatus { gateways: Vec::new(), ..status.clone() };
        status.conditions.sort_by(|one, other| one.type_.cmp(&other.type_));
        status
    };
    sorted(status) == sorted(there)
}

/// What this gateway has to say of a policy; `None`: it carries none of its addresses.
fn part(shown: &EgressShown, node: &str, policy: &str, addresses: &[std::net::IpAddr]) -> Option<EgressGateway> {
    let carried = addresses.iter().filter(|address| shown.carriers.get(address).is_some_and(|name| name == node));
    let addresses: Vec<String> = carried.map(ToString::to_string).collect();
    let rows = || shown.addresses.iter().filter(|row| row.policies.iter().any(|name| name == policy));
    let sum = |numbers: u64| i64::try_from(numbers).unwrap_or(i64::MAX);
    (!addresses.is_empty()).then(|| EgressGateway {
        name: node.into(),
        addresses,
        ports_used: sum(rows().map(|row| row.used).sum()),
        ports_refused: sum(rows().map(|row| row.refused).sum()),
    })
}

impl Part {
    /// Whether something else is to be said at `now`.
    fn is_outdated(&self, wanted: Option<&EgressGateway>, now: Instant) -> bool {
        match (&self.told, wanted) {
            (None, None) => false,
            (Some(told), Some(wanted)) => {
                let refused = told.ports_refused != wanted.ports_refused
                    && (told.ports_refused == 0 || now.saturating_duration_since(self.at) >= REFUSED_EVERY);
                told.addresses != wanted.addresses || differs(told.ports_used, wanted.ports_used) || refused
            }
            _ => true,
        }
    }
}

impl Reconciler {
    /// Asks the dataplane what its external addresses are used for, if it is time.
    pub(super) fn ask_of_carrying(&mut self) {
        let early = self.carrying.asked_at.is_some_and(|at| at.elapsed() < ASKED_EVERY);
        if early || !self.office.has_api() || self.model.egress().next().is_none() {
            return;
        }
        match self.session.ask(Show::Egress) {
            Ok(true) => self.carrying.asked_at = Some(Instant::now()),
            Ok(false) => {} // busy; soon again
            Err(error) => tracing::debug!(%error, "the dataplane could not be asked"),
        }
    }

    /// The dataplane has answered.
    pub(super) fn hear_of_carrying(&mut self, shown: EgressShown) {
        self.carrying.shown = Some(shown);
        self.tell_parts();
        self.leaving.touch();
    }

    /// Writes what this gateway has to tell of itself, where that differs from what it told.
    fn tell_parts(&mut self) {
        let Some(shown) = &self.carrying.shown else { return };
        let (node, now) = (&self.file.node, Instant::now());
        let mut news = Vec::new();
        for policy in self.model.egress() {
            let wanted = part(shown, node, &policy.name, self.addresses_of(&policy.name));
            let there = policy.told.gateways.iter().find(|gateway| gateway.name == *node);
            // What an earlier run has written, or nothing.
            let first = Part { told: there.cloned(), at: now };
            let before = self.carrying.parts.get(&policy.name).unwrap_or(&first);
            // What was written and is not there was lost on the way, or taken away by somebody.
            let lost = before.told.is_some() != there.is_some() && before.at.elapsed() >= ASKED_EVERY;
            if before.is_outdated(wanted.as_ref(), now) || lost {
                news.push((policy.name.clone(), wanted));
            }
        }
        for (policy, told) in news {
            self.office.tell_part(OwnStatus::part_of(&self.file.node, &policy, told.as_ref()));
            self.carrying.parts.insert(policy, Part { told, at: now });
        }
        let model = &self.model;
        let is_there = |name: &String| model.egress().any(|policy| policy.name == *name);
        self.carrying.parts.retain(|name, _| is_there(name));
        self.carrying.sums.retain(|name, _| is_there(name));
    }

    /// Addresses that the dataplane is to use of a policy.
    pub(super) fn addresses_of(&self, policy: &str) -> &[std::net::IpAddr] {
        let key = ResourceKey { kind: Kind::Egress, name: policy.into() };
        match self.desired.resources.get(&key).map(|resource| &resource.body) {
            Some(Body::Egress(egress)) => &egress.addresses,
            _ => &[],
        }
    }

    /// The status of a policy that `pods` pods leave by, if the one that is there says something else.
    pub(super) fn egress_status(&self, policy: &EgressPolicy, pods: usize) -> Option<EgressPolicyStatus> {
        let about = own_key(ObjectKind::EgressPolicy, &policy.name);
        // As the server keeps them: its times are whole seconds.
        let before = match policy.told.conditions.as_slice() {
            [] => self.leaving.before(&about),
            there => there,
        };
        let sums = self.carrying.sums.get(&policy.name);
        let (ports_used, ports_refused) = sums.map_or((0, 0), |sums| (sums.used, sums.refused));
        let used = EgressUse { addresses: self.addresses_of(&policy.name), pods, ports_used, ports_refused };
        let trouble = self.trouble(&about);
        let mut conditions = vec![own::valid(policy.generation, trouble, "pods leave with these addresses", before)];
        conditions.extend(self.programmed(policy, before));
        conditions.extend(self.not_ours(used.addresses, policy.generation, before));
        let refused = sums.and_then(|sums| sums.refused_at).is_some_and(|at| at.elapsed() < REFUSED_FOR);
        conditions.push(match refused {
            true => own::named(
                PORTS_AVAILABLE,
                policy.generation,
                ("False", "PortsExhausted", "new connections found no port, or met a quota, within the last minute"),
                before,
            ),
            false => own::named(
                PORTS_AVAILABLE,
                policy.generation,
                ("True", "NoneRefused", "no new connection has been refused for a minute"),
                before,
            ),
        });
        let status = own::egress(policy.generation, used, conditions);
        (!says_the_same(&status, &policy.told)).then_some(status)
    }

    /// Whether this gateway's workers forward by a policy; `None`: it is on its way.
    fn programmed(&self, policy: &EgressPolicy, before: &[Condition]) -> Option<Condition> {
        let key = ResourceKey { kind: Kind::Egress, name: policy.name.clone() };
        let wanted = &self.desired.resources.get(&key)?.version;
        let refused = self.session.refused().get(&key).filter(|refused| refused.version == *wanted);
        let at_work = match self.session.standing(&key) {
            Standing::Held { version, reached } => version == *wanted && reached.is_some(),
            Standing::Absent => false,
        };
        let said = |said| Some(own::named(PROGRAMMED, policy.generation, said, before));
        match refused {
            Some(refused) => said(("False", "Refused", refused.reason.as_str())),
            None if at_work => said(("True", "Programmed", "all workers forward by this version")),
            None => before.iter().find(|condition| condition.type_ == PROGRAMMED).cloned(),
        }
    }

    /// Sums what all gateways tell, and takes away what was left behind. For who has the Lease.
    pub(super) fn sum_carrying(&mut self) {
        let now = Instant::now();
        let mut stale = Vec::new();
        let mut seen = Vec::new();
        for policy in self.model.egress() {
            let told = &policy.told.gateways;
            let used: i64 = told.iter().map(|gateway| gateway.ports_used).fold(0, i64::saturating_add);
            let refused: i64 = told.iter().map(|gateway| gateway.ports_refused).fold(0, i64::saturating_add);
            let sums = self.carrying.sums.entry(policy.name.clone()).or_insert_with(|| Sums {
                used: policy.told.ports_used,
                refused: policy.told.ports_refused,
                refused_at: None,
            });
            if refused > sums.refused {
                sums.refused_at = Some(now);
            }
            (sums.used, sums.refused) = (used, refused);
            let Some(shown) = &self.carrying.shown else { continue };
            let carries = |gateway: &EgressGateway| {
                let named = gateway.addresses.iter().filter_map(|address| address.parse().ok());
                named.into_iter().any(|address| shown.carriers.get(&address) == Some(&gateway.name))
            };
            for gateway in told.iter().filter(|gateway| gateway.name != self.file.node && !carries(gateway)) {
                let at = (policy.name.clone(), gateway.name.clone());
                if now.saturating_duration_since(*self.carrying.left.entry(at.clone()).or_insert(now)) >= STALE_AFTER {
                    stale.push(at.clone());
                }
                seen.push(at);
            }
        }
        self.carrying.left.retain(|at, _| seen.contains(at) && !stale.contains(at));
        for (policy, gateway) in stale {
            self.office.tell_part(OwnStatus::part_of(&gateway, &policy, None));
        }
    }
}

#[cfg(test)]
mod tests {
    use tidegate_api::show::EgressAddressRow;

    use super::*;

    fn row(address: &str, protocol: &str, used: u64, refused: u64) -> EgressAddressRow {
        EgressAddressRow {
            address: address.parse().unwrap(),
            policies: vec!["out".into()],
            protocol: protocol.into(),
            ports: 64_512,
            used,
            resting: 0,
            held: used,
            refused,
        }
    }

    #[test]
    fn a_gateway_tells_of_what_it_carries() {
        let addresses = ["192.0.2.9", "2001:db8::9"].map(|address| address.parse().unwrap());
        let mut shown = EgressShown {
            addresses: vec![
                row("192.0.2.9", "tcp", 700, 0),
                row("192.0.2.9", "udp", 5, 2),
                row("2001:db8::9", "tcp", 1, 0),
            ],
            ..EgressShown::default()
        };
        assert_eq!(part(&shown, "gw-1", "out", &addresses), None, "nobody carries anything");
        shown.carriers = [(addresses[0], "gw-1".to_owned()), (addresses[1], "gw-2".to_owned())].into();
        let told = part(&shown, "gw-1", "out", &addresses).unwrap();
        assert_eq!((told.addresses, told.ports_used, told.ports_refused), (vec!["192.0.2.9".to_owned()], 706, 2));
        assert_eq!(part(&shown, "gw-1", "other", &[]), None);
    }

    #[test]
    fn the_order_of_conditions_is_no_news() {
        let condition = |kind: &str, said| own::named(kind, Some(1), said, &[]);
        let valid = condition("Valid", ("True", "InForce", ""));
        let ports = condition(PORTS_AVAILABLE, ("True", "NoneRefused", ""));
        let says = |conditions: &[&Condition]| EgressPolicyStatus {
            conditions: conditions.iter().copied().cloned().collect(),
            ports_used: 7,
            ..EgressPolicyStatus::default()
        };
        assert!(says_the_same(&says(&[&valid, &ports]), &says(&[&ports, &valid])));
        assert!(!says_the_same(&says(&[&valid, &ports]), &says(&[&valid])));
        let denied = condition("Valid", ("False", "Invalid", ""));
        assert!(!says_the_same(&says(&[&denied, &ports]), &says(&[&ports, &valid])));
        assert!(!says_the_same(&says(&[]), &EgressPolicyStatus::default()));
    }

    #[test]
    fn small_steps_are_not_told() {
        let part = |used, refused| EgressGateway {
            name: "gw-1".into(),
            addresses: vec!["192.0.2.9".into()],
            ports_used: used,
            ports_refused: refused,
        };
        let (begun, told) = (Instant::now(), part(2000, 1));
        let said = Part { told: Some(told.clone()), at: begun };
        assert!(!said.is_outdated(Some(&told), begun));
        assert!(!said.is_outdated(Some(&part(2199, 1)), begun), "less than a tenth");
        assert!(said.is_outdated(Some(&part(2200, 1)), begun));
        assert!(said.is_outdated(Some(&part(0, 1)), begun), "none is news");
        assert!(!said.is_outdated(Some(&part(2000, 9)), begun), "told a moment ago");
        assert!(said.is_outdated(Some(&part(2000, 9)), begun + REFUSED_EVERY));
        assert!(
            Part { told: Some(part(7, 0)), at: begun }.is_outdated(Some(&part(7, 1)), begun),
            "the first one is told"
        );
        assert!(said.is_outdated(None, begun) && !Part { told: None, at: begun }.is_outdated(None, begun));
        assert!(!differs(10, 70) && differs(10, 74) && differs(0, 1));
    }
}
