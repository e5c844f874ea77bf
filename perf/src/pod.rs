//! A pod: an HTTP/1.1 server and a UDP server that tell who asked.
//!
//! Owns the serving side of every check; refuses to know about Services. One thread per connection, a bounded number of
//! them. Each answer names the pod and the source address it saw, which is how a check learns what the gateway did.
//!
//! - `GET /who`: a [`Who`] in JSON.
//! - `GET /bytes/N`: N bytes of [`content`]; `?rate=R` sends at most R bytes per second.
//! - `POST /upload`: counts and sums the body, answers an [`Upload`] in JSON.
//! - any datagram: answered with a [`Who`] in JSON.
//! - an INIT of SCTP: answered with a [`Who`] in JSON as its cookie ([`crate::sctp`]).

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use crate::content::{self, Checksum};

/// Datagrams that begin so are sent back as they are.
pub const ECHO_MARK: &[u8] = b"echo";
/// Connections served at the same time; more wait in the backlog.
const CONNECTIONS_MAX: usize = 512;
/// Connections the kernel may hold for us.
const BACKLOG: i32 = 4096;
/// Longest request head in bytes.
const HEAD_BYTES_MAX: u64 = 16 * 1024;
/// Longest wait for a client that says nothing.
const IDLE_LIMIT: Duration = Duration::from_secs(30);
/// Most bytes one request may ask for.
const BYTES_MAX: u64 = 1 << 32;

/// Who answered, and whom it saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// Name of the pod.
    pub pod: String,
    /// Source address and port as the pod saw them.
    pub remote: SocketAddr,
    /// Address and port the packet was sent to; for datagrams the listening address.
    pub local: SocketAddr,
}

/// Answer to an upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    /// Name of the pod.
    pub pod: String,
    /// Bytes received.
    pub bytes: u64,
    /// [`Checksum`] of them.
    pub checksum: String,
}

/// What to serve.
#[derive(Debug, Clone)]
pub struct PodOptions {
    /// Name of the pod.
    pub name: String,
    /// Port of the HTTP server.
    pub tcp_port: u16,
    /// Port of the UDP server.
    pub udp_port: u16,
    /// Port where INITs of SCTP are answered, which takes CAP_NET_RAW.
    pub sctp_port: Option<u16>,
}

/// Serves until the process ends; prints `pod ready` when all sockets listen.
///
/// # Errors
/// When a socket cannot be opened.
pub fn serve(options: &PodOptions) -> Result<()> {
    let name: Arc<str> = options.name.as_str().into();
    let active = Arc::new(AtomicUsize::new(0));
    let mut threads = Vec::new();
    for address in [SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))] {
        let at = |port| SocketAddr::new(address.ip(), port);
        let listener = listen(at(options.tcp_port)).with_context(|| format!("HTTP at {}", at(options.tcp_port)))?;
        let datagrams = receive_at(at(options.udp_port)).with_context(|| format!("UDP at {}", at(options.udp_port)))?;
        let (name_tcp, name_udp, active) = (Arc::clone(&name), Arc::clone(&name), Arc::clone(&active));
        threads.push(std::thread::spawn(move || accept(&listener, &name_tcp, &active)));
        threads.push(std::thread::spawn(move || answer_datagrams(&datagrams, &name_udp)));
    }
    if let Some(port) = options.sctp_port {
        crate::sctp::answer(&name, port)?;
    }
    println!("pod ready: {name}");
    for thread in threads {
        drop(thread.join());
    }
    Ok(())
}

fn socket(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(address, Type::STREAM, Protocol::TCP)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn receive_at(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket(address, Type::DGRAM, Protocol::UDP)?;
    // A flood fills the default buffer in a millisecond; what is lost there is the pod's business, not the gateway's.
    socket.set_recv_buffer_size(1 << 20)?;
    Ok(socket.into())
}

fn answer_datagrams(socket: &UdpSocket, name: &str) {
    let Ok(local) = socket.local_addr() else { return };
    let mut buffer = vec![0u8; 65_536];
    loop {
        // Errors here are ICMP answers to earlier datagrams; the next one may be fine.
        let Ok((count, remote)) = socket.recv_from(&mut buffer) else { continue };
        if buffer[..count].starts_with(ECHO_MARK) {
            drop(socket.send_to(&buffer[..count], remote));
            continue;
        }
        let who = Who { pod: name.into(), remote, local };
        if let Ok(answer) = serde_json::to_vec(&who) {
            drop(socket.send_to(&answer, remote));
        }
    }
}

fn accept(listener: &TcpListener, name: &Arc<str>, active: &Arc<AtomicUsize>) {
    loop {
        while active.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            std::thread::sleep(Duration::from_millis(1));
        }
        let Ok((stream, _)) = listener.accept() else { continue };
        active.fetch_add(1, Ordering::Relaxed);
        let (thread_name, thread_active) = (Arc::clone(name), Arc::clone(active));
        let started = std::thread::Builder::new().stack_size(256 * 1024).spawn(move || {
            // A client that goes away in the middle is the client's business.
            drop(answer(&stream, &thread_name));
            thread_active.fetch_sub(1, Ordering::Relaxed);
        });
        if started.is_err() {
            active.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// One request, one answer, closed.
fn answer(mut stream: &TcpStream, name: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE_LIMIT))?;
    stream.set_write_timeout(Some(IDLE_LIMIT))?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    let request = Request::read(&mut reader)?;
    match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/who") => {
            let who = Who { pod: name.into(), remote: stream.peer_addr()?, local: stream.local_addr()? };
            respond_json(stream, name, &who)
        }
        ("GET", "/echo") => {
            stream.write_all(head(name, "200 OK", "application/octet-stream", 0).as_bytes())?;
            let mut buffer = [0u8; 2048];
            loop {
                match reader.read(&mut buffer)? {
                    0 => return Ok(()),
                    count => stream.write_all(&buffer[..count])?,
                }
            }
        }
        ("POST", "/upload") => {
            if request.expects_continue {
                stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            }
            let (bytes, checksum) = sum(&mut reader.take(request.content_length))?;
            respond_json(stream, name, &Upload { pod: name.into(), bytes, checksum })
        }
        ("GET", path) => match path.strip_prefix("/bytes/").and_then(|count| count.parse().ok()) {
            Some(count) if count <= BYTES_MAX => stream_bytes(stream, name, count, request.rate_bytes_per_s),
            _ => respond(stream, name, "404 Not Found", "text/plain", b"no such thing\n"),
        },
        _ => respond(stream, name, "405 Method Not Allowed", "text/plain", b"GET or POST /upload\n"),
    }
}

fn sum(body: &mut impl Read) -> io::Result<(u64, String)> {
    let mut checksum = Checksum::default();
    let mut bytes = 0;
    let mut buffer = [0u8; 16384];
    loop {
        match body.read(&mut buffer)? {
            0 => return Ok((bytes, checksum.text())),
            count => {
                checksum.add(&buffer[..count]);
                bytes += count as u64;
            }
        }
    }
}

fn stream_bytes(mut stream: &TcpStream, name: &str, count: u64, rate_bytes_per_s: Option<u64>) -> io::Result<()> {
    let head = head(name, "200 OK", "application/octet-stream", count);
    stream.write_all(head.as_bytes())?;
    let began = Instant::now();
    let mut buffer = [0u8; 16384];
    // Slow streams go out in slices of about 20 ms.
    let slice = rate_bytes_per_s.map_or(buffer.len() as u64, |rate| (rate / 50).clamp(1, buffer.len() as u64));
    let mut at = 0;
    while at < count {
        let now = usize::try_from((count - at).min(slice)).unwrap_or(buffer.len());
        content::fill(at, &mut buffer[..now]);
        stream.write_all(&buffer[..now])?;
        at += now as u64;
        if let Some(rate) = rate_bytes_per_s.filter(|rate| *rate > 0) {
            let due = Duration::from_millis(at.saturating_mul(1000) / rate);
            std::thread::sleep(due.saturating_sub(began.elapsed()));
        }
    }
    Ok(())
}

fn respond_json(stream: &TcpStream, name: &str, value: &impl Serialize) -> io::Result<()> {
    respond(stream, name, "200 OK", "application/json", &serde_json::to_vec(value)?)
}

fn respond(mut stream: &TcpStream, name: &str, status: &str, kind: &str, body: &[u8]) -> io::Result<()> {
    let mut bytes = head(name, status, kind, body.len() as u64).into_bytes();
    bytes.extend_from_slice(body);
    stream.write_all(&bytes)
}

fn head(name: &str, status: &str, kind: &str, length: u64) -> String {
    format!(
        "HTTP/1.1 {status}\r\nServer: tidegate-lab\r\nX-Pod: {name}\r\nContent-Type: {kind}\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n"
    )
}

/// The part of a request the servers look at.
#[derive(Debug, Default, PartialEq, Eq)]
struct Request {
    method: String,
    path: String,
    rate_bytes_per_s: Option<u64>,
    content_length: u64,
    expects_continue: bool,
}

impl Request {
    /// Reads the head of a request (RFC 9112, sections 2 and 3).
    fn read(reader: &mut impl BufRead) -> io::Result<Request> {
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_string());
        let mut lines = reader.take(HEAD_BYTES_MAX).lines();
        let first = lines.next().ok_or_else(|| bad("no request"))??;
        let mut words = first.split(' ');
        let (Some(method), Some(target)) = (words.next(), words.next()) else { return Err(bad("no request line")) };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let rate = query.split('&').find_map(|part| part.strip_prefix("rate=")).and_then(|rate| rate.parse().ok());
        let mut request =
            Request { method: method.into(), path: path.into(), rate_bytes_per_s: rate, ..Request::default() };
        for line in lines {
            let line = line?;
            if line.is_empty() {
                return Ok(request);
            }
            let Some((field, value)) = line.split_once(':') else { return Err(bad("a header without a colon")) };
            if field.eq_ignore_ascii_case("content-length") {
                request.content_length = value.trim().parse().map_err(|_| bad("Content-Length"))?;
            } else if field.eq_ignore_ascii_case("expect") {
                request.expects_continue = value.trim().eq_ignore_ascii_case("100-continue");
            }
        }
        Err(bad("request head ends early"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read() {
        let text = b"POST /upload?rate=5 HTTP/1.1\r\nHost: x\r\ncontent-length: 12\r\nExpect: 100-Continue\r\n\r\nrest";
        let mut reader = &text[..];
        let request = Request::read(&mut reader).unwrap();
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/upload"));
        assert_eq!((request.content_length, request.rate_bytes_per_s), (12, Some(5)));
        assert!(request.expects_continue);
        assert_eq!(reader, b"rest");
    }

    #[test]
    fn nonsense_is_an_error() {
        for text in ["", "x", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nnocolon\r\n\r\n"] {
            assert!(Request::read(&mut text.as_bytes()).is_err(), "{text:?}");
        }
    }
}
