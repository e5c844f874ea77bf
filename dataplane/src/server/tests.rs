use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::net::IpAddr;
use std::time::Instant;

use crossbeam::channel::{Sender, bounded};
use tidegate_api::client::{Client, ClientError};
use tidegate_api::message::{Accepted, AddressConflict, IpFamily, Prepare, Update, WayState};
use tidegate_api::resource::{Body, DeliveryMode, Kind, Scheduler};
use tidegate_api::show::{Counters, DropRow, FlowFilter, FlowRow, PortRow, Show, Shown, WorkerRow};

use super::query::{BackendUsage, QueryError};
use super::seats::SEATS_MAX;
use super::*;
use crate::capture::{CAPTURES_MAX, Form, Outcome, Tap, Told};
use crate::compile::tests::Notebook;
use crate::compile::thread::CompilerThread;
use crate::compile::{Compiler, Pinholes};
use crate::config;
use crate::kernel::{Change, KernelFacts, Neighbour, NeighbourKey, nud};
use crate::mailbox::FlowsWanted;
use crate::objects::key;
use crate::objects::saved::{self, Saver};
use crate::objects::tests::{backend, full, gateway, incremental, machine, named, peer, service};
use crate::probe::pulse::Pulse;
use crate::probe::{Finding, Way};
use crate::table::publish::{Publisher, Reader};
use crate::table::{BackendId, DeviceId, Family, Tables};
use crate::worker::Want;

/// Workers that have used every backend once, or hang. There is one, for captures.
struct Fixed {
    late: bool,
    taps: Taps,
}

/// Captures that are under way.
type Taps = Arc<Mutex<Vec<Box<Tap>>>>;

impl Fixed {
    fn unless_late<T>(&self, answer: T) -> Result<T, QueryError> {
        if self.late { Err(QueryError::Late { worker: 0, waited: Duration::from_secs(1) }) } else { Ok(answer) }
    }
}

impl WorkerQuery for Fixed {
    fn flows(&self, wanted: FlowsWanted, _: u32) -> Result<Vec<FlowRow>, QueryError> {
        // A flow for each row of the Service that is asked for.
        let row = FlowRow {
            worker: 0,
            protocol: 6,
            client: ("192.0.2.7".parse().unwrap(), 40_000),
            vip: ("203.0.113.10".parse().unwrap(), 80),
            source: ("10.244.9.2".parse().unwrap(), 31_000),
            backend: ("10.244.1.5".parse().unwrap(), 8080),
            state: "-".into(),
            idle_s: 0,
            packets: (1, 1),
            bytes: (1, 1),
        };
        self.unless_late(vec![row; wanted.services.len()])
    }

    fn backend_usage(&self, backends: &[BackendId]) -> Result<HashMap<BackendId, BackendUsage>, QueryError> {
        let once = BackendUsage { flows: 1, new_flows: 1, packets: 2, bytes: 3 };
        self.unless_late(backends.iter().map(|id| (*id, once)).collect())
    }

    fn workers(&self) -> Result<Vec<WorkerRow>, QueryError> {
        self.unless_late(vec![])
    }

    fn ports(&self) -> Result<Vec<PortRow>, QueryError> {
        self.unless_late(vec![])
    }

    fn counters(&self) -> Result<Counters, QueryError> {
        self.unless_late(Counters { totals: BTreeMap::from([("received".into(), 1)]), imbalance: 0 })
    }

    fn drops(&self) -> Result<Vec<DropRow>, QueryError> {
        self.unless_late(vec![])
    }

    fn workers_count(&self) -> usize {
        1
    }

    fn capture(&self, _: usize, tap: Box<Tap>) -> Result<bool, QueryError> {
        self.taps.lock().unwrap().push(tap);
        self.unless_late(true)
    }

    fn end_capture(&self, _: usize, number: u64) -> Result<Option<Box<Tap>>, QueryError> {
        let mut taps = self.taps.lock().unwrap();
        let at = taps.iter().position(|tap| tap.number == number);
        Ok(at.map(|at| taps.remove(at)))
    }
}

/// A dataplane without workers but for one reader, over a real socket.
struct Bench {
    directory: tempfile::TempDir,
    reader: Reader,
    wants: Sender<Want>,
    handle: Handle,
    gateways: gateways::Handle,
    taps: Taps,
    _server: Server,
    _compiler: CompilerThread,
}

fn bench() -> Bench {
    bench_of(Box::new(Notebook::default()), false)
}

fn bench_of(pinholes: Box<dyn Pinholes>, late: bool) -> Bench {
    let directory = tempfile::tempdir().unwrap();
    let (publisher, readers) = Publisher::new(Tables::default());
    let mut compiler = Compiler::new(["wan0", "lan0"], publisher, pinholes, Box::new(Notebook::default()));
    let facts = KernelFacts { layout: machine(), ..KernelFacts::default() };
    compiler.restore(facts, saved::load(directory.path()), 0);
    let reader = readers();
    let (wants, wanted) = bounded(16);
    let saver = Saver::start(directory.path().to_path_buf(), compiler.objects().snapshot()).unwrap();
    let (thread, handle) = CompilerThread::start(compiler, wanted, Some(saver), Instant::now()).unwrap();
    let path = directory.path().join("t.sock");
    let listener = Listener::bind(&path, 0o600).unwrap();
    let alone = config::Gateways::default();
    let gateways = gateways::Handle::new(gateways::thread::council("gw-1", &alone, 1)).unwrap();
    let announcers = Announcers { gateways: Some(gateways.clone()), ..Announcers::default() };
    let taps = Taps::default();
    let fixed = Fixed { late, taps: Arc::clone(&taps) };
    let server = Server::start(listener, handle.clone(), Arc::new(fixed), announcers).unwrap();
    Bench { directory, reader, wants, handle, gateways, taps, _server: server, _compiler: thread }
}

impl Bench {
    fn path(&self) -> PathBuf {
        self.directory.path().join("t.sock")
    }

    fn client(&self) -> Client {
        let mut client = Client::connect(&self.path(), "test").unwrap();
        client.set_timeout(Some(Duration::from_secs(20))).unwrap();
        client
    }
}

fn everything() -> Vec<tidegate_api::resource::Resource> {
    let backends = [backend("10.244.1.5", 8080, 2), backend("fd00:10:244:1::5", 8080, 0)];
    let web = service(&["203.0.113.10", "2001:db8:f::10"], 80, &backends);
    vec![named("gw", "1", gateway()), named("w1", "1", peer(1)), named("shop/web", "1", web)]
}

fn accepted(client: &mut Client) -> Accepted {
    loop {
        match client.receive().unwrap() {
            Response::Accepted(accepted) => return accepted,
            // What is said without being asked for comes when it comes.
            Response::Reached { .. } | Response::Delivery { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

fn reached(client: &mut Client) -> u64 {
    match client.receive().unwrap() {
        Response::Reached { generation } => generation,
        other => panic!("{other:?}"),
    }
}

#[test]
fn control_is_told_what_was_accepted_and_what_was_reached() {
    let mut bench = bench();
    let mut control = bench.client();
    assert!(control.holds.is_empty());
    let mut objects = everything();
    objects.push(named("shop/bad", "9", service(&["127.0.0.1"], 80, &[])));
    control.send(&Request::Update(Update { nonce: 77, ..full(objects.clone()) })).unwrap();
    let told = accepted(&mut control);
    assert_eq!(told.nonce, 77);
    assert_eq!((told.rejected.len(), told.rejected[0].key.name.as_str()), (1, "shop/bad"));
    assert!(told.rejected[0].reason.starts_with("addresses[0]: "), "{}", told.rejected[0].reason);
    // Not reached before the worker has looked; told without being asked once it has.
    assert!(bench.handle.reached() < told.generation);
    assert_eq!(bench.reader.refresh().generation, told.generation);
    while reached(&mut control) < told.generation {}
    // What is no news is reached already, and said after it was accepted.
    objects.pop();
    control.send(&Request::Update(Update { nonce: 78, ..incremental(objects) })).unwrap();
    assert!(
        matches!(control.receive().unwrap(), Response::Accepted(accepted) if accepted.nonce == 78 && accepted.generation == told.generation)
    );
    assert_eq!(reached(&mut control), told.generation);
    let again = bench.client();
    assert_eq!(again.holds[&key(Kind::Service, "shop/web")], "1");
    assert_eq!((again.holds.len(), again.reached), (3, told.generation));
}

#[test]
fn a_sign_of_life_is_heard_and_changes_nothing() {
    let bench = bench();
    let asked = |client: &mut Client| match client.show(Show::Control).unwrap() {
        Shown::Control(control) => control,
        other => panic!("{other:?}"),
    };
    let mut reader = bench.client();
    let none = asked(&mut reader);
    assert!(none.client.is_none() && !none.has_spoken, "who only asks is not control: {none:?}");
    let mut control = Client::connect(&bench.path(), "tidegate-control 7").unwrap();
    control.set_timeout(Some(Duration::from_secs(20))).unwrap();
    control.send(&Request::Update(full(everything()))).unwrap();
    let generation = accepted(&mut control).generation;
    std::thread::sleep(Duration::from_millis(300));
    let before = asked(&mut reader);
    assert!(before.client.as_deref() == Some("tidegate-control 7") && before.silent_ms >= 300, "{before:?}");
    control.send(&Request::Prepare(Prepare { resources: vec![] })).unwrap();
    assert!(asked(&mut control).silent_ms < 300, "its sign came before its question");
    assert_eq!(bench.handle.view(None).unwrap().tables.generation, generation);
    assert_eq!(bench.client().holds.len(), 3, "all is as it was");
    drop(control);
    let deadline = Instant::now() + Duration::from_secs(20);
    while asked(&mut reader).client.is_some() {
        assert!(Instant::now() < deadline, "it went, and nobody noticed");
    }
    assert!(asked(&mut reader).has_spoken);
}

#[test]
fn what_is_prepared_comes_in_force_at_once_or_not_at_all() {
    let mut bench = bench();
    let prepare = |client: &mut Client, resources| {
        client.send(&Request::Prepare(Prepare { resources })).unwrap();
        client.show(Show::Services).unwrap(); // it is answered after what came before
    };
    // A control that ends before it has told everything has told nothing.
    let mut first = bench.client();
    assert!(first.prepares);
    let other = named("shop/other", "1", service(&["203.0.113.11"], 80, &[backend("10.244.1.6", 80, 1)]));
    prepare(&mut first, vec![other]);
    drop(first);
    let mut control = bench.client();
    let before = bench.handle.view(Some(Kind::Service)).unwrap().tables.generation;
    for resource in everything() {
        prepare(&mut control, vec![resource]);
    }
    let gone = named("shop/gone", "1", service(&["203.0.113.12"], 80, &[]));
    prepare(&mut control, vec![gone.clone(), named("shop/bad", "9", service(&["127.0.0.1"], 80, &[]))]);
    let view = bench.handle.view(Some(Kind::Service)).unwrap();
    assert_eq!((view.tables.generation, view.objects.len()), (before, 0), "nothing is in force");
    assert!(bench.client().holds.is_empty());
    let update = Update { nonce: 5, removed: vec![gone.key()], prepared: true, ..incremental(vec![]) };
    control.send(&Request::Update(update)).unwrap();
    let told = accepted(&mut control);
    assert_eq!((told.nonce, told.generation, told.rejected.len()), (5, before + 1, 1), "{told:?}");
    assert_eq!(told.rejected[0].key.name, "shop/bad");
    bench.reader.refresh();
    let held: Vec<_> = bench.client().holds.into_keys().map(|key| key.name).collect();
    assert_eq!(held, ["gw", "w1", "shop/web"]);
    // The same as if it had come in one message.
    let whole = self::bench();
    let mut client = whole.client();
    client.send(&Request::Update(full(everything()))).unwrap();
    accepted(&mut client);
    let rows = |bench: &Bench| -> Vec<_> {
        let tables = bench.handle.view(None).unwrap().tables;
        let rings = tables.services.rows().map(|(id, row)| (id, row.cluster.ring.as_ref().map(|ring| ring.digest())));
        rings.collect()
    };
    assert_eq!(rows(&bench), rows(&whole));
    assert!(rows(&whole).iter().any(|(_, ring)| ring.is_some()));
}

#[test]
fn control_is_told_how_services_are_delivered() {
    let bench = bench();
    let mut control = bench.client();
    let mut objects = everything();
    let Body::Service(web) = &mut objects[2].body else { panic!() };
    web.ports[0].mode = DeliveryMode::NodeDsr;
    control.send(&Request::Update(full(objects.clone()))).unwrap();
    let delivery = |control: &mut Client| loop {
        match control.receive().unwrap() {
            Response::Delivery { services } => return services,
            Response::Accepted(_) | Response::Reached { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    let told = delivery(&mut control);
    assert_eq!((told.len(), told[0].service.as_str(), told[0].ports.len()), (1, "shop/web", 2));
    assert_eq!(told[0].ports[0].mode, DeliveryMode::Fullnat);
    let way = Way { service: "shop/web".into(), port: 80, family: Family::V4, node: "w1".into() };
    let proven = Finding { state: WayState::Proven, reason: String::new() };
    assert!(bench.handle.found(vec![(way, proven)], vec![]));
    let told = delivery(&mut control);
    assert_eq!((told[0].ports[0].mode, told[0].ports[1].mode), (DeliveryMode::NodeDsr, DeliveryMode::Fullnat));
    // The read side says the same.
    let Shown::Services(rows) = bench.client().show(Show::Services).unwrap() else { panic!() };
    assert_eq!((rows[0].mode.as_str(), rows[0].nodes.as_slice()), ("node-dsr", told[0].ports[0].nodes.as_slice()));
    assert_eq!((rows[1].mode.as_str(), rows[1].nodes.len()), ("fullnat", 1));
    let Shown::Backends(rows) = bench.client().show(Show::Backends { service: None }).unwrap() else { panic!() };
    let node = |underlay: &str| rows.iter().find(|row| row.address.to_string() == underlay).unwrap();
    let (v4, v6) = (node("198.51.100.11"), node("2001:db8:2::11"));
    assert_eq!((v4.node.as_str(), v4.weight, v4.state.as_str(), v4.backend_port), ("w1", 2, "active", 0));
    assert_eq!((v6.node.as_str(), v6.state.as_str()), ("w1", "unproven"));
    // Whoever comes later hears all of it, and hears when it ends.
    drop(control);
    let mut later = bench.client();
    later.send(&Request::Update(Update { nonce: 5, ..incremental(vec![]) })).unwrap();
    assert_eq!(delivery(&mut later), told);
    let Body::Service(web) = &mut objects[2].body else { panic!() };
    web.ports[0].mode = DeliveryMode::Fullnat;
    objects[2].version = "2".into();
    later.send(&Request::Update(incremental(vec![objects[2].clone()]))).unwrap();
    assert_eq!(delivery(&mut later)[0].ports, []);
}

#[test]
fn the_read_side_answers_every_question() {
    let mut bench = bench();
    let mut client = bench.client();
    client.send(&Request::Update(full(everything()))).unwrap();
    accepted(&mut client);
    bench.reader.go_offline();
    let known = |address: &str| {
        let key = NeighbourKey { ifindex: 2, address: address.parse().unwrap() };
        (key, Some(Neighbour { mac: Some([2, 0, 0, 0, 0, 7]), state: nud::STALE, managed: true }))
    };
    for address in ["192.0.2.10", "2001:db8:1::10"] {
        bench.handle.kernel(Change::Neighbours(vec![known(address)]));
        let address = crate::compile::mapped_ip(address.parse().unwrap());
        bench.wants.send(Want { device: DeviceId(0), address }).unwrap();
    }
    let mut reader = bench.client();
    let Shown::Services(rows) = reader.show(Show::Services).unwrap() else { panic!() };
    let of =
        |address: &str| rows.iter().find(|row| row.address == address.parse::<std::net::IpAddr>().unwrap()).unwrap();
    assert_eq!((of("203.0.113.10").backends, of("203.0.113.10").maglev_slots, of("203.0.113.10").packets), (1, 251, 2));
    assert_eq!((of("2001:db8:f::10").backends, of("2001:db8:f::10").maglev_slots), (0, 0), "draining only");
    let Shown::Backends(rows) = reader.show(Show::Backends { service: None }).unwrap() else { panic!() };
    let told: Vec<_> = rows.iter().map(|row| (row.state.as_str(), row.weight, row.pod.as_str(), row.flows)).collect();
    assert_eq!(told, [("active", 2, "p1", 1), ("draining", 0, "p1", 1)]);
    let one = reader.show(Show::Backends { service: Some("shop/none".into()) }).unwrap();
    assert_eq!(one, Shown::Backends(vec![]));
    let Shown::Tunnels(rows) = reader.show(Show::Tunnels).unwrap() else { panic!() };
    assert_eq!(rows.len(), 2, "one per family");
    assert!(rows.iter().all(|row| row.peer == "w1" && row.state == "no route"), "{rows:?}");
    let Shown::Routes(rows) = reader.show(Show::Routes).unwrap() else { panic!() };
    let overlay: Vec<_> =
        rows.iter().filter(|row| row.origin == "overlay").map(|row| row.next_hops.join(",")).collect();
    assert_eq!(overlay, ["tunnel w1", "tunnel w1"]);
    // Wants come by another way than questions: ask until both are there.
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let Shown::Neighbours(rows) = reader.show(Show::Neighbours).unwrap() else { panic!() };
        if rows.len() == 2 {
            assert!(
                rows.iter().all(|row| row.state == "STALE" && row.device == "wan0" && row.mac.is_some()),
                "{rows:?}"
            );
            break;
        }
        assert!(Instant::now() < deadline, "{rows:?}");
    }
    let of_service = |name: &str| {
        let filter = FlowFilter { service: Some(name.into()), ..FlowFilter::default() };
        Show::Flows { limit: 9, filter }
    };
    // The Service's rows are looked up here: workers look for numbers.
    let Shown::Flows(rows) = reader.show(of_service("shop/web")).unwrap() else { panic!() };
    assert!(!rows.is_empty());
    for (question, answer) in [
        (Show::Flows { limit: 9, filter: FlowFilter::default() }, Shown::Flows(vec![])),
        (of_service("shop/none"), Shown::Flows(vec![])),
        (Show::Workers, Shown::Workers(vec![])),
        (Show::Ports, Shown::Ports(vec![])),
        (Show::Drops, Shown::Drops(vec![])),
    ] {
        assert_eq!(reader.show(question).unwrap(), answer);
    }
    assert!(
        matches!(reader.show(Show::Counters).unwrap(), Shown::Counters(counters) if counters.totals["received"] == 1)
    );
}

#[test]
fn nonsense_is_answered_and_disturbs_nobody() {
    let bench = bench();
    let mut quiet = bench.client();
    // Not even a greeting.
    for noise in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0, 0, 0, 2, b'{', b'}'], &[0xff; 64]] {
        let mut stream = UnixStream::connect(bench.path()).unwrap();
        stream.write_all(noise).unwrap();
        assert!(matches!(frame::read(&mut stream), Ok(Response::Error { .. })), "{noise:?}");
        assert!(frame::read::<Response>(&mut stream).is_err(), "and cut off");
    }
    let mut stream = UnixStream::connect(bench.path()).unwrap();
    frame::write(&mut stream, &Request::Hello { contract: 999, client: "x".into() }).unwrap();
    let Ok(Response::Error { message }) = frame::read(&mut stream) else { panic!() };
    assert!(message.contains("contract version 999"), "{message}");
    // A greeting, then nonsense: the conversation goes on.
    let mut stream = UnixStream::connect(bench.path()).unwrap();
    frame::write(&mut stream, &Request::Hello { contract: CONTRACT_VERSION, client: "x".into() }).unwrap();
    assert!(matches!(frame::read(&mut stream), Ok(Response::Welcome { .. })));
    for nonsense in [
        "{\"type\":\"dance\"}",
        "[",
        "{\"type\":\"update\",\"nonce\":\"many\"}",
        "{\"type\":\"show\",\"what\":\"nothing\"}",
    ] {
        stream.write_all(&u32::try_from(nonsense.len()).unwrap().to_be_bytes()).unwrap();
        stream.write_all(nonsense.as_bytes()).unwrap();
        let Ok(Response::Error { message }) = frame::read(&mut stream) else { panic!("{nonsense}") };
        assert!(message.contains("not understood"), "{message}");
    }
    frame::write(&mut stream, &Request::Show(Show::Routes)).unwrap();
    assert!(matches!(frame::read(&mut stream), Ok(Response::Shown(_))));
    assert!(quiet.show(Show::Routes).is_ok());
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody() {
    let bench = bench();
    let mut deaf = UnixStream::connect(bench.path()).unwrap();
    frame::write(&mut deaf, &Request::Hello { contract: CONTRACT_VERSION, client: "deaf".into() }).unwrap();
    // Questions without end and no answer read, until the server's side of the socket is full.
    deaf.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    while frame::write(&mut deaf, &Request::Show(Show::Routes)).is_ok() {}
    let mut control = bench.client();
    for nonce in 0..20 {
        control.send(&Request::Update(Update { nonce, ..full(everything()) })).unwrap();
        assert_eq!(accepted(&mut control).nonce, nonce);
    }
}

#[test]
fn stuck_workers_are_an_error_text() {
    let bench = bench_of(Box::new(Notebook::default()), true);
    let mut client = bench.client();
    for question in
        [Show::Services, Show::Flows { limit: 1, filter: FlowFilter::default() }, Show::Workers, Show::Counters]
    {
        let Err(ClientError::Refused(text)) = client.show(question) else { panic!() };
        assert!(text.contains("worker 0 has not answered"), "{text}");
    }
    assert!(client.show(Show::Routes).is_ok(), "what needs no worker is still shown");
}

#[test]
fn idle_clients_keep_neither_control_nor_questions_out() {
    let bench = bench();
    let mut control = bench.client();
    control.send(&Request::Update(full(everything()))).unwrap();
    accepted(&mut control);
    let idle: Vec<_> = (0..SEATS_MAX / 2).map(|_| bench.client()).collect();
    let silent: Vec<_> = (0..SEATS_MAX).map(|_| UnixStream::connect(bench.path()).unwrap()).collect();
    // Whoever comes gets a seat, once the others have been idle for a moment.
    let deadline = Instant::now() + Duration::from_secs(20);
    for _ in 0..2 * SEATS_MAX {
        loop {
            match Client::connect(&bench.path(), "health").and_then(|mut client| client.show(Show::Routes)) {
                Ok(_) => break,
                Err(_) => assert!(Instant::now() < deadline, "locked out"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    control.send(&Request::Update(Update { nonce: 9, ..incremental(vec![]) })).unwrap();
    assert_eq!(accepted(&mut control).nonce, 9, "control keeps its seat");
    drop((idle, silent));
}

#[test]
fn a_greeting_is_short_and_in_time() {
    let bench = bench();
    let mut stream = UnixStream::connect(bench.path()).unwrap();
    stream.write_all(&(1u32 << 20).to_be_bytes()).unwrap();
    let Ok(Response::Error { message }) = frame::read(&mut stream) else { panic!() };
    assert!(message.contains("over the limit of 4096"), "{message}");
}

#[test]
fn a_second_control_is_refused_and_the_first_goes_on() {
    let bench = bench();
    let mut first = Client::connect(&bench.path(), "first\n1.0").unwrap();
    first.send(&Request::Update(full(everything()))).unwrap();
    accepted(&mut first);
    let mut second = bench.client();
    let other = named("shop/other", "1", service(&["203.0.113.99"], 80, &[]));
    second.send(&Request::Update(full(vec![other]))).unwrap();
    let Response::Error { message } = second.receive().unwrap() else { panic!() };
    assert!(message.contains("another control (first\\n1.0)"), "{message}");
    assert!(second.receive().is_err(), "and cut off");
    assert_eq!(bench.client().holds.len(), 3, "nothing of the second is taken");
    first.send(&Request::Update(Update { nonce: 8, ..incremental(vec![]) })).unwrap();
    assert_eq!(accepted(&mut first).nonce, 8);
    // With the first gone, another may have the say.
    drop(first);
    let mut third = bench.client();
    third.send(&Request::Update(Update { nonce: 3, ..incremental(vec![]) })).unwrap();
    assert_eq!(accepted(&mut third).nonce, 3);
}

#[test]
fn what_was_accepted_survives_a_restart_without_control() {
    let bench = bench();
    let mut control = bench.client();
    control.send(&Request::Update(full(everything()))).unwrap();
    accepted(&mut control);
    let Bench { directory, reader, wants, handle, _server, _compiler, .. } = bench;
    drop((_server, _compiler, reader, wants, handle));
    assert!(!directory.path().join("t.sock").exists(), "the socket file goes with the server");
    let saved = saved::load(directory.path());
    assert_eq!(saved.len(), 3);
}

#[test]
fn a_second_server_on_the_same_socket_is_refused() {
    let bench = bench();
    let second = Listener::bind(&bench.path(), 0o600);
    assert_eq!(second.err().map(|error| error.kind()), Some(io::ErrorKind::AddrInUse));
    assert!(bench.client().show(Show::Routes).is_ok(), "the first goes on");
}

#[test]
fn a_drain_is_passed_on_and_the_set_is_shown() {
    let bench = bench();
    let mut client = bench.client();
    for draining in [true, false] {
        client.send(&Request::Drain { draining }).unwrap();
        assert_eq!(client.receive().unwrap(), Response::Draining { draining });
    }
    let Shown::Gateways(shown) = client.show(Show::Gateways).unwrap() else { panic!("not asked for") };
    assert!(shown.alone.unwrap().contains("keyFile"));
    assert_eq!((shown.rows.len(), shown.rows[0].node.as_str(), shown.rows[0].is_own), (1, "gw-1", true));
    assert_eq!(bench.gateways.announced(), 0);
}

// S-114
#[test]
fn nodes_that_fall_silent_are_told_shown_and_counted() {
    let bench = bench();
    let told = |client: &mut Client| loop {
        match client.receive().unwrap() {
            Response::Suspects { nodes } => return nodes,
            Response::Reached { .. } | Response::Accepted(_) | Response::Delivery { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    let mut control = bench.client();
    control.send(&Request::Update(full(everything()))).unwrap();
    accepted(&mut control);
    let pulse = Pulse { node: "w1".into(), family: Family::V6 };
    assert!(bench.handle.found(vec![], vec![(pulse.clone(), true)]));
    let nodes = told(&mut control);
    assert_eq!((nodes.len(), nodes[0].node.as_str(), nodes[0].family), (1, "w1", IpFamily::Ipv6));
    let mut reader = bench.client();
    let counters = |reader: &mut Client| match reader.show(Show::Counters).unwrap() {
        Shown::Counters(counters) => (counters.totals["nodes_suspected"], counters.totals["node_suspicions"]),
        other => panic!("{other:?}"),
    };
    assert_eq!(counters(&mut reader), (1, 1));
    let Shown::Backends(rows) = reader.show(Show::Backends { service: None }).unwrap() else { panic!() };
    let states: Vec<_> = rows.iter().map(|row| (row.address.is_ipv4(), row.state.as_str())).collect();
    assert_eq!(states, [(true, "active"), (false, "suspected")]);
    assert_eq!(rows[0].reason, "");
    let why = &rows[1].reason;
    assert!(why.starts_with("node w1: no answer from 2001:db8:2::11 on TCP port 10256 for at least "), "{why}");
    assert!(why.ends_with(" s, and 2 s is the limit"), "{why}");
    drop(control);
    let mut later = bench.client();
    later.send(&Request::Update(incremental(vec![]))).unwrap();
    assert_eq!(told(&mut later), nodes, "a new conversation begins with all there are");
    assert!(bench.handle.found(vec![], vec![(pulse, false)]));
    assert_eq!(told(&mut later), vec![]);
    assert_eq!(counters(&mut reader), (0, 1));
}

// S-058, S-065
#[test]
fn what_never_leads_to_nodes_is_not_said_to() {
    let bench = bench();
    let mut control = bench.client();
    let mut objects = everything();
    let Body::Service(web) = &mut objects[2].body else { panic!() };
    web.cluster_addresses = vec!["10.96.0.9".parse().unwrap(), "fd00:96::9".parse().unwrap()];
    web.ports[0].mode = DeliveryMode::NodeDsr;
    web.ports[0].backends.iter_mut().for_each(|backend| (backend.weight, backend.local_weight) = (1, 1));
    (web.ports[0].scheduler, web.ports[0].affinity_timeout_s) = (Scheduler::Wlc, Some(600));
    control.send(&Request::Update(full(objects))).unwrap();
    accepted(&mut control);
    let proven = || Finding { state: WayState::Proven, reason: String::new() };
    let way = |family| Way { service: "shop/web".into(), port: 80, family, node: "w1".into() };
    assert!(bench.handle.found(vec![(way(Family::V4), proven()), (way(Family::V6), proven())], vec![]));
    let Shown::Services(rows) = bench.client().show(Show::Services).unwrap() else { panic!() };
    let told: Vec<_> = rows.iter().map(|row| (row.address.to_string(), row.mode.as_str(), row.scheduler)).collect();
    let of = |address: &str, mode, scheduler| (address.to_owned(), mode, scheduler);
    assert_eq!(told.len(), 4);
    for (vip, cluster) in [("203.0.113.10", "10.96.0.9"), ("2001:db8:f::10", "fd00:96::9")] {
        assert!(told.contains(&of(vip, "node-dsr", Scheduler::Mh)), "{told:?}");
        assert!(told.contains(&of(cluster, "fullnat", Scheduler::Wlc)), "{told:?}");
    }
    assert!(rows.iter().all(|row| (row.service_port, row.affinity_timeout_s) == (80, Some(600))));
}

#[test]
fn control_is_told_of_strangers_whole_and_when_they_change() {
    let bench = bench();
    let conflict = AddressConflict {
        address: "192.0.2.80".parse().unwrap(),
        mac: "02:00:00:00:be:ef".parse().unwrap(),
        device: "wan0".into(),
        withheld: true,
        kernel: None,
    };
    let told = |client: &mut Client| loop {
        match client.receive().unwrap() {
            Response::Conflicts { addresses } => return addresses,
            Response::Reached { .. } | Response::Accepted(_) | Response::Delivery { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    bench.handle.tell_conflicts(vec![]);
    let mut client = bench.client();
    client.send(&Request::Update(full(everything()))).unwrap();
    assert_eq!(told(&mut client), [], "a new conversation begins with all there are");
    bench.handle.tell_conflicts(vec![conflict.clone()]);
    assert_eq!(told(&mut client), std::slice::from_ref(&conflict));
    drop(client);
    let mut another = bench.client();
    another.send(&Request::Update(full(everything()))).unwrap();
    assert_eq!(told(&mut another), [conflict]);
    bench.handle.tell_conflicts(vec![]);
    assert_eq!(told(&mut another), vec![]);
}

/// Has the one worker tell of `count` packets.
fn packets_pass(taps: &Taps, count: u64) {
    for tap in taps.lock().unwrap().iter_mut() {
        for number in 0..count {
            let service = crate::table::ServiceId::NONE;
            let told = Told { number, at_ns: 1 << 40, outcome: Outcome::Sent(1), service, counted: 1, generation: 0 };
            let form = Form { after: number % 2 == 1, device: crate::table::DeviceId(0), frame: &[7; 60], inner: &[] };
            if tap.wants(told.outcome, std::iter::once(form)) {
                tap.copy(&told, &form);
            }
        }
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{what}");
}

fn everything_wanted() -> Request {
    serde_json::from_str(r#"{"capture": {"rate_per_s": 4294967295}}"#).unwrap()
}

fn begun(client: &mut Client) -> tidegate_api::capture::Begun {
    match client.receive().unwrap() {
        Response::Capturing(begun) => begun,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_capture_tells_packets_until_its_end_is_asked_for() {
    let bench = bench();
    let mut client = bench.client();
    client.send(&everything_wanted()).unwrap();
    assert_eq!(begun(&mut client).workers, 1);
    packets_pass(&bench.taps, 300);
    let mut numbers = Vec::new();
    while numbers.len() < 300 {
        let Response::Captured { packets } = client.receive().unwrap() else { panic!("not asked for") };
        numbers.extend(packets.iter().map(|packet| packet.number));
        let one = &packets[0];
        assert_eq!((one.worker, one.length, one.bytes.len(), one.after), (0, 60, 60, one.number % 2 == 1));
        assert_eq!(one.counted, ["received"]);
    }
    assert_eq!(numbers, (0..300).collect::<Vec<_>>());
    // Nothing else meanwhile; nonsense is told and survived.
    client.send(&Request::Show(Show::Routes)).unwrap();
    assert!(matches!(client.receive().unwrap(), Response::Error { message } if message.contains("end it first")));
    packets_pass(&bench.taps, 5);
    client.send(&Request::EndCapture {}).unwrap();
    let mut rest = 0;
    let tally = loop {
        match client.receive().unwrap() {
            Response::Captured { packets } => rest += packets.len(),
            Response::CaptureEnded(tally) => break tally,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((rest, tally.seen, tally.matched, tally.told), (5, 305, 305, 305));
    assert!(bench.taps.lock().unwrap().is_empty());
    assert!(client.show(Show::Routes).is_ok(), "the conversation goes on");
    client.send(&Request::EndCapture {}).unwrap();
    assert!(matches!(client.receive().unwrap(), Response::Error { .. }), "there is none");
}

#[test]
fn a_capture_ends_with_its_client_and_there_are_only_so_many() {
    let bench = bench();
    let mut clients: Vec<Client> = (0..CAPTURES_MAX).map(|_| bench.client()).collect();
    for client in &mut clients {
        client.send(&everything_wanted()).unwrap();
        begun(client);
    }
    assert_eq!(bench.taps.lock().unwrap().len(), CAPTURES_MAX);
    let mut late = bench.client();
    late.send(&everything_wanted()).unwrap();
    assert!(matches!(late.receive().unwrap(), Response::Error { message } if message.contains("end one of them")));
    // As when it is killed: the kernel closes its end.
    drop(clients.pop());
    eventually("it ends with its client", || bench.taps.lock().unwrap().len() == CAPTURES_MAX - 1);
    eventually("its place is free", || {
        late.send(&everything_wanted()).unwrap();
        matches!(late.receive().unwrap(), Response::Capturing(_))
    });
    drop((clients, late));
    eventually("all have ended", || bench.taps.lock().unwrap().is_empty());
}

#[test]
fn wrong_filters_and_devices_are_refused_and_leave_nothing_behind() {
    let bench = bench();
    let mut client = bench.client();
    let refused = [
        (r#"{"filter": [[6, 0, 0, 1], [40, 0, 0, 12]]}"#, "does not end with a return"),
        (r#"{"filter": [[21, 200, 0, 1], [6, 0, 0, 1]]}"#, "jumps out"),
        (r#"{"inner": [[52, 0, 0, 0], [6, 0, 0, 1]]}"#, "divides by zero"),
        (r#"{"inner": [[255, 0, 0, 0], [6, 0, 0, 1]]}"#, "none of classic BPF"),
        (r#"{"device": "wan9"}"#, "wan9 is no device"),
        (r#"{"snap_bytes": 0}"#, "snap_bytes is 0"),
        (r#"{"rate_per_s": 0}"#, "rate_per_s is 0"),
        (r#"{"filter": "tcp port 80"}"#, "not understood"),
    ];
    for _ in 0..CAPTURES_MAX {
        for (wanted, expected) in refused {
            let request = format!(r#"{{"capture": {wanted}}}"#);
            let mut stream = client.try_clone_stream().unwrap();
            stream.write_all(&u32::try_from(request.len()).unwrap().to_be_bytes()).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let answer = client.receive().unwrap();
            assert!(
                matches!(&answer, Response::Error { message } if message.contains(expected)),
                "{wanted}: {answer:?}"
            );
        }
    }
    assert!(bench.taps.lock().unwrap().is_empty());
    client.send(&everything_wanted()).unwrap();
    begun(&mut client);
}

/// Whoever does not read holds up nobody: packets are left out, and the capture ends when writing has waited too long.
#[test]
fn a_reader_that_never_reads_is_left_out() {
    let bench = bench();
    let mut sleeper = bench.client();
    sleeper.send(&everything_wanted()).unwrap();
    begun(&mut sleeper);
    // More than any socket holds.
    let left_out = || bench.taps.lock().unwrap().first().map_or(0, |tap| tap.tally.left_out_full);
    eventually("packets are left out", || {
        packets_pass(&bench.taps, 1500);
        left_out() > 0
    });
    assert!(bench.client().show(Show::Routes).is_ok(), "others are served");
    drop(sleeper);
    eventually("it ends", || bench.taps.lock().unwrap().is_empty());
}

/// A bare TCP packet to `port` of an address.
fn bare_tcp(source: IpAddr, destination: IpAddr, port: u16) -> Vec<u8> {
    let builder = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            etherparse::PacketBuilder::ipv4(source.octets(), destination.octets(), 64)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            etherparse::PacketBuilder::ipv6(source.octets(), destination.octets(), 64)
        }
        _ => panic!("{source} {destination}"),
    };
    let mut packet = Vec::new();
    builder.tcp(40_000, port, 1, 1000).syn().write(&mut packet, &[]).unwrap();
    packet
}

/// Frames that parse refuses: what has no address of Tidegate's where the XDP program looks goes to the kernel, and what has
/// one comes to a worker, however wrong it is further in.
#[test]
fn what_cannot_be_read_is_told_as_the_kernels_unless_it_has_an_address_of_ours() {
    let bench = bench();
    let mut client = bench.client();
    client.send(&Request::Update(full(everything()))).unwrap();
    accepted(&mut client);
    let ask = |bytes: Vec<u8>| {
        let question = tidegate_api::explain::Question {
            device: Some("wan0".into()),
            is_frame: true,
            bytes,
            ..Default::default()
        };
        bench.client().explain(question).map(|told| told.verdict)
    };
    let kernels = |bytes: Vec<u8>| match ask(bytes.clone()) {
        Ok(tidegate_api::explain::Verdict::Kernel { why }) => why,
        other => panic!("{bytes:02x?}: {other:?}"),
    };
    let frame =
        |ethertype: &[u8], rest: &[u8]| [&[1, 0x80, 0xc2, 0, 0, 14, 2, 0, 0, 0, 0, 9], ethertype, rest].concat();
    assert!(kernels(frame(&[0x88, 0xcc], &[0; 46])).ends_with("EtherType 0x88cc is neither"), "LLDP");
    assert!(kernels(frame(&[0x00, 0x26], &[0x42; 38])).ends_with("EtherType 0x0026 is neither"), "STP");
    let twice = [0x88, 0xa8, 0, 5, 0x81, 0, 0, 6];
    assert!(kernels(frame(&twice, &[0x88, 0xcc, 0, 0])).ends_with("EtherType 0x88cc is neither"), "802.1ad");
    assert!(kernels(frame(&twice, &[0x81, 0, 0, 7, 8, 0])).ends_with("EtherType 0x8100 is neither"), "a third tag");
    assert!(kernels(frame(&[0x81, 0, 0, 5], &[])).contains("cannot read"), "a tag that ends");
    for (ethertype, own, vip, outside, header) in [
        ([0x08, 0x00], "192.0.2.1", "203.0.113.10", "192.0.2.7", 20),
        ([0x86, 0xdd], "2001:db8:1::1", "2001:db8:f::10", "2001:db8:1::7", 40),
    ] {
        let packet = |to: &str| bare_tcp(outside.parse().unwrap(), to.parse().unwrap(), 80);
        for cut in 0..header {
            assert!(kernels(frame(&ethertype, &packet(vip)[..cut])).contains("cannot read"), "{vip}, {cut} bytes");
        }
        let mut other = packet(vip);
        other[0] = 0x50;
        assert!(kernels(frame(&ethertype, &other)).contains("cannot read"), "no such version");
        // Whole as far as the address: ours come, and of the kernel's own what ends before its ports is passed too.
        for cut in header..packet(vip).len() {
            let come = ask(frame(&ethertype, &packet(vip)[..cut]));
            assert!(!matches!(come, Ok(tidegate_api::explain::Verdict::Kernel { .. })), "{vip}, {cut} bytes: {come:?}");
            let why = kernels(frame(&ethertype, &packet(own)[..cut]));
            assert_eq!(why.contains("cannot read"), cut < header + 4, "{own}, {cut} bytes: {why}");
        }
    }
}

#[test]
fn what_the_kernel_has_is_told_to_control_and_to_whoever_asks() {
    let bench = bench();
    let mut client = bench.client();
    client.send(&Request::Update(full(everything()))).unwrap();
    accepted(&mut client);
    let ask = |source: &str, destination: &str, port| {
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        let question = tidegate_api::explain::Question {
            device: Some("wan0".into()),
            bytes: bare_tcp(source, destination, port),
            ..Default::default()
        };
        bench.client().explain(question)
    };
    let why = |told: Result<tidegate_api::explain::Explanation, ClientError>| {
        let told = told.unwrap();
        let steps: Vec<String> = told
            .steps
            .iter()
            .filter_map(|step| match step {
                tidegate_api::explain::Step::Lacks { what, found, needed } => {
                    Some(format!("{what}: {found}; {needed}"))
                }
                _ => None,
            })
            .collect();
        match told.verdict {
            tidegate_api::explain::Verdict::Kernel { why } => (why, steps),
            other => panic!("{other:?}"),
        }
    };
    let mut taking = machine();
    for (client_address, own, underlay, vip, source, length) in [
        ("192.0.2.7", "192.0.2.1", "198.51.100.1", "203.0.113.10", "10.244.9.2", 32),
        ("2001:db8:1::7", "2001:db8:1::1", "2001:db8:2::1", "2001:db8:f::10", "fd00:10:244:9::2", 128),
    ] {
        assert_eq!(
            why(ask(client_address, own, 22)),
            (
                format!(
                    "the pinhole has no entry for {own}, nor for its TCP port 22; {own} is this machine's own, on wan0"
                ),
                vec![]
            )
        );
        let (told, _) = why(ask(client_address, underlay, 179));
        assert!(told.ends_with("on lan0, and of it Tidegate has UDP port 8472 (VXLAN) alone"), "{told}");
        // Workers of this bench explain nothing: what is ours is put to them.
        for ours in [vip, source] {
            let refused = ask(client_address, ours, 80).map(|told| told.verdict);
            assert!(!matches!(refused, Ok(tidegate_api::explain::Verdict::Kernel { .. })), "{ours}: {refused:?}");
        }
        for address in [vip, source] {
            let address: IpAddr = address.parse().unwrap();
            taking.addresses.insert(crate::kernel::Address { ifindex: 2, address, prefix: address.into() });
        }
        bench.handle.kernel(Change::Layout(taking.clone()));
        let mends = |address: &str| {
            format!(
                "also an address of this machine's kernel, on wan0, and left to it; an address that is Tidegate's alone (ip \
                 address del {address}/{length} dev wan0)"
            )
        };
        let (_, steps) = why(ask(client_address, vip, 80));
        assert_eq!(steps, [format!("address {vip} of Service shop/web: {}", mends(vip))]);
        let (_, steps) = why(ask(client_address, source, 80));
        assert_eq!(steps, [format!("fullnat source {source} (control.fullnatSources): {}", mends(source))]);
    }
    let all = loop {
        match client.receive().unwrap() {
            Response::Conflicts { addresses } if addresses.len() == 4 => break addresses,
            Response::Conflicts { .. } | Response::Reached { .. } | Response::Delivery { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    assert!(all.iter().all(|told| told.kernel.is_some() && told.device == "wan0" && told.withheld), "{all:?}");
    bench.handle.kernel(Change::Layout(machine()));
    while !matches!(client.receive().unwrap(), Response::Conflicts { addresses } if addresses.is_empty()) {}
}
