"""One training step of the full network: alexdeploy's Learner against the loop that everybody writes.

    python benchmarks/training_step.py [--batch-size 64] [--repeats 9] [--threads N] [--device cpu]

Forward, loss, backward and update, with random views and 1000 classes; loading and augmentation are not in it. The
other side is nn.Sequential with nn.LocalResponseNorm, contiguous tensors and torch.optim.SGD, in the same precision and
with the same groups, dropout and first weights. Both run in the same process turn by turn; medians are printed. The
first step of both is compared before that, without dropout: the same loss and the same gradients but for rounding,
which may move a maximum of a pooling window to a pixel beside it. LRN is over all maps then, as the plain loop has it.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexdeploy.core.recipe import Recipe, load_recipe
from alexdeploy.network.layers import Layer
from alexdeploy.training.learner import Learner, new_network

NUM_CLASSES = 1000


def plain_network(recipe: Recipe) -> nn.Sequential:
    """The same layers as they are usually written, with the same weights."""
    network = new_network(recipe, NUM_CLASSES)
    plain = nn.Sequential()
    for layer in network.plan:
        plain.add_module(layer.name, _plain_module(layer) or network.get_submodule(layer.name))
    return plain


def _plain_module(layer: Layer) -> nn.Module | None:
    if layer.kind == "lrn":
        assert layer.lrn is not None
        return nn.LocalResponseNorm(layer.lrn.size, layer.lrn.alpha, layer.lrn.beta, layer.lrn.k)
    return nn.Flatten() if layer.kind == "flatten" else None


class PlainLoop:
    """optimizer.zero_grad, forward, cross_entropy, backward, optimizer.step."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        training = recipe.training
        self.network = plain_network(recipe).to(device).train()
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=training.learning_rate,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
        )

    def step(self, views: Tensor, labels: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.network(views), labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def check_same(recipe: Recipe, views: Tensor, labels: Tensor, device: torch.device) -> float:
    """The largest difference of a parameter's gradient in the first step, as a fraction of its norm."""
    changed = load_recipe(recipe.name, ["architecture.dropout=0", "architecture.lrn.per_tower=false"])
    network = new_network(changed, NUM_CLASSES)
    learner, plain = Learner(changed, NUM_CLASSES, device, network), PlainLoop(changed, device)
    ours = learner.compute_gradients(views, labels, dropout_seed=0)
    theirs = F.cross_entropy(plain.network(views.contiguous()), labels)
    theirs.backward()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=0)
    worst = 0.0
    for found, expected in zip(network.parameters(), plain.network.parameters(), strict=True):
        assert found.grad is not None
        assert expected.grad is not None
        worst = max(worst, float((found.grad - expected.grad).norm() / expected.grad.norm()))
    return worst


def time_in_turn(steps: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each, all of them once in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(repeats + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if round_number:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    recipe = load_recipe("alexnet")
    generator = torch.Generator().manual_seed(0)
    # As training cuts them: channels last.
    pixels = torch.randn(options.batch_size, 227, 227, 3, generator=generator) * 60
    views = pixels.permute(0, 3, 1, 2).to(device)
    labels = torch.randint(NUM_CLASSES, (options.batch_size,), generator=generator).to(device)
    print(f"same loss; gradients differ by {check_same(recipe, views[:8], labels[:8], device):.1e} of their norm")
    learner, plain = Learner(recipe, NUM_CLASSES, device), PlainLoop(recipe, device)
    contiguous = views.contiguous()

    def take_step() -> None:
        learner.compute_gradients(views, labels, dropout_seed=0)
        learner.update(recipe.training.learning_rate)

    medians = time_in_turn(
        {"alexdeploy": take_step, "plain PyTorch": lambda: plain.step(contiguous, labels)}, options.repeats, device
    )
    for name, seconds in medians.items():
        print(f"{name:14} {seconds * 1000:8.1f} ms a step  {options.batch_size / seconds:8.1f} images/s")
    print(f"{medians['plain PyTorch'] / medians['alexdeploy']:.2f} times the plain loop's throughput")
    threads = f"{torch.get_num_threads()} threads"
    print(f"batch {options.batch_size}, {threads}, torch {torch.__version__}, {platform.processor() or device}")


if __name__ == "__main__":
    main()
