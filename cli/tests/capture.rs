//! `tidegate capture` from outside: the real binary against a socket that speaks the contract, and the file it leaves.

#![allow(clippy::unwrap_used, reason = "a test whose stage cannot be set has failed")]

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;

use pcap_file::pcapng::{Block, PcapNgReader};
use tempfile::TempDir;
use tidegate_api::capture::{Begun, Fate, Packet, Tally, Wanted};
use tidegate_api::frame;
use tidegate_api::listen::Listener;
use tidegate_api::message::{CONTRACT_VERSION, Request, Response};

/// A dataplane for one capture; `tell` does the rest once it has begun. Returns what was wanted.
fn dataplane(tell: impl FnOnce(&mut UnixStream) + Send + 'static) -> (TempDir, JoinHandle<Wanted>) {
    let directory = tempfile::tempdir().unwrap();
    let listener = Listener::bind(&directory.path().join("tidegate.sock"), 0o600).unwrap();
    let thread = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap();
        assert!(matches!(frame::read(&mut stream), Ok(Request::Hello { .. })));
        let (contract, server, holds) = (CONTRACT_VERSION, "tidegate-dataplane 9.8.7".into(), Default::default());
        let welcome = Response::Welcome { contract, server, holds, reached: 1, prepares: false };
        frame::write(&mut stream, &welcome).unwrap();
        let Ok(Request::Capture(wanted)) = frame::read(&mut stream) else { panic!("no capture was asked for") };
        let devices = vec!["wan0".into(), "lan0".into()];
        frame::write(&mut stream, &Response::Capturing(Begun { devices, workers: 2 })).unwrap();
        tell(&mut stream);
        wanted
    });
    (directory, thread)
}

fn packets(from: u64, count: u64) -> Response {
    let packet = |number| Packet {
        worker: 1,
        number,
        at_ns: 1_700_000_000_000_000_000 + number,
        after: number % 2 == 1,
        device: u32::try_from(number % 2).unwrap(),
        length: 100,
        bytes: vec![7; 60],
        fate: Fate::Sent { frames: 1 },
        service: Some("shop/web".into()),
        counted: vec![],
        left_out: 0,
    };
    Response::Captured { packets: (from..from + count).map(packet).collect() }
}

fn end(stream: &mut UnixStream) {
    assert!(matches!(frame::read(stream), Ok(Request::EndCapture {})), "the end is asked for");
    let tally = Tally { seen: 50, matched: 20, told: 20, left_out_full: 3, left_out_rate: 4 };
    frame::write(stream, &Response::CaptureEnded(tally)).unwrap();
}

fn tidegate(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.env_remove("TIDEGATE_SOCKET").arg("--socket").arg(directory.join("tidegate.sock")).arg("capture");
    command.args(arguments).stdin(Stdio::null());
    command
}

fn run(directory: &Path, arguments: &[&str]) -> (Output, PathBuf) {
    let file = directory.join("file.pcapng");
    let output = tidegate(directory, arguments).arg("-w").arg(&file).output().unwrap();
    (output, file)
}

/// Packets and statistics in a file; it must be whole.
fn read(file: &Path) -> (usize, usize) {
    let bytes = std::fs::read(file).unwrap();
    let mut reader = PcapNgReader::new(&bytes[..]).unwrap();
    let (mut packets, mut statistics) = (0, 0);
    while let Some(block) = reader.next_block() {
        match block.unwrap() {
            Block::EnhancedPacket(_) => packets += 1,
            Block::InterfaceStatistics(_) => statistics += 1,
            _ => {}
        }
    }
    assert_eq!(reader.interfaces().len(), 4);
    (packets, statistics)
}

#[test]
fn a_count_ends_it_and_the_tally_is_told() {
    let (directory, thread) = dataplane(|stream| {
        frame::write(stream, &packets(0, 20)).unwrap();
        end(stream);
    });
    let arguments = ["-c", "5", "--inner", "tcp port 80", "--dropped", "host", "192.0.2.7"];
    let (output, file) = run(directory.path(), &arguments);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{told}");
    assert!(told.contains("capturing on wan0, lan0 at 2 workers"), "{told}");
    assert!(
        told.contains("5 packets written") && told.contains("7 left out: 3 because") && told.contains("4 over"),
        "{told}"
    );
    assert_eq!(read(&file), (5, 4));
    let wanted = thread.join().unwrap();
    assert!(wanted.only_dropped && wanted.filter.len() > 3 && wanted.inner.len() > 3, "{wanted:?}");
}

#[test]
fn a_dataplane_that_goes_leaves_a_whole_file_and_a_reason() {
    let (directory, thread) = dataplane(|stream| frame::write(stream, &packets(0, 8)).unwrap());
    let (output, file) = run(directory.path(), &[]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("ends early: 8 packets written"), "{told}");
    assert_eq!(read(&file), (8, 4));
    thread.join().unwrap();
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    // Gone before the file begins, within its beginning, or among its packets.
    for bytes in [0, 4, 4_000] {
        let (directory, thread) = dataplane(|stream| {
            // Until the command has gone.
            for from in (0..).step_by(100) {
                if frame::write(stream, &packets(from, 100)).is_err() {
                    return;
                }
            }
        });
        let mut command = tidegate(directory.path(), &["-q"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = vec![0; bytes];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
        assert!(first.is_empty() || first.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]), "{first:?}");
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""), "{bytes}");
        thread.join().unwrap();
    }
}

#[test]
fn a_wrong_filter_is_told_before_anybody_is_asked() {
    let directory = tempfile::tempdir().unwrap();
    for arguments in [&["hots", "192.0.2.7"][..], &["--inner", "ether host 02:00:00:00:00:01"]] {
        let (output, file) = run(directory.path(), arguments);
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && told.contains("the filter"), "{told}");
        assert!(!file.exists());
    }
}
