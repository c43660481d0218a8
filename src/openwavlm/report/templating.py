"""Pages from the templates beside this file: all values are escaped unless they are `Markup`."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_TEMPLATES = Environment(
    loader=PackageLoader("openwavlm.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


def render_page(template: str, title: str, **values: Any) -> str:
    """A whole page, which fetches nothing; `title` is that of the window, and of the page unless there is a `heading`."""
    page = _TEMPLATES.get_template(template).render(title=title, contents=[], **{"heading": "", **values})
    return "\n".join(line for line in page.split("\n") if line.strip()) + "\n"
