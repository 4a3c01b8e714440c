{{- define "appointments.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-{{ .Chart.Name }}{{ end -}}
{{- end -}}

{{- /* The labels that select the pods of a program. Takes (dict "root" $ "program" "service"). */ -}}
{{- define "appointments.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .program }}
{{- end -}}

{{- define "appointments.labels" -}}
{{ include "appointments.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end -}}

{{- define "appointments.image" -}}
{{- $repository := required "image.repository is required" .Values.image.repository -}}
{{- if .Values.image.digest }}{{ $repository }}@{{ .Values.image.digest }}
{{- else }}{{ $repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end -}}
{{- end -}}

{{- /* Settings from Secrets. Takes (dict "root" $ "names" (list "DATABASE_URL")). */ -}}
{{- define "appointments.secretEnv" -}}
{{- range $name := .names }}
{{- $secret := index $.root.Values.secrets $name }}
{{- if $secret.name }}
- name: {{ $name }}
  valueFrom:
    secretKeyRef: {name: {{ $secret.name | quote }}, key: {{ $secret.key | quote }}}
{{- end }}
{{- end }}
{{- end -}}

{{- /* Settings of a program, over those of all. */ -}}
{{- define "appointments.settingsEnv" -}}
{{- $settings := merge (dict) (index .root.Values .program).settings .root.Values.settings }}
{{- range $name, $value := $settings }}
- name: {{ $name }}
  # Helm's numbers are floating-point: as text, large ones would have an exponent.
  value: {{ ternary (toJson $value) (toString $value) (kindIs "float64" $value) | quote }}
{{- end }}
{{- end -}}

{{- /* What all pods have in common, at the level of a pod's spec. */ -}}
{{- define "appointments.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with .Values.pod }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* What all containers have in common. */ -}}
{{- define "appointments.container" -}}
image: {{ include "appointments.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  readOnlyRootFilesystem: true
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
{{- end -}}

{{- /*
A Deployment. Takes root, program, command, grace (seconds), and secrets: the names of its secrets;
ports and probes come from the templates "appointments.PROGRAM.ports" and ".probes".
*/ -}}
{{- define "appointments.deployment" -}}
{{- $values := index .root.Values .program -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "appointments.name" .root }}-{{ .program }}
  labels:
    {{- include "appointments.labels" . | nindent 4 }}
spec:
  {{- if not $values.autoscaling.enabled }}
  replicas: {{ $values.replicas }}
  {{- end }}
  selector:
    matchLabels:
      {{- include "appointments.selector" . | nindent 6 }}
  strategy:
    rollingUpdate: {maxSurge: 1, maxUnavailable: 0}
  template:
    metadata:
      labels:
        {{- include "appointments.labels" . | nindent 8 }}
    spec:
      {{- include "appointments.pod" .root | nindent 6 }}
      terminationGracePeriodSeconds: {{ add .root.Values.preStopSeconds .grace 10 }}
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels:
              {{- include "appointments.selector" . | nindent 14 }}
      containers:
        - name: {{ .program }}
          {{- include "appointments.container" .root | nindent 10 }}
          command: {{ toJson .command }}
          env:
            {{- include (printf "appointments.%s.env" .program) .root | nindent 12 }}
            {{- include "appointments.secretEnv" (dict "root" .root "names" .secrets) | nindent 12 }}
            {{- include "appointments.settingsEnv" . | nindent 12 }}
          ports:
            {{- include (printf "appointments.%s.ports" .program) .root | nindent 12 }}
          {{- include (printf "appointments.%s.probes" .program) .root | nindent 10 }}
          lifecycle:
            preStop:
              sleep: {seconds: {{ .root.Values.preStopSeconds }}}
          resources:
            {{- toYaml $values.resources | nindent 12 }}
          {{- with $values.files }}
          volumeMounts:
            {{- range $number, $file := . }}
            - {name: files-{{ $number }}, mountPath: {{ $file.path | quote }}, readOnly: true}
            {{- end }}
          {{- end }}
      {{- with $values.files }}
      volumes:
        {{- range $number, $file := . }}
        - name: files-{{ $number }}
          {{- if $file.secret }}
          secret: {secretName: {{ $file.secret | quote }}}
          {{- else }}
          configMap: {name: {{ $file.configMap | quote }}}
          {{- end }}
        {{- end }}
      {{- end }}
{{- end -}}

{{- /* The settings of SHUTDOWN_GRACE and the like, as a number of seconds. */ -}}
{{- define "appointments.grace" -}}
{{- $settings := merge (dict) (index .root.Values .program).settings .root.Values.settings -}}
{{- get $settings .name | default 15 | float64 | ceil | int -}}
{{- end -}}
