//! Limits: every bound of the dataplane with its unit and its argument.

use std::num::NonZeroU32;
use std::time::Duration;

/// Packets handled as one batch. At 64 the metadata of a batch (64 × 128 B) and the lines it prefetches stay in L1.
pub const BATCH_PACKETS: usize = tidegate_io::BATCH_MAX;

/// Most flow entries of one family looked at per turn for expiry. A turn takes its share of a lap of four seconds: 260 of
/// 1 M entries in a millisecond; a worker that sleeps 10 ms at a time still keeps the lap with 3 M.
pub const EXPIRE_PER_TURN: u32 = 8192;

/// Turns between two commits of the private counters to the shared ones.
pub const TURNS_PER_COMMIT: u64 = 64;

/// Turns with packets between two that are measured, on average: reading the clock some ten times is then a third of a
/// nanosecond per turn, and a worker under load still has a thousand measurements a minute.
pub const TURNS_PER_TIMED: u64 = 1000;

/// Turns between two looks at the held packets and the mailbox.
pub const TURNS_PER_CHORE: u64 = 16;

/// Packets on their way from one worker to another, at most: half a millisecond of two million a second. With eight
/// workers all rings together take 7 MiB.
pub const HAND_OVER_PACKETS: usize = 1024;

/// Times a packet may change hands: to who follows its datagram's fragments, and from there to the owner of its flow.
pub const HAND_OVERS_MAX: u8 = 2;

/// Devices a worker can send to.
pub const DEVICES_MAX: usize = 64;

/// Part of a flow table, in percent, that handshakes without the client's ACK may use (L-022), unless the node file says
/// otherwise. A quarter of 1 M entries holds the handshakes of 260,000 connections a second whose clients take a second
/// to answer; under a flood of a million SYNs a second a client still has 260 ms. The rest cannot be had by SYNs alone.
pub const HALF_OPEN_PERCENT: u8 = 25;

/// A flow table is crowded when less than one part in this many is free: 93.75 % of the entries are in use, and each new
/// flow takes the place of one that can be spared, if there is one. Below the 95 % to which insertion is cheap.
pub const CROWD_FREE_PART: u32 = 16;

/// Entries looked at for one that can be spared: 1 KiB side by side for IPv4, 2 KiB for IPv6, which the processor fetches
/// ahead. The best of 16 is among the 6 % that can best be spared, on average.
pub const SPARE_LOOK_ROWS: u32 = 16;

/// Answers (rejects, ICMP errors) per second and worker (S-079).
pub const ANSWERS_PER_S: NonZeroU32 = NonZeroU32::new(1000).expect("not zero");

/// Flows to nodes (`node-dsr`) that a worker begins per second; above that the hash alone decides (L-021). Whoever forges
/// addresses can fill a table of a million only in eight seconds then, and loses nobody anything by it.
pub const PINS_PER_S: NonZeroU32 = NonZeroU32::new(125_000).expect("not zero");

/// Longest sleep; bounds how late a timer, a request or a publish is noticed.
pub const SLEEP_MAX: Duration = Duration::from_millis(10);

/// Clients of Services with affinity that a worker remembers: 32 B each, touched as they come. A client too many is not
/// remembered, and found again by hashing while endpoints stay the same.
pub const AFFINITY_CLIENTS: u32 = 1 << 18;

/// Service rows whose scheduler's place a worker keeps: 24 B each, touched on use. `rr` and `wrr` of rows beyond stay at
/// their beginning; 50,000 Services of two ports and two families have a fifth of that.
pub const SCHEDULED_SERVICES: u32 = 1 << 20;

/// External addresses of both families that one gateway translates to. What a worker knows of their ports takes 576 KB of
/// each at most, touched on use.
pub const EXTERNALS_MAX: u16 = 256;

/// Rows in one answer of a worker: the copy takes well under a millisecond.
pub const ROWS_PER_ANSWER: u32 = 10_000;

/// Flows of one worker in one answer to a person.
pub const FLOWS_SHOWN: u32 = 2 * ROWS_PER_ANSWER;

/// Flow entries looked at for one answer, so that neither a sparse table nor a question that few flows fit can hold the
/// worker up: 2.6 MB of IPv4, a fifth of a millisecond. Who wants more asks again from where it ended.
pub const ENTRIES_PER_ANSWER: u32 = 1 << 15;

/// Fragments that one packet may be cut into (V-010): a frame of 9,000 bytes for the least path that IPv4 promises (576, RFC
/// 791 section 3.2). What would be more is answered as if it must not be cut.
pub const PIECES_PER_PACKET: usize = 17;

/// Bytes of VXLAN over IPv4: Ethernet is not counted on the outside, so 20 + 8 + 8 + 14 (V-009).
pub const OVERHEAD_V4_BYTES: u16 = 50;

/// Bytes of VXLAN over IPv6 (V-009).
pub const OVERHEAD_V6_BYTES: u16 = 70;

const _: () = assert!(BATCH_PACKETS <= 64, "batch sweeps use one u64 mask per batch");
const _: () = assert!(HALF_OPEN_PERCENT >= 1 && HALF_OPEN_PERCENT <= 50, "established flows keep half of the table");
const _: () = assert!(100 - 100 / CROWD_FREE_PART <= 95, "the index promises cheap insertion to 95 %");
