"""What was found, as a Markdown table."""

import json
from pathlib import Path


def read(file: Path) -> list[dict]:
    """The lines of results.jsonl: of a row measured again the newest, and none that was cut off."""
    found = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            result = json.loads(line)
        except json.JSONDecodeError:
            continue
        found.pop(result["row"], None)
        found[result["row"]] = result
    return list(found.values())


def markdown(machine: dict, results: list[dict]) -> str:
    """All rows, the checks one by one, and where the time goes.

    Args:
      machine: what `work.probe` printed.
      results: lines of results.jsonl.
    """
    memory = machine["memory_bytes"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"# {machine['devices']} x {machine['device']}",
        "",
        *(["**Tiny models: nothing here is a measurement.**", ""] if _tiny(results) else []),
        f"{versions}; {machine['runtime']}; {machine['processors']} processors"
        + (f"; {memory / 1e9:.1f} GB of a device for JAX." if memory else "."),
        "",
        "| row | found | beside | seconds | time |",
        "|---|---|---|---|---|",
    ]
    for found in results:
        cells = (found["row"], in_short(found), found["beside"], found["seconds"], found["time"])
        lines.append("| " + " | ".join(_cell(str(cell)) for cell in cells) + " |")
    return "\n".join(lines + _checks(results) + _traces(results)) + "\n"


def in_short(found: dict) -> str:
    """A row's result in a line."""
    parts = "; ".join(_parts(found.get("result") or {}))
    if found["status"] == "ok":
        return parts
    reason = f"{found['status']}: {found['reason']}"
    last = found.get("error", [])[-1:]
    return "; ".join([reason, *last, *([parts] if parts else [])])


def _parts(result: dict) -> list[str]:
    """Each part of `job=benchmark` in words, at every batch; checks by their outcome."""
    texts = []
    checks = {name: part["ok"] for name, part in _checked(result).items()}
    if checks:
        words = {True: "right", False: "NOT right", None: "does not apply"}
        for ok in (False, True, None):
            names = [name for name, each in checks.items() if each is ok]
            texts += [f"{words[ok]}: {', '.join(names)}"] if names else []
    for name, part in result.items():
        if name in checks or not isinstance(part, dict):
            continue
        for each in part.get("batches", [part]):
            texts.append(_part(name, each))
    return [text for text in texts if text]


def _part(name: str, result: dict) -> str:
    if "out_of_memory" in result:
        return f"batch {result['batch_size']}: out of memory"
    if name == "basis":
        kinds = ("bar", "residual")
        each = [f"{k} {result[k]['time_ratio']}, {result[k]['memory_ratio']}" for k in kinds]
        return f"batch {result['batch_size']}: time, memory of the host's: {'; '.join(each)}"
    if name in ("tokenizer", "tokenizer_training"):
        inside = [(key, value) for key, value in result.items() if isinstance(value, dict)]
        each = [f"{key} {_rate(value)}" for key, value in inside]
        size = result.get("batch_size", inside[0][1].get("batch_size"))
        return f"batch {size}: {'; '.join(each)}"
    return f"batch {result['batch_size']}: {_rate(result)}" if "batch_size" in result else ""


def _rate(result: dict) -> str:
    """Images a second, and what is known beside."""
    rate = result.get("images_per_second_decoded", result.get("images_per_second"))
    words = [f"{rate:.4g} images/s"] if rate is not None else []
    if rate is not None and "images_per_second_decoded" in result:
        words[0] += f" with pixels ({1 / rate:.3g} s an image)"
    if "first_seconds" in result:
        compiled = result["compile_seconds"] + result["decode_compile_seconds"]
        words.append(f"first pictures {result['first_seconds']:.3g} s after {compiled:.3g} s")
    elif "compile_seconds" in result:
        words.append(f"compiled in {result['compile_seconds']:.3g} s")
    for field in ("fraction_of_peak", "model_flops_utilisation"):
        if field in result:
            words.append(f"{100 * result[field]:.3g} % of peak")
    if "memory_bytes_per_device" in result:
        words.append(f"{result['memory_bytes_per_device'] / 1e9:.3g} GB")
    return ", ".join(words)


def _checked(result: dict) -> dict[str, dict]:
    return {name: part for name, part in result.items() if isinstance(part, dict) and "ok" in part}


def _checks(results: list[dict]) -> list[str]:
    lines = []
    for found in results:
        for name, check in _checked(found.get("result") or {}).items():
            beside = {k: v for k, v in check.items() if k not in ("ok", "error", "tolerance")}
            note = "; ".join(f"{key}: {value}" for key, value in beside.items())
            for what, error in check.get("error", {"": ""}).items():
                tolerance = check.get("tolerance", {}).get(what, "")
                ok = {True: "yes", False: "NO", None: "-"}[check["ok"]]
                lines.append(f"| {name} | {what} | {error} | {tolerance} | {ok} | {_cell(note)} |")
    head = ["", "## Right", "", "| check | of | error | at most | right | |"]
    return head + ["|---|---|---|---|---|---|", *lines] if lines else []


def _traces(results: list[dict]) -> list[str]:
    lines = []
    for found in results:
        for part in (found.get("result") or {}).values():
            trace = part.get("trace") if isinstance(part, dict) else None
            if trace:
                idle = f"{100 * trace['idle_share']:.3g} %"
                lines += ["", f"## {found['row']}: {trace['seconds']} s, {idle} of it idle", ""]
                lines += ["| operation | seconds | share | count |", "|---|---|---|---|"]
                lines += [
                    f"| `{_cell(each['name'])}` | {each['seconds']} | {100 * each['share']:.3g} % "
                    f"| {each['count']} |"
                    for each in trace["operations"]
                ]
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _tiny(results: list[dict]) -> bool:
    return any(found["tiny"] for found in results)
