//! P-046: where a Service's clients are hidden from the policies of its pods, it is said.

use tidegate_control::config::NodeFile;
use tidegate_control::model::Name;
use tidegate_control::reconcile::Reconciler;
use tidegate_control::source::{Batch, ObjectKey, ObjectKind, manifest};
use tidegate_control::status::StatusWriter;
use tidegate_control::watch::Dialect;

const SERVICE: &str = "
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: web}, spec: {type: LoadBalancer, loadBalancerIP: 203.0.113.9, ports: [{port: 80, targetPort: 8080}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {namespace: shop, name: web-1, labels: {kubernetes.io/service-name: web}}, addressType: IPv4,
  ports: [{name: '', port: 8080}], endpoints: [{addresses: [10.244.1.5], conditions: {ready: true}, nodeName: w1}]}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: web-a, labels: {app: web}}, spec: {containers: []}, status: {podIPs: [{ip: 10.244.1.5}]}}
";

fn reconciler() -> Reconciler {
    let file = "node: gw-1\nsocket: /nowhere/s\nstateDir: /nowhere\ncontrol:\n  source: { directory: /nowhere/m }\n  fullnatSources: [10.244.9.2]\n";
    Reconciler::new(NodeFile::parse(file).unwrap(), Dialect::Files, StatusWriter::silent())
}

fn apply(reconciler: &mut Reconciler, text: &str) {
    let content = manifest::parse("test.yaml", text).unwrap();
    reconciler.take(Batch { applied: content.manifests, complete: true, ..Batch::default() });
}

fn hidden(reconciler: &Reconciler) -> bool {
    let name = Name { namespace: "shop".into(), name: "web".into() };
    reconciler.notes(&name).iter().any(|note| note.reason == "ClientSourceHiddenFromPolicy")
}

fn policy(selector: &str, types: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{namespace: shop, name: clients}}, spec: {{podSelector: {selector}, \
         policyTypes: [{types}], ingress: [{{from: [{{ipBlock: {{cidr: 192.0.2.7/32}}}}]}}]}}}}"
    )
}

/// T-061, as far as control goes.
#[test]
fn a_service_by_fullnat_is_told_that_policies_of_its_pods_do_not_see_clients() {
    let mut reconciler = reconciler();
    apply(&mut reconciler, SERVICE);
    assert!(!hidden(&reconciler), "nobody isolates its pods");
    for (selector, types, told) in [
        ("{}", "Ingress", true),
        ("{matchLabels: {app: other}}", "Ingress", false),
        ("{matchLabels: {app: web}}", "Ingress, Egress", true),
        ("{}", "Egress", false),
        ("{}", "Ingress", true),
    ] {
        apply(&mut reconciler, &policy(selector, types));
        assert_eq!(hidden(&reconciler), told, "{selector} {types}");
    }
    let audited =
        policy("{}", "Ingress").replace("name: clients}", "name: clients, annotations: {tidegate.io/audit: 'true'}}");
    apply(&mut reconciler, &audited);
    assert!(!hidden(&reconciler), "one in audit isolates nobody");
    let other = SERVICE.replace("app: web}}, spec: {containers", "app: api}}, spec: {containers");
    apply(&mut reconciler, &policy("{matchLabels: {app: web}}", "Ingress"));
    apply(&mut reconciler, other.rsplit("---").next().unwrap());
    assert!(!hidden(&reconciler), "the pod has other labels");
    apply(&mut reconciler, SERVICE.rsplit("---").next().unwrap());
    assert!(hidden(&reconciler));
    let key = ObjectKey { kind: ObjectKind::NetworkPolicy, namespace: "shop".into(), name: "clients".into() };
    reconciler.take(Batch { deleted: vec![key], complete: true, ..Batch::default() });
    assert!(!hidden(&reconciler));
}
