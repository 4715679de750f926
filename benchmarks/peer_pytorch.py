"""Classification as a user of PyTorch would write it: the eager network on stacked views.

    python -m benchmarks.peer_pytorch models/alexnet/weights.safetensors models/alexnet/mean.npy 1 photographs/*.jpg

The 2012 network, of any width, of PyTorch's own layers. What PyTorch's tuning guide says of inference on a CPU:
inference_mode and, where it is faster, channels_last and bfloat16, by autocast or, as that converts the weights anew
for each batch, once for the whole network.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.peer_images import Preprocessing, preprocessing


class TowerNorm(nn.Module):
    """PyTorch's LRN within each half of the maps, as they lay on two GPUs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0)

    def forward(self, x: Tensor) -> Tensor:
        # On a CPU, PyTorch's LRN knows no bfloat16; autocast has it in float32 as well.
        return torch.cat([self.norm(half.float()).to(x.dtype) for half in x.chunk(2, dim=1)], dim=1)


def alexnet(weights: dict[str, Tensor]) -> nn.Sequential:
    """The network with these weights, in evaluation mode."""
    sizes = {name.removesuffix(".bias"): len(values) for name, values in weights.items() if name.endswith(".bias")}
    maps1, maps2, maps3, maps4, maps5 = (sizes[f"conv{number}"] for number in range(1, 6))
    network = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, maps1, 11, stride=4),
            relu1=nn.ReLU(inplace=True),
            norm1=TowerNorm(),
            pool1=nn.MaxPool2d(3, stride=2),
            conv2=nn.Conv2d(maps1, maps2, 5, padding=2, groups=2),
            relu2=nn.ReLU(inplace=True),
            norm2=TowerNorm(),
            pool2=nn.MaxPool2d(3, stride=2),
            conv3=nn.Conv2d(maps2, maps3, 3, padding=1),
            relu3=nn.ReLU(inplace=True),
            conv4=nn.Conv2d(maps3, maps4, 3, padding=1, groups=2),
            relu4=nn.ReLU(inplace=True),
            conv5=nn.Conv2d(maps4, maps5, 3, padding=1, groups=2),
            relu5=nn.ReLU(inplace=True),
            pool5=nn.MaxPool2d(3, stride=2),
            flatten=nn.Flatten(),
            fc6=nn.Linear(maps5 * 6 * 6, sizes["fc6"]),
            relu6=nn.ReLU(inplace=True),
            drop6=nn.Dropout(),
            fc7=nn.Linear(sizes["fc6"], sizes["fc7"]),
            relu7=nn.ReLU(inplace=True),
            drop7=nn.Dropout(),
            fc8=nn.Linear(sizes["fc7"], sizes["fc8"]),
        )
    )
    network.load_state_dict(weights)
    return network.eval()


@torch.inference_mode()
def average_views(
    network: nn.Module, views: Tensor, *, channels_last: bool = False, autocast: bool = False
) -> tuple[list[int], list[float]]:
    """float32 [N, V, 3, 227, 227] -> for each image the best class of the mean over its views, and its probability."""
    weights = next(network.parameters())
    batch = views.flatten(0, 1).to(weights.device, weights.dtype)
    if channels_last:
        batch = batch.contiguous(memory_format=torch.channels_last)
    with torch.autocast(weights.device.type, torch.bfloat16) if autocast else nullcontext():
        logits = network(batch)
    best = logits.float().softmax(dim=1).unflatten(0, views.shape[:2]).mean(dim=1).max(dim=1)
    return best.indices.tolist(), best.values.tolist()


def classify(
    network: nn.Module,
    steps: Preprocessing,
    paths: Sequence[str],
    batch_size: int = 1,
    *,
    channels_last: bool = False,
    autocast: bool = False,
) -> Iterator[tuple[int, float]]:
    """For each file, in order, the best class and its probability."""
    for start in range(0, len(paths), batch_size):
        rows = torch.from_numpy(steps.batch(paths[start : start + batch_size]))
        views = rows.reshape(-1, steps.num_views, *rows.shape[1:])
        labels, probabilities = average_views(network, views, channels_last=channels_last, autocast=autocast)
        yield from zip(labels, probabilities, strict=True)


if __name__ == "__main__":
    weights_file, mean_file, std, *files = sys.argv[1:]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = classify(alexnet(load_file(weights_file)).to(device), preprocessing(mean_file, std), files)
    for path, (label, probability) in zip(files, found, strict=True):
        print(path, label, f"{probability:.4f}")
