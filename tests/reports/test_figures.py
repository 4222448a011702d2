"""Figures: what is drawn is what the files and the CSV hold."""

import csv
import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.lines import Line2D
from matplotlib.text import Text

from sae_lens_bipolar.reports import drawing, figures
from sae_lens_bipolar.reports.rundir import Run, read_run
from tests.reports.synthetic_run import ARCHITECTURES, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(make_run(tmp_path_factory.mktemp("run"), d_sae=40, steps=12, latents=2))


def _saved(plot: figures.Plot, folder: Path) -> list[dict[str, str]]:
    figures.save(plot, folder)
    assert (folder / f"{plot.name}.png").read_bytes().startswith(b"\x89PNG")
    with open(folder / f"{plot.name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def _x(line: Line2D) -> list[float]:
    return np.asarray(line.get_xdata()).tolist()


def _y(line: Line2D) -> list[float]:
    return np.asarray(line.get_ydata()).tolist()


def test_training_csv_is_what_is_drawn_and_what_was_logged(run: Run, tmp_path: Path):
    plot = figures.training(run)
    assert plot is not None
    rows = _saved(plot, tmp_path)
    logged = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    for axes, key in zip(plot.figure.axes, ("nmse", "l0"), strict=True):
        for name in ARCHITECTURES:
            (line,) = [line for line in axes.get_lines() if line.get_label() == name]
            drawn = list(zip(_x(line), _y(line), strict=True))
            written = [(float(r["n_tokens"]), float(r[key])) for r in rows if r["sae"] == name]
            assert drawn == written
            assert drawn == [(x["n_tokens"], x[key]) for x in logged if x["sae"] == name]


def test_the_target_is_drawn_where_the_configuration_has_one(run: Run):
    def targets(run: Run) -> list[float]:
        plot = figures.training(run)
        assert plot is not None
        lines = plot.figure.axes[1].get_lines()
        return [_y(line)[0] for line in lines if line.get_label() == "target L0"]

    assert targets(run) == [64.0]
    assert targets(replace(run, config={"saes": {"topk": {"k": 32}}})) == [32.0]
    assert targets(replace(run, config={})) == []


def test_without_nmse_the_mse_loss_is_drawn(run: Run):
    lines = [{k: v for k, v in line.items() if k != "nmse"} for line in run.metrics]
    plot = figures.training(replace(run, metrics=lines))
    assert plot is not None
    assert plot.header == ("sae", "step", "n_tokens", "mse_loss", "l0")
    assert plot.figure.axes[0].get_title(loc="left") == "MSE loss"


def test_a_loss_that_is_not_finite_leaves_a_gap(run: Run, tmp_path: Path):
    lines = [{**line, "nmse": math.nan if line["step"] == 50 else 0.5} for line in run.metrics]
    plot = figures.training(replace(run, metrics=lines))
    assert plot is not None
    drawn = _y(plot.figure.axes[0].get_lines()[0])
    assert [math.isnan(value) for value in drawn] == [i == 4 for i in range(12)]
    _saved(plot, tmp_path)


def test_reconstruction_csv_is_what_is_drawn_and_what_was_measured(run: Run, tmp_path: Path):
    plot = figures.reconstruction(run)
    assert plot is not None
    rows = _saved(plot, tmp_path)
    measured = json.loads((run.path / "results/summary.json").read_text())
    for axes, key in zip(plot.figure.axes, ("nmse", "loss_recovered"), strict=True):
        points = [x for x in axes.get_lines() if x.get_marker() in drawing.MARKERS]
        drawn = [(_x(point)[0], _y(point)[0]) for point in points]
        assert drawn == [(float(row["l0"]), float(row[key])) for row in rows]
        assert drawn == [(row["l0"], row[key]) for row in measured]
        assert {text.get_text() for text in axes.texts} == set(ARCHITECTURES)


def test_a_sweep_is_a_line_an_architecture_and_width(run: Run, tmp_path: Path):
    base = run.summary[0]
    rows = [
        {**base, "name": f"{d_sae}-{l0}", "architecture": "gated", "d_sae": d_sae, "l0": float(l0)}
        for l0 in (64, 8, 16, 32, 128)
        for d_sae in (512, 1024)
    ]
    plot = figures.reconstruction(replace(run, summary=rows))
    assert plot is not None
    assert len(_saved(plot, tmp_path)) == 10
    axes = plot.figure.axes[0]
    assert {text.get_text() for text in axes.texts} == {"gated, 512", "gated, 1024"}
    lines = [line for line in axes.get_lines() if line.get_marker() in drawing.MARKERS]
    assert [_x(line) for line in lines] == [[8, 16, 32, 64, 128]] * 2


def test_labels_at_one_height_are_moved_apart(run: Run, tmp_path: Path):
    rows = [{**run.summary[0], "name": f"sae{i}", "nmse": 0.1 + 1e-6 * i} for i in range(8)]
    plot = figures.reconstruction(replace(run, summary=rows))
    assert plot is not None
    _saved(plot, tmp_path)
    # Text, not Annotation: without the line that ties a label to its point.
    boxes = [Text.get_window_extent(text) for text in plot.figure.axes[0].texts]
    heights = sorted((box.y0, box.y1) for box in boxes)
    # A pixel of descender may touch; the letters may not.
    assert all(low[1] <= high[0] + 2 for low, high in pairwise(heights))


def test_polarity_csv_is_the_census_and_every_latent_stands_at_its_rates(run: Run, tmp_path: Path):
    plot = figures.polarity(run)
    assert plot is not None
    rows = _saved(plot, tmp_path)
    for axes, name in zip(plot.figure.axes, ARCHITECTURES, strict=True):
        mine = [row for row in rows if row["sae"] == name]
        census = json.loads((run.path / f"results/census/{name}.json").read_text())
        assert [int(row["latent"]) for row in mine] == list(range(40))
        offsets = np.asarray(axes.collections[-1].get_offsets())
        for side in (0, 1):
            key = ("positive_rate", "negative_rate")[side]
            assert [float(row[key]) for row in mine] == census[key]
            zero = axes.get_xticks()[0]
            for place, rate in zip(offsets[:, side], census[key], strict=True):
                if rate:
                    assert place == pytest.approx(math.log10(rate))
                else:
                    assert abs(place - zero) <= 0.2 + 1e-9  # the band


def test_panels_count_their_latents(run: Run):
    rates = {"n_tokens": 10, "positive_rate": [0.5, 0.1, 0, 0], "negative_rate": [0.1, 0, 0.3, 0]}
    plot = figures.polarity(replace(run, census={"topk": rates}))
    assert plot is not None
    title = plot.figure.axes[0].get_title(loc="left")
    assert title == "topk\nboth sides 1 · dead 1\n+ only 1 · − only 1"


def test_nothing_to_draw_is_none(run: Run):
    bare = replace(run, metrics=[], summary=[], census={})
    assert [draw(bare) for draw in figures.DRAWINGS] == [None, None, None]


def test_a_dollar_in_a_name_is_not_a_formula(run: Run, tmp_path: Path):
    rows = [{**row, "name": "$\\frac{" + row["name"]} for row in run.summary]
    plot = figures.reconstruction(replace(run, summary=rows))
    assert plot is not None
    _saved(plot, tmp_path)
