# What `up`, `down` and the engines share. An engine is a file of engines/ with three functions: `install` (nothing where it is
# installed), `start` (returns when it is ready, does nothing where it runs) and `stop`.
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PORT=${NEXXUS_CLUSTER_PORT:-26000}
DIR=${NEXXUS_CLUSTER_DIR:-${TMPDIR:-/tmp}/nexxus-cluster-$PORT}
mkdir -p "$DIR"

say() { printf 'cluster: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# The engines that are named, or all.
engines() {
  if [ $# -gt 0 ]; then printf '%s\n' "$@"; else basename -a -s .sh "$HERE"/engines/*.sh; fi
}

# Installs packages of the operating system, as root or by sudo.
packages() {
  local as_root=""
  [ "$(id -u)" = 0 ] || as_root=sudo
  $as_root apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $as_root apt-get install -qq -y --no-install-recommends "$@" >/dev/null
}

# Waits until a command succeeds: wait_for SECONDS COMMAND…
wait_for() {
  local until=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $until ] || fail "not ready in time: $*"
    sleep 0.2
  done
}

# Stops the process of a pid file, and waits until it is gone.
end_process() {
  local pid
  [ -f "$1" ] || return 0
  pid=$(cat "$1")
  kill "$pid" 2>/dev/null || true
  wait_for 30 bash -c "! kill -0 $pid"
  rm -f "$1"
}
