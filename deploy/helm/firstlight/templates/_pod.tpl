{{/* What every pod has in common: identity, who it runs as, where it gets its images. */}}
{{- define "firstlight.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {{- toYaml (.seccomp | default (dict "type" "RuntimeDefault")) | nindent 4 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "firstlight.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Settings of every role. Secrets come from where they are, and into no manifest. */}}
{{- define "firstlight.env" -}}
- name: FIRSTLIGHT_DATABASE_URL
  valueFrom: {secretKeyRef: {name: {{ .Values.database.secretName }}, key: {{ .Values.database.secretKey }}}}
- name: FIRSTLIGHT_TEMPORAL_ADDRESS
  value: {{ .Values.temporal.address | quote }}
- name: FIRSTLIGHT_TEMPORAL_NAMESPACE
  value: {{ .Values.temporal.namespace | quote }}
{{- with .Values.temporal.uiUrl }}
- name: FIRSTLIGHT_TEMPORAL_UI_URL
  value: {{ . | quote }}
{{- end }}
{{- if .Values.temporal.tls }}
- name: FIRSTLIGHT_TEMPORAL_TLS
  value: "true"
{{- end }}
{{- if .Values.temporal.tlsSecretName }}
- name: FIRSTLIGHT_TEMPORAL_TLS_SERVER_ROOT_CA
  value: /etc/firstlight/temporal/ca.crt
- name: FIRSTLIGHT_TEMPORAL_TLS_CLIENT_CERT
  value: /etc/firstlight/temporal/tls.crt
- name: FIRSTLIGHT_TEMPORAL_TLS_CLIENT_KEY
  value: /etc/firstlight/temporal/tls.key
{{- end }}
{{- with .Values.temporal.apiKeySecretName }}
- name: FIRSTLIGHT_TEMPORAL_API_KEY
  valueFrom: {secretKeyRef: {name: {{ . }}, key: {{ $.Values.temporal.apiKeySecretKey }}}}
{{- end }}
{{- if .Values.rpc.tlsSecretName }}
- name: FIRSTLIGHT_RPC_TLS_DIR
  value: /etc/firstlight/rpc
{{- else }}
- name: FIRSTLIGHT_RPC_PLAIN
  value: "true"
{{- end }}
- name: FIRSTLIGHT_LOG_LEVEL
  value: {{ .Values.logLevel }}
{{- range $name, $value := .Values.settings }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{- define "firstlight.metricsEnv" -}}
{{- if .Values.metrics.port }}
- name: FIRSTLIGHT_METRICS_PORT
  value: {{ .Values.metrics.port | quote }}
- name: FIRSTLIGHT_METRICS_HOST
  value: 0.0.0.0
{{- if .Values.rpc.tlsSecretName }}
# A network that is not taken for private: whoever reads the figures sends one of the API's keys.
- name: FIRSTLIGHT_API_KEYS
  valueFrom: {secretKeyRef: {name: {{ required "metrics.port with rpc.tlsSecretName needs api.keysSecretName: a key is asked for at /metrics" .Values.api.keysSecretName }}, key: {{ .Values.api.keysSecretKey }}}}
{{- end }}
{{- end }}
{{- end }}

{{- define "firstlight.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if .Values.temporal.tlsSecretName }}
- {name: temporal-tls, mountPath: /etc/firstlight/temporal, readOnly: true}
{{- end }}
{{- if .Values.rpc.tlsSecretName }}
- {name: rpc-tls, mountPath: /etc/firstlight/rpc, readOnly: true}
{{- end }}
{{- end }}

{{- define "firstlight.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
{{- with .Values.temporal.tlsSecretName }}
- name: temporal-tls
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- with .Values.rpc.tlsSecretName }}
- name: rpc-tls
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- end }}

{{/* of (dict "root" $ "role" "api" "of" .Values.api): where its pods may run, no two together if it can be */}}
{{- define "firstlight.placement" -}}
{{- with .of.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: {{ .unsatisfiable | default "ScheduleAnyway" }}
    labelSelector:
      matchLabels: {{- include "firstlight.selector" . | nindent 8 }}
{{- end }}
