//! What `tidegate import` writes is taken here as it is meant.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use std::path::Path;

use rig::{Rig, node};
use tidegate_api::resource::{DeliveryMode, HashFields, Scheduler};

#[test]
fn imported_manifests_are_served_as_the_rules_said() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/tests/golden/import/ipvsadm.yaml");
    let mut rig = Rig::new();
    rig.apply(&(std::fs::read_to_string(path).unwrap() + "---\n" + &node("gw-1", 9)));
    assert!(rig.problems().is_empty(), "{:?}", rig.problems());

    let web = rig.service("shop/ipvs-203-0-113-10-tcp-80");
    assert_eq!((web.ports[0].scheduler, web.ports[0].mode), (Scheduler::Wlc, DeliveryMode::Fullnat));
    assert_eq!(
        rig.backends("shop/ipvs-203-0-113-10-tcp-80", 80),
        ["10.244.1.5:8080*3", "10.244.2.5:8080*1", "10.244.2.6:8081*0"]
    );
    assert!(rig.notes("shop/ipvs-203-0-113-10-tcp-80").is_empty());

    let v6 = rig.service("shop/ipvs-2001-db8-f--10-tcp-443");
    assert_eq!(v6.addresses, ["2001:db8:f::10".parse::<std::net::IpAddr>().unwrap()]);
    let port = &v6.ports[0];
    assert_eq!((port.scheduler, port.hash, port.affinity_timeout_s), (Scheduler::Mh, HashFields::Flow, Some(300)));
    assert_eq!(port.backends.len(), 2);

    assert_eq!(rig.notes("shop/ipvs-203-0-113-53-udp-53"), ["OnePacketScheduled/OnlyWithClientAddress"]);
    let every = rig.service("shop/ipvs-203-0-113-20-tcp-0");
    assert_eq!(every.ports.iter().map(|port| port.port).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(rig.backends("shop/ipvs-203-0-113-20-tcp-0", 0), ["10.244.1.7:0*1"]);
    assert_eq!(rig.backends("shop/ipvs-203-0-113-20-tcp-0", 1), ["10.244.1.7:1*1"]);
    assert_eq!(rig.notes("shop/ipvs-203-0-113-31-tcp-80"), ["SchedulerHonoured/MappedToDh"]);
}
