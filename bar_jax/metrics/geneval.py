"""GenEval (Ghosh et al. 2023): whether the objects of a prompt are in its image, as counted.

Its prompts (`evaluation_metadata.jsonl`) say which objects an image has to hold and which it must
not, with their number, colour and place. What is found in an image comes from any detector, as
JSON; the published one is Mask2Former (Swin-S, COCO), with colours by CLIP ViT-L/14 of the pixels
that are not background.
"""

import collections
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bar_jax.runtime.errors import InputError

CONFIDENCE, COUNTING_CONFIDENCE = 0.3, 0.9  # below them a detection is none
COUNTING = "counting"  # the tag with its own
MOST_OBJECTS = 16  # of a class, the surest ones
MARGIN = 0.1  # of both objects' sizes, within which one is not beside the other
# cos 60 degrees: a direction counts as one of the four within that.
LEAST_SHARE = 0.5


class Detection(NamedTuple):
    """An object that was found: its class, box (left, top, right, bottom) and confidence.

    `color` is one of GenEval's ten names, or "" where nothing asks for it.
    """

    name: str
    box: tuple[float, float, float, float]
    score: float
    color: str = ""


def read_prompts(path: str | os.PathLike) -> list[dict]:
    """The prompts of an `evaluation_metadata.jsonl`: `tag`, `prompt`, `include`, `exclude`.

    Raises:
      InputError: naming the line that is none.
    """
    prompts = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(path, f"an unreadable file ({error})", "GenEval's prompts") from error
    for number, line in enumerate(lines, 1):
        try:
            prompt = json.loads(line)
            missing = {"tag", "prompt"} - prompt.keys()
            for wanted in (*prompt.get("include", ()), *prompt.get("exclude", ())):
                missing |= {"class", "count"} - wanted.keys()
        except (ValueError, AttributeError, TypeError) as error:
            raise InputError(f"{path}:{number}", "no prompt of GenEval", "its JSON") from error
        if missing:
            raise InputError(f"{path}:{number}", f"no {', '.join(sorted(missing))}", "its JSON")
        prompts.append(prompt)
    if not prompts:
        raise InputError(path, "no prompts", "GenEval's")
    return prompts


def read_detections(path: str | os.PathLike) -> dict[str, list[Detection]]:
    """Detections of images by their names, from JSON.

    {"00000/samples/0000.png": [{"class": "bench", "box": [x0, y0, x1, y1], "score": 0.9,
    "color": "red"}, ...], ...}; `color` may be left out.

    Raises:
      InputError: the file is none of this form.
    """
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
        return {
            image: [
                Detection(d["class"], _box(d["box"]), float(d["score"]), d.get("color", ""))
                for d in found
            ]
            for image, found in stored.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        expected = '{"IMAGE": [{"class": ..., "box": [4 numbers], "score": ...}, ...], ...}'
        raise InputError(path, f"other JSON ({error!r})", expected) from error


def is_right(prompt: Mapping, detections: Sequence[Detection]) -> bool:
    """Whether an image holds what its prompt asks for, and not what it excludes."""
    objects = _objects(prompt["tag"], detections)
    groups: list[list[Detection] | None] = []  # of each wanted class, if they are as wanted
    for wanted in prompt.get("include", ()):
        found = objects[wanted["class"]][: wanted["count"]]
        good = len(found) == wanted["count"]
        if good and "color" in wanted:
            good = [d.color for d in found].count(wanted["color"]) >= wanted["count"]
        if good and "position" in wanted:
            relation, other = wanted["position"]
            targets = groups[other]
            good = targets is not None and all(
                relation in relations(d, target) for d in found for target in targets
            )
        groups.append(found if good else None)
    excluded = any(
        len(objects[unwanted["class"]]) >= unwanted["count"]
        for unwanted in prompt.get("exclude", ())
    )
    return None not in groups and not excluded


def relations(a: Detection, b: Detection) -> set[str]:
    """Where a is, seen from b: some of `left of`, `right of`, `above`, `below`; y grows downwards.

    The distance of the centres is shortened by a tenth of both sizes, in each direction.
    """
    offset, shortened = [], []
    for low, high in ((0, 2), (1, 3)):
        distance = (a.box[low] + a.box[high] - b.box[low] - b.box[high]) / 2
        sizes = abs(a.box[high] - a.box[low]) + abs(b.box[high] - b.box[low])
        offset.append(distance)
        shortened.append(math.copysign(max(abs(distance) - MARGIN * sizes, 0), distance))
    if all(abs(distance) < 1e-3 for distance in shortened):
        return set()
    x, y = (distance / math.hypot(*offset) for distance in shortened)
    directions = {"left of": -x, "right of": x, "above": -y, "below": y}
    return {name for name, share in directions.items() if share > LEAST_SHARE}


def scores(prompts: Sequence[Mapping], right: Sequence[Sequence[bool]]) -> dict[str, float]:
    """The share of right images of each tag, and `geneval`, their mean over the tags.

    Args:
      right: of each prompt, whether each of its images is right.
    """
    of_tags = collections.defaultdict(list)
    for prompt, own in zip(prompts, right, strict=True):
        of_tags[prompt["tag"]].extend(own)
    shares = {f"geneval_{tag}": sum(own) / len(own) for tag, own in of_tags.items()}
    return {"geneval": sum(shares.values()) / len(shares)} | shares


def image_name(prompt: int, image: int) -> str:
    """Where GenEval's evaluator looks for an image, in a folder of all prompts'."""
    return f"{prompt:05d}/samples/{image:04d}.png"


def _objects(tag: str, detections: Sequence[Detection]) -> Mapping[str, list[Detection]]:
    """The surest detections of each class, the surest first."""
    least = COUNTING_CONFIDENCE if tag == COUNTING else CONFIDENCE
    objects = collections.defaultdict(list)
    for detection in sorted(detections, key=lambda d: -d.score):
        if detection.score > least and len(objects[detection.name]) < MOST_OBJECTS:
            objects[detection.name].append(detection)
    return objects


def _box(numbers: Sequence) -> tuple[float, float, float, float]:
    left, top, right, bottom = map(float, numbers)
    return left, top, right, bottom
