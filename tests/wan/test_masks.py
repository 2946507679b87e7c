"""Masks as pictures: one row a query frame, # = sees, . = does not."""

from __future__ import annotations

import pytest
import torch

from tests import tiny
from wan.attention.masks import FrameMask, causal, teacher_forcing


def picture(text: str) -> str:
    return "\n".join(text.split())


CAUSAL = [
    ((2, 2, 2), -1, 0, "##.... ##.... ####.. ####.. ###### ######"),
    ((1, 1, 1, 1), 2, 0, "#... ##.. .##. ..##"),  # window of 2 frames
    ((1, 1, 1, 1, 1), 3, 1, "#.... ##... ###.. #.##. #..##"),
    ((2, 2, 2), 2, 0, "##.... ##.... ..##.. ..##.. ....## ....##"),  # no history
    ((1, 2, 2), -1, 0, "#.... ###.. ###.. ##### #####"),  # independent first frame
    ((1, 2, 2), 4, 1, "#.... ###.. ###.. #.### #.###"),
    ((2, 1, 2), 3, 0, "##... ##... .##.. ..### ..###"),  # a short chunk keeps the history of the largest
    ((1, 1, 1, 1), 3, 2, "#... ##.. ###. ##.#"),  # sink without history
]


@pytest.mark.parametrize(("lengths", "window", "sink", "wanted"), CAUSAL)
def test_causal(lengths, window, sink, wanted):
    assert str(causal(tiny.spans(*lengths), window, sink)) == picture(wanted)


def test_first_chunk_alone_sees_itself():
    assert str(causal(tiny.spans(3))) == picture("### ### ###")


def test_teacher_forcing():
    wanted = """
        #.....
        ###...
        ###...
        ...#..
        #...##
        #...##
    """
    assert str(teacher_forcing(tiny.spans(1, 2))) == picture(wanted)


def test_teacher_forcing_in_a_window_with_sink():
    wanted = """
        #.........
        ##........
        ###.......
        #.##......
        #..##.....
        .....#....
        #.....#...
        ##.....#..
        #.#.....#.
        #..#.....#
    """
    assert str(teacher_forcing(tiny.spans(1, 1, 1, 1, 1), 3, 1)) == picture(wanted)


def test_expansion_to_tokens():
    mask = FrameMask(torch.tensor([[1, 0, 1], [0, 1, 1]]))
    given = mask.dense(tiny.layout(2, 2), tiny.layout(3, 2), "cpu")
    assert str(FrameMask(given)) == picture("##..## ##..## ..#### ..####")
