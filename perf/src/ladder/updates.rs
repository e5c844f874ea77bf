//! Loss while the dataplane is told of changes, a thousand a second, beside the same trials without any.
//!
//! Owns the changes: Services that are none of those that packets go to, told over the dataplane's own socket as control
//! tells them, each waited for until it is taken. Control has ended before: two that tell would undo each other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tidegate_api::client::Client;
use tidegate_api::message::{Request, Response, Update};
use tidegate_api::resource::{Backend, Body, Protocol, Resource, Service, ServicePort};

use crate::pktgen::command::Bench;
use crate::topology::Family;

/// Changes a second (design 10).
pub const PER_S: u32 = 1000;
/// Services that change.
const SERVICES: u32 = 1000;
/// Endpoints of each.
const ENDPOINTS: u8 = 10;
/// How long the dataplane may take to answer where everybody waits for a core.
const PATIENCE: Duration = Duration::from_secs(20);

/// What became of packets with changes and without, by turns.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct UnderUpdates {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// Packets per second that were offered.
    pub rate_per_s: u64,
    /// Without changes.
    pub quiet: Trials,
    /// With them.
    pub updated: Trials,
    /// Changes that were taken meanwhile.
    pub updates: u64,
    /// Seconds in which they were.
    pub seconds: f64,
}

/// Trials added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Trials {
    /// Packets that the generator's device sent.
    pub sent: u64,
    /// Packets of them that did not arrive.
    pub lost: u64,
}

impl Trials {
    fn add(&mut self, bench: &mut Bench, rate: u64, duration: Duration) -> Result<()> {
        let outcome = bench.trial(rate, 0, duration, false)?;
        self.sent += outcome.sent;
        self.lost += outcome.lost;
        Ok(())
    }

    /// Lost of a million.
    pub fn lost_ppm(&self) -> f64 {
        self.lost as f64 / self.sent.max(1) as f64 * 1e6
    }
}

/// The changes: a connection to the dataplane, and how many there were.
pub struct Changes {
    client: Client,
    made: u64,
}

impl Changes {
    /// Tells the dataplane at `socket` of the Services that are to change.
    ///
    /// # Errors
    /// When it does not take them.
    pub fn begin(socket: &Path) -> Result<Changes> {
        let mut client = Client::connect(socket, "tidegate-lab ladder")?;
        client.set_timeout(Some(PATIENCE))?;
        let mut changes = Changes { client, made: 0 };
        changes.tell((0..SERVICES).map(|number| service(number, ENDPOINTS)).collect())?;
        Ok(changes)
    }

    fn tell(&mut self, resources: Vec<Resource>) -> Result<()> {
        self.made += 1;
        let nonce = self.made;
        self.client.send(&Request::Update(Update { nonce, resources, ..Update::default() }))?;
        loop {
            match self.client.receive()? {
                Response::Accepted(accepted) if !accepted.rejected.is_empty() => bail!("not taken: {accepted:?}"),
                Response::Accepted(accepted) if accepted.nonce == nonce => return Ok(()),
                Response::Error { message } => bail!("not taken: {message}"),
                // What else it tells whoever tells it of changes is not asked for here.
                _ => {}
            }
        }
    }

    /// One endpoint comes or goes, [`PER_S`] times a second, until `stop`. Late ones are made up for.
    fn go_on(&mut self, stop: &AtomicBool) -> Result<u64> {
        let (began, before) = (Instant::now(), self.made);
        while !stop.load(Ordering::Relaxed) {
            let made = u32::try_from(self.made).unwrap_or_default();
            // Each Service by turns loses its last endpoint and has it again.
            let endpoints = ENDPOINTS - u8::from((made / SERVICES).is_multiple_of(2));
            self.tell(vec![service(made % SERVICES, endpoints)])?;
            let due = Duration::from_secs(1) * u32::try_from(self.made - before).unwrap_or_default() / PER_S;
            std::thread::sleep(due.saturating_sub(began.elapsed()));
        }
        Ok(self.made - before)
    }

    /// Trials at `rate`, without changes and with them by turns.
    ///
    /// # Errors
    /// When a trial fails, or a change is not taken.
    pub fn compare(
        &mut self,
        bench: &mut Bench,
        family: Family,
        rate: u64,
        rounds: u32,
        duration: Duration,
    ) -> Result<UnderUpdates> {
        let mut found = UnderUpdates { family: family.to_string(), rate_per_s: rate, ..UnderUpdates::default() };
        for _ in 0..rounds {
            found.quiet.add(bench, rate, duration)?;
            let (stop, began) = (AtomicBool::new(false), Instant::now());
            found.updates += std::thread::scope(|scope| {
                let changing = scope.spawn(|| self.go_on(&stop));
                let trial = found.updated.add(bench, rate, duration);
                stop.store(true, Ordering::Relaxed);
                let made = changing.join().unwrap_or_else(|_| bail!("the thread that changes Services has panicked"));
                trial.and(made).context("changing Services")
            })?;
            found.seconds += began.elapsed().as_secs_f64();
        }
        Ok(found)
    }
}

/// A Service that nobody asks for, of either family by turns.
fn service(number: u32, endpoints: u8) -> Resource {
    let [.., high, low] = number.to_be_bytes();
    let address = |host: u8| -> IpAddr {
        if number.is_multiple_of(2) {
            Ipv4Addr::new(198, 18 + u8::from(host > 0), high << 4 | host, low).into()
        } else {
            Ipv6Addr::new(0x2001, 2, 0, u16::from(host), 0, 0, 0, u16::from_be_bytes([high, low])).into()
        }
    };
    let backend = |host: u8| Backend {
        address: address(host),
        port: 8080,
        weight: 1,
        local_weight: 1,
        node: "elsewhere".into(),
        pod: format!("service-{number}-{host}"),
    };
    let port = ServicePort {
        protocol: Protocol::Udp,
        port: 53,
        backends: (1..=endpoints).map(backend).collect(),
        ..ServicePort::default()
    };
    let body = Service {
        uid: format!("ladder-{number}"),
        addresses: vec![address(0)],
        ports: vec![port],
        ..Service::default()
    };
    Resource { name: format!("ladder/service-{number}"), version: endpoints.to_string(), body: Body::Service(body) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Two Services with one address would be a mistake that the dataplane reports, and then nothing would change.
    #[test]
    fn no_two_services_and_no_two_endpoints_have_one_address() {
        let mut seen = HashSet::new();
        for number in 0..SERVICES {
            let Body::Service(Service { addresses, ports, .. }) = service(number, ENDPOINTS).body else { panic!() };
            let backends = ports.into_iter().flat_map(|port| port.backends).map(|backend| backend.address);
            assert!(addresses.into_iter().chain(backends).all(|address| seen.insert(address)), "{number}");
        }
    }
}
