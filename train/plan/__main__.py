"""python -m train.plan base|refiner: memory, communication, time and money of a run, before anyone pays for it."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curate.bad_input import BadInput
from curate.command_line import DONE, EXIT_CODES, told_in_one_line
from curate.config import require
from curate.config_help import About
from train.config import TrainConfig
from train.plan.gpus import GPUS, Assumptions, Gpu
from train.settings import model_asked_for, read_train_settings

PROG = "train.plan"
EXAMPLE = "python -m train.plan base --gpus 256 --gpu h100"
MORE = "take more GPUs, or GPUs with more memory"
RANKS = (8, 16, 32, 64, 128, 256, 512, 1024)
USAGE = f"""usage: python -m train.plan base|refiner --gpus N --gpu {"|".join(GPUS)} [--SETTING VALUE]...

Work out memory by item, operations, communication, time and money of a training run, recommend how the global batch is
made up, and simulate one step by the number of GPUs. It needs no GPU, no weights and no data.

reads    the settings of the run, as train.run does; the rest is counted on the network without memory
writes   nothing; --json prints all of it for scripts, --svg FILE draws the steps
example  {EXAMPLE}

python -m train.plan base --help shows the flags.
{EXIT_CODES}
"""


def main(argv: Sequence[str]) -> int:
    """Read the settings, count, and print."""
    model = model_asked_for(argv, PROG, USAGE, EXAMPLE)
    if model is None:
        return DONE
    about = About(
        command=f"python -m train.plan {model}",
        example=f"python -m train.plan {model} --gpus 256 --gpu h100 --price 2.5",
        reads=f"train.{model} of the file; no data",
        writes="nothing; --svg FILE draws the steps",
        sections=("batch",),
    )
    config, flags = read_train_settings(
        model,
        argv[1:],
        prog=f"{PROG} {model}",
        description="Plan a training run.",
        add_flags=_flags,
        root=".",
        about=about,
    )
    with told_in_one_line(PROG, "nothing was written"):
        from train.plan.printed import lines

        require(flags.gpus > 0, "gpus", flags.gpus, "must be at least 1")
        assumed = Assumptions(**{field.name: getattr(flags, field.name) for field in dataclasses.fields(Assumptions)})
        require(flags.price is None or flags.price >= 0, "price", flags.price, "must be 0 or more")
        gpu = GPUS[flags.gpu] if flags.price is None else dataclasses.replace(GPUS[flags.gpu], price=flags.price)
        told = plan(config, flags.gpus, gpu, assumed) | {"gpu": {"name": flags.gpu} | dataclasses.asdict(gpu)}
        print(json.dumps(told) if flags.json else "\n".join(lines(told)), flush=True)
        if told["recommended"] is None:
            least_gb = min(shape["memory_gb_needed"] for shape in told["shapes"])
            raise BadInput(
                f"gpu = {flags.gpu}: nothing fits into its {gpu.memory_gb:g} GB, the least is {least_gb:.1f}; {MORE}"
            )
        if flags.svg is not None:
            _draw(told, Path(flags.svg))
    return DONE


def _draw(told: dict[str, Any], path: Path) -> None:
    """Write the drawing of one step by the number of GPUs; raises BadInput where there is none to draw."""
    from train.plan.drawing import svg

    if not told["by_gpus"]:
        numbers = ", ".join(map(str, RANKS))
        told_why = f"none of {numbers} GPUs make up global_batch {told['global_batch']} within their memory"
        raise BadInput(f"svg = {path}: nothing to draw: {told_why}")
    path.write_text(svg(told["by_gpus"]))


def plan(config: TrainConfig, gpus: int, gpu: Gpu, assumed: Assumptions) -> dict[str, Any]:
    """Return everything that is printed, as JSON values; raises BadInput where the global batch cannot be made up."""
    from train.plan.shapes import Costs, best, shapes

    global_batch = config.batch.global_batch
    nearest = " or ".join(map(str, nearest_divisors(global_batch, gpus)))
    require(
        global_batch % gpus == 0,
        "gpus",
        gpus,
        f"batch.global_batch {global_batch} of the settings is no multiple; take {nearest}",
    )
    costs = Costs.of(config)
    found = shapes(config, costs, gpus, gpu, assumed)
    chosen = best(found)
    by_gpus = {
        ranks: shape.told()
        for ranks in RANKS
        if (shape := best(shapes(config, costs, ranks, gpu, assumed))) is not None
    }
    hours = config.steps * chosen.step.step_s / 3600.0 if chosen else None
    return {
        "model": config.model,
        "gpus": gpus,
        "global_batch": global_batch,
        "zero_stage": config.zero.stage,
        "side_px": config.unet.sample_size * 8,
        "assumptions": dataclasses.asdict(assumed),
        "costs": costs.told(),
        "configured": configured(config, gpus),
        "shapes": [shape.told() for shape in found],
        "recommended": chosen.told() if chosen else None,
        "steps": config.steps,
        "days": hours / 24.0 if hours is not None else None,
        "gpu_hours": hours * gpus if hours is not None else None,
        "money": hours * gpus * gpu.price if hours is not None else None,
        "by_gpus": by_gpus,
    }


def configured(config: TrainConfig, gpus: int) -> dict[str, Any]:
    """Return the shape that the settings ask for, or under `refused` why they do not make up the global batch."""
    try:
        batch = config.batch.for_ranks(gpus)
    except BadInput as error:
        return {"refused": str(error)}
    return {
        "micro_batch": batch.micro_batch,
        "accumulation": batch.grad_accumulation,
        "activation_checkpointing": config.speed.activation_checkpointing,
    }


def nearest_divisors(number: int, other: int) -> list[int]:
    """Return the largest divisor of a number below another number, and the smallest above it, if there is one."""
    divisors = [divisor for divisor in range(1, number + 1) if number % divisor == 0]
    below, above = [d for d in divisors if d < other], [d for d in divisors if d > other]
    return below[-1:] + above[:1]


def _flags(parser: Any) -> None:
    parser.add_argument("--gpus", type=int, default=256, help="GPUs of the run (default: 256)")
    parser.add_argument("--gpu", choices=sorted(GPUS), default="h100", help="kind of GPU (default: h100)")
    parser.add_argument("--price", type=float, help="US dollars for an hour of one GPU (default: a round assumption)")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument("--svg", metavar="FILE", help="draw one step by the number of GPUs")
    for field in dataclasses.fields(Assumptions):
        kind = type(field.default)
        parser.add_argument(f"--{field.name}", type=kind, default=field.default, help=MEANING[field.name])


MEANING = {
    "mfu": "share of the peak that the operations reach, 0..1",
    "gpus_per_node": "GPUs that NVLink joins",
    "inter_gb_s": "what one GPU's adapter sends to other nodes, 10^9 bytes a second",
    "link_efficiency": "share of the bandwidths that collectives reach, 0..1",
    "hop_us": "time of one hop between GPUs, in microseconds",
    "node_read_gb_s": "what the loaders of a node read, 10^9 bytes a second",
    "image_kb": "mean size of a picture, 10^3 bytes, where pictures are read",
    "reserved_gb": "CUDA context, NCCL and workspaces, 10^9 bytes",
    "fragmentation": "share of the memory that the allocator cannot use, 0..1",
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
