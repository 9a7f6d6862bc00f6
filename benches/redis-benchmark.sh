#!/usr/bin/env bash
# SET and GET by redis-benchmark against a running lab, with the CPU that the server processes of all nodes
# spent per operation (user + system, from the kernel's accounting). CPU per operation is what a noisy machine
# spoils least.
#
#   cargo run --release -- lab          # in one terminal
#   benches/redis-benchmark.sh          # in another; needs redis-benchmark (Debian: redis-tools)
#
# Environment: PORT (7101), CLIENTS (50), OPS (200000), PIPELINES ("1 16"), TESTS ("set get").
set -euo pipefail
port=${PORT:-7101} clients=${CLIENTS:-50} ops=${OPS:-200000}
command -v redis-benchmark >/dev/null || { echo "redis-benchmark is missing (Debian: apt install redis-tools)" >&2; exit 1; }
pids=$(pgrep -f 'mydatastore serve' || true)
[ -n "$pids" ] || { echo "no node is running: start one with 'cargo run --release -- lab'" >&2; exit 1; }
hertz=$(getconf CLK_TCK)

# User and system time of all nodes, in clock ticks.
ticks() {
    local total=0 stat
    for pid in $pids; do
        stat=$(sed 's/.*) //' "/proc/$pid/stat")
        # shellcheck disable=SC2086
        set -- $stat
        total=$((total + ${12} + ${13}))
    done
    echo "$total"
}

printf '%-6s %-9s %12s %10s %10s %14s\n' test pipeline ops/s 'p50 ms' 'p99 ms' 'CPU us/op'
for pipeline in ${PIPELINES:-1 16}; do
    for test in ${TESTS:-set get}; do
        n=$((pipeline > 1 ? ops * 4 : ops))
        before=$(ticks)
        line=$(redis-benchmark -p "$port" -c "$clients" -d 100 -r 100000 -n "$n" -P "$pipeline" -t "$test" --csv | tail -1)
        after=$(ticks)
        IFS=, read -r _ rps _ _ p50 _ p99 _ <<<"${line//\"/}"
        us=$(awk "BEGIN { printf \"%.1f\", ($after - $before) / $hertz * 1e6 / $n }")
        printf '%-6s %-9s %12.0f %10s %10s %14s\n' "$test" "$pipeline" "$rps" "$p50" "$p99" "$us"
    done
done
