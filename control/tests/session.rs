//! The conversation with a dataplane: a stand-in that speaks the contract on a real Unix socket.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rig::{endpoints, node, node_file, service, slice};
use serde_json::Value;
use tempfile::TempDir;
use tidegate_api::frame;
use tidegate_api::listen::Listener;
use tidegate_api::message::{
    Accepted, AddressConflict, CONTRACT_VERSION, IpFamily, NodeDelivery, NodeSuspicion, PortDelivery, Rejection,
    Request, Response, ServiceDelivery, Update, WayState,
};
use tidegate_api::resource::{Body, DeliveryMode, Protocol, Resource, ResourceKey, Versions};
use tidegate_control::reconcile::{Input, Reconciler};
use tidegate_control::session::link::keep_connected;
use tidegate_control::source::directory::Directory;
use tidegate_control::source::nevergood::NeverGood;
use tidegate_control::source::scan::CONFIRM_FILE;
use tidegate_control::source::{Running, Source};
use tidegate_control::status::StatusWriter;

/// Longest wait for something that must happen; never waited for when it does.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running control process in this process, on a directory of its own.
struct Control {
    home: TempDir,
    inbox: Sender<Input>,
    source: Option<Running>,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    fn home() -> TempDir {
        let home = TempDir::new().unwrap();
        fs::create_dir(home.path().join("manifests")).unwrap();
        home
    }

    fn start(home: TempDir) -> Self {
        Self::start_with(home, "")
    }

    fn start_with(home: TempDir, extra: &str) -> Self {
        let file = node_file(home.path(), extra);
        let (inbox, taken) = channel();
        let never_good = NeverGood::default();
        let directory = Directory::new(file.control.source.directory().unwrap());
        let source = Box::new(directory.letting_go(never_good.clone()));
        let status = StatusWriter::start(&file.state_dir).unwrap();
        let mut reconciler = Reconciler::new(file.clone(), source.dialect(), status).naming(never_good);
        let batches = inbox.clone();
        let source = source.start(Box::new(move |batch| batches.send(Input::Source(batch)).is_ok())).unwrap();
        let news = inbox.clone();
        let socket = file.socket.clone();
        thread::spawn(move || {
            keep_connected(socket, "test".into(), |heard| news.send(Input::Dataplane(heard)).is_ok())
        });
        let thread = thread::spawn(move || reconciler.run(&taken, &std::sync::mpsc::channel().1));
        Control { home, inbox, source: Some(source), thread: Some(thread) }
    }

    /// Ends it and hands the directory to the next one.
    fn stop(mut self) -> TempDir {
        self.source = None;
        self.inbox.send(Input::Stop).unwrap();
        self.thread.take().unwrap().join().unwrap();
        self.home
    }

    fn write(&self, file: &str, text: &str) {
        write(self.home.path(), file, text);
    }

    fn remove(&self, file: &str) {
        fs::remove_file(self.home.path().join("manifests").join(file)).unwrap();
    }

    /// A status file once it fits.
    fn status(&self, file: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let path = self.home.path().join("state/status").join(file);
        let begun = Instant::now();
        loop {
            let value = fs::read(&path).ok().map(|bytes| serde_json::from_slice::<Value>(&bytes).unwrap());
            match value {
                Some(value) if fits(&value) => return value,
                value => assert!(begun.elapsed() < PATIENCE, "{file} stays {value:#?}"),
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn expect_no_problem(&self, reason: &str) {
        self.status("problems.json", |list| {
            list["problems"].as_array().unwrap().iter().all(|problem| problem["reason"] != reason)
        });
    }

    fn problem(&self, reason: &str) -> String {
        let has = |problem: &&Value| problem["reason"] == reason;
        let fits = |list: &Value| list["problems"].as_array().unwrap().iter().any(|problem| has(&problem));
        let list = self.status("problems.json", fits);
        list["problems"].as_array().unwrap().iter().find(has).unwrap().to_string()
    }
}

fn write(home: &Path, file: &str, text: &str) {
    fs::write(home.join("manifests").join(file), text).unwrap();
}

/// The stand-in for a dataplane.
struct Dataplane {
    listener: Listener,
}

/// One conversation: requests arrive at once, answers are given when the test says so.
struct Talk {
    stream: UnixStream,
    requests: Receiver<Request>,
}

impl Dataplane {
    fn listen(home: &Path) -> Self {
        Dataplane { listener: Listener::bind(&home.join("tidegate.sock"), 0o600).unwrap() }
    }

    /// Accepts control and greets it.
    fn accept(&self, holds: &Versions, reached: u64) -> Talk {
        let stream = self.listener.accept().unwrap();
        let (sender, requests) = channel();
        let mut reading = stream.try_clone().unwrap();
        thread::spawn(move || {
            while let Ok(request) = frame::read::<Request>(&mut reading) {
                if sender.send(request).is_err() {
                    return;
                }
            }
        });
        let talk = Talk { stream, requests };
        let hello = talk.requests.recv_timeout(PATIENCE).unwrap();
        assert!(matches!(hello, Request::Hello { contract: CONTRACT_VERSION, .. }), "{hello:?}");
        let holds = holds.clone();
        talk.say(&Response::Welcome { contract: 1, server: "stand-in".into(), holds, reached, prepares: false });
        talk
    }
}

impl Talk {
    fn say(&self, response: &Response) {
        frame::write(&mut &self.stream, response).unwrap();
    }

    fn update(&self) -> Update {
        match self.requests.recv_timeout(PATIENCE).unwrap() {
            Request::Update(update) => update,
            other => panic!("{other:?}"),
        }
    }

    fn accept(&self, update: &Update, generation: u64) {
        self.reject(update, generation, vec![]);
    }

    fn reject(&self, update: &Update, generation: u64, rejected: Vec<Rejection>) {
        self.say(&Response::Accepted(Accepted { nonce: update.nonce, generation, rejected }));
    }

    fn reached(&self, generation: u64) {
        self.say(&Response::Reached { generation });
    }

    /// Nothing comes although something was said that could have caused it.
    fn expect_silence(&self) {
        let got = self.requests.recv_timeout(Duration::from_millis(100));
        assert!(matches!(got, Err(RecvTimeoutError::Timeout)), "{got:?}");
    }

    fn end(self) {
        self.stream.shutdown(std::net::Shutdown::Both).unwrap();
    }
}

fn names(update: &Update) -> Vec<String> {
    update.resources.iter().map(|resource| resource.key().to_string()).collect()
}

fn removed(update: &Update) -> Vec<String> {
    update.removed.iter().map(ToString::to_string).collect()
}

fn versions(update: &Update) -> Versions {
    update.resources.iter().map(|resource| (resource.key(), resource.version.clone())).collect()
}

fn rejection(update: &Update, key: &str) -> Rejection {
    let resource = update.resources.iter().find(|resource| resource.key().to_string() == key).unwrap();
    Rejection { key: resource.key(), version: resource.version.clone(), reason: "addresses: taken".into() }
}

fn web(n: u8) -> String {
    service(&format!("web{n}"), &format!("loadBalancerIP: 203.0.113.{n}, ports: [{{ name: http, port: 80 }}]"))
}

fn web_slice(n: u8, hosts: &[&str]) -> String {
    slice(&format!("web{n}-x"), &format!("web{n}"), "IPv4", "{ name: http, port: 8080 }", &endpoints(hosts))
}

fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
    status["conditions"].as_array().unwrap().iter().find(|condition| condition["type"] == kind).unwrap_or(&Value::Null)
}

fn is_programmed(status: &Value) -> bool {
    condition(status, "Programmed")["status"] == "True"
}

#[test]
fn a_full_sync_then_only_what_changed_and_status_after_the_workers() {
    let home = Control::home();
    write(home.path(), "nodes.yaml", &(node("gw-1", 9) + &node("w1", 1)));
    write(home.path(), "web.yaml", &(web(1) + &web_slice(1, &["10.244.1.5"])));
    let dataplane = Dataplane::listen(home.path());
    let control = Control::start(home);
    let talk = dataplane.accept(&Versions::new(), 0);
    let update = talk.update();
    assert!(update.full);
    assert_eq!(names(&update), ["gateway gw-1", "peer w1", "service shop/web1"]);
    talk.accept(&update, 7);

    // One change at a time is on its way; status waits for the workers (C-001).
    control.write("web.yaml", &(web(1) + &web_slice(1, &["10.244.1.5", "10.244.1.6"])));
    let delta = talk.update();
    assert!(!delta.full);
    assert_eq!(names(&delta), ["service shop/web1"], "only its Service is sent again");
    assert!(!control.home.path().join("state/status/shop.web1.json").exists());
    control.write("more.yaml", &web(2));
    control.write("most.yaml", &web(3));
    talk.expect_silence();
    talk.accept(&delta, 8);
    let gathered = talk.update();
    assert_eq!(names(&gathered), ["service shop/web2", "service shop/web3"], "what changed meanwhile goes at once");
    talk.accept(&gathered, 9);
    talk.reached(8);
    let status = control.status("shop.web1.json", is_programmed);
    assert_eq!(status["loadBalancer"]["ingress"][0]["ip"], "203.0.113.1");
    assert!(!control.home.path().join("state/status/shop.web2.json").exists(), "generation 9 is not reached");
    talk.reached(9);
    control.status("shop.web2.json", is_programmed);

    control.remove("more.yaml");
    let delta = talk.update();
    assert_eq!((names(&delta).len(), removed(&delta)), (0, vec!["service shop/web2".to_string()]));
    talk.accept(&delta, 10);
    talk.reached(10);
    let begun = Instant::now();
    while control.home.path().join("state/status/shop.web2.json").exists() {
        assert!(begun.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(5));
    }
    control.stop();
}

#[test]
fn a_gateway_that_the_directory_lacks_after_a_restart_stays_until_confirmed() {
    let home = Control::home();
    write(home.path(), "web.yaml", &web(1));
    let dataplane = Dataplane::listen(home.path());
    let control = Control::start(home);
    let key = ResourceKey { kind: tidegate_api::resource::Kind::Gateway, name: "gw-1".into() };
    let talk = dataplane.accept(&Versions::from([(key, "1".into())]), 1);
    let update = talk.update();
    assert_eq!((names(&update), removed(&update).len(), update.full), (vec!["service shop/web1".into()], 0, false));
    talk.accept(&update, 2);
    assert!(control.problem("DeletesHeld").contains("gateway gw-1"));
    control.write(CONFIRM_FILE, "");
    let update = talk.update();
    assert_eq!(removed(&update), ["gateway gw-1"]);
    talk.accept(&update, 3);
    control.stop();

    // A gateway under another name takes the place of one.
    let home = Control::home();
    write(home.path(), "nodes.yaml", &node("gw-1", 9));
    let dataplane = Dataplane::listen(home.path());
    let control = Control::start(home);
    let key = ResourceKey { kind: tidegate_api::resource::Kind::Gateway, name: "gw-0".into() };
    let update = dataplane.accept(&Versions::from([(key, "1".into())]), 1).update();
    assert_eq!((names(&update), removed(&update)), (vec!["gateway gw-1".into()], vec!["gateway gw-0".into()]));
    control.stop();
}

#[test]
fn control_waits_for_a_dataplane_and_follows_its_restarts() {
    let home = Control::home();
    write(home.path(), "web.yaml", &(web(1) + &web(2)));
    let control = Control::start(home);
    assert!(control.problem("DataplaneAbsent").contains("no dataplane answers"));
    let dataplane = Dataplane::listen(control.home.path());
    let talk = dataplane.accept(&Versions::new(), 0);
    let full = talk.update();
    assert!(full.full);
    talk.accept(&full, 1);
    talk.reached(1);
    control.status("shop.web1.json", is_programmed);

    // It restarts with what it has saved: nothing differs, and an empty update asks for the generation.
    talk.end();
    let talk = dataplane.accept(&versions(&full), 0);
    let update = talk.update();
    assert!(!update.full && names(&update).is_empty() && removed(&update).is_empty(), "{update:?}");
    talk.accept(&update, 1);
    talk.reached(1);

    // It restarts with an older state, and one object we no longer have.
    talk.end();
    let mut holds = versions(&full);
    let old = ResourceKey { kind: tidegate_api::resource::Kind::Service, name: "shop/web2".into() };
    holds.insert(old.clone(), "older".into());
    holds.insert(ResourceKey { name: "shop/gone".into(), ..old }, "1".into());
    let talk = dataplane.accept(&holds, 0);
    let update = talk.update();
    assert!(!update.full);
    assert_eq!(
        (names(&update), removed(&update)),
        (vec!["service shop/web2".into()], vec!["service shop/gone".to_string()])
    );
    talk.accept(&update, 2);

    // It restarts with nothing.
    talk.end();
    let talk = dataplane.accept(&Versions::new(), 0);
    assert!(talk.update().full);
    control.stop();
}

#[test]
fn a_restart_of_control_sends_nothing_when_nothing_changed() {
    let home = Control::home();
    write(home.path(), "all.yaml", &(node("gw-1", 9) + &web(1) + &web_slice(1, &["10.244.1.5"])));
    let dataplane = Dataplane::listen(home.path());
    let control = Control::start(home);
    let talk = dataplane.accept(&Versions::new(), 0);
    let full = talk.update();
    talk.accept(&full, 1);
    talk.reached(1);
    let before = control.status("shop.web1.json", is_programmed);
    write(control.home.path(), "../state/status/shop.stale.json", "{}");
    let control = Control::start(control.stop());
    let talk = dataplane.accept(&versions(&full), 1);
    let update = talk.update();
    assert!(names(&update).is_empty() && removed(&update).is_empty(), "{update:?}");
    talk.accept(&update, 1);
    // Already reached: no further news is needed. Nothing flaps, and times of conditions stay (C-006).
    let stale = control.home.path().join("state/status/shop.stale.json");
    let begun = Instant::now();
    while stale.exists() {
        assert!(begun.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(control.status("shop.web1.json", is_programmed), before);
    control.stop();
}

#[test]
fn a_refused_object_is_told_and_not_sent_again_until_it_changes() {
    let home = Control::home();
    write(home.path(), "web.yaml", &(web(1) + &web(2)));
    let dataplane = Dataplane::listen(home.path());
    let control = Control::start(home);
    let talk = dataplane.accept(&Versions::new(), 0);
    let full = talk.update();
    talk.reject(&full, 1, vec![rejection(&full, "service shop/web2")]);
    talk.reached(1);
    control.status("shop.web1.json", is_programmed);
    let refused = control.status("shop.web2.json", |status| condition(status, "Programmed")["reason"] == "Refused");
    assert!(condition(&refused, "Programmed")["message"].as_str().unwrap().contains("addresses: taken"));
    assert_eq!(refused["loadBalancer"]["ingress"], Value::Array(vec![]));
    let problem = control.problem("Refused");
    for part in ["\"object\":\"Service shop/web2\"", "\"file\":\"web.yaml\"", "\"line\":"] {
        assert!(problem.contains(part), "{problem}");
    }
    control.write("other.yaml", &web(3));
    let update = talk.update();
    assert_eq!(names(&update), ["service shop/web3"], "the refused version is not sent again");
    talk.accept(&update, 2);
    control.write("web.yaml", &(web(1) + &web(2).replace("203.0.113.2", "203.0.113.20")));
    let update = talk.update();
    assert_eq!(names(&update), ["service shop/web2"]);
    talk.accept(&update, 3);
    talk.reached(3);
    control.status("shop.web2.json", is_programmed);
    control
        .status("problems.json", |list| list["problems"].as_array().unwrap().iter().all(|p| p["reason"] != "Refused"));

    // Refused while an earlier version is held: that one stays in force.
    control.write("web.yaml", &(web(1) + &web(2).replace("203.0.113.2", "203.0.113.21")));
    let update = talk.update();
    talk.reject(&update, 3, vec![rejection(&update, "service shop/web2")]);
    let status = control.status("shop.web2.json", |status| !is_programmed(status));
    assert!(condition(&status, "Programmed")["message"].as_str().unwrap().contains("the version before it stays"));
    // Back to what is held: nothing needs to be sent, and it is programmed again.
    control.write("web.yaml", &(web(1) + &web(2).replace("203.0.113.2", "203.0.113.20")));
    control.status("shop.web2.json", is_programmed);
    control.stop();
}

#[test]
fn two_claims_of_one_frontend_are_told_to_the_loser() {
    // S-067: the older one, then the first by name.
    let home = Control::home();
    let claim = |name: &str, created: &str| {
        rig::service_with(
            name,
            &format!("creationTimestamp: {created}"),
            "loadBalancerIP: 203.0.113.1, ports: [{ port: 80 }]",
        )
    };
    write(home.path(), "a.yaml", &claim("a", "2024-01-02T00:00:00Z"));
    write(home.path(), "b.yaml", &claim("b", "2024-01-01T00:00:00Z"));
    let dataplane = Dataplane::listen(home.path());
    let control = Control::start(home);
    let talk = dataplane.accept(&Versions::new(), 0);
    let full = talk.update();
    let created: Vec<i64> = full
        .resources
        .iter()
        .filter_map(|resource| match &resource.body {
            Body::Service(service) => Some(service.created_at_s),
            _ => None,
        })
        .collect();
    assert_eq!(created, [1_704_153_600, 1_704_067_200], "the dataplane can apply the same rule");
    let refused = |resource: &Resource| match &resource.body {
        Body::Service(service) => service.ports.iter().map(|port| port.not_at.len()).sum(),
        _ => 0,
    };
    let left_out: Vec<usize> = full.resources.iter().map(refused).collect();
    assert_eq!(left_out, [1, 0], "the loser does not ask for it");
    talk.accept(&full, 1);
    talk.reached(1);
    let lost = |status: &Value| condition(status, "FrontendsOwned")["status"] == "False";
    let status = control.status("shop.a.json", lost);
    let message = condition(&status, "FrontendsOwned")["message"].as_str().unwrap().to_string();
    assert!(message.contains("203.0.113.1 80/TCP belongs to shop/b"), "{message}");
    let programmed = condition(&status, "Programmed");
    assert_eq!((&programmed["status"], &programmed["reason"]), (&"False".into(), &"FrontendsOwned".into()));
    assert_eq!(status["loadBalancer"]["ingress"], serde_json::json!([]));
    assert!(!lost(&control.status("shop.b.json", is_programmed)));
    // When the owner goes, the other one is told though it did not change itself.
    control.remove("b.yaml");
    let update = talk.update();
    talk.accept(&update, 2);
    talk.reached(2);
    control.status("shop.a.json", |status| !lost(status) && is_programmed(status));
    control.stop();
}

#[test]
fn an_invalid_object_says_so_in_its_status_and_stays_served() {
    let home = Control::home();
    write(home.path(), "web.yaml", &web(1));
    let dataplane = Dataplane::listen(home.path());
    let control = Control::start(home);
    let talk = dataplane.accept(&Versions::new(), 0);
    let full = talk.update();
    talk.accept(&full, 1);
    talk.reached(1);
    control.status("shop.web1.json", is_programmed);
    control.write("web.yaml", &web(1).replace("port: 80", "port: 0"));
    let status = control.status("shop.web1.json", |status| condition(status, "Valid")["status"] == "False");
    assert!(is_programmed(&status));
    let message = condition(&status, "Valid")["message"].as_str().unwrap();
    assert!(message.contains("web.yaml document 1") && message.contains("spec.ports[0].port"), "{message}");
    assert!(control.problem("Invalid").contains("spec.ports[0].port"));
    talk.expect_silence();
    control.write("web.yaml", &web(1));
    control.status("shop.web1.json", |status| condition(status, "Valid").is_null());
    control.stop();
}

#[test]
fn after_a_restart_nothing_is_taken_away_on_a_mere_suspicion() {
    let all = |n: u8| web(n) + &web_slice(n, &["10.244.1.5"]);
    let home = Control::home();
    for n in 1..=4 {
        write(home.path(), &format!("web{n}.yaml"), &all(n));
    }
    let dataplane = Dataplane::listen(home.path());
    let control = Control::start(home);
    let talk = dataplane.accept(&Versions::new(), 0);
    let full = talk.update();
    talk.accept(&full, 1);
    let home = control.stop();

    // While control was down: one file broke, one Service and one slice became invalid.
    write(home.path(), "web1.yaml", "{");
    write(home.path(), "web2.yaml", &(web(2).replace("port: 80", "port: 0") + &web_slice(2, &["10.244.1.5"])));
    write(home.path(), "web3.yaml", &(web(3) + &web_slice(3, &["ten"])));
    let control = Control::start(home);
    let talk = dataplane.accept(&versions(&full), 1);
    let update = talk.update();
    assert!(names(&update).is_empty() && removed(&update).is_empty(), "{update:?}");
    talk.accept(&update, 1);
    // web3 without any slice proves nothing as long as web1.yaml cannot be read: they may be in there.
    control.write("web3.yaml", &web(3));
    talk.expect_silence();
    // What is certain again is sent: web3 has another endpoint, web1 has gone for good.
    control.write("web3.yaml", &(web(3) + &web_slice(3, &["10.244.1.6"])));
    let update = talk.update();
    assert_eq!(names(&update), ["service shop/web3"]);
    talk.accept(&update, 2);
    // An empty file may be what a full disk has left of it.
    control.write("web1.yaml", "");
    talk.expect_silence();
    control.write("web1.yaml", "# nothing\n");
    let update = talk.update();
    assert_eq!(removed(&update), ["service shop/web1"]);
    talk.accept(&update, 3);
    control.stop();
}

#[test]
fn after_a_restart_an_emptied_directory_waits_for_confirmation() {
    let home = Control::home();
    write(home.path(), "web.yaml", &[web(1), web(2), web(3), web(4)].concat());
    let dataplane = Dataplane::listen(home.path());
    let control = Control::start(home);
    let talk = dataplane.accept(&Versions::new(), 0);
    let full = talk.update();
    talk.accept(&full, 1);
    let home = control.stop();
    write(home.path(), "web.yaml", &web(1));
    let control = Control::start(home);
    let talk = dataplane.accept(&versions(&full), 1);
    let update = talk.update();
    assert!(names(&update).is_empty() && removed(&update).is_empty(), "{update:?}");
    talk.accept(&update, 1);
    assert!(control.problem("DeletesHeld").contains("holds 3 objects"));
    control.write(CONFIRM_FILE, "");
    let update = talk.update();
    assert_eq!(removed(&update).len(), 3);
    talk.accept(&update, 2);
    control.status("problems.json", |list| {
        list["problems"].as_array().unwrap().iter().all(|p| p["reason"] != "DeletesHeld")
    });
    control.stop();
}

/// DeletesHeld is over when what was to go is there again.
#[test]
fn removals_wait_for_nobody_once_their_objects_are_there_again() {
    let all = [web(1), web(2), web(3), web(4)].concat();
    let home = Control::home();
    write(home.path(), "web.yaml", &all);
    let dataplane = Dataplane::listen(home.path());
    let control = Control::start(home);
    let talk = dataplane.accept(&Versions::new(), 0);
    let full = talk.update();
    talk.accept(&full, 1);
    let home = control.stop();
    write(home.path(), "web.yaml", &web(1));
    let control = Control::start(home);
    let talk = dataplane.accept(&versions(&full), 1);
    let update = talk.update();
    talk.accept(&update, 1);
    assert!(control.problem("DeletesHeld").contains("holds 3 objects"));
    control.write("web.yaml", &all);
    control.expect_no_problem("DeletesHeld");
    talk.expect_silence();
    control.stop();
}

/// P-034: of a policy that only the dataplane has, its pods stay what they are known as, however many they are and
/// whatever is confirmed, until the policy is good or gone.
#[test]
fn pods_of_a_policy_that_only_the_dataplane_has_stay_with_it() {
    let pod = |n: usize| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{ name: p{n}, namespace: shop }}\nspec: {{ nodeName: w1 }}\n\
             status: {{ podIPs: [{{ ip: 10.244.1.{n} }}, {{ ip: \"fd00:10:244:1::{n}\" }}] }}\n---\n"
        )
    };
    let policy = |spec: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{ name: x, namespace: shop }}\n\
             spec: {{ {spec} }}\n"
        )
    };
    let good = policy("podSelector: {}, ingress: [{ from: [{ ipBlock: { cidr: 192.0.2.10/32 } }] }]");
    let misspelt = good.replace("NetworkPolicy", "NetworkPolici");
    for (count, bad, told) in [
        (2, policy("podSelector: {}, ingress: [{ from: { a: b } }]"), "Invalid"),
        (6, policy("podSelector: {}, ingress: [{ from: { a: b } }]"), "Invalid"),
        (2, policy("podSelector: 7"), "Invalid"),
        (6, policy("podSelector: 7"), "Invalid"),
        (2, misspelt.clone(), "MisspeltKind"),
        (6, misspelt, "MisspeltKind"),
        (6, good.replace("spec: {", "spec: {{"), "Unreadable"),
    ] {
        let home = Control::home();
        write(home.path(), "pods.yaml", &(1..=count).map(pod).collect::<String>());
        write(home.path(), "policy.yaml", &good);
        let dataplane = Dataplane::listen(home.path());
        let control = Control::start(home);
        let talk = dataplane.accept(&Versions::new(), 0);
        let full = talk.update();
        talk.accept(&full, 1);
        assert_eq!(names(&full).iter().filter(|name| name.starts_with("pod ")).count(), count);
        let home = control.stop();

        write(home.path(), "policy.yaml", &bad);
        // Of those that are saved nothing is left.
        fs::write(home.path().join("state/policies.log"), "rubbish").unwrap();
        let control = Control::start(home);
        let talk = dataplane.accept(&versions(&full), 1);
        let update = talk.update();
        assert!(names(&update).is_empty() && removed(&update).is_empty(), "{count} {bad}: {update:?}");
        talk.accept(&update, 1);
        control.problem(told);
        control.expect_no_problem("DeletesHeld");
        control.write(CONFIRM_FILE, "");
        talk.expect_silence();
        // Gone for good: with it goes all that it made of the pods.
        control.remove("policy.yaml");
        let update = talk.update();
        assert_eq!(removed(&update).len(), full.resources.len(), "{count} {bad}: {update:?}");
        assert!(names(&update).is_empty(), "{count} {bad}: {update:?}");
        talk.accept(&update, 2);
        control.expect_no_problem("DeletesHeld");
        control.stop();
    }
}

/// P-109: what stands in for policies that were never good ends with them, however many go at once; those that were
/// good wait for a person.
#[test]
fn policies_that_were_never_good_go_without_asking() {
    let policy = |name: &str, clients: &str| {
        format!(
            "apiVersion: tidegate.io/v1alpha1\nkind: GatewayPolicy\nmetadata: {{ name: {name} }}\n\
             spec: {{ rules: [{{ action: Deny, clients: [{clients}] }}] }}\n---\n"
        )
    };
    let of_pods = |name: &str, prefix: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{ name: {name}, namespace: shop }}\n\
             spec: {{ podSelector: {{}}, ingress: [{{ from: [{{ ipBlock: {{ cidr: '{prefix}' }} }}] }}] }}\n---\n"
        )
    };
    let names_of = |kind: &str| (1..=4).map(|n| format!("{kind}{n}")).collect::<Vec<_>>();
    let all = |kind: &str, of: &dyn Fn(&str) -> String| names_of(kind).iter().map(|name| of(name)).collect::<String>();
    let home = Control::home();
    write(home.path(), "web.yaml", &web(1));
    let dataplane = Dataplane::listen(home.path());
    let control = Control::start(home);
    let talk = dataplane.accept(&Versions::new(), 0);
    let full = talk.update();
    talk.accept(&full, 1);
    let good = all("good", &|name| policy(name, "{ cidr: 192.0.2.0/24 }, { cidr: '2001:db8::/32' }"));
    // A mistake that leaves nothing readable of a rule, and one of which the rest is used.
    for (generation, bad) in [
        (2, all("bad", &|name| policy(name, ""))),
        (4, all("bad", &|name| of_pods(name, "2001:db8::/129"))),
        (6, all("bad", &|name| of_pods(name, "192.0.2.0/33"))),
    ] {
        control.write("bad.yaml", &bad);
        let update = talk.update();
        assert!(names(&update).iter().filter(|name| name.contains("bad")).count() == 4, "{update:?}");
        talk.accept(&update, generation);
        control.remove("bad.yaml");
        let update = talk.update();
        assert!(removed(&update).iter().filter(|name| name.contains("bad")).count() == 4, "{update:?}");
        talk.accept(&update, generation + 1);
        control.expect_no_problem("DeletesHeld");
    }
    // One that was good stays so for this, whatever it became.
    control.write("good.yaml", &good);
    let update = talk.update();
    talk.accept(&update, 8);
    let mistaken = all("good", &|name| policy(name, ""));
    control.write("good.yaml", &(mistaken + &policy("bad", "")));
    let update = talk.update();
    assert_eq!(names(&update), ["gateway policy bad"]);
    talk.accept(&update, 9);
    control.remove("good.yaml");
    let update = talk.update();
    assert_eq!(removed(&update), ["gateway policy bad"], "the others wait, and it does not with them");
    talk.accept(&update, 10);
    assert!(control.problem("DeletesHeld").contains("4 of 4 objects of kind GatewayPolicy"));
    talk.expect_silence();
    control.stop();
}

#[test]
fn a_dataplane_that_does_not_understand_is_called_again() {
    let home = Control::home();
    write(home.path(), "web.yaml", &web(1));
    let dataplane = Dataplane::listen(home.path());
    let control = Control::start(home);
    let talk = dataplane.accept(&Versions::new(), 0);
    talk.update();
    // A message of a newer contract is skipped; an error ends the conversation, and a new one begins.
    frame::write(&mut &talk.stream, &serde_json::json!({ "weather": { "rain": true } })).unwrap();
    talk.say(&Response::Error { message: "another control has the say".into() });
    talk.end();
    let told = control.problem("DataplaneAbsent");
    assert!(told.contains("the dataplane says: another control has the say"), "{told}");
    let talk = dataplane.accept(&Versions::new(), 0);
    assert!(talk.update().full);
    control.stop();
}

#[test]
fn whether_clients_addresses_are_kept_follows_what_the_dataplane_finds() {
    // S-056, S-062, S-084
    let home = Control::home();
    let local = |name: &str, n: u8| {
        service(name, &format!("loadBalancerIP: 203.0.113.{n}, externalTrafficPolicy: Local, ports: [{{ port: 80 }}]"))
    };
    write(home.path(), "web.yaml", &(local("a", 1) + &web(2)));
    let dataplane = Dataplane::listen(home.path());
    let control = Control::start(home);
    let talk = dataplane.accept(&Versions::new(), 0);
    let full = talk.update();
    talk.accept(&full, 1);
    talk.reached(1);
    let kept = |word: &'static str| move |status: &Value| condition(status, "ClientAddressKept")["reason"] == word;
    let status = control.status("shop.a.json", kept("NotToldYet"));
    assert_eq!(condition(&status, "ClientAddressKept")["status"], "Unknown");
    let told = |mode: DeliveryMode, state: WayState, reason: &str| {
        let node = NodeDelivery { node: "w1".into(), weight: 2, state, reason: reason.into() };
        let (protocol, family) = (Protocol::Tcp, IpFamily::Ipv4);
        let port = PortDelivery { protocol, port: 80, family, mode, nodes: vec![node] };
        Response::Delivery { services: vec![ServiceDelivery { service: "shop/a".into(), ports: vec![port] }] }
    };
    talk.say(&told(DeliveryMode::Fullnat, WayState::Unproven, "rp_filter is strict"));
    let status = control.status("shop.a.json", kept("NoNodeProven"));
    assert_eq!(condition(&status, "ClientAddressKept")["status"], "False");
    let message = condition(&status, "ClientAddressKept")["message"].as_str().unwrap();
    assert!(message.contains("w1") && message.contains("rp_filter is strict"), "{message}");
    talk.say(&told(DeliveryMode::NodeDsr, WayState::Proven, ""));
    let status = control.status("shop.a.json", kept("DeliveredByNodeDsr"));
    assert_eq!(condition(&status, "ClientAddressKept")["status"], "True");
    // A Service in fullnat by its policy has nothing to tell.
    let other = control.status("shop.web2.json", is_programmed);
    assert!(condition(&other, "ClientAddressKept").is_null());
    // Another conversation: what was found stays until it is told otherwise (C-006).
    talk.end();
    let talk = dataplane.accept(&versions(&full), 1);
    let update = talk.update();
    talk.accept(&update, 1);
    talk.say(&told(DeliveryMode::NodeDsr, WayState::Proven, ""));
    talk.say(&Response::Delivery { services: vec![ServiceDelivery { service: "shop/a".into(), ports: vec![] }] });
    control.status("shop.a.json", kept("NotToldYet"));
    control.stop();
}

#[test]
fn node_ports_outlast_a_restart_with_a_node_that_cannot_be_read() {
    for healed in [true, false] {
        node_ports_outlast_a_restart(healed);
    }
}

fn node_ports_outlast_a_restart(healed: bool) {
    // Where they are served stands in the own Node; that it is invalid at start takes nothing away.
    let home = Control::home();
    let extra = "  exposeNodePorts: true\n";
    let spec = "loadBalancerIP: 203.0.113.1, ports: [{ port: 80, nodePort: 30080 }]";
    write(home.path(), "web.yaml", &(service("web1", spec) + &web_slice(1, &["10.244.1.5"])));
    write(home.path(), "node.yaml", &node("gw-1", 9));
    let dataplane = Dataplane::listen(home.path());
    let control = Control::start_with(home, extra);
    let talk = dataplane.accept(&Versions::new(), 0);
    let full = talk.update();
    let at =
        |update: &Update| match &update.resources.iter().find(|resource| resource.name == "shop/web1").unwrap().body {
            Body::Service(service) => service.node_addresses.len(),
            other => panic!("{other:?}"),
        };
    assert_eq!(at(&full), 2);
    talk.accept(&full, 1);
    talk.reached(1);
    let home = control.stop();
    write(home.path(), "node.yaml", &node("gw-1", 9).replace("10.244.9.0/24", "10.244.9.0/240"));
    let control = Control::start_with(home, extra);
    let talk = dataplane.accept(&versions(&full), 1);
    let update = talk.update();
    assert!(names(&update).is_empty() && removed(&update).is_empty(), "{update:?}");
    talk.accept(&update, 1);
    control.problem("Invalid");
    talk.expect_silence();
    if healed {
        control.write("node.yaml", &node("gw-1", 9));
        talk.expect_silence(); // nothing differs from what is held
    }
    control.remove("node.yaml");
    let update = talk.update();
    assert_eq!(at(&update), 0);
    control.stop();
}

// S-114
#[test]
fn a_node_that_does_not_answer_is_named_in_the_services_that_have_endpoints_there() {
    let home = Control::home();
    let on = |n: u8, node: &str| {
        let endpoint = format!("{{ addresses: [10.244.1.{n}], nodeName: {node} }}");
        slice(&format!("web{n}-x"), &format!("web{n}"), "IPv4", "{ name: http, port: 8080 }", &endpoint)
    };
    let objects = web(1) + &web(2) + &on(1, "w1") + &on(2, "w2") + &node("gw-1", 9);
    write(home.path(), "web.yaml", &objects);
    let dataplane = Dataplane::listen(home.path());
    let control = Control::start(home);
    let talk = dataplane.accept(&Versions::new(), 0);
    let full = talk.update();
    let health_ports: Vec<_> = full
        .resources
        .iter()
        .filter_map(|resource| match &resource.body {
            Body::Gateway(gateway) => Some(gateway.health_port),
            _ => None,
        })
        .collect();
    assert_eq!(health_ports, [Some(10256)]);
    talk.accept(&full, 1);
    talk.reached(1);
    let quiet = |status: &Value| is_programmed(status) && condition(status, "NodesAnswer").is_null();
    control.status("shop.web1.json", quiet);
    let suspicion = NodeSuspicion {
        node: "w1".into(),
        family: IpFamily::Ipv4,
        reason: "no answer from 198.51.100.11 on TCP port 10256".into(),
    };
    talk.say(&Response::Suspects { nodes: vec![suspicion] });
    let status = control.status("shop.web1.json", |status| condition(status, "NodesAnswer")["status"] == "False");
    let told = condition(&status, "NodesAnswer");
    assert_eq!(told["reason"], "NodeSuspected");
    assert!(told["message"].as_str().unwrap().contains("w1 over IPv4: no answer from 198.51.100.11"), "{told}");
    assert!(is_programmed(&status), "it is served all the same");
    control.status("shop.web2.json", quiet);
    talk.say(&Response::Suspects { nodes: vec![] });
    control.status("shop.web1.json", quiet);
    control.stop();
}

#[test]
fn a_stranger_that_answers_for_an_address_is_named_in_its_service_s_condition() {
    let home = Control::home();
    write(home.path(), "web.yaml", &(web(1) + &web(2)));
    let dataplane = Dataplane::listen(home.path());
    let control = Control::start(home);
    let talk = dataplane.accept(&Versions::new(), 0);
    let full = talk.update();
    talk.accept(&full, 1);
    talk.reached(1);
    let quiet = |status: &Value| is_programmed(status) && condition(status, "AddressesOurs").is_null();
    let addresses = |file: &str| {
        let status = control.status(file, quiet);
        status["loadBalancer"]["ingress"][0]["ip"].as_str().unwrap().to_owned()
    };
    let address = addresses("shop.web1.json").parse().unwrap();
    addresses("shop.web2.json");
    let mac = "02:00:00:00:be:ef".parse().unwrap();
    talk.say(&Response::Conflicts {
        addresses: vec![AddressConflict { address, mac, device: "wan0".into(), withheld: true, kernel: None }],
    });
    let conflict = |status: &Value| condition(status, "AddressesOurs")["reason"] == "AddressConflict";
    let status = control.status("shop.web1.json", conflict);
    let told = condition(&status, "AddressesOurs");
    assert_eq!(told["status"], "False");
    let message = told["message"].as_str().unwrap();
    assert!(
        message.contains("02:00:00:00:be:ef") && message.contains("wan0") && message.contains("not announced"),
        "{message}"
    );
    control.status("shop.web2.json", quiet);
    // Another conversation: what was found stays until it is told otherwise (C-006).
    talk.end();
    let talk = dataplane.accept(&versions(&full), 1);
    let update = talk.update();
    talk.accept(&update, 1);
    control.status("shop.web1.json", conflict);
    talk.say(&Response::Conflicts { addresses: vec![] });
    control.status("shop.web1.json", quiet);
    control.stop();
}

/// In a directory there is no status of policies: the list of problems tells it, for `tidegate doctor` too.
#[test]
fn an_external_address_that_the_kernel_has_is_a_problem_of_its_policy() {
    for (external, length) in [("192.0.2.240", 32), ("2001:db8:1::240", 128)] {
        let home = Control::home();
        let out = format!(
            "apiVersion: tidegate.io/v1alpha1\nkind: EgressPolicy\nmetadata: {{ name: out }}\n\
             spec: {{ addresses: [\"{external}\"] }}\n"
        );
        write(home.path(), "out.yaml", &out);
        let dataplane = Dataplane::listen(home.path());
        let control = Control::start(home);
        let talk = dataplane.accept(&Versions::new(), 0);
        let full = talk.update();
        talk.accept(&full, 1);
        talk.reached(1);
        let conflict = AddressConflict {
            address: external.parse().unwrap(),
            mac: "02:00:00:00:01:01".parse().unwrap(),
            device: "wan0".into(),
            withheld: true,
            kernel: Some(length),
        };
        talk.say(&Response::Conflicts { addresses: vec![conflict] });
        let told = control.problem("AddressConflict");
        let mends = format!("on the gateway: ip address del {external}/{length} dev wan0");
        assert!(told.contains("EgressPolicy out") && told.contains(&mends) && told.contains("\"error\""), "{told}");
        assert!(told.contains("out.yaml"), "{told}");
        talk.say(&Response::Conflicts { addresses: vec![] });
        control.status("problems.json", |list| !list.to_string().contains("AddressConflict"));
        control.stop();
    }
}
