//! `tidegate man` and `tidegate completion`: manual pages and shells' completion, made of the arguments themselves.
//!
//! One truth: what `--help` prints, what a shell completes and what `man tidegate-show-drops` says cannot differ.

use std::fs;
use std::path::Path;

use anyhow::{Context, anyhow};
use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::args::Arguments;

/// What makes `shell` complete our commands.
///
/// # Errors
/// Never in practice: the text is UTF-8.
pub fn completion(shell: clap_complete::Shell) -> anyhow::Result<String> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "tidegate", &mut text);
    String::from_utf8(text).context("the completion")
}

/// Writes the page of every command to `directory`; without one returns the first page.
///
/// # Errors
/// When a file cannot be written.
pub fn write(directory: Option<&Path>) -> anyhow::Result<String> {
    let pages = pages()?;
    let Some(directory) = directory else {
        return pages.into_iter().next().map(|(_, page)| page).ok_or_else(|| anyhow!("there is no page"));
    };
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    for (name, page) in &pages {
        let file = directory.join(name);
        fs::write(&file, page).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(format!("{} pages in {}\n", pages.len(), directory.display()))
}

/// File names and pages: that of `tidegate` first, then those of its commands and their commands.
///
/// # Errors
/// When a page is not UTF-8.
pub fn pages() -> anyhow::Result<Vec<(String, String)>> {
    let mut root = Arguments::command().disable_help_subcommand(true);
    root.build();
    let mut pages = Vec::new();
    add(&root, "tidegate", &mut pages)?;
    Ok(pages)
}

fn add(command: &Command, name: &str, pages: &mut Vec<(String, String)>) -> anyhow::Result<()> {
    let mut page = Vec::new();
    // Pages are found by one word, `tidegate-show-drops`, and tell of `tidegate show drops`.
    let titled = command.clone().name(leaked(name)).display_name(leaked(name));
    Man::new(titled).title(name.to_uppercase()).section("1").render(&mut page).context("rendering a page")?;
    pages.push((format!("{name}.1"), String::from_utf8(page).context("a page")?));
    for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
        add(inner, &format!("{name}-{}", inner.get_name()), pages)?;
    }
    Ok(())
}

/// Names of commands live as long as the program: there are some dozens.
fn leaked(name: &str) -> &'static str {
    Box::leak(name.to_owned().into_boxed_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(command: &Command, name: &str, all: &mut Vec<String>) {
        all.push(name.to_owned());
        for inner in command.get_subcommands() {
            names(inner, &format!("{name}-{}", inner.get_name()), all);
        }
    }

    #[test]
    fn every_command_has_a_page_that_names_it() {
        let pages = pages().unwrap();
        let mut all = Vec::new();
        names(&Arguments::command(), "tidegate", &mut all);
        assert_eq!(
            pages.iter().map(|(file, _)| file.clone()).collect::<Vec<_>>(),
            all.iter().map(|name| format!("{name}.1")).collect::<Vec<_>>()
        );
        for (name, (_, page)) in all.iter().zip(&pages) {
            let escaped = name.replace('-', "\\-");
            assert!(page.contains(&escaped) || page.contains(name), "{name}:\n{page}");
            assert!(page.contains(".SH SYNOPSIS"), "{name}");
        }
        assert!(all.iter().any(|name| name == "tidegate-show-drops") && all.len() > 20, "{all:?}");
    }

    #[test]
    fn shells_complete_every_command() {
        use clap_complete::Shell;
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let text = completion(shell).unwrap();
            for command in Arguments::command().get_subcommands() {
                assert!(text.contains(command.get_name()), "{shell}: {}", command.get_name());
            }
            assert!(text.contains("announcements") && text.contains("snaplen"), "{shell}");
        }
    }

    #[test]
    fn pages_are_written_where_they_are_wanted() {
        let directory = tempfile::tempdir().unwrap();
        let into = directory.path().join("man1");
        let told = write(Some(&into)).unwrap();
        assert!(told.contains("pages in"), "{told}");
        assert!(fs::read_to_string(into.join("tidegate-capture.1")).unwrap().contains("FILTER"));
        assert!(write(None).unwrap().contains("tidegate"));
    }
}
