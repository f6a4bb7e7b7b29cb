"""The live page: Gradio's controls around the grid of `page`, fed by an `Artist`. The only file that knows Gradio."""

import os
import threading
import time

from pndm.config.errors import InputError, first_line
from pndm.runner.demo.cells import Stopped
from pndm.runner.demo.page import EXPLAINED, SCRIPT, STYLE, VIEW, grid
from pndm.runner.demo.request import IMAGES, LIMIT, methods_with, request_of
from pndm.runner.solver.grid import SPACINGS

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported

EVERY = 0.4  # seconds between two updates of the page
BUSY, WAITING = 2, 16  # requests at work at once, and in the queue
SESSIONS = 64
FEWEST = 2**10  # bytes: nothing is uploaded


class Sessions:
    """One run at a time for each session: session → the Event that stops its run."""

    def __init__(self):
        self.lock, self.running = threading.Lock(), {}

    def begin(self, session):
        """The Event of a new run. Raises InputError while the session's last one is at work."""
        with self.lock:
            if session in self.running:
                raise InputError("a run of this page is at work; cancel it, or wait for it")
            if len(self.running) >= SESSIONS:
                raise InputError("too many runs are at work; wait for one to end")
            self.running[session] = threading.Event()
            return self.running[session]

    def end(self, session):
        """The session's run is over."""
        with self.lock:
            self.running.pop(session, None)

    def stop(self, session):
        """Stop the session's run at its next network call."""
        with self.lock:
            if session in self.running:
                self.running[session].set()


def drawing(artist, request, origin, stop):
    """(HTML of the grid, a line of text) as cells get ready, not more often than every EVERY seconds."""
    cells, calls, begun, told = {}, [0], time.monotonic(), 0.0

    def watch(images):
        calls[0] += images

    yield grid(request, cells, origin), "drawing …"
    total = len(request.rows) * len(request.calls)
    for cell in artist.draw(request, stop, watch):
        cells[cell.row, cell.asked] = cell
        if (now := time.monotonic()) - told > EVERY:
            told, left = now, total - len(cells)
            doing = f"{len(cells)} of {total} cells" if left else "distances to the exact flow"
            yield grid(request, cells, origin), f"{doing}; {calls[0]:,} images × calls, {now - begun:.1f} s"
    seconds = time.monotonic() - begun
    yield grid(request, cells, origin), f"done: {calls[0]:,} images × calls, exact flow included, in {seconds:.1f} s"


def answer(artist, origin, sessions, limit, files, session, values):
    """What `drawing` gives for values from outside; one line of text for those that are wrong."""
    try:
        request = request_of(*values, limit=limit, files=files)
        stop = sessions.begin(session)
    except InputError as error:
        yield None, f"not drawn: {error}"
        return
    try:
        yield from drawing(artist, request, origin, stop)
    except Stopped:
        yield None, "cancelled"
    except (InputError, MemoryError, ArithmeticError) as error:
        yield None, f"not drawn: {error or type(error).__name__}"
    except RuntimeError as error:  # such as of a device that is out of memory
        yield None, f"not drawn: {first_line(error)}"
    finally:
        sessions.end(session)


def build(artist, origin, chosen, facts, limit=LIMIT, files=None):
    """The Gradio page. chosen: the values it opens with, arguments of `request_of`, as limit and files are.

    facts: a line about it.
    """
    import gradio as gr

    sessions = Sessions()

    def draw(request: gr.Request, *values):
        for html, line in answer(artist, origin, sessions, limit, files, request.session_hash, values):
            yield gr.skip() if html is None else html, line

    def cancel(request: gr.Request):
        sessions.stop(request.session_hash)

    with gr.Blocks(title="PNDM: look at it", analytics_enabled=False) as page:
        gr.Markdown(f"# The same noise by several methods\n{facts}")
        with gr.Row():
            methods = gr.Dropdown(
                methods_with(files), value=chosen["methods"], multiselect=True, allow_custom_value=True, label="methods"
            )
            spacings = gr.Dropdown(
                list(SPACINGS), value=chosen["spacings"], multiselect=True, allow_custom_value=True, label="spacings"
            )
            calls = gr.Textbox(chosen["calls"], label="network calls an image, the columns")
        with gr.Row():
            seed = gr.Textbox(str(chosen["seed"]), label="seed")
            images = gr.Textbox(str(chosen["images"]), label=f"images, 1 to {IMAGES}")
            other = gr.Textbox(str(chosen["other"]), label="second seed")
            share = gr.Slider(0, 1, chosen["share"], step=0.05, label="turn the noise towards the second seed's")
        with gr.Row():
            go = gr.Button("Draw", variant="primary", elem_id="draw")
            stop = gr.Button("Cancel", elem_id="cancel")
        said = gr.Textbox("", label="progress", interactive=False, elem_id="said")
        gr.HTML(VIEW + EXPLAINED, js_on_load=None)
        shown = gr.HTML("", js_on_load=None, elem_id="shown")
        values, out = [methods, spacings, calls, seed, images, other, share], [shown, said]
        # `request_of` checks the values: Gradio's own checks answer with tracebacks.
        how = {"concurrency_limit": BUSY, "show_progress": "hidden", "api_name": "draw", "preprocess": False}
        go.click(draw, values, out, **how)
        share.release(draw, values, out, **how | {"api_name": False})
        stop.click(cancel, None, None, queue=False, api_name=False)
        page.load(draw, values, out, **how | {"api_name": False})
        page.unload(cancel)
    return page.queue(max_size=WAITING)


def serve(page, host, port):
    """Begin to serve a page of `build`; returns its address. Raises OSError where the port is taken."""
    head = f"<style>{STYLE}</style><script>{SCRIPT}</script>"
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        head=head,
        share=False,
        ssr_mode=False,
        allowed_paths=[],
        max_file_size=FEWEST,
        quiet=True,
        footer_links=[],
        prevent_thread_lock=True,
        enable_monitoring=False,
        mcp_server=False,
    )
    return address
