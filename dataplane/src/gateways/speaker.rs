//! The thread that speaks on the links.
//!
//! Owns the packet sockets and the groups, and carries out what the council decides, in this order: the compiler publishes
//! who is answered for, groups are joined, neighbours are told; and only then does the council hear that it is done, and
//! others that they may let go. It waits for the compiler, which the council must not.
//!
//! Frames go by packet sockets and not through workers: they are told also about devices whose queues another worker has,
//! a worker's ring cannot be full of them, and nothing of this is in a worker's turn.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use ipnet::IpNet;
use socket2::{SockFilter, Socket};
use tidegate_api::message::AddressConflict;
use tidegate_io::link::{ARP, IPV6, packet_socket};
use tidegate_io::mem::now_ns;

use super::announce::{self, BURST, Schedule};
use super::council::Decision;
use super::foreign::{self, Inquiries, Verdict};
use super::groups::Groups;
use super::{Handle, Link, Nanos, election};
use crate::compile::thread::Handle as Compiler;

/// How often it looks while there is something to say or an answer to wait for.
const LOOK: Duration = Duration::from_millis(4);
/// The same while there is nothing: claims of strangers wait in the sockets.
const REST: Duration = Duration::from_millis(100);
/// Questions asked at a time.
const QUESTIONS: usize = 32;
/// Frames read in a row from one socket.
const FRAMES_MAX: usize = 256;
/// Orders that may wait. The council waits when there are more, which are years of decisions.
const ORDERS_MAX: usize = 256;
/// Addresses of a prefix of VIPs that are told. Neighbours ask for the others when they need them.
const PREFIX_ADDRESSES_MAX: usize = 256;

/// What the council wants done.
#[derive(Clone, Debug)]
pub enum Order {
    /// The links are these.
    Links(Vec<Link>),
    /// Announce and withdraw.
    Act(Decision),
    /// End.
    Stop,
}

/// The running thread; stops when dropped.
pub struct Speaker {
    orders: Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

impl Speaker {
    /// Starts the thread; returns with it the way to give orders.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(council: Handle, compiler: Compiler) -> io::Result<(Speaker, Sender<Order>)> {
        let (orders, taken) = bounded(ORDERS_MAX);
        compiler.tell_conflicts(Vec::new());
        let run = Run {
            council,
            compiler,
            taken,
            ends: BTreeMap::new(),
            groups: Groups::default(),
            schedule: Schedule::default(),
            inquiries: Inquiries::default(),
            wanted: BTreeSet::new(),
            told: BTreeSet::new(),
            undone: None,
            reported: (0, 0),
        };
        let thread = std::thread::Builder::new().name("speaker".into()).spawn(move || run.run())?;
        Ok((Speaker { orders: orders.clone(), thread: Some(thread) }, orders))
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One link and its sockets.
struct End {
    link: Link,
    /// Hears ARP, and sends everything.
    arp: Option<Socket>,
    /// Hears neighbour advertisements.
    advertisements: Option<Socket>,
}

struct Run {
    council: Handle,
    compiler: Compiler,
    taken: Receiver<Order>,
    /// By interface index.
    ends: BTreeMap<u32, End>,
    groups: Groups,
    schedule: Schedule,
    inquiries: Inquiries,
    /// What the council wants announced.
    wanted: BTreeSet<IpNet>,
    /// What is announced: the compiler has published that it is answered for.
    told: BTreeSet<IpNet>,
    /// The last decision that the council has not been told the end of.
    undone: Option<u64>,
    /// How many VIPs the council knows to be announced, and not to be because of strangers.
    reported: (u32, u32),
}

impl Run {
    fn run(mut self) {
        loop {
            let mut orders = Vec::new();
            match self.taken.recv_timeout(self.patience()) {
                Ok(order) => orders.push(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            orders.extend(self.taken.try_iter());
            let mut changes = BTreeMap::new();
            for order in orders {
                match order {
                    Order::Stop => return,
                    Order::Links(links) => self.follow(links, now_ns()),
                    Order::Act(decision) => self.take(decision, &mut changes, now_ns()),
                }
            }
            self.listen(&mut changes);
            self.inquire(&mut changes);
            self.publish(changes);
            self.speak();
            self.report();
        }
    }

    fn patience(&self) -> Duration {
        if self.inquiries.is_asking() || self.schedule.has_unsaid() || self.undone.is_some() {
            return LOOK;
        }
        match self.schedule.next_ns() {
            Some(at) => Duration::from_nanos(at.saturating_sub(now_ns())).clamp(LOOK, REST),
            None => REST,
        }
    }

    /// Takes over other links. One that comes up is told everything again: its neighbours may be others.
    fn follow(&mut self, links: Vec<Link>, now: Nanos) {
        let gone: Vec<u32> =
            self.ends.keys().filter(|index| !links.iter().any(|link| link.ifindex == **index)).copied().collect();
        for index in gone {
            if let Some(end) = self.ends.remove(&index) {
                self.move_groups(index, &end.link.prefixes, &[]);
            }
        }
        for link in links {
            let before = self.ends.get(&link.ifindex).map(|end| end.link.clone());
            if before.as_ref() == Some(&link) {
                continue;
            }
            let prefixes = before.as_ref().map(|before| before.prefixes.clone()).unwrap_or_default();
            self.move_groups(link.ifindex, &prefixes, &link.prefixes);
            let index = link.ifindex;
            let anew = link.up
                && before
                    .as_ref()
                    .is_none_or(|before| !before.up || before.mac != link.mac || before.prefixes != link.prefixes);
            match self.ends.get_mut(&index) {
                Some(end) => end.link = link,
                None => drop(self.ends.insert(index, End::open(link))),
            }
            if anew {
                self.told.clone().iter().for_each(|vip| self.begin(vip, Some(index), now));
            }
        }
    }

    /// Joins and leaves groups on a device whose prefixes change.
    fn move_groups(&mut self, ifindex: u32, before: &[IpNet], after: &[IpNet]) {
        let holds = |prefixes: &[IpNet], vip: &IpNet| prefixes.iter().any(|prefix| prefix.contains(vip));
        for vip in &self.told {
            let (was, is) = (holds(before, vip), holds(after, vip));
            for address in v6(vip) {
                match (was, is) {
                    (false, true) => self.groups.join(ifindex, address),
                    (true, false) => self.groups.leave(ifindex, address),
                    _ => {}
                }
            }
        }
    }

    fn take(&mut self, decision: Decision, changes: &mut BTreeMap<IpNet, bool>, now: Nanos) {
        for vip in decision.withdraw {
            self.wanted.remove(&vip);
            election::addresses(&vip, 1).for_each(|address| self.inquiries.forget(address));
            changes.insert(vip, false);
        }
        for (vip, is_new) in decision.announce {
            self.wanted.insert(vip);
            let one = vip.prefix_len() == vip.max_prefix_len();
            if one {
                self.inquiries.ask(vip.addr(), now);
            }
            if !(is_new && one) {
                changes.insert(vip, true);
            }
        }
        self.undone = Some(decision.number);
    }

    /// Reads what was heard on the links since the last look.
    fn listen(&mut self, changes: &mut BTreeMap<IpNet, bool>) {
        let mut claims = Vec::new();
        let mut bytes = [0u8; 256];
        for end in self.ends.values() {
            for socket in [&end.arp, &end.advertisements].into_iter().flatten() {
                for _ in 0..FRAMES_MAX {
                    let Ok(length) = io::Read::read(&mut &*socket, &mut bytes) else { break };
                    let claim = foreign::claim(bytes.get(..length).unwrap_or_default());
                    claims.extend(claim.map(|claim| (claim, Arc::clone(&end.link.name))));
                }
            }
        }
        claims.retain(|(claim, _)| self.wanted.contains(&IpNet::from(claim.address)));
        if claims.is_empty() {
            return;
        }
        let known = self.council.known_macs();
        for (claim, device) in claims {
            if known.contains(&claim.mac) {
                continue;
            }
            let told = self.told.contains(&IpNet::from(claim.address));
            match self.inquiries.hear(claim, &device, told, now_ns()) {
                Some(Verdict::Taken(vip)) => drop(changes.insert(vip, false)),
                Some(Verdict::Defend(address)) => self.begin(&address.into(), None, now_ns()),
                Some(Verdict::Free(_)) | None => {}
            }
        }
    }

    /// Asks what is to be asked, and takes silence for an answer.
    fn inquire(&mut self, changes: &mut BTreeMap<IpNet, bool>) {
        let (questions, verdicts) = self.inquiries.step(now_ns(), QUESTIONS);
        for address in questions {
            for end in self.ends.values().filter(|end| end.link.holds(&address.into())) {
                end.send(&announce::question(address, end.link.mac));
            }
        }
        for verdict in verdicts {
            if let Verdict::Free(vip) = verdict
                && self.wanted.contains(&vip)
            {
                changes.entry(vip).or_insert(true);
            }
        }
    }

    /// Has the compiler publish who is answered for, and begins or ends to tell.
    fn publish(&mut self, mut changes: BTreeMap<IpNet, bool>) {
        changes.retain(|vip, announced| self.told.contains(vip) != *announced);
        if changes.is_empty() {
            return;
        }
        if let Err(error) = self.compiler.announce(changes.iter().map(|(vip, announced)| (*vip, *announced)).collect())
        {
            tracing::error!(%error, "announcements could not be published");
        }
        let now = now_ns();
        for (vip, announced) in changes {
            let indices: Vec<u32> =
                self.ends.values().filter(|end| end.link.holds(&vip)).map(|end| end.link.ifindex).collect();
            if announced {
                self.told.insert(vip);
                indices.iter().for_each(|index| v6(&vip).for_each(|address| self.groups.join(*index, address)));
                self.begin(&vip, None, now);
            } else {
                self.told.remove(&vip);
                for index in indices {
                    v6(&vip).for_each(|address| self.groups.leave(index, address));
                    election::addresses(&vip, PREFIX_ADDRESSES_MAX)
                        .for_each(|address| self.schedule.end(index, address));
                }
            }
        }
    }

    /// Begins to tell a VIP on the links that hold it, or on one of them.
    fn begin(&mut self, vip: &IpNet, only: Option<u32>, now: Nanos) {
        for end in self.ends.values().filter(|end| only.is_none_or(|only| end.link.ifindex == only)) {
            if end.link.up && end.link.holds(vip) {
                for address in election::addresses(vip, PREFIX_ADDRESSES_MAX) {
                    self.schedule.begin(end.link.ifindex, address, now);
                }
            }
        }
    }

    fn speak(&mut self) {
        for saying in self.schedule.take(now_ns(), BURST) {
            if let Some(end) = self.ends.get(&saying.ifindex) {
                end.send(&announce::told(saying.address, saying.form, end.link.mac));
            }
        }
    }

    /// Tells the council what is done, and control what was found.
    fn report(&mut self) {
        let announces = (u32::try_from(self.told.len()).unwrap_or(u32::MAX), self.inquiries.withheld());
        if announces != self.reported {
            self.reported = announces;
            self.council.announces(announces.0, announces.1);
        }
        if !self.schedule.has_unsaid()
            && let Some(number) = self.undone.take()
        {
            self.council.acted(number);
        }
        let Some(conflicts) = self.inquiries.take_news() else { return };
        for conflict in &conflicts {
            let (address, mac, device, withheld) =
                (conflict.address, conflict.mac, &conflict.device, conflict.withheld);
            tracing::warn!(%address, %mac, %device, withheld, "a stranger answers for an address of ours");
        }
        let told = conflicts.into_iter().map(|conflict| AddressConflict {
            address: conflict.address,
            mac: conflict.mac,
            device: conflict.device.to_string(),
            withheld: conflict.withheld,
            kernel: None,
        });
        self.compiler.tell_conflicts(told.collect());
    }
}

impl End {
    fn open(link: Link) -> End {
        let told = |error: &io::Error| {
            tracing::warn!(device = %link.name, %error, "no packet socket: VIPs are answered for here, and not announced");
        };
        let arp = packet_socket(link.ifindex, ARP).map(Socket::from).inspect_err(told).ok();
        let advertisements = packet_socket(link.ifindex, IPV6).map(Socket::from).inspect_err(told).ok();
        // Without its filter it would copy all IPv6 that goes to the kernel.
        let advertisements = advertisements.filter(|socket| socket.attach_filter(&filter()).is_ok());
        End { link, arp, advertisements }
    }

    /// Sends a frame. One that is lost comes again in its next round.
    fn send(&self, frame: &[u8]) {
        if let Some(socket) = &self.arp {
            let _ = socket.send(frame);
        }
    }
}

fn v6(vip: &IpNet) -> impl Iterator<Item = std::net::Ipv6Addr> + use<> {
    election::addresses(vip, PREFIX_ADDRESSES_MAX).filter_map(|address| match address {
        IpAddr::V6(v6) => Some(v6),
        IpAddr::V4(_) => None,
    })
}

/// A classic BPF program (uapi/linux/filter.h) that passes neighbour advertisements directly behind an IPv6 header.
fn filter() -> [SockFilter; 6] {
    const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
    const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    [
        SockFilter::new(LOAD_BYTE, 0, 0, 14 + 6),
        SockFilter::new(JUMP_IF_EQUAL, 0, 3, u32::from(crate::wire::protocol::ICMPV6)),
        SockFilter::new(LOAD_BYTE, 0, 0, 14 + 40),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, u32::from(crate::wire::ndp::ADVERTISEMENT)),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}
