#!/usr/bin/env bash
# Starts a fleet on this machine: RabbitMQ, an S3 server, a coordinator and two workers, on private ports. down.sh stops them.
set -euo pipefail
cd "$(dirname "$0")/../.."

state=$PWD/target/local
queue_port=${BASIN_LOCAL_QUEUE_PORT:-5679}
s3_port=${BASIN_LOCAL_S3_PORT:-9079}
api_port=${BASIN_LOCAL_API_PORT:-8470}
workers=${BASIN_LOCAL_WORKERS:-2}

if [[ -e $state/pids ]]; then
    echo "a local fleet is running; stop it with make down-local" >&2
    exit 1
fi
mkdir -p "$state/log" "$state/rabbitmq"
: > "$state/pids"
trap 'echo "cannot start the local fleet; see $state/log" >&2; infra/local/down.sh' ERR

# start NAME COMMAND...: in a process group of its own; down.sh reads its id from the file pids.
start() {
    local name=$1
    shift
    setsid "$@" </dev/null >"$state/log/$name" 2>&1 &
    echo "$! $name" >> "$state/pids"
}

# until_works SECONDS WHAT COMMAND...
until_works() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS > end)); then
            echo "$what does not answer; see $state/log" >&2
            return 1
        fi
        sleep 0.2
    done
}

infra/rabbitmq/setup.sh
if [[ ! -x $state/venv/bin/moto_server ]]; then
    echo "installing the S3 server"
    python3 -m venv "$state/venv"
    "$state/venv/bin/pip" install -q --disable-pip-version-check -r infra/local/s3.txt
fi

echo '[].' > "$state/rabbitmq/enabled_plugins"
printf 'listeners.tcp.1 = 127.0.0.1:%s\ndisk_free_limit.absolute = 50MB\n' "$queue_port" > "$state/rabbitmq/rabbitmq.conf"
start rabbitmq env HOME="$state/rabbitmq" \
    RABBITMQ_NODENAME="basin-local-$queue_port@localhost" RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 RABBITMQ_NODE_PORT="$queue_port" \
    RABBITMQ_DIST_PORT=$((queue_port + 20000)) ERL_EPMD_PORT=$((queue_port + 20001)) ERL_EPMD_ADDRESS=127.0.0.1 \
    RABBITMQ_MNESIA_BASE="$state/rabbitmq/mnesia" RABBITMQ_LOG_BASE="$state/rabbitmq/log" RABBITMQ_PID_FILE="$state/rabbitmq/pid" \
    RABBITMQ_ENABLED_PLUGINS_FILE="$state/rabbitmq/enabled_plugins" RABBITMQ_CONFIG_FILE="$state/rabbitmq/rabbitmq" \
    RABBITMQ_CONF_ENV_FILE="$state/rabbitmq/none" \
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='+S 1:1 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}' \
    /usr/lib/rabbitmq/bin/rabbitmq-server
start s3 "$state/venv/bin/moto_server" -H 127.0.0.1 -p "$s3_port"
until_works 60 "the S3 server" curl -fsS "http://127.0.0.1:$s3_port/moto-api/"
curl -fsS -X PUT "http://127.0.0.1:$s3_port/basin" >/dev/null
until_works 120 RabbitMQ bash -c "exec 3<>/dev/tcp/127.0.0.1/$queue_port && printf 'AMQP\0\0\11\1' >&3 && read -r -N 1 -t 5 -u 3"

umask 077
python3 -c 'import secrets; print(secrets.token_hex(16))' > "$state/token"
cat > "$state/env" <<ENV
export AWS_ACCESS_KEY_ID=basin AWS_SECRET_ACCESS_KEY=basin-local AWS_EC2_METADATA_DISABLED=true
export BASIN_HOME_URL='s3://basin/home?endpoint=http://127.0.0.1:$s3_port'
export BASIN_QUEUE_URL='amqp://guest:guest@127.0.0.1:$queue_port/'
export BASIN_COORDINATOR_URL=http://127.0.0.1:$api_port
export BASIN_TOKEN_FILE='$state/token'
ENV
# shellcheck disable=SC1091
source "$state/env"
start coordinator env BASIN_LISTEN="127.0.0.1:$api_port" target/debug/basin-coordinator
until_works 60 "the coordinator" bash -c "curl -fsS http://127.0.0.1:$api_port/readyz | grep -q acting"
for n in $(seq "$workers"); do
    start "worker-$n" env BASIN_WORKER_NAME="worker-$n" BASIN_DEVICES=cpu BASIN_BATCH_IMAGES=2 BASIN_CHECKPOINT_EVERY=10 \
        BASIN_MODEL_CACHE="$state/models" target/debug/basin-worker
done
until_works 60 "a worker" bash -c "target/debug/basin workers | grep -q worker-1"
trap - ERR
cat <<TEXT
a local fleet runs: RabbitMQ on $queue_port, S3 on $s3_port, coordinator on $api_port, $workers workers; logs in target/local/log
  source target/local/env     then: basin submit, basin runs, basin watch
  http://127.0.0.1:$api_port       the dashboard; its token: cat target/local/token
  make down-local             stops it
TEXT
