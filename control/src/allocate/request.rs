//! What one Service asks of the allocator.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tidegate_api::resource::{Protocol, TrafficPolicy};

use crate::model::Name;
use crate::model::service::{FamilyPolicy, Service};

/// Protocol and port at an address; port 0 is "every port" as a claim of its own, beside single ones.
pub type Port = (Protocol, u16);

/// What one Service asks for, and what its status says it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The Service.
    pub name: Name,
    /// Its identity (S-005).
    pub uid: String,
    /// Seconds since the epoch at creation: the elder is served first.
    pub created_at_s: i64,
    /// Families as "is IPv4", primary first; never empty.
    pub families: Vec<bool>,
    /// How many of them (S-120).
    pub family_policy: FamilyPolicy,
    /// What its status says it has. Believed when the allocator does not know the Service yet, and never afterwards.
    pub status: Vec<IpAddr>,
    /// Addresses asked for, each once (M-004); empty: any.
    pub addresses: Vec<IpAddr>,
    /// Pool asked for.
    pub pool: Option<String>,
    /// Key of those it shares addresses with; empty: with nobody (M-010).
    pub sharing: String,
    /// Its selector under `externalTrafficPolicy: Local`, absent under Cluster (M-010).
    pub backend: Option<String>,
    /// What it serves at each of its addresses.
    pub ports: BTreeSet<Port>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl Request {
    /// The request of a Service of type LoadBalancer whose status has the addresses `status`.
    pub fn new(service: &Service, status: &[IpAddr]) -> Self {
        let mut ports: BTreeSet<Port> = service.ports.iter().map(|port| (port.protocol, port.port)).collect();
        if service.wishes.all_ports {
            ports.extend(service.ports.iter().map(|port| (port.protocol, 0)));
        }
        let asked = &service.address_request;
        let (families, family_policy) = families(service);
        Request {
            name: service.name.clone(),
            uid: service.uid.clone(),
            created_at_s: service.created_at_s,
            families,
            family_policy,
            status: status.to_vec(),
            addresses: asked.addresses.clone(),
            pool: asked.pool.clone(),
            sharing: asked.sharing.clone(),
            backend: (service.external_policy == TrafficPolicy::Local).then(|| asked.selector.clone()),
            ports,
            labels: service.labels.clone(),
        }
    }

    /// Whether both ask for the same; what status says is no wish.
    pub(super) fn same_wish(&self, other: &Request) -> bool {
        let Request { name, uid, created_at_s, families, family_policy, status: _, addresses, pool, .. } = self;
        (name, uid, created_at_s, families, family_policy, addresses, pool)
            == (
                &other.name,
                &other.uid,
                &other.created_at_s,
                &other.families,
                &other.family_policy,
                &other.addresses,
                &other.pool,
            )
            && self.labels == other.labels
            && self.same_claims(other)
    }

    /// Whether both are the same to those who share an address with it.
    pub(super) fn same_claims(&self, other: &Request) -> bool {
        (&self.sharing, &self.backend, &self.ports) == (&other.sharing, &other.backend, &other.ports)
    }

    /// Whether it wants addresses of this family.
    pub(super) fn wants(&self, v4: bool) -> bool {
        self.families.contains(&v4)
    }

    /// Place of an address in the order of families (S-120).
    pub(super) fn rank(&self, address: IpAddr) -> usize {
        self.families.iter().position(|v4| *v4 == address.is_ipv4()).unwrap_or(usize::MAX)
    }

    /// Whose turn it is to choose: who asks for certain addresses has no other choice and comes first, then by age.
    pub(super) fn turn(&self) -> Turn {
        let (created_at_s, name) = self.age();
        (self.addresses.is_empty(), created_at_s, name)
    }

    /// What it is sorted by: the elder first, then by name.
    pub(super) fn age(&self) -> (i64, Name) {
        (self.created_at_s, self.name.clone())
    }
}

/// Whether any address will do, the seconds since 1970 when it was made, and the name.
pub(super) type Turn = (bool, i64, Name);

/// Families and policy. An API server has filled in both; in files written by people an absent family means both as far
/// as there are addresses, unless the cluster IPs say otherwise.
fn families(service: &Service) -> (Vec<bool>, FamilyPolicy) {
    let mut families = service.families.clone();
    for address in service.cluster_ips.iter().filter(|_| service.families.is_empty()) {
        if !families.contains(&address.is_ipv4()) {
            families.push(address.is_ipv4());
        }
    }
    if families.is_empty() {
        let policy = service.family_policy.unwrap_or(FamilyPolicy::PreferDualStack);
        families = match policy {
            FamilyPolicy::SingleStack => vec![true],
            _ => vec![true, false],
        };
        return (families, policy);
    }
    let default = if families.len() > 1 { FamilyPolicy::PreferDualStack } else { FamilyPolicy::SingleStack };
    let policy = service.family_policy.unwrap_or(default);
    if policy == FamilyPolicy::SingleStack {
        families.truncate(1);
    }
    (families, policy)
}
