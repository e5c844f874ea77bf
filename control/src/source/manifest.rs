//! A text of YAML or JSON taken apart into objects.
//!
//! Owns documents, `List` kinds, identity (kind, namespace, name) and line numbers. Refuses to look into an object
//! beyond its identity. Two kinds of trouble are told apart: a text that is *broken* yields nothing, since the rest of
//! it cannot be trusted; a document that is well-formed but has no usable identity is reported and its neighbours stand.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use kube::core::TypeMeta;
use serde::de::{self, Deserialize, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::{Manifest, ObjectKey, ObjectKind, slips};
use crate::problem::{Place, Problem, Severity};

/// Brackets of YAML's flow style that may stand open at once. The parser looks at each of them for every token, so that
/// a text of nothing else takes time squared and would keep all other manifests waiting.
const OPEN_BRACKETS_MAX: usize = 500;

/// Reason of a problem: a document has no usable identity.
pub const NAMELESS: &str = "Nameless";
/// Reason of a problem: the type of a document is almost one of ours.
pub const MISSPELT: &str = "MisspeltKind";
/// Reason of a problem: objects of a kind are not read.
pub const UNKNOWN_KIND: &str = "UnknownKind";
/// Reason of a problem: a document is nothing that could be an object.
pub const STRAY: &str = "NoManifest";

/// Fields of an object's `metadata`.
const METADATA: [&str; 15] = [
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// What a text held.
#[derive(Debug, Default)]
pub struct Content {
    /// Objects of known kinds, in order.
    pub manifests: Vec<Manifest>,
    /// Objects of other kinds, and where they stand.
    pub strangers: BTreeMap<Stranger, Place>,
    /// Documents without a usable identity, or with one that is almost one of ours.
    pub nameless: Vec<Problem>,
    /// What those among them may be that may be objects of ours.
    pub suspects: BTreeSet<Suspect>,
}

/// What a document may be that does not say rightly what it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Suspect {
    /// Its kind; none: any.
    pub kind: Option<ObjectKind>,
    /// Its name; none: any.
    pub name: Option<String>,
    /// Its namespace; none: any.
    pub namespace: Option<String>,
}

impl Suspect {
    fn of(kind: Option<ObjectKind>, value: &Value) -> Self {
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(String::from);
        Suspect { kind, name: text("/metadata/name"), namespace: text("/metadata/namespace") }
    }

    /// Whether it may be that object.
    pub fn may_be(&self, key: &ObjectKey) -> bool {
        let fits = |said: &Option<String>, is: &str| said.as_deref().is_none_or(|said| said == is);
        self.kind.is_none_or(|kind| kind == key.kind)
            && fits(&self.name, &key.name)
            && (!key.kind.is_namespaced() || fits(&self.namespace, &key.namespace))
    }
}

/// An object of a kind that is not read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stranger {
    /// Its name; empty, if it has none.
    pub name: String,
    /// Its namespace: `default`, where none is written.
    pub namespace: String,
    /// `apiVersion kind`.
    pub types: String,
}

impl Stranger {
    fn of(types: String, value: &Value) -> Self {
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
        Stranger {
            name: text("/metadata/name").unwrap_or_default().into(),
            namespace: text("/metadata/namespace").unwrap_or("default").into(),
            types,
        }
    }

    /// Whether it would be that object, were its type another one.
    pub fn is_like(&self, key: &ObjectKey) -> bool {
        self.name == key.name && (!key.kind.is_namespaced() || self.namespace == key.namespace)
    }

    /// The same, and half of its type is the one that it would have to be.
    pub fn is_almost(&self, key: &ObjectKey) -> bool {
        let types = self.types.split_once(' ');
        let is_near = |(version, kind): (&str, &str)| version == key.kind.api_version() || kind == key.kind.to_string();
        types.is_some_and(is_near) && self.is_like(key)
    }
}

/// Whether one of these is [almost](Stranger::is_almost) that object.
pub fn has_almost(strangers: &BTreeSet<Stranger>, key: &ObjectKey) -> bool {
    let first = Stranger { name: key.name.clone(), namespace: String::new(), types: String::new() };
    let of_the_name = strangers.range(first..).take_while(|stranger| stranger.name == key.name);
    of_the_name.into_iter().any(|stranger| stranger.is_almost(key))
}

/// Whether `apiVersion kind`, which is none of ours, is a kind of policies that say who may reach whom: ours would have
/// been looked for in them.
pub fn is_policy(types: &str) -> bool {
    types.ends_with("NetworkPolicy") || types.starts_with("policy.networking.k8s.io/")
}

/// That objects of the kind `apiVersion kind` are not read. `file` has one.
pub fn unread_kind(types: &str, file: &str) -> Problem {
    if !is_policy(types) {
        let message = format!("objects of kind {types} are not read (first seen in {file})");
        return Problem::new(Severity::Notice, UNKNOWN_KIND, message);
    }
    let instead = match types.starts_with("policy.networking.k8s.io/") {
        true => format!("; write them anew as {}", ObjectKind::ClusterNetworkPolicy.type_words()),
        false => String::new(),
    };
    let message = format!(
        "policies of kind {types} are not read, and nothing of what they say is in force (first seen in {file}){instead}"
    );
    Problem::new(Severity::Warning, UNKNOWN_KIND, message)
}

/// Takes a text apart. `file` names it in errors and decides by its ending whether it is JSON.
///
/// # Errors
/// When a document is not well-formed, or is a part of an object: the whole text is then not to be trusted.
pub fn parse(file: &str, text: &str) -> Result<Content, Box<Problem>> {
    let mut content = Content::default();
    // A mark that says nothing in UTF-8, and that some editors write.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let documents = if file.ends_with(".json") { json(file, text)? } else { yaml(file, text)? };
    for (place, value) in documents {
        if !is_stray(&value) {
            content.take(place, value);
            continue;
        }
        if let Some(part) = ["metadata", "spec", "status"].into_iter().find(|part| value.get(part).is_some()) {
            let message =
                format!("has {part} and neither apiVersion nor kind: a line `---` is too many, or they are missing");
            return Err(broken(&place, message));
        }
        let message = "is not a Kubernetes object, and not read: it has neither apiVersion nor kind";
        content.nameless.push(Problem::new(Severity::Warning, STRAY, message).at(&place));
    }
    Ok(content)
}

/// Whether a document has no type, nor anything that may be meant for one.
fn is_stray(value: &Value) -> bool {
    let is_type = |field: &String| ["apiVersion", "kind"].iter().any(|known| slips(field, known).is_some());
    value.as_object().is_some_and(|fields| !fields.keys().any(is_type))
}

fn broken(place: &Place, message: String) -> Box<Problem> {
    Box::new(Problem::new(Severity::Error, "Unreadable", message).at(place))
}

fn yaml(file: &str, text: &str) -> Result<Vec<(Place, Value)>, Box<Problem>> {
    let mut values = Vec::new();
    for (line, part) in split(text) {
        let mut place = Place { file: file.into(), document: values.len() + 1, line };
        if brackets_open_max(part) > OPEN_BRACKETS_MAX {
            return Err(broken(&place, format!("more than {OPEN_BRACKETS_MAX} brackets are open at once")));
        }
        let Unique(value) = serde_norway::from_str(part).map_err(|error| {
            place.line = line + error.location().map_or(0, |location| location.line().saturating_sub(1));
            // The parser counts lines from the start of the document; the place says it in lines of the file.
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or_default();
            broken(&place, format!("not YAML: {message}"))
        })?;
        if !value.is_null() {
            values.push((place, value));
        }
    }
    Ok(values)
}

/// Documents with the number of their first line. A line that begins with `---` begins a document, unless only blank
/// lines, comments and directives stand before it.
fn split(text: &str) -> Vec<(usize, &str)> {
    let mut parts = Vec::new();
    let (mut start, mut start_line, mut offset, mut substance) = (0, 1, 0, false);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if line.strip_prefix("---").is_some_and(|rest| rest.trim_start().len() < rest.len() || rest.is_empty()) {
            if substance {
                parts.push((start_line, &text[start..offset]));
                (start, start_line) = (offset, index + 1);
            }
            substance = true;
        } else if !substance {
            substance = !(line.trim().is_empty() || line.trim_start().starts_with(['#', '%', '\u{feff}']));
        }
        offset += line.len();
    }
    parts.push((start_line, &text[start..]));
    parts
}

/// The most brackets open at once anywhere in `text`, quoted ones and those in comments included: there they come in
/// pairs or are few.
fn brackets_open_max(text: &str) -> usize {
    let (mut open, mut most) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => continue,
        }
        most = most.max(open);
    }
    most
}

fn json(file: &str, text: &str) -> Result<Vec<(Place, Value)>, Box<Problem>> {
    let mut values = Vec::new();
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Unique>();
    loop {
        let rest = &text[stream.byte_offset()..];
        let begin = stream.byte_offset() + (rest.len() - rest.trim_start().len());
        let line = text[..begin].matches('\n').count() + 1;
        let place = |line| Place { file: file.into(), document: values.len() + 1, line };
        match stream.next() {
            None => return Ok(values),
            Some(Ok(Unique(value))) => {
                let place = place(line);
                values.push((place, value));
            }
            Some(Err(error)) => return Err(broken(&place(error.line()), format!("not JSON: {error}"))),
        }
    }
}

impl Content {
    fn take(&mut self, place: Place, mut value: Value) {
        let Ok(types) = TypeMeta::deserialize(&value) else {
            let lacks = |field: &str| value.get(field).is_none_or(Value::is_null);
            let message = match (lacks("apiVersion"), lacks("kind")) {
                (true, true) => "not a Kubernetes object: apiVersion and kind are missing",
                (true, false) => "not a Kubernetes object: apiVersion is missing",
                (false, true) => "not a Kubernetes object: kind is missing",
                (false, false) => "not a Kubernetes object: apiVersion and kind must be text",
            };
            self.doubt(Problem::new(Severity::Error, NAMELESS, message).at(&place), Suspect::of(None, &value));
            return;
        };
        let lists = value.get("items").is_some();
        // `v1 List`, and the typed lists of the API whose items need not repeat their type.
        if let (Some(item_kind), Some(Value::Array(items))) =
            (types.kind.strip_suffix("List"), value.get_mut("items").map(Value::take))
        {
            for (index, mut item) in items.into_iter().enumerate() {
                if let (false, Some(fields)) = (item_kind.is_empty(), item.as_object_mut()) {
                    fields.entry("apiVersion").or_insert_with(|| types.api_version.clone().into());
                    fields.entry("kind").or_insert_with(|| item_kind.into());
                }
                let before = self.nameless.len();
                self.take(place.clone(), item);
                for problem in &mut self.nameless[before..] {
                    problem.field = Some(match problem.field.take() {
                        Some(field) => format!("items[{index}].{field}"),
                        None => format!("items[{index}]"),
                    });
                }
            }
            return;
        }
        let found = format!("{} {}", types.api_version, types.kind);
        let is_list_of_ours = |of: &str| of.is_empty() || ObjectKind::meant_by(&types.api_version, of).is_some();
        if types.kind.strip_suffix("List").is_some_and(is_list_of_ours) {
            let message = "has no list of items, which a list has to have, be it an empty one";
            let problem = Problem::new(Severity::Error, NAMELESS, message).at(&place).about(found).in_field("items");
            self.doubt(problem, Suspect { kind: None, name: None, namespace: None });
            return;
        }
        let Some(kind) = ObjectKind::from_type(&types.api_version, &types.kind) else {
            match ObjectKind::meant_by(&types.api_version, &types.kind) {
                Some(meant) => {
                    let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("without a name");
                    let message = format!(
                        "is not read; an object of ours in whose place it is stays as it was. To be one of our kinds it would have to be {}",
                        meant.type_words()
                    );
                    let problem = Problem::new(Severity::Warning, MISSPELT, message);
                    self.doubt(problem.at(&place).about(format!("{found} {name}")), Suspect::of(None, &value));
                }
                None if lists && value.pointer("/metadata/name").is_none() => {
                    let message = "has items and is no list that is read: to be one, it would have to be apiVersion: v1, kind: List";
                    let problem = Problem::new(Severity::Error, NAMELESS, message).at(&place).about(found);
                    self.doubt(problem, Suspect { kind: None, name: None, namespace: None });
                }
                None => drop(self.strangers.insert(Stranger::of(found, &value), place)),
            }
            return;
        };
        match identity(kind, &value) {
            Ok(key) => self.manifests.push(Manifest { key, place: Some(place), value }),
            Err((field, message)) => {
                let mut suspect = Suspect::of(Some(kind), &value);
                match field.as_str() {
                    "metadata.name" => suspect.name = None,
                    _ => suspect.namespace = None,
                }
                let problem = Problem::new(Severity::Error, NAMELESS, message).at(&place).about(kind).in_field(field);
                self.doubt(problem, suspect);
            }
        }
    }

    /// A document that may be an object of ours.
    fn doubt(&mut self, problem: Problem, suspect: Suspect) {
        self.nameless.push(problem);
        self.suspects.insert(suspect);
    }
}

fn identity(kind: ObjectKind, value: &Value) -> Result<ObjectKey, (String, &'static str)> {
    let text = |pointer: &str| match value.pointer(pointer) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if usable(text) => Ok(Some(text.clone())),
        Some(_) => Err("must be a name (letters, digits, '-' and '.'; quote it if it looks like a number)"),
    };
    let name = text("/metadata/name").map_err(|message| ("metadata.name".to_owned(), message))?;
    let name = name.ok_or_else(|| ("metadata.name".to_owned(), "missing"))?;
    let namespace = match kind.is_namespaced() {
        false => String::new(),
        true => match text("/metadata/namespace").map_err(|message| ("metadata.namespace".to_owned(), message))? {
            // Status files are named NAMESPACE.NAME.json: with a dot in both, two Services would share one.
            Some(namespace) if !is_label(&namespace) => {
                let message =
                    "must be the name of a namespace: at most 63 of a to z, 0 to 9 and '-', which is not at its ends";
                return Err(("metadata.namespace".into(), message));
            }
            Some(namespace) => namespace,
            None => match slip_for_namespace(kind, value) {
                Some(field) => return Err((field, "is no field; the namespace is missing, and this may be it")),
                None => "default".into(),
            },
        },
    };
    Ok(ObjectKey { kind, namespace, name })
}

/// Whether a text can be the name of a namespace or Service (RFC 1123 section 2.1, in small letters).
pub(crate) fn is_label(text: &str) -> bool {
    let is_known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(is_known) && !text.starts_with('-') && !text.ends_with('-')
}

/// A field that may be meant for the namespace of an object which has none. Of kinds that say who is closed to whom it is
/// any field of `metadata` that nobody knows: in another namespace it would be another object, and the one that was is open.
fn slip_for_namespace(kind: ObjectKind, value: &Value) -> Option<String> {
    let is_near = |field: &str| field == "<<" || slips(field, "namespace").is_some();
    let is_careful = matches!(kind, ObjectKind::NetworkPolicy | ObjectKind::Pod);
    let fields = |value: Option<&Value>| -> Vec<String> {
        value.and_then(Value::as_object).into_iter().flatten().map(|(name, _)| name.clone()).collect()
    };
    let mut inner = fields(value.get("metadata")).into_iter().filter(|field| !METADATA.contains(&field.as_str()));
    let inner = inner.find(|field| is_careful || is_near(field)).map(|field| format!("metadata.{field}"));
    inner.or_else(|| fields(Some(value)).into_iter().find(|field| is_near(field)))
}

/// A value none of whose mappings has a key twice. Parsers take the last one and say nothing, so that a line that is there
/// to be seen does nothing.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Values).map(Unique)
    }
}

struct Values;

impl<'de> Visitor<'de> for Values {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    /// A number that no field holds is the business of who reads the field, and not the end of the whole file.
    fn visit_i128<E: de::Error>(self, value: i128) -> Result<Value, E> {
        Ok((value as f64).into())
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<Value, E> {
        Ok((value as f64).into())
    }

    /// YAML writes `.inf` and `.nan`, which JSON has not: read as nothing they would be a field that was left out.
    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        match value.is_finite() {
            true => Ok(value.into()),
            false => Err(de::Error::custom(format!("{value} is no number that an object can have"))),
        }
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Unique(value)) = access.next_element()? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut fields = serde_json::Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if fields.contains_key(&key) {
                return Err(de::Error::custom(format!("the key {key:?} is there twice")));
            }
            let Unique(value) = access.next_value()?;
            fields.insert(key, value);
        }
        Ok(Value::Object(fields))
    }
}

/// Names become file names of status, so nothing beyond what Kubernetes allows gets past here.
fn usable(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 253
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':'))
        && !name.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(content: &Content) -> Vec<String> {
        content.manifests.iter().map(|manifest| manifest.key.to_string()).collect()
    }

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  namespace: shop\n";

    #[test]
    fn documents_have_numbers_and_lines() {
        let text = format!(
            "# head\n---\n{SERVICE}---\n---\napiVersion: v1\nkind: Node\nmetadata: {{ name: w1 }}\n--- # end\n"
        );
        let content = parse("a.yaml", &text).unwrap();
        assert_eq!(keys(&content), ["Service shop/web", "Node w1"]);
        let places: Vec<_> = content.manifests.iter().map(|manifest| manifest.place.clone().unwrap()).collect();
        assert_eq!((places[0].document, places[0].line), (1, 1));
        assert_eq!((places[1].document, places[1].line), (2, 9));
    }

    #[test]
    fn lists_of_both_forms_are_opened() {
        let list = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Service, metadata: {name: a}}\n- {kind: ConfigMap, apiVersion: v1}\n";
        let content = parse("a.yaml", list).unwrap();
        assert_eq!(keys(&content), ["Service default/a"]);
        let strangers: Vec<&str> = content.strangers.keys().map(|stranger| stranger.types.as_str()).collect();
        assert_eq!(strangers, ["v1 ConfigMap"]);
        let typed = r#"{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSliceList","items":[{"metadata":{"name":"s","namespace":"n"}},{"metadata":{}}]}"#;
        let content = parse("a.json", typed).unwrap();
        assert_eq!(keys(&content), ["EndpointSlice n/s"]);
        assert_eq!(content.nameless[0].field.as_deref(), Some("items[1].metadata.name"));
    }

    #[test]
    fn json_may_hold_several_documents() {
        let text = "{\"apiVersion\":\"v1\",\"kind\":\"Node\",\"metadata\":{\"name\":\"w1\"}}\n\n{\"apiVersion\":\"v1\",\"kind\":\"Node\",\"metadata\":{\"name\":\"w2\"}}\n";
        let content = parse("a.json", text).unwrap();
        assert_eq!(keys(&content), ["Node w1", "Node w2"]);
        assert_eq!(content.manifests[1].place.as_ref().unwrap().line, 3);
        let problem = parse("a.json", &format!("{text}{{\"a\":\n,}}")).unwrap_err();
        assert_eq!(problem.place.as_ref().map(|place| (place.document, place.line)), Some((3, 5)), "{problem}");
    }

    #[test]
    fn a_broken_document_names_its_number_and_the_line_of_the_file() {
        let problem = parse("web.yaml", &format!("{SERVICE}---\napiVersion: v1\nkind: [\n")).unwrap_err();
        let place = problem.place.clone().unwrap();
        assert_eq!((place.file.as_str(), place.document), ("web.yaml", 2));
        assert!((8..=9).contains(&place.line), "{problem}");
        assert!(problem.to_string().starts_with("web.yaml document 2 (line "), "{problem}");
    }

    #[test]
    fn brackets_without_end_are_refused_before_they_cost_time() {
        for bracket in ["[", "{a: "] {
            let text = format!("{SERVICE}spec: {}", bracket.repeat(1_000_000));
            let problem = parse("a.yaml", &text).unwrap_err();
            assert!(problem.to_string().contains("more than 500 brackets"), "{problem}");
        }
        // Many in a row are nobody's trouble.
        let text = format!("{SERVICE}spec: {{ports: [{}]}}", "{port: 1}, ".repeat(1000));
        assert_eq!(keys(&parse("a.yaml", &text).unwrap()), ["Service shop/web"]);
    }

    #[test]
    fn a_document_without_identity_leaves_its_neighbours_alone() {
        for bad in [
            "just text",
            "[1, 2]",
            "{}",
            "{apiVersion: v1, kind: Service}",
            "{apiVersion: v1, kind: Service, metadata: {name: 7}}",
            "{apiVersion: v1, kind: Service, metadata: {name: ../../etc/passwd}}",
            "{apiVersion: v1, kind: Service, metadata: {name: a, namespace: a/b}}",
            "{apiVersion: v1, kind: Service, metadata: {name: c, namespace: a.b}}",
        ] {
            let content = parse("a.yaml", &format!("{bad}\n---\n{SERVICE}")).unwrap();
            assert_eq!(keys(&content), ["Service shop/web"], "{bad}");
            assert_eq!(content.nameless.len(), 1, "{bad}");
        }
    }

    #[test]
    fn a_key_that_is_there_twice_is_named() {
        let twice = format!("{SERVICE}spec:\n  type: LoadBalancer\n  ports: []\n  type: ClusterIP\n");
        let problem = parse("a.yaml", &twice).unwrap_err();
        assert!(problem.to_string().contains("the key \"type\" is there twice"), "{problem}");
        assert!((6..=9).contains(&problem.place.as_ref().unwrap().line), "{problem}");
        let flow = parse("a.yaml", "{apiVersion: v1, kind: Node, metadata: {name: a, name: b}}").unwrap_err();
        assert!(flow.to_string().contains("\"name\" is there twice"), "{flow}");
        let json = parse("a.json", r#"{"apiVersion":"v1","kind":"Node","kind":"Node"}"#).unwrap_err();
        assert!(json.to_string().contains("\"kind\" is there twice"), "{json}");
        // Numbers, nothing and references are read as they always were.
        let value = parse("a.yaml", &format!("{SERVICE}spec: &a {{x: 1, y: -2, z: 1.5, n: ~, t: true}}\nother: *a\n"));
        let value = &value.unwrap().manifests[0].value;
        assert_eq!(value["other"], serde_json::json!({"x": 1, "y": -2, "z": 1.5, "n": null, "t": true}));
    }

    #[test]
    fn a_byte_order_mark_is_passed_over() {
        assert_eq!(keys(&parse("a.yaml", &format!("\u{feff}{SERVICE}")).unwrap()), ["Service shop/web"]);
        let json = "\u{feff}{\"apiVersion\":\"v1\",\"kind\":\"Node\",\"metadata\":{\"name\":\"w1\"}}";
        assert_eq!(keys(&parse("a.json", json).unwrap()), ["Node w1"]);
    }

    #[test]
    fn pools_have_no_namespace_and_a_group_of_their_own() {
        let pool = |version: &str| {
            format!("apiVersion: {version}\nkind: AddressPool\nmetadata: {{ name: p, namespace: x }}\n")
        };
        assert_eq!(keys(&parse("a.yaml", &pool("tidegate.io/v1alpha1")).unwrap()), ["AddressPool p"]);
        let content = parse("a.yaml", &pool("tidegate.io/v1")).unwrap();
        assert_eq!((content.manifests.len(), content.nameless[0].reason), (0, MISSPELT));
        assert!(content.nameless[0].message.contains("tidegate.io/v1alpha1"), "{:?}", content.nameless);
        assert!(parse("a.yaml", &pool("metallb.io/v1beta1")).unwrap().nameless.is_empty(), "somebody else's");
    }

    #[test]
    fn windows_line_ends_and_an_empty_text_are_fine() {
        assert_eq!(keys(&parse("a.yml", &format!("{SERVICE}---\n{SERVICE}").replace('\n', "\r\n")).unwrap()).len(), 2);
        assert!(parse("a.yaml", "").unwrap().manifests.is_empty());
        assert!(parse("a.json", " \n").unwrap().manifests.is_empty());
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[-a-z0-9 :{}\\[\\]\n\"'&*!|>#%.]{0,200}") {
            let _ = parse("a.yaml", &text);
            let _ = parse("a.json", &text);
        }
    }
}
