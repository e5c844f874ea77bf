//! What the dataplane and the keeper of its routes say to each other: one word per line, over a socket pair.
//!
//! Neither side ever waits for the other: what does not fit into the socket stays here until it does. A word that is not
//! understood ends the conversation, and with it the keeper: the two are the same program.

use std::fmt::{self, Display};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::str::FromStr;

use ipnet::IpNet;

/// Longest word in bytes; there is no reason for one of a tenth of that.
const WORD_BYTES_MAX: usize = 4096;

/// What the keeper is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// There should be this route.
    Want(IpNet),
    /// There should not.
    Unwant(IpNet),
    /// The dataplane lives, and may be used or may not.
    Beat {
        /// It may.
        healthy: bool,
    },
}

/// What the keeper answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This route stands in the kernel.
    There(IpNet),
    /// It does not any more.
    Gone(IpNet),
    /// The kernel does not take it, and why.
    Refused(IpNet, String),
    /// To every beat, and when the device came or went.
    Alive {
        /// The device is there; no route is without it.
        up: bool,
        /// Packets that the machine's own programs sent to VIPs since the keeper began.
        discarded: u64,
        /// Routes put back after somebody else had taken them away.
        restored: u64,
    },
    /// The device cannot be made, and why.
    NoDevice(String),
}

impl Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Order::Want(prefix) => write!(f, "want {prefix}"),
            Order::Unwant(prefix) => write!(f, "unwant {prefix}"),
            Order::Beat { healthy } => write!(f, "beat {healthy}"),
        }
    }
}

impl Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Texts of the system have no line feed, but a line must not depend on that.
        let one_line = |text: &str| text.replace(['\n', '\r'], " ");
        match self {
            Answer::There(prefix) => write!(f, "there {prefix}"),
            Answer::Gone(prefix) => write!(f, "gone {prefix}"),
            Answer::Refused(prefix, reason) => write!(f, "refused {prefix} {}", one_line(reason)),
            Answer::Alive { up, discarded, restored } => write!(f, "alive {up} {discarded} {restored}"),
            Answer::NoDevice(reason) => write!(f, "no-device {}", one_line(reason)),
        }
    }
}

/// A word that nobody says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not understood: {0:?}")]
pub struct Strange(String);

impl FromStr for Order {
    type Err = Strange;

    fn from_str(text: &str) -> Result<Order, Strange> {
        let strange = || Strange(text.chars().take(80).collect());
        let (verb, rest) = text.split_once(' ').ok_or_else(strange)?;
        Ok(match verb {
            "want" => Order::Want(rest.parse().map_err(|_| strange())?),
            "unwant" => Order::Unwant(rest.parse().map_err(|_| strange())?),
            "beat" => Order::Beat { healthy: rest.parse().map_err(|_| strange())? },
            _ => return Err(strange()),
        })
    }
}

impl FromStr for Answer {
    type Err = Strange;

    fn from_str(text: &str) -> Result<Answer, Strange> {
        let strange = || Strange(text.chars().take(80).collect());
        let (verb, rest) = text.split_once(' ').ok_or_else(strange)?;
        Ok(match verb {
            "there" => Answer::There(rest.parse().map_err(|_| strange())?),
            "gone" => Answer::Gone(rest.parse().map_err(|_| strange())?),
            "refused" => {
                let (prefix, reason) = rest.split_once(' ').ok_or_else(strange)?;
                Answer::Refused(prefix.parse().map_err(|_| strange())?, reason.into())
            }
            "alive" => {
                let mut words = rest.split(' ');
                let mut next = || words.next().ok_or_else(strange);
                Answer::Alive {
                    up: next()?.parse().map_err(|_| strange())?,
                    discarded: next()?.parse().map_err(|_| strange())?,
                    restored: next()?.parse().map_err(|_| strange())?,
                }
            }
            "no-device" => Answer::NoDevice(rest.into()),
            _ => return Err(strange()),
        })
    }
}

/// One end of the conversation.
#[derive(Debug)]
pub struct Line {
    stream: UnixStream,
    heard: Vec<u8>,
    unsaid: Vec<u8>,
}

impl Line {
    /// Over this socket.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(stream: UnixStream) -> io::Result<Line> {
        stream.set_nonblocking(true)?;
        Ok(Line { stream, heard: Vec::new(), unsaid: Vec::new() })
    }

    /// Says a word, at once or with the next [`Line::flush`].
    pub fn say(&mut self, word: &impl Display) {
        // Writing into a vector cannot fail.
        let _ = writeln!(self.unsaid, "{word}");
    }

    /// Sends what fits. False when something is left.
    ///
    /// # Errors
    /// When the other side is gone.
    pub fn flush(&mut self) -> io::Result<bool> {
        let mut sent = 0;
        let result = loop {
            match self.unsaid.get(sent..).unwrap_or_default() {
                [] => break Ok(true),
                rest => match self.stream.write(rest) {
                    Ok(count) => sent += count,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break Ok(false),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => break Err(error),
                },
            }
        };
        self.unsaid.drain(..sent);
        result
    }

    /// All words that have arrived; does not wait for any.
    ///
    /// # Errors
    /// `UnexpectedEof` when the other side is gone and all it said was returned before; `InvalidData` for a strange word.
    pub fn hear<W: FromStr<Err = Strange>>(&mut self) -> io::Result<Vec<W>> {
        let mut words = Vec::new();
        let mut buffer = [0; 16 << 10];
        let ended = loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => break true,
                Ok(count) => self.heard.extend_from_slice(buffer.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break false,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // ECONNRESET: the other side died with words of ours unread.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break true,
                Err(error) => return Err(error),
            }
            let whole = self.heard.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            let strange = |error: Strange| io::Error::new(ErrorKind::InvalidData, error);
            let told: Vec<u8> = self.heard.drain(..whole).collect();
            for word in String::from_utf8_lossy(&told).lines() {
                words.push(word.parse().map_err(strange)?);
            }
            if self.heard.len() > WORD_BYTES_MAX {
                return Err(strange(Strange("a word without an end".into())));
            }
        };
        if ended && words.is_empty() { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(words) }
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn pair() -> (Line, Line) {
        let (a, b) = UnixStream::pair().unwrap();
        (Line::new(a).unwrap(), Line::new(b).unwrap())
    }

    #[test]
    fn every_word_arrives_as_it_was_said() {
        let (mut parent, mut keeper) = pair();
        let (v4, v6) = (net("203.0.113.10/32"), net("2001:db8:f::/64"));
        let orders = [
            Order::Want(v4),
            Order::Want(v6),
            Order::Unwant(v6),
            Order::Beat { healthy: true },
            Order::Beat { healthy: false },
        ];
        orders.iter().for_each(|order| parent.say(order));
        assert!(parent.flush().unwrap());
        assert_eq!(keeper.hear::<Order>().unwrap(), orders);
        assert_eq!(keeper.hear::<Order>().unwrap(), [], "nothing new");
        let answers = [
            Answer::There(v6),
            Answer::Gone(v4),
            Answer::Refused(v4, "File exists (os error 17)".into()),
            Answer::Alive { up: true, discarded: u64::MAX, restored: 0 },
            Answer::NoDevice("a text".into()),
        ];
        answers.iter().for_each(|answer| keeper.say(answer));
        keeper.flush().unwrap();
        assert_eq!(parent.hear::<Answer>().unwrap(), answers);
        keeper.say(&Answer::NoDevice("two\nlines".into()));
        keeper.flush().unwrap();
        assert_eq!(parent.hear::<Answer>().unwrap(), [Answer::NoDevice("two lines".into())]);
    }

    #[test]
    fn nobody_waits_and_nothing_is_lost_when_the_other_side_is_slow() {
        let (mut parent, mut keeper) = pair();
        let orders: Vec<Order> =
            (0..50_000u32).map(|n| Order::Want(net(&format!("10.{}.{}.1/32", n / 256 % 256, n % 256)))).collect();
        orders.iter().for_each(|order| parent.say(order));
        let mut heard: Vec<Order> = Vec::new();
        while !parent.flush().unwrap() {
            heard.extend(keeper.hear::<Order>().unwrap());
        }
        heard.extend(keeper.hear::<Order>().unwrap());
        assert_eq!(heard, orders);
    }

    #[test]
    fn the_end_and_nonsense_are_errors_and_never_a_panic() {
        let (mut parent, mut keeper) = pair();
        parent.say(&Order::Beat { healthy: true });
        parent.flush().unwrap();
        drop(parent);
        assert_eq!(keeper.hear::<Order>().unwrap(), [Order::Beat { healthy: true }], "last words are heard");
        assert_eq!(keeper.hear::<Order>().unwrap_err().kind(), ErrorKind::UnexpectedEof);
        for nonsense in ["", "want", "want x", "beat", "beat maybe", "there 10.0.0.1/32", "want 10.0.0.1/33", "\u{0}"] {
            let (mut parent, mut keeper) = pair();
            parent.say(&nonsense);
            parent.flush().unwrap();
            assert_eq!(keeper.hear::<Order>().unwrap_err().kind(), ErrorKind::InvalidData, "{nonsense:?}");
        }
        for nonsense in ["alive true", "alive true 1", "alive 1 1 1", "refused 10.0.0.1/32", "gone"] {
            assert!(nonsense.parse::<Answer>().is_err(), "{nonsense:?}");
        }
        let (mut parent, mut keeper) = pair();
        parent.say(&"x".repeat(5000));
        parent.unsaid.pop();
        parent.flush().unwrap();
        assert_eq!(keeper.hear::<Order>().unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
