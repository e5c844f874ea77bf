//! What is used of external addresses, over all workers, and who holds most of it.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use tidegate_api::resource::Body;
use tidegate_api::show::{EgressAddressRow, EgressPodRow, EgressShown};

use crate::compile::address_of;
use crate::compile::thread::View;
use crate::mailbox::EgressUse;
use crate::state::ports::{Holder, Tally};
use crate::table::egress::PortClass;

/// Pods that are named.
const PODS_MAX: usize = 20;

/// The answer, given what each worker said, and who carries an address. `view` has the pods.
pub fn shown(view: &View, used: &[EgressUse], carrier: impl Fn(IpAddr) -> Option<String>) -> EgressShown {
    let externals = view.tables.egress.externals().map(|(_, row)| address_of(&row.address));
    let carriers = externals.filter_map(|address| Some((address, carrier(address)?))).collect();
    let bare =
        view.tables.egress.policies().filter(|(_, row)| row.addresses_v4.is_empty() && row.addresses_v6.is_empty());
    let bare = bare.map(|(_, row)| row.name.to_string()).collect();
    EgressShown { addresses: addresses(view, used), pods: pods(view, used), carriers, bare }
}

fn addresses(view: &View, used: &[EgressUse]) -> Vec<EgressAddressRow> {
    let mut policies: HashMap<IpAddr, Vec<String>> = HashMap::new();
    for (_, row) in view.tables.egress.policies() {
        let v4 = row.addresses_v4.iter().map(|address| IpAddr::from(*address));
        for address in v4.chain(row.addresses_v6.iter().map(|address| IpAddr::from(*address))) {
            policies.entry(address).or_default().push(row.name.to_string());
        }
    }
    let mut pools: BTreeMap<(IpAddr, PortClass), (Tally, u64)> = BTreeMap::new();
    for (address, class, tally, given) in used.iter().flat_map(|used| &used.pools) {
        let (all, ports) = pools.entry((address_of(address), *class)).or_default();
        all.used += tally.used;
        all.resting += tally.resting;
        all.held += tally.held;
        all.refused += tally.refused;
        *ports += u64::from(*given);
    }
    let row = |((address, class), (tally, ports)): ((IpAddr, PortClass), (Tally, u64))| EgressAddressRow {
        address,
        policies: policies.get(&address).cloned().unwrap_or_default(),
        protocol: class.name().to_owned(),
        ports,
        used: tally.used.saturating_sub(tally.resting).into(),
        resting: tally.resting.into(),
        held: tally.held.saturating_sub(tally.resting).into(),
        refused: tally.refused,
    };
    pools.into_iter().map(row).collect()
}

fn pods(view: &View, used: &[EgressUse]) -> Vec<EgressPodRow> {
    let mut names: HashMap<IpAddr, &str> = HashMap::new();
    for resource in &view.objects {
        if let Body::Pod(pod) = &resource.body {
            names.extend(pod.addresses.iter().map(|address| (*address, resource.name.as_str())));
        }
    }
    let mut held: HashMap<u32, Holder> = HashMap::new();
    for (backend, holder) in used.iter().flat_map(|used| &used.pods) {
        let all = held.entry(backend.0).or_default();
        all.held += holder.held;
        all.refused += holder.refused;
    }
    let mut rows: Vec<EgressPodRow> = Vec::new();
    for (address, pod) in view.tables.pods.rows() {
        let Some(holder) = held.get(&pod.backend.0) else { continue };
        let address = address_of(&address);
        let pod = names.get(&address).map_or_else(String::new, |name| (*name).to_owned());
        rows.push(EgressPodRow { pod, address, held: holder.held.into(), refused: holder.refused });
    }
    rows.sort_by(|a, b| (b.held, b.refused).cmp(&(a.held, a.refused)).then_with(|| a.address.cmp(&b.address)));
    rows.truncate(PODS_MAX);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    /// N-042: a port that rests is not in use; of two workers each has its part.
    #[test]
    fn what_rests_is_told_apart_from_what_is_used() {
        for address in ["203.0.113.9", "2001:db8::9"] {
            let address: IpAddr = address.parse().unwrap();
            let tally = |used, resting, held| Tally { used, resting, held, alone: used, refused: 1 };
            let mapped = crate::compile::mapped_ip(address);
            let used = [tally(5, 2, 5), tally(7, 3, 30)]
                .map(|tally| EgressUse { pools: vec![(mapped, PortClass::Udp, tally, 32_256)], pods: Vec::new() });
            let shown = shown(&View::default(), &used, |_| None);
            let [row] = shown.addresses.as_slice() else { panic!("{shown:?}") };
            assert_eq!((row.address, row.ports), (address, 64_512));
            assert_eq!((row.used, row.resting, row.held, row.refused), (7, 5, 30, 2));
        }
    }
}
