//! `tidegate capture`: packets before and after, with what was decided about them, as pcapng.
//!
//! Owns the file and the limits of count and time. libpcap compiles the filters here, so that the dataplane needs neither the
//! language nor the library. One thread hears what the dataplane tells, this one writes; a signal ends both in order.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tidegate_api::capture::{Begun, Fate, Packet, Tally, Wanted};
use tidegate_api::client::{Client, ClientError};
use tidegate_api::frame::{self, ReadError};
use tidegate_api::message::{Request, Response};

use crate::args::CaptureArguments;
use crate::trouble;

/// tcpdump's language.
pub mod filter;
/// The file format.
pub mod pcapng;

use filter::Over;

/// How often limits and signals are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Longest wait for the dataplane to begin.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for the rest once the end was asked for.
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages that may wait for being written: beyond that the dataplane waits, and leaves packets out.
const MESSAGES: usize = 16;

/// Captures until a limit, a signal, or the reader's end, and returns what to tell about it.
///
/// # Errors
/// When a filter is wrong, the dataplane refuses or goes, or the file cannot be written.
pub fn run(socket: &Path, arguments: &CaptureArguments) -> anyhow::Result<String> {
    let wanted = wanted(arguments)?;
    let told = |error| anyhow!(trouble::explain(&error, socket));
    let mut client = Client::connect(socket, concat!("tidegate ", env!("CARGO_PKG_VERSION"))).map_err(told)?;
    client.set_timeout(Some(BEGIN_TIMEOUT)).context("setting the time limit")?;
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&ended)).context("watching for signals")?;
    }
    client.send(&Request::Capture(wanted.clone())).map_err(told)?;
    let begun = match client.receive().map_err(told)? {
        Response::Capturing(begun) => begun,
        Response::Error { message } => return Err(told(ClientError::Refused(message))),
        other => return Err(told(ClientError::Unexpected(format!("{other:?}")))),
    };
    let out = open(arguments)?;
    client.set_timeout(None).context("lifting the time limit")?;
    let mut asking = client.try_clone_stream().context("a second end of the conversation")?;
    let (heard, messages) = sync_channel(MESSAGES);
    // Ends with the conversation, or with this process.
    std::thread::spawn(move || {
        loop {
            let message = client.receive();
            let is_last = !matches!(message, Ok(Response::Captured { .. }));
            if heard.send(message).is_err() || is_last {
                return;
            }
        }
    });
    let mut ask = || frame::write(&mut asking, &Request::EndCapture {});
    let recorded = Recording::new(out, arguments, &wanted, begun).and_then(|mut file| {
        tell(arguments, &file.begun);
        match file.follow(&messages, arguments, &ended, &mut ask) {
            Err(Stop::Heard(error)) => {
                let kept = file.finish(None)?;
                Ok(Err(anyhow!("{}; the capture ends early: {}", why_early(&error, socket), kept.trim_end())))
            }
            tally => file.finish(tally?).map(Ok),
        }
    });
    match recorded {
        Ok(told) => told,
        Err(Stop::Unread) => Ok(String::new()),
        Err(Stop::Written(error)) => Err(error).with_context(|| format!("writing {}", arguments.write.display())),
        Err(Stop::Heard(error)) => Err(told(error)),
    }
}

/// Why a capture ends that nobody here ended.
fn why_early(error: &ClientError, socket: &Path) -> String {
    let has_ended = match error {
        ClientError::Read(ReadError::Closed) => true,
        ClientError::Read(ReadError::Io(source)) => {
            matches!(source.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
        }
        _ => false,
    };
    match has_ended {
        true => format!(
            "the dataplane at {} ended the conversation: it cuts off a capture of which nothing is taken for ten seconds, \
             and its log says so; else it has gone itself",
            socket.display()
        ),
        false => trouble::explain(error, socket),
    }
}

/// What the command line asks for.
///
/// # Errors
/// What libpcap says about a filter.
pub fn wanted(arguments: &CaptureArguments) -> anyhow::Result<Wanted> {
    Ok(Wanted {
        filter: filter::compile(&arguments.filter.join(" "), Over::Frames)?,
        inner: filter::compile(arguments.inner.as_deref().unwrap_or_default(), Over::Packets)
            .context("--inner looks at IP packets")?,
        device: arguments.device.clone(),
        only_dropped: arguments.dropped,
        forms: arguments.forms.into(),
        snap_bytes: arguments.snap_bytes,
        rate_per_s: arguments.rate_per_s,
    })
}

fn open(arguments: &CaptureArguments) -> anyhow::Result<Box<dyn Write>> {
    if arguments.write.as_os_str() != "-" {
        let file = File::create(&arguments.write).with_context(|| format!("creating {}", arguments.write.display()))?;
        return Ok(Box::new(BufWriter::new(file)));
    }
    if io::stdout().is_terminal() {
        bail!(
            "a capture is not for a terminal: name a file with -w FILE, or pipe it, as in `tidegate capture | tshark -r -`"
        );
    }
    // As a file: what the standard library keeps for text would be written at every byte that is a line's end.
    let out = io::stdout().as_fd().try_clone_to_owned().context("taking standard output")?;
    Ok(Box::new(BufWriter::new(File::from(out))))
}

/// Standard output may be the file, so this is for standard error.
fn tell(arguments: &CaptureArguments, begun: &Begun) {
    if !arguments.quiet {
        let devices = begun.devices.join(", ");
        let _ = writeln!(io::stderr(), "tidegate: capturing on {devices} at {} workers; Ctrl-C ends", begun.workers);
    }
}

/// Why a capture ended that nobody ended.
enum Stop {
    /// Whoever read standard output has gone.
    Unread,
    /// The file cannot be written.
    Written(io::Error),
    /// The dataplane has gone, or says something else.
    Heard(ClientError),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Stop {
        if error.kind() == io::ErrorKind::BrokenPipe { Stop::Unread } else { Stop::Written(error) }
    }
}

/// What is said of an interface whose packets come in, and of one whose packets have been done with.
pub(crate) const AS_IT_CAME: &str = "as it came in";
pub(crate) const AS_IT_LEFT: &str = "as it left";
/// What stands behind the device in the name of such an interface.
pub(crate) const BEFORE: &str = "before";
pub(crate) const AFTER: &str = "after";

/// The file, and what is in it.
struct Recording {
    writer: pcapng::Writer<Box<dyn Write>>,
    begun: Begun,
    /// Packets by interface.
    written: Vec<u64>,
}

impl Recording {
    fn new(
        out: Box<dyn Write>,
        arguments: &CaptureArguments,
        wanted: &Wanted,
        begun: Begun,
    ) -> Result<Recording, Stop> {
        let mut writer = pcapng::Writer::new(out, concat!("tidegate ", env!("CARGO_PKG_VERSION")))?;
        let outer = arguments.filter.join(" ");
        let filter = match arguments.inner.as_deref().unwrap_or_default() {
            "" => outer,
            inner => format!("{outer}{}inside: {inner}", if outer.is_empty() { "" } else { "; " }),
        };
        for device in &begun.devices {
            for (form, description) in [(BEFORE, AS_IT_CAME), (AFTER, AS_IT_LEFT)] {
                let name = format!("{device} {form}");
                let snap_bytes = wanted.snap_bytes;
                let interface = pcapng::Interface { name: &name, description, filter: &filter, snap_bytes };
                writer.interface(&interface)?;
            }
        }
        writer.flush()?;
        let written = vec![0; 2 * begun.devices.len()];
        Ok(Recording { writer, begun, written })
    }

    /// Writes what comes until the end has been asked for and has come.
    fn follow(
        &mut self,
        messages: &Receiver<Result<Response, ClientError>>,
        arguments: &CaptureArguments,
        ended: &AtomicBool,
        ask: &mut impl FnMut() -> io::Result<()>,
    ) -> Result<Option<Tally>, Stop> {
        let until = arguments.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        let mut asked: Option<Instant> = None;
        let is_full = |written: &[u64]| arguments.count.is_some_and(|count| written.iter().sum::<u64>() >= count);
        loop {
            let is_over = ended.load(Ordering::Relaxed) || until.is_some_and(|until| Instant::now() >= until);
            if asked.is_none() && (is_over || is_full(&self.written)) {
                asked = Some(Instant::now());
                ask().map_err(|error| Stop::Heard(ClientError::Write(error)))?;
            }
            match messages.recv_timeout(LOOK_EVERY) {
                Ok(Ok(Response::Captured { packets })) => {
                    for packet in &packets {
                        if is_full(&self.written) {
                            break;
                        }
                        self.write(packet)?;
                    }
                }
                Ok(Ok(Response::CaptureEnded(tally))) => return Ok(Some(tally)),
                Ok(Ok(Response::Error { message })) => return Err(Stop::Heard(ClientError::Refused(message))),
                Ok(Ok(other)) => return Err(Stop::Heard(ClientError::Unexpected(format!("{other:?}")))),
                Ok(Err(error)) => return Err(Stop::Heard(error)),
                // Nothing more for now: whoever reads along sees all there is.
                Err(RecvTimeoutError::Timeout) => self.writer.flush()?,
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            }
            if asked.is_some_and(|asked| asked.elapsed() > END_TIMEOUT) {
                return Ok(None);
            }
        }
    }

    fn write(&mut self, packet: &Packet) -> Result<(), Stop> {
        let interface = packet.device.saturating_mul(2).saturating_add(u32::from(packet.after));
        let Some(written) = self.written.get_mut(interface as usize) else {
            return Err(Stop::Heard(ClientError::Unexpected(format!("device {}", packet.device))));
        };
        let comment = comment(packet);
        self.writer.packet(&pcapng::Packet {
            interface,
            at_ns: packet.at_ns,
            length: packet.length,
            bytes: &packet.bytes,
            is_outbound: packet.after,
            id: u64::from(packet.worker) << 48 | packet.number,
            left_out: packet.left_out,
            comment: &comment,
        })?;
        *written += 1;
        Ok(())
    }

    /// Ends the file, and says what is in it and what is not.
    fn finish(&mut self, tally: Option<Tally>) -> Result<String, Stop> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at_ns = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        let text = summary(self.written.iter().sum(), tally.as_ref());
        for (interface, written) in (0..).zip(self.written.iter().copied()) {
            // What was counted for all together stands once.
            let all = tally.as_ref().filter(|_| interface == 0);
            let statistics = pcapng::Statistics {
                interface,
                at_ns,
                seen: all.map(|tally| tally.seen),
                matched: all.map(|tally| tally.matched),
                left_out: all.map(Tally::left_out),
                written,
                comment: if interface == 0 { text.trim_end() } else { "" },
            };
            self.writer.statistics(&statistics)?;
        }
        self.writer.flush()?;
        Ok(text)
    }
}

/// What a capture came to, in words.
fn summary(written: u64, tally: Option<&Tally>) -> String {
    let Some(tally) = tally else {
        return format!("{written} packets written; what was left out is not known\n");
    };
    let mut text = format!(
        "{written} packets written (before and after count as two); {} seen, {} of them wanted\n",
        tally.seen, tally.matched
    );
    if tally.left_out() > 0 {
        text += &format!(
            "{} left out: {} because they were not taken fast enough, {} over the rate (--rate)\n",
            tally.left_out(),
            tally.left_out_full,
            tally.left_out_rate
        );
    }
    text
}

/// What is said of a packet, in one line.
pub fn comment(packet: &Packet) -> String {
    let fate = match &packet.fate {
        Fate::Sent { frames: 1 } => "sent".into(),
        Fate::Sent { frames } => format!("sent in {frames} frames"),
        Fate::Held => "waits for its neighbour".into(),
        Fate::Waits => "waits for the first fragment".into(),
        Fate::HandedOver => "handed to another worker".into(),
        Fate::Consumed => "ended here, as it should".into(),
        Fate::Released => "had waited, sent now".into(),
        Fate::Dropped { reason, stage, help } => format!("dropped, {reason} ({stage}): {help}"),
    };
    let mut text = format!("worker {}, packet {}: {fate}", packet.worker, packet.number);
    if let Some(service) = &packet.service {
        text += &format!("; Service {service}");
    }
    if !packet.counted.is_empty() {
        text += &format!("; counted {}", packet.counted.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_says_who_what_why_and_for_whom() {
        let mut packet = Packet {
            worker: 1,
            number: 17,
            at_ns: 0,
            after: false,
            device: 0,
            length: 60,
            bytes: vec![],
            fate: Fate::Dropped { reason: "NoBackend".into(), stage: "service".into(), help: "None is ready.".into() },
            service: Some("shop/web".into()),
            counted: vec!["slow_walk".into(), "flow_expired".into()],
            left_out: 0,
        };
        assert_eq!(
            comment(&packet),
            "worker 1, packet 17: dropped, NoBackend (service): None is ready.; Service shop/web; counted slow_walk, flow_expired"
        );
        (packet.fate, packet.service, packet.counted) = (Fate::Sent { frames: 1 }, None, vec![]);
        assert_eq!(comment(&packet), "worker 1, packet 17: sent");
    }

    #[test]
    fn what_was_left_out_is_told_with_its_cause() {
        let tally = Tally { seen: 9, matched: 8, told: 5, left_out_full: 2, left_out_rate: 1 };
        let text = summary(5, Some(&tally));
        assert!(text.starts_with("5 packets written") && text.contains("9 seen, 8 of them"), "{text}");
        assert!(text.contains("3 left out: 2 because") && text.contains("1 over the rate"), "{text}");
        assert!(summary(1, None).contains("not known"));
        assert_eq!(summary(0, Some(&Tally::default())).lines().count(), 1);
    }
}
