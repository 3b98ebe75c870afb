"""An offloading spec for vLLM, by its official hook, so that the stock `fs` tier runs on a CPU.

Stock TieringOffloadingSpec refuses a CPU in get_worker() only: its worker copies between device and host with CUDA
streams. Here the "device" is host memory, so the worker copies at once. Scheduler, tiering and the `fs` tier, which is
the part that touches files, are vLLM's own. Loaded with kv_connector_extra_config: spec_name and spec_module_path.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

COPY_SECONDS = 1e-6
"""Reported per copy; vLLM divides by it."""


class CopyWorker(OffloadingWorker):  # type: ignore[misc]  # vLLM is not installed where mypy runs
    """Copies KV blocks between two regions of host memory, synchronously."""

    def __init__(self, caches: Any, region: Any) -> None:
        self._region = region
        self._finished: list[Any] = []
        self._device = [t.tensor.view(torch.int8).view(-1, t.page_size_bytes) for t in caches.tensors]
        self._host = [region.create_next_worker_view(t.page_size_bytes) for t in caches.tensors]

    def _copy(self, job: int, direction: tuple[list[Any], list[Any]], sources: Any, targets: Any) -> bool:
        source_rows, target_rows = torch.from_numpy(sources).long(), torch.from_numpy(targets).long()
        copied_bytes = 0
        for source, target in zip(*direction, strict=True):
            target[target_rows] = source[source_rows]
            copied_bytes += len(source_rows) * source.shape[1]
        self._finished.append(TransferResult(job, True, copied_bytes, COPY_SECONDS))
        return True

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        """Device to host."""
        return self._copy(job_id, (self._device, self._host), src_spec.block_ids, dst_spec.block_ids)

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        """Host to device."""
        return self._copy(job_id, (self._host, self._device), src_spec.block_ids, dst_spec.block_ids)

    def get_finished(self) -> list[Any]:
        """Results of copies since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def wait(self, job_ids: Any) -> None:
        """Nothing to wait for: copies are done when they are submitted."""

    def shutdown(self) -> None:
        """Release the shared region."""
        self._device, self._host = [], []
        self._region.cleanup()


class CpuTieringSpec(TieringOffloadingSpec):  # type: ignore[misc]  # vLLM is not installed where mypy runs
    """The stock tiering spec with a worker for host memory."""

    _worker: Any

    def get_worker(self, kv_caches: Any) -> Any:
        """The one worker of this process."""
        if not self._worker:
            assert self.blocks_per_chunk == 1
            assert len(self.tokens_per_block) == 1
            region = SharedOffloadRegion(
                engine_id=self._engine_id,
                num_chunks=self.num_chunks,
                rank=self.config.parallel.rank,
                kv_bytes_per_chunk=self.kv_bytes_per_chunk,
                cpu_page_size=self.cpu_page_size_per_worker,
            )
            self._worker = CopyWorker(kv_caches, region)
        return self._worker
