"""Train an LSTM and a plain RNN on the adding problem and write the files beside this script.

Needs what gradscope itself does not: ``pip install torch safetensors``. The problem is that of
Hochreiter and Schmidhuber (1997), in the form of Le, Jaitly and Hinton (arXiv 1504.00941): at each of
100 steps the network reads a number between 0 and 1 and a marker; two steps are marked, one in each
half of the sequence; the answer, after the last step, is the sum of the two marked numbers.

    python examples/adding_problem/train.py                       # half a minute on one core
    python examples/adding_problem/train.py --seed 5 --to FOLDER  # other weights and sequences
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
STEPS, HIDDEN, BATCH = 100, 16, 32
LAYER = {"lstm": torch.nn.LSTM, "rnn": torch.nn.RNN}
# Of 1e-2, 3e-3 and 1e-3: with the first the LSTM is quickest, with none does the RNN learn in time.
RATE = {"lstm": 1e-2, "rnn": 3e-3}
# Updates after which a network is kept: at first, at last, and where the LSTM begins to add.
KEPT = {"lstm": (0, 1120, 1140, 1160, 6000), "rnn": (0, 6000)}


class Adder(torch.nn.Module):
    """One recurrent layer and a linear readout of its last output."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = LAYER[kind](input_size=2, hidden_size=HIDDEN, batch_first=True)
        self.fc = torch.nn.Linear(HIDDEN, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Answers (B,) to ``inputs`` (B, T, 2)."""
        return self.fc(self.layer(inputs)[0][:, -1])[:, 0]


def draw(batch: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences (batch, T, 2) of numbers and markers, and the right answers (batch,)."""
    numbers, markers = torch.rand(batch, STEPS, generator=generator), torch.zeros(batch, STEPS)
    for first, last in ((0, STEPS // 2), (STEPS // 2, STEPS)):
        markers.scatter_(1, torch.randint(first, last, (batch, 1), generator=generator), 1.0)
    return torch.stack([numbers, markers], dim=2), (numbers * markers).sum(1)


def unseen() -> tuple[torch.Tensor, torch.Tensor]:
    """The 4000 sequences, and their answers, on which every network is tested."""
    return draw(4000, torch.Generator().manual_seed(2026))


def loss(model: Adder, inputs: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the model's answers; always to answer 1 costs 1/6, their variance."""
    return torch.nn.functional.mse_loss(model(inputs), answers)


def train(kind: str, kept: tuple[int, ...], seed: int, folder: Path) -> None:
    """Train one network; after each of the updates ``kept``, write it and print its test loss."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    model, test = Adder(kind), unseen()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE[kind])
    for update in range(kept[-1] + 1):
        if update in kept:
            save_file(model.state_dict(), folder / f"{kind}_{update}.safetensors")
            with torch.no_grad():
                print(f"{kind:4s}  update {update:4d}  loss {loss(model, *test).item():.4f}", flush=True)
        optimizer.zero_grad()
        loss(model, *draw(BATCH, generator)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def main() -> None:
    """Train both on the same sequences; write them, and the first four they are tested on."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--to", type=Path, default=HERE, metavar="FOLDER")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    inputs, answers = unseen()
    np.save(arguments.to / "sequences.npy", inputs[:4].numpy())
    print(f"always to answer 1: loss {(answers - 1).square().mean().item():.4f}")
    for kind, kept in KEPT.items():
        train(kind, kept, arguments.seed, arguments.to)


if __name__ == "__main__":
    main()
