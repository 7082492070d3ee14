"""RunConsole: a form that starts a reading, and follows it."""
