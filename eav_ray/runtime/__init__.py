"""The only place that imports ray: preprocessing, worker groups, the queue of runs, the search."""
