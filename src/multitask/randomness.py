"""Seeds for the generators in use, set in microseconds.

``torch.manual_seed`` seeds those of every kind of device there might be, and for each that is not in use it
writes down a stack trace: as long as a small step takes.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derived_seed(*parts: object) -> int:
    """Return a seed that depends on all the parts, the same on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def seed(number: int, device: torch.device) -> None:
    """Seed the generators of the CPU and of a device."""
    torch.default_generator.manual_seed(number)
    if device.type not in ("cpu", "meta"):
        torch.get_device_module(device).manual_seed(number)


@contextmanager
def seeded_apart(number: int, device: torch.device) -> Iterator[None]:
    """Draw from generators that start at a seed, and leave those of CPU and device as they were."""
    own = None if device.type in ("cpu", "meta") else torch.get_device_module(device)
    kept = torch.default_generator.get_state()
    kept_there = None if own is None else own.get_rng_state()
    seed(number, device)
    try:
        yield
    finally:
        torch.default_generator.set_state(kept)
        if own is not None:
            own.set_rng_state(kept_there)
