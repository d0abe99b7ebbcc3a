{{- define "basin.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "basin.fullname" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else }}{{ $name := include "basin.name" . }}{{ if contains $name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}
{{- end }}

{{- /* What a component's pods are known by; never changes. (dict "root" $ "component" …) */ -}}
{{- define "basin.selector" -}}
app.kubernetes.io/name: {{ include "basin.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "basin.labels" -}}
{{ include "basin.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: basin
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* Without the chart's version, so that a new chart does not restart pods that stay the same. */ -}}
{{- define "basin.podLabels" -}}
{{ include "basin.selector" . }}
app.kubernetes.io/part-of: basin
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* (dict "root" $ "image" "basin-coordinator") */ -}}
{{- define "basin.image" -}}
{{- $digest := get .root.Values.image.digests .image }}
{{- .root.Values.image.registry }}/{{ .image }}{{ if $digest }}@{{ $digest }}{{ else }}:{{ default .root.Chart.AppVersion .root.Values.image.tag }}{{ end }}
{{- end }}

{{- define "basin.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "basin.fullname" .) .Values.serviceAccount.name }}{{ else }}{{ default "default" .Values.serviceAccount.name }}{{ end }}
{{- end }}

{{- define "basin.rabbitmq" -}}
{{ include "basin.fullname" . }}-rabbitmq
{{- end }}

{{- define "basin.rabbitmqPort" -}}
{{- ternary "5671" "5672" (ne .Values.queue.operator.tlsSecret "") }}
{{- end }}

{{- /* The secret with `username` and `password` of RabbitMQ: the operator makes its own. */ -}}
{{- define "basin.queueSecret" -}}
{{- if eq .Values.queue.mode "operator" }}{{ include "basin.rabbitmq" . }}-default-user{{ else }}{{ .Values.queue.credentialsSecret }}{{ end }}
{{- end }}

{{- define "basin.queueUrl" -}}
{{- $url := .Values.queue.url }}
{{- if eq .Values.queue.mode "operator" }}{{ $url = printf "%s%s.%s.svc:%s/" (ternary "amqps://" "amqp://" (ne .Values.queue.operator.tlsSecret "")) (include "basin.rabbitmq" .) .Release.Namespace (include "basin.rabbitmqPort" .) }}
{{- if and .Values.queue.operator.tlsSecret (not .Values.queue.caSecret) }}{{ fail "queue.operator.tlsSecret needs queue.caSecret: the Secret with the ca.crt that signed its certificate" }}{{ end }}
{{- else if not $url }}{{ fail "queue.url is needed with queue.mode=external: amqp://host:5672/vhost" }}{{ end }}
{{- if contains "?" $url }}{{ fail "queue.url has options: they belong into queue.options, and a password into queue.credentialsSecret" }}{{ end }}
{{- $options := list }}
{{- range $name, $value := .Values.queue.options }}{{ $options = append $options (printf "%s=%s" $name (toString $value | urlquery)) }}{{ end }}
{{- if include "basin.queueSecret" . }}{{ $options = append $options "password_file=/etc/basin/queue/password" }}{{ end }}
{{- if .Values.queue.caSecret }}{{ $options = append $options "ca_file=/etc/basin/queue-ca/ca.crt" }}{{ end }}
{{- $url }}{{ with $options }}{{ if contains "?" $url }}&{{ else }}?{{ end }}{{ join "&" . }}{{ end }}
{{- end }}

{{- define "basin.homeUrl" -}}
{{- required "home.url is needed: s3://bucket/prefix, or an absolute folder (home.volume)" .Values.home.url }}
{{- end }}

{{- /* What clients may name. Without the value: the mounted folders, and then the buckets have to be named, too. */ -}}
{{- define "basin.allowedDataSets" -}}
{{- $list := .Values.allowedDataSets }}
{{- if not $list }}
{{- if .Values.home.volume.enabled }}{{ $list = append $list .Values.home.volume.mountPath }}{{ end }}
{{- range .Values.extraVolumeMounts }}{{ $list = append $list .mountPath }}{{ end }}
{{- if $list }}
{{- $list = append $list "s3://*" }}
{{- with regexFind "endpoint=[^&]+" .Values.home.url }}{{ $list = append $list (printf "s3://*?%s" .) }}{{ end }}
{{- end }}
{{- end }}
{{- join "," $list }}
{{- end }}

{{- define "basin.tokenSecret" -}}
{{- required "coordinator.auth.existingSecret is needed: kubectl create secret generic basin-token --from-literal=token=\"$(openssl rand -hex 16)\"" .Values.coordinator.auth.existingSecret }}
{{- end }}

{{- define "basin.coordinatorUrl" -}}
http://{{ include "basin.fullname" . }}-coordinator.{{ .Release.Namespace }}.svc:{{ .Values.coordinator.service.port }}
{{- end }}

{{- /* Images that all workers together may hold, four times, and at least 1000. */ -}}
{{- define "basin.window" -}}
{{- $images := 0 }}
{{- range include "basin.pools" . | fromYamlArray }}
{{- $images = add $images (mul (ternary .replicas .maxReplicas (eq .mode "fixed")) .batchImages) }}
{{- end }}
{{- .Values.coordinator.window | int | default (max 1000 (mul 4 $images)) }}
{{- end }}

{{- /* OpenShift gives each namespace users of its own, and refuses others. */ -}}
{{- define "basin.podSecurity" -}}
{{- $context := .Values.podSecurityContext }}
{{- if .Capabilities.APIVersions.Has "security.openshift.io/v1" }}{{ $context = omit $context "runAsUser" "runAsGroup" "fsGroup" }}{{ end }}
{{- toYaml $context }}
{{- end }}

{{- define "basin.containerSecurity" -}}
{{- toYaml .Values.containerSecurityContext }}
{{- end }}

{{- /* Credentials of the store. */ -}}
{{- define "basin.storeEnv" -}}
{{- with .Values.home.region }}
- {name: AWS_REGION, value: {{ . | quote }}}
{{- end }}
{{- with .Values.home.credentialsSecret }}
- {name: AWS_EC2_METADATA_DISABLED, value: "true"}
- name: AWS_ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ . }}, key: AWS_ACCESS_KEY_ID}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ . }}, key: AWS_SECRET_ACCESS_KEY}}
- name: AWS_SESSION_TOKEN
  valueFrom: {secretKeyRef: {name: {{ . }}, key: AWS_SESSION_TOKEN, optional: true}}
{{- end }}
{{- end }}

{{- /* What coordinator and workers have in common. */ -}}
{{- define "basin.env" -}}
- {name: BASIN_HOME_URL, value: {{ include "basin.homeUrl" . | quote }}}
- {name: BASIN_QUEUE_URL, value: {{ include "basin.queueUrl" . | quote }}}
{{- with include "basin.allowedDataSets" . }}
- {name: BASIN_ALLOWED_DATA_SETS, value: {{ . | quote }}}
{{- end }}
{{- with include "basin.queueSecret" . }}
- name: BASIN_AMQP_USER
  valueFrom: {secretKeyRef: {name: {{ . }}, key: username}}
{{- end }}
{{- include "basin.storeEnv" . }}
- {name: BASIN_LOG, value: {{ .Values.telemetry.log | quote }}}
- {name: BASIN_LOG_FORMAT, value: json}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
- {name: OTEL_RESOURCE_ATTRIBUTES, value: "service.instance.id=$(POD_NAME),k8s.pod.name=$(POD_NAME),k8s.node.name=$(NODE_NAME),k8s.namespace.name={{ .Release.Namespace }}"}
{{- with .Values.telemetry }}
{{- if or .endpoint .metricsEndpoint .tracesEndpoint .logsEndpoint }}
- {name: OTEL_EXPORTER_OTLP_PROTOCOL, value: {{ .protocol }}}
- {name: OTEL_METRIC_EXPORT_INTERVAL, value: {{ .metricInterval | int | quote }}}
{{- with .endpoint }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- with .metricsEndpoint }}
- {name: OTEL_EXPORTER_OTLP_METRICS_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- with .tracesEndpoint }}
- {name: OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- with .logsEndpoint }}
- {name: OTEL_EXPORTER_OTLP_LOGS_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- if and $.Values.monitoring.podMonitor (not .metricsEndpoint) }}
{{- /* They are scraped: each series would be there twice. */}}
- {name: OTEL_METRICS_EXPORTER, value: none}
{{- end }}
{{- if not (or .logs .logsEndpoint) }}
- {name: OTEL_LOGS_EXPORTER, value: none}
{{- end }}
- {name: OTEL_TRACES_SAMPLER, value: parentbased_traceidratio}
- {name: OTEL_TRACES_SAMPLER_ARG, value: {{ .traceRatio | quote }}}
{{- with .headersSecret }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom: {secretKeyRef: {name: {{ . }}, key: headers}}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- /* A place to write, the home's volume, and what the user adds. */ -}}
{{- define "basin.volumes" -}}
- {name: tmp, emptyDir: {}}
{{- if .Values.home.volume.enabled }}
- name: home
  persistentVolumeClaim: {claimName: {{ default (printf "%s-home" (include "basin.fullname" .)) .Values.home.volume.existingClaim }}}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "basin.volumeMounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if .Values.home.volume.enabled }}
- {name: home, mountPath: {{ .Values.home.volume.mountPath }}}
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "basin.queueVolumes" -}}
{{- with include "basin.queueSecret" . }}
- name: queue
  secret: {secretName: {{ . }}, items: [{key: password, path: password}]}
{{- end }}
{{- with .Values.queue.caSecret }}
- name: queue-ca
  secret: {secretName: {{ . }}, items: [{key: ca.crt, path: ca.crt}]}
{{- end }}
{{- end }}

{{- define "basin.queueVolumeMounts" -}}
{{- if include "basin.queueSecret" . }}
- {name: queue, mountPath: /etc/basin/queue, readOnly: true}
{{- end }}
{{- if .Values.queue.caSecret }}
- {name: queue-ca, mountPath: /etc/basin/queue-ca, readOnly: true}
{{- end }}
{{- end }}

{{- /* A file of the token's secret: (dict "root" $ "key" …), at /etc/basin/token/token */ -}}
{{- define "basin.tokenVolume" -}}
- name: token
  secret: {secretName: {{ include "basin.tokenSecret" .root }}, items: [{key: {{ .key }}, path: token}]}
{{- end }}

{{- /* Where and as whom pods run: (dict "root" $ "of" .Values.coordinator "class" "coordinator") */ -}}
{{- define "basin.placement" -}}
{{- $class := .of.priorityClassName }}
{{- if and (not $class) .root.Values.priorityClasses.create }}{{ $class = printf "%s-%s" (include "basin.fullname" .root) .class }}{{ end }}
{{- with $class }}
priorityClassName: {{ . }}
{{- end }}
{{- with .of.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* (dict "root" $ "gpu" true) */ -}}
{{- define "basin.workerImage" -}}
{{- include "basin.image" (dict "root" .root "image" (ternary "basin-worker-cuda" "basin-worker-cpu" .gpu)) }}
{{- end }}

{{- /* Of a URL the port, or the default of its scheme. */ -}}
{{- define "basin.port" -}}
{{- $url := urlParse (first (splitList "?" .)) }}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" }}
{{- $port = $port | default (get (dict "http" "80" "https" "443" "amqp" "5672" "amqps" "5671" "s3" "443") $url.scheme) }}
{{- /* A policy without a port would allow all of them. */ -}}
{{- $port | required (printf "%s names no port that a network policy could allow: write it as scheme://host:port" .) }}
{{- end }}
