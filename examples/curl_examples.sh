#!/usr/bin/env bash
# The three cached APIs with curl, against a running proxy: curl_examples.sh [http://localhost:30001]
# Ends with an error when an answer is not what it should be.
set -euo pipefail
url=${1:-http://localhost:30001}

ask() { # ask PATH BODY: prints how much came from the cache, and the answer
  echo "== POST $1  $2"
  local answer
  answer=$(curl -sS --fail-with-body -w '\n%header{x-cache}' "$url$1" -H 'Content-Type: application/json' -d "$2")
  echo "[${answer##*$'\n'}] ${answer%$'\n'*}"
}

ask /generate '{"text": "The sea is", "sampling_params": {"max_new_tokens": 8}}'
ask /generate '{"text": "The sea is", "sampling_params": {"max_new_tokens": 8, "n": 3}}'
ask /generate '{"text": ["The sea is", "The sky is"], "sampling_params": {"max_new_tokens": 8}}'
ask /v1/completions '{"model": "default", "prompt": "The sea is", "max_tokens": 8}'
ask /v1/chat/completions '{"model": "default", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}'

echo "== GET /cache/stats"
curl -sS --fail-with-body "$url/cache/stats"
echo
echo "== GET /health"
curl -sS --fail-with-body "$url/health"
echo
