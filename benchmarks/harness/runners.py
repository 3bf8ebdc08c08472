"""Ways to run a model's forward pass, each as a callable to be timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import PreTrainedModel

from stat_prune.errors import SettingsError

Run = Callable[[], object]


def eager(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> Run:
    """The model as it is."""
    return lambda: model(**batch)


def compiled(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> Run:
    """Through `torch.compile`, for this shape."""
    fast = torch.compile(model, dynamic=False)
    return lambda: fast(**batch)


def onnx(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> Run:
    """Exported for this shape and run by ONNX Runtime, with as many threads as torch has.

    Raises
    ------
    SettingsError
        If ONNX Runtime or the exporter is not installed.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch.onnx needs it)
    except ImportError as error:
        raise SettingsError("mode onnx needs: pip install onnx onnxruntime onnxscript") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    on_gpu = model.device.type == "cuda"
    provider = "CUDAExecutionProvider" if on_gpu else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise SettingsError(f"mode onnx on {model.device} needs an ONNX Runtime with {provider}.")
    with TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        torch.onnx.export(
            _Hidden(model).eval(), (), kwargs=dict(batch), f=file, dynamo=True, verbose=False
        )
        session = onnxruntime.InferenceSession(file, options, providers=[provider])
    feeds = {name: value.cpu().numpy() for name, value in batch.items()}
    return lambda: session.run(None, feeds)


class _Hidden(torch.nn.Module):
    """A model whose output is one tensor."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """The first output."""
        return self.model(**inputs)[0]


RUNNERS: dict[str, Callable[[PreTrainedModel, Mapping[str, torch.Tensor]], Run]] = {
    "eager": eager,
    "compiled": compiled,
    "onnx": onnx,
}
