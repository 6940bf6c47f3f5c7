"""Seeding of only the generators in use, in microseconds.

``torch.manual_seed`` seeds every device type, and records a stack trace for each that is not initialized, which takes
as long as a small training step.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derived_seed(*parts: object) -> int:
    """Return a seed derived from all parts, the same on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def seed(number: int, device: torch.device) -> None:
    """Seed the generators of the CPU and of a device."""
    torch.default_generator.manual_seed(number)
    if device.type not in ("cpu", "meta"):
        torch.get_device_module(device).manual_seed(number)


@contextmanager
def seeded_apart(number: int, device: torch.device) -> Iterator[None]:
    """Seed the generators of the CPU and of a device, and restore their states afterwards."""
    module = None if device.type in ("cpu", "meta") else torch.get_device_module(device)
    cpu_state = torch.default_generator.get_state()
    device_state = None if module is None else module.get_rng_state()
    seed(number, device)
    try:
        yield
    finally:
        torch.default_generator.set_state(cpu_state)
        if module is not None:
            module.set_rng_state(device_state)
