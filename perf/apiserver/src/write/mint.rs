//! What the server makes up: times, uids and the ends of generated names.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::SystemTime;

use k8s_openapi::jiff::Timestamp;

/// The time, as objects have it.
pub fn now() -> String {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since_epoch.as_secs()).unwrap_or(0);
    Timestamp::from_second(seconds).unwrap_or_default().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

pub(super) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

pub(super) fn uid() -> String {
    let (high, low) = (random(), random());
    let variant = 0x8000 | (low >> 48 & 0x3fff);
    format!(
        "{:08x}-{:04x}-4{:03x}-{variant:04x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xfff,
        low & 0xffff_ffff_ffff
    )
}

pub(super) fn suffix() -> String {
    const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut rest = random();
    let letter = |_| {
        let at = usize::try_from(rest % 27).unwrap_or(0);
        rest /= 27;
        char::from(LETTERS[at])
    };
    (0..5).map(letter).collect()
}
