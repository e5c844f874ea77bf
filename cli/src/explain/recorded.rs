//! Packets of capture files, to be asked about.
//!
//! Owns the reading of pcap and pcapng, with a bound, and what a file that `tidegate capture` wrote says beside the bytes: by
//! which device a frame came in, and which frame it was before all was done with it.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use pcap_file::DataLink;
use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use pcap_file::pcapng::{Block, PcapNgReader};

use crate::capture::{AFTER, AS_IT_CAME, AS_IT_LEFT, BEFORE};

/// Most bytes of a capture file that are looked through for a packet: some seconds. A file may have no end.
pub(super) const CAPTURE_BYTES_MAX: u64 = 1 << 30;
/// Most interfaces of a capture file; all that are described are kept.
const INTERFACES_MAX: usize = 65_536;
/// What a file of pcapng begins with.
const PCAPNG_MAGIC: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
/// Number of the option that is equal for all forms of a packet (draft-ietf-opsawg-pcapng section 4.3).
const PACKET_ID: u16 = 5;

/// A packet of a capture file, or as good as one.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Captured {
    pub bytes: Vec<u8>,
    /// Whether it begins with an Ethernet header.
    pub is_frame: bool,
    /// The gateway's device by which it came in.
    pub device: Option<String>,
    /// The device by which somebody recorded it, here or elsewhere.
    pub recorded_by: Option<String>,
    /// What else is to be known of it, for people.
    pub note: Option<String>,
}

/// What `tidegate capture` recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Form {
    /// Somebody else wrote the file.
    #[default]
    Unknown,
    Before,
    After,
}

/// A packet that is passed by.
#[derive(Clone, Copy, Debug)]
struct Sight {
    number: u32,
    form: Form,
    id: Option<u64>,
}

/// A packet as a file has it.
struct Found {
    link: DataLink,
    bytes: Vec<u8>,
    sight: Sight,
    /// Name of the interface; empty: it has none.
    place: String,
}

/// Packet `number` of a capture file, counted from 1 as tcpdump and Wireshark do; in place of one that `tidegate capture`
/// recorded as it left, the same packet as it came in. Of the file `bytes_max` bytes are read at most.
///
/// # Errors
/// When the file cannot be read, has no such packet, or that is of a kind that nobody can be asked about.
pub(super) fn captured(path: &Path, number: u32, bytes_max: u64) -> anyhow::Result<Captured> {
    let found = match find(path, number, bytes_max, |sight| sight.number == number)? {
        Ok(found) => found,
        Err(passed) => bail!("{} has no packet {number}: it has {passed}", path.display()),
    };
    if found.sight.form != Form::After {
        return found.captured(path, None);
    }
    let said = format!("packet {number} was recorded as it left ({}), when all had been done with it", found.place);
    let is_it = |sight: &Sight| sight.form == Form::Before && sight.id.is_some() && sight.id == found.sight.id;
    // A pipe cannot be read twice.
    let again = path.is_file().then(|| find(path, number, bytes_max, is_it)).transpose()?;
    match again {
        Some(Ok(before)) => {
            let (other, place) = (before.sight.number, &before.place);
            let note = format!("{said}; this tells of the same packet as it came in, packet {other} ({place})");
            before.captured(path, Some(note))
        }
        _ => {
            let note = format!(
                "{said}, and the file has no form of it from before: this tells what would become of it if it came in like that"
            );
            found.captured(path, Some(note))
        }
    }
}

impl Found {
    fn captured(self, path: &Path, note: Option<String>) -> anyhow::Result<Captured> {
        let is_frame = match self.link {
            DataLink::ETHERNET => true,
            DataLink::RAW | DataLink::IPV4 | DataLink::IPV6 => false,
            other => bail!("{} has frames of link type {other:?}; Ethernet and raw IP can be read", path.display()),
        };
        let of_form = |form| Some(self.place.strip_suffix(form)?.trim_end().to_owned());
        let (device, recorded_by) = match self.sight.form {
            Form::Before => (of_form(BEFORE), None),
            Form::After => (of_form(AFTER), None),
            Form::Unknown => (None, Some(self.place).filter(|place| !place.is_empty())),
        };
        Ok(Captured { bytes: self.bytes, is_frame, device, recorded_by, note })
    }
}

/// The first packet that is it, of those up to `number`; or how many packets there are before the end or that one.
fn find(
    path: &Path,
    number: u32,
    bytes_max: u64,
    is_it: impl Fn(&Sight) -> bool,
) -> anyhow::Result<Result<Found, u32>> {
    let name = path.display();
    let reading = || format!("reading {name}");
    let mut file = File::open(path).with_context(reading)?.take(bytes_max);
    let mut begin = Vec::new();
    file.by_ref().take(PCAPNG_MAGIC.len() as u64).read_to_end(&mut begin).with_context(reading)?;
    let whole = begin.as_slice().chain(&mut file);
    let mut passed = 0;
    let found = match begin == PCAPNG_MAGIC {
        true => from_pcapng(whole, number, is_it, &mut passed),
        false => from_pcap(whole, number, is_it, &mut passed),
    };
    match found {
        Ok(Some(found)) => Ok(Ok(found)),
        Ok(None) if passed >= number => Ok(Err(passed)),
        _ if file.limit() == 0 => bail!(
            "the first {bytes_max} bytes of {name}, and no more are read, have {passed} whole packets: {} are left up to \
             packet {number}",
            number - passed
        ),
        Ok(None) => Ok(Err(passed)),
        Err(error) => Err(error).with_context(|| format!("{name} as a capture file, after {passed} packets")),
    }
}

/// Reads up to packet `number`; `passed` counts those that are not it.
fn from_pcap(
    file: impl Read,
    number: u32,
    is_it: impl Fn(&Sight) -> bool,
    passed: &mut u32,
) -> anyhow::Result<Option<Found>> {
    let mut reader = PcapReader::new(file)?;
    let link = reader.header().datalink;
    while *passed < number {
        // As it stands there: a packet that was cut when it was captured is one too.
        let Some(packet) = reader.next_raw_packet() else { return Ok(None) };
        let packet = packet?;
        let sight = Sight { number: *passed + 1, form: Form::Unknown, id: None };
        if is_it(&sight) {
            return Ok(Some(Found { link, bytes: packet.data.into_owned(), sight, place: String::new() }));
        }
        *passed += 1;
    }
    Ok(None)
}

fn from_pcapng(
    file: impl Read,
    number: u32,
    is_it: impl Fn(&Sight) -> bool,
    passed: &mut u32,
) -> anyhow::Result<Option<Found>> {
    let mut reader = PcapNgReader::new(file)?;
    // One per interface of the section.
    let mut forms: Vec<Form> = Vec::new();
    while *passed < number {
        let Some(block) = reader.next_block() else { return Ok(None) };
        let (interface, id, data) = match block? {
            Block::EnhancedPacket(packet) => (packet.interface_id, id(&packet), packet.data),
            Block::SimplePacket(packet) => (0, None, packet.data),
            Block::InterfaceDescription(interface) if forms.len() < INTERFACES_MAX => {
                forms.push(form(&interface));
                continue;
            }
            Block::InterfaceDescription(_) => bail!("it describes over {INTERFACES_MAX} interfaces"),
            Block::SectionHeader(_) => {
                forms.clear();
                continue;
            }
            _ => continue,
        };
        let interface = usize::try_from(interface)?;
        let sight = Sight { number: *passed + 1, form: forms.get(interface).copied().unwrap_or_default(), id };
        if !is_it(&sight) {
            *passed += 1;
            continue;
        }
        let bytes = data.into_owned();
        let place = reader.interfaces().get(interface);
        let place = place.ok_or_else(|| anyhow!("interface {interface} is not described"))?;
        return Ok(Some(Found { link: place.linktype, bytes, sight, place: name(place) }));
    }
    Ok(None)
}

fn id(packet: &EnhancedPacketBlock<'_>) -> Option<u64> {
    packet.options.iter().find_map(|option| match option {
        // Only compared, so that its byte order is no matter.
        EnhancedPacketOption::Unknown(option) if option.code == PACKET_ID => {
            Some(u64::from_le_bytes(option.value.as_ref().try_into().ok()?))
        }
        _ => None,
    })
}

fn form(interface: &InterfaceDescriptionBlock<'_>) -> Form {
    let described = interface.options.iter().find_map(|option| match option {
        InterfaceDescriptionOption::IfDescription(text) if text == AS_IT_CAME => Some(Form::Before),
        InterfaceDescriptionOption::IfDescription(text) if text == AS_IT_LEFT => Some(Form::After),
        _ => None,
    });
    described.unwrap_or_default()
}

fn name(interface: &InterfaceDescriptionBlock<'_>) -> String {
    let name = interface.options.iter().find_map(|option| match option {
        InterfaceDescriptionOption::IfName(name) => Some(name.clone().into_owned()),
        _ => None,
    });
    name.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;
    use crate::capture::pcapng::{Interface, Packet, Writer};

    /// A file as `tidegate capture` writes it, of these packets: interface and packet id.
    fn written(directory: &Path, packets: &[(u32, u64)]) -> PathBuf {
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file, "test").unwrap();
        for device in ["wan0", "lan0"] {
            for (form, description) in [(BEFORE, AS_IT_CAME), (AFTER, AS_IT_LEFT)] {
                let interface =
                    Interface { name: &format!("{device} {form}"), description, filter: "", snap_bytes: 99 };
                writer.interface(&interface).unwrap();
            }
        }
        for (number, (interface, id)) in (1u8..).zip(packets) {
            let packet = Packet {
                interface: *interface,
                at_ns: 0,
                length: 60,
                bytes: &[number; 60],
                is_outbound: interface % 2 == 1,
                id: *id,
                left_out: 0,
                comment: "",
            };
            writer.packet(&packet).unwrap();
        }
        let path = directory.join("own.pcapng");
        std::fs::write(&path, &file).unwrap();
        path
    }

    fn read(path: &Path, number: u32) -> Captured {
        captured(path, number, CAPTURE_BYTES_MAX).unwrap()
    }

    /// What `tidegate capture` wrote as it left is not what came in: that is told instead, if it is there.
    #[test]
    fn frames_that_were_recorded_as_they_left_are_told_as_they_came() {
        let directory = tempfile::tempdir().unwrap();
        // By wan0 and lan0; the fourth has no form from before.
        let path = written(directory.path(), &[(0, 7), (2, 8), (3, 7), (1, 9), (1, 8)]);
        let came = |number: u8, device: &str| Captured {
            bytes: vec![number; 60],
            is_frame: true,
            device: Some(device.into()),
            ..Captured::default()
        };
        assert_eq!((read(&path, 1), read(&path, 2)), (came(1, "wan0"), came(2, "lan0")));
        for (asked, number, device) in [(3, 1, "wan0"), (5, 2, "lan0")] {
            let mut told = read(&path, asked);
            let note = told.note.take().unwrap();
            assert_eq!(told, came(number, device));
            let left = if device == "wan0" { "lan0 after" } else { "wan0 after" };
            assert!(note.starts_with(&format!("packet {asked} was recorded as it left ({left})")), "{note}");
            assert!(note.ends_with(&format!("as it came in, packet {number} ({device} before)")), "{note}");
        }
        let mut alone = read(&path, 4);
        let note = alone.note.take().unwrap();
        assert_eq!(alone, came(4, "wan0"));
        assert!(note.contains("(wan0 after)") && note.contains("no form of it from before"), "{note}");
        let beyond = captured(&path, 6, CAPTURE_BYTES_MAX).unwrap_err().to_string();
        assert!(beyond.contains("no packet 6: it has 5"), "{beyond}");
    }

    #[test]
    fn of_another_program_the_name_of_the_interface_is_kept_apart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("theirs.pcapng");
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file, "dumpcap").unwrap();
        let interface = Interface { name: "lan0", description: "", filter: "", snap_bytes: 99 };
        writer.interface(&interface).unwrap();
        let packet = Packet {
            interface: 0,
            at_ns: 0,
            length: 4,
            bytes: &[9; 4],
            is_outbound: false,
            id: 1,
            left_out: 0,
            comment: "",
        };
        writer.packet(&packet).unwrap();
        std::fs::write(&path, &file).unwrap();
        let expected =
            Captured { bytes: vec![9; 4], is_frame: true, recorded_by: Some("lan0".into()), ..Captured::default() };
        assert_eq!(read(&path, 1), expected);
    }

    /// Frames without end, as a capture that goes on, in both formats: what is asked for is found, or it is said how
    /// much further it would have been.
    #[test]
    fn a_capture_without_end_is_read_to_a_bound() {
        let frame = [7u8; 60];
        let empty = pcap_file::pcap::PcapWriter::new(Vec::new()).unwrap().into_writer();
        let mut pcap = pcap_file::pcap::PcapWriter::new(Vec::new()).unwrap();
        pcap.write_packet(&pcap_file::pcap::PcapPacket::new(Duration::ZERO, 60, &frame)).unwrap();
        let record = pcap.into_writer().split_off(empty.len());
        let mut next = pcap_file::pcapng::PcapNgWriter::new(Vec::new()).unwrap();
        let described = pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: 0,
            options: vec![],
        };
        next.write_pcapng_block(described).unwrap();
        let begun = next.get_ref().len();
        let block = pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock {
            interface_id: 0,
            timestamp: Duration::ZERO,
            original_len: 60,
            data: frame.as_slice().into(),
            options: vec![],
        };
        next.write_pcapng_block(block).unwrap();
        let mut next = next.into_inner();
        let block = next.split_off(begun);
        let directory = tempfile::tempdir().unwrap();
        for (at, (begin, again)) in [(empty, record), (next, block)].into_iter().enumerate() {
            let path = directory.path().join(format!("{at}.cap"));
            assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
            // Whoever writes is told when nobody reads any more.
            let read = |number, bytes_max| {
                let (pipe, begin, again) = (path.clone(), begin.clone(), again.clone());
                let writer = std::thread::spawn(move || {
                    let mut pipe = std::fs::OpenOptions::new().write(true).open(pipe).unwrap();
                    let mut written = pipe.write_all(&begin);
                    while written.is_ok() {
                        written = pipe.write_all(&again);
                    }
                });
                let read = captured(&path, number, bytes_max);
                writer.join().unwrap();
                read
            };
            let expected = Captured { bytes: frame.to_vec(), is_frame: true, ..Captured::default() };
            assert_eq!(read(1000, CAPTURE_BYTES_MAX).unwrap(), expected);
            let bytes_max = begin.len() as u64 + 500 * again.len() as u64 + 7;
            let told = read(1000, bytes_max).unwrap_err().to_string();
            assert!(told.contains(&format!("first {bytes_max} bytes")) && told.contains("500 whole packets"), "{told}");
            assert!(told.contains("500 are left up to packet 1000"), "{told}");
        }
    }
}
