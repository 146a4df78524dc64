"""The argument everybody starts from: 0.99^200, 1.01^200 and w^t for a linear scalar RNN.

python examples/scalar_powers.py
"""

import numpy as np

import gradscope


def main() -> None:
    """Print sigma_1 of a 200-step chain of the number w beside w^200."""
    print(f"{'w':>5}  {'gradscope':>12}  {'w^200':>12}  {'horizon':>7}  verdict at thresholds 0.2 and 5")
    for w in (0.9, 0.95, 0.99, 1.0, 1.01, 1.05, 1.1):
        kick = np.zeros((200, 1))
        analysis = gradscope.analyze(
            cell="linear",
            hidden=1,
            init="identity",
            gain=w,
            inputs=kick,
            vanishing_below=0.2,
            exploding_above=5,
        )
        gain = 10.0**analysis.full.log10_norm.median
        horizon = analysis.full.horizon.median
        print(f"{w:5.2f}  {gain:12.5g}  {w**200:12.5g}  {horizon:7g}  {analysis.verdict.level}")


if __name__ == "__main__":
    main()
