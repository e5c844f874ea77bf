//! Conversations that could not be had, in words that help.
//!
//! Each text says what happened, at which socket, and what to try next.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use tidegate_api::client::ClientError;
use tidegate_api::frame::ReadError;

/// What to tell the operator about `error`, met at `socket`.
pub fn explain(error: &ClientError, socket: &Path) -> String {
    let at = socket.display();
    match error {
        ClientError::NotRunning { source, .. } => not_connected(source, socket),
        ClientError::Refused(reason) => format!("the dataplane at {at} refuses: {reason}"),
        ClientError::Unexpected(answer) => {
            format!("unexpected answer at {at}: {answer}. {}", versions_differ("the program there"))
        }
        ClientError::Read(ReadError::Closed) => {
            format!("the dataplane at {at} closed the connection without an answer; its log says why")
        }
        ClientError::Read(ReadError::NotUnderstood(detail)) => {
            format!("the answer at {at} is not understood ({detail}). {}", versions_differ("the program there"))
        }
        ClientError::Read(ReadError::TooLong(bytes, _)) => {
            format!("what listens at {at} does not speak Tidegate's contract (a message of {bytes} bytes)")
        }
        ClientError::Read(ReadError::Io(source)) | ClientError::Write(source) => interrupted(source, socket),
    }
}

/// The text for an answer that does not fit its question. `server` is the name and version the dataplane gave.
pub fn mismatch(asked: &str, answered: &str, server: &str) -> String {
    format!("unexpected answer: asked for {asked}, told about {answered}. {}", versions_differ(server))
}

fn versions_differ(server: &str) -> String {
    format!("This is tidegate {}, asking {server}: are both of the same release?", env!("CARGO_PKG_VERSION"))
}

fn not_connected(source: &io::Error, socket: &Path) -> String {
    let at = socket.display();
    let metadata = std::fs::metadata(socket);
    match source.kind() {
        io::ErrorKind::NotFound => format!(
            "no dataplane runs here: there is no socket at {at}. Start `tidegate-dataplane --config FILE`, or name its \
             socket with --socket or TIDEGATE_SOCKET (it is the `socket:` line of the node file)"
        ),
        io::ErrorKind::PermissionDenied => match metadata {
            Ok(file) => format!(
                "permission denied at {at} (mode {:04o}, uid {}, gid {}). The mode of the socket file decides who may \
                 ask: run as root or as a member of its group; `socketMode:` in the node file changes it",
                file.mode() & 0o7777,
                file.uid(),
                file.gid()
            ),
            Err(_) => format!("permission denied on the way to {at}: run as root, or open its directory to yourself"),
        },
        io::ErrorKind::ConnectionRefused => match metadata {
            Ok(file) if !file.file_type().is_socket() => format!("{at} is not a socket; --socket names the wrong file"),
            _ => format!(
                "no dataplane runs here: the socket at {at} is a leftover nobody answers on. Start \
                 `tidegate-dataplane --config FILE`; it replaces the leftover"
            ),
        },
        _ => format!("cannot ask at {at}: {source}"),
    }
}

fn interrupted(source: &io::Error, socket: &Path) -> String {
    let at = socket.display();
    match source.kind() {
        // A read that timed out on a socket reports WouldBlock.
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => format!(
            "something accepts connections at {at} but does not answer in time: the dataplane is stopped, or busy with \
             a large change"
        ),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            format!("the dataplane at {at} went away in the middle of the conversation; its log says why")
        }
        _ => format!("talking to the dataplane at {at}: {source}"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn every_text_names_the_socket() {
        let path = PathBuf::from("/nowhere/tidegate.sock");
        let nonsense = || serde_json::from_str::<u32>("x").unwrap_err();
        let errors = [
            ClientError::NotRunning { path: path.clone(), source: io::ErrorKind::NotFound.into() },
            ClientError::NotRunning { path: path.clone(), source: io::ErrorKind::PermissionDenied.into() },
            ClientError::NotRunning { path: path.clone(), source: io::ErrorKind::ConnectionRefused.into() },
            ClientError::NotRunning { path: path.clone(), source: io::ErrorKind::InvalidInput.into() },
            ClientError::Refused("no".into()),
            ClientError::Unexpected("Accepted".into()),
            ClientError::Read(ReadError::Closed),
            ClientError::Read(ReadError::TooLong(0x4854_5450, 256 << 20)),
            ClientError::Read(ReadError::NotUnderstood(nonsense())),
            ClientError::Read(ReadError::Io(io::ErrorKind::WouldBlock.into())),
            ClientError::Read(ReadError::Io(io::ErrorKind::UnexpectedEof.into())),
            ClientError::Write(io::ErrorKind::BrokenPipe.into()),
            ClientError::Write(io::ErrorKind::OutOfMemory.into()),
        ];
        for error in &errors {
            let text = explain(error, &path);
            assert!(text.contains("/nowhere/tidegate.sock"), "{text}");
        }
    }

    #[test]
    fn a_dataplane_that_hangs_is_told_from_one_that_is_not_there() {
        let path = PathBuf::from("/nowhere/tidegate.sock");
        let hangs = explain(&ClientError::Read(ReadError::Io(io::ErrorKind::WouldBlock.into())), &path);
        assert!(hangs.contains("does not answer in time"), "{hangs}");
        let gone =
            explain(&ClientError::NotRunning { path: path.clone(), source: io::ErrorKind::NotFound.into() }, &path);
        assert!(gone.contains("no dataplane runs here") && gone.contains("tidegate-dataplane --config"), "{gone}");
    }
}
