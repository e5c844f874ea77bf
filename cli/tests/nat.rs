//! `tidegate nat` from outside: the real binary over ledgers that the real writer wrote.

#![allow(clippy::unwrap_used, reason = "a test whose stage cannot be set has failed")]

use std::path::Path;
use std::process::Command;

use jiff::{SignedDuration, Timestamp};
use tidegate_ledger::{Gap, Holding, Limits, Protocol, Record, Writer};

fn now() -> Timestamp {
    Timestamp::now()
}

fn ago(minutes: i64) -> Timestamp {
    now().checked_sub(SignedDuration::from_mins(minutes)).unwrap()
}

/// Exit status, and what was printed on either output.
fn nat(ledger: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(["nat", "who"]).args(arguments).arg("--ledger").arg(ledger);
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn holding(external: &str, internal: &str, remote: Option<&str>, pod: &str) -> Holding {
    Holding {
        external: external.parse().unwrap(),
        ports: if remote.is_some() { (40_001, 40_001) } else { (40_000, 40_063) },
        protocol: if remote.is_some() { Protocol::Tcp } else { Protocol::Udp },
        remote: remote.map(|remote| remote.parse().unwrap()),
        internal: internal.parse().unwrap(),
        internal_port: remote.is_some().then_some(51_000),
        pod: pod.into(),
        node: "w1".into(),
        policy: "shop".into(),
    }
}

/// N-044: both families; blocks and shared ports; now and then; for people and for programs.
#[test]
fn it_names_who_had_a_port() {
    for (external, asked, internal, remotes) in [
        ("192.0.2.10", "192.0.2.10:40001", "10.244.1.7", ["198.51.100.7:443", "198.51.100.8:443"]),
        ("2001:db8::10", "[2001:db8::10]:40001", "fd00:1::7", ["[2001:db8:9::7]:443", "[2001:db8:9::8]:443"]),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(directory.path(), Limits::default(), ago(60)).unwrap();
        let block = holding(external, internal, None, "shop/block");
        writer.append(&Record::Begin { at: ago(50), holding: block.clone() }).unwrap();
        for (remote, pod) in remotes.iter().zip(["shop/a", "shop/b"]) {
            writer
                .append(&Record::Begin { at: ago(40), holding: holding(external, internal, Some(remote), pod) })
                .unwrap();
        }
        writer.append(&Record::End { at: ago(30), holding: block }).unwrap();
        writer.flush().unwrap();

        let (code, out, error) = nat(directory.path(), &[asked]);
        assert_eq!((code, error.as_str()), (0, ""));
        assert!(out.starts_with("POD"), "{out}");
        assert!(out.contains("shop/a") && out.contains("shop/b") && !out.contains("shop/block"), "{out}");
        assert!(out.contains(remotes[0]) && out.contains("now"), "{out}");

        let (_, out, _) = nat(directory.path(), &[asked, "--to", remotes[1]]);
        assert!(!out.contains("shop/a") && out.contains("shop/b"), "{out}");

        let (_, out, _) = nat(directory.path(), &[asked, "--at", "45m", "--json"]);
        let line: serde_json::Value = serde_json::from_str(out.trim_end()).unwrap();
        assert_eq!(
            (&line["pod"], &line["node"], &line["policy"]),
            (&"shop/block".into(), &"w1".into(), &"shop".into())
        );
        assert_eq!(line["external"], external);
        assert!(line["until"].is_string(), "{line}");

        let (code, out, error) = nat(directory.path(), &[asked, "--at", "55m"]);
        assert_eq!((code, out.as_str()), (1, ""));
        assert!(error.contains("nobody is recorded"), "{error}");
        let (code, _, error) = nat(directory.path(), &[asked, "--at", "2020-01-01T00:00:00Z"]);
        assert_eq!(code, 1);
        assert!(error.contains("reaches back to"), "{error}");
        let (_, _, error) = nat(directory.path(), &[asked, "--protocol", "udp"]);
        assert!(error.contains("nobody") && !error.contains("missing"), "{error}");

        // What is missing is told with every answer that it bears on.
        writer.miss(Gap { from: ago(20), until: ago(19), count: 12 });
        writer.recover(now()).unwrap();
        writer.flush().unwrap();
        let gap = "12 records are missing from 20";
        assert!(nat(directory.path(), &[asked]).1.contains(gap));
        assert!(nat(directory.path(), &[asked, "--protocol", "udp"]).2.contains(gap));
        let (_, out, error) = nat(directory.path(), &[asked, "--json"]);
        assert!(error.contains(gap) && !out.contains("missing"), "{out}{error}");
        assert!(!nat(directory.path(), &[asked, "--at", "45m"]).1.contains("missing"));
    }
}

#[test]
fn questions_that_make_no_sense_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    for (arguments, expected) in [
        (&["192.0.2.10"][..], "ADDRESS:PORT"),
        (&["192.0.2.10:70000"], "ADDRESS:PORT"),
        (&["2001:db8::10:40001"], "ADDRESS:PORT"),
        (&["192.0.2.10:1", "--at", "yesterday"], "RFC 3339"),
        (&["192.0.2.10:1", "--at=-5m"], "lies ahead"),
        (&["192.0.2.10:1", "--to", "[2001:db8::1]:1"], "not of the family"),
        (&["192.0.2.10:1"], "the ledger is empty"),
    ] {
        let (code, out, error) = nat(directory.path(), arguments);
        assert_ne!(code, 0, "{arguments:?}");
        assert_eq!(out, "");
        assert!(error.contains(expected), "{arguments:?}: {error}");
    }
    let (code, _, error) = nat(&directory.path().join("absent"), &["192.0.2.10:1"]);
    assert_eq!(code, 1);
    assert!(error.contains("reading the ledger") && error.contains("absent"), "{error}");
    assert_eq!(error.matches("No such file").count(), 1, "{error}");
}
