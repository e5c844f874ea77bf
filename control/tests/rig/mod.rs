//! What the tests of this crate share: manifests as text in, resources out.
#![allow(dead_code, reason = "each test file uses a part")]

use std::path::Path;

use tidegate_api::resource::{Backend, Body, Gateway, Kind, Peer, ResourceKey, Service};
use tidegate_control::config::NodeFile;
use tidegate_control::model::Name;
use tidegate_control::reconcile::Reconciler;
use tidegate_control::resolve::note::Note;
use tidegate_control::source::{Batch, ObjectKey, ObjectKind, manifest};
use tidegate_control::status::StatusWriter;
use tidegate_control::watch::Dialect;

pub fn node_file(directory: &Path, extra: &str) -> NodeFile {
    let at = |name: &str| directory.join(name).display().to_string();
    NodeFile::parse(&format!(
        "node: gw-1\nsocket: {}\nstateDir: {}\ncontrol:\n  source: {{ directory: {} }}\n  \
         fullnatSources: [10.244.9.2, \"fd00:10:244:9::2\"]\n{extra}",
        at("tidegate.sock"),
        at("state"),
        at("manifests")
    ))
    .unwrap()
}

/// A reconciler that is fed text and asked for resources.
pub struct Rig(pub Reconciler);

impl Rig {
    pub fn new() -> Self {
        Self::with(Dialect::Files, "")
    }

    pub fn with(dialect: Dialect, extra: &str) -> Self {
        Rig(Reconciler::new(node_file(Path::new("/nowhere"), extra), dialect, StatusWriter::silent()))
    }

    pub fn apply(&mut self, yaml: &str) -> &mut Self {
        let content = manifest::parse("test.yaml", yaml).unwrap();
        assert!(content.nameless.is_empty(), "{:?}", content.nameless);
        self.0.take(Batch { applied: content.manifests, complete: true, ..Batch::default() });
        self
    }

    pub fn delete(&mut self, kind: ObjectKind, name: &str) -> &mut Self {
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        let key = ObjectKey { kind, namespace: namespace.into(), name: name.into() };
        self.0.take(Batch { deleted: vec![key], complete: true, ..Batch::default() });
        self
    }

    pub fn body(&self, kind: Kind, name: &str) -> Option<&Body> {
        self.0.resources().get(&ResourceKey { kind, name: name.into() }).map(|resource| &resource.body)
    }

    pub fn version(&self, kind: Kind, name: &str) -> String {
        self.0.resources()[&ResourceKey { kind, name: name.into() }].version.clone()
    }

    pub fn find_service(&self, name: &str) -> Option<&Service> {
        match self.body(Kind::Service, name)? {
            Body::Service(service) => Some(service),
            other => panic!("{other:?}"),
        }
    }

    pub fn service(&self, name: &str) -> &Service {
        self.find_service(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.0.resources()))
    }

    pub fn peer(&self, name: &str) -> Option<&Peer> {
        match self.body(Kind::Peer, name)? {
            Body::Peer(peer) => Some(peer),
            other => panic!("{other:?}"),
        }
    }

    pub fn gateway(&self) -> Option<&Gateway> {
        match self.body(Kind::Gateway, "gw-1")? {
            Body::Gateway(gateway) => Some(gateway),
            other => panic!("{other:?}"),
        }
    }

    /// Backends of one port as `address:port*weight`, in order.
    pub fn backends(&self, service: &str, port: u16) -> Vec<String> {
        let port = self.service(service).ports.iter().find(|candidate| candidate.port == port).unwrap();
        port.backends.iter().map(show).collect()
    }

    /// `condition/reason` of each note but those about endpoints, which most Services of these tests do without.
    pub fn notes(&self, service: &str) -> Vec<String> {
        let about_service = |note: &&Note| !["EndpointsFound", "BackendsReachable"].contains(&note.kind);
        let notes = self.all_notes(service).iter().filter(about_service);
        notes.map(|note| format!("{}/{}", note.kind, note.reason)).collect()
    }

    pub fn all_notes(&self, service: &str) -> &[Note] {
        let (namespace, name) = service.split_once('/').unwrap();
        self.0.notes(&Name { namespace: namespace.into(), name: name.into() })
    }

    /// Reason and message of a condition that does not hold.
    pub fn note(&self, service: &str, kind: &str) -> Option<(&'static str, &str)> {
        let note = self.all_notes(service).iter().find(|note| note.kind == kind)?;
        Some((note.reason, &note.message))
    }

    pub fn problems(&self) -> Vec<String> {
        self.0.problems().iter().map(ToString::to_string).collect()
    }

    /// Everything about an object is found in one problem that contains all of `parts`.
    pub fn expect_problem(&self, parts: &[&str]) {
        let problems = self.problems();
        let fits = |problem: &String| parts.iter().all(|part| problem.contains(part));
        assert!(problems.iter().any(fits), "no problem with {parts:?} in {problems:#?}");
    }
}

pub fn show(backend: &Backend) -> String {
    format!("{}*{}", std::net::SocketAddr::new(backend.address, backend.port), backend.weight)
}

/// A Service `shop/NAME` with the fields of `spec` given as flow YAML.
pub fn service(name: &str, spec: &str) -> String {
    service_with(name, "", spec)
}

/// The same with more metadata.
pub fn service_with(name: &str, metadata: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name}, namespace: shop, {metadata} }}\n\
         spec: {{ type: LoadBalancer, {spec} }}\n---\n"
    )
}

/// An EndpointSlice of `shop/SERVICE` with ports and endpoints as flow YAML.
pub fn slice(name: &str, service: &str, family: &str, ports: &str, endpoints: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{ name: {name}, namespace: shop, labels: {{ kubernetes.io/service-name: {service} }} }}\n\
         addressType: {family}\nports: [{ports}]\nendpoints: [{endpoints}]\n---\n"
    )
}

/// Endpoints from `address` or `address=conditions`, where conditions are letters: r(eady), s(erving), t(erminating);
/// none of them given leaves all conditions out.
pub fn endpoints(list: &[&str]) -> String {
    let one = |text: &&str| match text.split_once('=') {
        None => format!("{{ addresses: [\"{text}\"] }}"),
        Some((address, letters)) => format!(
            "{{ addresses: [\"{address}\"], conditions: {{ ready: {}, serving: {}, terminating: {} }} }}",
            letters.contains('r'),
            letters.contains('s'),
            letters.contains('t')
        ),
    };
    list.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// A Node of the overlay; `n` numbers it as the examples do.
pub fn node(name: &str, n: u8) -> String {
    node_with(
        name,
        &format!("podCIDRs: [10.244.{n}.0/24, \"fd00:10:244:{n}::/64\"]"),
        &[
            ("kube-subnet-manager", "true"),
            ("backend-type", "vxlan"),
            ("backend-data", &format!("{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:04:{n:02x}\"}}")),
            ("backend-v6-data", &format!("{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:06:{n:02x}\"}}")),
            ("public-ip", &format!("198.51.100.{n}")),
            ("public-ipv6", &format!("2001:db8:2::{n}")),
        ],
    )
}

/// The same Node with labels, given as the inside of flow YAML.
pub fn labelled(node: &str, labels: &str) -> String {
    node.replace("metadata:\n", &format!("metadata:\n  labels: {{ {labels} }}\n"))
}

/// A Node with these flannel annotations.
pub fn node_with(name: &str, spec: &str, annotations: &[(&str, &str)]) -> String {
    let annotations: Vec<String> =
        annotations.iter().map(|(key, value)| format!("    flannel.alpha.coreos.com/{key}: '{value}'\n")).collect();
    let annotations = if annotations.is_empty() { "    none: \"\"\n".into() } else { annotations.concat() };
    format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  annotations:\n{annotations}spec: {{ {spec} }}\n---\n"
    )
}
