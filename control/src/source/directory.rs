//! A watched directory of manifests.
//!
//! Owns *when* to look: after a completed write, a rename or a removal (inotify), gathered for a moment; and every
//! half minute as a safety net. A file that is still being written is left alone until its writer closes it. The
//! directory may be missing, come later, be replaced or go away: it is waited for, and nothing is concluded from its
//! absence. What the files mean is the business of [`super::scan`].

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use super::nevergood::NeverGood;
use super::scan::{CONFIRM_FILE, Look, Scan, is_manifest};
use super::{Deliver, Running, Source};
use crate::problem::{Problem, Severity};
use crate::watch::Dialect;

/// Changes are gathered until none came for this long …
const QUIET: Duration = Duration::from_millis(10);
/// … but not longer than this.
const GATHER_MAX: Duration = Duration::from_millis(200);
/// A look at everything, in case the kernel told us nothing.
const RESCAN_EVERY: Duration = Duration::from_secs(30);
/// How often a missing directory is looked for.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// The directory source.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
    own_node: Option<String>,
    never_good: NeverGood,
    rescan_every: Duration,
}

/// What wakes the watching thread.
enum Wake {
    /// A completed change of one file.
    File(String),
    /// Something that needs a look at everything.
    Everything,
    /// The directory itself was moved or removed.
    Moved,
    Stop,
}

impl Directory {
    /// The manifests in `path`.
    pub fn new(path: &Path) -> Self {
        Directory { path: path.into(), own_node: None, never_good: NeverGood::default(), rescan_every: RESCAN_EVERY }
    }

    /// The same, where the deletion of the Node `own` waits for a confirmation.
    #[must_use]
    pub fn guarding(mut self, own: &str) -> Self {
        self.own_node = Some(own.into());
        self
    }

    /// The same, where the deletion of what is in `never_good` does not wait for one.
    #[must_use]
    pub fn letting_go(self, never_good: NeverGood) -> Self {
        Directory { never_good, ..self }
    }
}

impl Source for Directory {
    fn dialect(&self) -> Dialect {
        Dialect::Files
    }

    fn start(self: Box<Self>, deliver: Deliver) -> std::io::Result<Running> {
        let (wake, woken) = channel();
        let stop = wake.clone();
        let thread = thread::Builder::new().name("source".into()).spawn(move || {
            let scan = Scan::new(&self.path).letting_go(self.never_good.clone());
            let scan = match &self.own_node {
                Some(own) => scan.guarding(own),
                None => scan,
            };
            Watching { directory: *self, scan, wake, woken, deliver }.run();
        })?;
        Ok(Running::new(move || drop(stop.send(Wake::Stop)), thread))
    }
}

struct Watching {
    directory: Directory,
    scan: Scan,
    wake: Sender<Wake>,
    woken: Receiver<Wake>,
    deliver: Deliver,
}

/// Why one watch ended.
enum End {
    Again,
    Stop,
}

impl Watching {
    fn run(mut self) {
        loop {
            let end = match self.watch() {
                // The watch stands before the first look, so that no change falls between them.
                Ok(watcher) => self.follow(watcher),
                Err(problem) => self.wait(*problem),
            };
            if matches!(end, End::Stop) {
                return;
            }
        }
    }

    fn watch(&self) -> Result<RecommendedWatcher, Box<Problem>> {
        let path = self.directory.path.clone();
        let wake = self.wake.clone();
        let failed = |error: notify::Error| {
            let message = format!("cannot watch the directory {}: {error}; waiting for it", path.display());
            Box::new(Problem::new(Severity::Error, "SourceMissing", message))
        };
        let root = path.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            for wanted in wakes(event, &root) {
                let _ = wake.send(wanted);
            }
        })
        .map_err(failed)?;
        watcher.watch(&path, RecursiveMode::NonRecursive).map_err(failed)?;
        Ok(watcher)
    }

    /// The directory cannot be watched: tell it, wait a moment.
    fn wait(&mut self, problem: Problem) -> End {
        let mut batch = self.scan.look(&Look::AtAll { settled: false });
        batch.problems.retain(|other| other.reason != problem.reason);
        batch.problems.insert(0, problem);
        if !(self.deliver)(batch) {
            return End::Stop;
        }
        match self.woken.recv_timeout(RETRY_EVERY) {
            Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => End::Stop,
            _ => End::Again,
        }
    }

    fn follow(&mut self, _watcher: RecommendedWatcher) -> End {
        let identity = identity(&self.directory.path);
        let mut look = Look::AtAll { settled: false };
        loop {
            let wanted = match self.scan.is_complete() {
                true => (self.deliver)(self.scan.look(&look)),
                false => self.scan.look_first(&mut self.deliver),
            };
            if !wanted {
                return End::Stop;
            }
            if identity.is_none() || identity != self::identity(&self.directory.path) {
                thread::sleep(QUIET);
                return End::Again;
            }
            look = match self.woken.recv_timeout(self.directory.rescan_every) {
                Err(RecvTimeoutError::Timeout) => Look::AtAll { settled: true },
                Err(RecvTimeoutError::Disconnected) => return End::Stop,
                Ok(first) => match self.gather(first) {
                    Ok(look) => look,
                    Err(end) => return end,
                },
            };
        }
    }

    /// Collects what else happens in the next moment.
    fn gather(&self, first: Wake) -> Result<Look, End> {
        let begun = Instant::now();
        let mut names = BTreeSet::new();
        let mut everything = false;
        let mut next = Some(first);
        while let Some(wake) = next {
            match wake {
                Wake::Stop => return Err(End::Stop),
                Wake::Moved => return Err(End::Again),
                Wake::Everything => everything = true,
                Wake::File(name) => drop(names.insert(name)),
            }
            let left = GATHER_MAX.saturating_sub(begun.elapsed());
            next = self.woken.recv_timeout(QUIET.min(left)).ok();
        }
        Ok(if everything { Look::AtAll { settled: false } } else { Look::At(names) })
    }
}

/// What an event of the file system asks for; half-written files ask for nothing.
fn wakes(event: notify::Result<notify::Event>, root: &Path) -> Vec<Wake> {
    let event = match event {
        Ok(event) if !event.need_rescan() => event,
        _ => return vec![Wake::Everything], // events were lost
    };
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Modify(ModifyKind::Name(_))
        | EventKind::Remove(_) => {}
        _ => return Vec::new(),
    }
    let wake = |path: &PathBuf| {
        if path == root {
            return Some(Wake::Moved);
        }
        let name = path.file_name()?.to_str()?;
        match name {
            _ if is_manifest(name) || name == CONFIRM_FILE => Some(Wake::File(name.into())),
            // Directories that are swapped as a whole through a hidden link, as mounted ConfigMaps are.
            _ if name.starts_with("..") => Some(Wake::Everything),
            _ => None,
        }
    };
    event.paths.iter().filter_map(wake).collect()
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}
