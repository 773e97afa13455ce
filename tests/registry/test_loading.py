"""What loading a registered model leaves behind: a model that needs no files, and no files."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from ptmrec_dist.cli import main
from ptmrec_dist.registry import load_model
from ptmrec_dist.serving.users import UserIndex
from tests.registry.films import in_base64

NEW = {"user_id": "1", "text": "a film", "image": in_base64(Image.new("RGB", (8, 8)), "PNG")}


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, of this test alone."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_unwrapped_model_encodes_new_items_when_its_wrapper_is_gone(registered):
    model = load_model("models:/films@champion").unwrap_python_model().model
    assert model.answer({name: [value] for name, value in NEW.items()})["score"]


def test_loading_leaves_no_files_behind(registered, temporary):
    model = load_model("models:/films@champion")
    assert list(temporary.iterdir()) == []
    assert len(model.predict(pd.DataFrame([NEW]))) == 1
    assert main(["recommend", "--model", "models:/films@champion", "--users", "1"]) == 0
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
def test_sigterm_while_a_model_is_loaded_leaves_no_files_behind(sqlite_registry, tmp_path):
    program = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from ptmrec_dist.registry.loading import verified_files\n"
        "with verified_files('models:/films@champion') as folder:\n"
        "    print((folder / 'MLmodel').is_file(), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('still running')\n"
    )
    environment = os.environ | {"MLFLOW_TRACKING_URI": sqlite_registry, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "True\n"
    assert done.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.glob("ptmrec-model-*")) == []


def test_sigterm_is_handled_as_before_once_a_model_is_loaded(registered):
    before = signal.getsignal(signal.SIGTERM)
    load_model("models:/films@champion")
    assert signal.getsignal(signal.SIGTERM) == before


def test_numbers_and_columns_of_any_form_are_a_request(films):
    expected = films.predict(pd.DataFrame({"user_id": ["3", "1"]}))
    for data in ({"user_id": [3, 1]}, {"user_id": ["3", "1"]}, [{"user_id": 3.0}, {"user_id": "1"}]):
        pd.testing.assert_frame_equal(films.predict(data), expected)
    pd.testing.assert_frame_equal(films.predict({"user_id": 3}), expected[:10])
    pd.testing.assert_frame_equal(mlflow_predict(films, pd.DataFrame({"user_id": [3, 1]})), expected)


def mlflow_predict(films: mlflow.pyfunc.PyFuncModel, table: pd.DataFrame) -> pd.DataFrame:
    """What the model answers where MLflow has loaded it by itself, as for `mlflow models predict`."""
    answer: pd.DataFrame = mlflow.pyfunc.load_model("models:/films@champion").predict(table)
    return answer


@pytest.mark.parametrize(
    ("data", "params", "message"),
    [
        (pd.DataFrame({"user_id": ["1"], "age": [30]}), None, "columns: got str 'age', expected some of user_id"),
        (pd.DataFrame({"user_id": ["1"]}), {"topk": 5}, "params: got str 'topk', expected some of top_k"),
        (pd.DataFrame({"user_id": ["1"]}), 5, "params: got int 5, expected a mapping"),
        (5, None, "request: cannot be read as a table"),
        (pd.DataFrame({"user_id": []}), None, "request: got no rows"),
    ],
)
def test_what_mlflow_would_ignore_is_refused(data, params, message, films):
    with pytest.raises(MlflowException, match=message) as raised:
        films.predict(data, params=params)
    assert raised.value.error_code == "INVALID_PARAMETER_VALUE"


def test_an_internal_error_of_the_model_is_reported_without_its_cause(films, monkeypatch):
    monkeypatch.setattr(UserIndex, "resolve", lambda *_: 1 / 0)
    with pytest.raises(MlflowException, match=r"\Athe model failed; the server's log says why\Z") as raised:
        films.predict(pd.DataFrame({"user_id": ["1"]}))
    assert raised.value.error_code == "INTERNAL_ERROR"
    assert "stack_trace" not in raised.value.serialize_as_json()
