//! `tidegate health` from outside: the real binary against a socket that speaks the contract, or does not.

#![allow(clippy::unwrap_used, reason = "a test whose stage cannot be set has failed")]

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tidegate_api::frame;
use tidegate_api::listen::Listener;
use tidegate_api::message::{CONTRACT_VERSION, Request, Response};
use tidegate_api::resource::{Kind, ResourceKey, Versions};
use tidegate_api::show::{Control, Readiness, Show, Shown, WorkerRow};

fn worker(number: u32, generation: u64) -> WorkerRow {
    WorkerRow {
        worker: number,
        core: None,
        clients: None,
        generation,
        turns: 9,
        idle_turns: 1,
        sleeps: 0,
        flows: 2,
        flows_max: 4,
        half_open: 0,
        half_open_max: 1,
        held: 0,
        ports: vec![format!("wan0/{number}")],
        counters: Default::default(),
        stages: vec![],
    }
}

/// A dataplane that holds an object of each of these kinds and gives this answer to the question about its workers; without
/// one it says nothing more. Of control it knows nothing, as one of an older version.
fn dataplane(kinds: &[Kind], answer: Option<Response>) -> TempDir {
    dataplane_that_knows(kinds, answer, unknown("control"), Vec::new())
}

fn unknown(question: &str) -> Response {
    Response::Error { message: format!("unknown variant `{question}`") }
}

/// The same, with what it says of control, and one answer after the other of whether it is ready.
fn dataplane_that_knows(
    kinds: &[Kind],
    answer: Option<Response>,
    of_control: Response,
    readiness: Vec<Readiness>,
) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let listener = Listener::bind(&directory.path().join("tidegate.sock"), 0o600).unwrap();
    let holds: Versions =
        kinds.iter().map(|kind| (ResourceKey { kind: *kind, name: "gw-1".into() }, "1".into())).collect();
    std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap();
        let _hello: Request = frame::read(&mut stream).unwrap();
        let welcome =
            Response::Welcome { contract: CONTRACT_VERSION, server: "t".into(), holds, reached: 7, prepares: false };
        frame::write(&mut stream, &welcome).unwrap();
        let question: Request = frame::read(&mut stream).unwrap();
        assert_eq!(question, Request::Show(Show::Workers));
        if let Some(answer) = answer {
            frame::write(&mut stream, &answer).unwrap();
            let mut readiness = readiness.into_iter();
            while let Ok(question) = frame::read::<Request>(&mut stream) {
                let answer = match question {
                    Request::Show(Show::Readiness) => readiness
                        .next()
                        .map_or(unknown("readiness"), |readiness| Response::Shown(Shown::Readiness(readiness))),
                    Request::Show(Show::Control) => of_control.clone(),
                    other => panic!("{other:?}"),
                };
                frame::write(&mut stream, &answer).unwrap();
            }
        }
        let _ = stream.read(&mut [0; 1]);
    });
    directory
}

fn workers(rows: Vec<WorkerRow>) -> Option<Response> {
    Some(Response::Shown(Shown::Workers(rows)))
}

/// Exit status, and what was printed on either output.
fn health(directory: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.arg("--socket").arg(directory.join("tidegate.sock")).arg("health").args(arguments);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn workers_that_answer_are_healthy_whatever_control_does() {
    let there = dataplane(&[], workers(vec![worker(0, 9), worker(1, 7)]));
    let expected = "healthy: 2 workers at generation 7, 0 objects\n";
    assert_eq!(health(there.path(), &[]), (Some(0), expected.into()));
}

#[test]
fn ready_is_who_knows_what_it_is_here_for() {
    let there = dataplane(&[Kind::Gateway, Kind::Peer], workers(vec![worker(0, 1)]));
    let expected = "healthy: 1 worker at generation 1, 2 objects\n";
    assert_eq!(health(there.path(), &["--ready"]), (Some(0), expected.into()));
    let there = dataplane(&[Kind::Peer], workers(vec![worker(0, 1)]));
    let (status, text) = health(there.path(), &["--ready"]);
    assert!(status == Some(1) && text.starts_with("tidegate: not ready") && text.contains("control"), "{text}");
}

#[test]
fn workers_links_and_rings_decide_whether_it_is_ready_and_a_moment_does_not() {
    let ill =
        || Readiness { generation: 9, behind: vec![(1, 8)], down: vec!["lan0".into()], starved: vec!["wan0/0".into()] };
    let there = |answers: Vec<Readiness>| {
        dataplane_that_knows(&[Kind::Gateway], workers(vec![worker(0, 9), worker(1, 8)]), unknown("control"), answers)
    };
    let moment = there(vec![ill(), ill(), Readiness::default()]);
    let (status, text) = health(moment.path(), &["--ready"]);
    assert_eq!((status, text.as_str()), (Some(0), "healthy: 2 workers at generation 8, 1 objects\n"));
    let (status, text) = health(there(vec![ill(); 9]).path(), &["--ready"]);
    assert_eq!(status, Some(1));
    let expected = "not ready: worker 1 is at generation 8, the newest is 9; lan0 is down, or without a carrier; the fill \
                    ring of wan0/0 is empty";
    assert!(text.contains(expected), "{text}");
    // Alive it is all the same: a restart would mend nothing of it.
    assert_eq!(health(there(vec![ill(); 9]).path(), &[]).0, Some(0));
}

#[test]
fn a_control_that_is_gone_or_hangs_is_told_and_the_gateway_stays_ready() {
    let client = || Some("tidegate-control 1".to_owned());
    let control = |client, has_spoken, silent_ms| Control { client, has_spoken, silent_ms };
    for (shown, expected, is_well) in [
        (control(client(), true, 9_000), "control: connected (tidegate-control 1), heard 9 s ago\n", true),
        (
            control(client(), true, 61_000),
            "control: connected (tidegate-control 1), but silent for 61 s: it hangs;",
            false,
        ),
        (control(None, true, 3_000), "control: not connected, heard last 3 s ago;", false),
        (
            control(None, false, 4_000),
            "control: not connected, and not heard since the dataplane started 4 s ago;",
            false,
        ),
    ] {
        let said = Response::Shown(Shown::Control(shown));
        let there = dataplane_that_knows(&[Kind::Gateway], workers(vec![worker(0, 1)]), said, Vec::new());
        let (status, text) = health(there.path(), &["--ready"]);
        assert_eq!(status, Some(0), "{text}");
        assert!(
            text.starts_with("healthy: 1 worker at generation 1, 1 objects\n") && text.contains(expected),
            "{text}"
        );
        assert_eq!(text.contains("`systemctl status tidegate-control`"), !is_well, "{text}");
    }
}

#[test]
fn what_is_not_healthy_says_why() {
    let stuck = "worker 1 has not answered in 1000 ms; is it stuck?";
    let idle = WorkerRow { ports: vec![], ..worker(3, 1) };
    for (answer, expected) in [
        (Some(Response::Error { message: stuck.into() }), stuck),
        (workers(vec![]), "no workers"),
        (workers(vec![worker(0, 1), idle]), "worker 3 serves no port"),
        (Some(Response::Shown(Shown::Ports(vec![]))), "unexpected answer"),
    ] {
        let there = dataplane(&[Kind::Gateway], answer);
        let (status, text) = health(there.path(), &[]);
        assert!(status == Some(1) && text.contains(expected), "{expected}: {text}");
    }
    let (status, text) = health(Path::new("/nowhere"), &[]);
    assert!(status == Some(1) && text.contains("no dataplane runs here"), "{text}");
}

#[test]
fn one_that_hangs_is_not_waited_for() {
    let there = dataplane(&[], None);
    let start = Instant::now();
    let (status, text) = health(there.path(), &["--timeout", "1"]);
    assert!(status == Some(1) && text.contains("does not answer in time"), "{text}");
    assert!(start.elapsed() < Duration::from_secs(30));
}
