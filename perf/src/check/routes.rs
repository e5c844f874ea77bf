//! Checks of VIPs that reach a router by BGP: a routing daemon on the gateway hands on what Tidegate puts into the kernel.
//!
//! The clients' namespace is the router. Behind it lies a site whose network the gateway knows by BGP alone, and a client
//! there reaches VIPs by BGP alone. Then the gateway is hurt in every way there is; each time routes must be gone from the
//! kernel within half a second.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::check::{Found, Row};
use crate::client::Outcome;
use crate::enclosure;
use crate::gateway::Program;
use crate::manifest::{HTTP, LabService};
use crate::process::{in_namespace, run};
use crate::rig::{Rig, wait_until};
use crate::router::{Router, Speaker};
use crate::topology::{FAMILIES, Family, GATEWAY, VIP_ECHO, VIP_EMPTY, VIP_WEB, Vip, WEB_PORT};

/// Network namespace of the site behind the router.
const SITE: &str = "site";
/// Its networks.
const SITE_NETWORKS: (&str, &str) = ("100.64.7.0/24", "2001:db8:7::/64");
/// The device that routes to VIPs lead to.
const DEVICE: &str = "tidegate-vip";
/// What the node file says for these checks.
const SECTION: &str = "  routes: { enabled: true, withdrawWhenEmpty: true }\ncontrol:\n";
/// Routes are gone from the kernel's table after so long (M-030).
const WITHDRAWN_MAX: Duration = Duration::from_millis(500);
/// How long anything else may take.
const LIMIT: Duration = Duration::from_secs(30);

/// The gateway's own daemon, and the router.
struct Pair {
    gateway: Router,
    router: Router,
}

/// BIRD on the gateway, FRR on the router.
pub(super) fn bird(rig: &mut Rig) -> Found {
    with_speakers(rig, Speaker::Bird, Speaker::Frr)
}

/// FRR on the gateway, BIRD on the router.
pub(super) fn frr(rig: &mut Rig) -> Found {
    with_speakers(rig, Speaker::Frr, Speaker::Bird)
}

fn with_speakers(rig: &mut Rig, on_gateway: Speaker, on_router: Speaker) -> Found {
    let node_file = std::fs::read_to_string(rig.gateway.config())?;
    shell(SITE_UP)?;
    let found = (|| {
        restart(rig, &node_file.replacen("control:\n", SECTION, 1))?;
        let router = Router::on_router(on_router, SITE_NETWORKS)?;
        let mut pair = Pair { gateway: Router::on_gateway(on_gateway)?, router };
        let found = walk(rig, &mut pair);
        let (gateway, router) = (pair.gateway.log(), pair.router.log());
        found.with_context(|| format!("{on_gateway} on the gateway: {gateway}\n{on_router} on the router: {router}"))
    })();
    // Whatever was found, the lab is left as it was.
    let down = shell(SITE_DOWN);
    let back = restart(rig, &node_file);
    let rows = found?;
    down?;
    back?;
    Ok(rows)
}

/// The site and its way to the router; and the router forgets what it knew without BGP.
const SITE_UP: &str = "ip netns add site
ip -n client link add site0 type veth peer name eth0 netns site
ip -n client addr add 100.64.7.1/24 dev site0
ip -n client addr add 2001:db8:7::1/64 dev site0 nodad
ip -n client link set site0 up
ip -n site addr add 100.64.7.2/24 dev eth0
ip -n site addr add 2001:db8:7::2/64 dev eth0 nodad
ip -n site link set lo up
ip -n site link set eth0 up
ip -n site route add default via 100.64.7.1
ip -n site route add default via 2001:db8:7::1
ip netns exec client ethtool -K site0 tx off >/dev/null
ip netns exec site ethtool -K eth0 tx off >/dev/null
ip netns exec client sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding'
ip netns exec client sh -c 'for file in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $file; done'
ip -n client route del 203.0.113.0/24
ip -n client route del 2001:db8:f::/64
";

const SITE_DOWN: &str = "ip netns exec client sh -c 'echo 0 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv6/conf/all/forwarding'
ip -n client link del site0
ip netns del site
ip -n client route replace 203.0.113.0/24 via 192.0.2.1
ip -n client route replace 2001:db8:f::/64 via 2001:db8:1::1
";

/// Namespaces are made and named outside of all of them.
fn shell(script: &str) -> Result<()> {
    let mut command = Command::new("sh");
    command.args(["-e", "-s"]);
    run(command, script, LIMIT)?.success("a shell")?;
    Ok(())
}

/// The gateway with another node file.
fn restart(rig: &mut Rig, node_file: &str) -> Result<()> {
    rig.gateway.revive()?;
    rig.gateway.end(Program::Dataplane)?;
    std::fs::write(rig.gateway.config(), node_file)?;
    rig.gateway.start_program(Program::Dataplane)?;
    Ok(())
}

/// Both families of a VIP are there, or none is.
fn stands(router: &Router, vip: Vip) -> Result<bool> {
    Ok(FAMILIES
        .map(|family| router.ways(vip.of(family)).map(|ways| !ways.is_empty()))
        .into_iter()
        .collect::<Result<Vec<_>>>()?
        == [true, true])
}

fn is_gone(router: &Router, vip: Vip) -> Result<bool> {
    for family in FAMILIES {
        if !router.ways(vip.of(family))?.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn await_route(pair: &Pair, what: &str) -> Result<Duration> {
    let took = wait_until(LIMIT, || Ok(stands(&pair.gateway, VIP_WEB)? && stands(&pair.router, VIP_WEB)?))?;
    took.with_context(|| {
        let seen = |router: &Router| format!("{:?}", FAMILIES.map(|family| router.ways(VIP_WEB.of(family)).ok()));
        format!("no routes {what}: {} on the gateway, {} on the router", seen(&pair.gateway), seen(&pair.router))
    })
}

/// Asks from the site, through the router.
fn ask(family: Family, limit: Duration) -> Result<Outcome> {
    let mut command = in_namespace(SITE, enclosure::this_program()?);
    let target = format!("--target={}", VIP_WEB.at(family, WEB_PORT));
    let limit_ms = format!("--limit-ms={}", limit.as_millis());
    command.args(["client", "await", &target, "--timeout-ms=500", &limit_ms]);
    let finished = run(command, "", limit + LIMIT)?;
    serde_json::from_str(finished.stdout.lines().next_back().unwrap_or_default())
        .with_context(|| format!("a client at the site said {:?} {}", finished.stdout, finished.stderr))
}

fn served(when: &str) -> Found {
    let row = |family: Family| {
        let outcome = ask(family, Duration::from_secs(10))?;
        let measured = if outcome.ok { format!("answered by {}", outcome.pod) } else { outcome.error };
        Ok(Row::new(format!("{family} client behind the router {when}"), measured, "answered by a pod", outcome.ok))
    };
    FAMILIES.into_iter().map(row).collect()
}

/// Waits until the VIP is gone from the gateway's kernel, and then from the router; `since`: when it was hurt.
fn withdrawn(pair: &Pair, vip: Vip, since: Instant, what: &str) -> Found {
    // Looked at without a pause: half a second is to be told from a little more.
    let gone = loop {
        if is_gone(&pair.gateway, vip)? {
            break Some(since.elapsed());
        }
        if since.elapsed() > LIMIT {
            break None;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let told = |took: Option<Duration>| took.map_or("never".into(), |took| format!("after {} ms", took.as_millis()));
    let pass = gone.is_some_and(|took| took <= WITHDRAWN_MAX);
    let expected = format!("≤ {} ms (M-030)", WITHDRAWN_MAX.as_millis());
    let mut rows = vec![Row::new(format!("{what}: gone from the kernel"), told(gone), expected, pass)];
    let at_router = wait_until(LIMIT, || is_gone(&pair.router, vip))?.map(|_| since.elapsed());
    rows.push(Row::new(format!("{what}: gone from the router"), told(at_router), "soon after", at_router.is_some()));
    Ok(rows)
}

/// Number of the keeper of routes: a child of the dataplane.
fn keeper(rig: &mut Rig) -> Result<Pid> {
    let dataplane = rig.gateway.pid(Program::Dataplane).context("the dataplane does not run")?;
    for task in std::fs::read_dir(format!("/proc/{dataplane}/task"))? {
        let children = std::fs::read_to_string(task?.path().join("children")).unwrap_or_default();
        if let Some(pid) = children.split_whitespace().next() {
            return Pid::from_raw(pid.parse()?).context("process 0");
        }
    }
    bail!("the dataplane has no child")
}

fn walk(rig: &mut Rig, pair: &mut Pair) -> Found {
    let took = await_route(pair, "at the beginning")?;
    let mut rows = vec![Row::new(
        "VIPs reach the router",
        format!("after {} ms", took.as_millis()),
        "both families (M-030)",
        true,
    )];
    for family in FAMILIES {
        let ways = pair.gateway.ways(VIP_WEB.of(family))?;
        rows.push(Row::new(format!("{family} way of a VIP on the gateway"), ways.join(" "), DEVICE, ways == [DEVICE]));
    }
    let empty = is_gone(&pair.gateway, VIP_EMPTY)?;
    rows.push(Row::new("VIP without endpoints", if empty { "no route" } else { "a route" }, "no route (M-021)", empty));
    rows.extend(served("by BGP alone")?);
    rows.extend(deaths(rig, pair)?);
    rows.extend(wishes(rig, pair)?);
    let runs = pair.gateway.runs() && pair.router.runs();
    rows.push(Row::new("routing daemons", if runs { "run" } else { "ended" }, "run", runs));
    rows.extend(served("after all that")?);
    Ok(rows)
}

/// The dataplane, its keeper, and both die or hang.
fn deaths(rig: &mut Rig, pair: &Pair) -> Found {
    let mut rows = Vec::new();
    let since = Instant::now();
    rig.gateway.kill(Program::Dataplane)?;
    rows.extend(withdrawn(pair, VIP_WEB, since, "SIGKILL")?);
    rig.gateway.revive()?;
    await_route(pair, "after a restart")?;

    let since = Instant::now();
    rig.gateway.stop(Program::Dataplane)?;
    let found = withdrawn(pair, VIP_WEB, since, "SIGSTOP");
    rig.gateway.resume(Program::Dataplane)?;
    rows.extend(found?);
    let back = await_route(pair, "after SIGCONT")?;
    rows.push(Row::new("SIGCONT: back", format!("after {} ms", back.as_millis()), "back", true));
    rows.extend(served("after SIGCONT")?);

    let child = keeper(rig)?;
    let since = Instant::now();
    kill_process(child, Signal::KILL)?;
    rows.extend(withdrawn(pair, VIP_WEB, since, "SIGKILL of the keeper")?);
    await_route(pair, "from another keeper")?;

    // The one case in which neither the connection nor the beat could be noticed.
    kill_process(keeper(rig)?, Signal::STOP)?;
    let since = Instant::now();
    rig.gateway.kill(Program::Dataplane)?;
    rows.extend(withdrawn(pair, VIP_WEB, since, "SIGKILL with a keeper that is stopped")?);
    rig.gateway.revive()?;
    await_route(pair, "after both had died")?;
    Ok(rows)
}

/// Somebody wants routes gone, or back.
fn wishes(rig: &mut Rig, pair: &Pair) -> Found {
    let mut rows = Vec::new();
    let web = LabService::new("web", VIP_WEB, &[HTTP]);
    let since = Instant::now();
    rig.manifests.put_endpoints(&LabService { pods: Vec::new(), ..web.clone() })?;
    rows.extend(withdrawn(pair, VIP_WEB, since, "last endpoint leaves (M-021)")?);
    let others = stands(&pair.gateway, VIP_ECHO)? && stands(&pair.router, VIP_ECHO)?;
    rows.push(Row::new("… and other VIPs", if others { "stay" } else { "went" }, "stay", others));
    rig.manifests.put_endpoints(&web)?;
    await_route(pair, "with endpoints again")?;

    let since = Instant::now();
    // Nobody takes what it announces on links, so the command waits in vain; routes go all the same.
    rig.gateway.command(&["drain", "--wait=0"])?;
    let found = withdrawn(pair, VIP_WEB, since, "drain");
    let shown = rig.gateway.command(&["show", "announcements"])?.success("tidegate show announcements")?;
    rig.gateway.command(&["undrain"])?.success("tidegate undrain")?;
    rows.extend(found?);
    let told = shown.contains("withdrawn: draining") && shown.contains(&VIP_WEB.v4.to_string());
    rows.push(Row::new("show announcements", shown, "withdrawn: draining", told));
    await_route(pair, "after undrain")?;

    shell(&format!("ip -n {GATEWAY} route flush dev {DEVICE}\nip -n {GATEWAY} -6 route flush dev {DEVICE}\n"))?;
    let back = await_route(pair, "after somebody took them away")?;
    rows.push(Row::new("somebody takes all routes away", format!("back after {} ms", back.as_millis()), "back", true));

    // An orderly end: packets are served until the router has had time to hear.
    let since = Instant::now();
    let (gone, ended) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| withdrawn(pair, VIP_WEB, since, "SIGTERM"));
        let ended = rig.gateway.end(Program::Dataplane);
        (watching.join(), ended)
    });
    rows.extend(gone.unwrap_or_else(|_| bail!("the thread that watches routes panicked"))?);
    let ended = ended?;
    let pass = ended >= Duration::from_millis(900);
    rows.push(Row::new("SIGTERM: serves on", format!("{} ms", ended.as_millis()), "≥ 900 ms (lingerMs)", pass));
    let left = pair.gateway.has_device(DEVICE)?;
    rows.push(Row::new("SIGTERM: the device", if left { "is left" } else { "is gone" }, "is gone", !left));
    rig.gateway.revive()?;
    await_route(pair, "at the end")?;
    Ok(rows)
}
