#!/usr/bin/env bash
# Processes that torchrun starts anew may look for each other where the last ones were.
#
# Versions:  torch 2.13.0, CPU, gloo.
# Expected:  after a process is killed, torchrun --max-restarts 1 starts all anew, and they make a group as at first.
# Seen:      torchrun keeps the store of a single machine, with the addresses that the last processes wrote there. A process
#            that looks for another one before that has written its new address connects to the old one: "Gloo
#            connectFullMesh failed ... Connection refused". torch.distributed.rendezvous says that there is a new store
#            for every attempt, and sets no prefix. With a PrefixStore of TORCHELASTIC_RESTART_COUNT it is as expected.
# Exits 0 while that is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$work"
cat > join.py <<'PY'
import os
import signal
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

attempt, rank = os.environ["TORCHELASTIC_RESTART_COUNT"], int(os.environ["RANK"])
if attempt == "1" and rank == 1:
    time.sleep(6)  # while process 0 looks for it
if sys.argv[1] == "prefix":
    store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(minutes=5)))
    dist.init_process_group("gloo", store=dist.PrefixStore(attempt, store), rank=rank, world_size=size)
else:
    dist.init_process_group("gloo")
dist.all_reduce(torch.ones(1))
if attempt == "0":
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
dist.destroy_process_group()
PY
started() { OMP_NUM_THREADS=1 "$work/venv/bin/torchrun" --standalone --nproc-per-node 2 --max-restarts 1 join.py "$1" > "$1.log" 2>&1; }
started prefix || { cat prefix.log; exit 1; }
if started plain; then
    echo "they have found each other"
    exit 1
fi
grep -om1 "Gloo connectFullMesh failed" plain.log
