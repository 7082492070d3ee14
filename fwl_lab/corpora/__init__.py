"""Corpora: documents, and the sources they come from.

`documents` defines a document and the hash that identifies a corpus; `sources` reads Python's standard library, text
files, WikiText and data sets of the Hugging Face hub. A document is a name and its unchanged text. Nothing here knows
tokens or models, and none but `huggingface_corpus` uses a network.
"""
