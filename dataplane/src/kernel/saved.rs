//! Kernel facts on disk: the machine as the dataplane saw it last.
//!
//! One file of JSON beside the saved objects, replaced whole, for questions about a gateway whose neighbours nobody keeps
//! any more, or that are asked somewhere else. A dataplane that starts does not read it: what is so now the kernel knows.
//! It has the neighbours that the dataplane had rows for, and of them what decides about a packet: whether they answer, and
//! by which address. A routing table with very many routes is left out.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{KernelFacts, Layout, Neighbour, NeighbourKey};
use crate::objects::saved::replace;

/// Name of the file inside the state directory.
pub const FILE_NAME: &str = "machine.json";
/// Version of the file's layout.
const FORMAT: u32 = 1;
/// Routes that are saved; of a machine with more none is: some megabytes, which may be written every few seconds.
pub const ROUTES_MAX: usize = 16_384;

/// The machine at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    format: u32,
    /// Seconds since 1970 when it was found like this.
    since_s: u64,
    layout: Layout,
    /// Routes that there were and that were too many; then `layout` has none.
    routes_left_out: usize,
    /// Sorted by key.
    neighbours: Vec<(NeighbourKey, Neighbour)>,
}

impl Machine {
    /// The machine of these facts, with those of its neighbours.
    pub fn of(layout: &Layout, neighbours: impl Iterator<Item = (NeighbourKey, Neighbour)>) -> Machine {
        let mut neighbours: Vec<_> = neighbours.map(|(key, neighbour)| (key, neighbour.lasting())).collect();
        neighbours.sort_unstable_by_key(|(key, _)| *key);
        let routes_left_out = Some(layout.routes.len()).filter(|count| *count > ROUTES_MAX).unwrap_or_default();
        let layout = match routes_left_out {
            0 => layout.clone(),
            _ => Layout { links: layout.links.clone(), addresses: layout.addresses.clone(), routes: Vec::new() },
        };
        Machine { format: FORMAT, since_s: 0, layout, routes_left_out, neighbours }
    }

    /// The same, found at `moment`.
    #[must_use]
    pub fn at(self, moment: SystemTime) -> Machine {
        let since = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Machine { since_s: since.as_secs(), ..self }
    }

    /// Since when it was like this.
    pub fn since(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(self.since_s)).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Whether both say the same, whenever that was.
    pub fn says_the_same(&self, other: &Machine) -> bool {
        (&self.layout, self.routes_left_out, &self.neighbours)
            == (&other.layout, other.routes_left_out, &other.neighbours)
    }

    /// Routes that were too many to be saved; 0: all are there.
    pub fn routes_left_out(&self) -> usize {
        self.routes_left_out
    }

    /// As facts.
    pub fn facts(self) -> KernelFacts {
        KernelFacts { layout: self.layout, neighbours: self.neighbours.into_iter().collect() }
    }
}

/// Writes `machine` to `directory`, all or nothing.
///
/// # Errors
/// What the system says; the file from before is then still there.
pub fn save(directory: &Path, machine: &Machine) -> io::Result<()> {
    replace(directory, FILE_NAME, |buffer| Ok(serde_json::to_writer(buffer, machine)?)).map(drop)
}

/// The machine saved in `directory`; `None`: none is.
///
/// # Errors
/// What the system says; `InvalidData` when the file is none of ours.
pub fn read(directory: &Path) -> io::Result<Option<Machine>> {
    let bytes = match std::fs::read(directory.join(FILE_NAME)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    let machine = serde_json::from_slice::<Machine>(&bytes).map_err(|error| invalid(error.to_string()))?;
    match machine.format {
        FORMAT => Ok(Some(machine)),
        other => Err(invalid(format!("format {other} is not {FORMAT}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::tests::routed;
    use crate::kernel::nud;

    #[test]
    fn what_is_read_is_what_was_saved() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(directory.path()).unwrap(), None);
        let layout = routed();
        let key = |address: &str| NeighbourKey { ifindex: 3, address: address.parse().unwrap() };
        let answers = |state| Neighbour { mac: Some([2, 0, 0, 0, 3, 2]), state, managed: true };
        let failed = Neighbour { mac: None, state: nud::FAILED, managed: true };
        let of = |state| {
            let all = [(key("2001:db8:2::11"), answers(state)), (key("198.51.100.11"), answers(nud::PERMANENT))];
            Machine::of(&layout, all.into_iter().chain([(key("198.51.100.12"), failed)]))
        };
        let moment = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let saved = of(nud::REACHABLE).at(moment);
        save(directory.path(), &saved).unwrap();
        let found = read(directory.path()).unwrap().unwrap();
        assert_eq!((&found, found.since(), found.routes_left_out()), (&saved, moment, 0));
        assert!(found.says_the_same(&of(nud::STALE)), "how sure the kernel is, is no news");
        assert!(!found.says_the_same(&of(nud::INCOMPLETE)), "that it does not answer is");
        let facts = found.facts();
        assert_eq!(facts.layout, layout);
        for address in ["198.51.100.11", "2001:db8:2::11"] {
            assert_eq!(facts.neighbours[&key(address)].usable_mac(), Some([2, 0, 0, 0, 3, 2]), "{address}");
        }
        assert!(facts.neighbours[&key("198.51.100.12")].failed());
        std::fs::write(directory.path().join(FILE_NAME), "{\"format\": 1}").unwrap();
        assert_eq!(read(directory.path()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        save(directory.path(), &Machine { format: 9, ..saved }).unwrap();
        assert!(read(directory.path()).unwrap_err().to_string().contains("format 9 is not 1"));
    }

    #[test]
    fn very_many_routes_are_left_out_and_counted() {
        let mut layout = routed();
        let route = layout.routes[0].clone();
        layout.routes = vec![route; ROUTES_MAX + 1];
        let machine = Machine::of(&layout, std::iter::empty());
        assert_eq!(machine.routes_left_out(), ROUTES_MAX + 1);
        assert!(machine.layout.routes.is_empty() && machine.layout.links == layout.links);
        layout.routes.pop();
        assert_eq!(Machine::of(&layout, std::iter::empty()).routes_left_out(), 0);
    }
}
