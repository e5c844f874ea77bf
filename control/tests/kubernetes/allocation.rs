//! Addresses out of pools, and programs that are killed meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tidegate_apiserver::ApiServer;

use super::stage::{
    Gateway, PATIENCE, cluster, condition, events, expect_nothing_denied, ingress, pool, service, slices, until,
    until_served, until_service,
};

fn all(server: &ApiServer) -> BTreeMap<String, Vec<String>> {
    let services = server.list("services", "shop");
    services
        .iter()
        .map(|service| (service["metadata"]["name"].as_str().unwrap().to_owned(), ingress(service)))
        .collect()
}

/// T-032, M-007: a pool that is used up is told, and who waits is served when something is freed.
#[test]
fn who_waits_is_served_when_an_address_is_freed() {
    let server = cluster();
    server.delete("addresspools", "", "edge").unwrap();
    server.apply(&pool("one", &["203.0.113.1/32", "2001:db8:77::1/128"])).unwrap();
    let gateway = Gateway::start(&server, "gw-1", "");
    server.apply(&service("first", "")).unwrap();
    let had = until_served(&server, "first");
    server.apply(&service("second", "")).unwrap();
    until("told", || events(&server, "second").contains(&"AllocationFailed".into()));
    let second = until_service(&server, "second", |second| !condition(second, "tidegate.io/AddressAssigned").is_null());
    assert_eq!(condition(&second, "tidegate.io/AddressAssigned")["reason"], "Exhausted", "{second:#}");
    assert!(ingress(&second).is_empty() && gateway.service("second").is_none());
    server.wait_for("addresspools", "", "one", PATIENCE, |pool| pool["status"]["availableIPv4"] == 0).unwrap();
    server.delete("services", "shop", "first").unwrap();
    assert_eq!(until_served(&server, "second"), had);
    server
        .wait_for("addresspools", "", "one", PATIENCE, |pool| {
            pool["status"]["assignedIPv4"] == 1 && condition(pool, "Valid")["status"] == "True"
        })
        .unwrap();
    // M-007: room by another pool.
    server.apply(&service("third", "")).unwrap();
    until("told", || events(&server, "third").contains(&"AllocationFailed".into()));
    server.apply(&pool("two", &["203.0.113.2/32", "2001:db8:77::2/128"])).unwrap();
    assert_eq!(until_served(&server, "third")[0], "203.0.113.2");
    expect_nothing_denied(&server);
}

/// T-036, S-005: another object of the same name, made while nobody looked, is another Service.
#[test]
fn a_service_made_anew_while_control_was_down_is_another() {
    let server = cluster();
    let mut gateway = Gateway::start(&server, "gw-1", "");
    server.apply(&(service("web", "") + &slices("web", &[5]))).unwrap();
    until_served(&server, "web");
    gateway.until_endpoints("web", 2);
    let old = gateway.service("web").unwrap().uid;
    gateway.kill();
    server.edit("services", "shop", "web", |web| web["metadata"]["finalizers"] = json!([])).unwrap();
    assert!(server.delete("services", "shop", "web").unwrap());
    server.apply(&service("web", "")).unwrap();
    gateway.run();
    until_served(&server, "web");
    gateway.until("the new one", |gateway| gateway.service("web").is_some_and(|web| web.uid != old));
    // And while it runs.
    let old = gateway.service("web").unwrap().uid;
    server.delete("services", "shop", "web").unwrap();
    server.wait_gone("services", "shop", "web", PATIENCE).unwrap();
    server.apply(&service("web", "")).unwrap();
    until_served(&server, "web");
    gateway.until("the new one", |gateway| gateway.service("web").is_some_and(|web| web.uid != old));
}

/// M-005: the pool is taken away from under a Service.
#[test]
fn an_address_whose_pool_is_gone_is_taken_back() {
    let server = cluster();
    let gateway = Gateway::start(&server, "gw-1", "");
    server.apply(&service("web", "")).unwrap();
    let before = until_served(&server, "web");
    server.delete("addresspools", "", "edge").unwrap();
    server.apply(&pool("other", &["198.51.100.128/25", "2001:db8:88::/120"])).unwrap();
    let web = until_service(&server, "web", |web| ingress(web).len() == 2 && ingress(web) != before);
    assert!(ingress(&web)[0].starts_with("198.51.100."), "{web:#}");
    gateway.until("moved", |gateway| {
        gateway.service("web").is_some_and(|web| !before.contains(&web.addresses[0].to_string()))
    });
    until("told", || events(&server, "web").contains(&"ClearAssignment".into()));
}

/// T-031, M-006: killed at any moment of giving out addresses, to 1,000 Services: none changes, none is given
/// twice.
#[test]
fn no_address_changes_and_none_is_given_twice_however_often_it_is_killed() {
    const SERVICES: usize = 1000;
    let server = cluster();
    server.apply(&pool("large", &["198.18.0.0/20", "2001:db8:99::/116"])).unwrap();
    for n in 0..SERVICES {
        server.apply(&service(&format!("web{n}"), "")).unwrap();
    }
    let mut gateway = Gateway::start(&server, "gw-1", "");
    let mut seen: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut look = || {
        let now = all(&server);
        let mut owners: HashMap<&String, &String> = HashMap::new();
        for (name, addresses) in &now {
            if let Some(before) = seen.get(name).filter(|before| !before.is_empty()) {
                assert_eq!(before, addresses, "{name} has changed");
            }
            for address in addresses {
                if let Some(other) = owners.insert(address, name) {
                    panic!("{address} is given to {name} and {other}");
                }
            }
        }
        seen = now;
        seen.values().filter(|addresses| !addresses.is_empty()).count()
    };
    // Moments are places in the work, not times: the next kill comes when a few more have been served.
    let mut kills = 0;
    let mut next = 3;
    let begun = Instant::now();
    loop {
        let served = look();
        if served == SERVICES {
            break;
        }
        if served >= next && kills < 6 {
            gateway.kill();
            (kills, next) = (kills + 1, served + 1 + kills * 60);
            gateway.run();
        }
        assert!(begun.elapsed() < 3 * PATIENCE, "{served} of {SERVICES} served");
        thread::sleep(Duration::from_millis(1));
    }
    assert!(kills >= 3, "killed {kills} times only");
    gateway.kill();
    gateway.run();
    server.apply(&service("last", "")).unwrap();
    until_served(&server, "last");
    look();
    expect_nothing_denied(&server);
}
