"""Importers of published data sets: from the files of a source to the two tables that `ptmrec pack` reads."""
