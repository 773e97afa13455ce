"""More items in the folder of a served model: rows behind those of its tables, without interactions and so cold.

Legend: N new items, I items, D width of the scores.
"""

import json
from pathlib import Path

import polars as pl
import torch
from safetensors.torch import load_file
from torch import Tensor

from ptmrec_dist.distributed.tensor_file import save_tensors
from ptmrec_dist.serving.digests import FILE_NAME as DIGESTS
from ptmrec_dist.serving.digests import write_digests


def append_items(folder: Path, item_ids: pl.Series, titles: pl.Series, vectors_ND: Tensor) -> None:
    """Append items to a served model.

    Their vectors of the full score are zero: no list reads them, for that score ranks warm items alone.

    Args:
        folder: Folder of the model, which is changed.
        item_ids: Their ids, none of which the model has.
        titles: Their titles.
        vectors_ND: Their vectors of the cold score, float32.
    """
    items = pl.read_parquet(folder / "items.parquet")
    new = pl.DataFrame({"item_id": item_ids, "title": titles, "warm": [False] * len(item_ids)}, schema=items.schema)
    tables = load_file(folder / "tables.safetensors")
    untrained = tables["items"].new_zeros(len(item_ids), tables["items"].shape[1])
    tables["items"] = torch.cat([tables["items"], untrained])
    tables["modal_items"] = torch.cat([tables["modal_items"], vectors_ND.to(tables["modal_items"].dtype)])
    described = json.loads((folder / "model.json").read_text())
    described["added_items"] = described.get("added_items", 0) + len(item_ids)
    save_tensors(folder / "tables.safetensors", tables)
    pl.concat([items, new]).write_parquet(folder / "items.parquet")
    (folder / "model.json").write_text(json.dumps(described, indent=1))
    (folder / DIGESTS).unlink()
    write_digests(folder)
