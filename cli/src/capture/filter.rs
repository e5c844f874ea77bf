//! tcpdump's filter language, compiled by libpcap into a program that the dataplane runs.

use anyhow::{Context, anyhow, bail};
use pcap::{Capture, Linktype};
use tidegate_api::capture::Instruction;

/// `BPF_JMP | BPF_JA` (linux/bpf_common.h): goes on `k` instructions further.
const JUMP_ALWAYS: u16 = 0x05;
/// From here on `k` is a negative number: libpcap jumps back only for `protochain`.
const BACKWARD_MIN: u32 = 1 << 31;

/// What a filter looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Whole frames.
    Frames,
    /// IP packets without anything before them.
    Packets,
}

/// The program of a filter; of an empty one, none.
///
/// # Errors
/// What libpcap says about the text.
pub fn compile(text: &str, over: Over) -> anyhow::Result<Vec<Instruction>> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let link = match over {
        Over::Frames => Linktype::ETHERNET,
        // DLT_RAW (pcap/dlt.h); its number in files is another.
        Over::Packets => Linktype(12),
    };
    let compiler = Capture::dead(link).context("starting libpcap's compiler")?;
    let program = compiler.compile(text, true).map_err(|error| anyhow!("the filter {text:?}: {error}"))?;
    let instructions: Vec<Instruction> =
        program.get_instructions().iter().map(|one| instruction(&one.to_string())).collect::<Result<_, _>>()?;
    if instructions.iter().any(|one| one.code == JUMP_ALWAYS && one.k >= BACKWARD_MIN) {
        bail!(
            "the filter {text:?} walks through headers in a loop, as `protochain` does, and a gateway runs no loops: name \
             the protocol without them, like `ip6 proto 6`, or look at a byte, like `ip6[40] = 6`"
        );
    }
    Ok(instructions)
}

/// An instruction as it is shown: code, both jumps and the constant.
fn instruction(shown: &str) -> anyhow::Result<Instruction> {
    let read = || {
        let mut fields = shown.split_whitespace();
        let code = fields.next()?.parse().ok()?;
        let jump_true = fields.next()?.parse().ok()?;
        let jump_false = fields.next()?.parse().ok()?;
        let k = fields.next()?.parse().ok()?;
        fields.next().is_none().then_some(Instruction { code, jump_true, jump_false, k })
    };
    read().ok_or_else(|| anyhow!("libpcap's instruction {shown:?} is not understood"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_becomes_a_program_for_what_it_looks_at() {
        assert_eq!(compile("  ", Over::Frames).unwrap(), []);
        let of = |code, jump_true, jump_false, k| Instruction { code, jump_true, jump_false, k };
        // What `tcpdump -d ip6` prints, with libpcap's own length for "yes".
        let ip6 = compile("ip6", Over::Frames).unwrap();
        assert_eq!(ip6[..2], [of(0x28, 0, 0, 12), of(0x15, 0, 1, 0x86dd)]);
        assert_eq!((ip6.len(), ip6[3]), (4, of(6, 0, 0, 0)));
        assert_eq!(compile("ip6", Over::Packets).unwrap()[0], of(0x30, 0, 0, 0), "the version field");
    }

    #[test]
    fn what_libpcap_does_not_understand_is_told_in_its_words() {
        let told = format!("{:#}", compile("hots 192.0.2.7", Over::Frames).unwrap_err());
        assert!(told.contains("hots 192.0.2.7") && told.contains("syntax error"), "{told}");
        assert!(compile("ether host 02:00:00:00:00:01", Over::Packets).is_err());
        for text in ["ip protochain 6", "ip6 protochain 6"] {
            let told = format!("{:#}", compile(text, Over::Frames).unwrap_err());
            assert!(told.contains(text) && told.contains("runs no loops"), "{told}");
        }
        assert!(
            instruction("1 2 3").is_err() && instruction("1 2 3 4 5").is_err() && instruction("1 2 300 4").is_err()
        );
    }
}
