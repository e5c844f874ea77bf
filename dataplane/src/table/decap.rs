//! Tunnels that end here without being part of the overlay: IP in IP and GUE of load balancers in front of us.
//!
//! Owns the addresses at which such packets are taken out of their outside, and from whom. It refuses to know what is inside.

use std::net::IpAddr;

use ipnet::IpNet;

use super::ranges::Ranges;
use super::{Family, mapped};

/// Which tunnels end here. Kind: table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decap {
    /// Outer destinations in mapped form, ascending.
    addresses: Box<[[u8; 16]]>,
    /// Outer sources by family; `None`: nobody of that family.
    sources: [Option<Ranges>; 2],
    /// UDP port of GUE, host order; 0: not taken.
    gue_port: u16,
}

impl Decap {
    /// Tunnels to these addresses, from these sources; `gue_port` 0: IP in IP alone.
    pub fn new(addresses: &[IpAddr], sources: &[IpNet], gue_port: u16) -> Decap {
        let mut addresses: Vec<[u8; 16]> = addresses.iter().map(octets).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let sources = [Family::V4, Family::V6].map(|family| Ranges::of(sources, family));
        Decap { addresses: addresses.into(), sources, gue_port }
    }

    /// Whether a tunnel to this address (mapped form) ends here. Read side.
    pub fn ends_at(&self, address: &[u8; 16]) -> bool {
        self.addresses.binary_search(address).is_ok()
    }

    /// Whether this address (mapped form) may send into a tunnel that ends here. Read side.
    pub fn takes_from(&self, address: &[u8; 16], family: Family) -> bool {
        self.sources[usize::from(family == Family::V6)].as_ref().is_some_and(|ranges| ranges.contain(address))
    }

    /// Whether datagrams to this port may be GUE. Read side.
    #[inline]
    pub fn is_gue(&self, port: u16) -> bool {
        self.gue_port == port && port != 0
    }
}

fn octets(address: &IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => mapped(&v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_stay_apart() {
        let addresses = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let decap = Decap::new(&addresses, &["198.51.100.0/24".parse().unwrap()], 6080);
        assert!(addresses.iter().all(|address| decap.ends_at(&octets(address))));
        assert!(!decap.ends_at(&octets(&"192.0.2.2".parse().unwrap())));
        let from = octets(&"198.51.100.7".parse().unwrap());
        assert!(decap.takes_from(&from, Family::V4) && !decap.takes_from(&from, Family::V6));
        assert!(!decap.takes_from(&[0; 16], Family::V6), "nobody of a family without sources");
        assert!(decap.is_gue(6080) && !decap.is_gue(0));
        assert!(!Decap::new(&addresses, &[], 0).is_gue(0), "no port is no port");
    }
}
