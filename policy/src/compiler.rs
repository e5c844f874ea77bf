//! Objects in, tables out, at the cost of what changed.
//!
//! Owns what is between the objects: which policies are about an identity, which programs hold a policy, which identities
//! share a program. A pod that comes with labels that are known changes nothing here; one with new labels makes one row;
//! a changed policy makes anew the programs it is in. What comes out is a function of the objects alone, whatever the
//! order in which they came, but for epochs and for the numbers of policies.
//!
//! Identities that the same policies are about share one program for a direction: ten thousand pods of a namespace cost
//! one.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use siphasher::sip::SipHasher13;
use tidegate_api::resource::{Body, Identity, IdentitySet, Kind, Policy, Resource, ResourceKey};

use crate::link::{Linked, Named};
use crate::names::Names;
use crate::program::Program;
use crate::query::{Direction, PolicyId};
use crate::table::{Row, Table};

/// Policies that concern a direction, in the order of evaluation.
type Key = (Direction, Arc<[PolicyId]>);

/// All objects, and the table made of them.
#[derive(Debug, Default)]
pub struct Compiler {
    table: Table,
    policies: HashMap<PolicyId, Arc<Linked>>,
    policy_names: Names,
    sets: HashMap<u32, Set>,
    set_names: Names,
    port_names: Names,
    known: HashMap<u32, Known>,
    programs: HashMap<Key, Shared>,
    /// Programs that a policy is in.
    programs_of: HashMap<PolicyId, HashSet<Key>>,
    /// What each object adds to the digest.
    digests: HashMap<ResourceKey, u64>,
    /// Identities whose rows were written since somebody asked.
    written: Vec<u32>,
}

/// A set, or the name of one that is yet to come.
#[derive(Debug, Default)]
struct Set {
    /// The object is there: it holds its name.
    present: bool,
    members: Vec<u32>,
    /// Policies whose subjects it holds.
    subjects_of: HashSet<PolicyId>,
    /// Policies whose rules name it, and how often.
    peers_of: HashMap<PolicyId, u32>,
}

/// What is known of an identity.
#[derive(Debug, Default)]
struct Known {
    named: Option<Arc<[Named]>>,
    /// Sets that hold it.
    sets: HashSet<u32>,
    /// Keys of its programs, by direction: of those in force, and of all where some are in audit.
    programs: [[Option<Key>; 2]; 2],
}

/// A program and who uses it.
#[derive(Debug)]
struct Shared {
    program: Arc<Program>,
    /// Sets that went into it.
    merged: HashSet<u32>,
    users: HashSet<u32>,
}

/// What an update touches.
#[derive(Debug, Default)]
struct Touched {
    /// Identities that other policies may be about now.
    subjects: HashSet<u32>,
    /// Identities that entered or left a set.
    members: HashSet<u32>,
    /// Those of them that are something else to rules now.
    peers: HashSet<u32>,
    /// Identities whose named ports changed.
    named: HashSet<u32>,
    policies: HashSet<PolicyId>,
    sets: HashSet<u32>,
}

/// What an update came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Programs that were made.
    pub programs: usize,
    /// Rows that were written.
    pub rows: usize,
}

impl Compiler {
    /// The table of the objects taken in so far. A copy costs a few reference counts.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Takes in objects that came, changed or went (`None`). Objects of other kinds are passed over. All of it takes
    /// effect at once (P-035).
    pub fn update<'a>(&mut self, changes: impl IntoIterator<Item = (&'a ResourceKey, Option<&'a Resource>)>) -> Work {
        let mut touched = Touched::default();
        for (key, after) in changes {
            match key.kind {
                Kind::Identity => self.take_identity(key, after, &mut touched),
                Kind::IdentitySet => self.take_set(key, after, &mut touched),
                Kind::Policy => self.take_policy(key, after, &mut touched),
                Kind::Gateway
                | Kind::Peer
                | Kind::Pod
                | Kind::Service
                | Kind::Egress
                | Kind::StaticNat
                | Kind::GatewayPolicy => continue,
            }
            self.count_digest(key, after);
        }
        self.finish(touched)
    }

    /// Identities about which anything may differ since the last call, some of them more than once. Which of their
    /// [epochs](Table::epochs) moved tells what.
    pub fn take_written(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.written)
    }

    fn count_digest(&mut self, key: &ResourceKey, after: Option<&Resource>) {
        let new = after.map(digest_of);
        let old = match new {
            Some(new) => self.digests.insert(key.clone(), new),
            None => self.digests.remove(key),
        };
        let digest = self.table.digest().wrapping_sub(old.unwrap_or(0)).wrapping_add(new.unwrap_or(0));
        self.table.set_digest(digest);
    }

    fn take_identity(&mut self, key: &ResourceKey, after: Option<&Resource>, touched: &mut Touched) {
        let Ok(number) = key.name.parse::<u32>() else { return };
        let ports: &[_] = match after.map(|resource| &resource.body) {
            Some(Body::Identity(Identity { ports })) => ports,
            _ => &[],
        };
        let named: Arc<[Named]> = ports
            .iter()
            .map(|port| {
                let name = self.port_names.take(&port.name);
                Named { protocol: port.protocol.number(), port: port.port, name }
            })
            .collect();
        let known = self.known.entry(number).or_default();
        let before = known.named.replace(named);
        if before.as_ref() != known.named.as_ref() {
            touched.named.insert(number);
        }
        for port in before.iter().flat_map(|before| before.iter()) {
            self.port_names.let_go(port.name);
        }
    }

    fn take_set(&mut self, key: &ResourceKey, after: Option<&Resource>, touched: &mut Touched) {
        let members = match after.map(|resource| &resource.body) {
            Some(Body::IdentitySet(IdentitySet { identities })) => Some(identities),
            _ => None,
        };
        let number = match members {
            Some(_) => self.set_names.take(&key.name),
            None => match self.set_names.number(&key.name) {
                Some(number) => number,
                None => return,
            },
        };
        let set = self.sets.entry(number).or_default();
        let surplus = set.present; // the object's share in its name: the one it had, or the one just taken
        set.present = members.is_some();
        let empty = Vec::new();
        let members = members.unwrap_or(&empty);
        for (identity, enters) in difference(&set.members, members) {
            let known = self.known.entry(identity).or_default();
            match enters {
                true => known.sets.insert(number),
                false => known.sets.remove(&number),
            };
            if !set.subjects_of.is_empty() {
                touched.subjects.insert(identity);
            }
            touched.members.insert(identity);
            if !set.peers_of.is_empty() {
                touched.peers.insert(identity);
            }
            touched.sets.insert(number);
        }
        set.members.clone_from(members);
        if touched.sets.contains(&number) {
            self.table.set_members(number, members);
        }
        if surplus && self.set_names.let_go(number) {
            self.sets.remove(&number);
        }
    }

    fn take_policy(&mut self, key: &ResourceKey, after: Option<&Resource>, touched: &mut Touched) {
        let before = self.policy_names.number(&key.name).map(PolicyId);
        let after = match after.map(|resource| &resource.body) {
            Some(Body::Policy(policy)) => {
                let id = before.unwrap_or_else(|| PolicyId(self.policy_names.take(&key.name)));
                Some((id, self.link(id, &key.name, policy)))
            }
            _ => None,
        };
        if let Some(id) = before {
            self.unlink(id, touched);
        }
        match after {
            Some((id, linked)) => {
                self.table.set_policy(id, Some((&linked.name, linked.audit)));
                self.policies.insert(id, Arc::new(linked));
                touched.policies.insert(id);
            }
            None => {
                let Some(id) = before else { return };
                self.table.set_policy(id, None);
                self.policy_names.let_go(id.0);
            }
        }
    }

    /// The policy with its names as numbers, known to the sets it names.
    fn link(&mut self, id: PolicyId, name: &str, policy: &Policy) -> Linked {
        let linked = Linked::new(id, name, policy, &mut self.set_names, &mut self.port_names);
        for set in linked.peer_sets() {
            *self.sets.entry(set).or_default().peers_of.entry(id).or_default() += 1;
        }
        self.sets.entry(linked.subjects).or_default();
        linked
    }

    /// Takes back what [`Self::link`] did for the policy as it was. The subjects' set is told at the end: the policy as it
    /// is may have the same.
    fn unlink(&mut self, id: PolicyId, touched: &mut Touched) {
        let Some(old) = self.policies.remove(&id) else { return };
        for set in old.peer_sets() {
            let Some(set) = self.sets.get_mut(&set) else { continue };
            if let Some(times) = set.peers_of.get_mut(&id) {
                *times -= 1;
                if *times == 0 {
                    set.peers_of.remove(&id);
                }
            }
        }
        if let Some(set) = self.sets.get_mut(&old.subjects) {
            touched.subjects.extend(&set.members);
            set.subjects_of.remove(&id);
        }
        let sets = &mut self.sets;
        old.let_go(&mut self.set_names, &mut self.port_names, |set| drop(sets.remove(&set)));
    }

    /// Writes the rows of all that was touched.
    fn finish(&mut self, mut touched: Touched) -> Work {
        let mut work = Work::default();
        for id in &touched.policies {
            let Some(policy) = self.policies.get(id) else { continue };
            if let Some(set) = self.sets.get_mut(&policy.subjects) {
                set.subjects_of.insert(*id);
                touched.subjects.extend(&set.members);
            }
        }
        let mut rows: HashSet<u32> = touched.members.union(&touched.named).copied().collect();
        for key in self.stale(&touched) {
            rows.extend(self.make_anew(&key, &mut work));
        }
        for identity in &touched.subjects {
            for direction in Direction::ALL {
                self.assign(*identity, direction, &mut work);
            }
            rows.insert(*identity);
        }
        let epoch = self.table.begin();
        let rows: Vec<(u32, Option<Row>)> =
            rows.into_iter().filter_map(|identity| Some((identity, self.row(identity, &touched, epoch)?))).collect();
        work.rows = rows.len();
        self.written.extend(rows.iter().map(|(identity, _)| *identity));
        self.table.replace(rows);
        work
    }

    /// Programs that hold what changed.
    fn stale(&self, touched: &Touched) -> HashSet<Key> {
        let programs = |id: &PolicyId| self.programs_of.get(id).into_iter().flatten();
        let mut stale: HashSet<Key> = touched.policies.iter().flat_map(programs).cloned().collect();
        for set in &touched.sets {
            let Some(policies) = self.sets.get(set).map(|entry| entry.peers_of.keys()) else { continue };
            let holding = policies.flat_map(programs).filter(|key| self.programs[*key].merged.contains(set));
            stale.extend(holding.cloned());
        }
        stale
    }

    /// Makes a program again. Returns the identities that have it, if it is another one now.
    fn make_anew(&mut self, key: &Key, work: &mut Work) -> Vec<u32> {
        // A program of a policy that has gone, or says nothing of the direction any more, has no users in a moment.
        let Some((program, merged)) = self.make(key) else { return Vec::new() };
        work.programs += 1;
        let Some(shared) = self.programs.get_mut(key) else { return Vec::new() };
        shared.merged = merged;
        if *shared.program == program {
            return Vec::new();
        }
        shared.program = Arc::new(program);
        shared.users.iter().copied().collect()
    }

    fn make(&self, (direction, policies): &Key) -> Option<(Program, HashSet<u32>)> {
        let policies: Option<Vec<Arc<Linked>>> = policies.iter().map(|id| self.policies.get(id).cloned()).collect();
        let members = |set: u32| self.sets.get(&set).map_or(&[][..], |set| &set.members);
        let (program, merged) = Program::new(*direction, &policies?, members);
        Some((program, merged.into_iter().collect()))
    }

    /// Gives an identity the programs of the policies that are about it now.
    fn assign(&mut self, identity: u32, direction: Direction, work: &mut Work) {
        let Some(known) = self.known.get(&identity) else { return };
        let about = known.sets.iter().filter_map(|set| self.sets.get(set)).flat_map(|set| &set.subjects_of);
        let about = about.filter_map(|id| self.policies.get(id));
        let mut about: Vec<&Arc<Linked>> = about.filter(|policy| policy.concerns(direction)).collect();
        about.sort_unstable_by_key(|policy| (policy.tier, &policy.name));
        let key = |which: &dyn Fn(&Linked) -> bool| {
            let ids: Arc<[_]> = about.iter().filter(|policy| which(policy)).map(|policy| policy.id).collect();
            (!ids.is_empty()).then_some((direction, ids))
        };
        let is_audited = about.iter().any(|policy| policy.audit);
        let keys = [key(&|policy| !policy.audit), key(&|_| is_audited)];
        let before = self.known.get_mut(&identity).map(|known| std::mem::take(&mut known.programs[direction as usize]));
        for before in
            before.iter().flatten().flatten().filter(|before| !keys.iter().flatten().any(|key| key == *before))
        {
            self.leave(identity, before);
        }
        for key in keys.iter().flatten() {
            self.join(identity, key, work);
        }
        if let Some(known) = self.known.get_mut(&identity) {
            known.programs[direction as usize] = keys;
        }
    }

    /// An identity has the program of a key from now on.
    fn join(&mut self, identity: u32, key: &Key, work: &mut Work) {
        if !self.programs.contains_key(key)
            && let Some((program, merged)) = self.make(key)
        {
            work.programs += 1;
            for id in key.1.iter() {
                self.programs_of.entry(*id).or_default().insert(key.clone());
            }
            let users = HashSet::new();
            self.programs.insert(key.clone(), Shared { program: Arc::new(program), merged, users });
        }
        if let Some(shared) = self.programs.get_mut(key) {
            shared.users.insert(identity);
        }
    }

    fn leave(&mut self, identity: u32, key: &Key) {
        let Some(shared) = self.programs.get_mut(key) else { return };
        shared.users.remove(&identity);
        if !shared.users.is_empty() {
            return;
        }
        self.programs.remove(key);
        for id in key.1.iter() {
            if let Some(keys) = self.programs_of.get_mut(id) {
                keys.remove(key);
                if keys.is_empty() {
                    self.programs_of.remove(id);
                }
            }
        }
    }

    /// The row of an identity as it is now, `None` inside when it has none any more; `None` when there never was one.
    fn row(&mut self, identity: u32, touched: &Touched, epoch: u16) -> Option<Option<Row>> {
        let known = self.known.get(&identity)?;
        let before = self.table.row(identity);
        if known.sets.is_empty() && known.named.as_ref().is_none_or(|named| named.is_empty()) {
            self.known.remove(&identity);
            return before.is_some().then_some(None);
        }
        let program = |key: &Option<Key>| key.as_ref().and_then(|key| self.programs.get(key));
        let made = |which: usize| {
            [0, 1].map(|at: usize| program(&known.programs[at][which]).map(|shared| Arc::clone(&shared.program)))
        };
        let (programs, audited) = (made(0), made(1));
        let renamed = touched.named.contains(&identity);
        let same = |at: usize| match (before.and_then(|row| row.programs[at].as_ref()), &programs[at]) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(a, b) && !renamed,
            _ => false,
        };
        let epochs = [0, 1].map(|at| if same(at) { before.map_or(0, |row| row.epochs[at]) } else { epoch });
        let is_other = renamed || touched.peers.contains(&identity);
        let peer_epoch = if is_other { epoch } else { before.map_or(epoch, |row| row.peer_epoch) };
        let named = known.named.clone().unwrap_or_default();
        Some(Some(Row { identity, programs, audited, epochs, peer_epoch, named }))
    }
}

/// Identities that are in one of two sorted lists only, and whether in the second.
fn difference(before: &[u32], after: &[u32]) -> Vec<(u32, bool)> {
    let (mut before, mut after) = (before.iter().peekable(), after.iter().peekable());
    let mut found = Vec::new();
    loop {
        match (before.peek(), after.peek()) {
            (None, None) => return found,
            (Some(b), Some(a)) if b == a => (before.next(), after.next()),
            (Some(b), a) if a.is_none_or(|a| b < a) => {
                found.push((**b, false));
                (before.next(), None)
            }
            (_, a) => {
                found.extend(a.map(|a| (**a, true)));
                (None, after.next())
            }
        };
    }
}

/// What an object adds to the digest: the same on every gateway.
fn digest_of(resource: &Resource) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(0x7469_6465, 0x6761_7465);
    resource.name.hash(&mut hasher);
    match &resource.body {
        Body::Identity(identity) => (0u8, identity).hash(&mut hasher),
        Body::IdentitySet(set) => (1u8, set).hash(&mut hasher),
        Body::Policy(policy) => (2u8, policy).hash(&mut hasher),
        _ => {}
    }
    hasher.finish()
}
