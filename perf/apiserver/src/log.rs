//! What was asked: one line per request, for a test to look at.
//!
//! Owns the lines. Refuses to know answers beyond their code.

use axum::http::header;
use axum::http::request::Parts;

use crate::rbac::Asked;

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// HTTP method.
    pub method: String,
    /// Path with query.
    pub path: String,
    /// User, empty when nobody was recognised.
    pub user: String,
    /// `User-Agent`.
    pub agent: String,
    /// What was asked for.
    pub asked: Asked,
    /// Code of the answer; 0 when there was none.
    pub code: u16,
    /// Whether the user's rules did not allow it.
    pub denied: bool,
    /// Whether a fault answered instead.
    pub faulty: bool,
}

impl Logged {
    pub(crate) fn new(parts: &Parts, user: &str, asked: &Asked) -> Logged {
        let agent = parts.headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
        Logged {
            method: parts.method.to_string(),
            path: parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
            user: user.to_owned(),
            agent: agent.unwrap_or_default().to_owned(),
            asked: asked.clone(),
            code: 0,
            denied: false,
            faulty: false,
        }
    }

    /// Whether it was a write.
    pub fn is_write(&self) -> bool {
        matches!(self.asked.verb.as_str(), "create" | "update" | "patch" | "delete" | "deletecollection")
    }
}
