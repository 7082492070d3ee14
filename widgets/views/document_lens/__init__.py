"""DocumentLens: the text of a trace, token by token, coloured by what a reader made of it."""
