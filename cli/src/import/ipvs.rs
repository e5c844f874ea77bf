//! The kernel's IPVS, as `ipvsadm -S` prints it and `ipvsadm -R` reads it.
//!
//! Owns the grammar of those lines (ipvsadm(8)) and what each option means to Tidegate. One line is one rule: `-A` adds a
//! virtual service, `-a` a real server to one. A rule that cannot be understood is refused and the others stand.

use std::net::{IpAddr, Ipv6Addr, SocketAddrV6};

use super::Complaint;

/// Persistence when `-p` has no number, in seconds (ipvsadm(8)).
const PERSISTENCE_S_DEFAULT: u32 = 300;
/// Longest session affinity that Kubernetes knows, in seconds.
const AFFINITY_S_MAX: u32 = 86_400;
/// Scheduler when `-s` is not given (ipvsadm(8)).
const SCHEDULER_DEFAULT: &str = "wlc";
/// Schedulers that Tidegate has under the same name; the last two are taken over by `dh`.
const SCHEDULERS: [&str; 13] = ["rr", "wrr", "lc", "wlc", "sed", "nq", "sh", "dh", "mh", "fo", "ovf", "lblc", "lblcr"];

/// All rules of an input.
#[derive(Debug, Default)]
pub struct Rules {
    /// Virtual services, in the order of the input.
    pub services: Vec<VirtualService>,
    /// Rules that were left out.
    pub refused: Vec<Complaint>,
}

/// One `-A` with its `-a`s.
#[derive(Debug)]
pub struct VirtualService {
    /// The line it stands on, from 1.
    pub line: usize,
    /// The rule as it was written.
    pub source: String,
    /// Where clients come to; port 0: every port.
    pub at: Frontend,
    /// Name of the scheduler.
    pub scheduler: String,
    /// The source port does not count in the hash: IPVS' `mh` without `mh-port`.
    pub hash_without_source_port: bool,
    /// Seconds a client stays with its server.
    pub affinity_s: Option<u32>,
    /// Every datagram is scheduled alone.
    pub one_packet: bool,
    /// Real servers, in the order of the input.
    pub servers: Vec<Server>,
    /// Traits that were lost, its servers' included.
    pub changed: Vec<Complaint>,
}

/// Address, protocol and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// The address.
    pub address: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The port, host order.
    pub port: u16,
}

/// L4 protocol of a virtual service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `-t`.
    Tcp,
    /// `-u`.
    Udp,
    /// `--sctp-service`.
    Sctp,
}

/// One real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its address.
    pub address: IpAddr,
    /// Its port, host order; 0: the one the client asked for.
    pub port: u16,
    /// Share of new connections; 0: none.
    pub weight: u16,
}

/// The options of one line, as they stand there.
#[derive(Default)]
struct Line<'a> {
    adds_service: bool,
    adds_server: bool,
    service: Option<(Protocol, &'a str)>,
    fwmark: Option<&'a str>,
    scheduler: Option<&'a str>,
    persistence: Option<Option<&'a str>>,
    netmask: Option<&'a str>,
    flags: Option<&'a str>,
    engine: Option<&'a str>,
    one_packet: bool,
    server: Option<&'a str>,
    masquerading: bool,
    tunnelling: bool,
    weight: Option<&'a str>,
    thresholds: bool,
}

/// How a line names its virtual service, as written: protocol and address, or firewall mark.
type Whose<'a> = (Option<(Protocol, &'a str)>, Option<&'a str>);

/// Reads all rules.
pub fn read(text: &str) -> Rules {
    let mut rules = Rules::default();
    // Services that were refused, whose servers are refused with them: line, and whose they are.
    let mut gone: Vec<(usize, Whose<'_>)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let (number, line) = (index + 1, line.trim());
        let line = line.strip_prefix("ipvsadm").map_or(line, str::trim);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let refuse = |message: String| Complaint { line: number, refused: true, message };
        let parsed = match Line::parse(line) {
            Ok(parsed) => parsed,
            Err(message) => {
                rules.refused.push(refuse(message));
                continue;
            }
        };
        if let Some((at, _)) = gone.iter().find(|(_, whose)| parsed.adds_server && *whose == parsed.whose()) {
            rules.refused.push(refuse(format!("its virtual service (line {at}) is left out")));
            continue;
        }
        let result = match parsed.adds_service {
            true => rules.add_service(number, line, &parsed),
            false => rules.add_server(number, &parsed),
        };
        if let Err(message) = result {
            if parsed.adds_service {
                gone.push((number, parsed.whose()));
            }
            rules.refused.push(refuse(message));
        }
    }
    rules
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Result<Self, String> {
        let mut parsed = Line::default();
        let mut words = line.split_whitespace().peekable();
        while let Some(word) = words.next() {
            // Long options may carry their value behind "=".
            let (option, attached) = match word.split_once('=') {
                Some((option, value)) if option.starts_with("--") => (option, Some(value)),
                _ => (word, None),
            };
            let mut value = || attached.or_else(|| words.next()).ok_or_else(|| format!("{option} needs a value"));
            match option {
                "-A" | "--add-service" => parsed.adds_service = true,
                "-a" | "--add-server" => parsed.adds_server = true,
                "-t" | "--tcp-service" => parsed.service = Some((Protocol::Tcp, value()?)),
                "-u" | "--udp-service" => parsed.service = Some((Protocol::Udp, value()?)),
                "--sctp-service" => parsed.service = Some((Protocol::Sctp, value()?)),
                "-f" | "--fwmark-service" => parsed.fwmark = Some(value()?),
                "-s" | "--scheduler" => parsed.scheduler = Some(value()?),
                "-p" | "--persistent" => {
                    let next = words.next_if(|next| attached.is_none() && !next.starts_with('-'));
                    parsed.persistence = Some(attached.or(next));
                }
                "-M" | "--netmask" => parsed.netmask = Some(value()?),
                "-b" | "--sched-flags" => parsed.flags = Some(value()?),
                "--pe" => parsed.engine = Some(value()?),
                "-o" | "--ops" => parsed.one_packet = true,
                "-r" | "--real-server" => parsed.server = Some(value()?),
                "-m" | "--masquerading" => parsed.masquerading = true,
                "-i" | "--ipip" => parsed.tunnelling = true,
                "-g" | "--gatewaying" | "-6" | "--ipv6" => {}
                "--tun-nocsum" | "--tun-csum" | "--tun-remcsum" => {}
                "--tun-type" | "--tun-port" => drop(value()?),
                "-w" | "--weight" => parsed.weight = Some(value()?),
                "-x" | "--u-threshold" | "-y" | "--l-threshold" => parsed.thresholds |= value()? != "0",
                _ => return Err(format!("{option:?} is not an option that `ipvsadm -S` prints")),
            }
        }
        if parsed.adds_service == parsed.adds_server {
            return Err("not a line of `ipvsadm -S`: those begin with -A or -a".into());
        }
        Ok(parsed)
    }

    fn whose(&self) -> Whose<'a> {
        (self.service, self.fwmark)
    }

    fn frontend(&self) -> Result<Frontend, String> {
        if let Some(mark) = self.fwmark {
            return Err(format!(
                "firewall mark {mark}: the packets it means are chosen by rules of another program; write a Service for \
                 their addresses and ports (tidegate.io/addresses, tidegate.io/prefixes and tidegate.io/all-ports say most \
                 of what marks are used for)"
            ));
        }
        let (protocol, text) = self.service.ok_or("no virtual service is named (-t, -u or --sctp-service)")?;
        let (address, port) = address_and_port(text)?;
        usable(address)?;
        Ok(Frontend { address, protocol, port: port.unwrap_or(0) })
    }
}

impl Rules {
    fn add_service(&mut self, number: usize, source: &str, line: &Line<'_>) -> Result<(), String> {
        let at = line.frontend()?;
        if let Some(other) = self.services.iter().find(|service| service.at == at) {
            return Err(format!("the same virtual service stands on line {}", other.line));
        }
        if at.port == 0 && line.persistence.is_none() {
            return Err("port 0 means every port, which IPVS has for persistent services only (-p)".into());
        }
        let scheduler = line.scheduler.unwrap_or(SCHEDULER_DEFAULT);
        if !SCHEDULERS.contains(&scheduler) {
            return Err(format!("scheduler {scheduler:?} is not known; there are {}", SCHEDULERS.join(", ")));
        }
        let mut changed = Vec::new();
        let mut lose = |message: String| changed.push(Complaint { line: number, refused: false, message });
        let affinity_s = line.persistence.map(|text| persistence(text, &mut lose)).transpose()?;
        about_traits(line, at, scheduler, &mut lose);
        let port_counts = line.flags.is_some_and(|flags| flags.split(',').any(|flag| flag == "mh-port"));
        self.services.push(VirtualService {
            line: number,
            source: source.into(),
            at,
            scheduler: scheduler.into(),
            hash_without_source_port: scheduler == "mh" && !port_counts,
            affinity_s,
            one_packet: line.one_packet && at.protocol == Protocol::Udp,
            servers: Vec::new(),
            changed,
        });
        Ok(())
    }

    fn add_server(&mut self, number: usize, line: &Line<'_>) -> Result<(), String> {
        let at = line.frontend()?;
        let service = self.services.iter_mut().find(|service| service.at == at);
        let service = service.ok_or("no -A line before it adds its virtual service")?;
        let text = line.server.ok_or("no real server is named (-r)")?;
        let (address, port) = address_and_port(text)?;
        usable(address)?;
        if address.is_ipv4() != at.address.is_ipv4() {
            return Err(format!("{address} is not of the family of {}; families are not translated", at.address));
        }
        let weight = line.weight.unwrap_or("1");
        let weight: u16 = weight.parse().map_err(|_| format!("{weight:?} is not a weight (0 to {})", u16::MAX))?;
        let server = Server { address, port: port.unwrap_or(at.port), weight };
        if (server.port == 0) != (at.port == 0) {
            return Err("a service of every port needs servers with port 0, and only such a service".into());
        }
        if service.servers.iter().any(|other| (other.address, other.port) == (server.address, server.port)) {
            return Err("the same real server is listed before".into());
        }
        let mut lose = |message: String| service.changed.push(Complaint { line: number, refused: false, message });
        if !line.masquerading {
            let (method, undo) = match line.tunnelling {
                true => ("ipip (-i)", "its tunnel device and the service address on it are not needed"),
                false => ("gatewaying (-g)", "the service address on its loopback device is not needed"),
            };
            lose(format!(
                "{method} becomes fullnat: {address} sees the gateway's address instead of its clients', and answers \
                 through the gateway; {undo}"
            ));
        }
        if line.thresholds {
            lose(format!("connection thresholds (-x, -y) of {address} are not kept"));
        }
        let first = service.servers.iter().find(|other| other.address == address);
        if let Some(first) = first.filter(|first| first.weight != weight) {
            lose(format!(
                "weight {weight} of port {}: weights are kept by address, {address} has {}",
                server.port, first.weight
            ));
        }
        service.servers.push(server);
        Ok(())
    }
}

fn persistence(text: Option<&str>, lose: &mut impl FnMut(String)) -> Result<u32, String> {
    let Some(text) = text else { return Ok(PERSISTENCE_S_DEFAULT) };
    let seconds: u32 = text
        .parse()
        .ok()
        .filter(|seconds| *seconds > 0)
        .ok_or_else(|| format!("{text:?} is not a number of seconds to persist for"))?;
    if seconds > AFFINITY_S_MAX {
        lose(format!("persistence of {seconds} s becomes {AFFINITY_S_MAX} s, the longest affinity there is"));
    }
    Ok(seconds.min(AFFINITY_S_MAX))
}

/// Names what of a virtual service is lost.
fn about_traits(line: &Line<'_>, at: Frontend, scheduler: &str, lose: &mut impl FnMut(String)) {
    let whole = if at.address.is_ipv4() {
        ["255.255.255.255", "32"]
    } else {
        ["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "128"]
    };
    if let Some(mask) = line.netmask.filter(|mask| !whole.contains(mask)) {
        lose(format!("clients are not grouped by netmask {mask}: affinity is by single address"));
    }
    if let Some(engine) = line.engine {
        lose(format!("persistence engine {engine}: affinity is by the client's address alone"));
    }
    for flag in line.flags.iter().flat_map(|flags| flags.split(',')) {
        match flag {
            // A server that is not there is not in the table in the first place.
            "mh-port" | "mh-fallback" | "sh-fallback" => {}
            "sh-port" => lose("sh-port: sh hashes the client's address without its port; mh hashes both".into()),
            _ => lose(format!("scheduler flag {flag:?} is not known")),
        }
    }
    if ["lblc", "lblcr"].contains(&scheduler) {
        lose(format!("scheduler {scheduler} becomes dh, which is all it amounts to with one destination address"));
    }
    if line.one_packet && at.protocol == Protocol::Udp {
        lose(
            "one-packet scheduling (-o) needs delivery that keeps the client's address; in fullnat flows are kept"
                .into(),
        );
    } else if line.one_packet {
        lose("one-packet scheduling (-o) is for UDP".into());
    }
}

/// `ADDRESS`, `ADDRESS:PORT` or `[ADDRESS]:PORT`, all in numbers.
fn address_and_port(text: &str) -> Result<(IpAddr, Option<u16>), String> {
    let names = || {
        format!(
            "{text:?} is not an address and a port in numbers; save the rules with `ipvsadm -Sn`, which prints no names"
        )
    };
    if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok((address, None));
    }
    let (address, port) = text.rsplit_once(':').ok_or_else(names)?;
    let port: u16 = port.parse().map_err(|_| names())?;
    let address = match address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(v6) => IpAddr::from(v6.parse::<Ipv6Addr>().map_err(|_| names())?),
        None => address.parse().map_err(|_| names())?,
    };
    Ok((address, Some(port)))
}

/// Whether packets can be sent to an address from elsewhere.
fn usable(address: IpAddr) -> Result<(), String> {
    let why = match address {
        _ if address.is_loopback() => "is this machine's own (local servers have no counterpart)",
        _ if address.is_unspecified() || address.is_multicast() => "is not the address of one machine",
        IpAddr::V4(v4) if v4.is_link_local() || v4.is_broadcast() => {
            "is not the address of one machine beyond the link"
        }
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "is not the address of one machine beyond the link",
        _ => return Ok(()),
    };
    Err(format!("{address} {why}"))
}

impl std::fmt::Display for Frontend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.address {
            IpAddr::V4(v4) => write!(f, "{v4}:{}", self.port),
            IpAddr::V6(v6) => write!(f, "{}", SocketAddrV6::new(v6, self.port, 0, 0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_are_read_in_all_their_forms() {
        for (text, address, port) in [
            ("10.0.0.1:80", "10.0.0.1", Some(80)),
            ("10.0.0.1", "10.0.0.1", None),
            ("[2001:db8::1]:80", "2001:db8::1", Some(80)),
            ("[2001:db8::1]", "2001:db8::1", None),
            ("2001:db8::1", "2001:db8::1", None),
        ] {
            assert_eq!(address_and_port(text), Ok((address.parse().unwrap(), port)), "{text}");
        }
        for text in ["www:http", "10.0.0.1:http", "10.0.0.1:65536", "[10.0.0.1]:80", "", ":80", "[]:80"] {
            assert!(address_and_port(text).unwrap_err().contains("ipvsadm -Sn"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "((-[AatufspMborgimwxy6]|--(pe|ops|ipip|weight=)|[0-9.:\\[\\]a-f]{1,12}) ?\n?){0,12}") {
            let _ = crate::import::convert(&text, "default");
        }
    }
}
