#!/usr/bin/env bash
# `make demo-private`: digits that servers cannot read, by homomorphic encryption and by three
# parties. The three would be three operators; here they are three processes.
set -euo pipefail
cd "$(dirname "$0")/.."
export MARSHIP_HOME="$PWD/.marship/demo-private"
export OMP_NUM_THREADS=1   # the networks are small: threads would only wait for each other
keys=.marship/demo-private-keys

[ -t 1 ] && accent=$'\033[1;36m' plain=$'\033[0m' || accent='' plain=''
step() { printf '\n%s$ %s%s\n' "$accent" "$*" "$plain"; "$@"; }
parties=()
finish() {
    marship stop >/dev/null 2>&1 || true
    [ ${#parties[@]} -eq 0 ] || kill "${parties[@]}" 2>/dev/null || true
}
trap finish EXIT

# Runs party 1 or 2 in the background, and waits until it listens.
begin_party() {
    local archive="model_store/digits-mpc.party$1.mar" log="$keys/party$1.log"
    printf '\n%s$ marship party %s --key %s &%s\n' "$accent" "$archive" "$keys/party$1.key" "$plain"
    marship party "$archive" --key "$keys/party$1.key" >"$log" 2>&1 &
    parties+=($!)
    until grep '^party' "$log"; do
        kill -0 "${parties[-1]}" || { cat "$log"; exit 1; }
        sleep 0.2
    done
}

marship stop >/dev/null 2>&1 || true   # left over from an earlier demo, if any
rm -rf "$keys"

printf '\nThe first way: a network with squares, asked under homomorphic encryption\n'
step python training/digits.py --activation square --epochs 20 --run-dir runs/digits-square
step marship export runs/digits-square --private he
step marship package runs/digits-square --private he --name digits-he

printf '\nThe second way: a network with ReLU, cut in shares for three parties\n'
step python training/digits.py --epochs 20 --run-dir runs/digits-relu
step marship export runs/digits-relu --private mpc
read -r first second < <(python - <<'PORTS'
import socket
with socket.socket() as one, socket.socket() as two:
    for each in (one, two):
        each.bind(("127.0.0.1", 0))
    print(one.getsockname()[1], two.getsockname()[1])
PORTS
)
step marship party-keys 0 --out "$keys"
step marship party-keys 1 --address "127.0.0.1:$first" --out "$keys"
step marship party-keys 2 --address "127.0.0.1:$second" --out "$keys"
step marship package runs/digits-relu --private mpc --name digits-mpc \
    --party "$keys/party0.card.json" --party "$keys/party1.card.json" --party "$keys/party2.card.json"

printf '\nBoth are served; parties 1 and 2 run beside the server, which is party 0\n'
begin_party 1
begin_party 2
MARSHIP_PARTY_KEY="$PWD/$keys/party0.key" step marship serve --detach --free-ports
step marship register digits-he --workers 1
step marship register digits-mpc.party0.mar
step python demos/ask_private.py
step marship stop

printf '\nFiles:\n'
printf '  %-38s %s\n' \
    model_store/digits-he.mar "the encrypted way: a plan, no ONNX file, no keys" \
    model_store/digits-he.client.json "what its clients need, without weights" \
    'model_store/digits-mpc.party[012].mar' "shares of the weights, sealed for each operator" \
    model_store/digits-mpc.client.json "what its clients need: whom to seal for" \
    .marship/demo-private/logs/ "the server's logs: look for a picture in them"
