"""Run work on Ray: clusters, worker groups, queues, scoring."""
