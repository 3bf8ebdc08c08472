"""Figures show what was measured, with every label inside the picture."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from tiny_models import tiny_bert, tiny_llama

import stat_prune
from stat_prune import MACs, Parameters, PruningResult
from stat_prune.attention import attention_maps, head_statistics
from stat_prune.errors import DataError
from stat_prune.reporting.block_row import BlockRow
from stat_prune.reporting.plotting import (
    attention_figure,
    dimensions_kept,
    error_curves,
    head_heat_map,
    overview,
    predicted_against_measured,
    score_curves,
    search_stages,
    what_was_kept,
)
from stat_prune.reporting.plotting.style import KEPT
from stat_prune.reporting.report import PruningReport, Size
from stat_prune.reporting.search_report import Search, SearchRound

TEXTS = [
    "the cat sat on the mat and the dog ran under the tree",
    "a bird flew over the house then it sat",
    "it was a very very small dog",
] * 20


@pytest.fixture(scope="module", params=[tiny_bert, tiny_llama], ids=["bert", "llama"])
def result(request, word_tokenizer) -> PruningResult:
    return stat_prune.prune(
        request.param(),
        TEXTS,
        tokenizer=word_tokenizer,
        target=Parameters(0.5),
        passes=1,
        progress=False,
    )


def assert_nothing_is_cut_off(fig: Figure) -> None:
    """Every text lies inside the figure, and tick labels of one axis do not overlap."""
    FigureCanvasAgg(fig).draw()
    renderer = fig.canvas.get_renderer()
    frame = fig.bbox
    for axes in fig.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            shown = [
                label.get_window_extent(renderer)
                for tick in axis.get_major_ticks()
                if low <= tick.get_loc() <= high
                and (label := tick.label1).get_text()
                and label.get_visible()
            ]
            shown = [box for box in shown if box.width > 1]  # a hidden axis has points
            shown.append(axis.label.get_window_extent(renderer))
            for box in shown:
                assert box.x0 >= frame.x0 - 1 and box.x1 <= frame.x1 + 1
                assert box.y0 >= frame.y0 - 1 and box.y1 <= frame.y1 + 1
            for box, other in zip(shown, shown[1:-1], strict=False):
                assert not box.overlaps(other)
        title = axes.title.get_window_extent(renderer)
        assert title.x0 >= frame.x0 - 1 and title.x1 <= frame.x1 + 1


def test_the_grid_shows_the_plan(result):
    fig = what_was_kept(result.report, result.plan)
    mesh = fig.axes[0].collections[0].get_array()
    heads = [row for row in result.report.blocks if row.kind == "heads"]
    for line, row in zip(mesh, heads, strict=True):
        assert np.flatnonzero(line == 1).tolist() == result.plan[row.name]
    bars = [bar.get_width() for bar in fig.axes[1].patches]
    neurons = [row for row in result.report.blocks if row.kind == "neurons"]
    assert bars == [row.total for row in neurons] + [row.kept for row in neurons]
    assert_nothing_is_cut_off(fig)


def test_curves_fall_to_zero_and_the_choice_lies_on_them(result):
    fig = error_curves(result.report)
    for axes, kind in zip(fig.axes, ("heads", "neurons"), strict=False):
        curves, choices = axes.lines[0::2], axes.lines[1::2]
        rows = [row for row in result.report.blocks if row.kind == kind]
        for curve, choice, row in zip(curves, choices, rows, strict=True):
            x, y = curve.get_data()
            assert x[-1] == 1 and y[-1] == pytest.approx(0, abs=1e-6)
            assert all(b <= a + 1e-9 for a, b in zip(y, y[1:], strict=False))
            assert choice.get_xdata()[0] == row.kept / row.total
            if kind == "heads":  # every size of so few is on the curve
                assert choice.get_ydata()[0] <= row.output_error + 1e-9
    assert_nothing_is_cut_off(fig)


def test_the_usual_figure_holds_all(result):
    fig = result.plot()
    assert isinstance(fig, Figure)
    titles = [axes.get_title() for axes in fig.axes]
    assert any(title.startswith("heads: ") for title in titles)
    assert "neurons (● chosen)" in titles
    assert f"starts, {result.report.search.sequences} sequences" in titles
    assert_nothing_is_cut_off(fig)


SEARCHES = {
    "rounds": Search(
        effort="normal",
        sequences=42,
        starts={"probes^1": 2.99, "probes^0.25": 0.285, "unweighted": 0.301, "even": 0.61},
        rounds=[SearchRound(42, 88, 12, 0.255, 0.182), SearchRound(84, 51, 6, 0.211, 0.165)],
        held_out={
            "probes^0.25": 0.243,
            "search on 42 sequences": 0.209,
            "search on 84 sequences": 0.221,
        },
        held_out_sequences=64,
        taken="search on 42 sequences",
        passes=7.1,
    ),
    "in vain": Search(
        effort="normal",
        sequences=256,
        starts={"probes^1": 1.23e-5, "even": 1.23e-4},
        rounds=[SearchRound(256, 48, 0, 1.23e-5, 1.23e-5)],
        held_out={},
        held_out_sequences=0,
        taken="probes^1",
        passes=4.2,
    ),
    "starts": Search("fast", 32, {"unweighted": 0.0}, [], {}, 0, "unweighted", 0.4),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_the_search_is_drawn_stage_by_stage_and_what_was_taken_is_dark(name):
    search = SEARCHES[name]
    fig = search_stages(search)
    starts, *others = fig.axes
    shown = {"starts": starts.patches}
    if search.rounds:
        rounds, *others = others
        before, after = np.split(np.array(rounds.patches), 2)
        assert [bar.get_width() for bar in before] == [one.before for one in search.rounds]
        assert [bar.get_width() for bar in after] == [one.after for one in search.rounds]
        labels = [label.get_text() for label in rounds.get_yticklabels()]
        for label, one in zip(labels, search.rounds, strict=True):
            assert label == f"{one.sequences} sequences,\n{one.accepted} of {one.evaluations} moves"
    if search.held_out:
        (judged,) = others
        shown["held_out"] = judged.patches
    for stage, bars in shown.items():
        distances = getattr(search, stage)
        assert [bar.get_width() for bar in bars] == list(distances.values())
        colors = {name: bar.get_facecolor() for name, bar in zip(distances, bars, strict=True)}
        taken = search.taken if stage == "held_out" else next(iter(search.held_out), search.taken)
        assert [name for name, color in colors.items() if color == to_rgba(KEPT)] == [taken]
    assert len(fig.axes) == len(shown) + bool(search.rounds)
    assert_nothing_is_cut_off(fig)


def test_dimensions_are_drawn_where_heads_have_lost_some(result, word_tokenizer):
    model = tiny_bert() if "encoder" in next(iter(result.plan)) else tiny_llama()
    narrowed = stat_prune.prune(
        model,
        TEXTS,
        tokenizer=word_tokenizer,
        target=MACs({"heads": 0.8, "query-key": 0.5, "value": 0.5}),
        progress=False,
    )
    rows = [row for row in narrowed.report.blocks if row.kind == "heads"]
    fig = dimensions_kept(narrowed.report)
    known = {"query/key": "query_key_dims", "value": "value_dims"}
    for panel, (kind, name) in zip(fig.axes, known.items(), strict=True):
        left, whole = zip(*(getattr(row, name) for row in rows), strict=True)
        assert [bar.get_width() for bar in panel.patches] == [*whole, *left]
        kept, total = (
            sum(row.kept * one for row, one in zip(rows, dims, strict=True))
            for dims in (left, whole)
        )
        assert kept < total
        assert panel.get_title() == f"{kind} dimensions: {kept} of {total} kept"
    assert_nothing_is_cut_off(fig)

    overall = narrowed.plot()
    titles = [axes.get_title() for axes in overall.axes]
    assert {axes.get_title() for axes in fig.axes} < set(titles)
    assert "heads (● chosen)" in titles
    assert_nothing_is_cut_off(overall)
    with pytest.raises(DataError, match="No dimensions have left"):
        dimensions_kept(result.report)


def test_heads_that_all_left_have_no_dimensions():
    row = {"layer": 0, "activation_error": None, "output_error": None, "sensitivity": None}
    sizes = {"total": 4, "total_groups": 4, "query_key_dims": [3, 8], "value_dims": [8, 8]}
    rows = [
        BlockRow("0.heads", "heads", kept=2, kept_groups=2, **row | sizes),
        BlockRow("1.heads", "heads", kept=0, kept_groups=0, **row | sizes | {"layer": 1}),
    ]
    size = Size(1, 1, 1, 1)
    report = PruningReport(rows, size, size, 9, None, {}, 0, {})
    first, second = dimensions_kept(report).axes
    assert [bar.get_width() for bar in first.patches] == [8, 8, 3, 0]
    assert first.get_title() == "query/key dimensions: 6 of 16 kept"
    assert [bar.get_width() for bar in second.patches] == [8, 8, 8, 0]


def test_methods_that_price_nothing_have_a_grid_and_no_curves(word_tokenizer):
    result = stat_prune.prune(
        tiny_bert(),
        TEXTS,
        tokenizer=word_tokenizer,
        target=Parameters(0.5),
        method="flap",
        progress=False,
    )
    assert len(overview(result.report, result.plan).axes) == 2
    with pytest.raises(DataError, match="'flap' has no error curves"):
        error_curves(result.report)


def test_the_heat_map_shows_the_table_and_crosses_out_what_left(result, word_tokenizer):
    dense = tiny_bert() if "encoder" in next(iter(result.plan)) else tiny_llama()
    statistics = head_statistics(dense, TEXTS, tokenizer=word_tokenizer, progress=False)
    fig = head_heat_map(statistics, "to_special", plan=result.plan)
    axes = fig.axes[0]
    shown = axes.images[0].get_array()
    np.testing.assert_array_equal(shown.filled(np.nan), statistics.table("to_special"))
    crosses = {(int(y), int(x)) for x, y in axes.lines[0].get_xydata()}
    assert crosses == {
        (layer, head)
        for layer, name in enumerate(statistics.values)
        for head in set(range(4)) - set(result.plan[name])
    }
    assert_nothing_is_cut_off(fig)


def test_attention_maps_share_a_scale(word_tokenizer):
    tokens, maps = attention_maps(tiny_bert(), word_tokenizer, TEXTS[0])
    weights = maps["encoder.layer.0.heads"]
    fig = attention_figure(tokens, {"head 0": weights[0], "head 1": weights[1]})
    first, second = (axes.images[0] for axes in fig.axes[:2])
    assert first.get_clim() == second.get_clim() == (0, float(weights[:2].max()))
    assert_nothing_is_cut_off(fig)


def test_scores_are_means_over_seeds_with_their_standard_error():
    records = [
        {
            "task": "sst2",
            "method": method,
            "seed": seed,
            "metric": "accuracy",
            "dense": 0.9,
            "scores": {"0.5": 0.8 + 0.02 * seed, "0.75": 0.85},
        }
        for method in ("stat", "random")
        for seed in range(3 if method == "random" else 1)
    ]
    fig = score_curves(records)
    lines = {bars.get_label(): bars for bars in fig.axes[0].containers}
    line, _, (bars,) = fig.axes[0].containers[1]
    np.testing.assert_allclose(line.get_xydata(), [[0.5, 0.82], [0.75, 0.85]])
    lower, upper = bars.get_segments()[0][:, 1]
    assert upper - lower == pytest.approx(2 * 0.02 / 3**0.5)
    assert len(lines) == 2
    assert [text.get_text() for text in fig.legends[0].texts] == ["dense", "stat", "random"]
    assert_nothing_is_cut_off(fig)


def test_every_task_that_compares_has_a_panel_and_missing_scores_are_left_out():
    records = [
        {
            "task": task,
            "method": method,
            "metric": "accuracy",
            "dense": None if task == "time" else 0.9,
            "scores": {"0.5": 0.8, "0.7": None},
        }
        for task in [*"abcdef", "time"]
        for method in ("stat", "random")
    ]
    fig = score_curves(records)
    panels = [axes for axes in fig.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == list("abcdef")
    for axes in panels:
        assert [line.get_xdata().tolist() for line, *_ in axes.containers] == [[0.5], [0.5]]
        assert set(axes.lines[0].get_ydata()) == {0.9}
    assert_nothing_is_cut_off(fig)
    assert not any(axes.get_visible() for axes in score_curves(records[-1:]).axes)


def test_no_two_of_many_methods_look_alike():
    records = [
        {"task": "t", "method": f"m{i}", "metric": "m", "dense": 1, "scores": {"0.5": i, "1": i}}
        for i in range(16)
    ]
    fig = score_curves(records)
    looks = {
        (line.get_color(), line.get_marker(), line.get_linestyle())
        for line, *_ in fig.axes[0].containers
    }
    assert len(looks) == 16


def test_predictions_lie_where_they_were_made():
    series = {"a": [(0.001, 0.002), (0.01, 0.03)], "b": [(0.1, 0.05), (0.2, 0.3)]}
    fig = predicted_against_measured(series)
    first, second, diagonal = fig.axes[0].lines
    np.testing.assert_allclose(first.get_xydata(), series["a"])
    np.testing.assert_allclose(second.get_xydata(), series["b"])
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    assert_nothing_is_cut_off(fig)


def test_without_matplotlib_one_error_says_what_to_install():
    script = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from stat_prune.errors import StatPruneError\n"
        "try:\n    import stat_prune.reporting.plotting\n"
        "except StatPruneError as error:\n    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "pip install 'stat-prune[plot]'" in run.stdout


def test_curves_survive_the_report_on_disk(result, tmp_path):
    restored = type(result.report).from_dict(result.report.to_dict())
    assert restored == result.report
    assert all(row.error_curve for row in restored.blocks)
    longest = max(len(row.error_curve or []) for row in restored.blocks)
    assert longest <= 64


def test_a_target_of_heads_draws_all_neurons_as_kept(word_tokenizer):
    result = stat_prune.prune(
        tiny_bert(),
        TEXTS,
        tokenizer=word_tokenizer,
        target=MACs({"heads": 0.5}),
        method="attention-entropy",
        progress=False,
    )
    fig = result.plot()
    neurons = sum(row.total for row in result.report.blocks if row.kind == "neurons")
    assert f"neurons: {neurons} of {neurons} kept" in [axes.get_title() for axes in fig.axes]
    assert_nothing_is_cut_off(fig)
