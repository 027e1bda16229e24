# Redis Cluster: three masters without replicas, set up as redis.sh does it.
REDIS_CLUSTER_PORTS="$((PORT + 11)) $((PORT + 12)) $((PORT + 13))"

install() { command -v redis-server >/dev/null || packages redis-server redis-tools; }

start() {
  local first=${REDIS_CLUSTER_PORTS%% *} port dir
  is_whole "$first" && return 0
  for port in $REDIS_CLUSTER_PORTS; do
    dir=$DIR/redis-cluster/$port
    redis-cli -p "$port" ping >/dev/null 2>&1 && continue
    mkdir -p "$dir"
    redis-server --daemonize yes --bind 127.0.0.1 --port "$port" --cluster-port $((port + 10)) --cluster-enabled yes --cluster-node-timeout 2000 \
      --dir "$dir" --pidfile "$dir/pid" --logfile "$dir/log" --appendonly yes --appendfsync always --maxmemory-policy noeviction --save ""
    wait_for 20 redis-cli -p "$port" ping
  done
  if [ ! -f "$DIR/redis-cluster/made" ]; then
    # shellcheck disable=SC2046 # One word for each node.
    redis-cli --cluster create $(printf '127.0.0.1:%s ' $REDIS_CLUSTER_PORTS) --cluster-yes >"$DIR/redis-cluster/create.log" 2>&1 \
      || fail "the cluster was not made: $(tail -3 "$DIR/redis-cluster/create.log")"
    touch "$DIR/redis-cluster/made"
  fi
  for port in $REDIS_CLUSTER_PORTS; do wait_for 30 is_whole "$port"; done
  echo "export NEXXUS_TEST_REDIS_CLUSTER=redis://127.0.0.1:$first"
}

is_whole() { redis-cli -p "$1" cluster info 2>/dev/null | grep -q '^cluster_state:ok'; }

stop() {
  local port
  for port in $REDIS_CLUSTER_PORTS; do end_process "$DIR/redis-cluster/$port/pid"; done
  rm -rf "$DIR/redis-cluster"
}
