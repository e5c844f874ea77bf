//! The sockets at which the page is answered.
//!
//! Owns who may sit there. The port is open to whoever reaches the machine, and a scrape must come through all the same:
//! connections that have not asked yet give way to new ones, the oldest first, whether they are silent or send a byte a
//! second, and readers that do not read give way to those who ask next.
//!
//! The answering is plain sockets with deadlines: the small servers that need no runtime have none, and one reader that never
//! reads then keeps the page from everybody and the process from ending.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{CONTENT_TYPE, Collect, text};

/// Connections at once; one more, and the oldest that has not asked yet is closed.
const SEATS: usize = 64;
/// Questions answered at once: each costs whoever counts a moment.
const ANSWERS: usize = 8;
/// A reader that has taken nothing for so long gives way to the next question.
const STALLED_AFTER: Duration = Duration::from_millis(500);
/// Longest life of a connection.
const CONVERSATION_MAX: Duration = Duration::from_secs(5);
/// Longest question in bytes.
const REQUEST_BYTES_MAX: usize = 8192;
/// What is written at once, bytes.
const PART_BYTES: usize = 16_384;
/// What an answer is that is no page.
const PLAIN: &str = "text/plain; charset=utf-8";
/// Pause after a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const _: () = assert!(ANSWERS < SEATS, "somebody has not asked yet wherever all seats are taken");

/// The threads that answer; they end when this is dropped.
pub struct Served {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Served {
    /// Answers `GET /metrics` at `address` with what `collect` says then. Few at once, one answer per connection, and little
    /// patience: whoever does not ask, or does not read, is nobody else's trouble.
    ///
    /// # Errors
    /// When nobody can listen there, or there is no thread.
    pub fn start(address: SocketAddr, collect: Collect) -> io::Result<Served> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let listen = move || listen(&listener, &seen, &collect);
        let thread = std::thread::Builder::new().name("metrics".into()).spawn(listen)?;
        Ok(Served { stop, thread: Some(thread), address })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Accepting has no timeout: one more visitor ends it.
        let woken = TcpStream::connect_timeout(&self.address, CONVERSATION_MAX).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            let _ = thread.join();
        }
    }
}

fn listen(listener: &TcpListener, stop: &AtomicBool, collect: &Collect) {
    let room = Arc::new(Room::default());
    loop {
        let accepted = listener.accept();
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let Ok((stream, _)) = accepted else {
            std::thread::sleep(ACCEPT_PAUSE); // out of descriptors, most likely
            continue;
        };
        let (seat, collect) = (Seat::take(&room, stream), Arc::clone(collect));
        let converse = move || {
            if let Err(error) = converse(&seat, &collect) {
                tracing::debug!(%error, "a question for metrics was not answered");
            }
        };
        if let Err(error) = std::thread::Builder::new().name("metrics-answer".into()).spawn(converse) {
            tracing::warn!(%error, "no thread for a question for metrics");
        }
    }
}

/// Who sits there, in the order in which they came.
#[derive(Default)]
struct Room {
    guests: Mutex<Vec<Guest>>,
    /// Numbers given out.
    given: AtomicU64,
}

struct Guest {
    number: u64,
    stream: Arc<TcpStream>,
    /// When the last part of an answer went; `None`: not asked yet.
    answered: Option<Instant>,
}

impl Guest {
    /// Its thread hears of the end at once.
    fn dismiss(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Room {
    fn guests(&self) -> MutexGuard<'_, Vec<Guest>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one connection, free again when this is dropped.
struct Seat {
    room: Arc<Room>,
    number: u64,
    stream: Arc<TcpStream>,
}

impl Seat {
    /// Seats a connection, if need be in the place of the oldest that has not asked.
    fn take(room: &Arc<Room>, stream: TcpStream) -> Seat {
        let stream = Arc::new(stream);
        let mut guests = room.guests();
        if guests.len() >= SEATS
            && let Some(oldest) = guests.iter().position(|guest| guest.answered.is_none())
        {
            guests.remove(oldest).dismiss();
        }
        let number = room.given.fetch_add(1, Ordering::Relaxed);
        guests.push(Guest { number, stream: Arc::clone(&stream), answered: None });
        drop(guests);
        Seat { room: Arc::clone(room), number, stream }
    }

    /// It has asked: whether it is answered now. False: as many are as may be, and read what they get; or the seat is
    /// another's by now.
    fn begin_answer(&self) -> bool {
        let mut guests = self.room.guests();
        let answered = |guest: &Guest| guest.answered;
        if guests.iter().filter_map(answered).count() >= ANSWERS {
            let stalled = |guest: &Guest| answered(guest).is_some_and(|moved| moved.elapsed() >= STALLED_AFTER);
            let Some(first) = guests.iter().position(stalled) else { return false };
            guests.remove(first).dismiss();
        }
        let own = guests.iter_mut().find(|guest| guest.number == self.number);
        own.map(|own| own.answered = Some(Instant::now())).is_some()
    }

    /// Some of the answer has been taken.
    fn moved(&self) {
        if let Some(own) = self.room.guests().iter_mut().find(|guest| guest.number == self.number) {
            own.answered = Some(Instant::now());
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.room.guests().retain(|guest| guest.number != self.number);
    }
}

fn converse(seat: &Seat, collect: &Collect) -> io::Result<()> {
    let mut stream = &*seat.stream;
    let until = Instant::now() + CONVERSATION_MAX;
    let left = || until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
    let late = || io::Error::from(io::ErrorKind::TimedOut);
    let mut asked = Vec::new();
    while !asked.windows(4).any(|end| end == b"\r\n\r\n") {
        stream.set_read_timeout(Some(left().ok_or_else(late)?))?;
        let mut some = [0; 1024];
        let count = stream.read(&mut some)?;
        if count == 0 || asked.len() + count > REQUEST_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        asked.extend_from_slice(some.get(..count).unwrap_or_default());
    }
    let (status, kind, body) = match seat.begin_answer() {
        true => answer(&asked, collect),
        false => ("503 Service Unavailable", PLAIN, format!("{ANSWERS} others are being answered\n")),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    for part in [head.as_bytes(), body.as_bytes()].into_iter().flat_map(|all| all.chunks(PART_BYTES)) {
        let mut part = part;
        while !part.is_empty() {
            stream.set_write_timeout(Some(left().ok_or_else(late)?))?;
            let count = stream.write(part)?;
            part = part.get(count..).unwrap_or_default();
            seat.moved();
        }
    }
    Ok(())
}

/// Status, content type and body of the answer to a request.
fn answer(asked: &[u8], collect: &Collect) -> (&'static str, &'static str, String) {
    let line = String::from_utf8_lossy(asked.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
    let mut words = line.split_ascii_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    match (method, target.split('?').next().unwrap_or_default()) {
        ("GET", "/metrics") => match collect().and_then(|metrics| text(metrics).map_err(|error| error.to_string())) {
            Ok(page) => ("200 OK", CONTENT_TYPE, page),
            Err(told) => ("503 Service Unavailable", PLAIN, told + "\n"),
        },
        ("GET", _) => ("404 Not Found", PLAIN, "metrics are at /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", PLAIN, "only GET is answered\n".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::drops;
    use crate::{Kind, Metric};

    fn ask(at: SocketAddr, line: &str) -> String {
        let mut stream = TcpStream::connect(at).unwrap();
        write!(stream, "{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut told = String::new();
        stream.read_to_string(&mut told).unwrap();
        told
    }

    #[test]
    fn who_asks_and_never_reads_keeps_nobody_waiting() {
        // More than a pair of sockets holds.
        let mut large = Metric::new(Kind::Counter, "large", "Large");
        (0..4000).for_each(|n| large.add([("of", &format!("{n}{}", "x".repeat(4000)))], 1.0));
        let collect: Collect = Arc::new(move || Ok(vec![large.clone()]));
        let served = Served::start("127.0.0.1:0".parse().unwrap(), collect).unwrap();
        let at = served.address;
        let silent = TcpStream::connect(at).unwrap();
        let mut mute = TcpStream::connect(at).unwrap();
        mute.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(500));
        let (told, heard) = std::sync::mpsc::channel();
        std::thread::spawn(move || told.send(ask(at, "GET /metrics")));
        let page = heard.recv_timeout(std::time::Duration::from_secs(20)).unwrap();
        assert!(page.starts_with("HTTP/1.1 200"));
        let (told, heard) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            drop(served);
            told.send(())
        });
        heard.recv_timeout(std::time::Duration::from_secs(20)).expect("it ends all the same");
        drop((mute, silent));
    }

    #[test]
    fn the_page_is_made_anew_for_every_question_in_both_families() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let asked = Arc::new(std::sync::atomic::AtomicU64::new(0));
            let count = Arc::clone(&asked);
            let collect: Collect = Arc::new(move || match count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                2 => Err("worker 0 is stuck".into()),
                n => Ok(drops(n)),
            });
            let served = Served::start(address.parse().unwrap(), collect).unwrap();
            let at = served.address;
            let first = ask(at, "GET /metrics");
            assert!(first.starts_with("HTTP/1.1 200") && first.contains(CONTENT_TYPE), "{first}");
            assert!(first.contains("{reason=\"NoRoute\"} 0.0"), "{first}");
            assert!(ask(at, "GET /metrics?x=1").contains("{reason=\"NoRoute\"} 1.0"));
            let refused = ask(at, "GET /metrics");
            assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("worker 0 is stuck"), "{refused}");
            assert!(ask(at, "GET /").starts_with("HTTP/1.1 404"));
            assert!(ask(at, "POST /metrics").starts_with("HTTP/1.1 405"));
            drop(served);
            // Its listener closes a moment after it was told to.
            let closed = (0..500).any(|_| {
                std::thread::sleep(std::time::Duration::from_millis(10));
                TcpStream::connect(at).is_err()
            });
            assert!(closed, "it goes on listening");
        }
    }

    /// However many connect and never ask, in silence or a byte at a time, and however many ask and never read.
    #[test]
    fn a_scrape_takes_the_place_of_who_does_not_ask_or_read() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // More than a pair of sockets holds.
            let long = "x".repeat(16 << 20);
            let collect: Collect = Arc::new(move || {
                let mut large = Metric::new(Kind::Counter, "large", "Large");
                large.add([("of", &long)], 1.0);
                Ok(vec![large])
            });
            let served = Served::start(address.parse().unwrap(), collect).unwrap();
            let at = served.address;
            let slow: Vec<TcpStream> = (0..2 * SEATS).map(|_| TcpStream::connect(at).unwrap()).collect();
            let scrape = || {
                let begun = Instant::now();
                assert!(ask(at, "GET /metrics").starts_with("HTTP/1.1 200"));
                assert!(begun.elapsed() < CONVERSATION_MAX / 2, "{:?}", begun.elapsed());
            };
            for byte in b"GET /me" {
                // Of those that were closed it is no matter.
                slow.iter().for_each(|mut stream| drop(stream.write(&[*byte])));
                scrape();
            }
            let mute: Vec<TcpStream> = (0..ANSWERS)
                .map(|_| {
                    let mut stream = TcpStream::connect(at).unwrap();
                    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
                    stream
                })
                .collect();
            std::thread::sleep(2 * STALLED_AFTER);
            scrape();
            drop((slow, mute));
        }
    }

    #[test]
    fn seats_are_given_to_the_newest_and_kept_by_who_is_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let room = Arc::new(Room::default());
        let guest = || {
            let client = TcpStream::connect(at).unwrap();
            (Seat::take(&room, listener.accept().unwrap().0), client)
        };
        let (first, _first) = guest();
        assert!(first.begin_answer());
        let (second, mut closed) = guest();
        let others: Vec<_> = (0..SEATS - 1).map(|_| guest()).collect();
        assert_eq!(room.guests().len(), SEATS);
        assert_eq!(closed.read(&mut [0]).unwrap(), 0, "the oldest that had not asked");
        assert!(!second.begin_answer(), "its seat is another's");
        let answered = others.iter().filter(|(seat, _)| seat.begin_answer()).count();
        assert_eq!(answered, ANSWERS - 1);
        drop(first);
        assert!(others[ANSWERS].0.begin_answer());
        drop((others, second));
        assert!(room.guests().is_empty());
    }
}
