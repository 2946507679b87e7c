"""Folders of encoded prompts as Video-BLADE's scripts wrote them: `.pt` files, one for each prompt of a list.

`shuffled_prompts.pt` (CogVideoX) or `prompts_shuffled.pt` (Wan) is the list, `individual_embeddings/{i}.pt` the i-th
embedding [1, T, width]; `uncond_prompt_embed(s).pt` is that of one space (CogVideoX) or of nothing (Wan),
`negative_prompt_embeds.pt` that of a text that the folder does not say.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from utils.data.records import BadRecord, open_regular

LISTS = {"shuffled_prompts.pt": ("uncond_prompt_embed.pt", " "), "prompts_shuffled.pt": ("uncond_prompt_embeds.pt", "")}
NEGATIVE = "negative_prompt_embeds.pt"


def find_prompts(folder: str | Path, negative: str = "") -> dict[str, Path]:
    """Returns text -> file of its embedding, the unconditional and the negative one first.

    negative: the text of `negative_prompt_embeds.pt`, which is left out if it is empty.
    Errors: ValueError for a folder without a list, or one whose embeddings are not those of the list.
    """
    folder = Path(folder)
    name = next((name for name in LISTS if (folder / name).exists()), None)
    if name is None:
        raise ValueError(f"{folder} holds none of {', '.join(LISTS)}: it is no folder of Video-BLADE's prompts")
    texts = load(folder / name)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadRecord(f"{folder / name} is no list of prompts")
    numbers = {p.stem for p in (folder / "individual_embeddings").glob("*.pt") if re.fullmatch(r"\d+", p.stem)}
    if len(numbers) != len(texts) or numbers != {str(n) for n in range(len(texts))}:
        why = "a batch that failed there moved all later ones"
        raise ValueError(f"{folder} has {len(texts)} prompts and {len(numbers)} embeddings ({why}); encode them again")
    null, text = LISTS[name]
    found = {text: folder / null} if (folder / null).exists() else {}
    if negative:
        if not (folder / NEGATIVE).exists():
            raise ValueError(f"{folder} has no {NEGATIVE}; leave --negative_prompt out")
        found[negative] = folder / NEGATIVE
    for number, text in enumerate(texts):
        found.setdefault(text, folder / "individual_embeddings" / f"{number}.pt")
    return found


def load_embedding(path: Path) -> torch.Tensor:
    """Returns an embedding [T, width]. Errors: BadRecord for a file that holds something else."""
    tensor = load(path)
    if not isinstance(tensor, torch.Tensor) or tensor.ndim not in (2, 3) or tensor.shape[:-2] not in ((), (1,)):
        raise BadRecord(f"{path} holds no embedding [1, T, width]")
    return tensor.reshape(tensor.shape[-2:])


def load(path: Path):
    """Returns what a `.pt` file holds; no code in it is run. Errors: BadRecord naming a file that is none."""
    open_regular(path).close()
    refusal = torch.serialization.pickle.UnpicklingError
    damage = (RuntimeError, EOFError, OSError, LookupError, ValueError, TypeError, AttributeError)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except refusal:
        raise BadRecord(f"{path} is damaged, or holds more than tensors and texts; nothing in it is executed") from None
    except damage as reason:
        first = str(reason).strip().splitlines()[:1] or [type(reason).__name__]
        raise BadRecord(f"{path} is truncated or damaged ({first[0]}); copy it again") from None
