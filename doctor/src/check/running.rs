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

/// The answer to `question`; `None` where no dataplane runs.
///
/// # Errors
/// Of one that runs and does not answer.
pub fn ask(machine: &Machine, file: &NodeFile, question: Show) -> Result<Option<Shown>, ClientError> {
    let name = concat!("tidegate-doctor ", env!("CARGO_PKG_VERSION"));
    let mut client = match Client::connect(&machine.place(&file.socket), name) {
        Err(ClientError::NotRunning { source, .. })
            if [ErrorKind::NotFound, ErrorKind::ConnectionRefused].contains(&source.kind()) =>
        {
            return Ok(None);
        }
        connected => connected?,
    };
    client.set_timeout(Some(PATIENCE))?;
    client.show(question).map(Some)
}
