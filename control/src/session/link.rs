//! The connection to the dataplane: made, read, and made again.
//!
//! Owns the reading half and the patience: a dataplane that is absent is called again, soon at first and then twice a
//! second. Refuses to know what is said; everything heard goes to one place in the order it came.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use tidegate_api::client::{Client, ClientError};
use tidegate_api::frame::ReadError;
use tidegate_api::message::Response;
use tidegate_api::resource::Versions;

/// First wait before connecting again; doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest wait before connecting again.
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// The same after the dataplane has said that it does not want us, as it does to a second control.
const BACKOFF_REFUSED: Duration = Duration::from_secs(5);
/// A dataplane that takes no byte for this long is given up and connected to again.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that lived this long was a good one: after it, connecting is tried again at once.
const GOOD_AFTER: Duration = Duration::from_secs(5);

/// What the reading thread tells. `link` numbers connections, so that late news of an old one is recognised.
#[derive(Debug)]
pub enum News {
    /// A connection stands.
    Connected {
        /// Number of the connection.
        link: u64,
        /// For writing.
        stream: UnixStream,
        /// What the dataplane holds.
        holds: Versions,
        /// Generation its workers have reached.
        reached: u64,
        /// Name and version of the dataplane.
        server: String,
        /// Whether it can be told of objects before all are known.
        prepares: bool,
    },
    /// A message arrived.
    Message {
        /// Number of the connection.
        link: u64,
        /// The message.
        response: Response,
    },
    /// The connection is gone, or could not be made.
    Lost {
        /// Number of the connection.
        link: u64,
        /// Why.
        reason: String,
    },
}

/// Connects, reads, and connects again until `deliver` returns false. Runs on a thread of its own.
pub fn keep_connected(socket: PathBuf, client: String, mut deliver: impl FnMut(News) -> bool) {
    let mut backoff = BACKOFF_MIN;
    for link in 1u64.. {
        let begun = Instant::now();
        let mut refused = None;
        let reason = match converse(&socket, &client, link, &mut refused, &mut deliver) {
            Ok(None) => return,
            Ok(Some(reason)) => reason,
            Err(error) => error.to_string(),
        };
        let wait = if refused.is_some() { BACKOFF_REFUSED } else { backoff };
        let reason = refused.map_or(reason, |message| format!("the dataplane says: {message}"));
        if begun.elapsed() > GOOD_AFTER {
            backoff = BACKOFF_MIN;
        }
        if !deliver(News::Lost { link, reason }) {
            return;
        }
        thread::sleep(wait);
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// One connection; why it ended, or `None` when nobody wants more news. `refused` is what the dataplane said last, if that
/// was an error.
fn converse(
    socket: &Path,
    name: &str,
    link: u64,
    refused: &mut Option<String>,
    deliver: &mut impl FnMut(News) -> bool,
) -> Result<Option<String>, ClientError> {
    let mut client = Client::connect(socket, name)?;
    client.set_timeout(None)?;
    let stream = client.try_clone_stream()?;
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let holds = std::mem::take(&mut client.holds);
    let (reached, server, prepares) = (client.reached, client.server.clone(), client.prepares);
    let connected = News::Connected { link, stream, holds, reached, server, prepares };
    if !deliver(connected) {
        return Ok(None);
    }
    loop {
        match client.receive() {
            Ok(response) => {
                *refused = match &response {
                    Response::Error { message } => Some(message.clone()),
                    _ => None,
                };
                if !deliver(News::Message { link, response }) {
                    return Ok(None);
                }
            }
            // Written by a newer dataplane; the stream is still in step.
            Err(ClientError::Read(ReadError::NotUnderstood(error))) => {
                tracing::warn!(%error, "the dataplane sent a message this version does not know");
            }
            Err(error) => return Ok(Some(error.to_string())),
        }
    }
}
