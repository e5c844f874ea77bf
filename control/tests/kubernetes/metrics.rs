//! What control tells in numbers, against what the API server and the dataplane have seen of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use tidegate_control::metrics::DEFINITIONS;

use super::stage::{Gateway, cluster, ingress, service, slices, until, until_served, until_service};

/// A port that is free at a loopback address.
fn free(address: &str) -> SocketAddr {
    TcpListener::bind((address, 0)).unwrap().local_addr().unwrap()
}

/// Samples by name with labels.
fn page(at: SocketAddr) -> Option<BTreeMap<String, f64>> {
    let mut stream = TcpStream::connect(at).ok()?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: gw\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    assert!(head.starts_with("HTTP/1.1 200"), "{text}");
    assert!(head.contains("application/openmetrics-text; version=1.0.0; charset=utf-8"), "{head}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    let sample = |line: &str| line.rsplit_once(' ').map(|(name, value)| (name.to_owned(), value.parse().unwrap()));
    Some(body.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect())
}

fn until_told(at: SocketAddr, name: &str, value: f64) -> BTreeMap<String, f64> {
    let told = || page(at).filter(|page| page.get(name) == Some(&value));
    until(&format!("{name} is {value}, not {:?}", page(at).and_then(|page| page.get(name).copied())), || {
        told().is_some()
    });
    told().unwrap()
}

#[test]
fn numbers_are_those_that_others_have_seen() {
    let server = cluster();
    let (first, second) = (free("127.0.0.1"), free("::1"));
    let gateway = Gateway::start(&server, "gw-1", &format!("  metrics: \"{first}\"\n"));
    until_told(first, "tidegate_control_leader", 1.0);
    server.apply(&(service("web", "") + &slices("web", &[5]) + &service("api", "") + &slices("api", &[6, 7]))).unwrap();
    until_served(&server, "web");
    until_served(&server, "api");
    let page_of_first =
        until_told(first, "tidegate_control_pool_addresses{pool=\"edge\",family=\"ipv6\",state=\"assigned\"}", 2.0);
    let of = |name: &str| page_of_first.get(name).copied();
    let given = |family: &str, state: &str| {
        of(&format!("tidegate_control_pool_addresses{{pool=\"edge\",family=\"{family}\",state=\"{state}\"}}")).unwrap()
    };
    assert_eq!(given("ipv4", "assigned"), 2.0);
    assert_eq!(given("ipv6", "assigned") + given("ipv6", "available"), 256.0);
    assert_eq!(of("tidegate_control_source_complete"), Some(1.0));
    assert_eq!(of("tidegate_control_objects{kind=\"Node\",state=\"valid\"}"), Some(4.0));
    assert_eq!(of("tidegate_control_objects{kind=\"Service\",state=\"valid\"}"), Some(2.0));
    assert_eq!(of("tidegate_control_services"), Some(2.0));
    assert_eq!(of("tidegate_control_gateways"), Some(1.0), "{:?}", server.get("nodes", "", "gw-2"));
    assert_eq!(of("tidegate_control_dataplane_connected"), Some(1.0));
    assert_eq!(of("tidegate_control_leader_terms_total"), Some(1.0));
    let held = gateway.dataplane().resources.len();
    let resources = page_of_first.iter().filter(|(name, _)| name.starts_with("tidegate_control_resources{"));
    assert_eq!(resources.map(|(_, count)| count).sum::<f64>(), held as f64);
    // Every name is on the list, with exactly its labels.
    for name in page_of_first.keys() {
        let (series, labels) = name.split_once('{').unwrap_or((name, ""));
        let definition = DEFINITIONS.iter().find(|definition| definition.series().iter().any(|each| each == series));
        let definition = definition.unwrap_or_else(|| panic!("{name} is not on the list"));
        let labels = labels.trim_end_matches('}').split(',').filter_map(|label| label.split_once('='));
        let labels: BTreeSet<&str> = labels.map(|(label, _)| label).filter(|label| *label != "le").collect();
        assert_eq!(labels, definition.labels.iter().copied().collect(), "{name}");
    }
    // The other gateway does not lead and knows the same.
    let _other = Gateway::start(&server, "gw-2", &format!("  metrics: \"{second}\"\n"));
    let page_of_second = until_told(second, "tidegate_control_services", 2.0);
    assert_eq!(page_of_second.get("tidegate_control_leader"), Some(&0.0));
    assert!(!page_of_second.keys().any(|name| name.starts_with("tidegate_control_pool_addresses")));
}

#[test]
fn requests_and_watches_are_those_that_the_server_answered() {
    let server = cluster();
    let at = free("127.0.0.1");
    let _gateway = Gateway::start(&server, "gw-1", &format!("  metrics: \"{at}\"\n"));
    server.apply(&(service("web", "") + &slices("web", &[5]))).unwrap();
    until_served(&server, "web");
    let patches = |resource: &str| {
        let asked = server.requests().into_iter().filter(|request| {
            (request.user.as_str(), request.asked.verb.as_str()) == ("gw-1", "patch")
                && request.asked.resource == "services"
                && request.code == 200
        });
        asked.filter(|request| request.path.contains("/status") == resource.ends_with("/status")).count()
    };
    until("requests are counted as the server counts them", || {
        let page = page(at).unwrap();
        ["services", "services/status"].iter().all(|resource| {
            let name =
                format!("tidegate_control_api_requests_total{{verb=\"patch\",resource=\"{resource}\",code=\"200\"}}");
            let seen = patches(resource);
            seen > 0 && page.get(&name).copied() == Some(seen as f64)
        })
    });
    let of = |name: &str| page(at).unwrap().get(name).copied().unwrap_or_default();
    assert_eq!(of("tidegate_control_lists_total{kind=\"Node\"}"), 1.0);
    // A watch that breaks off is taken up; one whose place in the history is gone lists anew.
    let before = of("tidegate_control_watches_total{kind=\"Node\"}");
    server.faults().end_watches();
    until("watched again", || of("tidegate_control_watches_total{kind=\"Node\"}") > before);
    assert_eq!(of("tidegate_control_lists_total{kind=\"Node\"}"), 1.0);
    server.faults().expire_watches();
    until("listed again", || of("tidegate_control_lists_total{kind=\"Node\"}") >= 2.0);
}

#[test]
fn what_is_wrong_is_counted_by_its_reason_and_time_by_who_caused_it() {
    let server = cluster();
    let at = free("::1");
    let gateway = Gateway::start(&server, "gw-1", &format!("  metrics: \"{at}\"\n"));
    server.apply(&(service("web", "") + &slices("web", &[5]))).unwrap();
    until_served(&server, "web");
    gateway.cut_dataplane();
    let of = |name: &str| page(at).unwrap().get(name).copied().unwrap_or_default();
    until("connected again", || {
        of("tidegate_control_dataplane_connections_total") >= 2.0 && of("tidegate_control_dataplane_connected") == 1.0
    });
    // A Service that becomes wrong keeps its last good version.
    let kept = "tidegate_control_objects{kind=\"Service\",state=\"kept\"}";
    server
        .edit("services", "shop", "web", |web| {
            web["metadata"]["annotations"]["tidegate.io/scheduler"] = "nonsense".into();
        })
        .unwrap();
    until_told(at, kept, 1.0);
    assert_eq!(of("tidegate_control_problems{reason=\"Invalid\",severity=\"error\"}"), 1.0);
    assert_eq!(of("tidegate_control_objects{kind=\"Service\",state=\"valid\"}"), 0.0);
    assert!(!ingress(&until_service(&server, "web", |_| true)).is_empty());
    // The time in the slice is of now: what it caused is counted once, in less than a minute.
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    let counted = of("tidegate_control_programming_duration_seconds_count");
    for slice in ["web-ipv4", "web-ipv6"] {
        let edited = server.edit("endpointslices", "shop", slice, |slice| {
            slice["metadata"]["annotations"]["endpoints.kubernetes.io/last-change-trigger-time"] = now.clone().into();
            slice["endpoints"][0]["conditions"] = serde_json::json!({ "ready": false, "serving": false });
        });
        edited.unwrap();
    }
    until("counted", || of("tidegate_control_programming_duration_seconds_count") > counted);
    assert!(of("tidegate_control_programming_duration_seconds_bucket{le=\"60.0\"}") > counted);
    assert!(of("tidegate_control_pass_duration_seconds_count") > 1.0);
    until("nothing waits", || of("tidegate_control_waiting_batches") == 0.0);
}
