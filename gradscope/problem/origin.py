"""Provenance: where a problem came from, for the report alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Origin:
    """What JSON tells of a problem beyond what the problem itself says; nothing is computed from it.

    source : the checkpoint, or "initialised"; layer : its name there, None without a checkpoint.
    init, gain, biases, seed : how the parameters were made, or changed.
    inputs, initial_state, adjoint : the file, "array", or how they were made; input_scale : what the inputs
        were multiplied by, None where by nothing; embedding, readout : their
        names in the checkpoint; readout_at : at which steps; None where there is none.
    masked : how many steps of each sequence are left out, None where none is masked.
    not_applied, assumed : as in Layer; None without a checkpoint.
    jacobians : "own", or the framework that they were computed by; input_size : of the layer then, whose
        inputs are its Jacobians.
    """

    source: str = "initialised"
    layer: str | None = None
    init: str | None = None
    gain: float = 1.0
    biases: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    inputs: str = "array"
    input_scale: float | None = None
    embedding: str | None = None
    initial_state: str | None = None
    readout: str | None = None
    readout_at: str | None = None
    adjoint: str | None = None
    masked: tuple[int, ...] | None = None
    not_applied: tuple[str, ...] | None = None
    assumed: tuple[str, ...] | None = None
    jacobians: str = "own"
    input_size: int | None = None
