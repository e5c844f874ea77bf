//! Source addresses for `fullnat`: those of the gateway object that the kernel does not use itself (design 6).

use std::net::IpAddr;

use tidegate_api::resource::Gateway;

use crate::kernel::Layout;
use crate::table::nat::NatTable;

/// The table for `gateway` on this machine. A source that the kernel has meanwhile taken for itself is left out: replies
/// to it would end in the kernel.
pub fn compile(gateway: Option<&Gateway>, layout: &Layout) -> NatTable {
    let sources = gateway.map(|gateway| gateway.fullnat_sources.as_slice()).unwrap_or_default();
    let usable = || sources.iter().filter(|address| layout.owner(**address).is_none());
    NatTable::new(
        usable().filter_map(|address| if let IpAddr::V4(v4) = address { Some(v4.octets()) } else { None }),
        usable().filter_map(|address| if let IpAddr::V6(v6) = address { Some(v6.octets()) } else { None }),
    )
}
