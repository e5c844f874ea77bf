{{/*
The node file: what the values say, what the chart itself knows (paths inside the containers), and what differs on one
gateway. Call with (dict "root" $ "node" <overrides or empty dict>).
*/}}
{{- define "tidegate.nodeFile" -}}
{{- $root := .root -}}
{{- $values := $root.Values -}}
{{- $own := .node | default dict -}}
{{- $dataplane := mergeOverwrite (deepCopy $values.dataplane.config) (deepCopy ($own.dataplane | default dict)) -}}
{{- $control := mergeOverwrite (deepCopy $values.control.config) (deepCopy ($own.control | default dict)) -}}
{{- $_ := set $dataplane "bpfDir" "/run/tidegate-bpf" -}}
{{- /* Without a share of its own, a process that touches a huge page of others is killed. */ -}}
{{- $_ := set $dataplane "hugePages" (ternary "on" "off" (ne (toString $values.dataplane.hugePages) "")) -}}
{{- if $values.dataplane.gateways.keySecret -}}
{{- $_ := set $dataplane "gateways" (mergeOverwrite (omit $values.dataplane.gateways "keySecret" "keyName") (dict "keyFile" "/etc/tidegate-key/key")) -}}
{{- end -}}
{{- if $values.metrics.enabled -}}
{{- range $section, $of := dict "dataplane" $dataplane "control" $control -}}
{{- if not $of.metrics -}}
{{- $_ := set $of "metrics" (printf "%s:%d" $values.metrics.address (int (index $values.metrics (printf "%sPort" $section)))) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $values.dataplane.routes.enabled -}}
{{- $_ := set $dataplane "routes" $values.dataplane.routes -}}
{{- end -}}
{{- $_ := set $control "source" (dict "kubernetes" dict) -}}
{{- if ne $values.gatewayLabel "tidegate.io/gateway" -}}
{{- $_ := set $control "gatewayLabel" $values.gatewayLabel -}}
{{- end -}}
node: { env: NODE_NAME }
socket: /run/tidegate/tidegate.sock
socketMode: "0660"
stateDir: /var/lib/tidegate
dataplane:
  {{- toYaml $dataplane | nindent 2 }}
control:
  {{- toYaml $control | nindent 2 }}
{{- end -}}

{{/* Nonsense that a schema cannot see. */}}
{{- define "tidegate.checkValues" -}}
{{- $values := .Values -}}
{{- $everyNodeHas := and $values.nodes (not (empty $values.nodes)) -}}
{{- if and (empty $values.dataplane.config.interfaces) (not $everyNodeHas) -}}
{{- fail "dataplane.config.interfaces: name the devices to serve, such as --set 'dataplane.config.interfaces[0].name=eth0'" -}}
{{- end -}}
{{- $sections := dict "dataplane.config" (dict "of" $values.dataplane.config "name" "dataplane") "control.config" (dict "of" $values.control.config "name" "control") -}}
{{- range $node, $own := $values.nodes -}}
{{- $own = $own | default dict -}}
{{- $_ := set $sections (printf "nodes.%s.dataplane" $node) (dict "of" ($own.dataplane | default dict) "name" "dataplane") -}}
{{- $_ := set $sections (printf "nodes.%s.control" $node) (dict "of" ($own.control | default dict) "name" "control") -}}
{{- $interfaces := ($own.dataplane | default dict).interfaces | default $values.dataplane.config.interfaces -}}
{{- if empty $interfaces -}}
{{- fail (printf "nodes.%s.dataplane.interfaces: name the devices to serve, here or in dataplane.config.interfaces" $node) -}}
{{- end -}}
{{- end -}}
{{- range $path, $section := $sections -}}
{{- $names := list -}}
{{- range $interface := ($section.of.interfaces | default list) -}}
{{- if has $interface.name $names -}}{{- fail (printf "%s.interfaces: %s is listed twice" $path $interface.name) -}}{{- end -}}
{{- $names = append $names $interface.name -}}
{{- end -}}
{{- if and $section.of.cores $section.of.workers (ne (len $section.of.cores) (int $section.of.workers)) -}}
{{- fail (printf "%s: %d workers, but %d cores; give one core per worker, or only one of the two" $path (int $section.of.workers) (len $section.of.cores)) -}}
{{- end -}}
{{- end -}}
{{- if and (not $values.serviceAccount.create) (not $values.serviceAccount.name) -}}
{{- fail "serviceAccount.name: name the one that is there, or let serviceAccount.create be true" -}}
{{- end -}}
{{- if and (eq $values.updateStrategy.type "OnDelete") (hasKey $values.updateStrategy "rollingUpdate") $values.updateStrategy.rollingUpdate (gt (int $values.updateStrategy.rollingUpdate.maxUnavailable) 1) -}}
{{- fail "updateStrategy.rollingUpdate: without effect with type OnDelete" -}}
{{- end -}}
{{- if and $values.metrics.podMonitor.enabled (not $values.metrics.enabled) -}}
{{- fail "metrics.podMonitor: nothing is told unless metrics.enabled is true" -}}
{{- end -}}
{{- if eq (int $values.metrics.dataplanePort) (int $values.metrics.controlPort) -}}
{{- fail "metrics.controlPort: the same as metrics.dataplanePort, on the same address of the node" -}}
{{- end -}}
{{- range $key := list "state" "bpf" -}}
{{- $path := index $values.hostPaths $key -}}
{{- if or (eq $path "/") (contains ".." $path) -}}
{{- fail (printf "hostPaths.%s: %q is no directory of Tidegate's own" $key $path) -}}
{{- end -}}
{{- end -}}
{{- end -}}
