# One Elasticsearch node, fetched from Maven's registry: the small form that its makers publish for integration tests. It lacks
# painless and the by-query calls, and what answers `GET /`, which the plugin beside this file does. Without TLS and users.
ELASTICSEARCH_PORT=$((PORT + 41))
ELASTICSEARCH_URL=http://127.0.0.1:$ELASTICSEARCH_PORT
ELASTICSEARCH_DATA=$DIR/elasticsearch
ELASTICSEARCH_FILES=$HERE/engines/elasticsearch

elasticsearch_version=$(sed -n 's:.*<elasticsearch\.version>\(.*\)</.*:\1:p' "$ELASTICSEARCH_FILES/pom.xml")
# Named after what goes into it, so that another version never alters one in use. It outlives `down`.
elasticsearch_home=${XDG_CACHE_HOME:-$HOME/.cache}/nexxus/elasticsearch-$elasticsearch_version-$(
  cat "$ELASTICSEARCH_FILES"/* | sha256sum | cut -c1-12)

install() {
  local missing=()
  command -v mvn >/dev/null || missing+=(maven)
  command -v javac >/dev/null || missing+=(openjdk-17-jdk-headless)
  command -v curl >/dev/null || missing+=(curl)
  [ ${#missing[@]} = 0 ] || packages "${missing[@]}"
  mkdir -p "$(dirname "$elasticsearch_home")"
  exec 9>"$elasticsearch_home.lock"
  flock 9
  [ -d "$elasticsearch_home" ] || fetch_elasticsearch
  exec 9>&-
}

fetch_elasticsearch() {
  local part=$elasticsearch_home.part
  local server=$part/elasticsearch-$elasticsearch_version
  local plugin=$server/plugins/nexxus-tests-root
  say "fetching Elasticsearch $elasticsearch_version with Maven"
  rm -rf "$part"
  mkdir -p "$part/classes"
  mvn -B -ntp -q -C -f "$ELASTICSEARCH_FILES/pom.xml" -Dinstall.dir="$part" process-resources >&2
  javac --release 17 -cp "$server/lib/*" -d "$part/classes" "$ELASTICSEARCH_FILES"/*.java
  mkdir -p "$plugin"
  jar --create --file "$plugin/root.jar" -C "$part/classes" .
  printf '%s\n' >"$plugin/plugin-descriptor.properties" name=nexxus-tests-root description=root \
    "version=$elasticsearch_version" "elasticsearch.version=$elasticsearch_version" java.version=17 \
    classname=nexxus.tests.RootPlugin
  mv "$server" "$elasticsearch_home"
  rm -rf "$part"
}

elasticsearch_is_up() {
  curl --noproxy '*' -fsS -m 5 "$ELASTICSEARCH_URL/_cluster/health?wait_for_status=yellow&timeout=4s"
}

elasticsearch_runs() {
  [ -f "$ELASTICSEARCH_DATA/pid" ] && kill -0 "$(cat "$ELASTICSEARCH_DATA/pid")" 2>/dev/null
}

start() {
  elasticsearch_runs && return
  local as_user=()
  # It refuses to run as root: in a name space of its own root has another number.
  [ "$(id -u)" != 0 ] || as_user=(unshare --user --map-user=1000 --map-group=1000 --)
  mkdir -p "$ELASTICSEARCH_DATA"/{config,data,logs,tmp}
  rm -f "$ELASTICSEARCH_DATA/pid"
  cp "$elasticsearch_home/config/log4j2.properties" "$ELASTICSEARCH_DATA/config/"
  grep -vE 'Xms|Xmx|Xlog:gc|Xloggc|HeapDump|ErrorFile' "$elasticsearch_home/config/jvm.options" \
    >"$ELASTICSEARCH_DATA/config/jvm.options"
  cat >"$ELASTICSEARCH_DATA/config/elasticsearch.yml" <<YAML
discovery.type: single-node
path.data: '$ELASTICSEARCH_DATA/data'
path.logs: '$ELASTICSEARCH_DATA/logs'
http.host: 127.0.0.1
http.port: $ELASTICSEARCH_PORT
transport.host: 127.0.0.1
transport.port: $((ELASTICSEARCH_PORT + 1))
xpack.security.enabled: false
# A developer's full disk must not turn indices read-only in the middle of a test.
cluster.routing.allocation.disk.threshold_enabled: false
# The tests make many small indices at once.
cluster.max_shards_per_node: 5000
YAML
  local log=$ELASTICSEARCH_DATA/logs/console.log
  # With -d it returns once the server has started.
  timeout --kill-after=30 180 "${as_user[@]}" env -u JAVA_HOME -u JAVA_OPTS -u JAVA_TOOL_OPTIONS \
    ES_JAVA_HOME="$(dirname "$(dirname "$(readlink -f "$(command -v javac)")")")" \
    ES_PATH_CONF="$ELASTICSEARCH_DATA/config" ES_TMPDIR="$ELASTICSEARCH_DATA/tmp" \
    ES_JAVA_OPTS="-Xms512m -Xmx512m -XX:ErrorFile=$ELASTICSEARCH_DATA/logs/hs_err_pid%p.log" \
    setsid --wait "$elasticsearch_home/bin/elasticsearch" -d -p "$ELASTICSEARCH_DATA/pid" </dev/null >"$log" 2>&1 ||
    { tail -n 20 "$log" >&2; fail "elasticsearch did not start: see $log"; }
  wait_for 120 elasticsearch_is_up
  echo "export NEXXUS_TEST_ELASTICSEARCH=$ELASTICSEARCH_URL"
}

stop() {
  end_process "$ELASTICSEARCH_DATA/pid"
  rm -rf "$ELASTICSEARCH_DATA"
}
