"""What a command costs, and how much room a folder takes.

Wall seconds are from start to end. CPU seconds are user and system time of the command and of all
its descendants that were waited for (`wait4` in `spawn.py`). Peak memory is the largest resident
set of any one of these processes.

It misses: processes that leave the tree (daemons; none of the peers starts one here), work that
the kernel does on behalf of a command in its own threads (writing back, checksums of the file
system), and the memory of several processes at the same time. A figure of peak memory under about
12 MiB may be that of `spawn.py`, from the moment between fork and exec. What a command leaves in
the page cache unwritten is written by a `sync` behind it, whose time is given apart.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

TAIL = 2000
SPAWN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "spawn.py")


def run(command, folder, environment, cap):
    """Runs one command and returns its costs; never raises for what the command does."""
    log_path = environment["PEERS_LOG"]
    result = log_path + ".costs"
    helper = [sys.executable, "-I", "-S", SPAWN, result, *command]
    with contextlib.suppress(FileNotFoundError):
        os.remove(result)
    began = time.monotonic()
    stopped = False
    with open(log_path, "wb") as log:
        child = subprocess.Popen(
            helper,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            child.wait(cap)
        except subprocess.TimeoutExpired:
            stopped = True
        finally:
            # Also after an interruption: nothing goes on writing while folders are removed.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    shown = {"command": " ".join(command)}
    if stopped:
        costs = {"wall": round(time.monotonic() - began, 3), "cpu": 0, "user": 0, "system": 0}
        return {**costs, "peak_bytes": 0, **shown, "error": f"stopped after {cap:.0f} s"}
    try:
        with open(result, encoding="utf-8") as file:
            costs = {**json.load(file), **shown}
    except FileNotFoundError:
        return {**failure(f"cannot start: {last_words(log_path)}"), **shown}
    if costs["exit_code"] != 0:
        costs["error"] = f"exit code {costs['exit_code']}: {last_words(log_path)}"
    return costs


def failure(message):
    """The costs of a command that could not be run."""
    return {"wall": 0, "user": 0, "system": 0, "cpu": 0, "peak_bytes": 0, "error": message}


def last_words(log_path):
    """The last line a command printed, as the reason why it failed."""
    with open(log_path, "rb") as log:
        text = log.read()[-TAIL:].decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def run_all(commands, folder, environment, cap):
    """Runs commands one after another and adds up; stops at the first that fails."""
    total = None
    for command in commands:
        costs = run(command, folder, environment, cap)
        if total is None:
            total = costs
        else:
            for key in ("wall", "user", "system", "cpu"):
                total[key] = round(total[key] + costs[key], 3)
            total["peak_bytes"] = max(total["peak_bytes"], costs["peak_bytes"])
            total["command"] += " && " + costs.get("command", "")
            if "error" in costs:
                total["error"] = costs["error"]
        if "error" in total:
            break
    began = time.monotonic()
    os.sync()
    total["sync_after"] = round(time.monotonic() - began, 3)
    return total


def folder_bytes(folder):
    """The sizes of all files of a folder, the blocks they take, and their number."""
    apparent = allocated = files = 0
    for base, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.lstat(os.path.join(base, name))
            except FileNotFoundError:
                continue
            apparent += status.st_size
            allocated += status.st_blocks * 512
            files += 1
    return {"bytes": apparent, "allocated_bytes": allocated, "files": files}
