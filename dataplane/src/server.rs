//! The contract socket: who may speak, and what is answered.
//!
//! One thread per connection, each with its own stream, so that whatever one client does (nonsense, silence, not reading)
//! is its own affair. Updates and questions go to the compiler's queue and come back as answers; rows are made on the
//! connection's thread. A client that has sent an update plays the part of control and is told, by a second thread,
//! which generation workers have reached and how Services are delivered. The server never speaks first to anybody else.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tidegate_api::frame::{self, ReadError};
use tidegate_api::listen::Listener;
use tidegate_api::message::{CONTRACT_VERSION, Request, Response};
use tidegate_api::resource::Kind;

use crate::compile::draft::Told;
use crate::compile::thread::{Applying, Handle};
use crate::gateways;
use crate::routes;

/// Questions that only workers can answer.
pub mod query;
/// The same, asked through mailboxes.
pub mod mailboxes;
/// Answers of the read side.
pub mod show;
/// What would become of a packet.
pub mod explain;
/// Packets before and after, as they pass.
mod capture;
/// Objects of an update that is still to come.
mod prepared;
/// Who is connected, and who has the say.
pub mod seats;
#[cfg(test)]
mod tests;

use prepared::Prepared;
use query::WorkerQuery;
use seats::{Seat, Seats, Stage, Until, tame};

/// A client that does not read for this long is cut off.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// A client has to greet within this time.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest greeting in bytes: nobody who has not greeted is listened to for more.
const HELLO_BYTES_MAX: u32 = 4096;
/// Updates of one client that may wait for their answers behind the one that is being compiled.
const UPDATES_AHEAD: usize = 1;
/// How often a waiting announcer looks whether its connection is still there.
const ANNOUNCE_CHECK: Duration = Duration::from_secs(1);

/// Whom the read side asks besides the compiler and the workers: who announces VIPs, and who has the say.
#[derive(Clone, Default)]
pub struct Announcers {
    /// On links, with other gateways.
    pub gateways: Option<gateways::Handle>,
    /// By route.
    pub routes: Option<routes::Handle>,
    /// Of the server whose clients these are.
    pub seats: Seats,
}

/// What every connection shares.
#[derive(Clone)]
struct Served {
    compiler: Handle,
    workers: Arc<dyn WorkerQuery>,
    announcers: Announcers,
    captures: capture::Places,
}

/// The listening thread; the socket file goes when it is dropped.
pub struct Server {
    stop: Arc<AtomicBool>,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Answers whoever comes, or has come, to `listener`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        listener: Listener,
        compiler: Handle,
        workers: Arc<dyn WorkerQuery>,
        announcers: Announcers,
    ) -> io::Result<Self> {
        let path = listener.path().to_path_buf();
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let served = Served { compiler, workers, announcers, captures: capture::Places::default() };
        let run = move || listen(&listener, &seen, &served);
        let thread = std::thread::Builder::new().name("contract".into()).spawn(run)?;
        Ok(Server { stop, path, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Accepting has no timeout: one more visitor ends it.
        let woken = UnixStream::connect(&self.path).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            let _ = thread.join();
        }
    }
}

fn listen(listener: &Listener, stop: &AtomicBool, served: &Served) {
    loop {
        let accepted = listener.accept();
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a client");
                std::thread::sleep(Duration::from_millis(100)); // out of descriptors, most likely
                continue;
            }
        };
        let served = served.clone();
        let seat = match served.announcers.seats.take(&stream) {
            Ok(seat) => seat,
            Err(reason) => {
                refuse(stream, &reason);
                continue;
            }
        };
        let spawned = std::thread::Builder::new().name("client".into()).spawn(move || converse(stream, &served, &seat));
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread for a client");
        }
    }
}

fn refuse(mut stream: UnixStream, reason: &str) {
    let _ = stream.set_write_timeout(Some(Duration::from_millis(100)));
    let _ = frame::write(&mut stream, &Response::Error { message: reason.to_owned() });
}

/// The writing half of a connection and what has been announced on it. Two threads write.
struct Voice {
    stream: Mutex<(UnixStream, u64)>,
    closed: AtomicBool,
}

impl Voice {
    fn lock(&self) -> MutexGuard<'_, (UnixStream, u64)> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, response: &Response) -> io::Result<()> {
        frame::write(&mut self.lock().0, response)
    }

    /// Says `Accepted`. The generation is announced after it, even if workers were faster.
    fn accept(&self, response: &Response, generation: u64) -> io::Result<()> {
        let mut voice = self.lock();
        voice.1 = voice.1.min(generation.saturating_sub(1));
        frame::write(&mut voice.0, response)
    }

    /// Says `Reached`, if that is news here.
    fn announce(&self, generation: u64) -> io::Result<()> {
        let mut voice = self.lock();
        if generation <= voice.1 {
            return Ok(());
        }
        voice.1 = generation;
        frame::write(&mut voice.0, &Response::Reached { generation })
    }

    fn announced(&self) -> u64 {
        self.lock().1
    }
}

/// One conversation, to its end.
fn converse(mut stream: UnixStream, served: &Served, seat: &Seat) {
    let (client, holds_services) = match greet(&mut stream, served) {
        Ok(greeted) => greeted,
        Err(reason) => {
            tracing::debug!(reason, "a client was turned away");
            return refuse(stream, &reason);
        }
    };
    let Ok(writing) = stream.try_clone() else { return };
    let voice = Arc::new(Voice { stream: Mutex::new((writing, 0)), closed: AtomicBool::new(false) });
    let mut announcer = None;
    let mut prepared = Prepared::for_one_that_holds(holds_services);
    let mut answerer: Option<Answerer> = None;
    loop {
        seat.turn(Stage::Idle);
        let heard = frame::read(&mut stream);
        seat.turn(Stage::Asking);
        if let Ok(Request::Prepare(_) | Request::Update(_)) = &heard
            && let Err(message) = seat.speak(&client)
        {
            tracing::warn!(client, "{message}");
            let _ = voice.say(&Response::Error { message });
            break;
        }
        let said = match heard {
            Ok(Request::Hello { .. }) => voice.say(&Response::Error { message: "greeted already".into() }),
            Ok(Request::Prepare(prepare)) => match prepared.take(prepare) {
                Ok(()) => Ok(()),
                Err(message) => {
                    tracing::warn!(client, "{message}");
                    let _ = voice.say(&Response::Error { message });
                    break;
                }
            },
            Ok(Request::Update(update)) => {
                announcer = announcer.or_else(|| announce(&voice, served));
                answerer = answerer.or_else(|| Answerer::start(&voice, served).ok());
                apply(prepared.complete(update), &voice, served, answerer.as_ref())
            }
            Ok(Request::Show(question)) => {
                let answer = show::answer(&question, &served.compiler, served.workers.as_ref(), &served.announcers);
                voice.say(&answer.map_or_else(|message| Response::Error { message }, Response::Shown))
            }
            Ok(Request::Explain(question)) => {
                let answer = explain::answer(&question, &served.compiler, served.workers.as_ref());
                voice.say(&answer.map_or_else(|message| Response::Error { message }, Response::Explained))
            }
            Ok(Request::Capture(wanted)) => capture::run(&wanted, &mut stream, &voice, served, seat),
            Ok(Request::EndCapture {}) => {
                voice.say(&Response::Error { message: "no capture is under way here".into() })
            }
            Ok(Request::Drain { draining }) => voice.say(&drain(draining, served)),
            Err(error @ ReadError::NotUnderstood(_)) => voice.say(&Response::Error { message: error.to_string() }),
            Err(error @ ReadError::TooLong(..)) => {
                let _ = voice.say(&Response::Error { message: error.to_string() });
                break;
            }
            Err(ReadError::Closed | ReadError::Io(_)) => break,
        };
        if let Err(error) = said {
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
                let seconds = WRITE_TIMEOUT.as_secs();
                tracing::warn!(client, "cut off: it took nothing of what it is told for {seconds} s");
            }
            break;
        }
    }
    // What it said last is in the compiler's queue, before anything its successor says.
    seat.fall_silent();
    voice.closed.store(true, Ordering::Relaxed);
    let _ = stream.shutdown(Shutdown::Both);
    served.compiler.wake();
    drop(answerer);
    if let Some(announcer) = announcer {
        let _ = JoinHandle::join(announcer);
    }
}

/// The first exchange of a conversation; who the client says it is, for logs, and whether there are Services already.
fn greet(stream: &mut UnixStream, served: &Served) -> Result<(String, bool), String> {
    let told = |error: io::Error| error.to_string();
    stream.set_write_timeout(Some(WRITE_TIMEOUT)).map_err(told)?;
    let client = match frame::read_within(&mut Until::new(stream, HELLO_TIMEOUT), HELLO_BYTES_MAX) {
        Ok(Request::Hello { contract: CONTRACT_VERSION, client }) => tame(&client),
        Ok(Request::Hello { contract, .. }) => {
            return Err(format!("contract version {contract} is not spoken here, {CONTRACT_VERSION} is"));
        }
        Ok(_) => return Err("a conversation begins with hello".into()),
        Err(error) => return Err(error.to_string()),
    };
    stream.set_read_timeout(None).map_err(told)?;
    let holdings = served.compiler.holdings().map_err(|error| error.to_string())?;
    tracing::debug!(client, "connected");
    let welcome = Response::Welcome {
        contract: CONTRACT_VERSION,
        server: concat!("tidegate-dataplane ", env!("CARGO_PKG_VERSION")).into(),
        holds: holdings.versions(),
        reached: holdings.reached,
        prepares: true,
    };
    frame::write(stream, &welcome).map_err(told)?;
    Ok((client, holdings.objects.iter().any(|resource| resource.body.kind() == Kind::Service)))
}

/// Who may speak here at all may do this too: the socket's mode decides.
fn drain(draining: bool, served: &Served) -> Response {
    match &served.announcers.gateways {
        Some(gateways) => {
            tracing::info!(draining, "asked to drain, or not to");
            gateways.drain(draining);
            Response::Draining { draining }
        }
        None => Response::Error { message: "nothing is announced here".into() },
    }
}

/// Has an update applied; the answer is the answerer's business, so that the next update can be read meanwhile.
fn apply(told: Told, voice: &Voice, served: &Served, answerer: Option<&Answerer>) -> io::Result<()> {
    match served.compiler.begin(told) {
        Ok(applying) => match answerer.and_then(|answerer| answerer.pending.as_ref()) {
            Some(pending) => pending.send(applying).map_err(|_| io::ErrorKind::BrokenPipe.into()),
            None => accept(applying, voice, served),
        },
        Err(error) => voice.say(&Response::Error { message: error.to_string() }),
    }
}

/// Waits for what became of an update, and says it.
fn accept(applying: Applying, voice: &Voice, served: &Served) -> io::Result<()> {
    match applying.finish() {
        Ok(accepted) => {
            let generation = accepted.generation;
            voice.accept(&Response::Accepted(accepted), generation)?;
            // An update without news is in force already; nothing will wake the announcer for it.
            voice.announce(served.compiler.reached())
        }
        Err(error) => voice.say(&Response::Error { message: error.to_string() }),
    }
}

/// The thread that answers updates in their order. Dropping it waits until all are answered.
struct Answerer {
    pending: Option<SyncSender<Applying>>,
    thread: Option<JoinHandle<()>>,
}

impl Answerer {
    fn start(voice: &Arc<Voice>, served: &Served) -> io::Result<Answerer> {
        let (pending, answered) = sync_channel(UPDATES_AHEAD);
        let (voice, served) = (Arc::clone(voice), served.clone());
        let run = move || {
            for applying in answered {
                if accept(applying, &voice, &served).is_err() {
                    // The reading thread must not wait for a client that cannot be spoken to.
                    let _ = voice.lock().0.shutdown(Shutdown::Both);
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("answerer".into()).spawn(run)?;
        Ok(Answerer { pending: Some(pending), thread: Some(thread) })
    }
}

impl Drop for Answerer {
    fn drop(&mut self) {
        self.pending = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Starts the thread that tells this client what workers have reached.
fn announce(voice: &Arc<Voice>, served: &Served) -> Option<JoinHandle<()>> {
    let (voice, compiler) = (Arc::clone(voice), served.compiler.clone());
    let run = move || {
        let mut edition = 0;
        while !voice.closed.load(Ordering::Relaxed) {
            let reached = compiler.wait_news(voice.announced(), edition, ANNOUNCE_CHECK);
            let conflicts = compiler.conflicts(edition);
            let suspects = compiler.suspects(edition);
            let (services, newest) = compiler.deliveries(edition);
            edition = newest;
            let told = if services.is_empty() { Ok(()) } else { voice.say(&Response::Delivery { services }) };
            let told = told.and_then(|()| match conflicts {
                Some(addresses) => voice.say(&Response::Conflicts { addresses }),
                None => Ok(()),
            });
            let told = told.and_then(|()| match suspects {
                Some(nodes) => voice.say(&Response::Suspects { nodes }),
                None => Ok(()),
            });
            if voice.announce(reached).and(told).is_err() {
                // The reading thread must not wait for a client that cannot be spoken to.
                let _ = voice.lock().0.shutdown(Shutdown::Both);
                return;
            }
        }
    };
    std::thread::Builder::new().name("announcer".into()).spawn(run).ok()
}
