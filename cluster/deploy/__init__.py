"""Generated files for schedulers and clusters: Kubernetes, AWS, cron, systemd, Airflow. Nothing is applied here."""
