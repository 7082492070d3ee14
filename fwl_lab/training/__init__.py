"""Training: a base LM from scratch, a fast-weight block on it, both jointly, or a slow control.

`config` says what a run is, `batches` which tokens each step sees, `run` what one step does, `checkpoint` what resuming
needs; `train` is the loop over steps. Everything here changes slow weights by backpropagation. Fast weights belong to
`fwl_lab.fast_weights`, and measuring a trained model to `fwl_lab.inference`.
"""
