//! Seats: who is connected, who goes when all seats are taken, and who has the say.
//!
//! Owns the count of connections and the one place of control. It refuses to know what is said.
//!
//! A socket's file mode decides who may connect, and one of them may have a program that opens connections and forgets
//! them. It must not keep control or a probe of health from being heard. So when every seat is taken, the one that has been
//! idle longest is cut off, those who have not even greeted first and those last who have waited for an answer for long, or
//! do not take it; control stays.
//!
//! One conversation at a time says what the dataplane is to do. A second control would mix its objects with those of the
//! first, each update of the one against the whole of the other; who is first stays. When it spoke last is remembered beyond
//! its end: the tables stay in force without control, so that nothing else would tell that it is gone or hangs.

use std::collections::BTreeMap;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tidegate_api::show::Control;

/// Connections at once. Control needs one and an operator a few; more is somebody's loop.
pub const SEATS_MAX: usize = 64;
/// Who has been idle for less than this is not cut off: a question may be on its way.
const IDLE_MIN: Duration = Duration::from_millis(200);
/// Who waits for an answer for less than this is not cut off: it is most likely on its way.
const ASKING_MIN: Duration = Duration::from_secs(5);
/// How long a new control waits for one before it that is about to go: it has died, and its last update is being compiled.
const HANDOVER: Duration = Duration::from_secs(5);

/// All seats. A clone is the same ones.
#[derive(Clone, Debug, Default)]
pub struct Seats(Arc<(Mutex<Taken>, Condvar)>);

#[derive(Debug)]
struct Taken {
    next: u64,
    seats: BTreeMap<u64, Place>,
    /// Who has the say, and its name.
    control: Option<(u64, String)>,
    /// When nobody had come yet.
    begun: Instant,
    /// When somebody who has the say was heard last, or last got through with what it had said.
    heard: Option<Instant>,
}

impl Default for Taken {
    fn default() -> Self {
        Taken { next: 0, seats: BTreeMap::new(), control: None, begun: Instant::now(), heard: None }
    }
}

#[derive(Debug)]
struct Place {
    /// To cut it off by.
    stream: UnixStream,
    stage: Stage,
    since: Instant,
}

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It has not greeted yet.
    Arrived,
    /// It has greeted, or been answered.
    Idle,
    /// It waits for an answer.
    Asking,
}

/// One seat; free again when dropped.
#[derive(Debug)]
pub struct Seat {
    seats: Seats,
    number: u64,
}

impl Seats {
    /// A seat for whoever is at the other end of `stream`.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub fn take(&self, stream: &UnixStream) -> Result<Seat, String> {
        let stream = stream.try_clone().map_err(|error| error.to_string())?;
        let mut taken = self.lock();
        if taken.seats.len() >= SEATS_MAX && !taken.cut_off_one() {
            return Err(format!("{SEATS_MAX} clients are connected already, and each waits for an answer"));
        }
        let number = taken.next;
        taken.next += 1;
        taken.seats.insert(number, Place { stream, stage: Stage::Arrived, since: Instant::now() });
        Ok(Seat { seats: self.clone(), number })
    }

    /// Who has the say, and how long ago it was heard.
    pub fn control(&self) -> Control {
        let taken = self.lock();
        let place = taken.control.as_ref().and_then(|(number, _)| taken.seats.get(number));
        let silent = match place {
            // What it has said is being done: it can say no more meanwhile.
            Some(place) if place.stage == Stage::Asking => Duration::ZERO,
            _ => taken.heard.unwrap_or(taken.begun).elapsed(),
        };
        Control {
            client: taken.control.as_ref().map(|(_, name)| name.clone()),
            has_spoken: taken.heard.is_some(),
            silent_ms: u64::try_from(silent.as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// Frees the seat of whoever is most idle.
    fn cut_off_one(&mut self) -> bool {
        let control = self.control.as_ref().map(|(number, _)| *number);
        let may_go = |(number, place): &(&u64, &Place)| {
            let patience = if place.stage == Stage::Asking { ASKING_MIN } else { IDLE_MIN };
            Some(**number) != control && place.since.elapsed() >= patience
        };
        let most_idle = self.seats.iter().filter(may_go).min_by_key(|(_, place)| (place.stage, place.since));
        let Some(number) = most_idle.map(|(number, _)| *number) else { return false };
        if let Some(place) = self.seats.remove(&number) {
            tracing::debug!("an idle client gives its seat to a new one");
            let _ = place.stream.shutdown(Shutdown::Both);
        }
        true
    }
}

impl Seat {
    /// Notes what the client does now.
    pub fn turn(&self, stage: Stage) {
        let (mut taken, now) = (self.seats.lock(), Instant::now());
        if let Some(place) = taken.seats.get_mut(&self.number) {
            (place.stage, place.since) = (stage, now);
        }
        let is_control = taken.control.as_ref().is_some_and(|(number, _)| *number == self.number);
        if is_control && stage == Stage::Idle {
            taken.heard = Some(now);
        }
    }

    /// Takes the say for the client `name`, unless another has it and keeps it.
    ///
    /// # Errors
    /// Who has it, for people.
    pub fn speak(&self, name: &str) -> Result<(), String> {
        let is_others = |taken: &mut Taken| taken.control.as_ref().is_some_and(|(number, _)| *number != self.number);
        let waited = self.seats.0.1.wait_timeout_while(self.seats.lock(), HANDOVER, is_others);
        let mut taken = waited.unwrap_or_else(PoisonError::into_inner).0;
        match &taken.control {
            Some((number, other)) if *number != self.number => Err(format!(
                "another control ({other}) tells this dataplane what to do, and stays the one that does; a gateway has one \
                 control: end one of the two"
            )),
            _ => {
                taken.control = Some((self.number, name.to_owned()));
                taken.heard = Some(Instant::now());
                Ok(())
            }
        }
    }

    /// Gives the say back.
    pub fn fall_silent(&self) {
        let mut taken = self.seats.lock();
        if taken.control.as_ref().is_some_and(|(number, _)| *number == self.number) {
            taken.control = None;
            self.seats.0.1.notify_all();
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.fall_silent();
        self.seats.lock().seats.remove(&self.number);
    }
}

/// A name that a client gave itself, fit for a log: no control characters, and not long.
pub fn tame(name: &str) -> String {
    const CHARS_MAX: usize = 64;
    let mut tamed: String = name.chars().take(CHARS_MAX).flat_map(char::escape_debug).collect();
    if name.chars().nth(CHARS_MAX).is_some() {
        tamed.push('…');
    }
    tamed
}

/// Reads with an end: however slowly the bytes come, all of them have to be there by then.
pub struct Until<'a> {
    stream: &'a UnixStream,
    deadline: Instant,
}

impl<'a> Until<'a> {
    /// From now on for `patience`.
    pub fn new(stream: &'a UnixStream, patience: Duration) -> Until<'a> {
        Until { stream, deadline: Instant::now() + patience }
    }
}

impl io::Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        (&mut &*self.stream).read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn guests(seats: &Seats, count: usize) -> Vec<(Seat, UnixStream)> {
        let guest = |_| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            theirs.set_nonblocking(true).unwrap();
            (seats.take(&ours).unwrap(), theirs)
        };
        (0..count).map(guest).collect()
    }

    fn is_cut(stream: &mut UnixStream) -> bool {
        matches!(stream.read(&mut [0]), Ok(0))
    }

    fn age(seats: &Seats, by: Duration) {
        seats.lock().seats.values_mut().for_each(|place| place.since -= by);
    }

    #[test]
    fn the_most_idle_goes_and_whoever_asks_or_controls_stays() {
        let seats = Seats::default();
        let mut guests = guests(&seats, SEATS_MAX);
        for (seat, _) in &guests[..SEATS_MAX - 1] {
            seat.turn(Stage::Idle);
        }
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let full = seats.take(&ours).unwrap_err();
        assert!(full.contains("connected already"), "all of them are fresh: {full}");
        age(&seats, Duration::from_secs(1));
        guests[0].0.speak("control").unwrap();
        guests[1].0.turn(Stage::Asking);
        age(&seats, Duration::from_secs(1));
        guests[2].0.turn(Stage::Idle);
        let new = seats.take(&ours).unwrap();
        assert!(is_cut(&mut guests[SEATS_MAX - 1].1), "who has not greeted goes first");
        let mut more = Vec::new();
        while let Ok(seat) = seats.take(&ours) {
            more.push(seat);
        }
        let cut: Vec<usize> = (0..SEATS_MAX).filter(|n| is_cut(&mut guests[*n].1)).collect();
        assert_eq!(cut, (3..SEATS_MAX).collect::<Vec<_>>());
        // Who does not take its answer goes too, in the end.
        more.iter().chain([&new]).for_each(|seat: &Seat| seat.turn(Stage::Asking));
        age(&seats, Duration::from_secs(3));
        guests[2].0.turn(Stage::Idle);
        assert!(seats.take(&ours).is_err());
        age(&seats, Duration::from_secs(3));
        let idle_goes = seats.take(&ours).unwrap();
        assert!(is_cut(&mut guests[2].1) && !is_cut(&mut guests[1].1), "the idle one before those who wait");
        let waiting_goes = seats.take(&ours).unwrap();
        assert!(is_cut(&mut guests[1].1));
        drop((more, new, idle_goes, waiting_goes));
        assert!(seats.take(&ours).is_ok(), "seats are given back");
    }

    #[test]
    fn one_has_the_say_until_it_goes() {
        let seats = Seats::default();
        let mut guests = guests(&seats, 2);
        let (second, _) = guests.pop().unwrap();
        let (first, _) = guests.pop().unwrap();
        first.speak("first 1.0").unwrap();
        first.speak("first 1.0").unwrap();
        // It goes while the second waits.
        let waiting = std::thread::spawn(move || {
            let said = second.speak("second");
            (second, said)
        });
        std::thread::sleep(Duration::from_millis(20));
        drop(first);
        let (second, said) = waiting.join().unwrap();
        said.unwrap();
        let third = guests_of(&seats);
        let refused = third.speak("third").unwrap_err();
        assert!(refused.contains("another control (second)"), "{refused}");
        second.fall_silent();
        third.speak("third").unwrap();
        drop(second);
        assert!(seats.lock().control.is_some(), "who has not the say takes it from nobody");
    }

    #[test]
    fn when_control_was_heard_is_known_beyond_its_end() {
        let seats = Seats::default();
        let back = |by: Duration| {
            let mut taken = seats.lock();
            taken.begun -= by;
            taken.heard = taken.heard.map(|at| at - by);
        };
        back(Duration::from_secs(7));
        let never = seats.control();
        assert!(never.client.is_none() && !never.has_spoken && never.silent_ms >= 7_000, "{never:?}");
        let (reader, control) = (guests_of(&seats), guests_of(&seats));
        control.turn(Stage::Asking);
        control.speak("control 1").unwrap();
        back(Duration::from_secs(100));
        assert_eq!(seats.control().silent_ms, 0, "what it said is being done");
        control.turn(Stage::Idle);
        back(Duration::from_secs(50));
        let quiet = seats.control();
        assert!(quiet.is_well() && (50_000..60_000).contains(&quiet.silent_ms), "{quiet:?}");
        // Whoever else asks something is not control.
        reader.turn(Stage::Idle);
        back(Duration::from_secs(11));
        let hangs = seats.control();
        assert!(!hangs.is_well() && hangs.client.as_deref() == Some("control 1"), "{hangs:?}");
        // The end of a connection is no word.
        control.turn(Stage::Asking);
        drop(control);
        let gone = seats.control();
        assert!(gone.client.is_none() && gone.has_spoken && gone.silent_ms >= 61_000, "{gone:?}");
    }

    fn guests_of(seats: &Seats) -> Seat {
        guests(seats, 1).pop().unwrap().0
    }

    #[test]
    fn names_are_tamed_and_slow_readers_end() {
        assert_eq!(tame("tidegate-control 0.1"), "tidegate-control 0.1");
        assert_eq!(tame("a\nb\u{1b}[31m"), "a\\nb\\u{1b}[31m");
        let long = tame(&"x".repeat(10_000));
        assert!(long.chars().count() == 65 && long.ends_with('…'), "{long}");
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut until = Until::new(&ours, Duration::ZERO);
        assert_eq!(until.read(&mut [0; 4]).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
