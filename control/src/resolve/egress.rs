//! An EgressPolicy → how its pods reach the outside; which policies select a pod, and where a StaticNat leads.
//!
//! Pods, nodes and Service addresses of the cluster are no outside, whatever a policy says (N-110, N-114).

use std::net::IpAddr;

use ipnet::IpNet;
use tidegate_api::resource::Egress;

use crate::model::addresspool::{AddressPool, AddressRange, after};
use crate::model::egresspolicy::{Addresses, EgressPolicy};
use crate::model::namespace::Namespace;
use crate::model::node::Node;
use crate::model::pod::{Pod, Pods};
use crate::model::staticnat::Target;

/// Most addresses that a pool gives a policy, of each family.
pub const POOL_ADDRESSES_MAX: usize = 256;

/// What is inside the cluster: prefixes of pods and addresses of nodes, sorted, each once.
pub fn inside(nodes: impl Iterator<Item = impl std::borrow::Borrow<Node>>) -> Vec<IpNet> {
    let mut inside = Vec::new();
    for node in nodes {
        let node = node.borrow();
        inside.extend(node.pod_cidrs.iter().map(IpNet::trunc));
        inside.extend(node.addresses.iter().map(|address| IpNet::from(*address)));
    }
    inside.sort_unstable();
    inside.dedup();
    inside
}

/// The addresses that a policy asks for, sorted. `pool` is the AddressPool that it names, if there is one.
///
/// # Errors
/// Why it has none.
pub fn addresses(policy: &EgressPolicy, pool: Option<&AddressPool>) -> Result<Vec<IpAddr>, String> {
    let mut addresses = match (&policy.addresses, pool) {
        (Addresses::Listed(listed), _) => listed.clone(),
        (Addresses::Unreadable, _) => return Err("its manifest cannot be worked with".into()),
        (Addresses::Pool(name), None) => return Err(format!("there is no AddressPool {name}")),
        (Addresses::Pool(name), Some(pool)) => of_pool(pool)
            .ok_or_else(|| format!("AddressPool {name} has over {POOL_ADDRESSES_MAX} addresses of a family"))?,
    };
    addresses.sort_unstable();
    Ok(addresses)
}

/// The resource of one policy that has `addresses`; without any its pods are refused. `inside` is what [`inside`] says
/// and what else is configured.
pub fn resolve(policy: &EgressPolicy, addresses: Vec<IpAddr>, inside: &[IpNet]) -> Egress {
    let sorted = |prefixes: &[IpNet]| {
        let mut sorted = prefixes.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        sorted
    };
    Egress {
        destinations: policy.destinations.clone(),
        except: sorted(&policy.except),
        inside: sorted(inside),
        addresses,
        tcp: policy.tcp,
        udp: policy.udp,
        ports_per_pod_max: policy.ports_per_pod_max,
        ports_per_namespace_max: policy.ports_per_namespace_max,
        udp_timeouts: policy.udp_timeouts.clone(),
        other_protocols: policy.other_protocols,
        log: policy.log,
    }
}

/// Every address of a pool; `None`: too many.
fn of_pool(pool: &AddressPool) -> Option<Vec<IpAddr>> {
    let mut counts = [0; 2];
    for range in &pool.ranges {
        let count: &mut u128 = &mut counts[usize::from(range.is_ipv4())];
        *count = count.saturating_add(range.count(pool.avoid_buggy));
    }
    let most = POOL_ADDRESSES_MAX as u128;
    // Few: a range without the addresses that are left out has hardly more.
    counts.iter().all(|count| *count <= most).then(|| {
        let walk = |range: &AddressRange| {
            let last = range.last();
            std::iter::successors(Some(range.first()), move |at| after(*at).filter(|next| *next <= last))
        };
        pool.ranges.iter().flat_map(walk).filter(|address| pool.contains(*address)).collect()
    })
}

/// Names of the policies that select a pod, in the order in which they are asked. `policies` in any order.
pub fn selecting<'m>(
    policies: impl Iterator<Item = &'m EgressPolicy>,
    namespace: &Namespace,
    pod: &Pod,
) -> Vec<String> {
    let mut selecting: Vec<&EgressPolicy> = policies.filter(|policy| policy.selects(namespace, pod)).collect();
    selecting.sort_by(|a, b| a.order().cmp(&b.order()));
    selecting.into_iter().map(|policy| policy.name.clone()).collect()
}

/// The address that a StaticNat leads to. `is_ipv4`: the family of its external address.
///
/// # Errors
/// Why it leads nowhere.
pub fn leads_to(target: &Target, pods: &Pods, is_ipv4: bool) -> Result<IpAddr, String> {
    let name = match target {
        Target::Address(address) => return Ok(*address),
        Target::Pod(name) => name,
    };
    let pod = pods.get(name).ok_or_else(|| format!("there is no Pod {name}"))?;
    let mut owned = pod.addresses.iter().filter(|_| pod.owns_addresses());
    let owned = owned.find(|address| address.is_ipv4() == is_ipv4);
    let owned = owned.ok_or_else(|| format!("Pod {name} has no address of that family"))?;
    match pods.has(pod, *owned) {
        true => Ok(*owned),
        false => Err(format!("the address {owned} of Pod {name} is another one's too")),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Selector;
    use tidegate_api::resource::Mapping;

    use super::*;
    use crate::model::Name;

    fn policy(name: &str, created_at_s: i64, pods: Selector, addresses: Addresses) -> EgressPolicy {
        EgressPolicy {
            name: name.into(),
            uid: String::new(),
            created_at_s,
            generation: None,
            namespaces: Selector::default(),
            pods,
            destinations: Vec::new(),
            except: vec!["198.51.100.0/24".parse().unwrap()],
            addresses,
            tcp: Mapping::default(),
            udp: Mapping::default(),
            ports_per_pod_max: None,
            ports_per_namespace_max: None,
            udp_timeouts: Vec::new(),
            other_protocols: false,
            log: false,
            told: Default::default(),
        }
    }

    fn pool(ranges: &[(&str, &str)], avoid_buggy: bool) -> AddressPool {
        let range = |(first, last): &(&str, &str)| AddressRange::new(first.parse().unwrap(), last.parse().unwrap());
        AddressPool {
            name: "out".into(),
            uid: String::new(),
            created_at_s: 0,
            generation: None,
            ranges: ranges.iter().map(|ends| range(ends).unwrap()).collect(),
            last_good: Vec::new(),
            complaint: None,
            auto_assign: false,
            avoid_buggy,
            pinning: None,
        }
    }

    #[test]
    fn a_pool_gives_all_of_its_addresses_unless_they_are_too_many() {
        let asks = policy("a", 0, Selector::default(), Addresses::Pool("out".into()));
        let small = pool(&[("192.0.2.254", "192.0.3.1"), ("2001:db8::1", "2001:db8::2")], true);
        let shown = |pool: &AddressPool| {
            addresses(&asks, Some(pool)).map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(shown(&small).unwrap(), ["192.0.2.254", "192.0.3.1", "2001:db8::1", "2001:db8::2"]);
        assert_eq!(shown(&pool(&[("10.0.0.0", "10.0.0.255")], false)).unwrap().len(), 256);
        let huge = pool(&[("192.0.2.1", "192.0.2.1"), ("2001:db8::", "2001:db8:ffff::")], false);
        assert!(shown(&huge).unwrap_err().contains("over 256 addresses of a family"));
        assert!(addresses(&asks, None).unwrap_err().contains("no AddressPool out"));
    }

    /// N-110: what is inside the cluster is reached untranslated, whatever the policy lists.
    #[test]
    fn the_cluster_itself_is_no_outside() {
        let listed = Addresses::Listed(vec!["192.0.2.9".parse().unwrap()]);
        let asks = policy("a", 0, Selector::default(), listed);
        let pods: IpNet = "10.244.0.0/16".parse().unwrap();
        let egress = resolve(&asks, addresses(&asks, None).unwrap(), &[pods]);
        assert_eq!((egress.inside, egress.except), (vec![pods], vec!["198.51.100.0/24".parse().unwrap()]));
        assert_eq!(egress.addresses, ["192.0.2.9".parse::<IpAddr>().unwrap()]);
    }

    /// The oldest goes first; a Pod with its node's addresses is nobody's (N-114).
    #[test]
    fn policies_select_in_the_order_of_their_age() {
        let all = |created| policy(&format!("p{created}"), created, Selector::default(), Addresses::Listed(Vec::new()));
        let web: Selector = [("app".to_string(), "web".to_string())].into_iter().collect();
        let policies = [all(3), policy("other", 2, web, Addresses::Listed(Vec::new())), all(1)];
        let namespace = Namespace::bare("shop");
        let mut pod = Pod {
            name: Name { namespace: "shop".into(), name: "web-0".into() },
            uid: "".into(),
            created_at_s: i64::MIN,
            labels: [("app".to_string(), "api".to_string())].into(),
            addresses: vec!["10.244.1.7".parse().unwrap()],
            node: "w1".into(),
            host_network: false,
            ended: false,
            ports: Vec::new(),
        };
        assert_eq!(selecting(policies.iter(), &namespace, &pod), ["p1", "p3"]);
        pod.labels.insert("app".into(), "web".into());
        assert_eq!(selecting(policies.iter(), &namespace, &pod), ["p1", "other", "p3"]);
        pod.host_network = true;
        assert!(selecting(policies.iter(), &namespace, &pod).is_empty());
    }
}
