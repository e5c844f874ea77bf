//! How long packets are at each stage: measured in few turns, whichever the one who turns the worker chooses.
//!
//! A turn that is measured runs the same code as the others, which pay a branch that is never taken at the end of each stage
//! of a batch. The time of a stage is that of all packets of the turn together; per packet it is an average, with which each
//! of them is counted. A turn whose packets are captured or told of to the exporter of flows does not count: copying them is
//! not what a packet costs.

/// Defines the stages with their names.
macro_rules! stages {
    ($($(#[doc = $help:literal])+ $variant:ident, $name:literal;)*) => {
        /// A part of a turn.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Stage {
            $($(#[doc = $help])+ $variant,)*
        }

        impl Stage {
            /// All of them, in the order of a turn.
            pub const ALL: &'static [Stage] = &[$(Stage::$variant,)*];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// Stable name, as shown.
            pub const fn name(self) -> &'static str {
                match self { $(Stage::$variant => $name,)* }
            }
        }
    };
}

stages! {
    /// Taking packets from other workers, and telling them of those that were handed to them.
    HandOver,   "hand_over";
    /// Taking frames out of receive rings, also those that had none.
    Receive,    "receive";
    /// Fetching and parsing headers, making keys.
    Parse,      "parse";
    /// Finding index lines and entries of flows.
    LookUp,     "look_up";
    /// Everything that is decided and written: prepared edits, or the walk of the stages of a new flow.
    Forward,    "forward";
    /// New tables, expiry, held packets, questions.
    Upkeep,     "upkeep";
    /// Frames into transmit rings, waking the kernel (in copy mode it sends meanwhile), frames back into fill rings.
    Transmit,   "transmit";
}

/// Upper ends of the buckets in nanoseconds per packet, included: from 4 ns to 33 µs, doubling. One more bucket is beyond.
pub const ENDS_NS: [u64; 14] = [4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768];
/// Buckets of a distribution.
pub const BUCKETS: usize = ENDS_NS.len() + 1;
const FIRST_LOG2: u32 = ENDS_NS[0].ilog2();
const _: () = assert!(ENDS_NS[ENDS_NS.len() - 1] == 1 << (FIRST_LOG2 as usize + ENDS_NS.len() - 1), "powers of two");

/// How long the packets of the measured turns were at one stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Time of all of them together, nanoseconds.
    pub time_ns: u64,
    /// Packets by the average of their turn: those of [`ENDS_NS`] in order, then those beyond.
    pub packets: [u64; BUCKETS],
}

impl Spent {
    /// Takes in so many packets, at least one, that took `time_ns` together.
    fn observe(&mut self, time_ns: u64, packets: u64) {
        let each_ns = time_ns.div_ceil(packets.max(1));
        let above = u64::BITS - each_ns.saturating_sub(1).leading_zeros();
        let bucket = (above.saturating_sub(FIRST_LOG2) as usize).min(BUCKETS - 1);
        self.time_ns += time_ns;
        if let Some(count) = self.packets.get_mut(bucket) {
            *count += packets;
        }
    }
}

/// The same of all stages. Kind: state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages([Spent; Stage::COUNT]);

impl Stages {
    /// Each with its name.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, Spent)> {
        Stage::ALL.iter().map(|stage| stage.name()).zip(self.0)
    }

    /// Takes in a turn of so many packets, at least one.
    fn observe(&mut self, spent_ns: &[Option<u64>; Stage::COUNT], packets: u64) {
        for (spent, time_ns) in self.0.iter_mut().zip(spent_ns) {
            if let Some(time_ns) = time_ns {
                spent.observe(*time_ns, packets);
            }
        }
    }
}

/// Readings of the clock at the beginning of a turn: the shortest distance says what a reading takes.
const READINGS: usize = 4;

/// What measures a turn, and what was measured. Kind: state.
#[derive(Default)]
pub(crate) struct Stopwatch {
    is_running: bool,
    dial: Option<Box<Dial>>,
}

/// The part of it that turns without measuring do not touch.
struct Dial {
    clock: Box<dyn FnMut() -> u64 + Send>,
    last_ns: u64,
    /// What it takes to read the clock, which is part of every lap.
    reading_ns: u64,
    /// By stage; none: the turn was not at it.
    spent_ns: [Option<u64>; Stage::COUNT],
    stages: Stages,
}

impl Stopwatch {
    /// One that goes by `clock`, which tells nanoseconds.
    pub fn new(clock: impl FnMut() -> u64 + Send + 'static) -> Stopwatch {
        let (spent_ns, stages) = ([None; Stage::COUNT], Stages::default());
        let dial = Dial { clock: Box::new(clock), last_ns: 0, reading_ns: 0, spent_ns, stages };
        Stopwatch { is_running: false, dial: Some(Box::new(dial)) }
    }

    /// A turn begins that is to be measured.
    pub fn start(&mut self) {
        let Some(dial) = &mut self.dial else { return };
        let read = [(); READINGS].map(|()| (dial.clock)());
        let distances = read.iter().zip(read.iter().skip(1)).map(|(earlier, later)| later.saturating_sub(*earlier));
        dial.reading_ns = distances.min().unwrap_or(0);
        (dial.last_ns, dial.spent_ns) = (read[READINGS - 1], [None; Stage::COUNT]);
        self.is_running = true;
    }

    /// What went by since the last lap was spent at `stage`, if the turn is measured.
    #[inline(always)]
    pub fn lap(&mut self, stage: Stage) {
        if self.is_running {
            self.take(stage);
        }
    }

    #[cold]
    #[inline(never)]
    fn take(&mut self, stage: Stage) {
        let Some(dial) = &mut self.dial else { return };
        let now_ns = (dial.clock)();
        let went_by = now_ns.saturating_sub(dial.last_ns).saturating_sub(dial.reading_ns);
        dial.last_ns = now_ns;
        if let Some(spent) = dial.spent_ns.get_mut(stage as usize) {
            *spent = Some(spent.unwrap_or(0) + went_by);
        }
    }

    /// The turn does something that others do not: it does not count.
    pub fn spoil(&mut self) {
        self.is_running = false;
    }

    /// The turn ends that was measured, with so many packets.
    pub fn stop(&mut self, packets: usize) {
        if let Some(dial) = &mut self.dial
            && std::mem::take(&mut self.is_running)
            && packets > 0
        {
            dial.stages.observe(&dial.spent_ns, packets as u64);
        }
    }

    /// What was measured so far.
    pub fn stages(&self) -> Stages {
        self.dial.as_ref().map(|dial| dial.stages).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(time_ns: u64, packets: u64) -> usize {
        let mut spent = Spent::default();
        spent.observe(time_ns, packets);
        assert_eq!((spent.time_ns, spent.packets.iter().sum::<u64>()), (time_ns, packets));
        spent.packets.iter().position(|count| *count > 0).unwrap()
    }

    #[test]
    fn a_packet_is_in_the_bucket_of_its_turns_average() {
        assert_eq!([0, 1, 4].map(|time| bucket(time, 1)), [0; 3]);
        for (index, end) in ENDS_NS.into_iter().enumerate() {
            assert_eq!([bucket(end, 1), bucket(end + 1, 1)], [index, index + 1]);
            assert_eq!([bucket(end * 64, 64), bucket(end * 64 + 1, 64)], [index, index + 1], "not rounded down");
        }
        assert_eq!(bucket(u64::MAX, 1), BUCKETS - 1);
    }

    #[test]
    fn reading_the_clock_is_not_counted() {
        let mut times = [100, 130, 155, 180, 280, 281, 381].into_iter().chain(1000..);
        let mut watch = Stopwatch::new(move || times.next().unwrap());
        watch.lap(Stage::Parse); // not measured yet: nobody reads the clock
        watch.start();
        [Stage::Receive, Stage::Parse, Stage::Receive].into_iter().for_each(|stage| watch.lap(stage));
        watch.stop(2);
        let told: Vec<_> = watch.stages().named().filter(|(_, spent)| *spent != Spent::default()).collect();
        let of = |time_ns, bucket: usize| {
            let mut packets = [0; BUCKETS];
            packets[bucket] = 2;
            Spent { time_ns, packets }
        };
        assert_eq!(told, [("receive", of(75 + 75, 5)), ("parse", of(0, 0))]);
        let before = watch.stages();
        for spoils in [false, true] {
            watch.start();
            watch.lap(Stage::Parse);
            if spoils {
                watch.spoil();
            }
            watch.stop(usize::from(spoils));
        }
        watch.stop(2);
        assert_eq!(watch.stages(), before, "neither turns without packets nor those that are spoilt");
    }

    #[test]
    fn without_a_clock_nothing_is_measured() {
        let mut watch = Stopwatch::default();
        watch.start();
        watch.lap(Stage::Parse);
        watch.stop(1);
        assert_eq!(watch.stages(), Stages::default());
    }
}
