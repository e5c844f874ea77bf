//! The contract between a Service and its controller.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tidegate_apiserver::ApiServer;
use tidegate_apiserver::fault::{Effect, Fault, Match};

use super::stage::{
    Gateway, PATIENCE, cluster, condition, events, expect_nothing_denied, ingress, is_held, service, slices, until,
    until_served, until_service, writes,
};

fn change_type(server: &ApiServer, name: &str, kind: &str) {
    server
        .edit("services", "shop", name, |service| {
            service["spec"]["type"] = json!(kind);
        })
        .unwrap();
}

/// C-001, C-005, C-007: finalizer, dataplane, status, in this order; one owner of the list.
#[test]
fn status_appears_after_the_dataplane_has_it() {
    let server = cluster();
    let gateway = Gateway::start(&server, "gw-1", "");
    gateway.until("nodes", |gateway| gateway.dataplane().resources.len() == 4);
    gateway.dataplane().silent = true;
    server.apply(&(service("web", "") + &slices("web", &[5]))).unwrap();
    until_service(&server, "web", is_held);
    thread::sleep(Duration::from_millis(300));
    let web = server.get("services", "shop", "web").unwrap();
    assert!(ingress(&web).is_empty() && condition(&web, "tidegate.io/Programmed").is_null(), "{web:#}");
    gateway.answer();
    until_served(&server, "web");
    let web = until_service(&server, "web", |web| condition(web, "tidegate.io/Programmed")["status"] == "True");
    for entry in web["status"]["loadBalancer"]["ingress"].as_array().unwrap() {
        assert!(entry.get("ipMode").is_none_or(|mode| mode == "VIP"), "{entry}");
    }
    assert_eq!(web["metadata"]["annotations"]["tidegate.io/ip-allocated-from-pool"], "edge", "{web:#}"); // M-003
    let owners: Vec<&Value> = web["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry["fieldsV1"]["f:status"]["f:loadBalancer"].get("f:ingress").is_some())
        .collect();
    assert_eq!(owners.len(), 1, "{owners:#?}");
    assert_eq!((&owners[0]["manager"], &owners[0]["operation"]), (&json!("tidegate-controller"), &json!("Apply")));
    until("events", || events(&server, "web").len() >= 2);
    assert_eq!(events(&server, "web"), ["EnsuringLoadBalancer", "EnsuredLoadBalancer"]);
    // C-012: an idle system.
    expect_nothing_denied(&server);
}

/// T-026, C-002, C-003, C-010.
#[test]
fn the_finalizer_comes_goes_comes_and_goes() {
    let server = cluster();
    let gateway = Gateway::start(&server, "gw-1", "");
    server.apply(&(service("web", "") + &slices("web", &[5]))).unwrap();
    until_served(&server, "web");
    assert!(is_held(&server.get("services", "shop", "web").unwrap()));
    change_type(&server, "web", "ClusterIP");
    let web = until_service(&server, "web", |web| !is_held(web));
    assert!(ingress(&web).is_empty() && condition(&web, "tidegate.io/Programmed").is_null(), "{web:#}");
    assert!(web["metadata"]["annotations"]["tidegate.io/ip-allocated-from-pool"].is_null(), "{web:#}");
    gateway.until("withdrawn", |gateway| gateway.service("web").is_none());
    change_type(&server, "web", "LoadBalancer");
    until_served(&server, "web");
    gateway.until_endpoints("web", 2);
    // C-002: withdrawn before it is let go.
    gateway.dataplane().silent = true;
    assert!(!server.delete("services", "shop", "web").unwrap());
    until("told", || events(&server, "web").iter().filter(|event| *event == "DeletingLoadBalancer").count() >= 1);
    thread::sleep(Duration::from_millis(300));
    assert!(is_held(&server.get("services", "shop", "web").unwrap()), "the dataplane still has it");
    gateway.answer();
    server.wait_gone("services", "shop", "web", PATIENCE).unwrap();
    assert!(gateway.service("web").is_none());
    until("told", || events(&server, "web").contains(&"DeletedLoadBalancer".into()));
    expect_nothing_denied(&server);
}

/// T-022, C-011, T-028, S-030: ports, node ports, policies and endpoints change, the addresses do not.
#[test]
fn a_service_keeps_its_addresses_while_everything_else_changes() {
    let server = cluster();
    let gateway = Gateway::start(&server, "gw-1", "");
    server.apply(&service("web", "allocateLoadBalancerNodePorts: false, ports: [{ name: http, port: 80 }]")).unwrap();
    let addresses = until_served(&server, "web");
    let web = server.get("services", "shop", "web").unwrap();
    assert!(web["spec"]["ports"][0]["nodePort"].as_u64().unwrap_or(0) == 0, "S-022: {web:#}");
    server.apply(&slices("web", &[5])).unwrap();
    gateway.until_endpoints("web", 2);
    let edit = |change: &dyn Fn(&mut Value)| {
        let before = gateway.service("web").unwrap();
        server.edit("services", "shop", "web", |web| change(&mut web["spec"])).unwrap();
        gateway.until("changed", |gateway| gateway.service("web").as_ref() != Some(&before));
        let texts: Vec<String> = gateway.service("web").unwrap().addresses.iter().map(ToString::to_string).collect();
        assert_eq!(texts, addresses);
    };
    edit(&|spec| spec["ports"][0]["port"] = json!(81));
    edit(&|spec| spec["loadBalancerSourceRanges"] = json!(["198.51.100.0/24", "2001:db8::/32"]));
    edit(&|spec| spec["sessionAffinity"] = json!("ClientIP"));
    edit(&|spec| spec["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": 7 } }));
    edit(&|spec| spec["externalTrafficPolicy"] = json!("Local"));
    edit(&|spec| {
        let more = json!({ "name": "dns", "port": 53, "protocol": "UDP" });
        spec["ports"].as_array_mut().unwrap().push(more);
    });
    edit(&|spec| drop(spec["ports"].as_array_mut().unwrap().pop()));
    // T-028: with node ports nothing changes for the dataplane either.
    server.edit("services", "shop", "web", |web| web["spec"]["allocateLoadBalancerNodePorts"] = json!(true)).unwrap();
    // Scaled to nothing and back.
    server.apply(&slices("web", &[])).unwrap();
    gateway.until_endpoints("web", 0);
    server.apply(&slices("web", &[5, 6])).unwrap();
    gateway.until_endpoints("web", 4);
    assert_eq!(ingress(&server.get("services", "shop", "web").unwrap()), addresses);
    edit(&|spec| drop(spec.as_object_mut().unwrap().remove("loadBalancerSourceRanges")));
    change_type(&server, "web", "NodePort");
    let web = until_service(&server, "web", |web| ingress(web).is_empty() && !is_held(web)); // S-029
    assert_eq!(web["spec"]["type"], "NodePort");
    expect_nothing_denied(&server);
}

/// C-004: a Service that cannot be read from its first day on has no condition; its event names the field.
#[test]
fn a_service_that_cannot_be_read_is_told_so() {
    let server = cluster();
    let _gateway = Gateway::start(&server, "gw-1", "");
    let nonsense = |name: &str, class: &str| {
        let annotated = "namespace: shop, annotations: { tidegate.io/scheduler: roundrobin } }";
        service(name, class).replace("namespace: shop }", annotated)
    };
    server.apply(&nonsense("other", "loadBalancerClass: example.com/other, ports: [{ port: 80 }]")).unwrap();
    server.apply(&nonsense("web", "")).unwrap();
    until("told", || events(&server, "web").contains(&"SyncLoadBalancerFailed".into()));
    assert!(events(&server, "other").is_empty(), "another's to read");
    server.apply(&service("web", "")).unwrap();
    server
        .edit("services", "shop", "web", |service| {
            service["metadata"]["annotations"] = json!({});
        })
        .unwrap();
    until_served(&server, "web");
    expect_nothing_denied(&server);
}

/// S-001: a Service of another class gets nothing, and none of ours is touched by its coming.
#[test]
fn another_class_is_left_alone() {
    let server = cluster();
    server.add_user("gw-2", super::stage::role());
    let gateway = Gateway::start(&server, "gw-1", "  loadBalancerClass: example.com/edge\n");
    server.apply(&service("plain", "")).unwrap();
    server.apply(&service("other", "loadBalancerClass: example.com/other, ports: [{ port: 80 }]")).unwrap();
    server.apply(&service("ours", "loadBalancerClass: example.com/edge, ports: [{ port: 80 }]")).unwrap();
    until_served(&server, "ours");
    for name in ["plain", "other"] {
        let service = server.get("services", "shop", name).unwrap();
        assert!(!is_held(&service) && service["status"]["conditions"].is_null(), "{service:#}");
        assert!(ingress(&service).is_empty() && events(&server, name).is_empty());
        assert!(gateway.service(name).is_none());
        // Its finalizer is another's to take away.
        server
            .edit("services", "shop", name, |service| {
                service["metadata"]["finalizers"] = json!(["service.kubernetes.io/load-balancer-cleanup"]);
            })
            .unwrap();
        server.delete("services", "shop", name).unwrap();
    }
    thread::sleep(Duration::from_millis(300));
    for name in ["plain", "other"] {
        assert!(is_held(&server.get("services", "shop", name).unwrap()));
    }
}

/// T-018, and serving beside another allocator: its addresses are served and left alone.
#[test]
fn addresses_of_another_allocator_are_served_and_left_alone() {
    let server = cluster();
    let gateway = Gateway::start(&server, "gw-1", "  allocate: false\n");
    server.apply(&(service("web", "") + &slices("web", &[5]) + &service("proxied", ""))).unwrap();
    let set = |name: &str, entries: Value| {
        server
            .edit("services", "shop", name, |web| web["status"]["loadBalancer"] = json!({ "ingress": entries }))
            .unwrap();
    };
    set("web", json!([{ "ip": "192.0.2.7" }, { "ip": "2001:db8:9::7", "ipMode": "VIP" }]));
    set("proxied", json!([{ "ip": "192.0.2.8", "ipMode": "Proxy" }]));
    gateway.until_endpoints("web", 2);
    let web = until_service(&server, "web", |web| condition(web, "tidegate.io/Programmed")["status"] == "True");
    assert_eq!(ingress(&web), ["192.0.2.7", "2001:db8:9::7"]);
    assert!(!is_held(&web));
    until_service(&server, "proxied", |proxied| condition(proxied, "tidegate.io/Programmed")["status"] == "False");
    assert!(gateway.service("proxied").is_none(), "T-018");
    server.delete("services", "shop", "web").unwrap();
    gateway.until("gone", |gateway| gateway.service("web").is_none());
    expect_nothing_denied(&server);
}

/// C-006: a restart writes nothing that stands there already.
#[test]
fn a_restart_writes_nothing() {
    let server = cluster();
    let mut gateway = Gateway::start(&server, "gw-1", "");
    for n in 0..10 {
        let name = format!("web{n}");
        server.apply(&(service(&name, "") + &slices(&name, &[5]))).unwrap();
    }
    for n in 0..10 {
        until_service(&server, &format!("web{n}"), |web| {
            ingress(web).len() == 2 && condition(web, "tidegate.io/Programmed")["status"] == "True"
        });
    }
    thread::sleep(Duration::from_millis(200)); // the last conditions may be on their way
    gateway.terminate();
    let before = writes(&server, "gw-1");
    let versions = |server: &ApiServer| -> Vec<Value> {
        server.list("services", "shop").iter().map(|web| web["metadata"]["resourceVersion"].clone()).collect()
    };
    let stood = versions(&server);
    gateway.run();
    // It leads again, and works.
    server.apply(&service("new", "")).unwrap();
    until_served(&server, "new");
    server.delete("services", "shop", "new").unwrap();
    server.wait_gone("services", "shop", "new", PATIENCE).unwrap();
    assert_eq!(versions(&server), stood);
    let news = server.requests().into_iter().filter(|request| request.asked.name == "new" && request.is_write());
    let news = news.filter(|request| request.asked.resource == "services" && request.code < 300).count();
    assert_eq!(writes(&server, "gw-1") - before, news, "only what was new");
}

/// C-004: what is refused is told, waits by itself, and holds up no other; a conflict is tried again at once.
#[test]
fn a_write_that_fails_is_told_and_tried_again() {
    let server = cluster();
    let gateway = Gateway::start(&server, "gw-1", "");
    let status = |name: &str| Match { name: name.into(), ..Match::of("patch", "services/status") };
    server.faults().add(Fault::times(1, status("web"), Effect::Answer { code: 500, retry_after_s: None }));
    server.faults().add(Fault::times(2, status("api"), Effect::Answer { code: 409, retry_after_s: None }));
    server.faults().add(Fault::times(1, status("dns"), Effect::LoseAnswer));
    for name in ["web", "api", "dns", "plain"] {
        server.apply(&service(name, "")).unwrap();
    }
    until_served(&server, "plain");
    until_served(&server, "api");
    until("told", || events(&server, "web").contains(&"SyncLoadBalancerFailed".into()));
    until_served(&server, "web");
    until_served(&server, "dns");
    gateway.without_problem("Lease");
    let tried = server.requests().into_iter().filter(|request| request.asked.name == "web" && request.code == 500);
    assert_eq!(tried.count(), 1, "no hot loop");
}

/// Somebody else's hand in what is ours is put right, and their fields stay.
#[test]
fn what_others_write_over_ours_is_put_right() {
    let server = cluster();
    let _gateway = Gateway::start(&server, "gw-1", "");
    server.apply(&service("web", "")).unwrap();
    let addresses = until_served(&server, "web");
    let theirs = json!({
        "type": "example.com/Audited", "status": "True", "reason": "Audited", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"
    });
    server
        .edit("services", "shop", "web", |web| {
            web["metadata"]["finalizers"] = json!(["example.com/keep"]);
            web["status"]["loadBalancer"]["ingress"] = json!([{ "ip": "192.0.2.99" }]);
            web["status"]["conditions"].as_array_mut().unwrap().push(theirs.clone());
        })
        .unwrap();
    let web = until_service(&server, "web", |web| is_held(web) && ingress(web) == addresses);
    assert_eq!(web["metadata"]["finalizers"][0], "example.com/keep");
    assert_eq!(condition(&web, "example.com/Audited"), &theirs);
}
