//! Services and EndpointSlices as text.
//!
//! Owns the form of the manifests: a Service without selector for each virtual service, and one EndpointSlice for each
//! port its servers have. What a Service loses stands in comments above it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

use super::Complaint;
use super::ipvs::{Protocol, Rules, Server, VirtualService};

/// Endpoints one EndpointSlice may hold (`discovery.k8s.io/v1`).
const ENDPOINTS_PER_SLICE_MAX: usize = 1000;
/// Stands for every port, since a Service has to list one: it goes to the same number at the server, as every other.
const PORT_OF_EVERY: u16 = 1;

/// The manifests of all rules.
pub(super) fn write(rules: &Rules, namespace: &str) -> String {
    let mut text = String::from("# Made by `tidegate import ipvs`.\n");
    for complaint in &rules.refused {
        comment(&mut text, complaint);
    }
    for service in &rules.services {
        let name = name(service);
        let _ = writeln!(text, "---\n# line {}: {}", service.line, printable(&service.source));
        for complaint in &service.changed {
            comment(&mut text, complaint);
        }
        write_service(&mut text, service, &name, namespace);
        write_slices(&mut text, service, &name, namespace);
    }
    text
}

fn comment(text: &mut String, complaint: &Complaint) {
    let _ = writeln!(text, "# {}", printable(&complaint.to_string()));
}

/// A comment ends at its line: nothing in it may end it earlier.
fn printable(text: &str) -> String {
    text.chars()
        .map(|char| if char.is_control() || matches!(char, '\u{2028}' | '\u{2029}' | '\u{85}') { '?' } else { char })
        .collect()
}

/// A name that Kubernetes takes for a Service (RFC 1035 label): at most 5 + 39 + 5 + 6 characters.
fn name(service: &VirtualService) -> String {
    let address = service.at.address.to_string().replace(['.', ':'], "-");
    format!("ipvs-{address}-{}-{}", protocol(service).to_ascii_lowercase(), service.at.port)
}

fn protocol(service: &VirtualService) -> &'static str {
    match service.at.protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

fn family(service: &VirtualService) -> &'static str {
    if service.at.address.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn port_name(service: &VirtualService) -> String {
    let port = if service.at.port == 0 { "every".into() } else { service.at.port.to_string() };
    format!("{}-{port}", protocol(service).to_ascii_lowercase())
}

fn write_service(text: &mut String, service: &VirtualService, name: &str, namespace: &str) {
    let every = service.at.port == 0;
    let mut line = |words: &str| {
        text.push_str(words);
        text.push('\n');
    };
    line("apiVersion: v1\nkind: Service\nmetadata:");
    line(&format!("  name: {name}\n  namespace: {namespace}\n  annotations:"));
    line(&format!("    tidegate.io/addresses: \"{}\"", service.at.address));
    line("    tidegate.io/delivery-mode: fullnat");
    line(&format!("    tidegate.io/scheduler: {}", service.scheduler));
    if service.hash_without_source_port {
        line("    tidegate.io/hash: without-source-port");
    }
    if service.one_packet {
        line("    tidegate.io/one-packet: \"true\"");
    }
    if every {
        line("    tidegate.io/all-ports: \"true\"");
    }
    if let Some(weights) = weights(&service.servers) {
        line(&format!("    tidegate.io/weights: \"{weights}\""));
    }
    line("spec:\n  type: LoadBalancer");
    line(&format!("  ipFamilies: [{}]\n  ipFamilyPolicy: SingleStack", family(service)));
    if let Some(seconds) = service.affinity_s {
        line("  sessionAffinity: ClientIP");
        line(&format!("  sessionAffinityConfig: {{ clientIP: {{ timeoutSeconds: {seconds} }} }}"));
    }
    line("  ports:");
    if every {
        line("    # Every port is served; the API wants one to be listed.");
    }
    let port = if every { PORT_OF_EVERY } else { service.at.port };
    line(&format!("    - {{ name: {}, protocol: {}, port: {port} }}", port_name(service), protocol(service)));
}

/// The annotation, unless all weights are 1 as they are without it.
fn weights(servers: &[Server]) -> Option<String> {
    let mut first: BTreeMap<IpAddr, u16> = BTreeMap::new();
    for server in servers {
        first.entry(server.address).or_insert(server.weight);
    }
    first.retain(|_, weight| *weight != 1);
    let entries: Vec<String> = first.iter().map(|(address, weight)| format!("{address}={weight}")).collect();
    (!entries.is_empty()).then(|| entries.join(", "))
}

fn write_slices(text: &mut String, service: &VirtualService, name: &str, namespace: &str) {
    let mut by_port: BTreeMap<u16, Vec<IpAddr>> = BTreeMap::new();
    for server in &service.servers {
        let port = if server.port == 0 { PORT_OF_EVERY } else { server.port };
        by_port.entry(port).or_default().push(server.address);
    }
    for (port, addresses) in by_port {
        for (index, part) in addresses.chunks(ENDPOINTS_PER_SLICE_MAX).enumerate() {
            let suffix = if index == 0 { String::new() } else { format!("-{index}") };
            let _ = write!(
                text,
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-{port}{suffix}\n  \
                 namespace: {namespace}\n  labels:\n    kubernetes.io/service-name: {name}\n    \
                 endpointslice.kubernetes.io/managed-by: tidegate-import\naddressType: {}\nports:\n  - {{ name: {}, \
                 protocol: {}, port: {port} }}\nendpoints:\n",
                family(service),
                port_name(service),
                protocol(service),
            );
            for address in part {
                let _ = writeln!(text, "  - addresses: [\"{address}\"]");
            }
        }
    }
}
