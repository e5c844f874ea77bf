//! Ranges of client addresses: who may reach a Service's VIPs.
//!
//! Owns one family's ranges of one Service as sorted spans that neither touch nor overlap, so that asking costs a few
//! comparisons however many ranges were listed. All rows of the Service share them. It refuses to know to which frontends
//! they apply and what becomes of a packet that is not allowed.

use ipnet::IpNet;

use super::{Family, mapped};

/// Client addresses of one family, at least one. Kind: table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ranges {
    /// First and last address in mapped form as numbers, ascending.
    spans: Box<[(u128, u128)]>,
}

impl Ranges {
    /// What `list` says about `family`. `None` when it names no range of it: such a family is not restricted (S-081).
    pub fn of(list: &[IpNet], family: Family) -> Option<Ranges> {
        let mut spans: Vec<(u128, u128)> =
            list.iter().filter(|net| net.addr().is_ipv4() == (family == Family::V4)).map(span).collect();
        spans.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(spans.len());
        for (first, last) in spans {
            match merged.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = (*end).max(last),
                _ => merged.push((first, last)),
            }
        }
        (!merged.is_empty()).then(|| Ranges { spans: merged.into() })
    }

    /// Whether an address (mapped form) lies in a range. Read side: a binary search.
    pub fn contain(&self, address: &[u8; 16]) -> bool {
        let address = u128::from_be_bytes(*address);
        let after = self.spans.partition_point(|(first, _)| *first <= address);
        after.checked_sub(1).and_then(|at| self.spans.get(at)).is_some_and(|(_, last)| address <= *last)
    }

    /// First and last address of each span, in mapped form as numbers.
    pub fn spans(&self) -> &[(u128, u128)] {
        &self.spans
    }
}

/// First and last address of a prefix in mapped form.
pub(super) fn span(net: &IpNet) -> (u128, u128) {
    let ends = match net {
        IpNet::V4(net) => [mapped(&net.network().octets()), mapped(&net.broadcast().octets())],
        IpNet::V6(net) => [net.network().octets(), net.broadcast().octets()],
    };
    let [first, last] = ends.map(u128::from_be_bytes);
    (first, last)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn any_net() -> impl Strategy<Value = IpNet> {
        let v4 = (any::<[u8; 4]>(), 0..=32u8).prop_map(|(mut bytes, length)| {
            bytes.iter_mut().for_each(|byte| *byte &= 0x81);
            IpNet::new(IpAddr::V4(Ipv4Addr::from(bytes)), length).unwrap()
        });
        let v6 = (any::<[u8; 16]>(), 0..=128u8).prop_map(|(mut bytes, length)| {
            bytes.iter_mut().for_each(|byte| *byte &= 0x81);
            IpNet::new(IpAddr::V6(Ipv6Addr::from(bytes)), length).unwrap()
        });
        prop_oneof![v4, v6]
    }

    proptest! {
        /// S-080, S-081: as one comparison per range, each family by itself.
        #[test]
        fn equals_asking_every_range(
            list in prop::collection::vec(any_net(), 0..8),
            v4 in any::<[u8; 4]>(),
            v6 in any::<[u8; 16]>(),
        ) {
            let (v4, v6) = (v4.map(|byte| byte & 0x83), v6.map(|byte| byte & 0x83));
            for (family, address, bytes) in [
                (Family::V4, IpAddr::from(v4), mapped(&v4)),
                (Family::V6, IpAddr::from(v6), v6),
            ] {
                let ranges = Ranges::of(&list, family);
                let of_family = list.iter().any(|net| net.addr().is_ipv4() == (family == Family::V4));
                prop_assert_eq!(ranges.is_some(), of_family);
                if let Some(ranges) = ranges {
                    prop_assert_eq!(ranges.contain(&bytes), list.iter().any(|net| net.contains(&address)));
                    for net in list.iter().filter(|net| net.addr().is_ipv4() == (family == Family::V4)) {
                        prop_assert!(ranges.contain(&span(net).0.to_be_bytes()) && ranges.contain(&span(net).1.to_be_bytes()));
                    }
                    prop_assert!(ranges.spans().windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "{:?}", ranges.spans());
                }
            }
        }
    }

    #[test]
    fn halves_make_everything_and_one_host_nothing_else() {
        // S-085: 0.0.0.0/1 and 128.0.0.0/1 are all.
        let list = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNet>>();
        let all = Ranges::of(&list(&["0.0.0.0/1", "128.0.0.0/1"]), Family::V4).unwrap();
        assert_eq!(all.spans().len(), 1);
        assert!(all.contain(&mapped(&[0; 4])) && all.contain(&mapped(&[255; 4])) && !all.contain(&[0; 16]));
        let none = Ranges::of(&list(&["255.0.0.0/32"]), Family::V4).unwrap();
        assert!(none.contain(&mapped(&[255, 0, 0, 0])) && !none.contain(&mapped(&[203, 0, 113, 1])));
        let both = Ranges::of(&list(&["::/1", "8000::/1"]), Family::V6).unwrap();
        assert!(both.contain(&[0xff; 16]) && both.contain(&[0; 16]));
        assert_eq!(Ranges::of(&list(&["::/0"]), Family::V4), None);
    }
}
