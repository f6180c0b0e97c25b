"""The most that a run takes of memory and of a disk, while it goes on."""

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

LOOK_EVERY_SEC = 0.005
"""Time between two looks at a CPU's memory."""

SHRINKS = ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
"""Python's own events before which a folder holds the most: it shrinks by nothing else."""

_hooks: list[Callable] = []
_open_peaks: list["DiskPeak"] = []


class MemoryPeak:
    """Most memory taken while open, beyond what was taken before: `n_bytes`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> "MemoryPeak":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
            return self
        self.process, self.is_over = psutil.Process(), threading.Event()
        self.before = self.most = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.device.type == "cuda":
            self.most = torch.cuda.max_memory_allocated(self.device)
        else:
            self.is_over.set()
            self.thread.join()
        self.n_bytes = self.most - self.before

    def _look(self) -> None:
        while not self.is_over.wait(LOOK_EVERY_SEC):
            self.most = max(self.most, self.process.memory_info().rss)


class DiskPeak:
    """Most bytes that a folder's files have while open, `n_peak`, and when closed, `n_final`; exact, for one process.

    A folder shrinks only where a file is removed or takes another's name, and Python says so just before.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.n_peak, self._is_looking = folder, 0, False

    def __enter__(self) -> "DiskPeak":
        if not _hooks:
            sys.addaudithook(_look_at_disks)
            _hooks.append(_look_at_disks)
        self.n_before = self.size()
        _open_peaks.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        _open_peaks.remove(self)
        self.n_final = self.size()
        self.n_peak = max(self.n_peak, self.n_final)

    def look(self) -> None:
        """Take in what is there now; what looking itself does is no news."""
        if self._is_looking:
            return
        self._is_looking = True
        try:
            self.n_peak = max(self.n_peak, self.size())
        finally:
            self._is_looking = False

    def size(self) -> int:
        """Bytes of all files."""
        return sum(os.lstat(path).st_size for path in self.folder.rglob("*") if path.is_file())


def _look_at_disks(event: str, args: tuple) -> None:
    """Python keeps such a function for ever; it does nothing where no peak is looked for."""
    if event in SHRINKS:
        for each in _open_peaks:
            each.look()
