//! The publish protocol under loom: every order of the atomics and the lock, for one publisher and one or two readers.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

use super::{Publisher, Reader, Snapshot};

/// A snapshot that knows the thread it must be freed on.
struct Watched {
    generation: u64,
    twice: u64,
    home: thread::ThreadId,
}

impl Watched {
    fn new() -> Self {
        Watched { generation: 0, twice: 0, home: thread::current().id() }
    }
}

impl Snapshot for Watched {
    fn stamp(&mut self, generation: u64) {
        self.generation = generation;
        self.twice = generation * 2;
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        assert_eq!(thread::current().id(), self.home, "freed on the publisher's thread");
    }
}

fn whole(reader: &mut Reader<Watched>) -> u64 {
    let tables = reader.refresh();
    assert_eq!(tables.twice, tables.generation * 2);
    let generation = tables.generation;
    assert_eq!(reader.generation(), generation);
    generation
}

#[test]
fn no_publish_is_lost_and_none_goes_backwards() {
    loom::model(|| {
        let (mut publisher, reader) = Publisher::new(Watched::new());
        let mut reader = reader();
        let worker = thread::spawn(move || {
            let first = whole(&mut reader);
            let second = whole(&mut reader);
            assert!(first <= second && second <= 3);
            reader
        });
        publisher.publish(Watched::new());
        publisher.publish(Watched::new());
        let mut reader = worker.join().unwrap();
        assert_eq!(whole(&mut reader), 3);
        assert_eq!(publisher.reached(), 3);
        drop(reader);
        assert_eq!(publisher.collect(), 0);
    });
}

#[test]
fn two_readers_free_nothing() {
    loom::model(|| {
        let (mut publisher, reader) = Publisher::new(Watched::new());
        let workers: Vec<_> = (0..2)
            .map(|_| {
                let mut reader = reader();
                thread::spawn(move || whole(&mut reader))
            })
            .collect();
        publisher.publish(Watched::new());
        for worker in workers {
            assert!(worker.join().unwrap() <= 2);
        }
        assert_eq!(publisher.reached(), 2, "who is gone holds nobody up");
        assert_eq!(publisher.collect(), 0);
    });
}

/// What `reached` has promised holds for whatever a reader looks at later, through sleep and waking.
#[test]
fn a_waking_reader_never_works_with_less_than_was_promised() {
    loom::model(|| {
        let (mut publisher, reader) = Publisher::new(Watched::new());
        let mut reader = reader();
        let promised = Arc::new(AtomicU64::new(0));
        let heard = Arc::clone(&promised);
        let worker = thread::spawn(move || {
            reader.go_offline();
            let working_with = whole(&mut reader);
            // Between two refreshes the worker works with these tables, so no promise beyond them may exist.
            assert!(heard.load(Ordering::SeqCst) <= working_with);
        });
        publisher.publish(Watched::new());
        promised.store(publisher.reached(), Ordering::SeqCst);
        worker.join().unwrap();
    });
}

#[test]
fn an_online_reader_never_works_with_less_than_was_promised() {
    loom::model(|| {
        let (mut publisher, reader) = Publisher::new(Watched::new());
        let mut reader = reader();
        let promised = Arc::new(AtomicU64::new(0));
        let heard = Arc::clone(&promised);
        let worker = thread::spawn(move || {
            let working_with = whole(&mut reader);
            assert!(heard.load(Ordering::SeqCst) <= working_with);
            let working_with = whole(&mut reader);
            assert!(heard.load(Ordering::SeqCst) <= working_with);
            // Asleep it counts as having reached everything, and reads nothing.
            reader.go_offline();
            reader
        });
        publisher.publish(Watched::new());
        promised.store(publisher.reached(), Ordering::SeqCst);
        worker.join().unwrap();
        assert_eq!(publisher.reached(), 2);
    });
}

#[test]
fn a_reader_made_late_is_counted() {
    loom::model(|| {
        let (mut publisher, reader) = Publisher::new(Watched::new());
        let promised = Arc::new(AtomicU64::new(0));
        let heard = Arc::clone(&promised);
        let make = reader.clone();
        let worker = thread::spawn(move || {
            let reader = make();
            assert!(heard.load(Ordering::SeqCst) <= reader.generation());
        });
        publisher.publish(Watched::new());
        promised.store(publisher.reached(), Ordering::SeqCst);
        worker.join().unwrap();
        drop(reader);
    });
}
