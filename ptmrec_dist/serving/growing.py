"""More items in the folder of a served model: rows behind those of its tables, without interactions and so cold.

Legend: N new items, I items, D width of the scores.
"""

import json
from pathlib import Path

import polars as pl
import torch
from safetensors.torch import load_file
from torch import Tensor

from ptmrec_dist.data.tables.parquet import read_parquet
from ptmrec_dist.distributed.tensor_file import save_tensors
from ptmrec_dist.serving.digests import FILE_NAME as DIGESTS
from ptmrec_dist.serving.digests import write_digests


def append_items(folder: Path, new: pl.DataFrame, vectors_ND: Tensor) -> None:
    """Append items to a served model.

    Their vectors of the full score are zero: no list reads them, since that score ranks warm items alone.

    Args:
        folder: Folder of the model, which is changed.
        new: `item_id` and `title` of each, and the attributes that the model has; it has none of these ids.
        vectors_ND: Their vectors of the cold score, float32 [N, D].
    """
    items = read_parquet(folder / "items.parquet")
    new = new.with_columns(warm=pl.lit(False)).select(pl.col(name).cast(kind) for name, kind in items.schema.items())
    tables = load_file(folder / "tables.safetensors")
    untrained = tables["items"].new_zeros(new.height, tables["items"].shape[1])
    tables["items"] = torch.cat([tables["items"], untrained])
    tables["modal_items"] = torch.cat([tables["modal_items"], vectors_ND.to(tables["modal_items"].dtype)])
    described = json.loads((folder / "model.json").read_text())
    described["added_items"] = described.get("added_items", 0) + new.height
    save_tensors(folder / "tables.safetensors", tables)
    pl.concat([items, new]).write_parquet(folder / "items.parquet")
    (folder / "model.json").write_text(json.dumps(described, indent=1))
    (folder / DIGESTS).unlink()
    write_digests(folder)
