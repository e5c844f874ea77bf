//! The lab and the gateway in it, for real: namespaces, the kernel's VXLAN, AF_XDP on veth. Needs root.
//!
//! Each test is one run of `tidegate-lab` with a lab of its own, so they may run side by side. The end-to-end tests
//! start the gateway's programs, which lie beside `tidegate-lab` when the workspace is built, or where
//! `TIDEGATE_BIN_DIR` says.

#![cfg(feature = "kernel-tests")]
#![allow(clippy::unwrap_used, reason = "a test whose stage cannot be set has failed")]

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest life of anything here.
const LIMIT: Duration = Duration::from_secs(240);

fn lab(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate-lab"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs checks in a lab of their own; its table is the message of a failure.
///
/// One lab with a gateway at a time, whatever runs the tests and in how many processes: several at once would measure
/// each other.
fn check(names: &[&str]) {
    check_with(1, names);
}

/// The same with so many queues on the gateway's devices, and a worker for each.
fn check_with(queues: u32, names: &[&str]) {
    let turn = std::fs::File::create(concat!(env!("CARGO_TARGET_TMPDIR"), "/lab.lock")).unwrap();
    turn.lock().unwrap();
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", &LIMIT.as_secs().to_string()]).arg(env!("CARGO_BIN_EXE_tidegate-lab")).arg("check");
    command.arg(format!("--queues={queues}"));
    let output = command.args(names).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("check: PASS"), "{text}\n{errors}");
}

/// A lab that is kept up until dropped.
struct Up(Child);

impl Up {
    fn start() -> Up {
        let mut child = lab(&["up", "--no-gateway"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().unwrap().unwrap();
        assert!(first.starts_with("lab: up"), "{first}");
        // Read on, so that the program never meets a closed pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Up(child)
    }

    /// Number, outside, of the first process inside: two below the program.
    fn inside(&self) -> u32 {
        child_of(child_of(self.0.id()))
    }

    fn namespace(&self, kind: &str) -> PathBuf {
        std::fs::read_link(format!("/proc/{}/ns/{kind}", self.inside())).unwrap()
    }

    /// Runs a command in a network namespace of this lab.
    fn run(&self, namespace: &str, arguments: &[&str]) -> (bool, String) {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.inside().to_string(), "-m", "-n", "-p", "ip", "netns", "exec", namespace]);
        let output = command.args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text)
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn child_of(pid: u32) -> u32 {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.split_whitespace().next().unwrap().parse().unwrap()
}

/// Processes that live in a process namespace.
fn processes_in(namespace: &Path) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lives_there =
        |entry: &std::fs::DirEntry| std::fs::read_link(entry.path().join("ns/pid")).is_ok_and(|link| link == namespace);
    entries.filter(lives_there).map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn wait_for_none_in(namespace: &Path) {
    let began = Instant::now();
    loop {
        let left = processes_in(namespace);
        if left.is_empty() {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "processes left behind: {left:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a lab could leave on the machine: mounts, named namespaces, files, devices. Only names that are the lab's, since
/// other tests may be at work on the same machine.
fn traces() -> Vec<String> {
    let mut ours = tidegate_perf::lab::namespaces(2);
    ours.extend(["wan0", "lan0", "flannel.1", "flannel-v6.1", "br0"].map(String::from));
    let mut found = Vec::new();
    for directory in ["/run", "/run/netns", "/tmp", "/var/tmp", "/sys/class/net", "/sys/fs/bpf"] {
        let names = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let traces = names.filter(|name| ours.contains(name) || name.contains("tidegate-lab"));
        found.extend(traces.map(|name| format!("{directory}/{name}")));
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(mounts.lines().filter(|line| line.contains("tidegate-lab")).map(String::from));
    found
}

#[test]
fn a_lab_that_is_killed_leaves_nothing_behind() {
    let before = traces();
    let lab = Up::start();
    let namespace = lab.namespace("pid");
    assert!(processes_in(&namespace).len() >= 7, "the inside and six pods");
    drop(lab);
    wait_for_none_in(&namespace);
    assert_eq!(traces(), before);
}

#[test]
fn a_lab_that_is_asked_to_end_leaves_nothing_behind() {
    let before = traces();
    let mut lab = Up::start();
    let namespace = lab.namespace("pid");
    let term = Command::new("sh").args(["-c", &format!("kill -TERM {}", lab.0.id())]).status().unwrap();
    assert!(term.success());
    let began = Instant::now();
    while lab.0.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < Duration::from_secs(20), "the lab does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
    wait_for_none_in(&namespace);
    assert_eq!(traces(), before);
}

#[test]
fn two_labs_do_not_meet() {
    let (first, second) = (Up::start(), Up::start());
    for kind in ["pid", "net", "mnt"] {
        assert_ne!(first.namespace(kind), second.namespace(kind), "{kind}");
    }
    // A file and an address of the one are unknown in the other.
    assert!(first.run("w1", &["touch", "/run/tidegate-lab/mark"]).0);
    assert!(!second.run("w1", &["ls", "/run/tidegate-lab/mark"]).0);
    assert!(first.run("client", &["ip", "address", "add", "192.0.2.99/24", "dev", "eth0"]).0);
    assert!(!second.run("client", &["ip", "address"]).1.contains("192.0.2.99"));
    // And both work while the other is there.
    for lab in [&first, &second] {
        let (ok, text) = lab.run("p1", &["curl", "-sS", "-m", "10", "http://10.244.3.12:8080/who"]);
        assert!(ok && text.contains("\"pod\":\"p6\""), "{text}");
    }
}

#[test]
fn the_kernel_carries_pod_traffic_over_vxlan_in_both_families() {
    let lab = Up::start();
    let sum = tidegate_perf::content::expected(3_000_000);
    for (device, pod) in [("flannel.1", "10.244.2.11"), ("flannel-v6.1", "[fd00:10:244:2::11]")] {
        let sent = |lab: &Up| {
            let path = format!("/sys/class/net/{device}/statistics/rx_packets");
            lab.run("w1", &["cat", &path]).1.trim().parse::<u64>().unwrap()
        };
        let before = sent(&lab);
        let target = format!("--target={pod}:8080");
        let program = env!("CARGO_BIN_EXE_tidegate-lab");
        let (ok, text) = lab.run("p1", &[program, "client", "download", &target, "--bytes=3000000"]);
        assert!(ok && text.contains("\"ok\":true") && text.contains("\"bytes\":3000000"), "{sum}: {text}");
        // 3,000,000 bytes do not fit into fewer packets of 1,450 bytes: they came through this device.
        assert!(sent(&lab) - before > 2_000, "{device}");
        // V-005: the kernel sends outer IPv6 with a checksum and drops packets without one.
        let (_, details) = lab.run("w1", &["ip", "-d", "link", "show", device]);
        assert!(details.contains("nolearning") && details.contains("dstport 8472"), "{details}");
        if device == "flannel-v6.1" {
            assert!(details.contains("noudp6zerocsumtx noudp6zerocsumrx"), "{details}");
        }
    }
}

#[test]
fn nothing_is_sent_by_the_machine_s_own_interfaces() {
    // As the first process it is in the network of the first process, wherever this test runs.
    let outside = ["--mount", "--pid", "--fork", "--mount-proc", env!("CARGO_BIN_EXE_tidegate-lab")];
    for arguments in [&["flood", "--target=127.0.0.1:9", "--count=1"][..], &["client", "udp", "--target=127.0.0.1:9"]] {
        let output = Command::new("unshare").args(outside).args(arguments).output().unwrap();
        assert!(!output.status.success() && output.stdout.is_empty());
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains("run it inside a namespace of a lab"), "{told}");
    }
    // In a network of its own it asks; nobody answers, which is told and is a failure.
    let inside = ["sh", "-c", "unshare --net \"$0\" client udp --target=127.0.0.1:9; exit $?"];
    let program = env!("CARGO_BIN_EXE_tidegate-lab");
    let output = Command::new("unshare").args(&outside[..4]).args(inside).arg(program).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"ok\":false"));
}

#[test]
fn unknown_checks_are_refused_with_a_hint() {
    let output = lab(&["check", "nonsense"]).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("--list"));
    let output = lab(&["check"]).output().unwrap();
    assert!(!output.status.success());
}

#[test]
fn a_missing_gateway_is_a_failure_and_not_a_skip() {
    let mut child = lab(&["check", "http"])
        .env("TIDEGATE_BIN_DIR", "/nonexistent")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(text.contains("/nonexistent/tidegate-dataplane is not there") && text.contains("check: FAIL"), "{text}");
}

#[test]
fn http_passes_through_vips() {
    check(&["http", "curl"]); // V-024
}

#[test]
fn echo_requests_and_datagrams_are_answered() {
    check(&["ping", "udp"]); // S-074
}

#[test]
fn connections_spread_evenly() {
    check(&["spread"]); // S-051
}

#[test]
fn large_transfers_arrive_whole() {
    check(&["transfer"]); // V-013
}

#[test]
fn a_flood_is_accounted_for() {
    check(&["overlay", "flood", "books"]);
}

#[test]
fn a_ladder_whose_figures_could_not_be_kept_is_not_climbed() {
    for place in ["--record=/nonexistent/it", "--plot=/nonexistent/it"] {
        let output = lab(&["ladder", place]).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains("writing /nonexistent/it"), "{errors}");
        assert!(!errors.contains("raw AF_XDP"), "{errors}");
    }
}

/// Every rung carries packets in both families, and is told and drawn. Nothing is said of how fast.
#[test]
fn the_ladder_can_be_climbed() {
    let turn = std::fs::File::create(concat!(env!("CARGO_TARGET_TMPDIR"), "/lab.lock")).unwrap();
    turn.lock().unwrap();
    let home = tempfile::tempdir().unwrap();
    let files = ["ladder.json", "ladder.svg"].map(|name| home.path().join(name));
    let mut command = lab(&["ladder", "--seconds=0.1", "--trials=1", "--rounds=2", "--services=1,10"]);
    command.arg("--record").arg(&files[0]).arg("--plot").arg(&files[1]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(&files[0]).unwrap()).unwrap();
    let rungs = record["rungs"].as_array().unwrap();
    assert_eq!(rungs.len(), 2 * 4);
    let picture = std::fs::read_to_string(&files[1]).unwrap();
    for rung in rungs {
        let (name, family) = (rung["name"].as_str().unwrap(), rung["family"].as_str().unwrap());
        assert!(picture.contains(&format!("{name}, {family}")), "{picture}");
        for figure in
            ["/mrr_per_s", "/cpu_ns_per_packet", "/latency/count", "/latency/p99_us", "/rare/count", "/rare/p50_us"]
        {
            assert!(rung.pointer(figure).and_then(serde_json::Value::as_f64).unwrap() > 0.0, "{figure} of {rung}");
        }
        let rounds = rung["rounds_mrr_per_s"].as_array().unwrap();
        assert_eq!(rounds.len(), if name.starts_with("kernel") { 0 } else { 2 }, "{rung}");
        assert!(rounds.is_empty() || rounds.contains(&rung["mrr_per_s"]), "{rung}");
    }
    let updates = record["updates"].as_array().unwrap();
    assert_eq!(updates.iter().map(|found| found["family"].as_str().unwrap()).collect::<Vec<_>>(), ["IPv4", "IPv6"]);
    for found in updates {
        for figure in ["/updates", "/quiet/sent", "/updated/sent"] {
            assert!(found.pointer(figure).and_then(serde_json::Value::as_u64).unwrap() > 0, "{figure} of {found}");
        }
    }
}

#[test]
fn the_operator_sees_everything() {
    check(&["show", "explain", "metrics", "documented"]);
}

#[test]
fn a_real_prometheus_reads_both_programs_and_raises_nothing() {
    check(&["prometheus"]);
}

#[test]
fn the_operator_watches_packets() {
    check(&["capture", "top"]);
}

#[test]
fn a_collector_is_told_what_clients_did() {
    check(&["flow-export"]);
}

#[test]
fn machines_that_are_broken_are_told_from_healthy_ones() {
    check(&["doctor"]);
}

#[test]
fn broken_setups_are_named_with_both_values() {
    check(&["broken"]); // docs/broken-setups.md
}

#[test]
fn gateways_that_do_not_agree_are_named() {
    check(&["broken-gateways"]);
}

#[test]
fn policies_of_gateways_hold_for_clients() {
    check(&["gateway-policy"]); // P-031, P-120, C-023
}

#[test]
fn pods_that_leave_are_served_at_the_edges() {
    check(&["egress-edges"]); // T-085, T-098, T-186, N-021, N-060, V-051
}

#[test]
fn an_address_that_a_router_sends_to_the_gateway_is_no_different() {
    check(&["egress-routed"]); // N-094, N-110
}

#[test]
fn pods_are_reached_and_seen_by_static_nat() {
    for queues in [1, 2] {
        check_with(queues, &["static-nat"]); // N-110, N-113, P-021
    }
}

#[test]
fn pods_leave_by_objects_of_the_api_and_through_whoever_carries_the_address() {
    check(&["egress-cluster", "egress-takeover"]); // N-110, N-111, N-112, N-114
}

#[test]
fn every_check_is_run_by_a_test() {
    let tests = include_str!("lab.rs");
    let missing = tidegate_perf::check::CHECKS.iter().filter(|check| !tests.contains(&format!("\"{}\"", check.name)));
    assert_eq!(missing.map(|check| check.name).collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn removed_endpoints_keep_their_connections() {
    check(&["endpoint-removed"]); // S-100
}

#[test]
fn datagrams_find_another_pod() {
    check(&["udp-reselect"]); // S-102
}

#[test]
fn nobody_there_is_refused_and_a_new_service_answers() {
    check(&["no-endpoints", "new-service"]); // S-070
}

#[test]
fn pods_behind_nodes_see_their_clients_and_share_evenly() {
    check(&["nodes"]); // S-050, S-056, S-057
}

#[test]
fn nodes_that_do_not_deliver_leave_the_set() {
    check(&["node-strict", "node-rules"]); // V-026, S-063
}

#[test]
fn an_endpoint_may_move_from_node_to_node() {
    check(&["node-moves"]); // T-023, T-025, S-108
}

#[test]
fn a_node_that_falls_silent_is_avoided_in_seconds() {
    check(&["node-dies"]); // S-114
}

#[test]
fn policies_hold_at_the_gateway() {
    check(&["policy"]); // P-020, P-023, P-024, P-031, P-040, T-048, T-061, T-062, T-063
}

#[test]
fn policies_hold_for_pods_that_leave() {
    check_with(2, &["policy-egress"]); // P-020, P-023, P-024, P-026, P-031, P-042, T-048
}

#[test]
fn streams_outlast_policies_that_change_ten_times_a_second() {
    check_with(2, &["policy-flips"]); // P-031, P-035
}

#[test]
fn selected_pods_leave_with_the_address_of_their_policy() {
    for queues in [1, 2] {
        check_with(queues, &["egress", "egress-closed"]); // N-110, N-111, N-113, N-001, N-044
    }
}

#[test]
fn pods_see_clients_and_answer_through_the_gateway() {
    for queues in [1, 2] {
        check_with(queues, &["symmetric"]); // docs/symmetric.md
    }
}

#[test]
fn a_pod_may_be_swapped_on_its_own_node() {
    check(&["node-cycled"]); // T-023
}

#[test]
fn pods_that_all_terminate_still_serve() {
    check(&["terminating"]); // T-029
}

#[test]
fn a_rolling_update_loses_no_request() {
    check(&["rolling"]); // T-024, S-104
}

#[test]
fn two_workers_serve_both_modes() {
    check_with(2, &["http", "udp", "spread", "transfer", "nodes", "node-moves"]);
}

#[test]
fn several_workers_agree_whose_a_pods_packet_is() {
    check_with(2, &["egress", "symmetric", "static-nat"]);
}

#[test]
fn a_flood_of_syns_costs_established_connections_nothing() {
    check(&["syn-flood"]); // L-022, N-100
}

#[test]
fn the_generator_and_the_gateway_count_the_same() {
    check(&["pktgen"]);
}

#[test]
fn one_of_two_gateways_may_die_or_hang() {
    check(&["gateway-killed", "gateway-stopped"]); // M-020, M-023, M-024, M-026
}

#[test]
fn a_cut_between_gateways_and_a_drain_cost_nothing() {
    check(&["gateways-cut", "gateway-drained"]); // M-020, M-026
}

#[test]
fn vips_reach_routers_by_bgp_and_leave_within_half_a_second() {
    check(&["routes-bird"]); // M-021, M-030, M-031, M-033
    check(&["routes-frr"]);
}

#[test]
fn a_stranger_that_answers_for_a_vip_is_named() {
    check(&["stranger"]);
}

#[test]
fn programs_may_die_and_hang() {
    check(&["control-killed", "dataplane-stopped", "dataplane-killed"]);
}

#[test]
fn services_of_the_api_get_addresses_that_answer() {
    check(&["cluster-new", "cluster-changes"]); // C-001, C-002, C-003, C-011, C-012, T-022, T-026, T-027
}

#[test]
fn a_rolling_update_through_the_api_loses_no_request() {
    check(&["cluster-rolling"]); // T-024, S-104
}

#[test]
fn the_api_may_go_away_and_control_may_die_with_it() {
    check(&["cluster-outage", "cluster-crowd"]); // T-031, M-006
}
