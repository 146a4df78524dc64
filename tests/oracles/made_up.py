"""Analyses made by hand of round numbers, for every view of one."""

import math
from dataclasses import replace

import numpy as np

from gradscope.product_svd.spectrum import Spectrum
from gradscope.report.analysis import Analysis
from gradscope.report.chains import chain_of
from gradscope.report.notes import chain_notes
from gradscope.report.verdict import judge, level
from gradscope.settings import Policy

STEPS = 40
LSTM = {"full": -0.25, "carousel": -0.5, "R_z": -6.0, "R_f": None}


def made_up(rate, size=4, zeros=0, error=3e-13):
    """A Spectrum of round numbers: sigma_1 = 10 ** (rate * lag), the others a decade apart; NaN is lost."""
    if math.isnan(rate):
        found = made_up(-1.0, size, size, 3000.0)
        gone = np.where(np.isneginf(found.log10_norm_by_lag), np.nan, found.log10_norm_by_lag)
        values = np.full(size, np.nan)
        return replace(found, log10_singular_values=values, log10_norm_by_lag=gone, exact_zeros=0, lost=size)
    logs = rate * STEPS - np.arange(float(size))
    by_lag = rate * np.arange(1.0, STEPS + 1)
    if zeros:
        logs[-zeros:] = -np.inf
    if zeros == size:
        by_lag[-3:] = -np.inf
    vector = np.eye(size)[0]
    return Spectrum(logs, zeros, error, error / 10, vector, vector, by_lag)


GATE = {"mean": 0.5, "saturated": 0.125, "saturated_error": 0.0}


def analysis(rates, batch=1, without=None, **problem):
    """An Analysis of made-up chains {name: rate}, the full one first; without : of all but a path."""
    chains = []
    for name, rate in rates.items():
        dead = rate is None
        spectra = [made_up(-1.0 if dead else rate + 0.01 * b, zeros=4 if dead else 0) for b in range(batch)]
        chains.append(chain_of(name, spectra, 1e-3))
    paths = [name for name in rates if name != "full"]
    shares = {name: np.full(STEPS, s) for name, s in zip(paths, (0.75, 0.35, -0.1), strict=False)}
    policy = Policy()
    given = {
        "cell": "lstm",
        "hidden": 4,
        "input_size": 3,
        "steps": STEPS,
        "batch": batch,
        "source": "initialised",
    }
    matrix = {
        "spectral_norm": 1.25,
        "spectral_radius": 0.5,
        "singular_values": np.array([1.25, 0.5, 0.25, 1e-4]),
    }
    others = {name: chain_of(name, [made_up(rate)] * batch, 1e-3) for name, rate in (without or {}).items()}
    verdict = judge(chains, {name: float(s.mean()) for name, s in shares.items()}, policy, without=others)
    return Analysis(
        problem=given | problem,
        policy=policy,
        verdict=verdict.noting(chain_notes(chains[0], verdict.level, "float64")),
        chains=tuple(chains),
        levels={chain.name: level(chain, policy) for chain in chains}
        | {f"without {name}": level(chain, policy) for name, chain in others.items()},
        shares=shares,
        without=others,
        sequence_shares={
            name: s.mean() + 0.01 * (np.arange(batch) - (batch - 1) / 2) for name, s in shares.items()
        },
        shares_error=np.full(batch, 1e-12),
        gates={"f": dict(GATE, sequences={"saturated": [0.125] * batch})} if paths else {},
        matrices={"R_f": matrix} if paths else {},
    )
