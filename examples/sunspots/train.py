"""Train the LSTM of this example in PyTorch and write the fixture beside this script.

Needs what gradscope itself does not: ``pip install torch statsmodels safetensors``. The series is
the yearly mean sunspot number 1700-2008 (SIDC, Royal Observatory of Belgium; the copy that ships
with statsmodels, public domain). The network reads one year at a time and predicts the next.

    python examples/sunspots/train.py
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
# Training longer than this overfits: the error of the later years rises again.
HIDDEN, EPOCHS, LAST_TRAINING_YEAR = 24, 150, 1920


class Forecaster(torch.nn.Module):
    """One LSTM layer and a linear readout."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(input_size=1, hidden_size=HIDDEN, batch_first=True)
        self.readout = torch.nn.Linear(HIDDEN, 1)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        """Predictions (B, T, 1) of the value after each of ``series`` (B, T, 1)."""
        return self.readout(self.lstm(series)[0])


def main() -> None:
    """Train on 1700-1920, print the error on 1921-2008, write the fixture."""
    from statsmodels.datasets import sunspots

    torch.manual_seed(0)
    data = sunspots.load_pandas().data
    years, counts = data["YEAR"].to_numpy(), data["SUNACTIVITY"].to_numpy()
    # The square root makes the noise of a count about equal everywhere.
    root = np.sqrt(counts)
    series = (root - root[years <= LAST_TRAINING_YEAR].mean()) / root[years <= LAST_TRAINING_YEAR].std()
    x = torch.tensor(series, dtype=torch.float32)[None, :, None]
    training = int((years <= LAST_TRAINING_YEAR).sum())
    untrained, model = Forecaster(), Forecaster()
    untrained.load_state_dict(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, weight_decay=1e-4)
    for epoch in range(EPOCHS):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x[:, : training - 1]), x[:, 1:training])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if epoch % 25 == 0 or epoch == EPOCHS - 1:
            print(
                f"epoch {epoch:4d}  training {loss.item():.4f}  1921-2008 {held_out(model, x, training):.4f}"
            )
    persistence = torch.nn.functional.mse_loss(x[:, training - 1 : -1], x[:, training:]).item()
    print(f"persistence (next year as this year), 1921-2008: {persistence:.4f}")
    save_file(model.state_dict(), HERE / "lstm.safetensors")
    save_file(untrained.state_dict(), HERE / "untrained.safetensors")
    np.save(HERE / "sunspots.npy", x[0].numpy())


def held_out(model: Forecaster, x: torch.Tensor, training: int) -> float:
    """Mean squared error over the years after the training ones."""
    with torch.no_grad():
        return torch.nn.functional.mse_loss(model(x[:, :-1])[:, training - 1 :], x[:, training:]).item()


if __name__ == "__main__":
    main()
