//! The Kubernetes API as the source of objects.
//!
//! Owns the connection, one follower per kind and the thread they run on. [`follow`] speaks the protocol, [`kinds`] says
//! what is read of each kind, [`ledger`] makes batches of what is told. Refuses to know what objects mean. Nothing here
//! takes anything away because a server is silent (C-021): until all needed kinds have been listed once nothing is
//! complete, and afterwards only what a list lacks or a watch tells as deleted is gone.
//!
//! A lone change goes on at once. What arrives while the receiver is busy is one batch: here as far as it has arrived,
//! and in the reconciler, which merges what waits for it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use tokio::sync::{mpsc, oneshot, watch};

use super::{Deliver, ObjectKind, Running, Source};
use crate::problem::one_line;
use crate::watch::{Dialect, Exposed};
use follow::{Follow, Told};
use kinds::{
    AddressPool, ClusterNetworkPolicy, EgressPolicy, EndpointSlice, GatewayPolicy, Namespace, NetworkPolicy, Node, Pod,
    Service, StaticNat, Watched,
};
use ledger::Ledger;
use traffic::{Counted, Traffic};

/// The kinds as they are taken from the API.
mod kinds;
/// One kind, listed and watched.
mod follow;
/// What has been told, and what of it goes on.
mod ledger;
/// What was asked of the API and how that ended, in numbers.
pub mod traffic;

/// Threads that parse what arrives: a list of a whole cluster is the one time when this process has much to do.
const THREADS: usize = 2;
/// What a follower may be ahead of the one who makes batches, in messages (pages or single changes).
const AHEAD_MAX: usize = 64;
/// How often it is looked whether more has arrived before a change goes on.
const LOOKS: usize = 4;

/// How to reach an API server, and as whom.
#[derive(Clone, Debug)]
pub struct Access {
    config: Config,
    traffic: Arc<Traffic>,
}

impl Access {
    /// As a kubeconfig file says; without one, as a pod of the cluster.
    ///
    /// # Errors
    /// When the file cannot be used, or this is no pod of a cluster.
    pub fn new(kubeconfig: Option<&Path>) -> io::Result<Self> {
        let Some(path) = kubeconfig else {
            let config = Config::incluster()
                .map_err(|error| io::Error::other(format!("not in a cluster, and no kubeconfig given: {error}")))?;
            return Ok(Access { config, traffic: Arc::default() });
        };
        let explain = |error: &dyn std::fmt::Display| io::Error::other(format!("{}: {error}", path.display()));
        let file = Kubeconfig::read_from(path).map_err(|error| explain(&error))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let context = KubeConfigOptions::default();
        let config =
            runtime.block_on(Config::from_custom_kubeconfig(file, &context)).map_err(|error| explain(&error))?;
        Ok(Access { config, traffic: Arc::default() })
    }

    /// Address of the server.
    pub fn server(&self) -> String {
        self.config.cluster_url.to_string()
    }

    /// The namespace of this process, as far as the access names one.
    pub fn namespace(&self) -> &str {
        &self.config.default_namespace
    }

    /// A client, which lives on the runtime it is made on.
    pub(crate) fn client(&self) -> kube::Result<Client> {
        let client = ClientBuilder::try_from(self.config.clone())?;
        Ok(client.with_layer(&Counted(Arc::clone(&self.traffic))).build())
    }

    /// What was asked by who has this access or a copy of it.
    pub fn traffic(&self) -> Arc<Traffic> {
        Arc::clone(&self.traffic)
    }
}

/// What went wrong, for people: what the server said, or the innermost cause. The outer layers say little.
pub(crate) fn words(error: &kube::Error) -> String {
    use std::error::Error;
    if let kube::Error::Api(status) = error {
        return one_line(format!("{} ({})", status.message, status.code));
    }
    let mut cause: &dyn Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    one_line(cause.to_string())
}

/// Asks for a fresh list of all Services, so that what another has written until now is known.
#[derive(Clone, Debug)]
pub struct Refresh(Arc<watch::Sender<u64>>);

impl Refresh {
    /// Asks for it under a number; the batch with everything says so in [`super::Batch::listed_for`]. Numbers grow.
    pub fn ask(&self, number: u64) {
        self.0.send_replace(number);
    }
}

/// The API source.
#[derive(Debug)]
pub struct Kubernetes {
    access: Access,
    exposed: Exposed,
    refresh: Refresh,
    /// Only what concerns pods of this Node on their way out.
    worker: Option<String>,
}

impl Kubernetes {
    /// All objects that `access` leads to. `exposed` says which Services can be ours.
    pub fn new(access: Access, exposed: Exposed) -> Self {
        Kubernetes { access, exposed, refresh: Refresh(Arc::new(watch::channel(0).0)), worker: None }
    }

    /// What an agent on the Node `worker` needs: EgressPolicies, StaticNats, Namespaces, Nodes, and the Pods of that Node.
    /// All of them are needed: without one of them a pod might be taken for one that leaves by its node.
    pub fn of_worker(access: Access, worker: &str) -> Self {
        Kubernetes { worker: Some(worker.into()), ..Kubernetes::new(access, Exposed::default()) }
    }

    /// For asking for fresh lists.
    pub fn refresh(&self) -> Refresh {
        self.refresh.clone()
    }
}

impl Source for Kubernetes {
    fn dialect(&self) -> Dialect {
        Dialect::Cluster
    }

    fn start(self: Box<Self>, deliver: Deliver) -> io::Result<Running> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("source-api")
            .enable_all()
            .build()?;
        let client = {
            let _inside = runtime.enter();
            self.access.client().map_err(|error| io::Error::other(error.to_string()))?
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::Builder::new().name("source".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = self.run(client, deliver) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        })?;
        let stop = move || {
            let _ = stop.send(()); // it may have ended by itself
        };
        Ok(Running::new(stop, thread))
    }
}

impl Kubernetes {
    async fn run(&self, client: Client, deliver: Deliver) {
        let (tell, told) = mpsc::channel(AHEAD_MAX);
        let traffic = self.access.traffic();
        let mut ledger = Ledger::default();
        let spawn = Spawn {
            client,
            exposed: self.exposed,
            tell,
            refresh: self.refresh.0.subscribe(),
            returns: traffic.returns(),
        };
        if let Some(worker) = &self.worker {
            let here = [Pod::FIELDS.unwrap_or_default(), &format!("spec.nodeName={worker}")].join(",");
            spawn.follow_needed::<EgressPolicy>(&mut ledger, "egresspolicies in tidegate.io", None);
            spawn.follow_needed::<StaticNat>(&mut ledger, "staticnats in tidegate.io", None);
            spawn.follow_needed::<Namespace>(&mut ledger, "namespaces", None);
            spawn.follow_needed::<Node>(&mut ledger, "nodes", None);
            spawn.follow_needed::<Pod>(&mut ledger, "pods", Some(here));
            drop(spawn);
            return gather(ledger, &traffic, told, deliver).await;
        }
        // Only a list of Services is asked for anew.
        spawn.follow::<Service>(&mut ledger, "services", true);
        spawn.follow::<EndpointSlice>(&mut ledger, "endpointslices in discovery.k8s.io", false);
        spawn.follow::<Node>(&mut ledger, "nodes", false);
        spawn.follow::<Namespace>(&mut ledger, "namespaces", false);
        spawn.follow::<Pod>(&mut ledger, "pods", false);
        spawn.follow::<NetworkPolicy>(&mut ledger, "networkpolicies in networking.k8s.io", false);
        spawn.follow::<ClusterNetworkPolicy>(&mut ledger, "clusternetworkpolicies in policy.networking.k8s.io", false);
        spawn.follow::<AddressPool>(&mut ledger, "addresspools in tidegate.io", false);
        spawn.follow::<EgressPolicy>(&mut ledger, "egresspolicies in tidegate.io", false);
        spawn.follow::<GatewayPolicy>(&mut ledger, "gatewaypolicies in tidegate.io", false);
        spawn.follow::<StaticNat>(&mut ledger, "staticnats in tidegate.io", false);
        drop(spawn);
        gather(ledger, &traffic, told, deliver).await;
    }
}

struct Spawn {
    client: Client,
    exposed: Exposed,
    tell: mpsc::Sender<(ObjectKind, Told)>,
    refresh: watch::Receiver<u64>,
    returns: watch::Receiver<u64>,
}

impl Spawn {
    fn follow<K: Watched>(&self, ledger: &mut Ledger, rule: &'static str, refreshed: bool) {
        ledger.keep(K::KIND, K::NEEDED, rule);
        let refresh = match refreshed {
            true => self.refresh.clone(),
            false => watch::channel(0).1, // its sender is gone: it never changes
        };
        self.start::<K>(refresh, K::FIELDS.map(Into::into));
    }

    /// A kind without which nothing can be concluded, where it is not needed otherwise.
    fn follow_needed<K: Watched>(&self, ledger: &mut Ledger, rule: &'static str, fields: Option<String>) {
        ledger.keep(K::KIND, true, rule);
        self.start::<K>(watch::channel(0).1, fields.or_else(|| K::FIELDS.map(Into::into)));
    }

    fn start<K: Watched>(&self, refresh: watch::Receiver<u64>, fields: Option<String>) {
        let api = Api::<K>::all(self.client.clone());
        let (tell, returns) = (self.tell.clone(), self.returns.clone());
        tokio::spawn(Follow { api, exposed: self.exposed, fields, tell, refresh, returns }.run());
    }
}

/// Makes batches of what is told until nobody wants more.
async fn gather(
    mut ledger: Ledger,
    traffic: &Traffic,
    mut told: mpsc::Receiver<(ObjectKind, Told)>,
    mut deliver: Deliver,
) {
    while let Some((kind, first)) = told.recv().await {
        traffic.heard(kind, &first);
        ledger.take(kind, first);
        for _ in 0..LOOKS {
            while let Ok((kind, more)) = told.try_recv() {
                traffic.heard(kind, &more);
                ledger.take(kind, more);
                if let Some(batch) = ledger.batch(true)
                    && !deliver(batch)
                {
                    return;
                }
            }
            tokio::task::yield_now().await;
        }
        if let Some(batch) = ledger.batch(false)
            && !deliver(batch)
        {
            return;
        }
    }
}
