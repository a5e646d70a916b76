"""DeepSpeed as the engine of a training step: ZeRO 1 to 3, offload to CPU or files, the same network and AdamW.

DeepSpeed (Rajbhandari et al. 2020, arXiv 1910.02054) shards, gathers, reduces, clips and steps. The rest stays with the
loop, and DeepSpeed is told so: gradients are averaged over ranks, as FSDP2 does, but not over micro-batches, since the
loss is a share of the step's already; fp16's scale is `LossScale`'s and fixed in DeepSpeed's eyes; the learning rate is
set before every step.

Checkpoints are the native ones. DeepSpeed's own need as many ranks as wrote them and are read by unpickling; here each
weight and each moment is gathered by itself and goes into the same files, so a run may change engines, stages and
numbers of ranks. That costs three gathers of the model's size in fp32 for a save, and two for going on. Weights begin
whole on every rank, for a moment in fp32 beside half precision.

DeepSpeed has no public call that makes the moments before the first step, or that sets a part of one; that is done
through the attributes in `_flat_masters` and `_put`. Hence the bound on its version, and a test that goes from engine
to engine.
"""

import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.tensor import Shard, distribute_tensor, zeros

from yalm.errors import YalmError
from yalm.model.network import Yalm
from yalm.training.optimizer import make_optimizer
from yalm.training.parallel import World, prepare
from yalm.training.precision import HALF, LossScale
from yalm.training.settings import TrainSettings
from yalm.training.weights import Copy

MOMENTS = ("exp_avg", "exp_avg_sq")


class DeepSpeedEngine:
    """An `Engine` (which see) over `deepspeed.initialize`."""

    def __init__(self, model: Yalm, world: World, settings: TrainSettings, scale: LossScale) -> None:
        """Shards `model`, in place. YalmError without DeepSpeed, without the type, or for a second run."""
        deepspeed = _import_deepspeed(world.device)
        dtype = HALF.get(settings.compute.precision, torch.float32)
        if dtype not in deepspeed.get_accelerator().supported_dtypes():
            raise YalmError(
                f"compute.engine deepspeed: no {settings.compute.precision} on this device; take another "
                "compute.precision, or compute.engine native"
            )
        if settings.compute.offload_folder is not None and not has_async_io():
            raise YalmError(
                "compute.offload_folder: DeepSpeed reads and writes files by libaio, which it cannot use here; "
                "install libaio's headers (libaio-dev, libaio-devel) and g++, or leave offload_folder out"
            )
        if deepspeed.comm.comm.cdb is not None:  # it keeps the first run's process groups
            raise YalmError("compute.engine deepspeed: one run a process is all it can; start another process")
        self.model, self.world, self.scale = model, world, scale
        self.sharded = settings.compute.zero == 3
        self.fragments = deepspeed.utils
        prepare(model, world, settings.compute.model_copy(update={"compile": "off"}))
        optimizer = make_optimizer(model, settings.optimizer, settings.seed)
        masters = {name: parameter.data for name, parameter in model.named_parameters()}
        config = _config(model, world, settings, scale)
        self.network: nn.Module = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
        self.zero: Any = self.network.optimizer
        self.states = [self.zero.optimizer.state[flat] for flat in self._flat_masters()]
        if settings.compute.precision in HALF:  # DeepSpeed has made its masters from the rounded weights
            for name, parameter in model.named_parameters():
                self._put(parameter, masters.pop(name))

    def backward(self, loss: Tensor, last: bool) -> None:
        """See `Engine`. The scale is taken out, a power of two, and put in again by DeepSpeed."""
        self.network.set_gradient_accumulation_boundary(last)  # type: ignore[operator]
        self.network.backward(loss / self.scale.value, scale_wrt_gas=False)  # type: ignore[operator]

    def step(self, lr: float) -> Tensor:
        """See `Engine`."""
        for group in self.zero.param_groups:
            group["lr"] = lr
        self.network.step()  # type: ignore[operator]
        grad_norm = torch.tensor(float(self.network.get_global_grad_norm()))  # type: ignore[operator]
        self.scale.accepts(grad_norm)  # what it will say DeepSpeed has seen by itself, and left the step out
        if self.scale.dynamic:
            self.zero.loss_scale = self.scale.value
        return grad_norm

    def weights(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """See `Engine`."""
        for name in names:
            yield name, self.fragments.safe_get_full_fp32_param(self.model.get_parameter(name))

    def optimizer_state(self, copy: Copy) -> dict[str, Any]:
        """See `Engine`."""
        state = {}
        for name, parameter in self.model.named_parameters():
            state[name] = {"step": copy(f"{name} step", self.states[0]["step"])}
            for key in MOMENTS:
                whole = self.fragments.safe_get_full_optimizer_state(parameter, key)
                part = distribute_tensor(whole, self.world.mesh, [Shard(0)], src_data_rank=None)
                state[name][key] = copy(f"{name} {key}", part)
        return {"state": state}

    def restore_optimizer(self, folder: Path) -> None:
        """See `Engine`."""
        state: dict[str, dict[str, Any]] = {}
        shapes = {name: self._shape(parameter) for name, parameter in self.model.named_parameters()}
        for name, shape in shapes.items():
            parts = {key: zeros(shape, device_mesh=self.world.mesh, placements=[Shard(0)]).cpu() for key in MOMENTS}
            state[name] = {"step": torch.zeros(()), **parts}
        load_state({"state": state}, checkpoint_id=folder)
        for name, parameter in self.model.named_parameters():
            for key in MOMENTS:
                self._put(parameter, state[name][key].to(self.world.device).full_tensor(), key)
        for flat in self.states:
            flat["step"].copy_(next(iter(state.values()))["step"])

    def _flat_masters(self) -> list[Tensor]:
        """This rank's fp32 weights as DeepSpeed's optimizer has them, end to end, now with moments of zero."""
        optimizer = self.zero.optimizer
        if self.sharded:
            flats: list[Tensor] = self.zero.fp32_partitioned_groups_flat
        else:
            flats = [flat for group in optimizer.param_groups for flat in group["params"]]
        for number, flat in enumerate(flats):
            in_file = self.sharded and self.zero._swappable_optimizer_subgroup(number)
            if in_file:
                self.zero._optimizer_states_and_gradient_swap_in(number)
            moments = {key: torch.zeros_like(flat) for key in MOMENTS}
            optimizer.state[flat] = {"step": torch.zeros((), device=flat.device), **moments}
            if in_file:
                self.zero._optimizer_states_and_gradient_swap_out(number)
        if not self.sharded:
            self.zero._lazy_init_hp_params_optimizer_state()
        return flats

    def _shape(self, parameter: nn.Parameter) -> torch.Size:
        shape: torch.Size = parameter.ds_shape if self.sharded else parameter.shape  # type: ignore[attr-defined]
        return shape

    def _put(self, parameter: nn.Parameter, whole: Tensor, moment: str | None = None) -> None:
        """Set this rank's part of an fp32 weight, or of a `moment` of it, from all of it."""
        if not self.sharded:
            if moment is None:
                self.fragments.safe_set_full_fp32_param(parameter, whole)
            else:
                self.fragments.safe_set_full_optimizer_state(parameter, whole, moment)
            return
        # The call for the whole fails where the ranks do not divide it; parts are of one size, the last filled up.
        size: int = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = F.pad(whole.flatten(), (0, size * self.world.size - whole.numel()))
        part = padded[size * self.world.rank :][:size]
        if moment is None:
            self.fragments.safe_set_local_fp32_param(parameter, part)
        else:
            self.fragments.safe_set_local_optimizer_state(parameter, part, moment)


def _import_deepspeed(device: torch.device) -> Any:
    os.environ.setdefault("DS_ACCELERATOR", device.type)  # read at the import
    os.environ.setdefault("LOCAL_RANK", "0")  # of one process without torchrun
    try:
        import deepspeed  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise YalmError(
            "compute.engine deepspeed: DeepSpeed is not installed; pip install 'openyalm[deepspeed]', "
            "or take compute.engine native"
        ) from None
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # It calls collectives by names that PyTorch is giving up, which would be said in every step.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.", FutureWarning)
    return deepspeed


def has_async_io() -> bool:
    """Whether DeepSpeed, which must be installed, can compile what `compute.offload_folder` needs."""
    from deepspeed.ops.op_builder import AsyncIOBuilder  # type: ignore[import-not-found, import-untyped, unused-ignore]

    return bool(AsyncIOBuilder().is_compatible(verbose=False))


def _config(model: Yalm, world: World, settings: TrainSettings, scale: LossScale) -> dict[str, Any]:
    """What DeepSpeed calls its config, of our settings. Buckets are of a layer's size, as FSDP2's are."""
    compute, batch = settings.compute, settings.batch
    layer = sum(parameter.numel() for parameter in model.model.layers[-1].parameters())
    zero: dict[str, Any] = {
        "stage": compute.zero,
        "reduce_bucket_size": layer,
        "allgather_bucket_size": layer,
        "stage3_prefetch_bucket_size": compute.prefetch * layer,
    }
    if compute.offload:
        memory = {"device": "cpu", "pin_memory": world.device.type == "cuda"}
        folder = compute.offload_folder
        zero["offload_optimizer"] = memory | ({"device": "nvme", "nvme_path": str(folder)} if folder else {})
        if compute.zero == 3:
            zero["offload_param"] = memory
    return {
        "train_micro_batch_size_per_gpu": batch.micro_sequences,
        "gradient_accumulation_steps": batch.sequences // (batch.micro_sequences * world.size),
        "gradient_clipping": settings.optimizer.clip_norm,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's own AdamW is fused on CPUs too
        "bf16": {"enabled": compute.precision == "bf16"},
        "fp16": {"enabled": compute.precision == "fp16", "loss_scale": scale.value},
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
    }
