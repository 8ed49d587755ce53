#!/usr/bin/env bash
# The set-up of the paper's Tables II, IV, V and VI on labelled clips of one's own.
#
# bench/paper_tables.sh CORPUS OUTPUT [flags of pipelines.separate]
#
# CORPUS/manifest.csv names the clips: path, caption, split. Example clips come from the split train,
# mixtures from the split test. LIMIT (120) bounds the pairs, DATASET names them. Run again, it
# goes on where it was stopped.
set -euo pipefail
corpus=$1
output=$2
shift 2
python=${PYTHON:-python}
dataset=${DATASET:-$(basename "$corpus")}
lists=$output/lists
mkdir -p "$output/manifests"
"$python" -m manifests.benchmarks.own_lists --clips "$corpus/manifest.csv" --output "$lists" \
  --limit "${LIMIT:-120}" --shots 10

runs=()
# NAME COMMAND [flags]: builds the manifest of a setting and separates it.
setting() {
  local name=$1 command=$2 manifest=$output/manifests/$1.parquet
  shift 2
  "$python" -m manifests.benchmarks "$command" --pairs "$lists/pairs.csv" \
    --samples "$lists/samples.csv" --audio_root "$corpus" --dataset "$dataset" \
    --output "$manifest" "$@"
  "$python" -m pipelines.separate --manifest "$manifest" --output "$output/runs/$name" --resume \
    "${separate_flags[@]}"
  runs+=("$output/runs/$name")
}

separate_flags=("$@")
setting text_p_n pairs --polarity P+N
setting text_p pairs --polarity P
setting text_n pairs --polarity N
setting audio_1_shot pairs --query audio --shots 1
setting audio_5_shots pairs --query audio --shots 5
setting audio_10_shots pairs --query audio --shots 10
setting audio_and_text_10_shots pairs --query both --shots 10
setting sources multisource
setting levels input_sdr
"$python" -m pipelines.report "${runs[@]}" --output "$output/report" --listen 0
