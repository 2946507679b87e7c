"""Prompt files, image folders, and file names that are safe whatever a prompt holds."""

from __future__ import annotations

import json
import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from utils.data.prompts import (
    MAX_NAME,
    RESERVED,
    PromptLine,
    file_stem,
    read_image_prompts,
    read_prompts,
    repeated,
    safe_name,
)
from utils.data.text_file import MAX_PROMPT

NASTY = ["", " ", ".", "..", "../../etc/x", "/a", "a/b", "a\\b", ".hidden", "-rf", "con", "NUL.mp4", "a\x00b", "7"]
NASTY += ["\u202e gpj", "\u4e00\u53ea\u732b", "caf\u00e9", "a" * 500, "a\nb", "A cat?", "a:b", "*", "~root", "COM1 .x"]
TEXTS = st.one_of(st.sampled_from(NASTY), st.text(max_size=150), st.text("aA. -/~0", max_size=8))


def _write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_lines_keep_their_numbers(tmp_path):
    path = _write(tmp_path, "p.txt", b"\xef\xbb\xbfa red two  \r\n\r\n  \t\na\tblue three\n\n")
    lines = read_prompts(path)
    assert [(x.text, x.line, x.index, x.prompt) for x in lines] == [
        ("a red two", 1, 0, "a red two"),
        ("a blue three", 4, 3, "a blue three"),
    ]


def test_only_line_breaks_separate_prompts(tmp_path):
    path = _write(tmp_path, "p.txt", "one\u2028still one\x0cand one\rtwo\n caf\u00e9 \u732b \U0001f600")
    assert [x.text for x in read_prompts(path)] == ["one still one and one", "two", " caf\u00e9 \u732b \U0001f600"]


@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters="[{,;"), max_size=20),
        max_size=8,
    )
)
def test_reading_returns_what_was_written(tmp_path_factory, texts):
    path = _write(tmp_path_factory.mktemp("p"), "p.txt", "\n".join(texts).removeprefix("\ufeff"))
    expected = [(n, t.rstrip()) for n, t in enumerate("\n".join(texts).removeprefix("\ufeff").split("\n"), 1)]
    expected = [(n, t) for n, t in expected if any(unicodedata.category(c) not in ("Zs", "Cf") for c in t)]
    if expected:
        assert [(x.line, x.text) for x in read_prompts(path)] == expected
    else:
        with pytest.raises(ValueError, match="holds no prompt"):
            read_prompts(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"p\.txt holds no prompt"),
        (b"\n  \n", r"p\.txt holds no prompt"),
        (b"ok\n" + b"x" * 100_000, rf"line 2: the prompt has 100000 characters, allowed are {MAX_PROMPT}"),
        (b"ok\nab\x00c", r"line 2, column 3: .* control character U\+0000"),
        (b"\x1b[31mred", r"line 1, column 1: .* U\+001B"),
        (b"ok\n\nab\xffc", r"line 3, byte 3: not UTF-8"),
        ("ok".encode("utf-16-be"), r"line 1, column 1: .* UTF-16"),
        (b"\xff\xfeo", "not UTF-16"),
    ],
)
def test_bad_prompt_files_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_prompts(_write(tmp_path, "p.txt", content))


def test_a_prompt_at_the_limit_passes(tmp_path):
    assert len(read_prompts(_write(tmp_path, "p.txt", "x" * MAX_PROMPT))[0].text) == MAX_PROMPT


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.txt is not a file"):
        read_prompts(tmp_path / "nothing.txt")
    with pytest.raises(ValueError, match="image-to-video"):
        read_prompts(tmp_path)


def test_extended_prompts_are_paired_by_line(tmp_path):
    short, longer = _write(tmp_path, "s.txt", "a\n\nb\n"), _write(tmp_path, "l.txt", "long a\n\nlong b")
    lines = read_prompts(short, longer)
    assert [(x.text, x.prompt, x.line) for x in lines] == [("a", "long a", 1), ("b", "long b", 3)]
    with pytest.raises(ValueError, match=r"s\.txt has 3 lines but .*l\.txt has 2"):
        read_prompts(short, _write(tmp_path, "l.txt", "long a\nlong b"))
    with pytest.raises(ValueError, match=r"line 2 is blank in .*s\.txt but not in .*l\.txt"):
        read_prompts(short, _write(tmp_path, "l.txt", "long a\nx\nlong b"))
    with pytest.raises(ValueError, match=r"line 1 is blank in .*l\.txt but not in .*s\.txt"):
        read_prompts(short, _write(tmp_path, "l.txt", "\n\nlong b"))


def test_image_folder(tmp_path):
    for name in ("b.jpg", "a.PNG", ".DS_Store"):
        _write(tmp_path, name, b"")
    _write(tmp_path, "b.txt", "a dog\nruns\n")
    _write(tmp_path, "a.txt", "a cat")
    lines = read_image_prompts(tmp_path)
    assert [(x.text, x.line, x.image.name, x.target_crop) for x in lines] == [
        ("a cat", 1, "a.PNG", None),
        ("a dog runs", 2, "b.jpg", None),
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no image"),
        ({"a.txt": "x"}, "holds no image"),
        ({"a.png": ""}, r"no caption a\.txt"),
        ({"a.png": "", "a.txt": "x", "b.txt": "x"}, r"no image for the caption b\.txt"),
        ({"a.png": "", "a.jpg": "", "a.txt": "x"}, "two images with the name 'a'"),
        ({"a.png": "", "a.txt": " \n"}, r"a\.txt is empty"),
        ({"a.png": "", "a.txt": b"\xff"}, r"a\.txt, line 1, byte 1"),
    ],
)
def test_bad_image_folders_are_refused(tmp_path, files, message):
    for name, content in files.items():
        _write(tmp_path, name, content)
    with pytest.raises(ValueError, match=message):
        read_image_prompts(tmp_path)


def _crop_folder(tmp_path, rows):
    (tmp_path / "26-15").mkdir()
    _write(tmp_path / "26-15", "x.jpg", b"")
    _write(tmp_path, "secret.jpg", b"")
    return _write(tmp_path, "target_crop_info_26-15.json", rows if isinstance(rows, bytes) else json.dumps(rows))


def test_crop_info_folder(tmp_path):
    crop = {"target_bbox": [0, 1, 26, 16], "target_ratio": "26-15"}
    _crop_folder(tmp_path, [{"file_name": "x.jpg", "caption": "a cat ", "target_crop": crop, "type": "animal"}])
    (line,) = read_image_prompts(tmp_path)
    assert line == PromptLine("a cat", 1, image=tmp_path / "26-15" / "x.jpg", target_crop=crop)
    _write(tmp_path, "target_crop_info_1-1.json", "[]")
    with pytest.raises(ValueError, match="2 files"):
        read_image_prompts(tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (b"{", "is not JSON"),
        ({}, "must be a list"),
        ([], "must hold a list"),
        ([1], "entry 1: 'file_name'"),
        ([{"file_name": "x.jpg"}], "entry 1: 'caption'"),
        ([{"file_name": "x.jpg", "caption": "  "}], "entry 1: 'caption'"),
        ([{"file_name": "x.jpg", "caption": "a\x00"}], r"entry 1, column 2: .* U\+0000"),
        ([{"file_name": "y.jpg", "caption": "a"}], r"entry 1: there is no image 'y\.jpg'"),
        ([{"file_name": "../secret.jpg", "caption": "a"}], r"there is no image '\.\./secret\.jpg'"),
    ],
)
def test_bad_crop_info_is_refused(tmp_path, rows, message):
    _crop_folder(tmp_path, rows)
    with pytest.raises(ValueError, match=message):
        read_image_prompts(tmp_path)


@given(prompt=TEXTS, sample=st.integers(0, 9), index=st.integers(0, 10**6), again=st.booleans())
@example(prompt="CON", sample=0, index=0, again=False)
def test_stems_are_safe(prompt, sample, index, again):
    stem = file_stem(index, sample, prompt, "ema", repeated=again)
    assert stem.isascii() and stem.isprintable()
    assert not re.search(r'[/\\:*?"<>|]', stem) and ".." not in stem
    assert stem[0] not in ".- " and stem.endswith(f"-{sample}_ema")
    assert 0 < len(stem) - len(f"-{sample}_ema") <= MAX_NAME
    assert stem.split(".")[0].strip().upper() not in RESERVED
    assert again == stem.removesuffix(f"-{sample}_ema").endswith(f"~{index}")


@given(a=TEXTS, b=TEXTS)
def test_different_prompts_have_different_names(a, b):
    assert (safe_name(a) == safe_name(b)) == (a == b)


@given(a=TEXTS, b=TEXTS, samples=st.tuples(st.integers(0, 12), st.integers(0, 12)))
def test_samples_never_share_a_name(a, b, samples):
    first, second = (file_stem(0, n, text) for n, text in zip(samples, (a, b), strict=True))
    assert (first == second) == ((a, samples[0]) == (b, samples[1]))


@given(texts=st.lists(TEXTS, max_size=8))
def test_a_whole_file_has_unique_names(texts):
    lines = [PromptLine(text, n) for n, text in enumerate(texts, 1)]
    twice = repeated(lines)
    stems = [file_stem(x.index, 0, x.text, repeated=x.index in twice) for x in lines]
    assert len({s.casefold() for s in stems}) == len(stems)
    # One more line at the end renames none.
    assert repeated([*lines, PromptLine("new", 99)]) - {98} == twice


def test_only_later_lines_are_repeated():
    texts = ["a cat", "a dog", "A Cat", "a cat", "../x", "../x", "/../x"]
    assert repeated([PromptLine(text, n) for n, text in enumerate(texts, 1)]) == {2, 3, 5}


def test_names_people_and_tools_expect():
    assert file_stem(3, 1, "a cat, running.") == "a cat, running.-1"
    assert file_stem(3, 1, "a cat", "ema") == "a cat-1_ema"
    assert file_stem(3, 1, "../x", "regular", with_index=True) == "3-1_regular"
    assert file_stem(12, 0, "a cat", repeated=True) == "a cat~12-0"
    assert file_stem(0, 0, "caf\u00e9").startswith("cafe~")
    assert file_stem(3, 0, "3") != file_stem(3, 0, "x", with_index=True)


def test_bad_name_parts_are_refused():
    with pytest.raises(ValueError, match="suffix '../x'"):
        file_stem(0, 0, "a", "../x")
    with pytest.raises(ValueError, match="negative"):
        file_stem(0, -1, "a")
