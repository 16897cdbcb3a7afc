"""A run, from the plan to run.json. Read it in this order: begin, execute, attempt, pipeline, finish."""
