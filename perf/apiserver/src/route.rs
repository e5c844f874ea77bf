//! Requests taken apart: which resource, which verb, which options.
//!
//! Owns the reading of path, query and headers. Refuses to know what is stored: an unknown resource is found later.

use std::collections::BTreeMap;

use axum::http::{HeaderMap, Method, header};

use crate::problem::Problem;
use crate::rbac::Asked;

/// One request, taken apart.
#[derive(Clone, Debug, Default)]
pub(crate) struct Route {
    /// What it asks for.
    pub asked: Asked,
    /// Its options.
    pub query: Query,
}

/// Options in a query.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(BTreeMap<String, String>);

impl Query {
    fn read(text: &str) -> Query {
        let pairs =
            text.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        Query(pairs.map(|(name, value)| (decoded(name), decoded(value))).collect())
    }

    /// The value of `name`, empty if it is not there.
    pub fn get(&self, name: &str) -> &str {
        self.0.get(name).map(String::as_str).unwrap_or_default()
    }

    /// Whether `name` is set to something true.
    pub fn is(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|value| matches!(value.as_str(), "true" | "1" | "True"))
    }

    /// The number at `name`.
    ///
    /// # Errors
    /// It is no number.
    pub fn number(&self, name: &str) -> Result<Option<u64>, Problem> {
        match self.get(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| Problem::bad_request(format!("invalid {name}: {text:?}"))),
        }
    }
}

/// Undoes percent-encoding and `+` for a blank.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let value = match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next().unwrap_or(b'0'), rest.next().unwrap_or(b'0')];
                let digits = std::str::from_utf8(&digits).unwrap_or("3f");
                u8::from_str_radix(digits, 16).unwrap_or(b'?')
            }
            byte => byte,
        };
        bytes.push(value);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Takes `path` and `query` of a request by `method` apart.
pub(crate) fn route(method: &Method, path: &str, query: &str) -> Route {
    let query = Query::read(query);
    let parts: Vec<String> = path.split('/').filter(|part| !part.is_empty()).map(decoded).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let (group, version, rest) = match &parts[..] {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return Route { asked: Asked { verb: method.as_str().to_lowercase(), ..Asked::default() }, query },
    };
    let (namespace, rest) = match rest {
        ["namespaces", _, "status" | "finalize"] => ("", rest),
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        rest => ("", rest),
    };
    let at = |index: usize| rest.get(index).copied().unwrap_or_default().to_owned();
    let name = at(1);
    let watch = query.is("watch");
    let verb = match (method.as_str(), name.is_empty()) {
        ("GET", true) if watch => "watch",
        ("GET", true) => "list",
        ("GET", false) => "get",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", true) => "deletecollection",
        ("DELETE", false) => "delete",
        _ => "",
    };
    let asked = Asked {
        verb: verb.to_owned(),
        group: group.to_owned(),
        version: version.to_owned(),
        resource: at(0),
        subresource: rest.get(2..).unwrap_or_default().join("/"),
        namespace: namespace.to_owned(),
        name,
    };
    Route { asked, query }
}

/// How much of an object an answer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// All of it.
    Whole,
    /// Its metadata only (`PartialObjectMetadata`).
    Metadata,
}

/// The shape that the `Accept` header asks for.
///
/// # Errors
/// None that we can give.
pub(crate) fn shape(headers: &HeaderMap) -> Result<Shape, Problem> {
    let Some(accept) = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()) else {
        return Ok(Shape::Whole);
    };
    for choice in accept.split(',').map(str::trim) {
        let mut parts = choice.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let kind = parts.find_map(|part| part.strip_prefix("as="));
        match (media, kind) {
            ("application/json" | "application/*" | "*/*", None) => return Ok(Shape::Whole),
            ("application/json", Some("PartialObjectMetadata" | "PartialObjectMetadataList")) => {
                return Ok(Shape::Metadata);
            }
            _ => {}
        }
    }
    Err(Problem::not_acceptable())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn asked(method: &Method, path: &str) -> Vec<String> {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let Asked { verb, group, version, resource, subresource, namespace, name } = route(method, path, query).asked;
        vec![verb, group, version, resource, subresource, namespace, name]
    }

    #[test]
    fn paths_name_resources() {
        let cases = [
            (Method::GET, "/api/v1/services?&watch=true", ["watch", "", "v1", "services", "", "", ""]),
            (Method::GET, "/api/v1/namespaces/n/services", ["list", "", "v1", "services", "", "n", ""]),
            (
                Method::PATCH,
                "/api/v1/namespaces/n/services/s/status",
                ["patch", "", "v1", "services", "status", "n", "s"],
            ),
            (Method::GET, "/api/v1/namespaces/n", ["get", "", "v1", "namespaces", "", "", "n"]),
            (Method::PUT, "/api/v1/namespaces/n/status", ["update", "", "v1", "namespaces", "status", "", "n"]),
            (
                Method::DELETE,
                "/apis/coordination.k8s.io/v1/namespaces/n/leases",
                ["deletecollection", "coordination.k8s.io", "v1", "leases", "", "n", ""],
            ),
            (Method::GET, "/apis/tidegate.io/v1alpha1", ["get", "", "", "", "", "", ""]),
            (Method::GET, "/version", ["get", "", "", "", "", "", ""]),
        ];
        for (method, path, expected) in cases {
            assert_eq!(asked(&method, path), expected, "{path}");
        }
        let query = route(&Method::GET, "/api/v1/pods", "labelSelector=a%20in+%28b%29&limit=x").query;
        assert_eq!(query.get("labelSelector"), "a in (b)");
        assert!(query.number("limit").is_err());
    }

    #[test]
    fn accept_chooses_a_shape() {
        let of = |text: &'static str| shape(&HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(text))]));
        assert_eq!(of("application/json").unwrap(), Shape::Whole);
        assert_eq!(of("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1").unwrap(), Shape::Metadata);
        assert_eq!(of("application/json;as=Table;v=v1;g=meta.k8s.io,application/json").unwrap(), Shape::Whole);
        assert_eq!(of("application/vnd.kubernetes.protobuf").unwrap_err().code, 406);
    }
}
