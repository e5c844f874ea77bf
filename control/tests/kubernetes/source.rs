//! What is watched, and what silence and nonsense do not do.

use std::thread;
use std::time::Duration;

use serde_json::json;
use tidegate_apiserver::fault::{Effect, Fault, Match};
use tidegate_apiserver::log::Logged;
use tidegate_apiserver::rbac::Rules;

use super::stage::{
    Gateway, cluster, condition, expect_nothing_denied, file, node, role, service, slices, until, until_served, writes,
};

/// C-022, S-003: order of arrival does not matter, labels that leave an object to others count at run time.
#[test]
fn what_the_cluster_has_is_served_whatever_comes_first() {
    let server = cluster();
    let gateway = Gateway::start(&server, "gw-1", "");
    gateway.until("nodes", |gateway| gateway.dataplane().resources.len() == 4);
    server.apply(&slices("first", &[5])).unwrap();
    server.apply(&service("second", "")).unwrap();
    thread::sleep(Duration::from_millis(50));
    server.apply(&service("first", "")).unwrap();
    server.apply(&slices("second", &[6, 7])).unwrap();
    gateway.until_endpoints("first", 2);
    gateway.until_endpoints("second", 4);
    let addresses = until_served(&server, "first");
    assert_eq!(addresses.len(), 2);
    assert!(addresses[0].starts_with("203.0.113.") && addresses[1].starts_with("2001:db8:77::"), "{addresses:?}");

    // Events of one kind may be late.
    server.faults().hold_watches("services");
    server.apply(&service("third", "")).unwrap();
    server.apply(&slices("third", &[8])).unwrap();
    server.faults().release_watches("services");
    gateway.until_endpoints("third", 2);

    // S-003, S-004.
    for label in ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"] {
        let set = |value| {
            server.edit("services", "shop", "first", |first| first["metadata"]["labels"] = value).unwrap();
        };
        set(json!({ label: "x" }));
        gateway.until("left to others", |gateway| gateway.service("first").is_none());
        set(json!({}));
        gateway.until_endpoints("first", 2);
        let slice = |value| {
            server
                .edit("endpointslices", "shop", "first-ipv4", |slice| slice["metadata"]["labels"][label] = value)
                .unwrap();
        };
        slice(json!("x"));
        gateway.until_endpoints("first", 1);
        server
            .edit("endpointslices", "shop", "first-ipv4", |slice| {
                slice["metadata"]["labels"].as_object_mut().unwrap().remove(label);
            })
            .unwrap();
        gateway.until_endpoints("first", 2);
    }
    server.delete("endpointslices", "shop", "second-ipv6").unwrap();
    gateway.until_endpoints("second", 2);
    expect_nothing_denied(&server);
}

/// C-021: an outage of any length changes nothing; what happened meanwhile is taken in afterwards, and what went is gone.
#[test]
fn an_outage_changes_nothing_and_ends_by_itself() {
    let server = cluster();
    for name in ["stays", "goes", "grows"] {
        server.apply(&(service(name, "") + &slices(name, &[5]))).unwrap();
    }
    let gateway = Gateway::start(&server, "gw-1", "");
    for name in ["stays", "goes", "grows"] {
        until_served(&server, name);
        gateway.until_endpoints(name, 2);
    }
    server.stop().unwrap();
    let held = gateway.dataplane().resources.clone();
    assert!(gateway.problem("ApiUnreachable").contains("nothing is changed"));
    server.edit("services", "shop", "goes", |goes| goes["metadata"]["finalizers"] = json!([])).unwrap();
    server.delete("services", "shop", "goes").unwrap();
    server.apply(&slices("grows", &[5, 6])).unwrap();
    server.compact(); // C-022: 410 when the watch is taken up
    thread::sleep(Duration::from_secs(2)); // longer than the Lease can be kept
    assert_eq!(gateway.dataplane().resources, held, "silence takes nothing away");
    let updates = gateway.dataplane().updates;
    server.start_again().unwrap();
    gateway.until("what went is gone", |gateway| gateway.service("goes").is_none());
    gateway.until_endpoints("grows", 4);
    gateway.without_problem("ApiUnreachable");
    assert!(gateway.service("stays").is_some());
    assert!(gateway.dataplane().updates - updates <= 4, "differences only");
    expect_nothing_denied(&server);
}

/// A control that starts while the server is away concludes nothing, and the dataplane keeps what it has.
#[test]
fn a_start_without_a_server_takes_nothing_away() {
    let server = cluster();
    server.apply(&(service("web", "") + &slices("web", &[5]))).unwrap();
    let mut gateway = Gateway::start(&server, "gw-1", "");
    until_served(&server, "web");
    gateway.until_endpoints("web", 2);
    gateway.kill();
    server.stop().unwrap();
    gateway.run();
    gateway.problem("ApiUnreachable");
    assert!(gateway.service("web").is_some());
    server.start_again().unwrap();
    server.apply(&slices("web", &[5, 6])).unwrap();
    gateway.until_endpoints("web", 4);
}

/// C-022: watches end, expire and break; bookmarks or not; twice the same event.
#[test]
fn a_watch_is_taken_up_again_where_it_broke() {
    let server = cluster();
    server.apply(&(service("web", "") + &slices("web", &[1]))).unwrap();
    let gateway = Gateway::start(&server, "gw-1", "");
    gateway.until_endpoints("web", 2);
    let faults = server.faults();
    // A kind that is not there is asked for again and again.
    let lists = || {
        let listed = |request: &&Logged| request.asked.verb == "list" && request.code != 404;
        server.requests().iter().filter(listed).count()
    };
    let before = lists();
    let mut hosts = vec![1];
    let watch = |effect| Fault::times(1, Match::of("watch", "endpointslices"), effect);
    let breaks: [(&str, &dyn Fn()); 7] = [
        ("ended", &|| faults.end_watches()),
        ("cut", &|| faults.cut_connections()),
        ("twice", &|| faults.duplicate_events(true)),
        ("half an event", &|| {
            faults.add(watch(Effect::CutAfterBytes(40)));
            faults.end_watches();
        }),
        ("an end within an event", &|| {
            faults.add(watch(Effect::Truncate(40)));
            faults.end_watches();
        }),
        ("garbage", &|| {
            faults.add(watch(Effect::Garbage));
            faults.end_watches();
        }),
        ("busy", &|| {
            faults.add(watch(Effect::Answer { code: 429, retry_after_s: Some(1) }));
            faults.add(watch(Effect::Answer { code: 500, retry_after_s: None }));
            faults.end_watches();
        }),
    ];
    for (what, break_it) in breaks {
        break_it();
        hosts.push(hosts.last().unwrap() + 1);
        server.apply(&slices("web", &hosts)).unwrap();
        gateway.until(what, |gateway| {
            gateway.service("web").is_some_and(|web| web.ports[0].backends.len() == 2 * hosts.len())
        });
    }
    assert_eq!(lists(), before, "a watch that broke is no reason to list the world");
    // 410 as an event, and as an answer.
    faults.expire_watches();
    hosts.push(100);
    server.apply(&slices("web", &hosts)).unwrap();
    gateway.until_endpoints("web", 2 * hosts.len());
    server.stop().unwrap();
    server.compact();
    server.delete("endpointslices", "shop", "web-ipv6").unwrap();
    server.compact();
    server.start_again().unwrap();
    gateway.until_endpoints("web", hosts.len());
    assert!(lists() > before);
    gateway.without_problem("Api");
    expect_nothing_denied(&server);
}

/// Garbage, wrong shapes and lost answers on lists: state kept, told, and over by itself.
#[test]
fn nonsense_in_lists_is_told_and_nothing_is_concluded_from_it() {
    let server = cluster();
    server.apply(&(service("web", "") + &slices("web", &[5]))).unwrap();
    let gateway = Gateway::start(&server, "gw-1", "");
    gateway.until_endpoints("web", 2);
    let held = gateway.dataplane().resources.clone();
    let list = |count, effect| Fault::times(count, Match::of("list", "endpointslices"), effect);
    for effect in [Effect::Garbage, Effect::WrongShape, Effect::Truncate(100)] {
        server.faults().add(list(2, effect));
    }
    server.faults().expire_watches();
    assert!(gateway.problem("ApiMisanswers").contains("endpointslices"));
    assert_eq!(gateway.dataplane().resources, held);
    gateway.without_problem("ApiMisanswers");
    server.apply(&slices("web", &[5, 6])).unwrap();
    gateway.until_endpoints("web", 4);
}

/// C-022: a server whose history is gone as soon as it is given, in watches or in lists: told, not asked for in haste, and
/// what its lists say counts.
#[test]
fn a_history_that_is_always_gone_is_told() {
    let server = cluster();
    server.apply(&(service("web", "") + &slices("web", &[5]))).unwrap();
    let gateway = Gateway::start(&server, "gw-1", "");
    gateway.until_endpoints("web", 2);
    let faults = server.faults();
    let gone =
        |verb| Fault::times(1000, Match::of(verb, "endpointslices"), Effect::Answer { code: 410, retry_after_s: None });
    faults.add(gone("watch"));
    faults.end_watches();
    assert!(gateway.problem("ApiMisanswers").contains("endpointslices"));
    server.clear_requests();
    server.apply(&slices("web", &[5, 6])).unwrap();
    gateway.until_endpoints("web", 4);
    faults.add(gone("list"));
    let told = gateway.problem("ApiMisanswers");
    assert!(told.contains("has expired"), "{told}");
    let asked = server.requests().iter().filter(|request| request.asked.resource == "endpointslices").count();
    assert!(asked < 40, "{asked} requests: it waits longer each time");
    faults.clear();
    gateway.without_problem("ApiMisanswers");
    server.apply(&slices("web", &[5])).unwrap();
    gateway.until_endpoints("web", 2);
}

/// C-023: what is missing in the role is named; what is not needed is done without.
#[test]
fn a_role_that_lacks_something_is_told_what() {
    let server = cluster();
    server.apply(&(service("web", "") + &slices("web", &[5]))).unwrap();
    let read = ["get", "list", "watch"];
    let partial = || {
        Rules::default()
            .and(&[""], &["services", "nodes"], &read)
            .and(&["networking.k8s.io"], &["networkpolicies"], &read)
            .and(&["policy.networking.k8s.io"], &["clusternetworkpolicies"], &read)
            .and(&["tidegate.io"], &["addresspools", "egresspolicies", "gatewaypolicies", "staticnats"], &read)
            .and(&[""], &["services", "services/status"], &["patch"])
            .and(&["coordination.k8s.io"], &["leases"], &["get", "create", "update"])
    };
    server.add_user("gw-1", partial());
    let gateway = Gateway::start(&server, "gw-1", "");
    let told = gateway.problem("ApiForbidden");
    assert!(told.contains("get, list and watch of"), "{told}");
    until("nothing is sent", || gateway.dataplane().updates == 0);
    server.add_user("gw-1", partial().and(&["discovery.k8s.io"], &["endpointslices"], &read));
    // Pods, Namespaces and events are still forbidden.
    gateway.until_endpoints("web", 2);
    until_served(&server, "web");
    for kind in ["pods", "namespaces"] {
        gateway.problem_with("ApiForbidden", &format!("watch of {kind}"));
    }
    // What may not be written is told as well: events, and the status of pools.
    let told = gateway.problem("WriteForbidden");
    assert!(told.contains("events in events.k8s.io") || told.contains("addresspools/status"), "{told}");
    server.add_user("gw-1", role());
    gateway.without_problem("ApiForbidden");
    server.apply(&service("api", "")).unwrap();
    until_served(&server, "api");
    gateway.without_problem("WriteForbidden");
}

/// What cannot be had is told in the server's own words, once and not as a dump.
#[test]
fn a_lease_that_may_not_be_had_is_told_in_words() {
    let server = cluster();
    let read = ["get", "list", "watch"];
    let reader = Rules::default()
        .and(&[""], &["services", "nodes", "namespaces", "pods"], &read)
        .and(&["discovery.k8s.io"], &["endpointslices"], &read)
        .and(&["tidegate.io"], &["addresspools"], &read);
    server.add_user("gw-1", reader);
    let gateway = Gateway::start(&server, "gw-1", "");
    let told = gateway.problem("LeaseUnavailable");
    assert!(told.contains("(403)") && !told.contains("ApiError") && !told.contains("Status {"), "{told}");
}

/// `--check` reads a cluster once, and changes nothing.
#[test]
fn a_cluster_is_checked_without_a_trace() {
    let server = cluster();
    server.apply(&(service("web", "") + &slices("web", &[5]))).unwrap();
    let mut gateway = Gateway::start(&server, "gw-1", "");
    gateway.until_endpoints("web", 2);
    until_served(&server, "web");
    gateway.terminate();
    server.apply(&service("late", "")).unwrap();
    let (updates, before) = (gateway.dataplane().updates, writes(&server, "gw-1"));
    let home = gateway.home.path();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate-control"));
    command.arg("--check").arg("--config").arg(home.join("node.yaml"));
    let output = command.arg("--kubeconfig").arg(home.join("kubeconfig")).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("service shop/web at 203.0.113."), "{text}");
    assert!(text.contains("1 IPv4 and 1 IPv6 endpoints") && text.contains("peer w1"), "{text}");
    // Nobody leads here, so that nothing is given; the hint is one for a cluster.
    assert!(text.contains("gives addresses out of AddressPools") && !text.contains("tidegate.io/addresses"), "{text}");
    assert_eq!((gateway.dataplane().updates, writes(&server, "gw-1")), (updates, before));
}

/// A slow list delays what it brings and nothing else.
#[test]
fn a_slow_list_is_waited_for() {
    let server = cluster();
    for n in 0..20 {
        let name = format!("web{n}");
        server.apply(&(service(&name, "") + &slices(&name, &[n + 1]))).unwrap();
    }
    server.faults().add(Fault::times(1, Match::of("list", "endpointslices"), Effect::Slow(8_000)));
    let gateway = Gateway::start(&server, "gw-1", "");
    for n in 0..20 {
        gateway.until_endpoints(&format!("web{n}"), 2);
    }
}

/// Bad objects are told about, by name, and disturb nobody else.
#[test]
fn a_bad_object_disturbs_no_other() {
    let server = cluster();
    let gateway = Gateway::start(&server, "gw-1", "");
    let annotation = "namespace: shop, annotations: { tidegate.io/load-balancer-ips: everywhere }";
    let bad = service("bad", "").replace("namespace: shop", annotation);
    server.apply(&(bad + &service("good", "") + &slices("good", &[5]))).unwrap();
    gateway.until_endpoints("good", 2);
    assert!(gateway.problem("Invalid").contains("load-balancer-ips"));
    // The elder pool stays in force; the one that overlaps it is told so.
    server.apply(&super::stage::pool("again", &["203.0.113.128/25"])).unwrap();
    let again = server
        .wait_for("addresspools", "", "again", super::stage::PATIENCE, |pool| !condition(pool, "Valid").is_null())
        .unwrap();
    assert_eq!(condition(&again, "Valid")["status"], "False", "{again:#}");
    server.apply(&super::stage::pool("backwards", &["203.0.113.9-203.0.113.1"])).unwrap();
    let backwards = server
        .wait_for("addresspools", "", "backwards", super::stage::PATIENCE, |pool| !condition(pool, "Valid").is_null())
        .unwrap();
    assert_eq!(condition(&backwards, "Valid")["reason"], "Invalid", "{backwards:#}");
    until_served(&server, "good");
}

/// The figure of how long a change takes starts at the change's own time.
#[test]
fn how_long_changes_take_is_written() {
    let server = cluster();
    server.apply(&(service("web", "") + &slices("web", &[5]))).unwrap();
    let gateway = Gateway::start(&server, "gw-1", "");
    gateway.until_endpoints("web", 2);
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    server.apply(&slices("web", &[5, 6])).unwrap();
    server
        .edit("endpointslices", "shop", "web-ipv4", |slice| {
            slice["metadata"]["annotations"] = json!({ "endpoints.kubernetes.io/last-change-trigger-time": now });
            slice["endpoints"].as_array_mut().unwrap().pop();
        })
        .unwrap();
    let told = file(&gateway, "latency.json", |told| told["endpointChangeToWorkersMs"]["count"] == 1);
    assert!(told["endpointChangeToWorkersMs"]["sum"].as_f64().unwrap() < 30_000.0, "{told}");
}

/// A Node that comes or goes reaches the dataplane as a peer.
#[test]
fn nodes_come_and_go() {
    let server = cluster();
    let gateway = Gateway::start(&server, "gw-1", "");
    gateway.until("nodes", |gateway| gateway.dataplane().resources.len() == 4);
    server.apply(&node("w3", 3)).unwrap();
    gateway.until("another", |gateway| gateway.dataplane().resources.len() == 5);
    server.delete("nodes", "", "w3").unwrap();
    gateway.until("without", |gateway| gateway.dataplane().resources.len() == 4);
}

/// C-021: what went while control was away is gone afterwards, however much it was. No person is asked: an API server's
/// list is whole, unless it lacks the very Node of this gateway.
#[test]
fn what_went_while_control_was_away_is_gone() {
    let server = cluster();
    for n in 0..5 {
        server.apply(&service(&format!("web{n}"), "")).unwrap();
    }
    let mut gateway = Gateway::start(&server, "gw-1", "");
    for n in 0..5 {
        until_served(&server, &format!("web{n}"));
    }
    let stop = |gateway: &mut Gateway| {
        gateway.kill();
        let held = gateway.dataplane().resources.len();
        gateway.run();
        held
    };
    gateway.kill();
    for n in 0..5 {
        let name = format!("web{n}");
        server.edit("services", "shop", &name, |web| web["metadata"]["finalizers"] = json!([])).unwrap();
        server.delete("services", "shop", &name).unwrap();
    }
    for name in ["w1", "w2", "gw-2"] {
        server.delete("nodes", "", name).unwrap();
    }
    gateway.run();
    gateway.until("only itself", |gateway| gateway.dataplane().resources.len() == 1);
    server.delete("nodes", "", "gw-1").unwrap();
    gateway.problem("OwnNodeMissing");
    // Another cluster, by mistake: it knows nothing of this gateway.
    server.apply(&(node("gw-1", 9) + &node("w1", 1) + &node("w2", 2) + &node("w3", 3))).unwrap();
    gateway.until("again", |gateway| gateway.dataplane().resources.len() == 4);
    gateway.kill();
    for name in ["gw-1", "w1", "w2", "w3"] {
        server.delete("nodes", "", name).unwrap();
    }
    let held = stop(&mut gateway);
    gateway.problem("DeletesHeld");
    assert_eq!(gateway.dataplane().resources.len(), held);
}
