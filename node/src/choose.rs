//! Which gateway a pod leaves by: a pure function of names.
//!
//! Rendezvous hashing (Thaler and Ravishankar, IEEE/ACM ToN 6(1), 1998), as gateways use it among themselves for VIPs:
//! every node that knows the same gateways agrees without asking, pods are spread, and a gateway that comes or goes moves
//! its own pods only.

use sha2::{Digest, Sha256};

/// The place of `gateway` among those that could serve `pod`: the lowest goes first. First 8 bytes of the SHA-256 of
/// `gateway#pod`, big endian.
pub fn score(gateway: &str, pod: &str) -> u64 {
    let hash: [u8; 32] = Sha256::digest(format!("{gateway}#{pod}").as_bytes()).into();
    hash.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// The one of `gateways` for `pod`, whatever their order.
pub fn choose<'a>(gateways: impl IntoIterator<Item = &'a str>, pod: &str) -> Option<&'a str> {
    gateways.into_iter().min_by_key(|gateway| (score(gateway, pod), *gateway))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_loss_of_a_gateway_moves_its_pods_only() {
        let all = ["gw-1", "gw-2", "gw-3", "gw-4"];
        let mut served = [0; 4];
        for number in 0..4000 {
            let pod = format!("shop/web-{number}");
            let before = choose(all, &pod).unwrap();
            let mut turned = all;
            turned.reverse();
            assert_eq!(choose(turned, &pod), Some(before));
            served[all.iter().position(|name| *name == before).unwrap()] += 1;
            let after = choose(all.into_iter().filter(|name| *name != "gw-3"), &pod).unwrap();
            assert!(before == "gw-3" || after == before, "{pod}: {before}, then {after}");
        }
        assert!(served.iter().all(|count| (800..1200).contains(count)), "{served:?}");
        assert_eq!(choose([], "shop/web"), None);
    }

    #[test]
    fn the_choice_is_the_same_in_every_release() {
        assert_eq!(score("gw-1", "shop/web-0"), 730_295_014_193_127_339);
    }
}
