"""Prints two tables of launch/README.md: memory of layouts, and the plan of large runs.

    pip install "jax[tpu]"       # for libtpu; no TPU is needed
    python launch/plan_tables.py [--results FOLDER] [memory] [runs]

Each line is `job=describe` in a process of its own: a step is compiled for TPUs that need not be
here, in 20 to 100 seconds on two cores. Its JSON stays in FOLDER, and what is there is not done
again.
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
}
# batch, accumulate, remat, fsdp; on 8 devices, the rest of them is `data`
LAYOUTS = [(128, 1, False, 1), (128, 1, True, 1), (128, 1, True, 8), (512, 1, False, 8)]
LAYOUTS += [(512, 1, True, 8), (2048, 4, True, 8)]
TOKENIZER = [(64, 1, False, 1), (64, 1, True, 1), (64, 1, True, 8), (256, 1, False, 8)]
TOKENIZER += [(256, 1, True, 8), (256, 4, True, 8)]
# model, data, fsdp; with the batch of the config, rematerialised
RUNS = [("bar_l", 1, 256), ("bar_l", 16, 16), ("bar_l", 32, 8)]
RUNS += [("xar_h", 1, 64), ("xar_h", 8, 8), ("xar_h", 64, 1)]
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
    name = "_".join([model, *(str(value) for value in list(fields.values())[1:])])
    file = results / f"{name.replace(':', '-')}.json"
    if not file.exists():
        print(name, file=sys.stderr)
        flags = [f"--config.{field}={value}" for field, value in fields.items()]
        command = [sys.executable, "-m", "bar_jax.main", f"--config=configs/{CONFIGS[model]}.py"]
        done = subprocess.run([*command, *flags], check=True, stdout=subprocess.PIPE)
        file.write_bytes(done.stdout)
    return json.loads(file.read_text())["steps"][part]


def memory_table(results: Path) -> None:
    """Batch, rematerialisation and fsdp of four models on eight devices."""
    print("| model | batch | pieces | remat | fsdp | arguments | temporaries | all, GB |")
    print("|---|---|---|---|---|---|---|---|")
    for model in CONFIGS:
        for batch, pieces, remat, fsdp in TOKENIZER if model == "bar_fsq" else LAYOUTS:
            told = described(results, model, SLICE, (-1, fsdp), batch, pieces, remat)
            line = f"| {model} | {batch} | {pieces} | {'yes' if remat else 'no'} | {fsdp} |"
            if "does_not_fit" in told:
                print(line, f"| | {told['does_not_fit']} |")
                continue
            memory = told["memory_bytes_per_device"]
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
        told = described(results, model, WIDER[model], (data, fsdp), 0, 1, True)
        state = told["state_bytes_per_device"]
        cells = [f"{data} x {fsdp}", f"{state['parameters'] / GB:.2f}"]
        cells.append(f"{(state['optimizer'] + state['ema']) / GB:.2f}")
        if "does_not_fit" in told:
            print(f"| {model} | {' | '.join(cells)} | {told['does_not_fit']} |" + " |" * 8)
            continue
        found, seconds = told["collectives"], told["communication_seconds"]
        cells.append(f"{told['memory_bytes_per_device']['total'] / GB:.2f}")
        for kind in kinds:
            own = found.get(kind, {"times": 0, "sent_bytes": 0})
            cells.append(f"{own['times']}: {own['sent_bytes'] / GB:.2f}")
        cells.append(f"{max(kind['largest_bytes'] for kind in found.values()) / 1e6:.0f} MB")
        cells.append(f"{sum(kind['sent_bytes'] for kind in found.values()) / GB:.2f}")
        cells += [f"{1000 * seconds[name]:.0f} ms" for name in ("TPU v5e", "H100")]
        print(f"| {model} | {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("runs/plan"))
    parser.add_argument("tables", nargs="*", default=["memory", "runs"])
    given = parser.parse_args()
    given.results.mkdir(parents=True, exist_ok=True)
    for table in given.tables:
        {"memory": memory_table, "runs": run_table}[table](given.results)
        print()
