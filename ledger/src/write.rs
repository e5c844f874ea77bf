//! The writing side.
//!
//! One writer per directory, on a thread that may wait for a disk. It keeps the entries of the file it writes in memory,
//! so that closing a file sorts and does not read. A failure to write loses records, never the ledger: the file is
//! closed as it is, the caller counts what was lost, and the next record begins a new one.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

use crate::files::{Pair, Problem, about, is_leftover};
use crate::index::{Entry, Header};
use crate::record::Record;

/// How much is kept, and in which portions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A file is closed when it has this many bytes; at most 2 GiB.
    pub file_bytes_max: u64,
    /// … or is this old.
    pub file_age_max: Duration,
    /// The oldest files are deleted when all together have more bytes.
    pub total_bytes_max: u64,
    /// … or when their last record is older.
    pub keep: Duration,
}

impl Default for Limits {
    /// 64 MiB or a day a file, 8 GiB and 30 days in all.
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(86_400);
        Limits { file_bytes_max: 64 << 20, file_age_max: DAY, total_bytes_max: 8 << 30, keep: DAY * 30 }
    }
}

/// Writes a ledger.
#[derive(Debug)]
pub struct Writer {
    directory: PathBuf,
    limits: Limits,
    open: Option<Open>,
    line: Vec<u8>,
}

/// The file that is being written.
#[derive(Debug)]
struct Open {
    pair: Pair,
    records: BufWriter<File>,
    index: BufWriter<File>,
    entries: Vec<Entry>,
    bytes: u64,
}

impl Writer {
    /// Opens the ledger in `directory`, which is made if it is not there: closes what an earlier run left open, and
    /// records the start.
    ///
    /// # Errors
    /// When the directory or a file in it cannot be written.
    pub fn open(directory: &Path, limits: Limits, now: Timestamp) -> Result<Writer, Problem> {
        fs::create_dir_all(directory).map_err(about(directory))?;
        for entry in fs::read_dir(directory).map_err(about(directory))? {
            let entry = entry.map_err(about(directory))?;
            if is_leftover(&entry.file_name()) {
                fs::remove_file(entry.path()).map_err(about(&entry.path()))?;
            }
        }
        for pair in Pair::all(directory)?.iter().filter(|pair| !pair.is_closed()) {
            pair.build_index()?;
        }
        let mut writer = Writer { directory: directory.to_owned(), limits, open: None, line: Vec::new() };
        writer.append(&Record::Start { at: now })?;
        writer.flush()?;
        Ok(writer)
    }

    /// Writes one record. It can be found after the next [`Writer::flush`].
    ///
    /// # Errors
    /// When it could not be written: then it is lost, and perhaps those since the last flush with it.
    pub fn append(&mut self, record: &Record) -> Result<(), Problem> {
        let at_ms = record.at().as_millisecond();
        let is_due = |open: &Open| {
            let age_ms = u64::try_from(at_ms.saturating_sub(open.pair.begun_ms)).unwrap_or_default();
            open.bytes >= self.limits.file_bytes_max.min(u64::from(u32::MAX) / 2)
                || Duration::from_millis(age_ms) >= self.limits.file_age_max
        };
        if self.open.as_ref().is_some_and(is_due) {
            self.close()?;
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => self.open.insert(begin(&self.directory, at_ms)?),
        };
        self.line.clear();
        let written = record.write(&mut self.line).map_err(io::Error::from).and_then(|()| {
            open.records.write_all(&self.line)?;
            // Within the limit above, a line more or less.
            let entry = Entry::of(record, u32::try_from(open.bytes).unwrap_or(u32::MAX));
            open.index.write_all(&entry.to_bytes())?;
            open.entries.push(entry);
            open.bytes += self.line.len() as u64;
            Ok(())
        });
        self.settle(written)
    }

    /// Makes what was written so far visible to questions.
    ///
    /// # Errors
    /// When it could not be written; see [`Writer::append`].
    pub fn flush(&mut self) -> Result<(), Problem> {
        let Some(open) = &mut self.open else { return Ok(()) };
        // Records first: an entry always has its line.
        let flushed = open.records.flush().and_then(|()| open.index.flush());
        self.settle(flushed)
    }

    /// After a failure the file is left as it is, and made readable by what it has.
    fn settle(&mut self, written: io::Result<()>) -> Result<(), Problem> {
        let Err(error) = written else { return Ok(()) };
        let Some(open) = self.open.take() else { return Ok(()) };
        let pair = open.pair.clone();
        // What is in the buffers is lost: writing it again would fail as it did now, at a place nobody knows.
        drop((open.records.into_parts(), open.index.into_parts()));
        let _ = pair.build_index();
        Err(Problem { path: pair.records, error })
    }

    /// Closes the open file, if there is one, and deletes what is too old or too much.
    ///
    /// # Errors
    /// When a file could not be written or deleted.
    pub fn close(&mut self) -> Result<(), Problem> {
        self.flush()?;
        let Some(mut open) = self.open.take() else { return Ok(()) };
        let last_ms = open.entries.iter().map(|entry| entry.at_ms).max().unwrap_or(open.pair.begun_ms);
        open.pair.write_index(&mut open.entries, open.bytes)?;
        self.tidy_up(last_ms)
    }

    fn tidy_up(&self, now_ms: i64) -> Result<(), Problem> {
        let pairs = Pair::all(&self.directory)?;
        let keep_ms = i64::try_from(self.limits.keep.as_millis()).unwrap_or(i64::MAX);
        let mut total = 0;
        for (place, pair) in pairs.iter().enumerate().rev() {
            total += [pair.records.clone(), pair.index()]
                .iter()
                .filter_map(|path| fs::metadata(path).ok())
                .map(|metadata| metadata.len())
                .sum::<u64>();
            // Its last record is not younger than the first of the file after it.
            let ended_ms = pairs.get(place + 1).map_or(now_ms, |next| next.begun_ms);
            if total > self.limits.total_bytes_max || now_ms.saturating_sub(ended_ms) > keep_ms {
                pair.delete()?;
            }
        }
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // What fails here is made good by the next start.
        let _ = self.close();
    }
}

/// Begins a file at that moment, or at the first one after it that has none.
fn begin(directory: &Path, at_ms: i64) -> Result<Open, Problem> {
    let latest = Pair::all(directory)?.last().map(|pair| pair.begun_ms);
    let pair = Pair::new(directory, latest.map_or(at_ms, |latest| at_ms.max(latest.saturating_add(1))));
    let create = |path: &Path| File::create_new(path).map_err(about(path));
    let records = BufWriter::new(create(&pair.records)?);
    let mut index = BufWriter::new(File::create(pair.index()).map_err(about(&pair.index()))?);
    index.write_all(&Header::default().to_bytes()).map_err(about(&pair.index()))?;
    Ok(Open { pair, records, index, entries: Vec::new(), bytes: 0 })
}
