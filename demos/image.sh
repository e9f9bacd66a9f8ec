#!/usr/bin/env bash
# `make demo-image`: a pretrained tagger and a pretrained moderator, served; nothing is trained.
set -euo pipefail
cd "$(dirname "$0")/.."
export MARSHIP_HOME="$PWD/.marship/demo-image"

[ -t 1 ] && accent=$'\033[1;36m' plain=$'\033[0m' || accent='' plain=''
step() { printf '\n%s$ %s%s\n' "$accent" "$*" "$plain"; "$@"; }
trap 'marship stop >/dev/null 2>&1 || true' EXIT

printf 'A tagger: EfficientNet-Lite0, as it was published\n'
step python training/tagger.py
step marship export runs/tagger
step marship optimize runs/tagger
step marship package runs/tagger
marship stop >/dev/null 2>&1 || true   # left over from an earlier demo, if any
step marship serve --detach --free-ports
step marship register tagger --workers 1
step marship predict tagger runs/tagger/photographs --again --out runs/tagger/tags.csv

printf '\nA moderator: an ONNX file that marship did not export, with thresholds as settings\n'
step python training/moderator.py
step marship package runs/moderator/open-nsfw.onnx --name moderator \
    --handler handlers/moderate_handler.py --option review=0.4 --option block=0.8
step marship register moderator --workers 1
step marship predict moderator runs/tagger/photographs --again --out runs/moderator/verdicts.csv

printf '\nA stricter version: the same model with a lower threshold for review\n'
step marship configure model_store/moderator.mar review=0.02 --version 1.1
step marship register moderator --workers 1
step marship set-default moderator 1.1
step marship predict moderator runs/tagger/photographs --again --out runs/moderator/verdicts.csv
step marship stop

printf '\nFiles:\n'
printf '  %-40s %s\n' \
    runs/tagger/ "the model, its labels, the parity proof, the variants" \
    runs/tagger/optimize.png "the variants, measured" \
    runs/tagger/tags.csv "the tags" \
    runs/moderator/verdicts.csv "the verdicts" \
    model_store/ "the archives; look inside: marship inspect model_store/tagger.mar"
