//! The desk: records on their way to files, and what becomes of them when a disk refuses.
//!
//! Owns the opening of a directory, late and again, the count of what was lost, and what is said of it: one line a minute while
//! it lasts, one when it is over. Refuses to know what the records are about.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::{SignedDuration, Timestamp};
use tidegate_ledger::{Gap, Kept, Limits, Problem, Writer};

/// How long it takes until a directory that could not be opened is tried again.
const OPEN_AGAIN: SignedDuration = SignedDuration::from_secs(5);
/// Shortest time between two lines about the same trouble.
pub const TELL_APART: SignedDuration = SignedDuration::from_secs(60);

/// Records of the sort `R` on their way to a directory, and what became of them.
pub struct Desk<R: Kept> {
    /// What cannot be done while a disk refuses, for people.
    trouble: &'static str,
    directory: PathBuf,
    limits: Limits,
    writer: Option<Writer<R>>,
    /// Records that did not reach a file, for whoever counts them.
    lost: Arc<AtomicU64>,
    /// Those of the writer that are in `lost`.
    counted: u64,
    /// What was lost before there was a writer.
    missing: Option<Gap>,
    /// When opening failed last.
    refused_at: Option<Timestamp>,
    /// Lost since the last line about that, and when that was.
    untold: u64,
    told_at: Option<Timestamp>,
}

impl<R: Kept> Desk<R> {
    /// One for `directory`, which is not touched yet. What does not reach a file is added to `lost`; `trouble` says of it what
    /// cannot be done.
    pub fn new(trouble: &'static str, directory: PathBuf, limits: Limits, lost: Arc<AtomicU64>) -> Self {
        let (writer, missing, refused_at, told_at) = (None, None, None, None);
        Desk { trouble, directory, limits, writer, lost, counted: 0, missing, refused_at, untold: 0, told_at }
    }

    /// Where an earlier run has left records, the start is one too: what was held then is not held any more.
    pub fn begin(&mut self) {
        if self.directory.is_dir() {
            let now = Timestamp::now();
            let opened = self.open(now);
            self.note(opened, now);
        }
    }

    fn open(&mut self, now: Timestamp) -> Result<(), Problem> {
        let is_recent = |at: Timestamp| now.duration_since(at).abs() < OPEN_AGAIN;
        if self.writer.is_some() || self.refused_at.is_some_and(is_recent) {
            return Ok(());
        }
        let opened = Writer::<R>::open(&self.directory, self.limits, now);
        let mut writer = opened.inspect_err(|_| self.refused_at = Some(now))?;
        if let Some(gap) = self.missing.take() {
            writer.miss(gap);
        }
        (self.writer, self.counted) = (Some(writer), 0);
        Ok(())
    }

    /// Writes a record.
    pub fn write(&mut self, record: &R) {
        // Nothing is begun before there is something to record.
        let opened = self.open(record.at());
        let written = match &mut self.writer {
            Some(writer) => writer.append(record),
            None => {
                let gap = Gap { from: record.at(), until: record.at(), count: 1 };
                self.missing = Some(self.missing.map_or(gap, |before| before.and(gap)));
                self.count(1);
                Ok(())
            }
        };
        self.note(opened.and(written), record.at());
    }

    /// Has what was written so far read by others; for now and then.
    pub fn flush(&mut self, now: Timestamp) {
        let flushed = self.writer.as_mut().map_or(Ok(()), |writer| writer.recover(now).and_then(|()| writer.flush()));
        self.note(flushed, now);
        if self.told_at.is_some() && self.writer.as_ref().is_some_and(|writer| !writer.is_behind()) {
            tracing::info!(lost = self.untold, "records can be written again");
            (self.untold, self.told_at) = (0, None);
        }
    }

    fn count(&mut self, lost: u64) {
        self.lost.fetch_add(lost, Ordering::Relaxed);
        self.untold = self.untold.saturating_add(lost);
    }

    fn note(&mut self, done: Result<(), Problem>, now: Timestamp) {
        let lost = self.writer.as_ref().map_or(self.counted, Writer::<R>::lost);
        self.count(lost.saturating_sub(self.counted));
        self.counted = lost;
        let Err(error) = done else { return };
        if self.told_at.is_none_or(|told_at| now.duration_since(told_at).abs() >= TELL_APART) {
            tracing::error!(%error, lost = self.untold, "{}; going on without", self.trouble);
            (self.untold, self.told_at) = (0, Some(now));
        }
    }
}
