from __future__ import annotations

import io
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from alexdeploy.images.pixel_budget import PixelBudget

SECONDS = 60


class Counter:
    """The most pixels that were held at a time."""

    def __init__(self) -> None:
        self.most = self._now = 0
        self._lock = threading.Lock()

    def add(self, number: int) -> None:
        with self._lock:
            self._now += number
            self.most = max(self.most, self._now)


def test_no_more_pixels_are_held_than_the_budget_has() -> None:
    budget, held = PixelBudget(100, 10), Counter()

    def decode(num_pixels: int) -> None:
        with budget.take(num_pixels):
            held.add(num_pixels)
            threading.Event().wait(0.001)
            held.add(-num_pixels)

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(decode, 11 + 7 * number % 90) for number in range(200)]:
            done.result(SECONDS)
    assert 50 < held.most <= 100


def test_an_image_larger_than_the_budget_is_decoded_alone_and_small_ones_never_wait() -> None:
    budget = PixelBudget(100, 10)
    with budget.take(1000):
        # In this thread: if it waited it would wait for ever.
        with budget.take(10):
            pass
        other = threading.Thread(target=lambda: budget.take(11).__enter__())
        other.start()
        other.join(0.05)
        assert other.is_alive()
    other.join(SECONDS)
    assert not other.is_alive()


def test_an_error_while_decoding_gives_the_place_back() -> None:
    budget = PixelBudget(100, 10)
    for _ in range(3):
        with pytest.raises(ValueError, match="damaged"), budget.take(100):
            raise ValueError("damaged")


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of its memory from /proc")
def test_small_files_of_many_pixels_do_not_take_the_memory_of_all_at_once(tmp_path: Path) -> None:
    # 64 million pixels, 4 bytes each in memory: 256 MB, and as much again for what is made of them.
    file = io.BytesIO()
    Image.new("RGB", (8000, 8000), (10, 20, 30)).save(file, "PNG")
    (tmp_path / "large.png").write_bytes(file.getvalue())
    assert len(file.getvalue()) < 1 << 20
    program = (
        "import sys\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from pathlib import Path\n"
        "from alexdeploy.images import decode, pixel_budget\n"
        "data = Path(sys.argv[1]).read_bytes()\n"
        # That of a machine with up to seven processors.
        "decode._BUDGET = pixel_budget.PixelBudget(decode.MAX_PIXELS, 4 << 20)\n"
        "with ThreadPoolExecutor(2) as threads:\n"
        "    images = list(threads.map(decode.decode, [data] * 2))\n"
        "assert all((image == [10, 20, 30]).all() for image in images)\n"
        "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "print(int(status['VmHWM'].split()[0]) // 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "large.png")],
        capture_output=True,
        text=True,
        timeout=SECONDS * 4,
        check=True,
    )
    # MB: Python with Pillow and NumPy takes 50, one image 256, and two would take 512.
    assert int(done.stdout) < 450
