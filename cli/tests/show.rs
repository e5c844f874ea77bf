//! `tidegate show` from outside: the real binary against a real Unix socket that speaks the contract.
//!
//! The rows are canned, since what is proved here is the command: what it asks, what it prints for an answer, and what
//! it says when there is none. `TIDEGATE_WRITE_GOLDEN=1` writes the golden files anew.

#![allow(clippy::unwrap_used, reason = "a test whose stage cannot be set has failed")]

use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;

use tempfile::TempDir;
use tidegate_api::frame;
use tidegate_api::listen::Listener;
use tidegate_api::message::{CONTRACT_VERSION, Request, Response};
use tidegate_api::resource::{MacAddress, Protocol};
use tidegate_api::show::{
    AnnouncementRow, Announcements, BackendRow, ClientsByRss, Control, Counters, DropRow, EgressAddressRow,
    EgressPodRow, EgressShown, FlowFilter, FlowRow, GatewayRow, Gateways, NeighbourRow, Policies, PortRow, Readiness,
    RouteRow, RulingRow, ServiceRow, Show, Shown, StageRow, TunnelRow, WorkerRow,
};

/// A dataplane's read side for one conversation; the thread returns the question it was asked.
struct Dataplane {
    directory: TempDir,
    thread: JoinHandle<Option<Show>>,
}

impl Dataplane {
    /// Greets, hears one question, and lets `answer` do the rest of the conversation.
    fn listen(answer: impl FnOnce(&Show) -> Option<Vec<u8>> + Send + 'static) -> Self {
        Self::converse(answer, false)
    }

    /// The same; `stays`: it hears further questions until nobody asks any more.
    fn converse(answer: impl FnOnce(&Show) -> Option<Vec<u8>> + Send + 'static, stays: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&directory.path().join("tidegate.sock"), 0o600).unwrap();
        let thread = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap();
            let Ok(Request::Hello { contract, client }) = frame::read(&mut stream) else { return None };
            assert_eq!(contract, CONTRACT_VERSION);
            assert!(client.starts_with("tidegate "), "{client}");
            let server = "tidegate-dataplane 9.8.7".into();
            let welcome = Response::Welcome {
                contract: CONTRACT_VERSION,
                server,
                holds: Default::default(),
                reached: 41,
                prepares: false,
            };
            frame::write(&mut stream, &welcome).unwrap();
            let Ok(Request::Show(question)) = frame::read(&mut stream) else { return None };
            if let Some(bytes) = answer(&question) {
                // The command may be gone already in tests that close early.
                let _ = stream.write_all(&bytes);
            }
            while stays && frame::read::<Request>(&mut stream).is_ok() {}
            Some(question)
        });
        Dataplane { directory, thread }
    }

    /// Has the canned Services, and nothing of what is asked for first.
    fn without(first: &Show) -> Self {
        let both = [empty(first), canned(&Show::Services)].map(|answer| message(&Response::Shown(answer)));
        Self::converse(move |_| Some(both.concat()), true)
    }

    fn answering(answer: Shown) -> Self {
        Self::listen(move |_| Some(message(&Response::Shown(answer))))
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("tidegate.sock")
    }

    fn asked(self) -> Show {
        self.thread.join().unwrap().expect("a question was asked")
    }
}

fn message(response: &Response) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::write(&mut bytes, response).unwrap();
    bytes
}

fn raw(json: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(json.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes
}

fn tidegate(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.env_remove("TIDEGATE_SOCKET").arg("--socket").arg(socket).args(arguments).stdin(Stdio::null());
    command
}

/// Standard output of a run that must succeed and say nothing else.
fn printed(output: &Output) -> String {
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Standard error of a run that must fail with status 1 and print no half answer.
fn complaint(output: &Output) -> String {
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.starts_with("tidegate: ") && text.lines().count() == 1, "{text}");
    text
}

fn golden(name: &str, printed: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("TIDEGATE_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, printed).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(printed == expected, "{name}: printed\n{printed}\nexpected\n{expected}");
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn mac(text: &str) -> MacAddress {
    text.parse().unwrap()
}

fn counters(pairs: &[(&str, u64)]) -> std::collections::BTreeMap<String, u64> {
    pairs.iter().map(|(name, count)| ((*name).into(), *count)).collect()
}

/// One answer per question, both families in each, out of order where order is the command's business.
fn canned(question: &Show) -> Shown {
    match question {
        Show::Services => Shown::Services(vec![
            service("shop/web", "2001:db8:f::10", Protocol::Tcp, 80, 6, 4093),
            service("shop/web", "203.0.113.10", Protocol::Tcp, 80, 6, 4093),
            service("infra/dns", "203.0.113.11", Protocol::Udp, 53, 0, 0),
        ]),
        Show::Backends { .. } => Shown::Backends(vec![
            backend("fd00:10:244:1::5", "worker-1", "web-0", "active", 1),
            backend("10.244.2.7", "worker-2", "web-1", "draining", 0),
            backend("10.244.1.5", "worker-1", "web-0", "active", 1),
            backend("10.244.3.9", "", "", "gone", 0),
        ]),
        Show::Flows { .. } => Shown::Flows(vec![
            flow(6, "192.0.2.10", "203.0.113.10", "10.244.9.2", "10.244.1.5", "ESTABLISHED"),
            flow(17, "2001:db8:1::10", "2001:db8:f::10", "fd00:10:244:9::2", "fd00:10:244:1::5", "-"),
        ]),
        Show::Tunnels => Shown::Tunnels(vec![
            tunnel("worker-2", "198.51.100.12", 1450, "neighbour unresolved", &["10.244.2.0/24"]),
            tunnel("worker-1", "2001:db8:2::11", 1430, "ready", &["fd00:10:244:1::/64"]),
            tunnel("worker-1", "198.51.100.11", 1450, "ready", &["10.244.1.0/24", "10.244.11.0/24"]),
        ]),
        Show::Routes => Shown::Routes(vec![
            route("0.0.0.0/0", &["via 192.0.2.254 dev wan0"], "kernel", 1500),
            route("10.244.1.0/24", &["tunnel worker-1"], "overlay", 1450),
            route("2001:db8:3::/48", &["via fe80::1 dev wan0", "via fe80::2 dev wan0"], "kernel", 1500),
        ]),
        Show::Neighbours => Shown::Neighbours(vec![
            neighbour("192.0.2.10", "wan0", Some("02:00:00:00:01:10"), "STALE"),
            neighbour("2001:db8:2::12", "lan0", None, "unresolved"),
            neighbour("198.51.100.11", "lan0", Some("02:00:00:00:02:11"), "REACHABLE"),
        ]),
        Show::Workers => Shown::Workers(vec![worker(0, Some(1)), worker(1, None)]),
        Show::Ports => Shown::Ports(vec![
            port("wan0", 0, "copy", &[("rx_packets", 1_048_576), ("rx_ring_full", 0), ("tx_completed", 524_288)]),
            port("lan0", 0, "zero-copy", &[("rx_packets", 12)]),
        ]),
        Show::Counters => Shown::Counters(Counters {
            totals: counters(&[
                ("received", 1_000_003),
                ("generated", 2),
                ("tx_completed", 1_000_000),
                ("tx_rejected", 0),
                ("dropped", 4),
                ("consumed", 1),
                ("to_kernel", 0),
                ("held", 0),
                ("flow_hit", 999_000),
                ("flow_installed", 1_003),
                ("slow_walk", 1_003),
            ]),
            imbalance: 0,
        }),
        Show::Drops => Shown::Drops(vec![
            drop_reason("TtlExceeded", "route", "info", "TTL or hop limit would reach zero", 0),
            drop_reason("NoBackend", "service", "info", "service has no ready backend", 3),
            drop_reason("SpoofedSource", "flow", "warning", "inner source is not behind this peer", 17),
            drop_reason("NoRoute", "route", "warning", "no route to the destination", 0),
        ]),
        Show::Gateways => Shown::Gateways(Gateways {
            alone: None,
            rows: vec![
                gateway("gw-1", true, "live", None, 3, &[]),
                gateway("gw-2", false, "draining", Some(12), 2, &["198.51.100.2", "2001:db8:2::2"]),
                gateway("gw-3", false, "never heard", None, 0, &["198.51.100.3"]),
            ],
            key: None,
            counters: counters(&[("heartbeats_heard", 1200), ("refused_wrong_key", 0), ("vips_taken_over", 5)]),
        }),
        Show::Announcements => Shown::Announcements(Announcements {
            device: Some("tidegate-vip".into()),
            withdrawn: None,
            rows: vec![
                announcement("203.0.113.0/24", 12, "announced"),
                announcement("2001:db8:f::10/128", 1, "refused: the kernel has another route for it"),
            ],
            counters: counters(&[("discarded_packets", 0), ("restored_routes", 3)]),
        }),
        Show::Policies => Shown::Policies(Policies {
            digest: "00c0ffee00c0ffee".into(),
            identities: 12,
            programs: 4,
            programs_walked: 1,
            bytes: 73_912,
            rules: vec![
                ruling("networkpolicy/shop/clients", "ingress", Some(0), 1200, 0),
                ruling("networkpolicy/shop/clients", "ingress", None, 0, 7),
                ruling("clusternetworkpolicy/no-metadata", "egress", Some(0), 0, 0),
            ],
        }),
        Show::Readiness => Shown::Readiness(Readiness {
            generation: 9,
            behind: vec![(1, 8)],
            down: vec!["lan0".into()],
            starved: vec!["wan0/0".into()],
        }),
        Show::Control => Shown::Control(Control {
            client: Some("tidegate-control 0.1.0".into()),
            has_spoken: true,
            silent_ms: 3_200,
        }),
        Show::Egress => Shown::Egress(EgressShown {
            addresses: vec![
                external("203.0.113.101", &["shop/out", "blog/out"], "tcp", 700),
                external("2001:db8:f::65", &[], "udp", 0),
            ],
            pods: vec![EgressPodRow { pod: "shop/web-1".into(), address: ip("10.244.1.5"), held: 12, refused: 1 }],
            carriers: [(ip("203.0.113.101"), "gw-1".to_owned())].into(),
            bare: vec!["shop/bare".into()],
        }),
    }
}

fn ruling(policy: &str, direction: &str, rule: Option<u16>, allowed: u64, denied: u64) -> RulingRow {
    let (would_deny, audit) = (0, false);
    RulingRow { policy: policy.into(), direction: direction.into(), rule, allowed, denied, would_deny, audit }
}

fn external(address: &str, policies: &[&str], protocol: &str, used: u64) -> EgressAddressRow {
    EgressAddressRow {
        address: ip(address),
        policies: policies.iter().map(|name| (*name).to_owned()).collect(),
        protocol: protocol.into(),
        ports: 64_512,
        used,
        resting: 3,
        held: used * 2,
        refused: 5,
    }
}

fn announcement(prefix: &str, vips: u32, state: &str) -> AnnouncementRow {
    AnnouncementRow { prefix: prefix.into(), vips, state: state.into() }
}

fn service(name: &str, address: &str, protocol: Protocol, port: u16, backends: u32, slots: u32) -> ServiceRow {
    ServiceRow {
        service: name.into(),
        address: ip(address),
        prefix_len: None,
        protocol,
        port,
        mode: "fullnat".into(),
        service_port: port,
        scheduler: Default::default(),
        affinity_timeout_s: None,
        nodes: Vec::new(),
        backends,
        maglev_slots: slots,
        packets: 120 * u64::from(backends),
        bytes: 96_000 * u64::from(backends),
        new_flows: u64::from(backends),
    }
}

fn backend(address: &str, node: &str, pod: &str, state: &str, weight: u16) -> BackendRow {
    BackendRow {
        service: "shop/web".into(),
        port: 80,
        protocol: Protocol::Tcp,
        address: ip(address),
        backend_port: 8080,
        weight,
        state: state.into(),
        reason: String::new(),
        node: node.into(),
        pod: pod.into(),
        flows: 2,
        packets: 40,
        bytes: 32_000,
        new_flows: 3,
    }
}

fn flow(protocol: u8, client: &str, vip: &str, source: &str, backend: &str, state: &str) -> FlowRow {
    FlowRow {
        worker: 0,
        protocol,
        client: (ip(client), 40_000),
        vip: (ip(vip), 80),
        source: (ip(source), 31_337),
        backend: (ip(backend), 8080),
        state: state.into(),
        idle_s: 4,
        packets: (10, 8),
        bytes: (800, 64_000),
    }
}

fn tunnel(peer: &str, underlay: &str, inner_mtu: u32, state: &str, prefixes: &[&str]) -> TunnelRow {
    TunnelRow {
        peer: peer.into(),
        underlay: ip(underlay),
        mac: mac("02:42:0a:f4:01:00"),
        vni: 1,
        port: 8472,
        prefixes: prefixes.iter().map(|prefix| (*prefix).into()).collect(),
        inner_mtu,
        state: state.into(),
    }
}

fn route(prefix: &str, next_hops: &[&str], origin: &str, mtu: u32) -> RouteRow {
    let next_hops = next_hops.iter().map(|hop| (*hop).into()).collect();
    RouteRow { prefix: prefix.into(), next_hops, origin: origin.into(), mtu }
}

fn neighbour(address: &str, device: &str, link: Option<&str>, state: &str) -> NeighbourRow {
    NeighbourRow { address: ip(address), device: device.into(), mac: link.map(mac), state: state.into() }
}

fn worker(number: u32, core: Option<u32>) -> WorkerRow {
    WorkerRow {
        worker: number,
        core,
        clients: core.map(|_| ClientsByRss {
            device: "wan0".into(),
            entries: 64,
            of: 128,
            places: (0..128).step_by(2).collect(),
            key_digest: "e3b0c44298fc1c14".into(),
            fields: [("tcp4".into(), "sdfn".into()), ("udp4".into(), "sd".into())].into(),
        }),
        generation: 41,
        turns: 123_456_789,
        idle_turns: 1_234,
        sleeps: 56,
        flows: 2,
        flows_max: 1_310_720,
        half_open: 1_204,
        half_open_max: 327_680,
        held: 1,
        ports: vec![format!("wan0/{number}"), format!("lan0/{number}")],
        counters: Default::default(),
        stages: core.map(|_| stages()).unwrap_or_default(),
    }
}

/// As of a thousand packets whose turns were measured.
fn stages() -> Vec<StageRow> {
    let of = |stage: &str, time_ns| StageRow { stage: stage.into(), time_ns, packets: vec![0, 900, 100] };
    let idle = StageRow { stage: "hand_over".into(), time_ns: 0, packets: vec![0; 3] };
    vec![idle, of("receive", 12_345), of("forward", 41_960)]
}

fn port(device: &str, queue: u32, mode: &str, pairs: &[(&str, u64)]) -> PortRow {
    PortRow {
        device: device.into(),
        queue,
        mode: mode.into(),
        mac: mac("02:00:00:00:00:01"),
        mtu: 1500,
        counters: counters(pairs),
        rings: Default::default(),
    }
}

fn gateway(
    node: &str,
    is_own: bool,
    state: &str,
    heard_ms: Option<u64>,
    announced: u32,
    addresses: &[&str],
) -> GatewayRow {
    GatewayRow {
        node: node.into(),
        is_own,
        state: state.into(),
        addresses: addresses.iter().map(|address| ip(address)).collect(),
        heard_ms,
        generation: 41,
        objects: "0123456789abcdef".into(),
        is_equal: heard_ms.map(|_| true),
        announced,
        dual_owner_ms: 17,
        wrong_key: None,
    }
}

fn drop_reason(reason: &str, stage: &str, severity: &str, help: &str, packets: u64) -> DropRow {
    DropRow { reason: reason.into(), stage: stage.into(), severity: severity.into(), help: help.into(), packets }
}

/// An answer without rows, of the variant that fits `question`.
fn empty(question: &Show) -> Shown {
    match question {
        Show::Services => Shown::Services(vec![]),
        Show::Backends { .. } => Shown::Backends(vec![]),
        Show::Flows { .. } => Shown::Flows(vec![]),
        Show::Tunnels => Shown::Tunnels(vec![]),
        Show::Routes => Shown::Routes(vec![]),
        Show::Neighbours => Shown::Neighbours(vec![]),
        Show::Workers => Shown::Workers(vec![]),
        Show::Ports => Shown::Ports(vec![]),
        Show::Counters => Shown::Counters(Counters::default()),
        Show::Drops => Shown::Drops(vec![]),
        Show::Gateways => Shown::Gateways(Gateways::default()),
        Show::Announcements => Shown::Announcements(Announcements::default()),
        Show::Policies => Shown::Policies(Policies::default()),
        Show::Egress => Shown::Egress(EgressShown::default()),
        Show::Control => Shown::Control(Control::default()),
        Show::Readiness => Shown::Readiness(Readiness::default()),
    }
}

/// Every subcommand with the question it must ask; `args.rs` proves that the list of names is the contract's.
fn subcommands() -> Vec<(&'static str, Show)> {
    vec![
        ("services", Show::Services),
        ("backends", Show::Backends { service: None }),
        ("flows", Show::Flows { limit: 100, filter: FlowFilter::default() }),
        ("tunnels", Show::Tunnels),
        ("routes", Show::Routes),
        ("neighbours", Show::Neighbours),
        ("workers", Show::Workers),
        ("ports", Show::Ports),
        ("counters", Show::Counters),
        ("drops", Show::Drops),
        ("gateways", Show::Gateways),
        ("announcements", Show::Announcements),
        ("policies", Show::Policies),
        ("egress", Show::Egress),
        ("control", Show::Control),
        ("readiness", Show::Readiness),
    ]
}

#[test]
fn every_subcommand_prints_its_rows_in_aligned_columns() {
    for (name, question) in subcommands() {
        let dataplane = Dataplane::answering(canned(&question));
        let output = tidegate(&dataplane.socket(), &["show", name]).output().unwrap();
        golden(&format!("{name}.txt"), &printed(&output));
        assert_eq!(dataplane.asked(), question);
    }
}

#[test]
fn json_is_the_rows_of_the_contract_and_reads_back_equal() {
    for (name, question) in subcommands() {
        let answer = canned(&question);
        let dataplane = Dataplane::answering(answer.clone());
        let output = tidegate(&dataplane.socket(), &["show", name, "--json"]).output().unwrap();
        let text = printed(&output);
        let again = Dataplane::answering(answer.clone());
        let output = tidegate(&again.socket(), &["--json", "show", name]).output().unwrap();
        assert_eq!(printed(&output), text, "before the subcommand it means the same");
        assert!(text.lines().count() > 1 && text.ends_with('\n'), "pretty: {text}");
        let mut rows: serde_json::Value = serde_json::from_str(&text).unwrap();
        if name == "flows" {
            // For programs a protocol has a name everywhere; the contract has its number here.
            for (row, (name, number)) in rows.as_array_mut().unwrap().iter_mut().zip([("TCP", 6), ("UDP", 17)]) {
                assert_eq!(row["protocol"], name);
                row["protocol"] = number.into();
            }
        }
        let whole = serde_json::json!({ "what": name, "rows": rows });
        assert_eq!(serde_json::from_value::<Shown>(whole).unwrap(), answer);
        assert_eq!(dataplane.asked(), question);
    }
}

#[test]
fn no_rows_are_said_in_words_and_are_an_empty_list_in_json() {
    for (name, question) in subcommands() {
        let dataplane = Dataplane::answering(empty(&question));
        let output = tidegate(&dataplane.socket(), &["show", name]).output().unwrap();
        let expected = match name {
            "services" => "no Services\n".into(),
            "counters" => "no counters\n\nbooks balance\n".into(),
            "announcements" => "no announcements by route: dataplane.routes is not enabled in the node file\n".into(),
            "egress" => "no egress policy, and no static NAT\n".into(),
            "policies" => "no policies\n".into(),
            "control" => {
                "control: not connected, and not heard since the dataplane started 0 s ago; what it told last stays in \
                 force. Look at `systemctl status tidegate-control`, or in a cluster at `kubectl logs -n tidegate POD -c \
                 control`\n"
                    .into()
            }
            "readiness" => "ready, at generation 0\n".into(),
            other => format!("no {other}\n"),
        };
        assert_eq!(printed(&output), expected);
        if !["announcements", "control", "counters", "egress", "gateways", "policies", "readiness"].contains(&name) {
            let dataplane = Dataplane::answering(empty(&question));
            let output = tidegate(&dataplane.socket(), &["show", "--json", name]).output().unwrap();
            assert_eq!(printed(&output), "[]\n", "{name}");
        }
    }
}

#[test]
fn arguments_travel_with_the_question() {
    let dataplane = Dataplane::answering(canned(&Show::Backends { service: None }));
    let output = tidegate(&dataplane.socket(), &["show", "backends", "shop/web"]).output().unwrap();
    assert!(printed(&output).contains("shop/web"));
    assert_eq!(dataplane.asked(), Show::Backends { service: Some("shop/web".into()) });

    let question = Show::Flows { limit: 2, filter: FlowFilter::default() };
    let dataplane = Dataplane::answering(canned(&question));
    let output = tidegate(&dataplane.socket(), &["show", "flows", "--limit", "2"]).output().unwrap();
    assert!(printed(&output).ends_with("stopped at 2 flows; --limit N asks for more\n"));
    assert_eq!(dataplane.asked(), question);

    // Who knows no filter asks for all flows, and one that takes all is not written: either side may be older.
    let older = r#"{"what":"flows","limit":2}"#;
    assert_eq!(serde_json::from_str::<Show>(older).unwrap(), question);
    assert_eq!(serde_json::to_string(&question).unwrap(), older);

    let dataplane = Dataplane::answering(canned(&Show::Drops));
    let output = tidegate(&dataplane.socket(), &["show", "drops", "--all"]).output().unwrap();
    let text = printed(&output);
    assert_eq!(text.lines().count(), 5, "a heading and all four reasons: {text}");
}

#[test]
fn one_service_is_shown_alone_and_one_that_is_not_there_is_an_error() {
    let services = || Dataplane::answering(canned(&Show::Services));
    let show = |dataplane: &Dataplane, arguments: &[&str]| tidegate(&dataplane.socket(), arguments).output().unwrap();
    let text = printed(&show(&services(), &["show", "services", "shop/web"]));
    assert_eq!((text.lines().count(), text.contains("infra/dns")), (3, false), "{text}");
    let text = printed(&show(&services(), &["show", "services", "infra/dns", "--json"]));
    let rows: Vec<ServiceRow> = serde_json::from_str(&text).unwrap();
    assert_eq!((rows.len(), rows[0].service.as_str()), (1, "infra/dns"));
    for json in [&[][..], &["--json"]] {
        let text = complaint(&show(&services(), &[&["show", "services", "shop/gone"], json].concat()));
        assert!(text.contains("no Service shop/gone") && text.contains("tidegate show services"), "{text}");
        // Without backends it is told from one that is not there.
        let backends = |name| {
            show(&Dataplane::without(&Show::Backends { service: None }), &[&["show", "backends", name], json].concat())
        };
        assert!(complaint(&backends("shop/gone")).contains("no Service shop/gone"));
        let expected = if json.is_empty() { "no backends of Service infra/dns\n" } else { "[]\n" };
        assert_eq!(printed(&backends("infra/dns")), expected);
    }
}

#[test]
fn rows_can_be_asked_for_by_what_they_are_about() {
    let lines = |what: &str, arguments: &str| {
        let (_, question) = subcommands().into_iter().find(|(name, _)| *name == what).unwrap();
        let dataplane = Dataplane::answering(canned(&question));
        let line: Vec<&str> = ["show", what].into_iter().chain(arguments.split(' ')).collect();
        let text = printed(&tidegate(&dataplane.socket(), &line).output().unwrap());
        // Rows of the first table, without its heading.
        let rows: Vec<String> = text.lines().skip(1).take_while(|line| !line.is_empty()).map(String::from).collect();
        (rows.len(), rows.join("\n"))
    };
    for (what, arguments, rows, first) in [
        ("services", "--namespace infra", 1, "infra/dns"),
        ("services", "--address 203.0.113.0/28", 2, "203.0.113.11"),
        ("services", "--address 2001:db8:f::10", 1, "[2001:db8:f::10]:80"),
        ("services", "--protocol udp", 1, "infra/dns"),
        ("backends", "--node worker-1", 2, "10.244.1.5"),
        ("backends", "--address fd00::/16", 1, "[fd00:10:244:1::5]:8080"),
        ("backends", "--namespace shop --node worker-2", 1, "draining"),
        ("flows", "--client 192.0.2.0/24", 1, "ESTABLISHED"),
        ("flows", "--backend fd00:10:244:1::5 --protocol udp", 1, "UDP"),
        ("tunnels", "--node worker-1", 2, "2001:db8:2::11"),
        ("routes", "--to 10.244.1.9", 2, "0.0.0.0/0"),
        ("routes", "--device wan0", 2, "via fe80::1"),
        ("neighbours", "--device lan0", 2, "unresolved"),
        ("neighbours", "--address 192.0.2.0/24", 1, "STALE"),
        ("ports", "--device lan0", 1, "zero-copy"),
        ("drops", "--severity warning --all", 2, "SpoofedSource"),
        ("drops", "--stage route --all", 2, "NoRoute"),
        ("drops", "--reason noroute", 1, "NoRoute"),
        ("policies", "--all --namespace shop", 2, "networkpolicy/shop/clients"),
        ("egress", "--address 203.0.113.101", 1, "shop/out"),
    ] {
        let (count, text) = lines(what, arguments);
        assert!(count == rows && text.contains(first), "show {what} {arguments}: {count} rows\n{text}");
    }
    let dataplane = Dataplane::answering(canned(&Show::Drops));
    let output = tidegate(&dataplane.socket(), &["show", "drops", "--reason", "NoRoutes"]).output().unwrap();
    assert!(complaint(&output).contains("no drop reason NoRoutes"));
    let (_, flows) = subcommands().into_iter().find(|(name, _)| *name == "flows").unwrap();
    let without = Dataplane::without(&flows);
    let output = tidegate(&without.socket(), &["show", "flows", "--service", "shop/gone"]).output().unwrap();
    assert!(complaint(&output).contains("no Service shop/gone"));
}

#[test]
fn json_is_refused_where_it_means_nothing() {
    let output = tidegate(Path::new("/nowhere"), &["--json", "import", "ipvs"]).output().unwrap();
    assert!(complaint(&output).contains("--json is for `tidegate show`"));
}

#[test]
fn books_that_do_not_balance_are_said_loudly() {
    let Shown::Counters(mut counters) = canned(&Show::Counters) else { unreachable!() };
    counters.imbalance = 5;
    let dataplane = Dataplane::answering(Shown::Counters(counters));
    let output = tidegate(&dataplane.socket(), &["show", "counters"]).output().unwrap();
    let text = printed(&output);
    assert!(
        text.ends_with("\nBOOKS DO NOT BALANCE: 5 packets received or generated, but not accounted for\n"),
        "{text}"
    );
}

#[test]
fn the_socket_may_come_from_the_environment() {
    let dataplane = Dataplane::answering(canned(&Show::Workers));
    let output = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .env("TIDEGATE_SOCKET", dataplane.socket())
        .args(["show", "workers"])
        .output()
        .unwrap();
    golden("workers.txt", &printed(&output));
}

#[test]
fn when_nothing_runs_the_error_says_where_and_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("tidegate.sock");
    let said = |socket: &Path| complaint(&tidegate(socket, &["show", "services"]).output().unwrap());

    let text = said(&socket);
    assert!(text.contains("no dataplane runs here") && text.contains(socket.to_str().unwrap()), "{text}");
    assert!(text.contains("tidegate-dataplane --config") && text.contains("TIDEGATE_SOCKET"), "{text}");

    drop(UnixListener::bind(&socket).unwrap());
    let text = said(&socket);
    assert!(text.contains("leftover") && text.contains(socket.to_str().unwrap()), "{text}");

    std::fs::remove_file(&socket).unwrap();
    std::fs::write(&socket, "").unwrap();
    assert!(said(&socket).contains("is not a socket"));

    let long = directory.path().join("x".repeat(200));
    assert!(said(&long).contains("cannot ask at"));
}

#[test]
fn a_socket_that_may_not_be_opened_says_whose_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("tidegate.sock");
    let _listener = Listener::bind(&socket, 0o000).unwrap();
    let mut command = tidegate(&socket, &["show", "services"]);
    if std::fs::metadata(&socket).unwrap().uid() == 0 {
        // Root may open anything: ask as nobody, from a copy that nobody may run.
        let copy = directory.path().join("tidegate");
        // By a program of its own: a file that this one writes may still be open in a child another test has just made.
        assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_tidegate")).arg(&copy).status().unwrap().success());
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        command = Command::new(copy);
        command.arg("--socket").arg(&socket).args(["show", "services"]).current_dir("/").uid(65_534).gid(65_534);
    }
    let text = complaint(&command.output().unwrap());
    assert!(text.contains("permission denied") && text.contains("mode 0000, uid"), "{text}");
    assert!(text.contains("socketMode") && text.contains(socket.to_str().unwrap()), "{text}");
}

#[test]
fn a_refusal_a_wrong_answer_and_a_broken_conversation_are_told_apart() {
    let said = |answer: Option<Vec<u8>>| {
        let dataplane = Dataplane::listen(move |_| answer);
        complaint(&tidegate(&dataplane.socket(), &["show", "routes"]).output().unwrap())
    };

    let text = said(Some(message(&Response::Error { message: "worker 0 is gone".into() })));
    assert!(text.contains("refuses: worker 0 is gone"), "{text}");

    let text = said(Some(message(&Response::Shown(canned(&Show::Workers)))));
    assert!(text.contains("asked for routes, told about workers"), "{text}");
    assert!(text.contains("tidegate-dataplane 9.8.7") && text.contains(env!("CARGO_PKG_VERSION")), "{text}");

    let text = said(Some(message(&Response::Accepted(Default::default()))));
    assert!(text.contains("unexpected answer"), "{text}");

    let text = said(Some(raw(r#"{"shown":{"what":"weather","rows":[]}}"#)));
    assert!(text.contains("not understood") && text.contains("weather"), "{text}");

    let text = said(Some(raw(r#"{"shown":{"what":"routes","rows":[{"prefix":7}]}}"#)));
    assert!(text.contains("not understood"), "{text}");

    let text = said(None);
    assert!(text.contains("closed the connection without an answer"), "{text}");

    let text = said(Some(vec![0, 0, 1, 0, b'{']));
    assert!(text.contains("went away in the middle"), "{text}");

    let text = said(Some(b"HTTP/1.1 400 Bad Request\r\n".to_vec()));
    assert!(text.contains("does not speak Tidegate's contract"), "{text}");
}

#[test]
fn news_of_a_generation_before_the_answer_is_passed_over() {
    let dataplane = Dataplane::listen(|question| {
        let mut bytes = message(&Response::Reached { generation: 42 });
        bytes.extend(message(&Response::Shown(canned(question))));
        Some(bytes)
    });
    let output = tidegate(&dataplane.socket(), &["show", "tunnels"]).output().unwrap();
    golden("tunnels.txt", &printed(&output));
}

#[test]
fn unknown_fields_of_a_newer_dataplane_are_ignored() {
    let dataplane = Dataplane::listen(|_| {
        Some(raw(r#"{"shown":{"what":"routes","colour":"blue","rows":[
                {"prefix":"::/0","next_hops":["via fe80::1 dev wan0"],"origin":"kernel","mtu":1500,"metric":7}]}}"#))
    });
    let output = tidegate(&dataplane.socket(), &["show", "routes"]).output().unwrap();
    assert!(printed(&output).contains("::/0    kernel  1500  via fe80::1 dev wan0\n"));
}

#[test]
fn a_wrong_command_line_is_a_usage_error_with_status_2() {
    let nowhere = Path::new("/nonexistent.sock");
    for (arguments, expected) in [
        (&["show", "service"][..], "services"),
        (&["show"][..], "Usage: tidegate show"),
        (&["shew"][..], "show"),
        (&["show", "backends", "web"][..], "NAMESPACE/NAME"),
        (&["show", "flows", "--limit", "many"][..], "--limit"),
        (&["show", "flows", "--limit", "0"][..], "--limit"),
    ] {
        let output = tidegate(nowhere, arguments).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(text.contains(expected), "{arguments:?}: {text}");
    }
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    let (closed, go) = mpsc::channel::<()>();
    let dataplane = Dataplane::listen(move |_| {
        // The answer is far larger than a pipe holds, and leaves only once nobody reads any more.
        go.recv().unwrap();
        let one = flow(6, "192.0.2.10", "203.0.113.10", "10.244.9.2", "10.244.1.5", "ESTABLISHED");
        Some(message(&Response::Shown(Shown::Flows(vec![one; 5_000]))))
    });
    let mut child = tidegate(&dataplane.socket(), &["show", "flows", "--limit", "100000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    closed.send(()).unwrap();
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!((child.wait().unwrap().code(), text.as_str()), (Some(0), ""));
}

#[test]
fn an_answer_that_cannot_be_written_is_an_error() {
    let dataplane = Dataplane::answering(canned(&Show::Routes));
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = tidegate(&dataplane.socket(), &["show", "routes"]).stdout(full).output().unwrap();
    assert!(complaint(&output).contains("writing the answer"));
}

/// A dataplane that is asked to drain, or not to, and tells how many VIPs are left each time it is asked.
fn draining(left: &'static [u32]) -> (TempDir, JoinHandle<Option<bool>>) {
    let directory = tempfile::tempdir().unwrap();
    let listener = Listener::bind(&directory.path().join("tidegate.sock"), 0o600).unwrap();
    let thread = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap();
        let Ok(Request::Hello { .. }) = frame::read(&mut stream) else { return None };
        let holds = Default::default();
        let welcome = Response::Welcome { contract: 1, server: "x".into(), holds, reached: 1, prepares: false };
        frame::write(&mut stream, &welcome).unwrap();
        let Ok(Request::Drain { draining }) = frame::read(&mut stream) else { return None };
        frame::write(&mut stream, &Response::Draining { draining }).unwrap();
        let mut left = left.iter().copied();
        let mut last = 0;
        while let Ok(Request::Show(Show::Gateways)) = frame::read(&mut stream) {
            last = left.next().unwrap_or(last);
            let rows = vec![
                gateway("gw-1", true, "draining", None, last, &[]),
                gateway("gw-2", false, "lost", Some(9000), 0, &["198.51.100.2"]),
            ];
            let shown = Shown::Gateways(Gateways { rows, ..Gateways::default() });
            frame::write(&mut stream, &Response::Shown(shown)).unwrap();
        }
        Some(draining)
    });
    (directory, thread)
}

#[test]
fn a_drain_waits_until_others_announce() {
    let (directory, thread) = draining(&[3, 1, 0]);
    let output = tidegate(&directory.path().join("tidegate.sock"), &["drain"]).output().unwrap();
    assert!(printed(&output).starts_with("drained after "));
    assert_eq!(thread.join().unwrap(), Some(true));
    let (directory, thread) = draining(&[3]);
    let output = tidegate(&directory.path().join("tidegate.sock"), &["drain", "--wait", "0"]).output().unwrap();
    let text = complaint(&output);
    assert!(text.contains("3 VIPs are still announced here") && text.contains("gw-2 is lost"), "{text}");
    assert_eq!(thread.join().unwrap(), Some(true));
    let (directory, thread) = draining(&[]);
    let output = tidegate(&directory.path().join("tidegate.sock"), &["undrain"]).output().unwrap();
    assert_eq!(printed(&output), "takes part in announcing again\n");
    assert_eq!(thread.join().unwrap(), Some(false));
}
