//! Opening devices: from their names to ports, packet memory and pinholes, or to a refusal that says what to do.
//!
//! The order matters. Every device is looked at before any is touched. Sockets are bound before a program is attached,
//! so that a second instance fails before it has taken anything from the first. Sockets are in the map before the
//! program is attached, so that it never sees a queue without one. What fails half way is undone, except that a
//! pinhole that was found stays: it was guarding the traffic before we came.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::thread::sleep;
use std::time::{Duration, Instant};

use xsk_rs::config::{BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig};
use xsk_rs::{Socket, Umem};

use super::refuse::{OpenError, attach_error, enough_queues, permission, refusals, refuse};
use super::{AfXdpPort, Parts, SocketOwner, socket};
use crate::frame::KERNEL_FRAME_BYTES_MAX;
use crate::mem::{HugePages, Pages};
use crate::netdev::NetDevice;
use crate::pinhole::{self, Attachment, Found, OnDeath, Pinhole, Pins};
use crate::pool::{self, Memory, Pool};
use crate::port::{Mode, PortFacts};

/// How long a queue that is still busy is tried again: the kernel releases one some time after its socket was closed, which is
/// seconds on a machine that has more to do than it can.
const BUSY_RETRY: Duration = Duration::from_secs(5);
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// Entries of each ring: enough for a worker that does not run for half a millisecond at 4 million packets a second.
const RING_ENTRIES_MAX: u32 = 2048;
const RING_ENTRIES_MIN: u32 = 64;

/// Frames that a worker may keep for a while: those that wait for a neighbour or for the first of their fragments, its
/// stock, and what is in its hands.
const FRAMES_PER_WORKER: u32 = 1024;

/// Frames of the memory with which a device is asked for its mode.
const PROBE_FRAMES: u32 = 128;

/// Which mode to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ModeChoice {
    /// The best that each device can do.
    #[default]
    Auto,
    /// Zero-copy, or an error.
    ZeroCopy,
    /// The kernel copies, native program.
    Copy,
    /// The kernel copies, generic program.
    Skb,
}

/// One device to open.
#[derive(Debug, Clone, Default)]
pub struct InterfaceConfig {
    /// Its name.
    pub name: String,
    /// Queues to open; all receive queues if not given. What is ours and arrives on another queue finds no socket, and
    /// goes the way of the dead: so steer it to these.
    pub queues: Option<Vec<u32>>,
}

/// What to open, and how.
#[derive(Debug, Clone)]
pub struct OpenConfig {
    /// Devices.
    pub interfaces: Vec<InterfaceConfig>,
    /// How frames pass.
    pub mode: ModeChoice,
    /// Workers that share the queues: each must have one of every device.
    pub workers: u32,
    /// Frames of each group's memory.
    pub frames: u32,
    /// Bytes of a frame: 2048 or 4096.
    pub frame_bytes: u32,
    /// Packets may lie in several frames ([`Port::has_chains`](crate::Port::has_chains)), so a device's MTU may be larger than a
    /// frame. Needs Linux 6.6.
    pub multi_buffer: bool,
    /// Pages of each group's memory.
    pub huge: HugePages,
    /// What becomes of our packets when no worker lives.
    pub on_death: OnDeath,
    /// In zero-copy mode, let the workers' system calls drive the device. For workers that never sleep.
    pub busy_poll: bool,
    /// Directory in a BPF file system where pinholes are pinned, so that the next process can follow without
    /// `CAP_SYS_ADMIN`; made if it is not there.
    pub pin_dir: Option<PathBuf>,
}

impl Default for OpenConfig {
    fn default() -> Self {
        OpenConfig {
            interfaces: Vec::new(),
            mode: ModeChoice::Auto,
            workers: 1,
            frames: 16384,
            frame_bytes: 2048,
            multi_buffer: false,
            huge: HugePages::Auto,
            on_death: OnDeath::Drop,
            busy_poll: false,
            pin_dir: None,
        }
    }
}

/// Everything that was opened.
#[derive(Debug)]
pub struct Opened {
    /// One port per queue, in the order of the configuration.
    pub ports: Vec<AfXdpPort>,
    /// One pool per group: `pools[n].group()` is what ports have in their facts.
    pub pools: Vec<Pool>,
    /// One pinhole per device, in the order of the configuration.
    pub pinholes: Vec<Pinhole>,
}

/// One device on its way to being open.
struct Candidate {
    device: NetDevice,
    queues: Vec<u32>,
    pins: Option<Pins>,
    found: Option<Found>,
    zero_copy: bool,
}

/// A bound socket on its way to being a port.
struct Bound {
    candidate: usize,
    queue: u32,
    group: usize,
    owner: SocketOwner,
    descriptor: OwnedFd,
}

/// Opens every configured queue.
///
/// # Errors
///
/// The first refusal or failure; then nothing stays open or attached that was not before.
pub fn open(config: &OpenConfig) -> Result<Opened, OpenError> {
    pinhole::keep_log();
    let memory_error = |source| OpenError::Memory { frames: config.frames, frame_bytes: config.frame_bytes, source };
    pool::check_size(config.frames, config.frame_bytes, KERNEL_FRAME_BYTES_MAX).map_err(memory_error)?;
    let candidates = candidates(config)?;
    enough_frames(config, candidates.iter().map(|candidate| candidate.queues.len()).sum())?;

    // One memory per mode: the kernel forces the mode of the first socket on all that share its memory.
    let mut modes: Vec<bool> = candidates.iter().map(|candidate| candidate.zero_copy).collect();
    modes.sort_unstable();
    modes.dedup();
    let mut pools = Vec::new();
    let mut bound = Vec::new();
    for (group, zero_copy) in modes.into_iter().enumerate() {
        let members = || candidates.iter().enumerate().filter(|(_, candidate)| candidate.zero_copy == zero_copy);
        let sockets = members().map(|(_, candidate)| candidate.queues.len()).sum();
        let entries = ring_entries(config.frames, sockets);
        let pool = packet_memory(config, config.frames, config.huge, entries)?;
        for (index, candidate) in members() {
            for &queue in &candidate.queues {
                let (owner, descriptor) = bind(config, &pool, candidate, queue, entries)?;
                bound.push(Bound { candidate: index, queue, group, owner, descriptor });
            }
        }
        pools.push((pool, entries));
    }
    // In the order of the configuration, whatever group they are of.
    bound.sort_by_key(|bound| bound.candidate);
    let mut pinholes = Vec::new();
    let result = assemble(config, &candidates, &pools, bound, &mut pinholes);
    match result {
        Ok(ports) => Ok(Opened { ports, pools: pools.into_iter().map(|(pool, _)| pool).collect(), pinholes }),
        Err(error) => {
            pinholes.into_iter().filter(|pinhole| !pinhole.is_adopted()).for_each(|pinhole| {
                let _ = pinhole.close();
            });
            Err(error)
        }
    }
}

/// Looks at every device, touching none but for the question of its mode.
fn candidates(config: &OpenConfig) -> Result<Vec<Candidate>, OpenError> {
    if config.interfaces.is_empty() {
        return Err(OpenError::NoInterfaces);
    }
    let mut candidates: Vec<Candidate> = Vec::new();
    for interface in &config.interfaces {
        let (device, queues) = named(interface)?;
        refuse(&device, &queues, config.frame_bytes, config.multi_buffer)?;
        enough_queues(&device, &queues, config.workers)?;
        if let (Some(_), Some(queue)) = (candidates.iter().find(|one| one.device.name == device.name), queues.first()) {
            return Err(OpenError::Twice { device: device.name, queue: *queue });
        }
        let (pins, found) = program_on(&device, config)?;
        candidates.push(Candidate { device, queues, pins, found, zero_copy: false });
    }
    for candidate in &mut candidates {
        candidate.zero_copy = can_zero_copy(config, candidate)?;
    }
    Ok(candidates)
}

/// Everything that [`open`] would refuse and that can be seen without touching a device, of each device in turn. Binds
/// nothing, so a dataplane may be running; what only the driver knows is not in it.
pub fn preflight(config: &OpenConfig) -> Vec<OpenError> {
    let mut refused = Vec::new();
    let mut sockets = 0;
    for interface in &config.interfaces {
        let (device, queues) = match named(interface) {
            Ok(named) => named,
            Err(error) => {
                refused.push(error);
                continue;
            }
        };
        sockets += queues.len();
        refused.extend(refusals(&device, &queues, config.frame_bytes, config.multi_buffer));
        refused.extend(enough_queues(&device, &queues, config.workers).err());
        refused.extend(program_on(&device, config).err());
    }
    if config.interfaces.is_empty() {
        refused.push(OpenError::NoInterfaces);
    }
    refused.extend(enough_frames(config, sockets).err());
    refused
}

/// The device of an interface, and its queues to open.
fn named(interface: &InterfaceConfig) -> Result<(NetDevice, Vec<u32>), OpenError> {
    let device = NetDevice::query(&interface.name).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => OpenError::Missing { device: interface.name.clone() },
        _ => OpenError::Other { what: format!("asking about {}", interface.name), source },
    })?;
    let queues = interface.queues.clone().unwrap_or_else(|| (0..device.rx_queues).collect());
    Ok((device, queues))
}

/// Where the pins of a device's pinhole are, and the pinhole that an earlier process left there; any other program is an error.
fn program_on(device: &NetDevice, config: &OpenConfig) -> Result<(Option<Pins>, Option<Found>), OpenError> {
    let pins = config.pin_dir.as_deref().map(|root| Pins::of(root, device.ifindex));
    let found = pinhole::find(device.ifindex, pins.as_ref()).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => OpenError::HiddenProgram {
            device: device.name.clone(),
            pins: pins.as_ref().map_or_else(|| "nowhere".to_owned(), |pins| pins.directory().display().to_string()),
        },
        _ => OpenError::Other { what: format!("asking {} for its XDP program", device.name), source },
    })?;
    match found.as_ref().filter(|found| !found.is_ours()) {
        Some(foreign) => Err(OpenError::ForeignProgram {
            device: device.name.clone(),
            program: foreign.name.clone(),
            id: foreign.id,
        }),
        None => Ok((pins, found)),
    }
}

/// Asks a device for its mode by binding a socket of its own to it, alone.
fn can_zero_copy(config: &OpenConfig, candidate: &Candidate) -> Result<bool, OpenError> {
    let Some(&queue) = candidate.queues.first() else { return Ok(false) };
    if matches!(config.mode, ModeChoice::Copy | ModeChoice::Skb) {
        return Ok(false);
    }
    let pool = packet_memory(config, PROBE_FRAMES, HugePages::Off, RING_ENTRIES_MIN)?;
    match bind(config, &pool, candidate, queue, RING_ENTRIES_MIN) {
        Ok((_owner, descriptor)) => socket::is_zero_copy(descriptor.as_fd()).map_err(|source| OpenError::Other {
            what: format!("asking {} for its AF_XDP mode", candidate.device.name),
            source,
        }),
        Err(error) => Err(error),
    }
}

/// Refuses memory that the smallest rings of all sockets and what workers hold would use up.
fn enough_frames(config: &OpenConfig, sockets: usize) -> Result<(), OpenError> {
    // Rings leave half of the frames, see `ring_entries`; the other half is for what workers hold.
    let for_rings = u32::try_from(sockets).unwrap_or(u32::MAX).saturating_mul(2 * 2 * RING_ENTRIES_MIN);
    let for_workers = config.workers.saturating_mul(2 * FRAMES_PER_WORKER);
    let needed = for_rings.max(for_workers);
    if config.frames < needed {
        return Err(OpenError::FewFrames { frames: config.frames, needed, sockets, workers: config.workers });
    }
    Ok(())
}

/// A power of two of entries for each ring, so that full fill and send rings of all sockets leave half of the frames.
fn ring_entries(frames: u32, sockets: usize) -> u32 {
    let share = frames / 4 / u32::try_from(sockets.max(1)).unwrap_or(u32::MAX);
    let entries = if share == 0 { 1 } else { 1 << share.ilog2() };
    entries.clamp(RING_ENTRIES_MIN, RING_ENTRIES_MAX)
}

/// Memory that the kernel knows.
fn packet_memory(config: &OpenConfig, frames: u32, huge: HugePages, entries: u32) -> Result<Pool, OpenError> {
    let frame_bytes = config.frame_bytes;
    let error = |source| OpenError::Memory { frames, frame_bytes, source };
    let other = |text: String| error(io::Error::other(text));
    let ring = QueueSize::new(entries).map_err(|cause| other(cause.to_string()))?;
    let size = FrameSize::new(frame_bytes).map_err(|cause| other(cause.to_string()))?;
    let umem_config = UmemConfig::builder()
        .frame_size(size)
        .fill_queue_size(ring)
        .comp_queue_size(ring)
        .build()
        .map_err(|cause| other(cause.to_string()))?;
    // Reserved huge pages come in whole ones, so the number of frames is rounded up to fill them.
    let per_page = (2 << 20) / frame_bytes;
    let create = |frames: u32, huge: bool| {
        let count = NonZeroU32::new(frames).ok_or_else(|| other("no frames".to_owned()))?;
        Umem::new(umem_config, count, huge)
            .map(|(umem, descriptors)| (umem, descriptors, frames))
            .map_err(|cause| permission("registering packet memory".to_owned(), os_error(&cause)))
    };
    let (made, pages) = match huge {
        HugePages::Off => (create(frames, false), Pages::Plain),
        HugePages::On => (create(frames.next_multiple_of(per_page), true), Pages::Huge),
        HugePages::Auto => match create(frames.next_multiple_of(per_page), true) {
            Ok(made) => (Ok(made), Pages::Huge),
            Err(_) => (create(frames, false), Pages::Plain),
        },
    };
    let (umem, mut descriptors, frames) = made.map_err(|cause| match (huge, cause) {
        (HugePages::On, OpenError::Other { source, .. }) => {
            other(format!("{source}; set vm.nr_hugepages or hugePages: auto"))
        }
        (_, OpenError::Other { source, .. }) => error(source),
        (_, cause) => cause,
    })?;
    let first = descriptors.first_mut().ok_or_else(|| other("no frames".to_owned()))?;
    // Descriptors point behind the headroom; the memory begins before that.
    let before = first.addr();
    // SAFETY: the descriptor is of this UMEM, and nobody has access to it yet.
    let address = unsafe { umem.data_mut(first) }.contents().as_ptr().addr() - before;
    // The mapping's pointer went to the kernel through C, so its provenance is exposed.
    let start = NonNull::new(std::ptr::with_exposed_provenance_mut::<u8>(address))
        .ok_or_else(|| other("memory at zero".to_owned()))?;
    // SAFETY: the UMEM keeps `frames * frame_bytes` bytes from `start` mapped, they are zeroed, its descriptors are
    // thrown away, and the kernel gets access to chunks only through tokens from here on.
    unsafe { Pool::from_memory(Memory::Umem(umem), start, frames, frame_bytes, pages) }.map_err(error)
}

/// Binds a socket to a queue, waiting a while for one that is busy.
fn bind(
    config: &OpenConfig,
    pool: &Pool,
    candidate: &Candidate,
    queue: u32,
    entries: u32,
) -> Result<(SocketOwner, OwnedFd), OpenError> {
    let (device, mode) = (&candidate.device, config.mode);
    let what = || format!("opening queue {queue} of {}", device.name);
    let other = |source| OpenError::Other { what: what(), source };
    let force = match mode {
        ModeChoice::Auto => BindFlags::empty(),
        ModeChoice::ZeroCopy => BindFlags::XDP_ZEROCOPY,
        ModeChoice::Copy | ModeChoice::Skb => BindFlags::XDP_COPY,
    };
    let several = if config.multi_buffer { BindFlags::XDP_USE_SG } else { BindFlags::empty() };
    let ring = QueueSize::new(entries).map_err(|cause| other(io::Error::other(cause.to_string())))?;
    let socket_config = SocketConfig::builder()
        .rx_queue_size(ring)
        .tx_queue_size(ring)
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .bind_flags(BindFlags::XDP_USE_NEED_WAKEUP | force | several)
        .build();
    let name: Interface = device.name.parse().map_err(|_| OpenError::Missing { device: device.name.clone() })?;
    let depot = pool.depot();
    let umem = depot.umem().ok_or_else(|| other(io::Error::other("not kernel memory")))?;
    let give_up = Instant::now() + BUSY_RETRY;
    loop {
        // SAFETY: INHIBIT_PROG_LOAD is set, which is all that the contract asks for.
        let cause = match unsafe { Socket::new(socket_config, umem, &name, queue) } {
            Ok((tx, rx, Some((fill, completion)))) => {
                // SAFETY: the queues keep the descriptor open while it is duplicated.
                let borrowed = unsafe { BorrowedFd::borrow_raw(rx.fd().as_raw_fd()) };
                let descriptor = borrowed.try_clone_to_owned().map_err(other)?;
                return Ok((SocketOwner { _queues: (tx, rx, fill, completion) }, descriptor));
            }
            Ok((_, _, None)) => return Err(OpenError::Twice { device: device.name.clone(), queue }),
            Err(cause) => os_error(&cause),
        };
        match cause.raw_os_error() {
            Some(libc::EBUSY) if Instant::now() < give_up => sleep(BUSY_PAUSE),
            Some(libc::EBUSY) => return Err(OpenError::Busy { device: device.name.clone(), queue }),
            // Drivers that know zero-copy, but not for this device, say EINVAL (`virtnet_xsk_pool_enable`,
            // drivers/net/virtio_net.c). What else that could mean was refused before.
            Some(libc::EOPNOTSUPP | libc::EINVAL) if mode == ModeChoice::ZeroCopy => {
                return Err(OpenError::NoZeroCopy { device: device.name.clone(), driver: device.driver.clone() });
            }
            // A flag that older kernels do not know.
            Some(libc::EINVAL) if config.multi_buffer => {
                return Err(OpenError::NoMultiBuffer { device: device.name.clone(), mtu: device.mtu });
            }
            _ => return Err(permission(what(), cause)),
        }
    }
}

/// Loads and attaches the pinholes and makes the ports. Pinholes that were attached are in `pinholes` even on failure.
fn assemble(
    config: &OpenConfig,
    candidates: &[Candidate],
    pools: &[(Pool, u32)],
    bound: Vec<Bound>,
    pinholes: &mut Vec<Pinhole>,
) -> Result<Vec<AfXdpPort>, OpenError> {
    let mut ports = Vec::new();
    let mut bound = bound.into_iter().peekable();
    for (index, candidate) in candidates.iter().enumerate() {
        let device = &candidate.device;
        let what = |doing: &str| format!("{doing} {}", device.name);
        let found = candidate.found.as_ref();
        let pins = candidate.pins.clone();
        let mut pinhole = Pinhole::load(&device.name, device.ifindex, found, pins, config.multi_buffer)
            .map_err(|source| permission(what("loading the XDP program for"), source))?;
        let other = |source| OpenError::Other { what: what("preparing"), source };
        pinhole.set_on_death(config.on_death).map_err(other)?;
        let mut connected = Vec::new();
        while let Some(socket) = bound.next_if(|bound| bound.candidate == index) {
            let connection = pinhole.connect(socket.queue, socket.descriptor.as_fd()).map_err(other)?;
            connected.push((socket, connection));
        }
        let attachment = attach(config.mode, candidate, &mut pinhole)?;
        pinholes.push(pinhole);
        for (socket, connection) in connected {
            let (pool, entries) = &pools[socket.group];
            ports.push(port(config, candidate, attachment, pool, *entries, socket, connection).map_err(other)?);
        }
    }
    Ok(ports)
}

/// Attaches natively, or generically where that was asked for or is all there is.
fn attach(mode: ModeChoice, candidate: &Candidate, pinhole: &mut Pinhole) -> Result<Attachment, OpenError> {
    let found = candidate.found.as_ref();
    let try_native = mode != ModeChoice::Skb;
    let native = if try_native { pinhole.attach(Attachment::Native, found) } else { Ok(()) };
    let (attachment, result) = match native {
        Err(cause) if cause.raw_os_error() == Some(libc::EOPNOTSUPP) && mode == ModeChoice::Auto => {
            (Attachment::Generic, pinhole.attach(Attachment::Generic, found))
        }
        result if try_native => (Attachment::Native, result),
        _ => (Attachment::Generic, pinhole.attach(Attachment::Generic, found)),
    };
    result.map(|()| attachment).map_err(|source| attach_error(&candidate.device, source, &pinhole::take_log()))
}

fn port(
    config: &OpenConfig,
    candidate: &Candidate,
    attachment: Attachment,
    pool: &Pool,
    entries: u32,
    bound: Bound,
    connection: pinhole::Connection,
) -> io::Result<AfXdpPort> {
    let descriptor = bound.descriptor.as_fd();
    // The kernel has the last word on what was got.
    let mode = match (socket::is_zero_copy(descriptor)?, attachment) {
        (true, _) => Mode::ZeroCopy,
        (false, Attachment::Native) => Mode::Copy,
        (false, Attachment::Generic) => Mode::Skb,
    };
    let mut busy_poll = false;
    match mode {
        Mode::ZeroCopy if config.busy_poll => busy_poll = socket::prefer_busy_poll(descriptor, 64).is_ok(),
        Mode::ZeroCopy => {}
        _ => socket::tune_copy(descriptor, entries),
    }
    let NetDevice { name, ifindex, mac, mtu, .. } = &candidate.device;
    let facts = PortFacts {
        device: name.clone(),
        ifindex: *ifindex,
        queue: bound.queue,
        mac: *mac,
        mtu: *mtu,
        mode,
        group: pool.group(),
    };
    AfXdpPort::new(Parts {
        facts,
        depot: pool.depot(),
        ring_entries: entries,
        multi_buffer: config.multi_buffer,
        busy_poll,
        connection,
        descriptor: bound.descriptor,
        socket: bound.owner,
    })
}

/// An error of the crates below as the system's error it came from.
fn os_error(cause: &(dyn std::error::Error + 'static)) -> io::Error {
    let mut at = Some(cause);
    while let Some(error) = at {
        if let Some(number) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return io::Error::from_raw_os_error(number);
        }
        at = error.source();
    }
    io::Error::other(cause.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_leave_half_of_the_frames() {
        for (frames, sockets, entries) in
            [(16384, 2, 2048), (16384, 4, 1024), (1024, 2, 128), (256, 2, 64), (1 << 22, 1, 2048), (64, 9, 64)]
        {
            assert_eq!(ring_entries(frames, sockets), entries);
        }
    }

    #[test]
    fn frames_must_do_for_the_rings_of_all_queues_and_for_all_workers() {
        for (frames, sockets, workers, needed) in [
            (4096, 2, 1, None),
            (16384, 16, 8, None),
            (4096, 4, 2, None),
            (4096, 6, 3, Some(6144)),
            (4096, 20, 1, Some(5120)),
            (131_071, 128, 64, Some(131_072)),
        ] {
            let config = OpenConfig { frames, workers, ..OpenConfig::default() };
            match (enough_frames(&config, sockets), needed) {
                (Ok(()), None) => {}
                (Err(error), Some(needed)) => {
                    assert!(
                        error.to_string().ends_with(&format!("set dataplane.frames to {needed} or more")),
                        "{error}"
                    );
                }
                (other, _) => panic!("{frames} frames, {sockets} sockets, {workers} workers: {other:?}"),
            }
        }
    }
}
