"""DeepSpeed around the U-Net: the only module that imports it.

ZeRO flattens all parameters, in their order, into one vector, pads it, and gives each rank an equal
part with the fp32 master and both moments. That partition is what checkpoints and EMA are made of.
"""

from __future__ import annotations

import itertools
import operator
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from train.config import TrainConfig
from train.precision import DTYPES
from train.zero_settings import check_understood, deepspeed_settings

NORM_PIECE = 2**18
"""Elements of a gradient whose norm is taken at once: their copy in fp64 stays in the processor's cache."""


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among all ranks."""

    rank: int
    """Number of this process."""
    size: int
    """Number of processes."""
    device: torch.device
    """Where this rank computes."""


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """What one optimiser step did."""

    grad_norm: float
    """Global gradient norm before clipping; inf where gradients were not finite."""
    applied: bool
    """False where gradients were not finite and the weights stayed as they were."""


class Engine:
    """The U-Net under ZeRO."""

    def __init__(self, config: TrainConfig, unet: nn.Module, world: World) -> None:
        import deepspeed

        self.world = world
        self.dtype = DTYPES[config.precision]
        settings = deepspeed_settings(config, on_gpu=world.device.type == "cuda")
        check_understood(settings, parse(settings))
        self.engine, *_ = deepspeed.initialize(model=unet, model_parameters=list(unet.parameters()), config=settings)
        self.zero = self.engine.optimizer
        assert len(_masters(self.zero)) == 1, "one parameter group is one flat vector"
        if config.zero.stage == 1 and config.precision == "bf16":
            self._take_over_gradients()
        elif config.zero.stage == 1 and world.device.type == "cpu":
            self._take_over_reduction()

    @property
    def unet(self) -> nn.Module:
        """The module with its working-precision weights."""
        return self.engine.module

    @property
    def master(self) -> torch.Tensor:
        """This rank's fp32 part of the flat weights."""
        return _masters(self.zero)[0]

    @property
    def moments(self) -> dict[str, torch.Tensor]:
        """AdamW's state for the master; empty before the first step."""
        return self.zero.optimizer.state[self.master]

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate the gradient of one micro-batch's mean loss."""
        self.engine.backward(loss)
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()  # counts the micro-step

    def step(self, lr: float) -> Stepped:
        """Apply the accumulated gradient; DeepSpeed leaves the weights alone where it is not finite."""
        for group in self.zero.param_groups:
            group["lr"] = lr
        self.engine.step()
        return Stepped(grad_norm=float(self.engine.get_global_grad_norm()), applied=self.engine.was_step_applied())

    def restore(self, master: torch.Tensor, moments: dict[str, torch.Tensor]) -> None:
        """Put back this rank's part of weights and optimiser state."""
        with torch.no_grad():
            self.master.copy_(master)
        self.zero.optimizer.state[self.master] = {
            name: tensor.to(self.master.device)
            for name, tensor in moments.items()  # the fused kernel's counter, too
        }
        self.zero.update_lp_params()

    @contextmanager
    def weights(self, part: torch.Tensor) -> Iterator[nn.Module]:
        """Give the module these weights (each rank its own part) for a while, without a second copy of the model."""
        self._show(part)
        try:
            yield self.unet
        finally:
            self.zero.update_lp_params()  # the masters were never changed

    def gather_on_first_rank(self, part: torch.Tensor) -> torch.Tensor | None:
        """Return the whole flat vector in CPU memory on rank 0 and None elsewhere; one partition is in flight."""
        whole = torch.empty(part.numel() * self.world.size) if self.world.rank == 0 else None
        for rank in range(self.world.size):
            piece = part.detach().clone() if rank == self.world.rank else torch.empty_like(part)
            dist.broadcast(piece, src=rank)
            if whole is not None:
                whole[rank * part.numel() : (rank + 1) * part.numel()] = piece.float().cpu()
        return whole

    def close(self) -> None:
        """Let go of the network: hooks, buffers, and what else DeepSpeed hung on it, the optimiser among it."""
        self.engine.destroy()
        for parameter in self.unet.parameters():
            vars(parameter).clear()

    def _take_over_gradients(self) -> None:
        """Put methods in the place of those with which ZeRO-1 in bf16 handles gradients one parameter at a time.

        They lie in one flat vector: its norm and its clipping are a kernel each, and the gradients of a pass are added
        to it all at once.
        """
        own = {
            "update_hp_grads": self._add_gradients,
            "get_grads_for_reduction": self._gradients_to_reduce,
            "get_grads_for_norm": self._whole_gradient,
            "clear_hp_grads": self._forget_gradients,
        }
        assert self.zero.fp32_groups_actual_gradients_flat and not self.zero.immediate_grad_update
        for name, method in own.items():
            assert callable(getattr(self.zero, name)), name
            setattr(self.zero, name, method)

    @torch.no_grad()
    def _add_gradients(self, clear_lp_grads: bool = False) -> None:
        """Add a pass's gradients to the step's; the first are copied, so nothing has to be zeroed before."""
        (parameters,), (totals,) = self.zero.bf16_groups, self.zero.fp32_groups_gradients
        (present,) = self.zero.fp32_groups_has_gradients
        reached = [number for number, parameter in enumerate(parameters) if parameter.grad is not None]
        for add, into in ((False, torch._foreach_copy_), (True, torch._foreach_add_)):
            chosen = [number for number in reached if present[number] == add]
            found = [parameters[number].grad.view(totals[number].shape) for number in chosen]
            if chosen:
                into([totals[number] for number in chosen], found)
        for number in reached:
            parameters[number].grad, present[number] = None, True

    def _forget_gradients(self) -> None:
        self.zero.fp32_groups_has_gradients = [[False] * len(group) for group in self.zero.fp32_groups_gradients]

    @torch.no_grad()
    def _gradients_to_reduce(self) -> tuple[list[torch.Tensor], dict[str, Any]]:
        """Return the flat gradient, zero where no pass of this rank reached a parameter."""
        (totals,), (present,) = self.zero.fp32_groups_gradients, self.zero.fp32_groups_has_gradients
        for number in itertools.compress(range(len(totals)), map(operator.not_, present)):
            totals[number].zero_()
        return list(self.zero.fp32_groups_actual_gradients_flat), {}

    @torch.no_grad()
    def _whole_gradient(self, for_clipping: bool = False) -> Any:
        """Return the flat gradient for its norm; where ZeRO would clip, clip it here, by a number and not by a tensor.

        The number is kept: read later, it would wait for the optimiser.
        """
        whole = list(self.zero.fp32_groups_actual_gradients_flat)
        if not for_clipping:
            return whole, {}
        norm = self.zero._global_grad_norm = float(self.zero._global_grad_norm)
        share = self.zero.clip_grad / (norm + 1e-6)
        if share < 1.0:
            torch._foreach_mul_(whole, share)
        return []

    def _take_over_reduction(self) -> None:
        """Put a method in the place of that with which ZeRO-1 in fp32 on a CPU reduces gradients one by one.

        DeepSpeed flattens them into buckets, copies the sums back and flattens those again, each time in new memory.
        Here one vector holds them all, and stays from step to step.
        """
        zero = self.zero
        assert callable(zero.reduce_gradients) and callable(zero._get_preflattened_grad_partition)
        assert not zero.overlap_comm and not zero.cpu_offload and not zero.use_grad_accum_attribute
        (parameters,), (weights,) = zero.bit16_groups, zero.bit16_groups_flat
        ends = itertools.accumulate(parameter.numel() for parameter in parameters)
        offsets = [parameter.storage_offset() for parameter in parameters]
        assert offsets == [0, *ends][:-1] and zero.partition_size == [weights.numel() // self.world.size]
        self._gradient = torch.zeros_like(weights)
        zero.reduce_gradients = self._reduce_gradients

    @torch.no_grad()
    def _reduce_gradients(self, pipeline_parallel: bool = False) -> None:
        """Hand this rank's part of the mean gradient to DeepSpeed, which takes its norm piece by piece and clips it."""
        from deepspeed.runtime.zero.stage_1_and_2 import GradPartitionBufferGroup

        zero = self.zero
        (parameters,), (owned,), (size,) = zero.bit16_groups, zero.params_in_partition, zero.partition_size
        found = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        torch.cat([each.reshape(-1) for each in found], out=self._gradient[: sum(map(torch.numel, found))])
        if self.world.size > 1:
            self._gradient.div_(self.world.size)
            for bucket in self._gradient.split(zero.reduce_bucket_size):
                dist.all_reduce(bucket, group=zero.dp_process_group)
        part = self._gradient.narrow(0, self.world.rank * size, size)
        pieces = part.chunk(max(1, min(len(owned), size // NORM_PIECE)))  # of more than parameters it would miss some
        zero.averaged_gradients[0] = GradPartitionBufferGroup(pieces, part)
        zero.zero_grad()

    @torch.no_grad()
    def _show(self, part: torch.Tensor) -> None:
        """Fill the working-precision weights of all ranks from fp32 parts, through ZeRO's own gather."""
        saved = self.master.detach().clone()
        self.master.copy_(part)
        self.zero.update_lp_params()
        self.master.copy_(saved)


def start_world() -> World:
    """Join the process group that the launcher's environment variables describe."""
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    if not on_gpu:
        # DeepSpeed would compile its shared-memory collective at the first start; gloo needs no compiler.
        deepspeed.ops.__compatible_ops__ = {}
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    deepspeed.init_distributed(
        "nccl" if on_gpu else "gloo", auto_mpi_discovery=False, verbose=False, timeout=timedelta(minutes=30)
    )
    return World(rank=rank, size=size, device=device)


def parse(settings: dict[str, Any]) -> Any:
    """Return DeepSpeed's own reading of its dictionary; raises ValueError where one of its models refuses it."""
    from deepspeed.runtime.config import DeepSpeedConfig

    return DeepSpeedConfig(settings)


def _masters(zero: Any) -> list[torch.Tensor]:
    """Return this rank's fp32 parts: ZeRO-1 in bf16 with fp32 accumulation is another class than ZeRO-2."""
    if hasattr(zero, "fp32_groups_flat_partition"):
        return zero.fp32_groups_flat_partition
    return zero.single_partition_of_fp32_groups
