//! Selectors of lists and watches, by labels and by fields.
//!
//! Owns the reading of the text that comes in a query and the test of one object. Refuses to know who asks.

use serde_json::Value;

use crate::kinds::Kind;
use crate::object::Object;
use crate::problem::Problem;

/// What an object must be like to be in an answer.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<(String, bool, String)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Requirement {
    Present(String),
    Absent(String),
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
}

impl Selector {
    /// The selector of a query for objects of `kind`.
    ///
    /// # Errors
    /// Text that is no selector, and fields that the kind cannot be selected by.
    pub fn read(kind: &Kind, labels: &str, fields: &str) -> Result<Selector, Problem> {
        let labels = requirements(labels)
            .map_err(|error| Problem::bad_request(format!("unable to parse requirement: {error}")))?;
        let mut wanted = Vec::new();
        for part in fields.split(',').filter(|part| !part.is_empty()) {
            let split = part.split_once("!=").map(|(field, value)| (field, false, value));
            let equal =
                || part.split_once("==").or_else(|| part.split_once('=')).map(|(field, value)| (field, true, value));
            let Some((field, equal, value)) = split.or_else(equal) else {
                return Err(Problem::bad_request(format!("invalid field selector: {part:?}")));
            };
            if !selectable(kind, field) {
                return Err(Problem::bad_request(format!("field label not supported: {field}")));
            }
            wanted.push((field.to_owned(), equal, value.to_owned()));
        }
        Ok(Selector { labels, fields: wanted })
    }

    /// Whether every object matches.
    pub fn is_all(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether `object` is in the answer.
    pub fn matches(&self, object: &Object) -> bool {
        let label = |name: &String| object.labels.get(name);
        let labels = self.labels.iter().all(|requirement| match requirement {
            Requirement::Present(name) => label(name).is_some(),
            Requirement::Absent(name) => label(name).is_none(),
            Requirement::In(name, values) => label(name).is_some_and(|value| values.contains(value)),
            Requirement::NotIn(name, values) => label(name).is_none_or(|value| !values.contains(value)),
        });
        labels && self.fields.iter().all(|(field, equal, value)| (field_of(object, field) == *value) == *equal)
    }
}

/// Fields that a kind can be selected by, beside its name and namespace.
fn selectable(kind: &Kind, field: &str) -> bool {
    let more: &[&str] = match kind.kind.as_str() {
        "Pod" => &["spec.nodeName", "spec.hostNetwork", "spec.restartPolicy", "status.phase", "status.podIP"],
        "Service" => &["spec.clusterIP", "spec.type"],
        "Node" => &["spec.unschedulable"],
        "Namespace" => &["status.phase"],
        "Secret" => &["type"],
        "Event" => &[
            "involvedObject.kind",
            "involvedObject.name",
            "involvedObject.namespace",
            "involvedObject.uid",
            "reason",
            "type",
            "regarding.name",
            "regarding.kind",
        ],
        _ => &[],
    };
    field == "metadata.name" || (field == "metadata.namespace" && kind.namespaced) || more.contains(&field)
}

fn field_of(object: &Object, field: &str) -> String {
    match field {
        "metadata.name" => object.key.name.clone(),
        "metadata.namespace" => object.key.namespace.clone(),
        _ => match object.value().pointer(&format!("/{}", field.replace('.', "/"))) {
            Some(Value::String(text)) => text.clone(),
            Some(value) if !value.is_null() => value.to_string(),
            _ if matches!(field, "spec.hostNetwork" | "spec.unschedulable") => "false".to_owned(),
            _ => String::new(),
        },
    }
}

/// The parts of a label selector: commas separate them, but not within brackets.
fn requirements(text: &str) -> Result<Vec<Requirement>, String> {
    let mut parts = vec![String::new()];
    let mut depth = 0_usize;
    for letter in text.chars() {
        match letter {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().into_iter().for_each(|part| part.push(letter));
    }
    parts.iter().map(|part| part.trim()).filter(|part| !part.is_empty()).map(requirement).collect()
}

fn requirement(part: &str) -> Result<Requirement, String> {
    let name = |text: &str| -> Result<String, String> {
        let text = text.trim();
        let good =
            !text.is_empty() && text.chars().all(|letter| letter.is_ascii_alphanumeric() || "-._/".contains(letter));
        if good {
            Ok(text.to_owned())
        } else {
            Err(format!("{part:?}: name part must consist of alphanumeric characters, '-', '_' or '.'"))
        }
    };
    let several = |text: &str| -> Result<Vec<String>, String> {
        let inner = text.trim().strip_prefix('(').and_then(|text| text.strip_suffix(')'));
        let inner = inner.ok_or_else(|| format!("{part:?}: found no '('"))?;
        Ok(inner.split(',').map(|value| value.trim().to_owned()).collect())
    };
    if let Some((key, value)) = part.split_once("!=") {
        return Ok(Requirement::NotIn(name(key)?, vec![value.trim().to_owned()]));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Ok(Requirement::In(name(key)?, vec![value.trim().to_owned()]));
    }
    if let Some((key, values)) =
        part.split_once(" notin ").or_else(|| part.split_once(" notin(").map(|(key, _)| (key, &part[key.len() + 6..])))
    {
        return Ok(Requirement::NotIn(name(key)?, several(values)?));
    }
    if let Some((key, values)) =
        part.split_once(" in ").or_else(|| part.split_once(" in(").map(|(key, _)| (key, &part[key.len() + 3..])))
    {
        return Ok(Requirement::In(name(key)?, several(values)?));
    }
    match part.strip_prefix('!') {
        Some(key) => Ok(Requirement::Absent(name(key)?)),
        None => Ok(Requirement::Present(name(part)?)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::built_in;

    #[test]
    fn objects_are_selected_by_labels_and_fields() {
        let kinds = built_in();
        let pod = kinds.iter().find(|kind| kind.kind == "Pod").unwrap();
        let value = json!({"metadata": {"name": "p", "namespace": "n", "labels": {"app": "web", "tier": "a"}}, "spec": {"nodeName": "w1"}});
        let object = Object::new(pod, value, 1);
        let is = |labels: &str, fields: &str| Selector::read(pod, labels, fields).unwrap().matches(&object);
        for labels in [
            "",
            "app=web",
            "app==web,tier",
            "app in (web, db)",
            "app notin (db)",
            "!other",
            "app!=db",
            "other!=x",
            "app in(web)",
        ] {
            assert!(is(labels, ""), "{labels}");
        }
        for labels in ["app=db", "other", "!app", "app in (db)", "app notin (web)", "app!=web", "app=web,tier=b"] {
            assert!(!is(labels, ""), "{labels}");
        }
        assert!(is(
            "",
            "metadata.name=p,metadata.namespace=n,spec.nodeName=w1,spec.hostNetwork=false,status.phase!=Failed"
        ));
        assert!(!is("", "spec.nodeName=w2") && !is("", "metadata.name!=p"));
    }

    #[test]
    fn what_cannot_be_a_selector_is_refused() {
        let kind = &built_in()[0];
        for (labels, fields) in [("a b=c", ""), ("a in web", ""), ("", "spec.ports=1"), ("", "metadata.name")] {
            assert_eq!(Selector::read(kind, labels, fields).unwrap_err().code, 400, "{labels} {fields}");
        }
    }
}
