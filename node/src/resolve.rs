//! Objects of the API → what is wanted of this Node: a pure function.
//!
//! Owns what a Node that is a gateway looks like from a worker, how several policies of a pod become destinations that
//! do not overlap, and that an address which is translated one to one is under none of them, as at the gateway. Which
//! policy selects which pod, in which order, where a StaticNat leads, and what is inside the cluster is control's
//! knowledge.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use tidegate_control::model::Model;
use tidegate_control::model::egresspolicy::{Addresses, EgressPolicy, Remembered};
use tidegate_control::model::node::Node;
use tidegate_control::model::staticnat::{StaticNat, Target};
use tidegate_control::resolve::egress::{inside, leads_to, selecting};
use tidegate_control::resolve::site::RETURN_LABEL;
use tidegate_control::source::ObjectKey;

use crate::carrier::Carried;
use crate::prefix::{decided, without};
use crate::wanted::{Carriers, Egress, FAMILIES, Family, Gateway, Heard, Held, Kubernetes, Mac, Pod, Vtep, Wanted};

/// What is around this Node.
#[derive(Debug)]
pub struct Surroundings {
    /// Gateways, in the order of names.
    pub gateways: Vec<Gateway>,
    /// Where each is asked, in the same order.
    pub asked_at: Vec<Vec<IpAddr>>,
    cluster: Vec<IpNet>,
    symmetric: Vec<IpNet>,
    own: Vec<IpNet>,
}

/// Gateways, prefixes of the cluster, and what this Node's labels say.
///
/// # Errors
/// When there is no such Node.
pub fn surroundings(model: &Model, base: &Wanted, settings: &Kubernetes, node: &str) -> Result<Surroundings, String> {
    let own = model.node(node).ok_or_else(|| format!("there is no Node {node}; everything stays as it is"))?;
    let named = model.nodes().filter(|other| other.name != node && other.labels.contains(&settings.gateway_label));
    let seen: Vec<(Gateway, Vec<IpAddr>)> = named.filter_map(seen).collect();
    let mut cluster = base.cluster.clone();
    cluster.extend(inside(model.nodes()));
    cluster.extend(seen.iter().flat_map(|(_, addresses)| addresses).map(|address| IpNet::from(*address)));
    let symmetric = if own.labels.contains(RETURN_LABEL) { own.pod_cidrs.clone() } else { Vec::new() };
    let (gateways, asked_at) = seen.into_iter().unzip();
    Ok(Surroundings { gateways, asked_at, cluster: IpNet::aggregate(&cluster), symmetric, own: own.pod_cidrs.clone() })
}

/// A gateway as it is seen from a worker, and where it is asked; `None`: the overlay does not lead to it.
fn seen(node: &Node) -> Option<(Gateway, Vec<IpAddr>)> {
    let overlay = node.overlay.as_ref().ok()?;
    let end = |family: Family| {
        let v4 = family == Family::V4;
        let tunnel = if v4 { &overlay.v4 } else { &overlay.v6 }.as_ref().ok()?;
        // V-022: the first address of the pod prefix.
        let overlay = node.pod_cidrs_of(v4).first()?.network();
        Some(Vtep { overlay, mac: Mac(tunnel.mac.0), underlay: tunnel.underlay, vni: Some(tunnel.vni) })
    };
    let (ipv4, ipv6) = (end(Family::V4), end(Family::V6));
    let underlay: BTreeSet<IpAddr> = [&ipv4, &ipv6].into_iter().flatten().map(|vtep| vtep.underlay).collect();
    let gateway = Gateway { name: node.name.clone(), live: true, ipv4, ipv6 };
    (!underlay.is_empty()).then(|| (gateway, underlay.into_iter().collect()))
}

/// Addresses of a policy: what its status says it has, and before that what it lists.
fn addresses(policy: &EgressPolicy) -> Vec<IpAddr> {
    let told: Vec<IpAddr> = policy.told.addresses.iter().filter_map(|text| text.parse().ok()).collect();
    match &policy.addresses {
        Addresses::Listed(listed) if told.is_empty() => listed.clone(),
        _ => told,
    }
}

/// The address of a family that gateways are asked about: all of a policy's are one gateway's.
pub fn sample(policy: &EgressPolicy, family: Family) -> Option<IpAddr> {
    addresses(policy).into_iter().filter(|address| Family::of(*address) == family).min()
}

/// All of those, and the addresses that pods of this Node have alone.
pub fn asked(model: &Model, led: &Led<'_>) -> Vec<IpAddr> {
    let of_policies = model.egress().flat_map(|policy| FAMILIES.map(|family| sample(policy, family)));
    let of_pods = led.whole.values().map(|whole| whole.external);
    let asked: BTreeSet<IpAddr> = of_policies.chain(of_pods).flatten().collect();
    asked.into_iter().collect()
}

/// Where StaticNats lead on this Node.
#[derive(Debug, Default)]
pub struct Led<'m> {
    /// Pods' addresses that are translated one to one, both ways.
    whole: BTreeMap<IpAddr, Whole<'m>>,
    /// Pods' addresses to which single ports lead.
    forwarded: BTreeSet<IpAddr>,
    /// Whether some pod, of whatever Node, has an address alone.
    any_whole: bool,
}

/// By what a pod's address is translated one to one.
#[derive(Clone, Copy, Debug)]
struct Whole<'m> {
    /// Name of the object.
    name: &'m str,
    /// What the outside sees; none: nobody can tell, and the pod does not get out (N-111).
    external: Option<IpAddr>,
}

impl<'m> Led<'m> {
    /// Where those of `model` lead on the Node `node`. `closed`: whom those would have led to that cannot be read and never
    /// could.
    pub fn of(model: &'m Model, node: &str, closed: &'m BTreeMap<ObjectKey, Target>) -> Led<'m> {
        let is_here = |address: &IpAddr| model.pods().at(*address).is_some_and(|pod| pod.node == node);
        let leads_here = |target: &Target, family: Family| {
            let address = leads_to(target, model.pods(), family == Family::V4).ok()?;
            (Family::of(address) == family && is_here(&address)).then_some(address)
        };
        let mut led = Led::default();
        for nat in model.static_nats() {
            led.any_whole |= nat.ports.is_empty();
            let Some(address) = leads_here(&nat.target, Family::of(nat.external)) else { continue };
            if nat.ports.is_empty() {
                // As the dataplane has it: of several for one pod the first by name.
                led.whole.entry(address).or_insert(Whole { name: &nat.name, external: Some(nat.external) });
            } else {
                led.forwarded.insert(address);
            }
        }
        for (key, target) in closed {
            led.any_whole = true;
            for address in FAMILIES.into_iter().filter_map(|family| leads_here(target, family)) {
                led.whole.entry(address).or_insert(Whole { name: &key.name, external: None });
            }
        }
        led
    }

    /// The entries of pods that have an address alone: everything they send to the outside goes to the gateway that carries
    /// it. `names`: the pods by their addresses.
    fn entries(&self, names: &BTreeMap<IpAddr, String>, carried: &Carried) -> Vec<Egress> {
        let entry = |(address, whole): (&IpAddr, &Whole<'_>)| {
            let pod = Pod { name: names.get(address)?.clone(), addresses: vec![*address] };
            let carrier = whole.external.and_then(|external| carried.of(external)).map(str::to_owned);
            let carriers = match Family::of(*address) {
                Family::V4 => Carriers { ipv4: carrier, ipv6: None },
                Family::V6 => Carriers { ipv4: None, ipv6: carrier },
            };
            Some(Egress {
                name: format!("StaticNat {}", whole.name),
                pods: vec![pod],
                gateways: None,
                carriers: Some(carriers),
                destinations: Vec::new(),
                except: Vec::new(),
            })
        };
        self.whole.iter().filter_map(entry).collect()
    }
}

/// Each policy as it could be read last, in the order of names: as it is, or as `before` remembers one that cannot be.
fn remembered(model: &Model, before: &Heard) -> Vec<Remembered> {
    let one = |policy: &EgressPolicy| match policy.addresses {
        Addresses::Unreadable => before.policies.iter().find(|of| of.name == policy.name).cloned(),
        _ => Some(policy.remember(addresses(policy))),
    };
    let mut policies: Vec<Remembered> = model.egress().filter_map(one).collect();
    policies.sort_by(|a, b| a.name.cmp(&b.name));
    policies
}

/// Each StaticNat as it could be read last, in the order of names, less what the server says of it.
fn remembered_nats(model: &Model) -> Vec<StaticNat> {
    let plain = |nat: &StaticNat| StaticNat { uid: String::new(), generation: None, ..nat.clone() };
    model.static_nats().map(plain).collect()
}

/// What is wanted of the Node `node`, where `led` says what StaticNats lead to there. `before` is what was heard
/// before, with what cannot be read now; `blind`: of some of that nobody can tell whom it selects, so that what nobody
/// was told of before stays held.
#[expect(clippy::too_many_arguments, reason = "each is another source")]
pub fn resolve(
    model: &Model,
    base: &Wanted,
    settings: &Kubernetes,
    node: &str,
    around: Surroundings,
    led: &Led<'_>,
    carried: &Carried,
    before: &Heard,
    blind: bool,
) -> Wanted {
    let mut known = BTreeMap::new();
    let mut groups: BTreeMap<Vec<String>, Vec<Pod>> = BTreeMap::new();
    let mut pods: Vec<_> = model.pods().iter().filter(|pod| pod.node == node && pod.owns_addresses()).collect();
    pods.sort_by(|a, b| a.name.cmp(&b.name));
    for pod in pods {
        let is_its_own = |address: &&IpAddr| model.pods().at(**address).is_some_and(|owner| owner.name == pod.name);
        let addresses: Vec<IpAddr> = pod.addresses.iter().filter(is_its_own).copied().collect();
        let names = selecting(model.egress(), &model.namespace(&pod.name.namespace), pod);
        let name = pod.name.to_string();
        let is_certain = |address: &IpAddr| {
            let goes_by_something = !names.is_empty() || led.whole.contains_key(address);
            !blind || goes_by_something || before.pods.get(address) == Some(&name)
        };
        known.extend(addresses.iter().filter(|address| is_certain(address)).map(|address| (*address, name.clone())));
        let addresses: Vec<IpAddr> = addresses.into_iter().filter(|address| !led.whole.contains_key(address)).collect();
        if !names.is_empty() && !addresses.is_empty() {
            groups.entry(names).or_default().push(Pod { name, addresses });
        }
    }
    let holds = settings.hold_unknown && (blind || led.any_whole || model.egress().next().is_some());
    let held = Held { prefixes: around.own, known: known.keys().copied().collect() };
    let policies = remembered(model, before);
    let mut egress: Vec<Egress> =
        groups.into_iter().flat_map(|(names, pods)| parts(model, &names, &pods, carried)).collect();
    egress.extend(led.entries(&known, carried));
    let mut symmetric = around.symmetric;
    let forwarded = led.forwarded.iter().map(|address| IpNet::from(*address));
    let forwarded: Vec<IpNet> =
        forwarded.filter(|address| !symmetric.iter().any(|prefix| prefix.contains(address))).collect();
    symmetric.extend(forwarded);
    Wanted {
        kubernetes: None,
        gateways: around.gateways,
        cluster: around.cluster,
        symmetric,
        egress,
        held: holds.then_some(held),
        heard: Some(Heard {
            policies,
            static_nats: remembered_nats(model),
            pods: known,
            unreadable: before.unreadable.clone(),
        }),
        ..base.clone()
    }
}

/// The entries of pods under those policies, which are asked in that order: each for what the ones before it leave.
fn parts(model: &Model, names: &[String], pods: &[Pod], carried: &Carried) -> Vec<Egress> {
    let policies = names.iter().filter_map(|name| model.egress().find(|policy| policy.name == *name));
    let policies: Vec<&EgressPolicy> = policies.collect();
    let entry = |policy: &EgressPolicy, destinations: Vec<IpNet>, except: Vec<IpNet>| {
        let carrier = |family| sample(policy, family).and_then(|address| carried.of(address)).map(str::to_owned);
        Egress {
            name: policy.name.clone(),
            pods: pods.to_vec(),
            gateways: None,
            carriers: Some(Carriers { ipv4: carrier(Family::V4), ipv6: carrier(Family::V6) }),
            destinations,
            except,
        }
    };
    if let [only] = policies.as_slice()
        && !only.destinations.iter().any(|prefix| only.except.iter().any(|except| except.contains(prefix)))
    {
        return vec![entry(only, only.destinations.clone(), only.except.clone())];
    }
    let everything = FAMILIES.map(Family::everything);
    let mut taken: Vec<IpNet> = Vec::new();
    let mut entries = Vec::new();
    for policy in policies {
        let destinations = if policy.destinations.is_empty() { &everything[..] } else { &policy.destinations };
        let own = without(&decided(destinations, &policy.except), &taken);
        if !own.is_empty() {
            taken.extend(&own);
            entries.push(entry(policy, own, Vec::new()));
        }
    }
    entries
}
