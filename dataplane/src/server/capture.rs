//! Captures: one conversation each, from "begun" to the tally.
//!
//! Owns the copies between workers and a client, and the end of a capture, however it comes: asked for, by a stream that
//! closes (also of a client that was killed), by a client that does not read. The client's thread takes copies from all
//! workers' rings every few milliseconds and writes them; while it is held up, workers leave packets out.

use std::io;
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use socket2::SockRef;
use tidegate_api::capture::{Begun, Fate, Packet, Tally, Wanted};
use tidegate_api::frame::{self, ReadError};
use tidegate_api::message::{Request, Response};
use tidegate_io::mem::now_ns;

use super::query::WorkerQuery;
use super::seats::{Seat, Stage};
use super::{Served, Voice, WRITE_TIMEOUT};
use crate::capture::{CAPTURES_MAX, Copied, Outcome, Rings, Tap};
use crate::counters::Event;
use crate::table::{DeviceId, Tables};

/// Packets of one message.
const PACKETS_PER_MESSAGE: usize = 128;
/// How long it is waited for the client's word between two looks at the rings.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// The same while packets come so fast that a ring would fill meanwhile.
const LOOK_OFTEN: Duration = Duration::from_millis(1);
/// Copies found at once that make it look often.
const MANY: usize = 64;

/// How many captures are under way, and the number of the next.
#[derive(Clone, Default)]
pub(super) struct Places(Arc<(AtomicUsize, AtomicU64)>);

/// One of them, given back when dropped.
struct Place(Places, u64);

impl Places {
    fn take(&self) -> Result<Place, String> {
        let (taken, next) = &*self.0;
        let room = |taken: usize| (taken < CAPTURES_MAX).then_some(taken + 1);
        match taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room) {
            Ok(_) => Ok(Place(self.clone(), next.fetch_add(1, Ordering::Relaxed))),
            Err(_) => {
                Err(format!("{CAPTURES_MAX} captures are under way, and more would cost too much; end one of them"))
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A capture that has begun; it ends at every worker when dropped.
struct Running<'s> {
    place: Place,
    workers: &'s dyn WorkerQuery,
    /// By number of the worker.
    rings: Vec<Arc<Rings>>,
}

impl Running<'_> {
    /// Ends it at every worker, and says what it came to.
    fn end(&mut self) -> Tally {
        let mut tally = Tally::default();
        for worker in 0..self.rings.len() {
            // One that does not answer finds out by itself that nobody takes its copies.
            if let Ok(Some(tap)) = self.workers.end_capture(worker, self.place.1) {
                tally.add(&tap.tally);
            }
        }
        tally
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

/// Captures until the client says that it is enough, or goes.
///
/// # Errors
/// When the client is gone or cannot be spoken to.
pub(super) fn run(
    wanted: &Wanted,
    stream: &mut UnixStream,
    voice: &Voice,
    served: &Served,
    seat: &Seat,
) -> io::Result<()> {
    let (tables, begun) = match begin(wanted, served) {
        Ok((tables, begun)) => (tables, begun),
        Err(message) => return voice.say(&Response::Error { message }),
    };
    let mut teller = Teller::new(tables, served);
    let mut running = begun;
    let workers = u32::try_from(running.rings.len()).unwrap_or(u32::MAX);
    voice.say(&Response::Capturing(Begun { devices: teller.devices.clone(), workers }))?;
    let mut patience = LOOK_EVERY;
    loop {
        seat.turn(Stage::Asking);
        let asks_for_end = heard(stream, patience, voice)?;
        let found = teller.pass_on(&running.rings, voice)?;
        if asks_for_end {
            break;
        }
        patience = if found >= MANY { LOOK_OFTEN } else { LOOK_EVERY };
    }
    let tally = running.end();
    teller.pass_on(&running.rings, voice)?;
    stream.set_read_timeout(None)?;
    voice.say(&Response::CaptureEnded(tally))
}

/// Has all workers begin.
fn begin<'s>(wanted: &Wanted, served: &'s Served) -> Result<(Tables, Running<'s>), String> {
    for (field, value) in [("snap_bytes", wanted.snap_bytes), ("rate_per_s", wanted.rate_per_s)] {
        if value == 0 {
            return Err(format!("{field} is 0, and at least 1 is needed"));
        }
    }
    let place = served.captures.take()?;
    let tables = served.compiler.view(None).map_err(|error| error.to_string())?.tables;
    let device = match &wanted.device {
        None => None,
        Some(name) => {
            let found = tables.devices.rows().find(|(_, row)| *row.name == **name);
            Some(found.ok_or_else(|| format!("{name} is no device of this gateway"))?.0)
        }
    };
    let workers = served.workers.as_ref();
    let mut running = Running { place, workers, rings: Vec::new() };
    for worker in 0..workers.workers_count() {
        let rings = Rings::new(wanted.snap_bytes as usize);
        let tap = Tap::new(running.place.1, wanted, device, Arc::clone(&rings)).map_err(|fault| fault.to_string())?;
        running.rings.push(rings);
        match workers.capture(worker, Box::new(tap)) {
            Ok(true) => {}
            Ok(false) => return Err(format!("worker {worker} has as many captures as it can have")),
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok((tables, running))
}

/// Waits so long for the client to speak. True: it asks for the end.
fn heard(stream: &mut UnixStream, patience: Duration, voice: &Voice) -> io::Result<bool> {
    stream.set_read_timeout(Some(patience))?;
    match SockRef::from(&*stream).peek(&mut [MaybeUninit::uninit()]) {
        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) => {}
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(false),
        Err(error) => return Err(error),
    }
    // It has begun a message, and has to end it.
    stream.set_read_timeout(Some(WRITE_TIMEOUT))?;
    match frame::read(stream) {
        Ok(Request::EndCapture {}) => return Ok(true),
        Ok(_) => voice.say(&Response::Error { message: "a capture is under way here: end it first".into() })?,
        Err(error @ ReadError::NotUnderstood(_)) => voice.say(&Response::Error { message: error.to_string() })?,
        Err(ReadError::Io(error)) => return Err(error),
        Err(error) => return Err(io::Error::other(error)),
    }
    Ok(false)
}

/// Makes packets to tell of copies: names instead of numbers, the day's time instead of the monotonic one.
struct Teller<'s> {
    served: &'s Served,
    tables: Tables,
    devices: Vec<String>,
    /// By place in `devices`.
    ids: Vec<DeviceId>,
    /// What to add to a monotonic time for nanoseconds since 1970.
    epoch_ns: u64,
}

impl<'s> Teller<'s> {
    fn new(tables: Tables, served: &'s Served) -> Teller<'s> {
        let (ids, devices) = tables.devices.rows().map(|(id, row)| (id, row.name.to_string())).unzip();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let epoch_ns = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX).saturating_sub(now_ns());
        Teller { served, tables, devices, ids, epoch_ns }
    }

    /// Writes what is in the rings; how many packets that were.
    fn pass_on(&mut self, rings: &[Arc<Rings>], voice: &Voice) -> io::Result<usize> {
        let mut found = 0;
        for (worker, rings) in (0..).zip(rings) {
            // No more than there is room for, so that one worker does not keep the others' waiting.
            let mut packets = Vec::new();
            for _ in 0..crate::capture::COPIES {
                let Some(copy) = rings.take() else { break };
                packets.push(self.packet(worker, &copy));
                rings.give_back(copy);
                found += 1;
                if packets.len() == PACKETS_PER_MESSAGE {
                    voice.say(&Response::Captured { packets: std::mem::take(&mut packets) })?;
                }
            }
            if !packets.is_empty() {
                voice.say(&Response::Captured { packets })?;
            }
        }
        Ok(found)
    }

    fn packet(&mut self, worker: u32, copy: &Copied) -> Packet {
        let told = &copy.told;
        // Numbers of Services are those of the tables that decided, or of younger ones: a number is not soon another's.
        if told.generation > self.tables.generation
            && let Ok(view) = self.served.compiler.view(None)
        {
            self.tables = view.tables;
        }
        let counted = Event::ALL.iter().filter(|event| told.counted >> (**event as u32) & 1 == 1);
        let device = self.ids.iter().position(|id| *id == copy.device).unwrap_or(usize::MAX);
        Packet {
            worker,
            number: told.number,
            at_ns: told.at_ns.saturating_add(self.epoch_ns),
            after: copy.after,
            device: u32::try_from(device).unwrap_or(u32::MAX),
            length: copy.length,
            bytes: copy.bytes.clone(),
            fate: fate(told.outcome),
            service: self.tables.services.row(told.service).map(|row| row.name.to_string()),
            counted: counted.map(|event| event.name().to_owned()).collect(),
            left_out: copy.left_out,
        }
    }
}

fn fate(outcome: Outcome) -> Fate {
    match outcome {
        Outcome::Sent(frames) => Fate::Sent { frames },
        Outcome::Held => Fate::Held,
        Outcome::Waits => Fate::Waits,
        Outcome::HandedOver => Fate::HandedOver,
        Outcome::Consumed => Fate::Consumed,
        Outcome::Released => Fate::Released,
        Outcome::Dropped(reason) => Fate::Dropped {
            reason: reason.name().to_owned(),
            stage: reason.stage().to_owned(),
            help: reason.help().to_owned(),
        },
    }
}
