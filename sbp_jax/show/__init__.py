"""Examples as a person reads them: of tasks, rows, pairs and synthetic corpora."""
