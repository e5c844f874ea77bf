//! What the dataplane that runs here tells of itself, asked at its socket.
//!
//! Owns the question and how long an answer is waited for. Refuses to know what the answer should be.

use std::io::ErrorKind;
use std::time::Duration;

use tidegate_api::client::{Client, ClientError};
use tidegate_api::show::{Show, Shown};
use tidegate_dataplane::config::NodeFile;

use crate::Machine;

/// Longest wait for the answer.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Who is at the socket.
#[derive(Debug)]
pub enum Heard {
    /// A dataplane, with this answer.
    Told(Shown),
    /// Nobody: there is no socket.
    Nobody,
    /// Nobody any more: the socket is there, and one that ends by itself takes it away.
    Leftover,
}

/// The answer to `question`.
///
/// # Errors
/// Of a dataplane that runs and does not answer.
pub fn ask(machine: &Machine, file: &NodeFile, question: Show) -> Result<Heard, ClientError> {
    let name = concat!("tidegate-doctor ", env!("CARGO_PKG_VERSION"));
    let mut client = match Client::connect(&machine.place(&file.socket), name) {
        Err(ClientError::NotRunning { source, .. }) if source.kind() == ErrorKind::NotFound => {
            return Ok(Heard::Nobody);
        }
        Err(ClientError::NotRunning { source, .. }) if source.kind() == ErrorKind::ConnectionRefused => {
            return Ok(Heard::Leftover);
        }
        connected => connected?,
    };
    client.set_timeout(Some(PATIENCE))?;
    client.show(question).map(Heard::Told)
}
