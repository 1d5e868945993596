{{- define "firstlight.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "firstlight.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | quote }}
{{- end }}

{{/* of (dict "root" $ "role" "api") */}}
{{- define "firstlight.selector" -}}
app.kubernetes.io/name: firstlight
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end }}

{{/* of (dict "root" $ "name" "api" "digest" "" "tag" "") */}}
{{- define "firstlight.image" -}}
{{- $image := printf "%s/%s" .root.Values.image.registry .name -}}
{{- if .digest -}}
{{ printf "%s@%s" $image .digest }}
{{- else -}}
{{ printf "%s:%s" $image (.tag | default .root.Values.image.tag | default .root.Chart.AppVersion) }}
{{- end -}}
{{- end }}
