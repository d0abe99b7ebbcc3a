{{- /* What all pods may connect to: names, the queue, the store, telemetry. Other hosts are told by port, since policies know no names. */ -}}
{{- define "basin.egress" }}
- ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
{{- if eq .Values.queue.mode "operator" }}
- to: [{podSelector: {matchLabels: {app.kubernetes.io/name: {{ include "basin.rabbitmq" . }}}}}]
  ports: [{port: {{ include "basin.rabbitmqPort" . }}, protocol: TCP}]
{{- end }}
{{- $ports := list }}
{{- if eq .Values.queue.mode "external" }}{{ $ports = append $ports (include "basin.port" .Values.queue.url) }}{{ end }}
{{- if hasPrefix "s3:" .Values.home.url }}
{{- $endpoint := regexFind "endpoint=[^&]+" .Values.home.url | trimPrefix "endpoint=" }}
{{- if contains "%" $endpoint }}{{ fail "home.url: write the endpoint without percent signs, as endpoint=http://host:9000" }}{{ end }}
{{- $ports = append $ports (include "basin.port" (default "s3://" $endpoint)) }}
{{- /* Tokens of web identity are changed for credentials over HTTPS. */ -}}
{{- $ports = append $ports "443" }}
{{- end }}
{{- range list .Values.telemetry.endpoint .Values.telemetry.metricsEndpoint .Values.telemetry.tracesEndpoint .Values.telemetry.logsEndpoint .Values.coordinator.notify.webhookUrl }}
{{- if . }}{{ $ports = append $ports (include "basin.port" .) }}{{ end }}
{{- end }}
{{- with $ports | uniq }}
- ports:
    {{- range . }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- end }}
{{- with .Values.networkPolicy.extraEgress }}
{{ toYaml . }}
{{- end }}
{{- end }}
