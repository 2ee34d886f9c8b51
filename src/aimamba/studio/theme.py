"""Colours and fonts for Gradio's own components. Fonts are the system's, so nothing is loaded from elsewhere."""

from gradio.themes import Base, Size, sizes
from gradio.themes.utils.colors import Color

_FONT = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

ACCENT = Color(
    name="spruce", c50="#eef7f4", c100="#d5ece5", c200="#aedacd", c300="#7fc3b0", c400="#4ea88f", c500="#2a8d74",
    c600="#0f7460", c700="#0c5e4f", c800="#0c4b40", c900="#0b3e36", c950="#042420",
)  # fmt: skip
NEUTRAL = Color(
    name="paper", c50="#fafaf8", c100="#f3f2ee", c200="#e6e4de", c300="#d2cfc7", c400="#a09c92", c500="#6f6b62",
    c600="#55524a", c700="#3d3b35", c800="#272622", c900="#1b1a18", c950="#131311",
)  # fmt: skip

_RADIUS: Size = sizes.radius_lg

THEME = Base(
    primary_hue=ACCENT, secondary_hue=ACCENT, neutral_hue=NEUTRAL, radius_size=_RADIUS, font=_FONT, font_mono=_MONO
).set(
    body_background_fill="*neutral_50", body_background_fill_dark="*neutral_950",
    body_text_color="*neutral_900", body_text_color_dark="*neutral_100",
    body_text_color_subdued="*neutral_500", body_text_color_subdued_dark="*neutral_400",
    block_background_fill="transparent", block_background_fill_dark="transparent",
    block_border_width="0px", block_padding="0px", block_shadow="none", block_label_background_fill="transparent",
    block_title_text_weight="600", block_title_text_size="*text_sm", block_info_text_size="*text_sm",
    block_title_text_color="*neutral_900", block_title_text_color_dark="*neutral_100",
    panel_border_width="0px", layout_gap="20px",
    button_primary_background_fill="*primary_600", button_primary_background_fill_hover="*primary_700",
    button_primary_background_fill_dark="*primary_600", button_primary_background_fill_hover_dark="*primary_500",
    button_primary_text_color="white", button_primary_text_color_dark="white",
    slider_color="*primary_600", slider_color_dark="*primary_400",
)  # fmt: skip
