//! The files of a ledger.
//!
//! `<prefix>-<milliseconds since 1970>.jsonl` holds records from that moment on, `<prefix>-<…>.idx` beside it their entries,
//! where records of that sort have any. The prefix is the sort's: `nat` of who had which port.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::index::{ENTRY_BYTES, Entry, HEADER_BYTES, Header};
use crate::record::Record;

/// Why a ledger cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}", path.display())]
pub struct Problem {
    /// File or directory.
    pub path: PathBuf,
    /// What went wrong with it. A part of the text, and so no source of it.
    pub error: io::Error,
}

/// Names the path of an error.
pub fn about(path: &Path) -> impl FnOnce(io::Error) -> Problem + '_ {
    move |error| Problem { path: path.to_owned(), error }
}

/// One file of records and its index.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair {
    /// When its first record was written, milliseconds since 1970.
    pub begun_ms: i64,
    /// The records.
    pub records: PathBuf,
}

impl Pair {
    /// The pair that begins at that moment.
    pub fn new(directory: &Path, prefix: &str, begun_ms: i64) -> Self {
        Pair { begun_ms, records: directory.join(format!("{prefix}-{begun_ms}.jsonl")) }
    }

    /// The index.
    pub fn index(&self) -> PathBuf {
        self.records.with_extension("idx")
    }

    /// All pairs of a directory and prefix, oldest first.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn all(directory: &Path, prefix: &str) -> Result<Vec<Pair>, Problem> {
        let mut pairs = Vec::new();
        for entry in fs::read_dir(directory).map_err(about(directory))? {
            let entry = entry.map_err(about(directory))?;
            // A directory or a pipe of that name is somebody else's; to open a pipe would be to wait.
            if !entry.file_type().map_err(about(directory))?.is_file() {
                continue;
            }
            let name = entry.file_name();
            let begun_ms = name.to_str().and_then(|name| of(prefix, name)?.strip_suffix(".jsonl")?.parse().ok());
            pairs.extend(begun_ms.map(|begun_ms| Pair::new(directory, prefix, begun_ms)));
        }
        pairs.sort();
        Ok(pairs)
    }

    /// Makes the index of a closed file from its records, and puts it in place whole.
    ///
    /// # Errors
    /// When the records cannot be read or the index cannot be written.
    pub fn build_index(&self) -> Result<(), Problem> {
        let mut entries = Vec::new();
        let covered = self.scan(0, |entry| entries.push(entry)).map_err(about(&self.records))?;
        self.write_index(&mut entries, covered)
    }

    /// The entries of all records from the line that begins at `offset` on; returns where the file ends.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn scan(&self, mut offset: u64, mut take: impl FnMut(Entry)) -> io::Result<u64> {
        let mut file = File::open(&self.records)?;
        file.seek(SeekFrom::Start(offset))?;
        let (mut reader, mut line) = (BufReader::new(file), Vec::new());
        loop {
            line.clear();
            let length = reader.read_until(b'\n', &mut line)?;
            if length == 0 {
                return Ok(offset);
            }
            if let (Some(record), Ok(offset)) = (Record::read(&line), u32::try_from(offset)) {
                take(Entry::of(&record, offset));
            }
            offset += length as u64;
        }
    }

    /// The record whose line begins at `offset`, and where that line ends; `None`: there is none.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn record_at(&self, offset: u32) -> io::Result<Option<(Record, u64)>> {
        let mut file = File::open(&self.records)?;
        file.seek(SeekFrom::Start(offset.into()))?;
        let mut line = Vec::new();
        let length = BufReader::with_capacity(512, file).read_until(b'\n', &mut line)?;
        Ok(Record::read(&line).map(|record| (record, u64::from(offset) + length as u64)))
    }

    /// Sorts `entries` and makes them the index of the closed file, whose length is `covered`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_index(&self, entries: &mut [Entry], covered: u64) -> Result<(), Problem> {
        entries.sort_unstable();
        let reach = entries.iter().map(|entry| entry.last.saturating_sub(entry.first)).max().unwrap_or_default();
        let path = self.index();
        let new = path.with_extension("idx.new");
        let write = || {
            let mut out = io::BufWriter::new(File::create(&new)?);
            let count = u32::try_from(entries.len()).unwrap_or_default();
            out.write_all(&Header { sorted: true, reach, covered, count }.to_bytes())?;
            entries.iter().try_for_each(|entry| out.write_all(&entry.to_bytes()))?;
            out.into_inner().map_err(io::IntoInnerError::into_error)?;
            fs::rename(&new, &path)
        };
        write().map_err(about(&path))
    }

    /// Whether its index is there, sorted, and covers all of it.
    pub fn is_closed(&self) -> bool {
        let covers = || -> io::Result<bool> {
            let index = IndexFile::open(&self.index())?;
            Ok(index.header.sorted && index.is_whole() && index.header.covered == fs::metadata(&self.records)?.len())
        };
        covers().unwrap_or(false)
    }

    /// Deletes both files.
    ///
    /// # Errors
    /// When that is refused; that they are gone already is none.
    pub fn delete(&self) -> Result<(), Problem> {
        for path in [self.records.clone(), self.index()] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Problem { path, error }),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Whether a file name is that of an index which was not put in place.
pub fn is_leftover(name: &OsStr, prefix: &str) -> bool {
    name.to_str().and_then(|name| of(prefix, name)).is_some_and(|rest| rest.ends_with(".idx.new"))
}

/// What of a file name comes after its prefix.
fn of<'n>(prefix: &str, name: &'n str) -> Option<&'n str> {
    name.strip_prefix(prefix)?.strip_prefix('-')
}

/// An index, opened for reading.
#[derive(Debug)]
pub struct IndexFile {
    file: File,
    /// What it says of itself.
    pub header: Header,
    /// How many entries it has; a torn last one is not counted.
    pub length: u64,
}

impl IndexFile {
    /// Opens it.
    ///
    /// # Errors
    /// When it cannot be read, and when it is no index.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let mut bytes = [0; HEADER_BYTES];
        file.read_exact_at(&mut bytes, 0)?;
        let header = Header::from_bytes(&bytes)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "is no index of this version"))?;
        let length = (file.metadata()?.len() - HEADER_BYTES as u64) / ENTRY_BYTES as u64;
        Ok(IndexFile { file, header, length })
    }

    /// Whether it has all of its entries, as far as somebody counted them.
    pub fn is_whole(&self) -> bool {
        self.header.count == 0 || u64::from(self.header.count) == self.length
    }

    /// The entry in that place; `None`: of an unknown kind.
    pub fn entry(&self, place: u64) -> io::Result<Option<Entry>> {
        let mut bytes = [0; ENTRY_BYTES];
        self.file.read_exact_at(&mut bytes, byte_of(place))?;
        Ok(Entry::from_bytes(&bytes))
    }

    /// Every entry from that place on, until `take` says no.
    pub fn walk(&self, from: u64, mut take: impl FnMut(Entry) -> bool) -> io::Result<()> {
        const ENTRIES_AT_ONCE: usize = 128;
        let mut bytes = [0; ENTRIES_AT_ONCE * ENTRY_BYTES];
        let mut place = from;
        while place < self.length {
            let count = usize::try_from(self.length - place).unwrap_or(usize::MAX).min(ENTRIES_AT_ONCE);
            let (chunk, _) = bytes.split_at_mut(count * ENTRY_BYTES);
            self.file.read_exact_at(chunk, byte_of(place))?;
            let (entries, _) = chunk.as_chunks::<ENTRY_BYTES>();
            for entry in entries.iter().filter_map(Entry::from_bytes) {
                if !take(entry) {
                    return Ok(());
                }
            }
            place += count as u64;
        }
        Ok(())
    }
}

/// Where the entry in that place begins.
fn byte_of(place: u64) -> u64 {
    HEADER_BYTES as u64 + place * ENTRY_BYTES as u64
}
