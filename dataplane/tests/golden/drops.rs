//! Facts about drop reasons: cards name what their files use, every reason is used, the document is fresh.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use tidegate_dataplane::drops::{self, DropReason};

fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = vec![];
    for folder in ["", "stage"] {
        for entry in fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.file_stem().unwrap().to_string_lossy().into_owned();
                found.push((format!("{folder}/{name}"), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found
}

/// Names after `DropReason::` in code, comments left out.
fn used(text: &str) -> BTreeSet<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let names = code.split("DropReason::").skip(1);
    let names = names.map(|rest| rest.chars().take_while(|c| c.is_ascii_alphanumeric()).collect::<String>());
    names.filter(|name| DropReason::ALL.iter().any(|reason| reason.name() == name)).collect()
}

/// Names in backquotes on the `drops` lines of a card, and whether it says that it passes on what the wire says.
fn promised(text: &str) -> (BTreeSet<String>, bool) {
    let card: Vec<&str> = text.lines().take_while(|line| line.starts_with("//!")).collect();
    let Some(start) = card.iter().position(|line| line.starts_with("//! drops ")) else { return Default::default() };
    let more = card.iter().skip(start + 1).take_while(|line| line.starts_with("//!         "));
    let lines: Vec<&str> = card[start..=start].iter().chain(more).copied().collect();
    let lines = lines.join(" ");
    let wire = lines.contains("every reason of `wire::Malformed`");
    let names = lines.split('`').skip(1).step_by(2).filter(|name| *name != "wire::Malformed");
    (names.map(str::to_owned).collect(), wire)
}

#[test]
fn the_card_of_a_stage_names_exactly_the_drops_its_file_uses() {
    // style.md: "a test compares `drops` with the variants the file actually uses"
    let all = sources();
    let malformed =
        all.iter().find(|(name, _)| name == "/drops").map(|(_, text)| self::used(from_malformed(text))).unwrap();
    for (name, text) in all.iter().filter(|(name, _)| name.starts_with("stage/") && name != "stage/mod") {
        let (promised, wire) = promised(text);
        let mut used = self::used(text);
        if wire {
            // These say that a slice was not there, which the wire's reasons cover.
            used.retain(|name| !malformed.contains(name));
        }
        assert_eq!(promised, used, "{name}: left is the card, right is the code");
    }
}

#[test]
fn every_reason_is_given_somewhere() {
    let used: BTreeSet<String> = sources()
        .iter()
        .flat_map(|(name, text)| if name == "/drops" { used(from_malformed(text)) } else { used(text) })
        .collect();
    let all: BTreeSet<String> = DropReason::ALL.iter().map(|reason| reason.name().to_owned()).collect();
    assert_eq!(all.difference(&used).collect::<Vec<_>>(), Vec::<&String>::new());
}

fn from_malformed(text: &str) -> &str {
    text.split_once("impl From<Malformed> for DropReason").map_or("", |(_, rest)| rest)
}

#[test]
fn every_reason_names_a_stage_that_exists_and_names_are_unique() {
    let names: BTreeSet<&str> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(names.len(), DropReason::COUNT);
    let stages: BTreeSet<String> =
        sources().into_iter().filter_map(|(name, _)| Some(name.strip_prefix("stage/")?.into())).collect();
    for reason in DropReason::ALL {
        assert!(stages.contains(reason.stage()), "{reason:?} says {}", reason.stage());
        assert!(reason.help().ends_with('.') && reason.help().len() > 10, "{reason:?}");
    }
}

/// `TIDEGATE_REGENERATE=1 cargo test -p tidegate-dataplane --test golden document` writes it.
#[test]
fn the_document_is_fresh() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/drops.md");
    if std::env::var_os("TIDEGATE_REGENERATE").is_some() {
        fs::write(&path, drops::document()).unwrap();
    }
    let text = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, drops::document(), "regenerate docs/drops.md");
}
