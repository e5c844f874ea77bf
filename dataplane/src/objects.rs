//! Accepted objects: what control wants and this dataplane agreed to.
//!
//! Owns the last good version of every object and decides about new ones, each by itself and with a reason: first what
//! can be told from the object alone ([`validate`]), then what it claims for itself and another already holds (a
//! frontend, a pod prefix, an underlay address). It refuses to know rows and ids: [`Outcome::changes`] tells the compiler
//! what to do. Control settles claims by age (S-067); the check here is the fence behind it, since two rows for one
//! frontend would make the answer depend on the order of events.
//!
//! An update is applied as a whole, so that objects may trade claims in one update. Where that fails, the newcomers that
//! came too late (younger, then by name) are refused and their last good version, which may want its own claims back,
//! stays; this is repeated until everything that remains fits. It ends, since each round refuses at least one newcomer
//! and the state before the update had no conflict.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use home::Homes;
use ipnet::IpNet;
use siphasher::sip::SipHasher13;
use tidegate_api::message::{Rejection, Update};
use tidegate_api::resource::{Body, Kind, Protocol, Resource, ResourceKey, Versions};

use crate::kernel::Layout;
use place::{Place, places};

/// What can be told from one object alone, and from the machine it is meant for.
pub mod validate;
/// The addresses at which Services are reached.
pub mod place;
/// Addresses at which peers and their pods live.
mod home;
/// Accepted objects on disk.
pub mod saved;

/// All accepted objects.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    accepted: BTreeMap<ResourceKey, Arc<Resource>>,
    claims: HashMap<Claim, ResourceKey>,
    /// How many Services are reached at a place.
    places: HashMap<Place, u32>,
    /// Addresses that the gateway keeps for itself.
    reserved: BTreeSet<IpAddr>,
    /// Where accepted peers live.
    homes: Homes,
    /// Sum over names and versions of Services.
    digest: u64,
}

/// An object as it is in force from now on; `None`: not any more.
pub type InForce = (ResourceKey, Option<Arc<Resource>>);

/// What one update did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Objects not taken, with reasons, in the order of their keys.
    pub rejected: Vec<Rejection>,
    /// Objects that differ from before, in the order of their keys.
    pub changes: Vec<Change>,
    /// The same, and those whose version alone differs.
    pub taken: Vec<InForce>,
}

/// One object that differs from before.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Which object.
    pub key: ResourceKey,
    /// What was in force; `None`: nothing.
    pub before: Option<Arc<Resource>>,
    /// What is in force now; `None`: nothing any more.
    pub after: Option<Arc<Resource>>,
}

/// Something only one object can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Claim {
    /// To be the gateway.
    Gateway,
    /// An address with protocol and port.
    Frontend(IpAddr, Protocol, u16),
    /// A prefix of VIPs with protocol and port.
    Prefixed(IpNet, Protocol, u16),
    /// A pod prefix: where its pods live.
    Prefix(IpNet),
    /// To be who sends from an underlay address on a network (V-015).
    Underlay(IpAddr, u32),
    /// An overlay address of the gateway itself, or an address translated one to one.
    Reserved(IpAddr),
    /// To be the pod of an overlay address.
    Pod(IpAddr),
}

impl Objects {
    /// Versions of all accepted objects.
    pub fn versions(&self) -> Versions {
        self.accepted.iter().map(|(key, resource)| (key.clone(), resource.version.clone())).collect()
    }

    /// Every accepted object, in the order of keys. Costs a reference count each.
    pub fn snapshot(&self) -> Vec<Arc<Resource>> {
        self.accepted.values().cloned().collect()
    }

    /// One object.
    pub fn get(&self, key: &ResourceKey) -> Option<&Arc<Resource>> {
        self.accepted.get(key)
    }

    /// Every accepted object, in the order of keys.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.accepted.values()
    }

    /// Every accepted object of one kind, in the order of names.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Arc<Resource>> {
        let from = key(kind, "");
        self.accepted.range(from..).take_while(move |(key, _)| key.kind == kind).map(|(_, resource)| resource)
    }

    /// Every place at which Services are reached, and how many are there.
    pub fn places(&self) -> &HashMap<Place, u32> {
        &self.places
    }

    /// A digest of the names and versions of all Services, whatever the order in which they came: gateways with the same
    /// Services have the same.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.accepted.len()
    }

    /// Whether there is no object.
    pub fn is_empty(&self) -> bool {
        self.accepted.is_empty()
    }

    /// Applies `update`. With `machine`, objects that do not fit this machine are refused too; without (objects saved by
    /// an earlier run, whose addresses may not be up yet) only the compiler judges that. What is `prepared` has been judged by
    /// itself ([`validate::resource`]), each object of it, by whoever hands it over.
    pub fn apply(&mut self, update: Update, machine: Option<&Layout>) -> Outcome {
        let mut outcome = Outcome::default();
        let mut wanted = self.wanted(update, machine, &mut outcome.rejected);
        self.refuse_hijackers(&mut wanted, &mut outcome.rejected);
        loop {
            let refused = self.claim_all(&wanted);
            if refused.is_empty() {
                break;
            }
            for (key, reason) in refused {
                if let Some(Some(resource)) = wanted.remove(&key) {
                    outcome.rejected.push(Rejection { key, version: resource.version.clone(), reason });
                }
            }
        }
        for (key, after) in wanted {
            let before = match &after {
                Some(resource) => self.accepted.insert(key.clone(), Arc::clone(resource)),
                None => self.accepted.remove(&key),
            };
            if key.kind == Kind::Service {
                self.digest = self.digest.wrapping_sub(before.as_deref().map_or(0, digest_of));
                self.digest = self.digest.wrapping_add(after.as_deref().map_or(0, digest_of));
            }
            if key.kind == Kind::Peer {
                before.iter().for_each(|peer| self.homes.remove(peer));
                after.iter().for_each(|peer| self.homes.add(peer));
            }
            outcome.taken.push((key.clone(), after.clone()));
            if before.as_ref().map(|resource| &resource.body) != after.as_ref().map(|resource| &resource.body) {
                outcome.changes.push(Change { key, before, after });
            }
        }
        outcome.rejected.sort_by(|a, b| a.key.cmp(&b.key));
        outcome
    }

    /// What `update` wants, object by object (`None`: that it goes), less what is refused by itself and what is no news.
    fn wanted(
        &self,
        update: Update,
        machine: Option<&Layout>,
        rejected: &mut Vec<Rejection>,
    ) -> BTreeMap<ResourceKey, Option<Arc<Resource>>> {
        let mut listed: BTreeMap<ResourceKey, Option<Arc<Resource>>> = BTreeMap::new();
        if !update.full {
            listed.extend(update.removed.into_iter().map(|key| (key, None)));
        }
        let (mut seen, mut keep) = (HashSet::new(), HashSet::new());
        for resource in update.resources {
            let key = resource.key();
            let verdict = if update.prepared || seen.insert(key.clone()) {
                let by_itself = if update.prepared { Ok(()) } else { validate::resource(&resource) };
                by_itself.and_then(|()| validate::machine(&resource, machine))
            } else {
                Err("stands twice in one update; the first one was used".to_owned())
            };
            match verdict {
                Ok(()) => drop(listed.insert(key, Some(Arc::new(resource)))),
                Err(reason) => {
                    keep.insert(key.clone());
                    rejected.push(Rejection { key, version: resource.version, reason });
                }
            }
        }
        if update.full {
            let gone = self.accepted.keys().filter(|key| !keep.contains(*key) && !listed.contains_key(*key));
            let gone: Vec<_> = gone.map(|key| (key.clone(), None)).collect();
            listed.extend(gone);
        }
        listed.retain(|key, after| self.accepted.get(key) != after.as_ref());
        listed
    }

    /// Refuses Services that want to answer for a peer or one of its pods: that would take the node's tunnel, or a pod's
    /// traffic, from everybody behind this gateway. A peer is never refused for a Service, or whoever may name VIPs could
    /// keep nodes out.
    fn refuse_hijackers(
        &self,
        wanted: &mut BTreeMap<ResourceKey, Option<Arc<Resource>>>,
        rejected: &mut Vec<Rejection>,
    ) {
        if !wanted.values().flatten().any(|resource| places(resource).next().is_some()) {
            return;
        }
        let mut coming = Homes::default();
        let mut moving = HashSet::new();
        for (key, resource) in wanted.iter().filter(|(key, _)| key.kind == Kind::Peer) {
            resource.iter().for_each(|peer| coming.add(peer));
            moving.insert(key.name.clone());
        }
        let hijacked = |place: Place| {
            let whole = place.whole()?;
            let staying = self.homes.at(&whole, |peer| !moving.contains(peer));
            staying.or_else(|| coming.at(&whole, |_| true))
        };
        wanted.retain(|key, resource| {
            let Some(resource) = resource else { return true };
            let Some(((field, number), what)) = places(resource).find_map(|(at, place)| Some((at, hijacked(place)?)))
            else {
                return true;
            };
            let (reason, version) = (format!("{field}[{number}]: {what}"), resource.version.clone());
            rejected.push(Rejection { key: key.clone(), version, reason });
            false
        });
    }

    /// Moves all claims from what is in force to what is `wanted`. If some cannot have theirs, everything is as it was
    /// and those are named with the reason.
    fn claim_all(&mut self, wanted: &BTreeMap<ResourceKey, Option<Arc<Resource>>>) -> Vec<(ResourceKey, String)> {
        let before: Vec<_> = wanted.keys().filter_map(|key| self.accepted.get(key).cloned()).collect();
        for resource in &before {
            self.release(resource);
        }
        let mut order: Vec<_> = wanted.values().flatten().collect();
        // The gateway first, since everything else gives way to it; then by age and name (S-067).
        order.sort_by_cached_key(|resource| (resource.body.kind(), age(resource), resource.name.clone()));
        let mut taken = Vec::new();
        let mut refused = Vec::new();
        for resource in order {
            match self.claim(resource) {
                Ok(()) => taken.push(Arc::clone(resource)),
                Err(reason) => refused.push((resource.key(), reason)),
            }
        }
        if !refused.is_empty() {
            for resource in &taken {
                self.release(resource);
            }
            for resource in &before {
                let restored = self.claim(resource);
                debug_assert!(restored.is_ok(), "what was in force fits together");
            }
        }
        refused
    }

    /// Takes all claims of `resource`, or none.
    fn claim(&mut self, resource: &Resource) -> Result<(), String> {
        let key = resource.key();
        let claims = claims(resource);
        for (field, claim) in &claims {
            if let Some(holder) = self.claims.get(claim).filter(|holder| **holder != key) {
                return Err(format!("{field}: {claim} already belongs to {holder}"));
            }
            if let Claim::Reserved(address) = claim
                && let Some(place) = self.place_at(*address)
            {
                return Err(format!("{field}: {address} is {}", self.in_words(place)));
            }
        }
        for ((field, number), place) in places(resource) {
            let Some(whole) = place.whole() else { continue };
            if let Some((address, holder)) = self.reserved_in(&whole) {
                return Err(format!("{field}[{number}]: {address} is reserved by {holder}"));
            }
        }
        for (_, place) in places(resource) {
            *self.places.entry(place).or_default() += 1;
        }
        for (_, claim) in claims {
            if let Claim::Reserved(address) = claim {
                self.reserved.insert(address);
            }
            self.claims.insert(claim, key.clone());
        }
        Ok(())
    }

    fn release(&mut self, resource: &Resource) {
        for (_, claim) in claims(resource) {
            self.claims.remove(&claim);
            if let Claim::Reserved(address) = claim {
                self.reserved.remove(&address);
            }
        }
        for (_, place) in places(resource) {
            if let Some(count) = self.places.get_mut(&place) {
                *count -= 1;
                if *count == 0 {
                    self.places.remove(&place);
                }
            }
        }
    }

    /// The place that this address, as a whole, is. Walks all of them: for the few addresses of a gateway and of static NAT.
    fn place_at(&self, address: IpAddr) -> Option<Place> {
        self.places.keys().find(|place| place.whole().is_some_and(|whole| whole.contains(&address))).copied()
    }

    /// What a place is, and whose, as far as that was accepted before.
    fn in_words(&self, place: Place) -> String {
        let kind = match place {
            Place::External(_) => "an external address of pods",
            Place::Vip(_) | Place::Service(_) | Place::NodePort(..) => "an address of a Service",
        };
        let has_it = |resource: &&Arc<Resource>| places(resource).any(|(_, other)| other == place);
        match self.accepted.values().find(has_it) {
            Some(holder) => format!("{kind} ({})", holder.key()),
            None => kind.to_owned(),
        }
    }

    /// An address inside `whole` that the gateway keeps for itself, and the gateway.
    fn reserved_in(&self, whole: &IpNet) -> Option<(IpAddr, &ResourceKey)> {
        let address = self.reserved.range(whole.network()..=whole.broadcast()).next()?;
        Some((*address, self.claims.get(&Claim::Reserved(*address))?))
    }
}

/// One Service's part of the digest.
fn digest_of(resource: &Resource) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(0x7469_6465_6761_7465, 0x6f62_6a65_6374_7301);
    hasher.write(resource.name.as_bytes());
    hasher.write_u8(0);
    hasher.write(resource.version.as_bytes());
    hasher.finish()
}

fn age(resource: &Resource) -> i64 {
    match &resource.body {
        Body::Service(service) => service.created_at_s,
        _ => 0,
    }
}

/// The field that claims something; put into words only when that is refused.
#[derive(Clone, Copy, Debug)]
struct ClaimedBy {
    of: Option<&'static str>,
    field: &'static str,
    number: Option<usize>,
}

impl ClaimedBy {
    fn field(field: &'static str) -> Self {
        ClaimedBy { of: None, field, number: None }
    }

    fn entry(field: &'static str, number: usize) -> Self {
        ClaimedBy { of: None, field, number: Some(number) }
    }

    fn of(self, of: &'static str) -> Self {
        ClaimedBy { of: Some(of), ..self }
    }
}

impl std::fmt::Display for ClaimedBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let dot = if self.of.is_some() { "." } else { "" };
        write!(f, "{}{dot}{}", self.of.unwrap_or_default(), self.field)?;
        self.number.map_or(Ok(()), |number| write!(f, "[{number}]"))
    }
}

/// What `resource` claims, each with the field that does.
fn claims(resource: &Resource) -> Vec<(ClaimedBy, Claim)> {
    let mut list = Vec::new();
    match &resource.body {
        Body::Gateway(gateway) => {
            list.push((ClaimedBy::field("kind"), Claim::Gateway));
            for (field, vtep) in [("vtep_v4", &gateway.vtep_v4), ("vtep_v6", &gateway.vtep_v6)] {
                if let Some(vtep) = vtep {
                    list.push((ClaimedBy::field("underlay").of(field), Claim::Underlay(vtep.underlay, vtep.vni)));
                    list.push((ClaimedBy::field("overlay").of(field), Claim::Reserved(vtep.overlay)));
                    // No node port may take what peers send.
                    list.push((
                        ClaimedBy::field("port").of(field),
                        Claim::Frontend(vtep.underlay, Protocol::Udp, vtep.port),
                    ));
                }
            }
            for (number, address) in gateway.fullnat_sources.iter().enumerate() {
                list.push((ClaimedBy::entry("fullnat_sources", number), Claim::Reserved(*address)));
            }
            for (number, prefix) in gateway.pod_cidrs.iter().enumerate() {
                list.push((ClaimedBy::entry("pod_cidrs", number), Claim::Prefix(prefix.trunc())));
            }
        }
        Body::Peer(peer) => {
            for (field, vtep) in [("v4", &peer.v4), ("v6", &peer.v6)] {
                let Some(vtep) = vtep else { continue };
                list.push((ClaimedBy::field("underlay").of(field), Claim::Underlay(vtep.underlay, vtep.vni)));
                for (number, prefix) in vtep.pod_cidrs.iter().enumerate() {
                    list.push((ClaimedBy::entry("pod_cidrs", number).of(field), Claim::Prefix(prefix.trunc())));
                }
            }
        }
        Body::Service(service) => {
            for (number, port) in service.ports.iter().enumerate() {
                let mut claim = |claim| list.push((ClaimedBy::entry("ports", number), claim));
                for addresses in [&service.addresses, &service.external_addresses, &service.cluster_addresses] {
                    let served = addresses.iter().filter(|address| port.is_at(**address));
                    served.for_each(|address| claim(Claim::Frontend(*address, port.protocol, port.port)));
                }
                for prefix in service.prefixes.iter().filter(|prefix| port.is_at(**prefix)) {
                    claim(Claim::Prefixed(prefix.trunc(), port.protocol, port.port));
                }
                let Some(node_port) = port.node_port else { continue };
                let served = service.node_addresses.iter().filter(|address| port.is_at(**address));
                served.for_each(|address| claim(Claim::Frontend(*address, port.protocol, node_port)));
            }
        }
        Body::Pod(pod) => {
            for (number, address) in pod.addresses.iter().enumerate() {
                list.push((ClaimedBy::entry("addresses", number), Claim::Pod(*address)));
            }
        }
        // Nothing about who may reach whom is anybody's alone.
        Body::Identity(_) | Body::IdentitySet(_) | Body::Policy(_) | Body::GatewayPolicy(_) => {}
        // Egress policies may share addresses: ports are given out by address.
        Body::Egress(_) => {}
        Body::StaticNat(nat) => match nat.ports.as_slice() {
            [] => list.push((ClaimedBy::field("external"), Claim::Reserved(nat.external))),
            ports => {
                for (number, port) in ports.iter().enumerate() {
                    let claim = Claim::Frontend(nat.external, port.protocol, port.external);
                    list.push((ClaimedBy::entry("ports", number), claim));
                }
            }
        },
    }
    list
}

impl std::fmt::Display for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Claim::Gateway => f.write_str("the place of the gateway"),
            Claim::Frontend(IpAddr::V4(address), protocol, port) => write!(f, "{address}:{port}/{protocol}"),
            Claim::Frontend(IpAddr::V6(address), protocol, port) => write!(f, "[{address}]:{port}/{protocol}"),
            Claim::Prefixed(prefix, protocol, port) => write!(f, "{prefix} port {port}/{protocol}"),
            Claim::Prefix(prefix) => write!(f, "prefix {prefix}"),
            Claim::Underlay(address, vni) => write!(f, "underlay address {address} of network {vni}"),
            Claim::Reserved(address) => write!(f, "address {address}"),
            Claim::Pod(address) => write!(f, "pod address {address}"),
        }
    }
}

/// The key of the object of `kind` named `name`.
pub fn key(kind: Kind, name: &str) -> ResourceKey {
    ResourceKey { kind, name: name.to_owned() }
}

#[cfg(test)]
pub(crate) mod tests;
