//! One line of the ledger.

use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What happened, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Writing began: whoever held something before does not any more.
    Start {
        /// When.
        at: Timestamp,
    },
    /// Ports were handed out.
    Begin {
        /// When.
        at: Timestamp,
        /// Which, and to whom.
        holding: Holding,
    },
    /// Ports were taken back.
    End {
        /// When.
        at: Timestamp,
        /// Which, and from whom.
        holding: Holding,
    },
    /// Records were lost: whoever got a port meanwhile is not recorded, and some of whom that is said had given it back.
    Gap {
        /// When writing worked again.
        at: Timestamp,
        /// What is missing.
        gap: Gap,
    },
}

/// A sort of records that a [`Writer`](crate::Writer) keeps as lines in files.
pub trait Kept {
    /// How names of their files begin.
    const PREFIX: &'static str;
    /// Whether an index lies beside each file: they can be asked for by [`crate::who`].
    const IS_INDEXED: bool;
    /// When it happened.
    fn at(&self) -> Timestamp;
    /// Whom it is about.
    fn subject(&self) -> Subject<'_>;
    /// The record of a start.
    fn start(at: Timestamp) -> Self;
    /// The record of what is missing.
    fn gap(at: Timestamp, gap: Gap) -> Self;
    /// Appends the line, with its end.
    ///
    /// # Errors
    /// When it cannot be said in JSON.
    fn write(&self, out: &mut Vec<u8>) -> serde_json::Result<()>;
}

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject<'r> {
    /// Writing began.
    Start,
    /// Records were lost.
    Gap,
    /// Ports that were handed out.
    Begin(&'r Holding),
    /// Ports that were taken back.
    End(&'r Holding),
    /// Something that no index knows.
    Other,
}

/// Records that did not reach the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// When the first of them happened.
    pub from: Timestamp,
    /// When the last of them happened.
    pub until: Timestamp,
    /// How many they are.
    pub count: u64,
}

impl Gap {
    /// This and what is missing besides.
    pub fn and(self, other: Gap) -> Gap {
        Gap {
            from: self.from.min(other.from),
            until: self.until.max(other.until),
            count: self.count.saturating_add(other.count),
        }
    }
}

/// Ports of an external address, and who has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// The address that the outside sees.
    pub external: IpAddr,
    /// First and last port, host order; ICMP: query identifiers.
    pub ports: (u16, u16),
    /// Of which protocol.
    pub protocol: Protocol,
    /// The other end, where ports are handed out for one alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<Remote>,
    /// Address of the pod.
    pub internal: IpAddr,
    /// Port of the pod; `None`: a block is for all of its ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub internal_port: Option<u16>,
    /// `namespace/name` of the pod, as far as it was known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pod: String,
    /// Node of the pod, as far as it was known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// The policy that it came from.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub policy: String,
}

/// Address and port of the other end.
pub type Remote = SocketAddr;

/// Protocols that have ports or what serves as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// ICMP echo.
    Icmp,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMPv6 echo.
    Icmpv6,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The IANA protocol number.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Icmp => 1,
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Icmpv6 => 58,
            Protocol::Sctp => 132,
        }
    }

    /// The protocol of an IANA number, if it is one of these.
    pub fn of_number(number: u8) -> Option<Self> {
        [Protocol::Icmp, Protocol::Tcp, Protocol::Udp, Protocol::Icmpv6, Protocol::Sctp]
            .into_iter()
            .find(|protocol| protocol.number() == number)
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Protocol::Icmp => "ICMP",
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Icmpv6 => "ICMPv6",
            Protocol::Sctp => "SCTP",
        })
    }
}

/// A record as it is written: flat, so that tools that know columns can read it.
#[derive(Serialize, Deserialize)]
struct Line {
    at: Timestamp,
    event: Event,
    #[serde(flatten)]
    holding: Option<Holding>,
    #[serde(flatten)]
    gap: Option<Gap>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Event {
    Start,
    Begin,
    End,
    Gap,
}

impl Kept for Record {
    const PREFIX: &'static str = "nat";
    const IS_INDEXED: bool = true;

    fn at(&self) -> Timestamp {
        match self {
            Record::Start { at } | Record::Begin { at, .. } | Record::End { at, .. } | Record::Gap { at, .. } => *at,
        }
    }

    fn subject(&self) -> Subject<'_> {
        match self {
            Record::Start { .. } => Subject::Start,
            Record::Gap { .. } => Subject::Gap,
            Record::Begin { holding, .. } => Subject::Begin(holding),
            Record::End { holding, .. } => Subject::End(holding),
        }
    }

    fn start(at: Timestamp) -> Self {
        Record::Start { at }
    }

    fn gap(at: Timestamp, gap: Gap) -> Self {
        Record::Gap { at, gap }
    }

    fn write(&self, out: &mut Vec<u8>) -> serde_json::Result<()> {
        #[derive(Serialize)]
        struct Lent<'a> {
            at: Timestamp,
            event: Event,
            #[serde(flatten)]
            holding: Option<&'a Holding>,
            #[serde(flatten)]
            gap: Option<&'a Gap>,
        }
        let event = match self {
            Record::Start { .. } => Event::Start,
            Record::Begin { .. } => Event::Begin,
            Record::End { .. } => Event::End,
            Record::Gap { .. } => Event::Gap,
        };
        let gap = if let Record::Gap { gap, .. } = self { Some(gap) } else { None };
        serde_json::to_writer(&mut *out, &Lent { at: self.at(), event, holding: self.holding(), gap })?;
        out.push(b'\n');
        Ok(())
    }
}

impl Record {
    /// What was handed out or taken back; `None` for what is about nobody.
    pub fn holding(&self) -> Option<&Holding> {
        match self {
            Record::Start { .. } | Record::Gap { .. } => None,
            Record::Begin { holding, .. } | Record::End { holding, .. } => Some(holding),
        }
    }

    /// The record of a line; `None` if it is none, torn for example.
    pub(crate) fn read(line: &[u8]) -> Option<Record> {
        let Line { at, event, holding, gap } = serde_json::from_slice(line).ok()?;
        match (event, holding) {
            (Event::Start, _) => Some(Record::Start { at }),
            (Event::Begin, Some(holding)) if holding.ports.0 <= holding.ports.1 => Some(Record::Begin { at, holding }),
            (Event::End, Some(holding)) if holding.ports.0 <= holding.ports.1 => Some(Record::End { at, holding }),
            (Event::Gap, _) => gap.map(|gap| Record::Gap { at, gap }),
            _ => None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn holding(external: &str, ports: (u16, u16), protocol: Protocol, remote: Option<&str>) -> Holding {
        Holding {
            external: external.parse().unwrap(),
            ports,
            protocol,
            remote: remote.map(|remote| remote.parse().unwrap()),
            internal: if external.contains(':') { "fd00:1::7" } else { "10.244.1.7" }.parse().unwrap(),
            internal_port: None,
            pod: "shop/web-1".into(),
            node: "w1".into(),
            policy: "shop".into(),
        }
    }

    /// N-044: time, pod, external address and ports; flat, one line, without what is not known.
    #[test]
    fn a_record_is_one_flat_line() {
        let at = "2026-01-02T03:04:05.678Z".parse().unwrap();
        let block = Record::Begin { at, holding: holding("192.0.2.1", (1024, 1151), Protocol::Udp, None) };
        let dense =
            Record::End { at, holding: holding("2001:db8::1", (7, 7), Protocol::Tcp, Some("[2001:db8::9]:443")) };
        let start = Record::Start { at };
        let gap = Record::Gap { at, gap: Gap { from: at, until: at, count: 7 } };
        for (record, text) in [
            (
                &block,
                r#"{"at":"2026-01-02T03:04:05.678Z","event":"begin","external":"192.0.2.1","ports":[1024,1151],"protocol":"UDP","internal":"10.244.1.7","pod":"shop/web-1","node":"w1","policy":"shop"}"#,
            ),
            (
                &dense,
                r#"{"at":"2026-01-02T03:04:05.678Z","event":"end","external":"2001:db8::1","ports":[7,7],"protocol":"TCP","remote":"[2001:db8::9]:443","internal":"fd00:1::7","pod":"shop/web-1","node":"w1","policy":"shop"}"#,
            ),
            (&start, r#"{"at":"2026-01-02T03:04:05.678Z","event":"start"}"#),
            (
                &gap,
                r#"{"at":"2026-01-02T03:04:05.678Z","event":"gap","from":"2026-01-02T03:04:05.678Z","until":"2026-01-02T03:04:05.678Z","count":7}"#,
            ),
        ] {
            let mut line = Vec::new();
            record.write(&mut line).unwrap();
            assert_eq!(String::from_utf8(line.clone()).unwrap(), format!("{text}\n"));
            assert_eq!(Record::read(&line).as_ref(), Some(record));
            // A line that was cut off is no record.
            assert_eq!(Record::read(&line[..line.len() / 2]), None);
        }
        assert_eq!(Record::read(br#"{"at":"2026-01-02T03:04:05Z","event":"begin"}"#), None, "nothing was handed out");
    }
}
