"""The commands through the real entry point, on tiny models and without a hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from forks import Fork
from tiny_models import tiny_bert, tiny_llama
from tokenizers_at_hand import with_spaces
from transformers import AutoTokenizer, BertForQuestionAnswering, BertForSequenceClassification

import stat_prune
from stat_prune.cli import main
from stat_prune.cli.finetune_command import MODES as finetune_modes
from stat_prune.evaluation import evaluate_squad
from stat_prune.settings.methods import ALLOCATIONS, EFFORTS, FINISHES
from stat_prune.vib import MODES

TEXTS = [
    "the cat sat on the mat",
    "a dog ran under the house",
    "the bird flew over the house and then under a tree",
    "it was a very very very good cat and it sat",
    "the dog sat on a bird",
    "then a cat ran over the very mat",
] * 4


ROOT = Path(stat_prune.__file__).parent.parent


def start(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A process of its own, as a user starts it."""
    return subprocess.run(
        [sys.executable, "-m", "stat_prune", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )


def fork(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A process of its own that has imported torch already."""
    return Fork(["-m", "stat_prune", *map(str, arguments)]).ended()


@pytest.fixture
def run(capsys, monkeypatch):
    """The entry point in this process, which has imported torch already."""

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["stat-prune", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        output = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, stop.value.code, output.out, output.err)

    # what `main` sets for its process, in which transformers is not imported yet
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    monkeypatch.setenv("COLUMNS", "100")
    yield call
    transformers.logging.set_verbosity(verbosity)
    transformers.logging.enable_progress_bar()


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "texts.txt"
    path.write_text("\n".join(TEXTS))
    return path


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, word_tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("models") / "classifier"
    tiny_bert(BertForSequenceClassification).save_pretrained(folder)
    word_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pruned(classifier, texts, tmp_path_factory) -> tuple[Path, dict]:
    """The classifier at 0.6 of its MACs, and what `prune --json` printed."""
    folder = tmp_path_factory.mktemp("pruned") / "out"
    done = start("prune", classifier, "--dataset", texts, "--macs", 0.6, "-o", folder, "--json")
    assert done.returncode == 0, done.stderr
    assert "Loading" not in done.stderr
    return folder, json.loads(done.stdout)


def test_prune_saves_a_model_within_its_target_and_prints_one_json_object(pruned):
    folder, printed = pruned
    kept = printed["after"]["block_macs"] / printed["before"]["block_macs"]
    model = stat_prune.load(folder)

    assert printed["output"] == str(folder)
    assert 0.5 < kept <= 0.6
    assert type(model).__name__ == "BertForSequenceClassification"
    assert sum(p.numel() for p in model.parameters()) == printed["after"]["parameters"]
    assert printed["settings"]["seed"] == 0


def test_kinds_have_fractions_of_their_own(classifier, texts, tmp_path, run):
    command = ("prune", classifier, "-d", texts, "-o", tmp_path / "out", "--json")
    done = run(*command, "--macs", "neurons=0.8,query-key=0.5", "--effort", "fast")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["head_dims"]["kept"] == {"query-key": 0.5}
    assert "'neurons': 0.8" in printed["settings"]["target"]
    refused = run(*command, "--overwrite", "--macs", "nerves=0.8")
    assert refused.returncode == 1
    assert "'query-key' and 'value' to numbers, got {'nerves': 0.8}" in refused.stderr


@pytest.mark.parametrize(
    "target",
    [
        ("--macs", 0.8),
        ("--parameters", 0.8),
        ("--bytes", 0.8),
        ("--tolerance", 0.1),
        ("--speedup", 1.2, "--latency-batch", 2),
        ("--macs", 0.8, "--embeddings", 0.5),
    ],
    ids=lambda target: " ".join(map(str, target)),
)
def test_plan_foresees_every_target_on_the_examples(classifier, texts, run, target):
    done = run("plan", classifier, "-d", texts, "--max-seq-length", 8, *target, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["num_samples"] == len(TEXTS) and 1 < found["seq_length"] <= 8
    assert found["memory"] > 0 and found["seconds"]["collect"] > 0


def test_plan_is_of_examples_or_of_a_length(classifier, texts, run):
    done = run("plan", classifier, "--macs", 0.8, "-d", texts, "--seq-length", 8)
    assert done.returncode == 2 and "--dataset" in done.stderr
    shown = run("plan", classifier, "--macs", 0.8, "--seq-length", 8).stdout
    assert "MACs at 8 tokens" in shown and "0.00" not in shown


def test_plan_foresees_dimensions(classifier, run):
    done = run("plan", classifier, "--parameters", "value=0.5", "--json")
    found = json.loads(done.stdout)
    assert found["after"]["parameters"] < found["before"]["parameters"]
    assert found["seconds"].keys() == {"dimensions of heads", "second pass"}


def test_inspect_shows_what_was_kept_and_lists_removed_heads(pruned, run):
    folder, printed = pruned
    plan = json.loads((folder / "stat_prune_plan.json").read_text())

    shown = run("inspect", folder)
    as_json = json.loads(run("inspect", folder, "--json").stdout)

    assert shown.returncode == 0
    for row in printed["blocks"]:
        layer = row["name"].rpartition(".")[0]
        (line,) = (x for x in shown.stdout.splitlines() if f" {layer} " in x and "│" in x)
        assert f" {row['kept']}/{row['total']} " in line
        removed = sorted(set(range(row["total"])) - set(plan[row["name"]]))
        if row["kind"] == "heads" and removed:
            assert f"{row['name']} without {', '.join(map(str, removed))}" in shown.stdout
    assert as_json["plan"] == plan
    assert as_json["report"]["blocks"] == printed["blocks"]
    # what was not given is shown as what went for it
    lines = shown.stdout.splitlines()
    assert {"objective: logits", "budget: searched", "passes: 2"} <= set(lines)
    assert as_json["report"]["settings"]["budget"] is None


def test_inspect_shows_what_is_left_in_a_folder_that_a_trainer_wrote(pruned, run, tmp_path):
    folder, printed = pruned
    stat_prune.load(folder).save_pretrained(tmp_path / "trained")

    shown = run("inspect", tmp_path / "trained")
    sizes = json.loads(run("inspect", tmp_path / "trained", "--json").stdout)["sizes"]
    assert shown.returncode == 0, shown.stderr
    for row, found in zip(printed["blocks"], sizes["blocks"], strict=True):
        assert {name: row[name] for name in found} == found
        assert f" {row['kept']}/{row['total']} " in shown.stdout
    assert sizes["parameters"] == printed["after"]["parameters"]
    assert sizes["parameters_before"] == printed["before"]["parameters"]
    assert "error" not in shown.stdout and "nan" not in shown.stdout


@pytest.mark.parametrize("how", [(), ("--layer-at-a-time",)], ids=["whole", "layer by layer"])
def test_a_second_pruning_tells_of_the_first(pruned, texts, run, tmp_path, how):
    folder, first = pruned
    out = tmp_path / "out"
    done = run("prune", folder, "-d", texts, "--macs", 0.8, "--effort", "fast", "-o", out, *how)
    assert done.returncode == 0, done.stderr
    record = json.loads(run("inspect", out, "--json").stdout)["report"]

    (before,) = record["earlier"]
    assert before == {name: first[name] for name in ("settings", "before", "after")}
    lines = run("inspect", out).stdout.splitlines()
    assert "MACs(fraction=0.6" in lines[0] + lines[1] + lines[2]
    parameters = (first["before"]["parameters"], record["after"]["parameters"])
    assert any("{:,} -> {:,} parameters".format(*parameters) in line for line in lines)
    assert "First, `stat` to `MACs(fraction=0.6" in (out / "README.md").read_text()


def test_what_a_trainer_saved_and_what_was_never_saved_is_told_of_by_its_sizes(
    pruned, texts, run, tmp_path
):
    folder, first = pruned
    model, tokenizer = stat_prune.load(folder), AutoTokenizer.from_pretrained(folder)
    model.save_pretrained(tmp_path / "trained")
    tokenizer.save_pretrained(tmp_path / "trained")
    command = ("-d", texts, "--macs", 0.8, "--effort", "fast", "-o", tmp_path / "out", "--json")
    found = json.loads(run("prune", tmp_path / "trained", *command).stdout)
    sizes = [first[name]["parameters"] for name in ("before", "after")]
    (before,) = found["earlier"]
    assert [before[name]["parameters"] for name in ("before", "after")] == sizes
    shown = run("inspect", tmp_path / "out").stdout
    assert "a run that left no report" in " ".join(shown.split())
    assert f"{sizes[0]:,} -> {found['after']['parameters']:,} parameters" in shown

    def again(model, kept):
        return stat_prune.prune(
            model, texts, tokenizer=tokenizer, target=stat_prune.MACs(kept), progress=False,
            effort="fast",
        )  # fmt: skip

    second = again(model, 0.8)
    third = again(second.model, 0.8).report
    (before,) = third.earlier
    assert before["before"]["parameters"] == sizes[0]
    assert before["after"]["parameters"] == second.report.after.parameters


def test_all_that_was_done_to_a_model_is_told_in_its_order(
    pruned, classifier, texts, run, tmp_path
):
    folder, first = pruned
    few = tmp_path / "few.txt"
    few.write_text("the cat sat on the mat\na dog ran under the house")

    def done(name: str, *arguments: object) -> Path:
        found = run(*arguments, "-o", tmp_path / name)
        assert found.returncode == 0, found.stderr
        return tmp_path / name

    finished = done("finished", "finish", folder, "-d", texts, "--teacher", classifier)
    trimmed = done("trimmed", "trim", finished, "-d", few)

    record = json.loads(run("inspect", trimmed, "--json").stdout)["report"]
    ((after_finishes, trimming),) = record["trimmings"]
    assert after_finishes == 1
    assert trimming["parameters_before"] == first["after"]["parameters"]
    assert trimming["parameters"] == stat_prune.load(trimmed).num_parameters()
    assert trimming["parameters"] < trimming["parameters_before"]
    # The report is still of the run.
    assert record["after"] == first["after"] and record["earlier"] == []
    plan = "stat_prune_plan.json"
    assert (trimmed / plan).read_text() == (folder / plan).read_text()
    steps = ["finish", "trimming"]
    shown = run("inspect", trimmed).stdout.splitlines()
    assert [word for one in shown if (word := one.partition(" ")[0]) in steps] == steps
    card = (trimmed / "README.md").read_text()
    assert 0 < card.index("- Finish: scales;") < card.index("- Trimming: vocabulary 64 ->")

    again = done("again", "prune", trimmed, "-d", few, "--macs", 0.8, "--effort", "fast")
    record = json.loads(run("inspect", again, "--json").stdout)["report"]
    (earlier,) = record["earlier"]
    assert earlier["trimmings"] == [[1, trimming]] and len(earlier["finishes"]) == 1
    assert record["before"]["parameters"] == trimming["parameters"]
    shown = " ".join(run("inspect", again).stdout.split())
    places = [
        shown.index(text)
        for text in ("MACs(fraction=0.6", "finish: scales", "trimming: vocabulary", "fraction=0.8")
    ]
    assert places == sorted(places)
    of_first = "{:,} -> {:,} parameters".format(
        first["before"]["parameters"], record["after"]["parameters"]
    )
    assert of_first in shown and "left no report" not in shown
    card = (again / "README.md").read_text()
    assert card.index("- First,") < card.index("- Then, finish:") < card.index("- Then, trimming:")

    # What is trimmed twice says both, and what lies beside another model says nothing.
    less = tmp_path / "less.txt"
    less.write_text("the cat sat")
    twice = done("twice", "trim", trimmed, "-d", less)
    record = json.loads(run("inspect", twice, "--json").stdout)["report"]
    assert [at for at, _ in record["trimmings"]] == [1, 1]
    assert record["trimmings"][1][1]["parameters_before"] == trimming["parameters"]


def test_a_report_beside_another_model_is_not_that_of_its_trimming(texts, pruned):
    model, tokenizer = stat_prune.load(pruned[0]), AutoTokenizer.from_pretrained(pruned[0])
    assert stat_prune.trim_vocabulary(model, tokenizer, texts, progress=False).pruned is not None
    other = stat_prune.prune(
        model, texts, tokenizer=tokenizer, target=stat_prune.MACs(0.8), progress=False,
        effort="fast",
    ).model  # fmt: skip
    other.name_or_path = str(pruned[0])
    assert stat_prune.trim_vocabulary(other, tokenizer, texts, progress=False).pruned is None


def test_prune_goes_layer_by_layer_to_the_same_model(pruned, classifier, texts, run, tmp_path):
    done = run(
        "prune", classifier, "-d", texts, "--macs", 0.6, "-o", tmp_path / "out", "--json",
        "--layer-at-a-time", "--resume",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    plan = "stat_prune_plan.json"
    assert (tmp_path / "out" / plan).read_text() == (pruned[0] / plan).read_text()
    assert json.loads(done.stdout)["predicted_peak_memory"] > 0


def test_a_file_is_half_as_large(classifier, texts, run, tmp_path):
    done = run(
        *("prune", classifier, "-d", texts, "-o", tmp_path / "out", "--json", "--effort", "fast"),
        *("--bytes", 0.6),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert 0.57 < report["after"]["bytes"] / report["before"]["bytes"] <= 0.601


@pytest.mark.parametrize("others", [(), ("--macs", 0.6)])
def test_embeddings_are_factored_alone_or_beside_blocks(others, classifier, texts, run, tmp_path):
    done = run(
        *("prune", classifier, "-d", texts, "-o", tmp_path / "out", "--json", "--effort", "fast"),
        *("--embeddings", 0.5, *others),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    found = report["embeddings"]
    assert found["parameters"] <= 0.5 * found["parameters_before"]
    assert (report["after"]["block_macs"] < report["before"]["block_macs"]) == bool(others)
    model = stat_prune.load(tmp_path / "out")
    assert model.get_input_embeddings().weight.shape[1] == found["rank"]


def test_heads_of_language_models_are_factored_where_there_are_some(
    classifier, texts, run, tmp_path, word_tokenizer
):
    arguments = ("-d", texts, "-o", tmp_path / "out", "--json", "--effort", "fast")
    done = run("prune", classifier, *arguments, "--lm-head", 0.5)
    assert done.returncode == 1
    assert "no head of a language model" in done.stderr
    done = run("prune", classifier, *arguments, "--lm-head", 0.5, "--bytes", 0.5)
    assert done.returncode == 2
    assert "--lm-head" in done.stderr
    tiny_llama(vocab_size=len(word_tokenizer)).save_pretrained(tmp_path / "llama")
    word_tokenizer.save_pretrained(tmp_path / "llama")
    done = run("prune", tmp_path / "llama", *arguments, "--parameters", 0.7, "--lm-head", 0.5)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["lm_head"]
    assert found["parameters"] <= 0.5 * found["parameters_before"]


def test_a_result_is_finished_where_asked(classifier, texts, run, tmp_path):
    done = run(
        *("prune", classifier, "-d", texts, "-o", tmp_path / "out", "--json", "--effort", "fast"),
        *("--macs", 0.5, "--finish", "scales"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["finish"]["numbers"] > 0


@pytest.mark.parametrize("kind", FINISHES)
def test_a_folder_is_finished_with_its_dense_model(kind, pruned, classifier, texts, run, tmp_path):
    folder, _ = pruned
    options = ("-d", texts, "--teacher", classifier, "-o", tmp_path / "out", "--kind", kind)
    done = run("finish", folder, *options, "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["finish"]["kind"] == kind and printed["output"] == str(tmp_path / "out")
    expected = stat_prune.finish(folder, str(texts), kind=kind, teacher=classifier, progress=False)
    model = stat_prune.load(tmp_path / "out")
    assert all(map(torch.equal, model.state_dict().values(), expected.model.state_dict().values()))
    again = run("finish", folder, *options, "--seed", 1, "--overwrite")
    assert again.returncode == 0
    told, line, saved = again.stdout.strip().splitlines()
    assert told.startswith(f"{kind}; ") and "held out" in line and "stat_prune.load(" in saved


def test_what_is_finished_takes_the_place_of_neither_model(pruned, classifier, texts, run):
    folder, _ = pruned
    for output, message in ((folder, "to be finished"), (classifier, "to be matched")):
        before = (output / "model.safetensors").read_bytes()
        done = run(
            *("finish", folder, "-d", texts, "--teacher", classifier, "-o", output, "--overwrite")
        )
        assert done.returncode == 1 and message in done.stderr
        assert (output / "model.safetensors").read_bytes() == before


def test_a_vocabulary_is_trimmed_to_what_texts_need(classifier, texts, run, tmp_path):
    few = tmp_path / "few.txt"
    few.write_text("the cat sat\nthe cat ran")
    options = ("-d", few, "-o", tmp_path / "out", "--keep", "bird", "--json")
    done = run("trim", classifier, *options)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert {"the", "cat", "sat", "ran", "bird"} <= set(tokenizer.get_vocab())
    assert "tree" not in tokenizer.get_vocab()
    model = stat_prune.load(tmp_path / "out")
    assert model.config.vocab_size == printed["vocabulary"] == len(tokenizer)
    again = run("trim", classifier, *options[:-1], "--overwrite")
    assert again.returncode == 0
    assert "vocabulary" in again.stdout


@pytest.mark.parametrize(
    ("options", "effort", "budget", "searched"),
    [
        ((), "normal", None, True),
        (("--effort", "fast", "--budget", "searched", "--method", "obs"), "fast", "searched", True),
        (("--budget", "even"), "normal", "even", False),
        (("--layer-at-a-time",), "fast", None, True),
    ],
)
def test_the_search_for_the_budget_is_chosen_by_options(
    classifier, texts, run, tmp_path, options, effort, budget, searched
):
    done = run(
        "prune", classifier, "-d", texts, "--macs", 0.6, "-o", tmp_path / "out", "--json", *options
    )  # fmt: skip
    printed = json.loads(done.stdout)
    assert (printed["settings"]["effort"], printed["settings"]["budget"]) == (effort, budget)
    assert bool(printed["search"]) == searched


def test_a_search_layer_by_layer_is_refused_with_what_works(classifier, texts, run, tmp_path):
    done = run(
        "prune", classifier, "-d", texts, "--macs", 0.6, "-o", tmp_path / "out",
        "--layer-at-a-time", "--effort", "normal",
    )  # fmt: skip
    assert done.returncode == 1
    assert "use effort='fast'" in " ".join(done.stderr.split())


@pytest.mark.parametrize(("option", "names"), [("--effort", EFFORTS), ("--budget", ALLOCATIONS)])
def test_an_unknown_way_to_spread_the_budget_is_wrong_usage(
    classifier, texts, run, tmp_path, option, names
):
    done = run(
        "prune", classifier, "-d", texts, "--macs", 0.6, "-o", tmp_path / "out", option, "fair"
    )  # fmt: skip
    assert done.returncode == 2
    shown = " ".join(done.stderr.replace("│", " ").split())
    assert f"'fair' is none of {', '.join(names)}" in shown


def test_prune_draws_and_writes_a_web_page(classifier, texts, run, tmp_path):
    done = run(
        "prune", classifier, "-d", texts, "--macs", 0.6, "-o", tmp_path / "out", "--json",
        "--plot", tmp_path / "plan.svg", "--report", tmp_path / "report.html",
    )  # fmt: skip
    assert done.returncode == 0
    assert "<svg" in (tmp_path / "plan.svg").read_text()
    name = json.loads(done.stdout)["blocks"][0]["name"]
    assert f"<td>{name}</td>" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--plot", "plan.docx", "does not end in .png or .svg or .pdf"),
        ("--report", "missing/report.html", "there is no folder"),
    ],
)
def test_files_that_cannot_be_drawn_are_refused_before_any_work(
    classifier, texts, run, tmp_path, option, name, message
):
    done = run(
        "prune", classifier, "-d", texts, "--macs", 0.6, "-o", tmp_path / "out",
        option, tmp_path / name,
    )  # fmt: skip
    assert done.returncode == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


@pytest.fixture
def glue(tmp_path) -> Path:
    (tmp_path / "sst2").mkdir()
    rows = "\n".join(f"{text}\t{i % 2}" for i, text in enumerate(TEXTS))
    (tmp_path / "sst2" / "dev.tsv").write_text(f"sentence\tlabel\n{rows}\n")
    return tmp_path


def test_evaluate_scores_a_pruned_classifier_on_local_glue_files(pruned, run, glue):
    done = run("evaluate", pruned[0], "--task", "sst2", "--data", glue, "--json")

    scores = json.loads(done.stdout)
    assert 0 <= scores["accuracy"] <= 1
    assert scores["num_examples"] == len(TEXTS)


def test_prune_scores_the_dense_model_and_the_result(classifier, texts, glue, run):
    command = ("prune", classifier, "-d", texts, "--macs", 0.5, "--effort", "fast")
    command += ("--evaluate", "sst2", "--evaluate-data", glue)
    done = run(*command, "-o", glue / "out", "--json")
    assert done.returncode == 0, done.stderr
    before, after = (
        json.loads(run("evaluate", model, "--task", "sst2", "--data", glue, "--json").stdout)
        for model in (classifier, glue / "out")
    )
    names = before.keys() - {"model", "task"}
    dense, pruned = json.loads(done.stdout)["scores"]
    assert {name: before[name] for name in names} == dense
    assert {name: after[name] for name in names} == pruned
    shown = run(*command, "-o", glue / "again").stdout
    assert f"sst2 num_examples: {len(TEXTS)}\n" in shown
    assert "\nKept " in shown and "of all parameters" in shown


def test_texts_held_out_tell_the_distance_from_the_dense_model(classifier, texts, run, tmp_path):
    held_out = tmp_path / "held-out.txt"
    held_out.write_text("\n".join(TEXTS[:8]), encoding="utf-8")
    command = ("prune", classifier, "-d", texts, "--macs", 0.5, "--effort", "fast")
    command += ("--evaluate", "divergence", "--evaluate-data", held_out)
    done = run(*command, "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout)["scores"]
    assert before["divergence"] == pytest.approx(0, abs=1e-9) and after["divergence"] > 0
    assert after["num_examples"] == 8

    score = ("evaluate", tmp_path / "out", "--task", "divergence", "--data", held_out)
    alone = json.loads(run(*score, "--dense", classifier, "--json").stdout)
    assert {name: alone[name] for name in after} == after
    assert run(*score).returncode == 2
    shown = run(*command, "-o", tmp_path / "again").stdout
    assert f"\ndivergence: 0.0000 -> {after['divergence']:.4f}\n" in shown


def test_what_a_program_cannot_hold_is_one_line_that_names_what_to_use(
    classifier, texts, run, tmp_path
):
    command = ("prune", classifier, "-d", texts, "--macs", 0.5, "-o", tmp_path / "out")
    done = run(*command, "--serve-with", "llama.cpp")
    assert done.returncode == 1
    assert "cannot be written for llama.cpp" in done.stderr and "uniform=True" in done.stderr
    assert run(*command, "--serve-with", "ollama").returncode == 2


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--evaluate", "sst2", "--evaluate-data", "no-such-folder"), 1, "no-such-folder"),
        (("--evaluate", "perplexity"), 2, "perplexity needs texts"),
        (("--evaluate", "divergence"), 2, "divergence needs texts"),
        (("--evaluate-data", "texts.txt"), 2, "goes with --evaluate TASK"),
    ],
)
def test_what_cannot_be_scored_is_known_before_the_work(
    classifier, texts, run, tmp_path, options, code, message
):
    done = run("prune", classifier, "-d", texts, "--macs", 0.5, "-o", tmp_path / "out", *options)
    assert done.returncode == code
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_evaluate_scores_a_question_answering_model_on_a_squad_file(run, tmp_path, word_tokenizer):
    model = tiny_bert(BertForQuestionAnswering)
    model.save_pretrained(tmp_path / "qa")
    word_tokenizer.save_pretrained(tmp_path / "qa")
    entry = {
        "context": "the cat sat on the mat",
        "qas": [
            {
                "id": "q",
                "question": "a cat",
                "answers": [{"text": "mat", "answer_start": 19}],
            }
        ],
    }
    (tmp_path / "dev.json").write_text(json.dumps({"data": [{"paragraphs": [entry]}]}))

    done = run(
        *("evaluate", tmp_path / "qa", "--task", "squad", "--data", tmp_path / "dev.json", "--json")
    )

    scores = json.loads(done.stdout)
    expected = evaluate_squad(model, word_tokenizer, tmp_path / "dev.json")
    assert {name: scores[name] for name in expected} == expected


def test_a_language_model_is_pruned_by_parameters_and_scored_by_perplexity(
    texts, run, tmp_path, word_tokenizer
):
    tiny_llama(initializer_range=0.02).save_pretrained(tmp_path / "llama")
    word_tokenizer.save_pretrained(tmp_path / "llama")

    done = run(
        *("prune", tmp_path / "llama", "-d", texts, "--parameters", 0.8, "-o", tmp_path / "out"),
        *("--ignore", "heads", "--seed", 3),
    )
    score = run("evaluate", tmp_path / "out", "--task", "perplexity", "--data", texts, "--json")

    model = stat_prune.load(tmp_path / "out")
    layers = model.model.layers
    assert done.returncode == 0, done.stderr
    assert f"Saved to {tmp_path / 'out'}" in done.stdout
    assert all(layer.self_attn.q_proj.out_features == 32 for layer in layers)
    assert sum(layer.mlp.up_proj.out_features for layer in layers) < 96
    # close to uniform over the vocabulary: the weights are random and small
    assert 20 < json.loads(score.stdout)["perplexity"] < 200


def test_a_speed_up_is_asked_for_and_reported(classifier, texts, run, tmp_path, linear_clock):
    done = run(
        *("prune", classifier, "-d", texts, "--speedup", 1.4, "--latency-batch", 4),
        *("--seq-length", 16, "-o", tmp_path / "out", "--json"),
    )

    speed = json.loads(done.stdout)["speed"]
    shown = run("inspect", tmp_path / "out").stdout
    assert speed["speed_up"] == pytest.approx(1.4, rel=0.05)
    assert (speed["batch_size"], speed["seq_length"]) == (4, 16)
    assert "4 x 16 tokens" in " ".join(shown.split())


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    """SST-2 in the form in which GLUE publishes it, with what `finetune --config` reads."""
    folder = tmp_path_factory.mktemp("glue")
    (folder / "sst2").mkdir()
    rows = "\n".join(f"{text}\t{i % 2}" for i, text in enumerate(TEXTS))
    (folder / "sst2" / "train.tsv").write_text(f"sentence\tlabel\n{rows}\n")
    (folder / "short.json").write_text(
        '{"mask_steps": 3, "finetune_steps": 2, "batch_size": 4, "save_steps": 1}'
    )
    return folder


def test_finetune_trains_on_a_task_and_leaves_a_model_of_every_fraction(
    classifier, labelled, run, tmp_path
):
    arguments = (
        *("finetune", classifier, "--task", "sst2", "-d", labelled, "-o", tmp_path / "run"),
        *("--config", labelled / "short.json", "--gradual", 0.8, "--macs", 0.6, "--json"),
    )
    done = fork(*arguments)
    again, resumed = run(*arguments), run(*arguments, "--resume")

    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["output"] == str(tmp_path / "run" / "0.6" / "model")
    assert printed["settings"]["labels"] is True
    assert printed["settings"]["vib"]["finetune_steps"] == 2
    sizes = [
        sum(p.numel() for p in stat_prune.load(place).parameters())
        for place in (classifier, tmp_path / "run/0.8/model", printed["output"])
    ]
    assert sizes[0] > sizes[1] > sizes[2] == printed["after"]["parameters"]
    assert again.returncode == 1 and "resume" in again.stderr
    assert json.loads(resumed.stdout) == printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--macs", 0.001), "least that can be reached"),
        (("--macs", 1, "--labels"), "24 of 24 examples have no label"),
        (("--macs", 0.5, "--config", "no-such.json"), "no-such.json holds no settings"),
    ],
    ids=["too little", "unlabelled", "no such settings"],
)
def test_what_cannot_be_trained_is_refused_before_there_is_a_folder(
    arguments, message, classifier, texts, run, tmp_path
):
    done = run("finetune", classifier, "-d", texts, "-o", tmp_path / "run", *arguments)

    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("stat-prune: error: ") and message in last
    assert not (tmp_path / "run").exists()


def test_masks_alone_are_trained_on_texts_without_labels(classifier, texts, run, tmp_path):
    done = run(
        *("finetune", classifier, "-d", texts, "--parameters", 0.7, "--mode", "masks"),
        *("--ignore", "heads", "-o", tmp_path / "run"),
    )
    place = tmp_path / "run" / "0.7" / "model"
    assert done.returncode == 0, done.stderr
    assert f"Saved to {place}" in " ".join(done.stdout.split())
    record = json.loads(run("inspect", place, "--json").stdout)["report"]
    assert record["settings"]["labels"] is False
    assert record["settings"]["vib"]["train_weights"] is False
    kept = record["after"]["block_parameters"] / record["before"]["block_parameters"]
    assert 0.65 < kept <= 0.7
    assert all(row["kept"] == row["total"] for row in record["blocks"] if row["kind"] == "heads")


def test_a_pruned_model_is_trained_on_in_float32_with_the_dense_one_as_teacher(
    pruned, classifier, labelled, run, tmp_path
):
    half = stat_prune.load(pruned[0]).half()
    half.save_pretrained(tmp_path / "half")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(classifier / file, tmp_path / "half" / file)
    done = run(
        *("finetune", tmp_path / "half", "--task", "sst2", "-d", labelled, "--macs", 1),
        *("--config", labelled / "short.json", "--teacher", classifier, "-o", tmp_path / "run"),
        "--json",
    )
    assert done.returncode == 0, done.stderr
    trained = stat_prune.load(tmp_path / "run" / "1" / "model")
    assert trained.dtype == torch.float32
    assert json.loads(done.stdout)["after"]["parameters"] == sum(
        p.numel() for p in half.parameters()
    )


def test_export_writes_a_file_and_says_what_it_added(run, tmp_path):
    gguf = pytest.importorskip("gguf", reason="needs gguf (the extra `gguf`)")
    tiny_llama().save_pretrained(tmp_path / "model")
    with_spaces().save_pretrained(tmp_path / "model")
    command = ("export", tmp_path / "model", "--to", "gguf", "-o", tmp_path / "new" / "m.gguf")
    done = run(*command, "--type", "q8_0", "--pad-to", 64)
    again = run(*command, "--overwrite", "--json")

    assert done.returncode == again.returncode == 0, done.stderr
    assert "note: layers.1: 16 neurons of zeros make 64" in done.stdout
    written = f"Written to {tmp_path / 'new' / 'm.gguf'} (gguf, q8_0): "
    assert written in " ".join(done.stdout.split())
    assert json.loads(again.stdout)["to"] == "gguf"
    reader = gguf.GGUFReader(tmp_path / "new" / "m.gguf")
    assert reader.fields["llama.feed_forward_length"].contents() == 48


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prune", "no-such-folder", "-d", "{texts}", "--macs", "0.5", "-o", "{new}"), "no-such-"),
        (("prune", "{model}", "-d", "{texts}", "--macs", "60", "-o", "{new}"), "MACs(0.6)"),
        (("prune", "{model}", "-d", "{texts}", "--macs", "0.5", "-o", "{model}"), "would be lost"),
        (("inspect", "{model}"), "no record of pruning"),
        (("export", "{model}", "--to", "gguf", "-o", "{new}"), "uniform=True"),
    ],
    ids=[
        "unknown model",
        "percentage",
        "existing output",
        "never pruned",
        "a model that the program cannot hold",
    ],
)
def test_errors_are_one_line_on_stderr_and_exit_code_one(
    arguments, message, classifier, texts, run, tmp_path
):
    places = {"texts": texts, "new": tmp_path / "new", "model": classifier}
    done = run(*(argument.format(**places) for argument in arguments))

    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("stat-prune: error: ")
    assert message in line
    assert done.stdout == ""
    assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def odd(tmp_path_factory, classifier) -> dict[str, object]:
    """Places where something is wrong."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "file").write_text("text")
    (folder / "latin.txt").write_bytes("caf\xe9".encode("latin1"))
    (folder / "list.json").write_text("[1]")
    (folder / "latin.json").write_bytes(b"\xff\xfe\xff")
    (folder / "sst2").mkdir()
    (folder / "sst2" / "dev.tsv").write_bytes(b"sentence\tlabel\ncaf\xe9\t1\n")
    for name, file, content in (
        ("config", "config.json", b"[1, 2]"),
        ("encoding", "config.json", b"\xff\xfe{"),
        ("tokens", "tokenizer.json", b'{"a": 1}'),
        ("weights", "model.safetensors", b"junk"),
    ):
        shutil.copytree(classifier, folder / name)
        (folder / name / file).write_bytes(content)
    config = json.loads((classifier / "config.json").read_text()) | {"hidden_size": "wide"}
    shutil.copytree(classifier, folder / "field")
    (folder / "field" / "config.json").write_text(json.dumps(config))
    shutil.copytree(classifier, folder / "headless")
    tiny_bert().save_pretrained(folder / "headless")
    (folder / "mrpc").mkdir()
    (folder / "mrpc" / "dev.tsv").write_text("#1 String\t#2 String\tQuality\na cat\ta dog\t1\n")
    return {"here": folder, "model": classifier, "long": "n" * 5000}


PRUNE = ("prune", "{model}", "-d", "{here}/latin.txt", "--macs", "0.5", "-o", "{here}/new")
TUNE = ("finetune", "{model}", "-d", "{here}/file", "--macs", "0.5", "-o", "{here}/run")
FINISH = ("finish", "{model}", "-d", "{here}/file", "--teacher", "{model}", "-o", "{here}/new")
SCORE = ("evaluate", "{model}", "--task", "sst2", "--data", "{here}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*PRUNE, "--device", "foo"), "device='foo' cannot be used here"),
        ((*PRUNE, "--device", "cuda:99"), "This machine has 'cpu'"),
        ((*PRUNE, "--device", "foo", "--layer-at-a-time"), "device='foo'"),
        ((*PRUNE[:1], "{long}", *PRUNE[2:]), "neither a folder"),
        ((*PRUNE[:1], "{here}/file", *PRUNE[2:]), "neither a folder"),
        ((*PRUNE[:1], "{here}/config", *PRUNE[2:]), "cannot be loaded"),
        ((*PRUNE[:1], "{here}/encoding", *PRUNE[2:]), "cannot be loaded"),
        ((*PRUNE[:1], "{here}/tokens", *PRUNE[2:]), "cannot be loaded"),
        ((*PRUNE[:1], "{here}/weights", *PRUNE[2:]), "damaged"),
        ((*PRUNE[:1], "{here}/field", *PRUNE[2:]), "cannot be loaded"),
        (PRUNE, "no text in UTF-8"),
        ((*PRUNE, "--round-to", "99999999999999999999"), "`round_to` must be an integer from 1"),
        ((*PRUNE[:3], "{model}", *PRUNE[4:]), "that of a model, not of examples"),
        ((*PRUNE[:3], "{long}", *PRUNE[4:]), "neither a local path"),
        ((*PRUNE, "--macs", "nan"), "must lie in (0, 1]"),
        ((*PRUNE, "--ignore", "²"), "ignore='²' matches no block"),
        ((*TUNE, "--device", "foo"), "device='foo' cannot be used here"),
        ((*TUNE, "--teacher", "{long}"), "neither a folder"),
        ((*TUNE, "--config", "{here}/list.json"), "an object in JSON"),
        ((*TUNE, "--config", "{here}/latin.json"), "no settings in JSON"),
        ((*TUNE, "--gradual", "nan"), "`gradual` must be a number"),
        (FINISH, "no readable report"),
        ((*FINISH, "--device", "foo"), "device='foo' cannot be used here"),
        ((*FINISH[:1], "{long}", *FINISH[2:]), "is not a folder"),
        ((*FINISH[:1], "{here}/weights", *FINISH[2:]), "damaged"),
        (SCORE, "no text in UTF-8"),
        (("evaluate", "{here}/headless", "--task", "mrpc", "--data", "{here}"), "has no logits"),
        (
            ("evaluate", "{model}", "--task", "perplexity", "--data", "{here}/file"),
            "that of causal language models",
        ),
        ((*SCORE, "--device", "foo"), "device='foo' cannot be used here"),
        ((*SCORE[:-1], "{long}"), "no readable file"),
        (("evaluate", "{model}", "--task", "squad", "--data", "{long}"), "no readable file"),
        (("plan", "{model}", "--macs", "0.5", "--device", "foo"), "device='foo' cannot be used"),
        (("plan", "{long}", "--macs", "0.5"), "neither a folder"),
        (("plan", "{here}/config", "--macs", "0.5"), "neither a folder"),
        (("inspect", "{long}"), "no record of pruning"),
        (("inspect", "{here}/file"), "no record of pruning"),
    ],
)
def test_a_slip_is_one_line_that_names_it_and_never_a_traceback(arguments, message, odd, run):
    done = run(*(argument.format(**odd) for argument in arguments))

    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("stat-prune: error: ")
    assert message in line
    assert len(line) < 2000


@pytest.mark.parametrize("command", ["prune", "finetune", "demo"])
@pytest.mark.parametrize("seed", ["-1", "4294967296", "x"])
def test_a_seed_that_is_none_is_wrong_usage(command, seed, run):
    needed = () if command == "demo" else ("m", "-d", "t", "--macs", "1", "-o", "o")
    done = run(command, *needed, "--seed", seed)

    assert done.returncode == 2
    assert "Invalid value for '--seed'" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_of_the_system_is_one_line(monkeypatch, run, pruned):
    def full(*_arguments: object, **_settings: object) -> None:
        raise OSError(28, "No space left on device", "out/model.safetensors")

    monkeypatch.setattr(sys.modules["stat_prune.cli.inspect_command"], "print_json", full)
    done = run("inspect", pruned[0], "--json")

    assert done.returncode == 1
    assert done.stderr == ("stat-prune: error: No space left on device: out/model.safetensors.\n")


def test_too_little_memory_says_what_takes_less(monkeypatch, run, pruned):
    def large(*_arguments: object, **_settings: object) -> None:
        raise MemoryError

    monkeypatch.setattr(sys.modules["stat_prune.cli.inspect_command"], "print_json", large)
    done = run("inspect", pruned[0], "--json")

    assert done.returncode == 1
    assert "--batch-size" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prune", "m", "-d", "t", "-o", "o"), "exactly one of --macs"),
        (("prune", "m", "-d", "t", "-o", "o", "--macs", "1", "--tolerance", "1"), "exactly one"),
        (("prune", "m", "-d", "t", "-o", "o", "--macs", "1", "--speedup", "2"), "exactly one"),
        (("prune", "m", "-d", "t", "-o", "o", "--macs", "1", "--latency-batch", "2"), "--speedup"),
        (("prune", "m", "-d", "t", "-o", "o", "--speedup", "2", "--seq-length", "1.5"), "whole"),
        (("prune", "m", "-d", "t", "-o", "o", "--tolerance", "1", "--seq-length", "9"), "length"),
        (("prune", "m", "-d", "t", "-o", "o", "--macs", "1", "--method", "magic"), "magnitude"),
        (("evaluate", "m", "--task", "sst"), "sst2"),
        (("export", "m", "--to", "ggml", "-o", "o"), "gguf"),
        (("finish", "m", "-d", "t", "-o", "o"), "--teacher"),
        (("finish", "m", "-d", "t", "-o", "o", "--teacher", "d", "--kind", "more"), "lora"),
        (("finetune", "m", "-d", "t", "-o", "o"), "exactly one of --macs"),
        (("finetune", "m", "--macs", "1", "-o", "o"), "--task sst2"),
        (("finetune", "m", "-d", "t", "--macs", "1", "-o", "o", "--mode", "quick"), "full, fast"),
        (("finetune", "m", "-d", "t", "--parameters", "1", "-o", "o", "--seq-length", "9"), "len"),
        (
            ("finetune", "m", "-d", "t", "--macs", "1", "-o", "o", "--mode", "full")
            + ("--config", "c.json"),
            "one of --mode",
        ),
    ],
    ids=[
        "no target",
        "two targets",
        "work and time",
        "a batch but no time",
        "half a token",
        "a length but nothing that depends on it",
        "unknown method",
        "unknown task",
        "unknown form",
        "nothing to match",
        "unknown kind of finish",
        "nothing to reach",
        "nothing to learn from",
        "unknown mode",
        "a length but parameters",
        "two settings",
    ],
)
def test_wrong_usage_is_exit_code_two_and_says_what_is_right(arguments, message, run):
    done = run(*arguments)

    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())


def test_the_process_reports_errors_without_traceback(classifier, texts, tmp_path):
    error = start(
        "prune", classifier, "-d", tmp_path / "none.txt", "--macs", 1, "-o", tmp_path / "x"
    )
    usage = start("prune", classifier, "-d", texts, "-o", tmp_path / "x")

    assert (error.returncode, usage.returncode) == (1, 2)
    assert error.stdout == usage.stdout == ""
    assert error.stderr.startswith("stat-prune: error: ")
    assert len(error.stderr.splitlines()) == 1
    assert "Traceback" not in usage.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("prune", "--help"),
        ("evaluate", "--help"),
        ("finish", "--help"),
        ("finetune", "--help"),
        ("export", "--help"),
        ("prune", "m", "-d", "t", "-o", "o", "--method", "magic"),
        ("inspect", "{pruned}"),
    ],
    ids=" ".join,
)
def test_what_computes_nothing_does_not_wait_for_torch(arguments, pruned):
    script = (
        "import sys\n"
        "from stat_prune.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    slow = sys.modules.keys() & {'torch', 'transformers', 'datasets', 'scipy'}\n"
        "    assert not slow, slow\n"
    )
    arguments = [argument.format(pruned=pruned[0]) for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=ROOT
    )

    assert done.returncode == (2 if "magic" in arguments else 0), done.stderr


def test_help_teaches_by_example(run):
    overview, detail, second = (run(*a, "--help") for a in ((), ("prune",), ("finetune",)))

    assert overview.returncode == detail.returncode == 0
    assert "stat-prune prune path/to/model --dataset texts.txt --macs 0.6" in overview.stdout
    names = ("prune", "trim", "finish", "finetune", "inspect", "evaluate", "export", "demo")
    assert all(name in overview.stdout for name in names)
    assert "--dataset glue/sst2 --macs 0.6 -o out" in detail.stdout
    assert "--task sst2 --macs 0.5 -o run" in second.stdout
    for shown in (overview, detail, second):
        assert "1 an error" in shown.stdout and "130 stopped" in shown.stdout
    assert set(finetune_modes) == MODES.keys()
    assert all(f"{name}: " in second.stdout for name in MODES)


def test_a_run_is_repeated_from_its_report_and_options_go_before_it(
    classifier, texts, run, tmp_path
):
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    prune = ("prune", classifier, "-d", texts)
    asked = ("--seed", 3, "--batch-size", 5, "--round-to", 4, "--budget", "even", "--ignore", 0)
    done = run(*prune, "--macs", 0.8, *asked, "--objective", "pooled", "-o", first, "--json")
    assert done.returncode == 0, done.stderr
    (tmp_path / "report.json").write_text(done.stdout)

    repeated = run(*prune, "--config", tmp_path / "report.json", "-o", again, "--json")
    report = ("--config", tmp_path / "report.json")
    changed = run(*prune, *report, "--seed", 0, "--parameters", 0.7, "-o", other, "--json")

    stored, same, else_ = (json.loads(d.stdout)["settings"] for d in (done, repeated, changed))
    assert same == stored
    assert (same["seed"], same["ignore"], same["batch_size"]) == (3, [0], 5)
    assert (again / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    assert (else_["seed"], else_["ignore"]) == (0, [0])
    assert else_["target"].startswith("Parameters(fraction=0.7")


def test_what_a_run_will_take_is_foreseen_from_its_settings(classifier, run, tmp_path):
    (tmp_path / "settings.toml").write_text(
        'target = "MACs(fraction=0.5, seq_length=None)"\nnum_calibration_samples = 16\n'
    )
    config = ("--config", tmp_path / "settings.toml", "--json")
    done = run("plan", classifier, "--seq-length", 8, *config)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_samples"] == 16
    (tmp_path / "settings.toml").write_text("sed = 1\n")
    done = run("plan", classifier, "--macs", 0.5, *config)
    assert done.returncode == 1
    assert "There is no setting sed. Did you mean 'seed'?" in done.stderr


def test_a_plan_is_told_as_a_table_and_as_json(classifier, run):
    command = ("plan", classifier, "--macs", "0.7")
    assert "peak memory, layer by layer" in run(*command).stdout
    found = json.loads(run(*command, "--json").stdout)
    assert found["model"] == "BertForSequenceClassification"
    assert found["after"]["block_macs"] == pytest.approx(0.7 * found["before"]["block_macs"])
    nothing = run(*command[:-1], "0")
    assert nothing.returncode == 1
    assert "must lie in (0, 1], got 0" in nothing.stderr
    wrong = run(*command[:-2])
    assert wrong.returncode == 2
    assert "--macs" in wrong.stderr


def test_a_plan_foresees_a_file_of_half_the_size(run, tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    command = ("plan", tmp_path, "--json", "--bytes", "0.5")
    found = json.loads(run(*command).stdout)
    assert found["after"]["bytes"] == pytest.approx(0.5 * found["before"]["bytes"], rel=0.05)
    both = run(*command, "--macs", "0.5")
    assert both.returncode == 2
    assert "exactly one of --macs, --parameters, --bytes" in both.stderr
