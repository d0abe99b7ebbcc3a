{{- /* The pod of a worker, for all three modes: labels, annotations and spec of a template. */ -}}
{{- define "basin.workerPod" -}}
{{- $w := .Values.workers }}
{{- if le (int $w.terminationGracePeriodSeconds) (add (int $w.checkpointEvery) (int $w.preStopSeconds)) }}{{ fail "workers.terminationGracePeriodSeconds must be above checkpointEvery and preStopSeconds together: a worker that leaves ends its step and saves" }}{{ end }}
{{- if and (ne $w.mode "fixed") (gt (int $w.minReplicas) (int $w.maxReplicas)) }}{{ fail "workers.minReplicas is above workers.maxReplicas" }}{{ end }}
{{- if and (eq $w.mode "scaledObject") (not .Values.serviceAccount.create) (not .Values.serviceAccount.name) }}{{ fail "workers.mode=scaledObject lets workers patch pods: name a service account of their own (serviceAccount.name), or let the chart make one" }}{{ end }}
metadata:
  labels: {{- include "basin.podLabels" (dict "root" . "component" "worker") | nindent 4 }}
  {{- with $w.podLabels }}
  {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $w.podAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "basin.serviceAccount" . }}
  {{- /* A worker of a Deployment says itself whether it is busy. */}}
  automountServiceAccountToken: {{ eq $w.mode "scaledObject" }}
  enableServiceLinks: false
  {{- with .Values.image.pullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  restartPolicy: {{ ternary "Never" "Always" (eq $w.mode "scaledJob") }}
  terminationGracePeriodSeconds: {{ $w.terminationGracePeriodSeconds | int }}
  {{- with $w.gpu.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with include "basin.placement" (dict "root" . "of" $w "class" "workers") }}
  {{- . | trim | nindent 2 }}
  {{- end }}
  {{- $tolerations := $w.tolerations }}
  {{- if and $w.gpu.count $w.gpu.tolerate }}
  {{- $tolerations = prepend $tolerations (dict "key" $w.gpu.resource "operator" "Exists" "effect" "NoSchedule") }}
  {{- end }}
  {{- with $tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $w.topologySpreadKeys }}
  topologySpreadConstraints:
    {{- range . }}
    - topologyKey: {{ . }}
      maxSkew: 1
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels: {{- include "basin.selector" (dict "root" $ "component" "worker") | nindent 10 }}
    {{- end }}
  {{- end }}
  securityContext: {{- include "basin.podSecurity" . | nindent 4 }}
  containers:
    - name: worker
      image: {{ include "basin.workerImage" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command: [basin-worker]
      securityContext: {{- include "basin.containerSecurity" . | nindent 8 }}
      ports:
        - {name: health, containerPort: 8471}
      env:
        {{- include "basin.env" . | trim | nindent 8 }}
        - name: BASIN_WORKER_NAME
          valueFrom: {fieldRef: {fieldPath: metadata.name}}
        - name: BASIN_NODE_NAME
          valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
        - {name: BASIN_LISTEN, value: "0.0.0.0:8471"}
        - {name: BASIN_DEVICES, value: {{ ternary "auto" "cpu" (gt (int $w.gpu.count) 0) }}}
        - {name: BASIN_BATCH_IMAGES, value: {{ $w.batchImages | int | quote }}}
        - {name: BASIN_CHECKPOINT_EVERY, value: {{ $w.checkpointEvery | int | quote }}}
        - {name: BASIN_MODEL_CACHE, value: /var/cache/basin}
        - {name: BASIN_MODEL_CACHE_BYTES, value: {{ $w.modelCache.bytes | int64 | quote }}}
        {{- if eq $w.mode "scaledObject" }}
        - {name: BASIN_DELETION_COST_POD, value: {{ .Release.Namespace }}/$(BASIN_WORKER_NAME)}
        {{- end }}
        {{- if eq $w.mode "scaledJob" }}
        - {name: BASIN_DRAIN_AFTER, value: {{ $w.scaledJob.drainAfter | int | quote }}}
        {{- with $w.scaledJob.maxRuntime | int }}
        - {name: BASIN_MAX_RUNTIME, value: {{ . | quote }}}
        {{- end }}
        {{- end }}
        {{- with $w.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with $w.preStopSeconds | int }}
      lifecycle:
        preStop: {sleep: {seconds: {{ . }}}}
      {{- end }}
      startupProbe:
        httpGet: {path: /healthz, port: health}
        periodSeconds: 5
        failureThreshold: 60
      livenessProbe:
        httpGet: {path: /healthz, port: health}
        periodSeconds: 30
        timeoutSeconds: 10
        failureThreshold: 4
      readinessProbe:
        httpGet: {path: /readyz, port: health}
        periodSeconds: 10
        timeoutSeconds: 5
      resources:
        {{- $resources := deepCopy $w.resources }}
        {{- if $w.gpu.count }}
        {{- $limits := default dict $resources.limits }}
        {{- $_ := set $limits $w.gpu.resource (int $w.gpu.count) }}
        {{- $_ := set $resources "limits" $limits }}
        {{- end }}
        {{- toYaml $resources | nindent 8 }}
      volumeMounts:
        {{- include "basin.volumeMounts" . | trim | nindent 8 }}
        {{- with include "basin.queueVolumeMounts" . | trim }}{{ . | nindent 8 }}{{ end }}
        - {name: models, mountPath: /var/cache/basin}
  volumes:
    {{- include "basin.volumes" . | trim | nindent 4 }}
    {{- with include "basin.queueVolumes" . | trim }}{{ . | nindent 4 }}{{ end }}
    - name: models
      {{- if $w.modelCache.existingClaim }}
      persistentVolumeClaim: {claimName: {{ $w.modelCache.existingClaim }}}
      {{- else }}
      emptyDir: {sizeLimit: {{ $w.modelCache.sizeLimit }}}
      {{- end }}
{{- end }}

{{- /* What KEDA follows, in both of its modes. */ -}}
{{- define "basin.triggers" -}}
{{- $t := .Values.workers.trigger }}
{{- /* A worker holds up to two batches, and they count as images left: with fewer for each, workers would start for images that others hold, and leave, again and again. */ -}}
{{- if lt (int $t.imagesPerWorker) (mul 2 .Values.workers.batchImages | int) }}{{ fail "workers.trigger.imagesPerWorker must be at least twice workers.batchImages: a worker holds as many" }}{{ end }}
{{- if eq $t.type "backlog" }}
- type: metrics-api
  metadata:
    url: {{ include "basin.coordinatorUrl" . }}/v1/backlog
    valueLocation: backlog
    targetValue: {{ $t.imagesPerWorker | int | quote }}
    authMode: bearer
{{- else }}
- type: rabbitmq
  metadata:
    protocol: http
    {{- $url := $t.managementUrl }}
    {{- if not $url }}
    {{- if ne .Values.queue.mode "operator" }}{{ fail "workers.trigger.managementUrl is needed with workers.trigger.type=rabbitmq and an external RabbitMQ: http://host:15672/" }}{{ end }}
    {{- $url = printf "http://%s.%s.svc:15672/" (include "basin.rabbitmq" .) .Release.Namespace }}
    {{- end }}
    host: {{ $url }}
    queueName: {{ default "basin" .Values.queue.options.prefix }}.jobs
    {{- $vhost := "/" }}
    {{- if eq .Values.queue.mode "external" }}{{ $vhost = (urlParse .Values.queue.url).path | trimPrefix "/" | default "/" }}{{ end }}
    vhostName: {{ $vhost | quote }}
    mode: QueueLength
    value: {{ $t.imagesPerWorker | int | quote }}
{{- end }}
  authenticationRef:
    name: {{ include "basin.fullname" . }}-trigger
{{- end }}
