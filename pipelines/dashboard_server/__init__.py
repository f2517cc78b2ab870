"""The dashboard's server: an index of the tables, fixed queries on it, pictures by place, and who may ask."""
