"""One vLLM process on the CPU: serve one prompt with a KV connector on a directory, and say what was reused.

    run_vllm.py --connector fs_tier|example --directory DIR --model DIR --result FILE [--tokens N] [--settle N]

Runs in vLLM's environment. The result is JSON: generated tokens, their log-probability, prompt tokens whose KV came
from files, seconds to the first token, and samples of what lies in DIR, for a search for plaintext.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

BLOCK_TOKENS = 128
SAMPLED_FILES = 24
SAMPLES_PER_FILE = 64
SAMPLE_BYTES = 64

# read by vLLM when it is imported
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "PYTHONHASHSEED": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def connector(name: str, directory: Path) -> tuple[str, dict[str, Any]]:
    """vLLM's name of the connector, and its extra configuration."""
    if name == "example":
        return "ExampleConnector", {"shared_storage_path": str(directory)}
    tier = {"type": "fs", "root_dir": str(directory), "n_read_threads": 4, "n_write_threads": 4}
    return "OffloadingConnector", {
        "spec_name": "CpuTieringSpec",
        "spec_module_path": "cpu_offload_spec",
        "cpu_bytes_to_use": 256 << 20,
        "secondary_tiers": [tier],
    }


def serve(arguments: argparse.Namespace) -> dict[str, Any]:
    """Start the engine, serve the prompt, let asynchronous stores drain."""
    from tiny_model import prompt
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig

    name, extra = connector(arguments.connector, arguments.directory)
    engine = LLM(
        # a relative name: it is what vLLM makes file names of
        model=arguments.model.name,
        skip_tokenizer_init=True,
        enforce_eager=True,
        dtype="bfloat16",
        max_model_len=4096,
        block_size=BLOCK_TOKENS,
        seed=0,
        max_num_seqs=2,
        disable_log_stats=False,
        kv_transfer_config=KVTransferConfig(kv_connector=name, kv_role="kv_both", kv_connector_extra_config=extra),
    )
    sampling = SamplingParams(temperature=0, max_tokens=8, detokenize=False, logprobs=1)

    def generate(ids: list[int]) -> Any:
        return engine.generate([{"prompt_token_ids": ids}], sampling, use_tqdm=False)[0]

    generate([9] * 40)  # warms the kernels; shorter than one block, so nothing of it is stored
    output = generate(prompt(arguments.tokens))
    for _ in range(arguments.settle):
        generate([9] * 40)
        time.sleep(0.3)
    answer = output.outputs[0]
    return {
        "tokens": list(answer.token_ids),
        "score": answer.cumulative_logprob,
        "skipped": output.num_cached_tokens or 0,
        "first_token_seconds": output.metrics.first_token_latency,
    }


def samples(directory: Path) -> dict[str, list[str]]:
    """Relative path -> runs of its content in hexadecimal, of up to 24 files below `directory`, chosen evenly."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    chosen = paths[:: max(1, len(paths) // SAMPLED_FILES)]
    generator = random.Random(0)
    found = {}
    for path in chosen:
        data = path.read_bytes()
        starts = [generator.randrange(max(1, len(data) - SAMPLE_BYTES)) for _ in range(SAMPLES_PER_FILE)]
        found[str(path.relative_to(directory))] = [data[start : start + SAMPLE_BYTES].hex() for start in starts]
    return found


def main() -> None:
    """Run one phase and write its result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--connector", choices=("fs_tier", "example"), required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=3089)
    parser.add_argument("--settle", type=int, default=0)
    arguments = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    os.chdir(arguments.model.parent)
    result = serve(arguments)
    result["samples"] = samples(arguments.directory)
    arguments.result.write_text(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)  # engines leave threads behind; nothing is pending


if __name__ == "__main__":
    main()
