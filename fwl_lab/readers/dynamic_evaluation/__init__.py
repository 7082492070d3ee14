"""Dynamic evaluation: a reader that takes a gradient step on the model's own weights after each segment.

`reader` is the reader. `parameters` selects what adapts, `optimizers` holds the published update rules and
`gradient_statistics` what some of them need, `tune` searches a rule for a model. `state` is what the reader keeps of
each document, `groups` says which documents are read together, and `batched` runs one model with weights per document.
Nothing here is known to views, receipts or surgery by class: what they need is in `Reader`'s attributes.
"""
