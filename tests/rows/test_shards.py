"""Which part of the work a process has: said, or as schedulers say it."""

import pytest

from gradscope.errors import InputError
from gradscope.rows.shards import Shard

ITEMS = [f"step_{number}" for number in range(10)]


@pytest.mark.parametrize("count", [1, 3, 10, 12])
def test_every_item_is_in_one_shard(count):
    dealt = [Shard(number, count).of(ITEMS) for number in range(1, count + 1)]
    assert sorted(item for part in dealt for item in part) == list(enumerate(ITEMS))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


AUTO = [
    ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "0"}, (4, 4)),
    ({"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1"}, (1, 4)),
    (
        {
            **{"SLURM_ARRAY_TASK_ID": "20", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "10"},
            **{"SLURM_ARRAY_TASK_STEP": "5"},
        },
        (3, 3),
    ),
    ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, (3, 4)),
    ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, (3, 4)),
    # Each task of an array is four processes of srun.
    (
        {
            **{"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "0"},
            **{"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_NTASKS": "4"},
        },
        (7, 12),
    ),
    # The batch script of an array with --ntasks=4, without srun: one process.
    (
        {
            **{"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "0"},
            **{"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"},
        },
        (2, 3),
    ),
    ({"JOB_COMPLETION_INDEX": "5", "GRADSCOPE_SHARDS": "8"}, (6, 8)),
    (
        {"GRADSCOPE_SHARD_INDEX": "0", "GRADSCOPE_SHARDS": "2", "SLURM_PROCID": "1", "SLURM_NTASKS": "4"},
        (1, 2),
    ),
]


@pytest.mark.parametrize(("environment", "expected"), AUTO)
def test_auto(environment, expected):
    found = Shard.parse("auto", environment)
    assert (found.number, found.count) == expected


def test_auto_of_a_count():
    found = Shard.parse("auto/8", {"JOB_COMPLETION_INDEX": "5"})
    assert (found.number, found.count, found.label) == (6, 8, "6-of-8")
    assert Shard.parse("2/8", {}) == Shard(2, 8)


WRONG = [
    ("2", {}, r"--shard is '2', expected I/N such as 2/8, or auto"),
    ("0/8", {}, r"shard 0 of 8, expected 1/8 to 8/8"),
    ("9/8", {}, r"shard 9 of 8, expected 1/8 to 8/8"),
    ("-1/8", {}, r"expected I/N"),
    ("auto", {}, r"finds no Slurm array or step .* give --shard I/N"),
    # The batch script of a job with many tasks, without srun: it would leave the rest out.
    (
        "auto",
        {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"},
        r"finds no Slurm array or step",
    ),
    ("auto", {"JOB_COMPLETION_INDEX": "5"}, r"not how many there are: give --shard auto/N"),
    ("auto", {"SLURM_ARRAY_TASK_ID": "5"}, r"not SLURM_ARRAY_TASK_COUNT"),
    ("auto", {"GRADSCOPE_SHARD_INDEX": "x", "GRADSCOPE_SHARDS": "4"}, r"is 'x', expected a whole number"),
    # --array=1,5,9: what a task is the third of is not said.
    (
        "auto",
        {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1"},
        r"that is no range",
    ),
    ("auto/3", {"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, r"auto/3, but SLURM_PROCID says that there are 4"),
]


@pytest.mark.parametrize(("text", "environment", "words"), WRONG)
def test_what_cannot_be_meant(text, environment, words):
    with pytest.raises(InputError, match=words):
        Shard.parse(text, environment)
