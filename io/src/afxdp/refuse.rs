//! Refusals: why a device is not opened, each with the command that helps.
//!
//! What can be seen from the facts is refused before anything is touched ([`refuse`]); what only the driver knows is
//! recognised by the number it answers with ([`attach_error`]).

use std::io;

use super::LINK_BYTES_MAX;
use crate::chain::CHAIN_FRAMES_MAX;
use crate::frame::HEADROOM;
use crate::netdev::NetDevice;

/// Why a device was not opened, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Nothing to open.
    #[error("no interface is configured; name at least one under dataplane.interfaces")]
    NoInterfaces,
    /// The same queue twice.
    #[error("queue {queue} of {device} is configured twice; name each interface and queue once")]
    Twice {
        /// Device.
        device: String,
        /// Queue.
        queue: u32,
    },
    /// No such device.
    #[error("there is no interface {device}; check the name with `ip link` (a network namespace has its own)")]
    Missing {
        /// Device.
        device: String,
    },
    /// The queue does not exist.
    #[error("{device} has {rx_queues} receive queues (0 to {}), not a queue {queue}; choose among those or add some with `ethtool -L {device}`", rx_queues - 1)]
    Queue {
        /// Device.
        device: String,
        /// Queue asked for.
        queue: u32,
        /// Queues there are.
        rx_queues: u32,
    },
    /// There are fewer queues than workers.
    #[error(
        "{device} has {queues} open {}, too few for {workers} workers: each needs one of every interface; add queues (`ethtool -L {device} combined {workers}`; a veth is made with numrxqueues), list more under `queues`, or run fewer workers",
        if *queues == 1 { "queue" } else { "queues" }
    )]
    FewQueues {
        /// Device.
        device: String,
        /// Queues that would be opened.
        queues: usize,
        /// Workers there are.
        workers: u32,
    },
    /// The memory is too small for so many rings and workers.
    #[error(
        "{frames} frames are too few for {sockets} queues and {workers} workers; set dataplane.frames to {needed} or more"
    )]
    FewFrames {
        /// Frames configured.
        frames: u32,
        /// Frames needed.
        needed: u32,
        /// Queues of all devices.
        sockets: usize,
        /// Workers there are.
        workers: u32,
    },
    /// The device takes VLAN tags off received packets before the program sees them.
    #[error(
        "{device} strips VLAN tags from received packets ({feature} is on), so tenants could not be told apart; run `ethtool -K {device} {switch} off`"
    )]
    VlanStripping {
        /// Device.
        device: String,
        /// Offload that is on.
        feature: &'static str,
        /// Its name for `ethtool -K`.
        switch: &'static str,
    },
    /// The device joins received packets.
    #[error("{device} joins received packets ({feature} is on); run `ethtool -K {device} {switch} off`")]
    LargeReceive {
        /// Device.
        device: String,
        /// Offload that is on.
        feature: &'static str,
        /// Its name for `ethtool -K`.
        switch: &'static str,
    },
    /// Packets can be longer than a frame.
    #[error("{device} has an MTU of {mtu} bytes, but a frame of {frame_bytes} holds packets for at most {mtu_max}; {}", mtu_fix(device, *frame_bytes, *mtu, *mtu_max))]
    Mtu {
        /// Device.
        device: String,
        /// Its MTU.
        mtu: u32,
        /// Frame size configured.
        frame_bytes: u32,
        /// Largest MTU that such frames can hold.
        mtu_max: u32,
    },
    /// The kernel knows no packets in several frames.
    #[error(
        "{device} has an MTU of {mtu} bytes, and this kernel takes no packets in several frames, which were asked for; use Linux 6.6 or newer, or packets and an MTU that fit into one frame"
    )]
    NoMultiBuffer {
        /// Device.
        device: String,
        /// Its MTU.
        mtu: u32,
    },
    /// A program that is not ours is attached.
    #[error(
        "{device} has an XDP program that is not ours ({program:?}, id {id}); stop its owner, or take it off with `ip link set dev {device} xdp off`"
    )]
    ForeignProgram {
        /// Device.
        device: String,
        /// Its name.
        program: String,
        /// The kernel's number for it.
        id: u32,
    },
    /// A program is attached that this process may not look at.
    #[error(
        "{device} has an XDP program that this process may not look at: it is not pinned at {pins}, and looking at others needs CAP_SYS_ADMIN; if an earlier tidegate-dataplane left it, give this one the same bpfDir (a BPF file system), or take it off with `ip link set dev {device} xdp off`"
    )]
    HiddenProgram {
        /// Device.
        device: String,
        /// Where its pins would be.
        pins: String,
    },
    /// Another socket has the queue.
    #[error(
        "queue {queue} of {device} is in use by another AF_XDP socket; stop the process that has it (another tidegate-dataplane?)"
    )]
    Busy {
        /// Device.
        device: String,
        /// Queue.
        queue: u32,
    },
    /// Zero-copy was asked for, and the driver cannot do it.
    #[error("{device} (driver {driver}) has no zero-copy AF_XDP here; use mode: auto or mode: copy")]
    NoZeroCopy {
        /// Device.
        device: String,
        /// Its driver.
        driver: String,
    },
    /// The driver has no native XDP, and generic was not allowed.
    #[error("{device} (driver {driver}) has no native XDP; use mode: skb (slow) or another device")]
    NoNative {
        /// Device.
        device: String,
        /// Its driver.
        driver: String,
    },
    /// The driver found too few queues for a native program.
    #[error(
        "{device} has too few queues for XDP ({detail}): a veth needs as many receive queues as its peer has transmit queues (`ip link add … numrxqueues N … peer … numtxqueues N`), a NIC room for transmit queues of its own (`ethtool -L {device}`)"
    )]
    TooFewQueues {
        /// Device.
        device: String,
        /// What the kernel said.
        detail: String,
    },
    /// The driver cannot run XDP at this MTU.
    #[error(
        "{device} cannot run XDP at this MTU ({detail}); lower the MTU of {device}, and for a veth that of its peer"
    )]
    DriverMtu {
        /// Device.
        device: String,
        /// What the kernel said.
        detail: String,
    },
    /// Not allowed.
    #[error(
        "{what} is not permitted ({source}); run as root, or with CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and CAP_IPC_LOCK"
    )]
    NotPermitted {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Packet memory could not be had.
    #[error("packet memory of {frames} frames of {frame_bytes} bytes: {source}")]
    Memory {
        /// Frames asked for.
        frames: u32,
        /// Bytes of each.
        frame_bytes: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// Anything else.
    #[error("{what}: {source}")]
    Other {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
}

fn mtu_fix(device: &str, frame_bytes: u32, mtu: u32, mtu_max: u32) -> String {
    let lower = format!("run `ip link set dev {device} mtu {mtu_max}`");
    if frame_bytes < 4096 && mtu <= mtu_limit(4096, 1) { format!("set frameBytes: 4096 or {lower}") } else { lower }
}

/// Largest MTU whose packets, with two VLAN tags, fit so many frames behind the standard headroom of each.
fn mtu_limit(frame_bytes: u32, frames: usize) -> u32 {
    let frames = u32::try_from(frames).unwrap_or(u32::MAX);
    frame_bytes.saturating_sub(u32::from(HEADROOM)).saturating_mul(frames).saturating_sub(LINK_BYTES_MAX)
}

/// What can be told from the facts alone; the first of it.
pub(super) fn refuse(
    device: &NetDevice,
    queues: &[u32],
    frame_bytes: u32,
    multi_buffer: bool,
) -> Result<(), OpenError> {
    refusals(device, queues, frame_bytes, multi_buffer).into_iter().next().map_or(Ok(()), Err)
}

/// All of what can be told from the facts alone.
pub(super) fn refusals(device: &NetDevice, queues: &[u32], frame_bytes: u32, multi_buffer: bool) -> Vec<OpenError> {
    let name = || device.name.clone();
    let mut refusals = Vec::new();
    for (at, &queue) in queues.iter().enumerate() {
        if queue >= device.rx_queues {
            refusals.push(OpenError::Queue { device: name(), queue, rx_queues: device.rx_queues });
        }
        if queues[..at].contains(&queue) {
            refusals.push(OpenError::Twice { device: name(), queue });
        }
    }
    // A veth takes no tags off, whatever it says. They are missing if its peer does not write them into the packet
    // (`txvlan` there), which cannot be seen from here.
    if device.driver != "veth" {
        let strips = [("rx-vlan-hw-parse", "rxvlan"), ("rx-vlan-stag-hw-parse", "rx-vlan-stag-hw-parse")];
        let on = strips.into_iter().filter(|(feature, _)| device.has(feature));
        refusals.extend(on.map(|(feature, switch)| OpenError::VlanStripping { device: name(), feature, switch }));
    }
    let joins = [("rx-lro", "lro"), ("rx-gro-hw", "rx-gro-hw")].into_iter().filter(|(feature, _)| device.has(feature));
    refusals.extend(joins.map(|(feature, switch)| OpenError::LargeReceive { device: name(), feature, switch }));
    let frames = if multi_buffer { CHAIN_FRAMES_MAX } else { 1 };
    let mtu_max = mtu_limit(frame_bytes, frames);
    if device.mtu > mtu_max {
        refusals.push(OpenError::Mtu { device: name(), mtu: device.mtu, frame_bytes, mtu_max });
    }
    refusals
}

/// Whether every worker can have a queue of the device.
pub(super) fn enough_queues(device: &NetDevice, queues: &[u32], workers: u32) -> Result<(), OpenError> {
    if u32::try_from(queues.len()).is_ok_and(|queues| queues < workers) {
        return Err(OpenError::FewQueues { device: device.name.clone(), queues: queues.len(), workers });
    }
    Ok(())
}

/// What the kernel's refusal of the program means, by the numbers that drivers use for it.
pub(super) fn attach_error(device: &NetDevice, source: io::Error, log: &str) -> OpenError {
    let (name, driver) = (device.name.clone(), device.driver.clone());
    let detail = if log.is_empty() { source.to_string() } else { log.to_owned() };
    match source.raw_os_error() {
        Some(libc::ENOSPC) => OpenError::TooFewQueues { device: name, detail },
        Some(libc::ERANGE) => OpenError::DriverMtu { device: name, detail },
        Some(libc::EOPNOTSUPP) => OpenError::NoNative { device: name, driver },
        // Somebody was faster: between the look and the attachment.
        Some(libc::EBUSY | libc::EEXIST) => OpenError::ForeignProgram { device: name, program: detail, id: 0 },
        _ => permission(format!("attaching the XDP program to {} ({detail})", device.name), source),
    }
}

/// An error of the system, told apart by whether more privilege would help.
pub(super) fn permission(what: String, source: io::Error) -> OpenError {
    match source.kind() {
        io::ErrorKind::PermissionDenied => OpenError::NotPermitted { what, source },
        _ => OpenError::Other { what, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> NetDevice {
        NetDevice {
            name: "wan0".to_owned(),
            ifindex: 2,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            running: true,
            rx_queues: 2,
            driver: "ixgbe".to_owned(),
            features: vec!["rx-checksum".to_owned()],
        }
    }

    fn refusal(device: &NetDevice, queues: &[u32], frame_bytes: u32) -> String {
        refuse(device, queues, frame_bytes, false).unwrap_err().to_string()
    }

    #[test]
    fn a_plain_device_is_not_refused() {
        refuse(&device(), &[0, 1], 2048, false).unwrap();
        refuse(&NetDevice { mtu: 1770, ..device() }, &[], 2048, false).unwrap();
        refuse(&NetDevice { mtu: 65_535, ..device() }, &[], 4096, true).unwrap();
    }

    #[test]
    fn every_refusal_names_the_device_and_the_fix() {
        let with = |feature: &str| NetDevice { features: vec![feature.to_owned()], ..device() };
        for (text, parts) in [
            (refusal(&device(), &[2], 2048), ["wan0 has 2 receive queues (0 to 1)", "ethtool -L wan0"]),
            (refusal(&device(), &[1, 1], 2048), ["queue 1 of wan0", "once"]),
            (refusal(&with("rx-vlan-hw-parse"), &[0], 2048), ["wan0 strips VLAN tags", "ethtool -K wan0 rxvlan off"]),
            (refusal(&with("rx-vlan-stag-hw-parse"), &[0], 2048), ["strips", "-K wan0 rx-vlan-stag-hw-parse off"]),
            (refusal(&with("rx-lro"), &[0], 2048), ["wan0 joins", "ethtool -K wan0 lro off"]),
            (refusal(&with("rx-gro-hw"), &[0], 2048), ["wan0 joins", "ethtool -K wan0 rx-gro-hw off"]),
            (refusal(&NetDevice { mtu: 1771, ..device() }, &[0], 2048), ["at most 1770", "frameBytes: 4096"]),
            (
                refusal(&NetDevice { mtu: 9000, ..device() }, &[0], 4096),
                ["at most 3818", "ip link set dev wan0 mtu 3818"],
            ),
        ] {
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        }
    }

    #[test]
    fn every_worker_needs_a_queue() {
        enough_queues(&device(), &[0, 1], 2).unwrap();
        let text = enough_queues(&device(), &[1], 2).unwrap_err().to_string();
        for part in ["wan0 has 1 open queue, too few for 2 workers", "ethtool -L wan0 combined 2", "fewer workers"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_veth_is_not_refused_for_an_offload_it_does_not_have() {
        let veth = NetDevice { driver: "veth".to_owned(), features: vec!["rx-vlan-hw-parse".to_owned()], ..device() };
        refuse(&veth, &[0], 2048, false).unwrap();
    }
}
