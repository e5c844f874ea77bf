//! The gateway under test: its two programs, started, watched, hurt and restarted inside namespace `gw`.
//!
//! Owns the node file, the processes and their logs. Refuses to know what the programs do; asks them through the
//! contract's read side and the `tidegate` command, as an operator would.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tidegate_api::client::Client;
use tidegate_api::show::{Counters, DropRow, Gateways, PortRow, Show, Shown};

use crate::cluster::LEASE_NAMESPACE;
use crate::enclosure::{self, BPF_DIR};
use crate::lab::LabOptions;
use crate::process::{self, Daemon, Finished, in_namespace};
use crate::topology::{CLIENT, Family, GATEWAY, GATEWAY_2, GATEWAY_2_NODE, GATEWAY_NODE, Node};

/// Longest wait for a program to say that it is ready.
pub const READY_LIMIT: Duration = Duration::from_secs(20);
/// Longest wait for the command line.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);
/// Where the dataplane listens: the path the `tidegate` command asks by default.
const SOCKET: &str = "/run/tidegate/tidegate.sock";
/// Environment variable that names the directory of the gateway's programs.
pub const BIN_DIR: &str = "TIDEGATE_BIN_DIR";

/// One of the gateway's two programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// `tidegate-dataplane`.
    Dataplane,
    /// `tidegate-control`.
    Control,
}

impl Program {
    /// Name of the program.
    pub fn name(self) -> &'static str {
        match self {
            Program::Dataplane => "tidegate-dataplane",
            Program::Control => "tidegate-control",
        }
    }
}

/// Where a gateway stands.
#[derive(Debug, Clone, Copy)]
pub struct Seat {
    /// Its Node.
    pub node: Node,
    /// Its network namespace.
    pub namespace: &'static str,
    /// Where its dataplane listens.
    pub socket: &'static str,
}

impl Seat {
    /// The gateway of every lab.
    pub const FIRST: Seat = Seat { node: GATEWAY_NODE, namespace: GATEWAY, socket: SOCKET };
    /// The second one.
    pub const SECOND: Seat = Seat { node: GATEWAY_2_NODE, namespace: GATEWAY_2, socket: "/run/tidegate/second.sock" };
}

/// A gateway of the lab.
#[derive(Debug)]
pub struct Gateway {
    /// Where it stands.
    pub seat: Seat,
    bin_dir: PathBuf,
    state_dir: PathBuf,
    config: PathBuf,
    /// What control reads instead, while it follows an API server.
    control_config: Option<PathBuf>,
    dataplane: Option<Daemon>,
    control: Option<Daemon>,
}

impl Gateway {
    /// Writes the node file, with a worker per queue, and the key where there are two gateways; starts nothing yet.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn new(state_dir: &Path, manifests: &Path, options: &LabOptions, seat: Seat) -> Result<Gateway> {
        let state_dir = if seat.node == GATEWAY_NODE { state_dir.into() } else { state_dir.join(seat.namespace) };
        let bin_dir = match std::env::var_os(BIN_DIR) {
            Some(directory) => PathBuf::from(directory),
            None => enclosure::this_program()?.parent().context("this program has no directory")?.to_path_buf(),
        };
        let saved = state_dir.join("saved");
        for directory in [saved.as_path(), Path::new("/run/tidegate")] {
            std::fs::create_dir_all(directory)?;
        }
        let config = state_dir.join("node.yaml");
        let mut text = node_file(&saved, manifests, options.queues, seat);
        if options.gateways > 1 {
            let key = state_dir.join("gateway-key");
            std::fs::write(&key, "the key of the two gateways of the lab\n")?;
            let section = format!("  gateways: {{ keyFile: {} }}\ncontrol:\n", key.display());
            text = text.replacen("control:\n", &section, 1);
        }
        std::fs::write(&config, text)?;
        Ok(Gateway { seat, bin_dir, state_dir, config, control_config: None, dataplane: None, control: None })
    }

    /// The node file both programs read.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Paths of the gateway's programs and of the command, there or not.
    pub fn programs(&self) -> [PathBuf; 3] {
        [Program::Dataplane.name(), Program::Control.name(), "tidegate"].map(|name| self.bin_dir.join(name))
    }

    /// Path of another program built with these, there or not.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }

    /// Starts both programs and waits until both are ready.
    ///
    /// # Errors
    /// When one is missing, ends, or is not ready in time; the text carries the end of its log.
    pub fn start(&mut self) -> Result<()> {
        self.start_program(Program::Dataplane)?;
        self.start_program(Program::Control)?;
        Ok(())
    }

    /// Starts one program and waits until it is ready; returns how long that took.
    ///
    /// # Errors
    /// As [`Gateway::start`].
    pub fn start_program(&mut self, program: Program) -> Result<Duration> {
        self.spawn(program)?;
        let ready = format!("{} ready", program.name());
        self.daemon(program)?.wait_for_line(&ready, READY_LIMIT)
    }

    /// Starts one program and does not wait.
    ///
    /// # Errors
    /// When it is missing.
    pub fn spawn(&mut self, program: Program) -> Result<()> {
        let path = self.bin_dir.join(program.name());
        if !path.exists() {
            bail!("{} is not there: build it, or set {BIN_DIR}", path.display());
        }
        // `ip netns exec` gives the program a fresh /sys; the lab's BPF file system goes where programs expect one.
        let mut command = in_namespace(self.seat.namespace, "sh");
        command.args(["-c", &format!("mount --bind {BPF_DIR} /sys/fs/bpf && exec \"$0\" \"$@\"")]);
        let config = self.control_config.as_ref().filter(|_| program == Program::Control);
        command.arg(&path).arg("--config").arg(config.unwrap_or(&self.config));
        let log = self.state_dir.join(format!("{}.log", program.name()));
        let daemon = Daemon::start(program.name(), command, &log)?;
        *self.slot(program) = Some(daemon);
        Ok(())
    }

    /// Has control take objects from the API server that a kubeconfig leads to, or from the directory again. A control
    /// that runs is ended; [`Gateway::revive`] starts the next one.
    ///
    /// # Errors
    /// When the node file cannot be written, or control does not end.
    pub fn follow(&mut self, kubeconfig: Option<&Path>) -> Result<()> {
        self.control_config = kubeconfig.map(|kubeconfig| self.node_file_of(kubeconfig)).transpose()?;
        if self.control.as_mut().is_some_and(Daemon::is_running) {
            self.end(Program::Control)?;
        }
        Ok(())
    }

    /// The node file with another source. The Lease is a short one: a control that is killed leaves it behind, and no
    /// check shall wait for the usual fifteen seconds.
    fn node_file_of(&self, kubeconfig: &Path) -> Result<PathBuf> {
        let text = std::fs::read_to_string(&self.config)?;
        let (before, rest) = text.split_once("  source:").context("a node file without a source")?;
        let (_, after) = rest.split_once('\n').context("a source without an end")?;
        let source = format!(
            "{{ kubernetes: {{ kubeconfig: {}, leaseNamespace: {LEASE_NAMESPACE}, \
             leaseSeconds: {{ duration: 2.5, renew: 1.5, retry: 0.25 }} }} }}",
            kubeconfig.display()
        );
        let path = self.state_dir.join("node-of-cluster.yaml");
        std::fs::write(&path, format!("{before}  source: {source}\n{after}"))?;
        Ok(path)
    }

    fn slot(&mut self, program: Program) -> &mut Option<Daemon> {
        match program {
            Program::Dataplane => &mut self.dataplane,
            Program::Control => &mut self.control,
        }
    }

    fn daemon(&mut self, program: Program) -> Result<&mut Daemon> {
        self.slot(program).as_mut().with_context(|| format!("{} was not started", program.name()))
    }

    /// Kills one program with SIGKILL.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self, program: Program) -> Result<()> {
        self.daemon(program)?.kill()?;
        *self.slot(program) = None;
        Ok(())
    }

    /// Sends SIGSTOP to one program.
    ///
    /// # Errors
    /// When it does not run.
    pub fn stop(&mut self, program: Program) -> Result<()> {
        self.daemon(program)?.signal(Signal::STOP)
    }

    /// Sends SIGCONT to one program.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&mut self, program: Program) -> Result<()> {
        self.daemon(program)?.signal(Signal::CONT)
    }

    /// Asks one program to end (SIGTERM) and waits until it has; returns how long that took.
    ///
    /// # Errors
    /// When it does not run, or does not end in time.
    pub fn end(&mut self, program: Program) -> Result<Duration> {
        let began = std::time::Instant::now();
        self.daemon(program)?.signal(Signal::TERM)?;
        self.daemon(program)?.wait_for_end(READY_LIMIT)?;
        *self.slot(program) = None;
        Ok(began.elapsed())
    }

    /// What control says of a Service in its status file.
    pub fn status(&self, service: &str) -> String {
        let path = self.state_dir.join(format!("saved/status/shop.{service}.json"));
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// The gateways of the set, as this one knows them.
    ///
    /// # Errors
    /// When nothing answers.
    pub fn gateways(&self) -> Result<Gateways> {
        match self.show(Show::Gateways)? {
            Shown::Gateways(shown) => Ok(shown),
            other => bail!("asked for gateways, got {other:?}"),
        }
    }

    /// Brings back what does not run, so that one failed check does not fail the ones after it.
    ///
    /// # Errors
    /// As [`Gateway::start`].
    pub fn revive(&mut self) -> Result<()> {
        for program in [Program::Dataplane, Program::Control] {
            let runs = self.slot(program).as_mut().is_some_and(Daemon::is_running);
            if !runs {
                self.start_program(program)?;
            }
        }
        Ok(())
    }

    /// Process id in the lab, when it runs.
    pub fn pid(&mut self, program: Program) -> Option<u32> {
        self.slot(program).as_ref().map(Daemon::pid)
    }

    /// Lines of both logs in which Rust reports a panic.
    pub fn panics(&self) -> Vec<String> {
        let logs = [Program::Dataplane, Program::Control].map(|program| self.full_log(program));
        logs.iter().flat_map(|log| log.lines()).filter(|line| line.contains("panicked at")).map(String::from).collect()
    }

    fn full_log(&self, program: Program) -> String {
        let log = std::fs::read(self.state_dir.join(format!("{}.log", program.name())));
        log.map_or_else(|error| format!("no log: {error}"), |log| String::from_utf8_lossy(&log).into_owned())
    }

    /// The last lines of both logs.
    pub fn log_tails(&self, lines_max: usize) -> String {
        let mut text = String::new();
        for program in [Program::Dataplane, Program::Control] {
            text += &format!("--- {}\n{}\n", program.name(), process::tail(&self.full_log(program), lines_max));
        }
        text
    }

    /// Asks the read side over the contract socket.
    ///
    /// # Errors
    /// When nothing answers.
    pub fn show(&self, question: Show) -> Result<Shown> {
        Ok(Client::connect(Path::new(self.seat.socket), "tidegate-lab")?.show(question)?)
    }

    /// All counters and the imbalance of the books.
    ///
    /// # Errors
    /// When nothing answers.
    pub fn counters(&self) -> Result<Counters> {
        match self.show(Show::Counters)? {
            Shown::Counters(counters) => Ok(counters),
            other => bail!("asked for counters, got {other:?}"),
        }
    }

    /// Drop reasons that have counted something.
    ///
    /// # Errors
    /// When nothing answers.
    pub fn drops(&self) -> Result<Vec<DropRow>> {
        match self.show(Show::Drops)? {
            Shown::Drops(rows) => Ok(rows.into_iter().filter(|row| row.packets > 0).collect()),
            other => bail!("asked for drops, got {other:?}"),
        }
    }

    /// The ports, as `tidegate show ports --json` tells them: the operator's way, through the program itself.
    ///
    /// # Errors
    /// When the command fails or its answer is not a list of ports.
    pub fn ports_by_command(&self) -> Result<Vec<PortRow>> {
        let text = self.command(&["show", "ports", "--json"])?.success("tidegate show ports --json")?;
        let value: serde_json::Value = serde_json::from_str(&text).context("tidegate show ports --json")?;
        let rows = value.get("rows").unwrap_or(&value).clone();
        serde_json::from_value(rows).context("tidegate show ports --json: not a list of ports")
    }

    /// Runs the `tidegate` command.
    ///
    /// # Errors
    /// When it is missing or hangs.
    pub fn command(&self, arguments: &[&str]) -> Result<Finished> {
        self.command_at(self.seat.socket, arguments)
    }

    /// Runs the `tidegate` command against another socket.
    ///
    /// # Errors
    /// As [`Gateway::command`].
    pub fn command_at(&self, socket: &str, arguments: &[&str]) -> Result<Finished> {
        let mut command = Command::new(self.bin_dir.join("tidegate"));
        command.args(["--socket", socket]).args(arguments);
        process::run(command, "", COMMAND_LIMIT)
    }

    /// Runs `tidegate explain` about what the gateway's dataplane has saved, or what is in another directory, where clients
    /// are: of the machine the gateway's files tell, or nobody.
    ///
    /// # Errors
    /// As [`Gateway::command`].
    pub fn explain_saved(&self, directory: Option<&Path>, arguments: &[&str]) -> Result<Finished> {
        let saved = self.state_dir.join("saved");
        let mut command = in_namespace(CLIENT, self.bin_dir.join("tidegate"));
        command.arg("explain").args(arguments).arg("--state").arg(directory.unwrap_or(&saved));
        command.arg("--config").arg(&self.config);
        process::run(command, "", COMMAND_LIMIT)
    }
}

fn node_file(saved: &Path, manifests: &Path, workers: u32, seat: Seat) -> String {
    let (v4, v6) = (seat.node.fullnat_source(Family::V4), seat.node.fullnat_source(Family::V6));
    let (node, socket) = (seat.node.name(), seat.socket);
    format!(
        "node: {node}\nsocket: {socket}\nsocketMode: \"0660\"\nstateDir: {}\ndataplane:\n  interfaces:\n    \
         - name: wan0\n    - name: lan0\n  mode: auto\n  workers: {workers}\n  frames: 16384\n  frameBytes: 2048\n  hugePages: auto\n  \
         flowsMax: {{ ipv4: 65536, ipv6: 65536 }}\n  idle: sleep\n  onDeath: drop\n  metrics: 127.0.0.1:9470\ncontrol:\n  \
         source: {{ directory: {} }}\n  loadBalancerClass: null\n  fullnatSources: [{v4}, \"{v6}\"]\n  \
         hashKey: \"00112233445566778899aabbccddeeff\"\n  orphanTcp: drop\n  clampMss: true\n  metrics: \"[::1]:9471\"\n",
        saved.display(),
        manifests.display()
    )
}
