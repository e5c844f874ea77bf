//! The ports at which this node tells load balancers how many endpoints it has itself (`healthCheckNodePort`).
//!
//! Owns which Services have such a port and how many ready endpoints they have on the own Node; [`server`] owns the sockets
//! and the answers. Refuses to know why somebody asks. On a gateway, which runs no pods, the answer is "none" (S-112): so
//! the load balancers of others send nothing here that would only be dropped.
//!
//! The server has a thread of its own and is told what changes; the reconcile loop never waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::HashMap;
use tidegate_api::resource::TrafficPolicy;
use tokio::sync::mpsc::UnboundedSender;

use crate::model::Name;
use crate::model::endpointslice::EndpointSlice;
use crate::model::service::{Service, ServiceType};
use crate::problem::{Problem, Severity};

/// Sockets and answers.
mod server;

/// What one Service's port tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// `healthCheckNodePort`, host order, never 0.
    pub port: u16,
    /// Ready endpoints on the own Node, IPv4 then IPv6; `None`: the Service is not of that family, and nothing listens.
    pub local_endpoints: [Option<usize>; 2],
}

impl Check {
    /// The check of a Service with these slices at the Node `node`, if it has one (S-017, S-116).
    pub fn of<'a>(service: &Service, slices: impl Iterator<Item = &'a EndpointSlice>, node: &str) -> Option<Check> {
        let asks = service.service_type == ServiceType::LoadBalancer && service.external_policy == TrafficPolicy::Local;
        let port = service.health_check_node_port.filter(|_| asks)?;
        // The same endpoint in two slices is one.
        let mut ready: [BTreeSet<IpAddr>; 2] = Default::default();
        for endpoint in slices.flat_map(|slice| &slice.endpoints) {
            if endpoint.ready && endpoint.node == node {
                ready[usize::from(endpoint.address.is_ipv6())].insert(endpoint.address);
            }
        }
        let is_of = |v4: bool| service.families.is_empty() || service.families.contains(&v4);
        let [v4, v6] = ready.map(|addresses| addresses.len());
        Some(Check { port, local_endpoints: [is_of(true).then_some(v4), is_of(false).then_some(v6)] })
    }
}

/// What the server is told.
#[derive(Debug)]
enum Order {
    /// A Service's check is now this, or it has none any more.
    Check(Name, Option<Check>),
    /// Addresses to listen at.
    Addresses(Vec<IpAddr>),
    /// Whether the dataplane does what it is told.
    Healthy(bool),
}

/// Ports that could not be opened: for whom, and why.
type Troubles = Arc<Mutex<BTreeMap<SocketAddr, (Name, String)>>>;

/// The side of the loop: knows what the server was told last, and tells it what differs.
#[derive(Debug)]
pub struct Health {
    orders: UnboundedSender<Order>,
    checks: HashMap<Name, Check>,
    addresses: Vec<IpAddr>,
    healthy: bool,
    troubles: Troubles,
}

impl Health {
    /// Starts the server, which listens nowhere yet. It ends when this is dropped.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start() -> io::Result<Health> {
        let troubles = Troubles::default();
        let orders = server::start(Arc::clone(&troubles))?;
        Ok(Health { orders, checks: HashMap::new(), addresses: Vec::new(), healthy: false, troubles })
    }

    /// Takes in the check of a Service; `None`: it has none.
    pub fn follow(&mut self, name: &Name, check: Option<Check>) {
        if self.checks.get(name) == check.as_ref() {
            return;
        }
        match &check {
            Some(check) => drop(self.checks.insert(name.clone(), check.clone())),
            None => drop(self.checks.remove(name)),
        }
        self.tell(Order::Check(name.clone(), check));
    }

    /// Listens at these addresses of the own Node.
    pub fn listen_at(&mut self, addresses: Vec<IpAddr>) {
        if self.addresses != addresses {
            self.addresses.clone_from(&addresses);
            self.tell(Order::Addresses(addresses));
        }
    }

    /// Says whether the dataplane does what it is told: while it does not, nobody should send anything here.
    pub fn say_healthy(&mut self, healthy: bool) {
        if self.healthy != healthy {
            self.healthy = healthy;
            self.tell(Order::Healthy(healthy));
        }
    }

    /// Ports that could not be opened (S-113): everything else works all the same.
    pub fn problems(&self) -> Vec<Problem> {
        let troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        let problem = |(at, (name, reason)): (&SocketAddr, &(Name, String))| {
            let message = format!("cannot listen at {at} for load balancers that ask for local endpoints: {reason}");
            Problem::new(Severity::Warning, "FailedToStartServiceHealthcheck", message)
                .about(format!("Service {name}"))
                .in_field("spec.healthCheckNodePort")
        };
        troubles.iter().map(problem).collect()
    }

    fn tell(&self, order: Order) {
        // A server that is gone has said why.
        let _ = self.orders.send(order);
    }
}
