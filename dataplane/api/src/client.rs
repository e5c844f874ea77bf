//! A blocking client.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::explain::{Explanation, Question};
use crate::frame::{self, ReadError};
use crate::message::{CONTRACT_VERSION, Request, Response};
use crate::resource::Versions;
use crate::show::{Show, Shown};

/// A conversation that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("no dataplane answers at {path}: {source}. Is tidegate-dataplane running?")]
    NotRunning {
        /// Socket path tried.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The stream failed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The stream failed while writing.
    #[error("writing to the dataplane: {0}")]
    Write(#[from] io::Error),
    /// The dataplane refused the request.
    #[error("the dataplane says: {0}")]
    Refused(String),
    /// An answer that does not fit the question.
    #[error("unexpected answer: {0}")]
    Unexpected(String),
}

/// One open conversation with a dataplane.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    /// Objects the dataplane held when the conversation began.
    pub holds: Versions,
    /// Generation its workers had reached then.
    pub reached: u64,
    /// Name and version of the dataplane.
    pub server: String,
    /// Whether it understands [`Request::Prepare`].
    pub prepares: bool,
}

impl Client {
    /// Connects and greets. `name` tells the dataplane's log who is speaking.
    ///
    /// # Errors
    /// When nobody listens at `path`, or the greeting fails within five seconds.
    pub fn connect(path: &Path, name: &str) -> Result<Self, ClientError> {
        let mut stream =
            UnixStream::connect(path).map_err(|source| ClientError::NotRunning { path: path.to_path_buf(), source })?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let written = frame::write(&mut stream, &Request::Hello { contract: CONTRACT_VERSION, client: name.into() });
        // A server that turns visitors away may have gone before this was written; what it said can still be read.
        let answer = match (frame::read(&mut stream), written) {
            (Ok(answer), _) => answer,
            (Err(_), Err(error)) => return Err(error.into()),
            (Err(error), Ok(())) => return Err(error.into()),
        };
        match answer {
            Response::Welcome { holds, reached, server, prepares, .. } => {
                Ok(Client { stream, holds, reached, server, prepares })
            }
            Response::Error { message } => Err(ClientError::Refused(message)),
            other => Err(ClientError::Unexpected(format!("{other:?}"))),
        }
    }

    /// How long a read may wait; `None` waits for ever.
    ///
    /// # Errors
    /// When the socket refuses the option.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(timeout)
    }

    /// Sends one request.
    ///
    /// # Errors
    /// When the stream fails.
    pub fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        Ok(frame::write(&mut self.stream, request)?)
    }

    /// Receives the next response, whatever it is.
    ///
    /// # Errors
    /// When the stream fails, ends, or the timeout passes.
    pub fn receive(&mut self) -> Result<Response, ClientError> {
        Ok(frame::read(&mut self.stream)?)
    }

    /// Asks one question of the read side.
    ///
    /// # Errors
    /// When the stream fails or the dataplane refuses.
    pub fn show(&mut self, question: Show) -> Result<Shown, ClientError> {
        match self.ask(&Request::Show(question))? {
            Response::Shown(answer) => Ok(answer),
            other => Err(ClientError::Unexpected(format!("{other:?}"))),
        }
    }

    /// Asks what would become of a packet.
    ///
    /// # Errors
    /// When the stream fails, or the dataplane cannot tell where such a packet would come from.
    pub fn explain(&mut self, question: Question) -> Result<Explanation, ClientError> {
        match self.ask(&Request::Explain(question))? {
            Response::Explained(explanation) => Ok(explanation),
            other => Err(ClientError::Unexpected(format!("{other:?}"))),
        }
    }

    fn ask(&mut self, request: &Request) -> Result<Response, ClientError> {
        self.send(request)?;
        loop {
            match self.receive()? {
                Response::Error { message } => return Err(ClientError::Refused(message)),
                Response::Reached { .. } => {}
                answer => return Ok(answer),
            }
        }
    }

    /// A second handle to the same stream, so that one thread may read while another writes.
    ///
    /// # Errors
    /// When the descriptor cannot be duplicated.
    pub fn try_clone_stream(&self) -> io::Result<UnixStream> {
        self.stream.try_clone()
    }
}
