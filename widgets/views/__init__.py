"""The views: a folder each, with `view.py`, `index.js`, `style.css` and its own parts; `explorer` joins four of them.

A view turns a trace into a first message and answers questions; state and numbers are in Python, drawing in JavaScript.
Views don't import each other (`explorer` does), and none imports torch at module level: a model comes in as an object,
and what runs it is imported in the function that does. Parts that two views share belong in `core` or `display`.
"""
