"""Audit readers: check that scores are causal, normalised and reproducible, and keep the result as a certificate.

`certify` runs the checks in `checks` on the readings in `probes`; it takes any object that reads, not only this
library's readers. `certificate` is the result, and is read without torch by views. `leaky` is a reader that fails.
Nothing here depends on how a reader works inside; an audit never writes to a reader's model. Import from the modules:
this package imports none of them, so that opening a certificate loads no torch.
"""
