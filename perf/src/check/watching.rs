//! Checks of watching: what `tidegate capture` writes while packets pass, read back by tcpdump; what it leaves out under load;
//! captures that are killed; and what `tidegate top` prints.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::check::serving::told;
use crate::check::{Found, Row};
use crate::client::Outcome;
use crate::picture::svg;
use crate::process::{self, Daemon, in_namespace};
use crate::rig::Rig;
use crate::topology::{CLIENT, ECHO_PORT, FAMILIES, VIP_ECHO, VIP_WEB, WEB_PORT};

/// Longest wait for a capture to begin, to end, and for tcpdump to read a file.
const LIMIT: Duration = Duration::from_secs(20);
/// Frames of the flood.
const FLOOD: &str = "20000";
/// Names the file that the check of `tidegate top` draws a frame into, if it is there.
const PICTURE: &str = "TIDEGATE_PICTURE";
/// Captures that a dataplane has at once.
const CAPTURES: usize = 4;

/// A `tidegate capture` under way, and its file.
struct Running {
    daemon: Daemon,
    file: PathBuf,
}

impl Running {
    fn start(rig: &Rig, name: &str, arguments: &[&str]) -> Result<Running> {
        let file = rig.lab.state_dir.join(format!("{name}.pcapng"));
        let mut command = Command::new(rig.gateway.program("tidegate"));
        command.args(["--socket", rig.gateway.seat.socket, "capture", "-w"]).arg(&file).args(arguments);
        let mut daemon = Daemon::start(name, command, &rig.lab.state_dir.join(format!("{name}.log")))?;
        daemon.wait_for_line("capturing on", LIMIT)?;
        Ok(Running { daemon, file })
    }

    /// Ends it as Ctrl-C does; what it told.
    fn finish(&mut self) -> Result<String> {
        self.daemon.signal(Signal::INT)?;
        let status = self.daemon.wait_for_end(LIMIT)?;
        anyhow::ensure!(status.success(), "{}", self.daemon.log());
        Ok(self.daemon.log())
    }

    /// Frames in the file that pass a filter, as tcpdump reads them.
    fn count(&self, filter: &str) -> Result<usize> {
        let mut command = in_namespace(CLIENT, "tcpdump");
        command.args(["-n", "-r"]).arg(&self.file).arg(filter);
        Ok(process::run(command, "", LIMIT)?.success("tcpdump reading a capture")?.lines().count())
    }

    /// Whether a text stands in the file: comments and names do, as they are.
    fn says(&self, text: &str) -> Result<bool> {
        let bytes = std::fs::read(&self.file).with_context(|| format!("{}", self.file.display()))?;
        Ok(bytes.windows(text.len()).any(|window| window == text.as_bytes()))
    }
}

/// One exchange, found by filters on the outside and on the inside, in all its forms.
pub(super) fn capture(rig: &mut Rig) -> Found {
    let mut rows = Vec::new();
    for family in FAMILIES {
        let vip = VIP_ECHO.at(family, ECHO_PORT);
        let asked = format!("host {} and udp port {ECHO_PORT}", vip.ip());
        for (kind, arguments) in [("outside", vec![asked.as_str()]), ("inside", vec!["--inner", asked.as_str()])] {
            let mut running = Running::start(rig, &format!("capture-{kind}"), &arguments)?;
            let outcome: Outcome = rig.client("udp", &rig.way(vip, 2000))?;
            let log = running.finish()?;
            let [plain, overlay] = [running.count(&asked)?, running.count("udp port 8472")?];
            let names_it = running.says("; Service shop/echo")? && running.says("worker ")?;
            let measured = format!(
                "{}; {plain} plain, {overlay} in VXLAN, {}: {}",
                told(&outcome),
                if names_it { "named" } else { "not named" },
                log.lines().last().unwrap_or_default()
            );
            // In from the client and out to it, out to the pod and in from it.
            let pass = outcome.ok && plain >= 2 && overlay >= 2 && names_it;
            rows.push(Row::new(
                format!("{family} filter on the {kind}"),
                measured,
                "each packet before and after",
                pass,
            ));
        }
        // More questions to a port that nobody serves than may be answered in a second.
        let mut running = Running::start(rig, "capture-drops", &["--dropped", "host", &vip.ip().to_string()])?;
        let mut flood = in_namespace(CLIENT, crate::enclosure::this_program()?);
        let target = format!("--target={}", VIP_ECHO.at(family, 9));
        flood.args(["flood", "--payload=udp", &target, "--count=5000", "--flows=50"]);
        process::run(flood, "", LIMIT)?.success("flood")?;
        let log = running.finish()?;
        let (all, sent) = (running.count("")?, running.count("udp port 8472")?);
        let measured = format!("{all} frames: {}", log.lines().last().unwrap_or_default());
        let pass = all > 0 && sent == 0 && running.says(": dropped, ")?;
        rows.push(Row::new(
            format!("{family} --dropped"),
            measured,
            "packets that were dropped, with the reason",
            pass,
        ));
    }
    rows.push(overload(rig)?);
    rows.push(killed(rig)?);
    Ok(rows)
}

/// More packets than the rate: the rest is counted, and forwarded as ever.
fn overload(rig: &Rig) -> Result<Row> {
    let vip = VIP_ECHO.at(FAMILIES[0], ECHO_PORT);
    let mut running = Running::start(rig, "capture-overload", &["--rate", "100", "udp"])?;
    let mut flood = in_namespace(CLIENT, crate::enclosure::this_program()?);
    flood.args(["flood", "--payload=udp", &format!("--target={vip}"), "--count", FLOOD]);
    process::run(flood, "", LIMIT)?.success("flood")?;
    let log = running.finish()?;
    let told = log.lines().last().unwrap_or_default().to_owned();
    let pass = told.contains("left out") && !told.contains(" 0 over the rate") && running.says("left out")?;
    Ok(Row::new("20,000 datagrams at --rate 100", told, "what was left out is counted, in the file too", pass))
}

/// Killed captures end at the dataplane too: there is room for as many again.
fn killed(rig: &Rig) -> Result<Row> {
    let start = |round: &str| -> Result<Vec<Running>> {
        (0..CAPTURES).map(|number| Running::start(rig, &format!("capture-{round}-{number}"), &[])).collect()
    };
    let mut first = start("first")?;
    let refused = rig.gateway.command(&["capture", "-w", "/dev/null", "-c", "1"])?;
    for running in &mut first {
        running.daemon.kill()?;
    }
    std::thread::sleep(Duration::from_millis(500));
    let mut second = start("second")?;
    for running in &mut second {
        running.finish()?;
    }
    let measured = format!("a fifth: {}; after SIGKILL {} began", refused.stderr.trim(), second.len());
    let pass = !refused.status.success() && refused.stderr.contains("captures are under way");
    Ok(Row::new("killed", measured, "a fifth is refused; killed ones make room", pass))
}

/// One frame about each subject, while a download runs.
pub(super) fn top(rig: &mut Rig) -> Found {
    let mut rows = Vec::new();
    for (subject, expected) in [
        ("workers", "worker 0"),
        ("services", "shop/web"),
        ("backends", "shop/web"),
        ("flows", "CLIENT"),
        ("drops", "REASON"),
        ("nat", "ADDRESS OR POD"),
    ] {
        let (download, _) = rig.start_download(VIP_WEB.at(FAMILIES[0], WEB_PORT), 3_000_000, 1_000_000)?;
        let text = rig.gateway.command(&["top", subject, "--once"])?.success("top --once")?;
        download.outcome()?;
        let rate = text.lines().find(|line| line.starts_with("per second:")).unwrap_or_default().to_owned();
        let pass = text.contains(expected) && rate.contains("received") && !rate.contains("received -");
        let measured = if pass { rate } else { text };
        rows.push(Row::new(subject, measured, "a frame with rates", pass));
    }
    if let Some(file) = std::env::var_os(PICTURE) {
        rows.push(drawn(rig, Path::new(&file))?);
    }
    Ok(rows)
}

/// A frame about Services while clients of both families connect and download, as a picture for the documents.
fn drawn(rig: &Rig, file: &Path) -> Result<Row> {
    const CONNECTIONS: u32 = 300;
    const PAUSE_MS: u32 = 20;
    let web = |family| VIP_WEB.at(family, WEB_PORT);
    let _clients: Vec<_> = FAMILIES
        .into_iter()
        .map(|family| rig.start_spread(web(family), CONNECTIONS, PAUSE_MS))
        .collect::<Result<_>>()?;
    let mut downloads = Vec::new();
    for family in FAMILIES {
        downloads.push(rig.start_download(web(family), 6_000_000, 2_000_000)?.0);
    }
    let frame = rig.gateway.command(&["top", "services", "--once"])?.success("top services --once")?;
    for download in downloads {
        download.outcome()?;
    }
    let lines: Vec<&str> = frame.lines().map(str::trim_end).collect();
    let headings = lines.iter().position(|line| line.starts_with("SERVICE"));
    let bold: Vec<usize> = headings.into_iter().chain([0]).collect();
    std::fs::write(file, svg(&lines, &bold)).with_context(|| format!("{}", file.display()))?;
    let measured = format!("{} lines in {}", lines.len(), file.display());
    Ok(Row::new("picture", measured, "a frame with a table", headings.is_some()))
}
