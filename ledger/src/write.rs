//! The writing side.
//!
//! One writer per directory, on a thread that may wait for a disk. It keeps the entries of the file it writes in memory,
//! so that closing a file sorts and does not read. A failure to write loses records, never the ledger: the file is
//! closed as it is and what did not reach it is counted. For a moment nothing is tried; then the next record begins a new
//! file, with a record of what is missing before it.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

use crate::files::{Pair, Problem, about, is_leftover};
use crate::index::{Entry, Event, Header};
use crate::record::{Gap, Kept, Record};

/// How long nothing is tried after a failure, milliseconds: each attempt costs a file.
const PAUSE_MS: i64 = 5_000;

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

/// Writes a ledger of records of the sort `R`.
#[derive(Debug)]
pub struct Writer<R: Kept = Record> {
    sort: PhantomData<fn(&R)>,
    directory: PathBuf,
    limits: Limits,
    open: Option<Open>,
    line: Vec<u8>,
    /// Records lost since it was opened.
    lost: u64,
    /// What is missing and not yet recorded to be.
    gap: Option<Gap>,
    /// Nothing is tried before, milliseconds since 1970.
    paused_until_ms: Option<i64>,
}

/// The file that is being written.
#[derive(Debug)]
struct Open {
    pair: Pair,
    records: BufWriter<File>,
    /// Where records of this sort have one.
    index: Option<BufWriter<File>>,
    entries: Vec<Entry>,
    bytes: u64,
    /// It has the record of what is missing, if that reaches it.
    tells_gap: bool,
}

impl<R: Kept> Writer<R> {
    /// Opens the ledger in `directory`, which is made if it is not there: closes what an earlier run left open, and
    /// records the start.
    ///
    /// # Errors
    /// When the directory or a file in it cannot be written.
    pub fn open(directory: &Path, limits: Limits, now: Timestamp) -> Result<Self, Problem> {
        fs::create_dir_all(directory).map_err(about(directory))?;
        for entry in fs::read_dir(directory).map_err(about(directory))? {
            let entry = entry.map_err(about(directory))?;
            if is_leftover(&entry.file_name(), R::PREFIX) {
                fs::remove_file(entry.path()).map_err(about(&entry.path()))?;
            }
        }
        if R::IS_INDEXED {
            for pair in Pair::all(directory, R::PREFIX)?.iter().filter(|pair| !pair.is_closed()) {
                pair.build_index()?;
            }
        }
        let mut writer = Writer {
            sort: PhantomData,
            directory: directory.to_owned(),
            limits,
            open: None,
            line: Vec::new(),
            lost: 0,
            gap: None,
            paused_until_ms: None,
        };
        writer.append(&R::start(now))?;
        writer.flush()?;
        Ok(writer)
    }

    /// Records that were lost since it was opened: those that did not reach a file.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// What was lost before it could be opened: recorded with the next record.
    pub fn miss(&mut self, gap: Gap) {
        self.gap = Some(self.gap.map_or(gap, |before| before.and(gap)));
    }

    /// Writes one record. It can be found after the next [`Writer::flush`]. For a moment after a failure records are lost
    /// without an attempt, and that is no error.
    ///
    /// # Errors
    /// When it could not be written, or something before it: what is lost by that is counted ([`Writer::lost`]).
    pub fn append(&mut self, record: &R) -> Result<(), Problem> {
        let at_ms = record.at().as_millisecond();
        if self.is_paused(at_ms) {
            self.lose(record.at(), 1);
            return Ok(());
        }
        self.paused_until_ms = None;
        let is_due = |open: &Open| {
            let age_ms = u64::try_from(at_ms.saturating_sub(open.pair.begun_ms)).unwrap_or_default();
            open.bytes >= self.limits.file_bytes_max.min(u64::from(u32::MAX) / 2)
                || Duration::from_millis(age_ms) >= self.limits.file_age_max
        };
        let closed = if self.open.as_ref().is_some_and(is_due) { self.close() } else { Ok(()) };
        if closed.is_err() && self.paused_until_ms.is_some() {
            self.lose(record.at(), 1);
            return closed;
        }
        if let Err(problem) = self.begin(at_ms) {
            self.lose(record.at(), 1);
            return Err(problem);
        }
        let mut written = self.tell_gap(record.at());
        let mut entered = false;
        if let (Ok(()), Some(open)) = (&written, &mut self.open) {
            let before = open.entries.len();
            written = put(open, &mut self.line, record);
            entered = open.entries.len() > before;
        }
        // One that has its entry is counted by what reached the file.
        if !entered {
            self.lose(record.at(), 1);
        }
        self.settle(written, at_ms).and(closed)
    }

    /// Records what is missing, if something is and it is time to try again: for when no record comes to be written.
    ///
    /// # Errors
    /// See [`Writer::append`].
    pub fn recover(&mut self, now: Timestamp) -> Result<(), Problem> {
        let now_ms = now.as_millisecond();
        if self.gap.is_none() || self.is_paused(now_ms) {
            return Ok(());
        }
        self.paused_until_ms = None;
        self.begin(now_ms)?;
        let written = self.tell_gap(now);
        self.settle(written, now_ms)
    }

    /// Whether something is missing and not yet recorded to be.
    pub fn is_behind(&self) -> bool {
        self.gap.is_some()
    }

    fn is_paused(&self, at_ms: i64) -> bool {
        // A clock that was set back ends the pause.
        self.paused_until_ms.is_some_and(|until_ms| (until_ms.saturating_sub(PAUSE_MS)..until_ms).contains(&at_ms))
    }

    /// Has a file open.
    fn begin(&mut self, at_ms: i64) -> Result<(), Problem> {
        if self.open.is_none() {
            let begun = begin::<R>(&self.directory, at_ms);
            self.open = Some(begun.inspect_err(|_| self.paused_until_ms = Some(at_ms.saturating_add(PAUSE_MS)))?);
        }
        Ok(())
    }

    fn tell_gap(&mut self, at: Timestamp) -> io::Result<()> {
        if let (Some(gap), Some(open)) = (self.gap, &mut self.open)
            && !open.tells_gap
        {
            put(open, &mut self.line, &R::gap(at, gap))?;
            open.tells_gap = true;
        }
        Ok(())
    }

    /// Makes what was written so far visible to questions.
    ///
    /// # Errors
    /// When it could not be written; see [`Writer::append`].
    pub fn flush(&mut self) -> Result<(), Problem> {
        let Some(open) = &mut self.open else { return Ok(()) };
        // Records first: an entry always has its line.
        let flushed = open.records.flush().and_then(|()| open.index.as_mut().map_or(Ok(()), BufWriter::flush));
        if flushed.is_ok() && std::mem::take(&mut open.tells_gap) {
            self.gap = None;
        }
        let at_ms = open.entries.last().map_or(open.pair.begun_ms, |entry| entry.at_ms);
        self.settle(flushed, at_ms)
    }

    /// After a failure the file is left as it is, and made readable by what it has. What it has not is lost.
    fn settle(&mut self, written: io::Result<()>, at_ms: i64) -> Result<(), Problem> {
        let Err(error) = written else { return Ok(()) };
        self.paused_until_ms = Some(at_ms.saturating_add(PAUSE_MS));
        let Some(open) = self.open.take() else { return Ok(()) };
        let Open { pair, records, index, entries, bytes, tells_gap } = open;
        // What is in the buffers is lost: writing it again would fail as it did now, at a place nobody knows.
        drop((records.into_parts(), index.map(BufWriter::into_parts)));
        let reached = fs::metadata(&pair.records).map_or(0, |metadata| metadata.len());
        // The line of each ends where the next one begins.
        let ends = || entries.iter().skip(1).map(|entry| u64::from(entry.offset)).chain([bytes]);
        let missing: Vec<&Entry> =
            entries.iter().zip(ends()).filter(|(_, end)| *end > reached).map(|(entry, _)| entry).collect();
        // No reader is to meet half a line; where it cannot be taken away ours passes over it.
        if let Some(whole) = ends().filter(|end| *end <= reached).max().filter(|whole| *whole < reached) {
            let _ = File::options().write(true).open(&pair.records).and_then(|file| file.set_len(whole));
        }
        if tells_gap && !missing.iter().any(|entry| entry.event == Event::Gap) {
            self.gap = None;
        }
        let of_events = missing.iter().filter(|entry| matches!(entry.event, Event::Begin | Event::End));
        for at in of_events.filter_map(|entry| Timestamp::from_millisecond(entry.at_ms).ok()).collect::<Vec<_>>() {
            self.lose(at, 1);
        }
        // A file of nothing says nothing, and there would be one for each attempt.
        let _ = match reached {
            0 => pair.delete(),
            _ if R::IS_INDEXED => pair.build_index(),
            _ => Ok(()),
        };
        Err(Problem { path: pair.records, error })
    }

    fn lose(&mut self, at: Timestamp, count: u64) {
        self.lost = self.lost.saturating_add(count);
        self.miss(Gap { from: at, until: at, count });
    }

    /// Closes the open file, if there is one, and deletes what is too old or too much.
    ///
    /// # Errors
    /// When a file could not be written or deleted.
    pub fn close(&mut self) -> Result<(), Problem> {
        self.flush()?;
        let Some(mut open) = self.open.take() else { return Ok(()) };
        let last_ms = open.entries.iter().map(|entry| entry.at_ms).max().unwrap_or(open.pair.begun_ms);
        if R::IS_INDEXED {
            open.pair.write_index(&mut open.entries, open.bytes)?;
        }
        self.tidy_up(last_ms)
    }

    fn tidy_up(&self, now_ms: i64) -> Result<(), Problem> {
        let pairs = Pair::all(&self.directory, R::PREFIX)?;
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

impl<R: Kept> Drop for Writer<R> {
    fn drop(&mut self) {
        // What fails here is made good by the next start.
        let _ = self.close();
    }
}

/// Puts one record into the buffers of a file.
fn put(open: &mut Open, line: &mut Vec<u8>, record: &impl Kept) -> io::Result<()> {
    line.clear();
    record.write(line).map_err(io::Error::from)?;
    open.records.write_all(line)?;
    // Within the limit of a file, a line more or less.
    let entry = Entry::of(record, u32::try_from(open.bytes).unwrap_or(u32::MAX));
    open.bytes += line.len() as u64;
    open.entries.push(entry);
    open.index.as_mut().map_or(Ok(()), |index| index.write_all(&entry.to_bytes()))
}

/// Begins a file at that moment, or at the first one after it that has none.
fn begin<R: Kept>(directory: &Path, at_ms: i64) -> Result<Open, Problem> {
    let latest = Pair::all(directory, R::PREFIX)?.last().map(|pair| pair.begun_ms);
    let pair = Pair::new(directory, R::PREFIX, latest.map_or(at_ms, |latest| at_ms.max(latest.saturating_add(1))));
    let create = |path: &Path| File::create_new(path).map_err(about(path));
    let records = BufWriter::new(create(&pair.records)?);
    let open = |index| Open { pair: pair.clone(), records, index, entries: Vec::new(), bytes: 0, tells_gap: false };
    if !R::IS_INDEXED {
        return Ok(open(None));
    }
    let index = File::create(pair.index()).and_then(|file| {
        let mut index = BufWriter::new(file);
        index.write_all(&Header::default().to_bytes())?;
        Ok(index)
    });
    match index {
        Ok(index) => Ok(open(Some(index))),
        Err(error) => {
            let _ = pair.delete();
            Err(Problem { path: pair.index(), error })
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::record::Protocol;
    use crate::record::tests::holding;
    use crate::search::{Question, who};

    /// N-044: each record that did not reach a full disk is counted once; attempts are seldom and leave no files; and what is
    /// missing is recorded when writing works again, and told to who asks about that time.
    #[test]
    fn what_a_full_disk_lost_is_counted_and_recorded() {
        for external in ["192.0.2.1", "2001:db8::1"] {
            let directory = TempDir::new().unwrap();
            let at = |ms: i64| Timestamp::from_millisecond(1_800_000_000_000 + ms).unwrap();
            let begin = |ms: i64, port| {
                let holding = holding(external, (port, port), Protocol::Udp, None);
                Record::Begin { at: at(ms), holding }
            };
            let mut writer = Writer::open(directory.path(), Limits::default(), at(0)).unwrap();
            writer.append(&begin(10, 1)).unwrap();
            writer.flush().unwrap();
            writer.open.as_mut().unwrap().records =
                BufWriter::new(File::options().write(true).open("/dev/full").unwrap());
            writer.append(&begin(20, 2)).unwrap();
            writer.append(&begin(30, 3)).unwrap();
            assert_eq!(writer.lost(), 0);
            let told = writer.flush().unwrap_err().to_string();
            assert_eq!(told.matches("No space left").count(), 1, "{told}");
            assert_eq!(writer.lost(), 2);
            for ms in 31..1000 {
                writer.append(&begin(ms, 4)).unwrap();
            }
            assert_eq!(writer.lost(), 971);
            assert_eq!(Pair::all(directory.path(), Record::PREFIX).unwrap().len(), 1);
            writer.append(&begin(30 + PAUSE_MS, 5)).unwrap();
            writer.flush().unwrap();
            assert_eq!(writer.lost(), 971);
            let ask = |port, ms| {
                let question =
                    Question { external: external.parse().unwrap(), port, protocol: None, remote: None, at: at(ms) };
                who(directory.path(), &question).unwrap()
            };
            let gap = Gap { from: at(20), until: at(999), count: 971 };
            for closed in [false, true] {
                assert_eq!((ask(1, 15).answers.len(), ask(1, 15).gaps), (1, vec![]), "closed: {closed}");
                assert_eq!((ask(2, 25).answers.len(), ask(2, 25).gaps), (0, vec![gap]));
                assert_eq!((ask(5, 9000).answers.len(), ask(5, 9000).gaps), (1, vec![gap]));
                writer.close().unwrap();
            }
            // Nothing is held over a start, and nothing is unknown after it.
            drop(writer);
            drop(Writer::<Record>::open(directory.path(), Limits::default(), at(10_000)).unwrap());
            assert_eq!((ask(5, 11_000).answers.len(), ask(5, 11_000).gaps), (0, vec![]));
            assert_eq!(ask(5, 9000).gaps, [gap]);
        }
    }

    /// A disk that is full from the start of a file leaves none.
    #[test]
    fn attempts_leave_no_files() {
        let directory = TempDir::new().unwrap();
        let at = |ms: i64| Timestamp::from_millisecond(1_800_000_000_000 + ms).unwrap();
        let record = |ms| Record::Begin { at: at(ms), holding: holding("192.0.2.1", (1, 1), Protocol::Tcp, None) };
        let mut writer = Writer::open(directory.path(), Limits::default(), at(0)).unwrap();
        writer.close().unwrap();
        for attempt in 1..10 {
            let ms = attempt * (PAUSE_MS + 1);
            writer.begin(at(ms).as_millisecond()).unwrap();
            writer.open.as_mut().unwrap().records =
                BufWriter::new(File::options().write(true).open("/dev/full").unwrap());
            writer.append(&record(ms)).unwrap();
            writer.flush().unwrap_err();
        }
        assert_eq!(Pair::all(directory.path(), Record::PREFIX).unwrap().len(), 1);
        assert_eq!((fs::read_dir(directory.path()).unwrap().count(), writer.lost()), (2, 9));
    }
}
