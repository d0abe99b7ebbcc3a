{{- /* The pod of a `basin` command: (dict "root" $ "init" (list of (dict "name" "args")) "name" … "args" (list …) "resources" …). */ -}}
{{- define "basin.clientPod" -}}
{{- $root := .root }}
serviceAccountName: {{ include "basin.serviceAccount" $root }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
restartPolicy: Never
securityContext: {{- include "basin.podSecurity" $root | nindent 2 }}
{{- with .init }}
initContainers:
  {{- range . }}
  - {{ include "basin.clientContainer" (dict "root" $root "of" . "resources" $.resources) | nindent 4 | trim }}
  {{- end }}
{{- end }}
containers:
  - {{ include "basin.clientContainer" (dict "root" $root "of" . "resources" .resources) | nindent 4 | trim }}
volumes:
  {{- include "basin.volumes" $root | trim | nindent 2 }}
  {{- include "basin.tokenVolume" (dict "root" $root "key" $root.Values.coordinator.auth.tokenKey) | nindent 2 }}
{{- end }}

{{- define "basin.clientContainer" -}}
name: {{ .of.name }}
image: {{ include "basin.image" (dict "root" .root "image" "basin-worker-cpu") }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
command: [basin]
args: {{ toJson .of.args }}
securityContext: {{- include "basin.containerSecurity" .root | nindent 2 }}
env:
  - {name: BASIN_COORDINATOR_URL, value: {{ include "basin.coordinatorUrl" .root }}}
  - {name: BASIN_TOKEN_FILE, value: /etc/basin/token/token}
  - {name: BASIN_HOME_URL, value: {{ include "basin.homeUrl" .root | quote }}}
  {{- with include "basin.storeEnv" .root | trim }}{{ . | nindent 2 }}{{ end }}
resources: {{- toYaml .resources | nindent 2 }}
volumeMounts:
  {{- include "basin.volumeMounts" .root | trim | nindent 2 }}
  - {name: token, mountPath: /etc/basin/token, readOnly: true}
{{- end }}
