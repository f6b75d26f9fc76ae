"""Run the networks of an exported folder by onnxruntime. Runs without torch.

`onnx/graph.json` names the files, what each of them takes and gives, and what has to be computed before.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eav_ray.config.extras import require_extra
from eav_ray.errors import ConfigError, DataError
from eav_ray.storage import check_format, split_store_path
from eav_ray.training.window_predictions import PredictedArrays

if TYPE_CHECKING:
    import onnxruntime

GRAPH_FILE, GRAPH_FORMAT = "onnx/graph.json", 1
PRESENT = "present"


class OnnxModel:
    """The networks of an exported folder.

    Args:
        folder: That `eav export --onnx` wrote, or one in `s3://` or `gs://`.
        n_threads: That onnxruntime takes for one network; 0: as many as there are cores.

    Attributes:
        graph: What `onnx/graph.json` says.
        modalities: In the order of the columns of what is present.

    Raises:
        ConfigError: onnxruntime is not installed, or the folder was exported without networks as ONNX.
        DataError: There is no such folder, or a file of it is damaged.
    """

    def __init__(self, folder: str | Path, *, n_threads: int = 0) -> None:
        require_extra("onnx", "running ONNX files", {"onnxruntime": "onnxruntime"}, "use eav_ray.Predictor")
        import onnxruntime

        store, name = split_store_path(str(folder))
        commit = store.read_commit(name)
        if GRAPH_FILE not in commit.files:
            raise ConfigError(f"{folder} has no {GRAPH_FILE}; export it again with `eav export NAME --onnx`")
        self._store, self._name, self._commit = store, name, commit
        self.graph: dict[str, Any] = self.read_json(GRAPH_FILE)
        check_format(self.graph.get("format"), GRAPH_FORMAT, f"{folder}/{GRAPH_FILE}", "export it again")
        self.modalities: list[str] = self.graph["modalities"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        options.log_severity_level = 3  # what it would do about its own graph is nobody's concern here
        self._options = options
        self._encoders = {m: self._open(self.graph["encoders"][m]["file"]) for m in self.modalities}
        self._fusion = self._open(self.graph["fusion"]["file"]) if self.graph["fusion"] else None

    def read_json(self, name: str) -> Any:
        """Read a file of the folder, against its hash."""
        return json.loads(self._store.read_committed_file(self._name, name, self._commit))

    def _open(self, file: str) -> "onnxruntime.InferenceSession":
        import onnxruntime

        if file not in self._commit.files:
            raise DataError(f"{self._store.format_path(self._name)} has no {file}; export it again")
        # From memory: a graph cannot name other files to read then.
        data = self._store.read_committed_file(self._name, file, self._commit)
        return onnxruntime.InferenceSession(data, self._options, providers=["CPUExecutionProvider"])

    def run(self, inputs: Mapping[str, np.ndarray], present_BM: np.ndarray) -> PredictedArrays:
        """Compute what the model makes of windows.

        Args:
            inputs: By the names in `onnx/graph.json`, (windows, ...) each: windows as `config.json` describes them,
                or the features of them where a graph starts at these; of a model that normalises within subjects also
                mean and SD. Those of a modality that no window has may be left out.
            present_BM: (windows, modalities), True where a window has a modality.
        Returns:
            Logits, or standardised numbers, of the fusion and of each modality; modality weights, as they are and
            corrected.
        Raises:
            DataError: A window has no modality, or an input is missing or of another shape.
        """
        present_BM = np.asarray(present_BM, bool)
        if not present_BM.any(1).all():
            raise DataError("a window has none of the modalities of this experiment; leave it out or add its modality")
        encoded: dict[str, np.ndarray] = {PRESENT: present_BM}
        for column, m in enumerate(self.modalities):
            part, present_B = self.graph["encoders"][m], np.ascontiguousarray(present_BM[:, column])
            given = {
                name: self._get_input(name, described, inputs, present_B) for name, described in part["inputs"].items()
            }
            outputs = _run(self._encoders[m], given)
            encoded |= {f"{m}.{name}": value for name, value in outputs.items()}
        unimodal = {m: encoded[f"{m}.logits"] for m in self.modalities}
        if self._fusion is None:
            (logits,) = unimodal.values()
            weights = present_BM.astype(np.float32)
            return PredictedArrays(logits, unimodal, weights, weights)
        fused = _run(self._fusion, encoded)
        return PredictedArrays(fused["logits"], unimodal, fused["weights"], fused["corrected"])

    def _get_input(
        self, name: str, described: Mapping[str, Any], inputs: Mapping[str, np.ndarray], present_B: np.ndarray
    ) -> np.ndarray:
        if name == PRESENT:
            return present_B
        shape = (len(present_B), *described["shape"][1:])
        if name not in inputs and not present_B.any():
            return np.ones(shape, described["dtype"])
        if name not in inputs:
            raise DataError(f"{name} is missing; give it as {GRAPH_FILE} says, {described['dtype']} of shape {shape}")
        value = np.ascontiguousarray(inputs[name])
        if value.shape != shape or value.dtype != described["dtype"]:
            raise DataError(
                f"{name} is {value.dtype} of shape {value.shape}; give {described['dtype']} of shape {shape}"
            )
        return value


def _run(session: "onnxruntime.InferenceSession", given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a graph on those of its inputs that the exporter left."""
    outputs = [output.name for output in session.get_outputs()]
    values = session.run(outputs, {one.name: given[one.name] for one in session.get_inputs()})
    return dict(zip(outputs, map(np.asarray, values), strict=True))
