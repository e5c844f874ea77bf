//! `tidegate import` from outside: rules in, manifests and complaints out.
//!
//! `TIDEGATE_WRITE_GOLDEN=1` writes the golden files anew. That `tidegate-control` takes the manifests as they are meant
//! is proved there.

#![allow(clippy::unwrap_used, reason = "a test whose stage cannot be set has failed")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde::Deserialize;
use serde_norway::Value;
use tidegate_cli::import::{Imported, convert};

fn golden_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/import").join(name)
}

fn golden(name: &str, printed: &str) {
    let path = golden_path(name);
    if std::env::var_os("TIDEGATE_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, printed).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert_eq!(printed, expected, "{} differs; TIDEGATE_WRITE_GOLDEN=1 writes it anew", path.display());
}

fn tidegate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(["import", "ipvs"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn piped(rules: &str) -> Output {
    let mut child = tidegate().stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// All objects in the manifests, read as any YAML reader does.
fn objects(imported: &Imported) -> Vec<Value> {
    let documents = serde_norway::Deserializer::from_str(&imported.text);
    let values = documents.map(|document| Value::deserialize(document).unwrap());
    values.filter(|value| !value.is_null()).collect()
}

fn services(imported: &Imported) -> Vec<Value> {
    objects(imported).into_iter().filter(|object| object["kind"] == "Service").collect()
}

fn annotation<'a>(service: &'a Value, name: &str) -> &'a Value {
    &service["metadata"]["annotations"][format!("tidegate.io/{name}")]
}

#[test]
fn what_ipvsadm_prints_becomes_manifests() {
    let output = tidegate().arg(golden_path("ipvsadm.rules")).args(["--namespace", "shop"]).output().unwrap();
    golden("ipvsadm.yaml", text(&output.stdout));
    golden("ipvsadm.complaints", text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "rules were left out, and a script must see that");
}

#[test]
fn standard_input_is_read_and_losing_a_trait_is_no_failure() {
    let fine = piped("-A -t 203.0.113.10:80 -s rr\n-a -t 203.0.113.10:80 -r 10.244.1.5:80 -m -w 1\n");
    assert_eq!((fine.status.code(), text(&fine.stderr)), (Some(0), ""));
    assert!(text(&fine.stdout).contains("namespace: default"));
    let direct = piped("-A -t 203.0.113.10:80 -s rr\n-a -t 203.0.113.10:80 -r 10.244.1.5:80 -g -w 1\n");
    assert_eq!(direct.status.code(), Some(0));
    assert!(text(&direct.stderr).contains("line 2: changed: gatewaying (-g) becomes fullnat"), "{direct:?}");
    assert!(text(&direct.stdout).contains("# line 2: changed: gatewaying (-g) becomes fullnat"), "{direct:?}");
    let nothing = piped("");
    assert_eq!((nothing.status.code(), text(&nothing.stdout)), (Some(0), "# Made by `tidegate import ipvs`.\n"));
    let missing = tidegate().arg("/nowhere/rules").output().unwrap();
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("/nowhere/rules"), "{missing:?}");
}

#[test]
fn every_form_that_ipvsadm_reads_means_the_same() {
    let short = "-A -t 203.0.113.10:80 -s wrr -p\n-a -t 203.0.113.10:80 -r 10.244.1.5 -m -w 2\n";
    let long = "# rules\n\nipvsadm --add-service --tcp-service=203.0.113.10:80 --scheduler wrr --persistent\r\n  \
                ipvsadm --add-server --tcp-service 203.0.113.10:80 --real-server=10.244.1.5:80 --masquerading --weight=2\n";
    let [short, long] = [short, long].map(|rules| {
        let imported = convert(rules, "default");
        assert!(imported.complaints.is_empty(), "{:?}", imported.complaints);
        objects(&imported)
    });
    assert_eq!(short, long);
    assert_eq!(short[0]["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 300);
    // The scheduler that ipvsadm takes when none is named.
    assert_eq!(annotation(&services(&convert("-A -u [2001:db8::1]:53", "default"))[0], "scheduler"), "wlc");
}

#[test]
fn every_scheduler_of_the_kernel_has_a_meaning() {
    // L-030 … L-042
    for name in ["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh"] {
        for address in ["203.0.113.10:80", "[2001:db8:f::10]:80"] {
            let imported = convert(&format!("-A -t {address} -s {name}"), "default");
            let service = &services(&imported)[0];
            assert_eq!(annotation(service, "scheduler"), name);
            // IPVS' Maglev looks at the client's address alone unless mh-port is set (L-040).
            let hash = if name == "mh" { Value::from("without-source-port") } else { Value::Null };
            assert_eq!(annotation(service, "hash"), &hash);
            let told = imported.complaints.iter().any(|complaint| complaint.message.contains("dh"));
            assert_eq!(told, name.starts_with("lblc"), "{:?}", imported.complaints);
            assert!(!imported.is_partial());
        }
    }
    let imported = convert("-A -t 203.0.113.10:80 -s mh -b mh-port,mh-fallback", "default");
    assert!(annotation(&services(&imported)[0], "hash").is_null() && imported.complaints.is_empty());
}

#[test]
fn what_cannot_be_said_is_refused_or_named() {
    let base = "-A -t 203.0.113.10:80 -s rr\n";
    let server = "-a -t 203.0.113.10:80 -r";
    for (rules, refused, word) in [
        ("-A -f 1 -s rr".into(), true, "firewall mark 1"),
        ("-A -f 1 -6 -s rr".into(), true, "firewall mark 1"),
        ("-A -t 203.0.113.10:80 -s foo".into(), true, "\"foo\" is not known"),
        ("-A -t 203.0.113.10:0 -s rr".into(), true, "persistent"),
        ("-A -t 203.0.113.10:http -s rr".into(), true, "ipvsadm -Sn"),
        ("-A -t 127.0.0.1:80 -s rr".into(), true, "127.0.0.1"),
        ("-A -t 203.0.113.10:80 -s".into(), true, "-s needs a value"),
        ("-A -t 203.0.113.10:80 -s rr -p ten".into(), true, "\"ten\""),
        ("-A -t 203.0.113.10:80 -s rr --colour blue".into(), true, "--colour"),
        ("-A -s rr".into(), true, "no virtual service"),
        ("-E -t 203.0.113.10:80 -s rr".into(), true, "\"-E\""),
        ("IP Virtual Server version 1.2.1 (size=4096)".into(), true, "\"IP\""),
        ("-t 203.0.113.10:80".into(), true, "-A or -a"),
        (format!("{base}{base}"), true, "line 1"),
        (format!("{server} 10.244.1.5:80 -m"), true, "no -A line"),
        (format!("{base}{server} 10.244.1.5:80 -m -w 65536"), true, "65536"),
        (format!("{base}{server} [fd00::5]:80 -m"), true, "family"),
        (format!("{base}{server} 127.0.0.1:80 -m"), true, "this machine's own"),
        (format!("{base}{server} 10.244.1.5:0 -m"), true, "port 0"),
        (format!("{base}-a -t 203.0.113.10:80 -m"), true, "no real server"),
        (format!("{base}{server} 10.244.1.5:80 -m\n{server} 10.244.1.5:80 -m"), true, "listed before"),
        (format!("{base}{server} 10.244.1.5:80"), false, "gatewaying"),
        (format!("{base}{server} 10.244.1.5:80 -i --tun-type gue --tun-port 5555"), false, "ipip"),
        (format!("{base}{server} 10.244.1.5:80 -m -x 100 -y 0"), false, "thresholds"),
        (format!("{base}{server} 10.244.1.5:80 -m -w 2\n{server} 10.244.1.5:81 -m"), false, "by address"),
        ("-A -t 203.0.113.10:80 -s rr -p 100000".into(), false, "86400"),
        ("-A -t 203.0.113.10:80 -s rr -p 60 -M 255.255.0.0".into(), false, "netmask"),
        ("-A -t [2001:db8::1]:80 -s rr -p 60 -M 64".into(), false, "netmask 64"),
        ("-A -t 203.0.113.10:80 -s rr -p 60 --pe sip".into(), false, "engine sip"),
        ("-A -t 203.0.113.10:80 -s sh -b sh-port,sh-fallback".into(), false, "sh-port"),
        ("-A -t 203.0.113.10:80 -s rr -b flag-1".into(), false, "flag-1"),
        ("-A -u 203.0.113.10:53 -s rr -o".into(), false, "one-packet"),
        ("-A -t 203.0.113.10:53 -s rr -o".into(), false, "for UDP"),
        ("-A --sctp-service 203.0.113.10:9 -s rr -o".into(), false, "for UDP"),
    ] {
        let imported = convert(&rules, "default");
        assert_eq!(imported.complaints.len(), 1, "{rules}: {:?}", imported.complaints);
        let complaint = &imported.complaints[0];
        assert!(complaint.message.contains(word), "{rules}: {complaint}");
        assert_eq!(complaint.refused, refused, "{rules}: {complaint}");
        assert_eq!(complaint.line, rules.lines().count(), "{rules}: the last line is the bad one");
        assert!(imported.text.contains(&format!("# {complaint}\n")), "{rules}: told where it would stand");
        objects(&imported);
    }
    // Masks that mean one client are no loss.
    for mask in ["203.0.113.10:80 -s rr -p 60 -M 255.255.255.255", "[2001:db8::1]:80 -s rr -p 60 -M 128"] {
        assert!(convert(&format!("-A -t {mask}"), "default").complaints.is_empty());
    }
}

#[test]
fn a_comment_cannot_be_left_by_what_stands_in_the_rules() {
    let imported =
        convert("-A -t 203.0.113.10:80\u{85}kind:\u{2028}x -s rr\n-A -t 203.0.113.11:80 -s rr\u{7}", "default");
    assert!(imported.is_partial());
    assert!(objects(&imported).is_empty(), "{}", imported.text);
}

#[test]
fn a_thousand_servers_fill_a_slice() {
    let mut rules = String::from("-A -t [2001:db8:f::10]:80 -s rr\n");
    for n in 0..1001 {
        rules += &format!("-a -t [2001:db8:f::10]:80 -r [fd00::{n:x}:1]:80 -m -w 1\n");
    }
    let imported = convert(&rules, "default");
    let slices: Vec<Value> =
        objects(&imported).into_iter().filter(|object| object["kind"] == "EndpointSlice").collect();
    let sizes: Vec<usize> = slices.iter().map(|slice| slice["endpoints"].as_sequence().unwrap().len()).collect();
    assert_eq!(sizes, [1000, 1]);
    assert_ne!(slices[0]["metadata"]["name"], slices[1]["metadata"]["name"]);
}

#[test]
fn the_longest_name_is_one_that_kubernetes_takes() {
    let imported = convert("-A --sctp-service [2001:db8:1111:2222:3333:4444:5555:6666]:65535 -s rr", "default");
    let services = services(&imported);
    let name = services[0]["metadata"]["name"].as_str().unwrap();
    assert!(
        name.len() <= 63 && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
        "{name}"
    );
}
