#!/usr/bin/env bash
# A small version of each benchmark, with no hub. Interrupted, it goes on where it was: finished cells
# are kept in results/small. Most need real data: STAT_PRUNE_DATA.
#
#   benchmarks/small.sh PYTHON
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python}
results=results/small
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

"$python" benchmarks/linalg.py --quick --output "$results/linalg" || echo "linalg: a bar was missed"
"$python" benchmarks/speed.py --layers 2 --samples 128 --shape 1x64 --shape 8x64 \
  --output "$results/speed"
if [ -z "${STAT_PRUNE_DATA:-}" ]; then
  echo "glue, squad and wikitext2 need real data: set STAT_PRUNE_DATA"
  exit
fi

data=$STAT_PRUNE_DATA/data
common=(--method stat --method magnitude --budget 0.8 --budget 0.6 --samples 128)
encoder=$("$python" -c "from stat_prune.cli.demo.demo_data import find_sentence_encoder as f; print(f())")
train=$(ls "$data"/squad/train* | head -n 1)

"$python" benchmarks/glue.py --task sst2 --limit 200 "${common[@]}" --output "$results/glue"
[ -d "$results/minilm-squad" ] || "$python" benchmarks/finetune.py squad --model "$encoder" \
  --data "$train" --limit 256 --epochs 1 --batch-size 16 --max-seq-length 192 --stride 32 \
  --learning-rate 1e-4 --freeze-embeddings --output "$results/minilm-squad"
"$python" benchmarks/squad.py --model "$results/minilm-squad" --limit 100 --max-seq-length 192 \
  --stride 32 "${common[@]}" --output "$results/squad"
[ -d "$results/llama" ] || "$python" benchmarks/finetune.py wikitext2 --from-scratch \
  --text "$data/wikitext2/train_1000_paragraphs.json" --hidden-size 128 --layers 2 \
  --vocabulary 1024 --context-length 128 --epochs 1 --output "$results/llama"
"$python" benchmarks/wikitext2.py --model "$results/llama" --limit 200 "${common[@]}" \
  --output "$results/wikitext2"
"$python" benchmarks/continuations.py "$data/wikitext2/test.txt" --limit 100 \
  --output "$results/continuations"
"$python" benchmarks/zero_shot.py --model "$results/llama" --include "$results/continuations" \
  --task continuations --context-length 128 "${common[@]}" --output "$results/zero_shot"
