"""The carousel is one path of an LSTM among five: what it does alone and what the whole chain does.

Four LSTMs, 200 steps each. In the last one, R_z is the path that explodes: its own product says so,
and cutting it leaves a gradient that vanishes.

    python examples/lstm_paths.py
"""

import gradscope
from gradscope.report.verdict import scientific

# title, settings
CASES = (
    ("PyTorch's default: the carousel vanishes, and the whole with it", {}),
    ("forget bias 5: the carousel holds, and the whole with it", {"biases": {"b_f": 5.0}}),
    (
        "forget bias 5, gain 6: the carousel holds, the whole explodes",
        {"biases": {"b_f": 5.0}, "gain": 6.0},
    ),
    (
        "gain 8, no input: the carousel vanishes, R_z explodes",
        {"init": "gaussian", "gain": 8.0, "inputs": "zeros"},
    ),
    (
        "the same without R_z",
        {"init": "gaussian", "gain": 8.0, "inputs": "zeros", "cut": ["R_z"]},
    ),
)


def main() -> None:
    """Print, for every case, the gain of each chain and the share of each path."""
    for title, settings in CASES:
        analysis = gradscope.analyze(cell="lstm", hidden=32, input_size=8, steps=200, **settings)
        print(f"{title}\n  verdict: {analysis.verdict.level}")
        for chain in analysis.chains:
            share = analysis.mean_shares.get(chain.name)
            carried = "" if share is None else f"  carries {100 * share:6.1f} %"
            gain = scientific(chain.log10_norm.median)
            print(f"  {chain.name:>8}  gain {gain:>10}  {analysis.levels[chain.name]:>9}{carried}")
        print()


if __name__ == "__main__":
    main()
