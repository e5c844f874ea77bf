//! Addresses for which somebody else answers, as the dataplane hears it.
//!
//! Owns what the dataplane last told and the words for it. A machine on a link of the gateway that answers for a Service's
//! address without being a gateway takes some of its clients away: usually a worker whose kube-proxy runs in ipvs mode
//! without strictARP, or an address given twice. An address that the gateway's own kernel has is left to it; a source of
//! `fullnat` that it has concerns every Service of that family, and an external address those who leave by it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tidegate_api::message::AddressConflict;

use super::delivery::Words;
use super::service::Holds;

/// Type of the condition.
pub const ADDRESSES_OURS: &str = "AddressesOurs";
/// Why it does not hold.
pub const ADDRESS_CONFLICT: &str = "AddressConflict";

/// What was told, by address.
#[derive(Debug, Default)]
pub struct Conflicts(BTreeMap<IpAddr, AddressConflict>);

impl Conflicts {
    /// Takes in all there are now; returns the addresses for which that changes anything.
    pub fn take(&mut self, all: Vec<AddressConflict>) -> BTreeSet<IpAddr> {
        let all: BTreeMap<_, _> = all.into_iter().map(|conflict| (conflict.address, conflict)).collect();
        let before = std::mem::replace(&mut self.0, all);
        let addresses = before.keys().chain(self.0.keys()).copied();
        addresses.filter(|address| before.get(address) != self.0.get(address)).collect()
    }

    /// The words for a Service with these addresses, at a gateway with these sources of `fullnat`; `None`: nobody else answers
    /// for any.
    pub fn words(&self, addresses: &[IpAddr], sources: &[IpAddr]) -> Option<Words> {
        let (kernels, strangers): (Vec<_>, Vec<_>) =
            addresses.iter().filter_map(|address| self.0.get(address)).partition(|conflict| conflict.kernel.is_some());
        let told = |conflict: &&AddressConflict| {
            let AddressConflict { address, mac, device, withheld, .. } = conflict;
            let what = if *withheld { "it is not announced" } else { "both are announced" };
            format!("{mac} answers for {address} on {device}: {what}")
        };
        let mut list: Vec<String> = strangers.iter().map(told).collect();
        if !list.is_empty() {
            list.push(
                "a worker whose kube-proxy runs in ipvs mode needs strictARP; otherwise find that machine and take the \
                 address from it. Asked again every 30 s"
                    .into(),
            );
        }
        list.extend(kernels.iter().map(|conflict| {
            let AddressConflict { address, device, .. } = conflict;
            let mends = mends(conflict);
            format!("{address} is also an address of the gateway's own kernel, on {device}, and is left to it; {mends}")
        }));
        let concerned = |source: &&IpAddr| addresses.iter().any(|address| address.is_ipv4() == source.is_ipv4());
        let taken = sources.iter().filter(concerned).filter_map(|source| self.0.get(source));
        list.extend(taken.filter(|conflict| conflict.kernel.is_some()).map(|conflict| {
            let AddressConflict { address, device, .. } = conflict;
            let mends = mends(conflict);
            format!(
                "fullnat source {address} is also an address of the gateway's own kernel, on {device}, and is not used; {mends}"
            )
        }));
        (!list.is_empty()).then(|| (Holds::False, ADDRESS_CONFLICT, list.join("; ")))
    }

    /// The words for an object by whose external addresses pods leave, and whether that leaves no address of a family.
    pub fn of_external(&self, addresses: &[IpAddr]) -> Option<(String, bool)> {
        let (_, _, mut message) = self.words(addresses, &[])?;
        let is_kernels = |address: &IpAddr| self.0.get(address).is_some_and(|conflict| conflict.kernel.is_some());
        let mut ends = false;
        for (family, is_ipv4) in [("IPv4", true), ("IPv6", false)] {
            let mut of_family = addresses.iter().filter(|address| address.is_ipv4() == is_ipv4).peekable();
            if of_family.peek().is_some() && of_family.all(is_kernels) {
                message.push_str(&format!("; no pod gets out by it over {family}"));
                ends = true;
            }
        }
        Some((message, ends))
    }
}

/// The command that takes an address from a device of the gateway.
fn mends(AddressConflict { address, device, kernel, .. }: &AddressConflict) -> String {
    let length = kernel.map(|length| format!("/{length}")).unwrap_or_default();
    format!("on the gateway: ip address del {address}{length} dev {device}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conflict(address: &str, withheld: bool) -> AddressConflict {
        let mac = "02:00:00:00:be:ef".parse().unwrap();
        AddressConflict { address: address.parse().unwrap(), mac, device: "wan0".into(), withheld, kernel: None }
    }

    #[test]
    fn the_stranger_is_named_to_those_whom_it_concerns() {
        let (v4, v6, other): (IpAddr, IpAddr, IpAddr) =
            ("192.0.2.200".parse().unwrap(), "2001:db8:1::200".parse().unwrap(), "192.0.2.201".parse().unwrap());
        let mut conflicts = Conflicts::default();
        assert_eq!(conflicts.words(&[v4, v6], &[]), None);
        let first = vec![conflict("192.0.2.200", true), conflict("2001:db8:1::200", false)];
        assert_eq!(conflicts.take(first.clone()), [v4, v6].into());
        let (holds, reason, message) = conflicts.words(&[v4, v6], &[]).unwrap();
        assert_eq!((holds, reason), (Holds::False, "AddressConflict"));
        for part in
            ["02:00:00:00:be:ef answers for 192.0.2.200 on wan0: it is not announced", "2001:db8:1::200", "strictARP"]
        {
            assert!(message.contains(part), "{message}");
        }
        assert_eq!(conflicts.words(&[other], &[]), None);
        assert!(conflicts.take(first).is_empty(), "the same again changes nothing");
        assert_eq!(conflicts.take(vec![conflict("2001:db8:1::200", true)]), [v4, v6].into());
        assert_eq!(conflicts.take(vec![]), [v6].into());
    }
    #[test]
    fn what_the_own_kernel_has_is_named_with_its_device_and_the_command() {
        for (vip, source, other, length) in [
            ("203.0.113.10", "10.244.9.2", "2001:db8:f::10", 32),
            ("2001:db8:f::10", "fd00:10:244:9::2", "203.0.113.10", 128),
        ] {
            let of_kernel = |address: &str| AddressConflict {
                device: "lo".into(),
                kernel: Some(length),
                ..conflict(address, true)
            };
            let [vip_of, source_of, other_of] = [vip, source, other].map(|text| text.parse::<IpAddr>().unwrap());
            let mut conflicts = Conflicts::default();
            conflicts.take(vec![of_kernel(vip), of_kernel(source)]);
            let (holds, reason, message) = conflicts.words(&[vip_of], &[source_of]).unwrap();
            assert_eq!((holds, reason), (Holds::False, "AddressConflict"));
            assert_eq!(
                message,
                format!(
                    "{vip} is also an address of the gateway's own kernel, on lo, and is left to it; on the gateway: ip \
                     address del {vip}/{length} dev lo; fullnat source {source} is also an address of the gateway's own \
                     kernel, on lo, and is not used; on the gateway: ip address del {source}/{length} dev lo"
                )
            );
            assert_eq!(conflicts.words(&[other_of], &[source_of]), None, "of the other family");
        }
    }

    #[test]
    fn of_external_addresses_it_is_told_when_a_family_has_none_left() {
        for (first, second, other, family) in [
            ("192.0.2.240", "192.0.2.241", "2001:db8:1::240", "IPv4"),
            ("2001:db8:1::240", "2001:db8:1::241", "192.0.2.240", "IPv6"),
        ] {
            let of_kernel = |address: &str| AddressConflict { kernel: Some(32), ..conflict(address, true) };
            let all = [first, second, other].map(|text| text.parse::<IpAddr>().unwrap());
            let mut conflicts = Conflicts::default();
            conflicts.take(vec![of_kernel(first)]);
            let (told, ends) = conflicts.of_external(&all).unwrap();
            assert!(!ends && told.contains(&format!("{first} is also")) && !told.contains("gets out"), "{told}");
            conflicts.take(vec![of_kernel(first), conflict(second, true)]);
            assert!(!conflicts.of_external(&all).unwrap().1, "a stranger's may still be announced");
            conflicts.take(vec![of_kernel(first), of_kernel(second)]);
            let (told, ends) = conflicts.of_external(&all).unwrap();
            assert!(ends && told.ends_with(&format!("no pod gets out by it over {family}")), "{told}");
            assert_eq!(conflicts.of_external(&all[2..]), None);
        }
    }
}
