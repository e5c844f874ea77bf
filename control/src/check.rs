//! What `--check` prints: what is wrong, and what the dataplane would be sent.
//!
//! Owns the words for a person who wants to know whether the manifests say what he means. Refuses to judge: problems and
//! conditions are those that a running process would tell.

use std::fmt::{self, Display, Write};

use tidegate_api::resource::{Body, DeliveryMode, Kind, Resource, ResourceKey, Service};

use crate::model::Name;
use crate::problem::Severity;
use crate::reconcile::Reconciler;
use crate::status::service::{CLAIMED_TWICE, FRONTENDS_OWNED, claimed_twice};

/// The whole report, and how many errors it has.
pub fn report(reconciler: &Reconciler) -> (String, usize) {
    let mut text = String::new();
    // Writing into a String cannot fail.
    let errors = write(reconciler, &mut text).unwrap_or_default();
    (text, errors)
}

fn write(reconciler: &Reconciler, text: &mut String) -> Result<usize, fmt::Error> {
    let problems = reconciler.problems();
    for problem in &problems {
        writeln!(text, "{:?}: {problem}", problem.severity)?;
    }
    let resources = reconciler.resources();
    for key in resources.keys().filter(|key| key.kind != Kind::Service) {
        writeln!(text, "{key}")?;
    }
    for name in reconciler.services() {
        let key = ResourceKey { kind: Kind::Service, name: name.to_string() };
        service(resources.get(&key), name, text)?;
        for note in reconciler.notes(name) {
            writeln!(text, "  {}: False, {}: {}", note.kind, note.reason, note.message)?;
        }
        let lost = reconciler.lost(name);
        if !lost.is_empty() {
            writeln!(text, "  {FRONTENDS_OWNED}: False, {CLAIMED_TWICE}: {}", claimed_twice(&lost))?;
        }
    }
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error).count();
    writeln!(text, "{} objects for the dataplane, {errors} errors", resources.len())?;
    Ok(errors)
}

fn service(resource: Option<&Resource>, name: &Name, text: &mut String) -> fmt::Result {
    let Some(Body::Service(service)) = resource.map(|resource| &resource.body) else {
        return writeln!(text, "service {name}: nothing to serve");
    };
    writeln!(text, "service {name} at {}", frontends(service))?;
    for port in &service.ports {
        match port.port {
            0 => write!(text, "  every port/{}", port.protocol)?,
            number => write!(text, "  {number}/{}", port.protocol)?,
        }
        if !port.name.is_empty() && port.port != 0 {
            write!(text, " ({})", port.name)?;
        }
        if let Some(number) = port.node_port {
            write!(text, ", node port {number}")?;
        }
        let active = |v4: bool| {
            let family = port.backends.iter().filter(|backend| backend.address.is_ipv4() == v4);
            family.filter(|backend| backend.weight > 0 || backend.local_weight > 0).count()
        };
        let mode = match port.mode {
            DeliveryMode::Fullnat => "fullnat",
            DeliveryMode::NodeDsr => "node-dsr",
            DeliveryMode::Symmetric => "symmetric",
        };
        writeln!(text, ": {mode}, {} IPv4 and {} IPv6 endpoints", active(true), active(false))?;
    }
    Ok(())
}

/// All addresses and prefixes; those of nodes only where node ports are served.
fn frontends(service: &Service) -> String {
    fn texts<T: Display>(list: &[T]) -> impl Iterator<Item = String> {
        list.iter().map(ToString::to_string)
    }
    let all = texts(&service.addresses)
        .chain(texts(&service.prefixes))
        .chain(texts(&service.external_addresses))
        .chain(texts(&service.cluster_addresses))
        .chain(texts(&service.node_addresses));
    all.collect::<Vec<_>>().join(", ")
}
