//! The sockets of health checks, and what they answer (S-110, S-111).
//!
//! Owns one thread with a runtime of its own, a listener per address and port, and the answers, which are those of
//! kube-proxy's server: any path and method, 200 when there is a ready local endpoint and the dataplane works, else 503.
//! Refuses to know which Services there are: it is told.
//!
//! One answer per connection, few connections at once, and little patience: the ports are open to whoever reaches the node.
//! Who finds no seat gets that of the oldest: an answer takes no time, so the oldest is one that does not ask.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::PoisonError;
use std::thread;
use std::time::Duration;

use hashbrown::HashMap;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{AbortHandle, JoinHandle, LocalSet, spawn_local};
use tokio::time::{sleep, timeout};

use super::{Check, Order, Troubles};
use crate::model::Name;

/// Connections at once, over all ports; one more, and the oldest is closed.
const CONNECTIONS_MAX: usize = 256;
/// Longest life of a connection.
const CONVERSATION_MAX: Duration = Duration::from_secs(5);
/// How long until a port that could not be opened is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Pause after a connection that could not be accepted: descriptors may be short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Starts the thread; it ends when nobody can give orders any more.
pub(super) fn start(troubles: Troubles) -> io::Result<UnboundedSender<Order>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (orders, taken) = unbounded_channel();
    thread::Builder::new()
        .name("health".into())
        .spawn(move || LocalSet::new().block_on(&runtime, House::new(troubles).run(taken)))?;
    Ok(orders)
}

/// Connections that have not ended, in the order in which they came.
type Guests = Rc<RefCell<VecDeque<(u64, AbortHandle)>>>;

/// What listeners look at when they are asked.
struct Known {
    checks: HashMap<Name, Check>,
    healthy: bool,
}

struct House {
    known: Rc<RefCell<Known>>,
    addresses: Vec<IpAddr>,
    open: BTreeMap<SocketAddr, (Name, JoinHandle<()>)>,
    guests: Guests,
    troubles: Troubles,
    /// Where to listen may have changed.
    moved: bool,
}

impl House {
    fn new(troubles: Troubles) -> House {
        let known = Rc::new(RefCell::new(Known { checks: HashMap::new(), healthy: false }));
        House { known, addresses: Vec::new(), open: BTreeMap::new(), guests: Guests::default(), troubles, moved: false }
    }

    async fn run(mut self, mut orders: UnboundedReceiver<Order>) {
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => self.take(order),
                    None => return,
                },
                () = sleep(RETRY_AFTER), if self.is_troubled() => self.moved = true,
            }
            // What came together is applied together: a port may pass from one Service to another.
            while let Ok(order) = orders.try_recv() {
                self.take(order);
            }
            if std::mem::take(&mut self.moved) {
                self.move_listeners().await;
            }
        }
    }

    fn is_troubled(&self) -> bool {
        !self.troubles.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn take(&mut self, order: Order) {
        let mut known = self.known.borrow_mut();
        match order {
            Order::Healthy(healthy) => known.healthy = healthy,
            Order::Addresses(addresses) => (self.addresses, self.moved) = (addresses, true),
            Order::Check(name, Some(check)) => {
                let places = |check: &Check| (check.port, check.local_endpoints.map(|local| local.is_some()));
                self.moved |= known.checks.get(&name).map(places) != Some(places(&check));
                known.checks.insert(name, check);
            }
            Order::Check(name, None) => self.moved |= known.checks.remove(&name).is_some(),
        }
    }

    /// Closes what is not wanted any more, then opens what is.
    async fn move_listeners(&mut self) {
        let (wanted, mut troubles) = self.wanted();
        let gone: Vec<SocketAddr> =
            self.open.iter().filter(|(at, (name, _))| wanted.get(*at) != Some(name)).map(|(at, _)| *at).collect();
        for at in gone {
            if let Some((_, listener)) = self.open.remove(&at) {
                listener.abort();
                // The socket closes with the task, and another may want its port.
                let _ = listener.await;
            }
        }
        for (at, name) in wanted {
            if self.open.contains_key(&at) {
                continue;
            }
            match TcpListener::bind(at).await {
                Ok(listener) => {
                    let listen = listen(listener, name.clone(), Rc::clone(&self.known), Rc::clone(&self.guests));
                    self.open.insert(at, (name, spawn_local(listen)));
                }
                Err(error) => drop(troubles.insert(at, (name, error.to_string()))),
            }
        }
        *self.troubles.lock().unwrap_or_else(PoisonError::into_inner) = troubles;
    }

    /// Where to listen for whom, and who came too late for a port.
    fn wanted(&self) -> (BTreeMap<SocketAddr, Name>, BTreeMap<SocketAddr, (Name, String)>) {
        let known = self.known.borrow();
        let mut names: Vec<&Name> = known.checks.keys().collect();
        names.sort();
        let (mut wanted, mut troubles) = (BTreeMap::<SocketAddr, Name>::new(), BTreeMap::new());
        for (name, check) in names.into_iter().filter_map(|name| Some((name, known.checks.get(name)?))) {
            let of_family = |address: &&IpAddr| check.local_endpoints[usize::from(address.is_ipv6())].is_some();
            for address in self.addresses.iter().filter(of_family) {
                let at = SocketAddr::new(*address, check.port);
                match wanted.get(&at) {
                    Some(other) => drop(troubles.insert(at, (name.clone(), format!("{other} has the port")))),
                    None => drop(wanted.insert(at, name.clone())),
                }
            }
        }
        (wanted, troubles)
    }
}

async fn listen(listener: TcpListener, name: Name, known: Rc<RefCell<Known>>, guests: Guests) {
    let v6 = listener.local_addr().is_ok_and(|at| at.is_ipv6());
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (name, known) = (name.clone(), Rc::clone(&known));
        let conversation = async move { timeout(CONVERSATION_MAX, converse(stream, &name, v6, &known)).await };
        seat(&guests, conversation);
    }
}

/// Has a conversation begin, if need be in the place of the oldest.
fn seat<T: 'static>(guests: &Guests, conversation: impl Future<Output = T> + 'static) {
    let mut seated = guests.borrow_mut();
    let number = seated.back().map_or(0, |(last, _)| last + 1);
    if seated.len() >= CONNECTIONS_MAX
        && let Some((_, oldest)) = seated.pop_front()
    {
        oldest.abort();
    }
    let leave = Rc::clone(guests);
    let task = spawn_local(async move {
        let _ended = conversation.await;
        leave.borrow_mut().retain(|(other, _)| *other != number);
    });
    seated.push_back((number, task.abort_handle()));
}

async fn converse(stream: TcpStream, name: &Name, v6: bool, known: &RefCell<Known>) -> hyper::Result<()> {
    let answer = service_fn(|_| {
        let answer = answer(name, v6, &known.borrow());
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut server = http1::Builder::new();
    server.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(CONVERSATION_MAX);
    server.serve_connection(TokioIo::new(stream), answer).await
}

/// Body of an answer, in the order of kube-proxy's.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Told<'a> {
    service: &'a Name,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

fn answer(name: &Name, v6: bool, known: &Known) -> Response<String> {
    let local = known.checks.get(name).and_then(|check| check.local_endpoints[usize::from(v6)]).unwrap_or(0);
    let told = Told { service: name, local_endpoints: local, service_proxy_healthy: known.healthy };
    // Two names and two numbers: nothing in them can fail.
    let mut response = Response::new(serde_json::to_string(&told).unwrap_or_default());
    if local == 0 || !known.healthy {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert("Content-Type", hyper::header::HeaderValue::from_static("application/json"));
    headers.insert("X-Content-Type-Options", hyper::header::HeaderValue::from_static("nosniff"));
    headers.insert("X-Load-Balancing-Endpoint-Weight", hyper::header::HeaderValue::from(local));
    response
}
