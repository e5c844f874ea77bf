//! The one agent of a node.
//!
//! Owns the claim on a node's rules and tables: two agents would each take away what the other one made. Knows nothing of
//! what they do.
//!
//! The claim is a name in the network namespace: an abstract socket (unix(7)), which is seen by whoever shares what the agent
//! changes, a unit of systemd and a pod with the host's network alike, whatever files they see. The kernel gives it up when
//! the process ends, however that happens.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Name of the socket, without the zero byte before it.
const NAME: &str = "tidegate-node";

/// The claim, for as long as it is not dropped.
#[derive(Debug)]
pub struct Sole {
    _socket: UnixDatagram,
}

impl Sole {
    /// Claims this network namespace.
    ///
    /// # Errors
    /// When somebody has claimed it, or the system gives no socket.
    pub fn claim() -> io::Result<Sole> {
        let address = SocketAddr::from_abstract_name(NAME)?;
        let socket = UnixDatagram::bind_addr(&address).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => io::Error::new(
                error.kind(),
                format!(
                    "another agent runs on this node, and the two would undo each other: stop one of them, the unit \
                     tidegate-node or the pod (`ss -xap | grep @{NAME}` names its process)"
                ),
            ),
            _ => error,
        })?;
        Ok(Sole { _socket: socket })
    }
}
