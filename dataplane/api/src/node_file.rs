//! What both processes hold alike about the node file: which file it is, and whose name is in it.
//!
//! Each process reads its own section and knows nothing of the other's. These two questions must have one answer, or the
//! two halves of a gateway would take themselves for different nodes.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserializer;
use serde::de::{Error, MapAccess, Visitor};

/// The first of these files that is there; the last one if none is, for whoever reads it to say so.
///
/// Gateways that share a set of files find their own this way: one for themselves first, then one for everybody.
pub fn first(files: &[PathBuf]) -> &Path {
    let there = files.iter().find(|file| file.exists());
    there.or(files.last()).map_or(Path::new("/etc/tidegate/node.yaml"), PathBuf::as_path)
}

/// Longest node file, bytes.
const BYTES_MAX: u64 = 1 << 20;

/// The text of a node file.
///
/// # Errors
/// What the system says; `InvalidData` of one that is too long, or no text.
pub fn text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    if File::open(path)?.take(BYTES_MAX + 1).read_to_string(&mut text)? as u64 > BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it has more than {BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// Reads the name of this gateway's own Node: the name itself, or `{ env: VARIABLE }` for that variable of the
/// environment, so that all pods of a DaemonSet can share one file.
///
/// # Errors
/// When it is neither, or the environment has no such variable.
pub fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    deserializer.deserialize_any(Name)
}

struct Name;

impl<'de> Visitor<'de> for Name {
    type Value = String;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the name of a Node, or { env: VARIABLE }")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<String, E> {
        Ok(name.to_owned())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<String, A::Error> {
        let Some((key, variable)) = map.next_entry::<String, String>()? else {
            return Err(Error::custom("node: give a name, or { env: VARIABLE }"));
        };
        if key != "env" {
            return Err(Error::unknown_field(&key, &["env"]));
        }
        if let Some((key, _)) = map.next_entry::<String, String>()? {
            return Err(Error::unknown_field(&key, &["env"]));
        }
        std::env::var(&variable)
            .map_err(|_| Error::custom(format!("node: the environment has no variable {variable} with a name in it")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<String, String> {
        name(&mut serde_json::Deserializer::from_str(json)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_name_is_itself_or_comes_from_the_environment() {
        assert_eq!(read("\"gw-1\""), Ok("gw-1".into()));
        // Cargo sets this one for its tests.
        assert_eq!(read(r#"{"env":"CARGO_PKG_NAME"}"#), Ok("tidegate-api".into()));
    }

    #[test]
    fn what_is_no_name_is_refused_in_words() {
        for (text, expected) in [
            ("7", "the name of a Node, or { env: VARIABLE }"),
            ("[]", "the name of a Node"),
            ("{}", "node: give a name"),
            (r#"{"env":"TIDEGATE_NO_SUCH_VARIABLE"}"#, "no variable TIDEGATE_NO_SUCH_VARIABLE"),
            (r#"{"from":"X"}"#, "unknown field `from`"),
            (r#"{"env":"CARGO_PKG_NAME","or":"x"}"#, "unknown field `or`"),
            (r#"{"env":7}"#, "invalid type"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn the_first_file_that_is_there_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let [own, all] = ["gw-1.yaml", "node.yaml"].map(|name| directory.path().join(name));
        let files = [own.clone(), all.clone()];
        assert_eq!(first(&files), all, "none is there: the last one is named in the error");
        std::fs::write(&all, "").unwrap();
        assert_eq!(first(&files), all);
        std::fs::write(&own, "").unwrap();
        assert_eq!(first(&files), own);
        assert_eq!(first(&[]), Path::new("/etc/tidegate/node.yaml"));
    }

    #[test]
    fn a_file_without_end_is_refused() {
        let endless = text(Path::new("/dev/zero")).unwrap_err();
        assert_eq!((endless.kind(), endless.to_string().contains("1048576 bytes")), (io::ErrorKind::InvalidData, true));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.yaml");
        std::fs::write(&path, "node: a").unwrap();
        assert_eq!(text(&path).unwrap(), "node: a");
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert_eq!(text(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
