#!/usr/bin/env bash
# What only a GPU can show, in ten minutes at most on one H200: plans and weights beside the CPU's,
# speed-ups at half of the MACs, eager and compiled, a model of 7B's shape in bfloat16 pruned (with one
# plain forward beside), and the tests of dispatched models. Records, tables and logs are in --output;
# gpu.md there has all tables, for docs/results.md. Run again, it goes on at the first missing record.
#
#   benchmarks/gpu.sh [--python PYTHON] [--wheels FOLDER] [--output FOLDER]
#   benchmarks/gpu.sh --device cpu --tiny       # to try the script itself, without a GPU
#
# --wheels makes an environment from a folder of wheels (gpu-requirements.txt). Real models and data
# are compared where STAT_PRUNE_DATA names their folder; else a model of random weights is.
set -uo pipefail
cd "$(dirname "$0")/.."
python=$(command -v python || command -v python3) device=cuda tiny= wheels= output=results/gpu
while [ $# -gt 0 ]; do
  case $1 in
    --tiny) tiny=yes; shift; continue ;;
    --python | --device | --wheels | --output)
      [ $# -gt 1 ] || { echo "$1 needs a value" >&2; exit 2; }
      declare "${1#--}=$2"; shift 2 ;;
    *) echo "unknown option $1; see the head of $0" >&2; exit 2 ;;
  esac
done
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONPATH="$PWD:$PWD/benchmarks"
mkdir -p "$output"
SECONDS=0 limit=600 failed=0

if [ -n "$wheels" ]; then
  [ -x build/gpu/bin/python ] || "$python" -m venv build/gpu
  build/gpu/bin/python -m pip install --quiet --no-index --find-links "$wheels" \
    -r benchmarks/gpu-requirements.txt || exit 1
  python=build/gpu/bin/python
fi
"$python" - "$device" <<'PYTHON' || exit 1
import sys

import torch

print("torch", torch.__version__, "CUDA", torch.version.cuda)
if sys.argv[1] == "cuda":
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU. To try the script without one: --device cpu --tiny")
    print(torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory >> 30, "GiB")
PYTHON

# step NAME SECONDS COMMAND...: stopped when its time or that of all is over; the next go on.
step() {
  local name=$1 most=$2 left=$((limit - SECONDS)) start=$SECONDS code=0
  shift 2
  [ "$most" -le "$left" ] || most=$left
  if [ "$most" -lt 10 ]; then
    echo "== $name: no time left"; failed=1
    return
  fi
  echo "== $name (at most $most s)"
  timeout --signal=INT --kill-after=10 "$most" "$@" >"$output/$name.log" 2>&1 || code=$?
  tail -n 25 "$output/$name.log"
  echo "== $name: exit code $code after $((SECONDS - start)) s"
  [ "$code" -eq 0 ] || failed=1
}

if [ -n "$tiny" ]; then
  random=(--weights tiny-llama --samples 48 --length 16 --repeats 1 --rounds 2 --budget 0.5)
  shapes=(--shape 2x16) large=("${random[@]}" --dtype bfloat16)
else
  random=(--weights bert-base --dtype bfloat16 --samples 128 --repeats 1 --rounds 30 --budget 0.5 --round-to 64)
  shapes=(--shape 1x128 --shape 32x128)
  large=(--weights llama-7b --dtype bfloat16 --samples 64 --length 512 --repeats 1 --budget 0.8)
fi
tests=(tests/contract/test_dispatched.py -k gpu) compared=(--task tiny)
if [ -z "$tiny" ] && [ -n "${STAT_PRUNE_DATA:-}" ]; then
  compared=(--task stories --task reactions --task encoder --task mrpc)
fi

step agreement 120 "$python" benchmarks/agreement.py --device "$device" "${compared[@]}" \
  --output "$output/agreement"
step eager 60 "$python" benchmarks/speed.py --device "$device" "${random[@]}" "${shapes[@]}" \
  --mode eager --output "$output/speed-eager"
step compiled 100 "$python" benchmarks/speed.py --device "$device" "${random[@]}" "${shapes[@]}" \
  --mode compiled --no-pruning --output "$output/speed-compiled"
step dispatched 60 "$python" -m pytest -q -p no:cacheprovider "${tests[@]}"
# A quarter of the layers first: should all of them take too long, there is a figure.
[ -n "$tiny" ] || step quarter 60 "$python" benchmarks/speed.py --device "$device" "${large[@]}" \
  --layers 8 --no-forwards --output "$output/quarter"
step large 600 "$python" benchmarks/speed.py --device "$device" "${large[@]}" \
  --no-forwards --output "$output/large"

find "$output" -mindepth 2 -name '*.md' | sort | while read -r table; do
  printf '%s\n\n' "$(cat "$table")"
done >"$output/gpu.md"
echo "tables: $output/gpu.md; $SECONDS s in all"
exit "$failed"
