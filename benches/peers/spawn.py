"""Runs one command and writes its costs to a file: `spawn.py RESULT COMMAND...`.

A small process of its own, because the kernel counts the memory that a new process shares with its
parent until it starts its program as that of the new process. This one is small; `run.py` is not.
"""

import json
import os
import sys
import time


def main():
    """Runs the command with the standard streams of this process."""
    result, command = sys.argv[1], sys.argv[2:]
    began = time.monotonic()
    child = os.posix_spawnp(command[0], command, os.environ)
    _, status, usage = os.wait4(child, 0)
    wall = time.monotonic() - began
    costs = {
        "wall": round(wall, 3),
        "user": round(usage.ru_utime, 3),
        "system": round(usage.ru_stime, 3),
        "cpu": round(usage.ru_utime + usage.ru_stime, 3),
        "peak_bytes": usage.ru_maxrss * 1024,
        "exit_code": os.waitstatus_to_exitcode(status),
    }
    with open(result, "w", encoding="utf-8") as file:
        json.dump(costs, file)


main()
