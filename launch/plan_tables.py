"""Prints tables of launch/README.md: memory of layouts, large runs, and predicted times.

    pip install "jax[tpu]"       # for libtpu; no TPU is needed
    pip install "jax[cuda12]"    # for h100 and h200; no GPU is needed
    python launch/plan_tables.py [--results FOLDER] [memory] [runs] [predicted [--chips v5e,h200]]

Each line is `job=describe` in a process of its own: a step is compiled for devices that need not be
here, in 20 to 100 seconds on two cores, a sampler in 1 to 4 minutes. Its JSON stays in FOLDER, and
what is there is not done again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

SLICE, WIDER = "v5p:2x2x2", {"bar_l": "v5e:16x16", "xar_h": "v5e:8x8"}
CONFIGS = {
    "bar_b": "masked_bit/bar_b",
    "bar_l": "masked_bit/bar_l",
    "bar_fsq": "tokenizer/bar_fsq",
    "xar_h": "basis/xar_h",
    "bar_b_4": "masked_bit/bar_b_4",
    "xar_b": "basis/xar_b",
    "mar_b": "basis/mar_b",
}
PLANNED = ("bar_b", "bar_l", "bar_fsq", "xar_h")
# batch, accumulate, remat, fsdp; on 8 devices, the rest of them is `data`
LAYOUTS = [(128, 1, False, 1), (128, 1, True, 1), (128, 1, True, 8), (512, 1, False, 8)]
LAYOUTS += [(512, 1, True, 8), (2048, 4, True, 8)]
TOKENIZER = [(64, 1, False, 1), (64, 1, True, 1), (64, 1, True, 8), (256, 1, False, 8)]
TOKENIZER += [(256, 1, True, 8), (256, 4, True, 8)]
# model, data, fsdp; with the batch of the config, rematerialised
RUNS = [("bar_l", 1, 256), ("bar_l", 16, 16), ("bar_l", 32, 8)]
RUNS += [("xar_h", 1, 64), ("xar_h", 8, 8), ("xar_h", 64, 1)]
# One chip, and what of each model is predicted: the batch of the sampler, that of training
CHIPS = {
    "v5e": "v5e:1x1",
    "v6e": "v6e:1x1",
    "v5p": "v5p:1x1x1",
    "h100": "h100",
    "h200": "h200",
}
SAMPLERS = [("bar_b", 32), ("bar_b_4", 32), ("bar_l", 32), ("xar_b", 32), ("mar_b", 32)]
TRAININGS = [("bar_b", 16), ("bar_l", 16), ("xar_b", 16)]
GB = 1e9


def described(results, model, devices, mesh, batch, accumulate, remat) -> dict:
    """What `describe` says of a layout's training step."""
    part = "tokenizer" if model == "bar_fsq" else "generator"
    fields = {
        "job": "describe",
        "describe.devices": devices,
        "describe.steps": part,
        "mesh.data": mesh[0],
        "mesh.fsdp": mesh[1],
        f"train_{part}.accumulate": accumulate,
        f"train_{part}.remat": remat,
    }
    fields |= {f"train_{part}.batch_size": batch} if batch else {}
    return run(results, model, fields)


def run(results: Path, model: str, fields: dict[str, object]) -> dict:
    """What `describe` says of `describe.steps`, from the folder of results if it is there."""
    name = "_".join([model, *(str(value) for value in list(fields.values())[1:])])
    file = results / f"{name.replace(':', '-')}.json"
    if not file.exists():
        print(name, file=sys.stderr)
        flags = [f"--config.{field}={value}" for field, value in fields.items()]
        command = [sys.executable, "-m", "bar_jax.main", f"--config=configs/{CONFIGS[model]}.py"]
        done = subprocess.run([*command, *flags], check=True, stdout=subprocess.PIPE)
        file.write_bytes(done.stdout)
    return json.loads(file.read_text())["steps"][fields["describe.steps"]]


def memory_table(results: Path) -> None:
    """Batch, rematerialisation and fsdp of four models on eight devices."""
    print("| model | batch | pieces | remat | fsdp | arguments | temporaries | all, GB |")
    print("|---|---|---|---|---|---|---|---|")
    for model in PLANNED:
        for batch, pieces, remat, fsdp in TOKENIZER if model == "bar_fsq" else LAYOUTS:
            plan = described(results, model, SLICE, (-1, fsdp), batch, pieces, remat)
            line = f"| {model} | {batch} | {pieces} | {'yes' if remat else 'no'} | {fsdp} |"
            if "does_not_fit" in plan:
                print(line, f"| | {plan['does_not_fit']} |")
                continue
            memory = plan["memory_bytes_per_device"]
            sizes = (memory[part] / GB for part in ("arguments", "temporaries", "total"))
            print(line, " | ".join(f"{size:.1f}" for size in sizes), "|")


def run_table(results: Path) -> None:
    """What devices hold and send in large runs."""
    kinds = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute")
    print(
        "| model | data x fsdp | parameters | optimiser, EMA | step | " + " | ".join(kinds), end=""
    )
    print(" | largest | sent | TPU v5e | H100 |\n|" + "---|" * (9 + len(kinds)))
    for model, data, fsdp in RUNS:
        plan = described(results, model, WIDER[model], (data, fsdp), 0, 1, True)
        state = plan["state_bytes_per_device"]
        cells = [f"{data} x {fsdp}", f"{state['parameters'] / GB:.2f}"]
        cells.append(f"{(state['optimizer'] + state['ema']) / GB:.2f}")
        if "does_not_fit" in plan:
            print(f"| {model} | {' | '.join(cells)} | {plan['does_not_fit']} |" + " |" * 8)
            continue
        found, seconds = plan["collectives"], plan["communication_seconds"]
        cells.append(f"{plan['memory_bytes_per_device']['total'] / GB:.2f}")
        for kind in kinds:
            own = found.get(kind, {"times": 0, "sent_bytes": 0})
            cells.append(f"{own['times']}: {own['sent_bytes'] / GB:.2f}")
        cells.append(f"{max(kind['largest_bytes'] for kind in found.values()) / 1e6:.0f} MB")
        cells.append(f"{sum(kind['sent_bytes'] for kind in found.values()) / GB:.2f}")
        cells += [f"{1000 * seconds[name]:.0f} ms" for name in ("TPU v5e", "H100")]
        print(f"| {model} | {' | '.join(cells)} |")


def predicted_table(results: Path, chips: list[str]) -> None:
    """What samplers and training steps compute and move on one chip, and the time it takes."""
    columns = ("chip", "program", "batch", "memory, GB", "GFLOP an image", "GB an image")
    columns += ("turns", "GFLOP a turn", "GB a turn", "arithmetic, ms", "traffic, ms")
    columns += ("kernel by kernel, ms", "bound by", "images/s at most", "compiled in, s")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    for chip in chips:
        for model, batch in SAMPLERS:
            step = {"describe.steps": "sampler", "sample.batch_size": batch}
            step |= {"sample.dtype": "bfloat16", "encode.dtype": "bfloat16"}
            plan = run(results, model, {"job": "describe", "describe.devices": CHIPS[chip]} | step)
            for part in ("tokens", "pixels"):
                print_prediction(chip, f"{model}, {part}", batch, plan[part])
        for model, batch in TRAININGS:
            step = {"describe.steps": "generator", "train_generator.batch_size": batch}
            step |= {"train_generator.remat": True, "dtype": "bfloat16"}
            plan = run(results, model, {"job": "describe", "describe.devices": CHIPS[chip]} | step)
            print_prediction(chip, f"{model}, training step", batch, plan)


def print_prediction(chip: str, program: str, batch: int, plan: dict) -> None:
    """A line of the table of predictions."""
    line = f"| {chip} | {program} | {batch} |"
    if "does_not_fit" in plan:
        print(line, f"{plan['does_not_fit']} |" + " |" * 11, flush=True)
        return
    work, seconds = plan["work"], plan["work"]["seconds"]
    cells = [f"{plan['memory_bytes_per_device']['total'] / GB:.1f}"]
    cells += [f"{work['flops_per_image'] / GB:.0f}", f"{work['bytes_per_image'] / GB:.2f}"]
    loop = work.get("loop")
    cells += [""] * 3 if not loop else [
        str(loop["iterations"]), f"{loop['flops'] / GB:.1f}", f"{loop['bytes'] / GB:.2f}"
    ]  # fmt: skip
    for part in ("arithmetic", "traffic", "one_after_another"):
        cells.append(f"{1000 * seconds[part]:.3g}")
    cells += [work["bound_by"], f"{batch / seconds['one_after_another']:.3g}"]
    print(line, " | ".join([*cells, f"{plan['compile_seconds']:.0f}"]), "|", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("runs/plan"))
    parser.add_argument("--chips", default=",".join(CHIPS), help="of the table predicted")
    parser.add_argument("tables", nargs="*", default=["memory", "runs"])
    given = parser.parse_args()
    given.results.mkdir(parents=True, exist_ok=True)
    tables = {
        "memory": memory_table,
        "runs": run_table,
        "predicted": lambda results: predicted_table(results, given.chips.split(",")),
    }
    for table in given.tables:
        tables[table](given.results)
        print()
