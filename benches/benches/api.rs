//! A large cluster at an API server, from the first request of its list to the tables of the last worker.
//!
//! Three processes: this one is the API server and the clock; `tidegate-control` as it is shipped; and a dataplane without
//! packets, which is this program once more (socket, server, compiler thread, two readers in place of workers). So time on
//! cores and memory are told apart, and clocks compare: all read the machine's monotonic one.

#![allow(missing_docs)]

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use crossbeam::channel::bounded;
use serde_json::Value;
use tempfile::TempDir;
use tidegate_api::listen::Listener;
use tidegate_apiserver::bulk::Bulk;
use tidegate_apiserver::rbac::Rules;
use tidegate_apiserver::{ApiServer, Options};
use tidegate_benches::fleet::{self, ENDPOINTS, SERVICES};
use tidegate_benches::summary;
use tidegate_dataplane::compile::thread::CompilerThread;
use tidegate_dataplane::objects::saved::Saver;
use tidegate_dataplane::server::mailboxes::Mailboxes;
use tidegate_dataplane::server::{Announcers, Server};
use tidegate_dataplane::table::Tables;

/// Set for the process that is the dataplane: its directory.
const DATAPLANE_IN: &str = "TIDEGATE_BENCH_DATAPLANE_IN";
/// Lists timed.
const LISTS: usize = 3;
/// Single changes timed.
const CHANGES: u32 = 500;
/// Between two of them: they are told of one by one.
const PAUSE: Duration = Duration::from_millis(10);
/// Workers.
const READERS: usize = 2;
/// Time between two looks of a reader at the tables.
const LOOK: Duration = Duration::from_micros(200);
/// Nodes that endpoints are on.
const NODES: u32 = 100;
/// Longest wait for anything: on a crowded machine everything takes its time.
const PATIENCE: Duration = Duration::from_secs(120);
/// Time for what still goes on when all workers have it: status, saving, memory given back.
const SETTLING: Duration = Duration::from_secs(4);
/// What control logs when it knows all objects.
const KNOWN: &str = "the source is known as a whole";

fn main() -> anyhow::Result<()> {
    if let Some(directory) = std::env::var_os(DATAPLANE_IN) {
        return dataplane(Path::new(&directory));
    }
    let mut lists = Vec::new();
    for round in 0..LISTS {
        let mut cluster = Cluster::start(ENDPOINTS.into(), SERVICES)?;
        lists.push(cluster.list()?);
        println!("{:?}", lists[round]);
        if round == 0 {
            changes(&mut cluster)?;
        }
    }
    let empty = Cluster::start(0, 0)?.list()?.memory;
    let lean = Cluster::start(1, SERVICES)?.list()?.memory;
    tell_lists(&lists)?;
    let full = [0, 1].map(|process| median(lists.iter().map(|list| list.memory[process])));
    for (process, name) in ["control", "dataplane"].into_iter().enumerate() {
        let services = f64::from(SERVICES);
        let per_endpoint = (full[process] - lean[process]) / (services * f64::from(ENDPOINTS - 1));
        let per_service = (lean[process] - empty[process]) / services - per_endpoint;
        tell(&format!("memory/{name}_per_service"), per_service, "bytes")?;
        tell(&format!("memory/{name}_per_endpoint"), per_endpoint, "bytes")?;
        tell(&format!("memory/{name}_resident"), full[process] / 1e6, "MB")?;
    }
    Ok(())
}

fn tell(name: &str, figure: f64, unit: &str) -> anyhow::Result<()> {
    println!("{name}: {figure:.3} {unit}");
    summary::count(&summary::target(), name, figure)
}

fn tell_lists(lists: &[List]) -> anyhow::Result<()> {
    let mid = |figure: fn(&List) -> f64| median(lists.iter().map(figure));
    tell("api/list_to_worker", mid(|list| list.from_start_ms), "ms")?;
    tell("api/known_to_worker", mid(|list| list.from_known_ms), "ms")?;
    tell("api/list_bytes", mid(|list| list.listed_mb), "MB")?;
    tell("api/control_cpu", mid(|list| list.cpu_ms[0]), "ms")?;
    tell("api/control_cpu_after", mid(|list| list.cpu_after_ms[0]), "ms")?;
    tell("api/dataplane_cpu", mid(|list| list.cpu_ms[1]), "ms")
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    quantile(&mut figures.collect::<Vec<_>>(), 0.5)
}

/// The value that `share` of the list do not exceed.
fn quantile(list: &mut [f64], share: f64) -> f64 {
    list.sort_by(f64::total_cmp);
    let at = (list.len() as f64 * share).ceil().max(1.0);
    #[allow(clippy::cast_possible_truncation, reason = "a length times a share")]
    let at = at as usize;
    list.iter().take(at).next_back().copied().unwrap_or(f64::NAN)
}

/// The monotonic clock, the same in all processes of a machine.
fn now_ms() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

/// What a reader of the dataplane has seen.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// By the last reader.
    at_ms: f64,
    frontends: usize,
}

/// A dataplane that tells on its output what the last of its readers has seen, until it is killed.
fn dataplane(directory: &Path) -> anyhow::Result<()> {
    let (compiler, readers) = fleet::compiler_for::<READERS>(Tables::default());
    let saver = Saver::start(directory.to_path_buf(), vec![])?;
    let (_kept, wants) = bounded(1);
    let (_compiler, handle) = CompilerThread::start(compiler, wants, Some(saver), Instant::now())?;
    let mailboxes = Mailboxes::new(vec![], Arc::new(|_: &str| None));
    let listener = Listener::bind(&directory.join("bench.sock"), 0o600)?;
    let _server = Server::start(listener, handle, Arc::new(mailboxes), Announcers::default())?;
    let (note, seen) = mpsc::channel();
    for mut reader in readers {
        let note = note.clone();
        std::thread::spawn(move || {
            let mut last = 0;
            loop {
                let tables = reader.refresh();
                if tables.generation != last {
                    last = tables.generation;
                    let frontends = tables.services.frontends_len();
                    let _ = note.send((last, Seen { at_ms: now_ms(), frontends }));
                }
                std::thread::sleep(LOOK);
            }
        });
    }
    drop(note);
    // Readers may pass generations over, but each ends with the newest: the last one to tell of it is the last worker.
    let (mut newest, mut told) = (0, 0);
    for (generation, Seen { at_ms, frontends }) in seen {
        told = if generation == newest { told + 1 } else { 1 };
        newest = newest.max(generation);
        if generation == newest && told == READERS {
            println!("{at_ms} {frontends}");
        }
    }
    Ok(())
}

/// One process of ours; it ends with this value.
struct Process {
    child: Child,
}

impl Process {
    fn start(program: &OsStr, arguments: &[&OsStr], environment: (&str, &OsStr), piped: bool) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).env(environment.0, environment.1).stdin(Stdio::null());
        match piped {
            true => command.stdout(Stdio::piped()),
            false => command.stderr(Stdio::piped()),
        };
        let child = command.spawn().with_context(|| format!("cannot start {}", Path::new(program).display()))?;
        Ok(Process { child })
    }

    fn of_proc(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap_or_default()
    }

    /// Time on cores (proc_pid_stat(5), fields 14 and 15, a hundredth of a second each).
    fn cpu_ms(&self) -> f64 {
        let stat = self.of_proc("stat");
        let after_name = stat.rsplit(") ").next().unwrap_or_default();
        let fields = after_name.split(' ').skip(11).take(2);
        fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() * 10.0
    }

    /// The number in a line `name: number …`.
    fn number(&self, file: &str, name: &str) -> f64 {
        let text = self.of_proc(file);
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(f64::NAN)
    }

    /// Memory of its own that is resident, without what it maps from files.
    fn resident(&self) -> f64 {
        self.number("status", "RssAnon") * 1024.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An API server with objects, and a gateway's two processes.
struct Cluster {
    server: ApiServer,
    bulks: [Bulk; 2],
    dataplane: Process,
    seen: mpsc::Receiver<Seen>,
    control: Option<Process>,
    directory: TempDir,
}

/// What became of the first list.
#[derive(Clone, Debug)]
struct List {
    from_start_ms: f64,
    from_known_ms: f64,
    listed_mb: f64,
    /// Of control and dataplane, until all workers had everything.
    cpu_ms: [f64; 2],
    /// The same, of what came after that.
    cpu_after_ms: [f64; 2],
    /// The same, in bytes, after that.
    memory: [f64; 2],
}

impl Cluster {
    /// Half of `services` in each family. Services look as they do when they have been served for long.
    fn start(endpoints: u32, services: u32) -> anyhow::Result<Cluster> {
        let directory = tempfile::tempdir()?;
        let server = ApiServer::start(Options::default())?;
        // A gateway that does not lead: another one writes.
        let read = ["get", "list", "watch"];
        let rules = Rules::default()
            .and(&[""], &["services", "nodes", "namespaces", "pods"], &read)
            .and(&["discovery.k8s.io"], &["endpointslices"], &read)
            .and(&["networking.k8s.io"], &["networkpolicies"], &read)
            .and(&["policy.networking.k8s.io"], &["clusternetworkpolicies"], &read)
            .and(&["tidegate.io"], &["addresspools", "egresspolicies", "gatewaypolicies", "staticnats"], &read);
        server.add_user("gw-1", rules);
        let half = services / 2;
        let bulk = |namespace: &str, first, v6| Bulk {
            namespace: namespace.into(),
            services: half,
            endpoints,
            first,
            v6,
            nodes: NODES,
            ..Bulk::default()
        };
        let bulks = [bulk("scale-v4", 0, false), bulk("scale-v6", half, true)];
        for n in 0..NODES {
            server.apply(&node(n, &bulks))?;
        }
        bulks.iter().for_each(|bulk| server.create_bulk(bulk));
        let this = std::env::current_exe()?;
        let environment = (DATAPLANE_IN, directory.path().as_os_str());
        let mut dataplane = Process::start(this.as_os_str(), &[], environment, true)?;
        let output = dataplane.child.stdout.take().context("its output is piped")?;
        let seen = lines(output, |line| {
            let (at_ms, frontends) = line.split_once(' ')?;
            Some(Seen { at_ms: at_ms.parse().ok()?, frontends: frontends.parse().ok()? })
        });
        Ok(Cluster { server, bulks, dataplane, seen, control: None, directory })
    }

    /// Starts control and waits until the last worker has everything and all is quiet.
    fn list(&mut self) -> anyhow::Result<List> {
        let at = |name: &str| self.directory.path().join(name);
        let services: usize = self.bulks.iter().map(|bulk| bulk.services as usize).sum();
        let listed = self.listed_mb();
        let (node_file, kubeconfig) = (at("node.yaml"), at("kubeconfig"));
        let (socket, state) = (at("bench.sock"), at("state"));
        let text = format!("node: gw-1\nsocket: {}\nstateDir: {}\n", socket.display(), state.display());
        fs::write(&node_file, text + "control: { source: { kubernetes: {} } }\n")?;
        fs::write(&kubeconfig, self.server.kubeconfig("gw-1"))?;
        let arguments = ["--config".as_ref(), node_file.as_os_str(), "--kubeconfig".as_ref(), kubeconfig.as_os_str()];
        let begun_ms = now_ms();
        let environment = ("RUST_LOG", "info,kube_client=error".as_ref());
        let mut control = Process::start(control_program()?.as_os_str(), &arguments, environment, false)?;
        let log = control.child.stderr.take().context("its log is piped")?;
        let known = lines(log, |line| match line.contains(KNOWN) {
            true => Some(now_ms()),
            false => {
                eprintln!("  {line}");
                None
            }
        });
        let known_ms = known.recv_timeout(PATIENCE).context("control does not know all objects")?;
        let end_ms = loop {
            let seen = match services {
                0 => break now_ms(),
                _ => self.seen.recv_timeout(PATIENCE).context("the workers do not get everything")?,
            };
            if seen.frontends >= services {
                break seen.at_ms;
            }
        };
        let both = [&control, &self.dataplane];
        let cpu_ms = both.map(Process::cpu_ms);
        std::thread::sleep(SETTLING);
        let list = List {
            from_start_ms: end_ms - begun_ms,
            from_known_ms: end_ms - known_ms,
            listed_mb: listed,
            cpu_ms,
            cpu_after_ms: [0, 1].map(|process| both[process].cpu_ms() - cpu_ms[process]),
            memory: both.map(Process::resident),
        };
        self.control = Some(control);
        Ok(list)
    }

    /// Bytes of the objects that a list brings.
    fn listed_mb(&self) -> f64 {
        let bytes = |kind: &str| -> usize {
            let size = |object: Value| object.to_string().len();
            self.bulks.iter().flat_map(|bulk| self.server.list(kind, &bulk.namespace)).map(size).sum()
        };
        (bytes("Service") + bytes("EndpointSlice")) as f64 / 1e6
    }
}

fn control_program() -> anyhow::Result<PathBuf> {
    let path = summary::target().join("release/tidegate-control");
    ensure!(path.exists(), "{} is not there: cargo build --release -p tidegate-control", path.display());
    Ok(path)
}

/// What `read` makes of the lines of `output`, as they come.
fn lines<T: Send + 'static>(
    output: impl std::io::Read + Send + 'static,
    read: impl Fn(&str) -> Option<T> + Send + 'static,
) -> mpsc::Receiver<T> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if let Some(value) = read(&line) {
                let _ = tell.send(value); // whoever listened has heard enough
            }
        }
    });
    told
}

/// A Node of the overlay, with the endpoints that are on it in its pod CIDRs.
fn node(n: u32, bulks: &[Bulk; 2]) -> String {
    let [v4, v6] = bulks.each_ref().map(|bulk| bulk.pod_cidr(n));
    format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: node-{n}\n  annotations:\n    \
         flannel.alpha.coreos.com/kube-subnet-manager: 'true'\n    \
         flannel.alpha.coreos.com/backend-type: vxlan\n    \
         flannel.alpha.coreos.com/backend-data: '{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:04:{n:02x}\"}}'\n    \
         flannel.alpha.coreos.com/backend-v6-data: '{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:06:{n:02x}\"}}'\n    \
         flannel.alpha.coreos.com/public-ip: 198.51.100.{n}\n    \
         flannel.alpha.coreos.com/public-ipv6: 2001:db8:2::{n:x}\n\
         spec: {{ podCIDRs: [{v4}, \"{v6}\"] }}\n"
    )
}

/// One endpoint after another goes and comes, each in another Service.
fn changes(cluster: &mut Cluster) -> anyhow::Result<()> {
    let cpu =
        |cluster: &Cluster| [cluster.control.as_ref().map_or(f64::NAN, Process::cpu_ms), cluster.dataplane.cpu_ms()];
    let (before, mut took) = (cpu(cluster), Vec::new());
    for n in 0..CHANGES {
        let bulk = &cluster.bulks[n as usize % 2];
        let number = bulk.first + n / 2 * 37 % bulk.services;
        while cluster.seen.try_recv().is_ok() {}
        let mut stored_ms = f64::NAN;
        cluster.server.edit("EndpointSlice", &bulk.namespace, &format!("svc-{number}-0"), |slice| {
            slice["endpoints"][3]["conditions"]["ready"] = Value::Bool(false);
            stored_ms = now_ms();
        })?;
        let seen = cluster.seen.recv_timeout(PATIENCE).context("the workers do not get a change")?;
        took.push(seen.at_ms - stored_ms);
        std::thread::sleep(PAUSE);
    }
    let after = cpu(cluster);
    tell("api/change_to_worker_p50", quantile(&mut took, 0.5), "ms")?;
    tell("api/change_to_worker_p99", quantile(&mut took, 0.99), "ms")?;
    for (process, name) in ["control", "dataplane"].into_iter().enumerate() {
        println!("  {name}: {:.2} ms on cores per change", (after[process] - before[process]) / f64::from(CHANGES));
    }
    Ok(())
}
