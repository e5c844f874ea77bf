//! From the model to resources of the contract, as pure functions.
//!
//! Owns what the objects together mean to a gateway: which Services are served, which endpoints are chosen, who is a
//! peer, what this gateway is. Refuses state: the same objects give the same resources whatever the order in which
//! they came, and a version is a hash of the content, so two gateways with equal objects have equal resources.

use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher13};
use tidegate_api::resource::{Body, Resource};

/// A Service and its slices → frontends, ports, backends.
pub mod service;
/// Where a Service is reached at this gateway.
pub mod frontend;
/// Which endpoints of its slices are used, with which weight.
pub mod endpointslice;
/// Clients that are sent to an endpoint of their own.
pub mod source;
/// What people must know of a Service.
pub mod note;
/// Why a port has no endpoint.
pub mod lack;
/// Endpoints to which no tunnel leads.
pub mod reach;
/// What Services have to know of the place they are served from.
pub mod site;
/// Another Node → how to reach its pods.
pub mod peer;
/// The own Node and the node file → this gateway.
pub mod gateway;
/// A Pod → whose an overlay address is.
pub mod pod;
/// An EgressPolicy → how its pods reach the outside.
pub mod egress;
/// A GatewayPolicy → rules about Services by name.
pub mod gatewaypolicy;
/// Frontends claimed by more than one Service.
pub mod claim;

/// The body under its name, with the hash of its content as version.
pub fn resource(name: String, body: Body) -> Resource {
    struct Feed(SipHasher13);
    impl std::io::Write for Feed {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.write(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut feed = Feed(SipHasher13::new());
    // Neither the sink nor the contract's types can fail; were they to, an odd version would only cost one update.
    let _ = serde_json::to_writer(&mut feed, &body);
    let version = format!("{:032x}", feed.0.finish128().as_u128());
    Resource { name, version, body }
}
