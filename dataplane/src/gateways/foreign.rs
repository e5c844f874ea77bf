//! Does a stranger answer for a VIP?
//!
//! Owns questions under way and what was found. A machine that answers ARP for a VIP without being one of the gateways (a
//! worker whose kube-proxy runs in ipvs mode without strictARP, or a plain mistake) takes part of the clients away, which
//! nobody finds for days. So a link is asked before a new VIP is announced, and while one is taken over from a gateway that
//! died: there nothing waits for the answer. Whoever answers such a question had the address before us: it is then not
//! announced, and the finding is told until nobody answers any more.
//!
//! A stranger that begins later, while we announce, is told as well, and answered with announcements; the address stays.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use tidegate_api::resource::MacAddress;

use super::{Conflict, Nanos};
use crate::wire::ethernet::Mac;
use crate::wire::{arp, ndp, packet};

/// Questions about one VIP.
const QUESTIONS: u8 = 2;
/// Between two of them.
const BETWEEN_NS: Nanos = 80_000_000;
/// After the last one.
const PATIENCE_NS: Nanos = 80_000_000;
/// After a stranger has answered, until it is asked again.
const AGAIN_NS: Nanos = 30_000_000_000;
/// Least time between two defences of one address (RFC 5227 section 2.4, DEFEND_INTERVAL).
const DEFENCE_NS: Nanos = 10_000_000_000;

/// Somebody says that a link-layer address has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The address.
    pub address: IpAddr,
    /// Who has it, by what was said.
    pub mac: [u8; 6],
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nobody has answered: announce it, if it is not announced.
    Free(IpNet),
    /// A stranger has: announce it no longer.
    Taken(IpNet),
    /// A stranger has begun to claim what we announce: say again who has it.
    Defend(IpAddr),
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    left: u8,
    next_ns: Nanos,
}

#[derive(Clone, Debug)]
struct Found {
    conflict: Conflict,
    again_ns: Nanos,
    defended_ns: Option<Nanos>,
    /// It was claimed since it was asked about last.
    is_fresh: bool,
}

/// Questions under way, and what was found.
#[derive(Debug, Default)]
pub struct Inquiries {
    asked: BTreeMap<IpAddr, Asked>,
    found: BTreeMap<IpAddr, Found>,
    /// What was found has changed since it was told.
    news: bool,
}

impl Inquiries {
    /// Begins to ask about an address.
    pub fn ask(&mut self, address: IpAddr, now_ns: Nanos) {
        self.asked.insert(address, Asked { left: QUESTIONS, next_ns: now_ns });
    }

    /// Nobody wants to know about it any more.
    pub fn forget(&mut self, address: IpAddr) {
        self.asked.remove(&address);
        self.news |= self.found.remove(&address).is_some();
    }

    /// Whether an address is not to be announced, as far as known.
    pub fn is_withheld(&self, address: IpAddr) -> bool {
        self.found.get(&address).is_some_and(|found| found.conflict.withheld)
    }

    /// How many are not announced.
    pub fn withheld(&self) -> u32 {
        u32::try_from(self.found.values().filter(|found| found.conflict.withheld).count()).unwrap_or(u32::MAX)
    }

    /// Takes in a claim of a stranger about an address of ours; `announced`: we say that it is ours.
    pub fn hear(&mut self, claim: Claim, device: &Arc<str>, announced: bool, now_ns: Nanos) -> Option<Verdict> {
        let address = claim.address;
        let is_asked = self.asked.remove(&address).is_some();
        let withheld = is_asked || self.is_withheld(address);
        let conflict = Conflict { address, mac: MacAddress(claim.mac), device: Arc::clone(device), withheld };
        let before = self.found.get(&address);
        self.news |= before.is_none_or(|before| before.conflict != conflict);
        let defended_ns = before.and_then(|before| before.defended_ns);
        let defends = !withheld && announced && defended_ns.is_none_or(|at| now_ns.saturating_sub(at) >= DEFENCE_NS);
        let found = Found {
            conflict,
            again_ns: now_ns.saturating_add(AGAIN_NS),
            defended_ns: if defends { Some(now_ns) } else { defended_ns },
            is_fresh: true,
        };
        self.found.insert(address, found);
        match (is_asked, defends) {
            (true, _) => Some(Verdict::Taken(address.into())),
            (false, true) => Some(Verdict::Defend(address)),
            (false, false) => None,
        }
    }

    /// The questions to ask now, at most `max`, and what follows from silence.
    pub fn step(&mut self, now_ns: Nanos, max: usize) -> (Vec<IpAddr>, Vec<Verdict>) {
        for (address, found) in &mut self.found {
            if now_ns < found.again_ns {
                continue;
            }
            found.again_ns = now_ns.saturating_add(AGAIN_NS);
            // What we announce a stranger contests by its own doing; asked by us it would seem to have been there before.
            if found.conflict.withheld || !std::mem::take(&mut found.is_fresh) {
                self.asked.insert(*address, Asked { left: QUESTIONS, next_ns: now_ns });
            }
        }
        let (mut questions, mut silent) = (Vec::new(), Vec::new());
        for (address, asked) in &mut self.asked {
            if now_ns < asked.next_ns {
                continue;
            }
            if asked.left == 0 {
                silent.push(*address);
            } else if questions.len() < max {
                asked.left -= 1;
                asked.next_ns = now_ns.saturating_add(if asked.left == 0 { PATIENCE_NS } else { BETWEEN_NS });
                questions.push(*address);
            }
        }
        let free = |address: IpAddr| {
            self.asked.remove(&address);
            self.news |= self.found.remove(&address).is_some();
            Verdict::Free(address.into())
        };
        (questions, silent.into_iter().map(free).collect())
    }

    /// Whether a question is under way.
    pub fn is_asking(&self) -> bool {
        !self.asked.is_empty()
    }

    /// All that was found, if that differs from what was told last.
    pub fn take_news(&mut self) -> Option<Vec<Conflict>> {
        std::mem::take(&mut self.news).then(|| self.found.values().map(|found| found.conflict.clone()).collect())
    }
}

/// What a frame claims, if it is ARP or a neighbour advertisement and claims anything.
pub fn claim(frame: &[u8]) -> Option<Claim> {
    let ethertype = u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]);
    let payload = frame.get(14..)?;
    match ethertype {
        crate::wire::ethernet::ARP => {
            let said = arp::Repr::parse(payload).ok()?;
            // A probe claims nothing (RFC 5227 section 1.1).
            (said.sender != [0; 4]).then(|| Claim { address: said.sender.into(), mac: said.sender_mac.0 })
        }
        crate::wire::ethernet::IPV6 => {
            let l3 = packet::parse_l3(payload).ok()?;
            let said = ndp::parse_advertisement(payload, &l3).ok()?;
            let mac = said.target_mac.or_else(|| frame.get(6..12)?.try_into().ok().map(Mac))?;
            Some(Claim { address: said.target.into(), mac: mac.0 })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::announce::{Form, question, told};
    use super::*;

    const MS: Nanos = 1_000_000;
    const STRANGER: [u8; 6] = [2, 0, 0, 0, 0xbe, 0xef];

    fn both() -> [IpAddr; 2] {
        ["192.0.2.200".parse().unwrap(), "2001:db8:1::200".parse().unwrap()]
    }

    #[test]
    fn silence_frees_an_address_within_200_ms() {
        for address in both() {
            let mut inquiries = Inquiries::default();
            inquiries.ask(address, 0);
            let (mut questions, mut freed) = (0, None);
            for now in (0..1000).map(|ms| ms * MS) {
                let (asked, verdicts) = inquiries.step(now, 10);
                questions += asked.len();
                if let [Verdict::Free(vip)] = verdicts[..] {
                    assert!(vip == IpNet::from(address) && freed.is_none());
                    freed = Some(now);
                }
            }
            assert!(questions == 2 && freed.unwrap() <= 200 * MS && !inquiries.is_asking());
            assert_eq!(inquiries.take_news(), None);
        }
    }

    #[test]
    fn a_stranger_withholds_an_address_until_nobody_answers_any_more() {
        for address in both() {
            let (mut inquiries, wan) = (Inquiries::default(), Arc::from("wan0"));
            inquiries.ask(address, 0);
            inquiries.step(0, 10);
            let claim = Claim { address, mac: STRANGER };
            assert_eq!(inquiries.hear(claim, &wan, false, 5 * MS), Some(Verdict::Taken(address.into())));
            let conflict = Conflict { address, mac: MacAddress(STRANGER), device: wan.clone(), withheld: true };
            assert_eq!(inquiries.take_news(), Some(vec![conflict]));
            assert_eq!(inquiries.hear(claim, &wan, false, 6 * MS), None, "told already");
            assert_eq!(inquiries.take_news(), None);
            assert!(inquiries.is_withheld(address) && inquiries.withheld() == 1);
            // Asked again after 30 s, and answered again.
            assert!(inquiries.step(29_000 * MS, 10).0.is_empty());
            assert_eq!(inquiries.step(31_000 * MS, 10).0, [address]);
            assert_eq!(inquiries.hear(claim, &wan, false, 31_001 * MS), Some(Verdict::Taken(address.into())));
            assert_eq!(inquiries.take_news(), None);
            // And then no more.
            let mut verdicts = Vec::new();
            for now in (31_002..70_000).map(|ms| ms * MS) {
                verdicts.extend(inquiries.step(now, 10).1);
            }
            assert_eq!(verdicts, [Verdict::Free(address.into())]);
            assert_eq!(inquiries.take_news(), Some(vec![]));
        }
    }

    #[test]
    fn who_comes_later_is_told_and_the_address_defended() {
        let (mut inquiries, wan) = (Inquiries::default(), Arc::from("wan0"));
        let [address, _] = both();
        let claim = Claim { address, mac: STRANGER };
        assert_eq!(inquiries.hear(claim, &wan, true, 0), Some(Verdict::Defend(address)));
        assert_eq!(inquiries.hear(claim, &wan, true, 9_000 * MS), None, "not more often than every 10 s");
        assert_eq!(inquiries.hear(claim, &wan, true, 11_000 * MS), Some(Verdict::Defend(address)));
        assert!(!inquiries.is_withheld(address));
        assert!(!inquiries.take_news().unwrap()[0].withheld);
        // Nobody claims it for a while, and nobody answers: over.
        let mut verdicts = Vec::new();
        for now in (11_001..120_000).step_by(10).map(|ms| ms * MS) {
            verdicts.extend(inquiries.step(now, 10).1);
        }
        assert_eq!(verdicts, [Verdict::Free(address.into())]);
        assert_eq!(inquiries.take_news(), Some(vec![]));
        inquiries.forget(address);
        assert_eq!(inquiries.take_news(), None);
    }

    #[test]
    fn claims_are_read_from_both_forms_of_arp_and_from_advertisements() {
        let [v4, v6] = both();
        for (frame, address) in [
            (told(v4, Form::First, STRANGER), v4),
            (told(v4, Form::Second, STRANGER), v4),
            (told(v6, Form::First, STRANGER), v6),
        ] {
            assert_eq!(claim(&frame), Some(Claim { address, mac: STRANGER }));
            for cut in 0..frame.len() - 1 {
                assert!(claim(&frame[..cut]).is_none_or(|claim| claim.mac == STRANGER), "{cut}");
            }
        }
        for address in both() {
            assert_eq!(claim(&question(address, STRANGER)), None, "a question claims nothing");
        }
    }
}
