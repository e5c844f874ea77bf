//! Accepted objects on disk, so that a restarted dataplane forwards before control has found it.
//!
//! One JSON file, replaced whole: written under another name, synced, renamed. A reader finds the old one or the new one.
//! A file that cannot be used is kept aside under another name and the dataplane starts empty: control sends everything
//! anyway, and a gateway that refuses to start is worse than one that waits.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, unbounded};
use serde::{Deserialize, Serialize};
use tidegate_api::resource::Resource;

/// Name of the file inside the state directory.
pub const FILE_NAME: &str = "objects.json";
/// Version of the file's layout.
const FORMAT: u32 = 1;

#[derive(Serialize)]
struct Written<'a> {
    format: u32,
    resources: Vec<&'a Resource>,
}

#[derive(Deserialize)]
struct Read {
    format: u32,
    resources: Vec<Resource>,
}

/// Writes `resources` to `directory`, all or nothing.
///
/// # Errors
/// What the system says; the file from before is then still there.
pub fn save(directory: &Path, resources: &[Arc<Resource>]) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let hidden = directory.join(format!("{FILE_NAME}.new"));
    let mut file = File::create(&hidden)?;
    let whole = Written { format: FORMAT, resources: resources.iter().map(Arc::as_ref).collect() };
    file.write_all(&serde_json::to_vec(&whole)?)?;
    file.sync_all()?;
    fs::rename(&hidden, directory.join(FILE_NAME))?;
    File::open(directory)?.sync_all()
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
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return vec![],
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read the saved objects; starting without");
            return vec![];
        }
    };
    match serde_json::from_slice::<Read>(&bytes) {
        Ok(read) if read.format == FORMAT => read.resources,
        Ok(read) => {
            put_aside(&path, &format!("format {} is not {FORMAT}", read.format));
            vec![]
        }
        Err(error) => {
            put_aside(&path, &error.to_string());
            vec![]
        }
    }
}

fn put_aside(path: &Path, reason: &str) {
    let aside = path.with_extension("json.unusable");
    let kept = fs::rename(path, &aside);
    tracing::warn!(
        path = %path.display(), reason, kept_as = %aside.display(), kept = kept.is_ok(),
        "the saved objects cannot be used; starting without"
    );
}

/// The thread that saves; it writes what it still has when dropped.
#[derive(Debug)]
pub struct Saver {
    queue: Option<Sender<Vec<Arc<Resource>>>>,
    thread: Option<JoinHandle<()>>,
}

impl Saver {
    /// Starts the thread for `directory`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(directory: PathBuf) -> io::Result<Self> {
        let (queue, orders) = unbounded();
        let run = move || save_orders(&directory, &orders);
        let thread = std::thread::Builder::new().name("saver".into()).spawn(run)?;
        Ok(Saver { queue: Some(queue), thread: Some(thread) })
    }

    /// Asks that `resources` be saved; of several orders that wait, the newest is carried out. The caller does not wait.
    pub fn save(&self, resources: Vec<Arc<Resource>>) {
        if let Some(queue) = &self.queue {
            let _ = queue.send(resources);
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

fn save_orders(directory: &Path, orders: &Receiver<Vec<Arc<Resource>>>) {
    while let Ok(mut newest) = orders.recv() {
        while let Ok(newer) = orders.try_recv() {
            newest = newer;
        }
        if let Err(error) = save(directory, &newest) {
            tracing::warn!(directory = %directory.display(), %error, "cannot save the accepted objects");
        }
    }
}
