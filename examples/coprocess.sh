#!/usr/bin/env bash
# Score images one by one from another language: start `declip score - -0 --format jsonl` once, write a path and a zero
# byte to its standard input, read one line of JSON from its standard output: image, scores, error, and in scored_with what
# made them, to be stored beside them. The model is loaded only once.
#
# bash examples/coprocess.sh a.jpg b.jpg
#
# DECLIP holds the command and its options, should they differ from the default.
set -euo pipefail

coproc SCORER { ${DECLIP:-declip score} - -0 --format jsonl; }
pid=$SCORER_PID

for image in "$@"; do
    printf '%s\0' "$image" >&"${SCORER[1]}"
    IFS= read -r answer <&"${SCORER[0]}" # answered before the next path is sent
    printf '%s\n' "$answer"
done

exec {SCORER[1]}>&- # the end of its input ends the scorer
status=0
wait "$pid" || status=$? # 0 all scored, 1 some failed
exit "$status"
