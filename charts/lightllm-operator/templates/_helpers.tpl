{{- define "lightllm-operator.labels" -}}
app.kubernetes.io/name: lightllm-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
{{- define "lightllm-operator.selector" -}}
app.kubernetes.io/name: lightllm-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
