//! Checks of two gateways on one link with the clients: one dies, hangs, is cut off from the other, or is drained.
//!
//! Which of them announces which VIP is a hash of names (M-020) and known here: the checks use VIPs of the first gateway,
//! and hurt that one. Clients ask again and again, with new connections; what counts is the longest time without an answer.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tidegate_api::message::WayState;
use tidegate_api::show::{Gateways, Show, Shown};

use crate::capture::Capture;
use crate::check::{Found, Row};
use crate::client::{Knocked, Spread};
use crate::gateway::{Gateway, Program};
use crate::kube_proxy;
use crate::manifest::{ECHO, HTTP, LabService};
use crate::process::{self, in_namespace};
use crate::rig::{Rig, RunningClient, wait_until};
use crate::topology::{
    CLIENT, CLIENT_HOSTS, FAMILIES, Family, GATEWAY, GATEWAY_2, GATEWAY_2_WAN_MAC, GATEWAY_WAN_MAC, LAN, Pod, Vip,
    WEB_PORT, client_address, on_link,
};

/// A VIP of the first gateway, both families: SHA-256 of "gw-1#192.0.2.213" and so on is below that of "gw-2#…".
const VIP_FIRST: Vip = on_link(213);
/// Another one of the first gateway, for `node-dsr`.
const VIP_MOVING: Vip = on_link(214);
/// The VIP that a stranger has.
const VIP_STRANGE: Vip = on_link(221);
/// How long gateways may take to hear each other and to share VIPs.
const SETTLED_LIMIT: Duration = Duration::from_secs(30);
/// How long it may take until a client has heard who announces: two of the rounds in which that is said.
const TOLD_LIMIT: Duration = Duration::from_secs(2);
/// The longest that a client may be without an answer when a gateway dies (M-026 allows 10 s).
const GAP_MAX_MS: u64 = 1000;
/// Port of heartbeats.
const HEARTBEATS: u16 = 7947;
/// Connections while gateways are drained, per family.
const CONNECTIONS: u32 = 2000;
/// Size and rate of a download that runs across drains: ten seconds.
const DOWNLOAD_BYTES: u64 = 2_000_000;
/// See [`DOWNLOAD_BYTES`].
const DOWNLOAD_RATE: u64 = 200_000;

fn first() -> LabService {
    LabService::new("first", VIP_FIRST, &[HTTP])
}

fn second(rig: &mut Rig) -> Result<&mut Gateway> {
    rig.second.as_mut().context("this lab has one gateway")
}

fn both(rig: &Rig) -> Result<[Gateways; 2]> {
    let second = rig.second.as_ref().context("this lab has one gateway")?;
    Ok([rig.gateway.gateways()?, second.gateways()?])
}

/// How many VIPs each announces, by its own word.
fn announced(shown: &Gateways) -> u32 {
    shown.rows.iter().filter(|row| row.is_own).map(|row| row.announced).sum()
}

fn hears_the_other(shown: &Gateways) -> bool {
    shown.rows.len() == 2 && shown.rows.iter().all(|row| row.state == "live")
}

/// Waits until both hear each other, hold the same, and share `vips` addresses, each announced by one.
fn settle(rig: &Rig, vips: u32) -> Result<Duration> {
    let mut seen = None;
    let settled = wait_until(SETTLED_LIMIT, || {
        let [first, second] = both(rig)?;
        let equal = first.rows.iter().all(|row| row.is_equal != Some(false));
        let good = hears_the_other(&first) && hears_the_other(&second) && equal;
        let good = good && announced(&first) + announced(&second) == vips;
        seen = Some([first, second]);
        Ok(good)
    })?;
    settled.with_context(|| format!("not settled on {vips} VIPs: {seen:#?}"))
}

/// Link-layer address at which the client has a VIP.
fn neighbour(vip: Vip, family: Family) -> Result<String> {
    let mut command = in_namespace(CLIENT, "ip");
    command.args(["neigh", "show", &vip.of(family).to_string(), "dev", "eth0"]);
    let text = process::run(command, "", Duration::from_secs(5))?.success("ip neigh")?;
    Ok(text.split_whitespace().skip_while(|word| *word != "lladdr").nth(1).unwrap_or_default().to_owned())
}

fn knock(rig: &Rig, vip: Vip, time: Duration) -> Result<Vec<(Family, RunningClient)>> {
    let start = |family: Family| {
        let target = format!("--target={}", vip.at(family, WEB_PORT));
        let time = format!("--for-ms={}", time.as_millis());
        let mut client = rig.start_client("knock", &[target, "--timeout-ms=100".into(), time])?;
        client.line()?;
        Ok((family, client))
    };
    FAMILIES.into_iter().map(start).collect()
}

fn judge(clients: Vec<(Family, RunningClient)>, what: &str, gap_max_ms: u64) -> Found {
    let mut rows = Vec::new();
    for (family, client) in clients {
        let knocked: Knocked = client.last()?;
        let measured = format!(
            "{} ms without an answer; {} answered, {} not {}",
            knocked.longest_gap_ms, knocked.ok, knocked.failed, knocked.error
        );
        let pass = knocked.longest_gap_ms < gap_max_ms && knocked.ok > 50;
        rows.push(Row::new(format!("{family} {what}"), measured, format!("< {gap_max_ms} ms"), pass));
    }
    Ok(rows)
}

/// Whom the client has for the VIP, once what was announced has reached it: an announcement is said in rounds, and the
/// client's kernel may be looking the address up just then.
fn moved(vip: Vip, mac: &str, when: &str) -> Found {
    let row = |family: Family| {
        let took = wait_until(TOLD_LIMIT, || Ok(neighbour(vip, family)? == mac))?;
        let measured = match took {
            Some(took) => format!("{mac} after {} ms", took.as_millis()),
            None => neighbour(vip, family)?,
        };
        Ok(Row::new(format!("{family} client's neighbour {when}"), measured, mac.to_owned(), took.is_some()))
    };
    FAMILIES.into_iter().map(row).collect()
}

/// Brings the first gateway's Service up; returns how many VIPs there are on the link.
fn begin(rig: &mut Rig) -> Result<u32> {
    rig.manifests.put(&first())?;
    settle(rig, 4)?;
    // Until the client knows whom to ask it has nothing to be told otherwise.
    for family in FAMILIES {
        let answered = wait_until(SETTLED_LIMIT, || Ok(rig.who(VIP_FIRST.at(family, WEB_PORT), 500)?.ok))?;
        answered.with_context(|| format!("{family}: no answer from {}", VIP_FIRST.of(family)))?;
    }
    Ok(4)
}

fn finish(rig: &mut Rig, vips: u32) -> Found {
    let back = settle(rig, vips)?;
    rig.manifests.delete(&first())?;
    settle(rig, vips - 2)?;
    let measured = format!("after {} ms", back.as_millis());
    Ok(vec![Row::new("one owner each again", measured, "exactly one (M-020)", true)])
}

/// Whether the second gateway's NIC admits questions for the VIP (M-024).
fn joined() -> Result<Row> {
    let mut command = in_namespace(GATEWAY_2, "ip");
    command.args(["maddr", "show", "dev", "wan0"]);
    let text = process::run(command, "", Duration::from_secs(5))?.success("ip maddr")?;
    let group = "ff02::1:ff00:213";
    let found = text.contains(group);
    Ok(Row::new("solicited-node group", if found { group } else { "not joined" }, "joined (M-024)", found))
}

/// One of two gateways is killed (SIGKILL): the other takes over.
pub(super) fn killed(rig: &mut Rig) -> Found {
    let vips = begin(rig)?;
    let mut rows = moved(VIP_FIRST, GATEWAY_WAN_MAC, "before")?;
    let at_client = Capture::start(&rig.lab.state_dir, CLIENT, "eth0", "gateway-killed", "arp or icmp6")?;
    let clients = knock(rig, VIP_FIRST, Duration::from_secs(8))?;
    std::thread::sleep(Duration::from_secs(1));
    rig.gateway.kill(Program::Dataplane)?;
    rows.extend(judge(clients, "after SIGKILL", GAP_MAX_MS)?);
    rows.extend(moved(VIP_FIRST, GATEWAY_2_WAN_MAC, "afterwards")?);
    rows.push(joined()?);
    let captured = at_client.finish()?;
    let vip = VIP_FIRST.v4;
    for (what, filter) in [
        (
            "gratuitous ARP requests",
            format!("ether src {GATEWAY_2_WAN_MAC} and arp[6:2] = 1 and arp src host {vip} and arp dst host {vip}"),
        ),
        (
            "gratuitous ARP replies",
            format!("ether src {GATEWAY_2_WAN_MAC} and arp[6:2] = 2 and arp src host {vip} and arp dst host {vip}"),
        ),
        (
            "unsolicited advertisements",
            format!(
                "ether src {GATEWAY_2_WAN_MAC} and icmp6 and ip6[40] = 136 and src host {} and dst host ff02::1",
                VIP_FIRST.v6
            ),
        ),
    ] {
        let count = captured.lines(&filter)?.len();
        rows.push(Row::new(what, count.to_string(), "5: at once and every 1.1 s (M-023, M-024)", count == 5));
    }
    let clients = knock(rig, VIP_FIRST, Duration::from_secs(5))?;
    rig.gateway.revive()?;
    rows.extend(judge(clients, "while it comes back", GAP_MAX_MS)?);
    rows.extend(finish(rig, vips)?);
    Ok(rows)
}

/// One of two gateways hangs (SIGSTOP): the other takes over, and gives back.
pub(super) fn stopped(rig: &mut Rig) -> Found {
    let vips = begin(rig)?;
    let clients = knock(rig, VIP_FIRST, Duration::from_secs(5))?;
    std::thread::sleep(Duration::from_secs(1));
    rig.gateway.stop(Program::Dataplane)?;
    let rows = judge(clients, "after SIGSTOP", GAP_MAX_MS);
    let after = moved(VIP_FIRST, GATEWAY_2_WAN_MAC, "afterwards");
    let clients = knock(rig, VIP_FIRST, Duration::from_secs(5))?;
    rig.gateway.resume(Program::Dataplane)?;
    let mut rows = rows?;
    rows.extend(after?);
    rows.extend(judge(clients, "after SIGCONT", GAP_MAX_MS)?);
    rows.extend(moved(VIP_FIRST, GATEWAY_WAN_MAC, "at the end")?);
    rows.extend(finish(rig, vips)?);
    Ok(rows)
}

/// Cuts heartbeats, and nothing else, between the gateways; or lets them through again.
fn cut_heartbeats(are_cut: bool) -> Result<()> {
    let rules = format!(
        "table inet cut {{\nchain input {{\ntype filter hook input priority 0;\nudp dport {HEARTBEATS} drop\n}}\n}}\n"
    );
    let text = format!("add table inet cut\ndelete table inet cut\n{}", if are_cut { &rules } else { "" });
    for namespace in [GATEWAY, GATEWAY_2] {
        let mut nft = in_namespace(namespace, "nft");
        nft.args(["-f", "-"]);
        process::run(nft, &text, Duration::from_secs(10))?.success("nft")?;
    }
    Ok(())
}

fn dual_owner_ms(shown: &Gateways) -> u64 {
    shown.rows.iter().filter(|row| row.is_own).map(|row| row.dual_owner_ms).sum()
}

/// Heartbeats alone are cut: both announce, service goes on; healed, one yields.
pub(super) fn cut(rig: &mut Rig) -> Found {
    let vips = begin(rig)?;
    let before = both(rig)?.map(|shown| dual_owner_ms(&shown));
    let clients = knock(rig, VIP_FIRST, Duration::from_secs(6))?;
    cut_heartbeats(true)?;
    let began = Instant::now();
    let doubled = wait_until(Duration::from_secs(5), || {
        Ok(both(rig)?.iter().all(|shown| announced(shown) == vips && !hears_the_other(shown)))
    });
    std::thread::sleep(Duration::from_secs(2));
    let (cut_ms, healed) = (began.elapsed().as_millis(), Instant::now());
    cut_heartbeats(false)?;
    let mut heard = None;
    let one = wait_until(SETTLED_LIMIT, || {
        let [first, second] = both(rig)?;
        if heard.is_none() && hears_the_other(&first) && hears_the_other(&second) {
            heard = Some(healed.elapsed());
        }
        Ok(announced(&first) + announced(&second) == vips && heard.is_some())
    })?;
    let doubled = doubled?;
    let mut rows = vec![Row::new(
        "both announce",
        doubled.map_or("no".into(), |took| format!("after {} ms", took.as_millis())),
        "availability first",
        doubled.is_some(),
    )];
    let yielded = one.zip(heard).map(|(one, heard)| one.saturating_sub(heard));
    let ms = |time: Option<Duration>| time.map_or("never".into(), |time| format!("{} ms", time.as_millis()));
    let measured = format!("heard after {}, then {}", ms(heard), ms(yielded));
    let limit = Duration::from_millis(100);
    rows.push(Row::new(
        "healed: one owner",
        measured,
        "≤ 100 ms from hearing",
        yielded.is_some_and(|took| took <= limit),
    ));
    for (name, (shown, before)) in ["first", "second"].iter().zip(both(rig)?.iter().zip(before)) {
        let dual = dual_owner_ms(shown).saturating_sub(before);
        let pass = dual > 1500 && u128::from(dual) < cut_ms + 500;
        rows.push(Row::new(
            format!("{name} gateway: two owners"),
            format!("{dual} ms of a cut of {cut_ms} ms"),
            "counted",
            pass,
        ));
    }
    rows.extend(judge(clients, "during the cut", GAP_MAX_MS)?);
    rows.extend(finish(rig, vips)?);
    Ok(rows)
}

/// TCP 80 and UDP 53 with `externalTrafficPolicy: Local` on three nodes.
fn moving() -> LabService {
    let pods = [1, 3, 5].map(|number| Pod { number }).into();
    LabService { local: true, pods, ..LabService::new("moving", VIP_MOVING, &[HTTP, ECHO]) }
}

/// Waits until both gateways deliver the Service by `node-dsr` to all three nodes, both families.
fn await_nodes(rig: &Rig) -> Result<()> {
    let proven = |gateway: &Gateway| -> Result<bool> {
        let Shown::Services(rows) = gateway.show(Show::Services)? else { return Ok(false) };
        let rows: Vec<_> = rows.into_iter().filter(|row| row.service == "shop/moving").collect();
        let good = |row: &tidegate_api::show::ServiceRow| {
            row.mode == "node-dsr"
                && row.nodes.len() == 3
                && row.nodes.iter().all(|node| node.state == WayState::Proven)
        };
        Ok(rows.len() == 4 && rows.iter().all(good))
    };
    let second = rig.second.as_ref().context("this lab has one gateway")?;
    let ready = wait_until(SETTLED_LIMIT, || Ok(proven(&rig.gateway)? && proven(second)?))?;
    ready.map(drop).context("node-dsr is not proven on both gateways")
}

fn start_spread(rig: &Rig, family: Family) -> Result<RunningClient> {
    let sources: Vec<String> = CLIENT_HOSTS.map(|host| client_address(family, host).to_string()).collect();
    let ports = u16::try_from(CONNECTIONS.div_ceil(u32::try_from(sources.len())?))?;
    let arguments = [
        format!("--target={}", VIP_MOVING.at(family, WEB_PORT)),
        format!("--count={CONNECTIONS}"),
        format!("--from={}", sources.join(",")),
        format!("--first-port={}", rig.ports.take(ports)),
        "--pause-ms=60".into(),
    ];
    rig.start_client("spread", &arguments)
}

/// Drains in turn while clients of a Service in `node-dsr` go on: no request fails, no download breaks.
pub(super) fn drained(rig: &mut Rig) -> Found {
    let service = moving();
    kube_proxy::program(std::slice::from_ref(&service))?;
    rig.manifests.put(&service)?;
    settle(rig, 4)?;
    await_nodes(rig)?;
    let mut downloads = Vec::new();
    for family in FAMILIES {
        downloads.push((family, rig.start_download(VIP_MOVING.at(family, WEB_PORT), DOWNLOAD_BYTES, DOWNLOAD_RATE)?.0));
    }
    let spreads = FAMILIES.map(|family| (family, start_spread(rig, family)));
    std::thread::sleep(Duration::from_millis(500));
    let mut rows = Vec::new();
    let said = |rig: &Rig, arguments: &[&str]| -> Result<String> {
        Ok(rig.gateway.command(arguments)?.success(&arguments.join(" "))?.trim().to_owned())
    };
    let text = said(rig, &["drain"])?;
    rows.push(Row::new("tidegate drain", text.clone(), "drained", text.starts_with("drained after")));
    std::thread::sleep(Duration::from_millis(800));
    rows.extend(moved(VIP_MOVING, GATEWAY_2_WAN_MAC, "after the drain")?);
    said(rig, &["undrain"])?;
    let back = settle(rig, 4)?;
    rows.push(Row::new("tidegate undrain", format!("{} ms", back.as_millis()), "one owner each", true));
    std::thread::sleep(Duration::from_millis(800));
    rows.extend(moved(VIP_MOVING, GATEWAY_WAN_MAC, "after the undrain")?);
    let took = rig.gateway.end(Program::Dataplane)?;
    let limit = Duration::from_millis(2500);
    rows.push(Row::new(
        "SIGTERM",
        format!("ended after {} ms", took.as_millis()),
        "given away first, < 2.5 s",
        took < limit,
    ));
    rig.gateway.revive()?;
    settle(rig, 4)?;
    for (family, client) in spreads {
        let spread: Spread = client?.last()?;
        let measured = format!("{} answered, {} failed {:?}", spread.ok, spread.failed, spread.errors.first());
        let pass = spread.failed == 0 && spread.ok == CONNECTIONS;
        rows.push(Row::new(
            format!("{family} meanwhile"),
            measured,
            format!("{CONNECTIONS} answered, 0 failed (M-026)"),
            pass,
        ));
    }
    for (family, download) in downloads {
        let outcome = download.outcome()?;
        let measured = crate::check::serving::told(&outcome);
        rows.push(Row::new(format!("{family} running download"), measured, "completes, content as sent", outcome.ok));
    }
    rig.manifests.delete(&service)?;
    kube_proxy::program(&[])?;
    settle(rig, 2)?;
    Ok(rows)
}

fn stranger_has(address: bool) -> Result<()> {
    let verb = if address { "add" } else { "del" };
    let mut ip = in_namespace(LAN, "ip");
    ip.args(["-batch", "-"]);
    let nodad = if address { " nodad" } else { "" };
    let text = format!("addr {verb} {}/24 dev br0\naddr {verb} {}/64 dev br0{nodad}\n", VIP_STRANGE.v4, VIP_STRANGE.v6);
    process::run(ip, &text, Duration::from_secs(5))?.success("ip")?;
    Ok(())
}

/// Another machine on the link has a VIP: it is named, and the VIP not announced until it is gone.
pub(super) fn stranger(rig: &mut Rig) -> Found {
    settle(rig, 2)?;
    let mut show = in_namespace(LAN, "cat");
    show.arg("/sys/class/net/br0/address");
    let mac = process::run(show, "", Duration::from_secs(5))?.success("cat")?.trim().to_owned();
    stranger_has(true)?;
    let service = LabService::new("strange", VIP_STRANGE, &[HTTP]);
    rig.manifests.put(&service)?;
    // Of each family one gateway is the owner, and asks.
    let mut told = String::new();
    let found = wait_until(Duration::from_secs(10), || {
        told = rig.gateway.status("strange") + &second(rig)?.status("strange");
        Ok(FAMILIES.iter().all(|family| told.contains(&format!("{mac} answers for {} ", VIP_STRANGE.of(*family)))))
    })?;
    let measured = found.map_or_else(|| told.clone(), |took| format!("{mac} named after {} ms", took.as_millis()));
    let mut rows =
        vec![Row::new("condition AddressConflict", measured, "the stranger's MAC, both families", found.is_some())];
    let count = |rig: &Rig| Ok::<u32, anyhow::Error>(both(rig)?.iter().map(announced).sum());
    let withheld = count(rig)?;
    rows.push(Row::new("VIPs announced", withheld.to_string(), "2: those of the other Service", withheld == 2));
    stranger_has(false)?;
    let gone = wait_until(Duration::from_secs(40), || {
        let told = rig.gateway.status("strange") + &second(rig)?.status("strange");
        Ok(count(rig)? == 4 && !told.contains("AddressConflict"))
    })?;
    let measured = gone.map_or("no".into(), |took| format!("after {} s", took.as_secs()));
    rows.push(Row::new("announced once it is gone", measured, "asked again every 30 s", gone.is_some()));
    rig.manifests.delete(&service)?;
    settle(rig, 2)?;
    Ok(rows)
}
