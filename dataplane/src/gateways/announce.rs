//! What is said on a link about our addresses, and when.
//!
//! Owns the schedule and the frames. Neighbours that have another's link-layer address for a VIP are told ours at once and
//! then every 1.1 s for 5 s (M-023), since a frame may be lost and some listen to one form only: gratuitous ARP as a request
//! and as a reply, an unsolicited neighbour advertisement (M-024).
//!
//! A gateway that takes over thousands of VIPs says one frame about each before it says a second about any, and no more at a
//! time than a link and its listeners bear: the caller takes at most [`BURST`] every few milliseconds.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::Nanos;
use crate::wire::ethernet::Mac;
use crate::wire::{arp, ndp};

/// Frames taken at a time. Every 4 ms that makes 16,000 a second, 10 Mbit/s: 5,000 VIPs are said in a third of a second.
pub const BURST: usize = 64;
/// Time between two rounds.
pub const ROUND_NS: Nanos = 1_100_000_000;
/// Rounds: at 0, 1.1, 2.2, 3.3 and 4.4 s.
pub const ROUNDS: u8 = 5;
/// Longest frame said here: a neighbour advertisement with its option.
pub const FRAME_BYTES_MAX: usize = 96;

/// How an address is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Form {
    /// Gratuitous ARP request, or unsolicited advertisement: the only form of IPv6.
    First,
    /// Gratuitous ARP reply.
    Second,
}

/// One thing to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saying {
    /// On the device with this index.
    pub ifindex: u32,
    /// About this address.
    pub address: IpAddr,
    /// In this form.
    pub form: Form,
    round: u8,
    run: u64,
}

/// What is still to be said. Ordered by time, then first forms before second ones, then as it came.
#[derive(Debug, Default)]
pub struct Schedule {
    queue: BTreeMap<(Nanos, Form, u64), Saying>,
    /// The run of sayings in force for each address on each device; older ones are void.
    runs: HashMap<(u32, IpAddr), u64>,
    count: u64,
    /// First forms of first rounds still in the queue.
    unsaid: usize,
}

impl Schedule {
    /// Begins to tell `address` on a device; from the beginning, if that is under way.
    pub fn begin(&mut self, ifindex: u32, address: IpAddr, now_ns: Nanos) {
        self.count += 1;
        let run = self.count;
        self.runs.insert((ifindex, address), run);
        self.put(now_ns, Saying { ifindex, address, form: Form::First, round: 0, run });
        if address.is_ipv4() {
            self.put(now_ns, Saying { ifindex, address, form: Form::Second, round: 0, run });
        }
    }

    /// Says no more about `address` there.
    pub fn end(&mut self, ifindex: u32, address: IpAddr) {
        self.runs.remove(&(ifindex, address));
    }

    /// What is due, at most `max`, void ones left out; each comes again in its next round.
    pub fn take(&mut self, now_ns: Nanos, max: usize) -> Vec<Saying> {
        let mut due = Vec::new();
        while due.len() < max {
            let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= now_ns) else { break };
            let ((at_ns, ..), saying) = entry.remove_entry();
            self.unsaid -= usize::from(is_first(&saying));
            if self.runs.get(&(saying.ifindex, saying.address)) != Some(&saying.run) {
                continue;
            }
            due.push(saying);
            if saying.round + 1 < ROUNDS {
                self.put(at_ns + ROUND_NS, Saying { round: saying.round + 1, ..saying });
            }
        }
        due
    }

    /// Whether something has not been said once yet.
    pub fn has_unsaid(&self) -> bool {
        self.unsaid > 0
    }

    /// When there is something to say.
    pub fn next_ns(&self) -> Option<Nanos> {
        self.queue.first_key_value().map(|((at_ns, ..), _)| *at_ns)
    }

    fn put(&mut self, at_ns: Nanos, saying: Saying) {
        self.count += 1;
        self.unsaid += usize::from(is_first(&saying));
        self.queue.insert((at_ns, saying.form, self.count), saying);
    }
}

fn is_first(saying: &Saying) -> bool {
    saying.round == 0 && saying.form == Form::First
}

/// The frame that tells that `mac` has `address`.
pub fn told(address: IpAddr, form: Form, mac: [u8; 6]) -> Vec<u8> {
    let mut out = [0; FRAME_BYTES_MAX];
    let length = match address {
        IpAddr::V4(v4) => {
            let operation = match form {
                Form::First => arp::Operation::Request,
                Form::Second => arp::Operation::Reply,
            };
            arp::Repr::gratuitous(operation, Mac(mac), v4.octets()).emit_frame(&mut out, Mac::BROADCAST, None)
        }
        IpAddr::V6(v6) => ndp::Advertisement::unsolicited(Mac(mac), v6.octets(), true).emit_frame(
            &mut out,
            Mac::BROADCAST,
            Mac(mac),
            None,
        ),
    };
    out.get(..length.unwrap_or_default()).unwrap_or_default().to_vec()
}

/// The frame that asks who has `address` and says nothing about us: an ARP probe (RFC 5227 section 2.1.1, sender address
/// zero), or a solicitation as in duplicate address detection (RFC 4862 section 5.4.2, from the unspecified address).
pub fn question(address: IpAddr, mac: [u8; 6]) -> Vec<u8> {
    let mut out = [0; FRAME_BYTES_MAX];
    let length = match address {
        IpAddr::V4(v4) => {
            let probe = arp::Repr {
                operation: arp::Operation::Request,
                sender_mac: Mac(mac),
                sender: [0; 4],
                target_mac: Mac([0; 6]),
                target: v4.octets(),
            };
            probe.emit_frame(&mut out, Mac::BROADCAST, None)
        }
        IpAddr::V6(v6) => solicitation(v6.octets(), mac, &mut out),
    };
    out.get(..length.unwrap_or_default()).unwrap_or_default().to_vec()
}

fn solicitation(target: [u8; 16], mac: [u8; 6], out: &mut [u8]) -> Option<usize> {
    let asked = ndp::Solicitation { source: [0; 16], target, source_mac: None };
    let group = crate::wire::ipv6::solicited_node(target);
    let link = crate::wire::ethernet::Repr {
        destination: Mac::of_ipv6_multicast(group),
        source: Mac(mac),
        vlan: None,
        ethertype: crate::wire::ethernet::IPV6,
    };
    let (head, body) = out.split_at_mut_checked(link.len())?;
    Some(link.emit(head)? + asked.emit(body)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::packet::parse_l3;

    const MS: Nanos = 1_000_000;
    const MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];

    fn v4(n: u16) -> IpAddr {
        let [a, b] = n.to_be_bytes();
        [10, 0, a, b].into()
    }

    fn v6(n: u16) -> IpAddr {
        std::net::Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, n).into()
    }

    #[test]
    fn both_forms_at_once_and_then_every_1100_ms_for_five_seconds() {
        // M-023, M-024
        let mut schedule = Schedule::default();
        schedule.begin(2, v4(1), 0);
        schedule.begin(2, v6(1), 0);
        assert!(schedule.has_unsaid());
        let mut said = Vec::new();
        for now in (0..10_000).map(|ms| ms * MS) {
            said.extend(schedule.take(now, BURST).into_iter().map(|saying| (now / MS, saying.address, saying.form)));
        }
        let expected: Vec<_> = [0, 1100, 2200, 3300, 4400]
            .into_iter()
            .flat_map(|at| [(at, v4(1), Form::First), (at, v6(1), Form::First), (at, v4(1), Form::Second)])
            .collect();
        assert_eq!(said, expected);
        assert!(!schedule.has_unsaid() && schedule.next_ns().is_none());
    }

    #[test]
    fn thousands_are_told_once_before_any_is_told_twice_and_never_too_fast() {
        let mut schedule = Schedule::default();
        (0..5000).for_each(|n| schedule.begin(2, v4(n), 0));
        let (mut now, mut all_told, mut said) = (0, None, 0);
        while all_told.is_none() || now < 6_000 * MS {
            let frames = schedule.take(now, BURST);
            assert!(frames.len() <= BURST);
            if all_told.is_none() {
                assert!(frames.iter().filter(|saying| saying.form == Form::Second).count() < BURST);
            }
            said += frames.len();
            if all_told.is_none() && !schedule.has_unsaid() {
                all_told = Some((now, said));
            }
            now += 4 * MS;
        }
        let (took, frames) = all_told.unwrap();
        assert!(took <= 350 * MS && frames <= 5000 + BURST, "{} ms, {frames} frames", took / MS);
        assert_eq!(said, 5000 * 2 * usize::from(ROUNDS));
    }

    #[test]
    fn what_is_taken_back_is_not_said_and_what_begins_anew_begins_at_the_beginning() {
        let mut schedule = Schedule::default();
        schedule.begin(2, v4(1), 0);
        schedule.begin(3, v4(1), 0);
        schedule.end(2, v4(1));
        assert!(schedule.take(0, BURST).iter().all(|saying| saying.ifindex == 3));
        assert!(!schedule.has_unsaid());
        schedule.begin(3, v4(1), 1000 * MS);
        let count = (1000..9000).map(|ms| schedule.take(ms * MS, BURST).len()).sum::<usize>();
        assert_eq!(count, 2 * usize::from(ROUNDS), "the first run is void");
    }

    #[test]
    fn announcements_are_what_neighbours_expect() {
        // M-023 by an independent reader of ARP: sender = target = VIP, broadcast.
        for (form, operation) in [(Form::First, 1), (Form::Second, 2)] {
            let frame = told(v4(7), form, MAC);
            let (link, rest) = etherparse::Ethernet2Header::from_slice(&frame).unwrap();
            assert_eq!((link.destination, link.source), ([0xff; 6], MAC));
            let packet = etherparse::ArpPacketSlice::from_slice(rest).unwrap();
            assert_eq!(packet.operation().0, operation);
            assert_eq!((packet.sender_hw_addr(), packet.sender_protocol_addr()), (&MAC[..], &[10, 0, 0, 7][..]));
            assert_eq!(packet.target_protocol_addr(), [10, 0, 0, 7]);
        }
        // M-024: all nodes, Override = 1, Solicited = 0, hop limit 255.
        let frame = told(v6(7), Form::First, MAC);
        assert_eq!(frame[..6], [0x33, 0x33, 0, 0, 0, 1]);
        let l3 = parse_l3(&frame[14..]).unwrap();
        let said = ndp::parse_advertisement(&frame[14..], &l3).unwrap();
        assert_eq!((said.overrides, said.solicited, said.target_mac, l3.ttl), (true, false, Some(Mac(MAC)), 255));
        assert_eq!(said.destination, ndp::ALL_NODES);
    }

    #[test]
    fn questions_claim_nothing() {
        let frame = question(v4(7), MAC);
        let packet = etherparse::ArpPacketSlice::from_slice(&frame[14..]).unwrap();
        assert_eq!((packet.operation().0, packet.sender_protocol_addr()), (1, &[0; 4][..]), "RFC 5227 section 1.1");
        assert_eq!((packet.target_protocol_addr(), packet.target_hw_addr()), (&[10, 0, 0, 7][..], &[0; 6][..]));
        let frame = question(v6(0x1234), MAC);
        assert_eq!(frame[..6], [0x33, 0x33, 0xff, 0, 0x12, 0x34]);
        let l3 = parse_l3(&frame[14..]).unwrap();
        let asked = ndp::parse_solicitation(&frame[14..], &l3).unwrap();
        assert_eq!((asked.source, asked.source_mac, l3.ttl), ([0; 16], None, 255), "RFC 4862 section 5.4.2");
    }
}
