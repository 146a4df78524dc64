"""The chains that compiled programs find sooner: which these are, and their spectra."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count

import jax

from gradscope.compiled_svd.asked import PLATFORMS, ArraySource, shape_of
from gradscope.compiled_svd.step_arrays import Shape
from gradscope.linearize.budget import SEGMENT_BYTES
from gradscope.linearize.segmented import SegmentedChain, keeping_recent
from gradscope.linearize.sequence import Linearized
from gradscope.machine import cores
from gradscope.measure.chains import Ask
from gradscope.measure.cost import LONGER_TO_COMPILE, PROGRAM, saved_by_program
from gradscope.measure.progress import Fraction
from gradscope.measure.zero_steps import after_zero_steps, with_zero_steps
from gradscope.product_svd.plain_values import few_of_many
from gradscope.product_svd.spectrum import Spectrum

# Segments of sequences under way, in memory at once.
_BYTES = 2**30

# Units (see cost) that programs would have saved so far in this process, by what they are compiled for.
_missed: Counter[Shape] = Counter()
_compiled: set[Shape] = set()
_lock = threading.Lock()


@dataclass(frozen=True)
class _Part:
    """A chain of a sequence: its steps after the last one that is zero, ``left_out`` of them come before."""

    sequence: int
    name: str
    chain: ArraySource
    left_out: int

    def whole(self, spectrum: Spectrum) -> Spectrum:
        """The spectrum of all steps, of that of these."""
        return with_zero_steps(spectrum, self.left_out) if self.left_out else spectrum


def taken(sequences: Sequence[Linearized], ask: Ask, devices: Sequence[jax.Device]) -> frozenset[Shape]:
    """The shapes of the chains that programs find sooner; asked once for an analysis, which then counts."""
    if not ask.paths or devices[0].platform not in PLATFORMS:
        return frozenset()
    accelerator = devices[0].platform != "cpu"
    return _worth(_shapes(sequences[0], ask), sum(one.steps for one in sequences), accelerator)


def by_programs(
    sequences: Sequence[Linearized],
    ask: Ask,
    devices: Sequence[jax.Device],
    worth: frozenset[Shape],
    report: Fraction,
) -> list[dict[str, Spectrum]]:
    """{chain: Spectrum} of every sequence: of the chains that programs find sooner, and are sure of.

    worth : what ``taken`` says; report : told which part of them is done.
    """
    found: list[dict[str, Spectrum]] = [{} for _ in sequences]
    if not worth:
        return found
    from gradscope.compiled_svd.engine import compiled_spectra

    wave = max(cores(), _BYTES // (4 * SEGMENT_BYTES))
    for low in range(0, len(sequences), wave):
        some = range(low, min(low + wave, len(sequences)))
        parts = [part for number in some for part in _parts(number, sequences[number], ask, worth)]
        before, share = low / len(sequences), len(some) / len(sequences) / max(1, len(parts))
        told = partial(_told, count(1), before, share, report)
        chains = [part.chain for part in parts]
        spectra = compiled_spectra(chains, devices, ask.entry_error, ask.accuracy, told)
        for part, spectrum in zip(parts, spectra, strict=True):
            if spectrum is not None:
                found[part.sequence][part.name] = part.whole(spectrum).first(ask.top)
    return found


def _told(done: Iterator[int], before: float, share: float, report: Fraction) -> None:
    report(before + share * next(done))


def _chains(sequence: Linearized, ask: Ask) -> Iterator[tuple[str, SegmentedChain]]:
    """The chains that are asked for, each once."""
    full = SegmentedChain(keeping_recent(sequence.segment), sequence.starts, sequence.steps)
    for name, chain in full.chains.items():
        alone = chain is not full and chain.diagonal is None  # a product of numbers needs no program
        if name not in ask.known and (name == "full" or alone):
            yield name, chain


def _shapes(sequence: Linearized, ask: Ask) -> list[Shape]:
    """What programs for its chains are compiled for."""
    every = [shape for _, chain in _chains(sequence, ask) if (shape := shape_of(chain)) is not None]
    return [shape for shape in every if ask.top is None or not few_of_many(shape.size, ask.top)]


def _parts(number: int, sequence: Linearized, ask: Ask, worth: frozenset[Shape]) -> Iterator[_Part]:
    """The chains of a sequence that programs take."""
    for name, chain in _chains(sequence, ask):
        if shape_of(chain) not in worth:
            continue
        rest, left_out = after_zero_steps(chain) or (chain, 0)
        if len(rest):
            yield _Part(number, name, rest, left_out)


def _worth(shapes: Sequence[Shape], steps: int, accelerator: bool = False) -> frozenset[Shape]:
    """The shapes of these chains of so many steps whose programs are compiled, or pay for that by now.

    What was not saved so far counts: so never more is lost than compiling would have taken.
    """
    saved: Counter[Shape] = Counter()
    for shape in shapes:
        saved[shape] += round(steps * saved_by_program(shape.size, accelerator))
    price = PROGRAM * (LONGER_TO_COMPILE if accelerator else 1)
    with _lock:
        _compiled.update(shape for shape, units in saved.items() if units + _missed[shape] > price)
        _missed.update({shape: units for shape, units in saved.items() if shape not in _compiled})
        return frozenset(shape for shape in saved if shape in _compiled)
