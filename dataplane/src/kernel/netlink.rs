//! A request/answer netlink socket: dumps and acknowledged commands.
//!
//! The kernel answers a request on a netlink socket in the context of the sender, so the answer waits in the socket
//! when `send` returns and reading it blocks on nobody. One socket belongs to one thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// Receive buffer in bytes. A burst of neighbour or route news has to fit between two reads.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
/// A kernel that has not answered by then never will.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// A dump that something changed under is repeated this often before it is taken as it is.
const DUMP_ATTEMPTS_MAX: usize = 5;

/// One rtnetlink socket.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket for requests.
    ///
    /// # Errors
    /// What the system says.
    pub fn open() -> io::Result<Self> {
        Self::subscribe(0)
    }

    /// Opens a socket that also receives the multicast groups in the mask `groups` (`RTMGRP_*`).
    ///
    /// # Errors
    /// What the system says.
    pub fn subscribe(groups: u32) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_rx_buf_sz(u32::try_from(RECEIVE_BUFFER_BYTES).unwrap_or(u32::MAX))?;
        socket.bind(&SocketAddr::new(0, groups))?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let netlink = Netlink { socket, sequence: 0 };
        netlink.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(netlink)
    }

    /// How long [`Netlink::receive`] waits.
    ///
    /// # Errors
    /// What the system says.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        // SO_RCVTIMEO belongs to the open socket, whichever descriptor it is set through; the standard library
        // offers it for Unix sockets only.
        UnixDatagram::from(self.socket.as_fd().try_clone_to_owned()?).set_read_timeout(timeout)
    }

    /// The next messages: one read of the socket. A message that cannot be understood is left out and logged.
    ///
    /// # Errors
    /// `WouldBlock` when the timeout passes; ENOBUFS when messages were lost; otherwise what the system says.
    pub fn receive(&self) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        let (bytes, _) = self.socket.recv_from_full()?;
        let mut messages = Vec::new();
        let mut rest = bytes.as_slice();
        // struct nlmsghdr begins with its length, which includes itself; messages are aligned to four bytes.
        while let Some(head) = rest.first_chunk::<4>() {
            let length = u32::from_ne_bytes(*head) as usize;
            if length < 16 || length > rest.len() {
                tracing::warn!(length, left = rest.len(), "netlink message with a wrong length");
                break;
            }
            match NetlinkMessage::deserialize(&rest[..length]) {
                Ok(message) => messages.push(message),
                Err(error) => tracing::debug!(%error, "netlink message not understood"),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(messages)
    }

    /// The same without waiting: `WouldBlock` at once when there is nothing.
    ///
    /// # Errors
    /// As [`Netlink::receive`].
    pub fn receive_now(&self) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        self.socket.set_non_blocking(true)?;
        self.receive()
    }

    /// Sends `request` with `flags` and waits for the acknowledgement.
    ///
    /// # Errors
    /// What the kernel answers.
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
    ///
    /// # Errors
    /// What the kernel answers.
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
        let mut rows = Vec::new();
        let mut interrupted = false;
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

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
