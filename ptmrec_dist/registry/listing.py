"""What is registered: a table of versions (`ptmrec models`)."""

from typing import Any

from ptmrec_dist.config import ModelsConfig
from ptmrec_dist.errors import UserError
from ptmrec_dist.mlflow_store import asking_mlflow, metric_name
from ptmrec_dist.registry.loading import client_of_registry


def models(config: ModelsConfig) -> None:
    """Print the versions of registered models, newest first, with aliases, lineage and metrics (`ptmrec models`).

    Args:
        config: Settings.

    Raises:
        UserError: No registry, no model of that name, or a metric that no version has.
    """
    client = client_of_registry(must_exist=True)
    with asking_mlflow():
        found = list(client.search_registered_models())
        aliases = {model.name: model.aliases for model in found}
        shown = [model.name for model in found if config.name in (None, model.name)]
        if not shown:
            names = ", ".join(model.name for model in found) or "none: nothing is registered"
            raise UserError(f"name: got {config.name!r}, expected one of {names}")
        versions = [version for name in shown for version in _versions(client, name)]
    _print_table(versions, aliases, config.metric)


def _versions(client: Any, name: str) -> list[Any]:
    versions, token = [], None
    while True:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        versions += page
        token = page.token
        if not token:
            return sorted(versions, key=lambda version: -int(version.version))


def _print_table(versions: list[Any], aliases: dict[str, dict[str, Any]], metric: str) -> None:
    from rich.console import Console
    from rich.table import Table

    tag = metric_name(f".{metric}").strip("/")
    parts = sorted({name.removesuffix(f"/{tag}") for one in versions for name in one.tags if name.endswith(f"/{tag}")})
    table = Table(title=f"{metric} of each part", title_justify="left")
    for heading in ("model", "version", "aliases", "recommender", "stage", "data", *parts):
        table.add_column(heading.replace("_", " "), justify="right" if heading in parts else "left")
    for one in versions:
        own = (alias for alias, version in aliases[one.name].items() if str(version) == str(one.version))
        metrics = [one.tags.get(f"{part}/{tag}") for part in parts]
        table.add_row(
            one.name,
            str(one.version),
            " ".join(sorted(own)),
            *(one.tags.get(name, "") for name in ("recommender", "stage")),
            one.tags.get("data", "")[:12],
            *("" if value is None else f"{float(value):.4f}" for value in metrics),
        )
    Console().print(table)
