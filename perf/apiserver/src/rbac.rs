//! Who may do what.
//!
//! Owns users, their tokens and rules, and the words of a refusal. Rules are those of a ClusterRole, so that the role that is
//! deployed can be the one that is enforced. Refuses to know what a request would do.

use serde::Deserialize;

use crate::problem::Problem;

/// What a request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete` or `deletecollection`; of other paths, the method.
    pub verb: String,
    /// API group, empty for the core group.
    pub group: String,
    /// Version within the group.
    pub version: String,
    /// Plural name; empty for paths that are no resource.
    pub resource: String,
    /// `status`, or empty.
    pub subresource: String,
    /// Namespace; empty for the whole cluster.
    pub namespace: String,
    /// Name of the object; empty for collections.
    pub name: String,
}

impl Asked {
    /// Resource with its subresource: `services/status`.
    pub fn whole_resource(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }
}

/// One rule of a role.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Rule {
    /// Groups, `*` for all.
    pub api_groups: Vec<String>,
    /// Resources with subresources (`services/status`), `*` for all.
    pub resources: Vec<String>,
    /// Verbs, `*` for all.
    pub verbs: Vec<String>,
    /// Only objects of these names; empty for all.
    pub resource_names: Vec<String>,
    /// Only in this namespace (a Role rather than a ClusterRole).
    pub namespace: Option<String>,
}

impl Rule {
    fn allows(&self, asked: &Asked) -> bool {
        let has = |list: &[String], word: &str| list.iter().any(|entry| entry == "*" || entry == word);
        let wildcard = format!("*/{}", asked.subresource);
        has(&self.api_groups, &asked.group)
            && (has(&self.resources, &asked.whole_resource())
                || (!asked.subresource.is_empty() && has(&self.resources, &wildcard)))
            && has(&self.verbs, &asked.verb)
            && (self.resource_names.is_empty() || self.resource_names.contains(&asked.name))
            && self.namespace.as_ref().is_none_or(|only| *only == asked.namespace)
    }
}

/// All that one user may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules(pub Vec<Rule>);

#[derive(Deserialize)]
struct Role {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    metadata: RoleMetadata,
    #[serde(default)]
    rules: Vec<Rule>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RoleMetadata {
    namespace: Option<String>,
}

impl Rules {
    /// Everything.
    pub fn all() -> Rules {
        let every = || vec!["*".to_owned()];
        Rules(vec![Rule { api_groups: every(), resources: every(), verbs: every(), ..Rule::default() }])
    }

    /// The rules of all roles in `yaml` (any number of documents; what is not a ClusterRole or Role is passed over). Rules of
    /// a Role hold in its namespace only.
    ///
    /// # Errors
    /// Text that is not YAML, or a role that is none.
    pub fn from_cluster_role(yaml: &str) -> Result<Rules, serde_norway::Error> {
        let mut rules = Vec::new();
        for document in serde_norway::Deserializer::from_str(yaml) {
            let value = serde_json::Value::deserialize(document)?;
            if !matches!(value.get("kind").and_then(serde_json::Value::as_str), Some("ClusterRole" | "Role")) {
                continue;
            }
            let role: Role =
                serde_json::from_value(value).map_err(<serde_norway::Error as serde::de::Error>::custom)?;
            let namespace = role.metadata.namespace.filter(|_| role.kind == "Role");
            rules.extend(role.rules.into_iter().map(|rule| Rule { namespace: namespace.clone(), ..rule }));
        }
        Ok(Rules(rules))
    }

    /// These rules and one more.
    pub fn and(mut self, groups: &[&str], resources: &[&str], verbs: &[&str]) -> Rules {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        self.0.push(Rule {
            api_groups: owned(groups),
            resources: owned(resources),
            verbs: owned(verbs),
            ..Rule::default()
        });
        self
    }

    /// Whether `asked` is allowed. Paths that are no resource (discovery, health, version) are, to every user.
    pub fn allow(&self, asked: &Asked) -> bool {
        asked.resource.is_empty() || self.0.iter().any(|rule| rule.allows(asked))
    }
}

/// The refusal of `asked` to `user`.
pub fn denied(user: &str, asked: &Asked) -> Problem {
    let place = if asked.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", asked.namespace)
    };
    let resource = asked.whole_resource();
    let why =
        format!("User {user:?} cannot {} resource {resource:?} in API group {:?} {place}", asked.verb, asked.group);
    Problem::forbidden(&asked.group, &asked.resource, &asked.name, &why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(verb: &str, resource: &str, subresource: &str, namespace: &str) -> Asked {
        let text = str::to_owned;
        Asked {
            verb: text(verb),
            resource: text(resource),
            subresource: text(subresource),
            namespace: text(namespace),
            ..Asked::default()
        }
    }

    #[test]
    fn a_role_allows_what_it_lists_and_nothing_else() {
        let yaml = "kind: ClusterRole\nrules:\n- apiGroups: ['']\n  resources: [services]\n  verbs: [get, list, watch]\n- apiGroups: ['']\n  resources: [services/status]\n  verbs: [patch]\n---\nkind: ServiceAccount\n---\nkind: Role\nmetadata: {namespace: own}\nrules:\n- apiGroups: ['']\n  resources: [secrets]\n  verbs: ['*']\n";
        let rules = Rules::from_cluster_role(yaml).unwrap();
        assert!(rules.allow(&asked("list", "services", "", "")));
        assert!(rules.allow(&asked("patch", "services", "status", "n")));
        assert!(rules.allow(&asked("get", "secrets", "", "own")));
        for denied in [
            asked("patch", "services", "", "n"),
            asked("get", "services", "status", ""),
            asked("get", "secrets", "", "n"),
            asked("list", "pods", "", ""),
        ] {
            assert!(!rules.allow(&denied), "{denied:?}");
        }
    }

    #[test]
    fn a_refusal_says_who_and_what() {
        let problem = denied("control", &asked("patch", "services", "status", "n"));
        let text = "services is forbidden: User \"control\" cannot patch resource \"services/status\" in API group \"\" in the namespace \"n\"";
        assert_eq!((problem.code, problem.message.as_str()), (403, text));
    }
}
