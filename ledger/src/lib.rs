//! Who had which address and port: the NAT ledger.
//!
//! Owns the records on disk and the search over them. The dataplane writes what its translation hands out and takes back
//! ([`Writer`]); the operator asks who spoke from an external port, now or then ([`who`]). Refuses to know what a
//! translation is.
//!
//! A ledger is a directory. Records are lines of JSON in files that are closed at a certain size and deleted after a
//! certain time, so that any tool can read, ship or archive them. Beside each file lies an index of fixed-size entries:
//! in the order of arrival while the file is being written, sorted once it is closed. A question then costs a binary
//! search in each closed file and one pass over the open one's index, whatever the number of records in between.
//!
//! Other sorts of records are written the same way, without an index where nobody asks for single ones ([`Kept`]).
//!
//! With endpoint-independent mappings there is a record per block of ports, otherwise one per mapping with the remote
//! side (RFC 6888 section 4, RFC 7422). What happened between a crash and the next start is not known; the next start
//! is a record of its own and ends whatever was open.

#![forbid(unsafe_code)]

/// One line of the ledger.
mod record;
/// Entries by which records are found.
mod index;
/// The files of a ledger.
mod files;
/// The writing side.
mod write;
/// Questions and their answers.
mod search;

pub use files::Problem;
pub use record::{Gap, Holding, Kept, Protocol, Record, Remote, Subject};
pub use search::{Answer, Found, Question, who};
pub use write::{Limits, Writer};
