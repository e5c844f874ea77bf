//! Connections: where the server listens, and who is connected.
//!
//! Owns the socket, TLS and the life of each connection. Refuses to know requests. While the server is stopped its port stays
//! bound without listening: clients are refused as by a machine where nothing runs, and nobody else gets the port.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};

use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_rustls::TlsAcceptor;

use crate::Shared;
use crate::fault::Seat;
use crate::http::{Connection, answer};

/// What the owner of the server tells the task that listens; answered when it is done.
pub(crate) enum Order {
    /// Refuse connections from now on; those that are open stay.
    Refuse(mpsc::Sender<io::Result<()>>),
    /// Accept them again.
    Start(mpsc::Sender<io::Result<()>>),
    /// Nothing more.
    End,
}

/// A socket that holds `address` without listening.
fn hold(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// A socket that listens at `address`.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    hold(address)?.listen(1024)
}

/// Accepts connections until the end.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    mut orders: UnboundedReceiver<Order>,
) {
    let Ok(address) = listener.local_addr() else { return };
    let mut listener = Some(listener);
    let mut held: Option<TcpSocket> = None;
    loop {
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        let order = tokio::select! {
            accepted = accepted => {
                if let Ok((stream, _)) = accepted {
                    tokio::spawn(connection(shared.clone(), shared.faults.seat(), stream, tls.clone()));
                }
                continue;
            }
            order = orders.recv() => order,
        };
        match order {
            Some(Order::Refuse(done)) => {
                drop(listener.take());
                held = held.or_else(|| hold(address).ok());
                // Nobody may be waiting for it.
                let _ = done.send(Ok(()));
            }
            Some(Order::Start(done)) => {
                let started = match held.take() {
                    Some(socket) => socket.listen(1024),
                    None if listener.is_none() => listen(address),
                    None => {
                        let _ = done.send(Ok(()));
                        continue;
                    }
                };
                let _ = done.send(started.map(|started| listener = Some(started)));
            }
            Some(Order::End) | None => return,
        }
    }
}

async fn connection(shared: Arc<Shared>, mut seat: Seat, stream: TcpStream, tls: Option<TlsAcceptor>) {
    // A failure here costs only latency.
    let _ = stream.set_nodelay(true);
    let connection = Connection::default();
    let cut = connection.cut.clone();
    let served = async {
        match tls {
            Some(tls) => match tls.accept(stream).await {
                Ok(stream) => requests(shared.clone(), connection, stream).await,
                Err(error) => tracing::debug!(%error, "no TLS"),
            },
            None => requests(shared.clone(), connection, stream).await,
        }
    };
    tokio::select! {
        () = served => {}
        () = cut.notified() => {}
        () = seat.cut() => {}
    }
}

async fn requests(
    shared: Arc<Shared>,
    connection: Connection,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) {
    let router = Router::new().fallback(answer).layer(Extension(connection)).with_state(shared);
    let service = TowerToHyperService::new(router);
    let served = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection ended");
    }
}
