use std::fs;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::record::tests::holding;
use crate::write::{Limits, Writer};

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(1_800_000_000_000 + ms).unwrap()
}

fn question(external: &str, port: u16, ms: i64) -> Question {
    Question { external: external.parse().unwrap(), port, protocol: None, remote: None, at: at(ms) }
}

fn small() -> Limits {
    Limits { file_bytes_max: 600, ..Limits::default() }
}

/// N-044: whoever had a port is named from the block that was recorded, in the open file and in closed ones, both families.
#[test]
fn a_port_of_a_block_names_its_pod_now_and_then() {
    for external in ["192.0.2.1", "2001:db8::1"] {
        let directory = TempDir::new().unwrap();
        let mut writer = Writer::open(directory.path(), small(), at(0)).unwrap();
        let mut first = holding(external, (1024, 1151), Protocol::Udp, None);
        first.pod = "shop/first".into();
        let second = Holding { pod: "shop/second".into(), ..first.clone() };
        writer.append(&Record::Begin { at: at(10), holding: first.clone() }).unwrap();
        writer.append(&Record::End { at: at(20), holding: first.clone() }).unwrap();
        writer.append(&Record::Begin { at: at(30), holding: second.clone() }).unwrap();
        writer.flush().unwrap();
        let ask = |port, ms| who(directory.path(), &question(external, port, ms)).unwrap().answers;
        let named = |port, ms| ask(port, ms).into_iter().map(|answer| answer.holding.pod).collect::<Vec<_>>();
        for closed in [false, true] {
            assert_eq!(named(1100, 9), [""; 0], "closed: {closed}");
            assert_eq!(named(1024, 10), ["shop/first"]);
            assert_eq!(named(1151, 19), ["shop/first"]);
            assert_eq!(named(1100, 20), [""; 0], "it had been taken back");
            assert_eq!(named(1100, 1000), ["shop/second"]);
            assert_eq!(named(1152, 1000), [""; 0], "the next block");
            assert_eq!(named(1023, 1000), [""; 0]);
            assert_eq!(ask(1100, 15)[0].until, Some(at(20)));
            assert_eq!(ask(1100, 1000)[0].until, None);
            let other = Question { protocol: Some(Protocol::Tcp), ..question(external, 1100, 1000) };
            assert_eq!(who(directory.path(), &other).unwrap().answers, []);
            writer.close().unwrap();
        }
    }
}

/// A port that flows to several remotes share: the remote tells them apart, and without it all are named.
#[test]
fn a_shared_port_is_told_apart_by_the_remote() {
    let directory = TempDir::new().unwrap();
    let mut writer = Writer::open(directory.path(), Limits::default(), at(0)).unwrap();
    for (pod, remote) in [("shop/a", "198.51.100.1:443"), ("shop/b", "198.51.100.2:443")] {
        let mut holding = holding("192.0.2.1", (40_000, 40_000), Protocol::Tcp, Some(remote));
        holding.pod = pod.into();
        writer.append(&Record::Begin { at: at(1), holding }).unwrap();
    }
    drop(writer);
    let all = who(directory.path(), &question("192.0.2.1", 40_000, 5)).unwrap();
    assert_eq!(all.answers.len(), 2);
    assert_eq!(all.reaches_back_to, Some(at(0)));
    let one = Question { remote: Some("198.51.100.2:443".parse().unwrap()), ..question("192.0.2.1", 40_000, 5) };
    let found = who(directory.path(), &one).unwrap().answers;
    assert_eq!(found.iter().map(|answer| answer.holding.pod.as_str()).collect::<Vec<_>>(), ["shop/b"]);
}

/// A crash leaves an open file, perhaps with a torn line: everything before it can be found, and nothing is open after
/// the next start.
#[test]
fn what_a_crash_left_is_read_and_ended_by_the_next_start() {
    let directory = TempDir::new().unwrap();
    let mut writer = Writer::open(directory.path(), Limits::default(), at(0)).unwrap();
    let held = holding("192.0.2.1", (2000, 2063), Protocol::Udp, None);
    writer.append(&Record::Begin { at: at(5), holding: held.clone() }).unwrap();
    writer.flush().unwrap();
    std::mem::forget(writer);
    let open = Pair::all(directory.path(), Record::PREFIX).unwrap()[0].clone();
    let mut records = fs::read(&open.records).unwrap();
    records.extend_from_slice(br#"{"at":"2027-01-15T08:00:00.006Z","event":"beg"#);
    fs::write(&open.records, records).unwrap();
    fs::write(open.index().with_extension("idx.new"), "half").unwrap();
    let ask = |ms| who(directory.path(), &question("192.0.2.1", 2010, ms)).unwrap().answers;
    assert_eq!(ask(6).len(), 1);
    assert_eq!(ask(6)[0].until, None);

    // Also without its index, or with one that is none.
    for index in [None, Some("nonsense"), Some("tgnatix1nonsense of another length than it should have")] {
        match index {
            None => fs::remove_file(open.index()).unwrap(),
            Some(text) => fs::write(open.index(), text).unwrap(),
        }
        let writer = Writer::<Record>::open(directory.path(), Limits::default(), at(100)).unwrap();
        drop(writer);
        assert_eq!(ask(6).len(), 1, "{index:?}");
        assert_eq!((ask(6)[0].until, ask(6)[0].cut_short), (Some(at(100)), true));
        assert_eq!(ask(101), []);
        assert!(!open.index().with_extension("idx.new").exists());
    }
}

/// Old files go, by age and by size, oldest first; what is younger stays.
#[test]
fn old_files_are_deleted() {
    let directory = TempDir::new().unwrap();
    let limits =
        Limits { file_bytes_max: 1, total_bytes_max: 1 << 20, keep: Duration::from_millis(50), ..Limits::default() };
    let mut writer = Writer::open(directory.path(), limits, at(0)).unwrap();
    for step in 1..10 {
        let holding = holding("192.0.2.1", (2000, 2000), Protocol::Tcp, Some("198.51.100.1:1"));
        writer.append(&Record::Begin { at: at(step * 20), holding }).unwrap();
    }
    let begun: Vec<i64> = Pair::all(directory.path(), Record::PREFIX)
        .unwrap()
        .iter()
        .map(|pair| pair.begun_ms - at(0).as_millisecond())
        .collect();
    // What the file of 80 held ended with the one of 100: 60 ms before the latest closed one.
    assert_eq!(begun, [100, 120, 140, 160, 180]);
    drop(writer);
    let limits = Limits { total_bytes_max: 1, keep: Duration::from_secs(1000), ..limits };
    let mut writer = Writer::<Record>::open(directory.path(), limits, at(200)).unwrap();
    writer.close().unwrap();
    assert_eq!(Pair::all(directory.path(), Record::PREFIX).unwrap(), []);
}

/// A disk that refuses costs the records of that moment and nothing else.
#[test]
fn a_refused_write_is_told_and_the_next_one_goes_on() {
    let directory = TempDir::new().unwrap();
    let mut writer = Writer::open(directory.path(), small(), at(0)).unwrap();
    let record = |ms| Record::Begin {
        at: at(ms),
        holding: holding("192.0.2.1", (2000, 2000), Protocol::Tcp, Some("198.51.100.1:1")),
    };
    writer.close().unwrap();
    fs::remove_dir_all(directory.path()).unwrap();
    assert!(writer.append(&record(1)).is_err());
    fs::create_dir(directory.path()).unwrap();
    // Not at once: each attempt costs a file.
    writer.append(&record(2)).unwrap();
    writer.append(&record(6000)).unwrap();
    writer.flush().unwrap();
    let found = who(directory.path(), &question("192.0.2.1", 2000, 6001)).unwrap();
    assert_eq!((found.answers.len(), writer.lost()), (1, 2));
    assert_eq!(found.gaps, [Gap { from: at(1), until: at(2), count: 2 }]);
}

/// An index is a help and no witness: missing, empty, cut, zeroed or of something else, the records say what they say.
#[test]
fn without_a_good_index_the_records_are_read() {
    for (external, other) in [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")] {
        for closed in [false, true] {
            let directory = TempDir::new().unwrap();
            let mut writer = Writer::open(directory.path(), Limits::default(), at(0)).unwrap();
            for port in 1..40 {
                for external in [external, other] {
                    let holding = holding(external, (port, port), Protocol::Udp, None);
                    writer.append(&Record::Begin { at: at(i64::from(port)), holding }).unwrap();
                }
            }
            if closed {
                writer.close().unwrap()
            } else {
                writer.flush().unwrap()
            }
            let index = Pair::all(directory.path(), Record::PREFIX).unwrap()[0].index();
            let good = fs::read(&index).unwrap();
            let ask =
                || (1..40).map(|port| who(directory.path(), &question(external, port, 100)).unwrap().answers.len());
            assert_eq!(ask().sum::<usize>(), 39);
            let half = 32 + (good.len() - 32) / 64 * 32;
            let zeroed = [&good[..32], &vec![0; good.len() - 32]].concat();
            let random: Vec<u8> = (0..good.len()).map(|place| u8::try_from(place * 7919 % 251).unwrap()).collect();
            let random_entries = [&good[..32], &random[32..]].concat();
            let bad = [
                Vec::new(),
                good[..half].to_vec(),
                good[..32].to_vec(),
                vec![0; good.len()],
                zeroed,
                random,
                random_entries,
            ];
            for (place, bad) in bad.iter().enumerate() {
                fs::write(&index, bad).unwrap();
                assert_eq!(ask().collect::<Vec<_>>(), [1; 39], "{external}, closed: {closed}, {place}");
            }
            fs::remove_file(&index).unwrap();
            assert_eq!(ask().collect::<Vec<_>>(), [1; 39], "{external}, closed: {closed}, missing");
            std::mem::forget(writer);
        }
    }
}

/// The naive answer: every record looked at, in order.
fn by_walk(records: &[Record], question: &Question) -> Vec<Answer> {
    let mut answers: Vec<Answer> = Vec::new();
    for (place, record) in records.iter().enumerate() {
        let Record::Begin { at, holding } = record else { continue };
        let same = |other: &Holding| {
            (other.external, other.ports, other.protocol, other.remote)
                == (holding.external, holding.ports, holding.protocol, holding.remote)
        };
        let end = records[place + 1..].iter().find_map(|later| match later {
            Record::Start { at } => Some((*at, true)),
            Record::End { at, holding } => same(holding).then_some((*at, false)),
            Record::Begin { at, holding } => same(holding).then_some((*at, true)),
            Record::Gap { .. } => None,
        });
        let fits = holding.external == question.external
            && (holding.ports.0..=holding.ports.1).contains(&question.port)
            && question.protocol.is_none_or(|protocol| protocol == holding.protocol)
            && question.remote.is_none_or(|remote| holding.remote.is_none_or(|of| of == remote));
        if fits && *at <= question.at && end.is_none_or(|(end, _)| question.at < end) {
            let (until, cut_short) = (end.map(|(end, _)| end), end.is_some_and(|(_, cut_short)| cut_short));
            answers.push(Answer { holding: holding.clone(), since: *at, until, cut_short });
        }
    }
    answers.sort_by_key(|answer| answer.since);
    answers
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever was recorded, wherever files end: the search finds what a walk over all records finds.
    #[test]
    fn the_search_says_what_a_walk_says(
        steps in prop::collection::vec((0u8..12, 0u8..2, 0u16..6, 0u16..4, 0u8..3, 0i64..5), 0..80),
        questions in prop::collection::vec((0u8..2, 0u16..12, 0u8..4, 0i64..200), 1..20),
        file_bytes_max in 100u64..5000,
        closed: bool,
    ) {
        let directory = TempDir::new().unwrap();
        let limits = Limits { file_bytes_max, ..Limits::default() };
        let mut writer = Some(Writer::open(directory.path(), limits, at(0)).unwrap());
        let mut records = vec![Record::Start { at: at(0) }];
        let mut now = 0;
        let external = |which: u8| ["192.0.2.1", "2001:db8::1"][usize::from(which)];
        let remote = |which: u8, v6: bool| match which {
            0 => None,
            _ if v6 => Some(format!("[2001:db8::{which}]:443")),
            _ => Some(format!("198.51.100.{which}:443")),
        };
        for (what, address, first, width, other, pause) in steps {
            now += pause;
            if what == 0 {
                writer = None;
                writer.replace(Writer::open(directory.path(), limits, at(now)).unwrap());
                records.push(Record::Start { at: at(now) });
                continue;
            }
            let remote = remote(other, address == 1);
            let protocol = if width % 2 == 0 { Protocol::Udp } else { Protocol::Tcp };
            let holding = holding(external(address), (first, first + width), protocol, remote.as_deref());
            let record = if what < 8 { Record::Begin { at: at(now), holding } } else { Record::End { at: at(now), holding } };
            writer.as_mut().unwrap().append(&record).unwrap();
            records.push(record);
        }
        let mut writer = writer.unwrap();
        if closed { writer.close().unwrap() } else { writer.flush().unwrap() }
        for (address, port, other, ms) in questions {
            let remote = remote(other, address == 1).map(|remote| remote.parse().unwrap());
            let protocol = [None, Some(Protocol::Udp), Some(Protocol::Tcp)][usize::from(other % 3)];
            let question = Question { protocol, remote, ..question(external(address), port, ms) };
            let mut found = who(directory.path(), &question).unwrap().answers;
            let mut expected = by_walk(&records, &question);
            let order = |answer: &Answer| (answer.since, format!("{answer:?}"));
            found.sort_by_key(order);
            expected.sort_by_key(order);
            prop_assert_eq!(found, expected);
        }
    }
}
