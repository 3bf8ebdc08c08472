"""``stat-prune export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stat_prune.cli.common_options import Json, print_json
from stat_prune.cli.settings_options import one_of

FORMATS = ("gguf", "mlx", "onnx", "openvino", "transformers")


def export(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR", help="A pruned or plain model: a folder, or a name on the Hub."
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            callback=one_of(*FORMATS),
            help="gguf (llama.cpp, Ollama, LM Studio), mlx (mlx-lm), onnx (ONNX Runtime), "
            "openvino, or transformers (a folder that needs no flag and no code).",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file (gguf) or folder to write.")
    ],
    type: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of the numbers. gguf: f32, f16, bf16 or q8_0; mlx: f32, f16 or bf16; default: "
            "the model's own. onnx, openvino: f32 or int8; default: f32.",
        ),
    ] = None,
    pad_to: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="gguf: add neurons of zeros up to a multiple of this, for quantizers; the K types "
            "of llama.cpp ask for 256.",
        ),
    ] = None,
    pre_tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="gguf: llama.cpp's name of how texts are split, where it is not recognized.",
        ),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="DATASET",
            help="openvino, int8: texts, as `prune --dataset` takes them, that ranges are of.",
        ),
    ] = None,
    num_calibration_samples: Annotated[
        int, typer.Option(min=1, help="Texts drawn from --calibrate.")
    ] = 300,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is at --output.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Write a model in a form that other programs read, without this library.

    What a program cannot hold is refused before anything is written, and the message says what
    to prune instead.

    \b
    For llama.cpp, and what is built on it, with 8-bit weights:
      stat-prune export out --to gguf --type q8_0 -o out.gguf
    \b
    For mlx-lm, on Macs:
      stat-prune export out --to mlx -o out-mlx
    \b
    An encoder in 8 bits, for ONNX Runtime and for OpenVINO:
      stat-prune export out --to onnx --type int8 -o out-onnx
      stat-prune export out --to openvino --type int8 --calibrate texts.txt -o out-openvino
    """
    from stat_prune import exporting
    from stat_prune.checkpoints.pretrained import load_pretrained, load_tokenizer

    given = {"type": type, "pad_to": pad_to, "pre_tokenizer": pre_tokenizer}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if calibrate is not None:
        options["calibration"] = _texts(calibrate, num_calibration_samples)
    written = exporting.export(
        load_pretrained(folder),
        output,
        to,
        tokenizer=load_tokenizer(folder),
        overwrite=overwrite,
        **options,
    )
    if json_output:
        print_json({"output": str(output), "to": to, "notes": list(written.notes)})
        return
    for note in written.notes:
        typer.echo(f"note: {note}")
    files = [output] if output.is_file() else output.rglob("*")
    size = sum(path.stat().st_size for path in files if path.is_file())
    form = f"{to}, {type}" if type else to
    typer.echo(f"Written to {output} ({form}): {size:,} bytes, {size / 2**20:.1f} MiB.")


def _texts(dataset: str, count: int) -> list[str]:
    from itertools import islice

    from stat_prune.examples.iterating import iterate_examples

    every = (text for text in iterate_examples(dataset, seed=0) if isinstance(text, str))
    return list(islice(every, count))
