#!/usr/bin/env bash
# Ctrl-C while Dataset.map works with several processes does not arrive as KeyboardInterrupt.
#
# Versions:  datasets 5.2.0, multiprocess 0.70.19, Python 3.11.
# Expected:  KeyboardInterrupt in the process that called map, as with one process.
# Seen:      multiprocess.context.TimeoutError, with the KeyboardInterrupt as its context: on the way out map asks every
#            worker for a result, and gives it a twentieth of a second. Programs that save or clean up on KeyboardInterrupt
#            do not, and end in a traceback.
# Exits 0 while that is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check datasets==5.2.0 multiprocess==0.70.19
cd "$work"
cat > interrupted.py <<'PY'
import os
import signal
import sys
import threading
import time

import datasets

datasets.disable_progress_bars()


def slow(row):
    time.sleep(0.05)
    return row


seen = {}
for processes in (None, 2):
    rows = datasets.Dataset.from_dict({"number": list(range(400))})
    threading.Timer(3.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        rows.map(slow, num_proc=processes)
        seen[processes] = ["nothing"]
    except BaseException as error:
        seen[processes] = [type(error).__name__, type(error.__context__).__name__]
print(datasets.__version__, seen)
sys.exit(not (seen[None][0] == "KeyboardInterrupt" and seen[2] == ["TimeoutError", "KeyboardInterrupt"]))
PY
HF_HOME="$work/home" "$work/venv/bin/python" interrupted.py
