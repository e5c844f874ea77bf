//! A label selector read from its manifest.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;

use super::Invalid;
use crate::model::selector::{Requirement, Selector};

/// Most requirements and values in one selector. An object that an API server stores, 1.5 MiB at most, has room for fewer:
/// whoever writes a policy with a long list must not find that nothing holds.
const VALUES_MAX: usize = 400_000;

/// Reads a selector.
///
/// # Errors
/// When a requirement cannot be worked with (P-011), or there are too many.
pub(super) fn read(selector: &meta::LabelSelector, field: &str) -> Result<Selector, Invalid> {
    let mut requirements = Vec::new();
    for (key, value) in selector.match_labels.iter().flatten() {
        requirements.push(Requirement::In(key.clone(), [value.clone()].into()));
    }
    let mut count = requirements.len();
    for (index, entry) in selector.match_expressions.iter().flatten().enumerate() {
        let field = format!("{field}.matchExpressions[{index}]");
        let listed = entry.values.as_deref().unwrap_or_default();
        count += listed.len().max(1);
        if entry.key.is_empty() {
            return Err(Invalid::new(format!("{field}.key"), "is empty"));
        }
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
