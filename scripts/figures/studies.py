"""Every measured figure of the documentation: a row each, in the order of measuring.

Commands are run in the checkout's root, in bash, with `OMP_NUM_THREADS=1`, and with `MODELS` and
`DATA` set to directories that docs/MEASURED.md describes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import peers, prefixes, quality, serving, speed

OUTPUT = "out/figures"
RESULTS = "eval/results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One table of the documentation.

    Attributes:
        name: of its block in the documents.
        commands: lines that measure it and leave `results` behind.
        results: JSON files under `eval/results`, in the order in which `shown` takes them.
        shown: from the contents of these files to Markdown.
    """

    name: str
    commands: tuple[str, ...]
    results: tuple[str, ...]
    shown: Callable[[list[dict[str, Any]]], str]


def _program(name: str, arguments: str, kept: str, written: str | None = None) -> tuple[str, str]:
    """A program that writes a directory, and the copy of what is kept of it."""
    directory = f"{OUTPUT}/{kept}"
    return (
        " ".join(("cacheshrink-hybrid", name, *arguments.split(), "--output", directory)),
        f"cp {directory}/{written or name}.json {RESULTS}/{kept}.json",
    )


def _states(name: str, model: str, arguments: str) -> tuple[str, str]:
    return _program("states", f"{model} {arguments} --calibration-samples 16", name)


def _finetuning(name: str, arguments: str) -> str:
    return (
        f"python -m scripts.measure_finetuning {arguments} --threads 1 "
        f"--json {RESULTS}/finetune/{name}.json"
    )


_SHIPPED = "cacheshrink_hybrid/demo/model"
_STORIES = "$DATA/tinystories/sample.txt"
_TEXTS = f"{OUTPUT}/texts"
_LLAMAS = "$MODELS/stories260K $MODELS/babyllama-char105 $MODELS/babyllama-char361"
_POINTS = "2:float32:1 2:float16:1 4:float16:1 8:int8:2"
_SCORED = "--max-chars 1060 --batch-size 15"
_TRACES = "agentic_burst chat churn mixed_long uniform_short " + " ".join(
    f"$DATA/workloads/{name}"
    for name in (
        "azure_llm_2023_code.csv",
        "azure_llm_2023_conv.csv",
        "mooncake_conversation_trace.jsonl",
        "sharegpt_lengths.json",
    )
)
_PREFIX = "cacheshrink-hybrid prefix --requests 400"
_CACHESHRINK = f"python -m scripts.compare_cacheshrink {_LLAMAS} --text {_STORIES} --threads 1"

_REAL = f"{OUTPUT}/SmolLM2-135M-Instruct"
_REAL_MODEL = f"python -m scripts.real_model {_REAL} --cache {OUTPUT}"
_PEERS = (
    f"python -m scripts.compare_peers {_REAL} --calibration $DATA/wikitext-2/valid.txt --threads 1"
)
_CALIBRATED = (
    f"python -m scripts.measure_drift {_REAL} --max-length 512 --ratios 8 --threads 1 --kinds"
)
_CHAT_4X = (
    f"cacheshrink-hybrid convert {_REAL} {OUTPUT}/chat_4x --compression-ratio 4 "
    "--calibration-dataset $DATA/wikitext-2/valid.txt --num-calibration-samples 64"
)
_IN_VLLM = "bash scripts/vllm.sh -m scripts.compare_vllm"
_RETRIEVAL = (
    f"cacheshrink-hybrid retrieval {_REAL} {OUTPUT}/chat_4x {OUTPUT}/chat_8x "
    "--chunk-length 1024 --text $DATA/books/frankenstein.txt"
)
_QUESTIONS = {1024: (4, 16), 2048: (4, 16), 4096: (4, 16), 8192: (2, 8)}
"""Texts of each length, and what is asked about each of them, of each kind."""
_LATENT = "eval/models/mla-recall"
_LONG_READERS = (
    ("rotate", 4),
    ("rotate_joint", 4),
    ("rotate_joint", 6),
    ("per_head", 4),
    ("joint", 4),
)
_PROSE = "books=$DATA/books wiki=$DATA/wikitext-2/valid.txt"
_OTHERS = f"code=python-code chats={OUTPUT}/chats.jsonl"

STUDIES = (
    Study(
        name="demo",
        commands=_program("demo", "", "demo", "results"),
        results=("demo.json",),
        shown=quality.demo,
    ),
    Study(
        name="real model",
        commands=(
            _REAL_MODEL,
            f"{_PEERS} --text $DATA/wikitext-2/test.txt --gguf {_REAL}.Q4_1.gguf "
            f"--json {RESULTS}/peers.json",
            f"{_PEERS} --text $DATA/books/pride_and_prejudice.txt "
            f'--methods "ours ?x" "ours ??x" --json {RESULTS}/peers_book.json',
        ),
        results=("peers.json", "peers_book.json"),
        shown=peers.ours_table,
    ),
    Study(
        name="peers on a real model",
        commands=(
            _REAL_MODEL,
            f"{_PEERS} --text $DATA/wikitext-2/test.txt --gguf {_REAL}.Q4_1.gguf "
            f"--json {RESULTS}/peers.json",
        ),
        results=("peers.json",),
        shown=peers.useful_methods,
    ),
    Study(
        name="sixteen windows",
        commands=(
            _REAL_MODEL,
            *(
                f"{_PEERS} --calibration-samples 16 --text $DATA/{text} "
                f'--methods "ours 4x" "ours 8x" --json {RESULTS}/{name}.json'
                for text, name in (
                    ("wikitext-2/test.txt", "peers_16"),
                    ("books/pride_and_prejudice.txt", "peers_16_book"),
                )
            ),
        ),
        results=("peers_16.json", "peers_16_book.json"),
        shown=peers.ours_table,
    ),
    Study(
        name="retrieval",
        commands=(
            _REAL_MODEL,
            *(
                f"cacheshrink-hybrid convert {_REAL} {OUTPUT}/chat_{ratio}x "
                f"--compression-ratio {ratio} --calibration-dataset $DATA/wikitext-2/valid.txt "
                "--num-calibration-samples 64"
                for ratio in (4, 8)
            ),
            *(
                f"{_RETRIEVAL} --texts {texts} --questions {questions} --lengths {length} "
                f"--json {RESULTS}/retrieval_{length}.json"
                for length, (texts, questions) in _QUESTIONS.items()
            ),
        ),
        results=tuple(f"retrieval_{length}.json" for length in _QUESTIONS),
        shown=quality.retrieval,
    ),
    Study(
        name="calibration",
        commands=(
            _REAL_MODEL,
            f"python -m scripts.figures.conversations {_REAL} $DATA/books {OUTPUT}/chats.jsonl",
            f"{_CALIBRATED} {_PROSE} {_OTHERS} mix=$DATA/books+python-code+{OUTPUT}/chats.jsonl "
            f"--samples 32 --scored 6 --json {RESULTS}/calibration_kinds.json",
            f"{_CALIBRATED} {_PROSE} {_OTHERS} docs=python-docs --calibrated-on docs "
            f"--samples 32 --scored 6 --json {RESULTS}/calibration_docs.json",
        ),
        results=("calibration_kinds.json", "calibration_docs.json"),
        shown=quality.drift,
    ),
    Study(
        name="amounts of calibration",
        commands=(
            _REAL_MODEL,
            f"{_CALIBRATED} {_PROSE} --calibrated-on wiki --samples 4 16 32 64 128 --scored 6 "
            f"--json {RESULTS}/calibration_amounts.json",
        ),
        results=("calibration_amounts.json",),
        shown=quality.drift,
    ),
    Study(
        name="labels of calibration",
        commands=(
            _REAL_MODEL,
            f"{_CALIBRATED} {_PROSE} --calibrated-on wiki --samples 16 64 --scored 12 "
            f'--settings default "drawn labels" --json {RESULTS}/calibration_labels.json',
        ),
        results=("calibration_labels.json",),
        shown=quality.drift,
    ),
    Study(
        name="peers",
        commands=(
            f"{_CACHESHRINK} --methods auto:auto auto:16 separate:16 per_head:auto rotate:auto "
            "--peer-methods auto separate --repetitions 1 "
            f"--json {RESULTS}/compare_cacheshrink.json",
            f"{_CACHESHRINK} --ratios 8 12 16 --methods auto:auto --peer-methods separate "
            f"--repetitions 1 --json {RESULTS}/compare_cacheshrink_high.json",
        ),
        results=("compare_cacheshrink.json", "compare_cacheshrink_high.json"),
        shown=quality.peers,
    ),
    Study(
        name="decoupled keys",
        commands=(
            f"python -m scripts.compare_mla {_LLAMAS} --calibration {_STORIES} "
            "--calibration-length 256 --windows 24 --window-length 256 --threads 1 "
            f"--json {RESULTS}/mla.json",
        ),
        results=("mla.json",),
        shown=quality.mla,
    ),
    Study(
        name="trained decoupled keys",
        commands=(
            f"python -m scripts.compare_mla $MODELS/stories260K --calibration {_STORIES} "
            "--calibration-length 256 --windows 24 --window-length 256 --threads 1 --ratios 4 "
            "--methods ours TransMLA-like --steps 300 "
            f"--json {RESULTS}/mla_trained.json",
        ),
        results=("mla_trained.json",),
        shown=quality.trained_mla,
    ),
    Study(
        name="native latents",
        commands=(
            f"mkdir -p {_TEXTS}",
            f"head -c 300000 {_STORIES} > {_TEXTS}/stories_first.txt",
            f"tail -c 150000 {_STORIES} > {_TEXTS}/stories_last.txt",
            f"cacheshrink-hybrid convert $MODELS/babyllama-char361 {OUTPUT}/decoupled "
            "--compression-method decoupled_rope --compression-ratio 1.33 --cache-bits 16 "
            f"--rank-allocation uniform --calibration-dataset {_TEXTS}/stories_first.txt "
            "--num-calibration-samples 64 --max-calibration-length 256",
            f"cacheshrink-hybrid export {OUTPUT}/decoupled {OUTPUT}/mla",
            f"cacheshrink-hybrid sweep {OUTPUT}/mla --ratios 2 4 --bits auto "
            f"--text {_TEXTS}/stories_last.txt --calibration {_TEXTS}/stories_first.txt "
            "--calibration-samples 64 --max-length 256 --samples 64 "
            f"--output {RESULTS}/sweep_mla",
            f"cacheshrink-hybrid sweep {_LATENT} --ratios 2 4 8 --bits auto --dtype float32 "
            "--max-length 1024 --samples 8 --calibration-samples 64 "
            f"--output {RESULTS}/sweep_mla_recall",
            f"cacheshrink-hybrid convert {_LATENT} {OUTPUT}/mla_recall_4x --compression-ratio 4 "
            "--dtype float32 --num-calibration-samples 64 --max-calibration-length 1024",
            f"cacheshrink-hybrid recall {_LATENT} {OUTPUT}/mla_recall_4x --dtype float32 "
            f"--json {RESULTS}/recall_mla.json",
        ),
        results=("sweep_mla/sweep.json", "sweep_mla_recall/sweep.json", "recall_mla.json"),
        shown=quality.native_latents,
    ),
    Study(
        name="sweep",
        commands=(
            f"cacheshrink-hybrid sweep {_SHIPPED} --dtype float32 --methods joint "
            f"--max-length 1024 --samples 8 --calibration-samples 64 --output {RESULTS}/sweep_demo",
        ),
        results=("sweep_demo/sweep.json",),
        shown=quality.sweep,
    ),
    Study(
        name="drift",
        commands=(
            f"python -m scripts.measure_drift $MODELS/granite-recall-3M --kinds books=$DATA/books "
            f"docs=python-docs stories={_STORIES} wiki=$DATA/wikitext-2/test.txt --samples 12 "
            f"--max-length 384 --letters 60 --threads 1 --json {RESULTS}/drift.json",
            f"python -m scripts.measure_drift $MODELS/stories260K --kinds books=$DATA/books "
            f"stories={_STORIES} wiki=$DATA/wikitext-2/test.txt --samples 32 --max-length 240 "
            f"--threads 1 --json {RESULTS}/drift_llama.json",
        ),
        results=("drift.json", "drift_llama.json"),
        shown=quality.drift,
    ),
    Study(
        name="states",
        commands=(
            f"python -m scripts.figures.texts $DATA/books {OUTPUT}/texts",
            *_states(
                "states_demo",
                _SHIPPED,
                f"--points {_POINTS} 2:float32:1:prune 4:float32:1:prune {_SCORED} "
                "--distances 64 256 --exercises 5",
            ),
            *_states(
                "states_recall",
                "$MODELS/granite-recall-3M",
                f"--points {_POINTS} --text {OUTPUT}/texts/book.txt "
                f"--calibration {OUTPUT}/texts/other_books.txt --batch-size 15 --distances 2 "
                "--exercises 8 --kinds letters text",
            ),
            *_states(
                "states_mamba2",
                "eval/models/mamba2-recall",
                f"--points {_POINTS} 2:float32:1:prune 4:float32:1:prune {_SCORED} "
                "--distances 64 256 --exercises 32 --kinds text keys",
            ),
            *_states(
                "states_mamba2_text_alone",
                "eval/models/mamba2-recall",
                f"--points {_POINTS} {_SCORED} --recall-samples 0 --distances 64 256 "
                "--exercises 32 --kinds text keys",
            ),
        ),
        results=(
            "states_demo.json",
            "states_recall.json",
            "states_mamba2.json",
            "states_mamba2_text_alone.json",
        ),
        shown=quality.states,
    ),
    Study(
        name="long states",
        commands=(
            f"python -m scripts.figures.texts $DATA/books {OUTPUT}/texts",
            *_states(
                "states_drift_demo",
                _SHIPPED,
                f"--points 8:int8:4 --drift 20000 --text {OUTPUT}/texts/beginnings.txt "
                "--batch-size 15",
            ),
        ),
        results=("states_drift_demo.json",),
        shown=quality.long_states,
    ),
    Study(
        name="finetuning",
        commands=tuple(
            _finetuning(name, arguments)
            for name, arguments in (
                (
                    "stories260K_16",
                    f"$MODELS/stories260K --text {_STORIES} --cases 16:auto --seeds 0 1 2 "
                    "--repetitions 0",
                ),
                (
                    "stories260K_16_unconstrained",
                    f"$MODELS/stories260K --text {_STORIES} --cases 16:auto "
                    "--variants unconstrained --repetitions 0",
                ),
                (
                    "stories260K_8",
                    f"$MODELS/stories260K --text {_STORIES} --cases 8:auto --repetitions 0",
                ),
                (
                    "stories260K_4",
                    f"$MODELS/stories260K --text {_STORIES} --cases 4:16 --repetitions 0",
                ),
                (
                    "babyllama-char361_16",
                    f"$MODELS/babyllama-char361 --text {_STORIES} --cases 16:auto --samples 60 "
                    "--repetitions 0",
                ),
                (
                    "demo",
                    "--demo --cases 8:auto:4 --steps 60 --batch-size 4 --max-length 256 "
                    "--samples 16 --repetitions 0",
                ),
                (
                    "validation_16_auto",
                    f"$MODELS/stories260K --text {_STORIES} --cases 16:auto --validation "
                    "--learning-rate-scales 1.0 0.5 1.5 --repetitions 0",
                ),
                (
                    "validation_16_auto_text",
                    f"$MODELS/stories260K --text {_STORIES} --cases 16:auto --validation "
                    "--variants text --repetitions 0",
                ),
            )
        ),
        results=tuple(
            f"finetune/{name}.json"
            for name in (
                "stories260K_16",
                "stories260K_16_unconstrained",
                "stories260K_8",
                "stories260K_4",
                "babyllama-char361_16",
                "demo",
                "validation_16_auto",
                "validation_16_auto_text",
            )
        ),
        shown=quality.finetuning,
    ),
    Study(
        name="training speed",
        commands=(
            _finetuning(
                "throughput",
                f"$MODELS/stories260K --text {_STORIES} --cases 4:16 --steps 20 --samples 16",
            ),
        ),
        results=("finetune/throughput.json",),
        shown=speed.training_speed,
    ),
    Study(
        name="allocators",
        commands=(
            f"cacheshrink-hybrid allocator --traces churn --output {OUTPUT}/allocator",
            f"cp {OUTPUT}/allocator/allocator.json {RESULTS}/allocator_churn.json",
            f"cp {OUTPUT}/allocator/allocator.md {RESULTS}/allocator_churn.md",
            # Every trace: the page that docs/MEASURED.md links to.
            f"cacheshrink-hybrid allocator --traces {_TRACES} --output {OUTPUT}/allocators",
            f"cp {OUTPUT}/allocators/allocator.json {OUTPUT}/allocators/allocator.md "
            f"{OUTPUT}/allocators/allocator.png {RESULTS}",
        ),
        results=("allocator_churn.json",),
        shown=speed.allocators,
    ),
    Study(
        name="prefix reuse",
        commands=(
            f"{_PREFIX} --placements align_528 block_512 dp_3 branch marconi grid learned "
            f"--evictions lru seconds_per_byte learned "
            f"--json {RESULTS}/prefix.json --plot {RESULTS}/prefix.png",
        ),
        results=("prefix.json",),
        shown=prefixes.strategies,
    ),
    Study(
        name="evictions",
        commands=(
            f"{_PREFIX} --workloads documents chats mixed --placements align_528 branch marconi "
            f"learned --json {RESULTS}/prefix_evictions.json "
            f"--plot-requests {RESULTS}/prefix_requests.png",
        ),
        results=("prefix_evictions.json",),
        shown=prefixes.policies,
    ),
    Study(
        name="other seeds",
        commands=tuple(
            f"{_PREFIX} --seed {seed} --placements align_528 dp_3 branch learned --evictions "
            f"seconds_per_byte learned --json {RESULTS}/prefix_seed_{seed}.json"
            for seed in (1, 2)
        ),
        results=("prefix.json", "prefix_seed_1.json", "prefix_seed_2.json"),
        shown=prefixes.held_out,
    ),
    Study(
        name="first tokens",
        commands=(
            f"python -m scripts.bench_prefix --threads 1 --json {RESULTS}/bench_prefix.json",
        ),
        results=("bench_prefix.json",),
        shown=speed.first_tokens,
    ),
    Study(
        name="narrower states",
        commands=(
            f"{_PREFIX} --workloads system_prompts mixed --placements learned "
            '--evictions learned --widths "fp32 states" "bf16 states" "int8 states" '
            f'"4x, int8 states" --json {RESULTS}/prefix_widths.json',
        ),
        results=("prefix_widths.json",),
        shown=prefixes.widths,
    ),
    Study(
        name="kept states",
        commands=(
            f"python -m scripts.measure_kept_states {_SHIPPED} eval/models/mamba2-recall "
            f"--texts 10 --exercises 6 --codes live float16 int8 float8 "
            f"--json {RESULTS}/prefix_states.json",
        ),
        results=("prefix_states.json",),
        shown=prefixes.kept_states,
    ),
    Study(
        name="engine",
        commands=_program("throughput", "", "throughput"),
        results=("throughput.json",),
        shown=serving.engine,
    ),
    Study(
        name="serving",
        commands=(
            _REAL_MODEL,
            _CHAT_4X,
            *(
                f"python -m scripts.compare_serving {_REAL} {OUTPUT}/chat_4x --clients 16 "
                f"--threads 2 --output {length} --llama-server {OUTPUT}/llama-server "
                f"--gguf {_REAL}.Q4_1.gguf --json {RESULTS}/compare_serving_{length}.json"
                for length in (64, 256)
            ),
        ),
        results=("compare_serving_64.json", "compare_serving_256.json"),
        shown=serving.serving,
    ),
    Study(
        name="load",
        commands=(f"python -m scripts.load_server --json {RESULTS}/load_server.json",),
        results=("load_server.json",),
        shown=serving.load,
    ),
    Study(
        name="drafts",
        commands=(
            _REAL_MODEL,
            _CHAT_4X,
            f"cacheshrink-hybrid convert {_SHIPPED} {OUTPUT}/hybrid_4x --compression-ratio 4 "
            "--state-ratio 2 --dtype float32 --num-calibration-samples 16",
            *(
                f"python -m scripts.bench_speculation {OUTPUT}/{model} --tokens 3 7 "
                f"--max-tokens 96 --characters 1500 --json {RESULTS}/speculation_{model}.json"
                for model in ("chat_4x", "hybrid_4x")
            ),
        ),
        results=("speculation_chat_4x.json", "speculation_hybrid_4x.json"),
        shown=serving.drafts,
    ),
    Study(
        name="pooled decoding",
        commands=(f"python -m scripts.bench_cache | tail -n 1 > {RESULTS}/bench_cache.json",),
        results=("bench_cache.json",),
        shown=speed.pooled_decoding,
    ),
    Study(
        name="long contexts",
        commands=(
            _REAL_MODEL,
            *(
                f"cacheshrink-hybrid convert {_REAL} {OUTPUT}/{kind}_{ratio}x "
                f"--compression-ratio {ratio} --compression-method {kind} "
                "--calibration-dataset $DATA/wikitext-2/valid.txt --num-calibration-samples 64 "
                "--max-calibration-length 512"
                for kind, ratio in _LONG_READERS
            ),
            f"python -m scripts.bench_contexts {_REAL} "
            + " ".join(f"{OUTPUT}/{kind}_{ratio}x" for kind, ratio in _LONG_READERS)
            + f" --gguf {_REAL}.Q4_1.gguf --threads 1 --num-new 6 --repetitions 4 "
            f"--json {RESULTS}/bench_contexts.json",
        ),
        results=("bench_contexts.json",),
        shown=speed.long_contexts,
    ),
    Study(
        name="decoding without AVX-512",
        commands=(
            _REAL_MODEL,
            f"cacheshrink-hybrid convert {_REAL} {OUTPUT}/default_4x --compression-ratio 4 "
            "--calibration-dataset $DATA/wikitext-2/valid.txt --num-calibration-samples 64",
            f"python -m scripts.bench_contexts {_REAL} {OUTPUT}/default_4x {OUTPUT}/rotate_4x "
            "--contexts 512 2048 8192 32768 --threads 1 --num-new 4 --repetitions 3 "
            f"--json {RESULTS}/bench_contexts_avx2.json",
        ),
        results=("bench_contexts_avx2.json",),
        shown=speed.long_contexts,
    ),
    Study(
        name="hybrid decoding",
        commands=(
            "python -m scripts.bench_hybrid_decode --threads 1 "
            f"--json {RESULTS}/bench_hybrid_decode.json",
            "python -m scripts.bench_hybrid_decode --hidden-size 1024 --num-new 24 "
            f"--repetitions 3 --threads 1 --json {RESULTS}/bench_hybrid_decode_1024.json",
        ),
        results=("bench_hybrid_decode.json", "bench_hybrid_decode_1024.json"),
        shown=speed.hybrid_decoding,
    ),
    Study(
        name="decoding beside the peer",
        commands=(
            f"python -m scripts.compare_cacheshrink $MODELS/stories260K --text {_STORIES} "
            "--ratios 2 --methods joint:16 --peer-methods auto separate --samples 8 "
            "--calibration-samples 16 --num-new 16 --repetitions 3 --speed-contexts 2048 "
            f"--threads 1 --json {RESULTS}/compare_cacheshrink_speed.json",
        ),
        results=("compare_cacheshrink_speed.json",),
        shown=speed.beside_the_peer,
    ),
    Study(
        name="scale",
        commands=(
            _REAL_MODEL,
            f"python -m scripts.measure_scale --model {_REAL} --text $DATA/wikitext-2/valid.txt "
            f"--sequences 16 --threads 1 --json {RESULTS}/measure_scale.json",
            "python -m scripts.measure_scale --sequences 2 --threads 1 "
            f"--json {RESULTS}/measure_scale_random.json",
        ),
        results=("measure_scale.json", "measure_scale_random.json"),
        shown=speed.scale,
    ),
    Study(
        name="predicted reading",
        commands=(f"python -m scripts.predict_reading --json {RESULTS}/predict_reading.json",),
        results=("predict_reading.json",),
        shown=speed.predicted_reading,
    ),
    Study(
        name="groups of heads",
        commands=(
            f"python -m scripts.measure_head_groups {_REAL} --text $DATA/wikitext-2/valid.txt "
            f"--groups 1 3 --calibration-samples 20 --threads 1 --json {RESULTS}/head_groups.json",
        ),
        results=("head_groups.json",),
        shown=quality.lost_by_groups,
    ),
    Study(
        name="in vLLM",
        commands=(
            _CHAT_4X,
            f"{_IN_VLLM} {OUTPUT}/chat_4x --source {_REAL} --json {RESULTS}/compare_vllm.json",
        ),
        results=("compare_vllm.json",),
        shown=serving.in_vllm,
    ),
    Study(
        name="predicted serving",
        commands=(f"python -m scripts.predict_serving --json {RESULTS}/predict_serving.json",),
        results=("predict_serving.json",),
        shown=serving.predicted_serving,
    ),
)
