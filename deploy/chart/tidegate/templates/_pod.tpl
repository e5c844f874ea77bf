{{/* What both containers are told alike. */}}

{{- define "tidegate.nodeFileArguments" -}}
- --config=/etc/tidegate/node-$(NODE_NAME).yaml
- --config=/etc/tidegate/node.yaml
{{- end -}}

{{- define "tidegate.nodeName" -}}
- name: NODE_NAME
  valueFrom: { fieldRef: { fieldPath: spec.nodeName } }
{{- end -}}
