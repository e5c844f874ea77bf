//! The rig: a lab, its manifests, its gateway, and clients to ask; what every check is given.
//!
//! Owns how a check speaks to the lab; refuses to know what a check wants.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use tidegate_api::show::{BackendRow, Show, Shown};

use crate::check::Source;
use crate::client::{Outcome, SourcePorts, Spread};
use crate::cluster::Cluster;
use crate::enclosure;
use crate::gateway::{Gateway, Seat};
use crate::lab::{Lab, LabOptions};
use crate::manifest::Manifests;
use crate::process::{self, in_namespace};
use crate::topology::{CLIENT, CLIENT_HOSTS, Family, GATEWAY_NODE, client_address};

/// Longest life of one client process.
const CLIENT_LIMIT: Duration = Duration::from_secs(90);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(10);

/// Everything a check may touch.
#[derive(Debug)]
pub struct Rig {
    /// The lab, up.
    pub lab: Lab,
    /// What control reads.
    pub manifests: Manifests,
    /// The gateway, started or not.
    pub gateway: Gateway,
    /// The second one, where the lab has two.
    pub second: Option<Gateway>,
    /// The API server, while control follows one.
    pub cluster: Option<Arc<Cluster>>,
    /// Source ports not used yet.
    pub ports: SourcePorts,
}

impl Rig {
    /// Brings a lab up with manifests and a gateway that is not started.
    ///
    /// # Errors
    /// When the lab cannot be built.
    pub fn up(options: &LabOptions) -> Result<Rig> {
        let lab = Lab::up(options)?;
        let manifests = Manifests::create(&lab.state_dir.join("manifests"), options.gateways)?;
        let new = |seat| Gateway::new(&lab.state_dir, manifests.directory(), options, seat);
        let gateway = new(Seat::FIRST)?;
        let second = (options.gateways > 1).then(|| new(Seat::SECOND)).transpose()?;
        Ok(Rig { lab, manifests, gateway, second, cluster: None, ports: SourcePorts::default() })
    }

    /// Has control take its objects from `source`, and puts those of the lab there. A control that has to change ends.
    ///
    /// # Errors
    /// When there can be no API server, or it refuses an object.
    pub fn take_objects_from(&mut self, source: Source) -> Result<()> {
        match (source, &self.cluster) {
            (Source::Directory, None) | (Source::Cluster, Some(_)) => return Ok(()),
            (Source::Directory, Some(_)) => {
                self.gateway.follow(None)?;
                self.cluster = None;
            }
            (Source::Cluster, None) => {
                let cluster = Cluster::start(
                    self.gateway.seat.namespace,
                    GATEWAY_NODE.underlay(Family::V4),
                    &self.lab.state_dir,
                )?;
                cluster.load(self.manifests.directory())?;
                self.gateway.follow(Some(cluster.kubeconfig()))?;
                self.cluster = Some(Arc::new(cluster));
            }
        }
        self.manifests.turn_to(self.cluster.clone());
        Ok(())
    }

    /// The API server.
    ///
    /// # Errors
    /// When control follows a directory.
    pub fn cluster(&self) -> Result<Arc<Cluster>> {
        self.cluster.clone().context("control follows a directory")
    }

    /// A source address with a port nobody used before.
    pub fn source(&self, family: Family) -> SocketAddr {
        SocketAddr::new(client_address(family, *CLIENT_HOSTS.start()), self.ports.take(1))
    }

    /// Runs one client task to its end.
    ///
    /// # Errors
    /// When the client could not tell an outcome; a bad outcome is none.
    pub fn client<T: DeserializeOwned>(&self, task: &str, arguments: &[String]) -> Result<T> {
        self.client_in(CLIENT, task, arguments)
    }

    /// The same in another namespace, a pod's for example.
    ///
    /// # Errors
    /// As [`Rig::client`].
    pub fn client_in<T: DeserializeOwned>(&self, namespace: &str, task: &str, arguments: &[String]) -> Result<T> {
        let mut command = in_namespace(namespace, enclosure::this_program()?);
        command.args(["client", task]).args(arguments);
        let finished = process::run(command, "", CLIENT_LIMIT)?;
        // One that has told a bad outcome ends with a failure as well.
        if let Some(Ok(outcome)) = finished.stdout.lines().next_back().map(serde_json::from_str) {
            return Ok(outcome);
        }
        let text = finished.success(&format!("client {task}"))?;
        bail!("client {task} said {text:?}")
    }

    /// GET /who at `target` from a fresh source port.
    ///
    /// # Errors
    /// As [`Rig::client`].
    pub fn who(&self, target: SocketAddr, timeout_ms: u64) -> Result<Outcome> {
        self.client("who", &self.way(target, timeout_ms))
    }

    /// `--target … --from … --timeout-ms …` with a fresh source port.
    pub fn way(&self, target: SocketAddr, timeout_ms: u64) -> Vec<String> {
        let family = if target.is_ipv4() { Family::V4 } else { Family::V6 };
        way(target, self.source(family), timeout_ms)
    }

    /// `count` connections from many addresses and ports.
    ///
    /// # Errors
    /// As [`Rig::client`].
    pub fn spread(&self, target: SocketAddr, count: u32) -> Result<Spread> {
        self.client("spread", &self.spread_arguments(target, count)?)
    }

    /// Starts `count` connections that go on beside the check, sixteen at a time with a pause between two of each.
    ///
    /// # Errors
    /// When they cannot be started.
    pub fn start_spread(&self, target: SocketAddr, count: u32, pause_ms: u32) -> Result<RunningClient> {
        let mut arguments = self.spread_arguments(target, count)?;
        arguments.push(format!("--pause-ms={pause_ms}"));
        self.start_client("spread", &arguments)
    }

    fn spread_arguments(&self, target: SocketAddr, count: u32) -> Result<Vec<String>> {
        let family = if target.is_ipv4() { Family::V4 } else { Family::V6 };
        let sources: Vec<String> = CLIENT_HOSTS.map(|host| client_address(family, host).to_string()).collect();
        let ports = u16::try_from(count.div_ceil(u32::try_from(sources.len())?))?;
        let first_port = self.ports.take(ports);
        Ok(vec![
            format!("--target={target}"),
            format!("--count={count}"),
            format!("--from={}", sources.join(",")),
            format!("--first-port={first_port}"),
        ])
    }

    /// Starts a client task that goes on beside the check.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_client(&self, task: &str, arguments: &[String]) -> Result<RunningClient> {
        self.start_client_in(CLIENT, task, arguments)
    }

    /// The same in another namespace.
    ///
    /// # Errors
    /// As [`Rig::start_client`].
    pub fn start_client_in(&self, namespace: &str, task: &str, arguments: &[String]) -> Result<RunningClient> {
        let mut command = in_namespace(namespace, enclosure::this_program()?);
        command.args(["client", task]).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting client {task}"))?;
        let lines = BufReader::new(child.stdout.take().context("client without output")?);
        Ok(RunningClient { child, lines })
    }

    /// Starts a download at a limited rate and returns it with the pod that serves it.
    ///
    /// # Errors
    /// When it cannot be started, or nobody answers.
    pub fn start_download(&self, target: SocketAddr, bytes: u64, rate: u64) -> Result<(RunningClient, String)> {
        let mut arguments = self.way(target, 10_000);
        arguments.extend([format!("--bytes={bytes}"), format!("--rate={rate}")]);
        let mut running = self.start_client("download", &arguments)?;
        let first: Outcome = serde_json::from_str(&running.line()?).context("first line of a download")?;
        if !first.failure.is_empty() {
            bail!("download from {target}: {}", first.error);
        }
        Ok((running, first.pod))
    }

    /// The gateway's backends of one Service.
    ///
    /// # Errors
    /// When nothing answers.
    pub fn backends(&self, service: &str) -> Result<Vec<BackendRow>> {
        match self.gateway.show(Show::Backends { service: Some(service.into()) })? {
            Shown::Backends(rows) => Ok(rows),
            other => bail!("asked for backends, got {other:?}"),
        }
    }

    /// Waits until the gateway gives new flows of `service` to exactly the named pods, both families.
    ///
    /// # Errors
    /// When it does not within `limit`; the text tells what it does instead.
    pub fn await_active_pods(&self, service: &str, expected: &[String], limit: Duration) -> Result<Duration> {
        let mut seen = String::new();
        let took = wait_until(limit, || {
            let rows = self.backends(service)?;
            let active: Vec<&BackendRow> = rows.iter().filter(|row| row.state == "active" && row.weight > 0).collect();
            seen = active.iter().map(|row| format!("{} {}", row.pod, row.address)).collect::<Vec<_>>().join(", ");
            let all_expected = active.iter().all(|row| expected.contains(&row.pod));
            let has = |pod: &String, v4| active.iter().any(|row| &row.pod == pod && row.address.is_ipv4() == v4);
            Ok(all_expected && expected.iter().all(|pod| has(pod, true) && has(pod, false)))
        })?;
        took.with_context(|| format!("backends of {service} after {} s: {seen}", limit.as_secs_f32()))
    }
}

/// Arguments of a client that speaks from `from`.
pub fn way(target: SocketAddr, from: SocketAddr, timeout_ms: u64) -> Vec<String> {
    vec![format!("--target={target}"), format!("--from={from}"), format!("--timeout-ms={timeout_ms}")]
}

/// Looks at a condition until it holds; returns how long that took, or `None` when `limit` passed first.
///
/// # Errors
/// When the condition cannot be looked at.
pub fn wait_until(limit: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<Option<Duration>> {
    let began = Instant::now();
    loop {
        if condition()? {
            return Ok(Some(began.elapsed()));
        }
        if began.elapsed() >= limit {
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

/// A client that is still at work; killed when dropped.
#[derive(Debug)]
pub struct RunningClient {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl RunningClient {
    /// The next line it says; every client says one within its own timeout.
    ///
    /// # Errors
    /// When it ends without one.
    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            bail!("a client ended without a word");
        }
        Ok(line)
    }

    /// True while it has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Its outcome: the last line it says.
    ///
    /// # Errors
    /// When it tells none.
    pub fn outcome(self) -> Result<Outcome> {
        self.last()
    }

    /// The last line it says, as whatever its task tells.
    ///
    /// # Errors
    /// When it tells none, or something else.
    pub fn last<T: DeserializeOwned>(mut self) -> Result<T> {
        let outcome = serde_json::from_str(&self.line()?).context("outcome of a client")?;
        if process::wait(&mut self.child, CLIENT_LIMIT)?.is_none() {
            bail!("a client told its outcome and did not end");
        }
        Ok(outcome)
    }
}

impl Drop for RunningClient {
    fn drop(&mut self) {
        // Already ended clients need no kill.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
