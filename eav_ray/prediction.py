"""What a checkpoint says of one recording, as `Predictor.predict` returns it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from eav_ray.errors import DataError
from eav_ray.evaluation.predicted_numbers import name_value_column
from eav_ray.evaluation.probabilities import PREDICTED_COLUMN, name_probability_column
from eav_ray.evaluation.window_predictor import join_reasons


@dataclass(frozen=True)
class Prediction:
    """What a checkpoint says of one recording, or of one window of it.

    Attributes:
        predicted: The class that the fusion predicts; None where its probabilities are no numbers, and of a checkpoint
            that predicts numbers.
        probabilities: The fusion's probability of each class.
        values: The number that the fusion predicts of each target, where numbers are predicted.
        by_modality: The probability of each class, or the number of each target, by each modality alone; None where it
            is not there.
        weights: The share of the fusion's attention that each modality gets; they add up to 1.
        corrected_weights: The same after division by the number of tokens of each modality, scaled to add up to 1: what
            its tokens get on average, by which modalities of different length can be compared.
        used: The modalities that were used.
        not_used: The reason for each modality that was not.
        start_s: When it begins, seconds from the start of the recording.
        windows: The windows of a recording, in order; a window has none.
    """

    predicted: str | None
    probabilities: dict[str, float | None]
    values: dict[str, float | None]
    by_modality: dict[str, dict[str, float | None]]
    weights: dict[str, float | None]
    corrected_weights: dict[str, float | None]
    used: tuple[str, ...]
    not_used: dict[str, str]
    start_s: float
    windows: tuple["Prediction", ...]

    def to_dataframe(self) -> pd.DataFrame:
        """Return a table with a row a window, whose columns are called as in the files that `eav predict` writes.

        Returns:
            `start_s`, `used`, `predicted`, `probability.<class>`, `<modality>.probability.<class>`,
            `weight.<modality>` and `corrected.<modality>`; NaN where a modality is not there. Where numbers are
            predicted, `predicted.<target>` and `<modality>.predicted.<target>` in place of classes.

        Example:
            >>> import eav_ray
            >>> table = eav_ray.Predictor("best").predict(audio="speech.wav").to_dataframe()
            >>> table[["start_s", "used"]].to_dict("records")
            [{'start_s': 0, 'used': 'audio'}, {'start_s': 5, 'used': 'audio'}]
        """
        return pd.DataFrame([_make_row(one) for one in self.windows or (self,)])


def _make_row(prediction: Prediction) -> dict[str, Any]:
    row: dict[str, Any] = {"start_s": prediction.start_s, "used": ", ".join(prediction.used)}
    name_column, own = name_value_column, prediction.values
    if not prediction.values:
        name_column, own = name_probability_column, prediction.probabilities
        row[PREDICTED_COLUMN] = prediction.predicted
    for source, numbers in {"fusion": own, **prediction.by_modality}.items():
        row |= {name_column(source, name): _to_number(number) for name, number in numbers.items()}
    row |= {f"weight.{m}": _to_number(weight) for m, weight in prediction.weights.items()}
    return row | {f"corrected.{m}": _to_number(weight) for m, weight in prediction.corrected_weights.items()}


def _to_number(value: float | None) -> float:
    return float("nan") if value is None else value


def make_prediction(tree: Mapping[str, Any], not_used: dict[str, str], windows: tuple[Prediction, ...]) -> Prediction:
    """Make a prediction of what `evaluation.predictor` says of a recording, or of a window.

    Args:
        not_used: The reason for each modality that was not used.
        windows: Those of a recording.
    """
    return Prediction(
        predicted=tree["predicted"] if "probabilities" in tree else None,
        probabilities=tree.get("probabilities", {}),
        values={} if "probabilities" in tree else tree["predicted"],
        by_modality=tree["by_modality"],
        weights=tree["weights"],
        corrected_weights=tree["corrected_weights"],
        used=tuple(tree["used"]),
        not_used=not_used,
        start_s=tree.get("start_s", 0),
        windows=windows,
    )


def make_recording_prediction(tree: Mapping[str, Any]) -> Prediction:
    """Make the prediction of a recording of what `predict_upload` says of it.

    Raises:
        DataError: Nothing of it can be used.
    """
    if not tree["windows"]:
        raise DataError(f"nothing of this recording can be used ({join_reasons(tree['not_used'])})")
    windows = tuple(make_prediction(window, {}, ()) for window in tree["windows"])
    return make_prediction(tree, tree["not_used"], windows)
