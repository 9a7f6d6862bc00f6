#!/usr/bin/env bash
# Everyday verbs, each a few commands: ./dev.sh help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

session=mydatastore
compose_file=deploy/compose/compose.yaml
image=${MYDATASTORE_IMAGE:-mydatastore:dev}
operator_image=${MDS_OPERATOR_IMAGE:-mds-operator:dev}
namespace=${NAMESPACE:-mydatastore}
operator_namespace=mydatastore-system

usage() {
    cat <<'TEXT'
./dev.sh VERB

  dc            build the image, start Compose, and watch it in a tmux session
  dc!           end that session and Compose, with all data
  dc-e2e        load through the balancer, every read checked, with k6
  dc-pprof [S]  CPU profile of a running store over S seconds (10) as profile.svg
  scale N       N stores in Compose; stores that go hand over what they hold

  k8-init       a fresh local Kubernetes, with metrics server
  k8            install the operator and a cluster of the present code
  k8-operator   run the operator on this machine instead of in the cluster; pods have to be in reach of it
  k8-r          build anew, load the images, restart the operator and, one by one, the stores
  k8!           delete what k8 has installed
  k8-e2e        the operator's end-to-end tests

  test [FILTER]   cargo test
  rtest [FILTER]  the same again whenever a file changes
  deps            update dependencies within their bounds
  help            this text
TEXT
}

fail() {
    echo "$*" >&2
    exit 1
}

# need COMMAND HOW-TO-GET-IT
need() {
    command -v "$1" >/dev/null || fail "$1 is needed: $2"
}

compose() {
    if docker compose version >/dev/null 2>&1; then
        docker compose -f "$compose_file" "$@"
    elif command -v docker-compose >/dev/null; then
        docker-compose -f "$compose_file" "$@"
    else
        fail "docker compose is needed: https://docs.docker.com/compose/install/"
    fi
}

need_docker() {
    need docker "https://docs.docker.com/engine/install/"
    docker info >/dev/null 2>&1 || fail "the Docker engine does not answer: start it (systemctl start docker), or set DOCKER_HOST"
}

need_kubectl() {
    need kubectl "https://kubernetes.io/docs/tasks/tools/"
    kubectl version >/dev/null 2>&1 || fail "no Kubernetes answers: ./dev.sh k8-init, or set KUBECONFIG"
}

need_part() {
    [ -e "$1" ] || fail "$1 is not in this checkout: this verb needs it"
}

# The image, by the musl target where it is installed, else in full inside Docker.
build_image() {
    if rustup target list --installed 2>/dev/null | grep -q musl; then
        deploy/image/build "$image"
    else
        docker build -f deploy/image/Dockerfile -t "$image" .
    fi
}

# Puts an image where the current Kubernetes finds it.
load_image() {
    if [ -n "${LOAD_IMAGE:-}" ]; then
        docker save "$1" | sh -c "$LOAD_IMAGE"
        return
    fi
    case $(kubectl config current-context) in
        kind-*) kind load docker-image "$1" ;;
        k3d-*) k3d image import "$1" ;;
        minikube) minikube image load "$1" ;;
        *) fail "set LOAD_IMAGE to a command that reads an image archive from standard input" ;;
    esac
}

load_images() {
    build_image
    if rustup target list --installed 2>/dev/null | grep -q musl; then
        deploy/image/build-operator "$operator_image"
    else
        docker build -f deploy/image/Dockerfile.operator -t "$operator_image" .
    fi
    load_image "$image"
    load_image "$operator_image"
}

# The manifests, with the image that was built here.
operator_manifests() {
    kubectl kustomize deploy/kubernetes | sed "s|image: mydatastore-operator:.*|image: $operator_image|"
}

# A cluster of three stores of the present code. Its volumes go with it: it is for trying things out.
dev_cluster() {
    cat <<YAML
apiVersion: v1
kind: Namespace
metadata: {name: $namespace}
---
apiVersion: mydatastore.dev/v1alpha1
kind: MyDataStore
metadata: {name: dev, namespace: $namespace}
spec:
  size: 3
  image: "$image"
  imagePullPolicy: IfNotPresent
  storage: {size: 1Gi}
  volumeRetention: {whenScaled: Delete, whenDeleted: Delete}
  resources: {requests: {cpu: 100m, memory: 128Mi}}
YAML
}

k8_init() {
    need kubectl "https://kubernetes.io/docs/tasks/tools/"
    if [ -n "${LOCAL_KUBE:-}" ]; then
        [ ! -x "$LOCAL_KUBE/down.sh" ] || "$LOCAL_KUBE/down.sh"
        METRICS=1 "$LOCAL_KUBE/up.sh"
        return
    elif command -v kind >/dev/null; then
        kind delete cluster && kind create cluster
    elif command -v k3d >/dev/null; then
        k3d cluster delete && k3d cluster create
    elif command -v minikube >/dev/null; then
        minikube delete && minikube start --addons metrics-server
    else
        fail "kind, k3d or minikube is needed (https://kind.sigs.k8s.io), or LOCAL_KUBE, a folder with an up.sh that starts one (and a down.sh that ends it)"
    fi
    # However it is installed, this is what an autoscaler asks.
    kubectl get apiservice v1beta1.metrics.k8s.io >/dev/null 2>&1 ||
        echo "no metrics server, so no autoscaling by CPU: https://github.com/kubernetes-sigs/metrics-server"
}

verb=${1:-help}
shift || true
case $verb in
    dc)
        need_docker
        need tmux "apt install tmux"
        build_image
        compose up -d
        tmux kill-session -t "$session" 2>/dev/null || true
        tmux new-session -d -s "$session" -c "$PWD" "docker logs -f \$(docker ps -qf label=com.docker.compose.service=nginx); exec \$SHELL"
        tmux split-window -h -t "$session" -c "$PWD" "exec \$SHELL"
        # Whichever store runs, as the ones before it may have been killed. Below both, because the table is wide.
        tmux split-window -f -t "$session" -c "$PWD" "watch -n 2 'docker exec \$(docker ps -qf label=com.docker.compose.service=store | head -1) /mydatastore status'"
        if [ -t 1 ]; then tmux attach -t "$session"; else echo "tmux attach -t $session"; fi
        ;;
    'dc!')
        need_docker
        tmux kill-session -t "$session" 2>/dev/null || true
        # All data goes: there is nobody to hand it over to.
        compose kill
        compose down -v --remove-orphans
        ;;
    dc-e2e)
        need k6 "https://grafana.com/docs/k6/latest/set-up/install-k6/"
        BASE_URL=${BASE_URL:-http://localhost:8080} k6 run e2e/load.js
        BASE_URL=${BASE_URL:-http://localhost:8080} k6 run e2e/original.js
        ;;
    dc-pprof)
        need_docker
        [[ ${1:-10} =~ ^[1-9][0-9]?$ ]] || fail "dc-pprof [S]: for how many seconds, 60 at most?"
        compose exec -T store /mydatastore profile --seconds "${1:-10}" --out - >profile.svg.part || {
            rm -f profile.svg.part
            fail "no profile: is Compose running (./dev.sh dc)?"
        }
        mv profile.svg.part profile.svg
        echo "profile.svg"
        ;;
    scale)
        [[ ${1:-} =~ ^[1-9][0-9]*$ ]] || fail "scale N: how many stores?"
        need_docker
        compose up -d --no-recreate --scale "store=$1"
        ;;
    k8-init) k8_init ;;
    k8)
        need_part deploy/kubernetes
        need_kubectl
        need_docker
        load_images
        operator_manifests | kubectl apply --server-side --force-conflicts -f -
        kubectl wait crd/mydatastores.mydatastore.dev --for=condition=Established --timeout=60s
        dev_cluster | kubectl apply -f -
        kubectl -n "$operator_namespace" rollout status deployment/mds-operator --timeout=120s
        kubectl -n "$namespace" wait mds/dev --for=condition=Ready --timeout=180s
        kubectl -n "$namespace" get mds,pods
        ;;
    'k8!')
        need_part deploy/kubernetes
        need_kubectl
        # Resources first, while the operator is there to see to their volumes.
        if kubectl get crd mydatastores.mydatastore.dev >/dev/null 2>&1; then
            kubectl delete mds --all --namespace "$namespace" --timeout=60s
        fi
        kubectl delete namespace "$namespace" --ignore-not-found
        kubectl delete --ignore-not-found -k deploy/kubernetes
        ;;
    k8-operator)
        need_part crates/operator
        need_kubectl
        # Both would have to agree by the lease who leads; this one is to.
        kubectl -n "$operator_namespace" scale deployment/mds-operator --replicas 0
        echo "the operator in the cluster is stopped; again: kubectl -n $operator_namespace scale deployment/mds-operator --replicas 1"
        cargo run --release -p mds-operator -- run --lease-namespace "$operator_namespace" "$@"
        ;;
    k8-r)
        need_part deploy/kubernetes
        need_kubectl
        need_docker
        load_images
        kubectl -n "$operator_namespace" rollout restart deployment/mds-operator
        kubectl -n "$operator_namespace" rollout status deployment/mds-operator --timeout=120s
        # Pods of this strategy are replaced by the operator, each when the data allows it.
        kubectl -n "$namespace" rollout restart statefulset
        ;;
    k8-e2e)
        need_part e2e/k8s/run
        need_kubectl
        MYDATASTORE_IMAGE=$image MDS_OPERATOR_IMAGE=$operator_image e2e/k8s/run "$@"
        ;;
    test)
        need cargo "https://rustup.rs"
        cargo test --workspace "$@"
        ;;
    rtest)
        need cargo "https://rustup.rs"
        need watchexec "cargo install watchexec-cli"
        watchexec --exts rs,toml -- cargo test --workspace "$@"
        ;;
    deps)
        need cargo "https://rustup.rs"
        cargo update
        ;;
    help | -h | --help) usage ;;
    *)
        usage >&2
        fail "unknown verb: $verb"
        ;;
esac
