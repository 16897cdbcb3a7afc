"""A run, from the plan to run.json. Read the modules in this order: begin, execute, attempt, pipeline, finish."""
