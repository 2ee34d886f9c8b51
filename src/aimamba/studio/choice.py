"""What to generate: a gallery of classes, or a field for a prompt where the model takes them.

The rest of the page knows only ``Choice``, and what it sends back: the number of a class, or a text.
"""

from typing import Any

import gradio as gr

from aimamba.generation.batch import Job
from aimamba.serve.errors import ApiError
from aimamba.serve.service import Given, Service

_SEARCHED = 24  # classes; with more of them there is a field to search in
_LONGEST = 2000  # characters of a prompt, as in the API
_IN_NAME = 40  # characters of a prompt in the name of a file


class Choice:
    """The control, its value as the server takes it, and its value as the page shows it.

    Attributes:
        component: The control. Its value is the number of a class, or a prompt.
        prompts: Whether it is a field for prompts.
    """

    def __init__(self, service: Service) -> None:
        pipeline = service.pipeline
        self._service = service
        self.prompts = pipeline.generator.config.text is not None
        self._names = [pipeline.class_name(label) for label in range(pipeline.generator.config.num_classes)]
        if self.prompts:
            self.component: Any = gr.Textbox(
                label="Prompt", info="Say what the image is to show.", lines=2, max_length=_LONGEST, elem_id="prompt"
            )
            return
        self.component = gr.HTML(
            value=0,
            html_template="<div class='gallery'></div>",
            js_on_load="window.studio.gallery(element, props, watch)",
            apply_default_css=False,
            elem_id="choice",
            names=self._names,
            searched=len(self._names) > _SEARCHED,
        )

    def given(self, value: Any) -> Given:
        """Return the class or the prompt that the page sent.

        Raises:
            ApiError: There is no such class, or the text is too long.
        """
        if self.prompts and isinstance(value, str):
            if len(value) > _LONGEST:
                raise ApiError(422, f"a prompt has at most {_LONGEST:,} characters, got {len(value):,}", field="prompt")
            return self._service.given(value, None)
        return self._service.label(value if isinstance(value, int | str) else str(value), "class")

    def second(self) -> Any:
        """Return the control for the other end of a strip."""
        if self.prompts:
            return gr.Textbox(
                label="To", info="The strip begins at the prompt above.", max_length=_LONGEST, elem_id="to"
            )
        pairs = [(name, label) for label, name in enumerate(self._names)]
        return gr.Dropdown(
            pairs,
            value=min(1, len(pairs) - 1),
            label="To",
            info="The strip begins at the class chosen above.",
            elem_id="to",
        )


def shown(service: Service, job: Job) -> dict[str, Any]:
    """Return what an image shows, for the page: its value for ``Choice.given``, and in words."""
    if job.prompt is not None:
        return {"label": job.prompt, "class": job.prompt}
    return {"label": job.label, "class": service.class_name(job)}


def name_of(service: Service, job: Job) -> str:
    """Return what an image shows, for the name of a file."""
    return service.class_name(job) if job.prompt is None else job.prompt[:_IN_NAME]
