//! Services as the contract tells them, made into rows by the compiler's own build side.
//!
//! Owns the Services of one test and gives their addresses the roles that the compiler thread would. Refuses to know
//! what the rows are for.

use std::net::IpAddr;
use std::sync::Arc;

use tidegate_api::resource::{Backend, Protocol, Service, ServicePort};

use super::{Net, mapped};
use crate::compile::service::Services;
use crate::table::Tables;
use crate::table::local::LocalKind;

/// The Services of a test.
#[derive(Debug, Default)]
pub struct Catalog {
    services: Services,
    /// The time that the compiler is given, nanoseconds.
    pub now_ns: u64,
}

impl Catalog {
    /// Makes the rows of Service `name` say `service`.
    pub fn put(&mut self, tables: &mut Tables, name: &str, service: &Service) {
        self.services.write(name, Some(service), tables, self.now_ns);
        let locals = Arc::make_mut(&mut tables.locals);
        let whole = service.external_addresses.iter().chain(&service.cluster_addresses);
        for (address, kind) in service
            .addresses
            .iter()
            .map(|address| (address, LocalKind::VIP))
            .chain(whole.map(|address| (address, LocalKind::SERVICE)))
            .chain(service.node_addresses.iter().map(|address| (address, LocalKind::NODE)))
        {
            locals.add(&mapped(*address), kind);
        }
        for prefix in &service.prefixes {
            locals.set_prefix(*prefix, LocalKind::VIP);
        }
    }

    /// Takes Service `name` away; its addresses keep their roles.
    pub fn remove(&mut self, tables: &mut Tables, name: &str) {
        self.services.write(name, None, tables, self.now_ns);
    }

    /// Lets time pass for weights that grow; whether any row differs.
    pub fn tick(&mut self, tables: &mut Tables) -> bool {
        self.services.tick(tables, self.now_ns)
    }
}

/// A Service of one port at `vip`, with these endpoints.
pub fn service(vip: IpAddr, protocol: Protocol, port: u16, backends: Vec<Backend>) -> Service {
    Service {
        uid: "uid".into(),
        addresses: vec![vip],
        ports: vec![ServicePort { protocol, port, backends, ..ServicePort::default() }],
        ..Service::default()
    }
}

/// Pod `p` of peer `n` at 8080, with its weights in the Cluster set and in the Local set.
pub fn pod(net: Net, n: u8, p: u8, weight: u16, local_weight: u16) -> Backend {
    Backend {
        address: net.pod(n, p),
        port: 8080,
        weight,
        local_weight,
        node: format!("w{}", n + 1),
        pod: format!("pod-{n}-{p}"),
    }
}
