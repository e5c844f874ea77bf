//! The allocator once more, in the simplest way: it walks over every address and compares every pair of Services.

use std::collections::BTreeMap;
use std::net::IpAddr;

use kube::core::{Selector, SelectorExt};
use proptest::prelude::*;
use tidegate_api::resource::Protocol;

use super::*;
use crate::model::addresspool::{after, is_buggy};
use crate::model::namespace::NAME_LABEL;

/// Services with what they hold, in no clever order.
#[derive(Default)]
struct Naive {
    pools: Vec<AddressPool>,
    reserved: Vec<AddressRange>,
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    foreign: BTreeMap<Name, Vec<IpAddr>>,
    services: BTreeMap<Name, (Request, Vec<IpAddr>)>,
}

/// M-010, word for word.
fn may_share(one: &Request, two: &Request) -> bool {
    let keys = !one.sharing.is_empty() && one.sharing == two.sharing;
    keys && one.backend == two.backend && one.ports.is_disjoint(&two.ports)
}

impl Naive {
    fn pool_of(&self, address: IpAddr) -> Option<&AddressPool> {
        let within =
            |pool: &&AddressPool| pool.ranges.iter().any(|range| range.first() <= address && address <= range.last());
        self.pools.iter().find(within).filter(|pool| !(pool.avoid_buggy && is_buggy(address)))
    }

    fn permits(&self, pool: &AddressPool, request: &Request) -> bool {
        let Some(pinning) = &pool.pinning else { return true };
        let (by_name, by_label) = (&pinning.namespaces, &pinning.namespace_selectors);
        let bare = BTreeMap::from([(NAME_LABEL.to_string(), request.name.namespace.clone())]);
        let labels = self.namespaces.get(&request.name.namespace).unwrap_or(&bare);
        let selected =
            |selectors: &[Selector], labels: &BTreeMap<_, _>| selectors.iter().any(|one| one.matches(labels));
        let namespace = (by_name.is_empty() && by_label.is_empty())
            || by_name.contains(&request.name.namespace)
            || selected(by_label, labels);
        namespace && (pinning.service_selectors.is_empty() || selected(&pinning.service_selectors, &request.labels))
    }

    fn fits_beside_others(&self, address: IpAddr, request: &Request) -> bool {
        let others =
            self.services.values().filter(|(other, held)| other.name != request.name && held.contains(&address));
        others.into_iter().all(|(other, _)| may_share(other, request))
    }

    fn keeps(&self, address: IpAddr, request: &Request) -> bool {
        self.pool_of(address).is_some_and(|pool| {
            self.permits(pool, request) && request.pool.as_ref().is_none_or(|asked| *asked == pool.name)
        }) && (request.addresses.is_empty() || request.addresses.contains(&address))
            && request.families.contains(&address.is_ipv4())
            && self.fits_beside_others(address, request)
    }

    fn is_free_for(&self, address: IpAddr, request: &Request) -> bool {
        !self.reserved.iter().any(|range| range.contains(address))
            && !self.foreign.values().any(|addresses| addresses.contains(&address))
            && self.fits_beside_others(address, request)
    }

    /// One address of a pool: one that is shared already if there is one, else the first.
    fn of_pool(&self, pool: &AddressPool, v4: bool, request: &Request) -> Option<IpAddr> {
        let mut all = Vec::new();
        for range in pool.ranges.iter().filter(|range| range.is_ipv4() == v4) {
            let mut at = Some(range.first());
            while let Some(address) = at.filter(|address| *address <= range.last()) {
                all.push(address);
                at = after(address);
            }
        }
        all.retain(|address| !(pool.avoid_buggy && is_buggy(*address)) && self.is_free_for(*address, request));
        let used = |address: &&IpAddr| self.services.values().any(|(_, held)| held.contains(address));
        all.iter().find(used).or(all.first()).copied()
    }

    /// What a Service gets besides what it holds; nothing at all is an error.
    fn choose(&self, request: &Request, held: &[IpAddr]) -> Result<Vec<IpAddr>, ()> {
        let must = request.family_policy == FamilyPolicy::RequireDualStack;
        let asked = match &request.pool {
            Some(name) => {
                let pool = self.pools.iter().find(|pool| pool.name == *name).ok_or(())?;
                Some(self.permits(pool, request).then_some(pool).ok_or(())?)
            }
            None => None,
        };
        if self.pools.is_empty() || (must && request.families.len() < 2) {
            return Err(());
        }
        if !request.addresses.is_empty() {
            let families = |v4: bool| request.addresses.iter().any(|address| address.is_ipv4() == v4);
            let all_wanted = request.addresses.iter().all(|address| request.families.contains(&address.is_ipv4()));
            let new: Vec<IpAddr> =
                request.addresses.iter().copied().filter(|address| !held.contains(address)).collect();
            let good = new.iter().all(|address| self.keeps(*address, request) && self.is_free_for(*address, request));
            return if all_wanted && good && (!must || families(true) && families(false)) { Ok(new) } else { Err(()) };
        }
        let mut missing = request.families.clone();
        missing.retain(|v4| !held.iter().any(|address| address.is_ipv4() == *v4));
        let mut candidates: Vec<((bool, u32), &AddressPool)> = Vec::new();
        for pool in self.pools.iter().filter(|pool| pool.auto_assign && self.permits(pool, request)) {
            let priority = pool.pinning.as_ref().map_or(0, |pinning| pinning.priority.wrapping_sub(1));
            candidates.push(((pool.pinning.is_none(), priority), pool));
        }
        if let Some(pool) = asked {
            candidates = vec![((false, 0), pool)];
        }
        let familiar = |pool: &AddressPool| {
            held.iter().any(|address| self.pool_of(*address).is_some_and(|of| of.name == pool.name))
        };
        candidates.sort_by_key(|(tier, pool)| (*tier, !familiar(pool), pool.name.clone()));
        let mut new = Vec::new();
        for tier in candidates.chunk_by(|one, two| one.0 == two.0) {
            let both = |(_, pool): &((bool, u32), &AddressPool)| {
                missing.iter().map(|v4| self.of_pool(pool, *v4, request)).collect::<Option<Vec<_>>>()
            };
            if let Some(both) = tier.iter().find_map(both).filter(|_| missing.len() == 2) {
                return Ok(both);
            }
            missing.retain(|v4| {
                let found = tier.iter().find_map(|(_, pool)| self.of_pool(pool, *v4, request));
                new.extend(found);
                found.is_none()
            });
        }
        let enough = missing.is_empty() || !(must || new.is_empty() && held.is_empty());
        enough.then_some(new).ok_or(())
    }

    fn admit(&mut self, request: Request) {
        let had = self.services.remove(&request.name).map_or(request.status.clone(), |(_, held)| held);
        let held = had.into_iter().filter(|address| self.keeps(*address, &request)).collect();
        self.services.insert(request.name.clone(), (request, held));
    }

    fn settle(&mut self, name: &Name) {
        let (request, mut held) = self.services[name].clone();
        match self.choose(&request, &held) {
            Ok(new) => held.extend(new),
            Err(()) => held.clear(),
        }
        held.sort_by_key(|address| request.families.iter().position(|v4| *v4 == address.is_ipv4()));
        self.services.insert(name.clone(), (request, held));
    }

    fn by_age(&self) -> Vec<Name> {
        let mut ages: Vec<(i64, Name)> =
            self.services.values().map(|(request, _)| (request.created_at_s, request.name.clone())).collect();
        ages.sort();
        ages.into_iter().map(|(_, name)| name).collect()
    }

    fn reconsider(&mut self) {
        for name in self.by_age() {
            let request = self.services[&name].0.clone();
            self.admit(request);
        }
        loop {
            let before: Vec<Vec<IpAddr>> = self.services.values().map(|(_, held)| held.clone()).collect();
            // A stable sort: among equals the elder one.
            let mut turns = self.by_age();
            turns.sort_by_key(|name| self.services[name].0.addresses.is_empty());
            for name in turns {
                self.settle(&name);
            }
            if self.services.values().map(|(_, held)| held).eq(&before) {
                return;
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Assign(Box<Request>),
    Release(Name),
    Pools(Vec<AddressPool>, Vec<IpAddr>),
    Namespaces(bool),
    Occupy(Name, Vec<IpAddr>),
}

/// Six addresses around the end of a /24, and six of IPv6.
fn addresses() -> Vec<IpAddr> {
    ips("10.0.0.254 10.0.0.255 10.0.1.0 10.0.1.1 10.0.1.2 10.0.1.3 2001:db8::1 2001:db8::2 2001:db8::3 2001:db8::4")
}

fn labels(team: &str) -> BTreeMap<String, String> {
    [("team".to_string(), team.to_string())].into()
}

fn a_name() -> impl Strategy<Value = Name> {
    prop::sample::select(vec!["shop/a", "shop/b", "shop/c", "bank/a", "bank/b", "bank/c"]).prop_map(super::name)
}

fn some_addresses(most: usize) -> impl Strategy<Value = Vec<IpAddr>> {
    prop::sample::subsequence(addresses(), 0..=most)
}

fn a_request() -> impl Strategy<Value = Request> {
    let families = prop::sample::select(vec![vec![true], vec![false], vec![true, false], vec![false, true]]);
    use FamilyPolicy::{PreferDualStack, RequireDualStack, SingleStack};
    let policy = prop::sample::select(vec![SingleStack, PreferDualStack, RequireDualStack]);
    let ports = prop::sample::subsequence(vec![(Protocol::Tcp, 80), (Protocol::Tcp, 443), (Protocol::Udp, 80)], 1..3);
    let sharing = prop::sample::select(vec!["", "", "k", "k", "l"]);
    let backend = prop::sample::select(vec![None, None, Some("x=y"), Some("x=z")]);
    let asks = prop_oneof![4 => Just(Vec::new()), 1 => some_addresses(2)];
    let pool = prop::sample::select(vec![None, None, None, None, Some("p"), Some("q"), Some("z")]);
    let team = prop::sample::select(vec!["web", "db"]);
    let who = (a_name(), prop::sample::select(vec!["1", "1", "1", "2"]), 0i64..3);
    (who, (families, policy), (ports, sharing, backend), (asks, pool, team, some_addresses(2))).prop_map(
        |(
            (name, uid, created_at_s),
            (mut families, family_policy),
            (ports, sharing, backend),
            (asks, pool, team, status),
        )| {
            if family_policy == SingleStack {
                families.truncate(1);
            }
            Request {
                name,
                uid: uid.into(),
                created_at_s,
                families,
                family_policy,
                status,
                addresses: asks,
                pool: pool.map(Into::into),
                sharing: sharing.into(),
                backend: backend.map(Into::into),
                ports: ports.into_iter().collect(),
                labels: labels(team),
            }
        },
    )
}

fn a_pool(name: &'static str) -> impl Strategy<Value = Option<AddressPool>> {
    let ranges = prop::sample::select(vec![
        "10.0.0.254-10.0.1.1",
        "10.0.1.1-10.0.1.2",
        "10.0.1.2",
        "10.0.1.3 10.0.0.254",
        "10.0.1.2-10.0.1.3 2001:db8::1-2001:db8::2",
        "2001:db8::3-2001:db8::4 10.0.0.254-10.0.0.255",
        "2001:db8::2",
    ]);
    let selectors = |team: &str| -> Vec<Selector> { vec![labels(team).into_iter().collect()] };
    let of_shop = vec![[(NAME_LABEL.to_string(), "shop".to_string())].into_iter().collect()];
    let pinning = prop::sample::select(vec![
        None,
        None,
        Some(Pinning::default()),
        Some(Pinning { priority: 1, namespaces: vec!["shop".into()], ..Pinning::default() }),
        Some(Pinning { priority: 2, namespace_selectors: selectors("bankers"), ..Pinning::default() }),
        Some(Pinning { priority: 2, namespace_selectors: of_shop, ..Pinning::default() }),
        Some(Pinning { priority: 2, service_selectors: selectors("web"), ..Pinning::default() }),
    ]);
    (prop::bool::weighted(0.8), ranges, prop::bool::weighted(0.8), any::<bool>(), pinning, 0i64..3).prop_map(
        move |(there, ranges, auto_assign, avoid_buggy, pinning, created_at_s)| {
            there.then(|| AddressPool { auto_assign, avoid_buggy, pinning, created_at_s, ..super::pool(name, ranges) })
        },
    )
}

fn an_op() -> impl Strategy<Value = Op> {
    let pools = (a_pool("p"), a_pool("q"), a_pool("r")).prop_map(|(p, q, r)| [p, q, r].into_iter().flatten().collect());
    let elsewhere = prop::sample::select(vec!["away/a", "away/b"]).prop_map(super::name);
    prop_oneof![
        10 => a_request().prop_map(|request| Op::Assign(Box::new(request))),
        3 => a_name().prop_map(Op::Release),
        2 => (pools, some_addresses(1)).prop_map(|(pools, reserved)| Op::Pools(pools, reserved)),
        1 => any::<bool>().prop_map(Op::Namespaces),
        1 => (elsewhere, some_addresses(2)).prop_map(|(name, addresses)| Op::Occupy(name, addresses)),
    ]
}

fn reserved(addresses: &[IpAddr]) -> Vec<Reserved> {
    addresses.iter().map(|address| Reserved { range: (*address).into(), whose: "reserved".into() }).collect()
}

fn configs(allocator: &Allocator) -> Vec<AddressPool> {
    allocator.pools.iter().map(|pool| pool.config.clone()).collect()
}

/// Both do one step; what is told of changes must be what changed.
fn step(allocator: &mut Allocator, naive: &mut Naive, op: Op) -> Result<(), TestCaseError> {
    let mut believed: BTreeMap<Name, Vec<IpAddr>> =
        naive.services.iter().map(|(name, (_, held))| (name.clone(), held.clone())).collect();
    match op {
        Op::Assign(request) => {
            if naive.services.get(&request.name).is_some_and(|(before, _)| before.uid != request.uid) {
                naive.services.remove(&request.name);
            }
            naive.admit((*request).clone());
            naive.settle(&request.name);
            let name = request.name.clone();
            let decision = allocator.assign(*request);
            let held = decision.result.as_ref().map_or(Vec::new(), |assignment| assignment.addresses.clone());
            prop_assert_eq!(&held, &naive.services[&name].1, "{:?}", decision);
            believed.insert(name, held);
        }
        Op::Release(name) => {
            let held = naive.services.remove(&name).map_or(Vec::new(), |(_, held)| held);
            prop_assert_eq!(allocator.release(&name), held);
            believed.remove(&name);
        }
        Op::Pools(pools, taken) => {
            let wanted = pools.len();
            let problems = allocator.set_pools(pools, reserved(&taken));
            naive.pools = configs(allocator);
            naive.reserved = taken.into_iter().map(Into::into).collect();
            prop_assert!(naive.pools.len() >= wanted.min(1).saturating_sub(problems.len()));
            for (index, one) in naive.pools.iter().enumerate() {
                for two in &naive.pools[..index] {
                    let apart = |a: &AddressRange| two.ranges.iter().all(|b| a.intersection(b).is_none());
                    prop_assert!(one.ranges.iter().all(apart), "{one:?} {two:?}");
                }
            }
        }
        Op::Namespaces(bankers) => {
            let team = if bankers { "bankers" } else { "clerks" };
            naive.namespaces = [("bank".to_string(), labels(team))].into();
            allocator.set_namespaces(naive.namespaces.clone());
        }
        Op::Occupy(name, addresses) => {
            allocator.occupy(&name, &addresses);
            naive.foreign.insert(name, addresses);
        }
    }
    naive.reconsider();
    for (name, decision) in allocator.reconsider() {
        let before = believed.get(&name).cloned().unwrap_or_default();
        let now = decision.result.as_ref().map_or(Vec::new(), |assignment| assignment.addresses.clone());
        // M-005: whatever somebody loses, he is told why.
        for lost in before.iter().filter(|address| !now.contains(address)) {
            prop_assert!(decision.cleared.iter().any(|cleared| cleared.address == *lost && !cleared.why.is_empty()));
        }
        if let Err(refusal) = &decision.result {
            prop_assert!(!refusal.message.is_empty() && refusal.reason != Reason::Starting);
        }
        believed.insert(name, now);
    }
    for (name, (_, held)) in &naive.services {
        prop_assert_eq!(allocator.held_by(name), &**held, "{}", name);
        prop_assert_eq!(believed.get(name), Some(held), "{} was not told", name);
    }
    Ok(())
}

fn check(allocator: &Allocator, naive: &Naive) -> Result<(), TestCaseError> {
    let all: Vec<&(Request, Vec<IpAddr>)> = naive.services.values().collect();
    for (index, (one, held)) in all.iter().enumerate() {
        for (two, others) in &all[..index] {
            let common = held.iter().any(|address| others.contains(address));
            prop_assert!(!common || may_share(one, two), "{} and {}", one.name, two.name);
        }
    }
    for pool in &naive.pools {
        for v4 in [true, false] {
            let of_pool = |address: &&IpAddr| address.is_ipv4() == v4 && naive.pool_of(**address) == Some(pool);
            let universe = addresses();
            let own: Vec<&IpAddr> = universe.iter().filter(of_pool).collect();
            let is_held = |address: &IpAddr| all.iter().any(|(_, held)| held.contains(address));
            let is_reserved = |address: &IpAddr| naive.reserved.iter().any(|range| range.contains(*address));
            let is_foreign = |address: &IpAddr| naive.foreign.values().any(|list| list.contains(address));
            let count = |those: &dyn Fn(&IpAddr) -> bool| own.iter().filter(|address| those(address)).count() as u64;
            let expected = Counts {
                total: count(&|address| !is_reserved(address)),
                assigned: count(&is_held),
                available: count(&|address| !is_reserved(address) && !is_held(address) && !is_foreign(address)),
            };
            prop_assert_eq!(allocator.counts(&pool.name, v4), expected, "{} {}", &pool.name, v4);
        }
    }
    Ok(())
}

/// M-006: another allocator that is told the same, in another order, comes to the same.
fn restart(allocator: &Allocator, naive: &Naive, turn: usize) -> Result<(), TestCaseError> {
    let mut again = Allocator::default();
    again.set_namespaces(naive.namespaces.clone());
    let remembered = |pool: &AddressPool| AddressPool { last_good: pool.ranges.clone(), ..pool.clone() };
    let taken: Vec<IpAddr> = naive.reserved.iter().map(AddressRange::first).collect();
    again.set_pools(naive.pools.iter().map(remembered).collect(), reserved(&taken));
    prop_assert_eq!(configs(&again).len(), naive.pools.len());
    for (name, addresses) in &naive.foreign {
        again.occupy(name, addresses);
    }
    let with_status = |(request, held): &(Request, Vec<IpAddr>)| Request { status: held.clone(), ..request.clone() };
    let mut requests: Vec<Request> = naive.services.values().map(with_status).collect();
    let turn = turn % requests.len().max(1);
    requests.rotate_left(turn);
    for (name, decision) in again.adopt(requests) {
        prop_assert_eq!(&decision.cleared, &Vec::new(), "{}", name);
        prop_assert_eq!(again.held_by(&name), allocator.held_by(&name), "{}", name);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn it_decides_as_its_naive_twin(ops in prop::collection::vec(an_op(), 1..40), turn in 0usize..6) {
        let mut allocator = Allocator::default();
        let mut naive = Naive::default();
        allocator.set_pools(vec![super::pool("p", "10.0.1.1-10.0.1.2 2001:db8::1-2001:db8::2")], Vec::new());
        allocator.adopt([]);
        naive.pools = configs(&allocator);
        for op in ops {
            step(&mut allocator, &mut naive, op)?;
            check(&allocator, &naive)?;
            restart(&allocator, &naive, turn)?;
        }
    }
}
