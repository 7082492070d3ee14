"""Run readers over documents and write what they say: scoring, recording, generation, controls.

`score` reads documents into a trace: `skeleton` makes the trace's coordinates and attributes, `read_loop` reads,
`cost` measures. A `Recorder` says what to keep beside the scores, a `Plan` fixes the arrays for it before anything is
read, a `Recording` observes one reader and fills them. `generate` samples text, `incremental` rereads edited text,
`controls` makes the control experiments.
Nothing here defines a kind of reader, asks for one by class, analyses a finished trace, or draws.
"""
