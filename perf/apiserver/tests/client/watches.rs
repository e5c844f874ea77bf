//! Lists and watches.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, ListParams, PartialObjectMeta, VersionMatch, WatchEvent, WatchParams};
use kube::runtime::watcher;
use serde_json::json;
use tidegate_apiserver::{ApiServer, Options};
use tokio::time::timeout;

use crate::cluster::{SOON, client, create, refusal, server, services};

/// A watch of a second, without bookmarks.
fn brief() -> WatchParams {
    WatchParams::default().timeout(1).disable_bookmarks()
}

fn names(list: &[Service]) -> Vec<&str> {
    list.iter().filter_map(|service| service.metadata.name.as_deref()).collect()
}

async fn next<T>(stream: &mut (impl Stream<Item = T> + Unpin)) -> T {
    timeout(SOON, stream.next()).await.expect("nothing came").expect("ended")
}

#[tokio::test]
async fn a_list_comes_in_portions_of_one_moment() {
    let server = server();
    let api = services(&server).await;
    create(&api, &["a", "b", "c", "d", "e"]).await;
    let first = api.list(&ListParams::default().limit(2)).await.unwrap();
    assert_eq!((names(&first.items), first.metadata.remaining_item_count), (vec!["a", "b"], Some(3)));
    server.delete("Service", "default", "c").unwrap();
    create(&api, &["f"]).await;
    let token = first.metadata.continue_.clone().unwrap();
    let rest = api.list(&ListParams::default().limit(9).continue_token(&token)).await.unwrap();
    assert_eq!(names(&rest.items), ["c", "d", "e"]);
    assert_eq!(rest.metadata.resource_version, first.metadata.resource_version);

    server.compact();
    let expired = refusal(api.list(&ListParams::default().limit(9).continue_token(&token)).await);
    assert_eq!((expired.code, expired.reason.as_str()), (410, "Expired"));
    let onward = expired.metadata.unwrap().continue_.unwrap();
    let rest = api.list(&ListParams::default().continue_token(&onward)).await.unwrap();
    assert_eq!(names(&rest.items), ["d", "e", "f"], "the token of the refusal goes on with what there is now");
}

#[tokio::test]
async fn a_list_can_ask_for_a_revision() {
    let server = server();
    let api = services(&server).await;
    create(&api, &["a"]).await;
    let then = api.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    create(&api, &["b"]).await;
    let at = |matching, revision: &str| ListParams {
        version_match: Some(matching),
        resource_version: Some(revision.to_owned()),
        ..ListParams::default()
    };
    assert_eq!(names(&api.list(&at(VersionMatch::Exact, &then)).await.unwrap().items), ["a"]);
    assert_eq!(names(&api.list(&at(VersionMatch::NotOlderThan, &then)).await.unwrap().items), ["a", "b"]);
    server.compact();
    assert_eq!(refusal(api.list(&at(VersionMatch::Exact, &then)).await).code, 410);
    let future = (server.revision() + 100).to_string();
    assert_eq!(refusal(api.list(&at(VersionMatch::NotOlderThan, &future)).await).code, 504);
}

#[tokio::test]
async fn a_watch_sees_every_change_from_its_revision_on() {
    let server = server();
    let api = services(&server).await;
    let from = server.revision().to_string();
    create(&api, &["a", "b"]).await;
    server.edit("Service", "default", "a", |service| service["metadata"]["labels"]["app"] = json!("b")).unwrap();
    server.delete("Service", "default", "b").unwrap();
    let said = |event: WatchEvent<Service>| match event {
        WatchEvent::Added(service) => format!("+{}", service.metadata.name.unwrap()),
        WatchEvent::Modified(service) => format!("~{}", service.metadata.name.unwrap()),
        WatchEvent::Deleted(service) => format!("-{}", service.metadata.name.unwrap()),
        other => format!("{other:?}"),
    };
    let all = api.watch(&brief(), &from).await.unwrap();
    let all: Vec<_> = all.map_ok(said).try_collect().await.unwrap();
    assert_eq!(all, ["+a", "+b", "~a", "-b"]);
    let selected = api.watch(&brief().labels("app=b"), &from).await.unwrap();
    let selected: Vec<_> = selected.map_ok(said).try_collect().await.unwrap();
    assert_eq!(selected, ["+b", "+a", "-b"], "what enters a selection is new to it");
    let other = api.watch(&brief().labels("app=a"), &from).await.unwrap();
    let other: Vec<_> = other.map_ok(said).try_collect().await.unwrap();
    assert_eq!(other, ["+a", "-a"], "what leaves a selection is deleted for it");
}

#[tokio::test]
async fn a_watch_from_a_compacted_revision_is_told_so_in_an_event() {
    let server = server();
    let api = services(&server).await;
    let from = server.revision().to_string();
    create(&api, &["a"]).await;
    server.compact();
    let mut stream = api.watch(&WatchParams::default(), &from).await.unwrap().boxed();
    let WatchEvent::Error(status) = next(&mut stream).await.unwrap() else { panic!("no error") };
    assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));
    assert!(timeout(SOON, stream.next()).await.unwrap().is_none());
}

#[tokio::test]
async fn bookmarks_come_and_can_be_kept_from_coming() {
    let server = ApiServer::start(Options { bookmark_every: Duration::from_millis(50), ..Options::default() }).unwrap();
    let api = services(&server).await;
    let mut stream = api.watch(&WatchParams::default(), "0").await.unwrap().boxed();
    server.skip_revisions(7);
    let wanted = server.revision().to_string();
    loop {
        let WatchEvent::Bookmark(mark) = next(&mut stream).await.unwrap() else { panic!("no bookmark") };
        assert_eq!(mark.types.kind, "Service");
        if mark.metadata.resource_version == wanted {
            break;
        }
    }
    server.faults().drop_bookmarks(true);
    create(&api, &["a"]).await;
    // Those that were sent before the order may still come.
    while !matches!(next(&mut stream).await.unwrap(), WatchEvent::Added(_)) {}
    assert!(timeout(Duration::from_millis(300), stream.next()).await.is_err());
}

const E: &str = "{apiVersion: v1, kind: Service, metadata: {name: e}, spec: {ports: [{port: 1}]}}";

async fn applied(stream: &mut (impl Stream<Item = watcher::Result<watcher::Event<Service>>> + Unpin), until: &[&str]) {
    let wanted: BTreeSet<&str> = until.iter().copied().collect();
    let mut seen = BTreeSet::new();
    while seen.iter().map(String::as_str).collect::<BTreeSet<_>>() != wanted {
        match next(stream).await {
            Ok(watcher::Event::Init) => seen.clear(),
            Ok(watcher::Event::InitApply(service) | watcher::Event::Apply(service)) => {
                seen.insert(service.metadata.name.unwrap());
            }
            Ok(watcher::Event::Delete(service)) => {
                seen.remove(&service.metadata.name.unwrap());
            }
            Ok(watcher::Event::InitDone) | Err(_) => {}
        }
    }
}

#[tokio::test]
async fn the_watcher_lists_watches_and_recovers() {
    for streaming in [false, true] {
        let server = server();
        let api = services(&server).await;
        create(&api, &["a", "b", "c"]).await;
        let config = watcher::Config::default().page_size(2);
        let config = if streaming { config.streaming_lists() } else { config };
        let mut stream = watcher(api.clone(), config).boxed();
        applied(&mut stream, &["a", "b", "c"]).await;
        while !matches!(next(&mut stream).await.unwrap(), watcher::Event::InitDone) {}
        create(&api, &["d"]).await;
        let watcher::Event::Apply(service) = next(&mut stream).await.unwrap() else { panic!("not applied") };
        assert_eq!(service.metadata.name.as_deref(), Some("d"));

        // Cut: it goes on from where it was.
        server.faults().cut_connections();
        server.apply(E).unwrap();
        let mut seen = Vec::new();
        while seen.is_empty() {
            match next(&mut stream).await {
                Ok(watcher::Event::Apply(service)) => seen.push(service.metadata.name.unwrap()),
                Ok(other) => panic!("listed again: {other:?}"),
                Err(_) => {}
            }
        }
        assert_eq!(seen, ["e"]);

        // Expired: it lists again.
        server.delete("Service", "default", "a").unwrap();
        let watcher::Event::Delete(_) = next(&mut stream).await.unwrap() else { panic!("not deleted") };
        server.faults().expire_watches();
        while !matches!(next(&mut stream).await, Ok(watcher::Event::Init)) {}
        // The client's idle connections were cut too: it may try one of them before it knows.
        while !matches!(next(&mut stream).await, Ok(watcher::Event::InitDone)) {}
        server.apply(&E.replace("name: e", "name: f")).unwrap();
        let watcher::Event::Apply(service) = next(&mut stream).await.unwrap() else { panic!("not applied") };
        assert_eq!(service.metadata.name.as_deref(), Some("f"));
    }
}

#[tokio::test]
async fn metadata_can_be_had_alone() {
    let server = server();
    let api = services(&server).await;
    create(&api, &["a"]).await;
    let list = api.list_metadata(&ListParams::default()).await.unwrap();
    assert_eq!(list.items[0].types.as_ref().unwrap().kind, "PartialObjectMetadata");
    assert_eq!(api.get_metadata("a").await.unwrap().metadata.labels.unwrap()["app"], "a");
    let metadata: Api<PartialObjectMeta<Service>> = Api::default_namespaced(client(&server).await);
    let mut stream = watcher(metadata, watcher::Config::default()).boxed();
    let mut seen: Vec<PartialObjectMeta<Service>> = Vec::new();
    create(&api, &["b"]).await;
    while seen.len() < 2 {
        if let watcher::Event::InitApply(object) | watcher::Event::Apply(object) = next(&mut stream).await.unwrap() {
            seen.push(object);
        }
    }
    let names: Vec<_> = seen.iter().filter_map(|object| object.metadata.name.as_deref()).collect();
    assert_eq!(names, ["a", "b"]);
}

#[tokio::test]
async fn items_of_built_in_lists_do_not_say_what_they_are() {
    let server = server();
    let api: Api<kube::core::DynamicObject> =
        Api::all_with(client(&server).await, &kube::core::ApiResource::erase::<Service>(&()));
    server.apply("{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 1}]}}").unwrap();
    assert!(api.list(&ListParams::default()).await.unwrap().items[0].types.is_none());
}
