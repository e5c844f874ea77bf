//! A stand-in for the Kubernetes API server, for tests and the lab.
//!
//! Owns a server that clients cannot tell from the real one by what they are allowed to rely on: real HTTPS, HTTP/1.1 and
//! HTTP/2, lists and watches with resource versions, bookmarks and streaming lists, expiry, optimistic conflicts, the status
//! subresource, patches and server-side apply with managed fields, finalizers, roles, and what the server does to Services.
//! A test starts one with [`ApiServer::start`], works on its store with [`ApiServer::apply`] and its like, and breaks it with
//! [`ApiServer::faults`]. Refuses to know Tidegate: nothing in it is made for our controllers.
//!
//! Where it differs from a real server (nothing may depend on these):
//!
//! * No controllers run: no endpoint slices from selectors, no garbage collection by owner, no graceful deletion of pods, no
//!   default ServiceAccounts. `propagationPolicy` is ignored.
//! * JSON and YAML only: no protobuf, no compression, no tables for the command line, no OpenAPI (`kubectl apply` needs
//!   `--validate=false`). No admission webhooks, no CEL rules of custom resources, no `fieldValidation`.
//! * The events of the core group and of `events.k8s.io` are two stores rather than two views of one.
//! * Only the stored version of a custom resource is served. No `scale` subresource, no `exec`, `log` or `proxy`.
//! * Fields of managers follow the rules of structured merge, but one schema stands for all versions, the number of managers is
//!   not limited, and an object without managers is not given `before-first-apply`.
//! * Built-in kinds are read through their types (but Pods and definitions), and checked where Tidegate writes or depends on
//!   them; other values that the real server would refuse are stored.
//! * Revisions count writes only, so they are denser than in a cluster.
#![forbid(unsafe_code)]

/// What is served: groups, versions, scopes, how lists merge.
pub mod kinds;
/// One stored object as text.
pub mod object;
/// Objects, revisions and history.
pub mod store;
/// Label and field selectors.
pub mod selector;
/// The rules of a write.
pub mod write;
/// Defaults and refusals by kind.
pub mod admit;
/// Built-in kinds by their types.
pub mod typed;
/// What the server does to a Service.
pub mod service;
/// Structural schemas of custom resources.
pub mod schema;
/// Patches of three kinds.
pub mod patch;
/// Sets of fields.
pub mod fields;
/// Server-side apply and managed fields.
pub mod apply;
/// Refusals as `Status` objects.
pub mod problem;
/// Users and rules.
pub mod rbac;
/// Faults on demand.
pub mod fault;
/// What was asked.
pub mod log;
/// The test's hand in the store.
pub mod hand;
/// Thousands of objects at once.
pub mod bulk;
/// Certificates.
pub mod tls;
/// Paths, queries and headers.
mod route;
/// Answers to requests.
mod http;
/// Lists.
mod list;
/// Watches.
mod watch;
/// Groups, version, health.
mod discovery;
/// Sockets and connections.
mod connections;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::http::{HeaderMap, header};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::connections::{Order, listen, serve};
use crate::fault::Faults;
use crate::log::Logged;
use crate::problem::Problem;
use crate::rbac::Rules;
use crate::store::Store;

/// How a server is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it listens; port 0 for a free one.
    pub listen: SocketAddr,
    /// Whether it speaks plain HTTP instead of HTTPS.
    pub plain: bool,
    /// Changes that are kept per resource.
    pub history_max: usize,
    /// Time between bookmarks of a watch that asked for them (the real server: about a minute).
    pub bookmark_every: Duration,
    /// How long a watch lasts that does not say (the real server: 30 to 60 minutes).
    pub watch_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            plain: false,
            history_max: 200_000,
            bookmark_every: Duration::from_secs(60),
            watch_timeout: Duration::from_secs(45 * 60),
        }
    }
}

impl Options {
    /// The same, listening at a free port of `[::1]`.
    pub fn v6() -> Options {
        Options { listen: SocketAddr::from((Ipv6Addr::LOCALHOST, 0)), ..Options::default() }
    }
}

/// Who may do what.
#[derive(Clone, Debug)]
pub(crate) struct User {
    pub name: String,
    pub rules: Arc<Rules>,
}

/// What requests, watches and the test's hand share.
pub(crate) struct Shared {
    store: Mutex<Store>,
    pub faults: Faults,
    users: Mutex<BTreeMap<String, User>>,
    requests: Mutex<Vec<Logged>>,
    pub options: Options,
}

impl Shared {
    /// The store, for one step.
    pub fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One step that writes.
    pub fn write<T>(&self, step: impl FnOnce(&mut Store) -> Result<T, Problem>) -> Result<T, Problem> {
        step(&mut self.store())
    }

    fn users(&self) -> MutexGuard<'_, BTreeMap<String, User>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn requests(&self) -> MutexGuard<'_, Vec<Logged>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose token the request has.
    pub fn user_of(&self, headers: &HeaderMap) -> Option<User> {
        let token = headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")?;
        self.users().values().find(|user| token_of(&user.name) == token).cloned()
    }

    pub fn log(&self, line: Logged) {
        tracing::debug!(method = line.method, path = line.path, user = line.user, code = line.code, "request");
        self.requests().push(line);
    }
}

/// The token of `user`. It guards nothing: the server is a test's own.
fn token_of(user: &str) -> String {
    format!("token-of-{user}")
}

/// One running server. Dropping it ends it and frees its port.
pub struct ApiServer {
    pub(crate) shared: Arc<Shared>,
    address: SocketAddr,
    authority_pem: Option<String>,
    orders: UnboundedSender<Order>,
    thread: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// A server that runs, with the namespaces every cluster has and the user `admin` who may do everything.
    ///
    /// # Errors
    /// The address cannot be had, or there are no threads.
    pub fn start(options: Options) -> io::Result<ApiServer> {
        let runtime = Builder::new_multi_thread().worker_threads(2).thread_name("apiserver").enable_all().build()?;
        let listener = {
            let _inside = runtime.enter();
            listen(options.listen)?
        };
        let address = listener.local_addr()?;
        let local = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST), address.ip()];
        let identity = if options.plain { None } else { Some(tls::identity(&local).map_err(io::Error::other)?) };
        let (tls, authority_pem) = identity.map(|identity| (identity.acceptor, identity.authority_pem)).unzip();
        let store = Mutex::new(Store::new(options.history_max));
        let shared =
            Shared { store, faults: Faults::default(), users: Mutex::default(), requests: Mutex::default(), options };
        let shared = Arc::new(shared);
        let (orders, received) = unbounded_channel();
        let serving = serve(shared.clone(), listener, tls, received);
        let thread = std::thread::Builder::new().name("apiserver".to_owned()).spawn(move || run(runtime, serving))?;
        let server = ApiServer { shared, address, authority_pem, orders, thread: Some(thread) };
        server.add_user("admin", Rules::all());
        server.furnish();
        Ok(server)
    }

    fn furnish(&self) {
        let mut store = self.shared.store();
        for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            // A fresh store refuses none of them.
            let _ = hand::make_namespace(&mut store, name);
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL: `https://127.0.0.1:1234`.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.authority_pem.is_some() { "https" } else { "http" }, self.address)
    }

    /// Lets `user` do what `rules` allow, instead of what was allowed before.
    pub fn add_user(&self, user: &str, rules: Rules) {
        self.shared.users().insert(user.to_owned(), User { name: user.to_owned(), rules: Arc::new(rules) });
    }

    /// Knows `user` no longer: 401.
    pub fn remove_user(&self, user: &str) {
        self.shared.users().remove(user);
    }

    /// The bearer token of `user`.
    pub fn token(&self, user: &str) -> String {
        token_of(user)
    }

    /// The certificate of the authority in PEM; none for plain HTTP.
    pub fn authority_pem(&self) -> Option<&str> {
        self.authority_pem.as_deref()
    }

    /// The text of a kubeconfig for `user`.
    pub fn kubeconfig(&self, user: &str) -> String {
        let authority = self
            .authority_pem
            .as_ref()
            .map(|pem| format!("    certificate-authority-data: {}\n", tls::base64(pem.as_bytes())));
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: stand-in\n  cluster:\n    server: {}\n{}users:\n- name: {user}\n  user:\n    \
             token: {}\ncontexts:\n- name: {user}\n  context:\n    cluster: stand-in\n    user: {user}\n    namespace: default\ncurrent-context: {user}\n",
            self.url(),
            authority.unwrap_or_default(),
            token_of(user),
        )
    }

    /// What a test may break.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// All requests so far, in the order of their answers.
    pub fn requests(&self) -> Vec<Logged> {
        self.shared.requests().clone()
    }

    /// Those that a role did not allow.
    pub fn denied(&self) -> Vec<Logged> {
        self.shared.requests().iter().filter(|line| line.denied).cloned().collect()
    }

    /// Forgets the requests so far.
    pub fn clear_requests(&self) {
        self.shared.requests().clear();
    }

    /// Refuses new connections until `start_again`; those that are open go on.
    ///
    /// # Errors
    /// The server is gone.
    pub fn refuse(&self) -> io::Result<()> {
        self.order(Order::Refuse)
    }

    /// Cuts all connections and refuses new ones until `start_again`. The store stays and the test may go on changing it.
    ///
    /// # Errors
    /// The server is gone.
    pub fn stop(&self) -> io::Result<()> {
        self.refuse()?;
        self.shared.faults.cut_connections();
        Ok(())
    }

    /// Accepts connections again, at the same address.
    ///
    /// # Errors
    /// The address cannot be had any more.
    pub fn start_again(&self) -> io::Result<()> {
        self.order(Order::Start)
    }

    /// Empties the store, as a cluster that was lost; its revisions go on. Watches that are open are told 410.
    pub fn empty(&self) {
        self.shared.store().clear();
        self.furnish();
        self.shared.faults.expire_watches();
    }

    fn order(&self, order: impl FnOnce(mpsc::Sender<io::Result<()>>) -> Order) -> io::Result<()> {
        let (done, answer) = mpsc::channel();
        let gone = || io::Error::other("the server has ended");
        self.orders.send(order(done)).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }
}

fn run(runtime: Runtime, serving: impl Future<Output = ()>) {
    runtime.block_on(serving);
    runtime.shutdown_timeout(Duration::from_secs(1));
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        // Whoever listens no longer has ended already.
        let _ = self.orders.send(Order::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
