//! Overrides: clients whose endpoint is given by where they come from.
//!
//! Owns one family's source prefixes of one Service port, flattened into spans that neither nest nor overlap, so that the
//! longest match costs a binary search however prefixes lie in one another. Refuses to know whether the endpoint takes
//! new flows: that is the choice's business.

use ipnet::IpNet;

use super::Family;
use super::ranges::span;

/// One span: first and last address in mapped form as numbers, and the member that its clients are sent to.
pub type Span = (u128, u128, u16);

/// Source prefixes of one family, at least one. Kind: table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overrides {
    /// Ascending, disjoint.
    spans: Box<[Span]>,
}

impl Overrides {
    /// What `list` says about `family`: clients in the prefix are sent to the member of that index. Of one prefix that is
    /// listed twice the first counts. `None` when there is no prefix of the family.
    pub fn of(list: impl IntoIterator<Item = (IpNet, u16)>, family: Family) -> Option<Overrides> {
        let of_family = list.into_iter().filter(|(net, _)| net.addr().is_ipv4() == (family == Family::V4));
        let mut sorted: Vec<Span> = of_family.map(|(net, member)| (span(&net).0, span(&net).1, member)).collect();
        // Wider ones before those inside them; prefixes lie in one another or apart, never across.
        sorted.sort_by_key(|(first, last, _)| (*first, std::cmp::Reverse(*last)));
        sorted.dedup_by_key(|(first, last, _)| (*first, *last));
        let mut flat = Flat::default();
        for prefix in sorted {
            flat.open(prefix);
        }
        let spans = flat.end();
        (!spans.is_empty()).then(|| Overrides { spans: spans.into() })
    }

    /// The member of the longest prefix around an address (mapped form). Read side: a binary search.
    pub fn member(&self, address: &[u8; 16]) -> Option<usize> {
        let address = u128::from_be_bytes(*address);
        let after = self.spans.partition_point(|(first, ..)| *first <= address);
        let (_, last, member) = self.spans.get(after.checked_sub(1)?)?;
        (address <= *last).then_some(usize::from(*member))
    }

    /// All spans, ascending.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }
}

/// Prefixes on their way to being spans.
#[derive(Default)]
struct Flat {
    spans: Vec<Span>,
    /// Last address and member of the prefixes that the next address lies in, the narrowest on top.
    around: Vec<(u128, u16)>,
    /// The first address that no span covers yet, while a prefix is open; `None` beyond the last address there is.
    next: Option<u128>,
}

impl Flat {
    fn open(&mut self, (first, last, member): Span) {
        self.close_before(first);
        if let Some((_, outer)) = self.around.last().copied() {
            self.cover(first.checked_sub(1), outer);
        }
        self.next = Some(first);
        self.around.push((last, member));
    }

    /// Closes the prefixes that end before `first`.
    fn close_before(&mut self, first: u128) {
        while let Some((last, member)) = self.around.last().copied().filter(|(last, _)| *last < first) {
            self.cover(Some(last), member);
            self.around.pop();
        }
    }

    /// Addresses up to `last` that are not covered yet are `member`'s.
    fn cover(&mut self, last: Option<u128>, member: u16) {
        if let (Some(next), Some(last)) = (self.next, last)
            && next <= last
        {
            self.spans.push((next, last, member));
            self.next = last.checked_add(1);
        }
    }

    fn end(mut self) -> Vec<Span> {
        while let Some((last, member)) = self.around.pop() {
            self.cover(Some(last), member);
        }
        self.spans
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::super::mapped;
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_prefix_decides() {
        // T-122: /17, /24, miss.
        let list = [(net("10.0.0.0/9"), 1), (net("10.1.0.0/17"), 2), (net("10.1.3.0/24"), 3), (net("0.0.0.0/32"), 4)];
        let table = Overrides::of(list, Family::V4).unwrap();
        let member = |address: [u8; 4]| table.member(&mapped(&address));
        assert_eq!(member([10, 1, 3, 255]), Some(3));
        assert_eq!(
            (member([10, 1, 2, 255]), member([10, 1, 4, 0]), member([10, 1, 127, 255])),
            (Some(2), Some(2), Some(2))
        );
        assert_eq!(
            (member([10, 1, 128, 0]), member([10, 0, 0, 0]), member([10, 127, 255, 255])),
            (Some(1), Some(1), Some(1))
        );
        assert_eq!((member([10, 128, 0, 0]), member([9, 255, 255, 255]), member([0, 0, 0, 1])), (None, None, None));
        assert_eq!(member([0; 4]), Some(4));
        assert_eq!(table.member(&[0; 16]), None, "families stay apart");
        assert_eq!(Overrides::of(list, Family::V6), None);
    }

    #[test]
    fn everything_may_be_overridden() {
        let list = [(net("::/0"), 1), (net("8000::/1"), 2), (net("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"), 3)];
        let table = Overrides::of(list, Family::V6).unwrap();
        assert_eq!(
            (table.member(&[0; 16]), table.member(&[0xfe; 16]), table.member(&[0xff; 16])),
            (Some(1), Some(2), Some(3))
        );
    }

    proptest! {
        /// As the longest of all prefixes around an address, each family by itself.
        #[test]
        fn equals_asking_every_prefix(
            list in prop::collection::vec((any::<bool>(), any::<[u8; 16]>(), 0..=128u8), 0..12),
            address in any::<[u8; 16]>(),
        ) {
            // Few values, so that prefixes lie in one another.
            let few = |bytes: [u8; 16]| bytes.map(|byte| if byte < 200 { 0 } else { byte & 0x81 });
            let list: Vec<(IpNet, u16)> = (0u16..).zip(&list).map(|(member, (v4, bytes, length))| {
                let bytes = few(*bytes);
                let address = if *v4 { IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]) } else { IpAddr::from(bytes) };
                let longest = if *v4 { 32 } else { 128 };
                (IpNet::new(address, length % (longest + 1)).unwrap().trunc(), member)
            }).collect();
            let address = few(address);
            let v4 = [address[0], address[1], address[2], address[3]];
            for (family, ip, mapped) in [(Family::V4, IpAddr::from(v4), mapped(&v4)), (Family::V6, IpAddr::from(address), address)] {
                let around = list.iter().filter(|(net, _)| net.contains(&ip));
                let longest = around.fold(None, |best: Option<&(IpNet, u16)>, this| {
                    if best.is_none_or(|best| best.0.prefix_len() < this.0.prefix_len()) { Some(this) } else { best }
                });
                let table = Overrides::of(list.iter().copied(), family);
                prop_assert_eq!(table.as_ref().and_then(|table| table.member(&mapped)), longest.map(|(_, member)| usize::from(*member)));
                let apart = |table: &Overrides| table.spans().windows(2).all(|pair| pair[0].1 < pair[1].0);
                prop_assert!(table.is_none_or(|table| apart(&table)));
            }
        }
    }
}
