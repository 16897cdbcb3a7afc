"""Files generated for schedulers and clusters: Kubernetes, AWS, cron, systemd, Airflow."""
