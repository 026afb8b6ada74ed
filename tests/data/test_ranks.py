"""Which of how many processes one is: options, launchers' variables, and what contradicts itself."""

from __future__ import annotations

import re

import pytest

from hires_gan.data.ranks import Rank, find_rank
from hires_gan.errors import UsageError

TORCHRUN = {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
BATCH_SCRIPT = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}
STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "4"}
POD = {"JOB_COMPLETION_INDEX": "1"}
SIZE = {"HIRES_GAN_WORLD_SIZE": "5"}


@pytest.mark.parametrize(
    ("options", "environment", "rank", "world", "line"),
    [
        ((None, None), {}, 0, 1, ""),
        ((1, 3), {}, 1, 3, "rank 1 of 3 (--rank and --world-size)"),
        ((None, 1), {}, 0, 1, "one process alone (--world-size)"),
        ((2, None), SIZE, 2, 5, "rank 2 of 5 (--rank and HIRES_GAN_WORLD_SIZE)"),
        ((None, None), TORCHRUN, 2, 3, "rank 2 of 3 (RANK and WORLD_SIZE of torchrun)"),
        ((2, 3), TORCHRUN, 2, 3, "rank 2 of 3 (--rank and --world-size)"),
        ((None, None), {"RANK": "0", "WORLD_SIZE": "1"}, 0, 1, "one process alone (RANK and WORLD_SIZE of torchrun)"),
        ((None, None), STEP, 3, 4, "rank 3 of 4 (SLURM_PROCID and SLURM_NTASKS of SLURM)"),
        ((None, None), STEP | {"SLURM_STEP_NUM_TASKS": "1"}, 0, 1, ""),
        ((None, None), STEP | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, 0, 1, ""),
        (
            (None, None),
            BATCH_SCRIPT,
            0,
            1,
            "one process alone (SLURM_NTASKS is 4, but this is no step of srun, which would start them all)",
        ),
        ((None, 3), POD, 1, 3, "rank 1 of 3 (JOB_COMPLETION_INDEX and --world-size of Kubernetes)"),
        ((None, None), POD | SIZE, 1, 5, "rank 1 of 5 (JOB_COMPLETION_INDEX and HIRES_GAN_WORLD_SIZE of Kubernetes)"),
        ((None, 1), POD, 0, 1, "one process alone (--world-size)"),
        ((None, None), TORCHRUN | STEP | POD, 2, 3, "rank 2 of 3 (RANK and WORLD_SIZE of torchrun)"),
        ((None, None), STEP | POD, 3, 4, "rank 3 of 4 (SLURM_PROCID and SLURM_NTASKS of SLURM)"),
        ((None, None), {"RANK": "", "WORLD_SIZE": " "}, 0, 1, ""),
    ],
)
def test_rank_and_world_size_are_read(options, environment, rank, world, line):
    found = find_rank(*options, environment)
    assert (found.number, found.world, found.line) == (rank, world, line)
    assert found.alone == (world == 1)


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        ((1, None), {}, "--rank is 1, but nothing says of how many: set --world-size or HIRES_GAN_WORLD_SIZE"),
        ((None, 3), {}, "--world-size is 3, but nothing says which of them this one is: set --rank, from 0 to 2"),
        ((3, 3), {}, "--rank is 3, but --world-size is 3: ranks from 0 to 2 are allowed"),
        ((-1, 3), {}, "--rank is -1, but --world-size is 3"),
        ((0, 0), {}, "--world-size is 0: a number from 1 on is allowed"),
        ((1, 3), TORCHRUN, "--rank is 1, but RANK is 2: give one of them, or both the same"),
        ((None, 4), TORCHRUN, "--world-size is 4, but WORLD_SIZE is 3"),
        ((None, 1), TORCHRUN, "--world-size is 1, but WORLD_SIZE is 3"),
        ((None, None), TORCHRUN | SIZE, "HIRES_GAN_WORLD_SIZE is 5, but WORLD_SIZE is 3"),
        ((None, 3), SIZE, "--world-size is 3, but HIRES_GAN_WORLD_SIZE is 5"),
        ((None, None), {"RANK": "1"}, "RANK is set and WORLD_SIZE is not: torchrun sets both"),
        ((None, None), {"WORLD_SIZE": "3"}, "WORLD_SIZE is set and RANK is not"),
        ((None, None), TORCHRUN | {"RANK": "one"}, "RANK is 'one' in the environment: a whole number from 0 on"),
        ((None, None), TORCHRUN | {"RANK": "3"}, "RANK is 3, but WORLD_SIZE is 3: ranks from 0 to 2"),
        ((1, None), STEP, "--rank is 1, but SLURM_PROCID is 3"),
        ((None, None), {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4"}, "SLURM_NTASKS is 4 and SLURM_PROCID is not set"),
        ((None, None), POD, "JOB_COMPLETION_INDEX is 1, but nothing says of how many: set --world-size or HIRES_GAN"),
        ((2, 3), POD, "--rank is 2, but JOB_COMPLETION_INDEX is 1"),
        ((None, None), SIZE, "HIRES_GAN_WORLD_SIZE is 5, but nothing says which"),
    ],
)
def test_contradictions_are_refused_by_name(options, environment, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        find_rank(*options, environment)


def test_ranks_on_one_machine_share_its_cores():
    assert find_rank(None, None, TORCHRUN).neighbours == 2
    assert find_rank(None, None, TORCHRUN | {"LOCAL_WORLD_SIZE": "0"}).neighbours == 1
    assert Rank().neighbours == 1
