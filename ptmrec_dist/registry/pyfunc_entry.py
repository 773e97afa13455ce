"""Entry point that MLflow runs to load a registered model ("models from code"). This file is copied into the model."""

import logging
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import INTERNAL_ERROR, INVALID_PARAMETER_VALUE, MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from ptmrec_dist.errors import UserError
from ptmrec_dist.serving import ServedModel

log = logging.getLogger(__name__)


class PyfuncModel(PythonModel):
    """Adapter from MLflow's data frames to `ServedModel`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the model's folder, which is not needed afterwards."""
        self.model = ServedModel(Path(context.artifacts["model"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Answer a request; see `ServedModel.answer`.

        MLflow's server answers an MlflowException with its message, and any other exception with a traceback.
        """
        try:
            columns = self.model.answer(model_input.to_dict("list"), **(params or {}))
        except UserError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error
        except Exception as error:
            log.exception("a request failed")
            raise MlflowException("the model failed; the server's log says why", error_code=INTERNAL_ERROR) from error
        # As objects: a column of strings would turn a visitor's None into NaN, which is not valid JSON.
        return pd.DataFrame(
            {
                name: pd.Series(values, dtype=None if name in ("row", "rank", "score", "known_user") else object)
                for name, values in columns.items()
            }
        )


set_model(PyfuncModel())
