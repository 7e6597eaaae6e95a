"""The generators of all nodes of a tree for one image, seeded together.

Each is NumPy's SFC64, seeded with SeedSequence([8 words of the image's entropy, node number]).
SeedSequence and SFC64 take about 10 us for one node, as long as all its draws. But SeedSequence
mixes its words one by one into a pool of four. NumPy makes the pool of the image's words once, and
the last word of every node is mixed in here, by the same algorithm (numpy/random/bit_generator.pyx,
after M. O'Neill's seed_seq_fe).
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence

INIT_A, MULT_A, INIT_B, MULT_B = 0x43B0D7E5, 0x931E8875, 0x8B51F9DD, 0x58F38DED
MIX_L, MIX_R = 0xCA01F9DD, 0x4973F715
MASK = 0xFFFFFFFF
HALF = np.uint32(16)
MIX_LEFT = np.uint32(MIX_L)
WORDS = 8  # of entropy, before the node's number
POOL = 4
STATE_WORDS = np.array([0, 1, 2, 3, 0, 1])  # words of the pool that make SFC64's 3 x 64 bits
# SeedSequence hashes each word of the pool once, then each with each other one, then each further
# word with the whole pool. Every hash multiplies a running constant.
HASHES_BEFORE = POOL + POOL * (POOL - 1) + (WORDS - POOL) * POOL


class Stream:
    """The generator of one node, in the state of imgaug's RNG. It is created at the first draw."""

    __slots__ = ("_generator", "_halved", "_skips", "_state")

    def __init__(self, state: np.ndarray) -> None:
        self._state = state
        self._generator: np.random.Generator | None = None
        self._skips = 0
        self._halved = False

    def advance(self, steps: int = 1) -> None:
        """Skip that many numbers before the next draw, if there is one.

        imgaug does this after every draw, even of a constant. It also drops the unused half of a
        64-bit number of which a draw used 32 bits.
        """
        self._skips += steps

    def generator(self, halves: bool = False) -> np.random.Generator:
        """The generator for the next draw; `halves` if the draw takes 32 bits per number."""
        generator, skips = self.generator_and_skips()
        if skips:
            generator.random(skips)
        self._halved |= halves
        return generator

    def generator_and_skips(self) -> tuple[np.random.Generator, int]:
        """The generator, and how many of its numbers the next draw must skip first."""
        if self._generator is None:
            seeded: Any = _Seeded(self._state)
            self._generator = np.random.Generator(np.random.SFC64(seeded))
        skips, self._skips = self._skips, 0
        if self._halved and skips:
            state: Any = self._generator.bit_generator.state
            state["has_uint32"] = 0
            self._generator.bit_generator.state = state
            self._halved = False
        return self._generator, skips


class Seeds:
    """The seeds of `nodes` nodes, numbered from 0."""

    def __init__(self, nodes: int) -> None:
        hashed = np.empty((nodes, POOL), np.uint32)
        constant = INIT_A * pow(MULT_A, HASHES_BEFORE, 1 << 32) & MASK
        for i in range(POOL):
            value = np.arange(nodes, dtype=np.uint32) ^ np.uint32(constant)
            constant = constant * MULT_A & MASK
            value *= np.uint32(constant)
            hashed[:, i] = value ^ (value >> HALF)
        self._hashed = hashed * np.uint32(MIX_R)
        constants = [INIT_B * pow(MULT_B, i, 1 << 32) & MASK for i in range(7)]
        self._before = np.array(constants[:6], np.uint32)
        self._after = np.array(constants[1:], np.uint32)

    def states(self, entropy: np.ndarray) -> np.ndarray:
        """The initial state of each node's `Stream`, (nodes, 3) uint64, for an image with this
        entropy, (8,) uint32."""
        pool = np.random.SeedSequence(entropy).pool
        pool *= MIX_LEFT
        mixed = pool - self._hashed
        mixed ^= mixed >> HALF
        states = mixed.take(STATE_WORDS, axis=1)
        states ^= self._before
        states *= self._after
        states ^= states >> HALF
        if sys.byteorder == "little":
            return states.view(np.uint64)
        return states.astype("<u4").view("<u8").astype(np.uint64)


class _Seeded(ISeedSequence):
    """A seed sequence whose numbers have been computed already."""

    def __init__(self, state: np.ndarray) -> None:
        self._state = state

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        return self._state
