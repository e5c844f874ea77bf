//! Accepted objects on disk, so that a restarted dataplane forwards before control has found it.
//!
//! Two files of JSON. `objects.json` has every object; it is replaced whole: written under another name, synced, renamed.
//! `objects.log` has what changed since, a line per change, so that saving costs what changed and not what exists. When
//! it has grown as long as the other, everything is written anew.
//!
//! The log's first line names the writing of `objects.json` that it follows. A log that follows another one (the process
//! ended between the two steps of writing everything) has nothing to add: whatever it tells is in the newer file. A
//! last line that was cut off is left out.
//!
//! A file that cannot be used is kept aside under another name and the dataplane starts empty: control sends everything
//! anyway, and a gateway that refuses to start is worse than one that waits.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::iter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, unbounded};
use serde::{Deserialize, Serialize};
use tidegate_api::resource::{Resource, ResourceKey};

use super::InForce;
use crate::kernel::saved::{self as machine, Machine};

/// Name of the file with every object inside the state directory.
pub const FILE_NAME: &str = "objects.json";
/// Name of the file with what changed since.
pub const LOG_NAME: &str = "objects.log";
/// Version of the files' layout.
const FORMAT: u32 = 2;
/// Bytes that the log may always have before everything is written anew.
const LOG_BYTES_MIN: u64 = 1 << 20;

#[derive(Serialize)]
struct Written<'a> {
    format: u32,
    writing: u64,
    resources: Vec<&'a Resource>,
}

#[derive(Deserialize)]
struct Read {
    format: u32,
    #[serde(default)]
    writing: u64,
    resources: Vec<Resource>,
}

/// A line of the log.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line<R, K> {
    /// The writing of `objects.json` that this log follows.
    Follows(u64),
    /// An object as it is now.
    Set(R),
    /// An object that is not there any more.
    Gone(K),
}

/// Writes `resources` to `directory`, all or nothing, and returns which writing it was and how many bytes long.
///
/// # Errors
/// What the system says; the file from before is then still there.
pub fn save(directory: &Path, resources: &[Arc<Resource>]) -> io::Result<(u64, u64)> {
    // A number that no earlier writing has: the standard library keys its hash with randomness of the system.
    let writing = RandomState::new().hash_one(resources.len()) | 1;
    let whole = Written { format: FORMAT, writing, resources: resources.iter().map(Arc::as_ref).collect() };
    let bytes = replace(directory, FILE_NAME, |buffer| Ok(serde_json::to_writer(buffer, &whole)?))?;
    Ok((writing, bytes))
}

/// Replaces the file `name` of `directory`, all or nothing, and returns how many bytes long it is.
///
/// # Errors
/// What the system or `write` says; the file from before is then still there.
pub(crate) fn replace(
    directory: &Path,
    name: &str,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<u64> {
    fs::create_dir_all(directory)?;
    let hidden = directory.join(format!("{name}.new"));
    let mut buffer = BufWriter::with_capacity(1 << 20, File::create(&hidden)?);
    write(&mut buffer)?;
    let file = buffer.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    let bytes = file.metadata()?.len();
    fs::rename(&hidden, directory.join(name))?;
    File::open(directory)?.sync_all()?;
    Ok(bytes)
}

/// Whether objects can be saved in `directory`, found out by writing there.
///
/// # Errors
/// What the system says.
pub fn try_out(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let hidden = directory.join(format!("{FILE_NAME}.new"));
    File::create(&hidden)?;
    fs::remove_file(&hidden)
}

/// The objects saved in `directory`; none when there is no file or it cannot be used.
pub fn load(directory: &Path) -> Vec<Resource> {
    let path = directory.join(FILE_NAME);
    match read(directory) {
        Ok(objects) => objects.unwrap_or_default(),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            put_aside(&path, &error.to_string());
            vec![]
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read the saved objects; starting without");
            vec![]
        }
    }
}

/// The same, if there is a file; nothing is moved or written.
///
/// # Errors
/// What the system says; `InvalidData` when the file is none of ours.
pub fn read(directory: &Path) -> io::Result<Option<Vec<Resource>>> {
    let bytes = match fs::read(directory.join(FILE_NAME)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    let read = serde_json::from_slice::<Read>(&bytes).map_err(|error| invalid(error.to_string()))?;
    if read.format != FORMAT {
        return Err(invalid(format!("format {} is not {FORMAT}", read.format)));
    }
    Ok(Some(follow(&directory.join(LOG_NAME), read)))
}

/// The objects of `read` with what the log at `path` says happened to them since.
fn follow(path: &Path, read: Read) -> Vec<Resource> {
    let Ok(log) = File::open(path) else { return read.resources };
    let mut lines = BufReader::new(log).split(b'\n').map_while(Result::ok);
    let mut line = || serde_json::from_slice::<Line<Resource, ResourceKey>>(&lines.next()?).map(Some).transpose();
    if !matches!(line(), Some(Ok(Line::Follows(writing))) if writing == read.writing) {
        return read.resources;
    }
    let mut objects: BTreeMap<ResourceKey, Resource> =
        read.resources.into_iter().map(|resource| (resource.key(), resource)).collect();
    while let Some(read) = line() {
        match read {
            Ok(Line::Set(resource)) => drop(objects.insert(resource.key(), resource)),
            Ok(Line::Gone(key)) => drop(objects.remove(&key)),
            Ok(Line::Follows(_)) => {}
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the end of the saved changes cannot be read and is left out");
                break;
            }
        }
    }
    objects.into_values().collect()
}

fn put_aside(path: &Path, reason: &str) {
    let aside = path.with_extension("json.unusable");
    let kept = fs::rename(path, &aside);
    tracing::warn!(
        path = %path.display(), reason, kept_as = %aside.display(), kept = kept.is_ok(),
        "the saved objects cannot be used; starting without"
    );
}

/// What is to be saved.
#[derive(Debug)]
enum Order {
    Objects(Vec<InForce>),
    Machine(Box<Machine>),
}

/// The thread that saves; it writes what it still has when dropped.
#[derive(Debug)]
pub struct Saver {
    queue: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Saver {
    /// Starts the thread for `directory`. `held` is every object in force.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(directory: PathBuf, held: Vec<Arc<Resource>>) -> io::Result<Self> {
        let (queue, orders) = unbounded();
        let held = held.into_iter().map(|resource| (resource.key(), resource)).collect();
        let run = move || Files { directory, held, log: None }.run(&orders);
        let thread = std::thread::Builder::new().name("saver".into()).spawn(run)?;
        Ok(Saver { queue: Some(queue), thread: Some(thread) })
    }

    /// Asks that `changes` be saved, each object named once. The caller does not wait.
    pub fn save(&self, changes: Vec<InForce>) {
        if let Some(queue) = &self.queue {
            let _ = queue.send(Order::Objects(changes));
        }
    }

    /// Asks that the machine be saved as it is now. The caller does not wait.
    pub fn save_machine(&self, machine: Machine) {
        if let Some(queue) = &self.queue {
            let _ = queue.send(Order::Machine(Box::new(machine)));
        }
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The two files and what they say.
struct Files {
    directory: PathBuf,
    held: HashMap<ResourceKey, Arc<Resource>>,
    /// `None`: everything has to be written.
    log: Option<Log>,
}

struct Log {
    file: File,
    bytes: u64,
    bytes_max: u64,
}

impl Files {
    fn run(mut self, orders: &Receiver<Order>) {
        while let Ok(first) = orders.recv() {
            let (mut changes, mut machine) = (Vec::new(), None);
            for order in iter::once(first).chain(orders.try_iter()) {
                match order {
                    Order::Objects(more) => changes.extend(more),
                    Order::Machine(now) => machine = Some(now),
                }
            }
            if !changes.is_empty()
                && let Err(error) = self.take(&changes)
            {
                self.log = None;
                tracing::warn!(directory = %self.directory.display(), %error, "cannot save the accepted objects");
            }
            if let Some(Err(error)) = machine.map(|machine| machine::save(&self.directory, &machine)) {
                tracing::warn!(directory = %self.directory.display(), %error, "cannot save how the machine is");
            }
        }
    }

    fn take(&mut self, changes: &[InForce]) -> io::Result<()> {
        for (key, resource) in changes {
            match resource {
                Some(resource) => drop(self.held.insert(key.clone(), Arc::clone(resource))),
                None => drop(self.held.remove(key)),
            }
        }
        let Some(log) = self.log.as_mut().filter(|log| log.bytes < log.bytes_max) else { return self.write_all() };
        let mut lines = Vec::new();
        for (key, resource) in changes {
            let line = resource.as_deref().map_or(Line::Gone(key), Line::Set);
            serde_json::to_writer(&mut lines, &line)?;
            lines.push(b'\n');
        }
        log.file.write_all(&lines)?;
        log.bytes += lines.len() as u64;
        log.file.sync_data()
    }

    fn write_all(&mut self) -> io::Result<()> {
        self.log = None;
        let mut all: Vec<_> = self.held.iter().collect();
        all.sort_unstable_by_key(|(key, _)| *key);
        let all: Vec<_> = all.into_iter().map(|(_, resource)| Arc::clone(resource)).collect();
        let (writing, bytes) = save(&self.directory, &all)?;
        let mut file = File::create(self.directory.join(LOG_NAME))?;
        let mut first = serde_json::to_vec(&Line::<&Resource, &ResourceKey>::Follows(writing))?;
        first.push(b'\n');
        file.write_all(&first)?;
        self.log = Some(Log { file, bytes: 0, bytes_max: bytes.max(LOG_BYTES_MIN) });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::tests::{backend, named, service};

    fn web(number: u8, version: u8) -> (ResourceKey, Option<Arc<Resource>>) {
        let address =
            if number.is_multiple_of(2) { format!("203.0.113.{number}") } else { format!("2001:db8:f::{number}") };
        let body = service(&[&address], 80, &[backend("10.244.1.5", 8080, u16::from(version))]);
        let resource = named(&format!("shop/web-{number}"), &version.to_string(), body);
        (resource.key(), Some(Arc::new(resource)))
    }

    fn saved(directory: &Path) -> Vec<(String, String)> {
        load(directory).into_iter().map(|resource| (resource.name, resource.version)).collect()
    }

    fn expected(list: &[(u8, u8)]) -> Vec<(String, String)> {
        list.iter().map(|(number, version)| (format!("shop/web-{number}"), version.to_string())).collect()
    }

    /// Saves each list of changes in a write of its own.
    fn run(directory: &Path, held: &[InForce], steps: Vec<Vec<InForce>>) {
        let held = held.iter().filter_map(|(key, resource)| Some((key.clone(), resource.clone()?))).collect();
        let mut files = Files { directory: directory.to_path_buf(), held, log: None };
        steps.iter().for_each(|changes| files.take(changes).unwrap());
    }

    #[test]
    fn changes_are_appended_and_loaded_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path();
        let gone = (web(2, 0).0, None);
        run(
            place,
            &[web(9, 1)],
            vec![vec![web(1, 1), web(2, 1)], vec![web(1, 2)], vec![gone, web(3, 1)], vec![web(1, 3)]],
        );
        assert_eq!(saved(place), expected(&[(1, 3), (3, 1), (9, 1)]));
        let whole = fs::read_to_string(place.join(FILE_NAME)).unwrap();
        assert!(whole.contains("web-2") && !whole.contains("web-3"), "what came later is in the log");
        let log = fs::read_to_string(place.join(LOG_NAME)).unwrap();
        assert_eq!(log.lines().count(), 5);

        // Cut anywhere, it says what it said up to there.
        let third = log.lines().take(3).map(|line| line.len() + 1).sum::<usize>();
        for cut in [third, third + 1, third + 20] {
            fs::write(place.join(LOG_NAME), &log[..cut]).unwrap();
            assert_eq!(saved(place), expected(&[(1, 2), (9, 1)]), "{cut}");
        }
        // A log of another writing has nothing to say, and neither has one without the file it follows.
        fs::write(place.join(LOG_NAME), log.replacen("follows\":", "follows\":1", 1)).unwrap();
        assert_eq!(saved(place), expected(&[(1, 1), (2, 1), (9, 1)]));
        fs::write(place.join(LOG_NAME), &log).unwrap();
        save(place, &[]).unwrap();
        assert_eq!(saved(place), []);
        fs::remove_file(place.join(FILE_NAME)).unwrap();
        assert_eq!(saved(place), []);
    }

    #[test]
    fn a_long_log_is_written_out() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path();
        let mut steps = vec![vec![web(1, 1)]];
        let line = serde_json::to_vec(&*web(2, 1).1.unwrap()).unwrap().len();
        let many = usize::try_from(LOG_BYTES_MIN).unwrap() / line + 1;
        steps.push((0..many).map(|_| web(2, 1)).collect());
        steps.push(vec![web(3, 1)]);
        run(place, &[], steps);
        assert_eq!(fs::read_to_string(place.join(LOG_NAME)).unwrap().lines().count(), 1);
        assert_eq!(saved(place), expected(&[(1, 1), (2, 1), (3, 1)]));
    }

    #[test]
    fn the_saver_writes_what_it_still_has_when_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("state");
        let saver = Saver::start(place.clone(), web(1, 1).1.into_iter().collect()).unwrap();
        saver.save(vec![web(2, 1)]);
        saver.save(vec![web(2, 2), web(3, 1)]);
        drop(saver);
        assert_eq!(saved(&place), expected(&[(1, 1), (2, 2), (3, 1)]));
        // The next process begins with what it finds.
        let held = load(&place).into_iter().map(Arc::new).collect();
        let saver = Saver::start(place.clone(), held).unwrap();
        saver.save(vec![(web(1, 1).0, None)]);
        drop(saver);
        assert_eq!(saved(&place), expected(&[(2, 2), (3, 1)]));
    }
}
