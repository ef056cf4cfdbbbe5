"""The kernels and sizes that `compile_kernels` compiles: those of real models at 4x and 8x."""

from __future__ import annotations

import torch

from .compile_kernels import ASYNC_COPY, MATRIX, WARPGROUP, WIDE_LOAD, WIDE_STORE, Case
from .kernel_workloads import MIXED_AT_4X
from .latent_launches import (
    LAYOUTS,
    SMALL_AT_4X,
    absorb,
    append,
    append_narrow,
    append_plain,
    decode_plain,
    everything,
    in_two_passes,
    in_two_passes_narrow,
    rebuilt,
)
from .state_launches import conv, copy, gdn, gdn_replay, mamba1, replay, ssd

DECODE = (MATRIX, WIDE_LOAD, ASYNC_COPY)
STREAM = (WIDE_LOAD, WIDE_STORE)

CASES = [
    *(
        Case(
            f"latent_decode-absorb-{name}",
            absorb(name),
            needs=DECODE,
            everywhere=name in ("float16", "e4m3", "mixed"),
        )
        for name in LAYOUTS
        if name not in ("float32", "mixed-1840")
    ),
    Case("latent_decode-absorb-8-64heads", absorb("8", heads=64), needs=(*DECODE, WARPGROUP)),
    Case(
        "latent_decode-absorb-mixed-64heads", absorb("mixed", heads=64), needs=(*DECODE, WARPGROUP)
    ),
    # Frames of 16 slots, and of 24, where tiles cannot lie in one frame.
    Case("latent_decode-absorb-8-frames16", absorb("8", frame_tokens=16), needs=DECODE),
    Case("latent_decode-absorb-mixed-frames16", absorb("mixed", frame_tokens=16), needs=DECODE),
    Case("latent_decode-absorb-8-frames24", absorb("8", frame_tokens=24), needs=DECODE),
    Case("latent_decode-absorb-mixed-frames24", absorb("mixed", frame_tokens=24), needs=DECODE),
    Case("latent_decode-absorb-float16-16heads", absorb("float16", heads=16), needs=DECODE),
    Case("latent_decode-absorb-8-float32", absorb("8", dtype=torch.float32), hot=False),
    Case("latent_decode-absorb-float32", absorb("float32", dtype=torch.float32), hot=False),
    *(
        Case(
            f"latent_decode-rebuilt-{'per_head' if per_head else 'joint'}-{bits}",
            rebuilt(bits, per_head=per_head),
            needs=DECODE,
        )
        for per_head, bits in [(True, 16), (True, 8), (True, 5), (False, 16), (False, 8)]
    ),
    Case(
        "latent_decode-rebuilt-per_head-mixed",
        rebuilt(6, 5, 4, 3, per_head=True),
        needs=DECODE,
    ),
    Case(
        "latent_decode-rebuilt-normalized-joint-8",
        rebuilt(8, per_head=False, normalized=True),
        needs=DECODE,
    ),
    # An 8 B and a 70 B model at 4x, rows of one width, and a model of 135 M.
    *(
        Case(
            f"latent_passes-{mode}-{name}",
            in_two_passes(runs, mode, heads=heads, key_heads=J, head_dim=head_dim),
            needs=DECODE if everywhere else (*DECODE, WARPGROUP),
            everywhere=everywhere,
        )
        for mode, name, runs, heads, J, head_dim, everywhere in (
            ("rotate", "mixed-1840", MIXED_AT_4X, 32, 8, 128, True),
            ("rotate", "mixed-1840-64heads", MIXED_AT_4X, 64, 8, 128, False),
            ("rotate", "8-1024", [(1024, 8)], 32, 8, 128, False),
            ("rotate", "mixed-352", SMALL_AT_4X, 9, 3, 64, False),
            ("absorb", "mixed-1840", MIXED_AT_4X, 32, 8, 128, True),
            ("absorb", "mixed-1840-64heads", MIXED_AT_4X, 64, 8, 128, False),
            ("reconstruct", "mixed-1840", MIXED_AT_4X, 32, 8, 128, False),
            ("reconstruct", "mixed-352", SMALL_AT_4X, 9, 3, 64, False),
        )
    ),
    *(
        Case(f"latent_passes-{mode}-narrow", in_two_passes_narrow(mode), hot=False)
        for mode in ("absorb", "rotate", "reconstruct")
    ),
    Case(
        "latent_passes-rotate-float32",
        in_two_passes([(512, 8)], "rotate", dtype=torch.float32),
        hot=False,
    ),
    Case("latent_decode-narrow-absorb", everything(rebuilt=False), hot=False),
    Case("latent_decode-narrow-rebuilt", everything(rebuilt=True), hot=False),
    Case("latent_append-mixed", append("mixed"), everywhere=True),
    Case("latent_append-mixed-512", append("mixed-512")),
    Case("latent_append-mixed-1840", append("mixed-1840")),
    Case("latent_append-float32", append("float32"), hot=False),
    Case("latent_decode-plain", decode_plain, hot=False),
    Case("latent_append-narrow", append_narrow, hot=False),
    Case("latent_append-plain", append_plain, hot=False),
    # Nemotron-H at full and half rank, Falcon-H1, Qwen3-Next, Jamba.
    *(
        Case(
            f"ssd_step-128x64x{rank}-{code}",
            ssd(128, 64, rank, 8, code),
            needs=STREAM,
            everywhere=rank == 64,
        )
        for rank, code in [(128, "float32"), (128, "float16"), (64, "float16"), (64, "int8")]
    ),
    Case("ssd_step-24x128x128-float16", ssd(24, 128, 128, 2, "float16"), needs=STREAM),
    Case("ssd_step-128x64x64-float8", ssd(128, 64, 64, 8, "float8"), needs=STREAM, everywhere=True),
    Case("ssd_step-8x24x12-int8", ssd(8, 24, 12, 1, "int8"), hot=False),
    *(
        Case(f"gdn_step-32x128x{rank}-{code}", gdn(32, 128, rank, 16, code), needs=STREAM)
        for rank, code in [(128, "float32"), (64, "float16"), (64, "int8")]
    ),
    *(
        Case(f"gdn_replay-32x128x64-{code}", gdn_replay(32, 128, 64, 16, code), needs=STREAM)
        for code in ("float16", "int8")
    ),
    Case("mamba1_step-8192x16-bfloat16", mamba1(8192, 16, "bfloat16"), needs=STREAM),
    *(
        Case(
            f"ssd_replay-read-128x64x64-{code}",
            replay(128, 64, (64,) * 8, code, flush=False),
            needs=(WIDE_LOAD,),
        )
        for code in ("float16", "int8")
    ),
    Case(
        "ssd_replay-flush-128x64x64-float16",
        replay(128, 64, (64,) * 8, "float16", flush=True),
        needs=STREAM,
    ),
    # Groups of different ranks, one launch for those of each.
    *(
        Case(
            f"ssd_replay-{'flush' if flush else 'read'}-128x64x64+48-float16",
            replay(128, 64, (64,) * 4 + (48,) * 4, "float16", flush=flush),
            needs=STREAM if flush else (WIDE_LOAD,),
        )
        for flush in (False, True)
    ),
    # Nemotron-H, the same with a folded B, Qwen3-Next, and Jamba, which convolves only.
    Case(
        "conv_update_project-10240-128x64",
        conv(10240, ("values", "write", "read"), groups=8, rank=64),
        needs=(WIDE_LOAD,),
    ),
    Case("conv_update_project-read", conv(9728, ("values", "read"), groups=8, rank=64)),
    Case("conv_update_project-delta", conv(8192, ("read", "write", "values"), groups=16, rank=64)),
    Case("conv_update_project-values", conv(8192, ("values",))),
    Case("pool_copy", copy, needs=STREAM),
]
