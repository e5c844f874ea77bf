//! Network policies: rules laid out, and the flows they matter to sent to look again.
//!
//! Owns the engine that lays rules out ([`tidegate_policy::Compiler`]) and which addresses have which identity. Whatever came
//! in a turn takes effect in one publish with everything else of that turn (P-035).
//!
//! A change reaches flows that are there by epochs they compare anyway (P-031, P-048): what is about a pod as a destination
//! moves the epoch of every backend at its address, and of the nodes that may pick it; what is about a pod as a source moves
//! that of its own row, which its flows to the outside remember, and that of its place among sources, which its flows to
//! Services do. Nobody else's flows look again. Costs what changed, by the engine's own account of it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use tidegate_api::resource::{Body, Kind, Pod, Resource};
use tidegate_policy::{Direction, Epochs, Table as Rules};

use super::backend::Backends;
use super::mapped_ip;
use crate::objects::Change;
use crate::table::pod::NO_SERVICE;
use crate::table::{BackendId, ServiceId, Tables};

/// All policies, and what has come since they were settled last.
#[derive(Debug, Default)]
pub struct Policies {
    rules: tidegate_policy::Compiler,
    identities: HashMap<[u8; 16], u32>,
    addresses: HashMap<u32, HashSet<[u8; 16]>>,
    due: Vec<Change>,
    addresses_due: BTreeSet<[u8; 16]>,
}

/// What differs about a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Moved {
    /// What it accepts.
    ingress: bool,
    /// What it sends.
    egress: bool,
    /// What it is to others.
    peer: bool,
}

impl Moved {
    const ALL: Moved = Moved { ingress: true, egress: true, peer: true };

    fn of(identity: u32, before: &Rules, after: &Rules) -> Moved {
        let epochs = |rules: &Rules| Direction::ALL.map(|direction| rules.epochs(direction, identity, identity));
        let [ingress, egress]: [(Epochs, Epochs); 2] = {
            let ([a, b], [c, d]) = (epochs(before), epochs(after));
            [(a, c), (b, d)]
        };
        Moved {
            ingress: ingress.0.subject != ingress.1.subject,
            egress: egress.0.subject != egress.1.subject,
            peer: ingress.0.peer != ingress.1.peer,
        }
    }
}

impl Policies {
    /// Takes in an object of any kind that came, changed or went. It takes effect with [`Policies::settle`].
    pub fn take(&mut self, change: &Change) {
        match change.key.kind {
            Kind::Identity | Kind::IdentitySet | Kind::Policy => self.due.push(change.clone()),
            Kind::Pod => {
                let pods = [&change.before, &change.after].into_iter().filter_map(|resource| pod(resource.as_deref()?));
                self.addresses_due.extend(pods.flat_map(|pod| &pod.addresses).copied().map(mapped_ip));
            }
            Kind::Gateway | Kind::Peer | Kind::Service | Kind::Egress | Kind::StaticNat | Kind::GatewayPolicy => {}
        }
    }

    /// Makes the rules what the objects say, after pods and Services have their rows; whether anything differs.
    pub fn settle(&mut self, backends: &Backends, tables: &mut Tables) -> bool {
        let mut moved: HashMap<[u8; 16], Moved> = HashMap::new();
        let is_due = !self.due.is_empty();
        if is_due {
            let due = std::mem::take(&mut self.due);
            self.rules.update(due.iter().map(|change| (&change.key, change.after.as_deref())));
            let written: BTreeSet<u32> = self.rules.take_written().into_iter().collect();
            let (before, after) = (&tables.policy.rules, self.rules.table());
            for (identity, addresses) in written.iter().filter_map(|id| Some((*id, self.addresses.get(id)?))) {
                let of = Moved::of(identity, before, after);
                moved.extend(addresses.iter().filter(|_| of != Moved::default()).map(|address| (*address, of)));
            }
            let rules = self.rules.table().clone();
            Arc::make_mut(&mut tables.policy).rules = rules;
        }
        for address in std::mem::take(&mut self.addresses_due) {
            let identity = tables.pods.pod(&address).map_or(0, |row| row.identity);
            if self.identify(address, identity) {
                moved.insert(address, Moved::ALL);
            }
        }
        for (address, what) in &moved {
            touch(address, *what, backends, tables);
        }
        is_due || !moved.is_empty()
    }

    /// A digest of all objects that the rules are made of, whatever the order in which they came.
    pub fn digest(&self) -> u64 {
        self.rules.table().digest()
    }

    /// Notes whose an address is; whether it was another's.
    fn identify(&mut self, address: [u8; 16], identity: u32) -> bool {
        let before = match identity {
            0 => self.identities.remove(&address),
            _ => self.identities.insert(address, identity),
        };
        let before = before.unwrap_or(0);
        if before == identity {
            return false;
        }
        if let Some(addresses) = self.addresses.get_mut(&before) {
            addresses.remove(&address);
            if addresses.is_empty() {
                self.addresses.remove(&before);
            }
        }
        if identity != 0 {
            self.addresses.entry(identity).or_default().insert(address);
        }
        true
    }
}

/// Sends the flows of the pod at `address` to look again, as far as it matters to them.
fn touch(address: &[u8; 16], what: Moved, backends: &Backends, tables: &mut Tables) {
    if what.egress || what.peer {
        Arc::make_mut(&mut tables.policy).touch_source(address);
    }
    let mut nodes: Vec<BackendId> = Vec::new();
    let table = Arc::make_mut(&mut tables.backends);
    for id in backends.at(address) {
        let Some(service) = table.row(*id).map(|row| row.service) else { continue };
        // Of the pod by itself, both of its sides are remembered there.
        if service == NO_SERVICE || what.ingress || what.peer {
            table.touch(*id);
        }
        if what.ingress && service != NO_SERVICE && service != ServiceId::NONE {
            nodes.extend(tables.services.nodes(service).iter().flat_map(|set| set.members.iter()));
        }
    }
    nodes.sort_unstable();
    nodes.dedup();
    nodes.into_iter().for_each(|node| table.touch(node));
}

fn pod(resource: &Resource) -> Option<&Pod> {
    if let Body::Pod(pod) = &resource.body { Some(pod) } else { None }
}

#[cfg(test)]
mod tests {
    use tidegate_api::message::Update;
    use tidegate_api::resource::{IdentitySet, Policy, Protocol, Tier};

    use crate::compile::Compiler;
    use crate::compile::tests::{Notebook, update};
    use crate::objects::tests::{backend, incremental, named, service};
    use crate::rig::{self, Net, Rig};
    use crate::table::publish::Publisher;

    use super::*;

    const FLOWS: u16 = 30;

    fn resource(name: &str, version: u32, body: Body) -> Resource {
        Resource { name: name.into(), version: version.to_string(), body }
    }

    fn of_pod(number: u8, identity: u32) -> Resource {
        let addresses = Net::BOTH.map(|net| net.pod(0, number)).to_vec();
        resource(&format!("shop/{number}"), identity, Body::Pod(Pod { addresses, identity, ..Pod::default() }))
    }

    fn deny(version: u32, subjects: &str) -> Resource {
        let subjects = subjects.into();
        let (ingress, egress) = (vec![], vec![]);
        let body = Policy {
            tier: Tier::Namespace,
            subjects,
            audit: false,
            isolates_ingress: true,
            isolates_egress: false,
            ingress,
            egress,
        };
        resource("networkpolicy/shop/deny", version, Body::Policy(body))
    }

    fn members(name: &str, version: u32, identities: &[u32]) -> Resource {
        resource(name, version, Body::IdentitySet(IdentitySet { identities: identities.to_vec() }))
    }

    /// T-048, P-031, P-035: through the compiler itself, with flows of two pods.
    #[test]
    fn an_update_takes_effect_in_one_generation_for_whom_it_is_about() {
        let mut rig = Rig::new(rig::tables()).unwrap();
        let (unused, _) = Publisher::new(Tables::default());
        let publisher = std::mem::replace(&mut rig.publisher, unused);
        let (pinholes, requests) = (Box::new(Notebook::default()), Box::new(Notebook::default()));
        let mut compiler = Compiler::new(["wan0", "lan0"], publisher, pinholes, requests);
        let services = [5, 6].into_iter().flat_map(|pod| Net::BOTH.map(|net| (pod, net))).map(|(pod, net)| {
            let mut body = service(&[&net.vip(pod).to_string()], 80, &[backend(&net.pod(0, pod).to_string(), 8080, 1)]);
            body.ports[0].protocol = Protocol::Udp;
            named(&format!("shop/{pod}-{:?}", net.0), "1", body)
        });
        let objects = services.chain([of_pod(5, 5), of_pod(6, 6), members("a", 1, &[5])]).collect();
        assert!(update(&mut compiler, incremental(objects)).rejected.is_empty());
        let mut send = |vip: u8| {
            for (net, n) in (0..FLOWS).flat_map(|n| Net::BOTH.map(|net| (net, n))) {
                assert!(rig.inject(rig::WAN, &rig::udp((net.client(n), 4000), (net.vip(vip), 80), b"x")));
                rig.turn();
            }
            let moved = rig.moved();
            (rig.sent(rig::LAN).len(), moved.get("slow_walk").copied().unwrap_or(0))
        };
        let all = usize::from(2 * FLOWS);
        assert_eq!([send(5), send(6)].map(|(sent, _)| sent), [all; 2]);
        let generation = compiler.generation();
        let digest = compiler.policies.digest();
        // A policy before the set it speaks of, and the pod that is another in the same update.
        let news = vec![deny(1, "b"), members("b", 1, &[7]), of_pod(5, 7)];
        assert!(update(&mut compiler, incremental(news)).rejected.is_empty());
        assert_eq!(compiler.generation(), generation + 1);
        assert_ne!(compiler.policies.digest(), digest);
        assert_eq!([send(5), send(6)], [(0, all as u64), (all, 0)], "the other pod's flows have not looked");
        // Back to whom nothing is denied; then the policy's subjects change, and then there is none.
        for (news, sent) in [
            (incremental(vec![of_pod(5, 5)]), [all, all]),
            (incremental(vec![deny(2, "a")]), [0, all]),
            (incremental(vec![members("a", 2, &[5, 6])]), [0, 0]),
            (incremental(vec![members("a", 3, &[6])]), [all, 0]),
            (Update { removed: vec![deny(2, "a").key()], ..incremental(vec![]) }, [all, all]),
        ] {
            assert!(update(&mut compiler, news).rejected.is_empty());
            assert_eq!([send(5), send(6)].map(|(sent, _)| sent), sent);
        }
        assert_eq!([send(5), send(6)], [(all, 0); 2], "and all is as fast as before");
    }
}
