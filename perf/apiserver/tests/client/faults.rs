//! Everything a test may break: each fault is seen by a client, and is over when it should be.

use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams, PostParams, WatchEvent, WatchParams};
use serde_json::json;
use tidegate_apiserver::ApiServer;
use tidegate_apiserver::fault::{Effect, Fault, Match};
use tokio::time::timeout;

use crate::cluster::{SOON, client, create, refusal, server, service, services};

fn once(server: &ApiServer, verb: &str, effect: Effect) {
    server.faults().add(Fault::times(1, Match::of(verb, "services"), effect));
}

#[tokio::test]
async fn answers_can_be_anything_but_the_right_one() {
    let server = server();
    let api = services(&server).await;
    create(&api, &["web"]).await;
    for code in [429, 500, 503, 410, 404] {
        once(&server, "get", Effect::Answer { code, retry_after_s: Some(3) });
        let refused = refusal(api.get("web").await);
        assert_eq!((refused.code, refused.details.unwrap().retry_after_seconds), (code, 3));
    }
    for effect in [
        Effect::Garbage,
        Effect::Truncate(40),
        Effect::CutAfterBytes(40),
        Effect::WrongShape,
        Effect::Cut,
        Effect::LoseAnswer,
    ] {
        once(&server, "get", effect.clone());
        assert!(timeout(SOON, api.get("web")).await.unwrap().is_err(), "{effect:?}");
        assert_eq!(api.get("web").await.unwrap().metadata.name.as_deref(), Some("web"), "after {effect:?}");
    }
}

#[tokio::test]
async fn a_lost_answer_is_of_a_write_that_happened_and_a_cut_of_one_that_did_not() {
    let server = server();
    let api = services(&server).await;
    once(&server, "create", Effect::LoseAnswer);
    assert!(api.create(&PostParams::default(), &service("lost")).await.is_err());
    assert!(server.get("Service", "default", "lost").is_some());
    once(&server, "create", Effect::Cut);
    assert!(api.create(&PostParams::default(), &service("cut")).await.is_err());
    assert!(server.get("Service", "default", "cut").is_none());
}

#[tokio::test]
async fn answers_can_be_late_slow_or_never() {
    let server = server();
    let api = services(&server).await;
    create(&api, &["web"]).await;
    let started = Instant::now();
    once(&server, "get", Effect::Delay(Duration::from_millis(300)));
    api.get("web").await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(300));
    once(&server, "list", Effect::Slow(1000));
    let started = Instant::now();
    assert_eq!(api.list(&ListParams::default()).await.unwrap().items.len(), 1);
    assert!(started.elapsed() >= Duration::from_millis(300), "a list of more than 300 bytes at 1000 bytes a second");
    once(&server, "get", Effect::Hang);
    assert!(timeout(Duration::from_millis(300), api.get("web")).await.is_err());
    api.get("web").await.unwrap();
}

#[tokio::test]
async fn watches_end_are_cut_and_expire() {
    let server = server();
    let api = services(&server).await;
    create(&api, &["a", "b", "c"]).await;
    for effect in [Effect::EndAfterEvents(2), Effect::CutAfterEvents(2)] {
        once(&server, "watch", effect.clone());
        let mut stream = api.watch(&WatchParams::default(), "0").await.unwrap().boxed();
        for _ in 0..2 {
            assert!(
                matches!(timeout(SOON, stream.next()).await.unwrap(), Some(Ok(WatchEvent::Added(_)))),
                "{effect:?}"
            );
        }
        let last = timeout(SOON, stream.next()).await.unwrap();
        // The client takes some cuts for an end.
        assert!(last.is_none_or(|event| event.is_err()), "{effect:?}");
    }
    let mut stream = api.watch(&WatchParams::default(), &server.revision().to_string()).await.unwrap().boxed();
    server.faults().expire_watches();
    assert!(
        matches!(timeout(SOON, stream.next()).await.unwrap(), Some(Ok(WatchEvent::Error(status))) if status.code == 410)
    );
    let mut stream = api.watch(&WatchParams::default(), &server.revision().to_string()).await.unwrap().boxed();
    server.faults().end_watches();
    assert!(timeout(SOON, stream.next()).await.unwrap().is_none());
}

#[tokio::test]
async fn held_events_of_one_kind_come_after_later_ones_of_another() {
    let server = server();
    let client = client(&server).await;
    let (services, slices): (Api<Service>, Api<EndpointSlice>) = (Api::all(client.clone()), Api::all(client));
    let from = server.revision().to_string();
    let mut of_services = services.watch(&WatchParams::default(), &from).await.unwrap().boxed();
    let mut of_slices = slices.watch(&WatchParams::default(), &from).await.unwrap().boxed();
    server.faults().hold_watches("services");
    server.apply("{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {ports: [{port: 1}]}}").unwrap();
    server.apply("{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: web-1}, addressType: IPv6, endpoints: []}").unwrap();
    assert!(matches!(timeout(SOON, of_slices.next()).await.unwrap(), Some(Ok(WatchEvent::Added(_)))));
    assert!(timeout(Duration::from_millis(200), of_services.next()).await.is_err());
    server.faults().release_watches("services");
    assert!(matches!(timeout(SOON, of_services.next()).await.unwrap(), Some(Ok(WatchEvent::Added(_)))));

    server.faults().duplicate_events(true);
    server.edit("Service", "default", "web", |service| service["metadata"]["labels"] = json!({"a": "b"})).unwrap();
    for _ in 0..2 {
        assert!(matches!(timeout(SOON, of_services.next()).await.unwrap(), Some(Ok(WatchEvent::Modified(_)))));
    }
}

#[tokio::test]
async fn a_stopped_server_refuses_and_comes_back_at_the_same_port() {
    let server = server();
    let api = services(&server).await;
    create(&api, &["web"]).await;
    let mut stream = api.watch(&WatchParams::default(), &server.revision().to_string()).await.unwrap().boxed();
    server.stop().unwrap();
    let ended = timeout(SOON, stream.next()).await.unwrap();
    assert!(ended.is_none_or(|event| event.is_err()), "a watch does not survive");
    let refused = std::net::TcpStream::connect(server.address()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(timeout(SOON, api.get("web")).await.unwrap().is_err());
    server.delete("Service", "default", "web").unwrap();
    server.start_again().unwrap();
    server.start_again().unwrap();
    assert!(api.get_opt("web").await.unwrap().is_none(), "what happened meanwhile is known");
    let address = server.address();
    drop(server);
    std::net::TcpListener::bind(address).unwrap();
}

#[tokio::test]
async fn new_connections_can_be_refused_while_old_ones_go_on() {
    let server = server();
    let api = services(&server).await;
    let mut stream = api.watch(&WatchParams::default(), &server.revision().to_string()).await.unwrap().boxed();
    server.refuse().unwrap();
    assert!(std::net::TcpStream::connect(server.address()).is_err());
    server.apply("{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {ports: [{port: 1}]}}").unwrap();
    assert!(matches!(timeout(SOON, stream.next()).await.unwrap(), Some(Ok(WatchEvent::Added(_)))));
    server.start_again().unwrap();
    create(&services(&server).await, &["other"]).await;
}

#[tokio::test]
async fn a_store_can_be_lost() {
    let server = server();
    let api = services(&server).await;
    create(&api, &["web"]).await;
    let before = server.revision();
    server.stop().unwrap();
    server.empty();
    server.start_again().unwrap();
    assert!(api.list(&ListParams::default()).await.unwrap().items.is_empty());
    let mut stream = api.watch(&WatchParams::default(), &before.to_string()).await.unwrap().boxed();
    assert!(
        matches!(timeout(SOON, stream.next()).await.unwrap(), Some(Ok(WatchEvent::Error(status))) if status.code == 410)
    );
    create(&api, &["web"]).await;
}
