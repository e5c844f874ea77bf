//! Framing: a 32-bit big-endian length, then that many bytes of JSON.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest message in bytes; 500,000 endpoints in one full sync stay below it.
pub const MESSAGE_BYTES_MAX: u32 = 256 << 20;

/// A message that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The other side closed between two messages.
    #[error("connection closed")]
    Closed,
    /// The stream failed, or ended inside a message.
    #[error("reading a message: {0}")]
    Io(#[from] io::Error),
    /// The length is larger than what is accepted here.
    #[error("message of {0} bytes is over the limit of {1}")]
    TooLong(u32, u32),
    /// The body is not a message this side knows. The stream is still in step: reading may go on.
    #[error("message not understood: {0}")]
    NotUnderstood(#[from] serde_json::Error),
}

/// Writes one message and flushes.
///
/// # Errors
/// When the stream fails, or the message is over [`MESSAGE_BYTES_MAX`].
pub fn write<M: Serialize>(stream: &mut impl Write, message: &M) -> io::Result<()> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = u32::try_from(bytes.len() - 4)
        .ok()
        .filter(|length| *length <= MESSAGE_BYTES_MAX)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "message over the size limit"))?;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    stream.write_all(&bytes)?;
    stream.flush()
}

/// Reads one message.
///
/// # Errors
/// See [`ReadError`]; only after `NotUnderstood` the stream may be read further.
pub fn read<M: DeserializeOwned>(stream: &mut impl Read) -> Result<M, ReadError> {
    read_within(stream, MESSAGE_BYTES_MAX)
}

/// The same, of at most `bytes_max` bytes.
///
/// # Errors
/// See [`ReadError`].
pub fn read_within<M: DeserializeOwned>(stream: &mut impl Read, bytes_max: u32) -> Result<M, ReadError> {
    let mut header = [0u8; 4];
    match stream.read(&mut header)? {
        0 => return Err(ReadError::Closed),
        got => stream.read_exact(&mut header[got..])?,
    }
    let length = u32::from_be_bytes(header);
    if length > bytes_max {
        return Err(ReadError::TooLong(length, bytes_max));
    }
    // Grown as bytes arrive: a lying length costs nothing.
    let mut body = Vec::new();
    stream.take(u64::from(length)).read_to_end(&mut body)?;
    if body.len() != length as usize {
        return Err(ReadError::Io(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(serde_json::from_slice(&body)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Request, Response, Update};
    use crate::resource::{Body, Gateway, Resource};

    #[test]
    fn what_is_written_is_read_and_unknown_fields_are_ignored() {
        let update = Request::Update(Update {
            nonce: 7,
            full: true,
            resources: vec![Resource {
                name: "gw".into(),
                version: "1".into(),
                body: Body::Gateway(Gateway::default()),
            }],
            ..Update::default()
        });
        let mut stream = Vec::new();
        write(&mut stream, &update).unwrap();
        assert_eq!(read::<Request>(&mut &stream[..]).unwrap(), update);

        let newer = br#"{"reached":{"generation":3,"colour":"blue"}}"#;
        let mut stream = u32::try_from(newer.len()).unwrap().to_be_bytes().to_vec();
        stream.extend_from_slice(newer);
        assert_eq!(read::<Response>(&mut &stream[..]).unwrap(), Response::Reached { generation: 3 });
    }

    #[test]
    fn a_cut_stream_a_lying_length_and_nonsense_are_told_apart() {
        assert!(matches!(read::<Request>(&mut &[][..]), Err(ReadError::Closed)));
        assert!(matches!(read::<Request>(&mut &[0, 0][..]), Err(ReadError::Io(_))));
        assert!(matches!(read::<Request>(&mut &[0xff; 4][..]), Err(ReadError::TooLong(..))));
        assert!(matches!(read::<Request>(&mut &[0, 0, 0, 9, b'{'][..]), Err(ReadError::Io(_))));
        let over = read_within::<Request>(&mut &[0, 0, 1, 1][..], 256).unwrap_err();
        assert_eq!(over.to_string(), "message of 257 bytes is over the limit of 256");
        let mut two = vec![0, 0, 0, 2, b'{', b'}'];
        write(&mut two, &Response::Reached { generation: 1 }).unwrap();
        let mut rest = &two[..];
        assert!(matches!(read::<Response>(&mut rest), Err(ReadError::NotUnderstood(_))));
        assert!(read::<Response>(&mut rest).is_ok(), "the stream stays in step");
    }
}
