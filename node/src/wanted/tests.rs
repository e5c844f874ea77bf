//! The file, read and refused.
#![allow(clippy::unwrap_used)]

use super::*;

/// A file with everything in it.
pub const FULL: &str = r#"
devices: { ipv4: flannel.1, ipv6: flannel-v6.1 }
cluster: [10.244.0.0/16, 10.96.0.0/12, 198.51.100.0/24, "fd00:10:244::/48", "2001:db8:2::/64"]
gateways:
  - name: gw-1
    ipv4: { overlay: 10.244.9.0, mac: "0a:58:0a:f4:09:04", underlay: 198.51.100.1, vni: 1 }
    ipv6: { overlay: "fd00:10:244:9::", mac: "0a:58:0a:f4:09:06", underlay: "2001:db8:2::1", vni: 1 }
  - name: gw-2
    live: false
    ipv4: { overlay: 10.244.8.0, mac: "0a:58:0a:f4:08:04", underlay: 198.51.100.2 }
egress:
  - name: shop/out
    pods: [{ name: shop/web-0, addresses: [10.244.1.11, "fd00:10:244:1::11"] }]
    gateways: [gw-1, gw-2]
    destinations: [0.0.0.0/0, "::/0"]
    except: [192.168.0.0/16, 203.0.113.9]
symmetric: [10.244.1.0/24, "fd00:10:244:1::/64"]
marks: { mask: 0x3f, foreign: [0xffff0000] }
numbers: { priority: 1500, tableFirst: 7300, tables: 256, protocol: 117 }
"#;

#[test]
fn a_full_file_is_read_and_written_again() {
    let wanted = Wanted::parse(FULL).unwrap();
    assert_eq!(wanted.gateways[0].ipv4.as_ref().unwrap().mac.to_string(), "0a:58:0a:f4:09:04");
    assert!(wanted.gateways[0].live && !wanted.gateways[1].live);
    assert_eq!(wanted.egress[0].except[1].to_string(), "203.0.113.9/32");
    assert_eq!(wanted.numbers, Numbers::default());
    let again = serde_json::to_string(&wanted).unwrap();
    assert_eq!(Wanted::parse(&again).unwrap(), wanted);
}

#[test]
fn what_cannot_be_is_told_with_its_field() {
    let with = |from: &str, to: &str| {
        assert!(FULL.contains(from), "{from}");
        Wanted::parse(&FULL.replacen(from, to, 1)).unwrap_err().join("\n")
    };
    for (from, to, told) in [
        ("0a:58:0a:f4:09:04", "0a:58:0a:f4:09", "gateways[0].ipv4.mac: \"0a:58:0a:f4:09\" is no link-layer address"),
        ("0a:58:0a:f4:09:04", "01:58:0a:f4:09:04", "is no single device's"),
        ("overlay: 10.244.9.0", "overlay: \"fd00::9\"", "is of the other family"),
        ("overlay: 10.244.8.0", "overlay: 10.244.9.0", "is another gateway's"),
        ("0a:58:0a:f4:08:04", "0a:58:0a:f4:09:06", "is another gateway's"),
        ("name: gw-2", "name: gw-1", "of two"),
        ("gateways: [gw-1, gw-2]", "gateways: [gw-3]", "there is no gateway gw-3"),
        ("ipv4: flannel.1", "ipv4: \"a\\nb\"", "is no name of a device"),
        ("{ ipv4: flannel.1, ipv6: flannel-v6.1 }", "{}", "devices: none is named"),
        ("cluster: [10.244.0.0/16", "cluster: [0.0.0.0/0", "0.0.0.0/0 is everything"),
        ("10.96.0.0/12", "10.96.0.0/33", "is neither an address nor a prefix"),
        ("mask: 0x3f", "mask: 0x4001", "is not one run"),
        ("mask: 0x3f", "mask: 0x6000", "which somebody else uses"),
        ("mask: 0x3f", "mask: 0x30000", "0xffff0000, which somebody else uses"),
        ("mask: 0x3f", "mask: 0x1", "is not one run"),
        ("mask: 0x3f", "mask: 0", "is not one run"),
        ("mask: 0x3f", "mask: 0x6", ""),
        ("mask: 0x3f", "mask: 0x3f, bits: 6", "unknown field `bits`"),
        ("priority: 1500", "priority: 32766", "numbers.priority"),
        ("tableFirst: 7300", "tableFirst: 100", "tables 100 to 355"),
        ("protocol: 117", "protocol: 2", "numbers.protocol"),
        ("addresses: [10.244.1.11,", "addresses: [10.244.1.11, 10.244.1.11,", "is also shop/web-0's"),
    ] {
        if told.is_empty() {
            assert!(Wanted::parse(&FULL.replacen(from, to, 1)).is_ok(), "{to}");
            continue;
        }
        let said = with(from, to);
        assert!(said.contains(told), "{to}: {said}");
    }
    assert_eq!(Wanted::parse("").unwrap_err().len(), 1);
}

#[test]
fn marks_have_room_for_gateways_only_where_their_bits_are() {
    let marks = Marks { mask: 0x30, foreign: vec![] };
    assert_eq!((marks.place(1), marks.place(3), marks.number_max()), (0x10, 0x30, 3));
    // All ones: no overflow.
    assert_eq!(Marks { mask: u32::MAX, foreign: vec![] }.number_max(), u32::MAX);
}
