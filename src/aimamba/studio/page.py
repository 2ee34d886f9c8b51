"""The page: what stands where, and which handler answers which control."""

from html import escape
from importlib.resources import files
from typing import Any

import gradio as gr

from aimamba.serve.service import Service
from aimamba.studio.actions import IMAGE, MODES, SHEET, STRIP, Actions
from aimamba.studio.choice import Choice
from aimamba.studio.controls import Controls, make_controls
from aimamba.studio.opening import open_image

_COUNTS = (4, 9, 16, 25)
_STEPS = 8  # of a strip, at first
_MOST_STEPS = 12


def make_page(service: Service) -> gr.Blocks:
    """Return the page of a service."""
    most = service.config.images_per_request
    with gr.Blocks(title="AiM Studio", analytics_enabled=False, delete_cache=(86400, 86400)) as page:
        gr.HTML(_header(service), elem_id="header", apply_default_css=False, js_on_load=None)
        with gr.Row(elem_id="desk"):
            with gr.Column(scale=5, min_width=320, elem_id="panel"):
                with gr.Column(elem_id="what"):
                    choice = Choice(service)
                    actions = Actions(service, choice)
                with gr.Column(elem_id="how"):
                    mode = gr.Radio(MODES, value=IMAGE, label="Draw", elem_id="mode", container=False)
                    with gr.Column(visible=False, elem_id="of-sheet") as of_sheet:
                        counts = [count for count in _COUNTS if count <= most] or [1]
                        count = gr.Radio(
                            counts, value=counts[min(1, len(counts) - 1)], label="Images", elem_id="count",
                            info="The same settings, with one seed after the other.",
                        )  # fmt: skip
                    with gr.Column(visible=False, elem_id="of-strip") as of_strip:
                        to = choice.second()
                        steps = gr.Slider(
                            2, max(2, min(_MOST_STEPS, most)), min(_STEPS, max(2, most)), step=1, label="Steps",
                            info="Images from one end to the other, all with the same seed.", elem_id="steps",
                        )  # fmt: skip
                    with gr.Row(elem_id="go"):
                        draw = gr.Button("Draw", variant="primary", elem_id="draw")
                        again = gr.Button("Again, different", elem_id="again")
                        stop = gr.Button("Stop", elem_id="stop")
                with gr.Accordion("Settings", open=False, elem_id="settings"):
                    controls = make_controls(service.pipeline.generator.config.vocab_size, prompts=choice.prompts)
            with gr.Column(scale=7, min_width=320, elem_id="view"):
                stage = _stage(service, actions)
        gr.HTML(
            "<p><kbd>Ctrl</kbd> + <kbd>Enter</kbd> draws, with <kbd>Shift</kbd> another one. "
            "<a href='../docs'>The same for programs</a></p>",
            elem_id="footer", apply_default_css=False, js_on_load=None,
        )  # fmt: skip
        _connect(
            service, choice, actions, controls, stage, (mode, count, to, steps, of_sheet, of_strip), (draw, again, stop)
        )
    page.queue(max_size=service.config.scheduler.waiting, default_concurrency_limit=None, api_open=False)
    return page


def _header(service: Service) -> str:
    logo = (files("aimamba.studio") / "files" / "logo.svg").read_text(encoding="utf-8")
    size = service.pipeline.image_size
    return (
        f"<header><h1>{logo}<span>AiM Studio</span></h1>"
        f"<p class='model'><span class='dot' id='state' role='img' aria-label='connected'></span>"
        f"{escape(service.name)}<span class='size'>· {size} &times; {size}</span></p>"
        "<button type='button' id='light' aria-label='Light or dark'></button></header>"
    )


def _stage(service: Service, actions: Actions) -> Any:
    pipeline = service.pipeline

    async def sureness(asked: Any) -> Any:
        return await actions.sureness(asked)

    return gr.HTML(
        value=None,
        html_template="<div class='stage'></div>",
        js_on_load="window.studio.stage(element, trigger, props, server, watch, ['opened', 'redraw'])",
        apply_default_css=False,
        elem_id="stage",
        grid=pipeline.grid,
        size=pipeline.image_size,
        most_bytes=service.config.upload_bytes,
        server_functions=[sureness],
    )


def _connect(
    service: Service,
    choice: Choice,
    actions: Actions,
    controls: Controls,
    stage: Any,
    panel: tuple[Any, ...],
    buttons: tuple[Any, ...],
) -> None:
    """Say which handler answers which control."""
    mode, count, to, steps, of_sheet, of_strip = panel
    draw, again, stop = buttons
    quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}

    def show_mode(chosen: str) -> tuple[Any, ...]:
        return tuple(gr.update(visible=chosen == each) for each in (SHEET, STRIP))

    mode.change(show_mode, mode, [of_sheet, of_strip], **quiet)
    inputs = [choice.component, mode, count, to, steps, *controls]
    drawn = draw.click(actions.draw, inputs, stage, **quiet)
    drawn_again = again.click(actions.again, inputs, [stage, controls.seed], **quiet)

    async def redraw(event: gr.EventData, chosen: Any, *settings: Any) -> Any:
        async for frame in actions.redraw(chosen, event._data, *settings):
            yield frame

    async def opened(event: gr.EventData) -> tuple[Any, ...]:
        return await open_image(service, choice, event._data)

    redrawn = stage.redraw(redraw, [choice.component, *controls], stage, **quiet)
    stage.opened(opened, None, [stage, choice.component, *controls], **quiet)
    stop.click(None, None, None, cancels=[drawn, drawn_again, redrawn], queue=False, api_visibility="private")
