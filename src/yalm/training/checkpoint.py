"""Checkpoints: a Hugging Face folder with the training state inside, atomic, kept by count, written while steps go on.

    RUN/checkpoints/step-00001200/
        config.json  model-*.safetensors  tokenizer.model …    the model (fp32 master weights); loads anywhere
        training_state/                                        optimizer moments, by PyTorch's distributed checkpoint
        progress.json                                          steps, sequences and tokens consumed

A folder appears by rename when all ranks have put all of it on disk, so the newest one is always whole. The weights are
stored once: a resumed run reads them from the model folder, on any number of ranks. Nothing random needs saving, for
all randomness comes from (seed, step).

The step is held while its state is copied to host memory; hashing, writing and flushing are a thread's. The model's
files are divided among the ranks. Its tensors are gathered one after another, each to the rank that will write it, so
no rank holds more than its share of the files and one tensor. That costs as much traffic as the gathers of a forward
pass, and saves the thread from any: it only exchanges file names and checksums, in a process group of its own. The
copies keep their host memory from save to save (pinned where there is a GPU): of N ranks, each has an N-th of the
weights there, and of the optimizer's state what it has on its device.
"""

import json
import shutil
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save as save_state

from yalm.atomic import atomic_folder
from yalm.errors import YalmError
from yalm.model.config import ModelConfig
from yalm.model.folder import ModelFolder, shards, write_description
from yalm.model.network import Yalm
from yalm.model.shards import write_shard
from yalm.training.engine import Engine
from yalm.training.parallel import World
from yalm.training.weights import read_weights

STATE_FOLDER = "training_state"
PROGRESS_FILE = "progress.json"
# How long the ranks' threads wait for the slowest disk. A rank that dies closes its connections and is noticed at once.
TIMEOUT = timedelta(days=1)
T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """How far a run is: finished steps, the sequences (the position in the data) and the tokens they consumed.

    `loss_scale` and `clean_steps` are the state of `LossScale`, which only fp16 changes.
    """

    step: int = 0
    sequences: int = 0
    tokens: int = 0
    loss_scale: float = 1.0
    clean_steps: int = 0


class Checkpoints:
    """The checkpoints of one run, newest last; all but the last `keep` are removed. Leaving it waits for the writer.

    Made, used and left by all ranks together.
    """

    def __init__(self, folder: Path, keep: int, tokenizer_file: Path, world: World) -> None:
        self.folder = folder
        self.keep = keep
        self.tokenizer_file = tokenizer_file
        self.world = world
        self._group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        self._copies: dict[str, Tensor] = {}
        self._writer: threading.Thread | None = None
        self._failure: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            self.wait()
        elif issubclass(error, Exception) and self._writer is not None:
            # What ended the run is what there is to say; but the state from before it is worth having. An interrupt
            # does not wait.
            self._writer.join()

    @property
    def failed(self) -> bool:
        """Whether the last save came to nothing; the next call of `wait` or `save` will say why, on all ranks."""
        return self._failure is not None

    def wait(self) -> None:
        """Wait until the last save is on disk; YalmError if it could not be written."""
        if self._writer is not None:
            self._writer.join()
        if self._failure is not None:
            raise YalmError(self._failure)

    def latest(self) -> Path | None:
        """The newest whole checkpoint, if there is one, with that of the last save."""
        self.wait()
        folders = sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []
        return folders[-1] if folders else None

    def save(self, engine: Engine, progress: Progress) -> Path:
        """Copy what a checkpoint needs and begin to write it; returns the folder that will be there after `wait`.

        First waits for the save before, and raises YalmError if that one failed.
        """
        self.wait()
        path = self.folder / f"step-{progress.step:08d}"
        if path.exists():
            return path
        files = self._gather(engine)
        state = engine.optimizer_state(self._copy)
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)  # copies to pinned memory return before they are done
        self._writer = threading.Thread(
            target=self._write, args=(path, engine.model.config, files, state, progress), name="checkpoint", daemon=True
        )
        self._writer.start()
        return path

    def _gather(self, engine: Engine) -> dict[str, dict[str, Tensor]]:
        """The files of the model folder that this rank writes, every `size`-th one: name to copies of its tensors."""
        files: dict[str, dict[str, Tensor]] = {}
        present = {name for name, _ in engine.model.named_parameters()}
        # Of a pipeline's stages each has the files of its layers; its ranks divide those.
        here = [item for item in shards(engine.model.config).items() if item[1].keys() <= present]
        stage_size = self.world.size // self.world.stages
        for index, (file, layout) in enumerate(here):
            mine = index % stage_size == self.world.rank % stage_size
            for name, weight in engine.weights(layout):  # all ranks gather, one keeps
                if mine:
                    files.setdefault(file, {})[name] = self._copy(name, weight)
        return files

    def _copy(self, key: str, value: Any) -> Any:
        """`value` as it is now: a tensor in host memory that belongs to `key`, sharded as it was; else itself."""
        if not isinstance(value, Tensor):
            return value
        if key not in self._copies:
            self._copies[key] = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        return self._copies[key].copy_(value, non_blocking=True)

    def _write(
        self,
        path: Path,
        config: ModelConfig,
        files: Mapping[str, Mapping[str, Tensor]],
        state: dict[str, Any],
        progress: Progress,
    ) -> None:
        """The thread: write a checkpoint, or know on every rank why there is none."""
        main = self.world.is_main
        try:
            with ExitStack() as stack:
                folder = self._together(lambda: stack.enter_context(atomic_folder(path)) if main else path)[0]
                checksums = self._together(
                    lambda: {
                        file: write_shard(folder / file, tensors, tensors.__getitem__)
                        for file, tensors in files.items()
                    }
                )
                self._together(
                    lambda: save_state(state, checkpoint_id=folder / STATE_FOLDER, process_group=self._group)
                )

                def finish() -> None:
                    dtype = next(iter(next(iter(files.values())).values())).dtype
                    merged = {file: checksum for rank in checksums for file, checksum in rank.items()}
                    write_description(folder, config, dtype, merged, self.tokenizer_file)
                    (folder / PROGRESS_FILE).write_text(json.dumps(asdict(progress)) + "\n", encoding="utf-8")
                    stack.close()  # flushes and renames
                    for old in sorted(self.folder.glob("step-*"))[: -self.keep]:
                        shutil.rmtree(old)

                self._together(lambda: finish() if main else None)
        except Exception as error:
            reason = str(error) if isinstance(error, YalmError) else _one_line(error)
            self._failure = (
                f"{path}: the checkpoint could not be written ({reason}); make room or mend the disk, "
                "and the same command goes on from the one before"
            )

    def _together(self, work: Callable[[], T]) -> list[T]:
        """What `work` returns on each rank. If it fails on one, all raise, and none waits for another for ever."""
        result: T | None = None
        failure: str | None = None
        try:
            result = work()
        except (Exception, CheckpointException) as error:  # PyTorch derives its own from BaseException
            failure = _one_line(error)
        answers: list[Any] = [None] * self.world.size
        dist.all_gather_object(answers, (result, failure), group=self._group)
        for rank, (_, failure) in enumerate(answers):
            if failure is not None:
                raise YalmError(f"rank {rank}: {failure}")
        return [result for result, _ in answers]


def read_progress(checkpoint: Path) -> Progress:
    """How far `checkpoint` is; YalmError if it is none of ours."""
    try:
        return Progress(**json.loads((checkpoint / PROGRESS_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise YalmError(f"{checkpoint / PROGRESS_FILE}: cannot be read ({error}); remove this checkpoint") from None


def restore_model(model: Yalm, checkpoint: Path) -> None:
    """Load into a parallelized model the weights of `checkpoint`; a rank reads what it holds and no more."""
    source = ModelFolder(checkpoint)
    if source.config != model.config:
        raise YalmError(
            f"{checkpoint}: its model has other sizes than these settings; choose another output or --fresh"
        )
    if source.quantization is not None:
        raise YalmError(f"{checkpoint}: is quantized and cannot be trained; choose another output or --fresh")
    read_weights(model, source)


def _one_line(error: BaseException) -> str:
    """The cause of an error; of several lines, with which PyTorch quotes it, the last."""
    return traceback.format_exception_only(error)[-1].strip().splitlines()[-1]
