"""Checks of texts against the encoder that will read them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ptmrec_dist.doctor.findings import Finding, note_if_rare

if TYPE_CHECKING:
    from ptmrec_dist.doctor.encoder import LoadedEncoder  # torch takes seconds


def check_texts(texts: list[str], encoder: "LoadedEncoder", where: str) -> Iterator[Finding]:
    """Find texts that an encoder would cut.

    Args:
        texts: All texts, some empty.
        encoder: The encoder.
        where: What is examined.

    Yields:
        At most one finding.
    """
    cut = encoder.count_cut(texts)
    if cut:
        found = f"{cut:,} of {len(texts):,} texts are longer than the encoder reads and lose their end"
        longest = max(texts, key=len)
        examples = (f"the longest has {len(longest):,} characters: {longest[:60]!r}",)
        yield Finding("long-texts", where, found, examples, note_if_rare(cut, len(texts)))
