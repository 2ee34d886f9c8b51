"""What to generate: the control that says it, today a gallery of classes.

The rest of the page knows only ``Choice``. A model that takes text gets another control here, such as a prompt field.
"""

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from aimamba.serve.service import Service

_SEARCHED = 24  # classes; with more of them there is a field to search in


class Choice:
    """The control, its value as the server takes it, and its value as the page shows it.

    Attributes:
        component: The control. Its value is the number of a class.
        names: Names of the classes in the order of their numbers.
    """

    def __init__(self, service: Service) -> None:
        pipeline = service.pipeline
        self._service = service
        self.names = [pipeline.class_name(label) for label in range(pipeline.generator.config.num_classes)]
        self.component = gr.HTML(
            value=0,
            html_template="<div class='gallery'></div>",
            js_on_load="window.studio.gallery(element, props, watch)",
            apply_default_css=False,
            elem_id="choice",
            names=self.names,
            searched=len(self.names) > _SEARCHED,
        )

    def label(self, value: Any) -> int:
        """Return the label of what the page sent.

        Raises:
            ApiError: There is no such class.
        """
        return self._service.label(value if isinstance(value, int | str) else str(value), "class")


def second_class(names: Sequence[str], build: Callable[..., Any] = gr.Dropdown) -> Any:
    """Return the control for the class at the other end of a strip."""
    pairs = [(name, label) for label, name in enumerate(names)]
    return build(
        pairs,
        value=min(1, len(pairs) - 1),
        label="To",
        info="The strip begins at the class chosen above.",
        elem_id="to",
    )
