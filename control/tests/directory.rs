//! The directory source on real directories, and with the kernel's own notifications.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tidegate_control::problem::Severity;
use tidegate_control::source::directory::Directory;
use tidegate_control::source::nevergood::NeverGood;
use tidegate_control::source::scan::{CONFIRM_FILE, Look, Scan, is_manifest};
use tidegate_control::source::{Batch, ObjectKey, ObjectKind, Running, Source};

/// Longest wait for something that must happen; never waited for when it does.
const PATIENCE: Duration = Duration::from_secs(20);

fn node(name: &str) -> String {
    format!("apiVersion: v1\nkind: Node\nmetadata: {{ name: {name} }}\n---\n")
}

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name} }}\nspec: {{ ports: [{{ port: {port} }}] }}\n---\n"
    )
}

struct Place {
    directory: TempDir,
    scan: Scan,
}

impl Place {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let scan = Scan::new(directory.path());
        Place { directory, scan }
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.directory.path().join(file), text).unwrap();
    }

    fn remove(&self, file: &str) {
        fs::remove_file(self.directory.path().join(file)).unwrap();
    }

    fn look(&mut self) -> Batch {
        self.scan.look(&Look::AtAll { settled: false })
    }
}

fn applied(batch: &Batch) -> Vec<String> {
    let mut keys: Vec<String> = batch.applied.iter().map(|manifest| manifest.key.to_string()).collect();
    keys.sort();
    keys
}

fn deleted(batch: &Batch) -> Vec<String> {
    batch.deleted.iter().map(ToString::to_string).collect()
}

fn problems(batch: &Batch) -> Vec<String> {
    batch.problems.iter().map(ToString::to_string).collect()
}

#[test]
fn a_pipe_among_the_files_is_told_and_not_waited_for() {
    let mut place = Place::new();
    place.write("b.yaml", &node("w1"));
    let pipe = place.directory.path().join("a.yaml");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let (done, looked) = channel();
    std::thread::spawn(move || {
        let batch = place.look();
        let _ = done.send((applied(&batch), problems(&batch)));
    });
    let (applied, problems) = looked.recv_timeout(PATIENCE).expect("nobody ever writes into that pipe");
    assert_eq!(applied, ["Node w1"]);
    assert!(problems.iter().any(|problem| problem.contains("not a regular file")), "{problems:?}");
}

#[test]
fn which_files_are_read() {
    for name in ["web.yaml", "web.yml", "web.json", "a.b.yaml", "10-web.yaml"] {
        assert!(is_manifest(name), "{name}");
    }
    for name in [
        ".web.yaml",
        ".yaml",
        "web.yaml~",
        "#web.yaml#",
        ".#web.yaml",
        "web.yaml.swp",
        ".web.yaml.swp",
        "4913",
        "web.txt",
        "~web.yaml",
        "web.yaml.tmp",
        CONFIRM_FILE,
        "yaml",
    ] {
        assert!(!is_manifest(name), "{name}");
    }
}

#[test]
fn what_changed_is_told_and_nothing_else() {
    let mut place = Place::new();
    place.write("a.yaml", &(node("w1") + &node("w2")));
    place.write("b.json", "{\"apiVersion\":\"v1\",\"kind\":\"Node\",\"metadata\":{\"name\":\"w3\"}}");
    place.write("notes.txt", "not for us");
    let batch = place.look();
    assert_eq!(applied(&batch), ["Node w1", "Node w2", "Node w3"]);
    assert!(batch.complete && batch.problems.is_empty());
    let batch = place.look();
    assert!(batch.applied.is_empty() && batch.deleted.is_empty());
    place.write("a.yaml", &node("w2"));
    let batch = place.look();
    assert_eq!((applied(&batch), deleted(&batch)), (vec!["Node w2".into()], vec!["Node w1".into()]));
    place.remove("b.json");
    assert_eq!(deleted(&place.look()), ["Node w3"]);
}

#[test]
fn a_broken_file_keeps_its_objects_and_the_error_names_the_place() {
    let mut place = Place::new();
    place.write("a.yaml", &(node("w1") + &node("w2")));
    place.look();
    for (text, word) in [("apiVersion: v1\nkind: [", "not YAML"), ("\u{0}", "not YAML"), ("a: b: c", "not YAML")] {
        place.write("a.yaml", &(node("w1") + text));
        let batch = place.look();
        assert!(batch.applied.is_empty() && batch.deleted.is_empty(), "{text:?}");
        assert!(!batch.unreadable, "its objects are known");
        let problem = &problems(&batch)[0];
        assert!(problem.starts_with("a.yaml document 2 (line "), "{problem}");
        assert!(problem.contains(word) && problem.contains("2 objects stay"), "{problem}");
    }
    fs::write(place.directory.path().join("a.yaml"), [0xff, 0xfe, b'a']).unwrap();
    assert!(problems(&place.look())[0].contains("UTF-16; save it as UTF-8"));
    fs::write(place.directory.path().join("a.yaml"), [b'a', 0xff]).unwrap();
    assert!(problems(&place.look())[0].contains("not UTF-8"));
    place.write("a.yaml", &(node("w1") + &node("w2")));
    let batch = place.look();
    assert!(batch.problems.is_empty(), "{:?}", batch.problems);
    assert_eq!(applied(&batch).len(), 2);
}

#[test]
fn a_file_cut_to_nothing_keeps_its_objects_and_a_removed_one_does_not() {
    let mut place = Place::new();
    place.write("a.yaml", &node("w1"));
    place.look();
    for text in ["", "\n \n"] {
        place.write("a.yaml", text);
        let batch = place.look();
        assert!(batch.applied.is_empty() && batch.deleted.is_empty(), "{text:?}");
        assert!(problems(&batch)[0].contains("is empty; to delete what it held"), "{:?}", batch.problems);
    }
    place.write("a.yaml", &node("w1"));
    place.write("other.yaml", &node("w2"));
    assert!(place.look().problems.is_empty());
    place.remove("a.yaml");
    assert_eq!(deleted(&place.look()), ["Node w1"]);
    // One that never held anything may be empty.
    place.write("b.yaml", "");
    assert!(place.look().problems.is_empty());
}

#[test]
fn a_file_broken_from_the_start_says_that_something_is_unknown() {
    let mut place = Place::new();
    place.write("a.yaml", "{");
    place.write("b.yaml", &node("w1"));
    let batch = place.look();
    assert!(batch.unreadable && applied(&batch) == ["Node w1"]);
    assert!(problems(&batch)[0].contains("nothing of this file is applied"));
    place.write("c.yaml", "{");
    place.write("a.yaml", &node("w2"));
    assert!(!place.look().unreadable, "what a new file would add was never there");
}

#[test]
fn a_document_that_lost_its_name_takes_nothing_away() {
    let mut place = Place::new();
    place.write("a.yaml", &(node("w1") + &node("w2")));
    place.look();
    place.write("a.yaml", &(node("w1") + "apiVersion: v1\nkind: Node\nmetadata: { nmae: w2 }\n"));
    let batch = place.look();
    assert_eq!((applied(&batch), deleted(&batch)), (vec!["Node w1".into()], vec![]));
    assert!(problems(&batch)[0].contains("metadata.name"), "{:?}", problems(&batch));
    // Nor does one whose kind is misspelt.
    for (right, wrong) in [("kind: Node", "kind: node"), ("apiVersion: v1", "apiVersion: v2")] {
        place.write("a.yaml", &(node("w1") + &node("w2").replace(right, wrong)));
        let batch = place.look();
        assert!(deleted(&batch).is_empty(), "{wrong}");
        assert!(problems(&batch)[0].contains("apiVersion: v1, kind: Node"), "{:?}", problems(&batch));
    }
}

fn policy(name: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{ name: {name}, namespace: shop }}\n\
         spec: {{ podSelector: {{}} }}\n---\n"
    )
}

/// What was closed stays closed, however far the type is from what was meant.
#[test]
fn an_object_whose_type_is_written_wrongly_takes_nothing_away() {
    let (kind, version) = ("kind: NetworkPolicy", "apiVersion: networking.k8s.io/v1");
    for (right, wrong) in [
        (kind, "kind: NetworkPolcy"),
        (kind, "kind: networkpolicy"),
        (kind, "kind: NetPol"),
        (kind, "kind: Policy"),
        (version, "apiVersion: networking.k8s.oi/v1"),
        (version, "apiVersion: networking.k8s.io/v1beta1"),
        (version, "apiVersion: networking/v1"),
        (version, "apiVersion: example.org/v1"),
    ] {
        let mut place = Place::new();
        place.write("a.yaml", &(policy("closed") + &policy("other")));
        place.write("b.yaml", &(policy("more") + &policy("yet-more")));
        assert_eq!(applied(&place.look()).len(), 4);
        let spoilt = policy("closed").replace(right, wrong);
        place.write("a.yaml", &(spoilt.clone() + &policy("other")));
        let expect_told = |batch: &Batch| {
            assert!(deleted(batch).is_empty(), "{wrong}");
            let told = problems(batch);
            let words = ["a.yaml document 1 (line 1): ", wrong.rsplit(' ').next().unwrap(), " closed: ", kind, version];
            let fits = |problem: &&String| words.iter().all(|word| problem.contains(word));
            assert_eq!(told.iter().filter(fits).count(), 1, "{wrong}: {told:#?}");
        };
        expect_told(&place.look());
        // It is so for as long as it stands there, whatever becomes of the others.
        place.write("a.yaml", &(spoilt.clone() + &policy("new")));
        let batch = place.look();
        assert_eq!(applied(&batch), ["NetworkPolicy shop/new"]);
        let is_near = batch.problems.iter().any(|problem| problem.message.contains("in whose place it is"));
        assert_eq!(deleted(&batch).is_empty(), is_near, "of what is near nobody knows which document it was: {wrong}");
        place.write("a.yaml", &spoilt);
        assert!(!deleted(&place.look()).contains(&"NetworkPolicy shop/closed".into()), "{wrong}");
        // Put right it is read, and written wrongly again it stays.
        place.write("a.yaml", &policy("closed"));
        let batch = place.look();
        assert_eq!((applied(&batch), problems(&batch)), (vec!["NetworkPolicy shop/closed".into()], vec![]), "{wrong}");
        place.write("a.yaml", &spoilt);
        expect_told(&place.look());
        // Gone is gone.
        place.remove("a.yaml");
        let batch = place.look();
        assert_eq!((deleted(&batch), problems(&batch)), (vec!["NetworkPolicy shop/closed".into()], vec![]), "{wrong}");
    }
}

/// A file with a slip in it may be renamed, or what it has written anew elsewhere.
#[test]
fn an_object_that_no_file_has_stays_while_one_may_have_it_hidden() {
    for (right, wrong) in [
        ("kind: NetworkPolicy", "kind: NetworkPolcy"),
        ("kind: NetworkPolicy\n", ""),
        ("apiVersion: networking.k8s.io/v1", "apiVersion: networking.k8s.oi/v1"),
        ("spec: {", "spec: {{"),
    ] {
        let expect_kept = |batch: &Batch, file: &str| {
            assert!(deleted(batch).is_empty(), "{wrong:?} {file}");
            let told =
                problems(batch).into_iter().filter(|problem| problem.contains(&format!("since {file} may have")));
            assert_eq!(told.filter(|problem| problem.contains("shop/closed")).count(), 1, "{wrong:?} {file}");
        };
        let mut place = Place::new();
        place.write("b.yaml", &(policy("more") + &policy("yet-more") + &node("w1")));
        place.write("a.yaml", &policy("closed"));
        assert_eq!(applied(&place.look()).len(), 4);
        let spoilt = policy("closed").replace(right, wrong);
        place.write("a.yaml", &spoilt);
        assert!(deleted(&place.look()).is_empty());
        // Renamed.
        place.remove("a.yaml");
        place.write("c.yaml", &spoilt);
        expect_kept(&place.look(), "c.yaml");
        // What is deleted beside it is, unless it may be there too.
        place.write("b.yaml", &(policy("more") + &node("w1")));
        let is_text = wrong != "spec: {{";
        assert_eq!(deleted(&place.look()).len(), usize::from(is_text), "{wrong:?}");
        // Put right.
        place.write("c.yaml", &policy("closed"));
        let batch = place.look();
        assert!(applied(&batch).contains(&"NetworkPolicy shop/closed".into()), "{wrong:?}");
        assert_eq!((deleted(&batch).len(), problems(&batch)), (usize::from(!is_text), vec![]), "{wrong:?}");
        // Written elsewhere first, and gone from where it was later.
        place.write("d.yaml", &spoilt);
        place.look();
        place.remove("c.yaml");
        expect_kept(&place.look(), "d.yaml");
        place.remove("d.yaml");
        let batch = place.look();
        assert_eq!(
            (deleted(&batch), problems(&batch)),
            (vec!["NetworkPolicy shop/closed".into()], vec![]),
            "{wrong:?}"
        );
    }
    // Of a type that is far from ours it is the very thing that stood in its place.
    let mut place = Place::new();
    place.write("node.yaml", &node("w1"));
    place.write("a.yaml", &policy("closed"));
    place.look();
    let far = policy("closed").replace("NetworkPolicy", "NetPol");
    place.write("a.yaml", &far);
    place.look();
    place.remove("a.yaml");
    place.write("c.yaml", &far);
    assert!(deleted(&place.look()).is_empty());
    place.remove("c.yaml");
    assert_eq!(deleted(&place.look()), ["NetworkPolicy shop/closed"]);
}

#[test]
fn a_number_that_json_has_not_makes_a_file_unreadable_and_leaves_nothing_out() {
    for number in [".inf", "-.Inf", ".nan"] {
        let mut place = Place::new();
        place.write("a.yaml", &policy("closed"));
        place.look();
        place.write(
            "a.yaml",
            &policy("closed").replace("podSelector: {}", &format!("podSelector: {{}}, ingress: {number}")),
        );
        let batch = place.look();
        assert!(applied(&batch).is_empty() && deleted(&batch).is_empty());
        assert!(problems(&batch)[0].contains("is no number that an object can have"), "{:?}", problems(&batch));
    }
}

#[test]
fn somebody_elses_object_of_the_same_name_keeps_nothing() {
    let mut place = Place::new();
    let other =
        |kind: &str| format!("apiVersion: v1\nkind: {kind}\nmetadata: {{ name: closed, namespace: shop }}\n---\n");
    place.write("node.yaml", &node("w2"));
    place.write("a.yaml", &(policy("closed") + &other("ConfigMap")));
    place.look();
    place.write("a.yaml", &other("ConfigMap"));
    assert_eq!(deleted(&place.look()), ["NetworkPolicy shop/closed"], "it was there beside it");
    // Of another namespace, or with another name, it is another object.
    place.write("a.yaml", &policy("closed"));
    place.look();
    place.write("a.yaml", &other("Secret").replace("namespace: shop", "namespace: blog"));
    assert_eq!(deleted(&place.look()), ["NetworkPolicy shop/closed"]);
    // To leave the document out is to delete it too.
    place.write("a.yaml", &(policy("closed") + &node("w1")));
    place.look();
    place.write("a.yaml", &(other("Secret") + &node("w1")));
    assert!(deleted(&place.look()).is_empty());
    place.write("a.yaml", &node("w1"));
    let batch = place.look();
    assert_eq!((deleted(&batch), problems(&batch)), (vec!["NetworkPolicy shop/closed".into()], vec![]));
}

/// After a restart nobody knows what it was, but for who has it still.
#[test]
fn a_type_that_is_misspelt_from_the_start_says_that_something_is_unknown() {
    let mut place = Place::new();
    place.write("a.yaml", &policy("closed").replace("NetworkPolicy", "NetworkPolcy"));
    place.write("b.yaml", &node("w1"));
    assert!(place.look().unreadable);
    place.write("b.yaml", &node("w2"));
    assert!(place.look().unreadable, "it is still");
    place.write("a.yaml", &policy("closed"));
    assert!(!place.look().unreadable);
    place.write("a.yaml", &policy("closed").replace("NetworkPolicy", "NetworkPolcy"));
    assert!(!place.look().unreadable, "what it is can be known");
}

#[test]
fn an_object_in_two_files_is_taken_from_the_first_by_name() {
    let mut place = Place::new();
    place.write("b.yaml", &service("web", 80));
    place.write("c.yaml", &(node("w1") + &service("web", 81)));
    let batch = place.look();
    let port = |batch: &Batch| batch.applied.iter().find_map(|m| m.value.pointer("/spec/ports/0/port")?.as_u64());
    assert_eq!(port(&batch), Some(80));
    let problem = &problems(&batch)[0];
    assert!(problem.contains("b.yaml document 1") && problem.starts_with("c.yaml document 2"), "names both: {problem}");
    // A third file that comes first wins; when it goes, the second is read again though it did not change.
    place.write("a.yaml", &service("web", 79));
    assert_eq!(port(&place.look()), Some(79));
    place.remove("a.yaml");
    assert_eq!(port(&place.look()), Some(80));
    place.remove("b.yaml");
    let batch = place.look();
    assert_eq!((port(&batch), batch.problems.len(), deleted(&batch).len()), (Some(81), 0, 0));
}

#[test]
fn an_object_twice_in_one_file_is_taken_from_the_first_document() {
    let mut place = Place::new();
    place.write("a.yaml", &(service("web", 80) + &service("web", 81)));
    let batch = place.look();
    assert_eq!(applied(&batch).len(), 1);
    assert!(problems(&batch)[0].contains("defined twice in this file"), "{:?}", problems(&batch));
}

#[test]
fn deleting_more_than_half_of_a_kind_waits_for_a_person() {
    let mut place = Place::new();
    for n in 1..=6 {
        place.write(&format!("n{n}.yaml"), &node(&format!("w{n}")));
        place.write(&format!("s{n}.yaml"), &service(&format!("s{n}"), 80));
    }
    place.look();
    for n in 1..=3 {
        place.remove(&format!("n{n}.yaml"));
    }
    assert_eq!(deleted(&place.look()).len(), 3, "half is not more than half");
    for n in 1..=4 {
        place.remove(&format!("s{n}.yaml"));
    }
    let batch = place.look();
    assert!(deleted(&batch).is_empty());
    let problem = &problems(&batch)[0];
    assert!(problem.contains("4 of 6 objects of kind Service") && problem.contains(CONFIRM_FILE), "{problem}");
    // One comes back, one more goes: three of six wait, and the guard does not forget them.
    place.write("s1.yaml", &service("s1", 80));
    let batch = place.look();
    assert_eq!(applied(&batch), ["Service default/s1"]);
    assert!(problems(&batch)[0].contains("3 of 6"), "{:?}", problems(&batch));
    place.write(CONFIRM_FILE, "");
    let batch = place.look();
    assert_eq!(deleted(&batch).len(), 3);
    assert!(batch.problems.is_empty() && batch.deletes_confirmed);
    assert!(!place.directory.path().join(CONFIRM_FILE).exists(), "consumed");
    assert!(!place.look().deletes_confirmed);
}

#[test]
fn a_large_directory_comes_in_portions_and_only_the_last_is_complete() {
    let mut place = Place::new();
    let filler = format!("# {}\n", "x".repeat(78)).repeat(40_000);
    for n in 1..=4 {
        place.write(&format!("n{n}.yaml"), &(filler.clone() + &node(&format!("w{n}"))));
    }
    place.write("n5.yaml", "{");
    let mut batches = Vec::new();
    assert!(place.scan.look_first(&mut |batch| {
        batches.push(batch);
        true
    }));
    assert!(batches.len() > 1);
    let (last, first) = batches.split_last().unwrap();
    assert!(first.iter().all(|batch| !batch.complete) && last.complete);
    assert!(last.unreadable && last.problems.len() == 1);
    let all: Vec<String> = batches.iter().flat_map(applied).collect();
    assert_eq!(all, ["Node w1", "Node w2", "Node w3", "Node w4"]);
    let batch = place.look();
    assert!(batch.applied.is_empty(), "nothing twice");
}

#[test]
fn the_own_node_stays_until_its_deletion_is_confirmed() {
    let mut place = Place::new();
    place.scan = Scan::new(place.directory.path()).guarding("gw-1");
    place.write("gw.yaml", &node("gw-1"));
    place.write("w.yaml", &(1..=5).map(|n| node(&format!("w{n}"))).collect::<String>());
    place.look();
    place.remove("gw.yaml");
    place.write("w.yaml", &(1..=4).map(|n| node(&format!("w{n}"))).collect::<String>());
    let batch = place.look();
    assert_eq!(deleted(&batch), ["Node w5"], "the others go as ever");
    let told = problems(&batch);
    assert!(told.len() == 1 && told[0].starts_with("Node gw-1: this gateway's own Node is gone"), "{told:?}");
    assert!(told[0].contains(CONFIRM_FILE));
    place.write("gw2.yaml", &node("gw-1"));
    let batch = place.look();
    assert!(batch.problems.is_empty() && applied(&batch) == ["Node gw-1"], "it came back");
    place.remove("gw2.yaml");
    assert_eq!(problems(&place.look()).len(), 1);
    place.write(CONFIRM_FILE, "");
    let batch = place.look();
    assert_eq!((deleted(&batch), batch.problems.len()), (vec!["Node gw-1".into()], 0));
}

/// What was never good does not count, be it heard of before or after it goes, and stays with a directory that is
/// empty.
#[test]
fn what_was_never_good_waits_for_nobody() {
    let mut place = Place::new();
    let never_good = NeverGood::default();
    place.scan = Scan::new(place.directory.path()).guarding("gw-1").letting_go(never_good.clone());
    let policies = |names: &[&str]| names.iter().map(|name| policy(name)).collect::<String>();
    place.write("node.yaml", &node("gw-1"));
    place.write("good.yaml", &policies(&["g1", "g2", "g3", "g4", "g5"]));
    place.write("bad.yaml", &policies(&["b1", "b2", "b3", "b4"]));
    let keys = place.look().applied.into_iter().map(|manifest| manifest.key);
    let bad: Vec<ObjectKey> = keys.filter(|key| key.name.starts_with('b')).collect();
    assert_eq!(bad.len(), 4);
    // Only some is known of in time.
    bad[..2].iter().for_each(|key| never_good.insert(key));
    place.remove("bad.yaml");
    assert_eq!(deleted(&place.look()).len(), 4, "two of the others may go as ever");
    // Of one it is known in time, of another one after it went, and of two never.
    bad.iter().for_each(|key| never_good.remove(key));
    place.write("bad.yaml", &policies(&["b1", "b2", "b3", "b4"]));
    place.look();
    place.remove("bad.yaml");
    place.write("good.yaml", &policies(&["g1"]));
    never_good.insert(&bad[0]);
    let batch = place.look();
    assert_eq!(deleted(&batch), [bad[0].to_string()]);
    assert!(problems(&batch).iter().any(|told| told.contains("7 of 8 objects of kind NetworkPolicy")), "{batch:?}");
    never_good.insert(&bad[1]);
    assert_eq!(deleted(&place.look()), [bad[1].to_string()], "told only now");
    // Of good ones alone it is too much, though it is not half of all.
    place.write(CONFIRM_FILE, "");
    place.look();
    place.write("good.yaml", &policies(&["g1", "g2", "g3", "g4", "g5"]));
    place.write("bad.yaml", &policies(&["b1", "b2", "b3", "b4"]));
    bad.iter().for_each(|key| never_good.insert(key));
    place.look();
    place.write("good.yaml", &policies(&["g1", "g2"]));
    assert!(deleted(&place.look()).is_empty(), "three of five");
    place.write("good.yaml", &policies(&["g1", "g2", "g3", "g4", "g5"]));
    assert!(place.look().problems.is_empty());
    // The own Node, whatever it is; and a directory with nothing left.
    never_good.insert(&ObjectKey { kind: ObjectKind::Node, namespace: String::new(), name: "gw-1".into() });
    place.remove("node.yaml");
    assert!(deleted(&place.look()).is_empty());
    place.remove("good.yaml");
    place.remove("bad.yaml");
    assert!(deleted(&place.look()).is_empty() && deleted(&place.look()).is_empty());
}

#[test]
fn two_objects_may_go_without_asking() {
    let mut place = Place::new();
    place.write("a.yaml", &(node("w1") + &node("w2")));
    place.write("b.yaml", &policy("closed"));
    place.look();
    place.remove("a.yaml");
    assert_eq!(deleted(&place.look()).len(), 2);
}

/// A mount that is gone, or a copy that was cut off, takes away some of every kind.
#[test]
fn what_goes_with_many_others_or_with_everything_waits_too() {
    let mut place = Place::new();
    place.write("closed.yaml", &policy("closed"));
    place.write("nodes.yaml", &(1..=4).map(|n| node(&format!("w{n}"))).collect::<String>());
    place.write("more.yaml", &(service("web", 80) + &policy("other")));
    place.look();
    place.remove("closed.yaml");
    place.remove("nodes.yaml");
    let batch = place.look();
    assert_eq!(deleted(&batch), [""; 0]);
    let told = problems(&batch);
    assert!(told.iter().any(|told| told.contains("1 of 2 objects of kind NetworkPolicy") && told.contains("at once")));
    assert!(told.iter().any(|told| told.contains("4 of 4 objects of kind Node") && told.contains("more than half")));
    // What is deleted later by itself goes, and what comes back is there.
    place.write("more.yaml", &policy("other"));
    assert_eq!(deleted(&place.look()), ["Service default/web"]);
    place.write("nodes.yaml", &(1..=4).map(|n| node(&format!("w{n}"))).collect::<String>());
    place.write(CONFIRM_FILE, "");
    assert_eq!(deleted(&place.look()), ["NetworkPolicy shop/closed"]);
    // All of it, few as they are.
    let mut place = Place::new();
    place.write("a.yaml", &(policy("closed") + &node("w1")));
    place.look();
    place.remove("a.yaml");
    let batch = place.look();
    assert_eq!((deleted(&batch).len(), problems(&batch).len()), (0, 2));
    place.write("a.yaml", &policy("closed"));
    assert_eq!(problems(&place.look()).len(), 1, "the Node still");
}

/// What a full disk or a power cut leaves of a file is not what it held.
#[test]
fn an_empty_file_says_at_a_start_that_something_is_unknown() {
    let mut place = Place::new();
    place.write("a.yaml", "\n");
    place.write("b.yaml", &node("w1"));
    let batch = place.look();
    assert!(batch.unreadable && problems(&batch)[0].contains("a.yaml"), "{:?}", problems(&batch));
    place.write("a.yaml", "");
    assert!(place.look().unreadable, "it is still");
    place.write("c.yaml", "");
    place.write("a.yaml", &policy("closed"));
    let batch = place.look();
    assert_eq!((batch.unreadable, problems(&batch)), (false, vec![]), "a new one held nothing");
}

/// A link that leads nowhere is not a file that was deleted.
#[test]
fn a_link_that_leads_nowhere_keeps_what_was_there() {
    let mut place = Place::new();
    let elsewhere = TempDir::new().unwrap();
    let target = elsewhere.path().join("policy");
    fs::write(&target, policy("closed")).unwrap();
    std::os::unix::fs::symlink(&target, place.directory.path().join("a.yaml")).unwrap();
    place.write("b.yaml", &node("w1"));
    assert_eq!(applied(&place.look()).len(), 2);
    fs::remove_file(&target).unwrap();
    let batch = place.look();
    assert!(deleted(&batch).is_empty() && problems(&batch)[0].contains("a.yaml"), "{:?}", problems(&batch));
    assert!(problems(&batch)[0].contains("cannot be read"), "{:?}", problems(&batch));
    let fresh = Scan::new(place.directory.path()).look(&Look::AtAll { settled: false });
    assert!(fresh.unreadable, "at a start it may have anything");
    place.remove("a.yaml");
    assert_eq!(deleted(&place.look()), ["NetworkPolicy shop/closed"]);
}

/// An object of a namespace whose namespace is written wrongly would be another object, in the namespace `default`.
#[test]
fn a_slip_for_the_namespace_takes_nothing_away() {
    for (right, wrong) in [
        ("namespace: shop", "namesapce: shop"),
        ("namespace: shop", "Namespace: shop"),
        ("namespace: shop", "ns: shop"),
        ("namespace: shop", "<<: { namespace: shop }"),
        ("namespace: shop }", "}\nnamespace: shop"),
        ("namespace: shop", "namespace: Shop"),
        ("namespace: shop", "namespace: shop_"),
        ("namespace: shop", "namespace: 7"),
    ] {
        let spoilt = policy("closed").replace(right, wrong);
        assert_ne!(spoilt, policy("closed"));
        let mut place = Place::new();
        place.write("a.yaml", &policy("closed"));
        place.write("b.yaml", &(node("w1") + &node("w2")));
        place.look();
        place.write("a.yaml", &spoilt);
        let batch = place.look();
        assert!(applied(&batch).is_empty() && deleted(&batch).is_empty(), "{wrong}: {:?}", applied(&batch));
        assert_eq!(problems(&batch).len(), 1, "{wrong}: {:?}", problems(&batch));
        // Nor with a renamed file, nor after a restart.
        place.remove("a.yaml");
        place.write("c.yaml", &spoilt);
        assert!(deleted(&place.look()).is_empty(), "{wrong}");
        assert!(Scan::new(place.directory.path()).look(&Look::AtAll { settled: false }).unreadable, "{wrong}");
        // Others go.
        place.write("b.yaml", &node("w1"));
        assert_eq!(deleted(&place.look()), ["Node w2"], "{wrong}");
    }
    // A Service is not asked for more than before.
    let mut place = Place::new();
    place.write("a.yaml", &service("web", 80).replace("name: web", "name: web, lables: {}"));
    assert_eq!(applied(&place.look()), ["Service default/web"]);
}

/// A list without its items, and something with items that is no list, say nothing of what was in them.
#[test]
fn a_slip_in_a_list_takes_nothing_away() {
    let of = |kind: &str, items: &str| {
        let entry = "{ metadata: { name: closed, namespace: shop }, spec: { podSelector: {} }, kind: NetworkPolicy, apiVersion: networking.k8s.io/v1 }";
        format!("apiVersion: {kind}\n{}\n", items.replace("ENTRY", entry))
    };
    let (list, typed) = ("v1\nkind: List", "networking.k8s.io/v1\nkind: NetworkPolicyList");
    for (kind, items) in [
        (list, "itemz: [ENTRY]"),
        (list, "items: ~"),
        (list, "items: {}"),
        (list, "metadata: {}"),
        (typed, "itmes: [ENTRY]"),
        ("networking.k8s.io/v1\nkind: NetworkPolicyLst", "items: [ENTRY]"),
        ("v1\nkind: Lits", "items: [ENTRY]"),
    ] {
        let mut place = Place::new();
        place.write("node.yaml", &node("w1"));
        place.write("a.yaml", &of(list, "items: [ENTRY]"));
        assert_eq!(applied(&place.look()).len(), 2, "{items}");
        place.write("a.yaml", &of(kind, items));
        let batch = place.look();
        assert!(deleted(&batch).is_empty(), "{kind} {items}");
        assert!(batch.problems.iter().any(|problem| problem.severity == Severity::Error), "{kind} {items}");
        place.remove("a.yaml");
        place.write("b.yaml", &of(kind, items));
        assert!(deleted(&place.look()).is_empty(), "{kind} {items}");
        place.write("b.yaml", &of(typed, "items: []"));
        assert_eq!(deleted(&place.look()), ["NetworkPolicy shop/closed"], "{kind} {items}");
    }
    let mut place = Place::new();
    place.write("a.yaml", "apiVersion: example.org/v1\nkind: ThingList\nitems: ~\nmetadata: { name: x }\n");
    assert!(!place.look().unreadable, "somebody else's");
}

/// What moves into another file with a slip is not deleted, whatever that file was before.
#[test]
fn an_object_that_moves_with_a_slip_stays() {
    let moved = |place: &mut Place, (file, beside): (&str, &str), text: &str| {
        let what = format!("{text} in {file}");
        place.remove("np.yaml");
        place.write(file, &format!("{beside}{text}"));
        let batch = place.look();
        assert!(deleted(&batch).is_empty(), "{what}: {:?}", deleted(&batch));
        assert!(
            problems(&batch).iter().any(|told| told.contains("are in no file any more")),
            "{what}: {:?}",
            problems(&batch)
        );
        // Put right it is read, and nothing is wrong.
        place.write(file, &format!("{beside}{}", policy("closed")));
        let batch = place.look();
        assert!(applied(&batch).contains(&"NetworkPolicy shop/closed".into()) && batch.problems.is_empty(), "{what}");
    };
    let closed = policy("closed");
    for (right, wrong) in [
        ("spec: {", "spec: {{"),
        ("name: closed", "nmae: closed"),
        ("metadata: {", "metdata: {"),
        ("name: closed", "name: 7"),
        ("kind: NetworkPolicy\nmetadata: { name: closed", "metadata: { nmae: closed"),
        ("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n", ""),
        ("Policy\nmetadata: { name: closed, namespace: shop", "Polcy\nmetadata: { name: closed, namesapce: shop"),
        ("Policy\nmetadata: { name: closed, namespace: shop", "Polcy\nmetadata: { name: closed"),
        ("NetworkPolicy", "Ingress"),
        ("networking.k8s.io/v1", "example.org/v7"),
    ] {
        let spoilt = closed.replace(right, wrong);
        assert_ne!(spoilt, closed, "{right}");
        for file in [("x.yaml", ""), ("good.yaml", node("w1").as_str())] {
            let mut place = Place::new();
            place.write("np.yaml", &closed);
            place.write("good.yaml", &node("w1"));
            place.look();
            moved(&mut place, file, &spoilt);
        }
    }
}

/// A file that is no manifest is told, and nothing is held for it; one that may have been one is another matter.
#[test]
fn a_file_that_cannot_be_an_object_holds_nothing() {
    let values = "replicas: 3\nimage: { tag: v1 }\n";
    let mut place = Place::new();
    place.write("a.yaml", &(node("w1") + &policy("closed")));
    place.write("values.yaml", values);
    let batch = place.look();
    assert!(!batch.unreadable);
    let told = problems(&batch);
    assert!(told.len() == 1 && told[0].contains("values.yaml") && told[0].contains("neither apiVersion nor kind"));
    place.write("a.yaml", &node("w1"));
    assert_eq!(deleted(&place.look()), ["NetworkPolicy shop/closed"]);
    // In the place of an object it may be what is left of it.
    place.write("a.yaml", values);
    assert!(deleted(&place.look()).is_empty());
    for doubtful in [
        "kind: NetworkPolicy\nreplicas: 3\n",
        "apiVersion: v2\nname: chart\n",
        "apiVerson: networking.k8s.io/v1\nknd: NetworkPolicy\n",
        "metadata: { name: closed, namespace: shop }\nreplicas: 3\n",
        "spec: { podSelector: {} }\n",
        "replicas: [\n",
        "apiVersi",
    ] {
        let mut place = Place::new();
        place.write("values.yaml", doubtful);
        assert!(place.look().unreadable, "{doubtful}");
    }
    // A separator too many makes two documents of an object, of which the first would be taken for it.
    let mut place = Place::new();
    place.write("a.yaml", &(policy("closed") + &node("w1")));
    place.look();
    place.write("a.yaml", &(policy("closed").replace("spec:", "---\nspec:") + &node("w1")));
    let batch = place.look();
    assert!(applied(&batch).is_empty() && problems(&batch)[0].contains("document 2"), "{:?}", problems(&batch));
}

#[test]
fn unknown_kinds_are_told_once() {
    let mut place = Place::new();
    let other = "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: p }\n---\n";
    place.write("a.yaml", &(other.repeat(3) + &node("w1")));
    place.write("b.yaml", other);
    let batch = place.look();
    assert_eq!(applied(&batch), ["Node w1"]);
    assert_eq!(problems(&batch), ["objects of kind v1 ConfigMap are not read (first seen in a.yaml)"]);
}

#[test]
fn a_missing_directory_is_not_an_empty_one() {
    let mut place = Place::new();
    place.write("a.yaml", &(node("w1") + &node("w2")));
    place.look();
    let away = place.directory.path().with_extension("away");
    fs::rename(place.directory.path(), &away).unwrap();
    for look in [Look::AtAll { settled: false }, Look::At(["a.yaml".to_string()].into())] {
        let batch = place.scan.look(&look);
        assert!(batch.deleted.is_empty() && batch.complete);
        assert!(problems(&batch)[0].contains("cannot read the directory"), "{:?}", problems(&batch));
    }
    fs::rename(&away, place.directory.path()).unwrap();
    assert!(place.look().problems.is_empty());
}

/// A started source and the state that its batches add up to.
struct Live {
    _running: Running,
    batches: Receiver<Batch>,
    present: std::collections::BTreeMap<String, serde_json::Value>,
    last: Batch,
}

impl Live {
    fn start(path: &Path) -> Self {
        let (sender, batches) = channel();
        let running = Box::new(Directory::new(path)).start(Box::new(move |batch| sender.send(batch).is_ok())).unwrap();
        Live { _running: running, batches, present: Default::default(), last: Batch::default() }
    }

    fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !condition(self) {
            let left = PATIENCE.checked_sub(begun.elapsed()).unwrap_or_else(|| panic!("{what}: {:?}", self.present));
            let Ok(batch) = self.batches.recv_timeout(left) else {
                panic!("{what}: {:?}, {:?}", self.present, self.last)
            };
            for manifest in &batch.applied {
                self.present.insert(manifest.key.to_string(), manifest.value.clone());
            }
            for key in &batch.deleted {
                self.present.remove(&key.to_string());
            }
            self.last = batch;
        }
    }

    fn until_present(&mut self, keys: &[&str]) {
        self.until(&format!("{keys:?}"), |live| live.present.keys().eq(keys.iter()));
    }
}

#[test]
fn changes_arrive_by_notification() {
    let place = Place::new();
    let at = |file: &str| place.directory.path().join(file);
    place.write("a.yaml", &node("w1"));
    let mut live = Live::start(place.directory.path());
    live.until_present(&["Node w1"]);
    // A completed write; a rename into place; a rename away; a removal.
    place.write("b.yaml", &node("w2"));
    live.until_present(&["Node w1", "Node w2"]);
    place.write(".c.yaml.tmp", &node("w3"));
    fs::rename(at(".c.yaml.tmp"), at("c.yaml")).unwrap();
    live.until_present(&["Node w1", "Node w2", "Node w3"]);
    fs::rename(at("c.yaml"), at("d.yaml")).unwrap();
    place.write("e.yaml", &node("w4"));
    live.until_present(&["Node w1", "Node w2", "Node w3", "Node w4"]);
    fs::rename(at("d.yaml"), at("d.yaml.off")).unwrap();
    live.until_present(&["Node w1", "Node w2", "Node w4"]);
    place.remove("a.yaml");
    live.until_present(&["Node w2", "Node w4"]);
    assert!(live.last.problems.is_empty(), "{:?}", live.last.problems);
}

#[test]
fn a_file_is_left_alone_until_its_writer_is_done() {
    let place = Place::new();
    let mut live = Live::start(place.directory.path());
    live.until("the first look", |live| live.last.complete);
    let mut writer = fs::File::create(place.directory.path().join("a.yaml")).unwrap();
    writer.write_all(node("w1").as_bytes()).unwrap();
    writer.flush().unwrap();
    // Something else is seen meanwhile, and the half-written file is not.
    place.write("b.yaml", &node("w9"));
    live.until_present(&["Node w9"]);
    writer.write_all(node("w2").as_bytes()).unwrap();
    drop(writer);
    live.until("both at once", |live| live.present.len() > 1);
    live.until_present(&["Node w1", "Node w2", "Node w9"]);
}

#[test]
fn confirmation_works_by_creating_the_file() {
    let place = Place::new();
    for n in 1..=4 {
        place.write(&format!("n{n}.yaml"), &node(&format!("w{n}")));
    }
    let mut live = Live::start(place.directory.path());
    live.until("all", |live| live.present.len() == 4);
    for n in 1..=4 {
        fs::rename(place.directory.path().join(format!("n{n}.yaml")), place.directory.path().join(format!("n{n}.off")))
            .unwrap();
    }
    live.until("held", |live| live.last.problems.iter().any(|problem| problem.reason == "DeletesHeld"));
    place.write(CONFIRM_FILE, "");
    live.until("gone", |live| live.present.is_empty());
}

#[test]
fn a_directory_that_comes_late_goes_and_comes_back_is_followed() {
    let place = Place::new();
    let path: PathBuf = place.directory.path().join("manifests");
    let mut live = Live::start(&path);
    live.until("missing", |live| live.last.problems.iter().any(|problem| problem.reason == "SourceMissing"));
    assert!(!live.last.complete);
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a.yaml"), node("w1")).unwrap();
    live.until_present(&["Node w1"]);
    fs::rename(&path, place.directory.path().join("old")).unwrap();
    live.until("missing again", |live| live.last.problems.iter().any(|problem| problem.reason == "SourceMissing"));
    assert_eq!(live.present.len(), 1, "nothing is concluded from its absence");
    fs::create_dir(place.directory.path().join("next")).unwrap();
    fs::write(place.directory.path().join("next/b.yaml"), node("w2")).unwrap();
    fs::rename(place.directory.path().join("next"), &path).unwrap();
    live.until_present(&["Node w2"]);
}

#[test]
fn files_behind_a_swapped_link_are_followed() {
    // As a mounted ConfigMap is updated: the files are links through `..data`, which is replaced by a rename.
    let place = Place::new();
    let at = |file: &str| place.directory.path().join(file);
    let version = |name: &str, text: &str| {
        fs::create_dir(at(name)).unwrap();
        fs::write(at(name).join("a.yaml"), text).unwrap();
    };
    version("..v1", &node("w1"));
    std::os::unix::fs::symlink("..v1", at("..data")).unwrap();
    std::os::unix::fs::symlink("..data/a.yaml", at("a.yaml")).unwrap();
    let mut live = Live::start(place.directory.path());
    live.until_present(&["Node w1"]);
    version("..v2", &node("w2"));
    std::os::unix::fs::symlink("..v2", at("..data.new")).unwrap();
    fs::rename(at("..data.new"), at("..data")).unwrap();
    live.until_present(&["Node w2"]);
}
