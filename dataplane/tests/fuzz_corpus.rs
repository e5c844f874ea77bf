//! The fuzz targets' bodies over their committed corpus, and over random changes of it, as ordinary tests.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::Path;

use tidegate_dataplane::fuzzing::{self, Scene};
use tidegate_dataplane::gateways::key::{Keys, TAG_BYTES};
use tidegate_dataplane::gateways::message::{Echo, Message, Part, Seat};

/// SplitMix64: changes are the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// Some bytes changed, put in, taken out, or the end cut off.
    fn change(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(6) {
            let at = self.below(bytes.len());
            match self.below(6) {
                0 if !bytes.is_empty() => bytes.truncate(at),
                1 => bytes.insert(at.min(bytes.len()), self.next() as u8),
                2 if !bytes.is_empty() => drop(bytes.remove(at)),
                _ if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                _ => bytes.push(self.next() as u8),
            }
        }
        bytes
    }
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{folder:?} is empty");
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

fn run(target: &str, changes: usize, body: impl Fn(&[u8])) {
    let corpus = corpus(target);
    corpus.iter().for_each(|bytes| body(bytes));
    let mut random = Random(7);
    for _ in 0..changes {
        let seed = random.below(corpus.len());
        let bytes = random.change(&corpus[seed]);
        body(&bytes);
    }
}

#[test]
fn parse() {
    run("parse", 20_000, fuzzing::parse);
}

#[test]
fn quote() {
    run("quote", 20_000, fuzzing::quoted);
}

#[test]
fn contract() {
    run("contract", 5_000, fuzzing::contract);
}

#[test]
fn heartbeat() {
    run("heartbeat", 20_000, fuzzing::heartbeat);
}

#[test]
fn decide() {
    run("decide", 1_000, fuzzing::decide);
}

#[test]
fn decide_in_one_scene_that_grows_old() {
    let corpus = corpus("decide");
    let mut random = Random(11);
    let mut scene = Scene::new(fuzzing::tables(), 64);
    for _ in 0..3_000 {
        let seed = random.below(corpus.len());
        let bytes = random.change(&corpus[seed]);
        let specimens = scene.specimens();
        fuzzing::decide_in(&mut scene, &specimens, &bytes);
    }
    scene.rig.expect_all_frames_home();
}

/// What gateways say to each other, without the tag.
fn heartbeats() -> [(&'static str, Message); 3] {
    let short = Message { node: "gw-1".into(), epoch: 1, sequence: 1, ready: true, ..Message::default() };
    let prefixes = vec!["192.0.2.0/24".parse().unwrap(), "2001:db8:1::/64".parse().unwrap()];
    let seat = |id, draining| Seat { id, draining };
    let set = Message {
        macs: vec![[2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 2, 1]],
        prefixes,
        view: vec![seat(7, false), seat(9, true)],
        echoes: vec![Echo { id: 9, epoch: 5, sequence: 77 }],
        view_age_ms: 300,
        announced: 2,
        ..short.clone()
    };
    let part = Some(Part { first: 0, last: u32::MAX, hashes: vec![1, 0x8000_0000] });
    let holding = Message { draining: true, part, ..set.clone() };
    [("short", short), ("set", set), ("holding", holding)]
}

/// `TIDEGATE_REGENERATE=1 cargo test -p tidegate-dataplane --test fuzz_corpus seeds` writes a seed per kind of frame.
#[test]
fn the_seeds_cover_every_kind_of_frame() {
    let scene = Scene::new(fuzzing::tables(), 64);
    let specimens = scene.specimens();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    if std::env::var_os("TIDEGATE_REGENERATE").is_some() {
        let write = |target: &str, name: &str, bytes: &[u8]| {
            fs::create_dir_all(root.join(target)).unwrap();
            fs::write(root.join(target).join(name.replace(' ', "-")), bytes).unwrap();
        };
        for (n, (name, _, frame)) in specimens.iter().enumerate() {
            write("parse", name, &frame[14.min(frame.len())..]);
            write("decide", name, &[u8::try_from(n).unwrap(), 0x81, 22, 1, 0, 0]);
            if name.starts_with("error") {
                let family = u8::from(name.contains("v6"));
                let at = 14 + if family == 0 { 20 } else { 40 };
                write("quote", name, &[&[family], &frame[at..]].concat());
            }
        }
        use tidegate_api::message::{CONTRACT_VERSION, Request, Response, Update};
        let said = |message: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = Vec::new();
            message(&mut bytes);
            bytes
        };
        let hello = Request::Hello { contract: CONTRACT_VERSION, client: "fuzz".into() };
        write("contract", "hello", &said(&|out| tidegate_api::frame::write(out, &hello).unwrap()));
        let update = Request::Update(Update { nonce: 7, full: true, ..Update::default() });
        write("contract", "update", &said(&|out| tidegate_api::frame::write(out, &update).unwrap()));
        let reached = Response::Reached { generation: 5 };
        write("contract", "reached", &said(&|out| tidegate_api::frame::write(out, &reached).unwrap()));
        for (name, message) in heartbeats() {
            let keys = Keys::parse(fuzzing::HEARTBEAT_KEY).unwrap();
            let mut bytes = message.encode(&keys);
            bytes.truncate(bytes.len() - TAG_BYTES);
            write("heartbeat", name, &bytes);
        }
        let everything: Vec<u8> = (0..specimens.len()).flat_map(|n| [u8::try_from(n).unwrap(), 0]).collect();
        write("decide", "everything", &everything);
        let changes: Vec<u8> =
            (240..=247).flat_map(|kind| (0..4).flat_map(move |how| [kind, how, 1, 0, 22, 0, 26, 0, 50, 0])).collect();
        write("decide", "changes", &changes);
        write("decide", "raw", &[255, 4, 1, 2, 3, 4, 255, 0]);
    }
    assert!(corpus("decide").len() > specimens.len());
    assert!(specimens.len() < 240, "kinds from 240 on mean something else");
}
