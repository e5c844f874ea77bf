//! Refusals: what the server answers when it does not do what was asked.
//!
//! One value becomes one HTTP answer whose body is a `Status` object. Texts, reasons and codes follow the real server
//! (`k8s.io/apimachinery/pkg/api/errors`): clients read the reason and the causes, people read the message.

use serde_json::{Value, json};

use crate::kinds::Kind;

/// One refusal.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// HTTP status code.
    pub code: u16,
    /// Word for programs, like `NotFound`.
    pub reason: &'static str,
    /// Text for people.
    pub message: String,
    /// `details` of the Status object; `null` for none.
    pub details: Value,
    /// `metadata.continue` of the answer to an expired list.
    pub resume: Option<String>,
}

/// One cause in the details of a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Word for programs, like `FieldValueInvalid`.
    pub reason: &'static str,
    /// Text for people.
    pub message: String,
    /// Path of the field, like `spec.ports[0].port`.
    pub field: String,
}

impl Cause {
    /// `field` must be given.
    pub fn required(field: &str, detail: &str) -> Cause {
        let message = if detail.is_empty() { "Required value".to_owned() } else { format!("Required value: {detail}") };
        Cause { reason: "FieldValueRequired", message, field: field.to_owned() }
    }

    /// `field` has a value that cannot be.
    pub fn invalid(field: &str, value: &Value, detail: &str) -> Cause {
        Cause {
            reason: "FieldValueInvalid",
            message: format!("Invalid value: {value}: {detail}"),
            field: field.to_owned(),
        }
    }

    /// `field` may not be set like this.
    pub fn forbidden(field: &str, detail: &str) -> Cause {
        Cause { reason: "FieldValueForbidden", message: format!("Forbidden: {detail}"), field: field.to_owned() }
    }

    /// `field` has a value outside of its list.
    pub fn unsupported(field: &str, value: &Value, supported: &[&str]) -> Cause {
        let supported = supported.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", ");
        let message = format!("Unsupported value: {value}: supported values: {supported}");
        Cause { reason: "FieldValueNotSupported", message, field: field.to_owned() }
    }

    /// `field` names what is named already.
    pub fn duplicate(field: &str, value: &Value) -> Cause {
        Cause { reason: "FieldValueDuplicate", message: format!("Duplicate value: {value}"), field: field.to_owned() }
    }
}

impl Problem {
    fn new(code: u16, reason: &'static str, message: String) -> Problem {
        Problem { code, reason, message, details: Value::Null, resume: None }
    }

    fn about(mut self, kind: &Kind, name: &str) -> Problem {
        self.details = json!({"name": name, "group": kind.group, "kind": kind.plural});
        self
    }

    /// No such object.
    pub fn not_found(kind: &Kind, name: &str) -> Problem {
        Problem::new(404, "NotFound", format!("{} \"{name}\" not found", kind.resource())).about(kind, name)
    }

    /// No such path.
    pub fn no_path() -> Problem {
        Problem::new(404, "NotFound", "the server could not find the requested resource".to_owned())
    }

    /// The name is taken.
    pub fn already_exists(kind: &Kind, name: &str) -> Problem {
        Problem::new(409, "AlreadyExists", format!("{} \"{name}\" already exists", kind.resource())).about(kind, name)
    }

    /// The object is not what the writer thinks it is.
    pub fn conflict(kind: &Kind, name: &str, why: &str) -> Problem {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", kind.resource());
        Problem::new(409, "Conflict", message).about(kind, name)
    }

    /// The writer's `resourceVersion` is not the stored one.
    pub fn stale(kind: &Kind, name: &str) -> Problem {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Problem::conflict(kind, name, why)
    }

    /// Somebody else owns fields that an apply sets.
    pub fn apply_conflict(message: String, causes: Vec<Cause>) -> Problem {
        let mut problem = Problem::new(409, "Conflict", message);
        problem.details = json!({"causes": in_json(&causes)});
        problem
    }

    /// Values that cannot be.
    pub fn invalid(kind: &Kind, name: &str, causes: Vec<Cause>) -> Problem {
        let texts: Vec<_> = causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
        let texts = if let [one] = &texts[..] { one.clone() } else { format!("[{}]", texts.join(", ")) };
        let kind_name = if kind.group.is_empty() { kind.kind.clone() } else { format!("{}.{}", kind.kind, kind.group) };
        let mut problem = Problem::new(422, "Invalid", format!("{kind_name} \"{name}\" is invalid: {texts}"));
        problem.details = json!({"name": name, "group": kind.group, "kind": kind.kind, "causes": in_json(&causes)});
        problem
    }

    /// Options of a list or watch that exclude each other.
    pub fn bad_options(cause: Cause) -> Problem {
        let message = format!("ListOptions.meta.k8s.io \"\" is invalid: {}: {}", cause.field, cause.message);
        let mut problem = Problem::new(422, "Invalid", message);
        problem.details = json!({"group": "meta.k8s.io", "kind": "ListOptions", "causes": in_json(&[cause])});
        problem
    }

    /// A patch that does not fit.
    pub fn unprocessable(message: impl Into<String>) -> Problem {
        Problem::new(422, "Invalid", message.into())
    }

    /// A request that cannot be read.
    pub fn bad_request(message: impl Into<String>) -> Problem {
        Problem::new(400, "BadRequest", message.into())
    }

    /// No or an unknown token.
    pub fn unauthorized() -> Problem {
        Problem::new(401, "Unauthorized", "Unauthorized".to_owned())
    }

    /// Not allowed to this user, or not now.
    pub fn forbidden(group: &str, plural: &str, name: &str, why: &str) -> Problem {
        let resource = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
        let named = if name.is_empty() { String::new() } else { format!(" \"{name}\"") };
        let mut problem = Problem::new(403, "Forbidden", format!("{resource}{named} is forbidden: {why}"));
        problem.details = json!({"kind": plural});
        for (field, value) in [("group", group), ("name", name)] {
            if !value.is_empty() {
                problem.details[field] = Value::from(value);
            }
        }
        problem
    }

    /// A revision from before the last compaction.
    pub fn expired(message: String) -> Problem {
        Problem::new(410, "Expired", message)
    }

    /// A revision that is not reached yet.
    pub fn too_large(asked: u64, current: u64) -> Problem {
        let mut problem =
            Problem::new(504, "Timeout", format!("Too large resource version: {asked}, current: {current}"));
        let cause = json!({"reason": "ResourceVersionTooLarge", "message": "Too large resource version"});
        problem.details = json!({"causes": [cause], "retryAfterSeconds": 1});
        problem
    }

    /// A verb that the resource does not have.
    pub fn method_not_allowed() -> Problem {
        Problem::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource".to_owned(),
        )
    }

    /// A body of a type that the verb does not read.
    pub fn unsupported_media(given: &str) -> Problem {
        let message = format!(
            "the body of the request was in an unknown format ({given}) - accepted media types include: application/json, application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
        );
        Problem::new(415, "UnsupportedMediaType", message)
    }

    /// An answer of a type that we cannot give.
    pub fn not_acceptable() -> Problem {
        Problem::new(406, "NotAcceptable", "only the following media types are accepted: application/json".to_owned())
    }

    /// A failure of the server's own.
    pub fn internal(message: String) -> Problem {
        Problem::new(500, "InternalError", message)
    }

    /// An answer that a test asked for.
    pub fn wanted(code: u16, retry_after_s: Option<u32>) -> Problem {
        let (reason, message) = match code {
            401 => ("Unauthorized", "Unauthorized"),
            403 => ("Forbidden", "forbidden"),
            404 => ("NotFound", "the server could not find the requested resource"),
            409 => (
                "Conflict",
                "the object has been modified; please apply your changes to the latest version and try again",
            ),
            410 => ("Expired", "The resourceVersion for the provided watch is too old."),
            429 => ("TooManyRequests", "too many requests, please try again later"),
            503 => ("ServiceUnavailable", "the server is currently unable to handle the request"),
            504 => ("Timeout", "the server was unable to return a response in the time allotted"),
            _ => ("InternalError", "Internal error occurred: asked for by the test"),
        };
        let mut problem = Problem::new(code, reason, message.to_owned());
        if let Some(seconds) = retry_after_s {
            problem.details = json!({"retryAfterSeconds": seconds});
        }
        problem
    }

    /// The `Status` object that says it.
    pub fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if let Some(resume) = &self.resume {
            status["metadata"] = json!({"continue": resume});
        }
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }
}

fn in_json(causes: &[Cause]) -> Value {
    causes.iter().map(|cause| json!({"reason": cause.reason, "message": cause.message, "field": cause.field})).collect()
}
