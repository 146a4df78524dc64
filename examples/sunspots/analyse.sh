#!/bin/sh
# The LSTM of train.py on the series it was trained on: before training, after, and as JSON.
#
#     sh examples/sunspots/analyse.sh
set -eu
cd "$(dirname "$0")"

echo "--- before training"
gradscope analyze untrained.safetensors --inputs sunspots.npy --quiet
echo "--- after training"
gradscope analyze lstm.safetensors --inputs sunspots.npy
echo "--- after training, as JSON (verdict, horizon, shares)"
gradscope analyze lstm.safetensors --inputs sunspots.npy --json |
    python3 -c 'import json, sys
a = json.load(sys.stdin)
print(json.dumps({"level": a["verdict"]["level"], "horizon": a["chains"][0]["horizon"], "shares": a["shares"]}))'
