"""Images in storage to masks and tables in storage: the job, its plan, its shards and their commits. Knows no Ray."""
