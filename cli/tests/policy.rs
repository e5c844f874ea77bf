//! `tidegate policy` as a program: lines in, lines out, an exit status.

#![allow(clippy::unwrap_used, reason = "a test whose stage cannot be set has failed")]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const MANIFESTS: &str = "\
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: web}, spec: {containers: []}, status: {podIPs: [{ip: 10.0.1.1}, {ip: 'fd00::1'}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: clients}, spec: {podSelector: {}, \
policyTypes: [Ingress, Egress], ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}, {ipBlock: {cidr: '2001:db8::/32'}}], ports: [{port: 8080}]}]}}
";

fn tidegate(folder: &Path, arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.arg("policy").args(arguments).arg("--manifests").arg(folder);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn lines(output: &Output) -> Vec<serde_json::Value> {
    String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_question_has_its_line_in_order() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("all.yaml"), MANIFESTS).unwrap();
    let questions = r#"{"from":"192.0.2.7","to":"shop/web","protocol":"TCP","port":8080}
{"from":"2001:db8::7","to":"shop/web","protocol":"TCP","port":8081}

{"from":"shop/web","to":"192.0.2.7","protocol":"ICMP"}
"#;
    let fine = tidegate(folder.path(), &["eval", "--queries", "-"], questions);
    assert!(fine.status.success() && fine.stderr.is_empty(), "{fine:?}");
    let first = String::from_utf8_lossy(&fine.stdout).lines().next().unwrap().to_owned();
    assert_eq!(
        first,
        r#"{"from":"192.0.2.7","to":"shop/web","protocol":"TCP","port":8080,"ingress":"allow","egress":"allow","combined":"allow","ingress_by":{"kind":"NetworkPolicy","name":"clients","namespace":"shop","rule":0},"egress_by":"default"}"#
    );
    let answers = lines(&fine);
    assert_eq!(
        answers.iter().map(|it| it["combined"].as_str().unwrap()).collect::<Vec<_>>(),
        ["allow", "deny", "deny"]
    );
    assert_eq!((&answers[1]["ingress_by"]["rule"], answers[2].get("port")), (&serde_json::Value::Null, None));
    assert_eq!(answers[2]["egress_by"]["name"], "clients");

    let file = folder.path().join("questions.jsonl");
    fs::write(&file, format!("[]\n[\"192.0.2.7\",\"shop/web\",\"TCP\",8080]\nnonsense\n{{\"from\":\"shop/nobody\",\"to\":\"shop/web\",\"port\":1}}\n{questions}"))
        .unwrap();
    let partly = tidegate(folder.path(), &["eval", "--queries", file.to_str().unwrap()], "");
    assert_eq!(partly.status.code(), Some(1));
    let answers = lines(&partly);
    assert_eq!(answers.len(), 7, "the rest is answered");
    for (number, answer) in (1..).zip(&answers[..3]) {
        assert_eq!(answer["line"], number);
        assert_eq!(answer["error"], "not a question: a JSON object with from, to, protocol and port is one");
    }
    let answers = &answers[2..];
    assert_eq!((&answers[0]["line"], &answers[1]["from"]), (&3.into(), &"shop/nobody".into()));
    assert!(answers[1]["error"].as_str().unwrap().contains("there is no pod shop/nobody"));
    assert_eq!(answers[2]["combined"], "allow");
}

/// A question that cannot be answered has a line of its own, with its number and why; the others are answered, and the
/// exit status tells.
#[test]
fn each_question_that_cannot_be_answered_says_why() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("all.yaml"), MANIFESTS).unwrap();
    let long = format!(r#"{{"from":"192.0.2.7","to":"shop/{}","port":8080}}"#, "w".repeat(1 << 20));
    for (client, good) in [("192.0.2.7", "allow"), ("2001:db8::7", "allow"), ("198.51.100.7", "deny")] {
        let wrong: [(&str, &[&str]); 14] = [
            (r#""to":"shop/web","protocol":"IPX","port":8080"#, &["\"IPX\" is no protocol"]),
            (r#""to":"shop/web","protocol":256,"port":8080"#, &["\"256\" is no protocol"]),
            (r#""to":"shop/web","protocol":-6,"port":8080"#, &["\"-6\" is no protocol"]),
            (r#""to":"shop/web","protocol":6.5,"port":8080"#, &["\"6.5\" is no protocol"]),
            (r#""to":"shop/web","protocol":["TCP"],"port":8080"#, &["not a question", "a name or a number"]),
            (r#""to":"shop/web","protocol":null,"port":8080"#, &["not a question", "protocol is null"]),
            (r#""to":"shop/web","port":8080,"prot":"UDP""#, &["not a question", "unknown field `prot`"]),
            (r#""to":"shop/web","port":8080,"to":"shop/web""#, &["not a question", "duplicate field `to`"]),
            (r#""port":8080"#, &["not a question", "missing field `to`"]),
            (r#""to":"shop/web""#, &["port is missing"]),
            (r#""to":"shop/web","port":"8080""#, &["not a question", "invalid type"]),
            (r#""to":"shop/web","port":65536"#, &["65536 is not a port"]),
            (r#""to":"shop/web","port":8080}, {"#, &["not a question", "trailing characters"]),
            ("", &["longer than 65536 bytes"]),
        ];
        let fine = format!(r#"{{"from":"{client}","to":"shop/web","protocol":6,"port":8080}}"#);
        let mut text = String::new();
        for (rest, _) in &wrong {
            let line = if rest.is_empty() { long.clone() } else { format!(r#"{{"from":"{client}",{rest}}}"#) };
            text += &format!("{line}\n{fine}\n");
        }
        let told = tidegate(folder.path(), &["eval", "--queries", "-"], &text);
        assert_eq!(told.status.code(), Some(1), "{told:?}");
        let answers = lines(&told);
        assert_eq!(answers.len(), 2 * wrong.len());
        for (at, (rest, words)) in wrong.iter().enumerate() {
            let (error, answer) = (&answers[2 * at], &answers[2 * at + 1]);
            assert_eq!(error["line"], 2 * at + 1, "{rest}");
            let why = error["error"].as_str().unwrap();
            assert!(words.iter().all(|word| why.contains(word)), "{rest}: {why}");
            assert!(!why.contains(" at line "), "the number of the line is told beside it: {why}");
            assert_eq!((&answer["combined"], &answer["protocol"]), (&good.into(), &"6".into()), "after {rest}");
        }
        let all = tidegate(folder.path(), &["eval", "--queries", "-"], &fine);
        assert!(all.status.success(), "{all:?}");
    }
}

#[test]
fn bad_objects_are_told_and_strict_makes_them_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("all.yaml"), MANIFESTS.replace("port: 8080", "port: 808080")).unwrap();
    let question = r#"{"from":"192.0.2.7","to":"shop/web","protocol":"TCP","port":8080}"#;
    let lenient = tidegate(folder.path(), &["eval"], question);
    let told = String::from_utf8_lossy(&lenient.stderr).into_owned();
    assert!(
        lenient.status.success() && told.contains("all.yaml") && told.contains("spec.ingress[0].ports[0].port"),
        "{told}"
    );
    assert_eq!(lines(&lenient)[0]["combined"], "deny", "what cannot be read opens nothing");
    let strict = tidegate(folder.path(), &["eval", "--strict"], question);
    assert!(!strict.status.success() && strict.stdout.is_empty());
    assert!(!tidegate(&folder.path().join("nowhere"), &["report"], "").status.success());
}

#[test]
fn words_and_reports_go_to_standard_output() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("all.yaml"), MANIFESTS).unwrap();
    let told = tidegate(folder.path(), &["explain", "--from", "192.0.2.7", "--to", "shop/web", "--port", "8080"], "");
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.status.success() && text.contains("ALLOWED") && text.contains("rule 0 matches and accepts"), "{text}");
    let report = tidegate(folder.path(), &["report"], "");
    let report = String::from_utf8_lossy(&report.stdout).into_owned();
    assert!(report.contains("NetworkPolicy shop/clients: in part: isolation for ingress, isolation for egress also"));
    assert!(report.ends_with("policies: 1 (0 whole, 1 in part, 0 inside the cluster alone)\n"), "{report}");
}
