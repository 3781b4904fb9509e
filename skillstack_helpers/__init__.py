"""Thin helpers behind the SkillStack notebooks: linked, immutable LoRA frames and routers.

Import from the modules (``from skillstack_helpers.frames import SkillStack``); this file stays
free of heavy imports so that a bad parameter is reported before torch is loaded.
"""

__version__ = "0.1.0"


class SkillStackError(ValueError):
    """Bad input, named in one line. Jupyter and papermill show that line without a traceback."""

    def _render_traceback_(self) -> list[str]:  # the hook IPython looks for
        return [f"{type(self).__name__}: {self}"]
