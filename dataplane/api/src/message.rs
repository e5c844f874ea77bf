//! Messages of the conversation.
//!
//! A message is an object with one member, whose name says what it is: `{"hello": {…}}`. The name comes first, so that the
//! rest is read straight into its type and never held in between, however many objects it lists.
//!
//! A client opens with [`Request::Hello`]. Control then sends [`Request::Update`]s, the first one perhaps after some
//! [`Request::Prepare`]s, and receives one [`Response::Accepted`] per update, a [`Response::Reached`] whenever the workers
//! have reached a newer generation, and a [`Response::Delivery`] whenever a Service that asked for `node-dsr` is delivered
//! in another way than last told. A reader sends [`Request::Show`], [`Request::Explain`] or [`Request::Capture`]. The
//! server never speaks first, except `Reached`, `Delivery`, `Conflicts` and `Suspects` to control, and
//! [`Response::Captured`] to whoever captures.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::capture::{Begun, Packet, Tally, Wanted};
use crate::explain::{Explanation, Question};
use crate::resource::{DeliveryMode, MacAddress, Protocol, Resource, ResourceKey, Versions};
use crate::show::{Show, Shown};

/// Version of this contract; both sides tolerate unknown fields, so it moves only when meaning changes.
pub const CONTRACT_VERSION: u32 = 1;

/// Objects of one message when a dataplane that holds nothing is told everything: it compiles one message while it reads
/// the next and control writes the one after that.
pub const RESOURCES_AT_ONCE: usize = 4096;
/// Objects of one [`Prepare`]: the dataplane prepares them while the next are written.
pub const PREPARED_AT_ONCE: usize = 1024;

/// From client to dataplane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// First message of a connection.
    Hello {
        /// [`CONTRACT_VERSION`] of the client.
        contract: u32,
        /// Name and version of the program, for logs.
        client: String,
    },
    /// Changed objects.
    Update(Update),
    /// Objects of an update that is still to come. There is no answer.
    Prepare(Prepare),
    /// A question of the read side.
    Show(Show),
    /// What would become of a packet.
    Explain(Question),
    /// Copies of packets from now on, until the end is asked for or the conversation ends.
    Capture(Wanted),
    /// The end of the capture.
    EndCapture {},
    /// Give up what is announced to other gateways, or take it back.
    Drain {
        /// False: take it back.
        draining: bool,
    },
}

/// One batch of changes, applied in one publish.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Update {
    /// Chosen by the sender, echoed in [`Response::Accepted`].
    pub nonce: u64,
    /// True: these are all objects there are; what is not listed goes. False: only what changed.
    #[serde(default)]
    pub full: bool,
    /// New or changed objects.
    #[serde(default)]
    pub resources: Vec<Resource>,
    /// Keys of objects that are gone (in a full update: unused).
    #[serde(default)]
    pub removed: Vec<ResourceKey>,
    /// Everything that was prepared on this connection belongs to it too, but for what it names itself.
    #[serde(default, skip_serializing_if = "is_false")]
    pub prepared: bool,
}

/// Objects that are told before it is known whether they are all, so that the dataplane can do beforehand whatever concerns
/// one object alone. Nothing of it is in force before an [`Update`] of the same connection says `prepared`. Of an object
/// that is told twice the later version counts. Without objects it is a sign of life: control sends one every few seconds,
/// so that its silence means that it hangs. `R`: an object, or a borrowed one in what is only written.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Prepare<R = Resource> {
    /// Some of them.
    pub resources: Vec<R>,
}

/// [`Request::Prepare`] of objects that are not given away.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preparing<'a> {
    /// See [`Request::Prepare`].
    Prepare(Prepare<&'a Resource>),
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Update {
    /// The same in parts of at most `resources_max` objects, in order, to be sent one after the other without waiting for
    /// answers: each is read while the one before it is compiled. Only a `full` update to a dataplane that holds nothing
    /// can be taken apart; nothing has to go there, so that no part is full. Any other stays whole. Nonces count up from
    /// this one's.
    pub fn parts(self, resources_max: usize) -> Vec<Update> {
        if !self.full || self.prepared || self.resources.len() <= resources_max {
            return vec![self];
        }
        let nonce = self.nonce;
        let mut resources = self.resources.into_iter();
        let next = |nonce| {
            let part: Vec<Resource> = resources.by_ref().take(resources_max).collect();
            (!part.is_empty()).then(|| Update { nonce, resources: part, ..Update::default() })
        };
        (nonce..).map_while(next).collect()
    }
}

/// From dataplane to client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// Answer to `Hello`.
    Welcome {
        /// [`CONTRACT_VERSION`] of the server.
        contract: u32,
        /// Name and version of the program, for logs.
        server: String,
        /// Objects the dataplane holds (from its saved state, or from an earlier control), with their versions.
        #[serde(with = "versions")]
        holds: Versions,
        /// Generation all workers have reached.
        reached: u64,
        /// Whether [`Request::Prepare`] is understood.
        #[serde(default)]
        prepares: bool,
    },
    /// Answer to one `Update`.
    Accepted(Accepted),
    /// All workers have reached this generation.
    Reached {
        /// Generation number, monotonic within one run of the dataplane.
        generation: u64,
    },
    /// How Services that asked for `node-dsr` are delivered. The first one on a connection tells of all such Services,
    /// later ones of those where something changed.
    Delivery {
        /// In the order of names.
        services: Vec<ServiceDelivery>,
    },
    /// Addresses of ours for which a stranger answers, or the gateway's own kernel: all there are. Told to control when it begins, and when they change.
    Conflicts {
        /// In the order of addresses.
        addresses: Vec<AddressConflict>,
    },
    /// Nodes that do not answer any more: all there are. Told to control when it begins, and when they change.
    Suspects {
        /// In the order of names.
        nodes: Vec<NodeSuspicion>,
    },
    /// Answer to `Show`.
    Shown(Shown),
    /// Answer to `Explain`.
    Explained(Explanation),
    /// Answer to `Capture`: it has begun. [`Response::Captured`] follows as packets come.
    Capturing(Begun),
    /// Packets of a capture, each worker's in their order.
    Captured {
        /// Some.
        packets: Vec<Packet>,
    },
    /// Answer to `EndCapture`, after the last packet.
    CaptureEnded(Tally),
    /// Answer to `Drain`: it is told to the other gateways. [`Show::Gateways`] tells how far that has come.
    Draining {
        /// As asked for.
        draining: bool,
    },
    /// The request could not be understood or served; the connection stays usable.
    Error {
        /// What is wrong, for people.
        message: String,
    },
}

/// An address of ours for which somebody answers who is no gateway of the set: a VIP, or a source of `fullnat`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressConflict {
    /// The address.
    pub address: IpAddr,
    /// Who answers; of a device without one zero.
    pub mac: MacAddress,
    /// Device that heard it, or that has the address.
    pub device: String,
    /// Whether it is not announced because of that. Otherwise it was announced already, and is defended.
    pub withheld: bool,
    /// The gateway's own kernel has the address, on `device`, with a prefix of so many bits: it is left to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<u8>,
}

/// A node that answered and has fallen silent: new flows go elsewhere while there is an elsewhere (S-114).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSuspicion {
    /// Name of the node.
    pub node: String,
    /// Family of the addresses between which there is silence; backends of this family are concerned.
    pub family: IpFamily,
    /// What was asked.
    pub reason: String,
}

/// How one Service is delivered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceDelivery {
    /// `namespace/name`.
    pub service: String,
    /// One entry per port and family that asked for `node-dsr`. Empty: none asks any more, or the Service is gone.
    #[serde(default)]
    pub ports: Vec<PortDelivery>,
}

/// How one port of one family of a Service is delivered that asked for `node-dsr`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortDelivery {
    /// L4 protocol.
    pub protocol: Protocol,
    /// Port at the VIP.
    pub port: u16,
    /// Family of the VIPs.
    pub family: IpFamily,
    /// What new flows get: `node-dsr` once the way to a node is proven, `fullnat` until then.
    pub mode: DeliveryMode,
    /// Every node that has an endpoint, in the order of names.
    #[serde(default)]
    pub nodes: Vec<NodeDelivery>,
}

/// The way to one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDelivery {
    /// Name of the node.
    pub node: String,
    /// Share of new flows once it is proven: the sum of its endpoints' local weights.
    pub weight: u32,
    /// What is known of the way there.
    pub state: WayState,
    /// Why it is not proven and what to look at; empty when it is.
    #[serde(default)]
    pub reason: String,
}

/// What is known of the way to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WayState {
    /// It answered: new flows go there.
    Proven,
    /// It has not answered yet.
    #[default]
    Unproven,
    /// It answered before and does not any more: it has left the set.
    Failed,
    /// It was proven, and now the node itself does not answer: new flows go to others while there are any.
    Suspected,
}

/// IP version of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IpFamily {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// What became of one update.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Accepted {
    /// Nonce of the update.
    pub nonce: u64,
    /// Generation that contains the accepted objects.
    pub generation: u64,
    /// Objects not taken, each with the reason; their last good version stays in force.
    #[serde(default)]
    pub rejected: Vec<Rejection>,
}

/// One object that was not taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rejection {
    /// Which object.
    #[serde(flatten)]
    pub key: ResourceKey,
    /// Version that was refused.
    pub version: String,
    /// Why, naming the field.
    pub reason: String,
}

/// [`Versions`] as a list of `{kind, name, version}`: JSON has only strings as keys.
mod versions {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::resource::{ResourceKey, Versions};

    #[derive(Serialize, Deserialize)]
    struct Entry<K, V> {
        #[serde(flatten)]
        key: K,
        version: V,
    }

    pub fn serialize<S: Serializer>(versions: &Versions, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(versions.iter().map(|(key, version)| Entry { key, version }))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Versions, D::Error> {
        let entries = Vec::<Entry<ResourceKey, String>>::deserialize(deserializer)?;
        Ok(entries.into_iter().map(|entry| (entry.key, entry.version)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{Body, Kind, Service};

    #[test]
    fn a_delivery_tells_each_node_and_its_reason() {
        let node = |node: &str, state, reason: &str| NodeDelivery {
            node: node.into(),
            weight: 2,
            state,
            reason: reason.into(),
        };
        let port = PortDelivery {
            protocol: Protocol::Tcp,
            port: 80,
            family: IpFamily::Ipv6,
            mode: DeliveryMode::NodeDsr,
            nodes: vec![node("w1", WayState::Proven, ""), node("w2", WayState::Failed, "no answer")],
        };
        let told = Response::Delivery {
            services: vec![
                ServiceDelivery { service: "shop/web".into(), ports: vec![port] },
                ServiceDelivery { service: "shop/gone".into(), ports: vec![] },
            ],
        };
        let json = serde_json::to_string(&told).unwrap();
        assert!(
            json.contains(r#""family":"ipv6","mode":"node-dsr""#) && json.contains(r#""state":"failed""#),
            "{json}"
        );
        assert_eq!(serde_json::from_str::<Response>(&json).unwrap(), told);
    }

    #[test]
    fn a_full_update_comes_in_parts_and_any_other_whole() {
        let resource =
            |n: u32| Resource { name: n.to_string(), version: "1".into(), body: Body::Service(Service::default()) };
        let update = |full| Update { nonce: 7, full, resources: (0..10).map(resource).collect(), ..Update::default() };
        let parts = update(true).parts(4);
        let sizes: Vec<_> = parts.iter().map(|part| (part.nonce, part.full, part.resources.len())).collect();
        assert_eq!(sizes, [(7, false, 4), (8, false, 4), (9, false, 2)]);
        assert_eq!(parts.into_iter().flat_map(|part| part.resources).collect::<Vec<_>>(), update(true).resources);
        assert_eq!(update(true).parts(10), [update(true)]);
        assert_eq!(update(false).parts(4), [update(false)]);
    }

    #[test]
    fn what_is_prepared_without_being_given_away_reads_as_a_request() {
        let resource =
            Resource { name: "shop/web".into(), version: "1".into(), body: Body::Service(Service::default()) };
        let json = serde_json::to_string(&Preparing::Prepare(Prepare { resources: vec![&resource] })).unwrap();
        let prepare = Prepare { resources: vec![resource] };
        assert_eq!(serde_json::from_str::<Request>(&json).unwrap(), Request::Prepare(prepare));
    }

    /// Either side may be the older one.
    #[test]
    fn who_does_not_speak_of_preparing_does_not_prepare() {
        let older = r#"{"welcome":{"contract":1,"server":"x","holds":[],"reached":3}}"#;
        assert!(matches!(serde_json::from_str(older).unwrap(), Response::Welcome { prepares: false, .. }));
        assert!(!serde_json::from_str::<Update>(r#"{"nonce":1}"#).unwrap().prepared);
        assert!(!serde_json::to_string(&Update::default()).unwrap().contains("prepared"));
    }

    #[test]
    fn a_welcome_tells_what_is_held() {
        let key = ResourceKey { kind: Kind::Service, name: "shop/web".into() };
        let holds = Versions::from([(key, "7".into())]);
        let welcome = Response::Welcome { contract: 1, server: "x".into(), holds, reached: 3, prepares: true };
        let json = serde_json::to_string(&welcome).unwrap();
        assert!(json.contains(r#""holds":[{"kind":"service","name":"shop/web","version":"7"}]"#), "{json}");
        assert_eq!(serde_json::from_str::<Response>(&json).unwrap(), welcome);
    }
}
