"""Requests find the exact rows that they read, whatever vLLM drops, keeps or takes up again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM on CPUs: bash scripts/vllm.sh")
from vllm import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry
from vllm.v1.request import Request

from cacheshrink_hybrid.vllm.blocks import BlockSize, exact_size
from cacheshrink_hybrid.vllm.cache_specs import (
    ExactRowsManager,
    ExactRowsSpec,
    TokenRowsSpec,
    register_specs,
)

pytestmark = pytest.mark.vllm

TOKENS = BlockSize.of([{0: 64, 1: 64}], 8)
EXACT = exact_size([{0: 160, 1: 160}], TOKENS)
MODEL_LEN = 96
PIECE = 24


def _manager(num_blocks: int, sinks: int, window: int, *, keeps: bool = True) -> KVCacheManager:
    specs = {
        "rows": TokenRowsSpec.of(TOKENS),
        "exact": ExactRowsSpec.of(EXACT, num_sinks=sinks, window=window),
    }
    assert EXACT.block_tokens == 2
    assert len({spec.page_size_bytes for spec in specs.values()}) == 1
    register_specs()
    config = KVCacheConfig(
        num_blocks=num_blocks,
        kv_cache_tensors=[],
        kv_cache_groups=[KVCacheGroupSpec([name], spec) for name, spec in specs.items()],
        prefix_cache_retention_interval=0,
    )
    return KVCacheManager(
        config,
        max_model_len=MODEL_LEN,
        scheduler_block_size=TOKENS.block_tokens,
        hash_block_size=EXACT.block_tokens,
        max_in_flight_tokens=PIECE,
        enable_caching=keeps,
    )


class Memory:
    """Runs requests piece by piece, and looks at every row that their tokens read.

    A row is known by the tokens up to its own, so that a row of another text is found out.
    """

    def __init__(self, manager: KVCacheManager, sinks: int, window: int) -> None:
        self.manager, self.sinks, self.window = manager, sinks, window
        self.rows: dict[tuple[int, int, int], tuple[int, ...]] = {}
        self.taken_up = self.read = 0

    def step(self, request: Request) -> bool:
        """Feed the next piece of a request; False where there is no room."""
        computed, blocks = request.num_computed_tokens, None
        known = 0
        if not computed:
            blocks, known, _ = self.manager.get_computed_blocks(request)
        count = min(PIECE, request.num_tokens - computed - known)
        given = self.manager.allocate_slots(request, count, known, blocks)
        if given is None:
            return False
        self.taken_up += known
        begin, end = computed + known, computed + known + count
        tables = self.manager.get_block_ids(request.request_id)
        for group, (table, layout) in enumerate(zip(tables, (TOKENS, EXACT), strict=True)):
            for at in range(begin, end):
                self.rows[self._place(group, table, layout, at)] = self._row(request, at)
            for at in range(end) if group == 0 else self._exact_slots(begin, end):
                assert self.rows.get(self._place(group, table, layout, at)) == self._row(
                    request, at
                )
                self.read += group
        request.num_computed_tokens = end
        return True

    def _exact_slots(self, begin: int, end: int) -> Iterator[int]:
        """Slots whose exact rows the tokens from `begin` on, and before `end`, read."""
        first = begin - self.window + 1 if self.window else end
        yield from (at for at in range(end) if at < self.sinks or at >= first)

    def _place(self, group: int, table: list[int], size: BlockSize, at: int) -> Any:
        block = table[at // size.block_tokens]
        assert block, f"token {at} of group {group} has no block"
        # Blocks of both groups are the same memory.
        for other in range(2):
            if other != group:
                for place in range((TOKENS, EXACT)[other].block_tokens):
                    self.rows.pop((other, block, place), None)
        return group, block, at % size.block_tokens

    def _row(self, request: Request, at: int) -> tuple[int, ...]:
        return tuple(request.all_token_ids[: at + 1])


def _requests(seed: int) -> Iterator[Request]:
    """Texts that often begin like others."""
    draw = random.Random(seed)
    texts: list[list[int]] = [[]]
    while True:
        begun = draw.choice(texts)[: draw.choice((8, 16, 40, 64))]
        text = [*begun, *(draw.randrange(9) for _ in range(draw.randrange(1, 30)))][:MODEL_LEN]
        texts.append(text)
        yield _request(f"{seed} {len(texts)}", text)


def _request(name: str, text: list[int]) -> Request:
    init_none_hash(sha256)
    hasher = get_request_block_hasher(EXACT.block_tokens, sha256)
    return Request(name, text, SamplingParams(max_tokens=1), None, block_hasher=hasher)


@pytest.mark.parametrize(("sinks", "window"), [(3, 5), (0, 7), (4, 0), (1, 20)])
@pytest.mark.parametrize("keeps", [True, False])
def test_requests_find_what_they_read(sinks: int, window: int, keeps: bool) -> None:
    manager = _manager(90, sinks, window, keeps=keeps)
    memory, coming, draw = Memory(manager, sinks, window), _requests(window), random.Random(sinks)
    running: list[Request] = []
    room = manager.block_pool.get_num_free_blocks()
    for _ in range(700):
        if len(running) < 4:
            running.append(next(coming))
        request = draw.choice(running)
        ended = request.num_computed_tokens == request.num_tokens
        if ended and request.num_tokens < MODEL_LEN and draw.random() < 0.8:
            request.append_output_token_ids(draw.randrange(9))
        elif ended or draw.random() < 0.02:
            manager.free(request)
            running.remove(request)
            continue
        if not memory.step(request):  # preempted
            victim = draw.choice(running)
            manager.free(victim)
            victim.num_computed_tokens = 0
    for request in running:
        manager.free(request)
    assert manager.block_pool.get_num_free_blocks() == room
    assert memory.read > 1000
    assert (memory.taken_up > 200) if keeps else not memory.taken_up


def test_blocks_behind_the_window_are_given_back() -> None:
    manager = _manager(90, 3, 5, keeps=False)
    memory = Memory(manager, 3, 5)
    request = _request("0", [1] * 90)
    while request.num_computed_tokens < 90:
        assert memory.step(request)
    request.append_output_token_ids(1)
    assert memory.step(request)
    _, exact = manager.get_block_ids("0")
    held = [number for number, block in enumerate(exact) if block]
    assert held == [0, 1, 43, 44, 45]  # tokens 0 to 3, and 86 to 90


@pytest.mark.parametrize("left", range(1, 40))
def test_room_of_kept_first_tokens_is_counted(left: int) -> None:
    """Blocks that are taken up are not free any more: there is room for a request, or there is not,
    but never for a part of it."""
    manager = _manager(90, 3, 5)
    memory = Memory(manager, 3, 5)
    for name in ("first", "second"):
        request = _request(name, [*[1] * 64, *range(2, 8)])
        while request.num_computed_tokens < request.num_tokens and memory.step(request):
            pass
        manager.free(request)
        pool = manager.block_pool
        pool.get_new_blocks(max(0, pool.get_num_free_blocks() - left))


def test_a_request_at_its_longest_is_admitted() -> None:
    """What vLLM reserves is what a request may come to hold."""
    spec = ExactRowsSpec.of(EXACT, num_sinks=3, window=5)
    most = spec.max_admission_blocks_per_request(PIECE, MODEL_LEN)
    assert most == -(-(4 + PIECE) // 2) + 1 + 2
    assert spec.max_admission_blocks_per_request(PIECE, 10) == 6


def test_specs_of_vllm_stay_registered() -> None:
    register_specs()
    register_specs()
    exact = ExactRowsSpec.of(EXACT, num_sinks=3, window=5)
    assert KVCacheSpecRegistry.get_manager_class(exact) is ExactRowsManager
    tokens = TokenRowsSpec.of(TOKENS)
    assert KVCacheSpecRegistry.get_manager_class(tokens) is FullAttentionManager
