#!/usr/bin/env bash
# Shows that repeats are answered from the cache: curl_test_caching.sh [http://localhost:30001]
# Ends with an error when they are not.
set -euo pipefail
url=${1:-http://localhost:30001}
prompt="A prompt that nobody has sent before: $(date +%s%N) $$"

expect() { # expect KIND N: sends the prompt, and checks X-Cache
  local kind=$1 n=$2 got
  got=$(curl -sS --fail-with-body -o /dev/null -w '%header{x-cache}' "$url/generate" \
    -H 'Content-Type: application/json' \
    -d "{\"text\": \"$prompt\", \"sampling_params\": {\"max_new_tokens\": 8, \"n\": $n}}")
  echo "n=$n: $got"
  [[ $got == "$kind" ]] || { echo "expected $kind"; exit 1; }
}

expect MISS 1    # generated
expect HIT 1     # from the cache
expect PARTIAL 3 # one from the cache, two generated
expect HIT 3
expect HIT 2
echo "caching works"
