//! Who may write (C-020).

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tidegate_apiserver::ApiServer;

use super::stage::{
    Gateway, PATIENCE, cluster, expect_nothing_denied, ingress, service, slices, until, until_served, until_service,
    writes,
};

fn holder(server: &ApiServer) -> String {
    let lease = server.get("leases", "default", "tidegate-controller").unwrap_or_default();
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
    holder.split('_').next().unwrap_or_default().into()
}

fn until_held_by(server: &ApiServer, name: &str) {
    until(&format!("the Lease held by {name}"), || holder(server) == name);
}

/// Both serve, one writes; a clean end hands over at once.
#[test]
fn one_of_two_writes_and_hands_over_when_it_ends() {
    let server = cluster();
    let mut first = Gateway::start(&server, "gw-1", "");
    until_held_by(&server, "gw-1");
    let second = Gateway::start(&server, "gw-2", "");
    server.apply(&(service("web", "") + &slices("web", &[5]))).unwrap();
    let addresses = until_served(&server, "web");
    for gateway in [&first, &second] {
        gateway.until_endpoints("web", 2);
        let served: Vec<String> = gateway.service("web").unwrap().addresses.iter().map(ToString::to_string).collect();
        assert_eq!(served, addresses);
    }
    assert_eq!(writes(&server, "gw-2"), 0);
    first.terminate();
    until_held_by(&server, "gw-2");
    server.apply(&service("api", "")).unwrap();
    assert_ne!(until_served(&server, "api"), addresses);
    assert_eq!(ingress(&server.get("services", "shop", "web").unwrap()), addresses);
    let lease = server.get("leases", "default", "tidegate-controller").unwrap();
    assert!(lease["spec"]["leaseTransitions"].as_i64().unwrap() >= 1, "{lease:#}");
    expect_nothing_denied(&server);
}

/// A leader that is stopped for longer than its Lease writes nothing when it wakes, though it has work lined up.
#[test]
fn a_leader_that_slept_does_not_write() {
    let server = cluster();
    let first = Gateway::start(&server, "gw-1", "");
    until_held_by(&server, "gw-1");
    let second = Gateway::start(&server, "gw-2", "");
    server.apply(&service("web", "")).unwrap();
    until_served(&server, "web");
    second.until("web", |gateway| gateway.service("web").is_some());
    // Work lined up: its dataplane has not answered yet when it falls asleep, and will have when it wakes.
    first.dataplane().silent = true;
    server.apply(&service("lined-up", "")).unwrap();
    until_service(&server, "lined-up", super::stage::is_held);
    until("sent", || first.log().contains("web")); // whatever it does, it is awake
    first.signal("-STOP");
    first.answer();
    for n in 0..10 {
        server.apply(&service(&format!("new{n}"), "")).unwrap();
    }
    until_held_by(&server, "gw-2");
    let addresses = until_served(&server, "lined-up");
    for n in 0..10 {
        until_served(&server, &format!("new{n}"));
    }
    let before = writes(&server, "gw-1");
    let tried = |server: &ApiServer| {
        let requests = server.requests().into_iter();
        requests
            .filter(|request| request.is_write() && request.user == "gw-1" && request.asked.resource == "services")
            .count()
    };
    let tried_before = tried(&server);
    first.signal("-CONT");
    server.edit("services", "shop", "web", |web| web["spec"]["ports"][0]["port"] = json!(81)).unwrap();
    first.until("awake", |gateway| gateway.service("web").is_some_and(|web| web.ports[0].port == 81));
    thread::sleep(Duration::from_secs(1));
    assert_eq!(writes(&server, "gw-1"), before, "no write after another has taken over");
    assert_eq!(tried(&server), tried_before, "not even a refused one");
    assert_eq!(ingress(&server.get("services", "shop", "lined-up").unwrap()), addresses);
    expect_nothing_denied(&server);
}

/// Killed: another takes over when the Lease has run out, and what was promised stays.
#[test]
fn another_takes_over_from_one_that_died() {
    let server = cluster();
    let mut first = Gateway::start(&server, "gw-1", "");
    until_held_by(&server, "gw-1");
    let _second = Gateway::start(&server, "gw-2", "");
    for n in 0..30 {
        server.apply(&service(&format!("web{n}"), "")).unwrap();
    }
    until_served(&server, "web3");
    first.kill();
    let given = |server: &ApiServer| -> Vec<(Value, Vec<String>)> {
        server.list("services", "shop").iter().map(|web| (web["metadata"]["name"].clone(), ingress(web))).collect()
    };
    let before = given(&server);
    until_held_by(&server, "gw-2");
    for n in 0..30 {
        until_served(&server, &format!("web{n}"));
    }
    let after = given(&server);
    for (name, addresses) in before.iter().filter(|(_, addresses)| !addresses.is_empty()) {
        assert!(after.contains(&(name.clone(), addresses.clone())), "{name} has changed");
    }
    let mut all: Vec<&String> = after.iter().flat_map(|(_, addresses)| addresses).collect();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 60, "none is given twice");
}

/// A control whose dataplane is gone lets another lead, and takes over again when there is no other.
#[test]
fn who_has_no_dataplane_lets_another_lead() {
    let server = cluster();
    let first = Gateway::start(&server, "gw-1", "");
    until_held_by(&server, "gw-1");
    let mut second = Gateway::start(&server, "gw-2", "");
    second.until("nodes", |gateway| gateway.dataplane().resources.len() == 4);
    first.dataplane().gone = true;
    first.cut_dataplane();
    until_held_by(&server, "gw-2");
    server.apply(&service("web", "")).unwrap();
    until_served(&server, "web");
    second.terminate();
    until_held_by(&server, "gw-1");
    // C-004: nobody is there to serve what comes now.
    server.apply(&service("late", "")).unwrap();
    until("told", || super::stage::events(&server, "late").contains(&"UnAvailableLoadBalancer".into()));
    // What is not forwarded anywhere can be let go (C-002).
    server.delete("services", "shop", "web").unwrap();
    server.wait_gone("services", "shop", "web", PATIENCE).unwrap();
}

/// C-021: a leader that loses the server stops writing and takes it up again; nobody else is needed.
#[test]
fn a_leader_that_lost_the_server_leads_again() {
    let server = cluster();
    let gateway = Gateway::start(&server, "gw-1", "");
    server.apply(&service("web", "")).unwrap();
    let addresses = until_served(&server, "web");
    server.stop().unwrap();
    gateway.problem("LeaseUnavailable");
    thread::sleep(Duration::from_secs(2));
    server.apply(&service("api", "")).unwrap();
    server.start_again().unwrap();
    until_served(&server, "api");
    assert_eq!(ingress(&server.get("services", "shop", "web").unwrap()), addresses);
    gateway.without_problem("LeaseUnavailable");
}
