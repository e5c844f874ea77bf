//! A cluster, the programs that serve it, and what they have told their dataplanes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tidegate_api::frame;
use tidegate_api::listen::Listener;
use tidegate_api::message::{Accepted, AddressConflict, Request, Response};
use tidegate_api::resource::{Body, Resource, ResourceKey, Service, Versions};
use tidegate_api::show::{EgressShown, Show, Shown};
use tidegate_apiserver::rbac::Rules;
use tidegate_apiserver::{ApiServer, Options};

/// Longest wait for something that must happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What control may do, and nothing else (C-023).
pub fn role() -> Rules {
    role_without("nothing")
}

/// The same without one of the resources that are only read.
pub fn role_without(withheld: &str) -> Rules {
    let read = ["get", "list", "watch"];
    let with = |resources: &[&'static str]| -> Vec<&str> {
        resources.iter().filter(|resource| **resource != withheld).copied().collect()
    };
    Rules::default()
        .and(&[""], &["services", "nodes"], &read)
        .and(&[""], &with(&["namespaces", "pods"]), &read)
        .and(&[""], &["services", "services/status"], &["patch"])
        .and(&["discovery.k8s.io"], &["endpointslices"], &read)
        .and(&["coordination.k8s.io"], &["leases"], &["get", "create", "update"])
        .and(&["events.k8s.io"], &["events"], &["create", "patch"])
        .and(&["networking.k8s.io"], &["networkpolicies"], &read)
        .and(&["policy.networking.k8s.io"], &with(&["clusternetworkpolicies"]), &read)
        .and(&["tidegate.io"], &["addresspools", "egresspolicies", "gatewaypolicies", "staticnats"], &read)
        .and(
            &["tidegate.io"],
            &["addresspools/status", "egresspolicies/status", "gatewaypolicies/status", "staticnats/status"],
            &["patch"],
        )
}

/// A cluster with two Nodes that are gateways, two that are not, and a pool of both families.
pub fn cluster() -> ApiServer {
    let server = ApiServer::start(Options::default()).unwrap();
    for (name, n) in [("gw-1", 9), ("gw-2", 10), ("w1", 1), ("w2", 2)] {
        server.apply(&node(name, n)).unwrap();
    }
    server.apply(&pool("edge", &["203.0.113.0/24", "2001:db8:77::/120"])).unwrap();
    for user in ["gw-1", "gw-2"] {
        server.add_user(user, role());
    }
    server
}

pub fn pool(name: &str, addresses: &[&str]) -> String {
    format!(
        "apiVersion: tidegate.io/v1alpha1\nkind: AddressPool\nmetadata: {{ name: {name} }}\nspec: {{ addresses: {addresses:?} }}\n---\n"
    )
}

/// A Node of the overlay.
pub fn node(name: &str, n: u8) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  annotations:\n    \
         flannel.alpha.coreos.com/kube-subnet-manager: 'true'\n    \
         flannel.alpha.coreos.com/backend-type: vxlan\n    \
         flannel.alpha.coreos.com/backend-data: '{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:04:{n:02x}\"}}'\n    \
         flannel.alpha.coreos.com/backend-v6-data: '{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:06:{n:02x}\"}}'\n    \
         flannel.alpha.coreos.com/public-ip: 198.51.100.{n}\n    \
         flannel.alpha.coreos.com/public-ipv6: 2001:db8:2::{n}\n\
         spec: {{ podCIDRs: [10.244.{n}.0/24, \"fd00:10:244:{n}::/64\"] }}\n---\n"
    )
}

/// A Service `shop/NAME` of type LoadBalancer and both families; `spec` is the rest as flow YAML.
pub fn service(name: &str, spec: &str) -> String {
    let spec = if spec.is_empty() { "ports: [{ name: http, port: 80 }]" } else { spec };
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name}, namespace: shop }}\n\
         spec: {{ type: LoadBalancer, ipFamilies: [IPv4, IPv6], ipFamilyPolicy: RequireDualStack, \
         selector: {{ app: {name} }}, {spec} }}\n---\n"
    )
}

/// Slices of `shop/SERVICE`, one of each family; hosts are last numbers of pods on `w1`.
pub fn slices(service: &str, hosts: &[u8]) -> String {
    let slice = |family: &str, prefix: &str| {
        let endpoint =
            |host: &u8| format!("{{ addresses: [\"{prefix}{host}\"], conditions: {{ ready: true }}, nodeName: w1 }}");
        let endpoints: Vec<String> = hosts.iter().map(endpoint).collect();
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{ name: {service}-{}, namespace: shop, labels: {{ kubernetes.io/service-name: {service} }} }}\n\
             addressType: {family}\nports: [{{ name: http, port: 8080, protocol: TCP }}]\nendpoints: [{}]\n---\n",
            family.to_lowercase(),
            endpoints.join(", ")
        )
    };
    slice("IPv4", "10.244.1.") + &slice("IPv6", "fd00:10:244:1::")
}

/// What a dataplane holds, and how it behaves.
#[derive(Default)]
pub struct Dataplane {
    pub resources: BTreeMap<ResourceKey, Resource>,
    pub updates: usize,
    /// How many of them it was told before the update that brought them in force.
    pub prepared: usize,
    generation: u64,
    /// Updates are taken and not answered until this is false again.
    pub silent: bool,
    /// Every conversation ends at once.
    pub gone: bool,
    /// What external addresses are used for.
    pub egress: EgressShown,
    /// Addresses for which somebody else answers; told with that.
    pub conflicts: Vec<AddressConflict>,
    streams: Vec<UnixStream>,
}

/// One gateway: the program, and a stand-in for its dataplane that does as it is told.
pub struct Gateway {
    pub home: TempDir,
    dataplane: Arc<Mutex<Dataplane>>,
    child: Option<Child>,
}

impl Gateway {
    /// The program of the Node `name`, with more lines for the `control` section.
    pub fn start(server: &ApiServer, name: &str, control: &str) -> Self {
        let home = TempDir::new().unwrap();
        let kubeconfig = home.path().join("kubeconfig");
        fs::write(&kubeconfig, server.kubeconfig(name)).unwrap();
        let source = format!(
            "kubernetes:\n      kubeconfig: {}\n      leaseSeconds: {{ duration: 2.5, renew: 1.5, retry: 0.25 }}",
            kubeconfig.display()
        );
        Self::following(home, name, &source, control)
    }

    /// The same without a cluster: it follows the folder [`Self::manifests`].
    pub fn of_directory(name: &str) -> Self {
        let home = TempDir::new().unwrap();
        let manifests = home.path().join("manifests");
        fs::create_dir(&manifests).unwrap();
        Self::following(home, name, &format!("directory: {}", manifests.display()), "")
    }

    /// Where that one finds its objects.
    pub fn manifests(&self) -> PathBuf {
        self.home.path().join("manifests")
    }

    fn following(home: TempDir, name: &str, source: &str, control: &str) -> Self {
        let at = |file: &str| home.path().join(file).display().to_string();
        let n = if name == "gw-1" { 9 } else { 10 };
        let text = format!(
            "node: {name}\nsocket: {}\nstateDir: {}\ncontrol:\n  source:\n    {source}\n  \
             fullnatSources: [10.244.{n}.2, \"fd00:10:244:{n}::2\"]\n{control}",
            at("tidegate.sock"),
            at("state")
        );
        fs::write(home.path().join("node.yaml"), text).unwrap();
        let dataplane = Arc::new(Mutex::new(Dataplane::default()));
        let listener = Listener::bind(&home.path().join("tidegate.sock"), 0o600).unwrap();
        let state = dataplane.clone();
        thread::spawn(move || {
            while let Ok(stream) = listener.accept() {
                let state = state.clone();
                thread::spawn(move || converse(&state, stream));
            }
        });
        let mut gateway = Gateway { home, dataplane, child: None };
        gateway.run();
        gateway
    }

    /// Starts the program (again).
    pub fn run(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.home.path().join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate-control"));
        command.arg("--config").arg(self.home.path().join("node.yaml"));
        command
            .env("RUST_LOG", "info,tidegate_control=debug,kube_client=error")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    pub fn dataplane(&self) -> MutexGuard<'_, Dataplane> {
        self.dataplane.lock().unwrap()
    }

    /// Ends what conversations there are.
    pub fn cut_dataplane(&self) {
        for stream in self.dataplane().streams.drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Has every update answered from now on, and those that were not.
    pub fn answer(&self) {
        self.dataplane().silent = false;
    }

    pub fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Kills the program as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Ends the program as an operator does.
    pub fn terminate(&mut self) {
        self.signal("-TERM");
        assert!(self.child.take().unwrap().wait().unwrap().success());
    }

    /// The Service as its dataplane holds it.
    pub fn service(&self, name: &str) -> Option<Service> {
        let dataplane = self.dataplane();
        dataplane.resources.values().find_map(|resource| match &resource.body {
            Body::Service(service) if resource.name == format!("shop/{name}") => Some(service.clone()),
            _ => None,
        })
    }

    /// Waits until the dataplane holds what fits.
    pub fn until(&self, what: &str, fits: impl Fn(&Self) -> bool) {
        until(what, || fits(self));
    }

    /// Waits until the Service has so many endpoints in both families together.
    pub fn until_endpoints(&self, name: &str, count: usize) {
        self.until(&format!("{name} with {count} endpoints"), |gateway| {
            gateway.service(name).is_some_and(|service| service.ports[0].backends.len() == count)
        });
    }

    /// Waits for a problem with that reason; its text.
    pub fn problem(&self, reason: &str) -> String {
        self.problem_with(reason, "")
    }

    /// Waits for a problem with that reason that says `part`; its text.
    pub fn problem_with(&self, reason: &str, part: &str) -> String {
        let path = self.home.path().join("state/status/problems.json");
        let found = || {
            let list: Value = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
            let of_reason = list["problems"].as_array()?.iter().filter(|problem| problem["reason"] == reason);
            of_reason.map(Value::to_string).find(|problem| problem.contains(part))
        };
        let told = RefCell::default();
        until(&format!("{reason} {part}"), || {
            *told.borrow_mut() = found();
            told.borrow().is_some()
        });
        told.into_inner().unwrap_or_default()
    }

    /// Waits until no problem has that reason.
    pub fn without_problem(&self, reason: &str) {
        let path = self.home.path().join("state/status/problems.json");
        until(&format!("no {reason}"), || {
            fs::read_to_string(&path).is_ok_and(|text| text.contains("problems") && !text.contains(reason))
        });
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let log = self.log();
            let tail = log.len().saturating_sub(12_000);
            eprintln!(
                "--- log of {}\n{}",
                self.home.path().display(),
                String::from_utf8_lossy(&log.as_bytes()[tail..])
            );
        }
    }
}

/// Speaks the contract as a dataplane does that takes everything.
fn converse(state: &Mutex<Dataplane>, stream: UnixStream) -> Option<()> {
    let mut reading = stream.try_clone().ok()?;
    let mut writing = stream.try_clone().ok()?;
    {
        let mut dataplane = state.lock().ok()?;
        if dataplane.gone {
            return None;
        }
        dataplane.streams.push(stream);
    }
    let mut prepared = BTreeMap::new();
    while let Ok(request) = frame::read::<Request>(&mut reading) {
        let answers = match request {
            Request::Hello { .. } => {
                let dataplane = state.lock().ok()?;
                let holds = dataplane.resources.iter().map(|(key, resource)| (key.clone(), resource.version.clone()));
                let holds: Versions = holds.collect();
                let reached = dataplane.generation;
                vec![Response::Welcome { contract: 1, server: "stand-in".into(), holds, reached, prepares: true }]
            }
            Request::Update(update) => {
                while state.lock().ok()?.silent {
                    thread::sleep(Duration::from_millis(2));
                }
                let mut dataplane = state.lock().ok()?;
                if update.full {
                    dataplane.resources.clear();
                }
                if update.prepared {
                    dataplane.prepared = prepared.len();
                    dataplane.resources.append(&mut prepared);
                }
                for key in &update.removed {
                    dataplane.resources.remove(key);
                }
                dataplane.resources.extend(update.resources.into_iter().map(|resource| (resource.key(), resource)));
                dataplane.updates += 1;
                dataplane.generation += 1;
                let generation = dataplane.generation;
                let accepted = Accepted { nonce: update.nonce, generation, rejected: Vec::new() };
                vec![Response::Accepted(accepted), Response::Reached { generation }]
            }
            Request::Prepare(told) => {
                prepared.extend(told.resources.into_iter().map(|resource| (resource.key(), resource)));
                Vec::new()
            }
            Request::Show(Show::Egress) => {
                let dataplane = state.lock().ok()?;
                let conflicts = Response::Conflicts { addresses: dataplane.conflicts.clone() };
                vec![Response::Shown(Shown::Egress(dataplane.egress.clone())), conflicts]
            }
            _ => Vec::new(),
        };
        for answer in answers {
            frame::write(&mut writing, &answer).ok()?;
        }
    }
    None
}

/// Waits until something is so.
pub fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(3));
    }
}

/// Waits until a Service of the namespace `shop` fits.
pub fn until_service(server: &ApiServer, name: &str, fits: impl Fn(&Value) -> bool) -> Value {
    server.wait_for("services", "shop", name, PATIENCE, fits).unwrap()
}

/// Addresses in status.
pub fn ingress(service: &Value) -> Vec<String> {
    let list = service["status"]["loadBalancer"]["ingress"].as_array();
    list.into_iter().flatten().filter_map(|entry| Some(entry["ip"].as_str()?.to_owned())).collect()
}

pub fn is_held(service: &Value) -> bool {
    let list = service["metadata"]["finalizers"].as_array();
    list.into_iter().flatten().any(|finalizer| finalizer == "service.kubernetes.io/load-balancer-cleanup")
}

/// Waits for both addresses in status.
pub fn until_served(server: &ApiServer, name: &str) -> Vec<String> {
    ingress(&until_service(server, name, |service| ingress(service).len() == 2))
}

/// Reasons of the events of a Service, in the order in which they happened.
pub fn events(server: &ApiServer, name: &str) -> Vec<String> {
    let mut found: Vec<(String, String)> = server
        .list("events.events.k8s.io", "shop")
        .iter()
        .filter(|event| event["regarding"]["name"] == name)
        .filter_map(|event| Some((event["eventTime"].as_str()?.to_owned(), event["reason"].as_str()?.to_owned())))
        .collect();
    found.sort();
    found.into_iter().map(|(_, reason)| reason).collect()
}

pub fn condition<'a>(service: &'a Value, kind: &str) -> &'a Value {
    let list = service["status"]["conditions"].as_array();
    list.into_iter().flatten().find(|condition| condition["type"] == kind).unwrap_or(&Value::Null)
}

/// Nothing that the role forbids was tried.
pub fn expect_nothing_denied(server: &ApiServer) {
    let denied = server.denied();
    assert!(denied.is_empty(), "{denied:#?}");
}

/// Writes of Services by `user` that were answered well.
pub fn writes(server: &ApiServer, user: &str) -> usize {
    let about_services = server.requests().into_iter().filter(|request| request.asked.resource == "services");
    about_services.filter(|request| request.is_write() && request.user == user && request.code < 300).count()
}

/// A file of a gateway once it is there and fits.
pub fn file(gateway: &Gateway, name: &str, fits: impl Fn(&Value) -> bool) -> Value {
    let path: &Path = &gateway.home.path().join("state/status").join(name);
    let read = || fs::read(path).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    until(name, || read().as_ref().is_some_and(&fits));
    read().unwrap()
}
