"""Compare training steps with and without DistributedDataParallel over NCCL, and test collectives. Run by torchrun."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from claris_kaggle.core.time_limit import exit_process
from claris_kaggle.training.learner import _SYNC_BUFFERS, _train_step
from tests.gpu.test_gpu_steps import GPU, assert_same_steps, batch_of, learner_of


def main(out: str) -> None:
    torch.backends.cudnn.deterministic = True
    dist.init_process_group("cpu:gloo,cuda:nccl")
    plain, wrapped = learner_of("fp16"), learner_of("fp16")
    unsynced = {_SYNC_BUFFERS: False}
    wrapped.wrapped = DistributedDataParallel(wrapped.model, device_ids=[GPU], gradient_as_bucket_view=True, **unsynced)
    for seed in range(5):
        for learner in (plain, wrapped):
            _train_step(learner, batch_of(seed=seed), 1e-3)
    assert_same_steps(plain, wrapped, 1e-3)
    backend = dist.group.WORLD._get_backend(GPU).name()  # type: ignore[union-attr]
    summed, codes = torch.arange(4.0, device=GPU), torch.tensor([3])
    dist.all_reduce(summed)
    dist.all_reduce(codes, op=dist.ReduceOp.MAX)
    for buffer in wrapped.model.buffers():
        dist.broadcast(buffer, src=0)
    found = {"summed": summed.cpu(), "codes": codes, "backend": backend, "ranks": dist.get_world_size()}
    torch.save({**found, "taken": wrapped.global_step}, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
    exit_process(0)
