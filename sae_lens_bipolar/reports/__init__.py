"""Tables, figures and the HTML page of a run, drawn from the files of its directory alone."""

from sae_lens_bipolar.reports import tables
from sae_lens_bipolar.reports.drawing import require_matplotlib
from sae_lens_bipolar.reports.page import render
from sae_lens_bipolar.reports.rundir import Run, read_run

__all__ = ["Run", "read_run", "render", "require_matplotlib", "tables"]
