"""Define the trace, one `xarray.Dataset` of what readers did to documents, and keep it on disk.

`schema` holds the names, units and checks; `arrays` and `store` save and open a trace, `writer` writes one while
documents are read; `configurations` encodes what readers say of themselves, `lookup` says what a trace holds,
`provenance` what made it.
The library writes traces and everything else reads them, so nothing here knows a model or a figure: no torch, no
plotly, and no import from any other room.
"""
