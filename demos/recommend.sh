#!/usr/bin/env bash
# `make demo`: the README's path by hand, on a server separate from any other.
set -euo pipefail
cd "$(dirname "$0")/.."
export MARSHIP_HOME="$PWD/.marship/demo"

[ -t 1 ] && accent=$'\033[1;36m' plain=$'\033[0m' || accent='' plain=''
step() { printf '\n%s$ %s%s\n' "$accent" "$*" "$plain"; "$@"; }
trap 'marship stop >/dev/null 2>&1 || true' EXIT

step python training/recommend.py
step marship export runs/recommend
step marship optimize runs/recommend
step marship package runs/recommend
marship stop >/dev/null 2>&1 || true   # left over from an earlier demo, if any
step marship serve --detach --free-ports
step marship register recommend --workers 1

printf '\nA user in the data rated these films, the latest last:\n'
python - <<'FILMS'
import json
items = json.load(open("runs/recommend/items.json"))
for item in json.load(open("runs/recommend/request.json"))["history"][-8:]:
    print("  ", items[str(item)]["title"])
FILMS
step marship predict recommend runs/recommend/request.json
step marship scale recommend 2
step marship predict recommend runs/recommend/request.json
step marship status
step marship stop

printf '\nFiles:\n'
printf '  %-32s %s\n' \
    runs/recommend/ "the model, its curve, its metrics, the parity proof, the variants" \
    runs/recommend/optimize.png "the variants, measured" \
    model_store/recommend.mar "the archive; look inside: marship inspect model_store/recommend.mar" \
    .marship/demo/logs/ "the server's and the workers' logs"
