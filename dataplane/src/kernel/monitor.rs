//! The thread that keeps facts current.
//!
//! It subscribes first and dumps after, so that nothing falls between: news that are older than the dump are repeated,
//! and the last word on each neighbour is always the newest. News about links, addresses and routes only say *that*
//! something moved; the thread then waits a moment for the rest of the burst and dumps the layout whole. The pause
//! grows with the time a dump takes, so that a full internet table under churn costs a bounded share of one core.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::{RouteMessage, RouteProtocol};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::Netlink;
use super::{Change, KernelFacts, Layout, Neighbour, NeighbourKey, parse};

/// RTMGRP_LINK | RTMGRP_NEIGH | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE
/// (uapi/linux/rtnetlink.h).
const GROUPS: u32 = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400;
/// Quiet time after which a burst of layout news is taken as over.
const SETTLE: Duration = Duration::from_millis(10);
/// A layout dump starts at the latest this long after the first news of a burst.
const SETTLE_MAX: Duration = Duration::from_millis(50);
/// Pause between two dumps in multiples of the time the last one took.
const PAUSE_PER_DUMP: u32 = 10;
/// How often the thread looks whether it should stop.
const STOP_CHECK: Duration = Duration::from_millis(200);
/// ENOBUFS (uapi/asm-generic/errno.h): the socket overflowed and messages were lost.
const ENOBUFS: i32 = 105;

/// A running monitor; stops when dropped.
#[derive(Debug)]
pub struct Monitor {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Monitor {
    /// Reads all facts once, then starts the thread, which calls `tell` with each change. `tell` returns false to end it.
    ///
    /// # Errors
    /// When netlink cannot be opened or the first dump fails.
    ///
    /// Routes with the protocol number `ours` are our own, put there for others to read: they are no facts, and thousands of
    /// them that come are no reason to read anything again.
    pub fn start(
        ours: Option<u8>,
        mut tell: impl FnMut(Change) -> bool + Send + 'static,
    ) -> io::Result<(KernelFacts, Self)> {
        let events = Netlink::subscribe(GROUPS)?;
        let mut requests = Netlink::open()?;
        let ours = ours.map(RouteProtocol::from);
        let facts = read_all(&mut requests, ours)?;
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let layout = facts.layout.clone();
        let thread = std::thread::Builder::new().name("kernel-facts".into()).spawn(move || {
            let mut watch = Watch { events, requests, ours, layout, dirty: None, not_before: Instant::now() };
            while !seen.load(Ordering::Relaxed) {
                if !watch.step(&mut tell) {
                    break;
                }
            }
        })?;
        Ok((facts, Monitor { stop, thread: Some(thread) }))
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// News of a burst that has not been dumped yet.
#[derive(Clone, Copy, Debug)]
struct Burst {
    first: Instant,
    last: Instant,
}

struct Watch {
    events: Netlink,
    requests: Netlink,
    ours: Option<RouteProtocol>,
    layout: Layout,
    dirty: Option<Burst>,
    not_before: Instant,
}

impl Watch {
    /// Waits for news or for the time to dump, and acts. False when `tell` wants no more.
    fn step(&mut self, tell: &mut impl FnMut(Change) -> bool) -> bool {
        let wait = self.due().map_or(STOP_CHECK, |due| due.saturating_duration_since(Instant::now()).min(STOP_CHECK));
        if self.due().is_some_and(|due| due <= Instant::now()) {
            return self.dump_layout(tell);
        }
        // A zero timeout would mean "for ever".
        let _ = self.events.set_read_timeout(Some(wait.max(Duration::from_millis(1))));
        match self.events.receive() {
            Ok(messages) => {
                let neighbours = self.sort(messages.into_iter().map(|message| message.payload));
                neighbours.is_empty() || tell(Change::Neighbours(neighbours))
            }
            // A process that was stopped and goes on is interrupted.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
                ) =>
            {
                true
            }
            Err(error) if error.raw_os_error() == Some(ENOBUFS) => {
                tracing::warn!("the kernel had more news than its socket could hold; reading everything again");
                self.dump_all(tell)
            }
            Err(error) => {
                tracing::warn!(%error, "reading kernel news");
                std::thread::sleep(STOP_CHECK);
                true
            }
        }
    }

    /// When the layout should be dumped, if something moved.
    fn due(&self) -> Option<Instant> {
        self.dirty.map(|burst| (burst.last + SETTLE).min(burst.first + SETTLE_MAX).max(self.not_before))
    }

    /// Neighbour news in order; anything else marks the layout dirty.
    fn sort(
        &mut self,
        payloads: impl Iterator<Item = NetlinkPayload<RouteNetlinkMessage>>,
    ) -> Vec<(NeighbourKey, Option<Neighbour>)> {
        let mut neighbours = Vec::new();
        for payload in payloads {
            let NetlinkPayload::InnerMessage(message) = payload else { continue };
            match message {
                RouteNetlinkMessage::NewNeighbour(message) => {
                    neighbours.extend(parse::neighbour(&message).map(|(key, neighbour)| (key, Some(neighbour))));
                }
                RouteNetlinkMessage::DelNeighbour(message) => {
                    neighbours.extend(parse::neighbour(&message).map(|(key, _)| (key, None)));
                }
                RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message)
                    if Some(message.header.protocol) == self.ours => {}
                _ => {
                    let now = Instant::now();
                    let first = self.dirty.map_or(now, |burst| burst.first);
                    self.dirty = Some(Burst { first, last: now });
                }
            }
        }
        neighbours
    }

    fn dump_layout(&mut self, tell: &mut impl FnMut(Change) -> bool) -> bool {
        let started = Instant::now();
        self.dirty = None;
        let layout = match read_layout(&mut self.requests, self.ours) {
            Ok(layout) => layout,
            Err(error) => return self.try_later(&error, started),
        };
        self.not_before = started + started.elapsed() * PAUSE_PER_DUMP;
        if layout == self.layout {
            return true;
        }
        self.layout.clone_from(&layout);
        tell(Change::Layout(layout))
    }

    fn dump_all(&mut self, tell: &mut impl FnMut(Change) -> bool) -> bool {
        let started = Instant::now();
        self.dirty = None;
        match read_all(&mut self.requests, self.ours) {
            Ok(facts) => {
                self.not_before = started + started.elapsed() * PAUSE_PER_DUMP;
                self.layout.clone_from(&facts.layout);
                tell(Change::All(facts))
            }
            Err(error) => self.try_later(&error, started),
        }
    }

    fn try_later(&mut self, error: &io::Error, now: Instant) -> bool {
        tracing::warn!(%error, "reading kernel facts; trying again in a second");
        self.not_before = now + Duration::from_secs(1);
        self.dirty = Some(Burst { first: now, last: now });
        if let Ok(fresh) = Netlink::open() {
            self.requests = fresh; // answers to the failed request must not meet the next one
        }
        true
    }
}

/// Reads links, addresses, routes (but for those with the protocol number `ours`) and neighbours.
///
/// # Errors
/// What the kernel answers.
pub fn read_all(netlink: &mut Netlink, ours: Option<RouteProtocol>) -> io::Result<KernelFacts> {
    let mut facts = KernelFacts { layout: read_layout(netlink, ours)?, ..KernelFacts::default() };
    for row in netlink.dump(&RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()))? {
        if let RouteNetlinkMessage::NewNeighbour(message) = row {
            facts.neighbours.extend(parse::neighbour(&message));
        }
    }
    Ok(facts)
}

fn read_layout(netlink: &mut Netlink, ours: Option<RouteProtocol>) -> io::Result<Layout> {
    let mut layout = Layout::default();
    for row in netlink.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))? {
        if let RouteNetlinkMessage::NewLink(message) = row {
            layout.links.extend(parse::link(&message));
        }
    }
    for row in netlink.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
        if let RouteNetlinkMessage::NewAddress(message) = row {
            layout.addresses.extend(parse::address(&message));
        }
    }
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        for row in netlink.dump(&RouteNetlinkMessage::GetRoute(request))? {
            if let RouteNetlinkMessage::NewRoute(message) = row
                && Some(message.header.protocol) != ours
            {
                layout.routes.extend(parse::route(&message));
            }
        }
    }
    Ok(layout)
}
