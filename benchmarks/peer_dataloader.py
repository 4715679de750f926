"""Classification as timm's validate.py has it: a DataLoader whose workers decode, channels_last, batches.

    python -m benchmarks.peer_dataloader models/alexnet/weights.safetensors models/alexnet/mean.npy 1 photographs/*.jpg

The views are cut and stacked in the workers, as torchvision's documentation of TenCrop shows it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.peer_images import Preprocessing, preprocessing
from benchmarks.peer_pytorch import alexnet, average_views


class Files(Dataset[Tensor]):
    """The views of each file."""

    def __init__(self, paths: Sequence[str], steps: Preprocessing) -> None:
        self.paths = paths
        self.steps = steps

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.steps(self.paths[index]))


def make_loader(paths: Sequence[str], steps: Preprocessing, batch_size: int, num_workers: int) -> DataLoader[Tensor]:
    """Its workers start with the first batch that is asked for, and stay."""
    return DataLoader(
        Files(paths, steps),
        batch_size=batch_size,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def classify(network: nn.Module, loader: DataLoader[Tensor]) -> Iterator[tuple[int, float]]:
    """For each file of the loader, in order, the best class and its probability."""
    for views in loader:
        labels, probabilities = average_views(network, views, channels_last=True)
        yield from zip(labels, probabilities, strict=True)


if __name__ == "__main__":
    weights_file, mean_file, std, *files = sys.argv[1:]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = alexnet(load_file(weights_file)).to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    loader = make_loader(files, preprocessing(mean_file, std), batch_size=8, num_workers=2)
    for path, (label, probability) in zip(files, classify(network, loader), strict=True):
        print(path, label, f"{probability:.4f}")
