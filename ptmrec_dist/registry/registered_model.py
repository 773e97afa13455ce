"""The model that `load_model` returns: MLflow's, which refuses in one line what MLflow would drop or misread."""

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

    MLflow ignores columns and parameters that a model does not have, so that `topk` would pass for `top_k`; here they are
    refused. Columns are declared as strings, so that ids in CSV stay what they are; numbers are accepted all the same.
    """

    @classmethod
    def of(cls, loaded: PyFuncModel) -> "RegisteredModel":
        """Take over a loaded model.

        Args:
            loaded: As MLflow loaded it.

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
            data: A table, or what makes one: a mapping of columns, a list of rows.
            params: Those of `serving.params.Params`.

        Returns:
            The answer, a row for each recommendation or new item.

        Raises:
            MlflowException: A request that the model refuses (INVALID_PARAMETER_VALUE), or one on which it fails.
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
        raise UserError(f"request: got no table ({error}); expected rows with a user_id or a history") from error
