# What the chart is checked with. Sourced by setup.sh and check.sh.
helm=v3.22.0
helm_unittest=v1.1.2
kubeconform=v0.8.0
keda=v2.21.0
prometheus_operator=v0.85.0
kubernetes_validate=1.37.0 # PyPI: carries the JSON schemas of Kubernetes
kubernetes=1.37            # which of them, and what helm takes a cluster for
# The control plane of make test-k8s.
etcd=v3.6.16
kubernetes_release=v1.37.2
kwok=v0.8.0
