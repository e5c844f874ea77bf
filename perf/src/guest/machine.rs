//! The machine: one QEMU in namespace `gw`, and the shell that listens in it.
//!
//! Owns the process and the line to that shell. Refuses to know what the commands are for. Everything is bounded in time, and the
//! machine ends when this value is dropped.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::image::{END, Image, Kernel, READY};
use super::{QUEUES, Scene, devices};
use crate::process::{self, in_namespace};
use crate::topology::GATEWAY;

/// How long the machine may take to start on a busy host.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// Its memory in MiB: the image twice, packet memory, flow tables; more than 1024, see [`COMMAND_LINE`].
const MEMORY_MIB: u32 = 1536;
/// The kernel's command line.
///
/// The last two keep a defect of the driver from mattering. In front of each zero-copy packet it sends a header of
/// zeros, a static of its own (`xsk_hdr`, drivers/net/virtio_net.c), whose address it maps as if it were part of the
/// kernel's image. Of a module that gives the address of some other page, whose content then goes out as the header,
/// and packets get lost or changed. Without randomisation modules begin 1 GiB behind the image's first byte, so the page
/// is one just above 1 GiB: memory that this keeps from being used for anything, and that stays zero.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 mitigations=off nokaslr memmap=64M$0x40000000";
/// First address of modules, and how much behind it maps to what [`COMMAND_LINE`] keeps.
pub(super) const MODULES: (u64, u64) = (0xffff_ffff_c000_0000, 64 << 20);
/// Longest command: less than a page, in which the line's other end takes it.
const COMMAND_BYTES_MAX: usize = 4000;

/// A machine that runs.
#[derive(Debug)]
pub(super) struct Machine {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    console: PathBuf,
    errors: PathBuf,
}

/// What a command came to.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) code: i32,
    pub(super) text: String,
}

impl Answer {
    /// The text of a command that must have succeeded.
    pub(super) fn success(self, what: &str) -> Result<String> {
        if self.code == 0 {
            return Ok(self.text);
        }
        bail!("{what}: exit code {}: {}", self.code, process::tail(&self.text, 12));
    }
}

impl Machine {
    /// Starts the machine of a scene and waits for its shell.
    pub(super) fn start(kernel: &Kernel, image: &Image, scene: &Scene, state_dir: &Path) -> Result<Machine> {
        let (console, errors) = (state_dir.join("console.log"), state_dir.join("qemu.log"));
        let mut command = in_namespace(GATEWAY, "qemu-system-x86_64");
        command.args(arguments(scene, &console)).arg("-kernel").arg(&kernel.image).arg("-initrd").arg(&image.file);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(std::fs::File::create(&errors)?);
        let mut child = command.spawn().context("starting QEMU (Debian package qemu-system-x86)")?;
        let input = child.stdin.take().context("no standard input")?;
        let output = child.stdout.take().context("no standard output")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            let whole = |line: std::io::Result<Vec<u8>>| line.map(|line| String::from_utf8_lossy(&line).into_owned());
            let mut lines = BufReader::new(output).split(b'\n').map(whole).map_while(Result::ok);
            while lines.next().is_some_and(|line| sender.send(line.trim_end_matches('\r').to_owned()).is_ok()) {}
        });
        let mut machine = Machine { child, input, lines, console, errors };
        machine.read_until(|line| line == READY, BOOT_LIMIT).context("starting the guest")?;
        Ok(machine)
    }

    /// Runs one line of shell to its end.
    pub(super) fn run(&mut self, line: &str, limit: Duration) -> Result<Answer> {
        if line.len() > COMMAND_BYTES_MAX || line.contains('\n') {
            bail!("not one short line: {line:?}");
        }
        writeln!(self.input, "{line}").and_then(|()| self.input.flush()).context("the guest has ended")?;
        let mut text = Vec::new();
        let mut code = None;
        self.read_until(
            |said| {
                code = said.strip_prefix(END).and_then(|code| code.trim().parse().ok());
                if code.is_none() {
                    text.push(said.to_owned());
                }
                code.is_some()
            },
            limit,
        )
        .with_context(|| format!("in the guest: {line}"))?;
        // The mark stands on a line of its own, whatever the command wrote before it.
        if text.last().is_some_and(String::is_empty) {
            text.pop();
        }
        Ok(Answer { code: code.unwrap_or(-1), text: text.join("\n") })
    }

    fn read_until(&mut self, mut is_last: impl FnMut(&str) -> bool, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if is_last(&line) => return Ok(()),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => bail!("nothing for {} s:\n{}", limit.as_secs(), self.last_words()),
                Err(RecvTimeoutError::Disconnected) => bail!("the machine ended:\n{}", self.last_words()),
            }
        }
    }

    fn last_words(&self) -> String {
        let errors = std::fs::read_to_string(&self.errors).unwrap_or_default();
        format!("{}\n{}", process::tail(&errors, 12), self.console_tail(40))
    }

    /// The last lines of the kernel's console.
    pub(super) fn console_tail(&self, lines_max: usize) -> String {
        let bytes = std::fs::read(&self.console).unwrap_or_default();
        process::tail(&String::from_utf8_lossy(&bytes), lines_max)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Nothing is left to do about a machine that cannot be killed; it ends with the lab's process namespace.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// QEMU's arguments: everything but the kernel.
///
/// One thread emulates all processors in turn: with one each, a kernel that patches its own code while it starts was seen
/// to trip over the emulator's copy of it.
///
/// `iommu_platform` makes the guest map memory for the device, without which its driver refuses to lend queues to a
/// socket; `queue_reset`, on by default since QEMU 7.2, lets it do so while the device runs. Received packets are left
/// as they were sent (`guest_…=off`), which is also what XDP demands.
///
/// With `rss` the device hashes what it receives by a key that the guest chooses; with `hash`, which also tells the hash,
/// QEMU itself does so and not a program in the tap's kernel.
fn arguments(scene: &Scene, console: &Path) -> Vec<String> {
    let mut all: Vec<String> =
        ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"].map(Into::into).into();
    let machine = ["-machine", "q35", "-accel", "tcg,thread=single", "-cpu", "max", "-rtc", "clock=vm"];
    all.extend(machine.map(Into::into));
    all.extend(["-smp".into(), QUEUES.to_string(), "-m".into(), MEMORY_MIB.to_string()]);
    all.extend(["-append".into(), COMMAND_LINE.into()]);
    all.extend(["-serial".into(), format!("file:{}", console.display())]);
    all.extend(["-chardev", "stdio,id=shell,signal=off", "-device", "virtio-serial-pci"].map(Into::into));
    all.extend(["-device", "virtserialport,chardev=shell"].map(Into::into));
    for ((tap, mac), mapped) in devices().into_iter().zip(scene.mapped) {
        let vectors = 2 * QUEUES + 2;
        let platform = if mapped { "on" } else { "off" };
        let rss = if scene.rss { "on" } else { "off" };
        all.extend([
            "-netdev".into(),
            format!("tap,id={tap},ifname={tap},queues={QUEUES},vhost=off,script=no,downscript=no"),
            "-device".into(),
            format!(
                "virtio-net-pci,netdev={tap},mac={mac},mq=on,vectors={vectors},iommu_platform={platform},disable-legacy=on,\
                 rss={rss},hash={rss},guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,romfile="
            ),
        ]);
    }
    all
}
