//! A label selector read from its manifest.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;

use super::Invalid;
use crate::model::selector::{Requirement, Selector};

/// Most requirements and values in one selector. An object that an API server stores, 1.5 MiB at most, has room for fewer:
/// whoever writes a policy with a long list must not find that nothing holds.
const VALUES_MAX: usize = 400_000;
/// Longest name or value of a label, in characters.
const LABEL_MAX: usize = 63;
/// Longest DNS name before the name of a label.
const SUBDOMAIN_MAX: usize = 253;

/// Reads a selector.
///
/// # Errors
/// When a requirement cannot be worked with (P-011), or there are too many.
pub(super) fn read(selector: &meta::LabelSelector, field: &str) -> Result<Selector, Invalid> {
    let mut requirements = Vec::new();
    for (key, value) in selector.match_labels.iter().flatten() {
        let field = format!("{field}.matchLabels");
        label_key(key, &field)?;
        label_value(value, &field)?;
        requirements.push(Requirement::In(key.clone(), [value.clone()].into()));
    }
    let mut count = requirements.len();
    for (index, entry) in selector.match_expressions.iter().flatten().enumerate() {
        let field = format!("{field}.matchExpressions[{index}]");
        let listed = entry.values.as_deref().unwrap_or_default();
        count += listed.len().max(1);
        label_key(&entry.key, &format!("{field}.key"))?;
        listed.iter().try_for_each(|value| label_value(value, &format!("{field}.values")))?;
        let key = entry.key.clone();
        let values: BTreeSet<String> = listed.iter().cloned().collect();
        let requirement = match (entry.operator.as_str(), values.is_empty()) {
            ("In", false) => Requirement::In(key, values),
            ("NotIn", false) => Requirement::NotIn(key, values),
            ("Exists", true) => Requirement::Exists(key),
            ("DoesNotExist", true) => Requirement::DoesNotExist(key),
            ("In" | "NotIn", true) => {
                return Err(Invalid::new(field, format!("operator {} needs values", entry.operator)));
            }
            ("Exists" | "DoesNotExist", false) => {
                return Err(Invalid::new(field, format!("operator {} takes no values", entry.operator)));
            }
            (other, _) => return Err(Invalid::new(field, format!("{other:?} is no operator"))),
        };
        requirements.push(requirement);
    }
    if count > VALUES_MAX {
        return Err(Invalid::new(field, format!("has over {VALUES_MAX} requirements and values")));
    }
    Ok(Selector::new(requirements))
}

/// Checks that an object can have a label of that key, as an API server does: a name, and before it a DNS name and `/`,
/// if any.
pub(super) fn label_key(key: &str, field: &str) -> Result<(), Invalid> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if key.is_empty() {
        return Err(Invalid::new(field, "is empty"));
    }
    match !name.is_empty() && is_label(name) && prefix.is_none_or(is_subdomain) {
        true => Ok(()),
        false => Err(Invalid::new(field, format!("{:?} is no key that a label can have", shown(key)))),
    }
}

/// The same of a label's value.
pub(super) fn label_value(value: &str, field: &str) -> Result<(), Invalid> {
    match is_label(value) {
        true => Ok(()),
        false => Err(Invalid::new(field, format!("{:?} is no value that a label can have", shown(value)))),
    }
}

/// At most 63 letters, digits, '-', '_' and '.', the first and the last a letter or digit; or nothing.
fn is_label(text: &str) -> bool {
    let is_known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let is_end = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= LABEL_MAX && bytes.iter().copied().all(is_known) && is_end(bytes.first()) && is_end(bytes.last())
}

/// A DNS name in small letters.
fn is_subdomain(text: &str) -> bool {
    let is_part = |part: &str| {
        let is_known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !part.is_empty() && part.bytes().all(is_known) && !part.starts_with('-') && !part.ends_with('-')
    };
    text.len() <= SUBDOMAIN_MAX && text.split('.').all(is_part)
}

/// As much of a text as fits a message: it may be as long as an object.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(LABEL_MAX + 1).collect()
}
