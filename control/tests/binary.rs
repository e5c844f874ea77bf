//! The program itself: flags, the node file, signals.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rig::{node, service};
use tempfile::TempDir;
use tidegate_api::frame;
use tidegate_api::listen::Listener;
use tidegate_api::message::{Accepted, Request, Response};

/// Longest wait for something that must happen.
const PATIENCE: Duration = Duration::from_secs(20);

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate-control"));
    command.env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn home() -> TempDir {
    let home = TempDir::new().unwrap();
    fs::create_dir(home.path().join("manifests")).unwrap();
    let at = |name: &str| home.path().join(name).display().to_string();
    let text = format!(
        "node: gw-1\nsocket: {}\nstateDir: {}\ncontrol:\n  source: {{ directory: {} }}\n  fullnatSources: [10.244.9.2]\n",
        at("tidegate.sock"),
        at("state"),
        at("manifests")
    );
    fs::write(home.path().join("node.yaml"), text).unwrap();
    home
}

fn run(home: &Path, more: &[&str]) -> Output {
    program().arg("--config").arg(home.join("node.yaml")).args(more).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A running program; killed when dropped.
struct Running {
    child: Child,
    log: Receiver<String>,
}

impl Running {
    fn start(home: &Path) -> Self {
        let mut child = program().arg("--config").arg(home.join("node.yaml")).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, log) = channel();
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Running { child, log }
    }

    /// Waits until each of `words` has been logged, in any order.
    fn until_logged(&self, words: &[&str]) {
        let mut missing = words.to_vec();
        while !missing.is_empty() {
            let line = self.log.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("{missing:?}: {error}"));
            missing.retain(|word| !line.contains(word));
        }
    }

    fn terminate(mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn wrong_flags_and_wrong_node_files_are_told() {
    let output = program().output().unwrap();
    assert!(!output.status.success() && text(&output.stderr).contains("--config"));
    let output = program().args(["--config", "/nowhere/node.yaml"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        text(&output.stderr),
        "tidegate-control: cannot read the node file /nowhere/node.yaml: No such file or directory (os error 2)\n"
    );
    let home = home();
    fs::write(home.path().join("node.yaml"), "node: gw-1\ncontrol: { source: { folder: /x } }\n").unwrap();
    let output = run(home.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("folder"), "{}", text(&output.stderr));
}

#[test]
fn check_tells_what_is_wrong_and_what_would_be_sent() {
    let home = home();
    let manifests = home.path().join("manifests");
    fs::write(
        manifests.join("a.yaml"),
        node("gw-1", 9) + &service("web", "loadBalancerIP: 203.0.113.1, ports: [{ port: 80 }]"),
    )
    .unwrap();
    let output = run(home.path(), &["--check"]);
    assert!(output.status.success(), "{output:?}");
    assert!(
        text(&output.stdout).contains(
            "gateway gw-1\nservice shop/web at 203.0.113.1\n  80/TCP: fullnat, 0 IPv4 and 0 IPv6 endpoints\n  \
             EndpointsFound: False, NoSlice: no EndpointSlice in namespace shop has the label"
        ) && text(&output.stdout).ends_with("2 objects for the dataplane, 0 errors\n"),
        "{}",
        text(&output.stdout)
    );
    assert!(!home.path().join("state").exists(), "a check writes nothing");
    fs::write(manifests.join("b.yaml"), service("api", "loadBalancerIP: x, ports: [{ port: 80 }]")).unwrap();
    let output = run(home.path(), &["--check"]);
    assert_eq!(output.status.code(), Some(1));
    let stdout = text(&output.stdout);
    assert!(stdout.contains("Error: b.yaml document 1 (line 1): Service shop/api: spec.loadBalancerIP:"), "{stdout}");
}

#[test]
fn it_says_ready_after_the_first_full_sync_and_ends_on_sigterm() {
    let home = home();
    fs::write(home.path().join("manifests/a.yaml"), node("gw-1", 9)).unwrap();
    let running = Running::start(home.path());
    let listener = Listener::bind(&home.path().join("tidegate.sock"), 0o600).unwrap();
    let mut stream = listener.accept().unwrap();
    assert!(matches!(frame::read(&mut stream).unwrap(), Request::Hello { .. }));
    let holds = Default::default();
    let welcome = Response::Welcome { contract: 1, server: "stand-in".into(), holds, reached: 0, prepares: false };
    frame::write(&mut stream, &welcome).unwrap();
    let Request::Update(update) = frame::read(&mut stream).unwrap() else { panic!() };
    assert!(update.full);
    frame::write(&mut stream, &Response::Accepted(Accepted { nonce: update.nonce, generation: 1, rejected: vec![] }))
        .unwrap();
    running.until_logged(&["tidegate-control ready"]);
    running.terminate();
}

#[test]
fn a_second_one_with_the_same_state_directory_does_not_start() {
    let home = home();
    fs::write(home.path().join("manifests/a.yaml"), node("gw-1", 9)).unwrap();
    let running = Running::start(home.path());
    running.until_logged(&["no dataplane answers"]);
    let output = run(home.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("another tidegate-control works with"), "{}", text(&output.stderr));
    assert!(run(home.path(), &["--check"]).status.success(), "a check disturbs nobody");
    running.terminate();
}

/// A file that leads to a server that is not there.
fn kubeconfig_without_a_server(home: &Path) -> PathBuf {
    let kubeconfig = "apiVersion: v1\nkind: Config\ncurrent-context: a\n\
                      clusters: [{ name: a, cluster: { server: 'http://127.0.0.1:1' } }]\n\
                      users: [{ name: a, user: {} }]\ncontexts: [{ name: a, context: { cluster: a, user: a } }]\n";
    let path = home.join("kubeconfig");
    fs::write(&path, kubeconfig).unwrap();
    path
}

/// What is wrong with the API is told in our words; those of the client behind it would be there once a second.
#[test]
fn an_absent_server_is_told_by_us_alone() {
    let home = home();
    let kubeconfig = kubeconfig_without_a_server(home.path());
    let mut child = program()
        .args(["--config".as_ref(), home.path().join("node.yaml").as_os_str()])
        .args(["--kubeconfig".as_ref(), kubeconfig.as_os_str()])
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let (sender, log) = channel();
    thread::spawn(move || lines.for_each(|line| drop(sender.send(line))));
    let running = Running { child, log };
    let mut said = Vec::new();
    // The Lease is asked for too, some time after the rest: two problems mean that both have been refused.
    while !said.iter().any(|line: &String| line.contains("the Lease")) {
        said.push(running.log.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("{error}: {said:#?}")));
    }
    let noise: Vec<&String> = said.iter().filter(|line| line.contains("failed with error")).collect();
    assert!(noise.is_empty(), "{noise:#?}");
    running.terminate();
}

/// A check of a cluster takes its time, and says at once for what.
#[test]
fn check_of_a_cluster_says_what_it_waits_for() {
    let home = home();
    let kubeconfig = kubeconfig_without_a_server(home.path());
    let mut child = program()
        .args(["--config".as_ref(), home.path().join("node.yaml").as_os_str(), "--check".as_ref()])
        .args(["--kubeconfig".as_ref(), kubeconfig.as_os_str()])
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut said).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(said, "reading all objects from the Kubernetes API, for at most 30 s\n");
}

#[test]
fn check_names_the_owner_of_a_frontend_claimed_twice() {
    let home = home();
    let claim = |name: &str| service(name, "loadBalancerIP: 203.0.113.1, ports: [{ port: 80 }]");
    fs::write(home.path().join("manifests/a.yaml"), node("gw-1", 9) + &claim("a") + &claim("b")).unwrap();
    let output = run(home.path(), &["--check"]);
    let told = text(&output.stdout);
    assert!(
        told.contains(
            "FrontendsOwned: False, ClaimedTwice: older or first by name (S-067): 203.0.113.1 80/TCP belongs to shop/a"
        ),
        "{told}"
    );
}

#[test]
fn sigterm_ends_it_also_without_dataplane_and_directory() {
    let home = home();
    fs::remove_dir(home.path().join("manifests")).unwrap();
    let running = Running::start(home.path());
    running.until_logged(&["cannot watch the directory", "no dataplane answers"]);
    running.terminate();
}
