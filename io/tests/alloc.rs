//! No allocation in a turn after warm-up, counted: in memory, and with the kernel on AF_XDP.

#![allow(clippy::unwrap_used)]

#[cfg(feature = "kernel-tests")]
mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use tidegate_io::{Batch, HugePages, Magazine, Pool, Port, memory};

struct Counting;

thread_local! {
    /// Allocations of this thread; other tests run on others.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: everything is passed on to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's contract is the callee's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is the callee's.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's contract is the callee's.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Receives, encapsulates, sends, recycles, kicks; returns packets and allocations.
fn turn(from: &mut impl Port, to: &mut impl Port, magazine: &mut Magazine) -> (usize, u64) {
    let before = ALLOCATIONS.with(Cell::get);
    let mut batch = Batch::new();
    let received = from.rx(&mut batch);
    for frame in &mut batch {
        frame.prefetch();
        assert!(frame.grow_front(50));
    }
    to.tx(&mut batch);
    batch.drain(..).for_each(|frame| magazine.give(frame));
    from.recycle(magazine);
    to.recycle(magazine);
    from.kick();
    to.kick();
    (received, ALLOCATIONS.with(Cell::get) - before)
}

#[test]
fn the_counter_counts() {
    let before = ALLOCATIONS.with(Cell::get);
    drop(std::hint::black_box(vec![0u8; 100]));
    assert!(ALLOCATIONS.with(Cell::get) > before);
}

#[test]
fn a_turn_in_memory_allocates_nothing() {
    let pool = Pool::new(4096, 2048, HugePages::Off).unwrap();
    let mut magazine = pool.magazine();
    let (mut wan, mut wan_peer) = memory::pair(&pool, memory::Config::default());
    let (mut lan, mut lan_peer) = memory::pair(&pool, memory::Config::default());
    let (mut packets, mut allocations) = (0, 0);
    for round in 0..200 {
        for _ in 0..64 {
            assert!(wan_peer.inject(&[7; 100]));
        }
        let (received, allocated) = turn(&mut wan, &mut lan, &mut magazine);
        lan_peer.discard_sent();
        if round >= 10 {
            packets += received;
            allocations += allocated;
        }
    }
    assert_eq!((packets, allocations), (190 * 64, 0));
}

/// Frames that only ever go one way between two workers pass through the depot, which allocates nothing either.
#[test]
fn an_exchange_with_the_depot_allocates_nothing() {
    let pool = Pool::new(4096, 2048, HugePages::Off).unwrap();
    let (mut taker, mut giver) = (pool.magazine(), pool.magazine());
    let mut allocations = 0;
    for round in 0..100 {
        let before = ALLOCATIONS.with(Cell::get);
        for _ in 0..200 {
            giver.give(taker.take().unwrap());
        }
        if round >= 10 {
            allocations += ALLOCATIONS.with(Cell::get) - before;
        }
    }
    assert_eq!(allocations, 0);
}

#[cfg(feature = "kernel-tests")]
#[test]
fn a_turn_on_af_xdp_allocates_nothing() {
    use tidegate_io::afxdp::{Opened, open};
    use tidegate_io::{Owned, OwnedFlags};

    support::isolated("a_turn_on_af_xdp_allocates_nothing", || {
        support::veth("wan0", "wan1", 1);
        support::veth("lan0", "lan1", 1);
        let client = support::Wire::open("wan1");
        let Opened { mut ports, pools, mut pinholes } = open(&support::config(&["wan0", "lan0"])).unwrap();
        let prefixes = vec![("203.0.113.0".parse().unwrap(), 24, OwnedFlags::TRAFFIC)];
        pinholes[0].update(&Owned { prefixes, ..Owned::default() }).unwrap();
        let mut magazine = pools[0].magazine();
        let packet = support::udp("192.0.2.10", "203.0.113.7", (9, 80), &[0; 100]);
        let (wan, lan) = ports.split_at_mut(1);
        let (mut packets, mut allocations) = (0, 0);
        let mut round = 0;
        support::until("ten thousand packets", || {
            (0..100).for_each(|_| client.send(&packet));
            for _ in 0..4 {
                let (received, allocated) = turn(&mut wan[0], &mut lan[0], &mut magazine);
                round += 1;
                if round > 20 {
                    packets += received;
                    allocations += allocated;
                }
            }
            packets >= 10_000
        });
        assert_eq!(allocations, 0);
        assert!(lan[0].counters().tx_completed >= 9_000, "{:?}", lan[0].counters());
    });
}
