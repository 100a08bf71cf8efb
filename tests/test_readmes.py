"""Tests of the READMEs: their links lead somewhere, their fields exist, the first one is short."""

import re
from pathlib import Path

import pytest

from bar_jax.config import default_config, flatten

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("bar_jax", "configs", "launch", "third_party")
READMES = [ROOT / "README.md"]
READMES += sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("README.md"))
NAMES = [file.relative_to(ROOT).as_posix() for file in READMES]


def _anchors(text: str) -> set[str]:
    """Anchors of a page's headings, as GitHub names them."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    file = ROOT / name
    links = re.findall(
        r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", file.read_text(), flags=re.DOTALL)
    )
    lost = []
    for link in links:
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (file.parent / path).resolve() if path else file
        found = target.exists() and ROOT in (target, *target.parents)
        if not found or (anchor and anchor not in _anchors(target.read_text())):
            lost.append(link)
    assert lost == []


@pytest.mark.parametrize("name", NAMES)
def test_fields_exist(name):
    fields = {field for field, _ in flatten(default_config())}
    named = set(re.findall(r"--config\.([a-z_0-9.]+)", (ROOT / name).read_text()))
    sections = {field.rpartition(".")[0] for field in fields}
    assert {field.rstrip(".") for field in named} - fields - sections == set()


def test_the_first_page_is_read_in_one_sitting():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 250
