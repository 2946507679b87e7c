"""A backbone family of one's own: Wan with a learned gain per channel after each block.

In use it is registered by one line of `wan.FAMILIES`: `"gain": "tests.examples.gain_family.family:Gain"`.
Nothing heavy is imported here: the names and sizes are asked for while a recipe is checked.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import ClassVar

from wan.backbone import Wan
from wan.spec import SPECS, TransformerSpec


@dataclass(frozen=True)
class GainSpec(TransformerSpec):
    """The sizes, and one more that no shape tells: the value that a fresh gain has."""

    family: ClassVar[str] = "gain"
    unmeasured: ClassVar[tuple[str, ...]] = (*TransformerSpec.unmeasured, "start_gain")
    start_gain: float = 0.9


SMALL = GainSpec(**{**asdict(SPECS["digits"].transformer), "num_layers": 1, "ffn_dim": 64})


class Gain(Wan):
    """What differs from Wan: names, sizes, a mark in the files, the network."""

    class_name = "GainTransformer"
    class_names = ("GainTransformer",)
    spec_class = GainSpec
    specs = {"gain-digits": replace(SPECS["digits"], name="gain-digits", transformer=SMALL)}
    transformers = {"gain transformer": (*Wan.transformers["wan transformer, official"], "blocks.0.gain")}
    codecs = {}  # Wan's, which knows its own
    layouts = ()  # no other project has such a network

    def network(self, spec: GainSpec):
        from tests.examples.gain_family.network import GainTransformer

        return GainTransformer(spec)
