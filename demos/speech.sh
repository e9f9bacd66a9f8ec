#!/usr/bin/env bash
# `make demo-speech`: Whisper, and its encoder fine-tuned on spoken digits, both served.
#
# Whisper transcribes recordings from packages of Debian or Ubuntu, which are installed or
# downloaded. The other model is fine-tuned on the Free Spoken Digit Dataset, if MARSHIP_FSDD
# names its folder, else on espeak-ng's voices.
set -euo pipefail
cd "$(dirname "$0")/.."
export MARSHIP_HOME="$PWD/.marship/demo-speech"

[ -t 1 ] && accent=$'\033[1;36m' plain=$'\033[0m' || accent='' plain=''
step() { printf '\n%s$ %s%s\n' "$accent" "$*" "$plain"; "$@"; }
trap 'marship stop >/dev/null 2>&1 || true' EXIT

packages=(pocketsphinx-testdata tuxpaint-stamps-default
          asterisk-core-sounds-en asterisk-core-sounds-en-wav)
english=data/read-english

# Unpacks the packages below data/debian: nothing is installed, and root is not needed.
fetch_packages() {
    [ ! -e data/debian/done ] || return 0
    printf '\ndownloading recordings: 180 MB of packages, unpacked below data/debian\n'
    mkdir -p data/debian/packages
    for package in "${packages[@]}"; do
        # avoids apt's warning, as root, that its own user cannot write here
        (cd data/debian/packages &&
            apt-get download --quiet=2 --option APT::Sandbox::User=root "$package") || return 1
        dpkg-deb --extract data/debian/packages/"${package}"_*.deb data/debian || return 1
    done
    touch data/debian/done
}

# Digits in five synthetic voices, with the data set's file names.
speak_digits() {
    [ ! -e "$1/done" ] || return 0
    local words=(zero one two three four five six seven eight nine) voice digit index
    mkdir -p "$1"
    for voice in en-us en-gb en-gb-scotland en-gb-x-rp en-029; do
        for digit in "${!words[@]}"; do
            for index in {0..11}; do
                espeak-ng -v "$voice+m$((index % 7 + 1))" -p $((25 + 5 * index)) \
                    -s $((120 + 9 * index)) -w "$1/${digit}_${voice//-/}_$index.wav" \
                    "${words[digit]}"
            done
        done
    done
    touch "$1/done"
}

transcribe_english() {
    step python training/read_english.py --root "$1"
    step python training/ctranslate2_whisper.py
    step python training/whisper.py --model runs/whisper-tiny.en
    step marship export runs/whisper
    step marship package runs/whisper
    step marship register whisper --workers 1
    step marship predict whisper $english/librivox/sense_and_sensibility_01_austen_64kb-0870.wav
    step marship predict whisper $english/{librivox,cards,sphinx,prompts/vm-*} --again \
        --out runs/whisper/predictions.jsonl --in-flight 1 --as srt --as vtt
    step python training/compare_transcripts.py runs/whisper/predictions.jsonl --data-dir $english --english
    step marship unregister whisper
}

learn_digits() {
    local recordings=$1 fifth=$2
    shift 2
    rm -rf data/digits
    step python training/spoken_digits.py "$recordings" --out data/digits --leave-out "$fifth" \
        --utterances 1500 --passes 1 "$@"
    step python training/speech.py --data-dir data/digits --sample-rate 8000 --epochs 3 --again
    step marship export runs/speech
    step marship package runs/speech
    step marship register speech --workers 1
    step marship predict speech data/digits/test/"$fifth"-* --again \
        --out runs/speech/predictions.jsonl --in-flight 1
    step python training/compare_transcripts.py runs/speech/predictions.jsonl --data-dir data/digits/test
}

marship stop >/dev/null 2>&1 || true   # left over from an earlier demo, if any
step marship serve --detach --free-ports

printf '\nA pretrained model: Whisper tiny.en on read English\n'
if dpkg --status "${packages[@]}" >/dev/null 2>&1; then
    transcribe_english /
elif fetch_packages; then
    transcribe_english data/debian
else
    printf 'skipped: its recordings are in packages of Debian and Ubuntu, %s\n' "${packages[*]}"
fi

printf '\nYour own model: digits, fine-tuned in some minutes on four voices, tested on a fifth\n'
if [ -n "${MARSHIP_FSDD:-}" ]; then
    learn_digits "$MARSHIP_FSDD" theo
elif command -v espeak-ng >/dev/null; then
    printf 'MARSHIP_FSDD is not set: using synthetic voices of espeak-ng\n'
    speak_digits data/spoken
    learn_digits data/spoken en029 --synthetic 0
else
    printf 'skipped: set MARSHIP_FSDD to a folder of recordings, or install espeak-ng\n'
fi
step marship stop

printf '\nFiles, as far as they were written:\n'
printf '  %-32s %s\n' \
    runs/whisper/ "Whisper and its parity proof" \
    runs/whisper/predictions.transcripts/ "subtitles of each recording" \
    runs/speech/ "the trained model, its curve, its metrics" \
    data/digits/ "its training and test data" \
    model_store/ "the archives; look inside: marship inspect model_store/speech.mar"
