//! Addresses for which somebody else answers, as the dataplane hears it.
//!
//! Owns what the dataplane last told and the words for it. A machine on a link of the gateway that answers for a Service's
//! address without being a gateway takes some of its clients away: usually a worker whose kube-proxy runs in ipvs mode
//! without strictARP, or an address given twice.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tidegate_api::message::AddressConflict;

use super::delivery::Words;
use super::service::Holds;

/// Type of the condition.
pub const ADDRESSES_OURS: &str = "AddressesOurs";

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

    /// The words for a Service with these addresses; `None`: nobody else answers for any.
    pub fn words(&self, addresses: &[IpAddr]) -> Option<Words> {
        let told = |conflict: &AddressConflict| {
            let AddressConflict { address, mac, device, withheld } = conflict;
            let what = if *withheld { "it is not announced" } else { "both are announced" };
            format!("{mac} answers for {address} on {device}: {what}")
        };
        let list: Vec<String> = addresses.iter().filter_map(|address| self.0.get(address)).map(told).collect();
        let hint = "a worker whose kube-proxy runs in ipvs mode needs strictARP; otherwise find that machine and take the \
                    address from it. Asked again every 30 s";
        (!list.is_empty()).then(|| (Holds::False, "AddressConflict", format!("{}; {hint}", list.join("; "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conflict(address: &str, withheld: bool) -> AddressConflict {
        let mac = "02:00:00:00:be:ef".parse().unwrap();
        AddressConflict { address: address.parse().unwrap(), mac, device: "wan0".into(), withheld }
    }

    #[test]
    fn the_stranger_is_named_to_those_whom_it_concerns() {
        let (v4, v6, other): (IpAddr, IpAddr, IpAddr) =
            ("192.0.2.200".parse().unwrap(), "2001:db8:1::200".parse().unwrap(), "192.0.2.201".parse().unwrap());
        let mut conflicts = Conflicts::default();
        assert_eq!(conflicts.words(&[v4, v6]), None);
        let first = vec![conflict("192.0.2.200", true), conflict("2001:db8:1::200", false)];
        assert_eq!(conflicts.take(first.clone()), [v4, v6].into());
        let (holds, reason, message) = conflicts.words(&[v4, v6]).unwrap();
        assert_eq!((holds, reason), (Holds::False, "AddressConflict"));
        for part in
            ["02:00:00:00:be:ef answers for 192.0.2.200 on wan0: it is not announced", "2001:db8:1::200", "strictARP"]
        {
            assert!(message.contains(part), "{message}");
        }
        assert_eq!(conflicts.words(&[other]), None);
        assert!(conflicts.take(first).is_empty(), "the same again changes nothing");
        assert_eq!(conflicts.take(vec![conflict("2001:db8:1::200", true)]), [v4, v6].into());
        assert_eq!(conflicts.take(vec![]), [v6].into());
    }
}
