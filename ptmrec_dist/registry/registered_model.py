"""The model that `load_model` returns: MLflow's, with one-line errors for input that MLflow would drop or misread."""

from copy import copy
from typing import Any

import pandas as pd
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException
from mlflow.models import ModelSignature
from mlflow.pyfunc import PyFuncModel
from mlflow.types import ColSpec, Schema

from ptmrec_dist.errors import UserError
from ptmrec_dist.serving.params import Params, refuse_others


class RegisteredModel(PyFuncModel):
    """MLflow's pyfunc model of a version.

    MLflow ignores unknown columns and parameters, so that a misspelt `topk` would have no effect; here they are refused.
    Columns are declared as strings, so that ids in CSV are read unchanged; numbers are accepted too.
    """

    @classmethod
    def of(cls, loaded: PyFuncModel) -> "RegisteredModel":
        """Wrap a model loaded by MLflow.

        Args:
            loaded: MLflow's model.

        Returns:
            The same model.
        """
        metadata = copy(loaded.metadata)
        declared = metadata.signature
        strings = Schema([ColSpec("string", name, required=False) for name in declared.inputs.input_names()])
        metadata.signature = ModelSignature(strings, declared.outputs, declared.params)
        model = cls(metadata, loaded._model_impl, model_id=loaded.model_id)
        model.input_example = loaded.input_example
        return model

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Answer a request; see `ServedModel.answer`.

        Args:
            data: A data frame, a mapping of columns, or a list of rows.
            params: Those of `serving.params.Params`.

        Returns:
            One row per recommendation or new item.

        Raises:
            MlflowException: The request is invalid (INVALID_PARAMETER_VALUE), or the model failed (INTERNAL_ERROR).
        """
        try:
            Params.parse(params)
            # As objects: MLflow would refuse numbers in a column of strings.
            table = _table(data).astype(object)
            refuse_others("columns", dict.fromkeys(table.columns), self.metadata.signature.inputs.input_names())
        except UserError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error
        return super().predict(table, params)


def _table(data: Any) -> pd.DataFrame:
    if isinstance(data, pd.DataFrame):
        return data
    try:
        if isinstance(data, dict):
            single = all(isinstance(value, str | int | float | None) for value in data.values())
            return pd.DataFrame([data]) if single else pd.DataFrame({name: list(cells) for name, cells in data.items()})
        return pd.DataFrame(data)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"request: cannot be read as a table ({error}); expected rows with a user_id or a history"
        ) from error
