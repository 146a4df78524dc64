"""A tanh RNN from vanishing to exploding as its gain crosses the critical value.

R has entries N(0, g^2/n). A random state starts it, then it runs without input. For n and T to
infinity the rate per step is known in closed form (Molgedey, Schuchhardt, Schuster 1992): negative
below g = 1, where the state dies away and R's spectral radius g decides, positive above.

    python examples/tanh_transition.py
"""

import numpy as np

import gradscope

HIDDEN, STEPS = 128, 200
GAINS = (0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 3.0)
# ln g below the transition; above it lambda_1 = 1/2 ln(g^2 E sech^4(sqrt(q) z)), q = g^2 E tanh^2.
THEORY = {0.8: -0.2231, 0.9: -0.1054, 1.0: 0.0, 1.5: 0.0652, 2.0: 0.1547, 3.0: 0.3103}


def main() -> None:
    """Print one line per gain."""
    kick = np.zeros((STEPS, 1))
    kick[0] = 5.0  # the input weights turn this into a random first state
    print(f"tanh RNN, hidden {HIDDEN}, {STEPS} steps")
    print(f"{'gain':>5}  {'sigma_1':>10}  {'nats/step':>9}  {'theory':>8}  {'horizon':>7}  verdict")
    for gain in GAINS:
        analysis = gradscope.analyze(
            cell="rnn", hidden=HIDDEN, init="gaussian", gain=gain, inputs=kick, only="gain"
        )
        chain = analysis.full
        theory = f"{THEORY[gain]:+8.4f}" if gain in THEORY else " " * 8
        sigma = f"10^{chain.log10_norm.median:+.1f}"
        print(
            f"{gain:5.1f}  {sigma:>10}  {chain.rate.median:+9.4f}  {theory}"
            f"  {chain.horizon.median:7g}  {analysis.verdict.level}"
        )


if __name__ == "__main__":
    main()
