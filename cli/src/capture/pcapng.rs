//! Writing pcapng: the file format of Wireshark and tcpdump that has room for comments, names and counts.
//!
//! Owns the few blocks that a capture needs. Each is put together whole and written with one call, so that a file that ends
//! early ends between two blocks. Little-endian, times in nanoseconds.
//!
//! Source: draft-ietf-opsawg-pcapng, sections 4.1 (section header), 4.2 (interface description), 4.3 (enhanced packet),
//! 4.6 (interface statistics) and 3.5 (options).

use std::io::{self, Write};

/// Frames begin with an Ethernet header (LINKTYPE_ETHERNET).
const LINK_ETHERNET: u16 = 1;
/// Times are multiples of a billionth of a second (if_tsresol).
const NANOSECONDS: u8 = 9;
/// Longest value of an option, bytes; longer ones are cut.
const OPTION_BYTES_MAX: usize = 65_532;

/// Which way a packet goes, in the flags word of its block (section 4.3.1.2).
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// A place where packets were seen.
#[derive(Clone, Copy, Debug)]
pub struct Interface<'a> {
    /// Its name.
    pub name: &'a str,
    /// What is seen there.
    pub description: &'a str,
    /// In tcpdump's language; empty: none.
    pub filter: &'a str,
    /// Most bytes that are kept of each packet.
    pub snap_bytes: u32,
}

/// One packet.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Number of the interface, in the order they were described in.
    pub interface: u32,
    /// Nanoseconds since 1970 (UTC).
    pub at_ns: u64,
    /// Bytes that it had.
    pub length: u32,
    /// Those that were kept.
    pub bytes: &'a [u8],
    /// Whether it leaves, or comes in.
    pub is_outbound: bool,
    /// Equal for the same packet at several interfaces.
    pub id: u64,
    /// Packets missing before it.
    pub left_out: u64,
    /// For people.
    pub comment: &'a str,
}

/// What was counted at an interface.
#[derive(Clone, Copy, Debug, Default)]
pub struct Statistics<'a> {
    /// Number of the interface.
    pub interface: u32,
    /// When this was so, nanoseconds since 1970 (UTC).
    pub at_ns: u64,
    /// Packets seen.
    pub seen: Option<u64>,
    /// Packets that passed the filter.
    pub matched: Option<u64>,
    /// Packets left out.
    pub left_out: Option<u64>,
    /// Packets written.
    pub written: u64,
    /// For people; empty: nothing.
    pub comment: &'a str,
}

/// A file that is being written.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    block: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Begins a file, in the name of `application`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(out: W, application: &str) -> io::Result<Writer<W>> {
        let mut writer = Writer { out, block: Vec::new() };
        writer.begin(0x0a0d_0d0a);
        writer.word(0x1a2b_3c4d);
        writer.block.extend([1, 0, 0, 0]);
        // The length of the section is not known.
        writer.block.extend([0xff; 8]);
        writer.option(4, application.as_bytes());
        writer.end()?;
        Ok(writer)
    }

    /// Describes the next interface.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn interface(&mut self, interface: &Interface<'_>) -> io::Result<()> {
        self.begin(1);
        self.block.extend(LINK_ETHERNET.to_le_bytes());
        self.block.extend([0, 0]);
        self.word(interface.snap_bytes);
        self.option(2, interface.name.as_bytes());
        self.option(3, interface.description.as_bytes());
        self.option(9, &[NANOSECONDS]);
        if !interface.filter.is_empty() {
            // First byte 0: what follows is a text of libpcap's language.
            self.option(11, &[&[0], interface.filter.as_bytes()].concat());
        }
        self.end()
    }

    /// Writes a packet.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn packet(&mut self, packet: &Packet<'_>) -> io::Result<()> {
        self.begin(6);
        self.word(packet.interface);
        self.time(packet.at_ns);
        self.word(u32::try_from(packet.bytes.len()).unwrap_or(u32::MAX));
        self.word(packet.length);
        self.block.extend_from_slice(packet.bytes);
        self.pad();
        let direction = if packet.is_outbound { OUTBOUND } else { INBOUND };
        self.option(2, &direction.to_le_bytes());
        self.option(4, &packet.left_out.to_le_bytes());
        self.option(5, &packet.id.to_le_bytes());
        self.option(1, packet.comment.as_bytes());
        self.end()
    }

    /// Writes what was counted at an interface.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn statistics(&mut self, statistics: &Statistics<'_>) -> io::Result<()> {
        self.begin(5);
        self.word(statistics.interface);
        self.time(statistics.at_ns);
        let counts = [(4, statistics.seen), (5, statistics.left_out), (6, statistics.matched)];
        for (code, count) in counts.into_iter().chain([(8, Some(statistics.written))]) {
            if let Some(count) = count {
                self.option(code, &count.to_le_bytes());
            }
        }
        if !statistics.comment.is_empty() {
            self.option(1, statistics.comment.as_bytes());
        }
        self.end()
    }

    /// Lets whoever reads have what was written.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn begin(&mut self, kind: u32) {
        self.block.clear();
        self.word(kind);
        // Its length comes last.
        self.word(0);
    }

    fn end(&mut self) -> io::Result<()> {
        // End of options.
        self.word(0);
        let length = u32::try_from(self.block.len() + 4).unwrap_or(u32::MAX);
        self.word(length);
        if let Some(place) = self.block.get_mut(4..8) {
            place.copy_from_slice(&length.to_le_bytes());
        }
        self.out.write_all(&self.block)
    }

    fn word(&mut self, word: u32) {
        self.block.extend(word.to_le_bytes());
    }

    /// The high half comes first, whatever the byte order.
    fn time(&mut self, at_ns: u64) {
        for half in [at_ns >> 32, at_ns & 0xffff_ffff] {
            self.word(u32::try_from(half).unwrap_or(u32::MAX));
        }
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        let value = value.get(..OPTION_BYTES_MAX).unwrap_or(value);
        self.block.extend(code.to_le_bytes());
        self.block.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
        self.block.extend_from_slice(value);
        self.pad();
    }

    fn pad(&mut self) {
        self.block.resize(self.block.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use pcap_file::DataLink;
    use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
    use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
    use pcap_file::pcapng::blocks::interface_statistics::InterfaceStatisticsOption;
    use pcap_file::pcapng::{Block, PcapNgReader};

    use super::*;

    /// Read back by another implementation, every field.
    #[test]
    fn what_is_written_is_read_by_others() {
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file, "tidegate 1").unwrap();
        let (description, filter) = ("as it came in", "host 192.0.2.7");
        writer.interface(&Interface { name: "wan0 before", description, filter, snap_bytes: 65_535 }).unwrap();
        writer
            .interface(&Interface { name: "lan0 after", description: "as it left", filter: "", snap_bytes: 9 })
            .unwrap();
        for length in 0..9usize {
            let bytes: Vec<u8> = (1..).take(length).collect();
            let at_ns = 1_700_000_000_123_456_789 + length as u64;
            let comment = format!("Größe {length}");
            let id = 7 << 48 | length as u64;
            let packet = Packet {
                interface: 1,
                at_ns,
                length: 1500,
                bytes: &bytes,
                is_outbound: length % 2 == 0,
                id,
                left_out: 3,
                comment: &comment,
            };
            writer.packet(&packet).unwrap();
        }
        let some = Statistics {
            seen: Some(10),
            matched: Some(9),
            left_out: Some(8),
            written: 7,
            comment: "all",
            ..Statistics::default()
        };
        writer.statistics(&some).unwrap();
        writer.statistics(&Statistics { interface: 1, written: 2, ..Statistics::default() }).unwrap();

        let mut reader = PcapNgReader::new(&file[..]).unwrap();
        let mut blocks = Vec::new();
        while let Some(block) = reader.next_block() {
            blocks.push(block.unwrap().into_owned());
        }
        assert_eq!(blocks.len(), 2 + 9 + 2);
        let Block::InterfaceDescription(first) = &blocks[0] else { panic!("{:?}", blocks[0]) };
        assert_eq!((first.linktype, first.snaplen), (DataLink::ETHERNET, 65_535));
        assert!(first.options.contains(&InterfaceDescriptionOption::IfName("wan0 before".into())));
        assert!(first.options.contains(&InterfaceDescriptionOption::IfTsResol(9)));
        let text = [&[0][..], filter.as_bytes()].concat();
        assert!(first.options.contains(&InterfaceDescriptionOption::IfFilter(text.into())), "{first:?}");
        for (length, block) in blocks[2..11].iter().enumerate() {
            let Block::EnhancedPacket(packet) = block else { panic!("{block:?}") };
            assert_eq!((packet.interface_id, packet.original_len, packet.data.len()), (1, 1500, length));
            assert_eq!(packet.timestamp.as_nanos(), 1_700_000_000_123_456_789 + length as u128);
            assert_eq!(packet.data, (1..).take(length).collect::<Vec<u8>>());
            let direction = if length % 2 == 0 { 2 } else { 1 };
            let told = &packet.options;
            assert!(
                told.contains(&EnhancedPacketOption::Flags(direction))
                    && told.contains(&EnhancedPacketOption::DropCount(3))
            );
            assert!(told.contains(&EnhancedPacketOption::Comment(format!("Größe {length}").into())), "{told:?}");
            let is_id = |option: &EnhancedPacketOption<'_>| match option {
                EnhancedPacketOption::Unknown(option) => {
                    option.code == 5 && option.value[..] == (7 << 48 | length as u64).to_le_bytes()
                }
                _ => false,
            };
            assert!(told.iter().any(is_id), "{told:?}");
        }
        let Block::InterfaceStatistics(all) = &blocks[11] else { panic!("{:?}", blocks[11]) };
        for expected in [
            InterfaceStatisticsOption::IsbIfRecv(10),
            InterfaceStatisticsOption::IsbFilterAccept(9),
            InterfaceStatisticsOption::IsbIfDrop(8),
            InterfaceStatisticsOption::IsbUsrDeliv(7),
            InterfaceStatisticsOption::Comment("all".into()),
        ] {
            assert!(all.options.contains(&expected), "{expected:?} in {all:?}");
        }
        let Block::InterfaceStatistics(last) = &blocks[12] else { panic!("{:?}", blocks[12]) };
        assert_eq!((last.interface_id, last.options.len()), (1, 1));
    }

    #[test]
    fn a_comment_without_end_is_cut() {
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file, "t").unwrap();
        writer.interface(&Interface { name: "a", description: "", filter: "", snap_bytes: 1 }).unwrap();
        let comment = "x".repeat(100_000);
        let packet = Packet {
            interface: 0,
            at_ns: 0,
            length: 0,
            bytes: &[],
            is_outbound: false,
            id: 0,
            left_out: 0,
            comment: &comment,
        };
        writer.packet(&packet).unwrap();
        let mut reader = PcapNgReader::new(&file[..]).unwrap();
        assert!(reader.next_block().unwrap().is_ok());
        assert!(matches!(reader.next_block().unwrap().unwrap(), Block::EnhancedPacket(_)));
    }
}
