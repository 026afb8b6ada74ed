"""SLURM's commands as far as a batch script needs them, behaving as their manual pages say.

python fake_slurm.py srun|scancel|scontrol ARGUMENTS...; SLURM_FAKE is the folder where they meet: the tasks' pids, and
which jobs were queued again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

MEETING = Path(os.environ["SLURM_FAKE"])
JOB = os.environ["SLURM_JOB_ID"]


def srun(*arguments: str) -> int:
    """Start the tasks of step 0, and end with their highest exit code; a TERM of its own kills them."""
    command = list(arguments)
    while command[0].startswith("--"):
        command.pop(0)
    count = int(os.environ["SLURM_NTASKS"])
    places = [{"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)} for task in range(count)]
    tasks = [subprocess.Popen(command, env=os.environ | place) for place in places]
    signal.signal(signal.SIGTERM, lambda *_: [task.kill() for task in tasks])
    aside = MEETING / "pids.partial"
    aside.write_text(" ".join(str(task.pid) for task in tasks))
    aside.rename(MEETING / "pids")
    codes = [task.wait() for task in tasks]
    return max(code if code >= 0 else 128 - code for code in codes)


def scancel(option: str, step: str) -> int:
    """Signal the tasks of a step, and neither srun nor the batch shell."""
    assert step == f"{JOB}.0", step
    number = signal.Signals[f"SIG{option.removeprefix('--signal=')}"]
    for pid in (MEETING / "pids").read_text().split():
        os.kill(int(pid), number)
    return 0


def scontrol(*arguments: str) -> int:
    """Name the nodes of a list, one a line, or queue a job again, which ends its batch shell."""
    if arguments[:2] == ("show", "hostnames"):
        print(*arguments[2].split(","), sep="\n")
        return 0
    assert arguments == ("requeue", JOB), arguments
    with (MEETING / "requeued").open("a") as file:
        file.write(f"{JOB}\n")
    os.kill(os.getppid(), signal.SIGKILL)
    return 0


def main(program: str, *arguments: str) -> int:
    return {"srun": srun, "scancel": scancel, "scontrol": scontrol}[program](*arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
