//! Egress: policies, external addresses, and what is translated one to one.
//!
//! Names become numbers here, whichever comes first: a policy, or a pod that names it. A pod that names a policy nobody knows
//! leaves by no address at all (N-111).
//!
//! An external address is used as long as some object names it and nobody else has it: not this machine's kernel, which would
//! answer for it, no Service, and no other role of the gateway. A policy has those of its addresses that can be used and that
//! belong to no pod alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use tidegate_api::resource::{Egress, PortTimeout, StaticNat};

use super::mapped_ip;
use crate::table::egress::{EgressRow, EgressTable, ExternalRow, PORT_TIMERS_MAX};
use crate::table::{EgressId, ExternalId, unmapped};

/// Which policy and which address has which number, and what objects say of them.
#[derive(Debug, Default)]
pub struct Egresses {
    ids: HashMap<Arc<str>, EgressId>,
    policies: BTreeMap<Arc<str>, Egress>,
    statics: BTreeMap<Arc<str>, StaticNat>,
    externals: BTreeMap<IpAddr, ExternalId>,
    /// What the table was told.
    rows: HashMap<ExternalId, (Option<IpAddr>, Forwards)>,
    written: HashMap<Arc<str>, Vec<IpAddr>>,
    /// Seconds by number of the timer less one; 0: free.
    timers: Vec<u32>,
    /// Policies that were given or taken away since they were written.
    due: BTreeSet<Arc<str>>,
    is_due: bool,
    /// The groups of addresses may be others since they were asked for.
    regrouped: bool,
}

/// Forwarded ports of an address, by protocol and port.
type Forwards = BTreeMap<(u8, u16), (IpAddr, u16)>;

/// Whose traffic is decided otherwise now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Whether the table differs.
    pub changed: bool,
    /// Policies whose pods look again.
    pub policies: Vec<Arc<str>>,
    /// Pods that look again by themselves, by address.
    pub pods: Vec<IpAddr>,
}

impl Egresses {
    /// The number of policy `name`, whether there is one or not.
    pub fn id(&mut self, name: &str) -> EgressId {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        // Beyond that many names pods are told that there is no such policy.
        let Ok(number) = u16::try_from(self.ids.len()) else { return EgressId::NONE };
        if number == EgressId::NONE.0 {
            return EgressId::NONE;
        }
        self.ids.insert(name.into(), EgressId(number));
        EgressId(number)
    }

    /// Takes in a policy, or that it is gone. Written by [`Egresses::settle`].
    pub fn policy(&mut self, name: &str, egress: Option<&Egress>) {
        let name: Arc<str> = name.into();
        match egress {
            Some(egress) => drop(self.policies.insert(Arc::clone(&name), egress.clone())),
            None => drop(self.policies.remove(&name)),
        }
        self.due.insert(name);
        (self.is_due, self.regrouped) = (true, true);
    }

    /// Takes in an address or port that is always the same pod's, or that it is not any more.
    pub fn fixed(&mut self, name: &str, nat: Option<&StaticNat>) {
        match nat {
            Some(nat) => drop(self.statics.insert(name.into(), nat.clone())),
            None => drop(self.statics.remove(name)),
        }
        (self.is_due, self.regrouped) = (true, true);
    }

    /// Whether there is any policy, or any address that is a pod's own.
    pub fn is_used(&self) -> bool {
        !self.policies.is_empty() || !self.statics.is_empty()
    }

    /// [`Egresses::groups`], if they may have changed since the last call.
    pub fn take_groups(&mut self) -> Option<BTreeMap<IpAddr, IpAddr>> {
        std::mem::take(&mut self.regrouped).then(|| self.groups())
    }

    /// Under whose name each external address is given to a gateway: the lowest of its family that policies join it with.
    /// A pod has an address of its policy that only gateways can tell, so that all of them are one gateway's.
    pub fn groups(&self) -> BTreeMap<IpAddr, IpAddr> {
        let mut groups: BTreeMap<IpAddr, IpAddr> = BTreeMap::new();
        for nat in self.statics.values() {
            groups.insert(nat.external, nat.external);
        }
        for egress in self.policies.values() {
            for is_ipv4 in [true, false] {
                let of_family = || egress.addresses.iter().filter(|address| address.is_ipv4() == is_ipv4);
                let known = of_family().map(|address| groups.get(address).copied().unwrap_or(*address));
                let joined: BTreeSet<IpAddr> = known.collect();
                let Some(name) = joined.first().copied() else { continue };
                groups.values_mut().filter(|group| joined.contains(group)).for_each(|group| *group = name);
                groups.extend(of_family().map(|address| (*address, name)));
            }
        }
        groups
    }

    /// Whether an object has come or gone since the last [`Egresses::settle`].
    pub fn is_due(&self) -> bool {
        self.is_due
    }

    /// Writes what differs, given which addresses can be used.
    pub fn settle(&mut self, is_usable: impl Fn(IpAddr) -> bool, table: &mut Arc<EgressTable>) -> Touched {
        let mut touched = Touched::default();
        self.is_due = false;
        self.settle_externals(&is_usable, table, &mut touched);
        self.settle_timers(table, &mut touched);
        let whole: BTreeSet<IpAddr> = self.wholes().map(|nat| nat.external).collect();
        let names: BTreeSet<Arc<str>> = self.policies.keys().chain(&self.due).cloned().collect();
        for name in names {
            let id = self.id(&name);
            let Some(egress) = self.policies.get(&name) else {
                self.written.remove(&name);
                Arc::make_mut(table).set_policy(id, None);
                touched.policies.push(name);
                continue;
            };
            let usable = |address: &IpAddr| is_usable(*address) && !whole.contains(address);
            let mut addresses: Vec<IpAddr> = egress.addresses.iter().copied().filter(usable).collect();
            addresses.sort_unstable();
            if !self.due.contains(&name) && self.written.get(&name) == Some(&addresses) {
                continue;
            }
            for missing in egress.addresses.iter().filter(|address| !addresses.contains(address)) {
                tracing::warn!(policy = %name, address = %missing, "an external address is used otherwise here; the policy does without");
            }
            Arc::make_mut(table).set_policy(id, Some(self.row(&name, egress, &addresses)));
            self.written.insert(Arc::clone(&name), addresses);
            touched.policies.push(name);
        }
        self.due.clear();
        touched.changed |= !touched.policies.is_empty();
        touched
    }

    /// Objects that give a pod a whole address, one for each pod: the first by name.
    fn wholes(&self) -> impl Iterator<Item = &StaticNat> {
        let mut pods = BTreeSet::new();
        let all = self.statics.values().filter(|nat| nat.ports.is_empty());
        all.filter(move |nat| pods.insert(nat.internal))
    }

    fn settle_externals(
        &mut self,
        is_usable: &impl Fn(IpAddr) -> bool,
        table: &mut Arc<EgressTable>,
        touched: &mut Touched,
    ) {
        let mut wanted: BTreeMap<IpAddr, (Option<IpAddr>, Forwards)> = BTreeMap::new();
        for address in self.policies.values().flat_map(|egress| &egress.addresses) {
            wanted.entry(*address).or_default();
        }
        for nat in self.wholes() {
            wanted.entry(nat.external).or_default().0 = Some(nat.internal);
        }
        for nat in self.statics.values() {
            let place = nat.ports.iter().map(|port| ((port.protocol.number(), port.external), port.internal));
            let forwards = &mut wanted.entry(nat.external).or_default().1;
            forwards.extend(place.map(|(at, port)| (at, (nat.internal, port))));
        }
        wanted.retain(|address, _| is_usable(*address));
        let gone: Vec<IpAddr> =
            self.externals.keys().filter(|address| !wanted.contains_key(address)).copied().collect();
        for address in gone {
            let Some(id) = self.externals.remove(&address) else { continue };
            touched.changed = true;
            touched.pods.extend(self.rows.remove(&id).and_then(|(whole, _)| whole));
            Arc::make_mut(table).set_external(id, None);
        }
        for (address, said) in wanted {
            let id = self.externals.get(&address).copied().or_else(|| self.fresh_external());
            let Some(id) = id else {
                tracing::warn!(%address, "too many external addresses; this one is not used");
                continue;
            };
            self.externals.insert(address, id);
            if self.rows.get(&id) == Some(&said) {
                continue;
            }
            let before = table.external(id);
            let (whole, forwards) = &said;
            let row = ExternalRow {
                address: mapped_ip(address),
                is_carried: before.is_none_or(|before| before.is_carried),
                whole: whole.map(mapped_ip),
                forwards: forwards.iter().map(|(at, (pod, port))| (*at, (mapped_ip(*pod), *port))).collect(),
                owners: before.map(|before| before.owners.clone()).unwrap_or_default(),
            };
            touched.pods.extend(*whole);
            touched.pods.extend(self.rows.insert(id, said).and_then(|(whole, _)| whole));
            touched.changed = true;
            Arc::make_mut(table).set_external(id, Some(row));
        }
    }

    fn fresh_external(&self) -> Option<ExternalId> {
        let taken: BTreeSet<u16> = self.externals.values().map(|id| id.0).collect();
        (0..crate::limits::EXTERNALS_MAX).find(|number| !taken.contains(number)).map(ExternalId)
    }

    /// Gives each time that some policy asks for a number that it keeps.
    fn settle_timers(&mut self, table: &mut Arc<EgressTable>, touched: &mut Touched) {
        let asked = |timeouts: &[PortTimeout]| timeouts.iter().map(|timeout| timeout.idle_s).collect::<Vec<_>>();
        let wanted: BTreeSet<u32> = self.policies.values().flat_map(|egress| asked(&egress.udp_timeouts)).collect();
        let before = self.timers.clone();
        self.timers.iter_mut().filter(|seconds| !wanted.contains(seconds)).for_each(|seconds| *seconds = 0);
        for seconds in wanted {
            if self.timers.contains(&seconds) {
                continue;
            }
            match self.timers.iter().position(|timer| *timer == 0) {
                Some(free) => self.timers[free] = seconds,
                None if self.timers.len() < usize::from(PORT_TIMERS_MAX) => self.timers.push(seconds),
                None => {
                    tracing::warn!(seconds, "too many different times for idle ports; mappings live as long as usual")
                }
            }
        }
        if self.timers != before {
            Arc::make_mut(table).set_timers(&self.timers);
            touched.changed = true;
        }
    }

    fn row(&self, name: &str, egress: &Egress, addresses: &[IpAddr]) -> EgressRow {
        let mapped: Vec<[u8; 16]> = addresses.iter().map(|address| mapped_ip(*address)).collect();
        let timer = |timeout: &PortTimeout| {
            let place = self.timers.iter().position(|seconds| *seconds == timeout.idle_s)?;
            Some((timeout.port, u8::try_from(place + 1).ok()?))
        };
        let mut row = EgressRow::new(name, &egress.destinations, &egress.except);
        row.keep_inside(egress.inside.iter().filter(|prefix| !egress.except.contains(prefix)));
        row.addresses_v4 = mapped.iter().filter_map(unmapped).collect();
        row.addresses_v6 = mapped.iter().filter(|address| unmapped(address).is_none()).copied().collect();
        (row.tcp, row.udp) = (egress.tcp, egress.udp);
        row.ports_per_pod_max = egress.ports_per_pod_max.unwrap_or(u32::MAX);
        row.ports_per_namespace_max = egress.ports_per_namespace_max.unwrap_or(u32::MAX);
        row.timers = egress.udp_timeouts.iter().filter_map(timer).collect();
        (row.other_protocols, row.log) = (egress.other_protocols, egress.log);
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn egress(addresses: &[&str], idle_s: &[u32]) -> Egress {
        let timeouts = idle_s.iter().map(|idle_s| serde_json::json!({ "port": 53, "idle_s": idle_s }));
        let body = serde_json::json!({ "addresses": addresses, "udp_timeouts": timeouts.collect::<Vec<_>>() });
        serde_json::from_value(body).unwrap()
    }

    fn one_to_one(external: &str, internal: &str) -> StaticNat {
        serde_json::from_value(serde_json::json!({ "external": external, "internal": internal })).unwrap()
    }

    #[test]
    fn policies_have_the_addresses_that_nobody_else_has() {
        let (mut egresses, mut table) = (Egresses::default(), Arc::default());
        let used: IpAddr = "192.0.2.9".parse().unwrap();
        let later = egresses.id("later");
        egresses.policy("out", Some(&egress(&["192.0.2.8", "192.0.2.9", "2001:db8::8"], &[])));
        let touched = egresses.settle(|address| address != used, &mut table);
        assert_eq!((touched.policies, touched.pods), (vec![Arc::from("out")], vec![]));
        let out = egresses.id("out");
        assert_ne!(out, later);
        let row = table.policy(out).unwrap();
        assert_eq!((&*row.addresses_v4, row.addresses_v6.len()), (&[[192, 0, 2, 8]][..], 1));
        assert!(table.external_v4(&[192, 0, 2, 9]).is_none() && table.policy(later).is_none());
        assert_eq!(egresses.settle(|address| address != used, &mut table), Touched::default());
        // It comes free: the policy has it, and its pods look again.
        let touched = egresses.settle(|_| true, &mut table);
        assert_eq!(touched.policies.len(), 1);
        assert_eq!(table.policy(out).unwrap().addresses_v4.len(), 2);
        // It becomes one pod's own.
        egresses.fixed("one", Some(&one_to_one("192.0.2.9", "10.244.1.5")));
        let touched = egresses.settle(|_| true, &mut table);
        assert_eq!((touched.policies.len(), touched.pods), (1, vec!["10.244.1.5".parse().unwrap()]));
        assert_eq!(table.policy(out).unwrap().addresses_v4.len(), 1);
        assert!(table.external_at(&mapped_ip(used)).unwrap().whole.is_some());
        egresses.policy("out", None);
        egresses.fixed("one", None);
        egresses.settle(|_| true, &mut table);
        assert!(table.is_empty() && table.policy(out).is_none());
    }

    #[test]
    fn timers_keep_their_numbers() {
        let (mut egresses, mut table) = (Egresses::default(), Arc::default());
        egresses.policy("a", Some(&egress(&[], &[30])));
        egresses.policy("b", Some(&egress(&[], &[10, 60])));
        egresses.settle(|_| true, &mut table);
        let of = |egresses: &mut Egresses, table: &EgressTable, name| {
            table.policy(egresses.id(name)).and_then(|row| table.timer_s(row.timer(53)))
        };
        assert_eq!(of(&mut egresses, &table, "a"), Some(30));
        assert_eq!(of(&mut egresses, &table, "b"), Some(10), "of one port named twice the first");
        egresses.policy("b", None);
        egresses.policy("c", Some(&egress(&[], &[20])));
        egresses.settle(|_| true, &mut table);
        assert_eq!((of(&mut egresses, &table, "a"), of(&mut egresses, &table, "c")), (Some(30), Some(20)));
    }

    /// Addresses that policies share are one gateway's, through any number of policies, each family for itself.
    #[test]
    fn addresses_that_policies_join_are_of_one_group() {
        let mut egresses = Egresses::default();
        let policies: [(&str, &[&str]); 4] = [
            ("a", &["192.0.2.9", "192.0.2.8", "2001:db8::8"]),
            ("b", &["192.0.2.5", "2001:db8::5"]),
            ("c", &["192.0.2.9", "192.0.2.7"]),
            ("d", &["192.0.2.1"]),
        ];
        for (name, addresses) in policies {
            egresses.policy(name, Some(&egress(addresses, &[])));
        }
        let said = |egresses: &Egresses| -> Vec<String> {
            egresses.groups().iter().map(|(address, group)| format!("{address} {group}")).collect()
        };
        let apart = [
            "192.0.2.1 192.0.2.1",
            "192.0.2.5 192.0.2.5",
            "192.0.2.7 192.0.2.7",
            "192.0.2.8 192.0.2.7",
            "192.0.2.9 192.0.2.7",
            "2001:db8::5 2001:db8::5",
            "2001:db8::8 2001:db8::8",
        ];
        assert_eq!(said(&egresses), apart);
        egresses.policy("e", Some(&egress(&["192.0.2.8", "192.0.2.1"], &[])));
        let joined = said(&egresses);
        assert_eq!(joined.iter().filter(|line| line.ends_with(" 192.0.2.1")).count(), 4, "{joined:?}");
        assert!(joined.contains(&"192.0.2.5 192.0.2.5".to_owned()), "{joined:?}");
    }
}
