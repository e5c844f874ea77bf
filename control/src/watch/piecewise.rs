//! A policy of which some cannot be read: entry by entry.
//!
//! Owns what is alike for all kinds of policies: an object is typed as a whole, and where that fails, or where fields are
//! written that its kind does not have, each entry of its lists is typed by itself. What cannot be is put in a form that
//! the reader of the kind closes. Refuses to know what closed means for a kind.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Invalid, typed};
use crate::model::Object;
use crate::model::policy::Policy;

/// How an object reads as a whole.
pub(super) enum Whole<T> {
    /// All of it.
    Read(T),
    /// The same without fields of rules that their kind does not have.
    StrangeRules(T),
}

/// Reads a policy as a whole. Without `unknown` nobody minds fields that the kind does not have: an API server, whose
/// version may be newer than this reader, has judged them.
///
/// # Errors
/// When something has a wrong type, or when there is a field beside `metadata` and `status`, outside the lists of rules,
/// that the kind does not have: it may be the one that was meant to limit the others.
pub(super) fn whole<T: DeserializeOwned>(
    value: &Value,
    unknown: Option<&mut Vec<String>>,
    rules: &[&str],
) -> Result<Whole<T>, Invalid> {
    let mut strange = Vec::new();
    let read = typed(value, unknown.is_some().then_some(&mut strange));
    let is_beside = |field: &str| matches!(field.split('.').next(), Some("metadata" | "status"));
    let in_rules = |field: &String| {
        let field = field.strip_prefix("spec.").unwrap_or_default();
        rules.iter().any(|list| field.strip_prefix(list).is_some_and(|rest| rest.starts_with('[')))
    };
    let inside: Vec<String> = strange.iter().filter(|field| !is_beside(field)).cloned().collect();
    if let Some(unknown) = unknown {
        unknown.append(&mut strange);
    }
    let object = read?;
    match inside.iter().find(|field| !in_rules(field)) {
        Some(field) => Err(Invalid::new(field.clone(), NOBODY_KNOWS)),
        None if inside.is_empty() => Ok(Whole::Read(object)),
        None => Ok(Whole::StrangeRules(object)),
    }
}

/// What is said of a field that the kind does not have and that may be one which matters.
pub(super) const NOBODY_KNOWS: &str = "is no field of this kind, and nobody knows what it was to say";

/// The error with what can be read as a stand-in, which does not complain of the same once more.
pub(super) fn stand_in(error: Invalid, policy: Option<Policy>) -> Invalid {
    let stand_in = policy.map(|mut policy| {
        policy.complaints.retain(|(field, _)| *field != error.field);
        Box::new(Object::Policy(Box::new(policy)))
    });
    Invalid { stand_in, ..error }
}

/// The work on one object.
pub(super) struct Pieces {
    /// Fields that the kind does not have make unreadable what they stand in.
    pub(super) strict: bool,
    /// What could not be read.
    pub(super) complaints: Vec<Invalid>,
    /// Where something stands instead of it.
    pub(super) replaced: Vec<String>,
}

impl Pieces {
    /// Nothing read yet.
    pub(super) fn new(strict: bool) -> Self {
        Pieces { strict, complaints: Vec::new(), replaced: Vec::new() }
    }

    /// Whether `value`, at `field`, can be typed.
    pub(super) fn reads<T: DeserializeOwned>(&mut self, value: &Value, field: &str) -> bool {
        let mut strange = Vec::new();
        let read: Result<T, Invalid> = typed(value, self.strict.then_some(&mut strange));
        let at = |inner: &str| match inner {
            "" | "." => field.to_owned(),
            inner if inner.starts_with('[') => format!("{field}{inner}"),
            inner => format!("{field}.{inner}"),
        };
        let complaint = match (read, strange.first()) {
            (Ok(_), None) => return true,
            (Ok(_), Some(strange)) => Invalid::new(at(strange), "is no field of this kind"),
            (Err(error), _) => Invalid::new(at(&error.field), error.message),
        };
        self.complaints.push(complaint);
        self.replaced.push(field.into());
        false
    }

    /// A list whose entries are put right one by one; what is no list is one entry that cannot be
    /// read. `Null`: there is none.
    pub(super) fn list(
        &mut self,
        list: Option<&Value>,
        field: &str,
        mut entry: impl FnMut(&mut Self, &Value, &str) -> Value,
    ) -> Value {
        match list {
            None | Some(Value::Null) => Value::Null,
            Some(Value::Array(entries)) => entries
                .iter()
                .enumerate()
                .map(|(index, value)| entry(self, value, &format!("{field}[{index}]")))
                .collect(),
            Some(_) => {
                self.complaints.push(Invalid::new(field, "is not a list"));
                self.replaced.push(field.into());
                let kept = entry(self, &Value::Null, field);
                Value::Array(vec![kept])
            }
        }
    }

    /// Whether an object has other fields than these.
    pub(super) fn is_strange(&mut self, value: &Value, known: &[&str], field: &str) -> bool {
        let mut names = value.as_object().into_iter().flatten().map(|(name, _)| name);
        match names.find(|name| self.strict && !known.contains(&name.as_str())) {
            Some(name) => {
                self.complaints.push(Invalid::new(format!("{field}.{name}"), "is no field of this kind"));
                self.replaced.push(field.into());
                true
            }
            None => false,
        }
    }

    /// All complaints, `read` by the reader of the kind among them: of what it read instead of something that was told
    /// already, it says nothing new.
    pub(super) fn told(self, read: Vec<(String, String)>) -> Vec<(String, String)> {
        let is_within = |field: &str, place: &String| {
            field.strip_prefix(place.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        let is_news = |field: &str| !self.replaced.iter().any(|place| place != "spec" && is_within(field, place));
        let read: Vec<_> = read.into_iter().filter(|(field, _)| is_news(field)).collect();
        let own = self.complaints.into_iter().map(|complaint| (complaint.field, complaint.message));
        own.chain(read).collect()
    }
}

/// The one annotation that is looked at, as text; another type is a slip like any other text.
pub(super) fn annotations(value: &Value, name: &str) -> Value {
    match value.pointer("/metadata/annotations").and_then(|annotations| annotations.get(name)) {
        None | Some(Value::Null) => Value::Null,
        Some(Value::String(text)) => serde_json::json!({ name: text }),
        Some(other) => serde_json::json!({ name: format!("{other} (not text)") }),
    }
}
