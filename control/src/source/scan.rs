//! What is in a directory, and what became of it since the last look.
//!
//! Owns the rules that make files a trustworthy source: a broken or empty file keeps the objects it had, and so does
//! one in which an object is now of a kind that nobody reads; an object that no file has stays while some file may have
//! it hidden; an object in two files is taken from the first file by name; deleting more than half of the objects of a
//! kind waits for a person, and whatever else goes at once with it but objects that were never good. Refuses to know
//! when to look: [`super::directory`] does. Contents are not kept, only which file holds which object; when the first
//! of two files goes, the second is read again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hashbrown::HashMap;

use super::manifest::{self, Content, MISSPELT, STRAY, Stranger, Suspect};
use super::nevergood::NeverGood;
use super::{Batch, Manifest, ObjectKey, ObjectKind};
use crate::problem::{Place, Problem, Severity};

/// File that confirms deletions that wait; removed when seen.
pub const CONFIRM_FILE: &str = "confirm-deletes";
/// Fewer deletions of a kind at once than this never wait.
pub const DELETES_HELD_MIN: usize = 3;
/// Largest file read, in bytes.
const FILE_BYTES_MAX: u64 = 512 << 20;
/// Portions of the first look end after the file that passes this, in bytes.
const PORTION_BYTES: u64 = 4 << 20;
/// A periodic look leaves a file alone that changed less than this ago: its writer may not be done, and will tell.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// Which files to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// The named ones, changed or not.
    At(BTreeSet<String>),
    /// All, reading those that differ from the last look. `settled`: leave those alone that changed just now.
    AtAll {
        /// Only files whose last change is a while ago.
        settled: bool,
    },
}

/// Identity of a file's content as far as the file system tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
    modified: (i64, i64),
}

#[derive(Debug, Default)]
struct Known {
    stamp: Option<Stamp>,
    /// Objects the file held when it was last good, with the place of each.
    objects: BTreeMap<ObjectKey, Place>,
    /// Objects of other kinds that it held then.
    strangers: BTreeSet<Stranger>,
    /// Documents that may be objects of ours.
    suspects: BTreeSet<Suspect>,
    /// Objects that it held, and in whose place there is one of a kind that is not read.
    retyped: BTreeMap<ObjectKey, Stranger>,
    /// Documents without identity and doubles, from the last good read.
    problems: Vec<Problem>,
    broken: Option<Problem>,
    ever_good: bool,
    /// Since the directory was first looked at something of it could not be read: what it held before this process
    /// began is unknown.
    doubtful: bool,
}

impl Known {
    /// Whether some document may be an object of ours that does not say so rightly.
    fn lacks_identity(&self) -> bool {
        !(self.suspects.is_empty() && self.retyped.is_empty())
    }
}

/// The directory as last seen.
#[derive(Debug)]
pub struct Scan {
    directory: PathBuf,
    files: BTreeMap<String, Known>,
    /// Files that hold an object; the first is the one it is taken from.
    holders: HashMap<ObjectKey, BTreeSet<String>>,
    /// Objects delivered and not deleted, with the file they came from.
    delivered: HashMap<ObjectKey, String>,
    /// Deletions that wait for confirmation.
    held: BTreeSet<ObjectKey>,
    /// Objects that no file has any more, while one may have them hidden.
    sheltered: BTreeSet<ObjectKey>,
    /// What stood in the place of objects in files that are gone, or came elsewhere as they went.
    displaced: BTreeMap<ObjectKey, Stranger>,
    /// Objects of other kinds that have come with what is looked at now.
    appeared: Vec<Stranger>,
    /// An object whose deletion always waits: everything hangs on it.
    guarded: Option<ObjectKey>,
    /// Objects whose deletion does not wait, unless nothing is left at all.
    never_good: NeverGood,
    /// Objects held by more than one file.
    contested: BTreeSet<ObjectKey>,
    /// Objects of other kinds that were there at the first look, and still are.
    initial: BTreeSet<Stranger>,
    trouble: Option<Problem>,
    complete: bool,
    first_look: bool,
}

/// Whether a file of that name is read.
pub fn is_manifest(name: &str) -> bool {
    let hidden = name.starts_with(['.', '#', '~']) || name.ends_with(['~', '#']);
    !hidden && [".yaml", ".yml", ".json"].iter().any(|ending| name.len() > ending.len() && name.ends_with(ending))
}

impl Scan {
    /// A directory not looked at yet.
    pub fn new(directory: &Path) -> Self {
        Scan {
            directory: directory.into(),
            files: BTreeMap::new(),
            holders: HashMap::new(),
            delivered: HashMap::new(),
            held: BTreeSet::new(),
            sheltered: BTreeSet::new(),
            displaced: BTreeMap::new(),
            appeared: Vec::new(),
            guarded: None,
            never_good: NeverGood::default(),
            contested: BTreeSet::new(),
            initial: BTreeSet::new(),
            trouble: None,
            complete: false,
            first_look: true,
        }
    }

    /// The same, where the deletion of the Node `own` always waits: it is this gateway, and without it nothing is served.
    #[must_use]
    pub fn guarding(mut self, own: &str) -> Self {
        self.guarded = Some(ObjectKey { kind: ObjectKind::Node, namespace: String::new(), name: own.into() });
        self
    }

    /// The same, where the deletion of what is in `never_good` does not wait.
    #[must_use]
    pub fn letting_go(self, never_good: NeverGood) -> Self {
        Scan { never_good, ..self }
    }

    /// Whether everything has been looked at once.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Looks, and tells what changed. Costs what is read; `AtAll` also one stat per file.
    pub fn look(&mut self, look: &Look) -> Batch {
        let mut batch = Batch::default();
        match self.names(look) {
            Ok(names) => {
                self.trouble = None;
                self.complete = true;
                self.take_in(names, &mut batch);
                let strangers = self.files.values().flat_map(|known| &known.strangers);
                match self.first_look {
                    true => self.initial = strangers.cloned().collect(),
                    false if self.initial.is_empty() => {}
                    false => {
                        let present: BTreeSet<&Stranger> = strangers.collect();
                        self.initial.retain(|stranger| present.contains(stranger));
                    }
                }
                self.first_look = false;
                self.let_go(&mut batch);
                self.confirm(&mut batch);
            }
            Err(error) => {
                let message = format!(
                    "cannot read the directory {}: {error}; keeping all objects as they are",
                    self.directory.display()
                );
                self.trouble = Some(Problem::new(Severity::Error, "SourceMissing", message));
            }
        }
        batch.complete = self.complete;
        batch.strangers = self.initial.clone();
        batch.unreadable = self.files.values().any(|known| known.doubtful);
        batch.problems = self.problems();
        batch
    }

    /// Looks for the first time, in portions that bound how much text is taken apart at once; only the last one is
    /// complete. False when `deliver` wants no more.
    pub fn look_first(&mut self, deliver: &mut dyn FnMut(Batch) -> bool) -> bool {
        let mut names = match self.names(&Look::AtAll { settled: false }) {
            Ok(names) => names,
            Err(_) => return deliver(self.look(&Look::AtAll { settled: false })),
        };
        loop {
            let mut portion = BTreeSet::new();
            let mut bytes = 0;
            while let Some(name) = names.pop_first() {
                bytes += fs::metadata(self.directory.join(&name)).map_or(0, |metadata| metadata.len());
                portion.insert(name);
                if bytes > PORTION_BYTES {
                    break;
                }
            }
            if names.is_empty() {
                // The rest, and whatever has come since.
                return deliver(self.look(&Look::AtAll { settled: false }));
            }
            let mut batch = Batch::default();
            self.take_in(portion, &mut batch);
            if !deliver(batch) {
                return false;
            }
        }
    }

    fn names(&self, look: &Look) -> io::Result<BTreeSet<String>> {
        let settled = match look {
            Look::At(names) if self.complete => {
                // A directory that is gone must not look like one whose files are gone.
                fs::read_dir(&self.directory)?;
                return Ok(names.iter().filter(|name| is_manifest(name)).cloned().collect());
            }
            Look::At(_) => false,
            Look::AtAll { settled } => *settled,
        };
        let mut names: BTreeSet<String> = self.files.keys().cloned().collect();
        for entry in fs::read_dir(&self.directory)? {
            let Ok(name) = entry?.file_name().into_string() else { continue };
            if is_manifest(&name) {
                names.insert(name);
            }
        }
        names.retain(|name| {
            let known = self.files.get(name).and_then(|known| known.stamp);
            match fs::metadata(self.directory.join(name)) {
                Ok(metadata) => known != Some(Stamp::of(&metadata)) && !(settled && is_fresh(&metadata)),
                Err(_) => true,
            }
        });
        Ok(names)
    }

    /// Reads files and settles every object they held or hold.
    fn take_in(&mut self, names: BTreeSet<String>, batch: &mut Batch) {
        let mut fresh: HashMap<(String, ObjectKey), Manifest> = HashMap::new();
        let mut read = BTreeSet::new();
        let mut touched: VecDeque<ObjectKey> = VecDeque::new();
        let mut settled: BTreeSet<ObjectKey> = BTreeSet::new();
        let mut gone: BTreeSet<ObjectKey> = BTreeSet::new();
        for name in names {
            touched.extend(self.read(&name, &mut fresh));
            read.insert(name);
        }
        // Whatever was read may be where they are hidden, or have been.
        touched.extend(std::mem::take(&mut self.sheltered));
        while let Some(key) = touched.pop_front() {
            if settled.contains(&key) {
                continue;
            }
            let holders = self.holders.get(&key);
            let Some(file) = holders.and_then(|holders| holders.first()).cloned() else {
                self.contested.remove(&key);
                if self.delivered.contains_key(&key) {
                    gone.insert(key.clone());
                }
                settled.insert(key);
                continue;
            };
            match holders.is_some_and(|holders| holders.len() > 1) {
                true => self.contested.insert(key.clone()),
                false => self.contested.remove(&key),
            };
            if let Some(manifest) = fresh.remove(&(file.clone(), key.clone())) {
                self.held.remove(&key);
                gone.remove(&key);
                self.delivered.insert(key.clone(), file);
                batch.applied.push(manifest);
            } else if self.delivered.get(&key) != Some(&file) && read.insert(file.clone()) {
                // The object is now taken from a file that was not read this time.
                touched.extend(self.read(&file, &mut fresh));
                touched.push_back(key);
                continue;
            }
            settled.insert(key);
        }
        let appeared = std::mem::take(&mut self.appeared);
        for key in &gone {
            if let Some(stranger) = appeared.iter().find(|stranger| stranger.is_almost(key)) {
                self.displaced.entry(key.clone()).or_insert_with(|| stranger.clone());
            }
        }
        (self.sheltered, gone) = gone.into_iter().partition(|key| self.hides(key).is_some());
        self.displaced.retain(|key, _| self.sheltered.contains(key));
        self.delete(gone, batch);
    }

    /// A file that may have this object without anybody seeing it: it cannot be read, or has something that may be it and
    /// does not say so rightly, or what stands in this object's place.
    fn hides(&self, key: &ObjectKey) -> Option<&String> {
        let displaced = self.displaced.get(key);
        let hides = |known: &Known| {
            known.broken.is_some()
                || known.suspects.iter().any(|suspect| suspect.may_be(key))
                || displaced.is_some_and(|stranger| known.strangers.contains(stranger))
        };
        self.files.iter().find(|(_, known)| hides(known)).map(|(name, _)| name)
    }

    /// Reads one file into `files` and `holders`; returns the objects it held before or holds now.
    fn read(&mut self, name: &str, fresh: &mut HashMap<(String, ObjectKey), Manifest>) -> BTreeSet<ObjectKey> {
        let mut known = self.files.remove(name).unwrap_or_default();
        let mut touched = BTreeSet::new();
        match read_file(&self.directory.join(name)) {
            // A link that leads nowhere is there.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    && fs::symlink_metadata(self.directory.join(name)).is_err() =>
            {
                self.displaced.append(&mut known.retyped);
                touched.extend(known.objects.into_keys());
                for key in &touched {
                    self.release(key, name);
                }
                return touched;
            }
            Err(error) => known.broken = Some(whole_file(name, &format!("cannot be read: {error}"))),
            Ok((stamp, text)) => {
                known.stamp = Some(stamp);
                match manifest::parse(name, &text) {
                    Err(problem) => known.broken = Some(*problem),
                    // What a writer leaves between opening and writing, or on a full disk; what it held before this process
                    // began nobody knows.
                    Ok(_)
                        if text.trim().is_empty()
                            && (self.first_look || known.doubtful || !known.objects.is_empty()) =>
                    {
                        let message = "is empty; to delete what it held, delete the file";
                        known.broken = Some(whole_file(name, message));
                    }
                    Ok(content) => touched = self.accept(name, content, &mut known, fresh),
                }
            }
        }
        let is_whole = known.broken.is_none() && !known.lacks_identity();
        known.doubtful = !is_whole && (known.doubtful || self.first_look);
        if let Some(problem) = &mut known.broken {
            let kept = match known.ever_good {
                true => format!("; its {} objects stay as they were", known.objects.len()),
                false => "; nothing of this file is applied".into(),
            };
            problem.message.push_str(&kept);
        }
        self.files.insert(name.into(), known);
        touched
    }

    fn accept(
        &mut self,
        name: &str,
        content: Content,
        known: &mut Known,
        fresh: &mut HashMap<(String, ObjectKey), Manifest>,
    ) -> BTreeSet<ObjectKey> {
        (known.broken, known.ever_good) = (None, true);
        (known.problems, known.suspects) = (content.nameless, content.suspects);
        let before = std::mem::take(&mut known.objects);
        let retyped_before = std::mem::take(&mut known.retyped);
        let strangers_before = std::mem::replace(&mut known.strangers, content.strangers.keys().cloned().collect());
        self.appeared.extend(known.strangers.difference(&strangers_before).cloned());
        for manifest in content.manifests {
            let Some(place) = manifest.place.clone() else { continue };
            if let Some(first) = known.objects.get(&manifest.key) {
                let message = format!("is defined twice in this file; the one in {first} is used");
                known
                    .problems
                    .push(Problem::new(Severity::Error, "DefinedTwice", message).at(&place).about(&manifest.key));
                continue;
            }
            known.objects.insert(manifest.key.clone(), place);
            fresh.insert((name.into(), manifest.key.clone()), manifest);
        }
        let mut touched: BTreeSet<ObjectKey> = known.objects.keys().cloned().collect();
        // What is nothing at all may be what is left of an object that this file had.
        let is_doubtful = known.lacks_identity() || known.problems.iter().any(|problem| problem.reason == STRAY);
        for (key, place) in before {
            if known.objects.contains_key(&key) {
                continue;
            }
            // One that stands there since before is another object; a new one is this object with another type.
            let in_its_place = |(stranger, _): &(&Stranger, &Place)| {
                !strangers_before.contains(*stranger) || retyped_before.get(&key) == Some(*stranger)
            };
            let stranger = of_its_name(&content.strangers, &key).find(in_its_place);
            if let Some((stranger, at)) = stranger {
                known.problems.push(retyped(&key, stranger, at));
                known.retyped.insert(key.clone(), stranger.clone());
                known.objects.insert(key, place);
            } else if is_doubtful {
                // It may be the very object that has lost its kind or name: keep it.
                known.objects.insert(key, place);
            } else {
                self.release(&key, name);
                touched.insert(key);
            }
        }
        for key in known.objects.keys() {
            self.holders.entry_ref(key).or_default().insert(name.into());
        }
        touched
    }

    fn release(&mut self, key: &ObjectKey, file: &str) {
        if let Some(holders) = self.holders.get_mut(key) {
            holders.remove(file);
            if holders.is_empty() {
                self.holders.remove(key);
            }
        }
    }

    /// Deletes, or holds all of it back when that is more than half of a kind, or everything there is: whatever took so much
    /// away, a mount that is gone or a copy that was cut off, may have taken the rest as well.
    /// What was never good neither waits nor counts, as long as anything is left.
    fn delete(&mut self, mut gone: BTreeSet<ObjectKey>, batch: &mut Batch) {
        self.held.extend(self.guarded.as_ref().and_then(|guarded| gone.take(guarded)));
        let never_good = self.never_good.all();
        let is_too_much = |kind: &ObjectKind| {
            let counts = |key: &&ObjectKey| key.kind == *kind && !never_good.contains(*key);
            let going = gone.iter().filter(counts).count();
            let waiting = going + self.held_by_number(*kind).count();
            let present = self.delivered.keys().filter(counts).count();
            going > 0 && waiting >= DELETES_HELD_MIN && waiting * 2 > present
        };
        if self.holders.is_empty() || ObjectKind::ALL.iter().any(is_too_much) {
            self.held.extend(gone);
            self.let_go(batch);
            return;
        }
        for key in gone {
            self.delivered.remove(&key);
            batch.deleted.push(key);
        }
    }

    /// Deletes what waits and was never good: whoever reads objects may say so after they went.
    fn let_go(&mut self, batch: &mut Batch) {
        if self.held.is_empty() || self.holders.is_empty() {
            return;
        }
        let mut never_good = self.never_good.all();
        if let Some(guarded) = &self.guarded {
            never_good.remove(guarded);
        }
        for key in never_good.intersection(&self.held) {
            self.delivered.remove(key);
            batch.deleted.push(key.clone());
        }
        self.held.retain(|key| !never_good.contains(key));
    }

    /// Deletions that wait because they are so many.
    fn held_by_number(&self, kind: ObjectKind) -> impl Iterator<Item = &ObjectKey> {
        self.held.iter().filter(move |key| key.kind == kind && self.guarded.as_ref() != Some(key))
    }

    fn confirm(&mut self, batch: &mut Batch) {
        let path = self.directory.join(CONFIRM_FILE);
        if !path.exists() {
            return;
        }
        if let Err(error) = fs::remove_file(&path) {
            let message = format!("cannot remove {}: {error}; deletions stay unconfirmed", path.display());
            self.trouble = Some(Problem::new(Severity::Error, "ConfirmationStuck", message));
            return;
        }
        batch.deletes_confirmed = true;
        for key in std::mem::take(&mut self.held) {
            self.delivered.remove(&key);
            batch.deleted.push(key);
        }
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self.trouble.iter().cloned().collect();
        let mut unknown: BTreeMap<&String, &String> = BTreeMap::new();
        for (name, known) in &self.files {
            problems.extend(known.broken.iter().chain(&known.problems).cloned());
            for stranger in &known.strangers {
                unknown.entry(&stranger.types).or_insert(name);
            }
        }
        for (kind, file) in unknown {
            problems.push(manifest::unread_kind(kind, file));
        }
        for key in &self.contested {
            problems.extend(self.contest(key));
        }
        if let Some(own) = self.guarded.as_ref().filter(|own| self.held.contains(*own)) {
            let message = format!(
                "this gateway's own Node is gone from {}: without it no Service can be served, so it stays until a file \
                 named {CONFIRM_FILE} is created there, or it comes back",
                self.directory.display()
            );
            problems.push(Problem::new(Severity::Error, "DeletesHeld", message).about(own));
        }
        let mut hidden: BTreeMap<&String, Vec<&ObjectKey>> = BTreeMap::new();
        for key in &self.sheltered {
            hidden.entry(self.hides(key).unwrap_or(&key.name)).or_default().push(key);
        }
        for (file, keys) in hidden {
            let (first, more) = (keys[0], if keys.len() > 1 { ", …" } else { "" });
            let message = format!(
                "{} objects ({first}{more}) are in no file any more and stay as they were, since {file} may have them: mend \
                 that file, or delete it too",
                keys.len(),
            );
            problems.push(Problem::new(Severity::Error, "DeletesHeld", message));
        }
        for kind in ObjectKind::ALL {
            let held: Vec<&ObjectKey> = self.held_by_number(kind).collect();
            let Some(first) = held.first() else { continue };
            let present = self.delivered.keys().filter(|key| key.kind == kind).count();
            let why = match held.len() >= DELETES_HELD_MIN && held.len() * 2 > present {
                true => "more than half",
                false => "at once with many others, or with all there was",
            };
            let message = format!(
                "{} of {present} objects of kind {kind} are gone from {} ({first}{}): {why}, so they stay until a file \
                 named {CONFIRM_FILE} is created there, or the objects come back",
                held.len(),
                self.directory.display(),
                if held.len() > 1 { ", …" } else { "" },
            );
            problems.push(Problem::new(Severity::Error, "DeletesHeld", message));
        }
        problems
    }

    fn contest(&self, key: &ObjectKey) -> Option<Problem> {
        let place = |file: &String| self.files.get(file)?.objects.get(key);
        let mut places = self.holders.get(key)?.iter().filter_map(place);
        let (first, second) = (places.next()?, places.next()?);
        let message = format!("is also defined in {first}, which is used because its file name comes first");
        Some(Problem::new(Severity::Error, "DefinedTwice", message).at(second).about(key))
    }
}

/// Objects of kinds that are not read, which would be `key` were they of its kind.
fn of_its_name<'a>(
    strangers: &'a BTreeMap<Stranger, Place>,
    key: &'a ObjectKey,
) -> impl Iterator<Item = (&'a Stranger, &'a Place)> {
    let first = Stranger { name: key.name.clone(), namespace: String::new(), types: String::new() };
    let of_the_name = strangers.range(first..).take_while(|(stranger, _)| stranger.name == key.name);
    of_the_name.filter(|(stranger, _)| stranger.is_like(key))
}

fn retyped(key: &ObjectKey, stranger: &Stranger, place: &Place) -> Problem {
    let message = format!(
        "is not read, and was {key} before, which stays as it was: to be that again it would have to be {}; to delete it, \
         delete this one too, or do so before you write this one",
        key.kind.type_words()
    );
    Problem::new(Severity::Warning, MISSPELT, message).at(place).about(format!("{} {}", stranger.types, stranger.name))
}

fn whole_file(name: &str, message: &str) -> Problem {
    Problem::new(Severity::Error, "Unreadable", message).at(&Place { file: name.into(), document: 1, line: 1 })
}

fn read_file(path: &Path) -> io::Result<(Stamp, String)> {
    // Before it is opened: to open a pipe is to wait for somebody who writes.
    let of_a_file = |metadata: Metadata| match metadata.is_file() {
        true => Ok(metadata),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    };
    of_a_file(fs::metadata(path)?)?;
    let file = File::open(path)?;
    let metadata = of_a_file(file.metadata()?)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    let invalid = |message: String| io::Error::new(io::ErrorKind::InvalidData, message);
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(invalid("it begins with the byte order mark of UTF-16; save it as UTF-8".into()));
    }
    let text = String::from_utf8(bytes).map_err(|error| invalid(format!("not UTF-8: {}", error.utf8_error())))?;
    Ok((Stamp::of(&metadata), text))
}

fn is_fresh(metadata: &Metadata) -> bool {
    let age = metadata.modified().ok().and_then(|modified| SystemTime::now().duration_since(modified).ok());
    age.is_some_and(|age| age < SETTLED_AFTER)
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Stamp {
            inode: metadata.ino(),
            bytes: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}
