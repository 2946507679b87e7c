"""The page itself: Gradio's components, the routes that send videos, and the server's thread.

A video plays while it is made: the page holds a plain video element whose source is a route that sends the growing
file. What is shown of a job is asked for once a second while there is one, so that a page at rest holds no connection:
browsers open six to one server, all tabs together.
"""

import contextlib
import errno
import html
import os
import socket
import threading
import time
from collections.abc import Iterator

from pipeline.service.controls import MOST_CLIPS, MOST_STEPS, OWN_SIZE, Choice, file_name, read_lora_lines
from pipeline.service.jobs import Job, Jobs
from pipeline.service.worker import Worker
from utils.media.growing import follow

POLL = 1.0  # seconds between two looks at a job
PATIENCE = 60.0  # seconds in which the server must answer at its start
UPLOADS_KEPT = 7 * 24 * 3600  # seconds
NO_CACHE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
TITLE = "Talking videos"
# Gradio's timer rests in a tab that is hidden; this says that the tab is still there, and when it is closed.
HEAD = """<script>
const tell = what => document.querySelectorAll('[data-job]').forEach(e => navigator.sendBeacon(what + e.dataset.job));
setInterval(() => tell('alive/'), 20000);
addEventListener('pagehide', () => tell('gone/'));
</script>"""
FONTS = ("system-ui", "sans-serif")  # of this machine: the page asks no other one for anything


@contextlib.contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """A context: a socket at this address. Errors: ValueError for a port that is taken, or an address of elsewhere."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((host, port))
            found.listen()
        except (OSError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                raise ValueError(f"port {port} of {host} is taken; write another --port, or 0 for any") from error
            raise ValueError(f"nothing can listen at {host}, port {port}: {error}") from error
        yield found


class Page:
    """One page for one worker. talks: examples (utils/data/talk_list.py)."""

    def __init__(self, worker: Worker, jobs: Jobs, talks=()):
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported
        self.worker, self.jobs, self.talks, self.controls = worker, jobs, list(talks), worker.controls()
        self.ending = False
        self.notes: dict[str, str] = {}  # what was refused while a job is made, by its id

    @contextlib.contextmanager
    def served(self, listening: socket.socket) -> Iterator[str]:
        """A context in which a thread serves the page; gives its address. Errors: RuntimeError if it does not start."""
        import uvicorn

        server = uvicorn.Server(uvicorn.Config(self.app(), log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True, name="page")
        thread.start()
        end = time.monotonic() + PATIENCE
        while not server.started:
            if not thread.is_alive() or time.monotonic() > end:
                raise RuntimeError("the page's server did not start")
            time.sleep(0.05)
        host, port = listening.getsockname()[:2]
        try:
            yield f"http://{f'[{host}]' if ':' in host else host}:{port}"
        finally:
            self.ending = True  # videos that are being sent end now
            server.should_exit = True
            thread.join(timeout=5)

    def app(self):
        """Returns the web application: the routes of the videos, and Gradio's page at /."""
        import gradio as gr
        from fastapi import FastAPI, HTTPException
        from fastapi.responses import FileResponse, StreamingResponse

        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

        def find(name: str) -> Job:
            job = self.jobs.find(name)
            if job is None or job.path is None:
                raise HTTPException(404, "there is no such video")
            return job

        @app.get("/watch/{name}")
        async def watch(name: str):
            job = find(name)
            return StreamingResponse(
                follow(job.files, lambda: job.is_over or self.ending), media_type="video/mp4", headers=dict(NO_CACHE)
            )

        @app.get("/video/{name}")
        async def video(name: str):
            job = find(name)
            if not (job.is_over and job.path.is_file()):
                raise HTTPException(404, "this video is not finished")
            return FileResponse(job.path, media_type="video/mp4", filename=file_name(job.path), headers=dict(NO_CACHE))

        @app.post("/alive/{name}")
        async def alive(name: str):
            self.jobs.of(find(name).owner)

        @app.post("/gone/{name}")
        async def gone(name: str):
            self.jobs.stop(find(name))

        blocks = self.blocks(gr)
        theme = gr.themes.Default(font=FONTS, font_mono=("monospace",))
        return gr.mount_gradio_app(
            app, blocks, "/", theme=theme, head=HEAD, footer_links=[], run_history=False, ssr_mode=False
        )

    def blocks(self, gr):
        """Returns Gradio's blocks."""

        rows = [[str(talk.image), str(talk.audio[0]), talk.prompt] for talk in self.talks]
        first = rows[0] if rows else [None, None, ""]
        with gr.Blocks(title=TITLE, delete_cache=(3600, UPLOADS_KEPT), analytics_enabled=False) as blocks:
            gr.Markdown(f"# {TITLE}\nA portrait, a voice and a prompt. The video plays while it is made.")
            with gr.Row():
                with gr.Column():
                    image = gr.Image(
                        first[0],
                        label="Portrait",
                        type="filepath",
                        image_mode=None,
                        height=240,
                        buttons=[],
                        elem_id="portrait",
                    )
                    # The file as it was sent: the pipeline reads it, and says what is wrong with it.
                    image.preprocess = lambda payload: payload and payload.path
                    audio = gr.Audio(
                        first[1],
                        label="Voice",
                        sources=["upload", "microphone"],
                        type="filepath",
                        buttons=[],
                        elem_id="voice",
                    )
                    prompt = gr.Textbox(first[2], label="Prompt", lines=2, elem_id="prompt")
                    with gr.Row():
                        go = gr.Button("Generate", variant="primary", elem_id="generate")
                        stop = gr.Button("Stop", elem_id="stop")
                    if rows:
                        gr.Examples(rows, [image, audio, prompt], cache_examples=False, api_visibility="private")
                with gr.Column():
                    video = gr.HTML(elem_id="video", js_on_load=None)
                    status = gr.HTML(elem_id="status", js_on_load=None)
                    knobs = self.advanced(gr)
                    use_lora, lora, reload = self.lora(gr)
            timer = gr.Timer(POLL, active=False)
            shown = [status, video, timer]
            quiet = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
            go.click(self.generate(gr), [image, audio, prompt, *knobs, use_lora, lora], shown, **quiet)
            stop.click(self.stop(gr), None, None, **quiet)
            reload.click(self.reload(gr), [use_lora, lora], shown, **quiet)
            timer.tick(self.look(gr), None, shown, **quiet)
        return blocks

    def advanced(self, gr) -> list:
        """Returns the controls of `Choice`, from num_clip to solver."""
        c, (least, most) = self.controls, self.controls.windows
        with gr.Accordion("More", open=False, elem_id="more"):
            clips = f"a clip of this window lasts {c.clip_seconds:.3g} s; {MOST_CLIPS}: as long as the voice"
            return [
                gr.Slider(1, MOST_CLIPS, MOST_CLIPS, step=1, label="Clips at most", info=clips),
                gr.Slider(1, MOST_STEPS, c.num_steps, step=1, label="Steps", interactive=not c.fixed_steps),
                gr.Slider(0, 10, c.guidance, step=0.1, label="Guidance", info="1: none"),
                gr.Slider(
                    *(least, most, c.window or least),
                    step=c.window_step,
                    label="Window, frames",
                    interactive=bool(c.window),
                ),
                gr.Dropdown(list(c.sizes), value=c.sizes[0], label="Size (an area)", allow_custom_value=True),
                gr.Number(c.seed, precision=0, label="Seed", info="-1: any"),
                gr.Dropdown(list(c.solvers), value=c.solvers[0], label="Solver", interactive=len(c.solvers) > 1),
            ]

    def lora(self, gr) -> tuple:
        """Returns the controls of the LoRA: in use or not, its files, and the button that loads it now."""
        with gr.Accordion("LoRA", open=False, elem_id="lora_box"):
            use = gr.Checkbox(bool(self.controls.lora), label="Use it", elem_id="use_lora")
            files = gr.Textbox(
                "\n".join(self.controls.lora),
                label="Files, folders or hub names, one a line; PATH:STRENGTH",
                elem_id="lora",
            )
            return use, files, gr.Button("Reload the model", elem_id="reload")

    def generate(self, gr):
        """Returns the handler of the button: puts a job into the queue."""

        def run(
            image, audio, prompt, clips, steps, guidance, window, size, seed, solver, use, lora, request: gr.Request
        ):
            try:
                files = read_lora_lines(lora) if use else ()
                sounds = (audio,) if audio else ()
                numbers = (int(clips), int(steps), float(guidance), int(window), size or OWN_SIZE)
                seed = self.controls.seed if seed is None else int(seed)
                choice = Choice(image, sounds, prompt or "", *numbers, seed, solver, files)
                job = Job(request.session_hash, self.controls.overrides(choice))
                self.worker.check(job)
                self.jobs.submit(job)
            except (ValueError, OSError) as error:
                return self.refused(gr, error, request.session_hash)
            return self.show(job), "", gr.Timer(active=True)

        return run

    def reload(self, gr):
        """Returns the handler of the button: puts the loading of a model into the queue."""

        def run(use, lora, request: gr.Request):
            try:
                changed = self.controls.lora_overrides(read_lora_lines(lora) if use else ())
                job = Job(request.session_hash, changed, loads_only=True)
                self.worker.check(job)
                self.jobs.submit(job)
            except (ValueError, OSError) as error:
                return self.refused(gr, error, request.session_hash)
            return self.show(job), gr.skip(), gr.Timer(active=True)

        return run

    def refused(self, gr, error: Exception, owner: str) -> tuple:
        """Returns what the page shows instead of a job, or next to the one that is being made."""
        text, job = f"<p role='alert'><b>{html.escape(str(error))}</b></p>", self.jobs.of(owner)
        if job is not None and not job.is_over:
            self.notes[job.id] = text
            text = self.show(job)
        return text, gr.skip(), gr.skip()

    def look(self, gr):
        """Returns the handler that asks once a second how far the page's job is."""

        def run(request: gr.Request):
            job = self.jobs.of(request.session_hash)
            if job is None:
                return gr.skip(), gr.skip(), gr.Timer(active=False)
            player = gr.skip()
            if job.chunks and job.path and not job.shown:
                job.shown = True  # once: the element goes on by itself
                player = f'<video src="watch/{job.id}" controls autoplay playsinline style="width: 100%"></video>'
            return self.show(job), player, gr.Timer(active=False) if job.is_over else gr.skip()

        return run

    def show(self, job: Job) -> str:
        """Returns the line that says how far a job is."""
        line = html.escape(self.jobs.describe(job))
        if job.is_over and job.path and job.path.is_file():
            line += f' &middot; <a href="video/{job.id}" download>download</a>'
        if job.is_over:
            self.notes.pop(job.id, None)
            return f"<p>{line}</p>"
        bar = f'<progress max="{job.num_chunks}" value="{job.chunks}" style="width: 100%"></progress>'
        bar = bar if job.num_chunks else ""
        return f'<div data-job="{job.id}"><p>{line}</p>{bar}{self.notes.get(job.id, "")}</div>'

    def stop(self, gr):
        """Returns the handler of the button: ends the page's job."""

        def run(request: gr.Request):
            if (job := self.jobs.of(request.session_hash)) is not None:
                self.jobs.stop(job)

        return run
