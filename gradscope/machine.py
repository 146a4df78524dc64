"""The machine: BLAS threads, cores, memory, what JAX runs on and where it keeps what it has compiled."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from threadpoolctl import ThreadpoolController

from gradscope.errors import InputError, as_option
from gradscope.settings import Platform

if TYPE_CHECKING:
    import jax


_lock = threading.Lock()
_inside = 0
_limit = None


PLATFORMS = get_args(Platform)
_MOST_CPU_DEVICES = 256
_CACHE_BYTES = 256 * 2**20
# Addresses that JAX and its threads take on two cores, more on others, before any number is computed.
_JAX_BYTES = 1440 * 2**20
_ENTRIES = ("-cache", "-atime")  # how the names of JAX's own files end
_CHECKED = "checked"  # its time is that of the last look at them


_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within, NumPy's and SciPy's BLAS use one thread; may be entered from many threads, and again.

    The two bring a thread pool each, and both wait by spinning: with more threads than one the
    graded chain of m = 128 on two cores took 15 times as long.
    """
    global _inside, _limit
    with _lock:
        if _inside == 0:
            _limit = ThreadpoolController().limit(limits=1, user_api="blas")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _limit is not None:
                _limit.restore_original_limits()


def cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def find_devices(platform: str | None = None, count: int | None = None) -> tuple[jax.Device, ...]:
    """The first ``count`` devices (all by default) of ``platform``, or of what JAX finds by itself.

    A CPU is as many devices as asked for, if JAX has not started yet. Raises InputError if the
    platform is unknown or not there, or has fewer devices.
    """
    import jax

    if platform is not None and platform not in PLATFORMS:
        raise InputError(f"{as_option('platform')} {platform!r}: expected one of {', '.join(PLATFORMS)}")
    if count is not None:
        divide_cpu(count)
    try:
        devices = jax.local_devices(backend=platform)
    except RuntimeError as error:
        raise InputError(
            f"{as_option('platform')} {platform or 'default'!r} is not available ({error}); use "
            "--platform cpu, or install "
            "gradscope[cuda] or gradscope[tpu]"
        ) from error
    if count is not None and count > len(devices):
        raise InputError(
            f"{as_option('devices')} is {count}, but JAX has {len(devices)} {devices[0].platform} "
            "devices: ask for fewer "
            "(a CPU is divided only before JAX has started)"
        )
    return tuple(devices[:count])


def divide_cpu(count: int) -> None:
    """Make the CPU ``count`` devices, or leave it as it is where JAX has started."""
    import jax

    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= _MOST_CPU_DEVICES:
        raise InputError(
            f"{as_option('devices')} is {count!r}, expected a whole number from 1 to {_MOST_CPU_DEVICES}"
        )
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)  # type: ignore[no-untyped-call]


def check_room() -> None:
    """Raise MemoryError where a limit on addresses (ulimit -v) is too low for JAX, which aborts then."""
    if sys.platform != "linux" or "jax" in sys.modules:
        return
    import mmap
    import resource

    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        return
    try:
        mmap.mmap(-1, _JAX_BYTES).close()
    except OSError as error:
        raise MemoryError from error


def use_compilation_cache() -> None:
    """Keep compiled programs in a private folder, so that the next start does not compile again.

    ``GRADSCOPE_CACHE_DIR`` moves it; JAX's own ``JAX_COMPILATION_CACHE_DIR`` wins if set.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    if not ({"GRADSCOPE_CACHE_DIR", "XDG_CACHE_HOME"} & os.environ.keys() or _home_is_there()):
        return
    folder = cache_folder() / "jax"
    if not (_private(folder.parent) and _private(folder)):
        return
    _drop_damaged(folder)
    _trim(folder)
    options = {
        "jax_compilation_cache_dir": str(folder),
        # JAX stores nothing that compiles in under a second unless told to; all of ours does.
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    for option, value in options.items():
        jax.config.update(option, value)  # type: ignore[no-untyped-call]


def cache_folder() -> Path:
    """Where compiled programs are kept."""
    if own := os.environ.get("GRADSCOPE_CACHE_DIR"):
        return Path(own)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", "~")).expanduser() / "gradscope" / "Cache"
    if sys.platform == "darwin":
        return Path("~/Library/Caches/gradscope").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gradscope"


def _home_is_there() -> bool:
    """Whether there is a home folder: one that is only named is not ours to make."""
    try:
        return Path("~").expanduser().is_dir()
    except (OSError, RuntimeError):
        return False


def _private(folder: Path) -> bool:
    """Create the folder with mode 0700; False if it cannot be ours alone (a cache holds code)."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not hasattr(os, "getuid"):
            return True
        status = folder.lstat()
        return folder.is_dir() and status.st_uid == os.getuid() and not status.st_mode & 0o022
    except OSError:
        return False


def _drop_damaged(folder: Path) -> None:
    """Delete entries that came since the last look and that JAX could not unpack.

    A process that is killed or a full disk leaves one cut off; JAX warns of it at every start, and keeps it.
    """
    checked = folder.parent / _CHECKED
    with contextlib.suppress(OSError):
        since = checked.stat().st_mtime_ns if checked.exists() else 0
        entries = [e for e in folder.iterdir() if e.name.endswith(_ENTRIES[0]) and e.is_file()]
        if new := [entry for entry in entries if entry.stat().st_mtime_ns >= since]:
            checked.touch()
            unpack = _unpacker()
            for entry in new:
                try:
                    unpack(entry.read_bytes())
                except Exception:  # each way of packing has its own
                    entry.unlink(missing_ok=True)


def _unpacker() -> Callable[[bytes], bytes]:
    """What JAX unpacks entries with: the first of these that is there."""
    with contextlib.suppress(ImportError):
        return cast("Callable[[bytes], bytes]", import_module("compression.zstd").decompress)
    with contextlib.suppress(ImportError):
        return cast("Callable[[bytes], bytes]", import_module("zstandard").ZstdDecompressor().decompress)
    return zlib.decompress


def _trim(folder: Path) -> None:
    """Delete JAX's oldest entries beyond the size limit (JAX's own limit needs another package)."""
    with contextlib.suppress(OSError):
        own = [e for e in folder.iterdir() if e.name.endswith(_ENTRIES) and e.is_file()]
        entries = sorted(((e.stat().st_mtime, e.stat().st_size, e) for e in own), reverse=True)
        kept = 0
        for _, size, entry in entries:
            kept += size
            if kept > _CACHE_BYTES:
                entry.unlink(missing_ok=True)


def available() -> int:
    """Bytes of memory: the machine's, or what a container may have of it."""
    return min([_physical_memory(), *_cgroup_limits()])


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not POSIX
        return 16 * 2**30


def _cgroup_limits() -> Iterator[int]:
    """Limits of this process's control group (version 2) and of those it is part of."""
    with contextlib.suppress(OSError):
        groups = [line[3:] for line in _OWN_GROUP.read_text("utf-8").splitlines() if line.startswith("0::")]
        for group in groups:
            inside = _GROUPS / group.strip("/")
            for folder in (inside, *inside.parents):
                with contextlib.suppress(OSError, ValueError):  # not there, or "max"
                    yield int((folder / "memory.max").read_text("ascii"))
