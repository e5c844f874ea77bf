//! Packets as they come in and as they leave, with what was decided about them: the question and the stream of answers.
//!
//! One conversation, one capture: [`Request::Capture`](crate::message::Request::Capture) begins it,
//! [`Request::EndCapture`](crate::message::Request::EndCapture) or a closed stream ends it. Workers copy packets only
//! while one is under way, never wait for whoever reads, and count what they leave out.
//!
//! Filters are programs of classic BPF, as libpcap makes them of tcpdump's language. The client compiles, the dataplane
//! checks and runs them; neither knows the language.

use serde::{Deserialize, Serialize};

/// Packets a second and worker unless the question says otherwise.
pub const RATE_PER_S_DEFAULT: u32 = 20_000;
/// Bytes of each packet unless the question says otherwise: more than any frame has.
pub const SNAP_BYTES_DEFAULT: u32 = 65_535;

/// One instruction of classic BPF (`struct sock_filter`, include/uapi/linux/filter.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "(u16, u8, u8, u32)", into = "(u16, u8, u8, u32)")]
pub struct Instruction {
    /// What to do: class, size or operation, mode or source.
    pub code: u16,
    /// Instructions to skip where a condition holds.
    pub jump_true: u8,
    /// Instructions to skip where it does not.
    pub jump_false: u8,
    /// The constant.
    pub k: u32,
}

impl From<(u16, u8, u8, u32)> for Instruction {
    fn from((code, jump_true, jump_false, k): (u16, u8, u8, u32)) -> Instruction {
        Instruction { code, jump_true, jump_false, k }
    }
}

impl From<Instruction> for (u16, u8, u8, u32) {
    fn from(one: Instruction) -> (u16, u8, u8, u32) {
        (one.code, one.jump_true, one.jump_false, one.k)
    }
}

/// Which forms of a packet are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Forms {
    /// As it came in and as it left.
    #[default]
    Both,
    /// As it came in.
    Before,
    /// As it left.
    After,
}

/// What is to be captured. A packet is taken when either of its forms passes every filter; then all wanted forms are told.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Wanted {
    /// Program that is run on the whole frame; empty: everything passes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filter: Vec<Instruction>,
    /// Program that is run on the IP packet without VXLAN; empty: everything passes. What is no IP passes none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inner: Vec<Instruction>,
    /// Device that it comes in by, or leaves by; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Only packets that are dropped.
    #[serde(default)]
    pub only_dropped: bool,
    /// Which forms.
    #[serde(default)]
    pub forms: Forms,
    /// Bytes that are kept of each, from the frame's first; at least 1.
    #[serde(default = "snap_bytes_default")]
    pub snap_bytes: u32,
    /// Packets a second that each worker copies at most; at least 1.
    #[serde(default = "rate_per_s_default")]
    pub rate_per_s: u32,
}

fn snap_bytes_default() -> u32 {
    SNAP_BYTES_DEFAULT
}

fn rate_per_s_default() -> u32 {
    RATE_PER_S_DEFAULT
}

/// The capture has begun: every worker copies.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Begun {
    /// Names of the devices, by the number that packets tell.
    pub devices: Vec<String>,
    /// How many workers there are.
    pub workers: u32,
}

/// One form of one packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    /// Worker that decided.
    pub worker: u32,
    /// Number of the packet at that worker, the same for all its forms.
    pub number: u64,
    /// When the turn began that it was handled in, nanoseconds since 1970 (UTC).
    pub at_ns: u64,
    /// True: as it left. False: as it came in.
    pub after: bool,
    /// Device it came in by, or left by: a place in [`Begun::devices`].
    pub device: u32,
    /// Bytes it had.
    pub length: u32,
    /// Those that were kept.
    #[serde(with = "hex")]
    pub bytes: Vec<u8>,
    /// What became of it.
    pub fate: Fate,
    /// Service that it belongs to, `namespace/name`, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Counters that it moved, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub counted: Vec<String>,
    /// Forms that this worker has left out since the last one told.
    #[serde(default)]
    pub left_out: u64,
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fate", rename_all = "kebab-case")]
pub enum Fate {
    /// It left, or an answer to it did.
    Sent {
        /// Frames that left with it.
        frames: u32,
    },
    /// It waits for its neighbour to answer.
    Held,
    /// It waits for the first fragment of its datagram.
    Waits,
    /// Another worker goes on with it.
    HandedOver,
    /// It ended here as it should.
    Consumed,
    /// It had waited, and left now.
    Released,
    /// It was dropped.
    Dropped {
        /// Reason, as counted.
        reason: String,
        /// Stage that gave it.
        stage: String,
        /// What it means.
        help: String,
    },
}

/// What a capture came to. Counted in packets, not in forms, but for `left_out` and `told`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Packets that workers looked at.
    pub seen: u64,
    /// Those that were wanted.
    pub matched: u64,
    /// Forms told.
    pub told: u64,
    /// Forms left out since nobody had taken those before: the reader is too slow.
    pub left_out_full: u64,
    /// Forms left out since there were more than so many a second.
    pub left_out_rate: u64,
}

impl Tally {
    /// Forms left out for either reason.
    pub fn left_out(&self) -> u64 {
        self.left_out_full + self.left_out_rate
    }

    /// Adds another's.
    pub fn add(&mut self, other: &Tally) {
        self.seen += other.seen;
        self.matched += other.matched;
        self.told += other.told;
        self.left_out_full += other.left_out_full;
        self.left_out_rate += other.left_out_rate;
    }
}

/// Bytes as hexadecimal digits: half as long as a list of numbers, and still text.
mod hex {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    const DIGITS: &[u8; 16] = b"0123456789abcdef";

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
        let text: String = bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect();
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let nibble = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
        let byte = |pair: &[u8]| match pair {
            [high, low] => Some(nibble(*high)? << 4 | nibble(*low)?),
            _ => None,
        };
        let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(byte).collect();
        bytes.ok_or_else(|| D::Error::custom("not an even number of hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet() -> Packet {
        Packet {
            worker: 1,
            number: 7,
            at_ns: 1 << 60,
            after: true,
            device: 0,
            length: 1500,
            bytes: (0..=255).collect(),
            fate: Fate::Sent { frames: 1 },
            service: Some("shop/web".into()),
            counted: vec!["flow_hit".into()],
            left_out: 3,
        }
    }

    #[test]
    fn a_packet_is_read_as_it_was_written() {
        let text = serde_json::to_string(&packet()).unwrap();
        assert!(text.contains("\"000102") && text.contains("feff\""), "{text}");
        assert_eq!(serde_json::from_str::<Packet>(&text).unwrap(), packet());
        for wrong in ["\"0001020\"", "\"zz\"", "\"é\""] {
            let all: String = (0..=255).map(|byte| format!("{byte:02x}")).collect();
            let broken = text.replace(&format!("\"{all}\""), wrong);
            assert_ne!(broken, text);
            assert!(serde_json::from_str::<Packet>(&broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn a_question_without_fields_asks_for_everything() {
        let wanted: Wanted = serde_json::from_str("{}").unwrap();
        assert_eq!((wanted.snap_bytes, wanted.rate_per_s), (SNAP_BYTES_DEFAULT, RATE_PER_S_DEFAULT));
        assert!(wanted.filter.is_empty() && wanted.device.is_none() && wanted.forms == Forms::Both);
        let one = Instruction { code: 6, jump_true: 0, jump_false: 0, k: u32::MAX };
        assert_eq!(serde_json::to_string(&one).unwrap(), "[6,0,0,4294967295]");
        assert_eq!(serde_json::from_str::<Instruction>("[6,0,0,4294967295]").unwrap(), one);
        assert!(serde_json::from_str::<Instruction>("[6,0,256,1]").is_err());
    }
}
