"""The tables that curation, training and dashboards share. Imports only pyarrow."""
