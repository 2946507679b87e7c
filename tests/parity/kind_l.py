"""Kind L: Video-BLADE."""

from __future__ import annotations

from tests.parity import kind_l_tdm
from tests.parity.case import Case, NotBuilt

NOT_TARGETS = ("newer_flow_",)


def run(case: Case):
    """Returns what the original computed, by what the case holds."""
    if "K" in case.config.get("config", {}):
        return kind_l_tdm.run(case)
    raise NotBuilt("sparse attention")
