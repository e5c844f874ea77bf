//! Gateways know each other: who lives, who announces which VIP on the links they share, and how that is said.
//!
//! Owns heartbeats, the election of an owner per VIP, ARP and neighbour announcements, probes for strangers, and draining.
//! It refuses to know flows and rows: which VIPs lie on a link it hears from the compiler, and what is to be answered there
//! it tells the compiler. Packets are served by every gateway, whoever announces.
//!
//! ```text
//!  compiler ── VIPs, links, the set ──►  council thread  ◄── heartbeats, UDP ──►  other gateways
//!      ▲                                  who lives, who owns
//!      │ announce these, not those            │ decisions
//!      └───────────────────────────────  speaker thread  ──► ARP, NA, groups ──►  neighbours on the links
//!                                         ◄── answers of strangers
//! ```
//!
//! Two threads, since a heartbeat must not wait for a publish, nor for a link that takes five thousand announcements. Both
//! decide nothing themselves: [`council`], [`announce`] and [`foreign`] are told what came and what time it is.
//!
//! Availability goes before uniqueness. Whoever is the owner by what it hears announces at once; whoever is not stops only
//! after the owner has said that it announces. During a cut both sides announce, and the one that should not be yields when
//! it hears the other again. How long two announced is counted.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use tidegate_api::resource::{GatewayPeer, MacAddress};
use tidegate_api::show::Gateways;
use tidegate_io::mem::{Bell, now_ns};

/// The key of the set, and tags made with it.
pub mod key;
/// The bytes of a heartbeat.
pub mod message;
/// Who announces a VIP: a pure function of who there is.
pub mod election;
/// What one gateway has heard of another, and whether that one lives.
pub mod liveness;
/// What one gateway knows of the others, and what it decides.
pub mod council;
/// What is said on a link, and when.
pub mod announce;
/// Does a stranger answer for a VIP?
pub mod foreign;
/// Solicited-node groups joined on the links.
pub mod groups;
/// Who asks for the owner of an address, and what is said.
pub mod carrier;
/// The thread that hears and sends heartbeats.
pub mod thread;
/// The thread that speaks on the links.
pub mod speaker;

use council::Council;

/// Nanoseconds on a clock that never goes back.
pub type Nanos = u64;

/// One served device as its neighbours see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub ifindex: u32,
    /// Its name.
    pub name: Arc<str>,
    /// Its link-layer address.
    pub mac: [u8; 6],
    /// It carries frames.
    pub up: bool,
    /// Prefixes connected to it, without those of link-local addresses.
    pub prefixes: Vec<IpNet>,
}

impl Link {
    /// Whether `vip` is reached without a router here.
    pub fn holds(&self, vip: &IpNet) -> bool {
        self.prefixes.iter().any(|prefix| prefix.contains(vip))
    }
}

/// What the compiler knows of this machine and its set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// The other gateways of the set.
    pub others: Vec<GatewayPeer>,
    /// There is a gateway object, so that packets can be served at all.
    pub has_tables: bool,
    /// The served devices that are there.
    pub links: Vec<Link>,
}

/// Who wants to know what the compiler has published.
pub trait Herald: Send {
    /// The machine or the set is another one.
    fn site(&mut self, site: Site);

    /// An owner is to be elected for these VIPs, or not any more: they lie on a link, or are external addresses of pods.
    fn vips(&mut self, changes: Vec<(IpNet, bool)>);

    /// These VIPs are elected under the name of another, so that they have the same owner: external addresses of pods, each
    /// with the first of its group.
    fn groups(&mut self, groups: BTreeMap<IpNet, IpNet>);

    /// This generation was published, of objects with this digest.
    fn published(&mut self, generation: u64, objects: u64);
}

/// An address of ours for which a stranger answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The VIP.
    pub address: IpAddr,
    /// Who answers.
    pub mac: MacAddress,
    /// On which device.
    pub device: Arc<str>,
    /// We do not announce it because of that.
    pub withheld: bool,
}

/// The way to the council for everybody but its own thread. A clone is another way to the same one.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

struct Shared {
    council: Mutex<Council>,
    posted: Mutex<Posted>,
    bell: Bell,
}

/// What the compiler has said since the council looked last.
#[derive(Debug, Default)]
struct Posted {
    site: Option<Site>,
    vips: Vec<(IpNet, bool)>,
    groups: Option<BTreeMap<IpNet, IpNet>>,
    published: Option<(u64, u64)>,
    stop: bool,
}

impl Handle {
    /// A way to `council`.
    ///
    /// # Errors
    /// When the system gives no descriptor.
    pub fn new(council: Council) -> std::io::Result<Handle> {
        let (council, posted) = (Mutex::new(council), Mutex::default());
        Ok(Handle(Arc::new(Shared { council, posted, bell: Bell::new()? })))
    }

    /// Begins to give up what is announced to others, or takes that back.
    pub fn drain(&self, draining: bool) {
        self.council().drain(draining);
        self.0.bell.ring();
    }

    /// Whether it has been asked to give up what is announced.
    pub fn is_draining(&self) -> bool {
        self.council().is_draining()
    }

    /// Whether there are tables, so that packets can be served at all.
    pub fn has_tables(&self) -> bool {
        self.council().has_tables()
    }

    /// Everything that `tidegate show gateways` prints.
    pub fn show(&self) -> Gateways {
        self.council().show(now_ns())
    }

    /// How many VIPs are announced here.
    pub fn announced(&self) -> u32 {
        self.council().announced()
    }

    /// Whether another gateway lives that can announce what is announced here.
    pub fn has_heirs(&self) -> bool {
        self.council().has_heirs(now_ns())
    }

    /// Name of the gateway that owns an address, as far as this one knows; `None`: nobody does, or it is not elected.
    pub fn owner(&self, address: IpAddr) -> Option<String> {
        self.council().owner(&address.into(), now_ns())
    }

    /// The speaker has done what decision `number` asked for.
    pub fn acted(&self, number: u64) {
        self.council().acted(number, now_ns());
        self.0.bell.ring();
    }

    /// So many VIPs are announced now, and so many are not because of strangers.
    pub fn announces(&self, announced: u32, withheld: u32) {
        self.council().announces(announced, withheld);
    }

    /// Link-layer addresses of other gateways, and our own.
    pub fn known_macs(&self) -> Vec<[u8; 6]> {
        self.council().known_macs()
    }

    fn council(&self) -> MutexGuard<'_, Council> {
        self.0.council.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn posted(&self) -> MutexGuard<'_, Posted> {
        self.0.posted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn post(&self, write: impl FnOnce(&mut Posted)) {
        write(&mut self.posted());
        self.0.bell.ring();
    }

    fn has_mail(&self) -> bool {
        let posted = self.posted();
        posted.site.is_some()
            || posted.groups.is_some()
            || !posted.vips.is_empty()
            || posted.published.is_some()
            || posted.stop
    }
}

impl Herald for Handle {
    fn site(&mut self, site: Site) {
        self.post(|posted| posted.site = Some(site));
    }

    fn vips(&mut self, changes: Vec<(IpNet, bool)>) {
        self.post(|posted| posted.vips.extend(changes));
    }

    fn groups(&mut self, groups: BTreeMap<IpNet, IpNet>) {
        self.post(|posted| posted.groups = Some(groups));
    }

    fn published(&mut self, generation: u64, objects: u64) {
        // Told with the next heartbeat; not worth waking anybody up.
        self.posted().published = Some((generation, objects));
    }
}
