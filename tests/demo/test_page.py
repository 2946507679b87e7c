"""The web page in a real browser: a newcomer's first video, upload, microphone, stop, two tabs, bad files."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time

import av
import numpy as np
import pytest

from tests.architecture.source import ROOT
from tests.browser import Browser, find_chromium
from tests.pipeline.service.talks import LONG, TALK, write_talk
from tests.utils.media.test_audio import save
from utils.digits.speaking import REST, hum
from utils.media.mp4 import find_damage

pytest.importorskip("gradio", reason="gradio is not installed (pip install -e .[demo])")
CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine (the package chromium brings one)"
)
HIGH = 20.0  # row of the microphone's hum
STATUS = "document.querySelector('#status p')?.innerText ?? ''"
SOURCE = "document.querySelector('#video video')?.src ?? ''"
PLAYER = """(v => v && [v.currentTime, v.videoWidth, v.webkitAudioDecodedByteCount])
    (document.querySelector('#video video'))"""
PIXELS = """(v => { const c = document.createElement('canvas'); c.width = c.height = 64; const x = c.getContext('2d');
    x.drawImage(v, 0, 0, 64, 64); return [...x.getImageData(0, 0, 64, 64).data].filter((_, n) => n % 4 < 3)
    })(document.querySelector('#video video'))"""
DOWNLOAD = """fetch(document.querySelector('#status a').href).then(r => r.arrayBuffer())
    .then(b => [...new Uint8Array(b)])"""


class Server:
    """`python demo/avatar.py --port 0`, and where its page is."""

    def __init__(self, folder):
        self.folder, self.lines = folder, []
        command = [sys.executable, "demo/avatar.py", "--port", "0", "--output_folder", str(folder / "out")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GRADIO_TEMP_DIR": str(folder / "uploads")}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.address = ""
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith("open "):
                self.address = line.split()[1]
                break
        assert self.address, "".join(self.lines)
        threading.Thread(target=lambda: self.lines.extend(self.process.stdout), daemon=True).start()

    def end(self) -> int:
        """Interrupts it; returns its status."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    if server.process.poll() is None:
        server.end()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    sound = hum(np.full(65, HIGH), np.ones(65, bool), np.random.default_rng(0))
    wide = np.interp(np.arange(3 * len(sound)) / 3, np.arange(len(sound)), sound)  # 48 kHz, as browsers hear
    save(folder / "microphone.wav", samples=wide[None].astype(np.float32))
    with Browser(CHROMIUM, folder, folder / "microphone.wav") as browser:
        yield browser


@pytest.fixture
def tab(server, browser):
    """A page as it opens, with its example."""
    tab = open_page(server, browser)
    yield tab
    tab.click("#stop")
    tab.close()


def open_page(server, browser):
    tab = browser.open(server.address)
    tab.wait("!!document.querySelector('#voice .play-pause-button') && !!document.querySelector('#portrait img')")
    return tab


def fill(tab, face, voice, prompt):
    """Gives the page other files and another prompt."""
    for where, clear, path in (("#portrait", "Remove Image", face), ("#voice", "Clear", voice)):
        tab.click(f"{where} button[aria-label='{clear}']")
        tab.wait(f"!document.querySelector(\"{where} button[aria-label='{clear}']\")")
        tab.upload(f"{where} input[type=file]", path)
        tab.wait(f"!!document.querySelector(\"{where} button[aria-label='{clear}']\")")
    tab.type("#prompt textarea", prompt)


def generate(tab):
    """Asks for a video; returns when it plays."""
    before = tab.ask(SOURCE)
    tab.click("#generate")
    tab.wait(SOURCE, lambda source: source not in ("", before))
    tab.wait(PLAYER, lambda player: player and player[0] > 0.3 and player[1] == 64 and player[2] > 0)


def frames_of(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as file:
        assert [stream.type for stream in file.streams] == ["video", "audio"]
        return np.stack([frame.to_ndarray(format="gray") for frame in file.decode(video=0)])


def test_a_newcomer_presses_one_button_and_it_moves_and_sounds(tab):
    generate(tab)
    seen = [np.array(tab.ask(PIXELS)) for _ in range(3) if not time.sleep(0.6)]
    assert all(picture.max() > 150 for picture in seen)
    assert all(np.abs(a - b).max() > 50 for a, b in zip(seen, seen[1:], strict=False))
    tab.wait(STATUS, lambda text: text.startswith("done: 57 frames"))
    assert len(frames_of(bytes(tab.ask(DOWNLOAD)))) == 57


def test_it_plays_while_it_is_made_stops_and_begins_again(tab, server, tmp_path):
    fill(tab, *write_talk(tmp_path, LONG), LONG.prompt)
    generate(tab)
    assert tab.ask(STATUS).startswith("chunk ") and " of 67: " in tab.ask(STATUS)
    tab.click("#stop")
    text = tab.wait(STATUS, lambda text: text.startswith("stopped: "))
    made = int(text.split()[1])
    assert 9 < made < 801 and "download" in text
    assert len(frames_of(bytes(tab.ask(DOWNLOAD)))) == made
    fill(tab, *write_talk(tmp_path), TALK.prompt)
    generate(tab)
    tab.wait(STATUS, lambda text: text.startswith("done: 33 frames"))
    videos = sorted((server.folder / "out").glob("*/*.mp4"))
    assert len(videos) >= 2 and not [path for path in videos if ".partial" in path.name or find_damage(path)]


def test_a_second_tab_waits_and_sees_its_place(tab, server, browser, tmp_path):
    fill(tab, *write_talk(tmp_path, LONG), LONG.prompt)
    generate(tab)
    other = open_page(server, browser)
    other.click("#generate")
    other.wait(STATUS, lambda text: text == "waiting: place 1 of 1 in the queue")
    other.click("#generate")
    other.wait("document.querySelector('#status').innerText", lambda text: "stop it first" in text)
    assert other.ask(STATUS).startswith("waiting: ")
    tab.click("#stop")
    other.wait(STATUS, lambda text: text.startswith("done: 57 frames"))
    other.close()
    tab.call("Page.bringToFront")  # a hidden tab rests
    tab.wait(STATUS, lambda text: text.startswith("stopped: "))


def test_a_tab_that_is_closed_leaves_its_place(server, browser, tmp_path):
    first, second = open_page(server, browser), open_page(server, browser)
    second.call("Page.bringToFront")
    fill(second, *write_talk(tmp_path, LONG), LONG.prompt)
    generate(second)
    second.ask("location.href = 'about:blank'")
    first.call("Page.bringToFront")
    first.click("#generate")
    first.wait(STATUS, lambda text: text.startswith("done: 57 frames"), 30)  # all of the long one takes longer
    first.close()
    second.close()


def test_a_hidden_tab_says_that_it_is_there(server, browser, tmp_path):
    tab = open_page(server, browser)
    fill(tab, *write_talk(tmp_path, LONG), LONG.prompt)
    generate(tab)
    name = tab.ask("document.querySelector('[data-job]').dataset.job")
    assert tab.ask(f"fetch('alive/{name}', {{method: 'POST'}}).then(r => r.status)") == 200
    assert tab.ask("fetch('alive/none', {method: 'POST'}).then(r => r.status)") == 404
    tab.ask("tell('gone/')")
    tab.wait(STATUS, lambda text: text.startswith("stopped: "))
    tab.close()


def test_the_microphone_lifts_the_digit(tab):
    tab.click("#voice button[aria-label='Clear']")
    tab.click("#voice button[aria-label='Record audio']")
    tab.click("#voice .record-button")
    time.sleep(5)
    tab.click("#voice .stop-button")
    while "give both" in tab.ask(STATUS) or not tab.ask(STATUS):  # until the recording is uploaded
        tab.click("#generate")
        time.sleep(0.5)
    tab.wait(STATUS, lambda text: text.startswith("done: "))
    frames = frames_of(bytes(tab.ask(DOWNLOAD))).astype(float)[12:33]  # from the first chunk on, before it ends
    light = np.clip(frames - 40, 0, None).sum(2)
    rows = (light * np.arange(64)).sum(1) / light.sum(1)
    assert len(rows) == 21 and abs(rows.mean() - HIGH) < abs(rows.mean() - REST) - 4


@pytest.mark.parametrize("kind", ["text as a picture", "text as a sound", "a cut sound", "no prompt", "no law"])
def test_bad_input_is_told_and_the_page_goes_on(tab, tmp_path, kind):
    face, voice = write_talk(tmp_path)
    prompt, words = TALK.prompt, ""
    match kind:
        case "text as a picture":
            face.write_text("not a picture")
            words = "cannot be read as an image"
        case "text as a sound":
            voice.write_text("not a sound")
            words = "talk.wav"
        case "a cut sound":
            voice.write_bytes(voice.read_bytes()[:50])
            words = "talk.wav"
        case "no prompt":
            prompt, words = "", "the prompt is empty"
        case "no law":
            prompt, words = "a cat sings", "a cat sings"
    if "as a" in kind or "cut" in kind:
        which, clear, path = ("#portrait", "Remove Image", face) if "picture" in kind else ("#voice", "Clear", voice)
        tab.click(f"{which} button[aria-label='{clear}']")
        tab.wait(f"!document.querySelector(\"{which} button[aria-label='{clear}']\")")
        tab.upload(f"{which} input[type=file]", path)
        tab.wait(f"!!document.querySelector(\"{which} button[aria-label='{clear}']\")")
    else:
        tab.type("#prompt textarea", prompt)
    tab.click("#generate")
    tab.wait(STATUS, lambda text: words in text)
    assert tab.ask(SOURCE) == ""


def test_a_lora_that_is_not_there_is_told_and_the_model_stays(tab):
    tab.click("#lora_box button")
    tab.click("#use_lora input")
    tab.type("#lora textarea", "/nowhere/none.safetensors")
    tab.click("#reload")
    tab.wait(STATUS, lambda text: text.startswith("failed: /nowhere/none.safetensors is not there"))
    tab.click("#use_lora input")
    generate(tab)
    tab.wait(STATUS, lambda text: text.startswith("done: "))


def test_a_taken_port_is_named_before_the_model_is_loaded(server):
    port = server.address.rpartition(":")[2]
    done = subprocess.run(
        [sys.executable, "demo/avatar.py", "--port", port], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and f"port {port} of 127.0.0.1 is taken; write another --port" in done.stderr


def test_an_interrupt_ends_it_and_leaves_nothing_half_made(server, browser, tmp_path):
    tab = open_page(server, browser)
    fill(tab, *write_talk(tmp_path, LONG), LONG.prompt)
    generate(tab)
    assert server.end() == 130
    tab.close()
    assert not list((server.folder / "out").glob("*/*.partial.mp4"))
    assert not [line for line in server.lines if "Traceback" in line], "".join(server.lines)[-3000:]
