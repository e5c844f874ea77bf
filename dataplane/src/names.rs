//! Names: whose an address is and what a row is called, for threads that tell people what workers noted.
//!
//! Owns a copy of who is who, read from the accepted objects when something was published since. Refuses to know what is told
//! about them: the clerk tells of ports, the exporter of flows.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use tidegate_api::resource::{Body, Kind, Resource};

use crate::compile::thread::Handle;
use crate::table::Tables;

/// How much of its time a thread may spend on names, one part in so many, when it cannot have them anew all the time.
const LEISURE: u32 = 20;

/// What is asked about pods, policies and Services.
pub trait Registry: Send {
    /// The generation all workers have reached.
    fn generation(&self) -> u64;
    /// Everything as it is now; `None`: nobody knows any more.
    fn look(&self) -> Option<Registered>;
    /// Services, whose endpoints are pods too.
    fn services(&self) -> Vec<Arc<Resource>>;
}

/// What is registered.
pub struct Registered {
    /// Pods.
    pub pods: Vec<Arc<Resource>>,
    /// The tables in force.
    pub tables: Tables,
}

impl Registry for Handle {
    fn generation(&self) -> u64 {
        self.reached()
    }

    fn look(&self) -> Option<Registered> {
        let view = self.view(Some(Kind::Pod)).ok()?;
        Some(Registered { pods: view.objects, tables: view.tables })
    }

    fn services(&self) -> Vec<Arc<Resource>> {
        self.view(Some(Kind::Service)).map(|view| view.objects).unwrap_or_default()
    }
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who<'n> {
    /// `namespace/name`.
    pub pod: String,
    /// Its node; empty: not known.
    pub node: &'n str,
}

/// Where it stands whose an address is.
enum Known {
    /// A pod's resource.
    Pod(Arc<Resource>),
    /// A Service's, with the places of port and endpoint in it.
    Endpoint(Arc<Resource>, usize, usize),
}

/// Who is who.
#[derive(Default)]
pub struct Names {
    generation: Option<u64>,
    by_address: HashMap<IpAddr, Known>,
    tables: Tables,
    /// Not read again before.
    rests_until: Option<Instant>,
}

impl Names {
    /// Reads pods and tables again if something was published since.
    pub fn refresh(&mut self, registry: &impl Registry) {
        let generation = registry.generation();
        if self.generation == Some(generation) {
            return;
        }
        let Some(Registered { pods, tables }) = registry.look() else { return };
        self.generation = Some(generation);
        self.tables = tables;
        self.by_address.clear();
        self.learn(pods);
    }

    /// The same with endpoints of Services, which can be very many: it takes one part in [`LEISURE`] of the thread's time at
    /// most. Names are as old as that makes them.
    pub fn refresh_at_leisure(&mut self, registry: &impl Registry) {
        let began = Instant::now();
        let is_resting = self.rests_until.is_some_and(|until| began < until);
        if is_resting || self.generation == Some(registry.generation()) {
            return;
        }
        self.refresh(registry);
        for service in registry.services() {
            let Body::Service(body) = &service.body else { continue };
            for (place, port) in body.ports.iter().enumerate() {
                for (at, backend) in port.backends.iter().enumerate().filter(|(_, backend)| !backend.pod.is_empty()) {
                    let known = || Known::Endpoint(Arc::clone(&service), place, at);
                    self.by_address.entry(backend.address).or_insert_with(known);
                }
            }
        }
        let took = began.elapsed().min(Duration::from_secs(1));
        self.rests_until = Some(began + took * LEISURE);
    }

    fn learn(&mut self, pods: Vec<Arc<Resource>>) {
        for pod in pods {
            if let Body::Pod(body) = &pod.body {
                self.by_address.extend(body.addresses.iter().map(|address| (*address, Known::Pod(Arc::clone(&pod)))));
            }
        }
    }

    /// The pod of an address.
    pub fn pod(&self, address: &IpAddr) -> Option<Who<'_>> {
        match self.by_address.get(address)? {
            Known::Pod(resource) => match &resource.body {
                Body::Pod(body) => Some(Who { pod: resource.name.clone(), node: &body.node }),
                _ => None,
            },
            Known::Endpoint(resource, port, at) => {
                let Body::Service(body) = &resource.body else { return None };
                let backend = body.ports.get(*port)?.backends.get(*at)?;
                let namespace = resource.name.split_once('/').map_or("", |(namespace, _)| namespace);
                Some(Who { pod: format!("{namespace}/{}", backend.pod), node: &backend.node })
            }
        }
    }

    /// The tables in force when names were read.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }
}
