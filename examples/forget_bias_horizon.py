"""Forget bias against memory horizon, and what the carousel alone would predict.

With forget bias b and nothing else the carousel multiplies by sigmoid(b) each step, so that its
gain stays above 1e-3 for ln 1e-3 / ln sigmoid(b) steps. The whole chain remembers longer.

    python examples/forget_bias_horizon.py
"""

import math

import gradscope

STEPS = 300


def main() -> None:
    """Print the horizon of the whole chain and of the carousel for several forget biases."""
    print(f"LSTM, hidden 16, PyTorch initialisation, {STEPS} steps; horizon at gain 1e-3")
    print(f"{'b_f':>4}  {'whole chain':>11}  {'carousel':>8}  {'sigmoid(b)^k >= 1e-3':>20}")
    for bias in (0, 1, 2, 3, 5):
        analysis = gradscope.analyze(
            cell="lstm", hidden=16, input_size=8, steps=STEPS, biases={"b_f": float(bias)}
        )
        predicted = math.floor(math.log(1e-3) / -math.log1p(math.exp(-bias)))
        whole, carousel = analysis.full.horizon.median, analysis.chain("carousel").horizon.median
        print(f"{bias:4d}  {whole:11g}  {carousel:8g}  {min(predicted, STEPS):20d}")
    chrono = gradscope.analyze(cell="lstm", hidden=16, input_size=8, steps=STEPS, init="chrono")
    print(
        f"chrono initialisation: whole chain {chrono.full.horizon.median:g}, "
        f"carousel {chrono.chain('carousel').horizon.median:g}"
    )


if __name__ == "__main__":
    main()
