//! A request/answer rtnetlink socket: dumps and acknowledged commands.
//!
//! The kernel answers in the context of the sender, so the answer waits in the socket when `send` returns.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// Receive buffer in bytes: a dump of many routes between two reads.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;
/// A kernel that has not answered by then never will.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// A dump that something changed under is repeated this often before it is taken as it is.
const DUMP_ATTEMPTS_MAX: usize = 5;
/// Bytes of struct nlmsghdr.
const HEADER_BYTES: usize = 16;

/// One rtnetlink socket.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// Opens a socket of a protocol that receives the multicast groups in the mask `groups`.
pub fn open(protocol: isize, groups: u32, timeout: Option<Duration>) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.set_rx_buf_sz(u32::try_from(RECEIVE_BUFFER_BYTES).unwrap_or(u32::MAX))?;
    socket.bind(&SocketAddr::new(0, groups))?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // SO_RCVTIMEO belongs to the open socket, whichever descriptor it is set through; the standard library offers it for
    // Unix sockets only.
    UnixDatagram::from(socket.as_fd().try_clone_to_owned()?).set_read_timeout(timeout)?;
    Ok(socket)
}

impl Netlink {
    /// Opens a socket for requests that also receives the multicast groups in the mask `groups`.
    pub fn open(groups: u32) -> io::Result<Self> {
        Ok(Netlink { socket: open(NETLINK_ROUTE, groups, Some(ANSWER_TIMEOUT))?, sequence: 0 })
    }

    /// Sends `request` with `flags` and waits for the acknowledgement.
    pub fn command(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let sequence = self.send(request, flags | NLM_F_ACK)?;
        loop {
            for message in self.receive()? {
                if message.header.sequence_number != sequence {
                    continue;
                }
                if let NetlinkPayload::Error(answer) = message.payload {
                    return if answer.code.is_none() { Ok(()) } else { Err(answer.to_io()) };
                }
            }
        }
    }

    /// Everything the kernel lists for `request`; repeated when the list changed while it was read.
    pub fn dump(&mut self, request: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut attempt = 1;
        loop {
            let (rows, interrupted) = self.dump_once(request.clone())?;
            if !interrupted || attempt == DUMP_ATTEMPTS_MAX {
                return Ok(rows);
            }
            attempt += 1;
        }
    }

    fn dump_once(&mut self, request: RouteNetlinkMessage) -> io::Result<(Vec<RouteNetlinkMessage>, bool)> {
        let sequence = self.send(request, NLM_F_DUMP)?;
        let (mut rows, mut interrupted) = (Vec::new(), false);
        loop {
            for message in self.receive()? {
                if message.header.sequence_number != sequence {
                    continue;
                }
                interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(row) => rows.push(row),
                    NetlinkPayload::Done(_) => return Ok((rows, interrupted)),
                    NetlinkPayload::Error(answer) if answer.code.is_some() => return Err(answer.to_io()),
                    _ => {}
                }
            }
        }
    }

    /// The messages of one read. One that cannot be understood is left out and logged.
    fn receive(&self) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        let (bytes, _) = self.socket.recv_from_full()?;
        let mut messages = Vec::new();
        let mut rest = bytes.as_slice();
        // struct nlmsghdr begins with its length, which includes itself; messages are aligned to four bytes.
        while let Some(head) = rest.first_chunk::<4>() {
            let length = u32::from_ne_bytes(*head) as usize;
            let Some(message) = rest.get(..length).filter(|_| length >= HEADER_BYTES) else {
                tracing::warn!(length, left = rest.len(), "netlink message with a wrong length");
                break;
            };
            match NetlinkMessage::deserialize(message) {
                Ok(message) => messages.push(message),
                Err(error) => tracing::debug!(%error, "netlink message not understood"),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(messages)
    }

    fn send(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<u32> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(request);
        message.header.sequence_number = self.sequence;
        message.header.flags = flags | NLM_F_REQUEST;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        Ok(self.sequence)
    }
}
