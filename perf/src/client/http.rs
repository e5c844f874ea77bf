//! HTTP as a client: one request per connection, every byte of the answer compared.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use socket2::{Protocol, Type};

use super::{Outcome, Way, open, wrong};
use crate::content::{self, Checksum};
use crate::pod::{Upload, Who};

/// Longest head of an answer in bytes.
const HEAD_BYTES_MAX: u64 = 16 * 1024;

fn connect(way: &Way) -> io::Result<TcpStream> {
    let timeout = Duration::from_millis(way.timeout_ms);
    let socket = open(way, Type::STREAM, Protocol::TCP)?;
    socket.connect_timeout(&way.target.into(), timeout)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Head of an answer.
#[derive(Debug, Default)]
struct Head {
    pod: String,
    content_length: u64,
}

fn read_head(reader: &mut impl BufRead) -> io::Result<Head> {
    let mut head = Head::default();
    let mut lines = reader.take(HEAD_BYTES_MAX).lines();
    let status = lines.next().ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))??;
    if !status.starts_with("HTTP/1.1 200") {
        return Err(wrong(format!("status {status:?}")));
    }
    for line in lines {
        let line = line?;
        if line.is_empty() {
            return Ok(head);
        }
        match line.split_once(": ") {
            Some(("X-Pod", value)) => head.pod = value.into(),
            Some(("Content-Length", value)) => {
                head.content_length = value.parse().map_err(|_| wrong("Content-Length"))?;
            }
            _ => {}
        }
    }
    Err(wrong("answer ends in its head"))
}

fn request(way: &Way, stream: &mut TcpStream, first_line: &str, headers: &str) -> io::Result<()> {
    stream.write_all(format!("{first_line} HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", way.target).as_bytes())
}

fn read_body(reader: &mut impl Read, length: u64) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    reader.take(length.min(1 << 16)).read_to_end(&mut body)?;
    Ok(body)
}

/// Asks a pod who it is and whom it sees.
///
/// # Errors
/// As the socket says; `InvalidData` for an answer that is none.
pub fn who(way: &Way) -> io::Result<Outcome> {
    hold(way)?.ask(way)
}

/// A connection that has asked nothing yet.
#[derive(Debug)]
pub struct Held(TcpStream);

/// Connects and says nothing.
///
/// # Errors
/// As the socket says.
pub fn hold(way: &Way) -> io::Result<Held> {
    connect(way).map(Held)
}

impl Held {
    /// As [`who`], over this connection.
    ///
    /// # Errors
    /// As [`who`].
    pub fn ask(self, way: &Way) -> io::Result<Outcome> {
        let mut stream = self.0;
        request(way, &mut stream, "GET /who", "")?;
        let mut reader = BufReader::new(stream);
        let head = read_head(&mut reader)?;
        let who: Who = serde_json::from_slice(&read_body(&mut reader, head.content_length)?)?;
        Ok(Outcome { ok: true, pod: who.pod.clone(), who: Some(who), ..Outcome::default() })
    }
}

/// A connection over which a pod sends back whatever it gets.
///
/// # Errors
/// As [`who`].
pub(super) fn echo(way: &Way) -> io::Result<BufReader<TcpStream>> {
    let mut stream = connect(way)?;
    request(way, &mut stream, "GET /echo", "")?;
    let mut reader = BufReader::new(stream);
    read_head(&mut reader)?;
    Ok(reader)
}

/// Downloads and compares every byte's sum.
///
/// # Errors
/// As [`who`].
pub fn download(way: &Way, bytes: u64, rate_bytes_per_s: Option<u64>) -> io::Result<Outcome> {
    let mut stream = connect(way)?;
    let query = rate_bytes_per_s.map(|rate| format!("?rate={rate}")).unwrap_or_default();
    request(way, &mut stream, &format!("GET /bytes/{bytes}{query}"), "")?;
    let mut reader = BufReader::with_capacity(1 << 16, stream);
    let head = read_head(&mut reader)?;
    println!("{}", serde_json::to_string(&Outcome { pod: head.pod.clone(), ..Outcome::default() })?);
    let mut sum = Checksum::default();
    let mut received = 0u64;
    loop {
        let part = reader.fill_buf()?;
        if part.is_empty() {
            break;
        }
        let count = part.len();
        sum.add(part);
        received += count as u64;
        reader.consume(count);
    }
    if received != bytes || sum.text() != content::expected(bytes) {
        return Err(wrong(format!("{received} of {bytes} bytes, checksum {}", sum.text())));
    }
    Ok(Outcome { ok: true, pod: head.pod, bytes: received, ..Outcome::default() })
}

/// Uploads and compares the pod's sum.
///
/// # Errors
/// As [`who`].
pub fn upload(way: &Way, bytes: u64) -> io::Result<Outcome> {
    let mut stream = connect(way)?;
    request(way, &mut stream, "POST /upload", &format!("Content-Length: {bytes}\r\n"))?;
    let mut buffer = [0u8; 1 << 16];
    let mut at = 0;
    while at < bytes {
        let count = usize::try_from(bytes - at).unwrap_or(buffer.len()).min(buffer.len());
        content::fill(at, &mut buffer[..count]);
        stream.write_all(&buffer[..count])?;
        at += count as u64;
    }
    let mut reader = BufReader::new(stream);
    let head = read_head(&mut reader)?;
    let upload: Upload = serde_json::from_slice(&read_body(&mut reader, head.content_length)?)?;
    if upload.bytes != bytes || upload.checksum != content::expected(bytes) {
        return Err(wrong(format!("the pod counted {} bytes of {bytes}, checksum {}", upload.bytes, upload.checksum)));
    }
    Ok(Outcome { ok: true, pod: upload.pod, bytes, ..Outcome::default() })
}
