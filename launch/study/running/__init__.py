"""study.yaml to run.json: the cells of a study, queued and carried out, here or as training jobs."""
