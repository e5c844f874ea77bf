//! The lab's cluster: an API server in the gateway's namespace, for a control that takes its objects from there.
//!
//! Owns the server, who may do what with it, and the lab's pool of addresses. Refuses to know what control makes of it:
//! what a check reads here is what any client of the API would. The server is a part of this process, so that a check may
//! do by hand what nobody watches; its sockets are the gateway's.

use std::fmt;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::fd::AsFd;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use tidegate_apiserver::rbac::Rules;
use tidegate_apiserver::{ApiServer, Options};

use crate::manifest::NAMESPACE;

/// Where the Lease is: the namespace that the manifests make.
pub const LEASE_NAMESPACE: &str = "tidegate";
/// Longest wait for something that control must do; rows tell how long it took.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Who control is to the server.
const USER: &str = "tidegate";
/// The roles of an installation: what they do not allow, control may not do here either.
const ROLES: &str = include_str!("../../deploy/manifests/tidegate.yaml");
/// Who the agents on workers are.
const AGENT: &str = "tidegate-node-agent";
/// What they may read: the role in the chart, which the plain manifests are without.
const WORKER_RIGHTS: &[(&str, &[&str])] =
    &[("", &["nodes", "namespaces", "pods"]), ("tidegate.io", &["egresspolicies", "staticnats"])];
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
/// All addresses that are routed to the gateway, and the pair that it announces.
const POOL: &str = "apiVersion: tidegate.io/v1alpha1\nkind: AddressPool\nmetadata: { name: lab }\nspec:\n  \
                    avoidBuggyIPs: true\n  addresses: [203.0.113.0/24, \"2001:db8:f::1-2001:db8:f::ff\", \
                    192.0.2.200/32, \"2001:db8:1::200/128\"]\n";

/// An API server that serves the lab's objects.
pub struct Cluster {
    server: ApiServer,
    kubeconfig: PathBuf,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Cluster").field("url", &self.server.url()).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Starts a server at an address of a namespace; it has the lab's pool and no other object of the lab.
    ///
    /// # Errors
    /// When there is no such namespace, or no server can be had in it.
    pub fn start(namespace: &str, listen: IpAddr, state_dir: &Path) -> Result<Cluster> {
        let path = Path::new("/run/netns").join(namespace);
        let network = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        // Threads have the network of the one that made them: those of the server stay in there, and this process does not
        // go with them.
        let options = Options { listen: SocketAddr::new(listen, 0), ..Options::default() };
        let start = move || -> Result<ApiServer> {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(ApiServer::start(options)?)
        };
        let server = std::thread::spawn(start).join().map_err(|_| anyhow!("the API server panicked"))??;
        server.add_user(USER, Rules::from_cluster_role(ROLES)?);
        let kubeconfig = state_dir.join("kubeconfig");
        std::fs::write(&kubeconfig, server.kubeconfig(USER))?;
        server.apply(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{ name: {LEASE_NAMESPACE} }}\n"))?;
        server.apply(POOL)?;
        Ok(Cluster { server, kubeconfig })
    }

    /// A file that leads an agent on a worker here, with the rights it has in an installation.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig_of_agent(&self, directory: &Path) -> Result<PathBuf> {
        let rules = WORKER_RIGHTS.iter().fold(Rules::default(), |rules, (group, resources)| {
            rules.and(&[group], resources, &["get", "list", "watch"])
        });
        self.server.add_user(AGENT, rules);
        let path = directory.join("kubeconfig-of-agent");
        std::fs::write(&path, self.server.kubeconfig(AGENT))?;
        Ok(path)
    }

    /// One of the objects that are in no namespace; `null` if it is not there.
    pub fn object(&self, resource: &str, name: &str) -> Value {
        self.server.get(resource, "", name).unwrap_or_default()
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// When it is not there.
    pub fn delete(&self, resource: &str, namespace: &str, name: &str) -> Result<()> {
        self.server.delete(resource, namespace, name)?;
        Ok(())
    }

    /// The file that leads control here.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Applies every manifest of a directory.
    ///
    /// # Errors
    /// When one cannot be read, or is refused.
    pub fn load(&self, directory: &Path) -> Result<()> {
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "yaml") {
                self.apply(&std::fs::read_to_string(&path)?).with_context(|| path.display().to_string())?;
            }
        }
        Ok(())
    }

    /// Applies objects as somebody who may do everything.
    ///
    /// # Errors
    /// What the server refuses.
    pub fn apply(&self, text: &str) -> Result<()> {
        self.server.apply(text)?;
        Ok(())
    }

    /// Changes one of the lab's Services.
    ///
    /// # Errors
    /// When it is not there, and what the server refuses.
    pub fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
        self.server.edit("services", NAMESPACE, name, change)?;
        Ok(())
    }

    /// One of the lab's Services; `null` if it is not there.
    pub fn service(&self, name: &str) -> Value {
        self.server.get("services", NAMESPACE, name).unwrap_or_default()
    }

    /// All of the lab's Services.
    pub fn services(&self) -> Vec<Value> {
        self.server.list("services", NAMESPACE)
    }

    /// Waits until a Service (`null` while it is not there) fits.
    ///
    /// # Errors
    /// When it does not; with its last state.
    pub fn await_service(&self, name: &str, fits: impl Fn(&Value) -> bool) -> Result<Value> {
        Ok(self.server.wait_for("services", NAMESPACE, name, PATIENCE, fits)?)
    }

    /// Deletes a Service and waits until control lets it go.
    ///
    /// # Errors
    /// When it is not there, or stays.
    pub fn delete_service(&self, name: &str) -> Result<()> {
        self.server.delete("services", NAMESPACE, name)?;
        Ok(self.server.wait_gone("services", NAMESPACE, name, PATIENCE)?)
    }

    /// Deletes a Service and does not wait.
    ///
    /// # Errors
    /// When it is not there.
    pub fn begin_deletion(&self, name: &str) -> Result<()> {
        self.server.delete("services", NAMESPACE, name)?;
        Ok(())
    }

    /// Deletes an EndpointSlice.
    ///
    /// # Errors
    /// When it is not there.
    pub fn delete_slice(&self, name: &str) -> Result<()> {
        self.server.delete("endpointslices", NAMESPACE, name)?;
        Ok(())
    }

    /// Deletes an AddressPool.
    ///
    /// # Errors
    /// When it is not there.
    pub fn delete_pool(&self, name: &str) -> Result<()> {
        self.server.delete("addresspools", "", name)?;
        Ok(())
    }

    /// Deletes a GatewayPolicy.
    ///
    /// # Errors
    /// When it is not there.
    pub fn delete_gateway_policy(&self, name: &str) -> Result<()> {
        self.server.delete("gatewaypolicies", "", name)?;
        Ok(())
    }

    /// Waits until a GatewayPolicy (`null` while it is not there) fits.
    ///
    /// # Errors
    /// When it does not; with its last state.
    pub fn await_gateway_policy(&self, name: &str, fits: impl Fn(&Value) -> bool) -> Result<Value> {
        Ok(self.server.wait_for("gatewaypolicies", "", name, PATIENCE, fits)?)
    }

    /// Cuts all connections and takes no new ones; objects may be changed by hand meanwhile.
    ///
    /// # Errors
    /// When the server has ended.
    pub fn go_away(&self) -> Result<()> {
        self.server.stop()?;
        // Each connection is cut by its own task: what is changed from now on is not to slip through.
        std::thread::sleep(Duration::from_millis(300));
        Ok(())
    }

    /// Serves again.
    ///
    /// # Errors
    /// When its address cannot be had any more.
    pub fn come_back(&self) -> Result<()> {
        Ok(self.server.start_again()?)
    }

    /// Reasons of the events of a Service, in the order in which they happened.
    pub fn events(&self, name: &str) -> Vec<String> {
        let events = self.server.list("events.events.k8s.io", NAMESPACE);
        let of_it = events.iter().filter(|event| event["regarding"]["name"] == name);
        let mut found: Vec<(&str, &str)> =
            of_it.filter_map(|event| Some((event["eventTime"].as_str()?, event["reason"].as_str()?))).collect();
        found.sort_unstable();
        found.into_iter().map(|(_, reason)| reason.into()).collect()
    }

    /// Requests that the roles of an installation do not allow.
    pub fn denied(&self) -> Vec<String> {
        self.server.denied().iter().map(|request| format!("{request:?}")).collect()
    }
}

/// Addresses in the status of a Service.
pub fn ingress(service: &Value) -> Vec<String> {
    let entries = service["status"]["loadBalancer"]["ingress"].as_array();
    entries.into_iter().flatten().filter_map(|entry| Some(entry["ip"].as_str()?.into())).collect()
}

/// Whether a Service has the finalizer of its controller.
pub fn is_held(service: &Value) -> bool {
    let finalizers = service["metadata"]["finalizers"].as_array();
    finalizers.into_iter().flatten().any(|finalizer| finalizer == FINALIZER)
}
