"""Reports: run a notebook with parameters, and write it as one page that opens anywhere.

``python -m widgets.report`` is the command; `run` checks parameters and executes, `render` writes the page with its
style and script. A report makes no request and needs no kernel. Nothing here knows what a notebook is about, reads a
trace or imports torch.
"""
