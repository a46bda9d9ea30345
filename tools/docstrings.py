"""Docstrings as mkdocstrings wants them: a griffe extension of `mkdocs.yml`.

They are written to be read as they are. On the site roles become code, literal blocks and sessions become blocks.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from griffe import Extension, Object

from jorge import Jorge

_ROLE = re.compile(r":(?:class|meth|func|mod|data|attr|exc):`~?([^`]+)`")
_SESSION = re.compile(r"^>>> .*\n?(?:.+\n?)*", re.MULTILINE)


def markdown(text: str) -> str:
    """A docstring as Markdown.

    >>> markdown("As :class:`jorge.Jorge`.")
    'As `jorge.Jorge`.'
    """
    text = _ROLE.sub(r"`\1`", text).replace("\n::\n", "\n")
    return _SESSION.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", text)


class Docstrings(Extension):
    """Rewrites each docstring once it is loaded."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite it."""
        if obj.docstring is not None:
            text = obj.docstring.value
            if obj.path == "jorge.optimizer.Jorge":  # it is completed when the module is loaded
                text = inspect.cleandoc(Jorge.__doc__ or "")
            obj.docstring.value = markdown(text)
