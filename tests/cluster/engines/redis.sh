# Redis 7, one server, as the registry and the change log need it: everything written is on disk before it is confirmed.
REDIS_PORT=$((PORT + 1))

install() { command -v redis-server >/dev/null || packages redis-server redis-tools; }

start() {
  local dir=$DIR/redis
  redis-cli -p "$REDIS_PORT" ping >/dev/null 2>&1 && return 0
  mkdir -p "$dir"
  redis-server --daemonize yes --bind 127.0.0.1 --port "$REDIS_PORT" --dir "$dir" --pidfile "$dir/pid" --logfile "$dir/log" \
    --appendonly yes --appendfsync always --maxmemory-policy noeviction --save ""
  wait_for 20 redis-cli -p "$REDIS_PORT" ping
  echo "export NEXXUS_TEST_REDIS=redis://127.0.0.1:$REDIS_PORT"
}

stop() {
  end_process "$DIR/redis/pid"
  rm -rf "$DIR/redis"
}
