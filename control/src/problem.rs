//! A problem: something people should know, with the place to look.
//!
//! Owns the form of an error text in this process: file, document and line, object, field, message. Everything that is
//! wrong *now* is a value of this type; the log gets a line when one appears or goes, `problems.json` lists them all.

use std::fmt;

use serde::Serialize;

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Something asked for is not done.
    Error,
    /// Something is done differently from what was asked.
    Warning,
    /// Nothing is wrong; a reader may wonder all the same.
    Notice,
}

impl Severity {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Notice => "notice",
        }
    }
}

/// Where in a file an object stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Place {
    /// File name, without the directory.
    pub file: String,
    /// Number of the document in the file, from 1.
    pub document: usize,
    /// First line of the document, from 1; for syntax errors the line of the error.
    pub line: usize,
}

/// One thing that is wrong now.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// Stable word for programs, in CamelCase.
    pub reason: &'static str,
    /// Where to look, when it came from a file.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// Kind and name of the object, when it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// Field of the object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What is wrong and what is done about it.
    pub message: String,
}

impl Problem {
    /// A problem without place, object and field.
    pub fn new(severity: Severity, reason: &'static str, message: impl Into<String>) -> Self {
        Problem { severity, reason, place: None, object: None, field: None, message: message.into() }
    }

    /// The same problem at a place.
    #[must_use]
    pub fn at(mut self, place: &Place) -> Self {
        self.place = Some(place.clone());
        self
    }

    /// The same problem about an object.
    #[must_use]
    pub fn about(mut self, object: impl fmt::Display) -> Self {
        self.object = Some(object.to_string());
        self
    }

    /// The same problem in a field.
    #[must_use]
    pub fn in_field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} document {} (line {})", self.file, self.document, self.line)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.message)
    }
}
