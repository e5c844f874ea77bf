//! Tables: what workers read and never write.
//!
//! One [`Tables`] value is one generation of everything the compiler thread has decided: services, backends, routes,
//! neighbours, tunnels. It owns the shape of every row and how a row is found by key or id. It refuses to know where rows
//! come from (objects, netlink), what a packet is, and what time it is.
//!
//! Tables are the second of the three kinds of memory: immutable once published, shared by all workers, freed on the
//! compiler thread. Reading allocates nothing, locks nothing and never panics, whatever id or key it is given.
//!
//! Editing is copy-on-write, so a new generation costs what changes and not what exists:
//!
//! ```text
//! let mut next = current.clone();                              // a dozen reference counts
//! Arc::make_mut(&mut next.services).set_row(id, row);          // the spine and one chunk of 512 rows, once per edit
//! publisher.publish(next);                                     // one swap; unchanged tables are shared
//! ```
//!
//! Each table says of its methods which side they are for: the *read side* is for workers, the *build side* for the
//! compiler thread.

use std::sync::Arc;

pub use crate::wire::Family;
pub use tidegate_api::resource::{OrphanTcp, PolicyOptions, UnknownPod};

/// Rows by id, in chunks that generations share.
pub mod rows;
/// Values by exact key: an open-addressing hash table on [`rows`].
pub mod exact;
/// One publish for all tables, and the readers that follow it.
pub mod publish;
/// Where Services are reached.
pub mod frontend;
/// Who answers at each frontend, and with which endpoints.
pub mod service;
/// What a Service asks for beyond an even spread.
pub mod terms;
/// Client addresses that may reach a Service.
pub mod ranges;
/// Clients whose endpoint is given by where they come from.
pub mod overrides;
/// Consistent choice of a backend for a flow.
pub mod maglev;
/// Endpoints of Services, with the epochs that flows remember.
pub mod backend;
/// Addresses that are ours.
pub mod local;
/// Tunnels that end here without being part of the overlay.
pub mod decap;
/// Longest-prefix routes.
pub mod route;
/// Link-layer neighbours.
pub mod neighbour;
/// VXLAN peers.
pub mod tunnel;
/// Ways out, ready to be put on a packet.
pub mod lane;
/// Source addresses for translation.
pub mod nat;
/// Network policies.
pub mod policy;
/// Which clients may reach a Service.
pub mod gatepolicy;
/// Which worker owns a block of translated ports.
pub mod owner;
/// How a NIC spreads clients over its queues.
pub mod spread;
/// Network devices of the gateway.
pub mod device;
/// Pods that policies select.
pub mod pod;
/// What pods look like from outside.
pub mod egress;

use backend::BackendTable;
use device::DeviceTable;
use egress::EgressTable;
use local::LocalTable;
use nat::NatTable;
use neighbour::NeighbourTable;
use owner::OwnerTable;
use pod::PodTable;
use policy::PolicyTable;
use route::RouteTable;
use service::ServiceTable;
use tunnel::TunnelTable;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident($repr:ty);)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub $repr);

        impl $name {
            /// The id no row has.
            pub const NONE: $name = $name(<$repr>::MAX);

            /// Whether this is [`Self::NONE`].
            pub fn is_none(self) -> bool {
                self == Self::NONE
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::NONE
            }
        }

        impl exact::Value for $name {
            const VACANT: Self = Self::NONE;
        }
    )*};
}

ids! {
    /// One Service port of one family.
    ServiceId(u32);
    /// One endpoint of one Service port.
    BackendId(u32);
    /// One VXLAN peer of one family.
    TunnelId(u16);
    /// One link-layer neighbour.
    NeighbourId(u16);
    /// One network device.
    DeviceId(u16);
    /// One address of a pod that policies select.
    PodId(u32);
    /// One egress policy.
    EgressId(u16);
    /// One address that pods look like from outside.
    ExternalId(u16);
}

/// An IPv4 address as `::ffff:a.b.c.d` (RFC 4291 section 2.5.5.2), the form in which rows hold addresses of both families.
#[inline]
pub const fn mapped(address: &[u8; 4]) -> [u8; 16] {
    let [a, b, c, d] = *address;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// The IPv4 address inside a mapped one; `None` for every other IPv6 address.
#[inline]
pub fn unmapped(address: &[u8; 16]) -> Option<[u8; 4]> {
    let [.., a, b, c, d] = *address;
    (u128::from_be_bytes(*address) >> 32 == 0xffff).then_some([a, b, c, d])
}

/// Family of an address in mapped form.
pub fn family_of(address: &[u8; 16]) -> Family {
    if unmapped(address).is_some() { Family::V4 } else { Family::V6 }
}

/// What applies to all packets alike. Kind: table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Key of [`maglev::flow_hash`], equal on all gateways of a set (L-009).
    pub hash_key: [u8; 16],
    /// What becomes of a TCP segment that is not a SYN and has no flow (S-077, L-012).
    pub orphan_tcp: OrphanTcp,
    /// Clamp the MSS of SYN and SYN-ACK to what fits the overlay (V-013).
    pub clamp_mss: bool,
    /// Bumped when a tunnel or neighbour that flows may have stored is no longer the right one for them: a route moved,
    /// or an id was given out again.
    pub routes_epoch: u16,
    /// Most answers of refusal (RST, ICMP) in a second and worker.
    pub reject_rate_per_s: u32,
    /// How policies are applied.
    pub policy: PolicyOptions,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            hash_key: [0; 16],
            orphan_tcp: OrphanTcp::Drop,
            clamp_mss: true,
            routes_epoch: 0,
            reject_rate_per_s: 1000,
            policy: PolicyOptions::default(),
        }
    }
}

/// One generation of everything workers read. Kind: table. A clone costs a dozen reference counts.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// Number of this generation, given by [`publish::Publisher::publish`]; 0 is the state before the first.
    pub generation: u64,
    /// Frontends and Services.
    pub services: Arc<ServiceTable>,
    /// Endpoints.
    pub backends: Arc<BackendTable>,
    /// Addresses that are ours.
    pub locals: Arc<LocalTable>,
    /// Routes of kernel and overlay.
    pub routes: Arc<RouteTable>,
    /// Link-layer neighbours.
    pub neighbours: Arc<NeighbourTable>,
    /// VXLAN peers.
    pub tunnels: Arc<TunnelTable>,
    /// Translated source addresses.
    pub nat: Arc<NatTable>,
    /// Policy.
    pub policy: Arc<PolicyTable>,
    /// Owners of port blocks.
    pub owners: Arc<OwnerTable>,
    /// Network devices.
    pub devices: Arc<DeviceTable>,
    /// Pods that policies select.
    pub pods: Arc<PodTable>,
    /// Egress policies and external addresses.
    pub egress: Arc<EgressTable>,
    /// Ways out, which follow from tunnels, neighbours and devices when a generation is published.
    pub lanes: lane::Lanes,
    /// What applies to all packets alike.
    pub settings: Settings,
}

impl publish::Snapshot for Tables {
    fn stamp(&mut self, generation: u64) {
        self.generation = generation;
        self.lanes.follow(&self.tunnels, &self.neighbours, &self.devices);
    }
}
