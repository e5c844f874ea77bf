//! Questions and their answers.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use jiff::Timestamp;

use crate::files::{IndexFile, Pair, Problem, about};
use crate::index::{Entry, Event, key, remote_hash};
use crate::record::{Gap, Holding, Kept, Protocol, Record, Remote};

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
    /// Records that are missing before the end of that moment, since the start before it, oldest first: who got a port
    /// meanwhile is not known, nor who gave one back.
    pub gaps: Vec<Gap>,
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
    let pairs = Pair::all(directory, Record::PREFIX)?;
    let mut entries: Vec<(Entry, usize)> = Vec::new();
    for (number, pair) in pairs.iter().enumerate() {
        collect(pair, question, |entry| entries.push((entry, number)))?;
    }
    entries.sort_by_key(|(entry, number)| (*number, entry.offset));
    let mut answers = Vec::new();
    for (held, until) in replay(&entries, question.at.as_millisecond()) {
        let (number, offset) = held.place;
        let Some(pair) = pairs.get(number) else { continue };
        let Some(Record::Begin { at, holding }) = read_at(pair, offset)? else { continue };
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
    let gaps = gaps(&pairs, &entries, question.at)?;
    Ok(Found { answers, reaches_back_to, gaps })
}

/// What is missing of what the answers for `at` rest on.
fn gaps(pairs: &[Pair], entries: &[(Entry, usize)], at: Timestamp) -> Result<Vec<Gap>, Problem> {
    let mut gaps = Vec::new();
    for (entry, number) in entries {
        match entry.event {
            Event::Start if entry.at_ms <= at.as_millisecond() => gaps.clear(),
            Event::Gap => {
                let Some(pair) = pairs.get(*number) else { continue };
                if let Some(Record::Gap { gap, .. }) = read_at(pair, entry.offset)?
                    && gap.from <= at
                {
                    gaps.push(gap);
                }
            }
            _ => {}
        }
    }
    Ok(gaps)
}

/// Every entry of one file that bears on the question, and every start and gap. An index that is missing, torn or not that
/// of its file is not believed: then the file itself is read, which takes longer.
fn collect(pair: &Pair, question: &Question, mut take: impl FnMut(Entry)) -> Result<(), Problem> {
    let path = pair.index();
    let key = key(question.external);
    let remote = question.remote.map(remote_hash);
    let bears = |entry: &Entry| {
        let of_all = matches!(entry.event, Event::Start | Event::Gap);
        let of_question = entry.key == key
            && (entry.first..=entry.last).contains(&question.port)
            && question.protocol.is_none_or(|protocol| protocol.number() == entry.protocol)
            && remote.is_none_or(|remote| entry.remote == 0 || entry.remote == remote);
        of_all || of_question
    };
    let mut found = Vec::new();
    let end = match IndexFile::open(&path) {
        Ok(index) => by_index(pair, &index, (key, question.port), bears, &mut found).map_err(about(&path))?,
        Err(_) => None,
    };
    let from = end.unwrap_or_else(|| {
        found.clear();
        0
    });
    found.into_iter().for_each(&mut take);
    let scanned = pair.scan(from, |entry| {
        if bears(&entry) {
            take(entry);
        }
    });
    match scanned {
        // Deleted meanwhile: then nothing in it can be asked for.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        scanned => scanned.map(drop).map_err(about(&pair.records)),
    }
}

/// Finds what `bears` on a question by the index, and returns how far into the file that reaches; `None`: this is not the
/// index of that file.
fn by_index(
    pair: &Pair,
    index: &IndexFile,
    (key, port): (u64, u16),
    bears: impl Fn(&Entry) -> bool,
    found: &mut Vec<Entry>,
) -> io::Result<Option<u64>> {
    let length = match std::fs::metadata(&pair.records) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(0)),
        metadata => metadata?.len(),
    };
    // Where the line of an entry ends, if that is what the file says.
    let is_so = |entry: &Entry| -> io::Result<Option<u64>> {
        let read = if u64::from(entry.offset) < length { pair.record_at(entry.offset)? } else { None };
        Ok(read.filter(|(record, _)| Entry::of(record, entry.offset) == *entry).map(|(_, end)| end))
    };
    let (mut end, mut first) = (0, None);
    let mut note = |entry: Entry| {
        if bears(&entry) {
            found.push(entry);
        }
    };
    if !index.header.sorted {
        let mut last = None;
        index.walk(0, |entry| {
            first = first.or(Some(entry));
            last = Some(entry);
            note(entry);
            true
        })?;
        if let Some(last) = last {
            let Some(reached) = is_so(&last)? else { return Ok(None) };
            end = reached;
        }
    } else {
        if !index.is_whole() || index.header.covered != length {
            return Ok(None);
        }
        end = length;
        // Starts and gaps have the least key.
        index.walk(0, |entry| {
            first = first.or(Some(entry));
            let of_all = entry.key == 0;
            if of_all {
                note(entry);
            }
            of_all
        })?;
        let at = (key, port.saturating_sub(index.header.reach));
        let Some(from) = partition_point(index, |entry| (entry.key, entry.first) < at)? else { return Ok(None) };
        index.walk(from, |entry| {
            if entry.key == key {
                note(entry);
            }
            (entry.key, entry.first) <= (key, port)
        })?;
        let last = index.length.checked_sub(1).map(|place| index.entry(place)).transpose()?;
        if let Some(last) = last
            && !matches!(last, Some(last) if is_so(&last)?.is_some())
        {
            return Ok(None);
        }
    }
    if first.is_none() && length > 0 && index.header.sorted {
        return Ok(None);
    }
    for entry in first.iter().chain(found.iter()) {
        if is_so(entry)?.is_none() {
            return Ok(None);
        }
    }
    Ok(Some(end))
}

/// The first place of a sorted index whose entry is not `below`; `None`: it is not sorted, or has entries of no kind.
fn partition_point(index: &IndexFile, below: impl Fn(&Entry) -> bool) -> io::Result<Option<u64>> {
    let (mut from, mut to) = (0, index.length);
    let (mut least, mut most) = (None, None);
    while from < to {
        let middle = from + (to - from) / 2;
        let Some(entry) = index.entry(middle)? else { return Ok(None) };
        if least.is_some_and(|least| entry < least) || most.is_some_and(|most| entry > most) {
            return Ok(None);
        }
        if below(&entry) {
            (from, least) = (middle + 1, Some(entry));
        } else {
            (to, most) = (middle, Some(entry));
        }
    }
    Ok(Some(from))
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
            Event::Gap => {}
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
fn read_at(pair: &Pair, offset: u32) -> Result<Option<Record>, Problem> {
    match pair.record_at(offset) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(|read| read.map(|(record, _)| record)).map_err(about(&pair.records)),
    }
}

#[cfg(test)]
mod tests;
