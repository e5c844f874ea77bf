//! Rows that were asked for: what the contract has no question for is left out here.

use std::net::IpAddr;

use anyhow::anyhow;
use ipnet::IpNet;
use tidegate_api::resource::Protocol;
use tidegate_api::show::{DropRow, NeighbourRow, RouteRow, Shown};

use crate::args::What;

/// The answer with the rows that the arguments ask for.
///
/// # Errors
/// When a drop reason is asked for that there is not.
pub fn kept(mut answer: Shown, what: &What) -> anyhow::Result<Shown> {
    match (&mut answer, what) {
        (Shown::Services(rows), What::Services { service: _, namespace, address, protocol }) => rows.retain(|row| {
            is_of(namespace, &row.service)
                && meets(address, row.address, row.prefix_len)
                && protocol.is_none_or(|asked| asked == number(row.protocol))
        }),
        (Shown::Backends(rows), What::Backends { service: _, namespace, node, address }) => rows
            .retain(|row| is_of(namespace, &row.service) && is(node, &row.node) && meets(address, row.address, None)),
        // An older dataplane does not know what is asked for, and tells of all flows.
        (Shown::Flows(rows), What::Flows { limit: _, wanted }) => {
            let filter = wanted.filter();
            rows.retain(|row| filter.takes(row.protocol, [row.client.0, row.vip.0, row.source.0, row.backend.0]));
        }
        (Shown::Tunnels(rows), What::Tunnels { node }) => rows.retain(|row| is(node, &row.peer)),
        (Shown::Routes(rows), What::Routes { to, device }) => {
            rows.retain(|row| leads(row, *to) && device.as_ref().is_none_or(|device| leaves_by(row, device)));
        }
        (Shown::Neighbours(rows), What::Neighbours { address, device }) => {
            rows.retain(|row: &NeighbourRow| meets(address, row.address, None) && is(device, &row.device));
        }
        (Shown::Ports(rows), What::Ports { device }) => rows.retain(|row| is(device, &row.device)),
        (Shown::Drops(rows), What::Drops { all: _, reason, stage, severity }) => {
            known_reason(rows, reason.as_deref())?;
            let is_asked = |row: &DropRow| reason.as_ref().is_none_or(|asked| row.reason.eq_ignore_ascii_case(asked));
            rows.retain(|row| is_asked(row) && is(stage, &row.stage) && is(severity, &row.severity));
        }
        (Shown::Policies(shown), What::Policies { all: _, namespace }) => {
            // `kind/namespace/name`; those of the whole cluster have no namespace.
            let of = |policy: &str| policy.split_once('/').is_some_and(|(_, rest)| is_of(namespace, rest));
            shown.rules.retain(|row| namespace.is_none() || of(&row.policy));
        }
        (Shown::Egress(shown), What::Egress { address, namespace }) => {
            shown.addresses.retain(|row| meets(address, row.address, None));
            shown.carriers.retain(|carried, _| meets(address, *carried, None));
            shown.pods.retain(|row| is_of(namespace, &row.pod));
        }
        _ => {}
    }
    Ok(answer)
}

fn is(asked: &Option<String>, value: &str) -> bool {
    asked.as_ref().is_none_or(|asked| asked == value)
}

/// Whether `name`, which is `namespace/name`, is of the namespace that is asked for.
fn is_of(namespace: &Option<String>, name: &str) -> bool {
    let own = name.split_once('/').map(|(namespace, _)| namespace);
    namespace.as_ref().is_none_or(|asked| own == Some(asked))
}

/// Whether an address, or a prefix of that length, has something in common with what is asked for.
fn meets(asked: &Option<IpNet>, address: IpAddr, prefix_len: Option<u8>) -> bool {
    let own = prefix_len.and_then(|length| IpNet::new(address, length).ok()).unwrap_or(IpNet::from(address));
    asked.is_none_or(|asked| asked.contains(&own) || own.contains(&asked))
}

fn leads(row: &RouteRow, to: Option<IpAddr>) -> bool {
    to.is_none_or(|to| row.prefix.parse::<IpNet>().is_ok_and(|prefix| prefix.contains(&to)))
}

/// Whether a next hop is `… dev NAME …`.
fn leaves_by(row: &RouteRow, device: &str) -> bool {
    let named = |hop: &String| hop.split_whitespace().skip_while(|word| *word != "dev").nth(1) == Some(device);
    row.next_hops.iter().any(named)
}

fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

/// A reason that never happened is among the rows; one that is not has been misspelt.
fn known_reason(rows: &[DropRow], asked: Option<&str>) -> anyhow::Result<()> {
    match asked.filter(|asked| !rows.iter().any(|row| row.reason.eq_ignore_ascii_case(asked))) {
        Some(asked) => Err(anyhow!("no drop reason {asked}; `tidegate show drops --all` lists them")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_meet_where_one_holds_the_other() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let net = |text: &str| Some(text.parse::<IpNet>().unwrap());
        for (asked, address, length, expected) in [
            (None, "192.0.2.7", None, true),
            (net("192.0.2.0/24"), "192.0.2.7", None, true),
            (net("192.0.3.0/24"), "192.0.2.7", None, false),
            (net("192.0.2.7/32"), "192.0.2.0", Some(24), true),
            (net("192.0.0.0/16"), "192.0.2.0", Some(24), true),
            (net("2001:db8::/32"), "192.0.2.7", None, false),
            (net("2001:db8::/32"), "2001:db8::7", None, true),
        ] {
            assert_eq!(meets(&asked, ip(address), length), expected, "{asked:?} {address} {length:?}");
        }
    }

    #[test]
    fn routes_are_found_by_where_they_lead_and_by_device() {
        let row = |prefix: &str, hop: &str| RouteRow {
            prefix: prefix.into(),
            next_hops: vec![hop.into()],
            origin: "kernel".into(),
            mtu: 1500,
        };
        let rows =
            [row("0.0.0.0/0", "via 192.0.2.1 dev wan0"), row("10.244.1.0/24", "tunnel w1"), row("::/0", "dev lan0")];
        let to = |to: &str| rows.iter().filter(|row| leads(row, Some(to.parse().unwrap()))).count();
        assert_eq!((to("10.244.1.5"), to("198.51.100.1"), to("2001:db8::1")), (2, 1, 1));
        let by = |device: &str| rows.iter().filter(|row| leaves_by(row, device)).count();
        assert_eq!((by("wan0"), by("lan0"), by("w1"), by("192.0.2.1")), (1, 1, 0, 0));
    }
}
