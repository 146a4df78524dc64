"""The networks of train.py on sequences they never saw: what training did to their memory.

    python examples/adding_problem/analyse.py [FOLDER]

Medians over the sequences. *dL/dR* is the lag by which 99 % of the answers' gradient with respect to the
recurrent matrices has come together: what lies further back teaches them nothing. *Survive* are the
singular values over all 100 steps that are at least 1e-3: directions of the first state in which a change
is still felt in the last.
"""

import sys
from pathlib import Path

import numpy as np

import gradscope

HERE = Path(__file__).parent


def row(path: Path, inputs: np.ndarray) -> str:
    """One line about one network."""
    kind, update = path.stem.split("_")
    # Its file does not say that the RNN's activation is tanh; fc is what reads the answer.
    analysis = gradscope.analyze(checkpoint=path, cell=kind, inputs=inputs, readout="fc")
    full, loss = analysis.full, analysis.loss
    surviving = np.median([(s.log10_singular_values >= -3).sum() for s in full.spectra])
    text = f"{kind:4s} {update:>6s}  {analysis.verdict.level:9s}  {10**full.log10_norm.median:.1e}"
    text += f"   {10 ** np.median(full.by_lag[:, 49]):.1e}  {full.horizon.median:7.0f}"
    text += f"  {loss.lag_within(0.01, loss.kinds['R']):5d}  {surviving:2.0f} of {full.size}"
    if kind == "lstm":
        text += f"  {analysis.mean_shares['carousel']:8.0%}  {analysis.gates['f']['mean']:6.2f}"
    return text


def main(folder: Path = HERE) -> None:
    """Print the table, in the order of training."""
    inputs = np.load(folder / "sequences.npy")
    print("     update  verdict    gain 100   gain 50  horizon  dL/dR   survive  carousel  mean f")
    for kind in ("lstm", "rnn"):
        for path in sorted(folder.glob(f"{kind}_*.safetensors"), key=lambda p: int(p.stem.split("_")[1])):
            print(row(path, inputs))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
