//! A port on capture files: receives what one holds, records what is sent in another.
//!
//! Reads pcap and pcapng, writes pcap with nanoseconds. Made for replaying a capture through a pipeline without a
//! network: there is no clock in it, packets come as fast as they are asked for, and what is sent is recorded with the
//! time of the packet that was received last.

use std::io::{self, BufReader, Cursor, Read, Write};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use pcap_file::pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter};
use pcap_file::pcapng::{Block, PcapNgReader};
use pcap_file::{DataLink, PcapError, TsResolution};

use crate::frame::{BATCH_MAX, Batch, Frame};
use crate::pool::{Magazine, Pool};
use crate::port::{Mode, Port, PortCounters, PortFacts, SocketStatistics};

/// First four bytes of a pcapng file (draft-ietf-opsawg-pcapng, section 4.1), the same in either byte order.
const PCAPNG_MAGIC: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

/// Longest packet that a recorded file may hold.
const SNAPLEN: u32 = 65535;

type Source = Box<dyn Read + Send>;

/// A file to read from.
enum Replay {
    Pcap(PcapReader<Source>),
    PcapNg(PcapNgReader<Source>),
    /// Nothing, or nothing more.
    Ended,
}

/// A port on capture files.
pub struct PcapPort {
    facts: PortFacts,
    counters: PortCounters,
    replay: Replay,
    record: Option<PcapWriter<Box<dyn Write + Send>>>,
    /// Time of the packet received last, since 1970.
    time: Duration,
    /// The first thing that went wrong with a file.
    failure: Option<io::Error>,
    /// Frames whose packets were recorded.
    recorded: Vec<Frame>,
    magazine: Magazine,
}

impl PcapPort {
    /// A port that receives the packets of `replay` and records those sent in `record`, with frames of `pool`.
    ///
    /// # Errors
    ///
    /// If `replay` does not begin like a capture of Ethernet frames, or `record` cannot be written.
    pub fn new(
        pool: &Pool,
        device: &str,
        replay: Option<Box<dyn Read + Send>>,
        record: Option<Box<dyn Write + Send>>,
    ) -> io::Result<PcapPort> {
        let header = PcapHeader {
            datalink: DataLink::ETHERNET,
            ts_resolution: TsResolution::NanoSecond,
            snaplen: SNAPLEN,
            ..PcapHeader::default()
        };
        let facts = PortFacts {
            device: device.to_owned(),
            ifindex: 0,
            queue: 0,
            mac: [0x02, 0, 0, 0, 0, 1],
            mtu: 1500,
            mode: Mode::Pcap,
            group: pool.group(),
        };
        Ok(PcapPort {
            facts,
            counters: PortCounters::default(),
            replay: replay.map_or(Ok(Replay::Ended), Replay::open)?,
            record: record.map(|writer| PcapWriter::with_header(writer, header)).transpose().map_err(invalid)?,
            time: Duration::ZERO,
            failure: None,
            recorded: Vec::with_capacity(BATCH_MAX),
            magazine: pool.magazine(),
        })
    }

    /// Whether there is nothing more to receive.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(self.replay, Replay::Ended)
    }

    /// What went wrong with a file, if anything has: a replay that is broken ends there, a record that cannot be
    /// written stops.
    pub fn take_failure(&mut self) -> Option<io::Error> {
        self.failure.take()
    }

    /// One packet from the file in a frame; nothing at its end, or if there is no frame. Longer ones are cut.
    fn next(&mut self) -> Option<Frame> {
        let mut frame = self.magazine.take()?;
        let most = frame.tailroom();
        match self.replay.next(|time, bytes| (time, frame.fill(&bytes[..bytes.len().min(most)]))) {
            Some(Ok((time, _filled))) => {
                self.time = time;
                Some(frame)
            }
            outcome => {
                self.magazine.give(frame);
                self.replay = Replay::Ended;
                if let Some(Err(error)) = outcome {
                    self.failure.get_or_insert(error);
                }
                None
            }
        }
    }

    fn write(&mut self, frame: &Frame) {
        let Some(record) = &mut self.record else { return };
        let length = u32::try_from(frame.len()).unwrap_or(SNAPLEN);
        if let Err(error) = record.write_packet(&PcapPacket::new(self.time, length, frame.bytes())) {
            self.failure.get_or_insert(invalid(error));
            self.record = None;
        }
    }
}

impl Replay {
    fn open(mut source: Source) -> io::Result<Replay> {
        let mut magic = [0; 4];
        source.read_exact(&mut magic)?;
        let whole: Source = Box::new(BufReader::new(Cursor::new(magic).chain(source)));
        if magic == PCAPNG_MAGIC {
            return Ok(Replay::PcapNg(PcapNgReader::new(whole).map_err(invalid)?));
        }
        let reader = PcapReader::new(whole).map_err(invalid)?;
        match reader.header().datalink {
            DataLink::ETHERNET => Ok(Replay::Pcap(reader)),
            other => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a capture of {other:?}, not of Ethernet frames"),
            )),
        }
    }

    /// What `look` makes of the next packet.
    fn next<T>(&mut self, mut look: impl FnMut(Duration, &[u8]) -> T) -> Option<io::Result<T>> {
        match self {
            Replay::Pcap(reader) => {
                Some(reader.next_packet()?.map(|packet| look(packet.timestamp, &packet.data)).map_err(invalid))
            }
            Replay::PcapNg(reader) => loop {
                match reader.next_block()? {
                    Ok(Block::EnhancedPacket(packet)) => return Some(Ok(look(packet.timestamp, &packet.data))),
                    Ok(Block::SimplePacket(packet)) => return Some(Ok(look(Duration::ZERO, &packet.data))),
                    Ok(_) => {}
                    Err(error) => return Some(Err(invalid(error))),
                }
            },
            Replay::Ended => None,
        }
    }
}

impl Port for PcapPort {
    fn rx(&mut self, batch: &mut Batch) -> usize {
        let before = batch.len();
        while !batch.is_full() && !self.is_ended() {
            let Some(frame) = self.next() else { break };
            self.counters.rx_packets += 1;
            self.counters.rx_bytes += frame.len() as u64;
            batch.push(frame);
        }
        batch.len() - before
    }

    fn tx(&mut self, batch: &mut Batch) -> usize {
        let count = batch.len();
        for frame in batch.drain(..) {
            self.write(&frame);
            self.counters.tx_packets += 1;
            self.counters.tx_bytes += frame.len() as u64;
            self.recorded.push(frame);
        }
        count
    }

    fn recycle(&mut self, magazine: &mut Magazine) {
        self.counters.tx_completed += self.recorded.len() as u64;
        self.recorded.drain(..).for_each(|frame| magazine.give(frame));
    }

    fn kick(&mut self) {}

    fn counters(&self) -> PortCounters {
        self.counters
    }

    fn facts(&self) -> &PortFacts {
        &self.facts
    }

    fn socket_statistics(&self) -> io::Result<Option<SocketStatistics>> {
        Ok(None)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Drop for PcapPort {
    fn drop(&mut self) {
        self.recorded.drain(..).for_each(|frame| self.magazine.give(frame));
    }
}

impl std::fmt::Debug for PcapPort {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "PcapPort({}, ended: {})", self.facts.device, self.is_ended())
    }
}

fn invalid(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HugePages;
    use pcap_file::pcapng::PcapNgWriter;
    use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
    use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionBlock;
    use std::borrow::Cow;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn pool() -> Pool {
        Pool::new(256, 2048, HugePages::Off).unwrap()
    }

    fn pcap(packets: &[(Duration, Vec<u8>)]) -> Vec<u8> {
        let mut writer = PcapWriter::new(Vec::new()).unwrap();
        for (time, bytes) in packets {
            let length = u32::try_from(bytes.len()).unwrap();
            writer.write_packet(&PcapPacket::new(*time, length, bytes)).unwrap();
        }
        writer.into_writer()
    }

    fn replay(pool: &Pool, file: Vec<u8>) -> io::Result<PcapPort> {
        PcapPort::new(pool, "pcap0", Some(Box::new(Cursor::new(file))), None)
    }

    #[test]
    fn what_is_replayed_and_sent_is_recorded_with_its_time() {
        let (pool, record) = (pool(), Shared::default());
        let packets: Vec<(Duration, Vec<u8>)> =
            (1..100u8).map(|number| (Duration::from_micros(u64::from(number) * 1000), vec![number; 60])).collect();
        let source = Box::new(Cursor::new(pcap(&packets)));
        let mut port = PcapPort::new(&pool, "pcap0", Some(source), Some(Box::new(record.clone()))).unwrap();
        let mut magazine = pool.magazine();
        let mut counts = Vec::new();
        while !port.is_ended() {
            let mut batch = Batch::new();
            counts.push(port.rx(&mut batch));
            port.tx(&mut batch);
            port.recycle(&mut magazine);
        }
        assert_eq!(counts, [64, 35]);
        assert!(port.take_failure().is_none());
        let counters = port.counters();
        assert_eq!((counters.rx_packets, counters.tx_packets, counters.tx_completed), (99, 99, 99));
        drop((port, magazine));
        assert_eq!(pool.outstanding(), 0);
        let mut recorded = PcapReader::new(Cursor::new(record.0.lock().unwrap().clone())).unwrap();
        let mut times = Vec::new();
        for number in 1..100 {
            let packet = recorded.next_packet().unwrap().unwrap();
            assert_eq!(packet.data[..], [number; 60]);
            times.push(packet.timestamp);
        }
        assert!(recorded.next_packet().is_none());
        assert!(times.is_sorted());
        assert_eq!(times.last(), Some(&Duration::from_millis(99)));
    }

    #[test]
    fn pcapng_is_read_as_well() {
        let mut writer = PcapNgWriter::new(Vec::new()).unwrap();
        writer.write_pcapng_block(InterfaceDescriptionBlock::new(DataLink::ETHERNET, 65535)).unwrap();
        let packet = EnhancedPacketBlock {
            interface_id: 0,
            timestamp: Duration::ZERO,
            original_len: 4,
            data: Cow::Borrowed(b"abcd"),
            options: vec![],
        };
        writer.write_pcapng_block(packet).unwrap();
        let pool = pool();
        let mut port = replay(&pool, writer.into_inner()).unwrap();
        let (mut batch, mut magazine) = (Batch::new(), pool.magazine());
        assert_eq!((port.rx(&mut batch), batch[0].bytes()), (1, &b"abcd"[..]));
        assert!(port.is_ended());
        batch.drain(..).for_each(|frame| magazine.give(frame));
    }

    #[test]
    fn broken_files_are_errors_and_long_packets_are_cut() {
        let pool = pool();
        assert!(replay(&pool, b"abc".to_vec()).is_err());
        assert!(replay(&pool, vec![0x55; 100]).is_err());
        let mut file = pcap(&[(Duration::ZERO, vec![1; 3000]), (Duration::ZERO, vec![2; 60])]);
        file.truncate(file.len() - 1);
        let mut port = replay(&pool, file).unwrap();
        let (mut batch, mut magazine) = (Batch::new(), pool.magazine());
        assert_eq!((port.rx(&mut batch), batch[0].len()), (1, 1792));
        assert!(port.is_ended() && port.take_failure().is_some());
        batch.drain(..).for_each(|frame| magazine.give(frame));
    }
}
