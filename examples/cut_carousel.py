"""An LSTM without its cell state behaves as a plain RNN.

``--cut carousel`` removes the direct path from c_(t-1) to c_t along the same trajectory. With forget
bias 3 the LSTM carries its gradient 200 steps; without the carousel it loses it as quickly as a tanh
RNN with weights of the same law.

    python examples/cut_carousel.py
"""

import gradscope


def main() -> None:
    """Print gain, rate and horizon of the three."""
    sizes = {"hidden": 64, "input_size": 32, "steps": 200}
    rows = {
        "lstm": gradscope.analyze(cell="lstm", biases={"b_f": 3.0}, **sizes),
        "lstm without carousel": gradscope.analyze(
            cell="lstm", biases={"b_f": 3.0}, cut=["carousel"], **sizes
        ),
        "rnn": gradscope.analyze(cell="rnn", **sizes),
    }
    print(f"{'':22}  {'log10 gain':>10}  {'nats/step':>9}  {'horizon':>7}  verdict")
    for name, analysis in rows.items():
        chain = analysis.full
        print(
            f"{name:22}  {chain.log10_norm.median:10.1f}  {chain.rate.median:+9.4f}  "
            f"{chain.horizon.median:7g}  {analysis.verdict.level}"
        )


if __name__ == "__main__":
    main()
