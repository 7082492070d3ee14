"""Parts of every view in the browser, in Python and JavaScript.

`view` is the base class, `wire` and `packing` carry questions, answers and arrays, `assets` finds a view's modules and
styles, `page` writes a page without a kernel. `selection` links views, `lifetime` closes old ones, `worker` runs jobs.
Nothing here knows a particular view, draws a figure, or imports torch, `figures`, `display` or `views`.
"""
