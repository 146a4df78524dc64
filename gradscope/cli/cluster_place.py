"""Where in a cluster a process says that it is."""

from __future__ import annotations

from gradscope.errors import InputError


def check_place(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Raise InputError where only some of these are given, or they cannot be meant."""
    given = {"coordinator": coordinator, "num-processes": num_processes, "process-id": process_id}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise InputError(f"--distributed: {' and '.join(missing)} not given, expected all three or none")
    if coordinator is not None and num_processes is not None and process_id is not None:
        if not coordinator.rpartition(":")[0] or not coordinator.rpartition(":")[2].isdecimal():
            raise InputError(f"--coordinator is {coordinator!r}, expected HOST:PORT of process 0")
        if num_processes < 1:
            raise InputError(f"--num-processes is {num_processes}, expected at least 1")
        if not 0 <= process_id < num_processes:
            raise InputError(
                f"--process-id is {process_id}, expected 0 to {num_processes - 1} (--num-processes - 1)"
            )
