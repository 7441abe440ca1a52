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
{{- define "lightllm-operator.servingSelector" -}}
app.kubernetes.io/component: server
app.kubernetes.io/managed-by: lightllm-operator
{{- end }}
{{- define "lightllm-operator.dns" -}}
- to:
    - namespaceSelector: {}
      podSelector:
        matchLabels: {k8s-app: kube-dns}
  ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
{{- end }}
