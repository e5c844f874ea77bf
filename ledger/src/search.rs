//! Questions and their answers.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::files::{IndexFile, Pair, Problem, about};
use crate::index::{Entry, Event, key, remote_hash};
use crate::record::{Holding, Protocol, Record, Remote};

/// Who is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The address that the outside saw.
    pub external: IpAddr,
    /// The port that the outside saw, or the identifier of an echo.
    pub port: u16,
    /// Of which protocol; `None`: of any.
    pub protocol: Option<Protocol>,
    /// Whom it was seen by; `None`: by anyone.
    pub remote: Option<Remote>,
    /// When.
    pub at: Timestamp,
}

/// Somebody who had the port then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Who had what.
    pub holding: Holding,
    /// Since when.
    pub since: Timestamp,
    /// Until when; `None`: still.
    pub until: Option<Timestamp>,
    /// It did not end: writing stopped, and when it began again nothing was held.
    pub cut_short: bool,
}

/// What a ledger knows about a question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Everyone who had the port then, in the order in which they got it.
    pub answers: Vec<Answer>,
    /// Since when the ledger has records; `None`: it has none.
    pub reaches_back_to: Option<Timestamp>,
}

/// One entry, and the file that its record is in.
type Place = (usize, u32);

/// When it was handed out, where that stands, and what its record says.
#[derive(Clone, Copy)]
struct Held {
    since_ms: i64,
    place: Place,
}

/// Answers `question` from the ledger in `directory`, also while it is written.
///
/// # Errors
/// When the directory or one of its files cannot be read.
pub fn who(directory: &Path, question: &Question) -> Result<Found, Problem> {
    let pairs = Pair::all(directory)?;
    let mut entries: Vec<(Entry, usize)> = Vec::new();
    for (number, pair) in pairs.iter().enumerate() {
        collect(pair, question, |entry| entries.push((entry, number)))?;
    }
    entries.sort_by_key(|(entry, number)| (*number, entry.offset));
    let mut answers = Vec::new();
    for (held, until) in replay(&entries, question.at.as_millisecond()) {
        let (number, offset) = held.place;
        let Some(pair) = pairs.get(number) else { continue };
        let Some(Record::Begin { at, holding }) = read_at(&pair.records, offset)? else { continue };
        // Hashes may collide; what was written does not.
        let asked = holding.external == question.external
            && question.remote.is_none_or(|remote| holding.remote.is_none_or(|of| of == remote));
        if asked {
            let end = until.and_then(|(ms, _)| Timestamp::from_millisecond(ms).ok());
            let cut_short = until.is_some_and(|(_, cut_short)| cut_short);
            answers.push(Answer { holding, since: at, until: end, cut_short });
        }
    }
    answers.sort_by_key(|answer| answer.since);
    let reaches_back_to = pairs.first().and_then(|pair| Timestamp::from_millisecond(pair.begun_ms).ok());
    Ok(Found { answers, reaches_back_to })
}

/// Every entry of one file that bears on the question, and every start.
fn collect(pair: &Pair, question: &Question, mut take: impl FnMut(Entry)) -> Result<(), Problem> {
    let path = pair.index();
    let index = match IndexFile::open(&path) {
        Ok(index) => index,
        // Deleted meanwhile, or created this very moment: then nothing in it can be asked for.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) => return Ok(()),
        Err(error) => return Err(Problem { path, error }),
    };
    let key = key(question.external);
    let remote = question.remote.map(remote_hash);
    let bears = |entry: &Entry| {
        entry.key == key
            && (entry.first..=entry.last).contains(&question.port)
            && question.protocol.is_none_or(|protocol| protocol.number() == entry.protocol)
            && remote.is_none_or(|remote| entry.remote == 0 || entry.remote == remote)
    };
    let mut walk = || -> io::Result<()> {
        if !index.header.sorted {
            return index.walk(0, |entry| {
                if entry.event == Event::Start || bears(&entry) {
                    take(entry);
                }
                true
            });
        }
        // Starts have the least key.
        index.walk(0, |entry| {
            let is_start = entry.event == Event::Start;
            if is_start {
                take(entry);
            }
            is_start
        })?;
        let first = question.port.saturating_sub(index.header.reach);
        let from = partition_point(&index, |entry| (entry.key, entry.first) < (key, first))?;
        index.walk(from, |entry| {
            if bears(&entry) {
                take(entry);
            }
            (entry.key, entry.first) <= (key, question.port)
        })
    };
    walk().map_err(about(&path))
}

/// The first place of a sorted index whose entry is not `below`.
fn partition_point(index: &IndexFile, below: impl Fn(&Entry) -> bool) -> io::Result<u64> {
    let (mut from, mut to) = (0, index.length);
    while from < to {
        let middle = from + (to - from) / 2;
        match index.entry(middle)? {
            Some(entry) if !below(&entry) => to = middle,
            _ => from = middle + 1,
        }
    }
    Ok(from)
}

/// What was held at `at_ms`, and when it ended: by its own end, or (true) by a start.
fn replay(entries: &[(Entry, usize)], at_ms: i64) -> Vec<(Held, Option<(i64, bool)>)> {
    let mut open: BTreeMap<(u8, u16, u16, u32), Held> = BTreeMap::new();
    let mut found = Vec::new();
    let mut end = |held: Held, until: Option<(i64, bool)>| {
        if held.since_ms <= at_ms && until.is_none_or(|(ms, _)| at_ms < ms) {
            found.push((held, until));
        }
    };
    for (entry, number) in entries {
        let held = Held { since_ms: entry.at_ms, place: (*number, entry.offset) };
        let of = (entry.protocol, entry.first, entry.last, entry.remote);
        match entry.event {
            Event::Start => {
                for (_, before) in std::mem::take(&mut open) {
                    end(before, Some((entry.at_ms, true)));
                }
            }
            Event::Begin => {
                if let Some(before) = open.insert(of, held) {
                    end(before, Some((entry.at_ms, true)));
                }
            }
            Event::End => {
                if let Some(before) = open.remove(&of) {
                    end(before, Some((entry.at_ms, false)));
                }
            }
        }
    }
    open.into_values().for_each(|held| end(held, None));
    found
}

/// The record whose line begins at `offset`.
fn read_at(path: &PathBuf, offset: u32) -> Result<Option<Record>, Problem> {
    let read = || -> io::Result<Option<Record>> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(offset.into()))?;
        let mut line = Vec::new();
        BufReader::with_capacity(512, file).read_until(b'\n', &mut line)?;
        Ok(Record::read(&line))
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map_err(about(path)),
    }
}

#[cfg(test)]
mod tests;
