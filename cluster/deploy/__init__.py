"""Files for schedulers and clusters: Kubernetes, AWS, cron, systemd, Airflow. Generated as text, applied by others."""
