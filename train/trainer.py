"""Trains an image-text model on a dataset: one loop, read from top to bottom.

A run is a folder. The same call on it goes on where it stopped, exactly: batch, learning rate and dropout are functions of the step, so
a checkpoint holds weights and moments and nothing else.
"""

import fcntl
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import yaml
from torch import nn

from schemas.errors import InputError, WinnowError
from schemas.progress import Progress, SilentProgress
from train import checkpoint as checkpoints
from train.acceleration import compile_towers, recompute_activations
from train.checkpoint import TrainState
from train.columns import SampleColumns, open_columns
from train.config import TrainConfig, first_difference
from train.distributed import World, join_world, num_loaders, num_threads, wrap_towers
from train.evaluate import evaluate_model
from train.gradients import compute_gradients
from train.index import Dataset
from train.inputs import InputMaker
from train.loader import Loader, LoaderConfig
from train.loss import Objective
from train.metrics import MetricsLog, SilentLog
from train.model import ImageTextModel, build_model, load_model, load_weights
from train.optim import (
    clip_gradients,
    learning_rate,
    load_training_tensors,
    make_optimizer,
    set_learning_rate,
    training_tensors,
)
from train.packing import check_native
from train.preflight import check_data, check_evaluation, check_files, check_output, check_settings
from train.rates import DrawRates
from train.request import Column, Request, tower_requests, wanted_columns, wanted_texts, wanted_views
from train.run_schedule import RunSchedule, follow_epochs
from train.sample_losses import SampleLosses
from train.sampling import SamplingConfig
from train.sharding import check_sharding, is_sharded, shard_model, whole_tensors
from train.signals import StopSignal
from train.tokenizer import load_tokenizer, sample_captions, train_tokenizer
from train.tower_config import TowerConfig
from train.towers import Locks, PatchDropper, build_from_towers, set_context_length

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

RECIPE_FILE = "recipe.yaml"
TOKENIZER_FOLDER = "tokenizer"


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What a finished run left."""

    run: Path
    checkpoint: Path  # the last one, a folder that transformers loads
    step: int
    samples_seen: int
    was_finished: bool  # nothing was left to do
    rank: int  # of this process; print on rank 0 only


class TrainingStopped(WinnowError):
    """A signal ended the run after it saved a checkpoint; the same command goes on from there."""


def train(dataset: str, out: str, config: TrainConfig, *, progress: Progress | None = None) -> TrainReport:
    """Train on the dataset folder `dataset` into the local run folder `out`, or go on there; returns when the last step is saved.

    Under `torchrun` or Ray Train every process calls this alike. Raises `TrainingStopped` after SIGTERM or SIGINT.
    """
    with join_world() as world, torch.random.fork_rng(devices=[]), ExitStack() as stack:
        run = Path(out)
        if world.is_main:
            check_output(run)
            run.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(run))
        return _train(dataset, run, config, world, (progress if world.is_main else None) or SilentProgress())


def _train(dataset: str, run: Path, config: TrainConfig, world: World, progress: Progress) -> TrainReport:
    # ---- Data ---------------------------------------------------------------------------------------------------------
    torch.set_num_threads(num_threads(world, config.num_threads))
    objective = check_settings(config, world.size)
    data = _open_dataset(dataset, config, objective, world, progress)
    columns = _open_columns(data, objective, config, progress)
    data = data.with_identity(columns.digest)
    schedule = RunSchedule(data, config, config.sampling or SamplingConfig(), run, world, progress)
    data = data.with_identity(schedule.digest)
    last = _find_last(run, data, config)

    # ---- Model and optimizer ------------------------------------------------------------------------------------------
    tokenizer_folder = _prepare_tokenizer(run, data, config, world)
    model = _make_model(config, tokenizer_folder).to(world.device).train()
    _build_objective(objective, model, columns, config)
    objective.to(world.device)
    locks = _prepare_towers(model, config, world, objective.needs)
    if last is not None:
        load_weights(model, last)
    if config.sharding and world.size > 1:
        check_sharding(config, objective)
        shard_model(model, world)
    trained = nn.ModuleDict({"model": model, "objective": objective})
    optimizer = make_optimizer(trained, config)
    loader = _make_loader(data, columns, config, objective, model, world, schedule)
    is_recording = config.sample_losses or (config.sampling is not None and config.sampling.feedback is not None)
    sample_losses = SampleLosses(data, world, objective.needs) if is_recording else None
    num_steps = config.num_steps(loader.steps_per_epoch)

    # ---- Where the run stands -----------------------------------------------------------------------------------------
    step = 0
    if last is not None:
        step = checkpoints.load_state(last).step
        saved = checkpoints.load_optimizer_state(last)
        load_training_tensors(optimizer, trained, saved)
        if sample_losses is not None:
            sample_losses.load(saved)
    if last is not None and step >= num_steps:
        logger.info("training is finished run=%s step=%d", run, step)
        _remove_old(run, config, num_steps, world)
        return _report(run, last, step, config, world, was_finished=True)
    if world.is_main:
        recipe = {"name": run.name, "train": config.to_dict()}
        checkpoints.write_file(run / RECIPE_FILE, yaml.safe_dump(recipe, sort_keys=False).encode())
    if config.warmup_steps > config.num_warmup_steps(num_steps):
        logger.info("warm-up shortened to %d of %d steps", config.num_warmup_steps(num_steps), num_steps)
    logger.info(
        "training model=%s dataset=%s samples=%d steps=%d from_step=%d processes=%d device=%s threads=%d",
        *(config.init or config.model, data.index.name, data.num_samples, num_steps, step, world.size, world.device),
        torch.get_num_threads(),
    )
    locks.apply(step)
    towers = model if is_sharded(model) else wrap_towers(model, world)
    autocast = _autocast(config, world)

    def save() -> None:
        state = TrainState(
            step=step,
            samples_seen=step * config.batch_size,
            dataset=data.index.name,
            dataset_fingerprint=data.fingerprint,
            config=config.to_dict(),
        )
        tensors = training_tensors(optimizer, trained) | (sample_losses.tensors() if sample_losses is not None else {})
        whole, weights = whole_tensors(tensors), whole_tensors(model.state_with(objective.logit_bias))
        if world.is_main:
            checkpoints.save_checkpoint(run, state, model, whole, tokenizer_folder, weights)

    # ---- The loop -----------------------------------------------------------------------------------------------------
    with ExitStack() as stack:
        log: MetricsLog | SilentLog = MetricsLog(run, step=step) if world.is_main else SilentLog()
        stack.enter_context(log)
        stop = stack.enter_context(StopSignal())
        stack.enter_context(loader)
        stack.callback(progress.close)
        progress.start("train", (num_steps - step) * config.batch_size, "samples")
        maker = InputMaker(model, objective.needs, columns, world.device, DrawRates(schedule), config.decode)
        batches = stack.enter_context(closing(follow_epochs(loader, maker, schedule, model, sample_losses, step)))
        clock, clock_step, shown = time.monotonic(), step, math.nan
        for inputs in batches:
            # Update
            rate = learning_rate(step, num_steps, config)
            set_learning_rate(optimizer, rate)
            optimizer.zero_grad(set_to_none=True)
            if locks.apply(step):
                towers = wrap_towers(model, world)
            result = compute_gradients(
                *(towers, objective, inputs),
                world=world,
                autocast=autocast,
                num_parts=config.grad_accumulation,
                seed=(config.seed, step, world.rank),
            )
            gradient_norm = clip_gradients(trained, config.grad_clip)
            optimizer.step()
            model.clamp_logit_scale()
            objective.follow(model)
            if sample_losses is not None:
                sample_losses.add(result.outputs, inputs.indices)
            step += 1

            # Record
            is_evaluated = bool(config.eval_every) and (step % config.eval_every == 0 or step == num_steps)
            is_logged = step == 1 or step % config.log_every == 0 or step == num_steps or is_evaluated
            if is_logged:
                shown = _finite_loss(result.loss, step)
                metrics = {
                    "step": step,
                    "epoch": step / loader.steps_per_epoch,
                    "samples_seen": step * config.batch_size,
                    "loss": shown,
                    **{name: term.item() for name, term in result.terms.items()},
                    "logit_scale": model.logit_scale.exp().item(),
                    "lr": rate,
                    "grad_norm": gradient_norm.item(),
                    **schedule.describe(step, inputs.caption_columns),
                    **(_evaluate(model, config, world) if is_evaluated else {}),
                }
                seconds, clock = time.monotonic() - clock, time.monotonic()
                speed = (step - clock_step) * config.batch_size / seconds
                clock_step = step
                log.write(metrics, {"step": step, "seconds": seconds, "samples_per_second": speed})
            progress.advance(config.batch_size, loss=f"{shown:.3f}", lr=f"{rate:.1e}")

            # Save
            # Asking the other processes waits for the device, so a GPU run asks only where it waits anyway.
            is_stopping = (is_logged or world.device.type == "cpu") and world.any(bool(stop.name))
            if step % config.save_every == 0 or step == num_steps or is_stopping:
                _finite_loss(result.loss, step)
                log.sync()
                save()
                if world.is_main:
                    if sample_losses is not None and (is_stopping or step == num_steps):
                        sample_losses.write(run)
                    if step == num_steps:
                        schedule.finish(step)
                    _remove_old(run, config, num_steps, world)
                world.wait()
            if step == num_steps:
                break
            if is_stopping:
                raise TrainingStopped(
                    f"stopped by {stop.name or 'a signal to another process'} after step {step} of {num_steps}; "
                    f"{run} is saved, the same command goes on from there"
                )

    # ---- The end ------------------------------------------------------------------------------------------------------
    logger.info("training is done run=%s step=%d", run, step)
    return _report(run, checkpoints.find_checkpoint(run), step, config, world, was_finished=False)


def _open_dataset(dataset: str, config: TrainConfig, objective: Objective, world: World, progress: Progress) -> Dataset:
    further = dict.fromkeys(column for text in wanted_texts(objective.needs) for column in text.columns)
    data = Dataset.open(dataset, captions=config.captions or None, further=tuple(further), progress=progress)
    check_data(data, config, objective)
    if world.is_main:
        check_files(data.tars)
        check_evaluation(config)
    return data.with_weights(config.weights) if config.weights else data


def _find_last(run: Path, data: Dataset, config: TrainConfig) -> Path | None:
    """Return the newest checkpoint, or None; refuses one that another configuration or dataset made."""
    found = checkpoints.list_checkpoints(run)
    if not found:
        return None
    state = checkpoints.load_state(found[max(found)])
    difference = first_difference(state.config, config)
    if not difference and state.dataset_fingerprint != data.fingerprint:
        difference = f"dataset was {state.dataset!r} and is now {data.index.name!r}"
        if state.dataset == data.index.name:
            difference = (
                f"dataset {state.dataset!r} has other samples, captions, weights or values of train.columns than it had"
            )
        difference += f" (fingerprint {state.dataset_fingerprint[:12]}, now {data.fingerprint[:12]})"
    if difference:
        raise InputError(f"{run} holds another run: {difference}; give a new --out folder, or the former settings")
    return found[max(found)]


def _open_columns(data: Dataset, objective: Objective, config: TrainConfig, progress: Progress) -> SampleColumns:
    wanted = wanted_columns(objective.needs)
    return open_columns(data, wanted, config.columns, progress, crop_boxes=config.crop_boxes)


def _prepare_tokenizer(run: Path, data: Dataset, config: TrainConfig, world: World) -> Path:
    """Return the run's tokenizer folder, made by the first process where it is not there yet."""
    folder = run / TOKENIZER_FOLDER
    config = _with_checkpoints(config)
    if world.is_main and not folder.exists():
        shape, towers = config.model_config(), config.towers or TowerConfig()
        if config.tokenizer or config.init or towers.text:
            sources = (
                (config.tokenizer, config.tokenizer_revision),
                (config.init, config.init_revision),
                (towers.text, towers.text_revision),
            )
            tokenizer = load_tokenizer(*next(source for source in sources if source[0]))
        else:
            tokenizer = train_tokenizer(sample_captions(data), shape.vocab_size, shape.context_length)
        if towers.context_length:
            tokenizer.model_max_length = towers.context_length
        staging = run / f".{TOKENIZER_FOLDER}.staging"
        shutil.rmtree(staging, ignore_errors=True)
        tokenizer.save_pretrained(staging)
        checkpoints.publish_folder(staging, folder)
    world.wait()
    return folder


def _with_checkpoints(config: TrainConfig) -> TrainConfig:
    """Return the configuration with the newest checkpoint in the place of each run that it starts from."""

    def newest(name: str) -> str:
        found = checkpoints.list_checkpoints(Path(name)) if name else {}
        return str(found[max(found)]) if found else name

    towers = config.towers
    if towers is not None:
        towers = replace(towers, image=newest(towers.image), text=newest(towers.text))
    return replace(config, init=newest(config.init), tokenizer=newest(config.tokenizer), towers=towers)


def _make_model(config: TrainConfig, tokenizer_folder: Path) -> ImageTextModel:
    config = _with_checkpoints(config)
    towers = config.towers or TowerConfig()
    model = _start_model(config, towers, load_tokenizer(str(tokenizer_folder)))
    if towers.context_length:
        set_context_length(model, towers.context_length)
    return model


def _start_model(config: TrainConfig, towers: TowerConfig, tokenizer: "PreTrainedTokenizerBase") -> ImageTextModel:
    if towers.image or towers.text:
        return build_from_towers(config.model_config(), towers, tokenizer, seed=config.seed)
    if not config.init:
        return build_model(config.model_config(), tokenizer, seed=config.seed)
    model = load_model(config.init, revision=config.init_revision)
    size = int(model.network.config.text_config.vocab_size)
    if len(tokenizer) > size:
        raise InputError(
            f"tokenizer {config.tokenizer!r} has {len(tokenizer)} tokens, {config.init!r} has embeddings for {size}; leave tokenizer out"
        )
    model.tokenizer = tokenizer
    return model


def _prepare_towers(model: ImageTextModel, config: TrainConfig, world: World, requests: tuple[Request, ...]) -> Locks:
    """Set up what happens inside the towers in training, and return what locks them; every parameter stays the optimizer's."""
    towers = config.towers or TowerConfig()
    if towers.patch_share < 1:
        model.patch_dropper = PatchDropper(model, towers.patch_share)
    if model.patch_size:
        check_native(requests, is_compiled=config.compile)
        model.row_patches = towers.row_patches
    elif towers.row_patches:
        raise InputError(f"towers.row_patches {towers.row_patches} is for image_tower navit; leave it out")
    if config.gradient_checkpointing:
        recompute_activations(model)
    if config.compile:
        compile_towers(model, world)
    return Locks(model, towers, with_projections=bool(config.init))


def _build_objective(objective: Objective, model: ImageTextModel, columns: SampleColumns, config: TrainConfig) -> None:
    """Give the losses their layers, which depend on the seed alone, and keep out of training what they do not train."""
    shape = replace(model.shape, num_labels=columns.num_labels, widths=columns.widths)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        objective.build(shape, model.copy)
    asked = tower_requests(objective.needs)
    model.freeze(images=objective.locks_images or not wanted_views(asked), texts=not wanted_texts(asked))
    if objective.initial_logit_scale and not config.init:
        model.logit_scale.data.fill_(math.log(objective.initial_logit_scale))
    if objective.logit_bias is not None and model.logit_bias is not None:
        objective.logit_bias.data.fill_(model.logit_bias)


def _make_loader(
    data: Dataset,
    columns: SampleColumns,
    config: TrainConfig,
    objective: Objective,
    model: ImageTextModel,
    world: World,
    schedule: RunSchedule,
) -> Loader:
    views = wanted_views(objective.needs)
    partners = {view.column: columns.array(Column(name=view.column, kind="uid")) for view in views if view.column}
    settings = LoaderConfig(
        views=views,
        texts=wanted_texts(objective.needs),
        batch_size=config.batch_size,
        image_size=model.image_size,
        patch_size=model.patch_size,
        num_workers=num_loaders(world, config.num_workers),
        seed=config.seed,
        replacement=config.replacement,
        epoch_samples=config.epoch_samples,
        crop_scale=config.crop_scale,
        decode=config.decode,
        pin_memory=world.device.type == "cuda" and config.decode == "cpu",
    )
    # A sample without a partner shows its own picture; `outputs[Column(..., kind="uid")]` tells.
    own = np.arange(data.num_samples)
    return Loader(
        data,
        settings,
        rank=world.rank,
        world_size=world.size,
        partners={name: np.where(rows < 0, own, rows) for name, rows in partners.items()},
        crop_boxes=columns.crop_boxes,
        schedule=schedule,
    )


def _autocast(config: TrainConfig, world: World) -> Callable[[], AbstractContextManager[object]]:
    """Return what the towers run under: bf16 where asked, or where "auto" finds a GPU that computes it.

    On a CPU "auto" means fp32: without matrix units for bf16 it is half as fast there.
    """
    kind = world.device.type
    wanted = config.precision == "bf16" or (
        config.precision == "auto" and kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    return (lambda: torch.autocast(kind, torch.bfloat16)) if wanted else nullcontext


def _evaluate(model: ImageTextModel, config: TrainConfig, world: World) -> dict[str, float]:
    """Return the metrics on the first process; the others wait for it, longer than they may in a step."""
    metrics: dict[str, float] = {}
    if world.is_main:
        model.eval()
        results = evaluate_model(model, config.eval_data, num_workers=num_loaders(world, config.num_workers))
        model.train()
        metrics = {f"{name}/{metric}": value for name, found in results.items() for metric, value in found.items()}
    world.wait()
    return metrics


def _finite_loss(loss: torch.Tensor, step: int) -> float:
    value = loss.item()
    if not math.isfinite(value):
        raise InputError(
            f"the loss became {value} by step {step}; lower lr, lengthen warmup_steps or set grad_clip, and start in a new folder"
        )
    return value


def _remove_old(run: Path, config: TrainConfig, num_steps: int, world: World) -> None:
    if world.is_main:
        checkpoints.remove_old_checkpoints(
            run,
            keep_last=config.keep_last,
            keep_every=config.keep_every,
            save_every=config.save_every,
            last_step=num_steps,
        )


def _report(run: Path, last: Path, step: int, config: TrainConfig, world: World, *, was_finished: bool) -> TrainReport:
    return TrainReport(
        run=run,
        checkpoint=last,
        step=step,
        samples_seen=step * config.batch_size,
        was_finished=was_finished,
        rank=world.rank,
    )


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Hold the run for this process; the system drops the lock when the process dies."""
    with (run / ".lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{run} is being trained by another process; wait for it, or give another folder"
            ) from error
        except OSError as error:  # some network file systems have no locks
            logger.warning("cannot lock run=%s error=%s", run, error)
        yield
