#!/usr/bin/env bash
# Runs a command against a Garage of one node on this machine: a real S3 server with signatures and
# checksums, without If-None-Match, versions and object lock.
#
#   tests/s3/garage.sh cargo test --release --test storage_conformance s3 -- --nocapture
#
# GARAGE names the program. Without it, `garage` of the path is taken, or built into target/garage:
#   cargo install garage --version 2.5.0 --locked --root target/garage
# Nothing is left behind; the command sees DISKVAULT_S3_ENDPOINT, AWS_ACCESS_KEY_ID,
# AWS_SECRET_ACCESS_KEY and AWS_REGION.
set -euo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)

garage=${GARAGE:-$(command -v garage || true)}
if [ -z "$garage" ]; then
    garage=$top/target/garage/bin/garage
    [ -x "$garage" ] || cargo install garage --version 2.5.0 --locked --root "$top/target/garage"
fi

folder=$(mktemp -d)
free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
api=$(free_port)
rpc=$(free_port)
cat >"$folder/garage.toml" <<EOF
metadata_dir = "$folder/meta"
data_dir = "$folder/data"
db_engine = "sqlite"
replication_factor = 1
rpc_bind_addr = "127.0.0.1:$rpc"
rpc_public_addr = "127.0.0.1:$rpc"
rpc_secret = "$(printf '5a%.0s' $(seq 32))"
[s3_api]
s3_region = "garage"
api_bind_addr = "127.0.0.1:$api"
EOF
run() {
    "$garage" -c "$folder/garage.toml" "$@"
}
run server >"$folder/log" 2>&1 &
server=$!
trap 'kill $server; wait $server 2>/dev/null || true; rm -rf "$folder"' EXIT

for _ in $(seq 100); do
    if run status >/dev/null 2>&1; then
        break
    fi
    sleep 0.1
done
node=$(run node id -q 2>/dev/null | cut -d@ -f1)
run layout assign -z here -c 10G "$node" >/dev/null 2>&1
run layout apply --version 1 >/dev/null 2>&1
run key create test >"$folder/key" 2>/dev/null
run key allow --create-bucket test >/dev/null 2>&1
export DISKVAULT_S3_ENDPOINT=http://127.0.0.1:$api AWS_REGION=garage
AWS_ACCESS_KEY_ID=$(awk '/Key ID/ { print $NF }' "$folder/key")
AWS_SECRET_ACCESS_KEY=$(awk '/Secret/ { print $NF }' "$folder/key")
export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
"$@"
