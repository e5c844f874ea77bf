//! The pinhole: the XDP program of one device, and the maps that tell it which packets are ours.
//!
//! Its code is `bpf/pinhole.bpf.c`. This side loads it, attaches it, and keeps its maps equal to an [`Owned`]. It knows
//! addresses and ports as numbers, not what they mean.
//!
//! **It outlives the process.** The program is attached to the device itself, not through a descriptor, and holds its
//! maps. When the process dies, its sockets leave the socket map, and what is ours is dropped and counted. The next
//! start recognises the program by its name, takes its maps over with everything in them, and puts its own program in
//! its place in one step, so that there is no moment in which ours passes to the kernel. Only [`Pinhole::close`] takes
//! it off; dropping a `Pinhole`, as a panic would, leaves it. So that the next start needs no right to look at every
//! program of the machine, program and maps are pinned (`pin.rs`).
//!
//! A `Pinhole` is separate from the ports of its device and can be used from another thread than they are.

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::ops::BitOr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle, libbpf_sys};

mod pin;
mod table;

pub(crate) use pin::Pins;
use table::{Prefixes, Table, endpoint_key, masked};

#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::undocumented_unsafe_blocks, clippy::unwrap_used)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/pinhole.skel.rs"));
}

/// IANA protocol number of UDP.
const UDP: u8 = 17;

/// Name of the program in the kernel, by which an earlier instance is recognised.
const PROGRAM_NAME: &str = "tidegate";

/// Names of its maps.
const MAPS: [&str; 6] = ["prefixes_v4", "prefixes_v6", "endpoints", "sockets", "settings", "counters"];

/// Bytes of a kernel object's name, with its final zero (`BPF_OBJ_NAME_LEN`, include/uapi/linux/bpf.h).
const NAME_BYTES: usize = 16;

/// Bytes of the value in the counter map: five u64, in the order of [`PinholeCounters`].
const COUNTERS_BYTES: usize = 40;

/// What a prefix is to us. Flags add up: an address has those of every prefix that contains it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct OwnedFlags(u32);

impl OwnedFlags {
    /// Packets to these addresses are ours.
    pub const TRAFFIC: OwnedFlags = OwnedFlags(1);
    /// We answer ARP requests and neighbour solicitations for these addresses.
    pub const ANNOUNCED: OwnedFlags = OwnedFlags(2);
}

impl BitOr for OwnedFlags {
    type Output = OwnedFlags;

    fn bitor(self, other: OwnedFlags) -> OwnedFlags {
        OwnedFlags(self.0 | other.0)
    }
}

/// What is ours on a device. The order of entries has no meaning, and the same one twice is as good as once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owned {
    /// Prefixes: address (host bits have no meaning), length in bits, and what they are to us.
    pub prefixes: Vec<(IpAddr, u8, OwnedFlags)>,
    /// Tunnel endpoints: UDP packets to this address and port (host order) are ours.
    pub vteps: Vec<(IpAddr, u16)>,
    /// Single ports of addresses whose every other port is the kernel's: address, IANA protocol number (TCP, UDP or SCTP),
    /// port (host order). ICMP errors that quote a packet from there are ours too. With IP in IP (protocols 4 and 41),
    /// which has no ports: port 0.
    pub ports: Vec<(IpAddr, u8, u16)>,
}

/// How what is ours changes: what comes or has other flags, and what goes. Each is named once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnedChange {
    /// Prefixes as in [`Owned::prefixes`].
    pub set: Vec<(IpAddr, u8, OwnedFlags)>,
    /// Prefixes that are not ours any more; one that was not before is no error.
    pub gone: Vec<(IpAddr, u8)>,
    /// Single ports that come, as in [`Owned::ports`].
    pub ports_set: Vec<(IpAddr, u8, u16)>,
    /// Single ports that are not ours any more.
    pub ports_gone: Vec<(IpAddr, u8, u16)>,
}

/// What becomes of our packets when there is no socket for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDeath {
    /// They are dropped: a kernel without our state would answer them with resets, or send them on untranslated.
    #[default]
    Drop,
    /// They pass to the kernel.
    Pass,
}

/// What the program has done since it was first attached, summed over processors, and what was done about it. Every packet
/// is in exactly one of the first four.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PinholeCounters {
    /// Packets that are not ours, passed to the kernel.
    pub passed: u64,
    /// Packets that are ours, handed to a socket (which has its own counters of what it lost).
    pub redirected: u64,
    /// Packets that are ours, dropped since there was no socket.
    pub dropped_dead: u64,
    /// Packets that are ours, passed to the kernel since there was no socket.
    pub passed_dead: u64,
    /// Packets too broken to tell; among those passed.
    pub malformed: u64,
    /// How often this process found the program taken off its device and put it back. Meanwhile everything passed.
    pub reattached: u64,
}

/// What [`Pinhole::guard`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guarded {
    /// The program is on its device.
    InPlace,
    /// Somebody had taken it off; it is there again.
    Reattached,
    /// Somebody has put another program in its place, which is left alone: the kernel's number for that one.
    Replaced(u32),
}

/// How a program is attached to its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attachment {
    /// In the driver.
    Native,
    /// After the driver, on skbs.
    Generic,
}

impl Attachment {
    fn flags(self) -> u32 {
        match self {
            Attachment::Native => libbpf_sys::XDP_FLAGS_DRV_MODE,
            Attachment::Generic => libbpf_sys::XDP_FLAGS_SKB_MODE,
        }
    }
}

/// A program found on a device.
#[derive(Debug)]
pub(crate) struct Found {
    /// The kernel's number for it.
    pub(crate) id: u32,
    /// Its name.
    pub(crate) name: String,
    attachment: Attachment,
    program: OwnedFd,
    maps: BTreeMap<String, MapHandle>,
}

impl Found {
    /// Whether it is a pinhole, of this or of an earlier process.
    pub(crate) fn is_ours(&self) -> bool {
        self.name == PROGRAM_NAME && self.maps.contains_key("sockets") && self.maps.contains_key("prefixes_v4")
    }
}

/// The XDP program of one device and its maps.
#[derive(Debug)]
pub struct Pinhole {
    device: String,
    ifindex: i32,
    attachment: Attachment,
    program: OwnedFd,
    adopted: bool,
    prefixes_v4: Table,
    prefixes_v6: Table,
    /// What is in the two tables, before flags of shorter prefixes are added.
    asked_v4: Prefixes,
    asked_v6: Prefixes,
    endpoints: Table,
    sockets: Arc<MapHandle>,
    settings: MapHandle,
    counters: MapHandle,
    reattached: u64,
    pins: Option<Pins>,
    /// Why the next process will not find it by pins.
    not_pinned: Option<io::Error>,
}

impl Pinhole {
    /// Loads the program for a device, with the maps of the one that `found` says is there, if that is ours.
    ///
    /// It is not attached yet, and will be pinned where `pins` says before it is. With `multi_buffer` packets may lie in several
    /// buffers of the driver; addresses and ports are in the first.
    pub(crate) fn load(
        device: &str,
        ifindex: u32,
        found: Option<&Found>,
        pins: Option<Pins>,
        multi_buffer: bool,
    ) -> io::Result<Pinhole> {
        let ifindex = i32::try_from(ifindex).map_err(io::Error::other)?;
        let mut object = MaybeUninit::uninit();
        let mut open = skeleton::PinholeSkelBuilder::default().open(&mut object).map_err(with_log)?;
        if multi_buffer {
            open.progs.tidegate.set_flags(libbpf_sys::BPF_F_XDP_HAS_FRAGS);
        }
        let adopted = found.is_some_and(Found::is_ours);
        if let Some(found) = found.filter(|found| found.is_ours()) {
            let maps = &mut open.maps;
            adopt(&mut maps.prefixes_v4, found)?;
            adopt(&mut maps.prefixes_v6, found)?;
            adopt(&mut maps.endpoints, found)?;
            adopt(&mut maps.sockets, found)?;
            adopt(&mut maps.settings, found)?;
            adopt(&mut maps.counters, found)?;
        }
        let loaded = open.load().map_err(with_log)?;
        let handle = |map| MapHandle::try_from(map).map_err(error);
        Ok(Pinhole {
            device: device.to_owned(),
            ifindex,
            attachment: Attachment::Native,
            program: loaded.progs.tidegate.as_fd().try_clone_to_owned()?,
            adopted,
            prefixes_v4: Table::read(handle(&loaded.maps.prefixes_v4)?)?,
            prefixes_v6: Table::read(handle(&loaded.maps.prefixes_v6)?)?,
            asked_v4: Prefixes::default(),
            asked_v6: Prefixes::default(),
            endpoints: Table::read(handle(&loaded.maps.endpoints)?)?,
            sockets: Arc::new(handle(&loaded.maps.sockets)?),
            settings: handle(&loaded.maps.settings)?,
            counters: handle(&loaded.maps.counters)?,
            reattached: 0,
            pins,
            not_pinned: None,
        })
    }

    /// The program without a device and without sockets, to try frames on.
    ///
    /// # Errors
    ///
    /// What the kernel reports.
    #[cfg(feature = "kernel-tests")]
    pub fn trial() -> io::Result<Pinhole> {
        Pinhole::load("trial", 0, None, None, false)
    }

    /// Whether the program takes `frame` for ours: the kernel runs it over these bytes, which no device has received
    /// (`BPF_PROG_TEST_RUN`).
    ///
    /// # Errors
    ///
    /// What the kernel reports; it runs nothing over less than an Ethernet header.
    #[cfg(feature = "kernel-tests")]
    pub fn takes(&self, frame: &[u8]) -> io::Result<bool> {
        let before = self.counters()?.passed;
        let mut options = libbpf_sys::bpf_test_run_opts {
            sz: libbpf_sys::size_t::try_from(size_of::<libbpf_sys::bpf_test_run_opts>()).map_err(io::Error::other)?,
            data_in: frame.as_ptr().cast(),
            data_size_in: u32::try_from(frame.len()).map_err(io::Error::other)?,
            repeat: 1,
            ..Default::default()
        };
        // SAFETY: the options' input is `frame`, of its length, and outlives the call; there is no output; the program's
        // descriptor is open.
        check(unsafe { libbpf_sys::bpf_prog_test_run_opts(self.program.as_raw_fd(), &raw mut options) })?;
        Ok(self.counters()?.passed == before)
    }

    /// Attaches the program: in the place of `found`, in one step, or where there is none.
    ///
    /// A pinhole that was attached the other way (native or generic) has to go first; the kernel knows no step for
    /// that.
    ///
    /// That it cannot be pinned is no failure, since nothing is missing until the next start: see
    /// [`Pinhole::not_pinned`].
    pub(crate) fn attach(&mut self, attachment: Attachment, found: Option<&Found>) -> io::Result<()> {
        self.not_pinned = self.pin().err();
        let attached = self.put(attachment, found);
        if let Some(pins) = &self.pins {
            match (&attached, self.adopted) {
                // A pin too many holds memory and misleads nobody.
                (Ok(()), _) => drop(describe(self.program.as_fd()).and_then(|about| pins.keep_only(about.id))),
                (Err(_), false) => pins.forget(),
                // Those of the one before are still right.
                (Err(_), true) => {}
            }
        }
        attached
    }

    /// Pins program and maps, if there is a place for that.
    fn pin(&self) -> io::Result<()> {
        let Some(pins) = &self.pins else { return Ok(()) };
        let tables = [&self.prefixes_v4, &self.prefixes_v6, &self.endpoints].map(Table::map);
        let maps = tables.into_iter().chain([&*self.sockets, &self.settings, &self.counters]).map(AsFd::as_fd);
        let maps: Vec<_> = MAPS.into_iter().zip(maps).collect();
        pins.keep(describe(self.program.as_fd())?.id, self.program.as_fd(), &maps)
    }

    fn put(&mut self, attachment: Attachment, found: Option<&Found>) -> io::Result<()> {
        let program = Some(self.program.as_fd());
        match found {
            Some(old) if old.attachment == attachment => {
                set_program(self.ifindex, program, attachment.flags(), Some(old.program.as_fd()))?;
            }
            _ => {
                if let Some(old) = found {
                    set_program(self.ifindex, None, old.attachment.flags(), Some(old.program.as_fd()))?;
                }
                let flags = attachment.flags() | libbpf_sys::XDP_FLAGS_UPDATE_IF_NOEXIST;
                set_program(self.ifindex, program, flags, None)?;
            }
        }
        self.attachment = attachment;
        Ok(())
    }

    /// Takes the program off the device, if it is still this one; from then on the kernel sees every packet.
    ///
    /// # Errors
    ///
    /// What the kernel reports, for instance that another program has taken its place.
    pub fn close(self) -> io::Result<()> {
        set_program(self.ifindex, None, self.attachment.flags(), Some(self.program.as_fd()))?;
        if let Some(pins) = &self.pins {
            pins.forget();
        }
        Ok(())
    }

    /// Why the next process will not find this pinhole unless it may look at every program of the machine
    /// (`CAP_SYS_ADMIN`): no place for pins was given, or pinning failed. `None`: it will.
    #[must_use]
    pub fn not_pinned(&self) -> Option<String> {
        match (&self.pins, &self.not_pinned) {
            (None, _) => Some("no directory in a BPF file system is given".to_owned()),
            (Some(pins), Some(error)) => Some(format!("{}: {error}", pins.directory().display())),
            (Some(_), None) => None,
        }
    }

    /// Looks whether the program is still on its device and puts it back if nothing is. A program that somebody else has put
    /// there is left alone.
    ///
    /// # Errors
    ///
    /// What the kernel reports, for instance that the device is gone.
    pub fn guard(&mut self) -> io::Result<Guarded> {
        let own = describe(self.program.as_fd())?.id;
        match attached(self.ifindex)? {
            Some((id, _)) if id == own => Ok(Guarded::InPlace),
            Some((other, _)) => Ok(Guarded::Replaced(other)),
            None => {
                let flags = self.attachment.flags() | libbpf_sys::XDP_FLAGS_UPDATE_IF_NOEXIST;
                set_program(self.ifindex, Some(self.program.as_fd()), flags, None)?;
                self.reattached += 1;
                Ok(Guarded::Reattached)
            }
        }
    }

    /// Name of the device.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Whether a pinhole of an earlier process was found and taken over.
    #[must_use]
    pub fn is_adopted(&self) -> bool {
        self.adopted
    }

    /// Makes `owned` what is ours. Only differences are written, additions before removals, so what stays ours is
    /// ours throughout.
    ///
    /// # Errors
    ///
    /// For prefixes longer than an address, and what the kernel reports (a full map, for instance). What was written
    /// by then stays, and the next call goes on from there.
    pub fn update(&mut self, owned: &Owned) -> io::Result<()> {
        let (mut v4, mut v6, mut endpoints) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (address, length, flags) in &owned.prefixes {
            let key = prefix(*address, *length)?;
            let map = if address.is_ipv4() { &mut v4 } else { &mut v6 };
            *map.entry(key).or_insert(0) |= flags.0;
        }
        for (address, port) in &owned.vteps {
            endpoints.insert(endpoint_key(*address, UDP, *port), 1);
        }
        for (address, protocol, port) in &owned.ports {
            endpoints.insert(endpoint_key(*address, *protocol, *port), 1);
        }
        (self.asked_v4, self.asked_v6) = (Prefixes::new(v4), Prefixes::new(v6));
        let tables = [
            (&mut self.prefixes_v4, self.asked_v4.trie()),
            (&mut self.prefixes_v6, self.asked_v6.trie()),
            (&mut self.endpoints, endpoints),
        ];
        let mut removals = Vec::new();
        for (table, wanted) in tables {
            table.add(&wanted)?;
            removals.push((table, wanted));
        }
        removals.into_iter().try_for_each(|(table, wanted)| table.remove_all_but(&wanted))
    }

    /// Changes what is ours by `change`, additions before removals. Costs what it names, unless a prefix is shorter than
    /// an address: those around which others may lie cost as much as [`Pinhole::update`].
    ///
    /// # Errors
    ///
    /// As [`Pinhole::update`], which is the way on after one.
    pub fn change(&mut self, change: &OwnedChange) -> io::Result<()> {
        let set = change.set.iter().map(|(address, length, flags)| (address, length, Some(flags.0)));
        let gone = change.gone.iter().map(|(address, length)| (address, length, None));
        for (address, length, flags) in set.chain(gone) {
            let key = prefix(*address, *length)?;
            let (asked, table) = match address {
                IpAddr::V4(_) => (&mut self.asked_v4, &mut self.prefixes_v4),
                IpAddr::V6(_) => (&mut self.asked_v6, &mut self.prefixes_v6),
            };
            asked.set(key, flags).into_iter().try_for_each(|(entry, flags)| table.write(entry, flags))?;
        }
        let set = change.ports_set.iter().map(|port| (port, Some(1)));
        for ((address, protocol, port), value) in set.chain(change.ports_gone.iter().map(|port| (port, None))) {
            self.endpoints.write(endpoint_key(*address, *protocol, *port), value)?;
        }
        Ok(())
    }

    /// Decides what becomes of our packets when there is no socket for them.
    ///
    /// # Errors
    ///
    /// What the kernel reports.
    pub fn set_on_death(&mut self, on_death: OnDeath) -> io::Result<()> {
        let value: u32 = match on_death {
            OnDeath::Drop => 0,
            OnDeath::Pass => 1,
        };
        self.settings.update(&0u32.to_ne_bytes(), &value.to_ne_bytes(), MapFlags::ANY).map_err(error)
    }

    /// Reads the counters.
    ///
    /// # Errors
    ///
    /// What the kernel reports.
    pub fn counters(&self) -> io::Result<PinholeCounters> {
        let per_cpu = self.counters.lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY).map_err(error)?;
        let mut sums = [0u64; COUNTERS_BYTES / 8];
        for value in per_cpu.unwrap_or_default() {
            for (sum, bytes) in sums.iter_mut().zip(value.chunks_exact(8)) {
                *sum += bytes.try_into().map_or(0, u64::from_ne_bytes);
            }
        }
        let [passed, redirected, dropped_dead, passed_dead, malformed] = sums;
        let reattached = self.reattached;
        Ok(PinholeCounters { passed, redirected, dropped_dead, passed_dead, malformed, reattached })
    }

    /// Hands packets of `queue` that are ours to `socket` from now on, and returns what takes that back when dropped.
    pub(crate) fn connect(&self, queue: u32, socket: BorrowedFd<'_>) -> io::Result<Connection> {
        let value = socket.as_raw_fd().to_ne_bytes();
        self.sockets.update(&queue.to_ne_bytes(), &value, MapFlags::ANY).map_err(error)?;
        Ok(Connection { sockets: Arc::clone(&self.sockets), queue })
    }
}

// The compiler thread has the pinholes, the workers have the ports.
const _: () = {
    const fn sendable<T: Send>() {}
    sendable::<Pinhole>();
};

/// A socket's place in a socket map; given up when dropped.
#[derive(Debug)]
pub(crate) struct Connection {
    sockets: Arc<MapHandle>,
    queue: u32,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The kernel removes sockets that are closed, but one that shares its descriptor with the UMEM lives longer.
        let _ = self.sockets.delete(&self.queue.to_ne_bytes());
    }
}

/// Length and address of a prefix, host bits cleared.
fn prefix(address: IpAddr, length: u8) -> io::Result<(u8, Vec<u8>)> {
    let bytes = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    if usize::from(length) > bytes.len() * 8 {
        let text = format!("{address}/{length} is longer than an address");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok((length, masked(bytes, length)))
}

/// Gives a map that is about to be loaded the contents of the one of the same name in `found`.
fn adopt(map: &mut libbpf_rs::OpenMapMut<'_>, found: &Found) -> io::Result<()> {
    let name = map.name().to_string_lossy().into_owned();
    let Some(old) = found.maps.get(&name) else {
        return Err(io::Error::other(format!("the program has no map {name}")));
    };
    map.reuse_fd(old.as_fd()).map_err(error)
}

/// The program on a device, if any: by its pins, else by its number, which needs `CAP_SYS_ADMIN`.
pub(crate) fn find(ifindex: u32, pins: Option<&Pins>) -> io::Result<Option<Found>> {
    let ifindex = i32::try_from(ifindex).map_err(io::Error::other)?;
    let Some((id, attachment)) = attached(ifindex)? else { return Ok(None) };
    if let Some(found) = pins.and_then(|pins| pinned(pins, id, attachment).ok()) {
        return Ok(Some(found));
    }
    // SAFETY: no pointers are passed.
    let program = own(unsafe { libbpf_sys::bpf_prog_get_fd_by_id(id) })?;
    let About { name, map_ids, .. } = describe(program.as_fd())?;
    let mut maps = BTreeMap::new();
    for map in map_ids.into_iter().map(MapHandle::from_map_id) {
        let map = map.map_err(error)?;
        maps.insert(map.name().to_string_lossy().into_owned(), map);
    }
    Ok(Some(Found { id, name, attachment, program, maps }))
}

/// Number of the program on a device, and how it is attached.
fn attached(ifindex: i32) -> io::Result<Option<(u32, Attachment)>> {
    let mut query =
        libbpf_sys::bpf_xdp_query_opts { sz: size_of::<libbpf_sys::bpf_xdp_query_opts>() as _, ..Default::default() };
    // SAFETY: `query` is a valid structure that says its own size.
    check(unsafe { libbpf_sys::bpf_xdp_query(ifindex, 0, &raw mut query) })?;
    Ok(match (query.drv_prog_id, query.skb_prog_id, query.hw_prog_id) {
        (0, 0, 0) => None,
        (0, 0, hardware) => Some((hardware, Attachment::Native)),
        (0, generic, _) => Some((generic, Attachment::Generic)),
        (native, _, _) => Some((native, Attachment::Native)),
    })
}

/// The program with this number and all its maps, by their pins.
fn pinned(pins: &Pins, id: u32, attachment: Attachment) -> io::Result<Found> {
    let program = pins.program(id)?;
    let about = describe(program.as_fd())?;
    let mut maps = BTreeMap::new();
    for name in MAPS {
        maps.insert(name.to_owned(), pins.map(name)?);
    }
    // The pins of its maps could be those of another program.
    let mut ids = maps.values().map(|map| map.info().map(|info| info.info.id).map_err(error));
    if about.id != id || !ids.all(|map| map.is_ok_and(|map| about.map_ids.contains(&map))) {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(Found { id, name: about.name, attachment, program, maps })
}

/// What the kernel tells about a program.
struct About {
    id: u32,
    name: String,
    map_ids: Vec<u32>,
}

/// Number, name and map numbers of a program.
fn describe(program: BorrowedFd<'_>) -> io::Result<About> {
    const MAPS_MAX: u32 = 64;
    let mut ids = vec![0u32; MAPS_MAX as usize];
    let mut about = libbpf_sys::bpf_prog_info {
        nr_map_ids: MAPS_MAX,
        map_ids: ids.as_mut_ptr().expose_provenance() as u64,
        ..Default::default()
    };
    let mut bytes = u32::try_from(size_of::<libbpf_sys::bpf_prog_info>()).map_err(io::Error::other)?;
    // SAFETY: `about` is a valid structure of `bytes` bytes, and `ids` has room for as many numbers as it says.
    check(unsafe { libbpf_sys::bpf_prog_get_info_by_fd(program.as_raw_fd(), &raw mut about, &raw mut bytes) })?;
    ids.truncate(about.nr_map_ids as usize);
    let mut name = [0u8; NAME_BYTES];
    for (to, from) in name.iter_mut().zip(about.name) {
        *to = from.cast_unsigned();
    }
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(NAME_BYTES);
    Ok(About { id: about.id, name: String::from_utf8_lossy(&name[..end]).into_owned(), map_ids: ids })
}

/// Attaches `program` (or none) to a device, in the place of `old` if that is given and still there.
fn set_program(
    ifindex: i32,
    program: Option<BorrowedFd<'_>>,
    flags: u32,
    old: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let options = libbpf_sys::bpf_xdp_attach_opts {
        sz: size_of::<libbpf_sys::bpf_xdp_attach_opts>() as _,
        // With an old program libbpf adds XDP_FLAGS_REPLACE.
        old_prog_fd: old.map_or(0, |fd| fd.as_raw_fd()),
        ..Default::default()
    };
    let program = program.map_or(-1, |fd| fd.as_raw_fd());
    // SAFETY: `options` is a valid structure that says its own size; the descriptors are open.
    check(unsafe { libbpf_sys::bpf_xdp_attach(ifindex, program, flags, &raw const options) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
}

fn own(fd: libc::c_int) -> io::Result<OwnedFd> {
    check(fd)?;
    // SAFETY: the kernel has just opened the descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// libbpf's error as one of the system, keeping its number's meaning.
fn error(cause: libbpf_rs::Error) -> io::Error {
    let kind = match cause.kind() {
        libbpf_rs::ErrorKind::PermissionDenied => io::ErrorKind::PermissionDenied,
        libbpf_rs::ErrorKind::NotFound => io::ErrorKind::NotFound,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, format!("{cause:#}"))
}

fn with_log(cause: libbpf_rs::Error) -> io::Error {
    let cause = error(cause);
    let log = take_log();
    if log.is_empty() { cause } else { io::Error::new(cause.kind(), format!("{cause}: {log}")) }
}

/// What libbpf had to say since it was last asked, in this process.
static LOG: Mutex<String> = Mutex::new(String::new());

/// Keeps libbpf's warnings for error texts instead of printing them.
pub(crate) fn keep_log() {
    libbpf_rs::set_print(Some((libbpf_rs::PrintLevel::Warn, |_, line| {
        let mut log = LOG.lock().unwrap_or_else(PoisonError::into_inner);
        if log.len() < 4096 {
            log.push_str(line.trim_end().trim_start_matches("libbpf: "));
            log.push_str("; ");
        }
    })));
}

/// Takes what [`keep_log`] has kept.
pub(crate) fn take_log() -> String {
    let mut log = std::mem::take(&mut *LOG.lock().unwrap_or_else(PoisonError::into_inner));
    log.truncate(log.trim_end_matches("; ").len());
    log
}
