//! A problem: something people should know, with the place to look.
//!
//! Owns the form of an error text in this process: file, document and line, object, field, message. Everything that is
//! wrong *now* is a value of this type; the log gets a line when one appears or goes, `problems.json` lists them all.

use std::fmt;

use serde::Serialize;

/// Longest text that is told, characters.
const TEXT_MAX: usize = 1000;

/// A text of somebody else's as one line of bounded length: control characters become spaces, since a log's reader takes a
/// new line for a new event.
pub(crate) fn one_line(text: String) -> String {
    let is_long = text.len() > TEXT_MAX && text.chars().nth(TEXT_MAX).is_some();
    if !is_long && !text.contains(char::is_control) {
        return text;
    }
    let told = text.chars().take(TEXT_MAX).map(|character| if character.is_control() { ' ' } else { character });
    told.chain(is_long.then_some('…')).collect()
}

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
    /// What it is about, whatever words it is told in.
    pub fn matter(&self) -> (&'static str, Option<&Place>, Option<&str>, Option<&str>) {
        (self.reason, self.place.as_ref(), self.object.as_deref(), self.field.as_deref())
    }

    /// A problem without place, object and field.
    pub fn new(severity: Severity, reason: &'static str, message: impl Into<String>) -> Self {
        let message = one_line(message.into());
        Problem { severity, reason, place: None, object: None, field: None, message }
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
        self.object = Some(one_line(object.to_string()));
        self
    }

    /// The same problem in a field.
    #[must_use]
    pub fn in_field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(one_line(field.into()));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_write_stays_one_line_of_bounded_length() {
        let forged = "boom\n2026-01-01T00:00:00Z ERROR forged\r\n\u{1b}[31mred";
        let problem = Problem::new(Severity::Error, "X", forged).about("Service a\nb").in_field("c\td");
        assert_eq!(problem.to_string(), "Service a b: c d: boom 2026-01-01T00:00:00Z ERROR forged   [31mred");
        assert_eq!(one_line("é".repeat(TEXT_MAX)), "é".repeat(TEXT_MAX));
        let long = one_line("é".repeat(5_000_000));
        assert_eq!((long.chars().count(), long.ends_with("é…")), (TEXT_MAX + 1, true));
    }
}
