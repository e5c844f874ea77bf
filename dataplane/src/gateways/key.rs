//! The key that gateways of one set share, and the tags made with it (HMAC-SHA256, RFC 2104).
//!
//! Owns the key file: one key per line, at most two. The first is used for sending and both are accepted, so that a key
//! is changed without a moment in which two gateways do not understand each other: add the new one as the second line
//! everywhere, then exchange the lines everywhere, then take the old one away everywhere.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Length of a tag.
pub const TAG_BYTES: usize = 32;
/// Shortest key: 128 bits.
pub const KEY_BYTES_MIN: usize = 16;
/// Largest key file in bytes.
const FILE_BYTES_MAX: u64 = 4096;
/// Keys in a file.
const KEYS_MAX: usize = 2;

/// What a fingerprint is the tag of; no heartbeat begins like this.
const FINGERPRINTED: &[u8] = b"fingerprint of a key of gateways";

/// One or two keys.
#[derive(Clone)]
pub struct Keys(Vec<Hmac<Sha256>>);

/// A key file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It cannot be read.
    #[error("cannot read the key file {path}: {source}")]
    Read {
        /// Path tried.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is no key in it, or one that is too short, or too many.
    #[error("key file {path}: {reason}")]
    Content {
        /// Path read.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl Keys {
    /// Reads the key file at `path`.
    ///
    /// # Errors
    /// See [`KeyError`]; no text ever holds a key.
    pub fn read(path: &Path) -> Result<Keys, KeyError> {
        let text = read(path).map_err(|source| KeyError::Read { path: path.into(), source })?;
        Keys::parse(&text).map_err(|reason| KeyError::Content { path: path.into(), reason })
    }

    /// The keys in `text`, one per line; blanks around them and empty lines do not count.
    ///
    /// # Errors
    /// What is wrong, without a key in it.
    pub fn parse(text: &str) -> Result<Keys, String> {
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        if lines.is_empty() {
            return Err("there is no key in it".into());
        }
        if lines.len() > KEYS_MAX {
            return Err(format!("{} keys; at most {KEYS_MAX}, one to send with and one more to accept", lines.len()));
        }
        let key = |(number, line): (usize, &&str)| match Hmac::new_from_slice(line.as_bytes()) {
            Ok(key) if line.len() >= KEY_BYTES_MIN => Ok(key),
            _ => Err(format!("key {} has {} bytes; at least {KEY_BYTES_MIN} are needed", number + 1, line.len())),
        };
        lines.iter().enumerate().map(key).collect::<Result<_, _>>().map(Keys)
    }

    /// The tag of the first key.
    pub fn tag(&self, bytes: &[u8]) -> [u8; TAG_BYTES] {
        let Some(mut key) = self.0.first().cloned() else { return [0; TAG_BYTES] };
        key.update(bytes);
        key.finalize().into_bytes().into()
    }

    /// What people may compare two keys by: 8 hexadecimal digits of a tag of the first one.
    pub fn fingerprint(&self) -> String {
        let [first, second, third, fourth, ..] = self.tag(FINGERPRINTED);
        format!("{:08x}", u32::from_be_bytes([first, second, third, fourth]))
    }

    /// Whether `tag` is that of one of the keys; takes the same time whatever differs.
    pub fn verify(&self, bytes: &[u8], tag: &[u8]) -> bool {
        let fits = |key: &Hmac<Sha256>| {
            let mut key = key.clone();
            key.update(bytes);
            key.verify_slice(tag).is_ok()
        };
        self.0.iter().any(fits)
    }
}

/// The text of a key file, if it is a file of a size that keys have.
fn read(path: &Path) -> io::Result<String> {
    let refused = |message: String| Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    // Before it is opened: a pipe would be waited for, and a device may never end.
    if !std::fs::metadata(path)?.is_file() {
        return refused("not a regular file".into());
    }
    let mut text = String::new();
    std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return refused(format!("larger than {FILE_BYTES_MAX} bytes"));
    }
    Ok(text)
}

/// Keys are not for logs.
impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_file_and_what_is_wrong_and_no_key() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let error = Keys::read(&path).unwrap_err().to_string();
        assert!(error.contains("cannot read the key file") && error.contains("key"), "{error}");
        for (text, expected) in [
            ("\n \n", "there is no key"),
            ("short secret", "key 1 has 12 bytes; at least 16"),
            ("a key that is long enough\nsecret", "key 2 has 6 bytes"),
            ("a key that is long enough\na key that is long enough\na key that is long enough", "3 keys; at most 2"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Keys::read(&path).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(&path.display().to_string()), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
        std::fs::write(&path, "x".repeat(100_000)).unwrap();
        assert!(Keys::read(&path).unwrap_err().to_string().contains("larger than 4096 bytes"));
        let error = Keys::read(Path::new("/dev/zero")).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
        std::fs::write(&path, "  a key that is long enough \r\n\n").unwrap();
        let (keys, same) = (Keys::read(&path).unwrap(), Keys::parse("a key that is long enough").unwrap());
        assert!(keys.verify(b"x", &same.tag(b"x")) && !keys.verify(b"y", &same.tag(b"x")) && !keys.verify(b"x", b""));
        assert_eq!(format!("{keys:?}"), "Keys(1)");
    }

    /// RFC 4231, test case 2 with a key of sufficient length is case 6; this one is case 3's shape in text: the tag must be
    /// that of the standard and not merely our own.
    #[test]
    fn tags_are_those_of_rfc_4231() {
        // Test case 7: a key and data longer than a block.
        let key = [0xaa; 131];
        let data = b"This is a test using a larger than block-size key and a larger than block-size data. The key \
                     needs to be hashed before being used by the HMAC algorithm.";
        let keys = Keys(vec![Hmac::new_from_slice(&key).unwrap()]);
        let tag: String = keys.tag(data).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(tag, "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2");
    }
}
