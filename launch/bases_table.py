"""Prints what the runs of launch/compare_bases.sh reached: mean and range over seeds.

python launch/bases_table.py FOLDER
"""

import collections
import json
import pathlib
import statistics
import sys

NUMBERS = (
    "reconstruction_psnr",
    "generator_bits_per_image",
    "generator_loss",
    "basis_energy_of_pca",
    "basis_orthogonality",
    "sample_class_accuracy",
    "sample_classifier_fid",
)
runs, columns = collections.defaultdict(list), dict.fromkeys(NUMBERS)
for done in sorted(pathlib.Path(sys.argv[1]).glob("*_[0-9]/done")):
    summary = json.loads((done.parent / "summary.json").read_text())
    counts = summary.get("prefix_tokens", [])
    for name in [n for n in summary if n.startswith("prefix_") and n != "prefix_tokens"]:
        at = dict(zip(counts, summary[name], strict=True))
        summary |= {f"{name}@{m}": at[m] for m in (counts[-1] // 4, counts[-1] // 2)}
    columns |= dict.fromkeys(name for name in summary if "@" in name and "tokens" not in name)
    runs[done.parent.name[:-2]].append(summary)
columns = [c for c in columns if any(c in summary for found in runs.values() for summary in found)]
print("variant", "runs", *columns, sep="\t")
for name, found in runs.items():
    values = ([summary[c] for summary in found if c in summary] for c in columns)
    cells = (
        f"{statistics.mean(v):.3f} ({min(v):.3f} to {max(v):.3f})" if v else "-" for v in values
    )
    print(name, len(found), *cells, sep="\t")
