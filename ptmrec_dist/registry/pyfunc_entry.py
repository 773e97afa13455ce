"""What MLflow runs to load a registered model ("models from code"): it is copied into the model, the package is not."""

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from ptmrec_dist.errors import UserError
from ptmrec_dist.serving import ServedModel


class PyfuncModel(PythonModel):
    """Hands MLflow's tables to `ServedModel`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the model's folder."""
        self.model = ServedModel(Path(context.artifacts["model"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Answer a request; see `ServedModel.answer`. MLflow's server shows its own errors without a traceback."""
        try:
            columns = self.model.answer(model_input.to_dict("list"), **(params or {}))
            # As objects: a column of strings would turn a visitor's None into NaN, which is no JSON.
            return pd.DataFrame(columns | {"user_id": pd.Series(columns["user_id"], dtype=object)})
        except UserError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error


set_model(PyfuncModel())
