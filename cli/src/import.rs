//! `tidegate import`: another balancer's configuration → manifests.
//!
//! Owns the reading of the input and what is told beside the manifests. What cannot be said in manifests is never left
//! out silently: a rule that would mean something else is refused, one that loses a trait is converted and the trait
//! named, both on standard error and as a comment at the place where it would stand.

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

use anyhow::Context;

use crate::args::{ImportArguments, ImportFrom};

/// The kernel's IPVS, as `ipvsadm -S` prints it.
pub mod ipvs;
/// Services and EndpointSlices as text.
mod manifest;

/// What an import came to.
#[derive(Debug)]
pub struct Imported {
    /// Manifests, with comments where something was lost.
    pub text: String,
    /// What people must know, in order of lines.
    pub complaints: Vec<Complaint>,
}

/// Something that could not be taken over as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// Line of the input, from 1.
    pub line: usize,
    /// True: the rule was left out. False: it was taken over without a trait.
    pub refused: bool,
    /// What and why.
    pub message: String,
}

/// Reads the input and converts it.
///
/// # Errors
/// When the input cannot be read. What is wrong in it is told in [`Imported::complaints`].
pub fn run(arguments: &ImportArguments) -> anyhow::Result<Imported> {
    let ImportFrom::Ipvs { file, namespace } = &arguments.from;
    let text = if file == Path::new("-") {
        let mut text = String::new();
        io::stdin().lock().read_to_string(&mut text).context("reading standard input")?;
        text
    } else {
        fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?
    };
    Ok(convert(&text, namespace))
}

/// Converts the text that `ipvsadm -S` printed into manifests of `namespace`.
pub fn convert(text: &str, namespace: &str) -> Imported {
    let rules = ipvs::read(text);
    let text = manifest::write(&rules, namespace);
    let mut complaints = rules.refused;
    complaints.extend(rules.services.into_iter().flat_map(|service| service.changed));
    complaints.sort_by_key(|complaint| complaint.line);
    Imported { text, complaints }
}

impl Imported {
    /// Whether anything was left out.
    pub fn is_partial(&self) -> bool {
        self.complaints.iter().any(|complaint| complaint.refused)
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.refused { "left out" } else { "changed" };
        write!(f, "line {}: {what}: {}", self.line, self.message)
    }
}
