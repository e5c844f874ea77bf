//! The manifests of the lab's cluster: YAML as `kubectl get -o yaml` would print it, one file per object.
//!
//! Owns the directory control watches, and writes into a cluster instead while control follows one; refuses to know what control makes of it. Files are written beside their place
//! and renamed into it, as every careful writer does.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::cluster::Cluster;
use crate::topology::{
    ECHO_PORT, FAMILIES, Family, GATEWAY_2_NUMBER, GATEWAY_NUMBER, Node, POD_SCTP_PORT, POD_TCP_PORT, POD_UDP_PORT,
    Pod, SIGNAL_PORT, VIP_ECHO, VIP_EMPTY, VIP_ONLINK, VIP_WEB, VNI, Vip, WEB_PORT, pods, workers,
};

/// Namespace of all the lab's Services.
pub const NAMESPACE: &str = "shop";

/// One port of a Service of the lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Port name.
    pub name: &'static str,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: &'static str,
    /// Port at the VIP.
    pub port: u16,
    /// Port at the pod.
    pub target_port: u16,
}

/// TCP 80 at the VIP, the pods' HTTP server behind it.
pub const HTTP: Port = Port { name: "http", protocol: "TCP", port: WEB_PORT, target_port: POD_TCP_PORT };
/// UDP 53 at the VIP, the pods' UDP server behind it.
pub const ECHO: Port = Port { name: "echo", protocol: "UDP", port: ECHO_PORT, target_port: POD_UDP_PORT };
/// SCTP 2905 at the VIP, the pods' answers to INITs behind it.
pub const SIGNAL: Port = Port { name: "signal", protocol: "SCTP", port: SIGNAL_PORT, target_port: POD_SCTP_PORT };

/// A Service of type LoadBalancer and the pods behind it.
#[derive(Debug, Clone)]
pub struct LabService {
    /// Name in [`NAMESPACE`].
    pub name: String,
    /// Addresses in `status.loadBalancer.ingress`.
    pub vip: Vip,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Ready pods in its EndpointSlices.
    pub pods: Vec<Pod>,
    /// Pods in its EndpointSlices that are told to end and still serve.
    pub terminating: Vec<Pod>,
    /// `externalTrafficPolicy: Local`.
    pub local: bool,
    /// What the annotation `tidegate.io/delivery-mode` says.
    pub mode: Option<&'static str>,
}

impl LabService {
    /// A Service with all pods behind it.
    pub fn new(name: &str, vip: Vip, ports: &[Port]) -> LabService {
        LabService {
            name: name.into(),
            vip,
            ports: ports.to_vec(),
            pods: pods().collect(),
            terminating: Vec::new(),
            local: false,
            mode: None,
        }
    }
}

/// The Services a lab starts with.
pub fn first_services() -> Vec<LabService> {
    let empty = LabService { pods: Vec::new(), ..LabService::new("empty", VIP_EMPTY, &[HTTP, ECHO]) };
    vec![
        LabService::new("web", VIP_WEB, &[HTTP]),
        LabService::new("echo", VIP_ECHO, &[ECHO]),
        LabService::new("onlink", VIP_ONLINK, &[HTTP]),
        empty,
    ]
}

/// The directory of manifests.
#[derive(Debug)]
pub struct Manifests {
    directory: PathBuf,
    /// Counts up with every object written.
    resource_version: u64,
    /// Where objects go instead of the directory.
    cluster: Option<Arc<Cluster>>,
}

impl Manifests {
    /// Makes `directory` with the Nodes, so many gateways among them, and [`first_services`].
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(directory: &Path, gateways: u32) -> Result<Manifests> {
        std::fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        let mut manifests = Manifests { directory: directory.into(), resource_version: 1000, cluster: None };
        for node in workers().chain(crate::topology::gateways(gateways)) {
            manifests.put_node(node, false)?;
        }
        for service in first_services() {
            manifests.put(&service)?;
        }
        Ok(manifests)
    }

    /// Writes into `cluster` from now on, or into the directory again.
    pub fn turn_to(&mut self, cluster: Option<Arc<Cluster>>) {
        self.cluster = cluster;
    }

    /// Where the files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes a Service and its EndpointSlices: a new one, or a new version of an old one. Slices come first, so that
    /// the Service never stands without its endpoints.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn put(&mut self, service: &LabService) -> Result<()> {
        self.put_endpoints(service)?;
        let version = self.next_version();
        self.write(&format!("service-{}.yaml", service.name), &service_yaml(service, version))
    }

    /// Writes only the EndpointSlices of a Service: an endpoint joined or left.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn put_endpoints(&mut self, service: &LabService) -> Result<()> {
        for family in FAMILIES {
            let version = self.next_version();
            let name = slice_name(service, family);
            self.write(&format!("endpointslice-{name}.yaml"), &slice_yaml(service, family, version))?;
        }
        Ok(())
    }

    /// Removes a Service and its EndpointSlices.
    ///
    /// # Errors
    /// When it is not there.
    pub fn delete(&mut self, service: &LabService) -> Result<()> {
        if let Some(cluster) = &self.cluster {
            FAMILIES.into_iter().try_for_each(|family| cluster.delete_slice(&slice_name(service, family)))?;
            return cluster.delete_service(&service.name);
        }
        std::fs::remove_file(self.directory.join(format!("service-{}.yaml", service.name)))?;
        for family in FAMILIES {
            let name = slice_name(service, family);
            std::fs::remove_file(self.directory.join(format!("endpointslice-{name}.yaml")))?;
        }
        Ok(())
    }

    /// Writes a Node; `returns` is what whoever runs the agent there says of it (docs/symmetric.md).
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put_node(&mut self, node: Node, returns: bool) -> Result<()> {
        let version = self.next_version();
        self.write(&format!("node-{}.yaml", node.name()), &node_yaml(node, version, returns))
    }

    /// Writes objects of other kinds under the name of a file.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn put_text(&self, file: &str, text: &str) -> Result<()> {
        self.write(file, text)
    }

    /// Takes such a file away, and says that it is meant: what goes together with all pods waits for that.
    ///
    /// # Errors
    /// When it is not there.
    pub fn remove_text(&self, file: &str) -> Result<()> {
        std::fs::remove_file(self.directory.join(file)).with_context(|| format!("removing {file}"))?;
        let confirm = self.directory.join("confirm-deletes");
        std::fs::write(&confirm, "").with_context(|| format!("writing {}", confirm.display()))
    }

    fn next_version(&mut self) -> u64 {
        self.resource_version += 1;
        self.resource_version
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        if let Some(cluster) = &self.cluster {
            return cluster.apply(text);
        }
        let hidden = self.directory.join(format!(".{name}.new"));
        std::fs::write(&hidden, text).with_context(|| format!("writing {}", hidden.display()))?;
        std::fs::rename(&hidden, self.directory.join(name)).with_context(|| format!("renaming {}", hidden.display()))
    }
}

fn slice_name(service: &LabService, family: Family) -> String {
    match family {
        Family::V4 => format!("{}-ipv4", service.name),
        Family::V6 => format!("{}-ipv6", service.name),
    }
}

/// An identifier that is stable for a name, in the form of a UUID.
fn uid(name: &str) -> String {
    let mut sum = crate::content::Checksum::default();
    sum.add(name.as_bytes());
    let digits = sum.text();
    format!(
        "{}-{}-4{}-8{}-{}{}",
        &digits[..8],
        &digits[8..12],
        &digits[12..15],
        &digits[..3],
        &digits[4..12],
        &digits[..4]
    )
}

/// Last part of the cluster addresses of a Service: from its VIP, so that each has its own.
fn cluster_host(service: &LabService) -> u8 {
    service.vip.v4.octets()[3]
}

fn metadata(kind: &str, name: &str, version: u64, extra: &str) -> String {
    format!(
        "metadata:\n  creationTimestamp: \"2025-01-15T08:00:00Z\"\n  name: {name}\n  namespace: {NAMESPACE}\n  \
         resourceVersion: \"{version}\"\n  uid: {}\n{extra}",
        uid(&format!("{kind}/{name}"))
    )
}

fn service_yaml(service: &LabService, version: u64) -> String {
    let host = cluster_host(service);
    let policy = if service.local { "Local" } else { "Cluster" };
    let mut text = String::from("apiVersion: v1\nkind: Service\n");
    let mode = service.mode.map(|mode| format!("  annotations:\n    tidegate.io/delivery-mode: {mode}\n"));
    let extra = format!("{}  labels:\n    app: {}\n", mode.unwrap_or_default(), service.name);
    text += &metadata("Service", &service.name, version, &extra);
    let _ = write!(
        text,
        "spec:\n  allocateLoadBalancerNodePorts: false\n  clusterIP: 10.96.0.{host}\n  clusterIPs:\n  - 10.96.0.{host}\n  \
         - fd00:10:96::{host}\n  externalTrafficPolicy: {policy}\n  internalTrafficPolicy: Cluster\n  ipFamilies:\n  \
         - IPv4\n  - IPv6\n  ipFamilyPolicy: RequireDualStack\n  ports:\n"
    );
    for port in &service.ports {
        let _ = write!(
            text,
            "  - name: {}\n    port: {}\n    protocol: {}\n    targetPort: {}\n",
            port.name, port.port, port.protocol, port.target_port
        );
    }
    let _ = write!(
        text,
        "  selector:\n    app: {}\n  sessionAffinity: None\n  type: LoadBalancer\nstatus:\n  loadBalancer:\n    \
         ingress:\n    - ip: {}\n      ipMode: VIP\n    - ip: {}\n      ipMode: VIP\n",
        service.name, service.vip.v4, service.vip.v6
    );
    text
}

fn slice_yaml(service: &LabService, family: Family, version: u64) -> String {
    let kind = if family == Family::V4 { "IPv4" } else { "IPv6" };
    let mut text = format!("addressType: {kind}\napiVersion: discovery.k8s.io/v1\n");
    if service.pods.is_empty() && service.terminating.is_empty() {
        text += "endpoints: []\n";
    } else {
        text += "endpoints:\n";
    }
    let ready = service.pods.iter().map(|pod| (pod, true));
    for (pod, ready) in ready.chain(service.terminating.iter().map(|pod| (pod, false))) {
        let _ = write!(
            text,
            "- addresses:\n  - {}\n  conditions:\n    ready: {ready}\n    serving: true\n    terminating: {}\n  \
             nodeName: {}\n  targetRef:\n    kind: Pod\n    name: {}\n    namespace: {NAMESPACE}\n    uid: {}\n",
            pod.address(family),
            !ready,
            pod.node().name(),
            pod.name(),
            uid(&format!("Pod/{}", pod.name()))
        );
    }
    text += "kind: EndpointSlice\n";
    let labels = format!(
        "  generateName: {0}-\n  labels:\n    app: {0}\n    \
         endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io\n    \
         kubernetes.io/service-name: {0}\n  ownerReferences:\n  - apiVersion: v1\n    blockOwnerDeletion: true\n    \
         controller: true\n    kind: Service\n    name: {0}\n    uid: {1}\n",
        service.name,
        uid(&format!("Service/{}", service.name))
    );
    text += &metadata("EndpointSlice", &slice_name(service, family), version, &labels);
    text += "ports:\n";
    for port in &service.ports {
        let _ = write!(text, "- name: {}\n  port: {}\n  protocol: {}\n", port.name, port.target_port, port.protocol);
    }
    text
}

/// A Node as flannel annotates it (V-021).
fn node_yaml(node: Node, version: u64, returns: bool) -> String {
    let name = node.name();
    let flannel = "flannel.alpha.coreos.com";
    let data = |family| format!("'{{\"VNI\":{VNI},\"VtepMAC\":\"{}\"}}'", node.vtep_mac(family));
    let (v4, v6) = (node.underlay(Family::V4), node.underlay(Family::V6));
    let is_gateway = [GATEWAY_NUMBER, GATEWAY_2_NUMBER].contains(&node.number);
    let label = match (is_gateway, returns) {
        (true, _) => "    tidegate.io/gateway: \"\"\n",
        (false, true) => "    tidegate.io/symmetric: \"true\"\n",
        (false, false) => "",
    };
    let (cidr_v4, cidr_v6) = (node.pod_cidr(Family::V4), node.pod_cidr(Family::V6));
    format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  annotations:\n    {flannel}/backend-data: {}\n    \
         {flannel}/backend-type: vxlan\n    {flannel}/backend-v6-data: {}\n    \
         {flannel}/kube-subnet-manager: \"true\"\n    {flannel}/public-ip: {v4}\n    {flannel}/public-ipv6: {v6}\n  \
         creationTimestamp: \"2025-01-15T07:00:00Z\"\n  labels:\n    kubernetes.io/hostname: {name}\n    \
         kubernetes.io/os: linux\n{label}  name: {name}\n  resourceVersion: \"{version}\"\n  uid: {}\nspec:\n  \
         podCIDR: {cidr_v4}\n  podCIDRs:\n  - {cidr_v4}\n  - {cidr_v6}\nstatus:\n  addresses:\n  \
         - address: {v4}\n    type: InternalIP\n  - address: {v6}\n    type: InternalIP\n  - address: {name}\n    \
         type: Hostname\n  conditions:\n  - lastHeartbeatTime: \"2025-01-15T08:00:00Z\"\n    \
         lastTransitionTime: \"2025-01-15T07:00:10Z\"\n    message: kubelet is posting ready status\n    \
         reason: KubeletReady\n    status: \"True\"\n    type: Ready\n",
        data(Family::V4),
        data(Family::V6),
        uid(&format!("Node/{name}"))
    )
}
