"""Which document stands in which slot: continuous batching as plain host logic, without JAX.

A slot whose document has ended is given the next one while the others go on. Free slots are filled
evenly over the devices, so that a few last documents are spread out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np


@dataclasses.dataclass(frozen=True)
class Request:
    """A document to be written.

    Attributes:
      index: its place in the plan.
      prompt: tokens, at least one.
      key: uint32 [2], key data.
    """

    index: int
    prompt: list[int]
    key: np.ndarray


# What one prefill reads: for each device the slots to fill and what goes there.
Filling = list[list[tuple[int, Request]]]


class Slots:
    """The occupants of all slots of all devices.

    Args:
      devices: X.
      slots: S, of each device.
      rows: R, most prompts that one prefill reads on a device.
    """

    def __init__(self, devices: int, slots: int, rows: int):
        self.rows = rows
        self.occupants: list[list[Request | None]] = [[None] * slots for _ in range(devices)]

    @property
    def busy(self) -> int:
        """How many slots hold a document."""
        return sum(request is not None for row in self.occupants for request in row)

    def refill(self, requests: Iterator[Request]) -> list[Filling]:
        """Takes requests into free slots until there are no more of either.

        Returns:
          The prefills to run, in order.
        """
        free = [
            [slot for slot, request in enumerate(row) if request is None] for row in self.occupants
        ]
        filled: Filling = [[] for _ in free]
        for turn in range(max(map(len, free))):
            for device, slots in enumerate(free):
                if turn < len(slots) and (request := next(requests, None)) is not None:
                    self.occupants[device][slots[turn]] = request
                    filled[device].append((slots[turn], request))
        return [
            [pairs[start : start + self.rows] for pairs in filled]
            for start in range(0, max(map(len, filled)), self.rows)
        ]

    def release(self, ended: np.ndarray) -> list[tuple[int, int, Request]]:
        """Frees the slots whose documents have ended.

        Args:
          ended: bool [X, S]; free slots may be anything.

        Returns:
          Device, slot and request of each document that has ended.
        """
        released = []
        for device, slot in np.argwhere(ended).tolist():
            request = self.occupants[device][slot]
            if request is not None:
                self.occupants[device][slot] = None
                released.append((device, slot, request))
        return released
