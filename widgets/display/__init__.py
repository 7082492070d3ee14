"""Still HTML, tables and sentences made of a trace or an evaluation: no script, no kernel.

`document` shows a text coloured by gain, `badges` the certificates, `tables` and `comparisons` the numbers of an
evaluation, `numbers` writes single numbers. Views use these for their still pictures. Nothing here draws a plotly
figure, runs a model, or imports torch, `core` or `views`; computations belong in `fwl_lab.analysis`.
"""
