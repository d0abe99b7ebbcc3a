{{- /* All pools of workers, as a list in YAML: `workers`, and each of `workerPools` with the values of `workers` where it names none; without those that
have no workers. A pool has
`pool` (its name; empty for `workers`), `component` (the label that its pods are selected by) and `object` (the name of its objects). */ -}}
{{- define "basin.pools" -}}
{{- $base := merge (dict "pool" "" "component" "worker" "object" (printf "%s-worker" (include "basin.fullname" .))) (deepCopy .Values.workers) }}
{{- $pools := list $base }}
{{- $names := list }}
{{- range .Values.workerPools }}
{{- if has .name $names }}{{ fail (printf "workerPools has two pools with the name %s" .name) }}{{ end }}
{{- $names = append $names .name }}
{{- $object := printf "%s-worker-%s" (include "basin.fullname" $) .name }}
{{- if gt (len $object) 52 }}{{ fail (printf "the name %s has more than 52 characters: use a shorter fullnameOverride, or a shorter name of the pool" $object) }}{{ end }}
{{- $pools = append $pools (mergeOverwrite (deepCopy $base) (deepCopy (omit . "name")) (dict "pool" .name "component" (printf "worker-%s" .name) "object" $object)) }}
{{- end }}
{{- $some := list }}
{{- range $pools }}
{{- if or (eq .mode "fixed") (gt (int .maxReplicas) 0) }}{{ $some = append $some . }}{{ end }}
{{- end }}
{{- if not $some }}{{ fail "workers.maxReplicas is 0, and no pool has workers" }}{{ end }}
{{- toYaml $some }}
{{- end }}

{{- /* The pod of a worker, for all three modes: labels, annotations and spec of a template. (dict "root" $ "w" POOL) */ -}}
{{- define "basin.workerPod" -}}
{{- $w := .w }}
{{- $root := .root }}
{{- $gpu := or (gt (int $w.gpu.count) 0) (gt (len $w.resourceClaims) 0) }}
{{- if le (int $w.terminationGracePeriodSeconds) (add (int $w.checkpointEvery) (int $w.preStopSeconds)) }}{{ fail "workers.terminationGracePeriodSeconds must be above checkpointEvery and preStopSeconds together: a worker that leaves ends its step and saves" }}{{ end }}
{{- if and (ne $w.mode "fixed") (gt (int $w.minReplicas) (int $w.maxReplicas)) }}{{ fail "workers.minReplicas is above workers.maxReplicas" }}{{ end }}
{{- if and (eq $w.mode "scaledObject") (not $root.Values.serviceAccount.create) (not $root.Values.serviceAccount.name) }}{{ fail "workers.mode=scaledObject lets workers patch pods: name a service account of their own (serviceAccount.name), or let the chart make one" }}{{ end }}
metadata:
  labels: {{- include "basin.podLabels" (dict "root" $root "component" $w.component) | nindent 4 }}
  {{- with $w.pool }}
    basin-pool: {{ . }}
  {{- end }}
  {{- with $w.podLabels }}
  {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $w.podAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "basin.serviceAccount" $root }}
  {{- /* A worker of a Deployment says itself whether it is busy. */}}
  automountServiceAccountToken: {{ eq $w.mode "scaledObject" }}
  enableServiceLinks: false
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  restartPolicy: {{ ternary "Never" "Always" (eq $w.mode "scaledJob") }}
  terminationGracePeriodSeconds: {{ $w.terminationGracePeriodSeconds | int }}
  {{- with $w.gpu.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with include "basin.placement" (dict "root" $root "of" $w "class" "workers") }}
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
        matchLabels: {{- include "basin.selector" (dict "root" $root "component" $w.component) | nindent 10 }}
    {{- end }}
  {{- end }}
  securityContext: {{- include "basin.podSecurity" $root | nindent 4 }}
  {{- with $w.resourceClaims }}
  resourceClaims: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $w.initContainers }}
  initContainers: {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: worker
      image: {{ include "basin.workerImage" (dict "root" $root "gpu" $gpu) }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      command: [basin-worker]
      securityContext: {{- include "basin.containerSecurity" $root | nindent 8 }}
      ports:
        - {name: health, containerPort: 8471}
      env:
        {{- include "basin.env" $root | trim | nindent 8 }}
        - name: BASIN_WORKER_NAME
          valueFrom: {fieldRef: {fieldPath: metadata.name}}
        - name: BASIN_NODE_NAME
          valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
        - {name: BASIN_LISTEN, value: "0.0.0.0:8471"}
        - {name: BASIN_DEVICES, value: {{ ternary "auto" "cpu" $gpu }}}
        - {name: BASIN_BATCH_IMAGES, value: {{ $w.batchImages | int | quote }}}
        - {name: BASIN_CHECKPOINT_EVERY, value: {{ $w.checkpointEvery | int | quote }}}
        - {name: BASIN_MODEL_CACHE, value: /var/cache/basin}
        - {name: BASIN_MODEL_CACHE_BYTES, value: {{ $w.modelCache.bytes | int64 | quote }}}
        {{- if eq $w.mode "scaledObject" }}
        - {name: BASIN_DELETION_COST_POD, value: {{ $root.Release.Namespace }}/$(BASIN_WORKER_NAME)}
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
      {{- with $w.envFrom }}
      envFrom: {{- toYaml . | nindent 8 }}
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
        {{- with $w.resourceClaims }}
        claims:
          {{- range . }}
          - {name: {{ .name }}}
          {{- end }}
        {{- end }}
      volumeMounts:
        {{- include "basin.volumeMounts" $root | trim | nindent 8 }}
        {{- with include "basin.queueVolumeMounts" $root | trim }}{{ . | nindent 8 }}{{ end }}
        - {name: models, mountPath: /var/cache/basin}
        {{- if $w.shmSize }}
        - {name: shm, mountPath: /dev/shm}
        {{- end }}
        {{- with $w.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- with $w.sidecars }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "basin.volumes" $root | trim | nindent 4 }}
    {{- with include "basin.queueVolumes" $root | trim }}{{ . | nindent 4 }}{{ end }}
    - name: models
      {{- if $w.modelCache.existingClaim }}
      persistentVolumeClaim: {claimName: {{ $w.modelCache.existingClaim }}}
      {{- else }}
      emptyDir: {sizeLimit: {{ $w.modelCache.sizeLimit }}}
      {{- end }}
    {{- with $w.shmSize }}
    - {name: shm, emptyDir: {medium: Memory, sizeLimit: {{ . }}}}
    {{- end }}
    {{- with $w.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{- /* What KEDA follows, in both of its modes. (dict "root" $ "w" POOL) */ -}}
{{- define "basin.triggers" -}}
{{- $t := .w.trigger }}
{{- $root := .root }}
{{- /* A worker holds up to two batches, and they count as images left: with fewer for each, workers would start for images that others hold, and leave, again and again. */ -}}
{{- if lt (int $t.imagesPerWorker) (mul 2 .w.batchImages | int) }}{{ fail "workers.trigger.imagesPerWorker must be at least twice workers.batchImages: a worker holds as many" }}{{ end }}
{{- if eq $t.type "backlog" }}
- type: metrics-api
  metadata:
    url: {{ include "basin.coordinatorUrl" $root }}/v1/backlog
    valueLocation: backlog
    targetValue: {{ $t.imagesPerWorker | int | quote }}
    authMode: bearer
{{- else }}
- type: rabbitmq
  metadata:
    protocol: http
    {{- $url := $t.managementUrl }}
    {{- if and (not $url) $root.Values.queue.operator.tlsSecret }}{{ fail "workers.trigger.type=rabbitmq with queue.operator.tlsSecret: KEDA does not know the authority; use workers.trigger.type=backlog" }}{{ end }}
    {{- if not $url }}
    {{- if ne $root.Values.queue.mode "operator" }}{{ fail "workers.trigger.managementUrl is needed with workers.trigger.type=rabbitmq and an external RabbitMQ: http://host:15672/" }}{{ end }}
    {{- $url = printf "%s://%s.%s.svc:%s/" (ternary "https" "http" (ne $root.Values.queue.operator.tlsSecret "")) (include "basin.rabbitmq" $root) $root.Release.Namespace (ternary "15671" "15672" (ne $root.Values.queue.operator.tlsSecret "")) }}
    {{- end }}
    host: {{ $url }}
    queueName: {{ default "basin" $root.Values.queue.options.prefix }}.jobs
    {{- $vhost := "/" }}
    {{- if eq $root.Values.queue.mode "external" }}{{ $vhost = (urlParse $root.Values.queue.url).path | trimPrefix "/" | default "/" }}{{ end }}
    vhostName: {{ $vhost | quote }}
    mode: QueueLength
    value: {{ $t.imagesPerWorker | int | quote }}
{{- end }}
  authenticationRef:
    name: {{ include "basin.fullname" $root }}-trigger
{{- end }}
