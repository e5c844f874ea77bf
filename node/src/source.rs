//! Sources: who says what is wanted.
//!
//! The agent asks its source again and again; a source answers at once, from what it knows by then.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::wanted::Wanted;

/// Somebody who knows what is wanted of this node.
pub trait Source: Send {
    /// What is wanted, if that has changed since the last call.
    ///
    /// # Errors
    /// Complaints, once each: what was wanted before stays.
    fn changed(&mut self) -> Result<Option<Wanted>, Vec<String>>;
}

/// A file of YAML or JSON, read again whenever it says something else. A rename over it or a turned symbolic link (as of a
/// mounted ConfigMap) is a change like any other.
#[derive(Debug)]
pub struct File {
    paths: Vec<PathBuf>,
    /// What it said, or why it could not be read.
    last: Option<Result<String, io::ErrorKind>>,
}

impl File {
    /// The first of `paths` that is there.
    pub fn new(paths: &[PathBuf]) -> File {
        File { paths: paths.to_vec(), last: None }
    }
}

/// The first of `paths` that is there, or the last of them.
///
/// # Errors
/// When none is named.
pub fn first(paths: &[PathBuf]) -> io::Result<&Path> {
    let there = paths.iter().find(|path| path.exists()).or(paths.last());
    there.map(PathBuf::as_path).ok_or_else(|| io::Error::other("no file is named"))
}

impl Source for File {
    fn changed(&mut self) -> Result<Option<Wanted>, Vec<String>> {
        let path = first(&self.paths).map_err(|error| vec![error.to_string()])?;
        let read = fs::read_to_string(path);
        let now = match &read {
            Ok(text) => Ok(text.clone()),
            Err(error) => Err(error.kind()),
        };
        if self.last.as_ref() == Some(&now) {
            return Ok(None);
        }
        let named = |complaint: String| format!("{}: {complaint}", path.display());
        self.last = Some(now);
        let text = read.map_err(|error| vec![named(error.to_string())])?;
        let wanted =
            Wanted::parse(&text).map_err(|complaints| complaints.into_iter().map(named).collect::<Vec<_>>())?;
        Ok(Some(wanted))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::wanted::tests::FULL;

    #[test]
    fn a_file_is_told_when_it_says_something_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.yaml");
        let mut source = File::new(&[directory.path().join("other.yaml"), path.clone()]);
        let missing = source.changed().unwrap_err();
        assert!(missing[0].contains("node.yaml"), "{missing:?}");
        // Told once.
        assert_eq!(source.changed(), Ok(None));
        fs::write(&path, FULL).unwrap();
        assert!(source.changed().unwrap().is_some());
        assert_eq!(source.changed(), Ok(None));
        fs::write(&path, "devices: 1").unwrap();
        assert!(source.changed().unwrap_err()[0].contains("devices"));
        assert_eq!(source.changed(), Ok(None));
        fs::write(&path, FULL).unwrap();
        assert!(source.changed().unwrap().is_some());
        // One that is named earlier comes.
        fs::write(directory.path().join("other.yaml"), FULL.replace("shop/out", "shop/other")).unwrap();
        assert_eq!(source.changed().unwrap().unwrap().egress[0].name, "shop/other");
    }
}
