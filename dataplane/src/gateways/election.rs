//! Who announces a VIP: a pure function of who there is.
//!
//! Every gateway sorts all gateways of the set by a hash of their name and the VIP (M-020, rendezvous hashing: Thaler and
//! Ravishankar, IEEE/ACM ToN 6(1), 1998). The first one that can is the owner. So VIPs are spread, gateways that see the
//! same others agree without asking, and one that comes or goes moves its own share only.

use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use super::message::{Id, Seat};

/// Short name of the gateway on the Node `name`: the first four bytes of its SHA-256.
pub fn id(name: &str) -> Id {
    let [a, b, c, d, ..] = hash(name);
    Id::from_be_bytes([a, b, c, d])
}

/// The place of the gateway `name` among those that could announce `vip`: the lowest goes first.
pub fn score(name: &str, vip: &IpNet) -> [u8; 32] {
    hash(&format!("{name}#{}", told(vip)))
}

/// Hash of a VIP, under which gateways tell each other what they serve.
pub fn mark(vip: &IpNet) -> u32 {
    id(&told(vip))
}

/// Numbers of `names` in the order in which they should announce `vip`.
pub fn order<'a>(names: impl IntoIterator<Item = &'a str>, vip: &IpNet) -> Vec<u8> {
    let scored = (0u8..).zip(names).map(|(number, name)| (score(name, vip), name, number));
    let mut scored: Vec<_> = scored.collect();
    scored.sort_unstable();
    scored.into_iter().map(|(_, _, number)| number).collect()
}

/// Whether and how one gateway can announce a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Can {
    /// It does not live, or the VIP is not on its links, or it does not serve it.
    Not,
    /// If nobody else can: it is draining.
    IfNobodyElse,
    /// It can.
    Yes,
}

/// The owner among gateways in the order of [`order`]: the first that can, else the first that can if nobody else.
pub fn owner(order: &[u8], can: impl Fn(u8) -> Can) -> Option<u8> {
    let first = |wanted: Can| order.iter().copied().find(|number| can(*number) == wanted);
    first(Can::Yes).or_else(|| first(Can::IfNobodyElse))
}

/// What a view says of a gateway.
pub fn in_view(view: &[Seat], id: Id) -> Can {
    match view.iter().find(|seat| seat.id == id) {
        None => Can::Not,
        Some(seat) if seat.draining => Can::IfNobodyElse,
        Some(_) => Can::Yes,
    }
}

fn told(vip: &IpNet) -> String {
    if vip.prefix_len() == vip.max_prefix_len() { vip.addr().to_string() } else { vip.trunc().to_string() }
}

fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

/// Every address of a VIP, or the first `max` of a prefix.
pub fn addresses(vip: &IpNet, max: usize) -> impl Iterator<Item = IpAddr> + use<> {
    let (first, last) = (vip.network(), vip.broadcast());
    let number = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let is_v4 = first.is_ipv4();
    let back = move |number: u128| match u32::try_from(number) {
        Ok(v4) if is_v4 => IpAddr::V4(v4.into()),
        _ => IpAddr::V6(number.into()),
    };
    (number(first)..=number(last)).take(max).map(back)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vip(n: u16) -> IpNet {
        let [a, b] = n.to_be_bytes();
        IpAddr::from([203, 0, a, b]).into()
    }

    /// M-020 by the letter: SHA-256 of "name#VIP", the lowest first.
    #[test]
    fn the_order_is_that_of_metallb() {
        let by_hand = |name: &str| -> Vec<u8> { Sha256::digest(format!("{name}#203.0.113.10")).to_vec() };
        let mut names = ["gw-a", "gw-b", "gw-c"];
        let got: Vec<&str> =
            order(names, &"203.0.113.10/32".parse().unwrap()).iter().map(|n| names[usize::from(*n)]).collect();
        names.sort_by_key(|name| by_hand(name));
        assert_eq!(got, names);
        let v6 = "2001:db8:f::10/128".parse().unwrap();
        assert_eq!(score("gw-a", &v6).to_vec(), Sha256::digest("gw-a#2001:db8:f::10").to_vec());
    }

    #[test]
    fn vips_are_spread_and_a_gateway_that_leaves_moves_its_own_only() {
        let names = ["gw-1", "gw-2", "gw-3"];
        let mut owned = [0; 3];
        for n in 0..3000 {
            let order = order(names, &vip(n));
            let before = owner(&order, |_| Can::Yes).unwrap();
            owned[usize::from(before)] += 1;
            let after = owner(&order, |number| if number == 1 { Can::Not } else { Can::Yes }).unwrap();
            assert!(before == 1 || after == before);
        }
        assert!(owned.iter().all(|count| (900..1100).contains(count)), "{owned:?}");
    }

    #[test]
    fn addresses_of_vips() {
        let list =
            |text: &str, max| addresses(&text.parse().unwrap(), max).map(|ip| ip.to_string()).collect::<Vec<_>>();
        assert_eq!(list("203.0.113.7/32", 9), ["203.0.113.7"]);
        assert_eq!(list("203.0.113.4/30", 9), ["203.0.113.4", "203.0.113.5", "203.0.113.6", "203.0.113.7"]);
        assert_eq!(list("2001:db8::/64", 2), ["2001:db8::", "2001:db8::1"]);
        assert_eq!(list("::/127", 9), ["::", "::1"]);
    }

    proptest! {
        /// The oracle: the minimum over those that can, drained ones only if there is no other.
        #[test]
        fn the_owner_is_the_lowest_that_can(n: u16, cans in prop::collection::vec(0u8..3, 1..9)) {
            let names: Vec<String> = (0..cans.len()).map(|n| format!("gw-{n}")).collect();
            let can = |number: u8| [Can::Not, Can::IfNobodyElse, Can::Yes][usize::from(cans[usize::from(number)])];
            let order = order(names.iter().map(String::as_str), &vip(n));
            let mut best: Option<(u8, [u8; 32], u8)> = None;
            for (number, name) in (0u8..).zip(&names) {
                let class = match can(number) { Can::Yes => 0, Can::IfNobodyElse => 1, Can::Not => continue };
                let candidate = (class, score(name, &vip(n)), number);
                best = Some(best.map_or(candidate, |best| best.min(candidate)));
            }
            prop_assert_eq!(owner(&order, can), best.map(|(_, _, number)| number));
        }
    }
}
