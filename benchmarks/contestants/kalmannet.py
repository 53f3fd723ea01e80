"""KalmanNet (Revach et al. 2022), architecture 2, in PyTorch: written from the paper's equations.

Three recurrent units stand for the covariances of process noise, state and innovation; layers between them
follow the data flow of the Kalman filter. Sizes are the paper's: the units have m^2, m^2 and n^2 states,
layers into them 5 outputs for each input, the layer before the gain 40 for each of its inputs. Features
are scaled to length one, as its authors do.
"""

import json
import statistics
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize, relu

IN, OUT = 5, 40


class KalmanNet(nn.Module):
    """A filter for x' = f(x), y = h(x) whose gain is the output of a network."""

    def __init__(self, f, h, m: int, n: int):
        super().__init__()
        self.f, self.h, self.m, self.n = f, h, m, n
        self.evolution, self.update = nn.Linear(m, IN * m), nn.Linear(m, IN * m)
        self.measured = nn.Linear(2 * n, 2 * IN * n)
        self.process = nn.GRUCell(IN * m, m * m)
        self.state = nn.GRUCell(m * m + IN * m, m * m)
        self.innovation = nn.GRUCell(n * n + 2 * IN * n, n * n)
        self.projected = nn.Linear(m * m, n * n)
        inside = m * m + n * n
        self.gain = nn.Sequential(
            nn.Linear(inside, OUT * inside), nn.ReLU(), nn.Linear(OUT * inside, m * n)
        )
        self.back = nn.Linear(n * n + m * n, m * m)
        self.onto_state = nn.Linear(2 * m * m, m * m)

    def forward(self, y: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
        """Means (B, T, m) of series y (B, T, n) that start in the states x0 (B, m), one step before."""
        batch = len(y)
        hidden_q = torch.eye(self.m).reshape(1, -1).repeat(batch, 1)
        hidden_p = torch.zeros(batch, self.m * self.m)
        hidden_s = torch.eye(self.n).reshape(1, -1).repeat(batch, 1)
        posterior, posterior_before, prior_before = x0, x0, x0
        y_before, means = self.h(x0), []
        for t in range(y.shape[1]):
            prior = self.f(posterior)
            expected = self.h(prior)
            f1, f2 = normalize(y[:, t] - y_before), normalize(y[:, t] - expected)
            f3 = normalize(posterior - posterior_before)
            f4 = normalize(posterior - prior_before)
            hidden_q = self.process(relu(self.evolution(f3)), hidden_q)
            hidden_p = self.state(torch.cat([hidden_q, relu(self.update(f4))], 1), hidden_p)
            shown = torch.cat(
                [relu(self.projected(hidden_p)), relu(self.measured(torch.cat([f1, f2], 1)))], 1
            )
            hidden_s = self.innovation(shown, hidden_s)
            gain = self.gain(torch.cat([hidden_p, hidden_s], 1))
            back = relu(self.back(torch.cat([hidden_s, gain], 1)))
            hidden_p = relu(self.onto_state(torch.cat([hidden_p, back], 1)))
            shift = torch.bmm(gain.reshape(batch, self.m, self.n), (y[:, t] - expected)[:, :, None])
            posterior_before, prior_before, y_before = posterior, prior, y[:, t]
            posterior = prior + shift[:, :, 0]
            means.append(posterior)
        return torch.stack(means, 1)


def number_of_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def main(path: str, steps: int) -> None:
    """Train on the series in a file as the paper does (batches of 30, Adam at 1e-4, weight decay 1e-3), and
    print squared errors of the test series and times as JSON."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = {k: torch.as_tensor(v, dtype=torch.float32) for k, v in np.load(path).items()}
    m, n = len(data["F"]), len(data["H"])
    network = KalmanNet(lambda x: x @ data["F"].T, lambda x: x @ data["H"].T, m, n)
    rule = torch.optim.Adam(network.parameters(), lr=1e-4, weight_decay=1e-3)
    start = torch.zeros(30, m)
    times = []
    for _ in range(steps):
        began = time.process_time()
        rows = torch.randint(len(data["train_y"]), (30,))
        rule.zero_grad()
        loss = ((network(data["train_y"][rows], start) - data["train_x"][rows]) ** 2).mean()
        loss.backward()
        rule.step()
        times.append(time.process_time() - began)
    with torch.no_grad():
        means = network(data["test_y"], torch.zeros(len(data["test_y"]), m))
    squares = ((means - data["test_x"]) ** 2).mean((1, 2))
    found = dict(
        squares=squares.tolist(),
        seconds=sum(times),
        step=1e3 * statistics.median(times),
        parameters=number_of_parameters(network),
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
