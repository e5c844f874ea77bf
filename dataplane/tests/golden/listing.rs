//! Flows as they are listed: those that are asked for, in pieces that hold no worker up.

use std::sync::Arc;

use tidegate_api::show::{FlowFilter, FlowRow};
use tidegate_dataplane::limits;
use tidegate_dataplane::mailbox::{FlowsFrom, FlowsWanted, Request};
use tidegate_dataplane::rig::{Net, Rig};

use crate::{to_names, to_web};

/// Everything that is listed, asking for so many rows at a time, and how often it was asked.
fn listed(rig: &mut Rig, filter: &FlowFilter, at_once: u32) -> (Vec<FlowRow>, usize) {
    let tables = rig.publisher.current();
    let named =
        |name: &String| tables.services.rows().filter(|(_, row)| *row.name == **name).map(|(id, _)| id).collect();
    let services = filter.service.as_ref().map(named).unwrap_or_default();
    let wanted = Arc::new(FlowsWanted { filter: filter.clone(), services });
    let (mut rows, mut asked) = (Vec::new(), 0);
    let mut next = Some(FlowsFrom::default());
    while let Some(from) = next {
        let (reply, answer) = crossbeam::channel::bounded(1);
        rig.mailbox.send(Request::Flows { wanted: Arc::clone(&wanted), limit: at_once, from, reply }).unwrap();
        rig.turn();
        let (more, then) = answer.try_recv().unwrap();
        assert!(more.len() <= at_once as usize);
        rows.extend(more);
        (next, asked) = (then, asked + 1);
    }
    (rows, asked)
}

#[test]
fn flows_are_listed_by_client_service_protocol_and_backend() {
    let mut rig = Rig::new(crate::tables()).unwrap();
    for net in Net::BOTH {
        rig.rx_wan(&to_web(net).syn(100));
        rig.rx_wan(&to_names(net));
    }
    let all = FlowFilter::default();
    let (rows, _) = listed(&mut rig, &all, 100);
    assert_eq!(rows.len(), 4);
    let count = |rig: &mut Rig, filter: FlowFilter| {
        let (found, _) = listed(rig, &filter, 100);
        assert_eq!(found, listed(rig, &filter, 1).0, "one at a time is the same");
        found.len()
    };
    let row = rows.iter().find(|row| row.protocol == 6 && row.client.0.is_ipv4()).unwrap();
    assert_eq!(count(&mut rig, FlowFilter { protocol: Some(17), ..all.clone() }), 2);
    assert_eq!(count(&mut rig, FlowFilter { client: Some(row.client.0.into()), ..all.clone() }), 2);
    assert_eq!(count(&mut rig, FlowFilter { client: Some("::/0".parse().unwrap()), ..all.clone() }), 2);
    assert_eq!(count(&mut rig, FlowFilter { vip: Some(row.vip.0.into()), protocol: Some(6), ..all.clone() }), 1);
    assert_eq!(
        count(&mut rig, FlowFilter { backend: Some(row.backend.0.into()), ..all.clone() }),
        2,
        "one pod, two ports"
    );
    assert_eq!(count(&mut rig, FlowFilter { source: Some("192.0.2.0/32".parse().unwrap()), ..all.clone() }), 0);
    let names: Vec<String> = rig.publisher.current().services.rows().map(|(_, row)| row.name.to_string()).collect();
    let by_service = names
        .iter()
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .map(|name| count(&mut rig, FlowFilter { service: Some(name.clone()), ..all.clone() }));
    assert_eq!(by_service.collect::<Vec<_>>().iter().sum::<usize>(), 4, "each flow is of one Service: {names:?}");
    assert_eq!(count(&mut rig, FlowFilter { service: Some("shop/none".into()), ..all }), 0);
}

#[test]
fn an_answer_looks_at_a_bounded_number_of_flows() {
    let mut rig = Rig::with(crate::tables(), 2 * limits::ENTRIES_PER_ANSWER, 1024, 1).unwrap();
    let net = Net::BOTH[0];
    let flows = limits::ENTRIES_PER_ANSWER + 10;
    for n in 0..flows {
        let client = (net.client((n % 200) as u16), u16::try_from(1000 + n / 200).unwrap());
        rig.rx_wan(&tidegate_dataplane::rig::sketch::udp(client, (net.vip(1), 53)).data(*b"x"));
        drop((rig.sent(tidegate_dataplane::rig::WAN), rig.sent(tidegate_dataplane::rig::LAN)));
    }
    let nobody = FlowFilter { protocol: Some(132), ..FlowFilter::default() };
    assert_eq!(listed(&mut rig, &nobody, 100), (vec![], 3), "two of IPv4, one of IPv6");
    let (rows, asked) = listed(&mut rig, &FlowFilter::default(), u32::MAX);
    assert_eq!(rows.len(), flows as usize);
    assert!(asked > (flows / limits::ROWS_PER_ANSWER) as usize, "{asked}");
}
