#!/usr/bin/env bash
# uvicorn 0.54.0: after SIGTERM nothing behind uvicorn.run() happens, no finally and no atexit either;
# after SIGINT all of it does.
#
# The server stops in good order at both, its lifespan too. Then it raises the signal once more for
# whoever handled it before: Ctrl-C's KeyboardInterrupt is caught in run(), SIGTERM kills by default.
# Seen: "finally" and "atexit" are printed and the status is 0 after SIGINT; after SIGTERM neither, and
# -15. With a handler of SIGTERM that does nothing, set before run(), both are the same.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check uvicorn==0.54.0
cd "$work"
cat > served.py <<'PYTHON'
import atexit
import signal
import sys

import uvicorn


async def app(scope, receive, send):
    assert scope["type"] == "lifespan"
    await receive()
    print("started", flush=True)
    await send({"type": "lifespan.startup.complete"})
    await receive()
    print("lifespan", flush=True)
    await send({"type": "lifespan.shutdown.complete"})


if "handler" in sys.argv:
    signal.signal(signal.SIGTERM, lambda number, frame: None)
atexit.register(print, "atexit", flush=True)
try:
    uvicorn.run(app, host="127.0.0.1", port=0, log_level="error")
finally:
    print("finally", flush=True)
PYTHON
"$work/env/bin/python" - <<'PYTHON'
import signal
import subprocess
import sys

seen = {}
for number in (signal.SIGINT, signal.SIGTERM):
    for handler in ((), ("handler",)):
        command = [sys.executable, "served.py", *handler]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "started\n"
            process.send_signal(number)
            printed = process.communicate(timeout=60)[0].split()
        seen[number.name, bool(handler)] = process.returncode, printed
        print(f"{number.name}, a handler before: {bool(handler)}: {process.returncode}, {printed}")
assert seen.pop(("SIGTERM", False)) == (-15, ["lifespan"]), "changed"
assert all(found == (0, ["lifespan", "finally", "atexit"]) for found in seen.values())
PYTHON
